//! `courser serve` as its operator meets it: what it says, what it refuses, how it
//! stops.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::{TcpListener, TcpStream};

use rustix::process::Signal;
use support::{Broker, Running, courser, on_both_transports, run};

/// The first line says what is wrong, the second, if any, what to do.
fn refused(line: &str, status: i32, expected: &str) {
    let ended = courser(line);
    assert_eq!(ended.status, Some(status), "{line}: {ended:?}");
    assert_eq!(ended.stdout, "", "{line}");
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert!(lines[0].starts_with("error"), "{line}: {ended:?}");
    assert!(lines[0].contains(expected), "{line}: {ended:?}");
    assert!(lines.len() <= 2, "{line}: {ended:?}");
    assert!(
        lines.iter().skip(1).all(|line| line.starts_with("  fix ")),
        "{line}: {ended:?}"
    );
}

#[test]
fn without_a_verb_it_prints_help() {
    let ended = run::<&str>(&[]);
    assert_eq!(ended.status, Some(0));
    assert!(ended.stdout.contains("Usage: courser"), "{ended:?}");
    assert!(ended.stdout.contains("Exit status: 0 done"), "{ended:?}");
    assert_eq!(ended.stderr, "");
}

#[test]
fn it_says_what_it_runs_with_and_stops_in_order_at_a_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        on_both_transports(|broker| {
            assert!(TcpStream::connect(&broker.address).is_ok());
            broker.signal(signal);
            let ended = broker.end();
            assert_eq!((ended.status, ended.signal), (Some(0), None), "{ended:?}");
            for word in [
                "shard 0",
                "idle",
                "memory     256 MiB",
                "data       nothing is kept",
            ] {
                assert!(ended.stdout.contains(word), "{word}: {ended:?}");
            }
            assert!(ended.stderr.starts_with("stopping"), "{ended:?}");
        });
    }
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(
        &format!("serve --ephemeral --listen {address}"),
        1,
        &format!("cannot listen on {address}"),
    );
}

#[test]
fn what_does_not_exist_or_does_not_go_together_is_refused_in_one_line() {
    for (line, expected) in [
        ("serve --listen here", "an address is IP:PORT"),
        ("serve --listen 0.0.0.0:0", "not a loopback address"),
        ("serve --cores one", "not a list of cpus"),
        (
            "serve --ephemeral --cores 4000",
            "cpu 4000 is not in this process's cpuset",
        ),
        ("serve --ephemeral --shards 65", "a broker has at most 64"),
        ("serve --shards 0", "0 is not in 1..=65535"),
        (
            "serve --ephemeral --shards 2 --memory 128MiB",
            "too little for 2 shards, which need 64 MiB each",
        ),
        ("serve --shards 1 --cores 0", "cannot be used with"),
        ("serve --idle hard", "hard"),
        ("serve --spin-budget long", "a duration is a number"),
        (
            "serve --transport rdma",
            "none of \"auto\", \"io_uring\" and \"epoll\"",
        ),
        (
            "serve --ephemeral --listen 127.0.0.1:0 --memory 1MiB",
            "below the least of 64 MiB",
        ),
        ("serve --memory lots", "a size is a number of bytes"),
        ("serve --quick", "unexpected argument '--quick'"),
        ("dance", "unrecognized subcommand 'dance'"),
    ] {
        refused(line, 2, expected);
    }
}

#[test]
fn it_idles_as_it_is_told() {
    for (flags, expected) in [
        (&["--idle", "park"][..], "idle       park"),
        (
            &["--idle", "adaptive", "--spin-budget", "70us"],
            "idle       adaptive, spins 70 us before it sleeps",
        ),
        (&["--spin-budget", "auto"], "idle       adaptive, spins "),
    ] {
        let mut line = vec![
            "serve",
            "--ephemeral",
            "--listen",
            "127.0.0.1:0",
            "--cores",
            "none",
        ];
        line.extend(flags);
        let mut broker = Running::start(&line);
        let mut said = broker.next_line().unwrap();
        while !said.starts_with("idle") {
            said = broker.next_line().unwrap();
        }
        assert!(said.starts_with(expected), "{said}");
        broker.signal(Signal::TERM);
        assert_eq!(broker.end().status, Some(0));
    }
}

#[test]
fn shards_share_the_memory_and_whatever_was_sent_to_one_is_received_from_any() {
    let line = "serve --ephemeral --listen 127.0.0.1:0 --shards 2 --memory 256MiB";
    let mut broker = Running::start(&line.split(' ').collect::<Vec<_>>());
    let mut report = Vec::new();
    while !report
        .last()
        .is_some_and(|line: &String| line.starts_with("memory"))
    {
        report.push(broker.next_line().unwrap());
    }
    let address = (report.iter())
        .find_map(|line| line.strip_prefix("listening "))
        .unwrap();
    let says = |start: &str| report.iter().any(|line| line.starts_with(start));
    assert!(says("shard 0    ") && says("shard 1    "), "{report:?}");
    assert!(says("memory     2 times 127 MiB: "), "{report:?}");
    let told = |line: &str| {
        let ended = courser(&format!("{line} --connect {}", address.trim()));
        assert_eq!(ended.status, Some(0), "{line}: {ended:?}");
        ended.stdout
    };
    // Each of these is a client of its own, and begins on the next shard.
    for destination in ["orders", "bills"] {
        told(&format!("send {destination} --count 9 --partitions 3"));
        let received = told(&format!("receive {destination} --count 9 --timeout 20s"));
        assert_eq!(received.lines().count(), 9);
    }
    let stats: serde_json::Value = serde_json::from_str(&told("stats --json")).unwrap();
    assert_eq!(stats["counters"]["messages_stored"], 18);
    let stored = |shard: usize| &stats["shards"][shard]["counters"]["messages_stored"];
    assert!(stored(0).as_u64().unwrap() > 0 && stored(1).as_u64().unwrap() > 0);
    broker.signal(Signal::TERM);
    assert_eq!(broker.end().status, Some(0));
}

#[test]
fn a_port_that_a_broker_left_can_be_taken_again_at_once() {
    let broker = Broker::start("epoll");
    let address = broker.address.clone();
    let _open = TcpStream::connect(&address).unwrap();
    broker.signal(Signal::TERM);
    assert_eq!(broker.end().status, Some(0));
    let mut again = Running::start(&[
        "serve",
        "--ephemeral",
        "--listen",
        &address,
        "--cores",
        "none",
    ]);
    assert!(again.next_line().unwrap().starts_with("courser "));
    again.signal(Signal::TERM);
    assert_eq!(again.end().status, Some(0));
}

#[test]
fn every_bound_is_listed_for_people_and_for_programs() {
    let ended = courser("limits");
    assert_eq!(ended.status, Some(0));
    assert!(ended.stdout.contains("message body"), "{ended:?}");
    let rows: serde_json::Value = serde_json::from_str(&courser("limits --json").stdout).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), ended.stdout.lines().count());
    let body = rows
        .iter()
        .find(|row| row["name"] == "message body")
        .unwrap();
    assert_eq!(body["value"], 4 << 20);
    assert_eq!(body["unit"], "bytes");
}
