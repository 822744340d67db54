//! The ring against a queue of vectors: batches, wraps, full and empty.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use courser_core::ring::{
    CAPACITY_MAX, CAPACITY_MIN, CapacityRefused, ClaimError, FRAGMENT_SIZE_MAX, Sleep, Wake, ring,
    ring_from,
};
use proptest::prelude::*;

/// Near enough to 2^64 that positions overflow within a few records.
const NEAR_OVERFLOW: u64 = u64::MAX - 100;

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    ClaimAndGiveUp(usize),
    Publish,
    ReadAll,
    ReadSome { count: usize, put_back: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![3 => 0_usize..40, 1 => 0_usize..300];
    let step = prop_oneof![
        8 => len.clone().prop_map(Step::Push),
        1 => len.prop_map(Step::ClaimAndGiveUp),
        3 => Just(Step::Publish),
        1 => Just(Step::ReadAll),
        2 => (0_usize..6, any::<bool>())
            .prop_map(|(count, put_back)| Step::ReadSome { count, put_back }),
    ];
    prop::collection::vec(step, 1..200)
}

/// What the ring is to outsiders: two queues, committed and published.
#[derive(Default)]
struct Model {
    committed: VecDeque<Vec<u8>>,
    published: VecDeque<Vec<u8>>,
}

