//! The laws of io_uring, each a field bug of somebody's, and a test of our own code for
//! each: the ring over io_uring, the connections and files on it, the worker and the door.
//! What they say of writes is asked of every ring.
//!
//! Below the ring is a simulated kernel (`ring/io_uring/simulated.rs`) that takes the
//! liberties of the law at hand on real sockets, drawn from a seed; every test shows
//! from its record that the liberty was taken, and then that nobody noticed.
//!
//! | law | here |
//! |---|---|
//! | 1 completions in any order, late by seconds | `law_01_..` |
//! | 2 sends, receives and writes of any length | `law_02_..`; files are read before there is a ring |
//! | 3 `EAGAIN`, `EINTR`, `ECANCELED`, `ENOBUFS`, `EBUSY` wherever they are legal | `law_03_..`; of a write every error is the last word |
//! | 4 a multishot ends at any time | `law_04_..`; of accepts there is none: the door accepts by plain calls |
//! | 5 no provided buffer left | `law_05_..` |
//! | 6 no room for a completion | `law_06_..` |
//! | 7 no room for a submission | `law_07_..` |
//! | 8 a cancellation races success | `law_08_..` |
//! | 9 the second notification of a send without a copy | not applicable: nothing is sent so, which `law_09_..` asserts |
//! | 10 a short write breaks its link to a flush | not applicable: a write is durable by itself, nothing is linked and nothing flushed, which `law_10_..` asserts |
//! | 11 a descriptor closed in flight, its number used again | `law_11_..` |
//! | 12 `io_uring_enter` itself is refused | `law_12_..` |
//! | 13 accepting is refused | `law_13_..` |
//! | 14 a registration is refused | `law_14_..`; of registered buffers there is none, buffers are provided |
//! | 15 the set-up is refused | `law_15_..` |
//!
//! `scripts/ring-canaries` plants a fault in the handling of each, and has the test that
//! is named beside it turn red (`planted.rs`).

#![allow(clippy::unwrap_used)]

mod entrance;
mod files;
mod queues;
mod set_up;
mod sockets;
#[path = "../../tests/support/mod.rs"]
pub(crate) mod support;
mod whole;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use courser_core::time::Monotonic;

use crate::connection::tests::{Mirror, Owner, forever};
use crate::ring::io_uring::IoUringRing;
use crate::ring::io_uring::simulated::{Behaviour, Record, Setup};
use crate::ring::simulated::Choices;
use crate::ring::{RingSize, Slot, Wait};

const SIZE: RingSize = RingSize {
    slots: 12,
    buffers: 4,
    buffer_size: 4096,
};

/// Everything that the kernel may answer an operation on a socket with, and a later one
/// not.
const FOR_THE_MOMENT: &[i32] = &[
    libc::EAGAIN,
    libc::EINTR,
    libc::ECANCELED,
    libc::ENOBUFS,
    libc::EBUSY,
    libc::ENOMEM,
];

/// What an enter is refused with and goes well later.
const ENTER_FOR_THE_MOMENT: &[i32] = &[libc::EBUSY, libc::EAGAIN, libc::ENOMEM, libc::EINTR];

/// Every liberty at once.
const EVERYTHING: Behaviour = Behaviour {
    late: 20,
    short: true,
    write_errors: &[],
    refusals: FOR_THE_MOMENT,
    ends_early: true,
    cancels_race: true,
    enter_refusals: ENTER_FOR_THE_MOMENT,
    file_refusals: &[libc::ENOMEM, libc::ENFILE],
};

/// What passes between two turns.
const STEP: Duration = Duration::from_millis(10);

fn ring(setup: Setup, behaviour: Behaviour) -> IoUringRing {
    let mut ring = IoUringRing::simulated(setup, SIZE).unwrap();
    ring.kernel().behave(behaviour);
    ring
}

/// Two ends: one for the ring, one for the test, which does not wait.
fn pair() -> (OwnedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours.into(), theirs)
}

/// How a connection ends when all was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// The peer closes.
    Theirs,
    /// We say goodbye.
    Ours,
    /// We break off.
    Abrupt,
}

/// The other end of a connection of an [`Exchange`].
struct Peer {
    stream: Option<UnixStream>,
    to_send: &'static [u8],
    sent: usize,
    heard: Vec<u8>,
    expected: &'static [u8],
    parting: Parting,
    left: bool,
}

