//! The page files that a run writes for one journal.
//!
//! ```text
//!   write   into whole blocks, past the page cache where the file system takes it
//!   read    what this run wrote
//!   flush   all that was written, and the names: before a checkpoint that names pages counts
//! ```
//!
//! Invariants:
//! - A file that is not open was flushed since it was last written to.
//! - A file of which a flush failed is never said to be flushed: the kernel tells that once,
//!   and may have let go of what it could not write.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::{cmp, io};

use courser_core::frame::checksum;
use courser_core::id::{JournalNumber, PageNumber, Run};
use courser_core::journal::page::{self, PageFile};
use courser_core::limits::{PAGE_SIZE, PAGES_PER_FILE};

use super::directory::{self, DataDirectory, DirectoryError, Held, page_path, trying};
use super::{BLOCK_SIZE, file};
use crate::sys::{self, Errno};

/// Bytes of a page file.
const FILE_SIZE: u64 = PAGE_SIZE as u64 * PAGES_PER_FILE as u64;

/// Bytes that are read or written in one call: four pages.
const BOUNCE_SIZE: usize = 4 * PAGE_SIZE as usize;

/// Files that are open at a time. Writes go to one or two, and reads behind a backlog to one
/// for each reader that is there.
const OPEN_MAX: usize = 8;

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
    bounce: Bounce,
}

#[derive(Debug)]
struct Open {
    number: u32,
    file: File,
    /// Whether something was written since it was flushed.
    is_dirty: bool,
}

impl PageFiles {
    /// Those of the run that begins, which has none yet. The journal's directory is there.
    #[must_use]
    pub fn new(directory: &DataDirectory, journal: JournalNumber, run: Run) -> Self {
        Self {
            held: directory.held(),
            journal,
            run,
            there: BTreeSet::new(),
            open: Vec::new(),
            spoilt: BTreeSet::new(),
            has_names: false,
            bounce: Bounce::new(),
        }
    }

    /// Writes from the front of a page on; what is behind up to a whole block becomes zero.
    /// Makes the file of that page if it is not there. Flushes nothing.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, as where there is no room.
    ///
    /// # Panics
    ///
    /// If that goes beyond the page's file.
    pub fn write(&mut self, page: PageNumber, bytes: &[u8]) -> Result<(), DirectoryError> {
        let (number, mut position) = self.place(page, bytes.len());
        let path = self.path(number);
        let place = self.open(number)?;
        let opened = &mut self.open[place];
        opened.is_dirty = true;
        for piece in bytes.chunks(BOUNCE_SIZE) {
            let blocks = self.bounce.blocks(piece.len());
            blocks[..piece.len()].copy_from_slice(piece);
            blocks[piece.len()..].fill(0);
            let written = opened.file.write_all_at(blocks, position);
            written.map_err(trying("write to", &path))?;
            position += piece.len() as u64;
        }
        Ok(())
    }

