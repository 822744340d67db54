//! A connection is lost and another one found.

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// A client that looks for another connection when it loses one.
fn patient() -> Script {
    let mut script = Script::open();
    script.client.config.reconnect_for = PATIENCE;
    script.client.link = 41;
    script
}

impl Script {
    fn lose(&mut self) {
        self.said();
        self.stream.clear();
        self.client.closed();
        self.client.expire(self.now.monotonic);
    }

    /// Another connection, up to the session; what the client says next.
    fn reconnect(&mut self, welcome: &control::Welcome) -> Vec<Said> {
        assert_eq!(self.client.wants_connection(), Some(Monotonic(0)));
        self.client.connected(self.now.monotonic);
        let said = self.said();
        assert_eq!(said.len(), 1, "nothing but the hello leaves");
        let (_, hello) = said[0].fields::<control::Hello>();
        assert_eq!(hello.link.get(), 41, "the link that it takes the place of");
        self.say(0, welcome, &[]);
        let said = self.said();
        let (request, _) = said[0].fields::<control::OpenSession>();
        let opened = control::SessionOpened {
            session: 8.into(),
            ..control::SessionOpened::default()
        };
        self.say(request, &opened, &[]);
        self.said()
    }

    /// One message that was handed out before.
    fn deliver_again(&mut self, handle: u32, offset: u64, body: &[u8]) {
        let delivery = control::Delivery {
            count: 1.into(),
            offset: offset.into(),
            delivery_count: 2.into(),
            ..control::Delivery::default()
        };
        self.say(handle, &delivery, &[]);
        let frame = message_frame(0, offset, body);
        self.client.received(&frame);
    }

    /// Another connection, on which the consumer is open again under this handle.
    fn attach_again(&mut self, handle: u32, starts: &[u64]) {
        let said = self.reconnect(&welcome());
        let (request, _) = said[0].fields::<control::OpenConsumer>();
        let fields = control::ConsumerOpened {
            handle: handle.into(),
            partitions: u32::try_from(starts.len()).unwrap().into(),
        };
        let starts: Vec<u8> = starts.iter().flat_map(|it| it.to_le_bytes()).collect();
        self.say(request, &fields, &[&starts]);
    }

    /// The broker confirms an acknowledgement.
    fn confirm(&mut self, handle: u32, token: u32, refusal: Option<Refusal>) {
        let fields = control::Acknowledged {
            confirm: token.into(),
            refusal: refusal.map_or(0, Refusal::code).into(),
            ..control::Acknowledged::default()
        };
        self.say(handle, &fields, &[]);
    }

    fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.client.poll_event()).collect()
    }
}

fn again(handle: u32, partitions: u32) -> control::ProducerOpened {
    control::ProducerOpened {
        epoch: 2.into(),
        ..opened(handle, partitions)
    }
}

fn refused(sequence: u64, refusal: Refusal) -> CompletionRun {
    CompletionRun {
        refusal: refusal.code().into(),
        append_time: 0.into(),
        ..run(sequence, 1, 0)
    }
}

/// Partition sequence, epoch, handle and whether it was given up.
fn stamps(said: &[Said]) -> Vec<(u64, u32, u32, bool)> {
    messages(said)
        .iter()
        .map(|header| {
            (
                header.partition_sequence.get(),
                header.epoch.get(),
                header.handle.get(),
                header.is_given_up(),
            )
        })
        .collect()
}

#[test]
fn what_had_no_answer_is_sent_again_in_order_and_unchanged_but_for_the_handle() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    for body in [b"1", b"2", b"3"] {
        script.send(producer, body).unwrap();
    }
    let first = messages(&script.said());
    script.complete(100, &[run(1, 1, 0)]);
    script.lose();
    assert_eq!(script.client.end(), None);
    // What comes in between is taken, and waits.
    script.send(producer, b"4").unwrap();
    assert!(script.said().is_empty());

    let said = script.reconnect(&welcome());
    let (request, open) = said[0].fields::<control::OpenProducer>();
    assert_eq!((open.producer.get(), open.session.get()), (42, 8));
    script.say(request, &again(200, 1), &[]);
    let second = messages(&script.said());
    let same = |header: &MessageHeader| MessageHeader {
        handle: 200.into(),
        ..*header
    };
    assert_eq!(second[..2], [same(&first[1]), same(&first[2])]);
    assert_eq!(second[2].partition_sequence.get(), 4);
    assert_eq!(second[2].epoch.get(), 1, "as it was when it was sent");
    script.send(producer, b"5").unwrap();
    assert_eq!(stamps(&script.said()), [(5, 2, 200, false)]);

    script.complete(200, &[run(2, 4, 1)]);
    let epochs: Vec<_> = core::iter::from_fn(|| script.client.poll_completion(producer))
        .map(|completion| completion.result.unwrap())
        .map(|stored| (stored.position.offset.0, stored.epoch.0))
        .collect();
    assert_eq!(epochs, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2)]);
    assert_eq!(script.client.counters().reconnects, 1);
    let events = script.events();
    assert_eq!(events[0], Event::Disconnected);
    assert!(matches!(events[2], Event::ProducerResumed { epoch, .. } if epoch == Epoch(2)));
}

