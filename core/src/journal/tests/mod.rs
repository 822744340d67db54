//! A writer as a shard's will be, on a disk that forgets what was not flushed, and
//! what recovery makes of it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod crash;
mod damage;
mod entries;
mod pages;

use super::entry::{Entry, Place};
use super::file::{self, FIRST_BATCH};
use super::recover::{Damage, Plan, decide};
use super::survey::{Slot, Survey};
use super::{Identity, Origin, Start, batch};
use crate::id::{
    BatchNumber, FileSequence, Installation, JournalNumber, Offset, PartitionIndex, ProducerId, Run,
};
use crate::time::Wall;

const IDENTITY: Identity = Identity {
    installation: Installation(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
    journal: JournalNumber(3),
};
/// Small, so that a journal has many files.
const FILE_SIZE: usize = 7 * 4096;
const SECTOR: usize = 512;

/// A batch that was written, and what it says.
#[derive(Clone, Debug)]
struct Written {
    number: u64,
    run: u64,
    slot: usize,
    sequence: u64,
    position: usize,
    bytes: Vec<u8>,
    durable_before: u64,
}

impl Written {
    fn end(&self) -> usize {
        self.position + batch::size(self.bytes.len())
    }

    fn is_whole(&self, disk: &[Vec<u8>]) -> bool {
        disk[self.slot].get(self.position..self.position + self.bytes.len())
            == Some(&self.bytes[..])
    }

    fn is_at_another_front(&self, disk: &[Vec<u8>]) -> bool {
        let front = FIRST_BATCH as usize..FIRST_BATCH as usize + self.bytes.len();
        let mut others = disk
            .iter()
            .enumerate()
            .filter(|(slot, _)| *slot != self.slot);
        self.position == FIRST_BATCH as usize
            && others.any(|(_, image)| image.get(front.clone()) == Some(&self.bytes[..]))
    }

    /// Whether its header stands in a file that it was not written to.
    fn is_elsewhere(&self, disk: &[Vec<u8>]) -> bool {
        let header = self.position..self.position + batch::HEADER_SIZE;
        let mut others = disk
            .iter()
            .enumerate()
            .filter(|(slot, _)| *slot != self.slot);
        others.any(|(_, image)| image.get(header.clone()) == self.bytes.get(..batch::HEADER_SIZE))
    }

    /// In any file of its run: which of them a batch was written to makes no difference.
    fn header_is_there(&self, disk: &[Vec<u8>]) -> bool {
        let is_of_run = |image: &&Vec<u8>| {
            file::Header::read(image).is_ok_and(|header| header.origin.run.0 == self.run)
        };
        disk.iter()
            .filter(is_of_run)
            .any(|image| image.get(self.position..self.position + 64) == Some(&self.bytes[..64]))
    }
}

/// A write that no flush covers yet.
#[derive(Clone, Debug)]
struct Pending {
    /// The batch that completes with it.
    number: u64,
    slot: usize,
    position: usize,
    bytes: Vec<u8>,
}

/// One journal, its writer and its disk.
#[derive(Clone, Debug)]
struct Journal {
    disk: Vec<Vec<u8>>,
    pending: Vec<Pending>,
    /// Which file each slot is, 0 for none.
    sequences: Vec<u64>,
    /// Every batch that counts, from 1 on.
    truth: Vec<Written>,
    origin: Origin,
    sequence: u64,
    recovered: u64,
    slot: usize,
    position: usize,
    durable: u64,
    start: Option<Start>,
    spare: Vec<usize>,
}

impl Journal {
    fn new() -> Self {
        let mut journal = Self {
            disk: Vec::new(),
            pending: Vec::new(),
            sequences: Vec::new(),
            truth: Vec::new(),
            origin: Origin {
                identity: IDENTITY,
                run: Run(0),
                salt: 0,
            },
            sequence: 0,
            recovered: 0,
            slot: 0,
            position: 0,
            durable: 0,
            start: None,
            spare: Vec::new(),
        };
        journal.begin_run(1);
        journal
    }

    fn number(&self) -> u64 {
        self.truth.last().map_or(0, |last| last.number)
    }

    fn begin_run(&mut self, run: u64) {
        self.origin.run = Run(run);
        // A run of which nothing is left has its number given out again, and what it
        // left in a file may come to light there: no two have the same salt.
        self.origin.salt = self.origin.salt.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.recovered = self.number();
        self.durable = self.recovered;
        // Its first batch begins a file.
        self.position = FILE_SIZE;
    }

    fn begin_file(&mut self) {
        self.sequence += 1;
        self.slot = self.spare.pop().unwrap_or_else(|| {
            self.disk.push(vec![0; FILE_SIZE]);
            self.sequences.push(0);
            self.disk.len() - 1
        });
        self.sequences[self.slot] = self.sequence;
        self.position = FIRST_BATCH as usize;
        let header = file::Header {
            origin: self.origin,
            sequence: FileSequence(self.sequence),
            recovered: BatchNumber(self.recovered),
            size: FILE_SIZE as u64,
        };
        self.pending.push(Pending {
            number: self.number() + 1,
            slot: self.slot,
            position: 0,
            bytes: header.block().to_vec(),
        });
    }

    /// Writes a batch with so many entries of `size` bytes in all, or waits for the one
    /// before the last.
    fn append(&mut self, entries: u32, size: usize) {
        while self.number() - self.durable >= 2 {
            self.flushed();
        }
        let number = self.number() + 1;
        let mut bytes = payload(number, entries, size);
        if self.position + batch::size(bytes.len()) > FILE_SIZE {
            self.begin_file();
        }
        let label = batch::Label {
            number: BatchNumber(number),
            durable_before: BatchNumber(self.durable),
            written: Wall(1_700_000_000_000_000_000 + number),
        };
        // The pieces of a batch lie apart; so the sum may not depend on where it is cut.
        let cut = 64 + (bytes.len() - 64) / 3;
        let (front, back) = bytes.split_at_mut(cut);
        batch::seal(
            &self.origin,
            self.position as u64,
            label,
            entries,
            &mut [front, back],
        );
        let written = Written {
            number,
            run: self.origin.run.0,
            slot: self.slot,
            sequence: self.sequence,
            position: self.position,
            durable_before: self.durable,
            bytes: bytes.clone(),
        };
        self.position = written.end();
        bytes.resize(batch::size(bytes.len()), 0);
        self.pending.push(Pending {
            number,
            slot: written.slot,
            position: written.position,
            bytes,
        });
        self.truth.push(written);
    }

    /// The oldest batch on its way is durable, and all that was written before it.
    fn flushed(&mut self) {
        if self.durable == self.number() {
            return;
        }
        self.durable += 1;
        let durable = self.durable;
        let (done, pending) = core::mem::take(&mut self.pending)
            .into_iter()
            .partition(|write| write.number <= durable);
        self.pending = pending;
        for write in done {
            self.land(&write, |_| true);
        }
    }

    fn land(&mut self, write: &Pending, mut lands: impl FnMut(usize) -> bool) {
        let place = &mut self.disk[write.slot][write.position..][..write.bytes.len()];
        for (index, (place, sector)) in place
            .chunks_mut(SECTOR)
            .zip(write.bytes.chunks(SECTOR))
            .enumerate()
        {
            if lands(index) {
                place.copy_from_slice(sector);
            }
        }
    }

    /// The power goes: of what was not flushed each sector is there or not.
    fn crash(&mut self, mut lands: impl FnMut() -> bool) {
        for write in core::mem::take(&mut self.pending) {
            self.land(&write, |_| lands());
        }
    }

    /// A checkpoint counts: batches up to `number` are not needed any more, nor files
    /// that hold nothing else.
    fn checkpoint(&mut self, number: u64) {
        let Some(written) = self.truth.iter().find(|it| it.number == number) else {
            return;
        };
        let first_needed = written.sequence;
        self.start = Some(Start {
            sequence: FileSequence(first_needed),
            position: written.end() as u64,
            number: BatchNumber(number + 1),
        });
        for slot in 0..self.disk.len() {
            let freed = self.sequences[slot] > 0 && self.sequences[slot] < first_needed;
            if freed && !self.spare.contains(&slot) {
                self.spare.push(slot);
            }
        }
    }

    /// The last batch that can be read: what recovery has to find, by a reader that
    /// knows what was written.
    fn readable(&self) -> u64 {
        let first = self.start.map_or(1, |start| start.number.0);
        let mut last = first - 1;
        for written in self.truth.iter().filter(|it| it.number >= first) {
            let begun = self.begun(written.slot) == Some(written.sequence);
            if !begun || !written.is_whole(&self.disk) {
                break;
            }
            last = written.number;
        }
        last
    }

    /// Which file a slot says that it is.
    fn begun(&self, slot: usize) -> Option<u64> {
        file::Header::read(&self.disk[slot])
            .ok()
            .map(|header| header.sequence.0)
    }

    fn recover(&self) -> Result<Plan, Damage> {
        let surveys: Vec<Survey> = self
            .disk
            .iter()
            .enumerate()
            .map(|(slot, image)| {
                Survey::of(Slot(slot as u32), &IDENTITY, self.start.as_ref(), image)
            })
            .collect();
        decide(&IDENTITY, self.start.as_ref(), &surveys)
    }

    /// The next start: takes over what a plan kept.
    fn restart(&mut self, plan: &Plan) {
        self.truth.retain(|written| written.number <= plan.kept.0);
        self.sequence = plan.sequence_next.0 - 1;
        self.spare = plan.spare.iter().map(|slot| slot.0 as usize).collect();
        self.begin_run(plan.run_last.0 + 1);
    }

    /// That replaying a plan gives every batch that counts and nothing else.
    fn assert_replays(&self, plan: &Plan) {
        let first = self.start.map_or(1, |start| start.number.0);
        let mut expected = first;
        for step in &plan.steps {
            for batch in step.batches(&self.disk[step.slot.0 as usize]) {
                let batch = batch.unwrap();
                assert_eq!(batch.header.label.number.0, expected);
                let written = self.truth.iter().find(|it| it.number == expected).unwrap();
                assert_eq!(batch.bytes(), &written.bytes[64..], "batch {expected}");
                let count = batch.entries().map(Result::unwrap).count();
                assert_eq!(count, batch.header.entries as usize);
                expected += 1;
            }
        }
        assert_eq!(expected, plan.kept.0 + 1);
    }
}

/// A batch without its header: entries that fill `size` bytes, of which the last is as
/// long as it takes.
fn payload(number: u64, entries: u32, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let small = Entry::ProducerIdsReserved {
        next: ProducerId(number),
    };
    for _ in 1..entries {
        let at = bytes.len();
        bytes.resize(at + small.size(), 0);
        small.write(&mut bytes[at..]);
    }
    if entries > 0 {
        let bits: Vec<u8> = (0..size as u64)
            .map(|at| (at.wrapping_mul(number + 3) >> 3) as u8)
            .collect();
        let large = Entry::Cursor {
            place: Place {
                partition: PartitionIndex(7),
                ..Place::default()
            },
            subscription: crate::id::SubscriptionNumber(1),
            cursor: Offset(number),
            bits: &bits,
        };
        let at = bytes.len();
        bytes.resize(at + large.size(), 0);
        large.write(&mut bytes[at..]);
    }
    bytes
}
