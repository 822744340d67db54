//! Sends: from a message on a link to its place in a log, or to why it has none.
//!
//! ```text
//! message ─> within credit? ─> the next of its producer to its partition? ─> nothing against it? ─> log ─┐
//!               │ no: the link ends     │ no: a retry, early, or fenced         │ refused                ├─> outcome
//!               v                       └──────────────────────────────────────>└───────────────────────>┘
//! ```
//!
//! Every message that does not end its link has one outcome, in the order in which
//! messages came. The way straight through is kept free of everything that the
//! other ways need.

use super::durable::Stored;
use super::identity::{NoSend, Turn};
use super::positions::Outcome;
use super::producer::{Producer, not_open};
use super::{Fault, Shard};
use crate::auth::{self, Operation, Target};
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::control::CompletionRun;
use crate::frame::decode::Message;
use crate::frame::{Durability, MESSAGE_HEADER_SIZE, MessageHeader, flags, property};
use crate::id::{BatchNumber, Epoch, Handle, Offset, PartitionIndex};
use crate::memory::{Arena, CHUNK, ChunkId};
use crate::partition::Partition;
use crate::partition::log::{ArenaFull, Log};
#[cfg(planted = "core")]
use crate::planted::Planted;
use crate::time::{Now, Wall};

/// The bytes of a whole message, with its padding.
#[derive(Clone, Copy)]
pub(super) enum Bytes<'a> {
    /// In one piece, to be copied.
    Whole(&'a [u8]),
    /// So many in chunks of the arena, which become the log's or go back.
    Chained(ChunkId, usize),
}

impl Bytes<'_> {
    #[inline]
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Chained(_, size) => *size,
        }
    }
}

impl Shard {
    /// A whole message that lies in one piece.
    #[inline]
    pub(super) fn message(
        &mut self,
        now: Now,
        link: Handle,
        message: &Message<'_>,
    ) -> Result<(), Fault> {
        self.send(
            now,
            link,
            message.header,
            Bytes::Whole(message.bytes),
            || property::check(message.properties).is_ok(),
        )
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
        self.send_on(now, link, header, Bytes::Chained(head, size))
    }

    /// A message of a front at this shard goes to its branch here.
    pub(super) fn send_on(
        &mut self,
        now: Now,
        link: Handle,
        header: &MessageHeader,
        bytes: Bytes<'_>,
    ) -> Result<(), Fault> {
        let properties = header.property_length.get() as usize;
        let frame = match bytes {
            Bytes::Whole(frame) => frame,
            Bytes::Chained(head, _) => self.arena.bytes(head),
        };
        let well_formed = frame
            .get(MESSAGE_HEADER_SIZE..MESSAGE_HEADER_SIZE + properties)
            .is_some_and(|properties| property::check(properties).is_ok());
        self.send(now, link, header, bytes, || well_formed)
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
            .filter(|producer| producer.is_open_on(link))
            .ok_or_else(|| not_open(handle))?;
        if !producer.credit.covers(size) {
            return Err(beyond_credit(producer, size));
        }
        Ok(producer)
    }

