//! A ring of bytes between two threads: one writes records, one reads them.
//!
//! The cast: a [`Writer`], which claims space, fills it and publishes; a
//! [`Reader`], which reads what is published and gives the space back; the
//! region both look at (`region.rs`), which holds no pointer and could as well
//! lie in memory shared by two processes; and a wake word for each end
//! (`wake.rs`), which says whether publishing has to ring a doorbell. A reader that is
//! not asked each time keeps a tally (`tally.rs`) of what it has not told the writer,
//! and an end that moves between threads leaves word of where it is (`whereabouts.rs`).
//!
//! ```text
//!      consumed                 published         committed       consumed + capacity
//!         |     reader's           |    writer's     |     free        |
//!   ------+------------------------+-----------------+-----------------+------
//!         [len|bytes..][len|bytes.][len|bytes......]
//!
//!   record:   length u32 | mark u32 | bytes, zero to seven unused      (little endian)
//! ```
//!
//! A record is a fragment of at most 32 KiB and lies in one piece, so that it is
//! written and read in place. One that would straddle the end of the area is
//! put at its start, and a padding record fills the gap. Fragments have no
//! meaning here: the frames they carry may be split anywhere.
//!
//! Positions count bytes since the ring was made. They grow for ever, wrap at
//! 2^64, which the power-of-two capacity divides, and are reduced to an offset
//! by a mask; so full and empty differ and no byte is sacrificed to tell them
//! apart.
//!
//! Invariants, each kept by the end that writes the word:
//! - `consumed <= published <= committed <= consumed + capacity`, in the order
//!   of positions (differences modulo 2^64); all are multiples of 8;
//! - records tile `consumed..committed` exactly, and none straddles the end;
//! - the writer touches bytes only in `published..consumed + capacity`, the
//!   reader only in `consumed..published`, both as each last saw them, which
//!   errs towards touching less.
//!
//! Each end keeps the peer's position as last seen and loads it again only when
//! that is used up, so in a busy ring the two cores rarely exchange cache
//! lines. A batch costs one release store on either side however many records
//! it has. Nothing allocates, waits or calls the system after [`ring`].
//!
//! What the peer wrote is checked before it is used, once, from a local copy:
//! a wrong position or length is [`Corrupt`], never a slice out of bounds.
//!
//! The shape is the classic one of Lamport's queue with the cached opposite
//! index of FastForward, MCRingBuffer and rtrb, and with the padding record of
//! Aeron's ring buffers.
//!
//! Beside it stand what threads of one process share that have no bytes to tell
//! each other: a ring of values (`values.rs`), and a baton (`baton.rs`), which says
//! who of several threads reads all the rings.

mod baton;
mod reader;
mod region;
mod tally;
#[cfg(all(test, not(loom)))]
mod tests;
mod values;
mod wake;
mod whereabouts;
mod writer;

use std::error::Error;
use std::fmt;

pub use baton::{Baton, Holder};
pub use reader::{Batch, Reader};
pub use tally::Tally;
pub use values::{ValueReader, ValueWriter, values};
pub use wake::{Sleep, Wake, WakeWord};
pub use whereabouts::Whereabouts;
pub use writer::{Claim, ClaimError, Writer};

use region::{Region, WORD};

/// Bytes a fragment may have at most, in a ring large enough for it.
///
/// Two receive pieces of 16 KiB; with its copy at the destination it still lies
/// in the second-level cache.
pub const FRAGMENT_SIZE_MAX: u32 = 32 * 1024;

/// Bytes of the smallest ring: two records of one word each.
pub const CAPACITY_MIN: u32 = 32;

/// Bytes of the largest ring.
pub const CAPACITY_MAX: u32 = 1 << 30;

