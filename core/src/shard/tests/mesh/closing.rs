//! Sessions that are closed, and openings that are withdrawn, whatever of them is under
//! way on whatever shard.

use super::*;
use crate::frame::control::{Cancel, Close, CloseSession};

const QUEUE: &str = "/default/q";
const TOPIC: (u8, &str) = (1, "/default/t");
const CONSUMER: u32 = 11;
const PRODUCER: u32 = 12;
const CLOSES: u32 = 20;

/// What answers requests, by their numbers: the kind of the answer, and why it is no
/// other if it is a refusal.
fn answered(bytes: &[u8]) -> Vec<(u32, crate::frame::Kind, Option<Refusal>)> {
    use crate::frame::Kind;
    let mut answers = Vec::new();
    for (frame, _) in frames(bytes) {
        let Frame::Control { subject, control } = frame else {
            continue;
        };
        let refusal = match &control {
            Control::Refused(fields, _) => Refusal::from_code(fields.refusal.get()),
            _ => None,
        };
        let answers_a_request = matches!(
            control.kind(),
            Kind::Refused
                | Kind::ProducerOpened
                | Kind::ConsumerOpened
                | Kind::Closed
                | Kind::SessionClosed
        );
        if answers_a_request {
            answers.push((subject, control.kind(), refusal));
        }
    }
    answers
}

impl Client {
    /// Asks for an exclusive consumer of the topic's subscription.
    fn asks_for_consumer(&mut self, request: u32, name: &str) {
        let fields = OpenConsumer {
            session: self.peer.session.into(),
            destination: 1,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            subscription_length: 1.into(),
            messages: 100.into(),
            bytes: 10_000.into(),
            ..OpenConsumer::default()
        };
        (self.peer).control(request, &fields, &[name.as_bytes(), b"s"]);
    }

    fn asks_for_producer(&mut self, request: u32, name: &str, access: u8) {
        let fields = OpenProducer {
            session: self.peer.session.into(),
            destination_length: u16::try_from(name.len()).unwrap().into(),
            access,
            ..OpenProducer::default()
        };
        (self.peer).control(request, &fields, &[name.as_bytes()]);
    }

    fn closes_its_session(&mut self) {
        let fields = CloseSession {
            session: self.peer.session.into(),
            ..CloseSession::default()
        };
        self.peer.control(CLOSES, &fields, &[]);
    }

    fn cancels(&mut self, request: u32) {
        self.peer.control(request, &Cancel::default(), &[]);
    }
}

impl Shards {
    /// Turns in some order until the client has been told this.
    fn turn_until(
        &mut self,
        order: &mut Shuffle,
        client: &Client,
        told: impl Fn(&[u8]) -> bool,
    ) -> Vec<u8> {
        let mut got = Vec::new();
        for _ in 0..10_000 {
            let at = order.below(self.all.len());
            self.turn(at);
            got.extend(self.read(client));
            if told(&got) {
                return got;
            }
        }
        panic!("the client is not told");
    }

    /// Nothing is open anywhere, and nothing is held for anybody.
    fn has_nothing_open(&self, why: &str) {
        for shard in &self.all {
            assert_eq!(shard.handles(), 0, "{why}");
            assert_eq!(shard.reserved, 0, "{why}");
            assert!(shard.takers.is_empty(), "{why}");
            assert!(shard.closing.is_empty(), "{why}");
            assert_eq!(shard.deferred.len(), 0, "{why}");
        }
    }
}

