//! What the slices of one thing have shown, together and one by one.

use std::time::SystemTime;

use crate::floor::stream::Rate;
use crate::histogram::{Histogram, Percentiles};
use crate::histogram_log::Intervals;
use crate::report::{Measurement, Mode};
use crate::units;

/// Latencies of all slices together, and the p50 of each.
#[derive(Debug, Default)]
pub(crate) struct LatencySeries {
    pub(crate) pooled: Histogram,
    /// In the order of the slices; `None` where a slice had too few samples.
    pub(crate) p50s_ns: Vec<Option<f64>>,
    intervals: Intervals,
}

impl LatencySeries {
    /// Adds a slice that began then and ends now.
    pub(crate) fn add(&mut self, slice: &Histogram, began: SystemTime) {
        self.intervals.add(slice, began);
        self.pooled.merge(slice);
        self.p50s_ns.push(slice.quantile_ns(0.5).map(units::to_f64));
    }

    /// The slices, for the histogram log.
    pub(crate) fn intervals(&self) -> &Intervals {
        &self.intervals
    }

    /// Of all slices together.
    pub(crate) fn percentiles(&self) -> Percentiles {
        self.pooled.percentiles()
    }

    /// As a result of the report.
    pub(crate) fn measurement(&self, workload: &str, payload: u32, mode: Mode) -> Measurement {
        Measurement::latency(workload, payload, mode, self.percentiles()).with_slices(&self.p50s_ns)
    }
}

/// What passed in all slices together, and the rate of each.
#[derive(Debug, Default)]
pub(crate) struct RateSeries {
    pub(crate) total: Rate,
    /// Messages per second, in the order of the slices.
    pub(crate) rates: Vec<Option<f64>>,
}

impl RateSeries {
    /// Adds a slice.
    pub(crate) fn add(&mut self, slice: &Rate) {
        self.total.add(slice);
        self.rates.push(Some(slice.msgs_per_s()));
    }

    /// As a result of the report.
    pub(crate) fn measurement(&self, workload: &str, payload: u32, mode: Mode) -> Measurement {
        Measurement::rate(workload, payload, mode, self.total).with_slices(&self.rates)
    }
}
