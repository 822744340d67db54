//! A consumer on a link: what the broker delivered ahead, what the application
//! was handed, and what it settled.
//!
//! ```text
//!   received ---> | prefetch ............... | ---> handed ---> settled
//!                 credit: handed + window          acks, as runs, in the next round
//! ```
//!
//! The prefetch is a value of its own: an application's thread may exchange a
//! full one for an empty one and then take its messages without this machine.
//!
//! A connection that is lost takes the prefetch along, since the broker delivers
//! all of it again, but not what is known to be settled: what the application
//! settled before is settled again when it comes, and not handed out. What it gave
//! back is owed to it until it settles it, whatever it settles through. Whether the
//! broker heard of what was settled is in doubt: the next confirmation that is asked
//! for names all of it again, which settles also what waits to be delivered again, and
//! is refused if another consumer has some of it by now. Nothing of that is in doubt
//! where a subscription ends with its connection, since nobody else is given it.
//!
//! Invariants:
//! - `handed <= received <= granted`, in messages; in bytes the last message
//!   may reach beyond the grant.
//! - A grant is raised in steps of a quarter of the window, so that it travels
//!   with acknowledgements and not alone for each message.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::queue::ByteQueue;
use super::{AckError, ProtocolFault};
use crate::frame::control::{AckRun, Acknowledge, Allow, ConsumerOpened, Delivery, Poll, Return};
use crate::frame::property::{self, Properties};
use crate::frame::{Kind, MessageHeader, Prefix, decode, flags, padded};
use crate::id::{
    Epoch, Handle, Installation, MessageId, Offset, PartitionIndex, Position, ProducerId, Sequence,
};
use crate::limits;
use crate::name::{Destination, DestinationKind};
use crate::time::Wall;

use super::outbound::Outbound;

/// Where a new subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the first message that is kept.
    #[default]
    Earliest,
    /// With the next message that is stored.
    Latest,
    /// With this offset of every partition.
    Offset(Offset),
}

/// How many consumers a subscription has at once, and what of it is whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// As is usual for the destination: several on a queue, one on a topic.
    #[default]
    Usual = 0,
    /// One.
    One = 1,
    /// Several, each message going to one that is free.
    Several = 2,
    /// Several, of which one is active in each partition and the others stand by.
    Failover = 3,
    /// Several, of which each has the messages of some keys.
    KeyShared = 4,
    /// It has none: the consumer is shown what a queue keeps, and takes nothing.
    Browsing = 5,
}

/// What became of the question whether there is anything for a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollState {
    /// The broker has not answered yet.
    Asked,
    /// Whatever there was when it was asked is here.
    Answered,
    /// The connection was lost, it was asked once more since, or what came was settled on
    /// an earlier connection: ask again.
    Lost,
}

/// What an application asks a consumer for.
#[derive(Clone, Debug)]
pub struct ConsumerRequest {
    /// Where the messages come from.
    pub destination: Destination,
    /// The subscription; empty on a queue, or for one that ends with its consumer.
    pub subscription: Box<str>,
    /// The consumer's name, for who looks at the broker.
    pub name: Box<str>,
    /// Where a new subscription starts.
    pub start: Start,
    /// How many consumers the subscription has at once, and what of it is whose.
    pub sharing: Sharing,
    /// The prefetch in messages, at least 1.
    pub messages_max: u32,
    /// The prefetch in frame bytes, at least 1; the last message may reach beyond.
    pub bytes_max: u32,
}

impl ConsumerRequest {
    /// Whether its subscription ends with its connection.
    pub(super) fn is_fleeting(&self) -> bool {
        self.destination.kind == DestinationKind::Topic && self.subscription.is_empty()
    }

    /// A consumer with every default.
    #[must_use]
    pub fn new(destination: Destination) -> Self {
        Self {
            destination,
            subscription: "".into(),
            name: "".into(),
            start: Start::Earliest,
            sharing: Sharing::Usual,
            messages_max: limits::PREFETCH_MESSAGES,
            bytes_max: limits::PREFETCH_BYTES,
        }
    }
}

/// A message as it lies in the prefetch.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    header: &'a MessageHeader,
    properties: &'a [u8],
    body: &'a [u8],
    delivery_count: u32,
    installation: Installation,
}

