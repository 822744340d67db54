//! The client against a broker played by hand, frame by frame.
#![allow(clippy::unwrap_used)]

mod hostile;
mod pair;
mod resume;

use core::time::Duration;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::error::Refusal;
use crate::frame::Kind;
use crate::frame::control::CompletionRun;
use crate::frame::control::Fields;
use crate::frame::decode::{self, Frame, Step};
use crate::frame::{MessageHeader, encode, flags, property};
use crate::id::PartitionSequence;
use crate::id::{Epoch, Offset, ProducerId};
use crate::routing;
use crate::time::Wall;

/// Plays the broker's end: writes frames, and takes apart what the client says.
pub(super) struct Script {
    pub(super) client: Client,
    pub(super) now: Now,
    stream: Vec<u8>,
}

/// What the client said, owned.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    Control(Kind, u32, Vec<u8>),
    Message {
        header: MessageHeader,
        body: Vec<u8>,
    },
}

impl Said {
    fn kind(&self) -> Kind {
        match self {
            Self::Control(kind, ..) => *kind,
            Self::Message { .. } => Kind::Message,
        }
    }

    fn fields<F: Fields + Copy>(&self) -> (u32, F) {
        match self {
            Self::Control(kind, subject, rest) if *kind == F::KIND => {
                (*subject, *F::ref_from_prefix(rest).unwrap().0)
            }
            other => panic!("{:?} is not {other:?}", F::KIND),
        }
    }
}

fn second(seconds: u64) -> Monotonic {
    Monotonic(seconds * 1_000_000_000)
}

impl Script {
    pub(super) fn new() -> Self {
        let mut script = Self {
            client: Client::new(Config {
                name: "tester".into(),
                ..Config::default()
            }),
            now: Now {
                monotonic: second(1),
                wall: Wall(1_700_000_000_000_000_000),
            },
            stream: Vec::new(),
        };
        script.client.connected(script.now.monotonic);
        script
    }

    /// A client with an open session.
    pub(super) fn open() -> Self {
        let mut script = Self::new();
        assert_eq!(script.said()[0].kind(), Kind::Hello);
        script.say(0, &welcome(), &[]);
        let (request, _) = script.said()[0].fields::<control::OpenSession>();
        let opened = control::SessionOpened {
            session: 7.into(),
            ..control::SessionOpened::default()
        };
        script.say(request, &opened, &[]);
        assert!(matches!(
            script.client.poll_event(),
            Some(Event::Opened { installation, .. }) if installation == Installation(0xfeed)
        ));
        script
    }