#[test]
fn credit_counts_anew_from_where_the_producer_attached() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    for _ in 0..5 {
        script.send(producer, &[7; 8]).unwrap();
    }
    script.said();
    script.complete(100, &[run(1, 2, 0)]);
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenProducer>();
    let scarce = control::ProducerOpened {
        bytes: 240.into(),
        messages: 2.into(),
        ..again(200, 1)
    };
    script.say(request, &scarce, &[]);
    let said = script.said();
    assert_eq!(stamps(&said), [(3, 1, 200, false), (4, 1, 200, false)]);
    let credit = control::Credit {
        bytes: 360.into(),
        messages: 3.into(),
    };
    script.say(200, &credit, &[]);
    assert_eq!(stamps(&script.said()), [(5, 1, 200, false)]);
}

#[test]
fn a_deadline_that_passes_meanwhile_fails_the_send_in_its_place_and_gives_its_turn_up() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    script.send_by(producer, b"left", Route::Turn, 1).unwrap();
    script
        .send_by(producer, b"left too", Route::Turn, 9)
        .unwrap();
    script.said();
    script.lose();
    script
        .send_by(producer, b"never left", Route::Turn, 1)
        .unwrap();
    script.send_by(producer, b"last", Route::Turn, 9).unwrap();
    script.advance(2);
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenProducer>();
    script.say(request, &again(200, 1), &[]);
    // The broker may have the first, so its turn is given up; what never left
    // leaves no gap behind.
    assert_eq!(
        stamps(&script.said()),
        [(1, 1, 200, true), (2, 1, 200, false), (3, 1, 200, false)]
    );
    script.complete(
        200,
        &[refused(1, Refusal::GivenUp), run(2, 1, 0), run(4, 1, 1)],
    );
    assert_eq!(
        script.results(producer),
        [
            (1, Err(Failure::Unknown(Cause::DeadlinePassed))),
            (2, Ok(0)),
            (3, Err(Failure::NotStored(Cause::DeadlinePassed))),
            (4, Ok(1)),
        ]
    );
    assert_eq!(script.client.counters().late_completions, 0);
}

#[test]
fn a_frame_that_had_left_in_part_is_sent_whole_again() {
    for part in 1..240 {
        let mut script = patient();
        let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
        script.send(producer, b"1").unwrap();
        script.send(producer, b"2").unwrap();
        let size = script.client.pieces().size();
        assert_eq!(size, 240);
        script.client.sent(part);
        script.client.closed();
        script.client.expire(script.now.monotonic);
        let said = script.reconnect(&welcome());
        let (request, _) = said[0].fields::<control::OpenProducer>();
        script.say(request, &again(200, 1), &[]);
        assert_eq!(
            stamps(&script.said()),
            [(1, 1, 200, false), (2, 1, 200, false)]
        );
    }
}

#[test]
fn another_installation_leaves_what_had_left_unknown_and_takes_what_comes_next() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    script.send(producer, b"left").unwrap();
    script.said();
    script.lose();
    script.send(producer, b"waits").unwrap();
    let elsewhere = control::Welcome {
        installation: 0xbeef.into(),
        ..welcome()
    };
    let said = script.reconnect(&elsewhere);
    let (request, open) = said[0].fields::<control::OpenProducer>();
    assert_eq!((open.producer.get(), open.partitions.get()), (0, 1));
    assert_eq!(
        script.results(producer),
        [
            (1, Err(Failure::Unknown(Cause::OtherInstallation))),
            (2, Err(Failure::NotStored(Cause::OtherInstallation))),
        ]
    );
    let new = control::ProducerOpened {
        producer: 7.into(),
        ..opened(200, 1)
    };
    // Taken before the new broker knows the producer: it bears the old one's stamps,
    // which the new one would not take.
    let sequence = script.send(producer, b"new").unwrap();
    assert_eq!(sequence, Sequence(3));
    script.say(request, &new, &[]);
    let said = script.said();
    assert_eq!(stamps(&said), [(1, 1, 200, false)]);
    assert_eq!(messages(&said)[0].producer.get(), 7);
    let id = script.client.message_id(producer, sequence).unwrap();
    assert_eq!(
        (id.installation, id.producer),
        (Installation(0xbeef), ProducerId(7))
    );
    script.complete(200, &[run(3, 1, 0)]);
    assert_eq!(script.results(producer), [(3, Ok(0))]);
}

/// A message in memory was stored, its answer was lost with the broker, and sent again it
/// was there a second time for whoever had seen the first.
#[test]
fn another_run_is_not_sent_again_what_was_to_be_in_memory_only() {
    let mut script = patient();
    let in_memory = ProducerRequest {
        durability: Durability::Memory,
        ..ProducerRequest::new(queue("q"))
    };
    let producer = script.producer(in_memory, &opened(100, 1));
    let flushed = ProducerRequest {
        durability: Durability::Flushed,
        ..ProducerRequest::new(queue("other"))
    };
    let other = control::ProducerOpened {
        producer: 6.into(),
        ..opened(101, 1)
    };
    let other = script.producer(flushed, &other);
    for producer in [producer, other] {
        script.send(producer, b"1").unwrap();
        script.send(producer, b"2").unwrap();
    }
    script.said();
    script.lose();
    script.send(producer, b"waits").unwrap();
    let later = control::Welcome {
        run: 2.into(),
        ..welcome()
    };
    let said = script.reconnect(&later);
    let unknown = Err(Failure::Unknown(Cause::Restarted));
    assert_eq!(script.results(producer), [(1, unknown), (2, unknown)]);
    assert_eq!(script.results(other), [], "those come again");
    let (request, _) = said[0].fields::<control::OpenProducer>();
    script.say(request, &again(200, 1), &[]);
    // Their partition sequences are used up: the broker may wait for them.
    assert_eq!(
        stamps(&script.said()),
        [(1, 1, 200, true), (2, 1, 200, true), (3, 1, 200, false)]
    );
    let given_up = [1, 2].map(|sequence| refused(sequence, Refusal::GivenUp));
    script.complete(200, &[given_up[0], given_up[1], run(3, 1, 0)]);
    assert_eq!(script.results(producer), [(3, Ok(0))]);
    let (request, _) = said[1].fields::<control::OpenProducer>();
    let known = control::ProducerOpened {
        producer: 6.into(),
        ..again(201, 1)
    };
    script.say(request, &known, &[]);
    assert_eq!(
        stamps(&script.said()),
        [(1, 1, 201, false), (2, 1, 201, false)]
    );
    assert_eq!(script.client.counters().late_completions, 0);
}

