//! A shard's thread for what takes long and no ring can do: errands to its files.
//!
//! Preparing a file writes all of it and takes as long as the device does; a rename or a
//! removal waits for the file system's own journal. A shard asks for such an errand and
//! goes on; what became of it lies in an inbox, one atomic load to look at, and the
//! shard's doorbell is rung if it sleeps. Errands are run one after the other, in the
//! order they were asked for.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use courser_core::id::{JournalNumber, Run};

use super::directory::{self, DataDirectory, DirectoryError, Held, JournalFile};
use super::file::DiskFile;
use crate::affinity;
use crate::doorbell::Doorbell;
use crate::handoff::{Inbox, Sender, handoff};
use crate::sys;

/// Errands that may wait at a time; a shard has a file to prepare, one to remove, and a
/// checkpoint to put in its place.
const ERRANDS_MAX: usize = 16;

/// What a shard asks for. Paths are relative to the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// A file of a journal, of at least that size, every block of it written and flushed
    /// and its name in its directory; then it is opened. One that is there keeps its
    /// bytes.
    Prepare {
        /// Which file.
        file: JournalFile,
        /// In bytes: whole blocks.
        size: u64,
    },
    /// A file of a journal that is gone for good.
    Remove {
        /// Which file.
        file: JournalFile,
    },
    /// A part of the checkpoint of a journal, which is written aside.
    WriteAside {
        /// Whose.
        journal: JournalNumber,
        /// Where, in bytes.
        position: u64,
        /// What.
        bytes: Vec<u8>,
        /// Whether it is the first: what lay there before goes.
        begins: bool,
    },
    /// A file that was written aside gets its place: it is flushed, renamed over whatever
    /// is there, and its directory is flushed.
    PutInPlace {
        /// The name it has.
        aside: PathBuf,
        /// The name it gets.
        path: PathBuf,
    },
    /// The page files of a journal that earlier runs than this one wrote.
    RemovePages {
        /// Whose.
        journal: JournalNumber,
        /// The first run whose files stay.
        before: Run,
    },
    /// A flush of the names in a directory.
    SyncDirectory {
        /// Which directory.
        path: PathBuf,
    },
}

/// What became of an errand.
#[derive(Debug)]
pub enum Done {
    /// Of [`Errand::Prepare`].
    Prepared {
        /// Which file.
        file: JournalFile,
        /// The file, open for durable writes; it may be larger than was asked for.
        result: Result<DiskFile, DirectoryError>,
    },
    /// Of [`Errand::Remove`].
    Removed {
        /// Which file.
        file: JournalFile,
        /// Whether it is.
        result: Result<(), DirectoryError>,
    },
    /// Of [`Errand::WriteAside`].
    Written {
        /// Whether it is.
        result: Result<(), DirectoryError>,
    },
    /// Of [`Errand::PutInPlace`].
    Placed {
        /// The name it has now.
        path: PathBuf,
        /// Whether it has.
        result: Result<(), DirectoryError>,
    },
    /// Of [`Errand::RemovePages`].
    PagesRemoved {
        /// Whether none of them is left.
        result: Result<(), DirectoryError>,
    },
    /// Of [`Errand::SyncDirectory`].
    Synced {
        /// Which directory.
        path: PathBuf,
        /// Whether it is.
        result: Result<(), DirectoryError>,
    },
}

/// A shard's end of its helper. Dropped, it calls off what is not done yet, and waits for
/// the errand that is being run.
#[derive(Debug)]
pub struct Helper {
    /// `None` once it is told to stop.
    errands: Option<SyncSender<Errand>>,
    done: Inbox<Done>,
    /// Written here, read by the thread between errands and within long ones. It publishes
    /// nothing but itself.
    called_off: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// A thread for one shard, whose bell it rings.
    ///
    /// # Errors
    ///
    /// If the kernel gives no thread.
    pub fn start(directory: &DataDirectory, doorbell: Doorbell) -> io::Result<Self> {
        let (errands, asked) = sync_channel(ERRANDS_MAX);
        let (results, done) = handoff(doorbell);
        let called_off = Arc::new(AtomicBool::new(false));
        let runner = Runner {
            held: directory.held(),
            asked,
            results,
            called_off: Arc::clone(&called_off),
        };
        let thread = thread::Builder::new()
            .name(String::from("courser-files"))
            .spawn(move || {
                affinity::step_aside();
                runner.run();
            })?;
        Ok(Self {
            errands: Some(errands),
            done,
            called_off,
            thread: Some(thread),
        })
    }

