//! What happens when the process has no descriptor left. A file of its own, because a
//! file's tests share one process and its limit.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::time::{Duration, Instant};

use courser_core::client::Event;
use courser_transport::{Broker, Transport};
use support::{TestClient, config, eventually};

#[test]
fn without_descriptors_those_inside_go_on_and_those_outside_wait() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = Broker::start(config(transport)).unwrap();
        let mut inside = TestClient::connect(broker.address());
        let producer = inside.producer("queue:/test/full");

        let mut ballast = vec![File::open("/dev/null").unwrap()];
        while let Ok(another) = ballast[0].try_clone() {
            ballast.push(another);
        }
        // One descriptor for the client's end leaves none for the broker's.
        ballast.pop();
        let started = Instant::now();
        let mut outside = TestClient::connect(broker.address());
        eventually("accepting rests, again and again", || {
            broker.door_stats().rests() >= 3
        });
        let rests = u128::from(broker.door_stats().rests());
        assert!(
            rests <= started.elapsed().as_millis() / 100 + 1,
            "{rests} rests are a spin"
        );
        assert_eq!(broker.door_stats().accepted(), 1);
        let sent = inside.send_all(producer, &vec![vec![1; 100]; 50]);
        assert!(sent.iter().all(|completion| completion.result.is_ok()));

        drop(ballast);
        let freed = Instant::now();
        outside.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
        assert!(
            freed.elapsed() < Duration::from_secs(1),
            "accepting resumes within a second"
        );
        drop((inside, outside));
        broker.stop();
    }
}
