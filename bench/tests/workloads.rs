//! Every workload runs beside its floor, counts every message, and says what it
//! cannot do.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use courser_bench::goal::{Goal, Outcome};
use courser_bench::histogram::Histogram;
use courser_bench::histogram_log::HistogramLog;
use courser_bench::load;
use courser_bench::report::{Measurement, Mode};
use courser_bench::{BenchError, Options, Report, Workload, run};
use courser_transport::{Broker, BrokerConfig};

/// Workloads spin; two at once on two cores would only measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn measure(workload: Workload, seconds: u64, connect: Option<SocketAddr>) -> Report {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        payloads: vec![64],
        duration: Some(Duration::from_secs(seconds)),
        connect,
        ..Options::default()
    };
    run(workload, &options).unwrap()
}

/// The least that is beyond the memory of a broker.
const BACKLOG_BYTES: u64 = 64 << 20;

/// A run of what is flushed, in a directory of its own, which has to be empty afterwards.
fn measure_durable(within: &std::path::Path, seconds: u64) -> Report {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let directory = within.join(format!("courser-bench-durable-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let options = Options {
        payloads: vec![64],
        duration: Some(Duration::from_secs(seconds)),
        directory: Some(directory.clone()),
        backlog_bytes: Some(BACKLOG_BYTES),
        ..Options::default()
    };
    let report = run(Workload::Durable, &options);
    let left = std::fs::read_dir(&directory).unwrap().count();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(left, 0, "a run leaves nothing behind");
    report.unwrap()
}

/// The one result of a workload, mode and kind.
fn result<'a>(report: &'a Report, workload: &str, mode: Mode, kind: &str) -> &'a Measurement {
    let mut found = report.results.iter().filter(|result| {
        result.workload == workload
            && result.mode == mode
            && result.kind.as_deref().unwrap_or_default().contains(kind)
    });
    let result = found.next().unwrap();
    assert!(found.next().is_none(), "{workload}, {mode}, {kind} twice");
    result
}

fn assert_clean(report: &Report, books: usize) {
    assert_eq!(report.books.len(), books);
    for books in &report.books {
        assert!(books.ledger.is_clean(), "{books}");
        assert!(books.ledger.sent > 0, "{books}");
        assert_eq!(books.ledger.completed, books.ledger.sent, "{books}");
        assert_eq!(books.ledger.received, books.ledger.sent, "{books}");
    }
    assert!(!report.checks_failed());
}

#[test]
fn quick_measures_everything_beside_its_floor_and_loses_nothing() {
    let began = Instant::now();
    let report = measure(Workload::Quick, 4, None);
    // It takes four seconds, and a multiple of that where others have the processors.
    assert!(began.elapsed() < Duration::from_secs(300));
    assert_clean(&report, 5);
    for mode in [Mode::Poll, Mode::Blocking] {
        let result = result(&report, "produce to ack", mode, "");
        assert!(result.latency.unwrap().samples > 0, "{mode}");
        assert!(result.floor.floor_kind.is_some(), "{mode}");
        assert!(result.settled.is_some(), "{mode}");
    }
    for to in ["to consumer", "to ack"] {
        let result = result(&report, "produce to consume", Mode::Poll, to);
        assert!(result.latency.unwrap().samples > 0, "{to}");
        assert_eq!(result.floor.floor_kind.as_deref(), Some(to));
    }
    for mode in [Mode::Poll, Mode::Async] {
        let result = result(&report, "produce pipelined", mode, "");
        assert!(result.rate.unwrap().msgs_per_s > 0.0, "{mode}");
        assert!(result.floor.ratio.unwrap() > 0.0, "{mode}");
    }
    assert!(report.conditions.ring_before.is_some() && report.conditions.ring_after.is_some());
    assert_eq!(report.conditions.gaps.len(), 2);
    assert_eq!(report.conditions.stolen.len(), 2);
    let text = report.to_string();
    for part in [
        "acks",
        "kept",
        "broker    embedded",
        "messages",
        "each once",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["header"]["durability"], "memory");
    assert!(json["header"]["retention"].is_string());
    assert_eq!(json["books"][0]["sent"], json["books"][0]["received"]);
}

