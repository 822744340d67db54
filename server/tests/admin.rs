//! What an administrator sees and does, with the real binary.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::{Broker, Ended, Running, courser};

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "");
    assert!(!ended.stdout.contains('\u{1b}'), "no colour: {ended:?}");
    ended.stdout
}

fn json(ended: Ended) -> Value {
    serde_json::from_str(&succeeded(ended)).unwrap()
}

fn refused(ended: &Ended, status: i32, expected: &str) {
    assert_eq!(ended.status, Some(status), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    assert!(ended.stderr.starts_with("error: "), "{ended:?}");
    assert!(ended.stderr.contains(expected), "{ended:?}");
}

/// The words of the row that begins with `first`.
fn row(table: &str, first: &str) -> String {
    let rows = table.lines().map(|line| line.split_whitespace());
    let mut rows = rows.map(|words| words.collect::<Vec<_>>().join(" "));
    let found = rows.find(|row| row.starts_with(first));
    found.unwrap_or_else(|| panic!("{first:?} is a row of {table}"))
}

#[test]
fn topics_are_created_seen_changed_and_deleted() {
    let broker = Broker::start("epoll");
    let said = succeeded(broker.courser("topic create /md/eu --partitions 3 --max-producers 2"));
    assert_eq!(said, "topic:/md/eu created\n");
    let said = succeeded(broker.courser("topic create /md/eu"));
    assert_eq!(said, "topic:/md/eu exists already\n");
    let table = succeeded(broker.courser("topic ls"));
    assert_eq!(row(&table, "/md/eu"), "/md/eu 3 0 0 0 B 0/2 0 0");
    let shown = succeeded(broker.courser("topic show topic:/md/eu"));
    assert_eq!(row(&shown, "producers"), "producers 0/2");
    for name in ["/md/eu-part-0", "/md/eu-part-1", "/md/eu-part-2"] {
        assert!(shown.lines().any(|line| line == name), "{shown}");
    }
    let one = json(broker.courser("topic show /md/eu --json"));
    assert_eq!(one["partition_names"][2], "/md/eu-part-2");
    let said = succeeded(broker.courser("topic set /md/eu --max-producers 0"));
    assert_eq!(said, "topic:/md/eu changed\n");
    let said = succeeded(broker.courser("topic set /md/eu --max-producers 0"));
    assert_eq!(said, "topic:/md/eu is so already\n");
    let all = json(broker.courser("topic ls --json"));
    assert_eq!(all[0]["producers_max"], 0);
    assert_eq!(
        json(broker.courser("queue ls --json")),
        Value::Array(vec![])
    );
    let said = succeeded(broker.courser("topic rm /md/eu --yes"));
    assert_eq!(said, "topic:/md/eu deleted\n");
    assert_eq!(
        json(broker.courser("topic ls --json")),
        Value::Array(vec![])
    );
}

#[test]
fn what_is_fixed_at_creation_is_shown_and_nobody_gets_it_otherwise() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("topic create fast --dispatch early"));
    let shown = succeeded(broker.courser("topic show fast"));
    assert_eq!(row(&shown, "dispatch"), "dispatch early");
    assert_eq!(row(&shown, "retention"), "retention what is not settled");
    let all = json(broker.courser("topic ls --json"));
    assert_eq!(all[0]["dispatch"], "early");
    assert_eq!(all[0]["retention"]["policy"], "settled");
    for (line, status, expected) in [
        (
            "topic create fast --dispatch durable",
            4,
            "has early dispatch, and durable is wanted: the dispatch strategy is fixed",
        ),
        ("topic create new --dispatch late", 2, "durable or early"),
    ] {
        refused(&broker.courser(line), status, expected);
    }
}

