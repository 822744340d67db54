//! Surgery on what a broker left: its journal is cut off, flipped, zeroed, swapped,
//! doubled, aged and taken away, byte by byte where it matters.
//!
//! Each time there are two right answers and no third: what is kept is exactly what can
//! be read from the front, or the directory is refused with the file, the place and what
//! to do, if anything that is left knew what is missing. Every cut is judged by the code
//! that recovers; some of each kind are laid out as a directory for `courser check` and
//! for a broker, which have to say the same, and to change nothing where they refuse.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;
#[path = "surgery/whole.rs"]
mod whole;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use choices::Choices;
use courser::embedded::{Broker, BrokerConfig};
use courser_core::frame::checksum;
use courser_core::journal::recover::{Damage, Wrong};
use courser_core::journal::survey::Slot;
use courser_core::journal::{BLOCK_SIZE, batch, file};
use courser_transport::disk::{DataDirectory, Recovery};
use serde_json::Value;
use support::{DEADLINE, Directory, run};
use whole::{Files, Image, QUEUE, Verdict, Whole, Written};

/// What came of each kind of cut.
#[derive(Debug, Default)]
struct Kind {
    cuts: usize,
    damaged: usize,
    cut_short: usize,
    laid_out: usize,
}

/// The surgeon: judges every cut, and has a few of each kind judged by whole programs.
struct Theatre {
    whole: &'static Whole,
    kinds: BTreeMap<&'static str, Kind>,
    home: Directory,
    /// Of each kind and each verdict so many are laid out, far from each other.
    samples: usize,
}

impl Theatre {
    fn new(whole: &'static Whole) -> Self {
        Self {
            whole,
            kinds: BTreeMap::new(),
            home: Directory::new(),
            samples: 0,
        }
    }

    /// Judges `files`, one of the cuts of a kind. Every so manieth is laid out.
    fn judge(&mut self, kind: &'static str, every: usize, files: &Files) {
        let verdict = self.whole.verdict(files);
        self.assert_right(kind, files, &verdict);
        let entry = self.kinds.entry(kind).or_default();
        let is_sample = entry.cuts.is_multiple_of(every);
        entry.cuts += 1;
        match &verdict {
            Verdict::Damaged(_) => entry.damaged += 1,
            Verdict::Kept(last, _) => {
                entry.cut_short += usize::from(*last != self.whole.batches.last().unwrap().number);
            }
        }
        if is_sample {
            entry.laid_out += 1;
            self.samples += 1;
            let path = PathBuf::from(self.home.file(&format!("sample-{}", self.samples)));
            self.whole.lay_out(files, &path);
            assert_agreed(&path, &verdict);
            fs::remove_dir_all(&path).unwrap();
        }
    }

    fn assert_right(&self, kind: &str, files: &Files, verdict: &Verdict) {
        let last = self.whole.batches.last().unwrap().number;
        match (self.whole.missing(files), verdict) {
            (None, Verdict::Kept(kept, messages)) => {
                assert_eq!(*kept, last, "{kind}");
                assert_eq!(*messages, self.whole.messages_to(last), "{kind}");
            }
            (Some((missing, false)), Verdict::Kept(kept, messages)) => {
                assert_eq!(kept.next(), missing.number, "{kind}");
                assert_eq!(*messages, self.whole.messages_to(*kept), "{kind}");
            }
            (Some((missing, true)), Verdict::Damaged(damage)) => {
                self.assert_places(kind, files, missing, damage);
            }
            (missing, verdict) => panic!("{kind}: {verdict:?}, and missing is {missing:?}"),
        }
    }

    /// That damage is said to be where the batch is missing, or where a file that has lost
    /// its header held what had been durable.
    fn assert_places(&self, kind: &str, files: &Files, missing: &Written, damage: &Damage) {
        assert!(damage.advice().contains("restore"), "{kind}: {damage}");
        match damage.what {
            Wrong::BatchMissing { number, .. } | Wrong::BatchLost { number, .. } => {
                assert_eq!(number, missing.number, "{kind}: {damage}");
                let headed = self.whole.is_headed(files, missing.slot);
                let own = (missing.slot, missing.position as u64);
                assert!(!headed || place_of(damage) == own, "{kind}: {damage}");
            }
            Wrong::HeaderLost { .. } => {
                assert!(
                    !self.whole.is_headed(files, damage.slot),
                    "{kind}: {damage}"
                );
                assert!(damage.slot >= missing.slot, "{kind}: {damage}");
            }
            _ => panic!("{kind}: {damage}"),
        }
    }

    /// One file in another state.
    fn with(&self, slot: Slot, image: Image) -> Files {
        let mut files = self.whole.files.clone();
        files.insert(slot, image);
        files
    }

