//! The floor of a round trip: a frame there, a reply back, one in flight.
//!
//! [`EchoServer`] is one of several kinds of echo on the broker's core,
//! [`RoundTripClient`] the one client for all of them, and [`RoundTripFloor`]
//! the two together, ready to take its slice between slices of something else.
//! The floor for a payload is the kind that is fastest for it on this machine;
//! which one that is differs from machine to machine, so it is found out.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::RoundTripClient;
use super::server::{Served, Server};
use super::{blocking, epoll, spin, uring};
use crate::error::BenchError;
use crate::histogram::{Histogram, Percentiles};
use crate::pin::Cores;

/// Unrecorded round trips at the start of a slice: the server has just woken.
const WARM_UP_ROUND_TRIPS: u64 = 64;

/// How an echo waits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EchoKind {
    /// Plain non-blocking socket, receive again and again.
    Spin,
    /// `epoll_wait` without timeout, again and again.
    EpollBusy,
    /// io_uring, entered on every turn without waiting.
    UringBusy,
    /// Plain socket, asleep in receive.
    Blocking,
    /// io_uring, asleep in enter.
    UringBlocking,
    /// `epoll_wait`, asleep in it: the floor of processor time.
    EpollBlocking,
}

impl EchoKind {
    /// The kinds among which a floor of latency is looked for.
    pub const ALL: [Self; 5] = [
        Self::Spin,
        Self::EpollBusy,
        Self::UringBusy,
        Self::Blocking,
        Self::UringBlocking,
    ];

    /// The kinds that own their core and never sleep.
    pub const BUSY: [Self; 3] = [Self::Spin, Self::EpollBusy, Self::UringBusy];

    /// The name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::EpollBusy => "epoll-busy",
            Self::UringBusy => "io_uring-busy",
            Self::Blocking => "blocking",
            Self::UringBlocking => "io_uring-blocking",
            Self::EpollBlocking => "epoll-blocking",
        }
    }
}

impl fmt::Display for EchoKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A framed echo on a pinned thread of its own, for one connection: it reads
/// frames and writes one 64-byte reply for each. Dropping it ends the thread.
#[derive(Debug)]
pub struct EchoServer {
    kind: EchoKind,
    server: Server,
}

impl EchoServer {
    /// Starts an echo on `cpu`; it spins or sleeps, as its kind does, once a
    /// client has connected.
    ///
    /// # Errors
    /// If it cannot be pinned or set up; [`BenchError::is_unsupported`] tells
    /// whether the machine lacks io_uring.
    pub fn start(kind: EchoKind, cpu: usize) -> Result<Self, BenchError> {
        let serve = match kind {
            EchoKind::Spin => spin::serve,
            EchoKind::EpollBusy => epoll::serve_busy,
            EchoKind::EpollBlocking => epoll::serve_blocking,
            EchoKind::UringBusy => uring::serve_busy,
            EchoKind::Blocking => blocking::serve,
            EchoKind::UringBlocking => uring::serve_blocking,
        };
        let server = Server::start(&format!("echo {kind}"), cpu, serve)?;
        Ok(Self { kind, server })
    }

