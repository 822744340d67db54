//! Results as a file for programs and a page for people.
//!
//! A report is a [`RunHeader`] (what was run, where, how noisy it was), a list
//! of [`Measurement`]s, the [`Conditions`] that the machine showed meanwhile,
//! and notes. In JSON a measurement is one flat object; a field that does not
//! apply to it is absent, a percentile that its samples do not carry is `null`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::compare::{Noise, PairedRatio, Verdict, note_below_one};
use crate::cpu_use::{self, IdleUse, MessageUse};
use crate::error::BenchError;
use crate::floor::gaps::Gaps;
use crate::floor::ring::RingFloor;
use crate::floor::stream::Rate;
use crate::goal::{self, Goal};
use crate::histogram::Percentiles;
use crate::histogram_log::HistogramLog;
use crate::ledger::Ledger;
use crate::load::{self, Load};
use crate::machine::{Machine, StolenTime};
use crate::pin::{Cores, Distance};
use crate::restart::{self, Restart};
use crate::series::LatencySeries;
use crate::storage::Storage;
use crate::table::{Align, Table};
use crate::units;

/// Everything that one run has shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What was run, and where.
    pub header: RunHeader,
    /// What was measured.
    pub results: Vec<Measurement>,
    /// Loads that were asked for, where the workload is an open loop.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub loads: Vec<Load>,
    /// Processor time of a broker without work.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub idle: Vec<IdleUse>,
    /// Processor time of a message.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub messages: Vec<MessageUse>,
    /// Starts on what was kept.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub restarts: Vec<Restart>,
    /// Metrics that were held against a goal.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub goals: Vec<Goal>,
    /// The file beside this one that holds the histogram of every slice, in the
    /// interval log format of HdrHistogram.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub histogram_log: Option<String>,
    /// What is in that file.
    #[serde(skip)]
    pub histograms: HistogramLog,
    /// What the machine did meanwhile.
    pub conditions: Conditions,
    /// Whether things that have to be equal were.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub checks: Vec<Check>,
    /// Every message of every workload of the broker, and what was wrong with it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub books: Vec<Books>,
    /// What a reader has to know to use the figures.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}

