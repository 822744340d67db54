//! Writes that wait, on a thread of the ring's own.
//!
//! Into the page cache and flushed from there, a write holds up whoever makes it for as
//! long as the device takes; and without io_uring every write does. So this thread makes
//! them, one after the other, in the order in which they were begun. Each is told with one
//! atomic store, and the ring's bell if its owner sleeps.
//!
//! Invariants:
//! - The ring keeps file and bytes of a write until it was told of its end, or until this
//!   value was dropped: a drop waits for the write that is being made, and makes no other.
//! - A write is made once, whatever comes of it, and its flush only if bytes were taken.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::files::Target;
use super::{Completion, FileSlot, WRITE_PIECES_MAX, WRITES_MAX};
use crate::affinity;
use crate::disk::Way;
use crate::doorbell::Doorbell;
use crate::handoff::{Inbox, Sender, handoff};
use crate::sys::{self, Errno};

/// The ring's end.
#[derive(Debug)]
pub(super) struct Aside {
    /// `None` once the thread is told to stop.
    jobs: Option<SyncSender<Job>>,
    ended: Inbox<Ended>,
    /// Written here, read by the thread before each write. It publishes nothing but itself.
    called_off: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A write to be made.
struct Job {
    slot: FileSlot,
    token: u64,
    descriptor: RawFd,
    way: Way,
    position: u64,
    vectors: [libc::iovec; WRITE_PIECES_MAX],
    count: usize,
}

// SAFETY: the addresses in it are of bytes that nobody changes until the end of the write
// was told (see `Aside::write`), so any thread may read them.
unsafe impl Send for Job {}

#[derive(Debug)]
struct Ended {
    slot: FileSlot,
    token: u64,
    result: Result<u32, Errno>,
}

impl Aside {
    /// A thread that rings this bell.
    pub(super) fn start(doorbell: Doorbell) -> io::Result<Self> {
        let (jobs, asked) = sync_channel(WRITES_MAX);
        let (results, ended) = handoff(doorbell);
        let called_off = Arc::new(AtomicBool::new(false));
        let is_called_off = Arc::clone(&called_off);
        let thread = thread::Builder::new()
            .name(String::from("courser-writes"))
            .spawn(move || {
                affinity::step_aside();
                run(&asked, &results, &is_called_off);
            })?;
        Ok(Self {
            jobs: Some(jobs),
            ended,
            called_off,
            thread: Some(thread),
        })
    }

    /// Has a write made. Its end comes from [`Self::take`], or at once if there is no
    /// thread any more.
    ///
    /// # Safety
    /// The bytes stay readable and unchanged, and the descriptor open, until the end was
    /// taken or this was dropped.
    pub(super) unsafe fn write(
        &mut self,
        slot: FileSlot,
        target: Target,
        position: u64,
        pieces: &[&[u8]],
        token: u64,
    ) -> Result<(), Completion> {
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; WRITE_PIECES_MAX];
        for (vector, piece) in vectors.iter_mut().zip(pieces) {
            vector.iov_base = piece.as_ptr().cast_mut().cast();
            vector.iov_len = piece.len();
        }
        let job = Job {
            slot,
            token,
            descriptor: target.descriptor,
            way: target.way,
            position,
            vectors,
            count: pieces.len().min(WRITE_PIECES_MAX),
        };
        // There is a place for every write that can be in flight.
        let is_taken = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.try_send(job).is_ok());
        if is_taken {
            return Ok(());
        }
        Err(Completion::Written {
            file: slot,
            token,
            result: Err(Errno(libc::EIO)),
        })
    }

    /// The next write that is over.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Completion> {
        let Ended {
            slot,
            token,
            result,
        } = self.ended.take()?;
        Some(Completion::Written {
            file: slot,
            token,
            result,
        })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            debug_assert!(ended.is_ok() || thread::panicking(), "writes do not panic");
        }
    }
}

fn run(asked: &Receiver<Job>, results: &Sender<Ended>, called_off: &AtomicBool) {
    sys::refuse_large_files_quietly();
    while let Ok(job) = asked.recv() {
        if called_off.load(Ordering::Relaxed) {
            return;
        }
        let ended = Ended {
            slot: job.slot,
            token: job.token,
            result: make(&job),
        };
        // There is room: the inbox has more places than writes can be in flight.
        if results.post(ended).is_err() {
            return;
        }
    }
}

fn make(job: &Job) -> Result<u32, Errno> {
    // SAFETY: whoever began the write keeps the file open until it was told of the end.
    let file = unsafe { BorrowedFd::borrow_raw(job.descriptor) };
    let vectors = &job.vectors[..job.count];
    let flags = match job.way {
        Way::Direct => libc::RWF_DSYNC,
        Way::Cached => 0,
    };
    // SAFETY: whoever began the write keeps the bytes until it was told of the end.
    let taken = unsafe { sys::write_vectors(file, vectors, job.position, flags) }?;
    if job.way == Way::Cached && taken > 0 {
        sys::sync_data(file)?;
    }
    // A write of this process is bounded far below 4 GiB.
    Ok(u32::try_from(taken).unwrap_or(u32::MAX))
}