impl Peer {
    fn speak(&mut self, choices: &mut Choices) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let rest = &self.to_send[self.sent..];
        if rest.is_empty() {
            return;
        }
        let piece = &rest[..rest.len().min(1 + choices.below(5_000))];
        match stream.write(piece) {
            Ok(count) => self.sent += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn listen(&mut self, choices: &mut Choices) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let mut bytes = vec![0; 1 + choices.below(20_000)];
        match stream.read(&mut bytes) {
            Ok(0) => self.stream = None,
            Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn has_said_all(&self) -> bool {
        self.sent == self.to_send.len()
    }

    fn has_heard_all(&self) -> bool {
        self.heard.len() == self.expected.len()
    }
}

/// Connections over a ring, and peers that exchange bytes with them in both directions
/// until all was said and every end was told.
struct Exchange {
    owner: Owner<IoUringRing>,
    peers: HashMap<Slot, Peer>,
    choices: Choices,
    now: Monotonic,
    seed: u64,
}

impl Exchange {
    fn new(setup: Setup, behaviour: Behaviour) -> Self {
        let mut owner = Owner::new(ring(setup, behaviour));
        owner.most = 60_000;
        Self {
            owner,
            peers: HashMap::new(),
            choices: Choices::new(setup.seed ^ 0x1a35),
            now: Monotonic(0),
            seed: setup.seed,
        }
    }

    /// Opens a connection over which so many bytes go there and so many come back. The
    /// kernel may refuse it a few times.
    fn open(&mut self, there: usize, back: usize, parting: Parting) -> Slot {
        let (to_send, expected) = (forever(there), forever(back));
        for _ in 0..100 {
            let (ours, theirs) = pair();
            if let Ok(slot) = self.owner.open(ours, expected) {
                let peer = Peer {
                    stream: Some(theirs),
                    to_send,
                    sent: 0,
                    heard: Vec::new(),
                    expected,
                    parting,
                    left: false,
                };
                self.peers.insert(slot, peer);
                return slot;
            }
        }
        panic!("seed {}: no connection is taken in", self.seed);
    }

    fn turn(&mut self) {
        self.now = self.now.after(STEP);
        let wait = if self.choices.once_in(5) {
            Wait::AtMost(Some(Duration::ZERO))
        } else {
            Wait::No
        };
        self.owner.turn(self.now, wait);
    }

    /// Peers speak and listen, and whoever has said and heard all parts.
    fn step(&mut self) {
        for (&slot, peer) in &mut self.peers {
            peer.speak(&mut self.choices);
            peer.listen(&mut self.choices);
            let ours_is_done = self.owner.mirrors.get(&slot).is_some_and(|mirror| {
                mirror.heard.len() == peer.to_send.len() && mirror.taken == peer.expected.len()
            });
            if peer.left || !ours_is_done || !peer.has_said_all() || !peer.has_heard_all() {
                continue;
            }
            peer.left = true;
            match peer.parting {
                Parting::Theirs => peer.stream = None,
                Parting::Ours => self.owner.connections.leave(self.now, slot),
                Parting::Abrupt => self.owner.connections.abandon(slot),
            }
        }
        self.turn();
        for (slot, mirror) in std::mem::take(&mut self.owner.ended) {
            self.part(slot, &mirror);
        }
    }

    fn part(&mut self, slot: Slot, mirror: &Mirror) {
        let story = format!("seed {}, {slot:?}", self.seed);
        let peer = self.peers.remove(&slot).unwrap();
        assert!(peer.left, "{story}: it ended before its time");
        assert!(mirror.heard == peer.to_send, "{story}: bytes heard differ");
        assert!(peer.heard == peer.expected, "{story}: bytes sent differ");
    }

    /// Goes on until every connection has ended; nothing is left behind.
    fn finish(mut self) -> (Record, u32) {
        for step in 0.. {
            if self.peers.is_empty() {
                break;
            }
            assert!(step < 30_000, "seed {}: no progress", self.seed);
            self.step();
        }
        self.owner
            .connections
            .ring_mut()
            .kernel()
            .behave(Behaviour::default());
        // Buffers given back are seen by the kernel at the next turn.
        self.turn();
        assert_eq!(self.owner.connections.occupied(), 0);
        let kernel = self.owner.connections.ring_mut().kernel();
        assert_eq!(kernel.begun(), 1, "only the doorbell is watched");
        assert_eq!(
            kernel.buffers_provided(),
            usize::from(SIZE.buffers),
            "seed {}: a buffer was lost",
            self.seed
        );
        (kernel.recorded(), self.owner.overflows)
    }
}

/// A whole exchange over four connections and each way to part.
fn exchange(setup: Setup, behaviour: Behaviour) -> (Record, u32) {
    let mut exchange = Exchange::new(setup, behaviour);
    exchange.open(20_000, 30_000, Parting::Theirs);
    exchange.open(5_000, 600_000, Parting::Ours);
    exchange.open(40_000, 1_000, Parting::Abrupt);
    exchange.open(0, 8_000, Parting::Abrupt);
    exchange.finish()
}

/// The same for a few seeds; the record of each.
fn exchanges(setup: Setup, behaviour: Behaviour) -> Vec<Record> {
    (0..6)
        .map(|seed| exchange(Setup { seed, ..setup }, behaviour).0)
        .collect()
}

/// What one of the records says at most.
fn most(records: &[Record], figure: impl Fn(&Record) -> u64) -> u64 {
    records.iter().map(figure).max().unwrap_or(0)
}
