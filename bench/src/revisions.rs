//! Two builds of the whole, broker and client, in alternating slices.
//!
//! ```text
//!   round    A  B  A'   A'  B  A       A' is A again: what differs there is noise
//!            `--'           `--'       the pairs of the ratio B / A
//!            `-----'    `------'       the pairs of the noise A' / A
//! ```
//!
//! A slice is a run of the build's own `courser bench`, in a process of its own, of
//! one workload at 64 B. Everything is compared as a time, so above 1 is slower:
//! of a rate its reciprocal.
//!
//! B has regressed in a metric if the sign-flip test, corrected for the number of
//! metrics, finds less than one chance in a hundred, if the whole interval lies
//! beyond the tolerance (2 %, or the noise if that is more), and if a second run,
//! independent of the first, says the same. It passes if the estimate lies within
//! the tolerance or below it. Everything else, and every comparison on a machine
//! whose noise is beyond [`NOISE_MAX`], is inconclusive: neither pass nor fail.

use std::fmt;

use crate::compare::{Noise, PairedRatio};
use crate::gate::Verdict;
use crate::table::{Align, Table};
use crate::units;

/// Chance alone may call a regression so often, over all metrics together.
pub const P_VALUE_MAX: f64 = 0.01;

/// Where the same build differs from itself by more, nothing is decided.
pub const NOISE_MAX: f64 = 0.10;

/// What is compared, each by the one slice that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// p50 of produce to ack, one in flight, polling.
    RoundTripPolling,
    /// p50 of produce to ack, one in flight, blocking.
    RoundTripBlocking,
    /// Time of an acknowledged message, pipelined, polling.
    MessagePolling,
    /// Time of an acknowledged message, pipelined, with listeners.
    MessageListening,
}

impl Metric {
    /// Every metric; a gate has at most five.
    pub const ALL: [Self; 4] = [
        Self::RoundTripPolling,
        Self::RoundTripBlocking,
        Self::MessagePolling,
        Self::MessageListening,
    ];

    /// The verb of `courser bench` that shows it.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::RoundTripPolling | Self::RoundTripBlocking => "rtt",
            Self::MessagePolling | Self::MessageListening => "throughput",
        }
    }

    /// In tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundTripPolling => "produce to ack, p50, polling",
            Self::RoundTripBlocking => "produce to ack, p50, blocking",
            Self::MessagePolling => "time per message, pipelined, polling",
            Self::MessageListening => "time per message, pipelined, listeners",
        }
    }

    /// Finds it in a report, in nanoseconds. `None` where the report does not have
    /// it, or had too few samples. Reads the JSON and not the type, because the
    /// other build may write fields that this one does not know.
    #[must_use]
    pub fn of(self, report: &serde_json::Value) -> Option<f64> {
        let (workload, mode) = match self {
            Self::RoundTripPolling => ("produce to ack", "poll"),
            Self::RoundTripBlocking => ("produce to ack", "blocking"),
            Self::MessagePolling => ("produce pipelined", "poll"),
            Self::MessageListening => ("produce pipelined", "async"),
        };
        let result = report["results"]
            .as_array()?
            .iter()
            .find(|result| result["workload"] == workload && result["mode"] == mode)?;
        match self {
            Self::RoundTripPolling | Self::RoundTripBlocking => result["p50_ns"].as_f64(),
            Self::MessagePolling | Self::MessageListening => result["msgs_per_s"]
                .as_f64()
                .filter(|rate| *rate > 0.0)
                .map(|rate| 1e9 / rate),
        }
    }
}

/// The figures of one metric, a slice each, of all three lanes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slices {
    /// The first build.
    pub a: Vec<Option<f64>>,
    /// The second build.
    pub b: Vec<Option<f64>>,
    /// The first build again.
    pub a_again: Vec<Option<f64>>,
}

/// What one run says about one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// B over A.
    pub ratio: PairedRatio,
    /// A over A.
    pub noise: Noise,
}

impl Comparison {
    /// From the slices of a run. `None` where there are too few pairs.
    #[must_use]
    pub fn of(slices: &Slices) -> Option<Self> {
        Some(Self {
            ratio: PairedRatio::of(&slices.b, &slices.a)?,
            noise: Noise::of(&slices.a_again, &slices.a)?,
        })
    }

