//! What the number of partitions and of connections costs.
//!
//! ```text
//!   connections  round trips   0 idle connections | 1,000       two brokers
//!   active       256 connections, one in flight each            floor | broker
//!   partitions   round trips, bursts   1 partition | 1,000      one broker
//! ```
//!
//! Each section alternates its lanes there and back (A B B A); the ratio of
//! neighbouring slices is held against a goal. Of what the ratio is taken against
//! there are two lanes, whose ratio is the noise.
//!
//! Idle connections that came and went between slices would be what is measured, so
//! they stay, on a broker of their own beside one without any; half way through the
//! two change places, so that a difference between the brokers themselves (where
//! their memory and threads came to lie) weighs on both sides alike. The one that is
//! not measured sleeps.

mod active;
mod connections;
mod crowd;
mod lane;
mod partitions;

use std::time::Duration;

use self::lane::{Lane, Scratch};
use super::lane::WarmUp;
use super::run::{
    PAYLOAD_BYTES_MAX, conclude, note_what_did_not_settle, payload_out_of_range, retention,
};
use super::target::Target;
use super::{Options, PAYLOAD_BYTES_MIN};
use crate::compare::{Noise, PairedRatio};
use crate::descriptors;
use crate::error::BenchError;
use crate::goal::{Bound, Goal};
use crate::pin::{self, Cores};
use crate::progress::Progress;
use crate::report::{Report, RunHeader};
use crate::units;
use crate::watch::Watch;

/// What the goals speak of.
const CONNECTIONS: u32 = 1_000;
const PARTITIONS: u32 = 1_000;
const ACTIVE: u32 = 256;

/// More would be strangers to a broker with its default bounds: it lets in 4,096
/// from one address.
const CONNECTIONS_MAX: u32 = 4_000;

const PAYLOAD_BYTES: u32 = 64;
const DURATION: Duration = Duration::from_secs(60);

/// Passes over the lanes of a section, there and back; even, because of the half
/// time.
const ROUNDS: u32 = 6;

/// Of all sections.
const LANES: u32 = connections::LANES + active::LANES + partitions::LANES;

/// A shorter slice is mostly waking up.
const SLICE_MIN: Duration = Duration::from_millis(5);

const WARM_UP: WarmUp = WarmUp {
    window: Duration::from_millis(250),
    limit: Duration::from_secs(1),
};

/// What is measured, and for how long.
pub(super) struct Plan {
    payload: u32,
    connections: u32,
    warm_up: WarmUp,
    slice: Duration,
    ring: Duration,
    gaps: Duration,
}

impl Plan {
    /// Checks the options.
    ///
    /// # Errors
    /// If they ask for what cannot be measured.
    pub(super) fn of(options: &Options) -> Result<Self, BenchError> {
        let refuse = |option, problem: String| Err(BenchError::Option { option, problem });
        let payload = match options.payloads[..] {
            [] => PAYLOAD_BYTES,
            [payload] => payload,
            _ => return refuse("payload", "one size at a time".to_owned()),
        };
        if !(PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&payload) {
            return Err(payload_out_of_range(payload));
        }
        let connections = options.connections.unwrap_or(CONNECTIONS);
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            return refuse(
                "connections",
                format!("{connections}; 1 to {CONNECTIONS_MAX} can be compared with none"),
            );
        }
        let duration = options.duration.unwrap_or(DURATION);
        let limit = WARM_UP.limit.min(duration / 4 / LANES);
        let warm_up = WarmUp {
            limit,
            window: WARM_UP.window.min(limit / 4),
        };
        let ring = duration.mul_f64(0.02).min(Duration::from_secs(1));
        let gaps = duration.mul_f64(0.04).min(Duration::from_secs(2));
        let warm_ups = LANES + connections::LANES;
        let spent = warm_up.limit * warm_ups + 2 * ring + gaps;
        let slices = LANES * 2 * ROUNDS;
        let slice = duration.saturating_sub(spent) / slices;
        if slice < SLICE_MIN {
            return refuse(
                "seconds",
                format!(
                    "{:.1} s leave {} for each slice; ask for {:.0} s or more",
                    duration.as_secs_f64(),
                    units::nanoseconds(slice.as_secs_f64() * 1e9),
                    (SLICE_MIN * slices).as_secs_f64().ceil() * 2.0,
                ),
            );
        }
        Ok(Self {
            payload,
            connections,
            warm_up,
            slice,
            ring,
            gaps,
        })
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanoseconds = |duration: Duration| units::nanoseconds(duration.as_secs_f64() * 1e9);
        write!(
            formatter,
            "0 and {} idle connections, {ACTIVE} active ones, 1 and {} partitions, at {}; {LANES} lanes, {ROUNDS} \
             rounds there and back in slices of {}, warm-up at most {} a lane",
            units::count(self.connections.into()),
            units::count(PARTITIONS.into()),
            units::bytes(u64::from(self.payload)),
            nanoseconds(self.slice),
            nanoseconds(self.warm_up.limit),
        )
    }
}