/// The answer came at once. Whoever had it and opened on another link what the session
/// had held was refused, and the outcomes that another shard still owed were lost.
#[test]
fn who_is_told_that_a_session_is_closed_has_all_outcomes_and_finds_everything_free() {
    for seed in 0..300 {
        let mut order = Shuffle(seed);
        let mut shards = Shards::new(4);
        shards.create("topic:/default/t", 3);
        shards.create(QUEUE, 3);
        shards.fill_with(TOPIC, 3, 0, 0);
        let mut client = shards.client(order.below(4));
        let (consumer, _) = shards.consumer(&mut client, TOPIC, "s", 10).unwrap();
        let mut producer = shards.accessing(&mut client, QUEUE, 1, 0).unwrap();
        let mut feeder = shards.client(0);
        let mut feed = shards.producer_of(&mut feeder, TOPIC, 0);
        for partition in 0..3 {
            feeder.peer.message_to(partition, 1, &mut feed, b"x");
        }
        shards.exchange(&mut feeder);
        let got = deliveries(&shards.read(&client), consumer);
        let mut next = shards.client(order.below(4));

        client.settles(&got, consumer);
        for number in 0..30_u32 {
            let sequence = u64::from(number / 3) + 1;
            (client.peer).message_to(number % 3, sequence, &mut producer, b"x");
        }
        client.closes_its_session();
        shards.write(&mut client);
        let is_closed = |bytes: &[u8]| answered(bytes).iter().any(|it| it.0 == CLOSES);
        let told = shards.turn_until(&mut order, &client, is_closed);
        let outcomes: Vec<_> = singles(&told).iter().map(|it| (it.0, it.3)).collect();
        let expected: Vec<_> = (1..=30).map(|number| (number, 0)).collect();
        assert_eq!(outcomes, expected, "seed {seed}");
        assert_eq!(confirmed(&told), [(1, 0), (2, 0), (3, 0)], "seed {seed}");
        let answers = answered(&told);
        assert_eq!(
            answers,
            [(CLOSES, crate::frame::Kind::SessionClosed, None)],
            "seed {seed}"
        );

        next.asks_for_consumer(CONSUMER, TOPIC.1);
        next.asks_for_producer(PRODUCER, QUEUE, 1);
        shards.write(&mut next);
        let told = shards.turn_until(&mut order, &next, |bytes| answered(bytes).len() == 2);
        let refused = answered(&told).iter().any(|it| it.2.is_some());
        assert!(!refused, "seed {seed}: {:?}", answered(&told));
        for gone in [client, next, feeder] {
            shards.all[gone.at].closed(now(), gone.peer.link);
        }
        shards.settle();
        shards.has_nothing_open("after all links are gone");
    }
}

#[test]
fn a_session_is_not_closed_as_long_as_a_shard_sleeps_that_has_something_of_it() {
    for (has_consumer, has_producer) in [(true, false), (false, true), (false, false)] {
        let mut shards = Shards::new(3);
        shards.create("topic:/default/t", 3);
        shards.create(QUEUE, 3);
        let mut client = shards.client(1);
        if has_consumer {
            shards.consumer(&mut client, TOPIC, "s", 10).unwrap();
        }
        if has_producer {
            shards.producer(&mut client, QUEUE, 0);
        }
        client.closes_its_session();
        // Nothing is opened in it from here on.
        client.asks_for_producer(PRODUCER, QUEUE, 0);
        shards.write(&mut client);
        shards.turn_without_the_last();
        let refused = (
            PRODUCER,
            crate::frame::Kind::Refused,
            Some(Refusal::NotOpen),
        );
        let closed = (CLOSES, crate::frame::Kind::SessionClosed, None);
        let got = answered(&shards.read(&client));
        if has_consumer || has_producer {
            assert_eq!(got, [refused]);
            shards.settle();
            assert_eq!(answered(&shards.read(&client)), [closed]);
        } else {
            assert_eq!(got, [closed, refused], "it has nothing anywhere");
        }
        shards.has_nothing_open("the session is closed");
    }
}

/// Whatever the openings of a session have come to when it is closed.
#[test]
fn every_request_of_a_session_that_is_closed_is_answered_once_and_its_end_last() {
    for seed in 0..600 {
        let mut order = Shuffle(seed);
        let mut shards = Shards::new(3);
        shards.create("topic:/default/t", 3);
        shards.create(QUEUE, 3);
        let mut holder = shards.client(order.below(3));
        let holds = order.below(2) == 0;
        if holds {
            shards.accessing(&mut holder, QUEUE, 0, 0).unwrap();
        }
        let mut client = shards.client(order.below(3));
        // The names of the last two mean nothing yet.
        client.asks_for_consumer(CONSUMER, TOPIC.1);
        client.asks_for_producer(PRODUCER, QUEUE, 2);
        client.asks_for_consumer(CONSUMER + 2, "/default/new");
        client.asks_for_producer(PRODUCER + 2, "/default/new", 0);
        shards.write(&mut client);
        for _ in 0..order.below(30) {
            let at = order.below(3);
            shards.turn(at);
        }
        client.closes_its_session();
        shards.write(&mut client);
        for _ in 0..30 {
            let at = order.below(3);
            shards.turn(at);
        }
        shards.settle();
        let answers = answered(&shards.read(&client));
        let mut requests: Vec<u32> = answers.iter().map(|it| it.0).collect();
        assert_eq!(requests.pop(), Some(CLOSES), "seed {seed}: {answers:?}");
        requests.sort_unstable();
        assert_eq!(requests, [11, 12, 13, 14], "seed {seed}");
        let is_right = |refusal: Option<Refusal>| refusal.is_none_or(|it| it == Refusal::NotOpen);
        assert!(
            answers.iter().all(|it| is_right(it.2)),
            "seed {seed}: {answers:?}"
        );
        let taken = answers.iter().find(|it| it.0 == PRODUCER).unwrap();
        assert!(!holds || taken.2.is_some(), "it was still in line");
        if holds {
            shards.all[holder.at].closed(now(), holder.peer.link);
            shards.settle();
        }
        shards.has_nothing_open(&format!("seed {seed}"));
    }
}

