//! Producers: from a message to its place in a log, and back to its completion.
//!
//! What a producer may send is in `credit`.
//!
//! A partition of this shard answers at once, so outcomes come into being in the
//! order of the sends, and the window towards the producer is this list of runs.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::credit::{Grant, RESERVE_FACTOR};
use super::identity::{Identity, NoSend, Turn};
use super::positions::Outcome;
use super::remembered::Place;
use super::{Fault, LinkState, Rejection, Shard};
use crate::auth::{self, Operation, Target};
use crate::catalog::{Resolved, Wanted};
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::control::{Batch, Closed, CompletionRun, Completions, ProducerOpened};
use crate::frame::decode::Message;
use crate::frame::{CONTROL_HEADER_SIZE, MESSAGE_HEADER_SIZE, MessageHeader, property};
use crate::id::{DestinationNumber, Epoch, Handle, Offset, PartitionIndex, ProducerId, RequestId};
use crate::limits;
use crate::memory::{Arena, CHUNK, ChunkId};
use crate::name::Destination;
use crate::partition::Partition;
use crate::time::Now;

/// The most runs of one frame of completions.
const RUNS_PER_FRAME: usize = 256;

#[derive(Debug)]
pub(super) struct Producer {
    pub(super) link: Handle,
    pub(super) session: Handle,
    pub(super) identity: Identity,
    /// Whether this is where the identity is known to be. Not if it was closed, nor
    /// if a later handle took it and left a husk: then this one is fenced.
    pub(super) known: bool,
    pub(super) credit: Grant,
    /// Outcomes that were not written yet.
    runs: VecDeque<CompletionRun>,
    pub(super) completing: bool,
    /// Answered once all outcomes are written.
    closing: Option<RequestId>,
    /// What is left of an announced batch: messages, bytes.
    batch: Option<(u32, u32)>,
    #[cfg(any(
        planted = "drop_completion",
        planted = "swap_completions",
        planted = "duplicate_completion"
    ))]
    planted: u64,
    #[cfg(planted = "swap_completions")]
    held: Option<CompletionRun>,
}

impl Producer {
    /// A message of `size` bytes is the next of the batch that was announced, if one was.
    #[inline]
    fn batch_goes_on(&mut self, size: usize) -> Result<(), Fault> {
        let Some((messages, bytes)) = &mut self.batch else {
            return Ok(());
        };
        *messages -= 1;
        match bytes.checked_sub(u32::try_from(size).unwrap_or(u32::MAX)) {
            Some(rest) if (rest == 0) == (*messages == 0) => *bytes = rest,
            _ => {
                return Err(Fault::new(
                    Refusal::Unexpected,
                    "a batch is not what it announced",
                ));
            }
        }
        if *messages == 0 {
            self.batch = None;
        }
        Ok(())
    }

    /// Whether a message of it means nothing but itself: nothing was announced, and
    /// it is neither fenced nor closing.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.known && self.batch.is_none() && self.closing.is_none()
    }

    /// Adds outcomes behind those that wait; consecutive ones share a run.
    #[inline]
    pub(super) fn complete(&mut self, run: CompletionRun) {
        #[cfg(any(
            planted = "drop_completion",
            planted = "swap_completions",
            planted = "duplicate_completion"
        ))]
        {
            self.planted += 1;
            if self.planted.is_multiple_of(10) {
                #[cfg(planted = "drop_completion")]
                return;
                #[cfg(planted = "duplicate_completion")]
                self.runs.push_back(run);
                #[cfg(planted = "swap_completions")]
                {
                    self.held = Some(run);
                    return;
                }
            }
        }
        match self.runs.back_mut() {
            Some(last) if is_continued(last, &run) => {
                last.count.set(last.count.get() + run.count.get());
            }
            _ => self.runs.push_back(run),
        }
        #[cfg(planted = "swap_completions")]
        if let Some(held) = self.held.take() {
            self.runs.push_back(held);
        }
    }
}

/// Whether the two are consecutive sends with one outcome; refused ones have no
/// places that would have to be consecutive too.
#[inline]
fn is_continued(last: &CompletionRun, run: &CompletionRun) -> bool {
    let count = u64::from(last.count.get());
    last.sequence.get() + count == run.sequence.get()
        && last.partition == run.partition
        && last.refusal == run.refusal
        && (last.refusal.get() != 0
            || last.offset.get() + count == run.offset.get() && last.append_time == run.append_time)
}

