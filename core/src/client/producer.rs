//! A producer on a link: its frames from `send` until the broker answered them,
//! and its sends until the application took their outcomes.
//!
//! ```text
//!            front          left        planned          end
//!   outbox   | unanswered   | on offer  | waits for      |
//!            | by broker    | to socket | credit or turn |
//!
//!   window   | taken in order <- | outcome | - | outcome | - | ... <- send
//! ```
//!
//! A frame is encoded once, straight into the outbox, and stays there until it
//! is answered. A position in the outbox is also the count of frame bytes since
//! the producer was opened, which is how credit is granted.
//!
//! Invariants:
//! - `front <= left <= planned <= end`, all but `left` at frame boundaries.
//! - `planned <= credit_bytes`, and no more frames are planned than
//!   `credit_messages`.
//! - Every place of the window without outcome has its frame in the outbox. A
//!   frame whose place already has one was given up by its deadline after it
//!   had begun to leave; the broker's answer then only counts as late.

use zerocopy::FromBytes;

use super::queue::ByteQueue;
use super::{Cause, ProtocolFault, SendError};
use crate::completion::{CompletionWindow, Settled};
use crate::error::Refusal;
use crate::frame::control::{Batch, CompletionRun, Credit, ProducerOpened, WantCredit};
use crate::frame::{MESSAGE_COVERED_FROM, MESSAGE_HEADER_SIZE, MessageHeader, checksum};
use crate::frame::{encode, padded};
use crate::id::{
    Epoch, Handle, Installation, MessageId, Offset, PartitionIndex, PartitionSequence, Position,
    ProducerId, Sequence,
};
use crate::limits;
use crate::name::Destination;
use crate::routing::{self, RoundRobin};
use crate::time::{Monotonic, Now, Wall};

/// What an application asks a producer for.
#[derive(Clone, Debug)]
pub struct ProducerRequest {
    /// Where the messages go.
    pub destination: Destination,
    /// The producer's name, for who looks at the broker.
    pub name: Box<str>,
    /// Partitions the destination is to have; 0 takes it as it is, or 1.
    pub partitions: u32,
    /// Bytes that the destination keeps of what is settled, if they matter.
    pub retain: Option<u64>,
    /// Bounds on what leaves together.
    pub batch: Option<BatchLimits>,
    /// The most messages on their way; the broker may allow less.
    pub messages_in_flight_max: u32,
    /// The most frame bytes on their way.
    pub bytes_in_flight_max: u32,
}

impl ProducerRequest {
    /// A producer with every default.
    #[must_use]
    pub fn new(destination: Destination) -> Self {
        Self {
            destination,
            name: "".into(),
            partitions: 0,
            retain: None,
            batch: None,
            messages_in_flight_max: limits::IN_FLIGHT_MESSAGES_MAX,
            bytes_in_flight_max: limits::IN_FLIGHT_BYTES_MAX,
        }
    }
}

/// Bounds on each group of messages that leaves together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most messages, at least 1.
    pub messages_max: u32,
    /// The most frame bytes; a message beyond it travels alone.
    pub bytes_max: u32,
}

/// Which partition a send goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// The partition whose turn it is.
    #[default]
    Turn,
    /// The partition that the key's hash leads to; the hash travels along.
    Key(u64),
    /// This partition.
    Partition(PartitionIndex),
}

/// A message as the application hands it over, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// A block made with [`property::push`](crate::frame::property::push).
    pub properties: &'a [u8],
    /// The body, which may be empty.
    pub body: &'a [u8],
    /// Which partition it goes to.
    pub route: Route,
    /// When the send fails if it has no answer.
    pub deadline: Monotonic,
}

/// How safe a stored message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// In the broker's memory.
    Memory,
    /// Confirmed by the storage device.
    Flushed,
}

/// Where and when a message was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub position: Position,
    /// The broker's wall clock at the append.
    pub append_time: Wall,
    /// How safe it is.
    pub durability: Durability,
}

/// Why a send failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The message is not in the broker: it never began to leave.
    NotStored(Cause),
    /// The message may or may not be in the broker.
    Unknown(Cause),
    /// The broker refused it; it is not stored, unless the refusal says so.
    Refused(Refusal),
    /// The broker refused it for a reason that this version does not know.
    RefusedWithCode(u16),
}

pub(super) type Outcome = Result<Stored, Failure>;

