//! `courser dump`: what a running broker keeps of a topic, seen and left as it is, and what
//! a data directory holds of one destination.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use accounts::{Record, ack_log};
use courser::Client;
use courser_core::frame::checksum;
use home::Home;
use serde_json::Value;
use support::{Broker, DEADLINE, Directory, Ended, courser, run};

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.status, Some(0), "{ended:?}");
    ended.stdout
}

fn lines(ended: Ended) -> Vec<Value> {
    let lines = succeeded(ended);
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// What a line about a message says, as an ack log does.
fn record(line: &Value) -> Record {
    assert_eq!(line["is"], "message");
    assert!(line["append_time"].as_u64().unwrap() > 0);
    Record {
        id: (
            line["producer"].as_u64().unwrap(),
            line["sequence"].as_u64().unwrap(),
        ),
        partition: u32::try_from(line["partition"].as_u64().unwrap()).unwrap(),
        offset: line["offset"].as_u64().unwrap(),
        checksum: line["checksum"].as_str().unwrap().to_owned(),
    }
}

fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

#[test]
fn what_a_topic_keeps_is_printed_and_taken_from_nobody() {
    let directory = Directory::new();
    for broker in [Broker::start("auto"), Broker::of_shards(2)] {
        succeeded(broker.courser("send topic:log --count 0 --partitions 3 --retain 1MiB"));
        // Nothing is kept there, and that is said.
        assert!(lines(broker.courser("dump topic:log --json")).is_empty());
        succeeded(
            broker.courser("receive topic:log --subscription books --type shared --timeout 100ms"),
        );
        let log = directory.file("acks");
        succeeded(broker.courser(&format!(
            "send topic:log --count 3000 --size 100 --ack-log {log}"
        )));
        let told = sorted(ack_log(&log));
        let backlog = || {
            let shown = broker.courser("sub ls topic:log --json");
            let rows: Value = serde_json::from_str(&succeeded(shown)).unwrap();
            rows.as_array().unwrap().clone()
        };
        let before = backlog();
        assert_eq!((before.len(), &before[0]["backlog"]), (1, &3000.into()));

        for _ in 0..2 {
            let dumped = lines(broker.courser("dump topic:log --json"));
            let records: Vec<Record> = dumped.iter().map(record).collect();
            assert_eq!(sorted(records), told);
            assert!(dumped.iter().all(|line| line["body"] == 100));
        }
        broker.wait_until("topic:/default/log", |row| row["consumers"] == 0);
        assert_eq!(backlog(), before, "its subscription has all before it");
        let line =
            "receive topic:log --subscription books --type shared --count 3000 --timeout 60s";
        assert_eq!(succeeded(broker.courser(line)).lines().count(), 3000);
        // What everybody has settled is kept as long as it is retained.
        assert_eq!(lines(broker.courser("dump topic:log --json")).len(), 3000);
    }
}

#[test]
fn how_a_body_begins_is_shown_and_what_is_no_text_does_no_harm() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send topic:t --count 0 --retain 1MiB"));
    let long = "\u{e9}".repeat(100);
    let bodies = format!("one\n\u{1b}[31mred\n{long}\n");
    succeeded(broker.courser_with_input("send topic:t", &bodies));
    let dumped = lines(broker.courser("dump topic:t --json"));
    assert_eq!(dumped[0]["preview"], "one");
    assert_eq!(dumped[2]["preview"], format!("{}...", "\u{e9}".repeat(32)));
    let text = succeeded(broker.courser("dump topic:t"));
    assert!(
        text.starts_with("message  partition 0  offset 0  append time "),
        "{text}"
    );
    assert!(text.contains("  body 3  checksum "), "{text}");
    assert!(
        !text.contains('\u{1b}'),
        "a terminal is told nothing: {text:?}"
    );
}

/// What the files of all journals say.
fn journals(home: &Home) -> Vec<u32> {
    let entries = fs::read_dir(&home.data).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    let files = folders.iter().flat_map(|path| fs::read_dir(path).unwrap());
    let mut paths: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let sums = paths
        .iter()
        .map(|path| checksum::body(&fs::read(path).unwrap()));
    sums.collect()
}

