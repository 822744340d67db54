//! Messages through the real binary: what a sender was told is stored is what a
//! receiver gets.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
mod support;

use std::collections::{BTreeSet, HashSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use accounts::{Record, ack_log, assert_exactly_once_in_order, dump};
use rustix::process::Signal;
use support::{Broker, Directory, Ended, courser, on_both_transports};

/// A receiver acknowledges at least this often.
const BATCH_MAX: usize = 256;

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "");
    ended.stdout
}

fn refused(ended: &Ended, status: i32, expected: &str) {
    assert_eq!(ended.status, Some(status), "{ended:?}");
    let first = ended.stderr.lines().next().unwrap();
    assert!(first.starts_with("error: "), "{ended:?}");
    assert!(first.contains(expected), "{ended:?}");
    assert!(
        ended
            .stderr
            .lines()
            .skip(1)
            .all(|line| line.starts_with("  ")),
        "{ended:?}"
    );
}

#[test]
fn what_is_sent_is_received_in_order() {
    on_both_transports(|broker| {
        let told = succeeded(broker.courser("send greetings one two three"));
        assert_eq!(told, "acknowledged 3 messages\n");
        let bodies = succeeded(broker.courser("receive greetings --count 3 --timeout 30s"));
        assert_eq!(bodies, "one\ntwo\nthree\n");
        broker.signal(Signal::TERM);
        assert_eq!(broker.end().status, Some(0));
    });
}

#[test]
fn each_line_of_standard_input_is_a_message() {
    let broker = Broker::start("epoll");
    let told = succeeded(broker.courser_with_input("send lines", "first\n\nthird\nlast"));
    assert_eq!(told, "acknowledged 4 messages\n");
    let bodies = succeeded(broker.courser("receive lines --count 4 --timeout 30s"));
    assert_eq!(bodies, "first\n\nthird\nlast\n");
    let told = succeeded(broker.courser_with_input("send lines", ""));
    assert_eq!(told, "acknowledged 0 messages\n");
}

#[test]
fn made_up_messages_carry_their_number_and_have_their_size() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send numbers --count 12 --size 1KiB"));
    let bodies = succeeded(broker.courser("receive numbers --count 12 --timeout 30s"));
    for (index, body) in bodies.lines().enumerate() {
        assert_eq!(body.len(), 1024);
        assert_eq!(body.trim_end_matches('.'), (index + 1).to_string());
    }
    succeeded(broker.courser("send numbers --count 3 --size 1"));
    let raw = succeeded(broker.courser("receive numbers --raw --count 3 --timeout 30s"));
    assert_eq!(raw, "123\n", "the line's end is the test's own");
}

#[test]
fn a_queue_gives_back_exactly_what_was_acknowledged() {
    on_both_transports(|broker| {
        let directory = Directory::new();
        let (log, dumped) = (directory.file("acks"), directory.file("dump"));
        succeeded(broker.courser(&format!(
            "send queue:/shop/orders --partitions 3 --count 5000 --size 200 --ack-log {log}"
        )));
        succeeded(broker.courser(&format!(
            "receive queue:/shop/orders --count 5000 --timeout 30s --dump {dumped}"
        )));
        let acknowledged = ack_log(&log);
        assert_eq!(acknowledged.len(), 5000);
        let sequences: Vec<_> = acknowledged.iter().map(|record| record.id.1).collect();
        assert!(
            sequences.iter().copied().eq(1..=5000),
            "in completion order"
        );
        assert_exactly_once_in_order(&acknowledged, &dump(&dumped));
        let row = broker.wait_until("queue:/shop/orders", |row| row["consumers"] == 0);
        assert_eq!(
            (&row["stored"], &row["unsettled"]),
            (&5000.into(), &0.into())
        );
    });
}

