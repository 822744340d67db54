//! Who a producer is beyond its links: what a later one has to know to go on
//! where an earlier one broke.
//!
//! Invariant: of each partition, every send up to `last` had its turn and has one
//! outcome for ever; the next one that has is `last + 1`.

use super::positions::{Outcome, Positions};
use crate::auth::Principal;
use crate::id::{DestinationNumber, Epoch, ProducerId};
use crate::journal::entry::{Entry, Fate, Reached};
use crate::time::{Monotonic, Wall};

/// A producer's sends to one partition.
#[derive(Debug, Default)]
struct Lane {
    /// The partition sequence of the last one that had its turn.
    last: u64,
    /// The producer's sequence of it.
    sequence: u64,
    /// While `last + 1` is this, the next one may leave some out: those of an earlier run
    /// that were not to be flushed, of which nothing is known. 0 if none was. While
    /// earlier runs are told: how far the outcomes are known without a gap.
    resumed: u64,
    positions: Positions,
}

/// Where a send stands among those of its producer to its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is the next one.
    Due,
    /// One before it is missing.
    Early,
    /// It had its turn, and this is what became of it, if that is still known.
    Had(Option<Outcome>),
}

/// What a header says that no send of this producer can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoSend;

/// Whether a producer shares its destination with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Access {
    #[default]
    Shared = 0,
    /// It is the only one that is attached.
    Exclusive = 1,
    /// As that, and it waits until it may be.
    Taking = 2,
}

impl Access {
    /// The mode that `code` stands for.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Shared),
            1 => Some(Self::Exclusive),
            2 => Some(Self::Taking),
            _ => None,
        }
    }

    /// What it is when it waits no longer.
    pub(super) fn once_attached(self) -> Self {
        match self {
            Self::Shared => Self::Shared,
            Self::Exclusive | Self::Taking => Self::Exclusive,
        }
    }
}

/// What one attachment of a producer has that an earlier one has not, in whatever order
/// they are heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// When its client asked for it, by the clock that all shards read: the home decides
    /// which incarnation it is.
    Asked(Monotonic),
    /// The incarnation that the home has decided.
    Decided(Epoch),
}

/// A producer.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) id: ProducerId,
    /// Its incarnation: how often it was attached.
    pub(super) epoch: Epoch,
    /// When that was asked for, where it was decided.
    asked: Monotonic,
    pub(super) destination: DestinationNumber,
    /// Who opened it: nobody else attaches it.
    pub(super) principal: Principal,
    /// Whether it shares its destination with other producers.
    pub(super) access: Access,
    /// Of which term of its destination it was when it was last attached.
    pub(super) term: u32,
    /// What it calls itself.
    pub(super) name: Box<str>,
    lanes: Box<[Lane]>,
}

impl Identity {
    /// A producer that has sent nothing.
    pub(super) fn new(
        id: ProducerId,
        principal: Principal,
        destination: DestinationNumber,
        partitions: usize,
        name: &str,
    ) -> Self {
        Self {
            id,
            epoch: Epoch(1),
            asked: Monotonic(0),
            destination,
            principal,
            access: Access::Shared,
            term: 0,
            name: name.into(),
            lanes: (0..partitions).map(|_| Lane::default()).collect(),
        }
    }

    /// Whether it was never attached before.
    pub(super) fn is_new(&self) -> bool {
        self.epoch == Epoch(1)
    }

    /// What a handle keeps whose producer went to another: enough to know whose
    /// messages it is that come too late.
    pub(super) fn husk(&self) -> Self {
        Self {
            id: self.id,
            epoch: self.epoch,
            asked: self.asked,
            destination: self.destination,
            principal: self.principal,
            access: self.access,
            term: self.term,
            name: Box::default(),
            lanes: Box::default(),
        }
    }

    /// Whether an attachment is later than the last one; it may be heard of before an
    /// earlier one.
    pub(super) fn may_attach(&self, attachment: Attachment) -> bool {
        match attachment {
            Attachment::Asked(asked) => self.epoch.0 < u32::MAX && self.asked <= asked,
            Attachment::Decided(epoch) => self.epoch < epoch,
        }
    }

