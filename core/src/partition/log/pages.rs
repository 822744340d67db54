//! Segments of a log that lie in pages of a file, because memory is short.
//!
//! ```text
//!             begin_leaving               left
//!   here  ------------------->  leaving  ------>  away  -- begin_coming --> coming
//!     ^                            | stay                                      |
//!     |<---------------------------'                     came, or not_come     |
//!     '<------------------------------------------------------------------------'
//! ```
//!
//! What leaves is whole and dense: a sealed segment, each of whose offsets has a message.
//! So of one that is away it is known without its bytes which messages it has, and claims
//! on them are given and taken as ever. Only whoever wants the bytes finds none: the log
//! notes what was wanted, and says so to whoever can have it brought.
//!
//! What readers have to have is spared: from the first message that a part has not settled
//! on, and some segments beyond where it reads, nothing leaves. How many beyond is told by
//! who knows how many readers there are for the memory.
//!
//! A segment that leaves is pinned until it has left, so it neither moves nor goes. One that
//! nobody needs any more goes from where it is: its pages go back to the arena's list.
//!
//! Invariants: a segment has no chunk if and only if `away` names it; `away` is the sum of
//! their chunks; none of them is pinned or written to.

use core::cell::RefCell;
use core::ops::Range;
use std::collections::BTreeMap;

use super::{Cursor, Log, Run, Segment, header_at};
use crate::id::Offset;
use crate::memory::{Arena, CHUNK, ChunkId, Extent};
use crate::time::Wall;

/// As many segments are looked at in one go for some that may leave: of the newest, and from
/// where the last such look ended.
const LOOKED_AT: usize = 256;

/// As many segments come as are wanted, and as are beyond: half a MiB.
pub const AHEAD: usize = if cfg!(test) { 2 } else { 8 };

/// What lies in pages of one log.
#[derive(Debug)]
pub(super) struct Paged {
    /// By the first offset of each segment.
    away: BTreeMap<Offset, Away>,
    /// Chunks that they would take up.
    pub(super) chunks: usize,
    /// Where somebody wanted to read.
    wanted: RefCell<Vec<Offset>>,
    /// The round of looking for some that may leave that this log is in.
    round: u32,
    /// As many of its older segments are still to be looked at in that round.
    left: usize,
    /// It goes on before this one, and behind the first one with the last of the older ones.
    hand: Option<Offset>,
    /// See [`Log::read_ahead`].
    ahead: usize,
}

