//! Destinations that come and go, and what an administrator sees and does.

use super::*;
use crate::frame::control::{
    Changed, Close, ConsumerRow, Create, Delete, DestinationRow, End, LinkRow, List, PartRow,
    ProducerRow, SetPolicies, SubscriptionRow,
};
use zerocopy::{Immutable, KnownLayout};

const FORCE: u8 = 1;
const SUBSCRIPTION: u8 = 2;
const DESTINATIONS: u8 = 0;
const SUBSCRIPTIONS: u8 = 1;
const PARTS: u8 = 2;
const CONSUMERS: u8 = 3;
const PRODUCERS: u8 = 4;
const LINKS: u8 = 5;

/// The answer to request 9 among `bytes`: whether something changed, or why not.
fn verdict(bytes: &[u8]) -> Result<bool, (Refusal, String)> {
    let answer = frames(bytes)
        .into_iter()
        .find_map(|(frame, _)| match frame {
            Frame::Control {
                subject: 9,
                control: Control::Changed(Changed { changed, .. }, _),
            } => Some(Ok(*changed == 1)),
            Frame::Control {
                subject: 9,
                control: Control::Refused(fields, tail),
            } => Some(Err((
                Refusal::from_code(fields.refusal.get()).unwrap(),
                String::from_utf8(tail.to_vec()).unwrap(),
            ))),
            _ => None,
        });
    answer.expect("request 9 is answered")
}

/// What ended, by the broker's word: handle and reason.
fn ended(bytes: &[u8]) -> Vec<(u32, Refusal)> {
    let frames = frames(bytes).into_iter();
    let ended = frames.filter_map(|(frame, _)| match frame {
        Frame::Control {
            subject,
            control: Control::Ended(fields, _),
        } => Some((subject, Refusal::from_code(fields.refusal.get()).unwrap())),
        _ => None,
    });
    ended.collect()
}

impl Peer {
    fn create(&mut self, shard: &mut Shard, name: &str, fields: Create) -> Vec<u8> {
        let fields = Create {
            session: self.session.into(),
            ..fields
        };
        self.control(9, &fields, &[name.as_bytes()]);
        self.exchange(shard)
    }

    fn delete(&mut self, shard: &mut Shard, name: &str, options: u8) -> Vec<u8> {
        let fields = Delete {
            session: self.session.into(),
            options,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            ..Delete::default()
        };
        self.control(9, &fields, &[name.as_bytes()]);
        self.exchange(shard)
    }

    fn end(&mut self, shard: &mut Shard, what: u8, number: u64) -> Vec<u8> {
        let fields = End {
            session: self.session.into(),
            what,
            number: number.into(),
            ..End::default()
        };
        self.control(9, &fields, &[]);
        self.exchange(shard)
    }

    /// All rows of all pages with their texts, and how many pages there were.
    fn list<R>(&mut self, shard: &mut Shard, what: u8, name: &str) -> (Vec<(R, String)>, usize)
    where
        R: FromBytes + KnownLayout + Immutable + Copy,
    {
        let (mut rows, mut from, mut pages) = (Vec::new(), 0, 0);
        loop {
            let fields = List {
                session: self.session.into(),
                what,
                destination_length: u16::try_from(name.len()).unwrap().into(),
                from: from.into(),
                ..List::default()
            };
            self.control(9, &fields, &[name.as_bytes()]);
            let answers = self.exchange(shard);
            let all = frames(&answers);
            let (
                Frame::Control {
                    control: Control::Listed(listed, mut tail),
                    ..
                },
                _,
            ) = all[0]
            else {
                panic!("{all:?}")
            };
            pages += 1;
            for _ in 0..listed.rows.get() {
                let (row, rest) = R::ref_from_prefix(tail).unwrap();
                // The texts end where the padding or the next row begins; no text has
                // a zero in it, and no row of these tests begins with another byte.
                let end = rest
                    .iter()
                    .position(|byte| *byte < b' ')
                    .unwrap_or(rest.len());
                let text = String::from_utf8(rest[..end].to_vec()).unwrap();
                let size = (size_of::<R>() + end).next_multiple_of(8) - size_of::<R>();
                tail = rest.get(size..).unwrap_or(&[]);
                rows.push((*row, text));
            }
            if listed.more == 0 {
                return (rows, pages);
            }
            assert!(
                listed.next.get() > from,
                "a page goes on behind the one before"
            );
            from = listed.next.get();
        }
    }
}