    pub(super) fn say<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let mut bytes = vec![0; size];
        encode::control(subject, fields, tail, &mut bytes);
        self.client.received(&bytes);
    }

    /// Lets everything leave and returns it.
    pub(super) fn said(&mut self) -> Vec<Said> {
        loop {
            let pieces = self.client.pieces();
            let size = pieces.size();
            for slice in pieces.slices() {
                self.stream.extend_from_slice(slice);
            }
            if size == 0 {
                break;
            }
            self.client.sent(size);
        }
        let mut said = Vec::new();
        let mut at = 0;
        while let Step::Frame(frame, size) = decode::decode(&self.stream[at..]).unwrap() {
            said.push(match frame {
                Frame::Message(message) => Said::Message {
                    header: *message.header,
                    body: message.body.to_vec(),
                },
                Frame::Control { subject, .. } => {
                    let length = decode::peek(&self.stream[at..]).unwrap().unwrap().length;
                    let kind = Kind::from_code(self.stream[at + 4]).unwrap();
                    Said::Control(kind, subject, self.stream[at + 16..at + length].to_vec())
                }
            });
            at += size;
        }
        self.stream.drain(..at);
        said
    }

    /// Opens a producer with handle 100 plus the producer's number.
    pub(super) fn producer(
        &mut self,
        request: ProducerRequest,
        opened: &control::ProducerOpened,
    ) -> ProducerKey {
        self.client.open_producer(request).unwrap();
        let said = self.said();
        let (request, _) = said[0].fields::<control::Lookup>();
        self.say(request, &control::Located::default(), &[]);
        let said = self.said();
        let (request, _) = said[0].fields::<control::OpenProducer>();
        self.say(request, opened, &[]);
        match self.client.poll_event() {
            Some(Event::ProducerOpened { producer, .. }) => producer,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn consumer(
        &mut self,
        request: ConsumerRequest,
        handle: u32,
        partitions: u32,
    ) -> ConsumerKey {
        self.client.open_consumer(request).unwrap();
        let said = self.said();
        let (request, _) = said[0].fields::<control::OpenConsumer>();
        let fields = control::ConsumerOpened {
            handle: handle.into(),
            partitions: partitions.into(),
        };
        self.say(request, &fields, &[&vec![0; partitions as usize * 8]]);
        match self.client.poll_event() {
            Some(Event::ConsumerOpened {
                consumer, starts, ..
            }) => {
                assert_eq!(starts.len(), partitions as usize);
                consumer
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn send(
        &mut self,
        producer: ProducerKey,
        body: &[u8],
    ) -> Result<Sequence, SendError> {
        self.send_by(producer, body, Route::Turn, 3)
    }

    pub(super) fn send_by(
        &mut self,
        producer: ProducerKey,
        body: &[u8],
        route: Route,
        seconds: u64,
    ) -> Result<Sequence, SendError> {
        let message = Outgoing {
            properties: &[],
            body,
            route,
            durability: None,
            deadline: self.now.monotonic.after(Duration::from_secs(seconds)),
        };
        self.client.send(self.now, producer, &message)
    }

    pub(super) fn complete(&mut self, handle: u32, runs: &[CompletionRun]) {
        let fields = control::Completions {
            runs: u32::try_from(runs.len()).unwrap().into(),
            ..control::Completions::default()
        };
        self.say(handle, &fields, &[runs.as_bytes()]);
    }

    pub(super) fn deliver(&mut self, handle: u32, partition: u32, offset: u64, bodies: &[&[u8]]) {
        let delivery = control::Delivery {
            partition: partition.into(),
            count: u32::try_from(bodies.len()).unwrap().into(),
            offset: offset.into(),
            delivery_count: 1.into(),
            ..control::Delivery::default()
        };
        self.say(handle, &delivery, &[]);
        for (body, offset) in bodies.iter().zip(offset..) {
            let frame = message_frame(partition, offset, body);
            self.client.received(&frame);
        }
    }

    pub(super) fn advance(&mut self, seconds: u64) {
        self.now.monotonic = self.now.monotonic.after(Duration::from_secs(seconds));
        self.client.expire(self.now.monotonic);
    }

    fn results(&mut self, producer: ProducerKey) -> Vec<(u64, Result<u64, Failure>)> {
        core::iter::from_fn(|| self.client.poll_completion(producer))
            .map(|completion| {
                let result = completion.result.map(|stored| stored.position.offset.0);
                (completion.sequence.0, result)
            })
            .collect()
    }
}

pub(super) fn welcome() -> control::Welcome {
    control::Welcome {
        version: VERSION,
        frame_size_max: limits::FRAME_SIZE_MAX.into(),
        installation: 0xfeed.into(),
        ..control::Welcome::default()
    }
}

pub(super) fn opened(handle: u32, partitions: u32) -> control::ProducerOpened {
    control::ProducerOpened {
        handle: handle.into(),
        epoch: 1.into(),
        producer: 42.into(),
        partitions: partitions.into(),
        window: 1024.into(),
        bytes: (1 << 20).into(),
        messages: 1024.into(),
    }
}

pub(super) fn message_frame(partition: u32, offset: u64, body: &[u8]) -> Vec<u8> {
    let envelope = encode::Envelope {
        handle: Handle(3),
        partition: PartitionIndex(partition),
        producer: ProducerId(42),
        epoch: Epoch(1),
        sequence: Sequence(offset + 1),
        partition_sequence: PartitionSequence(offset + 1),
        timestamp: Wall(5),
        key_hash: None,
        durability: Durability::Memory,
    };
    let mut frame = vec![0; encode::message_size(0, body.len())];
    encode::message(&envelope, &[], body, &mut frame);
    frame[16..24].copy_from_slice(&offset.to_le_bytes());
    frame[24..32].copy_from_slice(&99u64.to_le_bytes());
    frame
}

pub(super) fn run(sequence: u64, count: u32, offset: u64) -> CompletionRun {
    CompletionRun {
        sequence: sequence.into(),
        offset: offset.into(),
        append_time: 77.into(),
        count: count.into(),
        ..CompletionRun::default()
    }
}

pub(super) fn queue(name: &str) -> Destination {
    Destination::parse(name).unwrap()
}

#[test]
fn requests_made_before_the_session_leave_once_it_is_open_and_a_producer_looks_up_first() {
    let mut script = Script::new();
    let request = script
        .client
        .open_producer(ProducerRequest::new(queue("orders")))
        .unwrap();
    assert_eq!(script.said().len(), 1, "only the hello");
    script.say(0, &welcome(), &[]);
    let (session, _) = script.said()[0].fields::<control::OpenSession>();
    script.say(session, &control::SessionOpened::default(), &[]);
    let said = script.said();
    let (subject, lookup) = said[0].fields::<control::Lookup>();
    assert_eq!((said.len(), subject), (1, request.0));
    assert_eq!(lookup.destination, 0);
    script.say(subject, &control::Located::default(), &[]);
    let said = script.said();
    let (subject, open) = said[0].fields::<control::OpenProducer>();
    assert_eq!((subject, open.destination_length.get()), (request.0, 15));
}

#[test]
fn a_send_leaves_with_its_stamps_and_its_completion_names_its_place() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 1));
    assert_eq!(script.send(producer, b"one"), Ok(Sequence(1)));
    assert_eq!(script.send(producer, b"two"), Ok(Sequence(2)));
    let said = script.said();
    let Said::Message { header, body } = &said[1] else {
        panic!("{said:?}");
    };
    assert_eq!(body, b"two");
    assert_eq!(
        (
            header.handle.get(),
            header.producer.get(),
            header.epoch.get()
        ),
        (5, 42, 1)
    );
    assert_eq!(
        (header.sequence.get(), header.partition_sequence.get()),
        (2, 2)
    );
    assert_eq!(header.timestamp.get(), script.now.wall.0);
    script.complete(5, &[run(1, 2, 10)]);
    assert_eq!(script.client.next_completed(), Some(producer));
    let completion = script.client.poll_completion(producer).unwrap();
    assert_eq!(
        completion.result,
        Ok(Stored {
            position: Position {
                partition: PartitionIndex(0),
                offset: Offset(10)
            },
            append_time: Wall(77),
            durability: Durability::Memory,
            epoch: Epoch(1)
        })
    );
    let id = script
        .client
        .message_id(producer, completion.sequence)
        .unwrap();
    assert_eq!(id.to_string(), "ID:0000000000000000000000000000feed-42-1-1");
    assert_eq!(script.results(producer), [(2, Ok(11))]);
    assert_eq!(script.client.next_completed(), None);
}

#[test]
fn sends_take_partitions_in_turn_by_key_and_as_told() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 3));
    for _ in 0..9 {
        script.send(producer, b"").unwrap();
    }
    let hash = routing::key_hash(b"payment");
    script.send_by(producer, b"", Route::Key(hash), 3).unwrap();
    let told = Route::Partition(PartitionIndex(2));
    script.send_by(producer, b"", told, 3).unwrap();
    assert_eq!(
        script.send_by(producer, b"", Route::Partition(PartitionIndex(3)), 3),
        Err(SendError::NoSuchPartition {
            partition: PartitionIndex(3),
            partitions: 3
        })
    );
    let headers: Vec<MessageHeader> = messages(&script.said());
    let partitions: Vec<u32> = headers
        .iter()
        .map(|header| header.partition.get())
        .collect();
    assert_eq!(partitions, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2]);
    assert_eq!(headers[9].key_hash.get(), hash);
    let said = |header: &MessageHeader| header.flags.get();
    assert_eq!(said(&headers[9]), flags::KEYED | flags::FLUSHED);
    assert_eq!(said(&headers[10]), flags::FLUSHED);
    assert_eq!(headers[9].partition_sequence.get(), 4);
    assert_eq!(headers[10].partition_sequence.get(), 4);
}