    #[inline]
    fn send(
        &mut self,
        now: Now,
        link: Handle,
        header: &MessageHeader,
        bytes: Bytes<'_>,
        properties_well_formed: impl FnOnce() -> bool,
    ) -> Result<(), Fault> {
        let size = bytes.size();
        let handle = Handle(header.handle.get());
        let covered = self
            .producers
            .get_mut(handle)
            .filter(|producer| producer.is_open_on(link) && producer.credit.covers(size));
        let Some(producer) = covered else {
            return match self.covered(link, handle, size) {
                Ok(_) => unreachable!("it was found not to be covered"),
                Err(fault) => self.give_up(bytes, fault),
            };
        };
        if let Err(fault) = producer.batch_goes_on(size) {
            return self.give_up(bytes, fault);
        }
        let identity = &producer.identity;
        let (destination, partition) = (identity.destination, header.partition.get());
        let principal = identity.principal;
        let is_next = producer.known
            && header.producer.get() == identity.id.0
            && (1..=identity.epoch.0).contains(&header.epoch.get())
            && identity.is_next(
                partition,
                header.partition_sequence.get(),
                header.sequence.get(),
            );
        if !is_next && !producer.goes_on_with(header) {
            #[cfg(planted = "core")]
            if self.is_taken_for_new(header) {
                return self.store_out_of_turn(now, header, bytes);
            }
            return self.out_of_turn(now, header, bytes);
        }
        if let Some(refusal) = objection(header, properties_well_formed).or_else(|| {
            let target = Target::Destination(destination);
            auth::authorize(principal, Operation::Send, target).err()
        }) {
            self.refuse_send(header, bytes, refusal);
            return Ok(());
        }
        let flags = header.flags.get();
        if let Some(journal) = &self.journal
            && let log = &self.locals[destination].partitions[partition as usize].log
            && let Some(refusal) = journal.objection(&self.arena, log, flags, (size, 1))
        {
            self.refuse_send(header, bytes, refusal);
            return Ok(());
        }
        let local = &mut self.locals[destination];
        let log = &mut local.partitions[partition as usize];
        let Ok(offset) = append(log, &mut self.arena, bytes, now.wall) else {
            self.refuse_send(header, bytes, Refusal::OutOfMemory);
            return Ok(());
        };
        local.stored += 1;
        producer.credit.received(size);
        let outcome = Outcome {
            offset: offset.0,
            append_time: now.wall,
            refusal: 0,
        };
        let remembered = &mut self.remembered;
        producer
            .identity
            .had_turn(partition, header.sequence.get(), &outcome, |bytes| {
                remembered.grow(bytes)
            });
        let run = completion(header, &outcome);
        let is_first = match &mut self.journal {
            None => producer.complete_now(run),
            Some(journal) => {
                let stored = Stored {
                    partition: PartitionIndex(partition),
                    first: offset,
                    count: 1,
                    size,
                    flags,
                };
                journal.stored(&mut self.arena, local, &stored, (handle, producer), run)
            }
        };
        if is_first {
            self.completing.push(handle);
        }
        self.reserved -= size as u64;
        self.counters.add(Counter::MessagesStored, 1);
        self.counters.add(Counter::BytesStored, size as u64);
        self.queue(destination, PartitionIndex(partition));
        Ok(())
    }

    /// The link ends for a message; what it lies in goes back.
    #[cold]
    pub(super) fn give_up(&mut self, bytes: Bytes<'_>, fault: Fault) -> Result<(), Fault> {
        if let Bytes::Chained(head, _) = bytes {
            self.arena.give_chain(head);
        }
        Err(fault)
    }

    /// A message that is not the next of its producer to its partition: it was sent
    /// before, or its time has not come, or its producer is attached elsewhere, or it
    /// can be nobody's.
    #[cold]
    fn out_of_turn(
        &mut self,
        now: Now,
        header: &MessageHeader,
        bytes: Bytes<'_>,
    ) -> Result<(), Fault> {
        let handle = Handle(header.handle.get());
        let Some(producer) = self.producers.get_mut(handle) else {
            return self.give_up(bytes, not_open(handle));
        };
        if producer.fan().is_some() {
            return self.forward(now, header, bytes);
        }
        let epoch = Epoch(header.epoch.get());
        let (known, identity) = (producer.known, &mut producer.identity);
        let turn = if header.producer.get() != identity.id.0 || epoch.0 == 0 {
            Err(NoSend)
        } else if known && epoch <= identity.epoch {
            let (partition, sequence) = (header.partition.get(), header.sequence.get());
            identity
                .turn(partition, header.partition_sequence.get(), sequence)
                .map(Some)
        } else {
            Ok(None)
        };
        let outcome = match turn {
            Err(NoSend) => {
                let fault = foreign(producer, header);
                return self.give_up(bytes, fault);
            }
            Ok(Some(Turn::Had(Some(first)))) => {
                self.counters.add(Counter::Retries, 1);
                return self.answer_retry(header, bytes, &first);
            }
            Ok(Some(Turn::Had(None))) => {
                let outcome = Outcome::refused(Refusal::AlreadyStored);
                self.counters.add(Counter::SendsRefused, 1);
                return self.answer_retry(header, bytes, &outcome);
            }
            Ok(Some(Turn::Early | Turn::Due)) => Outcome::refused(Refusal::OutOfOrder),
            Ok(None) => Outcome::refused(producer.ended.unwrap_or(Refusal::Fenced)),
        };
        if !outcome.is_stored() {
            self.counters.add(Counter::SendsRefused, 1);
        }
        self.settle_unstored(header, bytes, &outcome);
        Ok(())
    }

