//! The library against a peer that answers by script: what a broker does only
//! when it is slow, gone, or not a broker.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::WAIT;
use courser::{
    AcknowledgeError, Cause, Client, ConnectError, LinkEnd, Offset, PartitionIndex, Position,
    Producer, SendError, TrySendError,
};
use courser_core::error::Refusal;
use courser_core::frame::control::{
    self, Acknowledged, CompletionRun, Completions, ConsumerOpened, Control, Farewell, Fields,
    Located, ProducerOpened, SessionOpened, Welcome,
};
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::frame::{VERSION, encode};
use courser_core::limits;

/// The broker's end of one connection.
struct Peer {
    stream: TcpStream,
    bytes: Vec<u8>,
    /// Bytes and messages that a producer is granted.
    credit: (u64, u64),
}

impl Peer {
    /// Runs `story` with the first connection, and returns where to connect.
    fn play(story: impl FnOnce(&mut Self) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            let mut peer = Self {
                stream,
                bytes: Vec::new(),
                credit: (1 << 30, 1 << 20),
            };
            story(&mut peer);
        });
        address
    }

    fn say<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let mut bytes = vec![0; size];
        encode::control(subject, fields, tail, &mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Answers one frame as a broker would, but for messages: their sequence; and for
    /// acknowledgements that are to be confirmed: under which number. 0 for anything
    /// else, none at the end of the stream.
    fn step(&mut self) -> Option<u64> {
        let (size, answer) = loop {
            if let Step::Frame(frame, size) = decode(&self.bytes).unwrap() {
                break (size, Answer::to(&frame));
            }
            let mut buffer = [0; 65_536];
            let count = self.stream.read(&mut buffer).ok()?;
            if count == 0 {
                return None;
            }
            self.bytes.extend_from_slice(&buffer[..count]);
        };
        self.bytes.drain(..size);
        match answer {
            Answer::Welcome => {
                let welcome = Welcome {
                    version: VERSION,
                    frame_size_max: limits::FRAME_SIZE_MAX.into(),
                    installation: 7.into(),
                    ..Welcome::default()
                };
                self.say(0, &welcome, &[]);
            }
            Answer::Session(request) => self.say(request, &SessionOpened::default(), &[]),
            Answer::Located(request) => self.say(request, &Located::default(), &[]),
            Answer::Producer(request) => {
                let opened = ProducerOpened {
                    handle: 5.into(),
                    epoch: 1.into(),
                    producer: 42.into(),
                    partitions: 1.into(),
                    window: 1024.into(),
                    bytes: self.credit.0.into(),
                    messages: self.credit.1.into(),
                };
                self.say(request, &opened, &[]);
            }
            Answer::Consumer(request) => {
                let opened = ConsumerOpened {
                    handle: CONSUMER.into(),
                    partitions: 1.into(),
                };
                self.say(request, &opened, &[&[0; 8]]);
            }
            Answer::Confirmation(token) => return Some(token.into()),
            Answer::Message(sequence) => return Some(sequence),
            Answer::Nothing => {}
        }
        Some(0)
    }

    /// Goes on until this many messages have come.
    fn messages(&mut self, count: u64) -> u64 {
        let mut last = 0;
        let mut left = count;
        while left > 0 {
            match self.step() {
                Some(0) => {}
                Some(sequence) => {
                    last = sequence;
                    left -= 1;
                }
                None => break,
            }
        }
        last
    }

    fn complete(&mut self, sequence: u64, count: u32) {
        let run = CompletionRun {
            sequence: sequence.into(),
            offset: (sequence - 1).into(),
            count: count.into(),
            ..CompletionRun::default()
        };
        let fields = Completions {
            runs: 1.into(),
            ..Completions::default()
        };
        let bytes = zerocopy_bytes(&run);
        self.say(5, &fields, &[&bytes]);
    }

    /// Reads until the client is gone.
    fn until_the_end(&mut self) {
        while self.step().is_some() {}
    }
}

/// The handle of the consumer that a peer opens.
const CONSUMER: u32 = 6;

