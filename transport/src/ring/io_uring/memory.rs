//! The memory that a ring shares with the kernel: what bytes are received into, and how a
//! send or a write is described.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::super::buffers::Buffers;
use super::super::refusal::Cause;
use super::super::{Buffer, FileSlot, PIECES_MAX, RingSize, Slot, WRITE_PIECES_MAX, WRITES_MAX};
use super::kernel::Kernel;
use super::ladder::refused;
use crate::mapping::Mapping;
use crate::sys::{self, Errno};

/// The one group of provided buffers.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Buffers that the kernel takes in turn when bytes arrive, and the ring through which
/// it is given them back. We write entries and the tail; the kernel reads both.
#[derive(Debug)]
pub(super) struct ProvidedBuffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    size: u32,
    /// The tail as far as entries are written; published once per turn.
    tail: u16,
}

impl ProvidedBuffers {
    pub(super) fn register(kernel: &mut Kernel, size: RingSize) -> Result<Self, Cause> {
        const COUNT_MAX: u16 = 1 << 15;
        let count = size
            .buffers
            .clamp(1, COUNT_MAX)
            .checked_next_power_of_two()
            .unwrap_or(COUNT_MAX);
        let bytes = (size.buffer_size.max(1) as usize).next_multiple_of(sys::page_size());
        let mapped = |length| {
            Mapping::map(length).map_err(|errno| Cause::Call {
                call: "mmap",
                errno,
            })
        };
        let entries = mapped(usize::from(count) * size_of::<BufRingEntry>())?;
        let mut memory = mapped(usize::from(count) * bytes)?;
        memory.touch();
        let address = entries.start().as_ptr() as u64;
        // SAFETY: the mapping holds `count` entries and is kept until the ring is gone.
        unsafe { kernel.register_buffers(address, count, BUFFER_GROUP) }.map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EINVAL) => Cause::TooOld {
                    missing: "ring of provided buffers",
                },
                _ => refused("io_uring_register(PBUF_RING)", &error),
            }
        })?;
        let mut buffers = Self {
            entries,
            memory,
            count,
            size: u32::try_from(bytes).unwrap_or(u32::MAX),
            tail: 0,
        };
        (0..count).for_each(|number| buffers.give_back(number));
        buffers.publish();
        Ok(buffers)
    }

    /// Further buffers, numbered on from these, that the kernel does not know.
    pub(super) fn and_more(&self, count: usize, size: u32) -> Result<Buffers, Errno> {
        Buffers::new(self.count, u16::try_from(count).unwrap_or(u16::MAX), size)
    }

    fn start_of(&self, number: u16) -> NonNull<u8> {
        assert!(number < self.count, "a buffer of this ring");
        // SAFETY: the number is below the count (asserted) that the mapping was made for.
        unsafe {
            self.memory
                .start()
                .add(usize::from(number) * self.size as usize)
        }
    }

    pub(super) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        assert!(buffer.length <= self.size, "a buffer of this ring");
        // SAFETY: the range lies within one buffer (asserted here and in `start_of`);
        // it is on loan, so the kernel does not write to it before it is given back,
        // which uses the loan up.
        unsafe {
            std::slice::from_raw_parts(self.start_of(buffer.number).as_ptr(), buffer.length())
        }
    }

    /// Writes the entry that offers a buffer; the kernel sees it when published.
    pub(super) fn give_back(&mut self, number: u16) {
        let address = self.start_of(number).as_ptr() as u64;
        let place = usize::from(self.tail & (self.count - 1));
        // SAFETY: the place is below the count of entries that the mapping was made
        // for. The kernel does not read it before the tail passes it. The reference is
        // to this entry alone; of entry zero, whose last field is the ring's tail, the
        // setters leave that field alone.
        let entry = unsafe {
            self.entries
                .start()
                .cast::<BufRingEntry>()
                .add(place)
                .as_mut()
        };
        entry.set_addr(address);
        entry.set_len(self.size);
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel every entry written so far.
    pub(super) fn publish(&mut self) {
        let base = self.entries.start().cast::<BufRingEntry>();
        // SAFETY: the mapping begins with entry zero, which holds the tail; it is
        // aligned, lives as long as `self`, and is only ever accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base.as_ptr()).cast_mut()) };
        // Release: the entries before the tail that lets the kernel read them.
        tail.store(self.tail, Ordering::Release);
    }
}

