//! The driver's logic against rings that answer anything legal, and against the two
//! real ones.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::*;
use crate::ring::epoll::EpollRing;
use crate::ring::io_uring::IoUringRing;
use crate::ring::outgoing::send_static;
use crate::ring::simulated::{Choices, SimulatedPeer, SimulatedRing, stream};
use crate::ring::{RingSize, Slot};

const SIZE: RingSize = RingSize {
    slots: 6,
    buffers: 4,
    buffer_size: 64,
};

/// Bytes that live for ever, as a shard's pieces live long enough.
pub(crate) fn forever(length: usize) -> &'static [u8] {
    (0..=250).cycle().take(length).collect::<Vec<u8>>().leak()
}

/// The owner's side of one connection: what it heard, and what it has to send.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) heard: Vec<u8>,
    pub(crate) to_send: &'static [u8],
    pub(crate) taken: usize,
}

/// Plays the worker for every connection: listens, and sends what there is.
#[derive(Debug)]
pub(crate) struct Owner<R: Ring> {
    pub(crate) connections: Connections<R>,
    pub(crate) mirrors: HashMap<Slot, Mirror>,
    pub(crate) ended: Vec<(Slot, Mirror)>,
    /// Connections that were given away.
    pub(crate) parted: Vec<(R::Socket, Mirror)>,
    /// Bytes that one send is given at most.
    pub(crate) most: usize,
    /// Turns that left completions in the kernel.
    pub(crate) overflows: u32,
}

impl<R: Ring> Owner<R> {
    pub(crate) fn new(ring: R) -> Self {
        Self {
            connections: Connections::new(ring),
            mirrors: HashMap::new(),
            ended: Vec::new(),
            parted: Vec::new(),
            most: usize::MAX,
            overflows: 0,
        }
    }

    pub(crate) fn open(
        &mut self,
        socket: R::Socket,
        to_send: &'static [u8],
    ) -> Result<Slot, R::Socket> {
        let slot = self.connections.open(socket)?;
        let mirror = Mirror {
            heard: Vec::new(),
            to_send,
            taken: 0,
        };
        assert!(
            self.mirrors.insert(slot, mirror).is_none(),
            "a tenancy is given out once"
        );
        self.connections.want(slot);
        Ok(slot)
    }

    pub(crate) fn turn(&mut self, now: Monotonic, wait: Wait) {
        while let Some(slot) = self.connections.next_ready() {
            let mirror = &self.mirrors[&slot];
            let rest = &mirror.to_send[mirror.taken..];
            let rest = &rest[..rest.len().min(self.most)];
            if rest.is_empty() {
                self.connections.nothing(slot);
            } else {
                let (head, tail) = rest.split_at(rest.len() / 2);
                let pieces = [head, tail];
                let pieces = if head.is_empty() {
                    &pieces[1..]
                } else {
                    &pieces
                };
                send_static(self.connections.ring_mut(), slot, pieces);
                let more = mirror.taken + rest.len() < mirror.to_send.len();
                let bytes = u32::try_from(rest.len()).unwrap();
                self.connections.begun(slot, bytes, more);
            }
        }
        self.overflows += self.connections.turn(wait).unwrap().overflows;
        while let Some(event) = self.connections.next() {
            match event {
                Event::Received { slot, buffer } => {
                    let mirror = self.mirrors.get_mut(&slot).expect("only of open ones");
                    mirror.heard.extend(self.connections.bytes(&buffer));
                    self.connections.give_back(buffer);
                }
                Event::Sent { slot, bytes } => {
                    let mirror = self.mirrors.get_mut(&slot).expect("only of open ones");
                    mirror.taken += bytes as usize;
                    assert!(mirror.taken <= mirror.to_send.len());
                }
                Event::Finished { slot } => self.connections.leave(now, slot),
                Event::Ended { slot } => {
                    let mirror = self.mirrors.remove(&slot).expect("an end is told once");
                    self.ended.push((slot, mirror));
                }
                Event::Written { .. } => panic!("nothing was written"),
                Event::Parted { slot } => {
                    let mirror = self.mirrors.remove(&slot).expect("only of open ones");
                    let socket = self.connections.take(slot).expect("it has parted");
                    self.parted.push((socket, mirror));
                }
            }
        }
        self.connections.expire(now);
    }
}

