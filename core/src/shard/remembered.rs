//! Which producers are known, on links and off, and the memory that this takes.
//!
//! ```text
//!            open                    link breaks
//! (unknown) ------> on a handle ------------------> detached: 7, 8, 9, ...
//!     ^                ^    |                          |        `- longest first
//!     |                `----|--------------------------'
//!     |                     | closed          attached again
//!     `---------------------'<---------------- bound reached
//! ```
//!
//! All of it comes out of one pool. When that runs low, producers that are
//! detached lose first the positions of their last sends, then everything, in
//! both cases the longest detached first; then new producers are refused. Those
//! on links lose nothing, but their lists of positions grow only while less than
//! half of the pool is taken, so that whoever remembers much leaves room for
//! others to be known at all.
//!
//! Invariants: `used` is the sum over all that is known and never above `bound`;
//! every producer that is known has one place; detached ones below `bare` have
//! no positions.

use std::collections::BTreeMap;

use super::identity::{Identity, lanes_size};
use crate::id::{DestinationNumber, Handle, LinkNumber, ProducerId, ShardIndex};
use crate::limits;

/// What a producer costs beside its lanes and positions, in bytes: its identity in
/// a box, a place in the order of those that are detached, and what an allocator
/// adds.
const KNOWN_SIZE: usize = size_of::<Identity>() + 80;
/// What a place in the tree costs, in bytes: its nodes are half full at worst.
const PLACE_SIZE: usize = 64;

/// Where a known producer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On a link.
    Attached(Handle),
    /// The how-manieth that was detached.
    Detached(u64),
}

/// The producers that are known.
#[derive(Debug)]
pub(super) struct Remembered {
    next: ProducerId,
    /// Ids below may be given out; all, if nothing is kept.
    reserved: Option<ProducerId>,
    /// What other shards reserved in earlier runs: they may be there again one day.
    reserved_elsewhere: BTreeMap<ShardIndex, ProducerId>,
    /// By their ids, so that a look through them is not disturbed by who comes and goes.
    places: BTreeMap<ProducerId, Place>,
    detached: BTreeMap<u64, Box<Identity>>,
    /// The number of the producer that is detached next.
    next_detached: u64,
    /// Detached ones below have lost their positions.
    bare: u64,
    /// Bytes.
    used: usize,
    /// Bytes.
    bound: usize,
    /// Bytes that an open producer takes up in the table of handles.
    handle_size: usize,
    /// The most handles that there were at a time: their table does not shrink.
    handles_most: usize,
    /// The most places that there were at a time: nor does theirs.
    places_most: usize,
    forgotten: u64,
    /// Where the look through those detached goes on that a deleted destination began.
    sweep: Option<u64>,
}

/// How many of those detached are looked at in a turn: bounds how long it takes.
const SWEPT_PER_TURN: usize = 256;

impl Remembered {
    /// Nobody is known yet. `bound` and `handle_size` are in bytes.
    pub(super) fn new(shard: ShardIndex, bound: usize, handle_size: usize) -> Self {
        Self {
            next: ProducerId(shard.first_number()),
            reserved: None,
            reserved_elsewhere: BTreeMap::new(),
            places: BTreeMap::new(),
            detached: BTreeMap::new(),
            next_detached: 0,
            bare: 0,
            used: 0,
            bound,
            // A table that grows is copied into one of twice its size.
            handle_size: 2 * handle_size,
            handles_most: 0,
            places_most: 0,
            forgotten: 0,
            sweep: None,
        }
    }

    /// An id for a new producer of so many partitions with a name of so many bytes, if
    /// there is room for it.
    pub(super) fn issue(&mut self, partitions: usize, name: usize) -> Option<ProducerId> {
        if self.reserved.is_some_and(|reserved| self.next >= reserved)
            || !self.reserve(partitions, name)
        {
            return None;
        }
        let id = self.next;
        self.next = ProducerId(id.0 + 1);
        Some(id)
    }

    /// Up to where ids are to be reserved, if half of those that were are given out.
    pub(super) fn reserve_ids(&mut self) -> Option<ProducerId> {
        const AHEAD: u64 = limits::PRODUCER_IDS_RESERVED as u64;
        let left = self.reserved.map_or(0, |reserved| reserved.0 - self.next.0);
        if left > AHEAD / 2 {
            return None;
        }
        self.reserved = Some(ProducerId(self.next.0 + AHEAD));
        self.reserved
    }

    /// Ids below were given out in an earlier run.
    pub(super) fn go_on_at(&mut self, next: ProducerId) {
        let of = |id: ProducerId| LinkNumber(id.0).shard();
        if of(next) == of(self.next) {
            self.next = self.next.max(next);
        } else {
            let known = self.reserved_elsewhere.entry(of(next)).or_default();
            *known = next.max(*known);
        }
    }

    /// Up to where ids are reserved, of each shard that ever reserved some.
    pub(super) fn ids_reserved(&self) -> impl Iterator<Item = ProducerId> {
        let elsewhere = self.reserved_elsewhere.values().copied();
        self.reserved.into_iter().chain(elsewhere)
    }

    /// Those that are known, from this one on.
    pub(super) fn known_from(&self, id: ProducerId) -> impl Iterator<Item = (ProducerId, Place)> {
        self.places.range(id..).map(|(id, place)| (*id, *place))
    }

