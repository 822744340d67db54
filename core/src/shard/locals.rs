//! The local halves of destinations: their partitions, and what is counted of them.
//!
//! ```text
//!  slot   0          1          2         3
//!      [ number 0 | vacant | number 4098 | 3 ]      departed:  { 2, partition 0 }
//!                              `- the slot's second tenant          `- pinned by a link
//! ```
//!
//! A destination stands in the slot that its number names, so that looking one up is
//! an index. A number that outlived its destination leads to a slot that is vacant
//! or has another tenant: [`Locals::get`] finds nothing there. What links still send
//! of a log when its destination ends stays aside until it has left.
//!
//! Invariants: a slot that is not vacant has the tenant whose number leads there; a
//! vacant one has no partition; each log aside has bytes that are pinned.

use core::ops::{Index, IndexMut};
use std::collections::BTreeMap;

use super::egress::Pin;
use crate::id::{DestinationNumber, Handle, Offset, PartitionIndex, ProducerId};
use crate::journal::entry::Place;
use crate::memory::{Arena, Extent};
use crate::partition::Partition;
use crate::partition::log::{Address, Log};

/// Which partitions of a destination are this shard's: the first, and each so many
/// behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) first: usize,
    pub(super) step: usize,
    pub(super) count: usize,
}

impl Own {
    /// The indexes of those.
    pub(super) fn indexes(self) -> impl Iterator<Item = usize> {
        (self.first..).step_by(self.step).take(self.count)
    }

    /// Whether it is one of those.
    pub(super) fn has(self, index: usize) -> bool {
        self.indexes().any(|own| own == index)
    }
}

/// A destination's local half.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) number: DestinationNumber,
    /// By their indexes; those of other shards are empty and stay so.
    pub(super) partitions: Vec<Partition>,
    /// Which of them are this shard's.
    pub(super) own: Own,
    /// Chunks that those keep however little is in them.
    pub(super) kept: usize,
    /// Each partition, whether it stands in the list of ready ones.
    pub(super) queued: Vec<bool>,
    /// Each partition, whether it stands in the list of those that wait for memory.
    pub(super) paused: Vec<bool>,
    /// In the order of their parts in each partition.
    pub(super) subscriptions: Vec<Handle>,
    pub(super) producers: u32,
    /// Who of them has it alone.
    pub(super) exclusive: Option<ProducerId>,
    /// How often somebody had it alone: who was attached before that never is again.
    pub(super) term: u32,
    /// Those whose messages here are delivered to a link or to a front.
    pub(super) consumers: u32,
    /// Those that only look at it, and whose messages here are shown to a link or to a front.
    pub(super) browsers: Vec<Handle>,
    /// Consumers that stand here for sources anywhere.
    pub(super) fronts: u32,
    pub(super) stored: u64,
    /// Whether messages stay until they are settled, or longer: then it is worth a flush.
    pub(super) keeps: bool,
    /// 1 if whole segments of it expire: then it is looked at although nobody consumes.
    pub(super) expires: u32,
    /// Whether messages are seen before they are flushed.
    pub(super) is_early: bool,
    /// Whether it has a subscription that it came with.
    pub(super) is_queue: bool,
}

impl Local {
    pub(super) fn new(
        number: DestinationNumber,
        partitions: Vec<Partition>,
        own: Own,
        kept: usize,
    ) -> Self {
        let count = partitions.len();
        Self {
            number,
            partitions,
            own,
            kept,
            queued: vec![false; count],
            paused: vec![false; count],
            subscriptions: Vec::new(),
            producers: 0,
            exclusive: None,
            term: 0,
            consumers: 0,
            browsers: Vec::new(),
            fronts: 0,
            stored: 0,
            keeps: false,
            expires: 0,
            is_early: false,
            is_queue: false,
        }
    }

    fn vacant() -> Self {
        let own = Own {
            first: 0,
            step: 1,
            count: 0,
        };
        Self::new(DestinationNumber::NONE, Vec::new(), own, 0)
    }

    /// Where the parts of `subscription` stand in each partition.
    pub(super) fn place_of(&self, subscription: Handle) -> Option<usize> {
        self.subscriptions
            .iter()
            .position(|other| *other == subscription)
    }

    /// Has what is settled here noted, so that it can be written down.
    pub(super) fn note_settled(&mut self) {
        for partition in &mut self.partitions {
            partition.log.note_settled();
        }
    }

    /// Chunks of what has only to expire.
    pub(super) fn expiring_chunks(&self) -> usize {
        let partitions = self.partitions.iter();
        partitions.map(|it| it.log.expiring_chunks()).sum()
    }

