mod behind;
mod bounds;
mod browse;
mod closing;
mod finish;
mod poll;
mod replace;
mod taker;

use std::collections::BTreeMap;

use super::*;
use crate::frame::control::{Create, Delete, End, Move, WantCredit};

/// Several shards, and what each link got that nobody looked at yet.
struct Shards {
    all: Vec<Shard>,
    got: BTreeMap<(usize, Handle), Vec<u8>>,
    ended: Vec<(usize, Handle)>,
}

/// A client of one of them.
struct Client {
    at: usize,
    peer: Peer,
}

impl Client {
    /// Asks under request 6 for a destination to be deleted.
    fn deletes(&mut self, (topic, name): (u8, &str), options: u8) {
        let fields = Delete {
            session: self.peer.session.into(),
            destination: topic,
            options,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            ..Delete::default()
        };
        self.peer.control(6, &fields, &[name.as_bytes()]);
    }
}

impl Shards {
    fn new(count: u16) -> Self {
        let all = crate::mesh::mesh(count)
            .unwrap()
            .into_iter()
            .map(|ends| {
                let mut shard = Shard::new(ShardConfig {
                    installation: Installation(7),
                    shard: ends.shard(),
                    memory: limits::MEMORY_MIN,
                    hash_seed: 1,
                    auto_create: true,
                })
                .unwrap();
                shard.join(ends);
                shard
            })
            .collect();
        Self {
            all,
            got: BTreeMap::new(),
            ended: Vec::new(),
        }
    }

    /// Creates a destination, asked for on the last shard.
    fn create(&mut self, name: &str, partitions: u32) {
        let mut client = self.client(self.all.len() - 1);
        let (topic, name) = match name.strip_prefix("topic:") {
            Some(name) => (1, name),
            None => (0, name),
        };
        assert_eq!(
            self.asks_to_create(&mut client, (topic, name), partitions),
            Ok(true)
        );
        let at = client.at;
        self.all[at].closed(now(), client.peer.link);
    }

    /// Whether it was created, or why not.
    fn asks_to_create(
        &mut self,
        client: &mut Client,
        (topic, name): (u8, &str),
        partitions: u32,
    ) -> Result<bool, Refusal> {
        let fields = Create {
            session: client.peer.session.into(),
            destination: topic,
            options: 1.into(),
            partitions: partitions.into(),
            ..Create::default()
        };
        client.peer.control(6, &fields, &[name.as_bytes()]);
        changed(&self.exchange(client))
    }

    fn asks_to_delete(
        &mut self,
        client: &mut Client,
        of: (u8, &str),
        force: bool,
    ) -> Result<bool, Refusal> {
        client.deletes(of, u8::from(force));
        changed(&self.exchange(client))
    }

    /// One turn of one shard.
    fn turn(&mut self, at: usize) {
        let shard = &mut self.all[at];
        shard.meet(now());
        shard.turn(now());
        let mut sends = Vec::new();
        while let Some(output) = shard.output() {
            match output {
                Output::Send(link) => sends.push(link),
                Output::Close { link, .. } => self.ended.push((at, link)),
                Output::HandOver(link) => unreachable!("link {link} did not ask to move"),
            }
        }
        for link in sends {
            loop {
                let mut pieces = Pieces::new();
                shard.pieces(link, &mut pieces);
                let bytes = pieces.slices().concat();
                if bytes.is_empty() {
                    break;
                }
                shard.sent(now(), link, bytes.len());
                self.got.entry((at, link)).or_default().extend(bytes);
            }
        }
        shard.invariants();
    }

    /// Turns of all of them until nothing happens any more.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for at in 0..self.all.len() {
                self.turn(at);
            }
            let busy = |shard: &Shard| shard.has_work() || !shard.mesh_is_empty();
            if !self.all.iter().any(busy) {
                for shard in &self.all {
                    shard.audit();
                }
                return;
            }
        }
        panic!("the shards make no end of it");
    }

    fn client(&mut self, at: usize) -> Client {
        Client {
            at,
            peer: Peer::new(&mut self.all[at]),
        }
    }

    /// Hands over what the client wrote.
    fn write(&mut self, client: &mut Client) {
        let out = std::mem::take(&mut client.peer.out);
        self.all[client.at].received(now(), client.peer.link, &out);
    }

    /// What the client got since it last looked.
    fn read(&mut self, client: &Client) -> Vec<u8> {
        self.got
            .remove(&(client.at, client.peer.link))
            .unwrap_or_default()
    }

    fn exchange(&mut self, client: &mut Client) -> Vec<u8> {
        self.write(client);
        self.settle();
        self.read(client)
    }

    fn producer(&mut self, client: &mut Client, name: &str, id: u64) -> Opened {
        self.producer_of(client, (0, name), id)
    }

    fn producer_of(&mut self, client: &mut Client, (topic, name): (u8, &str), id: u64) -> Opened {
        let fields = OpenProducer {
            session: client.peer.session.into(),
            destination: topic,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            producer: id.into(),
            ..OpenProducer::default()
        };
        client.peer.control(2, &fields, &[name.as_bytes()]);
        opened(&self.exchange(client))
    }

    /// Opens a producer that shares its destination or does not, or one that did again.
    fn accessing(
        &mut self,
        client: &mut Client,
        name: &str,
        access: u8,
        id: u64,
    ) -> Result<Opened, Refusal> {
        let fields = OpenProducer {
            session: client.peer.session.into(),
            destination_length: u16::try_from(name.len()).unwrap().into(),
            access,
            producer: id.into(),
            ..OpenProducer::default()
        };
        client.peer.control(2, &fields, &[name.as_bytes()]);
        let answers = self.exchange(client);
        let refused = frames(&answers).iter().find_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Refused(fields, _),
                ..
            } => Refusal::from_code(fields.refusal.get()),
            _ => None,
        });
        refused.map_or_else(|| Ok(opened(&answers)), Err)
    }

    fn counter(&self, counter: Counter) -> u64 {
        self.all.iter().map(|it| it.counters().read(counter)).sum()
    }
}

/// Turns in an order that looks like none.
struct Shuffle(u64);

impl Shuffle {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005) + 1;
        usize::try_from((self.0 >> 33) % bound as u64).unwrap()
    }
}

/// What became of a change of the catalogue.
fn changed(bytes: &[u8]) -> Result<bool, Refusal> {
    for (frame, _) in frames(bytes) {
        match frame {
            Frame::Control {
                control: Control::Changed(fields, _),
                ..
            } => return Ok(fields.changed != 0),
            Frame::Control {
                control: Control::Refused(fields, _),
                ..
            } => return Err(Refusal::from_code(fields.refusal.get()).unwrap()),
            _ => {}
        }
    }
    panic!("there is no answer")
}

/// The outcomes of single sends, in the order in which they came.
fn singles(bytes: &[u8]) -> Vec<(u64, u32, u64, u16)> {
    completions(bytes)
        .iter()
        .flat_map(|run| {
            (0..u64::from(run.count.get())).map(|index| {
                (
                    run.sequence.get() + index,
                    run.partition.get(),
                    run.offset.get() + index,
                    run.refusal.get(),
                )
            })
        })
        .collect()
}

/// What the credit has come to, in bytes.
fn credit(bytes: &[u8]) -> u64 {
    frames(bytes)
        .iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Credit(credit, _),
                ..
            } => Some(credit.bytes.get()),
            _ => None,
        })
        .max()
        .unwrap_or(0)
}