fn zerocopy_bytes(run: &CompletionRun) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&run.sequence.get().to_le_bytes());
    bytes.extend_from_slice(&run.offset.get().to_le_bytes());
    bytes.extend_from_slice(&run.append_time.get().to_le_bytes());
    bytes.extend_from_slice(&run.count.get().to_le_bytes());
    bytes.extend_from_slice(&run.partition.get().to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

enum Answer {
    Welcome,
    Session(u32),
    Located(u32),
    Producer(u32),
    Consumer(u32),
    Confirmation(u32),
    Message(u64),
    Nothing,
}

impl Answer {
    fn to(frame: &Frame<'_>) -> Self {
        match frame {
            Frame::Message(message) => Self::Message(message.header.sequence.get()),
            Frame::Control { subject, control } => match control {
                Control::Hello(..) => Self::Welcome,
                Control::OpenSession(..) => Self::Session(*subject),
                Control::Lookup(..) => Self::Located(*subject),
                Control::OpenProducer(..) => Self::Producer(*subject),
                Control::OpenConsumer(..) => Self::Consumer(*subject),
                Control::Acknowledge(fields, _) if fields.confirm.get() != 0 => {
                    Self::Confirmation(fields.confirm.get())
                }
                _ => Self::Nothing,
            },
        }
    }
}

fn producer(address: SocketAddr, timeout: Duration) -> (Client, Producer) {
    let client = Client::options()
        .timeout(WAIT)
        .reconnect_for(Duration::ZERO)
        .connect(address)
        .unwrap();
    let producer = client.producer("q").send_timeout(timeout).create().unwrap();
    (client, producer)
}

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn a_connection_that_fails_names_the_address_and_the_cause() {
    let error = Client::connect("a b").unwrap_err();
    assert!(matches!(error, ConnectError::Address(_)), "{error}");

    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = Client::connect(closed).unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    assert!(error.to_string().contains(&closed.to_string()));

    let silent = Peer::play(|peer| {
        let mut buffer = [0; 64];
        while peer.stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    let began = Instant::now();
    let error = Client::options()
        .timeout(SHORT)
        .connect(silent)
        .unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    assert!(began.elapsed() >= SHORT && began.elapsed() < WAIT);

    let newer = Peer::play(|peer| {
        let farewell = Farewell {
            refusal: Refusal::VersionUnsupported.code().into(),
            version_min: 3,
            version_max: 4,
            text_length: 0.into(),
        };
        peer.say(0, &farewell, &[]);
        peer.until_the_end();
    });
    let error = Client::connect(newer).unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Version {
                version_min: 3,
                version_max: 4,
                ..
            }
        ),
        "{error}"
    );

    let full = Peer::play(|peer| {
        let farewell = Farewell {
            refusal: Refusal::TooManyLinks.code().into(),
            text_length: 9.into(),
            ..Farewell::default()
        };
        peer.say(0, &farewell, &[b"try later"]);
        peer.until_the_end();
    });
    let error = Client::connect(full).unwrap_err();
    assert!(error.to_string().contains("try later"), "{error}");

    let http = Peer::play(|peer| {
        peer.stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
        peer.until_the_end();
    });
    let error = Client::connect(http).unwrap_err();
    assert!(matches!(error, ConnectError::NotABroker { .. }), "{error}");
}

#[test]
fn the_second_endpoint_is_tried_when_the_first_refuses() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let open = Peer::play(Peer::until_the_end);
    let client = Client::connect(format!("{closed};{open}")).unwrap();
    assert_eq!(client.installation().0, 7);
}

#[test]
fn an_asynchronous_send_returns_before_the_answer_and_a_blocking_one_after_it() {
    let (answer, asked) = mpsc::channel::<()>();
    let (arrived, seen) = mpsc::channel();
    let address = Peer::play(move |peer| {
        for sequence in 1..=2 {
            arrived.send(peer.messages(1)).unwrap();
            asked.recv_timeout(WAIT).unwrap();
            peer.complete(sequence, 1);
        }
        peer.until_the_end();
    });
    let (_client, producer) = producer(address, WAIT);
    let (tell, told) = mpsc::channel();
    producer
        .send_with("x", move |message, result| {
            let offset = result.unwrap().position.offset.0;
            tell.send((message, offset)).unwrap();
        })
        .unwrap();
    // The call has returned, the answer is held back.
    assert_eq!(seen.recv_timeout(WAIT), Ok(1));
    assert!(told.try_recv().is_err());
    answer.send(()).unwrap();
    let (message, offset) = told.recv_timeout(WAIT).unwrap();
    assert_eq!((message.body(), offset), (&b"x"[..], 0));

    thread::scope(|scope| {
        let sending = scope.spawn(|| producer.send("y"));
        assert_eq!(seen.recv_timeout(WAIT), Ok(2));
        assert!(!sending.is_finished());
        answer.send(()).unwrap();
        assert_eq!(sending.join().unwrap().unwrap().position.offset.0, 1);
    });
}

#[test]
fn sends_that_nobody_answers_fail_in_order_and_say_how_far_they_came() {
    let address = Peer::play(|peer| {
        // One message is let through, and never answered.
        peer.credit = (1 << 30, 1);
        peer.until_the_end();
    });
    let (_client, producer) = producer(address, SHORT);
    let unknown = SendError::Unknown {
        cause: Cause::TimedOut,
    };
    let not_stored = SendError::NotStored {
        cause: Cause::TimedOut,
    };
    let (tell, told) = mpsc::channel();
    for _ in 0..3 {
        let tell = tell.clone();
        producer
            .send_with("x", move |_, result| {
                tell.send(result.unwrap_err()).unwrap()
            })
            .unwrap();
    }
    assert_eq!(producer.send("y"), Err(not_stored.clone()));
    producer.flush().unwrap();
    let failures: Vec<SendError> = told.try_iter().collect();
    assert_eq!(failures, [unknown, not_stored.clone(), not_stored]);
}

