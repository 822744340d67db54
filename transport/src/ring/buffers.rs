//! Receive buffers that this process fills itself, as against those that the kernel fills
//! in its own time.

use super::Buffer;
use crate::mapping::Mapping;
use crate::sys::{self, Errno};

/// Page-aligned buffers, the one given back last used first.
///
/// A buffer's number is on the free list, or taken: then nobody else touches its bytes.
#[derive(Debug)]
pub(super) struct Buffers {
    pages: Mapping,
    /// The number of the first one.
    first: u16,
    size: usize,
    free: Vec<u16>,
}

impl Buffers {
    /// So many buffers, at least one, numbered from `first`; sizes are rounded up to
    /// whole pages.
    pub(super) fn new(first: u16, count: u16, size: u32) -> Result<Self, Errno> {
        let size = (size.max(1) as usize).next_multiple_of(sys::page_size());
        let mut pages = Mapping::map(usize::from(count) * size)?;
        pages.touch();
        let last = first.checked_add(count).ok_or(Errno(libc::EINVAL))?;
        Ok(Self {
            pages,
            first,
            size,
            free: (first..last).rev().collect(),
        })
    }

    /// Bytes of one buffer.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether a number is one of these.
    pub(super) fn has(&self, number: u16) -> bool {
        number >= self.first
    }

    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    pub(super) fn put(&mut self, number: u16) {
        debug_assert!(!self.free.contains(&number), "a buffer is given back once");
        self.free.push(number);
    }

    /// The whole of a buffer that was taken and not lent yet.
    pub(super) fn space(&mut self, number: u16) -> &mut [u8] {
        let offset = self.offset(number);
        // SAFETY: the range lies within the mapping (see `offset`), and the number was
        // taken from the free list, so no other slice covers it.
        unsafe {
            std::slice::from_raw_parts_mut(self.pages.start().as_ptr().add(offset), self.size)
        }
    }

    pub(super) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        assert!(buffer.length() <= self.size, "a buffer of this ring");
        let offset = self.offset(buffer.number);
        // SAFETY: the range lies within the mapping (see `offset`); the buffer is on
        // loan, so nothing writes to it before it is given back, which uses it up.
        unsafe {
            std::slice::from_raw_parts(self.pages.start().as_ptr().add(offset), buffer.length())
        }
    }

    fn offset(&self, number: u16) -> usize {
        let offset = usize::from(number - self.first) * self.size;
        assert!(
            offset + self.size <= self.pages.length(),
            "a buffer of this ring"
        );
        offset
    }
}
