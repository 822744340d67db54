//! The completion window: outcomes arrive in any order and leave in the order
//! of their sequences, each exactly once.
//!
//! The cast: whoever sends opens a place per send; whoever learns what became
//! of it settles the place; time expires it; and whoever tells the producer
//! takes outcomes from the front. A session uses it towards a producer, the
//! client uses the same type to merge its links.
//!
//! ```text
//!   left for good    oldest            settled out of turn           next
//!   . . . . . . . . | outcome | outcome |  open  | outcome |  open  |  . . .
//!                     `--- pop takes these ---'  ^ holds back what is behind it
//! ```
//!
//! A send past its deadline fails in its place and does not overtake. What it
//! fails with depends on how far it got, which the caller marks with
//! [`CompletionWindow::forwarded`] and reads back when it names the outcome:
//! still here means certainly not stored, forwarded means unknown. An outcome
//! that comes after that is late: counted, and delivered to nobody.
//!
//! Invariants, checked by [`CompletionWindow::invariants`]:
//! - sequences are consecutive; `first <= oldest <= next <= oldest + capacity`;
//! - a place outside `oldest..next` holds no outcome;
//! - `open` counts the places inside without an outcome;
//! - `deadline_min` is not later than the deadline of any open place, and is
//!   NEVER if there is none;
//! - an outcome once in its place is never replaced.
//!
//! What it does not do: it reads no clock, knows no links and calls nobody back.

use core::fmt;

use crate::id::Sequence;
use crate::time::Monotonic;

/// Places for sends whose outcomes have not been told yet.
///
/// `T` is an outcome; it is moved in and moved out. All memory is allocated by
/// [`CompletionWindow::new`].
pub struct CompletionWindow<T> {
    /// A power of two of them; a sequence's place is found by `mask`.
    places: Box<[Place<T>]>,
    mask: u64,
    capacity: u64,
    /// The first sequence there ever was.
    first: u64,
    /// The sequence that leaves next.
    oldest: u64,
    /// The sequence that is opened next.
    next: u64,
    /// How many places in the window have no outcome.
    open: u64,
    /// May be earlier than the earliest deadline, so that settling need not
    /// search for the next one.
    deadline_min: Monotonic,
    late: u64,
}

struct Place<T> {
    outcome: Option<T>,
    deadline: Monotonic,
    forwarded: bool,
}

impl<T> CompletionWindow<T> {
    /// A window of `capacity` places, at least one, whose first sequence is
    /// `first`.
    #[must_use]
    pub fn new(capacity: u32, first: Sequence) -> Self {
        let capacity = u64::from(capacity.max(1));
        let size = capacity.next_power_of_two();
        Self {
            places: (0..size)
                .map(|_| Place {
                    outcome: None,
                    deadline: Monotonic::NEVER,
                    forwarded: false,
                })
                .collect(),
            mask: size - 1,
            capacity,
            first: first.0,
            oldest: first.0,
            next: first.0,
            open: 0,
            deadline_min: Monotonic::NEVER,
            late: 0,
        }
    }

    /// Opens the place of the next send, which fails at `deadline` unless it is
    /// settled before; [`Monotonic::NEVER`] for none.
    #[inline]
    pub fn open(&mut self, deadline: Monotonic) -> Result<Sequence, WindowFull> {
        if !self.has_room() {
            return Err(WindowFull {
                capacity: self.capacity,
            });
        }
        let sequence = self.next;
        let place = self.place_mut(sequence);
        place.deadline = deadline;
        place.forwarded = false;
        self.next = sequence + 1;
        self.open += 1;
        self.deadline_min = self.deadline_min.min(deadline);
        Ok(Sequence(sequence))
    }

    /// Notes that the send has left the caller's hands: if its deadline passes
    /// now, what became of it is unknown. Without effect on a place that has its
    /// outcome.
    #[inline]
    pub fn forwarded(&mut self, sequence: Sequence) -> Result<(), NeverOpened> {
        if self.is_inside(sequence)? {
            self.place_mut(sequence.0).forwarded = true;
        }
        Ok(())
    }

    /// Puts the outcome of a send into its place.
    ///
    /// An outcome for a place that has one, because it expired or was settled
    /// before, and one for a send that has left the window, is late: it is
    /// dropped and counted.
    #[inline]
    pub fn settle(&mut self, sequence: Sequence, outcome: T) -> Result<Settled, NeverOpened> {
        if self.is_inside(sequence)? {
            let place = self.place_mut(sequence.0);
            if place.outcome.is_none() {
                place.outcome = Some(outcome);
                self.closed_one();
                return Ok(Settled::Accepted);
            }
        }
        self.late += 1;
        Ok(Settled::Late)
    }

    /// Fails every open send whose deadline is `now` or earlier, in its place,
    /// with the outcome that `fail` names. Returns how many there were.
    ///
    /// One comparison if none can be due; else it visits every place.
    #[inline]
    pub fn expire(&mut self, now: Monotonic, fail: impl FnMut(OpenSend) -> T) -> u64 {
        if now < self.deadline_min || self.open == 0 {
            return 0;
        }
        self.fail_if(|deadline| deadline <= now, fail)
    }

    /// Fails every open send, in its place: for a link or a broker that is gone
    /// for good. Returns how many there were.
    pub fn fail_all(&mut self, fail: impl FnMut(OpenSend) -> T) -> u64 {
        self.fail_if(|_deadline| true, fail)
    }

    /// Takes the next outcome in order; none while the oldest send is open.
    #[inline]
    pub fn pop(&mut self) -> Option<(Sequence, T)> {
        if self.oldest == self.next {
            return None;
        }
        let sequence = self.oldest;
        let outcome = self.place_mut(sequence).outcome.take()?;
        self.oldest = sequence + 1;
        Some((Sequence(sequence), outcome))
    }