/// The outcome of one send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which send.
    pub sequence: Sequence,
    /// What became of it.
    pub result: Result<Stored, Failure>,
}

/// A run of frames to leave together.
pub(super) struct Group {
    pub(super) header: Option<Batch>,
    pub(super) from: u64,
    pub(super) to: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// No further sends; closes once every send is answered.
    Closing,
    /// The broker was asked to close it.
    CloseAsked,
    Ended,
}

/// See the module.
pub(super) struct Producer {
    pub(super) phase: Phase,
    handle: Handle,
    id: ProducerId,
    epoch: Epoch,
    turn: RoundRobin,
    /// The last partition sequence given out, for each partition.
    partition_sequences: Vec<u64>,
    batch: Option<BatchLimits>,
    messages_in_flight_max: u64,

    window: CompletionWindow<Outcome>,
    outbox: ByteQueue,
    left: u64,
    planned: u64,
    /// Frames ever put into the outbox, less those withdrawn.
    messages: u64,
    messages_planned: u64,
    messages_answered: u64,
    credit_bytes: u64,
    credit_messages: u64,
    /// The position for whose frame credit was asked.
    wanted: Option<u64>,
    /// Whether the last send was not taken for want of room.
    is_held: bool,
    /// Whether it stands in the line of producers with frames to plan.
    in_line: bool,
    /// Whether it stands in the list of producers with outcomes.
    pub(super) announced: bool,
}

impl Producer {
    pub(super) fn new(request: &ProducerRequest, opened: &ProducerOpened) -> Self {
        let window = opened
            .window
            .get()
            .min(request.messages_in_flight_max)
            .max(1);
        Self {
            phase: Phase::Open,
            handle: Handle(opened.handle.get()),
            id: ProducerId(opened.producer.get()),
            epoch: Epoch(opened.epoch.get()),
            turn: RoundRobin::default(),
            partition_sequences: vec![0; opened.partitions.get() as usize],
            batch: request.batch,
            messages_in_flight_max: u64::from(window),
            window: CompletionWindow::new(window, Sequence::FIRST),
            outbox: ByteQueue::with_limit(request.bytes_in_flight_max as usize),
            left: 0,
            planned: 0,
            messages: 0,
            messages_planned: 0,
            messages_answered: 0,
            credit_bytes: opened.bytes.get(),
            credit_messages: opened.messages.get(),
            wanted: None,
            is_held: false,
            in_line: false,
            announced: false,
        }
    }

    /// Takes a message: stamps it, encodes it into the outbox and opens its place.
    #[inline]
    pub(super) fn send(
        &mut self,
        now: Now,
        message: &Outgoing<'_>,
        frame_size_max: u32,
    ) -> Result<Sequence, SendError> {
        if self.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        let length = MESSAGE_HEADER_SIZE + message.properties.len() + message.body.len();
        let size = padded(length);
        if length > frame_size_max as usize
            || message.body.len() > limits::BODY_SIZE_MAX as usize
            || message.properties.len() + MESSAGE_HEADER_SIZE
                > limits::HEADER_AND_PROPERTIES_SIZE_MAX as usize
            || size > self.outbox.limit()
        {
            return Err(self.too_large(message, frame_size_max));
        }
        let partitions = self.partitions();
        if let Route::Partition(partition) = message.route
            && partition.0 >= partitions
        {
            return Err(SendError::NoSuchPartition {
                partition,
                partitions,
            });
        }
        if !self.has_room(size) {
            self.is_held = true;
            return Err(SendError::WouldBlock);
        }
        let Some(place) = self.outbox.claim(size) else {
            return Err(SendError::WouldBlock);
        };
        // From here on nothing fails, so counters and turns may move.
        let (partition, key_hash) = match message.route {
            Route::Turn => (self.turn.take(partitions), None),
            Route::Key(hash) => (routing::by_hash(hash, partitions), Some(hash)),
            Route::Partition(partition) => (partition, None),
        };
        let partition_sequence = &mut self.partition_sequences[partition.0 as usize];
        *partition_sequence += 1;
        let sequence = self
            .window
            .open(message.deadline)
            .expect("the window was seen to have room");
        let envelope = encode::Envelope {
            handle: self.handle,
            partition,
            producer: self.id,
            epoch: self.epoch,
            sequence,
            partition_sequence: PartitionSequence(*partition_sequence),
            timestamp: now.wall,
            key_hash,
        };
        let size = encode::message(&envelope, message.properties, message.body, place);
        self.outbox.commit(size);
        self.messages += 1;
        self.is_held = false;
        Ok(sequence)
    }

