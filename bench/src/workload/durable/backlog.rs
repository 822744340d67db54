//! Produce to ack beside a backlog that memory has no room for.
//!
//! ```text
//!             one broker                     another one, the other's equal
//!   half      (nothing unread)               (another queue holds N bytes unread)
//!   quiet     round trips | round trips      round trips
//!   reading   round trips, and a queue       round trips, and the backlog
//!             read that is in memory         read, out of pages
//!   then      the backlog is taken out: every message, in order
//!   half      the brokers change places
//! ```
//!
//! Lanes alternate there and back (A B B A). A backlog cannot come and go between slices,
//! so it stays on a broker of its own, and half way through the two change places, so that
//! what is different about the brokers weighs on both sides alike. The one that is not
//! measured sleeps.
//!
//! The memory of both is a sixteenth of the backlog. Of lanes that read nothing but round
//! trips is timed, either: between two of them a few messages are taken, and a slice is over
//! when so many are that it is the same work on either side. The first messages of a backlog
//! lie in memory still, so they are taken before, until some come out of pages.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use courser::Durability;
use courser_core::counters::Counter;
use courser_core::limits;
use courser_transport::BrokerConfig;

use super::super::books::{Gathered, Reader, Sender};
use super::super::patience::Patience;
use super::super::queue_name;
use super::super::round_trip::{RoundTrip, Wait};
use super::super::target::Target;
use super::super::throughput::poll_burst;
use super::Course;
use crate::compare::{Noise, PairedRatio};
use crate::error::BenchError;
use crate::floor::frame_bytes;
use crate::goal::{Bound, Goal};
use crate::histogram::Histogram;
use crate::ledger::Ledger;
use crate::pin;
use crate::progress::Progress;
use crate::report::{Books, Mode};
use crate::series::LatencySeries;
use crate::units;

/// Bytes of unread messages that the goal speaks of.
pub(super) const BACKLOG_BYTES: u64 = 4 << 30;

/// Less has room in the memory of the smallest broker.
pub(super) const BACKLOG_BYTES_MIN: u64 = limits::MEMORY_MIN;

/// What the memory of a broker is of its backlog.
const MEMORY_SHARE: u64 = 16;

/// Bytes of a body, so that a page has many of them.
const PAYLOAD_BYTES: u32 = 1024;

/// Lanes whose slices last for some time: three at each durability.
pub(super) const LANES: u32 = 6;

/// The others of both, whose slices last until so much is read.
const LANES_READING: u32 = 4;

/// Filling and emptying, of each half.
const STEPS_BESIDE: u64 = 4;

/// What the goal allows.
const BOUND: Bound = Bound::AtMost(1.05);

/// Frame bytes of one burst of filling.
const BURST_BYTES: u64 = 8 << 20;

const WINDOW: u32 = 1024;

/// How long filling may take: a slow device has a smaller backlog.
const FILL_TIME: Duration = Duration::from_secs(180);

/// How long pages may go on being written when nothing is sent any more.
const CALM_TIME: Duration = Duration::from_secs(30);

/// Bytes that one slice reads of what lies unread.
const READ_BYTES_MAX: u64 = 8 << 20;

/// Of the backlog: so that all slices together read less than there is in pages.
const READ_SHARE: u64 = 64;

/// How long a slice may take for that.
const READ_TIME: Duration = Duration::from_secs(60);

/// What is taken in one go where nothing is timed.
const TAKEN_MAX: u64 = 1024;

/// Room on the device beside that for pages and journals of both brokers.
const ROOM_BESIDE: u64 = 256 << 20;

/// The memory of a broker that is to have so many bytes unread.
fn memory_beside(backlog: u64) -> u64 {
    (backlog / MEMORY_SHARE).max(limits::MEMORY_MIN)
}

/// For the progress bar.
pub(super) fn steps(rounds: u32) -> u64 {
    u64::from((LANES + LANES_READING) * 2 * rounds) + STEPS_BESIDE
}

