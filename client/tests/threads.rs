//! Several threads on one connection: every send has its outcome once, and each
//! producer's order holds, whoever drives.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{TestBroker, WAIT};
use courser::{Client, Producer, SendError, TrySendError};

/// Producer and number as a body.
fn body(producer: u64, number: u64) -> [u8; 16] {
    let mut body = [0; 16];
    body[..8].copy_from_slice(&producer.to_le_bytes());
    body[8..].copy_from_slice(&number.to_le_bytes());
    body
}

/// Takes all that is stored and returns for each producer its numbers, in order.
fn stored(client: &Client, destination: &str, count: u64) -> HashMap<u64, Vec<u64>> {
    let mut consumer = client.consumer(destination).create().unwrap();
    let mut numbers: HashMap<u64, Vec<u64>> = HashMap::new();
    for _ in 0..count {
        let received = consumer.receive(WAIT).unwrap().unwrap();
        let (producer, number) = received.body().split_at(8);
        let number_of = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        numbers
            .entry(number_of(producer))
            .or_default()
            .push(number_of(number));
        consumer.acknowledge(received.position()).unwrap();
    }
    assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
    numbers
}

/// Sends with blocking sends, batches, listeners, futures and polling in turn, and
/// returns once each has its outcome.
fn send_in_all_ways(producer: &Producer, name: u64, count: u64) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut polled = Vec::new();
    let mut futures = Vec::new();
    for number in 0..count {
        let body = body(name, number);
        match number % 8 {
            0 => {
                producer.send(body).unwrap();
            }
            1 | 2 => {
                let heard = Arc::clone(&heard);
                producer
                    .send_with(&body, move |_, result| {
                        heard.lock().unwrap().push((number, result.is_ok()));
                    })
                    .unwrap();
            }
            3 | 4 => futures.push(producer.send_future(&body)),
            5 => {
                for result in producer.send_batch([body]) {
                    result.unwrap();
                }
            }
            _ => loop {
                match producer.try_send(body) {
                    Ok(sequence) => break polled.push(sequence),
                    Err(TrySendError::WouldBlock) => thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            },
        }
    }
    producer.flush().unwrap();
    for sequence in polled {
        let completion = producer.poll().unwrap();
        assert_eq!(completion.sequence, sequence);
        completion.result.unwrap();
    }
    assert_eq!(producer.poll(), None);
    drop(futures);
    let heard = heard.lock().unwrap();
    let expected = (0..count).filter(|number| matches!(number % 8, 1 | 2));
    assert!(
        heard
            .iter()
            .copied()
            .eq(expected.map(|number| (number, true)))
    );
}

#[test]
fn threads_with_producers_of_their_own_keep_every_order_in_all_ways_of_sending() {
    let broker = TestBroker::start();
    for spin in [Duration::ZERO, Duration::from_micros(50)] {
        let client = broker.client_with(Client::options().spin(spin));
        let (threads, producers, count) = (4u64, 3u64, 160);
        thread::scope(|scope| {
            for thread in 0..threads {
                let client = &client;
                scope.spawn(move || {
                    for index in 0..producers {
                        let producer = client
                            .producer("q")
                            .window(64)
                            .send_timeout(WAIT)
                            .create()
                            .unwrap();
                        send_in_all_ways(&producer, thread * producers + index, count);
                        if index == 0 {
                            producer.close().unwrap();
                        }
                    }
                });
            }
        });
        let numbers = stored(&client, "q", threads * producers * count);
        assert_eq!(numbers.len() as u64, threads * producers);
        for (name, numbers) in numbers {
            assert!(numbers.into_iter().eq(0..count), "producer {name}");
        }
        assert_eq!(client.panicked_listeners(), 0);
    }
}

#[test]
fn threads_that_share_a_producer_keep_each_its_own_order() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let (threads, count) = (4, 400);
    let heard = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for name in 0..threads {
            let (producer, heard) = (&producer, &heard);
            scope.spawn(move || {
                for number in 0..count {
                    let body = body(name, number);
                    match number % 4 {
                        0 => {
                            producer.send(body).unwrap();
                        }
                        1 => drop(producer.send_future(&body)),
                        _ => {
                            let heard = Arc::clone(heard);
                            producer
                                .send_with(&body, move |_, result| {
                                    result.unwrap();
                                    heard.fetch_add(1, Ordering::SeqCst);
                                })
                                .unwrap();
                        }
                    }
                }
            });
        }
    });
    producer.flush().unwrap();
    assert_eq!(heard.load(Ordering::SeqCst), threads * count / 2);
    for (name, numbers) in stored(&client, "q", threads * count) {
        assert!(numbers.into_iter().eq(0..count), "thread {name}");
    }
}

