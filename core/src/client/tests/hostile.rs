//! A broker that breaks the protocol: a named error, no panic, bounded memory.

use proptest::prelude::*;

use super::*;

fn fault(story: impl FnOnce(&mut Script)) -> ProtocolFault {
    let mut script = Script::open();
    script.producer(ProducerRequest::new(queue("q")), &opened(5, 2));
    script.consumer(
        ConsumerRequest {
            messages_max: 2,
            bytes_max: 300,
            ..ConsumerRequest::new(queue("q"))
        },
        9,
        2,
    );
    script.said();
    story(&mut script);
    match script.client.end() {
        Some(LinkEnd::Fault(fault)) => *fault,
        other => panic!("{other:?}"),
    }
}

fn producer_of(script: &Script) -> ProducerKey {
    ProducerKey(script.client.producers.iter().next().unwrap().0)
}

#[test]
fn completions_that_do_not_fit_the_sends_end_the_link() {
    assert_eq!(
        fault(|script| script.complete(5, &[run(1, 1, 0)])),
        ProtocolFault::NothingToComplete {
            sequence: Sequence(1)
        }
    );
    // A send that has left only in part.
    assert_eq!(
        fault(|script| {
            let producer = producer_of(script);
            script.send(producer, b"abc").unwrap();
            script.client.pieces();
            script.client.sent(50);
            script.complete(5, &[run(1, 1, 0)]);
        }),
        ProtocolFault::NothingToComplete {
            sequence: Sequence(1)
        }
    );
    let after_two = |runs: Vec<CompletionRun>| {
        fault(move |script| {
            let producer = producer_of(script);
            script.send(producer, b"a").unwrap();
            script.send(producer, b"b").unwrap();
            script.said();
            script.complete(5, &runs);
        })
    };
    assert_eq!(
        after_two(vec![run(2, 1, 0)]),
        ProtocolFault::CompletionOutOfOrder {
            sequence: Sequence(2),
            expected: Sequence(1)
        }
    );
    assert_eq!(after_two(vec![run(1, 0, 0)]), ProtocolFault::EmptyRun);
    // The second send went to the other partition.
    assert_eq!(
        after_two(vec![run(1, 2, 0)]),
        ProtocolFault::CompletionElsewhere {
            sequence: Sequence(2)
        }
    );
    assert_eq!(
        after_two(vec![run(1, 1, 0), run(1, 1, 0)]),
        ProtocolFault::CompletionOutOfOrder {
            sequence: Sequence(1),
            expected: Sequence(2)
        }
    );
}

#[test]
fn deliveries_beyond_the_grant_or_beside_their_announcement_end_the_link() {
    let exceeded = ProtocolFault::CreditExceeded { handle: Handle(9) };
    assert_eq!(
        fault(|script| script.deliver(9, 0, 0, &[b"a", b"b", b"c"])),
        exceeded
    );
    // The last message may reach beyond the bytes, the next one may not begin.
    assert_eq!(
        fault(|script| {
            script.deliver(9, 0, 0, &[&[0; 300]]);
            assert_eq!(script.client.end(), None);
            script.deliver(9, 0, 1, &[b""]);
        }),
        exceeded
    );
    assert!(matches!(
        fault(|script| script.deliver(9, 2, 0, &[b"a"])),
        ProtocolFault::NoSuchPartition { .. }
    ));
    assert_eq!(
        fault(|script| script.deliver(8, 0, 0, &[b"a"])),
        ProtocolFault::UnknownHandle {
            handle: Handle(8),
            kind: Kind::Delivery
        }
    );
    let announce = |script: &mut Script, count: u32, delivery_count: u32| {
        let delivery = control::Delivery {
            count: count.into(),
            offset: 7.into(),
            delivery_count: delivery_count.into(),
            ..control::Delivery::default()
        };
        script.say(9, &delivery, &[]);
    };
    assert_eq!(
        fault(|script| announce(script, 0, 1)),
        ProtocolFault::EmptyRun
    );
    assert!(matches!(
        fault(|script| announce(script, 2, 2)),
        ProtocolFault::OutOfRange { .. }
    ));
    for (partition, offset) in [(1, 7), (0, 6), (0, 8)] {
        let frame = message_frame(partition, offset, b"");
        assert!(matches!(
            fault(|script| {
                announce(script, 1, 1);
                script.client.received(&frame);
            }),
            ProtocolFault::DeliveredElsewhere { .. }
        ));
    }
    assert_eq!(
        fault(|script| script.deliver(9, 0, Offset::MAX.0 + 1, &[b"a"])),
        ProtocolFault::DeliveredElsewhere {
            partition: PartitionIndex(0),
            expected: Offset(Offset::MAX.0 + 1),
            offset: Offset(Offset::MAX.0 + 1),
        }
    );
    assert_eq!(
        fault(|script| script.client.received(&message_frame(0, 0, b""))),
        ProtocolFault::Unexpected {
            kind: Kind::Message
        }
    );
    assert_eq!(
        fault(|script| {
            announce(script, 1, 1);
            script.complete(5, &[]);
        }),
        ProtocolFault::Unexpected {
            kind: Kind::Completions
        }
    );
}

