//! Entries: what is written is read, and what is not an entry is named.

use proptest::prelude::*;
use zerocopy::little_endian::U32;

use crate::auth::Principal;
use crate::catalog::change::Change;
use crate::catalog::{Dispatch, Entry as Destination, Policies, Retention, Shape};
use crate::error::Refusal;
use crate::frame::decode::{Frame, Step, decode};
use crate::frame::encode::{self, Envelope};
use crate::id::{
    CatalogVersion, DestinationNumber, Epoch, Offset, PageNumber, PartitionIndex,
    PartitionSequence, ProducerId, Sequence, SubscriptionNumber,
};
use crate::journal::entry::{
    Entries, Entry, Fate, Kind, Malformed, PageImage, Place, Reached, Run,
};
use crate::name::{self, DestinationKind};
use crate::subscription::Kind as Sharing;

const PLACE: Place = Place {
    destination: DestinationNumber(4),
    partition: PartitionIndex(2),
};
const SUBSCRIPTION: SubscriptionNumber = SubscriptionNumber(6);

/// One of each kind.
fn each(check: impl Fn(&Entry<'_>)) {
    let mut message = vec![0; encode::message_size(0, 5)];
    encode::message(&Envelope::default(), &[], b"hello", &mut message);
    let Ok(Step::Frame(Frame::Message(message), _)) = decode(&message) else {
        panic!("a message is a frame");
    };
    let runs = [Run::new(Offset(3), 2), Run::new(Offset(9), 1)];
    let all = [
        Entry::Message(message),
        Entry::CatalogChanged {
            version: CatalogVersion(8),
            change: Change::Delete(DestinationNumber(4)),
        },
        Entry::OffsetsReserved {
            place: PLACE,
            next: Offset(65_536),
        },
        Entry::ProducerAttached {
            producer: ProducerId(11),
            epoch: Epoch(2),
            destination: DestinationNumber(4),
            term: 3,
            principal: Principal::ANONYMOUS,
            exclusive: true,
            name: "désk",
        },
        Entry::ProducerForgotten {
            producer: ProducerId(11),
        },
        Entry::ProducerIdsReserved {
            next: ProducerId(1 << 40),
        },
        Entry::PartBegun {
            place: PLACE,
            subscription: SUBSCRIPTION,
            start: Offset(40),
        },
        Entry::SubscriptionMade {
            destination: DestinationNumber(4),
            subscription: SUBSCRIPTION,
            sharing: Sharing::KeyShared,
            durable: true,
            name: "books",
        },
        Entry::SubscriptionEnded {
            destination: DestinationNumber(4),
            subscription: SUBSCRIPTION,
        },
        Entry::Settled {
            place: PLACE,
            subscription: SUBSCRIPTION,
            runs: &runs,
        },
        Entry::Cursor {
            place: PLACE,
            subscription: SUBSCRIPTION,
            cursor: Offset(40),
            bits: &[1, 2, 255],
        },
        Entry::Returned {
            place: PLACE,
            subscription: SUBSCRIPTION,
            run: Run::new(Offset(41), 3),
            deliveries: 2,
        },
        Entry::SendRefused {
            producer: ProducerId(11),
            epoch: Epoch(2),
            place: PLACE,
            sequence: Sequence(9),
            partition_sequence: PartitionSequence(5),
            refusal: Refusal::Unsupported,
        },
        Entry::Emptied {
            place: PLACE,
            first: Offset(100),
        },
        Entry::CatalogKept {
            version: CatalogVersion(8),
            slots: 7,
            vacant: &[U32::new(3), U32::new((5 << 12) + 6)],
        },
        Entry::DestinationKept {
            version: CatalogVersion(8),
            destination: Destination {
                number: DestinationNumber(4),
                destination: name::Destination::new(DestinationKind::Topic, "/md/eu").unwrap(),
                shape: Shape {
                    partitions: 3,
                    retention: Retention::UntilAcknowledged { segment: 1 << 20 },
                    dispatch: Dispatch::Early,
                },
                policies: Policies::default(),
            },
        },
        Entry::ProducerSent {
            producer: ProducerId(11),
            reached: &[Reached {
                partition: 2.into(),
                partition_sequence: 5.into(),
                sequence: 9.into(),
                ..Reached::default()
            }],
            fates: &[Fate {
                partition_sequence: 4.into(),
                offset: 40.into(),
                append_time: 1_000.into(),
                count: 2.into(),
                partition: 2.into(),
                refusal: 0.into(),
            }],
        },
        Entry::PartitionKept {
            place: PLACE,
            next: Offset(42),
        },
        Entry::SubscriptionsNumbered {
            next: SubscriptionNumber(7 << 6),
        },
        Entry::TermReached {
            destination: DestinationNumber(4),
            term: 3,
        },
        Entry::Paged {
            place: PLACE,
            image: PageImage {
                run: crate::id::Run(5),
                page: PageNumber(1_024),
                size: 61_440,
                sum: 0x1234_5678,
                first: Offset(40),
                count: 512,
            },
        },
    ];
    for kind in Kind::ALL {
        assert!(all.iter().any(|entry| entry.kind() == kind), "{kind:?}");
    }
    for entry in &all {
        check(entry);
    }
}

fn written(entry: &Entry<'_>) -> Vec<u8> {
    let mut bytes = vec![0xee; entry.size()];
    assert_eq!(entry.write(&mut bytes), bytes.len());
    bytes
}

fn first(bytes: &[u8]) -> Result<Entry<'_>, Malformed> {
    Entries::new(bytes, 1).next().unwrap()
}

