//! Produce to ack: one connection, one message in flight.
//!
//! ```text
//!   timed     send -> completion | send -> completion | ...
//!   untimed   ... | consumer opens, takes and acknowledges the backlog, closes
//! ```
//!
//! The messages go to a queue, where they are stored until a consumer has
//! acknowledged them. So that memory stays flat and every message is seen to
//! come out, the client takes the backlog whenever it has grown to
//! [`BACKLOG_BYTES`], and at the end of every slice; the clock stands still
//! meanwhile, and no consumer is there while it runs, because deliveries on the
//! way back are another workload.
//!
//! Each slice has a connection of its own, and the broker no other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use courser::Durability;

use super::books::{self, Sender};
use super::patience::Patience;
use super::queue_name;
use crate::error::BenchError;
use crate::floor::frame_bytes;
use crate::histogram::Histogram;
use crate::ledger::Ledger;

/// What the queue may hold before the consumer comes, or a few messages if they
/// are large.
pub(super) const BACKLOG_BYTES: usize = 1 << 20;
const BACKLOG_MESSAGES_MIN: usize = 16;

/// Unrecorded round trips at the start of a slice and after each rest of the
/// clock, three milliseconds or so: the broker has just woken, and finds out only
/// after a while that this connection is the one to attend to.
const WARM_UP_ROUND_TRIPS: u64 = 256;

/// The same of round trips that wait for a device: a millisecond on a quick one, and not
/// the whole slice on a slow one.
const WARM_UP_ROUND_TRIPS_FLUSHED: u64 = 4;

/// One would do.
const WINDOW_FLUSHED: u32 = 16;

/// How the client waits for a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// `try_send`, then `poll` again and again.
    Polling,
    /// `send`, which spins for a while and then sleeps.
    Blocking,
}

/// See the module.
pub(super) struct RoundTrip {
    wait: Wait,
    durability: Durability,
    address: SocketAddr,
    queue: String,
    partitions: u32,
    body: Vec<u8>,
    backlog_max: u64,
    ledger: Ledger,
}

impl RoundTrip {
    /// Round trips to the broker at `address`, which is connected to for every
    /// slice anew.
    pub(super) fn new(address: SocketAddr, payload: u32, wait: Wait) -> Self {
        let body = vec![0xA5; payload as usize];
        Self {
            wait,
            durability: Durability::Memory,
            address,
            queue: queue_name("rtt"),
            partitions: 1,
            backlog_max: (BACKLOG_BYTES / frame_bytes(body.len())).max(BACKLOG_MESSAGES_MIN) as u64,
            body,
            ledger: Ledger::new(),
        }
    }

    /// The same over a queue of so many partitions, which are sent to in turn.
    pub(super) fn over(self, partitions: u32) -> Self {
        Self { partitions, ..self }
    }

    /// The same, each with a flush, over one partition.
    pub(super) fn flushed(self) -> Self {
        Self {
            durability: Durability::Flushed,
            ..self
        }
    }

    /// Goes on with the broker at `address`, from the next slice on.
    pub(super) fn move_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// Records round trips for `duration`, in which the clock also stands still; at
    /// least one.
    ///
    /// # Errors
    /// If the broker cannot be reached, the link ends, or an outcome takes more than
    /// five seconds.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        histogram: &mut Histogram,
    ) -> Result<(), BenchError> {
        self.slice_beside(duration, histogram, || Ok(true))
    }

    /// As [`Self::slice`], with something that is done while the clock stands still after
    /// each round trip, and says whether to go on.
    ///
    /// # Errors
    /// As [`Self::slice`], and what that fails with.
    pub(super) fn slice_beside(
        &mut self,
        duration: Duration,
        histogram: &mut Histogram,
        mut beside: impl FnMut() -> Result<bool, BenchError>,
    ) -> Result<(), BenchError> {
        let ends = Instant::now() + duration;
        let (sender, warm_up) = match self.durability {
            Durability::Memory => (
                Sender::open_over(self.address, &self.queue, self.partitions, &self.ledger)?,
                WARM_UP_ROUND_TRIPS,
            ),
            Durability::Flushed => (
                Sender::open_flushed(self.address, &self.queue, &self.ledger, WINDOW_FLUSHED)?,
                WARM_UP_ROUND_TRIPS_FLUSHED,
            ),
        };
        loop {
            for _ in 0..warm_up.min(self.backlog_max / 2) {
                self.round_trip(&sender)?;
            }
            let is_over = loop {
                let sent = Instant::now();
                self.round_trip(&sender)?;
                let completed = Instant::now();
                histogram.record(completed - sent);
                let is_over = !beside()? || completed >= ends;
                if is_over || self.ledger.backlog() >= self.backlog_max {
                    break is_over;
                }
            };
            sender.take_backlog(&self.queue, self.body.len(), &mut self.ledger)?;
            if is_over {
                return sender.close();
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

    /// How the client waits.
    pub(super) fn wait(&self) -> Wait {
        self.wait
    }

    /// Every message so far.
    pub(super) fn ledger(&self) -> Ledger {
        self.ledger
    }

    #[inline]
    fn round_trip(&mut self, sender: &Sender) -> Result<(), BenchError> {
        match self.wait {
            Wait::Polling => self.poll_round_trip(sender),
            Wait::Blocking => sender.send(&mut self.body, &mut self.ledger),
        }
    }

    #[inline]
    fn poll_round_trip(&mut self, sender: &Sender) -> Result<(), BenchError> {
        let mut patience = Patience::default();
        while !sender.try_send(&mut self.body, &mut self.ledger)? {
            patience.look()?;
        }
        while !sender.completion(&mut self.ledger) {
            patience.look()?;
        }
        Ok(())
    }
}
