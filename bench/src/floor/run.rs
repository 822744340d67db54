//! All floors in one run, in alternating slices.
//!
//! ```text
//!   ring, gaps | round: A B C .. C B A | round: .. | .. | ring
//! ```
//!
//! A lane is one thing at one payload. A round passes over all lanes forwards
//! and then backwards, so a machine that grows slower during a round is as slow
//! for the first lane as for the last; all payloads lie within one round, so
//! they see the same minute of the same machine.
//!
//! The floor for a payload is the echo whose round trips have the lowest p50.
//! Two echoes of one kind run as two lanes: what comes out between them is the
//! noise (A/A). A third one, which shares no code with them, has to agree with
//! them within that noise.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use super::durable::{self, DurableFloor, DurableKind};
use super::frame::frame_bytes;
use super::independent;
use super::relay::RelayFloor;
use super::round_trip::{EchoKind, RoundTripFloor};
use super::stream::{self, StreamFloor, StreamKind};
use crate::compare::{Noise, PairedRatio};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::pin::{self, Cores};
use crate::progress::Progress;
use crate::report::{Check, Measurement, Mode, Report, RunHeader};
use crate::series::{LatencySeries, RateSeries};
use crate::units;
use crate::watch::Watch;

/// Fewer rounds do not carry an interval.
pub const ROUNDS_MIN: u32 = 6;

/// A shorter slice is mostly waking up.
const SLICE_MIN: Duration = Duration::from_millis(2);

/// The largest body that still is one frame.
const PAYLOAD_BYTES_MAX: u32 = 4 << 20;

/// What to measure.
#[derive(Debug, Clone)]
pub struct FloorOptions {
    /// Bytes of body, one floor each; 1 byte to 4 MiB.
    pub payloads: Vec<u32>,
    /// How long the whole run takes, about.
    pub duration: Duration,
    /// Passes over all lanes, there and back; at least [`ROUNDS_MIN`].
    pub rounds: u32,
    /// Which echoes to measure. [`EchoKind::Spin`] is always among them.
    pub kinds: Vec<EchoKind>,
    /// Which cores to use; chosen by nearness if not given.
    pub cores: Option<Cores>,
    /// How many bytes of whole frames the stream sends in one write.
    pub chunk_bytes: usize,
    /// Where to write blocks to a device; none are written if not given.
    pub directory: Option<PathBuf>,
}

impl Default for FloorOptions {
    fn default() -> Self {
        Self {
            payloads: vec![64, 256, 1024],
            duration: Duration::from_secs(30),
            rounds: ROUNDS_MIN,
            kinds: EchoKind::ALL.to_vec(),
            cores: None,
            chunk_bytes: stream::CHUNK_BYTES,
            directory: None,
        }
    }
}

