//! A ring of values between two threads: what a ring of bytes cannot carry, as a
//! message that goes back to its sender afterwards.
//!
//! ```text
//!       read                    written            read + capacity
//!     ---+------------------------+-----------------------+---
//!        | values, the reader's   | empty, the writer's   |
//! ```
//!
//! Positions count values for ever and are reduced to a slot by a mask. Each end
//! keeps the peer's position as last seen and loads it again only when that is
//! used up, as in the ring of bytes. A value is published with its own release
//! store: whoever pushes cannot know whether there will be another.
//!
//! Invariants: `read <= written <= read + capacity`; exactly the slots between
//! `read` and `written` hold a value. What is there when both ends are gone is
//! dropped.

use std::fmt;
use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::planted::Planted;
use crate::sync::{Arc, AtomicU64, Ordering, UnsafeCell};

/// Makes a ring with room for `capacity` values, rounded up to a power of two,
/// and hands out its two ends.
///
/// ```
/// use courser_core::ring::values;
///
/// let (mut writer, mut reader) = values(2);
/// writer.push("one".to_owned()).expect("an empty ring has room");
/// writer.push("two".to_owned()).expect("it still has");
/// assert_eq!(writer.push("three".to_owned()), Err("three".to_owned()));
/// assert_eq!(reader.pop().as_deref(), Some("one"));
/// assert_eq!(reader.pop().as_deref(), Some("two"));
/// assert_eq!(reader.pop(), None);
/// ```
pub fn values<T>(capacity: u32) -> (ValueWriter<T>, ValueReader<T>) {
    let capacity = u64::from(capacity.max(1)).next_power_of_two();
    let slots = (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit()));
    let shared = Arc::new(Shared {
        written: CachePadded::new(AtomicU64::new(0)),
        read: CachePadded::new(AtomicU64::new(0)),
        slots: slots.collect(),
    });
    let writer = ValueWriter {
        shared: Arc::clone(&shared),
        written: 0,
        read: 0,
    };
    let reader = ValueReader {
        shared,
        read: 0,
        written: 0,
    };
    (writer, reader)
}

struct Shared<T> {
    /// The writer's. Release publishes the slots before it, the reader acquires.
    written: CachePadded<AtomicU64>,
    /// The reader's. Release gives the slots before it back, the writer acquires.
    read: CachePadded<AtomicU64>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is written by the one writer and read by the one reader, and the
// positions keep them apart; values move between threads, so they have to be Send.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn capacity(&self) -> u64 {
        self.slots.len() as u64
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked below the number of slots, a usize"
    )]
    fn slot(&self, position: u64) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[(position & (self.capacity() - 1)) as usize]
    }

    /// # Safety
    /// The slot at `position` is empty and the caller's.
    #[inline]
    unsafe fn fill(&self, position: u64, value: T) {
        #[cfg(not(loom))]
        // SAFETY: nobody else has the slot, by contract.
        unsafe {
            (*self.slot(position).get()).write(value);
        }
        #[cfg(loom)]
        self.slot(position).with_mut(|slot| {
            // SAFETY: as above.
            unsafe { (*slot).write(value) };
        });
    }

    /// # Safety
    /// The slot at `position` holds a value and is the caller's; it is empty
    /// afterwards.
    #[inline]
    unsafe fn empty(&self, position: u64) -> T {
        #[cfg(not(loom))]
        // SAFETY: filled, and nobody else has the slot, by contract.
        unsafe {
            (*self.slot(position).get()).assume_init_read()
        }
        #[cfg(loom)]
        self.slot(position).with_mut(|slot| {
            // SAFETY: as above.
            unsafe { (*slot).assume_init_read() }
        })
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Both ends are gone, and their last writes seen by whoever drops.
        let (read, written) = (
            self.read.load(Ordering::Relaxed),
            self.written.load(Ordering::Relaxed),
        );
        for position in read..written {
            // SAFETY: between the positions every slot holds a value.
            drop(unsafe { self.empty(position) });
        }
    }
}

/// The end that writes. It may move to another thread but not be shared.
pub struct ValueWriter<T> {
    shared: Arc<Shared<T>>,
    written: u64,
    /// The reader's position as last seen.
    read: u64,
}

impl<T> ValueWriter<T> {
    /// Appends a value and publishes it.
    ///
    /// # Errors
    ///
    /// The value, if there is no room.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.written - self.read == self.shared.capacity() {
            self.read = self.shared.read.load(Ordering::Acquire);
            if self.written - self.read == self.shared.capacity() {
                return Err(value);
            }
        }
        // SAFETY: `written - read` is below the capacity, so the slot was given
        // back or never used, and there is one writer.
        unsafe { self.shared.fill(self.written, value) };
        self.written += 1;
        // Release publishes the value written into the slot.
        let release = Planted::ValuesRelaxedPublish.relaxes(Ordering::Release);
        self.shared.written.store(self.written, release);
        Ok(())
    }
}

impl<T> fmt::Debug for ValueWriter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueWriter")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

/// The end that reads. It may move to another thread but not be shared.
pub struct ValueReader<T> {
    shared: Arc<Shared<T>>,
    read: u64,
    /// The writer's position as last seen.
    written: u64,
}

impl<T> ValueReader<T> {
    /// Takes the oldest value, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: `read` is below `written`, so the slot was filled and published,
        // and there is one reader.
        let value = unsafe { self.shared.empty(self.read) };
        self.read += 1;
        self.shared.read.store(self.read, Ordering::Release);
        Some(value)
    }

    /// Whether there is nothing to take now.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        if self.read == self.written {
            self.written = self.shared.written.load(Ordering::Acquire);
        }
        self.read == self.written
    }
}

impl<T> fmt::Debug for ValueReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueReader")
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_took_is_dropped_once_with_the_ring() {
        let held = std::sync::Arc::new(());
        let (mut writer, mut reader) = values(4);
        for _ in 0..3 {
            assert!(writer.push(std::sync::Arc::clone(&held)).is_ok());
        }
        drop(reader.pop());
        assert_eq!(std::sync::Arc::strong_count(&held), 3);
        drop(reader);
        assert_eq!(
            std::sync::Arc::strong_count(&held),
            3,
            "the writer is there"
        );
        drop(writer);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[test]
    fn values_come_out_in_order_however_often_the_ring_wraps() {
        let (mut writer, mut reader) = values(3);
        let (mut next, mut expected) = (0, 0);
        for round in 0..1000 {
            for _ in 0..round % 5 {
                match writer.push(next) {
                    Ok(()) => next += 1,
                    Err(back) => {
                        assert_eq!((back, next - expected), (next, 4), "full");
                    }
                }
            }
            for _ in 0..round % 4 {
                match reader.pop() {
                    Some(value) => {
                        assert_eq!(value, expected);
                        expected += 1;
                    }
                    None => assert_eq!(next, expected),
                }
            }
        }
        assert!(expected > 1000);
    }
}
