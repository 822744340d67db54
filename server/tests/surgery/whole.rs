//! The journal that a broker left, byte by byte, and what may become of it.
//!
//! What was written is known from the whole files, so what has to be made of others is
//! said here in ten lines, by the rules of `docs/storage.md` and not by the code that
//! recovers:
//!
//! ```text
//!   missing   the first batch that is not there, every byte of it and of its file's header
//!   known     a header of a batch that is there, or of a file of a later run, covers it
//!
//!   nothing missing        all is kept
//!   missing, and known     damage
//!   missing, and unknown   all before it is kept
//! ```

#![allow(unreachable_pub)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use courser_core::frame::checksum;
use courser_core::id::{BatchNumber, Installation, JournalNumber, Run};
use courser_core::journal::entry::Entry;
use courser_core::journal::recover::{Damage, Plan, decide};
use courser_core::journal::survey::{Slot, Survey};
use courser_core::journal::{BLOCK_SIZE, Identity, batch, file};
use courser_transport::disk::{self, DataDirectory, JournalFile};

use crate::accounts::Record;
use crate::home::Home;
use rustix::process::Signal;

pub const QUEUE: &str = "queue:/kept/work";
pub const JOURNAL: JournalNumber = JournalNumber(0);
/// Longer than any send takes.
const PATIENCE: &str = "120s";

/// A file without the zeros at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub bytes: Vec<u8>,
    /// With them.
    pub size: u64,
}

/// The files of the journal.
pub type Files = BTreeMap<Slot, Image>;

/// A message: its offset, and what its body sums up to.
pub type Message = (u64, u32);

/// A batch as it was written.
#[derive(Clone, Debug)]
pub struct Written {
    pub slot: Slot,
    pub position: usize,
    pub length: usize,
    pub number: BatchNumber,
    pub run: Run,
    durable_before: BatchNumber,
    messages: Vec<Message>,
}

/// What becomes of some files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The last batch that is kept, and every message that is.
    Kept(BatchNumber, Vec<Message>),
    /// Something is missing that was known.
    Damaged(Damage),
}

/// See the module.
pub struct Whole {
    installation: Installation,
    /// The file that names it.
    pub name: Vec<u8>,
    pub files: Files,
    pub batches: Vec<Written>,
}