    /// Whether window and outbox take another frame.
    ///
    /// Once they were full they take the next one only when an eighth is free:
    /// with one frame for each answer, both sides would go on exchanging single
    /// frames, a system call each, where hundreds could share one. TCP avoids
    /// silly windows for the same reason (RFC 1122, 4.2.3.4).
    #[inline]
    fn has_room(&self, size: usize) -> bool {
        let (messages_max, bytes_max) = (self.messages_in_flight_max, self.outbox.limit());
        let (messages, bytes) = if self.is_held {
            ((messages_max / 8).max(1), (bytes_max / 8).max(size))
        } else {
            (1, size)
        };
        let unanswered = self.messages - self.messages_answered;
        self.window.len().max(unanswered) + messages <= messages_max
            && (self.outbox.len() + bytes <= bytes_max || self.outbox.is_empty())
    }

    #[cold]
    fn too_large(&self, message: &Outgoing<'_>, frame_size_max: u32) -> SendError {
        let header = MESSAGE_HEADER_SIZE + message.properties.len();
        if header > limits::HEADER_AND_PROPERTIES_SIZE_MAX as usize {
            return SendError::TooLarge {
                size: header as u64,
                limit: u64::from(limits::HEADER_AND_PROPERTIES_SIZE_MAX),
            };
        }
        let frame = (frame_size_max as usize).min(self.outbox.limit());
        SendError::TooLarge {
            size: message.body.len() as u64,
            limit: frame
                .saturating_sub(header)
                .min(limits::BODY_SIZE_MAX as usize) as u64,
        }
    }

    /// The next group that credit, batch limits and `share` let leave; the first
    /// frame of a group is planned whatever the share.
    #[inline]
    pub(super) fn plan(&mut self, share: usize) -> Option<Group> {
        let (from, end) = (self.planned, self.outbox.end());
        let all = end - from;
        let (to, messages) = if self.batch.is_none()
            && all <= share as u64
            && end <= self.credit_bytes
            && self.messages <= self.credit_messages
        {
            (end, self.messages)
        } else {
            self.walk_group(share as u64)
        };
        if to == from {
            return None;
        }
        let header = self.batch.and_then(|limits| {
            let bytes = u32::try_from(to - from).unwrap_or(u32::MAX);
            let messages = u32::try_from(messages - self.messages_planned).unwrap_or(u32::MAX);
            (bytes <= limits.bytes_max).then(|| Batch {
                messages: messages.into(),
                bytes: bytes.into(),
            })
        });
        self.planned = to;
        self.messages_planned = messages;
        Some(Group { header, from, to })
    }

    /// Where the next group ends, frame by frame, and the messages planned by then.
    fn walk_group(&self, share: u64) -> (u64, u64) {
        let (bytes_max, messages_max) = match self.batch {
            Some(limits) => (
                share.min(u64::from(limits.bytes_max)),
                u64::from(limits.messages_max.max(1)),
            ),
            None => (share, u64::MAX),
        };
        let (mut at, mut messages) = (self.planned, self.messages_planned);
        while at < self.outbox.end() {
            let next = at + self.frame_size(at);
            let taken = messages - self.messages_planned;
            if next > self.credit_bytes || messages >= self.credit_messages || taken >= messages_max
            {
                break;
            }
            if taken > 0 && next - self.planned > bytes_max {
                break;
            }
            at = next;
            messages += 1;
        }
        (at, messages)
    }

    /// The question for credit, if the next frame needs it and it was not asked
    /// for that frame before.
    #[inline]
    pub(super) fn want_credit(&mut self) -> Option<WantCredit> {
        if !self.has_unplanned() || self.is_sendable() || self.wanted == Some(self.planned) {
            return None;
        }
        self.wanted = Some(self.planned);
        Some(WantCredit {
            bytes: self.frame_size(self.planned).into(),
        })
    }

    /// Credit is absolute, and one granted is never taken back.
    pub(super) fn granted(&mut self, credit: &Credit) {
        self.credit_bytes = self.credit_bytes.max(credit.bytes.get());
        self.credit_messages = self.credit_messages.max(credit.messages.get());
    }

    /// Whether the next frame may be planned.
    #[inline]
    pub(super) fn is_sendable(&self) -> bool {
        self.has_unplanned()
            && self.messages_planned < self.credit_messages
            && self.planned + self.frame_size(self.planned) <= self.credit_bytes
    }

