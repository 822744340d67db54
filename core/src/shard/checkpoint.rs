//! How a shard writes down what it has come to, while it goes on.
//!
//! ```text
//!  begun: the journal is read from here on          the journal is durable up to here:
//!    |                                                the checkpoint counts
//!    v                                                          v
//!    catalogue | producers, by id | partitions, by place and offset
//!              `- a slice at a time, each what is so at that time
//! ```
//!
//! Between two slices everything may change: what is deleted or settled ahead of the walk
//! is not met, and whatever changes behind it stands in the journal, which is read from
//! where it was when the checkpoint was begun. What a slice says may still wait for a
//! flush: so a checkpoint counts once the journal is durable as far as it was when the last
//! slice was filled.
//!
//! Producers come before partitions. Then whatever is said of a producer's sends is true
//! of messages that are still to come in the walk, or are settled.
//!
//! Invariants: one slice at most is with the device; a message is in one slice at most, in
//! the order of offsets.

use core::ops::ControlFlow;

use zerocopy::little_endian::U32;

use super::Shard;
use super::consumer::Subscription;
use super::identity::Identity;
use super::kept::OF_THE_QUEUE;
use super::locals::Local;
use super::remembered::Place as Known;
use crate::id::{
    BatchNumber, CatalogVersion, DestinationNumber, FileSequence, Offset, PartitionIndex,
    ProducerId, Run, ShardIndex, SubscriptionNumber,
};
use crate::journal::batch::{self, HEADER_SIZE, Label, Seal};
use crate::journal::checkpoint::{Division, Header};
use crate::journal::entry::{self, Entry, PageImage, Place};
use crate::journal::file::FIRST_BATCH;
use crate::journal::survey::Slot;
use crate::journal::{Origin, Start};
use crate::limits;
use crate::memory::Arena;
use crate::partition::Partition;
use crate::partition::log::Kept;
use crate::partition::log::pages::Image;
use crate::planted::Planted;
use crate::subscription::Part;
use crate::time::Now;

/// When checkpoints are made, and which comes next.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints {
    /// One is begun when so many bytes were journalled since the last.
    pub every: u64,
    /// How many the journal has had.
    pub number: u64,
    /// Bytes that the last one took, 0 without one.
    pub size: u64,
    /// Bytes that earlier runs have journalled since.
    pub behind: u64,
    /// The first run in which all is divided among as many shards as now.
    pub since: Run,
}

/// What a checkpoint needs of the device. The answer to each is
/// [`Shard::checkpoint_done`], before the next is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointWish {
    /// Write these bytes to the file that lies aside; the first of them begin it anew.
    Write {
        /// Where in it, in bytes.
        position: u64,
        /// What.
        bytes: Vec<u8>,
        /// Whether they are the first.
        begins: bool,
    },
    /// Give the file its name, for good, with all that was written to it.
    PutInPlace,
}

/// A checkpoint of which something could not be written: it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointFailed;

/// The checkpoints of a shard.
#[derive(Debug)]
pub(super) struct Keeper {
    plan: Checkpoints,
    /// What the writer had written when the last one was begun.
    counted: u64,
    /// The last one was given up.
    has_failed: bool,
    /// The next so many times that a file is not to be had, none is begun for want of it.
    pauses: u32,
    /// So many times were left out before the last one that was begun for want of a file.
    paused: u32,
    current: Option<Box<Checkpoint>>,
}

/// One that is being written.
#[derive(Debug)]
struct Checkpoint {
    origin: Origin,
    start: Start,
    stage: Stage,
    /// Subscriptions had lower numbers when it was begun.
    numbered: SubscriptionNumber,
    /// Where the next batch goes.
    position: u64,
    batches: u64,
    wish: Option<CheckpointWish>,
    /// Something is with the device.
    is_asked: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Catalog,
    /// From this place of their table on.
    Subscriptions(usize),
    /// From this producer on, and of that one from this partition on.
    Producers(ProducerId, usize),
    /// From there on.
    Partitions(Walked),
    /// All is written but the header; the journal has to be durable up to this batch.
    Waiting(BatchNumber),
    /// The header is written.
    Headed,
    /// It is to have its name.
    Placing,
}

