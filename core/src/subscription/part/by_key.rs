//! A part where keys decide: messages of a key are with one member at a time, in
//! their order.
//!
//! ```text
//!   entries:    7k    8m    9k   11z   12m          fresh: 13k 14m ..
//!             with a  waits with a waits waits             `- the scan
//!                     for b        for c `- behind 8m
//! ```
//!
//! The log is scanned in its order. A message whose member can take it is handed out
//! where it lies, together with those behind it that are for the same member; while
//! everyone keeps up that is all there is to it. Otherwise it is passed over: it gets
//! an entry, as if it had come back, and waits for its member, and the scan goes on
//! behind it. At most [`KEY_WINDOW`] messages wait, then the scan does: nothing here
//! grows with the backlog.
//!
//! A message that waits holds up those of its key that lie behind it, and nothing
//! else; so does one that came back, also while it rests. A member may hold several
//! messages of one key, since they reach it in their order. When keys move to
//! another member, a moved key waits until the old one has settled or given back what
//! it holds of it.
//!
//! What follows from the membership is worked out when it changes, and otherwise for
//! the keys that were touched. A message without a key has its producer's.
//!
//! Invariants: each entry has its key; `waiting` names each entry that waits or
//! rests, once; `ready` names some of these, among them, once it follows a
//! membership, the first of each key that its member may take; of one key only one
//! consumer holds messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use super::{Assigned, Claim, Delivered, Entry, Part, State};
use crate::frame::{MessageHeader, flags};
use crate::id::{Handle, Offset};
use crate::limits::{KEY_WINDOW, UNSETTLED_MAX};
use crate::memory::Arena;
use crate::partition::log::{Cursor, Log, RunLimit};
use crate::routing::key_hash;
use crate::subscription::membership::Membership;

/// Messages that are passed over before others of the broker have their turn.
const PASSED_AT_ONCE: usize = 64;

const ONE: RunLimit = RunLimit {
    messages: 1,
    bytes: 1,
};

const LOWEST: Offset = Offset(0);
const HIGHEST: Offset = Offset(u64::MAX);

/// What a part knows of keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Of the membership that it follows; 0 if it has to look at everything anew.
    version: u64,
    /// The key of each entry, in their order.
    of_entries: VecDeque<u64>,
    /// What waits for a consumer or rests, by key.
    waiting: BTreeSet<(u64, Offset)>,
    /// The first of each key whose member may take it now. One that is first no
    /// longer is found out when its turn comes.
    ready: BTreeSet<(Handle, Offset)>,
    /// Keys of which another than their member holds messages, and how many.
    elsewhere: BTreeMap<u64, u32>,
    /// Keys whose first message may have become ready.
    touched: Vec<u64>,
    /// Where the message lies that waited and was handed out last.
    last: Cursor,
    /// Who was given something that waited last.
    turn: Handle,
    search: Search,
}

/// How far the search has come for somebody who takes something.
#[derive(Clone, Copy, Debug, Default)]
enum Search {
    /// It begins with what waits.
    #[default]
    Begun,
    /// So many more may be asked for whom something waits; it was offered to `asked`.
    Waiting { asked: Handle, left: usize },
    /// The scan goes on.
    Scanning,
    /// The message that the scan is at was offered.
    Offered,
}

/// What decides whom a message is for: its key, or else who sent it.
#[inline]
fn key_of(header: &MessageHeader) -> u64 {
    if header.flags.get() & flags::KEYED == 0 {
        key_hash(&header.producer.get().to_le_bytes())
    } else {
        header.key_hash.get()
    }
}

impl Keys {
    /// What is known of one entry's key at most: itself, that it was touched, and a
    /// place in two trees, whose nodes of eleven are at least five full.
    pub(super) const PER_ENTRY_SIZE: usize = size_of::<u64>()
        + 2 * size_of::<u64>()
        + 2 * (3 * size_of::<(u64, Offset)>() + size_of::<usize>());

    pub(super) fn follow(&mut self, entries: &VecDeque<Entry>, membership: &Membership) {
        if self.version != membership.version() {
            self.look_anew(entries, membership);
        }
        while let Some(key) = self.touched.pop() {
            self.look_at(entries, membership, key);
        }
    }

