//! Both clocks for one reading: the wall clock is carried forward by the steady
//! one and read anew once a second, so a stamp costs one reading.
//!
//! A reading still costs as much as encoding a small message. So messages that are
//! enqueued to leave together are stamped with one reading, that of the first.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use courser_core::time::{Monotonic, Now, Wall};

const ANCHOR_AGE_MAX: u64 = 1_000_000_000;
/// The most messages with one reading.
const STAMPS_MAX: u32 = 64;

/// A source of [`Now`]s with a zero of its own.
pub(crate) struct Clock {
    zero: Instant,
    /// A wall time, and the steady time at which it was read.
    anchor: (u64, u64),
    /// The reading of the messages that are being gathered.
    stamp: Now,
    /// How many more may have it.
    stamps_left: u32,
}

impl Clock {
    pub(crate) fn new(zero: Instant) -> Self {
        let steady = nanos(zero.elapsed());
        Self {
            zero,
            anchor: (wall(), steady),
            stamp: Now::default(),
            stamps_left: 0,
        }
    }

    /// The time of a message that is enqueued: read for the first one since the
    /// last were written, and again after every so many.
    #[inline]
    pub(crate) fn stamp(&mut self) -> Now {
        if self.stamps_left == 0 {
            self.stamp = self.now();
            self.stamps_left = STAMPS_MAX;
        }
        self.stamps_left -= 1;
        self.stamp
    }

    /// What is enqueued from here on was not enqueued together with what was before.
    #[inline]
    pub(crate) fn end_stamp(&mut self) {
        self.stamps_left = 0;
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

    /// One reading of the steady clock alone.
    pub(crate) fn monotonic(&self) -> Monotonic {
        steady(self.zero)
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
    fn messages_that_are_gathered_share_a_reading_and_later_ones_get_another() {
        let mut clock = Clock::new(Instant::now());
        let first = clock.stamp();
        for _ in 1..STAMPS_MAX {
            assert_eq!(clock.stamp(), first);
        }
        while clock.now().monotonic == first.monotonic {}
        assert!(clock.stamp().monotonic > first.monotonic);
        let second = clock.stamp();
        while clock.now().monotonic == second.monotonic {}
        clock.end_stamp();
        assert!(clock.stamp().monotonic > second.monotonic);
    }

    #[test]
    fn the_wall_time_follows_the_systems_within_a_second() {
        let mut clock = Clock::new(Instant::now());
        let (before, stamp, after) = (wall(), clock.now().wall.0, wall());
        assert!(stamp + ANCHOR_AGE_MAX >= before && stamp <= after + ANCHOR_AGE_MAX);
        assert!(clock.now().monotonic >= clock.now_at(0, 0).monotonic);
    }
}
