//! Pages: what of the partitions' logs lies in files because memory is short.

use super::Shard;
use crate::id::PageNumber;

/// What the pages of a shard need of the device. The answer to each is one call of
/// [`Shard::page_written`] or [`Shard::page_read`], in whatever order; to
/// [`PageWish::RemoveFile`] there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageWish {
    /// Write these bytes, which may be longer than a page, from the front of a page on. They
    /// do not go beyond its page file, which is made if it is not there. Nothing is flushed
    /// for it.
    Write {
        /// Where.
        page: PageNumber,
        /// What: at most [`crate::limits::FRAME_SIZE_MAX`].
        bytes: Vec<u8>,
    },
    /// Read so many bytes from the front of a page on that was written.
    Read {
        /// Where.
        page: PageNumber,
        /// How many.
        size: u32,
    },
    /// Remove a page file of this run, in which nothing is needed any more.
    RemoveFile {
        /// Which: that of pages from this number times [`crate::limits::PAGES_PER_FILE`] on.
        file: u32,
    },
}

/// A page could not be written, or not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFailed;

impl Shard {
    /// Has the shard keep in pages what it has no memory for, in as many of them at most.
    /// Before anything is restored.
    pub fn keep_pages(&mut self, most: u32) {
        let _ = most;
    }

    /// What its pages need now, until `None`.
    pub fn page_wish(&mut self) -> Option<PageWish> {
        None
    }

    /// What was to be written from this page on is, or is not.
    pub fn page_written(&mut self, page: PageNumber, result: Result<(), PageFailed>) {
        let _ = (page, result);
    }

    /// What was to be read from this page on, as many bytes as were asked for.
    pub fn page_read(&mut self, page: PageNumber, result: Result<&[u8], PageFailed>) {
        let _ = (page, result);
    }
}