/// Measures all sections, the idle connections first: on brokers that have done
/// nothing yet. `second` is the broker beside `target` that these need.
///
/// # Errors
/// See [`super::run`].
pub(super) fn run(
    plan: &Plan,
    cores: Cores,
    target: &Target,
    second: Option<Target>,
) -> Result<Report, BenchError> {
    // Before anything is measured: it is a pity to find out half way.
    let idle = second.as_ref().map_or(0, |_| {
        u64::from(plan.connections) * descriptors::PER_CONNECTION
    });
    descriptors::reserve(idle.max(active::DESCRIPTORS))?;
    pin::pin_current_thread(cores.client)?;
    let mut header = RunHeader::now(cores);
    header.plan = plan.to_string();
    let alike = match &second {
        Some(_) => "; a second one like it for idle connections",
        None => "",
    };
    header.broker = Some(target.describe() + alike);
    header.retention = Some(retention());
    target.rest();
    let steps = 2 + LANES * (1 + 2 * ROUNDS) + connections::LANES;
    let progress = Progress::new(steps.into());
    progress.next("ring and gaps");
    let watch = Watch::begin(cores, plan.ring, plan.gaps)?;
    progress.done();
    let mut course = Course {
        plan,
        cores,
        target,
        progress: &progress,
        report: Report::begun(header),
    };
    let measured = course.all(second);
    let mut report = course.report;
    conclude(&mut report, measured)?;
    progress.next("ring");
    target.rest();
    report.conditions = watch.end(&mut report.notes)?;
    progress.done();
    // As they are listed, not as they were measured.
    report.goals.sort_by(|one, other| one.name.cmp(&other.name));
    note_what_did_not_settle(&mut report);
    report.note_results_beyond_the_floor();
    Ok(report)
}

/// What the sections have in common, and where they put what they show.
struct Course<'a> {
    plan: &'a Plan,
    cores: Cores,
    target: &'a Target,
    progress: &'a Progress,
    report: Report,
}

impl Course<'_> {
    fn all(&mut self, second: Option<Target>) -> Result<(), BenchError> {
        match &second {
            Some(second) => self.connections(second)?,
            None => self.report.goals.push(connections::skipped(self.plan)),
        }
        drop(second);
        self.active()?;
        self.partitions()
    }

    /// A section: warms its lanes up, passes over them, and adds what they have shown.
    fn section(&mut self, lanes: &mut [Lane<'_>]) -> Result<(), BenchError> {
        let mut scratch = Scratch::default();
        let measured = self
            .warm_up(lanes, &mut scratch)
            .and_then(|()| self.rounds(ROUNDS, lanes, &mut scratch));
        self.add(lanes, measured.is_ok());
        measured
    }

    /// Lets each lane run unrecorded until its windows agree or its time is over.
    fn warm_up(&self, lanes: &mut [Lane<'_>], scratch: &mut Scratch) -> Result<(), BenchError> {
        for lane in lanes {
            self.progress.next(&format!("warming up: {}", lane.kind));
            lane.warm_up(self.plan.warm_up, scratch)?;
            self.progress.done();
        }
        Ok(())
    }

    /// Passes over the lanes so often, there and back.
    fn rounds(
        &self,
        rounds: u32,
        lanes: &mut [Lane<'_>],
        scratch: &mut Scratch,
    ) -> Result<(), BenchError> {
        let mut step = |lane: &mut Lane<'_>| {
            self.progress.next(&lane.kind);
            lane.slice(self.plan.slice, scratch)?;
            self.progress.done();
            Ok::<(), BenchError>(())
        };
        for _ in 0..rounds {
            lanes.iter_mut().try_for_each(&mut step)?;
            lanes.iter_mut().rev().try_for_each(&mut step)?;
        }
        Ok(())
    }

    /// Closes the books of a section and adds what its lanes have shown.
    fn add(&mut self, lanes: &[Lane<'_>], is_whole: bool) {
        for lane in lanes {
            self.report.books.extend(lane.books(self.plan.payload));
            if is_whole {
                lane.report(self.plan.payload, &mut self.report);
            }
        }
    }

    /// Keeps the noisiest of what comparing a latency with itself has shown.
    fn keep_noise(&mut self, noise: Option<Noise>) {
        let known = &mut self.report.header.noise;
        if let Some(noise) = noise
            && known.is_none_or(|known| known.bound < noise.bound)
        {
            *known = Some(noise);
        }
    }

    /// Adds a goal for the ratio of two lanes of the same kind of figure.
    fn judge(
        &mut self,
        (name, metric): (&str, String),
        bound: Bound,
        (lane, base): (&Lane<'_>, &Lane<'_>),
        noise: Option<&Noise>,
    ) {
        self.report.goals.push(Goal::measured(
            name,
            metric,
            self.plan.payload,
            bound,
            PairedRatio::of(lane.figures(), base.figures()),
            noise,
        ));
    }
}
