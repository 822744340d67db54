//! Both clocks for one reading: the wall clock is carried forward by the steady
//! one and read anew once a second, so a stamp costs one reading.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use courser_core::time::{Monotonic, Now, Wall};

const ANCHOR_AGE_MAX: u64 = 1_000_000_000;

/// A source of [`Now`]s with a zero of its own.
pub(crate) struct Clock {
    zero: Instant,
    /// A wall time, and the steady time at which it was read.
    anchor: (u64, u64),
}

impl Clock {
    pub(crate) fn new(zero: Instant) -> Self {
        let steady = nanos(zero.elapsed());
        Self {
            zero,
            anchor: (wall(), steady),
        }
    }

    /// One reading.
    #[inline]
    pub(crate) fn now(&mut self) -> Now {
        let steady = nanos(self.zero.elapsed());
        let (wall_then, steady_then) = self.anchor;
        let since = steady.saturating_sub(steady_then);
        if since > ANCHOR_AGE_MAX {
            self.anchor = (wall(), steady);
            return self.now_at(steady, self.anchor.0);
        }
        self.now_at(steady, wall_then + since)
    }

    fn now_at(&self, steady: u64, wall: u64) -> Now {
        Now {
            monotonic: Monotonic(steady),
            wall: Wall(wall),
        }
    }
}

/// The steady time of a clock with this zero.
pub(crate) fn steady(zero: Instant) -> Monotonic {
    Monotonic(nanos(zero.elapsed()))
}

fn wall() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, nanos)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_time_follows_the_systems_within_a_second() {
        let mut clock = Clock::new(Instant::now());
        let (before, stamp, after) = (wall(), clock.now().wall.0, wall());
        assert!(stamp + ANCHOR_AGE_MAX >= before && stamp <= after + ANCHOR_AGE_MAX);
        assert!(clock.now().monotonic >= clock.now_at(0, 0).monotonic);
    }
}
