//! What the last runs left: every journal of a directory, looked through, decided on, and
//! told entry by entry.
//!
//! ```text
//!   read    each file once: flushed, read, surveyed; of each journal a plan, or damage
//!   replay  each stretch of a plan, by runs, journal 0 first: its entries
//!   next    where a journal goes on in this run, for the shard that is to write it
//! ```
//!
//! What is believed and in which order is `core`'s to decide
//! ([`courser_core::journal::recover`]); here are the files. One is in memory at a time,
//! besides what its survey came to. Nothing is written, and every file was flushed before
//! what it says counts: it may have been in the page cache only. Several shards may replay
//! the same recovery, each taking what is its own.

use std::collections::BTreeMap;

use courser_core::id::{BatchNumber, FileSequence, JournalNumber, Run};
use courser_core::journal::entry::Entry;
use courser_core::journal::recover::{self, Damage, Plan, Tail, Wrong};
use courser_core::journal::survey::{Slot, Survey};
use courser_core::journal::{Identity, Origin};

use super::{DataDirectory, DirectoryError, JournalFile};
use crate::sys::{self, Errno};

/// The journals of a directory that was opened.
#[derive(Debug)]
pub struct Recovery {
    directory: DataDirectory,
    /// In the order of their journals.
    plans: Vec<Plan>,
    /// The lowest slot behind those of all files, by journal.
    behind: BTreeMap<JournalNumber, Slot>,
    /// Of the run that begins.
    salt: u64,
}

/// Where a journal goes on in the next run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Whose journal, which run; with the run's salt.
    pub origin: Origin,
    /// The last batch that is kept of earlier runs.
    pub recovered: BatchNumber,
    /// Which of the journal's files comes next.
    pub sequence: FileSequence,
    /// The lowest slot behind those of all files that there are.
    pub slot: Slot,
}

/// Why what is kept cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A file could not be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file is not as its writer left it.
    #[error("journal {journal}, {damage}\n  fix    {}", damage.advice())]
    Damaged {
        /// Whose file.
        journal: JournalNumber,
        /// What is wrong with it.
        damage: Damage,
    },
    /// The kernel has no random bytes.
    #[error("cannot draw a salt for the journals: {errno}")]
    Salt {
        /// Its answer.
        errno: Errno,
    },
}

impl Recovery {
    /// Looks through every file of every journal; writes nothing. Draws the salt of the run
    /// that begins.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or something that had been durable is missing.
    pub fn read(directory: &DataDirectory) -> Result<Self, RecoveryError> {
        let salt = sys::random_bytes().map_err(|errno| RecoveryError::Salt { errno })?;
        let mut surveys: BTreeMap<JournalNumber, Vec<Survey>> = BTreeMap::new();
        for (file, _) in directory.list()?.files {
            let image = directory.read(file)?;
            let identity = identity(directory, file.journal);
            let survey = Survey::of(file.slot, &identity, None, &image);
            surveys.entry(file.journal).or_default().push(survey);
        }
        let mut recovery = Self {
            directory: directory.clone(),
            plans: Vec::with_capacity(surveys.len()),
            behind: BTreeMap::new(),
            salt: u64::from_le_bytes(salt),
        };
        for (journal, surveys) in surveys {
            let plan = recover::decide(&identity(directory, journal), None, &surveys)
                .map_err(|damage| RecoveryError::Damaged { journal, damage })?;
            let last = surveys.iter().map(|survey| survey.slot.0).max();
            let behind = Slot(last.unwrap_or(0).saturating_add(1));
            recovery.behind.insert(journal, behind);
            recovery.plans.push(plan);
        }
        Ok(recovery)
    }