    /// Goes on in another incarnation.
    pub(super) fn attach(&mut self, attachment: Attachment) {
        match attachment {
            Attachment::Asked(asked) => {
                self.asked = asked;
                self.epoch.0 += 1;
            }
            Attachment::Decided(epoch) => self.epoch = epoch,
        }
    }

    /// Whether the next send to a partition is this one: the producer's `sequence`-th
    /// and its `partition_sequence`-th to this partition.
    #[inline]
    pub(super) fn is_next(&self, partition: u32, partition_sequence: u64, sequence: u64) -> bool {
        self.lanes
            .get(partition as usize)
            .is_some_and(|lane| partition_sequence == lane.last + 1 && sequence > lane.sequence)
    }

    /// What was sent in earlier runs is told: some of it may be missing at the end.
    pub(super) fn resume(&mut self) {
        for lane in &mut self.lanes {
            lane.resumed = lane.last + 1;
        }
    }

    /// Whether a send to a partition is the first of this run, whose producer goes on
    /// behind others that are not known any more; it is the next one then.
    #[cold]
    pub(super) fn goes_on_with(
        &mut self,
        partition: u32,
        partition_sequence: u64,
        sequence: u64,
    ) -> bool {
        let Some(lane) = self.lanes.get_mut(partition as usize) else {
            return false;
        };
        let goes_on = lane.resumed == lane.last + 1
            && partition_sequence > lane.resumed
            && sequence > lane.sequence;
        if goes_on {
            lane.last = partition_sequence - 1;
        }
        goes_on
    }

    /// The send that was due is refused, and will come again: nothing leaves it out.
    pub(super) fn is_waited_for(&mut self, partition: u32) {
        if let Some(lane) = self.lanes.get_mut(partition as usize) {
            lane.resumed = 0;
        }
    }

    /// Where a send stands.
    ///
    /// # Errors
    ///
    /// If the partition does not exist, there is no such partition sequence, or a new
    /// send has the sequence of an earlier one.
    pub(super) fn turn(
        &self,
        partition: u32,
        partition_sequence: u64,
        sequence: u64,
    ) -> Result<Turn, NoSend> {
        if self.is_next(partition, partition_sequence, sequence) {
            return Ok(Turn::Due);
        }
        let lane = self.lanes.get(partition as usize).ok_or(NoSend)?;
        if partition_sequence == 0 || partition_sequence == lane.last + 1 {
            return Err(NoSend);
        }
        if partition_sequence > lane.last {
            return Ok(Turn::Early);
        }
        Ok(Turn::Had(lane.positions.find(partition_sequence)))
    }

    /// The send that was due has had its turn.
    #[inline]
    pub(super) fn had_turn(
        &mut self,
        partition: u32,
        sequence: u64,
        outcome: &Outcome,
        grow: impl FnOnce(usize) -> bool,
    ) {
        self.had_turns(partition, sequence, 1, outcome, grow);
    }

    /// The send that was due and those that follow it have had their turns, `count`
    /// in all, the last of them the producer's `sequence`-th. `outcome` is that of
    /// the first; the others have the places behind it.
    #[inline]
    pub(super) fn had_turns(
        &mut self,
        partition: u32,
        sequence: u64,
        count: u32,
        outcome: &Outcome,
        grow: impl FnOnce(usize) -> bool,
    ) {
        let lane = &mut self.lanes[partition as usize];
        let first = lane.last + 1;
        lane.last += u64::from(count);
        lane.sequence = sequence;
        lane.positions.note(first, count, outcome, grow);
    }

    /// In an earlier run the send with this partition sequence and sequence had its turn,
    /// and all before it.
    pub(super) fn had_turn_before(
        &mut self,
        partition: u32,
        (partition_sequence, sequence): (u64, u64),
        outcome: &Outcome,
        grow: impl FnOnce(usize) -> bool,
    ) {
        if let Some(lane) = self.lanes.get_mut(partition as usize)
            && partition_sequence > lane.last
        {
            lane.last = partition_sequence - 1;
            self.had_turn(partition, sequence, outcome, grow);
        }
    }

