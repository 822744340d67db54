//! Recovery: the files of a journal, as a writer left them or not.
//!
//! A case is a list of acts:
//!
//! | act | then | |
//! |---|---|---|
//! | 0, 1 | size u16, waits u8 | a batch with an entry of that size, written when so many before it were not known durable, modulo 3 |
//! | 2 | | the next batch begins another file |
//! | 3 | back u8 | the run is over; the next one keeps all batches but so many |
//! | 4 | file, place u16, change u8 | a byte is changed |
//! | 5 | file, block, bytes | bytes stand at the front of a block |
//! | 6 | file, block, file, block | a block is copied to another place |
//! | 7 | file, block | a block is zeros |
//! | 8 | file, blocks | a file is cut to so many blocks |
//! | 9 | file | a file is there a second time |
//! | 10 | batch u8 | a checkpoint names what is behind that batch, modulo those there are |
//!
//! What has to hold: nothing panics; two looks see the same; what is allocated is small
//! beside the files; what is planned can be read, without a gap, and every batch of it
//! is one that was written; and nothing was cut that anything that is still there knew
//! to be durable, checked here once more by other code.

use courser_core::id::{BatchNumber, FileSequence, Installation, JournalNumber, Run};
use courser_core::journal::batch::{self, Label, Seal};
use courser_core::journal::entry::Entry;
use courser_core::journal::recover::{Plan, decide};
use courser_core::journal::survey::{Slot, Survey};
use courser_core::journal::{BLOCK_SIZE, Identity, Origin, Start, file};
use courser_core::time::Wall;

use crate::heap;
use crate::script::Script;

const IDENTITY: Identity = Identity {
    installation: Installation(7),
    journal: JournalNumber(1),
};
/// Few, so that a case is quick and batches meet the ends of files.
const BLOCKS: usize = 6;
const FILES_MAX: usize = 12;
const BATCHES_MAX: usize = 48;

/// Runs a case.
///
/// # Panics
///
/// If something does not hold.
pub fn run(case: &[u8]) {
    let mut script = Script::new(case);
    let mut journal = Journal::new();
    while let Some(step) = script.step() {
        journal.act(step, &mut script);
    }
    journal.check();
}

/// Where a batch was written, and all of it.
struct Written {
    number: u64,
    sequence: u64,
    end: u64,
    bytes: Vec<u8>,
}

struct Journal {
    files: Vec<Vec<u8>>,
    written: Vec<Written>,
    origin: Origin,
    recovered: u64,
    number: u64,
    sequence: u64,
    /// The file that is written, and where.
    position: usize,
    file: usize,
    start: Option<Start>,
}

impl Journal {
    fn new() -> Self {
        Self {
            files: Vec::new(),
            written: Vec::new(),
            origin: Origin {
                identity: IDENTITY,
                run: Run(1),
                salt: 0x5a17,
            },
            recovered: 0,
            number: 0,
            sequence: 0,
            position: BLOCKS * BLOCK_SIZE,
            file: 0,
            start: None,
        }
    }

    fn act(&mut self, step: u8, script: &mut Script<'_>) {
        match step % 11 {
            0 | 1 => self.append(usize::from(script.word() % 9000), script.byte() % 3),
            2 => self.position = BLOCKS * BLOCK_SIZE,
            3 => {
                let least = self.recovered;
                self.number = self.number.saturating_sub(u64::from(script.byte() % 3));
                self.number = self.number.max(least);
                self.recovered = self.number;
                self.origin.run.0 += 1;
                self.origin.salt = self.origin.salt.rotate_left(7) ^ 0x51;
                self.position = BLOCKS * BLOCK_SIZE;
            }
            4 => {
                let (file, place, change) = (script.byte(), script.word(), script.byte());
                if let Some(image) = self.image(file)
                    && let Some(byte) = image.get_mut(usize::from(place))
                {
                    *byte ^= change;
                }
            }
            5 => {
                let (file, block, bytes) = (script.byte(), script.byte(), script.bytes());
                self.put(file, block, bytes);
            }
            6 => {
                let [from, at, to, place] = core::array::from_fn(|_| script.byte());
                let at = usize::from(at) % BLOCKS * BLOCK_SIZE;
                let bytes = self
                    .image(from)
                    .and_then(|image| image.get(at..at + BLOCK_SIZE))
                    .map(<[u8]>::to_vec);
                self.put(to, place, &bytes.unwrap_or_default());
            }
            7 => {
                let (file, block) = (script.byte(), script.byte());
                self.put(file, block, &[0; BLOCK_SIZE]);
            }
            8 => {
                let (file, blocks) = (script.byte(), script.byte());
                if let Some(image) = self.image(file) {
                    image.truncate(usize::from(blocks) % BLOCKS * BLOCK_SIZE);
                }
            }
            9 => {
                let file = script.byte();
                if self.files.len() < FILES_MAX
                    && let Some(copy) = self.image(file).cloned()
                {
                    self.files.push(copy);
                }
            }
            _ => {
                let index = usize::from(script.byte()).checked_rem(self.written.len());
                self.start = index
                    .and_then(|index| self.written.get(index))
                    .map(|it| Start {
                        sequence: FileSequence(it.sequence),
                        position: it.end,
                        number: BatchNumber(it.number + 1),
                    });
            }
        }
    }

    fn image(&mut self, file: u8) -> Option<&mut Vec<u8>> {
        let index = usize::from(file).checked_rem(self.files.len())?;
        self.files.get_mut(index)
    }

    fn put(&mut self, file: u8, block: u8, bytes: &[u8]) {
        let at = usize::from(block) % BLOCKS * BLOCK_SIZE;
        if let Some(place) = self.image(file).and_then(|image| image.get_mut(at..)) {
            let size = bytes.len().min(place.len()).min(BLOCK_SIZE);
            place[..size].copy_from_slice(&bytes[..size]);
        }
    }