/// What a producer is opened with.
pub(super) struct OpenProducer<'a> {
    pub(super) session: Handle,
    pub(super) destination: &'a Destination,
    pub(super) wanted: Wanted,
    /// Who attaches again, if it is not a new producer.
    pub(super) again: Option<ProducerId>,
}

impl Shard {
    pub(super) fn open_producer(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        open: &OpenProducer<'_>,
    ) -> Result<(), Rejection> {
        let handle = match open.again {
            None => self.new_producer(link, open)?,
            Some(id) => self.attach_again(link, open, id)?,
        };
        self.grant(handle);
        let Some(producer) = self.producers.get(handle) else {
            return Ok(());
        };
        let Identity {
            id,
            epoch,
            destination,
            ..
        } = producer.identity;
        let partitions = self.locals[destination.0 as usize].partitions.len();
        let opened = ProducerOpened {
            handle: handle.0.into(),
            epoch: epoch.0.into(),
            producer: id.0.into(),
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX).into(),
            window: limits::IN_FLIGHT_MESSAGES_MAX.into(),
            bytes: producer.credit.bytes().into(),
            messages: producer.credit.messages().into(),
        };
        self.answer(now, link, request.0, &opened, &[])?;
        Ok(())
    }

    fn new_producer(&mut self, link: Handle, open: &OpenProducer<'_>) -> Result<Handle, Rejection> {
        let destination = self.resolve(link, open.destination, open.wanted, Operation::Produce)?;
        let partitions = self.locals[destination.0 as usize].partitions.len();
        if !self.remembered.reserve_handle(self.producers.len()) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let id = self
            .remembered
            .issue(partitions)
            .ok_or(Refusal::ResourceAllocation)?;
        let identity = Identity::new(id, self.principal(link), destination, partitions);
        self.put_on_link(link, open.session, identity)
            .map_err(|identity| {
                self.remembered.forget(&identity);
                Refusal::ResourceAllocation.into()
            })
    }

    /// A producer whose link broke, or will have, goes on under another handle; the
    /// one that it had, if it is still there, keeps a husk and is fenced.
    fn attach_again(
        &mut self,
        link: Handle,
        open: &OpenProducer<'_>,
        id: ProducerId,
    ) -> Result<Handle, Rejection> {
        let place = self.remembered.place(id).ok_or(Refusal::Fenced)?;
        let known = match place {
            Place::Attached(handle) => self.producers.get(handle).map(|it| &it.identity),
            Place::Detached(number) => self.remembered.detached(number),
        };
        let principal = self.principal(link);
        let known = known
            .filter(|known| known.principal == principal && known.epoch.0 < u32::MAX)
            .ok_or(Refusal::Fenced)?;
        let destination = known.destination;
        if self.catalog.find(open.destination) != Some(destination) {
            return Err(Refusal::PreconditionFailed.into());
        }
        self.resolve(link, open.destination, open.wanted, Operation::Produce)?;
        if !self.remembered.reserve_handle(self.producers.len()) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let identity = match place {
            Place::Attached(handle) => self.producers.get_mut(handle).map(|old| {
                old.known = false;
                let husk = old.identity.husk();
                core::mem::replace(&mut old.identity, husk)
            }),
            Place::Detached(number) => self.remembered.take(number),
        };
        let mut identity = identity.ok_or(Refusal::Fenced)?;
        identity.epoch = Epoch(identity.epoch.0 + 1);
        self.counters.add(Counter::ProducersResumed, 1);
        self.put_on_link(link, open.session, identity)
            .map_err(|identity| {
                self.remembered.detach(identity);
                Refusal::ResourceAllocation.into()
            })
    }

    /// A handle on `link` for a producer; gives it back if there are too many.
    fn put_on_link(
        &mut self,
        link: Handle,
        session: Handle,
        identity: Identity,
    ) -> Result<Handle, Identity> {
        let (id, destination) = (identity.id, identity.destination);
        let producer = Producer {
            link,
            session,
            identity,
            known: true,
            credit: Grant::default(),
            runs: VecDeque::new(),
            completing: false,
            closing: None,
            batch: None,
            #[cfg(any(
                planted = "drop_completion",
                planted = "swap_completions",
                planted = "duplicate_completion"
            ))]
            planted: 0,
            #[cfg(planted = "swap_completions")]
            held: None,
        };
        let handle = self
            .producers
            .insert(producer)
            .map_err(|producer| producer.identity)?;
        self.remembered.attached(id, handle);
        let forgotten = self.remembered.forgotten();
        self.counters.set(Counter::ProducersForgotten, forgotten);
        self.local_mut(destination).producers += 1;
        if let Some(entry) = self.links.get_mut(link) {
            entry.producers.push(handle);
        }
        Ok(handle)
    }

    /// A client asks for the producer's end: answered behind its completions.
    pub(super) fn close_producer(&mut self, handle: Handle, request: RequestId) {
        if let Some(producer) = self.producers.get_mut(handle) {
            producer.closing = Some(request);
            if core::mem::take(&mut producer.known) {
                self.remembered.forget(&producer.identity);
            }
        }
        self.mark_completing(handle);
    }

    /// A handle ends. With `clean` its client said so, and the producer is forgotten;
    /// otherwise it is kept for a client that comes back.
    pub(super) fn remove_producer(&mut self, handle: Handle, clean: bool) {
        let Some(producer) = self.producers.remove(handle) else {
            return;
        };
        self.reserved -= producer.credit.outstanding_bytes();
        self.local_mut(producer.identity.destination).producers -= 1;
        if let Some(link) = self.links.get_mut(producer.link) {
            link.producers.retain(|other| *other != handle);
        }
        match (producer.known, clean) {
            (false, _) => {}
            (true, true) => self.remembered.forget(&producer.identity),
            (true, false) => self.remembered.detach(producer.identity),
        }
        let forgotten = self.remembered.forgotten();
        self.counters.set(Counter::ProducersForgotten, forgotten);
    }

    /// The producer that `handle` names on `link`, if its credit covers a frame of
    /// `size` bytes.
    pub(super) fn covered(
        &mut self,
        link: Handle,
        handle: Handle,
        size: usize,
    ) -> Result<&mut Producer, Fault> {
        let producer = self
            .producers
            .get_mut(handle)
            .filter(|producer| producer.link == link && producer.closing.is_none())
            .ok_or_else(|| not_open(handle))?;
        if !producer.credit.covers(size) {
            return Err(beyond_credit(producer, size));
        }
        Ok(producer)
    }

    /// A whole message that lies in one piece.
    #[inline]
    pub(super) fn message(
        &mut self,
        now: Now,
        link: Handle,
        message: &Message<'_>,
    ) -> Result<(), Fault> {
        let size = message.bytes.len();
        let admitted = self.admit(link, message.header, size, || {
            property::check(message.properties).is_ok()
        })?;
        let outcome = match admitted.verdict {
            Verdict::Store => self.store(now, &admitted, message.bytes),
            Verdict::Settled(outcome) => outcome,
        };
        self.settle_send(&admitted, &outcome, size);
        Ok(())
    }

    /// A whole message that lies in a chain of chunks.
    pub(super) fn large_message(
        &mut self,
        now: Now,
        link: Handle,
        header: &MessageHeader,
        head: ChunkId,
        size: usize,
    ) -> Result<(), Fault> {
        let properties = header.property_length.get() as usize;
        let well_formed = self
            .arena
            .bytes(head)
            .get(MESSAGE_HEADER_SIZE..MESSAGE_HEADER_SIZE + properties)
            .is_some_and(|properties| property::check(properties).is_ok());
        let admitted = match self.admit(link, header, size, || well_formed) {
            Ok(admitted) => admitted,
            Err(fault) => {
                self.arena.give_chain(head);
                return Err(fault);
            }
        };
        let outcome = match admitted.verdict {
            Verdict::Settled(outcome) => {
                self.arena.give_chain(head);
                outcome
            }
            Verdict::Store => {
                let (partition, arena) = self.partition_and_arena(&admitted);
                let claims = partition.claims();
                let offset = partition.log.adopt(arena, head, size, claims, now.wall);
                stored(now, offset)
            }
        };
        self.settle_send(&admitted, &outcome, size);
        Ok(())
    }

    /// Appends a message that has its turn and lies in one piece.
    #[inline]
    fn store(&mut self, now: Now, admitted: &Admitted, frame: &[u8]) -> Outcome {
        let (partition, arena) = self.partition_and_arena(admitted);
        let claims = partition.claims();
        if frame.len() <= CHUNK {
            match partition.log.append(arena, frame, claims, now.wall) {
                Ok(offset) => stored(now, offset),
                Err(_) => Outcome::refused(Refusal::OutOfMemory),
            }
        } else {
            match copy_to_chain(arena, frame) {
                Some(head) => {
                    let log = &mut partition.log;
                    stored(now, log.adopt(arena, head, frame.len(), claims, now.wall))
                }
                None => Outcome::refused(Refusal::OutOfMemory),
            }
        }
    }

    /// Announces a batch: counted, and held to what it says.
    pub(super) fn batch(
        &mut self,
        link: Handle,
        handle: Handle,
        batch: &Batch,
    ) -> Result<(), Fault> {
        let producer = self
            .producers
            .get_mut(handle)
            .filter(|producer| producer.link == link)
            .ok_or_else(|| not_open(handle))?;
        let (messages, bytes) = (batch.messages.get(), batch.bytes.get());
        if messages == 0 || producer.batch.is_some() {
            return Err(Fault::new(
                Refusal::Unexpected,
                "a batch began within another, or empty",
            ));
        }
        producer.batch = Some((messages, bytes));
        self.counters.add(Counter::Batches, 1);
        self.counters
            .raise(Counter::BatchMessagesMax, messages.into());
        self.counters.raise(Counter::BatchBytesMax, bytes.into());
        Ok(())
    }

    /// Checks everything about a send that does not end the link, and counts it.
    #[inline]
    fn admit(
        &mut self,
        link: Handle,
        header: &MessageHeader,
        size: usize,
        properties_well_formed: impl FnOnce() -> bool,
    ) -> Result<Admitted, Fault> {
        let handle = Handle(header.handle.get());
        let partition = header.partition.get();
        let principal = self.principal(link);
        let producer = self.covered(link, handle, size)?;
        let sequence = header.sequence.get();
        let epoch = Epoch(header.epoch.get());
        let identity = &mut producer.identity;
        if header.producer.get() != identity.id.0 || epoch.0 == 0 {
            return Err(foreign(identity, header));
        }
        let destination = identity.destination;
        let turn = if producer.known && epoch <= identity.epoch {
            let partition_sequence = header.partition_sequence.get();
            match identity.turn(partition, partition_sequence, sequence) {
                Ok(turn) => Some(turn),
                Err(NoSend) => return Err(foreign(identity, header)),
            }
        } else {
            None
        };
        producer.batch_goes_on(size)?;
        producer.credit.received(size);
        self.reserved -= size as u64;
        let verdict = match turn {
            Some(Turn::Due) => {
                let target = Target::Destination(destination);
                match objection(header, properties_well_formed)
                    .or_else(|| auth::authorize(principal, Operation::Send, target).err())
                {
                    None => Verdict::Store,
                    Some(refusal) => Verdict::Settled(Outcome::refused(refusal)),
                }
            }
            other => Verdict::Settled(out_of_turn(other)),
        };
        Ok(Admitted {
            handle,
            destination,
            partition: PartitionIndex(partition),
            sequence,
            is_due: turn == Some(Turn::Due),
            verdict,
        })
    }

    /// Notes the outcome of a send: it leaves in this turn.
    #[inline]
    fn settle_send(&mut self, admitted: &Admitted, outcome: &Outcome, size: usize) {
        if admitted.is_due && outcome.is_stored() {
            self.counters.add(Counter::MessagesStored, 1);
            self.counters.add(Counter::BytesStored, size as u64);
            self.local_mut(admitted.destination).stored += 1;
            self.queue(admitted.destination, admitted.partition);
        } else {
            self.count_unstored(admitted, outcome);
        }
        let Some(producer) = self.producers.get_mut(admitted.handle) else {
            return;
        };
        // What may be stored when it is tried again has not had its turn.
        if admitted.is_due && outcome.refusal != Refusal::OutOfMemory.code() {
            let remembered = &mut self.remembered;
            producer
                .identity
                .had_turn(admitted.partition.0, admitted.sequence, outcome, |bytes| {
                    remembered.grow(bytes)
                });
        }
        producer.complete(CompletionRun {
            sequence: admitted.sequence.into(),
            offset: outcome.offset.into(),
            append_time: outcome.append_time.0.into(),
            count: 1.into(),
            partition: admitted.partition.0.into(),
            refusal: outcome.refusal.into(),
            ..CompletionRun::default()
        });
        if !producer.completing {
            producer.completing = true;
            self.completing.push(admitted.handle);
        }
    }

    #[cold]
    fn count_unstored(&mut self, admitted: &Admitted, outcome: &Outcome) {
        let counter = if outcome.is_stored() {
            Counter::Retries
        } else if admitted.is_due && outcome.refusal == Refusal::GivenUp.code() {
            Counter::SendsGivenUp
        } else {
            Counter::SendsRefused
        };
        self.counters.add(counter, 1);
    }

    /// Writes the outcomes of this turn, and credit where it runs low.
    pub(super) fn send_completions(&mut self, now: Now) {
        let mut completing = core::mem::take(&mut self.completing);
        completing.retain(|handle| self.send_completions_of(now, *handle));
        completing.append(&mut self.completing);
        self.completing = completing;
    }

    /// Returns whether something had no room and has to be tried again.
    fn send_completions_of(&mut self, now: Now, handle: Handle) -> bool {
        let Some(producer) = self.producers.get_mut(handle) else {
            return false;
        };
        let Some(link) = self.links.get_mut(producer.link) else {
            return false;
        };
        if link.state == LinkState::Ending {
            return false;
        }
        if link.egress.bytes() == 0 {
            link.progress = now.monotonic;
        }
        let fixed = CONTROL_HEADER_SIZE + size_of::<Completions>();
        while !producer.runs.is_empty() {
            let room = link.egress.room().saturating_sub(fixed) / size_of::<CompletionRun>();
            let (runs, _) = producer.runs.as_slices();
            let runs = &runs[..runs.len().min(RUNS_PER_FRAME).min(room)];
            let fields = Completions {
                runs: u32::try_from(runs.len()).unwrap_or(0).into(),
                ..Completions::default()
            };
            let written = !runs.is_empty()
                && link
                    .egress
                    .control(&mut self.arena, handle.0, &fields, &[runs.as_bytes()])
                    .is_ok();
            if !written {
                return true;
            }
            let count = runs.len();
            let messages: u64 = runs.iter().map(|run| u64::from(run.count.get())).sum();
            producer.runs.drain(..count);
            producer.credit.completed(messages);
            self.counters.add(Counter::Completions, messages);
            self.counters.add(Counter::CompletionFrames, 1);
        }
        let request = producer.closing;
        if let Some(request) = request {
            let closed = Closed {
                handle: handle.0.into(),
                ..Closed::default()
            };
            if link
                .egress
                .control(&mut self.arena, request.0, &closed, &[])
                .is_err()
            {
                return true;
            }
        }
        producer.completing = false;
        let link = producer.link;
        let low = producer.credit.is_low();
        self.mark_dirty(link);
        if request.is_some() {
            self.remove_producer(handle, true);
        } else if low {
            self.renew(now, handle);
        }
        false
    }

    fn mark_completing(&mut self, handle: Handle) {
        if let Some(producer) = self.producers.get_mut(handle)
            && !producer.completing
        {
            producer.completing = true;
            self.completing.push(handle);
        }
    }

    /// Finds or creates a destination for somebody on `link`.
    pub(super) fn resolve(
        &mut self,
        link: Handle,
        destination: &Destination,
        wanted: Wanted,
        operation: Operation,
    ) -> Result<DestinationNumber, Rejection> {
        let principal = self.principal(link);
        if self.catalog.find(destination).is_none() {
            auth::authorize(principal, Operation::Create, Target::Name)?;
            let partitions = wanted.partitions.unwrap_or(1) as usize;
            let chunks = self.arena.chunks() as usize;
            if self.partitions + partitions > chunks / 4 {
                return Err(Rejection::request(
                    Refusal::ResourceAllocation,
                    format!(
                        "there are {} partitions, and memory for {}",
                        self.partitions,
                        chunks / 4
                    ),
                ));
            }
            // Each partition retains as much, in chunks that may be half empty, and as
            // much again is left for what is not settled.
            let most = self.plan.destination / (2 * RESERVE_FACTOR * partitions.max(1) as u64);
            if let Some(retain) = wanted.retain.filter(|retain| *retain > most) {
                return Err(Rejection::request(
                    Refusal::IllegalArgument,
                    format!(
                        "{retain} bytes are to be retained, and at most {most} can be: \
                         start the broker with more memory, or retain less"
                    ),
                ));
            }
        }
        let number = match self.catalog.resolve(destination, wanted)? {
            Resolved::Found(number) => number,
            Resolved::Created(number) => {
                self.create_local(number)?;
                number
            }
        };
        auth::authorize(principal, operation, Target::Destination(number))?;
        Ok(number)
    }

    #[inline]
    fn partition_and_arena(&mut self, admitted: &Admitted) -> (&mut Partition, &mut Arena) {
        let local = &mut self.locals[admitted.destination.0 as usize];
        (
            &mut local.partitions[admitted.partition.0 as usize],
            &mut self.arena,
        )
    }
}

