//! What a flush has to cover before anybody hears of it or sees it.
//!
//! ```text
//!  send ──> log (hidden) ──> journal, batch 7 ──> written ──> durable 7
//!  settled ────────────────> journal, batch 7                    |
//!                                                                v
//!     messages of batch 7 are shown; outcomes and confirmations that wait for it leave
//! ```
//!
//! One flush serves all partitions of a shard. What waits for one says for which batch,
//! and batches become durable in their order, so each list here is served from its front.
//! Outcomes wait at their producers, where those behind them wait too.
//!
//! Where a destination's dispatch is early, its messages are seen at once, and only their
//! outcomes wait. Their offsets are reserved ahead, as are those of messages that need no
//! flush: what somebody saw and a crash took leaves a hole, and no other message.
//!
//! A shard without a journal has none of this: whatever it is asked, it answers at once.
//!
//! Invariant: what is hidden in a partition is named in `hiding` for each of its batches.

use std::collections::VecDeque;

use super::branch::Origin;
use super::checkpoint::Keeper;
use super::identity::Identity;
use super::locals::Local;
use super::producer::Producer;
use super::records;
use super::{Fault, Shard};
use crate::catalog::Change;
use crate::error::Refusal;
use crate::frame::control::{Acknowledge, Closed, CompletionRun};
use crate::frame::flags;
use crate::frame::{Durability, MessageHeader};
use crate::id::{
    BatchNumber, CatalogVersion, DestinationNumber, Epoch, Handle, LinkNumber, MemberNumber,
    Offset, PartitionIndex, PartitionSequence, ProducerId, RequestId, Sequence, ShardIndex,
};
use crate::journal::entry::{Entry, Place};
use crate::journal::survey::Slot;
use crate::journal::writer::{Beginning, IN_FLIGHT_MAX, Token, Wish, WriteFailed, Writer};
use crate::limits;
use crate::memory::{Arena, CHUNK, ChunkId};
use crate::partition::log::{ArenaFull, Log};
use crate::planted::Planted;
use crate::time::{Monotonic, Now};

/// Once less than this is reserved of a partition's offsets, more is.
const RESERVED_LEAST: u64 = limits::OFFSETS_RESERVED as u64 / 2;

/// Chunks that are set aside for what is small and has to be written.
const SPARE: usize = limits::JOURNAL_SPARE as usize / CHUNK;

/// Bytes that a confirmation counts for while it waits for a flush, with what a list that
/// doubles has beside it. Openings and ends are as many as consumers.
const LATE_SIZE: usize = 2 * size_of::<(BatchNumber, Handle, Late)>();

/// As many runs of what is settled stand in one entry.
const SETTLED_PER_ENTRY: usize = 256;

/// The journal of a shard, and what waits for it.
#[derive(Debug)]
pub(super) struct Durable {
    pub(super) writer: Writer,
    /// Of its checkpoints, if any are made.
    pub(super) keeper: Option<Keeper>,
    /// Chunks for what has to be written where the arena has none.
    spare: Vec<ChunkId>,
    /// Where an entry is put together.
    scratch: Vec<u8>,
    /// What has been acted on.
    seen: BatchNumber,
    /// Whether it was told that it ended.
    is_over: bool,
    /// Partitions in which a batch has hidden messages.
    hiding: VecDeque<(BatchNumber, DestinationNumber, PartitionIndex)>,
    /// Producers with outcomes that wait.
    holding: Vec<Handle>,
    /// Producers that wait until it is durable that they are there.
    attached: VecDeque<(BatchNumber, Attached)>,
    /// When a file that was not to be had is asked for again.
    asks_again: Option<Monotonic>,
    /// What consumers wait to be told, each with the link that it goes to.
    late: VecDeque<(BatchNumber, Handle, Late)>,
}

/// What a consumer is told once everything before it is durable.
#[derive(Clone, Copy, Debug)]
enum Late {
    Confirmed(Confirmation),
    /// It is open.
    Opened(Opening),
    /// It has ended.
    Ended(Handle, LastWord),
}

/// A consumer that is to be open once its subscription is there to stay.
#[derive(Clone, Copy, Debug)]
struct Opening {
    consumer: Handle,
    whom: Asker,
}

/// Who asked for a consumer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// The client on its link, with so much credit in messages and bytes.
    Client(RequestId, (u64, u64)),
    /// The front that it is a source of.
    Front(ShardIndex, Handle, MemberNumber),
}

