//! A writer on a device that finishes writes in any order and may be cut off at any
//! time: what is found on it is what was put in, in its order, at least as far as the
//! writer said.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use zerocopy::FromBytes;

use super::*;
use crate::auth::Principal;
use crate::frame::MessageHeader;
use crate::frame::encode::{self, Envelope};
use crate::id::{
    DestinationNumber, Epoch, Installation, JournalNumber, Offset, PartitionIndex, ProducerId, Run,
    SubscriptionNumber,
};
use crate::journal::Identity;
use crate::journal::entry::{self, Place as Partition};
use crate::journal::recover::decide;
use crate::journal::survey::Survey;

const IDENTITY: Identity = Identity {
    installation: Installation(0x77),
    journal: JournalNumber(2),
};
/// Room for two of the largest batches and what goes with them.
const CHUNKS: u32 = 400;
const SECTOR: usize = 512;

/// A write that was wished for and not answered.
struct Flying {
    file: Slot,
    position: u64,
    token: Token,
    bytes: Vec<u8>,
}

/// A writer, its arena and its device.
struct Desk {
    arena: Arena,
    writer: Writer,
    files: BTreeMap<Slot, Vec<u8>>,
    asked: Vec<(Slot, u64)>,
    flying: Vec<Flying>,
    /// Chunks that others have.
    taken: Vec<ChunkId>,
    /// Every entry with the batch that it is in.
    truth: Vec<(BatchNumber, Vec<u8>)>,
    run: Run,
    offset: u64,
}

impl Desk {
    fn new(chunks: u32) -> Self {
        Self {
            arena: Arena::new(chunks),
            writer: Writer::new(&Beginning {
                origin: origin(Run(1)),
                recovered: BatchNumber(0),
                sequence: FileSequence(1),
                slot: Slot(1),
            }),
            files: BTreeMap::new(),
            asked: Vec::new(),
            flying: Vec::new(),
            taken: Vec::new(),
            truth: Vec::new(),
            run: Run(1),
            offset: 0,
        }
    }

    /// Adds an entry; whether there was memory for it.
    fn append(&mut self, entry: &Entry<'_>) -> bool {
        let before = self.state();
        let mut scratch = Vec::new();
        match self.writer.append(&mut self.arena, entry, &mut scratch) {
            Ok(number) => {
                self.added(number, [scratch].into());
                true
            }
            Err(ArenaFull) => {
                assert_eq!(self.state(), before, "nothing is added");
                false
            }
        }
    }

    /// Adds messages with bodies of such sizes: several that fit a chunk, or one.
    fn append_messages(&mut self, sizes: &[usize], start: usize) -> bool {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for size in sizes {
            let body: Vec<u8> = (0..*size)
                .map(|it| (it as u64 + self.offset) as u8)
                .collect();
            let mut frame = vec![0; encode::message_size(0, *size)];
            encode::message(&Envelope::default(), &[], &body, &mut frame);
            let (header, _) = MessageHeader::mut_from_prefix(&mut frame).unwrap();
            header.handle.set(7);
            header.producer.set(3);
            header.epoch.set(1);
            header.sequence.set(self.offset + 1);
            header.partition_sequence.set(self.offset + 1);
            header.offset.set(self.offset);
            header.append_time.set(1_000);
            self.offset += 1;
            frames.push(frame);
        }
        let bytes = frames.concat();
        // A run of several lies in one chunk, a large one begins with its chain.
        let room = CHUNK.saturating_sub(bytes.len());
        let start = if room == 0 { 0 } else { start % room / 8 * 8 };
        let chunks = (start + bytes.len()).div_ceil(CHUNK);
        if self.arena.free() < chunks {
            return false;
        }
        let chain: Vec<ChunkId> = (0..chunks).map(|_| self.arena.take().unwrap()).collect();
        for pair in chain.windows(2) {
            self.arena.chain(pair[0], pair[1]);
        }
        let mut left = &bytes[..];
        for (index, chunk) in chain.iter().enumerate() {
            let from = if index == 0 { start } else { 0 };
            let (now, rest) = left.split_at(left.len().min(CHUNK - from));
            self.arena.bytes_mut(*chunk)[from..from + now.len()].copy_from_slice(now);
            left = rest;
        }
        let before = self.state();
        let count = frames.len() as u32;
        let place = (chain[0], start);
        let added = self
            .writer
            .append_messages(&mut self.arena, place, bytes.len(), count);
        if added.is_err() {
            assert_eq!(self.state(), before, "nothing is added");
        }
        // They were copied: what becomes of the log's chunks is nothing to the writer.
        for chunk in chain {
            self.arena.bytes_mut(chunk).fill(0xee);
            self.arena.give(chunk);
        }
        added.map(|number| self.added(number, frames)).is_ok()
    }