/// What a simulated peer does when it has sent all it had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// Reads everything, then ends.
    Ends,
    /// Ends when it has sent everything, and reads on.
    Finishes,
    /// Breaks off somewhere on the way.
    Resets,
    /// Waits for our side to leave.
    Stays,
}

struct Peer {
    peer: SimulatedPeer,
    slot: Slot,
    to_send: &'static [u8],
    sent: usize,
    heard: Vec<u8>,
    expected: &'static [u8],
    parting: Parting,
    left: bool,
}

#[test]
fn whatever_a_ring_answers_bytes_keep_their_order_and_slots_come_back() {
    let pool: Vec<&'static [u8]> = (0..8).map(|step| forever(step * 211)).collect();
    for seed in 0..400 {
        one_run(seed, &pool);
    }
}

fn one_run(seed: u64, pool: &[&'static [u8]]) {
    let mut choices = Choices::new(seed ^ 0x5eed);
    let mut owner = Owner::new(SimulatedRing::new(SIZE, seed).unwrap());
    owner.most = 1 + choices.below(300);
    let mut peers: Vec<Peer> = Vec::new();
    let mut opened = 0;
    let mut now = Monotonic(0);
    for step in 0.. {
        assert!(step < 20_000, "seed {seed}: no progress");
        now = now.after(Duration::from_micros(10));
        if opened < 24 && choices.once_in(10) {
            let (socket, peer) = stream(16 + choices.below(200));
            let expected = pool[choices.below(pool.len())];
            if let Ok(slot) = owner.open(socket, expected) {
                opened += 1;
                peers.push(Peer {
                    peer,
                    slot,
                    to_send: pool[choices.below(pool.len())],
                    sent: 0,
                    heard: Vec::new(),
                    expected,
                    parting: [
                        Parting::Ends,
                        Parting::Finishes,
                        Parting::Resets,
                        Parting::Stays,
                    ][choices.below(4)],
                    left: false,
                });
            }
        }
        for peer in &mut peers {
            peer.sent += peer.peer.send(&peer.to_send[peer.sent..]);
            let limit = choices.below(120);
            peer.heard.extend(peer.peer.receive(limit));
            let done = peer.sent == peer.to_send.len() && peer.heard.len() == peer.expected.len();
            match peer.parting {
                Parting::Ends if done => peer.peer.end(),
                Parting::Finishes if peer.sent == peer.to_send.len() => peer.peer.end(),
                Parting::Resets if done || choices.once_in(40) => peer.peer.reset(),
                Parting::Stays if !peer.left && choices.once_in(30) => {
                    owner.connections.leave(now, peer.slot);
                    peer.left = true;
                }
                // Our side has said goodbye: time to go, too.
                Parting::Stays if peer.peer.is_at_end() => peer.peer.end(),
                _ => {}
            }
        }
        owner.turn(now, Wait::No);
        for (slot, mirror) in owner.ended.drain(..) {
            let position = peers.iter().position(|peer| peer.slot == slot).unwrap();
            let mut peer = peers.swap_remove(position);
            peer.heard.extend(peer.peer.receive(usize::MAX));
            let story = format!("seed {seed}, {slot:?}");
            assert!(
                peer.to_send[..peer.sent].starts_with(&mirror.heard),
                "{story}: bytes that were not sent"
            );
            assert!(
                peer.expected.starts_with(&peer.heard),
                "{story}: bytes that were not given"
            );
            match peer.parting {
                Parting::Ends | Parting::Finishes => {
                    assert_eq!(mirror.heard.len(), peer.to_send.len(), "{story}");
                    assert_eq!(mirror.taken, peer.expected.len(), "{story}");
                }
                Parting::Stays => {
                    assert_eq!(
                        peer.heard.len(),
                        peer.expected.len(),
                        "{story}: left before all was sent"
                    );
                }
                Parting::Resets => {}
            }
        }
        if opened == 24 && peers.is_empty() {
            break;
        }
    }
    assert_eq!(owner.connections.occupied(), 0, "seed {seed}");
    assert_eq!(owner.connections.ring().in_flight(), 0, "seed {seed}");
    assert_eq!(
        owner.connections.ring().buffers_free(),
        usize::from(SIZE.buffers),
        "seed {seed}: a buffer was lost"
    );
}

/// Has a connection with nothing to send go from one ring to another while its peer
/// talks. `say` takes what the peer takes of its words, and says how much that was.
pub(crate) fn gives_away<R: Ring>(
    first: &mut Owner<R>,
    second: &mut Owner<R>,
    socket: R::Socket,
    turns_before: u64,
    mut say: impl FnMut(&[u8]) -> usize,
) {
    const TURNS_MAX: u64 = 100_000;
    let words = forever(3_000);
    let mut said = 0;
    let mut talk = |until: usize| {
        if said < until {
            said += say(&words[said..until]);
        }
        said
    };
    let Ok(slot) = first.open(socket, &[]) else {
        return;
    };
    for _ in 0..turns_before {
        talk(1_000);
        first.turn(Monotonic(0), Wait::No);
    }
    first.connections.part(slot);
    let mut turns = 0;
    while first.parted.is_empty() {
        talk(2_000);
        first.turn(Monotonic(0), Wait::No);
        turns += 1;
        assert!(turns < TURNS_MAX, "it does not part");
    }
    assert_eq!(first.connections.occupied(), 0);
    let (mut socket, before) = first.parted.pop().unwrap();
    let slot = loop {
        // The kernel may refuse for the moment.
        match second.open(socket, b"here") {
            Ok(slot) => break slot,
            Err(back) => socket = back,
        }
    };
    let all = |owner: &Owner<R>| [&before.heard[..], &owner.mirrors[&slot].heard].concat();
    while second.mirrors[&slot].taken < 4 || all(second).len() < words.len() {
        talk(words.len());
        second.turn(Monotonic(0), Wait::No);
        turns += 1;
        assert!(turns < TURNS_MAX, "{} bytes were heard", all(second).len());
    }
    assert!(all(second) == words, "no byte is lost, none comes twice");
    assert!(first.ended.is_empty(), "it has no end where it parted");
}

#[test]
fn a_connection_that_is_given_away_loses_no_byte_and_tells_no_end() {
    for seed in 0..300_u32 {
        let room = 16 + seed as usize % 200;
        let seed = u64::from(seed);
        let mut first = Owner::new(SimulatedRing::new(SIZE, seed).unwrap());
        let mut second = Owner::new(SimulatedRing::new(SIZE, seed ^ 0xff).unwrap());
        let (socket, mut peer) = stream(room);
        gives_away(&mut first, &mut second, socket, seed % 9, |words| {
            peer.send(words)
        });
        assert_eq!(
            first.connections.ring().buffers_free(),
            usize::from(SIZE.buffers),
            "seed {seed}: a buffer was lost"
        );
        assert_eq!(first.connections.ring().in_flight(), 0, "seed {seed}");
    }
}

#[test]
fn a_connection_that_is_to_part_can_be_left_or_abandoned_all_the_same() {
    for seed in 0..200 {
        let mut owner = Owner::new(SimulatedRing::new(SIZE, seed).unwrap());
        let (socket, mut peer) = stream(100);
        let Ok(slot) = owner.open(socket, &[]) else {
            continue;
        };
        owner.turn(Monotonic(0), Wait::No);
        owner.connections.part(slot);
        let leaves = seed % 2 == 0;
        if leaves {
            owner.mirrors.get_mut(&slot).unwrap().to_send = b"farewell";
            owner.connections.leave(Monotonic(0), slot);
        } else {
            owner.connections.abandon(slot);
        }
        let mut heard = Vec::new();
        let mut turns = 0;
        while owner.ended.is_empty() {
            owner.turn(Monotonic(0), Wait::No);
            heard.extend(peer.receive(usize::MAX));
            if peer.is_at_end() {
                peer.end();
            }
            turns += 1;
            assert!(turns < 1_000, "seed {seed}: it does not end");
        }
        assert!(!leaves || heard == b"farewell", "seed {seed}: {heard:?}");
        assert!(owner.parted.is_empty());
        assert_eq!(owner.connections.ring().in_flight(), 0, "seed {seed}");
    }
}

/// Over real sockets, which the second ring has to take as the first one left them.
fn gives_away_for_real<R: Ring<Socket = OwnedFd>>(make: impl Fn() -> R) {
    for turns_before in 0..5 {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut second = Owner::new(make());
        gives_away(
            &mut Owner::new(make()),
            &mut second,
            ours.into(),
            turns_before,
            |words| theirs.write(words).unwrap(),
        );
        let mut heard = [0; 4];
        theirs.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"here");
    }
}

