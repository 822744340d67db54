//! Disks that a world may have: one for the journal of each shard, and what power cuts
//! leave of it.
//!
//! ```text
//!   Wish ──> under way, each in its own time ──> on the disk ──> told to the shard
//!                 |
//!                cut: a file may be there or not, and a checkpoint in its place or not; of
//!                     each write all sectors, none, those up to one, or any are on the disk
//!                 |
//!                 v
//!   surveys of all files ──> plans ──> every entry to every shard ──> the next run
//!   checkpoints ────────────────^
//! ```
//!
//! The broker that comes up is the same installation: what its clients were told still
//! holds. Its power may be cut again before it has written what it begins with. Now and then
//! a part of a checkpoint is not written, for want of room; or a write to a journal fails, and
//! any part of it is on the disk: then the broker is started again a while later. Now and then
//! a bit is read wrongly, which has to be noticed, and is read again.

mod misread;

use std::collections::BTreeMap;

use courser_core::frame::control::Control;
use courser_core::frame::decode::{self, Frame, Step};
use courser_core::id::{Installation, JournalNumber, Run};
use courser_core::journal::checkpoint::{Damage, Header, Walk};
use courser_core::journal::entry::{Entry, Malformed};
use courser_core::journal::recover::{self, Plan, Stretch};
use courser_core::journal::survey::{Slot, Survey};
use courser_core::journal::writer::{Beginning, Token, Wish, WriteFailed};
use courser_core::journal::{BLOCK_SIZE, Identity, Origin};
use courser_core::shard::{CheckpointFailed, CheckpointWish, Checkpoints, Shard};

use super::{Act, Event, Peer, Worker, World, new_door};
use crate::plan::{FaultKind, MILLISECOND, SECOND};
use crate::random::Random;
use crate::trace::{Fact, Trace};
use crate::violation::{Rule, Violation};

/// The most times that the power is cut again while a broker comes up.
const CUTS_IN_A_ROW_MAX: u32 = 3;
/// The parts of a write that are on the disk as a whole or not at all.
const SECTORS: [usize; 2] = [512, 4096];

/// See the module.
#[derive(Debug)]
pub(super) struct Disk {
    identity: Identity,
    files: BTreeMap<Slot, Image>,
    /// The checkpoint that counts.
    checkpoint: Option<Vec<u8>>,
    /// The one that is being written.
    aside: Vec<u8>,
    /// How many have taken their place.
    checkpoints: u64,
    /// By their numbers, which rise.
    under_way: BTreeMap<u64, Operation>,
}

/// What a file has. It is read anew after each power cut, and most of it is zeros behind
/// all that was ever written: these are not here.
#[derive(Debug, Default)]
struct Image {
    size: usize,
    /// From its beginning; whole blocks.
    written: Vec<u8>,
}

impl Image {
    /// One that is there keeps its bytes.
    fn grow(&mut self, size: usize) {
        self.size = self.size.max(size);
    }

    /// Bytes that are written over.
    fn range(&mut self, start: usize, size: usize) -> &mut [u8] {
        let end = start + size;
        assert!(end <= self.size, "a write ends within its file");
        let blocks = end.next_multiple_of(BLOCK_SIZE);
        self.written.resize(self.written.len().max(blocks), 0);
        &mut self.written[start..end]
    }
}

#[derive(Debug)]
enum Operation {
    Prepare {
        file: Slot,
        size: u64,
    },
    Write {
        file: Slot,
        position: u64,
        token: Token,
        /// As they were when the write began.
        bytes: Vec<u8>,
    },
    Remove {
        file: Slot,
    },
    Checkpoint(CheckpointWish),
}

/// Of so many parts of checkpoints one is not written.
const PARTS_PER_FAILURE: u64 = 60;

impl Disk {
    fn new(installation: Installation, journal: JournalNumber) -> Self {
        Self {
            identity: Identity {
                installation,
                journal,
            },
            files: BTreeMap::new(),
            checkpoint: None,
            aside: Vec::new(),
            checkpoints: 0,
            under_way: BTreeMap::new(),
        }
    }

    /// All disks of a broker, with nothing on them.
    pub(super) fn all(installation: Installation, shards: u16) -> Vec<Self> {
        let journals = (0..shards).map(JournalNumber);
        journals.map(|it| Self::new(installation, it)).collect()
    }

    /// Whether nothing is under way.
    pub(super) fn rests(&self) -> bool {
        self.under_way.is_empty()
    }