#[test]
fn a_destination_in_use_is_deleted_only_by_force() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let name = "/default/q";
    let producer = peer.producer(&mut shard, name, 1);
    let (refusal, text) = verdict(&peer.delete(&mut shard, name, 0)).unwrap_err();
    assert_eq!(refusal, Refusal::PreconditionFailed);
    assert!(text.contains("queue:/default/q is in use, by 1 producers"));
    assert!(shard.catalog.len() == 1, "it is still there");
    let close = Close {
        handle: producer.handle.0.into(),
        ..Close::default()
    };
    peer.control(5, &close, &[]);
    peer.exchange(&mut shard);
    assert_eq!(verdict(&peer.delete(&mut shard, name, 0)), Ok(true));
    let (refusal, text) = verdict(&peer.delete(&mut shard, name, 0)).unwrap_err();
    assert_eq!(refusal, Refusal::NotFound);
    assert_eq!(text, "queue:/default/q does not exist");
    shard.audit();
}

#[test]
fn what_uses_a_destination_that_is_deleted_by_force_ends_in_its_place() {
    let mut shard = shard();
    let mut admin = Peer::new(&mut shard);
    let mut peer = Peer::new(&mut shard);
    let name = "/default/q";
    let mut producer = peer.producer(&mut shard, name, 1);
    peer.message(&mut producer, b"first");
    peer.exchange(&mut shard);
    let (consumer, _) = peer.consumer(&mut shard, name, 10);
    // What the client sent before it heard of the end.
    peer.message(&mut producer, b"second");
    assert_eq!(verdict(&admin.delete(&mut shard, name, FORCE)), Ok(true));
    let told = peer.exchange(&mut shard);
    assert_eq!(
        ended(&told),
        [
            (consumer.0, Refusal::NotFound),
            (producer.handle.0, Refusal::NotFound)
        ]
    );
    let outcomes = completions(&told);
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].sequence.get(), 2);
    assert_eq!(outcomes[0].refusal.get(), Refusal::NotFound.code());
    shard.audit();

    // Frames to a consumer that has ended change nothing; a confirmation says why.
    let ack = Acknowledge {
        runs: 1.into(),
        confirm: 4.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: 0.into(),
        count: 1.into(),
    };
    peer.control(consumer.0, &ack, &[run.as_bytes()]);
    let allow = Allow {
        messages: 99.into(),
        bytes: 99.into(),
        handed: 77.into(),
    };
    peer.control(consumer.0, &allow, &[]);
    let back = crate::frame::control::Return {
        runs: 1.into(),
        ..Default::default()
    };
    peer.control(consumer.0, &back, &[run.as_bytes()]);
    peer.message(&mut producer, b"third");
    for handle in [consumer, producer.handle] {
        let close = Close {
            handle: handle.0.into(),
            ..Close::default()
        };
        peer.control(handle.0, &close, &[]);
    }
    let answers = peer.exchange(&mut shard);
    let (mut confirmed, mut closed) = (0, 0);
    for (frame, _) in frames(&answers) {
        match frame {
            Frame::Control {
                control: Control::Acknowledged(fields, _),
                ..
            } => {
                assert_eq!(fields.refusal.get(), Refusal::NotFound.code());
                confirmed += 1;
            }
            Frame::Control {
                control: Control::Closed(..),
                ..
            } => closed += 1,
            _ => {}
        }
    }
    assert_eq!((confirmed, closed), (1, 2));
    assert_eq!(
        completions(&answers)[0].refusal.get(),
        Refusal::NotFound.code()
    );
    assert_eq!(shard.producers.len() + shard.consumers.len(), 0);
    shard.audit();
}

