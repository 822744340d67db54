//! The echo over io_uring: one multishot receive into a ring of provided
//! buffers, one send at a time, one `io_uring_enter` per turn.
//!
//! ```text
//!   turn:  enter(queued, want, GETEVENTS)     runs deferred work, submits
//!          completions  recv -> scan, give the buffer back, owe replies
//!                       send -> advance
//!          nothing in flight and replies owed -> queue a send
//! ```
//!
//! Busy, every turn enters with `want` 0: with deferred task work only an
//! enter makes progress, and waiting for the flag that announces work costs
//! more than the calls it saves. Blocking, `want` is 1.
//!
//! Invariants: at most one send is in flight, because two may overtake each
//! other; a buffer is given back before the next enter; no memory that the
//! kernel may still use is freed: the end cancels everything, waits for the
//! last completion of both operations, and leaks the buffers if it never comes.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{BufRingEntry, CancelBuilder, Fixed};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter};
use io_uring::{cqueue, opcode, squeue};

use super::frame::{FrameScanner, REPLY_BYTES, Replies};
use super::server::{Served, Site};
use crate::error::BenchError;
use crate::page_buffer::{PAGE_BYTES, PageBuffer};

const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 4096;

const BUFFERS: u16 = 64;
const BUFFER_BYTES: usize = 16 * 1024;
const BUFFER_GROUP: u16 = 0;

/// The connection's slot among the registered descriptors.
const CONNECTION: Fixed = Fixed(0);

const RECEIVE: u64 = 1;
const SEND: u64 = 2;

/// How long the end waits for the last completions.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(1);

pub(super) fn serve_busy(site: &Site) -> Result<Served, BenchError> {
    serve(site, 0)
}

pub(super) fn serve_blocking(site: &Site) -> Result<Served, BenchError> {
    serve(site, 1)
}

/// The ring is made before the server announces itself, so that a machine
/// without io_uring is known at start; it is made on this thread, because only
/// the thread that makes it may enter it.
fn serve(site: &Site, want: usize) -> Result<Served, BenchError> {
    let mut ring = build_ring()?;
    let (mut submitter, submissions, completions) = ring.split();
    submitter
        .register_ring_fd()
        .map_err(failed("register the ring's own descriptor"))?;
    let mut buffers = ProvidedBuffers::new();
    buffers.register(&submitter)?;
    // Not made non-blocking: a receive on such a socket would come back empty
    // instead of waiting in the ring for bytes.
    let Some(connection) = site.accept()? else {
        return Ok(Served::default());
    };
    if want == 0 {
        site.begins_to_spin();
    }
    submitter
        .register_files(&[connection.as_raw_fd()])
        .map_err(failed("register a connection"))?;
    let mut echo = RingEcho {
        submitter,
        submissions,
        completions,
        buffers,
        replies: Replies::new(),
        scanner: FrameScanner::default(),
        receive_armed: false,
        send_in_flight: false,
        sent: 0,
        sending: 0,
        owed: 0,
        ended: false,
        served: Served::default(),
    };
    let outcome = echo.run(site, want);
    let served = echo.served;
    echo.end(&connection);
    outcome.map(|()| served)
}

pub(super) fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> BenchError {
    move |source| BenchError::IoUring { step, source }
}

/// Sets the ring up with all that helps, or without the flag that kernels
/// before 6.6 do not know.
pub(super) fn build_ring() -> Result<IoUring, BenchError> {
    let mut builder = IoUring::builder();
    builder
        .setup_cqsize(COMPLETIONS)
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let plain = builder.clone();
    builder
        .setup_no_sqarray()
        .build(SUBMISSIONS)
        .or_else(|_| plain.build(SUBMISSIONS))
        .map_err(failed("set up a ring"))
}

struct RingEcho<'ring> {
    submitter: Submitter<'ring>,
    submissions: SubmissionQueue<'ring>,
    completions: CompletionQueue<'ring>,
    buffers: ProvidedBuffers,
    replies: Replies,
    scanner: FrameScanner,
    /// A multishot receive is with the kernel, last completion not yet seen.
    receive_armed: bool,
    /// A send is with the kernel.
    send_in_flight: bool,
    /// Bytes of the current batch of replies that have left.
    sent: usize,
    /// Bytes of the current batch of replies; 0 if there is none.
    sending: usize,
    /// Replies not yet in a batch.
    owed: usize,
    /// The peer is done or the connection is gone.
    ended: bool,
    served: Served,
}

