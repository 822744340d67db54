//! Produce to flushed ack: what a broker that keeps its messages takes beside the device.
//!
//! ```text
//!   round trips   echo | flush | flush | polling | blocking     at each payload
//!   group commit  flush | flush of a whole batch | 16 producers
//!   backlog       nothing | nothing | 4 GiB unread        round trips beside it
//!   restart       fill a journal; read it, start on it | read, start | ..
//! ```
//!
//! The device's part of the floor writes as the broker does, on the same file system: a
//! file that was zero-written, the same blocks, the same way of flushing. Its writes are
//! as large as those that the broker was seen to make. Lanes alternate there and back
//! (A B B A), and the ratio of neighbouring slices is held against a goal. Of the flush
//! there are two lanes, whose ratio is the noise.
//!
//! Everything lies in a fresh directory within the one that was asked for, and is removed
//! afterwards. Where that keeps nothing beyond the machine's power, the figures are those
//! of an exercise: the report says so, and no goal is held.

mod backlog;
mod group;
mod journal;
mod lane;
mod restart;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use courser_transport::disk::Way;

use self::group::Group;
use self::lane::{Instrument, Lane, products};
use self::restart::Restarts;
use super::lane::WarmUp;
use super::round_trip::{RoundTrip, Wait};
use super::run::{PAYLOAD_BYTES_MAX, conclude, note_what_did_not_settle, payload_out_of_range};
use super::target::Target;
use super::{Idle, Options, PAYLOAD_BYTES_MIN};
use crate::compare::{Noise, PairedRatio};
use crate::error::BenchError;
use crate::floor::durable::BLOCK_BYTES;
use crate::floor::{DurableFloor, DurableKind, RoundTripFloor, frame_bytes};
use crate::goal::{Bound, Goal};
use crate::histogram::{Histogram, Percentiles};
use crate::pin::{self, Cores};
use crate::progress::Progress;
use crate::report::{Report, RunHeader};
use crate::storage::Storage;
use crate::units;
use crate::watch::Watch;

const PAYLOADS: [u32; 2] = [64, 1024];
const DURATION: Duration = Duration::from_secs(60);

/// Passes over the lanes of a section, there and back. Three pairs of them carry an
/// interval; a run with time for more makes more.
const ROUNDS: u32 = 6;
const ROUNDS_SHORT: u32 = 3;
const SHORT: Duration = Duration::from_secs(20);

/// Lanes of the round trips at one payload, and of the group commit.
const LANES_ROUND_TRIP: u32 = 5;
const LANES_GROUP: u32 = 3;

/// Shares of the run's time.
const SHARE_ROUND_TRIP: f64 = 0.45;
const SHARE_GROUP: f64 = 0.2;
const SHARE_BACKLOG: f64 = 0.2;

/// A shorter slice is mostly opening and closing.
const SLICE_MIN: Duration = Duration::from_millis(20);

const WARM_UP: WarmUp = WarmUp {
    window: Duration::from_millis(250),
    limit: Duration::from_secs(1),
};

const CALIBRATION_SLICE: Duration = Duration::from_millis(20);

/// Bytes of a journal that a broker starts on again, for each second of the run's time.
const JOURNAL_BYTES_PER_SECOND: f64 = (20 << 20) as f64;

