//! The broker's workloads, each beside its floor.
//!
//! | workload | what is timed | its floor |
//! |---|---|---|
//! | round trip | produce to ack, one in flight | the best framed echo |
//! | end to end | producer to consumer, one client thread | the relay |
//! | throughput | acknowledged messages, a window in flight | the stream |
//! | open loop | produce to ack from intended times, at several rates | the echo under the same load |
//! | idle | processor time without work, and of a message | the echo that sleeps in epoll |
//! | scale | produce to ack, with many partitions and connections | the same with one or none; an echo for many |
//! | durable | produce to flushed ack, alone and of many; beside a backlog; a start on what was kept | a flush of the same device; no backlog; reading |
//! | quick | all three at two sizes, within a minute | theirs |
//!
//! ```text
//!   run ---- slices ----> floor lane ---- echo | relay | stream    rests
//!        A B B A ...      broker lane --- Target: embedded | remote  rests
//!                              |
//!                          Ledger: every completion, every message, in order
//! ```
//!
//! Floor and broker share the broker's core and never run at once: the one that
//! is not measured sleeps. Every workload keeps a [`Ledger`](crate::ledger::Ledger)
//! over all of its messages, warm-up included; [`Report::checks_failed`] tells
//! whether it is clean.
//!
//! [`Report::checks_failed`]: crate::Report::checks_failed

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::BenchError;
use crate::floor::{FloorOptions, floor};
use crate::pin::Cores;
use crate::report::Report;

mod books;
mod durable;
mod end_to_end;
mod idle;
mod lane;
pub mod open;
mod patience;
mod round_trip;
mod run;
mod scale;
mod target;
mod throughput;
mod turns;

pub use open::Rate;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// All workloads of the broker, short.
    Quick,
    /// The floors alone, without a broker.
    Floor,
    /// Produce to ack, one in flight.
    RoundTrip,
    /// Producer to consumer, one in flight.
    EndToEnd,
    /// Acknowledged messages per second.
    Throughput,
    /// Produce to ack under a load that does not wait for answers.
    Open,
    /// Processor time of an adaptive broker: without work, and of a message.
    Idle,
    /// What many partitions and many connections cost.
    Scale,
    /// Produce to flushed ack, and a start on what was kept.
    Durable,
}

impl fmt::Display for Workload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Quick => "quick",
            Self::Floor => "floor",
            Self::RoundTrip => "round trip",
            Self::EndToEnd => "end to end",
            Self::Throughput => "throughput",
            Self::Open => "open loop",
            Self::Idle => "idle",
            Self::Scale => "scale",
            Self::Durable => "durable",
        })
    }
}

/// How to measure it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Bytes of body, [`PAYLOAD_BYTES_MIN`] to 4 MiB; the workload's own choice if
    /// empty.
    pub payloads: Vec<u32>,
    /// How long the whole run takes, about; the workload's own choice if not
    /// given.
    pub duration: Option<Duration>,
    /// Which broker: one in this process if not given.
    pub connect: Option<SocketAddr>,
    /// The loads of an open loop; 10 %, 50 % and 90 % of saturation if empty.
    pub rates: Vec<Rate>,
    /// The most messages on their way in an open loop; 1,024 if not given.
    pub window: Option<u32>,
    /// Connections without work; 1,000 if not given.
    pub connections: Option<u32>,
    /// Bytes of messages that nobody reads, beside which what is flushed is measured; 4 GiB
    /// if not given. The device needs four times as much.
    pub backlog_bytes: Option<u64>,
    /// How an embedded broker waits for work.
    pub idle: Idle,
    /// Where a floor writes blocks to a device, none if not given; where a broker keeps
    /// what is flushed, in a fresh directory within, the current one if not given.
    pub directory: Option<PathBuf>,
    /// Which cores; chosen by nearness if not given. A broker that runs elsewhere
    /// is where it is; its floors run on `cores.broker`.
    pub cores: Option<Cores>,
}

/// How an embedded broker waits for work while it is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Idle {
    /// It spins through every pause of a measurement.
    #[default]
    Busy,
    /// It spins for as long as it would by default, and then sleeps.
    Adaptive,
}

/// A body has room for the message's number.
pub const PAYLOAD_BYTES_MIN: u32 = 8;

/// Measures, on threads of its own, and shows its progress on standard error if
/// that is a terminal.
///
/// A broker that loses, repeats or reorders is no error of the measurement: the
/// report says so, and [`Report::checks_failed`] is true.
///
/// # Errors
/// If an option asks for the impossible, a core or the broker cannot be had, or
/// a floor fails while it runs.
pub fn run(workload: Workload, options: &Options) -> Result<Report, BenchError> {
    if workload == Workload::Floor {
        let mut floors = FloorOptions {
            cores: options.cores,
            directory: options.directory.clone(),
            ..FloorOptions::default()
        };
        if !options.payloads.is_empty() {
            floors.payloads.clone_from(&options.payloads);
        }
        if let Some(duration) = options.duration {
            floors.duration = duration;
        }
        return floor(&floors);
    }
    run::run(workload, options)
}

/// A queue that nobody else uses, also on a broker that outlives this process.
fn queue_name(workload: &str) -> String {
    /// Written and read to tell queues of one run apart: nothing hangs on it.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis();
    let process = std::process::id();
    format!("queue:/bench/{workload}-{time}-{process}-{number}")
}
