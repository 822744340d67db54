//! A partition's messages in memory, in the order of their offsets.
//!
//! ```text
//! segments:  | 0..99 | 100..187 | 188..260 (open) |
//!               |         |           `- the chunk that is written to
//!               |         `- sealed: whole frames, nothing after them
//!               `- claims: how often its messages still have to be settled
//! ```
//!
//! A segment is one chunk of the arena, or, for one frame that is larger than a
//! chunk, a chain of chunks with that frame alone. A message is claimed once by
//! each subscription of the partition; when a segment has no claim left its
//! memory goes back, unless retention keeps it: by size, which never keeps more than
//! one chunk beyond the bytes that were asked for, or in whole [`stretches`]. A sealed segment in which little
//! is still claimed is thinned out: what is claimed slides together and joins
//! its neighbour, so that a few slow messages do not hold the memory of all that
//! came with them.
//!
//! What a flush has still to cover is hidden: it is stored and has its offset, but
//! nobody reads it, nor what came behind it, until [`Log::show`].
//!
//! Invariants: segments are in the order of their offsets and do not overlap;
//! offsets within one rise; only the last one may be open; a segment's claims
//! are the sum over all subscriptions of its unsettled messages; `chunks` and
//! `bytes` are sums over the segments; what is hidden begins at `shown`, and `hidden`
//! is in the order of batches and of offsets.

pub mod pages;
mod stretches;

use core::ops::ControlFlow;
use std::collections::VecDeque;

use zerocopy::FromBytes;

use pages::{Image, Paged};
pub use stretches::StretchCounts;
use stretches::Stretches;

use crate::frame::{MessageHeader, padded};
use crate::id::{BatchNumber, DestinationNumber, Offset, PartitionIndex};
use crate::memory::{Arena, CHUNK, ChunkId};
use crate::time::Wall;

/// A segment is thinned out when one part in this many of its claims is left: what
/// is settled in order costs at most an eighth of a copy.
const THIN_SHARE: u32 = 8;
/// The same far behind the readers, where nothing is settled in order any more: a
/// small message shall not hold a chunk that it shared with a few large ones.
const THIN_SHARE_OVERTAKEN: u32 = 2;
/// How many segments far behind is: the prefetch of sixteen consumers; few in the
/// tests, whose models are small.
const OVERTAKEN: usize = if cfg!(test) { 4 } else { 256 };

/// What looking at one thing costs.
const CACHE_LINE: usize = 64;

/// A stretch of the log.
#[derive(Debug)]
struct Segment {
    /// The first chunk of the chain; none if it lies in [`pages`].
    head: ChunkId,
    /// Chunks of the chain.
    chunks: u32,
    /// Names this state of the segment; a reader's place in another state is void.
    serial: u64,
    first: Offset,
    /// The last offset; meaningless while there is no record.
    last: Offset,
    /// Bytes written.
    used: usize,
    /// With so many nothing more is written to it.
    full_at: usize,
    records: u32,
    claims: u32,
    /// Claims it was given, or had left when it was thinned out last.
    granted: u32,
    /// Pieces of it that the kernel may still read.
    pins: u32,
    sealed: bool,
}

impl Segment {
    fn holds(&self, offset: Offset) -> bool {
        self.records > 0 && self.first <= offset && offset <= self.last
    }

    fn thin(&self, overtaken: bool) -> bool {
        let share = if overtaken {
            THIN_SHARE_OVERTAKEN
        } else {
            THIN_SHARE
        };
        let left = u64::from(self.claims) * u64::from(share);
        self.sealed
            && self.chunks == 1
            && self.claims > 0
            && left <= u64::from(self.granted)
            && self.is_here()
    }
}

/// A reader's place: the next offset, and where a message at or before it was
/// last seen. The offset may be moved forward, over what is not wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// The next offset to read.
    pub offset: Offset,
    serial: u64,
    byte: usize,
}

impl Cursor {
    /// A cursor before `offset`.
    #[must_use]
    pub fn at(offset: Offset) -> Self {
        Self {
            offset,
            serial: 0,
            byte: 0,
        }
    }
}

/// Consecutive frames of one chunk, or one frame of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first offset.
    pub first: Offset,
    /// How many messages.
    pub count: u32,
    /// Frame bytes, padded.
    pub bytes: usize,
    /// Where the first byte lies.
    pub chunk: ChunkId,
    /// Where in the chunk.
    pub start: usize,
}

/// What is enough of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunLimit {
    /// Messages, at least 1.
    pub messages: u64,
    /// Bytes; the run ends with the frame that reaches them.
    pub bytes: u64,
}

/// A message as it lies in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    arena: &'a Arena,
    /// Its first byte; it goes on in those chained behind the chunk.
    place: (ChunkId, usize),
    size: usize,
}

