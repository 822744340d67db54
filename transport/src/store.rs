//! A shard's journal between the machine and the ring.
//!
//! ```text
//!   start  Recovery -> Shard::restore, entry by entry -> Shard::keep
//!   run    Shard::storage_wish -> Store -> ring ... written -> Shard::written
//!          Shard::page_wish -> Store -> PageHelper ... PageDone -> Shard::page_written
//! ```
//!
//! Invariants: what a checkpoint says to be in pages is flushed before the checkpoint takes
//! its place. A file is closed once the writer has begun a batch in a later one and no write
//! to it is in flight.

use std::mem;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use courser_core::counters::Counter;
use courser_core::id::JournalNumber;
use courser_core::journal::survey::Slot;
use courser_core::journal::writer::{Beginning, Token, Wish, WriteFailed};
use courser_core::limits;
use courser_core::shard::{CheckpointFailed, CheckpointWish, PageFailed, Shard, TooLittleMemory};

use crate::clock::Clock;
use crate::disk::{
    Accessed, DirectoryError, DiskFile, PageDone, PageHelper, PagesAtStart, Progress, Recovery,
    RecoveryError, ShardJournal, Told,
};
use crate::doorbell::Doorbell;
use crate::ring::outgoing::write_pieces;
use crate::ring::{Completion, FileSlot, Ring, Wait};
use crate::sys::{self, Errno};

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory is not to be had.
    #[error(transparent)]
    Directory(DirectoryError),
    /// There is no room for what a start writes.
    #[error(
        "{source}\n  fix    make room on the file system of {}: a start takes up to {} MiB of it for \
         each shard, as much as what is kept exceeds the memory, and with another number of \
         shards than before as much again as is kept",
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
    /// What has no room in memory stays there.
    #[error(
        "what memory is short for could not be written to a page file: {0}\n  \
         producers wait until there is room, and it is tried again"
    )]
    NotPagedOut(DirectoryError),
    /// What lies there cannot be delivered.
    #[error("a page file could not be read: {0}\n  the messages there wait, and it is tried again")]
    NotPagedIn(DirectoryError),
    /// Only room is lost by that.
    #[error("a page file of which nothing is needed is still there: {0}")]
    PagesStay(DirectoryError),
    /// It is over.
    #[error("a write to the journal failed with {0}: nothing is made durable any more")]
    Write(Errno),
}

/// A shard's journal beside its ring.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    files: ShardJournal,
    /// If there is to be a backlog beyond memory.
    pages: Option<PageHelper>,
    /// The file that was written to last.
    current: Option<Slot>,
    /// What could not be asked for yet.
    postponed: Option<Wish>,
    postponed_checkpoint: Option<CheckpointWish>,
    /// Nobody but the starter gives the checkpoint its place, when all shards have theirs.
    is_divided_anew: bool,
    /// It has only to take its place.
    is_aside: bool,
    /// All that it says to be in pages is flushed.
    is_flushed: bool,
    /// What the storage said that nobody was told of.
    trouble: Option<Trouble>,
    /// Whether the last file that was asked for was not to be had, which was said.
    lacks_room: bool,
    /// Whether the last write to a page file failed, which was said.
    fails_to_page_out: bool,
    /// Whether the last read of one failed, which was said.
    fails_to_page_in: bool,
}

/// How much of what is kept lies where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Bytes that are journalled between two checkpoints.
    pub(crate) checkpoint: u64,
    /// Pages for a backlog beyond memory; none if there is to be no such.
    pub(crate) pages: u32,
}