impl RingEcho<'_> {
    fn run(&mut self, site: &Site, want: usize) -> Result<(), BenchError> {
        while !self.ended {
            // A blocking server is stopped by its connection, like any sleeper.
            if want == 0 && !site.keep_going() {
                break;
            }
            if !self.receive_armed {
                self.arm_receive()?;
            }
            if !self.send_in_flight {
                self.send_owed()?;
            }
            self.enter(want)?;
            self.reap(site)?;
        }
        Ok(())
    }

    #[inline]
    fn enter(&mut self, want: usize) -> Result<(), BenchError> {
        self.submissions.sync();
        let queued = u32::try_from(self.submissions.len()).unwrap_or(SUBMISSIONS);
        let want = u32::try_from(want).unwrap_or(1);
        // SAFETY: no argument structure is passed, and every queued entry points
        // at memory that lives until its last completion (see `end`).
        let entered = unsafe {
            self.submitter
                .enter::<libc::sigset_t>(queued, want, EnterFlags::GETEVENTS.bits(), None)
        };
        match entered {
            Ok(_) => {}
            // Interrupted, or the completion queue has to be emptied first:
            // both are over after the next reaping.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            Err(source) => return Err(failed("enter")(source)),
        }
        self.completions.sync();
        Ok(())
    }

    #[inline]
    fn reap(&mut self, site: &Site) -> Result<(), BenchError> {
        while let Some(completion) = self.completions.next() {
            match completion.user_data() {
                RECEIVE => self.received(site, &completion)?,
                _ => self.sent(site, &completion)?,
            }
        }
        Ok(())
    }

    #[inline]
    fn received(&mut self, site: &Site, completion: &cqueue::Entry) -> Result<(), BenchError> {
        if !cqueue::more(completion.flags()) {
            self.receive_armed = false;
        }
        let result = completion.result();
        if let Some(buffer) = cqueue::buffer_select(completion.flags()) {
            let bytes = usize::try_from(result).unwrap_or(0);
            let frames = self.scanner.scan(self.buffers.filled(buffer, bytes));
            self.buffers.give_back(buffer);
            let frames = frames?;
            self.served.frames += frames as u64;
            self.owed += frames;
        } else if result == 0 {
            self.ended = true;
        } else if result < 0 && result != -libc::ENOBUFS && result != -libc::EINTR {
            // Out of buffers is no failure: they have been given back by the
            // time the receive is armed again.
            self.failed_operation(site, "receive", result)?;
        }
        Ok(())
    }

    #[inline]
    fn sent(&mut self, site: &Site, completion: &cqueue::Entry) -> Result<(), BenchError> {
        self.send_in_flight = false;
        let result = completion.result();
        match usize::try_from(result) {
            Ok(bytes) => {
                self.sent += bytes;
                if self.sent == self.sending {
                    self.served.replies += (self.sending / REPLY_BYTES) as u64;
                    self.sent = 0;
                    self.sending = 0;
                }
                Ok(())
            }
            Err(_) if result == -libc::EAGAIN || result == -libc::EINTR => Ok(()),
            Err(_) => self.failed_operation(site, "send", result),
        }
    }

    #[cold]
    fn failed_operation(
        &mut self,
        site: &Site,
        step: &'static str,
        result: i32,
    ) -> Result<(), BenchError> {
        self.ended = true;
        let error = std::io::Error::from_raw_os_error(-result);
        if site.is_failure(&error) {
            return Err(failed(step)(error));
        }
        Ok(())
    }

    fn arm_receive(&mut self) -> Result<(), BenchError> {
        let entry = opcode::RecvMulti::new(CONNECTION, BUFFER_GROUP)
            .build()
            .user_data(RECEIVE);
        self.push(&entry)?;
        self.receive_armed = true;
        Ok(())
    }

    #[inline]
    fn send_owed(&mut self) -> Result<(), BenchError> {
        if self.sending == 0 {
            if self.owed == 0 {
                return Ok(());
            }
            let batch = self.owed.min(Replies::AT_ONCE_MAX);
            self.owed -= batch;
            self.sending = batch * REPLY_BYTES;
        }
        let rest = &self.replies.first(Replies::AT_ONCE_MAX)[self.sent..self.sending];
        let length = u32::try_from(rest.len()).expect("a batch of replies is 64 KiB at most");
        let entry = opcode::Send::new(CONNECTION, rest.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
            .build()
            .user_data(SEND);
        self.push(&entry)?;
        self.send_in_flight = true;
        Ok(())
    }

    #[inline]
    fn push(&mut self, entry: &squeue::Entry) -> Result<(), BenchError> {
        // SAFETY: an entry points at most into `replies`, which lives until its
        // last completion (see `end`).
        unsafe { self.submissions.push(entry) }.map_err(|_| BenchError::IoUring {
            step: "queue an operation",
            source: std::io::Error::other("the submission queue is full"),
        })
    }

    /// Takes everything back from the kernel, then frees the memory.
    fn end(mut self, connection: &TcpStream) {
        // Whether there is anything left to shut down does not matter.
        drop(connection.shutdown(std::net::Shutdown::Both));
        let began = Instant::now();
        while (self.receive_armed || self.send_in_flight) && began.elapsed() < DRAIN_WAIT_MAX {
            // Fails if there is nothing to cancel; the completions decide.
            drop(
                self.submitter
                    .register_sync_cancel(None, CancelBuilder::any()),
            );
            if self.enter(0).is_err() {
                break;
            }
            for completion in self.completions.by_ref() {
                match completion.user_data() {
                    RECEIVE => self.receive_armed = cqueue::more(completion.flags()),
                    _ => self.send_in_flight = false,
                }
            }
        }
        if self.receive_armed || self.send_in_flight {
            self.buffers.leak();
            self.replies.leak();
        } else {
            // Nothing reads the ring of buffers any more; forgetting it here
            // only spares the kernel's end of the ring the work.
            drop(self.submitter.unregister_buf_ring(BUFFER_GROUP));
        }
    }
}

