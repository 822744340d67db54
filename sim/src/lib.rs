//! The shards of a broker and its clients in one thread, under virtual time, with
//! faults and an oracle.
//!
//! ```text
//!   seed -> plan -> world -> trace (hash, last facts)
//!                    |  ^
//!                    v  | violation
//!                   model
//! ```
//!
//! The cast: a `plan` is what a seed draws (swarm testing: each run has a few
//! faults and extremes of its own); the `world` holds one to four shards, the door,
//! the pipes of the `network` and the peers, and plays the driver; an `actor` is the
//! real client machine with an application, a `rogue` a peer that breaks the
//! rules by hand; the `model` is the oracle, each rule a sentence in
//! [`Rule`]; the `trace` is a hash of all that happened.
//!
//! A run has three acts. In the storm, faults strike and safety is checked. In
//! the calm, faults have stopped, and within a bounded virtual time every send
//! has its outcome and every message is with every subscription, settled. Then
//! the peers leave, or the broker stops, and memory comes back.
//!
//! Everything is drawn from the seed: [`run`] twice with one seed gives one hash.
//! In some worlds the broker has disks and its power is cut, now and then right behind an
//! answer that leaves while something is being written: what was told there holds for ever.
//! Topics keep what named subscriptions have to get, and what these settled stays settled.
//! Sends that are to be in memory only, and what was seen early, may be lost, and leave
//! offsets that are never another message's. What is not here: errors of disks.

mod actor;
mod model;
mod network;
mod passing;
mod plan;
mod random;
mod report;
mod rogue;
mod trace;
mod violation;
mod world;

use std::panic::{self, AssertUnwindSafe};

pub use plan::FaultKind;
pub use report::{Line, Report};
pub use violation::{Rule, Violation};

use trace::Trace;
use world::World;

/// A run that broke a promise.
#[derive(Clone, Debug, thiserror::Error)]
#[error("COURSER_SEED={seed} {violation}")]
pub struct Failure {
    /// Which seed replays it.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// The last that happened, a line each.
    pub last: String,
}

/// Runs the world of a seed to its end.
///
/// # Errors
///
/// If a promise is broken. A panic of a machine is one, where panics unwind.
pub fn run(seed: u64) -> Result<Report, Failure> {
    run_keeping(seed, trace::KEPT)
}

/// As [`run`]; a failure shows the last `kept` things that happened.
///
/// # Errors
///
/// As [`run`].
pub fn run_keeping(seed: u64, kept: usize) -> Result<Report, Failure> {
    let mut trace = Trace::new(kept);
    let result = panic::catch_unwind(AssertUnwindSafe(|| World::new(seed).run(&mut trace)));
    let violation = match result {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(violation)) => violation,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without a text");
            Violation::new(Rule::Invariant, text.into())
        }
    };
    Err(Failure {
        seed,
        violation,
        last: trace.to_string(),
    })
}

/// Runs a seed twice and demands that both runs are one.
///
/// # Errors
///
/// If a promise is broken, or the runs differ.
pub fn run_twice(seed: u64) -> Result<Report, Failure> {
    let first = run(seed)?;
    let second = run(seed)?;
    if first == second {
        return Ok(first);
    }
    Err(Failure {
        seed,
        violation: Violation::new(
            Rule::Diverged,
            format!("{} and {}", Line(&first), Line(&second)),
        ),
        last: String::new(),
    })
}

/// Each so many seeds of a range are run twice.
pub const TWICE_EVERY: u64 = 50;

/// Runs seeds one after the other, and each fiftieth twice; `progress` is told
/// of each.
///
/// # Errors
///
/// The first that breaks a promise.
pub fn run_all(
    seeds: impl IntoIterator<Item = u64>,
    mut progress: impl FnMut(u64, &Report),
) -> Result<Report, Failure> {
    let mut sum = Report::default();
    for seed in seeds {
        let report = if seed.is_multiple_of(TWICE_EVERY) {
            run_twice(seed)?
        } else {
            run(seed)?
        };
        progress(seed, &report);
        sum.add(&report);
    }
    Ok(sum)
}
