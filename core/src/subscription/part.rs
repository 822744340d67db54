//! One subscription's state in one partition.
//!
//! ```text
//!   settled            unsettled (delivered or returned)        never handed out
//! ---------------|--------------------------------------------|----------------->
//!                low                                        fresh
//! ```
//!
//! Below `fresh` only what is unsettled has an entry, sorted by offset, so the
//! state grows with what consumers hold and not with the backlog. A message
//! that comes back from a consumer keeps its place: returned entries are handed
//! out before anything fresh, lowest offset first, each alone. One that is to rest
//! before it comes back keeps its place too, and holds up nothing behind it.
//!
//! That is all where messages are for whoever takes them. Where members have claims,
//! [`takeover`] says when a partition changes hands, and [`by_key`] what is whose if
//! keys decide.
//!
//! Invariants: entries rise by offset and lie below `fresh`; `live` counts the
//! entries that are not settled and stays within the limit; `returned` counts
//! those that wait for a consumer; `resting` names each entry that rests, once.

mod by_key;
mod takeover;

use core::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::id::{Handle, Offset, PartitionIndex};
use crate::limits::{UNSETTLED_LEAST, UNSETTLED_MAX};
use crate::memory::Arena;
use crate::partition::log::{Cursor, Log, Run, RunLimit};
use crate::planted::Planted;
use crate::subscription::membership::{Kind, Membership};
use crate::time::Monotonic;
use by_key::Keys;
use takeover::Takeover;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Delivered,
    /// Waits for a consumer: it came back, or was passed over.
    Returned,
    /// Waits for its time.
    Resting,
    Settled,
}

/// What stands in the way of settling one message.
#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: Offset,
    /// Who holds it; of one that came back, who held it last.
    consumer: Handle,
    /// Which of that consumer's deliveries it was.
    delivery: u64,
    /// How often it was handed out.
    count: u16,
    state: State,
    /// Whether it was handed out when its turn came, and not later.
    first: bool,
}

const _: () = assert!(size_of::<Entry>() == 24);

/// Who holds what an earlier run may have delivered, until all of it is known.
const NOBODY: Handle = Handle(u32::MAX);

/// What one unsettled message takes up, its rest included.
pub const ENTRY_SIZE: usize = size_of::<Entry>() + size_of::<Reverse<(Monotonic, Offset)>>();
/// What one unsettled message takes up in a part where keys decide.
pub const KEYED_ENTRY_SIZE: usize = ENTRY_SIZE + Keys::PER_ENTRY_SIZE;
/// Room for more entries than this is given back once few are in use.
const ENTRIES_KEPT: usize = 1024;

impl Entry {
    #[inline]
    fn is_with(&self, consumer: Handle) -> bool {
        self.state == State::Delivered && self.consumer == consumer
    }

    /// It is with `consumer`, though not when its turn came; how often it was handed
    /// out by now.
    fn handed_out_late(&mut self, consumer: Handle, delivery: u64) -> u16 {
        self.state = State::Delivered;
        self.consumer = consumer;
        self.delivery = delivery;
        self.count = self.count.saturating_add(1);
        self.first = false;
        self.count
    }
}

impl Assigned {
    #[inline]
    fn keys(&mut self) -> Option<&mut Keys> {
        match self {
            Self::ByKey(keys) => Some(keys),
            Self::Anyone | Self::Active(_) => None,
        }
    }

    /// `consumer` holds so many messages fewer.
    #[inline]
    fn settled(&mut self, consumer: Handle, count: u64) {
        if let Self::Active(takeover) = self {
            takeover.settled(consumer, count);
        }
    }

    /// Much has changed: whose what is, is to be seen anew.
    fn forget_version(&mut self) {
        match self {
            Self::Anyone => {}
            Self::Active(takeover) => takeover.forget_version(),
            Self::ByKey(keys) => keys.forget_version(),
        }
    }
}

/// A run handed to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// What to send.
    pub run: Run,
    /// How often it was handed out, this time included.
    pub count: u16,
}

/// To whom something of a part is to be offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// To this consumer.
    By(Handle),
    /// To nobody before there is room for more entries.
    Cramped,
    /// To nobody so far, though not all was looked at.
    Later,
    /// To nobody.
    None,
}

/// What became of an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckOutcome {
    /// Messages that it settled.
    pub settled: u64,
    /// Whether part of it named what was never, or is no longer, with this consumer.
    pub strange: bool,
}

