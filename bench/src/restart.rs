//! Starts on what was kept, as a result.

use serde::{Deserialize, Serialize};

use crate::table::{Align, Table};
use crate::units;

/// One start of a broker on a journal that it wrote before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// Bytes that the broker before had journalled.
    pub journal_bytes: u64,
    /// What the start replayed of journals.
    #[serde(default)]
    pub replayed_bytes: u64,
    /// What it read of checkpoints beside.
    #[serde(default)]
    pub checkpoint_bytes: u64,
    /// Messages in it that nobody has acknowledged.
    pub messages_left: u64,
    /// How long it took to read them in order, from the device.
    pub read_seconds: f64,
    /// From the start of the broker to when it accepted connections.
    pub ready_seconds: f64,
    /// From the start of the broker to its first flushed ack.
    pub first_ack_seconds: f64,
    /// What the goal allows: two seconds for a gibibyte, and twice reading it.
    pub bound_seconds: f64,
}

/// What a broker begins with is in a checkpoint: less than any that is made at a stop.
const BEGINNING_BYTES_MAX: u64 = courser_core::limits::LAST_CHECKPOINT_BYTES as u64;

impl Restart {
    /// Whether the journal was replayed, and not a checkpoint read in its place.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.checkpoint_bytes < BEGINNING_BYTES_MAX
            && self.replayed_bytes + BEGINNING_BYTES_MAX > self.journal_bytes
    }
}

pub(crate) fn table(restarts: &[Restart]) -> Table {
    use Align::Right;
    let mut table = Table::new(&[
        ("restart: journal", Right),
        ("replayed", Right),
        ("messages left", Right),
        ("reading it", Right),
        ("ready", Right),
        ("first flushed ack", Right),
        ("allowed", Right),
    ]);
    let seconds = |seconds: f64| units::nanoseconds(seconds * 1e9);
    for restart in restarts {
        table.row(vec![
            format!("{} MiB", restart.journal_bytes >> 20),
            format!("{} MiB", restart.replayed_bytes >> 20),
            units::count(restart.messages_left),
            seconds(restart.read_seconds),
            seconds(restart.ready_seconds),
            seconds(restart.first_ack_seconds),
            seconds(restart.bound_seconds),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_read_a_checkpoint_has_replayed_no_journal() {
        let replay = Restart {
            journal_bytes: 1 << 30,
            replayed_bytes: (1 << 30) - (8 << 10),
            checkpoint_bytes: 8 << 10,
            messages_left: 1,
            read_seconds: 0.5,
            ready_seconds: 0.5,
            first_ack_seconds: 0.5,
            bound_seconds: 3.0,
        };
        assert!(replay.is_replay());
        let checkpoint = Restart {
            checkpoint_bytes: 1 << 29,
            ..replay
        };
        assert!(!checkpoint.is_replay());
        let little = Restart {
            replayed_bytes: 1 << 29,
            ..replay
        };
        assert!(!little.is_replay());
    }
}