#[test]
fn outcomes_of_one_producer_leave_in_the_order_of_its_sends_whatever_shard_answers_first() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 6);
    for at in 0..3 {
        let mut client = shards.client(at);
        let mut producer = shards.producer(&mut client, "/default/q", 0);
        for number in 0..60_u32 {
            client
                .peer
                .message_to(number % 6, u64::from(number / 6) + 1, &mut producer, b"x");
        }
        shards.write(&mut client);
        // All but the slowest shard have long answered.
        let slow = (at + 1) % 3;
        for _ in 0..10 {
            for quick in (0..3).filter(|shard| *shard != slow) {
                shards.turn(quick);
            }
        }
        let early = singles(&shards.read(&client));
        assert!(early.len() < 6, "the slow one holds up what is behind it");
        shards.settle();
        let mut all = early;
        all.extend(singles(&shards.read(&client)));
        let expected: Vec<_> = (0..60_u32)
            .map(|number| {
                let offset = u64::from(number / 6) + 10 * at as u64;
                (u64::from(number) + 1, number % 6, offset, 0)
            })
            .collect();
        assert_eq!(all, expected, "from shard {at}");
    }
    assert_eq!(shards.counter(Counter::MessagesStored), 180);
}

/// A producer with one branch was told no id and could send nothing: only where more
/// branches were asked for was the home's answer looked at.
#[test]
fn a_producer_whose_only_partition_is_elsewhere_is_who_the_home_says() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 1);
    let mut client = shards.client(1);
    let mut producer = shards.producer(&mut client, "/default/q", 0);
    assert_ne!(producer.producer, 0);
    client.peer.message_to(0, 1, &mut producer, b"x");
    assert_eq!(singles(&shards.exchange(&mut client)), [(1, 0, 0, 0)]);
    shards.all[1].closed(now(), client.peer.link);
    shards.settle();
    let mut client = shards.client(1);
    let again = shards.producer(&mut client, "/default/q", producer.producer);
    assert_eq!(again.producer, producer.producer);
}

#[test]
fn a_send_that_fails_in_the_middle_fails_in_its_place() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 2);
    let mut client = shards.client(0);
    let mut producer = shards.producer(&mut client, "/default/q", 0);
    // The third is early in its partition, on the other shard; the fourth and the
    // fifth are as they should be.
    for (partition, sequence) in [(0, 1), (1, 1), (1, 3), (0, 2), (1, 2)] {
        client
            .peer
            .message_to(partition, sequence, &mut producer, b"x");
    }
    let outcomes = singles(&shards.exchange(&mut client));
    let early = Refusal::OutOfOrder.code();
    assert_eq!(
        outcomes,
        [
            (1, 0, 0, 0),
            (2, 1, 0, 0),
            (3, 1, 0, early),
            (4, 0, 1, 0),
            (5, 1, 1, 0)
        ]
    );
}

#[test]
fn a_producer_that_comes_back_on_another_shard_has_its_retries_answered_with_their_places() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 3);
    let mut client = shards.client(0);
    let mut producer = shards.producer(&mut client, "/default/q", 0);
    let id = producer.producer;
    for partition in 0..3 {
        client.peer.message_to(partition, 1, &mut producer, b"x");
    }
    let before = singles(&shards.exchange(&mut client));
    shards.all[0].closed(now(), client.peer.link);
    shards.settle();
    let mut client = shards.client(2);
    let mut again = shards.producer(&mut client, "/default/q", id);
    assert_eq!(again.producer, id);
    for partition in 0..3 {
        client.peer.message_to(partition, 1, &mut again, b"x");
    }
    assert_eq!(singles(&shards.exchange(&mut client)), before);
    assert_eq!(shards.counter(Counter::MessagesStored), 3);
    assert_eq!(shards.counter(Counter::Retries), 3);
}

#[test]
fn a_producer_that_is_attached_elsewhere_is_fenced_in_every_partition() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 2);
    let mut old = shards.client(0);
    let mut zombie = shards.producer(&mut old, "/default/q", 0);
    let mut new = shards.client(1);
    shards.producer(&mut new, "/default/q", zombie.producer);
    for partition in 0..2 {
        old.peer.message_to(partition, 1, &mut zombie, b"x");
    }
    let outcomes = singles(&shards.exchange(&mut old));
    let fenced = Refusal::Fenced.code();
    assert_eq!(outcomes, [(1, 0, 0, fenced), (2, 1, 0, fenced)]);
    assert_eq!(shards.counter(Counter::MessagesStored), 0);
}

/// A shard that had not turned for long read what a newer front asked before what an
/// older one had asked over another ring, and fenced the newer.
#[test]
fn a_front_that_was_asked_for_earlier_and_is_heard_of_later_fences_nobody() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 3);
    let mut client = shards.client(0);
    let id = shards.producer(&mut client, "/default/q", 0).producer;
    shards.all[0].closed(now(), client.peer.link);
    shards.settle();
    let open = |shards: &mut Shards, at: usize| {
        let mut client = shards.client(at);
        let fields = OpenProducer {
            session: client.peer.session.into(),
            destination_length: 10.into(),
            producer: id.into(),
            ..OpenProducer::default()
        };
        client.peer.control(2, &fields, &[b"/default/q"]);
        shards.write(&mut client);
        // Shard 2 sleeps on.
        for turn in [1, 0, 1, 0] {
            shards.turn(turn);
        }
        client
    };
    let older = open(&mut shards, 1);
    let mut newer = open(&mut shards, 0);
    shards.settle();
    let mut producer = opened(&shards.read(&newer));
    newer.peer.message_to(2, 1, &mut producer, b"x");
    assert_eq!(singles(&shards.exchange(&mut newer)), [(1, 2, 0, 0)]);
    let refused = frames(&shards.read(&older)).iter().any(|(frame, _)| {
        matches!(frame, Frame::Control { control: Control::Refused(fields, _), .. }
            if fields.refusal.get() == Refusal::Fenced.code())
    });
    assert!(refused, "the older is told that there is a newer one");
}

#[test]
fn messages_of_every_size_reach_another_shard() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 2);
    let mut client = shards.client(1);
    let mut producer = shards.producer(&mut client, "/default/q", 0);
    let sizes = [
        0,
        1,
        30_000,
        32_640,
        32_641,
        65_000,
        70_000,
        1 << 20,
        3 << 20,
    ];
    let mut credited = 0;
    for (size, sequence) in sizes.into_iter().zip(1..) {
        for partition in 0..2 {
            let want = WantCredit {
                bytes: (size as u64 + 200).into(),
            };
            client.peer.control(producer.handle.0, &want, &[]);
            let answer = shards.exchange(&mut client);
            credited = credited.max(credit(&answer));
            let body = vec![u8::try_from(size % 251).unwrap(); size];
            client
                .peer
                .message_to(partition, sequence, &mut producer, &body);
            let answer = shards.exchange(&mut client);
            let outcomes = singles(&answer);
            assert_eq!(outcomes.len(), 1, "{size} bytes to partition {partition}");
            assert_eq!(outcomes[0].2, sequence - 1);
            assert_eq!(outcomes[0].3, 0);
        }
    }
    assert!(credited > 3 << 20, "credit came to {credited}");
    assert_eq!(
        shards.counter(Counter::MessagesStored),
        2 * sizes.len() as u64
    );
}

/// Both send as much as their credit lets them to the other's partitions while
/// neither reads what the other sent, so that the rings of both directions are full.
#[test]
fn shards_that_have_filled_each_others_rings_still_make_progress() {
    let mut shards = Shards::new(2);
    shards.create("/default/filled-0", 2);
    shards.create("/default/filled-1", 2);
    let mut clients = Vec::new();
    for at in 0..2 {
        for number in 0..40 {
            let mut client = shards.client(at);
            let name = format!("/default/filled-{}", number % 2);
            let producer = shards.producer(&mut client, &name, 0);
            // The partition that is not this shard's.
            let remote = u32::try_from((1 - at + number % 2) % 2).unwrap();
            clients.push((client, producer, remote));
        }
    }
    let body = vec![7; 1_000];
    for round in 0..6_u64 {
        for (client, producer, remote) in &mut clients {
            for message in 0..10 {
                let sequence = 10 * round + message + 1;
                client.peer.message_to(*remote, sequence, producer, &body);
            }
            // Nobody looks at what the others send.
            shards.write(client);
        }
        for shard in &shards.all {
            let backlog = shard.mesh.chunks();
            assert!(backlog > 0, "the rings are full");
        }
        shards.settle();
        for (client, ..) in &clients {
            let outcomes = singles(&shards.read(client));
            assert_eq!(outcomes.len(), 10);
            assert!(outcomes.iter().all(|(.., refusal)| *refusal == 0));
        }
        assert!(shards.all.iter().all(|shard| shard.mesh.chunks() == 0));
    }
}