#[test]
fn a_sleeping_receiver_does_not_hold_up_those_who_send() {
    let broker = TestBroker::start();
    let client = broker.client();
    let is_over = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        for index in 0..3 {
            let (client, is_over) = (&client, Arc::clone(&is_over));
            scope.spawn(move || {
                let mut consumer = client.consumer(&format!("idle{index}")).create().unwrap();
                let received = consumer.receive(WAIT).unwrap().unwrap();
                assert!(
                    is_over.load(Ordering::SeqCst),
                    "nothing comes before the end"
                );
                consumer.acknowledge(received.position()).unwrap();
            });
        }
        let producer = client.producer("busy").send_timeout(WAIT).create().unwrap();
        for number in 0..500 {
            producer.send(body(0, number)).unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
        for index in 0..3 {
            let waker = client
                .producer(&format!("idle{index}"))
                .send_timeout(WAIT)
                .create()
                .unwrap();
            waker.send("wake").unwrap();
        }
    });
}

#[test]
fn closing_from_another_thread_gives_every_send_an_outcome_and_every_waiter_an_end() {
    let broker = TestBroker::start();
    for round in 0..8 {
        let client = broker.client();
        let name = format!("q{round}");
        let begun = AtomicUsize::new(0);
        let outcomes = Arc::new(AtomicU64::new(0));
        let mut accepted = 0u64;
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for _ in 0..3 {
                let (client, name, begun, outcomes) = (&client, &name, &begun, &outcomes);
                threads.push(scope.spawn(move || {
                    let producer = client.producer(name).send_timeout(WAIT).create().unwrap();
                    begun.fetch_add(1, Ordering::SeqCst);
                    let mut accepted = 0u64;
                    loop {
                        let outcomes = Arc::clone(outcomes);
                        let listened = producer.send_with("a", move |_, _| {
                            outcomes.fetch_add(1, Ordering::SeqCst);
                        });
                        accepted += u64::from(listened.is_ok());
                        // What could not be sent is known not to be stored.
                        match producer.send("s") {
                            Ok(_) => {}
                            Err(
                                SendError::NotStored { .. }
                                | SendError::Unknown { .. }
                                | SendError::Closed,
                            ) => return accepted,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }));
            }
            let (client_of_receiver, begun_of_receiver) = (&client, &begun);
            let receiver = scope.spawn(move || {
                let mut consumer = client_of_receiver.consumer("empty").create().unwrap();
                begun_of_receiver.fetch_add(1, Ordering::SeqCst);
                consumer.receive(WAIT)
            });
            common::until(|| begun.load(Ordering::SeqCst) == 4);
            client.clone().close().unwrap();
            for thread in threads {
                accepted += thread.join().unwrap();
            }
            assert!(receiver.join().unwrap().is_err());
        });
        common::until(|| outcomes.load(Ordering::SeqCst) == accepted);
    }
}

#[test]
fn a_thread_that_dies_leaves_the_link_to_the_others() {
    let broker = TestBroker::start();
    let client = broker.client_with(Client::options().spin(Duration::ZERO));
    let deadline = Instant::now() + WAIT;
    thread::scope(|scope| {
        for name in 0..6u64 {
            let client = &client;
            scope.spawn(move || {
                let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
                for number in 0..60 {
                    producer.send(body(name, number)).unwrap();
                }
                // Sent and never asked for, with a consumer that took something.
                let mut consumer = client.consumer("other").create().unwrap();
                assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
                drop(producer.send_future(&body(name, 60)));
                if name % 2 == 0 {
                    let dead = thread::Builder::new()
                        .spawn(move || {
                            let _held = (producer, consumer);
                            std::panic::resume_unwind(Box::new("planned"));
                        })
                        .unwrap()
                        .join();
                    assert!(dead.is_err());
                }
            });
        }
    });
    assert!(Instant::now() < deadline, "nobody waited for who has gone");
    for (name, numbers) in stored(&client, "q", 6 * 61) {
        assert!(numbers.into_iter().eq(0..=60), "producer {name}");
    }
}
