//! The storage format against bytes that another encoder wrote.
//!
//! Each vector has to be read as what its lines name, and that has to be written as
//! the vector's bytes. A change of the layout that reader and writer agree on passes
//! every round trip; here it fails.
#![allow(clippy::unwrap_used)]

#[expect(dead_code, reason = "the frames are other tests'")]
mod vectors;

use std::collections::BTreeMap;

use courser_core::auth::Principal;
use courser_core::catalog::change::Change;
use courser_core::catalog::{Dispatch, Entry as Destination, Policies, Retention, Shape};
use courser_core::error::Refusal;
use courser_core::frame::MESSAGE_HEADER_SIZE;
use courser_core::id::{
    BatchNumber, CatalogVersion, DestinationNumber, Epoch, FileSequence, Installation,
    JournalNumber, Offset, PageNumber, PartitionIndex, PartitionSequence, ProducerId,
    Run as RunNumber, Sequence, SubscriptionNumber,
};
use courser_core::journal::batch::{Batch, Label, Seal};
use courser_core::journal::entry::{Entries, Entry, Fate, PageImage, Place, Reached, Run};
use courser_core::journal::{BLOCK_SIZE, Identity, Origin, Start, batch, checkpoint, file};
use courser_core::name::{self, DestinationKind};
use courser_core::subscription::Kind as Sharing;
use courser_core::time::Wall;
use zerocopy::little_endian::U32;

const ORIGIN: Origin = Origin {
    identity: Identity {
        installation: Installation(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        journal: JournalNumber(3),
    },
    run: RunNumber(5),
    salt: 0x5eed_5a17_c0ff_ee01,
};
const POSITION: u64 = 8192;
const DESTINATION: DestinationNumber = DestinationNumber::new(4, 2);
const SUBSCRIPTION: SubscriptionNumber = SubscriptionNumber(6);
const PRODUCER: ProducerId = ProducerId(11);

/// The vectors by their names, and the names in their order.
fn vectors() -> (BTreeMap<&'static str, Vec<u8>>, Vec<&'static str>) {
    let all = vectors::read(include_str!("vectors/journal.hex"));
    let names = all.iter().map(|vector| vector.name).collect();
    let vectors = all.into_iter().map(|it| (it.name, it.bytes)).collect();
    (vectors, names)
}

fn changed(version: u64, change: Change) -> Entry<'static> {
    Entry::CatalogChanged {
        version: CatalogVersion(version),
        change,
    }
}

#[test]
fn a_files_header_is_what_the_page_says() {
    let (vectors, _) = vectors();
    let mut block = vectors["file-header"].clone();
    block.resize(BLOCK_SIZE, 0);
    let header = file::Header {
        origin: ORIGIN,
        sequence: FileSequence(17),
        recovered: BatchNumber(40),
        size: 64 << 20,
    };
    assert_eq!(file::Header::read(&block), Ok(header));
    assert_eq!(header.block().to_vec(), block);
}

#[test]
fn a_checkpoints_header_is_what_the_page_says() {
    let (vectors, _) = vectors();
    let mut block = vectors["checkpoint-header"].clone();
    block.resize(BLOCK_SIZE, 0);
    let header = checkpoint::Header {
        origin: ORIGIN,
        number: 9,
        start: Start {
            sequence: FileSequence(17),
            position: POSITION,
            number: BatchNumber(42),
        },
        batches: 3,
        size: 65_536,
        division: checkpoint::Division {
            shards: 4,
            since: RunNumber(2),
        },
    };
    assert_eq!(
        checkpoint::Header::read(&ORIGIN.identity, &block),
        Ok(header)
    );
    assert_eq!(header.block().to_vec(), block);
}

