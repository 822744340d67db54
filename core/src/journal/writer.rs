//! The writer: entries become batches, batches are written, and those that are on the
//! device with all before them are durable.
//!
//! ```text
//!  entries ─> open batch ─> sealed when a place in the file and in the device's queue
//!             (fills while     is free ─> written ─> durable, in the order of numbers
//!              others are
//!              written)
//! ```
//!
//! Nothing waits for a batch to fill: what came while the last ones were written is the
//! next one. A batch lies in a chain of chunks of the arena, from its first entry until
//! it is durable.
//!
//! When a file is full the next one is there: the writer asks for it when a quarter of the
//! one before is written, and has its header written before anything is put into it.
//!
//! Where the next file is not to be had, for want of room, the last part of this one is
//! kept for what is not a message: who asks before adding messages ([`Writer::is_full`])
//! can still write down what was settled. What finds no place waits in its batch.
//!
//! After an error nothing is written any more: what is on the device then is known only
//! to the next run.
//!
//! Invariants: the numbers of the batches that are kept here rise by one; at most
//! [`IN_FLIGHT_MAX`] of them are being written, the others wait behind; `durable` is the
//! number before the first of them; every chunk of `chunks` is in one batch.

use std::collections::VecDeque;

use super::batch::{self, HEADER_SIZE, Label, Seal};
use super::entry::Entry;
use super::file::{FIRST_BATCH, Header};
use super::survey::Slot;
use super::{BLOCK_SIZE, Origin, Start};
use crate::id::{BatchNumber, FileSequence};
use crate::limits;
use crate::memory::{Arena, CHUNK, ChunkId};
use crate::partition::log::ArenaFull;
use crate::planted::Planted;
use crate::time::Wall;

/// The most pieces that one write has: those of the largest batch.
pub const PIECES_MAX: usize = (limits::BATCH_SIZE_MAX as usize).div_ceil(CHUNK);

/// Batches that are being written at a time: while one is flushed the next is on its way.
pub const IN_FLIGHT_MAX: usize = 2;

/// What the writer would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Make a file of so many bytes, all zeros, that is there after a power cut too; the
    /// answer is [`Writer::prepared`].
    Prepare {
        /// Which.
        file: Slot,
        /// Bytes.
        size: u64,
    },
    /// Write [`Writer::pieces`] of the token, so that they are on the device; the answer
    /// is [`Writer::written`].
    Write {
        /// Where to.
        file: Slot,
        /// Where in it, in bytes.
        position: u64,
        /// What.
        token: Token,
    },
    /// Remove a file that is not needed any more.
    Remove {
        /// Which.
        file: Slot,
    },
}

/// Names something that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

impl Token {
    /// Whether it is a batch, and not what a file begins with.
    #[must_use]
    pub fn is_batch(self) -> bool {
        self != HEADER
    }
}

/// The header of the next file.
const HEADER: Token = Token(0);

/// What a writer begins with.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    /// Whose journal, which run.
    pub origin: Origin,
    /// The last batch that was kept of earlier runs.
    pub recovered: BatchNumber,
    /// Which of the journal's files comes next.
    pub sequence: FileSequence,
    /// The lowest slot behind those of all files that there are.
    pub slot: Slot,
}

/// A file that is written to.
#[derive(Clone, Copy, Debug, Default)]
struct Current {
    slot: Slot,
    sequence: FileSequence,
    size: u64,
    /// Where the next batch goes.
    position: u64,
}

/// The file that comes next.
#[derive(Clone, Copy, Debug)]
struct Coming {
    slot: Slot,
    sequence: FileSequence,
    size: u64,
    stage: Next,
}

/// How far the file is that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Unasked,
    Asked,
    /// It was asked for and not to be had.
    Missing,
    /// It is there and has no header.
    Prepared,
    /// Its header, in this chunk, is being written.
    Heading(ChunkId),
    Ready,
}

