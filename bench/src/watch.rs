//! Watching the machine before, during and after a run.
//!
//! The hand-off between the two cores is measured at both ends of a run: if it
//! has changed, the host has moved a core and every other figure with it. The
//! gaps of both cores are taken before; what the host stole counts from the
//! first look to the last.

use std::time::Duration;

use crate::error::BenchError;
use crate::floor::gaps::Gaps;
use crate::floor::ring::RingFloor;
use crate::machine::CpuTimes;
use crate::pin::Cores;
use crate::report::Conditions;
use crate::units;

/// The ring's round trip may change by this factor before the cores count as
/// moved.
const MOVED: f64 = 1.5;

/// The share of time in gaps beyond which a core was not ours.
const LOST_SHARE_MAX: f64 = 0.02;

/// What was seen before a run.
#[derive(Debug)]
pub(crate) struct Watch {
    cores: Cores,
    ring_time: Duration,
    ring_before: RingFloor,
    gaps: Vec<Gaps>,
    times_before: CpuTimes,
}

impl Watch {
    /// Looks at both cores for about `ring_time` and `gaps_time`.
    ///
    /// # Errors
    /// If a thread cannot be pinned there.
    pub(crate) fn begin(
        cores: Cores,
        ring_time: Duration,
        gaps_time: Duration,
    ) -> Result<Self, BenchError> {
        let times_before = CpuTimes::read();
        Ok(Self {
            cores,
            ring_time,
            ring_before: RingFloor::measure(cores, ring_time)?,
            gaps: Gaps::measure(&[cores.client, cores.broker], gaps_time)?,
            times_before,
        })
    }

    /// Looks again and says what the machine did meanwhile, with a note for
    /// everything that spoils figures.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub(crate) fn end(self, notes: &mut Vec<String>) -> Result<Conditions, BenchError> {
        let ring_after = RingFloor::measure(self.cores, self.ring_time)?;
        notes.extend(moved_cores(&self.ring_before, &ring_after));
        notes.extend(self.gaps.iter().filter_map(busy_core));
        let watched = [self.cores.client, self.cores.broker];
        Ok(Conditions {
            ring_before: Some(self.ring_before),
            ring_after: Some(ring_after),
            stolen: CpuTimes::read().stolen_since(&self.times_before, &watched),
            gaps: self.gaps,
        })
    }
}

fn moved_cores(before: &RingFloor, after: &RingFloor) -> Option<String> {
    let ratio = after.round_trip_p50_ns / before.round_trip_p50_ns;
    (!(MOVED.recip()..=MOVED).contains(&ratio)).then(|| {
        format!(
            "the ring's round trip went from {} to {} during the run: the cores have moved or \
             were shared, so compare figures only within a round",
            units::nanoseconds(before.round_trip_p50_ns),
            units::nanoseconds(after.round_trip_p50_ns),
        )
    })
}

fn busy_core(gaps: &Gaps) -> Option<String> {
    (gaps.lost_share() > LOST_SHARE_MAX).then(|| {
        format!(
            "cpu {} was away for {} of the time it was watched: other programs or the host use \
             it, so tails and rates of this run are noise",
            gaps.cpu,
            units::percent(gaps.lost_share())
        )
    })
}
