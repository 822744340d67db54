//! The pages of a shard that is told what is kept.
//!
//! Nobody is there yet for whom anything could be done meanwhile, so what the shard wishes is
//! done where it is told, a batch at a time.

use std::mem;

use courser_core::id::PageNumber;
use courser_core::shard::{PageFailed, PageWish, Shard};

use super::directory::DirectoryError;
use super::pages::{Accessed, PageBatch, PageFiles};

/// Whose pages they are.
pub trait Wishing {
    /// What its pages need now, until `None`.
    fn page_wish(&mut self) -> Option<PageWish>;

    /// A write it wished for is over.
    fn page_written(&mut self, page: PageNumber, result: Result<(), PageFailed>);

    /// A read it wished for is over.
    fn page_read(&mut self, page: PageNumber, result: Result<&[u8], PageFailed>);
}

impl Wishing for Shard {
    fn page_wish(&mut self) -> Option<PageWish> {
        Self::page_wish(self)
    }

    fn page_written(&mut self, page: PageNumber, result: Result<(), PageFailed>) {
        Self::page_written(self, page, result);
    }

    fn page_read(&mut self, page: PageNumber, result: Result<&[u8], PageFailed>) {
        Self::page_read(self, page, result);
    }
}

/// See the module.
#[derive(Debug)]
pub struct PagesAtStart {
    files: PageFiles,
    batch: PageBatch,
    /// How many reads and writes were done so far.
    done: u64,
}

impl PagesAtStart {
    /// With files of which there are none yet.
    #[must_use]
    pub fn new(files: PageFiles) -> Self {
        Self {
            files,
            batch: PageBatch::default(),
            done: 0,
        }
    }

    /// Takes what the shard wishes, and does it as soon as that is a batch.
    ///
    /// # Errors
    ///
    /// If something could not be read, written or removed.
    pub fn gather(&mut self, shard: &mut impl Wishing) -> Result<(), DirectoryError> {
        while let Some(wish) = shard.page_wish() {
            if let Err(wish) = self.batch.take(wish) {
                self.run(shard)?;
                match self.batch.take(wish) {
                    Ok(()) => {}
                    Err(PageWish::RemoveFile { file }) => self.files.remove(file)?,
                    Err(wish) => unreachable!("an empty batch takes {wish:?}"),
                }
            }
            if self.batch.is_full() {
                self.run(shard)?;
            }
        }
        Ok(())
    }

    /// Does all that the shard wishes; whether anything was read or written.
    ///
    /// # Errors
    ///
    /// As for [`Self::gather`].
    pub fn finish(&mut self, shard: &mut impl Wishing) -> Result<bool, DirectoryError> {
        let before = self.done;
        loop {
            self.gather(shard)?;
            if self.batch.is_empty() {
                return Ok(self.done > before);
            }
            self.run(shard)?;
        }
    }

    /// The files, of which nothing is to be done any more.
    #[must_use]
    pub fn into_files(self) -> PageFiles {
        debug_assert!(self.batch.is_empty(), "it was finished");
        self.files
    }

    fn run(&mut self, shard: &mut impl Wishing) -> Result<(), DirectoryError> {
        self.done += self.batch.len() as u64;
        for accessed in self.files.access(mem::take(&mut self.batch)) {
            match accessed {
                Accessed::Written { page, result, .. } => {
                    result?;
                    shard.page_written(page, Ok(()));
                }
                Accessed::Read { page, result, .. } => shard.page_read(page, Ok(&result?)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::VecDeque;

    use courser_core::frame::checksum;
    use courser_core::id::{JournalNumber, Run};

    use super::super::DataDirectory;
    use super::super::scratch::Scratch;
    use super::*;
    use crate::ring::Transfers;

    /// Has its wishes one after the other, and what it is told of them.
    #[derive(Debug, Default)]
    struct Wishes {
        left: VecDeque<PageWish>,
        told: Vec<(u32, Option<usize>)>,
    }

    impl Wishes {
        fn write(&mut self, pages: std::ops::Range<u32>) {
            self.left.extend(pages.map(|page| PageWish::Write {
                page: PageNumber(page),
                bytes: vec![7; 100],
            }));
        }

        fn read(&mut self, pages: std::ops::Range<u32>) {
            self.left.extend(pages.map(|page| PageWish::Read {
                page: PageNumber(page),
                size: 100,
                sum: checksum::body(&[7; 100]),
            }));
        }
    }

    impl Wishing for Wishes {
        fn page_wish(&mut self) -> Option<PageWish> {
            self.left.pop_front()
        }

        fn page_written(&mut self, page: PageNumber, result: Result<(), PageFailed>) {
            result.unwrap();
            self.told.push((page.0, None));
        }

        fn page_read(&mut self, page: PageNumber, result: Result<&[u8], PageFailed>) {
            self.told.push((page.0, Some(result.unwrap().len())));
        }
    }

    fn pages(scratch: &Scratch) -> PagesAtStart {
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let journal = JournalNumber(0);
        directory.make_journal(journal).unwrap();
        let transfers = Transfers::at_once().unwrap();
        PagesAtStart::new(PageFiles::new(&directory, journal, Run(1), transfers))
    }

    #[test]
    fn whoever_has_something_done_is_told_so_however_many_batches_that_is() {
        let scratch = Scratch::new();
        let mut pages = pages(&scratch);
        for count in 0..35_u32 {
            for gathered in [0, count / 2, count] {
                let mut shard = Wishes::default();
                shard.write(0..gathered);
                pages.gather(&mut shard).unwrap();
                let before = shard.told.len();
                shard.write(gathered..count);
                let is_done = pages.finish(&mut shard).unwrap();
                assert_eq!(is_done, shard.told.len() > before, "{gathered} of {count}");
                let told: Vec<_> = shard.told.iter().map(|it| it.0).collect();
                assert_eq!(told, (0..count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_has_to_wait_for_another_does_and_a_file_goes_behind_what_was_asked_of_it() {
        let scratch = Scratch::new();
        let mut pages = pages(&scratch);
        let mut shard = Wishes::default();
        shard.write(0..3);
        shard.read(1..3);
        shard.left.push_back(PageWish::RemoveFile { file: 0 });
        shard.write(5..6);
        shard.read(5..6);
        assert!(pages.finish(&mut shard).unwrap());
        let read = Some(100);
        assert_eq!(
            shard.told,
            [
                (0, None),
                (1, None),
                (2, None),
                (1, read),
                (2, read),
                (5, None),
                (5, read)
            ]
        );
        shard.read(1..2);
        let other_bytes = pages.finish(&mut shard).unwrap_err();
        assert!(other_bytes.to_string().contains("00000001-000000.pages"));
        drop(pages.into_files());
    }
}