/// What is measured, and for how long.
pub(super) struct Plan {
    payloads: Vec<u32>,
    directory: PathBuf,
    idle: Idle,
    rounds: u32,
    slice_round_trip: Duration,
    slice_group: Duration,
    slice_backlog: Duration,
    backlog_bytes: u64,
    warm_up: WarmUp,
    journal_bytes: u64,
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
        if options.connect.is_some() {
            return refuse(
                "connect",
                "what is flushed is measured with a broker inside, on a directory of its own"
                    .to_owned(),
            );
        }
        let payloads = match &options.payloads[..] {
            [] => PAYLOADS.to_vec(),
            payloads => payloads.to_vec(),
        };
        for &payload in &payloads {
            if !(PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&payload) {
                return Err(payload_out_of_range(payload));
            }
        }
        let directory = options.directory.clone().unwrap_or_else(|| ".".into());
        if !directory.is_dir() {
            return refuse(
                "directory",
                format!("{} is no directory", directory.display()),
            );
        }
        let duration = options.duration.unwrap_or(DURATION);
        let rounds = if duration < SHORT {
            ROUNDS_SHORT
        } else {
            ROUNDS
        };
        let sizes = u32::try_from(payloads.len()).unwrap_or(u32::MAX);
        let slice = |share: f64, lanes: u32| {
            let time = duration.mul_f64(share);
            // A slice's worth of each lane is for warming up.
            time / (lanes * (2 * rounds + 1))
        };
        let slice_round_trip = slice(SHARE_ROUND_TRIP, LANES_ROUND_TRIP * sizes);
        let slice_group = slice(SHARE_GROUP, LANES_GROUP);
        // A run that is shorter takes a little longer for it.
        let slice_backlog = slice(SHARE_BACKLOG, backlog::LANES).max(SLICE_MIN);
        let backlog_bytes = options.backlog_bytes.unwrap_or(backlog::BACKLOG_BYTES);
        if backlog_bytes < backlog::BACKLOG_BYTES_MIN {
            return refuse(
                "backlog",
                format!(
                    "{} have room in memory; {} or more have none",
                    units::bytes(backlog_bytes),
                    units::bytes(backlog::BACKLOG_BYTES_MIN)
                ),
            );
        }
        let shortest = slice_round_trip.min(slice_group);
        if shortest < SLICE_MIN {
            let factor = SLICE_MIN.as_secs_f64() / shortest.as_secs_f64();
            return refuse(
                "seconds",
                format!(
                    "{:.1} s leave {} for a slice; ask for {:.0} s or more, or for fewer payloads",
                    duration.as_secs_f64(),
                    units::nanoseconds(shortest.as_secs_f64() * 1e9),
                    (duration.as_secs_f64() * factor).ceil(),
                ),
            );
        }
        let limit = WARM_UP.limit.min(shortest);
        Ok(Self {
            payloads,
            directory,
            idle: options.idle,
            rounds,
            slice_round_trip,
            slice_group,
            slice_backlog,
            backlog_bytes,
            warm_up: WarmUp {
                window: WARM_UP.window.min(limit / 2),
                limit,
            },
            journal_bytes: restart::journal_bytes(
                duration.as_secs_f64() * JOURNAL_BYTES_PER_SECOND,
            ),
            ring: duration.mul_f64(0.02).min(Duration::from_secs(1)),
            gaps: duration.mul_f64(0.04).min(Duration::from_secs(2)),
        })
    }

    fn steps(&self) -> u64 {
        let sizes = self.payloads.len() as u64;
        let lanes = u64::from(LANES_ROUND_TRIP) * sizes + u64::from(LANES_GROUP);
        lanes * (1 + 2 * u64::from(self.rounds)) + 2 + backlog::steps(self.rounds) + restart::STEPS
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanoseconds = |duration: Duration| units::nanoseconds(duration.as_secs_f64() * 1e9);
        write!(
            formatter,
            "{} rounds there and back: round trips at {} payloads in slices of {}, {} producers in \
             slices of {}; warm-up at most {} a lane; {} unread beside slices of {}; {} starts on a \
             journal of {}",
            self.rounds,
            self.payloads.len(),
            nanoseconds(self.slice_round_trip),
            group::PRODUCERS,
            nanoseconds(self.slice_group),
            nanoseconds(self.warm_up.limit),
            units::bytes(self.backlog_bytes),
            nanoseconds(self.slice_backlog),
            restart::RESTARTS,
            units::bytes(self.journal_bytes),
        )
    }
}

/// A directory of this run, which goes with it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn within(directory: &Path) -> Result<Self, BenchError> {
        let path = directory.join(format!("courser-bench-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(BenchError::file("create", &path))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed has a name that says whose it was.
        drop(std::fs::remove_dir_all(&self.path));
    }
}

