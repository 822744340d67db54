//! Who waits for the outcome of which send of a producer.
//!
//! ```text
//!   send ---> | sync | polled x 3 | async | sync | ---> outcomes, in this order
//!                |         |          |
//!             results    aside     session's callback thread
//! ```
//!
//! Outcomes leave the machine in the order of the sends, so the front of
//! `pending` says whose the next one is. Sends in poll mode lie in runs, and
//! while nobody else waits their outcomes stay in the machine: pure poll mode
//! touches none of this but a count.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use courser_core::client::{self, LinkEnd, ProducerKey};
use courser_core::id::{Epoch, Installation, MessageId, ProducerId, Sequence};

use crate::error::SendError;
use crate::producer::Receipt;
use crate::session::{Call, Session};

/// Outcomes of polled sends that had to be set aside for others; more are not
/// let in.
const ASIDE_MAX: usize = 64 * 1024;

pub(crate) type SendResult = Result<Receipt, SendError>;

/// Who waits for an outcome.
pub(crate) enum Pending {
    /// Whoever polls next.
    Polled,
    /// A thread.
    Sync,
    /// A listener.
    Async(Call),
}

enum Entry {
    Polled(usize),
    Sync,
    Async(Call),
}

/// The books of one producer.
pub(crate) struct Ledger {
    key: ProducerKey,
    /// The id of a message but for its sequence.
    id: MessageId,
    session: Arc<Session>,
    pending: VecDeque<Entry>,
    /// Entries that are not polled.
    waiters: usize,
    results: VecDeque<(Sequence, SendResult)>,
    aside: VecDeque<(Sequence, SendResult)>,
    /// Listeners that are to be called, with what became of their sends.
    calls: Vec<(Call, SendResult)>,
    /// Listeners that have not returned; lowered by the callback thread.
    callbacks_open: Arc<AtomicUsize>,
}

impl Ledger {
    pub(crate) fn new(key: ProducerKey, id: MessageId, session: Arc<Session>) -> Self {
        Self {
            key,
            id,
            session,
            pending: VecDeque::new(),
            waiters: 0,
            results: VecDeque::new(),
            aside: VecDeque::new(),
            calls: Vec::new(),
            callbacks_open: Arc::default(),
        }
    }

    pub(crate) fn key(&self) -> ProducerKey {
        self.key
    }

    /// The broker knows the producer as this from here on.
    pub(crate) fn resumed(&mut self, installation: Installation, id: ProducerId, epoch: Epoch) {
        self.id = MessageId {
            installation,
            producer: id,
            epoch,
            ..self.id
        };
    }

    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.aside.len() < ASIDE_MAX
    }

    /// Whether a thread or a listener waits.
    #[inline]
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiters > 0
    }

    /// Whether nobody but a poller has anything to wait for.
    pub(crate) fn is_quiet(&self) -> bool {
        self.waiters == 0 && self.callbacks_open.load(Ordering::SeqCst) == 0
    }

    /// Notes who waits for the send that was just taken.
    #[inline]
    pub(crate) fn push(&mut self, pending: Pending) {
        match pending {
            Pending::Polled => {
                if let Some(Entry::Polled(count)) = self.pending.back_mut() {
                    *count += 1;
                } else {
                    self.pending.push_back(Entry::Polled(1));
                }
            }
            Pending::Sync => {
                self.waiters += 1;
                self.pending.push_back(Entry::Sync);
            }
            Pending::Async(call) => {
                self.waiters += 1;
                self.callbacks_open.fetch_add(1, Ordering::SeqCst);
                self.pending.push_back(Entry::Async(call));
            }
        }
    }

    /// Gives an outcome to whom it belongs; true if that is a listener.
    pub(crate) fn settle(
        &mut self,
        completion: client::Completion,
        end: Option<&Arc<LinkEnd>>,
    ) -> bool {
        let result = self.result_of(completion, end);
        match self.pending.front_mut() {
            Some(Entry::Polled(_)) | None => {
                self.count_polled();
                self.aside.push_back((completion.sequence, result));
                false
            }
            Some(Entry::Sync) => {
                self.pending.pop_front();
                self.waiters -= 1;
                self.results.push_back((completion.sequence, result));
                false
            }
            Some(Entry::Async(_)) => {
                self.waiters -= 1;
                if let Some(Entry::Async(call)) = self.pending.pop_front() {
                    self.calls.push((call, result));
                }
                true
            }
        }
    }

    /// Passes on the listeners that are to be called, all at once.
    pub(crate) fn call(&mut self) {
        if !self.calls.is_empty() {
            let calls = std::mem::take(&mut self.calls);
            self.session.call(Arc::clone(&self.callbacks_open), calls);
        }
    }

    /// An outcome that was set aside for whoever polls.
    #[inline]
    pub(crate) fn take_aside(&mut self) -> Option<(Sequence, SendResult)> {
        self.aside.pop_front()
    }

    /// Whether the next outcome of the machine is a poller's.
    #[inline]
    pub(crate) fn is_polled(&self) -> bool {
        matches!(self.pending.front(), Some(Entry::Polled(_)))
    }

    /// An outcome of a polled send was taken.
    #[inline]
    pub(crate) fn count_polled(&mut self) {
        if let Some(Entry::Polled(count)) = self.pending.front_mut() {
            *count -= 1;
            if *count == 0 {
                self.pending.pop_front();
            }
        }
    }

    /// The outcome of a send that its thread waits for.
    pub(crate) fn result(&mut self, sequence: Sequence) -> Option<SendResult> {
        let index = self
            .results
            .iter()
            .position(|(other, _)| *other == sequence)?;
        self.results.remove(index).map(|(_, result)| result)
    }

    /// What the application is told.
    #[inline]
    pub(crate) fn result_of(
        &self,
        completion: client::Completion,
        end: Option<&Arc<LinkEnd>>,
    ) -> SendResult {
        match completion.result {
            Ok(stored) => Ok(Receipt {
                id: MessageId {
                    sequence: completion.sequence,
                    epoch: stored.epoch,
                    ..self.id
                },
                position: stored.position,
                timestamp: stored.append_time,
                durability: stored.durability,
            }),
            Err(failure) => Err(SendError::of(failure, end)),
        }
    }
}
