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
        // Two messages hold a whole one, wherever they begin.
        let fate = Fate::CutBehindAnsweredInTurn(cut, 2 * MESSAGE);
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

/// Receives all of a queue through a proxy with this fate: each once, and all settled.
fn receives(broker: &Broker, directory: &Directory, queue: &str, fate: Fate) -> usize {
    let sent = broker.courser(&format!("send {queue} --count {COUNT} --size 64"));
    assert_eq!(sent.status, Some(0), "{sent:?}");
    let proxy = Proxy::start(&broker.address, vec![fate]);
    let file = directory.file(&format!("dump-{queue}"));
    let line = format!(
        "receive {queue} --count {COUNT} --timeout 30s --dump {file} --connect {}",
        proxy.address
    );
    let ended = run(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ended.status, Some(0), "{fate:?}: {ended:?}");
    let offsets: Vec<u64> = dump(&file).iter().map(|record| record.offset).collect();
    assert!(offsets.into_iter().eq(0..COUNT as u64), "{fate:?}");
    let row = broker.wait_until(&format!("queue:/default/{queue}"), |row| {
        row["consumers"] == 0
    });
    assert_eq!(row["unsettled"], 0, "{fate:?}: {row}");
    proxy.connections()
}

/// A receiver whose connection broke under its last acknowledgements once ended with an
/// error, though it would have had another one in a moment.
#[test]
fn a_receiver_is_confirmed_what_it_acknowledged_wherever_its_connection_is_cut() {
    let (broker, directory) = (Broker::start("auto"), Directory::new());
    // Hello, session and consumer, then nothing but acknowledgements and credit.
    let mut cut = 0;
    for (number, bytes) in (100..220).step_by(4).enumerate() {
        let fate = Fate::CutBehindSent(bytes);
        cut += receives(&broker, &directory, &format!("told-{number}"), fate) - 1;
    }
    assert!(cut > 10, "{cut} were cut");
    // Behind the last message of all come confirmations.
    let all = 144 + COUNT * (MESSAGE + 8);
    let (mut cut, mut number) = (0, 0);
    for bytes in (all - 1000..all + 200).step_by(24) {
        let queue = format!("confirmed-{number}");
        cut += receives(&broker, &directory, &queue, Fate::CutBehindAnswered(bytes)) - 1;
        number += 1;
    }
    assert!(cut > 10, "{cut} were cut");
}

#[test]
fn a_receiver_whose_broker_does_not_come_back_says_what_is_not_confirmed() {
    let (broker, directory) = (Broker::start("auto"), Directory::new());
    let sent = broker.courser(&format!("send q --count {COUNT} --size 64"));
    assert_eq!(sent.status, Some(0), "{sent:?}");
    // Messages pass, and no confirmation; then nobody answers any more.
    let mut fates = vec![Fate::CutBehindAnswered(900)];
    fates.extend([Fate::Refused; 1000]);
    let proxy = Proxy::start(&broker.address, fates);
    let file = directory.file("dump");
    let line = format!(
        "receive q --count {COUNT} --timeout 30s --dump {file} --connect {}",
        proxy.address
    );
    let ended = run(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ended.status, Some(3), "{ended:?}");
    let mut lines = ended.stderr.lines();
    let first = lines.next().unwrap();
    assert!(
        first.contains("the connection to the broker broke"),
        "{ended:?}"
    );
    let last = dump(&file).last().unwrap().offset;
    let named = format!("unconfirmed, and may come again: 0:0 to {last}");
    assert!(lines.next().unwrap().contains(&named), "{ended:?}");
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
