//! Producers: from a message to its place in a log, and back to its completion.
//!
//! What a producer may send is in `credit`.
//!
//! A partition of this shard answers at once, so outcomes come into being in the
//! order of the sends, and the window towards the producer is this list of runs.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::credit::{Grant, RESERVE_FACTOR};
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
use crate::memory::{CHUNK, ChunkId};
use crate::name::Destination;
use crate::time::Now;

/// The most runs of one frame of completions.
const RUNS_PER_FRAME: usize = 256;

#[derive(Debug)]
pub(super) struct Producer {
    pub(super) link: Handle,
    pub(super) session: Handle,
    pub(super) destination: DestinationNumber,
    id: ProducerId,
    epoch: Epoch,
    /// The last send that was received.
    sequence: u64,
    /// Of each partition, the last send that was received.
    partition_sequences: Vec<u64>,
    pub(super) credit: Grant,
    /// Outcomes that were not written yet.
    runs: VecDeque<CompletionRun>,
    completing: bool,
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
    /// Adds outcomes behind those that wait; consecutive ones share a run.
    #[inline]
    fn complete(&mut self, run: CompletionRun) {
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
            Some(last)
                if last.sequence.get() + u64::from(last.count.get()) == run.sequence.get()
                    && last.offset.get() + u64::from(last.count.get()) == run.offset.get()
                    && last.partition == run.partition
                    && last.refusal == run.refusal
                    && last.append_time == run.append_time =>
            {
                last.count.set(last.count.get() + 1);
            }
            _ => self.runs.push_back(run),
        }
        #[cfg(planted = "swap_completions")]
        if let Some(held) = self.held.take() {
            self.runs.push_back(held);
        }
    }
}

/// What a producer is opened with.
pub(super) struct OpenProducer<'a> {
    pub(super) session: Handle,
    pub(super) destination: &'a Destination,
    pub(super) wanted: Wanted,
}

impl Shard {
    pub(super) fn open_producer(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        open: &OpenProducer<'_>,
    ) -> Result<(), Rejection> {
        let destination = self.resolve(link, open.destination, open.wanted, Operation::Produce)?;
        let partitions = self.locals[destination.0 as usize].partitions.len();
        let id = self.next_producer;
        let producer = Producer {
            link,
            session: open.session,
            destination,
            id,
            epoch: Epoch(1),
            sequence: 0,
            partition_sequences: vec![0; partitions],
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
        let Ok(handle) = self.producers.insert(producer) else {
            return Err(Refusal::ResourceAllocation.into());
        };
        self.next_producer = ProducerId(id.0 + 1);
        self.local_mut(destination).producers += 1;
        if let Some(entry) = self.links.get_mut(link) {
            entry.producers.push(handle);
        }
        self.grant(handle);
        let Some(producer) = self.producers.get(handle) else {
            return Ok(());
        };
        let opened = ProducerOpened {
            handle: handle.0.into(),
            epoch: producer.epoch.0.into(),
            producer: id.0.into(),
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX).into(),
            window: limits::IN_FLIGHT_MESSAGES_MAX.into(),
            bytes: producer.credit.bytes().into(),
            messages: producer.credit.messages().into(),
        };
        self.answer(now, link, request.0, &opened, &[])?;
        Ok(())
    }

    /// A client asks for the producer's end: answered behind its completions.
    pub(super) fn close_producer(&mut self, handle: Handle, request: RequestId) {
        if let Some(producer) = self.producers.get_mut(handle) {
            producer.closing = Some(request);
        }
        self.mark_completing(handle);
    }