/// The end stood behind the answer to the Close, which gives the handle back, and so
/// ended the link of a client that knew it no more.
#[test]
fn who_closes_what_the_broker_ends_at_the_same_time_hears_only_that_it_is_closed() {
    let mut shard = shard();
    let mut admin = Peer::new(&mut shard);
    let mut peer = Peer::new(&mut shard);
    let name = "/default/q";
    let producer = peer.producer(&mut shard, name, 1);
    let close = Close {
        handle: producer.handle.0.into(),
        ..Close::default()
    };
    peer.control(9, &close, &[]);
    shard.received(now(), peer.link, &std::mem::take(&mut peer.out));
    assert_eq!(verdict(&admin.delete(&mut shard, name, FORCE)), Ok(true));
    let told = peer.exchange(&mut shard);
    assert_eq!(ended(&told), []);
    let closed = frames(&told).into_iter().filter(|(frame, _)| {
        matches!(
            frame,
            Frame::Control {
                subject: 9,
                control: Control::Closed(..),
            }
        )
    });
    assert_eq!(closed.count(), 1);
    assert_eq!(shard.producers.len(), 0);
    shard.audit();
}

#[test]
fn a_producer_of_a_deleted_destination_attaches_to_no_later_one_of_its_name() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let name = "/default/q";
    let producer = peer.producer(&mut shard, name, 1);
    assert_eq!(verdict(&peer.delete(&mut shard, name, FORCE)), Ok(true));
    let again = |peer: &mut Peer, shard: &mut Shard| {
        let fields = OpenProducer {
            session: peer.session.into(),
            destination_length: u16::try_from(name.len()).unwrap().into(),
            producer: producer.producer.into(),
            ..OpenProducer::default()
        };
        peer.control(9, &fields, &[name.as_bytes()]);
        verdict(&peer.exchange(shard)).unwrap_err().0
    };
    assert_eq!(again(&mut peer, &mut shard), Refusal::NotFound);
    assert!(shard.catalog.is_empty(), "attaching again creates nothing");
    let mut other = peer.producer(&mut shard, name, 1);
    assert_eq!(again(&mut peer, &mut shard), Refusal::Fenced);
    peer.message(&mut other, b"x");
    let stored = completions(&peer.exchange(&mut shard));
    assert_eq!((stored[0].offset.get(), stored[0].refusal.get()), (0, 0));
}

/// A delivery lay in the log, lent to a link that had not taken it, when the log went.
#[test]
fn what_is_on_its_way_out_of_a_deleted_log_still_comes_whole() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut admin = Peer::new(&mut shard);
    let (free, name) = (shard.chunks_free(), "/default/q");
    let mut producer = peer.producer(&mut shard, name, 2);
    let body: Vec<u8> = (0..10_000)
        .map(|index: u32| index.to_le_bytes()[0])
        .collect();
    peer.message(&mut producer, &body);
    peer.exchange(&mut shard);
    let fields = OpenConsumer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        messages: 10.into(),
        bytes: (1 << 20).into(),
        ..OpenConsumer::default()
    };
    peer.control(3, &fields, &[name.as_bytes()]);
    shard.received(now(), peer.link, &std::mem::take(&mut peer.out));
    shard.turn(now());
    assert_eq!(verdict(&admin.delete(&mut shard, name, FORCE)), Ok(true));
    shard.audit();
    // The next tenant of the slot writes where the log would have been.
    let mut other = admin.producer(&mut shard, "/default/r", 1);
    admin.message(&mut other, &[0xee; 10_000]);
    admin.exchange(&mut shard);
    let delivered = peer.exchange(&mut shard);
    let bodies: Vec<&[u8]> = frames(&delivered)
        .into_iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Message(message) => Some(message.body),
            Frame::Control { .. } => None,
        })
        .collect();
    assert_eq!(bodies, [&body]);
    shard.audit();
    assert_eq!(
        verdict(&admin.delete(&mut shard, "/default/r", FORCE)),
        Ok(true)
    );
    assert_eq!(shard.chunks_free(), free, "all memory came back");
}

