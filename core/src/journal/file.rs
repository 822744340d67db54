//! The first block of a journal's file: whose file it is, and which.
//!
//! ```text
//!       +0                +4              +8                              +16
//!  0    | magic                           | checksum      | vers. | jour. |
//! 16    | installation                                                    |
//! 32    | run                             | file sequence                   |
//! 48    | recovered                       | size                            |
//! 64    | salt                            | zeros up to 4096
//! ```
//!
//! All that says something lies in the first sector, so that whatever a power cut
//! leaves is the header from before or the new one, whole.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BLOCK_SIZE, Identity, Origin};
use crate::frame::checksum;
use crate::id::{BatchNumber, FileSequence, Installation, JournalNumber, Run};

/// What every file begins with.
pub const MAGIC: [u8; 8] = *b"CRSRJRNL";
/// The one version of the format.
pub const VERSION: u16 = 1;
/// Where the first batch of a file begins.
pub const FIRST_BATCH: u64 = 4096;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Who writes it.
    pub origin: Origin,
    /// Which of the journal's files it is.
    pub sequence: FileSequence,
    /// The last batch that the run kept of those before it.
    pub recovered: BatchNumber,
    /// Bytes of the file.
    pub size: u64,
}

/// The header as it lies in the file, less the zeros behind.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fields {
    magic: [u8; 8],
    checksum: U32,
    version: U16,
    journal: U16,
    installation: U128,
    run: U64,
    sequence: U64,
    recovered: U64,
    size: U64,
    salt: U64,
}

/// Bytes of the header that say something.
const FIELDS_SIZE: usize = size_of::<Fields>();
const _: () = assert!(FIELDS_SIZE == 72 && FIELDS_SIZE <= 512);

/// Why a block is not a file's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// There is less than a block.
    Short,
    /// It is all zeros: the file was made and not begun.
    Blank,
    /// It does not begin as a journal's file does.
    Magic,
    /// Its checksum does not match.
    Checksum,
    /// Its checksum matches, and it is of a version that this broker does not know.
    Version {
        /// What stands there.
        version: u16,
    },
    /// Its checksum matches, and what it says cannot be.
    Impossible,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the file is shorter than its header"),
            Self::Blank => f.write_str("the file was never begun"),
            Self::Magic => f.write_str("the file does not begin as a journal's does"),
            Self::Checksum => f.write_str("the checksum of the file's header does not match"),
            Self::Version { version } => write!(
                f,
                "the file is of version {version}, this broker reads {VERSION}"
            ),
            Self::Impossible => f.write_str("the file's header says what cannot be"),
        }
    }
}

impl Header {
    /// Its bytes: the first block of the file.
    #[must_use]
    pub fn block(&self) -> [u8; BLOCK_SIZE] {
        let fields = Fields {
            magic: MAGIC,
            checksum: U32::ZERO,
            version: VERSION.into(),
            journal: self.origin.identity.journal.0.into(),
            installation: self.origin.identity.installation.0.into(),
            run: self.origin.run.0.into(),
            sequence: self.sequence.0.into(),
            recovered: self.recovered.0.into(),
            size: self.size.into(),
            salt: self.origin.salt.into(),
        };
        let mut block = [0; BLOCK_SIZE];
        if let Some(place) = block.first_chunk_mut::<FIELDS_SIZE>() {
            place.copy_from_slice(fields.as_bytes());
        }
        let sum = checksum::extend(0, &block);
        if let Ok((fields, _)) = Fields::mut_from_prefix(&mut block) {
            fields.checksum.set(sum);
        }
        block
    }

    /// The header that the first block of `image` is.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn read(image: &[u8]) -> Result<Self, Unreadable> {
        let block = image.first_chunk::<BLOCK_SIZE>().ok_or(Unreadable::Short)?;
        let (fields, rest) = Fields::ref_from_prefix(block).map_err(|_| Unreadable::Short)?;
        if fields.magic != MAGIC {
            let blank = block.iter().all(|byte| *byte == 0);
            return Err(if blank {
                Unreadable::Blank
            } else {
                Unreadable::Magic
            });
        }
        let (before, behind) = fields.as_bytes().split_at(8);
        let mut sum = checksum::extend(0, before);
        sum = checksum::extend(sum, &[0; 4]);
        sum = checksum::extend(sum, behind.get(4..).unwrap_or_default());
        sum = checksum::extend(sum, rest);
        if sum != fields.checksum.get() {
            return Err(Unreadable::Checksum);
        }
        if fields.version.get() != VERSION {
            return Err(Unreadable::Version {
                version: fields.version.get(),
            });
        }
        let header = Self {
            origin: Origin {
                identity: Identity {
                    installation: Installation(fields.installation.get()),
                    journal: JournalNumber(fields.journal.get()),
                },
                run: Run(fields.run.get()),
                salt: fields.salt.get(),
            },
            sequence: FileSequence(fields.sequence.get()),
            recovered: BatchNumber(fields.recovered.get()),
            size: fields.size.get(),
        };
        let possible = header.origin.run > Run(0)
            && header.sequence > FileSequence(0)
            && header.recovered < BatchNumber::MAX
            && header.size.is_multiple_of(FIRST_BATCH)
            && rest.iter().all(|byte| *byte == 0);
        if possible {
            Ok(header)
        } else {
            Err(Unreadable::Impossible)
        }
    }
}
