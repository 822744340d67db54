//! `courser bench` as a whole: it measures, reports and judges.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

use support::{Broker, Directory, courser};

/// One measurement at a time: two would be on the same cpus.
static TURN: Mutex<()> = Mutex::new(());

/// A measurement needs a cpu for each side.
fn has_two_cpus() -> bool {
    let enough = available_parallelism().unwrap().get() >= 2;
    if !enough {
        eprintln!("SKIPPED: this machine has one cpu");
    }
    enough
}

#[test]
fn a_short_run_reports_to_people_and_to_programs() {
    if !has_two_cpus() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = Directory::new();
    let file = directory.file("report.json");
    let ended = courser(&format!("bench rtt --payload 64 --seconds 1 --json {file}"));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("p50"), "{ended:?}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let results = report["results"].as_array().unwrap();
    assert!(results.iter().all(|result| result["payload_bytes"] == 64));
    assert!(!results.is_empty());
    let log = std::fs::read_to_string(file.to_string().replace(".json", ".hlog")).unwrap();
    for result in results {
        let tag = format!("Tag={},", result["log_tag"].as_str().unwrap());
        assert!(log.contains(&tag), "{tag} is not in the log");
    }
}

#[test]
fn an_open_loop_says_of_each_load_whether_it_was_carried() {
    if !has_two_cpus() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = courser("bench open --rate 1k --window 64 --seconds 2");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for row in ["floor ", "produce to ack "] {
        let row = ended.stdout.lines().find(|line| line.starts_with(row));
        let row = row.unwrap_or_else(|| panic!("{ended:?}"));
        assert!(row.contains("carried") || row.contains("FAIL"), "{row}");
    }
    assert!(ended.stdout.contains("saturation, 100 % here"), "{ended:?}");
}

#[test]
fn a_broker_that_runs_already_is_measured_too() {
    if !has_two_cpus() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let broker = Broker::start("epoll");
    let ended = broker.courser("bench rtt --payload 64 --seconds 1");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stdout.contains(&broker.address), "{ended:?}");
    assert!(broker.stats()["counters"]["messages_stored"].as_u64() > Some(0));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut cases = vec![
        (
            String::from("bench floor --connect 127.0.0.1:1"),
            2,
            "without a broker",
        ),
        (
            String::from("bench rtt --payload 1KB"),
            2,
            "a size is a number of bytes",
        ),
        (
            String::from("bench rtt --seconds 0"),
            2,
            "a number of seconds above zero",
        ),
        (
            String::from("bench rtt --client-core 0"),
            2,
            "--broker-core",
        ),
        (
            String::from("bench rtt --rate 10%"),
            2,
            "this workload has none",
        ),
        (
            String::from("bench rtt --directory ."),
            2,
            "this workload has none",
        ),
        (
            String::from("bench rtt --backlog 1GiB"),
            2,
            "this workload has none",
        ),
        (
            String::from("bench durable --backlog 1MiB"),
            2,
            "64 MiB or more have none",
        ),
        (
            String::from("bench floor --directory /proc/none"),
            2,
            "/proc/none is no directory",
        ),
        (
            String::from("bench open --rate fast"),
            2,
            "a rate is messages per second",
        ),
        (
            String::from("bench open --payload 64,1KiB"),
            2,
            "takes one size",
        ),
        (
            String::from("bench idle --rate 50%"),
            2,
            "one load in messages per second",
        ),
        (
            String::from("bench scale --connections 0"),
            2,
            "can be compared with none",
        ),
        (
            String::from("bench scale --rate 10%"),
            2,
            "this workload has none",
        ),
        (String::from("bench lap"), 2, "invalid value 'lap'"),
    ];
    if has_two_cpus() {
        cases.push((
            String::from("bench rtt --payload 1"),
            2,
            "a body has 8 bytes",
        ));
        cases.push((
            format!("bench rtt --connect {nobody}"),
            3,
            "refused the connection",
        ));
    }
    for (line, status, expected) in cases {
        let ended = courser(&line);
        assert_eq!(ended.status, Some(status), "{line}: {ended:?}");
        let first = ended.stderr.lines().next().unwrap();
        assert!(first.starts_with("error: "), "{line}: {ended:?}");
        assert!(first.contains(expected), "{line}: {ended:?}");
    }
}
