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
//! thread, the next message once the last one has come out and is completed. A
//! message is acknowledged as soon as it is there; the acknowledgement leaves
//! before the next message is sent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use courser::{Client, Consumer, Producer};

use super::books;
use super::patience::Patience;
use super::queue_name;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::ledger::Ledger;

const WARM_UP_MESSAGES: u32 = 64;

/// See the module.
pub(super) struct EndToEnd {
    producer: Producer,
    consumer: Consumer,
    body: Vec<u8>,
    ledger: Ledger,
    /// Their connections, which end with them.
    _clients: [Client; 2],
}

/// When one message came out and when its completion came back.
struct Transferred {
    delivered: Instant,
    completed: Instant,
}

impl EndToEnd {
    /// Connects both ends.
    ///
    /// # Errors
    /// If the broker cannot be reached or refuses.
    pub(super) fn open(address: SocketAddr, payload: u32) -> Result<Self, BenchError> {
        let queue = queue_name("e2e");
        let clients = [books::connect(address)?, books::connect(address)?];
        Ok(Self {
            producer: books::open_producer(&clients[0], &queue)?,
            consumer: books::open_consumer(&clients[1], &queue)?,
            body: vec![0xA5; payload as usize],
            ledger: Ledger::new(),
            _clients: clients,
        })
    }

    /// Sends messages for `duration` and records when each came out and when it
    /// was completed.
    ///
    /// # Errors
    /// If a link ends, or a message takes more than five seconds.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        to_consumer: &mut Histogram,
        to_ack: &mut Histogram,
    ) -> Result<(), BenchError> {
        for _ in 0..WARM_UP_MESSAGES {
            self.transfer()?;
        }
        let deadline = Instant::now() + duration;
        loop {
            let sent = Instant::now();
            let transferred = self.transfer()?;
            to_consumer.record(transferred.delivered - sent);
            to_ack.record(transferred.completed - sent);
            if transferred.completed.max(transferred.delivered) >= deadline {
                return Ok(());
            }
        }
    }

    /// Every message so far.
    pub(super) fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// Sends one message and looks at both connections in turn until it has come
    /// out and its completion has come back; then acknowledges it.
    #[inline]
    fn transfer(&mut self) -> Result<Transferred, BenchError> {
        let mut patience = Patience::default();
        while !books::try_send(&self.producer, &mut self.body, &mut self.ledger)? {
            patience.look()?;
        }
        let mut delivered = None;
        let mut completed = None;
        loop {
            if delivered.is_none() {
                let received = self.consumer.try_receive();
                if let Some(message) =
                    received.map_err(|error| BenchError::client("receive", error))?
                {
                    delivered = Some((Instant::now(), message.position()));
                    self.ledger.received(message.body(), self.body.len());
                }
            }
            if completed.is_none() && books::completion(&self.producer, &mut self.ledger) {
                completed = Some(Instant::now());
            }
            if let (Some((delivered, position)), Some(completed)) = (delivered, completed) {
                self.consumer
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
