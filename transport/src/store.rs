//! A shard's journal between the machine and the ring.
//!
//! ```text
//!   start  Recovery -> Shard::restore, entry by entry -> Shard::keep
//!   run    Shard::storage_wish -> Store -> ring ... written -> Shard::written
//! ```
//!
//! Invariant: a file is closed once the writer has begun a batch in a later one and no write
//! to it is in flight.

use std::path::{Path, PathBuf};
use std::time::Duration;

use courser_core::counters::Counter;
use courser_core::id::JournalNumber;
use courser_core::journal::survey::Slot;
use courser_core::journal::writer::{Beginning, Token, Wish, WriteFailed};
use courser_core::limits;
use courser_core::shard::{CheckpointFailed, CheckpointWish, Shard, TooLittleMemory};

use crate::clock::Clock;
use crate::disk::{
    DirectoryError, DiskFile, Progress, Recovery, RecoveryError, ShardJournal, Told,
};
use crate::doorbell::Doorbell;
use crate::ring::outgoing::write_pieces;
use crate::ring::{Completion, FileSlot, Ring, Wait};
use crate::sys::Errno;

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory is not to be had.
    #[error(transparent)]
    Directory(DirectoryError),
    /// There is no room for what a start writes.
    #[error(
        "{source}\n  fix    make room on the file system of {}: a start takes up to {} MiB of it for \
         each shard, and with another number of shards than before as much again as is kept",
        directory.display(),
        limits::JOURNAL_FILE_SIZE_FIRST >> 20
    )]
    NoRoom {
        /// Where.
        directory: PathBuf,
        /// What could not be written.
        source: DirectoryError,
    },
    /// What earlier runs left cannot be had.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// There is more than fits.
    #[error(transparent)]
    Memory(#[from] TooLittleMemory),
    /// The journal cannot be written.
    #[error("a write to a journal in {} failed with {errno}\n  fix    check the device", directory.display())]
    Write {
        /// Where.
        directory: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel refused something that a journal needs.
    #[error("the kernel refused {what}: {errno}")]
    Kernel {
        /// What it was.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

impl StoreError {
    /// Of a data directory that refused something.
    pub(crate) fn refused(directory: &Path) -> impl Fn(DirectoryError) -> Self {
        move |source| match source.is_for_want_of_room() {
            true => Self::NoRoom {
                directory: directory.to_owned(),
                source,
            },
            false => Self::Directory(source),
        }
    }
}

/// What went wrong with a journal of a broker that runs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The next file is not to be had.
    #[error("{0}: what is to be flushed is refused until there is room")]
    NoFile(DirectoryError),
    /// Nothing is lost by that.
    #[error("a checkpoint could not be written: {0}\n  the journal grows until the next one is")]
    NoCheckpoint(DirectoryError),
    /// It is over.
    #[error("a write to the journal failed with {0}: nothing is made durable any more")]
    Write(Errno),
}

/// A shard's journal beside its ring.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    files: ShardJournal,
    /// The file that was written to last.
    current: Option<Slot>,
    /// What could not be asked for yet.
    postponed: Option<Wish>,
    postponed_checkpoint: Option<CheckpointWish>,
    /// Nobody but the starter gives the checkpoint its place, when all shards have theirs.
    is_divided_anew: bool,
    /// It has only to take its place.
    is_aside: bool,
    /// What the storage said that nobody was told of.
    trouble: Option<Trouble>,
    /// Whether the last file that was asked for was not to be had, which was said.
    lacks_room: bool,
}

impl Store {
    /// Tells the shard what is kept, and has its journal go on.
    pub(crate) fn open(
        recovery: &Recovery,
        checkpoint_bytes: u64,
        shard: &mut Shard,
        doorbell: Doorbell,
    ) -> Result<Self, StoreError> {
        recovery.replay(|entry| shard.restore(entry).map_err(StoreError::from))?;
        shard.restored();
        let journal = JournalNumber(shard.index().0);
        let directory = recovery.directory();
        let refused = StoreError::refused(directory.path());
        directory.make_journal(journal).map_err(refused)?;
        let shards = shard.shards();
        let files = ShardJournal::start(directory, journal, doorbell).map_err(|error| {
            StoreError::Kernel {
                what: "a thread",
                errno: Errno::of(&error),
            }
        })?;
        let next = recovery.next(journal);
        shard.keep(&Beginning {
            origin: next.origin,
            recovered: next.recovered,
            sequence: next.sequence,
            slot: next.slot,
        });
        let spares = recovery.spares().filter(|file| file.journal == journal);
        shard.keep_checkpoints(
            recovery.checkpoints(journal, shards, checkpoint_bytes),
            recovery.needed(journal),
            spares.map(|file| file.slot),
        );
        Ok(Self {
            directory: directory.path().to_owned(),
            files,
            current: None,
            postponed: None,
            postponed_checkpoint: None,
            is_divided_anew: recovery.is_divided_anew(shards),
            is_aside: false,
            trouble: None,
            lacks_room: false,
        })
    }

    /// Runs until what this run begins with is durable: the journal's first file, what is
    /// reserved ahead, and, if all is divided anew, a checkpoint that lies aside. What cannot
    /// be written ends it: nobody is there yet for whom it could wait until there is room.
    pub(crate) fn settle<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
    ) -> Result<(), StoreError> {
        let mut clock = Clock::new();
        while !shard.is_durable() || self.is_divided_anew && !self.is_aside {
            if shard.is_durable() {
                shard.begin_checkpoint();
            }
            shard.turn(clock.now());
            self.serve(ring, shard);
            // A checkpoint goes slice by slice, each in no time.
            let wait = match shard.is_checkpointing() {
                true => Wait::No,
                false => Wait::AtMost(Some(Duration::from_millis(1))),
            };
            let turned = ring.turn(wait);
            turned.map_err(|fault| StoreError::Kernel {
                what: fault.operation,
                errno: fault.errno,
            })?;
            while let Some(completion) = ring.next() {
                if let Completion::Written {
                    file,
                    token,
                    result,
                } = completion
                {
                    self.written(ring, shard, (file, token), result);
                }
            }
            self.hear(ring, shard);
            if let Some(trouble) = self.trouble() {
                return Err(self.ended_by(trouble));
            }
        }
        Ok(())
    }

    fn ended_by(&self, trouble: Trouble) -> StoreError {
        match trouble {
            Trouble::NoFile(error) | Trouble::NoCheckpoint(error) => {
                StoreError::refused(&self.directory)(error)
            }
            Trouble::Write(errno) => StoreError::Write {
                directory: self.directory.clone(),
                errno,
            },
        }
    }

    /// The starter has given the checkpoint its place, if it waited for that.
    pub(crate) fn placed(&mut self, shard: &mut Shard) {
        self.is_divided_anew = false;
        if core::mem::take(&mut self.is_aside) {
            shard.checkpoint_done(Ok(()));
        }
    }

    /// Whether the helper has something to tell; one atomic load.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.files.has_news()
    }

    /// Whether a write is under way.
    #[inline]
    pub(crate) fn is_writing(&self) -> bool {
        self.files.in_flight() > 0
    }

    /// Whether something is to come from the device.
    pub(crate) fn awaits_device(&self) -> bool {
        self.files.awaits_device()
    }

    /// What went wrong since this was asked last.
    pub(crate) fn trouble(&mut self) -> Option<Trouble> {
        self.trouble.take()
    }

    /// Tells the shard what became of its files.
    pub(crate) fn hear<R: Ring<File = DiskFile>>(&mut self, ring: &mut R, shard: &mut Shard) {
        while let Some(told) = self.files.take(ring) {
            match told {
                Told::Prepared { slot, result } => {
                    shard.prepared(slot, result.is_ok());
                    // It is asked for again and again; once is enough to be told.
                    let is_news = !std::mem::replace(&mut self.lacks_room, result.is_err());
                    if let Some(error) = result.err().filter(|_| is_news) {
                        self.trouble = Some(Trouble::NoFile(error));
                    }
                }
                Told::Removed { .. } => {}
                Told::Checkpoint { result } => {
                    shard.checkpoint_done(
                        result.as_ref().map_or(Err(CheckpointFailed), |()| Ok(())),
                    );
                    if let Err(error) = result {
                        self.trouble = Some(Trouble::NoCheckpoint(error));
                    }
                }
            }
        }
    }

    /// Does what the shard wishes, as far as it can be done now; how much that was.
    pub(crate) fn serve<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
    ) -> u32 {
        let mut work = 0;
        while let Some(wish) = self.postponed.take().or_else(|| shard.storage_wish()) {
            match wish {
                Wish::Prepare { file, size } => {
                    if !self.files.prepare(file, size) {
                        self.postponed = Some(wish);
                        return work;
                    }
                }
                Wish::Write {
                    file,
                    position,
                    token,
                } => {
                    let is_next = token.is_batch() && self.current != Some(file);
                    if is_next && let Some(before) = self.current.replace(file) {
                        self.files.retire(ring, before);
                    }
                    let length = shard.storage_pieces(token).map(<[u8]>::len).sum::<usize>();
                    let counters = shard.counters_mut();
                    counters.add(Counter::JournalWrites, 1);
                    counters.add(Counter::JournalBytes, length as u64);
                    let length = u32::try_from(length).expect("a batch has its limit");
                    let rest = self.files.begin(file, position, length, token.0);
                    write_pieces(ring, shard, rest);
                }
                Wish::Remove { file } => {
                    if !self.files.remove(file) {
                        self.postponed = Some(wish);
                        return work;
                    }
                }
            }
            work += 1;
        }
        work + self.serve_checkpoint(shard)
    }

    fn serve_checkpoint(&mut self, shard: &mut Shard) -> u32 {
        let wish = self.postponed_checkpoint.take();
        let Some(wish) = wish.or_else(|| shard.checkpoint_wish()) else {
            return 0;
        };
        match wish {
            CheckpointWish::Write {
                position,
                bytes,
                begins,
            } => {
                if let Err(bytes) = self.files.write_aside(position, bytes, begins) {
                    self.postponed_checkpoint = Some(CheckpointWish::Write {
                        position,
                        bytes,
                        begins,
                    });
                    return 0;
                }
            }
            CheckpointWish::PutInPlace if self.is_divided_anew => self.is_aside = true,
            CheckpointWish::PutInPlace => {
                if !self.files.place_checkpoint() {
                    self.postponed_checkpoint = Some(wish);
                    return 0;
                }
            }
        }
        1
    }

    /// A write is over, or a part of it.
    pub(crate) fn written<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
        (file, token): (FileSlot, u64),
        result: Result<u32, Errno>,
    ) {
        match self.files.written(ring, file, token, result) {
            Some(Progress::Durable { token }) => shard.written(Token(token), Ok(())),
            Some(Progress::Failed { token, errno }) => {
                shard.written(Token(token), Err(WriteFailed));
                self.trouble = Some(Trouble::Write(errno));
            }
            Some(Progress::Short(rest)) => write_pieces(ring, shard, rest),
            None => {}
        }
    }
}
