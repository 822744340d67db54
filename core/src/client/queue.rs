//! A queue of bytes that lie in one piece, for frames that wait.
//!
//! ```text
//!          base                                       positions, counted from the first byte ever
//!           |          front            end
//!   pages   | given back | frames in line | free ...  |
//!           0          head             tail          capacity
//! ```
//!
//! Bytes are named by their position in the stream, which never changes, so a
//! caller keeps positions and not indices. The bytes start at a page boundary.
//!
//! Invariants:
//! - `head <= tail <= capacity`, `front = base + head`, `end = base + tail`.
//! - What waits never exceeds `limit`; the capacity never exceeds twice that.
//! - What waits is moved to the front only when at least as many bytes have
//!   been given back, so each byte is moved at most once on average, and the
//!   capacity grows only until that is always possible: in steady state
//!   nothing is allocated.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const PAGE_SIZE: usize = 4096;
/// The first allocation, so that a thousand idle handles cost little.
const FIRST_CAPACITY: usize = 4 * PAGE_SIZE;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE]);

const _: () = assert!(size_of::<Page>() == PAGE_SIZE);

/// The queue. An empty one owns no memory.
#[derive(Default)]
pub(super) struct ByteQueue {
    pages: Vec<Page>,
    /// The position of the byte at index 0.
    base: u64,
    head: usize,
    tail: usize,
    limit: usize,
}

impl ByteQueue {
    /// A queue in which at most `limit` bytes wait.
    pub(super) fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// A place for `size` bytes behind all others, to be kept with
    /// [`ByteQueue::commit`]. `None` if they would exceed the limit.
    ///
    /// Its content is whatever stood there before.
    #[inline]
    pub(super) fn claim(&mut self, size: usize) -> Option<&mut [u8]> {
        if size > self.limit.saturating_sub(self.len()) {
            return None;
        }
        if size > self.capacity() - self.tail {
            self.make_room(size);
        }
        let tail = self.tail;
        Some(&mut self.pages.as_mut_bytes()[tail..tail + size])
    }

    /// Keeps the first `size` bytes of what was claimed last.
    #[inline]
    pub(super) fn commit(&mut self, size: usize) {
        debug_assert!(self.tail + size <= self.capacity());
        self.tail += size;
    }

