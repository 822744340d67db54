//! A broker that starts on what it kept, beside reading it.
//!
//! ```text
//!   fill   burst into one of sixteen queues; of every other one it is taken out again
//!   keep   copy all files while the broker rests, and only then stop it
//!   then   copy them again
//!          forget the page cache, read the journal in order   timed
//!          forget it again, start, first flushed ack          timed
//!          stop, and again
//!   last   take out what was left: every message, in order
//! ```
//!
//! A broker that stops in order writes a checkpoint, and the next start would not see the
//! journal. With nothing on its way a copy of its files is what a kill would leave behind,
//! and each start has a copy of its own, so none of them finds the checkpoint of the one
//! before. What a start says that it read is held against the journal.
//!
//! Half of the journal is messages that are there again afterwards, the other half is
//! settled; so it is the work of both. The page cache is given up before each, so both come
//! from the device, or from whatever the host has between.

use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use courser_transport::BrokerConfig;

use super::super::books::{Gathered, Sender};
use super::super::target::Target;
use super::super::throughput::poll_burst;
use super::super::{Idle, queue_name};
use super::journal::Batches;
use super::lane::elapsed_ns;
use crate::compare::PairedRatio;
use crate::error::BenchError;
use crate::floor::frame_bytes;
use crate::ledger::Ledger;
use crate::page_buffer::PageBuffer;
use crate::pin::Cores;
use crate::progress::Progress;
use crate::report::{Books, Mode};
use crate::restart::Restart;
use crate::units;

/// How often the broker is started on it: as many pairs as an interval needs.
pub(super) const RESTARTS: usize = 6;

/// For the progress bar: filling, reading and starting, emptying.
pub(super) const STEPS: u64 = 2 + RESTARTS as u64;

/// Bytes of a body.
pub(super) const PAYLOAD_BYTES: u32 = 1024;

/// What the goal speaks of.
const JOURNAL_BYTES: u64 = 1 << 30;

/// What the goal gives a broker for that much, beside twice the time of reading it; a
/// smaller journal gets its share.
const SECONDS_PER_JOURNAL: f64 = 2.0;

/// Every other one keeps what it is sent, within what a destination may have of the
/// broker's memory; the others nothing.
const QUEUES: usize = 16;

/// Frame bytes of one burst.
const BURST_BYTES: u64 = 4 << 20;

const WINDOW: u32 = 1024;

/// How long filling may take: a slow device has a smaller journal.
const FILL_TIME: Duration = Duration::from_secs(30);

/// A broker journals so much before it makes a checkpoint: more than it ever has here.
const CHECKPOINT_BYTES: u64 = 4 * JOURNAL_BYTES;

/// What journals end with, beside which lie other files.
const JOURNAL_ENDING: &str = "journal";

/// Sequential reads take so much at a time.
const READ_BYTES: usize = 1 << 20;

/// The size of the journal, of which so much was asked for.
pub(super) fn journal_bytes(asked: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between one burst of each queue and a gibibyte"
    )]
    let bytes = asked.clamp(
        units::to_f64(BURST_BYTES * QUEUES as u64),
        units::to_f64(JOURNAL_BYTES),
    ) as u64;
    bytes - bytes % BURST_BYTES
}

/// All starts, and what was stored before and found afterwards.
pub(super) struct Restarts {
    directory: PathBuf,
    cores: Cores,
    idle: Idle,
    queues: Vec<(String, Ledger)>,
    /// Where the first message of each start goes. Nothing is in it before.
    first: String,
    /// All that went there.
    firsts: Ledger,
    /// Bytes that were journalled.
    journal_bytes: u64,
    body: Vec<u8>,
    shown: Vec<Restart>,
    notes: Vec<String>,
}

