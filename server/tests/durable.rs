//! Brokers that are killed, and others that start on what they kept: whatever a producer
//! was told is there, once, in order and at its offset; what was settled stays settled;
//! and no offset is given out twice.
//!
//! `KILLS` says how often the long test kills, 4 unless said otherwise, and `KILLS_SEED`
//! repeats the choices of a run; `scripts/kills` runs it for long and with the release
//! binary.
//!
//! A kill loses what is in the process, never what the kernel has: so this finds outcomes
//! that were told before a write was given to the kernel, and not those that were told
//! before the device had it.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;

use accounts::{Record, assert_exactly_once_in_order, assert_kept, dump};
use choices::Choices;
use courser::embedded::{self, BrokerConfig};
use courser_transport::disk::{DataDirectory, Recovery};
use home::{Home, Sender, wait_for_more};
use rustix::process::Signal;
use support::{Broker, Directory, Running};

const QUEUE: &str = "queue:/kept/work";
const SENDERS: usize = 3;
/// Messages for each kill, of all senders together.
const MESSAGES: u64 = 6000;
/// Kills on one directory: each start sets files aside, and memory holds what is kept.
const KILLS_MAX: u64 = 10;
/// Longer than a broker takes to come back.
const PATIENCE: &str = "60s";
/// Nothing more comes. A queue that is asked has sent what is ready long before.
const SILENCE: &str = "3s";

/// Sends and looks what offset it got: the next one, or one was given out twice or left
/// out.
fn assert_goes_on_at(home: &Home, next: u64) {
    let told = home.sender(QUEUE, 1, 1, PATIENCE).complete();
    assert_eq!(told[0].offset, next, "{told:?}");
    let last = home.receive(QUEUE, SILENCE);
    assert_eq!(last, told, "everything else was settled");
}

fn all(senders: &mut [Sender]) -> Vec<Record> {
    senders.iter_mut().flat_map(Sender::complete).collect()
}

/// Kills brokers under senders who do not know of it but by waiting, and has brokers of
/// other numbers of shards find what they were told. Returns how much that was.
fn senders_outlive_brokers(
    kills: u64,
    [shards, fewer, more]: [u16; 3],
    partitions: u32,
    seed: u64,
) -> usize {
    let (mut home, mut choices) = (Home::new(), Choices(seed));
    if choices.one_in(2) {
        // One after the other.
        home.checkpoint_bytes = Some("64KiB");
    }
    let mut broker = home.start_either(shards, &mut choices);
    let each = MESSAGES * (kills + 1) / SENDERS as u64;
    let mut senders: Vec<Sender> = (0..SENDERS)
        .map(|_| home.sender(QUEUE, each, partitions, PATIENCE))
        .collect();
    for _ in 0..kills {
        wait_for_more(&senders, 1 + choices.below(MESSAGES));
        broker.kill();
        home.assert_whole();
        broker = home.start_either(shards, &mut choices);
    }
    let told = all(&mut senders);
    // Nobody has settled anything, so it is there for whoever asks, again and again.
    broker.kill();
    let broker = home.start_either(fewer, &mut choices);
    assert_exactly_once_in_order(&told, &home.receive(QUEUE, SILENCE));
    // Settled, and confirmed to be: nothing comes again.
    broker.kill();
    home.assert_whole();
    let broker = home.start_either(more, &mut choices);
    if partitions == 1 {
        assert_goes_on_at(&home, told.len() as u64);
    } else {
        assert_eq!(home.receive(QUEUE, SILENCE), []);
    }
    broker.kill();
    told.len()
}

#[test]
fn what_was_acknowledged_is_there_once_and_in_order_after_every_kill() {
    let kills = std::env::var("KILLS").map_or(4, |kills| kills.parse().unwrap());
    let mut choices = Choices::of("KILLS_SEED");
    let (mut left, mut told) = (kills, 0);
    while left > 0 {
        let (now, seed) = (left.min(KILLS_MAX), choices.next());
        // In turn on one shard and on several.
        told += if (left / KILLS_MAX).is_multiple_of(2) {
            senders_outlive_brokers(now, [1, 1, 2], 1, seed)
        } else {
            senders_outlive_brokers(now, [2, 1, 3], 4, seed)
        };
        left -= now;
    }
    println!("killed {kills} times, acknowledged {told}, lost 0, stored twice 0");
}

