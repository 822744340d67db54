//! The rules of `docs/wire.md`, section 5, held against the broker by a client
//! that knows nothing but the page: it writes frames into a door and a shard and
//! reads what comes back. The numbers in the tests' comments are the rules'.
#![allow(clippy::unwrap_used)]

mod vectors;

use std::time::Duration;

use courser_core::door::{Address, Door, DoorLimits, Output};
use courser_core::error::Refusal;
use courser_core::frame::control::{
    AckRun, Acknowledge, Acknowledged, Allow, AskStats, Batch, Close, CloseSession, CompletionRun,
    Control, Credit, Delivery, Farewell, Fields, Goodbye, Hello, Lookup, OpenConsumer,
    OpenProducer, OpenSession, Ping, ProducerOpened, Return, WantCredit,
};
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::frame::encode::{self, Envelope};
use courser_core::frame::{Kind, MAGIC, MessageHeader, VERSION, checksum, flags};
use courser_core::id::{
    Epoch, Handle, Installation, PartitionIndex, PartitionSequence, ProducerId, Sequence,
    ShardIndex,
};
use courser_core::limits;
use courser_core::shard::{self, Pieces, Shard, ShardConfig};
use courser_core::time::{Monotonic, Now, Wall};
use zerocopy::{FromBytes, IntoBytes};

/// A frame as it was received, on its own.
#[derive(Debug, Clone)]
struct Received(Vec<u8>);

impl Received {
    fn frame(&self) -> Frame<'_> {
        match decode(&self.0) {
            Ok(Step::Frame(frame, _)) => frame,
            other => panic!("a received frame is whole: {other:?}"),
        }
    }

    fn control(&self) -> (u32, Control<'_>) {
        match self.frame() {
            Frame::Control { subject, control } => (subject, control),
            Frame::Message(_) => panic!("a control frame was expected"),
        }
    }

    fn kind(&self) -> Kind {
        Kind::from_code(self.0[4]).unwrap()
    }
}

/// A broker of one shard, and its door.
struct Broker {
    door: Door,
    shard: Shard,
    now: Now,
    /// Links whose end was asked for.
    ends: Vec<Handle>,
}

/// One connection to it.
struct Client {
    link: Handle,
    /// As its welcome said.
    number: u64,
    out: Vec<u8>,
    /// Whether the broker has asked for the connection's end.
    ended: bool,
}

#[derive(Clone, Copy)]
struct Producer {
    handle: u32,
    producer: u64,
    epoch: u32,
    sequence: u64,
    credit_bytes: u64,
}

fn vector(name: &str) -> Vec<u8> {
    vectors::all()
        .into_iter()
        .find(|vector| vector.name == name)
        .unwrap()
        .bytes
}

impl Broker {
    fn new() -> Self {
        let config = ShardConfig {
            installation: Installation(5),
            shard: ShardIndex(0),
            memory: limits::MEMORY_MIN,
            hash_seed: 1,
            auto_create: true,
        };
        Self {
            door: Door::new(DoorLimits::default(), 1),
            shard: Shard::new(config).unwrap(),
            now: Now {
                monotonic: Monotonic(1),
                wall: Wall(77),
            },
            ends: Vec::new(),
        }
    }

    /// A client with a session on a link that takes the place of `link`.
    fn client_again(&mut self, link: u64) -> (Client, u32) {
        let hello = Hello {
            magic: MAGIC,
            version_min: VERSION,
            version_max: VERSION,
            shard: u16::MAX.into(),
            link: link.into(),
            ..Hello::default()
        };
        let mut bytes = vec![0; encode::control_size::<Hello>(0)];
        encode::control(0, &hello, &[], &mut bytes);
        let client = self.greeted(&bytes).unwrap();
        client.with_session(self)
    }

    /// Connects, writes `bytes`, and hands over if that is a hello.
    fn greeted(&mut self, bytes: &[u8]) -> Result<Client, Received> {
        let stranger = self.door.accepted(self.now, Address([1; 16])).unwrap();
        self.door.received(stranger, bytes);
        match self.door.output() {
            Some(Output::HandOver { attached, .. }) => Ok(Client {
                link: self.shard.attached(self.now, attached).unwrap(),
                number: 0,
                out: Vec::new(),
                ended: false,
            }),
            Some(Output::Farewell { bytes, .. }) => Err(Received(bytes)),
            None => panic!("the hello was not complete"),
        }
    }

    /// A client with a session, which is returned with it.
    fn client(&mut self) -> (Client, u32) {
        let client = self.greeted(&vector("hello")).unwrap();
        client.with_session(self)
    }

    /// Whether the connection of a client was asked to end, and then does.
    fn lets_go(&mut self, client: &Client) -> bool {
        self.shard.closed(self.now, client.link);
        self.shard.audit();
        self.ends.contains(&client.link)
    }
}

impl Client {
    fn with_session(mut self, broker: &mut Broker) -> (Self, u32) {
        self.say(1, &OpenSession::default(), &[]);
        let answers = self.exchange(broker);
        let [welcome, opened] = &answers[..] else {
            panic!("{answers:?}")
        };
        let (0, Control::Welcome(fields, _)) = welcome.control() else {
            panic!("{welcome:?}")
        };
        self.number = fields.link.get();
        let (1, Control::SessionOpened(fields, _)) = opened.control() else {
            panic!("{opened:?}")
        };
        let session = fields.session.get();
        (self, session)
    }

    fn say<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let at = self.out.len();
        self.out.resize(at + size, 0);
        encode::control(subject, fields, tail, &mut self.out[at..]);
    }

    fn send(&mut self, producer: &mut Producer, partition: u32, in_partition: u64, body: &[u8]) {
        producer.sequence += 1;
        let message = message(producer, partition, in_partition, body);
        self.out.extend_from_slice(&message);
    }

    /// Writes what was said, has the broker take a turn, reads everything.
    fn exchange(&mut self, broker: &mut Broker) -> Vec<Received> {
        let out = std::mem::take(&mut self.out);
        broker.shard.received(broker.now, self.link, &out);
        let mut bytes = Vec::new();
        for _ in 0..10_000 {
            broker.shard.turn(broker.now);
            while let Some(output) = broker.shard.output() {
                if let shard::Output::Close { link, .. } = output {
                    self.ended |= link == self.link;
                    broker.ends.push(link);
                }
            }
            let mut pieces = Pieces::new();
            broker.shard.pieces(self.link, &mut pieces);
            let written = pieces.slices().concat();
            if written.is_empty() && !broker.shard.has_work() {
                break;
            }
            broker.shard.sent(broker.now, self.link, written.len());
            bytes.extend(written);
        }
        broker.shard.invariants();
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Ok(Step::Frame(_, size)) = decode(rest) else {
                panic!("the broker writes whole frames")
            };
            frames.push(Received(rest[..size].to_vec()));
            rest = &rest[size..];
        }
        frames
    }

    fn open_producer(
        &mut self,
        broker: &mut Broker,
        session: u32,
        name: &str,
        partitions: u32,
    ) -> Producer {
        self.ask_for_producer(broker, session, name, partitions, 0)
            .unwrap()
    }

    /// Attaches a producer again that was open under `before`.
    fn attach_again(
        &mut self,
        broker: &mut Broker,
        session: u32,
        name: &str,
        before: &Producer,
    ) -> Result<Producer, Refusal> {
        let again = self.ask_for_producer(broker, session, name, 0, before.producer)?;
        Ok(Producer {
            sequence: before.sequence,
            ..again
        })
    }

    fn ask_for_producer(
        &mut self,
        broker: &mut Broker,
        session: u32,
        name: &str,
        partitions: u32,
        again: u64,
    ) -> Result<Producer, Refusal> {
        let fields = OpenProducer {
            session: session.into(),
            destination: 1,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            partitions: partitions.into(),
            producer: again.into(),
            ..OpenProducer::default()
        };
        self.say(2, &fields, &[name.as_bytes()]);
        let answers = self.exchange(broker);
        let [opened] = &answers[..] else {
            panic!("{answers:?}")
        };
        let fields = match opened.control() {
            (2, Control::ProducerOpened(fields, _)) => fields,
            (2, Control::Refused(fields, _)) => {
                return Err(Refusal::from_code(fields.refusal.get()).unwrap());
            }
            other => panic!("{other:?}"),
        };
        let ProducerOpened {
            handle,
            epoch,
            producer,
            bytes,
            ..
        } = *fields;
        Ok(Producer {
            handle: handle.get(),
            producer: producer.get(),
            epoch: epoch.get(),
            sequence: 0,
            credit_bytes: bytes.get(),
        })
    }

    fn ask_for_consumer(&mut self, session: u32, name: &str, messages: u64, bytes: u64) {
        let fields = OpenConsumer {
            session: session.into(),
            destination: 1,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            subscription_length: 1.into(),
            messages: messages.into(),
            bytes: bytes.into(),
            ..OpenConsumer::default()
        };
        self.say(3, &fields, &[name.as_bytes(), b"s"]);
    }

    /// Opens a consumer of a named subscription and returns it with what came.
    fn open_consumer(
        &mut self,
        broker: &mut Broker,
        session: u32,
        name: &str,
        messages: u64,
        bytes: u64,
    ) -> (u32, Vec<Received>) {
        self.ask_for_consumer(session, name, messages, bytes);
        let mut answers = self.exchange(broker);
        let opened = answers.remove(0);
        let (3, Control::ConsumerOpened(fields, _)) = opened.control() else {
            panic!("{opened:?}")
        };
        (fields.handle.get(), answers)
    }
}