    /// Asks for an errand; it does not wait.
    ///
    /// # Errors
    ///
    /// The errand, if too many wait already: take what is done first.
    pub fn ask(&mut self, errand: Errand) -> Result<(), Errand> {
        let Some(errands) = &self.errands else {
            return Err(errand);
        };
        match errands.try_send(errand) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(errand) | TrySendError::Disconnected(errand)) => Err(errand),
        }
    }

    /// Whether nothing is done that was not taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// The next errand that is done.
    pub fn take(&mut self) -> Option<Done> {
        self.done.take()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::Relaxed);
        self.errands = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            debug_assert!(ended.is_ok() || thread::panicking(), "errands do not panic");
        }
    }
}

/// The thread's end.
struct Runner {
    held: Arc<Held>,
    asked: Receiver<Errand>,
    results: Sender<Done>,
    called_off: Arc<AtomicBool>,
}

impl Runner {
    fn run(self) {
        sys::refuse_large_files_quietly();
        while let Ok(errand) = self.asked.recv() {
            if self.called_off.load(Ordering::Relaxed) {
                return;
            }
            // Without a shard nobody waits for it. There is room: the inbox has more
            // places than errands can be asked for.
            if self.results.post(self.run_errand(errand)).is_err() {
                return;
            }
        }
    }

