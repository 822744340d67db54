//! Files beside sockets: the data directory, and what of it must not wait on a shard.
//!
//! Cast: the [`DataDirectory`] is taken by one broker at a time, carries the
//! installation's name and lists the journals that are there; a [`DiskFile`] is one of
//! its files, opened for durable writes; the [`Helper`] is a shard's thread for what
//! takes long and has no place in a ring: preparing a file, removing, renaming, flushing a
//! directory; [`Writes`] keeps the books of what is written, above the ring; a
//! [`ShardJournal`] is all of that for the one journal that a shard writes. [`PageFiles`] are
//! what a run writes of the backlog for which memory is short, a [`PageBatch`] at a time; the
//! [`PageHelper`] is the thread that a shard has for them, and [`PagesAtStart`] do without one
//! while it is told what is kept; [`PageImages`] reads what of them a checkpoint names.
//!
//! ```text
//!   DIR/lock                        flock'd by the broker that has it; text: its process
//!   DIR/installation                64 bytes, see `installation.rs`
//!   DIR/journal-00/000001.journal   files of journal 0, named by slot
//!   DIR/journal-00/00000001-000000.pages    its page files, named by run and number
//!
//!   start:  DataDirectory::open -> Recovery::read -> replay, next
//!   run:    Helper: Prepare -> Prepared(DiskFile) -> Ring::attach_file
//!           Writes::begin -> ring::begin_write ... Event::Written -> Writes::written
//! ```
//!
//! Invariants:
//! - While a directory is open, or a file of it, no other broker can open it.
//! - Every rename is of a file that was flushed, and is followed by a flush of its
//!   directory: there is one function for it.
//! - What has a name that this version does not give is never opened, changed nor removed.
//! - A file that was prepared has its whole size written: a write into it changes no
//!   metadata that a flush would have to wait for.
//!
//! What it does not do: believe anything of a journal's bytes. Their format, and what is
//! kept of them, are `core`'s.

mod checkpoint;
mod directory;
mod file;
mod helper;
mod image;
mod installation;
mod journal;
mod page_helper;
mod page_images;
mod pages;
mod pages_at_start;
mod recovery;
#[cfg(test)]
pub(crate) mod scratch;
mod writes;

pub use checkpoint::CheckpointFile;
pub use directory::{DataDirectory, DirectoryError, JournalFile, Listed, Rights};
pub use file::{DiskFile, Way};
pub use helper::{Done, Errand, Helper};
pub use image::Image;
pub use installation::Malformed;
pub use journal::{ShardJournal, Told};
pub use page_helper::{PageDone, PageHelper};
pub use page_images::PageImages;
pub use pages::{Accessed, PageBatch, PageFiles};
pub use pages_at_start::{PagesAtStart, Wishing};
pub use recovery::{Next, ReadSize, Recovery, RecoveryError};
pub use writes::{Progress, Rest, Writes};

/// What positions and lengths of durable writes, their addresses and the sizes of files
/// are multiples of, in bytes.
pub const BLOCK_SIZE: u32 = 4096;

const _: () = assert!(
    courser_core::journal::BLOCK_SIZE == BLOCK_SIZE as usize,
    "a batch is in the blocks that a file is written in"
);