fn message(producer: &Producer, partition: u32, in_partition: u64, body: &[u8]) -> Vec<u8> {
    let envelope = Envelope {
        handle: Handle(producer.handle),
        partition: PartitionIndex(partition),
        producer: ProducerId(producer.producer),
        epoch: Epoch(producer.epoch),
        sequence: Sequence(producer.sequence),
        partition_sequence: PartitionSequence(in_partition),
        ..Envelope::default()
    };
    let mut bytes = vec![0; encode::message_size(0, body.len())];
    encode::message(&envelope, &[], body, &mut bytes);
    bytes
}

/// Changes a message's header and seals it again.
fn changed(mut bytes: Vec<u8>, change: impl FnOnce(&mut MessageHeader)) -> Vec<u8> {
    let (header, _) = MessageHeader::mut_from_prefix(&mut bytes).unwrap();
    change(header);
    let length = header.length.get() as usize;
    let sum = checksum::message(&bytes[..length]);
    bytes[32..36].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Every outcome in `frames`, one by one: sequence, offset, refusal.
fn outcomes(frames: &[Received]) -> Vec<(u64, u64, u16)> {
    let mut outcomes = Vec::new();
    for frame in frames {
        if frame.kind() != Kind::Completions {
            continue;
        }
        let (_, Control::Completions(_, tail)) = frame.control() else {
            unreachable!()
        };
        for run in <[CompletionRun]>::ref_from_bytes(tail).unwrap() {
            for index in 0..u64::from(run.count.get()) {
                // Of a refused send there is no place.
                let offset = match run.refusal.get() {
                    0 => run.offset.get() + index,
                    _ => 0,
                };
                outcomes.push((run.sequence.get() + index, offset, run.refusal.get()));
            }
        }
    }
    outcomes
}

/// Every message in `frames`: partition, offset, delivery count, body; each
/// checked against its delivery.
fn deliveries(frames: &[Received], consumer: u32) -> Vec<(u32, u64, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut frames = frames.iter();
    while let Some(frame) = frames.next() {
        if frame.kind() != Kind::Delivery {
            assert_ne!(frame.kind(), Kind::Message, "a message without a delivery");
            continue;
        }
        let (subject, Control::Delivery(delivery, _)) = frame.control() else {
            unreachable!()
        };
        assert_eq!(subject, consumer);
        let Delivery {
            partition,
            count,
            offset,
            delivery_count,
            ..
        } = *delivery;
        assert!(count.get() > 0 && (delivery_count.get() == 1 || count.get() == 1));
        for index in 0..u64::from(count.get()) {
            // 22: nothing stands between a delivery and its messages.
            let frame = frames.next().unwrap();
            let Frame::Message(message) = frame.frame() else {
                panic!("{frame:?}")
            };
            // 5: what no checksum covers agrees with what one covers.
            assert_eq!(message.header.partition, partition);
            assert_eq!(message.header.offset.get(), offset.get() + index);
            found.push((
                partition.get(),
                offset.get() + index,
                delivery_count.get(),
                message.body.to_vec(),
            ));
        }
    }
    found
}

fn credit(frames: &[Received]) -> Option<Credit> {
    frames.iter().rev().find_map(|frame| match frame.frame() {
        Frame::Control {
            control: Control::Credit(fields, _),
            ..
        } => Some(*fields),
        _ => None,
    })
}

fn farewell(frames: &[Received]) -> Refusal {
    let last = frames.last().unwrap();
    let (0, Control::Farewell(Farewell { refusal, .. }, _)) = last.control() else {
        panic!("{last:?}")
    };
    Refusal::from_code(refusal.get()).unwrap()
}

#[test]
fn a_hello_and_the_first_requests_may_come_in_one_piece() {
    // 8, 9, 11
    let mut broker = Broker::new();
    let mut bytes = vector("hello");
    bytes.extend(vector("open-session"));
    bytes.extend(vector("ping"));
    let mut client = broker.greeted(&bytes).unwrap();
    let kinds: Vec<(Kind, u32)> = client
        .exchange(&mut broker)
        .iter()
        .map(|frame| (frame.kind(), frame.control().0))
        .collect();
    assert_eq!(
        kinds,
        [
            (Kind::Welcome, 0),
            (Kind::SessionOpened, 7),
            (Kind::Pong, 7)
        ]
    );
}

#[test]
fn a_version_that_nobody_here_speaks_is_answered_with_what_is_spoken() {
    // 7
    let mut broker = Broker::new();
    let Err(answer) = broker.greeted(&vector("hello-of-a-later-version")) else {
        panic!("version 7 to 9 is not spoken")
    };
    assert_eq!(answer.0, vector("farewell"));
}

#[test]
fn anything_but_a_hello_is_not_let_in() {
    // 6
    for vector in vectors::all() {
        let first = broker_answer_to(&vector.bytes);
        let is_hello = matches!(vector.name, "hello" | "hello-again");
        assert_eq!(first.is_ok(), is_hello, "{}", vector.name);
    }
}

fn broker_answer_to(bytes: &[u8]) -> Result<Client, Received> {
    Broker::new().greeted(bytes)
}

#[test]
fn a_refused_request_leaves_the_link_open() {
    // 11, 34
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let unknown = Lookup {
        session: (session + 1).into(),
        destination: 1,
        ..Lookup::default()
    };
    client.say(10, &unknown, &[b"/md/eu"]);
    let lookup = Lookup {
        session: session.into(),
        destination: 1,
        ..Lookup::default()
    };
    client.say(11, &lookup, &[b"no name"]);
    client.say(12, &lookup, &[b"/md/eu"]);
    let close = Close {
        handle: 4.into(),
        ..Close::default()
    };
    client.say(13, &close, &[]);
    client.say(14, &Ping { token: 3.into() }, &[]);
    let answers = client.exchange(&mut broker);
    let said: Vec<(u32, Option<u16>)> = answers
        .iter()
        .map(|answer| match answer.control() {
            (request, Control::Refused(fields, _)) => (request, Some(fields.refusal.get())),
            (request, _) => (request, None),
        })
        .collect();
    let not_open = Some(Refusal::NotOpen.code());
    let invalid = Some(Refusal::InvalidName.code());
    assert_eq!(
        said,
        [
            (10, not_open),
            (11, invalid),
            (12, None),
            (13, not_open),
            (14, None)
        ]
    );
    assert!(!client.ended);
}

#[test]
fn outcomes_come_in_the_order_of_the_sends_and_a_refusal_has_its_place() {
    // 16, 17, 18, 19
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 2);
    client.send(&mut producer, 0, 1, b"a");
    client.send(&mut producer, 1, 1, b"b");
    producer.sequence += 1;
    let reserved = changed(message(&producer, 0, 2, b"c"), |header| {
        header.flags = (1 << 2).into();
    });
    client.out.extend(reserved);
    // The refused send counts in its partition; a number of the producer may be left out.
    producer.sequence += 5;
    client.send(&mut producer, 0, 3, b"d");
    client.send(&mut producer, 0, 3, b"again");
    client.send(&mut producer, 0, 5, b"ahead");
    client.send(&mut producer, 1, 2, b"e");
    let answers = client.exchange(&mut broker);
    let refused = |refusal: Refusal| refusal.code();
    assert_eq!(
        outcomes(&answers),
        [
            (1, 0, 0),
            (2, 0, 0),
            (3, 0, refused(Refusal::Unsupported)),
            (9, 1, 0),
            (10, 1, 0),
            (11, 0, refused(Refusal::OutOfOrder)),
            (12, 1, 0),
        ]
    );
    assert!(!client.ended);
}