/// Whom a part's messages are for.
#[derive(Debug)]
enum Assigned {
    /// Whoever takes them.
    Anyone,
    /// The member that is active here.
    Active(Takeover),
    /// The member that has their key.
    ByKey(Box<Keys>),
}

/// One subscription's state in one partition.
#[derive(Debug)]
pub struct Part {
    assigned: Assigned,
    fresh: Cursor,
    entries: VecDeque<Entry>,
    live: u32,
    returned: u32,
    /// No returned entry lies below.
    returned_from: Cursor,
    /// When each entry that rests is to return, the earliest first. Nothing but its
    /// time ends an entry's rest.
    resting: BinaryHeap<Reverse<(Monotonic, Offset)>>,
    /// Consumers that acknowledge through a message, and between which offsets each
    /// of them may hold something: a consumer's next acknowledgement looks nowhere
    /// else, however much others hold there.
    settled_through: Vec<Through>,
}

/// Where a consumer that acknowledges through a message may hold something.
#[derive(Clone, Copy, Debug)]
struct Through {
    consumer: Handle,
    /// It holds nothing below.
    from: Offset,
    /// It holds nothing here or above.
    to: Offset,
}

impl Part {
    /// Unsettled messages that a part always has memory for.
    pub const UNSETTLED_LEAST: usize = UNSETTLED_LEAST as usize;
    /// What a part may have to remember of one consumer, in bytes.
    pub const PER_CONSUMER_SIZE: usize = size_of::<Through>();

    /// What a part of such a subscription always has memory for beyond itself, in bytes.
    #[must_use]
    pub const fn least_size(kind: Kind) -> usize {
        match kind {
            Kind::Exclusive | Kind::Shared | Kind::Failover => Self::UNSETTLED_LEAST * ENTRY_SIZE,
            Kind::KeyShared => Self::UNSETTLED_LEAST * KEYED_ENTRY_SIZE + size_of::<Keys>(),
        }
    }

    /// A part that starts at `offset`, of a subscription of this kind.
    #[must_use]
    pub fn new(kind: Kind, offset: Offset) -> Self {
        Self {
            assigned: match kind {
                Kind::Exclusive | Kind::Shared => Assigned::Anyone,
                Kind::Failover => Assigned::Active(Takeover::default()),
                Kind::KeyShared => Assigned::ByKey(Box::default()),
            },
            fresh: Cursor::at(offset),
            entries: VecDeque::new(),
            live: 0,
            returned: 0,
            returned_from: Cursor::at(offset),
            resting: BinaryHeap::new(),
            settled_through: Vec::new(),
        }
    }

    /// Of a subscription whose members have claims: to whom something is to be offered
    /// next, now that `membership` is as it is. Whoever takes it is given it by
    /// [`Part::deliver_claimed`]; if it does not, the next call finds the next one.
    #[cold]
    pub fn claimant(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        membership: &Membership,
        partition: PartitionIndex,
    ) -> Claim {
        match &mut self.assigned {
            Assigned::Anyone => Claim::None,
            Assigned::Active(takeover) => {
                takeover.follow(&self.entries, membership, partition);
                takeover.claimant().map_or(Claim::None, Claim::By)
            }
            Assigned::ByKey(keys) => {
                keys.follow(&self.entries, membership);
                self.claimant_by_key(arena, log, membership)
            }
        }
    }

    /// Hands what was offered to the consumer, which is the one that
    /// [`Part::claimant`] found; its next delivery is number `delivery`.
    #[cold]
    pub fn deliver_claimed(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        membership: &Membership,
        (consumer, delivery): (Handle, u64),
        limit: RunLimit,
    ) -> Option<Delivered> {
        match &mut self.assigned {
            Assigned::Anyone => None,
            Assigned::Active(takeover) => {
                takeover.taken();
                self.deliver_in_order(arena, log, consumer, delivery, limit)
            }
            Assigned::ByKey(_) => {
                self.deliver_by_key(arena, log, membership, (consumer, delivery), limit)
            }
        }
    }

    /// Hands the next run to `consumer`, whose next delivery is number
    /// `delivery`; `None` if nothing is ready or too much is unsettled.
    #[inline]
    pub fn deliver(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        consumer: Handle,
        delivery: u64,
        limit: RunLimit,
    ) -> Option<Delivered> {
        self.deliver_in_order(arena, log, consumer, delivery, limit)
    }