#[test]
fn a_send_is_as_safe_as_its_producer_says_unless_it_says_so_itself() {
    for (of_all, of_one, flag) in [
        (Durability::Flushed, None, flags::FLUSHED),
        (Durability::Memory, None, 0),
        (
            Durability::Memory,
            Some(Durability::Flushed),
            flags::FLUSHED,
        ),
        (Durability::Flushed, Some(Durability::Memory), 0),
    ] {
        let mut script = Script::open();
        let request = ProducerRequest {
            durability: of_all,
            ..ProducerRequest::new(queue("q"))
        };
        let producer = script.producer(request, &opened(5, 1));
        let message = Outgoing {
            properties: &[],
            body: b"x",
            route: Route::Turn,
            durability: of_one,
            deadline: Monotonic::NEVER,
        };
        script.client.send(script.now, producer, &message).unwrap();
        let headers = messages(&script.said());
        assert_eq!(headers[0].flags.get(), flag);
        let mut stored = run(1, 1, 0);
        stored.durability = 1;
        script.complete(5, &[stored]);
        let completion = script.client.poll_completion(producer).unwrap();
        assert_eq!(completion.result.unwrap().durability, Durability::Flushed);
    }
}

fn messages(said: &[Said]) -> Vec<MessageHeader> {
    said.iter()
        .filter_map(|said| match said {
            Said::Message { header, .. } => Some(*header),
            Said::Control(..) => None,
        })
        .collect()
}

#[test]
fn frames_beyond_the_credit_wait_and_credit_is_asked_for_once() {
    let mut script = Script::open();
    let size = encode::message_size(0, 8) as u64;
    let grant = control::ProducerOpened {
        bytes: (2 * size).into(),
        ..opened(5, 1)
    };
    let producer = script.producer(ProducerRequest::new(queue("q")), &grant);
    for _ in 0..4 {
        script.send(producer, b"12345678").unwrap();
    }
    let said = script.said();
    assert_eq!(messages(&said).len(), 2);
    let (handle, want) = said[2].fields::<control::WantCredit>();
    assert_eq!((handle, want.bytes.get(), said.len()), (5, size, 3));
    script.send(producer, b"12345678").unwrap();
    assert_eq!(script.said(), [], "asked once");
    let credit = control::Credit {
        bytes: (3 * size).into(),
        messages: 1024.into(),
    };
    script.say(5, &credit, &[]);
    let said = script.said();
    assert_eq!(messages(&said).len(), 1);
    assert_eq!(said[1].kind(), Kind::WantCredit, "for another frame");
    // An older grant takes nothing back, and the messages count as well.
    let credit = control::Credit {
        bytes: (9 * size).into(),
        messages: 1.into(),
    };
    script.say(5, &credit, &[]);
    assert_eq!(messages(&script.said()).len(), 2);
}

#[test]
fn the_window_refuses_what_it_cannot_hold_until_outcomes_are_taken() {
    let mut script = Script::open();
    let request = ProducerRequest {
        messages_in_flight_max: 2,
        ..ProducerRequest::new(queue("q"))
    };
    let producer = script.producer(request, &opened(5, 1));
    script.send(producer, b"a").unwrap();
    script.send(producer, b"b").unwrap();
    assert_eq!(script.send(producer, b"c"), Err(SendError::WouldBlock));
    script.said();
    script.complete(5, &[run(1, 1, 0)]);
    assert_eq!(script.send(producer, b"c"), Err(SendError::WouldBlock));
    assert_eq!(script.results(producer), [(1, Ok(0))]);
    assert_eq!(script.send(producer, b"c"), Ok(Sequence(3)));
}

#[test]
fn a_window_that_was_full_opens_again_once_an_eighth_of_it_is_free() {
    let mut script = Script::open();
    let request = ProducerRequest {
        messages_in_flight_max: 64,
        ..ProducerRequest::new(queue("q"))
    };
    let producer = script.producer(request, &opened(5, 1));
    for _ in 0..64 {
        script.send(producer, b"a").unwrap();
    }
    assert_eq!(script.send(producer, b"a"), Err(SendError::WouldBlock));
    script.said();
    script.complete(5, &[run(1, 7, 0)]);
    script.results(producer);
    assert_eq!(script.send(producer, b"a"), Err(SendError::WouldBlock));
    script.complete(5, &[run(8, 1, 7)]);
    script.results(producer);
    for _ in 0..8 {
        script.send(producer, b"a").unwrap();
    }
    assert_eq!(script.send(producer, b"a"), Err(SendError::WouldBlock));
}

#[test]
fn a_full_outbox_and_a_message_too_large_are_told_apart() {
    let mut script = Script::open();
    let request = ProducerRequest {
        bytes_in_flight_max: 1024,
        ..ProducerRequest::new(queue("q"))
    };
    let producer = script.producer(request, &opened(5, 1));
    assert_eq!(
        script.send(producer, &[0; 1000]),
        Err(SendError::TooLarge {
            size: 1000,
            limit: 912
        })
    );
    script.send(producer, &[0; 912]).unwrap();
    assert_eq!(script.send(producer, b""), Err(SendError::WouldBlock));
    let producer = script.producer(ProducerRequest::new(queue("r")), &opened(6, 1));
    let body = vec![1; limits::BODY_SIZE_MAX as usize + 1];
    assert!(matches!(
        script.send(producer, &body),
        Err(SendError::TooLarge {
            limit: 4_194_304,
            ..
        })
    ));
    assert!(script.send(producer, &body[1..]).is_ok());
}