#[test]
fn a_topic_gives_every_subscription_every_message_with_equal_keys_in_one_partition() {
    on_both_transports(|broker| {
        let directory = Directory::new();
        // One subscription is there before the messages, the other comes to what the
        // topic keeps.
        succeeded(broker.courser("send topic:quotes --count 0 --partitions 4 --retain 2MiB"));
        let live = directory.file("live");
        let receiver = broker.start_verb(&format!(
            "receive topic:quotes --subscription live --count 4000 --timeout 50s --dump {live}"
        ));
        broker.wait_until("topic:/default/quotes", |row| row["consumers"] == 1);
        let logs = ["EUR", "USD", "none"].map(|key| directory.file(key));
        let keyed = format!(
            "send topic:quotes --count 1000 --size 50 --ack-log {}",
            logs[0]
        );
        let senders = [
            broker.start_verb(&format!("{keyed} --key EUR")),
            broker.start_verb(&format!("{} --key USD", keyed.replace("/EUR", "/USD"))),
            broker.start_verb(&format!(
                "send topic:quotes --count 2000 --size 50 --ack-log {}",
                logs[2]
            )),
        ];
        for sender in senders {
            succeeded(sender.end());
        }
        succeeded(receiver.end());
        let late = directory.file("late");
        succeeded(broker.courser(&format!(
            "receive topic:quotes --subscription late --count 4000 --timeout 50s --dump {late}"
        )));

        let logs = logs.map(ack_log);
        let partitions = |log: &[Record]| -> BTreeSet<u32> {
            log.iter().map(|record| record.partition).collect()
        };
        assert_eq!(partitions(&logs[0]).len(), 1);
        assert_eq!(partitions(&logs[1]).len(), 1);
        assert_eq!(partitions(&logs[2]), BTreeSet::from([0, 1, 2, 3]));
        let acknowledged = logs.concat();
        assert_eq!(acknowledged.len(), 4000);
        assert_exactly_once_in_order(&acknowledged, &dump(&live));
        assert_exactly_once_in_order(&acknowledged, &dump(&late));
    });
}

/// A receiver is killed while it waits for a slow reader, with one batch written and
/// not acknowledged. The next receiver gets that batch again and everything after it;
/// nothing is lost, and nothing that was acknowledged comes a second time.
#[test]
fn after_a_receiver_was_killed_the_next_one_gets_what_was_not_acknowledged() {
    on_both_transports(|broker| {
        let directory = Directory::new();
        let files = ["acks", "killed", "next"].map(|name| directory.file(name));
        let [log, killed, next] = &files;
        let count = 5000;
        succeeded(broker.courser(&format!(
            "send work --count {count} --size 200 --ack-log {log}"
        )));
        let mut receiver =
            broker.start_verb(&format!("receive work --timeout 50s --dump {killed}"));
        for _ in 0..BATCH_MAX + 1 {
            receiver.next_line().unwrap();
        }
        receiver.signal(Signal::KILL);
        assert_eq!(receiver.end().signal, Some(9));
        let row = broker.wait_until("queue:/default/work", |row| row["consumers"] == 0);
        let left = row["unsettled"].as_u64().unwrap();
        succeeded(broker.courser(&format!(
            "receive work --count {left} --timeout 50s --dump {next}"
        )));

        let (acknowledged, killed, next) = (ack_log(log), dump(killed), dump(next));
        assert!(
            killed.len() < count,
            "it was killed too late to show anything"
        );
        assert!(left < count as u64, "it had acknowledged something");
        let again: HashSet<_> = next.iter().map(|record| record.id).collect();
        let settled: Vec<_> = killed
            .iter()
            .filter(|record| !again.contains(&record.id))
            .cloned()
            .collect();
        assert!(
            killed.len() - settled.len() <= BATCH_MAX,
            "one batch at most"
        );
        assert_exactly_once_in_order(&acknowledged, &[settled, next].concat());
        let row = broker.wait_until("queue:/default/work", |row| row["consumers"] == 0);
        assert_eq!(row["unsettled"], 0);
        assert_eq!(broker.stats()["counters"]["messages_settled"], count);
    });
}

/// The first signal asks for an end once the batch at hand is written, which takes as
/// long as nobody reads.
#[test]
fn a_second_signal_ends_at_once_what_cannot_end_in_order() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send unread --count 5000 --size 200"));
    let mut receiver = broker.start_verb("receive unread");
    receiver.next_line().unwrap();
    receiver.signal(Signal::INT);
    receiver.signal(Signal::TERM);
    let ended = receiver.end();
    assert!(matches!(ended.status, Some(130 | 143)), "{ended:?}");
}

#[test]
fn what_a_receiver_did_not_take_is_there_for_the_next() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send jobs one two three"));
    let bodies = succeeded(broker.courser("receive jobs --count 1 --timeout 30s"));
    assert_eq!(bodies, "one\n");
    let bodies = succeeded(broker.courser("receive jobs --count 2 --timeout 30s"));
    assert_eq!(bodies, "two\nthree\n");
}

