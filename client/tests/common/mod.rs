//! A broker in this process, and waiting with a deadline.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod proxy;
pub mod town;

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use courser::{Client, ConnectOptions, Counter};
use courser_transport::affinity::Cores;
use courser_transport::{Broker, BrokerConfig};

/// Longer than anything here takes on a busy machine.
pub const WAIT: Duration = Duration::from_secs(60);

pub struct TestBroker(Broker);

impl TestBroker {
    pub fn start() -> Self {
        let config = BrokerConfig {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            memory: 64 << 20,
            ..BrokerConfig::default()
        };
        Self(Broker::start(config).unwrap())
    }

    /// Of so many shards, each wherever the kernel puts it.
    pub fn of_shards(shards: u16) -> Self {
        let config = BrokerConfig {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            cores: Cores::Unpinned,
            shards: NonZeroU16::new(shards),
            memory: u64::from(shards) * (66 << 20),
            ..BrokerConfig::default()
        };
        Self(Broker::start(config).unwrap())
    }

    /// One that creates only what it is asked to create.
    pub fn start_closed() -> Self {
        let config = BrokerConfig {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            memory: 64 << 20,
            auto_create: false,
            ..BrokerConfig::default()
        };
        Self(Broker::start(config).unwrap())
    }

    /// Connections that the broker has accepted.
    pub fn accepted(&self) -> u64 {
        self.0.door_stats().accepted()
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

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future until it is ready, parked in between.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let deadline = Instant::now() + WAIT;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the future never became ready");
        thread::park_timeout(left);
    }
}
