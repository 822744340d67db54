//! The files of one shard's journal: what the shard wishes of them, and what it is told.
//!
//! Cast: a shard names its files by their slot in the journal and its writes by tokens; a
//! [`ShardJournal`] finds each open file a place in the ring, has the [`Helper`] prepare
//! and remove files, and keeps the books of the writes ([`Writes`]). It owns no bytes:
//! whoever begins a write, or goes on with a short one, asks the shard for its pieces.
//!
//! ```text
//!   shard's wish                                             shard's fact
//!   prepare(slot, size) -> Helper ... attached to the ring -> Told::Prepared
//!   begin(slot, ..)     -> Rest -> ring ... written        -> Durable, Failed, or a Rest
//!   retire(slot)        -> detached when nothing is in flight; the file stays
//!   remove(slot)        -> Helper ...                      -> Told::Removed
//! ```
//!
//! Invariant: a slot has a place in the ring from when its file was told to be prepared
//! until it was retired and its last write was told.

use std::io;

use courser_core::id::{JournalNumber, Run};
use courser_core::journal::survey::Slot;

use super::{
    DataDirectory, DirectoryError, DiskFile, Done, Errand, Helper, JournalFile, Progress, Rest,
    Writes, checkpoint,
};
use crate::doorbell::Doorbell;
use crate::ring::{FILES_MAX, FileSlot, Ring};
use crate::sys::Errno;

/// The journal that a shard writes in this run.
#[derive(Debug)]
pub struct ShardJournal {
    journal: JournalNumber,
    helper: Helper,
    writes: Writes,
    /// By place in the ring.
    files: [Option<Attached>; FILES_MAX as usize],
    /// Files that are being prepared.
    asked: usize,
    /// The run that writes, until no page files of earlier ones are left.
    pages_of: Option<Run>,
}

/// A file that is in the ring.
#[derive(Debug, Clone, Copy)]
struct Attached {
    slot: Slot,
    in_flight: u32,
    retires: bool,
}

/// What became of a wish.
#[derive(Debug)]
pub enum Told {
    /// A file can be written to, or is not there.
    Prepared {
        /// Its slot.
        slot: Slot,
        /// Its size in bytes: at least what was asked for.
        result: Result<u64, DirectoryError>,
    },
    /// A file is gone for good, or is still there.
    Removed {
        /// Its slot.
        slot: Slot,
        /// Why it is still there.
        result: Result<(), DirectoryError>,
    },
    /// A part of the checkpoint is written, or it is in its place.
    Checkpoint {
        /// Why it is not.
        result: Result<(), DirectoryError>,
    },
    /// Page files of earlier runs, of which nothing is needed, are gone or still there.
    PagesRemoved {
        /// Why they are still there.
        result: Result<(), DirectoryError>,
    },
}

impl ShardJournal {
    /// Of that run, for the shard whose bell that is. Starts a thread.
    ///
    /// # Errors
    ///
    /// If the kernel gives no thread.
    pub fn start(
        directory: &DataDirectory,
        journal: JournalNumber,
        run: Run,
        doorbell: Doorbell,
    ) -> io::Result<Self> {
        Ok(Self {
            journal,
            pages_of: Some(run),
            helper: Helper::start(directory, doorbell)?,
            writes: Writes::default(),
            files: [None; FILES_MAX as usize],
            asked: 0,
        })
    }

    /// Has a file of at least that size prepared and opened; told by [`Self::take`]. False
    /// if too much waits already: then again after something was told.
    #[must_use]
    pub fn prepare(&mut self, slot: Slot, size: u64) -> bool {
        let open = self.files.iter().flatten().count();
        if open + self.asked >= self.files.len() {
            return false;
        }
        let file = self.file(slot);
        let is_asked = self.helper.ask(Errand::Prepare { file, size }).is_ok();
        self.asked += usize::from(is_asked);
        is_asked
    }

    /// Has the file of a slot that is not open removed; told by [`Self::take`]. False as
    /// for [`Self::prepare`].
    #[must_use]
    pub fn remove(&mut self, slot: Slot) -> bool {
        debug_assert!(self.place(slot).is_none(), "an open file is retired first");
        let file = self.file(slot);
        self.helper.ask(Errand::Remove { file }).is_ok()
    }