impl Report {
    /// A report of a run that has shown nothing yet.
    #[must_use]
    pub fn begun(header: RunHeader) -> Self {
        Self {
            header,
            results: Vec::new(),
            loads: Vec::new(),
            idle: Vec::new(),
            messages: Vec::new(),
            restarts: Vec::new(),
            goals: Vec::new(),
            histogram_log: None,
            histograms: HistogramLog::default(),
            conditions: Conditions::default(),
            checks: Vec::new(),
            books: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a latency, and its slices to the histogram log.
    pub(crate) fn push_latency(&mut self, mut result: Measurement, series: &LatencySeries) {
        let kind = result.kind.as_deref().unwrap_or_default();
        let tag = format!(
            "{}/{kind}/{}/{}",
            result.workload, result.payload_bytes, result.mode
        );
        result.log_tag = Some(self.histograms.add(&tag, series.intervals()));
        self.results.push(result);
    }

    /// True if things that have to be equal were not, or if a message was lost,
    /// repeated, damaged or out of its order.
    #[must_use]
    pub fn checks_failed(&self) -> bool {
        let differs = |check: &Check| check.verdict == Verdict::Differs;
        self.checks.iter().any(differs) || self.books.iter().any(|books| !books.ledger.is_clean())
    }

    /// Adds a note for every result that seems better than its floor: such a
    /// ratio is not to be used before somebody has explained it.
    pub fn note_results_beyond_the_floor(&mut self) {
        for result in &self.results {
            // A rate above the floor's is a time per message below it.
            let times = [result.floor.ratio_p50, result.floor.ratio.map(f64::recip)];
            for ratio in times.into_iter().flatten() {
                let kind = result.kind.as_deref().unwrap_or_default();
                let what = format!(
                    "{} {kind} {} ({})",
                    result.workload,
                    units::bytes(u64::from(result.payload_bytes)),
                    result.mode
                );
                self.notes
                    .extend(note_below_one(&what, ratio, self.header.noise.as_ref()));
            }
        }
    }

    /// The report as JSON, indented.
    ///
    /// # Errors
    /// If a figure cannot be written, which finite ones always can.
    pub fn to_json(&self) -> Result<String, BenchError> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Writes the report as JSON, making the directory if there is none, and beside
    /// it, as `NAME.hlog`, the histograms of every slice.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_json(&mut self, path: &Path) -> Result<(), BenchError> {
        let log = log_beside(path);
        self.histogram_log = log
            .file_name()
            .filter(|_| !self.histograms.is_empty())
            .map(|name| name.to_string_lossy().into_owned());
        let json = self.to_json()?;
        let failed = |doing: &'static str| {
            move |source| BenchError::File {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
        }
        if self.histogram_log.is_some() {
            let text = self.histograms.to_text()?;
            std::fs::write(&log, text).map_err(|source| BenchError::File {
                doing: "write",
                path: log.clone(),
                source,
            })?;
        }
        std::fs::write(path, json + "\n").map_err(failed("write"))
    }

    /// Reads a report written by [`Self::write_json`].
    ///
    /// # Errors
    /// If the file cannot be read or is no report.
    pub fn read_json(path: &Path) -> Result<Self, BenchError> {
        let text = std::fs::read_to_string(path).map_err(|source| BenchError::File {
            doing: "read",
            path: path.to_owned(),
            source,
        })?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// What was run, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunHeader {
    /// The exact command line.
    pub command: String,
    /// When the run began, in UTC.
    pub date: String,
    /// The version of this program.
    pub version: String,
    /// The machine.
    pub machine: Machine,
    /// Which cores were used.
    pub cores: Cores,
    /// What lies between the two cores.
    pub distance: Distance,
    /// What an acknowledgement means in this run: `memory` or `flushed`.
    pub durability: String,
    /// Where what is flushed lies, if anything is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub storage: Option<Storage>,
    /// The broker, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub broker: Option<String>,
    /// What becomes of the messages that were sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retention: Option<String>,
    /// What comparing a thing with itself gave in this run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub noise: Option<Noise>,
    /// How the slices lay.
    pub plan: String,
}

impl RunHeader {
    /// A header for a run that begins now, by this process, on `cores`, with
    /// memory durability.
    #[must_use]
    pub fn now(cores: Cores) -> Self {
        Self {
            command: std::env::args().collect::<Vec<_>>().join(" "),
            date: date_of(SystemTime::now()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Machine::describe(),
            distance: cores.distance(),
            cores,
            durability: "memory".to_owned(),
            storage: None,
            broker: None,
            retention: None,
            noise: None,
            plan: String::new(),
        }
    }
}

/// Who waits how at the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The measuring thread spins on its connection.
    Poll,
    /// The measuring thread sleeps until its answer is there.
    Blocking,
    /// Answers arrive on another thread or as futures.
    Async,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Poll => "poll",
            Self::Blocking => "blocking",
            Self::Async => "async",
        })
    }
}

/// One result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was done, in words: `produce to ack`, `floor round trip`.
    pub workload: String,
    /// Which of several ways of doing it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kind: Option<String>,
    /// Bytes of body.
    pub payload_bytes: u32,
    /// How the client waits.
    pub mode: Mode,
    /// How long it took, for workloads with one in flight or intended times.
    #[serde(flatten)]
    pub latency: Option<Percentiles>,
    /// How much passed, for workloads about throughput.
    #[serde(flatten)]
    pub rate: Option<RatePerSecond>,
    /// Whether its warm-up came to rest before its time was over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub settled: Option<bool>,
    /// What single slices showed.
    #[serde(flatten)]
    pub slices: SliceSummary,
    /// The floor of the same run, and how far above it this is.
    #[serde(flatten)]
    pub floor: FloorComparison,
    /// Which lines of the histogram log it was made from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log_tag: Option<String>,
}

impl Measurement {
    /// A result about latency.
    #[must_use]
    pub fn latency(
        workload: &str,
        payload_bytes: u32,
        mode: Mode,
        percentiles: Percentiles,
    ) -> Self {
        Self {
            workload: workload.to_owned(),
            kind: None,
            payload_bytes,
            mode,
            latency: Some(percentiles),
            rate: None,
            settled: None,
            slices: SliceSummary::default(),
            floor: FloorComparison::default(),
            log_tag: None,
        }
    }

    /// A result about throughput.
    #[must_use]
    pub fn rate(workload: &str, payload_bytes: u32, mode: Mode, rate: Rate) -> Self {
        Self {
            workload: workload.to_owned(),
            kind: None,
            payload_bytes,
            mode,
            latency: None,
            rate: Some(rate.into()),
            settled: None,
            slices: SliceSummary::default(),
            floor: FloorComparison::default(),
            log_tag: None,
        }
    }

