//! Damage: what was durable and cannot be read is named if anything that was written
//! later knew it, and never if nothing did.

use proptest::prelude::*;

use super::{FILE_SIZE, IDENTITY, Journal, Written};
use crate::id::{BatchNumber, Installation, Run};
use crate::journal::file::{self, FIRST_BATCH, Unreadable};
use crate::journal::recover::{Damage, Wrong};

/// What becomes of some bytes.
#[derive(Clone, Debug)]
enum Surgery {
    Flip { at: usize, bit: u8 },
    Zero { block: usize },
    Swap { one: usize, other: usize },
    Copy { from: usize, to: usize },
    Garbage { at: usize, byte: u8 },
}

fn surgery() -> impl Strategy<Value = Surgery> {
    let byte = || any::<prop::sample::Index>().prop_map(|it| it.index(1 << 20));
    prop_oneof![
        (byte(), 0u8..8).prop_map(|(at, bit)| Surgery::Flip { at, bit }),
        byte().prop_map(|block| Surgery::Zero { block }),
        (byte(), byte()).prop_map(|(one, other)| Surgery::Swap { one, other }),
        (byte(), byte()).prop_map(|(from, to)| Surgery::Copy { from, to }),
        (byte(), any::<u8>()).prop_map(|(at, byte)| Surgery::Garbage { at, byte }),
    ]
}

impl Surgery {
    /// Cuts into the batches of a disk; headers of files are another test's.
    fn perform(&self, disk: &mut [Vec<u8>]) {
        let blocks = FILE_SIZE / 4096 - 1;
        let all = blocks * disk.len();
        // Of a number that is too large: which block of which file, and where in it.
        let place = |at: usize| {
            let block = at / 4096 % all;
            (block / blocks, (block % blocks + 1) * 4096, at % 4096)
        };
        let block = |disk: &[Vec<u8>], at: usize| {
            let (file, start, _) = place(at);
            disk[file][start..start + 4096].to_vec()
        };
        let mut put = |at: usize, bytes: &[u8]| {
            let (file, start, _) = place(at);
            disk[file][start..start + 4096].copy_from_slice(bytes);
        };
        match *self {
            Self::Flip { at, bit } => {
                let (file, start, within) = place(at);
                disk[file][start + within] ^= 1 << bit;
            }
            Self::Zero { block } => put(block, &[0; 4096]),
            Self::Swap { one, other } => {
                let (first, second) = (block(disk, one), block(disk, other));
                let (file, start, _) = place(other);
                disk[file][start..start + 4096].copy_from_slice(&first);
                let (file, start, _) = place(one);
                disk[file][start..start + 4096].copy_from_slice(&second);
            }
            Self::Copy { from, to } => {
                let bytes = block(disk, from);
                let (file, start, _) = place(to);
                disk[file][start..start + 4096].copy_from_slice(&bytes);
            }
            Self::Garbage { at, byte } => {
                let (file, start, within) = place(at);
                disk[file][start + within..start + 4096].fill(byte);
            }
        }
    }
}

/// Several runs, each of several files, none of which a crash cut short.
fn history(sizes: &[usize]) -> Journal {
    let mut journal = Journal::new();
    for (at, size) in sizes.iter().enumerate() {
        journal.append(1 + (at % 3) as u32, *size);
        if at % 2 == 1 {
            journal.flushed();
            journal.flushed();
        }
        if at % 7 == 6 {
            journal.crash(|| true);
            let plan = journal.recover().unwrap();
            journal.restart(&plan);
        }
    }
    journal.crash(|| true);
    journal
}

