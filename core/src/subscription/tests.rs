//! What a part promises that takes numbers too large, or stories too particular,
//! for the model that partitions are tested against.

#![allow(clippy::unwrap_used)]

mod by_key;
mod takeover;

use super::*;
use crate::frame::encode::{Envelope, message, message_size};
use crate::id::{DestinationNumber, Handle, Offset, PartitionIndex};
use crate::limits::{UNSETTLED_LEAST, UNSETTLED_MAX};
use crate::memory::Arena;
use crate::partition::log::{Address, Log, RunLimit};
use crate::time::{Monotonic, Wall};

const A: Handle = Handle::new(1, 1);
const B: Handle = Handle::new(2, 1);
const EVERYTHING: RunLimit = RunLimit {
    messages: u64::MAX,
    bytes: u64::MAX,
};
const ONE: RunLimit = RunLimit {
    messages: 1,
    bytes: 1,
};

/// A log with one part, and the numbers of its consumers' deliveries.
struct Setting {
    arena: Arena,
    log: Log,
    part: Part,
}

impl Setting {
    fn new(messages: u32) -> Self {
        let mut setting = Self {
            arena: Arena::new(128),
            log: Log::new(
                Address {
                    destination: DestinationNumber(1),
                    partition: PartitionIndex(0),
                },
                0,
            ),
            part: Part::new(Kind::Shared, Offset(0)),
        };
        setting.append(messages);
        setting
    }

    fn append(&mut self, messages: u32) {
        let mut frame = vec![0; message_size(0, 10)];
        message(&Envelope::default(), &[], &[7; 10], &mut frame);
        for _ in 0..messages {
            self.log
                .append(&mut self.arena, &frame, 1, Wall(0))
                .unwrap();
        }
    }

    /// The first offset, how many, and how often they were handed out.
    fn deliver(
        &mut self,
        consumer: Handle,
        number: u64,
        limit: RunLimit,
    ) -> Option<(u64, u32, u16)> {
        self.part
            .deliver(&self.arena, &mut self.log, consumer, number, limit)
            .map(|delivered| (delivered.run.first.0, delivered.run.count, delivered.count))
    }

    fn deliver_all(&mut self, consumer: Handle) -> u64 {
        let mut count = 0;
        while let Some((_, messages, _)) = self.deliver(consumer, count, EVERYTHING) {
            count += u64::from(messages);
        }
        count
    }

    fn acknowledge(&mut self, consumer: Handle, first: u64, count: u64) -> AckOutcome {
        let outcome = self.part.acknowledge(
            &mut self.arena,
            &mut self.log,
            consumer,
            Offset(first),
            count,
        );
        self.part.invariants();
        self.log.invariants();
        outcome
    }

    fn acknowledge_again(&mut self, consumer: Handle, first: u64, count: u64) -> AckOutcome {
        let (arena, log) = (&mut self.arena, &mut self.log);
        let outcome = (self.part).acknowledge_again(arena, log, consumer, Offset(first), count);
        self.part.invariants();
        self.log.invariants();
        outcome
    }

    fn acknowledge_through(&mut self, consumer: Handle, last: u64) -> AckOutcome {
        let outcome =
            self.part
                .acknowledge_through(&mut self.arena, &mut self.log, consumer, Offset(last));
        self.part.invariants();
        self.log.invariants();
        outcome
    }
}

/// Delivery numbers were kept modulo 2^32 and compared by the sign of their
/// difference, so a message that its consumer sat on while it took 2^31 others
/// (half an hour at a million a second) returned as if it had never been seen.
#[test]
fn a_message_held_for_billions_of_deliveries_still_counts_as_handed_out() {
    for handed in [1, 1 << 31, (1 << 31) + 1, 1 << 32, (1 << 32) + 1, u64::MAX] {
        let mut setting = Setting::new(1);
        setting.deliver(A, 0, ONE);
        assert_eq!(setting.part.consumer_gone(A, handed), 1);
        assert_eq!(setting.deliver(B, 0, ONE), Some((0, 1, 2)), "{handed}");
    }
}

