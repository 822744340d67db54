//! Messages that go back: by hand, by a listener that panics, after a rest; and
//! consumers that share a topic's subscription.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use common::{TestBroker, WAIT, until};
use courser::{AcknowledgeError, Client, Consumer, RequestError};

/// A queue with these messages.
fn filled(client: &Client, bodies: &[&str]) {
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    for result in producer.send_batch(bodies) {
        result.unwrap();
    }
}

/// The next message's text and how often it was handed out.
fn next(consumer: &mut Consumer) -> (String, u32) {
    let received = consumer.receive(WAIT).unwrap().unwrap();
    (
        received.text().unwrap().to_owned(),
        received.delivery_count(),
    )
}

fn unsettled(client: &Client) -> u64 {
    client.stats().unwrap().destinations()[0].unsettled
}

#[test]
fn what_is_given_back_comes_again_at_once_counted_and_before_what_is_new() {
    let broker = TestBroker::start();
    let client = broker.client();
    filled(&client, &["a", "b", "c"]);
    let mut consumer = client.consumer("q").prefetch(1).create().unwrap();
    let first = consumer.receive(WAIT).unwrap().unwrap();
    consumer.give_back(first.position()).unwrap();
    // Given back twice it comes once.
    consumer.give_back(first.position()).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let received = consumer.receive(WAIT).unwrap().unwrap();
        seen.push((
            received.text().unwrap().to_owned(),
            received.delivery_count(),
        ));
        consumer.acknowledge(received.position()).unwrap();
    }
    let again = ("a".to_owned(), 2);
    assert!(seen.contains(&again), "{seen:?}");
    // With one at a time only what was delivered ahead already comes before it.
    assert!(
        seen.iter().position(|message| *message == again).unwrap() <= 1,
        "{seen:?}"
    );
    consumer.confirm().unwrap();
    assert_eq!(unsettled(&client), 0);
    assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
}

#[test]
fn what_is_given_back_goes_to_whichever_consumer_is_free() {
    let broker = TestBroker::start();
    let client = broker.client();
    filled(&client, &["a"]);
    let mut first = client.consumer("q").create().unwrap();
    let received = first.receive(WAIT).unwrap().unwrap();
    let other = broker.client();
    let mut second = other.consumer("q").create().unwrap();
    assert!(second.receive(Duration::ZERO).unwrap().is_none());
    first.give_back(received.position()).unwrap();
    let mut found = None;
    until(|| {
        for consumer in [&mut first, &mut second] {
            if let Some(received) = consumer.receive(Duration::ZERO).unwrap() {
                found = Some((received.delivery_count(), received.position()));
                consumer.acknowledge(received.position()).unwrap();
                consumer.confirm().unwrap();
            }
        }
        found.is_some()
    });
    assert_eq!(found, Some((2, received.position())));
    assert_eq!(unsettled(&client), 0);
}

#[test]
fn recovering_gives_back_all_that_was_handed_out_and_not_settled_and_nothing_else() {
    let broker = TestBroker::start();
    let client = broker.client();
    filled(&client, &["a", "b", "c", "d", "e"]);
    let mut consumer = client.consumer("q").create().unwrap();
    let mut positions = Vec::new();
    for expected in ["a", "b", "c", "d"] {
        let received = consumer.receive(WAIT).unwrap().unwrap();
        assert_eq!(received.text(), Some(expected));
        positions.push(received.position());
    }
    consumer.acknowledge(positions[1]).unwrap();
    consumer.recover().unwrap();
    // There is nothing left to recover.
    consumer.recover().unwrap();
    let mut seen: Vec<_> = (0..4).map(|_| next(&mut consumer)).collect();
    seen.sort();
    let expected = [("a", 2), ("c", 2), ("d", 2), ("e", 1)];
    assert!(
        seen.iter()
            .map(|(text, count)| (text.as_str(), *count))
            .eq(expected),
        "{seen:?}"
    );
    assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
    assert_eq!(unsettled(&client), 4);
}