    /// What it says, of so many metrics.
    #[must_use]
    pub fn standing(&self, metrics: usize) -> Standing {
        let tolerance = self.noise.tolerance();
        let corrected = self.ratio.p_value * units::to_f64(metrics as u64);
        let significant = corrected < P_VALUE_MAX;
        if significant && self.ratio.low > 1.0 + tolerance {
            Standing::Slower
        } else if significant && self.ratio.high < (1.0 + tolerance).recip() {
            Standing::Faster
        } else if tolerance > NOISE_MAX {
            Standing::TooNoisy
        } else if self.ratio.ratio <= 1.0 + tolerance {
            Standing::Same
        } else {
            Standing::Unclear
        }
    }
}

/// How B stands to A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The estimate lies within the tolerance, or below without being certain.
    Same,
    /// Certainly faster.
    Faster,
    /// Certainly slower, as far as one run can say.
    Slower,
    /// Perhaps slower: too few pairs for this question.
    Unclear,
    /// The same build differs from itself too much.
    TooNoisy,
    /// Too few slices had a figure.
    NoFigures,
}

impl Standing {
    /// What both runs together say; the second is only made if the first calls
    /// something slower.
    #[must_use]
    pub fn confirmed(self, second: Option<Self>) -> Verdict {
        match (self, second) {
            (Self::Slower, Some(Self::Slower)) => Verdict::Regression,
            (Self::Same | Self::Faster, _) => Verdict::Pass,
            _ => Verdict::Inconclusive,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Same => "same",
            Self::Faster => "FASTER",
            Self::Slower => "SLOWER",
            Self::Unclear => "unclear",
            Self::TooNoisy => "too noisy",
            Self::NoFigures => "no figures",
        })
    }
}

/// One run over all metrics.
#[derive(Debug, Clone, Default)]
pub struct Comparisons {
    /// Each metric with what was found.
    pub metrics: Vec<(Metric, Option<Comparison>)>,
}

impl Comparisons {
    /// How B stands to A in each metric.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.metrics
            .iter()
            .map(|(_, comparison)| {
                comparison.map_or(Standing::NoFigures, |comparison| {
                    comparison.standing(self.metrics.len())
                })
            })
            .collect()
    }

    /// True if something looks slower, so that a second run has to confirm it.
    #[must_use]
    pub fn needs_confirmation(&self) -> bool {
        self.standings().contains(&Standing::Slower)
    }

    /// What this run and, where it was needed, a second one say together.
    #[must_use]
    pub fn verdict(&self, second: Option<&Self>) -> Verdict {
        let confirmations = second.map(Self::standings);
        self.standings()
            .into_iter()
            .enumerate()
            .map(|(index, first)| {
                let second = confirmations
                    .as_ref()
                    .and_then(|standings| standings.get(index).copied());
                first.confirmed(second)
            })
            .max()
            .unwrap_or(Verdict::SetUpError)
    }
}

