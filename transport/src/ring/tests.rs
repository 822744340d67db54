//! One suite for every ring: what the laws of [`super::Ring`] promise, over real
//! sockets of this machine.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::epoll::EpollRing;
use super::io_uring::IoUringRing;
use super::{Completion, PIECES_MAX, Received, Ring, RingSize, Slot, Wait};
use crate::sys::Errno;

/// Longer than anything here takes, shorter than anybody's patience.
const DEADLINE: Duration = Duration::from_secs(60);

const SMALL: RingSize = RingSize {
    slots: 400,
    buffers: 4,
    buffer_size: 4096,
};

fn epoll(size: RingSize) -> Option<EpollRing> {
    Some(EpollRing::new(size).unwrap())
}

/// `None`, and said aloud, where this machine refuses io_uring.
fn io_uring(size: RingSize) -> Option<IoUringRing> {
    match IoUringRing::new(size) {
        Ok(ring) => Some(ring),
        Err(refused) => {
            eprintln!("SKIPPED: {refused}");
            None
        }
    }
}

/// A connected pair over TCP: the descriptor for the ring, the stream for the test.
fn tcp_pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    theirs.set_nodelay(true).unwrap();
    theirs.set_read_timeout(Some(DEADLINE)).unwrap();
    theirs.set_write_timeout(Some(DEADLINE)).unwrap();
    (ours.into(), theirs)
}

fn slot(index: u32) -> Slot {
    Slot {
        index,
        generation: 7,
    }
}

/// A stream in which every position can be told from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Turns the ring and shows every completion to `seen`, until it is satisfied.
fn until<R: Ring<Socket = OwnedFd>>(
    ring: &mut R,
    mut seen: impl FnMut(&mut R, Completion) -> bool,
) {
    let started = Instant::now();
    loop {
        let calls = ring
            .turn(Wait::AtMost(Some(Duration::from_millis(50))))
            .unwrap();
        assert_eq!(calls.overflows, 0, "every completion finds room");
        let mut satisfied = false;
        while let Some(completion) = ring.next() {
            satisfied |= seen(ring, completion);
        }
        if satisfied {
            return;
        }
        assert!(
            started.elapsed() < DEADLINE,
            "no completion satisfied the test in time"
        );
    }
}

/// Sends everything the way a driver does: after a short send the rest, after a
/// refusal a wait for room.
fn send_all<R: Ring<Socket = OwnedFd>>(ring: &mut R, slot: Slot, bytes: &[u8]) {
    let mut position = 0;
    let begin = |ring: &mut R, position: usize| {
        let rest = &bytes[position..];
        let (head, tail) = rest.split_at(rest.len() / 3);
        let pieces = [head, tail];
        let pieces = if head.is_empty() {
            &pieces[1..]
        } else {
            &pieces
        };
        // SAFETY: `bytes` outlives this function, which ends after the last completion.
        unsafe { ring.send(slot, pieces) };
    };
    begin(ring, position);
    until(ring, |ring, completion| {
        match completion {
            Completion::Sent { result: Ok(n), .. } => {
                position += n as usize;
                if position < bytes.len() {
                    begin(ring, position);
                }
            }
            Completion::Sent {
                result: Err(errno), ..
            } => {
                assert_eq!(errno, Errno(libc::EAGAIN));
                ring.arm_writable(slot);
            }
            Completion::Writable { .. } => begin(ring, position),
            other => panic!("unexpected {other:?}"),
        }
        position == bytes.len()
    });
}

/// Cancels, waits for the last completion of `in_flight` operations and the
/// cancellation itself, and detaches.
fn close<R: Ring<Socket = OwnedFd>>(ring: &mut R, slot: Slot, in_flight: usize) -> OwnedFd {
    ring.cancel(slot);
    let mut left = in_flight + 1;
    until(ring, |ring, completion| {
        match completion {
            Completion::Received { received, more, .. } => {
                if let Received::Bytes(buffer) = received {
                    ring.give_back(buffer);
                }
                left -= usize::from(!more);
            }
            Completion::Woken => {}
            _ => left -= 1,
        }
        left == 0
    });
    ring.detach(slot)
}