    /// The bytes from the front of a page on, which were written.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, if there are not so many, or if they have another CRC-32C.
    ///
    /// # Panics
    ///
    /// If that goes beyond the page's file.
    pub fn read(
        &mut self,
        page: PageNumber,
        size: u32,
        sum: u32,
    ) -> Result<Vec<u8>, DirectoryError> {
        let mut bytes = vec![0; size as usize];
        let (number, mut position) = self.place(page, bytes.len());
        let path = self.path(number);
        if !self.there.contains(&number) {
            return Err(trying("read", &path)(io::ErrorKind::NotFound.into()));
        }
        let place = self.open(number)?;
        let opened = &self.open[place];
        for piece in bytes.chunks_mut(BOUNCE_SIZE) {
            let blocks = self.bounce.blocks(piece.len());
            let read = opened.file.read_exact_at(blocks, position);
            read.map_err(trying("read", &path))?;
            piece.copy_from_slice(&blocks[..piece.len()]);
            position += piece.len() as u64;
        }
        if checksum::body(&bytes) != sum {
            let story = format!("page {page} has other bytes than were written there");
            return Err(trying("read", &path)(io::Error::other(story)));
        }
        Ok(bytes)
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

    fn place(&self, page: PageNumber, length: usize) -> (u32, u64) {
        let position = page::position(page);
        assert!(
            position + length as u64 <= FILE_SIZE,
            "what is in a page file does not go beyond it"
        );
        (PageFile::of(self.run, page).number, position)
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
            file,
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

/// Memory that a device can take from: at a multiple of the block.
struct Bounce {
    memory: Vec<u8>,
    skip: usize,
}

impl Bounce {
    fn new() -> Self {
        let block = BLOCK_SIZE as usize;
        let memory = vec![0; BOUNCE_SIZE + block];
        Self {
            skip: memory.as_ptr().align_offset(block),
            memory,
        }
    }

    /// As many whole blocks of it as so many bytes take.
    fn blocks(&mut self, length: usize) -> &mut [u8] {
        let size = cmp::min(length.next_multiple_of(BLOCK_SIZE as usize), BOUNCE_SIZE);
        &mut self.memory[self.skip..][..size]
    }
}

impl std::fmt::Debug for Bounce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bounce").finish_non_exhaustive()
    }
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
        PageFiles::new(&directory, JOURNAL, RUN)
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
        files.read(page, size(written), sum).unwrap()
    }

    #[test]
    fn other_bytes_than_were_written_are_refused_by_name() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        let mut bytes = bytes(1, 5_000);
        let sum = checksum::body(&bytes);
        bytes[4_321] ^= 4;
        files.write(PageNumber(3), &bytes).unwrap();
        let refused = files.read(PageNumber(3), 5_000, sum).unwrap_err();
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
            files.write(*page, bytes).unwrap();
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
    fn a_page_is_written_again() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        for (seed, length) in [(1, 65_536), (2, 80), (3, 12_000)] {
            let bytes = bytes(seed, length);
            files.write(PageNumber(5), &bytes).unwrap();
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
                files.write(page, &bytes(number + round, 4096)).unwrap();
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
        files.write(PageNumber(0), &[7; 64]).unwrap();
        files.write(PageNumber(PAGES_PER_FILE), &[8; 64]).unwrap();
        files.remove(0).unwrap();
        files.remove(9).unwrap();
        assert_eq!(names(&scratch), ["00000007-000001.pages"]);
        let refused = files.read(PageNumber(0), 64, 0).unwrap_err();
        assert!(refused.to_string().starts_with("cannot read "), "{refused}");
        assert_eq!(names(&scratch), ["00000007-000001.pages"]);
        files.write(PageNumber(1), &[9; 64]).unwrap();
        assert_eq!(read(&mut files, PageNumber(1), &[9; 64]), [9; 64]);
        assert_eq!(read(&mut files, PageNumber(0), &[0; 64]), [0; 64]);
        files.flush().unwrap();
    }

    #[test]
    fn a_file_has_its_space_when_it_is_made() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        files.write(PageNumber(3), &[1; 8]).unwrap();
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
        if let Err(refused) = files.write(PageNumber(2), &bytes) {
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
        files.write(PageNumber(0), &[7; 64]).unwrap();
        // A pipe cannot be flushed.
        let (_reader, writer) = io::pipe().unwrap();
        files.open[0].file = File::from(std::os::fd::OwnedFd::from(writer));
        for _ in 0..3 {
            let refused = files.flush().unwrap_err().to_string();
            assert!(refused.starts_with("cannot flush "), "{refused}");
            assert!(refused.contains("00000007-000000.pages"), "{refused}");
        }
        files.write(PageNumber(PAGES_PER_FILE), &[8; 64]).unwrap();
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
            let refused = files.write(PageNumber(0), &[7; 64]).unwrap_err();
            assert!(refused.is_for_want_of_room(), "{refused}");
            assert_eq!(names(&scratch), [""; 0]);
        }
        files.flush().unwrap();
    }
}