    fn begin(&mut self, shard: &mut Shard, number: u64, wish: Wish) {
        let operation = match wish {
            Wish::Prepare { file, size } => Operation::Prepare { file, size },
            Wish::Write {
                file,
                position,
                token,
            } => Operation::Write {
                file,
                position,
                token,
                bytes: shard.storage_pieces(token).collect::<Vec<_>>().concat(),
            },
            Wish::Remove { file } => Operation::Remove { file },
        };
        self.under_way.insert(number, operation);
    }

    /// An operation has come to its end, and the shard is told; one that a power cut has
    /// ended is not. Of so many writes as `errors` says one fails; returns whether it did.
    fn end(
        &mut self,
        shard: &mut Shard,
        random: &mut Random,
        number: u64,
        errors: Option<u64>,
    ) -> Result<bool, Violation> {
        match self.under_way.remove(&number) {
            None => {}
            Some(Operation::Prepare { file, size }) => {
                self.create(file, size);
                shard.prepared(file, true);
            }
            Some(Operation::Write {
                file,
                position,
                token,
                bytes,
            }) => {
                let lent = shard.storage_pieces(token).collect::<Vec<_>>().concat();
                if lent != bytes {
                    return Err(Violation::new(
                        Rule::Pinned,
                        format!("of a write to {file} at {position}"),
                    ));
                }
                if errors.is_some_and(|errors| random.chance(1, errors)) {
                    self.put_some(random, file, position, &bytes);
                    shard.written(token, Err(WriteFailed));
                    return Ok(true);
                }
                self.put(file, position, &bytes, |_| true);
                shard.written(token, Ok(()));
            }
            Some(Operation::Remove { file }) => self.remove(file),
            Some(Operation::Checkpoint(wish)) => {
                let has_room = !random.chance(1, PARTS_PER_FAILURE);
                if has_room {
                    self.carry_out(wish);
                }
                shard.checkpoint_done(has_room.then_some(()).ok_or(CheckpointFailed));
            }
        }
        Ok(false)
    }

    fn create(&mut self, file: Slot, size: u64) {
        let image = self.files.entry(file).or_default();
        image.grow(crate::random::size(size));
    }

    fn remove(&mut self, file: Slot) {
        let removed = self.files.remove(&file);
        assert!(removed.is_some(), "a file that is removed is there");
    }

    /// Does what a checkpoint needs.
    fn carry_out(&mut self, wish: CheckpointWish) {
        match wish {
            CheckpointWish::Write {
                position,
                bytes,
                begins,
            } => {
                if begins {
                    self.aside.clear();
                }
                let start = crate::random::size(position);
                let end = start + bytes.len();
                self.aside.resize(self.aside.len().max(end), 0);
                self.aside[start..end].copy_from_slice(&bytes);
            }
            CheckpointWish::PutInPlace => {
                self.checkpoint = Some(core::mem::take(&mut self.aside));
                self.checkpoints += 1;
            }
        }
    }

    /// Has the sectors of a write on the disk that `keeps` says.
    fn put(&mut self, file: Slot, position: u64, bytes: &[u8], keeps: impl FnMut(usize) -> bool) {
        self.put_in(SECTORS[0], file, position, bytes, keeps);
    }

    fn put_in(
        &mut self,
        sector: usize,
        file: Slot,
        position: u64,
        bytes: &[u8],
        mut keeps: impl FnMut(usize) -> bool,
    ) {
        let start = crate::random::size(position);
        let image = self.files.get_mut(&file).expect("it was prepared");
        let image = image.range(start, bytes.len());
        let sectors = image.chunks_mut(sector).zip(bytes.chunks(sector));
        for (index, (old, new)) in sectors.enumerate() {
            if keeps(index) {
                old.copy_from_slice(new);
            }
        }
    }

    /// The power is cut.
    fn cut(&mut self, random: &mut Random) {
        for operation in core::mem::take(&mut self.under_way).into_values() {
            match operation {
                Operation::Prepare { file, size } => {
                    if random.chance(1, 2) {
                        self.create(file, size);
                    }
                }
                Operation::Remove { file } => {
                    if random.chance(1, 2) {
                        self.remove(file);
                    }
                }
                Operation::Checkpoint(wish) => {
                    if random.chance(1, 2) {
                        self.carry_out(wish);
                    }
                }
                Operation::Write {
                    file,
                    position,
                    bytes,
                    ..
                } => self.put_some(random, file, position, &bytes),
            }
        }
    }

