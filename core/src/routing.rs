//! Which partition a send goes to.
//!
//! A key is hashed with FNV-1a of 64 bits and taken modulo the number of
//! partitions, as Danube's clients do, so that both place a key alike. Without
//! a key partitions take turns, beginning with 0.

use crate::id::PartitionIndex;

/// FNV-1a of 64 bits.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The partition that a key's hash leads to.
///
/// # Panics
///
/// If there are no partitions.
#[must_use]
pub fn by_hash(hash: u64, partitions: u32) -> PartitionIndex {
    PartitionIndex(
        u32::try_from(hash % u64::from(partitions)).expect("the remainder is below a u32"),
    )
}

/// The turn of the next send without a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin {
    next: u32,
}

impl RoundRobin {
    /// Whose turn it is; moves on.
    pub fn take(&mut self, partitions: u32) -> PartitionIndex {
        let turn = if self.next < partitions { self.next } else { 0 };
        self.next = turn + 1;
        PartitionIndex(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_where_other_implementations_of_the_rule_send_them() {
        let vectors = [
            ("payment", 0, 1),
            ("shipping", 2, 3),
            ("invoice", 0, 0),
            ("order-1001", 0, 0),
            ("AAPL", 1, 3),
            ("MSFT", 2, 3),
            ("EURUSD", 2, 1),
            ("", 2, 1),
        ];
        for (key, of_three, of_four) in vectors {
            let hash = key_hash(key.as_bytes());
            assert_eq!(by_hash(hash, 3), PartitionIndex(of_three), "{key} of 3");
            assert_eq!(by_hash(hash, 4), PartitionIndex(of_four), "{key} of 4");
        }
    }

    #[test]
    fn nine_sends_without_a_key_take_three_partitions_in_turn() {
        let mut turn = RoundRobin::default();
        let taken: Vec<u32> = (0..9).map(|_| turn.take(3).0).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }
}