/// Measures all floors.
///
/// Works on a thread of its own, so that the calling thread is not pinned, and
/// shows its progress on standard error if that is a terminal. A kind that the
/// machine does not offer is left out, with a word on standard error and a note
/// in the report.
///
/// # Errors
/// If an option asks for the impossible, a core cannot be had, or a floor fails
/// while it runs.
pub fn floor(options: &FloorOptions) -> Result<Report, BenchError> {
    check(options)?;
    let cores = match options.cores {
        Some(cores) => cores.check()?,
        None => Cores::choose()?,
    };
    let name = "floor client";
    thread::scope(|scope| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, || run(options, cores))
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

fn check(options: &FloorOptions) -> Result<(), BenchError> {
    let refuse = |option, problem: String| Err(BenchError::Option { option, problem });
    if options.payloads.is_empty() {
        return refuse("payloads", "name at least one size of body".to_owned());
    }
    if let Some(payload) = options
        .payloads
        .iter()
        .find(|payload| !(1..=PAYLOAD_BYTES_MAX).contains(*payload))
    {
        return refuse(
            "payloads",
            format!("{payload} bytes; a body has 1 byte to 4 MiB"),
        );
    }
    if let Some(directory) = &options.directory
        && !directory.is_dir()
    {
        return refuse(
            "directory",
            format!("{} is no directory", directory.display()),
        );
    }
    if options.rounds < ROUNDS_MIN {
        return refuse(
            "rounds",
            format!(
                "{} rounds do not carry an interval; ask for {ROUNDS_MIN} or more",
                options.rounds
            ),
        );
    }
    Ok(())
}

fn run(options: &FloorOptions, cores: Cores) -> Result<Report, BenchError> {
    pin::pin_current_thread(cores.client)?;
    let mut header = RunHeader::now(cores);
    let mut notes = Vec::new();
    let mut lanes = open_lanes(options, cores, &mut notes)?;
    let plan = Plan::of(options, lanes.len())?;
    header.plan = plan.to_string();

    let progress = Progress::new(plan.slices + 2);
    progress.next("ring and gaps");
    let watch = Watch::begin(cores, plan.ring, plan.gaps)?;
    progress.done();
    let mut scratch = Scratch::default();
    for _ in 0..options.rounds {
        for lane in lanes.iter_mut() {
            progress.next(&lane.name());
            lane.slice(cores, plan.slice, &mut scratch)?;
            progress.done();
        }
        for lane in lanes.iter_mut().rev() {
            progress.next(&lane.name());
            lane.slice(cores, plan.slice, &mut scratch)?;
            progress.done();
        }
    }
    progress.next("ring");
    let conditions = watch.end(&mut notes)?;
    drop(progress);

    let mut report = Report::begun(header);
    report.conditions = conditions;
    report.notes = notes;
    for &payload in &options.payloads {
        let lanes: Vec<&Lane> = lanes
            .iter()
            .filter(|lane| lane.payload == payload)
            .collect();
        summarise(payload, &lanes, &mut report);
    }
    summarise_durable(&lanes, &mut report);
    for lane in lanes {
        lane.end()?;
    }
    Ok(report)
}

/// How the time is divided.
struct Plan {
    rounds: u32,
    lanes: usize,
    slices: u64,
    slice: Duration,
    ring: Duration,
    gaps: Duration,
}

impl Plan {
    fn of(options: &FloorOptions, lanes: usize) -> Result<Self, BenchError> {
        let ring = options.duration.mul_f64(0.02);
        let gaps = options.duration.mul_f64(0.05);
        let slices = u64::from(options.rounds) * 2 * lanes as u64;
        let rest = options.duration.saturating_sub(2 * ring + gaps);
        let slice = rest.div_f64(units::to_f64(slices));
        if slice < SLICE_MIN {
            return Err(BenchError::Option {
                option: "seconds",
                problem: format!(
                    "{:.1} s leave {} for each of {slices} slices; ask for {:.0} s or more, \
                     or fewer payloads, kinds or rounds",
                    options.duration.as_secs_f64(),
                    units::nanoseconds(slice.as_secs_f64() * 1e9),
                    (SLICE_MIN.as_secs_f64() * units::to_f64(slices) / 0.9).ceil(),
                ),
            });
        }
        Ok(Self {
            rounds: options.rounds,
            lanes,
            slices,
            slice,
            ring,
            gaps,
        })
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} rounds over {} lanes there and back: {} slices of {}",
            self.rounds,
            self.lanes,
            self.slices,
            units::nanoseconds(self.slice.as_secs_f64() * 1e9)
        )
    }
}

/// Two histograms that every slice uses anew.
#[derive(Default)]
struct Scratch {
    first: Histogram,
    second: Histogram,
}

/// One thing at one payload, with what it has shown so far.
struct Lane {
    payload: u32,
    instrument: Instrument,
}

enum Instrument {
    Echo {
        floor: RoundTripFloor,
        series: LatencySeries,
        /// The second of two of one kind, there to be compared with the first.
        again: bool,
    },
    Independent {
        series: LatencySeries,
    },
    Relay {
        floor: Box<RelayFloor>,
        to_consumer: LatencySeries,
        to_ack: LatencySeries,
    },
    Stream {
        floor: StreamFloor,
        series: RateSeries,
    },
    Durable {
        floor: DurableFloor,
        series: LatencySeries,
    },
}

