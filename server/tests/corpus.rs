//! Every case that the fuzzers know, at the port of the real binary: as bytes on
//! connections of its own, and as the conversation that it means. Afterwards the broker
//! is what it was.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use courser_core::frame::MAGIC;
use courser_core::frame::control::{Fields, Hello, OpenSession, Ping};
use courser_core::frame::encode;
use courser_fuzz::peer::Peer;
use courser_fuzz::script::Script;
use courser_fuzz::session::{Act, LINKS, Scene};
use courser_fuzz::{TARGETS, corpus, decode};
use rustix::process::Signal;
use support::{Broker, DEADLINE, on_both_transports, on_both_transports_with, resident};

/// What the broker is started with.
const MEMORY: &str = "64MiB";
/// The most that it may have resident: its bound, and what the process takes beside it.
const RESIDENT_MAX: u64 = (64 + 16) << 20;
/// Cases between two looks at whether the broker still serves somebody honest.
const CASES_AT_ONCE: usize = 64;

fn frame<F: Fields>(subject: u32, fields: &F, tail: &[&[u8]]) -> Vec<u8> {
    let size = tail.iter().map(|part| part.len()).sum();
    let mut bytes = vec![0; encode::control_size::<F>(size)];
    encode::control(subject, fields, tail, &mut bytes);
    bytes
}

fn hello() -> Vec<u8> {
    let fields = Hello {
        magic: MAGIC,
        version_min: 1,
        version_max: 1,
        shard: u16::MAX.into(),
        name_length: 6.into(),
        ..Hello::default()
    };
    frame(0, &fields, &[b"corpus"])
}

fn connect(broker: &Broker) -> TcpStream {
    let socket = TcpStream::connect(&broker.address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Says all of it in pieces of so many bytes, then that nothing more comes, and reads
/// until the broker has nothing to say either.
fn say_and_listen(broker: &Broker, bytes: &[u8], piece: usize) {
    let mut socket = connect(broker);
    for piece in bytes.chunks(piece) {
        // A broker that ends the connection early takes no more, as it should.
        if socket.write_all(piece).is_err() {
            break;
        }
    }
    // Fails where the broker was quicker.
    let _ended = socket.shutdown(Shutdown::Write);
    let mut heard = [0; 16_384];
    loop {
        match socket.read(&mut heard) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return,
                _ => panic!("the broker neither answers nor ends: {error}"),
            },
        }
    }
}

/// One end of a conversation.
struct Seat {
    socket: TcpStream,
    peer: Peer,
    deaf: bool,
    /// The broker ended it.
    ended: bool,
    pings: u64,
}

impl Seat {
    fn new(broker: &Broker) -> Self {
        let mut seat = Self {
            socket: connect(broker),
            peer: Peer::default(),
            deaf: false,
            ended: false,
            pings: 0,
        };
        // The peer knows nothing of hellos: its stream begins behind them.
        seat.ended = seat.socket.write_all(&hello()).is_err();
        seat.settle();
        seat
    }

    fn say(&mut self, bytes: &[u8], piece: usize) {
        for piece in bytes.chunks(piece.max(bytes.len() / 64).max(1)) {
            self.peer.said(piece);
            if self.socket.write_all(piece).is_err() {
                break;
            }
        }
        self.settle();
    }

    /// Waits until the broker has dealt with all that was said, where that can be told:
    /// a ping behind it is answered, or the link ends.
    fn settle(&mut self) {
        if self.deaf || self.ended {
            return;
        }
        if self.peer.broken().is_some() {
            self.listen(|_| false);
            return;
        }
        if self.peer.is_between_frames() {
            self.pings += 1;
            let fields = Ping {
                token: self.pings.into(),
            };
            let ping = frame(0, &fields, &[]);
            self.peer.said(&ping);
            let _gone = self.socket.write_all(&ping);
            let token = self.pings;
            self.listen(|peer| peer.pong() == Some(token));
        }
    }

    /// Reads until `enough`, or to the end.
    fn listen(&mut self, enough: impl Fn(&Peer) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut bytes = [0; 65_536];
        while !enough(&self.peer) && !self.ended {
            match self.socket.read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(count) => self.peer.heard(&bytes[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => self.ended = true,
                    _ => panic!("neither an answer nor an end: {error}"),
                },
            }
            assert!(Instant::now() < deadline, "it goes on for ever");
        }
    }
}

