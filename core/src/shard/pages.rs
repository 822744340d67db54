//! Pages: what of the partitions' logs lies in files because memory is short.
//!
//! ```text
//!   look ──> may leave ──> Write ──> page_written ──> away, its chunks are free
//!   dispatch ──> wanted ──> Read ──> page_read ──> here, the partition is dispatched again
//! ```
//!
//! Memory is short when a destination holds half of what it may, or little of the arena is
//! free. What leaves is what is wanted last: the newest, beyond what anybody reads next. It
//! leaves in the background: whoever sends goes on meanwhile, and whoever reads waits for
//! what it reads alone.
//!
//! What lies in pages is as safe as it was: in the journal, until a checkpoint names its
//! pages; or, of messages that are to be in memory only, until the process ends.
//!
//! Invariant: a segment is leaving, coming or neither; chunks that wait for bytes are
//! counted in `chunks`.

mod space;

use core::ops::Range;
use std::collections::VecDeque;

use super::locals::Local;
use super::{Shard, limits};
use crate::counters::Counter;
use crate::frame::checksum;
use crate::id::{BatchNumber, DestinationNumber, Offset, PageNumber, PartitionIndex};
use crate::journal::entry::Place;
use crate::memory::{CHUNK, ChunkId, Extent};
use crate::partition::Partition;
use crate::partition::log::Log;
use crate::partition::log::pages::{AHEAD, Image};
use crate::time::{Monotonic, Now};
use space::Space;

/// What the pages of a shard need of the device. The answer to each is one call of
/// [`Shard::page_written`] or [`Shard::page_read`], in whatever order; to
/// [`PageWish::RemoveFile`] there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageWish {
    /// Write these bytes, which may be longer than a page, from the front of a page on. They
    /// do not go beyond its page file, which is made if it is not there. Nothing is flushed
    /// for it.
    Write {
        /// Where.
        page: PageNumber,
        /// What: at most [`limits::FRAME_SIZE_MAX`].
        bytes: Vec<u8>,
    },
    /// Read so many bytes from the front of a page on that was written. Others than were
    /// written are as bad as none.
    Read {
        /// Where.
        page: PageNumber,
        /// How many.
        size: u32,
        /// The CRC-32C of what was written.
        sum: u32,
    },
    /// Remove a page file of this run, in which nothing is needed any more.
    RemoveFile {
        /// Which: that of pages from this number times [`limits::PAGES_PER_FILE`] on.
        file: u32,
    },
}

/// A page could not be written, or not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFailed;

/// So many chunks fewer are free than at the last look before there is another.
const LOOK_EVERY: usize = 8;

/// What part of the arena is to be free.
const FREE_SHARE: usize = 4;

/// Chunks that are kept for what comes.
const COMING: usize = 16;

/// What is remembered of a segment that lies in a page, in bytes: its place in the log, and
/// that in a tree by its first offset with half of the tree's nodes in use.
const REMEMBERED: u64 = 192;
const _: () = assert!(Log::PER_PAGE as u64 <= REMEMBERED);

/// What part of the memory bound may be remembered of pages, beside what it is divided into.
const REMEMBERED_SHARE: u64 = 16;