impl<'a> Received<'a> {
    /// Its place, which is what acknowledgements name.
    #[inline]
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            partition: PartitionIndex(self.header.partition.get()),
            offset: Offset(self.header.offset.get()),
        }
    }

    /// Who it is, equal over retries and redeliveries.
    #[must_use]
    pub fn id(&self) -> MessageId {
        MessageId {
            installation: self.installation,
            producer: ProducerId(self.header.producer.get()),
            epoch: Epoch(self.header.epoch.get()),
            sequence: Sequence(self.header.sequence.get()),
        }
    }

    /// How often it was handed out, this time included.
    #[must_use]
    pub fn delivery_count(&self) -> u32 {
        self.delivery_count
    }

    /// The sender's clock, 0 for none.
    #[must_use]
    pub fn timestamp(&self) -> Wall {
        Wall(self.header.timestamp.get())
    }

    /// The broker's clock at the append.
    #[must_use]
    pub fn append_time(&self) -> Wall {
        Wall(self.header.append_time.get())
    }

    /// The hash of its key, if it has one.
    #[must_use]
    pub fn key_hash(&self) -> Option<u64> {
        (self.header.flags.get() & flags::KEYED != 0).then(|| self.header.key_hash.get())
    }

    /// Its properties, in their order.
    #[must_use]
    pub fn properties(&self) -> Properties<'a> {
        property::iter(self.properties)
    }

    /// Its properties as a block.
    #[must_use]
    pub fn property_block(&self) -> &'a [u8] {
        self.properties
    }

    /// Its body.
    #[inline]
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// Messages with the same delivery count that came together.
struct Run {
    delivery_count: u32,
    left: u32,
}

/// Messages that were delivered and not handed out yet.
#[derive(Default)]
pub struct Prefetch {
    frames: ByteQueue,
    runs: VecDeque<Run>,
    /// Where the message ends that was handed out last; it is kept until the next.
    taken: u64,
    delivery_count: u32,
    /// Handed out since the machine was told.
    handed_messages: u64,
    handed_bytes: u64,
    installation: Installation,
    /// Which connection of the consumer delivered it.
    generation: u32,
}

impl Prefetch {
    /// Hands out the next message, which stays readable until the next call.
    #[inline]
    pub fn next_message(&mut self) -> Option<Received<'_>> {
        self.advance();
        self.current()
    }

    /// Lets go of the message handed out last, and counts the next as handed out.
    #[inline]
    fn advance(&mut self) {
        self.frames.release(self.taken);
        let Some(run) = self.runs.front_mut() else {
            return;
        };
        self.delivery_count = run.delivery_count;
        run.left -= 1;
        if run.left == 0 {
            self.runs.pop_front();
        }
        let (prefix, _) = Prefix::ref_from_prefix(self.frames.bytes())
            .expect("every run has its messages in the queue");
        let size = padded(prefix.length.get() as usize) as u64;
        self.taken = self.frames.front() + size;
        self.handed_messages += 1;
        self.handed_bytes += size;
    }

    /// The message handed out last.
    #[inline]
    fn current(&self) -> Option<Received<'_>> {
        if self.taken == self.frames.front() {
            return None;
        }
        let (header, rest) = MessageHeader::ref_from_prefix(self.frames.bytes())
            .expect("a message that was handed out is a whole frame");
        let (properties, rest) = rest.split_at(header.property_length.get() as usize);
        Some(Received {
            header,
            properties,
            body: &rest[..header.body_length() as usize],
            delivery_count: self.delivery_count,
            installation: self.installation,
        })
    }

    /// Whether a message waits.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Messages handed out since the machine was told.
    #[inline]
    #[must_use]
    pub fn handed(&self) -> u64 {
        self.handed_messages
    }

    /// Which connection of the consumer delivered it: what an earlier one did is
    /// delivered again.
    #[inline]
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Drops what was not handed out; the message handed out last stays.
    fn forget(&mut self) {
        self.runs.clear();
        self.frames.truncate(self.taken.max(self.frames.front()));
        self.handed_messages = 0;
        self.handed_bytes = 0;
    }
}

/// What was settled in one partition since the last round.
#[derive(Default)]
struct Settled {
    /// Single messages, each with all that were delivered before it.
    through: Vec<AckRun>,
    runs: Vec<AckRun>,
    /// One more than the highest offset that was delivered.
    delivered: u64,
    /// Whether a message was delivered behind one with a higher offset: then the
    /// higher of two offsets need not be the later one.
    fell: bool,
    /// Where the subscription stood when it was opened; higher if all up to there is
    /// known to be settled.
    start: u64,
    /// What the application settled one by one, lately.
    kept: Vec<AckRun>,
    /// One more than the highest offset up to which all was settled, but for what is
    /// owed.
    kept_through: u64,
    /// Of a subscription that ends with its connection, what was given back and is not
    /// known to be settled since; and how it came again, if it did.
    owed: BTreeMap<u64, Option<Again>>,
    /// How many of those came again.
    again: u64,
    /// Whether what is delivered may have been settled on an earlier connection.
    filters: bool,
    /// Whether something was settled since the last confirmation that could not be
    /// named again: through a message that others might be given, or in more runs than
    /// are remembered.
    is_nameless: bool,
}

