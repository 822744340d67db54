//! Stretches: the whole segments of a log whose retention is by segments.
//!
//! ```text
//!  stretches:  | closed at 3 s | closed at 9 s | open            |
//!  chunks:     | a | b | c     | d | large | e | f | g | h (open)|
//!                                                      `- is full where the stretch is
//! ```
//!
//! What retention calls a segment is a stretch here, since a log's own segments are its
//! chunks. A stretch is closed by the first message that finds it with its size, and goes
//! with all its chunks at once: when everything in it is settled, or once its period is
//! over, whatever was settled. What expires is taken from every subscription first.
//!
//! Where stretches end follows from the messages that are kept, and so does when they were
//! closed: at the append time of the message that closed them. A journal that is told again
//! makes the same ones.
//!
//! A period is counted on the monotonic clock from when the shard has heard of the close,
//! so that a step of the wall clock ends none. Only over a restart the wall clock says how
//! much of it has passed.
//!
//! Invariants: a stretch begins and ends with a chunk; closed ones have at least their
//! size; `closed_bytes` and `closed_chunks` are sums over them; readers begin at `floor`.

use core::time::Duration;
use std::collections::VecDeque;

use super::{CHUNK, Log, Segment, records_from};
use crate::catalog::Retention;
use crate::id::Offset;
use crate::memory::Arena;
use crate::time::{Monotonic, Now, Wall};

/// One that is closed.
#[derive(Clone, Copy, Debug)]
struct Closed {
    /// Behind its last message.
    end: Offset,
    bytes: u64,
    chunks: usize,
    at: Wall,
    /// When its period is over, once somebody has looked at the clock.
    due: Option<Monotonic>,
}

/// Those of one log.
#[derive(Debug)]
pub(super) struct Stretches {
    size: u64,
    /// How long a closed one stays; those without it stay until all in them is settled.
    period: Option<Duration>,
    closed: VecDeque<Closed>,
    closed_bytes: u64,
    closed_chunks: usize,
    /// What lies before it has expired.
    floor: Offset,
    /// When the shard was told to look again.
    listed: Option<Monotonic>,
}

impl Stretches {
    /// Bytes that the open one has, of a log with so many.
    fn open_bytes(&self, all: u64) -> u64 {
        all - self.closed_bytes
    }

    fn is_full(&self, all: u64) -> bool {
        self.open_bytes(all) >= self.size
    }

    /// Bytes after which the next chunk is full, of a log with so many.
    pub(super) fn chunk_size(&self, all: u64) -> usize {
        let left = match self.is_full(all) {
            true => self.size,
            false => self.size - self.open_bytes(all),
        };
        usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
    }

    pub(super) fn clear(&mut self) {
        self.closed.clear();
        self.closed_bytes = 0;
        self.closed_chunks = 0;
    }

    /// Which closed one holds the message at `offset`, if one does.
    fn place_of(&self, offset: Offset) -> Option<usize> {
        let place = self.closed.partition_point(|it| it.end <= offset);
        (place < self.closed.len()).then_some(place)
    }

    /// Panics if an invariant is broken, of a log with chunks that end and weigh so much.
    pub(super) fn invariants(&self, chunks: impl Iterator<Item = (Offset, Offset, u64, usize)>) {
        let mut sums: Vec<(u64, usize)> = vec![(0, 0); self.closed.len()];
        for (first, last, bytes, count) in chunks {
            let place = self.place_of(first);
            assert_eq!(place, self.place_of(last), "a chunk lies in one stretch");
            if let Some(place) = place {
                sums[place].0 += bytes;
                sums[place].1 += count;
            }
        }
        let stated = self.closed.iter().map(|it| (it.bytes, it.chunks));
        assert!(
            stated.eq(sums.iter().copied()),
            "closed stretches are whole"
        );
        assert!(
            self.closed.iter().all(|it| it.bytes >= self.size),
            "no stretch is closed before it has its size"
        );
        let ends = self.closed.iter().map(|it| it.end);
        assert!(ends.is_sorted(), "stretches are in order");
        let bytes: u64 = self.closed.iter().map(|it| it.bytes).sum();
        let chunks: usize = self.closed.iter().map(|it| it.chunks).sum();
        assert_eq!(
            (bytes, chunks),
            (self.closed_bytes, self.closed_chunks),
            "closed stretches are counted"
        );
    }
}