/// A message header and its vectors for every slot: one send is in flight per slot, so
/// each has its own, and nothing is allocated to send. Untouched pages cost nothing.
#[derive(Debug)]
pub(super) struct SendHeaders {
    memory: Mapping,
    count: u32,
}

#[repr(C)]
struct SendHeader {
    header: libc::msghdr,
    vectors: [libc::iovec; PIECES_MAX],
}

impl SendHeaders {
    pub(super) fn new(count: u32) -> Result<Self, Errno> {
        Ok(Self {
            memory: Mapping::map(count as usize * size_of::<SendHeader>())?,
            count,
        })
    }

    /// Describes the pieces in the slot's header, and says where that is.
    pub(super) fn fill(&mut self, slot: Slot, pieces: &[&[u8]]) -> NonNull<libc::msghdr> {
        assert!(slot.index < self.count, "a slot of this ring");
        // SAFETY: the index is below the count that the mapping was made for; zeros,
        // which it starts as, are a valid header; the kernel reads it only while a send
        // of this slot is in flight, and none is.
        let entry = unsafe {
            self.memory
                .start()
                .cast::<SendHeader>()
                .add(slot.position())
                .as_mut()
        };
        for (vector, piece) in entry.vectors.iter_mut().zip(pieces) {
            vector.iov_base = piece.as_ptr().cast_mut().cast();
            vector.iov_len = piece.len();
        }
        entry.header.msg_iov = entry.vectors.as_mut_ptr();
        entry.header.msg_iovlen = pieces.len().min(PIECES_MAX);
        NonNull::from(&mut entry.header)
    }
}

/// The writes in flight: whose each is, and the vectors that describe it. Each has a place,
/// of which there are as many as writes can be in flight.
#[derive(Debug)]
pub(super) struct Writes {
    vectors: Mapping,
    places: [WritePlace; WRITES_MAX],
}

#[derive(Debug, Clone, Copy, Default)]
struct WritePlace {
    generation: u32,
    /// Of the write that has it: the file and the token.
    tenant: Option<(FileSlot, u64)>,
}

type Vectors = [libc::iovec; WRITE_PIECES_MAX];

impl Writes {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            vectors: Mapping::map(WRITES_MAX * size_of::<Vectors>())?,
            places: [WritePlace::default(); WRITES_MAX],
        })
    }

    /// Gives a write a place.
    pub(super) fn begin(&mut self, file: FileSlot, token: u64) -> Slot {
        let index = self
            .places
            .iter()
            .position(|place| place.tenant.is_none())
            .expect("there is a place for every write that the files allow");
        let place = &mut self.places[index];
        place.tenant = Some((file, token));
        Slot {
            index: u32::try_from(index).expect("there are few places"),
            generation: place.generation,
        }
    }

    /// Describes the pieces in the place of a write, and says where.
    pub(super) fn fill(&mut self, slot: Slot, pieces: &[&[u8]]) -> NonNull<libc::iovec> {
        assert!(slot.position() < WRITES_MAX, "a place for a write");
        // SAFETY: the mapping was made for so many, the index is below that, and zeros,
        // which it starts as, are valid; the kernel reads it only while a write that has
        // this place is in flight, and that one is not begun yet.
        let vectors = unsafe {
            self.vectors
                .start()
                .cast::<Vectors>()
                .add(slot.position())
                .as_mut()
        };
        for (vector, piece) in vectors.iter_mut().zip(pieces) {
            vector.iov_base = piece.as_ptr().cast_mut().cast();
            vector.iov_len = piece.len();
        }
        NonNull::from(vectors).cast()
    }

    /// Whose the write is that had this place, and has it no more.
    pub(super) fn end(&mut self, slot: Slot) -> Option<(FileSlot, u64)> {
        let place = self.places.get_mut(slot.position())?;
        if place.generation != slot.generation {
            return None;
        }
        place.generation = place.generation.wrapping_add(1);
        place.tenant.take()
    }

    /// The end of a write that may be another one's.
    pub(super) fn end_first(&mut self) -> Option<(FileSlot, u64)> {
        self.places.iter_mut().find_map(|place| place.tenant.take())
    }

    /// Whether none is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(|place| place.tenant.is_none())
    }
}
