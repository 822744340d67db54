//! The arena: all memory for messages, taken once and lent in chunks.
//!
//! ```text
//! | chunk 0 | chunk 1 | chunk 2 | ...        64 KiB each, page-aligned
//!      next: 2 ---------^   chunks that belong together are chained by number
//! ```
//!
//! A chunk is named by a [`ChunkId`], never by a pointer, so chains and moves
//! need no unsafe code; this file turns names into slices and is the only place
//! that does. Chunks that are given back are lent out again last-in, first-out:
//! what was used a moment ago is still in the cache. Nothing is allocated after
//! construction.
//!
//! Invariants: a chunk is either free or lent to exactly one owner; `free` holds
//! each free chunk below `fresh` once; chunks from `fresh` on were never lent.

use core::ptr::NonNull;
use core::slice;
use std::alloc::{self, Layout};

use crate::id::PageNumber;
use crate::limits::CHUNK_SIZE;

/// Bytes of a chunk.
pub const CHUNK: usize = CHUNK_SIZE as usize;
/// Where the arena starts: on a huge page, so that the kernel may use them.
const ARENA_ALIGNMENT: usize = 2 * 1024 * 1024;

/// The number of a chunk of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkId(u32);

impl ChunkId {
    /// Ends a chain.
    pub const NONE: Self = Self(u32::MAX);
    /// Stands behind a chunk that is not lent.
    const FREE: Self = Self(u32::MAX - 1);

    /// Whether this is a chunk at all.
    #[must_use]
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
}

/// Pages of a file, one behind the other, that hold what a chain of chunks had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first one.
    pub page: PageNumber,
    /// How many.
    pub pages: u32,
    /// What whoever lent them notes of that.
    pub since: u64,
}

/// All chunks of one shard.
#[derive(Debug)]
pub struct Arena {
    /// What the allocator gave, and wants back.
    allocation: NonNull<u8>,
    /// The first aligned byte of it: where the chunks begin.
    base: NonNull<u8>,
    chunks: u32,
    /// Chunks that were lent and came back.
    free: Vec<ChunkId>,
    /// The first chunk that was never lent.
    fresh: u32,
    /// The chunk that follows each one in its chain.
    next: Vec<ChunkId>,
    /// Pages of which nothing is needed any more: whoever gives up messages has the arena at
    /// hand, wherever these lie.
    pages: Vec<Extent>,
}

// SAFETY: the arena owns its memory, which nothing else points to; a `&mut` is
// needed to write to it, so it may move between threads like a boxed slice.
unsafe impl Send for Arena {}

impl Arena {
    /// An arena of `chunks` chunks, zeroed, not touched yet.
    ///
    /// # Panics
    ///
    /// If `chunks` is 0 or above 2^31, or the address space cannot hold it.
    #[must_use]
    pub fn new(chunks: u32) -> Self {
        Self::try_new(chunks).unwrap_or_else(|| alloc::handle_alloc_error(Self::layout(chunks)))
    }

    /// The same; `None` if there is not so much memory to be had.
    ///
    /// # Panics
    ///
    /// If `chunks` is 0 or above 2^31.
    #[must_use]
    pub fn try_new(chunks: u32) -> Option<Self> {
        assert!(
            (1..=1 << 31).contains(&chunks),
            "an arena has between 1 and 2^31 chunks"
        );
        let layout = Self::layout(chunks);
        // SAFETY: the layout's size is not zero, as `chunks` is not.
        let allocation = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        let skip = allocation.as_ptr().align_offset(ARENA_ALIGNMENT);
        assert!(skip < ARENA_ALIGNMENT, "a byte pointer can be aligned");
        // SAFETY: the allocation is longer than its chunks by one alignment, so the
        // first aligned byte and all chunks from there on lie inside.
        let base = unsafe { allocation.add(skip) };
        Some(Self {
            allocation,
            base,
            chunks,
            free: Vec::with_capacity(chunks as usize),
            fresh: 0,
            next: vec![ChunkId::FREE; chunks as usize],
            pages: Vec::new(),
        })
    }

    /// Lends a chunk with whatever bytes its last owner left; `None` if all are lent.
    #[inline]
    pub fn take(&mut self) -> Option<ChunkId> {
        let chunk = match self.free.pop() {
            Some(chunk) => chunk,
            None if self.fresh < self.chunks => {
                self.fresh += 1;
                ChunkId(self.fresh - 1)
            }
            None => return None,
        };
        self.next[chunk.0 as usize] = ChunkId::NONE;
        Some(chunk)
    }

    /// Takes a chunk back.
    #[inline]
    pub fn give(&mut self, chunk: ChunkId) {
        let next = &mut self.next[chunk.0 as usize];
        assert!(*next != ChunkId::FREE, "a chunk is given back once");
        *next = ChunkId::FREE;
        self.free.push(chunk);
    }

    /// Takes a chunk back with all that are chained behind it.
    pub fn give_chain(&mut self, head: ChunkId) {
        let mut chunk = head;
        while chunk.is_some() {
            let next = self.next(chunk);
            self.give(chunk);
            chunk = next;
        }
    }

    /// Takes pages back.
    pub fn give_pages(&mut self, extent: Extent) {
        self.pages.push(extent);
    }

    /// The pages that came back since this was asked last.
    pub fn take_pages(&mut self) -> Vec<Extent> {
        core::mem::take(&mut self.pages)
    }

    /// Lends so many chunks, chained; `None` if there are not as many.
    pub fn take_chain(&mut self, chunks: usize) -> Option<ChunkId> {
        if chunks == 0 || self.free() < chunks {
            return None;
        }
        let head = self.take()?;
        let mut last = head;
        for _ in 1..chunks {
            let chunk = self.take()?;
            self.chain(last, chunk);
            last = chunk;
        }
        Some(head)
    }