    fn report(&self) {
        for (kind, came) in &self.kinds {
            println!("{kind}: {came:?}");
        }
    }
}

fn place_of(damage: &Damage) -> (Slot, u64) {
    (damage.slot, damage.position)
}

/// Everything in a directory but the file that says who had it last.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else if !path.ends_with("lock") {
            let bytes = fs::read(&path).unwrap();
            files.insert(path, bytes);
        }
    }
    files
}

fn config(path: &Path) -> BrokerConfig {
    BrokerConfig {
        memory: 66 << 20,
        links_in_process: 1,
        data_directory: Some(path.to_owned()),
        ..BrokerConfig::embedded()
    }
}

/// That `courser check`, the recovery of a broker and a broker come to this verdict.
fn assert_agreed(path: &Path, verdict: &Verdict) {
    let before = snapshot(path);
    let checked = run(&["check", path.to_str().unwrap(), "--json"]);
    let found: Value = serde_json::from_str(&checked.stdout).unwrap();
    let journal = &found["journals"][0];
    match verdict {
        Verdict::Damaged(damage) => {
            assert_eq!(checked.status, Some(5), "{checked:?}");
            assert_eq!(journal["damage"]["what"], damage.to_string());
            assert_eq!(journal["damage"]["advice"], damage.advice());
            let refused = Broker::start(config(path)).map(drop).unwrap_err();
            let said = refused.to_string();
            assert!(said.contains(&damage.to_string()), "{said}");
            assert!(said.contains(damage.advice()), "{said}");
            assert!(snapshot(path) == before, "a refusal changes nothing");
        }
        Verdict::Kept(last, messages) => {
            assert_eq!(checked.status, Some(0), "{checked:?}");
            if journal["kept"] != Value::Null {
                assert_eq!(journal["kept"], last.0);
            }
            let directory = DataDirectory::open(path).unwrap();
            let recovery = Recovery::read(&directory).unwrap();
            assert_eq!(recovery.next(whole::JOURNAL).recovered, *last);
            drop((recovery, directory));
            assert!(snapshot(path) == before, "a look changes nothing");

            let broker = Broker::start(config(path)).unwrap();
            let client = broker.connect().unwrap();
            let mut consumer = client.consumer(QUEUE).create().unwrap();
            for message in messages {
                let received = consumer.receive(DEADLINE).unwrap().unwrap();
                let found = (
                    received.position().offset.0,
                    checksum::body(received.body()),
                );
                assert_eq!(found, *message);
            }
            assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
        }
    }
}

/// Places in a file that matter: every byte of what a batch says, some of the zeros behind.
fn bytes_of(batch: &Written) -> impl Iterator<Item = usize> + use<> {
    let (begin, end) = (batch.position, batch.position + batch.length);
    let padded = end.next_multiple_of(BLOCK_SIZE);
    (begin..=end).chain((end..padded).step_by(97))
}

fn newest(whole: &Whole) -> (Slot, &Image) {
    let last = whole.batches.last().unwrap().slot;
    (last, &whole.files[&last])
}

#[test]
fn wherever_the_newest_file_is_cut_off_what_is_in_front_is_kept_or_it_is_refused() {
    let whole = Whole::left_by_brokers();
    let mut theatre = Theatre::new(whole);
    let (slot, image) = newest(whole);
    let last: Vec<&Written> = whole.batches.iter().rev().take(4).collect();
    for batch in last.iter().filter(|batch| batch.slot == slot) {
        for at in bytes_of(batch) {
            theatre.judge(
                "cut off in the last batches",
                500,
                &theatre.with(slot, image.truncated(at)),
            );
        }
    }
    for (slot, image) in &whole.files {
        for block in 0..=image.blocks() {
            let cut = image.truncated(block * BLOCK_SIZE);
            theatre.judge("cut off at a block", 9, &theatre.with(*slot, cut));
        }
    }
    theatre.report();
    assert!(theatre.kinds["cut off in the last batches"].cut_short > 500);
    assert!(theatre.kinds["cut off at a block"].damaged > 0);
}

#[test]
fn no_bit_that_says_something_can_be_otherwise_unseen() {
    let whole = Whole::left_by_brokers();
    let mut theatre = Theatre::new(whole);
    let flip = |image: &Image, bit: usize| image.changed(|it| it[bit / 8] ^= 1 << (bit % 8));
    for batch in &whole.batches {
        let image = &whole.files[&batch.slot];
        let begin = batch.position * 8;
        for bit in begin..begin + batch::HEADER_SIZE * 8 {
            theatre.judge(
                "a bit of a batch's header",
                1500,
                &theatre.with(batch.slot, flip(image, bit)),
            );
        }
        for bit in (begin..begin + batch.length * 8).step_by(61) {
            theatre.judge(
                "a bit of a batch",
                300,
                &theatre.with(batch.slot, flip(image, bit)),
            );
        }
    }
    for (slot, image) in &whole.files {
        for bit in (0..80 * 8).chain((80 * 8..BLOCK_SIZE * 8).step_by(811)) {
            theatre.judge(
                "a bit of a file's header",
                200,
                &theatre.with(*slot, flip(image, bit)),
            );
        }
    }
    theatre.report();
    for came in theatre.kinds.values() {
        assert!(came.damaged > 0 && came.damaged + came.cut_short == came.cuts);
    }
}

