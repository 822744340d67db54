//! A broker in this process, and waiting with a deadline.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use courser::{Client, ConnectOptions, Counter};
use courser_transport::{Broker, BrokerConfig};

/// Longer than anything here takes on a busy machine.
pub const WAIT: Duration = Duration::from_secs(20);

pub struct TestBroker(Broker);

impl TestBroker {
    pub fn start() -> Self {
        let config = BrokerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            memory: 64 << 20,
            ..BrokerConfig::default()
        };
        Self(Broker::start(config).unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    pub fn client(&self) -> Client {
        self.client_with(Client::options())
    }

    pub fn client_with(&self, options: ConnectOptions) -> Client {
        options.timeout(WAIT).connect(self.address()).unwrap()
    }

    /// Links that the broker has seen.
    pub fn links(&self, client: &Client) -> u64 {
        client.stats().unwrap().counter(Counter::LinksOpened)
    }

    pub fn stop(self) {
        self.0.stop();
    }
}

/// Waits for a condition, at most [`WAIT`].
pub fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition never came true");
        thread::yield_now();
    }
}