fn received_bytes_come_in_order_however_they_were_split<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    let sent = pattern(100_000);
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || {
            let mut rest = &sent[..];
            for size in [1, 2, 3, 7, 8, 111, 112, 113, 4095, 4096, 4097]
                .iter()
                .cycle()
            {
                let (piece, tail) = rest.split_at(rest.len().min(*size));
                theirs.write_all(piece).unwrap();
                rest = tail;
                if rest.is_empty() {
                    return theirs;
                }
            }
            unreachable!("a cycle does not end")
        })
    };
    let mut got = Vec::new();
    until(&mut ring, |ring, completion| {
        let Completion::Received {
            slot: from,
            received,
            more,
        } = completion
        else {
            panic!("unexpected {completion:?}");
        };
        assert_eq!(from, slot(0));
        match received {
            Received::Bytes(buffer) => {
                assert!(buffer.length() > 0);
                got.extend_from_slice(ring.bytes(&buffer));
                ring.give_back(buffer);
            }
            // A fast writer can use up the buffers before they are back.
            Received::Failed(errno) => assert_eq!(errno, Errno(libc::ENOBUFS)),
            Received::End => panic!("the peer goes on"),
        }
        if !more {
            ring.arm_receive(slot(0));
        }
        got.len() >= sent.len()
    });
    assert!(got == sent, "bytes differ");
    drop(writer.join().unwrap());
}

fn a_short_send_goes_on_where_it_stopped<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(3), ours).unwrap();
    // More than the buffers of both sockets hold, so that sends must be refused.
    let bytes = pattern(24 << 20);
    let length = bytes.len();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; length];
        theirs.read_exact(&mut got).unwrap();
        got
    });
    send_all(&mut ring, slot(3), &bytes);
    assert!(reader.join().unwrap() == bytes, "bytes differ");
}

fn a_full_socket_refuses_and_reports_room_later<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    let bytes = pattern(1 << 20);
    let mut taken = 0;
    let begin = |ring: &mut R| {
        // SAFETY: `bytes` lives until the end of the test, after the last completion.
        unsafe { ring.send(slot(0), &[&bytes]) };
    };
    begin(&mut ring);
    until(&mut ring, |ring, completion| match completion {
        Completion::Sent { result: Ok(n), .. } => {
            assert!(n > 0);
            taken += n as usize;
            begin(ring);
            false
        }
        Completion::Sent { result, .. } => {
            assert_eq!(result, Err(Errno(libc::EAGAIN)));
            true
        }
        other => panic!("unexpected {other:?}"),
    });
    ring.arm_writable(slot(0));
    ring.turn(Wait::No).unwrap();
    assert!(ring.next().is_none(), "there is no room yet");
    theirs.read_exact(&mut vec![0; taken]).unwrap();
    until(
        &mut ring,
        |_, completion| matches!(completion, Completion::Writable { slot: at } if at == slot(0)),
    );
}

fn the_most_pieces_leave_in_one_send_and_in_order<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    let bytes = pattern(PIECES_MAX * 10);
    let pieces: Vec<&[u8]> = bytes.chunks(10).collect();
    assert_eq!(pieces.len(), PIECES_MAX);
    // SAFETY: `bytes` lives until the end of the test, after the completion.
    unsafe { ring.send(slot(0), &pieces) };
    until(&mut ring, |_, completion| {
        assert!(
            matches!(completion, Completion::Sent { result: Ok(n), .. } if n as usize == bytes.len())
        );
        true
    });
    let mut got = vec![0; bytes.len()];
    theirs.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes);
}

