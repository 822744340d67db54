//! What of a shard is due when: the places where something is to be done at a time, each
//! at most once, the earliest first.
//!
//! ```text
//!   moved(place, before, after)       3 s | place 7      take(3 s) ─> place 7
//!        `─ one line for it ────────> 5 s | place 2
//! ```
//!
//! A place itself knows when the next of its things is due; here stands only that time, so
//! the list is as long as there are places with any. Whoever changes it says so.

use std::collections::BTreeSet;

use crate::time::Monotonic;

/// When places are to be looked at.
#[derive(Debug)]
pub(super) struct Due<K> {
    due: BTreeSet<(Monotonic, K)>,
}

impl<K> Default for Due<K> {
    fn default() -> Self {
        Self {
            due: BTreeSet::new(),
        }
    }
}

impl<K: Copy + Ord> Due<K> {
    /// A place was due at `before` and is at `after` now.
    pub(super) fn moved(&mut self, place: K, before: Option<Monotonic>, after: Option<Monotonic>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.due.remove(&(before, place));
        }
        if let Some(after) = after {
            self.due.insert((after, place));
        }
    }

    /// The earliest time of all.
    pub(super) fn next(&self) -> Option<Monotonic> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes a place out that is due by `now`.
    pub(super) fn take(&mut self, now: Monotonic) -> Option<K> {
        let (due, _) = self.due.first()?;
        if *due > now {
            return None;
        }
        self.due.pop_first().map(|(_, place)| place)
    }

    /// All places, each with its time.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Monotonic, K)> {
        self.due.iter().copied()
    }
}