#[test]
fn blocks_that_are_elsewhere_or_nowhere_are_missed_where_they_were() {
    let whole = Whole::left_by_brokers();
    let mut theatre = Theatre::new(whole);
    let block = |at: usize| at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE;
    for (slot, image) in &whole.files {
        for one in 0..image.blocks() {
            let zeroed = image.changed(|it| it[block(one)].fill(0));
            theatre.judge("a block of zeros", 8, &theatre.with(*slot, zeroed));
            let garbled = image.changed(|it| it[block(one)].fill(0xa5));
            theatre.judge("a block of garbage", 8, &theatre.with(*slot, garbled));
            for other in (0..image.blocks()).filter(|other| *other != one) {
                let doubled = image.changed(|it| it.copy_within(block(one), other * BLOCK_SIZE));
                theatre.judge("a block twice", 80, &theatre.with(*slot, doubled));
                let swapped = image.changed(|it| {
                    let kept = it[block(one)].to_vec();
                    it.copy_within(block(other), one * BLOCK_SIZE);
                    it[block(other)].copy_from_slice(&kept);
                });
                theatre.judge("two blocks swapped", 80, &theatre.with(*slot, swapped));
            }
        }
        // Into a file of another run.
        for (into, target) in whole.files.iter().filter(|(into, _)| *into != slot) {
            for one in 0..image.blocks().min(target.blocks()) {
                let moved =
                    target.changed(|it| it[block(one)].copy_from_slice(&image.bytes[block(one)]));
                if one > 0 {
                    theatre.judge("a block of another file", 20, &theatre.with(*into, moved));
                }
            }
        }
    }
    theatre.report();
    for came in theatre.kinds.values() {
        assert!(came.damaged > 0 && came.damaged < came.cuts, "{came:?}");
    }
}

#[test]
fn a_file_that_is_gone_or_empty_or_older_or_longer_is_found_out_if_anything_knew_it() {
    let whole = Whole::left_by_brokers();
    let mut theatre = Theatre::new(whole);
    for (slot, image) in &whole.files {
        let mut without = whole.files.clone();
        without.remove(slot);
        theatre.judge("a file is gone", 1, &without);
        theatre.judge(
            "a file is empty",
            1,
            &theatre.with(*slot, image.truncated(0)),
        );
        let blank = image.changed(|it| it.fill(0));
        theatre.judge("a file is blank", 1, &theatre.with(*slot, blank));
        for batch in whole.batches.iter().filter(|batch| batch.slot == *slot) {
            let older = image.changed(|it| it[batch.position..].fill(0));
            theatre.judge("an older copy of a file", 5, &theatre.with(*slot, older));
        }
        for behind in [1, 7, 4096, 40_000] {
            let mut longer = image.clone();
            longer.bytes.resize(longer.bytes.len() + behind, 0x5a);
            theatre.judge(
                "garbage behind what was written",
                2,
                &theatre.with(*slot, longer),
            );
        }
        let mut longer = image.clone();
        longer.bytes.resize(usize::try_from(image.size).unwrap(), 0);
        longer.bytes.resize(longer.bytes.len() + 5000, 0x5a);
        longer.size = longer.bytes.len() as u64;
        theatre.judge("garbage behind the file", 1, &theatre.with(*slot, longer));
    }
    // All of the last run, and what the run before had written last.
    let mut files = whole.files.clone();
    let last = files.pop_last().unwrap();
    theatre.judge("the newest files are gone", 1, &files);
    files.insert(last.0, Image::default());
    theatre.judge("the newest files are gone", 1, &files);
    theatre.judge("no file is left", 1, &Files::new());
    theatre.report();
    assert_eq!(
        theatre.kinds["a file is gone"].damaged,
        whole.files.len() - 1
    );
    assert_eq!(theatre.kinds["garbage behind the file"].damaged, 0);
}

