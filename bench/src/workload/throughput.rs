//! Acknowledged messages per second on one connection, as many in flight as the
//! producer's window allows.
//!
//! ```text
//!   timed     send until the window is full, collect completions, again ...
//!             ... until the burst is sent and every message of it is completed
//!   untimed   a consumer opens, takes and acknowledges all of it, and closes
//! ```
//!
//! What counts is what was completed, from the first send of a burst to its last
//! completion. A burst is [`BURST_BYTES`], so that memory stays flat without a
//! consumer taking part in what is measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::books::{self, Gathered, Sender, SharedLedger};
use super::patience::Patience;
use super::queue_name;
use crate::error::BenchError;
use crate::floor::frame_bytes;
use crate::floor::stream::Rate;
use crate::ledger::Ledger;

/// Frame bytes of one burst.
pub(super) const BURST_BYTES: usize = 32 << 20;

/// Unrecorded messages before every burst: the broker has just woken, or its
/// memory has just changed.
const WARM_UP_MESSAGES: u64 = 1024;

/// Sends with a listener between two looks at the clock.
const MESSAGES_PER_CLOCK: u64 = 256;

/// How the client learns of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Learn {
    /// It polls between sends, on the sending thread.
    Polling,
    /// A listener is called on the library's thread.
    Listening,
}

/// See the module.
pub(super) struct Throughput {
    learn: Learn,
    address: SocketAddr,
    queue: String,
    partitions: u32,
    body: Vec<u8>,
    gathered: Gathered,
    ledger: Arc<SharedLedger>,
}

impl Throughput {
    /// Messages to the broker at `address`, which is connected to for every slice
    /// anew.
    pub(super) fn new(address: SocketAddr, payload: u32, learn: Learn) -> Self {
        let body = vec![0xA5; payload as usize];
        Self {
            learn,
            address,
            queue: queue_name("throughput"),
            partitions: 1,
            gathered: Gathered::new(&body),
            body,
            ledger: Arc::default(),
        }
    }

    /// The same over a queue of so many partitions, which are sent to in turn.
    pub(super) fn over(self, partitions: u32) -> Self {
        Self { partitions, ..self }
    }

    /// Sends bursts for `duration`, in which the clock also stands still; at least
    /// one.
    ///
    /// # Errors
    /// If the broker cannot be reached, the link ends, or nothing is completed for
    /// five seconds.
    pub(super) fn slice(&mut self, duration: Duration) -> Result<Rate, BenchError> {
        let frame = frame_bytes(self.body.len());
        let messages_max = (BURST_BYTES / frame).max(1) as u64;
        let ends = Instant::now() + duration;
        let sender = Sender::open_over(self.address, &self.queue, self.partitions, &self.ledger())?;
        let mut rate = Rate::default();
        loop {
            self.burst(&sender, WARM_UP_MESSAGES.min(messages_max), ends)?;
            let began = Instant::now();
            let messages = self.burst(&sender, messages_max, ends)?;
            rate.add(&Rate {
                messages,
                bytes: messages * frame as u64,
                elapsed: began.elapsed(),
            });
            self.ledger
                .with(|ledger| sender.take_backlog(&self.queue, self.body.len(), ledger))?;
            if Instant::now() >= ends {
                sender.close()?;
                return Ok(rate);
            }
        }
    }

    /// Deletes its queue, which is empty between slices.
    ///
    /// # Errors
    /// If the broker cannot be reached, or does not.
    pub(super) fn delete_queue(&self) -> Result<(), BenchError> {
        books::delete(self.address, &self.queue)
    }

    /// How the client learns of completions.
    pub(super) fn learn(&self) -> Learn {
        self.learn
    }

    /// Every message so far.
    pub(super) fn ledger(&self) -> Ledger {
        self.ledger.with(|ledger| *ledger)
    }

    /// Sends so many messages, or as many as go out until `ends` and some more,
    /// and returns how many once all of them are completed.
    fn burst(
        &mut self,
        sender: &Sender,
        messages_max: u64,
        ends: Instant,
    ) -> Result<u64, BenchError> {
        let first = self.ledger().sent;
        match self.learn {
            Learn::Polling => {
                let gathered = &mut self.gathered;
                self.ledger
                    .with(|ledger| poll_burst(sender, gathered, messages_max, ends, ledger))?;
            }
            Learn::Listening => self.listen_burst(sender, messages_max, ends)?,
        }
        Ok(self.ledger().sent - first)
    }

    fn listen_burst(
        &mut self,
        sender: &Sender,
        messages_max: u64,
        ends: Instant,
    ) -> Result<(), BenchError> {
        let listener = sender.listener(&self.ledger);
        let mut left = messages_max;
        while left > 0 {
            let group = left.min(MESSAGES_PER_CLOCK);
            let first = self.ledger.with(|ledger| {
                let first = ledger.next();
                ledger.sent_many(group);
                first
            });
            for number in first..first + group {
                sender.send_async(&mut self.body, number, &listener)?;
            }
            left -= group;
            if Instant::now() >= ends {
                break;
            }
        }
        sender.flush()
    }
}

/// Sends so many messages, or as many as go out until `ends` and some more, and returns
/// once all of them are completed.
pub(super) fn poll_burst(
    sender: &Sender,
    gathered: &mut Gathered,
    messages_max: u64,
    ends: Instant,
    ledger: &mut Ledger,
) -> Result<(), BenchError> {
    let mut left = messages_max;
    let mut patience = Patience::default();
    while left > 0 || ledger.outstanding() > 0 {
        while left > 0 {
            let taken = sender.try_enqueue_all(gathered, left, ledger)?;
            if taken == 0 {
                break;
            }
            left -= taken;
        }
        if Instant::now() >= ends {
            left = 0;
        }
        if sender.completions(gathered, ledger) {
            patience = Patience::default();
        } else {
            patience.look()?;
        }
    }
    Ok(())
}