#[test]
fn a_subscription_that_starts_where_no_partition_can_come_to_ends_the_link() {
    let start = Offset::MAX.0 + 1;
    let fault = fault(|script| {
        let request = ConsumerRequest::new(queue("q"));
        script.client.open_consumer(request).unwrap();
        let said = script.said();
        let (request, _) = said[0].fields::<control::OpenConsumer>();
        let fields = control::ConsumerOpened {
            handle: 10.into(),
            partitions: 1.into(),
        };
        script.say(request, &fields, &[&start.to_le_bytes()]);
    });
    assert_eq!(
        fault,
        ProtocolFault::OutOfRange {
            kind: Kind::ConsumerOpened,
            field: "start",
            value: start
        }
    );
}

#[test]
fn a_message_whose_bytes_changed_on_the_way_ends_the_link() {
    let mut frame = message_frame(0, 0, b"precious");
    frame[115] ^= 1;
    assert!(matches!(
        fault(|script| {
            let delivery = control::Delivery {
                count: 1.into(),
                delivery_count: 1.into(),
                ..control::Delivery::default()
            };
            script.say(9, &delivery, &[]);
            script.client.received(&frame);
        }),
        ProtocolFault::Decode(decode::DecodeError::ChecksumMismatch { .. })
    ));
}

#[test]
fn answers_to_nothing_end_the_link() {
    assert_eq!(
        fault(|script| script.say(77, &control::Pong::default(), &[])),
        ProtocolFault::UnknownRequest {
            request: 77,
            kind: Kind::Pong
        }
    );
    assert!(matches!(
        fault(|script| {
            let request = script.client.ask_stats().unwrap();
            script.say(request.0, &control::Pong::default(), &[]);
        }),
        ProtocolFault::UnknownRequest { .. }
    ));
    assert_eq!(
        fault(|script| script.say(9, &control::Acknowledged::default(), &[])),
        ProtocolFault::UnaskedConfirmation { confirm: 0 }
    );
    // A producer that the client has not asked to be closed.
    assert!(matches!(
        fault(|script| {
            let producer = producer_of(script);
            script.send(producer, b"a").unwrap();
            let request = script.client.close_producer(producer).unwrap();
            let closed = control::Closed {
                handle: 5.into(),
                ..control::Closed::default()
            };
            script.say(request.0, &closed, &[]);
        }),
        ProtocolFault::UnknownRequest { .. }
    ));
    assert_eq!(
        fault(|script| {
            script
                .client
                .open_producer(ProducerRequest::new(queue("r")))
                .unwrap();
            let (request, _) = script.said()[0].fields::<control::Lookup>();
            script.say(request, &control::Located::default(), &[]);
            let (request, _) = script.said()[0].fields::<control::OpenProducer>();
            script.say(request, &opened(9, 1), &[]);
        }),
        ProtocolFault::HandleInUse { handle: Handle(9) }
    );
    for kind in [0, limits::PARTITIONS_MAX + 1] {
        assert!(matches!(
            fault(|script| {
                let request = script
                    .client
                    .open_consumer(ConsumerRequest::new(queue("r")))
                    .unwrap();
                let fields = control::ConsumerOpened {
                    handle: 11.into(),
                    partitions: kind.into(),
                };
                script.say(request.0, &fields, &[&vec![0; kind as usize * 8]]);
            }),
            ProtocolFault::OutOfRange { .. }
        ));
    }
}

