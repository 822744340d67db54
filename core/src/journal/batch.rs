//! A batch: what one flush makes durable.
//!
//! ```text
//!       +0              +4              +8              +12             +16
//!  0    | magic         | sum of entries| length        | entries       |
//! 16    | number                        | durable before                |
//! 32    | run                           | written                       |
//! 48    | salt                          | reserved      | sum of header |
//! 64    | entry, entry, ...                                             |
//!       | zeros up to the next block                                    |
//! ```
//!
//! Two checksums, since they answer two questions. That of the header, which begins
//! with whose and which batch it is and where, says that the batch was written: what
//! it knew to be durable was. That of the entries says that all of it arrived. So a
//! look for batches sums 64 bytes of each block, whatever lies in it, and a batch can
//! be summed while it grows, before its number and place are known.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entry::Entries;
use super::{BLOCK_SIZE, Identity, Origin};
use crate::frame::checksum;
use crate::id::{BatchNumber, Run};
use crate::limits;
use crate::planted::Planted;
use crate::time::Wall;

/// What every batch begins with.
pub const MAGIC: [u8; 4] = *b"BTCH";
/// Bytes of a batch's header.
pub const HEADER_SIZE: usize = 64;

/// A batch's header as it lies in the file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fields {
    magic: [u8; 4],
    entries_checksum: U32,
    length: U32,
    entries: U32,
    number: U64,
    durable_before: U64,
    run: U64,
    written: U64,
    salt: U64,
    reserved: U32,
    header_checksum: U32,
}

/// What a header's checksum begins with.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Seed {
    installation: U128,
    journal: U64,
    run: U64,
    number: U64,
    position: U64,
}

const _: () = assert!(size_of::<Fields>() == HEADER_SIZE && size_of::<Seed>() == 48);

/// Which batch it is, and what was known when it was sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Its number.
    pub number: BatchNumber,
    /// The highest number that was known to be durable.
    pub durable_before: BatchNumber,
    /// When.
    pub written: Wall,
}

/// A batch's header whose checksum matches: it was written, and stands where it
/// belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who wrote it.
    pub origin: Origin,
    /// Which it is.
    pub label: Label,
    /// Where it stands in its file, in bytes; a multiple of the block.
    pub position: u64,
    /// Bytes of header and entries, without the zeros behind.
    pub length: u32,
    /// How many entries.
    pub entries: u32,
    entries_checksum: u32,
}

/// The bytes of a file that a batch of `length` bytes takes.
#[must_use]
pub const fn size(length: usize) -> usize {
    length.next_multiple_of(BLOCK_SIZE)
}

/// Sums the entries of a batch as they come.
///
/// Pieces may be cut anywhere; their order is that of the batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seal {
    checksum: u32,
    length: u32,
    entries: u32,
}

impl Seal {
    /// Of a batch that has no entries yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of the entries, which may come in any pieces.
    #[inline]
    pub fn extend(&mut self, piece: &[u8]) {
        let size = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        self.checksum = checksum::extend(self.checksum, piece);
        self.length = self.length.saturating_add(size);
    }

    /// What came is so many entries more.
    #[inline]
    pub fn count(&mut self, entries: u32) {
        self.entries = self.entries.saturating_add(entries);
    }

    /// Bytes of the batch so far, its header included.
    #[must_use]
    pub fn length(&self) -> usize {
        HEADER_SIZE.saturating_add(usize::try_from(self.length).unwrap_or(usize::MAX))
    }

    /// The header: the first bytes of the batch, which is to stand at `position`.
    ///
    /// # Panics
    ///
    /// If the batch is longer than [`limits::BATCH_SIZE_MAX`] or its entries do not fill
    /// multiples of eight: both are mistakes of the caller.
    #[must_use]
    pub fn finish(self, origin: &Origin, position: u64, label: Label) -> [u8; HEADER_SIZE] {
        let length = u32::try_from(self.length()).unwrap_or(u32::MAX);
        assert!(
            length <= limits::BATCH_SIZE_MAX && length.is_multiple_of(8),
            "a batch of {length} bytes"
        );
        let mut fields = Fields {
            magic: MAGIC,
            entries_checksum: self.checksum.into(),
            length: length.into(),
            entries: self.entries.into(),
            number: label.number.0.into(),
            durable_before: label.durable_before.0.into(),
            run: origin.run.0.into(),
            written: label.written.0.into(),
            salt: origin.salt.into(),
            reserved: U32::ZERO,
            header_checksum: U32::ZERO,
        };
        let sum = fields.sum(&origin.identity, position);
        fields.header_checksum.set(sum);
        let mut bytes = [0; HEADER_SIZE];
        bytes.copy_from_slice(fields.as_bytes());
        bytes
    }
}