#[test]
fn a_link_that_ends_while_its_session_is_closed_leaves_nothing_behind() {
    for turns in 0..20 {
        for finishes in [false, true] {
            let mut shards = Shards::new(3);
            shards.create("topic:/default/t", 3);
            shards.create(QUEUE, 3);
            let mut client = shards.client(2);
            shards.consumer(&mut client, TOPIC, "s", 10).unwrap();
            shards.producer(&mut client, QUEUE, 0);
            client.closes_its_session();
            shards.write(&mut client);
            for turn in 0..turns {
                shards.turn([2, 1, 2, 0, 2, 0, 1][turn % 7]);
            }
            if finishes {
                shards.all[2].finished(now(), client.peer.link);
                shards.settle();
                let answers = answered(&shards.read(&client));
                let closed = (CLOSES, crate::frame::Kind::SessionClosed, None);
                assert_eq!(answers, [closed], "after {turns} turns");
                assert_eq!(shards.ended, [(2, client.peer.link)]);
            }
            shards.all[2].closed(now(), client.peer.link);
            shards.settle();
            shards.has_nothing_open(&format!("after {turns} turns"));
        }
    }
}

/// One that waited for a change of the catalogue was not found, and opened all the same.
#[test]
fn a_cancelled_opening_is_refused_or_was_opened_whatever_it_waits_for() {
    let mut cancelled = 0;
    for seed in 0..600 {
        let mut order = Shuffle(seed);
        let mut shards = Shards::new(3);
        shards.create("topic:/default/t", 3);
        shards.create(QUEUE, 3);
        let at = order.below(3);
        let mut client = shards.client(at);
        client.asks_for_consumer(CONSUMER, TOPIC.1);
        client.asks_for_producer(PRODUCER, QUEUE, 1);
        client.asks_for_consumer(CONSUMER + 2, "/default/new");
        client.asks_for_producer(PRODUCER + 2, "/default/new", 1);
        shards.write(&mut client);
        for _ in 0..order.below(16) {
            let at = order.below(3);
            shards.turn(at);
        }
        for request in 11..=14 {
            client.cancels(request);
        }
        shards.write(&mut client);
        // Whoever has the refusal may ask again, and is not in its own way.
        client.asks_for_consumer(CONSUMER + 4, TOPIC.1);
        client.asks_for_producer(PRODUCER + 4, QUEUE, 1);
        shards.write(&mut client);
        for _ in 0..30 {
            let at = order.below(3);
            shards.turn(at);
        }
        shards.settle();
        let answers = answered(&shards.read(&client));
        let mut requests: Vec<u32> = answers.iter().map(|it| it.0).collect();
        requests.sort_unstable();
        assert_eq!(requests, [11, 12, 13, 14, 15, 16], "seed {seed}");
        let of = |request: u32| answers.iter().find(|it| it.0 == request).unwrap().2;
        for request in 11..=14 {
            let refusal = of(request);
            let is_right = refusal.is_none_or(|it| it == Refusal::Exclusive);
            assert!(is_right, "seed {seed}: {answers:?}");
            cancelled += u32::from(refusal.is_some());
        }
        assert_eq!(
            of(CONSUMER).is_some(),
            of(CONSUMER + 4).is_none(),
            "seed {seed}: {answers:?}"
        );
        let open: usize = shards.all[at]
            .links
            .iter()
            .map(|(_, it)| it.producers.len() + it.consumers.len())
            .sum();
        let opened = answers.iter().filter(|it| it.2.is_none()).count();
        assert_eq!(
            open, opened,
            "seed {seed}: only what was answered so is open"
        );
        shards.all[client.at].closed(now(), client.peer.link);
        shards.settle();
        shards.has_nothing_open(&format!("seed {seed}"));
    }
    assert!(cancelled > 600, "{cancelled} were cancelled in time");
}