    #[inline(always)]
    fn deliver_in_order(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        consumer: Handle,
        delivery: u64,
        limit: RunLimit,
    ) -> Option<Delivered> {
        if self.returned > 0 {
            return self.deliver_returned(arena, log, consumer, delivery);
        }
        let room = u64::from(UNSETTLED_MAX.saturating_sub(self.live));
        if room == 0 {
            return None;
        }
        let limit = RunLimit {
            messages: limit.messages.min(room),
            ..limit
        };
        let run = log.read(arena, &mut self.fresh, limit)?;
        Some(self.handed_out(run, consumer, delivery))
    }

    /// A run from the mark on is with `consumer` for the first time.
    #[inline(always)]
    fn handed_out(&mut self, run: Run, consumer: Handle, delivery: u64) -> Delivered {
        for index in 0..u64::from(run.count) {
            self.entries.push_back(Entry {
                offset: Offset(run.first.0 + index),
                consumer,
                delivery: delivery + index,
                count: 1,
                state: State::Delivered,
                first: true,
            });
        }
        if let Some(through) = self.through_of(consumer) {
            through.to = Offset(run.first.0 + u64::from(run.count));
        }
        self.live += run.count;
        Delivered { run, count: 1 }
    }

    /// Settles `count` offsets from `first` on that `consumer` holds. What is
    /// settled already stays settled: an acknowledgement may be repeated.
    pub fn acknowledge(
        &mut self,
        arena: &mut Arena,
        log: &mut Log,
        consumer: Handle,
        first: Offset,
        count: u64,
    ) -> AckOutcome {
        self.settle_named::<false>(arena, log, consumer, first, count)
    }

    /// As [`Part::acknowledge`], of what `consumer` settled on an earlier link and
    /// perhaps in vain: what came back from there and waits for somebody is settled
    /// too. Nobody has it, so nobody is given it any more.
    #[cold]
    pub fn acknowledge_again(
        &mut self,
        arena: &mut Arena,
        log: &mut Log,
        consumer: Handle,
        first: Offset,
        count: u64,
    ) -> AckOutcome {
        self.settle_named::<true>(arena, log, consumer, first, count)
    }

    #[inline(always)]
    fn settle_named<const AGAIN: bool>(
        &mut self,
        arena: &mut Arena,
        log: &mut Log,
        consumer: Handle,
        first: Offset,
        count: u64,
    ) -> AckOutcome {
        let end = first.0.saturating_add(count);
        let mut outcome = AckOutcome {
            settled: 0,
            strange: end > self.fresh.offset.0 || count == 0,
        };
        let mut waited = 0;
        let mut index = self.index_of(first);
        let mut run = SettledRun::default();
        let mut keys = self.assigned.keys();
        while let Some(entry) = self.entries.get_mut(index) {
            if entry.offset.0 >= end {
                break;
            }
            match entry.state {
                State::Delivered if entry.consumer == consumer => {
                    entry.state = State::Settled;
                    run.add(arena, log, entry.offset);
                    outcome.settled += 1;
                    if let Some(keys) = &mut keys {
                        keys.released(index);
                    }
                }
                // What was never handed out cannot have been settled.
                State::Returned if AGAIN && entry.count > 0 => {
                    entry.state = State::Settled;
                    run.add(arena, log, entry.offset);
                    waited += 1;
                    if let Some(keys) = &mut keys {
                        keys.waits_no_more(index, entry.offset);
                    }
                }
                State::Delivered | State::Returned | State::Resting => outcome.strange = true,
                State::Settled => {}
            }
            index += 1;
        }
        run.end(arena, log);
        self.assigned.settled(consumer, outcome.settled);
        if AGAIN && waited > 0 {
            self.returned -= waited;
            outcome.settled += u64::from(waited);
            if let Some(keys) = self.assigned.keys() {
                keys.not_ready(first, Offset(end));
            }
        }
        self.forget(outcome.settled);
        outcome
    }

    /// In an earlier run `count` offsets from `first` on were settled. What lies before
    /// them and was not counts as delivered to nobody, until [`Part::go_on`].
    #[cold]
    pub fn settled_before(&mut self, arena: &mut Arena, log: &mut Log, first: Offset, count: u64) {
        self.hand_out_before(arena, log, Offset(first.0.saturating_add(count)));
        self.acknowledge(arena, log, NOBODY, first, count);
    }