/// Who is told that a consumer has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum LastWord {
    Nobody,
    /// Whoever asked for it.
    Closed(RequestId),
    /// The front that it was a source of.
    Left(ShardIndex, Handle),
}

/// A producer of which nobody is told before the next run knows it, too.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attached {
    /// On its client's link.
    OnLink(Handle),
    /// A branch, whose front is told this.
    Branch(Origin, records::Attached),
}

/// A confirmation of what a consumer settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmation {
    pub(super) consumer: Handle,
    pub(super) confirm: u32,
    pub(super) refusal: u16,
}

/// How safe messages are that were stored, and what their outcomes wait for.
#[derive(Clone, Copy, Debug, Default)]
struct Safety {
    /// Nothing, if it is 0.
    batch: BatchNumber,
    durability: Durability,
}

/// A run of messages of one partition.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    pub(super) partition: PartitionIndex,
    pub(super) first: Offset,
    pub(super) count: u32,
    /// Bytes of their frames.
    pub(super) size: usize,
    /// Those of the first, and of all others.
    pub(super) flags: u16,
}

impl Durable {
    /// With a writer that goes on behind what was recovered.
    pub(super) fn new(beginning: &Beginning) -> Self {
        let writer = Writer::new(beginning);
        Self {
            seen: writer.durable(),
            writer,
            keeper: None,
            is_over: false,
            spare: Vec::with_capacity(SPARE),
            scratch: Vec::new(),
            asks_again: None,
            hiding: VecDeque::new(),
            holding: Vec::new(),
            attached: VecDeque::new(),
            late: VecDeque::new(),
        }
    }

    /// Why `count` messages with such flags that take `size` bytes cannot be stored in
    /// `log`, if they cannot.
    #[inline]
    pub(super) fn objection(
        &self,
        arena: &Arena,
        log: &Log,
        flags: u16,
        (size, count): (usize, u32),
    ) -> Option<Refusal> {
        if self.writer.is_broken()
            && (flags & flags::FLUSHED != 0 || !self.has_reserved(log, count))
        {
            Some(Refusal::StorageFailed)
        } else if flags & flags::FLUSHED != 0 && self.writer.is_full(size) {
            Some(Refusal::StoreFull)
        } else if arena.free() < 2 * Writer::chunks_for(size) {
            Some(Refusal::OutOfMemory)
        } else {
            None
        }
    }

    /// Whether the next `count` offsets may be given out: no later run begins before
    /// them.
    #[cold]
    fn has_reserved(&self, log: &Log, count: u32) -> bool {
        let reserved = log.reserved_by(self.writer.durable());
        log.next().0 + u64::from(count) <= reserved.0
    }

    /// Whether an offset may be told that was given out.
    pub(super) fn may_tell(&self, log: &Log, offset: Offset) -> bool {
        offset < log.reserved_by(self.writer.durable())
    }

    /// Messages were stored in a log, and this is what became of them: it is told once it
    /// may be. Returns whether it is the first that the producer has to tell.
    #[inline(never)]
    pub(super) fn stored(
        &mut self,
        arena: &mut Arena,
        local: &mut Local,
        stored: &Stored,
        (handle, producer): (Handle, &mut Producer),
        run: CompletionRun,
    ) -> bool {
        let safety = self.make_safe(arena, local, stored);
        let run = CompletionRun {
            durability: safety.durability as u8,
            ..run
        };
        if safety.batch == BatchNumber(0) {
            return producer.complete(run);
        }
        if producer.complete_with(safety.batch, run) {
            self.hold(handle);
        }
        false
    }

    /// Those that are to be flushed go into the journal, and for the others their offsets
    /// are reserved.
    fn make_safe(&mut self, arena: &mut Arena, local: &mut Local, it: &Stored) -> Safety {
        let destination = local.number;
        let log = &mut local.partitions[it.partition.0 as usize].log;
        let is_flushed = it.flags & flags::FLUSHED != 0;
        if is_flushed
            && local.keeps
            && let Some(tail) = log.tail(it.size)
        {
            let batch = self
                .writer
                .append_messages(arena, tail, it.size, it.count)
                .expect("it was seen that there is room");
            let place = Place {
                destination,
                partition: it.partition,
            };
            if local.is_early {
                self.see_early(arena, log, place, it.first);
            } else {
                self.hide(log, place, it.first, batch);
            }
            return Safety {
                batch: if Planted::ToldTooSoon.is_awake() {
                    BatchNumber(0)
                } else {
                    batch
                },
                durability: Durability::Flushed,
            };
        }
        if log.next().0 + RESERVED_LEAST <= log.reserved().0 || self.writer.is_broken() {
            return Safety::default();
        }
        let place = Place {
            destination,
            partition: it.partition,
        };
        let safety = self.reserve_offsets(arena, log, place);
        if safety.batch > BatchNumber(0) {
            // Or a crash would give the offset of something that was seen to another.
            self.hide(log, place, it.first, safety.batch);
        }
        safety
    }

