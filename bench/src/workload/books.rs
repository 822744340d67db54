//! Where the client library's outcomes and messages are entered into the ledger.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use courser::{
    Borrowed, Client, Completion, CompletionListener, Consumer, Durability, Message, Producer,
    ProducerBuilder, Receipt, SendError, Sequence, TrySendError,
};

use super::patience::Patience;
use super::turns::Turns;
use crate::error::BenchError;
use crate::ledger::{self, Ledger};

/// Messages that are delivered ahead to a consumer that takes a backlog.
const PREFETCH: u32 = 1024;

/// The same to one that takes a part of it: what goes back is read again.
const PREFETCH_READER: u32 = 256;

/// What is handed over in one go: as many bodies as stay in the first-level cache.
const BODIES_MAX: usize = 64;
const BODIES_BYTES_MAX: usize = 16 << 10;

/// A connection with a producer on it, for as long as one slice lasts.
///
/// The broker sees exactly this connection: one that only rests would change how
/// it serves those that do not.
pub(super) struct Sender {
    client: Client,
    producer: Producer,
    /// The number of the producer's first message, whose sequence is 1.
    first: u64,
    /// Of its queue, which its messages go to in turn.
    partitions: u32,
    /// What an outcome has to say.
    durability: Durability,
}

impl Sender {
    /// Connects and opens a producer that goes on where the ledger stands.
    pub(super) fn open(
        address: SocketAddr,
        queue: &str,
        ledger: &Ledger,
    ) -> Result<Self, BenchError> {
        Self::open_with(address, queue, ledger, Durability::Memory, |producer| {
            producer
        })
    }

    /// As [`Self::open`], on a queue of so many partitions.
    pub(super) fn open_over(
        address: SocketAddr,
        queue: &str,
        partitions: u32,
        ledger: &Ledger,
    ) -> Result<Self, BenchError> {
        Self::open_with(address, queue, ledger, Durability::Memory, |producer| {
            producer.partitions(partitions)
        })
    }

    /// As [`Self::open`], with so many messages on their way at most, each of which is
    /// stored once a flush covers it.
    pub(super) fn open_flushed(
        address: SocketAddr,
        queue: &str,
        ledger: &Ledger,
        window: u32,
    ) -> Result<Self, BenchError> {
        Self::open_with(address, queue, ledger, Durability::Flushed, |producer| {
            producer.window(window)
        })
    }

    /// As [`Self::open`], with so many messages on their way at most.
    pub(super) fn open_with_window(
        address: SocketAddr,
        queue: &str,
        ledger: &Ledger,
        window: u32,
    ) -> Result<Self, BenchError> {
        Self::open_with(address, queue, ledger, Durability::Memory, |producer| {
            producer.window(window)
        })
    }