/// The pages of a shard.
#[derive(Debug)]
pub(super) struct Pager {
    space: Space,
    /// Not asked for yet.
    leaves: VecDeque<Leaving>,
    /// Being written.
    leaving: Vec<Leaving>,
    /// Chunks of both.
    leaving_chunks: usize,
    /// Where somebody wants to read.
    wanted: VecDeque<(Place, Offset)>,
    /// Being read.
    coming: Vec<Coming>,
    /// Chunks that wait for bytes.
    chunks: usize,
    /// What could not be read, and is wanted again.
    again: Vec<(Place, Offset)>,
    /// When something is tried again that the device refused.
    due: Option<Monotonic>,
    has_failed: bool,
    /// With fewer chunks free it is looked for some that may leave.
    look_below: usize,
    /// Chunks that were free when there were too few for what is wanted.
    lacked_at: usize,
    /// Looks of one round look at each segment once between them.
    round: u32,
    /// The next look goes on with the round of the last one.
    goes_on: bool,
    /// Segments that are brought for a reader beyond the one that it reads, and stay: fewer
    /// if there are so many readers that all memory would stay.
    ahead: usize,
    /// As many if there is memory for that.
    ahead_most: usize,
    /// The last look found too few: what stood in the way, such as a flush, is to end.
    is_wanting: bool,
    /// The last batch of the journal that was told to be durable.
    told: BatchNumber,
    /// Then there is another look at this time at the latest.
    look_at: Option<Monotonic>,
    /// All leaves that may, however much memory there is.
    #[cfg(test)]
    is_eager: bool,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    place: Place,
    first: Offset,
    size: usize,
    at: Extent,
    sum: u32,
}

#[derive(Clone, Copy, Debug)]
struct Coming {
    place: Place,
    image: Image,
    /// Where it goes.
    head: ChunkId,
}

impl Pager {
    fn new(most: u32) -> Self {
        Self {
            space: Space::new(most),
            leaves: VecDeque::new(),
            leaving: Vec::new(),
            leaving_chunks: 0,
            wanted: VecDeque::new(),
            coming: Vec::new(),
            chunks: 0,
            again: Vec::new(),
            due: None,
            has_failed: false,
            look_below: usize::MAX,
            lacked_at: usize::MAX,
            round: 0,
            goes_on: false,
            ahead: AHEAD,
            ahead_most: AHEAD,
            is_wanting: false,
            told: BatchNumber(0),
            look_at: None,
            #[cfg(test)]
            is_eager: false,
        }
    }

    /// Chunks that wait for bytes.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Whether something of a destination is wanted that is not there yet.
    pub(super) fn awaits(&self, destination: DestinationNumber) -> bool {
        let is_of = |place: &Place| place.destination == destination;
        (self.wanted.iter()).any(|(place, _)| is_of(place))
            || self.again.iter().any(|(place, _)| is_of(place))
            || self.coming.iter().any(|it| is_of(&it.place))
    }

    /// See [`Space`].
    pub(super) fn checkpoint_begun(&mut self) {
        self.space.begun();
    }

    /// See [`Space`].
    pub(super) fn checkpoint_ended(&mut self, is_placed: bool) {
        self.space.ended(is_placed);
        if is_placed {
            // Pages may be free that were not.
            self.look_below = usize::MAX;
        }
    }

    /// When something is tried again.
    pub(super) fn due(&self) -> Option<Monotonic> {
        self.due.into_iter().chain(self.look_at).min()
    }

    /// What stood in the way of what is to leave may have ended.
    pub(super) fn look_again(&mut self) {
        if self.is_wanting {
            self.look_below = usize::MAX;
        }
    }
}

impl Shard {
    /// Has the shard keep in pages what it has no memory for, in as many of them at most, and
    /// in no more than a sixteenth of its memory has room to remember: then some twenty times
    /// its memory lies there. Before anything is restored.
    pub fn keep_pages(&mut self, most: u32) {
        let remembered = self.plan.bound / REMEMBERED_SHARE / REMEMBERED;
        let most = most.min(u32::try_from(remembered).unwrap_or(u32::MAX));
        self.pager = (most > 0).then(|| Box::new(Pager::new(most)));
    }

    /// Has all leave that may, however much memory there is.
    #[cfg(test)]
    pub(super) fn page_eagerly(&mut self) {
        if let Some(pager) = &mut self.pager {
            pager.is_eager = true;
        }
    }

    /// Has so many segments be brought for each reader if there is memory for that.
    #[cfg(test)]
    pub(super) fn read_ahead_at_most(&mut self, segments: usize) {
        if let Some(mut pager) = self.pager.take() {
            pager.ahead_most = segments;
            self.read_ahead(&mut pager, segments);
            self.pager = Some(pager);
        }
    }