    /// A message that has its turn is refused in its place. If it may be stored when it
    /// is tried again, it has its turn still.
    #[cold]
    fn refuse_send(&mut self, header: &MessageHeader, bytes: Bytes<'_>, refusal: Refusal) {
        let is_flushed = header.flags.get() & flags::FLUSHED != 0;
        let is_kept = is_flushed && !refusal.is_retryable();
        let refusal = match &self.journal {
            // What cannot be written down now is refused for now.
            Some(journal) if is_kept && !journal.has_room() => Refusal::OutOfMemory,
            _ => refusal,
        };
        let outcome = Outcome::refused(refusal);
        let mut batch = BatchNumber(0);
        if let Some(producer) = self.producers.get_mut(Handle(header.handle.get())) {
            if refusal.is_retryable() {
                producer.identity.is_waited_for(header.partition.get());
            } else {
                let remembered = &mut self.remembered;
                producer.identity.had_turn(
                    header.partition.get(),
                    header.sequence.get(),
                    &outcome,
                    |bytes| remembered.grow(bytes),
                );
                // Or the next run would say of a retry that it was stored.
                if is_flushed && let Some(journal) = &mut self.journal {
                    let destination = producer.identity.destination;
                    batch = journal.refused(&mut self.arena, destination, header, refusal);
                }
            }
        }
        let counter = match refusal {
            Refusal::GivenUp => Counter::SendsGivenUp,
            _ => Counter::SendsRefused,
        };
        self.counters.add(counter, 1);
        let run = completion(header, &outcome);
        self.settle_unstored_as(header, bytes, batch, run);
    }

    /// Says what became of a send when it was sent first, which may still wait for a flush.
    #[cold]
    fn answer_retry(
        &mut self,
        header: &MessageHeader,
        bytes: Bytes<'_>,
        first: &Outcome,
    ) -> Result<(), Fault> {
        let Some(journal) = self.journal.as_deref().filter(|_| first.is_stored()) else {
            self.settle_unstored(header, bytes, first);
            return Ok(());
        };
        let is_flushed = header.flags.get() & flags::FLUSHED != 0;
        let mut run = completion(header, first);
        // Also the offset of one that is not flushed may wait until it is reserved.
        let mut batch = journal.all_so_far();
        if journal.is_broken() {
            // Nothing will be durable that is not, and it is not known what this one is.
            batch = BatchNumber(0);
            let offset = Offset(first.offset);
            if is_flushed
                || !self
                    .log_of(header)
                    .is_some_and(|log| journal.may_tell(log, offset))
            {
                run = completion(header, &Outcome::refused(Refusal::StorageFailed));
            }
        } else if is_flushed && self.keeps_what(header) {
            run.durability = Durability::Flushed as u8;
        }
        self.settle_unstored_as(header, bytes, batch, run);
        Ok(())
    }

    /// The log that a message with this header is for.
    fn log_of(&self, header: &MessageHeader) -> Option<&Log> {
        let producer = self.producers.get(Handle(header.handle.get()))?;
        let local = self.locals.get(producer.identity.destination)?;
        let partition = local.partitions.get(header.partition.get() as usize)?;
        Some(&partition.log)
    }

    /// Whether what is sent with this header is kept in the journal.
    fn keeps_what(&self, header: &MessageHeader) -> bool {
        let producer = self.producers.get(Handle(header.handle.get()));
        let local = producer.and_then(|it| self.locals.get(it.identity.destination));
        local.is_some_and(|local| local.keeps)
    }

    /// Has a producer's outcomes looked at when more is durable, if it is not yet.
    #[inline]
    pub(super) fn await_flush(&mut self, producer: Handle, is_first: bool) {
        if is_first && let Some(journal) = &mut self.journal {
            journal.hold(producer);
        }
    }

    /// Notes the outcome of a message that is not stored now.
    fn settle_unstored(&mut self, header: &MessageHeader, bytes: Bytes<'_>, outcome: &Outcome) {
        let run = completion(header, outcome);
        self.settle_unstored_as(header, bytes, BatchNumber(0), run);
    }

