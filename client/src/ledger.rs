//! Who waits for the outcome of which send of a producer.
//!
//! ```text
//!   send ---> | thread | polled x 3 | listener | future | ---> outcomes, in this order
//!                 |          |           |          |
//!              results     aside   session's thread  slot
//! ```
//!
//! Outcomes leave the machine in the order of the sends, so the front of
//! `pending` says whose the next one is. Sends in poll mode lie in runs, and
//! while nobody else waits their outcomes stay in the machine: pure poll mode
//! touches none of this but a count.
//!
//! Before the machine lies the line: sends that found the window full, in order.
//! A send that the machine refuses for good fails in its place like the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use courser_core::client::{self, LinkEnd, ProducerKey};
use courser_core::id::{Epoch, Installation, MessageId, ProducerId, Sequence};

use crate::error::SendError;
use crate::lane::{Item, LaneEnd, Ticket, Who};
use crate::link::{Link, Woken};
use crate::producer::Receipt;
use crate::session::{Call, Session};

/// Outcomes of polled sends that had to be set aside for others; more are not
/// let in.
const ASIDE_MAX: usize = 64 * 1024;
/// As many sends and bytes wait in a line before threads that send wait as well.
const LINE_MAX: usize = 1024;
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// As many wait before sends with futures fail at once.
const FUTURES_MAX: usize = 64 * 1024;
const FUTURES_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(crate) type SendResult = Result<Receipt, SendError>;

/// Who waits for an outcome.
pub(crate) enum Entry {
    /// Whoever polls next, for so many.
    Polled(usize),
    Thread(Ticket),
    Listener(Call),
    Future(Arc<crate::future::Slot>),
}

/// As an entry, of a send that is to fail in its place.
struct Failed {
    entry: Entry,
    error: SendError,
}

enum Place {
    Taken(Entry),
    Failed(Box<Failed>),
}

/// The books of one producer.
pub(crate) struct Ledger {
    key: ProducerKey,
    /// The id of a message but for its sequence.
    id: MessageId,
    /// Whose producer it is.
    link: Weak<Link>,
    session: Arc<Session>,
    /// What other threads than the driver sent.
    pub(crate) lane: LaneEnd,
    /// What the machine has no room for.
    line: VecDeque<Item>,
    line_bytes: usize,
    /// Nobody has the producer any more: close it once the line is empty.
    pub(crate) is_deserted: bool,
    pending: VecDeque<Place>,
    /// Entries that are not polled.
    waiters: usize,
    results: VecDeque<(Ticket, SendResult)>,
    aside: VecDeque<(Sequence, SendResult)>,
    /// Listeners that are to be called, with what became of their sends.
    calls: Vec<(Call, SendResult)>,
    /// Listeners that have not returned; lowered by the callback thread.
    callbacks_open: Arc<AtomicUsize>,
}

impl Item {
    fn size(&self) -> usize {
        self.message.size()
    }

    pub(crate) fn into_entry(self) -> Entry {
        match self.who {
            Who::Thread(ticket) => Entry::Thread(ticket),
            Who::Future(slot) => Entry::Future(slot),
            Who::Listener(listener) => Entry::Listener(Call {
                message: self.message,
                listener,
            }),
        }
    }
}