#[test]
fn credit_holds_to_the_byte_and_beyond_it_the_link_ends() {
    // 13, 14
    let full = |producer: &Producer, less: usize| {
        vec![7; usize::try_from(producer.credit_bytes).unwrap() - 112 - less]
    };
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    // Padding costs: seven bytes less than the credit take all of it.
    let body = full(&producer, 7);
    client.send(&mut producer, 0, 1, &body);
    assert_eq!(outcomes(&client.exchange(&mut broker)), [(1, 0, 0)]);

    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let body = full(&producer, 0);
    client.send(&mut producer, 0, 1, &[&body[..], b"x"].concat());
    assert_eq!(
        farewell(&client.exchange(&mut broker)),
        Refusal::CreditExceeded
    );
    assert!(client.ended);
}

#[test]
fn who_asks_is_granted_the_largest_frame_and_the_position_is_absolute() {
    // 13, 15
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    client.send(&mut producer, 0, 1, b"small");
    client.exchange(&mut broker);
    let body = vec![9; limits::BODY_SIZE_MAX as usize];
    let size = encode::message_size(0, body.len()) as u64;
    client.say(producer.handle, &WantCredit { bytes: size.into() }, &[]);
    let granted = credit(&client.exchange(&mut broker)).unwrap();
    let sent = encode::message_size(0, 5) as u64;
    assert!(granted.bytes.get() >= sent + size, "{granted:?}");
    client.send(&mut producer, 0, 2, &body);
    assert_eq!(outcomes(&client.exchange(&mut broker)), [(2, 1, 0)]);
}

#[test]
fn a_batch_is_what_it_announced() {
    // 21
    let mut broker = Broker::new();
    for (messages, bytes, ends) in [
        (2, 240, false),
        (2, 232, true),
        (3, 240, true),
        (0, 0, true),
    ] {
        let (mut client, session) = broker.client();
        let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
        let batch = Batch {
            messages: u32::into(messages),
            bytes: u32::into(bytes),
        };
        client.say(producer.handle, &batch, &[]);
        client.send(&mut producer, 0, 1, b"a");
        client.send(&mut producer, 0, 2, b"b");
        client.exchange(&mut broker);
        assert_eq!(client.ended, ends, "{messages} messages, {bytes} bytes");
    }
}

#[test]
fn a_consumer_gets_what_the_sender_sealed_up_to_its_grant() {
    // 4, 5, 25, 26, 27
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 2, 1);
    let sent: Vec<Vec<u8>> = (1..=4u64)
        .map(|in_partition| {
            let before = client.out.len();
            client.send(&mut producer, 0, in_partition, b"hello");
            client.out[before..].to_vec()
        })
        .collect();
    let answers = client.exchange(&mut broker);
    // One byte of credit admits one whole message, and no second.
    let got = deliveries(&answers, consumer);
    assert_eq!(got, [(0, 0, 1, b"hello".to_vec())]);
    let frame = &answers
        .iter()
        .find(|frame| frame.kind() == Kind::Message)
        .unwrap()
        .0;
    let differing: Vec<usize> = (0..frame.len())
        .filter(|at| frame[*at] != sent[0][*at])
        .collect();
    assert!(
        differing.iter().all(|at| (8..32).contains(at)),
        "{differing:?}"
    );

    // Exactly what was delivered is not more than was delivered.
    let allow = |messages: u64, bytes: u64| Allow {
        messages: messages.into(),
        bytes: bytes.into(),
        handed: 1.into(),
    };
    client.say(consumer, &allow(2, 120), &[]);
    assert_eq!(deliveries(&client.exchange(&mut broker), consumer), []);
    client.say(consumer, &allow(2, 1 << 20), &[]);
    let got = deliveries(&client.exchange(&mut broker), consumer);
    assert_eq!(
        got,
        [(0, 1, 1, b"hello".to_vec())],
        "messages are never passed"
    );
    // A grant is never taken back.
    client.say(consumer, &allow(1, 1), &[]);
    client.say(consumer, &allow(9, 1), &[]);
    let got = deliveries(&client.exchange(&mut broker), consumer);
    assert_eq!(got.iter().map(|one| one.1).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn acknowledging_again_changes_nothing_and_too_much_settles_the_rest() {
    // 28, 34
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    for in_partition in 1..=4 {
        client.send(&mut producer, 0, in_partition, b"x");
    }
    assert_eq!(deliveries(&client.exchange(&mut broker), consumer).len(), 4);
    let mut settle = |client: &mut Client, confirm: u32, first: u64, count: u64| {
        let run = AckRun {
            first: first.into(),
            count: count.into(),
        };
        let fields = Acknowledge {
            runs: 1.into(),
            confirm: confirm.into(),
            ..Acknowledge::default()
        };
        client.say(consumer, &fields, &[run.as_bytes()]);
        let answers = client.exchange(&mut broker);
        let [answer] = &answers[..] else {
            panic!("{answers:?}")
        };
        let (
            subject,
            Control::Acknowledged(
                Acknowledged {
                    confirm: echoed,
                    refusal,
                    ..
                },
                _,
            ),
        ) = answer.control()
        else {
            panic!("{answer:?}")
        };
        assert_eq!((subject, echoed.get()), (consumer, confirm));
        refusal.get()
    };
    assert_eq!(settle(&mut client, 1, 0, 2), 0);
    assert_eq!(settle(&mut client, 2, 0, 2), 0);
    assert_eq!(settle(&mut client, 3, 1, 2), 0);
    assert_eq!(settle(&mut client, 4, 2, 9), Refusal::InvalidAck.code());
    // Everything is settled: nothing returns when the consumer goes.
    let close = Close {
        handle: consumer.into(),
        ..Close::default()
    };
    client.say(20, &close, &[]);
    client.exchange(&mut broker);
    let (consumer, mut answers) =
        client.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    answers.extend(client.exchange(&mut broker));
    assert_eq!(deliveries(&answers, consumer), []);
}

#[test]
fn what_returns_comes_first_and_counts_only_if_it_was_handed_on() {
    // 27, 29
    for broken in [false, true] {
        let mut broker = Broker::new();
        let (mut client, session) = broker.client();
        let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
        let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 3, 1 << 20);
        for in_partition in 1..=4 {
            client.send(&mut producer, 0, in_partition, b"x");
        }
        assert_eq!(deliveries(&client.exchange(&mut broker), consumer).len(), 3);
        let handed = Allow {
            messages: 3.into(),
            bytes: 1.into(),
            handed: 1.into(),
        };
        client.say(consumer, &handed, &[]);
        client.exchange(&mut broker);
        if broken {
            broker.shard.closed(broker.now, client.link);
        } else {
            client.say(0, &Goodbye::default(), &[]);
            client.exchange(&mut broker);
        }
        let (mut other, session) = broker.client();
        let (consumer, mut answers) =
            other.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
        answers.extend(other.exchange(&mut broker));
        let got: Vec<(u64, u32)> = deliveries(&answers, consumer)
            .iter()
            .map(|(_, offset, count, _)| (*offset, *count))
            .collect();
        let expected = if broken {
            [(0, 2), (1, 2), (2, 2), (3, 1)]
        } else {
            [(0, 2), (1, 1), (2, 1), (3, 1)]
        };
        assert_eq!(got, expected, "broken: {broken}");
    }
}