/// Makes a ring of `capacity` bytes, a power of two from [`CAPACITY_MIN`] to
/// [`CAPACITY_MAX`], and hands out its two ends.
///
/// A record takes eight bytes besides its fragment and at most half of the
/// ring, because a padding record may have to go before it: a ring for
/// fragments of [`FRAGMENT_SIZE_MAX`] has 128 KiB or more.
///
/// Allocates once, page-aligned, zeroed and so faulted in; the memory goes when
/// both ends have gone.
///
/// ```
/// use courser_core::ring::{Wake, ring};
///
/// let (mut writer, mut reader) = ring(4096).expect("a power of two");
/// writer.push(b"one").expect("an empty ring has space");
/// writer.push(b"two").expect("it still has");
/// assert_eq!(writer.publish(), Wake::Unneeded, "nobody sleeps");
///
/// let mut seen = Vec::new();
/// reader.read(|fragment| seen.push(fragment.to_vec())).expect("the writer is sound");
/// assert_eq!(seen, [b"one", b"two"]);
/// ```
pub fn ring(capacity: u32) -> Result<(Writer, Reader), CapacityRefused> {
    ring_from(capacity, 0)
}

/// Like [`ring`], with positions that begin at `position`, rounded down to a
/// multiple of eight: a test of positions that overflow need not move 2^64
/// bytes first.
pub fn ring_from(capacity: u32, position: u64) -> Result<(Writer, Reader), CapacityRefused> {
    if !capacity.is_power_of_two() || !(CAPACITY_MIN..=CAPACITY_MAX).contains(&capacity) {
        return Err(CapacityRefused { capacity });
    }
    let position = position & !u64::from(WORD - 1);
    let region = Region::allocate(capacity, position);
    let second = region.second_view();
    Ok((Writer::new(region, position), Reader::new(second, position)))
}

/// A ring cannot have this capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapacityRefused {
    /// The bytes asked for.
    pub capacity: u32,
}

impl fmt::Display for CapacityRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring capacity {} is not a power of two from {CAPACITY_MIN} to {CAPACITY_MAX} bytes",
            self.capacity
        )
    }
}

impl Error for CapacityRefused {}

/// The peer broke the protocol. The ring is of no more use: close the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// The peer's position lies where it cannot: backwards, further ahead than
    /// the ring is long, or between words.
    Position {
        /// What the peer wrote.
        peer: u64,
        /// This end's own position.
        own: u64,
        /// Bytes the ring holds.
        capacity: u32,
    },
    /// The word before a record is no record's: an unknown mark, or a length
    /// beyond what is published, beyond the end of the ring or beyond a
    /// fragment.
    Record {
        /// Where the record begins.
        position: u64,
        /// The length in its word.
        length: u32,
        /// The mark in its word.
        mark: u32,
    },
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Corrupt::Position {
                peer,
                own,
                capacity,
            } => write!(
                f,
                "ring corrupt: the peer's position {peer} cannot be, with ours at {own} and {capacity} bytes between at most"
            ),
            Corrupt::Record {
                position,
                length,
                mark,
            } => write!(
                f,
                "ring corrupt: the record at {position} has length {length} and mark {mark:#x}"
            ),
        }
    }
}

impl Error for Corrupt {}

/// The ends move between threads; their docs have the tests that they are
/// neither shared nor cloned.
const _: () = {
    const fn sent<T: Send>() {}
    sent::<Writer>();
    sent::<Reader>();
};

/// Mark of a record with a fragment. Neither mark is zero, so memory that
/// nobody wrote is no record.
const MARK_FRAGMENT: u32 = 0x4752_4146;
/// Mark of a record that fills the area up to its end.
const MARK_PADDING: u32 = 0x5044_4150;

/// The largest fragment of a ring: its record fits in half of the ring, so that
/// with a padding record before it, which is shorter than it, it fits in the
/// ring.
fn fragment_size_max(capacity: u32) -> u32 {
    FRAGMENT_SIZE_MAX.min(capacity / 2 - WORD)
}

/// Bytes of the record of a fragment of `len` bytes; `len` is at most
/// [`FRAGMENT_SIZE_MAX`], or the result wraps.
#[inline]
fn record_size(len: u32) -> u32 {
    len.wrapping_add(2 * WORD - 1) & !(WORD - 1)
}

/// The word in front of a record.
#[inline]
fn word(mark: u32, len: u32) -> u64 {
    (u64::from(mark) << 32 | u64::from(len)).to_le()
}

/// Mark and length of a record's word.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
fn split(word: u64) -> (u32, u32) {
    let word = u64::from_le(word);
    ((word >> 32) as u32, word as u32)
}
