//! The journal: what a shard has on disk, and what is believed of it after a crash.
//!
//! One writer puts batches into files, one behind the other; a flush makes a batch
//! durable, and at most two are on their way. Whoever starts next reads them all.
//!
//! | file | the noun |
//! |---|---|
//! | [`file`] | a file: its first block says whose it is, and which of them |
//! | [`batch`] | a batch: what one flush makes durable, with the checksums over it |
//! | [`entry`] | an entry: a message, or a change of state, within a batch |
//! | [`survey`] | what the bytes of one file are, seen by themselves |
//! | [`recover`] | what the files of a journal come to: what is read, or what is damaged |
//! | [`checkpoint`] | what a journal came to, so that it is read from there on |
//! | [`page`] | messages that a checkpoint names in place of having them |
//!
//! ```text
//!   file 1, run 1                file 2, run 1              file 3, run 2
//!  +---+----+----+-------+-+    +---+----+----------+      +---+----+--------
//!  | H | 1  | 2  |   3   | |    | H | 4  | 5 (torn) |      | H | 5  |  6 ...
//!  +---+----+----+-------+-+    +---+----+----------+      +---+----+--------
//!                                         cut: nothing       recovered 4: the
//!                                         knew 5 durable     run went on at 5
//! ```
//!
//! What holds:
//!
//! 1. A journal's kept batches have the numbers 1, 2, 3, ... without a gap, over all
//!    its runs: a run says in each of its files which number it kept last.
//! 2. A batch says which one was known to be durable when it was written. So a batch
//!    that is missing is damage if and only if something written later knew it
//!    durable; otherwise its write, and perhaps that of its neighbour, was cut short.
//! 3. A header is believed only with a checksum that its run's salt, its number and
//!    its place go into. The salt never leaves the data directory, so no message that
//!    a client had stored passes for a header, wherever it comes to lie.
//! 4. Nothing here writes, waits, panics or allocates what bytes claim, and no byte is
//!    summed more than once in a look at a file.
//!
//! The page for who reads such files with other tools is `docs/storage.md`.

mod advice;
pub mod batch;
pub mod checkpoint;
pub mod entry;
pub mod file;
pub mod page;
pub mod recover;
pub mod survey;
#[cfg(test)]
mod tests;
pub mod writer;

use crate::id::{BatchNumber, FileSequence, Installation, JournalNumber, Run};

/// Files are read and written in blocks of so many bytes.
pub const BLOCK_SIZE: usize = 4096;

/// Which journal it is, of which broker's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The data that the journal belongs to.
    pub installation: Installation,
    /// Its number.
    pub journal: JournalNumber,
}

/// One run's part of a journal: what the checksums of its batches begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The journal.
    pub identity: Identity,
    /// The run.
    pub run: Run,
    /// Drawn at random at every start, and told to nobody outside the data directory.
    pub salt: u64,
}

/// Where reading begins, as a checkpoint says: what is before is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The file.
    pub sequence: FileSequence,
    /// Where in it, in bytes; a multiple of the block.
    pub position: u64,
    /// The batch that stands there, or would come to.
    pub number: BatchNumber,
}