    /// That it is attached, as journals and checkpoints say it.
    pub(super) fn attached(&self) -> Entry<'_> {
        Entry::ProducerAttached {
            producer: self.id,
            epoch: self.epoch,
            destination: self.destination,
            term: self.term,
            principal: self.principal,
            exclusive: self.access == Access::Exclusive,
            name: &self.name,
        }
    }

    /// How many partitions it may send to.
    pub(super) fn partitions(&self) -> usize {
        self.lanes.len()
    }

    /// How far it has come in a partition, and what became of its last sends there; `None`
    /// if it sent nothing.
    pub(super) fn sent(&self, partition: usize) -> Option<(Reached, Vec<Fate>)> {
        let lane = self.lanes.get(partition).filter(|lane| lane.last > 0)?;
        let index = u16::try_from(partition).ok()?;
        let reached = Reached {
            partition: u32::from(index).into(),
            partition_sequence: lane.last.into(),
            sequence: lane.sequence.into(),
            ..Reached::default()
        };
        Some((reached, lane.positions.fates(index)))
    }

    /// In an earlier run it had come so far, and this became of its sends; of partitions
    /// that `own` says, and only if less is known.
    pub(super) fn had_sent(
        &mut self,
        reached: &[Reached],
        fates: &[Fate],
        own: impl Fn(usize) -> bool,
        mut grow: impl FnMut(usize) -> bool,
    ) {
        for it in reached {
            let partition = it.partition.get() as usize;
            let Some(lane) = self.lanes.get_mut(partition).filter(|_| own(partition)) else {
                continue;
            };
            if it.partition_sequence.get() <= lane.last {
                continue;
            }
            lane.last = it.partition_sequence.get();
            lane.sequence = it.sequence.get();
            lane.resumed = lane.last;
            for fate in fates {
                if usize::from(fate.partition.get()) == partition {
                    let outcome = Outcome {
                        offset: fate.offset.get(),
                        append_time: Wall(fate.append_time.get()),
                        refusal: fate.refusal.get(),
                    };
                    let (first, count) = (fate.partition_sequence.get(), fate.count.get());
                    lane.positions.note(first, count, &outcome, &mut grow);
                }
            }
        }
    }

    /// In an earlier run the send with this partition sequence was refused in its turn.
    /// Sends behind it may be known already, of which a checkpoint told.
    pub(super) fn was_refused_before(
        &mut self,
        partition: u32,
        (partition_sequence, sequence): (u64, u64),
        outcome: &Outcome,
        grow: impl FnOnce(usize) -> bool,
    ) {
        let Some(lane) = self.lanes.get_mut(partition as usize) else {
            return;
        };
        if partition_sequence > lane.last {
            let turn = (partition_sequence, sequence);
            self.had_turn_before(partition, turn, outcome, grow);
        } else if partition_sequence > lane.resumed
            && lane.positions.find(partition_sequence).is_none()
        {
            lane.positions.insert(partition_sequence, outcome, grow);
        }
    }

    /// Bytes of memory beside the identity itself.
    pub(super) fn bytes(&self) -> usize {
        let positions = self.lanes.iter().map(|lane| lane.positions.bytes());
        self.name.len() + size_of_val(&*self.lanes) + positions.sum::<usize>()
    }

    /// Gives back what it does not need while it sends nothing.
    pub(super) fn compact(&mut self) -> usize {
        let lanes = self.lanes.iter_mut();
        lanes.map(|lane| lane.positions.compact()).sum()
    }

    /// Forgets the positions of its last sends but those of the very last to each
    /// partition; returns how many bytes that gave back.
    pub(super) fn forget_positions(&mut self) -> usize {
        let lanes = self.lanes.iter_mut();
        lanes.map(|lane| lane.positions.clear()).sum()
    }
}

/// Bytes that the lanes of a producer of so many partitions take up.
pub(super) fn lanes_size(partitions: usize) -> usize {
    partitions * size_of::<Lane>()
}

#[cfg(test)]
mod tests;
