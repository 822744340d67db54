//! What the last runs left: every journal of a directory, looked through, decided on, and
//! told entry by entry.
//!
//! ```text
//!   read    each checkpoint, and each file behind it once: flushed, read, surveyed; of
//!           each journal a plan, or damage
//!   prepare what the last run left half done is done
//!   replay  the catalogue; then checkpoints and stretches of plans, by runs, journal 0 first
//!   next    where a journal goes on in this run, for the shard that is to write it
//! ```
//!
//! A checkpoint says among how many shards all was divided, and since which run. If this
//! run divides otherwise, every shard writes one before a port opens, and that of journal 0
//! takes its place first: from then on all of them count, and journals of others go.
//!
//! What is believed and in which order is `core`'s to decide
//! ([`courser_core::journal::recover`]); here are the files. One is in memory at a time,
//! besides what its survey came to. Reading writes nothing, and every file was flushed before
//! what it says counts: it may have been in the page cache only. Several shards may replay
//! the same recovery, each taking what is its own.

use std::collections::{BTreeMap, BTreeSet};

use courser_core::id::{BatchNumber, FileSequence, JournalNumber, Run};
use courser_core::journal::checkpoint::{self, Division, Header};
use courser_core::journal::entry::{Entry, Kind};
use courser_core::journal::page::{self, PageFile};
use courser_core::journal::recover::{self, Damage, Plan, Stretch, Tail, Wrong};
use courser_core::journal::survey::{Slot, Survey};
use courser_core::journal::{Identity, Origin, Start};
use courser_core::shard::Checkpoints;

use super::checkpoint as checkpoint_file;
use super::{
    CheckpointFile, DataDirectory, DirectoryError, Image, JournalFile, Listed, PageFiles,
    PageImages, directory,
};
use crate::ring::Transfers;
use crate::sys::{self, Errno};

/// The journals of a directory that was opened.
#[derive(Debug)]
pub struct Recovery {
    directory: DataDirectory,
    /// In the order of their journals.
    plans: Vec<Plan>,
    /// Those that count.
    checkpoints: BTreeMap<JournalNumber, Counting>,
    /// Page files that these name.
    pages: BTreeSet<(JournalNumber, PageFile)>,
    /// Files of journals that nothing is needed of.
    orphans: Vec<JournalFile>,
    /// The highest run that left something.
    run_last: Run,
    /// Bytes that are read.
    size: ReadSize,
    /// The lowest slot behind those of all files, by journal.
    behind: BTreeMap<JournalNumber, Slot>,
    /// Bytes that are read behind the checkpoint, by journal.
    journalled: BTreeMap<JournalNumber, u64>,
    /// Of the run that begins.
    salt: u64,
    is_one_by_one: bool,
}

/// How much is read at a start, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ReadSize {
    /// Of checkpoints, with the pages that they name.
    pub checkpoints: u64,
    /// Of what was journalled behind them.
    pub journals: u64,
}

/// A checkpoint that counts.
#[derive(Debug, Clone, Copy)]
struct Counting {
    header: Header,
    /// It lies aside still.
    is_aside: bool,
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
    /// A checkpoint is not as its writer left it.
    #[error("journal {journal}, {damage}\n  fix    {}", damage.advice())]
    Checkpoint {
        /// Whose.
        journal: JournalNumber,
        /// What is wrong with it.
        damage: checkpoint::Damage,
    },
    /// A page that a checkpoint names is not as its writer left it.
    #[error("journal {journal}, {damage}\n  fix    {}", damage.advice())]
    Page {
        /// Whose.
        journal: JournalNumber,
        /// What is wrong with it.
        damage: page::Damage,
    },
    /// The kernel has no random bytes.
    #[error("cannot draw a salt for the journals: {errno}")]
    Salt {
        /// Its answer.
        errno: Errno,
    },
}

impl Recovery {
    /// Looks through every checkpoint and every file of every journal; writes nothing. Draws
    /// the salt of the run that begins.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or something that had been durable is missing.
    pub fn read(directory: &DataDirectory) -> Result<Self, RecoveryError> {
        Self::look_through(directory, false)
    }