/// A place in the walk through the partitions.
#[derive(Clone, Copy, Debug, Default)]
struct Walked {
    slot: usize,
    /// In whose partitions it stands, if it is within some.
    destination: Option<DestinationNumber>,
    /// The how-manieth of the shard's own ones.
    partition: usize,
    /// The next message of that one.
    offset: Offset,
    /// What came behind this offset came behind the partition's first slice, and stands
    /// in the journal if it is kept.
    end: Option<Offset>,
}

/// A batch that is filled.
struct Slice {
    bytes: Vec<u8>,
    entries: u32,
}

impl Slice {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(2 * limits::CHECKPOINT_SLICE as usize);
        bytes.resize(HEADER_SIZE, 0);
        Self { bytes, entries: 0 }
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= limits::CHECKPOINT_SLICE as usize
    }

    /// Whether an entry of so many bytes is for the next one.
    fn is_full_for(&self, size: usize) -> bool {
        self.is_full() || self.entries > 0 && self.bytes.len() + size > MOST
    }

    fn add(&mut self, entry: &Entry<'_>) {
        let at = self.bytes.len();
        self.bytes.resize(at + entry.size(), 0);
        entry.write(&mut self.bytes[at..]);
        self.entries += 1;
    }
}

/// The most bytes of a batch.
const MOST: usize = limits::BATCH_SIZE_MAX as usize;

/// The most bytes that are left free for what is settled of the messages of a slice.
const RESERVE_MAX: usize = MOST / 4;

/// Where files are not to be had, a checkpoint is begun so rarely at last: each so many
/// times that one is asked for.
const PAUSES_MAX: u32 = 63;

/// The bytes of what says how often one message came back.
const RETURNED_SIZE: usize = 64;

/// As many runs of what is settled stand in one entry.
const SETTLED_PER_ENTRY: usize = 256;

/// The bytes of what says where messages lie.
const PAGED_SIZE: usize = 48;

/// So many segments in pages are looked through in one slice.
const IMAGES_MAX: usize = 64;

impl Keeper {
    pub(super) fn new(plan: Checkpoints) -> Self {
        Self {
            plan,
            counted: 0,
            has_failed: false,
            pauses: 0,
            paused: 0,
            current: None,
        }
    }

    /// Whether one is to be begun because a file is not to be had: if it may say less than
    /// the last one, and more and more rarely as long as that does not help.
    fn may_make_room(&mut self, journalled: u64) -> bool {
        if self.current.is_some() || journalled == self.counted && !self.has_failed {
            return false;
        }
        if let Some(left) = self.pauses.checked_sub(1) {
            self.pauses = left;
            return false;
        }
        self.paused = (2 * self.paused + 1).min(PAUSES_MAX);
        self.pauses = self.paused;
        true
    }

    /// Whether one is to be begun, now that so many bytes were journalled, or is to go on
    /// with the journal durable so far.
    #[inline]
    pub(super) fn has_work(&self, journalled: u64, durable: BatchNumber) -> bool {
        match &self.current {
            Some(current) => current.has_work(durable),
            None => self.behind(journalled) >= self.plan.every.max(self.plan.size),
        }
    }

    /// Bytes that were journalled since the last one was begun.
    #[inline]
    fn behind(&self, journalled: u64) -> u64 {
        self.plan.behind + (journalled - self.counted)
    }
}

impl Checkpoint {
    fn has_work(&self, durable: BatchNumber) -> bool {
        match self.stage {
            _ if self.is_asked => false,
            Stage::Waiting(last) => durable >= last,
            _ => true,
        }
    }

