//! Peers who break every rule there is, over real sockets, on every transport that
//! this machine has.
//!
//! Each test attacks one way or several. Beside it a witness uses the same broker as it
//! is meant, and is to notice nothing: see [`siege`]. What is expected of the attacker's
//! own link is what `docs/wire.md` says in its rules 26 to 31 and its table of times.

#![allow(clippy::unwrap_used)]

#[path = "hostile/peer.rs"]
mod peer;
#[path = "hostile/siege.rs"]
mod siege;
mod support;
#[path = "../../core/tests/vectors/mod.rs"]
mod vectors;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use courser_core::error::Refusal;
use courser_core::frame::control::{
    Acknowledge, Allow, AskStats, Batch, Close, Control, Hello, Lookup, OpenConsumer, OpenProducer,
    OpenSession, WantCredit,
};
use courser_core::frame::decode::{self, Frame, Step};
use courser_core::frame::{Kind, flags};
use courser_core::limits;

use peer::{End, Peer, Producer, control, hello, hello_bytes, mend, message, ping};
use siege::{Siege, besiege, resident};
use support::eventually;

/// For what the broker does at once, and does late where others have the processors.
const SOON: Duration = Duration::from_secs(60);
/// By how much a time limit may be passed on a machine that others use.
const SLACK: Duration = Duration::from_secs(30);

/// Whoever measures the memory of the process wants it for himself.
static PROCESS: RwLock<()> = RwLock::new(());

/// What is said before anything can be attacked behind it.
fn opening() -> Vec<u8> {
    [hello_bytes(), control(1, &OpenSession::default(), &[])].concat()
}

fn assert_told(address: SocketAddr, bytes: &[u8], expected: Refusal) {
    let mut peer = Peer::stranger(address);
    peer.write(bytes);
    assert_eq!(peer.end(SOON), End::Farewell(expected));
}

#[test]
fn what_is_no_hello_is_turned_away_with_the_reason() {
    let _shared = PROCESS.read();
    let greet = |fields: Hello| control(0, &fields, &[b"peer"]);
    let wrong_magic = greet(Hello {
        magic: *b"COURSES\n",
        ..hello()
    });
    let too_new = greet(Hello {
        version_min: 2,
        version_max: 9,
        ..hello()
    });
    let too_old = greet(Hello {
        version_min: 0,
        version_max: 0,
        ..hello()
    });
    let mut too_long = hello_bytes();
    too_long[..4].copy_from_slice(&(limits::HELLO_SIZE_MAX + 1).to_le_bytes());
    let mut endless = hello_bytes();
    endless[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut broken = hello_bytes();
    broken[20] ^= 1;
    let mut unknown = hello_bytes();
    unknown[4] = 0x3f;
    // Its length is 44, so its last four bytes are padding.
    let mut dirty = hello_bytes();
    *dirty.last_mut().unwrap() = 1;
    let cases: [(Vec<u8>, Refusal); 10] = [
        (wrong_magic, Refusal::Malformed),
        (too_new, Refusal::VersionUnsupported),
        (too_old, Refusal::VersionUnsupported),
        (too_long, Refusal::FrameTooLarge),
        (endless, Refusal::FrameTooLarge),
        (broken, Refusal::ChecksumMismatch),
        (unknown, Refusal::Malformed),
        (dirty, Refusal::Malformed),
        (ping(1), Refusal::Unexpected),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Refusal::Malformed),
    ];
    besiege(|siege| {
        let address = siege.broker.address();
        for (bytes, expected) in &cases {
            assert_told(address, bytes, *expected);
        }
        // More garbage than anybody reads: an end, with or without a word.
        let mut peer = Peer::stranger(address);
        peer.write(&vec![0xff; 300_000]);
        peer.end(SOON);
        0
    });
}