#[test]
fn each_entry_is_what_the_page_says() {
    let (vectors, mut names) = vectors();
    let place = Place {
        destination: DESTINATION,
        partition: PartitionIndex(2),
    };
    let topic = name::Destination::new(DestinationKind::Topic, "/md/eu").unwrap();
    let policies = |producers_max, consumers_max, subscriptions_max| Policies {
        producers_max,
        consumers_max,
        subscriptions_max,
    };
    let created = Destination {
        number: DESTINATION,
        destination: topic,
        shape: Shape {
            partitions: 3,
            retention: Retention::UntilExpired {
                segment: 5 << 20,
                period: 3600,
            },
            dispatch: Dispatch::Early,
        },
        policies: policies(5, 0, 2),
    };
    let others = Change::SetPolicies(DESTINATION, policies(1, 2, 3));
    let runs = [Run::new(Offset(40), 3), Run::new(Offset(50), 1)];
    let vacant = [4, 2].map(|slot| U32::new(DestinationNumber::new(slot, slot - 1).0));
    let reached = [Reached {
        partition: 2.into(),
        partition_sequence: 5.into(),
        sequence: 9.into(),
        ..Reached::default()
    }];
    let fates = [
        Fate {
            partition_sequence: 3.into(),
            offset: 40.into(),
            append_time: 1_700_000_000_123_456_789.into(),
            count: 2.into(),
            partition: 2.into(),
            refusal: 0.into(),
        },
        Fate {
            partition_sequence: 5.into(),
            count: 1.into(),
            partition: 2.into(),
            refusal: Refusal::Unsupported.code().into(),
            ..Fate::default()
        },
    ];
    let expected = [
        (
            "catalog-created",
            changed(8, Change::Create(created.clone())),
        ),
        ("catalog-policies", changed(9, others)),
        ("catalog-deleted", changed(10, Change::Delete(DESTINATION))),
        (
            "offsets-reserved",
            Entry::OffsetsReserved {
                place,
                next: Offset(65_536),
            },
        ),
        (
            "producer-attached",
            Entry::ProducerAttached {
                producer: PRODUCER,
                epoch: Epoch(2),
                destination: DESTINATION,
                term: 3,
                principal: Principal::ANONYMOUS,
                exclusive: true,
                name: "desk",
            },
        ),
        (
            "producer-forgotten",
            Entry::ProducerForgotten { producer: PRODUCER },
        ),
        (
            "producer-ids-reserved",
            Entry::ProducerIdsReserved {
                next: ProducerId((1 << 48) + 1000),
            },
        ),
        (
            "part-begun",
            Entry::PartBegun {
                place,
                subscription: SUBSCRIPTION,
                start: Offset(40),
            },
        ),
        (
            "subscription-made",
            Entry::SubscriptionMade {
                destination: DESTINATION,
                subscription: SUBSCRIPTION,
                sharing: Sharing::Shared,
                durable: true,
                name: "books",
            },
        ),
        (
            "subscription-ended",
            Entry::SubscriptionEnded {
                destination: DESTINATION,
                subscription: SUBSCRIPTION,
            },
        ),
        (
            "settled",
            Entry::Settled {
                place,
                subscription: SUBSCRIPTION,
                runs: &runs,
            },
        ),
        (
            "cursor",
            Entry::Cursor {
                place,
                subscription: SUBSCRIPTION,
                cursor: Offset(43),
                bits: &[0x80],
            },
        ),
        (
            "returned",
            Entry::Returned {
                place,
                subscription: SUBSCRIPTION,
                run: Run::new(Offset(43), 2),
                deliveries: 2,
            },
        ),
        (
            "send-refused",
            Entry::SendRefused {
                producer: PRODUCER,
                epoch: Epoch(2),
                place,
                sequence: Sequence(9),
                partition_sequence: PartitionSequence(5),
                refusal: Refusal::Unsupported,
            },
        ),
        (
            "emptied",
            Entry::Emptied {
                place,
                first: Offset(100),
            },
        ),
        (
            "catalog-kept",
            Entry::CatalogKept {
                version: CatalogVersion(10),
                slots: 7,
                vacant: &vacant,
            },
        ),
        (
            "destination-kept",
            Entry::DestinationKept {
                version: CatalogVersion(10),
                destination: created.clone(),
            },
        ),
        (
            "producer-sent",
            Entry::ProducerSent {
                producer: PRODUCER,
                reached: &reached,
                fates: &fates,
            },
        ),
        (
            "partition-kept",
            Entry::PartitionKept {
                place,
                next: Offset(42),
            },
        ),
        (
            "subscriptions-numbered",
            Entry::SubscriptionsNumbered {
                next: SubscriptionNumber(7 << 6),
            },
        ),
        (
            "term-reached",
            Entry::TermReached {
                destination: place.destination,
                term: 3,
            },
        ),
        (
            "paged",
            Entry::Paged {
                place,
                image: PageImage {
                    run: RunNumber(5),
                    page: PageNumber(1_024),
                    size: 61_440,
                    sum: 0x1234_5678,
                    first: Offset(40),
                    count: 512,
                },
            },
        ),
    ];
    names.retain(|name| !["file-header", "checkpoint-header", "message", "batch"].contains(name));
    assert_eq!(
        names,
        expected.iter().map(|(name, _)| *name).collect::<Vec<_>>()
    );
    for (name, entry) in &expected {
        let bytes = &vectors[name];
        let mut read = Entries::new(bytes, 1);
        assert_eq!(read.next().unwrap().as_ref(), Ok(entry), "{name}");
        assert!(read.next().is_none(), "{name}");
        let mut written = vec![0xee; entry.size()];
        assert_eq!(entry.write(&mut written), bytes.len(), "{name}");
        assert_eq!(&written, bytes, "{name}");
    }
    let bytes = &vectors["message"];
    let Some(Ok(Entry::Message(message))) = Entries::new(bytes, 1).next() else {
        panic!("a message is an entry");
    };
    assert_eq!(message.bytes, bytes);
    assert_eq!(message.body, b"hello");
    assert_eq!(message.header.handle.get(), DESTINATION.0);
    assert_eq!(message.header.offset.get(), 7);
    let sum = courser_core::frame::checksum::message(&bytes[..MESSAGE_HEADER_SIZE + 5]);
    assert_eq!(message.header.checksum.get(), sum);
}