/// A batch that is filled.
#[derive(Clone, Copy, Debug)]
struct Filling {
    head: ChunkId,
    tail: ChunkId,
    chunks: usize,
    /// Bytes of the last chunk that are filled.
    used: usize,
    seal: Seal,
}

/// A batch that takes nothing more.
#[derive(Clone, Copy, Debug)]
struct Full {
    filling: Filling,
    /// Once it is being written.
    place: Option<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Bytes with the zeros behind.
    size: usize,
    is_written: bool,
}

/// The writer of one journal.
#[derive(Debug)]
pub struct Writer {
    origin: Origin,
    recovered: BatchNumber,
    /// None has a size of 0.
    current: Current,
    coming: Coming,
    /// Bytes of the files behind the first.
    file_size: u64,
    /// Files that are needed, in the order in which they were begun, the current one last.
    files: VecDeque<(FileSequence, Slot)>,
    /// Files of which nothing is needed.
    spare: Vec<Slot>,
    /// Lower slots have files.
    slot_next: Slot,
    /// Bytes of all batches whose writing has begun.
    bytes: u64,
    /// Not durable, by number: the first is `durable` + 1.
    full: VecDeque<Full>,
    open: Option<Filling>,
    durable: BatchNumber,
    wishes: VecDeque<Wish>,
    /// Chunks of the arena that it has.
    chunks: usize,
    is_broken: bool,
    /// Whether the next file was not to be had when it was last asked for.
    lacks_room: bool,
}

impl Writer {
    /// A writer that goes on behind what was recovered.
    #[must_use]
    pub fn new(beginning: &Beginning) -> Self {
        Self {
            origin: beginning.origin,
            recovered: beginning.recovered,
            current: Current::default(),
            coming: Coming {
                slot: Slot(0),
                sequence: beginning.sequence,
                // Sooner there than a larger one.
                size: limits::JOURNAL_FILE_SIZE_FIRST.into(),
                stage: Next::Unasked,
            },
            file_size: limits::JOURNAL_FILE_SIZE.into(),
            files: VecDeque::new(),
            spare: Vec::new(),
            slot_next: beginning.slot,
            bytes: 0,
            full: VecDeque::with_capacity(IN_FLIGHT_MAX + 2),
            open: None,
            durable: beginning.recovered,
            wishes: VecDeque::with_capacity(IN_FLIGHT_MAX + 2),
            chunks: 0,
            is_broken: false,
            lacks_room: false,
        }
    }

    /// Has files behind the first be of so many bytes, and takes those of earlier runs: the
    /// ones that are needed in the order of their sequences, and those that are not.
    pub fn take_files(
        &mut self,
        size: u64,
        needed: impl Iterator<Item = (FileSequence, Slot)>,
        spare: impl Iterator<Item = Slot>,
    ) {
        self.file_size = size;
        for (index, file) in needed.enumerate() {
            self.files.insert(index, file);
        }
        for slot in spare {
            self.give_back(slot);
        }
    }

    /// Nothing is needed of files before this one.
    pub fn let_go(&mut self, sequence: FileSequence) {
        while let Some((_, slot)) = self.files.pop_front_if(|file| file.0 < sequence) {
            self.give_back(slot);
        }
    }

    /// A file of which nothing is needed waits for its next use, or goes.
    fn give_back(&mut self, slot: Slot) {
        if self.spare.len() < limits::JOURNAL_FILES_SPARE as usize {
            self.spare.push(slot);
        } else {
            self.wishes.push_back(Wish::Remove { file: slot });
        }
    }

    /// Whose batches they are.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Where reading has to begin to find all that is added from now on: at the first batch
    /// that has no place yet.
    #[must_use]
    pub fn start(&self) -> Start {
        let placed = self.full.iter().take_while(|it| it.place.is_some()).count();
        let number = BatchNumber(self.durable.0 + placed as u64 + 1);
        let (sequence, position) = match self.current.size {
            0 => (self.coming.sequence, FIRST_BATCH),
            _ => (self.current.sequence, self.current.position),
        };
        Start {
            sequence,
            position,
            number,
        }
    }