    /// Works everything out that follows from the membership.
    #[cold]
    fn look_anew(&mut self, entries: &VecDeque<Entry>, membership: &Membership) {
        self.version = membership.version();
        self.elsewhere.clear();
        for (entry, key) in entries.iter().zip(&self.of_entries) {
            let moves = membership.holder(*key) != Some(entry.consumer);
            if entry.state == State::Delivered && moves {
                *self.elsewhere.entry(*key).or_default() += 1;
            }
        }
        self.ready.clear();
        self.touched.clear();
        let mut next = self.waiting.first().copied();
        while let Some((key, _)) = next {
            self.look_at(entries, membership, key);
            let behind = (Bound::Excluded((key, HIGHEST)), Bound::Unbounded);
            next = self.waiting.range(behind).next().copied();
        }
    }

    /// Whether the first message of a key that waits may be taken now, and by whom.
    fn look_at(&mut self, entries: &VecDeque<Entry>, membership: &Membership, key: u64) {
        let Some(first) = self.first(key) else {
            return;
        };
        if !self.elsewhere.contains_key(&key)
            && state_of(entries, first) == State::Returned
            && let Some(holder) = membership.holder(key)
        {
            self.ready.insert((holder, first));
        }
    }

    /// The first message of a key that waits or rests.
    #[inline]
    fn first(&self, key: u64) -> Option<Offset> {
        let mut of_key = self.waiting.range((key, LOWEST)..=(key, HIGHEST));
        of_key.next().map(|(_, offset)| *offset)
    }

    /// Whether a message of this key has to wait that lies behind all entries.
    #[inline]
    fn holds_up(&self, key: u64) -> bool {
        (!self.elsewhere.is_empty() && self.elsewhere.contains_key(&key))
            || (!self.waiting.is_empty() && self.first(key).is_some())
    }

    /// The entry at this index is settled, or comes back: it is with nobody.
    #[inline]
    pub(super) fn released(&mut self, index: usize) {
        if !self.elsewhere.is_empty() {
            self.released_elsewhere(self.of_entries[index]);
        }
    }

    #[cold]
    fn released_elsewhere(&mut self, key: u64) {
        if let Some(count) = self.elsewhere.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.elsewhere.remove(&key);
                self.touch(key);
            }
        }
    }

    /// A message gets an entry behind all others.
    pub(super) fn entered(&mut self, header: &MessageHeader) {
        self.of_entries.push_back(key_of(header));
    }

    /// The entry at this index, with a message that was handed out, waits or rests.
    pub(super) fn waits(&mut self, index: usize, offset: Offset) {
        let key = self.of_entries[index];
        self.waiting.insert((key, offset));
        self.touch(key);
    }

    /// The entry at this index is settled though it waited: [`Keys::not_ready`] is to
    /// follow.
    pub(super) fn waits_no_more(&mut self, index: usize, offset: Offset) {
        let key = self.of_entries[index];
        self.waiting.remove(&(key, offset));
        self.touch(key);
    }

    /// Of what lies between these offsets only what waits may be ready.
    pub(super) fn not_ready(&mut self, first: Offset, end: Offset) {
        let waiting: BTreeSet<Offset> = (self.waiting.iter())
            .map(|(_, offset)| *offset)
            .filter(|offset| (first..end).contains(offset))
            .collect();
        self.ready
            .retain(|(_, offset)| !(first..end).contains(offset) || waiting.contains(offset));
    }

    /// What was scanned or offered last may be gone.
    pub(super) fn search_anew(&mut self) {
        self.search = Search::Begun;
        self.last = Cursor::default();
    }

    /// The entry at this index has rested.
    pub(super) fn touched(&mut self, index: usize) {
        self.touch(self.of_entries[index]);
    }

    fn touch(&mut self, key: u64) {
        if self.touched.len() < self.of_entries.len() {
            self.touched.push(key);
        } else {
            self.forget_version();
        }
    }

    pub(super) fn forget_version(&mut self) {
        self.version = 0;
        self.touched.clear();
    }

    /// The next consumer in turn behind `after` for whom something waits.
    fn next_waiting(&self, after: Handle) -> Option<Handle> {
        let behind = (Bound::Excluded((after, HIGHEST)), Bound::Unbounded);
        let next = self.ready.range(behind).next().or(self.ready.first());
        next.map(|(consumer, _)| *consumer)
    }

    pub(super) fn frees(&self) -> bool {
        self.version == 0 || !self.touched.is_empty()
    }

    pub(super) fn reserve(&mut self, more: usize) {
        self.of_entries.reserve_exact(more);
    }

    pub(super) fn shrink_to(&mut self, places: usize) {
        self.of_entries.shrink_to(places);
        if self.touched.len() > places {
            self.forget_version();
        }
        self.touched.shrink_to(places);
    }

    /// So many entries were dropped from the front.
    pub(super) fn forget(&mut self, count: usize) {
        self.of_entries.drain(..count);
    }

    /// What is settled of these entries is about to be dropped.
    pub(super) fn compact(&mut self, entries: &VecDeque<Entry>) {
        let mut entries = entries.iter();
        self.of_entries.retain(|_| {
            let entry = entries.next().expect("each entry has its key");
            entry.state != State::Settled
        });
    }

    /// Panics if an invariant is broken.
    pub(super) fn invariants(&self, entries: &VecDeque<Entry>) {
        assert_eq!(entries.len(), self.of_entries.len(), "each has its key");
        let mut waiting = BTreeSet::new();
        let mut holders = BTreeMap::new();
        for (entry, key) in entries.iter().zip(&self.of_entries) {
            match entry.state {
                State::Returned | State::Resting => {
                    waiting.insert((*key, entry.offset));
                }
                State::Delivered => {
                    let holder = holders.entry(*key).or_insert(entry.consumer);
                    assert_eq!(*holder, entry.consumer, "one consumer has a key");
                }
                State::Settled => {}
            }
        }
        assert_eq!(waiting, self.waiting, "what waits is listed");
        for (_, offset) in &self.ready {
            let state = state_of(entries, *offset);
            assert!(
                matches!(state, State::Returned | State::Resting),
                "only what waits is ready"
            );
        }
    }
}