impl Frame<'_> {
    /// Its bytes, padded.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Puts them behind what is there.
    pub fn copy_to(&self, out: &mut Vec<u8>) {
        let (mut chunk, mut start) = self.place;
        let mut left = self.size;
        while left > 0 {
            let here = left.min(CHUNK - start);
            out.extend_from_slice(&self.arena.bytes(chunk)[start..start + here]);
            left -= here;
            if left > 0 {
                (chunk, start) = (self.arena.next(chunk), 0);
            }
        }
    }
}

/// What a walk over a log meets.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    /// A message in memory.
    Message(Offset, Frame<'a>),
    /// Messages that lie in pages, some of which may be before or behind what was asked for.
    Image(Image),
}

/// No chunk was free for an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaFull;

/// Who the log belongs to: what the address word of its frames says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The destination.
    pub destination: DestinationNumber,
    /// The partition of it.
    pub partition: PartitionIndex,
}

/// The messages of one partition.
#[derive(Debug)]
pub struct Log {
    address: Address,
    segments: VecDeque<Segment>,
    next: Offset,
    next_serial: u64,
    /// Chunks in all segments.
    chunks: usize,
    /// Bytes written in all segments.
    bytes: u64,
    /// Bytes of what is settled that are kept.
    retain: u64,
    /// Where whole stretches are kept instead, those.
    stretches: Option<Box<Stretches>>,
    /// What of it ever lay in pages.
    paged: Option<Box<Paged>>,
    /// Segments may have become thin since the last sweep for them began.
    thinning: bool,
    /// Where the sweep goes on that is under way; the start if none is.
    sweep: Offset,
    /// It held a message longer than a chunk.
    has_large: bool,
    /// Readers come no further than here; [`ALL`] if nothing is hidden.
    shown: Offset,
    /// Which batches have to be durable, and what of each is the first.
    hidden: VecDeque<(BatchNumber, Offset)>,
    /// Offsets below this one may be given out: that is durable.
    reserved: Offset,
    /// Those below this one may be, too, once the batch is durable; nothing more if they
    /// are none.
    reserving: (BatchNumber, Offset),
    /// What was settled since it was taken last, if it is to be written down.
    settled: Option<Vec<SettledRun>>,
}

/// Messages one behind the other that are settled.
pub use crate::journal::entry::Run as SettledRun;

/// No message is behind it.
const ALL: Offset = Offset(u64::MAX);

impl Log {
    /// An empty log that keeps `retain` bytes of what is settled.
    #[must_use]
    pub fn new(address: Address, retain: u64) -> Self {
        Self {
            address,
            segments: VecDeque::new(),
            next: Offset(0),
            next_serial: 1,
            chunks: 0,
            bytes: 0,
            retain,
            stretches: None,
            paged: None,
            thinning: false,
            sweep: Offset(0),
            has_large: false,
            shown: ALL,
            hidden: VecDeque::new(),
            reserved: Offset(0),
            reserving: (BatchNumber(0), Offset(0)),
            settled: None,
        }
    }

    /// Stores one frame, at most a chunk long, for `claims` subscriptions, and
    /// returns its offset. What nobody claims and nothing retains gets an offset
    /// and is forgotten.
    ///
    /// # Errors
    ///
    /// If the arena has no chunk left; the offset is then not used up.
    #[inline]
    pub fn append(
        &mut self,
        arena: &mut Arena,
        frame: &[u8],
        claims: u32,
        time: Wall,
    ) -> Result<Offset, ArenaFull> {
        let offset = self.next;
        if claims == 0 && self.retain == 0 {
            self.next = Offset(offset.0 + 1);
            return Ok(offset);
        }
        if self.room_left() < frame.len() {
            self.open(arena, time)?;
        }
        self.write(arena, frame, 1, claims, time);
        Ok(offset)
    }

    /// Stores `count` whole frames, which take up no more than [`Log::room`], and
    /// returns the offset of the first; the others have those behind it.
    ///
    /// # Errors
    ///
    /// As for [`Log::append`]; no offset is then used up.
    #[inline]
    pub fn append_run(
        &mut self,
        arena: &mut Arena,
        frames: &[u8],
        count: u32,
        claims: u32,
        time: Wall,
    ) -> Result<Offset, ArenaFull> {
        let offset = self.next;
        if claims == 0 && self.retain == 0 {
            self.next = Offset(offset.0 + u64::from(count));
            return Ok(offset);
        }
        if self.room_left() < frames.len() {
            self.open(arena, time)?;
        }
        self.write(arena, frames, count, claims, time);
        Ok(offset)
    }