    fn settle_unstored_as(
        &mut self,
        header: &MessageHeader,
        bytes: Bytes<'_>,
        batch: BatchNumber,
        run: CompletionRun,
    ) {
        if let Bytes::Chained(head, _) = bytes {
            self.arena.give_chain(head);
        }
        let handle = Handle(header.handle.get());
        let Some(producer) = self.producers.get_mut(handle) else {
            return;
        };
        let size = bytes.size();
        producer.credit.received(size);
        self.reserved -= size as u64;
        if batch > BatchNumber(0) {
            let is_first = producer.complete_with(batch, run);
            self.await_flush(handle, is_first);
        } else if producer.complete(run) {
            self.completing.push(handle);
        }
    }
}

/// What the oracle of the simulation has to notice, if it is planted.
#[cfg(planted = "core")]
impl Shard {
    /// Whether the message is a retry, or bears the epoch of a producer that has been
    /// attached elsewhere since, whichever is not looked at.
    fn is_taken_for_new(&mut self, header: &MessageHeader) -> bool {
        let Some(producer) = self.producers.get_mut(Handle(header.handle.get())) else {
            return false;
        };
        if header.producer.get() != producer.identity.id.0 || header.is_given_up() {
            return false;
        }
        if Planted::IgnoreEpoch.is_awake() {
            return !producer.known;
        }
        if !Planted::ForgetRetry.is_awake() {
            return false;
        }
        let turn = producer.identity.turn(
            header.partition.get(),
            header.partition_sequence.get(),
            header.sequence.get(),
        );
        producer.known && matches!(turn, Ok(Turn::Had(_)))
    }

    fn store_out_of_turn(
        &mut self,
        now: Now,
        header: &MessageHeader,
        bytes: Bytes<'_>,
    ) -> Result<(), Fault> {
        let (handle, partition) = (Handle(header.handle.get()), header.partition.get());
        let Some(producer) = self.producers.get_mut(handle) else {
            return self.give_up(bytes, not_open(handle));
        };
        let destination = producer.identity.destination;
        let local = &mut self.locals[destination];
        let log = &mut local.partitions[partition as usize];
        let Ok(offset) = append(log, &mut self.arena, bytes, now.wall) else {
            self.settle_unstored(header, bytes, &Outcome::refused(Refusal::OutOfMemory));
            return Ok(());
        };
        local.stored += 1;
        producer.credit.received(bytes.size());
        self.reserved -= bytes.size() as u64;
        let outcome = Outcome {
            offset: offset.0,
            append_time: now.wall,
            refusal: 0,
        };
        if producer.complete(completion(header, &outcome)) {
            self.completing.push(handle);
        }
        self.queue(destination, PartitionIndex(partition));
        Ok(())
    }
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

/// The one copy of a message, or the adoption of the chunks that it lies in.
#[inline]
pub(super) fn append(
    partition: &mut Partition,
    arena: &mut Arena,
    bytes: Bytes<'_>,
    time: Wall,
) -> Result<Offset, ArenaFull> {
    let claims = partition.claims();
    let log = &mut partition.log;
    match bytes {
        Bytes::Whole(frame) if frame.len() <= CHUNK => log.append(arena, frame, claims, time),
        Bytes::Whole(frame) => {
            let head = copy_to_chain(arena, frame).ok_or(ArenaFull)?;
            Ok(log.adopt(arena, head, frame.len(), claims, time))
        }
        Bytes::Chained(head, size) => Ok(log.adopt(arena, head, size, claims, time)),
    }
}

#[inline]
fn completion(header: &MessageHeader, outcome: &Outcome) -> CompletionRun {
    CompletionRun {
        sequence: header.sequence,
        offset: outcome.offset.into(),
        append_time: outcome.append_time.0.into(),
        count: 1.into(),
        partition: header.partition,
        refusal: outcome.refusal.into(),
        ..CompletionRun::default()
    }
}

fn copy_to_chain(arena: &mut Arena, bytes: &[u8]) -> Option<ChunkId> {
    let head = arena.take_chain(bytes.len().div_ceil(CHUNK))?;
    arena.fill_chain(head, bytes);
    Some(head)
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
pub(super) fn foreign(producer: &Producer, header: &MessageHeader) -> Fault {
    Fault::new(
        Refusal::Unexpected,
        format!(
            "producer {} epoch {} got what none of its sends can be: producer {} epoch {} send {}, \
             number {} to partition {}",
            producer.identity.id,
            producer.identity.epoch,
            header.producer,
            header.epoch,
            header.sequence,
            header.partition_sequence,
            header.partition
        ),
    )
}