    /// In an earlier run `count` offsets from `first` on came back, and had been delivered
    /// so often. As [`Part::settled_before`].
    #[cold]
    pub fn returned_before(
        &mut self,
        arena: &mut Arena,
        log: &mut Log,
        (first, count): (Offset, u64),
        deliveries: u16,
    ) {
        let end = Offset(first.0.saturating_add(count));
        self.hand_out_before(arena, log, end);
        let from = self.index_of(first);
        for entry in self.entries.range_mut(from..) {
            if entry.offset >= end {
                break;
            }
            if entry.is_with(NOBODY) {
                // Being with nobody counts as once, until all is known.
                entry.count = deliveries.saturating_add(1);
            }
        }
    }

    /// What came back of `count` offsets from `first` on, and how often each was delivered,
    /// if it was.
    pub fn returned(&self, first: Offset, count: u64) -> impl Iterator<Item = (Offset, u16)> {
        let end = Offset(first.0.saturating_add(count));
        let from = self.index_of(first);
        let entries = self.entries.range(from..);
        entries
            .take_while(move |entry| entry.offset < end)
            .filter(|entry| matches!(entry.state, State::Returned | State::Resting))
            .filter(|entry| entry.count > 0)
            .map(|entry| (entry.offset, entry.count))
    }

    /// How often a message was delivered and came back, if it ever did.
    #[must_use]
    pub fn came_back(&self, offset: Offset) -> Option<u16> {
        let entry = self.entries.get(self.index_of(offset))?;
        if entry.offset != offset || entry.state == State::Settled {
            return None;
        }
        let is_out = u16::from(entry.state == State::Delivered);
        Some(entry.count.saturating_sub(is_out)).filter(|count| *count > 0)
    }

    /// What lies before `end` counts as delivered to nobody.
    fn hand_out_before(&mut self, arena: &Arena, log: &mut Log, end: Offset) {
        loop {
            let run = match self.assigned.keys() {
                None => log.skim(arena, &mut self.fresh, end),
                Some(keys) => {
                    let mut next = self.fresh;
                    if log.look(arena, &mut next).is_none() || next.offset >= end {
                        break;
                    }
                    let limit = RunLimit {
                        messages: end.0 - next.offset.0,
                        bytes: u64::MAX,
                    };
                    log.read_while(arena, &mut self.fresh, limit, |header| {
                        keys.entered(header);
                        true
                    })
                }
            };
            let Some(run) = run else {
                break;
            };
            self.handed_out(run, NOBODY, 0);
        }
    }