#[test]
fn a_broker_that_somebody_else_started_is_measured_and_left_running() {
    let broker = Broker::start(BrokerConfig {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        memory: 256 << 20,
        ..BrokerConfig::default()
    })
    .unwrap();
    let report = measure(Workload::EndToEnd, 2, Some(broker.address()));
    assert_clean(&report, 1);
    let described = report.header.broker.as_deref().unwrap();
    assert!(described.contains(&broker.address().to_string()));
    assert!(courser::Client::connect(broker.address()).is_ok());
    broker.stop();
}

#[test]
fn a_broker_that_is_not_there_is_an_error_and_no_failed_check() {
    let address = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        payloads: vec![64],
        duration: Some(Duration::from_secs(2)),
        connect: Some(address),
        ..Options::default()
    };
    let error = run(Workload::RoundTrip, &options).unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to the broker");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_starts() {
    let refusal = |payloads: &[u32], seconds| {
        let options = Options {
            payloads: payloads.to_vec(),
            duration: Some(Duration::from_millis(seconds)),
            ..Options::default()
        };
        run(Workload::Throughput, &options).unwrap_err().to_string()
    };
    let small = refusal(&[64, 7], 10_000);
    assert!(
        small.starts_with("payload: 7 bytes; a body has 8"),
        "{small}"
    );
    let large = refusal(&[5 << 20], 10_000);
    assert!(large.starts_with("payload: 5242880 bytes"), "{large}");
    let short = refusal(&[64], 100);
    assert!(short.starts_with("seconds: 0.1 s leave"), "{short}");
}

#[test]
fn an_open_loop_reports_every_load_and_loses_nothing() {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let rates = ["2000", "5%"].map(|rate| rate.parse().unwrap());
    let options = Options {
        rates: rates.to_vec(),
        window: Some(512),
        duration: Some(Duration::from_secs(3)),
        ..Options::default()
    };
    let report = run(Workload::Open, &options).unwrap();
    assert_clean(&report, 1);
    assert_eq!(report.loads.len(), 4);
    for load in &report.loads {
        // Whether it was carried is the machine's affair; that it says so is not.
        assert_eq!(
            load.outcome == load::Outcome::Carried,
            load.response.is_some()
        );
        assert_eq!(load.response.is_some(), load.service.is_some());
        assert!(load.achieved_msgs_per_s > 0.0, "{load:?}");
        assert_eq!(load.window, 512);
        if let (Some(response), Some(service)) = (load.response, load.service) {
            assert_eq!(response.samples, service.samples);
            // A response begins no later than the send that it waits for.
            assert!(response.max_ns >= service.p50_ns, "{load:?}");
        }
    }
    assert!((report.loads[0].asked_msgs_per_s - 2_000.0).abs() < 1e-9);
    assert_eq!(report.loads[3].percent_of_saturation, Some(5.0));
}