#[test]
fn a_closed_producer_is_answered_behind_its_outcomes_and_leaves_nothing_anywhere() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 3);
    let mut client = shards.client(1);
    for _ in 0..50 {
        let mut producer = shards.producer(&mut client, "/default/q", 0);
        for partition in 0..3 {
            client.peer.message_to(partition, 1, &mut producer, b"x");
        }
        let close = crate::frame::control::Close {
            handle: producer.handle.0.into(),
            ..Default::default()
        };
        client.peer.control(9, &close, &[]);
        let answers = shards.exchange(&mut client);
        assert_eq!(singles(&answers).len(), 3);
        let last = frames(&answers).pop().map(|(frame, _)| match frame {
            Frame::Control { subject, control } => (subject, control.kind()),
            Frame::Message(_) => panic!("a message"),
        });
        assert_eq!(last, Some((9, crate::frame::Kind::Closed)));
    }
    for shard in &shards.all {
        assert_eq!(shard.producers.len(), 0);
        assert_eq!(shard.reserved, 0);
    }
}

#[test]
fn a_link_that_goes_while_its_producer_is_being_opened_leaves_nothing_behind() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 3);
    for turns in 0..8 {
        let mut client = shards.client(2);
        let fields = OpenProducer {
            session: client.peer.session.into(),
            destination_length: 10.into(),
            ..OpenProducer::default()
        };
        client.peer.control(2, &fields, &[b"/default/q"]);
        shards.write(&mut client);
        for turn in 0..turns {
            shards.turn(turn % 3);
        }
        shards.all[2].closed(now(), client.peer.link);
        shards.settle();
        for shard in &shards.all {
            assert_eq!(shard.producers.len(), 0, "after {turns} turns");
            assert_eq!(shard.reserved, 0);
        }
    }
}

#[test]
fn what_ends_a_link_ends_it_whatever_shard_found_it() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 2);
    for partition in 0..2 {
        let mut client = shards.client(0);
        let mut producer = shards.producer(&mut client, "/default/q", 0);
        client.peer.message_to(partition, 1, &mut producer, b"x");
        // The same send as a new one.
        producer.sequence -= 1;
        client.peer.message_to(partition, 2, &mut producer, b"x");
        shards.exchange(&mut client);
        assert!(shards.ended.contains(&(0, client.peer.link)));
    }
}

/// What a consumer was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    partition: u32,
    offset: u64,
    count: u32,
    body: Vec<u8>,
}

/// The deliveries to a consumer: each header is followed by its messages.
fn deliveries(bytes: &[u8], handle: Handle) -> Vec<Got> {
    let mut got = Vec::new();
    let (mut left, mut offset, mut count, mut partition) = (0, 0, 0, 0);
    for (frame, _) in frames(bytes) {
        match frame {
            Frame::Control {
                subject,
                control: Control::Delivery(fields, _),
            } => {
                assert_eq!(left, 0, "a run is whole");
                assert_eq!(subject, handle.0);
                (left, offset) = (fields.count.get(), fields.offset.get());
                (count, partition) = (fields.delivery_count.get(), fields.partition.get());
            }
            Frame::Message(message) => {
                assert!(left > 0, "a message has a header in front of it");
                assert_eq!(message.header.offset.get(), offset);
                assert_eq!(message.header.partition.get(), partition);
                got.push(Got {
                    partition,
                    offset,
                    count,
                    body: message.body.to_vec(),
                });
                left -= 1;
                offset += 1;
            }
            Frame::Control { .. } => assert_eq!(left, 0, "nothing stands within a run"),
        }
    }
    assert_eq!(left, 0, "a run is whole");
    got
}

impl Shards {
    fn consumer(
        &mut self,
        client: &mut Client,
        destination: (u8, &str),
        subscription: &str,
        messages: u64,
    ) -> Result<(Handle, Vec<u8>), Refusal> {
        self.consumer_as(client, 0, destination, subscription, messages)
    }

    fn consumer_as(
        &mut self,
        client: &mut Client,
        sharing: u8,
        (topic, name): (u8, &str),
        subscription: &str,
        messages: u64,
    ) -> Result<(Handle, Vec<u8>), Refusal> {
        let fields = OpenConsumer {
            session: client.peer.session.into(),
            destination: topic,
            sharing,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            subscription_length: u16::try_from(subscription.len()).unwrap().into(),
            messages: messages.into(),
            bytes: (1 << 20).into(),
            ..OpenConsumer::default()
        };
        let tail = [name.as_bytes(), subscription.as_bytes()];
        client.peer.control(3, &fields, &tail);
        let answers = self.exchange(client);
        match frames(&answers)[0] {
            (
                Frame::Control {
                    control: Control::ConsumerOpened(fields, _),
                    ..
                },
                size,
            ) => Ok((Handle(fields.handle.get()), answers[size..].to_vec())),
            (
                Frame::Control {
                    control: Control::Refused(fields, _),
                    ..
                },
                _,
            ) => Err(Refusal::from_code(fields.refusal.get()).unwrap()),
            ref other => panic!("{other:?}"),
        }
    }

    fn allow(
        &mut self,
        client: &mut Client,
        handle: Handle,
        messages: u64,
        handed: u64,
    ) -> Vec<u8> {
        let allow = Allow {
            messages: messages.into(),
            bytes: (1 << 30).into(),
            handed: handed.into(),
        };
        client.peer.control(handle.0, &allow, &[]);
        self.exchange(client)
    }

    /// Settles one message; returns what came with the confirmation.
    fn acknowledge(&mut self, client: &mut Client, handle: Handle, got: &Got) -> Vec<u8> {
        let fields = Acknowledge {
            partition: got.partition.into(),
            runs: 1.into(),
            confirm: 77.into(),
            ..Acknowledge::default()
        };
        let run = AckRun {
            first: got.offset.into(),
            count: 1.into(),
        };
        client.peer.control(handle.0, &fields, &[run.as_bytes()]);
        let answers = self.exchange(client);
        let confirmed = frames(&answers).iter().any(|(frame, _)| {
            matches!(frame, Frame::Control { control: Control::Acknowledged(fields, _), .. }
                if fields.confirm.get() == 77 && fields.refusal.get() == 0)
        });
        assert!(confirmed, "an acknowledgement is confirmed");
        answers
    }

    fn close(&mut self, client: &mut Client, handle: Handle) -> Vec<u8> {
        let close = crate::frame::control::Close {
            handle: handle.0.into(),
            ..Default::default()
        };
        client.peer.control(8, &close, &[]);
        let answers = self.exchange(client);
        let closed = frames(&answers).iter().any(|(frame, _)| {
            matches!(
                frame,
                Frame::Control {
                    subject: 8,
                    control: Control::Closed(..)
                }
            )
        });
        assert!(closed, "what is closed is answered");
        answers
    }

    fn fill(&mut self, name: &str, partitions: u32, each: u32, size: usize) {
        self.fill_with((0, name), partitions, each, size);
    }