#[test]
fn a_send_past_its_deadline_fails_in_its_place_and_a_late_answer_is_counted() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 1));
    script.send_by(producer, b"slow", Route::Turn, 9).unwrap();
    script.send_by(producer, b"quick", Route::Turn, 3).unwrap();
    script.said();
    assert_eq!(script.client.next_deadline(), second(4));
    script.advance(3);
    assert_eq!(script.results(producer), [], "the first is still open");
    script.complete(5, &[run(1, 2, 0)]);
    assert_eq!(
        script.results(producer),
        [
            (1, Ok(0)),
            (2, Err(Failure::Unknown(Cause::DeadlinePassed)))
        ]
    );
    assert_eq!(script.client.counters().late_completions, 1);
    // A deadline may be early, once.
    script.client.expire(script.client.next_deadline());
    assert_eq!(script.client.next_deadline(), Monotonic::NEVER);
}

#[test]
fn what_has_not_begun_to_leave_is_withdrawn_and_what_follows_stays_dense() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 2));
    // Sequences 1 to 6 on partitions 0 1 0 1 0 1; 3 and 4 give up soon.
    for seconds in [9, 9, 1, 1, 9, 9] {
        script
            .send_by(producer, b"12345678", Route::Turn, seconds)
            .unwrap();
    }
    // The first frame has begun to leave, the others are only on offer.
    assert_eq!(script.client.pieces().slices().len(), 1);
    let begun: Vec<u8> = script.client.pieces().slices()[0][..10].to_vec();
    script.stream.extend_from_slice(&begun);
    script.client.sent(10);
    script.advance(2);
    let said = messages(&script.said());
    let left: Vec<(u64, u32, u64)> = said
        .iter()
        .map(|header| {
            (
                header.sequence.get(),
                header.partition.get(),
                header.partition_sequence.get(),
            )
        })
        .collect();
    assert_eq!(left, [(1, 0, 1), (2, 1, 1), (5, 0, 2), (6, 1, 2)]);
    script.send(producer, b"").unwrap();
    assert_eq!(messages(&script.said())[0].partition_sequence.get(), 3);
    let run_in = |sequence, partition: u32, offset| CompletionRun {
        partition: partition.into(),
        ..run(sequence, 1, offset)
    };
    script.complete(
        5,
        &[
            run_in(1, 0, 0),
            run_in(2, 1, 0),
            run_in(5, 0, 1),
            run_in(6, 1, 1),
        ],
    );
    let gone = Err(Failure::NotStored(Cause::DeadlinePassed));
    assert_eq!(
        script.results(producer),
        [
            (1, Ok(0)),
            (2, Ok(0)),
            (3, gone),
            (4, gone),
            (5, Ok(1)),
            (6, Ok(1))
        ]
    );
}

#[test]
fn a_send_that_waits_for_credit_past_its_deadline_is_not_stored() {
    let mut script = Script::open();
    let grant = control::ProducerOpened {
        messages: 1.into(),
        ..opened(5, 1)
    };
    let producer = script.producer(ProducerRequest::new(queue("q")), &grant);
    script.send(producer, b"a").unwrap();
    script.send(producer, b"b").unwrap();
    script.said();
    script.advance(3);
    assert_eq!(
        script.results(producer),
        [
            (1, Err(Failure::Unknown(Cause::DeadlinePassed))),
            (2, Err(Failure::NotStored(Cause::DeadlinePassed)))
        ]
    );
}

#[test]
fn a_lost_link_fails_what_is_outstanding_in_order_and_says_what_had_left() {
    let mut script = Script::open();
    let grant = control::ProducerOpened {
        messages: 2.into(),
        ..opened(5, 1)
    };
    let producer = script.producer(ProducerRequest::new(queue("q")), &grant);
    for _ in 0..3 {
        script.send(producer, b"a").unwrap();
    }
    script.said();
    script.complete(5, &[run(1, 1, 0)]);
    script.client.closed();
    assert_eq!(
        script.results(producer),
        [
            (1, Ok(0)),
            (2, Err(Failure::Unknown(Cause::LinkEnded))),
            (3, Err(Failure::NotStored(Cause::LinkEnded)))
        ]
    );
    assert_eq!(
        script.client.poll_event(),
        Some(Event::Ended(LinkEnd::Lost))
    );
    assert_eq!(script.send(producer, b"x"), Err(SendError::Closed));
    assert!(script.client.wants_close() && script.client.pieces().is_empty());
}

#[test]
fn refusals_arrive_in_the_place_of_their_send() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 1));
    for _ in 0..3 {
        script.send(producer, b"a").unwrap();
    }
    script.said();
    let refused = CompletionRun {
        refusal: Refusal::InvalidProperties.code().into(),
        ..run(2, 1, 0)
    };
    let unknown = CompletionRun {
        refusal: 999.into(),
        ..run(3, 1, 0)
    };
    script.complete(5, &[run(1, 1, 0), refused, unknown]);
    assert_eq!(
        script.results(producer),
        [
            (1, Ok(0)),
            (2, Err(Failure::Refused(Refusal::InvalidProperties))),
            (3, Err(Failure::RefusedWithCode(999)))
        ]
    );
}

