//! A peer that vanishes without a word: no end, no reset, just nothing any more.
//!
//! ```text
//!  this process          a broker in a network of its own      its peers in another
//!  starts and judges --> inside, 10.77.0.1  ===== veth ======  outside, 10.77.0.2
//! ```
//!
//! The peers' side loses its address, so that everything sent to it arrives and is
//! silently dropped. Both networks end with their processes; nothing of them is seen
//! outside, and no packet leaves. Who may not make networks says so and is skipped.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use courser_core::client::Event;
use courser_core::counters::Counter;
use courser_core::limits;
use courser_transport::{Broker, BrokerConfig, Transport};
use support::{DEADLINE, TestClient, config, eventually};

const HERE: &str = "10.77.0.1";
const THERE: &str = "10.77.0.2";
const OUTSIDE_ADDRESS: &str = "02:00:00:00:00:02";
const BROKERS: &str = "COURSER_TEST_BROKERS";

/// Messages that a peer holds when it vanishes.
const HELD: usize = 10;

/// What is released is released within a second of being noticed, and late where others
/// have the processors.
const RELEASE: Duration = Duration::from_secs(30);

fn ip(line: &str) {
    let ended = Command::new("ip").args(line.split(' ')).output().unwrap();
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "ip {line}: {complaint}");
}

/// This program again, running one of its ignored tests in a new network.
fn in_a_new_network(flags: &str, test: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", test]);
    command
}

/// How a new network can be had here, if at all.
fn network_flags() -> Option<&'static str> {
    ["-n", "-rn"].into_iter().find(|flags| {
        let probe = format!(
            "ip link add inside type veth peer name outside && ip addr add {HERE}/24 dev inside"
        );
        Command::new("unshare")
            .args([flags, "sh", "-c", &probe])
            .output()
            .is_ok_and(|ended| ended.status.success())
    })
}

#[test]
fn a_peer_that_vanishes_is_noticed_within_ten_seconds_and_what_it_held_is_released() {
    let Some(flags) = network_flags() else {
        eprintln!("SKIPPED: no network of one's own can be had here (unshare, ip, veth)");
        return;
    };
    let ended = in_a_new_network(flags, "child_broker").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    let complained = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}{complained}");
    assert!(said.contains("1 passed"), "{said}{complained}");
    for line in complained
        .lines()
        .filter(|line| line.starts_with("noticed"))
    {
        eprintln!("{line}");
    }
}