#[test]
fn mistakes_about_destinations_are_named_with_what_to_do() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("queue create orders --partitions 3"));
    for (line, status, expected) in [
        (
            "queue create orders --partitions 4",
            4,
            "has 3 partitions, and 4 are wanted",
        ),
        (
            "queue create new --partitions 0",
            4,
            "partitions must be > 0 or omitted",
        ),
        ("queue create new --partitions 9999", 4, "at most 1024"),
        (
            "queue create orders --max-consumers 5",
            4,
            "courser queue set",
        ),
        ("queue create /a/b/c", 2, "/namespace/name"),
        ("queue create topic:t", 2, "/namespace/name"),
        ("queue show none", 4, "queue:/default/none does not exist"),
        (
            "topic show orders",
            4,
            "topic:/default/orders does not exist",
        ),
        ("queue set orders", 2, "--max-producers N"),
        ("queue set none --max-producers 1", 4, "does not exist"),
        ("queue rm none --yes", 4, "does not exist"),
        ("queue rm orders", 2, "nobody to ask"),
        ("queue drop orders", 2, "courser queue --help"),
        ("queue create orders --partitions x", 2, "--partitions"),
    ] {
        refused(&broker.courser(line), status, expected);
    }
    let all = json(broker.courser("queue ls --json"));
    assert_eq!(all.as_array().unwrap().len(), 1, "nothing was changed");
}

#[test]
fn what_is_in_use_is_deleted_by_force_and_who_uses_it_hears_it() {
    let broker = Broker::start("epoll");
    let mut receiver = broker.start_verb("receive orders");
    succeeded(broker.courser("send orders one"));
    assert_eq!(receiver.next_line().unwrap(), "one");
    refused(&broker.courser("queue rm orders --yes"), 4, "--force");
    succeeded(broker.courser("queue rm orders --yes --force"));
    let ended = receiver.end();
    assert_eq!(ended.status, Some(4), "{ended:?}");
    assert!(
        ended.stderr.contains("the destination was deleted"),
        "{ended:?}"
    );
}

#[test]
fn a_broker_that_creates_nothing_by_itself_waits_for_who_does() {
    let mut serve = Running::start(&[
        "serve",
        "--ephemeral",
        "--listen",
        "127.0.0.1:0",
        "--cores",
        "none",
        "--memory",
        "64MiB",
        "--transport",
        "epoll",
        "--auto-create",
        "off",
    ]);
    let address = loop {
        let line = serve.next_line().unwrap();
        if let Some(address) = line.strip_prefix("listening ") {
            break address.trim().to_owned();
        }
    };
    let at = |line: &str| courser(&format!("{line} --connect {address}"));
    refused(
        &at("send orders one"),
        4,
        "queue:/default/orders does not exist",
    );
    succeeded(at("queue create orders"));
    succeeded(at("send orders one"));
    let wrong = courser("serve --auto-create maybe");
    assert_eq!(wrong.status, Some(2), "{wrong:?}");
}

#[test]
fn subscriptions_are_listed_shown_and_removed() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("topic create t --partitions 2"));
    let mut receiver =
        broker.start_verb("receive topic:t --subscription books --type shared --count 1");
    broker.wait_until("topic:/default/t", |row| row["consumers"] == 1);
    succeeded(broker.courser("send topic:t one two three"));
    assert!(receiver.next_line().is_some());
    assert_eq!(receiver.end().status, Some(0));
    let all = json(broker.courser("sub ls topic:t --json"));
    assert_eq!(all[0]["subscription"], "books");
    assert_eq!(all[0]["type"], "shared");
    assert_eq!(all[0]["backlog"], 2);
    let table = succeeded(broker.courser("sub ls"));
    assert!(
        row(&table, "topic:/default/t").ends_with("books shared 0 2 2"),
        "{table}"
    );
    let one = json(broker.courser("sub show topic:t books --json"));
    let ends = one["places"].as_array().unwrap().iter();
    assert_eq!(
        ends.map(|place| place["end"].as_u64().unwrap())
            .sum::<u64>(),
        3
    );
    let text = succeeded(broker.courser("sub show topic:t books"));
    assert!(
        text.starts_with("topic:/default/t books · shared · backlog 2"),
        "{text}"
    );
    for (line, status, expected) in [
        ("sub show topic:t none", 4, "has no subscription \"none\""),
        ("sub show topic:none books", 4, "does not exist"),
        (
            "sub rm topic:t none --yes",
            4,
            "has no subscription \"none\"",
        ),
        ("sub rm topic:t books", 2, "nobody to ask"),
        ("sub rm topic:t", 2, "courser sub --help"),
        ("sub ls topic:", 2, "/namespace/name"),
    ] {
        refused(&broker.courser(line), status, expected);
    }
    succeeded(broker.courser("sub rm topic:t books --yes"));
    assert_eq!(json(broker.courser("sub ls --json")), Value::Array(vec![]));
    succeeded(broker.courser("queue create q"));
    refused(&broker.courser("sub rm q x --yes"), 4, "goes with it");
    let own = succeeded(broker.courser("sub show q"));
    assert!(own.contains("(the queue's own)"), "{own}");
}