#[test]
fn batches_are_announced_and_keep_to_both_limits() {
    let mut script = Script::open();
    let size = u32::try_from(encode::message_size(0, 8)).unwrap();
    let request = ProducerRequest {
        batch: Some(BatchLimits {
            messages_max: 10,
            bytes_max: 4 * size + 50,
        }),
        ..ProducerRequest::new(queue("q"))
    };
    let producer = script.producer(request, &opened(5, 1));
    for _ in 0..9 {
        script.send(producer, b"12345678").unwrap();
    }
    script
        .send(producer, &vec![0; 4 * size as usize + 51])
        .unwrap();
    let mut batches = Vec::new();
    let mut left = 0;
    for said in script.said() {
        match said.kind() {
            Kind::Batch => {
                assert_eq!(left, 0);
                let (handle, batch) = said.fields::<control::Batch>();
                assert_eq!(handle, 5);
                left = batch.messages.get();
                assert_eq!(batch.bytes.get(), left * size);
                batches.push(left);
            }
            Kind::Message if left > 0 => left -= 1,
            Kind::Message => batches.push(0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(batches, [4, 4, 1, 0], "one beyond the limit travels alone");
}

/// A message and the question for the next one's credit were planned, and nothing
/// had left when a deadline passed elsewhere. The plan was taken back, the question
/// overtook the message, and the credit that it brought was partly used up by that
/// message: the next one waited for ever.
#[test]
fn credit_is_asked_for_behind_the_messages_before_also_after_a_plan_was_taken_back() {
    let mut script = Script::open();
    let grant = control::ProducerOpened {
        bytes: 1000.into(),
        ..opened(5, 1)
    };
    let producer = script.producer(ProducerRequest::new(queue("q")), &grant);
    let other = script.producer(ProducerRequest::new(queue("q")), &opened(6, 1));
    let patient = Route::Turn;
    script.send_by(producer, &[1; 500], patient, 100).unwrap();
    script.send_by(producer, &[2; 5000], patient, 100).unwrap();
    script.send_by(other, b"late", Route::Turn, 1).unwrap();
    assert!(
        !script.client.pieces().is_empty(),
        "planned, and nothing left"
    );
    script.advance(2);
    let said = script.said();
    let (last, before) = said.split_last().unwrap();
    assert_eq!(last.fields::<control::WantCredit>().0, 5);
    assert!(before.iter().any(|said| said.kind() == Kind::Message));
}

#[test]
fn an_announced_batch_is_withdrawn_only_as_long_as_its_header_waits() {
    let story = |begun: usize| {
        let mut script = Script::open();
        let request = ProducerRequest {
            batch: Some(BatchLimits {
                messages_max: 2,
                bytes_max: 65_536,
            }),
            ..ProducerRequest::new(queue("q"))
        };
        let producer = script.producer(request, &opened(5, 1));
        for _ in 0..4 {
            script.send(producer, b"a").unwrap();
        }
        let mut bytes: Vec<u8> = script.client.pieces().slices().concat();
        bytes.truncate(begun);
        script.stream.extend_from_slice(&bytes);
        script.client.sent(begun);
        script.advance(3);
        let said = messages(&script.said()).len();
        (said, script.results(producer))
    };
    let not_stored = Err(Failure::NotStored(Cause::DeadlinePassed));
    let unknown = Err(Failure::Unknown(Cause::DeadlinePassed));
    let (said, results) = story(0);
    assert_eq!(said, 0);
    assert!(results.iter().all(|(_, result)| *result == not_stored));
    for begun in [1, 24, 25, 24 + 120] {
        let (said, results) = story(begun);
        assert_eq!(said, 2, "begun {begun}");
        assert_eq!(
            results,
            [(1, unknown), (2, unknown), (3, not_stored), (4, not_stored)]
        );
    }
}

#[test]
fn any_split_in_and_any_short_count_out_gives_the_same_link() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 1));
    for body in [&b"a"[..], &[7; 300], b""] {
        script.send(producer, body).unwrap();
    }
    // One byte at a time leaves, and control frames queued meanwhile wait for
    // the end of the frame that has begun.
    let mut stream = Vec::new();
    let mut pinged = false;
    loop {
        let pieces = script.client.pieces();
        let Some(slice) = pieces.slices().first() else {
            break;
        };
        stream.push(slice[0]);
        script.client.sent(1);
        if !pinged {
            script.client.ping(script.now.monotonic).unwrap();
            pinged = true;
        }
    }
    script.stream = stream;
    let kinds: Vec<Kind> = script.said().iter().map(Said::kind).collect();
    assert_eq!(
        kinds,
        [Kind::Message, Kind::Message, Kind::Message, Kind::Ping]
    );
    let mut bytes = vec![0; 64];
    let fields = control::Completions {
        runs: 1.into(),
        ..control::Completions::default()
    };
    encode::control(5, &fields, &[run(1, 3, 4).as_bytes()], &mut bytes);
    for byte in bytes {
        script.client.received(&[byte]);
    }
    assert_eq!(
        script.results(producer),
        [(1, Ok(4)), (2, Ok(5)), (3, Ok(6))]
    );
}

#[test]
fn control_frames_overtake_messages_that_have_not_begun_in_the_next_round() {
    let mut script = Script::open();
    let big = ProducerRequest::new(queue("q"));
    let grant = control::ProducerOpened {
        bytes: (8 << 20).into(),
        ..opened(5, 1)
    };
    let producer = script.producer(big, &grant);
    for _ in 0..8 {
        script.send(producer, &[1; 100_000]).unwrap();
    }
    let size = script.client.pieces().size();
    assert!(size < 400_000, "a round is bounded, offered {size}");
    script.client.ping(script.now.monotonic).unwrap();
    let kinds: Vec<Kind> = script.said().iter().map(Said::kind).collect();
    let ping = kinds.iter().position(|kind| *kind == Kind::Ping).unwrap();
    assert!(ping <= 4, "the ping left behind {ping} messages");
}

#[test]
fn messages_are_handed_out_in_order_and_stay_readable_until_the_next() {
    let mut script = Script::open();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 1);
    script.deliver(9, 0, 4, &[b"four", b"five"]);
    let first = script.client.poll_message(consumer).unwrap();
    assert_eq!(first.body(), b"four");
    assert_eq!(first.position().to_string(), "0@4");
    assert_eq!(first.delivery_count(), 1);
    assert_eq!(
        (first.timestamp(), first.append_time()),
        (Wall(5), Wall(99))
    );
    assert_eq!(
        first.id().to_string(),
        "ID:0000000000000000000000000000feed-42-1-5"
    );
    assert_eq!(first.key_hash(), None);
    assert_eq!(
        script.client.poll_message(consumer).unwrap().body(),
        b"five"
    );
    assert!(script.client.poll_message(consumer).is_none());
}

