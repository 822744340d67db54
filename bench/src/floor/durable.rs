//! The floor of a durable send: one block of 4 KiB, on the device when it returns.
//!
//! The file is made beforehand and every block of it written with zeros, so that a write
//! changes no metadata; blocks are written one behind the other, from the first again
//! after the last. Two ways, side by side: past the page cache with a flush in the same
//! operation, over io_uring, spinning; and into the page cache with `fdatasync` behind it,
//! as a program does that has neither.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::uring_write::BlockWriter;
use crate::error::BenchError;
use crate::histogram::{Histogram, saturating_ns};
use crate::page_buffer::{PAGE_BYTES, PageBuffer};

/// Bytes that one write takes.
pub const BLOCK_BYTES: u32 = 4096;

const _: () = assert!(BLOCK_BYTES as usize == PAGE_BYTES);

/// Blocks of a file: 16 MiB, larger than what a device writes between two slices.
const BLOCKS: u64 = 4096;

/// How a block becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurableKind {
    /// `O_DIRECT` and `RWF_DSYNC` over io_uring, spinning.
    Direct,
    /// `pwrite` and `fdatasync`.
    Cached,
}

impl DurableKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Cached];
}

impl fmt::Display for DurableKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Direct => "direct",
            Self::Cached => "fdatasync",
        })
    }
}

/// A file of its own in some directory, and a way to write to it.
pub struct DurableFloor {
    kind: DurableKind,
    writer: Writer,
    /// The next block.
    block: u64,
    /// Removed when it goes.
    file: Temporary,
}

enum Writer {
    Direct(Box<BlockWriter>),
    Cached { file: File, block: PageBuffer },
}

/// A file that goes with this.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // A directory that is gone took it along.
        drop(fs::remove_file(&self.0));
    }
}

impl DurableFloor {
    /// Makes a file there and writes all of it.
    ///
    /// # Errors
    /// If the file cannot be made, and if the machine does not offer that kind; then
    /// [`BenchError::is_unsupported`] says so.
    pub fn start(kind: DurableKind, directory: &Path) -> Result<Self, BenchError> {
        /// Written and read to tell files of one process apart: nothing hangs on it.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("courser-floor-{}-{number}", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(BenchError::file("create", &path))?;
        let temporary = Temporary(path);
        let path = &temporary.0;
        let zeros = vec![0; 1 << 20];
        for position in (0..BLOCKS * u64::from(BLOCK_BYTES)).step_by(zeros.len()) {
            file.write_all_at(&zeros, position)
                .map_err(BenchError::file("write", path))?;
        }
        file.sync_all().map_err(BenchError::file("flush", path))?;
        let writer = match kind {
            DurableKind::Direct => Writer::Direct(Box::new(BlockWriter::open(path)?)),
            DurableKind::Cached => Writer::Cached {
                file,
                block: PageBuffer::new(PAGE_BYTES),
            },
        };
        Ok(Self {
            kind,
            writer,
            block: 0,
            file: temporary,
        })
    }

    /// How it writes.
    #[must_use]
    pub fn kind(&self) -> DurableKind {
        self.kind
    }

    /// Writes for about so long, one block at a time; how long each took.
    ///
    /// # Errors
    /// If a write fails.
    pub fn slice(
        &mut self,
        duration: Duration,
        histogram: &mut Histogram,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + duration;
        loop {
            let began = Instant::now();
            if began >= deadline {
                return Ok(());
            }
            self.write()?;
            histogram.record_ns(saturating_ns(began.elapsed()));
        }
    }

    fn write(&mut self) -> Result<(), BenchError> {
        let position = self.block * u64::from(BLOCK_BYTES);
        self.block = (self.block + 1) % BLOCKS;
        match &mut self.writer {
            Writer::Direct(writer) => writer.write(position),
            Writer::Cached { file, block } => {
                block[..8].copy_from_slice(&position.to_le_bytes());
                file.write_all_at(block, position)
                    .and_then(|()| file.sync_data())
                    .map_err(BenchError::file("write", &self.file.0))
            }
        }
    }
}
