//! Where the client library's outcomes and messages are entered into the ledger.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use courser::{
    Client, Completion, CompletionListener, Consumer, Message, Producer, Receipt, SendError,
    Sequence, TrySendError,
};

use super::patience::Patience;
use crate::error::BenchError;
use crate::ledger::{self, Ledger};

/// Messages that are delivered ahead to a consumer that takes a backlog.
const PREFETCH: u32 = 1024;

/// Outcomes that are taken in one go before the socket is looked at again.
const COMPLETIONS_AT_ONCE: u32 = 4096;

/// The number of the message with this sequence: sequences start at 1.
#[inline]
pub(super) fn number(sequence: Sequence) -> u64 {
    sequence.0.wrapping_sub(1)
}

/// Stamps the ledger's next message and sends it in poll mode, written at once.
/// False while the window is full.
#[inline]
pub(super) fn try_send(
    producer: &Producer,
    body: &mut [u8],
    ledger: &mut Ledger,
) -> Result<bool, BenchError> {
    ledger::stamp(body, ledger.next());
    taken(producer.try_send(&*body), ledger)
}

/// As [`try_send`], written with the next poll.
#[inline]
pub(super) fn try_enqueue(
    producer: &Producer,
    body: &mut [u8],
    ledger: &mut Ledger,
) -> Result<bool, BenchError> {
    ledger::stamp(body, ledger.next());
    taken(producer.try_enqueue(&*body), ledger)
}

#[inline]
fn taken(result: Result<Sequence, TrySendError>, ledger: &mut Ledger) -> Result<bool, BenchError> {
    match result {
        Ok(_) => {
            ledger.sent();
            Ok(true)
        }
        Err(TrySendError::WouldBlock) => Ok(false),
        Err(error) => Err(BenchError::client("send", error)),
    }
}

/// Enters the next outcome, after one look at the socket if it is not there; false
/// if it is not there even so.
#[inline]
pub(super) fn completion(producer: &Producer, ledger: &mut Ledger) -> bool {
    let Some(Completion { sequence, result }) = producer.poll() else {
        return false;
    };
    ledger.completed(number(sequence), result.is_ok());
    true
}

/// Enters the outcomes that are there, after one look at the socket if there are
/// none; false if there were none even so.
#[inline]
pub(super) fn completions(producer: &Producer, ledger: &mut Ledger) -> bool {
    let mut any = false;
    for _ in 0..COMPLETIONS_AT_ONCE {
        if !completion(producer, ledger) {
            break;
        }
        any = true;
    }
    any
}

/// Enters the messages that are there and acknowledges them, after one look at
/// the socket if there are none; false if there were none even so.
#[inline]
pub(super) fn messages(
    consumer: &mut Consumer,
    body_bytes: usize,
    ledger: &mut Ledger,
) -> Result<bool, BenchError> {
    let mut any = false;
    while let Some(message) = consumer
        .try_receive()
        .map_err(|error| BenchError::client("receive", error))?
    {
        ledger.received(message.body(), body_bytes);
        let position = message.position();
        consumer
            .acknowledge(position)
            .map_err(|error| BenchError::client("acknowledge", error))?;
        any = true;
        if ledger.backlog() == 0 {
            break;
        }
    }
    Ok(any)
}

/// Takes and acknowledges everything that was stored and has not come out, with a
/// consumer that is there for no longer than that takes.
pub(super) fn take_backlog(
    client: &Client,
    queue: &str,
    body_bytes: usize,
    ledger: &mut Ledger,
) -> Result<(), BenchError> {
    let mut consumer = open_consumer(client, queue)?;
    let mut patience = Patience::default();
    while ledger.backlog() > 0 {
        if messages(&mut consumer, body_bytes, ledger)? {
            patience = Patience::default();
        } else {
            patience.look()?;
        }
    }
    consumer
        .close()
        .map_err(|error| BenchError::client("close a consumer", error))
}

/// A connection with the library's defaults.
pub(super) fn connect(address: SocketAddr) -> Result<Client, BenchError> {
    Client::options()
        .name("courser bench")
        .connect(address)
        .map_err(|error| BenchError::client("connect to the broker", error))
}

pub(super) fn open_producer(client: &Client, queue: &str) -> Result<Producer, BenchError> {
    client
        .producer(queue)
        .create()
        .map_err(|error| BenchError::client("open a producer", error))
}

pub(super) fn open_consumer(client: &Client, queue: &str) -> Result<Consumer, BenchError> {
    client
        .consumer(queue)
        .prefetch(PREFETCH)
        .create()
        .map_err(|error| BenchError::client("open a consumer", error))
}

/// A ledger that a listener writes while its sender sends.
///
/// Whoever sends enters a group of messages before it sends the first of them,
/// so the lock is the listener's alone nearly always.
#[derive(Debug, Default)]
pub(super) struct SharedLedger(Mutex<Ledger>);

impl SharedLedger {
    /// Works with the ledger.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        // A listener that panicked in here left counts behind that are still
        // counts, and a missing one that will show.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CompletionListener for SharedLedger {
    fn on_completion(&self, message: Message, receipt: Receipt) {
        let number = ledger::number(message.body());
        // Both the message that comes back and the receipt say which send it was.
        let is_its_own = number == self::number(receipt.id.sequence);
        self.with(|ledger| ledger.completed(number, is_its_own));
    }

    fn on_exception(&self, message: Message, _: SendError) {
        let number = ledger::number(message.body());
        self.with(|ledger| ledger.completed(number, false));
    }
}