    /// Whether [`CompletionWindow::pop`] has an outcome to give.
    #[inline]
    #[must_use]
    pub fn has_next(&self) -> bool {
        self.oldest != self.next && self.place(self.oldest).outcome.is_some()
    }

    /// Whether another send may be opened.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.next - self.oldest < self.capacity
    }

    /// A time before which no deadline passes: maybe too early, never too late,
    /// and NEVER with nothing open.
    #[inline]
    #[must_use]
    pub fn next_deadline(&self) -> Monotonic {
        self.deadline_min
    }

    /// Whether the send is open and its deadline is `now` or earlier.
    #[must_use]
    pub fn is_overdue(&self, sequence: Sequence, now: Monotonic) -> bool {
        self.is_inside(sequence) == Ok(true) && {
            let place = self.place(sequence.0);
            place.outcome.is_none() && place.deadline <= now
        }
    }

    /// The sequence that the next send will get.
    #[inline]
    #[must_use]
    pub fn next_sequence(&self) -> Sequence {
        Sequence(self.next)
    }

    /// Whether the send's outcome is known, taken or not.
    #[must_use]
    pub fn has_outcome(&self, sequence: Sequence) -> bool {
        match self.is_inside(sequence) {
            Ok(true) => self.place(sequence.0).outcome.is_some(),
            Ok(false) => true,
            Err(_never_opened) => false,
        }
    }

    /// How many sends have not left the window.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u64 {
        self.next - self.oldest
    }

    /// Whether every send has left the window.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next == self.oldest
    }

    /// How many sends have no outcome yet.
    #[inline]
    #[must_use]
    pub fn open_count(&self) -> u64 {
        self.open
    }

    /// How many outcomes came too late.
    #[inline]
    #[must_use]
    pub fn late_count(&self) -> u64 {
        self.late
    }

    /// Panics if an invariant of the module is broken. Visits every place.
    pub fn invariants(&self) {
        assert!(self.first <= self.oldest && self.oldest <= self.next);
        assert!(self.next - self.oldest <= self.capacity);
        let mut open = 0;
        let mut inside = vec![false; self.places.len()];
        for sequence in self.oldest..self.next {
            inside[self.index(sequence)] = true;
            let place = self.place(sequence);
            if place.outcome.is_none() {
                open += 1;
                assert!(self.deadline_min <= place.deadline);
            }
        }
        assert_eq!(self.open, open);
        assert!(open > 0 || self.deadline_min == Monotonic::NEVER);
        for (place, inside) in self.places.iter().zip(inside) {
            assert!(inside || place.outcome.is_none());
        }
    }

    /// Whether the sequence has a place; not if it has left already.
    #[inline]
    fn is_inside(&self, sequence: Sequence) -> Result<bool, NeverOpened> {
        if sequence.0 >= self.next || sequence.0 < self.first {
            return Err(NeverOpened {
                sequence,
                next: Sequence(self.next),
            });
        }
        Ok(sequence.0 >= self.oldest)
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked below the number of places, which was a u32"
    )]
    fn index(&self, sequence: u64) -> usize {
        (sequence & self.mask) as usize
    }

    #[inline]
    fn place(&self, sequence: u64) -> &Place<T> {
        &self.places[self.index(sequence)]
    }

    #[inline]
    fn place_mut(&mut self, sequence: u64) -> &mut Place<T> {
        &mut self.places[self.index(sequence)]
    }

    #[inline]
    fn closed_one(&mut self) {
        self.open -= 1;
        if self.open == 0 {
            self.deadline_min = Monotonic::NEVER;
        }
    }

    /// Finds the true earliest deadline on the way.
    #[cold]
    fn fail_if(
        &mut self,
        due: impl Fn(Monotonic) -> bool,
        mut fail: impl FnMut(OpenSend) -> T,
    ) -> u64 {
        let mut failed = 0;
        let mut deadline_min = Monotonic::NEVER;
        for sequence in self.oldest..self.next {
            let place = self.place_mut(sequence);
            if place.outcome.is_some() {
                continue;
            }
            if due(place.deadline) {
                place.outcome = Some(fail(OpenSend {
                    sequence: Sequence(sequence),
                    forwarded: place.forwarded,
                }));
                failed += 1;
            } else {
                deadline_min = deadline_min.min(place.deadline);
            }
        }
        self.open -= failed;
        self.deadline_min = deadline_min;
        failed
    }
}

impl<T> fmt::Debug for CompletionWindow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionWindow")
            .field("oldest", &self.oldest)
            .field("next", &self.next)
            .field("open", &self.open)
            .field("deadline_min", &self.deadline_min)
            .field("late", &self.late)
            .finish_non_exhaustive()
    }
}

/// A send that fails without an outcome from anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSend {
    /// Which.
    pub sequence: Sequence,
    /// Whether it was on its way already, so that it may have been stored.
    pub forwarded: bool,
}

/// What became of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is in its place and will be told.
    Accepted,
    /// The send had its outcome already; this one is counted only.
    Late,
}

/// No place is free: take outcomes, or wait for the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowFull {
    /// How many places there are.
    pub capacity: u64,
}

impl fmt::Display for WindowFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "completion window full: {} sends wait for their outcomes",
            self.capacity
        )
    }
}

impl core::error::Error for WindowFull {}

/// An outcome for a sequence that was never opened: the peer made it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeverOpened {
    /// The sequence in question.
    pub sequence: Sequence,
    /// The sequence that the next send will get.
    pub next: Sequence,
}

impl fmt::Display for NeverOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sequence {} was never sent; the next one is {}",
            self.sequence, self.next
        )
    }
}

impl core::error::Error for NeverOpened {}

#[cfg(test)]
mod tests;
