//! Sends that are handed over together, and outcomes that are taken together.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::{TestBroker, WAIT};
use courser::{Completion, Producer, TrySendError};

/// Polls until there are so many outcomes, all of them stored.
fn outcomes(producer: &Producer, count: usize) -> Vec<u64> {
    let mut completions = Vec::new();
    let began = Instant::now();
    while completions.len() < count {
        let before = completions.len();
        let more = producer.poll_into(&mut completions);
        assert_eq!(completions.len(), before + more);
        assert!(began.elapsed() < WAIT, "{completions:?}");
    }
    let number = |Completion { sequence, result }: Completion| {
        assert_eq!(result.unwrap().id.sequence, sequence);
        sequence.0
    };
    completions.into_iter().map(number).collect()
}

#[test]
fn what_is_handed_over_together_is_stored_and_answered_in_order() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    let numbers: Vec<_> = (0..100u64).map(u64::to_le_bytes).collect();
    let (first, rest) = numbers.split_at(40);
    assert_eq!(producer.try_enqueue_all(first), Ok(40));
    producer.try_enqueue(rest[0]).unwrap();
    assert_eq!(producer.try_enqueue_all(&rest[1..]), Ok(59));
    let none: &[[u8; 8]] = &[];
    assert_eq!(producer.try_enqueue_all(none), Ok(0));
    let sequences: Vec<_> = (1..=100).collect();
    assert_eq!(outcomes(&producer, 100), sequences);
    for number in numbers {
        let message = consumer.receive(WAIT).unwrap().unwrap();
        assert_eq!(message.body(), number);
    }
}

#[test]
fn of_more_than_fits_the_first_are_taken_and_the_rest_later() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").window(8).create().unwrap();
    let bodies = [[7u8; 100]; 20];
    assert_eq!(producer.try_enqueue_all(&bodies), Ok(8));
    assert!(matches!(
        producer.try_enqueue_all(&bodies[8..]),
        Err(TrySendError::WouldBlock)
    ));
    assert_eq!(outcomes(&producer, 8), (1..=8).collect::<Vec<_>>());
    assert_eq!(producer.try_enqueue_all(&bodies[8..]), Ok(8));
    assert_eq!(outcomes(&producer, 8), (9..=16).collect::<Vec<_>>());
    assert_eq!(producer.try_enqueue_all(&bodies[16..]), Ok(4));
    assert_eq!(outcomes(&producer, 4), (17..=20).collect::<Vec<_>>());
    let mut none = Vec::new();
    assert_eq!(producer.poll_into(&mut none), 0);
}