fn record_size(fragment: &[u8]) -> usize {
    8 + fragment.len().next_multiple_of(8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn it_behaves_like_two_queues(
        shift in 5_u32..=9,
        start in prop_oneof![Just(0), Just(NEAR_OVERFLOW), any::<u64>()],
        steps in steps(),
    ) {
        let capacity = 1 << shift;
        let (mut writer, mut reader) = ring_from(capacity, start).unwrap();
        let mut model = Model::default();
        let mut next = 0_u8;
        for step in steps {
            match step {
                Step::Push(len) => {
                    let fragment: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let inside: usize = model.committed.iter().chain(&model.published)
                        .map(|fragment| record_size(fragment)).sum();
                    match writer.push(&fragment) {
                        Ok(()) => {
                            prop_assert!(inside + record_size(&fragment) <= capacity as usize);
                            model.committed.push_back(fragment);
                        }
                        Err(ClaimError::Full { needed, free }) => {
                            prop_assert!(needed > free);
                            // Nothing but what is inside and paddings keeps it out.
                            prop_assert!(inside > 0);
                            prop_assert!(needed as usize >= record_size(&fragment));
                        }
                        Err(ClaimError::Oversize { size, size_max }) => {
                            prop_assert_eq!(size, len);
                            prop_assert!(len > size_max as usize);
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Step::ClaimAndGiveUp(len) => {
                    if let Ok(mut claim) = writer.claim(len) {
                        claim.fill(0xee);
                    }
                }
                Step::Publish => {
                    prop_assert_eq!(writer.publish(), Wake::Unneeded);
                    model.published.append(&mut model.committed);
                }
                Step::ReadAll => {
                    // A batch ends where the writer was last seen: twice is all.
                    for _ in 0..2 {
                        reader.read(|fragment| {
                            let expected = model.published.pop_front();
                            assert_eq!(Some(fragment), expected.as_deref());
                        }).unwrap();
                    }
                    prop_assert!(model.published.is_empty());
                }
                Step::ReadSome { count, put_back } => {
                    let mut batch = reader.batch().unwrap();
                    let mut last = None;
                    for _ in 0..count {
                        let Some(fragment) = batch.next_fragment().unwrap() else { break };
                        prop_assert_eq!(fragment.as_ptr().align_offset(8), 0);
                        let expected = model.published.pop_front();
                        prop_assert_eq!(Some(fragment), expected.as_deref());
                        last = expected;
                    }
                    if put_back && let Some(last) = last {
                        batch.put_back();
                        model.published.push_front(last);
                    }
                }
            }
        }
        // Everything committed arrives when the writer goes.
        drop(writer);
        model.published.append(&mut model.committed);
        prop_assert_eq!(reader.is_closed(), model.published.is_empty());
        for _ in 0..2 {
            reader.read(|fragment| {
                assert_eq!(Some(fragment), model.published.pop_front().as_deref());
            }).unwrap();
        }
        prop_assert!(model.published.is_empty() && reader.is_closed());
    }
}

#[test]
fn a_capacity_is_a_power_of_two_within_bounds() {
    for capacity in [0, 1, 16, 33, 4095, CAPACITY_MAX + 1, CAPACITY_MAX << 1] {
        assert_eq!(
            ring(capacity).map(drop),
            Err(CapacityRefused { capacity }),
            "{capacity}"
        );
    }
    assert!(ring(CAPACITY_MIN).is_ok());
}

#[test]
fn the_largest_fragment_fits_an_empty_ring_wherever_it_begins() {
    for capacity in [CAPACITY_MIN, 64, 4096, 128 * 1024] {
        let size_max = ring(capacity).unwrap().0.fragment_size_max();
        for start in (0..capacity)
            .step_by(capacity as usize / 4)
            .chain([8, capacity - 8])
        {
            let (mut writer, mut reader) = ring_from(capacity, u64::from(start)).unwrap();
            let fragment = vec![1; size_max as usize];
            writer.push(&fragment).unwrap();
            assert_eq!(writer.publish(), Wake::Unneeded);
            assert_eq!(reader.read(|seen| assert_eq!(seen, fragment)), Ok(1));
        }
    }
}

#[test]
fn an_oversized_fragment_is_refused_by_name() {
    let (mut writer, _reader) = ring(1 << 20).unwrap();
    assert_eq!(writer.fragment_size_max(), FRAGMENT_SIZE_MAX);
    for size in [FRAGMENT_SIZE_MAX as usize + 1, 1 << 32, usize::MAX] {
        assert_eq!(
            writer.claim(size).map(drop),
            Err(ClaimError::Oversize {
                size,
                size_max: FRAGMENT_SIZE_MAX
            })
        );
    }
}

#[test]
fn a_full_ring_says_what_is_needed_and_what_is_free() {
    let (mut writer, mut reader) = ring(64).unwrap();
    writer.push(&[1; 24]).unwrap();
    writer.push(&[2; 9]).unwrap();
    // Eight bytes of padding, then a record of sixteen.
    let full = ClaimError::Full {
        needed: 24,
        free: 8,
    };
    assert_eq!(writer.push(&[3; 8]), Err(full));
    assert_eq!(writer.publish(), Wake::Unneeded);
    assert_eq!(writer.push(&[3; 8]), Err(full), "nothing is given back yet");
    reader.read(|_| ()).unwrap();
    writer.push(&[3; 8]).unwrap();
    assert_eq!(writer.free(), 64 - 8 - 16);
}

#[test]
fn only_a_sleeping_reader_is_rung_and_once() {
    let (mut writer, mut reader) = ring(4096).unwrap();
    let mut publish = || {
        writer.push(b"x").unwrap();
        writer.publish()
    };
    assert_eq!(publish(), Wake::Unneeded);
    assert_eq!(reader.try_sleep(), Sleep::Refused, "a record is there");
    assert_eq!(publish(), Wake::Unneeded);
    reader.read(|_| ()).unwrap();
    assert_eq!(reader.try_sleep(), Sleep::Granted);
    assert_eq!(publish(), Wake::Needed);
    assert_eq!(publish(), Wake::Unneeded);
    reader.awake();
    reader.read(|_| ()).unwrap();
    assert_eq!(reader.try_sleep(), Sleep::Granted);
    reader.awake();
    assert_eq!(publish(), Wake::Unneeded, "it woke by itself");
}

#[test]
fn publishing_nothing_wakes_nobody() {
    let (mut writer, mut reader) = ring(4096).unwrap();
    assert_eq!(reader.try_sleep(), Sleep::Granted);
    assert_eq!(writer.publish(), Wake::Unneeded);
}

#[test]
fn a_writer_sleeps_only_while_its_fragment_finds_no_space() {
    let (mut writer, mut reader) = ring(64).unwrap();
    assert_eq!(writer.try_sleep(24), Ok(Sleep::Refused));
    writer.push(&[1; 24]).unwrap();
    writer.push(&[2; 24]).unwrap();
    assert_eq!(writer.publish(), Wake::Unneeded);
    assert!(matches!(
        writer.try_sleep(25),
        Err(ClaimError::Oversize { .. })
    ));
    assert_eq!(writer.try_sleep(24), Ok(Sleep::Granted));
    reader.read(|_| ()).unwrap();
    assert_eq!(reader.wake_writer(), Wake::Needed);
    assert_eq!(reader.wake_writer(), Wake::Unneeded);
    writer.awake();
    writer.push(&[3; 24]).unwrap();
}

#[test]
fn each_end_learns_that_the_other_left() {
    let (mut writer, mut reader) = ring(64).unwrap();
    writer.push(b"last").unwrap();
    assert_eq!(reader.try_sleep(), Sleep::Granted);
    assert_eq!(writer.close(), Wake::Needed);
    assert!(!reader.is_closed(), "one record is unread");
    assert_eq!(reader.read(|fragment| assert_eq!(fragment, b"last")), Ok(1));
    assert!(reader.is_closed());
    assert_eq!(reader.try_sleep(), Sleep::Refused);

    let (mut writer, reader) = ring(32).unwrap();
    writer.push(&[1; 8]).unwrap();
    writer.push(&[1; 8]).unwrap();
    assert_eq!(writer.publish(), Wake::Unneeded);
    assert_eq!(writer.try_sleep(8), Ok(Sleep::Granted));
    assert!(!writer.is_closed());
    assert_eq!(reader.close(), Wake::Needed);
    assert!(writer.is_closed());
    assert_eq!(writer.try_sleep(8), Ok(Sleep::Refused));
}
