//! Floors, load generators and reports.
//!
//! A latency on a shared machine says nothing by itself. What this library
//! claims are ratios against a *floor*: the least that any program could take
//! for the same bytes over the same sockets on the same cores, measured in the
//! same run.
//!
//! ```text
//!   client core                              broker core
//!   +-----------------------+   TCP, 1:1     +--------------------------+
//!   | RoundTripClient       | -- frame ----> | one echo of many kinds   |
//!   | plain socket, spins   | <-- reply ---- | spin, epoll, io_uring, ..|
//!   +-----------------------+                +--------------------------+
//!        slices alternate A B B A between the things compared
//! ```
//!
//! | noun | where |
//! |---|---|
//! | the floors: round trip, relay, stream, ring, gaps | [`floor`] |
//! | the broker's workloads beside them | [`workload`] |
//! | every message sent, completed, received, in order | [`ledger`] |
//! | percentiles that refuse to be printed when they mean nothing | [`histogram`] |
//! | every slice's histogram, for others to add up | [`histogram_log`] |
//! | loads that do not wait, and whether they were carried | [`load`] |
//! | ratios of paired slices, and the noise below which they say nothing | [`compare`] |
//! | whether a ratio is on the right side of its goal | [`goal`] |
//! | counts that are the same on every run, and the gate on them | [`exact`] |
//! | two builds of the whole, in alternating slices, and the gate on them | [`revisions`] |
//! | what a gate says | [`gate`] |
//! | processor time: of a message, and of none | [`cpu_use`] |
//! | what lies beneath a directory | [`storage`] |
//! | starts on what was kept | [`restart`] |
//! | cores: which there are, which we may use, where a thread runs | [`pin`] |
//! | the machine as a report has to describe it | [`machine`] |
//! | results, tables, JSON | [`report`], [`table`], [`units`] |
//!
//! Invariants: two things are compared only within one run, on the same two
//! cores, in alternating slices; a server that is not being measured does not
//! spin; a quantile with fewer than a hundred samples beyond it is not a number.

pub mod compare;
pub mod cpu_use;
pub mod error;
pub mod exact;
pub mod floor;
pub mod gate;
pub mod goal;
pub mod histogram;
pub mod histogram_log;
pub mod ledger;
pub mod load;
pub mod machine;
pub mod page_buffer;
pub mod pin;
pub mod progress;
pub mod report;
pub mod restart;
pub mod revisions;
pub mod storage;
pub mod table;
pub mod units;
pub mod workload;

mod cpu_time;
mod descriptors;
mod series;
mod sys;
mod watch;

pub use error::BenchError;
pub use report::Report;
pub use workload::{Options, Workload, run};