    /// What was just stored in `log`, from `first` on, may be seen before it is durable, so
    /// its offset is to be no other message's whatever a crash takes: it is seen once that
    /// is durable, which it is already but for the first of many.
    fn see_early(&mut self, arena: &mut Arena, log: &mut Log, place: Place, first: Offset) {
        if log.next().0 + RESERVED_LEAST <= log.reserved().0 {
            return;
        }
        let safety = self.reserve_offsets(arena, log, place);
        if safety.batch > BatchNumber(0) {
            self.hide(log, place, first, safety.batch);
        }
    }

    /// Nobody sees what was just stored in `log`, from `first` on, before `batch` is
    /// durable.
    fn hide(&mut self, log: &mut Log, place: Place, first: Offset, batch: BatchNumber) {
        if log.hide(first, batch) {
            // A reservation may be in an earlier batch than what was hidden last.
            let at = self.hiding.partition_point(|(other, ..)| *other <= batch);
            let hidden = (batch, place.destination, place.partition);
            self.hiding.insert(at, hidden);
        }
    }

    /// Reserves offsets ahead, if few are left, and says what the last one given out
    /// waits for: nothing, if it was reserved before.
    #[cold]
    fn reserve_offsets(&mut self, arena: &mut Arena, log: &mut Log, place: Place) -> Safety {
        let next = log.next();
        let coming = log.reserving(self.writer.durable());
        let (mut batch, until) = coming.unwrap_or((BatchNumber(0), log.reserved()));
        if next.0 + RESERVED_LEAST > until.0 {
            let next = Offset(next.0 + u64::from(limits::OFFSETS_RESERVED));
            let entry = Entry::OffsetsReserved { place, next };
            batch = self.append(arena, &entry);
            log.reserve_with(batch, next);
        }
        Safety {
            batch: if next > log.reserved() {
                batch
            } else {
                BatchNumber(0)
            },
            durability: Durability::Memory,
        }
    }

    /// Adds an entry of a few bytes. What it says has taken effect, so there are chunks set
    /// aside for it; without them the journal ends, rather than go on without it. One that
    /// would never be written is not kept.
    pub(super) fn append(&mut self, arena: &mut Arena, entry: &Entry<'_>) -> BatchNumber {
        if self.writer.is_broken() {
            return self.writer.last();
        }
        while arena.free() < Writer::chunks_for(entry.size())
            && let Some(chunk) = self.spare.pop()
        {
            arena.give(chunk);
        }
        let appended = self.writer.append(arena, entry, &mut self.scratch);
        appended.unwrap_or_else(|ArenaFull| {
            self.writer.give_up();
            self.writer.last()
        })
    }

    /// Sets chunks aside again, while there are others; gives them back once nothing is
    /// written any more.
    fn set_aside(&mut self, arena: &mut Arena) {
        if self.writer.is_broken() {
            self.spare.drain(..).for_each(|chunk| arena.give(chunk));
            return;
        }
        while self.spare.len() < SPARE
            && arena.free() > SPARE
            && let Some(chunk) = arena.take()
        {
            self.spare.push(chunk);
        }
    }

    /// Nothing is set aside.
    #[cfg(test)]
    pub(super) fn drop_spare(&mut self, arena: &mut Arena) {
        self.spare.drain(..).for_each(|chunk| arena.give(chunk));
    }

    /// Whether something may be changed that has to be written: not while what is set
    /// aside is needed for what was changed before.
    pub(super) fn has_room(&self) -> bool {
        self.spare.len() == SPARE || self.writer.is_broken()
    }