    fn run_errand(&self, errand: Errand) -> Done {
        match errand {
            Errand::Prepare { file, size } => Done::Prepared {
                file,
                result: self.held.prepare(file, size, &self.called_off),
            },
            Errand::Remove { file } => Done::Removed {
                file,
                result: self.held.remove(&file.path()),
            },
            Errand::WriteAside {
                journal,
                position,
                bytes,
                begins,
            } => Done::Written {
                result: (self.held).write_aside(journal, position, &bytes, begins),
            },
            Errand::PutInPlace { aside, path } => Done::Placed {
                result: directory::put_in_place(
                    &self.held.inside(&aside),
                    &self.held.inside(&path),
                ),
                path,
            },
            Errand::RemovePages { journal, before } => Done::PagesRemoved {
                result: self.held.remove_pages(journal, before),
            },
            Errand::SyncDirectory { path } => Done::Synced {
                result: directory::sync_directory(&self.held.inside(&path)),
                path,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::time::{Duration, Instant};

    use courser_core::id::JournalNumber;
    use courser_core::journal::survey::Slot;

    use super::super::scratch::{Scratch, alone_on_a_small_file_system, small_file_system};
    use super::*;
    use crate::ring::epoll::EpollRing;
    use crate::ring::{Ring, RingSize, Wait};

    const DEADLINE: Duration = Duration::from_secs(20);

    const FIRST: JournalFile = JournalFile {
        journal: JournalNumber(3),
        slot: Slot(1),
    };

    struct Desk {
        helper: Helper,
        ring: EpollRing,
        directory: DataDirectory,
        scratch: Scratch,
    }

    impl Desk {
        fn new() -> Self {
            Self::at(Scratch::new())
        }

        fn at(scratch: Scratch) -> Self {
            let directory = DataDirectory::open(scratch.path()).unwrap();
            let ring = EpollRing::new(RingSize::WITHOUT_SOCKETS).unwrap();
            let helper = Helper::start(&directory, ring.doorbell().clone()).unwrap();
            Self {
                helper,
                ring,
                directory,
                scratch,
            }
        }

        /// Sleeps as a shard does, until an errand is done.
        fn next(&mut self) -> Done {
            let started = Instant::now();
            loop {
                self.ring.doorbell().announce_sleep();
                if let Some(done) = self.helper.take() {
                    self.ring.doorbell().announce_awake();
                    return done;
                }
                assert!(started.elapsed() < DEADLINE / 2, "slept through the bell");
                self.ring.turn(Wait::AtMost(Some(DEADLINE))).unwrap();
                while self.ring.next().is_some() {}
                self.ring.doorbell().announce_awake();
            }
        }
    }

    #[test]
    fn a_file_is_prepared_while_the_shard_sleeps() {
        let mut desk = Desk::new();
        let size = 4 << 20;
        desk.helper
            .ask(Errand::Prepare { file: FIRST, size })
            .unwrap();
        let Done::Prepared { file, result } = desk.next() else {
            panic!("another errand");
        };
        assert_eq!((file, result.unwrap().size()), (FIRST, size));
        assert_eq!(desk.directory.list().unwrap().files, [(FIRST, size)]);
        assert!(desk.helper.is_empty());
    }

    #[test]
    fn errands_are_run_in_the_order_they_were_asked_for() {
        let mut desk = Desk::new();
        desk.directory.make_journal(JournalNumber(3)).unwrap();
        let aside = desk.scratch.path().join("journal-03/checkpoint-1.new");
        fs::write(&aside, "whole").unwrap();
        let path = PathBuf::from("journal-03/checkpoint-1");
        let errands = [
            Errand::Prepare {
                file: FIRST,
                size: 4096,
            },
            Errand::PutInPlace {
                aside: PathBuf::from("journal-03/checkpoint-1.new"),
                path: path.clone(),
            },
            Errand::Remove { file: FIRST },
            Errand::Remove { file: FIRST },
            Errand::SyncDirectory {
                path: PathBuf::from("journal-03"),
            },
        ];
        for errand in errands {
            desk.helper.ask(errand).unwrap();
        }
        assert!(matches!(desk.next(), Done::Prepared { result: Ok(_), .. }));
        assert!(matches!(desk.next(), Done::Placed { result: Ok(()), .. }));
        assert!(matches!(desk.next(), Done::Removed { result: Ok(()), .. }));
        let Done::Removed {
            result: Err(refused),
            ..
        } = desk.next()
        else {
            panic!("it is gone already");
        };
        assert!(refused.to_string().starts_with("cannot remove "));
        assert!(matches!(desk.next(), Done::Synced { result: Ok(()), .. }));
        assert!(!aside.exists());
        assert_eq!(fs::read(desk.scratch.path().join(path)).unwrap(), b"whole");
        assert!(desk.directory.list().unwrap().files.is_empty());
    }

    #[test]
    fn an_errand_too_many_comes_back() {
        let mut desk = Desk::new();
        let errand = Errand::Prepare {
            file: FIRST,
            size: 64 << 20,
        };
        let mut taken = 0;
        while desk.helper.ask(errand.clone()).is_ok() {
            taken += 1;
            assert!(taken <= ERRANDS_MAX + 1, "there is no end to them");
        }
        assert!(taken >= ERRANDS_MAX);
        // Dropped, it calls them off.
        let started = Instant::now();
        drop(desk.helper);
        assert!(started.elapsed() < DEADLINE);
    }

    #[test]
    fn a_directory_stays_taken_while_a_file_of_it_is_open() {
        let mut desk = Desk::new();
        desk.helper
            .ask(Errand::Prepare {
                file: FIRST,
                size: 4096,
            })
            .unwrap();
        let Done::Prepared {
            result: Ok(file), ..
        } = desk.next()
        else {
            panic!("it is prepared");
        };
        let Desk {
            helper,
            directory,
            scratch,
            ..
        } = desk;
        drop((helper, directory));
        let refused = DataDirectory::open(scratch.path()).unwrap_err();
        assert!(matches!(refused, DirectoryError::InUse { .. }));
        drop(file);
        assert!(DataDirectory::open(scratch.path()).is_ok());
    }

    #[test]
    fn without_room_nothing_is_prepared_until_there_is_some() {
        alone_on_a_small_file_system("disk::helper::tests::without_room");
    }

    #[test]
    #[ignore = "run by a test in a process with a file system of its own"]
    fn without_room() {
        fn prepare(desk: &mut Desk, slot: u32) -> (Result<u64, DirectoryError>, usize) {
            let file = JournalFile {
                slot: Slot(slot),
                ..FIRST
            };
            let size = 512 << 10;
            desk.helper.ask(Errand::Prepare { file, size }).unwrap();
            let Done::Prepared { result, .. } = desk.next() else {
                panic!("another errand");
            };
            let files = desk.directory.list().unwrap().files.len();
            (result.map(|file| file.size()), files)
        }

        let mut desk = Desk::at(Scratch::within(&small_file_system()).unwrap());
        assert!(matches!(prepare(&mut desk, 1), (Ok(524_288), 1)));
        let (Err(refused), files) = prepare(&mut desk, 2) else {
            panic!("there is no room for two");
        };
        let message = refused.to_string();
        assert!(message.contains("No space left on device"), "{message}");
        assert_eq!(files, 1, "what could not be finished is gone");
        desk.helper.ask(Errand::Remove { file: FIRST }).unwrap();
        assert!(matches!(desk.next(), Done::Removed { result: Ok(()), .. }));
        assert!(matches!(prepare(&mut desk, 2), (Ok(524_288), 1)));
    }
}