/// What is not known of what was settled on an earlier connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    #[default]
    None,
    /// Whether the broker heard of what is remembered.
    Named,
    /// The same, and of more that is not remembered.
    Nameless,
}

/// When a message came again that had been given back.
#[derive(Clone, Copy, Debug)]
struct Again {
    /// Before those that came again with a higher number.
    number: u64,
    /// Before all from this offset on that came for the first time.
    before: u64,
}

/// As many runs of what was settled are remembered for each partition.
const KEPT_MAX: usize = 512;

impl Settled {
    fn is_empty(&self) -> bool {
        self.through.is_empty() && self.runs.is_empty()
    }

    /// Remembers what is settled, in case the broker never hears of it.
    #[inline]
    fn keep(&mut self, offset: u64, count: u64) {
        match self.kept.last_mut() {
            Some(run) if run.first.get() + run.count.get() == offset => {
                run.count.set(run.count.get() + count);
            }
            _ => {
                if self.kept.len() >= KEPT_MAX {
                    self.compact();
                }
                self.kept.push(AckRun {
                    first: offset.into(),
                    count: count.into(),
                });
            }
        }
    }

    /// Makes room for further runs: puts together what is one, or forgets the oldest
    /// if that is not enough.
    #[cold]
    fn compact(&mut self) {
        self.start = self.unsettled_from();
        let mut merged = self.kept.clone();
        merged.sort_unstable_by_key(|run| run.first.get());
        merged.dedup_by(|next, run| {
            let (first, end) = (run.first.get(), run.first.get() + run.count.get());
            let touches = next.first.get() <= end;
            if touches {
                let end = end.max(next.first.get() + next.count.get());
                run.count.set(end - first);
            }
            touches
        });
        if merged.len() <= KEPT_MAX / 2 {
            self.kept = merged;
        } else {
            self.kept.drain(..KEPT_MAX / 2);
            self.is_nameless = true;
        }
    }

    /// Adds what is remembered to what is to be told, each once however often this is
    /// done before it is told.
    #[cold]
    fn name_kept(&mut self) {
        let end = |run: &AckRun| run.first.get() + run.count.get();
        let kept = &self.kept;
        self.runs.retain(|run| {
            let covers = |kept: &AckRun| kept.first <= run.first && end(run) <= end(kept);
            !kept.iter().any(covers)
        });
        self.runs.extend_from_slice(kept);
    }

    /// Behind the highest offset of which more is known than that it was delivered.
    fn kept_end(&self) -> u64 {
        let ends = self
            .kept
            .iter()
            .map(|run| run.first.get() + run.count.get());
        let owed = self.owed.last_key_value().map(|(offset, _)| offset + 1);
        ends.chain(owed).max().unwrap_or(0).max(self.kept_through)
    }

    /// Notes that messages were given back.
    fn owe(&mut self, offset: u64, count: u64) {
        // No more are held than a broker hands out before some are settled.
        let count = count.min(limits::UNSETTLED_MAX.into());
        for offset in offset..offset.saturating_add(count) {
            self.owed.insert(offset, None);
        }
    }

    /// Notes that a message came that is perhaps owed; `first` if it is for the first
    /// time on this connection.
    #[cold]
    fn came(&mut self, offset: u64, first: bool) {
        if let Some(owed) = self.owed.get_mut(&offset) {
            self.again += 1;
            *owed = Some(Again {
                number: self.again,
                before: if first { offset + 1 } else { self.delivered },
            });
        }
    }

    /// What is owed is settled, if it lies in this range.
    #[cold]
    fn pay(&mut self, offset: u64, count: u64) {
        let end = offset.saturating_add(count);
        self.owed.retain(|owed, _| !(offset..end).contains(owed));
    }

    /// What is owed is settled, if it came before this message did.
    fn pay_through(&mut self, offset: u64) {
        let last = self.owed.get(&offset).copied();
        self.owed.retain(|_, again| match (*again, last) {
            (None, _) | (_, Some(None)) => true,
            (Some(again), Some(Some(last))) => again.number > last.number,
            (Some(again), None) => again.before > offset,
        });
    }

    /// Whether the application is known to have settled it.
    fn is_kept(&self, offset: u64) -> bool {
        self.kept
            .iter()
            .any(|run| offset >= run.first.get() && offset - run.first.get() < run.count.get())
    }

    /// The lowest offset that is not known to be settled.
    fn unsettled_from(&self) -> u64 {
        let mut from = self.start.max(self.kept_through);
        let mut kept = self.kept.clone();
        kept.sort_unstable_by_key(|run| run.first.get());
        for run in kept {
            if run.first.get() <= from {
                from = from.max(run.first.get() + run.count.get());
            }
        }
        let owed = self.owed.first_key_value().map(|(offset, _)| *offset);
        owed.map_or(from, |owed| from.min(owed))
    }
}