    /// Has any sectors of a write on the disk: all, none, those up to one, or any.
    fn put_some(&mut self, random: &mut Random, file: Slot, position: u64, bytes: &[u8]) {
        let sector = random.pick(&SECTORS);
        let sectors = bytes.len().div_ceil(sector);
        match random.below(4) {
            0 => {}
            1 => self.put_in(sector, file, position, bytes, |_| true),
            2 => {
                let kept = random.count(0, sectors);
                self.put_in(sector, file, position, bytes, |index| index < kept);
            }
            _ => self.put_in(sector, file, position, bytes, |_| random.chance(1, 2)),
        }
    }

    /// What its checkpoint says of itself.
    fn header(&self) -> Result<Option<Header>, Violation> {
        let header = (self.checkpoint.as_ref()).map(|image| Header::read(&self.identity, image));
        header.transpose().map_err(|damage| self.damaged(&damage))
    }

    /// How many checkpoints have taken their place.
    pub(super) fn checkpoints(&self) -> u64 {
        self.checkpoints
    }

    fn damaged(&self, damage: &Damage) -> Violation {
        let journal = self.identity.journal.0;
        Violation::new(Rule::Recovered, format!("journal {journal}, {damage}"))
    }

    /// What its files come to.
    fn plan(&self) -> Result<Plan, Violation> {
        self.plan_of(|slot| &self.files[&slot].written)
    }