/// Each opening that is cancelled has asked another shard something, which may sleep.
#[test]
fn openings_that_are_cancelled_count_as_under_way_until_other_shards_have_heard_of_them() {
    let mut shards = Shards::new(2);
    let mut client = shards.client(1);
    for number in 0..=limits::DEFERRED_MAX {
        let name = format!("/default/new-{number}");
        client.asks_for_producer(PRODUCER, &name, 0);
        client.cancels(PRODUCER);
        shards.write(&mut client);
        shards.turn(1);
        let refusal = match number < limits::DEFERRED_MAX {
            true => Refusal::Exclusive,
            false => Refusal::ResourceAllocation,
        };
        let answers = answered(&shards.read(&client));
        assert_eq!(
            answers,
            [(PRODUCER, crate::frame::Kind::Refused, Some(refusal))],
            "opening {number}"
        );
    }
    shards.settle();
    assert_eq!(answered(&shards.read(&client)), [], "each is answered once");
    shards.has_nothing_open("all are cancelled");
}

/// Its client was told that a handle had ended which it did not know yet, or was waiting
/// to be rid of; and was not answered.
#[test]
fn a_consumer_whose_destination_is_deleted_while_it_is_opened_or_closed_is_answered_once() {
    for seed in 0..300 {
        for is_open in [false, true] {
            let mut order = Shuffle(seed);
            let mut shards = Shards::new(3);
            shards.create("topic:/default/t", 3);
            let mut client = shards.client(order.below(3));
            let request = if is_open {
                let (consumer, _) = shards.consumer(&mut client, TOPIC, "s", 10).unwrap();
                let close = Close {
                    handle: consumer.0.into(),
                    ..Close::default()
                };
                client.peer.control(CLOSES, &close, &[]);
                CLOSES
            } else {
                client.asks_for_consumer(CONSUMER, TOPIC.1);
                CONSUMER
            };
            shards.write(&mut client);
            let mut other = shards.client(order.below(3));
            other.deletes(TOPIC, 1);
            shards.write(&mut other);
            for _ in 0..60 {
                let at = order.below(3);
                shards.turn(at);
            }
            shards.settle();
            let answers = answered(&shards.read(&client));
            let requests: Vec<u32> = answers.iter().map(|it| it.0).collect();
            assert_eq!(requests, [request], "seed {seed}, open: {is_open}");
            client.closes_its_session();
            let last = answered(&shards.exchange(&mut client));
            let closed = (CLOSES, crate::frame::Kind::SessionClosed, None);
            assert_eq!(last, [closed], "seed {seed}, open: {is_open}");
            shards.has_nothing_open(&format!("seed {seed}, open: {is_open}"));
        }
    }
}

/// Its producer would have been opened on a link that is not there any more.
#[test]
fn a_link_on_which_somebody_waits_in_line_does_not_move() {
    let mut shards = Shards::new(2);
    let mut holder = shards.client(1);
    shards.accessing(&mut holder, QUEUE, 0, 0).unwrap();
    let mut client = shards.client(0);
    client.asks_for_producer(PRODUCER, QUEUE, 2);
    shards.exchange(&mut client);
    let to_the_other = Move {
        shard: 1.into(),
        ..Move::default()
    };
    client.peer.control(CLOSES, &to_the_other, &[]);
    let answers = answered(&shards.exchange(&mut client));
    let refused = Some(Refusal::PreconditionFailed);
    assert_eq!(answers, [(CLOSES, crate::frame::Kind::Refused, refused)]);
    shards.all[1].closed(now(), holder.peer.link);
    shards.settle();
    let answers = answered(&shards.read(&client));
    assert_eq!(
        answers,
        [(PRODUCER, crate::frame::Kind::ProducerOpened, None)]
    );
}