#[test]
fn destinations_that_come_and_go_with_all_that_is_theirs_leave_nothing_behind() {
    let mut shard = shard();
    let mut admin = Peer::new(&mut shard);
    let (free, mut slots) = (shard.chunks_free(), 0);
    let parts = shard.parts.used();
    for round in 0..300_u32 {
        let mut peer = Peer::new(&mut shard);
        let name = format!("/default/q{}", round % 7);
        let mut producer = peer.producer(&mut shard, &name, 1 + round % 3);
        let (consumer, _) = peer.consumer(&mut shard, &name, 4);
        for _ in 0..8 {
            peer.message(&mut producer, &[7; 3_000]);
        }
        peer.exchange(&mut shard);
        // One that rests is returned to nobody.
        let back = crate::frame::control::Return {
            runs: 1.into(),
            options: 1.into(),
            ..Default::default()
        };
        let run = AckRun {
            first: 1.into(),
            count: 2.into(),
        };
        peer.control(consumer.0, &back, &[run.as_bytes()]);
        peer.exchange(&mut shard);
        if round % 2 == 0 {
            // Its producer stays known, detached, until its destination goes.
            shard.closed(now(), peer.link);
        }
        assert_eq!(verdict(&admin.delete(&mut shard, &name, FORCE)), Ok(true));
        if round % 2 == 1 {
            peer.exchange(&mut shard);
            shard.closed(now(), peer.link);
        }
        shard.turn(now());
        shard.audit();
        assert_eq!(shard.chunks_free(), free);
        assert!(shard.catalog.is_empty() && shard.returns.next().is_none());
        assert_eq!(shard.burdens, [Burden::default()]);
        assert_eq!(shard.partitions, 0);
        assert_eq!(shard.parts.used(), parts);
        slots = slots.max(shard.locals.slots());
    }
    assert_eq!(
        slots, 1,
        "tables by slot are as long as destinations are many"
    );
    assert_eq!(shard.subscriptions.len() + shard.producers.len(), 0);
    assert_eq!(shard.remembered.known(), 0, "nobody is remembered");
}

#[test]
fn a_destination_that_is_created_and_deleted_a_hundred_thousand_times_takes_no_more() {
    let mut shard = shard();
    let destination = crate::name::Destination::parse("topic:t").unwrap();
    let queue = crate::name::Destination::parse("q").unwrap();
    let free = shard.chunks_free();
    for _ in 0..50_000 {
        for destination in [&destination, &queue] {
            let wanted = crate::catalog::Wanted::default();
            let open = crate::catalog::Request::Open(destination, wanted);
            assert!(shard.change(open, 0).unwrap());
            let delete = crate::catalog::Request::Delete(destination);
            assert!(shard.change(delete, 0).unwrap());
        }
    }
    assert_eq!(shard.chunks_free(), free);
    assert_eq!((shard.locals.slots(), shard.subscriptions.len()), (1, 0));
    assert_eq!(shard.catalog.version().0, 200_000);
    shard.audit();
}

#[test]
fn without_auto_create_only_what_was_created_is_opened() {
    let mut shard = Shard::new(ShardConfig {
        auto_create: false,
        ..shard().config
    })
    .unwrap();
    let mut peer = Peer::new(&mut shard);
    let name = "/default/q";
    let open = |peer: &mut Peer, shard: &mut Shard| {
        let fields = OpenProducer {
            session: peer.session.into(),
            destination_length: u16::try_from(name.len()).unwrap().into(),
            ..OpenProducer::default()
        };
        peer.control(9, &fields, &[name.as_bytes()]);
        peer.exchange(shard)
    };
    let (refusal, text) = verdict(&open(&mut peer, &mut shard)).unwrap_err();
    assert_eq!(refusal, Refusal::NotFound);
    assert!(text.starts_with("queue:/default/q does not exist"));
    let created = peer.create(&mut shard, name, Create::default());
    assert_eq!(verdict(&created), Ok(true));
    opened(&open(&mut peer, &mut shard));
}

