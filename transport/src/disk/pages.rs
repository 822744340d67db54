//! The page files that a run writes for one journal.
//!
//! ```text
//!   write   into whole blocks, past the page cache where the file system takes it
//!   read    what this run wrote
//!   flush   all that was written, and the names: before a checkpoint that names pages counts
//! ```
//!
//! Reads and writes of different pages are one [`PageBatch`], and done at the same time.
//!
//! Invariants:
//! - A file that is not open was flushed since it was last written to.
//! - A file of which a flush failed is never said to be flushed: the kernel tells that once,
//!   and may have let go of what it could not write.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use courser_core::frame::checksum;
use courser_core::id::{JournalNumber, PageNumber, Run};
use courser_core::journal::page::{self, PageFile};
use courser_core::limits::{self, PAGE_SIZE, PAGES_PER_FILE};
use courser_core::shard::PageWish;

use super::directory::{self, DataDirectory, DirectoryError, Held, page_path, trying};
use super::{BLOCK_SIZE, file};
use crate::ring::transfers::{Direction, PLACE_SIZE, PLACES, Transfer, Transfers};
use crate::sys::{self, Errno};

/// Bytes of a page file.
const FILE_SIZE: u64 = PAGE_SIZE as u64 * PAGES_PER_FILE as u64;

/// Reads and writes of a batch at most.
const BATCH_MAX: usize = PLACES;

/// A batch with so many bytes takes no more: they fill every place.
const BATCH_SIZE: usize = PLACES * PLACE_SIZE;

// Whoever waits until a batch is full must come to have one, so what waits in it must be less
// than may be leaving: whole chunks, and one more for each write that ends within its last.
const _: () = assert!(BATCH_SIZE / PAGE_SIZE as usize + BATCH_MAX < limits::CHUNKS_LEAVING_MAX);

/// Files that are open at a time. Writes go to one or two, and reads behind a backlog to one
/// for each reader that is there. A batch needs no more.
const OPEN_MAX: usize = BATCH_MAX;

/// Reads and writes of which none concerns the pages of another, so that they may be done in
/// any order.
#[derive(Debug, Default)]
pub struct PageBatch {
    accesses: Vec<Access>,
}

/// A read or a write.
#[derive(Debug)]
struct Access {
    page: PageNumber,
    /// What is to be written, or the room for what is read.
    bytes: Vec<u8>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    /// Of bytes with this CRC-32C.
    Read {
        sum: u32,
    },
}

/// A read or a write that is over.
#[derive(Debug)]
pub enum Accessed {
    /// Bytes were written, or not.
    Written {
        /// From this page on.
        page: PageNumber,
        /// How many.
        size: u64,
        /// Whether they are.
        result: Result<(), DirectoryError>,
    },
    /// Bytes were read, or not.
    Read {
        /// From this page on.
        page: PageNumber,
        /// How many it was to be.
        size: u64,
        /// Which.
        result: Result<Vec<u8>, DirectoryError>,
    },
}

impl PageBatch {
    /// Takes a read or a write.
    ///
    /// # Errors
    ///
    /// The wish, if it is neither, if there are enough, or if it has to wait for one of them.
    pub fn take(&mut self, wish: PageWish) -> Result<(), PageWish> {
        let (page, length) = match &wish {
            PageWish::Write { page, bytes } => (*page, bytes.len()),
            PageWish::Read { page, size, .. } => (*page, *size as usize),
            PageWish::RemoveFile { .. } => return Err(wish),
        };
        let pages = pages(page, length);
        let meets = |it: &Access| {
            let those = self::pages(it.page, it.bytes.len());
            those.start < pages.end && pages.start < those.end
        };
        if self.is_full() || self.accesses.iter().any(meets) {
            return Err(wish);
        }
        self.accesses.push(match wish {
            PageWish::Write { page, bytes } => Access {
                page,
                bytes,
                kind: Kind::Write,
            },
            PageWish::Read { page, size, sum } => Access {
                page,
                bytes: vec![0; size as usize],
                kind: Kind::Read { sum },
            },
            PageWish::RemoveFile { .. } => return Err(wish),
        });
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.accesses.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accesses.is_empty()
    }