    /// Bytes of messages that lie in pages, with what rests there until a checkpoint.
    #[cfg(test)]
    pub(super) fn paged_bytes(&self) -> u64 {
        let used = self.pager.as_ref().map_or(0, |it| it.space.used());
        (used * CHUNK) as u64
    }

    /// Chunks that are kept for what comes from pages.
    pub(super) fn pages_kept(&self) -> usize {
        self.pager
            .as_ref()
            .map_or(0, |it| COMING.saturating_sub(it.chunks))
    }

    /// What its pages need now, until `None`.
    pub fn page_wish(&mut self) -> Option<PageWish> {
        let mut pager = self.pager.take()?;
        for extent in self.arena.take_pages() {
            pager.space.give(extent);
        }
        let wish = self.page_wish_of(&mut pager);
        self.pager = Some(pager);
        wish
    }

    fn page_wish_of(&mut self, pager: &mut Pager) -> Option<PageWish> {
        if let Some(file) = pager.space.removed() {
            return Some(PageWish::RemoveFile { file });
        }
        if let Some(wish) = self.next_read(pager) {
            return Some(wish);
        }
        while let Some(mut leaving) = pager.leaves.pop_front() {
            let Some(log) = self.locals.log_mut(leaving.place) else {
                self.stays(pager, &leaving);
                continue;
            };
            let bytes = log.bytes_of(&self.arena, leaving.first);
            leaving.sum = checksum::body(&bytes);
            let page = leaving.at.page;
            pager.leaving.push(leaving);
            self.counters.add(Counter::PagesWritten, 1);
            return Some(PageWish::Write { page, bytes });
        }
        None
    }

    /// The next that is wanted, and that there is memory for.
    fn next_read(&mut self, pager: &mut Pager) -> Option<PageWish> {
        let mut index = 0;
        // What of which destination there was no room for.
        let mut lacked: Vec<(DestinationNumber, usize)> = Vec::new();
        while let Some(&(place, wanted)) = pager.wanted.get(index) {
            let lacks = |chunks| {
                let of_it = |it: &&(_, _)| it.0 == place.destination;
                lacked.iter().filter(of_it).any(|it| it.1 <= chunks)
            };
            if lacks(1) {
                index += 1;
                continue;
            }
            let log = self.locals.log_mut(place);
            let next = log.and_then(|log| log.next_away(wanted, log.ahead_of(wanted)));
            let Some((first, chunks)) = next else {
                pager.wanted.remove(index);
                continue;
            };
            let head = if lacks(chunks) {
                None
            } else {
                self.take_for_pages(pager, place.destination, chunks)
            };
            let Some(head) = head else {
                // What leaves makes room for it; one look is enough for that until something
                // has changed.
                let free = self.arena.free();
                if core::mem::replace(&mut pager.lacked_at, free) != free {
                    pager.look_below = usize::MAX;
                }
                if self.has_nothing_for_pages(pager) {
                    return None;
                }
                lacked.push((place.destination, chunks));
                index += 1;
                continue;
            };
            let log = self.locals.log_mut(place);
            let Some(image) = log.and_then(|log| log.begin_coming(first)) else {
                self.arena.give_chain(head);
                pager.wanted.remove(index);
                continue;
            };
            pager.chunks += chunks;
            let Image { size, sum, .. } = image;
            let page = image.at.page;
            pager.coming.push(Coming { place, image, head });
            self.counters.add(Counter::PagesRead, 1);
            return Some(PageWish::Read { page, size, sum });
        }
        None
    }

    /// Whether [`Shard::take_for_pages`] has not one chunk for anybody.
    fn has_nothing_for_pages(&self, pager: &Pager) -> bool {
        let is_urgent = self.journal.is_none() || pager.chunks == 0;
        self.arena.free() == 0 || (!is_urgent && self.unpromised(0) < CHUNK as u64)
    }