/// Seals a batch that lies in pieces: the first one begins with room for the header,
/// which this fills, and all others are entries, so many in all.
///
/// # Panics
///
/// As [`Seal::finish`], and if the first piece has no room for a header.
pub fn seal(origin: &Origin, position: u64, label: Label, entries: u32, pieces: &mut [&mut [u8]]) {
    let mut seal = Seal::new();
    seal.count(entries);
    let room = pieces
        .split_first_mut()
        .and_then(|(first, rest)| Some((first.split_first_chunk_mut::<HEADER_SIZE>()?, rest)));
    assert!(room.is_some(), "a batch begins with room for its header");
    if let Some(((header, first), rest)) = room {
        seal.extend(first);
        for piece in rest {
            seal.extend(piece);
        }
        *header = seal.finish(origin, position, label);
    }
}

impl Fields {
    /// Every byte but the checksum itself, behind whose it is and where it stands.
    fn sum(&self, identity: &Identity, position: u64) -> u32 {
        let seed = Seed {
            installation: identity.installation.0.into(),
            journal: u64::from(identity.journal.0).into(),
            run: self.run,
            number: self.number,
            position: position.into(),
        };
        let covered = self.as_bytes().get(..HEADER_SIZE.saturating_sub(4));
        checksum::extend(
            checksum::extend(0, seed.as_bytes()),
            covered.unwrap_or_default(),
        )
    }
}

impl Header {
    /// The header of whichever batch of `identity` begins at the front of `bytes`, which
    /// stand at `position` of a file. Whoever knows the run compares its origin.
    #[must_use]
    pub fn read(identity: &Identity, position: u64, bytes: &[u8]) -> Option<Self> {
        let (fields, _) = Fields::ref_from_prefix(bytes).ok()?;
        if fields.magic != MAGIC || fields.header_checksum.get() != fields.sum(identity, position) {
            return None;
        }
        let header = Self {
            origin: Origin {
                identity: *identity,
                run: Run(fields.run.get()),
                salt: fields.salt.get(),
            },
            label: Label {
                number: BatchNumber(fields.number.get()),
                durable_before: BatchNumber(fields.durable_before.get()),
                written: Wall(fields.written.get()),
            },
            position,
            length: fields.length.get(),
            entries: fields.entries.get(),
            entries_checksum: fields.entries_checksum.get(),
        };
        let least = u32::try_from(HEADER_SIZE).unwrap_or(u32::MAX);
        let possible = header.label.durable_before < header.label.number
            && header.label.number <= BatchNumber::MAX
            && (least..=limits::BATCH_SIZE_MAX).contains(&header.length)
            && header.length.is_multiple_of(8)
            && fields.reserved.get() == 0;
        possible.then_some(header)
    }

    /// The bytes of its file that the batch takes, zeros included.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::from(self.length)
            .checked_next_multiple_of(super::file::FIRST_BATCH)
            .unwrap_or(u64::MAX)
    }

    /// Where in its file the next batch may begin.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.position.saturating_add(self.size())
    }
}

/// A batch of which every byte is there.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Which it is.
    pub header: Header,
    bytes: &'a [u8],
}

impl<'a> Batch<'a> {
    /// The batch whose header was read from the front of `bytes`, unless a part of it is
    /// missing.
    #[must_use]
    pub fn whole(header: Header, bytes: &'a [u8]) -> Option<Self> {
        let length = usize::try_from(header.length).ok()?;
        let bytes = bytes.get(HEADER_SIZE..length)?;
        let is_whole = checksum::extend(0, bytes) == header.entries_checksum;
        (is_whole || Planted::BelieveEntries.is_awake()).then_some(Self { header, bytes })
    }

    /// The batch of `origin` at the front of `bytes`, which stand at `position` of a
    /// file. `None` unless it was written there by that run and all of it is there.
    #[must_use]
    pub fn open(origin: &Origin, position: u64, bytes: &'a [u8]) -> Option<Self> {
        let header = Header::read(&origin.identity, position, bytes)?;
        if header.origin != *origin {
            return None;
        }
        Self::whole(header, bytes)
    }

    /// Its entries, in their order.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries::new(self.bytes, self.header.entries)
    }

    /// The bytes of its entries.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}
