//! What a broker wrote to its journal, by its own counters.

use courser_core::counters::Counter;

use super::super::target::Target;
use crate::floor::durable::BLOCK_BYTES;
use crate::units;

/// Writes of a journal, and the messages that were flushed with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Batches {
    writes: u64,
    bytes: u64,
    messages: u64,
}

impl Batches {
    /// All writes of a broker that rests; no messages.
    pub(super) fn so_far(target: &Target) -> Self {
        let count = |counter| target.count(counter).unwrap_or(0);
        Self {
            writes: count(Counter::JournalWrites),
            bytes: count(Counter::JournalBytes),
            messages: 0,
        }
    }

    /// What was written since, with so many messages.
    pub(super) fn since(self, earlier: Self, messages: u64) -> Self {
        Self {
            writes: self.writes.saturating_sub(earlier.writes),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            messages,
        }
    }

    /// Adds others.
    pub(super) fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.bytes += other.bytes;
        self.messages += other.messages;
    }

    /// Bytes that were written in all.
    pub(super) fn bytes(self) -> u64 {
        self.bytes
    }

    /// Messages that one write carried, on average.
    pub(super) fn messages_per_write(self) -> Option<f64> {
        (self.writes > 0 && self.messages > 0)
            .then(|| units::to_f64(self.messages) / units::to_f64(self.writes))
    }

    /// Bytes of one write, on average, as a floor can write them: in whole blocks.
    pub(super) fn bytes_per_write(self) -> Option<u32> {
        let blocks = (self.writes > 0).then(|| {
            let blocks = self.bytes / u64::from(BLOCK_BYTES);
            // To the nearest.
            (blocks + self.writes / 2) / self.writes
        })?;
        u32::try_from(blocks.max(1) * u64::from(BLOCK_BYTES)).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_write_has_the_nearest_number_of_whole_blocks() {
        let batches = |writes, blocks: u64| Batches {
            writes,
            bytes: blocks * 4096,
            messages: 30,
        };
        assert_eq!(batches(10, 14).bytes_per_write(), Some(4096));
        assert_eq!(batches(10, 15).bytes_per_write(), Some(8192));
        assert_eq!(batches(10, 3).bytes_per_write(), Some(4096));
        assert_eq!(batches(0, 0).bytes_per_write(), None);
        assert_eq!(batches(10, 14).messages_per_write(), Some(3.0));
    }

    #[test]
    fn what_was_written_before_is_not_counted() {
        let [before, after] = [(5, 5), (8, 11)].map(|(writes, blocks)| Batches {
            writes,
            bytes: blocks * 4096,
            messages: 0,
        });
        let since = after.since(before, 6);
        assert_eq!(since.bytes_per_write(), Some(8192));
        assert_eq!(since.messages_per_write(), Some(2.0));
    }
}
