//! What waits to leave on one link.
//!
//! ```text
//! pieces:  [ block 0..192 ][ log, 48 KiB ][ block 192..256 ][ log, 9 KiB ]
//!             |                 `- lent: pinned in the log until it is sent
//!             `- copied: answers, completions, delivery headers, short runs
//! ```
//!
//! Bytes leave in the order of the pieces. The block is one chunk of the arena,
//! held only while something waits, so an idle link costs none. The last quarter
//! of the block is for answers and completions; deliveries stop before it.

use std::collections::VecDeque;

use crate::frame::control::Fields;
use crate::frame::encode;
use crate::id::{DestinationNumber, Offset, PartitionIndex};
use crate::limits::EGRESS_SIZE;
use crate::memory::{Arena, CHUNK, ChunkId};

/// Where deliveries stop.
const DELIVERIES_UP_TO: usize = CHUNK / 4 * 3;

/// The most slices that one send is made of.
pub const PIECES_MAX: usize = 64;

/// Slices to send next, in order.
#[derive(Debug)]
pub struct Pieces<'a> {
    slices: [&'a [u8]; PIECES_MAX],
    count: usize,
}

impl<'a> Pieces<'a> {
    /// No slices.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slices: [&[]; PIECES_MAX],
            count: 0,
        }
    }

    /// Adds a slice; `false` if there are too many.
    pub fn push(&mut self, slice: &'a [u8]) -> bool {
        if self.count == PIECES_MAX {
            return false;
        }
        self.slices[self.count] = slice;
        self.count += 1;
        true
    }

    /// The slices.
    #[must_use]
    pub fn slices(&self) -> &[&'a [u8]] {
        &self.slices[..self.count]
    }
}

impl Default for Pieces<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// A message in the log whose bytes are lent to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) destination: DestinationNumber,
    pub(super) partition: PartitionIndex,
    pub(super) offset: Offset,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    chunk: ChunkId,
    start: usize,
    length: usize,
    /// `None` if the piece lies in the block.
    pin: Option<Pin>,
}

/// There is no room; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

#[derive(Debug)]
pub(super) struct Egress {
    block: ChunkId,
    written: usize,
    pieces: VecDeque<Piece>,
    /// Bytes in all pieces.
    bytes: usize,
}

impl Egress {
    pub(super) fn new() -> Self {
        Self {
            block: ChunkId::NONE,
            written: 0,
            pieces: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Writes a control frame.
    pub(super) fn control<F: Fields>(
        &mut self,
        arena: &mut Arena,
        subject: u32,
        fields: &F,
        tail: &[&[u8]],
    ) -> Result<(), NoRoom> {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        self.reserve(arena, size, CHUNK)?;
        let block = arena.bytes_mut(self.block);
        let written = encode::control(subject, fields, tail, &mut block[self.written..]);
        self.wrote(written);
        Ok(())
    }

    /// Whether a delivery of `size` copied bytes may be written now.
    pub(super) fn has_room_for_delivery(&self, size: usize) -> bool {
        self.bytes < EGRESS_SIZE as usize
            && self.written + size <= DELIVERIES_UP_TO
            && self.pieces.len() < 4 * PIECES_MAX
    }

    /// Copies bytes out of another chunk.
    pub(super) fn copy(
        &mut self,
        arena: &mut Arena,
        (chunk, start): (ChunkId, usize),
        length: usize,
    ) -> Result<(), NoRoom> {
        self.reserve(arena, length, CHUNK)?;
        arena.copy((chunk, start), (self.block, self.written), length);
        self.wrote(length);
        Ok(())
    }

    /// Lends bytes of the log; the caller has pinned them.
    pub(super) fn lend(&mut self, (chunk, start): (ChunkId, usize), length: usize, pin: Pin) {
        self.pieces.push_back(Piece {
            chunk,
            start,
            length,
            pin: Some(pin),
        });
        self.bytes += length;
    }

    /// How many bytes the block has left for completions.
    pub(super) fn room(&self) -> usize {
        CHUNK - self.written
    }

    /// The next slices to send.
    pub(super) fn pieces<'a>(&'a self, arena: &'a Arena, out: &mut Pieces<'a>) {
        for piece in &self.pieces {
            let slice = &arena.bytes(piece.chunk)[piece.start..piece.start + piece.length];
            if !out.push(slice) {
                break;
            }
        }
    }

    /// The kernel took `bytes`; each pin that is done with goes to `unpin`.
    pub(super) fn sent(
        &mut self,
        arena: &mut Arena,
        mut bytes: usize,
        mut unpin: impl FnMut(&mut Arena, Pin),
    ) {
        assert!(bytes <= self.bytes, "no more is sent than was given");
        self.bytes -= bytes;
        while let Some(piece) = self.pieces.front_mut() {
            if bytes < piece.length {
                piece.start += bytes;
                piece.length -= bytes;
                break;
            }
            bytes -= piece.length;
            let pin = piece.pin;
            self.pieces.pop_front();
            if let Some(pin) = pin {
                unpin(arena, pin);
            }
        }
        if self.pieces.is_empty() {
            self.written = 0;
            if self.block.is_some() {
                arena.give(self.block);
                self.block = ChunkId::NONE;
            }
        }
    }

    /// Nothing of it will be sent.
    pub(super) fn clear(&mut self, arena: &mut Arena, unpin: impl FnMut(&mut Arena, Pin)) {
        self.sent(arena, self.bytes, unpin);
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Chunks of the arena that it holds itself.
    pub(super) fn chunks(&self) -> usize {
        usize::from(self.block.is_some())
    }

    fn reserve(&mut self, arena: &mut Arena, size: usize, limit: usize) -> Result<(), NoRoom> {
        if self.written + size > limit {
            return Err(NoRoom);
        }
        if !self.block.is_some() {
            self.block = arena.take().ok_or(NoRoom)?;
        }
        Ok(())
    }

    fn wrote(&mut self, length: usize) {
        match self.pieces.back_mut() {
            Some(piece) if piece.pin.is_none() => piece.length += length,
            _ => self.pieces.push_back(Piece {
                chunk: self.block,
                start: self.written,
                length,
                pin: None,
            }),
        }
        self.written += length;
        self.bytes += length;
    }
}