fn state_of(entries: &VecDeque<Entry>, offset: Offset) -> State {
    let index = entries.partition_point(|entry| entry.offset < offset);
    entries[index].state
}

impl Part {
    /// As [`Part::claimant`]: what waits goes first, in turn to those for whom it waits,
    /// then the scan goes on.
    pub(super) fn claimant_by_key(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        membership: &Membership,
    ) -> Claim {
        let claim = self.search_by_key(arena, log, membership);
        if let (Claim::None, Assigned::ByKey(keys)) = (&claim, &mut self.assigned) {
            keys.search = Search::Begun;
        }
        claim
    }

    fn search_by_key(&mut self, arena: &Arena, log: &mut Log, membership: &Membership) -> Claim {
        let mut passed = 0;
        while let Assigned::ByKey(keys) = &mut self.assigned {
            match keys.search {
                Search::Begun => {
                    keys.search = Search::Waiting {
                        asked: keys.turn,
                        left: membership.members().len(),
                    };
                }
                Search::Waiting { asked, left } => {
                    let next = keys.next_waiting(asked).filter(|_| left > 0);
                    keys.search = match next {
                        Some(asked) => Search::Waiting {
                            asked,
                            left: left - 1,
                        },
                        None => Search::Scanning,
                    };
                    if let Some(consumer) = next {
                        return Claim::By(consumer);
                    }
                }
                Search::Scanning if passed == PASSED_AT_ONCE => return Claim::Later,
                Search::Scanning => {
                    if self.live >= UNSETTLED_MAX {
                        return Claim::None;
                    }
                    let Some(key) = log.look(arena, &mut self.fresh).map(key_of) else {
                        return Claim::None;
                    };
                    let Some(holder) = membership.holder(key) else {
                        return Claim::None;
                    };
                    let is_held_up = keys.holds_up(key);
                    if self.room() == 0 {
                        return Claim::Cramped;
                    }
                    let Assigned::ByKey(keys) = &mut self.assigned else {
                        return Claim::None;
                    };
                    keys.search = Search::Offered;
                    if !is_held_up {
                        return Claim::By(holder);
                    }
                }
                Search::Offered => {
                    keys.search = Search::Scanning;
                    if !self.pass_over(arena, log, membership) {
                        return Claim::None;
                    }
                    passed += 1;
                }
            }
        }
        Claim::None
    }

