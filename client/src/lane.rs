//! The way of sends into a link that another thread drives.
//!
//! ```text
//!   thread --- push ---> lane --- drained by the driver ---> line ---> machine
//!              (a ring)                                      (while the window is full)
//! ```
//!
//! A producer that finds its link undriven drives it and hands its message to the
//! machine directly. Only if somebody else does, it puts the message into its
//! lane, knocks, and leaves: the driver looks into every lane on which somebody
//! knocked before it lets the link go.
//!
//! The lane belongs to the producer's handle. Threads that share the handle take
//! turns at it without waiting: one that finds it in use goes the direct way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use courser_core::ring::{ValueReader, ValueWriter, values};
use courser_core::time::Monotonic;

use crate::future::Slot;
use crate::message::Message;
use crate::session::Listener;

/// Sends that a lane holds.
const CAPACITY: u32 = 1024;

/// Names a send to the thread that waits for its outcome: the sequence of one
/// that went the direct way, else a number of its producer with the highest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(pub(crate) u64);

const NUMBERED: u64 = 1 << 63;

/// Who wants to know what became of a send.
pub(crate) enum Who {
    Thread(Ticket),
    Listener(Listener),
    Future(Arc<Slot>),
}

/// A send on its way to the machine.
pub(crate) struct Item {
    pub(crate) message: Message,
    pub(crate) who: Who,
    pub(crate) deadline: Monotonic,
}

/// The producer's end of a lane.
pub(crate) struct Lane {
    writer: Mutex<ValueWriter<Item>>,
    tickets: AtomicU64,
    is_crowded: Arc<AtomicBool>,
}

/// The driver's end of a lane.
pub(crate) struct LaneEnd {
    reader: ValueReader<Item>,
    is_crowded: Arc<AtomicBool>,
}

impl Lane {
    /// Both ends of a new one.
    pub(crate) fn new() -> (Self, LaneEnd) {
        let (writer, reader) = values(CAPACITY);
        let is_crowded = Arc::new(AtomicBool::new(false));
        let lane = Self {
            writer: Mutex::new(writer),
            tickets: AtomicU64::new(NUMBERED),
            is_crowded: Arc::clone(&is_crowded),
        };
        (lane, LaneEnd { reader, is_crowded })
    }

    /// Whether the line behind the lane was too long when the driver looked last:
    /// then a sender waits there instead of filling the lane.
    pub(crate) fn is_crowded(&self) -> bool {
        // Only advice: a sender that misses it is one more in the line.
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// A ticket that no other send has.
    pub(crate) fn ticket(&self) -> Ticket {
        // Only that no two are equal matters.
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    /// Puts a send in, without waiting.
    ///
    /// # Errors
    ///
    /// The send, if the lane is full or another thread is at it.
    pub(crate) fn push(&self, item: Item) -> Result<(), Item> {
        match self.writer.try_lock() {
            Ok(mut writer) => writer.push(item),
            // Poisoned it would be only by a bug; the direct way still goes.
            Err(_) => Err(item),
        }
    }
}

impl LaneEnd {
    /// The oldest send.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        self.reader.pop()
    }

    pub(crate) fn is_empty(&mut self) -> bool {
        self.reader.is_empty()
    }

    /// Says whether the line behind the lane is too long.
    pub(crate) fn set_crowded(&self, is_crowded: bool) {
        self.is_crowded.store(is_crowded, Ordering::Relaxed);
    }
}