/// Measures all sections. To be called on a thread that is not pinned: what the brokers
/// start besides their shards inherits the mask.
///
/// # Errors
/// See [`super::run`].
pub(super) fn run(plan: &Plan, cores: Cores) -> Result<Report, BenchError> {
    let scratch = Scratch::within(&plan.directory)?;
    let (storage, way) = Storage::of(&scratch.path)?;
    let target = Target::keeping(&scratch.path.join("data"), cores, plan.idle)?;
    let mut header = RunHeader::now(cores);
    header.plan = plan.to_string();
    header.broker = Some(target.describe());
    header.durability = match storage.is_durable {
        true => "flushed".to_owned(),
        false => format!("memory ({} is not durable)", storage.file_system),
    };
    header.retention = Some(
        "queues, every message stored until a consumer has acknowledged it, while the clock \
         stands still"
            .to_owned(),
    );
    header.storage = Some(storage);
    let progress = Progress::new(plan.steps());
    let mut course = Course {
        plan,
        cores,
        way,
        scratch: &scratch,
        progress: &progress,
        report: Report::begun(header),
    };
    on_a_thread("bench client", || course.beside_the_device(&target))?;
    drop(target);
    // What the sections before have left would take the room of those that follow.
    let data = scratch.path.join("data");
    std::fs::remove_dir_all(&data).map_err(BenchError::file("remove", &data))?;
    let measured = course.beside_a_backlog().and_then(|()| course.restarts());
    let mut report = course.report;
    conclude(&mut report, measured)?;
    note_what_did_not_settle(&mut report);
    report.note_results_beyond_the_floor();
    Ok(report)
}

/// Does something on a thread of its own, which may be pinned.
fn on_a_thread(
    name: &str,
    work: impl FnOnce() -> Result<(), BenchError> + Send,
) -> Result<(), BenchError> {
    let name = name.to_owned();
    thread::scope(|scope| {
        thread::Builder::new()
            .name(name.clone())
            .spawn_scoped(scope, work)
            .map_err(|source| BenchError::Thread {
                name: name.clone(),
                source,
            })?
            .join()
            .map_err(|_| BenchError::Panicked { name })?
    })
}

/// What the sections have in common, and where they put what they show.
struct Course<'a> {
    plan: &'a Plan,
    cores: Cores,
    way: Way,
    scratch: &'a Scratch,
    progress: &'a Progress,
    report: Report,
}

