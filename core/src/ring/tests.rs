//! A peer that breaks the protocol: tests that write into the header and over
//! the records' words, as a stranger with the region mapped could.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::sync::Ordering;

/// A page, so a few records reach around its end.
const CAPACITY: u32 = 4096;

fn filled(position: u64) -> (Writer, Reader) {
    let (mut writer, reader) = ring_from(CAPACITY, position).unwrap();
    for len in [0, 1, 8, 100, 1000] {
        writer.push(&vec![7; len]).unwrap();
    }
    assert_eq!(writer.publish(), Wake::Unneeded);
    (writer, reader)
}

fn publish_raw(writer: &Writer, position: u64) {
    let word = &writer.region.header().writer.position;
    word.store(position, Ordering::Release);
}

fn consume_raw(reader: &Reader, position: u64) {
    let word = &reader.region.header().reader.position;
    word.store(position, Ordering::Release);
}

fn set_word_raw(writer: &Writer, offset: u32, word: u64) {
    assert!(offset < CAPACITY && offset.is_multiple_of(WORD));
    // SAFETY: in bounds and aligned. No slice is out while the tests do this.
    unsafe { writer.region.set_word(offset, word) }
}

#[test]
fn a_writer_that_runs_ahead_of_the_ring_is_corrupt() {
    let (writer, mut reader) = filled(0);
    publish_raw(&writer, u64::from(CAPACITY) + 8);
    assert_eq!(
        reader.read(|_| panic!("nothing is to be trusted")),
        Err(Corrupt::Position {
            peer: u64::from(CAPACITY) + 8,
            own: 0,
            capacity: CAPACITY
        })
    );
}

#[test]
fn a_writer_that_goes_backwards_is_corrupt() {
    let (writer, mut reader) = filled(0);
    reader.read(|_| ()).unwrap();
    publish_raw(&writer, 8);
    assert!(matches!(
        reader.batch().map(drop),
        Err(Corrupt::Position { peer: 8, .. })
    ));
}

#[test]
fn a_writer_between_words_is_corrupt() {
    let (writer, mut reader) = filled(0);
    publish_raw(&writer, 12);
    assert!(matches!(
        reader.batch().map(drop),
        Err(Corrupt::Position { peer: 12, .. })
    ));
}

#[test]
fn a_reader_that_runs_ahead_goes_backwards_or_stops_between_words_is_corrupt() {
    for wrong in [4097_u64, 4096 + 8, 12, 0_u64.wrapping_sub(8), u64::MAX / 2] {
        let (mut writer, reader) = ring(CAPACITY).unwrap();
        while writer.push(&[0; 24]).is_ok() {}
        assert_eq!(writer.publish(), Wake::Unneeded);
        consume_raw(&reader, wrong);
        assert_eq!(
            writer.push(&[0; 24]),
            Err(ClaimError::Corrupt(Corrupt::Position {
                peer: wrong,
                own: u64::from(CAPACITY),
                capacity: CAPACITY
            })),
            "{wrong}"
        );
    }
}

#[test]
fn a_reader_that_takes_back_what_it_gave_is_corrupt() {
    let (mut writer, mut reader) = ring(CAPACITY).unwrap();
    while writer.push(&[0; 24]).is_ok() {}
    assert_eq!(writer.publish(), Wake::Unneeded);
    reader.read(|_| ()).unwrap();
    while writer.push(&[0; 24]).is_ok() {}
    consume_raw(&reader, 32);
    assert!(matches!(
        writer.push(&[0; 24]),
        Err(ClaimError::Corrupt(Corrupt::Position { peer: 32, .. }))
    ));
}

#[test]
fn lengths_and_marks_that_cannot_be_are_corrupt() {
    let beyond_published = record_size(1000);
    for (mark, length) in [
        (0, 0),
        (MARK_FRAGMENT, beyond_published + 400),
        (MARK_FRAGMENT, fragment_size_max(CAPACITY) + 1),
        (MARK_FRAGMENT, u32::MAX),
        (MARK_FRAGMENT, u32::MAX - 14),
        (MARK_PADDING, 0),
        (MARK_PADDING, CAPACITY),
        (MARK_PADDING, CAPACITY - WORD),
        (MARK_PADDING, u32::MAX),
        (MARK_FRAGMENT + 1, 8),
    ] {
        let (writer, mut reader) = filled(0);
        set_word_raw(&writer, 0, word(mark, length));
        assert_eq!(
            reader.read(|_| panic!("nothing before it")),
            Err(Corrupt::Record {
                position: 0,
                length,
                mark
            })
        );
    }
}

