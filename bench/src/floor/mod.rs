//! The floors: the least that any program could take for the same bytes on the
//! same two cores.
//!
//! | floor | what it does | what it bounds |
//! |---|---|---|
//! | [`round_trip`] | a frame there, a 64-byte reply back, one in flight | produce to ack |
//! | [`EchoServer::start_many`] | the same on many connections, by one event loop | messages per second of many |
//! | [`relay`] | a frame through one thread to a second socket | produce to consumer |
//! | [`pipeline`] | the same with many on their way, under a load that does not wait | response times |
//! | [`stream`] | frames in one direction as fast as they go | throughput |
//! | [`ring`] | a word through memory to the other core and back | hand-offs between shards |
//! | [`durable`] | a block to the device, one in flight | a durable send |
//! | [`gaps`] | nothing, watching the clock | everybody's tail |
//!
//! ```text
//!   run ---- slices ----> RoundTripFloor --+-- client ---- TCP ---- server --- spin | epoll
//!                         RelayFloor ------+   (calling thread)     (own thread    | uring
//!                         StreamFloor -----+                         at its gate)  | blocking
//!   independent: the same round trip, sharing no code, to disagree if it can
//! ```
//!
//! Every floor is started once and takes slices; between its slices it rests,
//! so that whatever is compared with it has the core for itself. [`run::floor`]
//! measures all of them in one run.
//!
//! Frames have the broker's size: 112 bytes of header and the body. A server
//! reads the length of every frame and nothing else. Loopback only.

pub mod durable;
pub mod frame;
pub mod gaps;
pub mod independent;
pub mod pipeline;
pub mod relay;
pub mod ring;
pub mod round_trip;
pub mod run;
pub mod stream;

mod blocking;
mod client;
mod echo;
mod epoll;
mod server;
mod socket;
mod spin;
mod uring;
mod uring_write;

pub use client::RoundTripClient;
pub use durable::{DurableFloor, DurableKind};
pub use frame::frame_bytes;
pub use pipeline::PipelineFloor;
pub use relay::RelayFloor;
pub use round_trip::{EchoKind, EchoServer, RoundTripFloor};
pub use run::{FloorOptions, floor};
pub use server::Served;
pub use stream::{Rate, StreamFloor, StreamKind};