    /// The same without `io_uring`: pages are read and written one by one, here and later.
    ///
    /// # Errors
    ///
    /// As for [`Recovery::read`].
    pub fn read_one_by_one(directory: &DataDirectory) -> Result<Self, RecoveryError> {
        Self::look_through(directory, true)
    }

    fn look_through(directory: &DataDirectory, is_one_by_one: bool) -> Result<Self, RecoveryError> {
        let salt = sys::random_bytes().map_err(|errno| RecoveryError::Salt { errno })?;
        let listed = directory.list()?;
        let mut recovery = Self {
            directory: directory.clone(),
            plans: Vec::new(),
            orphans: Vec::new(),
            run_last: Run(0),
            size: ReadSize::default(),
            behind: BTreeMap::new(),
            journalled: BTreeMap::new(),
            salt: u64::from_le_bytes(salt),
            is_one_by_one,
            checkpoints: counting(directory, &listed)?,
            pages: BTreeSet::new(),
        };
        recovery.look_through_checkpoints()?;
        let shards = recovery.division().map(|division| division.shards);
        let is_orphan = |journal: JournalNumber| shards.is_some_and(|shards| journal.0 >= shards);
        let mut surveys: BTreeMap<JournalNumber, Vec<Survey>> = BTreeMap::new();
        let mut image = Image::default();
        for (file, _) in &listed.files {
            if is_orphan(file.journal) {
                recovery.orphans.push(*file);
            } else {
                surveys.entry(file.journal).or_default();
            }
            directory.read(*file, &mut image)?;
            let identity = identity(directory, file.journal);
            let start = recovery.start(file.journal);
            let survey = Survey::of(file.slot, &identity, start.as_ref(), &image);
            let run = survey.header.map_or(Run(0), |header| header.origin.run);
            recovery.run_last = recovery.run_last.max(run);
            if let Some(surveys) = surveys.get_mut(&file.journal) {
                surveys.push(survey);
            }
        }
        for journal in recovery.checkpoints.keys() {
            surveys.entry(*journal).or_default();
        }
        for (journal, surveys) in surveys {
            let start = recovery.start(journal);
            let plan = recover::decide(&identity(directory, journal), start.as_ref(), &surveys)
                .map_err(|damage| RecoveryError::Damaged { journal, damage })?;
            let last = surveys.iter().map(|survey| survey.slot.0).max();
            let behind = Slot(last.unwrap_or(0).saturating_add(1));
            let journalled = read_size(&plan, &surveys);
            recovery.size.journals += journalled;
            recovery.journalled.insert(journal, journalled);
            recovery.run_last = recovery.run_last.max(plan.run_last);
            recovery.behind.insert(journal, behind);
            recovery.plans.push(plan);
        }
        for counting in recovery.checkpoints.values() {
            recovery.size.checkpoints += counting.header.size;
            recovery.run_last = recovery.run_last.max(counting.header.origin.run);
        }
        Ok(recovery)
    }

    /// Reads what counts of checkpoints, and the pages that they name.
    fn look_through_checkpoints(&mut self) -> Result<(), RecoveryError> {
        let journals: Vec<_> = self.checkpoints.keys().copied().collect();
        for journal in journals {
            let (mut pages, mut size) = (BTreeSet::new(), 0);
            self.tell_checkpoint(journal, Pages::Told, |entry| {
                if let Entry::Paged { image, .. } = entry {
                    pages.insert((journal, image.file()));
                    size += u64::from(image.size);
                }
                Ok::<_, RecoveryError>(())
            })?;
            self.pages.append(&mut pages);
            self.size.checkpoints += size;
        }
        Ok(())
    }

    /// Does what the last run left half done: checkpoints that count take their places,
    /// journals go of which nothing is needed, and page files that no checkpoint names.
    ///
    /// # Errors
    ///
    /// If the kernel refuses any of it.
    pub fn prepare(&mut self) -> Result<(), DirectoryError> {
        for (journal, counting) in &mut self.checkpoints {
            if counting.is_aside {
                put_in_place(&self.directory, *journal)?;
                counting.is_aside = false;
            }
        }
        for file in self.orphans.drain(..) {
            self.directory.held().remove(&file.path())?;
        }
        let shards = self.division().map_or(u16::MAX, |division| division.shards);
        let listed = self.directory.list()?;
        let checkpoints = listed.checkpoints.into_iter();
        for journal in checkpoints.filter(|journal| journal.0 >= shards) {
            remove_checkpoints(&self.directory, journal)?;
        }
        for named in listed.pages {
            if !self.pages.contains(&named) {
                self.directory.held().remove_page_file(named.0, named.1)?;
            }
        }
        Ok(())
    }

