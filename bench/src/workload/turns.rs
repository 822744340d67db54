//! The order in which messages come out of a destination whose partitions were
//! sent to in turn.
//!
//! ```text
//!   sent       first  first+1  first+2 | first+3  first+4  first+5 | ..
//!   partition  0      1        2       | 0        1        2       |
//! ```
//!
//! Between partitions a consumer may get them in any order; within one each
//! message is as many numbers behind the one before as there are partitions.

use courser::PartitionIndex;

/// The number of the message that is due from each partition.
#[derive(Debug)]
pub(super) struct Turns {
    due: Vec<u64>,
}

impl Turns {
    /// The turns of a producer whose message with the number `first` went to the
    /// first partition, of which all below `from` have come out.
    pub(super) fn new(first: u64, from: u64, partitions: u32) -> Self {
        let partitions = u64::from(partitions);
        let next = from.saturating_sub(first);
        let turn = next % partitions;
        Self {
            due: (0..partitions)
                .map(|partition| first + next + (partition + partitions - turn) % partitions)
                .collect(),
        }
    }

    /// Takes a message; false if another is due from its partition. After a fault
    /// it goes on from what it saw.
    #[inline]
    pub(super) fn is_due(&mut self, partition: PartitionIndex, number: u64) -> bool {
        let partitions = self.due.len() as u64;
        let Some(due) = self.due.get_mut(partition.0 as usize) else {
            return false;
        };
        let is_due = *due == number;
        *due = number.wrapping_add(partitions);
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether all of these come when they are due, sent from 100 on to three
    /// partitions, with the first seven out already.
    fn are_due(messages: &[(u32, u64)]) -> bool {
        let mut turns = Turns::new(100, 107, 3);
        messages
            .iter()
            .all(|(partition, number)| turns.is_due(PartitionIndex(*partition), *number))
    }

    #[test]
    fn partitions_come_in_any_order_and_each_in_its_own() {
        assert!(are_due(&[(1, 107), (2, 108), (0, 109), (1, 110)]));
        assert!(are_due(&[(0, 109), (0, 112), (2, 108), (1, 107), (2, 111)]));
    }

    #[test]
    fn what_is_swapped_lost_repeated_or_elsewhere_is_not_due() {
        for wrong in [
            &[(1, 110), (1, 107)][..],
            &[(1, 107), (1, 113)],
            &[(1, 107), (1, 107)],
            &[(2, 107)],
            &[(3, 107)],
            &[(1, 104)],
        ] {
            assert!(!are_due(wrong), "{wrong:?}");
        }
    }
}