    /// Sends so many messages to each partition, all of one producer.
    fn fill_with(&mut self, destination: (u8, &str), partitions: u32, each: u32, size: usize) {
        let mut client = self.client(0);
        let mut producer = self.producer_of(&mut client, destination, 0);
        for number in 0..each * partitions {
            let want = WantCredit {
                bytes: (size as u64 + 200).into(),
            };
            client.peer.control(producer.handle.0, &want, &[]);
            self.exchange(&mut client);
            let (partition, sequence) = (number % partitions, u64::from(number / partitions) + 1);
            let mut body = number.to_le_bytes().to_vec();
            body.resize(size.max(4), 1);
            client
                .peer
                .message_to(partition, sequence, &mut producer, &body);
            let outcomes = singles(&self.exchange(&mut client));
            assert_eq!(outcomes.len(), 1);
            assert_eq!(outcomes[0].3, 0);
        }
        self.all[0].closed(now(), client.peer.link);
        self.settle();
    }
}

#[test]
fn a_consumer_gets_the_messages_of_all_shards_each_partition_in_order() {
    for at in 0..3 {
        let mut shards = Shards::new(3);
        shards.create("/default/q", 6);
        shards.fill("/default/q", 6, 20, 40);
        let mut client = shards.client(at);
        let (handle, first) = shards
            .consumer(&mut client, (0, "/default/q"), "", 1_000)
            .unwrap();
        let got = deliveries(&first, handle);
        assert_eq!(got.len(), 120);
        for partition in 0..6 {
            let offsets: Vec<u64> = got
                .iter()
                .filter(|it| it.partition == partition)
                .map(|it| it.offset)
                .collect();
            assert!(offsets.iter().copied().eq(0..20), "{offsets:?}");
        }
        for one in &got {
            shards.acknowledge(&mut client, handle, one);
        }
        assert_eq!(shards.counter(Counter::MessagesSettled), 120);
        shards.close(&mut client, handle);
        for shard in &shards.all {
            assert_eq!((shard.consumers.len(), shard.arriving), (0, 0));
        }
    }
}

/// Confirmations with their refusals, in the order in which they came.
fn confirmed(bytes: &[u8]) -> Vec<(u32, u16)> {
    frames(bytes)
        .iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Acknowledged(fields, _),
                ..
            } => Some((fields.confirm.get(), fields.refusal.get())),
            _ => None,
        })
        .collect()
}

impl Client {
    /// Acknowledges what it got from three partitions, that of the last one first, and
    /// asks for confirmations from 1 on.
    fn settles(&mut self, got: &[Got], handle: Handle) {
        let mut got = got.to_vec();
        assert_eq!(got.len(), 3);
        got.sort_by_key(|it| it.partition != 2);
        for (one, confirm) in got.iter().zip(1..) {
            let run = AckRun {
                first: one.offset.into(),
                count: 1.into(),
            };
            let fields = Acknowledge {
                partition: one.partition.into(),
                runs: 1.into(),
                options: 0.into(),
                confirm: confirm.into(),
            };
            (self.peer).control(handle.0, &fields, &[run.as_bytes()]);
        }
    }
}

impl Shards {
    /// The shards turn, all but the last one, until they have nothing to do.
    fn turn_without_the_last(&mut self) {
        for turn in [1, 0, 1, 0, 1] {
            self.turn(turn);
        }
    }

    /// A client of shard 1 that has settled what it had of each of three partitions, and
    /// waits for confirmations: the last of the three shards, whose is asked for first,
    /// sleeps.
    fn with_the_last_asleep(&mut self) -> Client {
        assert_eq!(self.all.len(), 3);
        self.create("/default/q", 3);
        self.fill("/default/q", 3, 1, 40);
        let mut client = self.client(1);
        let (handle, first) = (self.consumer(&mut client, (0, "/default/q"), "", 10)).unwrap();
        client.settles(&deliveries(&first, handle), handle);
        self.write(&mut client);
        self.turn_without_the_last();
        client
    }
}

/// A client counts on the last confirmation to speak for those before it.
#[test]
fn confirmations_come_in_the_order_in_which_they_were_asked_for_whatever_shard_is_slow() {
    let mut shards = Shards::new(3);
    let client = shards.with_the_last_asleep();
    assert_eq!(confirmed(&shards.read(&client)), []);
    shards.settle();
    let answers = shards.read(&client);
    assert_eq!(confirmed(&answers), [(1, 0), (2, 0), (3, 0)]);
}

/// They were lost, and whoever waited for them waited until its time-out.
#[test]
fn what_a_shard_owed_a_consumer_that_the_broker_ends_is_confirmed_with_the_reason() {
    let mut shards = Shards::new(3);
    let mut client = shards.with_the_last_asleep();
    client.deletes((0, "/default/q"), 1);
    shards.write(&mut client);
    shards.turn_without_the_last();
    let gone = Refusal::NotFound.code();
    assert_eq!(
        confirmed(&shards.read(&client)),
        [(1, gone), (2, 0), (3, 0)]
    );
    shards.settle();
    assert_eq!(confirmed(&shards.read(&client)), [], "each of them once");
}

#[test]
fn a_credit_of_one_is_never_stranded_at_a_part_that_has_nothing() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 9);
    let mut client = shards.client(1);
    let (handle, first) = shards
        .consumer(&mut client, (0, "/default/q"), "", 1)
        .unwrap();
    assert!(deliveries(&first, handle).is_empty());
    let mut other = shards.client(2);
    let mut producer = shards.producer(&mut other, "/default/q", 0);
    let mut sequences = [0; 9];
    let mut seen = Vec::new();
    for round in 0..40_usize {
        let partition = round * 4 % 9;
        sequences[partition] += 1;
        other.peer.message_to(
            u32::try_from(partition).unwrap(),
            sequences[partition],
            &mut producer,
            b"one",
        );
        shards.exchange(&mut other);
        let mut bytes = shards.read(&client);
        let delivered = round as u64 + 1;
        bytes.extend(shards.allow(&mut client, handle, delivered + 1, delivered));
        let got = deliveries(&bytes, handle);
        assert_eq!(got.len(), 1, "in round {round}");
        shards.acknowledge(&mut client, handle, &got[0]);
        seen.extend(got);
    }
    assert_eq!(seen.len(), 40);
}

#[test]
fn a_grant_is_never_passed_whatever_is_ready_on_how_many_shards() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 3);
    shards.fill("/default/q", 3, 50, 10);
    let mut client = shards.client(0);
    let (handle, first) = shards
        .consumer(&mut client, (0, "/default/q"), "", 7)
        .unwrap();
    let mut got = deliveries(&first, handle);
    assert_eq!(got.len(), 7);
    for granted in [8, 20, 21, 150] {
        let more = shards.allow(&mut client, handle, granted, 0);
        got.extend(deliveries(&more, handle));
        assert_eq!(got.len() as u64, granted);
    }
    let mut places: Vec<_> = got.iter().map(|it| (it.partition, it.offset)).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 150);
}

#[test]
fn messages_of_every_size_are_delivered_from_another_shard() {
    for size in [0, 30_000, 60_000, 65_424, 65_425, 70_000, 1 << 20, 4 << 20] {
        let mut shards = Shards::new(2);
        shards.create("/default/q", 2);
        let each = if size > 1 << 20 { 1 } else { 3 };
        shards.fill("/default/q", 2, each, size);
        let mut client = shards.client(0);
        let (handle, first) = shards
            .consumer(&mut client, (0, "/default/q"), "", 100)
            .unwrap();
        let mut bytes = first;
        bytes.extend(shards.allow(&mut client, handle, 100, 0));
        let got = deliveries(&bytes, handle);
        assert_eq!(got.len(), 2 * each as usize, "messages of {size} bytes");
        for (number, one) in got.iter().enumerate() {
            assert_eq!(one.body.len(), size.max(4), "message {number}");
        }
    }
}

