//! A checkpoint: what a journal came to at some time, and where it is read from behind it.
//!
//! ```text
//!  checkpoint   +--------+---------+---------+- - -+---------+
//!               | header | batch 1 | batch 2 |     | batch n |   state, entry by entry
//!               +--------+---------+---------+- - -+---------+
//!                   `- run 5, file 17 at 8192: batch 42
//!                                     |
//!  journal   ... 40 | 41 |  ......    `-> 42 | 43 | 44 ...       read behind it
//! ```
//!
//! It is written while the state goes on changing: each entry says what was so when it was
//! written, and whatever became otherwise since the checkpoint was begun stands in the
//! journal from the named batch on. Entries say what is and not what changes, so those of
//! them that the checkpoint knows already change nothing.
//!
//! It is written aside and counts once it has its name. So it is there as a whole, and
//! whatever is wrong with it is damage.
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

use super::advice;
use super::batch::{self, Batch};
use super::entry::Malformed;
use super::file::FIRST_BATCH;
use super::{BLOCK_SIZE, Identity, Origin, Start};
use crate::frame::checksum;
use crate::id::{BatchNumber, FileSequence, Installation, JournalNumber, Run};
use crate::limits;

/// What every checkpoint begins with.
pub const MAGIC: [u8; 8] = *b"CRSRCKPT";
/// The one version of the format.
pub const VERSION: u16 = 1;
/// The name of its file.
pub const FILE_NAME: &str = "checkpoint";
/// The name of its file until it counts.
pub const ASIDE_NAME: &str = "checkpoint.new";

/// Among how many journals all is divided, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Division {
    /// How many.
    pub shards: u16,
    /// The first run that divided it so.
    pub since: Run,
}

/// What a checkpoint says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who wrote it, with the salt of its own batches.
    pub origin: Origin,
    /// How many checkpoints the journal has had, this one included.
    pub number: u64,
    /// Where the journal is read from behind it.
    pub start: Start,
    /// Its batches.
    pub batches: u64,
    /// Bytes of the file.
    pub size: u64,
    /// How all was divided when it was written.
    pub division: Division,
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
    number: U64,
    salt: U64,
    sequence: U64,
    position: U64,
    batch: U64,
    batches: U64,
    size: U64,
    since: U64,
    shards: U16,
    reserved: [u8; 6],
}

/// Bytes of the header that say something.
const FIELDS_SIZE: usize = size_of::<Fields>();
const _: () = assert!(FIELDS_SIZE == 112 && FIELDS_SIZE <= 512);

/// A checkpoint that is not as its writer left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where in it, in bytes.
    pub position: u64,
    /// What is wrong there.
    pub what: Wrong,
}

/// What is wrong with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is not there, and has to be.
    Missing,
    /// It does not begin with a header whose checksum matches.
    Header,
    /// Its header says what cannot be.
    Impossible,
    /// It is of a version that this broker does not read.
    Newer {
        /// Which.
        version: u16,
    },
    /// It belongs to another journal or another broker.
    Foreign {
        /// To which.
        identity: Identity,
    },
    /// A batch that belongs there is not, or not as a whole.
    Batch {
        /// The how-manieth.
        number: BatchNumber,
    },
    /// Its batches do not end where its header says.
    Size {
        /// What the header says.
        size: u64,
    },
    /// An entry of a batch that is whole makes no sense.
    Entry {
        /// Which batch.
        number: BatchNumber,
        /// Why not.
        malformed: Malformed,
    },
}

impl Damage {
    /// What to do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self.what {
            Wrong::Newer { .. }
            | Wrong::Entry {
                malformed: Malformed::Newer { .. },
                ..
            } => advice::NEWER,
            Wrong::Foreign { .. } => advice::FOREIGN,
            Wrong::Missing => advice::MISSING,
            Wrong::Header
            | Wrong::Impossible
            | Wrong::Batch { .. }
            | Wrong::Size { .. }
            | Wrong::Entry { .. } => advice::DAMAGED,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, what } = self;
        write!(f, "{FILE_NAME} at {position}: ")?;
        match what {
            Wrong::Missing => f.write_str("the file is missing"),
            Wrong::Header => f.write_str("the file does not begin with a checkpoint's header"),
            Wrong::Impossible => f.write_str("the file's header says what cannot be"),
            Wrong::Newer { version } => write!(
                f,
                "the file is of version {version}, this broker reads {VERSION}"
            ),
            Wrong::Foreign { identity } => write!(
                f,
                "the file belongs to journal {} of installation {}",
                identity.journal, identity.installation
            ),
            Wrong::Batch { number } => {
                write!(f, "batch {number} belongs there and cannot be read")
            }
            Wrong::Size { size } => {
                write!(f, "the batches end there, and the file has {size} bytes")
            }
            Wrong::Entry { number, malformed } => {
                write!(f, "in batch {number}, {malformed}")
            }
        }
    }
}

