//! The writing end: claim, fill, commit; publish the batch.

use std::error::Error;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::region::{Region, Writing};
use super::{
    Corrupt, MARK_FRAGMENT, MARK_PADDING, Sleep, Wake, fragment_size_max, record_size, word,
};
use crate::planted::Planted;
use crate::sync::Ordering;

/// The end that writes: one thread's at a time. It may move to another thread
/// but not be shared or cloned.
///
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<courser_core::ring::Writer>();
/// ```
/// ```compile_fail
/// fn cloned<T: Clone>() {}
/// cloned::<courser_core::ring::Writer>();
/// ```
pub struct Writer {
    pub(super) region: Region,
    /// End of the committed records; the next claim begins here.
    pub(super) committed: u64,
    /// What the header's position of the writer says; at most `committed`.
    pub(super) published: u64,
    /// The reader's position as last seen, plus the capacity: the first byte
    /// that may not be written.
    pub(super) limit: u64,
    fragment_size_max: u32,
}

impl Writer {
    pub(super) fn new(region: Region, position: u64) -> Writer {
        Writer {
            committed: position,
            published: position,
            limit: position.wrapping_add(u64::from(region.capacity())),
            fragment_size_max: fragment_size_max(region.capacity()),
            region,
        }
    }

    /// Claims a record for a fragment of `len` bytes, to be filled in place and
    /// then committed. It begins at an address that is a multiple of 8.
    ///
    /// What the slice contains before it is filled is left from earlier records.
    #[inline]
    pub fn claim(&mut self, len: usize) -> Result<Claim<'_>, ClaimError> {
        if len > self.fragment_size_max as usize {
            return Err(self.oversize(len));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a fragment's size is a u32"
        )]
        let len = len as u32;
        let size = record_size(len);
        let offset = self.region.offset(self.committed);
        let to_end = self.region.capacity() - offset;
        let (start, needed) = if size <= to_end {
            (offset, size)
        } else {
            (0, to_end + size)
        };
        if u64::from(needed) > self.limit.wrapping_sub(self.committed) {
            self.refresh(needed)?;
        }
        let committed_after = self.committed.wrapping_add(u64::from(needed));
        if start != offset {
            self.pad(offset, to_end);
        }
        // SAFETY: `start` is a multiple of 8, as all positions and sizes are,
        // and `start + size` is within the capacity: by the comparison with
        // `to_end`, or because a record takes at most half of the ring. The
        // bytes lie in `committed..limit`, which is ours; a Claim borrows the
        // writer, so they are handed out once.
        let (bytes, writing) = unsafe {
            self.region.set_word(start, word(MARK_FRAGMENT, len));
            self.region.bytes_mut(start + super::WORD, len)
        };
        Ok(Claim {
            bytes,
            committed: &mut self.committed,
            committed_after,
            _writing: writing,
        })
    }

    /// Copies `fragment` into a record and commits it; it is not yet published.
    #[inline]
    pub fn push(&mut self, fragment: &[u8]) -> Result<(), ClaimError> {
        let mut claim = self.claim(fragment.len())?;
        claim.copy_from_slice(fragment);
        claim.commit();
        Ok(())
    }

    /// Shows the reader everything committed since the last call, and says
    /// whether the reader must be woken.
    ///
    /// One release store and one full fence, if something was committed. The
    /// fence waits until the batch has left the core's store buffer, about a
    /// hundred nanoseconds when the reader looks on: publish once per batch.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        if self.committed == self.published {
            return Wake::Unneeded;
        }
        self.store_position();
        self.wake_reader()
    }

    /// The release store of [`Writer::publish`] without its fence.
    ///
    /// A reader that looks finds the records; one that sleeps does not learn of
    /// them before [`Writer::wake_reader`]. For a reader that spins, and for a
    /// turn that publishes several times and wakes once at its end.
    #[inline]
    pub fn publish_quietly(&mut self) {
        if self.committed != self.published {
            self.store_position();
        }
    }

    /// Says whether the reader sleeps and must be woken for what was published.
    ///
    /// Costs a full fence.
    #[inline]
    pub fn wake_reader(&mut self) -> Wake {
        self.region.header().reader_wake.check()
    }

    /// Announces that this end goes to sleep until `len` bytes can be claimed,
    /// and looks once more.
    ///
    /// Publish first: what is not published while the writer sleeps is not
    /// read. The reader wakes the writer by [`super::Reader::wake_writer`]
    /// whenever it gave something back, so more than one sleep may be needed.
    pub fn try_sleep(&mut self, len: usize) -> Result<Sleep, ClaimError> {
        self.region.header().writer_wake.announce();
        let outcome = self.claim(len).map(drop);
        match outcome {
            Err(ClaimError::Full { .. }) if !self.is_closed() => return Ok(Sleep::Granted),
            _ => self.awake(),
        }
        match outcome {
            Ok(()) | Err(ClaimError::Full { .. }) => Ok(Sleep::Refused),
            Err(error) => Err(error),
        }
    }

    /// Withdraws the announcement of [`Writer::try_sleep`]; call it after every
    /// sleep, whatever ended it.
    pub fn awake(&mut self) {
        self.region.header().writer_wake.withdraw();
    }

    /// Publishes and leaves. Unlike dropping the writer this says whether the
    /// reader has to be woken to learn of it.
    pub fn close(mut self) -> Wake {
        self.leave();
        self.region.header().reader_wake.check()
    }

    /// Whether the reader has gone, and nothing will be read any more.
    pub fn is_closed(&self) -> bool {
        self.region.header().reader.closed.load(Ordering::Acquire) != 0
    }

    /// Bytes free for records, with their words and padding, as last seen:
    /// there may be more.
    pub fn free(&self) -> u32 {
        let free = self.limit.wrapping_sub(self.committed);
        u32::try_from(free).expect("what is free is at most the capacity")
    }

    /// Bytes of the largest fragment that this ring can carry.
    pub fn fragment_size_max(&self) -> u32 {
        self.fragment_size_max
    }

    /// Looks where the reader is now and checks that `needed` bytes are free.
    ///
    /// Not inlined, so that the claim that finds space stays short.
    #[inline(never)]
    fn refresh(&mut self, needed: u32) -> Result<(), ClaimError> {
        let capacity = u64::from(self.region.capacity());
        // Acquire: the reader is done with the bytes that it gave back.
        let consumed = self.region.header().reader.position.load(Ordering::Acquire);
        // Going forward, the reader shrinks what is not yet consumed but never
        // below nothing of what is published; a wrong position is a larger or
        // an odd one.
        let unread = self.published.wrapping_sub(consumed);
        let unread_before = self
            .published
            .wrapping_sub(self.limit.wrapping_sub(capacity));
        if unread > unread_before || !unread.is_multiple_of(u64::from(super::WORD)) {
            return Err(ClaimError::Corrupt(Corrupt::Position {
                peer: consumed,
                own: self.published,
                capacity: self.region.capacity(),
            }));
        }
        self.limit = consumed.wrapping_add(capacity);
        let free = self.free();
        if needed > free {
            return Err(ClaimError::Full { needed, free });
        }
        Ok(())
    }

    /// Fills the area from `offset` to its end, `size` bytes.
    #[cold]
    fn pad(&mut self, offset: u32, size: u32) {
        let word = word(MARK_PADDING, size - super::WORD);
        // SAFETY: `offset` is a multiple of 8 below the capacity, and the claim
        // found `size` bytes from it free.
        unsafe { self.region.set_word(offset, word) }
    }

    #[cold]
    fn oversize(&self, size: usize) -> ClaimError {
        ClaimError::Oversize {
            size,
            size_max: self.fragment_size_max,
        }
    }

    #[inline]
    fn store_position(&mut self) {
        self.published = self.committed;
        let position = &self.region.header().writer.position;
        // Release publishes the records' bytes along with the position.
        let release = Planted::RingRelaxedPublish.relaxes(Ordering::Release);
        position.store(self.committed, release);
    }

    fn leave(&mut self) {
        self.publish_quietly();
        let closed = &self.region.header().writer.closed;
        closed.store(1, Ordering::Release);
    }
}