#[test]
fn what_the_application_never_saw_returns_uncounted() {
    let mut setting = Setting::new(10);
    setting.deliver(A, 5, EVERYTHING);
    setting.acknowledge(A, 2, 1);
    assert_eq!(setting.part.consumer_gone(A, 5 + 4), 9);
    for (offset, count) in [(0, 2), (1, 2), (3, 2), (4, 1), (5, 1)] {
        assert_eq!(setting.deliver(B, 0, EVERYTHING), Some((offset, 1, count)));
    }
}

#[test]
fn a_delivery_count_stays_at_its_highest() {
    let mut setting = Setting::new(1);
    for count in (1..=u16::MAX).chain([u16::MAX, u16::MAX]) {
        assert_eq!(setting.deliver(A, 0, ONE), Some((0, 1, count)));
        setting.part.consumer_gone(A, 1);
    }
}

#[test]
fn delivery_pauses_at_the_most_unsettled_messages_and_goes_on_below() {
    let limit = u64::from(UNSETTLED_MAX);
    let mut setting = Setting::new(UNSETTLED_MAX + 1_000);
    assert_eq!(setting.deliver_all(A), limit);
    assert_eq!(setting.part.unsettled(), UNSETTLED_MAX);
    assert!(!setting.part.ready(&setting.log));
    assert_eq!(
        setting.part.backlog(&setting.arena, &setting.log),
        limit + 1_000
    );
    assert_eq!(setting.deliver(B, 0, EVERYTHING), None);

    setting.acknowledge(A, 100, 3);
    assert!(setting.part.ready(&setting.log));
    assert_eq!(setting.deliver(B, 0, EVERYTHING), Some((limit, 3, 1)));
    assert_eq!(setting.deliver(B, 0, EVERYTHING), None);
    setting.part.invariants();

    // What returns is handed out even at the limit: it is counted already.
    setting.part.consumer_gone(B, 3);
    assert!(setting.part.ready(&setting.log));
    for offset in limit..limit + 3 {
        assert_eq!(setting.deliver(A, limit, EVERYTHING), Some((offset, 1, 2)));
    }
    assert_eq!(setting.deliver(A, limit, EVERYTHING), None);

    setting.acknowledge_through(A, limit + 2);
    assert_eq!(setting.deliver_all(A), 997);
    assert_eq!(setting.acknowledge_through(A, limit + 999).settled, 997);
    assert_eq!(setting.part.backlog(&setting.arena, &setting.log), 0);
    assert!(setting.log.chunks() <= 1);
}

/// With room for more entries than there may be unsettled messages, a part that was at
/// that bound did not call itself full; so what was settled then woke nobody up, and a
/// consumer with a large window stood still until it raised its grant.
#[test]
fn a_part_at_the_most_unsettled_messages_is_full_though_settled_ones_lie_between() {
    let limit = u64::from(UNSETTLED_MAX);
    let mut setting = Setting::new(UNSETTLED_MAX + 2_000);
    assert_eq!(setting.deliver_all(A), limit);
    for offset in (1..4_000).step_by(2) {
        setting.acknowledge(A, offset, 1);
    }
    setting.part.widen();
    assert_eq!(setting.deliver_all(A), 2_000);
    assert!(setting.part.room() > 0 && setting.part.is_full());
    setting.acknowledge(A, 0, 1);
    assert!(!setting.part.is_full());
}

