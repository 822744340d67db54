//! Crashes: whatever legal part of what was not flushed is there, exactly what can be
//! read is kept, nothing that was durable is missing, and nothing is called damage.

use proptest::prelude::*;

use super::{Journal, SECTOR};
use crate::id::BatchNumber;
use crate::journal::recover::{Stretch, Wrong, next_run, order};
use crate::journal::survey::Slot;

#[derive(Clone, Debug)]
enum Act {
    Append { entries: u32, size: usize },
    Flushed,
    Checkpoint { back: u64 },
    Crash { seed: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0u32..4, 0usize..9000).prop_map(|(entries, size)| Act::Append { entries, size }),
        6 => Just(Act::Flushed),
        1 => (0u64..4).prop_map(|back| Act::Checkpoint { back }),
        2 => any::<u64>().prop_map(|seed| Act::Crash { seed }),
    ];
    prop::collection::vec(act, 1..60)
}

/// What each sector of what was not flushed does, by a seed whose kinds of power cut
/// are: anything, nothing, everything, all but a little.
fn sectors(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed | 1;
    let odds = [32, 0, 64, 60][(seed % 4) as usize];
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % 64 < odds
    }
}

fn recovered(journal: &mut Journal) -> Result<(), TestCaseError> {
    let plan = journal.recover();
    prop_assert!(plan.is_ok(), "{}", plan.unwrap_err());
    let plan = plan.unwrap();
    prop_assert!(plan.kept.0 >= journal.durable, "{plan:?}");
    prop_assert_eq!(plan.kept.0, journal.readable());
    prop_assert_eq!(&journal.recover().unwrap(), &plan, "once more");
    journal.assert_replays(&plan);
    journal.restart(&plan);
    // Before the next run has written anything, everything is as it was.
    let again = journal.recover().unwrap();
    prop_assert_eq!(again.kept, plan.kept);
    prop_assert_eq!(again.steps, plan.steps);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn after_any_power_cut_all_that_can_be_read_is_kept_and_nothing_is_damage(acts in acts()) {
        let mut journal = Journal::new();
        for act in acts {
            match act {
                Act::Append { entries, size } => {
                    // Without entries there is nothing to be large.
                    journal.append(entries, if entries == 0 { 0 } else { size });
                }
                Act::Flushed => journal.flushed(),
                Act::Checkpoint { back } => {
                    let number = journal.durable.saturating_sub(back);
                    let begun = journal.start.map_or(1, |start| start.number.0);
                    if number >= begun {
                        journal.checkpoint(number);
                    }
                }
                Act::Crash { seed } => {
                    journal.crash(sectors(seed));
                    recovered(&mut journal)?;
                }
            }
        }
        journal.crash(|| true);
        recovered(&mut journal)?;
    }
}

fn three_batches() -> Journal {
    let mut journal = Journal::new();
    journal.append(1, 100);
    journal.flushed();
    journal.append(2, 5000);
    journal.append(1, 3000);
    journal
}

#[test]
fn what_is_torn_is_cut_together_with_what_follows_it() {
    let mut journal = three_batches();
    // The third is whole and the second lacks a sector: neither was durable.
    let mut sector = 0;
    journal.crash(|| {
        sector += 1;
        sector != 3
    });
    let plan = journal.recover().unwrap();
    assert_eq!(plan.kept, BatchNumber(1));
    let [tail] = plan.tails[..] else {
        panic!("one tail: {:?}", plan.tails);
    };
    assert_eq!((tail.number, tail.batches), (BatchNumber(2), 2));
    assert_eq!((tail.position, tail.bytes), (8192, 3 * 4096));
    assert_eq!(
        tail.to_string(),
        "000000.journal at 8192: cut 12288 bytes from batch 2 on, which run 1 had begun and not \
         finished"
    );
}

#[test]
fn a_tail_that_was_cut_stays_cut_when_later_runs_went_on_without_it() {
    let mut journal = three_batches();
    let whole = journal.truth.clone();
    let mut sector = 0;
    journal.crash(|| {
        sector += 1;
        sector != 3
    });
    let plan = journal.recover().unwrap();
    journal.restart(&plan);
    journal.append(1, 10);
    journal.flushed();
    let plan = journal.recover().unwrap();
    assert_eq!(plan.kept, BatchNumber(2));
    journal.assert_replays(&plan);
    // Even if the missing sector turned up.
    let second = &whole[1];
    journal.disk[second.slot][second.position..][..second.bytes.len()]
        .copy_from_slice(&second.bytes);
    let plan = journal.recover().unwrap();
    assert_eq!((plan.kept, plan.left_out), (BatchNumber(2), 2));
    journal.assert_replays(&plan);
}