#[test]
fn another_number_of_shards_finds_what_those_before_it_kept() {
    let mut choices = Choices::of("KILLS_SEED");
    senders_outlive_brokers(2, [2, 1, 3], 4, choices.next());
}

/// A topic keeps what it is sent for a subscription that has a name, whoever is there.
#[test]
fn a_named_subscription_of_a_topic_goes_on_where_it_was_after_every_kill() {
    const TOPIC: &str = "topic:/kept/news";
    const BOOKS: &str = "topic:/kept/news --subscription books";
    let (home, mut choices) = (Home::new(), Choices::of("KILLS_SEED"));
    let mut broker = home.start_either(1, &mut choices);
    assert_eq!(home.receive(BOOKS, SILENCE), [], "it begins");
    let mut senders: Vec<Sender> = (0..SENDERS)
        .map(|_| home.sender(TOPIC, MESSAGES / SENDERS as u64, 1, PATIENCE))
        .collect();
    for shards in [2, 1] {
        wait_for_more(&senders, 1 + choices.below(MESSAGES / 4));
        broker.kill();
        home.assert_whole();
        broker = home.start_either(shards, &mut choices);
    }
    let told = all(&mut senders);
    broker.kill();
    let broker = home.start_either(3, &mut choices);
    assert_exactly_once_in_order(&told, &home.receive(BOOKS, SILENCE));
    broker.kill();
    let broker = home.start_either(1, &mut choices);
    assert_eq!(
        home.receive(BOOKS, SILENCE),
        [],
        "what was settled stays so"
    );
    broker.kill();
}

/// Bytes of all files of a directory, and of those in it.
fn size(directory: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            within if within.is_dir() => size(&entry.path()),
            file => file.len(),
        })
        .sum()
}

/// `MANY` says how many messages, 400,000 unless said otherwise.
#[test]
fn disk_and_starts_stay_small_however_much_is_sent_and_received() {
    let many = std::env::var("MANY").map_or(400_000, |many| many.parse().unwrap());
    let mut choices = Choices::of("KILLS_SEED");
    let mut home = Home::new();
    home.checkpoint_bytes = Some("2MiB");
    home.body = 400;
    let mut broker = home.start_either(1, &mut choices);
    let mut sent = 0;
    const ROUNDS: u64 = 8;
    // Of a round, however far the receiver is behind: each with its header.
    let unsettled = many / ROUNDS * 512;
    for _ in 0..ROUNDS {
        let mut sender = home.sender(QUEUE, many / ROUNDS, 1, PATIENCE);
        let received = home.receive(QUEUE, "3s");
        assert_eq!(received, sender.complete());
        sent += received.len() as u64;
        broker.kill();
        home.assert_whole();
        // A file that is written to, the next one, two that wait, one to begin in, and what
        // was there for a moment; and what was not settled, in the journal and in a
        // checkpoint.
        let size = size(std::path::Path::new(&home.data));
        let most = 6 * (16 << 20) + 2 * unsettled;
        assert!(size <= most, "{size} bytes after {sent} messages");
        broker = home.start_either(1, &mut choices);
        let (checkpoint, behind) = read_by(&mut broker);
        // One that was under way does not count, and the next begins behind it.
        let kept = checkpoint.max(2048).max(unsettled / 1024);
        assert!(
            behind <= 3 * kept,
            "{checkpoint} KiB, and {behind} KiB since"
        );
    }
    assert_goes_on_at(&home, sent);
    broker.kill();
}

/// What the start of a broker reads, in KiB: of checkpoints, and what was journalled since.
fn read_by(broker: &mut Broker) -> (u64, u64) {
    let said = broker.said_of_data();
    let figures = said.split_once(": read ").expect("it says so").1;
    let mut figures = figures.split(" KiB").map(|text| text.rsplit(' ').next());
    let mut next = || -> u64 { figures.next().flatten().unwrap().parse().unwrap() };
    (next(), next())
}

