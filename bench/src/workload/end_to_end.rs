//! Producer to consumer: two connections, both driven by one client thread, one
//! message in flight.
//!
//! ```text
//!   producer's connection  --- message ---->  broker
//!   consumer's connection  <-- delivery ----
//!   producer's connection  <-- completion --
//! ```
//!
//! The topology is that of the relay floor: the same two sockets, the same
//! thread, the next message once the last one has come out and is completed. It
//! is acknowledged then, before the next one is sent: on the broker's core the
//! acknowledgement may still meet that next message. Each slice has two
//! connections of its own, and the broker no others.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use courser::Consumer;

use super::books::{self, Sender};
use super::patience::Patience;
use super::queue_name;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::ledger::Ledger;

/// Unrecorded messages at the start of a slice, as for round trips.
const WARM_UP_MESSAGES: u32 = 256;

/// See the module.
pub(super) struct EndToEnd {
    address: SocketAddr,
    queue: String,
    body: Vec<u8>,
    ledger: Ledger,
}

/// When one message came out and when its completion came back.
struct Transferred {
    delivered: Instant,
    completed: Instant,
}

impl EndToEnd {
    /// Messages through the broker at `address`, which is connected to for every
    /// slice anew.
    pub(super) fn new(address: SocketAddr, payload: u32) -> Self {
        Self {
            address,
            queue: queue_name("e2e"),
            body: vec![0xA5; payload as usize],
            ledger: Ledger::new(),
        }
    }

    /// Sends messages for `duration` and records when each came out and when it
    /// was completed; at least one.
    ///
    /// # Errors
    /// If the broker cannot be reached, a link ends, or a message takes more than
    /// five seconds.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        to_consumer: &mut Histogram,
        to_ack: &mut Histogram,
    ) -> Result<(), BenchError> {
        let ends = Instant::now() + duration;
        let sender = Sender::open(self.address, &self.queue, &self.ledger)?;
        let client = books::connect(self.address)?;
        let mut consumer = books::open_consumer(&client, &self.queue)?;
        for _ in 0..WARM_UP_MESSAGES {
            self.transfer(&sender, &mut consumer)?;
        }
        loop {
            let sent = Instant::now();
            let transferred = self.transfer(&sender, &mut consumer)?;
            to_consumer.record(transferred.delivered - sent);
            to_ack.record(transferred.completed - sent);
            if transferred.completed.max(transferred.delivered) >= ends {
                break;
            }
        }
        consumer
            .close()
            .map_err(|error| BenchError::client("close a consumer", error))?;
        books::close(client)?;
        sender.close()
    }

    /// Every message so far.
    pub(super) fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// Sends one message and looks at both connections in turn until it has come
    /// out and its completion has come back; then acknowledges it.
    #[inline]
    fn transfer(
        &mut self,
        sender: &Sender,
        consumer: &mut Consumer,
    ) -> Result<Transferred, BenchError> {
        let mut patience = Patience::default();
        while !sender.try_send(&mut self.body, &mut self.ledger)? {
            patience.look()?;
        }
        let mut delivered = None;
        let mut completed = None;
        loop {
            if delivered.is_none() {
                let received = consumer.try_receive();
                if let Some(message) =
                    received.map_err(|error| BenchError::client("receive", error))?
                {
                    delivered = Some((Instant::now(), message.position()));
                    self.ledger.received(message.body(), self.body.len());
                }
            }
            if completed.is_none() && sender.completion(&mut self.ledger) {
                completed = Some(Instant::now());
            }
            if let (Some((delivered, position)), Some(completed)) = (delivered, completed) {
                consumer
                    .acknowledge(position)
                    .map_err(|error| BenchError::client("acknowledge", error))?;
                return Ok(Transferred {
                    delivered,
                    completed,
                });
            }
            patience.look()?;
        }
    }
}