#[test]
fn what_is_flushed_is_measured_beside_its_device_and_all_there_after_every_restart() {
    // Long enough for a second burst into each queue of the journal.
    let report = measure_durable(&std::env::temp_dir(), 5);
    assert_clean(&report, 8);
    let storage = report.header.storage.as_ref().unwrap();
    assert_ne!(storage.file_system, "unknown");
    if storage.is_durable {
        assert_eq!(report.header.durability, "flushed");
    }
    for mode in [Mode::Poll, Mode::Blocking] {
        let result = result(&report, "produce to flushed ack", mode, "");
        assert!(result.latency.unwrap().samples > 0, "{mode}");
        assert_eq!(result.payload_bytes, 64);
        let floor = result.floor.floor_kind.as_deref();
        assert_eq!(floor, Some("a flush and an echo"), "{mode}");
    }
    let pipelined: Vec<_> = report
        .results
        .iter()
        .filter(|result| result.workload == "produce to flushed ack, pipelined")
        .collect();
    let [latency, rate] = &pipelined[..] else {
        panic!("{pipelined:?}")
    };
    assert!(latency.latency.unwrap().samples > 0);
    assert!(rate.rate.unwrap().msgs_per_s > 0.0);
    // A flush carries what came meanwhile, and not one message after the other.
    let batch = report
        .results
        .iter()
        .filter(|result| result.workload == "floor flush")
        .map(|result| result.payload_bytes)
        .max();
    assert!(batch > Some(4096), "{batch:?}");
    assert_eq!(report.restarts.len(), 6);
    for restart in &report.restarts {
        // The journal itself, and not what an orderly stop puts in its place.
        assert!(restart.replayed_bytes >= 64 << 20, "{restart:?}");
        assert!(restart.is_replay(), "{restart:?}");
        // Half of it is there again.
        let left = restart.messages_left * 1024;
        assert!(left > restart.journal_bytes * 4 / 10, "{restart:?}");
        assert!(restart.ready_seconds <= restart.first_ack_seconds);
        assert!(restart.bound_seconds > 2.0 * restart.read_seconds);
    }
    let names: Vec<&str> = report.goals.iter().map(|goal| goal.name.as_str()).collect();
    assert_eq!(
        names,
        ["G13", "G14", "G14", "G18", "G18", "G18", "G18", "G20"]
    );
    for goal in goals(&report, "G18") {
        assert!(goal.outcome != Outcome::Skipped, "{goal:?}");
    }
    for workload in ["memory", "flushed"].map(|ack| format!("backlog: produce to {ack} ack")) {
        for kind in [
            "backlog again",
            "64 MiB unread",
            "reading memory",
            "reading pages",
        ] {
            let result = result(&report, &workload, Mode::Poll, kind);
            assert!(result.latency.unwrap().samples > 0, "{workload}, {kind}");
        }
    }
    let backlog = report
        .notes
        .iter()
        .find(|note| note.starts_with("backlog:"));
    let backlog = backlog.unwrap();
    assert!(!backlog.contains("; 0 pages"), "{backlog}");
    assert!(!backlog.contains(" 0 were read back"), "{backlog}");
    let books = |name: &str| {
        let mut books = report.books.iter();
        books.find(|books| books.workload == name).unwrap().ledger
    };
    // Twice, on either broker.
    assert!(books("backlog").sent * 1024 > 2 * BACKLOG_BYTES * 8 / 10);
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert!(json["header"]["storage"]["way"].is_string());
    assert!(json["restarts"][0]["first_ack_seconds"].is_f64());
}

#[test]
fn memory_that_looks_like_a_disk_is_not_called_durable() {
    let directory = std::path::Path::new("/dev/shm");
    if !directory.is_dir() {
        eprintln!("SKIPPED: there is no /dev/shm here");
        return;
    }
    let report = measure_durable(directory, 3);
    let storage = report.header.storage.as_ref().unwrap();
    if storage.file_system != "tmpfs" {
        eprintln!("SKIPPED: /dev/shm is no tmpfs here");
        return;
    }
    assert_clean(&report, 8);
    assert_eq!(report.header.durability, "memory (tmpfs is not durable)");
    assert!(report.to_string().contains("NOT DURABLE"));
    for goal in &report.goals {
        assert_eq!(goal.outcome, Outcome::Skipped, "{goal:?}");
        assert_eq!(goal.skipped.as_deref(), Some("tmpfs is not durable"));
    }
}

/// Somebody who was not there adds up the slices and finds what was printed.
#[test]
fn the_histogram_log_beside_the_json_gives_the_printed_percentiles() {
    let mut report = measure(Workload::RoundTrip, 2, None);
    let directory = std::env::temp_dir().join(format!("courser-bench-{}", std::process::id()));
    let file = directory.join("rtt.json");
    report.write_json(&file).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let log = directory.join(json["histogram_log"].as_str().unwrap());
    let slices = HistogramLog::read(&log).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    for result in results {
        let tag = result["log_tag"].as_str().unwrap();
        let mut merged = Histogram::new();
        let mut count = 0;
        for slice in slices.iter().filter(|slice| slice.tag == tag) {
            merged.merge(&slice.histogram);
            count += 1;
        }
        assert_eq!(result["slices"], count, "{tag}");
        let percentiles = serde_json::to_value(merged.percentiles()).unwrap();
        for figure in ["samples", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"] {
            assert_eq!(result[figure], percentiles[figure], "{tag}, {figure}");
        }
    }
}