    /// Says which of several kinds this is.
    #[must_use]
    pub fn of_kind(mut self, kind: impl fmt::Display) -> Self {
        self.kind = Some(kind.to_string());
        self
    }

    /// Says whether its warm-up came to rest.
    #[must_use]
    pub fn settled(mut self, settled: bool) -> Self {
        self.settled = Some(settled);
        self
    }

    /// Adds what single slices showed: p50s in nanoseconds for a latency,
    /// messages per second for a rate.
    #[must_use]
    pub fn with_slices(mut self, slices: &[Option<f64>]) -> Self {
        let mut values: Vec<f64> = slices.iter().copied().flatten().collect();
        values.sort_unstable_by(f64::total_cmp);
        self.slices.slices = Some(slices.len());
        let median = (!values.is_empty()).then(|| crate::compare::median(&values));
        if self.rate.is_some() {
            self.slices.slice_msgs_per_s_best = values.last().copied();
            self.slices.slice_msgs_per_s_median = median;
        } else {
            self.slices.slice_p50_ns_best = values.first().copied();
            self.slices.slice_p50_ns_median = median;
        }
        self
    }

    /// Compares with the floor's percentiles from the same run.
    #[must_use]
    pub fn with_floor_latency(mut self, kind: impl fmt::Display, floor: &Percentiles) -> Self {
        let Some(own) = self.latency else {
            return self;
        };
        self.floor.floor_kind = Some(kind.to_string());
        self.floor.floor_p50_ns = floor.p50_ns;
        self.floor.floor_p99_ns = floor.p99_ns;
        self.floor.ratio_p50 = ratio(own.p50_ns, floor.p50_ns);
        self.floor.ratio_p99 = ratio(own.p99_ns, floor.p99_ns);
        self
    }

    /// Compares with the floor's rate from the same run.
    #[must_use]
    pub fn with_floor_rate(mut self, kind: impl fmt::Display, floor: &Rate) -> Self {
        let Some(own) = self.rate else {
            return self;
        };
        let floor_msgs_per_s = floor.msgs_per_s();
        self.floor.floor_kind = Some(kind.to_string());
        self.floor.floor_msgs_per_s = Some(floor_msgs_per_s);
        self.floor.ratio = (floor_msgs_per_s > 0.0).then(|| own.msgs_per_s / floor_msgs_per_s);
        self
    }

    /// Adds the ratio of paired slices, with its interval.
    #[must_use]
    pub fn with_paired_ratio(mut self, paired: Option<PairedRatio>) -> Self {
        self.floor.paired = paired;
        self
    }
}

fn ratio(own: Option<u64>, floor: Option<u64>) -> Option<f64> {
    match (own, floor) {
        (Some(own), Some(floor)) if floor > 0 => Some(units::to_f64(own) / units::to_f64(floor)),
        _ => None,
    }
}

/// A throughput.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RatePerSecond {
    /// Messages per second.
    pub msgs_per_s: f64,
    /// Bytes on the wire per second, headers included.
    pub bytes_per_s: f64,
}

impl From<Rate> for RatePerSecond {
    fn from(rate: Rate) -> Self {
        Self {
            msgs_per_s: rate.msgs_per_s(),
            bytes_per_s: rate.bytes_per_s(),
        }
    }
}

/// What single slices of a run showed. The best is what the machine can do,
/// the median what it mostly does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SliceSummary {
    /// How many there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slices: Option<usize>,
    /// The lowest p50 of a slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_p50_ns_best: Option<f64>,
    /// The median of the slices' p50s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_p50_ns_median: Option<f64>,
    /// The highest rate of a slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_msgs_per_s_best: Option<f64>,
    /// The median of the slices' rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_msgs_per_s_median: Option<f64>,
}

/// How a result stands to the floor of the same run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FloorComparison {
    /// Which kind of floor was the best here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_kind: Option<String>,
    /// The floor's median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_p50_ns: Option<u64>,
    /// The floor's p99.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_p99_ns: Option<u64>,
    /// Own p50 over the floor's: 1 is the floor, less needs an explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_p50: Option<f64>,
    /// Own p99 over the floor's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_p99: Option<f64>,
    /// The floor's rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_msgs_per_s: Option<f64>,
    /// Own rate over the floor's: 1 is the floor, more needs an explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The ratio from pairs of neighbouring slices, with its interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paired: Option<PairedRatio>,
}