/// Where each partition starts, as the broker says it to a consumer it opened.
pub(super) fn starts_of<'a>(
    fields: &ConsumerOpened,
    tail: &'a [u8],
) -> Result<&'a [U64], ProtocolFault> {
    let out_of_range = |field, value| ProtocolFault::OutOfRange {
        kind: Kind::ConsumerOpened,
        field,
        value,
    };
    let starts = <[U64]>::ref_from_bytes(tail)
        .map_err(|_| out_of_range("partitions", fields.partitions.get().into()))?;
    match starts.iter().find(|start| start.get() > Offset::MAX.0) {
        Some(start) => Err(out_of_range("start", start.get())),
        None => Ok(starts),
    }
}

fn settled_of(starts: &[U64]) -> Vec<Settled> {
    let of = |start: &U64| Settled {
        start: start.get(),
        ..Settled::default()
    };
    starts.iter().map(of).collect()
}

/// An acknowledgement reaches back to all that was delivered before.
const THROUGH: u32 = 1;
/// An acknowledgement names what was settled on an earlier connection too.
const AGAIN: u32 = 2;

/// As many runs as a partition gathers before they become a frame.
const RUNS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    CloseAsked,
    Ended,
}

/// See the module.
pub(super) struct Consumer {
    pub(super) phase: Phase,
    /// What it was opened with, to open it again.
    pub(super) request: Box<ConsumerRequest>,
    /// Whether the broker knows it on this connection.
    attached: bool,
    /// Whether the installation knows its subscription.
    is_known: bool,
    /// Counts its connections.
    generation: u32,
    handle: Handle,
    prefetch: Prefetch,
    messages_max: u64,
    bytes_max: u64,
    granted_messages: u64,
    granted_bytes: u64,
    received_messages: u64,
    received_bytes: u64,
    handed_messages: u64,
    handed_bytes: u64,
    handed_reported: u64,
    settled: Vec<Settled>,
    /// Partitions with something settled.
    dirty: Vec<u32>,
    /// The last confirmation asked for, and the last received.
    confirm_asked: u32,
    confirms_open: u32,
    /// What was told last, and no confirmation asked for it or anything behind it: in
    /// which partition, and whether it is meant with all before it.
    told: Option<(u32, AckRun, bool)>,
    doubt: Doubt,
    /// Confirmations asked for that only go with the next one that is asked for, which
    /// speaks for them too.
    silent: Vec<u32>,
    /// Why one of those was refused.
    refused: Option<u16>,
    /// Asked last whether there is anything, and answered last.
    poll_asked: u32,
    poll_answered: u32,
    /// Whether something came since it asked that nobody is handed.
    left_out: bool,
    /// Whether it stands in the list of consumers with something to say.
    pub(super) listed: bool,
}

impl Consumer {
    pub(super) fn new(
        request: Box<ConsumerRequest>,
        handle: Handle,
        starts: &[U64],
        installation: Installation,
    ) -> Self {
        let settled = settled_of(starts);
        // The last message may reach beyond the window.
        let limit = request.bytes_max as usize + limits::FRAME_SIZE_MAX as usize;
        Self {
            phase: Phase::Open,
            handle,
            prefetch: Prefetch {
                frames: ByteQueue::with_limit(limit),
                installation,
                ..Prefetch::default()
            },
            attached: true,
            is_known: true,
            generation: 0,
            messages_max: u64::from(request.messages_max.max(1)),
            bytes_max: u64::from(request.bytes_max.max(1)),
            granted_messages: u64::from(request.messages_max.max(1)),
            granted_bytes: u64::from(request.bytes_max.max(1)),
            request,
            received_messages: 0,
            received_bytes: 0,
            handed_messages: 0,
            handed_bytes: 0,
            handed_reported: 0,
            settled,
            dirty: Vec::new(),
            confirm_asked: 0,
            confirms_open: 0,
            told: None,
            doubt: Doubt::None,
            silent: Vec::new(),
            refused: None,
            poll_asked: 0,
            poll_answered: 0,
            left_out: false,
            listed: false,
        }
    }

    /// The head of a run of messages: it has to fit the grant.
    pub(super) fn announced(&mut self, delivery: &Delivery) -> Result<(), ProtocolFault> {
        if delivery.partition.get() as usize >= self.settled.len() {
            return Err(ProtocolFault::NoSuchPartition {
                partition: PartitionIndex(delivery.partition.get()),
            });
        }
        let count = u64::from(delivery.count.get());
        if count > self.granted_messages - self.received_messages {
            return Err(ProtocolFault::CreditExceeded {
                handle: self.handle,
            });
        }
        let settled = &mut self.settled[delivery.partition.get() as usize];
        let (first, end) = (
            delivery.offset.get(),
            delivery.offset.get().saturating_add(count),
        );
        settled.fell |= first < settled.delivered;
        settled.delivered = settled.delivered.max(end);
        Ok(())
    }