#[test]
fn an_exclusive_subscription_has_one_consumer_on_all_shards_together() {
    let mut shards = Shards::new(2);
    shards.create("topic:/default/t", 2);
    let topic = (1, "/default/t");
    let mut one = shards.client(0);
    let mut two = shards.client(1);
    for _ in 0..3 {
        let (first, _) = shards.consumer(&mut one, topic, "s", 10).unwrap();
        let refused = shards.consumer(&mut two, topic, "s", 10);
        assert_eq!(refused, Err(Refusal::Exclusive));
        shards.close(&mut one, first);
        let (second, _) = shards.consumer(&mut two, topic, "s", 10).unwrap();
        let refused = shards.consumer(&mut one, topic, "s", 10);
        assert_eq!(refused, Err(Refusal::Exclusive));
        shards.close(&mut two, second);
    }
    // One whose link breaks makes way as well.
    shards.consumer(&mut one, topic, "s", 10).unwrap();
    shards.all[0].closed(now(), one.peer.link);
    shards.settle();
    shards.consumer(&mut two, topic, "s", 10).unwrap();
}

/// One that had been let in first, and had gone, was heard of last by a slow shard: it
/// took the place of who had come after it, and that never heard of its partition again.
#[test]
fn who_has_an_exclusive_subscription_keeps_it_where_an_earlier_one_is_heard_of_later() {
    for (at, slow) in [(1, 2), (2, 1)] {
        let mut shards = Shards::new(3);
        let topic = (1, "/default/t");
        shards.create("topic:/default/t", 3);
        let open = |client: &mut Client| {
            let fields = OpenConsumer {
                session: client.peer.session.into(),
                destination: 1,
                destination_length: 10.into(),
                subscription_length: 1.into(),
                messages: 10.into(),
                bytes: 10_000.into(),
                ..OpenConsumer::default()
            };
            client.peer.control(3, &fields, &[topic.1.as_bytes(), b"s"]);
        };
        let awake = |shards: &mut Shards| {
            for _ in 0..4 {
                shards.turn(at);
                shards.turn(0);
            }
        };
        let mut earlier = shards.client(at);
        open(&mut earlier);
        shards.write(&mut earlier);
        awake(&mut shards);
        shards.all[at].closed(now(), earlier.peer.link);
        awake(&mut shards);
        let mut later = shards.client(0);
        open(&mut later);
        let answers = shards.exchange(&mut later);
        let handle = frames(&answers)
            .into_iter()
            .find_map(|(frame, _)| match frame {
                Frame::Control {
                    control: Control::ConsumerOpened(fields, _),
                    ..
                } => Some(Handle(fields.handle.get())),
                _ => None,
            });
        shards.fill_with(topic, 3, 1, 10);
        let told = shards.read(&later);
        let got = deliveries(&told, handle.unwrap());
        assert_eq!(got.len(), 3, "shard {slow} was slow");
    }
}

#[test]
fn what_a_broken_link_held_goes_to_the_next_consumer_first_and_counted() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 3);
    shards.fill("/default/q", 3, 10, 10);
    let mut one = shards.client(0);
    let (handle, first) = shards
        .consumer(&mut one, (0, "/default/q"), "", 12)
        .unwrap();
    let held = deliveries(&first, handle);
    assert_eq!(held.len(), 12);
    shards.all[0].closed(now(), one.peer.link);
    shards.settle();
    let mut two = shards.client(1);
    let (handle, second) = shards
        .consumer(&mut two, (0, "/default/q"), "", 100)
        .unwrap();
    let got = deliveries(&second, handle);
    assert_eq!(got.len(), 30);
    for one in &got {
        let before = held
            .iter()
            .any(|it| (it.partition, it.offset) == (one.partition, one.offset));
        assert_eq!(one.count, 1 + u32::from(before), "{one:?}");
    }
    for partition in 0..3 {
        let mut offsets = got
            .iter()
            .filter(|it| it.partition == partition)
            .map(|it| it.offset);
        assert!(offsets.by_ref().is_sorted());
    }
}

#[test]
fn what_a_closed_consumer_never_handed_out_comes_again_uncounted() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 4);
    shards.fill("/default/q", 4, 5, 10);
    let mut one = shards.client(0);
    let (handle, first) = shards
        .consumer(&mut one, (0, "/default/q"), "", 20)
        .unwrap();
    let held = deliveries(&first, handle);
    assert_eq!(held.len(), 20);
    // The application was given the first nine.
    shards.allow(&mut one, handle, 20, 9);
    shards.close(&mut one, handle);
    let mut two = shards.client(1);
    let (handle, second) = shards
        .consumer(&mut two, (0, "/default/q"), "", 100)
        .unwrap();
    let got = deliveries(&second, handle);
    assert_eq!(got.len(), 20);
    for one in &got {
        let index = held
            .iter()
            .position(|it| (it.partition, it.offset) == (one.partition, one.offset));
        assert_eq!(one.count, 1 + u32::from(index.unwrap() < 9), "{one:?}");
    }
}

/// A source that had something while others were still joining said so, was not lent
/// anything yet, and was then forgotten: its messages waited for another one's.
#[test]
fn what_is_ready_before_all_of_a_consumer_is_open_is_delivered_once_it_is() {
    for (partition, at) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut shards = Shards::new(2);
        shards.create("/default/q", 2);
        let mut other = shards.client(0);
        let mut producer = shards.producer(&mut other, "/default/q", 0);
        (other.peer).message_to(partition, 1, &mut producer, b"waits");
        assert_eq!(singles(&shards.exchange(&mut other)).len(), 1);
        let mut client = shards.client(at);
        let (handle, first) = shards
            .consumer(&mut client, (0, "/default/q"), "", 10)
            .unwrap();
        let got = deliveries(&first, handle);
        assert_eq!(got.len(), 1, "partition {partition} seen from shard {at}");
    }
}

#[test]
fn a_link_that_goes_while_its_consumer_is_being_opened_leaves_nothing_behind() {
    let mut shards = Shards::new(3);
    shards.create("topic:/default/t", 3);
    for turns in 0..10 {
        let mut client = shards.client(2);
        let fields = OpenConsumer {
            session: client.peer.session.into(),
            destination: 1,
            destination_length: 10.into(),
            subscription_length: 1.into(),
            messages: 5.into(),
            bytes: 100.into(),
            ..OpenConsumer::default()
        };
        client.peer.control(2, &fields, &[b"/default/t", b"s"]);
        shards.write(&mut client);
        for turn in 0..turns {
            shards.turn(turn % 3);
        }
        shards.all[2].closed(now(), client.peer.link);
        shards.settle();
        for shard in &shards.all {
            assert_eq!(shard.consumers.len(), 0, "after {turns} turns");
        }
    }
}

#[test]
fn all_shards_have_the_same_destinations_whoever_asked_for_them() {
    let mut shards = Shards::new(3);
    let mut clients: Vec<Client> = (0..3).map(|at| shards.client(at)).collect();
    // All of them open the same new ones at once, and then some of their own.
    for (at, client) in clients.iter_mut().enumerate() {
        for number in 0..20 {
            let name = match number % 2 {
                0 => format!("/default/shared-{number}"),
                _ => format!("/default/own-{at}-{number}"),
            };
            let fields = OpenProducer {
                session: client.peer.session.into(),
                destination_length: u16::try_from(name.len()).unwrap().into(),
                partitions: 3.into(),
                ..OpenProducer::default()
            };
            client
                .peer
                .control(100 + number, &fields, &[name.as_bytes()]);
        }
        shards.write(client);
    }
    shards.settle();
    for client in &clients {
        let answers = shards.read(client);
        let opened = frames(&answers)
            .iter()
            .filter(|(frame, _)| {
                matches!(
                    frame,
                    Frame::Control {
                        control: Control::ProducerOpened(..),
                        ..
                    }
                )
            })
            .count();
        assert_eq!(opened, 20);
    }
    let all = |shard: &Shard| -> Vec<_> { shard.catalog.entries_from(0).cloned().collect() };
    assert_eq!(all(&shards.all[0]).len(), 40);
    for shard in &shards.all[1..] {
        assert_eq!(all(shard), all(&shards.all[0]));
        assert_eq!(shard.catalog.version(), shards.all[0].catalog.version());
    }
}