impl Store {
    /// Tells the shard what is kept, and has its journal go on.
    pub(crate) fn open(
        recovery: &Recovery,
        extent: Extent,
        shard: &mut Shard,
        doorbell: Doorbell,
    ) -> Result<Self, StoreError> {
        let journal = JournalNumber(shard.index().0);
        let directory = recovery.directory();
        let refused = StoreError::refused(directory.path());
        directory.make_journal(journal).map_err(&refused)?;
        let mut pages = match extent.pages {
            0 => None,
            pages => {
                let files = recovery.page_files(journal);
                let files = files.map_err(|errno| StoreError::Kernel {
                    what: "memory for pages",
                    errno,
                })?;
                // What is written of them before the helper has them, this thread writes.
                sys::refuse_large_files_quietly();
                shard.keep_pages(pages);
                Some(PagesAtStart::new(files))
            }
        };
        recovery.replay(|entry| {
            let Some(pages) = &mut pages else {
                return Ok(shard.restore(entry)?);
            };
            while shard.awaits_pages_for(entry) {
                if !pages.finish(shard).map_err(&refused)? {
                    let bound = shard.memory().bound;
                    return Err(TooLittleMemory { bound }.into());
                }
            }
            shard.restore(entry)?;
            pages.gather(shard).map_err(&refused)
        })?;
        if let Some(pages) = &mut pages {
            pages.finish(shard).map_err(&refused)?;
        }
        shard.restored();
        let shards = shard.shards();
        let thread = |error| StoreError::Kernel {
            what: "a thread",
            errno: Errno::of(&error),
        };
        let next = recovery.next(journal);
        let files = ShardJournal::start(directory, journal, next.origin.run, doorbell.clone());
        let files = files.map_err(thread)?;
        let pages = pages.map(|pages| PageHelper::start(pages.into_files(), doorbell));
        let pages = pages.transpose().map_err(thread)?;
        shard.keep(&Beginning {
            origin: next.origin,
            recovered: next.recovered,
            sequence: next.sequence,
            slot: next.slot,
        });
        let spares = recovery.spares().filter(|file| file.journal == journal);
        shard.keep_checkpoints(
            recovery.checkpoints(journal, shards, extent.checkpoint),
            recovery.needed(journal),
            spares.map(|file| file.slot),
        );
        Ok(Self {
            directory: directory.path().to_owned(),
            files,
            pages,
            current: None,
            postponed: None,
            postponed_checkpoint: None,
            is_divided_anew: recovery.is_divided_anew(shards),
            is_aside: false,
            is_flushed: false,
            trouble: None,
            lacks_room: false,
            fails_to_page_out: false,
            fails_to_page_in: false,
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
                self.completed(ring, shard, completion);
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
            Trouble::NoFile(error)
            | Trouble::NoCheckpoint(error)
            | Trouble::NotPagedOut(error)
            | Trouble::NotPagedIn(error)
            | Trouble::PagesStay(error) => StoreError::refused(&self.directory)(error),
            Trouble::Write(errno) => StoreError::Write {
                directory: self.directory.clone(),
                errno,
            },
        }
    }

    /// The starter has given the checkpoint its place, if it waited for that.
    pub(crate) fn placed(&mut self, shard: &mut Shard) {
        self.is_divided_anew = false;
        if mem::take(&mut self.is_aside) {
            shard.checkpoint_done(Ok(()));
        }
    }

    /// Has a last checkpoint made, of a shard that nobody uses any more, if that spares the
    /// next start much. No promise depends on it: if it takes longer than
    /// [`limits::LAST_CHECKPOINT_TIMEOUT`] or something goes wrong, there is none.
    pub(crate) fn make_last_checkpoint<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
        clock: &mut Clock,
    ) {
        if !shard.is_checkpointing() {
            if !shard.gains_by_checkpoint() {
                return;
            }
            shard.begin_checkpoint();
        }
        let until = (clock.now().monotonic).after(limits::LAST_CHECKPOINT_TIMEOUT);
        loop {
            let now = clock.now();
            if !shard.is_checkpointing() || shard.is_broken() || now.monotonic >= until {
                return;
            }
            shard.turn(now);
            let work = self.serve(ring, shard);
            if ring.turn(Wait::No).is_err() {
                return;
            }
            while let Some(completion) = ring.next() {
                self.completed(ring, shard, completion);
            }
            self.hear(ring, shard);
            if work == 0 {
                // The device's turn, or its helper's.
                thread::yield_now();
            }
        }
    }

    /// A write is over; whatever else it is, is nobody's yet or any more.
    fn completed<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
        completion: Completion,
    ) {
        if let Completion::Written {
            file,
            token,
            result,
        } = completion
        {
            self.written(ring, shard, (file, token), result);
        }
    }

    /// Whether a helper has something to tell; one atomic load for each of them.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.files.has_news() || self.pages.as_ref().is_some_and(|pages| !pages.is_empty())
    }

    /// Whether a write is under way.
    #[inline]
    pub(crate) fn is_writing(&self) -> bool {
        self.files.in_flight() > 0
    }

    /// Whether something is to come from the device.
    pub(crate) fn awaits_device(&self) -> bool {
        self.files.awaits_device() || self.pages.as_ref().is_some_and(PageHelper::is_busy)
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
                Told::PagesRemoved { result } => {
                    if let Err(error) = result {
                        self.trouble = Some(Trouble::PagesStay(error));
                    }
                }
            }
        }
        self.hear_of_pages(shard);
    }

    /// Tells the shard what became of its pages.
    fn hear_of_pages(&mut self, shard: &mut Shard) {
        while let Some(done) = self.pages.as_mut().and_then(PageHelper::take) {
            match done {
                PageDone::Accessed(Accessed::Written { page, result, .. }) => {
                    shard.page_written(page, result.as_ref().map_err(|_| PageFailed).copied());
                    // It is tried again and again; once is enough to be told.
                    let is_news = !mem::replace(&mut self.fails_to_page_out, result.is_err());
                    if let Some(error) = result.err().filter(|_| is_news) {
                        self.trouble = Some(Trouble::NotPagedOut(error));
                    }
                }
                PageDone::Accessed(Accessed::Read { page, result, .. }) => {
                    shard.page_read(page, result.as_deref().map_err(|_| PageFailed));
                    let is_news = !mem::replace(&mut self.fails_to_page_in, result.is_err());
                    if let Some(error) = result.err().filter(|_| is_news) {
                        self.trouble = Some(Trouble::NotPagedIn(error));
                    }
                }
                PageDone::Removed { result } => {
                    if let Err(error) = result {
                        self.trouble = Some(Trouble::PagesStay(error));
                    }
                }
                PageDone::Flushed { result: Ok(()) } => {
                    self.is_flushed = true;
                    self.postponed_checkpoint = Some(CheckpointWish::PutInPlace);
                }
                PageDone::Flushed { result: Err(error) } => {
                    shard.checkpoint_done(Err(CheckpointFailed));
                    self.trouble = Some(Trouble::NoCheckpoint(error));
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
        let mut work = self.serve_pages(shard);
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

    /// What has no room at the helper stays with the shard.
    fn serve_pages(&mut self, shard: &mut Shard) -> u32 {
        let Some(pages) = &mut self.pages else {
            return 0;
        };
        let mut work = 0;
        while pages.has_room()
            && let Some(wish) = shard.page_wish()
        {
            pages.ask(wish);
            work += 1;
        }
        work
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
            CheckpointWish::PutInPlace => {
                if let Some(pages) = self.pages.as_mut().filter(|_| !self.is_flushed) {
                    pages.flush();
                    return 1;
                }
                if self.is_divided_anew {
                    self.is_aside = true;
                } else if !self.files.place_checkpoint() {
                    self.postponed_checkpoint = Some(wish);
                    return 0;
                }
                self.is_flushed = false;
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