#[test]
fn an_idle_broker_takes_little_time_and_a_message_some() {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        rates: vec!["5000".parse().unwrap()],
        connections: Some(50),
        duration: Some(Duration::from_secs(8)),
        ..Options::default()
    };
    let report = match run(Workload::Idle, &options) {
        Ok(report) => report,
        Err(BenchError::NoThreadTime) => {
            eprintln!("SKIPPED: this kernel does not account for single threads");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert_clean(&report, 1);
    let connections: Vec<u32> = report.idle.iter().map(|idle| idle.connections).collect();
    assert_eq!(connections, [0, 50]);
    for idle in &report.idle {
        // A shard that spun would take all that it is given; others may take some.
        assert!(idle.shard_share < 0.2, "{idle:?}");
        assert!(idle.seconds > 1.0 && idle.door_share.is_some(), "{idle:?}");
    }
    let [floor, broker] = &report.messages[..] else {
        panic!("{:?}", report.messages)
    };
    assert_eq!(floor.workload, "floor epoll-blocking");
    for message in [floor, broker] {
        let carried = message.outcome == load::Outcome::Carried;
        assert_eq!(message.cpu_ns_per_message.is_some(), carried, "{message:?}");
        assert!(message.cpu_ns_per_message.is_none_or(|each| each > 100.0));
    }
    assert_eq!(broker.workload, "produce to ack");
}

/// The goals that a run has shown something about, by name.
fn goals<'a>(report: &'a Report, name: &str) -> Vec<&'a Goal> {
    let goals = report.goals.iter().filter(|goal| goal.name == name);
    goals.collect()
}

#[test]
fn many_partitions_and_connections_are_held_against_their_goals_and_lose_nothing() {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        connections: Some(50),
        duration: Some(Duration::from_secs(3)),
        ..Options::default()
    };
    let report = run(Workload::Scale, &options).unwrap();
    assert_clean(&report, 10);
    for (name, count) in [("G15", 2), ("G16", 1), ("G17", 1)] {
        let goals = goals(&report, name);
        assert_eq!(goals.len(), count, "{name}");
        for goal in goals {
            // Short slices on a busy machine have too few samples for a median.
            let is_judged = goal.compared.is_some_and(|compared| compared.pairs >= 6);
            assert!(
                is_judged || goal.outcome == Outcome::Inconclusive,
                "{goal:?}"
            );
            assert!(goal.outcome != Outcome::Skipped, "{goal:?}");
        }
    }
    for kind in ["0 idle connections again", "50 idle", "1,000 partitions"] {
        let result = result(&report, "produce to ack", Mode::Poll, kind);
        assert!(result.latency.unwrap().samples > 0, "{kind}");
        assert_eq!(result.slices.slices, Some(12), "{kind}");
    }
    let many = result(&report, "produce pipelined", Mode::Poll, "1,000 partitions");
    assert!(many.rate.unwrap().msgs_per_s > 0.0);
    for workload in ["produce to ack", "floor epoll-busy"] {
        let mut crowds = report.results.iter().filter(|result| {
            result.workload == workload && result.kind.as_deref() == Some("256 connections")
        });
        let crowd = crowds.next().unwrap();
        assert!(crowd.rate.unwrap().msgs_per_s > 0.0, "{workload}");
        assert!(crowds.next().is_none(), "{workload}");
    }
    assert!(report.to_string().contains("G15"), "{report}");
}

#[test]
fn what_needs_a_second_broker_is_skipped_and_said_beside_one_that_runs_already() {
    let broker = Broker::start(BrokerConfig {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        memory: 512 << 20,
        ..BrokerConfig::default()
    })
    .unwrap();
    let report = measure(Workload::Scale, 3, Some(broker.address()));
    assert_clean(&report, 7);
    let [skipped] = goals(&report, "G16")[..] else {
        panic!("{:?}", report.goals)
    };
    assert_eq!(skipped.outcome, Outcome::Skipped);
    assert!(skipped.compared.is_none());
    let text = report.to_string();
    for part in ["SKIPPED", "idle connections are compared between two"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert_eq!(goals(&report, "G15").len(), 2);
    assert_eq!(goals(&report, "G17").len(), 1);
    broker.stop();
}

#[test]
fn what_cannot_be_scaled_is_refused_before_anything_starts() {
    let refusal = |options: Options| run(Workload::Scale, &options).unwrap_err().to_string();
    let none = refusal(Options {
        connections: Some(0),
        ..Options::default()
    });
    assert!(none.starts_with("connections: 0; 1 to 4000"), "{none}");
    let sizes = refusal(Options {
        payloads: vec![64, 256],
        ..Options::default()
    });
    assert!(sizes.starts_with("payload: one size"), "{sizes}");
    let short = refusal(Options {
        duration: Some(Duration::from_millis(500)),
        ..Options::default()
    });
    assert!(short.starts_with("seconds: 0.5 s leave"), "{short}");
}