#[test]
fn without_more_memory_a_part_still_has_room_for_the_least_whatever_is_settled_between() {
    let least = u64::from(UNSETTLED_LEAST);
    let mut setting = Setting::new(10_000);
    let mut delivered = 0;
    loop {
        if setting.part.is_cramped() && !setting.part.tidy() {
            break;
        }
        let room = setting.part.room();
        let limit = RunLimit {
            messages: room,
            ..EVERYTHING
        };
        let (first, count, _) = setting.deliver(A, delivered, limit).unwrap();
        delivered += u64::from(count);
        // Every second one is settled.
        for offset in first..first + u64::from(count) {
            if offset % 2 == 1 {
                setting.acknowledge(A, offset, 1);
            }
        }
    }
    assert_eq!(setting.part.unsettled(), UNSETTLED_LEAST);
    assert_eq!(setting.part.entries_size(), 0);
    // With memory it grows, and what it took comes back as its messages are settled.
    let size = setting.part.widening_size();
    setting.part.widen();
    assert_eq!(setting.part.entries_size(), size);
    let limit = RunLimit {
        messages: setting.part.room(),
        ..EVERYTHING
    };
    let (first, count, _) = setting.deliver(A, delivered, limit).unwrap();
    assert_eq!((first, u64::from(count)), (delivered, least));
    assert_eq!(setting.part.entries_size(), size);
    setting.acknowledge(A, 0, delivered + 2 * least);
    assert_eq!(setting.part.relax(false), 0);
    assert_eq!(setting.part.relax(true), size);
    assert_eq!(setting.part.entries_size(), 0);
    assert_eq!(setting.part.unsettled(), 0);
}

#[test]
fn a_run_ends_with_the_frame_that_reaches_its_bytes() {
    let size = message_size(0, 10) as u64;
    for (bytes, count) in [
        (0, 1),
        (1, 1),
        (size, 1),
        (size + 1, 2),
        (2 * size, 2),
        (2 * size + 1, 3),
    ] {
        let limit = RunLimit {
            messages: u64::MAX,
            bytes,
        };
        let delivered = Setting::new(5).deliver(A, 0, limit);
        assert_eq!(delivered, Some((0, count, 1)), "{bytes} bytes");
    }
}

#[test]
fn an_acknowledgement_settles_what_its_consumer_holds_and_calls_the_rest_strange() {
    let mut setting = Setting::new(6);
    let three = RunLimit {
        messages: 3,
        ..EVERYTHING
    };
    setting.deliver(A, 0, three);
    setting.deliver(B, 0, three);
    let settled = |settled, strange| AckOutcome { settled, strange };
    assert_eq!(setting.acknowledge(A, 1, 1), settled(1, false));
    assert_eq!(setting.acknowledge(A, 1, 1), settled(0, false), "repeated");
    assert_eq!(setting.acknowledge(A, 0, 6), settled(2, true), "B's too");
    assert_eq!(setting.acknowledge(B, 5, 2), settled(1, true), "the future");
    assert_eq!(setting.acknowledge(B, 3, 0), settled(0, true), "nothing");
    assert_eq!(setting.acknowledge(B, 3, u64::MAX), settled(2, true));
    assert_eq!(setting.part.unsettled(), 0);
}

/// A consumer that had settled messages on a link that was lost had to wait until they
/// were delivered to it once more, though its window might be full of others.
#[test]
fn what_was_settled_on_an_earlier_link_is_settled_where_it_waits_and_nowhere_else() {
    let mut setting = Setting::new(8);
    let two = RunLimit {
        messages: 2,
        ..EVERYTHING
    };
    setting.deliver(A, 0, two);
    setting.deliver(A, 2, two);
    setting.deliver(B, 0, two);
    // What A never saw of its four (the last one) was never handed out.
    setting.part.consumer_gone(A, 3);
    setting
        .part
        .give_back(B, Offset(5), 1, |_| Some(Monotonic(9)));
    assert_eq!(setting.deliver(B, 2, ONE), Some((0, 1, 2)));
    let settled = |settled, strange| AckOutcome { settled, strange };
    assert_eq!(
        setting.acknowledge(A, 1, 1),
        settled(0, true),
        "not unasked"
    );
    assert_eq!(
        setting.acknowledge_again(A, 0, 1),
        settled(0, true),
        "B has it"
    );
    assert_eq!(setting.acknowledge_again(A, 1, 2), settled(2, false));
    assert_eq!(
        setting.acknowledge_again(A, 1, 2),
        settled(0, false),
        "repeated"
    );
    assert_eq!(
        setting.acknowledge_again(A, 3, 1),
        settled(0, true),
        "unseen"
    );
    assert_eq!(
        setting.acknowledge_again(A, 5, 1),
        settled(0, true),
        "it rests"
    );
    assert_eq!(
        setting.acknowledge_again(A, 7, 1),
        settled(0, true),
        "the future"
    );
    assert_eq!(
        setting.acknowledge_again(B, 0, 1),
        settled(1, false),
        "its own"
    );
    assert_eq!(
        setting.deliver(B, 3, ONE),
        Some((3, 1, 1)),
        "the rest comes"
    );
    assert_eq!(setting.deliver(B, 4, ONE), Some((6, 1, 1)));
}