#[test]
fn a_file_that_does_not_belong_there_is_refused_with_the_way_to_get_rid_of_it() {
    let whole = Whole::left_by_brokers();
    let home = Directory::new();
    let (slot, image) = newest(whole);
    let header = file::Header::read(&image.bytes).unwrap();
    let headed = |header: file::Header| Image {
        bytes: header.block().to_vec(),
        size: image.size,
    };
    let mut foreign = header;
    foreign.origin.identity.installation.0 ^= 1;
    let mut other_journal = header;
    other_journal.origin.identity.journal.0 += 1;
    let mut other_salt = header;
    other_salt.origin.salt ^= 1;
    other_salt.sequence.0 += 1;
    let mut newer = image.changed(|it| it[12] += 1);
    let sum = {
        newer.bytes[8..12].fill(0);
        checksum::extend(0, &newer.bytes[..BLOCK_SIZE])
    };
    newer.bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    let free = Slot(slot.0 + 1);
    let cases = [
        (free, image.clone(), "say that they are number"),
        (
            free,
            headed(foreign),
            "belongs to journal 0 of installation",
        ),
        (
            free,
            headed(other_journal),
            "belongs to journal 1 of installation",
        ),
        (free, headed(other_salt), "contradict each other"),
        (slot, newer, "is of version 2, this broker reads 1"),
    ];
    for (number, (slot, image, said)) in cases.into_iter().enumerate() {
        let mut files = whole.files.clone();
        files.insert(slot, image);
        let verdict = whole.verdict(&files);
        let Verdict::Damaged(damage) = &verdict else {
            panic!("{said}: {verdict:?}");
        };
        assert!(damage.to_string().contains(said), "{damage}");
        let path = PathBuf::from(home.file(&number.to_string()));
        whole.lay_out(&files, &path);
        assert_agreed(&path, &verdict);
    }
}

#[test]
fn a_directory_whose_name_cannot_be_read_is_refused_and_not_given_another() {
    let whole = Whole::left_by_brokers();
    let home = Directory::new();
    let path = PathBuf::from(home.file("data"));
    whole.lay_out(&whole.files, &path);
    let place = path.join("installation");
    let mut names: Vec<Option<Vec<u8>>> = (0..whole.name.len())
        .map(|size| Some(whole.name[..size].to_vec()))
        .collect();
    names.extend((0..whole.name.len() * 8).map(|bit| {
        let mut name = whole.name.clone();
        name[bit / 8] ^= 1 << (bit % 8);
        Some(name)
    }));
    names.push(None);
    for (at, name) in names.iter().enumerate() {
        match name {
            Some(name) => fs::write(&place, name).unwrap(),
            None => fs::remove_file(&place).unwrap(),
        }
        let found = DataDirectory::inspect(&path).map(drop).unwrap_err();
        assert!(
            found.to_string().contains("\n  fix    put it back"),
            "{found}"
        );
        if at.is_multiple_of(97) || name.is_none() {
            let before = snapshot(&path);
            let checked = run(&["check", path.to_str().unwrap()]);
            assert_eq!(checked.status, Some(5), "{checked:?}");
            assert!(checked.stderr.contains("put it back"), "{checked:?}");
            let refused = Broker::start(config(&path)).map(drop).unwrap_err();
            assert!(
                refused.to_string().contains(&found.to_string()),
                "{refused}"
            );
            assert!(snapshot(&path) == before, "a refusal changes nothing");
        }
    }
}

#[test]
fn several_cuts_at_once_are_judged_as_one() {
    let whole = Whole::left_by_brokers();
    let mut theatre = Theatre::new(whole);
    let mut choices = Choices::of("SURGERY_SEED");
    let slots: Vec<Slot> = whole.files.keys().copied().collect();
    for _ in 0..6000 {
        let mut files = whole.files.clone();
        for _ in 0..2 + choices.below(3) {
            let slot = slots[usize::try_from(choices.below(slots.len() as u64)).unwrap()];
            let Some(image) = files.get_mut(&slot) else {
                continue;
            };
            let at = usize::try_from(choices.below(image.bytes.len().max(1) as u64)).unwrap();
            let block = at / BLOCK_SIZE * BLOCK_SIZE..(at / BLOCK_SIZE + 1) * BLOCK_SIZE;
            match choices.below(12) {
                0 => drop(files.remove(&slot)),
                1 => *image = image.truncated(at),
                2..5 => {
                    if let Some(bytes) = image.bytes.get_mut(block) {
                        bytes.fill(0);
                    }
                }
                5 => image.bytes.extend_from_slice(&[0x77; 300]),
                _ => {
                    if let Some(byte) = image.bytes.get_mut(at) {
                        *byte ^= 1 << choices.below(8);
                    }
                }
            }
        }
        theatre.judge("several cuts", 600, &files);
    }
    theatre.report();
    let came = &theatre.kinds["several cuts"];
    assert!(came.damaged > 1000 && came.cut_short > 100, "{came:?}");
}