    /// Bytes of all batches whose writing has begun.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The batch that the next entry becomes durable with.
    #[must_use]
    pub fn open(&self) -> BatchNumber {
        BatchNumber(self.durable.0 + self.full.len() as u64 + 1)
    }

    /// The last entry that there is becomes durable with this batch; the last durable one
    /// if all are.
    #[must_use]
    pub fn last(&self) -> BatchNumber {
        match self.open {
            Some(_) => self.open(),
            None => BatchNumber(self.open().0 - 1),
        }
    }

    /// All batches up to this one are durable.
    #[inline]
    #[must_use]
    pub fn durable(&self) -> BatchNumber {
        self.durable
    }

    /// Whether an error has ended it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Something that has to be written found no memory: as after an error, nothing is
    /// written any more, so that nothing is confirmed that depends on it.
    pub fn give_up(&mut self) {
        self.is_broken = true;
    }

    /// Whether messages of so many bytes have no place: the next file is not to be had, and
    /// what is left of this one is kept for what is not a message.
    #[inline]
    #[must_use]
    pub fn is_full(&self, size: usize) -> bool {
        self.lacks_room && self.room_left() < size as u64
    }

    /// Bytes of the current file for messages, beside what waits for a place already.
    #[cold]
    fn room_left(&self) -> u64 {
        let waiting = self.full.iter().filter(|it| it.place.is_none());
        let waiting = waiting.map(|it| it.filling).chain(self.open);
        let sizes = waiting.map(|it| batch::size(it.seal.length()) as u64);
        // Each batch is filled up to a whole block.
        let taken = sizes.sum::<u64>() + BLOCK_SIZE as u64;
        let Current { size, position, .. } = self.current;
        let reserve = size / limits::JOURNAL_RESERVE_SHARE;
        (size - position).saturating_sub(taken + reserve)
    }

    /// Whether the next file was not to be had, and nobody has had it asked for again.
    #[must_use]
    pub fn is_missing_file(&self) -> bool {
        self.coming.stage == Next::Missing && !self.is_broken
    }

    /// The first file that is needed; the one to come if there is none.
    #[must_use]
    pub fn first(&self) -> FileSequence {
        (self.files.front()).map_or(self.coming.sequence, |(sequence, _)| *sequence)
    }

    /// Whether there are files behind the current one, which a checkpoint may have used again.
    #[must_use]
    pub fn has_files_behind(&self) -> bool {
        self.files.len() > 1
    }

    /// Asks for the next file again at the next turn.
    pub fn ask_again(&mut self) {
        if self.coming.stage == Next::Missing {
            self.coming.stage = Next::Unasked;
        }
    }

    /// Chunks of the arena that it has.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Chunks that entries of so many bytes may take.
    #[must_use]
    pub fn chunks_for(bytes: usize) -> usize {
        (bytes + HEADER_SIZE).div_ceil(CHUNK) + 1
    }