#[test]
fn a_close_is_answered_behind_the_outcomes_and_a_second_consumer_has_to_wait() {
    // 11, 28; section 4, OpenConsumer
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 1, 1);
    client.ask_for_consumer(session, "/md/eu", 1, 1);
    let answers = client.exchange(&mut broker);
    let (3, Control::Refused(fields, _)) = answers[0].control() else {
        panic!("{answers:?}")
    };
    assert_eq!(fields.refusal.get(), Refusal::Exclusive.code());
    assert_ne!(consumer, producer.handle, "handles on a link are different");

    client.send(&mut producer, 0, 1, b"x");
    let close = Close {
        handle: producer.handle.into(),
        ..Close::default()
    };
    client.say(30, &close, &[]);
    let kinds: Vec<Kind> = client
        .exchange(&mut broker)
        .iter()
        .map(Received::kind)
        .filter(|kind| matches!(kind, Kind::Completions | Kind::Closed))
        .collect();
    assert_eq!(kinds, [Kind::Completions, Kind::Closed]);
    // What comes behind the close belongs to nobody.
    client.send(&mut producer, 0, 2, b"y");
    assert_eq!(farewell(&client.exchange(&mut broker)), Refusal::NotOpen);
}

#[test]
fn ending_a_session_or_the_link_loses_no_outcome() {
    // 17, 32
    for goodbye in [false, true] {
        let mut broker = Broker::new();
        let (mut client, session) = broker.client();
        let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
        client.send(&mut producer, 0, 1, b"x");
        if goodbye {
            client.say(0, &Goodbye::default(), &[]);
        } else {
            let close = CloseSession {
                session: session.into(),
                ..CloseSession::default()
            };
            client.say(9, &close, &[]);
        }
        let answers = client.exchange(&mut broker);
        assert_eq!(outcomes(&answers), [(1, 0, 0)], "goodbye: {goodbye}");
        assert_eq!(client.ended, goodbye);
    }
}

#[test]
fn what_breaks_the_rules_ends_the_link_with_its_reason() {
    // 33
    type Break = fn(&mut Client, &mut Producer, u32);
    let cases: [(&str, Break, Refusal); 14] = [
        (
            "a broker's frame",
            |c, _, _| c.out.extend(vector("pong")),
            Refusal::Unexpected,
        ),
        (
            "a second hello",
            |c, _, _| c.out.extend(vector("hello")),
            Refusal::Unexpected,
        ),
        (
            "a flipped bit",
            |c, _, _| {
                let mut ping = vector("ping");
                ping[20] ^= 1;
                c.out.extend(ping);
            },
            Refusal::ChecksumMismatch,
        ),
        (
            "padding",
            |c, p, _| {
                c.send(p, 0, 1, b"hello");
                *c.out.last_mut().unwrap() = 1;
            },
            Refusal::Malformed,
        ),
        (
            "another version",
            |c, _, _| {
                let mut ping = vector("ping");
                ping[5] = 2;
                c.out.extend(ping);
            },
            Refusal::VersionUnsupported,
        ),
        (
            "a length",
            |c, _, _| {
                let mut ping = vector("ping");
                ping[..4].copy_from_slice(&u32::MAX.to_le_bytes());
                c.out.extend(ping);
            },
            Refusal::FrameTooLarge,
        ),
        (
            "an unknown handle",
            |c, p, _| {
                p.handle += 1;
                c.send(p, 0, 1, b"x");
            },
            Refusal::NotOpen,
        ),
        (
            "another producer",
            |c, p, _| {
                p.producer += 1;
                c.send(p, 0, 1, b"x");
            },
            Refusal::Unexpected,
        ),
        (
            "an epoch that never was",
            |c, p, _| {
                p.epoch = 0;
                c.send(p, 0, 1, b"x");
            },
            Refusal::Unexpected,
        ),
        (
            "the send before the first",
            |c, p, _| c.send(p, 0, 0, b"x"),
            Refusal::Unexpected,
        ),
        (
            "a sequence that stands",
            |c, p, _| {
                c.send(p, 0, 1, b"x");
                p.sequence -= 1;
                c.send(p, 0, 2, b"x");
            },
            Refusal::Unexpected,
        ),
        (
            "no such partition",
            |c, p, _| c.send(p, 1, 1, b"x"),
            Refusal::Unexpected,
        ),
        (
            "handed on too much",
            |c, _, consumer| {
                let allow = Allow {
                    handed: 1.into(),
                    ..Allow::default()
                };
                c.say(consumer, &allow, &[]);
            },
            Refusal::IllegalArgument,
        ),
        (
            "credit for too much",
            |c, p, _| {
                let want = WantCredit {
                    bytes: (u64::from(limits::FRAME_SIZE_MAX) + 16).into(),
                };
                c.say(p.handle, &want, &[]);
            },
            Refusal::FrameTooLarge,
        ),
    ];
    for (what, break_it, expected) in cases {
        let mut broker = Broker::new();
        let (mut client, session) = broker.client();
        let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
        let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 0, 0);
        break_it(&mut client, &mut producer, consumer);
        client.say(99, &Ping::default(), &[]);
        let answers = client.exchange(&mut broker);
        assert_eq!(farewell(&answers), expected, "{what}");
        assert!(client.ended, "{what}");
        assert!(
            answers.iter().all(|frame| frame.kind() != Kind::Pong),
            "{what}"
        );
    }
}

#[test]
fn the_broker_that_stops_says_so() {
    // 35
    let mut broker = Broker::new();
    let (mut client, _) = broker.client();
    broker.shard.stop(broker.now);
    assert_eq!(farewell(&client.exchange(&mut broker)), Refusal::Stopping);
    assert!(client.ended);
}

#[test]
fn stats_come_in_frames_that_say_what_is_still_to_come() {
    // Section 4, Stats
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    for index in 0..100 {
        client.open_producer(&mut broker, session, &format!("/md/{index:0100}"), 1);
    }
    client.say(50, &AskStats::default(), &[]);
    let answers = client.exchange(&mut broker);
    assert!(answers.len() > 1);
    let (mut seen, mut remaining) = (0, 100);
    for (index, answer) in answers.iter().enumerate() {
        let (50, Control::Stats(fields, _)) = answer.control() else {
            panic!("{answer:?}")
        };
        assert_eq!(fields.counters.get() > 0, index == 0);
        seen += fields.rows.get();
        remaining -= fields.rows.get();
        assert_eq!(fields.remaining.get(), remaining);
    }
    assert_eq!((seen, remaining), (100, 0));
}

/// The outcomes of the sends in `messages`, sent again as they are but for the handle.
fn resent(
    client: &mut Client,
    broker: &mut Broker,
    producer: &Producer,
    messages: &[Vec<u8>],
) -> Vec<(u64, u64, u16)> {
    for message in messages {
        let again = changed(message.clone(), |header| {
            header.handle = producer.handle.into();
        });
        client.out.extend(again);
    }
    outcomes(&client.exchange(broker))
}

