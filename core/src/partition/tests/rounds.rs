//! A long log is looked at a few segments at a time for some that may leave.

use super::*;
use crate::partition::log::Log;

/// Segments of the log: as many as two looks see, and some.
const SEGMENTS: u64 = 700;

/// Of how many the newest are seen by each look, and how many others.
const LOOKED_AT: u64 = 256;

/// A log of so many segments with a message each, and one more.
fn long_log(arena: &mut Arena) -> Log {
    let mut log = Log::new(ADDRESS, 0);
    for number in 0..=SEGMENTS {
        let frame = frame(number, CHUNK - 500);
        log.append(arena, &frame, 1, append_time(number)).unwrap();
    }
    assert_eq!(log.chunks() as u64, SEGMENTS + 1);
    log
}

fn arena() -> Arena {
    Arena::new(SEGMENTS as u32 + 8)
}

/// Looks that find nothing, until there is nothing more to look at.
fn looks(log: &mut Log, round: u32) -> usize {
    let everything = 0..usize::MAX;
    for look in 1..100 {
        assert_eq!(
            log.may_leave(core::slice::from_ref(&everything), 32, round),
            []
        );
        if !log.has_more_to_look_at() {
            return look;
        }
    }
    panic!("it is looked for ever");
}

/// Whoever looks through many logs goes on until each was looked through: those that were
/// are not begun anew meanwhile.
#[test]
fn a_round_ends_where_it_began() {
    let mut log = long_log(&mut arena());
    let of_a_round = (SEGMENTS - LOOKED_AT).div_ceil(LOOKED_AT) as usize;
    assert_eq!(looks(&mut log, 1), of_a_round);
    assert_eq!(looks(&mut log, 1), 1, "this one is over");
    assert_eq!(looks(&mut log, 2), of_a_round);
}

/// Each of the older ones is found in a round, though it begins where the last look ended.
#[test]
fn a_round_comes_to_all_wherever_it_begins() {
    let mut log = long_log(&mut arena());
    // What is found stays where it is, and is found again by the next round.
    for round in 1..10 {
        let mut found = BTreeSet::new();
        loop {
            let spared = 0..(round * 10) as usize;
            found.extend(log.may_leave(&[spared], 300, round));
            if !log.has_more_to_look_at() {
                break;
            }
        }
        let all = u64::from(round) * 10..SEGMENTS;
        assert_eq!(found, all.map(Offset).collect::<BTreeSet<Offset>>());
    }
}

#[test]
fn of_an_empty_log_nothing_leaves() {
    let mut arena = arena();
    let mut log = Log::new(ADDRESS, 0);
    assert_eq!(log.may_leave(&[], 32, 1), []);
    assert!(!log.has_more_to_look_at());
    log = long_log(&mut arena);
    log.may_leave(&[], 300, 1);
    log.clear(&mut arena);
    assert_eq!(log.may_leave(&[], 32, 1), []);
    assert!(!log.has_more_to_look_at());
}