#[test]
fn frames_that_claim_more_than_their_limit_or_have_no_place_end_the_link() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let address = siege.broker.address();
        let over = |kind: Kind, length: u32| {
            let mut bytes = opening();
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&[kind as u8, 1, 0, 0]);
            bytes
        };
        for kind in Kind::ALL {
            let limit = match kind {
                Kind::Message => limits::FRAME_SIZE_MAX,
                Kind::Hello => limits::HELLO_SIZE_MAX,
                _ => limits::CONTROL_SIZE_MAX,
            };
            for length in [limit + 1, u32::MAX] {
                assert_told(address, &over(*kind, length), Refusal::FrameTooLarge);
            }
            assert_told(address, &over(*kind, 7), Refusal::Malformed);
        }
        // Whole frames of the broker's kinds, and a second hello.
        for vector in vectors::all() {
            if (0x40..0x80).contains(&vector.bytes[4]) || vector.name == "hello" {
                let bytes = [opening(), vector.bytes].concat();
                assert_told(address, &bytes, Refusal::Unexpected);
            }
        }
        0
    });
}

/// What becomes of a link that says `bytes` behind its opening, and ends there.
fn fate(address: SocketAddr, bytes: &[u8]) -> End {
    let behind = [bytes, &ping(5)].concat();
    let mut peer = Peer::stranger(address);
    peer.write(&[&opening(), &behind[..]].concat());
    if matches!(decode::decode(&behind), Ok(Step::Incomplete(_))) {
        peer.finish();
    }
    peer.end(SOON)
}

#[test]
fn every_golden_frame_with_one_bit_turned_ends_the_link_and_nothing_else() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let address = siege.broker.address();
        for vector in vectors::all() {
            for bit in 0..vector.bytes.len() * 8 {
                let mut bytes = vector.bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let place = format!("{} with bit {bit} turned", vector.name);
                match (fate(address, &bytes), decode::decode(&bytes)) {
                    (End::Farewell(refusal), Err(error)) => {
                        assert_eq!(refusal, error.refusal(), "{place}");
                    }
                    // Whole by chance of the version, which these two do not look at, or
                    // a message whose broker's half no checksum covers.
                    (
                        End::Farewell(Refusal::Unexpected | Refusal::NotOpen),
                        Ok(Step::Frame(..)),
                    ) => {}
                    // Longer than it was: the ping behind it belongs to it, or it never ends.
                    // Of a message that claims to be large the header alone is judged.
                    (
                        End::Closed
                        | End::Farewell(
                            Refusal::ChecksumMismatch | Refusal::Malformed | Refusal::NotOpen,
                        ),
                        Ok(Step::Incomplete(_)),
                    ) => {}
                    (end, decoded) => panic!("{place}: {end:?}, {decoded:?}"),
                }
            }
        }
        0
    });
}

#[test]
fn every_golden_frame_cut_off_anywhere_ends_the_link_and_nothing_else() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let address = siege.broker.address();
        for vector in vectors::all() {
            for length in 1..vector.bytes.len() {
                // The connection ends in the middle of the frame.
                let mut peer = Peer::stranger(address);
                peer.write(&[&opening(), &vector.bytes[..length]].concat());
                peer.finish();
                let end = peer.end(SOON);
                assert!(
                    matches!(end, End::Closed),
                    "{} up to {length}: {end:?}",
                    vector.name
                );
                // Something else follows where the rest should be.
                let filler = ping(3).repeat(vector.bytes.len() / 24 + 1);
                let mut peer = Peer::stranger(address);
                peer.write(&[&opening(), &vector.bytes[..length], &filler].concat());
                let end = peer.end(SOON);
                assert!(
                    matches!(
                        end,
                        End::Farewell(
                            Refusal::ChecksumMismatch
                                | Refusal::Malformed
                                | Refusal::NotOpen
                                | Refusal::FrameTooLarge
                                | Refusal::VersionUnsupported
                        )
                    ),
                    "{} up to {length}, then pings: {end:?}",
                    vector.name
                );
            }
        }
        0
    });
}