/// A send that passed the checks that would end its link.
struct Admitted {
    handle: Handle,
    destination: DestinationNumber,
    partition: PartitionIndex,
    sequence: u64,
    /// Whether it is the next of its producer to its partition.
    is_due: bool,
    verdict: Verdict,
}

/// What is to be done with a send.
enum Verdict {
    /// It is stored if there is room.
    Store,
    /// It is not: this is its outcome.
    Settled(Outcome),
}

/// Why a send that has its turn is not stored all the same.
#[inline]
fn objection(
    header: &MessageHeader,
    properties_well_formed: impl FnOnce() -> bool,
) -> Option<Refusal> {
    if header.reserved().is_some() {
        Some(Refusal::Unsupported)
    } else if header.is_given_up() {
        let alone = header.length.get() as usize == MESSAGE_HEADER_SIZE;
        Some(if alone {
            Refusal::GivenUp
        } else {
            Refusal::Unsupported
        })
    } else if header.property_length.get() != 0 && !properties_well_formed() {
        Some(Refusal::InvalidProperties)
    } else {
        None
    }
}

/// The outcome of a send that is not the next one; `None`: its producer is attached
/// elsewhere.
#[cold]
fn out_of_turn(turn: Option<Turn>) -> Outcome {
    match turn {
        Some(Turn::Had(Some(first))) => first,
        Some(Turn::Had(None)) => Outcome::refused(Refusal::AlreadyStored),
        Some(Turn::Early | Turn::Due) => Outcome::refused(Refusal::OutOfOrder),
        None => Outcome::refused(Refusal::Fenced),
    }
}