/// The first try had been stored, and then the producer was shut out: the refusal of the
/// second was passed on as if nothing were stored.
#[test]
fn a_send_that_is_refused_only_when_it_is_tried_again_is_unknown() {
    for refusal in [Refusal::Fenced, Refusal::NotFound] {
        let mut script = patient();
        let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
        script.send(producer, b"left").unwrap();
        script.said();
        script.lose();
        script.send(producer, b"new").unwrap();
        let said = script.reconnect(&welcome());
        let (request, _) = said[0].fields::<control::OpenProducer>();
        script.say(request, &again(200, 1), &[]);
        assert_eq!(messages(&script.said()).len(), 2);
        let refused = |sequence| CompletionRun {
            refusal: refusal.code().into(),
            ..run(sequence, 1, 0)
        };
        script.complete(200, &[refused(1), refused(2)]);
        assert_eq!(
            script.results(producer),
            [
                (1, Err(Failure::Unknown(Cause::Fenced))),
                (2, Err(Failure::Refused(refusal))),
            ]
        );
    }
}

#[test]
fn a_producer_that_is_fenced_is_closed_and_the_others_go_on() {
    let mut script = patient();
    let lost = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    let kept = script.producer(
        ProducerRequest::new(queue("p")),
        &control::ProducerOpened {
            producer: 43.into(),
            ..opened(101, 1)
        },
    );
    script.send(lost, b"1").unwrap();
    script.send(kept, b"1").unwrap();
    script.said();
    script.lose();
    let said = script.reconnect(&welcome());
    for said in said {
        let (request, open) = said.fields::<control::OpenProducer>();
        if open.producer.get() == 42 {
            let refused = control::Refused {
                refusal: Refusal::Fenced.code().into(),
                ..control::Refused::default()
            };
            script.say(request, &refused, &[]);
        } else {
            let opened = control::ProducerOpened {
                producer: 43.into(),
                ..again(201, 1)
            };
            script.say(request, &opened, &[]);
        }
    }
    assert_eq!(stamps(&script.said()), [(1, 1, 201, false)]);
    assert_eq!(
        script.results(lost),
        [(1, Err(Failure::Unknown(Cause::Fenced)))]
    );
    assert_eq!(script.send(lost, b"2"), Err(SendError::Closed));
    let lost_ones = script
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::ProducerLost { producer, .. } if *producer == lost))
        .count();
    assert_eq!(lost_ones, 1);
}

#[test]
fn what_is_refused_for_now_is_tried_again_before_what_came_later() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    for body in [b"1", b"2", b"3"] {
        script.send(producer, body).unwrap();
    }
    script.said();
    script.complete(100, &[run(1, 1, 0), refused(2, Refusal::OutOfMemory)]);
    script.send(producer, b"4").unwrap();
    assert!(
        script.said().is_empty(),
        "nothing leaves before all is answered"
    );
    script.complete(100, &[refused(3, Refusal::OutOfOrder)]);
    assert_eq!(script.results(producer), [(1, Ok(0))]);

    // A pause, then all of it in its first order.
    assert_eq!(script.client.next_deadline(), Monotonic(0));
    script.client.expire(script.now.monotonic);
    assert!(script.said().is_empty());
    let until = script.client.next_deadline();
    assert_eq!(until, script.now.monotonic.after(Duration::from_millis(1)));
    script.client.expire(until);
    assert_eq!(
        stamps(&script.said()),
        [(2, 1, 100, false), (3, 1, 100, false), (4, 1, 100, false)]
    );
    script.complete(100, &[run(2, 3, 1)]);
    assert_eq!(
        script.results(producer),
        [(2, Ok(1)), (3, Ok(2)), (4, Ok(3))]
    );
}

#[test]
fn what_is_refused_for_now_past_its_deadline_is_not_stored_and_its_turn_given_up() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    script.send_by(producer, b"1", Route::Turn, 1).unwrap();
    script.send_by(producer, b"2", Route::Turn, 9).unwrap();
    script.said();
    let out_of_memory = refused(1, Refusal::OutOfMemory);
    script.complete(100, &[out_of_memory, refused(2, Refusal::OutOfOrder)]);
    script.advance(0);
    script.advance(2);
    script.advance(0);
    assert_eq!(
        stamps(&script.said()),
        [(1, 1, 100, true), (2, 1, 100, false)]
    );
    script.complete(100, &[refused(1, Refusal::GivenUp), run(2, 1, 0)]);
    assert_eq!(
        script.results(producer),
        [
            (1, Err(Failure::NotStored(Cause::DeadlinePassed))),
            (2, Ok(0))
        ]
    );
}

