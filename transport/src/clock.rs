//! One reading of both clocks, for one turn.
//!
//! The steady clock is read every time, out of the page that the kernel maps into
//! every process: about 30 ns and no system call. The wall clock is the steady one
//! plus a distance that is measured again every ten milliseconds, which halves the cost
//! and means that a step of the wall clock is followed within that time.

use courser_core::time::{Monotonic, Now, Wall};

use crate::sys;

/// How old the measured distance between the clocks may become, in nanoseconds of the
/// steady one. The two drift apart by less than a microsecond in it.
const REFRESH: u64 = 10_000_000;

/// A thread's reader of the clocks.
#[derive(Debug)]
pub struct Clock {
    /// What is added (wrapping) to the steady clock's value to get the wall clock's.
    distance: u64,
    /// The steady time at which the distance is measured again.
    refresh_at: u64,
}

impl Clock {
    /// A reader that measures at its first use.
    #[must_use]
    pub fn new() -> Self {
        Self {
            distance: 0,
            refresh_at: 0,
        }
    }

    /// Both clocks, now.
    #[inline]
    pub fn now(&mut self) -> Now {
        let monotonic = sys::clock_ns(libc::CLOCK_MONOTONIC);
        if monotonic >= self.refresh_at {
            self.distance = sys::clock_ns(libc::CLOCK_REALTIME).wrapping_sub(monotonic);
            self.refresh_at = monotonic + REFRESH;
        }
        Now {
            monotonic: Monotonic(monotonic),
            wall: Wall(monotonic.wrapping_add(self.distance)),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    #[test]
    fn the_steady_clock_never_goes_back_and_the_wall_clock_tells_the_time() {
        let mut clock = Clock::new();
        let mut last = clock.now();
        let started = last;
        while last.monotonic.since(started.monotonic) < Duration::from_millis(25) {
            let now = clock.now();
            assert!(now.monotonic >= last.monotonic);
            last = now;
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let read = Duration::from_nanos(clock.now().wall.0);
        assert!(wall.abs_diff(read) < Duration::from_millis(100));
    }

    #[test]
    fn a_stale_distance_is_measured_again() {
        let mut clock = Clock::new();
        let now = clock.now();
        // As if the wall clock had stood an hour later when it was last compared.
        clock.distance = clock.distance.wrapping_add(3_600_000_000_000);
        clock.refresh_at = 0;
        let corrected = clock.now();
        assert!(corrected.wall.0 - now.wall.0 < 1_000_000_000);
    }
}