impl Default for Paged {
    fn default() -> Self {
        Self {
            away: BTreeMap::new(),
            chunks: 0,
            wanted: RefCell::default(),
            round: 0,
            left: 0,
            hand: None,
            ahead: AHEAD,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Away {
    at: Extent,
    sum: u32,
    /// When its first message was stored.
    time: Wall,
    is_coming: bool,
}

/// A segment as it lies in pages, or is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// The first offset.
    pub first: Offset,
    /// How many messages, one behind the other.
    pub count: u32,
    /// Bytes of their frames, padded.
    pub size: u32,
    /// The CRC-32C of these bytes.
    pub sum: u32,
    /// Where.
    pub at: Extent,
}

impl Paged {
    /// What is in no page any more.
    fn take(&mut self, segment: &Segment) -> Option<Extent> {
        let away = self.away.remove(&segment.first)?;
        self.chunks -= segment.chunks as usize;
        Some(away.at)
    }
}

impl Segment {
    /// Whether its bytes are in memory.
    #[inline]
    pub(super) fn is_here(&self) -> bool {
        self.head.is_some()
    }

    fn is_dense(&self) -> bool {
        self.records > 0 && self.last.0 - self.first.0 + 1 == u64::from(self.records)
    }

    /// How many of its messages, of which each offset has one, lie at `from` or behind it.
    pub(super) fn dense_from(&self, from: Offset) -> u32 {
        let before = from.0.saturating_sub(self.first.0);
        u32::try_from(before).map_or(0, |before| self.records.saturating_sub(before))
    }
}

impl Log {
    /// What is remembered of a segment in pages at least, in bytes.
    pub const PER_PAGE: usize = size_of::<Segment>() + size_of::<(Offset, Away)>();

    /// Has so many segments be brought beyond the one that is read, and stay until they are.
    pub fn read_ahead(&mut self, segments: usize) {
        self.paged.get_or_insert_default().ahead = segments;
    }

    /// Whether it was ever looked at for segments that may leave.
    #[must_use]
    pub fn has_paged(&self) -> bool {
        self.paged.is_some()
    }

    fn ahead(&self) -> usize {
        self.paged.as_ref().map_or(AHEAD, |paged| paged.ahead)
    }

    /// Where a reader stands that has settled all before `low` and has read all before
    /// `fresh`: nothing of that leaves.
    #[must_use]
    pub fn spared(&self, low: Offset, fresh: Offset) -> Range<usize> {
        let all = self.segments.len();
        let from = self.index_from(low).unwrap_or(all);
        let to = self.index_from(fresh).unwrap_or(all);
        let ahead = self.ahead();
        // Whoever has nothing yet, where others need the memory, can wait for all of it.
        let beyond = if low == fresh && ahead == 0 {
            0
        } else {
            ahead + 1
        };
        from..to.saturating_add(beyond).min(all)
    }

    /// Segments that may leave, `most` of them, each by its first offset: the newest ones
    /// first, since they are wanted last. One call looks at some of a long log only, and the
    /// next goes on there; in one round at each of the older ones once.
    pub fn may_leave(&mut self, spared: &[Range<usize>], most: usize, round: u32) -> Vec<Offset> {
        // The last one may be written to.
        let end = self.segments.len().saturating_sub(1);
        let older = end.saturating_sub(LOOKED_AT);
        let paged = self.paged.get_or_insert_default();
        if core::mem::replace(&mut paged.round, round) != round {
            paged.left = older;
        }
        let (left, hand) = (paged.left.min(older), paged.hand);
        let hand = hand.and_then(|hand| self.index_from(hand));
        let from = hand.filter(|hand| *hand <= older).unwrap_or(older);
        let may = |index: usize| {
            let it = &self.segments[index];
            let may = it.is_here() && it.sealed && it.pins == 0 && it.is_dense();
            let is_spared = || spared.iter().any(|range| range.contains(&index));
            (may && it.last < self.shown && !is_spared()).then_some(it.first)
        };
        let mut leaving: Vec<Offset> = (older..end).rev().filter_map(may).take(most).collect();
        let mut seen = 0;
        while leaving.len() < most && seen < left.min(LOOKED_AT) {
            seen += 1;
            leaving.extend(may((from + older - seen) % older));
        }
        let hand = (seen > 0).then(|| self.segments[(from + older - seen) % older].first);
        let paged = self.paged.get_or_insert_default();
        paged.left = left - seen;
        paged.hand = hand.or(paged.hand);
        leaving
    }

    /// Whether [`Log::may_leave`] has more to look at in this round.
    #[must_use]
    pub fn has_more_to_look_at(&self) -> bool {
        self.paged.as_ref().is_some_and(|paged| paged.left > 0)
    }

    /// The segment that begins with `first`.
    fn segment_at(&mut self, first: Offset) -> Option<(usize, &mut Segment)> {
        let index = self.index_of(first)?;
        let segment = self.segments.get_mut(index)?;
        (segment.first == first).then_some((index, segment))
    }

    /// The segment that begins there is to leave: how many bytes it has. It stays as it is
    /// until [`Log::left`] or [`Log::unpin`].
    pub fn begin_leaving(&mut self, first: Offset) -> Option<usize> {
        let (_, segment) = self.segment_at(first)?;
        segment.pins += 1;
        Some(segment.used)
    }

    /// The bytes of the segment that begins there.
    #[must_use]
    pub fn bytes_of(&self, arena: &Arena, first: Offset) -> Vec<u8> {
        let index = self.index_of(first);
        let Some(segment) = index.map(|index| &self.segments[index]) else {
            return Vec::new();
        };
        let mut bytes = Vec::with_capacity(segment.used);
        let mut chunk = segment.head;
        while bytes.len() < segment.used && chunk.is_some() {
            let here = (segment.used - bytes.len()).min(CHUNK);
            bytes.extend_from_slice(&arena.bytes(chunk)[..here]);
            chunk = arena.next(chunk);
        }
        bytes
    }

    /// The segment that begins there lies in these pages. Its chunks go back, or the pages
    /// if it is not needed any more or somebody reads it meanwhile.
    pub fn left(&mut self, arena: &mut Arena, first: Offset, at: Extent, sum: u32) {
        self.unpin(arena, first);
        let Some((_, segment)) = self.segment_at(first) else {
            return arena.give_pages(at);
        };
        if segment.pins > 0 || !segment.is_here() {
            return arena.give_pages(at);
        }
        let head = core::mem::replace(&mut segment.head, ChunkId::NONE);
        let chunks = segment.chunks as usize;
        let time = header_at(arena.bytes(head), 0).map_or(0, |it| it.append_time.get());
        arena.give_chain(head);
        let paged = self.paged.get_or_insert_default();
        paged.chunks += chunks;
        paged.away.insert(
            first,
            Away {
                at,
                sum,
                time: Wall(time),
                is_coming: false,
            },
        );
    }

    /// Where somebody wanted to read and found nothing in memory, or soon will.
    #[inline]
    #[must_use]
    pub fn has_wanted(&self) -> bool {
        let paged = self.paged.as_ref();
        paged.is_some_and(|paged| !paged.wanted.borrow().is_empty())
    }

    /// What was wanted since this was asked last.
    pub fn take_wanted(&mut self) -> Vec<Offset> {
        let paged = self.paged.as_mut();
        paged.map_or_else(Vec::new, |paged| paged.wanted.take())
    }

    /// Whether the next message from there on is not in memory.
    #[must_use]
    pub fn is_away(&self, from: Offset) -> bool {
        let segment = self.index_from(from).map(|index| &self.segments[index]);
        segment.is_some_and(|segment| !segment.is_here())
    }

    /// Notes that the segment at this place is wanted, if it is away.
    #[cold]
    pub(super) fn want(&self, index: usize) {
        if let (Some(paged), Some(segment)) = (&self.paged, self.segments.get(index))
            && !segment.is_here()
        {
            let mut wanted = paged.wanted.borrow_mut();
            if !wanted.contains(&segment.first) {
                wanted.push(segment.first);
            }
        }
    }

    /// Notes that all between these offsets is wanted; whether anything of it is away.
    pub fn want_between(&self, from: Offset, to: Offset) -> bool {
        let (Some(paged), Some(begin)) = (&self.paged, self.index_from(from)) else {
            return false;
        };
        let first = self.segments[begin].first;
        let away = paged.away.range(first..to.max(first));
        let mut wanted = paged.wanted.borrow_mut();
        wanted.extend(away.map(|(first, _)| *first));
        !wanted.is_empty()
    }

    /// Of a log with segments that are away: the one that is read is at this place, and
    /// those behind it will be wanted.
    #[inline]
    pub(super) fn look_ahead(&self, index: usize) {
        if let Some(paged) = self.paged.as_ref().filter(|paged| paged.chunks > 0) {
            self.want(index + paged.ahead / 2);
        }
    }

    /// The first segment that is away and is not coming yet, of those from `from` on and up
    /// to `to`: where it begins and how many chunks it takes.
    #[must_use]
    pub fn next_away(&self, from: Offset, to: Offset) -> Option<(Offset, usize)> {
        let away = &self.paged.as_ref()?.away;
        let begin = self.segments[self.index_from(from)?].first;
        let (first, _) = away.range(begin..to).find(|(_, it)| !it.is_coming)?;
        let segment = &self.segments[self.index_of(*first)?];
        Some((*first, segment.chunks as usize))
    }

    /// Behind the segments that come with the one that holds `wanted`.
    #[must_use]
    pub fn ahead_of(&self, wanted: Offset) -> Offset {
        let count = self.ahead().max(1);
        let last = (self.index_from(wanted)).and_then(|it| self.segments.get(it + count));
        last.map_or(self.next, |segment| segment.first)
    }

    /// The segment that begins there is to come; what it is as it lies in its pages.
    pub fn begin_coming(&mut self, first: Offset) -> Option<Image> {
        let index = self.index_of(first)?;
        let away = self.paged.as_mut()?.away.get_mut(&first)?;
        away.is_coming = true;
        Some(image(&self.segments[index], away))
    }

    /// The bytes of the segment that begins there are in this chain of chunks, which it has
    /// now. False if it is not needed any more: the chain is still the caller's.
    pub fn came(&mut self, arena: &mut Arena, first: Offset, head: ChunkId) -> bool {
        let Some(index) = self.index_of(first) else {
            return false;
        };
        let segment = &mut self.segments[index];
        let paged = self.paged.as_mut();
        let Some(at) = paged.and_then(|paged| paged.take(segment)) else {
            return false;
        };
        segment.head = head;
        arena.give_pages(at);
        true
    }

    /// The segment that begins there could not be read.
    pub fn not_come(&mut self, first: Offset) {
        let away = self.paged.as_mut().map(|paged| &mut paged.away);
        if let Some(away) = away.and_then(|away| away.get_mut(&first)) {
            away.is_coming = false;
        }
    }

    /// What of the log lies in pages at this place, if that does.
    pub(super) fn image_at(&self, segment: &Segment) -> Option<Image> {
        let away = self.paged.as_ref()?.away.get(&segment.first)?;
        Some(image(segment, away))
    }

    /// A segment without a chunk is not needed any more.
    pub(super) fn give_pages_of(&mut self, arena: &mut Arena, segment: &Segment) {
        if !segment.is_here()
            && let Some(at) = self.paged.as_mut().and_then(|it| it.take(segment))
        {
            arena.give_pages(at);
        }
    }

    /// When the first message of a segment was stored.
    pub(super) fn time_of(&self, arena: &Arena, segment: &Segment) -> Option<Wall> {
        if segment.is_here() {
            let header = header_at(arena.bytes(segment.head), 0);
            return header.map(|header| Wall(header.append_time.get()));
        }
        let away = self.paged.as_ref()?.away.get(&segment.first)?;
        Some(away.time)
    }

    /// The next messages from the cursor on and before `end`, which are not read: of what is
    /// away only the offsets are known. The cursor moves behind them.
    pub fn skim(&mut self, arena: &Arena, cursor: &mut Cursor, end: Offset) -> Option<Run> {
        let end = end.min(self.reading_ends());
        if cursor.offset >= end {
            return None;
        }
        let segment = &self.segments[self.index_from(cursor.offset)?];
        if segment.is_here() {
            let mut next = *cursor;
            self.look(arena, &mut next).filter(|_| next.offset < end)?;
            let limit = super::RunLimit {
                messages: end.0 - next.offset.0,
                bytes: u64::MAX,
            };
            return self.read(arena, cursor, limit);
        }
        let first = segment.first.max(cursor.offset);
        let behind = Offset(end.0.min(segment.last.0 + 1));
        if first >= behind {
            return None;
        }
        *cursor = Cursor::at(behind);
        Some(Run {
            first,
            count: u32::try_from(behind.0 - first.0).ok()?,
            bytes: 0,
            chunk: ChunkId::NONE,
            start: 0,
        })
    }

    /// Panics if an invariant about pages is broken.
    pub(super) fn page_invariants(&self) {
        let gone = self.segments.iter().filter(|it| !it.is_here());
        let away = self.paged.as_ref().map(|it| (&it.away, it.chunks));
        let (mut count, mut chunks) = (0, 0);
        for segment in gone {
            assert!(segment.is_dense() && segment.sealed && segment.pins == 0);
            let is_named = away.is_some_and(|(away, _)| away.contains_key(&segment.first));
            assert!(is_named, "it is known where a segment lies");
            count += 1;
            chunks += segment.chunks as usize;
        }
        let named = away.map_or((0, 0), |(away, chunks)| (away.len(), chunks));
        assert_eq!((count, chunks), named, "what is away is counted");
    }
}

fn image(segment: &Segment, away: &Away) -> Image {
    Image {
        first: segment.first,
        count: segment.records,
        size: u32::try_from(segment.used).unwrap_or(u32::MAX),
        sum: away.sum,
        at: away.at,
    }
}
