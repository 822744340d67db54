//! Memory stays flat: ten times what the arena holds flows through a queue's
//! partition while consumers sit on some of it.

#![allow(clippy::unwrap_used, missing_docs)]

use courser_core::frame::encode::{Envelope, message, message_size};
use courser_core::id::{DestinationNumber, Handle, Offset, PartitionIndex};
use courser_core::limits::PREFETCH_MESSAGES;
use courser_core::memory::{Arena, CHUNK};
use courser_core::partition::Partition;
use courser_core::partition::log::{Address, RunLimit};
use courser_core::time::Wall;

const CHUNKS: u32 = 128;
const BUSY: Handle = Handle::new(900, 1);
/// Messages between two turns.
const BATCH: usize = 64;

/// A partition through which messages flow. What a consumer keeps is counted.
struct Flow {
    arena: Arena,
    partition: Partition,
    frames: Frames,
    appended_bytes: usize,
    chunks_max: usize,
}

/// One encoded frame per size, so that a test spends its time elsewhere.
struct Frames(Vec<(usize, Vec<u8>)>);

impl Frames {
    fn of(&mut self, body: usize) -> &[u8] {
        let index = self.0.iter().position(|(size, _)| *size == body);
        let index = index.unwrap_or_else(|| {
            let mut frame = vec![0; message_size(0, body)];
            message(&Envelope::default(), &[], &vec![1; body], &mut frame);
            self.0.push((body, frame));
            self.0.len() - 1
        });
        &self.0[index].1
    }
}

fn subscription(index: u32) -> Handle {
    Handle::new(index, 1)
}

impl Flow {
    fn new(chunks: u32, subscriptions: u32) -> Self {
        let arena = Arena::new(chunks);
        let address = Address {
            destination: DestinationNumber(1),
            partition: PartitionIndex(0),
        };
        let mut partition = Partition::new(address, 0);
        for index in 0..subscriptions {
            partition.subscribe(&arena, subscription(index), Offset(0));
        }
        Self {
            arena,
            partition,
            frames: Frames(Vec::new()),
            appended_bytes: 0,
            chunks_max: 0,
        }
    }

    fn append(&mut self, body: usize) {
        let frame = self.frames.of(body);
        let claims = self.partition.claims();
        let log = &mut self.partition.log;
        if frame.len() <= CHUNK {
            log.append(&mut self.arena, frame, claims, Wall(0))
                .expect("memory is flat, so there is room");
        } else {
            let (mut head, mut last) = (None, None);
            for piece in frame.chunks(CHUNK) {
                let chunk = self.arena.take().expect("memory is flat");
                self.arena.bytes_mut(chunk)[..piece.len()].copy_from_slice(piece);
                if let Some(last) = last.replace(chunk) {
                    self.arena.chain(last, chunk);
                }
                head.get_or_insert(chunk);
            }
            log.adopt(&mut self.arena, head.unwrap(), frame.len(), claims, Wall(0));
        }
        self.appended_bytes += self.frames.of(body).len();
        self.chunks_max = self.chunks_max.max(self.partition.log.chunks());
    }

    /// Hands up to `messages` to `consumer` and returns their offsets.
    fn deliver(&mut self, part: usize, consumer: Handle, messages: u64) -> Vec<u64> {
        let mut offsets = Vec::new();
        let Partition { log, parts } = &mut self.partition;
        while let Some(rest) = messages.checked_sub(offsets.len() as u64) {
            let limit = RunLimit {
                messages: rest,
                bytes: u64::MAX,
            };
            let delivered = (rest > 0)
                .then(|| parts[part].1.deliver(&self.arena, log, consumer, 0, limit))
                .flatten();
            let Some(delivered) = delivered else {
                break;
            };
            let first = delivered.run.first.0;
            offsets.extend(first..first + u64::from(delivered.run.count));
        }
        offsets
    }

    fn settle(&mut self, part: usize, consumer: Handle, offset: u64) {
        let Partition { log, parts } = &mut self.partition;
        let outcome = parts[part]
            .1
            .acknowledge(&mut self.arena, log, consumer, Offset(offset), 1);
        assert_eq!(outcome.settled, 1);
    }

    /// A turn: a batch comes, every subscription takes it and settles all but what
    /// it keeps, and a bounded part of the thinning out is done.
    fn turn(&mut self, mut body: impl FnMut(u64) -> usize, keeps: impl Fn(u64) -> bool) {
        for _ in 0..BATCH {
            let offset = self.partition.log.next().0;
            self.append(body(offset));
        }
        for part in 0..self.partition.parts.len() {
            for offset in self.deliver(part, BUSY, u64::MAX) {
                if !keeps(offset) {
                    self.settle(part, BUSY, offset);
                }
            }
        }
        self.partition.thin_out(&mut self.arena);
    }

    fn flows(&self) -> bool {
        self.appended_bytes < 10 * self.arena.chunks() as usize * CHUNK
    }

    /// Everything that is held is settled; then all memory but one chunk is back.
    fn finish(mut self) {
        for part in 0..self.partition.parts.len() {
            let fresh = self.partition.parts[part].1.fresh();
            let Partition { log, parts } = &mut self.partition;
            let part = &mut parts[part].1;
            for consumer in (0..100).map(stuck).chain([BUSY]) {
                part.acknowledge_through(&mut self.arena, log, consumer, fresh);
            }
            assert_eq!(part.unsettled(), 0);
        }
        self.partition.audit(&self.arena);
        assert!(self.partition.log.chunks() <= 1);
        let free = self.arena.chunks() as usize - self.arena.free();
        assert_eq!(free, self.partition.log.chunks());
    }
}