/// What there is of stretches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StretchCounts {
    /// How many are closed.
    pub closed: u32,
    /// Whether one is open.
    pub open: u32,
    /// Bytes of the messages in all of them.
    pub bytes: u64,
    /// When the oldest of these was stored.
    pub oldest: Option<Wall>,
}

impl StretchCounts {
    /// With those of another log.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            closed: self.closed + other.closed,
            open: self.open + other.open,
            bytes: self.bytes + other.bytes,
            oldest: match (self.oldest, other.oldest) {
                (Some(one), Some(another)) => Some(one.min(another)),
                (one, another) => one.or(another),
            },
        }
    }
}

impl Log {
    /// Has the log keep what its destination's retention says. Before the first append.
    pub fn keep(&mut self, retention: Retention) {
        let Some(size) = retention.segment() else {
            self.retain = retention.bytes();
            return;
        };
        // Nothing goes for being settled alone.
        self.retain = u64::MAX;
        self.stretches = Some(Box::new(Stretches {
            size,
            period: retention.period(),
            closed: VecDeque::new(),
            closed_bytes: 0,
            closed_chunks: 0,
            floor: Offset(0),
            listed: None,
        }));
    }

    /// What lies before it has expired.
    #[must_use]
    pub fn floor(&self) -> Offset {
        self.stretches.as_ref().map_or(Offset(0), |it| it.floor)
    }

    /// Chunks in closed stretches that go with time alone.
    #[must_use]
    pub fn expiring_chunks(&self) -> usize {
        let stretches = self.stretches.as_ref();
        let stretches = stretches.filter(|it| it.period.is_some());
        // What lies in pages is not in the way of anything.
        stretches.map_or(0, |it| it.closed_chunks.min(self.chunks()))
    }

    /// What there is of stretches, if the log has any.
    #[must_use]
    pub fn stretch_counts(&self, arena: &Arena) -> StretchCounts {
        let Some(stretches) = &self.stretches else {
            return StretchCounts::default();
        };
        let oldest = self.segments.front();
        let oldest = oldest.and_then(|it| self.time_of(arena, it));
        StretchCounts {
            closed: u32::try_from(stretches.closed.len()).unwrap_or(u32::MAX),
            open: u32::from(stretches.open_bytes(self.bytes) > 0),
            bytes: self.bytes,
            oldest,
        }
    }

    /// When [`Log::expired`] was to be asked by what was said last, and when it is to be
    /// asked now that it is `now`, if ever: to be called whenever messages came or were
    /// shown.
    pub fn next_expiry(&mut self, now: Now) -> (Option<Monotonic>, Option<Monotonic>) {
        let Some(stretches) = &mut self.stretches else {
            return (None, None);
        };
        let Some(period) = stretches.period else {
            return (None, None);
        };
        let unheard = stretches.closed.iter_mut().rev();
        for closed in unheard.take_while(|it| it.due.is_none()) {
            let passed = Duration::from_nanos(now.wall.0.saturating_sub(closed.at.0));
            closed.due = Some(now.monotonic.after(period.saturating_sub(passed)));
        }
        let shown = self.shown;
        let first = stretches.closed.iter().find(|it| it.end > stretches.floor);
        let due = first.filter(|it| it.end <= shown).and_then(|it| it.due);
        (core::mem::replace(&mut stretches.listed, due), due)
    }

