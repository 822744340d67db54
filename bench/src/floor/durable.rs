//! The floor of a durable send: one block of 4 KiB, or as many as a batch has, on the
//! device when it returns.
//!
//! The file is made beforehand and every block of it written with zeros, so that a write
//! changes no metadata; writes follow one another in it, from the front again after the
//! last. Two ways, side by side: past the page cache with a flush in the same
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

/// Bytes of a block, the least that a write takes.
pub const BLOCK_BYTES: u32 = 4096;

const _: () = assert!(BLOCK_BYTES as usize == PAGE_BYTES);

/// Bytes of a file: more than what a device writes between two slices.
const FILE_BYTES: u64 = 16 << 20;

/// So many writes of any size it takes.
const WRITES_MIN: u64 = 8;

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
    /// Bytes of one write.
    bytes: u32,
    /// How many of them the file takes.
    writes: u64,
    /// The next one's place among them.
    next: u64,
    /// Removed when it goes.
    file: Temporary,
}

enum Writer {
    Direct(Box<BlockWriter>),
    Cached { file: File, blocks: PageBuffer },
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
    /// Makes a file there and writes all of it; a write is one block.
    ///
    /// # Errors
    /// If the file cannot be made, and if the machine does not offer that kind; then
    /// [`BenchError::is_unsupported`] says so.
    pub fn start(kind: DurableKind, directory: &Path) -> Result<Self, BenchError> {
        Self::start_of(kind, directory, BLOCK_BYTES)
    }

    /// As [`Self::start`]; a write takes so many bytes in whole blocks.
    ///
    /// # Errors
    /// As [`Self::start`].
    ///
    /// # Panics
    /// If they are none, or not whole blocks.
    pub fn start_of(kind: DurableKind, directory: &Path, bytes: u32) -> Result<Self, BenchError> {
        assert!(
            bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES),
            "a write has whole blocks"
        );
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
        let writes = (FILE_BYTES / u64::from(bytes)).max(WRITES_MIN);
        let zeros = vec![0; bytes as usize];
        for write in 0..writes {
            file.write_all_at(&zeros, write * u64::from(bytes))
                .map_err(BenchError::file("write", path))?;
        }
        file.sync_all().map_err(BenchError::file("flush", path))?;
        let writer = match kind {
            DurableKind::Direct => {
                Writer::Direct(Box::new(BlockWriter::open(path, bytes as usize)?))
            }
            DurableKind::Cached => Writer::Cached {
                file,
                blocks: PageBuffer::new(bytes as usize),
            },
        };
        Ok(Self {
            kind,
            writer,
            bytes,
            writes,
            next: 0,
            file: temporary,
        })
    }

    /// How it writes.
    #[must_use]
    pub fn kind(&self) -> DurableKind {
        self.kind
    }

    /// Bytes of one write.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Writes for about so long, one at a time; how long each took.
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
        let position = self.next * u64::from(self.bytes);
        self.next = (self.next + 1) % self.writes;
        match &mut self.writer {
            Writer::Direct(writer) => writer.write(position),
            Writer::Cached { file, blocks } => {
                for block in blocks.chunks_exact_mut(PAGE_BYTES) {
                    block[..8].copy_from_slice(&position.to_le_bytes());
                }
                file.write_all_at(blocks, position)
                    .and_then(|()| file.sync_data())
                    .map_err(BenchError::file("write", &self.file.0))
            }
        }
    }
}
