#![allow(clippy::unwrap_used)]

mod administration;
mod blocks;
mod burst;
mod durable;
mod expiry;
mod handover;
mod mesh;
mod pages;
mod powercut;

use super::*;
use crate::frame::Durability;
use crate::frame::control::Fields;
use crate::frame::control::{
    AckRun, Acknowledge, Allow, AskStats, CompletionRun, Control, OpenConsumer, OpenProducer,
    OpenSession,
};
use crate::frame::decode::{self, Frame, Step};
use crate::frame::encode::{self, Envelope};
use crate::id::{Epoch, PartitionSequence, ProducerId, Sequence};
use crate::time::Wall;
use zerocopy::{FromBytes, IntoBytes};

/// A client by hand: writes frames, reads answers.
struct Peer {
    link: Handle,
    out: Vec<u8>,
    session: u32,
}

#[derive(Debug, PartialEq)]
struct Opened {
    handle: Handle,
    producer: u64,
    sequence: u64,
    /// Frame bytes that were sent.
    spent: u64,
    /// Of what is sent.
    durability: Durability,
}

fn shard() -> Shard {
    shard_of(limits::MEMORY_MIN)
}

/// One with so many bytes of memory.
fn shard_of(memory: u64) -> Shard {
    Shard::new(ShardConfig {
        installation: Installation(7),
        shard: ShardIndex(0),
        memory,
        hash_seed: 1,
        auto_create: true,
    })
    .unwrap()
}

fn now() -> Now {
    Now {
        monotonic: Monotonic(1),
        wall: Wall(1_000),
    }
}

/// All that a link has to send, taken.
fn take(shard: &mut Shard, link: Handle) -> Vec<u8> {
    shard.turn(now());
    let mut all = Vec::new();
    loop {
        while shard.output().is_some() {}
        let mut pieces = Pieces::new();
        shard.pieces(link, &mut pieces);
        let bytes = pieces.slices().concat();
        if bytes.is_empty() {
            break;
        }
        shard.sent(now(), link, bytes.len());
        all.extend_from_slice(&bytes);
        shard.turn(now());
    }
    shard.invariants();
    all
}

/// What the shard wishes next about a link's end, if anything.
fn end_of(shard: &mut Shard, link: Handle) -> Option<bool> {
    shard.turn(now());
    let mut end = None;
    while let Some(output) = shard.output() {
        if let Output::Close { link: ended, flush } = output {
            assert_eq!(ended, link);
            end = Some(flush);
        }
    }
    end
}

fn frames(mut bytes: &[u8]) -> Vec<(Frame<'_>, usize)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let Step::Frame(frame, size) = decode::decode(bytes).unwrap() else {
            panic!("cut off")
        };
        frames.push((frame, size));
        bytes = &bytes[size..];
    }
    frames
}

impl Peer {
    fn new(shard: &mut Shard) -> Self {
        let link = shard.attached(now(), Attached::default()).unwrap();
        let mut peer = Self {
            link,
            out: Vec::new(),
            session: 0,
        };
        peer.control(1, &OpenSession::default(), &[]);
        let answers = peer.exchange(shard);
        let opened = frames(&answers)
            .into_iter()
            .find_map(|(frame, _)| match frame {
                Frame::Control {
                    control: Control::SessionOpened(fields, _),
                    ..
                } => Some(fields.session.get()),
                _ => None,
            });
        peer.session = opened.unwrap();
        peer
    }