fn a_reset_peer_ends_the_receive<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    // Bytes that the peer never reads turn its close into a reset.
    // SAFETY: the bytes are static.
    unsafe { ring.send(slot(0), &[b"unread"]) };
    until(&mut ring, |_, completion| {
        matches!(completion, Completion::Sent { result: Ok(6), .. })
    });
    ring.arm_receive(slot(0));
    drop(theirs);
    until(&mut ring, |_, completion| {
        let Completion::Received { received, more, .. } = completion else {
            panic!("unexpected {completion:?}");
        };
        assert!(!more);
        assert!(
            matches!(received, Received::Failed(Errno(libc::ECONNRESET))),
            "{received:?}"
        );
        true
    });
    // SAFETY: the bytes are static.
    unsafe { ring.send(slot(0), &[b"too late"]) };
    until(&mut ring, |_, completion| {
        assert!(matches!(
            completion,
            Completion::Sent {
                result: Err(Errno(libc::EPIPE | libc::ECONNRESET)),
                ..
            }
        ));
        true
    });
}

fn a_half_closed_peer_can_still_be_sent_to<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    theirs.write_all(b"last words").unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    until(&mut ring, |ring, completion| match completion {
        Completion::Received {
            received: Received::Bytes(buffer),
            ..
        } => {
            got.extend_from_slice(ring.bytes(&buffer));
            ring.give_back(buffer);
            false
        }
        Completion::Received {
            received: Received::End,
            more,
            ..
        } => {
            assert!(!more);
            true
        }
        other => panic!("unexpected {other:?}"),
    });
    assert_eq!(got, b"last words");
    send_all(&mut ring, slot(0), b"an answer");
    let mut answer = [0; 9];
    theirs.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"an answer");
}

fn a_receive_without_buffers_is_refused_and_recovers<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    let sent = pattern(10 * 4096);
    theirs.write_all(&sent).unwrap();
    // All four buffers are kept on loan, so the fifth arrival finds none.
    let mut loans = Vec::new();
    until(&mut ring, |_, completion| match completion {
        Completion::Received {
            received: Received::Bytes(buffer),
            ..
        } => {
            loans.push(buffer);
            false
        }
        Completion::Received {
            received: Received::Failed(errno),
            more,
            ..
        } => {
            assert_eq!(errno, Errno(libc::ENOBUFS));
            assert!(!more);
            true
        }
        other => panic!("unexpected {other:?}"),
    });
    assert_eq!(loans.len(), 4);
    let mut got = Vec::new();
    for buffer in loans {
        got.extend_from_slice(ring.bytes(&buffer));
        ring.give_back(buffer);
    }
    ring.arm_receive(slot(0));
    until(&mut ring, |ring, completion| {
        let Completion::Received { received, more, .. } = completion else {
            panic!("unexpected {completion:?}");
        };
        if let Received::Bytes(buffer) = received {
            got.extend_from_slice(ring.bytes(&buffer));
            ring.give_back(buffer);
        }
        if !more {
            ring.arm_receive(slot(0));
        }
        got.len() >= sent.len()
    });
    assert!(got == sent, "bytes differ");
}

fn a_slot_is_reused_by_the_next_tenant_only<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let mut tenant = slot(5);
    for round in 0..20_u8 {
        let (ours, mut theirs) = tcp_pair();
        ring.attach(tenant, ours).unwrap();
        ring.arm_receive(tenant);
        theirs.write_all(&[round]).unwrap();
        until(&mut ring, |ring, completion| {
            let Completion::Received {
                slot,
                received: Received::Bytes(buffer),
                ..
            } = completion
            else {
                panic!("unexpected {completion:?}");
            };
            assert_eq!(slot, tenant);
            assert_eq!(ring.bytes(&buffer), [round]);
            ring.give_back(buffer);
            true
        });
        drop(close(&mut ring, tenant, 1));
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the peer sees the end");
        tenant = tenant.next_tenant();
    }
}

