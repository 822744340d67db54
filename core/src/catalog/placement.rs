//! Which shard a partition belongs to.
//!
//! ```text
//! destination 5 of 3 shards, home 2:   partition  0  1  2  3  4
//!                                      shard      2  0  1  2  0
//! ```
//!
//! Partitions go round the shards, beginning with the destination's home: those of
//! one destination are spread evenly, and so are destinations with one partition.
//! Nothing is stored: every shard and every start with as many shards computes the
//! same.

use crate::id::{DestinationNumber, PartitionIndex, ShardIndex};

/// How partitions are spread over the shards there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    shards: u16,
}

impl Placement {
    /// Over so many shards, at least one.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        Self {
            shards: shards.max(1),
        }
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(self) -> u16 {
        self.shards
    }

    /// The shard that owns a destination's first partition, and decides what concerns
    /// all of them.
    #[inline]
    #[must_use]
    pub fn home(self, destination: DestinationNumber) -> ShardIndex {
        self.owner(destination, PartitionIndex(0))
    }

    /// The shard that a partition belongs to.
    #[inline]
    #[must_use]
    pub fn owner(self, destination: DestinationNumber, partition: PartitionIndex) -> ShardIndex {
        let shards = u64::from(self.shards);
        let turn = (u64::from(destination.0) + u64::from(partition.0)) % shards;
        ShardIndex(u16::try_from(turn).expect("a remainder is below the number of shards"))
    }

    /// The shards that own partitions of a destination with so many of them, each
    /// once, the home first.
    pub fn owners(
        self,
        destination: DestinationNumber,
        partitions: u32,
    ) -> impl Iterator<Item = ShardIndex> {
        let count = partitions.min(self.shards.into());
        (0..count).map(move |partition| self.owner(destination, PartitionIndex(partition)))
    }

    /// How many of a destination's partitions one shard owns.
    #[must_use]
    pub fn share(self, destination: DestinationNumber, partitions: u32, shard: ShardIndex) -> u32 {
        let shards = u32::from(self.shards);
        let home = u32::from(self.home(destination).0);
        let first = (u32::from(shard.0) + shards - home) % shards;
        (partitions + shards - 1 - first.min(partitions + shards - 1)) / shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_spread_evenly_and_every_owner_is_named_once() {
        for shards in 1..=5 {
            let placement = Placement::new(shards);
            for destination in (0..7).map(DestinationNumber) {
                for partitions in 1..=13 {
                    let mut counts = vec![0; usize::from(shards)];
                    for partition in (0..partitions).map(PartitionIndex) {
                        counts[usize::from(placement.owner(destination, partition).0)] += 1;
                    }
                    let (least, most) = (counts.iter().min(), counts.iter().max());
                    assert!(
                        most.zip(least)
                            .is_some_and(|(most, least)| most - least <= 1)
                    );
                    for (shard, count) in (0..).map(ShardIndex).zip(&counts) {
                        assert_eq!(placement.share(destination, partitions, shard), *count);
                    }
                    let owners: Vec<_> = placement.owners(destination, partitions).collect();
                    assert_eq!(owners[0], placement.home(destination));
                    let mut once = owners.clone();
                    once.sort_unstable();
                    once.dedup();
                    assert_eq!(once.len(), owners.len());
                    assert_eq!(
                        owners.len(),
                        counts.iter().filter(|count| **count > 0).count()
                    );
                }
            }
        }
    }
}