impl Course<'_> {
    /// Round trips beside a backlog, and while it is read back. To be called on a thread
    /// that is not pinned.
    pub(super) fn beside_a_backlog(&mut self) -> Result<(), BenchError> {
        let directory = self.scratch.path.join("backlog");
        std::fs::create_dir(&directory).map_err(BenchError::file("create", &directory))?;
        let bytes = self.plan.backlog_bytes;
        let needed = room_needed(bytes);
        let free = room_in(&directory)?;
        if free < needed {
            let why = format!(
                "{} has {} MiB free, a backlog of {} takes {} MiB",
                self.plan.directory.display(),
                free >> 20,
                units::bytes(bytes),
                needed >> 20,
            );
            self.skip_backlog(bytes, &why);
            return Ok(());
        }
        let memory = memory_beside(bytes);
        let [one, other] = ["one", "other"].map(|name| {
            let adjust = |config| BrokerConfig { memory, ..config };
            Target::keeping_with(&directory.join(name), self.cores, self.plan.idle, adjust)
        });
        let brokers = [one?, other?];
        let mut section = Section::new(bytes);
        let (plan, cores, progress) = (self.plan, self.cores, self.progress);
        let measured = super::on_a_thread("bench client", || {
            pin::pin_current_thread(cores.client)?;
            let [one, other] = &brokers;
            let half = |none, beside, rounds| Half {
                none,
                beside,
                rounds,
                slice: plan.slice_backlog,
                progress,
            };
            section.half(&half(one, other, plan.rounds.div_ceil(2)))?;
            section.half(&half(other, one, plan.rounds / 2))
        });
        self.report.books.extend(section.books());
        self.report.notes.append(&mut section.notes);
        measured?;
        drop(brokers);
        std::fs::remove_dir_all(&directory).map_err(BenchError::file("remove", &directory))?;
        self.report_backlog(&section);
        Ok(())
    }

    fn report_backlog(&mut self, section: &Section) {
        let bytes = section.bytes;
        self.report.notes.push(format!(
            "backlog: {} unread beside a memory of {} MiB; {} pages were written to make room, \
             {} were read back while round trips were timed",
            units::bytes(bytes),
            memory_beside(bytes) >> 20,
            units::count(section.pages_written),
            units::count(section.pages_read),
        ));
        for level in &section.levels {
            for lane in &level.lanes {
                let result = lane
                    .series
                    .measurement(level.workload(), PAYLOAD_BYTES, Mode::Poll)
                    .of_kind(lane.load.describe(bytes));
                self.report.push_latency(result, &lane.series);
            }
        }
        if section.pages_written == 0 {
            self.skip_backlog(bytes, "all of the backlog was in memory");
            return;
        }
        for level in &section.levels {
            let [again, none, beside, from_memory, from_pages] = &level.lanes;
            let compared = |figures: fn(&Lane) -> &[Option<f64>]| {
                (
                    PairedRatio::of(figures(beside), figures(none)),
                    Noise::of(figures(again), figures(none)),
                )
            };
            let (paired, noise) = compared(Lane::p50s);
            self.keep_noise(noise);
            let [p50, calls] = level.metrics(bytes);
            self.judge("G18", &p50, PAYLOAD_BYTES, BOUND, paired, noise.as_ref());
            let (paired, noise) = compared(|lane| &lane.calls);
            self.judge("G18", &calls, PAYLOAD_BYTES, BOUND, paired, noise.as_ref());
            if let Some(paired) = PairedRatio::of(from_pages.p50s(), from_memory.p50s()) {
                self.report.notes.push(format!(
                    "{} p50 while another queue is read, out of pages over out of memory: {paired}",
                    level.ack(),
                ));
            }
        }
    }

    fn skip_backlog(&mut self, bytes: u64, why: &str) {
        for level in [Durability::Memory, Durability::Flushed].map(Level::new) {
            for metric in level.metrics(bytes) {
                let goal = Goal::skipped("G18", metric, PAYLOAD_BYTES, BOUND, why.to_owned());
                self.report.goals.push(goal);
            }
        }
    }
}

/// What of a device a backlog takes: its pages and a journal, and of both what is not yet
/// given back when the brokers change places.
fn room_needed(backlog_bytes: u64) -> u64 {
    backlog_bytes.saturating_mul(4).saturating_add(ROOM_BESIDE)
}

fn room_in(directory: &Path) -> Result<u64, BenchError> {
    let room = rustix::fs::statvfs(directory)
        .map_err(|errno| BenchError::file("ask for the room in", directory)(errno.into()))?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// What lies beside round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Nothing.
    None,
    /// The same, to be compared with it.
    NoneAgain,
    /// A backlog that nobody reads.
    Backlog,
    /// A queue that is read, and has room in memory.
    FromMemory,
    /// A backlog that is read.
    FromPages,
}

