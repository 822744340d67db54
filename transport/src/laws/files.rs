//! What becomes of writes to files: laws 1, 2, 3, 8 and 10, and those of
//! [`crate::ring::Ring`] that are the same for every ring.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use io_uring::opcode;

use super::*;
use crate::disk::scratch::Scratch;
use crate::disk::{DiskFile, Progress, Way, Writes};
use crate::ring::epoll::EpollRing;
use crate::ring::outgoing::write_static;
use crate::ring::simulated::{self, SimulatedFile, SimulatedRing};
use crate::ring::{Completion, FileSlot, Ring};
use crate::sys::Errno;

const FILE: FileSlot = FileSlot(2);
const BLOCK: usize = 4096;
/// Of a file.
const BLOCKS: usize = 256;
const BLOCKS_PER_BATCH: usize = 12;

/// A file that a test can look into behind the ring's back.
enum Seen {
    Disk(PathBuf),
    Memory(SimulatedFile),
}

impl Seen {
    fn bytes(&self, position: u64, length: usize) -> Vec<u8> {
        match self {
            // Opened anew every time: what is seen does not hang on a descriptor.
            Self::Disk(path) => {
                let mut bytes = vec![0; length];
                let file = File::open(path).unwrap();
                file.read_exact_at(&mut bytes, position).unwrap();
                bytes
            }
            Self::Memory(file) => {
                let from = usize::try_from(position).unwrap();
                file.bytes()[from..from + length].to_vec()
            }
        }
    }
}

/// Bytes that live for ever, aligned as writes want them. Those of one token differ from
/// those of its neighbours, and every block from the next.
fn batch(token: u64, blocks: usize) -> &'static [u8] {
    const VARIANTS: usize = 61;
    static ALL: OnceLock<&'static [u8]> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let length = VARIANTS * BLOCKS_PER_BATCH * BLOCK;
        let memory = Box::leak(vec![0; length + BLOCK].into_boxed_slice());
        let skip = memory.as_ptr().align_offset(BLOCK);
        let bytes = &mut memory[skip..skip + length];
        let mut choices = Choices::new(0xb10c);
        bytes.fill_with(|| choices.below(256).to_le_bytes()[0]);
        bytes
    });
    let variant = usize::try_from(token).unwrap() % VARIANTS;
    &all[variant * BLOCKS_PER_BATCH * BLOCK..][..blocks * BLOCK]
}

/// A write as a shard asks for it.
struct Batch {
    position: u64,
    bytes: &'static [u8],
    pieces: Vec<&'static [u8]>,
}

/// A journal that is written to its end, two batches at a time.
struct Journal<R: Ring> {
    ring: R,
    seen: Seen,
    writes: Writes,
    batches: HashMap<u64, Batch>,
    choices: Choices,
    /// Blocks that batches were begun for.
    begun: usize,
    next: u64,
    /// Tokens in the order of their ends.
    ended: Vec<(u64, Result<(), Errno>)>,
}

impl<R: Ring> Journal<R> {
    fn new(mut ring: R, mut file: R::File, seen: Seen, seed: u64) -> Self {
        // A ring may refuse it a few times.
        for attempt in 0.. {
            match ring.attach_file(FILE, file) {
                Ok(()) => break,
                Err(refused) => file = refused.socket,
            }
            assert!(attempt < 100, "no file is taken in");
        }
        Self {
            ring,
            seen,
            writes: Writes::default(),
            batches: HashMap::new(),
            choices: Choices::new(seed),
            begun: 0,
            next: 1,
            ended: Vec::new(),
        }
    }

    fn begin(&mut self) {
        let blocks = (1 + self.choices.below(BLOCKS_PER_BATCH)).min(BLOCKS - self.begun);
        let bytes = batch(self.next, blocks);
        let mut pieces = Vec::new();
        let mut left = bytes;
        while !left.is_empty() {
            let (piece, rest) = left.split_at(BLOCK * (1 + self.choices.below(left.len() / BLOCK)));
            pieces.push(piece);
            left = rest;
        }
        let position = (self.begun * BLOCK) as u64;
        let length = u32::try_from(bytes.len()).unwrap();
        let rest = self.writes.begin(FILE, position, length, self.next);
        write_static(&mut self.ring, rest, &pieces);
        let batch = Batch {
            position,
            bytes,
            pieces,
        };
        self.batches.insert(self.next, batch);
        self.begun += blocks;
        self.next += 1;
    }

