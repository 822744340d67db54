//! Destinations that keep whole segments: what is closed, what stays, what goes, and that a
//! broker that is killed brings nothing back.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use std::time::{Duration, Instant};

use home::Home;
use serde_json::Value;
use support::{Broker, DEADLINE, Ended};

const MEBIBYTE: u64 = 1 << 20;

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.status, Some(0), "{ended:?}");
    ended.stdout
}

/// A broker with room for segments of 5 MiB.
fn roomy(home: &mut Home) -> Broker {
    home.memory_per_shard = 512;
    home.start(1, "epoll")
}

fn shown(broker: &Broker, topic: &str) -> Value {
    let text = succeeded(broker.courser(&format!("topic show {topic} --json")));
    serde_json::from_str(&text).unwrap()
}

/// Closed segments, open ones, and the bytes in them.
fn segments(broker: &Broker, topic: &str) -> (u64, u64, u64) {
    let topic = shown(broker, topic);
    let number = |key: &str| topic["segments"][key].as_u64().unwrap();
    (number("closed"), number("open"), number("bytes"))
}

/// Sends so many mebibytes, one message each.
fn send(broker: &Broker, topic: &str, mebibytes: u64) {
    let line = format!("send topic:{topic} --count {mebibytes} --size 1MiB --timeout 60s");
    succeeded(broker.courser(&line));
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

#[test]
fn twelve_megabytes_are_two_closed_segments_of_five_and_an_open_one() {
    let mut home = Home::new();
    let broker = roomy(&mut home);
    succeeded(broker.courser("topic create log --until-expired 1h --segment 5MB"));
    send(&broker, "log", 5);
    let (closed, open, _) = segments(&broker, "log");
    assert_eq!(
        (closed, open),
        (0, 1),
        "it is full, and nothing came behind it"
    );
    send(&broker, "log", 7);
    let (closed, open, bytes) = segments(&broker, "log");
    assert_eq!((closed, open), (2, 1));
    assert!((12 * MEBIBYTE..13 * MEBIBYTE).contains(&bytes), "{bytes}");
    let topic = shown(&broker, "log");
    assert_eq!(
        topic["retention"],
        serde_json::json!({
            "policy": "until-expired",
            "segment_bytes": 5 * MEBIBYTE,
            "period_seconds": 3600,
        })
    );
    let text = succeeded(broker.courser("topic show log"));
    assert!(text.contains("2 closed, 1 open"), "{text}");
    broker.kill();
    let broker = roomy(&mut home);
    assert_eq!(
        segments(&broker, "log"),
        (2, 1, bytes),
        "as before the kill"
    );
    broker.kill();
}

#[test]
fn closed_segments_expire_though_nobody_acknowledged_them_and_stay_away_after_a_kill() {
    let mut home = Home::new();
    let broker = roomy(&mut home);
    succeeded(broker.courser("topic create news --until-expired 3s --segment 1MiB"));
    // Somebody has a claim on all of it, and takes nothing.
    succeeded(broker.courser("receive topic:news --subscription slow --timeout 1ms"));
    let began = Instant::now();
    send(&broker, "news", 3);
    wait_until("closed segments expire", || {
        segments(&broker, "news").0 == 0
    });
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "they were closed behind the first message, and kept so long"
    );
    assert_eq!(segments(&broker, "news").1, 1, "the open one stays");
    let left = shown(&broker, "news")["unsettled"].as_u64();
    assert_eq!(left, Some(1), "what expired is nobody's any more");
    broker.kill();
    home.assert_whole();
    let broker = roomy(&mut home);
    assert_eq!(segments(&broker, "news").0, 0, "nothing came back");
    let line = "receive topic:news --subscription slow --count 1 --timeout 60s";
    let got = succeeded(broker.courser(line));
    assert_eq!(
        got.len() as u64,
        MEBIBYTE + 1,
        "one message and its line's end"
    );
    // Closed in this run, what was open goes as well.
    send(&broker, "news", 1);
    wait_until("the next one expires", || {
        let (closed, open, bytes) = segments(&broker, "news");
        (closed, open) == (0, 1) && bytes < 2 * MEBIBYTE
    });
    broker.kill();
}

#[test]
fn a_segment_stays_until_every_subscription_has_acknowledged_all_of_it() {
    let mut home = Home::new();
    let broker = roomy(&mut home);
    succeeded(broker.courser("topic create jobs --until-acknowledged --segment 1MiB"));
    for name in ["first", "second"] {
        let line = format!("receive topic:jobs --subscription {name} --timeout 1ms");
        succeeded(broker.courser(&line));
    }
    send(&broker, "jobs", 4);
    let receive = |broker: &Broker, name: &str, count: u64| {
        let line =
            format!("receive topic:jobs --subscription {name} --count {count} --timeout 60s");
        succeeded(broker.courser(&line));
    };
    receive(&broker, "first", 4);
    receive(&broker, "second", 1);
    wait_until("one of them is settled by both", || {
        segments(&broker, "jobs").0 == 2
    });
    broker.kill();
    let broker = roomy(&mut home);
    assert_eq!(
        segments(&broker, "jobs").0,
        2,
        "what one has not settled stays"
    );
    receive(&broker, "second", 3);
    wait_until("only the open one stays", || {
        segments(&broker, "jobs").0 == 0
    });
    let (_, open, bytes) = segments(&broker, "jobs");
    assert!(open == 1 && bytes > MEBIBYTE, "{bytes}");
    broker.kill();
}

#[test]
fn an_option_that_makes_no_sense_is_named() {
    let broker = Broker::start("epoll");
    for (line, expected) in [
        ("topic create x --until-expired 3s", "--segment"),
        ("topic create x --segment 1MiB", "--until-expired"),
        (
            "topic create x --retain 1MiB --until-acknowledged --segment 1MiB",
            "cannot be used with",
        ),
        (
            "topic create x --until-expired 3 --segment 1MiB",
            "a duration is a number and a unit",
        ),
        (
            "topic create x --until-expired 0s --segment 1MiB",
            "a period of 0 s",
        ),
        (
            "topic create x --until-expired 1500ms --segment 1MiB",
            "whole number of seconds",
        ),
        (
            "topic create x --until-expired 3s --segment 1KiB",
            "a segment of 1024 bytes",
        ),
        (
            "topic create x --until-acknowledged --segment 2GiB",
            "a segment of 2147483648 bytes",
        ),
        (
            "topic create x --until-acknowledged --until-expired 3s --segment 1MiB",
            "cannot be used with",
        ),
        (
            "topic create x --until-acknowledged --segment 900MiB",
            "at most",
        ),
    ] {
        let ended = broker.courser(line);
        assert_ne!(ended.status, Some(0), "{line}: {ended:?}");
        assert!(ended.stderr.contains(expected), "{line}: {ended:?}");
    }
}
