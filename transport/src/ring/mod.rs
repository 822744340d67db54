//! The one seam between the driver and the kernel: what a shard asks of its sockets and
//! files, and the facts that come back.
//!
//! Cast: a *socket* sits in a *slot*; a [`Slot`] is an index and a generation, so that
//! a fact about a former tenant is recognised. *Operations* are begun on a slot
//! (receive, send, wait until writable, cancel) and each ends in a last
//! [`Completion`]. A [`Buffer`] is lent with received bytes and given back. A *file* sits
//! in a [`FileSlot`], and what is written to it is durable when its completion comes.
//! [`Transfers`] are no part of a ring: a thread beside it has them for reads and writes that
//! it waits for.
//!
//! ```text
//!        driver (connection.rs)                    ring (io_uring, epoll, simulated)
//!   attach, arm_receive, send, cancel  ------->   begins operations, no answer yet
//!   attach_file, write
//!   turn(wait)                         ------->   submits once, lets the kernel work
//!   next() until None                  <-------   facts, in any order
//! ```
//!
//! Laws, equal for every ring, so that the driver handles them once:
//! 1. A result may be any legal one: a send may be short or take nothing
//!    (`EAGAIN`), a receive may end at any time (`more` false), be refused for want
//!    of buffers (`ENOBUFS`) or be cancelled (`ECANCELED`); a cancel may come too
//!    late, and the operation then succeeds.
//! 2. Between begin and last completion an operation counts as in flight. A slot has
//!    at most one receive, one send and one wait for room in flight, each begun only
//!    after the last one's end.
//! 3. A slot is detached only when nothing is in flight on it.
//! 4. Bytes to be sent or written stay where they are until the completion is taken.
//! 5. Only the thread that made a ring uses it.
//! 6. A write consists of whole blocks at multiples of [`BLOCK_SIZE`], in memory as in the
//!    file, and lies within the file. A file has at most [`WRITES_PER_FILE_MAX`] writes in
//!    flight, which end in any order; it is detached when it has none.
//! 7. A write may be short, and ends anywhere then; what it took is on the device. One
//!    that failed may have left anything where it was to write, and is never made again.
//!    A write cannot be cancelled: a ring that is dropped waits for it.
//!
//! What a ring does not do: decide. It neither re-arms nor retries nor closes.
//!
//! [`BLOCK_SIZE`]: crate::disk::BLOCK_SIZE

mod aside;
mod buffers;
mod direct;
pub mod epoll;
mod files;
pub mod io_uring;
pub(crate) mod outgoing;
mod refusal;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
#[cfg(test)]
mod tests;
pub(crate) mod transfers;

use std::net::Shutdown;
use std::time::Duration;

use courser_core::limits;

pub(crate) use direct::say_farewell;
pub use outgoing::begin_write;
pub use refusal::{Cause, IoUringRefused, Seen};
pub use transfers::Transfers;

use crate::doorbell::Doorbell;
use crate::sys::Errno;

/// The most pieces that one send takes.
pub const PIECES_MAX: usize = 64;

/// The most pieces that one write takes: the largest batch of a journal, in chunks of a
/// shard's memory.
pub const WRITE_PIECES_MAX: usize = 128;

const _: () = assert!(
    limits::BATCH_SIZE_MAX as usize <= WRITE_PIECES_MAX * limits::CHUNK_SIZE as usize,
    "one write takes the largest batch"
);

/// Places for files in one ring: of a journal the file that is written, the one before it
/// and the next one, and a checkpoint.
pub const FILES_MAX: u32 = 16;

/// Writes that one file may have in flight: while one is flushed the next is under way.
pub const WRITES_PER_FILE_MAX: u32 = 2;

/// Writes that can be in flight at a time.
const WRITES_MAX: usize = (FILES_MAX * WRITES_PER_FILE_MAX) as usize;

/// A place for a file: below [`FILES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileSlot(pub u32);

impl FileSlot {
    /// The place as an index into a table.
    fn position(self) -> usize {
        self.0 as usize
    }
}

/// One tenancy of a place for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Which place: below the ring's number of slots, and below
    /// [`Slot::INDEX_LIMIT`].
    pub index: u32,
    /// Which tenant of it. Wraps.
    pub generation: u32,
}

