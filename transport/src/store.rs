//! What a shard keeps on a device: what the directory holds when a broker starts, and the
//! journal between the machine and the ring while it runs.
//!
//! ```text
//!   start  directory -> surveys -> plans ─┬─> every shard is told every entry of its part
//!                                         └─> where this run goes on
//!   run    Shard::storage_wish -> Store -> ring ... written -> Shard::written
//! ```
//!
//! Cast: [`Kept`] is what was found, the same for all shards; a [`Store`] belongs to one of
//! them, beside its ring.
//!
//! Invariant: a file is closed once the writer has begun a batch in a later one and no write
//! to it is in flight.

use std::sync::Arc;
use std::time::Duration;

use courser_core::id::{FileSequence, Installation, JournalNumber, Run, ShardIndex};
use courser_core::journal::recover::{self, Damage, Plan};
use courser_core::journal::survey::{Slot, Survey};
use courser_core::journal::writer::{Beginning, Token, Wish, WriteFailed};
use courser_core::journal::{Identity, Origin};
use courser_core::shard::{Shard, TooLittleMemory};

use crate::broker::DataSetting;
use crate::clock::Clock;
use crate::disk::{
    DataDirectory, DirectoryError, DiskFile, JournalFile, Progress, ShardJournal, Told,
};
use crate::doorbell::Doorbell;
use crate::ring::outgoing::write_pieces;
use crate::ring::{Completion, FileSlot, Ring, Wait};
use crate::sys::{self, Errno};

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory, or a file of it, is not to be had.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Something that was durable is not there any more.
    #[error("{file}: {damage}")]
    Damage {
        /// The file.
        file: JournalFile,
        /// What is wrong with it.
        damage: Damage,
    },
    /// There is more than fits.
    #[error(transparent)]
    Memory(#[from] TooLittleMemory),
    /// The journal cannot be written.
    #[error("{0}")]
    Trouble(String),
    /// The kernel gives no thread or no randomness.
    #[error("the kernel refused {what}: {errno}")]
    Kernel {
        /// What it was.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

/// What a data directory holds.
#[derive(Debug)]
pub(crate) struct Kept {
    directory: DataDirectory,
    plans: Vec<Plan>,
    /// Of each plan the highest slot that has a file.
    slots: Vec<u32>,
    run: Run,
    salt: u64,
}

impl Kept {
    /// Looks through all journals; changes nothing.
    pub(crate) fn find(directory: DataDirectory) -> Result<Self, StoreError> {
        let listed = directory.list()?;
        let mut journals: Vec<JournalNumber> =
            listed.files.iter().map(|(file, _)| file.journal).collect();
        journals.sort_unstable();
        journals.dedup();
        let (mut plans, mut slots) = (Vec::new(), Vec::new());
        for journal in journals {
            let identity = Identity {
                installation: directory.installation(),
                journal,
            };
            let mut surveys = Vec::new();
            let of_it = listed
                .files
                .iter()
                .filter(|(file, _)| file.journal == journal);
            for (file, _) in of_it {
                let image = directory.read(*file)?;
                surveys.push(Survey::of(file.slot, &identity, None, &image));
            }
            let plan = recover::decide(&identity, None, &surveys)
                .map_err(|damage| damaged(journal, damage))?;
            slots.push(surveys.iter().map(|it| it.slot.0).max().unwrap_or(0));
            plans.push(plan);
        }
        let salt = sys::random_bytes().map_err(|errno| StoreError::Kernel {
            what: "randomness",
            errno,
        })?;
        Ok(Self {
            run: recover::next_run(&plans),
            directory,
            plans,
            slots,
            salt: u64::from_le_bytes(salt),
        })
    }

    /// Whose data it is.
    pub(crate) fn installation(&self) -> Installation {
        self.directory.installation()
    }

    /// What the start's report says of it.
    pub(crate) fn setting(&self) -> DataSetting {
        let cut = self.plans.iter().flat_map(|plan| {
            let journal = plan.identity.journal;
            let said = move |tail| format!("journal {journal}: {tail}, and nobody was told of");
            plan.tails.iter().map(said)
        });
        DataSetting {
            directory: self.directory.path().to_owned(),
            run: self.run.0,
            cut: cut.collect(),
        }
    }

    /// Tells a shard everything that is kept.
    fn restore(&self, shard: &mut Shard) -> Result<(), StoreError> {
        let mut last: Option<(JournalFile, Vec<u8>)> = None;
        for (plan, step) in recover::order(&self.plans) {
            let plan = &self.plans[plan];
            let (journal, step) = (plan.identity.journal, &plan.steps[step]);
            let file = JournalFile {
                journal,
                slot: step.slot,
            };
            let image = match last.take() {
                Some((read, image)) if read == file => image,
                _ => self.directory.read(file)?,
            };
            for batch in step.batches(&image) {
                let batch = batch.map_err(|damage| damaged(journal, damage))?;
                for entry in batch.entries() {
                    let entry = entry.map_err(|malformed| {
                        let damage = Damage {
                            slot: step.slot,
                            position: batch.header.position,
                            what: recover::Wrong::Entry {
                                number: batch.header.label.number,
                                malformed,
                            },
                        };
                        damaged(journal, damage)
                    })?;
                    shard.restore(&entry)?;
                }
            }
            last = Some((file, image));
        }
        shard.restored();
        Ok(())
    }

    /// Where the journal of a shard goes on.
    fn beginning(&self, shard: ShardIndex) -> Beginning {
        let identity = Identity {
            installation: self.installation(),
            journal: JournalNumber(shard.0),
        };
        let found = self.plans.iter().position(|plan| plan.identity == identity);
        let plan = found.map(|index| &self.plans[index]);
        Beginning {
            origin: Origin {
                identity,
                run: self.run,
                salt: self.salt,
            },
            recovered: plan.map(|plan| plan.kept).unwrap_or_default(),
            sequence: plan.map_or(FileSequence(1), |plan| plan.sequence_next),
            slot: Slot(found.map_or(0, |index| self.slots[index]) + 1),
        }
    }
}

fn damaged(journal: JournalNumber, damage: Damage) -> StoreError {
    let slot = damage.slot;
    StoreError::Damage {
        file: JournalFile { journal, slot },
        damage,
    }
}

/// A shard's journal beside its ring.
#[derive(Debug)]
pub(crate) struct Store {
    files: ShardJournal,
    /// The file that was written to last.
    current: Option<Slot>,
    /// What could not be asked for yet.
    postponed: Option<Wish>,
    /// What the storage said that nobody was told of.
    trouble: Option<String>,
}

impl Store {
    /// Tells the shard what is kept, and has its journal go on.
    pub(crate) fn open(
        kept: &Arc<Kept>,
        index: ShardIndex,
        shard: &mut Shard,
        doorbell: Doorbell,
    ) -> Result<Self, StoreError> {
        kept.restore(shard)?;
        let journal = JournalNumber(index.0);
        kept.directory.make_journal(journal)?;
        let files = ShardJournal::start(&kept.directory, journal, doorbell).map_err(|error| {
            StoreError::Kernel {
                what: "a thread",
                errno: Errno::of(&error),
            }
        })?;
        shard.keep(&kept.beginning(index));
        Ok(Self {
            files,
            current: None,
            postponed: None,
            trouble: None,
        })
    }

    /// Runs until what this run begins with is durable: the journal's first file, and what
    /// is reserved ahead.
    pub(crate) fn settle<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
    ) -> Result<(), StoreError> {
        let mut clock = Clock::new();
        while !shard.is_durable() {
            shard.turn(clock.now());
            self.serve(ring, shard);
            let turned = ring.turn(Wait::AtMost(Some(Duration::from_millis(1))));
            turned.map_err(|fault| StoreError::Kernel {
                what: fault.operation,
                errno: fault.errno,
            })?;
            while let Some(completion) = ring.next() {
                if let Completion::Written {
                    file,
                    token,
                    result,
                } = completion
                {
                    self.written(ring, shard, (file, token), result);
                }
            }
            self.hear(ring, shard);
            if let Some(trouble) = self.trouble() {
                return Err(StoreError::Trouble(trouble));
            }
        }
        Ok(())
    }

    /// Whether the helper has something to tell; one atomic load.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.files.has_news()
    }

    /// What went wrong since this was asked last.
    pub(crate) fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Tells the shard what became of its files.
    pub(crate) fn hear<R: Ring<File = DiskFile>>(&mut self, ring: &mut R, shard: &mut Shard) {
        while let Some(told) = self.files.take(ring) {
            match told {
                Told::Prepared { slot, result } => {
                    shard.prepared(slot, result.is_ok());
                    self.trouble = result.err().map(|error| error.to_string());
                }
                Told::Removed { .. } => {}
            }
        }
    }

    /// Does what the shard wishes, as far as it can be done now; how much that was.
    pub(crate) fn serve<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
    ) -> u32 {
        let mut work = 0;
        while let Some(wish) = self.postponed.take().or_else(|| shard.storage_wish()) {
            match wish {
                Wish::Prepare { file, size } => {
                    if !self.files.prepare(file, size) {
                        self.postponed = Some(wish);
                        return work;
                    }
                }
                Wish::Write {
                    file,
                    position,
                    token,
                } => {
                    let is_next = token.is_batch() && self.current != Some(file);
                    if is_next && let Some(before) = self.current.replace(file) {
                        self.files.retire(ring, before);
                    }
                    let length = shard.storage_pieces(token).map(<[u8]>::len).sum::<usize>();
                    let length = u32::try_from(length).expect("a batch has its limit");
                    let rest = self.files.begin(file, position, length, token.0);
                    write_pieces(ring, shard, rest);
                }
            }
            work += 1;
        }
        work
    }

    /// A write is over, or a part of it.
    pub(crate) fn written<R: Ring<File = DiskFile>>(
        &mut self,
        ring: &mut R,
        shard: &mut Shard,
        (file, token): (FileSlot, u64),
        result: Result<u32, Errno>,
    ) {
        match self.files.written(ring, file, token, result) {
            Some(Progress::Durable { token }) => shard.written(Token(token), Ok(())),
            Some(Progress::Failed { token, errno }) => {
                shard.written(Token(token), Err(WriteFailed));
                self.trouble = Some(format!(
                    "a write to the journal failed with {errno}: nothing is made durable any more"
                ));
            }
            Some(Progress::Short(rest)) => write_pieces(ring, shard, rest),
            None => {}
        }
    }
}
