//! Page-aligned memory straight from the kernel.
//!
//! A kernel's copy into a buffer that starts a few bytes into a page can run at a
//! third of its speed, and every large allocation of a common allocator starts
//! there; so whatever bytes are received into is mapped. A mapping also costs
//! nothing until it is touched, is zero at first, and never moves.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::sys::{self, Errno};

/// An anonymous, private, zeroed mapping. Owned: unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process and to this value alone; which thread
// uses or unmaps it makes no difference.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps at least `length` bytes (at least one page).
    pub(crate) fn map(length: usize) -> Result<Self, Errno> {
        let length = length.max(1).next_multiple_of(sys::page_size());
        // SAFETY: a new anonymous mapping at an address of the kernel's choice
        // touches no memory that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::of(&std::io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or(Errno(libc::ENOMEM))?;
        Ok(Self { start, length })
    }

    /// The first byte; a multiple of the page size.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes mapped, a multiple of the page size.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Touches every page once, so that no fault interrupts the first use.
    pub(crate) fn touch(&mut self) {
        for offset in (0..self.length).step_by(sys::page_size()) {
            // SAFETY: the offset lies within the mapping, which is ours alone. The
            // volatile write keeps the store although nothing reads it.
            unsafe { self.start.add(offset).write_volatile(0) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nobody can reach it any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert_eq!(result, 0, "a mapping of ours can be unmapped");
    }
}

/// A mapping whose bytes are read and written here alone: nothing is ever told its address.
#[derive(Debug)]
pub(crate) struct MappedBytes(Mapping);

impl MappedBytes {
    /// Maps at least `length` bytes (at least one page).
    pub(crate) fn map(length: usize) -> Result<Self, Errno> {
        Mapping::map(length).map(Self)
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: all of the mapping is there and initialised, zero at first, and whoever
        // writes to it has a `&mut`: only slices of it are ever given out.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.length) }
    }
}

impl DerefMut for MappedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.length) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_mapping_starts_at_a_page_and_covers_what_was_asked() {
        let mut mapping = Mapping::map(5_000).unwrap();
        assert_eq!(mapping.start().as_ptr() as usize % sys::page_size(), 0);
        assert!(mapping.length() >= 5_000);
        mapping.touch();
        // SAFETY: the last byte of the mapping.
        let last = unsafe { mapping.start().add(mapping.length() - 1).read() };
        assert_eq!(last, 0);
    }

    #[test]
    fn bytes_that_are_mapped_are_zero_until_they_are_written_to() {
        let mut bytes = MappedBytes::map(5_000).unwrap();
        assert!(bytes.len() >= 5_000);
        bytes[4_999] = 7;
        assert_eq!(bytes[4_998..5_000], [0, 7]);
    }
}