#[test]
fn what_is_refused_for_want_of_room_fails_within_a_second_and_its_turn_is_given_up() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    script.send_by(producer, b"1", Route::Turn, 60_000).unwrap();
    script.send_by(producer, b"2", Route::Turn, 60_000).unwrap();
    let begun = script.now.monotonic;
    let (mut tries, mut said) = (0, stamps(&script.said()));
    while said.first().is_none_or(|first| !first.3) {
        if !said.is_empty() {
            tries += 1;
            let refusals = [Refusal::StoreFull, Refusal::OutOfOrder];
            let [first, second] = refusals;
            script.complete(100, &[refused(1, first), refused(2, second)]);
        }
        let due = script.client.next_deadline().max(script.now.monotonic);
        script.now.monotonic = due;
        script.client.expire(due);
        said = stamps(&script.said());
        assert!(tries < 50, "it is tried for ever");
    }
    assert!(tries > 3, "a file may be there soon");
    assert!(script.now.monotonic < begun.after(Duration::from_secs(1)));
    let failed = Err(Failure::NotStored(Cause::StoreFull));
    assert_eq!(script.results(producer), [(1, failed), (2, failed)]);
    assert_eq!(said, [(1, 1, 100, true), (2, 1, 100, true)]);
    let given_up = Refusal::GivenUp;
    script.complete(100, &[refused(1, given_up), refused(2, given_up)]);
    // What comes later has its own time, and succeeds if there is room by then.
    script.send_by(producer, b"3", Route::Turn, 60_000).unwrap();
    assert_eq!(stamps(&script.said()), [(3, 1, 100, false)]);
    script.complete(100, &[refused(3, Refusal::StoreFull)]);
    for _ in 0..2 {
        let due = script.client.next_deadline().max(script.now.monotonic);
        script.now.monotonic = due;
        script.client.expire(due);
    }
    assert_eq!(stamps(&script.said()), [(3, 1, 100, false)]);
    script.complete(100, &[run(3, 1, 0)]);
    assert_eq!(script.results(producer), [(3, Ok(0))]);
}

#[test]
fn a_connection_lost_while_something_is_refused_for_now_keeps_the_order() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    for body in [b"1", b"2", b"3"] {
        script.send(producer, body).unwrap();
    }
    script.said();
    script.complete(100, &[refused(1, Refusal::OutOfMemory)]);
    script.lose();
    script.send(producer, b"4").unwrap();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenProducer>();
    script.say(request, &again(200, 1), &[]);
    script.advance(0);
    script.advance(1);
    assert_eq!(
        stamps(&script.said()),
        [
            (1, 1, 200, false),
            (2, 1, 200, false),
            (3, 1, 200, false),
            (4, 1, 200, false)
        ]
    );
}

#[test]
fn a_consumer_opens_again_and_is_not_handed_what_it_settled_before() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.deliver(300, 0, 0, &[b"a", b"b", b"c"]);
    let position = script.client.poll_message(consumer).unwrap().position();
    script.client.acknowledge(consumer, position).unwrap();
    let token = script.client.confirm(consumer).unwrap().unwrap();
    assert_eq!(script.client.poll_message(consumer).unwrap().body(), b"b");
    script.lose();
    // The message handed out last stays readable, the prefetch is gone.
    assert!(!script.client.has_message(consumer));
    assert_eq!(script.client.confirm(consumer), Err(AckError::Disconnected));
    let lost = Event::Acknowledged {
        consumer,
        confirm: token,
        refusal: Some(Refusal::NotOpen.code()),
    };
    assert!(script.events().contains(&lost));

    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 1.into(),
    };
    script.say(request, &fields, &[&3u64.to_le_bytes()]);
    for (offset, body) in [b"a", b"b", b"c"].into_iter().enumerate() {
        let delivery = control::Delivery {
            count: 1.into(),
            offset: (offset as u64).into(),
            delivery_count: 2.into(),
            ..control::Delivery::default()
        };
        script.say(301, &delivery, &[]);
        let frame = message_frame(0, offset as u64, body);
        script.client.received(&frame);
    }
    let handed: Vec<Vec<u8>> = core::iter::from_fn(|| {
        let message = script.client.poll_message(consumer)?;
        Some(message.body().to_vec())
    })
    .collect();
    assert_eq!(handed, [b"b", b"c"]);
    let said = script.said();
    let (handle, ack) = said[0].fields::<control::Acknowledge>();
    assert_eq!((handle, ack.runs.get()), (301, 1), "it is settled again");
}

/// The destination had been deleted meanwhile, and made again with another shape: that
/// was taken for a broken protocol.
#[test]
fn a_consumer_of_a_destination_that_was_made_anew_begins_anew() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.deliver(300, 0, 0, &[b"old"]);
    let position = script.client.poll_message(consumer).unwrap().position();
    script.client.acknowledge(consumer, position).unwrap();
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 2.into(),
    };
    let starts = [0u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
    script.say(request, &fields, &[&starts]);
    script.deliver(301, 0, 0, &[b"new"]);
    assert_eq!(script.client.poll_message(consumer).unwrap().body(), b"new");
}

/// An answer behind nothing but messages that the application had settled before said
/// that there was nothing, though credit had ended with them.
#[test]
fn a_question_is_asked_again_if_all_that_came_was_settled_on_an_earlier_connection() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.deliver(300, 0, 0, &[b"a"]);
    let position = script.client.poll_message(consumer).unwrap().position();
    script.client.acknowledge(consumer, position).unwrap();
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 1.into(),
    };
    script.say(request, &fields, &[&0u64.to_le_bytes()]);
    let polled = |token: u32| control::Polled {
        token: token.into(),
        ..control::Polled::default()
    };
    let token = script.client.ask_for_messages(consumer).unwrap();
    script.deliver_again(301, 0, b"a");
    script.say(301, &polled(token), &[]);
    assert!(!script.client.has_message(consumer));
    let state = script.client.poll_state(consumer, token);
    assert_eq!(state, PollState::Lost);
    let token = script.client.ask_for_messages(consumer).unwrap();
    script.say(301, &polled(token), &[]);
    let state = script.client.poll_state(consumer, token);
    assert_eq!(state, PollState::Answered);
}

