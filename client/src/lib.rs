//! The client library of Courser, a message broker.
//!
//! ```no_run
//! use std::time::Duration;
//! use courser::Client;
//!
//! let client = Client::connect("127.0.0.1:7420")?;
//! let producer = client.producer("queue:greetings").create()?;
//! let receipt = producer.send("hello")?;
//! println!("{} is stored at {}", receipt.id, receipt.position);
//!
//! let mut consumer = client.consumer("queue:greetings").create()?;
//! if let Some(message) = consumer.receive(Duration::from_secs(1))? {
//!     consumer.acknowledge(message.position())?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The cast: a [`Client`] is a connection, or one for each shard of the broker that it
//! has to do with; a [`Producer`] sends to one destination, a [`Consumer`] receives from
//! one; all of a client share its connections. What the protocol demands is decided by a machine without input
//! and output in `courser_core`; this crate gives it a socket, a clock and the
//! threads of the application.
//!
//! **Whoever waits, drives.** A blocking call does the connection's input and
//! output on the calling thread. Threads of the library exist only while
//! listeners or futures are outstanding, and a second more.
//!
//! | way to send | who waits | told by |
//! |---|---|---|
//! | [`Producer::send`] | the caller | the return value |
//! | [`Producer::send_batch`] | the caller, once | a result for each message |
//! | [`Producer::send_async`], [`Producer::send_with`] | nobody | a listener, on the session's thread |
//! | [`Producer::send_future`] | nobody | a future, for any runtime |
//! | [`Producer::try_send`], [`Producer::try_enqueue`] | nobody | [`Producer::poll`] |
//!
//! All ways of one producer share one order: outcomes come in the order of the
//! sends, exactly one for each. Threads may share clients and producers, and the
//! sends of each thread keep their order.
//!
//! | way to receive | who waits |
//! |---|---|
//! | [`Consumer::receive`] | the caller |
//! | [`Consumer::try_receive`] | nobody: what is there, read in place |
//! | [`Consumer::receive_no_wait`] | the caller, for one round trip: what the broker has now, or none |
//! | [`Consumer::receive_async`], [`Consumer::poll_receive`] | a task of any runtime |
//! | [`Consumer::listen`] | nobody: a listener, on the session's thread |
//!
//! [`Client::browse`] shows what a queue keeps, and takes nothing of it.
//!
//! A connection that is lost is made again, by whoever waits or polls, for as long as
//! [`ConnectOptions::reconnect_for`] says; what has no outcome is sent again in
//! order and stored once. When no connection comes, every outstanding send fails in
//! its order, as not stored if it had not begun to leave, else as unknown.

mod address;
mod admin;
mod browser;
mod client;
mod clock;
mod consumer;
mod delivery;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
pub mod facade;
mod future;
mod instance;
mod lane;
mod ledger;
mod link;
mod message;
mod pool;
mod producer;
mod resolve;
mod sending;
mod session;
mod unsettled;

pub use address::{DEFAULT_PORT, Endpoint, Endpoints, IllegalEndpoint, IntoEndpoints};
pub use admin::{Admin, NewDestination};
pub use browser::Browser;
pub use client::{Client, ConnectOptions, IntoDestination, Stats};
pub use consumer::{Consumer, ConsumerBuilder};
pub use delivery::Listening;
pub use error::{
    AcknowledgeError, Cause, ConnectError, NotAccepted, ReceiveError, RequestError, SendError,
    TrySendError,
};
pub use future::{ReceiveFuture, SendFuture};
pub use message::{Message, Payload, Received};
pub use producer::{Completion, Producer, ProducerBuilder, Receipt};
pub use session::CompletionListener;

pub use courser_core::catalog::{Dispatch, Policies, PolicyChange, Retention};
pub use courser_core::client::{
    ConsumerInfo, DestinationInfo, LinkInfo, PartInfo, ProducerInfo, SubscriptionInfo,
};
pub use courser_core::client::{
    Counters, DestinationStats, Durability, LinkEnd, Location, Received as Borrowed, Route,
};
pub use courser_core::counters::Counter;
pub use courser_core::error::Refusal;
pub use courser_core::frame::property::{Properties, PropertyError};
pub use courser_core::id::{
    Installation, LinkNumber, MessageId, Offset, PartitionIndex, Position, ProducerId, Sequence,
    ShardIndex,
};
pub use courser_core::name::{Destination, DestinationKind};
pub use courser_core::time::Wall;