    /// Memory for what comes: what nobody was promised, of which some is kept for that, and
    /// no more than leaves room for what is sent to the same destination. Otherwise whoever
    /// takes much and settles nothing would keep others from sending. A frame that is larger
    /// than what is kept has to come all the same, and so has what entries are told about
    /// before anybody is promised anything.
    fn take_for_pages(
        &mut self,
        pager: &Pager,
        destination: DestinationNumber,
        chunks: usize,
    ) -> Option<ChunkId> {
        let coming = pager.coming.iter();
        let of_it = coming.filter(|it| it.place.destination == destination);
        let coming: usize = of_it.map(|it| chunks_of(it.image.size as usize)).sum();
        let is_urgent = self.journal.is_none() || (chunks > COMING && pager.chunks == 0);
        let here = self.locals.get(destination).map_or(0, Local::chunks);
        let most = self.plan.destination / 4 * 3;
        let is_in_bounds = ((here + coming + chunks) * CHUNK) as u64 <= most
            && (chunks * CHUNK) as u64 <= self.unpromised(0);
        (is_urgent || is_in_bounds).then(|| self.arena.take_chain(chunks))?
    }

    /// What was to be written from this page on is, or is not.
    pub fn page_written(&mut self, page: PageNumber, result: Result<(), PageFailed>) {
        let Some(mut pager) = self.pager.take() else {
            return;
        };
        let place = pager.leaving.iter().position(|it| it.at.page == page);
        if let Some(leaving) = place.map(|place| pager.leaving.swap_remove(place)) {
            match result {
                Ok(()) => self.has_left(&mut pager, &leaving),
                Err(PageFailed) => {
                    self.counters.add(Counter::PageWritesFailed, 1);
                    pager.has_failed = true;
                    self.stays(&mut pager, &leaving);
                }
            }
        }
        self.pager = Some(pager);
    }

    fn has_left(&mut self, pager: &mut Pager, it: &Leaving) {
        let local = self.locals.get(it.place.destination);
        let partition = local.map(|local| &local.partitions[it.place.partition.0 as usize]);
        if partition.is_some_and(|its| is_spared(its, it.first)) {
            // Somebody has come to it meanwhile. Another may leave instead.
            pager.look_below = usize::MAX;
            return self.stays(pager, it);
        }
        pager.leaving_chunks -= chunks_of(it.size);
        match self.locals.log_mut(it.place) {
            Some(log) => log.left(&mut self.arena, it.first, it.at, it.sum),
            None => self
                .locals
                .left_behind(&mut self.arena, it.place, it.first, it.at),
        }
        // More may have to.
        pager.look_below = usize::MAX;
    }

    /// What was to leave does not.
    fn stays(&mut self, pager: &mut Pager, it: &Leaving) {
        pager.leaving_chunks -= chunks_of(it.size);
        match self.locals.log_mut(it.place) {
            Some(log) => {
                log.unpin(&mut self.arena, it.first);
                self.arena.give_pages(it.at);
            }
            None => self
                .locals
                .left_behind(&mut self.arena, it.place, it.first, it.at),
        }
    }

