//! One run: a broker, its lanes and their floors, in alternating slices.
//!
//! ```text
//!   ring, gaps | section: warm-up, then rounds A B .. B A | section | .. | ring
//! ```
//!
//! A section is one workload at all payloads. A round passes over the lanes of a
//! section forwards and then backwards, so that whatever the machine does during
//! a round meets the first lane as it meets the last; floor and broker are
//! neighbours in it and their slices make the pairs of the ratio.

use std::thread;
use std::time::{Duration, Instant};

use super::lane::{Instrument, Lane, Scratch, WarmUp};
use super::target::Target;
use super::{
    Idle, Options, PAYLOAD_BYTES_MIN, Workload, durable, idle, open, round_trip, scale, throughput,
};
use crate::compare::{Noise, PairedRatio};
use crate::error::BenchError;
use crate::histogram::Percentiles;
use crate::pin::{self, Cores};
use crate::progress::Progress;
use crate::report::{Books, Measurement, Report, RunHeader};
use crate::series::{LatencySeries, RateSeries};
use crate::units;
use crate::watch::Watch;

/// Passes over the lanes of a section, there and back: two slices of each lane.
const ROUNDS: u32 = 6;

/// Fewer rounds do not carry an interval: six pairs of slices.
const ROUNDS_MIN: u32 = 3;

/// How far a section may go beyond its share of the time before it makes do with
/// fewer rounds: somebody else is using the cores then.
const OVERTIME: f64 = 1.2;

/// The largest body that still is one frame.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 4 << 20;

/// A shorter slice is mostly waking up.
const SLICE_MIN: Duration = Duration::from_millis(5);

/// What `quick` and everything else take unless asked otherwise.
const QUICK_DURATION: Duration = Duration::from_secs(40);
const DURATION: Duration = Duration::from_secs(60);

/// The quick warm-up of one lane: short windows, because it has a second at most.
const QUICK_WARM_UP: WarmUp = WarmUp {
    window: Duration::from_millis(50),
    limit: Duration::from_millis(400),
};

/// The warm-up of one lane otherwise.
const WARM_UP: WarmUp = WarmUp {
    window: Duration::from_secs(1),
    limit: Duration::from_secs(6),
};

/// Measures a workload of the broker, with its floors.
///
/// # Errors
/// See [`super::run`].
pub(super) fn run(workload: Workload, options: &Options) -> Result<Report, BenchError> {
    // Whatever is wrong with the options is said before anything starts.
    let job = Job::of(workload, options)?;
    let cores = match options.cores {
        Some(cores) => cores.check()?,
        None => Cores::choose()?,
    };
    // It starts brokers again and again, also behind what it measures pinned.
    if let Job::Durable(plan) = &job {
        return durable::run(plan, cores);
    }
    // Before this thread's child is pinned, so that the broker's are not.
    let target = match workload {
        // Busy it would take its core whole, whatever it does.
        Workload::Idle => Target::reach(options.connect, cores, Idle::Adaptive)?,
        _ => Target::reach(options.connect, cores, options.idle)?,
    };
    let second = match (&job, options.connect) {
        (Job::Scale(_), None) => Some(Target::reach(None, cores, options.idle)?),
        _ => None,
    };
    let name = "bench client";
    thread::scope(|scope| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, || match &job {
                Job::Lanes(plan) => measure(plan, cores, &target),
                Job::Open(plan) => open::run(plan, cores, &target),
                Job::Idle(plan) => idle::run(plan, cores, &target),
                Job::Scale(plan) => scale::run(plan, cores, &target, second),
                Job::Durable(_) => unreachable!("it was answered above"),
            })
            .map_err(|source| BenchError::Thread {
                name: name.to_owned(),
                source,
            })?
            .join()
            .map_err(|_| BenchError::Panicked {
                name: name.to_owned(),
            })?
    })
}

/// What a run does.
enum Job {
    Lanes(Plan),
    Open(open::Plan),
    Idle(idle::Plan),
    Scale(scale::Plan),
    Durable(durable::Plan),
}

impl Job {
    fn of(workload: Workload, options: &Options) -> Result<Self, BenchError> {
        match workload {
            Workload::Open => open::Plan::of(options).map(Self::Open),
            Workload::Idle => idle::Plan::of(options).map(Self::Idle),
            Workload::Scale => scale::Plan::of(options).map(Self::Scale),
            Workload::Durable => durable::Plan::of(options).map(Self::Durable),
            _ => Plan::of(workload, options).map(Self::Lanes),
        }
    }
}

/// What is run, in which order and for how long.
struct Plan {
    sections: Vec<Section>,
    warm_up: WarmUp,
    slice: Duration,
    ring: Duration,
    gaps: Duration,
}