    /// Whether it takes no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let size: usize = self.accesses.iter().map(|it| it.bytes.len()).sum();
        self.accesses.len() == BATCH_MAX || size >= BATCH_SIZE
    }
}

/// The pages that so many bytes from the front of one on lie in.
fn pages(page: PageNumber, length: usize) -> Range<u64> {
    let first = u64::from(page.0);
    first..first + length.div_ceil(PAGE_SIZE as usize).max(1) as u64
}

/// The page files of one journal and run. Each call waits for the device.
#[derive(Debug)]
pub struct PageFiles {
    held: Arc<Held>,
    journal: JournalNumber,
    run: Run,
    /// Those that were made and not removed.
    there: BTreeSet<u32>,
    /// The one that was used last is the last.
    open: Vec<Open>,
    /// Those of which a flush failed.
    spoilt: BTreeSet<u32>,
    /// Whether the directory has a name that was not flushed.
    has_names: bool,
    transfers: Transfers,
}

#[derive(Debug)]
struct Open {
    number: u32,
    file: Arc<File>,
    /// Whether something was written since it was flushed.
    is_dirty: bool,
}

impl PageFiles {
    /// Those of the run that begins, which has none yet. The journal's directory is there.
    #[must_use]
    pub fn new(
        directory: &DataDirectory,
        journal: JournalNumber,
        run: Run,
        transfers: Transfers,
    ) -> Self {
        Self {
            held: directory.held(),
            journal,
            run,
            there: BTreeSet::new(),
            open: Vec::new(),
            spoilt: BTreeSet::new(),
            has_names: false,
            transfers,
        }
    }

    /// Does what a batch asks for, and flushes nothing; what became of each, in their order.
    ///
    /// Bytes are written from the front of a page on; what is behind up to a whole block
    /// becomes zero. A file that is not there is made. What is read must have been written,
    /// and have the sum that it is said to have.
    ///
    /// # Panics
    ///
    /// If something goes beyond its page file.
    pub fn access(&mut self, batch: PageBatch) -> Vec<Accessed> {
        let mut accesses = batch.accesses;
        let mut ways: Vec<_> = accesses.iter().map(|access| self.way(access)).collect();
        let pieces = accesses.iter().enumerate().flat_map(|(index, access)| {
            let starts = (0..access.bytes.len()).step_by(PLACE_SIZE);
            starts.map(move |start| (index, start))
        });
        let mut pieces = pieces.collect::<Vec<_>>().into_iter().peekable();
        while pieces.peek().is_some() {
            // Of what has failed in one piece the others are no matter.
            let sound = pieces.by_ref().filter(|(index, _)| ways[*index].is_ok());
            let sound: Vec<(usize, usize)> = sound.take(PLACES).collect();
            self.transfer(&sound, &mut accesses, &mut ways);
        }
        let ended = accesses.into_iter().zip(ways);
        ended
            .map(|(access, way)| self.ended(access, way.map(drop)))
            .collect()
    }

    /// Makes the file ready that an access goes to.
    fn way(&mut self, access: &Access) -> Result<Way, DirectoryError> {
        let position = page::position(access.page);
        assert!(
            position + access.bytes.len() as u64 <= FILE_SIZE,
            "what is in a page file does not go beyond it"
        );
        let number = self.file_of(access.page);
        if access.kind != Kind::Write && !self.there.contains(&number) {
            let not_there = io::ErrorKind::NotFound.into();
            return Err(trying("read", &self.path(number))(not_there));
        }
        let place = self.open(number)?;
        let opened = &mut self.open[place];
        opened.is_dirty |= access.kind == Kind::Write;
        Ok(Way {
            file: Arc::clone(&opened.file),
            position,
        })
    }