/// A link with everything open, to be told nonsense whose checksum fits.
struct Inhabited {
    peer: Peer,
    producer: Producer,
    consumer: u32,
}

impl Inhabited {
    fn new(address: SocketAddr) -> Self {
        let mut peer = Peer::inside(address);
        let producer = peer.producer("topic:/hostile/live");
        let consumer = peer.consumer("topic:/hostile/live", 4, 4_000);
        Self {
            peer,
            producer,
            consumer,
        }
    }

    /// One frame of every kind that a client may send here, all of them in order.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let session = self.peer.session;
        let (producer, consumer) = (self.producer.handle, self.consumer);
        let run = [3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat();
        let mut ours = self.producer;
        vec![
            control(2, &OpenSession::default(), &[]),
            control(
                3,
                &Lookup {
                    session: session.into(),
                    ..Lookup::default()
                },
                &[b"/hostile/live"],
            ),
            control(
                4,
                &OpenProducer {
                    session: session.into(),
                    destination: 1,
                    destination_length: 13.into(),
                    partitions: 1.into(),
                    name_length: 2.into(),
                    options: 1.into(),
                    retain: 65_536.into(),
                    ..OpenProducer::default()
                },
                &[b"/hostile/flip", b"me"],
            ),
            control(
                5,
                &OpenConsumer {
                    session: session.into(),
                    destination: 1,
                    start: 2,
                    destination_length: 13.into(),
                    offset: 40.into(),
                    subscription_length: 4.into(),
                    name_length: 2.into(),
                    messages: 16.into(),
                    bytes: 4_096.into(),
                    ..OpenConsumer::default()
                },
                &[b"/hostile/live", b"flip", b"me"],
            ),
            control(
                6,
                &Close {
                    handle: 4_096.into(),
                    ..Close::default()
                },
                &[],
            ),
            control(producer, &WantCredit { bytes: 120.into() }, &[]),
            control(
                consumer,
                &Allow {
                    messages: 512.into(),
                    bytes: 65_536.into(),
                    handed: 0.into(),
                },
                &[],
            ),
            control(
                consumer,
                &Acknowledge {
                    runs: 1.into(),
                    confirm: 9.into(),
                    ..Acknowledge::default()
                },
                &[&run],
            ),
            control(
                consumer,
                &Acknowledge {
                    runs: 1.into(),
                    options: 1.into(),
                    ..Acknowledge::default()
                },
                &[&run],
            ),
            control(
                producer,
                &Batch {
                    messages: 1.into(),
                    bytes: 120.into(),
                },
                &[],
            ),
            control(7, &AskStats::default(), &[]),
            message(&mut ours, b"hello", |_| {}),
        ]
    }
}

#[test]
fn nonsense_with_a_fitting_checksum_is_refused_or_ends_the_link_and_nothing_else() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let address = siege.broker.address();
        let kinds = Inhabited::new(address).frames().len();
        let mut link = Inhabited::new(address);
        for kind in 0..kinds {
            let bits = link.frames()[kind].len() * 8;
            // The length is left alone: with another one no checksum fits.
            for bit in 32..bits {
                let mut bytes = link.frames().swap_remove(kind);
                bytes[bit / 8] ^= 1 << (bit % 8);
                mend(&mut bytes);
                link.peer.write(&bytes);
                link.peer.write(&ping(6));
                // It goes on or it ends with a reason; it does not fall silent.
                let mut ended = None;
                while ended.is_none() {
                    let Some(frame) = link.peer.frame(SOON) else {
                        panic!("closed without a word, frame {kind} with bit {bit} turned");
                    };
                    ended = match decode::decode(&frame) {
                        Ok(Step::Frame(Frame::Control { control, .. }, _)) => match control {
                            Control::Pong(fields, _) if fields.token.get() == 6 => Some(false),
                            Control::Farewell(..) => Some(true),
                            _ => None,
                        },
                        _ => None,
                    };
                }
                // A message that was taken counts; a fresh link is simplest.
                if ended == Some(true) || frame_changes_the_link(&bytes) {
                    link = Inhabited::new(address);
                }
            }
        }
        drop(link);
        // Every partition that a bit turned in a name brought about may keep a chunk, if
        // ever a message came there: that is one.
        1
    });
}

