//! The one place that vouches for the bytes a shard has sent or written.
//!
//! A send names memory that the ring may read after the call, which the borrow
//! checker cannot follow. What stands in for it is a promise of the shard (a link's
//! pieces stay put until the shard is told that they were sent, or that the link is
//! gone) and the order that the driver keeps (it tells the shard only after it took
//! the send's completion, and drops the ring before the shard).

use courser_core::id::Handle;
use courser_core::journal::writer::{self, Token};
use courser_core::shard::{self, Pieces, Shard};

use super::{PIECES_MAX, Ring, Slot, WRITE_PIECES_MAX};
use crate::disk::Rest;

const _: () = assert!(
    shard::PIECES_MAX <= PIECES_MAX,
    "one send takes all the pieces that a shard gives"
);

const _: () = assert!(
    writer::PIECES_MAX <= WRITE_PIECES_MAX,
    "one write takes all the pieces of a batch"
);

/// What a send was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    /// Bytes in all pieces.
    pub(crate) bytes: u32,
    /// The shard may have more than one send takes.
    pub(crate) more: bool,
}

/// Begins to send what the link has waiting; `None` if it has nothing.
pub(crate) fn send_pieces<R: Ring>(
    ring: &mut R,
    slot: Slot,
    shard: &Shard,
    link: Handle,
) -> Option<Given> {
    let mut pieces = Pieces::new();
    shard.pieces(link, &mut pieces);
    let slices = pieces.slices();
    if slices.is_empty() {
        return None;
    }
    let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
    // SAFETY: `Shard::pieces` promises that the slices stay where they are until `sent`
    // or `closed` for this link, and the worker calls either only after it took this
    // send's completion from the ring; it drops the ring before the shard.
    unsafe { ring.send(slot, slices) };
    Some(Given {
        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        more: slices.len() == shard::PIECES_MAX,
    })
}

/// Begins what is left of a write of the shard's journal.
pub(crate) fn write_pieces<R: Ring>(ring: &mut R, shard: &Shard, rest: Rest) {
    let mut pieces = [&[][..]; WRITE_PIECES_MAX];
    let mut count = 0;
    for piece in shard.storage_pieces(Token(rest.token)) {
        pieces[count] = piece;
        count += 1;
    }
    // SAFETY: `Shard::storage_pieces` promises that the slices stay where they are until
    // `written` for this token, and the worker calls it only after it took the last of
    // the write's completions from the ring; it drops the ring before the shard.
    unsafe { begin_write(ring, rest, &pieces[..count]) };
}

/// Begins what is left of a write whose pieces, all of them, are these.
///
/// # Safety
/// As for [`Ring::write`].
pub unsafe fn begin_write<R: Ring>(ring: &mut R, rest: Rest, pieces: &[&[u8]]) {
    let mut room = [&[][..]; WRITE_PIECES_MAX];
    let pieces = rest.of(pieces, &mut room);
    // SAFETY: passed on.
    unsafe { ring.write(rest.file, rest.from(), pieces, rest.token) };
}

/// Begins to write bytes that live for ever.
#[cfg(test)]
pub(crate) fn write_static<R: Ring>(ring: &mut R, rest: Rest, pieces: &[&'static [u8]]) {
    // SAFETY: the bytes are never freed nor changed.
    unsafe { begin_write(ring, rest, pieces) };
}

/// Begins to send bytes that live for ever.
#[cfg(test)]
pub(crate) fn send_static<R: Ring>(ring: &mut R, slot: Slot, pieces: &[&'static [u8]]) {
    // SAFETY: the bytes are never freed nor changed.
    unsafe { ring.send(slot, pieces) };
}
