#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::error::Refusal;
use crate::limits;
use crate::time::Wall;

const PARTITIONS: usize = 3;

/// All outcomes there ever were: the model.
#[derive(Default)]
struct Model {
    /// Partition and partition sequence.
    sends: Vec<(usize, u64)>,
    lanes: [Vec<Outcome>; PARTITIONS],
}

impl Model {
    fn next(&self, partition: usize) -> u64 {
        self.lanes[partition].len() as u64 + 1
    }

    fn send(&mut self, partition: usize, outcome: Outcome) {
        self.sends.push((partition, self.next(partition)));
        self.lanes[partition].push(outcome);
    }

    fn outcome(&self, partition: usize, sequence: u64) -> Outcome {
        self.lanes[partition][usize::try_from(sequence - 1).unwrap()]
    }

    /// Whether the send is one of those whose outcome has to be known.
    fn is_kept(&self, partition: usize, sequence: u64) -> bool {
        sequence + u64::from(limits::POSITIONS_KEPT) >= self.next(partition)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many sends with one outcome each, to one partition, at one time.
    Send {
        partition: usize,
        count: u16,
        refusal: Option<Refusal>,
        later: bool,
    },
    /// All of a link is sent again, from so far back on.
    Resend { back: u16 },
    /// One that is not the next.
    Early { partition: usize, by: u64 },
    /// The link breaks.
    Detach,
    /// Memory is wanted elsewhere.
    Starve,
}

fn step() -> impl Strategy<Value = Step> {
    let refusal = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Refusal::Unsupported)),
        1 => Just(Some(Refusal::GivenUp)),
    ];
    let count = prop_oneof![4 => 1..4_u16, 2 => 1..300_u16, 1 => Just(1_500_u16)];
    prop_oneof![
        12 => (0..PARTITIONS, count, refusal, any::<bool>()).prop_map(
            |(partition, count, refusal, later)| Step::Send { partition, count, refusal, later }
        ),
        3 => (1..1_200_u16).prop_map(|back| Step::Resend { back }),
        1 => (0..PARTITIONS, 2..9_u64).prop_map(|(partition, by)| Step::Early { partition, by }),
        1 => Just(Step::Detach),
        1 => Just(Step::Starve),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_send_has_one_turn_and_the_last_ones_keep_their_outcomes(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut identity =
            Identity::new(ProducerId(1), Principal::default(), DestinationNumber(0), PARTITIONS, "");
        let mut model = Model::default();
        let mut offsets = [0_u64; PARTITIONS];
        let mut now = 1;
        let mut sequence = 0;
        let mut starved = false;
        for step in steps {
            match step {
                Step::Send { partition, count, refusal, later } => {
                    now += u64::from(later);
                    for _ in 0..count {
                        sequence += 1;
                        let outcome = match refusal {
                            Some(refusal) => Outcome::refused(refusal),
                            None => Outcome {
                                offset: offsets[partition],
                                append_time: Wall(now),
                                refusal: 0,
                            },
                        };
                        offsets[partition] += u64::from(refusal.is_none());
                        let next = model.next(partition);
                        let at = u32::try_from(partition).unwrap();
                        prop_assert_eq!(identity.turn(at, next, sequence), Ok(Turn::Due));
                        identity.had_turn(at, sequence, &outcome, |_| !starved);
                        model.send(partition, outcome);
                    }
                }
                Step::Resend { back } => {
                    let from = model.sends.len().saturating_sub(back.into());
                    for (partition, in_partition) in &model.sends[from..] {
                        let at = u32::try_from(*partition).unwrap();
                        let turn = identity.turn(at, *in_partition, 1).unwrap();
                        let outcome = model.outcome(*partition, *in_partition);
                        let kept = !starved && model.is_kept(*partition, *in_partition);
                        prop_assert!(
                            turn == Turn::Had(Some(outcome)) || !kept && turn == Turn::Had(None),
                            "{turn:?}"
                        );
                    }
                }
                Step::Early { partition, by } => {
                    let next = model.next(partition) - 1 + by;
                    let at = u32::try_from(partition).unwrap();
                    prop_assert_eq!(identity.turn(at, next, sequence + 1), Ok(Turn::Early));
                }
                Step::Detach => {
                    identity.compact();
                }
                Step::Starve => {
                    starved = true;
                    identity.forget_positions();
                }
            }
        }
        // The very last one is known whatever happened.
        if let Some((partition, last)) = model.sends.last() {
            let at = u32::try_from(*partition).unwrap();
            let outcome = model.outcome(*partition, *last);
            prop_assert_eq!(identity.turn(at, *last, 1), Ok(Turn::Had(Some(outcome))));
        }
    }
}

#[test]
fn what_no_send_can_be_is_told_from_a_retry() {
    let mut identity = Identity::new(
        ProducerId(1),
        Principal::default(),
        DestinationNumber(0),
        1,
        "desk",
    );
    assert_eq!(identity.turn(1, 1, 1), Err(NoSend), "no such partition");
    assert_eq!(identity.turn(0, 0, 1), Err(NoSend), "they count from 1");
    assert_eq!(identity.turn(0, 1, 5), Ok(Turn::Due));
    identity.had_turn(0, 5, &Outcome::refused(Refusal::GivenUp), |_| true);
    assert_eq!(
        identity.turn(0, 2, 5),
        Err(NoSend),
        "two sends of one sequence"
    );
    assert_eq!(identity.turn(0, 2, 6), Ok(Turn::Due));
}

/// A shard that had not turned for long passed an older attachment on after a newer one
/// had been decided, which was fenced by it.
#[test]
fn an_attachment_that_was_asked_for_earlier_comes_too_late() {
    let mut identity = Identity::new(
        ProducerId(1),
        Principal::default(),
        DestinationNumber(0),
        PARTITIONS,
        "",
    );
    let asked = |nanoseconds| Attachment::Asked(Monotonic(nanoseconds));
    assert!(identity.may_attach(asked(5)));
    identity.attach(asked(5));
    assert_eq!(identity.epoch, Epoch(2));
    assert!(!identity.may_attach(asked(4)));
    assert!(identity.may_attach(asked(5)), "in one turn");
    assert!(!identity.may_attach(Attachment::Decided(Epoch(2))));
    identity.attach(Attachment::Decided(Epoch(7)));
    assert!(!identity.may_attach(Attachment::Decided(Epoch(6))));
    assert_eq!(identity.epoch, Epoch(7));
}