    /// Has a slice written.
    fn write(&mut self, mut slice: Slice, now: Now) {
        if slice.entries == 0 {
            return;
        }
        let mut seal = Seal::new();
        seal.count(slice.entries);
        seal.extend(&slice.bytes[HEADER_SIZE..]);
        self.batches += 1;
        let label = Label {
            number: BatchNumber(self.batches),
            durable_before: BatchNumber(self.batches - 1),
            written: now.wall,
        };
        let header = seal.finish(&self.origin, self.position, label);
        slice.bytes[..HEADER_SIZE].copy_from_slice(&header);
        slice.bytes.resize(batch::size(slice.bytes.len()), 0);
        self.ask(slice.bytes);
    }

    fn ask(&mut self, bytes: Vec<u8>) {
        let position = self.position;
        self.position += bytes.len() as u64;
        self.is_asked = true;
        self.wish = Some(CheckpointWish::Write {
            position,
            bytes,
            begins: position == FIRST_BATCH,
        });
    }
}

impl Shard {
    /// Has checkpoints made of the journal that [`Shard::keep`] gave, whose files of earlier
    /// runs are these: `needed` in the order of their sequences, and those that are not.
    pub fn keep_checkpoints(
        &mut self,
        plan: Checkpoints,
        needed: impl Iterator<Item = (FileSequence, Slot)>,
        spare: impl Iterator<Item = Slot>,
    ) {
        if let Some(journal) = &mut self.journal {
            let least = u64::from(limits::JOURNAL_FILE_SIZE_FIRST);
            let size = plan.every.next_multiple_of(FIRST_BATCH);
            let size = size.clamp(least, limits::JOURNAL_FILE_SIZE.into());
            journal.writer.take_files(size, needed, spare);
            journal.keeper = Some(Keeper::new(plan));
        }
    }

