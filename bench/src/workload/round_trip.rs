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

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use courser::{Client, Producer};

use super::books;
use super::patience::Patience;
use super::queue_name;
use crate::error::BenchError;
use crate::floor::frame_bytes;
use crate::histogram::Histogram;
use crate::ledger::{self, Ledger};

/// What the queue may hold before the consumer comes.
pub(super) const BACKLOG_BYTES: usize = 1 << 20;

/// Unrecorded round trips at the start of a slice and after each rest of the
/// clock: the broker has just woken, or its memory has just changed.
const WARM_UP_ROUND_TRIPS: u32 = 64;

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
    client: Client,
    queue: String,
    producer: Producer,
    body: Vec<u8>,
    backlog_max: u64,
    ledger: Ledger,
}

impl RoundTrip {
    /// Connects and opens the producer.
    ///
    /// # Errors
    /// If the broker cannot be reached or refuses.
    pub(super) fn open(address: SocketAddr, payload: u32, wait: Wait) -> Result<Self, BenchError> {
        let queue = queue_name("rtt");
        let client = books::connect(address)?;
        let producer = books::open_producer(&client, &queue)?;
        let body = vec![0xA5; payload as usize];
        let backlog_max = (BACKLOG_BYTES / frame_bytes(body.len())).max(1) as u64;
        Ok(Self {
            wait,
            client,
            queue,
            producer,
            body,
            backlog_max,
            ledger: Ledger::new(),
        })
    }

    /// Records round trips for `duration`, in which the clock also stands still.
    ///
    /// # Errors
    /// If the link ends, or an outcome takes more than five seconds.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        histogram: &mut Histogram,
    ) -> Result<(), BenchError> {
        let ends = Instant::now() + duration;
        let mut now = Instant::now();
        while now < ends {
            for _ in 0..WARM_UP_ROUND_TRIPS {
                self.round_trip()?;
            }
            now = Instant::now();
            while now < ends && self.ledger.backlog() < self.backlog_max {
                let sent = Instant::now();
                self.round_trip()?;
                now = Instant::now();
                histogram.record(now - sent);
            }
            books::take_backlog(&self.client, &self.queue, self.body.len(), &mut self.ledger)?;
        }
        Ok(())
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
    fn round_trip(&mut self) -> Result<(), BenchError> {
        match self.wait {
            Wait::Polling => self.poll_round_trip(),
            Wait::Blocking => self.send_and_wait(),
        }
    }

    #[inline]
    fn poll_round_trip(&mut self) -> Result<(), BenchError> {
        let mut patience = Patience::default();
        while !books::try_send(&self.producer, &mut self.body, &mut self.ledger)? {
            patience.look()?;
        }
        while !books::completion(&self.producer, &mut self.ledger) {
            patience.look()?;
        }
        Ok(())
    }

    #[inline]
    fn send_and_wait(&mut self) -> Result<(), BenchError> {
        ledger::stamp(&mut self.body, self.ledger.next());
        self.ledger.sent();
        let receipt = self
            .producer
            .send(&self.body)
            .map_err(|error| BenchError::client("send", error))?;
        self.ledger
            .completed(books::number(receipt.id.sequence), true);
        Ok(())
    }
}