    fn append(&mut self, size: usize, waits: u8) {
        let bits = vec![0x11; size];
        let entry = Entry::Cursor {
            place: Default::default(),
            subscription: Default::default(),
            cursor: Default::default(),
            bits: &bits,
        };
        let mut bytes = vec![0; entry.size()];
        entry.write(&mut bytes);
        let size = batch::size(batch::HEADER_SIZE + bytes.len());
        if self.written.len() == BATCHES_MAX {
            return;
        }
        if self.position + size > BLOCKS * BLOCK_SIZE && !self.begin() {
            return;
        }
        self.number += 1;
        let durable = (self.number - 1).saturating_sub(u64::from(waits));
        let label = Label {
            number: BatchNumber(self.number),
            durable_before: BatchNumber(durable.max(self.recovered)),
            written: Wall(self.number),
        };
        let mut seal = Seal::new();
        seal.extend(&bytes);
        seal.count(1);
        let header = seal.finish(&self.origin, self.position as u64, label);
        let whole = [&header[..], &bytes].concat();
        // A file may have been cut, or be used by somebody else's copy.
        let end = self.position + size;
        if let Some(image) = self.files.get_mut(self.file) {
            image.resize(image.len().max(end), 0);
            image[self.position..self.position + whole.len()].copy_from_slice(&whole);
        }
        self.position = end;
        self.written.push(Written {
            number: self.number,
            sequence: self.sequence,
            end: end as u64,
            bytes,
        });
    }

    /// Begins a file; `false` if there are enough.
    fn begin(&mut self) -> bool {
        if self.files.len() >= FILES_MAX {
            return false;
        }
        self.sequence += 1;
        let header = file::Header {
            origin: self.origin,
            sequence: FileSequence(self.sequence),
            recovered: BatchNumber(self.recovered),
            size: (BLOCKS * BLOCK_SIZE) as u64,
        };
        let mut image = vec![0; BLOCKS * BLOCK_SIZE];
        image[..BLOCK_SIZE].copy_from_slice(&header.block());
        self.files.push(image);
        self.file = self.files.len() - 1;
        self.position = BLOCK_SIZE;
        true
    }

    fn surveys(&self) -> Vec<Survey> {
        let files = self.files.iter().enumerate();
        files
            .map(|(slot, image)| {
                let slot = Slot(u32::try_from(slot).expect("few files"));
                Survey::of(slot, &IDENTITY, self.start.as_ref(), image)
            })
            .collect()
    }

    fn check(&self) {
        let mut result = None;
        let peak = heap::peak(|| {
            result = Some(decide(&IDENTITY, self.start.as_ref(), &self.surveys()));
        });
        assert!(
            peak <= 4096 * (1 + self.files.len() as u64),
            "{peak} bytes allocated for {} files",
            self.files.len()
        );
        let again = decide(&IDENTITY, self.start.as_ref(), &self.surveys());
        assert_eq!(result, Some(again), "two looks");
        match result {
            Some(Ok(plan)) => {
                self.replay(&plan);
                self.nothing_known_is_cut(&plan);
            }
            Some(Err(damage)) => {
                assert!((damage.slot.0 as usize) <= self.files.len());
                assert!(!damage.to_string().is_empty() && !damage.advice().is_empty());
            }
            None => panic!("a decision was made"),
        }
    }

    fn replay(&self, plan: &Plan) {
        let mut next = self.start.map_or(1, |start| start.number.0);
        for step in &plan.steps {
            assert!(!plan.spare.contains(&step.slot), "{}", step.slot);
            let image = &self.files[step.slot.0 as usize];
            for batch in step.batches(image) {
                let batch = batch.expect("it was there a moment ago");
                assert_eq!(batch.header.label.number.0, next, "without a gap");
                assert!(
                    self.written
                        .iter()
                        .any(|it| it.number == next && it.bytes == batch.bytes()),
                    "batch {next} was never written like this"
                );
                assert_eq!(batch.entries().filter(Result::is_ok).count(), 1);
                next += 1;
            }
        }
        assert_eq!(next, plan.kept.0 + 1, "as many as were promised");
    }

    /// Reads every block of every file that has a header, and believes whatever is
    /// whole.
    fn nothing_known_is_cut(&self, plan: &Plan) {
        let first = self.start.map_or(0, |start| start.sequence.0);
        let headers = self.files.iter().filter_map(|image| {
            let header = file::Header::read(image).ok()?;
            (header.sequence.0 >= first).then_some((header, image))
        });
        let files: Vec<_> = headers.collect();
        let last = files.iter().map(|(header, _)| header.origin.run).max();
        for (header, image) in &files {
            let begins = self.start.map_or(0, |start| start.number.0 - 1);
            assert!(
                header.recovered.0 <= plan.kept.0.max(begins),
                "run {} kept {}, and {} are left",
                header.origin.run,
                header.recovered,
                plan.kept
            );
            if Some(header.origin.run) != last {
                continue;
            }
            let named = self.start.filter(|it| it.sequence == header.sequence);
            let from = named.map_or(BLOCK_SIZE as u64, |start| start.position);
            for (block, bytes) in image.chunks(BLOCK_SIZE).enumerate() {
                let at = (block * BLOCK_SIZE) as u64;
                if at < from {
                    continue;
                }
                let found = batch::Header::read(&IDENTITY, at, bytes);
                let Some(found) = found.filter(|found| found.origin == header.origin) else {
                    continue;
                };
                assert!(
                    found.label.durable_before <= plan.kept,
                    "batch {} knew {} durable, and {} are left",
                    found.label.number,
                    found.label.durable_before,
                    plan.kept
                );
            }
        }
    }
}