/// Who waits for a message to be handed out never asked, and so the broker waited for
/// room that was there.
#[test]
fn what_is_settled_again_makes_room_though_nobody_asks_for_a_message() {
    let mut script = patient();
    let request = ConsumerRequest {
        messages_max: 1,
        ..ConsumerRequest::new(queue("q"))
    };
    let consumer = script.consumer(request, 300, 1);
    script.deliver(300, 0, 0, &[b"a"]);
    let position = script.client.poll_message(consumer).unwrap().position();
    script.client.acknowledge(consumer, position).unwrap();
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 1.into(),
    };
    script.say(request, &fields, &[&1u64.to_le_bytes()]);
    script.deliver_again(301, 0, b"a");
    assert!(!script.client.has_message(consumer));
    assert!(script.client.has_pieces());
    let said = script.said();
    let kinds: Vec<Kind> = said.iter().map(Said::kind).collect();
    assert_eq!(kinds, [Kind::Acknowledge, Kind::Allow]);
    let (_, allow) = said[1].fields::<control::Allow>();
    assert_eq!((allow.messages.get(), allow.handed.get()), (2, 1));
}

/// A broker that was killed knows neither that messages were delivered nor that they were
/// settled. The first one that came as if it were fresh had all behind it handed out again.
#[test]
fn what_was_settled_is_not_handed_out_by_a_run_that_counts_anew() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.deliver(300, 0, 0, &[b"a", b"b", b"c"]);
    for settles in [false, true, true] {
        let position = script.client.poll_message(consumer).unwrap().position();
        if settles {
            script.client.acknowledge(consumer, position).unwrap();
        }
    }
    script.lose();
    script.attach_again(301, &[0]);
    script.deliver(301, 0, 0, &[b"a", b"b", b"c", b"d"]);
    let mut offsets = Vec::new();
    while let Some(message) = script.client.poll_message(consumer) {
        offsets.push(message.position().offset.0);
    }
    assert_eq!(offsets, [0, 3]);
}

/// What was settled again took the room of what was still to come.
#[test]
fn many_that_were_settled_one_by_one_are_all_settled_again() {
    const MANY: u64 = 800;
    let mut script = patient();
    let request = ConsumerRequest {
        messages_max: 1000,
        ..ConsumerRequest::new(queue("q"))
    };
    let consumer = script.consumer(request, 300, 1);
    script.deliver(
        300,
        0,
        0,
        &vec![b"x".as_slice(); usize::try_from(MANY).unwrap()],
    );
    for offset in 0..MANY {
        assert!(script.client.poll_message(consumer).is_some());
        if offset % 2 == 0 {
            let position = Position {
                partition: PartitionIndex(0),
                offset: Offset(offset),
            };
            script.client.acknowledge(consumer, position).unwrap();
        }
    }
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 1.into(),
    };
    script.say(request, &fields, &[&MANY.to_le_bytes()]);
    for offset in 0..MANY {
        script.deliver_again(301, offset, b"x");
    }
    let handed: Vec<u64> = core::iter::from_fn(|| {
        let message = script.client.poll_message(consumer)?;
        Some(message.position().offset.0)
    })
    .collect();
    assert_eq!(
        handed,
        (0..MANY)
            .filter(|offset| offset % 2 == 1)
            .collect::<Vec<_>>()
    );
}

/// The runs of offsets that were acknowledged, and the token that asks for a
/// confirmation.
fn acknowledged(said: &[Said]) -> Vec<(Vec<(u64, u64)>, u32)> {
    let acks = said.iter().filter(|said| said.kind() == Kind::Acknowledge);
    acks.map(|said| {
        let (_, fields) = said.fields::<control::Acknowledge>();
        let Said::Control(_, _, rest) = said else {
            panic!()
        };
        let runs = &rest[16..16 + 16 * fields.runs.get() as usize];
        let runs = <[control::AckRun]>::ref_from_bytes(runs).unwrap();
        let runs = runs.iter().map(|run| (run.first.get(), run.count.get()));
        (runs.collect(), fields.confirm.get())
    })
    .collect()
}

/// The options of the acknowledgements.
fn options(said: &[Said]) -> Vec<u32> {
    let acks = said.iter().filter(|said| said.kind() == Kind::Acknowledge);
    acks.map(|said| said.fields::<control::Acknowledge>().1.options.get())
        .collect()
}