fn open_lanes(
    options: &FloorOptions,
    cores: Cores,
    notes: &mut Vec<String>,
) -> Result<Vec<Lane>, BenchError> {
    let mut lanes = Vec::new();
    let mut absent: Vec<EchoKind> = Vec::new();
    for &payload in &options.payloads {
        let frame = frame_bytes(payload as usize);
        let mut open = |instrument| {
            lanes.push(Lane {
                payload,
                instrument,
            });
        };
        let echo = |kind, again| -> Result<Instrument, BenchError> {
            Ok(Instrument::Echo {
                floor: RoundTripFloor::start(kind, cores.broker, frame)?,
                series: LatencySeries::default(),
                again,
            })
        };
        // The three that are compared with each other are neighbours.
        open(Instrument::Independent {
            series: LatencySeries::default(),
        });
        open(echo(EchoKind::Spin, false)?);
        open(echo(EchoKind::Spin, true)?);
        for &kind in options.kinds.iter().filter(|kind| **kind != EchoKind::Spin) {
            match echo(kind, false) {
                Ok(instrument) => open(instrument),
                Err(error) if error.is_unsupported() => {
                    if !absent.contains(&kind) {
                        skipped(&kind, &error, notes);
                        absent.push(kind);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        open(Instrument::Relay {
            floor: Box::new(RelayFloor::start(cores.broker, frame)?),
            to_consumer: LatencySeries::default(),
            to_ack: LatencySeries::default(),
        });
        for kind in StreamKind::ALL {
            open(Instrument::Stream {
                floor: StreamFloor::start(kind, cores.broker, frame, options.chunk_bytes)?,
                series: RateSeries::default(),
            });
        }
    }
    if let Some(directory) = &options.directory {
        open_durable(directory, &mut lanes, notes)?;
    }
    Ok(lanes)
}

fn open_durable(
    directory: &Path,
    lanes: &mut Vec<Lane>,
    notes: &mut Vec<String>,
) -> Result<(), BenchError> {
    for kind in DurableKind::ALL {
        match DurableFloor::start(kind, directory) {
            Ok(floor) => lanes.push(Lane {
                payload: durable::BLOCK_BYTES,
                instrument: Instrument::Durable {
                    floor,
                    series: LatencySeries::default(),
                },
            }),
            Err(error) if error.is_unsupported() => skipped(&kind, &error, notes),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says what is left out and why, at once and in the report.
fn skipped(kind: &dyn std::fmt::Display, error: &BenchError, notes: &mut Vec<String>) {
    let cause =
        std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    let word = format!("skipped: {kind}: {error}{cause}");
    eprintln!("{word}");
    notes.push(word);
}

impl Lane {
    fn slice(
        &mut self,
        cores: Cores,
        duration: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), BenchError> {
        scratch.first.clear();
        scratch.second.clear();
        let began = SystemTime::now();
        match &mut self.instrument {
            Instrument::Echo { floor, series, .. } => {
                floor.slice(duration, &mut scratch.first)?;
                series.add(&scratch.first, began);
            }
            Instrument::Independent { series } => {
                let frame = frame_bytes(self.payload as usize);
                let times = independent::round_trips_ns(cores.broker, frame, duration)
                    .map_err(BenchError::socket("run the independent echo"))?;
                for &time in &times {
                    scratch.first.record_ns(time);
                }
                series.add(&scratch.first, began);
                // Its own median, found by sorting and not by the histogram.
                if let Some(p50_ns) = series.p50s_ns.last_mut() {
                    *p50_ns = times.get(times.len() / 2).copied().map(units::to_f64);
                }
            }
            Instrument::Relay {
                floor,
                to_consumer,
                to_ack,
            } => {
                floor.slice(duration, &mut scratch.first, &mut scratch.second)?;
                to_consumer.add(&scratch.first, began);
                to_ack.add(&scratch.second, began);
            }
            Instrument::Stream { floor, series } => {
                series.add(&floor.slice(duration)?);
            }
            Instrument::Durable { floor, series } => {
                floor.slice(duration, &mut scratch.first)?;
                series.add(&scratch.first, began);
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        let what = match &self.instrument {
            Instrument::Echo { floor, again, .. } => {
                let suffix = if *again { ", again" } else { "" };
                format!("{}{suffix}", floor.kind())
            }
            Instrument::Independent { .. } => "independent".to_owned(),
            Instrument::Relay { .. } => "relay".to_owned(),
            Instrument::Stream { floor, .. } => format!("stream {}", floor.kind()),
            Instrument::Durable { floor, .. } => format!("durable {}", floor.kind()),
        };
        format!("{what}, {}", units::bytes(u64::from(self.payload)))
    }

    /// Ends its server and hears what it failed with, if it did.
    fn end(self) -> Result<(), BenchError> {
        match self.instrument {
            Instrument::Echo { floor, .. } => floor.stop().map(drop),
            Instrument::Independent { .. } | Instrument::Durable { .. } => Ok(()),
            Instrument::Relay { floor, .. } => floor.stop().map(drop),
            Instrument::Stream { floor, .. } => floor.stop().map(drop),
        }
    }
}

/// Adds one payload's results, its check and its noise to the report.
fn summarise(payload: u32, lanes: &[&Lane], report: &mut Report) {
    let body = units::bytes(u64::from(payload));
    let echoes = || {
        lanes.iter().filter_map(|lane| match &lane.instrument {
            Instrument::Echo {
                floor,
                series,
                again,
            } => Some((floor.kind(), series, *again)),
            _ => None,
        })
    };
    let Some((best_kind, best)) = echoes()
        .filter(|(_, _, again)| !again)
        .map(|(kind, series, _)| (kind, series))
        .min_by_key(|(_, series)| series.pooled.quantile_ns(0.5).unwrap_or(u64::MAX))
    else {
        return;
    };
    let best_percentiles = best.percentiles();
    report.notes.push(format!(
        "the floor for a round trip of {body} is {best_kind}: p50 {}, best slice {}",
        units::nanoseconds_or_dash(best_percentiles.p50_ns),
        best.p50s_ns
            .iter()
            .copied()
            .flatten()
            .min_by(f64::total_cmp)
            .map_or_else(|| "-".to_owned(), units::nanoseconds),
    ));

    let best_stream = lanes
        .iter()
        .filter_map(|lane| match &lane.instrument {
            Instrument::Stream { floor, series } => Some((floor.kind(), &series.total)),
            _ => None,
        })
        .max_by(|left, right| f64::total_cmp(&left.1.msgs_per_s(), &right.1.msgs_per_s()));

    let against_floor = |measurement: Measurement, series: &LatencySeries| {
        measurement
            .with_floor_latency(best_kind, &best_percentiles)
            .with_paired_ratio(PairedRatio::of(&series.p50s_ns, &best.p50s_ns))
    };
    for lane in lanes {
        match &lane.instrument {
            Instrument::Echo {
                floor,
                series,
                again,
            } => {
                let suffix = if *again { " again" } else { "" };
                let measurement = series
                    .measurement("floor round trip", payload, Mode::Poll)
                    .of_kind(format!("{}{suffix}", floor.kind()));
                report.push_latency(against_floor(measurement, series), series);
            }
            Instrument::Independent { series } => {
                let measurement = series
                    .measurement("floor round trip", payload, Mode::Poll)
                    .of_kind("independent");
                report.push_latency(against_floor(measurement, series), series);
            }
            Instrument::Relay {
                to_consumer,
                to_ack,
                ..
            } => {
                for (series, to) in [(to_consumer, "to consumer"), (to_ack, "to ack")] {
                    let measurement = series
                        .measurement("floor relay", payload, Mode::Poll)
                        .of_kind(to);
                    report.push_latency(measurement, series);
                }
            }
            Instrument::Stream { floor, series } => {
                let mut measurement = series
                    .measurement("floor stream", payload, Mode::Poll)
                    .of_kind(floor.kind());
                if let Some((kind, best)) = &best_stream {
                    measurement = measurement.with_floor_rate(kind, best);
                }
                report.results.push(measurement);
            }
            Instrument::Durable { .. } => {}
        }
    }

    let spin = |wanted_again: bool| {
        echoes()
            .find(|(kind, _, again)| *kind == EchoKind::Spin && *again == wanted_again)
            .map(|(_, series, _)| series.p50s_ns.as_slice())
    };
    let independent = lanes.iter().find_map(|lane| match &lane.instrument {
        Instrument::Independent { series } => Some(series.p50s_ns.as_slice()),
        _ => None,
    });
    let noise = match (spin(false), spin(true)) {
        (Some(one), Some(other)) => Noise::of(one, other),
        _ => None,
    };
    let Some(noise) = noise else {
        report.notes.push(format!(
            "{body}: too few samples per slice to tell the noise; ask for more seconds"
        ));
        return;
    };
    if let (Some(independent), Some(spin)) = (independent, spin(false))
        && let Some(compared) = PairedRatio::of(independent, spin)
    {
        report.checks.push(Check {
            what: "independent echo against spin".to_owned(),
            payload_bytes: payload,
            verdict: noise.judge(&compared),
            compared,
            noise,
        });
    }
    // The header carries the noisiest payload: what it says holds for all.
    if report
        .header
        .noise
        .is_none_or(|known| known.bound < noise.bound)
    {
        report.header.noise = Some(noise);
    }
}

/// Adds how long a block takes to the device, the better way as the floor of both.
fn summarise_durable(lanes: &[Lane], report: &mut Report) {
    let ways = || {
        lanes.iter().filter_map(|lane| match &lane.instrument {
            Instrument::Durable { floor, series } => Some((floor.kind(), series)),
            _ => None,
        })
    };
    let Some((best_kind, best)) =
        ways().min_by_key(|(_, series)| series.pooled.quantile_ns(0.5).unwrap_or(u64::MAX))
    else {
        return;
    };
    for (kind, series) in ways() {
        let mode = match kind {
            DurableKind::Direct => Mode::Poll,
            DurableKind::Cached => Mode::Blocking,
        };
        let measurement = series
            .measurement("floor durable", durable::BLOCK_BYTES, mode)
            .of_kind(kind)
            .with_floor_latency(best_kind, &best.percentiles())
            .with_paired_ratio(PairedRatio::of(&series.p50s_ns, &best.p50s_ns));
        report.push_latency(measurement, series);
    }
}