    /// Begins a checkpoint, unless one is being written or none are made.
    pub fn begin_checkpoint(&mut self) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        let (start, bytes) = (journal.writer.start(), journal.writer.bytes());
        let origin = journal.writer.origin();
        if let Some(keeper) = &mut journal.keeper
            && keeper.current.is_none()
        {
            if let Some(pager) = &mut self.pager {
                pager.checkpoint_begun();
            }
            keeper.counted = bytes;
            keeper.plan.behind = 0;
            keeper.has_failed = false;
            keeper.current = Some(Box::new(Checkpoint {
                // Its batches are none of the journal's.
                origin: Origin {
                    salt: !origin.salt,
                    ..origin
                },
                start,
                stage: Stage::Catalog,
                numbered: self.kept.number_next(),
                position: FIRST_BATCH,
                batches: 0,
                wish: None,
                is_asked: false,
            }));
        }
    }

    /// Whether a checkpoint that is made before the end spares the next start much of what
    /// it would read.
    #[must_use]
    pub fn gains_by_checkpoint(&self) -> bool {
        let Some(journal) = &self.journal else {
            return false;
        };
        let bytes = journal.writer.bytes();
        let least = u64::from(limits::LAST_CHECKPOINT_BYTES);
        let keeper = journal.keeper.as_ref();
        keeper.is_some_and(|it| it.behind(bytes) >= least.max(it.plan.size / 4))
    }

    /// Whether a checkpoint is being written.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        let keeper = self.journal.as_ref().and_then(|it| it.keeper.as_ref());
        keeper.is_some_and(|keeper| keeper.current.is_some())
    }

    /// What a checkpoint needs now, if it needs anything.
    pub fn checkpoint_wish(&mut self) -> Option<CheckpointWish> {
        let keeper = self.journal.as_mut()?.keeper.as_mut()?;
        keeper.current.as_mut()?.wish.take()
    }

    /// What a checkpoint needed is done, or could not be: then it is given up, and the next
    /// one tries again.
    pub fn checkpoint_done(&mut self, result: Result<(), CheckpointFailed>) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        let Some(keeper) = &mut journal.keeper else {
            return;
        };
        let Some(mut current) = keeper.current.take() else {
            return;
        };
        current.is_asked = false;
        let is_placed = result.is_ok() && matches!(current.stage, Stage::Placing);
        if let Some(pager) = &mut self.pager
            && (is_placed || result.is_err())
        {
            pager.checkpoint_ended(is_placed);
        }
        match (result, current.stage) {
            (Err(CheckpointFailed), _) => keeper.has_failed = true,
            (Ok(()), Stage::Placing) => {
                keeper.plan.number += 1;
                keeper.plan.size = current.position;
                if current.start.sequence > journal.writer.first() {
                    (keeper.pauses, keeper.paused) = (0, 0);
                }
                journal.writer.let_go(current.start.sequence);
            }
            (Ok(()), _) => keeper.current = Some(current),
        }
    }

    /// A file was not to be had, and is asked for again: perhaps a checkpoint lets one go
    /// that is there.
    #[cold]
    pub(super) fn make_room_for_journal(&mut self) {
        if let Some(journal) = &mut self.journal
            && journal.writer.has_files_behind()
            && let Some(keeper) = &mut journal.keeper
            && keeper.may_make_room(journal.writer.bytes())
        {
            self.begin_checkpoint();
        }
    }

    /// Begins a checkpoint if it is time, or brings the one that is being written a step
    /// further.
    #[cold]
    pub(super) fn turn_checkpoint(&mut self, now: Now) {
        self.begin_checkpoint();
        let keeper = self.journal.as_mut().and_then(|it| it.keeper.as_mut());
        let Some(mut current) = keeper.and_then(|keeper| keeper.current.take()) else {
            return;
        };
        if !current.is_asked {
            self.go_on(&mut current, now);
        }
        if let Some(keeper) = self.journal.as_mut().and_then(|it| it.keeper.as_mut()) {
            keeper.current = Some(current);
        }
    }

    fn go_on(&mut self, current: &mut Checkpoint, now: Now) {
        let mut slice = Slice::new();
        current.stage = match current.stage {
            Stage::Catalog => {
                self.keep_catalog(&mut slice);
                Stage::Subscriptions(0)
            }
            Stage::Subscriptions(from) => match self.keep_named(from, &mut slice) {
                Some(next) => Stage::Subscriptions(next),
                None => Stage::Producers(ProducerId(0), 0),
            },
            Stage::Producers(id, partition) => {
                match self.keep_producers((id, partition), &mut slice) {
                    Some((id, partition)) => Stage::Producers(id, partition),
                    None => Stage::Partitions(Walked::default()),
                }
            }
            Stage::Partitions(walked) => {
                match self.keep_partitions(walked, current.numbered, &mut slice) {
                    Some(next) => Stage::Partitions(next),
                    None => Stage::Waiting(self.journalled()),
                }
            }
            Stage::Waiting(_) => {
                let header = self.header(current);
                let position = core::mem::replace(&mut current.position, 0);
                current.ask(header);
                current.position = position;
                Stage::Headed
            }
            Stage::Headed => {
                current.is_asked = true;
                current.wish = Some(CheckpointWish::PutInPlace);
                Stage::Placing
            }
            Stage::Placing => return,
        };
        current.write(slice, now);
    }

    /// The batch with which all that was journalled so far is durable.
    fn journalled(&self) -> BatchNumber {
        let journal = self.journal.as_ref();
        journal.map_or(BatchNumber(0), |it| it.writer.last())
    }

    fn header(&self, current: &Checkpoint) -> Vec<u8> {
        let keeper = self.journal.as_ref().and_then(|it| it.keeper.as_ref());
        let plan = keeper.map(|keeper| keeper.plan);
        let header = Header {
            origin: current.origin,
            number: plan.map_or(0, |plan| plan.number) + 1,
            start: current.start,
            batches: current.batches,
            size: current.position,
            division: Division {
                shards: self.mesh.placement.shards(),
                since: plan.map_or(current.origin.run, |plan| plan.since),
            },
        };
        header.block().to_vec()
    }

    /// The catalogue, as a whole, where changes of it are decided; and the ids and numbers
    /// that were given out, by whatever shard.
    fn keep_catalog(&self, slice: &mut Slice) {
        if self.config.shard == ShardIndex(0) {
            let version = self.catalog.version();
            let (slots, vacant) = self.catalog.slots();
            let vacant: Vec<U32> = vacant.map(|number| number.0.into()).collect();
            slice.add(&Entry::CatalogKept {
                version,
                slots: u32::try_from(slots).unwrap_or(u32::MAX),
                vacant: &vacant,
            });
            for destination in self.catalog.entries_from(0) {
                slice.add(&Entry::DestinationKept {
                    version,
                    destination: destination.clone(),
                });
            }
            // It stands in the journal, perhaps before the checkpoint was begun.
            if let Some(change) = self.decided_change() {
                slice.add(&Entry::CatalogChanged {
                    version: CatalogVersion(version.0 + 1),
                    change: change.clone(),
                });
            }
        }
        for next in self.remembered.ids_reserved() {
            slice.add(&Entry::ProducerIdsReserved { next });
        }
        let next = self.kept.number_next();
        slice.add(&Entry::SubscriptionsNumbered { next });
    }

    /// Subscriptions that are kept and have a name, from this place of their table on; who
    /// comes next.
    fn keep_named(&self, from: usize, slice: &mut Slice) -> Option<usize> {
        for (place, (handle, subscription)) in self.subscriptions.iter_from(from) {
            if slice.is_full() {
                return Some(place);
            }
            if self.is_kept(handle) {
                keep_subscription(subscription, |_| true, slice);
            }
        }
        None
    }

    /// Producers from this one on, and of that one from a partition on, as many as fit; who
    /// and what comes next.
    fn keep_producers(
        &self,
        (from, mut partition): (ProducerId, usize),
        slice: &mut Slice,
    ) -> Option<(ProducerId, usize)> {
        for (id, known) in self.remembered.known_from(from) {
            if id != from {
                partition = 0;
            }
            let identity = match known {
                Known::Attached(handle) => self.producers.get(handle).map(|it| &it.identity),
                Known::Detached(number) => self.remembered.detached(number),
            };
            let Some(identity) = identity else { continue };
            if slice.is_full_for(Identity::KEPT_SIZE_MAX) {
                return Some((id, partition));
            }
            if partition == 0 {
                slice.add(&identity.attached());
            }
            for index in partition..identity.partitions() {
                if slice.is_full_for(Identity::KEPT_SIZE_MAX) {
                    return Some((id, index));
                }
                if let Some((reached, fates)) = identity.sent(index) {
                    slice.add(&Entry::ProducerSent {
                        producer: identity.id,
                        reached: &[reached],
                        fates: &fates,
                    });
                }
            }
        }
        None
    }

    /// Partitions from there on, as many as fit; where it goes on.
    fn keep_partitions(
        &self,
        mut walked: Walked,
        numbered: SubscriptionNumber,
        slice: &mut Slice,
    ) -> Option<Walked> {
        while let Some(local) = self.locals.from(walked.slot) {
            let slot = local.number.slot();
            if (walked.slot, walked.destination) != (slot, Some(local.number)) {
                walked = Walked {
                    slot,
                    destination: Some(local.number),
                    ..Walked::default()
                };
                keep_term(local, slice);
            }
            let of_the_rest = local.own.indexes().skip(walked.partition);
            for (index, own) in of_the_rest.zip(walked.partition..) {
                if slice.is_full() {
                    return Some(walked);
                }
                walked.partition = own;
                let partition = &local.partitions[index];
                if walked.end.is_none() {
                    // The walk through subscriptions has not met those that came since. What
                    // the journal says of them is told later, and they are to have their
                    // parts in what is told now.
                    let came = partition.parts.iter().map(|(handle, _)| *handle);
                    for came in came.filter_map(|handle| self.subscriptions.get(handle)) {
                        keep_subscription(came, |number| number >= numbered, slice);
                    }
                }
                let kept = KeptPartition {
                    arena: &self.arena,
                    partition,
                    place: Place {
                        destination: local.number,
                        partition: PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX)),
                    },
                    run: self.run,
                    keeps: local.keeps,
                    numbers: (partition.parts.iter())
                        .map(|(handle, _)| match self.subscriptions.get(*handle) {
                            Some(subscription) => &subscription.numbers[..],
                            None => &[],
                        })
                        .collect(),
                };
                if !kept.keep(&mut walked, slice) {
                    return Some(walked);
                }
                walked.partition = own + 1;
                walked.offset = Offset(0);
                walked.end = None;
            }
            walked.slot = slot + 1;
        }
        None
    }
}