    fn control<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        let mut bytes = vec![0; limits::CONTROL_SIZE_MAX as usize];
        let size = encode::control(subject, fields, tail, &mut bytes);
        self.out.extend_from_slice(&bytes[..size]);
    }

    fn exchange(&mut self, shard: &mut Shard) -> Vec<u8> {
        shard.received(now(), self.link, &std::mem::take(&mut self.out));
        take(shard, self.link)
    }

    fn producer(&mut self, shard: &mut Shard, name: &str, partitions: u32) -> Opened {
        let fields = OpenProducer {
            session: self.session.into(),
            destination_length: u16::try_from(name.len()).unwrap().into(),
            partitions: partitions.into(),
            ..OpenProducer::default()
        };
        self.control(2, &fields, &[name.as_bytes()]);
        opened(&self.exchange(shard))
    }

    fn consumer(&mut self, shard: &mut Shard, name: &str, messages: u64) -> (Handle, Vec<u8>) {
        let fields = OpenConsumer {
            session: self.session.into(),
            destination_length: u16::try_from(name.len()).unwrap().into(),
            messages: messages.into(),
            bytes: (1 << 20).into(),
            ..OpenConsumer::default()
        };
        self.control(3, &fields, &[name.as_bytes()]);
        let answers = self.exchange(shard);
        let first = frames(&answers);
        match first[0] {
            (
                Frame::Control {
                    control: Control::ConsumerOpened(fields, _),
                    ..
                },
                size,
            ) => (Handle(fields.handle.get()), answers[size..].to_vec()),
            ref other => panic!("{other:?}"),
        }
    }

    fn message(&mut self, producer: &mut Opened, body: &[u8]) {
        let next = producer.sequence + 1;
        self.message_to(0, next, producer, body);
    }

    fn message_to(
        &mut self,
        partition: u32,
        partition_sequence: u64,
        producer: &mut Opened,
        body: &[u8],
    ) {
        producer.sequence += 1;
        let envelope = Envelope {
            handle: producer.handle,
            partition: PartitionIndex(partition),
            producer: ProducerId(producer.producer),
            epoch: Epoch(1),
            sequence: Sequence(producer.sequence),
            partition_sequence: PartitionSequence(partition_sequence),
            durability: producer.durability,
            ..Envelope::default()
        };
        let mut bytes = vec![0; encode::message_size(0, body.len())];
        encode::message(&envelope, &[], body, &mut bytes);
        producer.spent += bytes.len() as u64;
        self.out.extend_from_slice(&bytes);
    }
}

fn opened(answers: &[u8]) -> Opened {
    match frames(answers)[..] {
        [
            (
                Frame::Control {
                    control: Control::ProducerOpened(fields, _),
                    ..
                },
                _,
            ),
        ] => Opened {
            handle: Handle(fields.handle.get()),
            producer: fields.producer.get(),
            sequence: 0,
            spent: 0,
            durability: Durability::Memory,
        },
        ref other => panic!("{other:?}"),
    }
}

/// A queue had as many partitions as its share of memory has chunks. Each of them
/// kept the chunk it wrote on, so the queue counted as full when it was empty, and
/// nobody was granted credit again.
#[test]
fn a_queue_that_is_empty_again_gives_credit_however_many_partitions_it_has() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let partitions = u32::try_from(shard.memory().destination / CHUNK as u64).unwrap();
    let mut producer = peer.producer(&mut shard, "/default/q", partitions);
    let (consumer, _) = peer.consumer(&mut shard, "/default/q", 1_000);
    for partition in 0..partitions {
        producer.sequence = u64::from(partition);
        peer.message_to(partition, 1, &mut producer, b"x");
        let ack = Acknowledge {
            partition: partition.into(),
            runs: 1.into(),
            ..Acknowledge::default()
        };
        peer.exchange(&mut shard);
        let run = AckRun {
            first: 0.into(),
            count: 1.into(),
        };
        peer.control(consumer.0, &ack, &[run.as_bytes()]);
        peer.exchange(&mut shard);
    }
    assert_eq!(
        shard.counters().read(Counter::MessagesSettled),
        partitions.into()
    );
    let want = crate::frame::control::WantCredit {
        bytes: 100_000.into(),
    };
    peer.control(producer.handle.0, &want, &[]);
    let granted = frames(&peer.exchange(&mut shard)).iter().any(|(frame, _)| {
        matches!(frame, Frame::Control { control: Control::Credit(credit, _), .. }
                if credit.bytes.get() >= 100_000)
    });
    assert!(granted, "an empty queue is not full");
}

