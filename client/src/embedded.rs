//! A broker that is part of the application.
//!
//! ```
//! use std::time::Duration;
//! use courser::embedded::{Broker, BrokerConfig};
//!
//! let broker = Broker::start(BrokerConfig::embedded())?;
//! let client = broker.connect()?;
//! client.producer("queue:greetings").create()?.send("hello")?;
//! let mut consumer = client.consumer("queue:greetings").create()?;
//! let message = consumer.receive(Duration::from_secs(1))?.expect("it is there");
//! assert_eq!(message.text(), Some("hello"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It is the broker that a server runs, with its shards and its memory bound; only the
//! links are rings in memory instead of sockets, so no port is opened unless
//! [`BrokerConfig::listen`] names one. A client of it is a [`Client`] like any other: the
//! line that connects is all that differs.
//!
//! | a broker | runs on | for |
//! |---|---|---|
//! | [`Broker::start`] | a thread for each shard | latency, and applications of many threads |
//! | [`Broker::without_threads`] | the threads of those who wait for it | applications with a loop of their own, tests |
//!
//! Without threads, whoever waits drives the broker as it drives its link, so one thread
//! is enough for both ends:
//!
//! ```
//! use courser::embedded::{Broker, BrokerConfig};
//!
//! let broker = Broker::without_threads(BrokerConfig::embedded())?;
//! let producer = broker.connect()?.producer("queue:greetings").create()?;
//! let receipt = producer.send("hello")?; // nobody else has turned a hand
//! assert_eq!(receipt.position.offset.0, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A broker whose invariant is broken ends the process, also this one.

pub use courser_core::limits;
pub use courser_transport::affinity::Cores;
pub use courser_transport::broker::{Setting, ShardSetting};
pub use courser_transport::idle::IdleStrategy;
pub use courser_transport::in_process::NoLink;
pub use courser_transport::ring::RingSize;
pub use courser_transport::stats::ShardStats;
pub use courser_transport::{BrokerConfig, StartError, Transport};

use std::net::SocketAddr;
use std::time::Duration;

use courser_transport::in_process::Connector;

use crate::client::{Client, ConnectOptions};
use crate::error::ConnectError;

/// A broker in this process. Dropped, it stops as [`Broker::stop`] does.
#[derive(Debug)]
pub struct Broker(courser_transport::Broker);

impl Broker {
    /// Starts a broker with a thread for each shard.
    ///
    /// # Errors
    ///
    /// If what is asked for is not to be had.
    pub fn start(config: BrokerConfig) -> Result<Self, StartError> {
        courser_transport::Broker::start(config).map(Self)
    }

    /// Makes a broker of one shard that is driven by whoever waits for it.
    ///
    /// # Errors
    ///
    /// If what is asked for is not to be had, more than one shard for example.
    pub fn without_threads(config: BrokerConfig) -> Result<Self, StartError> {
        courser_transport::Broker::without_threads(config).map(Self)
    }

    /// Connects a client to it, without a socket.
    ///
    /// # Errors
    ///
    /// If all links that it may have are taken.
    pub fn connect(&self) -> Result<Client, ConnectError> {
        ConnectOptions::default().connect_embedded(self)
    }

    /// Does on this thread whatever a broker without threads has to do now; whether there
    /// was anything, and nobody else did it. A broker with threads needs no turns.
    ///
    /// Calls of clients that wait do the same, so this is for who has a loop of its own.
    pub fn turn(&self) -> bool {
        self.0.turn()
    }

    /// How long until a broker without threads has to be turned though nothing happens;
    /// `None` if only something that happens gives it anything to do.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.0.time_left()
    }

    /// Where connections are accepted, if anywhere, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.setting().address
    }

    /// What it runs with.
    #[must_use]
    pub fn setting(&self) -> &Setting {
        self.0.setting()
    }

    /// The counters of each shard.
    pub fn stats(&self) -> impl Iterator<Item = &ShardStats> {
        self.0.stats()
    }

    /// Stops in order: everybody is told, what waits to be sent is sent, at most
    /// [`limits::DRAIN_TIMEOUT`] long. Clients then know that it has stopped.
    pub fn stop(self) {
        self.0.stop();
    }

    pub(crate) fn connector(&self) -> &Connector {
        self.0.connector()
    }
}
