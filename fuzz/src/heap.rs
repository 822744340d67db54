//! How much memory a case takes: an allocator that counts.
//!
//! Counted for each thread by itself, so that tests may run side by side. A
//! binary that wants [`peak`] to mean something makes [`Counting`] its global
//! allocator; without that nothing is counted and every peak is zero.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread took, less those that it gave back.
    static LIVE: Cell<i64> = const { Cell::new(0) };
    /// The most of them since the last [`peak`] began.
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counting;

/// Runs `story`; the most bytes that it had allocated at once, beside what was
/// there before.
pub fn peak(story: impl FnOnce()) -> u64 {
    let before = LIVE.get();
    PEAK.set(before);
    story();
    u64::try_from(PEAK.get() - before).unwrap_or(0)
}

fn count(more: i64) {
    // A thread that is ending has no counters any more.
    let _gone = LIVE.try_with(|live| {
        live.set(live.get() + more);
        let _gone = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller keeps the promises that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(signed(size) - signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
