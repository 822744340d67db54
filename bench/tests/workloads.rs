//! Every workload runs beside its floor, counts every message, and says what it
//! cannot do.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use courser_bench::report::{Measurement, Mode};
use courser_bench::{Options, Report, Workload, run};
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
        cores: None,
    };
    run(workload, &options).unwrap()
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
    assert!(began.elapsed() < Duration::from_secs(60));
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
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
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
        cores: None,
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