fn a_cancelled_slot_reports_every_operation_and_can_go<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    // A full socket, so that the wait for room stays in flight.
    let bytes = pattern(1 << 20);
    let begin = |ring: &mut R| {
        // SAFETY: `bytes` lives until the end of the test, after the last completion.
        unsafe { ring.send(slot(0), &[&bytes]) };
    };
    begin(&mut ring);
    until(&mut ring, |ring, completion| match completion {
        Completion::Sent { result: Ok(_), .. } => {
            begin(ring);
            false
        }
        Completion::Sent { .. } => true,
        other => panic!("unexpected {other:?}"),
    });
    ring.arm_writable(slot(0));
    ring.turn(Wait::No).unwrap();
    let socket = close(&mut ring, slot(0), 2);
    // The socket itself is unharmed and could go to another ring.
    let mut stream = TcpStream::from(socket);
    theirs.write_all(b"still here").unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut got = [0; 10];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
}

fn a_shut_down_socket_shows_its_peer_the_end<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    ring.turn(Wait::No).unwrap();
    ring.shutdown(slot(0), Shutdown::Both);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    drop(close(&mut ring, slot(0), 1));
}

fn a_bell_wakes_a_sleeper<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    for _ in 0..3 {
        let bell = ring.doorbell().clone();
        bell.announce_sleep();
        let waker = std::thread::spawn(move || bell.ring());
        let started = Instant::now();
        let mut woken = false;
        while !woken {
            ring.turn(Wait::AtMost(Some(DEADLINE))).unwrap();
            while let Some(completion) = ring.next() {
                woken |= matches!(completion, Completion::Woken);
            }
        }
        assert!(started.elapsed() < DEADLINE / 2, "slept through the bell");
        ring.doorbell().announce_awake();
        waker.join().unwrap();
    }
    ring.turn(Wait::No).unwrap();
    assert!(ring.next().is_none(), "a bell rings once");
}

fn a_sleep_ends_with_its_time<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let time = Duration::from_millis(20);
    let started = Instant::now();
    ring.turn(Wait::AtMost(Some(time))).unwrap();
    assert!(started.elapsed() >= time);
    assert!(started.elapsed() < DEADLINE);
    assert!(ring.next().is_none());
}

fn bytes_for_a_sleeper_end_its_sleep<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    ring.turn(Wait::No).unwrap();
    assert!(ring.next().is_none());
    let writer = std::thread::spawn(move || {
        theirs.write_all(b"wake").unwrap();
        theirs
    });
    let started = Instant::now();
    ring.turn(Wait::AtMost(Some(DEADLINE))).unwrap();
    assert!(started.elapsed() < DEADLINE / 2);
    let Some(Completion::Received {
        received: Received::Bytes(buffer),
        ..
    }) = ring.next()
    else {
        panic!("woken by the bytes");
    };
    ring.give_back(buffer);
    drop(writer.join().unwrap());
}

fn a_burst_beyond_the_queue_loses_nothing<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    const SOCKETS: u32 = 300;
    let mut peers: Vec<TcpStream> = (0..SOCKETS)
        .map(|index| {
            let (ours, theirs) = tcp_pair();
            ring.attach(slot(index), ours).unwrap();
            theirs
        })
        .collect();
    // Six hundred operations are begun within one turn.
    for index in 0..SOCKETS {
        ring.arm_receive(slot(index));
        // SAFETY: the bytes are static.
        unsafe { ring.send(slot(index), &[b"he", b"llo"]) };
    }
    let mut sent = 0;
    until(&mut ring, |_, completion| {
        assert!(matches!(completion, Completion::Sent { result: Ok(5), .. }));
        sent += 1;
        sent == SOCKETS
    });
    for peer in &mut peers {
        let mut got = [0; 5];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        peer.write_all(b"yes").unwrap();
    }
    let mut heard = vec![0; SOCKETS as usize];
    until(&mut ring, |ring, completion| {
        let Completion::Received {
            slot,
            received,
            more,
        } = completion
        else {
            panic!("unexpected {completion:?}");
        };
        if let Received::Bytes(buffer) = received {
            heard[slot.position()] += buffer.length();
            ring.give_back(buffer);
        }
        if !more {
            ring.arm_receive(slot);
        }
        heard.iter().all(|&length| length == 3)
    });
}

