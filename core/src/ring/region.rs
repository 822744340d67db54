//! The memory of a ring: one header page, then the record area.
//!
//! ```text
//!        0  writer   position: published, closed      written by the writer
//!      128  reader   position: consumed, closed       written by the reader
//!      256  wake word of the reader                   set by the reader, taken by the writer
//!      384  wake word of the writer                   set by the writer, taken by the reader
//!     4096  record area, a power of two of bytes
//! ```
//!
//! Everything in it is found by its distance from the start, and nothing in it
//! is a pointer, so two processes may map it at different addresses. The
//! capacity is not in it: each end is told the capacity by whoever made the
//! region, and so a peer has no word with which to change it.
//!
//! All unsafe code of the ring is in this file or calls one of its four
//! unsafe functions. Under `cfg(loom)` the atomics are loom's, and every eight
//! bytes of the record area have a loom cell beside them that reports an
//! access which the orderings do not cover.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::size_of;
use std::ptr::NonNull;

use crossbeam_utils::CachePadded;

use super::wake::WakeWord;
use crate::sync::{Arc, AtomicU32, AtomicU64};
#[cfg(loom)]
use crate::sync::{ConstPtr, MutPtr, UnsafeCell};

/// Bytes from the start of the region to its record area: one page, so that
/// the record area is page-aligned too.
const HEADER_SIZE: usize = 4096;
const REGION_ALIGN: usize = 4096;

/// Alignment of records, and the size of the word each begins with.
pub(super) const WORD: u32 = 8;

/// What one end tells the other, on a cache line that only it writes.
pub(super) struct End {
    /// The writer's: end of the published records. The reader's: end of the
    /// consumed ones. Written with Release by the owner, which publishes the
    /// bytes written (or given back) before it; read with Acquire by the peer.
    pub(super) position: AtomicU64,
    /// 1 once the owner has gone. Written last and with Release, so a peer that
    /// reads 1 with Acquire then sees the owner's last position.
    pub(super) closed: AtomicU32,
}

/// The words both ends share; one cache line for each thread that writes.
///
/// The wake words have lines of their own: the peer reads one on every publish
/// and finds it unchanged in its cache until its owner really goes to sleep.
#[repr(C)]
pub(super) struct Header {
    pub(super) writer: CachePadded<End>,
    pub(super) reader: CachePadded<End>,
    /// The reader sleeps until records come.
    pub(super) reader_wake: CachePadded<WakeWord>,
    /// The writer sleeps until space comes back.
    pub(super) writer_wake: CachePadded<WakeWord>,
}

const _: () = assert!(size_of::<Header>() <= HEADER_SIZE);

/// A view of the region, one for each end; the last one to go frees it.
pub(super) struct Region {
    base: NonNull<u8>,
    capacity: u32,
    allocation: Arc<Allocation>,
}

// SAFETY: a Region refers to its memory by pointer only to keep it
// position-independent. The header is atomics; the record area is reached
// through the unsafe functions below, whose contract keeps the two ends apart.
// The allocation is freed by whichever end drops last, which Arc orders.
unsafe impl Send for Region {}

