//! What clients can have the broker keep, against the bound that it was started with:
//! every table that grows with what they open, filled until the broker refuses.

#![allow(clippy::unwrap_used)]

use courser_core::error::Refusal;
use courser_core::frame::control::{
    AckRun, Acknowledge, Control, Fields, OpenConsumer, OpenProducer, OpenSession,
};
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::frame::encode::{self, Envelope};
use courser_core::id::{
    Epoch, Handle, Installation, PartitionIndex, PartitionSequence, ProducerId, Sequence,
    ShardIndex,
};
use courser_core::limits;
use courser_core::shard::{Attached, Output, Pieces, Shard, ShardConfig};
use courser_core::time::{Monotonic, Now, Wall};
use courser_fuzz::heap;
use zerocopy::IntoBytes;

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

/// Partitions of a wide destination: half of all that so little memory has.
const WIDE: u32 = 96;

/// One client with one link, which reads everything.
struct Greedy {
    shard: Shard,
    now: Now,
    link: Handle,
    session: u32,
}

/// What a client heard.
#[derive(Debug, Default)]
struct Heard {
    opened: Option<u32>,
    producer: u64,
    refused: Option<Refusal>,
    delivered: u64,
}

fn control<F: Fields>(subject: u32, fields: &F, tail: &[&[u8]]) -> Vec<u8> {
    let size = tail.iter().map(|part| part.len()).sum();
    let mut bytes = vec![0; encode::control_size::<F>(size)];
    encode::control(subject, fields, tail, &mut bytes);
    bytes
}

fn length(text: &str) -> u16 {
    u16::try_from(text.len()).unwrap()
}

impl Greedy {
    fn new() -> Self {
        let now = Now {
            monotonic: Monotonic(1),
            wall: Wall(1),
        };
        let mut shard = Shard::new(ShardConfig {
            installation: Installation(1),
            shard: ShardIndex(0),
            memory: limits::MEMORY_MIN,
            hash_seed: 1,
            auto_create: true,
        })
        .unwrap();
        let link = shard.attached(now, Attached::default()).unwrap();
        let mut greedy = Self {
            shard,
            now,
            link,
            session: 0,
        };
        let opened = greedy.say(&control(1, &OpenSession::default(), &[]));
        greedy.session = opened.opened.unwrap();
        greedy
    }

    fn say(&mut self, bytes: &[u8]) -> Heard {
        self.shard.received(self.now, self.link, bytes);
        self.listen()
    }

    /// Reads all that there is.
    fn listen(&mut self) -> Heard {
        let mut heard = Heard::default();
        let mut bytes = Vec::new();
        loop {
            self.shard.turn(self.now);
            while let Some(output) = self.shard.output() {
                assert!(matches!(output, Output::Send(_)), "{output:?}");
            }
            loop {
                let mut pieces = Pieces::new();
                self.shard.pieces(self.link, &mut pieces);
                let before = bytes.len();
                pieces
                    .slices()
                    .iter()
                    .for_each(|slice| bytes.extend_from_slice(slice));
                let size = bytes.len() - before;
                if size == 0 {
                    break;
                }
                self.shard.sent(self.now, self.link, size);
            }
            let mut rest = &bytes[..];
            while let Ok(Step::Frame(frame, size)) = decode(rest) {
                if let Frame::Control { control, .. } = frame {
                    heard.note(&control);
                }
                rest = &rest[size..];
            }
            bytes = rest.to_vec();
            if !self.shard.has_work() {
                return heard;
            }
        }
    }

    fn producer(&mut self, destination: u8, name: &str, partitions: u32) -> Heard {
        let fields = OpenProducer {
            session: self.session.into(),
            destination,
            destination_length: length(name).into(),
            partitions: partitions.into(),
            ..OpenProducer::default()
        };
        self.say(&control(2, &fields, &[name.as_bytes()]))
    }

    fn consumer(&mut self, destination: u8, name: &str, subscription: &str) -> Heard {
        let fields = OpenConsumer {
            session: self.session.into(),
            destination,
            destination_length: length(name).into(),
            subscription_length: length(subscription).into(),
            messages: u64::MAX.into(),
            bytes: u64::MAX.into(),
            ..OpenConsumer::default()
        };
        self.say(&control(
            3,
            &fields,
            &[name.as_bytes(), subscription.as_bytes()],
        ))
    }

    /// Opens until that is refused, or until there are `most`; how many there are, and
    /// the last handle.
    fn open_all(
        &mut self,
        most: u32,
        mut open: impl FnMut(&mut Self, u32) -> Heard,
    ) -> (u32, Option<Refusal>) {
        for number in 0..most {
            let heard = open(self, number);
            if let Some(refusal) = heard.refused {
                return (number, Some(refusal));
            }
            assert!(heard.opened.is_some(), "{heard:?}");
        }
        (most, None)
    }

    fn leave(mut self) {
        self.shard.audit();
        self.shard.closed(self.now, self.link);
        self.shard.turn(self.now);
        self.shard.audit();
    }
}

impl Heard {
    fn note(&mut self, control: &Control<'_>) {
        match control {
            Control::SessionOpened(fields, _) => self.opened = Some(fields.session.get()),
            Control::ProducerOpened(fields, _) => {
                self.opened = Some(fields.handle.get());
                self.producer = fields.producer.get();
            }
            Control::ConsumerOpened(fields, _) => self.opened = Some(fields.handle.get()),
            Control::Refused(fields, _) => {
                self.refused = Refusal::from_code(fields.refusal.get());
            }
            Control::Delivery(fields, _) => self.delivered += u64::from(fields.count.get()),
            Control::Farewell(fields, _) => {
                panic!("sent away: {:?}", Refusal::from_code(fields.refusal.get()))
            }
            _ => {}
        }
    }
}

