//! Pages that a checkpoint names, read and looked at.
//!
//! Whoever knows which are wanted next says so, and they are read a batch at a time. What is
//! wrong with one that could not be read so is found out when it is read alone.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use courser_core::id::JournalNumber;
use courser_core::journal::entry::{Entry, PageImage, Place};
use courser_core::journal::page::{Damage, PageFile, Wrong};

use super::directory::{DataDirectory, DirectoryError, open_flushed, page_path, trying};
use super::recovery::RecoveryError;
use crate::ring::transfers::{Direction, PLACE_SIZE, PLACES, Transfer, Transfers};
use crate::sys;

/// Files that are open at a time.
const OPEN_MAX: usize = PLACES;

/// The pages of one journal. Has a few files open at a time, and a batch of pages in memory.
#[derive(Debug)]
pub struct PageImages<'a> {
    directory: &'a DataDirectory,
    journal: JournalNumber,
    /// The one that was opened last is the last.
    open: VecDeque<(PageFile, File)>,
    /// Those that are wanted next, in their order.
    wanted: VecDeque<PageImage>,
    /// What was read of them, in the same order.
    ahead: VecDeque<(PageImage, Vec<u8>)>,
    /// Without it each is read alone.
    transfers: Option<Transfers>,
    bytes: Vec<u8>,
}

impl<'a> PageImages<'a> {
    /// Of that journal. Opens nothing yet.
    #[must_use]
    pub fn new(directory: &'a DataDirectory, journal: JournalNumber) -> Self {
        Self {
            directory,
            journal,
            open: VecDeque::new(),
            wanted: VecDeque::new(),
            ahead: VecDeque::new(),
            transfers: None,
            bytes: Vec::new(),
        }
    }

    /// Has what it is told to expect be read with these.
    pub fn read_ahead_with(&mut self, transfers: Transfers) {
        self.transfers = Some(transfers);
    }

    /// These are wanted next, in this order.
    pub fn expect(&mut self, images: impl Iterator<Item = PageImage>) {
        self.wanted.clear();
        self.ahead.clear();
        if self.transfers.is_some() {
            self.wanted.extend(images);
        }
    }

    /// Hands over each message that a checkpoint says to be in a page, in their order, once
    /// all of them were looked at. What was read is on the device.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, if they are not there as they were written; and what `each`
    /// refuses with.
    pub fn messages<E: From<RecoveryError>>(
        &mut self,
        place: Place,
        image: &PageImage,
        mut each: impl FnMut(&Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let journal = self.journal;
        let damaged = |what| {
            E::from(RecoveryError::Page {
                journal,
                damage: Damage {
                    file: image.file(),
                    position: image.position(),
                    what,
                },
            })
        };
        let is_there = self.read(image).map_err(RecoveryError::from)?;
        is_there.map_err(damaged)?;
        let mut messages = image.messages(place, &self.bytes).map_err(damaged)?;
        messages.try_for_each(|entry| each(&entry))
    }

    /// Has the bytes of a page in memory, or says why they cannot be.
    fn read(&mut self, image: &PageImage) -> Result<Result<(), Wrong>, DirectoryError> {
        if self.ahead.is_empty() && self.wanted.front() == Some(image) {
            self.read_ahead()?;
        }
        if let Some((_, bytes)) = self.ahead.pop_front_if(|(read, _)| read == image) {
            self.bytes = bytes;
            return Ok(Ok(()));
        }
        self.read_alone(image)
    }

    /// Reads the next that are wanted, as far as that is possible. That a file cannot be
    /// flushed the kernel says once, so it has to be heard here.
    fn read_ahead(&mut self) -> Result<(), DirectoryError> {
        let Some(mut transfers) = self.transfers.take() else {
            return Ok(());
        };
        let mut batch = Vec::with_capacity(PLACES);
        for _ in 0..PLACES {
            let Some(image) = self.wanted.pop_front() else {
                break;
            };
            // What is larger than a place is read alone, and so is what has no file.
            if image.size as usize <= PLACE_SIZE && self.open(image.file())?.is_ok() {
                batch.push(image);
            }
        }
        let each = batch.iter().map(|image| {
            let opened = self.open.iter().find(|(it, _)| *it == image.file());
            let (_, file) = opened.expect("a batch has no more files than are open at a time");
            Transfer {
                file,
                position: image.position(),
                length: image.size as usize,
                direction: Direction::Read,
            }
        });
        let results = transfers.run(&each.collect::<Vec<_>>());
        for (place, (image, result)) in batch.iter().zip(results).enumerate() {
            if result.is_ok() {
                let bytes = transfers.place(place)[..image.size as usize].to_vec();
                self.ahead.push_back((*image, bytes));
            }
        }
        self.transfers = Some(transfers);
        Ok(())
    }

    fn read_alone(&mut self, image: &PageImage) -> Result<Result<(), Wrong>, DirectoryError> {
        if let Err(missing) = self.open(image.file())? {
            return Ok(Err(missing));
        }
        let (_, file) = self.open.back().expect("it was opened");
        self.bytes.resize(image.size as usize, 0);
        match file.read_exact_at(&mut self.bytes, image.position()) {
            Ok(()) => Ok(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err(Wrong::Short { size: image.size }))
            }
            Err(error) => {
                let path = self.path(image.file());
                Err(trying("read", &path)(error))
            }
        }
    }

