//! Aligned blocks, written past the page cache and flushed by the same operation over
//! io_uring, spinning for its end.
//!
//! Invariants: at most one write is in flight; its bytes are freed after its completion
//! or, if that never comes, never.

use std::fs::{File, OpenOptions};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode};

use super::uring::{build_ring, failed};
use crate::error::BenchError;
use crate::page_buffer::{PAGE_BYTES, PageBuffer};

/// How long a device may take over one write.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(10);

/// A file, and a ring for nothing but writing blocks to it.
pub(super) struct BlockWriter {
    ring: IoUring,
    file: File,
    blocks: ManuallyDrop<PageBuffer>,
    in_flight: bool,
}

impl BlockWriter {
    /// Opens a file that is there, for writes of so many bytes in whole blocks.
    pub(super) fn open(path: &Path, bytes: usize) -> Result<Self, BenchError> {
        debug_assert!(bytes.is_multiple_of(PAGE_BYTES), "writes have whole blocks");
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path);
        let file = opened.map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => BenchError::NoDirectWrites {
                path: path.to_owned(),
            },
            _ => BenchError::file("open", path)(source),
        })?;
        Ok(Self {
            ring: build_ring()?,
            file,
            blocks: ManuallyDrop::new(PageBuffer::new(bytes)),
            in_flight: false,
        })
    }

    /// Writes once and returns when all of it is on the device.
    pub(super) fn write(&mut self, position: u64) -> Result<(), BenchError> {
        // What never changes a device may know already.
        for block in self.blocks.chunks_exact_mut(PAGE_BYTES) {
            block[..8].copy_from_slice(&position.to_le_bytes());
        }
        let length = u32::try_from(self.blocks.len()).expect("a write is small");
        let entry = opcode::Write::new(Fd(self.file.as_raw_fd()), self.blocks.as_ptr(), length)
            .offset(position)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        // SAFETY: the blocks live, and nobody changes them, until the completion was taken.
        unsafe { self.ring.submission().push(&entry) }
            .expect("the queue is empty: one write is in flight at most");
        self.in_flight = true;
        let began = Instant::now();
        let mut queued = 1;
        loop {
            // SAFETY: no argument structure is passed, and the entry points at memory that
            // lives until its completion.
            let entered = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(
                    queued,
                    0,
                    EnterFlags::GETEVENTS.bits(),
                    None,
                )
            };
            match entered {
                Ok(_) => queued = 0,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(source) => return Err(failed("enter")(source)),
            }
            if let Some(completion) = self.ring.completion().next() {
                self.in_flight = false;
                return match usize::try_from(completion.result()) {
                    Ok(written) if written == self.blocks.len() => Ok(()),
                    Ok(_) => Err(failed("write whole blocks")(std::io::Error::from(
                        std::io::ErrorKind::WriteZero,
                    ))),
                    Err(_) => Err(failed("write blocks")(std::io::Error::from_raw_os_error(
                        -completion.result(),
                    ))),
                };
            }
            if began.elapsed() > WRITE_WAIT_MAX {
                return Err(failed("write blocks")(std::io::Error::from(
                    std::io::ErrorKind::TimedOut,
                )));
            }
        }
    }
}

impl Drop for BlockWriter {
    fn drop(&mut self) {
        if !self.in_flight {
            // SAFETY: dropped once, here, and no write names it any more.
            unsafe { ManuallyDrop::drop(&mut self.blocks) };
        }
    }
}
