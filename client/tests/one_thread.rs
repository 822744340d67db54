//! A broker, a producer and a consumer on one thread, in a process without another one
//! of the library's.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use courser::embedded::{Broker, BrokerConfig};

/// Threads of this process that are the library's.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    names.filter(|name| name.starts_with("courser")).count()
}

#[test]
fn one_thread_is_enough_for_both_ends_and_the_broker() {
    let broker = Broker::without_threads(BrokerConfig::embedded()).unwrap();
    let client = broker.connect().unwrap();
    let producer = client.producer("q").create().unwrap();
    producer.send("x").unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    let received = consumer.receive(Duration::from_secs(60)).unwrap().unwrap();
    assert_eq!(received.text(), Some("x"));
    assert_eq!(threads(), 0, "nobody was asked for help");
    assert!(!broker.turn(), "nothing is left to do");
}
