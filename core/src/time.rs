//! Time as it is passed in: nothing in this crate reads a clock.
//!
//! Monotonic time drives timers, deadlines and time-outs. Wall time is written
//! into messages and used for nothing else, so a step of the wall clock can
//! neither fire nor suppress a timer.

use core::fmt;
use core::time::Duration;

/// Nanoseconds of a steady clock with an arbitrary zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(pub u64);

/// Nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub u64);

/// One reading of both clocks, taken once per turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Drives timers.
    pub monotonic: Monotonic,
    /// Stamps messages.
    pub wall: Wall,
}

impl Monotonic {
    /// A time that no deadline reaches.
    pub const NEVER: Self = Self(u64::MAX);

    /// The time `duration` from here; saturates at [`Monotonic::NEVER`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// How long it is from `earlier` to here; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Monotonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ns", self.0)
    }
}
