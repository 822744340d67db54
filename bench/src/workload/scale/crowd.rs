//! Many connections under one thread, one message in flight on each.
//!
//! ```text
//!             +-- connection 0: message -> answer -> message -> ..
//!   epoll ----+-- connection 1: message -> answer -> ..
//!   (one)     +-- ..                                      to an echo, or to the broker
//! ```
//!
//! One client for both: plain sockets, one epoll, and the same frames, which are the
//! broker's down to the checksum; an echo reads their lengths. What differs is how an
//! answer is read: an echo's is counted, one of the broker is decoded and entered into
//! the connection's ledger.
//!
//! All producers share a queue, so that one consumer can take out what they stored,
//! while the clock stands still.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use courser_core::error::Refusal;
use courser_core::frame::control::{
    CompletionRun, Control, Fields, Hello, OpenProducer, OpenSession, ProducerOpened, WantCredit,
};
use courser_core::frame::decode::{DecodeError, Frame, Step, decode};
use courser_core::frame::encode::{self, Envelope};
use courser_core::frame::{Kind, MAGIC, VERSION};
use courser_core::id::{Epoch, Handle, ProducerId};
use zerocopy::FromBytes;

use super::super::books::{self, close, connect};
use super::super::patience::{Patience, WAIT_MAX};
use super::super::queue_name;
use super::super::throughput::BURST_BYTES;
use crate::error::BenchError;
use crate::floor::frame::FrameScanner;
use crate::floor::stream::Rate;
use crate::floor::{EchoServer, frame_bytes};
use crate::ledger::{self, Ledger};
use crate::page_buffer::PageBuffer;
use crate::sys::{Epoll, Ready};

/// Unrecorded answers for each connection at the start of a slice: whoever answers
/// has just woken.
const WARM_UP_ROUNDS: u64 = 4;

const RECEIVE_BYTES: usize = 4096;

/// What a hello says that wants no shard in particular.
const ANY_SHARD: u16 = u16::MAX;

/// Many connections to one echo or one broker.
pub(super) struct Crowd {
    epoll: Epoll,
    ready: Ready,
    connections: Vec<Connection>,
    body: Vec<u8>,
    /// A whole message, written anew for every send.
    frame: PageBuffer,
    received: PageBuffer,
    peer: Peer,
}

/// Who answers.
enum Peer {
    /// An echo, which rests between slices.
    Echo(EchoServer),
    /// A broker.
    Broker {
        address: SocketAddr,
        queue: String,
        /// Whose connection is which.
        producers: HashMap<ProducerId, usize>,
    },
}

/// A connection with its producer, and what it has sent and heard.
struct Connection {
    socket: TcpStream,
    address: SocketAddr,
    /// Who sends, and the number of the last send.
    envelope: Envelope,
    /// True while a message waits for credit, which was asked for.
    waits: bool,
    ears: Ears,
}

/// How answers are read.
enum Ears {
    Echo(FrameScanner),
    Broker(Box<Hearing>),
}

/// What a connection to the broker has heard.
#[derive(Default)]
struct Hearing {
    /// The start of a frame that has not come whole.
    begun: Vec<u8>,
    /// What it may send, as positions.
    bytes: u64,
    messages: u64,
    ledger: Ledger,
}

/// What the broker says that it was not asked for.
#[derive(Debug, thiserror::Error)]
enum Unexpected {
    #[error("a frame of kind {kind:?} came where none was due")]
    Kind { kind: Kind },
    #[error("refused as {refusal:?}")]
    Refused { refusal: Option<Refusal> },
    #[error("the connection ended")]
    End,
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Unexpected {
    fn of(control: &Control<'_>) -> Self {
        let code = match control {
            Control::Refused(fields, _) => fields.refusal,
            Control::Farewell(fields, _) => fields.refusal,
            Control::Ended(fields, _) => fields.refusal,
            _ => {
                return Self::Kind {
                    kind: control.kind(),
                };
            }
        };
        Self::Refused {
            refusal: Refusal::from_code(code.get()),
        }
    }
}

impl From<Unexpected> for BenchError {
    fn from(unexpected: Unexpected) -> Self {
        Self::client("speak with the broker", unexpected)
    }
}

impl Crowd {
    /// So many connections to an echo for many on `cpu`, which rests until the first
    /// slice.
    ///
    /// # Errors
    /// If the echo cannot be started or a connection not be made.
    pub(super) fn of_echo(cpu: usize, connections: u32, payload: u32) -> Result<Self, BenchError> {
        let echo = EchoServer::start_many(cpu, connections as usize)?;
        let address = echo.address();
        let connections = (0..connections)
            .map(|_| Connection::to_echo(address))
            .collect::<Result<_, _>>()?;
        let mut crowd = Self::new(connections, payload, Peer::Echo(echo))?;
        // A message each, so that a server that cannot serve is found out here.
        crowd.turn(Instant::now())?;
        crowd.rest()?;
        Ok(crowd)
    }