fn frame_changes_the_link(bytes: &[u8]) -> bool {
    [
        Kind::Message as u8,
        Kind::Batch as u8,
        Kind::CloseSession as u8,
    ]
    .contains(&bytes[4])
}

#[test]
fn a_send_that_asks_for_what_does_not_exist_is_refused_in_its_place_and_the_link_goes_on() {
    let _shared = PROCESS.read();
    type Edit = fn(&mut [u8]);
    let reserved: [Edit; 10] = [
        |bytes| bytes[6] |= 3,
        |bytes| bytes[6] |= 2,
        |bytes| bytes[6] |= 4,
        |bytes| bytes[6] |= u8::try_from(flags::STAMPS).unwrap(),
        |bytes| bytes[7] |= 0x80,
        |bytes| bytes[68] = 1,
        |bytes| bytes[88] = 1,
        |bytes| bytes[96] = 1,
        |bytes| bytes[104] = 1,
        |bytes| bytes[16] = 1,
    ];
    besiege(|siege| {
        let mut peer = Peer::inside(siege.broker.address());
        let mut producer = peer.producer("queue:/hostile/reserved");
        let mut bytes = Vec::new();
        for edit in reserved {
            bytes.extend(message(&mut producer, b"before", |_| {}));
            bytes.extend(message(&mut producer, b"refused", edit));
        }
        peer.write(&bytes);
        let mut outcomes: Vec<(u64, u16)> = Vec::new();
        while outcomes.len() < reserved.len() * 2 {
            peer.answer(|control| match control {
                Control::Completions(_, tail) => {
                    for run in tail.chunks_exact(40) {
                        let sequence = u64::from_le_bytes(run[..8].try_into().unwrap());
                        let count = u32::from_le_bytes(run[24..28].try_into().unwrap());
                        let refusal = u16::from_le_bytes(run[32..34].try_into().unwrap());
                        let sends = sequence..sequence + u64::from(count);
                        outcomes.extend(sends.map(|sequence| (sequence, refusal)));
                    }
                    Some(())
                }
                _ => None,
            });
        }
        for (index, (sequence, refusal)) in outcomes.into_iter().enumerate() {
            assert_eq!(sequence, index as u64 + 1);
            let expected = [0, Refusal::Unsupported.code()][index % 2];
            assert_eq!(refusal, expected, "send {sequence}");
        }
        peer.assert_goes_on();
        1
    });
}