#[test]
fn properties_arrive_as_they_were_sent() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 1));
    let mut properties = Vec::new();
    property::push(&mut properties, "region", "eu").unwrap();
    property::push(&mut properties, "long", &"x".repeat(1024)).unwrap();
    let message = Outgoing {
        properties: &properties,
        body: b"body",
        route: Route::Turn,
        durability: None,
        deadline: Monotonic::NEVER,
    };
    script.client.send(script.now, producer, &message).unwrap();
    let frame: Vec<u8> = script.client.pieces().slices().concat();
    script.client.sent(frame.len());
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 1);
    let delivery = control::Delivery {
        count: 1.into(),
        delivery_count: 3.into(),
        ..control::Delivery::default()
    };
    script.say(9, &delivery, &[]);
    script.client.received(&frame);
    let received = script.client.poll_message(consumer).unwrap();
    let pairs: Vec<_> = received.properties().collect();
    assert_eq!(pairs[0], ("region", "eu"));
    assert_eq!((pairs[1].0, pairs[1].1.len()), ("long", 1024));
    assert_eq!(
        (received.body(), received.delivery_count()),
        (&b"body"[..], 3)
    );
}

#[test]
fn acknowledgements_of_a_round_become_runs_and_the_grant_rides_along() {
    let mut script = Script::open();
    let request = ConsumerRequest {
        messages_max: 8,
        ..ConsumerRequest::new(queue("q"))
    };
    let consumer = script.consumer(request, 9, 2);
    script.deliver(9, 1, 10, &[b"a", b"b", b"c", b"d"]);
    let mut positions = Vec::new();
    while let Some(message) = script.client.poll_message(consumer) {
        positions.push(message.position());
    }
    for position in [positions[0], positions[1], positions[3]] {
        script.client.acknowledge(consumer, position).unwrap();
    }
    let said = script.said();
    let (handle, ack) = said[0].fields::<control::Acknowledge>();
    assert_eq!((handle, ack.partition.get(), ack.runs.get()), (9, 1, 2));
    let Said::Control(_, _, rest) = &said[0] else {
        panic!()
    };
    let runs = <[control::AckRun]>::ref_from_bytes(&rest[16..]).unwrap();
    assert_eq!((runs[0].first.get(), runs[0].count.get()), (10, 2));
    assert_eq!((runs[1].first.get(), runs[1].count.get()), (13, 1));
    let (_, allow) = said[1].fields::<control::Allow>();
    assert_eq!((allow.messages.get(), allow.handed.get()), (12, 4));
    assert_eq!(said.len(), 2);
    assert_eq!(script.said(), []);
}

#[test]
fn what_is_given_back_is_named_at_once_and_says_whether_it_may_rest() {
    let mut script = Script::open();
    let request = ConsumerRequest::new(queue("q"));
    let consumer = script.consumer(request, 9, 2);
    script.deliver(9, 1, 10, &[b"a", b"b", b"c", b"d"]);
    let mut positions = Vec::new();
    while let Some(message) = script.client.poll_message(consumer) {
        positions.push(message.position());
    }
    script.said();
    let client = &mut script.client;
    client.give_back(consumer, positions[0], 2, None).unwrap();
    let rest = Duration::from_millis(70);
    client
        .give_back(consumer, positions[3], 1, Some(rest))
        .unwrap();
    let nowhere = Position {
        partition: PartitionIndex(2),
        ..positions[0]
    };
    assert_eq!(
        client.give_back(consumer, nowhere, 1, None),
        Err(AckError::NoSuchPartition {
            partition: PartitionIndex(2),
            partitions: 2
        })
    );
    let said = script.said();
    assert_eq!(said.len(), 2);
    for (said, (first, count), (options, delay)) in [
        (&said[0], (10, 2), (0, 0)),
        (&said[1], (13, 1), (1, 70_000)),
    ] {
        let (handle, fields) = said.fields::<control::Return>();
        assert_eq!(
            (handle, fields.partition.get(), fields.runs.get()),
            (9, 1, 1)
        );
        assert_eq!((fields.options.get(), fields.delay.get()), (options, delay));
        let Said::Control(_, _, rest) = said else {
            panic!()
        };
        let runs = <[control::AckRun]>::ref_from_bytes(&rest[24..]).unwrap();
        assert_eq!((runs[0].first.get(), runs[0].count.get()), (first, count));
    }
    script.client.close_consumer(consumer).unwrap();
    assert_eq!(
        script.client.give_back(consumer, positions[1], 1, None),
        Err(AckError::Closed)
    );
}

#[test]
fn what_no_partition_can_hold_is_not_settled() {
    let mut script = Script::open();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 2);
    script.deliver(9, 1, Offset::MAX.0 - 1, &[b"a", b"b"]);
    let at = |offset| Position {
        partition: PartitionIndex(1),
        offset: Offset(offset),
    };
    let client = &mut script.client;
    let beyond = |offset| {
        Err(AckError::NoSuchOffset {
            offset: Offset(offset),
        })
    };
    let (last, none) = (Offset::MAX.0, Offset::MAX.0 + 1);
    assert_eq!(client.acknowledge(consumer, at(none)), beyond(none));
    assert_eq!(
        client.acknowledge_through(consumer, at(u64::MAX)),
        beyond(u64::MAX)
    );
    assert_eq!(client.acknowledge_run(consumer, at(last), 2), beyond(last));
    assert_eq!(client.acknowledge_run(consumer, at(1), u64::MAX), beyond(1));
    assert_eq!(client.give_back(consumer, at(last), 2, None), beyond(last));
    assert_eq!(client.acknowledge(consumer, at(last - 1)), Ok(()));
    assert_eq!(client.acknowledge_run(consumer, at(last), 1), Ok(()));
    assert_eq!(client.acknowledge_through(consumer, at(last)), Ok(()));
}

#[test]
fn a_consumer_says_whether_it_shares_its_subscription() {
    let mut script = Script::open();
    for (sharing, code) in [
        (Sharing::Usual, 0),
        (Sharing::One, 1),
        (Sharing::Several, 2),
        (Sharing::Failover, 3),
        (Sharing::KeyShared, 4),
        (Sharing::Browsing, 5),
    ] {
        let request = ConsumerRequest {
            subscription: "s".into(),
            sharing,
            ..ConsumerRequest::new(queue("topic:t"))
        };
        script.client.open_consumer(request).unwrap();
        let said = script.said();
        assert_eq!(said[0].fields::<control::OpenConsumer>().1.sharing, code);
    }
}