/// Runs `story` with one greedy client; all that it takes stays within the bound.
fn within_the_bound(what: &str, story: impl FnOnce(&mut Greedy)) {
    let peak = heap::peak(|| {
        let mut greedy = Greedy::new();
        story(&mut greedy);
        greedy.leave();
    });
    eprintln!("{what}: {} MiB at most", peak >> 20);
    assert!(
        peak <= limits::MEMORY_MIN,
        "{what} took {peak} bytes, the bound is {}",
        limits::MEMORY_MIN
    );
}

/// Four thousand subscriptions of a topic with 192 partitions once took 231 MiB, and
/// when their client left the broker stood still for 43 seconds.
#[test]
fn subscriptions_in_many_partitions_stay_within_the_bound() {
    within_the_bound("subscriptions of a wide topic", |greedy| {
        assert!(greedy.producer(1, "/a/wide", WIDE).opened.is_some());
        let (count, refusal) = greedy.open_all(8_000, |greedy, number| {
            greedy.consumer(1, "/a/wide", &number.to_string())
        });
        assert_eq!(refusal, Some(Refusal::ResourceAllocation));
        assert!(count >= 8, "{count} subscriptions are few");
    });
    within_the_bound("subscriptions of a narrow topic", |greedy| {
        let (count, refusal) = greedy.open_all(8_000, |greedy, number| {
            greedy.consumer(1, "/a/narrow", &number.to_string())
        });
        assert_eq!(refusal, Some(Refusal::ResourceAllocation));
        assert!(count >= 500, "{count} subscriptions are few");
    });
}

#[test]
fn consumers_and_producers_stay_within_the_bound_and_leave_their_share_to_others() {
    within_the_bound("consumers of a queue", |greedy| {
        let open = |greedy: &mut Greedy, _| greedy.consumer(0, "/a/queue", "");
        let (count, refusal) = greedy.open_all(8_000, open);
        assert_eq!(refusal, Some(Refusal::ResourceAllocation));
        assert!(count >= 1_000, "{count} consumers are few");
        // They go, and as many may come.
        let link = core::mem::replace(
            &mut greedy.link,
            greedy
                .shard
                .attached(greedy.now, Attached::default())
                .unwrap(),
        );
        greedy.shard.closed(greedy.now, link);
        let opened = greedy.say(&control(1, &OpenSession::default(), &[]));
        greedy.session = opened.opened.unwrap();
        assert_eq!(greedy.open_all(8_000, open), (count, refusal));
    });
    within_the_bound("producers of a wide topic", |greedy| {
        let open = |greedy: &mut Greedy, _| greedy.producer(1, "/a/wide", WIDE);
        let (_, refusal) = greedy.open_all(8_000, open);
        assert_eq!(refusal, Some(Refusal::ResourceAllocation));
    });
    within_the_bound("queues", |greedy| {
        let (count, refusal) = greedy.open_all(5_000, |greedy, number| {
            greedy.producer(0, &format!("/a/{number}"), 1)
        });
        assert_eq!(refusal, Some(Refusal::ResourceAllocation));
        assert!(count >= 100, "{count} queues are few");
    });
}

/// Subscriptions none of which settles anything: once each kept an entry for each of
/// 16,384 messages, whatever the bound was.
#[test]
fn what_nobody_settles_stays_within_the_bound_and_comes_once_something_is_settled() {
    const SUBSCRIPTIONS: u32 = 300;
    const MESSAGES: u64 = 8_000;
    within_the_bound("what nobody settles", |greedy| {
        let producer = greedy.producer(1, "/a/quotes", 1);
        let mut consumers = Vec::new();
        for number in 0..SUBSCRIPTIONS {
            let heard = greedy.consumer(1, "/a/quotes", &number.to_string());
            consumers.push(heard.opened.unwrap());
        }
        let mut delivered = 0;
        for number in 1..=MESSAGES {
            let envelope = Envelope {
                handle: Handle(producer.opened.unwrap()),
                partition: PartitionIndex(0),
                producer: ProducerId(producer.producer),
                epoch: Epoch(1),
                sequence: Sequence(number),
                partition_sequence: PartitionSequence(number),
                ..Envelope::default()
            };
            let mut bytes = vec![0; encode::message_size(0, 0)];
            encode::message(&envelope, &[], &[], &mut bytes);
            delivered += greedy.say(&bytes).delivered;
        }
        let all = MESSAGES * u64::from(SUBSCRIPTIONS);
        let least = u64::from(SUBSCRIPTIONS * limits::UNSETTLED_LEAST);
        assert!(
            delivered >= least,
            "{delivered} is less than there is always room for"
        );
        assert!(
            delivered < all / 2,
            "{delivered} of {all}: nothing had to wait"
        );
        // Everybody settles what he has, whatever that is, and gets the next.
        for round in 0..MESSAGES {
            if delivered == all {
                break;
            }
            assert!(
                round < MESSAGES - 1,
                "{delivered} of {all}, and it stands still"
            );
            for consumer in &consumers {
                let fields = Acknowledge {
                    runs: 1.into(),
                    ..Acknowledge::default()
                };
                let run = AckRun {
                    first: 0.into(),
                    count: MESSAGES.into(),
                };
                let heard = greedy.say(&control(*consumer, &fields, &[run.as_bytes()]));
                delivered += heard.delivered;
            }
        }
        assert_eq!(delivered, all, "each message for each subscription");
    });
}
