//! Listeners of sends and of consumers: what they may do, and what becomes of
//! those that misbehave.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{TestBroker, WAIT, until};
use courser::{Client, Producer, RequestError};

fn producer(client: &Client, destination: &str) -> Producer {
    client
        .producer(destination)
        .send_timeout(WAIT)
        .create()
        .unwrap()
}

#[test]
fn a_consumers_listener_hears_every_message_once_in_order_on_one_thread() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = producer(&client, "q");
    let (tell, told) = mpsc::channel();
    let inside = Arc::new(AtomicUsize::new(0));
    let listening = client
        .consumer("q")
        .prefetch(50)
        .create()
        .unwrap()
        .listen(move |message| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
            let number = u64::from_le_bytes(message.body().try_into().unwrap());
            tell.send((number, message.delivery_count(), thread::current().id()))
                .unwrap();
            inside.fetch_sub(1, Ordering::SeqCst);
        })
        .unwrap();
    for number in 0..2000u64 {
        drop(producer.send_future(&number.to_le_bytes()));
    }
    let mut threads = Vec::new();
    for expected in 0..2000 {
        let (number, count, thread) = told.recv_timeout(WAIT).unwrap();
        assert_eq!((number, count), (expected, 1));
        threads.push(thread);
    }
    threads.dedup();
    assert_eq!(threads.len(), 1);
    assert_ne!(threads[0], thread::current().id());
    assert_eq!(listening.end(), None);
    // What its listener saw is settled when it has returned.
    let mut consumer = listening.stop().unwrap();
    consumer.confirm().unwrap();
    assert_eq!(client.stats().unwrap().destinations()[0].unsettled, 0);
    assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
    assert_eq!(client.panicked_listeners(), 0);
}

#[test]
fn listeners_of_sends_and_of_consumers_of_one_session_run_one_at_a_time() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = producer(&client, "q");
    let (inside, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let enter = move |inside: &AtomicUsize, heard: &AtomicUsize| {
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
        heard.fetch_add(1, Ordering::SeqCst);
        inside.fetch_sub(1, Ordering::SeqCst);
    };
    let mut listenings = Vec::new();
    for _ in 0..2 {
        let (inside, heard) = (Arc::clone(&inside), Arc::clone(&heard));
        let consumer = client.consumer("q").create().unwrap();
        listenings.push(consumer.listen(move |_| enter(&inside, &heard)).unwrap());
    }
    for _ in 0..500 {
        let (inside, heard) = (Arc::clone(&inside), Arc::clone(&heard));
        producer
            .send_with("x", move |_, _| enter(&inside, &heard))
            .unwrap();
    }
    until(|| heard.load(Ordering::SeqCst) == 1000);
    for listening in listenings {
        listening.close().unwrap();
    }
    assert_eq!(client.panicked_listeners(), 0);
}

#[test]
fn a_stopped_listener_hears_nothing_more_and_its_consumer_goes_on_where_it_was() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = producer(&client, "q");
    let (tell, told) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let listening = client
        .consumer("q")
        .create()
        .unwrap()
        .listen(move |message| {
            tell.send(message.text().unwrap().to_owned()).unwrap();
            let _released_or_over = held.recv_timeout(WAIT);
        })
        .unwrap();
    for text in ["a", "b", "c"] {
        producer.send(text).unwrap();
    }
    assert_eq!(told.recv_timeout(WAIT).as_deref(), Ok("a"));
    let stopping = thread::spawn(move || listening.stop().unwrap());
    // It waits for the listener that runs.
    drop(release);
    let mut consumer = stopping.join().unwrap();
    // The next one may have begun before the stop was asked for.
    let mut seen: Vec<String> = told.try_iter().collect();
    while let Some(received) = consumer.receive(Duration::ZERO).unwrap() {
        seen.push(received.text().unwrap().to_owned());
    }
    while seen.len() < 2 {
        let received = consumer.receive(WAIT).unwrap().unwrap();
        seen.push(received.text().unwrap().to_owned());
    }
    assert_eq!(seen, ["b", "c"]);
}

