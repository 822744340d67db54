//! What became of a producer's last sends to a partition, so that a retry is answered
//! with the outcome of the first try.
//!
//! ```text
//! closed:  | 3 sends, at 17.. | 1 send, refused | 9 sends, at 20.. |   open: 4 sends, at 29..
//!          `- dropped once the sends behind it are enough                  `- grows with the next one
//! ```
//!
//! Consecutive sends with consecutive places that were stored at one time share a
//! run, so what a busy producer pays for a message is one comparison and one
//! addition. The list of closed runs grows by doubling, out of the pool that
//! [`remembered`](super::remembered) keeps, and not at all once there is one for
//! each send of the window.
//!
//! Each partition has its own: what is told of one, in whatever order after a start,
//! leaves that of the others where it is.
//!
//! Invariants: the runs rise by partition sequence and do not overlap; without the
//! first of them, the closed runs have fewer than [`limits::POSITIONS_KEPT`] sends.

use std::collections::VecDeque;

use crate::error::Refusal;
use crate::journal::entry::Fate;
use crate::limits;
use crate::time::Wall;

/// The least runs that there is memory for once there is any.
const RUNS_MIN: usize = 16;

/// What became of one send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Its place, 0 if it is not stored.
    pub(super) offset: u64,
    /// When it was stored, 0 if it is not.
    pub(super) append_time: Wall,
    /// 0, or why it is not stored.
    pub(super) refusal: u16,
}

impl Outcome {
    pub(super) fn refused(refusal: Refusal) -> Self {
        Self {
            offset: 0,
            append_time: Wall(0),
            refusal: refusal.code(),
        }
    }

    pub(super) fn is_stored(&self) -> bool {
        self.refusal == 0
    }
}

/// Consecutive sends to one partition with one outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// The partition sequence of the first.
    first: u64,
    /// The place of the first, if they are stored.
    offset: u64,
    append_time: Wall,
    count: u32,
    refusal: u16,
}

const _: () = assert!(size_of::<Run>() == 32);

impl Run {
    #[inline]
    fn is_continued_by(&self, sequence: u64, outcome: &Outcome) -> bool {
        let count = u64::from(self.count);
        self.first + count == sequence
            && self.refusal == outcome.refusal
            && (self.refusal != 0
                || self.offset + count == outcome.offset && self.append_time == outcome.append_time)
    }

    fn find(&self, sequence: u64) -> Option<Outcome> {
        let index = sequence.checked_sub(self.first)?;
        if index >= u64::from(self.count) {
            return None;
        }
        Some(Outcome {
            offset: if self.refusal == 0 {
                self.offset + index
            } else {
                0
            },
            append_time: self.append_time,
            refusal: self.refusal,
        })
    }
}

/// The last sends of one producer to one partition.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// What grows; without a send if its count is 0.
    open: Run,
    closed: VecDeque<Run>,
    /// Sends in `closed`.
    sends: u64,
}

impl Positions {
    /// Adds the outcomes of `count` sends, the first of them as given and the others
    /// with the places behind it, behind those of all others. `grow` is asked for
    /// memory by bytes; without it the oldest are dropped.
    #[inline]
    pub(super) fn note(
        &mut self,
        sequence: u64,
        count: u32,
        outcome: &Outcome,
        grow: impl FnOnce(usize) -> bool,
    ) {
        if self.open.is_continued_by(sequence, outcome) {
            self.open.count += count;
            return;
        }
        self.close(grow);
        self.open = Run {
            first: sequence,
            offset: outcome.offset,
            append_time: outcome.append_time,
            count,
            refusal: outcome.refusal,
        };
    }

    /// What became of a send; `None` if that is no longer kept.
    pub(super) fn find(&self, sequence: u64) -> Option<Outcome> {
        if let Some(outcome) = self.open.find(sequence) {
            return Some(outcome);
        }
        let behind = self.closed.partition_point(|run| run.first <= sequence);
        self.closed.get(behind.checked_sub(1)?)?.find(sequence)
    }

    /// Adds the outcome of a send among those that are known already, if there is room.
    #[cold]
    pub(super) fn insert(
        &mut self,
        sequence: u64,
        outcome: &Outcome,
        grow: impl FnOnce(usize) -> bool,
    ) {
        if self.closed.len() == self.closed.capacity() && !self.make_room(grow) {
            return;
        }
        let run = Run {
            first: sequence,
            offset: outcome.offset,
            append_time: outcome.append_time,
            count: 1,
            refusal: outcome.refusal,
        };
        let behind = self.closed.partition_point(|run| run.first <= sequence);
        self.closed.insert(behind, run);
        self.sends += 1;
    }

    /// What became of all of them, the longest ago first, which were sent to that
    /// partition.
    pub(super) fn fates(&self, partition: u16) -> Vec<Fate> {
        let open = Some(&self.open).filter(|run| run.count > 0);
        let fate = |run: &Run| Fate {
            partition_sequence: run.first.into(),
            offset: run.offset.into(),
            append_time: run.append_time.0.into(),
            count: run.count.into(),
            partition: partition.into(),
            refusal: run.refusal.into(),
        };
        self.closed.iter().chain(open).map(fate).collect()
    }

    /// Bytes that the runs take up.
    pub(super) fn bytes(&self) -> usize {
        self.closed.capacity() * size_of::<Run>()
    }

    /// Gives back the memory that the runs do not need now; returns how much.
    pub(super) fn compact(&mut self) -> usize {
        let before = self.bytes();
        self.closed.shrink_to_fit();
        before - self.bytes()
    }

    /// Forgets all but the last run; returns how many bytes that gave back.
    pub(super) fn clear(&mut self) -> usize {
        let open = self.open;
        let bytes = self.bytes();
        *self = Self {
            open,
            ..Self::default()
        };
        bytes
    }

    /// Puts the open run to the closed ones.
    fn close(&mut self, grow: impl FnOnce(usize) -> bool) {
        let run = core::mem::take(&mut self.open);
        let count = u64::from(run.count);
        if count == 0 {
            return;
        }
        while let Some(first) = self.closed.front()
            && self.sends + count - u64::from(first.count) >= u64::from(limits::POSITIONS_KEPT)
        {
            self.drop_first();
        }
        if self.closed.len() == self.closed.capacity() && !self.make_room(grow) {
            return;
        }
        self.closed.push_back(run);
        self.sends += count;
    }

    /// Makes room for one more run; `false` if there is none at all.
    #[cold]
    fn make_room(&mut self, grow: impl FnOnce(usize) -> bool) -> bool {
        let capacity = self.closed.capacity();
        let more = capacity.max(RUNS_MIN);
        if grow(more * size_of::<Run>()) {
            self.closed.reserve_exact(more);
            debug_assert_eq!(
                self.closed.capacity(),
                capacity + more,
                "what is taken is what was asked for"
            );
        } else if capacity > 0 {
            self.drop_first();
        }
        self.closed.capacity() > 0
    }

    fn drop_first(&mut self) {
        if let Some(run) = self.closed.pop_front() {
            self.sends -= u64::from(run.count);
        }
    }
}