/// What the machine did while we measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// The hand-off between the cores before the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_before: Option<RingFloor>,
    /// The same after it: another figure says that the host has moved a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_after: Option<RingFloor>,
    /// The gaps in which a core did nothing for us.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gaps>,
    /// What the host gave to others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stolen: Vec<StolenTime>,
}

/// Two things that have to be equal, compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was compared with what.
    pub what: String,
    /// The payload.
    pub payload_bytes: u32,
    /// The ratio of the two.
    pub compared: PairedRatio,
    /// The noise of the same run and payload.
    pub noise: Noise,
    /// What that shows.
    pub verdict: Verdict,
}

impl fmt::Display for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} at {}: {} (ratio {}; A/A {}, tolerance {})",
            self.what,
            units::bytes(u64::from(self.payload_bytes)),
            self.verdict,
            self.compared,
            self.noise.same_with_same,
            units::percent(self.noise.tolerance()),
        )
    }
}

/// Every message of one workload at one payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// What was done.
    pub workload: String,
    /// Bytes of body.
    pub payload_bytes: u32,
    /// How the client waited.
    pub mode: Mode,
    /// The counts.
    #[serde(flatten)]
    pub ledger: Ledger,
}

impl fmt::Display for Books {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = &self.ledger;
        write!(
            formatter,
            "{}, {}, {}: {} sent, {} completed in order, {} received in order",
            self.workload,
            units::bytes(u64::from(self.payload_bytes)),
            self.mode,
            units::count(ledger.sent),
            units::count(ledger.completed),
            units::count(ledger.received),
        )?;
        if ledger.is_clean() {
            return formatter.write_str(", each once");
        }
        formatter.write_str("; FAILED")?;
        for (what, count) in ledger.faults.by_name() {
            if count > 0 {
                write!(formatter, "; {what}: {}", units::count(count))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.header;
        writeln!(formatter, "command   {}", header.command)?;
        writeln!(formatter, "date      {}", header.date)?;
        writeln!(formatter, "machine   {}", header.machine)?;
        writeln!(
            formatter,
            "cores     client on cpu {}, broker on cpu {} ({})",
            header.cores.client, header.cores.broker, header.distance
        )?;
        if !header.plan.is_empty() {
            writeln!(formatter, "plan      {}", header.plan)?;
        }
        if let Some(broker) = &header.broker {
            writeln!(formatter, "broker    {broker}")?;
        }
        writeln!(formatter, "acks      {}", header.durability)?;
        if let Some(storage) = &header.storage {
            writeln!(formatter, "storage   {storage}")?;
        }
        if let Some(retention) = &header.retention {
            writeln!(formatter, "kept      {retention}")?;
        }
        write!(formatter, "{}", self.conditions)?;
        if let Some(noise) = &header.noise {
            writeln!(
                formatter,
                "noise     same with same {}; nine of ten slice pairs within {}; \
                 differences below {} are none",
                noise.same_with_same,
                units::percent(noise.slice_spread),
                units::percent(noise.tolerance()),
            )?;
        }
        for table in [
            latency_table(&self.results),
            throughput_table(&self.results),
            load::table(&self.loads),
            cpu_use::idle_table(&self.idle),
            cpu_use::message_table(&self.messages),
            restart::table(&self.restarts),
            goal::table(&self.goals),
        ] {
            if !table.is_empty() {
                write!(formatter, "\n{table}")?;
            }
        }
        if !(self.checks.is_empty() && self.books.is_empty() && self.notes.is_empty()) {
            writeln!(formatter)?;
        }
        for books in &self.books {
            writeln!(formatter, "messages  {books}")?;
        }
        for check in &self.checks {
            writeln!(formatter, "check     {check}")?;
        }
        for note in &self.notes {
            writeln!(formatter, "note      {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ring) = &self.ring_before {
            writeln!(formatter, "ring      before: {ring}")?;
        }
        if let Some(ring) = &self.ring_after {
            writeln!(formatter, "ring      after:  {ring}")?;
        }
        for gaps in &self.gaps {
            writeln!(formatter, "gaps      {gaps}")?;
        }
        if !self.stolen.is_empty() {
            let stolen: Vec<String> = self
                .stolen
                .iter()
                .map(|stolen| format!("cpu {} {}", stolen.cpu, units::percent(stolen.share)))
                .collect();
            writeln!(formatter, "stolen    {}", stolen.join(", "))?;
        }
        Ok(())
    }
}

fn latency_table(results: &[Measurement]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("workload", Left),
        ("kind", Left),
        ("body", Right),
        ("mode", Left),
        ("samples", Right),
        ("best p50", Right),
        ("median p50", Right),
        ("p50", Right),
        ("p90", Right),
        ("p99", Right),
        ("p99.9", Right),
        ("max", Right),
        ("x floor p50", Right),
        ("x floor p99", Right),
    ]);
    for result in results {
        let Some(latency) = &result.latency else {
            continue;
        };
        let slices = &result.slices;
        let of_slices = |value: Option<f64>| value.map_or_else(dash, units::nanoseconds);
        table.row(vec![
            result.workload.clone(),
            result.kind.clone().unwrap_or_default(),
            units::bytes(u64::from(result.payload_bytes)),
            result.mode.to_string(),
            units::count(latency.samples),
            of_slices(slices.slice_p50_ns_best),
            of_slices(slices.slice_p50_ns_median),
            units::nanoseconds_or_dash(latency.p50_ns),
            units::nanoseconds_or_dash(latency.p90_ns),
            units::nanoseconds_or_dash(latency.p99_ns),
            units::nanoseconds_or_dash(latency.p999_ns),
            units::nanoseconds_or_dash(latency.max_ns),
            times(result.floor.ratio_p50),
            times(result.floor.ratio_p99),
        ]);
    }
    table
}