    /// A send that was to be flushed had its turn and is not stored; says with which
    /// batch the next run knows it.
    pub(super) fn refused(
        &mut self,
        arena: &mut Arena,
        destination: DestinationNumber,
        header: &MessageHeader,
        refusal: Refusal,
    ) -> BatchNumber {
        let entry = Entry::SendRefused {
            producer: ProducerId(header.producer.get()),
            epoch: Epoch(header.epoch.get()),
            place: Place {
                destination,
                partition: PartitionIndex(header.partition.get()),
            },
            refusal,
            sequence: Sequence(header.sequence.get()),
            partition_sequence: PartitionSequence(header.partition_sequence.get()),
        };
        // There is little room, and the producer has told that the message is not stored:
        // what the next run says of it is heard by nobody.
        if refusal == Refusal::GivenUp && self.writer.is_full(entry.size()) {
            return BatchNumber(0);
        }
        let batch = self.append(arena, &entry);
        if self.writer.is_broken() {
            BatchNumber(0)
        } else {
            batch
        }
    }

    /// Whether a file was not to be had, and it is not known yet until when to wait.
    fn has_to_wait(&self) -> bool {
        self.asks_again.is_none() && self.writer.is_missing_file()
    }

    /// The next file was not to be had: it is asked for again after a pause. Whether that is
    /// now.
    #[cold]
    fn wait_for_room(&mut self, now: Monotonic) -> bool {
        match self.asks_again {
            None => {
                self.asks_again = Some(now.after(limits::JOURNAL_FILE_PAUSE));
                false
            }
            Some(due) if due <= now => {
                self.asks_again = None;
                self.writer.ask_again();
                true
            }
            Some(_) => false,
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.writer.is_broken()
    }

    /// The last batch that was acted on.
    pub(super) fn told(&self) -> BatchNumber {
        self.seen
    }

    /// Has the outcomes of a producer looked at once more is durable.
    pub(super) fn hold(&mut self, producer: Handle) {
        self.holding.push(producer);
    }

    /// What an answer waits for that says that all so far is durable; 0 if it is.
    pub(super) fn all_so_far(&self) -> BatchNumber {
        let last = self.writer.last();
        if last > self.writer.durable() {
            last
        } else {
            BatchNumber(0)
        }
    }

    /// Whether a consumer waits for confirmations, or to end behind them.
    fn owes(&self, consumer: Handle) -> bool {
        self.late.iter().any(|(_, _, late)| match late {
            Late::Confirmed(confirmation) => confirmation.consumer == consumer,
            Late::Opened(opening) => opening.consumer == consumer,
            Late::Ended(ended, _) => *ended == consumer,
        })
    }

    #[inline]
    fn has_news(&self) -> bool {
        self.seen != self.writer.durable() || self.writer.is_broken() && !self.is_over
    }

    /// Whether a checkpoint is to be begun, or to go on.
    #[inline]
    pub(super) fn has_checkpoint_work(&self) -> bool {
        let (bytes, durable) = (self.writer.bytes(), self.writer.durable());
        let keeper = self.keeper.as_ref();
        keeper.is_some_and(|it| it.has_work(bytes, durable)) && !self.writer.is_broken()
    }

    pub(super) fn chunks(&self) -> usize {
        self.writer.chunks() + self.spare.len()
    }
}

impl Shard {
    /// Gives the shard a journal. Before anything else but what is restored.
    pub fn keep(&mut self, beginning: &Beginning) {
        let journal = self.journal.insert(Box::new(Durable::new(beginning)));
        journal.set_aside(&mut self.arena);
        self.run = beginning.origin.run;
        // A client that comes back names the link that it had in another run.
        self.next_link = LinkNumber::first_of(self.config.shard, self.run);
        for local in self.locals.iter_mut() {
            if local.is_queue {
                local.note_settled();
            }
        }
        self.keep_subscriptions();
        let early = self.locals.iter().filter(|local| local.is_early);
        let early: Vec<DestinationNumber> = early.map(|local| local.number).collect();
        for destination in early {
            self.reserve_for_early(destination);
        }
        self.reserve_ids();
    }

    /// Whether everything that was to be written is durable, or never will be.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        let journal = self.journal.as_deref();
        journal.is_none_or(|it| it.writer.is_broken() || it.all_so_far() == BatchNumber(0))
    }

    /// The batch with which everything so far is durable.
    #[must_use]
    pub fn last_batch(&self) -> BatchNumber {
        let journal = self.journal.as_deref();
        journal.map_or(BatchNumber(0), |it| it.writer.last())
    }