/// The conversation that a case of the target `session` means. Nobody waits: what takes
/// time there takes none here, and the broker stops for nobody.
fn act_out(broker: &Broker, case: &[u8]) {
    let mut seats: [Option<Seat>; LINKS] = [const { None }; LINKS];
    seats[0] = Some(Seat::new(broker));
    let mut script = Script::new(case);
    while let Some(scene) = Scene::read(&mut script) {
        let foreign: Vec<u32> = seats
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != scene.link)
            .filter_map(|(_, seat)| seat.as_ref())
            .flat_map(|seat| seat.peer.handles().iter().copied())
            .collect();
        let place = &mut seats[scene.link];
        if place.as_ref().is_some_and(|seat| seat.ended) {
            *place = None;
        }
        match (scene.act, place) {
            (Act::Connect, place @ None) => *place = Some(Seat::new(broker)),
            (Act::Vanish, place) => *place = None,
            (Act::Frame(recipe), Some(seat)) => {
                let bytes = recipe.frame(&mut seat.peer.names(&foreign));
                seat.say(&bytes, scene.piece);
            }
            (Act::Bytes(bytes), Some(seat)) => seat.say(bytes, scene.piece),
            (Act::Turn, Some(seat)) => {
                seat.deaf = !seat.deaf;
                seat.settle();
            }
            _ => {}
        }
    }
}

/// Somebody honest: what is sent is received, and nothing else.
fn assert_serves(broker: &Broker, round: usize) {
    let ended = broker.courser(&format!("send honest one two {round}"));
    assert_eq!(ended.stdout, "acknowledged 3 messages\n", "{ended:?}");
    let ended = broker.courser("receive honest --count 3 --timeout 60s");
    assert_eq!(ended.stdout, format!("one\ntwo\n{round}\n"), "{ended:?}");
    assert!(
        ended.stderr.is_empty() && ended.status == Some(0),
        "{ended:?}"
    );
}

/// The one link that is left is that of who asks.
fn assert_nobody_is_left(broker: &Broker) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let counters = &broker.stats()["counters"];
        let count = |name: &str| counters[name].as_u64().unwrap();
        if count("links_opened") - count("links_closed") == 1 {
            return;
        }
        assert!(Instant::now() < deadline, "links are left: {counters}");
    }
}

#[test]
fn a_broker_outlives_every_case_that_the_fuzzers_know() {
    on_both_transports_with(MEMORY, |broker| {
        let started = Instant::now();
        assert_serves(&broker, 0);
        let (mut cases, mut resident_max) = (0, 0);
        for target in TARGETS {
            for case in corpus::cases(target.name).unwrap() {
                let bytes = &case.bytes;
                let open = frame(1, &OpenSession::default(), &[]);
                let inside = [hello(), open, bytes.clone()].concat();
                say_and_listen(&broker, bytes, usize::MAX);
                say_and_listen(&broker, bytes, bytes.len() / 7 + 1);
                say_and_listen(&broker, &inside, usize::MAX);
                say_and_listen(&broker, &inside, 37);
                match target.name {
                    "session" => act_out(&broker, bytes),
                    "decode" => {
                        let stream = decode::stream_of(bytes);
                        let inside = [hello(), stream].concat();
                        say_and_listen(&broker, &inside, usize::MAX);
                        say_and_listen(&broker, &inside, inside.len() / 16 + 1);
                    }
                    _ => {}
                }
                cases += 1;
                if cases % CASES_AT_ONCE == 0 {
                    assert_serves(&broker, cases);
                    resident_max = resident_max.max(resident(broker.pid()));
                }
            }
        }
        assert_serves(&broker, cases);
        assert_nobody_is_left(&broker);
        // That they arrived, and that the broker took offence where it should.
        let counters = &broker.stats()["counters"];
        let count = |name: &str| counters[name].as_u64().unwrap();
        let least = u64::try_from(cases).unwrap();
        assert!(count("links_opened") > 2 * least, "{counters}");
        assert!(count("links_faulted") > least, "{counters}");
        resident_max = resident_max.max(resident(broker.pid()));
        eprintln!(
            "{cases} cases in {:?}, at most {} MiB resident",
            started.elapsed(),
            resident_max >> 20
        );
        assert!(
            resident_max <= RESIDENT_MAX,
            "{resident_max} bytes were resident, at most {RESIDENT_MAX} may be"
        );
        broker.signal(Signal::TERM);
        let ended = broker.end();
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    });
}

#[test]
fn whoever_is_cut_off_in_the_middle_of_a_kept_case_leaves_nothing() {
    on_both_transports(|broker| {
        for case in corpus::cases("session").unwrap().iter().step_by(3) {
            let stream = [hello(), case.bytes.clone()].concat();
            let mut socket = connect(&broker);
            // It may be over before all is said.
            let _said = socket.write_all(&stream[..stream.len() / 2]);
            drop(socket);
        }
        assert_nobody_is_left(&broker);
        assert_serves(&broker, 1);
    });
}