fn throughput_table(results: &[Measurement]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("workload", Left),
        ("kind", Left),
        ("body", Right),
        ("mode", Left),
        ("best msgs", Right),
        ("median msgs", Right),
        ("msgs", Right),
        ("bytes", Right),
        ("x floor", Right),
    ]);
    for result in results {
        let Some(rate) = &result.rate else {
            continue;
        };
        let slices = &result.slices;
        let of_slices = |value: Option<f64>| value.map_or_else(dash, units::per_second);
        table.row(vec![
            result.workload.clone(),
            result.kind.clone().unwrap_or_default(),
            units::bytes(u64::from(result.payload_bytes)),
            result.mode.to_string(),
            of_slices(slices.slice_msgs_per_s_best),
            of_slices(slices.slice_msgs_per_s_median),
            units::per_second(rate.msgs_per_s),
            units::bytes_per_second(rate.bytes_per_s),
            times(result.floor.ratio),
        ]);
    }
    table
}

fn dash() -> String {
    "-".to_owned()
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(dash, |ratio| format!("{ratio:.2}"))
}

/// The histogram log of a report: `rtt.hlog` for `rtt.json`, and for other names the
/// name with the ending added, so that two reports never share one.
fn log_beside(report: &Path) -> PathBuf {
    let mut name = match report.extension() {
        Some(ending) if ending == "json" => report.with_extension(""),
        _ => report.to_owned(),
    }
    .into_os_string();
    name.push(".hlog");
    name.into()
}

