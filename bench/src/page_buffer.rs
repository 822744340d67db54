//! Bytes that begin on a page.
//!
//! A copy whose destination lies a few bytes ahead of its source modulo 4096
//! can be thirty times slower, in user space and in the kernel's copy to user
//! space alike, and every large malloc starts at offset 16. A floor that
//! suffers from that would flatter whatever is compared with it.

use std::ops::{Deref, DerefMut};

/// The size of a page on every machine this runs on. A larger page would only
/// make the alignment weaker, never wrong.
pub const PAGE_BYTES: usize = 4096;

/// A zeroed buffer of fixed length that begins on a page. Its address never
/// changes, also when the value is moved.
#[derive(Debug)]
pub struct PageBuffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl PageBuffer {
    /// Allocates `length` zeroed bytes. One allocation, one page longer.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let bytes = vec![0; length + PAGE_BYTES];
        let start = bytes.as_ptr().align_offset(PAGE_BYTES);
        Self {
            bytes,
            start,
            length,
        }
    }

    /// Gives the memory up for the rest of the process's life. For memory that
    /// the kernel may still write to.
    pub(crate) fn leak(self) {
        self.bytes.leak();
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_buffer_begins_on_a_page_and_has_the_length_asked_for() {
        for length in [1, 64, 4096, 70_000] {
            let buffer = PageBuffer::new(length);
            assert_eq!(buffer.as_ptr() as usize % PAGE_BYTES, 0);
            assert_eq!(buffer.len(), length);
        }
    }
}