    /// So many connections to the broker at `address`, with a producer on each.
    ///
    /// # Errors
    /// If a connection or a producer is refused.
    pub(super) fn of_broker(
        address: SocketAddr,
        connections: u32,
        payload: u32,
    ) -> Result<Self, BenchError> {
        let queue = queue_name("crowd");
        let connections: Vec<Connection> = (0..connections)
            .map(|_| Connection::to_broker(address, &queue))
            .collect::<Result<_, _>>()?;
        let producers = connections
            .iter()
            .map(|connection| connection.envelope.producer);
        let peer = Peer::Broker {
            address,
            queue,
            producers: producers.zip(0..).collect(),
        };
        Self::new(connections, payload, peer)
    }

    fn new(connections: Vec<Connection>, payload: u32, peer: Peer) -> Result<Self, BenchError> {
        let failed = |step| move |source| BenchError::Epoll { step, source };
        let epoll = Epoll::create().map_err(failed("create an instance"))?;
        for (key, connection) in (0..).zip(&connections) {
            epoll
                .watch_readable(&connection.socket, key)
                .map_err(failed("watch a connection"))?;
        }
        Ok(Self {
            epoll,
            ready: Ready::new(connections.len()),
            connections,
            body: vec![0xA5; payload as usize],
            frame: PageBuffer::new(frame_bytes(payload as usize)),
            received: PageBuffer::new(RECEIVE_BYTES),
            peer,
        })
    }

    /// Has a message in flight on each connection for `duration`, in which the clock
    /// also stands still, and returns what was answered.
    ///
    /// # Errors
    /// If a connection ends, or no answer comes for five seconds.
    pub(super) fn slice(&mut self, duration: Duration) -> Result<Rate, BenchError> {
        let ends = Instant::now() + duration;
        let mut rate = Rate::default();
        loop {
            if let Peer::Echo(echo) = &self.peer {
                echo.resume();
            }
            rate.add(&self.turn(ends)?);
            self.rest()?;
            if Instant::now() >= ends {
                return Ok(rate);
            }
        }
    }

    /// True if it is the floor.
    pub(super) fn is_floor(&self) -> bool {
        matches!(self.peer, Peer::Echo(_))
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// The books of all connections, closed; a floor has none.
    pub(super) fn closed_ledger(&self) -> Option<Ledger> {
        let Peer::Broker { .. } = self.peer else {
            return None;
        };
        let mut of_all = Ledger::new();
        for connection in &self.connections {
            if let Ears::Broker(hearing) = &connection.ears {
                let mut ledger = hearing.ledger;
                ledger.close();
                of_all.add(&ledger);
            }
        }
        Some(of_all)
    }

    /// Keeps a message in flight on each connection, and counts answers from when all
    /// have had some to when the time is over or enough is stored. Returns once every
    /// message is answered.
    fn turn(&mut self, ends: Instant) -> Result<Rate, BenchError> {
        let Self {
            epoll,
            ready,
            connections,
            body,
            frame,
            received,
            ..
        } = self;
        let size = frame.len() as u64;
        let warm = WARM_UP_ROUNDS * connections.len() as u64;
        for connection in connections.iter_mut() {
            connection.send(body, frame)?;
        }
        let (mut answered, mut in_flight) = (0_u64, connections.len());
        let mut counted_from = None;
        let mut counted: Option<Rate> = None;
        let mut patience = Patience::default();
        while in_flight > 0 {
            let keys = epoll.ready(ready).map_err(|source| BenchError::Epoll {
                step: "ask for events",
                source,
            })?;
            let before = answered;
            for key in keys {
                let Some(connection) = connections.get_mut(key) else {
                    continue;
                };
                let is_answered = connection.hear(received)?;
                if is_answered {
                    answered += 1;
                    if counted.is_some() {
                        in_flight -= 1;
                        continue;
                    }
                }
                if is_answered || connection.waits {
                    connection.send(body, frame)?;
                }
            }
            if answered == before {
                patience.look()?;
                continue;
            }
            patience = Patience::default();
            let now = Instant::now();
            let is_enough = now >= ends || answered * size >= BURST_BYTES as u64;
            match counted_from {
                None if answered >= warm => counted_from = Some((now, answered)),
                Some((began, from)) if is_enough && counted.is_none() => {
                    counted = Some(Rate {
                        messages: answered - from,
                        bytes: (answered - from) * size,
                        elapsed: now - began,
                    });
                }
                _ => {}
            }
        }
        Ok(counted.unwrap_or_default())
    }

    /// Puts an echo to rest; takes out what a broker has stored.
    fn rest(&mut self) -> Result<(), BenchError> {
        let (address, queue, producers) = match &self.peer {
            Peer::Echo(echo) => return echo.pause(),
            Peer::Broker {
                address,
                queue,
                producers,
            } => (*address, queue, producers),
        };
        let (connections, body_bytes) = (&mut self.connections, self.body.len());
        let mut left: u64 = connections.iter().map(Connection::backlog).sum();
        let client = connect(address)?;
        books::take_backlog(&client, queue, left, |message| {
            // A stranger's message is a fault of whoever is first.
            let known = producers.get(&message.id().producer);
            let connection = &mut connections[known.copied().unwrap_or(0)];
            let before = connection.backlog();
            connection.received(message.body(), body_bytes, known.is_some());
            left = left.saturating_sub(before.saturating_sub(connection.backlog()));
            left
        })?;
        close(client)
    }
}

impl Connection {
    fn to_echo(address: SocketAddr) -> Result<Self, BenchError> {
        Self::new(
            connected(address)?,
            address,
            Envelope::default(),
            Ears::Echo(FrameScanner::default()),
        )
    }