impl fmt::Display for Comparisons {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            ("B over A, above 1 is slower", Align::Left),
            ("ratio", Align::Right),
            ("95 %", Align::Left),
            ("pairs", Align::Right),
            ("p", Align::Right),
            ("A over A", Align::Right),
            ("tolerance", Align::Right),
            ("", Align::Left),
        ]);
        for ((metric, comparison), standing) in self.metrics.iter().zip(self.standings()) {
            let mut row = vec![metric.name().to_owned()];
            match comparison {
                Some(Comparison { ratio, noise }) => row.extend([
                    format!("{:.3}", ratio.ratio),
                    format!("{:.3} to {:.3}", ratio.low, ratio.high),
                    ratio.pairs.to_string(),
                    format!("{:.4}", ratio.p_value),
                    format!("{:.3}", noise.same_with_same.ratio),
                    units::percent(noise.tolerance()),
                ]),
                None => row.extend(vec!["-".to_owned(); 6]),
            }
            row.push(standing.to_string());
            table.row(row);
        }
        table.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A quiet or a noisy machine: slices around 10 µs that repeat in another order.
    fn slices(slowdown: f64, spread: f64) -> Slices {
        const COUNT: usize = 16;
        let jitter = |step: usize| -> Vec<Option<f64>> {
            (0..COUNT)
                .map(|index| {
                    let place = units::to_f64(((index * step) % COUNT) as u64)
                        / units::to_f64(COUNT as u64);
                    Some(10_000.0 * (1.0 + spread * (place - 0.5)))
                })
                .collect()
        };
        Slices {
            a: jitter(5),
            b: jitter(7)
                .into_iter()
                .map(|value| value.map(|value| value * slowdown))
                .collect(),
            a_again: jitter(3),
        }
    }

    fn comparisons(slowdown: f64, spread: f64) -> Comparisons {
        Comparisons {
            metrics: Metric::ALL
                .iter()
                .map(|metric| (*metric, Comparison::of(&slices(slowdown, spread))))
                .collect(),
        }
    }

    #[test]
    fn the_same_build_passes_and_a_slower_one_is_a_regression_once_confirmed() {
        assert_eq!(comparisons(1.0, 0.01).verdict(None), Verdict::Pass);
        let slower = comparisons(1.08, 0.01);
        assert!(slower.needs_confirmation());
        assert_eq!(slower.verdict(Some(&slower)), Verdict::Regression);
        let same = comparisons(1.0, 0.01);
        assert_eq!(slower.verdict(Some(&same)), Verdict::Inconclusive);
        assert_eq!(slower.verdict(None), Verdict::Inconclusive);
    }

    #[test]
    fn a_faster_build_passes_and_says_so() {
        let faster = comparisons(0.9, 0.01);
        assert_eq!(faster.standings(), [Standing::Faster; 4]);
        assert_eq!(faster.verdict(None), Verdict::Pass);
    }

    #[test]
    fn a_difference_below_two_percent_is_none() {
        assert_eq!(comparisons(1.015, 0.001).verdict(None), Verdict::Pass);
    }

    #[test]
    fn a_machine_that_differs_from_itself_decides_nothing() {
        let noisy = comparisons(1.0, 1.2);
        assert_eq!(noisy.standings(), [Standing::TooNoisy; 4]);
        assert_eq!(noisy.verdict(None), Verdict::Inconclusive);
    }

    #[test]
    fn too_few_slices_decide_nothing() {
        let mut few = slices(1.0, 0.01);
        few.b.truncate(3);
        assert!(Comparison::of(&few).is_none());
        let none = Comparisons {
            metrics: vec![(Metric::RoundTripPolling, None)],
        };
        assert_eq!(none.verdict(None), Verdict::Inconclusive);
        assert_eq!(Comparisons::default().verdict(None), Verdict::SetUpError);
    }

    #[test]
    fn more_metrics_ask_for_more_certainty() {
        let comparison = Comparison {
            ratio: PairedRatio {
                p_value: 0.004,
                ..Comparison::of(&slices(1.08, 0.01)).unwrap().ratio
            },
            noise: Comparison::of(&slices(1.0, 0.01)).unwrap().noise,
        };
        assert_eq!(comparison.standing(1), Standing::Slower);
        assert_ne!(comparison.standing(4), Standing::Slower);
    }

    #[test]
    fn metrics_are_found_in_a_report_and_rates_become_times() {
        let report = serde_json::json!({ "results": [
            { "workload": "floor round trip", "mode": "poll", "p50_ns": 9000 },
            { "workload": "produce to ack", "mode": "poll", "p50_ns": 12000 },
            { "workload": "produce to ack", "mode": "blocking", "p50_ns": null },
            { "workload": "produce pipelined", "mode": "poll", "msgs_per_s": 2e6, "new": {} },
        ]});
        assert_eq!(Metric::RoundTripPolling.of(&report), Some(12_000.0));
        assert_eq!(Metric::RoundTripBlocking.of(&report), None);
        assert_eq!(Metric::MessagePolling.of(&report), Some(500.0));
        assert_eq!(Metric::MessageListening.of(&report), None);
    }
}