    /// Writes whole frames to the last segment, which has room for them.
    #[inline]
    fn write(&mut self, arena: &mut Arena, frames: &[u8], count: u32, claims: u32, time: Wall) {
        let segment = self.segments.back_mut().expect("a segment is open");
        let start = segment.used;
        let mut target = &mut arena.bytes_mut(segment.head)[start..start + frames.len()];
        let (first, mut next, mut source) = (self.next, self.next, frames);
        // Frame by frame, while its header is at hand: a copy of all would have to be
        // walked through once more.
        for _ in 0..count {
            planted_cost(next);
            let size = frame_size(source);
            let (copy, rest) = target.split_at_mut(size);
            let (frame, others) = source.split_at(size);
            copy.copy_from_slice(frame);
            stamp(copy, self.address, next, time);
            (target, source) = (rest, others);
            next = Offset(next.0 + 1);
        }
        if segment.records == 0 {
            segment.first = first;
        }
        segment.last = Offset(next.0 - 1);
        segment.used += frames.len();
        self.bytes += frames.len() as u64;
        segment.records += count;
        segment.claims += count * claims;
        segment.granted += count * claims;
        self.next = next;
    }

    /// Bytes of frames that the next run may have.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        match self.segments.back() {
            Some(segment) if !segment.sealed && segment.used < segment.full_at => {
                segment.full_at - segment.used
            }
            _ => self.chunk_size(),
        }
    }

    /// Bytes that are left in the segment that is written to, 0 if none is.
    #[inline]
    fn room_left(&self) -> usize {
        match self.segments.back() {
            Some(segment) if !segment.sealed && segment.used < segment.full_at => {
                CHUNK - segment.used
            }
            _ => 0,
        }
    }

    /// Stores one frame of `length` bytes, padded, that lies in a chain of chunks.
    /// The chain becomes part of the log, or goes back to the arena if nobody
    /// claims it.
    pub fn adopt(
        &mut self,
        arena: &mut Arena,
        head: ChunkId,
        length: usize,
        claims: u32,
        time: Wall,
    ) -> Offset {
        let offset = self.next;
        if claims == 0 && self.retain == 0 {
            self.next = Offset(offset.0 + 1);
            arena.give_chain(head);
            return offset;
        }
        self.seal(arena);
        self.close_full_stretch(arena, time);
        self.next = Offset(offset.0 + 1);
        stamp(arena.bytes_mut(head), self.address, offset, time);
        let chunks = length.div_ceil(CHUNK);
        self.has_large |= chunks > 1;
        self.chunks += chunks;
        self.bytes += length as u64;
        let serial = self.serial();
        self.segments.push_back(Segment {
            head,
            chunks: u32::try_from(chunks).expect("a frame is shorter than 4 GiB"),
            serial,
            first: offset,
            last: offset,
            used: length,
            full_at: length,
            records: 1,
            claims,
            granted: claims,
            pins: 0,
            sealed: true,
        });
        if claims == 0 {
            self.look_after(arena, self.segments.len() - 1);
        }
        offset
    }

    /// Hides what was just stored, from `first` on, until `batch` is durable. Whether
    /// it is the first of that batch that is hidden here.
    pub fn hide(&mut self, first: Offset, batch: BatchNumber) -> bool {
        if self.hidden.is_empty() {
            self.shown = first;
        }
        // Behind what waits for a later one it is hidden anyway.
        let is_first = self.hidden.back().is_none_or(|(last, _)| *last < batch);
        if is_first {
            self.hidden.push_back((batch, first));
        }
        is_first
    }

    /// All batches up to `durable` are.
    pub fn show(&mut self, durable: BatchNumber) {
        while let Some((batch, _)) = self.hidden.front()
            && *batch <= durable
        {
            self.hidden.pop_front();
        }
        // What came behind it and needs no flush is shown with it.
        self.shown = self.hidden.front().map_or(ALL, |(_, first)| *first);
    }

    /// Where the last `size` bytes stand that were stored: whole messages of one run. `None`
    /// if they are gone: nobody claimed them, and they were more than is retained.
    pub fn tail(&self, size: usize) -> Option<(ChunkId, usize)> {
        let segment = self.segments.back();
        let segment = segment.filter(|it| it.last.0 + 1 == self.next.0)?;
        Some((segment.head, segment.used - size))
    }

    /// The offsets below this one may be given out.
    #[inline]
    pub fn reserved(&self) -> Offset {
        self.reserved
    }

    /// The offsets below this one may be given out, now that all batches up to `durable`
    /// are durable.
    pub fn reserved_by(&self, durable: BatchNumber) -> Offset {
        let (batch, until) = self.reserving;
        if batch <= durable {
            self.reserved.max(until)
        } else {
            self.reserved
        }
    }

    /// The offsets below this one may be given out: that is durable.
    pub fn reserve(&mut self, until: Offset) {
        self.reserved = until;
    }

    /// The offsets below this one may be given out once `batch` is durable.
    pub fn reserve_with(&mut self, batch: BatchNumber, until: Offset) {
        self.reserving = (batch, until);
    }

    /// The offsets below this one may be given out, or may be soon.
    pub fn reserved_at_most(&self) -> Offset {
        self.reserved.max(self.reserving.1)
    }

    /// Shows what is kept from `from` on and before `end`, what is hidden too, as long as
    /// `each` goes on. Of what lies in pages it shows a segment as a whole.
    pub fn each_from(
        &self,
        arena: &Arena,
        from: Offset,
        end: Offset,
        mut each: impl FnMut(Kept<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let first = self.index_from(from).unwrap_or(self.segments.len());
        for segment in self.segments.range(first..) {
            if !segment.is_here()
                && let Some(image) = self.image_at(segment)
            {
                if image.first >= end {
                    return ControlFlow::Continue(());
                }
                each(Kept::Image(image))?;
                continue;
            }
            for (start, header) in records(arena, segment, 0) {
                let offset = Offset(header.offset.get());
                if offset >= end {
                    return ControlFlow::Continue(());
                }
                if offset < from {
                    continue;
                }
                let size = padded(header.length.get() as usize);
                let frame = Frame {
                    arena,
                    place: (segment.head, start),
                    size,
                };
                each(Kept::Message(offset, frame))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// What is being reserved, and with which batch, if it is not durable yet.
    pub fn reserving(&mut self, durable: BatchNumber) -> Option<(BatchNumber, Offset)> {
        let (batch, until) = self.reserving;
        self.reserved = self.reserved_by(durable);
        (batch > durable).then_some((batch, until))
    }

    /// Has what is settled from here on noted, for [`Log::take_settled`].
    pub fn note_settled(&mut self) {
        self.settled.get_or_insert_default();
    }

    /// What was settled since this was asked last.
    pub fn settled(&mut self) -> Option<&mut Vec<SettledRun>> {
        self.settled.as_mut().filter(|settled| !settled.is_empty())
    }

    /// The next message gets this offset, or a later one.
    pub fn skip_to(&mut self, arena: &mut Arena, offset: Offset) {
        if offset > self.next {
            // What is behind a hole is in another segment: the run of one has none.
            self.seal(arena);
            self.next = offset;
        }
    }

    /// An earlier run may have given out all offsets below this one.
    pub fn go_on_at(&mut self, arena: &mut Arena, offset: Offset) {
        self.skip_to(arena, offset);
        self.reserved = self.next;
    }

    /// How far readers come: behind the last message that is not hidden.
    #[inline]
    #[must_use]
    pub fn reading_ends(&self) -> Offset {
        self.next.min(self.shown)
    }

    /// Takes `count` claims off messages from `first` on: one subscription has
    /// settled them. They all lie in the log, without a hole between them.
    #[inline]
    pub fn settle(&mut self, arena: &mut Arena, first: Offset, count: u64) {
        if let Some(settled) = &mut self.settled {
            settled.push(SettledRun::new(first, count));
        }
        let mut at = first.0;
        let end = first.0 + count;
        while at < end {
            let Some(index) = self.index_of(Offset(at)) else {
                return;
            };
            let segment = &mut self.segments[index];
            // In a thinned segment the offsets have gaps, but the caller's run has
            // none: every offset of it was claimed, so every one has a record.
            let here = end.min(segment.last.0 + 1) - at;
            segment.claims -= u32::try_from(here).expect("a segment has fewer than 2^32 records");
            at += here;
            self.look_after(arena, index);
        }
    }

    /// Adds a claim to every message from `from` on: a subscription starts there.
    pub fn claim(&mut self, arena: &Arena, from: Offset) {
        for segment in &mut self.segments {
            let claims = records_from(arena, segment, from);
            segment.claims += claims;
            segment.granted += claims;
        }
    }

    /// Takes a claim off every message from `from` on: a subscription that has
    /// handed out nothing from there ends. Unlike [`Log::settle`] it minds the
    /// holes that thinning and settled segments leave before a slow reader.
    pub fn unclaim(&mut self, arena: &mut Arena, from: Offset) {
        for segment in &mut self.segments {
            segment.claims -= records_from(arena, segment, from);
        }
        // From the back: what is released moves only what was looked at already.
        for index in (0..self.segments.len()).rev() {
            if index < self.segments.len() {
                self.look_after(arena, index);
            }
        }
    }

    /// A run of at least one message from the cursor on, which moves behind it.
    /// `None` at the end of the log.
    #[inline]
    pub fn read(&mut self, arena: &Arena, cursor: &mut Cursor, limit: RunLimit) -> Option<Run> {
        self.read_while(arena, cursor, limit, |_| true)
    }

    /// As [`Log::read`], but only as far as `wanted` says; it is asked once for each
    /// message, in their order, until it says no. `None` if it wants not even the
    /// first.
    pub fn read_while(
        &mut self,
        arena: &Arena,
        cursor: &mut Cursor,
        limit: RunLimit,
        mut wanted: impl FnMut(&MessageHeader) -> bool,
    ) -> Option<Run> {
        let end = self.reading_ends();
        if cursor.offset >= end {
            return None;
        }
        let index = self.index_from(cursor.offset)?;
        let segment = &self.segments[index];
        if !segment.is_here() {
            self.want(index);
            return None;
        }
        self.look_ahead(index);
        let seen = if segment.serial == cursor.serial {
            cursor.byte
        } else {
            0
        };
        let (mut byte, _) = records(arena, segment, seen)
            .find(|(_, header)| header.offset.get() >= cursor.offset.0)?;
        let (start, mut count, mut bytes) = (byte, 0, 0);
        let bytes_in_head = arena.bytes(segment.head);
        let first = Offset(header_at(bytes_in_head, byte)?.offset.get());
        let mut offset = first;
        let most = limit.messages.max(1).min(end.0.saturating_sub(first.0));
        while byte < segment.used && u64::from(count) < most {
            let Some(header) = header_at(bytes_in_head, byte) else {
                break;
            };
            // A hole in a thinned segment ends the run: a run's offsets are dense.
            if header.offset.get() != offset.0 || !wanted(header) {
                break;
            }
            let size = padded(header.length.get() as usize);
            bytes += size;
            byte += size;
            count += 1;
            offset = Offset(offset.0 + 1);
            if bytes as u64 >= limit.bytes {
                break;
            }
        }
        if count == 0 {
            return None;
        }
        *cursor = Cursor {
            offset,
            serial: segment.serial,
            byte,
        };
        Some(Run {
            first,
            count,
            bytes,
            chunk: segment.head,
            start,
        })
    }

    /// The message at the cursor or, over a gap, behind it, to which the cursor moves.
    /// `None` at the end of the log.
    pub fn look<'a>(&'a self, arena: &'a Arena, cursor: &mut Cursor) -> Option<&'a MessageHeader> {
        let end = self.reading_ends();
        if cursor.offset >= end {
            return None;
        }
        let index = self.index_from(cursor.offset)?;
        let segment = &self.segments[index];
        if !segment.is_here() {
            self.want(index);
            return None;
        }
        let seen = if segment.serial == cursor.serial {
            cursor.byte
        } else {
            0
        };
        let (byte, header) = records(arena, segment, seen)
            .find(|(_, header)| header.offset.get() >= cursor.offset.0)
            .filter(|(_, header)| header.offset.get() < end.0)?;
        *cursor = Cursor {
            offset: Offset(header.offset.get()),
            serial: segment.serial,
            byte,
        };
        Some(header)
    }

    /// Whether it ever held a message longer than a chunk.
    #[inline]
    pub fn has_large(&self) -> bool {
        self.has_large
    }

    /// The kernel may read a piece of the segment that holds `offset` until
    /// [`Log::unpin`]: it neither moves nor goes.
    pub fn pin(&mut self, offset: Offset) {
        if let Some(index) = self.index_of(offset) {
            self.segments[index].pins += 1;
        }
    }

    /// Takes a pin back.
    pub fn unpin(&mut self, arena: &mut Arena, offset: Offset) {
        if let Some(index) = self.index_of(offset) {
            self.segments[index].pins -= 1;
            self.look_after(arena, index);
        }
    }

    /// Whether some segment may be worth [`Log::thin_out`].
    #[must_use]
    pub fn wants_thinning(&self) -> bool {
        self.thinning || self.sweep > Offset(0)
    }

    /// Thins out segments that every reader has passed (`passed` is where the
    /// slowest one stands); `claimed` says whether anyone still needs an offset.
    /// Does a bounded part of the work and returns whether there is more; the next
    /// call goes on where this one ended.
    pub fn thin_out(
        &mut self,
        arena: &mut Arena,
        passed: Offset,
        claimed: impl Fn(Offset) -> bool,
    ) -> bool {
        /// Bytes of cache that one call may touch: what it looks at and what it moves.
        const WORK_MAX: usize = if cfg!(test) { CHUNK / 8 } else { 2 * CHUNK };
        if self.sweep == Offset(0) {
            // What becomes thin from here on is for the next sweep.
            self.thinning = false;
        }
        let passed_segments = self
            .segments
            .partition_point(|segment| segment.records > 0 && segment.last < passed);
        let overtaken = passed_segments
            .checked_sub(OVERTAKEN)
            .map_or(Offset(0), |index| self.segments[index].first);
        let mut index = match self.retain {
            0 => self.index_from(self.sweep).unwrap_or(self.segments.len()),
            _ => self.segments.len(),
        };
        let mut work = 0;
        while let Some(segment) = self.segments.get(index)
            && segment.last < passed
        {
            if work >= WORK_MAX {
                self.sweep = segment.first;
                return true;
            }
            work += CACHE_LINE;
            if segment.thin(segment.last < overtaken) && segment.pins == 0 {
                work += self.slide_together(arena, index, &claimed);
                if self.join_neighbour(arena, index) {
                    index -= 1;
                }
                // What was thinned out earlier behind it may fit now.
                while self
                    .segments
                    .get(index + 1)
                    .is_some_and(|after| after.last < passed)
                    && self.join_neighbour(arena, index + 1)
                {}
            }
            index += 1;
        }
        self.sweep = Offset(0);
        self.thinning
    }

    /// The offset that the next message gets.
    #[inline]
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The oldest offset that is still kept; [`Log::next`] if none is.
    #[must_use]
    pub fn first(&self) -> Offset {
        let floor = self.floor();
        self.segments
            .iter()
            .find(|segment| segment.records > 0 && segment.last >= floor)
            .map_or(self.next, |segment| segment.first.max(floor))
    }

    /// Whether a message is kept at `offset` or behind it that is not hidden.
    #[inline]
    #[must_use]
    pub fn reaches(&self, offset: Offset) -> bool {
        if offset >= self.shown {
            return false;
        }
        // Only the last segment can be without a record.
        self.segments
            .iter()
            .rev()
            .take(2)
            .any(|segment| segment.records > 0 && segment.last >= offset)
    }

    /// How many messages are kept from `from` on. Looks at every segment.
    #[must_use]
    pub fn count_from(&self, arena: &Arena, from: Offset) -> u64 {
        self.segments
            .iter()
            .map(|segment| u64::from(records_from(arena, segment, from)))
            .sum()
    }

    /// Chunks of the arena that the log holds.
    #[inline]
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks - self.paged.as_ref().map_or(0, |paged| paged.chunks)
    }

    /// Whether messages stay when they are settled.
    #[must_use]
    pub fn retains(&self) -> bool {
        self.retain > 0
    }

    /// The partition ends, and every subscription has before: gives back what the
    /// kernel does not read; the rest goes with its last [`Log::unpin`].
    pub fn end(&mut self, arena: &mut Arena) {
        self.retain = 0;
        self.stretches = None;
        self.thinning = false;
        self.sweep = Offset(0);
        for index in (0..self.segments.len()).rev() {
            let segment = &mut self.segments[index];
            assert_eq!(segment.claims, 0, "no subscription is left");
            segment.sealed = true;
            self.release(arena, index);
        }
    }

    /// Gives all memory back.
    pub fn clear(&mut self, arena: &mut Arena) {
        for segment in core::mem::take(&mut self.segments) {
            self.give_pages_of(arena, &segment);
            arena.give_chain(segment.head);
        }
        self.chunks = 0;
        self.bytes = 0;
        if let Some(stretches) = &mut self.stretches {
            stretches.clear();
        }
    }

    /// Panics if an invariant is broken.
    pub fn invariants(&self) {
        let mut before = None;
        for (index, segment) in self.segments.iter().enumerate() {
            assert!(
                segment.sealed || index + 1 == self.segments.len(),
                "only the last is open"
            );
            assert!(
                segment.used <= segment.chunks as usize * CHUNK,
                "a segment fits its chunks"
            );
            assert!(
                segment.claims <= segment.granted,
                "no claim is left that was not granted"
            );
            if segment.records > 0 {
                assert!(segment.first <= segment.last && segment.last < self.next);
                assert!(before < Some(segment.first), "segments are in order");
                before = Some(segment.last);
            }
        }
        let first = self.hidden.front().map_or(ALL, |(_, first)| *first);
        assert_eq!(first, self.shown, "readers stop at what is hidden");
        let is_in_order = (self.hidden.iter()).is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1);
        assert!(is_in_order, "what is hidden is in order");
        let chunks: usize = self
            .segments
            .iter()
            .map(|segment| segment.chunks as usize)
            .sum();
        assert_eq!(chunks, self.chunks, "every chunk is counted");
        let bytes: u64 = self
            .segments
            .iter()
            .map(|segment| segment.used as u64)
            .sum();
        assert_eq!(bytes, self.bytes, "every byte is counted");
        self.page_invariants();
        if let Some(stretches) = &self.stretches {
            stretches.invariants(
                (self.segments.iter())
                    .map(|it| (it.first, it.last, it.used as u64, it.chunks as usize)),
            );
        }
    }

    /// Panics if what stands in the chunks is not what the segments say, or the
    /// claims are not `claims` of each offset in sum. Walks every message.
    pub(super) fn audit(&self, arena: &Arena, claims: impl Fn(Offset) -> usize) {
        for segment in &self.segments {
            if !segment.is_here() {
                let offsets = (segment.first.0..=segment.last.0).map(Offset);
                let claimed: usize = offsets.map(&claims).sum();
                assert_eq!(claimed, segment.claims as usize, "claims are counted");
                assert!(
                    claimed > 0 || self.retain > 0,
                    "what nobody needs is not kept"
                );
                continue;
            }
            let (mut count, mut claimed, mut end, mut before) = (0, 0, 0, None);
            for (byte, header) in records(arena, segment, 0) {
                let offset = Offset(header.offset.get());
                assert!(before < Some(offset), "offsets within a segment rise");
                assert!(segment.holds(offset), "a segment knows its ends");
                before = Some(offset);
                count += 1;
                claimed += claims(offset);
                end = byte + padded(header.length.get() as usize);
            }
            assert_eq!(count, segment.records, "every message is counted");
            assert_eq!(end, segment.used, "frames fill a segment without a gap");
            assert_eq!(claimed, segment.claims as usize, "claims are counted");
            assert!(
                claimed > 0 || self.retain > 0 || segment.pins > 0 || segment.records == 0,
                "what nobody needs is not kept"
            );
        }
    }

    fn open(&mut self, arena: &mut Arena, time: Wall) -> Result<(), ArenaFull> {
        let head = arena.take().ok_or(ArenaFull)?;
        self.seal(arena);
        self.close_full_stretch(arena, time);
        let full_at = self.chunk_size();
        let serial = self.serial();
        self.chunks += 1;
        self.segments.push_back(Segment {
            head,
            chunks: 1,
            serial,
            first: self.next,
            last: self.next,
            used: 0,
            full_at,
            records: 0,
            claims: 0,
            granted: 0,
            pins: 0,
            sealed: false,
        });
        Ok(())
    }

    /// Bytes after which the next chunk is full.
    #[inline]
    fn chunk_size(&self) -> usize {
        match &self.stretches {
            None => CHUNK,
            Some(stretches) => stretches.chunk_size(self.bytes),
        }
    }

    /// Nothing more is written to the last segment.
    fn seal(&mut self, arena: &mut Arena) {
        if let Some(segment) = self.segments.back_mut() {
            segment.sealed = true;
            self.look_after(arena, self.segments.len() - 1);
            // Whatever is overtaken by now has no other occasion to be looked at.
            self.thinning |= self.segments.len() > OVERTAKEN;
        }
    }

    /// A segment lost claims or a pin, or was sealed: it goes back if nobody needs
    /// it, and is noted if little of it is needed.
    #[inline]
    fn look_after(&mut self, arena: &mut Arena, index: usize) {
        let segment = &self.segments[index];
        if segment.claims == 0 {
            self.release(arena, index);
        } else {
            self.thinning |= segment.thin(index + OVERTAKEN < self.segments.len());
        }
    }

    /// A segment without claims: rewinds it if it is open, gives it back if it is
    /// sealed and not retained. What the kernel may read stays.
    fn release(&mut self, arena: &mut Arena, index: usize) {
        let segment = &mut self.segments[index];
        if segment.pins > 0 {
            return;
        }
        if self.stretches.is_some() {
            self.release_stretch_of(arena, index);
        } else if self.retain > 0 {
            self.release_beyond_retention(arena);
        } else if segment.sealed {
            self.remove(arena, index);
        } else {
            // Written from its start again: its lines are still in the cache.
            self.bytes -= segment.used as u64;
            segment.used = 0;
            segment.records = 0;
            segment.granted = 0;
            segment.first = self.next;
            segment.last = self.next;
            segment.serial = self.next_serial;
            self.next_serial += 1;
        }
    }

    /// Gives back settled segments from the front while the others still are at
    /// least what is retained. A frame that is larger than a chunk stays only if it
    /// is part of that as a whole: otherwise each partition could hold one beyond
    /// what was asked for, and many of them all memory there is.
    fn release_beyond_retention(&mut self, arena: &mut Arena) {
        while let Some(segment) = self.segments.front() {
            let needed = match segment.chunks {
                1 => self.bytes - (segment.used as u64),
                _ => self.bytes - 1,
            };
            let kept = segment.claims > 0 || segment.pins > 0 || needed < self.retain;
            if !segment.sealed || kept {
                break;
            }
            self.remove(arena, 0);
        }
    }

    fn remove(&mut self, arena: &mut Arena, index: usize) {
        let segment = self
            .segments
            .remove(index)
            .expect("the caller's index is in range");
        self.give_pages_of(arena, &segment);
        self.chunks -= segment.chunks as usize;
        self.bytes -= segment.used as u64;
        arena.give_chain(segment.head);
    }

    /// Keeps of a segment what is claimed, and returns the bytes of cache that it
    /// touched.
    fn slide_together(
        &mut self,
        arena: &mut Arena,
        index: usize,
        claimed: &impl Fn(Offset) -> bool,
    ) -> usize {
        let serial = self.serial();
        let segment = &mut self.segments[index];
        let (mut from, mut to, mut records, mut work) = (0, 0, 0, 0);
        while from < segment.used {
            let Some(header) = header_at(arena.bytes(segment.head), from) else {
                break;
            };
            let offset = Offset(header.offset.get());
            let size = padded(header.length.get() as usize);
            if claimed(offset) {
                if records == 0 {
                    segment.first = offset;
                }
                segment.last = offset;
                if from > to {
                    arena.copy((segment.head, from), (segment.head, to), size);
                    work += size;
                }
                to += size;
                records += 1;
            }
            from += size;
            work += CACHE_LINE;
        }
        assert!(records > 0, "a segment with claims has a claimed message");
        self.bytes -= (segment.used - to) as u64;
        segment.used = to;
        segment.records = records;
        segment.granted = segment.claims;
        segment.serial = serial;
        work
    }

    /// Moves a thinned segment's messages behind those of the one before it, if
    /// they fit there.
    fn join_neighbour(&mut self, arena: &mut Arena, index: usize) -> bool {
        let Some(before) = index.checked_sub(1) else {
            return false;
        };
        let (target, source) = (&self.segments[before], &self.segments[index]);
        let still = target.pins == 0 && source.pins == 0 && target.is_here() && source.is_here();
        let single = target.chunks == 1 && source.chunks == 1;
        if !still || !single || !source.sealed || target.used + source.used > CHUNK {
            return false;
        }
        arena.copy((source.head, 0), (target.head, target.used), source.used);
        let (last, used, records) = (source.last, source.used, source.records);
        let (claims, granted) = (source.claims, source.granted);
        let serial = self.serial();
        self.bytes += used as u64;
        let target = &mut self.segments[before];
        target.last = last;
        target.used += used;
        target.records += records;
        target.claims += claims;
        target.granted += granted;
        target.serial = serial;
        self.remove(arena, index);
        true
    }

    fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial - 1
    }

    /// The segment with a record at `offset` or, in a gap, after it.
    #[inline]
    fn index_from(&self, offset: Offset) -> Option<usize> {
        match self.segments.back() {
            Some(last) if last.records > 0 && last.first <= offset => Some(self.segments.len() - 1),
            _ => {
                let index = self
                    .segments
                    .partition_point(|segment| segment.records > 0 && segment.last < offset);
                (index < self.segments.len() && self.segments[index].records > 0).then_some(index)
            }
        }
    }

    /// The segment whose range holds `offset`.
    #[inline]
    fn index_of(&self, offset: Offset) -> Option<usize> {
        self.index_from(offset)
            .filter(|index| self.segments[*index].holds(offset))
    }
}

