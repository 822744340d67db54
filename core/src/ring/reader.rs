//! The reading end: a batch of what is published; give it back at once.

use std::fmt;

use super::region::{Reading, Region, WORD};
use super::{
    Corrupt, MARK_FRAGMENT, MARK_PADDING, Sleep, Wake, fragment_size_max, record_size, split,
};
use crate::planted::Planted;
use crate::sync::Ordering;

/// The end that reads: one thread's at a time. It may move to another thread
/// but not be shared or cloned.
///
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<courser_core::ring::Reader>();
/// ```
/// ```compile_fail
/// fn cloned<T: Clone>() {}
/// cloned::<courser_core::ring::Reader>();
/// ```
pub struct Reader {
    pub(super) region: Region,
    /// What the header's position of the reader says: the next record.
    pub(super) consumed: u64,
    /// The writer's position as last seen, checked; at least `consumed`.
    published: u64,
    fragment_size_max: u32,
}

impl Reader {
    pub(super) fn new(region: Region, position: u64) -> Reader {
        Reader {
            consumed: position,
            published: position,
            fragment_size_max: fragment_size_max(region.capacity()),
            region,
        }
    }

    /// Hands every fragment that is there to `take`, in order, and then gives
    /// their space back with one release store. Returns how many there were.
    ///
    /// The fragments before a corrupt record are handed over and given back.
    #[inline]
    pub fn read(&mut self, mut take: impl FnMut(&[u8])) -> Result<u32, Corrupt> {
        let mut count = 0;
        let mut batch = self.batch()?;
        while let Some(fragment) = batch.next_fragment()? {
            take(fragment);
            count += 1;
        }
        Ok(count)
    }

    /// What is there now, to be read one fragment at a time.
    #[inline]
    pub fn batch(&mut self) -> Result<Batch<'_>, Corrupt> {
        if self.consumed == self.published {
            self.refresh()?;
        }
        Ok(Batch {
            position: self.consumed,
            position_before: self.consumed,
            reader: self,
            _reading: None,
        })
    }

    /// Says whether the writer sleeps for want of space and must be woken.
    ///
    /// Costs a full fence: once per turn after reading, and only towards a
    /// writer that may sleep.
    #[inline]
    pub fn wake_writer(&mut self) -> Wake {
        self.region.header().writer_wake.check()
    }

    /// Announces that this end goes to sleep until something is published, and
    /// looks once more.
    pub fn try_sleep(&mut self) -> Sleep {
        let header = self.region.header();
        header.reader_wake.announce();
        // Any change counts, even a corrupt one, which the next read reports.
        let changed = header.writer.position.load(Ordering::Relaxed) != self.consumed;
        if changed || header.writer.closed.load(Ordering::Relaxed) != 0 {
            self.awake();
            Sleep::Refused
        } else {
            Sleep::Granted
        }
    }

    /// Withdraws the announcement of [`Reader::try_sleep`]; call it after every
    /// sleep, whatever ended it.
    pub fn awake(&mut self) {
        self.region.header().reader_wake.withdraw();
    }

    /// Leaves. Unlike dropping the reader this says whether the writer has to
    /// be woken to learn of it.
    pub fn close(self) -> Wake {
        self.leave();
        self.region.header().writer_wake.check()
    }

    /// Whether something is published that was not read.
    #[inline]
    pub fn has_more(&self) -> bool {
        self.region.header().writer.position.load(Ordering::Acquire) != self.consumed
    }

    /// Whether the writer has gone and everything it published is read.
    pub fn is_closed(&self) -> bool {
        let writer = &self.region.header().writer;
        // `closed` first: it is stored after the last position, so the position
        // loaded here is that last one.
        writer.closed.load(Ordering::Acquire) != 0
            && writer.position.load(Ordering::Relaxed) == self.consumed
    }

    /// Looks how far the writer is now.
    #[inline]
    fn refresh(&mut self) -> Result<(), Corrupt> {
        let capacity = self.region.capacity();
        // Acquire: the records up to here are written.
        let published = self.region.header().writer.position.load(Ordering::Acquire);
        let unread = published.wrapping_sub(self.consumed);
        if unread > u64::from(capacity) || !unread.is_multiple_of(u64::from(WORD)) {
            return Err(self.corrupt_position(published));
        }
        self.published = published;
        Ok(())
    }

    #[cold]
    fn corrupt_position(&self, peer: u64) -> Corrupt {
        Corrupt::Position {
            peer,
            own: self.consumed,
            capacity: self.region.capacity(),
        }
    }

    #[inline]
    fn consume(&mut self, position: u64) {
        if position != self.consumed {
            self.consumed = position;
            // Release gives the bytes back only after they were read.
            let release = Planted::RingRelaxedConsume.relaxes(Ordering::Release);
            self.region
                .header()
                .reader
                .position
                .store(position, release);
        }
    }

    fn leave(&self) {
        let closed = &self.region.header().reader.closed;
        closed.store(1, Ordering::Release);
    }
}