    /// Tells every entry that is kept, in the order in which they hold. Reads the files
    /// once more.
    ///
    /// # Errors
    ///
    /// If a file cannot be read any more or holds an entry that makes no sense; and what
    /// `each` refuses with.
    pub fn replay<E: From<RecoveryError>>(
        &self,
        mut each: impl FnMut(&Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut last: Option<(JournalFile, Vec<u8>)> = None;
        for (plan, step) in recover::order(&self.plans) {
            let plan = &self.plans[plan];
            let step = &plan.steps[step];
            let journal = plan.identity.journal;
            let damaged = |damage| E::from(RecoveryError::Damaged { journal, damage });
            let file = JournalFile {
                journal,
                slot: step.slot,
            };
            // Stretches that follow each other may lie in one file.
            let image = match last.take() {
                Some((read, image)) if read == file => image,
                _ => self.directory.read(file).map_err(RecoveryError::from)?,
            };
            for batch in step.batches(&image) {
                let batch = batch.map_err(damaged)?;
                for entry in batch.entries() {
                    let entry = entry.map_err(|malformed| {
                        damaged(Damage {
                            slot: step.slot,
                            position: batch.header.position,
                            what: Wrong::Entry {
                                number: batch.header.label.number,
                                malformed,
                            },
                        })
                    })?;
                    each(&entry)?;
                }
            }
            last = Some((file, image));
        }
        Ok(())
    }

    /// The run that begins now: the same for every journal of the directory.
    #[must_use]
    pub fn run(&self) -> Run {
        recover::next_run(&self.plans)
    }

    /// Where a journal goes on, which may be one that never was.
    #[must_use]
    pub fn next(&self, journal: JournalNumber) -> Next {
        let plan = self
            .plans
            .iter()
            .find(|plan| plan.identity.journal == journal);
        Next {
            origin: Origin {
                identity: identity(&self.directory, journal),
                run: self.run(),
                salt: self.salt,
            },
            recovered: plan.map_or(BatchNumber(0), |plan| plan.kept),
            sequence: plan.map_or(FileSequence(1), |plan| plan.sequence_next),
            slot: self.behind.get(&journal).copied().unwrap_or(Slot(1)),
        }
    }

    /// What was cut and in which files, to be said: nobody was ever told of it.
    pub fn tails(&self) -> impl Iterator<Item = (JournalFile, &Tail)> {
        self.plans.iter().flat_map(|plan| {
            let journal = plan.identity.journal;
            plan.tails.iter().map(move |tail| {
                let slot = tail.slot;
                (JournalFile { journal, slot }, tail)
            })
        })
    }

    /// The directory that was read.
    #[must_use]
    pub fn directory(&self) -> &DataDirectory {
        &self.directory
    }

    /// Files of which nothing is read. They may be prepared again at once.
    pub fn spares(&self) -> impl Iterator<Item = JournalFile> {
        self.plans.iter().flat_map(|plan| {
            let journal = plan.identity.journal;
            plan.spare
                .iter()
                .map(move |&slot| JournalFile { journal, slot })
        })
    }
}

fn identity(directory: &DataDirectory, journal: JournalNumber) -> Identity {
    Identity {
        installation: directory.installation(),
        journal,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use courser_core::id::ProducerId;
    use courser_core::journal::{batch, file};
    use courser_core::time::Wall;

    use super::super::scratch::Scratch;
    use super::*;

    const BLOCK: usize = 4096;

    /// A writer of whole files, one batch to a block.
    struct Writer {
        directory: DataDirectory,
        next: Next,
        image: Vec<u8>,
    }

    impl Writer {
        fn new(recovery: &Recovery, journal: u16) -> Self {
            let next = recovery.next(JournalNumber(journal));
            let header = file::Header {
                origin: next.origin,
                sequence: next.sequence,
                recovered: next.recovered,
                size: 8 * BLOCK as u64,
            };
            Self {
                directory: recovery.directory().clone(),
                next,
                image: header.block().to_vec(),
            }
        }

        /// Adds a batch with one entry that says a number.
        fn batch(mut self, says: u64, durable_before: u64) -> Self {
            let entry = Entry::ProducerForgotten {
                producer: ProducerId(says),
            };
            let mut bytes = vec![0; batch::HEADER_SIZE + entry.size()];
            entry.write(&mut bytes[batch::HEADER_SIZE..]);
            let blocks = self.image.len() / BLOCK;
            let label = batch::Label {
                number: BatchNumber(self.next.recovered.0 + blocks as u64),
                durable_before: BatchNumber(durable_before),
                written: Wall(1),
            };
            let position = self.image.len() as u64;
            batch::seal(&self.next.origin, position, label, 1, &mut [&mut bytes]);
            bytes.resize(BLOCK, 0);
            self.image.extend(bytes);
            self
        }

        fn finish(mut self) -> JournalFile {
            self.image.resize(8 * BLOCK, 0);
            let file = JournalFile {
                journal: self.next.origin.identity.journal,
                slot: self.next.slot,
            };
            self.directory.make_journal(file.journal).unwrap();
            fs::write(self.directory.path().join(file.path()), &self.image).unwrap();
            file
        }
    }

    fn said(recovery: &Recovery) -> Result<Vec<u64>, RecoveryError> {
        let mut said = Vec::new();
        recovery.replay(|entry| {
            let Entry::ProducerForgotten { producer } = entry else {
                panic!("unexpected {entry:?}");
            };
            said.push(producer.0);
            Ok::<_, RecoveryError>(())
        })?;
        Ok(said)
    }

    #[test]
    fn a_directory_without_journals_begins_with_the_first_run() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        assert_eq!(said(&recovery).unwrap(), []);
        let next = recovery.next(JournalNumber(4));
        assert_eq!(next.origin.identity.journal, JournalNumber(4));
        assert_eq!(next.origin.identity.installation, directory.installation());
        assert_eq!(next.origin.run, Run(1));
        assert_eq!(
            (next.recovered, next.sequence, next.slot),
            (BatchNumber(0), FileSequence(1), Slot(1))
        );
        let again = Recovery::read(&directory).unwrap();
        let again = again.next(JournalNumber(4));
        assert_ne!(again.origin.salt, next.origin.salt);
    }

    #[test]
    fn entries_are_told_by_runs_and_of_a_run_journal_0_first() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        for run in 1..=3_u64 {
            let recovery = Recovery::read(&directory).unwrap();
            assert_eq!(recovery.run(), Run(run));
            // All of them begin before any file of the run is there.
            let writers = [2, 0, 1].map(|journal| (journal, Writer::new(&recovery, journal)));
            for (journal, writer) in writers {
                let says = run * 100 + u64::from(journal) * 10;
                let kept = writer.next.recovered.0;
                writer.batch(says, kept).batch(says + 1, kept + 1).finish();
            }
        }
        let recovery = Recovery::read(&directory).unwrap();
        assert_eq!(
            said(&recovery).unwrap(),
            [
                100, 101, 110, 111, 120, 121, 200, 201, 210, 211, 220, 221, 300, 301, 310, 311,
                320, 321
            ]
        );
        let next = recovery.next(JournalNumber(2));
        assert_eq!(next.origin.run, Run(4));
        assert_eq!(
            (next.recovered, next.sequence, next.slot),
            (BatchNumber(6), FileSequence(4), Slot(4))
        );
        assert_eq!(recovery.tails().count(), 0);
        // Reading changes nothing, so it can be done again.
        let again = Recovery::read(&directory).unwrap();
        assert_eq!(said(&again).unwrap(), said(&recovery).unwrap());
    }