#[test]
fn sends_beyond_what_was_granted_or_of_somebody_else_end_the_link() {
    let _shared = PROCESS.read();
    type Edit = fn(&mut [u8]);
    let wrong: [(Edit, Refusal); 6] = [
        (|bytes| bytes[8] ^= 0x40, Refusal::NotOpen),
        (|bytes| bytes[12] = 1, Refusal::Unexpected),
        (|bytes| bytes[15] = 0xff, Refusal::Unexpected),
        (|bytes| bytes[40] ^= 0x40, Refusal::Unexpected),
        (|bytes| bytes[64] ^= 1, Refusal::Unexpected),
        (|bytes| bytes[48..56].fill(0), Refusal::Unexpected),
    ];
    besiege(|siege| {
        let address = siege.broker.address();
        for (edit, expected) in wrong {
            let mut peer = Peer::inside(address);
            let mut producer = peer.producer("topic:/hostile/sends");
            let bytes = message(&mut producer, b"wrong", edit);
            peer.write(&bytes);
            assert_eq!(peer.end(SOON), End::Farewell(expected));
        }
        // One message beyond credit, small and large, the latter before its body came.
        for size in [20_000, 1 << 20, 4 << 20] {
            let mut peer = Peer::inside(address);
            let mut producer = peer.producer("topic:/hostile/sends");
            assert!(producer.bytes < size as u64);
            let bytes = message(&mut producer, &vec![1; size], |_| {});
            peer.write(&bytes[..200]);
            if size <= 20_000 {
                peer.write(&bytes[200..]);
            }
            assert_eq!(peer.end(SOON), End::Farewell(Refusal::CreditExceeded));
        }
        // Many messages, faster than credit is renewed or not: all that came in time is
        // stored, and whoever is too fast learns it.
        let mut peer = Peer::inside(address);
        let mut producer = peer.producer("topic:/hostile/sends");
        let flood: Vec<u8> = (0..200_000_u64)
            .flat_map(|_| message(&mut producer, b"", |_| {}))
            .collect();
        peer.write(&flood);
        let end = peer.end(SOON);
        assert!(
            matches!(end, End::Closed | End::Farewell(Refusal::CreditExceeded)),
            "{end:?}"
        );
        // A credit for more than any frame, and a batch that is not what it said.
        let mut peer = Peer::inside(address);
        let producer = peer.producer("topic:/hostile/sends");
        let greedy = WantCredit {
            bytes: u64::MAX.into(),
        };
        peer.send(producer.handle, &greedy, &[]);
        assert_eq!(peer.end(SOON), End::Farewell(Refusal::FrameTooLarge));
        for (messages, bytes) in [(0, 0), (2, 120), (1, 1), (1, u32::MAX)] {
            let mut peer = Peer::inside(address);
            let mut producer = peer.producer("topic:/hostile/sends");
            let batch = Batch {
                messages: messages.into(),
                bytes: bytes.into(),
            };
            peer.send(producer.handle, &batch, &[]);
            peer.write(&message(&mut producer, b"hello", |_| {}));
            assert_eq!(peer.end(SOON), End::Farewell(Refusal::Unexpected));
        }
        1
    });
}

#[test]
fn acknowledgements_of_what_was_never_delivered_settle_nothing_and_the_link_goes_on() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let mut peer = Peer::inside(siege.broker.address());
        let mut producer = peer.producer("queue:/hostile/acks");
        peer.write(&message(&mut producer, b"kept", |_| {}));
        let consumer = peer.consumer("queue:/hostile/acks", 0, 0);
        let cases: [(u32, u64, u64, u32); 8] = [
            (0, 0, 1, 0),
            (0, 7, 1, 0),
            (0, u64::MAX, 1, 0),
            (0, 1, u64::MAX, 0),
            (0, u64::MAX, u64::MAX, 0),
            (0, u64::MAX, u64::MAX, 1),
            (1, 0, 1, 0),
            (u32::MAX, 0, 1, 1),
        ];
        for (case, (partition, first, count, options)) in (1_u32..).zip(cases) {
            let fields = Acknowledge {
                partition: partition.into(),
                runs: 1.into(),
                options: options.into(),
                confirm: case.into(),
            };
            let run = [first.to_le_bytes(), count.to_le_bytes()].concat();
            peer.send(consumer, &fields, &[&run]);
            let (confirm, refusal) = peer.answer(|control| match control {
                Control::Acknowledged(fields, _) => {
                    Some((fields.confirm.get(), fields.refusal.get()))
                }
                _ => None,
            });
            assert_eq!(confirm, case);
            assert_eq!(refusal, Refusal::InvalidAck.code(), "case {case}");
        }
        // It is still there for whoever may have it.
        let allow = Allow {
            messages: u64::MAX.into(),
            bytes: u64::MAX.into(),
            handed: 0.into(),
        };
        peer.send(consumer, &allow, &[]);
        let count = peer.answer(|control| match control {
            Control::Delivery(fields, _) => Some(fields.count.get()),
            _ => None,
        });
        assert_eq!(count, 1);
        peer.assert_goes_on();
        // More handed on than was delivered.
        let lie = Allow {
            handed: 2.into(),
            ..Allow::default()
        };
        peer.send(consumer, &lie, &[]);
        assert_eq!(peer.end(SOON), End::Farewell(Refusal::IllegalArgument));
        1
    });
}