/// Buffers that the kernel takes from a ring as bytes arrive, and that come
/// back with a completion.
///
/// The ring is an array of entries in memory shared with the kernel; the field
/// `resv` of the first entry is the tail, written only here and read by the
/// kernel. The kernel's own head is not visible and not needed: there are as
/// many entries as buffers, so the ring cannot run over.
struct ProvidedBuffers {
    ring: PageBuffer,
    pieces: PageBuffer,
    tail: u16,
}

impl ProvidedBuffers {
    fn new() -> Self {
        let mut buffers = Self {
            ring: PageBuffer::new(PAGE_BYTES),
            pieces: PageBuffer::new(usize::from(BUFFERS) * BUFFER_BYTES),
            tail: 0,
        };
        for buffer in 0..BUFFERS {
            buffers.give_back(buffer);
        }
        buffers
    }

    fn register(&mut self, submitter: &Submitter<'_>) -> Result<(), BenchError> {
        // SAFETY: the ring is page-aligned, holds BUFFERS entries, and outlives
        // the io_uring: it is freed after the last completion or never.
        unsafe {
            submitter.register_buf_ring_with_flags(
                self.ring.as_mut_ptr() as u64,
                BUFFERS,
                BUFFER_GROUP,
                0,
            )
        }
        .map_err(failed("register a ring of buffers"))
    }

    /// The bytes that the kernel has written into `buffer`.
    #[inline]
    fn filled(&self, buffer: u16, bytes: usize) -> &[u8] {
        let start = usize::from(buffer) * BUFFER_BYTES;
        &self.pieces[start..start + bytes]
    }

    /// Lets the kernel have `buffer` again.
    #[inline]
    fn give_back(&mut self, buffer: u16) {
        let start = usize::from(buffer) * BUFFER_BYTES;
        let address = self.pieces[start..].as_mut_ptr() as u64;
        let entries = self.ring.as_mut_ptr().cast::<BufRingEntry>();
        let slot = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: BUFFERS entries of 16 bytes fit the page at `entries`, slot is
        // below BUFFERS, and the kernel does not read an entry before the tail
        // has passed it.
        let entry = unsafe { &mut *entries.add(slot) };
        entry.set_addr(address);
        entry.set_len(u32::try_from(BUFFER_BYTES).expect("a buffer is 16 KiB"));
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the base of a zeroed or initialised ring, and the
        // tail is an aligned u16 within its first entry that only this thread
        // writes. Release: the kernel, which loads the tail with acquire, then
        // sees the entry above.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    fn leak(self) {
        self.ring.leak();
        self.pieces.leak();
    }
}

const _: () = assert!(BUFFERS.is_power_of_two());
const _: () = assert!(BUFFERS as usize * size_of::<BufRingEntry>() <= PAGE_BYTES);
