//! What waits to leave on one link.
//!
//! ```text
//! pieces:  [ block 0..192 ][ log, 48 KiB ][ block 192..256 ][ log, 9 KiB ]
//!             |                 `- lent: pinned in the log until it is sent
//!             `- copied: answers, completions, delivery headers, short runs
//! ```
//!
//! Bytes leave in the order of the pieces. The block is one chunk of the arena,
//! held only while something in it waits, so an idle link costs none. It is written
//! round and round, each frame in one stretch:
//!
//! ```text
//! first lap:   [ left   |t waits      h|  room          ]
//! second lap:  [ waits h|  room   |t waits      top| gap ]
//! ```
//!
//! What has left (up to `tail`) makes room for what comes (from `head`), so a peer
//! that reads on, however slowly, is never too late for its answers, unless more
//! than the block holds wait at a time. A quarter of it, in one stretch, is for
//! answers and completions; deliveries leave that free.
//!
//! Where the arena has no chunk for a block, answers wait aside in a small buffer of
//! their own, and nothing overtakes them.
//!
//! Invariants: the bytes of the block that wait are those of its pieces, and lie as
//! drawn; `bytes` is the sum of all pieces; there is a block if and only if
//! something in it waits; nothing waits aside while there is one.

use std::collections::VecDeque;

use super::blocks::Blocks;
use crate::frame::control::Fields;
use crate::frame::encode;
use crate::id::{DestinationNumber, Offset, PartitionIndex};
use crate::limits::EGRESS_SIZE;
use crate::memory::{Arena, CHUNK, ChunkId};
use crate::pieces::{PIECES_MAX, Pieces};

/// What deliveries leave of the block to answers and completions, in one stretch.
const FOR_ANSWERS: usize = CHUNK / 4;

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

/// Why nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// What was written before has to leave first.
    Link,
    /// The arena has no chunk, or what waits aside comes first.
    Arena,
}

#[derive(Debug)]
pub(super) struct Egress {
    block: ChunkId,
    /// Where the next byte is written.
    head: usize,
    /// Where the oldest byte stands that has not left.
    tail: usize,
    /// Where the lap before this one ended, while some of it has not left.
    top: Option<usize>,
    pieces: VecDeque<Piece>,
    /// Bytes in all pieces.
    bytes: usize,
    /// Whole frames that wait for a block.
    aside: Vec<u8>,
}

impl Egress {
    pub(super) fn new() -> Self {
        Self {
            block: ChunkId::NONE,
            head: 0,
            tail: 0,
            top: None,
            pieces: VecDeque::new(),
            bytes: 0,
            aside: Vec::new(),
        }
    }

    /// Sees to it that there is a block; `may_take` says whether it may be taken if
    /// there is none. What is written next is written into it.
    #[inline]
    pub(super) fn open(
        &mut self,
        arena: &mut Arena,
        blocks: &mut Blocks,
        may_take: bool,
    ) -> Result<(), NoRoom> {
        if self.block.is_some() {
            return Ok(());
        }
        if !may_take || !self.aside.is_empty() {
            return Err(NoRoom::Arena);
        }
        self.block = arena.take().ok_or(NoRoom::Arena)?;
        blocks.lent += 1;
        Ok(())
    }

    /// Whether [`Egress::open`] would succeed.
    #[inline]
    pub(super) fn can_open(&self, arena: &Arena, may_take: bool) -> bool {
        self.block.is_some() || may_take && self.aside.is_empty() && arena.free() > 0
    }

    /// Writes a control frame into the block that is open.
    #[inline]
    pub(super) fn control<F: Fields>(
        &mut self,
        arena: &mut Arena,
        subject: u32,
        fields: &F,
        tail: &[&[u8]],
    ) -> Result<(), NoRoom> {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        self.reserve(size)?;
        let block = arena.bytes_mut(self.block);
        let written = encode::control(subject, fields, tail, &mut block[self.head..]);
        self.wrote(written);
        Ok(())
    }

    /// Puts a control frame aside until there is a block for it, behind those that
    /// wait there. Returns how many bytes it takes up, 0 if it would be beyond `most`.
    #[cold]
    pub(super) fn put_aside<F: Fields>(
        &mut self,
        subject: u32,
        fields: &F,
        tail: &[&[u8]],
        most: usize,
    ) -> usize {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let from = self.aside.len();
        if from + size > most {
            return 0;
        }
        self.aside.resize(from + size, 0);
        encode::control(subject, fields, tail, &mut self.aside[from..]);
        size
    }

    /// Writes what waits aside into a block, if it gets one. Returns how many bytes
    /// that were.
    pub(super) fn take_in_aside(&mut self, arena: &mut Arena, blocks: &mut Blocks) -> usize {
        let aside = core::mem::take(&mut self.aside);
        if aside.is_empty() || self.open(arena, blocks, true).is_err() {
            self.aside = aside;
            return 0;
        }
        arena.bytes_mut(self.block)[..aside.len()].copy_from_slice(&aside);
        self.wrote(aside.len());
        aside.len()
    }

    /// Bytes that wait aside.
    #[inline]
    pub(super) fn aside(&self) -> usize {
        self.aside.len()
    }

    /// Whether a delivery of `size` copied bytes may be written once a block is open.
    #[inline]
    pub(super) fn has_room_for_delivery(&self, size: usize) -> bool {
        self.bytes < EGRESS_SIZE as usize
            && self.room() >= size + FOR_ANSWERS
            && self.pieces.len() < 4 * PIECES_MAX
    }