    /// Makes room for a new producer of so many partitions with a name of so many bytes;
    /// `false` if there is none.
    pub(super) fn reserve(&mut self, partitions: usize, name: usize) -> bool {
        let size = KNOWN_SIZE + lanes_size(partitions) + name;
        if !self.make_room(size + PLACE_SIZE) {
            return false;
        }
        self.used += size;
        if self.places.len() == self.places_most {
            self.used += PLACE_SIZE;
            self.places_most += 1;
        }
        true
    }

    /// Makes room for another handle beside `handles` others; `false` if there is none.
    pub(super) fn reserve_handle(&mut self, handles: usize) -> bool {
        if handles < self.handles_most {
            return true;
        }
        if !self.make_room(self.handle_size) {
            return false;
        }
        self.used += self.handle_size;
        self.handles_most = handles + 1;
        true
    }

    /// Where a producer is; `None` if it is not known.
    pub(super) fn place(&self, id: ProducerId) -> Option<Place> {
        self.places.get(&id).copied()
    }

    /// What was sent in earlier runs is told.
    pub(super) fn resume(&mut self) {
        for identity in self.detached.values_mut() {
            identity.resume();
        }
    }

    /// A producer that is detached.
    pub(super) fn detached(&self, number: u64) -> Option<&Identity> {
        self.detached.get(&number).map(|identity| &**identity)
    }

    /// A producer is on a link.
    pub(super) fn attached(&mut self, id: ProducerId, handle: Handle) {
        self.places.insert(id, Place::Attached(handle));
    }

    /// Takes a detached producer out to be attached.
    pub(super) fn take(&mut self, number: u64) -> Option<Identity> {
        self.detached.remove(&number).map(|identity| *identity)
    }

    /// A producer's link broke.
    pub(super) fn detach(&mut self, mut identity: Identity) {
        self.used -= identity.compact();
        let number = self.next_detached;
        self.next_detached += 1;
        self.places.insert(identity.id, Place::Detached(number));
        self.detached.insert(number, Box::new(identity));
        while self.detached.len() > limits::PRODUCERS_REMEMBERED as usize {
            self.forget_longest_detached();
        }
    }

    /// A detached producer that was taken out stays where it was.
    pub(super) fn detach_again(&mut self, number: u64, identity: Identity) {
        self.detached.insert(number, Box::new(identity));
    }

    /// A producer was closed.
    pub(super) fn forget(&mut self, identity: &Identity) {
        self.places.remove(&identity.id);
        self.used -= KNOWN_SIZE + identity.bytes();
    }

    /// Takes `bytes` more for the positions of a producer on a link, if that leaves
    /// half of the pool to others.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        while self.used + bytes > self.bound / 2 && self.forget_oldest_positions() {}
        let fits = self.used + bytes <= self.bound / 2;
        if fits {
            self.used += bytes;
        }
        fits
    }

    /// A destination ended: whoever is detached from it is to be forgotten.
    pub(super) fn destination_ended(&mut self) {
        self.sweep = (!self.detached.is_empty()).then_some(0);
    }

    /// Whether [`Remembered::sweep`] has something to do.
    #[inline]
    pub(super) fn is_sweeping(&self) -> bool {
        self.sweep.is_some()
    }

    /// Forgets some of those whose destination does not live any more.
    #[cold]
    pub(super) fn sweep(&mut self, lives: impl Fn(DestinationNumber) -> bool) {
        let Some(from) = self.sweep else {
            return;
        };
        let (mut over, mut looked_at, mut next) = (Vec::new(), 0, None);
        for (number, identity) in self.detached.range(from..) {
            if looked_at == SWEPT_PER_TURN {
                next = Some(*number);
                break;
            }
            looked_at += 1;
            if !lives(identity.destination) {
                over.push(*number);
            }
        }
        for number in over {
            if let Some(identity) = self.detached.remove(&number) {
                self.forget(&identity);
            }
        }
        self.sweep = next;
    }

    /// How many are known.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.places.len()
    }

    /// How many producers were forgotten for want of room.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Panics if an invariant is broken; `attached` are those on links.
    pub(super) fn invariants<'a>(&'a self, attached: impl Iterator<Item = &'a Identity>) {
        let tables = self.handles_most * self.handle_size + self.places_most * PLACE_SIZE;
        let mut used = tables;
        let mut known = 0;
        for identity in attached {
            assert!(
                matches!(self.place(identity.id), Some(Place::Attached(_))),
                "who is on a link is known to be"
            );
            used += KNOWN_SIZE + identity.bytes();
            known += 1;
        }
        for (number, identity) in &self.detached {
            assert_eq!(self.place(identity.id), Some(Place::Detached(*number)));
            used += KNOWN_SIZE + identity.bytes();
            known += 1;
        }
        assert_eq!(known, self.places.len(), "everybody has one place");
        assert_eq!(used, self.used, "every byte is counted");
        assert!(
            self.used <= self.bound,
            "what is known stays within its pool"
        );
    }

    fn make_room(&mut self, bytes: usize) -> bool {
        while self.used + bytes > self.bound {
            if !self.forget_oldest_positions() && !self.forget_longest_detached() {
                return false;
            }
        }
        true
    }

    /// Forgets the positions of the longest detached that has any.
    fn forget_oldest_positions(&mut self) -> bool {
        for (number, identity) in self.detached.range_mut(self.bare..) {
            self.bare = number + 1;
            let bytes = identity.forget_positions();
            self.used -= bytes;
            if bytes > 0 {
                return true;
            }
        }
        false
    }

    fn forget_longest_detached(&mut self) -> bool {
        let Some((_, identity)) = self.detached.pop_first() else {
            return false;
        };
        self.forget(&identity);
        self.forgotten += 1;
        true
    }
}

#[cfg(test)]
mod tests;