    /// Has the checkpoints that shards have written aside take their places: from the first
    /// one on, all of them count, and nothing is needed of other journals, nor of the pages
    /// of earlier runs. The pages that they name are flushed: each shard did that.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn place_checkpoints(&self, shards: u16) -> Result<(), DirectoryError> {
        let of_this = |journal: JournalNumber| journal.0 < shards;
        // The first rename makes those count as well that still lie aside.
        for journal in (0..shards).map(JournalNumber) {
            let held = self.directory.held();
            directory::flush(&held.inside(&checkpoint_file::aside(journal)))?;
        }
        for journal in (0..shards).map(JournalNumber) {
            put_in_place(&self.directory, journal)?;
        }
        let listed = self.directory.list()?;
        let files = listed
            .files
            .iter()
            .filter(|(file, _)| !of_this(file.journal));
        for (file, _) in files {
            self.directory.held().remove(&file.path())?;
        }
        for journal in listed.checkpoints.into_iter().filter(|it| !of_this(*it)) {
            remove_checkpoints(&self.directory, journal)?;
        }
        for (journal, file) in listed.pages {
            if !of_this(journal) || file.run < self.run() {
                self.directory.held().remove_page_file(journal, file)?;
            }
        }
        Ok(())
    }

    /// The page files that a journal has in the run that begins: none yet.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory.
    pub fn page_files(&self, journal: JournalNumber) -> Result<PageFiles, Errno> {
        let transfers = self.transfers()?;
        Ok(PageFiles::new(
            &self.directory,
            journal,
            self.run(),
            transfers,
        ))
    }

    /// What pages are read and written with.
    fn transfers(&self) -> Result<Transfers, Errno> {
        match self.is_one_by_one {
            true => Transfers::one_by_one(),
            false => Transfers::at_once(),
        }
    }

    /// How all is divided, if there is a checkpoint.
    fn division(&self) -> Option<Division> {
        let first = self.checkpoints.get(&JournalNumber(0));
        first.map(|first| first.header.division)
    }

    /// Whether so many shards divide what there is otherwise than those that wrote it.
    #[must_use]
    pub fn is_divided_anew(&self, shards: u16) -> bool {
        self.division().is_none_or(|it| it.shards != shards)
    }

    /// How a journal goes on that is one of so many, with a checkpoint each time that so many
    /// bytes were journalled.
    #[must_use]
    pub fn checkpoints(&self, journal: JournalNumber, shards: u16, every: u64) -> Checkpoints {
        let last = self.checkpoints.get(&journal).map(|it| it.header);
        let since = match self.division() {
            Some(division) if division.shards == shards => division.since,
            _ => self.run(),
        };
        Checkpoints {
            every,
            number: last.map_or(0, |header| header.number),
            size: last.map_or(0, |header| header.size),
            behind: self.journalled.get(&journal).copied().unwrap_or(0),
            since,
        }
    }

    /// Files of a journal that something is needed of, in the order of their sequences.
    pub fn needed(
        &self,
        journal: JournalNumber,
    ) -> impl Iterator<Item = (FileSequence, Slot)> + use<'_> {
        let plan = self.plan(journal);
        plan.into_iter()
            .flat_map(|plan| plan.needed.iter().copied())
    }

    /// How much is read.
    #[must_use]
    pub fn size(&self) -> ReadSize {
        self.size
    }

    fn start(&self, journal: JournalNumber) -> Option<Start> {
        let counting = self.checkpoints.get(&journal);
        counting.map(|counting| counting.header.start)
    }

    fn plan(&self, journal: JournalNumber) -> Option<&Plan> {
        let mut plans = self.plans.iter();
        plans.find(|plan| plan.identity.journal == journal)
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
        if self.plans.len() > 1 {
            // A checkpoint of another journal may be of an earlier run than the one that
            // says what the catalogue is.
            let first = |journal| journal == JournalNumber(0);
            self.tell(first, Pages::Left, |entry| match entry.kind() {
                Kind::CatalogKept | Kind::DestinationKept | Kind::CatalogChanged => each(entry),
                _ => Ok(()),
            })?;
        }
        self.tell(
            |_| true,
            Pages::Told,
            |entry| match entry {
                // Its messages are told.
                Entry::Paged { .. } => Ok(()),
                _ => each(entry),
            },
        )
    }

    /// Tells the entries of some journals.
    fn tell<E: From<RecoveryError>>(
        &self,
        is_told: impl Fn(JournalNumber) -> bool,
        pages: Pages,
        mut each: impl FnMut(&Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut image = Image::default();
        let mut last = None;
        let checkpoint = |journal| {
            self.checkpoints
                .get(&journal)
                .map(|it| it.header.origin.run)
        };
        for stretch in recover::order(&self.plans, checkpoint) {
            let (Stretch::Checkpoint(plan) | Stretch::Step(plan, _)) = stretch;
            let plan = &self.plans[plan];
            let journal = plan.identity.journal;
            if !is_told(journal) {
                continue;
            }
            let Stretch::Step(_, step) = stretch else {
                self.tell_checkpoint(journal, pages, &mut each)?;
                continue;
            };
            let step = &plan.steps[step];
            let damaged = |damage| E::from(RecoveryError::Damaged { journal, damage });
            let file = JournalFile {
                journal,
                slot: step.slot,
            };
            // Stretches that follow each other may lie in one file.
            if last.replace(file) != Some(file) {
                let read = self.directory.read(file, &mut image);
                read.map_err(RecoveryError::from)?;
            }
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
        }
        Ok(())
    }

    fn tell_checkpoint<E: From<RecoveryError>>(
        &self,
        journal: JournalNumber,
        pages: Pages,
        mut each: impl FnMut(&Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let missing = || checkpoint_file::missing(journal);
        let division = self.division().ok_or_else(missing)?;
        let file = CheckpointFile::that_counts(&self.directory, journal, division)?;
        let mut images = PageImages::new(&self.directory, journal);
        // Without memory for more, one is read at a time.
        if pages == Pages::Told
            && let Ok(transfers) = self.transfers()
        {
            images.read_ahead_with(transfers);
        }
        file.batches(|batch| {
            let entries: Vec<_> = batch.entries().collect();
            images.expect(entries.iter().filter_map(|entry| match entry {
                Ok(Entry::Paged { image, .. }) => Some(*image),
                _ => None,
            }));
            for entry in entries {
                let damaged = |malformed| {
                    let number = batch.header.label.number;
                    file.damaged(checkpoint::Damage {
                        position: batch.header.position,
                        what: checkpoint::Wrong::Entry { number, malformed },
                    })
                };
                let entry = entry.map_err(damaged)?;
                each(&entry)?;
                if let (Entry::Paged { place, image }, Pages::Told) = (&entry, pages) {
                    images.messages(*place, image, &mut each)?;
                }
            }
            Ok(())
        })
    }

    /// The run that begins now: the same for every journal of the directory.
    #[must_use]
    pub fn run(&self) -> Run {
        Run(self.run_last.0.saturating_add(1))
    }

    /// Where a journal goes on, which may be one that never was.
    #[must_use]
    pub fn next(&self, journal: JournalNumber) -> Next {
        let plan = self.plan(journal);
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

/// What becomes of pages that a checkpoint names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// Their messages are told behind the entry that names them.
    Told,
    /// They are not looked at.
    Left,
}

/// The checkpoints that count, by their headers.
fn counting(
    directory: &DataDirectory,
    listed: &Listed,
) -> Result<BTreeMap<JournalNumber, Counting>, RecoveryError> {
    let first = JournalNumber(0);
    let mut counting = BTreeMap::new();
    let Some(file) = CheckpointFile::in_place(directory, first)? else {
        for &journal in &listed.checkpoints {
            if CheckpointFile::in_place(directory, journal)?.is_some() {
                // It got its place behind that of journal 0.
                return Err(checkpoint_file::missing(first));
            }
        }
        return Ok(counting);
    };
    let division = file.header()?.division;
    for journal in (0..division.shards).map(JournalNumber) {
        let file = CheckpointFile::that_counts(directory, journal, division)?;
        let (header, is_aside) = (file.header()?, file.is_aside());
        counting.insert(journal, Counting { header, is_aside });
    }
    Ok(counting)
}

fn put_in_place(directory: &DataDirectory, journal: JournalNumber) -> Result<(), DirectoryError> {
    let held = directory.held();
    let aside = held.inside(&checkpoint_file::aside(journal));
    directory::put_in_place(&aside, &held.inside(&checkpoint_file::path(journal)))
}

fn remove_checkpoints(
    directory: &DataDirectory,
    journal: JournalNumber,
) -> Result<(), DirectoryError> {
    for path in [
        checkpoint_file::path(journal),
        checkpoint_file::aside(journal),
    ] {
        if directory.path().join(&path).exists() {
            directory.held().remove(&path)?;
        }
    }
    Ok(())
}

/// Bytes of batches that are read.
fn read_size(plan: &Plan, surveys: &[Survey]) -> u64 {
    let of_slot = |slot| surveys.iter().find(|survey| survey.slot == slot);
    let steps = plan.steps.iter();
    steps
        .filter_map(|step| Some(of_slot(step.slot)?.end().saturating_sub(step.position)))
        .sum()
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
    use std::os::unix::fs::FileExt;

    use courser_core::frame::checksum;
    use courser_core::frame::encode::{self, Envelope};
    use courser_core::id::{DestinationNumber, Offset, PageNumber, PartitionIndex, ProducerId};
    use courser_core::journal::entry::{PageImage, Place};
    use courser_core::journal::{batch, file};
    use courser_core::limits::PAGES_PER_FILE;
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

    /// A checkpoint written by hand, of journal 0 and the first of its run.
    struct Kept {
        directory: DataDirectory,
        origin: Origin,
        /// What is journalled behind it: nothing yet.
        journal: Writer,
        entries: Vec<u8>,
        count: u32,
    }

    impl Kept {
        fn new(recovery: &Recovery, journal: u16) -> Self {
            let next = recovery.next(JournalNumber(journal));
            recovery
                .directory()
                .make_journal(JournalNumber(journal))
                .unwrap();
            Self {
                directory: recovery.directory().clone(),
                origin: next.origin,
                journal: Writer::new(recovery, journal),
                entries: vec![0; batch::HEADER_SIZE],
                count: 0,
            }
        }

        fn entry(mut self, entry: &Entry<'_>) -> Self {
            let from = self.entries.len();
            self.entries.resize(from + entry.size(), 0);
            entry.write(&mut self.entries[from..]);
            self.count += 1;
            self
        }

        /// Names messages that lie in a page, which is written too.
        fn paged(self, page: u32, first: u64, count: u32) -> Self {
            let bytes = frames(first, count);
            let image = PageImage {
                run: self.origin.run,
                page: PageNumber(page),
                size: u32::try_from(bytes.len()).unwrap(),
                sum: checksum::extend(0, &bytes),
                first: Offset(first),
                count,
            };
            let path = self.directory.path().join(directory::page_path(
                self.origin.identity.journal,
                image.file(),
            ));
            let file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .unwrap();
            file.write_all_at(&bytes, image.position()).unwrap();
            self.entry(&Entry::Paged {
                place: PLACE,
                image,
            })
        }

        fn place(self, name: &str, shards: u16) {
            let Self {
                directory,
                origin,
                journal,
                mut entries,
                count,
            } = self;
            let next = journal.next;
            journal.finish();
            let size = (BLOCK + entries.len().next_multiple_of(BLOCK)) as u64;
            let label = batch::Label {
                number: BatchNumber(1),
                durable_before: BatchNumber(0),
                written: Wall(1),
            };
            batch::seal(&origin, BLOCK as u64, label, count, &mut [&mut entries]);
            let header = Header {
                origin,
                number: 1,
                start: Start {
                    sequence: next.sequence,
                    position: BLOCK as u64,
                    number: next.recovered.next(),
                },
                batches: 1,
                size,
                division: Division {
                    shards,
                    since: origin.run,
                },
            };
            let mut image = header.block().to_vec();
            image.extend(entries);
            image.resize(usize::try_from(size).unwrap(), 0);
            let folder = directory::folder(origin.identity.journal);
            fs::write(directory.path().join(folder).join(name), image).unwrap();
        }
    }

    const PLACE: Place = Place {
        destination: DestinationNumber(4),
        partition: PartitionIndex(2),
    };

    fn frames(first: u64, count: u32) -> Vec<u8> {
        let mut all = Vec::new();
        for offset in (first..).take(count as usize) {
            let body = offset.to_le_bytes();
            let mut bytes = vec![0; encode::message_size(0, body.len())];
            encode::message(&Envelope::default(), &[], &body, &mut bytes);
            // The broker's half of the header, as docs/wire.md has it.
            bytes[8..12].copy_from_slice(&PLACE.destination.0.to_le_bytes());
            bytes[12..16].copy_from_slice(&PLACE.partition.0.to_le_bytes());
            bytes[16..24].copy_from_slice(&offset.to_le_bytes());
            all.extend(bytes);
        }
        all
    }

    /// The offsets of messages that are told, and what else is.
    fn offsets(recovery: &Recovery) -> Result<Vec<u64>, RecoveryError> {
        let mut told = Vec::new();
        recovery.replay(|entry| {
            match entry {
                Entry::Message(message) => told.push(message.header.offset.get()),
                Entry::ProducerForgotten { producer } => told.push(1000 + producer.0),
                _ => panic!("unexpected {entry:?}"),
            }
            Ok::<_, RecoveryError>(())
        })?;
        Ok(told)
    }

    fn page_names(directory: &DataDirectory) -> Vec<String> {
        let pages = directory.list().unwrap().pages.into_iter();
        pages
            .map(|(journal, file)| format!("{journal}: {file}"))
            .collect()
    }

    /// A directory with a checkpoint that names pages in two files.
    fn with_pages(scratch: &Scratch) -> DataDirectory {
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        let forgotten = |producer| Entry::ProducerForgotten {
            producer: ProducerId(producer),
        };
        Kept::new(&recovery, 0)
            .entry(&forgotten(1))
            .paged(PAGES_PER_FILE, 10, 3)
            .paged(4, 13, 2)
            .entry(&forgotten(2))
            .paged(6, 15, 1)
            .place(checkpoint::FILE_NAME, 1);
        directory
    }

    #[test]
    fn what_lies_in_pages_is_told_in_its_place() {
        let scratch = Scratch::new();
        let directory = with_pages(&scratch);
        let mut recovery = Recovery::read(&directory).unwrap();
        assert_eq!(
            offsets(&recovery).unwrap(),
            [1001, 10, 11, 12, 13, 14, 1002, 15]
        );
        let paged = frames(10, 6).len() as u64;
        assert_eq!(recovery.size().checkpoints, 2 * BLOCK as u64 + paged);
        assert_eq!(recovery.run(), Run(2));
        // What it names stays, however often a start comes no further than this.
        for _ in 0..2 {
            recovery.prepare().unwrap();
            assert_eq!(
                page_names(&directory),
                ["0: 00000001-000000.pages", "0: 00000001-000001.pages"]
            );
            recovery = Recovery::read(&directory).unwrap();
        }
        assert_eq!(offsets(&recovery).unwrap().len(), 8);
    }

    #[test]
    fn pages_that_are_not_as_they_were_written_are_damage() {
        let scratch = Scratch::new();
        let directory = with_pages(&scratch);
        let path = scratch.path().join("journal-00/00000001-000000.pages");
        let whole = fs::read(&path).unwrap();
        let refused = || {
            let refused = Recovery::read(&directory).unwrap_err();
            let message = refused.to_string();
            assert!(matches!(refused, RecoveryError::Page { .. }), "{message}");
            assert!(message.contains("\n  fix    "), "{message}");
            message
        };

        let mut bytes = whole.clone();
        bytes[6 * 65_536 + 113] ^= 1;
        fs::write(&path, bytes).unwrap();
        let said = refused();
        assert!(
            said.starts_with("journal 0, 00000001-000000.pages at 393216: the checksum"),
            "{said}"
        );

        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let said = refused();
        assert!(said.contains(" at 393216: "), "{said}");
        assert!(said.contains("the file ends"), "{said}");

        fs::remove_file(&path).unwrap();
        let said = refused();
        assert!(said.contains(" at 262144: the file is missing"), "{said}");

        // It changes after it was looked at.
        fs::write(&path, &whole).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        fs::write(&path, b"").unwrap();
        assert!(matches!(
            offsets(&recovery),
            Err(RecoveryError::Page { .. })
        ));
        assert!(refused().contains("the file ends"));
    }

    #[test]
    fn pages_of_other_messages_than_the_checkpoint_says_are_damage() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        let bytes = frames(10, 2);
        let image = PageImage {
            run: Run(1),
            page: PageNumber(0),
            size: u32::try_from(bytes.len()).unwrap(),
            sum: checksum::extend(0, &bytes),
            first: Offset(10),
            count: 2,
        };
        for image in [
            PageImage {
                first: Offset(11),
                ..image
            },
            PageImage { count: 3, ..image },
        ] {
            let place = PLACE;
            Kept::new(&recovery, 0)
                .paged(0, 10, 2)
                .entry(&Entry::Paged { place, image })
                .place(checkpoint::FILE_NAME, 1);
            assert!(matches!(
                Recovery::read(&directory),
                Err(RecoveryError::Page { .. })
            ));
        }
    }

    #[test]
    fn a_start_removes_page_files_that_no_checkpoint_names() {
        let scratch = Scratch::new();
        let directory = with_pages(&scratch);
        directory.make_journal(JournalNumber(5)).unwrap();
        let names = [
            // Of a run that made no checkpoint, or was killed before or behind its rename.
            "journal-00/00000001-000002.pages",
            "journal-00/00000002-000000.pages",
            // Of a journal that is no more.
            "journal-05/00000001-000000.pages",
        ];
        for name in names {
            fs::write(scratch.path().join(name), "old").unwrap();
        }
        let stranger = scratch.path().join("journal-00/1-0.pages");
        fs::write(&stranger, "theirs").unwrap();
        let mut recovery = Recovery::read(&directory).unwrap();
        assert_eq!(page_names(&directory).len(), 5, "looking changes nothing");
        recovery.prepare().unwrap();
        assert_eq!(
            page_names(&directory),
            ["0: 00000001-000000.pages", "0: 00000001-000001.pages"]
        );
        assert_eq!(fs::read(stranger).unwrap(), b"theirs");
        assert_eq!(offsets(&recovery).unwrap().len(), 8);
    }

    #[test]
    fn without_a_checkpoint_no_page_is_needed() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let recovery = Recovery::read(&directory).unwrap();
        // It lies aside, and so is nobody's.
        Kept::new(&recovery, 0)
            .paged(0, 10, 2)
            .place(checkpoint::ASIDE_NAME, 1);
        let mut recovery = Recovery::read(&directory).unwrap();
        assert_eq!(offsets(&recovery).unwrap(), []);
        recovery.prepare().unwrap();
        assert_eq!(page_names(&directory), [""; 0]);
    }

    #[test]
    fn another_division_leaves_no_pages_but_its_own() {
        let scratch = Scratch::new();
        let directory = with_pages(&scratch);
        let mut recovery = Recovery::read(&directory).unwrap();
        recovery.prepare().unwrap();
        assert!(recovery.is_divided_anew(2));
        for journal in 0..2 {
            Kept::new(&recovery, journal)
                .paged(1, 20 + 10 * u64::from(journal), 2)
                .place(checkpoint::ASIDE_NAME, 2);
        }
        let of_both = [
            "0: 00000001-000000.pages",
            "0: 00000001-000001.pages",
            "0: 00000002-000000.pages",
            "1: 00000002-000000.pages",
        ];
        assert_eq!(page_names(&directory), of_both);
        recovery.place_checkpoints(2).unwrap();
        assert_eq!(page_names(&directory), &of_both[2..]);
        let recovery = Recovery::read(&directory).unwrap();
        assert_eq!(offsets(&recovery).unwrap(), [20, 21, 30, 31]);
    }
}
