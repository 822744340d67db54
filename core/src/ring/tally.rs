//! When a reader tells the writer that there is room again: not for each record, but
//! once for each quarter of the ring that it has read.
//!
//! ```text
//!   a writer that waits has found no room for a part of at most a quarter
//!   -> more than half of the ring is unread
//!   -> whoever reads that passes a quarter at least once meanwhile, and tells it then
//! ```
//!
//! What counts towards the quarter has to be at least what the records take in the ring,
//! padding included as far as it can be known: telling too often is harmless.

use crate::planted::Planted;

/// What was read since the writer was last told. The reader's own.
#[derive(Debug)]
pub struct Tally {
    untold: usize,
    quarter: usize,
}

impl Tally {
    /// Of a ring of so many bytes.
    #[must_use]
    pub fn of(capacity: u32) -> Tally {
        let parts = if Planted::TallyRarely.is_awake() {
            1
        } else {
            4
        };
        Tally {
            untold: 0,
            quarter: capacity as usize / parts,
        }
    }

    /// So many bytes more were read.
    #[inline]
    pub fn read(&mut self, bytes: usize) {
        self.untold += bytes;
    }

    /// Whether the writer is to be told; asked behind the reading, once for each time
    /// that it is told.
    #[inline]
    pub fn tells(&mut self) -> bool {
        let tells = self.untold >= self.quarter;
        if tells {
            self.untold = 0;
        }
        tells
    }
}