/// A start read everything since the last checkpoint, however orderly the stop had been.
#[test]
fn a_start_behind_an_orderly_stop_reads_a_checkpoint_and_almost_no_journal() {
    let mut choices = Choices::of("KILLS_SEED");
    for shards in [1, 2] {
        let mut home = Home::new();
        home.body = 4000;
        let broker = home.start_either(shards, &mut choices);
        let mut told = home.sender(QUEUE, 1500, 4, PATIENCE).complete();
        broker.signal(Signal::TERM);
        assert_eq!(broker.end().status, Some(0));
        home.assert_whole();
        let mut broker = home.start_either(shards, &mut choices);
        let (checkpoints, since) = read_by(&mut broker);
        assert!(
            checkpoints > 6000 && since < 300,
            "{checkpoints} KiB, and {since} KiB since"
        );
        // Nothing is written for little.
        told.extend(home.sender(QUEUE, 20, 4, PATIENCE).complete());
        broker.signal(Signal::TERM);
        assert_eq!(broker.end().status, Some(0));
        let mut broker = home.start_either(shards, &mut choices);
        let (again, since) = read_by(&mut broker);
        assert!(
            again == checkpoints && (80..1024).contains(&since),
            "{again} KiB, and {since} KiB since"
        );
        // What a run before has left counts.
        told.extend(home.sender(QUEUE, 1500, 4, PATIENCE).complete());
        broker.kill();
        let mut broker = home.start_either(shards, &mut choices);
        let (_, since) = read_by(&mut broker);
        assert!(since > 6000, "{since} KiB since, behind a kill");
        broker.signal(Signal::TERM);
        assert_eq!(broker.end().status, Some(0));
        let mut broker = home.start_either(shards, &mut choices);
        let (checkpoints, since) = read_by(&mut broker);
        assert!(
            checkpoints > 12_000 && since < 300,
            "{checkpoints} KiB, and {since} KiB since"
        );
        assert_kept(&told, &home.receive(QUEUE, SILENCE));
        broker.kill();
    }
}

#[test]
fn a_broker_that_is_part_of_a_program_leaves_a_checkpoint_as_well() {
    for has_threads in [true, false] {
        let records = Directory::new();
        let path = records.file("data");
        let config = BrokerConfig {
            memory: 96 << 20,
            links_in_process: 1,
            data_directory: Some(path.clone().into()),
            ..BrokerConfig::embedded()
        };
        let broker = match has_threads {
            true => embedded::Broker::start(config),
            false => embedded::Broker::without_threads(config),
        };
        let broker = broker.unwrap();
        let client = broker.connect().unwrap();
        let producer = client.producer(QUEUE).create().unwrap();
        for _ in 0..400 {
            producer.send(vec![7; 8000]).unwrap();
        }
        drop(producer);
        client.close().unwrap();
        broker.stop();
        let directory = DataDirectory::open(path.as_ref()).unwrap();
        let read = Recovery::read(&directory).unwrap().size();
        assert!(
            read.checkpoints > 3_200_000 && read.journals < 100_000,
            "{read:?}"
        );
    }
}

/// Its last messages may be there or not. Its successor's are behind them.
#[test]
fn what_a_sender_was_told_is_kept_though_the_broker_never_came_back_to_it() {
    let mut choices = Choices::of("KILLS_SEED");
    let home = Home::new();
    let broker = home.start_either(1, &mut choices);
    let mut senders: Vec<Sender> = (0..SENDERS)
        .map(|_| home.sender(QUEUE, 1_000_000, 1, "2s"))
        .collect();
    wait_for_more(&senders, 1 + choices.below(MESSAGES));
    broker.kill();
    let told: Vec<Record> = senders.iter_mut().flat_map(Sender::give_up).collect();
    assert!(!told.is_empty());
    home.assert_whole();
    let broker = home.start_either(1, &mut choices);
    let received = home.receive(QUEUE, SILENCE);
    assert_kept(&told, &received);
    assert_goes_on_at(&home, received.len() as u64);
    broker.kill();
}

/// The earliest time that each message was received, in that order.
fn first_of_each(dumps: &[Vec<Record>]) -> Vec<Record> {
    let mut seen = HashMap::new();
    let records = dumps.iter().flatten();
    let new = records.filter(|record| {
        let before = seen.insert(record.id, (*record).clone());
        before.is_none_or(|before| {
            assert_eq!(before, **record, "the same again");
            false
        })
    });
    new.cloned().collect()
}

