//! A burst: sends of one producer to one partition that lie whole and one behind
//! the other in what was received.
//!
//! ```text
//!  received: | M 7 | M 8 | M 9 | control | ...        M 10 of another partition ends it too
//!            `- compared with what is due -'
//!               one copy, one run of positions, one run of completions
//! ```
//!
//! This is how messages arrive when many are on their way, so their cost is that
//! of the broker: what all of them share is looked up and noted once, and each is
//! only compared, summed and stamped. It decides nothing of its own: whatever is
//! not exactly the next plain send is left to `send`, which knows why.

use zerocopy::FromBytes;

use super::Shard;
use super::durable::Stored;
use super::positions::Outcome;
use crate::auth::{self, Operation, Target};
use crate::counters::Counter;
use crate::frame::control::CompletionRun;
use crate::frame::{
    ALIGNMENT, Kind, MESSAGE_HEADER_SIZE, MessageHeader, VERSION, checksum, flags, padded, property,
};
use crate::id::{DestinationNumber, Handle, PartitionIndex};
use crate::memory::CHUNK;
use crate::time::Now;

/// What the next send of the burst has to say.
struct Due {
    handle: u32,
    partition: u32,
    producer: u64,
    epoch: u32,
    sequence: u64,
    partition_sequence: u64,
    /// The flag of its durability.
    flushed: u16,
}

impl Due {
    /// The send at the front of `bytes` as the first of a burst; whether it is one
    /// is for [`Due::frame`] and the producer to say.
    #[inline]
    fn first(bytes: &[u8]) -> Option<Self> {
        let (header, _) = MessageHeader::ref_from_prefix(bytes).ok()?;
        (header.kind == Kind::Message as u8).then(|| Self {
            handle: header.handle.get(),
            partition: header.partition.get(),
            producer: header.producer.get(),
            epoch: header.epoch.get(),
            sequence: header.sequence.get(),
            partition_sequence: header.partition_sequence.get(),
            flushed: header.flags.get() & flags::FLUSHED,
        })
    }

    /// The padded size of the frame at the front of `bytes`, if it is there as a
    /// whole and the send that is due, without anything that would need a closer
    /// look. One that was `CHECKED` before is not summed again.
    #[inline]
    fn frame<const CHECKED: bool>(&self, bytes: &[u8]) -> Option<usize> {
        let (header, _) = MessageHeader::ref_from_prefix(bytes).ok()?;
        let flags = header.flags.get();
        let unkeyed = if flags & flags::KEYED == 0 {
            header.key_hash.get()
        } else {
            0
        };
        // Everything that has to be as it is due, in one branch.
        let differs = u64::from(header.kind ^ Kind::Message as u8)
            | u64::from(header.version ^ VERSION)
            | u64::from((flags & !flags::KEYED) ^ self.flushed)
            | u64::from(header.handle.get() ^ self.handle)
            | u64::from(header.partition.get() ^ self.partition)
            | header.offset.get()
            | header.append_time.get()
            | (header.producer.get() ^ self.producer)
            | (header.sequence.get() ^ self.sequence)
            | (header.partition_sequence.get() ^ self.partition_sequence)
            | u64::from(header.epoch.get() ^ self.epoch)
            | u64::from(header.schema.get())
            | unkeyed
            | header.transaction.get()
            | header.time_to_live.get()
            | header.delay.get();
        if differs != 0 {
            return None;
        }
        let length = header.length.get() as usize;
        if !(MESSAGE_HEADER_SIZE..=CHUNK).contains(&length) {
            return None;
        }
        let frame = bytes.get(..padded(length))?;
        let (unpadded, padding) = frame.split_at(length);
        if !CHECKED && (checksum::message(unpadded) != header.checksum.get() || !is_zero(padding)) {
            return None;
        }
        let properties = header.property_length.get() as usize;
        if properties != 0 {
            let properties = unpadded[MESSAGE_HEADER_SIZE..].get(..properties)?;
            property::check(properties).ok()?;
        }
        Some(frame.len())
    }

    #[inline]
    fn follow(&mut self) {
        self.sequence += 1;
        self.partition_sequence += 1;
    }
}

#[inline]
fn is_zero(padding: &[u8]) -> bool {
    debug_assert!(padding.len() < ALIGNMENT);
    padding.iter().all(|byte| *byte == 0)
}