/// One workload at all its payloads.
struct Section {
    workload: Workload,
    payloads: Vec<u32>,
}

impl Section {
    /// Floors included.
    fn lanes(&self) -> usize {
        let per_payload = match self.workload {
            Workload::RoundTrip => 4,
            Workload::EndToEnd => 2,
            Workload::Throughput => 3,
            Workload::Quick
            | Workload::Floor
            | Workload::Open
            | Workload::Idle
            | Workload::Scale
            | Workload::Durable => 0,
        };
        per_payload * self.payloads.len()
    }
}

impl Plan {
    fn of(workload: Workload, options: &Options) -> Result<Self, BenchError> {
        let section = |workload, defaults: &[u32]| Section {
            workload,
            payloads: if options.payloads.is_empty() {
                defaults.to_vec()
            } else {
                options.payloads.clone()
            },
        };
        let sections = match workload {
            Workload::Quick => vec![
                section(Workload::RoundTrip, &[64, 1024]),
                section(Workload::EndToEnd, &[64, 1024]),
                section(Workload::Throughput, &[64, 1024]),
            ],
            Workload::Throughput => vec![section(workload, &[64, 1024, 16 * 1024])],
            Workload::RoundTrip | Workload::EndToEnd => {
                vec![section(workload, &[64, 256, 1024])]
            }
            Workload::Floor
            | Workload::Open
            | Workload::Idle
            | Workload::Scale
            | Workload::Durable => Vec::new(),
        };
        for &payload in sections.iter().flat_map(|section| &section.payloads) {
            if !(PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&payload) {
                return Err(payload_out_of_range(payload));
            }
        }
        let quick = workload == Workload::Quick;
        let duration = options
            .duration
            .unwrap_or(if quick { QUICK_DURATION } else { DURATION });
        let lanes: usize = sections.iter().map(Section::lanes).sum();
        let lanes = u32::try_from(lanes).unwrap_or(u32::MAX);
        let mut warm_up = if quick { QUICK_WARM_UP } else { WARM_UP };
        // Of a short run at most a third is spent on warming up.
        warm_up.limit = warm_up.limit.min(duration / 3 / lanes);
        warm_up.window = warm_up.window.min(warm_up.limit / 4);
        let ring = duration.mul_f64(0.02).min(Duration::from_secs(1));
        let gaps = duration.mul_f64(0.04).min(Duration::from_secs(2));
        let spent = warm_up.limit * lanes + 2 * ring + gaps;
        let slice = duration.saturating_sub(spent) / (lanes * 2 * ROUNDS);
        if slice < SLICE_MIN {
            return Err(BenchError::Option {
                option: "seconds",
                problem: format!(
                    "{:.1} s leave {} for each slice; ask for {:.0} s or more, or for fewer \
                     payloads",
                    duration.as_secs_f64(),
                    units::nanoseconds(slice.as_secs_f64() * 1e9),
                    (SLICE_MIN * lanes * 2 * ROUNDS).as_secs_f64().ceil() * 2.0,
                ),
            });
        }
        Ok(Self {
            sections,
            warm_up,
            slice,
            ring,
            gaps,
        })
    }

    /// How long so many lanes take.
    fn share(&self, lanes: usize) -> Duration {
        let lanes = u32::try_from(lanes).unwrap_or(u32::MAX);
        (self.warm_up.limit + self.slice * 2 * ROUNDS) * lanes
    }

    /// Warm-ups and slices, for the progress bar.
    fn steps(&self) -> u64 {
        let lanes: usize = self.sections.iter().map(Section::lanes).sum();
        lanes as u64 * (1 + 2 * u64::from(ROUNDS)) + 2
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sections: Vec<String> = self
            .sections
            .iter()
            .map(|section| format!("{} over {} lanes", section.workload, section.lanes()))
            .collect();
        let nanoseconds = |duration: Duration| units::nanoseconds(duration.as_secs_f64() * 1e9);
        write!(
            formatter,
            "{}; {ROUNDS} rounds there and back in slices of {}, warm-up at most {} a lane",
            sections.join(", "),
            nanoseconds(self.slice),
            nanoseconds(self.warm_up.limit),
        )
    }
}

/// What becomes of the messages, for the report.
pub(super) fn retention() -> String {
    format!(
        "queues, every message stored until a consumer has acknowledged it: once it has come out where it \
         takes part, otherwise while the clock stands still, before {} (round trip) or every {} \
         (throughput)",
        units::bytes(round_trip::BACKLOG_BYTES as u64),
        units::bytes(throughput::BURST_BYTES as u64),
    )
}