    #[test]
    fn a_torn_tail_is_cut_and_said_and_damage_is_refused_by_name() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        let file = Writer::new(&recovery, 0)
            .batch(1, 0)
            .batch(2, 1)
            .batch(3, 1)
            .finish();
        let path = directory.path().join(file.path());
        let whole = fs::read(&path).unwrap();

        let tear = |block: usize| {
            let mut torn = whole.clone();
            torn[block * BLOCK + 70] ^= 1;
            fs::write(&path, torn).unwrap();
            Recovery::read(&directory)
        };
        let recovery = tear(2).unwrap();
        assert_eq!(said(&recovery).unwrap(), [1]);
        let (torn, tail) = recovery.tails().next().unwrap();
        assert_eq!((torn, tail.number), (file, BatchNumber(2)));
        assert_eq!(tail.position, 2 * BLOCK as u64);

        let refused = tear(1).unwrap_err();
        let RecoveryError::Damaged { journal, damage } = &refused else {
            panic!("unexpected {refused:?}");
        };
        assert_eq!((*journal, damage.slot), (JournalNumber(0), Slot(1)));
        let message = refused.to_string();
        assert!(
            message.starts_with("journal 0, 000001.journal at 4096: batch 1 belongs there"),
            "{message}"
        );
        assert!(message.contains("\n  fix    check the device"), "{message}");
    }

    #[test]
    fn what_changes_between_the_looks_is_damage_and_a_refusal_ends_the_replay() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        let file = Writer::new(&recovery, 0).batch(1, 0).batch(2, 1).finish();
        let recovery = Recovery::read(&directory).unwrap();
        let mut told = 0;
        let refused = recovery.replay(|_| {
            told += 1;
            Err(RecoveryError::Salt {
                errno: Errno(libc::EIO),
            })
        });
        assert!(matches!(refused, Err(RecoveryError::Salt { .. })));
        assert_eq!(told, 1);
        fs::write(directory.path().join(file.path()), [0; BLOCK]).unwrap();
        let refused = said(&recovery).unwrap_err();
        assert!(
            refused.to_string().contains("was there a moment ago"),
            "{refused}"
        );
    }

    #[test]
    fn a_file_that_was_made_and_not_begun_is_a_spare() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        directory.make_journal(JournalNumber(1)).unwrap();
        let spare = JournalFile {
            journal: JournalNumber(1),
            slot: Slot(7),
        };
        fs::write(directory.path().join(spare.path()), [0; 3 * BLOCK]).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        assert_eq!(recovery.spares().collect::<Vec<_>>(), [spare]);
        assert_eq!(said(&recovery).unwrap(), []);
        // Its slot is not given to another file.
        assert_eq!(recovery.next(JournalNumber(1)).slot, Slot(8));
    }
}