#[test]
fn a_connection_is_given_away_over_epoll() {
    gives_away_for_real(|| EpollRing::new(SIZE).unwrap());
}

#[test]
fn a_connection_is_given_away_over_io_uring() {
    if let Err(refused) = IoUringRing::new(SIZE) {
        eprintln!("SKIPPED: {refused}");
        return;
    }
    gives_away_for_real(|| IoUringRing::new(SIZE).unwrap());
}

#[test]
fn an_abandoned_connection_ends_with_everything_in_flight() {
    for seed in 0..200 {
        let mut owner = Owner::new(SimulatedRing::new(SIZE, seed).unwrap());
        let (socket, mut peer) = stream(32);
        let Ok(slot) = owner.open(socket, forever(500)) else {
            continue;
        };
        peer.send(&[7; 20]);
        for _ in 0..seed % 7 {
            owner.turn(Monotonic(0), Wait::No);
        }
        owner.connections.abandon(slot);
        let mut turns = 0;
        while owner.ended.is_empty() {
            owner.turn(Monotonic(0), Wait::No);
            turns += 1;
            assert!(turns < 1_000, "seed {seed}: it does not end");
        }
        assert_eq!(owner.connections.occupied(), 0);
        assert_eq!(
            owner.connections.ring().buffers_free(),
            usize::from(SIZE.buffers)
        );
        assert!(peer.is_at_end() || !peer.receive(usize::MAX).is_empty());
    }
}