/// A confirmation that came too late was read by nobody, so a refusal was never heard
/// of, and the next one was taken for the whole.
#[test]
fn a_refusal_that_comes_too_late_is_said_by_the_next_confirmation() {
    // With something more to be confirmed, and with nothing.
    for asks_more in [true, false] {
        let (go_on, told) = mpsc::channel::<()>();
        let address = Peer::play(move |peer| {
            let confirmation = |confirm, refusal| Acknowledged {
                confirm,
                refusal,
                ..Acknowledged::default()
            };
            let next = |peer: &mut Peer| loop {
                match peer.step() {
                    Some(0) => {}
                    token => break u32::try_from(token.unwrap_or(0)).unwrap(),
                }
            };
            let first = next(peer);
            told.recv_timeout(WAIT).unwrap();
            let refused = Refusal::InvalidAck.code();
            let late = confirmation(first.into(), refused.into());
            if asks_more {
                let second = next(peer);
                peer.say(CONSUMER, &late, &[]);
                peer.say(CONSUMER, &confirmation(second.into(), 0.into()), &[]);
            } else {
                peer.say(CONSUMER, &late, &[]);
                // Behind it, so that the client has read it when it has read this.
                let delivery = control::Delivery {
                    count: 1.into(),
                    delivery_count: 1.into(),
                    ..control::Delivery::default()
                };
                peer.say(CONSUMER, &delivery, &[]);
                let envelope = encode::Envelope::default();
                let mut frame = vec![0; encode::message_size(0, 0)];
                encode::message(&envelope, &[], &[], &mut frame);
                peer.stream.write_all(&frame).unwrap();
            }
            peer.until_the_end();
        });
        let client = Client::options()
            .timeout(Duration::from_secs(1))
            .reconnect_for(Duration::ZERO)
            .connect(address)
            .unwrap();
        let mut consumer = client.consumer("q").create().unwrap();
        let position = |offset| Position {
            partition: PartitionIndex(0),
            offset: Offset(offset),
        };
        consumer.acknowledge(position(0)).unwrap();
        let error = consumer.confirm().unwrap_err();
        assert!(
            matches!(error, AcknowledgeError::TimedOut { .. }),
            "{error}"
        );
        go_on.send(()).unwrap();
        if asks_more {
            consumer.acknowledge(position(1)).unwrap();
        } else {
            consumer.receive(WAIT).unwrap().unwrap();
        }
        let error = consumer.confirm().unwrap_err();
        let code = Refusal::InvalidAck.code();
        let refusal = AcknowledgeError::Refused {
            refusal: Some(Refusal::InvalidAck),
            code,
        };
        assert_eq!(error, refusal);
        // It is said once.
        assert_eq!(consumer.confirm(), Ok(()));
        drop(consumer);
    }
}

#[test]
fn a_full_window_holds_a_blocking_send_until_its_timeout_and_a_polled_one_not_at_all() {
    let address = Peer::play(|peer| peer.until_the_end());
    let client = Client::options()
        .timeout(WAIT)
        .reconnect_for(Duration::ZERO)
        .connect(address)
        .unwrap();
    let producer = client
        .producer("q")
        .window(2)
        .send_timeout(SHORT)
        .create()
        .unwrap();
    producer.try_send("a").unwrap();
    producer.try_send("b").unwrap();
    assert_eq!(producer.try_send("c"), Err(TrySendError::WouldBlock));
    // Both outcomes are there by then, but nobody takes them.
    assert_eq!(
        producer.send("d"),
        Err(SendError::NotStored {
            cause: Cause::TimedOut
        })
    );
    for sequence in [1, 2] {
        let completion = producer.poll_for(WAIT).unwrap();
        assert_eq!(completion.sequence.0, sequence);
        assert!(matches!(completion.result, Err(SendError::Unknown { .. })));
    }
    assert_eq!(producer.poll_for(WAIT), None, "nothing is outstanding");
}

#[test]
fn a_broken_connection_fails_every_send_once_with_the_cause() {
    let address = Peer::play(|peer| {
        let last = peer.messages(3);
        peer.complete(1, 1);
        assert_eq!(last, 3);
    });
    let (client, producer) = producer(address, WAIT);
    let (tell, told) = mpsc::channel();
    for _ in 0..3 {
        let tell = tell.clone();
        producer
            .send_with("x", move |_, result| tell.send(result.is_ok()).unwrap())
            .unwrap();
    }
    let outcomes: Vec<bool> = (0..3).map(|_| told.recv_timeout(WAIT).unwrap()).collect();
    assert_eq!(outcomes, [true, false, false]);
    assert_eq!(client.end().as_deref(), Some(&LinkEnd::Lost));
    let error = producer.send("late").unwrap_err();
    assert!(
        matches!(
            &error,
            SendError::NotStored {
                cause: Cause::LinkEnded(_)
            }
        ),
        "{error}"
    );
    client.close().unwrap();
}

