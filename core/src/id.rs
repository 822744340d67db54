//! Names for numbers: every id, offset and count that crosses a boundary has a
//! type of its own, so that none is mistaken for another.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A producer's own count of its sends, starting at 1: the order in which
    /// completions leave.
    Sequence(u64)
}
number! {
    /// A dense count of one producer's sends to one partition, starting at 1:
    /// what a retry is recognised by.
    PartitionSequence(u64)
}
number! {
    /// A message's place in its partition, starting at 0, dense.
    Offset(u64)
}
number! {
    /// A producer, issued by the broker and never reused within an installation.
    ProducerId(u64)
}
number! {
    /// A link, never reused within an installation. 0 is none.
    LinkNumber(u64)
}
number! {
    /// A producer's incarnation: a higher one fences all lower ones.
    Epoch(u32)
}
number! {
    /// A partition of a destination, counted from 0.
    PartitionIndex(u32)
}
number! {
    /// A destination's number in the catalogue, never reused: a slot, and which of
    /// its tenants is meant.
    DestinationNumber(u32)
}
number! {
    /// A state of the catalogue: how many changes led to it.
    CatalogVersion(u64)
}
number! {
    /// A shard, counted from 0.
    ShardIndex(u16)
}
number! {
    /// A request on the control plane, chosen by the requester and echoed.
    RequestId(u32)
}

number! {
    /// A subscription of a destination, never reused for another one of it. 0 is none.
    SubscriptionNumber(u32)
}
number! {
    /// A journal of a data directory: another number than that of the shard that
    /// writes it, which differs from run to run.
    JournalNumber(u16)
}
number! {
    /// One start of a broker on its data directory, from 1 over the installation's
    /// life.
    Run(u64)
}
number! {
    /// Files of a journal in the order in which they were begun, from 1 over all runs.
    FileSequence(u64)
}
number! {
    /// A page of the page files of a journal, counted through all of them.
    PageNumber(u32)
}
number! {
    /// Batches of a journal, from 1; a run goes on behind the last one that it kept.
    /// 0 is none.
    BatchNumber(u64)
}

impl ShardIndex {
    /// The first of the numbers that this shard gives out: no other gives out the
    /// same.
    #[must_use]
    pub fn first_number(self) -> u64 {
        (u64::from(self.0) << 48) + 1
    }
}

impl DestinationNumber {
    /// How many bits of a number name the slot of the tables that destinations stand
    /// in. The others count how often the slot was given out.
    pub const SLOT_BITS: u32 = 12;
    /// One more than the largest slot.
    pub const SLOTS: u32 = 1 << Self::SLOT_BITS;
    /// How often a slot can be given out.
    pub const TENANTS: u32 = (1 << (32 - Self::SLOT_BITS)) - 1;
    /// The number of none: one more than the last tenant of a slot.
    pub const NONE: Self = Self(u32::MAX);

    /// The number of a slot's tenant.
    #[must_use]
    pub const fn new(slot: u32, tenant: u32) -> Self {
        Self((tenant << Self::SLOT_BITS) | (slot % Self::SLOTS))
    }

    /// The index into tables of destinations.
    #[must_use]
    pub const fn slot(self) -> usize {
        (self.0 % Self::SLOTS) as usize
    }

    /// How often the slot was given out before.
    #[must_use]
    pub const fn tenant(self) -> u32 {
        self.0 >> Self::SLOT_BITS
    }
}

impl LinkNumber {
    /// The first that a shard gives out in a run. Those of another run do not come again
    /// before 65,536 of them.
    #[must_use]
    pub fn first_of(shard: ShardIndex, run: Run) -> Self {
        Self(shard.first_number() + ((run.0 & 0xffff) << 32))
    }

    /// The shard that gave the number out, as [`ShardIndex::first_number`] has it.
    #[must_use]
    pub fn shard(self) -> ShardIndex {
        ShardIndex(u16::try_from(self.0 >> 48).expect("16 bits are left"))
    }
}

impl BatchNumber {
    /// The highest that a journal can come to.
    pub const MAX: Self = Self(u64::MAX >> 1);

    /// The batch behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Sequence {
    /// The first sequence of every producer.
    pub const FIRST: Self = Self(1);
}

/// Which of those who ever joined a subscription, from 1; the same on every shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberNumber(pub u64);

/// A versioned index into a table: the low 20 bits are the slot, the high 12
/// its generation, so that a stale handle finds nothing instead of a stranger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

impl Handle {
    /// How many bits of a handle name the slot.
    pub const SLOT_BITS: u32 = 20;
    /// One more than the largest slot.
    pub const SLOTS: u32 = 1 << Self::SLOT_BITS;
    /// One more than the largest generation.
    pub const GENERATIONS: u32 = 1 << (32 - Self::SLOT_BITS);

    /// Packs a slot below [`Handle::SLOTS`] and a generation, which wraps.
    #[must_use]
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self(((generation % Self::GENERATIONS) << Self::SLOT_BITS) | (slot % Self::SLOTS))
    }

    /// The index into the table.
    #[must_use]
    pub const fn slot(self) -> usize {
        (self.0 % Self::SLOTS) as usize
    }

    /// Which tenant of the slot is meant.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.0 >> Self::SLOT_BITS
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot(), self.generation())
    }
}

/// One life of a broker's data. A broker that keeps nothing on disk is a new
/// installation at every start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Installation(pub u128);

impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Who a message is: known when it is sent, equal over every retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// The broker's data that the producer belongs to.
    pub installation: Installation,
    /// The producer.
    pub producer: ProducerId,
    /// The producer's incarnation.
    pub epoch: Epoch,
    /// The producer's count of its sends.
    pub sequence: Sequence,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ID:{}-{}-{}-{}",
            self.installation, self.producer, self.epoch, self.sequence
        )
    }
}

impl Offset {
    /// The highest that a partition can come to; its successor is still a number.
    pub const MAX: Self = Self(u64::MAX >> 1);
}

/// Where a stored message stands in its destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The partition.
    pub partition: PartitionIndex,
    /// The place in that partition.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_returns_the_slot_and_generation_it_was_made_of() {
        let handle = Handle::new(Handle::SLOTS - 1, Handle::GENERATIONS + 5);
        assert_eq!(handle.slot(), Handle::SLOTS as usize - 1);
        assert_eq!(handle.generation(), 5);
    }

    #[test]
    fn a_message_id_reads_as_its_four_parts() {
        let id = MessageId {
            installation: Installation(0xab),
            producer: ProducerId(7),
            epoch: Epoch(1),
            sequence: Sequence(42),
        };
        assert_eq!(id.to_string(), "ID:000000000000000000000000000000ab-7-1-42");
    }
}
