//! The library with a broker of several shards: how many connections it takes, and that
//! nobody notices.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::town::Town;
use common::{TestBroker, WAIT, until};
use courser::{Client, Counter, Producer, Refusal, RequestError};

fn client(town: &Town) -> Client {
    Client::options()
        .timeout(WAIT)
        .connect(town.address())
        .unwrap()
}

/// As many producers, each to a queue of its own.
fn producers(client: &Client, count: u32) -> Vec<Producer> {
    let names = (0..count).map(|index| format!("queue:q{index}"));
    names
        .map(|name| client.producer(&name).send_timeout(WAIT).create().unwrap())
        .collect()
}

#[test]
fn one_destination_costs_one_connection_wherever_it_is() {
    let town = Town::of_shards(4);
    for index in 0..8 {
        let before = town.record();
        let client = client(&town);
        let name = format!("queue:q{index}");
        let producer = client.producer(&name).send_timeout(WAIT).create().unwrap();
        let consumer = client.consumer(&name).create().unwrap();
        producer.send("here").unwrap();
        let after = town.record();
        assert_eq!(after.accepted, before.accepted + 1);
        assert_eq!(client.connections(), 1);
        assert_eq!(after.misplaced, 0);
        drop((producer, consumer));
    }
    let record = town.record();
    assert!(record.moved >= 4, "most links began elsewhere: {record:?}");
}

#[test]
fn a_thousand_producers_share_a_connection_for_each_shard() {
    for town in [Town::of_shards(4), Town::without_moves(4)] {
        let client = client(&town);
        let mut producers = Vec::new();
        for index in 0..1_000 {
            let name = format!("topic:t{}", index % 50);
            producers.push(client.producer(&name).send_timeout(WAIT).create().unwrap());
        }
        for producer in &producers {
            producer.send("there").unwrap();
        }
        let record = town.record();
        assert_eq!(record.destinations.len(), 50);
        assert_eq!(record.accepted, 4);
        assert_eq!(client.connections(), 4);
        assert_eq!(record.misplaced, 0, "each is where its topic is");
        assert!(record.placed >= 950);
    }
}

#[test]
fn threads_that_open_at_the_same_time_make_no_connection_twice() {
    let town = Town::of_shards(3);
    let client = client(&town);
    thread::scope(|scope| {
        for thread in 0..8 {
            let client = &client;
            scope.spawn(move || {
                for index in 0..30 {
                    let name = format!("queue:q{}", (thread + index) % 12);
                    let producer = client.producer(&name).send_timeout(WAIT).create().unwrap();
                    producer.send("together").unwrap();
                }
            });
        }
    });
    let record = town.record();
    assert!(record.accepted <= 3, "{record:?}");
    assert!(client.connections() <= 3);
}

#[test]
fn a_session_calls_one_listener_at_a_time_over_all_its_connections() {
    const SENDS: usize = 400;
    let town = Town::of_shards(3);
    let client = client(&town);
    let producers = producers(&client, 6);
    assert_eq!(client.connections(), 3);
    let is_calling = Arc::new(AtomicBool::new(false));
    let heard = Arc::new(Mutex::new(vec![Vec::new(); producers.len()]));
    for number in 0..SENDS {
        for (index, producer) in producers.iter().enumerate() {
            let (is_calling, heard) = (Arc::clone(&is_calling), Arc::clone(&heard));
            producer
                .send_with("once", move |_, result| {
                    assert!(!is_calling.swap(true, Ordering::SeqCst), "two at a time");
                    result.unwrap();
                    heard.lock().unwrap()[index].push(number);
                    is_calling.store(false, Ordering::SeqCst);
                })
                .unwrap();
        }
    }
    let sessions = client.clone();
    client.close().unwrap();
    assert_eq!(sessions.panicked_listeners(), 0);
    let expected: Vec<usize> = (0..SENDS).collect();
    for heard in &*heard.lock().unwrap() {
        assert_eq!(*heard, expected, "in the order of the sends");
    }
}