#[test]
fn a_socket_that_takes_nothing_more_stops_neither_polling_nor_deadlines() {
    let (go_on, told) = mpsc::channel::<()>();
    let address = Peer::play(move |peer| {
        while peer.step() != Some(1) {}
        // Reads nothing until asked to.
        told.recv_timeout(WAIT).unwrap();
        peer.until_the_end();
    });
    let (_client, producer) = producer(address, SHORT);
    let body = vec![7; 1 << 20];
    let mut sent = 0;
    let failure = loop {
        match producer.try_send(&body) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    // The outbox is full: 8 MiB in frames of a little more than one.
    assert_eq!((failure, sent), (TrySendError::WouldBlock, 7));
    let mut not_stored = 0;
    for sequence in 1..=sent {
        let completion = producer.poll_for(WAIT).unwrap();
        assert_eq!(completion.sequence.0, sequence);
        match completion.result.unwrap_err() {
            SendError::NotStored { .. } => not_stored += 1,
            SendError::Unknown { .. } => assert_eq!(not_stored, 0, "in order"),
            other => panic!("{other}"),
        }
    }
    go_on.send(()).unwrap();
}

#[test]
fn a_blocked_sender_and_a_sleeping_receiver_share_the_socket() {
    // The receiver sleeps in poll, for reading; the sender fills the socket, so
    // the receiver has to be woken to wait for room as well.
    let (read_on, told) = mpsc::channel::<()>();
    let address = Peer::play(move |peer| {
        let mut seen = 0;
        while seen == 0 {
            seen = peer.step().unwrap();
        }
        told.recv_timeout(WAIT).unwrap();
        let last = peer.messages(5);
        assert_eq!(last, 6);
        peer.complete(1, 6);
        peer.until_the_end();
    });
    let client = Client::options()
        .timeout(WAIT)
        .spin(Duration::ZERO)
        .connect(address)
        .unwrap();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let (tell, outcomes) = mpsc::channel();
    let body = vec![7; 1 << 20];
    for _ in 0..6 {
        let tell = tell.clone();
        producer
            .send_with(body.clone(), move |_, result| {
                tell.send(result.is_ok()).unwrap()
            })
            .unwrap();
    }
    read_on.send(()).unwrap();
    for _ in 0..6 {
        assert_eq!(outcomes.recv_timeout(WAIT), Ok(true));
    }
}

#[test]
fn the_layout_of_a_completion_run_is_what_the_script_writes() {
    let run = CompletionRun {
        sequence: 3.into(),
        ..CompletionRun::default()
    };
    assert_eq!(
        zerocopy_bytes(&run).len(),
        size_of::<control::CompletionRun>()
    );
}

#[test]
fn a_flush_after_the_end_waits_for_the_listener_and_not_for_the_socket() {
    let address = Peer::play(|peer| {
        peer.messages(1);
    });
    let (client, producer) = producer(address, WAIT);
    let (tell, told) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    producer
        .send_with("x", move |_, result| {
            tell.send(result.is_ok()).unwrap();
            held.recv_timeout(WAIT).unwrap();
        })
        .unwrap();
    assert_eq!(told.recv_timeout(WAIT), Ok(false));
    thread::scope(|scope| {
        let flushing = scope.spawn(|| producer.flush());
        assert_eq!(client.end().as_deref(), Some(&LinkEnd::Lost));
        assert!(!flushing.is_finished());
        release.send(()).unwrap();
        assert_eq!(flushing.join().unwrap(), Ok(()));
    });
}

#[test]
fn sends_that_gather_leave_though_no_answer_comes() {
    let (arrived, seen) = mpsc::channel();
    let address = Peer::play(move |peer| {
        for _ in 0..600 {
            arrived.send(peer.messages(1)).unwrap();
        }
        peer.complete(1, 600);
        peer.until_the_end();
    });
    let (_client, producer) = producer(address, WAIT);
    let mut expected = 0;
    // As a burst, and one by one, each while those before have no answer.
    for burst in [400, 1, 1, 198] {
        for _ in 0..burst {
            producer
                .send_with("x", |_, result| assert!(result.is_ok()))
                .unwrap();
        }
        for _ in 0..burst {
            expected += 1;
            assert_eq!(seen.recv_timeout(WAIT), Ok(expected));
        }
    }
    producer.flush().unwrap();
}