impl Slot {
    /// One more than the largest index: it shares a word with kind and generation.
    pub const INDEX_LIMIT: u32 = 1 << 24;

    /// The same place for its next tenant.
    #[must_use]
    pub fn next_tenant(self) -> Self {
        Self {
            index: self.index,
            generation: self.generation.wrapping_add(1),
        }
    }

    /// The place as an index into a table.
    pub(crate) fn position(self) -> usize {
        self.index as usize
    }
}

/// Received bytes on loan from a ring; see [`Ring::bytes`] and [`Ring::give_back`].
///
/// Deliberately neither `Clone` nor `Copy`: while it exists nobody else writes the
/// bytes, and giving it back uses it up.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to its ring"]
pub struct Buffer {
    number: u16,
    length: u32,
}

impl Buffer {
    /// How many bytes were received into it; at least one.
    pub fn length(&self) -> usize {
        self.length as usize
    }
}

/// What a receive brought.
#[derive(Debug)]
pub enum Received {
    /// Bytes, in the order of the stream.
    Bytes(Buffer),
    /// The peer sends no more.
    End,
    /// Nothing: `ENOBUFS` if no buffer was free, `ECANCELED` if it was cancelled,
    /// otherwise the connection is lost.
    Failed(Errno),
}

/// A fact from the kernel about one operation.
#[derive(Debug)]
pub enum Completion {
    /// Of a receive. Without `more` the receive is over and may be armed again.
    Received {
        /// The socket.
        slot: Slot,
        /// What came.
        received: Received,
        /// Whether the receive goes on.
        more: bool,
    },
    /// A send is over: so many bytes were taken (fewer than given is legal).
    Sent {
        /// The socket.
        slot: Slot,
        /// Bytes taken, at least one, or why none were.
        result: Result<u32, Errno>,
    },
    /// A wait for room to send is over, for whatever reason; a send tells more.
    Writable {
        /// The socket.
        slot: Slot,
    },
    /// A cancellation was carried out. The operations it ended report for
    /// themselves, before or after this.
    Cancelled {
        /// The socket.
        slot: Slot,
    },
    /// A write is over: so many bytes were taken (fewer than given is legal) and are on
    /// the device.
    Written {
        /// The file.
        file: FileSlot,
        /// Whose it was: what it was begun with.
        token: u64,
        /// Bytes taken, or why it is not known what is on the device now.
        result: Result<u32, Errno>,
    },
    /// The doorbell was rung.
    Woken,
}

/// How a turn treats the time until the next completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Do not wait; let the kernel run what is due.
    No,
    /// Sleep until a completion or the doorbell, at most so long (`None`: without
    /// end).
    AtMost(Option<Duration>),
}

/// What a ring did since it last answered this: its system calls, but for those of
/// attaching, watching, shutting down and detaching sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Calls that hand over to and collect from the kernel for all sockets at once.
    pub enters: u32,
    /// Receives from one socket by a call of their own that brought something: bytes,
    /// the end or an error.
    pub direct_receives: u32,
    /// Such receives that found nothing.
    pub direct_polls: u32,
    /// Sends to one socket by a call of their own.
    pub direct_sends: u32,
    /// Changes from ring mode to direct mode.
    pub direct_begun: u32,
    /// Changes from direct mode to ring mode.
    pub direct_ended: u32,
    /// Turns after which the kernel still kept completions aside for want of room.
    pub overflows: u32,
}

/// A turn that the kernel refused in a way that no later turn can mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel refused {operation} with {errno}; the shard cannot go on")]
pub struct RingFault {
    /// The system call.
    pub operation: &'static str,
    /// Its answer.
    pub errno: Errno,
}

/// A socket or a file that could not be attached, back in its owner's hands.
#[derive(Debug, thiserror::Error)]
#[error("a descriptor cannot be attached: {errno}")]
pub struct AttachRefused<S> {
    /// The socket or the file, unchanged.
    pub socket: S,
    /// Why.
    pub errno: Errno,
}

/// How large a ring is. Everything in it is allocated when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize {
    /// Sockets at the same time.
    pub slots: u32,
    /// Receive buffers that the kernel can fill within one turn; rounded up to a
    /// power of two, at most 32,768.
    pub buffers: u16,
    /// Bytes of one receive buffer; rounded up to whole pages.
    pub buffer_size: u32,
}