#[test]
fn each_kind_is_read_as_it_was_written() {
    each(|entry| {
        let bytes = written(entry);
        assert!(bytes.len().is_multiple_of(8));
        assert_eq!(first(&bytes).as_ref(), Ok(entry));
        let two = [&bytes[..], &bytes[..]].concat();
        let read: Result<Vec<_>, _> = Entries::new(&two, 2).collect();
        assert_eq!(read, Ok(vec![entry.clone(), entry.clone()]));
    });
}

#[test]
fn a_batch_has_as_many_entries_as_it_claims() {
    each(|entry| {
        let bytes = written(entry);
        for (claimed, actual) in [(0, 1), (2, 1)] {
            let read: Result<Vec<_>, _> = Entries::new(&bytes, claimed).collect();
            assert_eq!(read, Err(Malformed::CountMismatch { claimed, actual }));
        }
        let mut after = Entries::new(&bytes, 0);
        assert!(after.next().is_some_and(|entry| entry.is_err()));
        assert!(after.next().is_none(), "nothing follows an error");
    });
    assert!(Entries::new(&[], 0).next().is_none());
}

#[test]
fn an_entry_that_is_cut_short_anywhere_is_none() {
    each(|entry| {
        let bytes = written(entry);
        for size in 1..bytes.len() {
            assert!(first(&bytes[..size]).is_err(), "{entry:?} of {size} bytes");
        }
    });
}

#[test]
fn what_another_version_wrote_is_refused_as_that() {
    let mut bytes = written(&Entry::ProducerForgotten {
        producer: ProducerId(11),
    });
    for (kind, version) in [(0x20, 1), (0x26, 1), (0x14, 1), (4, 2), (0x80, 2)] {
        (bytes[4], bytes[5]) = (kind, version);
        let newer = Malformed::Newer { kind, version };
        assert_eq!(first(&bytes), Err(newer));
        assert!(newer.to_string().contains("written by a newer version"));
    }
}

#[test]
fn each_field_that_cannot_be_is_named() {
    type Spoil = fn(&mut Vec<u8>);
    let out_of_range = |field| Malformed::OutOfRange { field };
    let cases: [(Kind, Spoil, Malformed); 18] = [
        (
            Kind::Emptied,
            |it| it[6] = 1,
            Malformed::UnknownFlags { flags: 1 },
        ),
        (
            Kind::Emptied,
            |it| it[0] = 7,
            Malformed::TooShort { length: 7 },
        ),
        (
            Kind::Emptied,
            |it| it[0] = 16,
            Malformed::TooShort { length: 16 },
        ),
        (
            Kind::Emptied,
            |it| it[0] = 25,
            Malformed::TooLong {
                length: 25,
                left: 24,
            },
        ),
        (Kind::Emptied, |it| it[13] = 4, out_of_range("partition")),
        (
            Kind::Emptied,
            |it| it[23] = 0x80,
            out_of_range("first offset"),
        ),
        (Kind::Cursor, |it| it[39] = 1, Malformed::NotZero),
        (Kind::PartBegun, |it| it[20] = 1, Malformed::NotZero),
        (Kind::Settled, |it| it[20] = 3, Malformed::TailMismatch),
        (
            Kind::Settled,
            |it| it[32] = 0,
            out_of_range("run of messages"),
        ),
        (
            Kind::ProducerAttached,
            |it| it[32] = 2,
            out_of_range("access"),
        ),
        (
            Kind::ProducerAttached,
            |it| it[41] = 0xff,
            Malformed::NotText,
        ),
        (Kind::CatalogChanged, |it| it[16] = 9, Malformed::NotAChange),
        // Page 1,024 is the first of its file, 2,047 the last.
        (
            Kind::Paged,
            |it| {
                (it[24], it[25]) = (0xff, 0x07);
                (it[28], it[29], it[30]) = (0x08, 0, 1);
            },
            out_of_range("page"),
        ),
        (
            Kind::Paged,
            |it| it[28..32].copy_from_slice(&[0xf8, 0xff, 0xff, 0x01]),
            out_of_range("page"),
        ),
        (Kind::Paged, |it| it[28..32].fill(0), out_of_range("page")),
        (Kind::Paged, |it| it[28] = 4, out_of_range("page")),
        (Kind::Paged, |it| it[40..44].fill(0), out_of_range("page")),
    ];
    for (kind, spoil, expected) in cases {
        let found = std::cell::Cell::new(false);
        each(|entry| {
            if entry.kind() == kind {
                let mut bytes = written(entry);
                spoil(&mut bytes);
                assert_eq!(first(&bytes), Err(expected), "{kind:?}");
                assert!(!expected.to_string().is_empty());
                found.set(true);
            }
        });
        assert!(found.get());
    }
}

proptest! {
    #[test]
    fn whatever_is_let_through_is_written_the_same(
        kind in prop_oneof![1u8..13, Just(0x80), any::<u8>()],
        body in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..140),
        less in 0usize..8,
    ) {
        let length = (8 + body.len()).saturating_sub(less);
        let mut bytes = vec![0; 8];
        bytes[..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        (bytes[4], bytes[5]) = (kind, 1);
        bytes.extend(&body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let claimed = bytes.len();
        let mut entries = Entries::new(&bytes, 1);
        if let Some(Ok(entry)) = entries.next() {
            let size = claimed - entries.left();
            prop_assert_eq!(written(&entry), &bytes[..size]);
        }
    }
}
