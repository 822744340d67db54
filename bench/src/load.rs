//! A load that was asked for, and whether and how it was carried: the results of
//! open-loop workloads.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::histogram::Percentiles;
use crate::table::{Align, Table};
use crate::units;

/// One load on one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// What it was put on: `produce to ack`, or `floor` and its kind.
    pub workload: String,
    /// Bytes of body.
    pub payload_bytes: u32,
    /// The most messages on their way.
    pub window: u64,
    /// Messages per second that were asked for.
    pub asked_msgs_per_s: f64,
    /// The same in percent of the broker's saturation in this run, if it was asked
    /// for so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub percent_of_saturation: Option<f64>,
    /// Messages per second that were answered.
    pub achieved_msgs_per_s: f64,
    /// Whether that is at least 99.5 % of what was asked for. If not, there are no
    /// latencies.
    pub outcome: Outcome,
    /// From the intended time of the send to the answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response: Option<Percentiles>,
    /// From the send to the answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<Percentiles>,
    /// p50 of the response over the floor's at the same load.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ratio_p50: Option<f64>,
    /// p99 of the response over the floor's at the same load.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ratio_p99: Option<f64>,
    /// Which lines of the histogram log hold the response times.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log_tag_response: Option<String>,
    /// Which lines of the histogram log hold the service times.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log_tag_service: Option<String>,
    /// Whether its warm-up came to rest before its time was over.
    pub settled: bool,
}

/// Whether a load was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// At least 99.5 % of it.
    Carried,
    /// Less.
    Fail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Carried => "carried",
            Self::Fail => "FAIL",
        })
    }
}

impl Load {
    /// Compares with the floor under the same load. A load that one of the two did
    /// not carry is not compared.
    #[must_use]
    pub fn beside(mut self, floor: &Self) -> Self {
        if let (Some(own), Some(floor)) = (&self.response, &floor.response) {
            self.ratio_p50 = ratio(own.p50_ns, floor.p50_ns);
            self.ratio_p99 = ratio(own.p99_ns, floor.p99_ns);
        }
        self
    }

    /// p99 of the response here over that at another load.
    #[must_use]
    pub fn p99_over(&self, other: &Self) -> Option<f64> {
        ratio(self.response?.p99_ns, other.response?.p99_ns)
    }
}

fn ratio(own: Option<u64>, other: Option<u64>) -> Option<f64> {
    match (own, other) {
        (Some(own), Some(other)) if other > 0 => Some(units::to_f64(own) / units::to_f64(other)),
        _ => None,
    }
}

/// Loads as people read them.
#[must_use]
pub(crate) fn table(loads: &[Load]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("open loop", Left),
        ("body", Right),
        ("asked", Right),
        ("of sat.", Right),
        ("achieved", Right),
        ("", Left),
        ("samples", Right),
        ("response p50", Right),
        ("p90", Right),
        ("p99", Right),
        ("p99.9", Right),
        ("max", Right),
        ("service p50", Right),
        ("p99", Right),
        ("x floor p50", Right),
        ("x floor p99", Right),
    ]);
    let dash = || "-".to_owned();
    for load in loads {
        let of = |times: Option<Percentiles>, get: fn(&Percentiles) -> Option<u64>| {
            units::nanoseconds_or_dash(times.as_ref().and_then(get))
        };
        let times = |ratio: Option<f64>| ratio.map_or_else(dash, |ratio| format!("{ratio:.2}"));
        table.row(vec![
            load.workload.clone(),
            units::bytes(u64::from(load.payload_bytes)),
            units::per_second(load.asked_msgs_per_s),
            load.percent_of_saturation
                .map_or_else(dash, |percent| format!("{percent} %")),
            units::per_second(load.achieved_msgs_per_s),
            load.outcome.to_string(),
            load.response
                .map_or_else(dash, |response| units::count(response.samples)),
            of(load.response, |times| times.p50_ns),
            of(load.response, |times| times.p90_ns),
            of(load.response, |times| times.p99_ns),
            of(load.response, |times| times.p999_ns),
            of(load.response, |times| times.max_ns),
            of(load.service, |times| times.p50_ns),
            of(load.service, |times| times.p99_ns),
            times(load.ratio_p50),
            times(load.ratio_p99),
        ]);
    }
    table
}
