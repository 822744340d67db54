#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Stored(u8),
    NotStored,
    Unknown,
}

fn timed_out(send: OpenSend) -> Outcome {
    if send.forwarded {
        Outcome::Unknown
    } else {
        Outcome::NotStored
    }
}

/// Every send there ever was, in order; the ones before `left` have been told.
#[derive(Default)]
struct Model {
    sends: Vec<(u64, bool, Option<Outcome>)>,
    left: usize,
    late: u64,
}

impl Model {
    fn settle(&mut self, index: usize, outcome: Outcome) -> Option<Settled> {
        let send = self.sends.get_mut(index)?;
        if send.2.is_some() {
            self.late += 1;
            return Some(Settled::Late);
        }
        send.2 = Some(outcome);
        Some(Settled::Accepted)
    }

    fn expire(&mut self, now: u64) -> u64 {
        let open = self.sends.iter_mut().filter(|send| send.2.is_none());
        let due = open.filter(|send| send.0 <= now);
        due.map(|send| {
            send.2 = Some(if send.1 {
                Outcome::Unknown
            } else {
                Outcome::NotStored
            });
        })
        .count() as u64
    }

    fn pop(&mut self) -> Option<(usize, Outcome)> {
        let outcome = self.sends.get(self.left)?.2?;
        self.left += 1;
        Some((self.left - 1, outcome))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open { lifetime: Option<u64> },
    Forward { back: u64 },
    Settle { back: u64, outcome: u8 },
    Expire { after: u64 },
    Pop,
    FailAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::option::of(0_u64..50).prop_map(|lifetime| Step::Open { lifetime }),
        2 => (0_u64..24).prop_map(|back| Step::Forward { back }),
        6 => (0_u64..24, any::<u8>()).prop_map(|(back, outcome)| Step::Settle { back, outcome }),
        2 => (0_u64..20).prop_map(|after| Step::Expire { after }),
        4 => Just(Step::Pop),
        1 => prop::bool::weighted(0.1).prop_map(|all| if all { Step::FailAll } else { Step::Pop }),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn it_behaves_like_a_list_of_all_sends(
        capacity in 1_u32..=17,
        first in prop_oneof![Just(1_u64), 1..1_000_000_u64],
        steps in steps(),
    ) {
        let mut window = CompletionWindow::new(capacity, Sequence(first));
        let mut model = Model::default();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Open { lifetime } => {
                    let deadline = lifetime.map_or(u64::MAX, |lifetime| now + lifetime);
                    let room = model.sends.len() - model.left < capacity as usize;
                    prop_assert_eq!(window.has_room(), room);
                    match window.open(Monotonic(deadline)) {
                        Ok(sequence) => {
                            prop_assert!(room);
                            prop_assert_eq!(sequence.0, first + model.sends.len() as u64);
                            model.sends.push((deadline, false, None));
                        }
                        Err(full) => prop_assert!(!room && full.capacity == u64::from(capacity)),
                    }
                }
                // From two after the next sequence back to some that have left.
                Step::Forward { back } => {
                    let sequence = (window.next_sequence().0 + 2).saturating_sub(back);
                    let sent = sequence.checked_sub(first)
                        .and_then(|index| model.sends.get_mut(usize::try_from(index).unwrap()));
                    prop_assert_eq!(window.forwarded(Sequence(sequence)).is_ok(), sent.is_some());
                    if let Some(send) = sent {
                        send.1 = true;
                    }
                }
                Step::Settle { back, outcome } => {
                    let sequence = (window.next_sequence().0 + 2).saturating_sub(back);
                    let expected = sequence.checked_sub(first).and_then(|index| {
                        model.settle(usize::try_from(index).unwrap(), Outcome::Stored(outcome))
                    });
                    let settled = window.settle(Sequence(sequence), Outcome::Stored(outcome));
                    prop_assert_eq!(settled.ok(), expected);
                }
                Step::Expire { after } => {
                    now += after;
                    let before = window.next_deadline();
                    let expired = window.expire(Monotonic(now), timed_out);
                    prop_assert_eq!(expired, model.expire(now));
                    prop_assert!(expired == 0 || before <= Monotonic(now));
                }
                Step::FailAll => {
                    prop_assert_eq!(window.fail_all(timed_out), model.expire(u64::MAX));
                }
                Step::Pop => {
                    let expected = model.pop()
                        .map(|(index, outcome)| (Sequence(first + index as u64), outcome));
                    prop_assert_eq!(window.has_next(), expected.is_some());
                    prop_assert_eq!(window.pop(), expected);
                }
            }
            window.invariants();
            prop_assert_eq!(window.len(), (model.sends.len() - model.left) as u64);
            prop_assert_eq!(window.late_count(), model.late);
        }
    }
}