/// Whether anything that is still there knew batch `missing` to be durable.
fn is_known(journal: &Journal, missing: &Written) -> bool {
    let run = |it: &&Written| it.run == missing.run;
    let mut same = journal.truth.iter().filter(run);
    let by_batch =
        same.any(|it| it.durable_before >= missing.number && it.header_is_there(&journal.disk));
    // Headers of files are left alone.
    let by_run = journal.truth.iter().any(|it| it.run > missing.run);
    by_batch || by_run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_missing_is_damage_if_and_only_if_something_knew_it(
        sizes in prop::collection::vec(0usize..9000, 1..30),
        surgeries in prop::collection::vec(surgery(), 1..4),
    ) {
        let mut journal = history(&sizes);
        for surgery in &surgeries {
            surgery.perform(&mut journal.disk);
        }
        // One that a surgery copied to the front of another file may be read there.
        prop_assume!(!journal.truth.iter().any(|it| it.is_at_another_front(&journal.disk)));
        let spoilt = || journal.truth.iter().filter(|it| !it.is_whole(&journal.disk));
        let (missing, count) = (spoilt().next().cloned(), spoilt().count());
        match (journal.recover(), missing) {
            (Ok(plan), None) => {
                prop_assert_eq!(plan.kept.0, journal.number());
                journal.assert_replays(&plan);
            }
            (Ok(plan), Some(missing)) => {
                prop_assert!(!is_known(&journal, &missing), "{} was known", missing.number);
                prop_assert_eq!(plan.kept.0, missing.number - 1);
                journal.assert_replays(&plan);
            }
            (Err(damage), Some(missing)) => {
                prop_assert!(is_known(&journal, &missing), "{damage}");
                match damage.what {
                    Wrong::BatchMissing { number, .. } | Wrong::BatchLost { number, .. } => {
                        prop_assert_eq!(number.0, missing.number);
                    }
                    _ => prop_assert!(false, "{}", damage),
                }
                let place = (damage.slot.0 as usize, damage.position as usize);
                let own = (missing.slot, missing.position);
                if count == 1 && !journal.truth.iter().any(|it| it.is_elsewhere(&journal.disk)) {
                    prop_assert_eq!(place, own, "{}", damage);
                } else {
                    // Of two that stood at the end of a file and at the front of the next,
                    // where the first one was cannot be known; nor where a copy of what
                    // was written later stands behind the end of the file before.
                    let last = journal.truth.iter().rfind(|it| it.number < missing.number);
                    prop_assert!(
                        place == own
                            || place.1 == FIRST_BATCH as usize
                            || last.is_some_and(|last| place == (last.slot, last.end())),
                        "{}", damage
                    );
                }
            }
            (Err(damage), None) => prop_assert!(false, "nothing is missing: {damage}"),
        }
    }
}

fn two_files() -> Journal {
    let mut journal = Journal::new();
    for _ in 0..8 {
        journal.append(1, 5000);
        journal.flushed();
    }
    assert_eq!(journal.disk.len(), 3);
    journal
}

fn damage(journal: &Journal) -> Damage {
    let damage = journal.recover().unwrap_err();
    assert!(!damage.to_string().is_empty() && !damage.advice().is_empty());
    damage
}

#[test]
fn a_batch_that_cannot_be_read_is_named_with_its_place_and_who_knew_it() {
    let mut journal = two_files();
    let second = journal.truth[1].clone();
    journal.disk[second.slot][second.position + 100] ^= 1;
    let damage = damage(&journal);
    assert_eq!(
        damage.to_string(),
        "000000.journal at 12288: batch 2 belongs there and cannot be read; it was durable \
         when batch 3 was written, at 20480 of 000000.journal"
    );
    assert!(damage.advice().contains("restore"));
}

#[test]
fn no_bit_of_a_batchs_header_can_be_otherwise() {
    let whole = two_files();
    let second = whole.truth[1].clone();
    for bit in 0..64 * 8 {
        let mut journal = whole.clone();
        journal.disk[second.slot][second.position + bit / 8] ^= 1 << (bit % 8);
        let damage = damage(&journal);
        assert!(
            matches!(damage.what, Wrong::BatchMissing { number, .. } if number.0 == 2),
            "bit {bit}: {damage}"
        );
    }
    // Of the last batch nobody knows that it was durable.
    let last = whole.truth.last().unwrap();
    for bit in 0..64 * 8 {
        let mut journal = whole.clone();
        journal.disk[last.slot][last.position + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            journal.recover().unwrap().kept.0,
            last.number - 1,
            "bit {bit}"
        );
    }
}

#[test]
fn no_bit_of_a_files_header_can_be_otherwise() {
    let whole = two_files();
    for slot in 0..2 {
        for bit in (0..80 * 8).chain([4095 * 8]) {
            let mut journal = whole.clone();
            journal.disk[slot][bit / 8] ^= 1 << (bit % 8);
            assert!(
                file::Header::read(&journal.disk[slot]).is_err(),
                "bit {bit}"
            );
            let damage = damage(&journal);
            let named = match damage.what {
                Wrong::HeaderLost { why, .. } => {
                    assert_eq!(damage.slot.0 as usize, slot);
                    matches!(why, Unreadable::Magic | Unreadable::Checksum)
                }
                // Others of the run know that what is in it was durable.
                Wrong::BatchMissing { .. } => true,
                _ => false,
            };
            assert!(named, "bit {bit}: {damage}");
        }
    }
}

#[test]
fn a_header_alone_that_cannot_be_read_hides_no_run() {
    let mut journal = Journal::new();
    journal.append(1, 10);
    journal.append(1, 10);
    journal.flushed();
    journal.flushed();
    journal.append(1, 10);
    journal.crash(|| true);
    journal.disk[0][..4096].fill(0);
    let damage = damage(&journal);
    assert!(matches!(
        damage.what,
        Wrong::HeaderLost {
            why: Unreadable::Blank,
            number: BatchNumber(2)
        }
    ));
}