    fn added(&mut self, number: BatchNumber, entries: Vec<Vec<u8>>) {
        assert_eq!(number, self.writer.last());
        assert!(number > self.writer.durable());
        let before = self.truth.last();
        assert!(before.is_none_or(|(before, _)| *before == number || before.next() == number));
        self.truth
            .extend(entries.into_iter().map(|bytes| (number, bytes)));
    }

    fn state(&self) -> (usize, usize, BatchNumber) {
        let writer = &self.writer;
        (self.arena.free(), writer.chunks(), writer.last())
    }

    fn turn(&mut self) {
        self.writer.turn(&mut self.arena, Wall(1_000));
        while let Some(wish) = self.writer.wish() {
            match wish {
                Wish::Prepare { file, size } => self.asked.push((file, size)),
                Wish::Remove { file } => {
                    assert!(self.files.remove(&file).is_some(), "it was prepared");
                }
                Wish::Write {
                    file,
                    position,
                    token,
                } => {
                    let pieces: Vec<&[u8]> = self.writer.pieces(&self.arena, token).collect();
                    assert!(pieces.len() <= PIECES_MAX);
                    let bytes = pieces.concat();
                    assert!(!bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_SIZE));
                    assert!(self.files.contains_key(&file), "it was prepared");
                    self.flying.push(Flying {
                        file,
                        position,
                        token,
                        bytes,
                    });
                }
            }
        }
        let batches = self.flying.iter().filter(|it| it.token.is_batch()).count();
        assert!(batches <= IN_FLIGHT_MAX);
    }

    fn prepare(&mut self, is_there: bool) {
        let Some((file, size)) = self.asked.pop() else {
            return;
        };
        if is_there {
            self.files.insert(file, vec![0; size as usize]);
        }
        self.writer.prepared(file, is_there);
        assert_eq!(self.writer.is_missing_file(), !is_there);
        self.writer.ask_again();
    }

    /// A write ends, and so do its pieces: they are what they were when it began.
    fn write(&mut self, index: usize) {
        let flying = self.flying.remove(index);
        let pieces: Vec<&[u8]> = self.writer.pieces(&self.arena, flying.token).collect();
        assert_eq!(pieces.concat(), flying.bytes, "it stays where it is");
        put(&mut self.files, &flying, |_| true);
        let token = flying.token;
        self.writer.written(&mut self.arena, token, Ok(()));
        assert_eq!(self.writer.pieces(&self.arena, token).count(), 0);
    }

    /// What the next run finds if the power is cut now and `keeps` says which sectors of
    /// what was on its way are there.
    fn found(
        &self,
        mut keeps: impl FnMut(usize) -> bool,
    ) -> (BatchNumber, BTreeMap<Slot, Vec<u8>>) {
        let mut files = self.files.clone();
        for flying in &self.flying {
            put(&mut files, flying, &mut keeps);
        }
        let surveys: Vec<Survey> = files
            .iter()
            .map(|(slot, image)| Survey::of(*slot, &IDENTITY, None, image))
            .collect();
        let plan = decide(&IDENTITY, None, &surveys).unwrap();
        let mut scratch = Vec::new();
        let mut all = Vec::new();
        for step in &plan.steps {
            for batch in step.batches(&files[&step.slot]) {
                let batch = batch.unwrap();
                for entry in batch.entries() {
                    let entry = entry.unwrap();
                    scratch.clear();
                    scratch.resize(entry.size(), 0);
                    entry.write(&mut scratch);
                    all.push((batch.header.label.number, scratch.clone()));
                }
            }
        }
        assert!(plan.kept >= self.writer.durable(), "what was said is there");
        let kept = self.truth.iter().take_while(|it| it.0 <= plan.kept).count();
        assert!(all == self.truth[..kept], "all of it, in its order");
        (plan.kept, files)
    }

    /// The power is cut, and another run goes on behind what is there.
    fn cut(&mut self, keeps: impl FnMut(usize) -> bool) {
        let (kept, files) = self.found(keeps);
        self.truth.retain(|(number, _)| *number <= kept);
        self.files = files;
        self.asked.clear();
        self.flying.clear();
        self.writer.clear(&mut self.arena);
        self.run = Run(self.run.0 + 1);
        let slots = self.files.len() as u32;
        let surveys: Vec<Survey> = self
            .files
            .iter()
            .map(|(slot, image)| Survey::of(*slot, &IDENTITY, None, image))
            .collect();
        let plan = decide(&IDENTITY, None, &surveys).unwrap();
        self.writer = Writer::new(&Beginning {
            origin: origin(self.run),
            recovered: plan.kept,
            sequence: plan.sequence_next,
            slot: Slot(slots + 1),
        });
    }

    /// All that can be done is done.
    fn settle(&mut self) {
        for chunk in self.taken.drain(..) {
            self.arena.give(chunk);
        }
        self.turn();
        while !self.flying.is_empty() || !self.asked.is_empty() || self.writer.has_work() {
            self.prepare(true);
            if !self.flying.is_empty() {
                self.write(0);
            }
            self.turn();
        }
        assert_eq!(self.writer.durable(), self.writer.last());
        self.owns_nothing();
    }

    fn owns_nothing(&self) {
        let lent = self.arena.chunks() as usize - self.arena.free();
        assert_eq!((self.writer.chunks(), lent), (0, self.taken.len()));
    }
}

