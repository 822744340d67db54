//! A peer by hand: it writes whatever bytes a test wants and reads frames back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use courser_core::error::Refusal;
use courser_core::frame::control::{
    Control, Fields, Hello, OpenConsumer, OpenProducer, OpenSession, Ping,
};
use courser_core::frame::decode::{self, Frame, Step};
use courser_core::frame::encode::{self, Envelope};
use courser_core::frame::{MAGIC, checksum};
use courser_core::id::{Epoch, Handle, PartitionIndex, PartitionSequence, ProducerId, Sequence};
use courser_core::name::Destination;

/// Longer than any answer takes that has no time limit of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The broker said why.
    Farewell(Refusal),
    /// It closed or reset the connection without a word.
    Closed,
}

/// What a producer was told at its opening, and how far it has counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Producer {
    pub(crate) handle: u32,
    pub(crate) id: u64,
    pub(crate) epoch: u32,
    /// Its initial credit.
    pub(crate) bytes: u64,
    /// Sends so far.
    pub(crate) sequence: u64,
}

/// One connection.
pub(crate) struct Peer {
    pub(crate) socket: TcpStream,
    received: Vec<u8>,
    pub(crate) session: u32,
    request: u32,
}

/// A control frame with its padding.
pub(crate) fn control<F: Fields>(subject: u32, fields: &F, tail: &[&[u8]]) -> Vec<u8> {
    let tail_size = tail.iter().map(|part| part.len()).sum();
    let mut bytes = vec![0; encode::control_size::<F>(tail_size)];
    encode::control(subject, fields, tail, &mut bytes);
    bytes
}

/// The hello of a client that speaks version 1.
pub(crate) fn hello() -> Hello {
    Hello {
        magic: MAGIC,
        version_min: 1,
        version_max: 1,
        shard: u16::MAX.into(),
        name_length: 4.into(),
        ..Hello::default()
    }
}

/// A whole hello.
pub(crate) fn hello_bytes() -> Vec<u8> {
    control(0, &hello(), &[b"peer"])
}

/// A ping whose pong carries `token`.
pub(crate) fn ping(token: u64) -> Vec<u8> {
    let fields = Ping {
        token: token.into(),
    };
    control(9, &fields, &[])
}