    /// Introduces itself and opens a producer.
    fn to_broker(address: SocketAddr, queue: &str) -> Result<Self, BenchError> {
        let mut introduction = Introduction {
            socket: connected(address)?,
            heard: Vec::new(),
        };
        let opened = introduction.open_producer(queue)?;
        let envelope = Envelope {
            handle: Handle(opened.handle.get()),
            producer: ProducerId(opened.producer.get()),
            epoch: Epoch(opened.epoch.get()),
            ..Envelope::default()
        };
        let hearing = Hearing {
            begun: introduction.heard,
            bytes: opened.bytes.get(),
            messages: opened.messages.get(),
            ledger: Ledger::new(),
        };
        let ears = Ears::Broker(Box::new(hearing));
        Self::new(introduction.socket, address, envelope, ears)
    }

    fn new(
        socket: TcpStream,
        address: SocketAddr,
        envelope: Envelope,
        ears: Ears,
    ) -> Result<Self, BenchError> {
        socket
            .set_nonblocking(true)
            .map_err(BenchError::socket("make a socket non-blocking"))?;
        Ok(Self {
            socket,
            address,
            envelope,
            waits: false,
            ears,
        })
    }

    /// Sends the next message, or asks for the credit that it takes.
    #[inline]
    fn send(&mut self, body: &mut [u8], frame: &mut [u8]) -> Result<(), BenchError> {
        let number = self.envelope.sequence.0;
        if let Ears::Broker(hearing) = &mut self.ears {
            let (messages, size) = (number + 1, frame.len() as u64);
            if messages > hearing.messages || messages * size > hearing.bytes {
                return self.want_credit(size);
            }
            hearing.ledger.sent();
        }
        self.waits = false;
        ledger::stamp(body, number);
        self.envelope.sequence.0 += 1;
        self.envelope.partition_sequence.0 += 1;
        encode::message(&self.envelope, &[], body, frame);
        write(&self.socket, frame)
    }

    #[cold]
    fn want_credit(&mut self, size: u64) -> Result<(), BenchError> {
        if self.waits {
            return Ok(());
        }
        self.waits = true;
        let mut asked = [0; 64];
        let fields = WantCredit { bytes: size.into() };
        let size = encode::control(self.envelope.handle.0, &fields, &[], &mut asked);
        write(&self.socket, &asked[..size])
    }

    /// Reads what is there, once; true if the message in flight is answered.
    #[inline]
    fn hear(&mut self, received: &mut [u8]) -> Result<bool, BenchError> {
        let bytes = match (&self.socket).read(received) {
            Ok(0) => {
                return Err(BenchError::ConnectionClosed {
                    address: self.address,
                    round_trips: self.envelope.sequence.0,
                });
            }
            Ok(bytes) => &received[..bytes],
            Err(error) if is_not_now(&error) => return Ok(false),
            Err(source) => {
                return Err(BenchError::Socket {
                    doing: "read an answer",
                    source,
                });
            }
        };
        match &mut self.ears {
            Ears::Echo(scanner) => Ok(scanner.scan(bytes)? > 0),
            Ears::Broker(hearing) => Ok(hearing.hear(bytes)?),
        }
    }

