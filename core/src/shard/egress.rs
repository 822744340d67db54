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
//! Runs from other shards have chunks of their own, taken before they are asked for.
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

/// Whose memory a piece lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The block's.
    Block,
    /// The log's, which is pinned.
    Log(Pin),
    /// What arrived from another shard.
    Arrivals,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    chunk: ChunkId,
    start: usize,
    length: usize,
    owner: Owner,
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
    arrivals: Arrivals,
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
            arrivals: Arrivals::default(),
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
    // Always: what is written is known where it is called.
    #[inline(always)]
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
    #[inline]
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
            owner: Owner::Log(pin),
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
            match piece.owner {
                Owner::Block => {}
                Owner::Log(pin) => unpin(arena, pin),
                Owner::Arrivals => self.arrivals.sent(arena, piece.length),
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
            let (end, left, owner) = (piece.start, piece.length, piece.owner);
            match owner {
                Owner::Block => self.tail = end,
                Owner::Log(_) => {}
                Owner::Arrivals => self.arrivals.sent(arena, taken),
            }
            if left > 0 {
                break;
            }
            self.pieces.pop_front();
            match owner {
                Owner::Block if self.top == Some(end) => (self.tail, self.top) = (0, None),
                Owner::Log(pin) => unpin(arena, pin),
                Owner::Block | Owner::Arrivals => {}
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
        self.arrivals.give_up(arena);
    }

    /// Sees to it that so many chunks are there for what another shard will deliver;
    /// `false` if they are not to be had.
    pub(super) fn expect_arrivals(&mut self, arena: &mut Arena, chunks: usize) -> bool {
        self.arrivals.expect(arena, chunks)
    }

    /// Whether there are chunks for what another shard delivers, or delivered.
    #[inline]
    pub(super) fn has_arrivals(&self) -> bool {
        !self.arrivals.chunks.is_empty()
    }

    /// Chunks of the arena that are there for arrivals.
    pub(super) fn arrival_chunks(&self) -> usize {
        self.arrivals.chunks.len()
    }

    /// A run arrives: its header is written in front of it. Of its `size` bytes these
    /// are the first; it is sent once all of them are there.
    pub(super) fn arrive<F: Fields>(
        &mut self,
        arena: &mut Arena,
        subject: u32,
        header: &F,
        size: usize,
        bytes: &[u8],
    ) {
        let mut frame = [0; 64];
        let written = encode::control(subject, header, &[], &mut frame);
        self.arrivals.write(arena, &frame[..written]);
        self.arrivals.missing = size;
        self.arrive_more(arena, bytes);
    }

    /// More of the run that arrives.
    pub(super) fn arrive_more(&mut self, arena: &mut Arena, bytes: &[u8]) {
        self.arrivals.write(arena, bytes);
        self.arrivals.missing -= bytes.len();
        if self.arrivals.missing > 0 {
            return;
        }
        while let Some((chunk, start, length)) = self.arrivals.show() {
            self.bytes += length;
            match self.pieces.back_mut() {
                Some(last)
                    if last.owner == Owner::Arrivals
                        && last.chunk == chunk
                        && last.start + last.length == start =>
                {
                    last.length += length;
                }
                _ => self.pieces.push_back(Piece {
                    chunk,
                    start,
                    length,
                    owner: Owner::Arrivals,
                }),
            }
        }
    }

    /// Whether a run has arrived without its end.
    #[inline]
    pub(super) fn awaits_more(&self) -> bool {
        self.arrivals.missing > 0
    }

    /// Nothing more arrives in the chunks that are there for it: they go once all that
    /// did has left.
    pub(super) fn end_arrivals(&mut self, arena: &mut Arena) {
        self.arrivals.ended = true;
        self.arrivals.sent(arena, 0);
    }

    /// Whether [`Egress::take_freed`] has any to say.
    #[inline]
    pub(super) fn has_freed(&self) -> bool {
        self.arrivals.freed > 0
    }

    /// Chunks for arrivals that have gone since this was last asked.
    #[inline]
    pub(super) fn take_freed(&mut self) -> usize {
        core::mem::take(&mut self.arrivals.freed)
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
            let own_of = |piece: &&Piece| (piece.owner == Owner::Block) == own;
            let pieces = self.pieces.iter().filter(own_of);
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
            Some(piece)
                if piece.owner == Owner::Block && piece.start + piece.length == self.head =>
            {
                piece.length += length;
            }
            _ => self.pieces.push_back(Piece {
                chunk: self.block,
                start: self.head,
                length,
                owner: Owner::Block,
            }),
        }
        self.head += length;
        self.bytes += length;
    }
}

/// Where runs from another shard arrive: chunks that were taken for one lease, filled
/// from the front. Nothing of a run is shown before all of it is there.
#[derive(Debug, Default)]
struct Arrivals {
    chunks: Vec<ChunkId>,
    /// Bytes that were written.
    used: usize,
    /// Bytes of them that are pieces, or were.
    shown: usize,
    /// Bytes that are pieces.
    unsent: usize,
    /// Bytes still to come of the run that arrives.
    missing: usize,
    /// Nothing more arrives.
    ended: bool,
    /// Chunks that were given back.
    freed: usize,
}

impl Arrivals {
    fn expect(&mut self, arena: &mut Arena, chunks: usize) -> bool {
        debug_assert!(self.chunks.is_empty(), "one lease at a time");
        if arena.free() < chunks {
            return false;
        }
        self.chunks.extend((0..chunks).map_while(|_| arena.take()));
        (self.used, self.shown, self.ended) = (0, 0, false);
        true
    }

    fn write(&mut self, arena: &mut Arena, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (chunk, at) = (self.chunks[self.used / CHUNK], self.used % CHUNK);
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - at));
            arena.bytes_mut(chunk)[at..at + now.len()].copy_from_slice(now);
            self.used += now.len();
            bytes = later;
        }
    }

    /// The next stretch that is to become a piece.
    fn show(&mut self) -> Option<(ChunkId, usize, usize)> {
        let (index, at) = (self.shown / CHUNK, self.shown % CHUNK);
        let length = (self.used - self.shown).min(CHUNK - at);
        if length == 0 {
            return None;
        }
        self.shown += length;
        self.unsent += length;
        Some((self.chunks[index], at, length))
    }

    fn sent(&mut self, arena: &mut Arena, bytes: usize) {
        self.unsent -= bytes;
        if self.ended && self.unsent == 0 {
            self.give_up(arena);
        }
    }

    fn give_up(&mut self, arena: &mut Arena) {
        self.freed += self.chunks.len();
        for chunk in self.chunks.drain(..) {
            arena.give(chunk);
        }
        (self.used, self.shown, self.unsent, self.missing) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests;