#[test]
fn a_link_that_takes_the_place_of_another_ends_it_first_and_has_a_number_of_its_own() {
    // Section 4, Hello and Welcome; 29
    let mut broker = Broker::new();
    let (mut first, session) = broker.client();
    let mut producer = first.open_producer(&mut broker, session, "/md/eu", 1);
    let (consumer, _) = first.open_consumer(&mut broker, session, "/md/eu", 1, 1);
    first.send(&mut producer, 0, 1, b"x");
    assert_eq!(deliveries(&first.exchange(&mut broker), consumer).len(), 1);

    let (mut second, session) = broker.client_again(first.number);
    assert_ne!(second.number, first.number);
    // The subscription is free, and what the first link held comes again, counted.
    let (consumer, mut answers) = second.open_consumer(&mut broker, session, "/md/eu", 1, 1 << 20);
    answers.extend(second.exchange(&mut broker));
    assert_eq!(deliveries(&answers, consumer), [(0, 0, 2, b"x".to_vec())]);
    // The first one is told nothing and heard no more.
    first.send(&mut producer, 0, 2, b"y");
    assert_eq!(outcomes(&first.exchange(&mut broker)), []);
    broker.lets_go(&first);
    // A number that is none, or one's own to come, changes nothing.
    for number in [u64::MAX, first.number, second.number + 1] {
        broker.client_again(number);
        assert!(!broker.lets_go(&second), "{number}");
        (second, _) = broker.client();
    }
}

#[test]
fn a_producer_whose_link_broke_goes_on_and_what_is_sent_again_keeps_its_place() {
    // 19, 22, 23, 24
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 2);
    let mut messages = Vec::new();
    for (partition, in_partition) in [(0, 1), (1, 1), (0, 2), (0, 3), (1, 2), (0, 4)] {
        producer.sequence += 1;
        messages.push(message(&producer, partition, in_partition, b"m"));
    }
    // The last two never arrive, and nothing is heard of the others.
    client.open_consumer(&mut broker, session, "/md/eu", 0, 0);
    client.out.extend(messages[..4].concat());
    client.exchange(&mut broker);
    broker.now.wall = Wall(999);
    let (mut other, session) = broker.client_again(client.number);
    assert!(broker.lets_go(&client));
    let again = other
        .attach_again(&mut broker, session, "/md/eu", &producer)
        .unwrap();
    assert_eq!(
        (again.producer, again.epoch),
        (producer.producer, producer.epoch + 1)
    );
    let all = resent(&mut other, &mut broker, &again, &messages);
    let expected = [
        (1, 0, 0),
        (2, 0, 0),
        (3, 1, 0),
        (4, 2, 0),
        (5, 1, 0),
        (6, 3, 0),
    ];
    assert_eq!(all, expected);
    // What is new bears the new epoch, and the partition goes on without a gap.
    let mut again = again;
    other.send(&mut again, 0, 5, b"n");
    assert_eq!(outcomes(&other.exchange(&mut broker)), [(7, 4, 0)]);
    // Nothing is stored twice, and every message keeps the epoch it was sent with.
    let (consumer, mut answers) = other.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    answers.extend(other.exchange(&mut broker));
    assert_eq!(deliveries(&answers, consumer).len(), 7);
    let epochs: Vec<u32> = answers
        .iter()
        .filter_map(|frame| match frame.frame() {
            Frame::Message(message) => Some(message.header.epoch.get()),
            Frame::Control { .. } => None,
        })
        .collect();
    assert_eq!(epochs.iter().filter(|epoch| **epoch == 2).count(), 1);
    assert_eq!(epochs.len(), 7);
}

