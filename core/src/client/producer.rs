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
//! is answered. A position in the outbox is also the count of frame bytes that
//! ever left or will, which is how credit is granted.
//!
//! A connection that is lost takes nothing along: once the producer is attached
//! again it sends everything from `front` on once more, unchanged but for the
//! handle, and the broker knows by the partition sequences what it has. A send
//! that the broker could not take now is tried again in its place, before all
//! that was sent later:
//!
//! ```text
//!   Flowing --- refused for now ---> Draining --- all on their way answered --->
//!     ^                              keeps what is refused        Pausing
//!     '------- refused, then the rest, in their first order <---- waits a little
//! ```
//!
//! A send that is given up where the broker may wait for its partition sequence
//! leaves a frame behind that says so, and takes its turn.
//!
//! Invariants:
//! - `front <= left <= planned <= end`, all but `left` at frame boundaries.
//! - `planned <= credit_bytes`, and no more frames are planned than
//!   `credit_messages`.
//! - Every place of the window without outcome has its frame in the outbox. A
//!   frame whose place already has one was given up by its deadline after it
//!   had begun to leave; the broker's answer then only counts as late.
//! - `front <= uncertain_to <= stamped_to`: the broker may have what lies before
//!   the first, and partition sequences before the second cannot be changed.

use core::time::Duration;

use zerocopy::FromBytes;

use super::queue::ByteQueue;
use super::{Cause, ProtocolFault, SendError};
use crate::catalog::{Dispatch, Retention};
use crate::completion::{CompletionWindow, Settled};
use crate::error::Refusal;
use crate::frame::control::{Batch, CompletionRun, Credit, ProducerOpened, WantCredit};
use crate::frame::{
    Durability, MESSAGE_COVERED_FROM, MESSAGE_HEADER_LENGTH, MESSAGE_HEADER_SIZE, MessageHeader,
    checksum, encode, flags, padded,
};
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
    /// What the destination keeps, if that matters.
    pub retention: Option<Retention>,
    /// When consumers see what is to be flushed, if that matters.
    pub dispatch: Option<Dispatch>,
    /// Whether it is to be the only producer that is attached.
    pub exclusive: bool,
    /// Whether it waits until it can be, if it is to be the only one.
    pub waits: bool,
    /// How safe a message is to be before it completes, if it says nothing itself.
    pub durability: Durability,
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
            retention: None,
            dispatch: None,
            exclusive: false,
            waits: false,
            durability: Durability::Flushed,
            batch: None,
            messages_in_flight_max: limits::IN_FLIGHT_MESSAGES_MAX,
            bytes_in_flight_max: limits::IN_FLIGHT_BYTES_MAX,
        }
    }
}