    /// Has a file open, as the last of them, and what was written to it on the device; or says
    /// that there is none.
    fn open(&mut self, wanted: PageFile) -> Result<Result<(), Wrong>, DirectoryError> {
        if let Some(place) = self.open.iter().position(|(file, _)| *file == wanted) {
            let opened = self.open.remove(place);
            self.open.extend(opened);
            return Ok(Ok(()));
        }
        if self.open.len() == OPEN_MAX {
            self.close_first();
        }
        let Some(file) = open_flushed(&self.path(wanted))? else {
            return Ok(Err(Wrong::Missing));
        };
        self.open.push_back((wanted, file));
        Ok(Ok(()))
    }

    fn path(&self, file: PageFile) -> PathBuf {
        self.directory.path().join(page_path(self.journal, file))
    }

    /// All of a file was read that is needed now: what the kernel keeps of it would only take
    /// the place of what is.
    fn close_first(&mut self) {
        if let Some((_, file)) = self.open.pop_front() {
            sys::forget_cached(file.as_fd());
        }
    }
}

impl Drop for PageImages<'_> {
    fn drop(&mut self) {
        while !self.open.is_empty() {
            self.close_first();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use courser_core::frame::checksum;
    use courser_core::id::{Offset, PageNumber, Run};
    use courser_core::limits::{PAGE_SIZE, PAGES_PER_FILE};
    use courser_core::shard::PageWish;

    use super::super::scratch::Scratch;
    use super::super::{PageBatch, PageFiles};
    use super::*;

    const JOURNAL: JournalNumber = JournalNumber(2);
    const RUN: Run = Run(5);

    fn image(page: u32, bytes: &[u8]) -> PageImage {
        PageImage {
            run: RUN,
            page: PageNumber(page),
            size: u32::try_from(bytes.len()).unwrap(),
            sum: checksum::body(bytes),
            first: Offset(0),
            count: 1,
        }
    }

    #[test]
    fn what_is_read_ahead_is_what_is_read_alone() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        directory.make_journal(JOURNAL).unwrap();
        let transfers = || Transfers::at_once().unwrap();
        let mut files = PageFiles::new(&directory, JOURNAL, RUN, transfers());
        // Over more files than are open at a time, one larger than a place, and not in order.
        let mut all = Vec::new();
        for index in 0..30_u32 {
            let page = (index * 7 % 10) * PAGES_PER_FILE + index * 3;
            let length = if index == 11 {
                2 * PAGE_SIZE
            } else {
                40_000 + index * 8
            };
            let byte = u8::try_from(index).unwrap();
            let bytes = vec![byte; length as usize];
            let mut batch = PageBatch::default();
            let page_at = PageNumber(page);
            let wish = PageWish::Write {
                page: page_at,
                bytes: bytes.clone(),
            };
            batch.take(wish).unwrap();
            files.access(batch);
            all.push((image(page, &bytes), bytes));
        }
        files.flush().unwrap();
        // Two that are not there: one has no file, one is behind the end of its own.
        let no_file = image(50 * PAGES_PER_FILE, &[1; 64]);
        let cut = page_path(
            JOURNAL,
            PageFile {
                run: RUN,
                number: 60,
            },
        );
        File::create(scratch.path().join(cut)).unwrap();
        let short = image(60 * PAGES_PER_FILE, &[1; 64]);
        let mut wanted: Vec<_> = all.iter().map(|(image, _)| *image).collect();
        wanted.insert(5, no_file);
        wanted.insert(19, short);

        let mut images = PageImages::new(&directory, JOURNAL);
        images.read_ahead_with(transfers());
        images.expect(wanted.iter().copied());
        let mut alone = PageImages::new(&directory, JOURNAL);
        let mut read_ahead = 0;
        for image in &wanted {
            let result = images.read(image).unwrap();
            read_ahead += usize::from(!images.ahead.is_empty());
            assert!(images.open.len() <= OPEN_MAX);
            assert_eq!(result, alone.read(image).unwrap());
            let written = all.iter().find(|(it, _)| it == image);
            assert_eq!(result.is_ok(), written.is_some());
            if let Some((_, bytes)) = written {
                assert!(images.bytes == *bytes && alone.bytes == *bytes);
            }
        }
        assert!(read_ahead > wanted.len() / 2, "{read_ahead}");
        // One that nobody expected is read as well.
        let (image, bytes) = &all[3];
        images.expect(wanted.iter().copied());
        assert_eq!(images.read(image).unwrap(), Ok(()));
        assert!(images.bytes == *bytes);
    }
}