impl Load {
    fn describe(self, bytes: u64) -> String {
        match self {
            Self::None => "no backlog".to_owned(),
            Self::NoneAgain => "no backlog again".to_owned(),
            Self::Backlog => format!("{} unread", units::bytes(bytes)),
            Self::FromMemory => "reading memory".to_owned(),
            Self::FromPages => "reading pages".to_owned(),
        }
    }

    fn is_beside_backlog(self) -> bool {
        matches!(self, Self::Backlog | Self::FromPages)
    }

    fn reads(self) -> bool {
        matches!(self, Self::FromMemory | Self::FromPages)
    }
}

/// Round trips beside one load.
struct Lane {
    load: Load,
    workload: RoundTrip,
    series: LatencySeries,
    /// System calls of the broker for each message, in the order of the slices.
    calls: Vec<Option<f64>>,
}

impl Lane {
    fn p50s(&self) -> &[Option<f64>] {
        &self.series.p50s_ns
    }
}

/// All lanes at one durability.
struct Level {
    durability: Durability,
    lanes: [Lane; 5],
}

impl Level {
    fn new(durability: Durability) -> Self {
        let address = ([127, 0, 0, 1], 0).into();
        let lane = |load| {
            let workload = RoundTrip::new(address, PAYLOAD_BYTES, Wait::Polling);
            Lane {
                load,
                workload: match durability {
                    Durability::Memory => workload,
                    Durability::Flushed => workload.flushed(),
                },
                series: LatencySeries::default(),
                calls: Vec::new(),
            }
        };
        Self {
            durability,
            lanes: [
                lane(Load::NoneAgain),
                lane(Load::None),
                lane(Load::Backlog),
                lane(Load::FromMemory),
                lane(Load::FromPages),
            ],
        }
    }

    fn ack(&self) -> &'static str {
        match self.durability {
            Durability::Memory => "memory ack",
            Durability::Flushed => "flushed ack",
        }
    }

    fn workload(&self) -> &'static str {
        match self.durability {
            Durability::Memory => "backlog: produce to memory ack",
            Durability::Flushed => "backlog: produce to flushed ack",
        }
    }

    /// What is held against the goal.
    fn metrics(&self, bytes: u64) -> [String; 2] {
        ["p50", "system calls"].map(|figure| {
            format!(
                "{} {figure} beside {} unread over none",
                self.ack(),
                units::bytes(bytes)
            )
        })
    }

    /// Messages that are taken between two round trips: so that a slice reads about as much
    /// at either durability.
    fn taken_between(&self) -> u64 {
        match self.durability {
            Durability::Memory => 1,
            Durability::Flushed => 16,
        }
    }
}

/// A queue in which messages lie.
struct Stock {
    queue: String,
    ledger: Ledger,
    body: Vec<u8>,
}

impl Stock {
    fn new() -> Self {
        Self {
            queue: queue_name("backlog"),
            ledger: Ledger::new(),
            body: vec![0xA5; PAYLOAD_BYTES as usize],
        }
    }

    /// Stores messages, flushed, until there are so many; or until the time is over.
    fn fill(&mut self, messages: u64, target: &Target) -> Result<(), BenchError> {
        let ends = Instant::now() + FILL_TIME;
        let sender = Sender::open_flushed(target.address(), &self.queue, &self.ledger, WINDOW)?;
        let mut gathered = Gathered::new(&self.body);
        while self.ledger.backlog() < messages && Instant::now() < ends {
            let burst = (messages - self.ledger.backlog()).min(messages_in(BURST_BYTES));
            poll_burst(&sender, &mut gathered, burst, ends, &mut self.ledger)?;
        }
        sender.close()
    }

    /// Takes out all that is left.
    fn empty(&mut self, target: &Target) -> Result<(), BenchError> {
        let sender = Sender::open_flushed(target.address(), &self.queue, &self.ledger, WINDOW)?;
        sender.take_backlog(&self.queue, self.body.len(), &mut self.ledger)?;
        sender.close()
    }