    /// Adds an entry, and says which batch it is in.
    ///
    /// # Errors
    ///
    /// If the arena has no chunk left; nothing is added then.
    pub fn append(
        &mut self,
        arena: &mut Arena,
        entry: &Entry<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<BatchNumber, ArenaFull> {
        let size = entry.size();
        scratch.clear();
        scratch.resize(size, 0);
        entry.write(scratch);
        let number = self.claim(arena, size, 1)?;
        let mut bytes = &scratch[..];
        while !bytes.is_empty() {
            let (chunk, start, room) = self.place(arena);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            arena.bytes_mut(chunk)[start..start + now.len()].copy_from_slice(now);
            self.filled(arena, chunk, start, now.len());
            bytes = rest;
        }
        Ok(number)
    }

    /// Adds `count` messages of `size` bytes in all as they lie in the arena, from `start`
    /// of a chunk on and in those chained behind it; says which batch they are in.
    ///
    /// # Errors
    ///
    /// As for [`Writer::append`].
    pub fn append_messages(
        &mut self,
        arena: &mut Arena,
        (source, start): (ChunkId, usize),
        size: usize,
        count: u32,
    ) -> Result<BatchNumber, ArenaFull> {
        let number = self.claim(arena, size, count)?;
        let (mut source, mut from, mut left) = (source, start, size);
        while left > 0 {
            let (chunk, to, room) = self.place(arena);
            let now = left.min(room).min(CHUNK - from);
            arena.copy((source, from), (chunk, to), now);
            self.filled(arena, chunk, to, now);
            left -= now;
            from += now;
            if from == CHUNK {
                (source, from) = (arena.next(source), 0);
            }
        }
        Ok(number)
    }

    /// Sees to it that entries of `size` bytes find chunks and stay in one batch.
    fn claim(
        &mut self,
        arena: &mut Arena,
        size: usize,
        entries: u32,
    ) -> Result<BatchNumber, ArenaFull> {
        if arena.free() < Self::chunks_for(size) {
            return Err(ArenaFull);
        }
        let most = limits::BATCH_SIZE_MAX as usize;
        if let Some(open) = self.open
            && open.seal.length() + size > most
        {
            self.close(open);
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let head = arena.take().ok_or(ArenaFull)?;
                self.chunks += 1;
                none.insert(Filling {
                    head,
                    tail: head,
                    chunks: 1,
                    used: HEADER_SIZE,
                    seal: Seal::new(),
                })
            }
        };
        open.seal.count(entries);
        Ok(self.open())
    }

    /// Where the open batch goes on: the chunk, the place in it, and the room there.
    fn place(&mut self, arena: &mut Arena) -> (ChunkId, usize, usize) {
        let open = self.open.as_mut().expect("a claim opens a batch");
        if open.used == CHUNK {
            let chunk = arena.take().expect("a claim sees to it that there is one");
            arena.chain(open.tail, chunk);
            open.tail = chunk;
            open.used = 0;
            open.chunks += 1;
            self.chunks += 1;
        }
        (open.tail, open.used, CHUNK - open.used)
    }

    /// So many bytes were put there.
    fn filled(&mut self, arena: &Arena, chunk: ChunkId, start: usize, size: usize) {
        if let Some(open) = &mut self.open {
            open.seal.extend(&arena.bytes(chunk)[start..start + size]);
            open.used += size;
        }
    }

    /// The open batch takes nothing more.
    fn close(&mut self, filling: Filling) {
        self.open = None;
        self.full.push_back(Full {
            filling,
            place: None,
        });
    }

    /// Has written what can be. To be called once a turn, behind its last entry.
    pub fn turn(&mut self, arena: &mut Arena, now: Wall) {
        if self.is_broken {
            return;
        }
        self.look_ahead(arena);
        if self.holds_nothing() {
            return;
        }
        loop {
            let begun = self.full.iter().take_while(|it| it.place.is_some()).count();
            let being_written = |it: &&Full| it.place.is_some_and(|place| !place.is_written);
            if self.full.iter().filter(being_written).count() >= IN_FLIGHT_MAX {
                return;
            }
            // One that has no place yet goes on filling.
            if !self.has_place() {
                return;
            }
            if begun == self.full.len() {
                match self.open {
                    Some(open) => self.close(open),
                    None => return,
                }
            }
            self.begin(arena, begun, now);
        }
    }