fn origin(run: Run) -> Origin {
    Origin {
        identity: IDENTITY,
        run,
        salt: 0x5a17 + run.0,
    }
}

fn put(files: &mut BTreeMap<Slot, Vec<u8>>, flying: &Flying, mut keeps: impl FnMut(usize) -> bool) {
    let start = flying.position as usize;
    let image = files.get_mut(&flying.file).unwrap();
    let image = &mut image[start..start + flying.bytes.len()];
    let sectors = image.chunks_mut(SECTOR).zip(flying.bytes.chunks(SECTOR));
    for (index, (old, new)) in sectors.enumerate() {
        if keeps(index) {
            old.copy_from_slice(new);
        }
    }
}

/// Which sectors of what is on its way are there: none, all, those of some writes, those
/// up to some place of each, or any.
fn keeping(seed: u64) -> impl FnMut(usize) -> bool {
    let mut state = seed | 1;
    let (mut whole, mut up_to) = (false, 0);
    move |sector| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if sector == 0 {
            whole = state & 1 == 0;
            up_to = (state % 40) as usize;
        }
        match seed % 5 {
            0 => false,
            1 => true,
            2 => whole,
            3 => sector < up_to,
            _ => !state.is_multiple_of(64),
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Reserve(u64),
    Attach(String),
    Settle(usize),
    Messages(Vec<usize>, usize),
    Large(usize),
    Turn,
    Prepare(bool),
    Write(Index),
    /// Others take all chunks but so many.
    Take(usize),
    Give,
    /// What would be found, if.
    Look(u64),
    Cut(u64),
    Fail(Index),
}

fn acts(large: usize, count: usize) -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1u64..1 << 40).prop_map(Act::Reserve),
        2 => "[a-z]{0,255}".prop_map(Act::Attach),
        3 => (1usize..3_000).prop_map(Act::Settle),
        6 => (prop::collection::vec(0usize..2_000, 1..30), 0..CHUNK)
            .prop_map(|(sizes, start)| Act::Messages(sizes, start)),
        4 => (CHUNK..large).prop_map(Act::Large),
        12 => Just(Act::Turn),
        6 => prop::bool::weighted(0.7).prop_map(Act::Prepare),
        10 => any::<Index>().prop_map(Act::Write),
        2 => (0usize..8).prop_map(Act::Take),
        3 => Just(Act::Give),
        1 => any::<u64>().prop_map(Act::Look),
        1 => any::<u64>().prop_map(Act::Cut),
    ];
    prop::collection::vec(act, 1..count)
}

