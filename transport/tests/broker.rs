//! The whole broker over loopback, on every transport that this machine has.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU16;

use courser_core::client::{Completion, Event, LinkEnd, Outgoing, ProducerKey, Route};
use courser_core::counters::Counter;
use courser_core::error::Refusal;
use courser_core::frame::control::Control;
use courser_core::frame::decode::{self, Frame, Step};
use courser_core::limits;
use courser_core::time::Monotonic;
use courser_transport::affinity::Cores;
use courser_transport::idle::IdleStrategy;
use courser_transport::{Broker, BrokerConfig, StartError, Transport};
use support::{DEADLINE, TestClient, brokers, config, eventually};

fn bodies(count: usize, size: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|index| {
            let mut body = index.to_le_bytes().to_vec();
            body.resize(size.max(8), 0xa5);
            body
        })
        .collect()
}

fn read(broker: &Broker, counter: Counter) -> u64 {
    broker.stats().map(|stats| stats.read(counter)).sum()
}

/// Everything a socket says until its end; a reset is an end that says less.
fn rest_of(socket: &mut TcpStream) -> Vec<u8> {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    bytes
}

fn farewell(bytes: &[u8]) -> Refusal {
    match decode::decode(bytes) {
        Ok(Step::Frame(
            Frame::Control {
                control: Control::Farewell(fields, _),
                ..
            },
            _,
        )) => Refusal::from_code(fields.refusal.get()).unwrap(),
        other => panic!("no farewell: {other:?}"),
    }
}

#[test]
fn what_is_sent_is_completed_in_order_and_delivered_once() {
    for broker in brokers() {
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/orders");
        let consumer = client.consumer("queue:/test/orders");
        let sent = bodies(3_000, 64);
        let completions = client.send_all(producer, &sent);
        for (index, completion) in completions.iter().enumerate() {
            assert_eq!(completion.sequence.0, index as u64 + 1);
            assert!(completion.result.is_ok(), "{completion:?}");
        }
        assert_eq!(client.receive(consumer, sent.len()), sent);
        drop(client);
        broker.stop();
    }
}

#[test]
fn large_messages_cross_in_pieces_of_any_size() {
    for broker in brokers() {
        let mut sender = TestClient::connect(broker.address());
        let producer = sender.producer("queue:/test/large");
        let sent: Vec<Vec<u8>> = [1 << 20, 10, 4 << 20, 100_000, 0, 65_536]
            .into_iter()
            .map(|size| bodies(1, size).remove(0))
            .collect();
        let receiver = {
            let (address, count) = (broker.address(), sent.len());
            std::thread::spawn(move || {
                let mut client = TestClient::connect(address);
                let consumer = client.consumer("queue:/test/large");
                client.receive(consumer, count)
            })
        };
        let completions = sender.send_all(producer, &sent);
        assert!(
            completions
                .iter()
                .all(|completion| completion.result.is_ok())
        );
        assert!(receiver.join().unwrap() == sent, "bodies differ");
        drop(sender);
        broker.stop();
    }
}

/// Sends so many messages, closes its direction, and only then listens.
fn send_and_finish(client: &mut TestClient, producer: ProducerKey, count: u64) -> Vec<Completion> {
    for _ in 0..count {
        let now = client.now();
        let message = Outgoing {
            properties: &[],
            body: &[7; 64],
            route: Route::Turn,
            durability: None,
            deadline: Monotonic::NEVER,
        };
        client.client.send(now, producer, &message).unwrap();
    }
    client.flush();
    client.socket.shutdown(Shutdown::Write).unwrap();
    let mut completions = Vec::new();
    client.event(|event| matches!(event, Event::Ended(_)).then_some(()));
    while let Some(completion) = client.client.poll_completion(producer) {
        completions.push(completion);
    }
    completions
}

/// A half-close was taken for a peer that vanished: what was sent before it stayed
/// without outcomes, and nobody knew what was stored.
#[test]
fn whoever_sends_no_more_still_learns_what_became_of_its_messages() {
    const MESSAGES: u64 = 60;
    for transport in [Transport::Auto, Transport::Epoll] {
        for idle in [IdleStrategy::Park, IdleStrategy::Spin] {
            let broker = Broker::start(BrokerConfig {
                idle,
                spin_regardless: true,
                ..config(transport)
            })
            .unwrap();
            let mut client = TestClient::connect(broker.address());
            let producer = client.producer("queue:/test/finished");
            if idle == IdleStrategy::Spin {
                read_until(&broker, Counter::DirectBegun, 1);
            }
            let completions = send_and_finish(&mut client, producer, MESSAGES);
            for (index, completion) in completions.iter().enumerate() {
                assert_eq!(completion.sequence.0, index as u64 + 1);
                assert!(completion.result.is_ok(), "{completion:?}");
            }
            assert_eq!(completions.len() as u64, MESSAGES, "{transport} {idle}");
            read_until(&broker, Counter::LinksClosed, 1);
            assert_eq!(read(&broker, Counter::LinksFaulted), 0);
            broker.stop();
        }
    }
}