#[test]
fn a_batch_is_what_the_page_says() {
    let (vectors, names) = vectors();
    let bytes = &vectors["batch"];
    let label = Label {
        number: BatchNumber(42),
        durable_before: BatchNumber(40),
        written: Wall(1_700_000_000_123_456_789),
    };
    // Behind the two headers.
    let entries: Vec<&Vec<u8>> = names[2..names.len() - 1]
        .iter()
        .map(|name| &vectors[name])
        .collect();
    let read = Batch::open(&ORIGIN, POSITION, bytes).unwrap();
    assert_eq!(read.header.label, label);
    assert_eq!(read.header.entries as usize, entries.len());
    assert_eq!(read.entries().map(Result::unwrap).count(), entries.len());
    assert_eq!(read.header.end(), POSITION + 4096);

    let mut seal = Seal::new();
    for entry in entries {
        let (front, back) = entry.split_at(entry.len() / 2);
        seal.extend(front);
        seal.extend(back);
        seal.count(1);
    }
    assert_eq!(seal.length(), bytes.len());
    let header = seal.finish(&ORIGIN, POSITION, label);
    assert_eq!(header, bytes[..batch::HEADER_SIZE]);
}

#[test]
fn a_batch_is_none_in_another_place_run_journal_or_installation() {
    let (vectors, _) = vectors();
    let bytes = &vectors["batch"];
    type Change = fn(&mut Origin);
    let others: [Change; 4] = [
        |origin| origin.run.0 += 1,
        |origin| origin.salt += 1,
        |origin| origin.identity.journal.0 += 1,
        |origin| origin.identity.installation.0 += 1,
    ];
    for change in others {
        let mut origin = ORIGIN;
        change(&mut origin);
        assert!(Batch::open(&origin, POSITION, bytes).is_none());
    }
    assert!(Batch::open(&ORIGIN, POSITION + 4096, bytes).is_none());
}