fn stuck(index: u32) -> Handle {
    Handle::new(1_000 + index, 1)
}

/// Chunks that a batch takes, and the ends of segments that are not full yet.
fn slack(body_max: usize) -> usize {
    4 + 2 * (BATCH * message_size(0, body_max)).div_ceil(CHUNK)
}

/// Sizes from 0 to `body_max`, scattered.
fn scattered(offset: u64, body_max: usize) -> usize {
    let scattered = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    usize::try_from(scattered).unwrap() % (body_max + 1)
}

#[test]
fn ten_arenas_flow_through_a_few_chunks() {
    for body in [64, 1024, 16 * 1024] {
        let mut flow = Flow::new(CHUNKS, 1);
        while flow.flows() {
            flow.turn(|_| body, |_| false);
        }
        assert!(flow.chunks_max <= slack(body), "{} chunks", flow.chunks_max);
        flow.finish();
    }
}

/// How many chunks `bytes` take when neighbours that fit together are together:
/// two of them are always more than one chunk.
fn joined(bytes: usize) -> usize {
    2 * bytes.div_ceil(CHUNK)
}

#[test]
fn every_thousandth_message_that_stays_holds_no_more_than_itself() {
    for subscriptions in [1, 10] {
        for body_max in [64, 1024, 6_000] {
            let sizes = |offset| match body_max {
                6_000 => scattered(offset, body_max),
                body => body,
            };
            let mut flow = Flow::new(CHUNKS, subscriptions);
            while flow.flows() {
                flow.turn(sizes, |offset| offset % 1_000 == 500);
            }
            let kept: usize = (500..flow.partition.log.next().0)
                .step_by(1_000)
                .map(|offset| message_size(0, sizes(offset)))
                .sum();
            assert!(
                flow.chunks_max <= joined(kept) + slack(body_max),
                "{} chunks for {kept} bytes that {subscriptions} keep, of {body_max}",
                flow.chunks_max
            );
            flow.partition.audit(&flow.arena);
            flow.finish();
        }
    }
}

#[test]
fn frames_larger_than_a_chunk_come_and_go_whole() {
    let mut flow = Flow::new(CHUNKS, 1);
    let sizes = |offset| match offset % 16 {
        0 => CHUNK + scattered(offset, 3 * CHUNK),
        _ => 64,
    };
    while flow.flows() {
        flow.turn(sizes, |offset| offset % 1_000 == 500);
    }
    let kept = flow.partition.parts[0].1.unsettled() as usize;
    // Behind each large frame a new chunk is begun.
    let large = BATCH / 16 * (4 + 1);
    assert!(
        flow.chunks_max <= joined(kept * message_size(0, 64)) + 2 * large + slack(64),
        "{} chunks",
        flow.chunks_max
    );
    flow.finish();
}

#[test]
fn consumers_that_are_stuck_hold_their_prefetch_and_no_more() {
    const STUCK: u32 = 8;
    for body in [64, 1024] {
        let mut flow = Flow::new(CHUNKS, 1);
        let mut turns = 0;
        while flow.flows() {
            // One more of them gets stuck every now and then.
            let index = turns / 50;
            if turns % 50 == 0 && index < STUCK {
                (0..PREFETCH_MESSAGES).for_each(|_| flow.append(body));
                let held = flow.deliver(0, stuck(index), PREFETCH_MESSAGES.into());
                assert_eq!(held.len(), PREFETCH_MESSAGES as usize);
            }
            flow.turn(|_| body, |_| false);
            turns += 1;
        }
        let held = STUCK * PREFETCH_MESSAGES;
        assert_eq!(flow.partition.parts[0].1.unsettled(), held);
        // The two segments at the ends of each prefetch are shared with others.
        let kept = held as usize * message_size(0, body);
        let ends = 2 * STUCK as usize;
        let prefetch = (PREFETCH_MESSAGES as usize * message_size(0, body)).div_ceil(CHUNK);
        assert!(
            flow.chunks_max <= joined(kept) + ends + prefetch + slack(body),
            "{} chunks for {kept} bytes",
            flow.chunks_max
        );
        flow.finish();
    }
}

/// Few large messages share a chunk, so one small one that stays is a good part of
/// its messages though next to nothing of its bytes. Each held a chunk for ever.
#[test]
fn a_small_message_that_stays_does_not_hold_the_chunk_of_large_ones_around_it() {
    let mut flow = Flow::new(512, 1);
    let sizes = |offset| match offset % 5 {
        0 => 16,
        _ => 14_000,
    };
    while flow.flows() {
        flow.turn(sizes, |offset| offset % 5 == 0);
    }
    let kept = flow.partition.parts[0].1.unsettled() as usize * message_size(0, 16);
    assert!(flow.partition.parts[0].1.unsettled() > 4_000);
    // What is not overtaken yet is not worth the copy.
    assert!(
        flow.chunks_max <= joined(kept) + 256 + 64 + slack(14_000),
        "{} chunks for {kept} bytes",
        flow.chunks_max
    );
    flow.finish();
}
