//! The machine's own gaps: how long, and how often, a thread that does nothing
//! but read the clock is kept from reading it.
//!
//! No program on this core can have a better tail than this. Whatever a broker
//! shows beyond it is the broker's; what lies within it is the host's, the
//! kernel's, or a neighbour's.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::histogram::{Histogram, Percentiles, saturating_ns};
use crate::pin;
use crate::units;

/// A shorter time between two readings is the reading itself.
pub const GAP_NS_MIN: u64 = 1_000;

/// The lengths for which gaps are counted, in nanoseconds.
const COUNTED_NS: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// The gaps of one core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gaps {
    /// The CPU.
    pub cpu: usize,
    /// How long it was watched.
    pub watched_ns: u64,
    /// How much of that lay in gaps.
    pub lost_ns: u64,
    /// How many gaps were at least so long.
    pub at_least: Vec<GapCount>,
    /// The lengths of all gaps of [`GAP_NS_MIN`] and more.
    pub lengths: Percentiles,
}

/// How many gaps were at least so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapCount {
    /// The length.
    pub length_ns: u64,
    /// How many.
    pub gaps: u64,
}

impl Gaps {
    /// Watches all of `cpus` at once for `duration`, each on a thread of its
    /// own.
    ///
    /// # Errors
    /// If a thread cannot be pinned.
    pub fn measure(cpus: &[usize], duration: Duration) -> Result<Vec<Self>, BenchError> {
        thread::scope(|scope| {
            let watchers: Vec<_> = cpus
                .iter()
                .map(|&cpu| {
                    scope.spawn(move || {
                        pin::pin_current_thread(cpu).map(|()| Self::watch(cpu, duration))
                    })
                })
                .collect();
            watchers
                .into_iter()
                .map(|watcher| {
                    watcher.join().unwrap_or_else(|_| {
                        Err(BenchError::Panicked {
                            name: "gaps".to_owned(),
                        })
                    })
                })
                .collect()
        })
    }

    fn watch(cpu: usize, duration: Duration) -> Self {
        let mut lengths = Histogram::new();
        let mut lost_ns = 0_u64;
        let began = Instant::now();
        let deadline = began + duration;
        let mut last = began;
        while last < deadline {
            let now = Instant::now();
            let gap_ns = saturating_ns(now - last);
            if gap_ns >= GAP_NS_MIN {
                lengths.record_ns(gap_ns);
                lost_ns = lost_ns.saturating_add(gap_ns);
            }
            last = now;
        }
        Self {
            cpu,
            watched_ns: saturating_ns(last - began),
            lost_ns,
            at_least: COUNTED_NS
                .iter()
                .map(|&length_ns| GapCount {
                    length_ns,
                    gaps: lengths
                        .counts()
                        .iter_recorded()
                        .filter(|step| step.value_iterated_to() >= length_ns)
                        .map(|step| step.count_since_last_iteration())
                        .sum(),
                })
                .collect(),
            lengths: lengths.percentiles(),
        }
    }

    /// The share of time that lay in gaps.
    #[must_use]
    pub fn lost_share(&self) -> f64 {
        units::to_f64(self.lost_ns) / units::to_f64(self.watched_ns.max(1))
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "cpu {} lost {}",
            self.cpu,
            units::percent(self.lost_share())
        )?;
        let seconds = units::to_f64(self.watched_ns.max(1)) / 1e9;
        for count in self.at_least.iter().filter(|count| count.gaps > 0) {
            write!(
                formatter,
                ", >= {}: {:.1}/s",
                units::nanoseconds(units::to_f64(count.length_ns)),
                units::to_f64(count.gaps) / seconds
            )?;
        }
        write!(
            formatter,
            ", longest {}",
            units::nanoseconds_or_dash(self.lengths.max_ns)
        )
    }
}
