//! Records of what happened to messages, a line each, for whoever has to account for
//! every one of them: the ack log of a sender and the dump of a receiver.
//!
//! ```text
//! ack log   sequence  partition  offset  CRC-32C of the body  producer
//! dump      partition  offset  CRC-32C of the body  producer  sequence
//! ```
//!
//! Columns are separated by tabs, the checksum is eight hexadecimal digits, all other
//! columns are decimal. Sequences start at 1, partitions and offsets at 0.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use courser_core::id::{MessageId, Position};

/// A file of records. Lines are in the file once [`Records::flush`] has returned.
pub(crate) struct Records {
    path: PathBuf,
    file: BufWriter<File>,
}

/// Records cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub(crate) struct RecordsError {
    /// Where.
    pub(crate) path: PathBuf,
    /// The system's answer.
    pub(crate) source: io::Error,
}

impl Records {
    /// Begins an empty file.
    pub(crate) fn create(path: &Path) -> Result<Self, RecordsError> {
        let path = path.to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self {
                path,
                file: BufWriter::new(file),
            }),
            Err(source) => Err(RecordsError { path, source }),
        }
    }

    /// A line of an ack log.
    pub(crate) fn acknowledged(
        &mut self,
        position: Position,
        checksum: u32,
        id: MessageId,
    ) -> Result<(), RecordsError> {
        let Position { partition, offset } = position;
        let (sequence, producer) = (id.sequence, id.producer);
        let written = writeln!(
            self.file,
            "{sequence}\t{partition}\t{offset}\t{checksum:08x}\t{producer}"
        );
        written.map_err(|source| self.error(source))
    }

    /// A line of a dump.
    pub(crate) fn received(
        &mut self,
        position: Position,
        checksum: u32,
        id: MessageId,
    ) -> Result<(), RecordsError> {
        let Position { partition, offset } = position;
        let (sequence, producer) = (id.sequence, id.producer);
        let written = writeln!(
            self.file,
            "{partition}\t{offset}\t{checksum:08x}\t{producer}\t{sequence}"
        );
        written.map_err(|source| self.error(source))
    }

    /// Gives every line so far to the system.
    pub(crate) fn flush(&mut self) -> Result<(), RecordsError> {
        let flushed = self.file.flush();
        flushed.map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> RecordsError {
        let path = self.path.clone();
        RecordsError { path, source }
    }
}