#[test]
fn creating_says_what_cannot_be_and_repeats_itself_without_harm() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let three = Create {
        options: 1.into(),
        partitions: 3.into(),
        ..Create::default()
    };
    assert_eq!(verdict(&peer.create(&mut shard, "/a/b", three)), Ok(true));
    assert_eq!(verdict(&peer.create(&mut shard, "/a/b", three)), Ok(false));
    let cases = [
        (
            "/a/b",
            Create {
                partitions: 4.into(),
                ..three
            },
            Refusal::PreconditionFailed,
            "has 3 partitions, and 4",
        ),
        (
            "/a/c",
            Create {
                partitions: 0.into(),
                ..three
            },
            Refusal::IllegalArgument,
            "partitions must be > 0 or omitted",
        ),
        (
            "/a/c",
            Create {
                partitions: 2000.into(),
                ..three
            },
            Refusal::IllegalArgument,
            "at most 1024",
        ),
        (
            "/a/c",
            Create {
                options: 2.into(),
                retain: u64::MAX.into(),
                ..three
            },
            Refusal::IllegalArgument,
            "to be retained",
        ),
        (
            "/a/c",
            Create {
                options: (1 << 9).into(),
                ..three
            },
            Refusal::Unsupported,
            "",
        ),
        ("/a/b/c", three, Refusal::InvalidName, ""),
        ("/a", three, Refusal::InvalidName, ""),
        ("topic_test", three, Refusal::InvalidName, ""),
    ];
    for (name, fields, refusal, text) in cases {
        let (code, said) = verdict(&peer.create(&mut shard, name, fields)).unwrap_err();
        assert_eq!(code, refusal, "{name}: {said}");
        assert!(said.contains(text), "{said:?} should say {text:?}");
    }
    assert_eq!(shard.catalog.len(), 1);
}

#[test]
fn bounds_of_a_destination_hold_for_who_comes_and_leave_who_is_there() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let name = "/default/q";
    let most = Create {
        options: 0b1100.into(),
        producers_max: 1.into(),
        consumers_max: 1.into(),
        ..Create::default()
    };
    assert_eq!(verdict(&peer.create(&mut shard, name, most)), Ok(true));
    let first = peer.producer(&mut shard, name, 0);
    peer.consumer(&mut shard, name, 1);
    let open = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        ..OpenProducer::default()
    };
    peer.control(9, &open, &[name.as_bytes()]);
    let (refusal, text) = verdict(&peer.exchange(&mut shard)).unwrap_err();
    assert_eq!(refusal, Refusal::ResourceAllocation);
    assert_eq!(text, "queue:/default/q has 1 producers, and may have 1");
    let consumer = OpenConsumer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        messages: 1.into(),
        bytes: 1.into(),
        ..OpenConsumer::default()
    };
    peer.control(9, &consumer, &[name.as_bytes()]);
    let (_, text) = verdict(&peer.exchange(&mut shard)).unwrap_err();
    assert_eq!(text, "queue:/default/q has 1 consumers, and may have 1");
    // Whoever attaches again takes no second place.
    let again = OpenProducer {
        producer: first.producer.into(),
        ..open
    };
    peer.control(2, &again, &[name.as_bytes()]);
    opened(&peer.exchange(&mut shard));
    let more = SetPolicies {
        session: peer.session.into(),
        options: 0b100.into(),
        producers_max: 2.into(),
        ..SetPolicies::default()
    };
    peer.control(9, &more, &[name.as_bytes()]);
    assert_eq!(verdict(&peer.exchange(&mut shard)), Ok(true));
    peer.producer(&mut shard, name, 0);
    shard.audit();
}