    /// Appends `bytes`; false, and nothing happens, if they would exceed the limit.
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let Some(place) = self.claim(bytes.len()) else {
            return false;
        };
        place.copy_from_slice(bytes);
        self.commit(bytes.len());
        true
    }

    /// Gives back everything before `position`.
    #[inline]
    pub(super) fn release(&mut self, position: u64) {
        debug_assert!((self.front()..=self.end()).contains(&position));
        self.head = self.index(position);
        if self.head == self.tail {
            self.base = position;
            self.head = 0;
            self.tail = 0;
        }
    }

    /// Takes the bytes from `position` on back.
    pub(super) fn truncate(&mut self, position: u64) {
        self.tail = self.index(position);
    }

    /// Forgets every byte; positions go on.
    pub(super) fn clear(&mut self) {
        self.release(self.end());
    }

    /// The position of the first byte that waits.
    #[inline]
    pub(super) fn front(&self) -> u64 {
        self.base + self.head as u64
    }

    /// The position behind the last byte that waits.
    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.base + self.tail as u64
    }

    /// How many bytes wait.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.tail - self.head
    }

    /// The most bytes that may wait.
    #[inline]
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Lets at most `limit` bytes wait from here on.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.tail == self.head
    }

    /// All bytes that wait.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.pages.as_bytes()[self.head..self.tail]
    }

    /// The bytes from `from` up to `to`, both between front and end.
    #[inline]
    pub(super) fn range(&self, from: u64, to: u64) -> &[u8] {
        &self.pages.as_bytes()[self.index(from)..self.index(to)]
    }

    /// Moves `size` bytes from `from` down to `to`.
    pub(super) fn copy_down(&mut self, from: u64, to: u64, size: u64) {
        if from != to && size > 0 {
            let source = self.index(from)..self.index(from + size);
            let target = self.index(to);
            self.pages.as_mut_bytes().copy_within(source, target);
        }
    }

    /// As [`ByteQueue::range`], to be changed in place.
    pub(super) fn range_mut(&mut self, from: u64, to: u64) -> &mut [u8] {
        let (from, to) = (self.index(from), self.index(to));
        &mut self.pages.as_mut_bytes()[from..to]
    }

    #[inline]
    fn index(&self, position: u64) -> usize {
        debug_assert!((self.front()..=self.end()).contains(&position));
        usize::try_from(position - self.base).expect("what waits lies in memory")
    }

    #[inline]
    fn capacity(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    #[cold]
    fn make_room(&mut self, size: usize) {
        let live = self.len();
        let (head, tail) = (self.head, self.tail);
        if head >= live && size <= self.capacity() - live {
            self.pages.as_mut_bytes().copy_within(head..tail, 0);
        } else {
            // At twice the limit the branch above is always taken: what was
            // given back is then at least as much as what may wait.
            let ceiling = (2 * self.limit).next_multiple_of(PAGE_SIZE);
            let capacity = (2 * self.capacity())
                .max(FIRST_CAPACITY)
                .max((live + size).next_multiple_of(PAGE_SIZE))
                .min(ceiling);
            let mut pages = vec![Page([0; PAGE_SIZE]); capacity / PAGE_SIZE];
            pages.as_mut_bytes()[..live].copy_from_slice(self.bytes());
            self.pages = pages;
        }
        self.base += head as u64;
        self.head = 0;
        self.tail = live;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_lie_at_a_page_boundary_and_a_full_queue_takes_nothing() {
        let mut queue = ByteQueue::with_limit(10);
        assert!(queue.push(b"0123456789"));
        assert_eq!(queue.bytes().as_ptr().addr() % PAGE_SIZE, 0);
        assert!(!queue.push(b"x"));
        queue.release(4);
        assert!(queue.push(b"abcd"));
        assert_eq!(queue.bytes(), b"456789abcd");
        assert_eq!((queue.front(), queue.end()), (4, 14));
    }

    #[test]
    fn what_is_cut_off_is_overwritten_by_what_comes_next() {
        let mut queue = ByteQueue::with_limit(100);
        queue.push(b"aaabbbccc");
        queue.release(1);
        queue.range_mut(3, 6).fill(b'x');
        queue.truncate(6);
        assert!(queue.push(b"d"));
        assert_eq!(queue.bytes(), b"aaxxxd");
        assert_eq!(queue.end(), 7);
    }

    #[test]
    fn a_steady_stream_stops_allocating_and_moves_each_byte_at_most_once() {
        let mut queue = ByteQueue::with_limit(64 * 1024);
        let frame = [7u8; 1000];
        for _ in 0..60 {
            queue.push(&frame);
        }
        // Until the capacity has settled.
        for _ in 0..1000 {
            queue.release(queue.front() + 1000);
            queue.push(&frame);
        }
        let capacity = queue.capacity();
        let mut moved = 0;
        for _ in 0..10_000 {
            queue.release(queue.front() + 1000);
            let before = queue.base;
            queue.push(&frame);
            if queue.base != before {
                moved += queue.len() - 1000;
            }
        }
        assert_eq!(queue.capacity(), capacity);
        assert!(capacity <= 2 * 64 * 1024 + PAGE_SIZE);
        assert!(moved <= 10_000 * 1000, "{moved} bytes moved");
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_deque_of_bytes(
            steps in prop::collection::vec((0usize..6000, 0usize..6000), 1..200)
        ) {
            let mut queue = ByteQueue::with_limit(10_000);
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0u8;
            for (push, pop) in steps {
                let bytes: Vec<u8> = (0..push).map(|_| { next = next.wrapping_add(1); next }).collect();
                let taken = queue.push(&bytes);
                prop_assert_eq!(taken, model.len() + push <= 10_000);
                if taken {
                    model.extend(&bytes);
                }
                let pop = pop.min(model.len());
                queue.release(queue.front() + pop as u64);
                model.drain(..pop);
                prop_assert!(queue.bytes().iter().eq(model.iter()));
                prop_assert!(queue.capacity() <= 20_000usize.next_multiple_of(PAGE_SIZE));
            }
        }
    }
}