#[test]
fn nobody_hears_of_a_change_before_every_shard_has_applied_it() {
    let mut shards = Shards::new(3);
    let mut client = shards.client(1);
    let fields = Create {
        session: client.peer.session.into(),
        options: 1.into(),
        partitions: 3.into(),
        ..Create::default()
    };
    client.peer.control(6, &fields, &[b"/default/q"]);
    shards.write(&mut client);
    for _ in 0..10 {
        for quick in [0, 1] {
            shards.turn(quick);
        }
    }
    assert!(
        shards.read(&client).is_empty(),
        "one shard has not heard of it"
    );
    // Nor that there is nothing to change.
    client.peer.control(7, &fields, &[b"/default/q"]);
    shards.write(&mut client);
    for _ in 0..10 {
        for quick in [0, 1] {
            shards.turn(quick);
        }
    }
    assert!(
        shards.read(&client).is_empty(),
        "one shard has not heard of it"
    );
    shards.settle();
    let answers = shards.read(&client);
    let changed: Vec<(u32, u8)> = frames(&answers)
        .iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                subject,
                control: Control::Changed(fields, _),
            } => Some((*subject, fields.changed)),
            _ => None,
        })
        .collect();
    assert_eq!(changed, [(6, 1), (7, 0)]);
}

#[test]
fn a_destination_is_deleted_on_all_shards_and_only_unused_unless_that_is_forced() {
    let mut shards = Shards::new(3);
    let queue = (0, "/default/q");
    for round in 0..5 {
        let mut client = shards.client(round % 3);
        assert_eq!(shards.asks_to_create(&mut client, queue, 4), Ok(true));
        assert_eq!(
            shards.asks_to_create(&mut client, queue, 5),
            Err(Refusal::PreconditionFailed)
        );
        let mut user = shards.client((round + 1) % 3);
        let mut producer = shards.producer(&mut user, queue.1, 0);
        let (consumer, _) = shards.consumer(&mut user, queue, "", 10).unwrap();
        assert_eq!(
            shards.asks_to_delete(&mut client, queue, false),
            Err(Refusal::PreconditionFailed)
        );
        for partition in 0..4 {
            user.peer.message_to(partition, 1, &mut producer, b"x");
        }
        let answers = shards.exchange(&mut user);
        assert_eq!(singles(&answers).len(), 4);
        assert_eq!(deliveries(&answers, consumer).len(), 4);
        assert_eq!(shards.asks_to_delete(&mut client, queue, true), Ok(true));
        assert_eq!(
            shards.asks_to_delete(&mut client, queue, true),
            Err(Refusal::NotFound)
        );
        // Whoever used it is told, and what it still sends is refused in its place.
        let told = shards.read(&user);
        let ended = frames(&told)
            .iter()
            .filter(|(frame, _)| {
                matches!(
                    frame,
                    Frame::Control {
                        control: Control::Ended(..),
                        ..
                    }
                )
            })
            .count();
        assert_eq!(ended, 2);
        user.peer.message_to(1, 2, &mut producer, b"x");
        let late = singles(&shards.exchange(&mut user));
        assert_eq!(late.len(), 1);
        assert_eq!(late[0].3, Refusal::NotFound.code());
        shards.all[user.at].closed(now(), user.peer.link);
        shards.all[client.at].closed(now(), client.peer.link);
        shards.settle();
        for shard in &shards.all {
            assert_eq!(shard.producers.len() + shard.consumers.len(), 0);
            assert!(shard.catalog.is_empty());
        }
    }
}

#[test]
fn a_failover_subscription_has_one_active_consumer_in_each_partition_whatever_its_shard() {
    const FAILOVER: u8 = 3;
    let mut shards = Shards::new(3);
    shards.create("topic:/default/t", 3);
    let topic = (1, "/default/t");
    let (mut one, mut two) = (shards.client(0), shards.client(1));
    let (first, _) = shards
        .consumer_as(&mut one, FAILOVER, topic, "f", 100)
        .unwrap();
    let (second, _) = shards
        .consumer_as(&mut two, FAILOVER, topic, "f", 100)
        .unwrap();
    shards.fill_with(topic, 3, 10, 10);
    let with_first = deliveries(&shards.read(&one), first);
    let with_second = deliveries(&shards.read(&two), second);
    assert!(with_first.iter().all(|got| got.partition % 2 == 0));
    assert!(with_second.iter().all(|got| got.partition == 1));
    assert_eq!((with_first.len(), with_second.len()), (20, 10));
    let settled = &with_first[0];
    shards.acknowledge(&mut one, first, settled);
    shards.all[0].closed(now(), one.peer.link);
    shards.settle();
    let taken_over = deliveries(&shards.read(&two), second);
    for partition in [0, 2] {
        let mine = taken_over.iter().filter(|got| got.partition == partition);
        let offsets: Vec<u64> = mine.map(|got| got.offset).collect();
        let from = u64::from(partition == settled.partition);
        assert_eq!(offsets, (from..10).collect::<Vec<_>>(), "in order");
    }
    assert!(taken_over.iter().all(|got| got.count == 2));
}

#[test]
fn a_key_is_with_the_same_consumer_on_all_shards() {
    // The producers stand for keys.
    const KEY_SHARED: u8 = 4;
    const PRODUCERS: u64 = 8;
    const EACH: u64 = 3;
    let mut shards = Shards::new(3);
    shards.create("topic:/default/t", 3);
    let topic = (1, "/default/t");
    let (mut one, mut two) = (shards.client(0), shards.client(1));
    let (first, _) = shards
        .consumer_as(&mut one, KEY_SHARED, topic, "k", 1_000)
        .unwrap();
    let (second, _) = shards
        .consumer_as(&mut two, KEY_SHARED, topic, "k", 1_000)
        .unwrap();
    for _ in 0..PRODUCERS {
        shards.fill_with(topic, 3, 3, 10);
    }
    let with_first = deliveries(&shards.read(&one), first);
    let with_second = deliveries(&shards.read(&two), second);
    assert_eq!(with_first.len() + with_second.len(), 72);
    let of = |got: &[Got]| -> std::collections::BTreeSet<u64> {
        got.iter().map(|got| got.offset / EACH).collect()
    };
    assert!(
        of(&with_first).is_disjoint(&of(&with_second)),
        "in no partition"
    );
    assert!(!with_first.is_empty() && !with_second.is_empty());
    shards.all[0].closed(now(), one.peer.link);
    shards.settle();
    let moved = deliveries(&shards.read(&two), second);
    assert_eq!(
        moved.len(),
        with_first.len(),
        "and everything finds its way"
    );
    for producer in of(&moved) {
        for partition in 0..3 {
            let mine = moved
                .iter()
                .filter(|got| (got.offset / EACH, got.partition) == (producer, partition));
            assert!(mine.map(|got| got.offset).is_sorted(), "in order");
        }
    }
}

const SHARED: u8 = 0;
const EXCLUSIVE: u8 = 1;