#[test]
fn connections_are_listed_and_ended() {
    let broker = Broker::start("epoll");
    let receiver = broker.start_verb("receive orders");
    broker.wait_until("queue:/default/orders", |row| row["consumers"] == 1);
    let all = json(broker.courser("conn ls --json"));
    let all = all.as_array().unwrap();
    let victim = all.iter().find(|row| row["consumers"] == 1).unwrap();
    let number = victim["number"].as_u64().unwrap();
    let table = succeeded(broker.courser("conn ls"));
    assert!(
        row(&table, &number.to_string()).ends_with("1 0 1 0 B"),
        "{table}"
    );
    refused(
        &broker.courser(&format!("conn kill {number}")),
        2,
        "nobody to ask",
    );
    let said = succeeded(broker.courser(&format!("conn kill {number} --yes")));
    assert_eq!(said, format!("connection {number} ended\n"));
    refused(
        &broker.courser(&format!("conn kill {number} --yes")),
        4,
        "no connection has the number",
    );
    refused(&broker.courser("conn kill me --yes"), 2, "courser conn ls");
    drop(receiver);
}

#[test]
fn producers_are_listed_and_fenced() {
    let broker = Broker::start("epoll");
    let sender = broker.start_verb("send orders --count 1000000 --size 10 --timeout 60s");
    broker.wait_until("queue:/default/orders", |row| row["producers"] == 1);
    let all = json(broker.courser("producer ls orders --json"));
    let id = all[0]["id"].as_u64().unwrap();
    assert_eq!(
        (&all[0]["access"], &all[0]["epoch"]),
        (&"shared".into(), &1.into())
    );
    let table = succeeded(broker.courser("producer ls"));
    assert!(
        row(&table, &id.to_string()).contains("queue:/default/orders shared 1"),
        "{table}"
    );
    refused(
        &broker.courser(&format!("producer fence {id}")),
        2,
        "nobody to ask",
    );
    let fenced = broker.courser(&format!("producer fence {id} --yes --json"));
    assert_eq!(json(fenced)["fenced"], true);
    let ended = sender.end();
    assert!(ended.status != Some(0), "{ended:?}");
    refused(
        &broker.courser(&format!("producer fence {id} --yes")),
        4,
        "no producer",
    );
    refused(
        &broker.courser("producer fence -1 --yes"),
        2,
        "courser producer ls",
    );
    refused(&broker.courser("producer ls none"), 4, "does not exist");
}

#[test]
fn without_a_broker_every_verb_says_that_none_is_there() {
    for line in [
        "topic ls",
        "queue show orders",
        "queue create orders",
        "queue set orders --max-producers 1",
        "queue rm orders --yes",
        "sub ls",
        "producer ls",
        "producer fence 1 --yes",
        "conn ls",
        "conn kill 1 --yes",
    ] {
        let ended = courser(&format!("{line} --connect 127.0.0.1:1"));
        refused(&ended, 3, "127.0.0.1:1");
    }
}
