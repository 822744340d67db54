//! One direction of a connection: bytes under way and bytes that may be read.
//!
//! ```text
//!   write ---> | under way, each with its due time | due: readable | ---> read
//!               `-------------- at most `capacity` bytes --------'
//! ```
//!
//! A pipe keeps no boundaries: what was written in one piece is read in any
//! pieces, merged with what is due beside it. Bytes never overtake each other.

use std::collections::VecDeque;

/// A queue of bytes with delays.
#[derive(Debug)]
pub(crate) struct Pipe {
    segments: VecDeque<(u64, Vec<u8>)>,
    /// Bytes of the front segment that were read.
    read: usize,
    waiting: usize,
    capacity: usize,
    last_due: u64,
    ended: bool,
    /// Nobody reads at the other end, and nobody says so.
    dead: bool,
}

impl Pipe {
    /// An empty pipe that holds at most `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            segments: VecDeque::new(),
            read: 0,
            waiting: 0,
            capacity,
            last_due: 0,
            ended: false,
            dead: false,
        }
    }

    /// How many bytes may be written. One that has ended takes everything and
    /// forgets it.
    pub(crate) fn room(&self) -> usize {
        if self.ended {
            usize::MAX
        } else {
            self.capacity - self.waiting
        }
    }

    /// Adds bytes that can be read from `due` on.
    pub(crate) fn write(&mut self, due: u64, bytes: &[u8]) {
        if self.ended || bytes.is_empty() {
            return;
        }
        debug_assert!(bytes.len() <= self.room(), "the caller asked for room");
        self.last_due = self.last_due.max(due);
        self.waiting += bytes.len();
        self.segments.push_back((self.last_due, bytes.to_vec()));
    }

    /// Takes at most `most` bytes that are due.
    pub(crate) fn read(&mut self, now: u64, most: usize, into: &mut Vec<u8>) {
        into.clear();
        if self.dead {
            return;
        }
        while into.len() < most {
            let Some((due, segment)) = self.segments.front() else {
                break;
            };
            if *due > now {
                break;
            }
            let count = (segment.len() - self.read).min(most - into.len());
            into.extend_from_slice(&segment[self.read..self.read + count]);
            self.read += count;
            if self.read == segment.len() {
                self.segments.pop_front();
                self.read = 0;
            }
        }
        self.waiting -= into.len();
    }

    /// When the next bytes may be read.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.segments
            .front()
            .filter(|_| !self.dead)
            .map(|(due, _)| *due)
    }

    /// Nothing further is written; what is under way still arrives.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Loses everything behind the first `kept` bytes.
    pub(crate) fn cut(&mut self, kept: usize) {
        let mut left = kept.min(self.waiting);
        self.waiting = left;
        let mut skip = self.read;
        let mut count = 0;
        for (_, segment) in &mut self.segments {
            if left == 0 {
                break;
            }
            let here = (segment.len() - skip).min(left);
            segment.truncate(skip + here);
            (skip, left) = (0, left - here);
            count += 1;
        }
        self.segments.truncate(count);
        if count == 0 {
            self.read = 0;
        }
    }

    /// The other end is gone without a word: what fits is taken, nothing arrives.
    pub(crate) fn die(&mut self) {
        self.dead = true;
    }

    /// Whether the end of the stream is what comes next.
    pub(crate) fn is_at_end(&self) -> bool {
        self.ended && self.segments.is_empty()
    }

    /// Bytes that were written and not read.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pipe: &mut Pipe, now: u64, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        pipe.read(now, most, &mut bytes);
        bytes
    }

    #[test]
    fn bytes_arrive_in_order_when_they_are_due_in_any_pieces() {
        let mut pipe = Pipe::new(10);
        pipe.write(5, b"abc");
        pipe.write(3, b"def");
        assert_eq!(pipe.room(), 4);
        assert_eq!(take(&mut pipe, 4, 10), b"", "the later never overtakes");
        assert_eq!(take(&mut pipe, 5, 2), b"ab");
        assert_eq!(take(&mut pipe, 5, 10), b"cdef");
        assert_eq!(pipe.room(), 10);
    }

    #[test]
    fn a_cut_keeps_a_prefix_of_any_length() {
        for kept in 0..8 {
            let mut pipe = Pipe::new(10);
            pipe.write(0, b"abc");
            pipe.write(0, b"def");
            assert_eq!(take(&mut pipe, 0, 1), b"a");
            pipe.cut(kept);
            pipe.end();
            assert_eq!(take(&mut pipe, 0, 10), b"bcdef"[..kept.min(5)], "{kept}");
            assert!(pipe.is_at_end());
            pipe.write(0, b"x");
            assert!(pipe.is_at_end(), "an ended pipe forgets what is written");
        }
    }

    #[test]
    fn a_dead_pipe_takes_what_fits_and_delivers_nothing() {
        let mut pipe = Pipe::new(4);
        pipe.die();
        pipe.write(0, b"abcd");
        assert_eq!(pipe.room(), 0);
        assert_eq!(take(&mut pipe, 9, 10), b"");
        assert_eq!(pipe.next_due(), None);
    }
}