#[test]
fn a_goodbye_that_the_peer_ignores_ends_with_its_time() {
    let mut owner = Owner::new(SimulatedRing::new(SIZE, 3).unwrap());
    let (socket, _peer) = stream(1_000);
    let slot = owner.open(socket, forever(100)).unwrap();
    let left_at = Monotonic(5);
    owner.connections.leave(left_at, slot);
    assert_eq!(
        owner.connections.next_expiry(),
        Some(left_at.after(GOODBYE_TIME))
    );
    for _ in 0..1_000 {
        owner.turn(left_at, Wait::No);
    }
    assert!(owner.ended.is_empty(), "the peer has not closed");
    for _ in 0..1_000 {
        owner.turn(left_at.after(GOODBYE_TIME), Wait::No);
    }
    assert_eq!(owner.ended.len(), 1);
    assert_eq!(owner.ended[0].1.taken, 100);
    assert_eq!(owner.connections.next_expiry(), None);
}

/// A peer that closed its direction and read on was cut off.
#[test]
fn a_peer_that_has_finished_hears_everything_in_its_own_time() {
    let to_send = forever(5_000);
    for seed in 0..20 {
        let mut owner = Owner::new(SimulatedRing::new(SIZE, seed).unwrap());
        let (socket, mut peer) = stream(100);
        if owner.open(socket, to_send).is_err() {
            continue;
        }
        assert_eq!(peer.send(b"last words"), 10);
        peer.end();
        let mut now = Monotonic(0);
        let mut heard = Vec::new();
        while owner.ended.is_empty() {
            now = now.after(Duration::from_millis(100));
            owner.turn(now, Wait::No);
            heard.extend(peer.receive(50));
            assert!(
                now < Monotonic(0).after(Duration::from_secs(600)),
                "seed {seed}"
            );
        }
        heard.extend(peer.receive(usize::MAX));
        assert!(now > Monotonic(0).after(GOODBYE_TIME * 5), "it was slow");
        assert_eq!(owner.ended[0].1.heard, b"last words");
        assert!(heard == to_send, "seed {seed}: {} bytes heard", heard.len());
    }
}

#[test]
fn a_stale_slot_does_nothing_to_its_next_tenant() {
    let mut owner = Owner::new(SimulatedRing::new(SIZE, 2).unwrap());
    let (socket, peer) = stream(100);
    let first = owner.open(socket, &[]).unwrap();
    drop(peer);
    while owner.ended.is_empty() {
        owner.turn(Monotonic(0), Wait::No);
    }
    let (socket, _peer) = stream(100);
    let second = owner.open(socket, forever(10)).unwrap();
    assert_eq!(second.index, first.index, "the slot is used again");
    assert_ne!(second, first);
    owner.connections.abandon(first);
    owner.connections.leave(Monotonic(0), first);
    owner.connections.want(first);
    for _ in 0..200 {
        owner.turn(Monotonic(0), Wait::No);
    }
    assert_eq!(owner.ended.len(), 1, "the second one lives");
    assert_eq!(owner.mirrors[&second].taken, 10);
}