#[test]
fn a_topic_has_no_more_subscriptions_than_it_may() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let name = "/default/t";
    let most = Create {
        destination: 1,
        options: 0b1_0000.into(),
        subscriptions_max: 1.into(),
        ..Create::default()
    };
    assert_eq!(verdict(&peer.create(&mut shard, name, most)), Ok(true));
    let open = |peer: &mut Peer, shard: &mut Shard, subscription: &str| {
        let fields = OpenConsumer {
            session: peer.session.into(),
            destination: 1,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            subscription_length: u16::try_from(subscription.len()).unwrap().into(),
            sharing: 2,
            messages: 1.into(),
            bytes: 1.into(),
            ..OpenConsumer::default()
        };
        peer.control(9, &fields, &[name.as_bytes(), subscription.as_bytes()]);
        peer.exchange(shard)
    };
    open(&mut peer, &mut shard, "one");
    open(&mut peer, &mut shard, "one");
    let (refusal, text) = verdict(&open(&mut peer, &mut shard, "two")).unwrap_err();
    assert_eq!(refusal, Refusal::ResourceAllocation);
    assert_eq!(text, "topic:/default/t has 1 subscriptions, and may have 1");

    let remove = |peer: &mut Peer, shard: &mut Shard, subscription: &str, options: u8| {
        let fields = Delete {
            session: peer.session.into(),
            destination: 1,
            options: SUBSCRIPTION | options,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            subscription_length: u16::try_from(subscription.len()).unwrap().into(),
            ..Delete::default()
        };
        peer.control(9, &fields, &[name.as_bytes(), subscription.as_bytes()]);
        peer.exchange(shard)
    };
    let (refusal, text) = verdict(&remove(&mut peer, &mut shard, "two", 0)).unwrap_err();
    assert_eq!(refusal, Refusal::NotFound);
    assert_eq!(text, "topic:/default/t has no subscription \"two\"");
    let (refusal, text) = verdict(&remove(&mut peer, &mut shard, "one", 0)).unwrap_err();
    assert_eq!(refusal, Refusal::PreconditionFailed);
    assert!(text.contains("in use, by 2 consumers"), "{text}");
    let removed = remove(&mut peer, &mut shard, "one", FORCE);
    assert_eq!(verdict(&removed), Ok(true));
    assert_eq!(ended(&removed).len(), 2);
    shard.audit();
    open(&mut peer, &mut shard, "two");
}

#[test]
fn a_fenced_producer_is_told_and_never_attaches_again() {
    let mut shard = shard();
    let mut admin = Peer::new(&mut shard);
    let mut peer = Peer::new(&mut shard);
    let name = "/default/q";
    let mut producer = peer.producer(&mut shard, name, 1);
    peer.message(&mut producer, b"before");
    peer.exchange(&mut shard);
    assert_eq!(
        verdict(&admin.end(&mut shard, 1, producer.producer)),
        Ok(true)
    );
    peer.message(&mut producer, b"after");
    let told = peer.exchange(&mut shard);
    assert_eq!(ended(&told), [(producer.handle.0, Refusal::Fenced)]);
    assert_eq!(completions(&told)[0].refusal.get(), Refusal::Fenced.code());
    let again = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        producer: producer.producer.into(),
        ..OpenProducer::default()
    };
    peer.control(9, &again, &[name.as_bytes()]);
    assert_eq!(
        verdict(&peer.exchange(&mut shard)).unwrap_err().0,
        Refusal::Fenced
    );
    let (refusal, text) = verdict(&admin.end(&mut shard, 1, producer.producer)).unwrap_err();
    assert_eq!(
        (refusal, text.contains("no producer")),
        (Refusal::NotFound, true)
    );
    shard.audit();

    // One without a link can be fenced before it comes back.
    let detached = peer.producer(&mut shard, name, 1);
    shard.closed(now(), peer.link);
    assert_eq!(
        verdict(&admin.end(&mut shard, 1, detached.producer)),
        Ok(true)
    );
    assert_eq!(shard.remembered.known(), 0);
    shard.audit();
}

#[test]
fn a_link_that_is_ended_is_told_why() {
    let mut shard = shard();
    let mut admin = Peer::new(&mut shard);
    let mut peer = Peer::new(&mut shard);
    let number = shard.links.get(peer.link).unwrap().number.0;
    assert_eq!(verdict(&admin.end(&mut shard, 0, number)), Ok(true));
    let told = peer.exchange(&mut shard);
    let last = frames(&told).pop().unwrap().0;
    let Frame::Control {
        control: Control::Farewell(fields, _),
        ..
    } = last
    else {
        panic!("{last:?}")
    };
    assert_eq!(fields.refusal.get(), Refusal::Ended.code());
    shard.closed(now(), peer.link);
    let (refusal, text) = verdict(&admin.end(&mut shard, 0, number)).unwrap_err();
    assert_eq!(refusal, Refusal::NotFound);
    assert!(text.contains("no connection has the number"), "{text}");
}