impl Restarts {
    pub(super) fn new(directory: PathBuf, cores: Cores, idle: Idle) -> Self {
        Self {
            directory,
            cores,
            idle,
            queues: (0..QUEUES)
                .map(|_| (queue_name("restart"), Ledger::new()))
                .collect(),
            first: queue_name("restart-first"),
            firsts: Ledger::new(),
            journal_bytes: 0,
            body: vec![0xA5; PAYLOAD_BYTES as usize],
            shown: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Fills a journal with so many bytes, and starts on it again and again.
    ///
    /// # Errors
    /// If a broker does not start, or loses what it kept.
    pub(super) fn measure(
        &mut self,
        journal_bytes: u64,
        progress: &Progress,
    ) -> Result<(), BenchError> {
        progress.next("filling a journal");
        let (filled, kept) = (self.directory.join("filled"), self.directory.join("kept"));
        fs::create_dir(&self.directory).map_err(BenchError::file("create", &self.directory))?;
        let target = self.start(&filled)?;
        self.fill(journal_bytes, &target)?;
        copy(&filled, &kept)?;
        drop(target);
        remove(&filled)?;
        progress.done();
        for start in 1..=RESTARTS {
            progress.next("starting on the journal");
            let copied = self.directory.join(format!("copy-{start}"));
            copy(&kept, &copied)?;
            let target = self.restart(&copied)?;
            progress.done();
            if start == RESTARTS {
                progress.next("taking out what was left");
                for queue in 0..self.queues.len() {
                    self.with_sender(&target, queue, |_, _, _| Ok(()), true)?;
                }
                progress.done();
            }
            drop(target);
            remove(&copied)?;
        }
        remove(&kept)
    }

    /// A broker that makes no checkpoint but its last one.
    fn start(&self, directory: &Path) -> Result<Target, BenchError> {
        Target::keeping_with(directory, self.cores, self.idle, |config| BrokerConfig {
            checkpoint_bytes: CHECKPOINT_BYTES,
            ..config
        })
    }

    /// Why the starts are not what the goal speaks of, if they are not.
    pub(super) fn unfit(&self) -> Option<String> {
        let unfit = self.shown.iter().find(|it| !it.is_replay())?;
        Some(format!(
            "a start read {} MiB of checkpoints and replayed {} of {} MiB",
            unfit.checkpoint_bytes >> 20,
            unfit.replayed_bytes >> 20,
            unfit.journal_bytes >> 20,
        ))
    }

    /// What the starts have shown.
    pub(super) fn shown(&self) -> Vec<Restart> {
        self.shown.clone()
    }

    /// What a reader has to know beside.
    pub(super) fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    /// Each start over the time that the goal gives it.
    pub(super) fn paired(&self) -> Option<PairedRatio> {
        let each = |time: fn(&Restart) -> f64| -> Vec<Option<f64>> {
            self.shown.iter().map(|shown| Some(time(shown))).collect()
        };
        PairedRatio::of(
            &each(|it| it.first_ack_seconds),
            &each(|it| it.bound_seconds),
        )
    }

    /// The closed books of all queues.
    pub(super) fn books(&self) -> Books {
        let mut of_all = self.firsts;
        for (_, ledger) in &self.queues {
            let mut ledger = *ledger;
            ledger.close();
            of_all.add(&ledger);
        }
        Books {
            workload: "restart".to_owned(),
            payload_bytes: PAYLOAD_BYTES,
            mode: Mode::Poll,
            ledger: of_all,
        }
    }

    fn fill(&mut self, journal_bytes: u64, target: &Target) -> Result<(), BenchError> {
        // Found by each start, and not created by it.
        let first = Sender::open_flushed(target.address(), &self.first, &self.firsts, WINDOW)?;
        first.close()?;
        let burst = BURST_BYTES / frame_bytes(self.body.len()) as u64;
        let ends = Instant::now() + FILL_TIME;
        for turn in 0.. {
            let queue = turn % QUEUES;
            // Whatever is there is taken, so a queue keeps everything or nothing.
            let is_taken = queue % 2 == 1;
            let send = |sender: &Sender, body: &[u8], ledger: &mut Ledger| {
                let mut gathered = Gathered::new(body);
                poll_burst(sender, &mut gathered, burst, ends, ledger)
            };
            self.with_sender(target, queue, send, is_taken)?;
            target.rest();
            self.journal_bytes = Batches::so_far(target).bytes();
            if self.journal_bytes >= journal_bytes {
                return Ok(());
            }
            if Instant::now() >= ends {
                self.notes.push(format!(
                    "filling a journal of {} took too long: it has {} MiB",
                    units::bytes(journal_bytes),
                    self.journal_bytes >> 20
                ));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Has a sender of a queue do something, and takes everything out that it stored or
    /// that was there.
    fn with_sender(
        &mut self,
        target: &Target,
        queue: usize,
        work: impl FnOnce(&Sender, &[u8], &mut Ledger) -> Result<(), BenchError>,
        is_taken: bool,
    ) -> Result<(), BenchError> {
        let (name, ledger) = &mut self.queues[queue];
        let address: SocketAddr = target.address();
        let sender = Sender::open_flushed(address, name, ledger, WINDOW)?;
        work(&sender, &self.body, ledger)?;
        if is_taken {
            sender.take_backlog(name, self.body.len(), ledger)?;
        }
        sender.close()
    }

    /// Starts on files that are this start's own.
    fn restart(&mut self, directory: &Path) -> Result<Target, BenchError> {
        let files = journals(directory)?;
        forget(&files)?;
        let began = Instant::now();
        read(&files, self.journal_bytes)?;
        let read_seconds = elapsed_ns(began) / 1e9;
        forget(&files)?;
        let mut ledger = Ledger::new();
        let began = Instant::now();
        let target = self.start(directory)?;
        let ready_seconds = elapsed_ns(began) / 1e9;
        let sender = Sender::open_flushed(target.address(), &self.first, &ledger, WINDOW)?;
        sender.send(&mut self.body.clone(), &mut ledger)?;
        let first_ack_seconds = elapsed_ns(began) / 1e9;
        sender.take_backlog(&self.first, self.body.len(), &mut ledger)?;
        sender.close()?;
        ledger.close();
        self.firsts.add(&ledger);
        let read = target.read_at_start();
        let share = units::to_f64(self.journal_bytes) / units::to_f64(JOURNAL_BYTES);
        let left = self.queues.iter().map(|(_, ledger)| ledger.backlog()).sum();
        self.shown.push(Restart {
            journal_bytes: self.journal_bytes,
            replayed_bytes: read.journals,
            checkpoint_bytes: read.checkpoints,
            messages_left: left,
            read_seconds,
            ready_seconds,
            first_ack_seconds,
            bound_seconds: SECONDS_PER_JOURNAL * share.min(1.0) + 2.0 * read_seconds,
        });
        Ok(target)
    }
}

/// What lies in a directory, by name.
fn list(path: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let failed = || BenchError::file("list", path);
    let mut paths = fs::read_dir(path)
        .map_err(failed())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed())?;
    paths.sort();
    Ok(paths)
}

/// All files of the journals in a data directory, in the order in which they are read.
fn journals(directory: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let mut files = Vec::new();
    for journal in list(directory)?.iter().filter(|path| path.is_dir()) {
        files.extend(list(journal)?);
    }
    files.retain(|path| {
        path.extension()
            .is_some_and(|ending| ending == JOURNAL_ENDING)
    });
    Ok(files)
}

/// Copies a data directory.
fn copy(from: &Path, to: &Path) -> Result<(), BenchError> {
    // As private as a broker makes it.
    DirBuilder::new()
        .mode(0o700)
        .create(to)
        .map_err(BenchError::file("create", to))?;
    for path in list(from)? {
        let Some(name) = path.file_name() else {
            continue;
        };
        let copied = to.join(name);
        if path.is_dir() {
            copy(&path, &copied)?;
        } else {
            fs::copy(&path, &copied).map_err(BenchError::file("copy", &path))?;
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<(), BenchError> {
    fs::remove_dir_all(directory).map_err(BenchError::file("remove", directory))
}

/// Has the next read come from the device.
fn forget(files: &[PathBuf]) -> Result<(), BenchError> {
    use rustix::fs::{Advice, fadvise};
    for path in files {
        let file = File::open(path).map_err(BenchError::file("open", path))?;
        // Only what is on the device can be given up.
        file.sync_all().map_err(BenchError::file("flush", path))?;
        fadvise(&file, 0, None, Advice::DontNeed)
            .map_err(|errno| BenchError::file("give up the cache of", path)(errno.into()))?;
    }
    Ok(())
}

/// Reads so many bytes from the beginning, one piece behind the other: files that were
/// made ahead are behind them.
fn read(files: &[PathBuf], bytes: u64) -> Result<(), BenchError> {
    let mut piece = PageBuffer::new(READ_BYTES);
    let mut left = bytes;
    for path in files {
        let failed = || BenchError::file("read", path);
        let mut file = File::open(path).map_err(failed())?;
        while left > 0 {
            match file.read(&mut piece).map_err(failed())? {
                0 => break,
                count => left = left.saturating_sub(count as u64),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_has_whole_bursts_up_to_a_gibibyte() {
        assert_eq!(journal_bytes(0.0), BURST_BYTES * QUEUES as u64);
        assert_eq!(journal_bytes(1e18), JOURNAL_BYTES);
        assert_eq!(journal_bytes(100e6) % BURST_BYTES, 0);
    }
}
