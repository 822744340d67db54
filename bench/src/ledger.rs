//! What was sent, what was completed and what was received, message by message.
//!
//! ```text
//!   sent       1 2 3 4 5 6 7
//!   completed  1 2 3 4 5          each once, in the order of the sends
//!   received   1 2 3              each once, in the order of the sends
//! ```
//!
//! A ledger belongs to one producer and one consumer of a destination that
//! nobody else uses. The number of a message is its place among the sends, from
//! 0; it stands in the first eight bytes of the body. An entry costs a
//! comparison and an addition, so every workload keeps its books in every run:
//! a figure of a broker that loses or reorders is not a figure.
//!
//! After a fault the ledger goes on from what it saw, so that one swap counts
//! as a few faults and not as one for every message behind it.

use serde::{Deserialize, Serialize};

/// Bytes of a body that carry the message's number.
pub const NUMBER_BYTES: usize = 8;

/// Writes a message's number into its body.
///
/// # Panics
/// If the body is shorter than [`NUMBER_BYTES`].
#[inline]
pub fn stamp(body: &mut [u8], number: u64) {
    body[..NUMBER_BYTES].copy_from_slice(&number.to_le_bytes());
}

/// The number that a body carries; `u64::MAX` if it has no room for one.
#[inline]
#[must_use]
pub fn number(body: &[u8]) -> u64 {
    body.first_chunk::<NUMBER_BYTES>()
        .map_or(u64::MAX, |number| u64::from_le_bytes(*number))
}

/// The books of one producer and its consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Messages that were sent.
    pub sent: u64,
    /// Outcomes that said stored, in their place.
    pub completed: u64,
    /// Messages that came out, in their place.
    pub received: u64,
    /// What was not as it has to be.
    pub faults: Faults,
    /// The number that the next outcome has to have.
    #[serde(skip)]
    next_completed: u64,
    /// The number that the next message has to have.
    #[serde(skip)]
    next_received: u64,
}

/// What was not as it has to be, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Outcomes that did not follow on the one before.
    pub completions_misplaced: u64,
    /// Outcomes that said anything but stored.
    pub completions_failed: u64,
    /// Sends that have no outcome.
    pub completions_missing: u64,
    /// Messages that did not follow on the one before.
    pub deliveries_misplaced: u64,
    /// Messages whose body was not what was sent.
    pub deliveries_damaged: u64,
    /// Messages that were stored and did not come out.
    pub deliveries_missing: u64,
}

impl Faults {
    /// How many there are of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_name().iter().map(|(_, count)| count).sum()
    }

    /// Adds those of other books.
    fn add(&mut self, other: &Self) {
        // Taken apart, so that no kind is forgotten.
        let Self {
            completions_misplaced,
            completions_failed,
            completions_missing,
            deliveries_misplaced,
            deliveries_damaged,
            deliveries_missing,
        } = *other;
        self.completions_misplaced += completions_misplaced;
        self.completions_failed += completions_failed;
        self.completions_missing += completions_missing;
        self.deliveries_misplaced += deliveries_misplaced;
        self.deliveries_damaged += deliveries_damaged;
        self.deliveries_missing += deliveries_missing;
    }

    /// Each kind in words with its count.
    #[must_use]
    pub fn by_name(&self) -> [(&'static str, u64); 6] {
        [
            ("completions out of place", self.completions_misplaced),
            ("sends that failed", self.completions_failed),
            ("sends without completion", self.completions_missing),
            ("messages out of place", self.deliveries_misplaced),
            ("messages damaged", self.deliveries_damaged),
            ("messages lost", self.deliveries_missing),
        ]
    }
}

impl Ledger {
    /// Empty books.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of the next message to be sent.
    #[inline]
    #[must_use]
    pub fn next(&self) -> u64 {
        self.sent
    }

    /// That message was sent.
    #[inline]
    pub fn sent(&mut self) {
        self.sent_many(1);
    }

    /// That message and those behind it were sent, or are about to be.
    #[inline]
    pub fn sent_many(&mut self, messages: u64) {
        self.sent += messages;
    }

    /// An outcome arrived for the send with this number.
    #[inline]
    pub fn completed(&mut self, number: u64, stored: bool) {
        if number == self.next_completed && stored {
            self.completed += 1;
        } else if number != self.next_completed {
            self.faults.completions_misplaced += 1;
        } else {
            self.faults.completions_failed += 1;
        }
        self.next_completed = number.wrapping_add(1);
    }

    /// A message arrived with this body, where bodies of `length` were sent.
    #[inline]
    pub fn received(&mut self, body: &[u8], length: usize) {
        if body.len() != length || length < NUMBER_BYTES {
            self.faults.deliveries_damaged += 1;
            self.next_received += 1;
            return;
        }
        let number = number(body);
        if number == self.next_received {
            self.received += 1;
        } else {
            self.faults.deliveries_misplaced += 1;
        }
        self.next_received = number.wrapping_add(1);
    }

