//! A broker in this process without a socket: the same client, the same promises.
#![allow(clippy::unwrap_used)]

mod common;

use std::num::NonZeroU16;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{WAIT, until};
use courser::embedded::{Broker, BrokerConfig, NoLink};
use courser::{Client, ConnectError, Durability, SendError};

fn embedded() -> BrokerConfig {
    BrokerConfig {
        memory: 66 << 20,
        links_in_process: 8,
        ..BrokerConfig::embedded()
    }
}

fn of_shards(shards: u16) -> BrokerConfig {
    BrokerConfig {
        shards: NonZeroU16::new(shards),
        memory: u64::from(shards) * (66 << 20) + (8 << 20),
        ..embedded()
    }
}

fn each(scenario: impl Fn(&Broker)) {
    scenario(&Broker::start(embedded()).unwrap());
    scenario(&Broker::without_threads(embedded()).unwrap());
    scenario(&Broker::start(of_shards(2)).unwrap());
}

#[test]
fn a_message_comes_back_as_it_was_sent_without_a_socket() {
    each(|broker| {
        assert_eq!(broker.address(), None);
        let client = broker.connect().unwrap();
        let producer = client
            .producer("queue:q")
            .send_timeout(WAIT)
            .create()
            .unwrap();
        let mut consumer = client.consumer("queue:q").create().unwrap();
        for number in 0..200 {
            let receipt = producer.send(format!("message {number}")).unwrap();
            assert_eq!(receipt.position.offset.0, number);
            let received = consumer.receive(WAIT).unwrap().unwrap();
            assert_eq!(received.text().unwrap(), format!("message {number}"));
            consumer.acknowledge(received.position()).unwrap();
        }
        consumer.confirm().unwrap();
        assert!(
            consumer
                .receive(Duration::from_millis(2))
                .unwrap()
                .is_none()
        );
        consumer.close().unwrap();
        producer.close().unwrap();
        client.close().unwrap();
    });
}

#[test]
fn messages_larger_than_a_ring_and_thousands_in_flight_pass() {
    each(|broker| {
        let client = broker.connect().unwrap();
        let other = broker.connect().unwrap();
        let producer = client
            .producer("queue:q")
            .send_timeout(WAIT)
            .create()
            .unwrap();
        let mut consumer = other.consumer("queue:q").create().unwrap();
        let large: Vec<u8> = (0..3 << 20).map(|index| (index % 251) as u8).collect();
        producer.send(&large[..]).unwrap();
        let received = consumer.receive(WAIT).unwrap().unwrap();
        assert_eq!(received.body(), large);
        consumer.acknowledge(received.position()).unwrap();
        for _ in 0..3 {
            let batch: Vec<Vec<u8>> = (0..1000_u32).map(|it| it.to_le_bytes().to_vec()).collect();
            let results = producer.send_batch(&batch);
            assert!(results.iter().all(Result::is_ok));
            for number in 0..1000_u32 {
                let received = consumer.receive(WAIT).unwrap().unwrap();
                assert_eq!(received.body(), number.to_le_bytes());
                consumer.acknowledge(received.position()).unwrap();
            }
        }
    });
}

#[test]
fn a_loop_of_its_own_can_turn_the_broker_for_others() {
    let broker = Broker::without_threads(embedded()).unwrap();
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let broker = &broker;
        scope.spawn(move || {
            while is_done.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                if !broker.turn() {
                    thread::yield_now();
                }
            }
        });
        let workers: Vec<_> = (0..3)
            .map(|index| {
                scope.spawn(move || {
                    let client = broker.connect().unwrap();
                    let name = format!("queue:q{index}");
                    let producer = client.producer(&name).send_timeout(WAIT).create().unwrap();
                    let mut consumer = client.consumer(&name).create().unwrap();
                    for number in 0..500 {
                        producer.send(number.to_string()).unwrap();
                        let received = consumer.receive(WAIT).unwrap().unwrap();
                        assert_eq!(received.text().unwrap(), number.to_string());
                        consumer.acknowledge(received.position()).unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        drop(done);
    });
}

#[test]
fn who_sleeps_is_woken_by_what_others_send() {
    each(|broker| {
        let client = broker.connect().unwrap();
        let options = Client::options().spin(Duration::ZERO);
        let sleeper = options.connect_embedded(broker).unwrap();
        let mut consumer = sleeper.consumer("queue:q").create().unwrap();
        let producer = client
            .producer("queue:q")
            .send_timeout(WAIT)
            .create()
            .unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                for number in 0..200 {
                    let received = consumer.receive(WAIT).unwrap().unwrap();
                    assert_eq!(received.text().unwrap(), number.to_string());
                    consumer.acknowledge(received.position()).unwrap();
                }
            });
            for number in 0..200 {
                producer.send(number.to_string()).unwrap();
                if number % 20 == 0 {
                    thread::yield_now();
                }
            }
            waiting.join().unwrap();
        });
    });
}

