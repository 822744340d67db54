//! A broker of several shards over loopback, on every transport that this machine has.

#![allow(clippy::unwrap_used)]

mod support;

use std::num::NonZeroU16;

use courser_core::client::{Config, Event, LinkEnd};
use courser_core::counters::Counter;
use courser_core::error::Refusal;
use courser_core::id::ShardIndex;
use courser_transport::affinity::Cores;
use courser_transport::idle::IdleStrategy;
use courser_transport::{Broker, BrokerConfig, Transport};
use support::{TestClient, brokers_of, config, eventually};

fn opened(client: &mut TestClient) -> ShardIndex {
    client.event(|event| match event {
        Event::Opened { shard, .. } => Some(shard),
        _ => None,
    })
}

fn ended(client: &mut TestClient) -> LinkEnd {
    client.event(|event| match event {
        Event::Ended(end) => Some(end),
        _ => None,
    })
}

/// Has the client's link move, and waits until a shard says where it is.
fn moved(client: &mut TestClient, to: u16) -> ShardIndex {
    let now = client.now().monotonic;
    assert!(client.client.move_to(now, ShardIndex(to)));
    opened(client)
}

fn links(broker: &Broker) -> Vec<u64> {
    broker.stats().map(|stats| stats.links()).collect()
}

#[test]
fn connections_without_a_wish_are_spread_over_all_shards() {
    for broker in brokers_of(3) {
        let mut clients: Vec<_> = (0..12)
            .map(|_| TestClient::connect(broker.address()))
            .collect();
        let mut on = [0; 3];
        for client in &mut clients {
            on[usize::from(opened(client).0)] += 1;
            assert_eq!(client.client.shards(), 3);
        }
        assert_eq!(on, [4; 3]);
        eventually("every shard counts its links", || links(&broker) == [4; 3]);
        broker.stop();
    }
}

#[test]
fn a_connection_gets_the_shard_that_it_asks_for_or_hears_that_there_is_none() {
    for broker in brokers_of(2) {
        for shard in [1, 0, 1, 1] {
            let shard = ShardIndex(shard);
            let mut client = TestClient::connect_to(broker.address(), Some(shard));
            assert_eq!(opened(&mut client), shard);
        }
        let mut client = TestClient::connect_to(broker.address(), Some(ShardIndex(2)));
        let end = ended(&mut client);
        let LinkEnd::Farewell { refusal, text, .. } = &end else {
            panic!("{end:?}")
        };
        assert_eq!(*refusal, Some(Refusal::IllegalArgument));
        assert!(text.contains("no shard beyond 1"), "{text}");
        broker.stop();
    }
}

#[test]
fn a_link_moves_over_its_connection_and_works_where_it_is() {
    for broker in brokers_of(2) {
        let mut client = TestClient::connect_to(broker.address(), Some(ShardIndex(0)));
        assert_eq!(opened(&mut client), ShardIndex(0));
        for round in 0..40 {
            let to = 1 - round % 2;
            assert_eq!(moved(&mut client, to), ShardIndex(to));
        }
        let moves = |shard: &courser_transport::stats::ShardStats| shard.read(Counter::LinksMoved);
        eventually("both shards have published", || {
            broker.stats().map(moves).eq([20, 20]) && links(&broker) == [1, 0]
        });
        assert_eq!(broker.door_stats().accepted(), 1, "over one connection");
        let asked = client.now().monotonic;
        client.client.ping(asked).unwrap();
        client.event(|event| matches!(event, Event::Pong { .. }).then_some(()));
        broker.stop();
    }
}

/// A shard that slept over a connection which was handed to it would notice within the
/// second at which every sleep ends; so there are many, one behind the other.
#[test]
fn shards_that_sleep_are_woken_for_what_others_hand_over() {
    const MOVES: u16 = 300;
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = Broker::start(BrokerConfig {
            cores: Cores::Unpinned,
            shards: NonZeroU16::new(2),
            idle: IdleStrategy::Park,
            memory: 130 << 20,
            ..config(transport)
        });
        let broker = match broker {
            Ok(broker) => broker,
            Err(error) => panic!("{error}"),
        };
        let mut client = TestClient::connect_to(broker.address(), Some(ShardIndex(0)));
        opened(&mut client);
        let began = std::time::Instant::now();
        for round in 0..MOVES {
            let to = 1 - round % 2;
            assert_eq!(moved(&mut client, to), ShardIndex(to));
        }
        let took = began.elapsed();
        assert!(
            took < std::time::Duration::from_secs(u64::from(MOVES) / 2),
            "{MOVES} moves took {took:?}: shards overslept"
        );
        let sleeps: u64 = broker.stats().map(|it| it.read(Counter::Sleeps)).sum();
        assert!(sleeps >= u64::from(MOVES) / 2, "{sleeps} sleeps");
        broker.stop();
    }
}

#[test]
fn a_stop_says_goodbye_on_every_shard() {
    for broker in brokers_of(3) {
        let mut clients: Vec<_> = (0..6)
            .map(|_| TestClient::connect(broker.address()))
            .collect();
        clients.iter_mut().for_each(|client| {
            opened(client);
        });
        let stopping = std::thread::spawn(move || broker.stop());
        for client in &mut clients {
            let end = ended(client);
            assert!(
                matches!(
                    end,
                    LinkEnd::Farewell {
                        refusal: Some(Refusal::Stopping),
                        ..
                    }
                ),
                "{end:?}"
            );
        }
        drop(clients);
        stopping.join().unwrap();
    }
}

#[test]
fn a_link_takes_the_place_of_one_wherever_that_was() {
    for broker in brokers_of(2) {
        // The next without a wish would go to the other shard.
        for shard in [1, 0] {
            let lasting = Config {
                shard: Some(ShardIndex(shard)),
                reconnect_for: support::DEADLINE,
                hello_timeout: support::DEADLINE,
                ..Config::default()
            };
            let mut client = TestClient::connect_as(broker.address(), lasting);
            opened(&mut client);
            let replaced = || -> u64 {
                let count =
                    |it: &courser_transport::stats::ShardStats| it.read(Counter::LinksReplaced);
                broker.stats().map(count).sum()
            };
            let before = replaced();
            // The broker does not see that the old connection is of no more use.
            let kept = client.reconnect(broker.address());
            assert_eq!(client.client.shard(), ShardIndex(shard));
            eventually("the old link has ended", || replaced() == before + 1);
            drop(kept);
        }
        broker.stop();
    }
}

#[test]
fn the_start_reports_every_shard() {
    for broker in brokers_of(2) {
        let report = broker.setting().to_string();
        assert!(report.contains("\nshard 0    any cpu, "), "{report}");
        assert!(report.contains("\nshard 1    any cpu, "), "{report}");
        assert!(report.contains("\nmemory     2 times 64 MiB: "), "{report}");
        broker.stop();
    }
}