#[test]
fn what_belongs_to_another_link_cannot_be_used() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let address = siege.broker.address();
        let mut owner = Peer::inside(address);
        let mut owned = owner.producer("queue:/hostile/owned");
        let consumer = owner.consumer("queue:/hostile/owned", 10, 10_000);
        let run = [0_u8; 16];
        let acknowledge = Acknowledge {
            runs: 1.into(),
            ..Acknowledge::default()
        };
        let batch = Batch {
            messages: 1.into(),
            bytes: 112.into(),
        };
        let mut borrowed = owned;
        let attempts = [
            message(&mut borrowed, b"stolen", |_| {}),
            // Longer than any carry, so that it is judged by its header alone.
            message(&mut borrowed, &[0; 100_000], |_| {})[..400].to_vec(),
            control(owned.handle, &WantCredit { bytes: 112.into() }, &[]),
            control(owned.handle, &batch, &[]),
            control(consumer, &Allow::default(), &[]),
            control(consumer, &acknowledge, &[&run]),
            // A producer's handle where a consumer's belongs.
            control(owned.handle, &Allow::default(), &[]),
        ];
        for bytes in attempts {
            let mut thief = Peer::inside(address);
            thief.write(&bytes);
            assert_eq!(thief.end(SOON), End::Farewell(Refusal::NotOpen));
        }
        // Requests are refused, and the link goes on.
        let mut thief = Peer::inside(address);
        for handle in [owned.handle, consumer, u32::MAX] {
            let close = Close {
                handle: handle.into(),
                ..Close::default()
            };
            thief.send(1, &close, &[]);
            assert_eq!(thief.refusal(), Refusal::NotOpen);
        }
        let lookup = Lookup {
            session: owner.session.into(),
            ..Lookup::default()
        };
        thief.send(2, &lookup, &[b"/hostile/owned"]);
        assert_eq!(thief.refusal(), Refusal::NotOpen);
        thief.assert_goes_on();
        // The owner noticed nothing.
        owner.write(&message(&mut owned, b"mine", |_| {}));
        let offset = owner.answer(|control| match control {
            Control::Delivery(fields, _) => Some(fields.offset.get()),
            _ => None,
        });
        assert_eq!(offset, 0);
        owner.assert_goes_on();
        1
    });
}

#[test]
fn a_farewell_is_the_last_frame_even_while_a_report_is_being_written() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        for _ in 0..20 {
            let mut peer = Peer::inside(siege.broker.address());
            let ask = control(3, &AskStats::default(), &[]);
            peer.write(&[ask, vec![0xff; 64]].concat());
            // That it is the last is asserted for every link that ends.
            assert_eq!(peer.end(SOON), End::Farewell(Refusal::Malformed));
        }
        0
    });
}

#[test]
fn whoever_vanishes_in_the_middle_of_a_frame_leaves_nothing_behind() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let address = siege.broker.address();
        for round in 0..40 {
            let mut peer = Peer::inside(address);
            let mut producer = peer.producer("queue:/hostile/vanished");
            peer.consumer("queue:/hostile/vanished", 100, 100_000);
            // A frame whose rest is carried over, or one that is assembled in chunks.
            let size = [40, 100_000][round % 2];
            if size > 10_000 {
                let want = WantCredit {
                    bytes: (size as u64 + 200).into(),
                };
                peer.send(producer.handle, &want, &[]);
                peer.answer(|control| match control {
                    Control::Credit(fields, _) if fields.bytes.get() > size as u64 + 112 => {
                        Some(())
                    }
                    _ => None,
                });
            }
            let bytes = message(&mut producer, &vec![7; size], |_| {});
            if round % 4 < 2 {
                // Taken in by the broker before the reset discards it.
                peer.assert_goes_on();
            }
            if round % 3 == 0 {
                peer.write(&bytes[..bytes.len() - 9]);
                drop(peer);
            } else {
                peer.write(&ping(2));
                peer.write(&bytes[..bytes.len() - 9]);
                peer.reset_unread();
            }
        }
        siege.hear_witness();
        1
    });
}