    /// Writes bytes to a chain that has room for them, from its front on.
    pub fn fill_chain(&mut self, head: ChunkId, bytes: &[u8]) {
        let mut chunk = head;
        for part in bytes.chunks(CHUNK) {
            self.bytes_mut(chunk)[..part.len()].copy_from_slice(part);
            chunk = self.next(chunk);
        }
    }

    /// Chains `next` behind `chunk`.
    pub fn chain(&mut self, chunk: ChunkId, next: ChunkId) {
        self.next[chunk.0 as usize] = next;
    }

    /// The chunk's bytes.
    #[inline]
    pub fn bytes_mut(&mut self, chunk: ChunkId) -> &mut [u8] {
        let start = self.start(chunk);
        // SAFETY: `start` is the start of CHUNK initialised bytes inside the
        // allocation, and `&mut self` excludes every other slice of the arena.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), CHUNK) }
    }

    /// The chunk's bytes.
    #[inline]
    #[must_use]
    pub fn bytes(&self, chunk: ChunkId) -> &[u8] {
        let start = self.start(chunk);
        // SAFETY: `start` is the start of CHUNK initialised bytes inside the
        // allocation, and `&self` excludes every writer of this process.
        unsafe { slice::from_raw_parts(start.as_ptr(), CHUNK) }
    }

    /// Copies `length` bytes at `from` of one chunk to `to` of another.
    ///
    /// # Panics
    ///
    /// If either range leaves its chunk.
    pub fn copy(
        &mut self,
        (source, from): (ChunkId, usize),
        (target, to): (ChunkId, usize),
        length: usize,
    ) {
        assert!(
            from + length <= CHUNK && to + length <= CHUNK,
            "a copy stays within its chunks"
        );
        let (source, target) = (self.start(source), self.start(target));
        // SAFETY: both ranges lie inside their chunks by the assertion, so inside the
        // allocation; `copy_to` allows them to overlap; `&mut self` excludes slices.
        unsafe { source.add(from).copy_to(target.add(to), length) };
    }

    /// The chunk that is chained behind `chunk`, or [`ChunkId::NONE`].
    #[must_use]
    pub fn next(&self, chunk: ChunkId) -> ChunkId {
        self.next[chunk.0 as usize]
    }

    /// How many chunks can be taken.
    #[inline]
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len() + (self.chunks - self.fresh) as usize
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Where the arena lies and how many bytes it has, for a thread that has the
    /// kernel fault it in ahead of need without touching a byte itself.
    #[must_use]
    pub fn region(&self) -> (usize, usize) {
        (self.base.as_ptr().addr(), self.chunks as usize * CHUNK)
    }

    #[inline]
    fn start(&self, chunk: ChunkId) -> NonNull<u8> {
        assert!(
            chunk.0 < self.chunks,
            "a chunk's number is below the number of chunks"
        );
        // SAFETY: the number is below `chunks`, so the offset is inside the allocation.
        unsafe { self.base.add(chunk.0 as usize * CHUNK) }
    }

    /// Longer by one alignment instead of aligned: an aligned request would have
    /// many an allocator zero the memory by hand, and so touch all of it.
    fn layout(chunks: u32) -> Layout {
        Layout::from_size_align(chunks as usize * CHUNK + ARENA_ALIGNMENT, 16)
            .expect("an arena fits the address space")
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `allocation` came from the same allocator with the same layout.
        unsafe { alloc::dealloc(self.allocation.as_ptr(), Self::layout(self.chunks)) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_chunk_is_lent_once_and_then_none() {
        let mut arena = Arena::new(3);
        let chunks: Vec<_> = (0..3).map(|_| arena.take().unwrap()).collect();
        assert_eq!(arena.take(), None);
        assert_eq!(arena.free(), 0);
        for (index, chunk) in chunks.iter().enumerate() {
            arena.bytes_mut(*chunk).fill(u8::try_from(index).unwrap());
        }
        for (index, chunk) in chunks.iter().enumerate() {
            assert!(
                arena
                    .bytes(*chunk)
                    .iter()
                    .all(|byte| usize::from(*byte) == index)
            );
        }
    }

    #[test]
    fn chunks_are_page_aligned() {
        let mut arena = Arena::new(2);
        arena.take().unwrap();
        let second = arena.take().unwrap();
        assert_eq!(arena.bytes(second).as_ptr().addr() % 4096, 0);
    }

    #[test]
    fn the_chunk_given_back_last_is_lent_first() {
        let mut arena = Arena::new(4);
        let first = arena.take().unwrap();
        let second = arena.take().unwrap();
        arena.give(first);
        arena.give(second);
        assert_eq!(arena.take(), Some(second));
        assert_eq!(arena.take(), Some(first));
    }

    #[test]
    fn a_chain_comes_back_whole() {
        let mut arena = Arena::new(3);
        let chunks: Vec<_> = (0..3).map(|_| arena.take().unwrap()).collect();
        arena.chain(chunks[0], chunks[1]);
        arena.chain(chunks[1], chunks[2]);
        arena.give_chain(chunks[0]);
        assert_eq!(arena.free(), 3);
    }

    #[test]
    fn a_copy_may_overlap_and_crosses_chunks() {
        let mut arena = Arena::new(2);
        let (a, b) = (arena.take().unwrap(), arena.take().unwrap());
        arena.bytes_mut(a)[..4].copy_from_slice(b"abcd");
        arena.copy((a, 0), (a, 2), 4);
        assert_eq!(&arena.bytes(a)[..6], b"ababcd");
        arena.copy((a, 2), (b, CHUNK - 4), 4);
        assert_eq!(&arena.bytes(b)[CHUNK - 4..], b"abcd");
    }
}