#[test]
fn an_exclusive_producer_has_all_partitions_to_itself_or_none() {
    for partitions in [1, 3] {
        let mut shards = Shards::new(3);
        let name = "/default/q";
        shards.create(name, partitions);
        let mut one = shards.client(0);
        let mut two = shards.client(1);
        for _ in 0..3 {
            let mut alone = shards.accessing(&mut one, name, EXCLUSIVE, 0).unwrap();
            for access in [SHARED, EXCLUSIVE] {
                let refused = shards.accessing(&mut two, name, access, 0).err();
                assert_eq!(refused, Some(Refusal::Exclusive));
            }
            one.peer.message_to(0, 1, &mut alone, b"x");
            assert_eq!(
                singles(&shards.exchange(&mut one))[0].3,
                0,
                "it is unaffected"
            );
            shards.close(&mut one, alone.handle);
            let shared = shards.accessing(&mut two, name, SHARED, 0).unwrap();
            let refused = shards.accessing(&mut one, name, EXCLUSIVE, 0).err();
            assert_eq!(refused, Some(Refusal::Exclusive));
            let other = shards.accessing(&mut one, name, SHARED, 0).unwrap();
            shards.close(&mut one, other.handle);
            shards.close(&mut two, shared.handle);
        }
        for shard in &shards.all {
            assert_eq!(shard.producers.len(), 0, "whoever was refused left nothing");
        }
    }
}

#[test]
fn who_was_attached_before_an_exclusive_producer_never_sends_again() {
    for partitions in [1, 3] {
        let mut shards = Shards::new(3);
        let name = "/default/q";
        shards.create(name, partitions);
        let mut old = shards.client(0);
        let stopped = shards.accessing(&mut old, name, EXCLUSIVE, 0).unwrap();
        shards.all[0].closed(now(), old.peer.link);
        shards.settle();
        // Nobody came in between, so it goes on.
        let mut old = shards.client(2);
        let mut stopped = shards
            .accessing(&mut old, name, EXCLUSIVE, stopped.producer)
            .unwrap();
        // Its last sends are on their way to the owners when it is given up.
        for partition in 0..partitions {
            old.peer.message_to(partition, 1, &mut stopped, b"old");
        }
        shards.write(&mut old);
        shards.all[2].closed(now(), old.peer.link);
        shards.all[2].turn(now());
        let mut new = shards.client(1);
        let mut taker = shards.accessing(&mut new, name, EXCLUSIVE, 0).unwrap();
        for partition in 0..partitions {
            new.peer.message_to(partition, 1, &mut taker, b"new");
        }
        let outcomes = singles(&shards.exchange(&mut new));
        assert!(
            outcomes.iter().all(|(.., refusal)| *refusal == 0),
            "{outcomes:?}"
        );
        let stored = shards.counter(Counter::MessagesStored);
        for access in [SHARED, EXCLUSIVE] {
            let mut back = shards.client(0);
            let refused = shards
                .accessing(&mut back, name, access, stopped.producer)
                .err();
            assert_eq!(
                refused,
                Some(Refusal::Fenced),
                "while the other is attached"
            );
        }
        shards.close(&mut new, taker.handle);
        let mut back = shards.client(0);
        let refused = shards
            .accessing(&mut back, name, SHARED, stopped.producer)
            .err();
        assert_eq!(refused, Some(Refusal::Fenced), "and when it has gone");
        assert_eq!(shards.counter(Counter::MessagesStored), stored);
    }
}

/// What the old one sent lies in a ring that its owner has not read when the new one is
/// attached there: it must not be stored behind what the new one sends.
#[test]
fn what_was_on_its_way_when_an_exclusive_producer_came_is_not_stored_behind_it() {
    let mut shards = Shards::new(3);
    let name = "/default/q";
    shards.create(name, 3);
    let home = usize::from(shards.all[0].mesh.placement.home(DestinationNumber(0)).0);
    // Neither the home nor the owner whose reading is late.
    let late = (home + 2) % 3;
    let at = (home + 1) % 3;
    let partition = 2;
    let owner =
        (shards.all[0].mesh.placement).owner(DestinationNumber(0), PartitionIndex(partition));
    assert_eq!(usize::from(owner.0), late);
    let mut old = shards.client(at);
    let mut stopped = shards.accessing(&mut old, name, EXCLUSIVE, 0).unwrap();
    let stored = shards.counter(Counter::MessagesStored);
    // The frame and its producer's end are both in the ring to the late one.
    old.peer.message_to(partition, 1, &mut stopped, b"old");
    shards.write(&mut old);
    shards.all[at].closed(now(), old.peer.link);
    for _ in 0..5 {
        shards.turn(at);
        shards.turn(home);
    }
    let mut new = shards.client(home);
    let mut taker = shards.accessing(&mut new, name, EXCLUSIVE, 0).unwrap();
    new.peer.message_to(partition, 1, &mut taker, b"new");
    let outcomes = singles(&shards.exchange(&mut new));
    assert_eq!(outcomes.len(), 1);
    let behind = shards.counter(Counter::MessagesStored) - stored;
    assert_eq!(
        outcomes[0].2 + 1,
        behind,
        "nothing was stored behind the new one's message"
    );
}

/// The handles that the broker says it has ended.
fn ended(bytes: &[u8]) -> Vec<u32> {
    frames(bytes)
        .iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                subject,
                control: Control::Ended(..),
            } => Some(*subject),
            _ => None,
        })
        .collect()
}

#[test]
fn a_fenced_producer_sends_to_no_partition_of_any_shard_and_is_told() {
    let mut shards = Shards::new(3);
    shards.create("/default/q", 3);
    for at in 0..3 {
        let mut user = shards.client(at);
        let mut producer = shards.producer(&mut user, "/default/q", 0);
        let mut client = shards.client((at + 1) % 3);
        let fence = |producer: u64, client: &Client| End {
            session: client.peer.session.into(),
            what: 1,
            number: producer.into(),
            ..End::default()
        };
        let fields = fence(producer.producer, &client);
        client.peer.control(6, &fields, &[]);
        assert_eq!(changed(&shards.exchange(&mut client)), Ok(true));
        assert_eq!(ended(&shards.read(&user)), [producer.handle.0]);
        for partition in 0..3 {
            user.peer.message_to(partition, 1, &mut producer, b"x");
        }
        let outcomes = singles(&shards.exchange(&mut user));
        let fenced = Refusal::Fenced.code();
        assert!(
            outcomes.iter().all(|(.., refusal)| *refusal == fenced),
            "{outcomes:?}"
        );
        assert_eq!(outcomes.len(), 3);
        let again = shards.accessing(&mut user, "/default/q", SHARED, producer.producer);
        assert_eq!(again.err(), Some(Refusal::Fenced));
        let fields = fence(producer.producer + 1_000, &client);
        client.peer.control(6, &fields, &[]);
        assert_eq!(
            changed(&shards.exchange(&mut client)),
            Err(Refusal::NotFound)
        );
    }
    assert_eq!(shards.counter(Counter::MessagesStored), 0);
}

#[test]
fn a_subscription_is_deleted_on_all_shards_and_its_consumers_are_told() {
    let mut shards = Shards::new(3);
    shards.create("topic:/default/t", 4);
    let topic = (1, "/default/t");
    for at in 0..3 {
        let mut user = shards.client(at);
        let (consumer, _) = shards.consumer(&mut user, topic, "s", 10).unwrap();
        let mut client = shards.client((at + 1) % 3);
        let mut delete = |shards: &mut Shards, force: u8| {
            let fields = Delete {
                session: client.peer.session.into(),
                destination: 1,
                options: 2 | force,
                destination_length: 10.into(),
                subscription_length: 1.into(),
                ..Delete::default()
            };
            client.peer.control(6, &fields, &[b"/default/t", b"s"]);
            changed(&shards.exchange(&mut client))
        };
        assert_eq!(delete(&mut shards, 0), Err(Refusal::PreconditionFailed));
        assert_eq!(delete(&mut shards, 1), Ok(true));
        assert_eq!(ended(&shards.read(&user)), [consumer.0]);
        assert_eq!(delete(&mut shards, 1), Err(Refusal::NotFound));
        for shard in &shards.all {
            assert_eq!(shard.subscriptions.len(), 0);
        }
        shards.close(&mut user, consumer);
    }
}