#[test]
fn what_is_refused_rests_before_it_comes_again_and_holds_up_nothing() {
    let broker = TestBroker::start();
    let client = broker.client();
    filled(&client, &["a", "b"]);
    let mut consumer = client.consumer("q").create().unwrap();
    let first = consumer.receive(WAIT).unwrap().unwrap();
    let began = Instant::now();
    consumer
        .nack(first.position(), Duration::from_millis(1200))
        .unwrap();
    assert_eq!(next(&mut consumer), ("b".to_owned(), 1));
    assert_eq!(next(&mut consumer), ("a".to_owned(), 2));
    assert!(began.elapsed() >= Duration::from_millis(1200));
}

#[test]
fn what_a_listener_panics_over_comes_again_until_it_is_taken() {
    let broker = TestBroker::start();
    let client = broker.client();
    let counts: Arc<Mutex<HashMap<String, Vec<u32>>>> = Arc::default();
    let heard = Arc::clone(&counts);
    let listening = client
        .consumer("q")
        .create()
        .unwrap()
        .listen(move |message| {
            let text = message.text().unwrap().to_owned();
            let count = message.delivery_count();
            let mut heard = heard
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            heard.entry(text.clone()).or_default().push(count);
            drop(heard);
            assert!(text != "b" || count > 3, "planned");
        })
        .unwrap();
    filled(&client, &["a", "b", "c"]);
    until(|| {
        let counts = counts
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        counts.values().map(Vec::len).sum::<usize>() == 6
    });
    let mut consumer = listening.stop().unwrap();
    consumer.confirm().unwrap();
    let counts = counts.lock().unwrap();
    assert_eq!(counts["a"], [1]);
    assert_eq!(counts["b"], [1, 2, 3, 4]);
    assert_eq!(counts["c"], [1]);
    assert_eq!(client.panicked_listeners(), 3);
    assert_eq!(unsettled(&client), 0);
}

#[test]
fn nothing_is_given_back_that_was_settled_or_belongs_to_another() {
    let broker = TestBroker::start();
    let client = broker.client();
    filled(&client, &["a", "b"]);
    let mut consumer = client.consumer("q").prefetch(1).create().unwrap();
    let first = consumer.receive(WAIT).unwrap().unwrap();
    consumer.acknowledge(first.position()).unwrap();
    consumer.give_back(first.position()).unwrap();
    consumer.nack(first.position(), Duration::ZERO).unwrap();
    assert_eq!(next(&mut consumer), ("b".to_owned(), 1));
    assert!(
        consumer
            .receive(Duration::from_millis(20))
            .unwrap()
            .is_none()
    );
    let position = first.position();
    client.close().unwrap();
    assert!(matches!(
        consumer.acknowledge(position).and(consumer.flush()),
        Err(AcknowledgeError::LinkEnded(_))
    ));
}

#[test]
fn consumers_that_share_a_subscription_divide_a_topic_between_them() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("topic:t")
        .send_timeout(WAIT)
        .create()
        .unwrap();
    let (tell, told) = mpsc::channel();
    let listenings: Vec<_> = (0..3)
        .map(|index| {
            let tell = tell.clone();
            client
                .consumer("topic:t")
                .subscription("team")
                .shared(true)
                .prefetch(4)
                .create()
                .unwrap()
                .listen(move |message| {
                    let number = u64::from_le_bytes(message.body().try_into().unwrap());
                    tell.send((index, number)).unwrap();
                })
                .unwrap()
        })
        .collect();
    let mut alone = client
        .consumer("topic:t")
        .subscription("alone")
        .create()
        .unwrap();
    for number in 0..300u64 {
        producer.send(number.to_le_bytes()).unwrap();
    }
    let mut numbers = Vec::new();
    let mut shares = [0; 3];
    for _ in 0..300 {
        let (index, number): (usize, u64) = told.recv_timeout(WAIT).unwrap();
        shares[index] += 1;
        numbers.push(number);
    }
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..300), "each once");
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    for number in 0..300u64 {
        let received = alone.receive(WAIT).unwrap().unwrap();
        assert_eq!(
            received.body(),
            number.to_le_bytes(),
            "another subscription has all"
        );
    }
    // What it was created with holds for whoever comes later.
    let refused = |shared| {
        let consumer = client.consumer("topic:t").subscription("team");
        let error = consumer.shared(shared).create().unwrap_err();
        assert!(matches!(error, RequestError::Refused { .. }), "{error}");
    };
    refused(false);
    drop(listenings);
}