#[test]
fn the_time_of_a_retry_is_that_of_the_first() {
    // 19
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    client.send(&mut producer, 0, 1, b"x");
    let first = client.out.clone();
    let before = client.exchange(&mut broker);
    broker.now.wall = Wall(broker.now.wall.0 + 5);
    client.out.extend(first);
    let after = client.exchange(&mut broker);
    let run = |answers: &[Received]| match answers[0].control() {
        (_, Control::Completions(_, tail)) => tail.to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(run(&before), run(&after));
}

#[test]
fn a_handle_whose_producer_is_attached_elsewhere_is_fenced_and_its_link_goes_on() {
    // 24
    let mut broker = Broker::new();
    let (mut old, session) = broker.client();
    let mut producer = old.open_producer(&mut broker, session, "/md/eu", 1);
    old.send(&mut producer, 0, 1, b"a");
    old.exchange(&mut broker);
    let (mut new, session) = broker.client();
    let mut again = new
        .attach_again(&mut broker, session, "/md/eu", &producer)
        .unwrap();
    let fenced = Refusal::Fenced.code();
    old.send(&mut producer, 0, 2, b"late");
    old.send(&mut producer, 0, 1, b"retry");
    old.say(9, &Ping::default(), &[]);
    let answers = old.exchange(&mut broker);
    assert_eq!(outcomes(&answers), [(2, 0, fenced), (3, 0, fenced)]);
    assert!(answers.iter().any(|frame| frame.kind() == Kind::Pong));
    // It used nothing up.
    new.send(&mut again, 0, 2, b"b");
    // An incarnation that does not exist yet is fenced too, and uses nothing up.
    again.epoch += 1;
    new.send(&mut again, 0, 3, b"c");
    again.epoch -= 1;
    new.send(&mut again, 0, 3, b"d");
    assert_eq!(
        outcomes(&new.exchange(&mut broker)),
        [(2, 1, 0), (3, 0, fenced), (4, 2, 0)]
    );
    // That the old handle is closed, or its link, means nothing to the new one.
    let close = Close {
        handle: producer.handle.into(),
        ..Close::default()
    };
    old.say(10, &close, &[]);
    old.exchange(&mut broker);
    broker.lets_go(&old);
    new.send(&mut again, 0, 4, b"e");
    assert_eq!(outcomes(&new.exchange(&mut broker)), [(5, 3, 0)]);
}

#[test]
fn who_is_not_known_or_was_elsewhere_is_not_attached() {
    // 24; section 4, OpenProducer
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    client.open_producer(&mut broker, session, "/md/us", 1);
    for (name, id, expected) in [
        ("/md/eu", producer.producer + 9, Refusal::Fenced),
        ("/md/us", producer.producer, Refusal::PreconditionFailed),
        ("/md/none", producer.producer, Refusal::NotFound),
    ] {
        let refused = client.ask_for_producer(&mut broker, session, name, 0, id);
        assert_eq!(refused.err(), Some(expected), "{name}");
    }
    let more = client.ask_for_producer(&mut broker, session, "/md/eu", 2, producer.producer);
    assert_eq!(more.err(), Some(Refusal::PreconditionFailed));
    // Asking for it created nothing.
    let lookup = Lookup {
        session: session.into(),
        destination: 1,
        ..Lookup::default()
    };
    client.say(5, &lookup, &[b"/md/none"]);
    let answers = client.exchange(&mut broker);
    let (5, Control::Located(located, _)) = answers[0].control() else {
        panic!("{answers:?}")
    };
    assert_eq!(located.exists, 0);
}

#[test]
fn who_said_goodbye_is_forgotten() {
    // 22, 24
    let close: fn(&mut Client, &Producer, u32) = |client, producer, _| {
        let close = Close {
            handle: producer.handle.into(),
            ..Close::default()
        };
        client.say(9, &close, &[]);
    };
    let close_session: fn(&mut Client, &Producer, u32) = |client, _, session| {
        let close = CloseSession {
            session: session.into(),
            ..CloseSession::default()
        };
        client.say(9, &close, &[]);
    };
    let goodbye: fn(&mut Client, &Producer, u32) =
        |client, _, _| client.say(0, &Goodbye::default(), &[]);
    for leave in [close, close_session, goodbye] {
        let mut broker = Broker::new();
        let (mut client, session) = broker.client();
        let producer = client.open_producer(&mut broker, session, "/md/eu", 1);
        leave(&mut client, &producer, session);
        client.exchange(&mut broker);
        let (mut other, session) = broker.client();
        let again = other.attach_again(&mut broker, session, "/md/eu", &producer);
        assert_eq!(again.err(), Some(Refusal::Fenced));
        // Its id is nobody else's.
        let new = other.open_producer(&mut broker, session, "/md/eu", 1);
        assert_ne!(new.producer, producer.producer);
    }
}

/// A header that stands for a send which its client gave up.
fn given_up(producer: &Producer, partition: u32, in_partition: u64, body: &[u8]) -> Vec<u8> {
    changed(message(producer, partition, in_partition, body), |header| {
        header.flags = flags::GIVEN_UP.into();
    })
}

#[test]
fn a_send_that_is_given_up_takes_its_turn_unless_it_was_stored() {
    // 18, 19, 20
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    client.send(&mut producer, 0, 1, b"stored");
    producer.sequence += 1;
    let early = given_up(&producer, 0, 3, b"");
    let lost = message(&producer, 0, 2, b"lost");
    client.out.extend(early);
    client.out.extend(given_up(&producer, 0, 2, b""));
    // Too late: it had its turn.
    client.out.extend(&lost);
    // Given up though it was stored.
    client.out.extend(given_up(
        &Producer {
            sequence: 1,
            ..producer
        },
        0,
        1,
        b"",
    ));
    client.send(&mut producer, 0, 3, b"next");
    // With something behind the header it is no giving up.
    producer.sequence += 1;
    client.out.extend(given_up(&producer, 0, 4, b"body"));
    client.send(&mut producer, 0, 5, b"last");
    let (gone, early, odd) = (
        Refusal::GivenUp.code(),
        Refusal::OutOfOrder.code(),
        Refusal::Unsupported.code(),
    );
    assert_eq!(
        outcomes(&client.exchange(&mut broker)),
        [
            (2, 0, early),
            (2, 0, gone),
            (2, 0, gone),
            (1, 0, 0),
            (3, 1, 0),
            (4, 0, odd),
            (5, 2, 0),
        ]
        .into_iter()
        .fold(vec![(1, 0, 0)], |mut all, one| {
            all.push(one);
            all
        })
    );
}

#[test]
fn a_permanent_refusal_is_the_outcome_of_every_retry_and_disturbs_nobody() {
    // 18, 19; section 3: a hash without its flag
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    producer.sequence += 1;
    let unkeyed = changed(message(&producer, 0, 1, b"x"), |header| {
        header.key_hash = 7.into();
    });
    client.out.extend(&unkeyed);
    client.send(&mut producer, 0, 2, b"y");
    client.out.extend(&unkeyed);
    // Right this time, and too late.
    let right = changed(unkeyed, |header| header.flags = flags::KEYED.into());
    client.out.extend(right);
    let refused = Refusal::Unsupported.code();
    assert_eq!(
        outcomes(&client.exchange(&mut broker)),
        [(1, 0, refused), (2, 0, 0), (1, 0, refused), (1, 0, refused)]
    );
}

/// Sequences are the client's to choose: adding one to the largest must end nothing.
#[test]
fn there_is_a_last_sequence_and_nothing_behind_it() {
    // 16, 19
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    producer.sequence = u64::MAX - 2;
    client.send(&mut producer, 0, 1, b"a");
    client.send(&mut producer, 0, 2, b"b");
    let last = message(&producer, 0, 2, b"b");
    client.out.extend(&last);
    client.out.extend(&last);
    let largest = u64::MAX;
    assert_eq!(
        outcomes(&client.exchange(&mut broker)),
        [
            (largest - 1, 0, 0),
            (largest, 1, 0),
            (largest, 1, 0),
            (largest, 1, 0)
        ]
    );
    producer.sequence = 0;
    client.send(&mut producer, 0, 3, b"c");
    assert_eq!(farewell(&client.exchange(&mut broker)), Refusal::Unexpected);
}

#[test]
fn refused_sends_side_by_side_share_a_run() {
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    for in_partition in 3..60 {
        client.send(&mut producer, 0, in_partition, b"early");
    }
    let answers = client.exchange(&mut broker);
    let (_, Control::Completions(fields, _)) = answers[0].control() else {
        panic!("{answers:?}")
    };
    assert_eq!(fields.runs.get(), 1);
    assert_eq!(outcomes(&answers).len(), 57);
}

#[test]
fn positions_are_kept_for_as_many_sends_as_the_page_says_and_retries_are_known_for_ever() {
    // 19
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let mut first = Vec::new();
    for in_partition in 1..=2 + u64::from(limits::POSITIONS_KEPT) {
        client.send(&mut producer, 0, in_partition, b"");
        if first.len() < 3 {
            first.push(client.out.clone());
        }
        // A place and a time of its own each.
        broker.now.wall = Wall(broker.now.wall.0 + 1);
        client.exchange(&mut broker);
    }
    let known = resent(&mut client, &mut broker, &producer, &first);
    let forgotten = Refusal::AlreadyStored.code();
    assert_eq!([known[0], known[2]], [(1, 0, forgotten), (3, 2, 0)]);
}

fn give_back(
    client: &mut Client,
    consumer: u32,
    (first, count): (u64, u64),
    delay: Option<Duration>,
) {
    let run = AckRun {
        first: first.into(),
        count: count.into(),
    };
    let micros = delay.map_or(0, |delay| u64::try_from(delay.as_micros()).unwrap());
    let fields = Return {
        runs: 1.into(),
        options: u32::from(delay.is_some()).into(),
        delay: micros.into(),
        ..Return::default()
    };
    client.say(consumer, &fields, &[run.as_bytes()]);
}

/// Offset and delivery count of each.
fn counted(frames: &[Received], consumer: u32) -> Vec<(u64, u32)> {
    deliveries(frames, consumer)
        .iter()
        .map(|(_, offset, count, _)| (*offset, *count))
        .collect()
}

impl Broker {
    /// Lets time pass, and says when the broker wants to be woken next.
    fn pass(&mut self, time: Duration) -> Option<Duration> {
        self.now.monotonic = self.now.monotonic.after(time);
        self.shard.expire(self.now);
        let next = self.shard.next_expiry();
        next.map(|next| next.since(self.now.monotonic))
    }
}

#[test]
fn what_is_given_back_comes_again_at_once_and_counted() {
    // 28; section 4, Return
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    for in_partition in 1..=4 {
        client.send(&mut producer, 0, in_partition, b"x");
    }
    client.exchange(&mut broker);
    give_back(&mut client, consumer, (1, 2), None);
    let again = counted(&client.exchange(&mut broker), consumer);
    assert_eq!(again, [(1, 2), (2, 2)]);
    // What it does not hold, it cannot give back.
    let settle = Acknowledge {
        runs: 1.into(),
        ..Acknowledge::default()
    };
    let zero = AckRun {
        first: 0.into(),
        count: 1.into(),
    };
    client.say(consumer, &settle, &[zero.as_bytes()]);
    for (first, count) in [(0, 1), (4, u64::MAX), (u64::MAX, 9), (2, 0)] {
        give_back(&mut client, consumer, (first, count), None);
    }
    let elsewhere = Return {
        partition: 7.into(),
        ..Return::default()
    };
    client.say(consumer, &elsewhere, &[]);
    assert_eq!(counted(&client.exchange(&mut broker), consumer), []);
    assert!(!client.ended);
    // Behind the goodbye all of it is counted once more for the next consumer.
    broker.shard.closed(broker.now, client.link);
    let (mut other, session) = broker.client();
    let (consumer, mut answers) = other.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    answers.extend(other.exchange(&mut broker));
    assert_eq!(counted(&answers, consumer), [(1, 3), (2, 3), (3, 2)]);
}

#[test]
fn what_is_given_back_to_rest_comes_after_a_wait_that_doubles_and_holds_up_nothing() {
    // 28; section 4, Return
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    client.send(&mut producer, 0, 1, b"bad");
    client.exchange(&mut broker);
    let mut wait = Duration::from_secs(1);
    for count in 2..14 {
        give_back(&mut client, consumer, (0, 1), Some(Duration::ZERO));
        client.send(&mut producer, 0, u64::from(count), b"good");
        let behind = counted(&client.exchange(&mut broker), consumer);
        assert_eq!(behind, [(u64::from(count) - 1, 1)]);
        assert_eq!(broker.pass(Duration::ZERO), Some(wait), "delivery {count}");
        // The wall clock may say what it likes.
        broker.now.wall = Wall(u64::MAX / 2);
        broker.pass(wait - Duration::from_nanos(1));
        assert_eq!(counted(&client.exchange(&mut broker), consumer), []);
        broker.pass(Duration::from_nanos(1));
        assert_eq!(
            counted(&client.exchange(&mut broker), consumer),
            [(0, count)]
        );
        wait = (wait * 2).min(Duration::from_secs(300));
    }
    // Longer if the consumer says so, but no longer than there is.
    let year = Duration::from_hours(366 * 24);
    for (asked, waits) in [
        (Duration::from_secs(301), Duration::from_secs(301)),
        (year + year, year),
        (Duration::from_micros(u64::MAX), year),
    ] {
        give_back(&mut client, consumer, (0, 1), Some(asked));
        client.exchange(&mut broker);
        assert_eq!(broker.pass(Duration::ZERO), Some(waits));
        broker.pass(waits);
        assert_eq!(deliveries(&client.exchange(&mut broker), consumer).len(), 1);
    }
}

#[test]
fn what_rests_outlives_its_consumer_and_is_nobodys_to_settle() {
    // 28, 29
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    let (consumer, _) = client.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    client.send(&mut producer, 0, 1, b"x");
    client.exchange(&mut broker);
    give_back(&mut client, consumer, (0, 1), Some(Duration::ZERO));
    let settle = Acknowledge {
        runs: 1.into(),
        confirm: 1.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: 0.into(),
        count: 1.into(),
    };
    client.say(consumer, &settle, &[run.as_bytes()]);
    let answers = client.exchange(&mut broker);
    let (_, Control::Acknowledged(fields, _)) = answers[0].control() else {
        panic!("{answers:?}")
    };
    assert_eq!(fields.refusal.get(), Refusal::InvalidAck.code());
    broker.shard.closed(broker.now, client.link);
    let (mut other, session) = broker.client();
    let (consumer, mut answers) = other.open_consumer(&mut broker, session, "/md/eu", 100, 1 << 20);
    answers.extend(other.exchange(&mut broker));
    assert_eq!(counted(&answers, consumer), []);
    broker.pass(Duration::from_secs(1));
    assert_eq!(counted(&other.exchange(&mut broker), consumer), [(0, 2)]);
    broker.shard.audit();
}

/// Each subscription without a name takes with it what rests in it; its place in the
/// list of what returns stayed, for up to a year.
#[test]
fn a_subscription_that_ends_leaves_nothing_to_return() {
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut producer = client.open_producer(&mut broker, session, "/md/eu", 1);
    for in_partition in 1..=5 {
        let (mut fleeting, own) = broker.client();
        let fields = OpenConsumer {
            session: own.into(),
            destination: 1,
            destination_length: 6.into(),
            messages: 10.into(),
            bytes: 1000.into(),
            start: 1,
            ..OpenConsumer::default()
        };
        fleeting.say(3, &fields, &[b"/md/eu"]);
        let answers = fleeting.exchange(&mut broker);
        let (3, Control::ConsumerOpened(opened, _)) = answers[0].control() else {
            panic!("{answers:?}")
        };
        let consumer = opened.handle.get();
        client.send(&mut producer, 0, in_partition, b"x");
        client.exchange(&mut broker);
        assert_eq!(fleeting.exchange(&mut broker).len(), 2);
        let offset = in_partition - 1;
        give_back(
            &mut fleeting,
            consumer,
            (offset, 1),
            Some(Duration::from_hours(1)),
        );
        fleeting.exchange(&mut broker);
        assert!(broker.pass(Duration::ZERO).is_some());
        broker.lets_go(&fleeting);
        // Nobody is watched any more either.
        broker.pass(Duration::from_secs(1));
        assert_eq!(broker.pass(Duration::ZERO), None);
    }
}

/// Asks for a consumer of `/md/eu`; its handle, or why not.
fn consumer_of(
    client: &mut Client,
    broker: &mut Broker,
    (session, destination): (u32, u8),
    (subscription, sharing): (&str, u8),
    messages: u64,
) -> Result<(u32, Vec<Received>), Refusal> {
    let fields = OpenConsumer {
        session: session.into(),
        destination,
        destination_length: 6.into(),
        subscription_length: u16::try_from(subscription.len()).unwrap().into(),
        sharing,
        messages: messages.into(),
        bytes: (1 << 20).into(),
        ..OpenConsumer::default()
    };
    client.say(3, &fields, &[b"/md/eu", subscription.as_bytes()]);
    let mut answers = client.exchange(broker);
    let first = answers.remove(0);
    match first.control() {
        (3, Control::ConsumerOpened(fields, _)) => Ok((fields.handle.get(), answers)),
        (3, Control::Refused(fields, _)) => Err(Refusal::from_code(fields.refusal.get()).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_subscription_is_shared_by_those_who_ask_for_it_from_the_first_on() {
    // Section 4, OpenConsumer
    const QUEUE: u8 = 0;
    const TOPIC: u8 = 1;
    let mut broker = Broker::new();
    let (mut client, session) = broker.client();
    let mut open = |destination, subscription, sharing| {
        consumer_of(
            &mut client,
            &mut broker,
            (session, destination),
            (subscription, sharing),
            0,
        )
        .map(|_| ())
    };
    let (illegal, other, taken) = (
        Err(Refusal::IllegalArgument),
        Err(Refusal::PreconditionFailed),
        Err(Refusal::Exclusive),
    );
    assert_eq!(open(QUEUE, "", 0), Ok(()));
    assert_eq!(open(QUEUE, "", 2), Ok(()));
    assert_eq!(open(QUEUE, "", 1), illegal);
    assert_eq!(open(QUEUE, "s", 2), illegal);
    assert_eq!(open(TOPIC, "", 2), illegal);
    assert_eq!(open(TOPIC, "", 1), Ok(()));
    assert_eq!(open(TOPIC, "many", 2), Ok(()));
    assert_eq!(open(TOPIC, "many", 2), Ok(()));
    assert_eq!(open(TOPIC, "many", 1), other);
    assert_eq!(open(TOPIC, "many", 0), other);
    assert_eq!(open(TOPIC, "one", 1), Ok(()));
    assert_eq!(open(TOPIC, "one", 0), taken);
    assert_eq!(open(TOPIC, "one", 2), other);
    assert_eq!(open(TOPIC, "one", 5), illegal);
    assert_eq!(open(TOPIC, "", 5), illegal);
    assert_eq!(open(QUEUE, "s", 5), illegal);
    assert_eq!(open(QUEUE, "", 5), Ok(()));
    assert_eq!(open(TOPIC, "one", 6), Err(Refusal::Unsupported));
    for (name, sharing) in [("failover", 3), ("keys", 4)] {
        assert_eq!(open(QUEUE, "", sharing), illegal);
        assert_eq!(open(TOPIC, "", sharing), illegal);
        assert_eq!(open(TOPIC, name, sharing), Ok(()));
        assert_eq!(open(TOPIC, name, sharing), Ok(()));
        assert_eq!(open(TOPIC, name, 7 - sharing), other);
        assert_eq!(open(TOPIC, name, 0), other);
        assert_eq!(open(TOPIC, "many", sharing), other);
    }
}

#[test]
fn those_who_share_a_subscription_get_each_message_once_and_the_free_ones_get_more() {
    // 25, 27, 28; section 4, OpenConsumer
    let mut broker = Broker::new();
    let (mut producing, session) = broker.client();
    let mut producer = producing.open_producer(&mut broker, session, "/md/eu", 1);
    let mut clients = Vec::new();
    for messages in [5, 1_000, 1_000] {
        let (mut client, session) = broker.client();
        let opened = consumer_of(
            &mut client,
            &mut broker,
            (session, 1),
            ("many", 2),
            messages,
        );
        clients.push((opened.unwrap().0, client));
    }
    for in_partition in 1..=90 {
        producing.send(&mut producer, 0, in_partition, b"x");
    }
    producing.exchange(&mut broker);
    let mut got: Vec<Vec<(u64, u32)>> = Vec::new();
    for (consumer, client) in &mut clients {
        got.push(counted(&client.exchange(&mut broker), *consumer));
    }
    let mut all: Vec<(u64, u32)> = got.concat();
    all.sort_unstable();
    assert_eq!(all, (0..90).map(|offset| (offset, 1)).collect::<Vec<_>>());
    assert_eq!(got[0].len(), 5, "no more than its grant");
    assert!(got[1].len().abs_diff(got[2].len()) <= 16, "{got:?}");
    assert!(got.iter().all(|mine| mine.is_sorted()));
    // What one gives back may come to another; what one had who goes, does.
    let (consumer, mut client) = clients.remove(0);
    give_back(&mut client, consumer, (0, 90), None);
    client.exchange(&mut broker);
    broker.lets_go(&client);
    let mut again = Vec::new();
    for (consumer, client) in &mut clients {
        again.extend(counted(&client.exchange(&mut broker), *consumer));
    }
    again.sort_unstable();
    let expected: Vec<(u64, u32)> = got[0].iter().map(|(offset, _)| (*offset, 2)).collect();
    assert_eq!(again, expected);
    // The subscription outlives all of them, with its sharing.
    for (_, client) in &clients {
        broker.lets_go(client);
    }
    let (mut client, session) = broker.client();
    let refused = consumer_of(&mut client, &mut broker, (session, 1), ("many", 1), 9);
    assert_eq!(refused.err(), Some(Refusal::PreconditionFailed));
    let (consumer, mut answers) =
        consumer_of(&mut client, &mut broker, (session, 1), ("many", 2), 100).unwrap();
    answers.extend(client.exchange(&mut broker));
    assert_eq!(deliveries(&answers, consumer).len(), 90);
}

/// Settles so many offsets from `first` on.
fn settle(client: &mut Client, consumer: u32, first: u64, count: u64) {
    let run = AckRun {
        first: first.into(),
        count: count.into(),
    };
    let fields = Acknowledge {
        runs: 1.into(),
        ..Acknowledge::default()
    };
    client.say(consumer, &fields, &[run.as_bytes()]);
}

#[test]
fn who_stands_by_takes_over_what_the_active_consumer_had_not_settled() {
    // 41
    const FAILOVER: u8 = 3;
    let mut broker = Broker::new();
    let (mut producing, session) = broker.client();
    let mut producer = producing.open_producer(&mut broker, session, "/md/eu", 1);
    let open = |broker: &mut Broker| {
        let (mut client, session) = broker.client();
        let opened = consumer_of(&mut client, broker, (session, 1), ("f", FAILOVER), 100);
        (opened.unwrap().0, client)
    };
    let (active, mut first) = open(&mut broker);
    let (standby, mut second) = open(&mut broker);
    for in_partition in 1..=6 {
        producing.send(&mut producer, 0, in_partition, b"x");
    }
    producing.exchange(&mut broker);
    let got = counted(&first.exchange(&mut broker), active);
    assert_eq!(got, (0..6).map(|offset| (offset, 1)).collect::<Vec<_>>());
    assert!(counted(&second.exchange(&mut broker), standby).is_empty());
    settle(&mut first, active, 0, 2);
    settle(&mut first, active, 3, 1);
    first.exchange(&mut broker);
    broker.lets_go(&first);
    let got = counted(&second.exchange(&mut broker), standby);
    assert_eq!(got, [(2, 2), (4, 2), (5, 2)], "what it left, in order");
    let (late, mut third) = open(&mut broker);
    producing.send(&mut producer, 0, 7, b"x");
    producing.exchange(&mut broker);
    assert_eq!(counted(&second.exchange(&mut broker), standby), [(6, 1)]);
    // By Close it is at once, and what the application was not given is not counted.
    let close = Close {
        handle: standby.into(),
        ..Close::default()
    };
    second.say(9, &close, &[]);
    second.exchange(&mut broker);
    let got = counted(&third.exchange(&mut broker), late);
    assert_eq!(got, [(2, 2), (4, 2), (5, 2), (6, 1)]);
    broker.shard.audit();
}

#[test]
fn messages_of_a_producer_stay_with_one_of_those_who_share_by_key_while_others_come_and_go() {
    // 42; here the producers stand for keys
    const KEY_SHARED: u8 = 4;
    const PRODUCERS: usize = 24;
    let mut broker = Broker::new();
    let (mut producing, session) = broker.client();
    let mut producers: Vec<Producer> = (0..PRODUCERS)
        .map(|_| producing.open_producer(&mut broker, session, "/md/eu", 1))
        .collect();
    let mut send_all = |broker: &mut Broker, round: u64| {
        for producer in &mut producers {
            producing.send(producer, 0, round, &round.to_le_bytes());
        }
        producing.exchange(broker);
    };
    let open = |broker: &mut Broker, messages: u64| {
        let (mut client, session) = broker.client();
        let opened = consumer_of(
            &mut client,
            broker,
            (session, 1),
            ("k", KEY_SHARED),
            messages,
        );
        (opened.unwrap().0, client)
    };
    // By the order of sending, an offset names its producer.
    let of_producer = |offset: u64| usize::try_from(offset).unwrap() % PRODUCERS;
    let (one, mut first) = open(&mut broker, 1_000);
    let (two, mut second) = open(&mut broker, 1_000);
    send_all(&mut broker, 1);
    let held = counted(&first.exchange(&mut broker), one);
    let others = counted(&second.exchange(&mut broker), two);
    assert_eq!(held.len() + others.len(), PRODUCERS);
    assert!(!held.is_empty() && !others.is_empty());

    // A third one joins: keys that moved to it wait, all others go on.
    let (three, mut third) = open(&mut broker, 1_000);
    send_all(&mut broker, 2);
    let again = counted(&first.exchange(&mut broker), one);
    let others_again = counted(&second.exchange(&mut broker), two);
    assert!(counted(&third.exchange(&mut broker), three).is_empty());
    let moved = PRODUCERS - again.len() - others_again.len();
    assert!((1..PRODUCERS).contains(&moved), "{moved} keys moved");
    for (offset, _) in &again {
        assert!(
            held.iter()
                .any(|(old, _)| of_producer(*old) == of_producer(*offset))
        );
    }
    broker.shard.audit();

    // What is settled lets its key go, and nothing else does.
    let has_moved = |offset: u64| {
        let stayed = again.iter().chain(&others_again);
        stayed
            .into_iter()
            .all(|(other, _)| of_producer(*other) != of_producer(offset))
    };
    for (offset, _) in &held {
        settle(&mut first, one, *offset, 1);
        first.exchange(&mut broker);
        let got = counted(&third.exchange(&mut broker), three);
        let expected = has_moved(*offset).then_some((offset + PRODUCERS as u64, 1));
        assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
    }
    // What a broken link gives back comes first, to whoever has the key now.
    broker.lets_go(&second);
    let mut got = counted(&first.exchange(&mut broker), one);
    got.extend(counted(&third.exchange(&mut broker), three));
    for producer in 0..PRODUCERS {
        let of_it = got
            .iter()
            .filter(|(offset, _)| of_producer(*offset) == producer);
        assert!(of_it.is_sorted(), "in order");
    }
    for (offset, _) in others.iter().chain(&others_again) {
        assert!(got.contains(&(*offset, 2)), "{offset} came back");
    }
    for (client, consumer) in [(&mut first, one), (&mut third, three)] {
        settle(client, consumer, 0, 2 * PRODUCERS as u64);
        client.exchange(&mut broker);
    }
    broker.shard.audit();
    broker.lets_go(&first);
    broker.lets_go(&third);
}

#[test]
fn the_points_of_those_who_share_by_key_are_paid_for_and_their_number_is_bounded() {
    // Section 4, OpenConsumer
    let mut broker = Broker::new();
    let mut clients = Vec::new();
    let mut opened = 0;
    let refused = loop {
        let (mut client, session) = broker.client();
        let outcome = consumer_of(&mut client, &mut broker, (session, 1), ("k", 4), 0);
        clients.push(client);
        match outcome {
            Ok(_) => opened += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::ResourceAllocation);
    assert!(
        (100..=limits::KEY_SHARED_CONSUMERS_MAX).contains(&opened),
        "{opened}"
    );
    broker.shard.audit();
    for client in &clients {
        broker.shard.closed(broker.now, client.link);
    }
    broker.shard.audit();
}