    /// Whether keys decide what is whose.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        matches!(self.assigned, Assigned::ByKey(_))
    }

    /// What was to be handed out was not in memory, and is now: nobody has refused it.
    pub fn search_anew(&mut self) {
        if let Some(keys) = self.assigned.keys() {
            keys.search_anew();
        }
    }

    /// All is known of earlier runs: what was not settled waits for whoever comes, and was
    /// delivered to nobody as far as is known.
    #[cold]
    pub fn go_on(&mut self) {
        self.consumer_gone(NOBODY, 0);
    }

    /// Settles `last` and everything that `consumer` was delivered before it.
    ///
    /// What returned is delivered behind messages with higher offsets, so the order
    /// of delivery decides, which only the delivery of `last` tells. If `consumer`
    /// does not hold `last` (any more), only that is certain to be earlier what lies
    /// below it and was never with another consumer.
    pub fn acknowledge_through(
        &mut self,
        arena: &mut Arena,
        log: &mut Log,
        consumer: Handle,
        last: Offset,
    ) -> AckOutcome {
        let mut outcome = AckOutcome {
            settled: 0,
            strange: last >= self.fresh.offset,
        };
        let fresh = self.fresh.offset;
        let Through { from, to, .. } = *self.through_of_new(consumer);
        let of_last = self
            .entries
            .get(self.index_of(last))
            .filter(|entry| entry.offset == last && entry.is_with(consumer))
            .map(|entry| (entry.delivery, entry.first));
        // Before a message that never returned nothing higher was delivered.
        let end = match of_last {
            Some((_, false)) => to,
            _ => Offset(last.0.saturating_add(1)),
        };
        let mut run = SettledRun::default();
        let (mut lowest_kept, mut highest_kept) = (None, None);
        let index = self.index_of(from);
        let mut keys = self.assigned.keys();
        for (entry, index) in self
            .entries
            .range_mut(index..)
            .zip(index..)
            .take_while(|(entry, _)| entry.offset < end)
            .filter(|(entry, _)| entry.is_with(consumer))
        {
            let covered = match of_last {
                Some((delivery, _)) => entry.delivery <= delivery,
                None => entry.first,
            };
            if covered {
                entry.state = State::Settled;
                run.add(arena, log, entry.offset);
                outcome.settled += 1;
                if let Some(keys) = &mut keys {
                    keys.released(index);
                }
            } else {
                lowest_kept = lowest_kept.or(Some(entry.offset));
                highest_kept = Some(entry.offset);
            }
        }
        run.end(arena, log);
        let from = match lowest_kept {
            Some(kept) => kept,
            None => from.max(end.min(fresh)),
        };
        let to = match highest_kept {
            _ if end < to => to,
            Some(kept) => Offset(kept.0 + 1),
            None => from,
        };
        *self.through_of_new(consumer) = Through { consumer, from, to };
        self.assigned.settled(consumer, outcome.settled);
        self.forget(outcome.settled);
        outcome
    }

    /// `consumer` is gone: what it holds returns to its place. Deliveries from
    /// number `handed` on never reached the application and do not count.
    /// Returns how many came back.
    pub fn consumer_gone(&mut self, consumer: Handle, handed: u64) -> u32 {
        let mut back = 0;
        let mut keys = self.assigned.keys();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.state == State::Delivered && entry.consumer == consumer {
                entry.state = State::Returned;
                if entry.offset < self.returned_from.offset {
                    self.returned_from = Cursor::at(entry.offset);
                }
                if entry.delivery >= handed {
                    entry.count -= 1;
                }
                if let Some(keys) = &mut keys {
                    keys.waits(index, entry.offset);
                }
                back += 1;
            }
        }
        self.returned += back;
        self.assigned.forget_version();
        self.settled_through
            .retain(|through| through.consumer != consumer);
        back
    }

    /// `consumer` gives back what it holds of `count` offsets from `first` on; all of
    /// it counts as handed out. `rest` says of a message, by how often it was handed
    /// out, until when it is to rest; `None` if it returns at once. Returns how many
    /// came back.
    pub fn give_back(
        &mut self,
        consumer: Handle,
        first: Offset,
        count: u64,
        rest: impl Fn(u16) -> Option<Monotonic>,
    ) -> u32 {
        let end = Offset(first.0.saturating_add(count));
        let from = self.index_of(first);
        let mut back = 0;
        let mut keys = self.assigned.keys();
        for (entry, index) in self
            .entries
            .range_mut(from..)
            .zip(from..)
            .take_while(|(entry, _)| entry.offset < end)
            .filter(|(entry, _)| entry.is_with(consumer))
        {
            if Planted::LoseReturn.is_awake() {
                continue;
            }
            back += 1;
            if let Some(keys) = &mut keys {
                keys.waits(index, entry.offset);
                keys.released(index);
            }
            if let Some(until) = rest(entry.count) {
                entry.state = State::Resting;
                self.resting.push(Reverse((until, entry.offset)));
                continue;
            }
            entry.state = State::Returned;
            self.returned += 1;
            if entry.offset < self.returned_from.offset {
                self.returned_from = Cursor::at(entry.offset);
            }
        }
        self.assigned.settled(consumer, back.into());
        back
    }

    /// Time has passed: what has rested enough returns. Returns how many.
    pub fn end_rest(&mut self, now: Monotonic) -> u32 {
        let mut back = 0;
        while let Some(Reverse((until, offset))) = self.resting.peek().copied()
            && until <= now
        {
            self.resting.pop();
            let index = self.index_of(offset);
            let entry = &mut self.entries[index];
            assert_eq!(entry.offset, offset, "an entry that rests keeps its place");
            entry.state = State::Returned;
            if offset < self.returned_from.offset {
                self.returned_from = Cursor::at(offset);
            }
            if let Some(keys) = self.assigned.keys() {
                keys.touched(index);
            }
            back += 1;
        }
        self.returned += back;
        if self.resting.is_empty() {
            self.resting = BinaryHeap::new();
        }
        back
    }

    /// When [`Part::end_rest`] has something to do next, if ever.
    #[must_use]
    pub fn next_return(&self) -> Option<Monotonic> {
        self.resting.peek().map(|Reverse((until, _))| *until)
    }

    /// What lies before `floor` has expired: it is nobody's any more, with whomever it is.
    #[cold]
    pub fn expire(&mut self, arena: &mut Arena, log: &mut Log, floor: Offset) {
        let end = self.index_of(floor);
        let mut run = SettledRun::default();
        let (mut dropped, mut waited) = (0, 0);
        for (entry, index) in self.entries.range_mut(..end).zip(0..) {
            match entry.state {
                State::Settled => continue,
                State::Delivered => {
                    self.assigned.settled(entry.consumer, 1);
                    if let Some(keys) = self.assigned.keys() {
                        keys.released(index);
                    }
                }
                State::Returned | State::Resting => {
                    waited += u32::from(entry.state == State::Returned);
                    if let Some(keys) = self.assigned.keys() {
                        keys.waits_no_more(index, entry.offset);
                    }
                }
            }
            entry.state = State::Settled;
            run.add(arena, log, entry.offset);
            dropped += 1;
        }
        run.end(arena, log);
        self.returned -= waited;
        self.resting.retain(|Reverse((_, offset))| *offset >= floor);
        if self.fresh.offset < floor {
            log.unclaim_between(arena, self.fresh.offset, floor);
            self.fresh = Cursor::at(floor);
        }
        if let Some(keys) = self.assigned.keys() {
            keys.not_ready(Offset(0), floor);
            keys.search_anew();
        }
        self.forget(dropped);
    }

    /// Ends the part: every claim it has on the log is settled.
    pub fn end(&mut self, arena: &mut Arena, log: &mut Log) {
        let mut run = SettledRun::default();
        for entry in self.entries.drain(..) {
            if entry.state != State::Settled {
                run.add(arena, log, entry.offset);
            }
        }
        run.end(arena, log);
        log.unclaim(arena, self.fresh.offset);
        self.fresh = Cursor::at(log.next());
        self.live = 0;
        self.returned = 0;
        self.resting.clear();
        self.settled_through.clear();
        if let Some(keys) = self.assigned.keys() {
            *keys = Keys::default();
        }
    }

    /// How many more messages may be handed out for the first time without taking up
    /// more memory than is paid for.
    #[inline]
    #[must_use]
    pub fn room(&self) -> u64 {
        (self.places() - self.entries.len()) as u64
    }

    /// Whether the next delivery needs more memory than is paid for; one that came back
    /// needs none.
    #[inline]
    #[must_use]
    pub fn is_cramped(&self) -> bool {
        self.entries.len() == self.places() && self.returned == 0
    }

    /// What the unsettled messages take up beyond the least that is paid for with the
    /// part, in bytes.
    #[must_use]
    pub fn entries_size(&self) -> usize {
        (self.places() - Self::UNSETTLED_LEAST) * self.entry_size()
    }

    /// What [`Part::widen`] would take, in bytes.
    #[must_use]
    pub fn widening_size(&self) -> usize {
        self.places() * self.entry_size()
    }

    /// Makes room for as many messages more as there is room for.
    pub fn widen(&mut self) {
        let more = 2 * self.places() - self.entries.len();
        self.entries.reserve_exact(more);
        if let Some(keys) = self.assigned.keys() {
            keys.reserve(more);
        }
    }

    /// Drops what is settled between the few that a part always has memory for, so
    /// that all of that is there for what is not. Whether there is room now.
    pub fn tidy(&mut self) -> bool {
        if self.live < UNSETTLED_LEAST {
            self.compact();
        }
        self.room() > 0
    }

    /// Gives memory back of which little is in use: where it is tight at once,
    /// otherwise only much of it, so that a consumer that settles all it has does not
    /// have it taken anew each time. Returns how many bytes.
    #[inline]
    pub fn relax(&mut self, is_tight: bool) -> usize {
        let places = self.entries.capacity();
        let is_roomy = places > Self::UNSETTLED_LEAST && self.entries.len() <= places / 4;
        if is_roomy && (is_tight || places > ENTRIES_KEPT) {
            self.shrink()
        } else {
            0
        }
    }

    /// Keeps as many places free as are in use, so that each entry that is moved was
    /// settled for.
    #[cold]
    fn shrink(&mut self) -> usize {
        let before = self.entries_size();
        let places = (2 * self.entries.len()).max(Self::UNSETTLED_LEAST);
        self.entries.shrink_to(places);
        self.resting.shrink_to(places);
        if let Some(keys) = self.assigned.keys() {
            keys.shrink_to(places);
        }
        before - self.entries_size()
    }

    /// What one unsettled message takes up.
    fn entry_size(&self) -> usize {
        match self.assigned {
            Assigned::ByKey(_) => KEYED_ENTRY_SIZE,
            Assigned::Anyone | Assigned::Active(_) => ENTRY_SIZE,
        }
    }

    /// Entries that there is memory for.
    #[inline]
    fn places(&self) -> usize {
        self.entries.capacity().max(Self::UNSETTLED_LEAST)
    }

    /// Whether a message that came back, or room for one more, may let somebody take
    /// something who could not when [`Part::claimant`] was called last.
    #[must_use]
    pub fn frees(&self) -> bool {
        match &self.assigned {
            Assigned::Anyone => false,
            Assigned::Active(takeover) => takeover.frees(),
            Assigned::ByKey(keys) => keys.frees(),
        }
    }

    /// Whether nothing is handed out for the first time before something is settled.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.room() == 0 || self.live == UNSETTLED_MAX
    }

    /// Whether a consumer with credit would get something; where members have claims,
    /// whether one of them might.
    #[inline]
    #[must_use]
    pub fn ready(&self, log: &Log) -> bool {
        self.returned > 0 || (self.live < UNSETTLED_MAX && log.reaches(self.fresh.offset))
    }

    /// The first offset that is not settled, or was never handed out.
    #[must_use]
    pub fn cursor(&self) -> Offset {
        let unsettled = |entry: &&Entry| entry.state != State::Settled;
        let first = self.entries.iter().find(unsettled);
        first.map_or(self.fresh.offset, |entry| entry.offset)
    }

    /// The first offset that was never handed out.
    #[must_use]
    pub fn fresh(&self) -> Offset {
        self.fresh.offset
    }

    /// Where a consumer starts that comes now: at the first offset that nobody was handed.
    /// Where keys decide that may be one that was passed over, because whoever has its key
    /// could take nothing yet.
    #[must_use]
    pub fn start(&self) -> Offset {
        let is_passed_over = |entry: &&Entry| entry.state == State::Returned && entry.count == 0;
        let passed_over = match self.has_keys() {
            true => self.entries.iter().find(is_passed_over),
            false => None,
        };
        passed_over.map_or(self.fresh.offset, |entry| entry.offset)
    }

    /// Whether `offset` lies below [`Part::fresh`] and is not settled, or above it.
    #[must_use]
    pub fn claims(&self, offset: Offset) -> bool {
        offset >= self.fresh.offset
            || self
                .entries
                .get(self.index_of(offset))
                .is_some_and(|entry| entry.offset == offset && entry.state != State::Settled)
    }

    /// The first offset from this one on that [`Part::claims`].
    #[must_use]
    pub fn claims_from(&self, offset: Offset) -> Offset {
        if offset >= self.fresh.offset {
            return offset;
        }
        let mut entries = self.entries.range(self.index_of(offset)..);
        let claimed = entries.find(|entry| entry.state != State::Settled);
        claimed.map_or(self.fresh.offset, |entry| entry.offset)
    }

    /// Messages that are delivered and not settled, or wait to be delivered again.
    #[must_use]
    pub fn unsettled(&self) -> u32 {
        self.live
    }

    /// All messages that this part has not settled. Looks at every segment.
    #[must_use]
    pub fn backlog(&self, arena: &Arena, log: &Log) -> u64 {
        u64::from(self.live) + log.count_from(arena, self.fresh.offset)
    }

    /// Panics if an invariant is broken.
    pub fn invariants(&self) {
        let mut before = None;
        let (mut live, mut returned) = (0, 0);
        let resting = self
            .entries
            .iter()
            .filter(|entry| entry.state == State::Resting);
        let resting: Vec<Offset> = resting.map(|entry| entry.offset).collect();
        let mut named: Vec<Offset> = self
            .resting
            .iter()
            .map(|Reverse((_, offset))| *offset)
            .collect();
        named.sort_unstable();
        assert_eq!(resting, named, "every entry that rests is to return once");
        for entry in &self.entries {
            assert!(before < Some(entry.offset), "entries rise by offset");
            assert!(
                entry.offset < self.fresh.offset,
                "entries lie below the fresh ones"
            );
            before = Some(entry.offset);
            live += u32::from(entry.state != State::Settled);
            assert!(
                entry.state != State::Returned || entry.offset >= self.returned_from.offset,
                "no returned entry lies below the mark"
            );
            returned += u32::from(entry.state == State::Returned);
            assert!(
                self.settled_through
                    .iter()
                    .filter(|through| entry.is_with(through.consumer))
                    .all(|through| (through.from..through.to).contains(&entry.offset)),
                "a consumer holds nothing outside of where it is looked for"
            );
        }
        assert_eq!(
            (live, returned),
            (self.live, self.returned),
            "entries are counted"
        );
        assert!(
            self.live <= UNSETTLED_MAX,
            "unsettled messages stay within their limit"
        );
        if let Assigned::ByKey(keys) = &self.assigned {
            keys.invariants(&self.entries);
        }
    }

    fn deliver_returned(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        consumer: Handle,
        delivery: u64,
    ) -> Option<Delivered> {
        let from = self.index_of(self.returned_from.offset);
        let entry = self
            .entries
            .range_mut(from..)
            .find(|entry| entry.state == State::Returned)?;
        self.returned_from.offset = entry.offset;
        let run = log.read(
            arena,
            &mut self.returned_from,
            RunLimit {
                messages: 1,
                bytes: 1,
            },
        )?;
        assert_eq!(
            run.first, entry.offset,
            "an unsettled message is in the log"
        );
        let count = entry.handed_out_late(consumer, delivery);
        Some(self.handed_out_late(run, consumer, count))
    }

    /// A message from below the mark is with `consumer`, handed out `count` times now.
    fn handed_out_late(&mut self, run: Run, consumer: Handle, count: u16) -> Delivered {
        let offset = run.first;
        self.returned -= 1;
        if let Some(through) = self.through_of(consumer) {
            through.from = offset.min(through.from);
            through.to = Offset(offset.0 + 1).max(through.to);
        }
        Delivered { run, count }
    }

    #[inline]
    fn through_of(&mut self, consumer: Handle) -> Option<&mut Through> {
        self.settled_through
            .iter_mut()
            .find(|through| through.consumer == consumer)
    }

    /// As [`Part::through_of`]; a consumer that is new to it may hold anything.
    fn through_of_new(&mut self, consumer: Handle) -> &mut Through {
        let index = self
            .settled_through
            .iter()
            .position(|through| through.consumer == consumer)
            .unwrap_or_else(|| {
                self.settled_through.push(Through {
                    consumer,
                    from: Offset(0),
                    to: self.fresh.offset,
                });
                self.settled_through.len() - 1
            });
        &mut self.settled_through[index]
    }

    /// Drops settled entries: from the front at once, from the middle when they
    /// are the majority, so that each is moved at most once on average.
    fn forget(&mut self, settled: u64) {
        self.live -= u32::try_from(settled).expect("entries are fewer than 2^32");
        let before = self.entries.len();
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.state == State::Settled)
        {
            self.entries.pop_front();
        }
        let dropped = before - self.entries.len();
        if let Some(keys) = self.assigned.keys() {
            keys.forget(dropped);
        }
        let settled_too = self.entries.len() >= Self::UNSETTLED_LEAST;
        if settled_too && self.entries.len() > 2 * self.live as usize {
            self.compact();
        }
    }

    /// Drops all settled entries.
    fn compact(&mut self) {
        if let Some(keys) = self.assigned.keys() {
            keys.compact(&self.entries);
        }
        self.entries.retain(|entry| entry.state != State::Settled);
    }

    /// The index of the first entry at or after `offset`.
    #[inline]
    fn index_of(&self, offset: Offset) -> usize {
        match self.entries.front() {
            Some(front) if front.offset >= offset => 0,
            _ => self.entries.partition_point(|entry| entry.offset < offset),
        }
    }
}

/// Collects settled offsets into runs for the log.
#[derive(Default)]
struct SettledRun {
    first: u64,
    count: u64,
}

impl SettledRun {
    #[inline]
    fn add(&mut self, arena: &mut Arena, log: &mut Log, offset: Offset) {
        if self.count > 0 && offset.0 == self.first + self.count {
            self.count += 1;
            return;
        }
        self.end(arena, log);
        *self = Self {
            first: offset.0,
            count: 1,
        };
    }

    fn end(&mut self, arena: &mut Arena, log: &mut Log) {
        if self.count > 0 {
            log.settle(arena, Offset(self.first), self.count);
        }
        self.count = 0;
    }
}