/// What was told and not confirmed was taken for settled when a confirmation was asked
/// for, though the connection had been lost with it.
#[test]
fn what_was_told_on_a_connection_that_was_lost_is_confirmed_on_the_next() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 2);
    script.deliver(300, 1, 0, &[b"a", b"b", b"c"]);
    while let Some(message) = script.client.poll_message(consumer) {
        let position = message.position();
        script.client.acknowledge(consumer, position).unwrap();
    }
    assert_eq!(acknowledged(&script.said()), [(vec![(0, 3)], 0)]);
    // A confirmation of what was told already is one of the last of it.
    let token = script.client.confirm(consumer).unwrap().unwrap();
    assert_eq!(acknowledged(&script.said()), [(vec![(0, 3)], token)]);
    script.lose();
    script.events();

    let said = script.reconnect(&welcome());
    assert!(!script.client.is_consumer_attached(consumer));
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 2.into(),
    };
    let starts = [0u64.to_le_bytes(), 3u64.to_le_bytes()].concat();
    script.say(request, &fields, &[&starts]);
    assert!(script.client.is_consumer_in_doubt(consumer));
    let token = script.client.confirm(consumer).unwrap().unwrap();
    let said = script.said();
    assert_eq!(acknowledged(&said), [(vec![(0, 3)], token)]);
    assert_eq!(
        options(&said),
        [2],
        "also where it waits to be delivered again"
    );
    // Nothing is named once more while its confirmation is on its way: whoever
    // asks often would fill the connection with it.
    assert_eq!(script.client.confirm(consumer), Ok(Some(token)));
    assert_eq!(acknowledged(&script.said()), []);
    script.confirm(301, token, None);
    assert!(!script.client.is_consumer_in_doubt(consumer));
    assert_eq!(script.client.confirm(consumer), Ok(None));
}

/// Receivers waited in confirm for what others had been handed by then, who waited in
/// confirm for theirs, and none received anything.
#[test]
fn what_another_consumer_has_by_now_is_refused_once_and_not_waited_for() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.deliver(300, 0, 0, &[b"a", b"b"]);
    let position = script.client.poll_message(consumer).unwrap().position();
    script.client.acknowledge(consumer, position).unwrap();
    script.lose();
    script.attach_again(301, &[2]);
    let token = script.client.confirm(consumer).unwrap().unwrap();
    script.said();
    script.confirm(301, token, Some(Refusal::InvalidAck));
    assert!(!script.client.is_consumer_in_doubt(consumer));
    assert_eq!(script.client.confirm(consumer), Ok(None));
    // What it settles from there on is confirmed for itself.
    script.deliver(301, 0, 2, &[b"c"]);
    let position = script.client.poll_message(consumer).unwrap().position();
    script.client.acknowledge(consumer, position).unwrap();
    let token = script.client.confirm(consumer).unwrap().unwrap();
    let said = script.said();
    assert_eq!(acknowledged(&said), [(vec![(2, 1)], token)]);
    assert_eq!(options(&said), [0]);
    // Lost once more all of it is in doubt once more.
    script.client.link = 41;
    script.lose();
    script.attach_again(302, &[3]);
    assert!(script.client.is_consumer_in_doubt(consumer));
}

/// It waited in confirm for messages to come again that had no room behind others that
/// only the application could have taken.
#[test]
fn nothing_is_in_doubt_where_the_subscription_ended_with_the_connection() {
    let mut script = patient();
    let topic = ConsumerRequest::new(Destination::parse("topic:t").unwrap());
    let consumer = script.consumer(topic, 300, 1);
    script.deliver(300, 0, 0, &[b"a", b"b", b"c", b"d"]);
    let mut positions = Vec::new();
    while let Some(message) = script.client.poll_message(consumer) {
        positions.push(message.position());
    }
    let through = script.client.acknowledge_through(consumer, positions[0]);
    through.unwrap();
    script.client.acknowledge(consumer, positions[2]).unwrap();
    script.lose();
    script.attach_again(301, &[1]);
    assert!(!script.client.is_consumer_in_doubt(consumer));
    assert_eq!(script.client.confirm(consumer), Ok(None));
    // And none of it comes again.
    script.deliver(301, 0, 0, &[b"a", b"b", b"c", b"d"]);
    let mut offsets = Vec::new();
    while let Some(message) = script.client.poll_message(consumer) {
        offsets.push(message.position().offset.0);
    }
    assert_eq!(offsets, [1, 3]);
}

/// What had come again and waited to be settled again gave way to what was named.
#[test]
fn what_is_named_again_joins_what_waits_to_be_settled_again() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 2);
    script.deliver(300, 0, 0, &[b"a", b"b", b"c", b"d"]);
    let mut positions = Vec::new();
    while let Some(message) = script.client.poll_message(consumer) {
        positions.push(message.position());
    }
    script.client.acknowledge(consumer, positions[0]).unwrap();
    script.client.acknowledge(consumer, positions[3]).unwrap();
    script.lose();
    script.attach_again(301, &[4, 0]);
    script.deliver_again(301, 0, b"a");
    let token = script.client.confirm(consumer).unwrap().unwrap();
    let acknowledged = acknowledged(&script.said());
    assert_eq!(acknowledged, [(vec![(0, 1), (3, 1)], token)]);
}

#[test]
fn what_was_settled_through_a_message_is_said_once_not_to_be_known() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.deliver(300, 0, 0, &[b"a", b"b"]);
    script.client.poll_message(consumer).unwrap();
    let position = script.client.poll_message(consumer).unwrap().position();
    script
        .client
        .acknowledge_through(consumer, position)
        .unwrap();
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 1.into(),
    };
    script.say(request, &fields, &[&2u64.to_le_bytes()]);
    assert_eq!(script.client.confirm(consumer), Err(AckError::Disconnected));
    assert_eq!(script.client.confirm(consumer), Ok(None));
}

#[test]
fn a_subscription_that_ended_with_its_connection_goes_on_where_it_was() {
    let mut script = patient();
    let request = ConsumerRequest::new(Destination::parse("topic:t").unwrap());
    let consumer = script.consumer(request, 300, 1);
    script.deliver(300, 0, 0, &[b"a", b"b", b"c"]);
    for _ in 0..2 {
        let position = script.client.poll_message(consumer).unwrap().position();
        script.client.acknowledge(consumer, position).unwrap();
    }
    script.lose();
    let said = script.reconnect(&welcome());
    let (_, open) = said[0].fields::<control::OpenConsumer>();
    assert_eq!((open.start, open.offset.get()), (2, 2));
}