impl Course<'_> {
    /// All sections that are measured with one broker.
    fn beside_the_device(&mut self, target: &Target) -> Result<(), BenchError> {
        pin::pin_current_thread(self.cores.client)?;
        target.rest();
        self.progress.next("ring and gaps");
        let watch = Watch::begin(self.cores, self.plan.ring, self.plan.gaps)?;
        self.progress.done();
        let payloads = &self.plan.payloads;
        let measured = payloads
            .iter()
            .try_for_each(|&payload| self.round_trips(payload, target))
            .and_then(|()| self.group(payloads[0], target));
        conclude(&mut self.report, measured)?;
        self.progress.next("ring");
        target.rest();
        self.report.conditions = watch.end(&mut self.report.notes)?;
        self.progress.done();
        Ok(())
    }

    /// One producer, one message in flight, beside an echo and a flush.
    fn round_trips(&mut self, payload: u32, target: &Target) -> Result<(), BenchError> {
        let (cores, frame) = (self.cores, frame_bytes(payload as usize));
        let (echo, _) = RoundTripFloor::calibrate(cores, frame, CALIBRATION_SLICE)?;
        let broker = |wait| {
            let workload = RoundTrip::new(target.address(), payload, wait).flushed();
            Lane::new(payload, Instrument::RoundTrip(workload, target))
        };
        let mut polling = broker(Wait::Polling);
        self.warm_up(&mut polling)?;
        let bytes = polling.batches.bytes_per_write().unwrap_or(BLOCK_BYTES);
        let mut lanes = [
            Lane::new(payload, Instrument::Echo(echo)),
            self.flushes(bytes, true)?,
            self.flushes(bytes, false)?,
            polling,
            broker(Wait::Blocking),
        ];
        for (index, lane) in lanes.iter_mut().enumerate() {
            if index != 3 {
                self.warm_up(lane)?;
            }
        }
        let measured = self.rounds(self.plan.slice_round_trip, &mut lanes);
        self.report
            .books
            .extend(lanes.iter().filter_map(Lane::books));
        measured?;
        let [echo, again, flush, polling, blocking] = &lanes;
        for floor in [echo, again, flush] {
            floor.report_latency(&mut self.report);
        }
        // One flush plus one echo: of the sum there is a median, and nothing beyond.
        let floor = Percentiles {
            samples: flush.series.percentiles().samples,
            p50_ns: flush.p50_ns().zip(echo.p50_ns()).map(|(a, b)| a + b),
            p90_ns: None,
            p99_ns: None,
            p999_ns: None,
            max_ns: None,
        };
        let sums = flush.p50s_with(echo);
        let noise = Noise::of(&again.series.p50s_ns, &flush.series.p50s_ns);
        self.keep_noise(noise);
        for lane in [polling, blocking] {
            let paired = PairedRatio::of(&lane.series.p50s_ns, &sums);
            let result = lane
                .latency()
                .with_floor_latency("a flush and an echo", &floor)
                .with_paired_ratio(paired);
            self.report.push_latency(result, &lane.series);
        }
        self.judge(
            "G13",
            "flushed ack p50 over a flush and an echo",
            payload,
            Bound::AtMost(1.25),
            PairedRatio::of(&polling.series.p50s_ns, &sums),
            noise.as_ref(),
        );
        Ok(())
    }

    /// Many producers with full windows, beside flushes of batches as theirs.
    fn group(&mut self, payload: u32, target: &Target) -> Result<(), BenchError> {
        let group = Group::new(target.address(), payload);
        let mut group = Lane::new(payload, Instrument::Group(group, target));
        self.warm_up(&mut group)?;
        let bytes = group.batches.bytes_per_write().unwrap_or(BLOCK_BYTES);
        let mut lanes = [
            self.flushes(bytes, true)?,
            self.flushes(bytes, false)?,
            group,
        ];
        for lane in &mut lanes[..2] {
            self.warm_up(lane)?;
        }
        let measured = self.rounds(self.plan.slice_group, &mut lanes);
        self.report
            .books
            .extend(lanes.iter().filter_map(Lane::books));
        measured?;
        let [again, flush, group] = &lanes;
        for floor in [again, flush] {
            floor.report_latency(&mut self.report);
            self.report.results.push(floor.rate());
        }
        let noise = Noise::of(&again.series.p50s_ns, &flush.series.p50s_ns);
        self.keep_noise(noise);
        let result = group
            .latency()
            .with_floor_latency(
                format!("a flush of {}", units::bytes(bytes.into())),
                &flush.series.percentiles(),
            )
            .with_paired_ratio(PairedRatio::of(
                &group.series.p50s_ns,
                &flush.series.p50s_ns,
            ));
        self.report.push_latency(result, &group.series);
        // What the floor would carry with as many messages in each of its writes.
        let carried = products(&flush.rates, &group.per_write);
        let paired = PairedRatio::of(&group.rates, &carried);
        self.report
            .results
            .push(group.rate().with_paired_ratio(paired));
        if let Some(messages) = group.batches.messages_per_write() {
            self.report.notes.push(format!(
                "{} producers: {messages:.0} messages and {} in a flush on average; the floor \
                 writes {} at a time",
                group::PRODUCERS,
                units::bytes(bytes.into()),
                units::bytes(bytes.into()),
            ));
        }
        self.judge(
            "G14",
            "durable messages per second over flushes per second times batch",
            payload,
            Bound::AtLeast(0.80),
            paired,
            noise.as_ref(),
        );
        self.judge(
            "G14",
            "flushed ack p50, full windows, over a flush of a batch",
            payload,
            Bound::AtMost(2.0),
            PairedRatio::of(&group.series.p50s_ns, &flush.series.p50s_ns),
            noise.as_ref(),
        );
        Ok(())
    }

    /// A broker that starts on a full journal, beside reading it.
    fn restarts(&mut self) -> Result<(), BenchError> {
        let plan = self.plan;
        let directory = self.scratch.path.join("restart");
        let mut restarts = Restarts::new(directory, self.cores, plan.idle);
        let measured = restarts.measure(plan.journal_bytes, self.progress);
        self.report.books.push(restarts.books());
        let paired = restarts.paired();
        self.report.restarts = restarts.shown();
        self.report.notes.extend(restarts.notes());
        measured?;
        let metric = "start on a journal over 2 s a GiB and twice reading it";
        let (payload, bound) = (restart::PAYLOAD_BYTES, Bound::AtMost(1.0));
        match restarts.unfit() {
            None => self.judge("G20", metric, payload, bound, paired, None),
            Some(why) => {
                let goal = Goal::skipped("G20", metric.to_owned(), payload, bound, why);
                self.report.goals.push(goal);
            }
        }
        Ok(())
    }

    /// A lane of the floor that writes as the broker does.
    fn flushes<'b>(&mut self, bytes: u32, again: bool) -> Result<Lane<'b>, BenchError> {
        let kind = match self.way {
            Way::Direct => DurableKind::Direct,
            Way::Cached => DurableKind::Cached,
        };
        let floor = match DurableFloor::start_of(kind, &self.scratch.path, bytes) {
            Err(error) if error.is_unsupported() && kind != DurableKind::Cached => {
                let note = format!("the floor's flush is fdatasync, not {kind}: {error}");
                if !self.report.notes.contains(&note) {
                    self.report.notes.push(note);
                }
                DurableFloor::start_of(DurableKind::Cached, &self.scratch.path, bytes)?
            }
            floor => floor?,
        };
        Ok(Lane::new(bytes, Instrument::Flush { floor, again }))
    }

    fn warm_up(&self, lane: &mut Lane<'_>) -> Result<(), BenchError> {
        self.progress.next(&format!("warming up: {}", lane.name()));
        lane.warm_up(self.plan.warm_up, &mut Histogram::new())?;
        self.progress.done();
        Ok(())
    }

    /// Passes over the lanes, there and back.
    fn rounds(&self, slice: Duration, lanes: &mut [Lane<'_>]) -> Result<(), BenchError> {
        let mut scratch = Histogram::new();
        let mut step = |lane: &mut Lane<'_>| {
            self.progress.next(&lane.name());
            lane.slice(slice, &mut scratch)?;
            self.progress.done();
            Ok::<(), BenchError>(())
        };
        for _ in 0..self.plan.rounds {
            lanes.iter_mut().try_for_each(&mut step)?;
            lanes.iter_mut().rev().try_for_each(&mut step)?;
        }
        Ok(())
    }

    /// Keeps the noisiest of what comparing a flush with itself has shown.
    fn keep_noise(&mut self, noise: Option<Noise>) {
        let known = &mut self.report.header.noise;
        if let Some(noise) = noise
            && known.is_none_or(|known| known.bound < noise.bound)
        {
            *known = Some(noise);
        }
    }

    /// Holds a ratio against a goal, if what was measured was a device.
    fn judge(
        &mut self,
        name: &str,
        metric: &str,
        payload: u32,
        bound: Bound,
        paired: Option<PairedRatio>,
        noise: Option<&Noise>,
    ) {
        let metric = metric.to_owned();
        let storage = self.report.header.storage.as_ref();
        let goal = match storage.filter(|storage| !storage.is_durable) {
            Some(storage) => {
                let why = format!("{} is not durable", storage.file_system);
                Goal::skipped(name, metric, payload, bound, why)
            }
            None => Goal::measured(name, metric, payload, bound, paired, noise),
        };
        self.report.goals.push(goal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn refusal(options: &Options) -> String {
        Plan::of(options).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_measured_is_refused_before_anything_starts() {
        let elsewhere = Options {
            connect: Some("127.0.0.1:1".parse().unwrap()),
            ..Options::default()
        };
        assert!(refusal(&elsewhere).starts_with("connect:"));
        let short = Options {
            duration: Some(Duration::from_millis(500)),
            ..Options::default()
        };
        assert!(refusal(&short).starts_with("seconds: 0.5 s leave"));
        let nowhere = Options {
            directory: Some("/nowhere/at/all".into()),
            ..Options::default()
        };
        assert_eq!(
            refusal(&nowhere),
            "directory: /nowhere/at/all is no directory"
        );
        let small = Options {
            payloads: vec![7],
            ..Options::default()
        };
        assert!(refusal(&small).starts_with("payload: 7 bytes"));
        let little = Options {
            backlog_bytes: Some(1 << 20),
            ..Options::default()
        };
        assert_eq!(
            refusal(&little),
            "backlog: 1 MiB have room in memory; 64 MiB or more have none"
        );
    }

    #[test]
    fn a_directory_of_a_run_goes_with_it() {
        let scratch = Scratch::within(&std::env::temp_dir()).unwrap();
        let path = scratch.path.clone();
        std::fs::write(path.join("left"), "behind").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
