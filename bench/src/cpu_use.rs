//! Processor time as a result: of a broker with nothing to do, and of a message.

use serde::{Deserialize, Serialize};

use crate::compare::PairedRatio;
use crate::load::Outcome;
use crate::table::{Align, Table};
use crate::units;

/// A broker that waits, with so many connections that say nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdleUse {
    /// Open connections, each with a session.
    pub connections: u32,
    /// For how long it was watched.
    pub seconds: f64,
    /// The share of a core that the shard's thread took.
    pub shard_share: f64,
    /// The share of a core that the door's thread took.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub door_share: Option<f64>,
    /// Turns of the shard per second.
    pub turns_per_s: f64,
    /// How often the shard went to sleep, per second.
    pub sleeps_per_s: f64,
}

/// What a message costs at a load that does not fill a core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageUse {
    /// `produce to ack`, or `floor` and its kind.
    pub workload: String,
    /// Bytes of body.
    pub payload_bytes: u32,
    /// Messages per second that were asked for.
    pub asked_msgs_per_s: f64,
    /// Messages per second that were answered.
    pub achieved_msgs_per_s: f64,
    /// Whether that is enough for the rest to mean something.
    pub outcome: Outcome,
    /// Messages that were counted.
    pub messages: u64,
    /// Time of the serving thread for each of them, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_ns_per_message: Option<f64>,
    /// The share of a core that the serving thread took.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share: Option<f64>,
    /// Time per message over the floor's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ratio: Option<f64>,
    /// The same from pairs of neighbouring slices, with its interval.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paired: Option<PairedRatio>,
}

pub(crate) fn idle_table(idle: &[IdleUse]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("idle, adaptive", Left),
        ("watched", Right),
        ("shard cpu", Right),
        ("door cpu", Right),
        ("turns", Right),
        ("sleeps", Right),
    ]);
    for idle in idle {
        table.row(vec![
            format!("{} connections", units::count(idle.connections.into())),
            format!("{:.1} s", idle.seconds),
            units::percent(idle.shard_share),
            idle.door_share
                .map_or_else(|| "-".to_owned(), units::percent),
            units::per_second(idle.turns_per_s),
            units::per_second(idle.sleeps_per_s),
        ]);
    }
    table
}

pub(crate) fn message_table(messages: &[MessageUse]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("processor time of a message", Left),
        ("body", Right),
        ("asked", Right),
        ("achieved", Right),
        ("", Left),
        ("messages", Right),
        ("cpu each", Right),
        ("of a core", Right),
        ("x floor", Right),
        ("pairs", Left),
    ]);
    let dash = || "-".to_owned();
    for message in messages {
        table.row(vec![
            message.workload.clone(),
            units::bytes(u64::from(message.payload_bytes)),
            units::per_second(message.asked_msgs_per_s),
            units::per_second(message.achieved_msgs_per_s),
            message.outcome.to_string(),
            units::count(message.messages),
            message
                .cpu_ns_per_message
                .map_or_else(dash, units::nanoseconds),
            message.share.map_or_else(dash, units::percent),
            message
                .ratio
                .map_or_else(dash, |ratio| format!("{ratio:.2}")),
            message
                .paired
                .map_or_else(String::new, |paired| paired.to_string()),
        ]);
    }
    table
}
