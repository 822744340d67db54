//! One-liners, against a broker that this process starts for them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use courser::facade::{self, FacadeError, consumer, producer};
use courser::{Client, Consumer, Counter};

const WAIT: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(5);

/// The facade is one for the process, so its tests take turns; each with a new broker.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    facade::shutdown();
    turn
}

fn client() -> Client {
    facade::client().unwrap()
}

fn subscriber(client: &Client, destination: &str) -> Consumer {
    client.consumer(destination).create().unwrap()
}

/// The next text within that time, acknowledged.
fn next(consumer: &mut Consumer, wait: Duration) -> Option<String> {
    let received = consumer.receive(wait).unwrap()?;
    consumer.acknowledge(received.position()).unwrap();
    Some(received.text().unwrap().to_owned())
}

#[test]
fn a_text_arrives_once_and_as_it_was() {
    let _turn = alone();
    let mut consumer = subscriber(&client(), "queue:queue1");
    for text in ["Text Message", "", "häß — 文 🦀"] {
        producer::queue("queue1").send(text).unwrap();
        assert_eq!(next(&mut consumer, WAIT).as_deref(), Some(text));
        assert_eq!(next(&mut consumer, SOON), None);
    }
}

#[test]
fn no_socket_is_opened_for_it() {
    let _turn = alone();
    producer::queue("queue1").send("Text Message").unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let sockets: Vec<_> = links
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .collect();
    assert!(sockets.is_empty(), "{sockets:?}");
}

#[test]
fn a_queue_or_topic_is_only_a_name_until_something_is_sent_to_it() {
    let _turn = alone();
    let (queue, topic) = (producer::queue("q"), producer::topic("t"));
    let client = client();
    assert!(client.stats().unwrap().destinations().is_empty());
    queue.send("x").unwrap();
    topic.send("x").unwrap();
    assert_eq!(client.stats().unwrap().destinations().len(), 2);
}

#[test]
fn competing_consumers_of_a_queue_share_what_is_sent() {
    let _turn = alone();
    let clients = [client(), client(), client()];
    let mut consumers = clients.map(|client| subscriber(&client, "queue:q"));
    for number in 0..300 {
        producer::queue("q").send(number.to_string()).unwrap();
    }
    let mut received: Vec<u32> = Vec::new();
    let deadline = Instant::now() + WAIT;
    while received.len() < 300 {
        assert!(Instant::now() < deadline, "{} came", received.len());
        for consumer in &mut consumers {
            while let Some(text) = next(consumer, Duration::ZERO) {
                received.push(text.parse().unwrap());
            }
        }
    }
    for consumer in &mut consumers {
        assert_eq!(next(consumer, SOON), None);
    }
    received.sort_unstable();
    assert!(received.into_iter().eq(0..300), "each once");
}

#[test]
fn subscribers_of_a_topic_get_everything_from_when_they_came() {
    let _turn = alone();
    let client = client();
    let mut early: Vec<_> = (0..3).map(|_| subscriber(&client, "topic:t")).collect();
    for number in 1..=50 {
        producer::topic("t").send(number.to_string()).unwrap();
    }
    let mut late = client.consumer("topic:t").from_latest().create().unwrap();
    for number in 51..=100 {
        producer::topic("t").send(number.to_string()).unwrap();
    }
    for consumer in &mut early {
        for number in 1..=100 {
            assert_eq!(next(consumer, WAIT), Some(number.to_string()));
        }
        assert_eq!(next(consumer, SOON), None);
    }
    for number in 51..=100 {
        assert_eq!(next(&mut late, WAIT), Some(number.to_string()));
    }
    assert_eq!(next(&mut late, SOON), None);
}