/// What a refusal means for a send that may have arrived on an earlier connection, or
/// not: whoever is shut out is not told what became of it then.
#[cold]
fn failure(code: u16, refusal: Option<Refusal>, is_uncertain: bool) -> Failure {
    match refusal {
        None => Failure::RefusedWithCode(code),
        Some(Refusal::Fenced | Refusal::NotFound) if is_uncertain => {
            Failure::Unknown(Cause::Fenced)
        }
        // The device may have it all the same.
        Some(Refusal::StorageFailed) => Failure::Unknown(Cause::StorageFailed),
        Some(refusal) => Failure::Refused(refusal),
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
    /// How safe it is to be before it completes, if not as its producer's others.
    pub durability: Option<Durability>,
    /// When the send fails if it has no answer.
    pub deadline: Monotonic,
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
    /// The producer's incarnation when it was first sent, which is part of its id.
    pub epoch: Epoch,
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

/// Whether frames leave as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// They do.
    Flowing,
    /// The broker refused one for now: nothing more leaves until all that is on
    /// its way is answered.
    Draining,
    /// Everything is answered: waits until then, if that is known yet.
    Pausing(Option<Monotonic>),
}

/// The first pause before what was refused for now is tried again; each further
/// one is twice as long, up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// So long the broker may have no room on its disk until what it refuses fails: a file that
/// another one makes room for is there sooner, and an operator is not.
const ROOM_WAIT: Duration = Duration::from_millis(400);

/// See the module.
pub(super) struct Producer {
    pub(super) phase: Phase,
    /// What it was opened with, to attach it again.
    pub(super) request: Box<ProducerRequest>,
    /// Whether the broker knows it on this connection.
    attached: bool,
    /// Whether the broker of this connection can attach nobody any more.
    is_put_off: bool,
    /// Whether the installation knows it.
    is_known: bool,
    handle: Handle,
    id: ProducerId,
    epoch: Epoch,
    turn: RoundRobin,
    /// The last partition sequence given out, for each partition.
    partition_sequences: Vec<u64>,
    batch: Option<BatchLimits>,
    durability: Durability,
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
    /// Where it was attached last: the broker counts credit from there.
    attached_bytes: u64,
    attached_messages: u64,
    /// Frames before this position have begun to leave on an earlier connection.
    uncertain_to: u64,
    /// The partition sequences of frames before this position are fixed.
    stamped_to: u64,
    flow: Flow,
    pause: Duration,
    /// Frames that the broker refused for now, in their order.
    refused: Vec<u8>,
    /// Whether the broker had no room on its disk when it answered last.
    lacks_room: bool,
    /// From when on what it refuses for that fails, if it does not have any until then.
    lacks_room_from: Option<Monotonic>,
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
    pub(super) fn new(request: Box<ProducerRequest>, opened: &ProducerOpened) -> Self {
        let window = opened
            .window
            .get()
            .min(request.messages_in_flight_max)
            .max(1);
        let bytes_max = request.bytes_in_flight_max as usize;
        Self {
            phase: Phase::Open,
            attached: true,
            is_put_off: false,
            is_known: true,
            handle: Handle(opened.handle.get()),
            id: ProducerId(opened.producer.get()),
            epoch: Epoch(opened.epoch.get()),
            turn: RoundRobin::default(),
            partition_sequences: vec![0; opened.partitions.get() as usize],
            batch: request.batch,
            durability: request.durability,
            request,
            messages_in_flight_max: u64::from(window),
            window: CompletionWindow::new(window, Sequence::FIRST),
            outbox: ByteQueue::with_limit(bytes_max),
            left: 0,
            planned: 0,
            messages: 0,
            messages_planned: 0,
            messages_answered: 0,
            credit_bytes: opened.bytes.get(),
            credit_messages: opened.messages.get(),
            attached_bytes: 0,
            attached_messages: 0,
            uncertain_to: 0,
            stamped_to: 0,
            flow: Flow::Flowing,
            pause: PAUSE_MIN,
            refused: Vec::new(),
            lacks_room: false,
            lacks_room_from: None,
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
            durability: message.durability.unwrap_or(self.durability),
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
        let waiting = self.outbox.len() + self.refused.len();
        self.window.len().max(unanswered) + messages <= messages_max
            && (waiting + bytes <= bytes_max || waiting == 0)
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
        if !self.may_leave() {
            return None;
        }
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
        if !self.may_leave()
            || !self.has_unplanned()
            || self.is_sendable()
            || self.wanted == Some(self.planned)
        {
            return None;
        }
        self.wanted = Some(self.planned);
        Some(WantCredit {
            bytes: self.frame_size(self.planned).into(),
        })
    }

    /// Credit is absolute, and one granted is never taken back.
    pub(super) fn granted(&mut self, credit: &Credit) {
        let bytes = self.attached_bytes.saturating_add(credit.bytes.get());
        let messages = self.attached_messages.saturating_add(credit.messages.get());
        self.credit_bytes = self.credit_bytes.max(bytes);
        self.credit_messages = self.credit_messages.max(messages);
    }

    /// Whether frames may leave at all, credit aside.
    #[inline]
    fn may_leave(&self) -> bool {
        self.attached && self.flow == Flow::Flowing
    }

    /// Whether the next frame may be planned.
    #[inline]
    pub(super) fn is_sendable(&self) -> bool {
        self.may_leave()
            && self.has_unplanned()
            && self.messages_planned < self.credit_messages
            && self.planned + self.frame_size(self.planned) <= self.credit_bytes
    }

    /// Whether something has to leave before the broker has heard of every send.
    pub(super) fn has_unsent(&self) -> bool {
        self.has_unplanned() || !self.refused.is_empty()
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
            && self.may_leave()
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
        let refusal = Refusal::from_code(run.refusal.get());
        let for_now = refusal.is_some_and(Refusal::is_retryable);
        for index in 0..u64::from(run.count.get()) {
            let answered = Sequence(sequence.wrapping_add(index));
            let front = self.outbox.front();
            // What has not wholly left cannot have been answered.
            if front >= self.left || front + self.frame_size(front) > self.left {
                return Err(ProtocolFault::NothingToComplete { sequence: answered });
            }
            let header = self.header(front);
            let expected = Sequence(header.sequence.get());
            let given_up = header.is_given_up();
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
                        epoch: Epoch(header.epoch.get()),
                    })
                }
                code => Err(failure(code, refusal, front < self.uncertain_to)),
            };
            let end = front + self.frame_size(front);
            if for_now {
                self.lacks_room |= refusal == Some(Refusal::StoreFull);
                self.keep_refused(front, end);
            } else if !(given_up && refusal == Some(Refusal::GivenUp)) {
                self.settle(expected, outcome);
            }
            self.outbox.release(end);
            self.messages_answered += 1;
        }
        if self.flow == Flow::Draining {
            self.drained();
        } else if !for_now {
            self.pause = PAUSE_MIN;
        }
        if run.refusal.get() == 0 && self.lacks_room {
            (self.lacks_room, self.lacks_room_from) = (false, None);
        }
        Ok(())
    }

    /// Keeps a frame that the broker refused for now. Cold.
    #[cold]
    fn keep_refused(&mut self, from: u64, to: u64) {
        self.refused.extend_from_slice(self.outbox.range(from, to));
        if self.flow == Flow::Flowing {
            self.flow = Flow::Draining;
        }
    }

    /// Begins the pause, if everything on its way is answered.
    fn drained(&mut self) {
        if self.messages_answered == self.messages_planned {
            self.flow = Flow::Pausing(None);
        }
    }

    /// Puts what was refused for now before what was not sent yet, and lets both
    /// leave. Nothing is on its way.
    #[cold]
    fn try_again(&mut self) {
        self.flow = Flow::Flowing;
        let refused = core::mem::take(&mut self.refused);
        let rest = self.outbox.range(self.planned, self.outbox.end()).to_vec();
        self.outbox.truncate(self.planned);
        let size = refused.len() as u64;
        let kept = self.outbox.push(&refused) && self.outbox.push(&rest);
        debug_assert!(kept, "both were in the outbox before");
        let (mut at, end) = (self.planned, self.planned + size);
        while at < end {
            at += self.frame_size(at);
            self.messages += 1;
        }
        if self.uncertain_to > self.planned {
            self.uncertain_to += size;
        }
        self.stamped_to = if self.stamped_to > self.planned {
            self.stamped_to + size
        } else {
            end
        };
        self.wanted = None;
    }

    /// Whether some deadline may have passed, or a pause be over.
    #[inline]
    pub(super) fn earliest_deadline(&self) -> Monotonic {
        match self.flow {
            Flow::Pausing(None) => Monotonic(0),
            Flow::Pausing(Some(until)) => until.min(self.window.next_deadline()),
            _ => self.window.next_deadline(),
        }
    }

    /// Fails every send whose deadline has passed, in its place. What waits
    /// behind the plan is withdrawn; the caller has taken back of the plan what
    /// it could. Cold.
    pub(super) fn expire(&mut self, now: Monotonic) {
        match self.flow {
            Flow::Pausing(None) => {
                self.flow = Flow::Pausing(Some(now.after(self.pause)));
                self.pause = (2 * self.pause).min(PAUSE_MAX);
            }
            Flow::Pausing(Some(until)) if until <= now => {
                if self.lacks_room {
                    self.wait_for_room(now);
                }
                self.try_again();
            }
            _ => {}
        }
        self.give_up(now);
        self.withdraw(now);
        let cause = self.too_late();
        self.window
            .expire(now, |_send| Err(Failure::Unknown(cause)));
    }

    /// Why a send fails whose deadline has passed.
    fn too_late(&self) -> Cause {
        if self.is_put_off {
            Cause::StorageFailed
        } else {
            Cause::DeadlinePassed
        }
    }

    /// What the broker refused for want of room fails once that has lasted, with all that
    /// was refused behind it; what comes later waits as long. Cold.
    #[cold]
    fn wait_for_room(&mut self, now: Monotonic) {
        let from = *self.lacks_room_from.get_or_insert(now.after(ROOM_WAIT));
        if now < from {
            return;
        }
        self.lacks_room_from = None;
        let mut at = 0;
        while at < self.refused.len() {
            let (size, sequence) = frame_at(&self.refused[at..]);
            if !self.window.has_outcome(sequence) {
                self.settle(sequence, Err(Failure::NotStored(Cause::StoreFull)));
            }
            let kept = empty(&mut self.refused[at..at + size]);
            self.refused.drain(at + kept..at + size);
            at += kept;
        }
    }

    /// Fails overdue sends whose partition sequence the broker may wait for: what
    /// stays of each is a header that says so.
    fn give_up(&mut self, now: Monotonic) {
        let mut at = 0;
        while at < self.refused.len() {
            let (size, sequence) = frame_at(&self.refused[at..]);
            if self.window.is_overdue(sequence, now) {
                self.settle(sequence, Err(Failure::NotStored(self.too_late())));
            }
            let size = if self.window.has_outcome(sequence) {
                let kept = empty(&mut self.refused[at..at + size]);
                self.refused.drain(at + kept..at + size);
                kept
            } else {
                size
            };
            at += size;
        }
        if self.planned >= self.stamped_to {
            return;
        }
        let (uncertain_to, cause) = (self.uncertain_to, self.too_late());
        self.give_up_stamped(self.planned, |window, from, header| {
            let sequence = Sequence(header.sequence.get());
            let is_overdue = window.is_overdue(sequence, now);
            is_overdue.then_some(if from < uncertain_to {
                Failure::Unknown(cause)
            } else {
                Failure::NotStored(cause)
            })
        });
    }

    /// The broker was started again. Of what it may have had, and was not to be flushed,
    /// nothing is known any more: it is not sent again, or it might be there twice.
    pub(super) fn restarted(&mut self) {
        let uncertain_to = self.uncertain_to;
        self.give_up_stamped(self.outbox.front(), |_, from, header| {
            let is_lost = from < uncertain_to && header.flags.get() & flags::FLUSHED == 0;
            is_lost.then_some(Failure::Unknown(Cause::Restarted))
        });
    }

    /// Fails sends that are stamped and have not left on this connection, from a position
    /// on: those with a failure. Of each that has failed, now or before, a header stays
    /// that says so.
    fn give_up_stamped(
        &mut self,
        first: u64,
        failure: impl Fn(&CompletionWindow<Outcome>, u64, &MessageHeader) -> Option<Failure>,
    ) {
        let (mut from, mut to, end) = (first, first, self.outbox.end());
        let (uncertain_to, stamped_to) = (self.uncertain_to, self.stamped_to);
        while from < end {
            let size = self.frame_size(from);
            let header = *self.header(from);
            let sequence = Sequence(header.sequence.get());
            if from < stamped_to
                && !self.window.has_outcome(sequence)
                && let Some(failure) = failure(&self.window, from, &header)
            {
                self.settle(sequence, Err(failure));
            }
            let kept = if from < stamped_to && self.window.has_outcome(sequence) {
                empty(self.outbox.range_mut(from, from + size)) as u64
            } else {
                size
            };
            self.outbox.copy_down(from, to, kept);
            from += size;
            to += kept;
            if from <= uncertain_to {
                self.uncertain_to = to;
            }
            if from <= stamped_to {
                self.stamped_to = to;
            }
        }
        self.outbox.truncate(to);
        self.wanted = None;
    }

    /// Takes every overdue frame out of the line that was never sent, and stamps
    /// what follows to the same partition anew: partition sequences are dense,
    /// whoever gives up.
    fn withdraw(&mut self, now: Monotonic) {
        let first = self.planned.max(self.stamped_to);
        let (mut from, mut to, end) = (first, first, self.outbox.end());
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
                self.settle(sequence, Err(Failure::NotStored(self.too_late())));
            } else {
                self.outbox.copy_down(from, to, size);
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

    /// The connection is gone: everything without an answer waits to be sent again.
    pub(super) fn detached(&mut self) {
        let begun = self.frame_boundary(self.left);
        self.uncertain_to = self.uncertain_to.max(begun);
        self.stamped_to = self.stamped_to.max(self.uncertain_to);
        self.attached = false;
        self.in_line = false;
        self.wanted = None;
        (self.left, self.planned) = (self.outbox.front(), self.outbox.front());
        self.messages_planned = self.messages_answered;
        if self.flow == Flow::Draining {
            // What was on its way comes behind what was refused before it.
            self.flow = Flow::Pausing(None);
        }
    }

    /// The broker of this connection can attach nobody any more: the next one is asked, and
    /// everything without an answer waits for it.
    pub(super) fn put_off(&mut self) {
        self.is_put_off = true;
    }

    /// Whether there is nothing more to come on this connection.
    pub(super) fn is_put_off(&self) -> bool {
        self.is_put_off
    }

    /// There is another connection, or about to be.
    pub(super) fn may_attach(&mut self) {
        self.is_put_off = false;
    }

    /// The broker knows the producer again, in a new incarnation.
    pub(super) fn attached(&mut self, opened: &ProducerOpened) {
        self.attached = true;
        self.handle = Handle(opened.handle.get());
        self.epoch = Epoch(opened.epoch.get());
        (self.attached_bytes, self.attached_messages) = (self.planned, self.messages_planned);
        self.credit_bytes = self.attached_bytes.saturating_add(opened.bytes.get());
        self.credit_messages = self.attached_messages.saturating_add(opened.messages.get());
        let (mut at, end) = (self.planned, self.outbox.end());
        while at < end {
            let size = self.frame_size(at);
            readdress(self.outbox.range_mut(at, at + size), self.handle);
            at += size;
        }
        let mut at = 0;
        while at < self.refused.len() {
            let (size, _) = frame_at(&self.refused[at..]);
            readdress(&mut self.refused[at..at + size], self.handle);
            at += size;
        }
    }

    /// The broker of this connection never heard of the producer, and knows it as
    /// another one now. What was sent since that was known is the first it sends.
    pub(super) fn renewed(&mut self, opened: &ProducerOpened) {
        self.is_known = true;
        self.id = ProducerId(opened.producer.get());
        self.partition_sequences = vec![0; opened.partitions.get() as usize];
        self.attached(opened);
        let (id, epoch) = (self.id, self.epoch);
        let (mut at, end) = (self.planned, self.outbox.end());
        while at < end {
            let size = self.frame_size(at);
            let partition = self.header(at).partition.get() % self.partitions();
            let sequence = &mut self.partition_sequences[partition as usize];
            *sequence += 1;
            let frame = self.outbox.range_mut(at, at + size);
            let (header, _) =
                MessageHeader::mut_from_prefix(frame).expect("the outbox has whole frames");
            header.partition.set(partition);
            header.producer.set(id.0);
            header.epoch.set(epoch.0);
            restamp(frame, *sequence);
            at += size;
        }
    }

    /// Everything that is outstanding fails in its place: nobody will ever answer.
    pub(super) fn abandon(&mut self, cause: Cause) {
        // A frame before this position may be in the broker.
        let begun = self.frame_boundary(self.left).max(self.uncertain_to);
        let mut unsent: Vec<Sequence> = Vec::new();
        let mut at = begun.min(self.outbox.end());
        while at < self.outbox.end() {
            unsent.push(Sequence(self.header(at).sequence.get()));
            at += self.frame_size(at);
        }
        let mut at = 0;
        while at < self.refused.len() {
            let (size, sequence) = frame_at(&self.refused[at..]);
            unsent.push(sequence);
            at += size;
        }
        unsent.sort_unstable();
        self.window.fail_all(|send| {
            Err(if unsent.binary_search(&send.sequence).is_ok() {
                Failure::NotStored(cause)
            } else {
                Failure::Unknown(cause)
            })
        });
        self.in_line = false;
        self.refused = Vec::new();
        self.flow = Flow::Flowing;
        self.outbox.clear();
        let end = self.outbox.end();
        (self.left, self.planned) = (end, end);
        (self.uncertain_to, self.stamped_to) = (end, end);
        self.messages_answered = self.messages;
        self.messages_planned = self.messages;
    }

    /// It is over: every send without an outcome fails in its place.
    pub(super) fn lost(&mut self, cause: Cause) {
        self.abandon(cause);
        self.attached = false;
        self.phase = Phase::Ended;
        self.outbox = ByteQueue::default();
        (self.left, self.planned) = (0, 0);
        (self.uncertain_to, self.stamped_to) = (0, 0);
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

    /// Whether the broker has answered every frame, or whoever sent them needs no answer any
    /// more and the broker of this connection gives none.
    pub(super) fn is_answered(&self) -> bool {
        let is_empty = self.outbox.is_empty() && self.refused.is_empty();
        is_empty || (self.is_put_off && self.unanswered() == 0)
    }

    /// Whether the broker knows it on this connection.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    pub(super) fn id(&self) -> ProducerId {
        self.id
    }

    /// Who it is at the broker, if that one knows it.
    pub(super) fn known(&self) -> Option<ProducerId> {
        self.is_known.then_some(self.id)
    }

    /// The broker does not know it.
    pub(super) fn forgotten(&mut self) {
        self.is_known = false;
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
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

/// The padded size and the sequence of the frame at the front of `bytes`, which
/// this side encoded.
fn frame_at(bytes: &[u8]) -> (usize, Sequence) {
    let (header, _) =
        MessageHeader::ref_from_prefix(bytes).expect("the caller passes whole frames");
    let size = padded(header.length.get() as usize);
    (size, Sequence(header.sequence.get()))
}

/// Gives a frame the producer's handle on another link, which no checksum covers.
fn readdress(frame: &mut [u8], handle: Handle) {
    let (header, _) = MessageHeader::mut_from_prefix(frame).expect("the caller passes a frame");
    header.handle.set(handle.0);
}

/// Makes of a frame one that stands for a send that was given up; its size.
fn empty(frame: &mut [u8]) -> usize {
    let (header, _) = MessageHeader::mut_from_prefix(frame).expect("the caller passes a frame");
    header.length.set(MESSAGE_HEADER_LENGTH);
    header.flags.set(flags::GIVEN_UP);
    header.key_hash.set(0);
    header.property_length.set(0);
    let checksum = checksum::message(&frame[..MESSAGE_HEADER_SIZE]);
    let (header, _) = MessageHeader::mut_from_prefix(frame).expect("the caller passes a frame");
    header.checksum.set(checksum);
    MESSAGE_HEADER_SIZE
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