    /// Takes messages out of memory until some come from pages.
    fn reach_pages(&mut self, target: &Target) -> Result<(), BenchError> {
        let before = target.count(Counter::PagesRead);
        let mut reader = Reader::open(target.address(), &self.queue)?;
        let ends = Instant::now() + CALM_TIME;
        loop {
            // What it counts is exact once it rests.
            target.rest();
            let is_there = target.count(Counter::PagesRead) != before;
            if is_there || self.ledger.backlog() == 0 || Instant::now() >= ends {
                return reader.close();
            }
            let left = self.ledger.backlog().saturating_sub(TAKEN_MAX);
            let mut patience = Patience::default();
            while self.ledger.backlog() > left {
                let due = self.ledger.backlog() - left;
                reader.take(due, self.body.len(), &mut self.ledger)?;
                if self.ledger.backlog() == left + due {
                    patience.look()?;
                } else {
                    patience = Patience::default();
                }
            }
        }
    }
}

fn messages_in(bytes: u64) -> u64 {
    bytes / frame_bytes(PAYLOAD_BYTES as usize) as u64
}

/// Two brokers while one of them has the backlog.
struct Half<'a> {
    none: &'a Target,
    beside: &'a Target,
    rounds: u32,
    slice: Duration,
    progress: &'a Progress,
}

/// What a pass over the lanes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Nothing of it is kept.
    WarmUp,
    There,
    Back,
}

/// What a slice has shown.
struct Shown {
    histogram: Histogram,
    began: SystemTime,
    messages: u64,
    /// System calls of the broker.
    calls: u64,
    pages_read: u64,
}

/// All levels, and what lies beside them.
struct Section {
    bytes: u64,
    levels: [Level; 2],
    backlog: Stock,
    in_memory: Stock,
    pages_written: u64,
    /// By the slices that read them.
    pages_read: u64,
    notes: Vec<String>,
}

impl Section {
    fn new(bytes: u64) -> Self {
        Self {
            bytes,
            levels: [Durability::Memory, Durability::Flushed].map(Level::new),
            backlog: Stock::new(),
            in_memory: Stock::new(),
            pages_written: 0,
            pages_read: 0,
            notes: Vec::new(),
        }
    }

    /// Measures all lanes. Both brokers are empty before and afterwards.
    fn half(&mut self, half: &Half<'_>) -> Result<(), BenchError> {
        half.progress.next("filling a backlog");
        let before = half.beside.count(Counter::PagesWritten).unwrap_or(0);
        let asked = messages_in(self.bytes);
        self.backlog.fill(asked, half.beside)?;
        let stored = self.backlog.ledger.backlog();
        if stored < asked {
            self.notes.push(format!(
                "filling a backlog of {} took too long: it has {} messages of {}",
                units::bytes(self.bytes),
                units::count(stored),
                units::count(asked)
            ));
        }
        self.pages_written += calm(half.beside).saturating_sub(before);
        half.progress.done();
        for is_reading in [false, true] {
            if is_reading {
                self.backlog.reach_pages(half.beside)?;
            }
            self.pass(half, is_reading, Pass::WarmUp)?;
            for _ in 0..half.rounds {
                self.pass(half, is_reading, Pass::There)?;
                self.pass(half, is_reading, Pass::Back)?;
            }
        }
        half.progress.next("taking the backlog out");
        self.in_memory.empty(half.none)?;
        self.backlog.empty(half.beside)?;
        half.progress.done();
        Ok(())
    }

    /// One slice of each lane that reads, or of each that does not.
    fn pass(&mut self, half: &Half<'_>, is_reading: bool, pass: Pass) -> Result<(), BenchError> {
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (place, level) in self.levels.iter().enumerate() {
            let lanes = level.lanes.iter().enumerate();
            let lanes = lanes.filter(|(_, lane)| lane.load.reads() == is_reading);
            order.extend(lanes.map(|(lane, _)| (place, lane)));
        }
        if pass == Pass::Back {
            order.reverse();
        }
        for (level, lane) in order {
            let load = self.levels[level].lanes[lane].load;
            let target = if load.is_beside_backlog() {
                half.beside
            } else {
                half.none
            };
            let place = (level, lane);
            if pass == Pass::WarmUp {
                self.slice(place, target, half.slice)?;
                continue;
            }
            let workload = self.levels[level].workload();
            let load = load.describe(self.bytes);
            half.progress.next(&format!("{workload}, {load}"));
            let shown = self.slice(place, target, half.slice)?;
            self.keep(place, &shown);
            half.progress.done();
        }
        Ok(())
    }