#[test]
fn who_acknowledged_through_and_is_given_an_older_message_can_do_so_again() {
    let mut setting = Setting::new(6);
    let three = RunLimit {
        messages: 3,
        ..EVERYTHING
    };
    setting.deliver(A, 0, three);
    setting.deliver(B, 0, three);
    assert_eq!(setting.acknowledge_through(B, 5).settled, 3);
    setting.part.consumer_gone(A, 3);
    assert_eq!(setting.deliver(B, 3, ONE), Some((0, 1, 2)));
    assert_eq!(setting.deliver(B, 4, ONE), Some((1, 1, 2)));
    assert_eq!(setting.acknowledge_through(B, 1).settled, 2);
    // Through what it was never given, and then through what it was.
    assert!(setting.acknowledge_through(B, 100).strange);
    assert_eq!(setting.deliver(B, 5, ONE), Some((2, 1, 2)));
    setting.append(1);
    assert_eq!(setting.deliver(B, 6, ONE), Some((6, 1, 1)));
    assert_eq!(setting.acknowledge_through(B, 6).settled, 2);
    assert_eq!(setting.part.unsettled(), 0);
}

/// A consumer held messages from the middle of the log when lower ones came back
/// from another that had gone, and acknowledged through what it had by then: the
/// lower ones, which it had not even received, were settled and lost.
#[test]
fn acknowledging_through_a_message_leaves_what_was_delivered_after_it_though_it_lies_below() {
    let mut setting = Setting::new(6);
    let two = RunLimit {
        messages: 2,
        ..EVERYTHING
    };
    setting.deliver(A, 0, two);
    setting.deliver(B, 0, two);
    setting.part.consumer_gone(A, 2);
    assert_eq!(setting.deliver(B, 2, ONE), Some((0, 1, 2)));
    assert_eq!(setting.deliver(B, 3, ONE), Some((1, 1, 2)));
    setting.deliver(B, 4, ONE);
    // 2, 3, 0, 1 and 4 were delivered to B, in this order.
    assert_eq!(setting.acknowledge_through(B, 2).settled, 1);
    assert_eq!(setting.acknowledge_through(B, 0).settled, 2, "3 too");
    assert!(setting.part.claims(Offset(1)) && setting.part.claims(Offset(4)));
    setting.part.invariants();
    // Through one that is settled by now: what was never with another, below it.
    assert_eq!(setting.acknowledge_through(B, 3).settled, 0);
    assert_eq!(setting.acknowledge_through(B, 4).settled, 2);
    setting.part.invariants();
    assert_eq!(setting.part.unsettled(), 0);
}

#[test]
fn what_returns_from_two_consumers_is_handed_out_in_the_order_of_the_log() {
    let mut setting = Setting::new(8);
    for index in 0..4 {
        setting.deliver(A, index, ONE);
        setting.deliver(B, index, ONE);
    }
    setting.append(1);
    setting.part.consumer_gone(B, 4);
    // One is out again when the others come back below and above it.
    assert_eq!(setting.deliver(B, 4, ONE), Some((1, 1, 2)));
    setting.part.consumer_gone(A, 4);
    for offset in [0, 2, 3, 4, 5, 6, 7] {
        assert_eq!(setting.deliver(B, 9, EVERYTHING), Some((offset, 1, 2)));
        setting.part.invariants();
    }
    assert_eq!(setting.deliver(B, 9, EVERYTHING), Some((8, 1, 1)));
}