fn stored(now: Now, offset: Offset) -> Outcome {
    Outcome {
        offset: offset.0,
        append_time: now.wall,
        refusal: 0,
    }
}

fn copy_to_chain(arena: &mut Arena, bytes: &[u8]) -> Option<ChunkId> {
    if arena.free() < bytes.len().div_ceil(CHUNK) {
        return None;
    }
    let mut head = ChunkId::NONE;
    let mut tail = ChunkId::NONE;
    for part in bytes.chunks(CHUNK) {
        let chunk = arena.take()?;
        arena.bytes_mut(chunk)[..part.len()].copy_from_slice(part);
        if tail.is_some() {
            arena.chain(tail, chunk);
        } else {
            head = chunk;
        }
        tail = chunk;
    }
    Some(head)
}

#[cold]
pub(super) fn not_open(handle: Handle) -> Fault {
    Fault::new(
        Refusal::NotOpen,
        format!("no producer {handle} is open on this link"),
    )
}

#[cold]
fn beyond_credit(producer: &Producer, size: usize) -> Fault {
    Fault::new(
        Refusal::CreditExceeded,
        format!(
            "producer {} sent {size} bytes with credit for {} bytes and {} messages",
            producer.identity.id,
            producer.credit.outstanding_bytes(),
            producer.credit.outstanding_messages()
        ),
    )
}

#[cold]
fn foreign(producer: &Identity, header: &MessageHeader) -> Fault {
    Fault::new(
        Refusal::Unexpected,
        format!(
            "producer {} epoch {} got what none of its sends can be: producer {} epoch {} send {}, \
             the {}th to partition {}",
            producer.id,
            producer.epoch,
            header.producer,
            header.epoch,
            header.sequence,
            header.partition_sequence,
            header.partition
        ),
    )
}