    fn open_with(
        address: SocketAddr,
        queue: &str,
        ledger: &Ledger,
        durability: Durability,
        options: impl FnOnce(ProducerBuilder<'_>) -> ProducerBuilder<'_>,
    ) -> Result<Self, BenchError> {
        let client = connect(address)?;
        // Said in so many words: a measurement is of one or the other.
        let producer = client.producer(queue).durability(durability);
        let producer = options(producer)
            .create()
            .map_err(|error| BenchError::client("open a producer", error))?;
        Ok(Self {
            client,
            partitions: producer.partitions(),
            producer,
            first: ledger.next(),
            durability,
        })
    }

    /// Stamps the ledger's next message and sends it in poll mode, written at once.
    /// False while the window is full.
    #[inline]
    pub(super) fn try_send(
        &self,
        body: &mut [u8],
        ledger: &mut Ledger,
    ) -> Result<bool, BenchError> {
        ledger::stamp(body, ledger.next());
        taken(self.producer.try_send(&*body), ledger)
    }

    /// As [`Self::try_send`], written with the next look.
    #[inline]
    pub(super) fn try_enqueue(
        &self,
        body: &mut [u8],
        ledger: &mut Ledger,
    ) -> Result<bool, BenchError> {
        ledger::stamp(body, ledger.next());
        taken(self.producer.try_enqueue(&*body), ledger)
    }

    /// Writes what was enqueued, as far as it goes now.
    #[inline]
    pub(super) fn write(&self) {
        self.producer.write();
    }

    /// Stamps the ledger's next message, sends it and waits for its outcome.
    #[inline]
    pub(super) fn send(&self, body: &mut [u8], ledger: &mut Ledger) -> Result<(), BenchError> {
        ledger::stamp(body, ledger.next());
        ledger.sent();
        let receipt = self
            .producer
            .send(&*body)
            .map_err(|error| BenchError::client("send", error))?;
        let is_stored = receipt.durability == self.durability;
        ledger.completed(self.number(receipt.id.sequence), is_stored);
        Ok(())
    }

    /// Enters the next outcome, after one look at the socket if it is not there;
    /// false if it is not there even so.
    #[inline]
    pub(super) fn completion(&self, ledger: &mut Ledger) -> bool {
        let Some(Completion { sequence, result }) = self.producer.poll() else {
            return false;
        };
        ledger.completed(self.number(sequence), self.is_stored(&result));
        true
    }

    /// As [`Self::try_enqueue`] for up to so many messages; returns how many were
    /// taken.
    #[inline]
    pub(super) fn try_enqueue_all(
        &self,
        gathered: &mut Gathered,
        messages_max: u64,
        ledger: &mut Ledger,
    ) -> Result<u64, BenchError> {
        let bodies = gathered.stamped(ledger.next(), messages_max);
        match self.producer.try_enqueue_all(bodies) {
            Ok(taken) => {
                ledger.sent_many(taken as u64);
                Ok(taken as u64)
            }
            Err(TrySendError::WouldBlock) => Ok(0),
            Err(error) => Err(BenchError::client("send", error)),
        }
    }

    /// Enters the outcomes that are there, after one look at the socket if there
    /// are none; false if there were none even so.
    #[inline]
    pub(super) fn completions(&self, gathered: &mut Gathered, ledger: &mut Ledger) -> bool {
        self.producer.poll_into(&mut gathered.outcomes);
        let any = !gathered.outcomes.is_empty();
        for Completion { sequence, result } in gathered.outcomes.drain(..) {
            ledger.completed(self.number(sequence), self.is_stored(&result));
        }
        any
    }

    /// Stamps and sends a message whose outcome a listener enters into a ledger
    /// that has the send already.
    #[inline]
    pub(super) fn send_async(
        &self,
        body: &mut [u8],
        number: u64,
        listener: &Arc<Listener>,
    ) -> Result<(), BenchError> {
        ledger::stamp(body, number);
        let listener: Arc<dyn CompletionListener> = listener.clone();
        self.producer
            .send_async(Message::new(&*body), listener)
            .map_err(|refused| BenchError::client("send", refused.error))
    }

    /// A listener that enters the outcomes of this sender.
    pub(super) fn listener(&self, ledger: &Arc<SharedLedger>) -> Arc<Listener> {
        Arc::new(Listener {
            first: self.first,
            ledger: Arc::clone(ledger),
        })
    }

    /// Returns once every listener was called.
    pub(super) fn flush(&self) -> Result<(), BenchError> {
        self.producer
            .flush()
            .map_err(|error| BenchError::client("flush", error))
    }

    /// Takes and acknowledges everything that was stored and has not come out, with
    /// a consumer that is there for no longer than that takes.
    pub(super) fn take_backlog(
        &self,
        queue: &str,
        body_bytes: usize,
        ledger: &mut Ledger,
    ) -> Result<(), BenchError> {
        let left = ledger.backlog();
        if self.partitions == 1 {
            return take_backlog(&self.client, queue, left, |message| {
                ledger.received(message.body(), body_bytes);
                ledger.backlog()
            });
        }
        let mut turns = Turns::new(self.first, ledger.taken(), self.partitions);
        take_backlog(&self.client, queue, left, |message| {
            let body = message.body();
            let is_due = turns.is_due(message.position().partition, ledger::number(body));
            ledger.received_in_turn(body, body_bytes, is_due);
            ledger.backlog()
        })
    }

    /// Closes the connection.
    pub(super) fn close(self) -> Result<(), BenchError> {
        drop(self.producer);
        close(self.client)
    }

    /// Whether it is as safe as was asked for.
    #[inline]
    fn is_stored(&self, result: &Result<Receipt, SendError>) -> bool {
        matches!(result, Ok(receipt) if receipt.durability == self.durability)
    }

    fn number(&self, sequence: Sequence) -> u64 {
        number(self.first, sequence)
    }
}

/// The number of the message with this sequence: sequences start at 1.
#[inline]
fn number(first: u64, sequence: Sequence) -> u64 {
    first.wrapping_add(sequence.0).wrapping_sub(1)
}

/// Bodies that are handed over together, and outcomes that are taken together.
pub(super) struct Gathered {
    bodies: Vec<Vec<u8>>,
    outcomes: Vec<Completion>,
}

impl Gathered {
    /// For bodies of this size.
    pub(super) fn new(body: &[u8]) -> Self {
        let count = (BODIES_BYTES_MAX / body.len().max(1)).clamp(1, BODIES_MAX);
        Self {
            bodies: vec![body.to_vec(); count],
            outcomes: Vec::new(),
        }
    }