    /// One message of the run; says whether there is news for the broker at once,
    /// since nobody waits for a message that was settled before.
    #[inline]
    pub(super) fn delivered(
        &mut self,
        message: &decode::Message<'_>,
        delivery_count: u32,
    ) -> Result<bool, ProtocolFault> {
        let exceeded = ProtocolFault::CreditExceeded {
            handle: self.handle,
        };
        if self.received_bytes >= self.granted_bytes
            || self.received_messages >= self.granted_messages
        {
            return Err(exceeded);
        }
        self.received_messages += 1;
        self.received_bytes += message.bytes.len() as u64;
        if self.was_settled(message, delivery_count) {
            self.left_out = true;
            self.handed_messages += 1;
            self.handed_bytes += message.bytes.len() as u64;
            return Ok(true);
        }
        if delivery_count > 1
            && let Some(settled) = self
                .settled
                .get_mut(message.header.partition.get() as usize)
        {
            settled.came(message.header.offset.get(), false);
        }
        if self.phase != Phase::Open {
            // Delivered before the broker heard that nobody wants it.
            return Ok(false);
        }
        if !self.prefetch.frames.push(message.bytes) {
            return Err(exceeded);
        }
        match self.prefetch.runs.back_mut() {
            Some(run) if run.delivery_count == delivery_count => run.left += 1,
            _ => self.prefetch.runs.push_back(Run {
                delivery_count,
                left: 1,
            }),
        }
        Ok(false)
    }

    /// Whether the application settled the message on an earlier connection, and
    /// the broker may not know: then it is settled again.
    #[inline]
    fn was_settled(&mut self, message: &decode::Message<'_>, delivery_count: u32) -> bool {
        let index = message.header.partition.get();
        let Some(settled) = self.settled.get_mut(index as usize) else {
            return false;
        };
        if !settled.filters {
            return false;
        }
        let offset = message.header.offset.get();
        let fleeting = self.request.is_fleeting();
        let is_behind =
            offset < settled.start.max(settled.kept_through) && !settled.owed.contains_key(&offset);
        if settled.is_kept(offset) || fleeting && is_behind {
            // It is remembered as it is: once more would push others out.
            if self.phase == Phase::Open {
                self.note_settled(index, offset, 1);
            }
            return true;
        }
        if delivery_count == 1 {
            settled.came(offset, true);
        }
        // What returned comes before what is fresh. A broker that was killed has forgotten
        // which that is.
        settled.filters = delivery_count > 1 || offset < settled.kept_end();
        false
    }