#[test]
fn two_hundred_connections_come_and_go_and_the_memory_of_the_process_stays() {
    let _alone = PROCESS.write();
    // Once the places of those who come and go are there, they are used again. What this
    // test itself keeps, and what the allocator does, is far below it.
    const GROWTH_MAX: u64 = 2 << 20;
    let before_all = resident();
    besiege(|siege| {
        let address = siege.broker.address();
        eventually("coming and going costs no memory any more", || {
            let before = resident();
            come_and_go(address);
            eventually("only the witness is left", || {
                siege.broker.stats().all(|stats| stats.links() == 1)
            });
            resident().saturating_sub(before) < GROWTH_MAX
        });
        let growth = resident().saturating_sub(before_all);
        let bound = 2 * limits::MEMORY_MIN;
        assert!(growth < bound, "grew by {growth} bytes, bound to {bound}");
        2
    });
}

/// Two hundred connections, one after the other, that end in every way there is.
fn come_and_go(address: SocketAddr) {
    let garbage = vec![0xa5; 20_000];
    for round in 0..200 {
        match round % 5 {
            0 => drop(Peer::stranger(address)),
            1 => drop(Peer::inside(address)),
            2 => {
                let mut peer = Peer::inside(address);
                let mut producer = peer.producer("queue:/hostile/visited");
                peer.write(&message(&mut producer, b"visit", |_| {}));
                peer.reset_unread();
            }
            3 => {
                let mut peer = Peer::inside(address);
                peer.consumer("topic:/hostile/visited", 10, 10_000);
                peer.socket.write_all(&garbage).ok();
                peer.end(SOON);
            }
            _ => {
                let mut peer = Peer::stranger(address);
                peer.write(&opening()[..30]);
            }
        }
    }
}

#[test]
fn whoever_takes_too_long_is_let_go_in_time_and_costs_nobody() {
    let _shared = PROCESS.read();
    besiege(|siege| {
        let address = siege.broker.address();
        let mut idle = Peer::inside(address);
        std::thread::scope(|scope| {
            scope.spawn(|| slow_hellos(address));
            scope.spawn(|| begun_and_never_finished(address));
            scope.spawn(|| dripped(address));
            deaf_peers(siege);
        });
        // An idle link is never closed for being idle.
        idle.assert_goes_on();
        // What the topic's partition writes on, and the queue's, which keeps its messages.
        2
    });
}

fn assert_took(started: Instant, limit: Duration) {
    let took = started.elapsed();
    assert!(
        took + Duration::from_millis(300) > limit && took < limit + SLACK,
        "ended after {took:?}, the limit is {limit:?}"
    );
}

/// Who says nothing, and who says its hello a byte a second.
fn slow_hellos(address: SocketAddr) {
    let started = Instant::now();
    let mut silent = Peer::stranger(address);
    let mut slow = Peer::stranger(address);
    let mut writer = slow.socket.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for byte in hello_bytes().chunks(1).take(6) {
                if writer.write_all(byte).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        for peer in [&mut silent, &mut slow] {
            let end = peer.end(limits::HELLO_TIMEOUT + SLACK);
            assert!(
                matches!(end, End::Closed | End::Farewell(Refusal::HelloTimeout)),
                "{end:?}"
            );
            assert_took(started, limits::HELLO_TIMEOUT);
        }
    });
}