fn a_ring_dropped_in_flight_lets_go_of_everything<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    let (idle, mut silent) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.attach(slot(1), idle).unwrap();
    ring.arm_receive(slot(0));
    ring.arm_receive(slot(1));
    theirs.write_all(b"never taken").unwrap();
    ring.turn(Wait::No).unwrap();
    // Begun, and not even handed to the kernel.
    ring.arm_writable(slot(1));
    // SAFETY: the bytes are static.
    unsafe { ring.send(slot(1), &[b"goodbye"]) };
    drop(ring);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty() || rest == b"goodbye");
    // Unread bytes may turn the end into a reset; either way it is over.
    let end = theirs.read(&mut [0]);
    assert!(
        matches!(end, Ok(0))
            || end.is_err_and(|error| { error.kind() == std::io::ErrorKind::ConnectionReset })
    );
}

/// Turns without a sleep, as a busy shard's. Every ring serves a lone socket differently
/// after enough of them.
fn spin<R: Ring>(ring: &mut R, turns: usize) {
    for _ in 0..turns {
        ring.turn(Wait::No).unwrap();
        if let Some(completion) = ring.next() {
            panic!("unexpected {completion:?}");
        }
    }
}

const LONG: usize = 5_000;

/// Hears so many bytes of one slot, without a sleep.
fn hear<R: Ring>(ring: &mut R, slot: Slot, length: usize) -> Vec<u8> {
    let started = Instant::now();
    let mut heard = Vec::new();
    while heard.len() < length {
        assert!(started.elapsed() < DEADLINE, "{} bytes heard", heard.len());
        ring.turn(Wait::No).unwrap();
        while let Some(completion) = ring.next() {
            let Completion::Received {
                slot: from,
                received,
                more,
            } = completion
            else {
                panic!("unexpected {completion:?}");
            };
            assert_eq!(from, slot);
            match received {
                Received::Bytes(buffer) => {
                    heard.extend_from_slice(ring.bytes(&buffer));
                    ring.give_back(buffer);
                }
                Received::Failed(errno) => assert_eq!(errno, Errno(libc::ENOBUFS)),
                Received::End => panic!("the peer goes on"),
            }
            if !more {
                ring.arm_receive(slot);
            }
        }
    }
    heard
}

fn a_spun_over_socket_keeps_its_order<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    let sent = pattern(300_000);
    // The change falls among the bytes, wherever the machine happens to be.
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || {
            for piece in sent.chunks(777) {
                theirs.write_all(piece).unwrap();
            }
            theirs
        })
    };
    assert!(hear(&mut ring, slot(0), sent.len()) == sent, "bytes differ");
    let mut theirs = writer.join().unwrap();
    spin(&mut ring, LONG);
    send_all(&mut ring, slot(0), b"an answer");
    let mut answer = [0; 9];
    theirs.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"an answer");
    spin(&mut ring, LONG);
    theirs.write_all(&sent[..1000]).unwrap();
    assert!(hear(&mut ring, slot(0), 1000) == sent[..1000]);
}

fn a_spun_over_socket_is_heard_by_a_sleeper_and_beside_others<R: Ring<Socket = OwnedFd>>(
    mut ring: R,
) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    for round in 0..3_u8 {
        spin(&mut ring, LONG);
        ring.turn(Wait::AtMost(Some(Duration::ZERO))).unwrap();
        assert!(ring.next().is_none());
        theirs.write_all(&[round; 100]).unwrap();
        let mut heard = 0;
        until(&mut ring, |ring, completion| {
            let Completion::Received {
                received: Received::Bytes(buffer),
                more,
                ..
            } = completion
            else {
                panic!("unexpected {completion:?}");
            };
            assert!(ring.bytes(&buffer).iter().all(|&byte| byte == round));
            heard += buffer.length();
            ring.give_back(buffer);
            if !more {
                ring.arm_receive(slot(0));
            }
            heard == 100
        });
    }
    spin(&mut ring, LONG);
    let mut others: Vec<TcpStream> = (1..6)
        .map(|index| {
            let (ours, theirs) = tcp_pair();
            ring.attach(slot(index), ours).unwrap();
            ring.arm_receive(slot(index));
            theirs
        })
        .collect();
    theirs.write_all(b"first").unwrap();
    assert_eq!(hear(&mut ring, slot(0), 5), b"first");
    for (index, other) in (1..6).zip(&mut others) {
        other.write_all(b"other").unwrap();
        assert_eq!(hear(&mut ring, slot(index), 5), b"other");
    }
    for index in 1..6 {
        drop(close(&mut ring, slot(index), 1));
    }
    spin(&mut ring, LONG);
    theirs.write_all(b"alone").unwrap();
    assert_eq!(hear(&mut ring, slot(0), 5), b"alone");
}