impl Whole {
    /// Three runs of a broker: one that was killed, one that was stopped, and one that
    /// was killed again; a batch or two for each of those who sent, one behind the other.
    pub fn left_by_brokers() -> &'static Self {
        static WHOLE: OnceLock<Whole> = OnceLock::new();
        WHOLE.get_or_init(Self::write)
    }

    fn write() -> Self {
        let mut home = Home::new();
        let mut told = Vec::new();
        let mut send = |home: &mut Home, body: u64, count: u64| {
            home.body = body;
            told.extend(home.sender(QUEUE, count, 1, PATIENCE).complete());
        };
        let broker = home.start(1, "auto");
        for count in 1..=4 {
            send(&mut home, 64, count);
        }
        broker.kill();
        let broker = home.start(1, "auto");
        send(&mut home, 64, 1);
        send(&mut home, 20_000, 2);
        send(&mut home, 64, 1);
        broker.signal(Signal::TERM);
        assert_eq!(broker.end().status, Some(0));
        let broker = home.start(1, "auto");
        for count in [2, 1, 3] {
            send(&mut home, 100, count);
        }
        broker.kill();
        Self::read(&home, &told)
    }

    fn read(home: &Home, told: &[Record]) -> Self {
        let directory = DataDirectory::inspect(home.data.as_ref()).unwrap();
        let mut files = Files::new();
        let mut image = disk::Image::default();
        for (file, size) in directory.list().unwrap().files {
            directory.read(file, &mut image).unwrap();
            let mut bytes = image.to_vec();
            let used = bytes.iter().rposition(|byte| *byte != 0);
            let used = used.map_or(0, |last| last + 1);
            // And a block behind it, into which something may be put.
            bytes.truncate((used.next_multiple_of(BLOCK_SIZE) + BLOCK_SIZE).min(bytes.len()));
            files.insert(file.slot, Image { bytes, size });
        }
        let mut whole = Self {
            installation: directory.installation(),
            name: fs::read(directory.path().join("installation")).unwrap(),
            files,
            batches: Vec::new(),
        };
        let plan = whole.decide(&whole.files).unwrap();
        whole.batches = whole.read_batches(&plan);
        let stored: Vec<(u64, String)> = (whole.batches.iter())
            .flat_map(|batch| &batch.messages)
            .map(|(offset, sum)| (*offset, format!("{sum:08x}")))
            .collect();
        let told = told
            .iter()
            .map(|record| (record.offset, record.checksum.clone()));
        assert_eq!(stored, told.collect::<Vec<_>>(), "what was acknowledged");
        whole
    }

    fn read_batches(&self, plan: &Plan) -> Vec<Written> {
        let mut batches = Vec::new();
        for step in &plan.steps {
            for batch in step.batches(&self.files[&step.slot].bytes) {
                let batch = batch.unwrap();
                let label = batch.header.label;
                let messages = batch.entries().filter_map(|entry| match entry.unwrap() {
                    Entry::Message(message) => {
                        let offset = message.header.offset.get();
                        Some((offset, checksum::body(message.body)))
                    }
                    _ => None,
                });
                batches.push(Written {
                    slot: step.slot,
                    position: usize::try_from(batch.header.position).unwrap(),
                    length: batch.header.length as usize,
                    number: label.number,
                    run: step.origin.run,
                    durable_before: label.durable_before,
                    messages: messages.collect(),
                });
            }
        }
        batches
    }

    /// What the code that a broker and `courser check` share decides.
    fn decide(&self, files: &Files) -> Result<Plan, Damage> {
        let identity = Identity {
            installation: self.installation,
            journal: JOURNAL,
        };
        let surveys: Vec<Survey> = files
            .iter()
            .map(|(slot, image)| Survey::of(*slot, &identity, None, &image.bytes))
            .collect();
        decide(&identity, None, &surveys)
    }

    /// What is made of these files, and every message that is read there.
    pub fn verdict(&self, files: &Files) -> Verdict {
        match self.decide(files) {
            Err(damage) => Verdict::Damaged(damage),
            Ok(plan) => {
                let mut messages = Vec::new();
                for step in &plan.steps {
                    for batch in step.batches(&files[&step.slot].bytes) {
                        for entry in batch.unwrap().entries() {
                            if let Entry::Message(message) = entry.unwrap() {
                                let offset = message.header.offset.get();
                                messages.push((offset, checksum::body(message.body)));
                            }
                        }
                    }
                }
                Verdict::Kept(plan.kept, messages)
            }
        }
    }

    /// The first batch that is missing, and whether something that is there knew it.
    pub fn missing(&self, files: &Files) -> Option<(&Written, bool)> {
        let is_there = |batch: &Written, length: usize| {
            let place = batch.position..batch.position + length;
            self.is_as_it_was(files, batch.slot, place)
        };
        let is_headed = |slot: Slot| self.is_headed(files, slot);
        let missing = self
            .batches
            .iter()
            .find(|batch| !is_headed(batch.slot) || !is_there(batch, batch.length))?;
        let by_batch = self.batches.iter().any(|batch| {
            batch.run >= missing.run
                && batch.durable_before >= missing.number
                && is_there(batch, batch::HEADER_SIZE)
        });
        let by_file = self.files.iter().any(|(slot, image)| {
            let header = file::Header::read(&image.bytes).unwrap();
            header.origin.run > missing.run
                && header.recovered >= missing.number
                && is_headed(*slot)
        });
        Some((missing, by_batch || by_file))
    }

    /// Whether a file still says what it is.
    pub fn is_headed(&self, files: &Files, slot: Slot) -> bool {
        self.is_as_it_was(files, slot, 0..BLOCK_SIZE)
    }

    fn is_as_it_was(&self, files: &Files, slot: Slot, place: Range<usize>) -> bool {
        let image = files.get(&slot).map_or(&[][..], |image| &image.bytes);
        image.get(place.clone()) == self.files[&slot].bytes.get(place)
    }

    /// The messages of all batches up to this one.
    pub fn messages_to(&self, last: BatchNumber) -> Vec<Message> {
        let kept = self.batches.iter().filter(|batch| batch.number <= last);
        kept.flat_map(|batch| batch.messages.clone()).collect()
    }

    /// Makes a data directory of these files.
    pub fn lay_out(&self, files: &Files, path: &Path) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("installation"), &self.name).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        let journal = path.join("journal-00");
        fs::create_dir(&journal).unwrap();
        for (slot, image) in files {
            let file = JournalFile {
                journal: JOURNAL,
                slot: *slot,
            };
            let path = path.join(file.path());
            fs::write(&path, &image.bytes).unwrap();
            let opened = fs::OpenOptions::new().write(true).open(&path).unwrap();
            opened.set_len(image.size).unwrap();
        }
    }
}

impl Image {
    /// Cut off there.
    pub fn truncated(&self, size: usize) -> Self {
        Self {
            bytes: self.bytes[..size].to_vec(),
            size: size as u64,
        }
    }

    /// With `change` made to the bytes.
    pub fn changed(&self, change: impl FnOnce(&mut [u8])) -> Self {
        let mut image = self.clone();
        change(&mut image.bytes);
        image
    }

    /// How many blocks are not all behind the end.
    pub fn blocks(&self) -> usize {
        self.bytes.len() / BLOCK_SIZE
    }
}