/// Does it; whether the writer goes on.
fn act(desk: &mut Desk, act: &Act) -> bool {
    let destination = DestinationNumber(7);
    let place = Partition {
        destination,
        partition: PartitionIndex(3),
    };
    match act {
        Act::Reserve(next) => {
            let next = Offset(*next);
            desk.append(&Entry::OffsetsReserved { place, next });
        }
        Act::Attach(name) => {
            desk.append(&Entry::ProducerAttached {
                producer: ProducerId(9),
                epoch: Epoch(2),
                destination,
                term: 1,
                principal: Principal::default(),
                exclusive: false,
                name,
            });
        }
        Act::Settle(runs) => {
            let runs: Vec<entry::Run> = (0..*runs as u64)
                .map(|it| entry::Run::new(Offset(5 * it), 3))
                .collect();
            desk.append(&Entry::Settled {
                place,
                subscription: SubscriptionNumber(1),
                runs: &runs,
            });
        }
        Act::Messages(sizes, start) => {
            desk.append_messages(sizes, *start);
        }
        Act::Large(size) => {
            desk.append_messages(&[*size], 0);
        }
        Act::Turn => desk.turn(),
        Act::Prepare(is_there) => desk.prepare(*is_there),
        Act::Write(index) => {
            if !desk.flying.is_empty() {
                desk.write(index.index(desk.flying.len()));
            }
        }
        Act::Take(left) => {
            while desk.arena.free() > *left {
                desk.taken.push(desk.arena.take().unwrap());
            }
        }
        Act::Give => {
            for chunk in desk.taken.drain(..) {
                desk.arena.give(chunk);
            }
        }
        Act::Look(seed) => {
            desk.found(keeping(*seed));
        }
        Act::Cut(seed) => desk.cut(keeping(*seed)),
        Act::Fail(index) => {
            if desk.flying.is_empty() {
                return true;
            }
            let flying = desk.flying.remove(index.index(desk.flying.len()));
            let durable = desk.writer.durable();
            desk.writer
                .written(&mut desk.arena, flying.token, Err(WriteFailed));
            assert!(desk.writer.is_broken());
            assert_eq!(desk.writer.durable(), durable);
            return false;
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_after_any_cut_is_what_was_put_in_as_far_as_was_said(
        acts in acts(4 * CHUNK, 120),
        seed in any::<u64>(),
    ) {
        let mut desk = Desk::new(60);
        for it in &acts {
            act(&mut desk, it);
        }
        desk.found(keeping(seed));
        desk.settle();
        let last = desk.writer.last();
        prop_assert_eq!(desk.found(|_| false).0, last);
    }

    #[test]
    fn a_failed_write_ends_all_writing_and_takes_nothing_back(
        acts in acts(4 * CHUNK, 60),
        rest in self::acts(4 * CHUNK, 20),
        index in any::<Index>(),
        seed in any::<u64>(),
    ) {
        let mut desk = Desk::new(60);
        for it in &acts {
            act(&mut desk, it);
        }
        while desk.flying.is_empty() {
            act(&mut desk, &Act::Give);
            act(&mut desk, &Act::Reserve(1));
            desk.turn();
            desk.prepare(true);
        }
        // What it left of itself is any part of it.
        let failed = index.index(desk.flying.len());
        let mut keeps = keeping(seed);
        put(&mut desk.files, &desk.flying[failed], &mut keeps);
        let token = desk.flying[failed].token;
        let batch = BatchNumber(token.0);
        act(&mut desk, &Act::Fail(index));
        for it in rest.iter().filter(|it| !matches!(it, Act::Cut(_))) {
            act(&mut desk, it);
            prop_assert!(!desk.writer.has_work());
        }
        while !desk.flying.is_empty() {
            desk.write(0);
        }
        prop_assert!(!token.is_batch() || desk.writer.durable() < batch);
        desk.found(|_| true);
        let durable = desk.writer.durable();
        act(&mut desk, &Act::Give);
        desk.writer.clear(&mut desk.arena);
        desk.owns_nothing();
        prop_assert_eq!(desk.writer.durable(), durable);
        // Nobody is told otherwise, whatever the next run finds.
        desk.cut(|_| false);
        desk.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn files_change_while_batches_of_the_largest_messages_are_on_their_way(
        acts in acts(limits::BODY_SIZE_MAX as usize, 100),
        seed in any::<u64>(),
    ) {
        let mut desk = Desk::new(CHUNKS);
        for it in acts.iter().filter(|it| !matches!(it, Act::Take(_))) {
            act(&mut desk, it);
        }
        desk.found(keeping(seed));
        desk.settle();
        prop_assert_eq!(desk.found(|_| false).0, desk.writer.last());
    }
}

#[test]
fn the_largest_batch_takes_all_that_fits_and_not_one_entry_more() {
    let mut desk = Desk::new(CHUNKS);
    let entry = |producer| Entry::ProducerForgotten {
        producer: ProducerId(producer),
    };
    let size = entry(1).size();
    let most = (limits::BATCH_SIZE_MAX as usize - HEADER_SIZE) / size;
    for producer in 0..most as u64 {
        assert!(desk.append(&entry(producer)));
    }
    assert_eq!(desk.writer.last(), BatchNumber(1));
    assert!(desk.append(&entry(1)));
    assert_eq!(desk.writer.last(), BatchNumber(2));
    desk.settle();
    let (kept, files) = desk.found(|_| false);
    assert_eq!(kept, BatchNumber(2));
    let length = u32::from_le_bytes(files[&Slot(1)][4096 + 8..4096 + 12].try_into().unwrap());
    assert!(length <= limits::BATCH_SIZE_MAX && length as usize + size > 8 << 20);
}

#[test]
fn two_batches_are_on_their_way_when_the_second_begins_the_next_file() {
    let mut desk = Desk::new(CHUNKS);
    desk.append(&Entry::ProducerForgotten {
        producer: ProducerId(1),
    });
    desk.settle();
    let mut ends = Vec::new();
    for _ in 0..12 {
        assert!(desk.append_messages(&[limits::BODY_SIZE_MAX as usize], 0));
        desk.turn();
        desk.prepare(true);
        desk.turn();
        let batches: Vec<Slot> = (desk.flying.iter())
            .filter(|it| it.token.is_batch())
            .map(|it| it.file)
            .collect();
        if let [first, second] = batches[..] {
            ends.push(first != second);
            // The later one ends first, and counts only with the other.
            let durable = desk.writer.durable();
            let last = desk
                .flying
                .iter()
                .rposition(|it| it.token.is_batch())
                .unwrap();
            desk.write(last);
            assert_eq!(desk.writer.durable(), durable);
            assert_eq!(desk.found(|_| false).0, durable);
            assert_eq!(desk.found(|_| true).0, BatchNumber(durable.0 + 2));
            while !desk.flying.is_empty() {
                desk.write(0);
            }
        }
    }
    assert!(ends.contains(&true), "{ends:?}");
    desk.settle();
}