/// Makes the checksum of a frame right again after an edit, if the frame still says
/// that it ends within `frame`.
pub(crate) fn mend(frame: &mut [u8]) {
    let length = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
    if length > frame.len() || length < 36 && frame[4] == 0x80 || length < 16 {
        return;
    }
    let (at, sum) = if frame[4] == 0x80 {
        (32, checksum::message(&frame[..length]))
    } else {
        (8, checksum::control(&frame[..length]))
    };
    frame[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// A message of `producer` as a sender would write it, but for `edit`; the checksum
/// fits.
pub(crate) fn message(
    producer: &mut Producer,
    body: &[u8],
    edit: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    producer.sequence += 1;
    let envelope = Envelope {
        handle: Handle(producer.handle),
        partition: PartitionIndex(0),
        producer: ProducerId(producer.id),
        epoch: Epoch(producer.epoch),
        sequence: Sequence(producer.sequence),
        partition_sequence: PartitionSequence(producer.sequence),
        ..Envelope::default()
    };
    let mut bytes = vec![0; encode::message_size(0, body.len())];
    encode::message(&envelope, &[], body, &mut bytes);
    edit(&mut bytes);
    mend(&mut bytes);
    bytes
}

/// Where the broker's farewell would stand: the last frame.
fn end_of(frames: &[Vec<u8>]) -> End {
    let last = frames.last().map(|bytes| decode::decode(bytes));
    match last {
        Some(Ok(Step::Frame(
            Frame::Control {
                control: Control::Farewell(fields, _),
                ..
            },
            _,
        ))) => End::Farewell(Refusal::from_code(fields.refusal.get()).unwrap()),
        _ => End::Closed,
    }
}

impl Peer {
    /// A connection that has said nothing.
    pub(crate) fn stranger(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect(address).unwrap())
    }

    /// A connection that somebody else made, and that has said nothing.
    pub(crate) fn on(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        Self {
            socket,
            received: Vec::new(),
            session: 0,
            request: 0,
        }
    }

    /// A connection that said hello, and has a session.
    pub(crate) fn inside(address: SocketAddr) -> Self {
        Self::stranger(address).greeted()
    }

    /// Says hello, and asks for a session.
    pub(crate) fn greeted(mut self) -> Self {
        let open = control(1, &OpenSession::default(), &[]);
        self.write(&[hello_bytes(), open].concat());
        self.session = self.answer(|control| match control {
            Control::SessionOpened(fields, _) => Some(fields.session.get()),
            _ => None,
        });
        self
    }

    /// Writes; a connection that the broker has ended takes no more, which is no failure.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    pub(crate) fn send<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        self.write(&control(subject, fields, tail));
    }

    /// The next request's id.
    pub(crate) fn request(&mut self) -> u32 {
        self.request += 1;
        self.request
    }

    /// A producer to `queue:/namespace/name` or `topic:/namespace/name`.
    pub(crate) fn producer(&mut self, destination: &str) -> Producer {
        let request = self.request();
        let Destination { kind, name } = Destination::parse(destination).unwrap();
        let fields = OpenProducer {
            session: self.session.into(),
            destination: kind as u8,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            ..OpenProducer::default()
        };
        self.send(request, &fields, &[name.as_bytes()]);
        self.answer(|control| match control {
            Control::ProducerOpened(fields, _) => Some(Producer {
                handle: fields.handle.get(),
                id: fields.producer.get(),
                epoch: fields.epoch.get(),
                bytes: fields.bytes.get(),
                sequence: 0,
            }),
            _ => None,
        })
    }

    /// A consumer with its first grant; of a topic by a subscription without a name.
    pub(crate) fn consumer(&mut self, destination: &str, messages: u64, bytes: u64) -> u32 {
        let request = self.request();
        let Destination { kind, name } = Destination::parse(destination).unwrap();
        let fields = OpenConsumer {
            session: self.session.into(),
            destination: kind as u8,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            messages: messages.into(),
            bytes: bytes.into(),
            ..OpenConsumer::default()
        };
        self.send(request, &fields, &[name.as_bytes()]);
        self.answer(|control| match control {
            Control::ConsumerOpened(fields, _) => Some(fields.handle.get()),
            _ => None,
        })
    }

    /// Reads frames until one is what is wanted.
    pub(crate) fn answer<T>(&mut self, mut wanted: impl FnMut(&Control<'_>) -> Option<T>) -> T {
        loop {
            let Some(frame) = self.frame(PATIENCE) else {
                panic!("the link ended where an answer was due");
            };
            if let Ok(Step::Frame(Frame::Control { control, .. }, _)) = decode::decode(&frame) {
                assert!(
                    !matches!(control, Control::Farewell(..)),
                    "a farewell where an answer was due: {control:?}"
                );
                if let Some(found) = wanted(&control) {
                    return found;
                }
            }
        }
    }

    /// Whether the link still does what it is for.
    pub(crate) fn assert_goes_on(&mut self) {
        self.write(&ping(77));
        let token = self.answer(|control| match control {
            Control::Pong(fields, _) => Some(fields.token.get()),
            _ => None,
        });
        assert_eq!(token, 77);
    }

    /// Whether a refused request says so.
    pub(crate) fn refusal(&mut self) -> Refusal {
        self.answer(|control| match control {
            Control::Refused(fields, _) => Some(Refusal::from_code(fields.refusal.get()).unwrap()),
            _ => None,
        })
    }

    /// The next frame; `None` at the end of the stream.
    ///
    /// # Panics
    ///
    /// If neither comes in time.
    pub(crate) fn frame(&mut self, within: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + within;
        loop {
            match decode::decode(&self.received) {
                Ok(Step::Frame(_, size)) => {
                    let rest = self.received.split_off(size);
                    return Some(std::mem::replace(&mut self.received, rest));
                }
                Ok(Step::Incomplete(_)) => {}
                Err(error) => panic!("the broker sent what is no frame: {error}"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "neither a frame nor an end in {within:?}");
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut bytes = [0; 16_384];
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return None,
                    _ => panic!("{error}"),
                },
            }
        }
    }

    /// Reads to the end of the stream, which must come in time.
    pub(crate) fn end(&mut self, within: Duration) -> End {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame(within) {
            frames.push(frame);
        }
        let farewells = frames.iter().filter(|frame| frame[4] == 0x4f).count();
        let end = end_of(&frames);
        assert_eq!(
            farewells,
            usize::from(matches!(end, End::Farewell(_))),
            "a farewell is the last frame of a link, and said once"
        );
        end
    }

    /// Says that nothing more comes.
    pub(crate) fn finish(&self) {
        self.socket.shutdown(Shutdown::Write).ok();
    }

    /// Ends the connection by a reset: a socket that is closed over unread bytes
    /// answers with one.
    pub(crate) fn reset_unread(mut self) {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        if self.received.is_empty() {
            self.write(&ping(1));
        }
        let mut byte = [0];
        self.socket.peek(&mut byte).unwrap();
    }
}