    /// Messages that are stored and have not come out.
    fn backlog(&self) -> u64 {
        match &self.ears {
            Ears::Echo(_) => 0,
            Ears::Broker(hearing) => hearing.ledger.backlog(),
        }
    }

    /// Enters a message that came out.
    fn received(&mut self, body: &[u8], body_bytes: usize, is_its_own: bool) {
        if let Ears::Broker(hearing) = &mut self.ears {
            if is_its_own {
                hearing.ledger.received(body, body_bytes);
            } else {
                hearing.ledger.received_in_turn(body, body_bytes, false);
            }
        }
    }
}

impl Hearing {
    /// Takes the stream's next bytes; true if there is an outcome in them.
    #[inline]
    fn hear(&mut self, bytes: &[u8]) -> Result<bool, Unexpected> {
        if self.begun.is_empty() {
            let (taken, is_answered) = self.frames(bytes)?;
            self.begun.extend_from_slice(&bytes[taken..]);
            return Ok(is_answered);
        }
        let mut begun = std::mem::take(&mut self.begun);
        begun.extend_from_slice(bytes);
        let (taken, is_answered) = self.frames(&begun)?;
        begun.drain(..taken);
        self.begun = begun;
        Ok(is_answered)
    }

    /// Takes the whole frames at the front of `bytes`: how many bytes they are, and
    /// whether there is an outcome among them.
    fn frames(&mut self, bytes: &[u8]) -> Result<(usize, bool), Unexpected> {
        let (mut at, mut is_answered) = (0, false);
        while let Step::Frame(frame, size) = decode(&bytes[at..])? {
            at += size;
            let Frame::Control { control, .. } = frame else {
                return Err(Unexpected::Kind {
                    kind: Kind::Message,
                });
            };
            match control {
                Control::Completions(_, tail) => {
                    is_answered = true;
                    // As many whole runs as the fields say: the decoder has seen to it.
                    for run in tail.chunks_exact(size_of::<CompletionRun>()) {
                        if let Ok(run) = CompletionRun::ref_from_bytes(run) {
                            self.complete(run);
                        }
                    }
                }
                Control::Credit(fields, _) => {
                    self.bytes = self.bytes.max(fields.bytes.get());
                    self.messages = self.messages.max(fields.messages.get());
                }
                other => return Err(Unexpected::of(&other)),
            }
        }
        Ok((at, is_answered))
    }

    fn complete(&mut self, run: &CompletionRun) {
        let first = run.sequence.get();
        for sequence in first..first.saturating_add(run.count.get().into()) {
            // Sequences start at 1, numbers at 0.
            let number = sequence.wrapping_sub(1);
            self.ledger.completed(number, run.refusal.get() == 0);
        }
    }
}

/// A connection that has not said yet what it is for.
struct Introduction {
    socket: TcpStream,
    /// What has come and was not read yet.
    heard: Vec<u8>,
}

impl Introduction {
    fn open_producer(&mut self, queue: &str) -> Result<ProducerOpened, BenchError> {
        let hello = Hello {
            magic: MAGIC,
            version_min: VERSION,
            version_max: VERSION,
            shard: ANY_SHARD.into(),
            ..Hello::default()
        };
        self.say(0, &hello, &[])?;
        self.hear(|control| matches!(control, Control::Welcome(..)).then_some(()))?;
        self.say(1, &OpenSession::default(), &[])?;
        let session = self.hear(|control| match control {
            Control::SessionOpened(fields, _) => Some(fields.session),
            _ => None,
        })?;
        let name = queue.strip_prefix("queue:").unwrap_or(queue);
        let fields = OpenProducer {
            session,
            destination_length: u16::try_from(name.len()).unwrap_or(u16::MAX).into(),
            ..OpenProducer::default()
        };
        self.say(2, &fields, &[name.as_bytes()])?;
        self.hear(|control| match control {
            Control::ProducerOpened(fields, _) => Some(**fields),
            _ => None,
        })
    }

    fn say<F: Fields>(
        &mut self,
        request: u32,
        fields: &F,
        tail: &[&[u8]],
    ) -> Result<(), BenchError> {
        let mut frame = [0; 512];
        let size = encode::control(request, fields, tail, &mut frame);
        write(&self.socket, &frame[..size])
    }

