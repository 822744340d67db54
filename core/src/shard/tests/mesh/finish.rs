use super::*;

fn count(bytes: &[u8], which: impl Fn(&Control<'_>) -> bool) -> usize {
    let is_it =
        |frame: &Frame<'_>| matches!(frame, Frame::Control { control, .. } if which(control));
    frames(bytes).iter().filter(|it| is_it(&it.0)).count()
}

impl Shards {
    /// A client that has sent all it had to: messages to both shards, an acknowledgement
    /// of what it got from the other one, and a request that the other one decides. It
    /// closes its direction, and the other shard sleeps.
    fn says_its_last(&mut self) -> (Client, Handle) {
        self.create("/default/q", 2);
        self.fill("/default/q", 2, 3, 10);
        let mut client = self.client(1);
        let mut producer = self.producer(&mut client, "/default/q", 0);
        let (consumer, first) = (self.consumer(&mut client, (0, "/default/q"), "", 6)).unwrap();
        assert_eq!(deliveries(&first, consumer).len(), 6);
        for number in 0..10_u32 {
            let sequence = u64::from(number / 2) + 1;
            (client.peer).message_to(number % 2, sequence, &mut producer, b"last words");
        }
        for partition in 0..2_u32 {
            let fields = Acknowledge {
                partition: partition.into(),
                runs: 1.into(),
                confirm: (partition + 1).into(),
                ..Acknowledge::default()
            };
            let run = AckRun {
                first: 0.into(),
                count: 1.into(),
            };
            (client.peer).control(consumer.0, &fields, &[run.as_bytes()]);
        }
        let open = OpenProducer {
            session: client.peer.session.into(),
            destination_length: 14.into(),
            partitions: 2.into(),
            ..OpenProducer::default()
        };
        client.peer.control(9, &open, &[b"/default/other"]);
        self.write(&mut client);
        self.all[1].finished(now(), client.peer.link);
        for _ in 0..20 {
            self.turn(1);
        }
        (client, consumer)
    }
}

/// The link ended when its own shard had nothing more for it: whatever another shard had
/// still to say of its sends was lost.
#[test]
fn a_peer_that_sends_no_more_hears_of_all_that_it_sent_however_slow_the_other_shard_is() {
    let mut shards = Shards::new(2);
    let (client, consumer) = shards.says_its_last();
    assert_eq!(shards.ended, [], "the other shard owes it something");
    shards.settle();
    let last = shards.read(&client);
    let outcomes = singles(&last);
    let expected: Vec<_> = (0..10).map(|number| (number + 1, 0)).collect();
    let got: Vec<_> = outcomes.iter().map(|it| (it.0, it.3)).collect();
    assert_eq!(got, expected, "every outcome, in the order of the sends");
    assert_eq!(confirmed(&last), [(1, 0), (2, 0)]);
    let is_opened = |control: &Control<'_>| matches!(control, Control::ProducerOpened(..));
    assert_eq!(count(&last, is_opened), 1);
    assert_eq!(shards.ended, [(1, client.peer.link)]);
    shards.all[1].closed(now(), client.peer.link);
    shards.settle();
    for shard in &shards.all {
        assert_eq!(shard.handles(), 0);
        assert_eq!(shard.reserved, 0);
    }
    // What it had not settled is there again, and what it had is not.
    let mut next = shards.client(0);
    let (handle, got) = (shards.consumer(&mut next, (0, "/default/q"), "", 100)).unwrap();
    let got = deliveries(&got, handle);
    assert_eq!(got.len(), 4 + 10);
    assert_eq!(got.iter().filter(|it| it.count == 2).count(), 4);
    assert!(got.iter().all(|it| it.offset > 0), "{consumer:?}");
}

#[test]
fn a_shard_that_does_not_answer_holds_up_a_peer_that_sends_no_more_for_a_limited_time() {
    let mut shards = Shards::new(2);
    let (client, _) = shards.says_its_last();
    let early = Now {
        monotonic: now().monotonic.after(limits::DRAIN_TIMEOUT / 2),
        ..now()
    };
    shards.all[1].expire(early);
    shards.turn(1);
    assert_eq!(shards.ended, []);
    let late = Now {
        monotonic: now().monotonic.after(limits::DRAIN_TIMEOUT),
        ..now()
    };
    assert!(shards.all[1].next_expiry().unwrap() <= late.monotonic);
    shards.all[1].expire(late);
    shards.turn(1);
    assert_eq!(shards.ended, [(1, client.peer.link)]);
    shards.all[1].closed(late, client.peer.link);
    shards.settle();
    for shard in &shards.all {
        assert_eq!(shard.handles(), 0);
        assert_eq!(shard.reserved, 0);
    }
}

#[test]
fn a_peer_that_sends_no_more_while_its_handles_are_opened_and_closed_is_answered_in_any_order() {
    for turns in 0..30 {
        let mut shards = Shards::new(3);
        shards.create("topic:/default/t", 3);
        let mut client = shards.client(2);
        let (closing, _) = (shards.consumer(&mut client, (1, "/default/t"), "c", 1)).unwrap();
        let ended = shards.producer_of(&mut client, (1, "/default/t"), 0);
        let open = OpenConsumer {
            session: client.peer.session.into(),
            destination: 1,
            destination_length: 10.into(),
            subscription_length: 1.into(),
            ..OpenConsumer::default()
        };
        (client.peer).control(2, &open, &[b"/default/t", b"s"]);
        for handle in [closing, ended.handle] {
            let close = crate::frame::control::Close {
                handle: handle.0.into(),
                ..Default::default()
            };
            client.peer.control(8, &close, &[]);
        }
        shards.write(&mut client);
        for turn in 0..turns {
            shards.turn([2, 1, 2, 0, 2, 0, 1][turn % 7]);
        }
        shards.all[2].finished(now(), client.peer.link);
        shards.settle();
        let last = shards.read(&client);
        let is_opened = |control: &Control<'_>| matches!(control, Control::ConsumerOpened(..));
        let is_closed = |control: &Control<'_>| matches!(control, Control::Closed(..));
        let answers = (count(&last, is_opened), count(&last, is_closed));
        assert_eq!(answers, (1, 2), "after {turns} turns");
        assert_eq!(shards.ended, [(2, client.peer.link)]);
        shards.all[2].closed(now(), client.peer.link);
        shards.settle();
        for shard in &shards.all {
            assert_eq!(shard.handles(), 0, "after {turns} turns");
        }
    }
}