    /// Whether whoever waited for this batch was told, or told that it never comes.
    #[must_use]
    pub fn has_told(&self, batch: BatchNumber) -> bool {
        let journal = self.journal.as_deref();
        journal.is_none_or(|it| it.seen >= batch || it.is_over)
    }

    /// Whether an error of the storage has ended its journal.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.journal
            .as_deref()
            .is_some_and(|it| it.writer.is_broken())
    }

    /// Chunks that a journal may need beside the bytes that are written: each batch begins
    /// one, and so does the header of a file.
    pub(super) fn journal_kept(&self) -> usize {
        match &self.journal {
            Some(journal) => IN_FLIGHT_MAX + 2 + SPARE - journal.spare.len(),
            None => 0,
        }
    }

    /// Chunks that its journal has: what is to be written, and what is set aside.
    #[must_use]
    pub fn journal_chunks(&self) -> usize {
        self.journal.as_deref().map_or(0, Durable::chunks)
    }

    /// Whether what is stored here may be durable.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.journal.is_some()
    }

    /// When the journal asks for a file again that was not to be had.
    pub(super) fn journal_expiry(&self) -> Option<Monotonic> {
        self.journal.as_deref()?.asks_again
    }

    /// What is to be done with files, until `None`.
    pub fn storage_wish(&mut self) -> Option<Wish> {
        self.journal.as_mut()?.writer.wish()
    }

    /// What is to be written of a token. It stays where it is until [`Shard::written`].
    pub fn storage_pieces(&self, token: Token) -> impl Iterator<Item = &[u8]> {
        let journal = self.journal.as_deref();
        let pieces = journal.map(|it| it.writer.pieces(&self.arena, token));
        pieces.into_iter().flatten()
    }

    /// A token's pieces are on the device, or it is not known what is.
    pub fn written(&mut self, token: Token, result: Result<(), WriteFailed>) {
        if let Some(journal) = &mut self.journal {
            journal.writer.written(&mut self.arena, token, result);
        }
    }

    /// A file that was wished for is there, or is not to be had.
    pub fn prepared(&mut self, file: Slot, is_there: bool) {
        if let Some(journal) = &mut self.journal {
            journal.writer.prepared(file, is_there);
        }
    }

    /// Whether the journal has something to do, or something to tell.
    pub(super) fn has_storage_work(&self) -> bool {
        self.journal.as_deref().is_some_and(|it| {
            it.writer.has_work() || it.has_news() || it.has_to_wait() || it.has_checkpoint_work()
        })
    }

    /// Acts on what has become durable, and has written what has come since.
    #[inline(never)]
    pub(super) fn turn_journal(&mut self, now: Now) {
        if self.journal.as_deref().is_some_and(Durable::has_news) {
            self.tell_flushed(now);
            self.tell_broken(now);
        }
        if let Some(journal) = &mut self.journal
            && journal.writer.is_missing_file()
            && journal.wait_for_room(now.monotonic)
        {
            self.make_room_for_journal();
        }
        if let Some(journal) = &mut self.journal {
            journal.writer.turn(&mut self.arena, now.wall);
            journal.set_aside(&mut self.arena);
            if journal.has_checkpoint_work() {
                self.turn_checkpoint(now);
            }
        }
    }

    fn tell_flushed(&mut self, now: Now) {
        let Some(mut journal) = self.journal.take() else {
            return;
        };
        let durable = journal.writer.durable();
        journal.seen = durable;
        while let Some(&(batch, destination, partition)) = journal.hiding.front()
            && batch <= durable
        {
            journal.hiding.pop_front();
            if let Some(local) = self.locals.get_mut(destination) {
                local.partitions[partition.0 as usize].log.show(durable);
                self.queue(destination, partition);
            }
        }
        let (producers, completing) = (&mut self.producers, &mut self.completing);
        journal.holding.retain(|handle| {
            let Some(producer) = producers.get_mut(*handle) else {
                return false;
            };
            if producer.release(durable) {
                completing.push(*handle);
            }
            producer.holds()
        });
        let attached = take_while(&mut journal.attached, |(batch, _)| *batch <= durable);
        let due = take_while(&mut journal.late, |(batch, ..)| *batch <= durable);
        self.journal = Some(journal);
        self.carry_out_decided(now, durable);
        for (_, attached) in attached {
            self.tell_of(now, &attached);
        }
        for (_, link, late) in due {
            self.tell_late(now, link, late);
        }
    }

    /// Tells of a producer once everything so far is durable: a client that knew it, and a
    /// next run that did not, could not go on with each other.
    pub(super) fn once_durable(&mut self, now: Now, attached: Attached) {
        if let Some(journal) = &mut self.journal {
            if journal.writer.is_broken() {
                return self.tell_unattached(now, &attached);
            }
            let batch = journal.all_so_far();
            if batch > BatchNumber(0) && !Planted::AttachedTooSoon.is_awake() {
                return journal.attached.push_back((batch, attached));
            }
        }
        self.tell_of(now, &attached);
    }

    /// It never becomes durable that a producer is there. The next run would give its epoch,
    /// or its id, to another incarnation or another producer, so whoever asked is refused.
    /// Branches are given both by the home of their destination, and it is durable there.
    fn tell_unattached(&mut self, now: Now, attached: &Attached) {
        if Planted::AttachedThoughFailed.is_awake() {
            return self.tell_of(now, attached);
        }
        let fault = Fault::from(Refusal::StorageFailed);
        match attached {
            Attached::OnLink(handle) => self.refused_on_link(now, *handle, &fault),
            Attached::Branch(origin, told) => {
                let branch = Handle(told.handle.get());
                let identity = self.producers.get(branch).map(|it| &it.identity);
                let home = identity.map(|it| self.mesh.placement.home(it.destination));
                if home.is_some_and(|home| home != self.config.shard) {
                    return self.tell_of(now, attached);
                }
                let is_new = identity.is_some_and(Identity::is_new);
                self.remove_producer(now, branch, is_new);
                self.tell_attached(now, *origin, Err(fault));
            }
        }
    }

    fn tell_of(&mut self, now: Now, attached: &Attached) {
        match attached {
            Attached::OnLink(handle) => self.opened_on_link(now, *handle),
            Attached::Branch(origin, attached) => self.tell_attached(now, *origin, Ok(*attached)),
        }
    }

    fn tell_late(&mut self, now: Now, link: Handle, late: Late) {
        match late {
            Late::Confirmed(confirmation) => {
                self.catches_up(link, LATE_SIZE);
                self.confirm_late(now, link, &confirmation);
            }
            Late::Opened(opening) => self.open_late(now, link, opening),
            Late::Ended(consumer, last) => {
                let is_there = self.consumers.get(consumer).is_some();
                self.remove_consumer(consumer, true);
                if is_there || matches!(last, LastWord::Left(..)) {
                    self.say_last_word(now, (link, consumer), last);
                }
            }
        }
    }

    /// Whether a consumer is open only once its subscription is durable, which is one that is
    /// kept and was made a moment ago. Whoever asked is told then, or now that it never is.
    pub(super) fn opens_once_durable(&mut self, now: Now, consumer: Handle, whom: Asker) -> bool {
        let opened = self.consumers.get(consumer);
        let Some((link, subscription)) = opened.map(|it| (it.link, it.subscription())) else {
            return false;
        };
        let made = self.subscriptions.get(subscription).map(|it| it.made_with);
        let Some((journal, made)) = self.journal.as_mut().zip(made) else {
            return false;
        };
        if made <= journal.writer.durable() {
            return false;
        }
        let opening = Opening { consumer, whom };
        if journal.is_over {
            self.open_late(now, link, opening);
        } else {
            let late = Late::Opened(opening);
            journal.late.push_back((made, link, late));
        }
        true
    }

    /// A consumer is open, if its subscription is there to stay and nobody ended it since.
    fn open_late(&mut self, now: Now, link: Handle, opening: Opening) {
        let Opening { consumer, whom } = opening;
        let ended = match self.consumers.get(consumer) {
            // Its link went.
            None => return,
            Some(_) if self.is_broken() => Some(Refusal::StorageFailed),
            Some(found) => found.ended(),
        };
        if ended.is_some() {
            self.remove_consumer(consumer, true);
        }
        match (whom, ended) {
            (Asker::Client(request, credit), None) => {
                if let Err(fault) = self.consumer_opened(now, link, request, consumer, credit) {
                    self.fault(now, link, &fault);
                }
            }
            (Asker::Client(request, _), Some(refusal)) => {
                if let Err(fault) = self.refuse(now, link, request, &refusal.into()) {
                    self.fault(now, link, &fault);
                }
            }
            (Asker::Front(shard, front, member), None) => {
                self.say_joined(now, (shard, front), consumer, member);
            }
            (Asker::Front(shard, front, _), Some(refusal)) => {
                self.say_not_joined(now, (shard, front), &refusal.into());
            }
        }
    }

    /// A consumer ends, and whoever is to know is told, behind the confirmations that it
    /// waits for. What it holds returns at once.
    pub(super) fn part_with_consumer(
        &mut self,
        now: Now,
        handle: Handle,
        clean: bool,
        last: LastWord,
    ) {
        let Some(link) = self.consumers.get(handle).map(|it| it.link) else {
            return self.say_last_word(now, (Handle(0), handle), last);
        };
        if let Some(journal) = self.journal.as_mut().filter(|it| it.owes(handle)) {
            let batch = journal.writer.last();
            journal
                .late
                .push_back((batch, link, Late::Ended(handle, last)));
            return self.retire_consumer(handle, clean);
        }
        self.remove_consumer(handle, clean);
        self.say_last_word(now, (link, handle), last);
    }

    fn say_last_word(&mut self, now: Now, (link, consumer): (Handle, Handle), last: LastWord) {
        match last {
            LastWord::Nobody => {}
            LastWord::Closed(request) => {
                let closed = Closed {
                    handle: consumer.0.into(),
                    ..Closed::default()
                };
                if let Err(fault) = self.answer(now, link, request.0, &closed, &[]) {
                    self.fault(now, link, &fault);
                }
            }
            LastWord::Left(shard, front) if shard == self.config.shard => {
                self.left_source(now, shard, front);
            }
            LastWord::Left(shard, front) => self.left_front(shard, front),
        }
    }

    /// Whether a consumer was closed, and waits for what comes before that.
    pub(super) fn ends_late(&self, consumer: Handle) -> bool {
        let ends = |late: &Late| matches!(late, Late::Ended(ended, _) if *ended == consumer);
        let journal = self.journal.as_deref();
        journal.is_some_and(|it| it.late.iter().any(|(_, _, late)| ends(late)))
    }

    /// Whether a consumer waits for confirmations, or to end behind them.
    pub(super) fn owes_confirmations(&self, consumer: Handle) -> bool {
        self.journal
            .as_deref()
            .is_some_and(|journal| journal.owes(consumer))
    }

    /// Confirms what had to wait, unless the consumer has gone meanwhile: then nobody knows
    /// its handle any more.
    fn confirm_late(&mut self, now: Now, link: Handle, confirmation: &Confirmation) {
        if self.consumers.get(confirmation.consumer).is_some()
            && let Err(fault) = self.confirm_on(now, link, confirmation)
        {
            self.fault(now, link, &fault);
        }
    }

    /// Reserves offsets ahead where messages are seen before they are durable, so that not
    /// even the first of them has to wait.
    pub(super) fn reserve_for_early(&mut self, destination: DestinationNumber) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        let Some(local) = (self.locals.get_mut(destination)).filter(|local| local.is_early) else {
            return;
        };
        for index in local.own.indexes() {
            let place = Place {
                destination,
                partition: PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX)),
            };
            let log = &mut local.partitions[index].log;
            journal.reserve_offsets(&mut self.arena, log, place);
        }
    }

    /// Writes down a change of the catalogue that is decided, and says which batch it is
    /// durable with; `None` without a journal.
    pub(super) fn journal_change(&mut self, change: &Change) -> Option<Result<BatchNumber, Fault>> {
        let version = CatalogVersion(self.catalog.version().0 + 1);
        let journal = self.journal.as_mut()?;
        if journal.writer.is_broken() {
            return Some(Err(Refusal::StorageFailed.into()));
        }
        if !journal.has_room() {
            return Some(Err(Refusal::ResourceAllocation.into()));
        }
        let change = change.clone();
        let entry = Entry::CatalogChanged { version, change };
        Some(Ok(journal.append(&mut self.arena, &entry)))
    }

    /// Whether something may be changed that has to be written.
    pub(super) fn has_room_in_journal(&self) -> Result<(), Fault> {
        match self.journal.as_deref().is_none_or(Durable::has_room) {
            true => Ok(()),
            false => Err(Fault::new(
                Refusal::ResourceAllocation,
                "the device is slow, and memory for what it has to write is used up",
            )),
        }
    }

    /// Writes down that a producer is attached, and in which incarnation.
    pub(super) fn journal_attached(&mut self, handle: Handle) {
        if let Some(journal) = &mut self.journal
            && let Some(producer) = self.producers.get(handle)
        {
            journal.append(&mut self.arena, &producer.identity.attached());
        }
    }

    /// Writes down that a producer is not known any more.
    pub(super) fn journal_forgotten(&mut self, producer: ProducerId) {
        if let Some(journal) = &mut self.journal {
            journal.append(&mut self.arena, &Entry::ProducerForgotten { producer });
        }
    }

    /// Reserves ids of producers ahead, if few are left.
    pub(super) fn reserve_ids(&mut self) {
        if let Some(journal) = &mut self.journal
            && let Some(next) = self.remembered.reserve_ids()
        {
            journal.append(&mut self.arena, &Entry::ProducerIdsReserved { next });
        }
    }

    /// Writes down what a subscription settled in a partition, if that is kept; whether it
    /// is. To be called whenever something was settled, so that what is noted there is this
    /// subscription's.
    #[inline(never)]
    pub(super) fn journal_settled(
        &mut self,
        destination: DestinationNumber,
        partition: PartitionIndex,
        subscription: Handle,
    ) -> bool {
        let Some(journal) = &mut self.journal else {
            return false;
        };
        let subscription = self.subscriptions.get(subscription);
        let number = subscription.and_then(|it| it.numbers.first());
        let log = &mut self.locals[destination].partitions[partition.0 as usize].log;
        let Some(&subscription) = number else {
            if let Some(settled) = log.settled() {
                settled.clear();
            }
            return false;
        };
        let Some(settled) = log.settled() else {
            return journal.all_so_far() > BatchNumber(0);
        };
        for runs in settled.chunks(SETTLED_PER_ENTRY) {
            let entry = Entry::Settled {
                place: Place {
                    destination,
                    partition,
                },
                subscription,
                runs,
            };
            journal.append(&mut self.arena, &entry);
        }
        settled.clear();
        true
    }

    /// Confirms an acknowledgement once everything so far is durable.
    pub(super) fn confirm_once_durable(
        &mut self,
        now: Now,
        link: Handle,
        consumer: Handle,
        fields: &Acknowledge,
        refusal: Option<Refusal>,
    ) -> Result<(), Fault> {
        if fields.confirm.get() == 0 {
            return Ok(());
        }
        let mut confirmation = Confirmation {
            consumer,
            confirm: fields.confirm.get(),
            refusal: refusal.map_or(0, Refusal::code),
        };
        if let Some(journal) = &mut self.journal {
            let batch = match journal.writer.is_broken() {
                // Behind those that wait to be told the same.
                true => BatchNumber(u64::MAX),
                false => journal.all_so_far(),
            };
            if journal.is_over {
                confirmation.refusal = Refusal::StorageFailed.code();
            } else if batch > BatchNumber(0) {
                let late = Late::Confirmed(confirmation);
                journal.late.push_back((batch, link, late));
                return self.falls_behind(link, LATE_SIZE);
            }
        }
        self.confirm_on(now, link, &confirmation)
    }

    /// Nothing will be durable any more: whoever waits for that is told so, once.
    #[cold]
    fn tell_broken(&mut self, now: Now) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        if !journal.writer.is_broken() || core::mem::replace(&mut journal.is_over, true) {
            return;
        }
        for handle in journal.holding.drain(..) {
            if let Some(producer) = self.producers.get_mut(handle)
                && producer.give_up_flushes(Refusal::StorageFailed)
            {
                self.completing.push(handle);
            }
        }
        let attached = core::mem::take(&mut journal.attached);
        let waiting = core::mem::take(&mut journal.late);
        for (_, attached) in attached {
            self.tell_unattached(now, &attached);
        }
        for (_, link, mut late) in waiting {
            if let Late::Confirmed(confirmation) = &mut late {
                confirmation.refusal = Refusal::StorageFailed.code();
            }
            self.tell_late(now, link, late);
        }
        self.refuse_decided(now);
    }
}

/// Takes from the front of a list what is as it is to be. Most often that is nothing, which
/// costs no drain then.
fn take_while<T>(list: &mut VecDeque<T>, is_due: impl Fn(&T) -> bool) -> Vec<T> {
    if list.front().is_none_or(|it| !is_due(it)) {
        return Vec::new();
    }
    let due = list.iter().take_while(|it| is_due(it)).count();
    list.drain(..due).collect()
}
