//! How a partition of a failover subscription changes hands.

use super::super::*;
use super::{A, B, EVERYTHING, ONE, Setting};
use crate::id::{Handle, Offset, PartitionIndex};

const C: Handle = Handle::new(3, 1);

/// A setting with a part of a failover subscription, and who its members are.
fn failover(messages: u32, members: &[Handle]) -> (Setting, Membership) {
    let mut setting = Setting::new(messages);
    setting.part = Part::new(Kind::Failover, Offset(0));
    let mut membership = Membership::new(Kind::Failover);
    for member in members {
        membership.joined(*member);
    }
    (setting, membership)
}

/// Who is offered something, if anybody is.
fn active(setting: &mut Setting, membership: &Membership, partition: u32) -> Option<Handle> {
    let (part, log) = (&mut setting.part, &mut setting.log);
    let partition = PartitionIndex(partition);
    match part.claimant(&setting.arena, log, membership, partition) {
        Claim::By(consumer) => {
            let again = part.claimant(&setting.arena, log, membership, partition);
            assert_eq!(again, Claim::None, "only one is");
            Some(consumer)
        }
        other => {
            assert_eq!(other, Claim::None);
            None
        }
    }
}

#[test]
fn one_that_waits_for_another_goes_on_once_what_that_one_held_has_expired() {
    let (mut setting, mut membership) = failover(10, &[A]);
    assert_eq!(active(&mut setting, &membership, 1), Some(A));
    setting.deliver(A, 0, EVERYTHING);
    membership.joined(B);
    assert_eq!(
        active(&mut setting, &membership, 1),
        None,
        "A holds some of it"
    );
    let (arena, log) = (&mut setting.arena, &mut setting.log);
    setting.part.expire(arena, log, Offset(9));
    assert!(!setting.part.frees());
    setting.part.expire(arena, log, Offset(10));
    assert!(setting.part.frees());
    assert_eq!(active(&mut setting, &membership, 1), Some(B));
    setting.acknowledge(A, 0, 10);
    assert_eq!(setting.part.unsettled(), 0);
    setting.part.invariants();
}

#[test]
fn the_next_one_takes_over_at_the_first_message_that_was_not_settled() {
    let (mut setting, mut membership) = failover(10, &[A, B, C]);
    assert_eq!(active(&mut setting, &membership, 0), Some(A));
    for delivery in 0..6 {
        setting.deliver(A, delivery, ONE);
    }
    setting.acknowledge(A, 0, 2);
    setting.acknowledge(A, 3, 1);
    // The application saw the first five.
    assert_eq!(setting.part.consumer_gone(A, 5), 3);
    membership.left(A);
    assert_eq!(active(&mut setting, &membership, 0), Some(B));
    for (offset, count) in [(2, 2), (4, 2), (5, 1)] {
        assert_eq!(setting.deliver(B, 0, EVERYTHING), Some((offset, 1, count)));
    }
    assert_eq!(setting.deliver(B, 3, EVERYTHING), Some((6, 4, 1)));
    // One that stands by may leave, and nothing changes.
    membership.left(C);
    assert_eq!(active(&mut setting, &membership, 0), Some(B));
    membership.left(B);
    assert_eq!(active(&mut setting, &membership, 0), None);
}

#[test]
fn one_that_becomes_active_waits_until_the_other_holds_nothing_any_more() {
    let (mut setting, mut membership) = failover(4, &[A]);
    assert_eq!(active(&mut setting, &membership, 1), Some(A));
    setting.deliver(A, 0, ONE);
    setting.deliver(A, 1, ONE);
    setting.deliver(A, 2, ONE);
    membership.joined(B);
    assert_eq!(active(&mut setting, &membership, 1), None, "A holds three");
    setting.acknowledge(A, 0, 1);
    assert!(!setting.part.frees());
    setting.part.give_back(A, Offset(1), 1, |_| None);
    assert!(!setting.part.frees());
    assert_eq!(active(&mut setting, &membership, 1), None, "A holds one");
    setting.acknowledge_through(A, 2);
    assert!(setting.part.frees(), "now B may");
    assert_eq!(active(&mut setting, &membership, 1), Some(B));
    assert!(!setting.part.frees(), "which is known");
    assert_eq!(setting.deliver(B, 0, EVERYTHING), Some((1, 1, 2)));
    assert_eq!(setting.deliver(B, 1, EVERYTHING), Some((3, 1, 1)));
    setting.part.invariants();
    // What B has is back in A's hands as soon as B is gone.
    setting.part.consumer_gone(B, 2);
    membership.left(B);
    assert_eq!(active(&mut setting, &membership, 1), Some(A));
}

#[test]
fn a_part_follows_the_partition_that_it_is_of() {
    let (mut first, membership) = failover(1, &[A, B]);
    let (mut second, _) = failover(1, &[]);
    assert_eq!(active(&mut first, &membership, 0), Some(A));
    assert_eq!(active(&mut second, &membership, 1), Some(B));
}