    pub(super) fn remove_producer(&mut self, handle: Handle) {
        if let Some(producer) = self.producers.remove(handle) {
            self.reserved -= producer.credit.outstanding_bytes();
            self.local_mut(producer.destination).producers -= 1;
            if let Some(link) = self.links.get_mut(producer.link) {
                link.producers.retain(|other| *other != handle);
            }
        }
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
        let stored = admitted.refusal.map_or_else(
            || {
                let partition = self.partition_mut(admitted.destination, admitted.partition);
                let claims = partition.claims();
                let (arena, log) = self.arena_and_log(admitted.destination, admitted.partition);
                if size <= CHUNK {
                    log.append(arena, message.bytes, claims, now.wall)
                        .map_err(|_| Refusal::OutOfMemory)
                } else {
                    copy_to_chain(arena, message.bytes)
                        .ok_or(Refusal::OutOfMemory)
                        .map(|head| log.adopt(arena, head, size, claims, now.wall))
                }
            },
            Err,
        );
        self.settle_send(now, &admitted, stored, size);
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
        let stored = match admitted.refusal {
            Some(refusal) => {
                self.arena.give_chain(head);
                Err(refusal)
            }
            None => {
                let claims = self
                    .partition_mut(admitted.destination, admitted.partition)
                    .claims();
                let (arena, log) = self.arena_and_log(admitted.destination, admitted.partition);
                Ok(log.adopt(arena, head, size, claims, now.wall))
            }
        };
        self.settle_send(now, &admitted, stored, size);
        Ok(())
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
        let known = header.producer.get() == producer.id.0
            && header.epoch.get() == producer.epoch.0
            && sequence > producer.sequence;
        let Some(last) = producer
            .partition_sequences
            .get_mut(partition as usize)
            .filter(|_| known)
        else {
            return Err(foreign(producer, header));
        };
        if let Some((messages, bytes)) = &mut producer.batch {
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
                producer.batch = None;
            }
        }
        let partition_sequence = header.partition_sequence.get();
        let target = Target::Destination(producer.destination);
        let refusal = if partition_sequence != *last + 1 {
            Some(if partition_sequence <= *last {
                Refusal::AlreadyStored
            } else {
                Refusal::OutOfOrder
            })
        } else {
            *last += 1;
            if header.reserved().is_some() {
                Some(Refusal::Unsupported)
            } else if header.property_length.get() != 0 && !properties_well_formed() {
                Some(Refusal::InvalidProperties)
            } else {
                auth::authorize(principal, Operation::Send, target).err()
            }
        };
        producer.sequence = sequence;
        producer.credit.received(size);
        let destination = producer.destination;
        self.reserved -= size as u64;
        Ok(Admitted {
            handle,
            destination,
            partition: PartitionIndex(partition),
            sequence,
            refusal,
        })
    }

    /// Notes the outcome of a send: it leaves in this turn.
    #[inline]
    fn settle_send(
        &mut self,
        now: Now,
        admitted: &Admitted,
        stored: Result<Offset, Refusal>,
        size: usize,
    ) {
        let (offset, refusal) = match stored {
            Ok(offset) => {
                self.counters.add(Counter::MessagesStored, 1);
                self.counters.add(Counter::BytesStored, size as u64);
                self.local_mut(admitted.destination).stored += 1;
                self.queue(admitted.destination, admitted.partition);
                (offset.0, 0)
            }
            Err(refusal) => {
                self.counters.add(Counter::SendsRefused, 1);
                (0, refusal.code())
            }
        };
        if let Some(producer) = self.producers.get_mut(admitted.handle) {
            producer.complete(CompletionRun {
                sequence: admitted.sequence.into(),
                offset: offset.into(),
                append_time: now.wall.0.into(),
                count: 1.into(),
                partition: admitted.partition.0.into(),
                refusal: refusal.into(),
                ..CompletionRun::default()
            });
            if !producer.completing {
                producer.completing = true;
                self.completing.push(admitted.handle);
            }
        }
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
            self.remove_producer(handle);
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

    fn arena_and_log(
        &mut self,
        destination: DestinationNumber,
        partition: PartitionIndex,
    ) -> (&mut crate::memory::Arena, &mut crate::partition::log::Log) {
        let local = &mut self.locals[destination.0 as usize];
        (
            &mut self.arena,
            &mut local.partitions[partition.0 as usize].log,
        )
    }

    fn partition_mut(
        &mut self,
        destination: DestinationNumber,
        partition: PartitionIndex,
    ) -> &mut crate::partition::Partition {
        &mut self.locals[destination.0 as usize].partitions[partition.0 as usize]
    }
}

/// A send that passed the checks that would end its link.
struct Admitted {
    handle: Handle,
    destination: DestinationNumber,
    partition: PartitionIndex,
    sequence: u64,
    /// Why it is refused in its place, if it is.
    refusal: Option<Refusal>,
}

fn copy_to_chain(arena: &mut crate::memory::Arena, bytes: &[u8]) -> Option<ChunkId> {
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
            producer.id,
            producer.credit.outstanding_bytes(),
            producer.credit.outstanding_messages()
        ),
    )
}

#[cold]
fn foreign(producer: &Producer, header: &MessageHeader) -> Fault {
    Fault::new(
        Refusal::Unexpected,
        format!(
            "producer {} epoch {} after send {} got a message of producer {} epoch {} send {} to partition {}",
            producer.id,
            producer.epoch,
            producer.sequence,
            header.producer,
            header.epoch,
            header.sequence,
            header.partition
        ),
    )
}