    /// Has a part of the checkpoint written aside; told by [`Self::take`]. The part, if too
    /// much waits already.
    ///
    /// # Errors
    ///
    /// As that.
    pub fn write_aside(
        &mut self,
        position: u64,
        bytes: Vec<u8>,
        begins: bool,
    ) -> Result<(), Vec<u8>> {
        let errand = Errand::WriteAside {
            journal: self.journal,
            position,
            bytes,
            begins,
        };
        match self.helper.ask(errand) {
            Err(Errand::WriteAside { bytes, .. }) => Err(bytes),
            _ => Ok(()),
        }
    }

    /// Has the checkpoint take its place; told by [`Self::take`]. False as for
    /// [`Self::prepare`].
    #[must_use]
    pub fn place_checkpoint(&mut self) -> bool {
        let (aside, path) = (
            checkpoint::aside(self.journal),
            checkpoint::path(self.journal),
        );
        self.helper.ask(Errand::PutInPlace { aside, path }).is_ok()
    }

    /// Whether something is to be told; one atomic load. A sleeper looks after it has
    /// announced its sleep.
    #[inline]
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.helper.is_empty()
    }

    /// The next wish that something became of.
    pub fn take<R: Ring<File = DiskFile>>(&mut self, ring: &mut R) -> Option<Told> {
        Some(match self.helper.take()? {
            Done::Prepared { file, result } => {
                self.asked -= 1;
                Told::Prepared {
                    slot: file.slot,
                    result: result.and_then(|opened| self.attach(ring, file, opened)),
                }
            }
            Done::Removed { file, result } => Told::Removed {
                slot: file.slot,
                result,
            },
            Done::Written { result } => Told::Checkpoint { result },
            Done::Placed { result, .. } => {
                if result.is_ok() {
                    self.remove_pages();
                }
                Told::Checkpoint { result }
            }
            Done::PagesRemoved { result } => {
                if result.is_ok() {
                    self.pages_of = None;
                }
                Told::PagesRemoved { result }
            }
            Done::Synced { .. } => {
                unreachable!("a journal asks for no such errand")
            }
        })
    }

    /// A checkpoint of this run is in its place, and names pages of no other run. Where too
    /// much waits, and where it fails, the next checkpoint tries again.
    fn remove_pages(&mut self) {
        if let Some(before) = self.pages_of {
            let journal = self.journal;
            drop(self.helper.ask(Errand::RemovePages { journal, before }));
        }
    }

    fn attach<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        file: JournalFile,
        opened: DiskFile,
    ) -> Result<u64, DirectoryError> {
        let size = opened.size();
        let place = self
            .files
            .iter()
            .position(Option::is_none)
            .expect("no more are asked for than there are places");
        ring.attach_file(at(place), opened)
            .map_err(|refused| DirectoryError::Call {
                operation: "attach",
                path: file.path(),
                source: refused.errno.into(),
            })?;
        self.files[place] = Some(Attached {
            slot: file.slot,
            in_flight: 0,
            retires: false,
        });
        Ok(size)
    }

    /// Takes a write of so many bytes into the books; what to begin in the ring
    /// ([`crate::ring::begin_write`]).
    ///
    /// # Panics
    ///
    /// If the file of the slot is not prepared, or retired.
    pub fn begin(&mut self, slot: Slot, position: u64, length: u32, token: u64) -> Rest {
        let place = self.place(slot).expect("a file is prepared before a write");
        let file = self.files[place].as_mut().expect("it was found there");
        assert!(!file.retires, "a file is retired after its last write");
        file.in_flight += 1;
        self.writes.begin(at(place), position, length, token)
    }

    /// What the end of a write in the ring means. Of [`Progress::Short`] the rest is to be
    /// begun with the same pieces.
    pub fn written<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        file: FileSlot,
        token: u64,
        result: Result<u32, Errno>,
    ) -> Option<Progress> {
        let progress = self.writes.written(token, result)?;
        if !matches!(progress, Progress::Short(_)) {
            let place = file.0 as usize;
            let attached = self.files[place].as_mut().expect("its write was in flight");
            attached.in_flight -= 1;
            self.let_go(ring, place);
        }
        Some(progress)
    }

    /// Nothing more is written to the file of a slot: it is closed when its last write was
    /// told, and stays on disk.
    pub fn retire<R: Ring<File = DiskFile>>(&mut self, ring: &mut R, slot: Slot) {
        if let Some(place) = self.place(slot) {
            let attached = self.files[place].as_mut().expect("it was found there");
            attached.retires = true;
            self.let_go(ring, place);
        }
    }

    /// How many writes were not told yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.writes.in_flight()
    }

    /// Whether something is to come from the device: the end of a write, or a file.
    #[must_use]
    pub fn awaits_device(&self) -> bool {
        self.in_flight() > 0 || self.asked > 0
    }

    fn let_go<R: Ring<File = DiskFile>>(&mut self, ring: &mut R, place: usize) {
        let is_done = |file: &mut Attached| file.retires && file.in_flight == 0;
        if self.files[place].take_if(is_done).is_some() {
            drop(ring.detach_file(at(place)));
        }
    }

    fn place(&self, slot: Slot) -> Option<usize> {
        self.files
            .iter()
            .position(|file| file.is_some_and(|file| file.slot == slot))
    }

    fn file(&self, slot: Slot) -> JournalFile {
        JournalFile {
            journal: self.journal,
            slot,
        }
    }
}