/// That a subscription with a name is there, under those of its numbers that are wanted.
fn keep_subscription(
    subscription: &Subscription,
    wants: impl Fn(SubscriptionNumber) -> bool,
    slice: &mut Slice,
) {
    let Some(name) = subscription.name() else {
        return;
    };
    for &number in subscription.numbers.iter().filter(|number| wants(**number)) {
        slice.add(&Entry::SubscriptionMade {
            destination: subscription.destination(),
            subscription: number,
            sharing: subscription.membership().kind(),
            durable: true,
            name,
        });
    }
}

/// How often a destination was had alone: who did last may not be known any more, and who
/// was shut out before that is.
fn keep_term(local: &Local, slice: &mut Slice) {
    if local.term > 0 {
        slice.add(&Entry::TermReached {
            destination: local.number,
            term: local.term,
        });
    }
}

/// A partition of which the messages are written down.
struct KeptPartition<'a> {
    arena: &'a Arena,
    partition: &'a Partition,
    place: Place,
    /// The run that writes it, and wrote its pages.
    run: Run,
    keeps: bool,
    /// What each of its parts is called in the journals.
    numbers: Vec<&'a [SubscriptionNumber]>,
}

impl KeptPartition<'_> {
    /// Writes down what fits from where the walk stands; whether that is all.
    fn keep(&self, walked: &mut Walked, slice: &mut Slice) -> bool {
        let log = &self.partition.log;
        if walked.end.is_none() {
            self.keep_parts(slice);
            let first = log.floor();
            if first > Offset(0) {
                // The entry that said so may lie before what is read, and the wall clock may
                // have been set back since.
                let place = self.place;
                slice.add(&Entry::Emptied { place, first });
                walked.offset = walked.offset.max(first);
            }
        }
        let end = *walked.end.get_or_insert(log.next());
        if self.keeps && !self.keep_messages(walked, end, slice) {
            return false;
        }
        let place = self.place;
        slice.add(&Entry::PartitionKept { place, next: end });
        let next = log.reserved_at_most();
        if next > Offset(0) {
            slice.add(&Entry::OffsetsReserved { place, next });
        }
        true
    }

    /// Says where the parts begin, under each of their names: what is said behind that is
    /// all that is known of them.
    fn keep_parts(&self, slice: &mut Slice) {
        for ((_, part), numbers) in self.partition.parts.iter().zip(&self.numbers) {
            for &subscription in numbers.iter().filter(|number| **number != OF_THE_QUEUE) {
                slice.add(&Entry::PartBegun {
                    place: self.place,
                    subscription,
                    start: part.cursor(),
                });
            }
        }
    }

    /// Says how often a message was delivered to whom it came back from.
    fn keep_returned(&self, offset: Offset, slice: &mut Slice) {
        for ((_, part), numbers) in self.partition.parts.iter().zip(&self.numbers) {
            if let Some(&subscription) = numbers.first()
                && let Some(deliveries) = part.came_back(offset)
            {
                slice.add(&Entry::Returned {
                    place: self.place,
                    subscription,
                    run: entry::Run::new(offset, 1),
                    deliveries: deliveries.into(),
                });
            }
        }
    }

    /// As [`KeptPartition::keep_returned`], of all messages that lie in some pages.
    fn keep_returned_of(&self, image: &Image, slice: &mut Slice) {
        for ((_, part), numbers) in self.partition.parts.iter().zip(&self.numbers) {
            let Some(&subscription) = numbers.first() else {
                continue;
            };
            let offsets = (image.first.0..).take(image.count as usize).map(Offset);
            let read = offsets.take_while(|offset| *offset < part.fresh());
            for (offset, deliveries) in read.filter_map(|it| Some((it, part.came_back(it)?))) {
                slice.add(&Entry::Returned {
                    place: self.place,
                    subscription,
                    run: entry::Run::new(offset, 1),
                    deliveries: deliveries.into(),
                });
            }
        }
    }

    fn image(&self, image: &Image) -> PageImage {
        PageImage {
            run: self.run,
            page: image.at.page,
            size: image.size,
            sum: image.sum,
            first: image.first,
            count: image.count,
        }
    }

    fn keep_messages(&self, walked: &mut Walked, end: Offset, slice: &mut Slice) -> bool {
        let log = &self.partition.log;
        // Of each part, what is said here and is settled.
        let mut settled: Vec<Vec<entry::Run>> = vec![Vec::new(); self.numbers.len()];
        let parts = self.partition.parts.iter();
        let reserve = settled.len() * (SETTLED_PER_ENTRY * size_of::<entry::Run>() + RETURNED_SIZE);
        let mut images = 0;
        let walk = log.each_from(self.arena, walked.offset, end, |kept| {
            let is_long = |runs: &Vec<entry::Run>| runs.len() >= SETTLED_PER_ENTRY;
            let size = match &kept {
                Kept::Message(_, frame) => frame.size(),
                Kept::Image(_) => PAGED_SIZE,
            };
            let is_full = slice.is_full_for(size + reserve.min(RESERVE_MAX));
            if is_full || images == IMAGES_MAX || settled.iter().any(is_long) {
                return ControlFlow::Break(());
            }
            let (offset, frame) = match kept {
                Kept::Message(offset, frame) => (offset, frame),
                Kept::Image(image) => {
                    images += 1;
                    walked.offset = Offset(image.first.0 + u64::from(image.count));
                    slice.add(&Entry::Paged {
                        place: self.place,
                        image: self.image(&image),
                    });
                    for (runs, (_, part)) in settled.iter_mut().zip(parts.clone()) {
                        settled_of(part, &image, runs);
                    }
                    self.keep_returned_of(&image, slice);
                    return ControlFlow::Continue(());
                }
            };
            walked.offset = Offset(offset.0 + 1);
            let claims = || {
                parts
                    .clone()
                    .map(|(_, part)| part.claims(offset) || Planted::ForgetSettled.is_awake())
            };
            if log.retains() || claims().any(|claims| claims) {
                frame.copy_to(&mut slice.bytes);
                slice.entries += 1;
                for (runs, claims) in settled.iter_mut().zip(claims()) {
                    if !claims {
                        push(runs, offset);
                    }
                }
                self.keep_returned(offset, slice);
            }
            ControlFlow::Continue(())
        });
        for (runs, numbers) in settled.iter().zip(&self.numbers) {
            if let Some(&subscription) = numbers.first()
                && !runs.is_empty()
            {
                slice.add(&Entry::Settled {
                    place: self.place,
                    subscription,
                    runs,
                });
            }
        }
        walk.is_continue()
    }
}

/// Adds what a part has settled of the messages that lie in some pages.
fn settled_of(part: &Part, image: &Image, runs: &mut Vec<entry::Run>) {
    if part.fresh() <= image.first {
        return;
    }
    for offset in (image.first.0..).take(image.count as usize).map(Offset) {
        if !part.claims(offset) {
            push(runs, offset);
        }
    }
}

/// Adds an offset behind those that are there.
fn push(runs: &mut Vec<entry::Run>, offset: Offset) {
    if let Some(last) = runs.last_mut()
        && last.first.get() + last.count.get() == offset.0
    {
        last.count += 1;
    } else {
        runs.push(entry::Run::new(offset, 1));
    }
}

impl Identity {
    /// The most bytes that it takes of a checkpoint, with its sends to one partition.
    const KEPT_SIZE_MAX: usize = 1024
        + size_of::<entry::Reached>()
        + 2 * (limits::POSITIONS_KEPT as usize + 1) * size_of::<entry::Fate>();
}

const _: () = assert!(Identity::KEPT_SIZE_MAX + HEADER_SIZE <= MOST);