impl std::error::Error for Damage {}

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
            number: self.number.into(),
            salt: self.origin.salt.into(),
            sequence: self.start.sequence.0.into(),
            position: self.start.position.into(),
            batch: self.start.number.0.into(),
            batches: self.batches.into(),
            size: self.size.into(),
            since: self.division.since.0.into(),
            shards: self.division.shards.into(),
            reserved: [0; 6],
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

    /// The header of the checkpoint of `identity` that begins with `image`.
    ///
    /// # Errors
    ///
    /// If it is none, or another's.
    pub fn read(identity: &Identity, image: &[u8]) -> Result<Self, Damage> {
        let wrong = |what| Damage { position: 0, what };
        let block = image
            .first_chunk::<BLOCK_SIZE>()
            .ok_or(wrong(Wrong::Header))?;
        let (fields, rest) = Fields::ref_from_prefix(block).map_err(|_| wrong(Wrong::Header))?;
        let (before, behind) = fields.as_bytes().split_at(8);
        let mut sum = checksum::extend(0, before);
        sum = checksum::extend(sum, &[0; 4]);
        sum = checksum::extend(sum, behind.get(4..).unwrap_or_default());
        sum = checksum::extend(sum, rest);
        if fields.magic != MAGIC || sum != fields.checksum.get() {
            return Err(wrong(Wrong::Header));
        }
        if fields.version.get() != VERSION {
            return Err(wrong(Wrong::Newer {
                version: fields.version.get(),
            }));
        }
        let header = Self::of(fields);
        if header.origin.identity != *identity {
            return Err(wrong(Wrong::Foreign {
                identity: header.origin.identity,
            }));
        }
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        if header.is_possible() && is_zero(&fields.reserved) && is_zero(rest) {
            Ok(header)
        } else {
            Err(wrong(Wrong::Impossible))
        }
    }

    fn of(fields: &Fields) -> Self {
        Self {
            origin: Origin {
                identity: Identity {
                    installation: Installation(fields.installation.get()),
                    journal: JournalNumber(fields.journal.get()),
                },
                run: Run(fields.run.get()),
                salt: fields.salt.get(),
            },
            number: fields.number.get(),
            start: Start {
                sequence: FileSequence(fields.sequence.get()),
                position: fields.position.get(),
                number: BatchNumber(fields.batch.get()),
            },
            batches: fields.batches.get(),
            size: fields.size.get(),
            division: Division {
                shards: fields.shards.get(),
                since: Run(fields.since.get()),
            },
        }
    }

    fn is_possible(&self) -> bool {
        let (run, division, start) = (self.origin.run, self.division, self.start);
        let is_block =
            |position: u64| position >= FIRST_BATCH && position.is_multiple_of(FIRST_BATCH);
        (Run(1)..=run).contains(&division.since)
            && (1..=limits::SHARDS_MAX).contains(&division.shards)
            && self.number > 0
            && start.sequence > FileSequence(0)
            && (BatchNumber(1)..BatchNumber::MAX).contains(&start.number)
            && is_block(start.position)
            && is_block(self.size)
            // Each takes a block at least.
            && self.batches < self.size / FIRST_BATCH
    }
}

/// A look through the batches of a checkpoint, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    header: Header,
    position: u64,
    /// Of the batch that stands there.
    number: BatchNumber,
}

impl Walk {
    /// From the first batch on.
    #[must_use]
    pub const fn new(header: Header) -> Self {
        Self {
            header,
            position: FIRST_BATCH,
            number: BatchNumber(1),
        }
    }

    /// Where the next batch stands, in bytes; `None` behind the last.
    ///
    /// # Errors
    ///
    /// If that is not where the file ends.
    pub fn place(&self) -> Result<Option<u64>, Damage> {
        if self.number.0 <= self.header.batches {
            return Ok(Some(self.position));
        }
        if self.position == self.header.size {
            return Ok(None);
        }
        Err(Damage {
            position: self.position,
            what: Wrong::Size {
                size: self.header.size,
            },
        })
    }

    /// The bytes of the file that the next batch takes, which begins with `head`.
    ///
    /// # Errors
    ///
    /// If it does not begin there.
    pub fn size(&self, head: &[u8]) -> Result<usize, Damage> {
        let header = self.head(head).ok_or(self.missing())?;
        usize::try_from(header.size()).map_err(|_| self.missing())
    }

    /// The next batch, whose bytes those are.
    ///
    /// # Errors
    ///
    /// If it is not whole.
    pub fn batch<'a>(&mut self, bytes: &'a [u8]) -> Result<Batch<'a>, Damage> {
        let batch = self
            .head(bytes)
            .and_then(|header| Batch::whole(header, bytes))
            .ok_or(self.missing())?;
        self.number = self.number.next();
        self.position = batch.header.end();
        Ok(batch)
    }

    fn head(&self, bytes: &[u8]) -> Option<batch::Header> {
        let origin = &self.header.origin;
        batch::Header::read(&origin.identity, self.position, bytes)
            .filter(|it| it.origin == *origin && it.label.number == self.number)
    }

    fn missing(&self) -> Damage {
        Damage {
            position: self.position,
            what: Wrong::Batch {
                number: self.number,
            },
        }
    }
}