fn at(place: usize) -> FileSlot {
    FileSlot(u32::try_from(place).expect("there are few places"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, Instant};

    use super::super::image::Image;
    use super::super::scratch::Scratch;
    use super::*;
    use crate::disk::BLOCK_SIZE;
    use crate::ring::epoll::EpollRing;
    use crate::ring::outgoing::write_static;
    use crate::ring::{Completion, RingSize, Wait};

    const DEADLINE: Duration = Duration::from_secs(20);
    const JOURNAL: JournalNumber = JournalNumber(5);
    const SIZE: u64 = 16 * 4096;

    struct Desk {
        /// Before the directory: it may be writing there.
        ring: EpollRing,
        journal: ShardJournal,
        directory: DataDirectory,
        scratch: Scratch,
    }

    impl Desk {
        fn new() -> Self {
            let scratch = Scratch::new();
            let directory = DataDirectory::open(scratch.path()).unwrap();
            let ring = EpollRing::new(RingSize::WITHOUT_SOCKETS).unwrap();
            let bell = ring.doorbell().clone();
            Self {
                journal: ShardJournal::start(&directory, JOURNAL, Run(3), bell).unwrap(),
                ring,
                directory,
                scratch,
            }
        }

        /// Sleeps and turns as a shard does, until something is told.
        fn turn_until<T>(&mut self, mut told: impl FnMut(&mut Self) -> Option<T>) -> T {
            let started = Instant::now();
            loop {
                if let Some(told) = told(self) {
                    return told;
                }
                assert!(started.elapsed() < DEADLINE / 2, "slept through the bell");
                self.ring.doorbell().announce_sleep();
                let wait = if self.journal.has_news() {
                    Wait::No
                } else {
                    Wait::AtMost(Some(DEADLINE))
                };
                self.ring.turn(wait).unwrap();
                self.ring.doorbell().announce_awake();
            }
        }

        fn told(&mut self) -> Told {
            self.turn_until(|desk| desk.journal.take(&mut desk.ring))
        }

        fn prepared(&mut self, slot: Slot) -> u64 {
            assert!(self.journal.prepare(slot, SIZE));
            match self.told() {
                Told::Prepared {
                    slot: told,
                    result: Ok(size),
                } if told == slot => size,
                other => panic!("unexpected {other:?}"),
            }
        }

        fn written(&mut self) -> Progress {
            self.turn_until(|desk| {
                while let Some(completion) = desk.ring.next() {
                    if let Completion::Written {
                        file,
                        token,
                        result,
                    } = completion
                    {
                        let progress = desk.journal.written(&mut desk.ring, file, token, result);
                        return Some(progress.unwrap());
                    }
                }
                None
            })
        }

        fn write(&mut self, slot: Slot, position: u64, bytes: &'static [u8], token: u64) {
            let length = u32::try_from(bytes.len()).unwrap();
            let rest = self.journal.begin(slot, position, length, token);
            write_static(&mut self.ring, rest, &[bytes]);
        }
    }

    fn durable(token: u64) -> Progress {
        Progress::Durable { token }
    }

    fn block() -> &'static [u8] {
        let memory = Box::leak(vec![0x5a; 2 * BLOCK_SIZE as usize].into_boxed_slice());
        let skip = memory.as_ptr().align_offset(BLOCK_SIZE as usize);
        &memory[skip..skip + BLOCK_SIZE as usize]
    }

    #[test]
    fn a_prepared_file_is_written_retired_and_removed() {
        let mut desk = Desk::new();
        assert_eq!(desk.prepared(Slot(7)), SIZE);
        desk.write(Slot(7), 4096, block(), 1);
        desk.write(Slot(7), 8192, block(), 2);
        assert_eq!(desk.journal.in_flight(), 2);
        // Retired at once, it is let go behind the last write.
        desk.journal.retire(&mut desk.ring, Slot(7));
        assert_eq!(desk.written(), durable(1));
        assert_eq!(desk.written(), durable(2));
        assert_eq!(desk.journal.in_flight(), 0);
        let file = JournalFile {
            journal: JOURNAL,
            slot: Slot(7),
        };
        let mut bytes = Image::default();
        desk.directory.read(file, &mut bytes).unwrap();
        assert!(bytes[4096..12_288].iter().all(|&byte| byte == 0x5a));
        assert!(desk.journal.remove(Slot(7)));
        assert!(matches!(
            desk.told(),
            Told::Removed {
                slot: Slot(7),
                result: Ok(())
            }
        ));
        assert!(desk.directory.list().unwrap().files.is_empty());
    }

    #[test]
    fn a_slot_is_prepared_again_and_keeps_its_bytes() {
        let mut desk = Desk::new();
        for round in 0..3 {
            assert_eq!(desk.prepared(Slot(1)), SIZE);
            desk.write(Slot(1), round * 4096, block(), round);
            assert_eq!(desk.written(), durable(round));
            desk.journal.retire(&mut desk.ring, Slot(1));
        }
        let path = desk.scratch.path().join("journal-05/000001.journal");
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes[..3 * 4096].iter().all(|&byte| byte == 0x5a));
        assert!(bytes[3 * 4096..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn pages_of_earlier_runs_go_once_a_checkpoint_has_its_place() {
        let mut desk = Desk::new();
        desk.directory.make_journal(JOURNAL).unwrap();
        let inside = |name: &str| desk.scratch.path().join("journal-05").join(name);
        let (aside, in_place) = (inside("checkpoint.new"), inside("checkpoint"));
        let names = ["00000001-000000.pages", "00000002-000007.pages"].map(inside);
        let own = inside("00000003-000000.pages");
        let strange = inside("1-0.pages");
        for path in names.iter().chain([&own, &strange]) {
            std::fs::write(path, "").unwrap();
        }
        let are_there = || names.iter().filter(|path| path.exists()).count();

        // There is nothing to put there: what names the pages may still count.
        assert!(desk.journal.place_checkpoint());
        assert!(matches!(desk.told(), Told::Checkpoint { result: Err(_) }));
        assert!(desk.journal.write_aside(0, vec![7; 4096], true).is_ok());
        assert!(matches!(desk.told(), Told::Checkpoint { result: Ok(()) }));
        assert!(!in_place.exists());
        assert_eq!(are_there(), 2);

        assert!(desk.journal.place_checkpoint());
        assert!(matches!(desk.told(), Told::Checkpoint { result: Ok(()) }));
        assert!(in_place.exists() && !aside.exists());
        assert!(matches!(desk.told(), Told::PagesRemoved { result: Ok(()) }));
        assert_eq!(are_there(), 0);
        assert!(own.exists() && strange.exists());
    }

    #[test]
    fn there_are_no_more_files_than_places() {
        let mut desk = Desk::new();
        for slot in 1..=FILES_MAX {
            desk.prepared(Slot(slot));
        }
        assert!(!desk.journal.prepare(Slot(99), SIZE));
        desk.journal.retire(&mut desk.ring, Slot(3));
        assert_eq!(desk.prepared(Slot(99)), SIZE);
    }

    #[test]
    fn a_file_that_cannot_be_had_is_told_and_takes_no_place() {
        let mut desk = Desk::new();
        for slot in (1..=2 * FILES_MAX).map(Slot) {
            assert!(desk.journal.prepare(slot, 1 << 62));
            let Told::Prepared {
                slot: told,
                result: Err(refused),
            } = desk.told()
            else {
                panic!("no file system has so much");
            };
            assert_eq!(told, slot);
            assert!(refused.to_string().starts_with("cannot allocate "));
        }
        assert_eq!(desk.prepared(Slot(1)), SIZE);
    }
}
