//! The bytes of one file of a journal, in memory of its own.
//!
//! An allocator would keep what a start reads journals into, and hand it out again as memory
//! that has to be zeroed: a shard's whole arena, which otherwise comes zeroed from the kernel
//! and costs nothing until it is used. So this is mapped, used for one file after another, and
//! goes back at once.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;

use crate::mapping::Mapping;

/// What was read of a file last; nothing at first.
#[derive(Debug, Default)]
pub struct Image {
    mapping: Option<Mapping>,
    length: usize,
}

impl Image {
    /// Reads a file of this size from where it is.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or if the file is shorter; then nothing is here.
    pub(super) fn read(&mut self, file: &mut File, size: usize) -> io::Result<()> {
        self.length = 0;
        let mapping = match self.mapping.take_if(|it| it.length() >= size) {
            Some(mapping) => mapping,
            None => {
                // What is too small goes first.
                self.mapping = None;
                Mapping::map(size)?
            }
        };
        let mapping = self.mapping.insert(mapping);
        file.read_exact(&mut mapping.bytes_mut()[..size])?;
        self.length = size;
        Ok(())
    }
}

impl Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.mapping
            .as_ref()
            .map_or(&[], |mapping| &mapping.bytes()[..self.length])
    }
}