impl RingSize {
    /// Of a ring that has its bell and nothing else.
    pub(crate) const WITHOUT_SOCKETS: Self = Self {
        slots: 0,
        buffers: 1,
        buffer_size: 4096,
    };

    /// The same for a ring that fills one buffer at a time, and gets it back before the
    /// next: few, and as large as a second-level cache likes them.
    #[must_use]
    pub fn one_at_a_time(self) -> Self {
        Self {
            buffers: 16,
            buffer_size: 64 * 1024,
            ..self
        }
    }
}

impl Default for RingSize {
    /// 4 MiB of buffers of 16 KiB: a piece stays in a second-level cache while it is
    /// worked on, and 256 connections can be heard in one turn.
    fn default() -> Self {
        Self {
            slots: 10_000,
            buffers: 256,
            buffer_size: 16 * 1024,
        }
    }
}

/// What a shard asks of its sockets and files. See the laws of [this module](self).
pub trait Ring {
    /// A connected stream: a descriptor, or an end of a simulated one.
    type Socket;

    /// A file that is open for durable writes, or a simulated one.
    type File;

    /// Takes a connected socket into a free slot. One system call.
    fn attach(
        &mut self,
        slot: Slot,
        socket: Self::Socket,
    ) -> Result<(), AttachRefused<Self::Socket>>;

    /// Begins to receive: completions follow until one says that there is no more.
    fn arm_receive(&mut self, slot: Slot);

    /// Begins to send the pieces (1 to [`PIECES_MAX`], in order). Never waits for
    /// room: takes what fits now.
    ///
    /// # Safety
    /// The bytes stay readable and unchanged until the completion of this send has
    /// been taken from [`Ring::next`], or the ring has been dropped.
    unsafe fn send(&mut self, slot: Slot, pieces: &[&[u8]]);

    /// Begins to wait until there is room to send, or the connection is lost.
    fn arm_writable(&mut self, slot: Slot);

    /// Begins to end everything in flight on the slot.
    fn cancel(&mut self, slot: Slot);

    /// Ends our direction of the stream, or both, now, so that the peer sees it. No
    /// completion of its own. One system call.
    fn shutdown(&mut self, slot: Slot, which: Shutdown);

    /// Says a last word to a socket that has no slot, as far as it takes it at once,
    /// and ends it. A few system calls.
    fn turn_away(socket: Self::Socket, farewell: &[u8]);

    /// Gives the socket of a slot back. One system call.
    fn detach(&mut self, slot: Slot) -> Self::Socket;

    /// Takes a file into a free place. May start a thread.
    fn attach_file(
        &mut self,
        slot: FileSlot,
        file: Self::File,
    ) -> Result<(), AttachRefused<Self::File>>;

    /// Begins to write the pieces (1 to [`WRITE_PIECES_MAX`], in order) at a position of
    /// the file; durable when the completion comes. The token comes back with it.
    ///
    /// # Panics
    /// If the write breaks the sixth law.
    ///
    /// # Safety
    /// The bytes stay readable and unchanged until the completion of this write has been
    /// taken from [`Ring::next`], or the ring has been dropped.
    unsafe fn write(&mut self, slot: FileSlot, position: u64, pieces: &[&[u8]], token: u64);

    /// Gives the file of a place back.
    fn detach_file(&mut self, slot: FileSlot) -> Self::File;

    /// Hands the kernel everything begun since the last turn, in one system call, and
    /// collects completions. Answers what was done since the last turn, it included.
    fn turn(&mut self, wait: Wait) -> Result<Calls, RingFault>;

    /// The next fact of this turn.
    fn next(&mut self) -> Option<Completion>;

    /// The bytes in a buffer of this ring.
    fn bytes(&self, buffer: &Buffer) -> &[u8];

    /// Ends the loan. The kernel may fill the buffer from the next turn on.
    fn give_back(&mut self, buffer: Buffer);

    /// The bell that ends a sleep of this ring.
    fn doorbell(&self) -> &Doorbell;

    /// How many sockets fit.
    fn slots(&self) -> u32;

    /// What it is and which features it runs with, for the start's report.
    fn description(&self) -> String;
}