    /// What was to be read from this page on, as many bytes as were asked for and with their
    /// checksum.
    pub fn page_read(&mut self, page: PageNumber, result: Result<&[u8], PageFailed>) {
        let Some(pager) = &mut self.pager else {
            return;
        };
        let place = pager.coming.iter().position(|it| it.image.at.page == page);
        // A page may be asked for again before the first answer, for another segment.
        let Some(coming) = place.map(|place| pager.coming.remove(place)) else {
            return;
        };
        pager.chunks -= chunks_of(coming.image.size as usize);
        let Coming { place, image, head } = coming;
        let Ok(bytes) = result else {
            // Perhaps the device has it the next time: nothing else has it before a start.
            self.counters.add(Counter::PageReadsFailed, 1);
            pager.has_failed = true;
            pager.again.push((place, image.first));
            self.arena.give_chain(head);
            if let Some(log) = self.locals.log_mut(place) {
                log.not_come(image.first);
            }
            return;
        };
        debug_assert_eq!(bytes.len(), image.size as usize, "all that was asked for");
        self.arena.fill_chain(head, bytes);
        let log = self.locals.log_mut(place);
        if log.is_some_and(|log| log.came(&mut self.arena, image.first, head)) {
            let local = &mut self.locals[place.destination];
            for (_, part) in &mut local.partitions[place.partition.0 as usize].parts {
                part.search_anew();
            }
            self.queue(place.destination, place.partition);
        } else {
            self.arena.give_chain(head);
        }
    }

    /// A partition was read: perhaps somebody found nothing in memory, or soon will.
    #[inline(never)]
    pub(super) fn note_wanted(&mut self, destination: DestinationNumber, index: PartitionIndex) {
        let place = Place {
            destination,
            partition: index,
        };
        let log = self.locals.log_mut(place).filter(|log| log.has_wanted());
        let wanted = log.map_or_else(Vec::new, Log::take_wanted);
        if let Some(pager) = &mut self.pager {
            for offset in wanted {
                if !pager.wanted.contains(&(place, offset)) {
                    pager.wanted.push_back((place, offset));
                }
            }
        }
    }

    /// Whether [`Shard::turn_pages`] has something to do.
    #[inline]
    pub(super) fn has_page_work(&self) -> bool {
        self.pager
            .as_ref()
            .is_some_and(|it| self.arena.free() < it.look_below || it.has_failed)
    }

    /// Looks for what may leave, if memory is short and something of that has changed.
    #[inline(never)]
    pub(super) fn turn_pages(&mut self, now: Now) {
        let told = self.journal.as_ref().map(|it| it.told());
        if let Some(pager) = &mut self.pager
            && let Some(told) = told
            && core::mem::replace(&mut pager.told, told) != told
        {
            // What had to be flushed is shown, and may leave.
            pager.look_again();
        }
        if let Some(pager) = &mut self.pager {
            // Memory that has come back since the last look may be short again.
            let below = self.arena.free().saturating_sub(LOOK_EVERY);
            pager.look_below = pager.look_below.max(below);
        }
        if !self.has_page_work() {
            return;
        }
        self.look_for_room();
        let Some(pager) = &mut self.pager else {
            return;
        };
        if core::mem::take(&mut pager.has_failed) {
            pager.due = Some(now.monotonic.after(limits::PAGE_PAUSE));
        }
        let again = now.monotonic.after(limits::PAGE_PAUSE);
        pager.look_at = pager.is_wanting.then_some(again);
        if pager.space.wants_checkpoint() {
            self.begin_checkpoint();
        }
    }

    /// Time has passed: what the device refused is tried again.
    pub(super) fn end_page_pause(&mut self, now: Monotonic) {
        if let Some(pager) = &mut self.pager
            && pager.look_at.take_if(|due| *due <= now).is_some()
        {
            pager.look_again();
        }
        if let Some(pager) = &mut self.pager
            && pager.due.is_some_and(|due| due <= now)
        {
            pager.due = None;
            pager.look_below = usize::MAX;
            let again = core::mem::take(&mut pager.again);
            pager.wanted.extend(again);
        }
    }

    /// Has leave what is wanted last, as far as memory is short.
    pub(super) fn look_for_room(&mut self) {
        let free = self.arena.free();
        let Some(mut pager) = self.pager.take() else {
            return;
        };
        if free < pager.look_below {
            for extent in self.arena.take_pages() {
                pager.space.give(extent);
            }
            pager.look_below = free.saturating_sub(LOOK_EVERY);
            if pager.due.is_none() {
                self.look(&mut pager);
            }
        }
        self.pager = Some(pager);
    }

