//! A queue is looked at and left as it is, against brokers of one and of two shards in
//! this process.
#![allow(clippy::unwrap_used)]

mod common;

use common::{TestBroker, WAIT};
use courser::{Client, Producer, Received, Refusal, RequestError};

fn producer(client: &Client) -> Producer {
    let builder = client.producer("orders").partitions(3).send_timeout(WAIT);
    builder.create().unwrap()
}

fn texts(client: &Client) -> Vec<String> {
    let browser = client.browse("orders").unwrap();
    let mut all: Vec<Received> = browser.map(Result::unwrap).collect();
    assert!(all.iter().all(|it| it.delivery_count() == 1));
    all.sort_by_key(|it| it.append_time());
    let texts = all.iter().map(|it| it.text().unwrap().to_owned());
    texts.collect()
}

#[test]
fn all_is_shown_that_nobody_has_settled_and_stays_where_it_is() {
    for shards in [1, 2] {
        let broker = TestBroker::of_shards(shards);
        let client = broker.client();
        let producer = producer(&client);
        // More than is delivered ahead.
        let sent: Vec<String> = (0..700).map(|number| number.to_string()).collect();
        for text in &sent {
            producer.send(text.as_str()).unwrap();
        }
        assert_eq!(texts(&client), sent);
        let mut consumer = broker.client().consumer("orders").create().unwrap();
        for number in 0..sent.len() {
            let received = consumer.receive(WAIT).unwrap().unwrap();
            assert_eq!(received.delivery_count(), 1);
            if number >= 690 {
                continue;
            }
            consumer.acknowledge(received.position()).unwrap();
        }
        consumer.confirm().unwrap();
        // What a consumer holds is shown, and is with it still.
        assert_eq!(texts(&client).len(), 10);
        consumer.recover().unwrap();
        for _ in 0..10 {
            let received = consumer.receive(WAIT).unwrap().unwrap();
            assert_eq!(received.delivery_count(), 2);
            consumer.acknowledge(received.position()).unwrap();
        }
        consumer.confirm().unwrap();
        assert_eq!(texts(&client), [""; 0]);
    }
}

#[test]
fn a_look_ends_where_the_queue_ended_and_can_end_before() {
    for shards in [1, 2] {
        let broker = TestBroker::of_shards(shards);
        let client = broker.client();
        let producer = producer(&client);
        for _ in 0..6 {
            producer.send("before").unwrap();
        }
        let mut browser = client.browse("orders").unwrap();
        assert_eq!(browser.next().unwrap().unwrap().text(), Some("before"));
        for _ in 0..6 {
            producer.send("behind").unwrap();
        }
        assert_eq!(browser.by_ref().map(Result::unwrap).count(), 5);
        assert!(browser.next().is_none(), "and stays at its end");
        browser.close().unwrap();
        let mut browser = client.browse("orders").unwrap();
        assert!(browser.next().is_some());
        drop(browser);
        assert_eq!(texts(&client).len(), 12);
        let row = client.admin().destination("orders").unwrap();
        assert_eq!((row.consumers, row.subscriptions), (0, 1));
    }
}

#[test]
fn what_is_no_queue_is_not_browsed_and_none_is_made() {
    let broker = TestBroker::of_shards(1);
    let client = broker.client();
    for (name, refusal) in [
        ("orders", Refusal::NotFound),
        ("topic:orders", Refusal::IllegalArgument),
    ] {
        let refused = client.browse(name).unwrap_err();
        assert!(
            matches!(&refused, RequestError::Refused { refusal: Some(it), .. } if *it == refusal),
            "{name}: {refused:?}"
        );
    }
    assert!(client.admin().destination("orders").is_err());
}
