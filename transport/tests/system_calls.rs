//! What a round trip costs the broker in system calls, by its own books and by a tracer's.
//!
//! The claim, for one connection with one message in flight and a shard that spins: a
//! round trip costs exactly two system calls that do something, a receive that brings
//! the message and a send that takes its completion away. While nothing is there the
//! shard looks for it, which is its way of waiting: receives that find nothing
//! (`direct_polls`), and once in 64 of those turns a look after the ring
//! (`enters_idle`). How many of those there are is a matter of time, not of messages.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use courser_core::counters::Counter;
use courser_transport::idle::IdleStrategy;
use courser_transport::{Broker, BrokerConfig, Transport};
use support::{TestClient, config, eventually};

fn read(broker: &Broker, counter: Counter) -> u64 {
    broker.stats().map(|stats| stats.read(counter)).sum()
}

/// The counters as they are now: a shard publishes all of them at once, so after it has
/// published twice more they are younger than this call.
fn settled(broker: &Broker) -> BTreeMap<&'static str, u64> {
    for _ in 0..2 {
        let turns = read(broker, Counter::Turns);
        eventually("the shard publishes", || {
            read(broker, Counter::Turns) > turns
        });
    }
    broker.stats().flat_map(|stats| stats.all()).collect()
}

fn spinning(transport: Transport) -> Broker {
    Broker::start(BrokerConfig {
        idle: IdleStrategy::Spin,
        spin_regardless: true,
        ..config(transport)
    })
    .unwrap()
}

fn round_trips(client: &mut TestClient, producer: courser_core::client::ProducerKey, count: u64) {
    let body = [vec![7; 64]];
    for _ in 0..count {
        let completions = client.send_all(producer, &body);
        assert!(completions[0].result.is_ok(), "{completions:?}");
    }
}

#[test]
fn a_round_trip_at_depth_one_costs_the_broker_two_system_calls() {
    const COUNT: u64 = 2_000;
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = spinning(transport);
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/calls");
        round_trips(&mut client, producer, 10);
        eventually("the lone socket is served directly", || {
            read(&broker, Counter::DirectBegun) > read(&broker, Counter::DirectEnded)
        });
        let before = settled(&broker);
        round_trips(&mut client, producer, COUNT);
        let after = settled(&broker);
        let spent = |counter: Counter| after[counter.name()] - before[counter.name()];
        eprintln!(
            "{transport}: {COUNT} round trips: {} receives, {} sends, {} enters at work; \
             meanwhile {} empty receives and {} idle enters",
            spent(Counter::DirectReceives),
            spent(Counter::DirectSends),
            spent(Counter::Enters),
            spent(Counter::DirectPolls),
            spent(Counter::EntersIdle),
        );
        assert_eq!(spent(Counter::MessagesStored), COUNT);
        assert_eq!(spent(Counter::DirectReceives), COUNT);
        assert_eq!(spent(Counter::DirectSends), COUNT);
        assert_eq!(spent(Counter::Enters), 0);
        assert_eq!(
            (spent(Counter::Receives), spent(Counter::Sends)),
            (COUNT, COUNT)
        );
        assert_eq!(
            (spent(Counter::DirectBegun), spent(Counter::DirectEnded)),
            (0, 0)
        );
        assert!(spent(Counter::EntersIdle) <= spent(Counter::DirectPolls) / 63 + 1);
        drop(client);
        broker.stop();
    }
}

#[test]
fn a_shard_that_spins_makes_way_only_while_a_write_is_under_way() {
    for (transport, name) in [(Transport::Auto, "auto"), (Transport::Epoll, "epoll")] {
        let path = std::env::temp_dir().join(format!("courser-way-{}-{name}", std::process::id()));
        for directory in [None, Some(path.clone())] {
            let broker = Broker::start(BrokerConfig {
                idle: IdleStrategy::Spin,
                spin_regardless: true,
                data_directory: directory.clone(),
                ..config(transport)
            })
            .unwrap();
            let mut client = TestClient::connect(broker.address());
            let producer = client.producer("queue:/test/way");
            round_trips(&mut client, producer, 20);
            // What was told is flushed, and nothing else was asked for.
            let after = settled(&broker);
            let yields = after[Counter::Yields.name()];
            assert_eq!(yields > 0, directory.is_some(), "{transport}: {yields}");
            let turns = read(&broker, Counter::Turns);
            eventually("it goes on spinning", || {
                read(&broker, Counter::Turns) > turns + 10_000
            });
            assert_eq!(read(&broker, Counter::Yields), yields, "{transport}");
            drop(client);
            broker.stop();
        }
        std::fs::remove_dir_all(&path).unwrap();
    }
}

