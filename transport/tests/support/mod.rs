//! A client for tests: the machine of `core` over a blocking socket.

#![allow(clippy::unwrap_used, dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use courser_core::client::{
    Client, Completion, Config, ConsumerKey, ConsumerRequest, Event, Outgoing, ProducerKey,
    ProducerRequest, Route,
};
use courser_core::id::ShardIndex;
use courser_core::name::Destination;
use courser_core::time::{Monotonic, Now};
use courser_transport::affinity::Cores;
use courser_transport::clock::Clock;
use courser_transport::{Broker, BrokerConfig, Transport};

/// Longer than anything takes on a busy machine, shorter than anybody's patience.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A broker on a port of the kernel's choice.
pub(crate) fn config(transport: Transport) -> BrokerConfig {
    BrokerConfig {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        transport,
        memory: 128 << 20,
        ..BrokerConfig::default()
    }
}

/// Every transport that this machine has; what is refused is said aloud.
pub(crate) fn brokers() -> Vec<Broker> {
    let uring = match Broker::start(config(Transport::IoUring)) {
        Ok(broker) => Some(broker),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    };
    let epoll = Broker::start(config(Transport::Epoll)).unwrap();
    uring.into_iter().chain([epoll]).collect()
}

/// As [`brokers`], with so many shards, each wherever the kernel puts it.
pub(crate) fn brokers_of(shards: u16) -> Vec<Broker> {
    let several = |transport| BrokerConfig {
        cores: Cores::Unpinned,
        shards: NonZeroU16::new(shards),
        memory: u64::from(shards) * (65 << 20),
        ..config(transport)
    };
    let uring = match Broker::start(several(Transport::IoUring)) {
        Ok(broker) => Some(broker),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    };
    let epoll = Broker::start(several(Transport::Epoll)).unwrap();
    uring.into_iter().chain([epoll]).collect()
}

/// Waits for a condition, and says what it waited for if it does not come.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

fn dialed(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    socket
}

pub(crate) struct TestClient {
    pub(crate) client: Client,
    pub(crate) socket: TcpStream,
    clock: Clock,
}

impl TestClient {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::connect_to(address, None)
    }

    /// As [`TestClient::connect`], and asks for a shard.
    pub(crate) fn connect_to(address: SocketAddr, shard: Option<ShardIndex>) -> Self {
        let config = Config {
            name: "test".into(),
            shard,
            hello_timeout: DEADLINE,
            ..Config::default()
        };
        Self::connect_as(address, config)
    }

    pub(crate) fn connect_as(address: SocketAddr, config: Config) -> Self {
        let socket = dialed(address);
        let mut client = Client::new(config);
        let mut clock = Clock::new();
        client.connected(clock.now().monotonic);
        Self {
            client,
            socket,
            clock,
        }
    }

    pub(crate) fn now(&mut self) -> Now {
        self.clock.now()
    }

    /// Goes on over another connection, as if the one before were lost; returns that
    /// one, of which the broker has not heard anything.
    pub(crate) fn reconnect(&mut self, address: SocketAddr) -> TcpStream {
        self.client.closed();
        let before = std::mem::replace(&mut self.socket, dialed(address));
        let now = self.now().monotonic;
        self.client.connected(now);
        self.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
        before
    }

    /// Writes everything, then reads once.
    pub(crate) fn turn(&mut self) {
        self.flush();
        let mut bytes = [0; 65_536];
        match self.socket.read(&mut bytes) {
            Ok(0) => self.client.closed(),
            Ok(count) => self.client.received(&bytes[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(_) => self.client.closed(),
        }
        let now = self.now().monotonic;
        self.client.expire(now);
    }

    pub(crate) fn flush(&mut self) {
        loop {
            let pieces = self.client.pieces();
            if pieces.is_empty() {
                return;
            }
            let bytes = pieces.slices().concat();
            if self.socket.write_all(&bytes).is_err() {
                self.client.closed();
                return;
            }
            self.client.sent(bytes.len());
        }
    }

    /// Turns until an event satisfies.
    pub(crate) fn event<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            while let Some(event) = self.client.poll_event() {
                if let Event::Refused { refusal, text, .. } = &event {
                    panic!("refused: {refusal:?} {text}");
                }
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
            assert!(started.elapsed() < DEADLINE, "no such event in time");
            self.turn();
        }
    }

    pub(crate) fn producer(&mut self, destination: &str) -> ProducerKey {
        let destination = Destination::parse(destination).unwrap();
        self.client
            .open_producer(ProducerRequest::new(destination))
            .unwrap();
        self.event(|event| match event {
            Event::ProducerOpened { producer, .. } => Some(producer),
            _ => None,
        })
    }

    pub(crate) fn consumer(&mut self, destination: &str) -> ConsumerKey {
        let destination = Destination::parse(destination).unwrap();
        self.client
            .open_consumer(ConsumerRequest::new(destination))
            .unwrap();
        self.event(|event| match event {
            Event::ConsumerOpened { consumer, .. } => Some(consumer),
            _ => None,
        })
    }

    /// Sends all bodies as fast as the machine takes them, and waits for all outcomes.
    pub(crate) fn send_all(
        &mut self,
        producer: ProducerKey,
        bodies: &[Vec<u8>],
    ) -> Vec<Completion> {
        let started = Instant::now();
        let mut completions = Vec::new();
        let mut next = 0;
        while completions.len() < bodies.len() {
            let now = self.now();
            while next < bodies.len() {
                let message = Outgoing {
                    properties: &[],
                    body: &bodies[next],
                    route: Route::Turn,
                    durability: None,
                    deadline: Monotonic::NEVER,
                };
                if self.client.send(now, producer, &message).is_err() {
                    break;
                }
                next += 1;
            }
            self.turn();
            while let Some(completion) = self.client.poll_completion(producer) {
                completions.push(completion);
            }
            assert!(
                started.elapsed() < DEADLINE,
                "{} of {} completed",
                completions.len(),
                bodies.len()
            );
        }
        completions
    }

    /// Receives and acknowledges so many messages.
    pub(crate) fn receive(&mut self, consumer: ConsumerKey, count: usize) -> Vec<Vec<u8>> {
        let started = Instant::now();
        let mut bodies = Vec::new();
        while bodies.len() < count {
            while let Some(message) = self.client.poll_message(consumer) {
                bodies.push(message.body().to_vec());
                let position = message.position();
                self.client.acknowledge(consumer, position).unwrap();
            }
            if bodies.len() < count {
                self.turn();
            }
            assert!(
                started.elapsed() < DEADLINE,
                "{} of {count} received",
                bodies.len()
            );
        }
        self.flush();
        bodies
    }
}