#[test]
fn what_a_consumer_holds_that_sends_no_more_goes_to_another() {
    for broker in brokers() {
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/held");
        let sent = bodies(10, 64);
        client.send_all(producer, &sent);
        let mut holder = TestClient::connect(broker.address());
        let held = holder.consumer("queue:/test/held");
        let started = std::time::Instant::now();
        let mut messages = 0;
        while messages < sent.len() {
            while holder.client.poll_message(held).is_some() {
                messages += 1;
            }
            holder.turn();
            assert!(started.elapsed() < DEADLINE);
        }
        holder.socket.shutdown(Shutdown::Write).unwrap();
        let next = client.consumer("queue:/test/held");
        assert_eq!(client.receive(next, sent.len()), sent);
        drop((client, holder));
        broker.stop();
    }
}

#[test]
fn a_stop_says_goodbye_and_leaves_nobody_behind() {
    for broker in brokers() {
        let mut clients: Vec<TestClient> = (0..5)
            .map(|_| TestClient::connect(broker.address()))
            .collect();
        for client in &mut clients {
            client.producer("queue:/test/stopped");
        }
        // One more that has said nothing yet.
        let mut stranger = TcpStream::connect(broker.address()).unwrap();
        eventually("the stranger is accepted", || {
            broker.door_stats().accepted() == 6
        });
        let address = broker.address();
        let stopper = std::thread::spawn(move || broker.stop());
        for client in &mut clients {
            let end = client.event(|event| match event {
                Event::Ended(end) => Some(end),
                _ => None,
            });
            assert!(
                matches!(
                    end,
                    LinkEnd::Farewell {
                        refusal: Some(Refusal::Stopping),
                        ..
                    }
                ),
                "{end:?}"
            );
        }
        assert_eq!(farewell(&rest_of(&mut stranger)), Refusal::Stopping);
        drop(clients);
        stopper.join().unwrap();
        assert!(TcpStream::connect(address).is_err(), "nobody listens");
    }
}

#[test]
fn a_stop_does_not_wait_for_a_peer_that_never_reads() {
    for broker in brokers() {
        let mut deaf = TestClient::connect(broker.address());
        deaf.producer("queue:/test/deaf");
        let started = std::time::Instant::now();
        broker.stop();
        assert!(started.elapsed() < limits::DRAIN_TIMEOUT + DEADLINE);
    }
}

#[test]
fn whoever_says_no_hello_is_told_so() {
    for broker in brokers() {
        let mut browser = TcpStream::connect(broker.address()).unwrap();
        browser.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(farewell(&rest_of(&mut browser)), Refusal::Malformed);
        assert_eq!(broker.door_stats().turned_away(), 1);
        broker.stop();
    }
}

#[test]
fn whoever_breaks_the_protocol_learns_why() {
    for broker in brokers() {
        let mut client = TestClient::connect(broker.address());
        client.producer("queue:/test/broken");
        // Garbage, and more of it than anybody reads.
        let mut socket = client.socket.try_clone().unwrap();
        let garbage = vec![0xff; 300_000];
        let writer = std::thread::spawn(move || socket.write_all(&garbage).ok());
        let end = client.event(|event| match event {
            Event::Ended(end) => Some(end),
            _ => None,
        });
        assert!(matches!(end, LinkEnd::Farewell { .. }), "{end:?}");
        drop(client);
        writer.join().unwrap();
        assert_eq!(read_until(&broker, Counter::LinksFaulted, 1), 1);
        broker.stop();
    }
}

#[test]
fn whoever_finds_no_place_is_told_so_and_finds_one_later() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let mut config = config(transport);
        config.ring.slots = 3;
        let broker = Broker::start(config).unwrap();
        let opened = |event| matches!(event, Event::Opened { .. }).then_some(());
        let mut inside: Vec<TestClient> = (0..3)
            .map(|_| TestClient::connect(broker.address()))
            .collect();
        inside.iter_mut().for_each(|client| client.event(opened));
        let mut outside = TcpStream::connect(broker.address()).unwrap();
        assert_eq!(farewell(&rest_of(&mut outside)), Refusal::TooManyLinks);
        drop(inside);
        read_until(&broker, Counter::LinksClosed, 3);
        TestClient::connect(broker.address()).event(opened);
        broker.stop();
    }
}

/// The counter, once it has reached a value.
fn read_until(broker: &Broker, counter: Counter, value: u64) -> u64 {
    eventually(counter.name(), || read(broker, counter) >= value);
    read(broker, counter)
}

