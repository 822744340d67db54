//! What a data directory holds, looked at while no broker has it. Nothing is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use courser_core::frame::checksum;
use courser_core::frame::decode::verify;
use courser_core::id::{Installation, JournalNumber};
use courser_core::journal::Identity;
use courser_core::journal::batch::Batch;
use courser_core::journal::checkpoint::{self, Division, Header};
use courser_core::journal::entry::{Entry, Kind};
use courser_core::journal::page;
use courser_core::journal::recover::{Damage, Plan, Step, Wrong, decide};
use courser_core::journal::survey::{Slot, Survey};
use courser_transport::disk::{
    CheckpointFile, DataDirectory, DirectoryError, Image, JournalFile, PageImages, RecoveryError,
};

use crate::error::CommandError;

/// A data directory that this process has for as long as it looks.
pub(crate) struct Examined {
    directory: DataDirectory,
    /// Each journal, by its number.
    pub(crate) journals: Vec<Journal>,
    /// What has a name that is none of ours.
    pub(crate) strangers: Vec<PathBuf>,
}

/// One journal.
pub(crate) struct Journal {
    pub(crate) number: JournalNumber,
    pub(crate) checkpoint: Found,
    /// Nothing is needed of it: there are fewer journals than there were, and the next start
    /// removes it.
    pub(crate) is_left_over: bool,
    /// Its files, by their slots.
    pub(crate) surveys: Vec<Survey>,
    /// What a broker would make of it.
    pub(crate) decision: Result<Plan, Damage>,
}

/// The checkpoint of a journal.
#[derive(Default)]
pub(crate) struct Found {
    file: Option<CheckpointFile>,
    /// What it says of itself, if there is one or has to be.
    pub(crate) said: Option<Result<Header, checkpoint::Damage>>,
}

/// What the batches of a journal come to.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) batches: u64,
    pub(crate) entries: BTreeMap<Kind, u64>,
    /// Bytes of entries.
    pub(crate) bytes: u64,
    /// Messages whose own checksum does not match, though that of their batch does.
    pub(crate) spoilt: Vec<Spoilt>,
}

/// A message that a consumer would not accept.
pub(crate) struct Spoilt {
    pub(crate) slot: Slot,
    pub(crate) destination: u32,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
}

impl Examined {
    /// Looks at every file once.
    pub(crate) fn open(path: &Path) -> Result<Self, DirectoryError> {
        let directory = DataDirectory::inspect(path)?;
        let listed = directory.list()?;
        let mut files: BTreeMap<JournalNumber, Vec<JournalFile>> = BTreeMap::new();
        for (file, _) in listed.files {
            files.entry(file.journal).or_default().push(file);
        }
        for journal in listed.checkpoints {
            files.entry(journal).or_default();
        }
        let first = Found::in_place(&directory, JournalNumber(0))?;
        let division = first.header().map(|header| header.division);
        for number in 0..division.map_or(0, |division| division.shards) {
            files.entry(JournalNumber(number)).or_default();
        }
        let mut journals: Vec<Journal> = Vec::new();
        let mut image = Image::default();
        for (number, mut files) in files {
            let is_left_over = division.is_some_and(|division| number.0 >= division.shards);
            let found = match division {
                _ if is_left_over => {
                    files.clear();
                    Found::default()
                }
                Some(division) => Found::that_counts(&directory, number, division)?,
                None => Found::in_place(&directory, number)?,
            };
            let identity = identity(directory.installation(), number);
            let start = found.header().map(|header| header.start);
            let mut surveys = Vec::with_capacity(files.len());
            for file in files {
                directory.read(file, &mut image)?;
                surveys.push(Survey::of(file.slot, &identity, start.as_ref(), &image));
            }
            journals.push(Journal {
                number,
                decision: decide(&identity, start.as_ref(), &surveys),
                surveys,
                checkpoint: found,
                is_left_over,
            });
        }
        // Others get their places behind that of journal 0.
        let is_headless = journals.iter().any(|it| it.checkpoint.is_there());
        if let [first, ..] = &mut journals[..]
            && !first.checkpoint.is_there()
            && is_headless
        {
            first.checkpoint = Found::missing();
        }
        Ok(Self {
            directory,
            journals,
            strangers: listed.strangers,
        })
    }

