//! How long a spinning client waits for an answer before it gives up.

use std::time::{Duration, Instant};

use crate::error::BenchError;

/// Longer than any answer takes that still comes.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(5);

/// How many looks in vain pass between two at the clock.
const LOOKS_PER_CLOCK: u32 = 4096;

/// One wait. Reads no clock before it has looked in vain for a while.
#[derive(Debug, Default)]
pub(super) struct Patience {
    looks: u32,
    since: Option<Instant>,
}

impl Patience {
    /// Counts a look in vain.
    ///
    /// # Errors
    /// [`BenchError::NoAnswer`] once [`WAIT_MAX`] has passed.
    #[inline]
    pub(super) fn look(&mut self) -> Result<(), BenchError> {
        self.looks += 1;
        if self.looks < LOOKS_PER_CLOCK {
            return Ok(());
        }
        self.looks = 0;
        self.ask_the_clock()
    }

    #[cold]
    fn ask_the_clock(&mut self) -> Result<(), BenchError> {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited > WAIT_MAX {
            return Err(BenchError::NoAnswer { waited });
        }
        Ok(())
    }
}