#[test]
fn a_file_that_is_missing_or_there_twice_or_from_elsewhere_is_named() {
    let whole = two_files();

    let mut journal = whole.clone();
    journal.disk[1] = vec![0; FILE_SIZE];
    assert!(matches!(damage(&journal).what, Wrong::BatchMissing { number, .. } if number.0 == 4));

    let mut journal = whole.clone();
    journal.disk.push(journal.disk[1].clone());
    let twice = damage(&journal);
    assert_eq!(twice.slot.0, 3);
    assert!(
        matches!(twice.what, Wrong::Twice { other, .. } if other.0 == 1),
        "{twice}"
    );

    let mut journal = whole.clone();
    let mut header = file::Header::read(&journal.disk[1]).unwrap();
    header.origin.identity.installation = Installation(9);
    journal.disk[1][..4096].copy_from_slice(&header.block());
    assert!(matches!(damage(&journal).what, Wrong::Foreign { .. }));

    // The same run of another life, as a copy of the directory might have led it.
    header.origin.identity = IDENTITY;
    header.origin.salt ^= 1;
    journal.disk[1][..4096].copy_from_slice(&header.block());
    assert!(matches!(damage(&journal).what, Wrong::Contradiction { .. }));

    // A run that is over does not begin files behind those of the next.
    header = file::Header::read(&whole.disk[1]).unwrap();
    header.origin.run = Run(4);
    journal.disk[1][..4096].copy_from_slice(&header.block());
    assert!(matches!(damage(&journal).what, Wrong::Contradiction { .. }));

    let mut journal = whole.clone();
    journal.checkpoint(7);
    journal.disk[2] = vec![0; FILE_SIZE];
    assert!(matches!(damage(&journal).what, Wrong::FileMissing { sequence } if sequence.0 == 3));
}

#[test]
fn a_file_of_a_later_version_is_refused_as_that() {
    let mut journal = two_files();
    let block = &mut journal.disk[1][..4096];
    block[12] = 2;
    block[8..12].fill(0);
    let sum = crate::frame::checksum::extend(0, block);
    block[8..12].copy_from_slice(&sum.to_le_bytes());
    let damage = damage(&journal);
    assert!(matches!(damage.what, Wrong::Newer { version: 2 }));
    assert!(damage.advice().contains("version"), "{}", damage.advice());
}

#[test]
fn what_a_run_had_read_is_not_cut_after_it() {
    let mut journal = Journal::new();
    journal.append(1, 10);
    journal.append(1, 10);
    journal.crash(|| true);
    let plan = journal.recover().unwrap();
    assert_eq!(plan.kept.0, 2);
    journal.restart(&plan);
    journal.append(1, 10);
    journal.flushed();
    let second = journal.truth[1].clone();
    journal.disk[second.slot][second.position + 70] ^= 4;
    let damage = damage(&journal);
    assert!(
        matches!(
            damage.what,
            Wrong::BatchLost {
                number: BatchNumber(2),
                run: Run(2),
                ..
            }
        ),
        "{damage}"
    );
    assert_eq!(damage.position, second.position as u64);
}

#[test]
fn a_run_that_kept_less_than_a_checkpoint_stands_for_is_named() {
    let mut journal = Journal::new();
    journal.append(1, 10);
    journal.append(1, 10);
    journal.append(1, 10);
    journal.crash(|| true);
    // The next run read the first batch alone, and then a checkpoint of the second is
    // put beside its files.
    let mut plan = journal.recover().unwrap();
    plan.kept = BatchNumber(1);
    let whole = journal.truth.clone();
    journal.restart(&plan);
    journal.append(1, 10);
    journal.crash(|| true);
    journal.truth = whole;
    journal.checkpoint(2);
    assert!(matches!(damage(&journal).what, Wrong::Contradiction { .. }));
}

#[test]
fn a_message_that_imitates_a_batch_is_not_taken_for_one() {
    // Somebody who knows the installation, the journal, the run, the number and the
    // place, and not the salt, has a batch stored that claims to know the next one
    // durable. Then its last block is torn.
    let mut journal = Journal::new();
    journal.append(1, 10);
    journal.flushed();
    let mut origin = journal.origin;
    origin.salt = 0;
    let forged = crate::journal::batch::Seal::new().finish(
        &origin,
        12288,
        crate::journal::batch::Label {
            number: BatchNumber(3),
            durable_before: BatchNumber(2),
            ..Default::default()
        },
    );
    journal.append(1, 9000);
    let batch = journal.pending.last_mut().unwrap();
    batch.bytes[4096..4096 + 64].copy_from_slice(&forged);
    let last = batch.bytes.len() - 4096;
    batch.bytes[last..].fill(0);
    journal.crash(|| true);
    assert_eq!(journal.recover().unwrap().kept.0, 1);
}