#[test]
fn closing_waits_for_the_listeners_of_every_connection() {
    let town = Town::of_shards(2);
    let client = client(&town);
    let producers = producers(&client, 4);
    assert_eq!(client.connections(), 2);
    let called = Arc::new(AtomicUsize::new(0));
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    for producer in &producers {
        let (called, wait) = (Arc::clone(&called), Arc::clone(&wait));
        producer
            .send_with("late", move |_, _| {
                wait.lock().unwrap().recv_timeout(WAIT).unwrap();
                called.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
    }
    let closing = thread::spawn(move || client.close().unwrap());
    for _ in &producers {
        assert!(!closing.is_finished());
        go.send(()).unwrap();
    }
    closing.join().unwrap();
    assert_eq!(called.load(Ordering::SeqCst), producers.len());
}

#[test]
fn the_counters_are_those_of_all_shards() {
    let town = Town::of_shards(3);
    let client = client(&town);
    assert_eq!(client.stats().unwrap().counters().next().unwrap().1, 3);

    let broker = TestBroker::of_shards(2);
    let client = broker.client();
    let stats = client.stats().unwrap();
    assert_eq!(client.connections(), 2);
    assert_eq!(stats.counter(Counter::LinksOpened), 2);
    // Asked again it is asked over the same connections.
    client.stats().unwrap();
    assert_eq!(broker.accepted(), 2);
    drop(client);
    broker.stop();
}

/// The same with a broker, which has to know each destination on every shard.
#[test]
fn producers_and_consumers_meet_wherever_their_clients_began() {
    const QUEUES: usize = 20;
    let broker = TestBroker::of_shards(2);
    let clients = [broker.client(), broker.client(), broker.client()];
    let name = |index: usize| format!("queue:q{index}");
    let mut producers = Vec::new();
    for index in 0..3 * QUEUES {
        let client = &clients[index % clients.len()];
        producers.push(
            client
                .producer(&name(index % QUEUES))
                .send_timeout(WAIT)
                .create()
                .unwrap(),
        );
    }
    for (index, producer) in producers.iter().enumerate() {
        let receipt = producer.send(format!("{index}").as_str()).unwrap();
        let earlier = index / QUEUES;
        assert_eq!(receipt.position.offset.0, earlier as u64);
    }
    for index in 0..QUEUES {
        let client = &clients[(index + 1) % clients.len()];
        let mut consumer = client.consumer(&name(index)).create().unwrap();
        for round in 0..3 {
            let message = consumer.receive(WAIT).unwrap().unwrap();
            let expected = format!("{}", index + round * QUEUES);
            assert_eq!(message.body(), expected.as_bytes());
            consumer.acknowledge(message.position()).unwrap();
        }
        consumer.confirm().unwrap();
    }
    for client in &clients {
        assert_eq!(client.connections(), 2);
    }
    assert_eq!(broker.accepted(), 6);
    let stats = clients[0].stats().unwrap();
    let of_queues = stats.destinations();
    assert_eq!(of_queues.len(), QUEUES);
    for row in of_queues {
        assert_eq!((row.stored, row.unsettled), (3, 0), "{row:?}");
    }
    drop((producers, clients));
    broker.stop();
}

/// Each connection is made again for itself, and what is open on it goes on.
#[test]
fn every_connection_of_a_client_is_made_again() {
    let broker = TestBroker::of_shards(2);
    let proxy = common::proxy::Proxy::start(broker.address(), []);
    let client = Client::options()
        .timeout(WAIT)
        .reconnect_for(WAIT)
        .connect(proxy.address())
        .unwrap();
    client.stats().unwrap();
    assert_eq!(client.connections(), 2);
    proxy.cut();
    until(|| client.ping().is_ok());
    let stats = client.stats().unwrap();
    assert_eq!(client.connections(), 2);
    assert!(stats.counter(Counter::LinksOpened) >= 4);
    drop(client);
    broker.stop();
}

/// A client that ends while its connections are at work leaves nothing behind.
#[test]
fn the_last_handle_takes_all_connections_along() {
    let broker = TestBroker::of_shards(2);
    let client = broker.client();
    client.stats().unwrap();
    let watcher = broker.client();
    let open = || {
        let stats = watcher.stats().unwrap();
        stats.counter(Counter::LinksOpened) - stats.counter(Counter::LinksClosed)
    };
    assert_eq!(open(), 4);
    drop(client);
    until(|| {
        thread::sleep(Duration::ZERO);
        open() == 2
    });
}

/// Asked without waiting, a consumer said that there was nothing though another shard
/// had something that it had not said yet.
#[test]
fn receiving_without_waiting_finds_whatever_is_stored_on_any_shard() {
    for (shards, partitions) in [(1, 1), (1, 4), (2, 1), (2, 4)] {
        let broker = TestBroker::of_shards(shards);
        let (sending, receiving) = (broker.client(), broker.client());
        let producer = sending.producer("queue:q").partitions(partitions);
        let producer = producer.create().unwrap();
        for window in [1, 16] {
            let builder = receiving.consumer("queue:q").prefetch(window);
            let mut consumer = builder.create().unwrap();
            assert!(consumer.receive_no_wait().unwrap().is_none());
            for number in 0..60u32 {
                // It is stored before it is asked for.
                producer.send(number.to_le_bytes()).unwrap();
                let received = consumer.receive_no_wait().unwrap();
                let received = received.unwrap_or_else(|| panic!("{number} is there"));
                assert_eq!(received.body(), number.to_le_bytes());
                consumer.acknowledge(received.position()).unwrap();
                assert!(consumer.receive_no_wait().unwrap().is_none());
            }
            for number in 0..20u32 {
                producer.send(number.to_le_bytes()).unwrap();
            }
            let mut rest = 0;
            while let Some(received) = consumer.receive_no_wait().unwrap() {
                consumer.acknowledge(received.position()).unwrap();
                rest += 1;
            }
            assert_eq!(rest, 20);
            consumer.close().unwrap();
        }
    }
}

#[test]
fn producers_that_wait_have_a_destination_alone_one_after_the_other() {
    for (shards, partitions) in [(1, 1), (2, 1), (2, 4)] {
        let broker = TestBroker::of_shards(shards);
        let clients = [broker.client(), broker.client(), broker.client()];
        let builder = |client: usize| clients[client].producer("queue:q");
        let first = builder(0).partitions(partitions).exclusive();
        let first = first.create().unwrap();
        first.send("first").unwrap();
        // Whoever does not want to wait, or not for so long, is refused.
        for refused in [
            builder(1).exclusive().create(),
            builder(1)
                .exclusive_wait(Duration::from_millis(20))
                .create(),
        ] {
            let error = refused.unwrap_err();
            let is_exclusive = matches!(&error, RequestError::Refused { refusal, .. }
                if *refusal == Some(Refusal::Exclusive));
            assert!(is_exclusive, "{error}");
        }
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let second = builder(1).exclusive_wait(WAIT).create().unwrap();
                second.send("second").unwrap();
                second
            });
            // It waits, as the others it would have to wait for are still there.
            first.send("first again").unwrap();
            assert!(!waiting.is_finished());
            first.close().unwrap();
            let second = waiting.join().unwrap();
            let refused = builder(2).create().unwrap_err();
            assert!(matches!(refused, RequestError::Refused { .. }), "{refused}");
            drop(second);
        });
        // Also one whose client just goes.
        let third = builder(2).exclusive_wait(WAIT).create().unwrap();
        third.send("third").unwrap();
        drop(third);
        drop(clients);
        broker.stop();
    }
}

#[test]
fn a_window_of_one_is_enough_for_eight_partitions_of_two_shards() {
    let broker = TestBroker::of_shards(2);
    let (sending, receiving) = (broker.client(), broker.client());
    let producer = sending.producer("queue:q").partitions(8).create().unwrap();
    let consumer = receiving.consumer("queue:q").prefetch(1);
    let mut consumer = consumer.create().unwrap();
    for number in 0..200u32 {
        producer.send(number.to_le_bytes()).unwrap();
    }
    let mut numbers = Vec::new();
    while numbers.len() < 200 {
        let received = consumer.receive(WAIT).unwrap();
        let received = received.expect("no part keeps the credit to itself");
        let body = received.body().try_into().unwrap();
        numbers.push(u32::from_le_bytes(body));
        consumer.acknowledge(received.position()).unwrap();
    }
    consumer.confirm().unwrap();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..200));
    assert!(consumer.receive_no_wait().unwrap().is_none());
}