/// What each partition was to retain was held against the share of the whole
/// destination: once all of them had retained it, the destination was full for ever.
#[test]
fn all_partitions_together_retain_at_most_what_leaves_room_for_what_is_not_settled() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let most = shard.memory().destination / 6;
    for (name, partitions, retain, taken) in [
        ("/default/a", 1, most, true),
        ("/default/b", 1, most + 1, false),
        ("/default/c", 4, most / 4, true),
        ("/default/d", 4, most / 4 + 1, false),
    ] {
        let fields = OpenProducer {
            session: peer.session.into(),
            destination_length: u16::try_from(name.len()).unwrap().into(),
            partitions: u32::into(partitions),
            options: 1.into(),
            retain: retain.into(),
            ..OpenProducer::default()
        };
        peer.control(2, &fields, &[name.as_bytes()]);
        let answers = peer.exchange(&mut shard);
        let opened = frames(&answers).iter().any(|(frame, _)| {
            matches!(
                frame,
                Frame::Control {
                    control: Control::ProducerOpened(..),
                    ..
                }
            )
        });
        assert_eq!(opened, taken, "{retain} bytes in each of {partitions}");
    }
}

/// A partition kept one whole message beyond what it was to retain, however large: a
/// few of them held their destination's share of memory for ever, with nobody who
/// could settle anything.
#[test]
fn what_many_partitions_retain_of_large_messages_leaves_room_for_the_next_ones() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let large = 4 << 20;
    for (partitions, retain) in [(12, 1), (3, 600_000), (1, 2_000_000)] {
        let name = format!("/default/retains-{partitions}");
        let fields = OpenProducer {
            session: peer.session.into(),
            destination: 1,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            partitions: u32::into(partitions),
            options: 1.into(),
            retain: u64::into(retain),
            ..OpenProducer::default()
        };
        peer.control(2, &fields, &[name.as_bytes()]);
        let mut producer = opened(&peer.exchange(&mut shard));
        // A small one between large ones leaves most of its chunk empty.
        for round in 0..4_u64 {
            for partition in 0..partitions {
                for (index, size) in [(1, 10), (2, large)] {
                    let want = crate::frame::control::WantCredit {
                        bytes: (size as u64 + 200).into(),
                    };
                    peer.control(producer.handle.0, &want, &[]);
                    peer.exchange(&mut shard);
                    peer.message_to(partition, 2 * round + index, &mut producer, &vec![1; size]);
                    let stored = completions(&peer.exchange(&mut shard));
                    assert_eq!(stored.len(), 1, "round {round} of {partitions}");
                    assert_eq!(stored[0].refusal.get(), 0);
                }
            }
            shard.audit();
        }
        assert!(shard.output().is_none(), "the link goes on");
    }
}

/// Small messages between large ones leave most of their chunks empty, and large ones
/// that are a little longer than a chunk most of their last one: what was granted took
/// up more memory than was kept for it.
#[test]
fn what_is_sent_within_credit_finds_a_place_however_badly_it_fits() {
    let mut shard = shard();
    let large = vec![1; CHUNK];
    let mut peers = Vec::new();
    for index in 0..40 {
        let mut peer = Peer::new(&mut shard);
        let name = format!("/default/q{}", index % 5);
        let producer = peer.producer(&mut shard, &name, 1);
        // As much as there is for the first who ask.
        let want = crate::frame::control::WantCredit {
            bytes: (4 << 20).into(),
        };
        peer.control(producer.handle.0, &want, &[]);
        let answers = peer.exchange(&mut shard);
        peers.push((peer, producer, granted(&answers)));
    }
    let size = encode::message_size(0, large.len()) as u64 + 200;
    let mut sent = true;
    while sent {
        sent = false;
        for (peer, producer, credit) in &mut peers {
            let spent = producer.spent;
            if *credit < spent + size {
                *credit = granted(&peer.exchange(&mut shard)).max(*credit);
                continue;
            }
            sent = true;
            peer.message(producer, b"small");
            peer.message(producer, &large);
            let answers = peer.exchange(&mut shard);
            *credit = granted(&answers).max(*credit);
            for run in completions(&answers) {
                assert_eq!(run.refusal.get(), 0, "after {spent} bytes");
            }
            assert!(!answers.is_empty(), "the link goes on");
        }
        shard.audit();
    }
    assert!(shard.counters().read(Counter::MessagesStored) > 300);
}