#[test]
fn a_connection_beyond_the_slots_is_handed_back() {
    let mut owner = Owner::new(SimulatedRing::new(SIZE, 1).unwrap());
    let mut peers = Vec::new();
    let mut refused = 0;
    while refused == 0 || owner.connections.occupied() < SIZE.slots as usize {
        let (socket, peer) = stream(10);
        match owner.open(socket, &[]) {
            Ok(_) => peers.push(peer),
            Err(_) if owner.connections.occupied() == SIZE.slots as usize => refused += 1,
            Err(_) => {}
        }
        assert!(peers.len() <= SIZE.slots as usize);
    }
    assert_eq!(peers.len(), SIZE.slots as usize);
}

// --- over real sockets ------------------------------------------------------------------

fn tcp_pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    theirs
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    (ours.into(), theirs)
}

fn turn_until<R: Ring>(owner: &mut Owner<R>, done: impl Fn(&Owner<R>) -> bool) {
    let started = Instant::now();
    while !done(owner) {
        owner.turn(Monotonic(0), Wait::AtMost(Some(Duration::from_millis(50))));
        assert!(started.elapsed() < Duration::from_secs(60), "no progress");
    }
}

fn a_refusal_reaches_a_peer_that_goes_on_sending<R: Ring<Socket = OwnedFd>>(ring: R) {
    let mut owner = Owner::new(ring);
    let (ours, mut theirs) = tcp_pair();
    let slot = owner.open(ours, b"go away").unwrap();
    theirs.write_all(&[1; 60]).unwrap();
    turn_until(&mut owner, |owner| owner.mirrors[&slot].heard.len() == 60);
    owner.connections.leave(Monotonic(0), slot);
    // More than anybody reads: closed with it unread, the socket would answer with a
    // reset and the refusal could be lost.
    theirs.write_all(&[2; 10_000]).unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).unwrap();
        said
    });
    turn_until(&mut owner, |owner| !owner.ended.is_empty());
    assert_eq!(reader.join().unwrap(), b"go away");
    assert_eq!(
        owner.ended[0].1.heard.len(),
        60,
        "dropped after the goodbye"
    );
}

fn a_large_answer_crosses_a_slow_socket<R: Ring<Socket = OwnedFd>>(ring: R) {
    let mut owner = Owner::new(ring);
    let (ours, mut theirs) = tcp_pair();
    let answer = forever(12 << 20);
    owner.most = 5 << 20;
    owner.open(ours, answer).unwrap();
    let reader = std::thread::spawn(move || {
        let mut heard = vec![0; answer.len()];
        theirs.read_exact(&mut heard).unwrap();
        heard
    });
    turn_until(&mut owner, |owner| !owner.ended.is_empty());
    assert!(reader.join().unwrap() == answer, "bytes differ");
    assert_eq!(owner.ended[0].1.taken, answer.len());
    assert!(
        owner.connections.tally().short_sends > 0,
        "the test is too small to fill a socket"
    );
}

fn many_small_buffers_worth_arrive_whole<R: Ring<Socket = OwnedFd>>(ring: R) {
    let mut owner = Owner::new(ring);
    let (ours, mut theirs) = tcp_pair();
    let slot = owner.open(ours, &[]).unwrap();
    let sent = forever(2 << 20);
    let writer = std::thread::spawn(move || {
        theirs.write_all(sent).unwrap();
        theirs
    });
    turn_until(&mut owner, |owner| {
        owner.mirrors[&slot].heard.len() == sent.len()
    });
    assert!(owner.mirrors[&slot].heard == sent, "bytes differ");
    drop(writer.join().unwrap());
    turn_until(&mut owner, |owner| !owner.ended.is_empty());
}

macro_rules! over_both {
    ($($test:ident)*) => {
        mod over_epoll {
            $(#[test] fn $test() { super::$test(super::EpollRing::new(super::SIZE).unwrap()); })*
        }
        mod over_io_uring {
            $(#[test] fn $test() {
                match super::IoUringRing::new(super::SIZE) {
                    Ok(ring) => super::$test(ring),
                    Err(refused) => eprintln!("SKIPPED: {refused}"),
                }
            })*
        }
    };
}

over_both! {
    a_refusal_reaches_a_peer_that_goes_on_sending
    a_large_answer_crosses_a_slow_socket
    many_small_buffers_worth_arrive_whole
}