/// A small frame and a large one that stop in the middle.
fn begun_and_never_finished(address: SocketAddr) {
    let mut small = Peer::inside(address);
    small.write(&ping(1)[..11]);
    let started = Instant::now();
    let mut large = Peer::inside(address);
    let mut producer = large.producer("queue:/hostile/begun");
    let want = WantCredit {
        bytes: 200_112.into(),
    };
    large.send(producer.handle, &want, &[]);
    large.answer(|control| match control {
        Control::Credit(fields, _) if fields.bytes.get() >= 200_112 => Some(()),
        _ => None,
    });
    let bytes = message(&mut producer, &vec![1; 200_000], |_| {});
    large.write(&bytes[..150_000]);
    for peer in [&mut small, &mut large] {
        let end = peer.end(limits::FRAME_TIMEOUT + SLACK);
        assert_eq!(end, End::Farewell(Refusal::FrameTimeout));
        assert_took(started, limits::FRAME_TIMEOUT);
    }
}

/// A frame whose bytes come one a second: each is progress, and all are too late.
fn dripped(address: SocketAddr) {
    let mut peer = Peer::inside(address);
    let mut writer = peer.socket.try_clone().unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for byte in ping(1).chunks(1).take(14) {
                if writer.write_all(byte).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let end = peer.end(limits::FRAME_TIMEOUT + SLACK);
        assert_eq!(end, End::Farewell(Refusal::FrameTimeout));
        assert_took(started, limits::FRAME_TIMEOUT);
    });
}

/// Peers that never read while answers, completions, deliveries and counters pile up.
fn deaf_peers(siege: &Siege) {
    let address = siege.broker.address();
    let mut deaf = Vec::new();

    // A subscriber of a topic to which somebody sends one message at a time, so that
    // each is given to the kernel alone and the last one not at all.
    let mut subscriber = Peer::inside(address);
    subscriber.consumer("topic:/hostile/deaf", u64::MAX, u64::MAX);
    let mut publisher = support::TestClient::connect(address);
    let producer = publisher.producer("topic:/hostile/deaf");
    let body = vec![vec![3; 3_000]];
    for _ in 0..2_500 {
        assert!(publisher.send_all(producer, &body)[0].result.is_ok());
    }
    drop(publisher);
    deaf.push(subscriber);

    // Questions whose answers nobody reads, until no more is taken.
    for question in [ping(4), control(5, &AskStats::default(), &[])] {
        let mut asker = Peer::inside(address);
        asker
            .socket
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let many = question.repeat(2_000);
        for _ in 0..200 {
            if !asker.write(&many) {
                break;
            }
        }
        deaf.push(asker);
    }

    // Sends, each refused, so that their outcomes do not even share a run.
    let mut sender = Peer::inside(address);
    let mut producer = sender.producer("queue:/hostile/deaf");
    let credit = producer.bytes;
    let mut sent = 0;
    while sent + 112 <= credit {
        let edit: fn(&mut [u8]) = if producer.sequence.is_multiple_of(2) {
            |_| {}
        } else {
            |bytes| bytes[68] = 1
        };
        let bytes = message(&mut producer, b"", edit);
        sent += bytes.len() as u64;
        sender.write(&bytes);
    }
    sender.write(&ping(4).repeat(200_000));
    deaf.push(sender);

    // Whoever is left when the last of them could no longer be served is the witness,
    // the idle one and those whose frames are still being waited for.
    let started = Instant::now();
    eventually("the deaf are let go", || {
        let links: u64 = siege.broker.stats().map(|stats| stats.links()).sum();
        links <= 2
    });
    let took = started.elapsed();
    assert!(
        took < limits::STALL_TIMEOUT + SLACK,
        "the deaf were let go after {took:?}"
    );
    for mut peer in deaf {
        peer.end(SOON);
    }
}