fn a_spun_over_socket_closes_at_any_turn<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let mut tenant = slot(0);
    for turns in (0..40).map(|turn| 2_030 + turn).chain([LONG]) {
        let (ours, mut theirs) = tcp_pair();
        // From a sleep on, as if the ring were new.
        ring.turn(Wait::AtMost(Some(Duration::ZERO))).unwrap();
        ring.attach(tenant, ours).unwrap();
        ring.arm_receive(tenant);
        spin(&mut ring, turns);
        if turns % 2 == 0 {
            theirs.write_all(b"in between").unwrap();
        }
        drop(close(&mut ring, tenant, 1));
        let end = theirs.read(&mut [0]);
        assert!(
            matches!(end, Ok(0))
                || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
        tenant = tenant.next_tenant();
    }
}

fn a_spun_over_peer_ends_once<R: Ring<Socket = OwnedFd>>(mut ring: R) {
    let (ours, mut theirs) = tcp_pair();
    ring.attach(slot(0), ours).unwrap();
    ring.arm_receive(slot(0));
    spin(&mut ring, LONG);
    theirs.write_all(b"bye").unwrap();
    drop(theirs);
    assert_eq!(hear(&mut ring, slot(0), 3), b"bye");
    until(&mut ring, |_, completion| {
        assert!(matches!(
            completion,
            Completion::Received {
                received: Received::End,
                more: false,
                ..
            }
        ));
        true
    });
    spin(&mut ring, LONG);
    drop(close(&mut ring, slot(0), 0));
}

macro_rules! suite {
    ($module:ident, $make:ident: $($test:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    if let Some(ring) = super::$make(super::SMALL) {
                        super::$test(ring);
                    }
                }
            )*
        }
    };
    ($($test:ident)*) => {
        suite!(over_epoll, epoll: $($test)*);
        suite!(over_io_uring, io_uring: $($test)*);
    };
}

suite! {
    received_bytes_come_in_order_however_they_were_split
    a_short_send_goes_on_where_it_stopped
    a_full_socket_refuses_and_reports_room_later
    the_most_pieces_leave_in_one_send_and_in_order
    a_reset_peer_ends_the_receive
    a_half_closed_peer_can_still_be_sent_to
    a_receive_without_buffers_is_refused_and_recovers
    a_slot_is_reused_by_the_next_tenant_only
    a_cancelled_slot_reports_every_operation_and_can_go
    a_shut_down_socket_shows_its_peer_the_end
    a_bell_wakes_a_sleeper
    a_sleep_ends_with_its_time
    bytes_for_a_sleeper_end_its_sleep
    a_burst_beyond_the_queue_loses_nothing
    a_ring_dropped_in_flight_lets_go_of_everything
    a_spun_over_socket_keeps_its_order
    a_spun_over_socket_is_heard_by_a_sleeper_and_beside_others
    a_spun_over_socket_closes_at_any_turn
    a_spun_over_peer_ends_once
}

#[test]
fn a_ring_says_what_it_runs_on() {
    assert!(epoll(SMALL).unwrap().description().starts_with("epoll"));
    if let Some(ring) = io_uring(SMALL) {
        let description = ring.description();
        assert!(description.starts_with("io_uring on Linux "));
        assert!(description.contains(" of 3: single issuer, deferred task work"));
    }
}

// After the macro that makes a suite of tests.
mod files;