/// `2026-11-21T22:10:05Z`. A clock before 1970 counts as 1970.
fn date_of(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days, for years that begin in March, so that
    // the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::histogram::Histogram;

    fn percentiles(samples: u64, latency_ns: u64) -> Percentiles {
        let mut histogram = Histogram::new();
        for _ in 0..samples {
            histogram.record_ns(latency_ns);
        }
        histogram.percentiles()
    }

    fn fields(measurement: &Measurement) -> Vec<String> {
        let value = serde_json::to_value(measurement).unwrap();
        value.as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn a_latency_is_one_flat_object_and_null_where_samples_are_too_few() {
        let floor = percentiles(20_000, 10_000);
        let result =
            Measurement::latency("produce to ack", 64, Mode::Poll, percentiles(500, 13_000))
                .with_floor_latency("spin", &floor);
        let value = serde_json::to_value(&result).unwrap();
        assert_eq!(value["workload"], "produce to ack");
        assert_eq!(value["payload_bytes"], 64);
        assert_eq!(value["mode"], "poll");
        assert_eq!(value["samples"], 500);
        assert!(value["p50_ns"].is_u64() && value["max_ns"].is_u64());
        for unknown in ["p90_ns", "p99_ns", "p999_ns"] {
            assert!(value.get(unknown).unwrap().is_null(), "{unknown}");
        }
        assert!(value["floor_p50_ns"].is_u64() && value["floor_p99_ns"].is_u64());
        assert!((value["ratio_p50"].as_f64().unwrap() - 1.3).abs() < 0.01);
        for absent in [
            "msgs_per_s",
            "bytes_per_s",
            "floor_msgs_per_s",
            "ratio",
            "ratio_p99",
        ] {
            assert!(value.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_rate_has_no_percentiles_and_its_own_floor() {
        let rate = |messages| Rate {
            messages,
            bytes: messages * 176,
            elapsed: Duration::from_secs(1),
        };
        let result = Measurement::rate("stream", 64, Mode::Async, rate(600))
            .with_floor_rate("spin", &rate(1_000));
        let value = serde_json::to_value(&result).unwrap();
        assert_eq!(value["msgs_per_s"], 600.0);
        assert_eq!(value["bytes_per_s"], 105_600.0);
        assert_eq!(value["floor_msgs_per_s"], 1_000.0);
        assert_eq!(value["ratio"], 0.6);
        let names = fields(&result);
        assert!(!names.iter().any(|name| name.ends_with("_ns")), "{names:?}");
    }

    #[test]
    fn a_measurement_reads_back_as_it_was_written() {
        let results = [
            Measurement::latency("produce to ack", 64, Mode::Poll, percentiles(300, 9_000))
                .of_kind("spin")
                .with_slices(&[Some(9.0), None, Some(7.0)]),
            Measurement::rate("stream", 256, Mode::Poll, Rate::default()),
        ];
        for result in results {
            let json = serde_json::to_string(&result).unwrap();
            assert_eq!(serde_json::from_str::<Measurement>(&json).unwrap(), result);
        }
    }

    #[test]
    fn a_result_better_than_its_floor_gets_a_note_and_a_worse_one_does_not() {
        let cores = Cores {
            client: 0,
            broker: 1,
        };
        let rate = |messages| Rate {
            messages,
            bytes: messages,
            elapsed: Duration::from_secs(1),
        };
        let latency = |latency_ns| {
            Measurement::latency("ack", 64, Mode::Poll, percentiles(300, latency_ns))
                .with_floor_latency("spin", &percentiles(300, 10_000))
        };
        let throughput = |messages| {
            Measurement::rate("stream", 64, Mode::Poll, rate(messages))
                .with_floor_rate("spin", &rate(1_000))
        };
        let notes = |results| {
            let mut report = Report::begun(RunHeader::now(cores));
            report.results = results;
            report.note_results_beyond_the_floor();
            report.notes.len()
        };
        assert_eq!(notes(vec![latency(13_000), throughput(600)]), 0);
        assert_eq!(notes(vec![latency(7_000), throughput(1_500)]), 2);
    }

    #[test]
    fn a_message_out_of_its_place_fails_the_checks_and_is_named() {
        let books = |sequence: &[u64]| {
            let mut ledger = Ledger::new();
            for &number in sequence {
                ledger.sent();
                ledger.completed(number, true);
                ledger.received(&number.to_le_bytes(), 8);
            }
            ledger.close();
            Books {
                workload: "produce to ack".to_owned(),
                payload_bytes: 8,
                mode: Mode::Poll,
                ledger,
            }
        };
        let report = |books| {
            let mut report = Report::begun(RunHeader::now(Cores {
                client: 0,
                broker: 1,
            }));
            report.books.push(books);
            report
        };
        assert!(!report(books(&[0, 1, 2])).checks_failed());
        let swapped = report(books(&[0, 2, 1]));
        assert!(swapped.checks_failed());
        let text = swapped.to_string();
        assert!(
            text.contains("FAILED; completions out of place: 2"),
            "{text}"
        );
        let json = serde_json::to_value(&swapped.books[0]).unwrap();
        assert_eq!(json["faults"]["completions_misplaced"], 2);
    }

    #[test]
    fn reports_of_different_names_have_different_logs() {
        for (report, log) in [
            ("a/rtt.json", "a/rtt.hlog"),
            ("a/tmp.x1", "a/tmp.x1.hlog"),
            ("a/tmp.x2", "a/tmp.x2.hlog"),
            ("plain", "plain.hlog"),
        ] {
            assert_eq!(log_beside(Path::new(report)), Path::new(log));
        }
    }

    #[test]
    fn slices_give_their_best_and_their_median() {
        let result = Measurement::latency("x", 64, Mode::Poll, percentiles(1, 1)).with_slices(&[
            Some(9.0),
            None,
            Some(7.0),
            Some(8.0),
        ]);
        assert_eq!(result.slices.slices, Some(4));
        assert_eq!(result.slices.slice_p50_ns_best, Some(7.0));
        assert_eq!(result.slices.slice_p50_ns_median, Some(8.0));
    }

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        let date = |seconds| date_of(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(date(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