/// What a burst may take up.
struct Room {
    destination: DestinationNumber,
    bytes: usize,
    messages: u64,
}

impl Shard {
    /// Stores the burst at the front of `bytes` and returns its size: 0 if there is
    /// none, and nothing has happened.
    #[inline]
    pub(super) fn burst<const CHECKED: bool>(
        &mut self,
        now: Now,
        link: Handle,
        bytes: &[u8],
    ) -> usize {
        let Some(first) = Due::first(bytes) else {
            return 0;
        };
        let Some(room) = self.room_for(link, &first) else {
            return 0;
        };
        let (sequence, mut due) = (first.sequence, first);
        let (mut size, mut messages) = (0, 0_u32);
        while u64::from(messages) < room.messages
            && let Some(frame) = due.frame::<CHECKED>(&bytes[size..])
            && size + frame <= room.bytes
        {
            size += frame;
            messages += 1;
            due.follow();
        }
        if messages == 0 {
            return 0;
        }
        let (handle, partition) = (Handle(due.handle), PartitionIndex(due.partition));
        if let Some(journal) = &self.journal
            && let log = &self.locals[room.destination].partitions[partition.0 as usize].log
            && (journal.objection(&self.arena, log, due.flushed, (size, messages))).is_some()
        {
            return 0;
        }
        let local = &mut self.locals[room.destination];
        let stored = &mut local.partitions[partition.0 as usize];
        let claims = stored.claims();
        let frames = &bytes[..size];
        let Ok(offset) =
            (stored.log).append_run(&mut self.arena, frames, messages, claims, now.wall)
        else {
            return 0;
        };
        local.stored += u64::from(messages);
        self.reserved -= size as u64;
        self.counters
            .add(Counter::MessagesStored, u64::from(messages));
        self.counters.add(Counter::BytesStored, size as u64);
        self.queue(room.destination, partition);
        let outcome = Outcome {
            offset: offset.0,
            append_time: now.wall,
            refusal: 0,
        };
        let Some(producer) = self.producers.get_mut(handle) else {
            return size;
        };
        producer.credit.received_run(size, u64::from(messages));
        let remembered = &mut self.remembered;
        producer
            .identity
            .had_turns(partition.0, due.sequence - 1, messages, &outcome, |bytes| {
                remembered.grow(bytes)
            });
        let run = CompletionRun {
            sequence: sequence.into(),
            offset: offset.0.into(),
            append_time: now.wall.0.into(),
            count: messages.into(),
            partition: partition.0.into(),
            ..CompletionRun::default()
        };
        let is_first = match &mut self.journal {
            None => producer.complete_now(run),
            Some(journal) => {
                let stored = Stored {
                    partition,
                    first: offset,
                    count: messages,
                    size,
                    flags: due.flushed,
                };
                let local = &mut self.locals[room.destination];
                journal.stored(&mut self.arena, local, &stored, (handle, producer), run)
            }
        };
        if is_first {
            self.completing.push(handle);
        }
        size
    }

    /// How much of a burst that begins with `first` finds room at once; `None` if
    /// `first` is not what its producer has to send next.
    #[inline]
    fn room_for(&self, link: Handle, first: &Due) -> Option<Room> {
        let producer = self.producers.get(Handle(first.handle))?;
        if producer.link != link || !producer.is_plain() {
            return None;
        }
        let identity = &producer.identity;
        // Far from the end of all numbers, so that counting on does not reach it.
        let is_next = first.sequence <= u64::MAX / 2
            && identity.id.0 == first.producer
            && identity.epoch.0 == first.epoch
            && identity.is_next(first.partition, first.partition_sequence, first.sequence);
        if !is_next {
            return None;
        }
        let destination = identity.destination;
        let target = Target::Destination(destination);
        auth::authorize(identity.principal, Operation::Send, target).ok()?;
        let local = &self.locals[destination];
        let log = &local.partitions[first.partition as usize].log;
        let credit = usize::try_from(producer.credit.outstanding_bytes()).unwrap_or(usize::MAX);
        Some(Room {
            destination,
            bytes: credit.min(log.room()),
            messages: producer.credit.outstanding_messages(),
        })
    }
}