#[test]
fn what_comes_before_a_corrupt_record_is_read_and_given_back() {
    let (writer, mut reader) = filled(0);
    set_word_raw(&writer, 8, word(3, 3));
    let mut count = 0;
    let error = reader.read(|fragment| {
        assert!(fragment.is_empty());
        count += 1;
    });
    assert!(matches!(error, Err(Corrupt::Record { position: 8, .. })));
    assert_eq!(count, 1);
    assert_eq!(
        reader
            .region
            .header()
            .reader
            .position
            .load(Ordering::Acquire),
        8
    );
}

#[test]
fn an_error_names_the_words() {
    let position = Corrupt::Position {
        peer: 12,
        own: 0,
        capacity: 64,
    };
    assert!(position.to_string().contains("12"));
    let record = Corrupt::Record {
        position: 16,
        length: 99,
        mark: 0xab,
    };
    assert!(record.to_string().contains("0xab"));
    assert!(ClaimError::Corrupt(record).to_string().contains("99"));
}

proptest! {
    /// Whatever a stranger writes over the words and the position, each call
    /// ends with fragments from inside the area or with a named error.
    #[test]
    fn a_stranger_never_leads_outside_the_area(
        start in prop_oneof![Just(0_u64), Just(u64::MAX - 2047), any::<u64>()],
        words in prop::collection::vec((0..CAPACITY / WORD, any_word()), 0..16),
        published in prop_oneof![
            (0_u64..=2 * u64::from(CAPACITY)).prop_map(Some),
            any::<u64>().prop_map(Some),
            Just(None),
        ],
    ) {
        let (writer, mut reader) = filled(start);
        let first = reader.consumed;
        for (index, word) in words {
            set_word_raw(&writer, index * WORD, word);
        }
        if let Some(published) = published {
            publish_raw(&writer, first.wrapping_add(published));
        }
        let area = {
            // SAFETY: the whole area; only its address is used.
            let (bytes, _reading) = unsafe { reader.region.bytes(0, CAPACITY) };
            bytes.as_ptr_range()
        };
        // Sixteen bytes at least per fragment: the turns are bounded.
        for _turn in 0..4 {
            let outcome = reader.read(|fragment| {
                let range = fragment.as_ptr_range();
                assert!(area.start <= range.start && range.end <= area.end);
                assert!(fragment.len() <= fragment_size_max(CAPACITY) as usize);
            });
            let consumed = reader.consumed.wrapping_sub(first);
            prop_assert!(consumed <= u64::from(CAPACITY));
            if outcome.is_err() {
                break;
            }
        }
    }

    /// The same for a reader that lies to the writer.
    #[test]
    fn a_lying_reader_gets_no_unread_byte_overwritten(
        lies in prop::collection::vec(
            prop_oneof![any::<u64>(), 0..3 * u64::from(CAPACITY)], 1..8),
        len in 0_usize..2100,
    ) {
        let (mut writer, reader) = ring(CAPACITY).unwrap();
        let mut consumed = 0;
        for lie in lies {
            consume_raw(&reader, lie);
            for _ in 0..300 {
                match writer.push(&vec![1; len]) {
                    Ok(()) => (),
                    Err(ClaimError::Full { needed, free }) => {
                        prop_assert!(needed > free);
                        break;
                    }
                    Err(ClaimError::Oversize { size, size_max }) => {
                        prop_assert!(size > size_max as usize);
                        break;
                    }
                    Err(ClaimError::Corrupt(_)) => break,
                }
            }
            assert_eq!(writer.publish(), Wake::Unneeded);
            // Only a position that went forward, up to what is published, counts.
            let seen = writer.limit.wrapping_sub(u64::from(CAPACITY));
            prop_assert!(seen >= consumed && seen <= writer.published);
            prop_assert!(writer.committed - seen <= u64::from(CAPACITY));
            consumed = seen;
        }
    }
}

/// Words near to the true ones, which a uniform choice would never hit.
fn any_word() -> impl Strategy<Value = u64> {
    let mark = prop_oneof![
        4 => Just(MARK_FRAGMENT),
        2 => Just(MARK_PADDING),
        1 => any::<u32>(),
    ];
    let length = prop_oneof![
        4 => 0..=CAPACITY + 16,
        1 => any::<u32>(),
    ];
    (mark, length).prop_map(|(mark, length)| word(mark, length))
}
