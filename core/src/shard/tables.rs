//! What clients may have the broker keep beside messages: consumers, and the state
//! of subscriptions in partitions.
//!
//! Each has a share of the memory plan, and whatever is opened takes its worst case
//! out of it, tables that double and never shrink included. What is unsettled grows
//! with what consumers hold: a few entries are paid for with the part, more come out
//! of the same share while there is some, and while there is none delivery pauses
//! beyond the few, as it does at the bound of a part.

use super::consumer::Consumer;
use super::{Fault, Shard, browse};
use crate::error::Refusal;
use crate::id::{DestinationNumber, Handle, PartitionIndex};
use crate::subscription::membership::Member;
use crate::subscription::{Kind, Part, key_ring};

/// Bytes out of a share of the memory plan.
#[derive(Debug)]
pub(super) struct Share {
    bound: usize,
    used: usize,
}

impl Share {
    pub(super) fn new(bound: u64) -> Self {
        Self {
            bound: usize::try_from(bound).unwrap_or(usize::MAX),
            used: 0,
        }
    }

    #[inline]
    pub(super) fn has(&self, bytes: usize) -> bool {
        self.bound.saturating_sub(self.used) >= bytes
    }

    /// Takes what [`Share::has`] said is there.
    pub(super) fn take(&mut self, bytes: usize) {
        assert!(self.has(bytes), "a share is asked before it is taken from");
        self.used += bytes;
    }

    /// Takes what has its bound elsewhere, too.
    pub(super) fn take_anyway(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Gives back what was taken.
    pub(super) fn give(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// Whether more than half of it is used.
    #[inline]
    pub(super) fn is_tight(&self) -> bool {
        self.used > self.bound / 2
    }

    pub(super) fn bound(&self) -> usize {
        self.bound
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }
}

/// Paused partitions that look again in one turn: bounds how long it takes.
const RESUMED_PER_TURN: usize = 16;
/// A vector that doubles and is then copied has three times its length, and one that
/// is given back when it is a quarter full has four.
const SLACK: usize = 4;

/// What a consumer takes up: itself, where its link, its session and its subscription
/// name it, its points on the ring if keys decide, and what each partition may have to
/// remember of its acknowledgements, or a browser of each partition.
pub(super) fn consumer_size(kind: Kind, partitions: usize) -> usize {
    const PER_PARTITION: usize = 2 * Part::PER_CONSUMER_SIZE;
    const _: () = assert!(browse::PLACE_SIZE <= PER_PARTITION);
    const NAMED: usize = 2 * size_of::<Handle>() + size_of::<Member>();
    let points = match kind {
        Kind::KeyShared => key_ring::MEMBER_SIZE,
        Kind::Exclusive | Kind::Shared | Kind::Failover => 0,
    };
    SLACK * (size_of::<Consumer>() + NAMED) + points + partitions * PER_PARTITION
}

/// What a subscription takes up in all partitions, with the few entries that each part
/// may always have.
pub(super) fn subscription_size(kind: Kind, partitions: usize) -> usize {
    const ITSELF: usize = 1024;
    const IN_LISTS: usize = 128;
    const PART: usize = SLACK * size_of::<(Handle, Part)>() + IN_LISTS;
    ITSELF + partitions * (PART + Part::least_size(kind))
}

#[cold]
pub(super) fn no_memory_for_subscriptions() -> Fault {
    Fault::new(
        Refusal::ResourceAllocation,
        "no memory is left for another subscription in so many partitions: \
         start the broker with more memory, or end others",
    )
}

#[cold]
pub(super) fn no_memory_for_consumers() -> Fault {
    Fault::new(
        Refusal::ResourceAllocation,
        "no memory is left for another consumer: start the broker with more",
    )
}

impl Shard {
    /// Has a part know of more unsettled messages at once: of twice as many, which needs
    /// the old memory and the new for a moment. While there is no memory for that its
    /// partition pauses, and it is `false`.
    #[cold]
    pub(super) fn widen(
        &mut self,
        destination: DestinationNumber,
        index: PartitionIndex,
        place: usize,
    ) -> bool {
        let local = &mut self.locals[destination];
        let (_, part) = &mut local.partitions[index.0 as usize].parts[place];
        let size = part.widening_size();
        if part.tidy() {
            true
        } else if self.parts.has(2 * size) {
            part.widen();
            self.parts.take(size);
            true
        } else {
            self.pause(destination, index);
            false
        }
    }

    /// Some of what subscriptions take came back: whoever waits for it is to have
    /// another look.
    pub(super) fn give_parts(&mut self, bytes: usize) {
        self.parts.give(bytes);
        self.relieved = self.paused.len();
    }

    /// Delivery in a partition pauses until there is memory for what is unsettled.
    fn pause(&mut self, destination: DestinationNumber, index: PartitionIndex) {
        let local = &mut self.locals[destination];
        if !local.paused[index.0 as usize] {
            local.paused[index.0 as usize] = true;
            self.paused.push_back((destination, index));
        }
    }

    /// Panics if what is taken is not what there is.
    pub(super) fn audit_tables(&self) {
        let partitions = |destination: DestinationNumber| self.locals[destination].own.count;
        let opened: usize = self
            .consumers
            .iter()
            .map(|(_, consumer)| match consumer.ended() {
                None => consumer_size(consumer.kind(), partitions(consumer.destination())),
                Some(_) => consumer_size(Kind::Exclusive, 0),
            })
            .sum();
        assert_eq!(self.opened.used(), opened, "every consumer is paid for");
        let mut parts = 0;
        for local in self.locals.iter() {
            for subscription in &local.subscriptions {
                let subscription = self.subscriptions.get(*subscription);
                let membership = subscription.expect("those that are listed are there");
                membership.membership().invariants();
                let kind = membership.membership().kind();
                parts += subscription_size(kind, local.own.count);
            }
            for index in local.own.indexes() {
                let partition = &local.partitions[index];
                let order = partition.parts.iter().map(|(handle, _)| handle);
                assert!(
                    order.eq(&local.subscriptions),
                    "parts stand in the order of their subscriptions"
                );
                let sizes = partition.parts.iter().map(|(_, part)| part.entries_size());
                parts += sizes.sum::<usize>();
            }
        }
        assert_eq!(self.parts.used(), parts, "every subscription is paid for");
        let queues = self.burdens[usize::from(self.config.shard.0)].queues;
        assert!(queues <= self.parts.bound, "queues are within the share");
        assert!(
            self.parts.used() <= self.parts.bound + queues,
            "and so is all beside them"
        );
    }

    /// Has those look again that waited when memory came back, each once: a few in a
    /// turn, those that wait longest first.
    #[inline]
    pub(super) fn resume(&mut self) {
        if self.relieved > 0 {
            self.resume_now();
        }
    }

    #[cold]
    fn resume_now(&mut self) {
        let now = self.relieved.min(RESUMED_PER_TURN);
        self.relieved -= now;
        for (destination, index) in self.paused.drain(..now).collect::<Vec<_>>() {
            if let Some(local) = self.locals.get_mut(destination) {
                local.paused[index.0 as usize] = false;
                self.queue(destination, index);
            }
        }
    }
}