#[test]
fn credit_is_raised_in_quarters_of_the_window() {
    let mut script = Script::open();
    let request = ConsumerRequest {
        messages_max: 16,
        ..ConsumerRequest::new(queue("q"))
    };
    let consumer = script.consumer(request, 9, 1);
    let bodies: Vec<&[u8]> = vec![b"x"; 16];
    script.deliver(9, 0, 0, &bodies);
    let mut grants = Vec::new();
    for _ in 0..16 {
        script.client.poll_message(consumer).unwrap();
        for said in script.said() {
            grants.push(said.fields::<control::Allow>().1.messages.get());
        }
    }
    assert_eq!(grants, [20, 24, 28, 32]);
    assert!(script.client.poll_message(consumer).is_none());
    assert_eq!(script.said(), []);
}

#[test]
fn a_cumulative_acknowledgement_reaches_back_and_a_confirmation_comes_as_an_event() {
    let mut script = Script::open();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 1);
    script.deliver(9, 0, 0, &[b"a", b"b", b"c"]);
    while script.client.poll_message(consumer).is_some() {}
    let position = Position {
        partition: PartitionIndex(0),
        offset: Offset(2),
    };
    assert_eq!(script.client.confirm(consumer), Ok(None));
    script
        .client
        .acknowledge_through(consumer, position)
        .unwrap();
    let token = script.client.confirm(consumer).unwrap().unwrap();
    let (_, ack) = script.said()[0].fields::<control::Acknowledge>();
    assert_eq!((ack.options.get(), ack.confirm.get()), (1, token));
    let fields = control::Acknowledged {
        confirm: token.into(),
        refusal: 26.into(),
        ..control::Acknowledged::default()
    };
    script.say(9, &fields, &[]);
    assert_eq!(
        script.client.poll_event(),
        Some(Event::Acknowledged {
            consumer,
            confirm: token,
            refusal: Some(26)
        })
    );
}

/// Messages came back from another consumer and were delivered behind higher ones.
/// Acknowledged through in one round, only the highest offset was said, and what
/// was delivered after it stayed unsettled although it was confirmed.
#[test]
fn cumulative_acknowledgements_become_one_only_while_offsets_rise_as_delivered() {
    let mut script = Script::open();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 1);
    let through = |script: &mut Script, offsets: &[u64]| {
        for offset in offsets {
            let position = Position {
                partition: PartitionIndex(0),
                offset: Offset(*offset),
            };
            script
                .client
                .acknowledge_through(consumer, position)
                .unwrap();
        }
        let said = script.said();
        let Said::Control(Kind::Acknowledge, 9, rest) = &said[0] else {
            panic!("{said:?}")
        };
        rest[size_of::<control::Acknowledge>()..]
            .chunks(size_of::<control::AckRun>())
            .map(|run| control::AckRun::read_from_bytes(run).unwrap().first.get())
            .collect::<Vec<u64>>()
    };
    script.deliver(9, 0, 5, &[b"a", b"b", b"c"]);
    assert_eq!(through(&mut script, &[5, 6]), [6]);
    script.deliver(9, 0, 2, &[b"d"]);
    script.deliver(9, 0, 8, &[b"e"]);
    assert_eq!(through(&mut script, &[7, 2, 2, 8]), [7, 2, 8]);
}

#[test]
fn a_prefetch_is_exchanged_as_a_whole_and_what_it_handed_out_is_counted() {
    let mut script = Script::open();
    let request = ConsumerRequest {
        messages_max: 4,
        ..ConsumerRequest::new(queue("q"))
    };
    let consumer = script.consumer(request, 9, 1);
    script.deliver(9, 0, 0, &[b"a", b"b", b"c"]);
    let mut prefetch = Prefetch::default();
    assert!(prefetch.next_message().is_none());
    script.client.exchange(consumer, &mut prefetch);
    assert!(!script.client.has_message(consumer));
    script.deliver(9, 0, 3, &[b"d"]);
    let mut bodies = Vec::new();
    while let Some(message) = prefetch.next_message() {
        bodies.push(message.body().to_vec());
    }
    assert_eq!(bodies, [b"a", b"b", b"c"]);
    script.client.exchange(consumer, &mut prefetch);
    let (_, allow) = script.said()[0].fields::<control::Allow>();
    assert_eq!((allow.handed.get(), allow.messages.get()), (3, 7));
    let last = prefetch.next_message().unwrap();
    assert_eq!(
        (last.body(), last.position().offset),
        (&b"d"[..], Offset(3))
    );
}

#[test]
fn closing_a_producer_waits_for_its_answers_and_closing_a_consumer_reports_what_it_handed_out() {
    let mut script = Script::open();
    let producer = script.producer(ProducerRequest::new(queue("q")), &opened(5, 1));
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 1);
    script.deliver(9, 0, 0, &[b"a", b"b"]);
    script.client.poll_message(consumer).unwrap();
    script.send(producer, b"a").unwrap();
    let closing = script.client.close_producer(producer).unwrap();
    assert_eq!(script.send(producer, b"b"), Err(SendError::Closed));
    assert_eq!(
        script.client.close_producer(producer),
        Err(RequestError::Closed)
    );
    let kinds: Vec<Kind> = script.said().iter().map(Said::kind).collect();
    assert_eq!(kinds, [Kind::Message]);
    script.complete(5, &[run(1, 1, 0)]);
    let said = script.said();
    let (request, close) = said[0].fields::<control::Close>();
    assert_eq!((request, close.handle.get()), (closing.0, 5));
    assert!(!script.client.forget_producer(producer));
    let closed = control::Closed {
        handle: 5.into(),
        ..control::Closed::default()
    };
    script.say(request, &closed, &[]);
    assert_eq!(
        script.client.poll_event(),
        Some(Event::ProducerClosed {
            request: closing,
            producer
        })
    );
    assert_eq!(script.results(producer), [(1, Ok(0))]);
    assert!(script.client.forget_producer(producer));
    assert_eq!(script.client.poll_completion(producer), None);

    script.client.close_consumer(consumer).unwrap();
    let said = script.said();
    assert_eq!(said[0].fields::<control::Allow>().1.handed.get(), 1);
    let (request, _) = said[1].fields::<control::Close>();
    // A delivery that crossed the close is discarded.
    script.deliver(9, 0, 2, &[b"c"]);
    let closed = control::Closed {
        handle: 9.into(),
        ..control::Closed::default()
    };
    script.say(request, &closed, &[]);
    assert!(matches!(
        script.client.poll_event(),
        Some(Event::ConsumerClosed { .. })
    ));
    assert!(script.client.forget_consumer(consumer));
    assert_eq!(script.client.end(), None);
}