    fn look(&mut self, pager: &mut Pager) {
        let goal = self.arena.chunks() as usize / FREE_SHARE;
        let mut short = goal.saturating_sub(self.arena.free() + pager.leaving_chunks);
        // A start waits for what leaves, and what it is told next may say that much of it is
        // needed no more.
        let quota = match self.journal {
            Some(_) => usize::try_from(self.plan.destination / 2).unwrap_or(usize::MAX) / CHUNK,
            None => usize::MAX,
        };
        let mut room = limits::CHUNKS_LEAVING_MAX.saturating_sub(pager.leaving_chunks);
        pager.is_wanting = short > 0;
        #[cfg(test)]
        if pager.is_eager {
            short = room;
            pager.look_below = usize::MAX;
        }
        if !core::mem::take(&mut pager.goes_on) {
            pager.round = pager.round.wrapping_add(1);
        }
        for local in self.locals.iter_mut() {
            if room == 0 {
                break;
            }
            let most = quota.saturating_add(local.kept);
            let mut over = local.chunks().saturating_sub(most).max(short).min(room);
            for index in local.own.indexes() {
                if over == 0 {
                    break;
                }
                let partition = &mut local.partitions[index];
                if partition.log.chunks() < 2 {
                    continue;
                }
                partition.log.read_ahead(pager.ahead);
                let spared = spared(partition);
                for first in partition.log.may_leave(&spared, over, pager.round) {
                    let place = Place {
                        destination: local.number,
                        partition: PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX)),
                    };
                    let Some(size) = partition.log.begin_leaving(first) else {
                        continue;
                    };
                    let chunks = chunks_of(size);
                    let Some(at) = pager.space.take(chunks) else {
                        partition.log.unpin(&mut self.arena, first);
                        return;
                    };
                    pager.leaves.push_back(Leaving {
                        place,
                        first,
                        size,
                        at,
                        sum: 0,
                    });
                    pager.leaving_chunks += chunks;
                    short = short.saturating_sub(chunks);
                    over = over.saturating_sub(chunks);
                    room = room.saturating_sub(chunks);
                    if over == 0 {
                        break;
                    }
                }
                pager.goes_on |= over > 0 && partition.log.has_more_to_look_at();
            }
            pager.is_wanting |= over > 0;
        }
        #[cfg(test)]
        if pager.is_eager {
            return;
        }
        if pager.goes_on {
            // The next turn looks further.
            pager.look_below = usize::MAX;
        } else if !pager.is_wanting {
            self.read_ahead(pager, (pager.ahead + 1).min(pager.ahead_most));
        } else if pager.leaving_chunks == 0 && pager.ahead > 0 && self.is_durable() {
            // Nothing may leave, and none of it waits for a flush: it stays for those who read.
            self.read_ahead(pager, pager.ahead / 2);
            pager.look_below = usize::MAX;
        }
    }

    fn read_ahead(&mut self, pager: &mut Pager, segments: usize) {
        if core::mem::replace(&mut pager.ahead, segments) == segments {
            return;
        }
        for local in self.locals.iter_mut() {
            for index in local.own.indexes() {
                let log = &mut local.partitions[index].log;
                if log.has_paged() {
                    log.read_ahead(segments);
                }
            }
        }
    }
}

/// Which segments stay because of who reads them.
fn spared(partition: &Partition) -> Vec<Range<usize>> {
    let parts = partition.parts.iter();
    parts
        .map(|(_, part)| partition.log.spared(part.cursor(), part.fresh()))
        .collect()
}

/// Whether the segment that begins there is one of them.
fn is_spared(partition: &Partition, first: Offset) -> bool {
    let segment = partition.log.spared(first, first).start;
    spared(partition).iter().any(|it| it.contains(&segment))
}

fn chunks_of(size: usize) -> usize {
    size.div_ceil(CHUNK)
}