    fn written(&mut self, token: u64, result: Result<u32, Errno>) {
        let progress = self.writes.written(token, result).unwrap();
        let (token, result) = match progress {
            Progress::Short(rest) => {
                let pieces = &self.batches[&rest.token].pieces;
                write_static(&mut self.ring, rest, pieces);
                return;
            }
            Progress::Durable { token } => (token, Ok(())),
            Progress::Failed { token, errno } => (token, Err(errno)),
        };
        let batch = self.batches.remove(&token).unwrap();
        if result.is_ok() {
            let there = self.seen.bytes(batch.position, batch.bytes.len());
            assert!(there == batch.bytes, "batch {token} is told and not there");
        }
        self.ended.push((token, result));
    }

    /// One turn, and what it brought.
    fn turn(&mut self) {
        let wait = Wait::AtMost(Some(Duration::from_millis(20)));
        self.ring.doorbell().announce_sleep();
        self.ring.turn(wait).unwrap();
        self.ring.doorbell().announce_awake();
        while let Some(completion) = self.ring.next() {
            match completion {
                Completion::Written {
                    file,
                    token,
                    result,
                } => {
                    assert_eq!(file, FILE);
                    self.written(token, result);
                }
                Completion::Woken => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Fills the file.
    fn fill(&mut self) {
        for turn in 0.. {
            while self.begun < BLOCKS && self.writes.in_flight() < 2 {
                self.begin();
            }
            if self.writes.in_flight() == 0 {
                break;
            }
            assert!(turn < 20_000, "no progress");
            self.turn();
        }
        let mut told: Vec<u64> = self.ended.iter().map(|(token, _)| *token).collect();
        told.sort_unstable();
        assert_eq!(
            told,
            (1..self.next).collect::<Vec<_>>(),
            "each is told once"
        );
    }

    fn failed(&self) -> usize {
        self.ended.iter().filter(|(_, end)| end.is_err()).count()
    }
}

/// A file of whole blocks that is open for writes.
fn disk_file(directory: &Path, way: Way) -> (DiskFile, PathBuf) {
    let path = directory.join(format!("{way:?}"));
    std::fs::write(&path, vec![0xaa; BLOCKS * BLOCK]).unwrap();
    let opened = match way {
        Way::Cached => DiskFile::open_cached(&path),
        Way::Direct => DiskFile::open(&path),
    };
    (opened.unwrap(), path)
}

/// The same, taken for one that takes direct writes whatever its file system: for a
/// simulated kernel.
fn direct_file(directory: &Path) -> (DiskFile, PathBuf) {
    let (_, path) = disk_file(directory, Way::Cached);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let size = (BLOCKS * BLOCK) as u64;
    (DiskFile::posing(file, Way::Direct, size), path)
}

/// A journal over a simulated kernel, filled; the kernel's record.
fn filled(setup: Setup, behaviour: Behaviour) -> (Record, Journal<IoUringRing>) {
    let scratch = Scratch::new();
    let (file, path) = direct_file(scratch.path());
    let ring = ring(setup, behaviour);
    let mut journal = Journal::new(ring, file, Seen::Disk(path), setup.seed);
    journal.fill();
    let record = journal.ring.kernel().recorded();
    journal.ring.kernel().behave(Behaviour::default());
    drop(journal.ring.detach_file(FILE));
    assert_eq!(journal.ring.kernel().begun(), 1);
    (record, journal)
}

fn seeds(behaviour: Behaviour) -> Vec<(Record, Journal<IoUringRing>)> {
    (0..6)
        .map(|seed| {
            let setup = Setup {
                seed,
                ..Setup::default()
            };
            filled(setup, behaviour)
        })
        .collect()
}

#[test]
fn law_01_writes_end_in_any_order_and_late() {
    let late = Behaviour {
        late: 300,
        ..Behaviour::default()
    };
    for (record, journal) in seeds(late) {
        assert!(record.late_max > 200);
        let order: Vec<u64> = journal.ended.iter().map(|(token, _)| *token).collect();
        assert!(!order.is_sorted(), "some end before those begun before");
    }
}

#[test]
fn law_02_writes_take_any_length() {
    let short = Behaviour {
        short: true,
        ..Behaviour::default()
    };
    for (record, journal) in seeds(short) {
        assert!(record.short > 100);
        assert_eq!(journal.failed(), 0);
    }
}

#[test]
fn law_03_a_failed_write_is_told_and_never_made_again() {
    let failing = Behaviour {
        write_errors: &[
            libc::EIO,
            libc::ENOSPC,
            libc::EAGAIN,
            libc::EINTR,
            libc::ECANCELED,
        ],
        late: 3,
        ..Behaviour::default()
    };
    for (record, journal) in seeds(failing) {
        assert!(record.write_errors > 5);
        assert_eq!(journal.failed() as u64, record.write_errors);
        let mut positions: Vec<u64> = record.writes.iter().map(|(at, _)| *at).collect();
        positions.sort_unstable();
        positions.dedup();
        assert_eq!(positions.len(), record.writes.len(), "each is made once");
        assert_eq!(positions.len(), journal.ended.len());
    }
}

#[test]
fn law_08_a_write_cannot_be_cancelled_and_a_drop_waits_for_it() {
    for seed in 0..6 {
        let scratch = Scratch::new();
        let (file, path) = direct_file(scratch.path());
        let setup = Setup {
            seed,
            ..Setup::default()
        };
        let late = Behaviour {
            late: 50,
            ..Behaviour::default()
        };
        let mut journal = Journal::new(ring(setup, late), file, Seen::Disk(path), seed);
        journal.begin();
        journal.begin();
        // The first may be handed over already, the second may not.
        if seed % 2 == 0 {
            journal.ring.turn(Wait::No).unwrap();
        }
        drop(journal.ring);
        for batch in journal.batches.values() {
            let there = journal.seen.bytes(batch.position, batch.bytes.len());
            assert!(there == batch.bytes, "seed {seed}: it was not waited for");
        }
    }
}

#[test]
fn law_10_a_write_is_durable_by_itself() {
    for (record, _) in seeds(EVERYTHING) {
        assert!(record.operations[&opcode::Write::CODE] > 0);
        assert!(record.operations[&opcode::Writev::CODE] > 0);
        assert_eq!(record.writes_unflushed, 0);
        for flush in [opcode::Fsync::CODE, opcode::SyncFileRange::CODE] {
            assert!(!record.operations.contains_key(&flush));
        }
        // No link, no drain.
        assert_eq!(record.entry_flags & !(1 | 1 << 5), 0);
    }
}

#[test]
fn whatever_the_kernel_does_every_batch_is_told_once_and_is_there() {
    for seed in 0..20 {
        let setup = Setup {
            seed,
            submissions: 2 + usize::try_from(seed % 5).unwrap(),
            completions: 3 + usize::try_from(seed % 7).unwrap(),
            ..Setup::default()
        };
        let behaviour = Behaviour {
            write_errors: if seed % 2 == 0 { &[] } else { &[libc::EIO] },
            ..EVERYTHING
        };
        let (record, journal) = filled(setup, behaviour);
        assert!(record.short > 0);
        assert_eq!(journal.failed() as u64, record.write_errors);
    }
}

/// Over the kernel of this machine, in both ways.
fn fill_on_disk<R: Ring<File = DiskFile>>(make: impl Fn() -> Option<R>) {
    for way in [Way::Direct, Way::Cached] {
        let scratch = Scratch::new();
        let (file, path) = disk_file(scratch.path(), way);
        if file.way() != way {
            eprintln!("SKIPPED: no direct writes to {}", path.display());
            continue;
        }
        let Some(ring) = make() else {
            return;
        };
        let mut journal = Journal::new(ring, file, Seen::Disk(path), 7);
        journal.fill();
        assert_eq!(journal.failed(), 0);
        drop(journal.ring.detach_file(FILE));
        // And a place is as good for the next one.
        let (file, _) = disk_file(scratch.path(), way);
        journal.ring.attach_file(FILE, file).unwrap();
        journal.begun = 0;
        journal.next = 1;
        journal.ended.clear();
        journal.fill();
        assert_eq!(journal.failed(), 0);
    }
}

#[test]
fn a_journal_is_filled_over_io_uring() {
    fill_on_disk(|| match IoUringRing::new(SIZE) {
        Ok(ring) => Some(ring),
        Err(refused) => {
            eprintln!("SKIPPED: {refused}");
            None
        }
    });
}

/// The real kernel as a witness that no other operation is needed.
#[test]
fn a_journal_is_filled_over_a_kernel_that_allows_nothing_else() {
    fill_on_disk(|| match IoUringRing::restricted(SIZE) {
        Ok(ring) => Some(ring),
        Err(refused) => {
            eprintln!("SKIPPED: no restricted io_uring here: {refused:?}");
            None
        }
    });
}

#[test]
fn a_journal_is_filled_over_epoll() {
    fill_on_disk(|| Some(EpollRing::new(SIZE).unwrap()));
}

#[test]
fn a_journal_is_filled_over_any_legal_result() {
    for seed in 0..40 {
        let file = simulated::file(BLOCKS * BLOCK);
        let ring = SimulatedRing::new(SIZE, seed).unwrap();
        let mut journal = Journal::new(ring, file.clone(), Seen::Memory(file.clone()), seed);
        journal.fill();
        assert_eq!(journal.failed(), 0, "seed {seed}");
        // From here on the device fails.
        file.refuse(Errno(libc::EIO));
        journal.begun = 0;
        journal.next = 1;
        journal.ended.clear();
        journal.fill();
        assert_eq!(journal.failed(), journal.ended.len(), "seed {seed}");
        drop(journal.ring.detach_file(FILE));
    }
}