#[test]
fn a_list_that_takes_many_pages_has_everything_once() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let names: Vec<String> = (0..120)
        .map(|index| format!("/default/q{index:03}"))
        .collect();
    for name in &names {
        peer.create(&mut shard, name, Create::default());
        peer.producer(&mut shard, name, 1);
    }
    peer.delete(&mut shard, &names[3], FORCE);
    let (rows, pages) = peer.list::<DestinationRow>(&mut shard, DESTINATIONS, "");
    assert!(pages > 2, "{pages} pages");
    let listed: Vec<&String> = rows.iter().map(|(_, name)| name).collect();
    let expected: Vec<&String> = names.iter().filter(|name| **name != names[3]).collect();
    assert_eq!(listed, expected);
    let (rows, _) = peer.list::<ProducerRow>(&mut shard, PRODUCERS, "");
    assert_eq!(rows.len(), 119, "a producer that has ended is not listed");
    let (rows, _) = peer.list::<SubscriptionRow>(&mut shard, SUBSCRIPTIONS, "");
    assert_eq!(rows.len(), 119, "each queue has its own");
}

#[test]
fn lists_say_what_there_is_of_each_thing() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let link = shard.attached(
        now(),
        Attached {
            name: "desk host@1@0@abc".into(),
            ..Attached::default()
        },
    );
    let number = shard.links.get(link.unwrap()).unwrap().number.0;
    let name = "/default/q";
    let mut producer = peer.producer(&mut shard, name, 1);
    for _ in 0..5 {
        peer.message(&mut producer, b"x");
    }
    peer.exchange(&mut shard);
    let (consumer, _) = peer.consumer(&mut shard, name, 3);
    let own = shard.links.get(peer.link).unwrap().number.0;

    let (rows, _) = peer.list::<LinkRow>(&mut shard, LINKS, "");
    let listed: Vec<(u64, &str)> = rows
        .iter()
        .map(|(row, name)| (row.link.get(), name.as_str()))
        .collect();
    assert_eq!(listed, [(own, ""), (number, "desk host@1@0@abc")]);
    let (row, _) = rows[0];
    let open = (row.sessions.get(), row.producers.get(), row.consumers.get());
    assert_eq!(open, (1, 1, 1));

    let (rows, _) = peer.list::<DestinationRow>(&mut shard, DESTINATIONS, name);
    let (row, _) = rows[0];
    assert_eq!((row.stored.get(), row.unsettled.get()), (5, 5));
    assert_eq!((row.producers.get(), row.consumers.get()), (1, 1));
    let (rows, _) = peer.list::<SubscriptionRow>(&mut shard, SUBSCRIPTIONS, name);
    let (row, text) = &rows[0];
    assert_eq!(text, name);
    assert_eq!((row.sharing, row.consumers.get()), (2, 1));
    assert_eq!((row.unsettled.get(), row.backlog.get()), (3, 5));
    let (rows, _) = peer.list::<PartRow>(&mut shard, PARTS, name);
    let (row, _) = rows[0];
    let place = (row.cursor.get(), row.fresh.get(), row.end.get());
    assert_eq!((rows.len(), place), (1, (0, 3, 5)));
    assert_eq!((row.unsettled.get(), row.backlog.get()), (3, 5));
    let (rows, _) = peer.list::<ConsumerRow>(&mut shard, CONSUMERS, name);
    let (row, _) = rows[0];
    assert_eq!((row.handle.get(), row.link.get()), (consumer.0, own));
    assert_eq!((row.delivered.get(), row.credit.get()), (3, 0));
    let (rows, _) = peer.list::<ProducerRow>(&mut shard, PRODUCERS, name);
    let (row, _) = rows[0];
    assert_eq!(row.producer.get(), producer.producer);
    assert_eq!((row.link.get(), row.epoch.get()), (own, 1));
}