    /// Waits for the next frame, which has to be the one that is wanted.
    fn hear<T>(&mut self, wanted: impl Fn(&Control<'_>) -> Option<T>) -> Result<T, BenchError> {
        let mut piece = [0; 512];
        loop {
            let step = decode(&self.heard).map_err(Unexpected::Decode)?;
            if let Step::Frame(frame, size) = step {
                let Frame::Control { control, .. } = frame else {
                    let kind = Kind::Message;
                    return Err(Unexpected::Kind { kind }.into());
                };
                let heard = wanted(&control).ok_or_else(|| Unexpected::of(&control));
                self.heard.drain(..size);
                return Ok(heard?);
            }
            match self.socket.read(&mut piece) {
                Ok(0) => return Err(Unexpected::End.into()),
                Ok(bytes) => self.heard.extend_from_slice(&piece[..bytes]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(BenchError::Socket {
                        doing: "read an answer",
                        source,
                    });
                }
            }
        }
    }
}

/// A connection whose reads wait for a while.
fn connected(address: SocketAddr) -> Result<TcpStream, BenchError> {
    let socket = TcpStream::connect(address).map_err(BenchError::socket("connect"))?;
    socket
        .set_nodelay(true)
        .map_err(BenchError::socket("set TCP_NODELAY"))?;
    socket
        .set_read_timeout(Some(WAIT_MAX))
        .map_err(BenchError::socket("set a time limit"))?;
    Ok(socket)
}

/// Writes all of `bytes`, spinning where the socket is full.
#[inline]
fn write(mut socket: &TcpStream, mut bytes: &[u8]) -> Result<(), BenchError> {
    let mut patience = Patience::default();
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if is_not_now(&error) => patience.look()?,
            Err(source) => {
                return Err(BenchError::Socket {
                    doing: "write a message",
                    source,
                });
            }
        }
    }
    Ok(())
}

fn is_not_now(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use courser_core::frame::control::{Completions, Credit, Farewell};
    use zerocopy::IntoBytes;

    use super::*;

    fn written<F: Fields>(fields: &F, tail: &[&[u8]]) -> Vec<u8> {
        let mut frame = vec![0; 256];
        let size = encode::control(7, fields, tail, &mut frame);
        frame.truncate(size);
        frame
    }

    fn completion(sequence: u64, refusal: u16) -> Vec<u8> {
        let run = CompletionRun {
            sequence: sequence.into(),
            count: 1.into(),
            refusal: refusal.into(),
            ..CompletionRun::default()
        };
        let fields = Completions {
            runs: 1.into(),
            ..Completions::default()
        };
        written(&fields, &[run.as_bytes()])
    }

    fn hearing_of(sent: u64) -> Hearing {
        let mut hearing = Hearing::default();
        hearing.ledger.sent_many(sent);
        hearing
    }

    #[test]
    fn answers_are_heard_once_and_in_order_however_they_are_split() {
        let credit = Credit {
            bytes: 4096.into(),
            messages: 8.into(),
        };
        let bytes = [completion(1, 0), written(&credit, &[]), completion(2, 0)].concat();
        for piece in 1..=bytes.len() {
            let mut hearing = hearing_of(2);
            let mut answers = 0;
            for chunk in bytes.chunks(piece) {
                answers += u64::from(hearing.hear(chunk).unwrap());
            }
            hearing.ledger.close();
            assert_eq!(hearing.ledger.completed, 2, "pieces of {piece}");
            assert_eq!(hearing.ledger.faults.completions_misplaced, 0);
            assert_eq!((hearing.bytes, hearing.messages), (4096, 8));
            // In one piece both answers are one look's.
            assert!((1..=2).contains(&answers), "pieces of {piece}");
        }
    }

    #[test]
    fn answers_out_of_place_and_refusals_are_faults() {
        let mut hearing = hearing_of(3);
        for (sequence, refusal) in [(2, 0), (1, 0), (2, 4)] {
            hearing.hear(&completion(sequence, refusal)).unwrap();
        }
        assert_eq!(hearing.ledger.faults.completions_misplaced, 2);
        assert_eq!(hearing.ledger.faults.completions_failed, 1);
    }

    #[test]
    fn a_farewell_ends_the_measurement_and_says_why() {
        let text = "too many";
        let farewell = Farewell {
            refusal: (Refusal::ResourceAllocation as u16).into(),
            text_length: u32::try_from(text.len()).unwrap().into(),
            ..Farewell::default()
        };
        let frame = written(&farewell, &[text.as_bytes()]);
        let error = hearing_of(1).hear(&frame).unwrap_err().to_string();
        assert!(error.contains("ResourceAllocation"), "{error}");
    }
}