#[test]
fn what_only_a_client_says_is_unexpected_before_and_after_the_hello() {
    let mut script = Script::new();
    script.said();
    script.say(0, &control::SessionOpened::default(), &[]);
    assert_eq!(
        script.client.end(),
        Some(&LinkEnd::Fault(ProtocolFault::Unexpected {
            kind: Kind::SessionOpened
        }))
    );
    assert_eq!(
        fault(|script| script.say(0, &control::Ping::default(), &[])),
        ProtocolFault::Unexpected { kind: Kind::Ping }
    );
    assert_eq!(
        fault(|script| script.say(0, &welcome(), &[])),
        ProtocolFault::Unexpected {
            kind: Kind::Welcome
        }
    );
    let mut script = Script::new();
    let future = control::Welcome {
        version: 2,
        ..welcome()
    };
    script.say(0, &future, &[]);
    assert_eq!(
        script.client.end(),
        Some(&LinkEnd::Fault(ProtocolFault::VersionNotOffered {
            version: 2
        }))
    );
}

#[test]
fn stats_that_never_end_are_cut_off() {
    assert!(matches!(
        fault(|script| {
            let request = script.client.ask_stats().unwrap();
            let fields = control::Stats {
                remaining: 1.into(),
                ..control::Stats::default()
            };
            script.say(request.0, &fields, &[]);
        }),
        ProtocolFault::OutOfRange { field: "rows", .. }
    ));
}

/// A stream in which a broker says a bit of everything.
fn good_stream() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut add = |subject: u32, control: &dyn Fn(u32, &mut [u8]) -> usize| {
        let mut bytes = vec![0; 4096];
        let size = control(subject, &mut bytes);
        bytes.truncate(size);
        frames.push(bytes);
    };
    add(5, &|subject, out| {
        let fields = control::Completions {
            runs: 1.into(),
            ..control::Completions::default()
        };
        encode::control(subject, &fields, &[run(1, 1, 0).as_bytes()], out)
    });
    add(5, &|subject, out| {
        encode::control(subject, &control::Credit::default(), &[], out)
    });
    add(9, &|subject, out| {
        let fields = control::Delivery {
            count: 1.into(),
            delivery_count: 1.into(),
            ..control::Delivery::default()
        };
        encode::control(subject, &fields, &[], out)
    });
    frames.push(message_frame(0, 0, b"body"));
    frames
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_in_any_split_end_in_an_error_or_in_nothing(
        flips in prop::collection::vec((0usize..1000, 0u8..8), 0..6),
        noise in prop::collection::vec(any::<u8>(), 0..64),
        cut in 1usize..200,
        fix in any::<bool>(),
    ) {
        let mut script = Script::open();
        let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 1));
        let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 1);
        script.send(producer, b"abc").unwrap();
        script.said();
        let mut stream = Vec::new();
        for mut frame in good_stream() {
            for (at, bit) in &flips {
                let index = at % frame.len();
                if at % 4 == frame.len() % 4 {
                    frame[index] ^= 1 << bit;
                }
            }
            if fix && frame[4] != Kind::Message as u8 {
                // Past the checksum, to the meaning.
                let checksum = crate::frame::checksum::control(&frame);
                frame[8..12].copy_from_slice(&checksum.to_le_bytes());
            }
            stream.extend_from_slice(&frame);
        }
        stream.extend_from_slice(&noise);
        for piece in stream.chunks(cut) {
            script.client.received(piece);
        }
        while script.client.poll_message(consumer).is_some() {}
        while script.client.poll_completion(producer).is_some() {}
        while script.client.poll_event().is_some() {}
        let size = script.client.pieces().size();
        script.client.sent(size);
        if script.client.end().is_some() {
            prop_assert!(script.client.wants_close() && script.client.pieces().is_empty());
        }
    }
}