#[test]
fn connections_come_and_go_and_their_places_are_used_again() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let mut config = config(transport);
        config.ring.slots = 8;
        let broker = Broker::start(config).unwrap();
        for round in 1..=30 {
            let mut clients: Vec<TestClient> = (0..8)
                .map(|_| TestClient::connect(broker.address()))
                .collect();
            for client in &mut clients {
                client.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
            }
            drop(clients);
            let closed = read_until(&broker, Counter::LinksClosed, round * 8);
            assert_eq!(closed, round * 8);
        }
        eventually("no link is left", || {
            broker.stats().all(|stats| stats.links() == 0)
        });
        broker.stop();
    }
}

#[test]
fn a_sleeping_shard_is_woken_by_who_connects_and_who_sends() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = Broker::start(BrokerConfig {
            idle: IdleStrategy::Park,
            ..config(transport)
        })
        .unwrap();
        eventually("the shard sleeps", || read(&broker, Counter::Sleeps) > 0);
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/sleepy");
        for _ in 0..20 {
            let sleeps = read(&broker, Counter::Sleeps);
            assert!(client.send_all(producer, &bodies(1, 8))[0].result.is_ok());
            eventually("the shard sleeps again", || {
                read(&broker, Counter::Sleeps) > sleeps
            });
        }
        drop(client);
        broker.stop();
    }
}

#[test]
fn a_spinning_shard_makes_one_system_call_a_turn() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = Broker::start(BrokerConfig {
            idle: IdleStrategy::Spin,
            spin_regardless: true,
            ..config(transport)
        })
        .unwrap();
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/spin");
        client.send_all(producer, &bodies(500, 64));
        read_until(&broker, Counter::MessagesStored, 500);
        // Turns are read last: what is published meanwhile can only add to them.
        let enters = read(&broker, Counter::Enters) + read(&broker, Counter::EntersIdle);
        let turns = read(&broker, Counter::Turns);
        assert_eq!(read(&broker, Counter::Sleeps), 0);
        assert!(
            enters * 100 <= turns * 105,
            "{enters} system calls in {turns} turns"
        );
        broker.stop();
    }
}

#[test]
fn a_taken_port_is_refused_with_its_address() {
    let broker = Broker::start(config(Transport::Epoll)).unwrap();
    let error = Broker::start(BrokerConfig {
        listen: Some(broker.address()),
        ..config(Transport::Epoll)
    })
    .unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }));
    assert_eq!(error.code(), "C1301");
    let message = error.to_string();
    assert!(
        message.starts_with(&format!(
            "cannot listen on {}: EADDRINUSE",
            broker.address()
        )),
        "{message}"
    );
    broker.stop();
}

/// The port was bound before the memory bound was looked at: of two mistakes, the one
/// was told that a restart alone could mend.
#[test]
fn too_little_memory_is_told_before_the_port_is_touched() {
    let broker = Broker::start(config(Transport::Epoll)).unwrap();
    let error = Broker::start(BrokerConfig {
        listen: Some(broker.address()),
        memory: limits::MEMORY_MIN - 1,
        ..config(Transport::Epoll)
    })
    .unwrap_err();
    assert!(matches!(error, StartError::Memory { .. }), "{error}");
    broker.stop();
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_listens() {
    let refused = |config: BrokerConfig| Broker::start(config).unwrap_err();
    let little = refused(BrokerConfig {
        memory: limits::MEMORY_MIN - 1,
        ..config(Transport::Epoll)
    });
    assert!(matches!(little, StartError::Memory { .. }), "{little}");
    let much = refused(BrokerConfig {
        memory: u64::MAX,
        ..config(Transport::Epoll)
    });
    assert!(matches!(much, StartError::MemoryNotThere { .. }), "{much}");
    let absent = refused(BrokerConfig {
        cores: "1000".parse::<Cores>().unwrap(),
        ..config(Transport::Epoll)
    });
    assert_eq!(absent.code(), "C1203");
    let shared = refused(BrokerConfig {
        memory: 2 * limits::MEMORY_MIN,
        cores: Cores::Unpinned,
        shards: NonZeroU16::new(2),
        ..config(Transport::Epoll)
    });
    assert!(
        shared.to_string().contains("a bound of at least 129 MiB"),
        "{shared}"
    );
    let several = refused(BrokerConfig {
        cores: Cores::Unpinned,
        shards: NonZeroU16::new(limits::SHARDS_MAX + 1),
        ..config(Transport::Epoll)
    });
    assert!(matches!(several, StartError::TooManyShards { shards: 65 }));
}

#[test]
fn the_start_reports_what_it_runs_with() {
    let broker = Broker::start(config(Transport::Epoll)).unwrap();
    let report = broker.setting().to_string();
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines[0], format!("listening  {}", broker.address()));
    assert!(lines[1].starts_with("shard 0    cpu"), "{report}");
    assert!(lines[1].contains("epoll"), "{report}");
    assert!(
        lines[2].starts_with("data       nothing is kept"),
        "{report}"
    );
    assert!(
        lines[3].starts_with("idle       adaptive, spins "),
        "{report}"
    );
    assert!(lines[4].starts_with("memory     128 MiB: "), "{report}");
    assert!(broker.setting().warnings().is_empty());
    broker.stop();
}