/// The process with the peers, as the broker's process sees it.
struct Peers {
    child: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Peers {
    fn start(brokers: &[Broker]) -> Self {
        let addresses: Vec<String> = brokers
            .iter()
            .map(|broker| broker.address().to_string())
            .collect();
        let mut child = in_a_new_network("-n", "child_peers")
            .env(BROKERS, addresses.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            orders: child.stdin.take().unwrap(),
            reports: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn wait_for(&mut self, report: &str) {
        for line in self.reports.by_ref().lines() {
            if line.unwrap().trim() == report {
                return;
            }
        }
        panic!("the peers ended before they were {report}");
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn closed(broker: &Broker) -> u64 {
    broker
        .stats()
        .map(|stats| stats.read(Counter::LinksClosed))
        .sum()
}

#[test]
#[ignore = "run by a_peer_that_vanishes_is_noticed_within_ten_seconds_.. in a network of its own"]
fn child_broker() {
    ip("link set lo up");
    ip(&format!(
        "link add inside type veth peer name outside address {OUTSIDE_ADDRESS}"
    ));
    ip(&format!("addr add {HERE}/24 dev inside"));
    ip("link set inside up");
    // Known for good: nobody asks who has that address, and learns that nobody has.
    ip(&format!(
        "neigh replace {THERE} lladdr {OUTSIDE_ADDRESS} dev inside nud permanent"
    ));
    let brokers: Vec<Broker> = [Transport::Auto, Transport::Epoll]
        .into_iter()
        .map(|transport| {
            Broker::start(BrokerConfig {
                listen: Some(SocketAddr::new(HERE.parse().unwrap(), 0)),
                ..config(transport)
            })
            .unwrap()
        })
        .collect();

    let mut peers = Peers::start(&brokers);
    peers.wait_for("arrived");
    ip(&format!("link set outside netns {}", peers.child.id()));
    // What the holder will hold and never acknowledge is there before it connects.
    let bodies: Vec<Vec<u8>> = (0..HELD).map(|index| vec![7; 100 + index]).collect();
    let mut witnesses: Vec<TestClient> = brokers
        .iter()
        .map(|broker| {
            let mut witness = TestClient::connect(broker.address());
            let producer = witness.producer("queue:/test/held");
            let sent = witness.send_all(producer, &bodies);
            assert!(sent.iter().all(|completion| completion.result.is_ok()));
            witness
        })
        .collect();
    peers.order("connect");
    peers.wait_for("connected");
    assert!(brokers.iter().all(|broker| closed(broker) == 0));

    peers.order("vanish");
    peers.wait_for("gone");
    let gone = Instant::now();
    // To one of them something is on its way from now on; of the others nothing is heard.
    for witness in &mut witnesses {
        let producer = witness.producer("queue:/test/pending");
        witness.send_all(producer, &[vec![1; 1_000]]);
    }
    for (broker, witness) in brokers.iter().zip(&mut witnesses) {
        eventually("all three are noticed", || closed(broker) >= 3);
        let noticed = gone.elapsed();
        let ring = &broker.setting().shards[0].ring;
        eprintln!(
            "noticed after {:.1} s over {}",
            noticed.as_secs_f64(),
            ring.split(' ').next().unwrap()
        );
        assert!(noticed < limits::VANISHED_TIMEOUT + RELEASE, "{noticed:?}");
        // What they held is there for others, all of it.
        let released = Instant::now();
        for (queue, expected) in [("held", bodies.clone()), ("pending", vec![vec![1; 1_000]])] {
            let consumer = witness.consumer(&format!("queue:/test/{queue}"));
            assert_eq!(witness.receive(consumer, expected.len()), expected);
        }
        assert!(released.elapsed() < RELEASE, "{:?}", released.elapsed());
        assert_eq!(
            broker.stats().map(|stats| stats.links()).sum::<u64>(),
            1,
            "the witness noticed nothing"
        );
    }
}

#[test]
#[ignore = "run by child_broker in a network of its own"]
fn child_peers() {
    let Ok(addresses) = std::env::var(BROKERS) else {
        return;
    };
    let mut orders = std::io::stdin().lines();
    let mut next = || orders.next().map(Result::unwrap);
    // On a line of its own: the test's name stands before it.
    println!("\narrived");
    assert_eq!(next().as_deref(), Some("connect"));
    ip(&format!("addr add {THERE}/24 dev outside"));
    ip("link set outside up");
    let mut clients = Vec::new();
    for address in addresses.split(' ') {
        let address: SocketAddr = address.parse().unwrap();
        let mut idle = TestClient::connect(address);
        idle.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
        let mut holder = TestClient::connect(address);
        let held = holder.consumer("queue:/test/held");
        let began = Instant::now();
        let mut messages = 0;
        while messages < HELD {
            messages += std::iter::from_fn(|| holder.client.poll_message(held).map(drop)).count();
            holder.turn();
            assert!(began.elapsed() < DEADLINE, "{messages} messages held");
        }
        let mut pending = TestClient::connect(address);
        pending.consumer("queue:/test/pending");
        clients.extend([idle, holder, pending]);
    }
    println!("connected");
    assert_eq!(next().as_deref(), Some("vanish"));
    ip(&format!("addr del {THERE}/24 dev outside"));
    println!("gone");
    // From here on nothing reaches anybody; the end comes from outside.
    assert_eq!(next(), None);
    drop(clients);
}