    pub(super) fn chunks(&self) -> usize {
        self.partitions
            .iter()
            .map(|partition| partition.log.chunks())
            .sum()
    }
}

/// Those of all destinations.
#[derive(Debug, Default)]
pub(super) struct Locals {
    slots: Vec<Local>,
    departed: BTreeMap<(DestinationNumber, PartitionIndex), Log>,
}

impl Locals {
    /// Puts a destination into its slot, which is vacant.
    pub(super) fn put(&mut self, local: Local) {
        let slot = local.number.slot();
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, Local::vacant);
        }
        assert_eq!(
            self.slots[slot].number,
            DestinationNumber::NONE,
            "a slot has one tenant"
        );
        self.slots[slot] = local;
    }

    /// Takes a destination out that has no subscription. Its logs give back what no
    /// link is sending.
    pub(super) fn take(&mut self, arena: &mut Arena, number: DestinationNumber) -> Local {
        let mut local = core::mem::replace(&mut self[number], Local::vacant());
        for (partition, index) in local.partitions.iter_mut().zip(0..) {
            partition.log.end(arena);
            if partition.log.chunks() > 0 {
                let address = Address {
                    destination: number,
                    partition: PartitionIndex(index),
                };
                let log = core::mem::replace(&mut partition.log, Log::new(address, 0));
                self.departed.insert((number, PartitionIndex(index)), log);
            }
        }
        local
    }

    /// The destination with this number, if it lives.
    #[inline]
    pub(super) fn get(&self, number: DestinationNumber) -> Option<&Local> {
        self.slots
            .get(number.slot())
            .filter(|local| local.number == number)
    }

    /// The destination with this number, if it lives.
    #[inline]
    pub(super) fn get_mut(&mut self, number: DestinationNumber) -> Option<&mut Local> {
        self.slots
            .get_mut(number.slot())
            .filter(|local| local.number == number)
    }

    /// The log of a partition, if its destination lives.
    pub(super) fn log_mut(&mut self, place: Place) -> Option<&mut Log> {
        let local = self.get_mut(place.destination)?;
        let partition = local.partitions.get_mut(place.partition.0 as usize)?;
        Some(&mut partition.log)
    }

    /// All that live.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Local> {
        self.slots
            .iter()
            .filter(|local| local.number != DestinationNumber::NONE)
    }

    /// All that live.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Local> {
        self.slots
            .iter_mut()
            .filter(|local| local.number != DestinationNumber::NONE)
    }

    /// The first one from this slot on that lives.
    pub(super) fn from(&self, slot: usize) -> Option<&Local> {
        let mut behind = self.slots.iter().skip(slot);
        behind.find(|local| local.number != DestinationNumber::NONE)
    }

    /// How long the table is.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Chunks of logs that wait only to have left.
    pub(super) fn departed_chunks(&self) -> usize {
        self.departed.values().map(Log::chunks).sum()
    }

    /// A link has done with a message that was lent to it.
    pub(super) fn unpin(&mut self, arena: &mut Arena, pin: Pin) {
        match self.get_mut(pin.destination) {
            Some(local) => local.partitions[pin.partition.0 as usize]
                .log
                .unpin(arena, pin.offset),
            None => self.unpin_departed(arena, pin),
        }
    }

    /// What was to leave a log for pages is of one that has gone meanwhile.
    pub(super) fn left_behind(
        &mut self,
        arena: &mut Arena,
        place: Place,
        first: Offset,
        at: Extent,
    ) {
        let pin = Pin {
            destination: place.destination,
            partition: place.partition,
            offset: first,
        };
        self.unpin_departed(arena, pin);
        arena.give_pages(at);
    }

    #[cold]
    fn unpin_departed(&mut self, arena: &mut Arena, pin: Pin) {
        let address = (pin.destination, pin.partition);
        if let Some(log) = self.departed.get_mut(&address) {
            log.unpin(arena, pin.offset);
            if log.chunks() == 0 {
                self.departed.remove(&address);
            }
        }
    }
}

impl Index<DestinationNumber> for Locals {
    type Output = Local;

    /// Of a destination that lives.
    #[inline]
    fn index(&self, number: DestinationNumber) -> &Local {
        let local = &self.slots[number.slot()];
        debug_assert_eq!(local.number, number, "the destination lives");
        local
    }
}

impl IndexMut<DestinationNumber> for Locals {
    #[inline]
    fn index_mut(&mut self, number: DestinationNumber) -> &mut Local {
        let local = &mut self.slots[number.slot()];
        debug_assert_eq!(local.number, number, "the destination lives");
        local
    }
}