    /// Reads or writes these pieces, each named by its access, which has not failed so far, and
    /// where in that it begins.
    fn transfer(
        &mut self,
        pieces: &[(usize, usize)],
        accesses: &mut [Access],
        ways: &mut [Result<Way, DirectoryError>],
    ) {
        for (place, (index, start)) in pieces.iter().enumerate() {
            let access = &accesses[*index];
            if access.kind == Kind::Write {
                let piece = piece(&access.bytes, *start);
                let blocks = &mut self.transfers.place(place)[..whole_blocks(piece.len())];
                blocks[..piece.len()].copy_from_slice(&access.bytes[piece.clone()]);
                blocks[piece.len()..].fill(0);
            }
        }
        let batch: Vec<_> = pieces
            .iter()
            .map(|(index, start)| {
                let access = &accesses[*index];
                let way = ways[*index].as_ref().expect("it has not failed so far");
                Transfer {
                    file: &way.file,
                    position: way.position + *start as u64,
                    length: whole_blocks(piece(&access.bytes, *start).len()),
                    direction: match access.kind {
                        Kind::Write => Direction::Write,
                        Kind::Read { .. } => Direction::Read,
                    },
                }
            })
            .collect();
        let results = self.transfers.run(&batch);
        for (place, ((index, start), result)) in pieces.iter().zip(results).enumerate() {
            let access = &mut accesses[*index];
            let piece = piece(&access.bytes, *start);
            match (result, access.kind) {
                (Ok(()), Kind::Write) => {}
                (Ok(()), Kind::Read { .. }) => {
                    let bytes = &self.transfers.place(place)[..piece.len()];
                    access.bytes[piece].copy_from_slice(bytes);
                }
                (Err(error), kind) => {
                    let operation = match kind {
                        Kind::Write => "write to",
                        Kind::Read { .. } => "read",
                    };
                    let path = self.path(self.file_of(access.page));
                    ways[*index] = Err(trying(operation, &path)(error));
                }
            }
        }
    }

    /// Looks at what was read.
    fn ended(&self, access: Access, result: Result<(), DirectoryError>) -> Accessed {
        let Access { page, bytes, kind } = access;
        let size = bytes.len() as u64;
        let Kind::Read { sum } = kind else {
            return Accessed::Written { page, size, result };
        };
        let result = result.and_then(|()| {
            if checksum::body(&bytes) == sum {
                return Ok(bytes);
            }
            let story = format!("page {page} has other bytes than were written there");
            let path = self.path(self.file_of(page));
            Err(trying("read", &path)(io::Error::other(story)))
        });
        Accessed::Read { page, size, result }
    }

    /// Removes the file of these pages, if it is there. Nothing waits for that to be durable:
    /// the next start removes what no checkpoint names.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn remove(&mut self, number: u32) -> Result<(), DirectoryError> {
        if self.there.remove(&number) {
            self.open.retain(|open| open.number != number);
            self.spoilt.remove(&number);
            let path = self.path(number);
            fs::remove_file(&path).map_err(trying("remove", &path))?;
        }
        Ok(())
    }

    /// Has all that was written be there for good, and the names of the files.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or has refused to flush a file that is still there.
    pub fn flush(&mut self) -> Result<(), DirectoryError> {
        for place in 0..self.open.len() {
            self.flush_file(place)?;
        }
        if let Some(number) = self.spoilt.first() {
            let story = io::Error::other("an earlier flush of it failed");
            return Err(trying("flush", &self.path(*number))(story));
        }
        if self.has_names {
            let folder = self.held.inside(directory::folder(self.journal).as_ref());
            directory::sync_directory(&folder)?;
            self.has_names = false;
        }
        Ok(())
    }

    fn flush_file(&mut self, place: usize) -> Result<(), DirectoryError> {
        let opened = &mut self.open[place];
        if std::mem::take(&mut opened.is_dirty)
            && let Err(error) = opened.file.sync_data()
        {
            let number = opened.number;
            self.spoilt.insert(number);
            return Err(trying("flush", &self.path(number))(error));
        }
        Ok(())
    }

    fn file_of(&self, page: PageNumber) -> u32 {
        PageFile::of(self.run, page).number
    }

    fn path(&self, number: u32) -> PathBuf {
        let run = self.run;
        let path = page_path(self.journal, PageFile { run, number });
        self.held.inside(&path)
    }

    /// Where in `open` a file is, which is opened, and made, if need be.
    fn open(&mut self, number: u32) -> Result<usize, DirectoryError> {
        let last = self.open.len();
        if let Some(place) = self.open.iter().position(|open| open.number == number) {
            self.open[place..].rotate_left(1);
            return Ok(last - 1);
        }
        if last == OPEN_MAX {
            // What comes of it stands in the books: no checkpoint counts without this file.
            drop(self.flush_file(0));
            self.open.remove(0);
        }
        let is_new = !self.there.contains(&number);
        let file = self.open_file(number, is_new)?;
        if is_new {
            self.there.insert(number);
            self.has_names = true;
        }
        self.open.push(Open {
            number,
            file: Arc::new(file),
            is_dirty: is_new,
        });
        Ok(self.open.len() - 1)
    }

    fn open_file(&self, number: u32, is_new: bool) -> Result<File, DirectoryError> {
        let path = self.path(number);
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(is_new)
                .truncate(is_new)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | flags)
                .open(&path)
        };
        let opened = match open(libc::O_DIRECT) {
            Ok(file) if file::takes_direct(file.as_fd()) => Ok(file),
            Ok(_) => open(0),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
            Err(error) => Err(error),
        };
        let file = opened.map_err(trying("open", &path))?;
        if is_new && let Err((operation, error)) = allocate(&file) {
            // It holds nothing, and what could not be had of it others may need.
            fs::remove_file(&path).ok();
            return Err(trying(operation, &path)(error));
        }
        Ok(file)
    }
}