    /// Moves on to the next message, and counts it as handed out.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.prefetch.advance();
        self.count_handed();
    }

    /// The message handed out last.
    #[inline]
    pub(super) fn current(&self) -> Option<Received<'_>> {
        self.prefetch.current()
    }

    /// Counts what was handed out of `prefetch`, and gives it what is here if it
    /// has nothing left.
    pub(super) fn exchange(&mut self, prefetch: &mut Prefetch) {
        self.count(prefetch);
        if prefetch.generation != self.generation {
            // All of it comes again.
            prefetch.forget();
        }
        if prefetch.is_empty() && !self.prefetch.is_empty() {
            prefetch.frames.release(prefetch.taken);
            prefetch.frames.set_limit(self.prefetch.frames.limit());
            prefetch.installation = self.prefetch.installation;
            prefetch.generation = self.prefetch.generation;
            core::mem::swap(prefetch, &mut self.prefetch);
            self.count(prefetch);
        }
    }

    /// Moves what was handed out of `prefetch` into the count.
    pub(super) fn count(&mut self, prefetch: &mut Prefetch) {
        let messages = core::mem::take(&mut prefetch.handed_messages);
        let bytes = core::mem::take(&mut prefetch.handed_bytes);
        // What an earlier connection delivered counted there.
        if prefetch.generation == self.generation {
            self.handed_messages += messages;
            self.handed_bytes += bytes;
        }
    }

    /// Moves what was handed out of the own prefetch into the count.
    #[inline]
    fn count_handed(&mut self) {
        self.handed_messages += core::mem::take(&mut self.prefetch.handed_messages);
        self.handed_bytes += core::mem::take(&mut self.prefetch.handed_bytes);
    }

    /// Notes that messages with consecutive offsets are settled.
    #[inline]
    pub(super) fn settle(&mut self, position: Position, count: u64) -> Result<(), AckError> {
        let index = position.partition.0;
        let attached = self.attached;
        let settled = self.entry(position, count)?;
        let offset = position.offset.0;
        settled.keep(offset, count);
        if !settled.owed.is_empty() {
            settled.pay(offset, count);
        }
        if attached {
            self.note_settled(index, offset, count);
        }
        Ok(())
    }

    /// Notes what the broker is to be told.
    #[inline]
    fn note_settled(&mut self, index: u32, offset: u64, count: u64) {
        let settled = &mut self.settled[index as usize];
        if settled.is_empty() {
            self.dirty.push(index);
        }
        match settled.runs.last_mut() {
            Some(run) if run.first.get() + run.count.get() == offset => {
                run.count.set(run.count.get() + count);
            }
            _ => settled.runs.push(AckRun {
                first: offset.into(),
                count: count.into(),
            }),
        }
    }

    /// Notes that a message and all before it in its partition are settled.
    pub(super) fn settle_through(&mut self, position: Position) -> Result<(), AckError> {
        let index = position.partition.0;
        let (attached, fleeting) = (self.attached, self.request.is_fleeting());
        let settled = self.entry(position, 1)?;
        let offset = position.offset.0;
        settled.kept_through = settled.kept_through.max(offset + 1);
        settled.pay_through(offset);
        settled.is_nameless |= !fleeting;
        if !attached {
            return Ok(());
        }
        let was_empty = settled.is_empty();
        match settled.through.last_mut() {
            Some(last) if !settled.fell => last.first.set(last.first.get().max(offset)),
            Some(last) if last.first.get() == offset => {}
            _ => settled.through.push(AckRun {
                first: offset.into(),
                count: 1.into(),
            }),
        }
        if was_empty {
            self.dirty.push(index);
        }
        Ok(())
    }

    /// Gives messages back, at once or after `delay`. What another connection
    /// delivered has returned with it.
    pub(super) fn give_back(
        &mut self,
        outbound: &mut Outbound,
        position: Position,
        count: u64,
        delay: Option<Duration>,
    ) -> Result<(), AckError> {
        let index = position.partition.0;
        let (attached, fleeting) = (self.attached, self.request.is_fleeting());
        let handle = self.handle;
        let settled = self.entry(position, count)?;
        if !attached {
            if fleeting {
                settled.owe(position.offset.0, count);
            }
            return Ok(());
        }
        if !outbound.has_room() {
            return Err(AckError::WouldBlock);
        }
        let micros = delay.map_or(0, |delay| delay.as_micros());
        let fields = Return {
            partition: index.into(),
            runs: 1.into(),
            options: u32::from(delay.is_some()).into(),
            delay: u64::try_from(micros).unwrap_or(u64::MAX).into(),
            ..Return::default()
        };
        let run = AckRun {
            first: position.offset.0.into(),
            count: count.into(),
        };
        if !outbound.control(handle.0, &fields, &[run.as_bytes()]) {
            return Err(AckError::WouldBlock);
        }
        if fleeting {
            settled.owe(position.offset.0, count);
        }
        Ok(())
    }

    /// What is known of the partition in which `count` messages from `position` on
    /// are named.
    fn entry(&mut self, position: Position, count: u64) -> Result<&mut Settled, AckError> {
        if self.phase != Phase::Open {
            return Err(AckError::Closed);
        }
        let (index, offset) = (position.partition.0, position.offset);
        if offset > Offset::MAX || count > Offset::MAX.0 - offset.0 + 1 {
            return Err(AckError::NoSuchOffset { offset });
        }
        let partitions = u32::try_from(self.settled.len()).unwrap_or(u32::MAX);
        self.settled
            .get_mut(index as usize)
            .ok_or(AckError::NoSuchPartition {
                partition: PartitionIndex(index),
                partitions,
            })
    }

    /// Whether so many runs gathered in the partition that they should become a frame.
    #[inline]
    pub(super) fn has_many(&self, partition: PartitionIndex) -> bool {
        self.settled
            .get(partition.0 as usize)
            .is_some_and(|settled| {
                settled.runs.len() >= RUNS_MAX || settled.through.len() >= RUNS_MAX
            })
    }

    /// Whether the grant is a quarter of the window behind.
    #[inline]
    pub(super) fn owes_credit(&self) -> bool {
        let messages = self.handed_messages + self.messages_max - self.granted_messages;
        let bytes = (self.handed_bytes + self.bytes_max).saturating_sub(self.granted_bytes);
        messages >= (self.messages_max / 4).max(1) || bytes >= (self.bytes_max / 4).max(1)
    }

    /// Whether there is something to say in the next round.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.phase == Phase::Open && self.attached && (!self.dirty.is_empty() || self.owes_credit())
    }

    /// Names what is in doubt again, for [`Consumer::speak`] to have it confirmed, or
    /// else the last of what was told before; not all of it if that is impossible, which
    /// is said once.
    pub(super) fn settle_anew(&mut self) -> Result<(), AckError> {
        if self.doubt == Doubt::None {
            if let Some((index, run, through)) = self.told
                && self.dirty.is_empty()
            {
                let settled = &mut self.settled[index as usize];
                let runs = if through {
                    &mut settled.through
                } else {
                    &mut settled.runs
                };
                runs.push(run);
                self.dirty.push(index);
            }
            return Ok(());
        }
        if self.doubt == Doubt::Nameless {
            self.doubt = Doubt::Named;
            return Err(AckError::Disconnected);
        }
        for (settled, index) in self.settled.iter_mut().zip(0..) {
            if !settled.kept.is_empty() {
                if settled.is_empty() {
                    self.dirty.push(index);
                }
                settled.name_kept();
            }
        }
        Ok(())
    }

    /// Whether [`Consumer::speak`] has said all that was settled.
    pub(super) fn has_told(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Queues acknowledgements and the grant. With `confirm`, the last
    /// acknowledgement asks to be confirmed: its token. While something is in doubt
    /// all of them ask, and the last confirmation speaks for all. Nothing is lost if
    /// the backlog is full, only later.
    pub(super) fn speak(&mut self, outbound: &mut Outbound, confirm: bool) -> Option<u32> {
        let mut asked = None;
        while let Some(index) = self.dirty.last().copied() {
            let is_last = self.dirty.len() == 1 || self.doubt != Doubt::None;
            let settled = &mut self.settled[index as usize];
            let token = if confirm && is_last {
                self.confirm_asked.wrapping_add(1).max(1)
            } else {
                0
            };
            if !settled.through.is_empty() {
                let count = u32::try_from(settled.through.len()).unwrap_or(u32::MAX);
                let fields = Acknowledge {
                    partition: index.into(),
                    runs: count.into(),
                    options: THROUGH.into(),
                    confirm: if settled.runs.is_empty() { token } else { 0 }.into(),
                };
                if !outbound.control(self.handle.0, &fields, &[settled.through.as_bytes()]) {
                    return asked;
                }
                self.told = settled.through.pop().map(|last| (index, last, true));
                settled.through.clear();
            }
            if !settled.runs.is_empty() {
                let count = u32::try_from(settled.runs.len()).unwrap_or(u32::MAX);
                let again = if self.doubt == Doubt::None { 0 } else { AGAIN };
                let fields = Acknowledge {
                    partition: index.into(),
                    runs: count.into(),
                    options: again.into(),
                    confirm: token.into(),
                };
                if !outbound.control(self.handle.0, &fields, &[settled.runs.as_bytes()]) {
                    return asked;
                }
                self.told = settled.runs.pop().map(|last| (index, last, false));
                settled.runs.clear();
            }
            if token != 0 {
                self.told = None;
                self.confirm_asked = token;
                self.confirms_open += 1;
                if self.doubt != Doubt::None {
                    self.silent.push(token);
                }
                asked = Some(token);
            }
            self.dirty.pop();
        }
        if asked.is_some() {
            // It speaks for those before it, now that all of it is said.
            self.silent.pop();
        }
        if self.owes_credit() {
            self.grant(outbound);
        }
        asked
    }

    /// Tells the broker what was handed out, and grants as much anew.
    pub(super) fn grant(&mut self, outbound: &mut Outbound) {
        let messages = self
            .granted_messages
            .max(self.handed_messages + self.messages_max);
        let bytes = self.granted_bytes.max(self.handed_bytes + self.bytes_max);
        let fields = Allow {
            messages: messages.into(),
            bytes: bytes.into(),
            handed: self.handed_messages.into(),
        };
        if outbound.control(self.handle.0, &fields, &[]) {
            self.granted_messages = messages;
            self.granted_bytes = bytes;
            self.handed_reported = self.handed_messages;
        }
    }

    /// Asks whether there is anything: under which number; none if the backlog is full.
    pub(super) fn poll(&mut self, outbound: &mut Outbound) -> Option<u32> {
        let token = self.poll_asked.wrapping_add(1);
        let fields = Poll {
            token: token.into(),
            ..Poll::default()
        };
        let queued = outbound.control(self.handle.0, &fields, &[]);
        if queued {
            self.poll_asked = token;
            self.left_out = false;
        }
        queued.then_some(token)
    }

    /// Whatever there was has come.
    pub(super) fn polled(&mut self, token: u32) {
        if token != self.poll_asked {
            return;
        }
        if self.left_out {
            // It took credit, and what there is for the application may lie behind it.
            self.poll_asked = token.wrapping_add(1);
        } else {
            self.poll_answered = token;
        }
    }

    /// What became of the question of this number.
    pub(super) fn poll_state(&self, token: u32) -> PollState {
        if token == self.poll_answered {
            PollState::Answered
        } else if self.attached && token == self.poll_asked {
            PollState::Asked
        } else {
            PollState::Lost
        }
    }

    /// Whether the broker does not know yet what was handed out last.
    pub(super) fn owes_report(&self) -> bool {
        self.attached && self.handed_reported < self.handed_messages
    }

    /// The connection is gone. Returns the tokens of the confirmations that will
    /// not come any more.
    pub(super) fn detached(&mut self) -> Vec<u32> {
        self.attached = false;
        self.listed = false;
        self.generation = self.generation.wrapping_add(1);
        self.prefetch.forget();
        self.prefetch.generation = self.generation;
        self.dirty.clear();
        self.told = None;
        self.refused = None;
        // What was asked on this connection is not answered on another.
        self.poll_asked = self.poll_asked.wrapping_add(1);
        for settled in &mut self.settled {
            settled.through.clear();
            settled.runs.clear();
            settled.fell = false;
            settled.delivered = 0;
            settled.filters = true;
            for again in settled.owed.values_mut() {
                *again = None;
            }
        }
        let open = core::mem::take(&mut self.confirms_open);
        let silent = core::mem::take(&mut self.silent);
        let first = self.confirm_asked.wrapping_sub(open).wrapping_add(1);
        let tokens = first..=self.confirm_asked;
        tokens.filter(|token| !silent.contains(token)).collect()
    }

    /// The broker knows the consumer again: credit counts from the beginning.
    pub(super) fn attached(&mut self, handle: Handle) {
        let fleeting = self.request.is_fleeting();
        for settled in &mut self.settled {
            if core::mem::take(&mut settled.is_nameless) {
                self.doubt = Doubt::Nameless;
            } else if !settled.kept.is_empty() && !fleeting {
                self.doubt = self.doubt.max(Doubt::Named);
            }
        }
        self.attached = true;
        self.handle = handle;
        (self.granted_messages, self.granted_bytes) = (self.messages_max, self.bytes_max);
        (self.received_messages, self.received_bytes) = (0, 0);
        (self.handed_messages, self.handed_bytes) = (0, 0);
        self.handed_reported = 0;
    }

    /// As [`Consumer::attached`], where nothing of what was settled is known.
    pub(super) fn renewed(&mut self, handle: Handle, starts: &[U64], installation: Installation) {
        self.is_known = true;
        let mut settled = self.settled.iter();
        let any = settled.any(|it| !it.kept.is_empty() || it.kept_through > 0);
        self.attached(handle);
        if any || self.doubt != Doubt::None {
            self.doubt = Doubt::Nameless;
        }
        self.settled = settled_of(starts);
        self.prefetch.installation = installation;
    }

    /// The installation does not know its subscription.
    pub(super) fn forgotten(&mut self) {
        self.is_known = false;
    }

    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Where its subscription starts, if it is a new one: one that ended with its
    /// connection goes on where it was.
    pub(super) fn starts_at(&self) -> Start {
        if !self.is_known || !self.request.is_fleeting() {
            return self.request.start;
        }
        let froms = self.settled.iter().map(Settled::unsettled_from);
        Start::Offset(Offset(froms.min().unwrap_or(0)))
    }

    /// Whether the broker knows it on this connection.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// Counts its connections.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// How many partitions it has.
    pub(super) fn partitions(&self) -> usize {
        self.settled.len()
    }

    /// The broker confirmed an acknowledgement, or refused it. Returns whether what was
    /// to be confirmed was refused, unless another confirmation is to tell.
    pub(super) fn confirmed(
        &mut self,
        token: u32,
        refusal: Option<u16>,
    ) -> Result<Option<Option<u16>>, ProtocolFault> {
        if self.confirms_open == 0 {
            return Err(ProtocolFault::UnaskedConfirmation { confirm: token });
        }
        self.confirms_open -= 1;
        if let Some(index) = self.silent.iter().position(|silent| *silent == token) {
            self.silent.remove(index);
            self.refused = self.refused.or(refusal);
            return Ok(None);
        }
        let refusal = self.refused.take().or(refusal);
        if refusal.is_some() && self.confirms_open == 0 && self.doubt == Doubt::Named {
            // What others have by now is theirs: that is said once.
            self.doubt = Doubt::None;
        }
        if refusal.is_none() && self.confirms_open == 0 {
            self.doubt = Doubt::None;
            if self.told.is_none() {
                for settled in &mut self.settled {
                    // What came since waits to be told, and is nameless all the same.
                    settled.is_nameless &= !settled.is_empty();
                }
            }
        }
        Ok(Some(refusal))
    }

    /// The confirmation on its way that speaks for all that was settled, if there is one.
    pub(super) fn confirmation_on_its_way(&self) -> Option<u32> {
        let speaks_for_all = self.dirty.is_empty() && self.told.is_none();
        (self.confirms_open > 0 && speaks_for_all).then_some(self.confirm_asked)
    }

    /// Whether it is not known what came of something that was settled.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt != Doubt::None
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn has_message(&self) -> bool {
        !self.prefetch.is_empty()
    }
}