    #[inline]
    pub(super) fn has_unplanned(&self) -> bool {
        self.planned < self.outbox.end()
    }

    /// Whether it has to step into the line now: it has something to plan or to
    /// ask, and is not in it.
    #[inline]
    pub(super) fn join_line(&mut self) -> bool {
        let joins = !self.in_line
            && self.has_unplanned()
            && (self.wanted != Some(self.planned) || self.is_sendable());
        self.in_line |= joins;
        joins
    }

    pub(super) fn leave_line(&mut self) {
        self.in_line = false;
    }

    /// Frames up to `position` have left.
    #[inline]
    pub(super) fn left(&mut self, position: u64) {
        self.left = position;
    }

    /// Takes back what was planned from `position` on; true if it steps into the line.
    pub(super) fn unplan(&mut self, position: u64) -> bool {
        let mut at = position;
        while at < self.planned {
            at += self.frame_size(at);
            self.messages_planned -= 1;
            // A question for credit that stood behind it overtakes it now, and the
            // answer would count it twice: it is asked again behind it.
            self.wanted = None;
        }
        self.planned = position;
        self.join_line()
    }

    /// The end of the frame that `position` lies in; itself if it is between frames.
    pub(super) fn frame_boundary(&self, position: u64) -> u64 {
        let mut at = self.outbox.front();
        while at < position {
            at += self.frame_size(at);
        }
        at
    }

    /// The broker's answer to a run of sends.
    #[inline]
    pub(super) fn completed(&mut self, run: &CompletionRun) -> Result<(), ProtocolFault> {
        let (sequence, offset) = (run.sequence.get(), run.offset.get());
        let partition = PartitionIndex(run.partition.get());
        if run.count.get() == 0 {
            return Err(ProtocolFault::EmptyRun);
        }
        for index in 0..u64::from(run.count.get()) {
            let answered = Sequence(sequence.wrapping_add(index));
            let front = self.outbox.front();
            // What has not wholly left cannot have been answered.
            if front >= self.left || front + self.frame_size(front) > self.left {
                return Err(ProtocolFault::NothingToComplete { sequence: answered });
            }
            let header = self.header(front);
            let expected = Sequence(header.sequence.get());
            if answered != expected {
                return Err(ProtocolFault::CompletionOutOfOrder {
                    sequence: answered,
                    expected,
                });
            }
            let outcome = match run.refusal.get() {
                0 => {
                    if header.partition.get() != partition.0 {
                        return Err(ProtocolFault::CompletionElsewhere { sequence: answered });
                    }
                    Ok(Stored {
                        position: Position {
                            partition,
                            offset: Offset(offset.wrapping_add(index)),
                        },
                        append_time: Wall(run.append_time.get()),
                        durability: match run.durability {
                            0 => Durability::Memory,
                            _ => Durability::Flushed,
                        },
                    })
                }
                code => Err(match Refusal::from_code(code) {
                    Some(refusal) => Failure::Refused(refusal),
                    None => Failure::RefusedWithCode(code),
                }),
            };
            self.settle(expected, outcome);
            self.outbox.release(front + self.frame_size(front));
            self.messages_answered += 1;
        }
        Ok(())
    }

    /// Whether some deadline may have passed.
    #[inline]
    pub(super) fn earliest_deadline(&self) -> Monotonic {
        self.window.next_deadline()
    }

    /// Fails every send whose deadline has passed, in its place. What waits
    /// behind the plan is withdrawn; the caller has taken back of the plan what
    /// it could. Cold.
    pub(super) fn expire(&mut self, now: Monotonic) {
        self.withdraw(now);
        self.window
            .expire(now, |_send| Err(Failure::Unknown(Cause::DeadlinePassed)));
    }