fn granted(answers: &[u8]) -> u64 {
    let all = frames(answers)
        .into_iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Credit(credit, _),
                ..
            } => Some(credit.bytes.get()),
            _ => None,
        });
    all.max().unwrap_or(0)
}

pub(super) fn completions(bytes: &[u8]) -> Vec<CompletionRun> {
    frames(bytes)
        .into_iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Completions(_, tail),
                ..
            } => Some(
                tail.chunks(40)
                    .map(|run| CompletionRun::read_from_bytes(run).unwrap())
                    .collect(),
            ),
            _ => None,
        })
        .collect::<Vec<Vec<_>>>()
        .concat()
}

fn bodies(bytes: &[u8]) -> Vec<(u32, u64, Vec<u8>)> {
    let mut count = 0;
    let mut all = Vec::new();
    for (frame, _) in frames(bytes) {
        match frame {
            Frame::Control {
                control: Control::Delivery(fields, _),
                ..
            } => {
                count = fields.delivery_count.get();
            }
            Frame::Message(message) => {
                all.push((count, message.header.offset.get(), message.body.to_vec()));
            }
            Frame::Control { .. } => {}
        }
    }
    all
}

/// It was counted among those who have the destination that it asked for, and an empty one
/// had one fewer than none.
#[test]
fn a_producer_of_another_destination_is_refused_and_counts_for_nobody() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let producer = peer.producer(&mut shard, "/default/one", 1);
    peer.consumer(&mut shard, "/default/other", 1);
    for access in 0..3 {
        let name = "/default/other";
        let fields = OpenProducer {
            session: peer.session.into(),
            access,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            producer: producer.producer.into(),
            ..OpenProducer::default()
        };
        peer.control(4, &fields, &[name.as_bytes()]);
        let answers = peer.exchange(&mut shard);
        let refused = frames(&answers)
            .into_iter()
            .find_map(|(frame, _)| match frame {
                Frame::Control {
                    subject: 4,
                    control: Control::Refused(fields, _),
                } => Refusal::from_code(fields.refusal.get()),
                _ => None,
            });
        assert_eq!(refused, Some(Refusal::PreconditionFailed), "{access}");
    }
    shard.audit();
    // And whoever comes first has it alone if it likes.
    let exclusive = OpenProducer {
        session: peer.session.into(),
        access: 1,
        destination_length: 14.into(),
        ..OpenProducer::default()
    };
    peer.control(5, &exclusive, &[b"/default/other"]);
    opened(&peer.exchange(&mut shard));
}