    /// Whether so much has left since it was full that it is worth filling it again.
    pub(super) fn is_worth_filling(&self) -> bool {
        self.bytes <= EGRESS_SIZE as usize / 2
            && self.room() >= CHUNK / 2
            && self.pieces.len() < 2 * PIECES_MAX
    }

    /// Copies bytes out of another chunk into the block that is open.
    pub(super) fn copy(
        &mut self,
        arena: &mut Arena,
        (chunk, start): (ChunkId, usize),
        length: usize,
    ) -> Result<(), NoRoom> {
        self.reserve(length)?;
        arena.copy((chunk, start), (self.block, self.head), length);
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

    /// How many bytes can be written in one stretch.
    #[inline]
    pub(super) fn room(&self) -> usize {
        if self.top.is_some() {
            self.tail - self.head
        } else {
            (CHUNK - self.head).max(self.tail)
        }
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
        blocks: &mut Blocks,
        bytes: usize,
        mut unpin: impl FnMut(&mut Arena, Pin),
    ) {
        assert!(bytes <= self.bytes, "no more is sent than was given");
        if bytes < self.bytes {
            return self.sent_in_part(arena, blocks, bytes, unpin);
        }
        while let Some(piece) = self.pieces.pop_front() {
            if let Some(pin) = piece.pin {
                unpin(arena, pin);
            }
        }
        self.bytes = 0;
        self.give_back(arena, blocks);
    }

    /// The first `bytes`, fewer than all, were sent.
    #[inline(never)]
    fn sent_in_part(
        &mut self,
        arena: &mut Arena,
        blocks: &mut Blocks,
        mut bytes: usize,
        mut unpin: impl FnMut(&mut Arena, Pin),
    ) {
        self.bytes -= bytes;
        while let Some(piece) = self.pieces.front_mut() {
            let taken = bytes.min(piece.length);
            piece.start += taken;
            piece.length -= taken;
            bytes -= taken;
            let (end, left, pin) = (piece.start, piece.length, piece.pin);
            if pin.is_none() {
                self.tail = end;
            }
            if left > 0 {
                break;
            }
            self.pieces.pop_front();
            if let Some(pin) = pin {
                unpin(arena, pin);
            } else if self.top == Some(end) {
                (self.tail, self.top) = (0, None);
            }
        }
        if self.head == self.tail && self.top.is_none() {
            self.give_back(arena, blocks);
        }
    }

    /// Nothing of it will be sent.
    pub(super) fn clear(
        &mut self,
        arena: &mut Arena,
        blocks: &mut Blocks,
        unpin: impl FnMut(&mut Arena, Pin),
    ) {
        self.sent(arena, blocks, self.bytes, unpin);
        self.aside = Vec::new();
    }

    /// Bytes that wait in pieces.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Chunks of the arena that it holds itself.
    pub(super) fn chunks(&self) -> usize {
        usize::from(self.block.is_some())
    }

    /// Panics if an invariant is broken.
    pub(super) fn invariants(&self) {
        let sum = |own: bool| -> usize {
            let pieces = self.pieces.iter().filter(|it| it.pin.is_none() == own);
            pieces.map(|piece| piece.length).sum()
        };
        assert_eq!(sum(true) + sum(false), self.bytes, "bytes are counted");
        let waits = match self.top {
            None => {
                assert!(self.tail <= self.head && self.head <= CHUNK);
                self.head - self.tail
            }
            Some(top) => {
                assert!(self.head <= self.tail && self.tail < top && top <= CHUNK);
                self.head + top - self.tail
            }
        };
        assert_eq!(sum(true), waits, "what waits in the block is in its pieces");
        assert_eq!(
            self.block.is_some(),
            waits > 0,
            "a block is held while it is needed"
        );
        assert!(
            self.aside.is_empty() || !self.block.is_some(),
            "nothing overtakes what waits aside"
        );
    }

    /// Nothing in the block waits any more.
    #[inline]
    fn give_back(&mut self, arena: &mut Arena, blocks: &mut Blocks) {
        if self.block.is_some() {
            arena.give(self.block);
            blocks.lent -= 1;
            self.block = ChunkId::NONE;
            (self.head, self.tail, self.top) = (0, 0, None);
        }
    }

    /// Sees to it that `size` bytes can be written at `head`.
    #[inline]
    fn reserve(&mut self, size: usize) -> Result<(), NoRoom> {
        let end = if self.top.is_some() { self.tail } else { CHUNK };
        if size <= end - self.head {
            Ok(())
        } else {
            self.begin_lap(size)
        }
    }

    /// Goes on at the block's start, if there is room for `size` bytes.
    #[cold]
    fn begin_lap(&mut self, size: usize) -> Result<(), NoRoom> {
        if self.top.is_some() || self.tail < size {
            return Err(NoRoom::Link);
        }
        self.top = Some(self.head);
        self.head = 0;
        Ok(())
    }

    #[inline]
    fn wrote(&mut self, length: usize) {
        match self.pieces.back_mut() {
            Some(piece) if piece.pin.is_none() && piece.start + piece.length == self.head => {
                piece.length += length;
            }
            _ => self.pieces.push_back(Piece {
                chunk: self.block,
                start: self.head,
                length,
                pin: None,
            }),
        }
        self.head += length;
        self.bytes += length;
    }
}

#[cfg(test)]
mod tests;