impl Drop for Reader {
    /// Leaves. What is unread goes with the ring; a sleeping writer is not
    /// woken: see [`Reader::close`].
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("consumed", &self.consumed)
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

/// A run of published fragments. When it drops, what was handed out is given
/// back to the writer with one release store.
#[must_use = "nothing is read before `next_fragment`"]
pub struct Batch<'a> {
    reader: &'a mut Reader,
    /// The next record.
    position: u64,
    /// The record handed out last, or the next one.
    position_before: u64,
    _reading: Option<Reading>,
}

impl Batch<'_> {
    /// The next fragment, in place, until the next call.
    #[inline]
    pub fn next_fragment(&mut self) -> Result<Option<&[u8]>, Corrupt> {
        let region = &self.reader.region;
        loop {
            let unread = self.reader.published.wrapping_sub(self.position);
            if unread == 0 {
                return Ok(None);
            }
            let offset = region.offset(self.position);
            // SAFETY: positions are multiples of 8 (ours by addition of record
            // sizes, the writer's by `refresh`), the offset is masked, and the
            // record is published and not given back.
            let (mark, length) = split(unsafe { region.word(offset) });
            let to_end = u64::from(region.capacity() - offset);
            if mark == MARK_FRAGMENT && length <= self.reader.fragment_size_max {
                let size = u64::from(record_size(length));
                if size <= unread && size <= to_end {
                    self.position_before = self.position;
                    self.position = self.position.wrapping_add(size);
                    self._reading = None;
                    // SAFETY: word and fragment are within `size`, which ends
                    // neither beyond the area nor beyond what is published; it
                    // is given back when the batch drops, and the slice borrows
                    // the batch.
                    let (bytes, reading) = unsafe { region.bytes(offset + WORD, length) };
                    self._reading = Some(reading);
                    return Ok(Some(bytes));
                }
            } else if mark == MARK_PADDING
                && u64::from(length) + u64::from(WORD) == to_end
                && to_end <= unread
            {
                self.position = self.position.wrapping_add(to_end);
                continue;
            }
            return Err(self.corrupt_record(length, mark));
        }
    }

    /// Takes the fragment handed out last back into the ring: the next batch
    /// begins with it. For a caller that has no room for it now.
    pub fn put_back(&mut self) {
        self.position = self.position_before;
    }

    #[cold]
    fn corrupt_record(&self, length: u32, mark: u32) -> Corrupt {
        Corrupt::Record {
            position: self.position,
            length,
            mark,
        }
    }
}

impl Drop for Batch<'_> {
    #[inline]
    fn drop(&mut self) {
        self._reading = None;
        self.reader.consume(self.position);
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("position", &self.position)
            .field("end", &self.reader.published)
            .finish_non_exhaustive()
    }
}