    /// Whose data it is.
    pub(crate) fn installation(&self) -> Installation {
        self.directory.installation()
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Hands over each batch that can be read of a journal, in their order; of a damaged
    /// one, those at the front of each file.
    pub(crate) fn batches<E: From<DirectoryError> + From<Damage>>(
        &self,
        journal: &Journal,
        mut each: impl FnMut(Slot, &Batch<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut image = Image::default();
        for step in journal.steps() {
            let file = JournalFile {
                journal: journal.number,
                slot: step.slot,
            };
            self.directory.read(file, &mut image)?;
            for batch in step.batches(&image) {
                each(step.slot, &batch?)?;
            }
        }
        Ok(())
    }

    /// Hands over each batch of a journal's checkpoint, in their order.
    pub(crate) fn checkpoint_batches(
        &self,
        journal: &Journal,
        mut each: impl FnMut(&Batch<'_>) -> Result<(), CommandError>,
    ) -> Result<(), CheckpointEnd> {
        match (&journal.checkpoint.file, journal.checkpoint.said) {
            (_, Some(Err(damage))) => Err(CheckpointEnd::Damage(damage)),
            (Some(file), _) => file.batches(|batch| Ok(each(batch)?)),
            (None, _) => Ok(()),
        }
    }

    /// The pages that a journal's checkpoint names.
    pub(crate) fn pages(&self, journal: &Journal) -> PageImages<'_> {
        PageImages::new(&self.directory, journal.number)
    }

    /// Reads a journal and counts what it says.
    pub(crate) fn tally(&self, journal: &Journal) -> Result<Tally, ExamineError> {
        let mut tally = Tally::default();
        self.batches(journal, |slot, batch| {
            tally.batches += 1;
            tally.bytes += batch.bytes().len() as u64;
            for entry in entries(slot, batch) {
                tally.count(slot, &entry?);
            }
            Ok::<_, ExamineError>(())
        })?;
        Ok(tally)
    }
}

impl Found {
    fn in_place(directory: &DataDirectory, journal: JournalNumber) -> Result<Self, DirectoryError> {
        let file = CheckpointFile::in_place(directory, journal)?;
        file.map_or(Ok(Self::default()), Self::of)
    }

    fn that_counts(
        directory: &DataDirectory,
        journal: JournalNumber,
        division: Division,
    ) -> Result<Self, DirectoryError> {
        match CheckpointFile::that_counts(directory, journal, division) {
            Ok(file) => Self::of(file),
            Err(error) => Ok(Self::damaged(checkpoint_damage(error)?)),
        }
    }

    fn of(file: CheckpointFile) -> Result<Self, DirectoryError> {
        match file.header() {
            Ok(header) => Ok(Self {
                file: Some(file),
                said: Some(Ok(header)),
            }),
            Err(error) => Ok(Self::damaged(checkpoint_damage(error)?)),
        }
    }

    fn missing() -> Self {
        Self::damaged(checkpoint::Damage {
            position: 0,
            what: checkpoint::Wrong::Missing,
        })
    }

    fn damaged(damage: checkpoint::Damage) -> Self {
        Self {
            file: None,
            said: Some(Err(damage)),
        }
    }

    /// Whether it counts and has still to take its place.
    pub(crate) fn is_aside(&self) -> bool {
        self.file.as_ref().is_some_and(CheckpointFile::is_aside)
    }

    fn is_there(&self) -> bool {
        self.said.is_some()
    }

    /// What it says of itself, if it can be read.
    pub(crate) fn header(&self) -> Option<Header> {
        self.said?.ok()
    }
}

/// Why the messages of a page were not told to their end.
pub(crate) enum PageEnd {
    Damage(page::Damage),
    Failed(Box<CommandError>),
}

impl From<RecoveryError> for PageEnd {
    fn from(error: RecoveryError) -> Self {
        match error {
            RecoveryError::Page { damage, .. } => Self::Damage(damage),
            RecoveryError::Directory(error) => Self::Failed(Box::new(error.into())),
            RecoveryError::Damaged { .. }
            | RecoveryError::Checkpoint { .. }
            | RecoveryError::Salt { .. } => {
                unreachable!("a page is of no journal's file and of no checkpoint's")
            }
        }
    }
}

/// Why a checkpoint was not read to its end.
pub(crate) enum CheckpointEnd {
    Damage(checkpoint::Damage),
    Failed(Box<CommandError>),
}

impl From<CommandError> for CheckpointEnd {
    fn from(error: CommandError) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl From<RecoveryError> for CheckpointEnd {
    fn from(error: RecoveryError) -> Self {
        match checkpoint_damage(error) {
            Ok(damage) => Self::Damage(damage),
            Err(error) => CommandError::from(error).into(),
        }
    }
}

/// What is wrong with a checkpoint that could be read.
fn checkpoint_damage(error: RecoveryError) -> Result<checkpoint::Damage, DirectoryError> {
    match error {
        RecoveryError::Checkpoint { damage, .. } => Ok(damage),
        RecoveryError::Directory(error) => Err(error),
        RecoveryError::Damaged { .. } | RecoveryError::Page { .. } | RecoveryError::Salt { .. } => {
            unreachable!("a checkpoint has no files of a journal, no pages and no salt to draw")
        }
    }
}

/// Why a journal cannot be read to its end.
pub(crate) enum ExamineError {
    Directory(DirectoryError),
    Damage(Damage),
}

impl From<DirectoryError> for ExamineError {
    fn from(error: DirectoryError) -> Self {
        Self::Directory(error)
    }
}

impl From<Damage> for ExamineError {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl Journal {
    /// What is read: as a broker would, or whatever each file begins with.
    fn steps(&self) -> Vec<Step> {
        if let Ok(plan) = &self.decision {
            return plan.steps.clone();
        }
        let mut steps: Vec<Step> = (self.surveys.iter())
            .filter_map(|survey| {
                let (header, chain) = (survey.header.ok()?, survey.chain?);
                Some(Step {
                    slot: survey.slot,
                    sequence: header.sequence,
                    origin: header.origin,
                    position: survey.start,
                    first: chain.first,
                    last: chain.last,
                })
            })
            .collect();
        steps.sort_by_key(|step| (step.sequence, step.slot));
        steps
    }
}

impl Tally {
    fn count(&mut self, slot: Slot, entry: &Entry<'_>) {
        *self.entries.entry(entry.kind()).or_default() += 1;
        if let Entry::Message(message) = entry {
            let length = message.header.length.get() as usize;
            let covered = message.bytes.get(..length).unwrap_or_default();
            if verify(message.header, checksum::message(covered)).is_err() {
                self.spoilt.push(Spoilt {
                    slot,
                    destination: message.header.handle.get(),
                    partition: message.header.partition.get(),
                    offset: message.header.offset.get(),
                });
            }
        }
    }
}

/// The entries of a batch; one that makes no sense is damage.
pub(crate) fn entries<'a>(
    slot: Slot,
    batch: &Batch<'a>,
) -> impl Iterator<Item = Result<Entry<'a>, Damage>> {
    let header = batch.header;
    let mut entries = batch.entries();
    let size = batch.bytes().len();
    std::iter::from_fn(move || {
        let entry = entries.next()?;
        let at = u64::from(header.length) - size as u64 + (size - entries.left()) as u64;
        Some(entry.map_err(|malformed| Damage {
            slot,
            position: header.position + at,
            what: Wrong::Entry {
                number: header.label.number,
                malformed,
            },
        }))
    })
}

fn identity(installation: Installation, journal: JournalNumber) -> Identity {
    Identity {
        installation,
        journal,
    }
}