    /// One slice of one lane.
    fn slice(
        &mut self,
        (level, lane): (usize, usize),
        target: &Target,
        duration: Duration,
    ) -> Result<Shown, BenchError> {
        let level = &mut self.levels[level];
        let (taken_between, lane) = (level.taken_between(), &mut level.lanes[lane]);
        lane.workload.move_to(target.address());
        let to_read = messages_in((self.bytes / READ_SHARE).min(READ_BYTES_MAX));
        let stock = match lane.load {
            Load::FromMemory => {
                self.in_memory.fill(to_read, target)?;
                Some(&mut self.in_memory)
            }
            Load::FromPages => Some(&mut self.backlog),
            Load::None | Load::NoneAgain | Load::Backlog => None,
        };
        target.rest();
        let (calls, sent) = (calls_of(target), lane.workload.ledger().sent);
        let pages = target.count(Counter::PagesRead).unwrap_or(0);
        let mut histogram = Histogram::new();
        let began = SystemTime::now();
        match stock {
            None => lane.workload.slice(duration, &mut histogram)?,
            Some(stock) => {
                let mut reader = Reader::open(target.address(), &stock.queue)?;
                let left = stock.ledger.backlog().saturating_sub(to_read);
                let mut patience = Patience::default();
                lane.workload.slice_beside(READ_TIME, &mut histogram, || {
                    let before = stock.ledger.backlog();
                    let due = before.saturating_sub(left);
                    reader.take(taken_between.min(due), stock.body.len(), &mut stock.ledger)?;
                    if stock.ledger.backlog() < before {
                        patience = Patience::default();
                    } else if due > 0 {
                        patience.look()?;
                    }
                    Ok(stock.ledger.backlog() > left)
                })?;
                reader.close()?;
            }
        }
        target.rest();
        Ok(Shown {
            histogram,
            began,
            messages: lane.workload.ledger().sent - sent,
            calls: calls_of(target) - calls,
            pages_read: target.count(Counter::PagesRead).unwrap_or(0) - pages,
        })
    }

    fn keep(&mut self, (level, lane): (usize, usize), shown: &Shown) {
        let lane = &mut self.levels[level].lanes[lane];
        lane.series.add(&shown.histogram, shown.began);
        let calls = units::to_f64(shown.calls) / units::to_f64(shown.messages);
        lane.calls.push(Some(calls));
        if lane.load == Load::FromPages {
            self.pages_read += shown.pages_read;
        }
    }

    /// The closed books: of each durability, and of what lay beside.
    fn books(&self) -> Vec<Books> {
        let closed = |mut ledger: Ledger| {
            ledger.close();
            ledger
        };
        let books = |workload: &str, ledger| Books {
            workload: workload.to_owned(),
            payload_bytes: PAYLOAD_BYTES,
            mode: Mode::Poll,
            ledger,
        };
        let mut all: Vec<Books> = Vec::new();
        for level in &self.levels {
            let mut of_all = Ledger::new();
            for lane in &level.lanes {
                of_all.add(&closed(lane.workload.ledger()));
            }
            all.push(books(level.workload(), of_all));
        }
        all.push(books("backlog", closed(self.backlog.ledger)));
        all.push(books("backlog: in memory", closed(self.in_memory.ledger)));
        all
    }
}

/// System calls of a broker that rests, but for those of turns without work.
fn calls_of(target: &Target) -> u64 {
    [
        Counter::Enters,
        Counter::DirectReceives,
        Counter::DirectSends,
    ]
    .map(|counter| target.count(counter).unwrap_or(0))
    .iter()
    .sum()
}

/// Waits until no more pages are written, at most for a while; how many there were.
fn calm(target: &Target) -> u64 {
    let written = || target.count(Counter::PagesWritten).unwrap_or(0);
    let ends = Instant::now() + CALM_TIME;
    loop {
        let before = written();
        for _ in 0..3 {
            target.rest();
        }
        if written() == before || Instant::now() >= ends {
            return written();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_slices_together_read_less_than_lies_in_pages() {
        // Six rounds there and back at two durabilities, and one slice to warm up.
        let slices = 2 * 2 * 3 + 2;
        for bytes in [BACKLOG_BYTES_MIN, BACKLOG_BYTES] {
            let read = slices * (bytes / READ_SHARE).min(READ_BYTES_MAX);
            assert!(read < bytes / 2, "{read} of {bytes}");
        }
    }

    #[test]
    fn each_broker_may_have_a_backlog_and_what_is_left_of_it() {
        assert!(room_needed(BACKLOG_BYTES) > 2 * 2 * BACKLOG_BYTES);
        assert_eq!(room_needed(u64::MAX), u64::MAX);
    }
}