/// Has the whole file be there, so that a write into it changes little besides.
fn allocate(file: &File) -> Result<(), file::Failed> {
    match sys::allocate(file.as_fd(), FILE_SIZE) {
        // Not every file system can; then each write finds out whether there is room.
        Ok(()) | Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS)) => {}
        Err(errno) => return Err(("allocate", errno.into())),
    }
    file.set_len(FILE_SIZE).map_err(|error| ("allocate", error))
}

/// Where an access goes.
#[derive(Debug)]
struct Way {
    file: Arc<File>,
    position: u64,
}

/// The piece of these bytes that begins there.
fn piece(bytes: &[u8], start: usize) -> Range<usize> {
    start..bytes.len().min(start + PLACE_SIZE)
}

fn whole_blocks(length: usize) -> usize {
    length.next_multiple_of(BLOCK_SIZE as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::super::scratch::{Scratch, alone_on_a_small_file_system, small_file_system};
    use super::*;

    const JOURNAL: JournalNumber = JournalNumber(3);
    const RUN: Run = Run(7);

    fn files(scratch: &Scratch) -> PageFiles {
        let directory = DataDirectory::open(scratch.path()).unwrap();
        directory.make_journal(JOURNAL).unwrap();
        PageFiles::new(&directory, JOURNAL, RUN, Transfers::at_once().unwrap())
    }

    /// What becomes of one alone.
    fn access(files: &mut PageFiles, wish: PageWish) -> Accessed {
        let mut batch = PageBatch::default();
        batch.take(wish).unwrap();
        files.access(batch).pop().unwrap()
    }

    fn write(files: &mut PageFiles, page: PageNumber, bytes: &[u8]) -> Result<(), DirectoryError> {
        let bytes = bytes.to_vec();
        match access(files, PageWish::Write { page, bytes }) {
            Accessed::Written { result, .. } => result,
            Accessed::Read { .. } => unreachable!("it is a write"),
        }
    }

    fn read_with(
        files: &mut PageFiles,
        page: PageNumber,
        size: u32,
        sum: u32,
    ) -> Result<Vec<u8>, DirectoryError> {
        match access(files, PageWish::Read { page, size, sum }) {
            Accessed::Read { result, .. } => result,
            Accessed::Written { .. } => unreachable!("it is a read"),
        }
    }

    fn names(scratch: &Scratch) -> Vec<String> {
        let entries = fs::read_dir(scratch.path().join("journal-03")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    /// Bytes of which no two stretches are alike.
    fn bytes(seed: u32, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    fn size(bytes: &[u8]) -> u32 {
        u32::try_from(bytes.len()).unwrap()
    }

    /// What is read where these bytes were written.
    fn read(files: &mut PageFiles, page: PageNumber, written: &[u8]) -> Vec<u8> {
        let sum = checksum::body(written);
        read_with(files, page, size(written), sum).unwrap()
    }

    #[test]
    fn other_bytes_than_were_written_are_refused_by_name() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        let mut bytes = bytes(1, 5_000);
        let sum = checksum::body(&bytes);
        bytes[4_321] ^= 4;
        write(&mut files, PageNumber(3), &bytes).unwrap();
        let refused = read_with(&mut files, PageNumber(3), 5_000, sum).unwrap_err();
        let path = scratch.path().join("journal-03/00000007-000000.pages");
        assert_eq!(
            refused.to_string(),
            format!(
                "cannot read {}: page 3 has other bytes than were written there",
                path.display()
            )
        );
    }

    #[test]
    fn pages_are_read_as_they_were_written_and_their_neighbours_stay() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        let page = PAGE_SIZE as usize;
        let lengths = [
            page,
            8,
            page - 8,
            4096,
            4104,
            4 * page,
            9 * page + 264,
            1000,
        ];
        let mut all = Vec::new();
        let mut next = PAGES_PER_FILE - 3;
        for (seed, length) in (1..).zip(lengths) {
            let pages = size(&bytes(0, length)).div_ceil(PAGE_SIZE);
            if next % PAGES_PER_FILE + pages > PAGES_PER_FILE {
                next = next.next_multiple_of(PAGES_PER_FILE);
            }
            all.push((PageNumber(next), bytes(seed, length)));
            next += pages;
        }
        // Those behind first: what a write does not say it leaves.
        for (page, bytes) in all.iter().rev() {
            write(&mut files, *page, bytes).unwrap();
        }
        for (page, bytes) in &all {
            assert!(read(&mut files, *page, bytes) == *bytes, "{page}");
        }
        files.flush().unwrap();
        assert_eq!(
            names(&scratch),
            ["00000007-000000.pages", "00000007-000001.pages"]
        );
        // They lie where the format says.
        let (page, written) = all.last().unwrap();
        let file = PageFile::of(RUN, *page);
        let image = fs::read(scratch.path().join(page_path(JOURNAL, file))).unwrap();
        let from = usize::try_from(page::position(*page)).unwrap();
        assert!(image[from..from + written.len()] == written[..]);
        assert_eq!(image.len() as u64, FILE_SIZE);
    }

    #[test]
    fn a_batch_has_reads_and_writes_of_different_pages_only() {
        let mut batch = PageBatch::default();
        let write = |page, length| PageWish::Write {
            page: PageNumber(page),
            bytes: vec![1; length],
        };
        let read = |page, size| PageWish::Read {
            page: PageNumber(page),
            size,
            sum: 0,
        };
        assert!(batch.is_empty() && !batch.is_full());
        let two_pages = PAGE_SIZE as usize + 8;
        batch.take(write(5, two_pages)).unwrap();
        for meets in [
            write(5, 8),
            write(6, 8),
            read(6, PAGE_SIZE),
            read(4, 2 * PAGE_SIZE),
            write(3, 4 * PAGE_SIZE as usize),
            PageWish::RemoveFile { file: 9 },
        ] {
            assert_eq!(batch.take(meets.clone()), Err(meets));
        }
        batch.take(read(4, PAGE_SIZE)).unwrap();
        batch.take(read(7, 8)).unwrap();
        assert_eq!(batch.len(), 3);
        for page in 8.. {
            if batch.is_full() {
                break;
            }
            batch.take(read(page, 8)).unwrap();
        }
        assert_eq!(batch.len(), BATCH_MAX);
        assert_eq!(batch.take(read(99, 8)), Err(read(99, 8)));
    }

    #[test]
    fn each_of_a_batch_is_told_for_itself_and_in_its_order() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        // Others are open, and were written to.
        let page = |index: u32| PageNumber(index * PAGES_PER_FILE);
        let others = 20..20 + u32::try_from(OPEN_MAX).unwrap();
        for index in others.clone() {
            write(&mut files, page(index), &bytes(index, 64)).unwrap();
        }
        // In as many files as are open at a time, and more pieces than have places.
        let length = |seed: u32| {
            if seed.is_multiple_of(2) {
                100_000
            } else {
                20_000
            }
        };
        let all: Vec<_> = (0..8).map(|seed| bytes(seed, length(seed))).collect();
        let mut batch = PageBatch::default();
        for (index, bytes) in (0..).zip(&all) {
            let (page, bytes) = (page(index), bytes.clone());
            batch.take(PageWish::Write { page, bytes }).unwrap();
        }
        for (index, written) in files.access(batch).iter().enumerate() {
            let Accessed::Written {
                page: at,
                size,
                result: Ok(()),
            } = written
            else {
                panic!("{written:?}");
            };
            assert_eq!(*size, all[index].len() as u64);
            assert_eq!(*at, page(u32::try_from(index).unwrap()));
        }
        let mut batch = PageBatch::default();
        for (index, bytes) in (0..).zip(&all) {
            // One has other bytes, and one is not there.
            let sum = checksum::body(bytes) ^ u32::from(index == 2);
            let page = if index == 4 { page(90) } else { page(index) };
            let size = size(bytes);
            batch.take(PageWish::Read { page, size, sum }).unwrap();
        }
        for (index, read) in files.access(batch).into_iter().enumerate() {
            let Accessed::Read { result, .. } = read else {
                panic!("{read:?}");
            };
            match index {
                2 => assert!(result.unwrap_err().to_string().contains("other bytes")),
                4 => assert!(result.unwrap_err().to_string().contains("-000090.pages")),
                _ => assert!(result.unwrap() == all[index], "{index}"),
            }
        }
        for index in others {
            let written = bytes(index, 64);
            assert!(read(&mut files, page(index), &written) == written);
        }
    }

    #[test]
    fn a_batch_that_fills_every_place_takes_no_more() {
        let mut batch = PageBatch::default();
        let write = |page, length| PageWish::Write {
            page: PageNumber(page),
            bytes: vec![1; length],
        };
        batch.take(write(0, BATCH_SIZE - 8)).unwrap();
        assert!(!batch.is_full());
        batch.take(write(100, 4 * BATCH_SIZE)).unwrap();
        assert!(batch.is_full() && batch.len() == 2);
        assert_eq!(batch.take(write(500, 8)), Err(write(500, 8)));
    }

    #[test]
    fn what_fails_half_way_leaves_the_others_of_its_batch_alone() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        write(&mut files, PageNumber(0), &[1; 8]).unwrap();
        let path = scratch.path().join("journal-03/00000007-000000.pages");
        files.open[0].file = Arc::new(File::open(path).unwrap());
        // The one that fails has the last place of the first eight pieces, and one behind it.
        let at = |index: u32| PageNumber(PAGES_PER_FILE + 2 * index);
        let mut all = vec![(at(0), bytes(0, 8))];
        all.extend((1..6).map(|index| (at(index), bytes(index, PLACE_SIZE + 8))));
        all[4].0 = PageNumber(0);
        let mut batch = PageBatch::default();
        for (page, bytes) in all.clone() {
            batch.take(PageWish::Write { page, bytes }).unwrap();
        }
        for (index, written) in files.access(batch).into_iter().enumerate() {
            let Accessed::Written { result, .. } = written else {
                panic!("{written:?}");
            };
            assert_eq!(result.is_err(), index == 4, "{index}: {result:?}");
            if let Err(refused) = result {
                assert!(refused.to_string().starts_with("cannot write to "));
            }
        }
        all.remove(4);
        for (page, written) in &all {
            assert!(read(&mut files, *page, written) == *written, "{page}");
        }
    }

    #[test]
    fn a_page_is_written_again() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        for (seed, length) in [(1, 65_536), (2, 80), (3, 12_000)] {
            let bytes = bytes(seed, length);
            write(&mut files, PageNumber(5), &bytes).unwrap();
            assert!(read(&mut files, PageNumber(5), &bytes) == bytes);
        }
    }

    #[test]
    fn many_files_are_had_with_few_of_them_open() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        let count = u32::try_from(2 * OPEN_MAX).unwrap();
        for round in 0..2 {
            for number in 0..count {
                let page = PageNumber(number * PAGES_PER_FILE + round);
                write(&mut files, page, &bytes(number + round, 4096)).unwrap();
                assert!(files.open.len() <= OPEN_MAX);
            }
        }
        for number in 0..count {
            let page = PageNumber(number * PAGES_PER_FILE + 1);
            let written = bytes(number + 1, 4096);
            assert!(read(&mut files, page, &written) == written);
        }
        files.flush().unwrap();
        assert!(files.open.iter().all(|open| !open.is_dirty));
    }

    #[test]
    fn a_file_that_is_removed_is_gone_and_may_be_made_again() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        write(&mut files, PageNumber(0), &[7; 64]).unwrap();
        write(&mut files, PageNumber(PAGES_PER_FILE), &[8; 64]).unwrap();
        files.remove(0).unwrap();
        files.remove(9).unwrap();
        assert_eq!(names(&scratch), ["00000007-000001.pages"]);
        let refused = read_with(&mut files, PageNumber(0), 64, 0).unwrap_err();
        assert!(refused.to_string().starts_with("cannot read "), "{refused}");
        assert_eq!(names(&scratch), ["00000007-000001.pages"]);
        write(&mut files, PageNumber(1), &[9; 64]).unwrap();
        assert_eq!(read(&mut files, PageNumber(1), &[9; 64]), [9; 64]);
        assert_eq!(read(&mut files, PageNumber(0), &[0; 64]), [0; 64]);
        files.flush().unwrap();
    }

    #[test]
    fn a_file_has_its_space_when_it_is_made() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        write(&mut files, PageNumber(3), &[1; 8]).unwrap();
        let path = scratch.path().join("journal-03/00000007-000000.pages");
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(metadata.len(), FILE_SIZE);
        assert_eq!(metadata.mode() & 0o777, 0o600);
        let is_allocated = metadata.blocks() * 512 >= FILE_SIZE;
        assert!(is_allocated, "a write would find no room");
    }

    #[test]
    fn a_file_system_in_memory_is_used_through_its_cache() {
        let Ok(scratch) = Scratch::within(Path::new("/dev/shm")) else {
            eprintln!("SKIPPED: no file system in memory here");
            return;
        };
        let mut files = files(&scratch);
        let bytes = bytes(4, 70_000);
        if let Err(refused) = write(&mut files, PageNumber(2), &bytes) {
            eprintln!("SKIPPED: {refused}");
            return;
        }
        assert!(read(&mut files, PageNumber(2), &bytes) == bytes);
        files.flush().unwrap();
    }

    #[test]
    fn what_could_not_be_flushed_is_never_said_to_be() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        write(&mut files, PageNumber(0), &[7; 64]).unwrap();
        // A pipe cannot be flushed.
        let (_reader, writer) = io::pipe().unwrap();
        files.open[0].file = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
        for _ in 0..3 {
            let refused = files.flush().unwrap_err().to_string();
            assert!(refused.starts_with("cannot flush "), "{refused}");
            assert!(refused.contains("00000007-000000.pages"), "{refused}");
        }
        write(&mut files, PageNumber(PAGES_PER_FILE), &[8; 64]).unwrap();
        assert!(files.flush().is_err());
        // Of a file that is gone nothing is needed.
        files.remove(0).unwrap();
        files.flush().unwrap();
    }

    #[test]
    fn without_room_no_file_is_made() {
        alone_on_a_small_file_system("disk::pages::tests::without_room");
    }

    #[test]
    #[ignore = "run by a test in a process with a file system of its own"]
    fn without_room() {
        let scratch = Scratch::within(&small_file_system()).unwrap();
        let mut files = files(&scratch);
        for _ in 0..2 {
            let refused = write(&mut files, PageNumber(0), &[7; 64]).unwrap_err();
            assert!(refused.is_for_want_of_room(), "{refused}");
            assert_eq!(names(&scratch), [""; 0]);
        }
        files.flush().unwrap();
    }
}
