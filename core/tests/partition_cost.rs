//! What a message costs does not depend on how many there are: each test does
//! the same work beside little and beside much, and compares.
//!
//! The bound is coarse, for machines are noisy, and the smallest of several
//! rounds counts; what walks a whole partition per message misses it by far.

#![allow(clippy::unwrap_used, missing_docs)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "what something costs is seen on a clock"
)]

use std::time::{Duration, Instant};

use courser_core::frame::MESSAGE_HEADER_SIZE;
use courser_core::frame::encode::{Envelope, message, message_size};
use courser_core::id::{DestinationNumber, Handle, Offset, PartitionIndex};
use courser_core::limits::UNSETTLED_MAX;
use courser_core::memory::{Arena, CHUNK};
use courser_core::partition::Partition;
use courser_core::partition::log::{Address, RunLimit};
use courser_core::time::Wall;

/// How much dearer the same work may be beside much.
const RATIO_MAX: u32 = 10;
const ROUNDS: usize = 5;
const SUBSCRIPTION: Handle = Handle::new(0, 1);
const STUCK: Handle = Handle::new(1, 1);
const BUSY: Handle = Handle::new(2, 1);

fn partition(retain: u64) -> Partition {
    let address = Address {
        destination: DestinationNumber(1),
        partition: PartitionIndex(0),
    };
    Partition::new(address, retain)
}

fn frame(body: usize) -> Vec<u8> {
    let mut frame = vec![0; message_size(0, body)];
    message(&Envelope::default(), &[], &vec![1; body], &mut frame);
    frame
}

fn append(partition: &mut Partition, arena: &mut Arena, frame: &[u8]) -> Offset {
    let claims = partition.claims();
    partition.log.append(arena, frame, claims, Wall(0)).unwrap()
}

fn deliver(partition: &mut Partition, arena: &Arena, consumer: Handle, messages: u64) -> u64 {
    let bytes = u64::MAX;
    let limit = RunLimit { messages, bytes };
    let Partition { log, parts } = partition;
    parts[0]
        .1
        .deliver(arena, log, consumer, 0, limit)
        .map_or(0, |delivered| delivered.run.count.into())
}

/// The shortest of several rounds.
fn shortest(mut round: impl FnMut()) -> Duration {
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed()
        })
        .min()
        .unwrap()
}

fn assert_no_dearer(beside_much: Duration, beside_little: Duration) {
    assert!(
        beside_much < beside_little * RATIO_MAX,
        "{beside_much:?} against {beside_little:?}"
    );
}

/// One message at a time, appended, delivered and settled through its offset,
/// while another consumer sits on `stuck` messages.
fn settled_through_beside(stuck: u32) -> Duration {
    let mut arena = Arena::new(256);
    let mut partition = partition(0);
    partition.subscribe(&arena, SUBSCRIPTION, Offset(0));
    let frame = frame(16);
    let mut held = 0;
    for _ in 0..stuck {
        append(&mut partition, &mut arena, &frame);
        held += deliver(&mut partition, &arena, STUCK, 1);
    }
    assert_eq!(held, stuck.into());
    shortest(|| {
        for _ in 0..10_000 {
            let offset = append(&mut partition, &mut arena, &frame);
            assert_eq!(deliver(&mut partition, &arena, BUSY, 1), 1);
            let Partition { log, parts } = &mut partition;
            let outcome = parts[0]
                .1
                .acknowledge_through(&mut arena, log, BUSY, offset);
            assert_eq!(outcome.settled, 1);
        }
    })
}

#[test]
fn acknowledging_through_walks_over_nothing_that_others_hold() {
    assert_no_dearer(
        settled_through_beside(UNSETTLED_MAX - 1),
        settled_through_beside(0),
    );
}

/// One message at a time beside `segments` that retention keeps.
fn settled_beside_retained(segments: u32) -> Duration {
    let mut arena = Arena::new(segments + 8);
    let mut partition = partition(u64::from(segments) * CHUNK as u64);
    let large = frame(CHUNK - MESSAGE_HEADER_SIZE);
    for _ in 0..segments {
        // Its header alone is written, so that the rest of the memory is not touched.
        let chunk = arena.take().unwrap();
        arena.bytes_mut(chunk)[..MESSAGE_HEADER_SIZE]
            .copy_from_slice(&large[..MESSAGE_HEADER_SIZE]);
        partition
            .log
            .adopt(&mut arena, chunk, large.len(), 0, Wall(0));
    }
    assert_eq!(partition.log.chunks(), segments as usize);
    partition.subscribe(&arena, SUBSCRIPTION, partition.log.next());
    let small = frame(16);
    shortest(|| {
        for _ in 0..1_000 {
            let offset = append(&mut partition, &mut arena, &small);
            assert_eq!(deliver(&mut partition, &arena, BUSY, 1), 1);
            let Partition { log, parts } = &mut partition;
            let outcome = parts[0].1.acknowledge(&mut arena, log, BUSY, offset, 1);
            assert_eq!(outcome.settled, 1);
        }
    })
}

#[test]
fn settling_walks_over_nothing_that_is_retained() {
    assert_no_dearer(settled_beside_retained(8_192), settled_beside_retained(8));
}