#[test]
fn ten_thousand_one_liners_use_one_link_and_keep_their_order() {
    let _turn = alone();
    let mut consumer = subscriber(&client(), "queue:queue1");
    let receiving = thread::spawn(move || {
        for number in 0..10_000 {
            assert_eq!(next(&mut consumer, WAIT), Some(number.to_string()));
        }
    });
    for number in 0..10_000 {
        producer::queue("queue1").send(number.to_string()).unwrap();
    }
    receiving.join().unwrap();
    let stats = client().stats().unwrap();
    assert_eq!(stats.counter(Counter::LinksOpened), 1);
    assert_eq!(client().connections(), 1);
}

#[test]
fn a_queue_and_a_topic_of_the_same_name_are_two() {
    let _turn = alone();
    let client = client();
    let mut topic = subscriber(&client, "topic:a");
    let mut queue = subscriber(&client, "queue:a");
    producer::queue("a").send("for the queue").unwrap();
    assert_eq!(next(&mut queue, WAIT).as_deref(), Some("for the queue"));
    assert_eq!(next(&mut topic, SOON), None);
}

#[test]
fn both_versions_and_the_alias_do_the_same() {
    let _turn = alone();
    let mut consumer = subscriber(&client(), "queue:q");
    facade::v3::producer::queue("q").send("three").unwrap();
    facade::v4::producer::queue("q").send("four").unwrap();
    facade::producer::queue("q").send("alias").unwrap();
    for text in ["three", "four", "alias"] {
        assert_eq!(next(&mut consumer, WAIT).as_deref(), Some(text));
    }
    // The same functions and types: what one makes is the other's.
    let queue: facade::v4::producer::Queue = facade::v3::producer::queue("q");
    queue.send("mixed").unwrap();
    assert_eq!(next(&mut consumer, WAIT).as_deref(), Some("mixed"));
}

#[test]
fn a_text_is_received_with_a_one_liner_or_none_in_time() {
    let _turn = alone();
    producer::queue("q").send("one").unwrap();
    producer::queue("q").send("two").unwrap();
    let receive = || consumer::queue("q").receive(Duration::from_millis(200));
    assert_eq!(receive().unwrap().as_deref(), Some("one"));
    assert_eq!(receive().unwrap().as_deref(), Some("two"));
    let began = Instant::now();
    assert_eq!(receive().unwrap(), None);
    assert!(began.elapsed() >= Duration::from_millis(200));
    // What is no text stays where it is.
    let bytes = client()
        .producer("queue:q")
        .send_timeout(WAIT)
        .create()
        .unwrap();
    bytes.send([0xff, 0xfe]).unwrap();
    for _ in 0..2 {
        let error = receive().unwrap_err();
        assert!(matches!(error, FacadeError::NotText { .. }));
        assert!(error.to_string().contains("queue [q]"), "{error}");
    }
}

#[test]
fn an_error_names_the_destination_and_the_cause() {
    let _turn = alone();
    // A port that somebody had a moment ago.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    facade::init(address).unwrap();
    let error = producer::queue("x").send("text").unwrap_err().to_string();
    assert!(error.contains("queue [x]"), "{error}");
    assert!(error.contains("refused the connection"), "{error}");
    let error = producer::topic("y").send("text").unwrap_err().to_string();
    assert!(error.contains("topic [y]"), "{error}");
    assert!(facade::init("not an address").is_err());
}

#[test]
fn a_client_of_the_applications_own_is_used_if_it_says_so() {
    let _turn = alone();
    let config = courser::embedded::BrokerConfig::embedded();
    let broker = courser::embedded::Broker::without_threads(config).unwrap();
    let client = broker.connect().unwrap();
    facade::use_client(&client);
    let mut consumer = subscriber(&client, "queue:q");
    producer::queue("q").send("here").unwrap();
    assert_eq!(next(&mut consumer, WAIT).as_deref(), Some("here"));
    // And once that broker is gone, the error says so.
    drop(consumer);
    broker.stop();
    let error = producer::queue("q")
        .send("nowhere")
        .unwrap_err()
        .to_string();
    assert!(error.contains("queue [q]"), "{error}");
    facade::shutdown();
    producer::queue("q")
        .send("a broker of its own again")
        .unwrap();
}