fn window_of(sends: u64) -> CompletionWindow<Outcome> {
    let mut window = CompletionWindow::new(8, Sequence::FIRST);
    for sequence in 1..=sends {
        assert_eq!(
            window.open(Monotonic(100 * sequence)),
            Ok(Sequence(sequence))
        );
    }
    window
}

#[test]
fn outcomes_leave_in_order_whatever_order_they_came_in() {
    let mut window = window_of(3);
    for sequence in [3, 2] {
        let settled = window.settle(Sequence(sequence), Outcome::Stored(0));
        assert_eq!(settled, Ok(Settled::Accepted));
        assert_eq!(window.pop(), None, "the first is still open");
    }
    window.settle(Sequence(1), Outcome::Stored(0)).unwrap();
    let order: Vec<_> = std::iter::from_fn(|| window.pop())
        .map(|(at, _)| at.0)
        .collect();
    assert_eq!(order, [1, 2, 3]);
    assert!(window.is_empty());
}

#[test]
fn a_send_past_its_deadline_fails_in_its_place() {
    let mut window = window_of(3);
    window.forwarded(Sequence(2)).unwrap();
    window.settle(Sequence(3), Outcome::Stored(3)).unwrap();
    assert_eq!(window.expire(Monotonic(99), timed_out), 0);
    assert_eq!(window.expire(Monotonic(100), timed_out), 1);
    assert_eq!(window.expire(Monotonic(200), timed_out), 1);
    assert_eq!(window.pop(), Some((Sequence(1), Outcome::NotStored)));
    assert_eq!(window.pop(), Some((Sequence(2), Outcome::Unknown)));
    assert_eq!(window.pop(), Some((Sequence(3), Outcome::Stored(3))));
}

#[test]
fn a_late_outcome_is_counted_and_told_to_nobody() {
    let mut window = window_of(1);
    window.expire(Monotonic(100), timed_out);
    let late = window.settle(Sequence(1), Outcome::Stored(1));
    assert_eq!(late, Ok(Settled::Late), "expired, not yet told");
    assert_eq!(window.pop(), Some((Sequence(1), Outcome::NotStored)));
    let late = window.settle(Sequence(1), Outcome::Stored(1));
    assert_eq!(late, Ok(Settled::Late), "told already");
    assert_eq!(window.pop(), None);
    assert_eq!(window.late_count(), 2);
}

#[test]
fn an_outcome_for_a_send_that_never_was_is_an_error() {
    let mut window = window_of(1);
    for sequence in [0, 2, u64::MAX] {
        let error = NeverOpened {
            sequence: Sequence(sequence),
            next: Sequence(2),
        };
        assert_eq!(
            window.settle(Sequence(sequence), Outcome::Unknown),
            Err(error)
        );
        assert_eq!(window.forwarded(Sequence(sequence)), Err(error));
        assert!(error.to_string().contains(&sequence.to_string()));
    }
    assert_eq!(window.late_count(), 0);
}

#[test]
fn the_next_deadline_is_never_too_late_and_never_without_sends() {
    let mut window = window_of(0);
    assert_eq!(window.next_deadline(), Monotonic::NEVER);
    window.open(Monotonic(300)).unwrap();
    window.open(Monotonic(200)).unwrap();
    window.open(Monotonic::NEVER).unwrap();
    assert_eq!(window.next_deadline(), Monotonic(200));
    assert!(window.is_overdue(Sequence(2), Monotonic(200)));
    assert!(!window.is_overdue(Sequence(1), Monotonic(200)));
    assert!(!window.is_overdue(Sequence(4), Monotonic(200)));
    window.settle(Sequence(2), Outcome::Stored(0)).unwrap();
    assert!(window.next_deadline() <= Monotonic(300));
    assert_eq!(window.expire(Monotonic(250), timed_out), 0);
    assert_eq!(window.next_deadline(), Monotonic(300), "found by looking");
    window.settle(Sequence(1), Outcome::Stored(0)).unwrap();
    window.settle(Sequence(3), Outcome::Stored(0)).unwrap();
    assert_eq!(window.next_deadline(), Monotonic::NEVER);
}

#[test]
fn a_full_window_opens_again_only_when_outcomes_are_taken() {
    let mut window = window_of(8);
    let full = Err(WindowFull { capacity: 8 });
    assert_eq!(window.open(Monotonic::NEVER), full);
    window.settle(Sequence(1), Outcome::Stored(0)).unwrap();
    assert_eq!(window.open(Monotonic::NEVER), full, "settled, not yet told");
    window.pop().unwrap();
    assert_eq!(window.open(Monotonic::NEVER), Ok(Sequence(9)));
}
