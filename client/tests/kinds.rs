//! How consumers share the subscription of a topic, against brokers of one and of two
//! shards in this process.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{TestBroker, WAIT, until};
use courser::{Client, Consumer, Message, Refusal, RequestError};

/// Shards of the brokers.
const SHARDS: [u16; 2] = [1, 2];

/// Waits so long for a message that another consumer may have got instead.
const SOON: Duration = Duration::from_millis(5);

fn failover(client: &Client, name: &str) -> Consumer {
    let builder = client.consumer("topic:orders").subscription(name);
    builder.failover().prefetch(64).create().unwrap()
}

fn key_shared(client: &Client, prefetch: u32) -> Consumer {
    let builder = client.consumer("topic:orders").subscription("keys");
    builder.key_shared().prefetch(prefetch).create().unwrap()
}

fn text(consumer: &mut Consumer) -> Option<(String, u32)> {
    let received = consumer.receive(WAIT).unwrap()?;
    let text = received.text().unwrap().to_owned();
    Some((text, received.delivery_count()))
}

#[test]
fn whoever_stands_by_goes_on_with_what_the_active_one_had_not_settled() {
    for shards in SHARDS {
        let broker = TestBroker::of_shards(shards);
        let client = broker.client();
        let (active, standby) = (broker.client(), broker.client());
        let mut first = failover(&active, "failover");
        let mut second = failover(&standby, "failover");
        let producer = client
            .producer("topic:orders")
            .send_timeout(WAIT)
            .create()
            .unwrap();
        for number in 0..10 {
            producer.send(number.to_string()).unwrap();
        }
        for number in 0..5 {
            let received = first.receive(WAIT).unwrap().unwrap();
            assert_eq!(received.text(), Some(number.to_string().as_str()));
            if number < 3 {
                first.acknowledge(received.position()).unwrap();
            }
        }
        first.confirm().unwrap();
        assert!(second.receive(SOON).unwrap().is_none(), "it stands by");
        // Its connection goes, with what it had.
        drop(first);
        drop(active);
        for number in 3..10 {
            let (text, count) = text(&mut second).unwrap();
            assert_eq!(text, number.to_string(), "in order, and none is lost");
            // Nobody knows how many of those that were sent to the first one it saw.
            assert!((1..=2).contains(&count));
        }
        // One that comes later stands by, and takes over at once when the other closes.
        let mut third = failover(&client, "failover");
        producer.send("last").unwrap();
        assert_eq!(text(&mut second).unwrap().0, "last");
        second.close().unwrap();
        for expected in ["3", "4", "5", "6", "7", "8", "9", "last"] {
            assert_eq!(text(&mut third).unwrap().0, expected);
        }
    }
}

#[test]
fn partitions_of_a_failover_subscription_are_spread_over_its_consumers() {
    for shards in SHARDS {
        let broker = TestBroker::of_shards(shards);
        let client = broker.client();
        let producer = client.producer("topic:orders").partitions(4);
        let producer = producer.create().unwrap();
        let mut consumers = [failover(&client, "spread"), failover(&client, "spread")];
        for number in 0..40 {
            producer.send(number.to_string()).unwrap();
        }
        let mut partitions: [Vec<u32>; 2] = Default::default();
        let mut count = 0;
        let deadline = Instant::now() + WAIT;
        while count < 40 {
            assert!(Instant::now() < deadline, "{count} came");
            for (consumer, mine) in consumers.iter_mut().zip(&mut partitions) {
                while let Some(received) = consumer.receive(SOON).unwrap() {
                    mine.push(received.position().partition.0);
                    consumer.acknowledge(received.position()).unwrap();
                    count += 1;
                }
            }
        }
        for mine in &mut partitions {
            mine.sort_unstable();
            mine.dedup();
        }
        assert_eq!(partitions, [vec![0, 2], vec![1, 3]]);
    }
}

/// What each consumer got of each key, as the numbers that were sent.
type Seen = BTreeMap<usize, BTreeMap<String, Vec<u32>>>;

fn take(index: usize, consumer: &mut Consumer, seen: &mut Seen, most: usize) -> usize {
    let mut taken = 0;
    while taken < most {
        let Some(received) = consumer.receive(SOON).unwrap() else {
            break;
        };
        let (key, number) = received.text().unwrap().split_once(' ').unwrap();
        let of_key = seen.entry(index).or_default().entry(key.to_owned());
        of_key.or_default().push(number.parse().unwrap());
        consumer.acknowledge(received.position()).unwrap();
        taken += 1;
    }
    consumer.confirm().unwrap();
    taken
}

#[test]
fn each_key_stays_in_order_and_complete_though_one_of_three_consumers_dies() {
    for shards in SHARDS {
        each_key_stays_in_order(&TestBroker::of_shards(shards), 1);
        each_key_stays_in_order(&TestBroker::of_shards(shards), 4);
    }
}