/// A run cut a torn batch whose file it then began anew with the very same entries. Its
/// header was lost and a part of its batch was not, which happened to be what the torn
/// one lacked: so a batch came back that nobody counted on any more.
#[test]
fn what_was_cut_is_not_written_over_before_a_next_run_has_said_so() {
    let mut journal = three_batches();
    let mut sector = 0;
    journal.crash(|| {
        sector += 1;
        sector != 3
    });
    let plan = journal.recover().unwrap();
    assert!(plan.spare.is_empty(), "{plan:?}");

    // Once the next run has begun a file of its own, a file that holds nothing else is.
    let mut journal = Journal::new();
    journal.append(1, 9000);
    let mut sector = 0;
    journal.crash(|| {
        sector += 1;
        sector != 13
    });
    let plan = journal.recover().unwrap();
    assert_eq!((plan.kept.0, plan.spare.len()), (0, 0), "{plan:?}");
    journal.restart(&plan);
    journal.append(1, 10);
    journal.flushed();
    let plan = journal.recover().unwrap();
    assert_eq!((plan.kept.0, &plan.spare[..]), (1, &[Slot(0)][..]));
}

#[test]
fn wherever_the_last_batches_are_cut_off_those_before_are_kept() {
    let mut journal = three_batches();
    journal.crash(|| true);
    let whole = journal.disk[0].clone();
    let ends: Vec<usize> = journal
        .truth
        .iter()
        .map(|it| it.position + it.bytes.len())
        .collect();
    for size in (ends[0]..whole.len()).rev().step_by(8) {
        journal.disk[0] = whole[..size].to_vec();
        let plan = journal.recover().unwrap();
        let kept = ends.iter().filter(|end| **end <= size).count();
        assert_eq!(plan.kept.0, kept as u64, "cut to {size} bytes");
        assert_eq!(
            plan.tails.is_empty(),
            kept == 3 || size < ends[kept - 1].next_multiple_of(4096) + 64
        );
    }
}

#[test]
fn whatever_stood_in_a_recycled_file_is_not_read() {
    let mut journal = Journal::new();
    // Batches as large as those that take their place, so that they would fit exactly.
    for _ in 0..12 {
        journal.append(1, 3000);
        journal.flushed();
    }
    journal.checkpoint(7);
    assert!(!journal.spare.is_empty());
    for number in 13..20 {
        journal.append(1, 3000);
        journal.flushed();
        let plan = journal.recover().unwrap();
        assert_eq!(plan.kept.0, number);
        journal.assert_replays(&plan);
    }
    assert!(journal.disk.len() < 5, "a file was used again");
}

#[test]
fn nothing_is_an_empty_journal() {
    let journal = Journal::new();
    let plan = journal.recover().unwrap();
    assert_eq!(
        (plan.kept.0, plan.sequence_next.0, plan.run_last.0),
        (0, 1, 0)
    );
    assert_eq!(next_run(&[plan]).0, 1);
    let mut journal = Journal::new();
    journal.disk.push(vec![0; super::FILE_SIZE]);
    let plan = journal.recover().unwrap();
    assert_eq!(plan.spare.len(), 1);
}

#[test]
fn steps_of_several_journals_are_read_by_runs_and_the_catalogue_first() {
    let mut plans = Vec::new();
    for journal in [1, 0] {
        let mut two = Journal::new();
        two.append(1, 10);
        two.flushed();
        let plan = two.recover().unwrap();
        two.restart(&plan);
        two.append(1, 10);
        two.flushed();
        let mut plan = two.recover().unwrap();
        plan.identity.journal.0 = journal;
        plans.push(plan);
    }
    let steps = [(1, 0), (0, 0), (1, 1), (0, 1)].map(|(plan, step)| Stretch::Step(plan, step));
    assert_eq!(order(&plans, |_| None), steps);
    let of_the_last = |journal| (journal == plans[0].identity.journal).then_some(crate::id::Run(2));
    let [first, second, third, fourth] = steps;
    let checkpoint = Stretch::Checkpoint(0);
    let all = [first, second, third, checkpoint, fourth];
    assert_eq!(order(&plans, of_the_last), all);
    assert_eq!(next_run(&plans).0, 3);
}

#[test]
fn a_file_that_changes_between_two_looks_is_named() {
    let mut journal = three_batches();
    journal.crash(|| true);
    let plan = journal.recover().unwrap();
    let second = journal.truth[1].clone();
    journal.disk[0][second.position + SECTOR] ^= 1;
    let found: Vec<_> = plan.steps[0].batches(&journal.disk[0]).collect();
    assert_eq!(found.len(), 2);
    let damage = found[1].as_ref().unwrap_err();
    assert_eq!(damage.position, second.position as u64);
    assert!(matches!(damage.what, Wrong::Changed { number } if number.0 == 2));
}