/// Writes the broker's half.
#[inline]
fn stamp(frame: &mut [u8], address: Address, offset: Offset, time: Wall) {
    let (header, _) = MessageHeader::mut_from_prefix(frame).expect("a frame has a whole header");
    header.handle.set(address.destination.0);
    header.partition.set(address.partition.0);
    header.offset.set(offset.0);
    header.append_time.set(time.0);
}

/// The padded size of the frame at the front of `bytes`.
#[inline]
fn frame_size(bytes: &[u8]) -> usize {
    let (header, _) = MessageHeader::ref_from_prefix(bytes).expect("the caller passes frames");
    padded(header.length.get() as usize)
}

/// What the gates on cost have to notice, if it is planted.
#[inline]
fn planted_cost(offset: Offset) {
    #[cfg(planted = "slow_append")]
    for step in 0..16_u64 {
        core::hint::black_box(step);
    }
    // About a microsecond: what a gate on times has to see.
    #[cfg(planted = "delayed_append")]
    for step in 0..3_000_u64 {
        core::hint::black_box(step);
    }
    #[cfg(planted = "allocating_append")]
    core::hint::black_box(vec![offset]);
    let _ = offset;
}

#[inline]
fn header_at(bytes: &[u8], byte: usize) -> Option<&MessageHeader> {
    MessageHeader::ref_from_prefix(bytes.get(byte..)?)
        .ok()
        .map(|(header, _)| header)
}

/// How many of the segment's messages lie at `from` or behind it.
fn records_from(arena: &Arena, segment: &Segment, from: Offset) -> u32 {
    if segment.records == 0 || segment.last < from {
        return 0;
    }
    if segment.first >= from {
        return segment.records;
    }
    if !segment.is_here() {
        return segment.dense_from(from);
    }
    let before = records(arena, segment, 0)
        .take_while(|(_, header)| header.offset.get() < from.0)
        .count();
    segment.records - u32::try_from(before).expect("a segment has fewer than 2^32 records")
}

/// The segment's messages from `byte` on, where one begins, and where each lies.
fn records<'a>(
    arena: &'a Arena,
    segment: &'a Segment,
    mut byte: usize,
) -> impl Iterator<Item = (usize, &'a MessageHeader)> {
    let bytes = arena.bytes(segment.head);
    core::iter::from_fn(move || {
        if byte >= segment.used {
            return None;
        }
        let header = header_at(bytes, byte)?;
        let at = byte;
        byte += padded(header.length.get() as usize);
        Some((at, header))
    })
}