    /// What they would come to with these bytes in them.
    fn plan_of<'a>(&self, images: impl Fn(Slot) -> &'a [u8]) -> Result<Plan, Violation> {
        let start = self.header()?.map(|header| header.start);
        let surveys: Vec<Survey> = (self.files.keys())
            .map(|slot| Survey::of(*slot, &self.identity, start.as_ref(), images(*slot)))
            .collect();
        recover::decide(&self.identity, start.as_ref(), &surveys).map_err(|damage| {
            Violation::new(
                Rule::Recovered,
                format!(
                    "journal {}, {} at {}: {:?}",
                    self.identity.journal.0, damage.slot, damage.position, damage.what
                ),
            )
        })
    }

    /// Tells every entry of the checkpoint, if there is one.
    fn tell_checkpoint(
        &self,
        each: impl FnMut(&Entry<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let image = self.checkpoint.as_ref();
        image.map_or(Ok(()), |image| self.tell_checkpoint_of(image, each))
    }

    fn tell_checkpoint_of(
        &self,
        image: &[u8],
        mut each: impl FnMut(&Entry<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let damaged = |damage| self.damaged(&damage);
        let header = Header::read(&self.identity, image).map_err(damaged)?;
        let mut walk = Walk::new(header);
        while let Some(place) = walk.place().map_err(damaged)? {
            let image = image.get(crate::random::size(place)..).unwrap_or_default();
            let size = walk.size(image).map_err(damaged)?;
            let batch = walk
                .batch(image.get(..size).unwrap_or(image))
                .map_err(damaged)?;
            for entry in batch.entries() {
                each(&entry.map_err(malformed)?)?;
            }
        }
        if header.size != image.len() as u64 {
            return Err(Violation::new(
                Rule::Recovered,
                format!("a checkpoint of {} bytes: {header:?}", image.len()),
            ));
        }
        Ok(())
    }

    /// Tells every entry of a step.
    fn tell_step(
        &self,
        step: &recover::Step,
        mut each: impl FnMut(&Entry<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        for batch in step.batches(&self.files[&step.slot].written) {
            let batch = batch
                .map_err(|damage| Violation::new(Rule::Recovered, format!("{:?}", damage.what)))?;
            for entry in batch.entries() {
                each(&entry.map_err(malformed)?)?;
            }
        }
        Ok(())
    }

    /// A slot that no file has.
    fn slot_next(&self) -> Slot {
        let last = self.files.last_key_value();
        Slot(last.map_or(1, |(slot, _)| slot.0 + 1))
    }
}

impl World {
    /// Has a shard's wishes begin.
    pub(super) fn serve_disk(&mut self, shard: usize) {
        let Some(most) = self.plan.disk.map(|disk| disk.operation_max) else {
            return;
        };
        while let Some(wish) = self.workers[shard].shard.storage_wish() {
            self.operations += 1;
            let worker = &mut self.workers[shard].shard;
            self.disks[shard].begin(worker, self.operations, wish);
            let wait = self.random.range(1, most);
            self.plan_event(self.now + wait, Event::Disk(shard, self.operations));
        }
        if let Some(wish) = self.workers[shard].shard.checkpoint_wish() {
            self.operations += 1;
            let operations = &mut self.disks[shard].under_way;
            operations.insert(self.operations, Operation::Checkpoint(wish));
            let wait = self.random.range(1, most);
            self.plan_event(self.now + wait, Event::Disk(shard, self.operations));
        }
    }

    /// An operation of a disk is over.
    pub(super) fn disk_answers(
        &mut self,
        trace: &mut Trace,
        shard: usize,
        operation: u64,
    ) -> Result<(), Violation> {
        let errors = (self.plan.disk.and_then(|disk| disk.write_error))
            .filter(|_| self.act == Act::Storm && self.founded);
        let worker = &mut self.workers[shard].shard;
        if self.disks[shard].end(worker, &mut self.random, operation, errors)? {
            self.faults[FaultKind::WriteError as usize] += 1;
            trace.note(Fact::Fault {
                kind: FaultKind::WriteError,
                connection: None,
            });
            self.model.write_failed();
            let wait = self.random.magnitude(MILLISECOND, 3 * SECOND);
            self.plan_event(self.now + wait, Event::Repair);
        }
        self.plan_turn(shard);
        Ok(())
    }

    /// A broker that cannot write is started again: all that its disks have begun ends as in
    /// a power cut.
    pub(super) fn repair(&mut self, trace: &mut Trace) -> Result<(), Violation> {
        if self.workers.iter().any(|worker| worker.shard.is_broken()) {
            return self.cut_power(trace, None);
        }
        Ok(())
    }

    pub(super) fn plan_cut(&mut self) {
        if let Some(disk) = self.plan.disk {
            let wait = self.random.wait(disk.cut);
            self.plan_event(self.now + wait, Event::Cut);
        }
    }

    /// The power is cut, and the broker comes up again with what its disks have.
    pub(super) fn power_cut(&mut self, trace: &mut Trace) -> Result<(), Violation> {
        if self.act != Act::Storm {
            return Ok(());
        }
        self.plan_cut();
        if !self.founded {
            return Ok(());
        }
        self.cut_power(trace, None)
    }

    /// Bytes have left for a client. Whether the power is cut now: while something is being
    /// written an answer must say nothing that is not durable.
    pub(super) fn is_cut_behind(&mut self, bytes: &[u8]) -> bool {
        let cut_behind = self.plan.disk.and_then(|disk| disk.cut_behind);
        let Some(cut_behind) = cut_behind.filter(|_| self.act == Act::Storm && self.founded) else {
            return false;
        };
        let rests = (self.workers.iter()).all(|worker| worker.shard.is_durable());
        !rests && has_answer(bytes) && self.random.chance(1, cut_behind)
    }

    /// Cuts the power. What is under way to the client of `told` arrives.
    pub(super) fn cut_power(
        &mut self,
        trace: &mut Trace,
        told: Option<usize>,
    ) -> Result<(), Violation> {
        let kind = match told {
            None => FaultKind::Cut,
            Some(_) => FaultKind::CutBehind,
        };
        self.faults[kind as usize] += 1;
        trace.note(Fact::Fault {
            kind,
            connection: told,
        });
        self.lose_connections(told);
        self.past = self.done();
        self.door = new_door(&self.plan, self.random.word());
        self.door_at = None;
        self.answers.fill_with(|| None);
        self.model.power_cut();
        for seat in &mut self.seats {
            if let Peer::Rogue(rogue) = &mut seat.peer {
                rogue.excuse();
            }
        }
        self.come_up()
    }

    /// Brings a broker up on the disks, if there are any.
    pub(super) fn come_up(&mut self) -> Result<(), Violation> {
        if self.plan.disk.is_none() {
            return Ok(());
        }
        for _ in 0..CUTS_IN_A_ROW_MAX {
            for disk in &mut self.disks {
                disk.cut(&mut self.random);
            }
            let patience = self
                .random
                .chance(1, 4)
                .then(|| self.random.count(0, 3 * self.disks.len()));
            if self.recover(patience)? {
                return Ok(());
            }
            self.faults[FaultKind::Cut as usize] += 1;
        }
        for disk in &mut self.disks {
            disk.cut(&mut self.random);
        }
        self.recover(None)?;
        Ok(())
    }

    /// Begins the next run, and has written what it begins with, unless that takes more
    /// operations than there is `patience` for; whether it came up.
    fn recover(&mut self, mut patience: Option<usize>) -> Result<bool, Violation> {
        let plans: Vec<Plan> = (self.disks.iter())
            .map(Disk::plan)
            .collect::<Result<_, _>>()?;
        if self.misreads.chance(1, 4) {
            let index = self.misreads.index(self.disks.len());
            let is_noticed = self.disks[index].misread(&mut self.misreads, &plans[index])?;
            self.faults[FaultKind::Misread as usize] += u64::from(is_noticed);
        }
        let shards = self.plan.shards;
        self.workers = Worker::all(self.installation, shards, &mut self.random);
        let headers: Vec<Option<Header>> = (self.disks.iter())
            .map(Disk::header)
            .collect::<Result<_, _>>()?;
        self.replay(&plans, &headers)?;
        let runs = headers.iter().flatten().map(|header| header.origin.run.0);
        let behind = Run(runs.max().unwrap_or(0) + 1);
        let run = recover::next_run(&plans).max(behind);
        for (index, plan) in plans.iter().enumerate() {
            let shard = &mut self.workers[index].shard;
            shard.restored();
            shard.audit();
            let mut spare = plan.spare.clone();
            spare.retain(|slot| {
                let stays = self.random.chance(1, 2);
                if !stays {
                    self.disks[index].remove(*slot);
                }
                stays
            });
            shard.keep(&Beginning {
                origin: Origin {
                    identity: self.disks[index].identity,
                    run,
                    salt: self.random.word(),
                },
                recovered: plan.kept,
                sequence: plan.sequence_next,
                slot: self.disks[index].slot_next(),
            });
            let header = headers[index].as_ref();
            let checkpoints = Checkpoints {
                every: self
                    .plan
                    .disk
                    .map_or(u64::MAX, |disk| disk.checkpoint_bytes),
                number: header.map_or(0, |header| header.number),
                size: header.map_or(0, |header| header.size),
                behind: 0,
                since: Run(1),
            };
            let needed = plan.needed.iter().copied();
            shard.keep_checkpoints(checkpoints, needed, spare.into_iter());
        }
        for shard in 0..self.workers.len() {
            if !self.settle(shard, &mut patience)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells every shard every entry that is kept.
    fn replay(&mut self, plans: &[Plan], headers: &[Option<Header>]) -> Result<(), Violation> {
        let (disks, workers) = (&self.disks, &mut self.workers);
        let mut each = |entry: &Entry<'_>| {
            for worker in &mut *workers {
                (worker.shard.restore(entry))
                    .map_err(|error| Violation::new(Rule::Recovered, error.to_string()))?;
            }
            Ok(())
        };
        let wrote = |journal: JournalNumber| {
            let header = headers[usize::from(journal.0)].as_ref();
            header.map(|header| header.origin.run)
        };
        let order = recover::order(plans, wrote);
        // A checkpoint of another journal may be of an earlier run than the one that says
        // what the catalogue is.
        for only_catalog in [true, false] {
            let mut each = |entry: &Entry<'_>| match entry {
                Entry::CatalogKept { .. }
                | Entry::DestinationKept { .. }
                | Entry::CatalogChanged { .. } => each(entry),
                _ if only_catalog => Ok(()),
                _ => each(entry),
            };
            for stretch in &order {
                match *stretch {
                    Stretch::Checkpoint(plan) => disks[plan].tell_checkpoint(&mut each)?,
                    Stretch::Step(plan, step) => {
                        disks[plan].tell_step(&plans[plan].steps[step], &mut each)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Has all written that a shard wishes.
    fn settle(&mut self, shard: usize, patience: &mut Option<usize>) -> Result<bool, Violation> {
        let now = self.reading();
        while !self.workers[shard].shard.is_durable() {
            let (worker, disk) = (&mut self.workers[shard].shard, &mut self.disks[shard]);
            worker.turn(now);
            while let Some(wish) = worker.storage_wish() {
                self.operations += 1;
                disk.begin(worker, self.operations, wish);
            }
            while let Some(number) = disk.under_way.keys().next().copied() {
                match patience {
                    Some(0) => return Ok(false),
                    Some(left) => *left -= 1,
                    None => {}
                }
                disk.end(worker, &mut self.random, number, None)?;
            }
        }
        self.plan_turn(shard);
        Ok(true)
    }
}

/// Whether bytes begin with an answer that may promise something, behind whatever messages.
fn has_answer(mut bytes: &[u8]) -> bool {
    while let Ok(Step::Frame(frame, size)) = decode::decode(bytes) {
        if let Frame::Control { control, .. } = frame
            && matches!(
                control,
                Control::ProducerOpened(..)
                    | Control::ConsumerOpened(..)
                    | Control::Completions(..)
                    | Control::Acknowledged(..)
            )
        {
            return true;
        }
        bytes = bytes.get(size..).unwrap_or_default();
    }
    false
}

fn malformed(malformed: Malformed) -> Violation {
    Violation::new(Rule::Recovered, malformed.to_string())
}