/// A client that had sent all it had to, closed its direction and went on reading found
/// its link gone, and with it the outcomes of what it had sent.
#[test]
fn a_peer_that_sends_no_more_is_still_answered() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = peer.producer(&mut shard, "/default/q", 0);
    let (_, _) = peer.consumer(&mut shard, "/default/q", 1);
    peer.message(&mut producer, b"taken");
    peer.exchange(&mut shard);
    for _ in 0..3 {
        peer.message(&mut producer, b"last words");
    }
    peer.control(9, &AskStats::default(), &[]);
    shard.received(now(), peer.link, &peer.out);
    shard.finished(now(), peer.link);
    // The answer with its rest, and only then the end.
    assert_eq!(end_of(&mut shard, peer.link), Some(true));
    let last = take(&mut shard, peer.link);
    let stored: u64 = completions(&last)
        .iter()
        .map(|run| u64::from(run.count.get()))
        .sum();
    assert_eq!(stored, 3);
    let rows = frames(&last).iter().any(|(frame, _)| {
        matches!(frame, Frame::Control { control: Control::Stats(stats, _), .. }
                if stats.rows.get() == 1 && stats.remaining.get() == 0)
    });
    assert!(rows, "the second frame of the answer");
    shard.closed(now(), peer.link);
    shard.audit();
    // What it held, it cannot acknowledge any more.
    assert_eq!(shard.counters().read(Counter::MessagesReturned), 1);
    let mut next = Peer::new(&mut shard);
    let (_, delivered) = next.consumer(&mut shard, "/default/q", 10);
    assert_eq!(bodies(&delivered).len(), 4);
}

#[test]
fn a_peer_that_sends_no_more_waits_for_the_rest_of_a_long_answer() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    // More destinations than rows fit one frame.
    for number in 0..100 {
        peer.producer(&mut shard, &format!("/default/{number}"), 1);
    }
    peer.control(9, &AskStats::default(), &[]);
    shard.received(now(), peer.link, &peer.out);
    shard.finished(now(), peer.link);
    assert_eq!(end_of(&mut shard, peer.link), None);
    let rows: u32 = frames(&take(&mut shard, peer.link))
        .iter()
        .map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Stats(stats, _),
                ..
            } => stats.rows.get(),
            _ => 0,
        })
        .sum();
    assert_eq!(rows, 100);
    assert_eq!(shard.links(), 1);
    shard.closed(now(), peer.link);
    shard.audit();
}

#[test]
fn a_message_is_stored_completed_delivered_and_settled() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = peer.producer(&mut shard, "/default/q", 0);
    peer.message(&mut producer, b"hello");
    let answers = peer.exchange(&mut shard);
    let runs = completions(&answers);
    assert_eq!(runs.len(), 1);
    assert_eq!(
        (
            runs[0].sequence.get(),
            runs[0].offset.get(),
            runs[0].refusal.get()
        ),
        (1, 0, 0)
    );
    let (consumer, delivered) = peer.consumer(&mut shard, "/default/q", 10);
    assert_eq!(bodies(&delivered), [(1, 0, b"hello".to_vec())]);
    let run = AckRun {
        first: 0.into(),
        count: 1.into(),
    };
    let ack = Acknowledge {
        runs: 1.into(),
        ..Acknowledge::default()
    };
    peer.control(consumer.0, &ack, &[run.as_bytes()]);
    peer.exchange(&mut shard);
    assert_eq!(shard.counters().read(Counter::MessagesSettled), 1);
    shard.closed(now(), peer.link);
    let mut other = Peer::new(&mut shard);
    let (_, delivered) = other.consumer(&mut shard, "/default/q", 10);
    assert!(bodies(&delivered).is_empty());
}

