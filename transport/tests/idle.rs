//! What a shard without work costs, in processor time of its thread: a figure that does
//! not depend on what else the machine does.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use courser_core::client::Event;
use courser_core::counters::Counter;
use courser_transport::idle::IdleStrategy;
use courser_transport::{Broker, BrokerConfig, Transport, sys};
use support::{TestClient, config, eventually};

fn start(transport: Transport, idle: IdleStrategy) -> Broker {
    Broker::start(BrokerConfig {
        idle,
        ..config(transport)
    })
    .unwrap()
}

fn sleeps(broker: &Broker) -> u64 {
    broker
        .stats()
        .map(|stats| stats.read(Counter::Sleeps))
        .sum()
}

/// Processor time of the shard's thread while the broker is silent for so long, as a
/// share of that time.
fn share_while_silent(broker: &Broker, client: &mut TestClient, time: Duration) -> f64 {
    let thread = broker.setting().shards[0].thread;
    let began = Instant::now();
    let before = sys::thread_cpu_time(thread).unwrap();
    client.socket.set_read_timeout(Some(time)).unwrap();
    let heard = client.socket.read(&mut [0]).unwrap_err();
    assert!(matches!(
        heard.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    let spent = sys::thread_cpu_time(thread).unwrap() - before;
    client
        .socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    spent.as_secs_f64() / began.elapsed().as_secs_f64()
}

#[test]
fn a_parked_broker_answers_and_costs_next_to_nothing() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = start(transport, IdleStrategy::Park);
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/parked");
        for _ in 0..100 {
            assert!(client.send_all(producer, &[vec![7; 64]])[0].result.is_ok());
        }
        let asleep = sleeps(&broker);
        eventually("it sleeps", || sleeps(&broker) > asleep);
        let share = share_while_silent(&broker, &mut client, Duration::from_secs(1));
        eprintln!(
            "parked over {transport}: {:.3} % of a processor",
            share * 100.0
        );
        assert!(share < 0.02, "{share}");
        assert!(client.send_all(producer, &[vec![7; 64]])[0].result.is_ok());
        drop(client);
        broker.stop();
    }
}

#[test]
fn a_parked_broker_never_spins() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = start(transport, IdleStrategy::Park);
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/between");
        for _ in 0..50 {
            let before = sleeps(&broker);
            assert!(client.send_all(producer, &[vec![7; 64]])[0].result.is_ok());
            eventually("it sleeps at once", || sleeps(&broker) > before);
        }
        // It never spins: a turn without work is one that sleeps, or that comes from a
        // sleep with nothing to do.
        let stats = broker.stats().next().unwrap();
        let idle = stats.read(Counter::Turns) - stats.read(Counter::TurnsWithWork);
        assert!(idle <= sleeps(&broker) + 1, "{idle} turns without work");
        assert_eq!(stats.read(Counter::DirectBegun), 0);
        drop(client);
        broker.stop();
    }
}

/// An hour of spinning is as good as for ever: what is told is kept.
#[test]
fn the_spin_budget_is_what_it_was_set_to() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = Broker::start(BrokerConfig {
            idle: IdleStrategy::Adaptive,
            spin_budget: Some(Duration::from_secs(3_600)),
            ..config(transport)
        })
        .unwrap();
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/budget");
        assert!(client.send_all(producer, &[vec![7; 64]])[0].result.is_ok());
        eventually(
            "a lone socket is served directly by who spins long enough",
            || {
                broker
                    .stats()
                    .any(|stats| stats.read(Counter::DirectBegun) > 0)
            },
        );
        assert_eq!(sleeps(&broker), 0);
        let report = broker.setting().to_string();
        assert!(report.contains("spins 3600000000 us"), "{report}");
        drop(client);
        broker.stop();
    }
}

/// Goal G19: an adaptive shard with a thousand idle connections.
#[test]
fn a_thousand_idle_connections_cost_at_most_a_hundredth_of_a_processor() {
    const CONNECTIONS: usize = 1_000;
    // Two ends each, and what a process has besides.
    let descriptors = sys::raise_descriptor_limit().soft;
    if descriptors < 2 * CONNECTIONS as u64 + 200 {
        eprintln!("SKIPPED: {descriptors} descriptors are too few for {CONNECTIONS} connections");
        return;
    }
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = start(transport, IdleStrategy::Adaptive);
        let mut clients: Vec<TestClient> = (0..CONNECTIONS)
            .map(|_| {
                let mut client = TestClient::connect(broker.address());
                client.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
                client
            })
            .collect();
        let mut busy = clients.pop().unwrap();
        let producer = busy.producer("queue:/test/idle");
        assert!(busy.send_all(producer, &[vec![7; 64]])[0].result.is_ok());
        eventually("all of them are counted", || {
            broker.stats().map(|stats| stats.links()).sum::<u64>() == CONNECTIONS as u64
        });
        let asleep = sleeps(&broker);
        eventually("it sleeps", || sleeps(&broker) > asleep);
        let share = share_while_silent(&broker, &mut busy, Duration::from_secs(2));
        eprintln!(
            "{CONNECTIONS} idle connections over {transport}: {:.3} % of a processor",
            share * 100.0
        );
        assert!(share <= 0.01, "{share}");
        // And it is there when it is wanted.
        assert!(busy.send_all(producer, &[vec![7; 64]])[0].result.is_ok());
        drop((clients, busy));
        broker.stop();
    }
}
