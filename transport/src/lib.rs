//! The ends of Courser that touch the kernel: threads, sockets, clocks, processors.
//!
//! ```text
//!             door (one sleeping thread)                shard (one pinned thread each)
//!  accept -> stranger -> hello -> handoff + doorbell -> worker: connections <-> core::shard
//!                                                                |
//!                                                       ring: io_uring | epoll | simulated
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`broker`] | the whole, started and stopped in this process |
//! | [`door`] | accepting, hellos, handing over; memory ahead of need |
//! | `worker` | a shard's thread: the one loop |
//! | `connection` | the driver's own logic, once for every ring |
//! | [`ring`] | the seam between driver and kernel |
//! | `handoff`, [`doorbell`] | from the door to a shard, waking it only if it sleeps |
//! | [`in_process`], `guests` | links without a socket: the application's end, the shard's |
//! | `engine` | a broker without a thread |
//! | [`disk`] | the data directory, and what of it must not wait on a shard |
//! | `mapping` | memory straight from the kernel |
//! | [`affinity`], [`idle`], [`clock`] | where a shard runs, when it sleeps, what time it is |
//! | [`stats`] | a shard's counters as others read them |
//! | [`sys`] | the few system calls that no library offers |

// The tests' own client is written as everybody else uses this crate.
#[cfg(test)]
extern crate self as courser_transport;

pub mod affinity;
pub mod broker;
pub mod clock;
mod connection;
pub mod disk;
pub mod door;
pub mod doorbell;
mod engine;
mod guests;
mod handoff;
pub mod idle;
pub mod in_process;
#[cfg(test)]
mod laws;
mod mapping;
mod planted;
pub mod ring;
pub mod stats;
mod store;
pub mod sys;
mod worker;

pub use broker::{Broker, BrokerConfig, StartError, Transport};
pub use store::StoreError;
