//! The local halves of destinations: their partitions, and what is counted of them.
//!
//! A destination stands in the slot that its number names, so that looking one up is
//! an index.
//!
//! Invariant: a slot that is not vacant has the tenant whose number leads there.

use core::ops::{Index, IndexMut};

use super::egress::Pin;
use crate::id::{DestinationNumber, Handle};
use crate::memory::Arena;
use crate::partition::Partition;

/// A destination's local half.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) number: DestinationNumber,
    pub(super) partitions: Vec<Partition>,
    /// Chunks that they keep however little is in them.
    pub(super) kept: usize,
    /// Each partition, whether it stands in the list of ready ones.
    pub(super) queued: Vec<bool>,
    /// Each partition, whether it stands in the list of those that wait for memory.
    pub(super) paused: Vec<bool>,
    /// In the order of their parts in each partition.
    pub(super) subscriptions: Vec<Handle>,
    pub(super) producers: u32,
    pub(super) consumers: u32,
    pub(super) stored: u64,
}

impl Local {
    pub(super) fn new(number: DestinationNumber, partitions: Vec<Partition>, kept: usize) -> Self {
        let count = partitions.len();
        Self {
            number,
            partitions,
            kept,
            queued: vec![false; count],
            paused: vec![false; count],
            subscriptions: Vec::new(),
            producers: 0,
            consumers: 0,
            stored: 0,
        }
    }

    fn vacant() -> Self {
        Self::new(DestinationNumber::NONE, Vec::new(), 0)
    }

    /// Where the parts of `subscription` stand in each partition.
    pub(super) fn place_of(&self, subscription: Handle) -> Option<usize> {
        self.subscriptions
            .iter()
            .position(|other| *other == subscription)
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

    /// All that live.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Local> {
        self.slots
            .iter()
            .filter(|local| local.number != DestinationNumber::NONE)
    }

    /// A link has done with a message that was lent to it.
    pub(super) fn unpin(&mut self, arena: &mut Arena, pin: Pin) {
        self[pin.destination].partitions[pin.partition.0 as usize]
            .log
            .unpin(arena, pin.offset);
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
