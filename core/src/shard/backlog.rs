//! Records for another shard that found no room in their ring.
//!
//! ```text
//! push ─> [ chunk: record | record | record ] [ chunk: record | ... ] ─> [ heap ]
//!            ^ front
//! ```
//!
//! A ring is full only while its reader has not had a turn for long. What comes in
//! the meantime lies here, in its order: messages are covered by the credit that they
//! came within, and most other records are few and bounded by what links have open. What
//! a client may ask for without end bears its link, which is told when it has gone, and
//! bounds it. Should the arena have no chunk, records go to the heap instead, so that
//! none is lost.
//!
//! Invariants: `records` is the sum of what lies in chunks and on the heap; there is
//! something on the heap only behind everything in chunks.

use std::collections::VecDeque;

use crate::id::Handle;
use crate::memory::{Arena, CHUNK, ChunkId};

/// In front of each record in a chunk: its length, and the link that it is counted for.
const LENGTH_SIZE: usize = 8;
/// The link of what is counted for none: no link has such a handle.
pub(super) const NOBODY: Handle = Handle(u32::MAX);

#[derive(Clone, Copy, Debug)]
struct Filled {
    chunk: ChunkId,
    end: usize,
}

/// The records, first in first out.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    chunks: VecDeque<Filled>,
    /// Where the first record stands in the first chunk.
    start: usize,
    heap: VecDeque<(Handle, Box<[u8]>)>,
    records: usize,
}

impl Backlog {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Chunks of the arena that it holds.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Adds the record that `parts` make up, counted for a link. Returns how many bytes of
    /// memory it takes up.
    #[cold]
    pub(super) fn push(&mut self, arena: &mut Arena, link: Handle, parts: &[&[u8]]) -> usize {
        self.records += 1;
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let size = size_of_record(length);
        debug_assert!(size <= CHUNK, "a record fits a chunk");
        if self.heap.is_empty() {
            let fits = |filled: &Filled| filled.end + size <= CHUNK;
            if !self.chunks.back().is_some_and(fits)
                && let Some(chunk) = arena.take()
            {
                self.chunks.push_back(Filled { chunk, end: 0 });
            }
            if let Some(filled) = self.chunks.back_mut().filter(|filled| fits(filled)) {
                let bytes = &mut arena.bytes_mut(filled.chunk)[filled.end..filled.end + size];
                let counted = (length as u64) << 32 | u64::from(link.0);
                bytes[..LENGTH_SIZE].copy_from_slice(&counted.to_le_bytes());
                let mut at = LENGTH_SIZE;
                for part in parts {
                    bytes[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                filled.end += size;
                return size;
            }
        }
        self.heap.push_back((link, parts.concat().into()));
        size
    }

    /// Hands records to `take` in their order, with the links that they are counted for,
    /// as long as it takes them.
    #[cold]
    pub(super) fn drain(&mut self, arena: &mut Arena, mut take: impl FnMut(Handle, &[u8]) -> bool) {
        while let Some(filled) = self.chunks.front().copied() {
            let bytes = arena.bytes(filled.chunk);
            while self.start < filled.end {
                let (length, rest) = bytes[self.start..]
                    .split_first_chunk::<LENGTH_SIZE>()
                    .expect("a record begins with its length");
                let counted = u64::from_le_bytes(*length);
                let length = usize::try_from(counted >> 32)
                    .expect("the length of a record is that of a slice");
                #[expect(clippy::cast_possible_truncation, reason = "the low half is the link")]
                let link = Handle(counted as u32);
                if !take(link, &rest[..length]) {
                    return;
                }
                self.start += size_of_record(length);
                self.records -= 1;
            }
            arena.give(filled.chunk);
            self.chunks.pop_front();
            self.start = 0;
        }
        while let Some((link, record)) = self.heap.front() {
            if !take(*link, record) {
                return;
            }
            self.heap.pop_front();
            self.records -= 1;
        }
    }
}

/// Bytes that a record of so many takes up.
pub(super) fn size_of_record(length: usize) -> usize {
    LENGTH_SIZE + length.next_multiple_of(LENGTH_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(number: usize) -> Handle {
        Handle(u32::try_from(number % 5).unwrap_or(0))
    }

    fn record(number: usize) -> Vec<u8> {
        vec![u8::try_from(number % 251).unwrap_or(0); number * 37 % 9_000]
    }

    #[test]
    fn records_leave_in_their_order_however_few_are_taken_at_a_time() {
        // With one chunk most of them go to the heap.
        for chunks in [64, 1] {
            let mut arena = Arena::new(chunks);
            let mut backlog = Backlog::default();
            let (mut pushed, mut taken) = (0, 0);
            for round in 0..40 {
                for _ in 0..round % 7 + 3 {
                    let record = record(pushed);
                    let (one, other) = record.split_at(record.len() / 3);
                    backlog.push(&mut arena, link(pushed), &[one, other]);
                    pushed += 1;
                }
                let mut left = round % 5 + 2;
                backlog.drain(&mut arena, |of, bytes| {
                    if left == 0 {
                        return false;
                    }
                    left -= 1;
                    assert_eq!((of, bytes), (link(taken), &record(taken)[..]));
                    taken += 1;
                    true
                });
            }
            backlog.drain(&mut arena, |of, bytes| {
                assert_eq!((of, bytes), (link(taken), &record(taken)[..]));
                taken += 1;
                true
            });
            assert_eq!(taken, pushed);
            assert!(backlog.is_empty());
            assert_eq!((backlog.chunks(), arena.free()), (0, chunks as usize));
        }
    }
}