/// A queue's messages go to one consumer each, so looking at it was refused.
#[test]
fn what_a_queue_keeps_is_printed_while_consumers_take_from_it_and_taken_from_nobody() {
    for (shards, kept) in [(1, false), (2, false), (1, true), (2, true)] {
        let home = Home::new();
        let broker = if kept {
            home.start(shards, "auto")
        } else {
            Broker::of_shards(shards)
        };
        succeeded(broker.courser("send queue:orders --count 0 --partitions 3"));
        assert!(lines(broker.courser("dump queue:orders --json")).is_empty());
        let log = home.records.file("acks");
        succeeded(broker.courser(&format!(
            "send queue:orders --count 2000 --size 100 --ack-log {log}"
        )));
        let told = sorted(ack_log(&log));

        // One consumer holds ten, and has settled five of them.
        let client = Client::connect(&*broker.address).unwrap();
        let mut consumer = client.consumer("orders").prefetch(10).create().unwrap();
        let mut settled = Vec::new();
        for number in 0..5 {
            let received = consumer.receive(DEADLINE).unwrap().unwrap();
            if number % 2 == 0 {
                consumer.acknowledge(received.position()).unwrap();
                let position = received.position();
                settled.push((position.partition.0, position.offset.0));
            }
        }
        consumer.confirm().unwrap();
        let left = |settled: &[(u32, u64)]| {
            let mut left = told.clone();
            left.retain(|it| !settled.contains(&(it.partition, it.offset)));
            left
        };
        let row = || {
            let shown = succeeded(broker.courser("queue show orders --json"));
            serde_json::from_str::<Value>(&shown).unwrap()
        };
        let before = row();
        let journals = kept.then(|| journals(&home));
        for _ in 0..3 {
            let dumped = lines(broker.courser("dump queue:orders --json"));
            let records: Vec<Record> = dumped.iter().map(record).collect();
            assert_eq!(sorted(records), left(&settled));
        }
        assert_eq!(row(), before, "nothing is counted");
        let found = kept.then(|| self::journals(&home));
        assert!(found == journals, "nothing is written");

        // And while it takes all that is left.
        let look = format!("dump queue:orders --json --connect {}", broker.address);
        let (mut dumps, mut taken) = (Vec::new(), settled.len());
        thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let mut dumps = Vec::new();
                while dumps
                    .last()
                    .is_none_or(|last: &Vec<Value>| !last.is_empty())
                {
                    dumps.push(lines(courser(&look)));
                }
                dumps
            });
            consumer.recover().unwrap();
            while taken < told.len() {
                let received = consumer.receive(DEADLINE).unwrap().unwrap();
                consumer.acknowledge(received.position()).unwrap();
                taken += 1;
            }
            consumer.confirm().unwrap();
            dumps = looking.join().unwrap();
        });
        assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
        for dumped in dumps {
            let records = sorted(dumped.iter().map(record).collect());
            assert!(records.iter().all(|it| left(&settled).contains(it)));
            let mut once = records.clone();
            once.dedup_by_key(|it| (it.partition, it.offset));
            assert_eq!(once.len(), records.len(), "each is shown once");
        }
    }
}

#[test]
fn what_is_not_there_is_not_made_by_looking_at_it() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send orders one"));
    for (line, status, said) in [
        ("dump queue:nowhere", 4, "queue:/default/nowhere"),
        ("dump topic:nowhere", 4, "topic:/default/nowhere"),
        ("dump topic:a.b", 2, "topic:a.b"),
        (
            "dump topic:t --destination q",
            2,
            "--destination chooses from a data directory",
        ),
    ] {
        let ended = broker.courser(line);
        assert_eq!(ended.status, Some(status), "{line}: {ended:?}");
        assert!(ended.stderr.contains(said), "{line}: {ended:?}");
        assert_eq!(ended.stdout, "", "{line}");
    }
    let stats = broker.stats();
    let rows = stats["destinations"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["stored"]), (1, &1.into()), "{rows:?}");
    assert_eq!(
        succeeded(broker.courser("receive orders --count 1")),
        "one\n"
    );
    let ended = courser("dump topic:t --connect 127.0.0.1:1");
    assert_eq!(ended.status, Some(3), "{ended:?}");
    // A path that looks like a name is one with a dot before it.
    let ended = courser("dump ./topic:t");
    assert!(ended.stderr.contains("cannot find ./topic:t"), "{ended:?}");
}

#[test]
fn of_a_directory_one_destination_can_be_chosen() {
    let home = Home::new();
    let broker = home.start(2, "auto");
    let told = home.sender("queue:/shop/orders", 20, 3, "60s").complete();
    home.sender("topic:/shop/orders", 5, 1, "60s").complete();
    home.sender("queue:/shop/returns", 7, 1, "60s").complete();
    broker.kill();

    let of = |name: &str| run(&["dump", &home.data, "--json", "--destination", name]);
    let chosen = lines(of("/shop/orders"));
    let is = |line: &Value, what: &str| line["is"] == what;
    let messages = chosen.iter().filter(|line| is(line, "message"));
    assert_eq!(sorted(messages.map(record).collect()), sorted(told));
    let rest = chosen.iter().filter(|line| !is(line, "batch"));
    let subjects: Vec<&Value> = rest.map(|line| &line["destination"]).collect();
    assert!(
        subjects.iter().all(|it| it.is_null() || *it == subjects[1]),
        "{subjects:?}"
    );
    let whole = lines(run(&["dump", &home.data, "--json"]));
    assert_eq!(whole.iter().filter(|line| is(line, "message")).count(), 27);

    let nothing = of("topic:/shop/refunds");
    assert_eq!(nothing.status, Some(2), "{nothing:?}");
    assert!(
        nothing
            .stderr
            .contains("holds nothing of topic:/shop/refunds"),
        "{nothing:?}"
    );
}
