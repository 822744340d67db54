//! Futures of sends and of messages: under a runtime of twenty lines, and under
//! tokio.
#![allow(clippy::unwrap_used)]

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use common::{TestBroker, WAIT, block_on};
use courser::{Cause, Client, Message, Producer, SendError, SendFuture};

/// Wakes a thread, and counts how often.
struct Alarm {
    thread: Thread,
    rung: AtomicUsize,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

fn alarm() -> Arc<Alarm> {
    Arc::new(Alarm {
        thread: thread::current(),
        rung: AtomicUsize::new(0),
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap()
}

/// Takes so many messages and returns their bodies as numbers, in order.
fn bodies(client: &Client, destination: &str, count: usize) -> Vec<u64> {
    let mut consumer = client.consumer(destination).create().unwrap();
    (0..count)
        .map(|_| {
            let received = consumer.receive(WAIT).unwrap().unwrap();
            consumer.acknowledge(received.position()).unwrap();
            u64::from_le_bytes(received.body().try_into().unwrap())
        })
        .collect()
}

fn body(number: u64) -> Message {
    Message::new(number.to_le_bytes())
}

#[test]
fn a_future_of_a_send_gives_its_receipt_though_nobody_else_drives() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    for offset in 0..200 {
        let receipt = block_on(producer.send_future(body(offset))).unwrap();
        assert_eq!(receipt.position.offset.0, offset);
    }
}

#[test]
fn a_future_is_woken_once_and_by_the_last_waker_it_saw() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut future = pin!(producer.send_future("x"));
    let (first, last) = (alarm(), alarm());
    let (wakers, mut woken) = ([first.clone().into(), last.clone().into()], 0);
    for waker in &wakers {
        // It may have been quick.
        if future
            .as_mut()
            .poll(&mut Context::from_waker(waker))
            .is_ready()
        {
            return;
        }
        woken += 1;
    }
    assert_eq!(woken, 2);
    common::until(|| last.rung.load(Ordering::SeqCst) == 1);
    assert_eq!(first.rung.load(Ordering::SeqCst), 0);
    let poll = future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(poll, Poll::Ready(Ok(_))));
}

#[test]
fn futures_that_are_dropped_lose_nothing_and_change_no_order() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut kept = Vec::new();
    for number in 0..3000u64 {
        let future = producer.send_future(body(number));
        match number % 3 {
            0 => drop(future),
            1 => {
                // Polled, so that it has a waker, and dropped then.
                let mut future = pin!(future);
                let _early = future
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
            }
            _ => kept.push((number, future)),
        }
    }
    for (number, future) in kept {
        let receipt = block_on(future).unwrap();
        assert_eq!(
            receipt.position.offset.0, number,
            "stored in the order of the calls"
        );
    }
    assert!(bodies(&client, "q", 3000).into_iter().eq(0..3000));
}

/// A producer of which so many sends are on their way at a time, and others wait in line.
fn windowed(client: &Client, window: u32) -> Producer {
    let producer = client.producer("q").window(window).send_timeout(WAIT);
    producer.create().unwrap()
}

#[test]
fn a_producer_that_is_dropped_leaves_its_futures_and_their_order_behind() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = windowed(&client, 4);
    let futures: Vec<SendFuture> = (0..500)
        .map(|number| producer.send_future(body(number)))
        .collect();
    drop(producer);
    for (offset, future) in (0u64..).zip(futures) {
        assert_eq!(block_on(future).unwrap().position.offset.0, offset);
    }
    drop(client);
    let client = broker.client();
    assert!(bodies(&client, "q", 500).into_iter().eq(0..500));
}

/// The thread that drives the link takes sends over while others are handed in, so that a
/// line is empty, and has something in it again, before it was looked at.
#[test]
fn no_producer_that_is_dropped_forgets_what_is_on_its_way() {
    let broker = TestBroker::start();
    for round in 0..300 {
        let client = broker.client();
        let producer = windowed(&client, 4);
        let futures: Vec<SendFuture> = (0..60)
            .map(|number| producer.send_future(body(number)))
            .collect();
        drop(producer);
        for (number, future) in (0u64..).zip(futures) {
            let position = block_on(future).unwrap().position;
            assert_eq!(position.offset.0, round * 60 + number);
        }
    }
}

#[test]
fn futures_and_all_other_ways_to_send_share_one_order() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = windowed(&client, 16);
    let mut futures = Vec::new();
    let mut number = 0u64;
    let mut next = || {
        number += 1;
        body(number - 1)
    };
    for _ in 0..100 {
        for _ in 0..7 {
            futures.push(producer.send_future(next()));
        }
        producer
            .send_with(next(), |_, result| assert!(result.is_ok()))
            .unwrap();
        producer.send(next()).unwrap();
        for result in producer.send_batch([next(), next()]) {
            result.unwrap();
        }
    }
    producer.flush().unwrap();
    for future in futures {
        block_on(future).unwrap();
    }
    assert!(bodies(&client, "q", 1100).into_iter().eq(0..1100));
}