    /// Has the batch at `index` written, for which there is a place.
    fn begin(&mut self, arena: &mut Arena, index: usize, now: Wall) {
        let filling = self.full[index].filling;
        let size = batch::size(filling.seal.length());
        if self.current.size - self.current.position < size as u64 {
            self.change_files();
        }
        let position = self.current.position;
        let label = Label {
            number: BatchNumber(self.durable.0 + index as u64 + 1),
            durable_before: self.durable,
            written: now,
        };
        let header = filling.seal.finish(&self.origin, position, label);
        arena.bytes_mut(filling.head)[..HEADER_SIZE].copy_from_slice(&header);
        let end = filling.used.next_multiple_of(BLOCK_SIZE);
        arena.bytes_mut(filling.tail)[filling.used..end].fill(0);
        self.current.position += size as u64;
        self.bytes += size as u64;
        self.full[index].place = Some(Place {
            size,
            is_written: false,
        });
        self.wishes.push_back(Wish::Write {
            file: self.current.slot,
            position,
            token: Token(label.number.0),
        });
    }

    /// Goes on in the next file, which is ready.
    fn change_files(&mut self) {
        let coming = self.coming;
        self.current = Current {
            slot: coming.slot,
            sequence: coming.sequence,
            size: coming.size,
            position: FIRST_BATCH,
        };
        self.files.push_back((coming.sequence, coming.slot));
        // Which file it is, is seen when it is asked for: one may be let go until then.
        self.coming = Coming {
            slot: Slot(0),
            sequence: FileSequence(coming.sequence.0 + 1),
            size: self.file_size,
            stage: Next::Unasked,
        };
    }

    /// Brings the next file one step further.
    fn look_ahead(&mut self, arena: &mut Arena) {
        let Coming {
            slot,
            sequence,
            size,
            stage,
        } = self.coming;
        match stage {
            Next::Unasked if self.wants_next() => {
                let file = self.free_slot();
                self.coming.slot = file;
                self.coming.stage = Next::Asked;
                self.wishes.push_back(Wish::Prepare { file, size });
            }
            Next::Prepared => {
                let Some(chunk) = arena.take() else { return };
                self.chunks += 1;
                let header = Header {
                    origin: self.origin,
                    sequence,
                    recovered: self.recovered,
                    size,
                };
                arena.bytes_mut(chunk)[..BLOCK_SIZE].copy_from_slice(&header.block());
                self.coming.stage = Next::Heading(chunk);
                self.wishes.push_back(Wish::Write {
                    file: slot,
                    position: 0,
                    token: HEADER,
                });
            }
            Next::Unasked | Next::Asked | Next::Missing | Next::Heading(_) | Next::Ready => {}
        }
    }

    /// The slot of a file that may be begun: one that was used before, or a new one. One
    /// that was not to be had is tried again only if there is no other: a file that is
    /// there may need no room.
    fn free_slot(&mut self) -> Slot {
        let failed = Some(self.coming.slot).filter(|slot| *slot != Slot(0));
        if let Some(slot) = self.spare.pop() {
            if let Some(failed) = failed {
                self.spare.insert(0, failed);
            }
            return slot;
        }
        failed.unwrap_or_else(|| {
            let slot = self.slot_next;
            self.slot_next = Slot(slot.0 + 1);
            slot
        })
    }

    /// Whether it is time for the next file: a quarter of this one is written, so that a
    /// broker with little to keep has one file, and one with much has the next in time.
    fn wants_next(&self) -> bool {
        self.current.position >= self.current.size / 4
    }

    /// What is to be done, until `None`.
    pub fn wish(&mut self) -> Option<Wish> {
        self.wishes.pop_front()
    }