#[test]
fn listeners_hear_of_every_send_though_nobody_waits() {
    each(|broker| {
        let client = broker.connect().unwrap();
        let producer = client
            .producer("queue:q")
            .send_timeout(WAIT)
            .create()
            .unwrap();
        let (tell, told) = mpsc::channel();
        for number in 0..500_u64 {
            let tell = tell.clone();
            producer
                .send_with(number.to_string(), move |_, result| {
                    tell.send(result.unwrap().position.offset.0).unwrap();
                })
                .unwrap();
        }
        for number in 0..500_u64 {
            assert_eq!(told.recv_timeout(WAIT).unwrap(), number);
        }
    });
}

#[test]
fn a_broker_that_stops_says_goodbye_and_is_gone_for_good() {
    each_stopped(Broker::start(embedded()).unwrap());
    each_stopped(Broker::without_threads(embedded()).unwrap());
    each_stopped(Broker::start(of_shards(2)).unwrap());
}

fn each_stopped(broker: Broker) {
    let client = broker.connect().unwrap();
    let producer = client
        .producer("queue:q")
        .send_timeout(WAIT)
        .create()
        .unwrap();
    producer.send("before").unwrap();
    broker.stop();
    let error = producer.send("after").unwrap_err();
    assert!(
        matches!(
            error,
            SendError::NotStored { .. } | SendError::Unknown { .. }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("stop"), "{error}");
    assert!(client.end().is_some());
}

#[test]
fn links_have_a_bound_and_the_error_names_it() {
    let broker = Broker::start(BrokerConfig {
        links_in_process: 2,
        ..embedded()
    })
    .unwrap();
    let first = broker.connect().unwrap();
    let _second = broker.connect().unwrap();
    let error = broker.connect().unwrap_err();
    assert!(
        matches!(error, ConnectError::NoLink(NoLink::TooMany { most: 2 })),
        "{error}"
    );
    assert!(error.to_string().contains("links_in_process"), "{error}");
    drop(first);
    // The shard lets go of its end when it next looks.
    until(|| broker.connect().is_ok());
}

#[test]
fn the_rings_of_links_are_within_the_memory_bound() {
    let error = Broker::start(BrokerConfig {
        memory: 64 << 20,
        links_in_process: 8,
        ..BrokerConfig::embedded()
    })
    .unwrap_err();
    assert!(error.to_string().contains("8 in-process links"), "{error}");
    assert!(error.to_string().contains("66 MiB"), "{error}");
}

#[test]
fn a_client_has_a_link_for_each_shard_it_has_to_do_with() {
    let broker = Broker::start(of_shards(2)).unwrap();
    let client = broker.connect().unwrap();
    let mut producers = Vec::new();
    for index in 0..6 {
        let name = format!("queue:q{index}");
        let producer = client.producer(&name).send_timeout(WAIT).create().unwrap();
        producer.send("x").unwrap();
        producers.push(producer);
    }
    assert_eq!(client.connections(), 2);
    let moved = broker.connect().unwrap();
    for index in 0..6 {
        let mut consumer = moved.consumer(&format!("queue:q{index}")).create().unwrap();
        assert_eq!(consumer.receive(WAIT).unwrap().unwrap().text(), Some("x"));
    }
}

/// The device had what was sent when the broker was to stop, and nobody was told: whoever
/// had sent it had to ask another run.
#[test]
fn a_stop_completes_what_the_broker_had_taken() {
    const SENDS: u64 = 20;
    let data = std::env::temp_dir().join(format!("courser-stop-{}", std::process::id()));
    let config = || BrokerConfig {
        data_directory: Some(data.clone()),
        ..embedded()
    };
    for _ in 0..2 {
        let broker = Broker::without_threads(config()).unwrap();
        let client = broker.connect().unwrap();
        let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
        for _ in 0..SENDS {
            producer.try_enqueue("taken").unwrap();
        }
        producer.write();
        broker.turn();
        broker.stop();
        for _ in 0..SENDS {
            let completion = producer.poll_for(WAIT).expect("each has one outcome");
            let receipt = completion.result.expect("it was taken before the stop");
            assert_eq!(receipt.durability, Durability::Flushed);
        }
    }
    std::fs::remove_dir_all(&data).unwrap();
}
