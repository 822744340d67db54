//! What the bytes of one file are, seen by themselves.
//!
//! ```text
//!  +---+-----+-----+-----+-------------+-------+------+-------------+
//!  | H | 17  | 18  | 19  | 20 (torn)   |  21   | old, old, zeros    |
//!  +---+-----+-----+-----+-------------+-------+------+-------------+
//!      |<---- chain ---->|<------------ behind ------------------->|
//! ```
//!
//! A survey is of fixed size, whatever the file holds. It costs one sum over the
//! chain, whose every byte belongs to one batch, and one of 64 bytes for each block
//! behind it: no length is believed that its header's checksum does not cover, and no
//! candidate is summed as a whole. So time is linear in the size of the file, and
//! bytes that clients chose change nothing about it.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use core::fmt;

use super::batch::{self, Batch};
use super::file::{self, FIRST_BATCH, Unreadable};
use super::{BLOCK_SIZE, Identity, Origin, Start};
use crate::id::BatchNumber;

/// The place of a file in its journal's directory. The slot stays, while the file
/// becomes another one when it is used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot of the file with this name, if it is the name of a journal's file.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".journal")?;
        let slot = Self(digits.parse().ok()?);
        (digits.len() == 6 && slot.0 > 0 && slot.to_string() == name).then_some(slot)
    }
}

/// The name of its file.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}.journal", self.0)
    }
}

/// Whole batches, each with the number behind that of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The first one's number.
    pub first: BatchNumber,
    /// The last one's.
    pub last: BatchNumber,
    /// Where the last one ends, in bytes from the start of the file.
    pub end: u64,
}

/// A header of a batch that was found, and what it knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Who wrote it.
    pub origin: Origin,
    /// Where it stands.
    pub position: u64,
    /// Its number.
    pub number: BatchNumber,
    /// What it knew to be durable.
    pub durable_before: BatchNumber,
}

/// What stands behind the chain: headers of this run with higher numbers than the
/// chain has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// How many.
    pub batches: u32,
    /// Where the last one would end; 0 without one.
    pub end: u64,
}

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Which file.
    pub slot: Slot,
    /// What it says of itself.
    pub header: Result<file::Header, Unreadable>,
    /// Where its batches are looked for from.
    pub start: u64,
    /// The batches from there on.
    pub chain: Option<Chain>,
    /// What comes behind them.
    pub behind: Behind,
    /// Of all batches of the file's run, whole or not, the one that knew most to be
    /// durable. In a file without a readable header: of the highest run there is.
    pub witness: Option<Witness>,
    /// In a file without a readable header: the lowest number of that run. The highest
    /// there is in any other.
    pub lowest: BatchNumber,
}

impl Survey {
    /// Looks through `image`, which is all of a file of `identity`, from its first batch
    /// on, or from `start` if it is that file.
    #[must_use]
    pub fn of(slot: Slot, identity: &Identity, start: Option<&Start>, image: &[u8]) -> Self {
        let header = file::Header::read(image);
        let start = start
            .filter(|start| header.is_ok_and(|header| header.sequence == start.sequence))
            .map_or(FIRST_BATCH, |start| start.position);
        let mut survey = Self {
            slot,
            header,
            start: start.max(FIRST_BATCH),
            chain: None,
            behind: Behind::default(),
            witness: None,
            lowest: BatchNumber::MAX,
        };
        match header {
            Ok(header) => {
                let size = usize::try_from(header.size).unwrap_or(usize::MAX);
                let image = image.get(..size).unwrap_or(image);
                survey.follow(&header.origin, image);
                survey.look_behind(&header.origin, image);
            }
            Err(_) => survey.look_for_strays(identity, image),
        }
        survey
    }

    /// Where the chain ends, or would begin.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.chain.map_or(self.start, |chain| chain.end)
    }

    fn follow(&mut self, origin: &Origin, image: &[u8]) {
        while let Some(batch) = Batch::open(origin, self.end(), from(image, self.end())) {
            let number = batch.header.label.number;
            let first = match self.chain {
                None => number,
                Some(chain) if chain.last.next() == number => chain.first,
                Some(_) => return,
            };
            self.heard(&batch.header);
            self.chain = Some(Chain {
                first,
                last: number,
                end: batch.header.end(),
            });
        }
    }

    fn look_behind(&mut self, origin: &Origin, image: &[u8]) {
        let last = self.chain.map_or(BatchNumber(0), |chain| chain.last);
        for (position, bytes) in blocks(image, self.end()) {
            let Some(header) = batch::Header::read(&origin.identity, position, bytes) else {
                continue;
            };
            if header.origin != *origin {
                continue;
            }
            self.heard(&header);
            // What is left of the file's use before has lower numbers.
            if header.label.number > last {
                self.behind.batches = self.behind.batches.saturating_add(1);
                self.behind.end = self.behind.end.max(header.end());
            }
        }
    }

    fn look_for_strays(&mut self, identity: &Identity, image: &[u8]) {
        for (position, bytes) in blocks(image, FIRST_BATCH) {
            let Some(header) = batch::Header::read(identity, position, bytes) else {
                continue;
            };
            let run = self.witness.map(|witness| witness.origin.run);
            if run.is_none_or(|run| run < header.origin.run) {
                self.witness = None;
                self.lowest = header.label.number;
                self.behind = Behind::default();
            } else if run != Some(header.origin.run) {
                continue;
            }
            self.lowest = self.lowest.min(header.label.number);
            self.heard(&header);
            self.behind.batches = self.behind.batches.saturating_add(1);
            self.behind.end = self.behind.end.max(header.end());
        }
    }

    /// Keeps the header of this run that knows most.
    fn heard(&mut self, header: &batch::Header) {
        let known = self.witness.map(|witness| witness.durable_before);
        if known.is_none_or(|known| known <= header.label.durable_before) {
            self.witness = Some(Witness {
                origin: header.origin,
                position: header.position,
                number: header.label.number,
                durable_before: header.label.durable_before,
            });
        }
    }
}

/// What of `image` stands from `position` on.
pub(super) fn from(image: &[u8], position: u64) -> &[u8] {
    usize::try_from(position)
        .ok()
        .and_then(|position| image.get(position..))
        .unwrap_or_default()
}

/// The blocks of `image` from `position` on, each with its place and what follows it.
fn blocks(image: &[u8], position: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let block = u64::try_from(BLOCK_SIZE).unwrap_or(u64::MAX);
    let mut next = Some(position);
    core::iter::from_fn(move || {
        let position = next?;
        let bytes = from(image, position);
        next = position.checked_add(block);
        (!bytes.is_empty()).then_some((position, bytes))
    })
}