    /// What is to be written of a token: at most [`PIECES_MAX`] slices of whole blocks.
    /// They stay where they are until [`Writer::written`].
    pub fn pieces<'a>(&self, arena: &'a Arena, token: Token) -> impl Iterator<Item = &'a [u8]> {
        let (mut chunk, mut left) = self.being_written(token).unwrap_or((ChunkId::NONE, 0));
        core::iter::from_fn(move || {
            let size = left.min(CHUNK);
            if size == 0 {
                return None;
            }
            let piece = &arena.bytes(chunk)[..size];
            left -= size;
            chunk = arena.next(chunk);
            Some(piece)
        })
    }

    /// Where its bytes begin, and how many they are.
    fn being_written(&self, token: Token) -> Option<(ChunkId, usize)> {
        if token == HEADER {
            return match self.coming.stage {
                Next::Heading(chunk) => Some((chunk, BLOCK_SIZE)),
                _ => None,
            };
        }
        let full = self.full.get(self.index_of(token)?)?;
        let place = full.place.filter(|place| !place.is_written)?;
        Some((full.filling.head, place.size))
    }

    fn index_of(&self, token: Token) -> Option<usize> {
        usize::try_from(token.0.checked_sub(self.durable.0 + 1)?).ok()
    }

    /// A token's pieces are on the device, or it is not known what is.
    pub fn written(&mut self, arena: &mut Arena, token: Token, result: Result<(), WriteFailed>) {
        if result.is_err() && !Planted::ToldThoughFailed.is_awake() {
            self.is_broken = true;
            return;
        }
        if token == HEADER {
            return self.headed(arena);
        }
        let index = self.index_of(token);
        let full = index.and_then(|index| self.full.get_mut(index));
        if let Some(place) = full.and_then(|full| full.place.as_mut()) {
            place.is_written = true;
        }
        while let Some(full) = self.full.front()
            && full.place.is_some_and(|place| place.is_written)
        {
            arena.give_chain(full.filling.head);
            self.chunks -= full.filling.chunks;
            self.durable = self.durable.next();
            self.full.pop_front();
        }
    }

    fn headed(&mut self, arena: &mut Arena) {
        if let Next::Heading(chunk) = self.coming.stage {
            arena.give(chunk);
            self.chunks -= 1;
            self.coming.stage = Next::Ready;
        }
    }

    /// The file that was asked for is there, or is not to be had.
    pub fn prepared(&mut self, file: Slot, is_there: bool) {
        if file == self.coming.slot && self.coming.stage == Next::Asked {
            self.lacks_room = !is_there;
            if is_there {
                self.coming.stage = Next::Prepared;
            } else {
                // Any file that is there is as large.
                self.coming.size = limits::JOURNAL_FILE_SIZE_FIRST.into();
                self.coming.stage = Next::Missing;
            }
        }
    }

    /// Whether [`Writer::turn`] would do something.
    #[must_use]
    pub fn has_work(&self) -> bool {
        if self.is_broken {
            return false;
        }
        if !self.wishes.is_empty()
            || self.coming.stage == Next::Prepared
            || self.coming.stage == Next::Unasked && self.wants_next()
        {
            return true;
        }
        if self.holds_nothing() {
            return false;
        }
        let begun = |it: &&Full| it.place.is_some_and(|place| !place.is_written);
        let has_some = self.open.is_some() || self.full.iter().any(|it| it.place.is_none());
        has_some && self.full.iter().filter(begun).count() < IN_FLIGHT_MAX && self.has_place()
    }

    /// Whether all that was ever added is durable: of most turns where nothing is flushed.
    #[inline]
    fn holds_nothing(&self) -> bool {
        self.open.is_none() && self.full.is_empty()
    }

    /// Whether the next batch finds a place, as far as can be said before it is sealed.
    fn has_place(&self) -> bool {
        let next = self.full.iter().find(|it| it.place.is_none());
        let filling = next.map(|it| it.filling).or(self.open);
        let size = filling.map_or(0, |it| batch::size(it.seal.length()));
        self.current.size - self.current.position >= size as u64 || self.coming.stage == Next::Ready
    }

    /// Gives all memory back; nothing is written any more.
    pub fn clear(&mut self, arena: &mut Arena) {
        for full in self.full.drain(..) {
            arena.give_chain(full.filling.head);
        }
        if let Some(open) = self.open.take() {
            arena.give_chain(open.head);
        }
        if let Next::Heading(chunk) = self.coming.stage {
            arena.give(chunk);
            self.coming.stage = Next::Asked;
        }
        self.chunks = 0;
        self.is_broken = true;
    }
}

/// It is not known what a write left on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteFailed;

#[cfg(test)]
mod tests;
