//! One producer on a queue of a thousand partitions, sent to in turn, beside one on
//! a queue of one.
//!
//! In turn is the hardest: every message lands in another log than the one before,
//! and no two of a batch lie side by side.

use super::super::round_trip::{RoundTrip, Wait};
use super::super::throughput::{Learn, Throughput};
use super::lane::Lane;
use super::{Course, PARTITIONS};
use crate::compare::Noise;
use crate::error::BenchError;
use crate::goal::Bound;
use crate::units;

/// How many lanes there are.
pub(super) const LANES: u32 = 6;

impl Course<'_> {
    /// Measures both figures.
    ///
    /// # Errors
    /// If the broker cannot be reached, a link ends, or an outcome does not come.
    pub(super) fn partitions(&mut self) -> Result<(), BenchError> {
        let (target, payload) = (self.target, self.plan.payload);
        let sizes = [(1, " again"), (1, ""), (PARTITIONS, "")];
        let kind = |partitions: u32, suffix| match partitions {
            1 => format!("1 partition{suffix}"),
            _ => format!("{} partitions", units::count(partitions.into())),
        };
        let round_trips = sizes.map(|(partitions, suffix)| {
            let workload = RoundTrip::new(target.address(), payload, Wait::Polling);
            Lane::round_trips(kind(partitions, suffix), target, workload.over(partitions))
        });
        let throughputs = sizes.map(|(partitions, suffix)| {
            let workload = Throughput::new(target.address(), payload, Learn::Polling);
            Lane::throughput(kind(partitions, suffix), target, workload.over(partitions))
        });
        let what = format!("{} partitions over 1", units::count(PARTITIONS.into()));
        for (mut lanes, metric, bound) in [
            (round_trips, "produce to ack p50", Bound::AtMost(1.10)),
            (throughputs, "messages per second", Bound::AtLeast(0.90)),
        ] {
            self.section(&mut lanes)?;
            let [again, one, many] = &lanes;
            // Empty as it is, each of its partitions keeps memory.
            many.delete_queue()?;
            self.target.rest();
            let noise = Noise::of(again.figures(), one.figures());
            if matches!(bound, Bound::AtMost(_)) {
                self.keep_noise(noise);
            }
            let metric = format!("{metric}, {what}");
            self.judge(("G15", metric), bound, (many, one), noise.as_ref());
        }
        Ok(())
    }
}