    /// Takes every overdue frame out of the line, and stamps what follows to the
    /// same partition anew: partition sequences are dense, whoever gives up.
    fn withdraw(&mut self, now: Monotonic) {
        let (mut from, mut to, end) = (self.planned, self.planned, self.outbox.end());
        let mut withdrawn: Vec<u64> = Vec::new();
        while from < end {
            let size = self.frame_size(from);
            let header = *self.header(from);
            let sequence = Sequence(header.sequence.get());
            let partition = header.partition.get() as usize;
            if self.window.is_overdue(sequence, now) {
                if withdrawn.is_empty() {
                    withdrawn = vec![0; self.partition_sequences.len()];
                }
                withdrawn[partition] += 1;
                self.partition_sequences[partition] -= 1;
                self.messages -= 1;
                self.settle(sequence, Err(Failure::NotStored(Cause::DeadlinePassed)));
            } else {
                let length = usize::try_from(size).expect("a frame lies in memory");
                if from != to {
                    let distance = usize::try_from(from - to).expect("a queue lies in memory");
                    self.outbox
                        .range_mut(to, from + size)
                        .copy_within(distance..distance + length, 0);
                }
                match withdrawn.get(partition) {
                    None | Some(0) => {}
                    Some(less) => restamp(
                        self.outbox.range_mut(to, to + size),
                        header.partition_sequence.get() - less,
                    ),
                }
                to += size;
            }
            from += size;
        }
        self.outbox.truncate(to);
        if !withdrawn.is_empty() {
            // The frame that credit was asked for may be another one now.
            self.wanted = None;
        }
    }

    /// The link is gone: every send without an outcome fails in its place.
    pub(super) fn lost(&mut self, cause: Cause) {
        let unsent = self.frame_boundary(self.left);
        // What begins behind this never began to leave.
        let first_unsent = if unsent < self.outbox.end() {
            Sequence(self.header(unsent).sequence.get())
        } else {
            self.window.next_sequence()
        };
        self.window.fail_all(|send| {
            Err(if send.sequence < first_unsent {
                Failure::Unknown(cause)
            } else {
                Failure::NotStored(cause)
            })
        });
        self.phase = Phase::Ended;
        self.in_line = false;
        self.outbox = ByteQueue::default();
        (self.left, self.planned) = (0, 0);
    }

    /// The next outcome in order.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Completion> {
        let (sequence, result) = self.window.pop()?;
        Some(Completion { sequence, result })
    }

    /// Whether the next outcome is there.
    pub(super) fn has_completion(&self) -> bool {
        self.window.has_next()
    }

    /// Sends whose outcome the application has not taken.
    pub(super) fn outstanding(&self) -> u64 {
        self.window.len()
    }

    /// Sends without an outcome.
    pub(super) fn unanswered(&self) -> u64 {
        self.window.open_count()
    }

    /// Answers that came after their send had failed.
    pub(super) fn late(&self) -> u64 {
        self.window.late_count()
    }

    #[inline]
    fn settle(&mut self, sequence: Sequence, outcome: Outcome) -> Settled {
        self.window
            .settle(sequence, outcome)
            .expect("the frame of every send was stamped with an opened sequence")
    }

    /// Whether the broker has answered every frame.
    pub(super) fn is_answered(&self) -> bool {
        self.outbox.is_empty()
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.partition_sequences.len()).expect("at most PARTITIONS_MAX")
    }

    /// The id of the message with this sequence.
    pub(super) fn message_id(&self, installation: Installation, sequence: Sequence) -> MessageId {
        MessageId {
            installation,
            producer: self.id,
            epoch: self.epoch,
            sequence,
        }
    }

    /// Bytes of the outbox.
    #[inline]
    pub(super) fn frames(&self, from: u64, to: u64) -> &[u8] {
        self.outbox.range(from, to)
    }

    /// The header of the frame at `position`, which this side encoded.
    #[inline]
    fn header(&self, position: u64) -> &MessageHeader {
        let bytes = self.outbox.range(position, self.outbox.end());
        let (header, _) = MessageHeader::ref_from_prefix(bytes)
            .expect("a position in the outbox is the start of a whole frame");
        header
    }

    /// The padded size of the frame at `position`.
    #[inline]
    fn frame_size(&self, position: u64) -> u64 {
        padded(self.header(position).length.get() as usize) as u64
    }
}

/// Gives a frame that has not left another partition sequence.
fn restamp(frame: &mut [u8], partition_sequence: u64) {
    let (header, _) = MessageHeader::mut_from_prefix(frame).expect("the caller passes a frame");
    header.partition_sequence.set(partition_sequence);
    let length = header.length.get() as usize;
    let checksum = checksum::message(&frame[..length]);
    let (header, _) = MessageHeader::mut_from_prefix(frame).expect("the caller passes a frame");
    header.checksum.set(checksum);
}

const _: () = assert!(
    MESSAGE_COVERED_FROM < 56,
    "a partition sequence is covered by the checksum"
);