    /// As [`Part::deliver_claimed`].
    pub(super) fn deliver_by_key(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        membership: &Membership,
        to: (Handle, u64),
        limit: RunLimit,
    ) -> Option<Delivered> {
        let Assigned::ByKey(keys) = &self.assigned else {
            return None;
        };
        let delivered = match keys.search {
            Search::Waiting { .. } => self.deliver_waiting(arena, log, to),
            Search::Offered => self.deliver_fresh(arena, log, membership, to, limit),
            Search::Begun | Search::Scanning => None,
        };
        if let (Some(_), Assigned::ByKey(keys)) = (&delivered, &mut self.assigned) {
            keys.search = Search::Begun;
        }
        delivered
    }

    /// Hands `consumer` the first message that waits for it, alone.
    fn deliver_waiting(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        (consumer, delivery): (Handle, u64),
    ) -> Option<Delivered> {
        let Assigned::ByKey(keys) = &mut self.assigned else {
            return None;
        };
        let (index, offset, key) = loop {
            let mut mine = keys.ready.range((consumer, LOWEST)..=(consumer, HIGHEST));
            let (_, offset) = *mine.next()?;
            keys.ready.remove(&(consumer, offset));
            let index = self.entries.partition_point(|entry| entry.offset < offset);
            let key = keys.of_entries[index];
            // One before it may have come back since.
            if self.entries[index].state == State::Returned && keys.first(key) == Some(offset) {
                break (index, offset, key);
            }
        };
        if offset < keys.last.offset {
            keys.last = Cursor::at(offset);
        }
        keys.last.offset = offset;
        let Some(run) = log.read(arena, &mut keys.last, ONE) else {
            // It comes from its page, and is this consumer's still.
            keys.ready.insert((consumer, offset));
            return None;
        };
        assert_eq!(run.first, offset, "an unsettled message is in the log");
        keys.turn = consumer;
        keys.waiting.remove(&(key, offset));
        let count = self.entries[index].handed_out_late(consumer, delivery);
        if let Some(next) = keys.first(key)
            && state_of(&self.entries, next) == State::Returned
        {
            keys.ready.insert((consumer, next));
        }
        Some(self.handed_out_late(run, consumer, count))
    }

    /// Hands `consumer` the run that the scan is at, as far as it is for it.
    fn deliver_fresh(
        &mut self,
        arena: &Arena,
        log: &mut Log,
        membership: &Membership,
        (consumer, delivery): (Handle, u64),
        limit: RunLimit,
    ) -> Option<Delivered> {
        let Assigned::ByKey(keys) = &mut self.assigned else {
            return None;
        };
        let room = u64::from(UNSETTLED_MAX.saturating_sub(self.live));
        if room == 0 {
            return None;
        }
        let limit = RunLimit {
            messages: limit.messages.min(room),
            ..limit
        };
        let run = log.read_while(arena, &mut self.fresh, limit, |header| {
            let key = key_of(header);
            let fits = membership.holder(key) == Some(consumer) && !keys.holds_up(key);
            if fits {
                keys.of_entries.push_back(key);
            }
            fits
        })?;
        Some(self.handed_out(run, consumer, delivery))
    }

    /// Has the message wait that the scan is at. `false` if as many wait as may.
    fn pass_over(&mut self, arena: &Arena, log: &mut Log, membership: &Membership) -> bool {
        let Assigned::ByKey(keys) = &mut self.assigned else {
            return false;
        };
        if keys.waiting.len() >= KEY_WINDOW as usize || self.live >= UNSETTLED_MAX {
            return false;
        }
        let Some(key) = log.look(arena, &mut self.fresh).map(key_of) else {
            return false;
        };
        let Some(run) = log.read(arena, &mut self.fresh, ONE) else {
            return false;
        };
        let offset = run.first;
        if !keys.holds_up(key)
            && let Some(holder) = membership.holder(key)
        {
            keys.ready.insert((holder, offset));
        }
        keys.waiting.insert((key, offset));
        keys.of_entries.push_back(key);
        self.entries.push_back(Entry {
            offset,
            consumer: Handle::default(),
            delivery: 0,
            count: 0,
            state: State::Returned,
            first: false,
        });
        self.live += 1;
        self.returned += 1;
        if offset < self.returned_from.offset {
            self.returned_from = Cursor::at(offset);
        }
        true
    }
}
