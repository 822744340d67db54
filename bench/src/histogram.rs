//! Latencies as a histogram, and the percentiles that it can honestly give.
//!
//! A quantile is only reported if at least [`SAMPLES_BEYOND`] samples lie
//! beyond it: p50 needs 200 samples, p99 needs 10,000 and p99.9 needs 100,000.
//! What does not reach that is `None`, a dash in a table and `null` in JSON,
//! and never a number that looks as good as its neighbours. Histograms are
//! merged by adding; percentiles are never averaged.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many samples must lie beyond a quantile for it to be reported.
pub const SAMPLES_BEYOND: u64 = 100;

/// The largest latency that is told apart; a longer one counts as this one.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

const SIGNIFICANT_DIGITS: u8 = 3;

/// Latencies between 1 ns and 60 s with three significant digits.
///
/// About 220 KiB; recording touches one counter and allocates nothing.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: hdrhistogram::Histogram<u64>,
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        let counts =
            hdrhistogram::Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS)
                .expect("the bounds are constants that hdrhistogram accepts");
        Self { counts }
    }

    /// Records one latency.
    #[inline]
    pub fn record(&mut self, latency: Duration) {
        self.record_ns(saturating_ns(latency));
    }

    /// Records one latency in nanoseconds.
    #[inline]
    pub fn record_ns(&mut self, latency_ns: u64) {
        self.counts.saturating_record(latency_ns);
    }

    /// Records one latency of so many at once.
    #[inline]
    pub fn record_many_ns(&mut self, latency_ns: u64, count: u64) {
        self.counts.saturating_record_n(latency_ns, count);
    }

    /// Adds all samples of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.counts
            .add(&other.counts)
            .expect("both histograms have the same bounds");
    }

    /// Forgets all samples, keeping the memory.
    pub fn clear(&mut self) {
        self.counts.reset();
    }

    /// The number of samples.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.counts.len()
    }

    /// The quantile `quantile` of 0 to 1 in nanoseconds, or `None` if fewer
    /// than [`SAMPLES_BEYOND`] samples lie beyond it.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        let beyond = (1.0 - quantile) * crate::units::to_f64(self.samples());
        // A millionth of a sample of slack: 1 - 0.999 is not exactly 0.001.
        if beyond + 1e-6 < crate::units::to_f64(SAMPLES_BEYOND) {
            return None;
        }
        Some(self.counts.value_at_quantile(quantile))
    }

    /// The percentiles that a report shows.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            samples: self.samples(),
            p50_ns: self.quantile_ns(0.50),
            p90_ns: self.quantile_ns(0.90),
            p99_ns: self.quantile_ns(0.99),
            p999_ns: self.quantile_ns(0.999),
            max_ns: (self.samples() > 0).then(|| self.counts.max()),
        }
    }

    /// Counters that were read from a log, in these bounds.
    #[must_use]
    pub fn of_counts(counts: &hdrhistogram::Histogram<u64>) -> Self {
        let mut histogram = Self::new();
        for value in counts.iter_recorded() {
            histogram.counts.saturating_record_n(
                value.value_iterated_to(),
                value.count_since_last_iteration(),
            );
        }
        histogram
    }

    /// The counters themselves, for logs in the interchange format of
    /// HdrHistogram.
    #[must_use]
    pub fn counts(&self) -> &hdrhistogram::Histogram<u64> {
        &self.counts
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles in nanoseconds, each `None` where the samples do not carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many latencies were recorded.
    pub samples: u64,
    /// Median; needs 200 samples.
    pub p50_ns: Option<u64>,
    /// Needs 1,000 samples.
    pub p90_ns: Option<u64>,
    /// Needs 10,000 samples.
    pub p99_ns: Option<u64>,
    /// Needs 100,000 samples.
    pub p999_ns: Option<u64>,
    /// The largest sample, which is a fact about one sample and no quantile;
    /// `None` without samples.
    pub max_ns: Option<u64>,
}

/// A duration in nanoseconds; one of more than 584 years counts as that.
#[must_use]
pub fn saturating_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_samples(samples: u64) -> Percentiles {
        let mut histogram = Histogram::new();
        for sample in 1..=samples {
            histogram.record_ns(sample);
        }
        histogram.percentiles()
    }

    #[test]
    fn a_quantile_is_none_until_a_hundred_samples_lie_beyond_it() {
        assert_eq!(with_samples(199).p50_ns, None);
        assert!(with_samples(200).p50_ns.is_some());
        assert_eq!(with_samples(999).p90_ns, None);
        assert!(with_samples(1_000).p90_ns.is_some());
        assert_eq!(with_samples(9_999).p99_ns, None);
        assert!(with_samples(10_000).p99_ns.is_some());
        assert_eq!(with_samples(99_999).p999_ns, None);
        assert!(with_samples(100_000).p999_ns.is_some());
    }

    #[test]
    fn an_empty_histogram_has_no_figures_at_all() {
        let percentiles = with_samples(0);
        assert_eq!(percentiles.samples, 0);
        assert_eq!(percentiles.p50_ns, None);
        assert_eq!(percentiles.max_ns, None);
    }

    #[test]
    fn percentiles_are_right_to_three_digits() {
        let percentiles = with_samples(100_000);
        let near = |found: Option<u64>, wanted: u64| {
            found.is_some_and(|found| found.abs_diff(wanted) * 1_000 <= wanted)
        };
        assert!(near(percentiles.p50_ns, 50_000), "{percentiles:?}");
        assert!(near(percentiles.p99_ns, 99_000), "{percentiles:?}");
        assert!(near(percentiles.p999_ns, 99_900), "{percentiles:?}");
        assert!(near(percentiles.max_ns, 100_000), "{percentiles:?}");
    }

    #[test]
    fn merging_adds_samples_and_clearing_forgets_them() {
        let mut left = Histogram::new();
        let mut right = Histogram::new();
        left.record(Duration::from_micros(10));
        right.record(Duration::from_micros(30));
        left.merge(&right);
        assert_eq!(left.samples(), 2);
        left.clear();
        assert_eq!(left.samples(), 0);
    }

    #[test]
    fn a_latency_beyond_the_range_counts_as_the_largest() {
        let mut histogram = Histogram::new();
        histogram.record(Duration::from_secs(3_600));
        assert_eq!(histogram.samples(), 1);
        assert!(histogram.percentiles().max_ns >= Some(LATENCY_NS_MAX));
    }
}