/// A message that was given back was skipped on the next connection, because a later
/// one had been settled with all before it.
#[test]
fn what_was_given_back_comes_again_though_what_is_behind_it_was_settled_through() {
    for comes_again in [false, true] {
        let mut script = patient();
        let request = ConsumerRequest::new(Destination::parse("topic:t").unwrap());
        let consumer = script.consumer(request, 300, 1);
        script.deliver(300, 0, 0, &[b"a", b"b", b"c"]);
        let positions: Vec<Position> = core::iter::from_fn(|| {
            let message = script.client.poll_message(consumer)?;
            Some(message.position())
        })
        .collect();
        let client = &mut script.client;
        client.give_back(consumer, positions[0], 1, None).unwrap();
        client.acknowledge_through(consumer, positions[2]).unwrap();
        if comes_again {
            // Settled through the last message, but delivered behind it.
            script.deliver_again(300, 0, b"a");
            assert!(script.client.poll_message(consumer).is_some());
            let client = &mut script.client;
            client.acknowledge_through(consumer, positions[2]).unwrap();
        }
        script.lose();
        let said = script.reconnect(&welcome());
        let (request, open) = said[0].fields::<control::OpenConsumer>();
        assert_eq!((open.start, open.offset.get()), (2, 0));
        let fields = control::ConsumerOpened {
            handle: 301.into(),
            partitions: 1.into(),
        };
        script.say(request, &fields, &[&0u64.to_le_bytes()]);
        script.deliver(301, 0, 0, &[b"a", b"b", b"c", b"d"]);
        let handed: Vec<Vec<u8>> = core::iter::from_fn(|| {
            let message = script.client.poll_message(consumer)?;
            Some(message.body().to_vec())
        })
        .collect();
        assert_eq!(handed, [b"a", b"d"], "{comes_again}");
    }
}

#[test]
fn what_was_given_back_and_settled_then_is_not_asked_for_again() {
    for through in [false, true] {
        let mut script = patient();
        let request = ConsumerRequest::new(Destination::parse("topic:t").unwrap());
        let consumer = script.consumer(request, 300, 1);
        script.deliver(300, 0, 0, &[b"a", b"b"]);
        while script.client.poll_message(consumer).is_some() {}
        let at = |offset| Position {
            partition: PartitionIndex(0),
            offset: Offset(offset),
        };
        script.client.give_back(consumer, at(0), 1, None).unwrap();
        script.deliver_again(300, 0, b"a");
        script.deliver(300, 0, 2, &[b"c"]);
        while script.client.poll_message(consumer).is_some() {}
        if !through {
            script.client.acknowledge(consumer, at(0)).unwrap();
        }
        script.client.acknowledge_through(consumer, at(2)).unwrap();
        script.lose();
        let said = script.reconnect(&welcome());
        let (_, open) = said[0].fields::<control::OpenConsumer>();
        assert_eq!((open.start, open.offset.get()), (2, 3), "{through}");
    }
}

/// Settled in any order, most of it was forgotten, and all of it delivered again.
#[test]
fn a_subscription_goes_on_where_it_was_in_whatever_order_all_before_was_settled() {
    let mut script = patient();
    let request = ConsumerRequest {
        messages_max: 4000,
        ..ConsumerRequest::new(Destination::parse("topic:t").unwrap())
    };
    let consumer = script.consumer(request, 300, 1);
    script.deliver(300, 0, 0, &vec![b"x".as_slice(); 4000]);
    while script.client.poll_message(consumer).is_some() {}
    for pair in (0..4000).step_by(2) {
        for offset in [pair + 1, pair] {
            let position = Position {
                partition: PartitionIndex(0),
                offset: Offset(offset),
            };
            script.client.acknowledge(consumer, position).unwrap();
            script.said();
        }
    }
    script.lose();
    let said = script.reconnect(&welcome());
    let (_, open) = said[0].fields::<control::OpenConsumer>();
    assert_eq!((open.start, open.offset.get()), (2, 4000));
}

#[test]
fn a_prefetch_of_an_earlier_connection_counts_no_more() {
    let mut script = patient();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.deliver(300, 0, 0, &[b"a", b"b"]);
    let mut prefetch = Prefetch::default();
    script.client.exchange(consumer, &mut prefetch);
    assert_eq!(
        prefetch.generation(),
        script.client.consumer_generation(consumer)
    );
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenConsumer>();
    let fields = control::ConsumerOpened {
        handle: 301.into(),
        partitions: 1.into(),
    };
    script.say(request, &fields, &[&0u64.to_le_bytes()]);
    assert_ne!(
        prefetch.generation(),
        script.client.consumer_generation(consumer)
    );
    while prefetch.next_message().is_some() {}
    script.client.exchange(consumer, &mut prefetch);
    script.client.close_consumer(consumer).unwrap();
    let said = script.said();
    assert!(
        said.iter().all(|said| said.kind() != Kind::Allow),
        "nothing was handed out on this connection: {said:?}"
    );
}

#[test]
fn requests_without_an_answer_are_asked_again_and_closings_are_over() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 300, 1);
    script.client.close_producer(producer).unwrap();
    script.client.close_consumer(consumer).unwrap();
    let ping = script.client.ping(second(1)).unwrap();
    script.lose();
    let events = script.events();
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::ProducerClosed { .. }))
    );
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::ConsumerClosed { .. }))
    );
    let said = script.reconnect(&welcome());
    let kinds: Vec<Kind> = said.iter().map(Said::kind).collect();
    assert_eq!(kinds, [Kind::Ping], "what was closed is not opened again");
    assert_eq!(said[0].fields::<control::Ping>().0, ping.0);
}