#[test]
fn goodbye_is_said_behind_everything_else() {
    let mut script = Script::open();
    let grant = control::ProducerOpened {
        messages: 1.into(),
        ..opened(5, 1)
    };
    let producer = script.producer(ProducerRequest::new(queue("q")), &grant);
    script.send(producer, b"a").unwrap();
    script.send(producer, b"b").unwrap();
    script.client.goodbye();
    let kinds: Vec<Kind> = script.said().iter().map(Said::kind).collect();
    assert_eq!(kinds, [Kind::Message, Kind::WantCredit]);
    let credit = control::Credit {
        bytes: (1 << 20).into(),
        messages: 2.into(),
    };
    script.say(5, &credit, &[]);
    let kinds: Vec<Kind> = script.said().iter().map(Said::kind).collect();
    assert_eq!(kinds, [Kind::Message, Kind::Goodbye]);
    assert_eq!(script.client.end(), Some(&LinkEnd::Left));
    assert!(script.client.wants_close());
    let results = script.results(producer);
    assert_eq!(results[0], (1, Err(Failure::Unknown(Cause::Left))));
}

/// A consumer took a message out of a window of many and said goodbye without
/// having acknowledged it. The broker had not heard that the message was handed
/// out, so the next consumer got it as if for the first time.
#[test]
fn goodbye_is_said_behind_a_report_of_what_was_handed_out() {
    let mut script = Script::open();
    let consumer = script.consumer(ConsumerRequest::new(queue("q")), 9, 1);
    script.deliver(9, 0, 0, &[b"a", b"b"]);
    assert!(script.client.poll_message(consumer).is_some());
    assert!(script.said().is_empty(), "far from a quarter of the window");
    script.client.goodbye();
    let said = script.said();
    let (handle, report) = said[0].fields::<control::Allow>();
    assert_eq!((handle, report.handed.get()), (9, 1));
    assert_eq!(said[1].kind(), Kind::Goodbye);
}

#[test]
fn lookups_pings_and_stats_are_answered_by_events() {
    let mut script = Script::open();
    let lookup = script.client.lookup(queue("topic:/md/eu")).unwrap();
    let ping = script.client.ping(second(4)).unwrap();
    let stats = script.client.ask_stats().unwrap();
    let said = script.said();
    assert_eq!(said.len(), 3);
    let located = control::Located {
        verdict: 1,
        ..control::Located::default()
    };
    script.say(lookup.0, &located, &[b"10.0.0.2:7420"]);
    let token = said[1].fields::<control::Ping>().1.token;
    script.say(ping.0, &control::Pong { token }, &[]);
    let row = control::StatsRow {
        destination: 1,
        name_length: 6.into(),
        partitions: 3.into(),
        stored: 9.into(),
        ..control::StatsRow::default()
    };
    let numbers = [U64::new(11), U64::new(12)];
    let fields = control::Stats {
        counters: 2.into(),
        rows: 1.into(),
        remaining: 1.into(),
        ..control::Stats::default()
    };
    script.say(
        stats.0,
        &fields,
        &[numbers.as_bytes(), row.as_bytes(), b"/md/eu\0\0"],
    );
    let fields = control::Stats {
        rows: 1.into(),
        ..control::Stats::default()
    };
    script.say(stats.0, &fields, &[row.as_bytes(), b"/md/us"]);
    assert_eq!(
        script.client.poll_event(),
        Some(Event::Located {
            request: lookup,
            location: Location::Elsewhere {
                address: "10.0.0.2:7420".into()
            }
        })
    );
    assert_eq!(
        script.client.poll_event(),
        Some(Event::Pong {
            request: ping,
            asked: second(4)
        })
    );
    let Some(Event::Stats { report, .. }) = script.client.poll_event() else {
        panic!("{:?}", script.client.end());
    };
    assert_eq!(report.counters, [11, 12]);
    let names: Vec<String> = report
        .destinations
        .iter()
        .map(|row| row.destination.to_string())
        .collect();
    assert_eq!(names, ["topic:/md/eu", "topic:/md/us"]);
    assert_eq!(report.destinations[0].stored, 9);
}

#[test]
fn a_refused_request_says_why() {
    let mut script = Script::open();
    let request = script
        .client
        .open_producer(ProducerRequest::new(queue("q")))
        .unwrap();
    script.said();
    let refused = control::Refused {
        refusal: Refusal::Forbidden.code().into(),
        text_length: 4.into(),
        ..control::Refused::default()
    };
    script.say(request.0, &refused, &[b"nope"]);
    assert_eq!(
        script.client.poll_event(),
        Some(Event::Refused {
            request,
            refusal: Some(Refusal::Forbidden),
            code: Refusal::Forbidden.code(),
            text: "nope".into()
        })
    );
}

#[test]
fn a_silent_broker_is_given_up_and_a_farewell_is_reported_with_its_versions() {
    let mut script = Script::new();
    assert_eq!(script.client.next_deadline(), second(4));
    script.advance(3);
    assert_eq!(script.client.end(), Some(&LinkEnd::HelloTimedOut));

    let mut script = Script::new();
    let farewell = control::Farewell {
        refusal: Refusal::VersionUnsupported.code().into(),
        version_min: 2,
        version_max: 3,
        text_length: 0.into(),
    };
    script.say(0, &farewell, &[]);
    assert_eq!(
        script.client.end().unwrap().to_string(),
        "the broker speaks protocol versions 2 to 3, this client 1"
    );
}