#[test]
fn more_sends_than_may_wait_fail_at_once_and_those_before_them_go_on() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("q")
        .window(1)
        .send_timeout(WAIT)
        .create()
        .unwrap();
    let large = vec![7; 4 << 20];
    // More bytes than may wait, and nobody who makes room at the broker.
    let futures: Vec<SendFuture> = (0..30).map(|_| producer.send_future(&large[..])).collect();
    let draining = {
        let client = broker.client();
        thread::spawn(move || {
            let mut consumer = client.consumer("q").create().unwrap();
            let mut received = 0u64;
            while let Some(message) = consumer.receive(WAIT).unwrap() {
                consumer.acknowledge(message.position()).unwrap();
                received += 1;
                if message.body().is_empty() {
                    break;
                }
            }
            received
        })
    };
    let (mut stored, mut crowded) = (0u64, 0);
    for future in futures {
        match block_on(future) {
            Ok(receipt) => {
                assert_eq!(receipt.position.offset.0, stored);
                stored += 1;
            }
            Err(SendError::NotStored {
                cause: Cause::Crowded,
            }) => crowded += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stored >= 16 && crowded >= 1, "{stored} {crowded}");
    block_on(producer.send_future("")).unwrap();
    assert_eq!(draining.join().unwrap(), stored + 1);
}

#[test]
fn thousands_of_futures_over_several_producers_are_ready_each_in_its_order_under_tokio() {
    let broker = TestBroker::start();
    let client = broker.client();
    runtime().block_on(async {
        let mut tasks = Vec::new();
        for index in 0..4 {
            let producer = client
                .producer(&format!("q{index}"))
                .send_timeout(WAIT)
                .create()
                .unwrap();
            tasks.push(tokio::spawn(async move {
                let mut outcomes = Vec::new();
                for number in 0..3000 {
                    outcomes.push(tokio::spawn(producer.send_future(body(number))));
                    if number % 100 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                for (offset, outcome) in (0u64..).zip(outcomes) {
                    assert_eq!(outcome.await.unwrap().unwrap().position.offset.0, offset);
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    for index in 0..4 {
        assert!(
            bodies(&client, &format!("q{index}"), 3000)
                .into_iter()
                .eq(0..3000)
        );
    }
}

#[test]
fn a_send_that_loses_a_race_is_sent_all_the_same_under_tokio() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    runtime().block_on(async {
        for number in 0..500 {
            tokio::select! {
                biased;
                () = std::future::ready(()) => {}
                outcome = producer.send_future(body(number)) => {
                    outcome.unwrap();
                }
            }
        }
        let task = tokio::spawn(producer.send_future(body(500)));
        task.abort();
        let _aborted_or_done = task.await;
        producer.send_future(body(501)).await.unwrap();
    });
    assert!(bodies(&client, "q", 502).into_iter().eq(0..502));
}

#[test]
fn messages_come_to_an_asynchronous_program_in_order_and_no_dropped_future_takes_one_along() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    runtime().block_on(async {
        let sending = tokio::spawn(async move {
            for number in 0..1000 {
                producer.send_future(body(number)).await.unwrap();
            }
        });
        let mut expected = 0u64;
        while expected < 1000 {
            // Given up as often as not.
            let received = tokio::time::timeout(
                Duration::from_micros(50 * (expected % 3)),
                consumer.receive_async(),
            );
            let Ok(received) = received.await else {
                continue;
            };
            let received = received.unwrap();
            assert_eq!(received.body(), expected.to_le_bytes());
            assert_eq!(received.delivery_count(), 1);
            consumer.acknowledge(received.position()).unwrap();
            expected += 1;
        }
        sending.await.unwrap();
    });
    consumer.confirm().unwrap();
    assert_eq!(client.stats().unwrap().destinations()[0].unsettled, 0);
}

#[test]
fn a_future_that_waits_for_a_message_hears_of_the_end_of_the_link() {
    let broker = TestBroker::start();
    let client = broker.client();
    let mut consumer = client.consumer("q").create().unwrap();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let waiting = thread::spawn(move || block_on(consumer.receive_async()).map(drop));
    producer.send("x").unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(()));
    let mut consumer = client.consumer("empty").create().unwrap();
    let waiting = thread::spawn(move || block_on(consumer.receive_async()).map(drop));
    client.close().unwrap();
    assert!(waiting.join().unwrap().is_err());
    let error = block_on(producer.send_future("late")).unwrap_err();
    assert!(matches!(error, SendError::NotStored { .. }), "{error}");
}