fn measure(plan: &Plan, cores: Cores, target: &Target) -> Result<Report, BenchError> {
    pin::pin_current_thread(cores.client)?;
    let mut header = RunHeader::now(cores);
    header.plan = plan.to_string();
    header.broker = Some(target.describe());
    header.retention = Some(retention());
    target.rest();
    let progress = Progress::new(plan.steps());
    progress.next("ring and gaps");
    let watch = Watch::begin(cores, plan.ring, plan.gaps)?;
    progress.done();
    let mut report = Report::begun(header);
    for section in &plan.sections {
        let mut lanes = Vec::new();
        let measured = open(section, cores, target, &mut lanes)
            .and_then(|()| rounds(plan, target, &mut lanes, &progress));
        if let Ok(rounds) = measured
            && rounds < ROUNDS
        {
            report.notes.push(format!(
                "{}: {rounds} rounds instead of {ROUNDS}, because others used the cores",
                section.workload
            ));
        }
        close_books(&lanes, &mut report);
        if let Err(error) = measured {
            if !report.checks_failed() {
                return Err(error);
            }
            // The broker broke a promise: that is the result of this run.
            report.notes.push(format!(
                "stopped in {}: {}",
                section.workload,
                with_causes(&error)
            ));
            break;
        }
        for &payload in &section.payloads {
            let lanes = lanes.iter().filter(|lane| lane.payload == payload);
            summarise(&lanes.collect::<Vec<_>>(), &mut report);
        }
    }
    progress.next("ring");
    target.rest();
    report.conditions = watch.end(&mut report.notes)?;
    progress.done();
    note_what_did_not_settle(&mut report);
    report.note_results_beyond_the_floor();
    Ok(report)
}

/// A body that is none.
pub(super) fn payload_out_of_range(payload: u32) -> BenchError {
    BenchError::Option {
        option: "payload",
        problem: format!(
            "{payload} bytes; a body has {PAYLOAD_BYTES_MIN} bytes, which carry its number, to \
             4 MiB"
        ),
    }
}

/// Ends what was measured: a broker that broke a promise is the result of the run, and
/// any other error is one.
pub(super) fn conclude(
    report: &mut Report,
    measured: Result<(), BenchError>,
) -> Result<(), BenchError> {
    let Err(error) = measured else {
        return Ok(());
    };
    if !report.checks_failed() {
        return Err(error);
    }
    report
        .notes
        .push(format!("stopped: {}", with_causes(&error)));
    Ok(())
}

/// The error and what it says it was caused by, in one line.
fn with_causes(error: &BenchError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        text.push_str(": ");
        text.push_str(&deeper.to_string());
        cause = deeper.source();
    }
    text
}

fn open(
    section: &Section,
    cores: Cores,
    target: &Target,
    lanes: &mut Vec<Lane>,
) -> Result<(), BenchError> {
    for &payload in &section.payloads {
        let address = target.address();
        lanes.extend(match section.workload {
            Workload::RoundTrip => Lane::round_trips(payload, address, cores)?,
            Workload::EndToEnd => Lane::end_to_end(payload, address, cores)?,
            Workload::Throughput => Lane::throughputs(payload, address, cores)?,
            Workload::Quick
            | Workload::Floor
            | Workload::Open
            | Workload::Idle
            | Workload::Scale
            | Workload::Durable => Vec::new(),
        });
        target.rest();
    }
    Ok(())
}

/// Warms all lanes up and makes the rounds; returns how many it made.
fn rounds(
    plan: &Plan,
    target: &Target,
    lanes: &mut [Lane],
    progress: &Progress,
) -> Result<u32, BenchError> {
    let began = Instant::now();
    let in_time = plan.share(lanes.len()).mul_f64(OVERTIME);
    let mut scratch = Scratch::default();
    for lane in lanes.iter_mut() {
        progress.next(&format!("warming up: {}", lane.name()));
        lane.warm_up(plan.warm_up, target, &mut scratch)?;
        progress.done();
    }
    for round in 0..ROUNDS {
        if round >= ROUNDS_MIN && began.elapsed() > in_time {
            return Ok(round);
        }
        for there in [true, false] {
            let mut step = |lane: &mut Lane| {
                progress.next(&lane.name());
                lane.slice(plan.slice, target, &mut scratch)?;
                progress.done();
                Ok::<(), BenchError>(())
            };
            if there {
                lanes.iter_mut().try_for_each(&mut step)?;
            } else {
                lanes.iter_mut().rev().try_for_each(&mut step)?;
            }
        }
    }
    Ok(ROUNDS)
}