    /// Behind the last message whose period is over by `now`, if there is one that was not
    /// said before. What has still to be flushed does not expire.
    #[must_use]
    pub fn expired(&self, now: Monotonic) -> Option<Offset> {
        let stretches = self.stretches.as_ref()?;
        let over = stretches
            .closed
            .iter()
            .take_while(|it| it.end <= self.shown && it.due.is_some_and(|due| due <= now));
        let end = over.last()?.end;
        (end > stretches.floor).then_some(end)
    }

    /// What lies before `floor` is for nobody any more.
    pub(in crate::partition) fn raise_floor(&mut self, arena: &mut Arena, floor: Offset) {
        self.skip_to(arena, floor);
        if let Some(stretches) = &mut self.stretches {
            stretches.floor = stretches.floor.max(floor);
        }
    }

    /// Takes a claim off every message from `from` up to `to`: a subscription gives up what
    /// it never handed out.
    pub fn unclaim_between(&mut self, arena: &Arena, from: Offset, to: Offset) {
        for segment in &mut self.segments {
            let behind = records_from(arena, segment, to);
            segment.claims -= records_from(arena, segment, from) - behind;
        }
    }

    /// Gives back what has expired and nobody claims or reads any more.
    pub(in crate::partition) fn release_expired(&mut self, arena: &mut Arena) {
        let mut place = 0;
        while self
            .stretches
            .as_ref()
            .is_some_and(|it| place < it.closed.len())
        {
            if !self.release_stretch(arena, place) {
                place += 1;
            }
        }
    }

    /// A message comes, and what it lies in is not in the log yet: closes the open stretch
    /// if that has its size.
    pub(super) fn close_full_stretch(&mut self, arena: &mut Arena, time: Wall) {
        let (end, bytes, chunks) = (self.next, self.bytes, self.chunks);
        let Some(stretches) = self.stretches.as_mut().filter(|it| it.is_full(bytes)) else {
            return;
        };
        let closed = Closed {
            end,
            bytes: stretches.open_bytes(bytes),
            chunks: chunks - stretches.closed_chunks,
            at: time,
            due: None,
        };
        stretches.closed_bytes += closed.bytes;
        stretches.closed_chunks += closed.chunks;
        stretches.closed.push_back(closed);
        let place = stretches.closed.len() - 1;
        self.release_stretch(arena, place);
    }

    /// A chunk lost its last claim or pin: gives its stretch back if nobody needs it.
    pub(super) fn release_stretch_of(&mut self, arena: &mut Arena, index: usize) {
        let first = self.segments[index].first;
        let stretches = self.stretches.as_ref();
        if let Some(place) = stretches.and_then(|it| it.place_of(first)) {
            self.release_stretch(arena, place);
        }
    }

    /// Gives a closed stretch back, if it is settled or expired and the kernel reads
    /// nothing of it; whether it is gone.
    fn release_stretch(&mut self, arena: &mut Arena, place: usize) -> bool {
        let Some(stretches) = &mut self.stretches else {
            return false;
        };
        let closed = stretches.closed[place];
        if stretches.period.is_some() && closed.end > stretches.floor {
            return false;
        }
        let before = place.checked_sub(1).map(|it| stretches.closed[it].end);
        let start = before.unwrap_or(Offset(0));
        let from = self.segments.partition_point(|it| it.last < start);
        let to = self.segments.partition_point(|it| it.last < closed.end);
        // Most is settled in order: what is needed still lies at the end.
        let mut chunks = self.segments.range(from..to).rev();
        if chunks.any(|it| it.claims > 0 || it.pins > 0) {
            return false;
        }
        stretches.closed.remove(place);
        stretches.closed_bytes -= closed.bytes;
        stretches.closed_chunks -= closed.chunks;
        let released: Vec<Segment> = self.segments.drain(from..to).collect();
        for segment in released {
            self.give_pages_of(arena, &segment);
            self.chunks -= segment.chunks as usize;
            self.bytes -= segment.used as u64;
            arena.give_chain(segment.head);
        }
        true
    }
}