#[test]
fn another_connection_is_tried_with_growing_pauses_and_given_up_in_the_end() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    script.send_by(producer, b"1", Route::Turn, 100).unwrap();
    script.lose();
    let mut pauses = Vec::new();
    let began = script.now.monotonic;
    while let Some(at) = script.client.wants_connection() {
        script.now.monotonic = at.max(script.now.monotonic);
        if at > script.client.next_deadline() {
            script.now.monotonic = script.client.next_deadline();
            script.client.expire(script.now.monotonic);
            continue;
        }
        script.client.dial_failed(script.now.monotonic);
        if let Some(next) = script.client.wants_connection() {
            pauses.push(next.since(script.now.monotonic).as_millis());
        }
        assert!(pauses.len() < 1000, "it ends");
    }
    assert_eq!(pauses[..9], [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    assert!(script.now.monotonic >= began.after(PATIENCE));
    assert_eq!(script.client.end(), Some(&LinkEnd::Lost));
    assert_eq!(
        script.results(producer),
        [(1, Err(Failure::Unknown(Cause::LinkEnded)))]
    );
}

#[test]
fn a_broker_that_stops_is_waited_for_and_one_that_throws_out_is_not() {
    for (refusal, waits) in [(Refusal::Stopping, true), (Refusal::Malformed, false)] {
        let mut script = patient();
        let farewell = control::Farewell {
            refusal: refusal.code().into(),
            version_min: VERSION,
            version_max: VERSION,
            ..control::Farewell::default()
        };
        script.say(0, &farewell, &[]);
        assert_eq!(script.client.wants_connection().is_some(), waits);
        assert_eq!(script.client.end().is_none(), waits);
        // If nobody answers in its place, what it said is still why.
        script.client.closed();
        script.client.dial_failed(script.now.monotonic);
        script.now.monotonic = script.now.monotonic.after(PATIENCE);
        script.client.expire(script.now.monotonic);
        for why in [script.client.end(), script.client.lost()] {
            assert!(
                matches!(why, Some(LinkEnd::Farewell { refusal: Some(it), .. }) if *it == refusal),
                "{why:?}"
            );
        }
    }
}

#[test]
fn why_a_connection_was_lost_is_known_until_there_is_another() {
    let mut script = patient();
    assert_eq!(script.client.lost(), None);
    script.lose();
    assert_eq!(script.client.lost(), Some(&LinkEnd::Lost));
    script.reconnect(&welcome());
    assert_eq!(script.client.lost(), None);
}

#[test]
fn a_first_connection_that_fails_is_the_end() {
    let mut script = Script::new();
    script.client.config.reconnect_for = PATIENCE;
    script.client.closed();
    assert_eq!(script.client.end(), Some(&LinkEnd::Lost));
}

/// The broker's storage has failed: it attaches nobody. The producer is not lost, for a run
/// that comes after that one has its sends, or has not, and can say so.
#[test]
fn a_producer_waits_for_the_next_run_if_this_one_cannot_attach_it() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    script.send(producer, b"1").unwrap();
    script.said();
    script.lose();
    let attach = |script: &mut Script| {
        let said = script.reconnect(&welcome());
        let (request, open) = said[0].fields::<control::OpenProducer>();
        assert_eq!(open.producer.get(), 42);
        request
    };
    let request = attach(&mut script);
    script.say(request, &storage_failed(), &[]);
    assert_eq!(script.results(producer), []);
    script.send(producer, b"2").unwrap();
    assert!(script.said().is_empty(), "nobody is there to hear it");
    let lost = |event: &Event| matches!(event, Event::ProducerLost { .. });
    assert!(!script.events().iter().any(lost));

    script.client.link = 41;
    script.lose();
    let request = attach(&mut script);
    script.say(request, &again(200, 1), &[]);
    let stamps = stamps(&script.said());
    assert_eq!(stamps, [(1, 1, 200, false), (2, 1, 200, false)]);
    script.complete(200, &[run(1, 2, 0)]);
    assert_eq!(script.results(producer), [(1, Ok(0)), (2, Ok(1))]);
}

#[test]
fn sends_that_wait_for_the_next_run_fail_in_their_time_and_are_told_why() {
    let mut script = patient();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(100, 1));
    script.send(producer, b"1").unwrap();
    script.said();
    script.lose();
    let said = script.reconnect(&welcome());
    let (request, _) = said[0].fields::<control::OpenProducer>();
    script.say(request, &storage_failed(), &[]);
    script.send(producer, b"2").unwrap();
    let closing = script.client.close_producer(producer).unwrap();
    let is_closed = |event: &Event| matches!(event, Event::ProducerClosed { request, .. } if *request == closing);
    assert!(
        !script.events().iter().any(is_closed),
        "its sends have their time"
    );
    script
        .client
        .expire(script.now.monotonic.after(Duration::from_secs(4)));
    let cause = Cause::StorageFailed;
    assert_eq!(
        script.results(producer),
        [
            (1, Err(Failure::Unknown(cause))),
            (2, Err(Failure::NotStored(cause)))
        ]
    );
    assert!(script.events().iter().any(is_closed));
}

fn storage_failed() -> control::Refused {
    control::Refused {
        refusal: Refusal::StorageFailed.code().into(),
        ..control::Refused::default()
    }
}