#[test]
fn a_third_socket_ends_direct_calls_and_its_going_brings_them_back() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = spinning(transport);
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/modes");
        let begun = |times| {
            eventually("direct calls begin", || {
                read(&broker, Counter::DirectBegun) >= times
            });
        };
        begun(1);
        let ended = read(&broker, Counter::DirectEnded);
        let others = [(); 2].map(|()| {
            let mut other = TestClient::connect(broker.address());
            other.producer("queue:/test/others");
            other
        });
        eventually("direct calls end", || {
            read(&broker, Counter::DirectEnded) > ended
        });
        let before = settled(&broker);
        round_trips(&mut client, producer, 100);
        let after = settled(&broker);
        let spent = |counter: Counter| after[counter.name()] - before[counter.name()];
        // Among several, io_uring has one call for everybody.
        if broker.setting().shards[0].ring.starts_with("io_uring") {
            assert_eq!(spent(Counter::DirectReceives), 0);
            assert_eq!(spent(Counter::DirectSends), 0);
            assert!(spent(Counter::Enters) >= 100);
        }
        assert_eq!(spent(Counter::DirectBegun), 0);
        drop(others);
        begun(before[Counter::DirectBegun.name()] + 1);
        round_trips(&mut client, producer, 100);
        drop(client);
        broker.stop();
    }
}

/// A tracer of one thread of this process.
struct Tracer {
    child: Child,
    log: std::path::PathBuf,
}

impl Tracer {
    /// `None`, and said aloud, where there is none or it may not trace.
    fn attach(thread: i32) -> Option<Self> {
        let log =
            std::env::temp_dir().join(format!("courser-calls-{}-{thread}", std::process::id()));
        let spawned = Command::new("strace")
            .arg("-p")
            .arg(thread.to_string())
            .arg("-o")
            .arg(&log)
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                eprintln!("SKIPPED: there is no strace: {error}");
                return None;
            }
        };
        let mut said = String::new();
        BufReader::new(child.stderr.as_mut().unwrap())
            .read_line(&mut said)
            .unwrap();
        if said.contains("attached") {
            return Some(Self { child, log });
        }
        child.wait().unwrap();
        eprintln!("SKIPPED: strace may not trace: {said}");
        None
    }

    /// Lets go, and answers the calls seen: by name, and in words how they ended.
    fn detach(mut self) -> BTreeMap<(String, &'static str), u64> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        self.child.wait().unwrap();
        let text = std::fs::read_to_string(&self.log).unwrap();
        std::fs::remove_file(&self.log).unwrap();
        let mut calls = BTreeMap::new();
        // The last line may be cut off where the tracer let go.
        for line in text.lines().filter(|line| line.contains(" = ")) {
            let name = line.split('(').next().unwrap_or_default().to_owned();
            let result = line.rsplit(" = ").next().unwrap_or_default();
            let ended = if result.starts_with("-1 EAGAIN") {
                "found nothing"
            } else if result.starts_with('-') {
                "failed"
            } else {
                "did something"
            };
            *calls.entry((name, ended)).or_default() += 1;
        }
        calls
    }
}

#[test]
fn a_tracer_sees_two_system_calls_for_a_round_trip() {
    const WARM_UP: u64 = 3_000;
    const COUNT: u64 = 300;
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = spinning(transport);
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/traced");
        // Until everything has been allocated that is ever needed.
        round_trips(&mut client, producer, WARM_UP);
        eventually("the lone socket is served directly", || {
            read(&broker, Counter::DirectBegun) > read(&broker, Counter::DirectEnded)
        });
        let Some(tracer) = Tracer::attach(broker.setting().shards[0].thread) else {
            return;
        };
        round_trips(&mut client, producer, COUNT);
        // The last completion can be here before its send was written down; what the
        // shard did since was written down behind it.
        settled(&broker);
        let calls = tracer.detach();
        eprintln!("{transport}: {COUNT} round trips: {calls:?}");
        let seen = |name: &str, ended| calls.get(&(name.to_owned(), ended)).copied().unwrap_or(0);
        assert_eq!(seen("recvfrom", "did something"), COUNT);
        assert_eq!(seen("sendmsg", "did something"), COUNT);
        let polls = seen("recvfrom", "found nothing");
        let asks = seen("io_uring_enter", "did something") + seen("epoll_wait", "did something");
        assert!(asks <= polls / 63 + 1, "{asks} in {polls} empty receives");
        let all: u64 = calls.values().sum();
        assert_eq!(all, 2 * COUNT + polls + asks, "and nothing else: {calls:?}");
        drop(client);
        broker.stop();
    }
}