#[test]
fn a_consumer_that_listens_can_be_dropped_by_its_own_listener_and_returns_what_it_has_not_seen() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = producer(&client, "q");
    let place = Arc::new(Mutex::new(None));
    let (itself, heard) = (Arc::clone(&place), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&heard);
    let listening = client.consumer("q").create().unwrap().listen(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        let listening: Option<courser::Listening> = itself.lock().unwrap().take();
        assert!(listening.is_some(), "heard again after it was dropped");
    });
    *place.lock().unwrap() = Some(listening.unwrap());
    producer.send_batch(["a", "b", "c"]);
    let mut next = client.consumer("q").create().unwrap();
    let mut texts = Vec::new();
    while texts.len() < 2 {
        let received = next.receive(WAIT).unwrap().unwrap();
        next.acknowledge(received.position()).unwrap();
        texts.push(received.text().unwrap().to_owned());
    }
    assert_eq!(heard.load(Ordering::SeqCst), 1);
    assert_eq!(client.panicked_listeners(), 0);
}

#[test]
fn in_its_own_listener_nobody_can_wait_for_it_but_may_send() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = Arc::new(producer(&client, "q"));
    let (refused, refusals) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let (inner, closer) = (Arc::clone(&producer), client.clone());
    let mut is_first = true;
    let listening = client
        .consumer("q")
        .create()
        .unwrap()
        .listen(move |message| {
            if !std::mem::take(&mut is_first) {
                tell.send(message.text().unwrap().to_owned()).unwrap();
                return;
            }
            refused.send(closer.clone().close()).unwrap();
            refused.send(inner.flush()).unwrap();
            // Another one of the same session.
            let other = closer.consumer("other").create().unwrap();
            refused.send(other.listen(|_| {}).unwrap().close()).unwrap();
            inner.send("from the listener").unwrap();
            drop(inner.send_future("and a future"));
        })
        .unwrap();
    producer.send("go").unwrap();
    for _ in 0..3 {
        let refusal = refusals.recv_timeout(WAIT).unwrap();
        assert_eq!(refusal, Err(RequestError::IllegalState));
    }
    for expected in ["from the listener", "and a future"] {
        assert_eq!(told.recv_timeout(WAIT).as_deref(), Ok(expected));
    }
    listening.close().unwrap();
}

#[test]
fn a_listener_of_a_send_may_send_in_every_way_and_is_heard_again() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = Arc::new(producer(&client, "q"));
    let heard = Arc::new(AtomicUsize::new(0));
    let (inner, count) = (Arc::clone(&producer), Arc::clone(&heard));
    producer
        .send_with("first", move |_, _| {
            let again = Arc::clone(&count);
            inner
                .send_with("second", move |_, result| {
                    result.unwrap();
                    again.fetch_add(1, Ordering::SeqCst);
                })
                .unwrap();
            inner.send("third").unwrap();
            drop(inner.send_future("fourth"));
            count.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
    until(|| heard.load(Ordering::SeqCst) == 2);
    producer.flush().unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    for expected in ["first", "second", "third", "fourth"] {
        let received = consumer.receive(WAIT).unwrap().unwrap();
        assert_eq!(received.text(), Some(expected));
    }
}

#[test]
fn a_listener_that_sleeps_holds_up_no_receiver_of_another_session_and_no_driver() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = producer(&client, "slow");
    let (release, held) = mpsc::channel::<()>();
    let begun = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&begun);
    let listening = client
        .consumer("slow")
        .create()
        .unwrap()
        .listen(move |_| {
            noted.store(true, Ordering::SeqCst);
            held.recv_timeout(WAIT).unwrap();
        })
        .unwrap();
    producer.send("x").unwrap();
    until(|| begun.load(Ordering::SeqCst));
    // The connection goes on, and so does another session's thread.
    let other = client.new_session();
    let (tell, told) = mpsc::channel();
    let quick = other.consumer("quick").create().unwrap();
    let quick = quick
        .listen(move |message| tell.send(message.position().offset.0).unwrap())
        .unwrap();
    let sender = other.producer("quick").send_timeout(WAIT).create().unwrap();
    for offset in 0..100 {
        sender.send("y").unwrap();
        assert_eq!(told.recv_timeout(WAIT), Ok(offset));
    }
    quick.close().unwrap();
    release.send(()).unwrap();
    listening.close().unwrap();
}

#[test]
fn a_listener_hears_of_what_came_while_it_ran_and_of_the_end() {
    let broker = TestBroker::start();
    let client = broker.client();
    let other = broker.client();
    let producer = producer(&other, "q");
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    let listening = client
        .consumer("q")
        .prefetch(1)
        .create()
        .unwrap()
        .listen(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
    for expected in 1..=300 {
        producer.send("x").unwrap();
        if expected % 50 == 0 {
            until(|| heard.load(Ordering::SeqCst) == expected);
        }
    }
    assert_eq!(listening.end(), None);
    client.close().unwrap();
    until(|| listening.end().is_some());
}
