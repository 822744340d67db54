//! A journal's checkpoint as a file: read batch by batch, and written aside.
//!
//! ```text
//!   write   checkpoint.new: slices as they come, the header last ... put in place
//!   read    flushed, then a batch at a time, however large the file
//! ```
//!
//! Invariant: `checkpoint` is only ever there as a whole, since it gets its name with a
//! rename behind a flush.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use courser_core::id::JournalNumber;
use courser_core::journal::batch::{Batch, HEADER_SIZE};
use courser_core::journal::checkpoint::{
    ASIDE_NAME, Damage, Division, FILE_NAME, Header, Walk, Wrong,
};
use courser_core::journal::{BLOCK_SIZE, Identity};

use super::directory::{DataDirectory, DirectoryError, Held, folder, open_flushed, trying};
use super::recovery::RecoveryError;

/// What was written aside is flushed each time that so many bytes came: so that the last
/// flush does not find all of it waiting.
const FLUSHED_BYTES: u64 = 4 * 1024 * 1024;

/// Where a journal's checkpoint lies in the data directory.
pub(super) fn path(journal: JournalNumber) -> PathBuf {
    Path::new(&folder(journal)).join(FILE_NAME)
}

/// Where it lies until it counts.
pub(super) fn aside(journal: JournalNumber) -> PathBuf {
    Path::new(&folder(journal)).join(ASIDE_NAME)
}

/// A checkpoint that is there.
#[derive(Debug)]
pub struct CheckpointFile {
    identity: Identity,
    path: PathBuf,
    file: File,
    is_aside: bool,
}

impl CheckpointFile {
    /// The checkpoint of a journal that has its place, flushed, if there is one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses any of it.
    pub fn in_place(
        directory: &DataDirectory,
        journal: JournalNumber,
    ) -> Result<Option<Self>, DirectoryError> {
        Self::at(directory, journal, false)
    }

    /// The checkpoint of a journal that counts, flushed. How all is divided, that of journal
    /// 0 says.
    ///
    /// # Errors
    ///
    /// If the kernel refuses any of it, if there is none, and if one that is there is not as
    /// its writer left it.
    pub fn that_counts(
        directory: &DataDirectory,
        journal: JournalNumber,
        division: Division,
    ) -> Result<Self, RecoveryError> {
        // One of an earlier run is of another division: then the one that counts lies aside.
        for is_aside in [false, true] {
            if let Some(file) = Self::at(directory, journal, is_aside)?
                && file.header()?.origin.run >= division.since
            {
                return Ok(file);
            }
        }
        Err(missing(journal))
    }

    /// Whether it has still to take its place.
    #[must_use]
    pub fn is_aside(&self) -> bool {
        self.is_aside
    }

    fn at(
        directory: &DataDirectory,
        journal: JournalNumber,
        is_aside: bool,
    ) -> Result<Option<Self>, DirectoryError> {
        let inside = if is_aside { aside } else { path }(journal);
        let path = directory.path().join(inside);
        let Some(file) = open_flushed(&path)? else {
            return Ok(None);
        };
        let identity = Identity {
            installation: directory.installation(),
            journal,
        };
        Ok(Some(Self {
            identity,
            path,
            file,
            is_aside,
        }))
    }

    /// What it says of itself.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is not as its writer left it.
    pub fn header(&self) -> Result<Header, RecoveryError> {
        let metadata = self
            .file
            .metadata()
            .map_err(trying("look at", &self.path))?;
        let mut block = vec![0; BLOCK_SIZE];
        block.truncate(usize::try_from(metadata.len()).unwrap_or(BLOCK_SIZE));
        self.read(0, &mut block)?;
        let header = Header::read(&self.identity, &block).map_err(|damage| self.damaged(damage))?;
        if metadata.len() != header.size {
            return Err(self.damaged(Damage {
                position: metadata.len(),
                what: Wrong::Size { size: header.size },
            }));
        }
        Ok(header)
    }

    /// Hands over each of its batches, in their order.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is not as its writer left it; and what `each` refuses with.
    pub fn batches<E: From<RecoveryError>>(
        &self,
        mut each: impl FnMut(&Batch<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let damaged = |damage| E::from(self.damaged(damage));
        let mut walk = Walk::new(self.header()?);
        let mut bytes = Vec::new();
        while let Some(place) = walk.place().map_err(damaged)? {
            bytes.resize(HEADER_SIZE, 0);
            self.read(place, &mut bytes)?;
            let size = walk.size(&bytes).map_err(damaged)?;
            bytes.resize(size, 0);
            self.read(place, &mut bytes)?;
            each(&walk.batch(&bytes).map_err(damaged)?)?;
        }
        Ok(())
    }

    /// The bytes at a place; zeros for those that are not there.
    fn read(&self, mut position: u64, mut bytes: &mut [u8]) -> Result<(), RecoveryError> {
        bytes.fill(0);
        while !bytes.is_empty() {
            match self.file.read_at(bytes, position) {
                Ok(0) => break,
                Ok(count) => {
                    bytes = &mut bytes[count..];
                    position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(trying("read", &self.path)(error).into()),
            }
        }
        Ok(())
    }

    pub(super) fn damaged(&self, damage: Damage) -> RecoveryError {
        RecoveryError::Checkpoint {
            journal: self.identity.journal,
            damage,
        }
    }
}

pub(super) fn missing(journal: JournalNumber) -> RecoveryError {
    RecoveryError::Checkpoint {
        journal,
        damage: Damage {
            position: 0,
            what: Wrong::Missing,
        },
    }
}

impl Held {
    /// See [`super::Errand::WriteAside`].
    pub(super) fn write_aside(
        &self,
        journal: JournalNumber,
        position: u64,
        bytes: &[u8],
        begins: bool,
    ) -> Result<(), DirectoryError> {
        let path = self.inside(&aside(journal));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(begins)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(trying("create", &path))?;
        file.write_all_at(bytes, position)
            .map_err(trying("write to", &path))?;
        if (position + bytes.len() as u64) / FLUSHED_BYTES > position / FLUSHED_BYTES {
            file.sync_data().map_err(trying("flush", &path))?;
        }
        Ok(())
    }
}
