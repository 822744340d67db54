//! Starts on what was kept, as a result.

use serde::{Deserialize, Serialize};

use crate::table::{Align, Table};
use crate::units;

/// One start of a broker on a journal that it wrote before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
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

pub(crate) fn table(restarts: &[Restart]) -> Table {
    use Align::Right;
    let mut table = Table::new(&[
        ("restart: journal", Right),
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
            units::count(restart.messages_left),
            seconds(restart.read_seconds),
            seconds(restart.ready_seconds),
            seconds(restart.first_ack_seconds),
            seconds(restart.bound_seconds),
        ]);
    }
    table
}
