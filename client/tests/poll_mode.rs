//! Poll mode starts no thread, and neither does anything else that waits by
//! itself. In a process of its own, because it counts the process's threads.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use common::{TestBroker, WAIT, until};
use courser::TrySendError;

/// The process's threads, by id.
fn threads() -> BTreeSet<u32> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

fn names() -> Vec<String> {
    let name = |thread| fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
    // One that ends meanwhile has no name any more.
    let names = threads().into_iter().filter_map(|thread| name(thread).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

#[test]
fn nothing_but_listeners_and_futures_starts_a_thread_and_theirs_go_again() {
    let broker = TestBroker::start();
    let before = threads();
    let client = broker.client();
    assert_eq!(threads(), before, "connecting");
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    assert_eq!(threads(), before, "opening");
    let (mut sent, mut completed, mut received) = (0u64, 0, 0);
    while received < 3000 {
        while sent < 3000 && sent - received < 500 {
            match producer.try_send(sent.to_le_bytes()) {
                Ok(_) => sent += 1,
                Err(TrySendError::WouldBlock) => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(completion) = producer.poll() {
            completion.result.unwrap();
            completed += 1;
        }
        while let Some(message) = consumer.try_receive().unwrap() {
            let position = message.position();
            consumer.acknowledge(position).unwrap();
            received += 1;
        }
        if received % 64 == 0 {
            assert_eq!(threads(), before, "{sent} sent, {completed} completed");
        }
    }
    while completed < 3000 {
        completed += u64::from(producer.poll_for(WAIT).is_some());
    }
    producer.send("blocking").unwrap();
    consumer.receive(WAIT).unwrap().unwrap();
    assert!(
        consumer
            .receive(Duration::from_millis(5))
            .unwrap()
            .is_none()
    );
    assert_eq!(threads(), before, "after polling and blocking");

    drop(producer.send_future("x"));
    // A thread is there before it has its name.
    until(|| names().contains(&"courser-link".to_owned()));
    producer.send_with("x", |_, _| {}).unwrap();
    until(|| names().contains(&"courser-calls".to_owned()));
    producer.flush().unwrap();
    until(|| threads() == before);

    // And they come again.
    producer.send_with("x", |_, _| {}).unwrap();
    producer.flush().unwrap();
    producer.close().unwrap();
    consumer.close().unwrap();
    client.close().unwrap();
    until(|| threads() == before);
}