fn close_books(lanes: &[Lane], report: &mut Report) {
    for lane in lanes {
        if let Some(mut ledger) = lane.ledger() {
            ledger.close();
            report.books.push(Books {
                workload: lane.workload().to_owned(),
                payload_bytes: lane.payload,
                mode: lane.mode(),
                ledger,
            });
        }
    }
}

/// Adds the results of one workload at one payload, each broker lane beside the
/// floor of its kind.
fn summarise(lanes: &[&Lane], report: &mut Report) {
    let floor = lanes.iter().find(|lane| {
        lane.is_floor() && !matches!(lane.instrument, Instrument::Echo { again: true, .. })
    });
    let Some(floor) = floor else {
        return;
    };
    for lane in lanes {
        let of_lane = |measurement: Measurement| measurement.settled(lane.settled);
        let latency = |series: &LatencySeries| {
            of_lane(series.measurement(lane.workload(), lane.payload, lane.mode()))
        };
        let rate = |series: &RateSeries| {
            of_lane(series.measurement(lane.workload(), lane.payload, lane.mode()))
        };
        match (&lane.instrument, &floor.instrument) {
            (
                Instrument::Echo {
                    floor: echo,
                    series,
                    again,
                },
                _,
            ) => {
                let suffix = if *again { " again" } else { "" };
                report.push_latency(
                    latency(series).of_kind(format!("{}{suffix}", echo.kind())),
                    series,
                );
            }
            (
                Instrument::RoundTrip { series, .. },
                Instrument::Echo {
                    floor,
                    series: echo,
                    ..
                },
            ) => report.push_latency(beside(latency(series), series, floor.kind(), echo), series),
            (
                Instrument::Relay {
                    to_consumer,
                    to_ack,
                    ..
                },
                _,
            ) => {
                report.push_latency(latency(to_consumer).of_kind("to consumer"), to_consumer);
                report.push_latency(latency(to_ack).of_kind("to ack"), to_ack);
            }
            (
                Instrument::EndToEnd {
                    to_consumer,
                    to_ack,
                    ..
                },
                Instrument::Relay {
                    to_consumer: relay_to_consumer,
                    to_ack: relay_to_ack,
                    ..
                },
            ) => {
                for (series, relay, kind) in [
                    (to_consumer, relay_to_consumer, "to consumer"),
                    (to_ack, relay_to_ack, "to ack"),
                ] {
                    report.push_latency(
                        beside(latency(series), series, kind, relay).of_kind(kind),
                        series,
                    );
                }
            }
            (Instrument::Stream { floor, series }, _) => {
                report.results.push(rate(series).of_kind(floor.kind()));
            }
            (
                Instrument::Throughput { series, .. },
                Instrument::Stream {
                    floor,
                    series: stream,
                },
            ) => report.results.push(
                rate(series)
                    .with_floor_rate(floor.kind(), &stream.total)
                    .with_paired_ratio(PairedRatio::of(&series.rates, &stream.rates)),
            ),
            _ => {}
        }
    }
    keep_noise(lanes, report);
}

/// A latency beside the floor's of the same run.
fn beside(
    measurement: Measurement,
    series: &LatencySeries,
    kind: impl std::fmt::Display,
    floor: &LatencySeries,
) -> Measurement {
    let percentiles: Percentiles = floor.percentiles();
    measurement
        .with_floor_latency(kind, &percentiles)
        .with_paired_ratio(PairedRatio::of(&series.p50s_ns, &floor.p50s_ns))
}

/// What the floor compared with itself has shown; of several the noisiest.
fn keep_noise(lanes: &[&Lane], report: &mut Report) {
    let echo = |wanted: bool| {
        lanes.iter().find_map(|lane| match &lane.instrument {
            Instrument::Echo { series, again, .. } if *again == wanted => {
                Some(series.p50s_ns.as_slice())
            }
            _ => None,
        })
    };
    let (Some(one), Some(other)) = (echo(false), echo(true)) else {
        return;
    };
    let Some(noise) = Noise::of(one, other) else {
        return;
    };
    if report
        .header
        .noise
        .is_none_or(|known| known.bound < noise.bound)
    {
        report.header.noise = Some(noise);
    }
}

pub(super) fn note_what_did_not_settle(report: &mut Report) {
    let unsettled: Vec<String> = report
        .results
        .iter()
        .filter(|result| result.settled == Some(false))
        .map(|result| {
            format!(
                "{} {} ({})",
                result.workload,
                units::bytes(u64::from(result.payload_bytes)),
                result.mode
            )
        })
        .collect();
    if !unsettled.is_empty() {
        report.notes.push(format!(
            "not settled when its warm-up was over: {}",
            unsettled.join(", ")
        ));
    }
}