fn each_key_stays_in_order(broker: &TestBroker, partitions: u32) {
    const KEYS: u32 = 30;
    const ROUNDS: u32 = 40;
    let client = broker.client();
    let dying = broker.client();
    let producer = client.producer("topic:orders").partitions(partitions);
    let producer = producer.create().unwrap();
    let mut consumers = vec![key_shared(&client, 50), key_shared(&client, 50)];
    let mut victim = key_shared(&dying, 50);
    for round in 0..ROUNDS {
        for key in 0..KEYS {
            let message = Message::new(format!("k{key} {round}"));
            let message = message.with_key(format!("k{key}").as_bytes());
            producer.send(&message).unwrap();
        }
    }
    let mut seen = Seen::new();
    // The one that dies settles some, and holds others when its connection breaks.
    let settled = take(2, &mut victim, &mut seen, 20);
    assert_eq!(settled, 20);
    let held = victim.receive(WAIT).unwrap().unwrap();
    assert!(held.delivery_count() == 1);
    take(0, &mut consumers[0], &mut seen, 100);
    drop(victim);
    drop(dying);
    // Another one joins as well.
    consumers.push(key_shared(&client, 50));
    let mut count: usize = seen
        .values()
        .flatten()
        .map(|(_, numbers)| numbers.len())
        .sum();
    let all = (KEYS * ROUNDS) as usize;
    let deadline = Instant::now() + WAIT;
    while count < all {
        assert!(Instant::now() < deadline, "{count} of {all} came");
        for (index, consumer) in consumers.iter_mut().enumerate() {
            // The dead one's place in the book is its own.
            let index = if index == 2 { 3 } else { index };
            count += take(index, consumer, &mut seen, usize::MAX);
        }
    }
    for consumer in &mut consumers {
        assert!(consumer.receive(SOON).unwrap().is_none(), "each comes once");
    }
    for key in 0..KEYS {
        let key = format!("k{key}");
        let mut owners = 0;
        let mut numbers: Vec<u32> = Vec::new();
        for of_consumer in seen.values() {
            let mine = of_consumer.get(&key).cloned().unwrap_or_default();
            assert!(mine.is_sorted(), "{key} is in order");
            owners += usize::from(!mine.is_empty());
            numbers.extend(mine);
        }
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..ROUNDS), "{key} is complete");
        assert!(owners <= 3, "a key moves with a change and not otherwise");
    }
    let shares = seen.values().filter(|it| it.len() > 1).count();
    assert_eq!(shares, 4, "all had some of the keys: {:?}", seen.keys());
}

#[test]
fn a_consumer_that_takes_nothing_holds_up_its_own_keys_only() {
    for shards in SHARDS {
        let broker = TestBroker::of_shards(shards);
        let client = broker.client();
        let producer = client
            .producer("topic:orders")
            .send_timeout(WAIT)
            .create()
            .unwrap();
        let idle = key_shared(&client, 1);
        let mut busy = key_shared(&client, 100);
        for number in 0..500 {
            let key = format!("k{number}");
            let message = Message::new(format!("{key} {number}")).with_key(key.as_bytes());
            producer.send(&message).unwrap();
        }
        let mut seen = Seen::new();
        let mut count = 0;
        until(|| {
            count += take(0, &mut busy, &mut seen, usize::MAX);
            count >= 150
        });
        idle.close().unwrap();
        until(|| {
            count += take(0, &mut busy, &mut seen, usize::MAX);
            count >= 500
        });
        assert_eq!(count, 500, "and those too, once it is gone");
    }
}

#[test]
fn a_subscription_stays_of_its_kind_and_says_so() {
    for shards in SHARDS {
        let broker = TestBroker::of_shards(shards);
        let client = broker.client();
        let open = |destination: &str| client.consumer(destination).subscription("s");
        let refusal = |error: RequestError| match error {
            RequestError::Refused { refusal, text, .. } => (refusal.unwrap(), text.to_string()),
            other => panic!("{other:?}"),
        };
        let _first = open("topic:orders").key_shared().create().unwrap();
        let (kind, text) = refusal(open("topic:orders").failover().create().unwrap_err());
        assert_eq!(kind, Refusal::PreconditionFailed);
        assert!(
            text.contains("key-shared") && text.contains("failover"),
            "{text}"
        );
        let on_queue = client.consumer("queue:work").failover().create();
        let (kind, text) = refusal(on_queue.unwrap_err());
        assert_eq!(kind, Refusal::IllegalArgument);
        assert!(
            text.contains("queue") && text.contains("failover"),
            "{text}"
        );
        let nameless = client.consumer("topic:orders").key_shared().create();
        let (kind, text) = refusal(nameless.unwrap_err());
        assert_eq!(kind, Refusal::IllegalArgument);
        assert!(text.contains("name"), "{text}");
    }
}
