//! Connections that break: what was acknowledged is there once, in order and under
//! its own id, wherever they were cut.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::time::Duration;

use accounts::{Record, ack_log, assert_exactly_once_in_order, dump};
use proxy::{Fate, Proxy};
use support::{Broker, Directory, Ended, run};

const COUNT: usize = 40;

/// Sends through the proxy; what was acknowledged, and how it ended.
fn send(proxy: &Proxy, queue: &str, log: &str) -> (Vec<Record>, Ended) {
    let line = format!(
        "send {queue} --count {COUNT} --size 64 --timeout 30s --ack-log {log} --connect {}",
        proxy.address
    );
    let ended = run(&line.split_whitespace().collect::<Vec<_>>());
    (ack_log(log), ended)
}

fn receive_all(broker: &Broker, queue: &str, file: &str) -> Vec<Record> {
    let line = format!("receive {queue} --count {COUNT} --timeout 30s --dump {file}");
    let ended = broker.courser(&line);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    dump(file)
}

/// Sends while its connections have these fates, and finds all of it.
fn survives(broker: &Broker, directory: &Directory, queue: &str, fates: Vec<Fate>) {
    let story = format!("{fates:?}");
    let cuts = fates.len();
    let proxy = Proxy::start(&broker.address, fates);
    let (log, file) = (
        directory.file(&format!("acks-{queue}")),
        directory.file(&format!("dump-{queue}")),
    );
    let (acknowledged, ended) = send(&proxy, queue, &log);
    assert_eq!(ended.status, Some(0), "{story}: {ended:?}");
    assert_eq!(acknowledged.len(), COUNT, "{story}");
    assert!(proxy.connections() > cuts, "{story}: it was cut");
    let sequences: Vec<u64> = acknowledged.iter().map(|record| record.id.1).collect();
    assert!(sequences.is_sorted(), "{story}: in the order of the sends");
    assert_exactly_once_in_order(&acknowledged, &receive_all(broker, queue, &file));
}

/// Bytes of the client before its first message: hello, session, lookup, producer.
const ESTABLISHED: usize = 300;
/// Bytes of each message on the wire.
const MESSAGE: usize = 176;

#[test]
fn a_connection_cut_in_any_part_of_a_message_costs_nothing() {
    let (broker, directory) = (Broker::start("auto"), Directory::new());
    // Every seventeenth byte of two messages: each part of header and body.
    for (number, cut) in (0..2 * MESSAGE).step_by(17).enumerate() {
        let fate = Fate::CutBehindSent(ESTABLISHED + cut);
        survives(&broker, &directory, &format!("sent-{number}"), vec![fate]);
    }
}

#[test]
fn a_connection_cut_in_any_part_of_an_answer_costs_nothing() {
    let (broker, directory) = (Broker::start("auto"), Directory::new());
    // Behind welcome, session, location and producer there are completions and credit.
    for (number, cut) in (160..245).step_by(7).enumerate() {
        let fate = Fate::CutBehindAnswered(cut);
        survives(&broker, &directory, &format!("heard-{number}"), vec![fate]);
    }
}

#[test]
fn answers_that_are_swallowed_and_connections_that_are_refused_cost_nothing_but_time() {
    let (broker, directory) = (Broker::start("auto"), Directory::new());
    let swallowed = Fate::Deaf(170, Duration::from_millis(300));
    let fates = vec![swallowed, Fate::Refused, Fate::Refused, Fate::Refused];
    survives(&broker, &directory, "deaf", fates);
    // Cut again and again, also while it says hello and opens everything anew.
    let fates = [310, 20, 48, 90, 130, 200, 310, 400, 900]
        .map(Fate::CutBehindSent)
        .to_vec();
    survives(&broker, &directory, "again", fates);
}

/// The first connection is how a client learns that there is a broker at all.
#[test]
fn a_connection_that_is_cut_before_it_is_open_is_an_error_and_leaves_nothing_behind() {
    let (broker, directory) = (Broker::start("auto"), Directory::new());
    for cut in [0, 1, 8, 30, 47] {
        let proxy = Proxy::start(&broker.address, vec![Fate::CutBehindSent(cut)]);
        let log = directory.file("acks");
        let (acknowledged, ended) = send(&proxy, "never", &log);
        assert_eq!(ended.status, Some(3), "{cut}: {ended:?}");
        assert!(acknowledged.is_empty());
        let line = ended.stderr.lines().next().unwrap();
        assert!(line.starts_with("error: "), "{line}");
    }
    let rows = broker.stats()["destinations"].clone();
    assert_eq!(rows.as_array().unwrap().len(), 0, "{rows}");
}

/// What a broker held in memory went with it: another one in its place has never
/// heard of it, and a client has to say so instead of sending it again.
#[test]
fn a_broker_that_starts_anew_leaves_what_was_on_its_way_unknown() {
    let directory = Directory::new();
    let (first, second) = (Broker::start("auto"), Broker::start("auto"));
    let log = directory.file("acks");
    // The first connection leads to one broker, the next ones to another.
    let lost = Proxy::start_among(
        vec![first.address.clone(), second.address.clone()],
        vec![Fate::Deaf(170, Duration::from_millis(200))],
    );
    let (acknowledged, ended) = send(&lost, "anew", &log);
    assert_eq!(ended.status, Some(3), "{ended:?}");
    assert!(
        ended.stderr.contains("unknown"),
        "it says that nobody knows: {ended:?}"
    );
    // Nothing that the first one may have was sent to the second.
    let file = directory.file("dump");
    let kept = acknowledged.len();
    let line = format!("receive anew --timeout 300ms --dump {file}");
    let _ended = second.courser(&line);
    let received = dump(&file);
    assert!(received.len() + kept <= COUNT, "{received:?}");
    let ids: Vec<_> = acknowledged.iter().map(|record| record.id).collect();
    assert!(received.iter().all(|record| ids.contains(&record.id)));
}