#[test]
fn a_subscription_starts_where_it_is_told() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send topic:log --retain 1MiB zero one two three"));
    for (start, expected) in [("earliest", "zero\none\n"), ("2", "two\nthree\n")] {
        let line = format!("receive topic:log --from {start} --count 2 --timeout 30s");
        assert_eq!(succeeded(broker.courser(&line)), expected);
    }
    let latest = broker.courser("receive topic:log --from latest --timeout 200ms");
    assert_eq!(succeeded(latest), "");
}

#[test]
fn too_few_messages_in_time_are_a_time_out_and_silence_alone_is_none() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send few only"));
    let began = Instant::now();
    let ended = broker.courser("receive few --count 2 --timeout 300ms");
    assert!(began.elapsed() >= Duration::from_millis(300));
    refused(&ended, 6, "1 of 2 messages came within 300ms");
    assert_eq!(ended.stdout, "only\n", "what came is printed all the same");
    assert_eq!(succeeded(broker.courser("receive few --timeout 100ms")), "");
}

#[test]
fn a_send_for_which_there_is_no_room_times_out_and_is_counted() {
    let broker = Broker::start_with("epoll", "64MiB");
    let ended = broker.courser("send full --count 100 --size 1MiB --timeout 300ms");
    refused(
        &ended,
        6,
        "the message was not stored: the time-out of the send passed",
    );
    let seen = ended.stderr.lines().nth(1).unwrap();
    assert!(seen.starts_with("  seen   "), "{ended:?}");
    let stored = broker.wait_until("queue:/default/full", |_| true)["stored"].clone();
    assert!(
        seen.contains(&format!("{stored} acknowledged")),
        "{ended:?}"
    );
}

#[test]
fn what_the_broker_refuses_is_said_with_what_to_do() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send shape --partitions 2 x"));
    let ended = broker.courser("send shape --partitions 3 x");
    refused(&ended, 4, "exists with other settings");
    assert!(ended.stderr.contains("leave out --partitions"), "{ended:?}");
    let first = broker.start_verb("receive topic:t --subscription s --timeout 50s");
    broker.wait_until("topic:/default/t", |row| row["consumers"] == 1);
    let second = broker.courser("receive topic:t --subscription s");
    refused(&second, 4, "somebody is attached who does not share");
    first.signal(Signal::INT);
    assert_eq!(succeeded(first.end()), "", "a signal is an orderly end");
}

#[test]
fn a_second_receiver_stands_by_or_shares_as_the_type_of_the_subscription_says() {
    let broker = Broker::start("epoll");
    let row = "topic:/default/t";
    let active = "receive topic:t --subscription f --type failover --timeout 50s";
    let first = broker.start_verb(active);
    broker.wait_until(row, |row| row["consumers"] == 1);
    let second = broker.start_verb(active);
    broker.wait_until(row, |row| row["consumers"] == 2);
    succeeded(broker.courser("send topic:t one two three"));
    broker.wait_until(row, |row| row["unsettled"] == 0);
    first.signal(Signal::INT);
    assert_eq!(succeeded(first.end()), "one\ntwo\nthree\n");
    succeeded(broker.courser("send topic:t four five"));
    broker.wait_until(row, |row| row["unsettled"] == 0);
    second.signal(Signal::INT);
    assert_eq!(succeeded(second.end()), "four\nfive\n");

    let other = "receive topic:t --subscription f --type key-shared --timeout 50s";
    let ended = broker.courser(other);
    refused(&ended, 4, "is failover and stays so");
    assert!(ended.stderr.contains("--type"), "{ended:?}");
    let by_key = "receive topic:u --subscription k --type key-shared";
    let sharing = broker.start_verb(&format!("{by_key} --timeout 50s"));
    broker.wait_until("topic:/default/u", |row| row["consumers"] == 1);
    succeeded(broker.courser("send topic:u --key k a b c"));
    broker.wait_until("topic:/default/u", |row| row["unsettled"] == 0);
    sharing.signal(Signal::INT);
    assert_eq!(succeeded(sharing.end()), "a\nb\nc\n");
}

