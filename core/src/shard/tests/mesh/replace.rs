use super::*;

impl Shards {
    /// A client that has lost a link, and opens its session, an exclusive consumer and an
    /// exclusive producer without waiting for the welcome.
    fn returns(&mut self, at: usize, replaces: LinkNumber) -> Client {
        let mut peer = super::super::Peer {
            link: Handle(0),
            out: Vec::new(),
            // The one that it is about to open: the shard has no other.
            session: 0,
        };
        peer.control(1, &OpenSession::default(), &[]);
        let link = self.all[at]
            .attached(
                now(),
                Attached {
                    replaces: Some(replaces),
                    leftover: std::mem::take(&mut peer.out),
                    ..Attached::default()
                },
            )
            .unwrap();
        peer.link = link;
        Client { at, peer }
    }

    fn number(&self, client: &Client) -> LinkNumber {
        self.all[client.at]
            .links
            .get(client.peer.link)
            .unwrap()
            .number
    }

    /// Asks for an exclusive consumer of a topic and for an exclusive producer of a queue.
    fn asks_for_both(client: &mut Client) {
        let consumer = OpenConsumer {
            session: client.peer.session.into(),
            destination: 1,
            destination_length: 10.into(),
            subscription_length: 1.into(),
            messages: 5.into(),
            bytes: 100.into(),
            ..OpenConsumer::default()
        };
        (client.peer).control(2, &consumer, &[b"/default/t", b"s"]);
        let producer = OpenProducer {
            session: client.peer.session.into(),
            destination_length: 10.into(),
            access: 1,
            ..OpenProducer::default()
        };
        client.peer.control(3, &producer, &[b"/default/q"]);
    }
}

/// The frames of the control plane, by their names.
fn answers(bytes: &[u8]) -> Vec<String> {
    frames(bytes)
        .iter()
        .map(|(frame, _)| match frame {
            Frame::Control { control, .. } => format!("{:?}", control.kind()),
            Frame::Message(_) => "message".to_owned(),
        })
        .collect()
}

fn session(bytes: &[u8]) -> u32 {
    let opened = frames(bytes).iter().find_map(|(frame, _)| match frame {
        Frame::Control {
            control: Control::SessionOpened(fields, _),
            ..
        } => Some(fields.session.get()),
        _ => None,
    });
    opened.unwrap()
}

/// Only the shard of the old link ended it, and a client that came back on another one
/// was told for as long as that looked open that somebody else had its subscription.
#[test]
fn what_a_replaced_link_held_is_free_on_every_shard_before_the_welcome() {
    for seed in 0..400 {
        let mut order = Shuffle(seed);
        let mut shards = Shards::new(4);
        shards.create("topic:/default/t", 3);
        shards.create("/default/q", 3);
        let mut old = shards.client(order.below(4));
        Shards::asks_for_both(&mut old);
        shards.write(&mut old);
        // It may be anywhere between asked for and open.
        for _ in 0..order.below(40) {
            let at = order.below(4);
            shards.turn(at);
        }
        let number = shards.number(&old);
        let at = (old.at + 1 + order.below(3)) % 4;
        let mut new = shards.returns(at, number);
        let mut got = Vec::new();
        for turn in 0.. {
            let at = order.below(4);
            shards.turn(at);
            got.extend(shards.read(&new));
            if !got.is_empty() {
                break;
            }
            assert!(turn < 1_000, "the welcome does not come");
        }
        // At once, in whatever order the others turn.
        new.peer.session = session(&got);
        Shards::asks_for_both(&mut new);
        shards.write(&mut new);
        for _ in 0..100 {
            let at = order.below(4);
            shards.turn(at);
        }
        shards.settle();
        got.extend(shards.read(&new));
        let mut answers = answers(&got);
        answers[2..].sort();
        assert_eq!(
            answers,
            [
                "Welcome",
                "SessionOpened",
                "ConsumerOpened",
                "ProducerOpened"
            ],
            "seed {seed}"
        );
        assert!(shards.ended.contains(&(old.at, old.peer.link)));
        assert_eq!(shards.counter(Counter::LinksReplaced), 1);
    }
}

#[test]
fn a_client_that_says_too_much_before_its_welcome_is_ended_and_one_that_waits_too_long() {
    let mut shards = Shards::new(2);
    let old = shards.client(0);
    let number = shards.number(&old);
    let mut new = shards.returns(1, number);
    // Shard 0 sleeps on.
    shards.turn(1);
    assert_eq!(shards.read(&new), b"", "there is no welcome yet");
    new.peer.out = vec![0; limits::HELLO_SIZE_MAX as usize];
    shards.write(&mut new);
    shards.turn(1);
    assert!(shards.ended.contains(&(1, new.peer.link)));
    assert_eq!(answers(&shards.read(&new)), ["Farewell"]);

    let new = shards.returns(1, number);
    let late = Now {
        monotonic: now().monotonic.after(limits::REPLACE_TIMEOUT),
        ..now()
    };
    assert!(shards.all[1].next_expiry().is_some());
    shards.all[1].expire(late);
    shards.turn(1);
    assert!(shards.ended.contains(&(1, new.peer.link)));
    let farewell = shards.read(&new);
    let is_late = frames(&farewell).iter().any(|(frame, _)| {
        matches!(frame, Frame::Control { control: Control::Farewell(fields, _), .. }
            if fields.refusal.get() == Refusal::HelloTimeout.code())
    });
    assert!(is_late, "it is told to try again");
    shards.settle();
    assert_eq!(shards.read(&new), b"", "a farewell is the last frame");
}

#[test]
fn a_link_of_somebody_else_stays_whatever_shard_the_other_is_on() {
    let mut shards = Shards::new(2);
    let old = shards.client(0);
    let number = shards.number(&old);
    let link = shards.all[1]
        .attached(
            now(),
            Attached {
                principal: Principal::from_number(5),
                replaces: Some(number),
                ..Attached::default()
            },
        )
        .unwrap();
    shards.settle();
    let client = Client {
        at: 1,
        peer: super::super::Peer {
            link,
            out: Vec::new(),
            session: 0,
        },
    };
    assert_eq!(answers(&shards.read(&client)), ["Welcome"]);
    assert_eq!(shards.ended, []);
}
