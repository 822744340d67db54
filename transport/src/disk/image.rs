//! The bytes of one file of a journal, in memory of its own.
//!
//! An allocator would keep what a start reads journals into, and hand it out again as memory
//! that has to be zeroed: a shard's whole arena, which otherwise comes zeroed from the kernel
//! and costs nothing until it is used. So this is mapped, used for one file after another, and
//! goes back at once.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;

use crate::mapping::MappedBytes;

/// What was read of a file last; nothing at first.
#[derive(Debug, Default)]
pub struct Image {
    memory: Option<MappedBytes>,
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
        let memory = match self.memory.take_if(|it| it.len() >= size) {
            Some(memory) => memory,
            None => {
                // What is too small goes first.
                self.memory = None;
                MappedBytes::map(size)?
            }
        };
        let memory = self.memory.insert(memory);
        file.read_exact(&mut memory[..size])?;
        self.length = size;
        Ok(())
    }
}

impl Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory = self.memory.as_ref();
        memory.map_or(&[], |memory| &memory[..self.length])
    }
}