#[test]
fn frames_arrive_whatever_the_split_and_large_ones_too() {
    for step in [1, 7, 4096, 70_000] {
        let mut shard = shard();
        let mut peer = Peer::new(&mut shard);
        let mut producer = peer.producer(&mut shard, "/default/q", 0);
        let sizes = [0usize, 1, 100, 15_000];
        for size in sizes {
            peer.message(&mut producer, &vec![5; size]);
        }
        let bytes = std::mem::take(&mut peer.out);
        let mut answers = Vec::new();
        for part in bytes.chunks(step) {
            shard.received(now(), peer.link, part);
            answers.extend_from_slice(&take(&mut shard, peer.link));
        }
        let stored: u32 = completions(&answers)
            .iter()
            .map(|run| run.count.get())
            .sum();
        assert_eq!(stored as usize, sizes.len(), "in steps of {step}");
        let large = 300_000;
        peer.control(
            producer.handle.0,
            &crate::frame::control::WantCredit {
                bytes: (large as u64 + 200).into(),
            },
            &[],
        );
        peer.exchange(&mut shard);
        peer.message(&mut producer, &vec![9; large]);
        let bytes = std::mem::take(&mut peer.out);
        let mut answers = Vec::new();
        for part in bytes.chunks(step.max(100)) {
            shard.received(now(), peer.link, part);
            answers.extend_from_slice(&take(&mut shard, peer.link));
        }
        assert_eq!(completions(&answers).len(), 1, "in steps of {step}");
        let (_, delivered) = peer.consumer(&mut shard, "/default/q", 10);
        let bodies = bodies(&delivered);
        assert_eq!(bodies.len(), 5);
        assert!(bodies[4].2.len() == large && bodies[4].2.iter().all(|byte| *byte == 9));
    }
}

#[test]
fn what_a_vanished_consumer_held_comes_back_first_in_order_and_counted() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = peer.producer(&mut shard, "/default/q", 0);
    for index in 0..20u8 {
        peer.message(&mut producer, &[index]);
    }
    peer.exchange(&mut shard);
    let mut first = Peer::new(&mut shard);
    let (_, delivered) = first.consumer(&mut shard, "/default/q", 10);
    assert_eq!(bodies(&delivered).len(), 10);
    shard.closed(now(), first.link);
    let mut second = Peer::new(&mut shard);
    let (_, delivered) = second.consumer(&mut shard, "/default/q", 20);
    let all = bodies(&delivered);
    let counts: Vec<u32> = all.iter().map(|(count, ..)| *count).collect();
    let offsets: Vec<u64> = all.iter().map(|(_, offset, _)| *offset).collect();
    assert_eq!(offsets, (0..20).collect::<Vec<_>>());
    assert_eq!(counts, [[2; 10], [1; 10]].concat());
}

#[test]
fn a_send_beyond_credit_ends_the_link_and_nobody_else_notices() {
    let mut shard = shard();
    let mut other = Peer::new(&mut shard);
    let mut innocent = other.producer(&mut shard, "/default/q", 0);
    let mut peer = Peer::new(&mut shard);
    let mut producer = peer.producer(&mut shard, "/default/q", 0);
    peer.message(&mut producer, &vec![0; limits::CREDIT_INITIAL as usize]);
    shard.received(now(), peer.link, &std::mem::take(&mut peer.out));
    shard.turn(now());
    let outputs: Vec<Output> = std::iter::from_fn(|| shard.output()).collect();
    assert!(
        outputs.contains(&Output::Close {
            link: peer.link,
            flush: true
        }),
        "{outputs:?}"
    );
    let mut pieces = Pieces::new();
    shard.pieces(peer.link, &mut pieces);
    let bytes = pieces.slices().concat();
    let Frame::Control {
        control: Control::Farewell(fields, _),
        ..
    } = frames(&bytes)[0].0
    else {
        panic!("no farewell")
    };
    assert_eq!(fields.refusal.get(), Refusal::CreditExceeded.code());
    shard.closed(now(), peer.link);
    other.message(&mut innocent, b"still here");
    assert_eq!(completions(&other.exchange(&mut shard)).len(), 1);
}

#[test]
fn what_was_stored_before_a_fault_is_completed_before_the_farewell() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = peer.producer(&mut shard, "/default/q", 0);
    peer.message(&mut producer, b"good");
    peer.out.extend_from_slice(&[0xff; 16]);
    let answers = peer.exchange(&mut shard);
    assert_eq!(completions(&answers).len(), 1);
    let last = frames(&answers).pop().unwrap().0;
    assert!(matches!(
        last,
        Frame::Control {
            control: Control::Farewell(..),
            ..
        }
    ));
}