/// The answer of the home arrived between the deletion and the turn in which the request
/// was to be refused, and the shard looked for a destination that was gone.
#[test]
fn who_opens_a_producer_while_its_destination_is_deleted_is_answered_once() {
    for (turns, at) in (0..9).flat_map(|turns| (0..3).map(move |at| (turns, at))) {
        for partitions in 1..4 {
            let queue = (0, "/default/q");
            let mut shards = Shards::new(3);
            shards.create(queue.1, partitions);
            let mut user = shards.client(at);
            let mut admin = shards.client(0);
            let open = OpenProducer {
                session: user.peer.session.into(),
                destination_length: 10.into(),
                ..OpenProducer::default()
            };
            user.peer.control(7, &open, &[queue.1.as_bytes()]);
            shards.write(&mut user);
            for turn in 0..turns {
                shards.turn((turn + at) % 3);
            }
            assert_eq!(shards.asks_to_delete(&mut admin, queue, true), Ok(true));
            let told = shards.read(&user);
            let told = frames(&told).into_iter();
            let answers =
                told.filter(|(frame, _)| matches!(frame, Frame::Control { subject: 7, .. }));
            assert_eq!(answers.count(), 1, "after {turns} turns, on shard {at}");
            shards.all[user.at].closed(now(), user.peer.link);
            shards.settle();
            for shard in &shards.all {
                assert_eq!(shard.producers.len(), 0);
                shard.audit();
            }
        }
    }
}

/// The opening was never answered, and the end of a handle that no client knew was told
/// instead; a close was never answered at all.
#[test]
fn who_opens_or_closes_a_consumer_while_its_destination_is_deleted_is_answered_once() {
    let queue = (0, "/default/q");
    for (turns, closes) in (0..12).flat_map(|turns| [(turns, false), (turns, true)]) {
        let mut shards = Shards::new(3);
        shards.create(queue.1, 3);
        let mut user = shards.client(2);
        let mut admin = shards.client(1);
        if closes {
            let (consumer, _) = shards.consumer(&mut user, queue, "", 10).unwrap();
            let close = crate::frame::control::Close {
                handle: consumer.0.into(),
                ..Default::default()
            };
            user.peer.control(7, &close, &[]);
        } else {
            let open = OpenConsumer {
                session: user.peer.session.into(),
                destination_length: 10.into(),
                messages: 5.into(),
                bytes: 100.into(),
                ..OpenConsumer::default()
            };
            user.peer.control(7, &open, &[queue.1.as_bytes()]);
        }
        shards.write(&mut user);
        for turn in 0..turns {
            shards.turn(turn % 3);
        }
        assert_eq!(shards.asks_to_delete(&mut admin, queue, true), Ok(true));
        let told = shards.read(&user);
        let mut handle = closes.then_some(0);
        let mut answers = 0;
        for (frame, _) in frames(&told) {
            let Frame::Control { subject, control } = frame else {
                continue;
            };
            answers += u32::from(subject == 7);
            match control {
                Control::ConsumerOpened(fields, _) => handle = Some(fields.handle.get()),
                Control::Ended(..) => assert!(
                    handle.is_some_and(|it| closes || it == subject),
                    "the end of {subject} is told after {turns} turns"
                ),
                _ => {}
            }
        }
        assert_eq!(answers, 1, "after {turns} turns, closing: {closes}");
        shards.all[user.at].closed(now(), user.peer.link);
        shards.settle();
        for shard in &shards.all {
            assert_eq!(shard.consumers.len(), 0);
            shard.audit();
        }
    }
}

/// A link that went to another shard while a request of it waited for a third would
/// never have had its answer.
#[test]
fn a_link_does_not_move_while_a_request_of_it_waits_for_another_shard() {
    let mut shards = Shards::new(3);
    let mut client = shards.client(1);
    let fields = Create {
        session: client.peer.session.into(),
        ..Create::default()
    };
    client.peer.control(6, &fields, &[b"/default/q"]);
    let to = Move {
        shard: 2.into(),
        ..Move::default()
    };
    client.peer.control(7, &to, &[]);
    let answers = shards.exchange(&mut client);
    let answers: Vec<_> = frames(&answers)
        .iter()
        .map(|(frame, _)| match frame {
            Frame::Control { subject, control } => (*subject, control.kind()),
            Frame::Message(_) => panic!("a message"),
        })
        .collect();
    let (refused, changed) = (crate::frame::Kind::Refused, crate::frame::Kind::Changed);
    assert_eq!(answers, [(7, refused), (6, changed)]);
}

/// What is passed over for its key takes places of its part, and the run behind it was
/// handed out as if it had not.
#[test]
fn what_is_passed_over_for_its_key_is_paid_for_beside_what_is_handed_out() {
    let mut shards = Shards::new(2);
    shards.create("topic:/default/t", 1);
    let mut handles = Vec::new();
    let mut clients = Vec::new();
    for messages in [1, 1_000] {
        let mut client = shards.client(1);
        let fields = OpenConsumer {
            session: client.peer.session.into(),
            destination: 1,
            destination_length: 10.into(),
            subscription_length: 1.into(),
            sharing: 4,
            messages: messages.into(),
            bytes: (1 << 20).into(),
            ..OpenConsumer::default()
        };
        client.peer.control(3, &fields, &[b"/default/t", b"s"]);
        let answers = shards.exchange(&mut client);
        handles.push(match frames(&answers)[0].0 {
            Frame::Control {
                control: Control::ConsumerOpened(fields, _),
                ..
            } => Handle(fields.handle.get()),
            ref other => panic!("{other:?}"),
        });
        clients.push(client);
    }
    let mut other = shards.client(0);
    let mut producers = Vec::new();
    for _ in 0..20 {
        let fields = OpenProducer {
            session: other.peer.session.into(),
            destination: 1,
            destination_length: 10.into(),
            ..OpenProducer::default()
        };
        other.peer.control(2, &fields, &[b"/default/t"]);
        producers.push(opened(&shards.exchange(&mut other)));
    }
    // A message without a key goes where its producer's do. Settling audits.
    for sequence in 1..=20 {
        for producer in &mut producers {
            other.peer.message_to(0, sequence, producer, b"x");
        }
        shards.exchange(&mut other);
    }
    let got = [0, 1].map(|at| deliveries(&shards.read(&clients[at]), handles[at]).len());
    assert_eq!(got[0], 1, "its credit");
    assert!(got[1] > 100 && got[1] < 400, "some of the keys: {got:?}");
}

/// A lease that found no chunk because logs had taken them all was tried again only when
/// another link gave some back, of which there might be none.
#[test]
fn a_lease_that_found_no_room_is_tried_again_when_the_arena_has_some() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 2);
    shards.fill("/default/q", 2, 3, 100);
    let mut client = shards.client(0);
    // All chunks are taken when its sources have something.
    let taken: Vec<_> = std::iter::from_fn(|| shards.all[0].arena.take()).collect();
    let fields = OpenConsumer {
        session: client.peer.session.into(),
        destination_length: 10.into(),
        messages: 10.into(),
        bytes: (1 << 20).into(),
        ..OpenConsumer::default()
    };
    client.peer.control(3, &fields, &[b"/default/q"]);
    shards.write(&mut client);
    for _ in 0..10 {
        for at in 0..2 {
            let shard = &mut shards.all[at];
            shard.meet(now());
            shard.turn(now());
        }
    }
    for chunk in taken {
        shards.all[0].arena.give(chunk);
    }
    shards.settle();
    let answers = shards.read(&client);
    let handle = frames(&answers).iter().find_map(|(frame, _)| match frame {
        Frame::Control {
            control: Control::ConsumerOpened(fields, _),
            ..
        } => Some(Handle(fields.handle.get())),
        _ => None,
    });
    assert_eq!(deliveries(&answers, handle.unwrap()).len(), 6);
}