impl Ledger {
    pub(crate) fn new(
        key: ProducerKey,
        id: MessageId,
        link: Weak<Link>,
        session: Arc<Session>,
        lane: LaneEnd,
    ) -> Self {
        Self {
            key,
            id,
            link,
            session,
            lane,
            line: VecDeque::new(),
            line_bytes: 0,
            is_deserted: false,
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

    // The line.

    /// Whether sends wait here for room.
    #[inline]
    pub(crate) fn is_lined(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether a thread's send may join the line.
    pub(crate) fn has_room_in_line(&self) -> bool {
        self.line.len() < LINE_MAX && self.line_bytes < LINE_BYTES_MAX
    }

    /// Whether a future's send may.
    pub(crate) fn has_room_for_futures(&self) -> bool {
        self.line.len() < FUTURES_MAX && self.line_bytes < FUTURES_BYTES_MAX
    }

    pub(crate) fn line_up(&mut self, item: Item) {
        self.line_bytes += item.size();
        self.line.push_back(item);
        self.lane.set_crowded(!self.has_room_in_line());
    }

    pub(crate) fn first_in_line(&self) -> Option<&Item> {
        self.line.front()
    }

    fn leave_line(&mut self) -> Option<Item> {
        let item = self.line.pop_front()?;
        self.line_bytes -= item.size();
        self.lane.set_crowded(!self.has_room_in_line());
        Some(item)
    }

    /// The machine has taken the first in the line.
    pub(crate) fn take_first(&mut self) {
        if let Some(item) = self.leave_line() {
            self.push(item.into_entry());
        }
    }

    /// The machine will never take the first in the line.
    pub(crate) fn fail_first(&mut self, error: SendError) {
        if let Some(item) = self.leave_line() {
            self.fail(item, error);
        }
    }

    // The books.

    /// Whether outcomes of further polled sends would find a place.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.aside.len() < ASIDE_MAX
    }

    /// Whether somebody but a poller waits.
    #[inline]
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiters > 0 || !self.line.is_empty()
    }

    /// Whether nobody but a poller has anything to wait for.
    pub(crate) fn is_quiet(&mut self) -> bool {
        !self.has_waiters()
            && self.lane.is_empty()
            && self.callbacks_open.load(Ordering::SeqCst) == 0
    }

    /// Notes who waits for the send that was just taken.
    #[inline]
    pub(crate) fn push(&mut self, entry: Entry) {
        if let Entry::Polled(more) = entry {
            if let Some(Place::Taken(Entry::Polled(count))) = self.pending.back_mut() {
                *count += more;
                return;
            }
        } else {
            self.count(&entry);
        }
        self.pending.push_back(Place::Taken(entry));
    }

    /// Notes a send that fails once all before it have their outcomes.
    pub(crate) fn fail(&mut self, item: Item, error: SendError) {
        let entry = item.into_entry();
        self.count(&entry);
        self.pending
            .push_back(Place::Failed(Box::new(Failed { entry, error })));
    }

    fn count(&mut self, entry: &Entry) {
        self.waiters += 1;
        if matches!(entry, Entry::Listener(_)) {
            self.callbacks_open.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Gives an outcome to whom it belongs, and those behind it that have failed
    /// theirs. Returns how many of them nobody waited for.
    pub(crate) fn settle(
        &mut self,
        completion: client::Completion,
        end: Option<&Arc<LinkEnd>>,
        woken: &mut Vec<Woken>,
    ) -> usize {
        let result = self.result_of(completion, end);
        let mut unwaited = 0;
        match self.pending.front() {
            Some(Place::Taken(Entry::Polled(_)) | Place::Failed(_)) | None => {
                self.count_polled();
                self.aside.push_back((completion.sequence, result));
            }
            Some(Place::Taken(_)) => {
                if let Some(Place::Taken(entry)) = self.pending.pop_front() {
                    unwaited += self.give(entry, result, woken);
                }
            }
        }
        unwaited + self.settle_failed(woken)
    }

    /// Gives sends at the front that have failed their outcomes. Returns how many
    /// of them nobody waited for.
    pub(crate) fn settle_failed(&mut self, woken: &mut Vec<Woken>) -> usize {
        let mut unwaited = 0;
        while let Some(Place::Failed(_)) = self.pending.front() {
            if let Some(Place::Failed(failed)) = self.pending.pop_front() {
                unwaited += self.give(failed.entry, Err(failed.error), woken);
            }
        }
        unwaited
    }

    fn give(&mut self, entry: Entry, result: SendResult, woken: &mut Vec<Woken>) -> usize {
        self.waiters -= 1;
        match entry {
            Entry::Polled(_) => unreachable!("polled sends are counted, not given"),
            Entry::Thread(ticket) => {
                self.results.push_back((ticket, result));
                0
            }
            Entry::Listener(call) => {
                self.calls.push((call, result));
                1
            }
            Entry::Future(slot) => {
                woken.extend(slot.settle(result).map(Woken::Future));
                1
            }
        }
    }

    /// Passes on the listeners that are to be called, all at once.
    pub(crate) fn call(&mut self) {
        // A link that is being dropped has nothing outstanding.
        if !self.calls.is_empty()
            && let Some(link) = self.link.upgrade()
        {
            let calls = std::mem::take(&mut self.calls);
            let open = Arc::clone(&self.callbacks_open);
            self.session.call(link, open, calls);
        }
    }

    /// Whether an outcome was set aside for whoever polls.
    #[inline]
    pub(crate) fn has_aside(&self) -> bool {
        !self.aside.is_empty()
    }

    /// An outcome that was set aside for whoever polls.
    #[inline]
    pub(crate) fn take_aside(&mut self) -> Option<(Sequence, SendResult)> {
        self.aside.pop_front()
    }

    /// Whether the next outcome of the machine is a poller's.
    #[inline]
    pub(crate) fn is_polled(&self) -> bool {
        matches!(self.pending.front(), Some(Place::Taken(Entry::Polled(_))))
    }

    /// Whether the next send in order has failed already.
    #[inline]
    pub(crate) fn is_failed(&self) -> bool {
        matches!(self.pending.front(), Some(Place::Failed(_)))
    }

    /// An outcome of a polled send was taken.
    #[inline]
    pub(crate) fn count_polled(&mut self) {
        if let Some(Place::Taken(Entry::Polled(count))) = self.pending.front_mut() {
            *count -= 1;
            if *count == 0 {
                self.pending.pop_front();
            }
        }
    }

    /// Whether the outcome of a send is there for its thread.
    pub(crate) fn has_result(&self, ticket: Ticket) -> bool {
        self.results.iter().any(|(other, _)| *other == ticket)
    }

    /// The outcome of a send that its thread waits for.
    pub(crate) fn result(&mut self, ticket: Ticket) -> Option<SendResult> {
        let index = self
            .results
            .iter()
            .position(|(other, _)| *other == ticket)?;
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