impl Drop for Writer {
    /// Publishes what is committed and leaves. A sleeping reader is not woken:
    /// see [`Writer::close`].
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("committed", &self.committed)
            .field("published", &self.published)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// Space for one fragment. Dropped without [`Claim::commit`], it is given back
/// as if it had never been claimed.
#[must_use = "a claim that is not committed is given back"]
pub struct Claim<'a> {
    bytes: &'a mut [u8],
    committed: &'a mut u64,
    committed_after: u64,
    _writing: Writing,
}

impl Claim<'_> {
    /// Makes the fragment part of the batch that the next
    /// [`Writer::publish`] shows.
    #[inline]
    pub fn commit(self) {
        *self.committed = self.committed_after;
    }
}

impl Deref for Claim<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for Claim<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("len", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// A fragment found no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// The reader has yet to give space back.
    Full {
        /// Bytes the record takes, with its word and the padding before it.
        needed: u32,
        /// Bytes that are free.
        free: u32,
    },
    /// The fragment never fits; split it.
    Oversize {
        /// Bytes of the fragment.
        size: usize,
        /// Bytes of the largest fragment that fits.
        size_max: u32,
    },
    /// The reader's position is wrong.
    Corrupt(Corrupt),
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClaimError::Full { needed, free } => write!(
                f,
                "ring full: the record needs {needed} bytes, {free} are free"
            ),
            ClaimError::Oversize { size, size_max } => write!(
                f,
                "fragment of {size} bytes does not fit a ring whose fragments have at most {size_max}; split it"
            ),
            ClaimError::Corrupt(corrupt) => corrupt.fmt(f),
        }
    }
}

impl Error for ClaimError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ClaimError::Corrupt(corrupt) => Some(corrupt),
            ClaimError::Full { .. } | ClaimError::Oversize { .. } => None,
        }
    }
}