    /// As [`Self::received`], where messages come out in several sequences and the
    /// caller knows whether this one is due in its own.
    #[inline]
    pub fn received_in_turn(&mut self, body: &[u8], length: usize, is_due: bool) {
        if body.len() != length || length < NUMBER_BYTES {
            self.faults.deliveries_damaged += 1;
        } else if is_due {
            self.received += 1;
        } else {
            self.faults.deliveries_misplaced += 1;
        }
        self.next_received += 1;
    }

    /// Sends without an outcome so far.
    #[inline]
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.sent.saturating_sub(self.next_completed)
    }

    /// Messages that were stored and have not come out so far.
    #[inline]
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.completed.saturating_sub(self.next_received)
    }

    /// Messages that came out so far, as far as they are told apart.
    #[inline]
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.next_received
    }

    /// Adds closed books of another producer.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.completed += other.completed;
        self.received += other.received;
        self.faults.add(&other.faults);
    }

    /// Closes the books: what is outstanding now is missing. Messages are not held
    /// to be lost where completions went wrong before: nobody took them then.
    pub fn close(&mut self) {
        self.faults.completions_missing += self.outstanding();
        let faults = &self.faults;
        let completions =
            faults.completions_misplaced + faults.completions_failed + faults.completions_missing;
        if completions == 0 {
            self.faults.deliveries_missing += self.backlog();
        }
    }

    /// True if there is no fault.
    #[inline]
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.faults == Faults::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 16;

    fn body(number: u64) -> [u8; LENGTH] {
        let mut body = [0xA5; LENGTH];
        stamp(&mut body, number);
        body
    }

    /// Books of seven sends, with these outcomes and these messages out.
    fn ledger(completed: &[u64], received: &[u64]) -> Ledger {
        let mut ledger = Ledger::new();
        for _ in 0..7 {
            ledger.sent();
        }
        for &number in completed {
            ledger.completed(number, true);
        }
        for &number in received {
            ledger.received(&body(number), LENGTH);
        }
        ledger.close();
        ledger
    }

    const ALL: [u64; 7] = [0, 1, 2, 3, 4, 5, 6];

    #[test]
    fn each_once_and_in_order_is_clean() {
        let ledger = ledger(&ALL, &ALL);
        assert!(ledger.is_clean(), "{ledger:?}");
        assert_eq!((ledger.completed, ledger.received), (7, 7));
    }

    #[test]
    fn swapped_lost_and_repeated_completions_are_faults() {
        for completed in [
            &[0, 2, 1, 3, 4, 5, 6][..],
            &[0, 1, 3, 4, 5, 6],
            &[0, 1, 2, 3, 4, 5],
            &[0, 1, 1, 2, 3, 4, 5, 6],
            &[1, 2, 3, 4, 5, 6],
        ] {
            assert!(!ledger(completed, &ALL).is_clean(), "{completed:?}");
        }
    }

    #[test]
    fn swapped_lost_and_repeated_messages_are_faults() {
        for received in [
            &[0, 2, 1, 3, 4, 5, 6][..],
            &[0, 1, 3, 4, 5, 6],
            &[0, 1, 2, 3, 4, 5],
            &[0, 1, 1, 2, 3, 4, 5, 6],
        ] {
            assert!(!ledger(&ALL, received).is_clean(), "{received:?}");
        }
    }

    #[test]
    fn a_send_that_failed_in_its_place_is_a_fault_of_its_own() {
        let mut ledger = Ledger::new();
        ledger.sent();
        ledger.completed(0, false);
        ledger.close();
        assert_eq!(ledger.faults.completions_failed, 1);
        assert_eq!(ledger.faults.total(), 1);
    }

    #[test]
    fn books_of_several_add_up_with_every_kind_of_fault() {
        let mut of_all = ledger(&ALL, &ALL);
        of_all.add(&ledger(&[0, 2, 1, 3, 4, 5], &ALL));
        of_all.add(&ledger(&ALL, &[0, 2, 1, 3]));
        assert_eq!((of_all.sent, of_all.received), (21, 7 + 7 + 1));
        assert_eq!(of_all.faults.completions_misplaced, 3);
        assert_eq!(of_all.faults.completions_missing, 1);
        assert_eq!(of_all.faults.deliveries_misplaced, 3);
        assert_eq!(of_all.faults.deliveries_missing, 3);
        assert_eq!(of_all.faults.total(), 10);
    }

    #[test]
    fn a_body_of_another_length_is_damaged() {
        let mut ledger = Ledger::new();
        ledger.sent();
        ledger.completed(0, true);
        ledger.received(&body(0)[..12], LENGTH);
        ledger.close();
        assert_eq!(ledger.faults.deliveries_damaged, 1);
        assert_eq!(ledger.faults.total(), 1);
    }
}