    /// Starts an echo of the kind [`EchoKind::EpollBusy`] for so many connections; it
    /// spins once all of them are made.
    ///
    /// # Errors
    /// If it cannot be pinned or set up.
    pub fn start_many(cpu: usize, connections: usize) -> Result<Self, BenchError> {
        let kind = EchoKind::EpollBusy;
        let name = format!("echo {kind} many");
        let server = Server::start(&name, cpu, move |site| epoll::serve_many(site, connections))?;
        Ok(Self { kind, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How it waits.
    #[must_use]
    pub fn kind(&self) -> EchoKind {
        self.kind
    }

    /// Its thread's id, by which the kernel accounts for its time.
    #[must_use]
    pub fn thread(&self) -> Option<u32> {
        self.server.thread_id()
    }

    /// Takes it off its core until [`Self::resume`].
    ///
    /// # Errors
    /// If it does not come to rest.
    pub fn pause(&self) -> Result<(), BenchError> {
        self.server.pause()
    }

    /// Puts it back on its core.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Ends it and says what it has done.
    ///
    /// # Errors
    /// What it failed with, if it did.
    pub fn stop(self) -> Result<Served, BenchError> {
        self.server.stop()
    }
}

/// An echo with its client, resting between slices.
#[derive(Debug)]
pub struct RoundTripFloor {
    client: RoundTripClient,
    server: EchoServer,
}

impl RoundTripFloor {
    /// Starts an echo on `broker_cpu` and connects to it; it rests until its
    /// first slice.
    ///
    /// # Errors
    /// As [`EchoServer::start`], or if the connection fails.
    pub fn start(
        kind: EchoKind,
        broker_cpu: usize,
        frame_bytes: usize,
    ) -> Result<Self, BenchError> {
        let server = EchoServer::start(kind, broker_cpu)?;
        let client = RoundTripClient::connect(server.address(), frame_bytes)?;
        let mut floor = Self { client, server };
        // One round trip, so that a server that cannot serve is found out here.
        floor.client.warm_up(1)?;
        floor.server.pause()?;
        Ok(floor)
    }

    /// Starts the kind of echo that is fastest for this frame on these cores:
    /// every kind that could be takes four short slices in alternation, and the
    /// lowest p50 wins. The calling thread is pinned to `cores.client`. Kinds
    /// that the machine does not offer are left out.
    ///
    /// # Errors
    /// If no kind can run, or one fails while running.
    pub fn calibrate(
        cores: Cores,
        frame_bytes: usize,
        slice: Duration,
    ) -> Result<(Self, Vec<Calibrated>), BenchError> {
        crate::pin::pin_current_thread(cores.client)?;
        let mut floors = Vec::new();
        for kind in EchoKind::BUSY {
            match Self::start(kind, cores.broker, frame_bytes) {
                Ok(floor) => floors.push((floor, Histogram::new())),
                Err(error) if error.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        for round in 0..4 {
            let mut order: Vec<usize> = (0..floors.len()).collect();
            // A B C C B A: a drift of the machine meets all alike.
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let (floor, histogram) = &mut floors[index];
                floor.slice(slice, histogram)?;
            }
        }
        let calibrated = floors
            .iter()
            .map(|(floor, histogram)| Calibrated {
                kind: floor.kind(),
                percentiles: histogram.percentiles(),
            })
            .collect();
        floors
            .into_iter()
            // A kind with too few samples for a p50 is not the fastest.
            .min_by_key(|(_, histogram)| histogram.quantile_ns(0.5).unwrap_or(u64::MAX))
            .map(|(floor, _)| (floor, calibrated))
            .ok_or(BenchError::Option {
                option: "floor",
                problem: "no kind of echo can run here".to_owned(),
            })
    }

    /// Wakes the echo, makes some round trips that do not count, records round
    /// trips for `duration`, and puts the echo to rest again. Returns how many
    /// were recorded.
    ///
    /// # Errors
    /// As [`RoundTripClient::slice`].
    pub fn slice(
        &mut self,
        duration: Duration,
        histogram: &mut Histogram,
    ) -> Result<u64, BenchError> {
        self.server.resume();
        self.client.warm_up(WARM_UP_ROUND_TRIPS)?;
        let round_trips = self.client.slice(duration, histogram)?;
        self.server.pause()?;
        Ok(round_trips)
    }

    /// How the echo waits.
    #[must_use]
    pub fn kind(&self) -> EchoKind {
        self.server.kind()
    }

    /// Ends the echo and says what it has done.
    ///
    /// # Errors
    /// What it failed with, if it did.
    pub fn stop(self) -> Result<Served, BenchError> {
        self.server.stop()
    }
}

/// What a kind of echo showed in a calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibrated {
    /// The kind.
    pub kind: EchoKind,
    /// Its round trips.
    pub percentiles: Percentiles,
}