impl Region {
    /// Allocates a zeroed region whose two positions are `position`.
    ///
    /// `capacity` is a power of two, at least two words.
    pub(super) fn allocate(capacity: u32, position: u64) -> Region {
        debug_assert!(capacity.is_power_of_two() && capacity >= 2 * WORD);
        let layout = Layout::from_size_align(HEADER_SIZE + capacity as usize, REGION_ALIGN)
            .expect("a page and at most a GiB are within isize::MAX");
        // SAFETY: the layout is at least a page and so not empty.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        let end = || {
            CachePadded::new(End {
                position: AtomicU64::new(position),
                closed: AtomicU32::new(0),
            })
        };
        let header = Header {
            writer: end(),
            reader: end(),
            reader_wake: CachePadded::new(WakeWord::awake()),
            writer_wake: CachePadded::new(WakeWord::awake()),
        };
        // SAFETY: the allocation begins with a page for the header, is aligned
        // to a page, and nobody else knows it yet.
        unsafe { base.cast::<Header>().write(header) };
        Region {
            base,
            capacity,
            allocation: Arc::new(Allocation {
                base,
                layout,
                #[cfg(loom)]
                cells: (0..capacity / WORD).map(|_| UnsafeCell::new(())).collect(),
            }),
        }
    }

    /// The view for the other end. Not `Clone`: there are two ends, no more.
    pub(super) fn second_view(&self) -> Region {
        Region {
            base: self.base,
            capacity: self.capacity,
            allocation: Arc::clone(&self.allocation),
        }
    }

    /// Bytes of the record area, a power of two.
    #[inline]
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Distance of `position` from the start of the record area.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked below the capacity, a u32"
    )]
    pub(super) fn offset(&self, position: u64) -> u32 {
        (position as u32) & (self.capacity - 1)
    }

    #[inline]
    pub(super) fn header(&self) -> &Header {
        // SAFETY: `allocate` wrote a Header at the start, `allocation` keeps it
        // alive for as long as `self`, and a Header is changed only through
        // atomics.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// The word at `offset`, in front of a record.
    ///
    /// # Safety
    /// `offset` is a multiple of 8 below the capacity, and the peer, if it
    /// keeps to the protocol, does not write there.
    #[inline]
    pub(super) unsafe fn word(&self, offset: u32) -> u64 {
        debug_assert!(offset.is_multiple_of(WORD) && offset < self.capacity);
        #[cfg(loom)]
        let _reading = self.allocation.reading(offset, WORD);
        // SAFETY: in bounds and aligned by contract. Volatile, so that the
        // value that is validated is the value that is used, even when a peer
        // that breaks the protocol rewrites it meanwhile.
        unsafe { self.at(offset).cast::<u64>().read_volatile() }
    }

    /// Writes the word at `offset`.
    ///
    /// # Safety
    /// `offset` is a multiple of 8 below the capacity, and inside space that is
    /// the writer's and not yet published.
    #[inline]
    pub(super) unsafe fn set_word(&self, offset: u32, word: u64) {
        debug_assert!(offset.is_multiple_of(WORD) && offset < self.capacity);
        #[cfg(loom)]
        let _writing = self.allocation.writing(offset, WORD);
        // SAFETY: in bounds, aligned and ours by contract.
        unsafe { self.at(offset).cast::<u64>().write(word) }
    }

    /// The `len` bytes from `offset`, to be read.
    ///
    /// # Safety
    /// `offset + len` is within the capacity, and the range is published and
    /// not given back for as long as the result lives.
    #[inline]
    pub(super) unsafe fn bytes(&self, offset: u32, len: u32) -> (&[u8], Reading) {
        debug_assert!(u64::from(offset) + u64::from(len) <= u64::from(self.capacity));
        let reading = Reading {
            #[cfg(loom)]
            _cells: self.allocation.reading(offset, len),
        };
        // SAFETY: in bounds by contract, zeroed at allocation and so always
        // initialised, and not written while it is published.
        let bytes =
            unsafe { NonNull::slice_from_raw_parts(self.at(offset), len as usize).as_ref() };
        (bytes, reading)
    }

    /// The `len` bytes from `offset`, to be written.
    ///
    /// # Safety
    /// `offset + len` is within the capacity, and the range is the writer's,
    /// not yet published, and not handed out a second time while the result
    /// lives.
    #[inline]
    #[expect(
        clippy::mut_from_ref,
        reason = "the ring hands a range to one end at a time; the contract says so"
    )]
    pub(super) unsafe fn bytes_mut(&self, offset: u32, len: u32) -> (&mut [u8], Writing) {
        debug_assert!(u64::from(offset) + u64::from(len) <= u64::from(self.capacity));
        let writing = Writing {
            #[cfg(loom)]
            _cells: self.allocation.writing(offset, len),
        };
        // SAFETY: in bounds and exclusive by contract, initialised as above.
        let bytes =
            unsafe { NonNull::slice_from_raw_parts(self.at(offset), len as usize).as_mut() };
        (bytes, writing)
    }

    /// # Safety
    /// `offset` is at most the capacity.
    #[inline]
    unsafe fn at(&self, offset: u32) -> NonNull<u8> {
        // SAFETY: header and record area are one allocation, and `offset` does
        // not leave it by contract.
        unsafe { self.base.add(HEADER_SIZE + offset as usize) }
    }
}

/// Lives as long as a read of the record area; loom's cells look at it.
pub(super) struct Reading {
    #[cfg(loom)]
    _cells: Vec<ConstPtr<()>>,
}

/// Lives as long as a write to the record area; loom's cells look at it.
pub(super) struct Writing {
    #[cfg(loom)]
    _cells: Vec<MutPtr<()>>,
}

/// The owner of the memory.
struct Allocation {
    base: NonNull<u8>,
    layout: Layout,
    #[cfg(loom)]
    cells: Vec<UnsafeCell<()>>,
}

// SAFETY: the owner only frees. Under loom it also holds the cells, which both
// threads use in order to have loom check exactly that use.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: both views have gone (each holds an Arc of this), `base` came
        // from `alloc_zeroed` with this layout and begins with a Header.
        unsafe {
            self.base.cast::<Header>().drop_in_place();
            dealloc(self.base.as_ptr(), self.layout);
        }
    }
}

#[cfg(loom)]
impl Allocation {
    fn reading(&self, offset: u32, len: u32) -> Vec<ConstPtr<()>> {
        self.range(offset, len)
            .iter()
            .map(UnsafeCell::get)
            .collect()
    }

    fn writing(&self, offset: u32, len: u32) -> Vec<MutPtr<()>> {
        self.range(offset, len)
            .iter()
            .map(UnsafeCell::get_mut)
            .collect()
    }

    fn range(&self, offset: u32, len: u32) -> &[UnsafeCell<()>] {
        let first = offset / WORD;
        let last = (offset + len).div_ceil(WORD);
        &self.cells[first as usize..last as usize]
    }
}