#[test]
fn a_consumer_gets_no_more_than_its_grant() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = peer.producer(&mut shard, "/default/q", 0);
    for _ in 0..50 {
        peer.message(&mut producer, b"x");
    }
    peer.exchange(&mut shard);
    let (consumer, delivered) = peer.consumer(&mut shard, "/default/q", 3);
    assert_eq!(bodies(&delivered).len(), 3);
    let allow = Allow {
        messages: 5.into(),
        bytes: (1 << 20).into(),
        handed: 3.into(),
    };
    peer.control(consumer.0, &allow, &[]);
    assert_eq!(bodies(&peer.exchange(&mut shard)).len(), 2);
}

#[test]
fn memory_comes_back_when_links_go() {
    let mut shard = shard();
    let free = shard.chunks_free();
    for _ in 0..10 {
        let mut peer = Peer::new(&mut shard);
        let mut producer = peer.producer(&mut shard, "/default/q", 0);
        peer.consumer(&mut shard, "/default/q", 3);
        peer.message(&mut producer, &[1; 9000]);
        peer.out.truncate(peer.out.len() - 1);
        peer.exchange(&mut shard);
        shard.closed(now(), peer.link);
        shard.invariants();
    }
    assert!(shard.chunks_free() + 1 >= free);
    assert_eq!(shard.links(), 0);
}

/// A kernel whose buffers for a peer are full takes nothing, and says nothing until
/// there is room: such a link is known only by what it was given.
#[test]
fn a_peer_that_takes_no_byte_of_what_waits_is_let_go_in_time() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    peer.control(1, &OpenSession::default(), &[]);
    let question = core::mem::take(&mut peer.out);
    shard.received(now(), peer.link, &question);
    shard.turn(now());
    assert_eq!(shard.output(), Some(Output::Send(peer.link)));
    let at = |elapsed| Now {
        monotonic: now().monotonic.after(elapsed),
        ..now()
    };
    let early = limits::STALL_TIMEOUT - TICK;
    shard.expire(at(early));
    assert_eq!(shard.output(), None);
    assert!(shard.next_expiry().is_some(), "somebody looks again");
    shard.expire(at(limits::STALL_TIMEOUT));
    let close = Output::Close {
        link: peer.link,
        flush: false,
    };
    assert_eq!(shard.output(), Some(close));
    shard.closed(now(), peer.link);
    shard.audit();
}

/// A thread of this process that has other things to do is not a dead peer.
#[test]
fn a_patient_link_rests_with_bytes_unread_and_half_a_frame_written() {
    let mut shard = shard();
    let attached = Attached {
        patient: true,
        ..Attached::default()
    };
    let link = shard.attached(now(), attached).unwrap();
    shard.turn(now());
    assert_eq!(shard.output(), Some(Output::Send(link)), "its welcome");
    let mut question = vec![0; limits::CONTROL_SIZE_MAX as usize];
    let size = encode::control(1, &OpenSession::default(), &[], &mut question);
    let (begun, rest) = question[..size].split_at(size / 2);
    shard.received(now(), link, begun);
    let late = Now {
        monotonic: (now().monotonic).after(limits::STALL_TIMEOUT + limits::FRAME_TIMEOUT),
        ..now()
    };
    shard.expire(late);
    shard.turn(late);
    assert_eq!(shard.output(), None, "nobody ends it");
    assert_eq!(shard.next_expiry(), None, "nobody looks again");
    shard.received(late, link, rest);
    let answers = take(&mut shard, link);
    let is_opened = |frame: &Frame<'_>| {
        let Frame::Control { control, .. } = frame else {
            return false;
        };
        matches!(control, Control::SessionOpened(..))
    };
    let mut answers = frames(&answers).into_iter();
    assert!(answers.any(|(frame, _)| is_opened(&frame)));
    shard.closed(late, link);
    shard.audit();
}