#[test]
fn without_a_broker_every_verb_says_so() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for verb in ["send q x", "receive q", "stats"] {
        let ended = courser(&format!("{verb} --connect {nobody}"));
        refused(&ended, 3, &format!("{nobody} refused the connection"));
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_in_one_line() {
    for (line, expected) in [
        ("send", "<DEST>"),
        (
            "send queue:a/b/c x",
            "a destination is named /namespace/name",
        ),
        ("send q x --count 1", "cannot be used with"),
        ("send q --size 10", "--count"),
        (
            "send q --count 1 --size huge",
            "a size is a number of bytes",
        ),
        ("send q --count many", "a count is a whole number"),
        ("send q x --partitions 0", "0 is not in"),
        ("send q x --timeout 5", "a duration is a number and a unit"),
        ("send q x --connect a:b:c", "no address of a broker"),
        ("receive", "<DEST>"),
        (
            "receive q --from yesterday",
            "a start is earliest, latest or an offset",
        ),
        ("receive q --count 0", "0 is not in"),
        ("receive q x", "unexpected argument 'x'"),
        ("stats --jsn", "unexpected argument '--jsn'"),
    ] {
        refused(&courser(line), 2, expected);
    }
    let directory = Directory::new();
    let nowhere = directory.file("none/acks");
    for line in ["send q x --ack-log", "receive q --dump"] {
        let ended = courser(&format!("{line} {nowhere}"));
        refused(&ended, 1, &format!("cannot write {nowhere}"));
    }
}

#[test]
fn when_the_broker_dies_the_sender_says_what_it_knows() {
    on_both_transports(|broker| {
        let directory = Directory::new();
        let log = directory.file("acks");
        let sender = broker.start_verb(&format!(
            "send doomed --count 100000000 --size 8 --ack-log {log}"
        ));
        broker.wait_until("queue:/default/doomed", |row| row["stored"] != 0);
        broker.signal(Signal::KILL);
        assert_eq!(broker.end().signal, Some(9));
        let ended = sender.end();
        refused(&ended, 3, "the connection to the broker broke");
        let seen = ended.stderr.lines().nth(1).unwrap().replace(',', "");
        let figures: Vec<u64> = seen
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [acknowledged, not_stored, unknown] = figures[..] else {
            panic!("three counts are expected: {ended:?}");
        };
        assert_eq!(acknowledged, ack_log(&log).len() as u64);
        let first = format!("error: message {}: ", acknowledged + 1);
        assert!(ended.stderr.starts_with(&first), "{ended:?}");
        // Nothing was on its way only if the end was noticed by the next send.
        assert!(not_stored + unknown > 0, "{ended:?}");
    });
}

#[test]
fn a_broker_that_stops_says_goodbye_to_senders_and_receivers() {
    on_both_transports(|broker| {
        let receiver = broker.start_verb("receive idle --timeout 50s");
        let sender = broker.start_verb("send busy --count 100000000 --size 8");
        broker.wait_until("queue:/default/busy", |row| row["stored"] != 0);
        broker.wait_until("queue:/default/idle", |row| row["consumers"] == 1);
        broker.signal(Signal::TERM);
        let ended = broker.end();
        assert_eq!((ended.status, ended.signal), (Some(0), None), "{ended:?}");
        refused(&receiver.end(), 3, "the broker is stopping");
        refused(&sender.end(), 3, "the broker is stopping");
    });
}

#[test]
fn statistics_are_for_people_and_for_programs() {
    let broker = Broker::start("epoll");
    succeeded(broker.courser("send counted --partitions 2 --count 10"));
    let stats = broker.stats();
    assert_eq!(stats["counters"]["messages_stored"], 10);
    // How the shard was busy, and how it was idle.
    let counted = |name: &str| stats["counters"][name].as_u64().unwrap();
    assert!(counted("direct_receives") > 0 && counted("direct_sends") > 0);
    assert!(counted("turns_with_work") > 0 && counted("enters_idle") > 0);
    for name in ["direct_polls", "direct_begun", "direct_ended", "enters"] {
        assert!(stats["counters"][name].is_u64(), "{name}");
    }
    assert_eq!(counted("completion_overflows"), 0);
    let row = broker.wait_until("queue:/default/counted", |row| row["producers"] == 0);
    assert_eq!(
        (&row["partitions"], &row["stored"]),
        (&2.into(), &10.into())
    );
    let text = succeeded(broker.courser("stats"));
    let line = text.lines().find(|line| line.contains("counted")).unwrap();
    assert!(line.starts_with("queue:/default/counted "), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour");
}