    /// The first bodies, with consecutive numbers.
    fn stamped(&mut self, first: u64, messages_max: u64) -> &[Vec<u8>] {
        let count = usize::try_from(messages_max).unwrap_or(usize::MAX);
        let count = count.min(self.bodies.len());
        let bodies = &mut self.bodies[..count];
        for (body, number) in bodies.iter_mut().zip(first..) {
            ledger::stamp(body, number);
        }
        bodies
    }
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

/// Takes and acknowledges messages while some are `left`, with a consumer that is there
/// for no longer than that takes. `enter` is to enter each and to say how many are left
/// after it.
pub(super) fn take_backlog(
    client: &Client,
    queue: &str,
    mut left: u64,
    mut enter: impl FnMut(&Borrowed<'_>) -> u64,
) -> Result<(), BenchError> {
    let mut consumer = open_consumer(client, queue)?;
    let mut patience = Patience::default();
    while left > 0 {
        let message = consumer
            .try_receive()
            .map_err(|error| BenchError::client("receive", error))?;
        let Some(message) = message else {
            patience.look()?;
            continue;
        };
        patience = Patience::default();
        left = enter(&message);
        let position = message.position();
        consumer
            .acknowledge(position)
            .map_err(|error| BenchError::client("acknowledge", error))?;
    }
    consumer
        .close()
        .map_err(|error| BenchError::client("close a consumer", error))
}

/// A connection with a consumer on it, for as long as one slice lasts, that takes what is
/// there and waits for nothing.
pub(super) struct Reader {
    client: Client,
    consumer: Consumer,
}

impl Reader {
    /// Connects and opens a consumer.
    pub(super) fn open(address: SocketAddr, queue: &str) -> Result<Self, BenchError> {
        let client = connect(address)?;
        let consumer = open_consumer_with(&client, queue, PREFETCH_READER)?;
        Ok(Self { client, consumer })
    }

    /// Takes and acknowledges up to so many messages that are there.
    pub(super) fn take(
        &mut self,
        messages_max: u64,
        body_bytes: usize,
        ledger: &mut Ledger,
    ) -> Result<(), BenchError> {
        for _ in 0..messages_max {
            let message = self
                .consumer
                .try_receive()
                .map_err(|error| BenchError::client("receive", error))?;
            let Some(message) = message else {
                break;
            };
            ledger.received(message.body(), body_bytes);
            let position = message.position();
            self.consumer
                .acknowledge(position)
                .map_err(|error| BenchError::client("acknowledge", error))?;
        }
        Ok(())
    }

    /// Closes the connection; what was delivered ahead goes back to its place.
    pub(super) fn close(self) -> Result<(), BenchError> {
        self.consumer
            .close()
            .map_err(|error| BenchError::client("close a consumer", error))?;
        close(self.client)
    }
}

/// A connection with the library's defaults, but for one: a measurement is over when
/// its connection is.
pub(super) fn connect(address: SocketAddr) -> Result<Client, BenchError> {
    Client::options()
        .name("courser bench")
        .reconnect_for(Duration::ZERO)
        .connect(address)
        .map_err(|error| BenchError::client("connect to the broker", error))
}

/// Says goodbye and waits for the end.
pub(super) fn close(client: Client) -> Result<(), BenchError> {
    client
        .close()
        .map_err(|error| BenchError::client("close the connection", error))
}

/// Deletes a queue that is empty and that nobody uses any more, where it would keep
/// more memory than those beside it.
pub(super) fn delete(address: SocketAddr, queue: &str) -> Result<(), BenchError> {
    let client = connect(address)?;
    client
        .admin()
        .delete(queue, false)
        .map_err(|error| BenchError::client("delete a queue", error))?;
    close(client)
}

pub(super) fn open_consumer(client: &Client, queue: &str) -> Result<Consumer, BenchError> {
    open_consumer_with(client, queue, PREFETCH)
}

fn open_consumer_with(client: &Client, queue: &str, prefetch: u32) -> Result<Consumer, BenchError> {
    client
        .consumer(queue)
        .prefetch(prefetch)
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

/// Enters the outcomes of one sender.
pub(super) struct Listener {
    first: u64,
    ledger: Arc<SharedLedger>,
}

impl CompletionListener for Listener {
    fn on_completion(&self, message: Message, receipt: Receipt) {
        let number = ledger::number(message.body());
        // Both the message that comes back and the receipt say which send it was.
        let is_its_own = number == self::number(self.first, receipt.id.sequence);
        self.ledger
            .with(|ledger| ledger.completed(number, is_its_own));
    }

    fn on_exception(&self, message: Message, _: SendError) {
        let number = ledger::number(message.body());
        self.ledger.with(|ledger| ledger.completed(number, false));
    }
}