#[test]
fn what_a_killed_receiver_had_not_settled_comes_again() {
    let mut choices = Choices::of("KILLS_SEED");
    let home = Home::new();
    let mut broker = home.start_either(1, &mut choices);
    let told = home.sender(QUEUE, MESSAGES, 1, PATIENCE).complete();
    let mut dumps = Vec::new();
    // The receiver first, then the broker under another one, who is not told.
    for is_receiver in [true, false] {
        // Longer than a broker takes to come back: who hears nothing for so long leaves.
        let (receiver, file) = home.receiver(QUEUE, "10s");
        let wanted = 1 + choices.below(MESSAGES / 3);
        let received = || std::fs::metadata(&file).map_or(0, |file| file.len());
        while received() < wanted * 16 {
            std::thread::park_timeout(std::time::Duration::from_micros(200));
        }
        if is_receiver {
            receiver.signal(Signal::KILL);
        } else {
            broker.kill();
            home.assert_whole();
            broker = home.start_either(1, &mut choices);
        }
        let ended = receiver.end();
        assert_eq!(ended.signal.is_some(), is_receiver, "{ended:?}");
        dumps.push(dump(file));
    }
    assert_exactly_once_in_order(&told, &first_of_each(&dumps));
    let again = dumps[0].len() + dumps[1].len() - told.len();
    assert!(again < told.len(), "what was settled stays so: {again}");
    broker.kill();
    let broker = home.start_either(1, &mut choices);
    assert_goes_on_at(&home, MESSAGES);
    broker.kill();
}

#[test]
fn a_second_broker_on_a_directory_is_refused_at_once() {
    let home = Home::new();
    let broker = home.start(1, "auto");
    let serve = ["--listen", "127.0.0.1:0", "--data-dir", &home.data];
    let Err(refused) = Broker::serve(&serve) else {
        panic!("there are two brokers on {}", home.data);
    };
    assert_eq!(refused.status, Some(1), "{refused:?}");
    let named = format!("is in use by process {}", broker.pid().as_raw_nonzero());
    assert!(refused.stderr.contains(&named), "{refused:?}");
    assert!(refused.stderr.contains("\n  fix "), "{refused:?}");
    // The first one does not notice, and leaves the directory to others when it is gone.
    let told = home.sender(QUEUE, 10, 1, PATIENCE).complete();
    broker.kill();
    let broker = home.start(1, "auto");
    assert_eq!(home.receive(QUEUE, SILENCE), told);
    broker.kill();
}

#[test]
fn a_sender_is_told_how_much_of_it_is_durable() {
    let home = Home::new();
    let broker = home.start(1, "auto");
    let told = |line: &str| {
        let ended = broker.courser(line);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert_eq!(ended.stderr, "");
        ended.stdout
    };
    let durable = "acknowledged 3 messages, 3 of them durable\n";
    assert_eq!(told("send q --count 3"), durable);
    assert_eq!(told("send q --count 3 --persistent"), durable);
    assert_eq!(
        told("send q --count 3 --no-persistent --persistent"),
        durable
    );
    assert_eq!(
        told("send q --count 3 --no-persistent"),
        "acknowledged 3 messages\n"
    );
    broker.kill();
    let broker = Broker::start("auto");
    let ended = broker.courser("send q --count 3 --persistent");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "acknowledged 3 messages\n");
    let expected = "warning: 3 of them are in the broker's memory only";
    assert!(ended.stderr.contains(expected), "{ended:?}");
}

#[test]
fn a_broker_that_is_told_nothing_keeps_its_data_where_it_was_started() {
    let directory = Directory::new();
    let here = directory.file("");
    let line = ["serve", "--listen", "127.0.0.1:0", "--cores", "none"];
    let started = |flags: &[&str]| {
        let mut broker = Running::start_in(&here, &[&line[..], flags].concat(), "");
        let data = loop {
            let said = broker.next_line().unwrap();
            if let Some(data) = said.strip_prefix("data ") {
                break data.trim().to_owned();
            }
        };
        broker.signal(Signal::TERM);
        assert_eq!(broker.end().status, Some(0));
        data
    };
    assert!(started(&["--ephemeral"]).starts_with("nothing is kept"));
    let data = std::path::PathBuf::from(directory.file("courser-data"));
    assert!(!data.exists());
    let kept = format!("{}, run 1", data.display());
    assert_eq!(started(&[]), kept);
    let mode = std::fs::metadata(&data).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
