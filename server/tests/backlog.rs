//! A backlog that is many times what memory holds: nothing is refused for that, memory stays
//! within its bound, and all of it is there after a kill.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use accounts::assert_exactly_once_in_order;
use home::Home;
use support::{Broker, resident, run};

const MIB: u64 = 1024 * 1024;
/// Three times the memory of the broker, which is the least.
const COUNT: u64 = 12_000;
const BODY: u64 = 16 * 1024;

fn home() -> Home {
    let mut home = Home::new();
    home.memory_per_shard = 64;
    home.body = BODY;
    home
}

/// What it was started with, and what every process has.
fn assert_within_memory(broker: &Broker) {
    let resident = resident(broker.pid());
    let bound = (64 + 48) * MIB;
    assert!(resident < bound, "{} MiB are resident", resident / MIB);
}

#[test]
fn a_backlog_beyond_memory_outlives_a_kill_and_comes_once_in_order() {
    const QUEUE: &str = "queue:/kept/backlog";
    let home = home();
    let broker = home.start(1, "auto");
    let acknowledged = home.sender(QUEUE, COUNT, 1, "60s").complete();
    assert_within_memory(&broker);
    broker.kill();
    home.assert_whole();

    // What a start reads of the journal is in memory beside it, for a moment.
    let broker = home.start(1, "epoll");
    // More on top, once what was there has been told again.
    let mut all = acknowledged;
    all.extend(home.sender(QUEUE, COUNT / 8, 1, "60s").complete());
    let received = home.receive(&format!("{QUEUE} --count {}", COUNT + COUNT / 8), "30s");
    assert_exactly_once_in_order(&all, &received);
    assert_within_memory(&broker);
}

/// Each lies in pages of its own, of which few make a batch.
#[test]
fn a_backlog_of_large_messages_is_there_after_a_kill() {
    const QUEUE: &str = "queue:/kept/large";
    const LARGE: u64 = 400;
    let mut home = home();
    home.body = 300 * 1024;
    let broker = home.start(1, "auto");
    let acknowledged = home.sender(QUEUE, LARGE, 1, "60s").complete();
    broker.kill();
    let broker = home.start(1, "auto");
    let received = home.receive(&format!("{QUEUE} --count {LARGE}"), "30s");
    assert_exactly_once_in_order(&acknowledged, &received);
    assert_within_memory(&broker);
}

#[test]
fn a_slow_subscription_costs_a_fast_one_nothing() {
    const TOPIC: &str = "topic:/kept/news";
    let home = home();
    let broker = home.start(1, "auto");
    for subscription in ["fast", "slow"] {
        let line = format!(
            "receive {TOPIC} --subscription {subscription} --timeout 1ms --connect {}",
            home.address
        );
        let ended = run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(ended.status, Some(0), "{ended:?}");
    }
    let receive = |subscription: &str| {
        let what = format!("{TOPIC} --subscription {subscription} --count {COUNT}");
        home.receive(&what, "30s")
    };
    let (fast, acknowledged) = std::thread::scope(|scope| {
        let fast = scope.spawn(|| receive("fast"));
        let acknowledged = home.sender(TOPIC, COUNT, 1, "60s").complete();
        (fast.join().unwrap(), acknowledged)
    });
    assert_exactly_once_in_order(&acknowledged, &fast);
    assert_within_memory(&broker);
    assert_exactly_once_in_order(&acknowledged, &receive("slow"));
    assert_within_memory(&broker);
}
