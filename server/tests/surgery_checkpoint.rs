//! Surgery on the checkpoint that a broker left: it is cut off, flipped, zeroed, swapped,
//! doubled, lengthened, aged and taken away.
//!
//! It had been whole when it got its name, so whatever is wrong with it is damage, said with
//! its file, the place and what to do; and what says nothing changes nothing. Only where the
//! journal is there from its beginning is a checkpoint not missed. Every cut is judged by
//! the code that recovers; some of each kind are laid out as a directory for `courser check`
//! and for a broker, which have to say the same, and to change nothing where they refuse.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU16;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use accounts::Record;
use courser::Client;
use courser::embedded::{Broker, BrokerConfig};
use courser_core::frame::checksum;
use courser_core::id::JournalNumber;
use courser_core::journal::checkpoint::{Damage, Header, Walk, Wrong};
use courser_core::journal::{BLOCK_SIZE, Identity};
use courser_transport::disk::{DataDirectory, Recovery};
use home::Home;
use serde_json::Value;
use support::{DEADLINE, Directory, run};

const QUEUE: &str = "queue:/kept/work";
const PATIENCE: &str = "120s";

/// A message: its partition, its offset, and what its body sums up to.
type Message = (u32, u64, String);

/// A directory that a broker left when it was killed.
struct Left {
    /// Where it goes when it is not needed any more.
    home: Home,
    identity: Identity,
    /// The checkpoint of journal 0.
    checkpoint: Vec<u8>,
    /// Its header and its batches: where each begins, and bytes that say something.
    parts: Vec<(usize, usize)>,
    /// What was acknowledged and not settled.
    messages: BTreeSet<Message>,
}

impl Left {
    /// Some messages are settled out of their order, and checkpoints made while more come.
    /// With `churn` so many MiB passed before, and the first files are used again.
    fn by_a_broker(shards: u16, churn: u64) -> Self {
        let mut home = Home::new();
        home.checkpoint_bytes = Some("64KiB");
        let broker = home.start(shards, "auto");
        let mut told: Vec<Record> = Vec::new();
        home.body = 1 << 20;
        for _ in 0..churn / 10 {
            home.sender(QUEUE, 10, 4, PATIENCE).complete();
            assert_eq!(home.receive(QUEUE, "1s").len(), 10);
        }
        home.body = 400;
        for _ in 0..4 {
            told.extend(home.sender(QUEUE, 100, 4, PATIENCE).complete());
        }
        let client = Client::connect(&*home.address).unwrap();
        let mut consumer = client.consumer(QUEUE).create().unwrap();
        let mut settled = BTreeSet::new();
        for number in 0..200 {
            let received = consumer.receive(DEADLINE).unwrap().unwrap();
            if number % 3 != 0 {
                let position = received.position();
                consumer.acknowledge(position).unwrap();
                settled.insert((position.partition.0, position.offset.0));
            }
        }
        consumer.confirm().unwrap();
        drop(consumer);
        for _ in 0..3 {
            told.extend(home.sender(QUEUE, 50, 4, PATIENCE).complete());
        }
        await_checkpoints(home.data.as_ref(), shards);
        broker.kill();
        let messages = (told.iter())
            .filter(|it| !settled.contains(&(it.partition, it.offset)))
            .map(|it| (it.partition, it.offset, it.checksum.clone()))
            .collect();
        let directory = DataDirectory::inspect(home.data.as_ref()).unwrap();
        let identity = Identity {
            installation: directory.installation(),
            journal: JournalNumber(0),
        };
        drop(directory);
        let checkpoint = fs::read(place_in(home.data.as_ref(), 0)).unwrap();
        let mut left = Self {
            home,
            identity,
            checkpoint,
            parts: Vec::new(),
            messages,
        };
        left.parts = left.read(&left.checkpoint).unwrap();
        assert!(left.parts.len() > 2, "{:?}", left.parts);
        left
    }

    /// One that is small, for cuts byte by byte.
    fn small() -> &'static Self {
        static LEFT: OnceLock<Left> = OnceLock::new();
        LEFT.get_or_init(|| Self::by_a_broker(1, 0))
    }

    /// What a broker and `courser check` read of a checkpoint, in the same order.
    fn read(&self, image: &[u8]) -> Result<Vec<(usize, usize)>, Damage> {
        let header = Header::read(&self.identity, &image[..image.len().min(BLOCK_SIZE)])?;
        if image.len() as u64 != header.size {
            return Err(Damage {
                position: image.len() as u64,
                what: Wrong::Size { size: header.size },
            });
        }
        let mut parts = vec![(0, BLOCK_SIZE)];
        let mut walk = Walk::new(header);
        while let Some(place) = walk.place()? {
            let place = usize::try_from(place).unwrap();
            // What is not there is read as zeros.
            let mut bytes = image[place.min(image.len())..].to_vec();
            bytes.resize(bytes.len() + BLOCK_SIZE, 0);
            let size = walk.size(&bytes)?;
            bytes.resize(size.max(bytes.len()), 0);
            let batch = walk.batch(&bytes[..size])?;
            for entry in batch.entries() {
                let number = batch.header.label.number;
                entry.map_err(|malformed| Damage {
                    position: batch.header.position,
                    what: Wrong::Entry { number, malformed },
                })?;
            }
            parts.push((place, batch.header.length as usize));
        }
        Ok(parts)
    }

    /// What has to be said of an image: where it is damaged, if it is.
    fn place_of_damage(&self, image: &[u8]) -> Option<u64> {
        let whole = &self.checkpoint;
        let is_as_it_was = |(begin, length): (usize, usize)| {
            image.get(begin..begin + length) == Some(&whole[begin..begin + length])
        };
        if !is_as_it_was(self.parts[0]) {
            return Some(0);
        }
        if image.len() != whole.len() {
            return Some(image.len() as u64);
        }
        let bad = self.parts.iter().find(|part| !is_as_it_was(**part));
        bad.map(|(begin, _)| *begin as u64)
    }

    /// A copy of the directory, in which the checkpoint of journal 0 is this.
    fn lay_out(&self, checkpoint: &[u8], path: &Path) {
        copy(self.home.data.as_ref(), path);
        fs::write(place_in(path, 0), checkpoint).unwrap();
    }
}

fn place_in(directory: &Path, journal: u16) -> PathBuf {
    directory.join(format!("journal-{journal:02}/checkpoint"))
}

/// Waits until no checkpoint of an idle broker is under way. Killed before the last of several
/// is in its place, a broker needs what lies beside that, and not what is in it.
fn await_checkpoints(directory: &Path, shards: u16) {
    let is_under_way = |journal| {
        let aside = directory.join(format!("journal-{journal:02}/checkpoint.new"));
        aside.exists()
    };
    let begun = Instant::now();
    let mut quiet_since = begun;
    while quiet_since.elapsed() < Duration::from_millis(300) {
        if (0..shards).any(is_under_way) {
            quiet_since = Instant::now();
        }
        assert!(begun.elapsed() < DEADLINE, "a checkpoint does not end");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Files that are mostly zeros stay so: only blocks with something in them are written.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy(&from, &to);
            continue;
        }
        let bytes = fs::read(&from).unwrap();
        let file = fs::File::create(&to).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (block, place) in bytes.chunks(BLOCK_SIZE).zip((0..).step_by(BLOCK_SIZE)) {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, place).unwrap();
            }
        }
    }
}

/// Everything in a directory but the file that says who had it last, each file as a sum.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, (usize, u32)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else if !path.ends_with("lock") {
            let bytes = fs::read(&path).unwrap();
            files.insert(path, (bytes.len(), checksum::body(&bytes)));
        }
    }
    files
}

/// What has to become of a directory.
enum Verdict<'a> {
    /// It is refused, with this at the front of what is said of one of its journals.
    Refused(u16, &'a str),
    /// It has all of these.
    Kept(&'a BTreeSet<Message>),
}

/// That `courser check`, the recovery of a broker and a broker come to this verdict.
fn assert_agreed(kind: &str, shards: u16, path: &Path, verdict: &Verdict<'_>) {
    let config = BrokerConfig {
        memory: u64::from(shards) * (96 << 20),
        links_in_process: 1,
        data_directory: Some(path.to_owned()),
        shards: NonZeroU16::new(shards),
        ..BrokerConfig::embedded()
    };
    let before = snapshot(path);
    let checked = run(&["check", path.to_str().unwrap(), "--json"]);
    let found: Value = serde_json::from_str(&checked.stdout).unwrap();
    let recover = || {
        let directory = DataDirectory::open(path).unwrap();
        let recovery = Recovery::read(&directory).map_err(|error| error.to_string())?;
        let told = recovery.replay(|_| Ok::<_, courser_transport::disk::RecoveryError>(()));
        told.map_err(|error| error.to_string())
    };
    match verdict {
        Verdict::Refused(journal, said) => {
            assert_eq!(checked.status, Some(5), "{kind}: {checked:?}");
            let journal = &found["journals"][usize::from(*journal)];
            let (of_checkpoint, of_journal) = (&journal["checkpoint_damage"], &journal["damage"]);
            let damage = [of_checkpoint, of_journal].into_iter().find(|it| {
                it["what"]
                    .as_str()
                    .is_some_and(|what| what.starts_with(said))
            });
            let damage = damage.unwrap_or_else(|| panic!("{kind}: {said}: {found:#}"));
            let (what, advice) = (damage["what"].as_str(), damage["advice"].as_str());
            let (what, advice) = (what.unwrap(), advice.unwrap());
            assert!(advice.contains("restore"), "{kind}: {advice}");
            let refused = Broker::start(config).map(drop).unwrap_err().to_string();
            for said in [recover().unwrap_err(), refused] {
                assert!(said.contains(what), "{kind}: {said}, and not {what}");
                assert!(said.contains(advice), "{kind}: {said}, and not {advice}");
            }
            assert!(
                snapshot(path) == before,
                "{kind}: a refusal changes nothing"
            );
        }
        Verdict::Kept(messages) => {
            assert_eq!(checked.status, Some(0), "{kind}: {checked:?}");
            recover().unwrap();
            assert!(snapshot(path) == before, "{kind}: a look changes nothing");
            let broker = Broker::start(config).unwrap();
            let client = broker.connect().unwrap();
            let mut consumer = client.consumer(QUEUE).create().unwrap();
            let mut found = BTreeSet::new();
            for _ in 0..messages.len() {
                let received = consumer.receive(DEADLINE).unwrap().unwrap();
                let position = received.position();
                found.insert((
                    position.partition.0,
                    position.offset.0,
                    format!("{:08x}", checksum::body(received.body())),
                ));
                consumer.acknowledge(position).unwrap();
            }
            assert!(found == **messages, "{kind}: everything is there");
            assert!(
                consumer.receive(Duration::ZERO).unwrap().is_none(),
                "{kind}"
            );
        }
    }
}

/// What came of each kind of cut.
#[derive(Debug, Default)]
struct Kind {
    cuts: usize,
    damaged: usize,
    laid_out: usize,
}

/// The surgeon: judges every cut, and has a few of each kind judged by whole programs.
struct Theatre {
    left: &'static Left,
    kinds: BTreeMap<&'static str, Kind>,
    scratch: Directory,
}

impl Theatre {
    fn new() -> Self {
        Self {
            left: Left::small(),
            kinds: BTreeMap::new(),
            scratch: Directory::new(),
        }
    }

    /// Judges `image`, one of the cuts of a kind. Every so manieth is laid out.
    fn judge(&mut self, kind: &'static str, every: usize, image: &[u8]) {
        let expected = self.left.place_of_damage(image);
        let found = self.left.read(image);
        match (&found, expected) {
            (Ok(parts), None) => assert_eq!(*parts, self.left.parts, "{kind}"),
            (Err(damage), Some(place)) => {
                assert_eq!(damage.position, place, "{kind}: {damage}");
                assert!(damage.advice().contains("restore"), "{kind}: {damage}");
            }
            _ => panic!("{kind}: {found:?}, and the damage is at {expected:?}"),
        }
        let entry = self.kinds.entry(kind).or_default();
        let is_sample = entry.cuts.is_multiple_of(every);
        entry.cuts += 1;
        entry.damaged += usize::from(found.is_err());
        if is_sample {
            entry.laid_out += 1;
            let path = PathBuf::from(self.scratch.file("sample"));
            self.left.lay_out(image, &path);
            let said = found.err().map(|damage| damage.to_string());
            let verdict = match &said {
                Some(said) => Verdict::Refused(0, said),
                None => Verdict::Kept(&self.left.messages),
            };
            assert_agreed(kind, 1, &path, &verdict);
            fs::remove_dir_all(&path).unwrap();
        }
    }

    fn judge_changed(
        &mut self,
        kind: &'static str,
        every: usize,
        change: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut image = self.left.checkpoint.clone();
        change(&mut image);
        self.judge(kind, every, &image);
    }

    fn report(&self) {
        for (kind, came) in &self.kinds {
            println!("{kind}: {came:?}");
            assert!(came.laid_out > 0, "{kind}");
        }
    }
}

#[test]
fn wherever_a_checkpoint_is_cut_off_it_is_refused() {
    let mut theatre = Theatre::new();
    let whole = &theatre.left.checkpoint;
    let (last, _) = *theatre.left.parts.last().unwrap();
    for size in (0..=BLOCK_SIZE).chain((BLOCK_SIZE..last).step_by(997)) {
        theatre.judge("cut off at the front", 1500, &whole[..size]);
    }
    for size in last..whole.len() {
        theatre.judge("cut off in the last batch", 4000, &whole[..size]);
    }
    theatre.judge("as it was", 1, whole);
    for behind in [1, 7, BLOCK_SIZE - 1, BLOCK_SIZE, 40_000] {
        theatre.judge_changed("zeros behind it", 2, |it| it.resize(it.len() + behind, 0));
        theatre.judge_changed("garbage behind it", 2, |it| {
            it.resize(it.len() + behind, 0x5a)
        });
    }
    theatre.report();
    for (kind, came) in &theatre.kinds {
        let damaged = if *kind == "as it was" { 0 } else { came.cuts };
        assert_eq!(came.damaged, damaged, "{kind}");
    }
}

#[test]
fn no_bit_of_a_checkpoint_that_says_something_can_be_otherwise_unseen() {
    let mut theatre = Theatre::new();
    let flip = |bit: usize| move |it: &mut Vec<u8>| it[bit / 8] ^= 1 << (bit % 8);
    for bit in 0..BLOCK_SIZE * 8 {
        theatre.judge_changed("a bit of the header's block", 11_000, flip(bit));
    }
    let parts = theatre.left.parts.clone();
    for (begin, length) in &parts[1..] {
        for bit in (begin * 8)..(begin + 64) * 8 {
            theatre.judge_changed("a bit of a batch's header", 1500, flip(bit));
        }
        for bit in ((begin * 8)..(begin + length) * 8).step_by(211) {
            theatre.judge_changed("a bit of a batch", 2500, flip(bit));
        }
        // The zeros up to the next block say nothing.
        let end = (begin + length).next_multiple_of(BLOCK_SIZE);
        for bit in ((begin + length) * 8..end * 8).step_by(97) {
            theatre.judge_changed("a bit behind a batch", 400, flip(bit));
        }
    }
    theatre.report();
    for (kind, came) in &theatre.kinds {
        let is_said = *kind != "a bit behind a batch";
        assert_eq!(came.damaged, if is_said { came.cuts } else { 0 }, "{kind}");
    }
}

#[test]
fn blocks_of_a_checkpoint_that_are_elsewhere_or_nowhere_are_missed_where_they_were() {
    let mut theatre = Theatre::new();
    let blocks = theatre.left.checkpoint.len() / BLOCK_SIZE;
    let block = |at: usize| at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE;
    for one in 0..blocks {
        theatre.judge_changed("a block of zeros", 15, |it| it[block(one)].fill(0));
        theatre.judge_changed("a block of garbage", 15, |it| it[block(one)].fill(0xa5));
        for other in (0..blocks).filter(|other| *other != one) {
            theatre.judge_changed("a block twice", 1900, |it| {
                it.copy_within(block(one), other * BLOCK_SIZE);
            });
            theatre.judge_changed("two blocks swapped", 1900, |it| {
                let kept = it[block(one)].to_vec();
                it.copy_within(block(other), one * BLOCK_SIZE);
                it[block(other)].copy_from_slice(&kept);
            });
        }
        theatre.judge_changed("a block too many", 15, |it| {
            let kept = it[block(one)].to_vec();
            it.splice(block(one).start..block(one).start, kept);
        });
        theatre.judge_changed("a block too few", 15, |it| drop(it.drain(block(one))));
    }
    theatre.report();
    for (kind, came) in &theatre.kinds {
        // Where little of a block says something, another may say the same there.
        let alike = match *kind {
            "a block twice" | "two blocks swapped" => came.cuts / 10,
            _ => 0,
        };
        assert!(came.damaged + alike >= came.cuts, "{kind}: {came:?}");
    }
}

/// A directory in another state has to be this.
fn judge_directory(
    left: &Left,
    scratch: &Directory,
    (kind, shards): (&str, u16),
    change: impl FnOnce(&Path),
    refused: Option<(u16, &str)>,
) {
    let path = PathBuf::from(scratch.file("directory"));
    copy(left.home.data.as_ref(), &path);
    change(&path);
    let verdict = match refused {
        Some((journal, said)) => Verdict::Refused(journal, said),
        None => Verdict::Kept(&left.messages),
    };
    assert_agreed(kind, shards, &path, &verdict);
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_checkpoint_that_is_gone_is_missed_unless_the_journal_has_all_of_it() {
    let scratch = Directory::new();
    let remove =
        |journal: u16| move |path: &Path| fs::remove_file(place_in(path, journal)).unwrap();
    let empty = |journal: u16| move |path: &Path| fs::write(place_in(path, journal), "").unwrap();
    let aside = |path: &Path| fs::write(path.join("journal-00/checkpoint.new"), [7; 9000]).unwrap();

    // Its files are there from the first on, so nothing is lost with it.
    let left = Left::small();
    judge_directory(left, &scratch, ("whole", 1), |_| (), None);
    judge_directory(left, &scratch, ("gone", 1), remove(0), None);
    judge_directory(left, &scratch, ("garbage aside", 1), aside, None);
    let said = "checkpoint at 0: the file does not begin with a checkpoint's header";
    judge_directory(left, &scratch, ("empty", 1), empty(0), Some((0, said)));

    // The first files were used again.
    let left = Left::by_a_broker(1, 80);
    judge_directory(&left, &scratch, ("whole", 1), |_| (), None);
    judge_directory(&left, &scratch, ("gone", 1), remove(0), Some((0, "")));
    judge_directory(&left, &scratch, ("empty", 1), empty(0), Some((0, said)));

    // Of several journals each has its own.
    let left = Left::by_a_broker(2, 0);
    judge_directory(&left, &scratch, ("whole", 2), |_| (), None);
    let gone = "checkpoint at 0: the file is missing";
    for journal in [0, 1] {
        let of_it = Some((journal, gone));
        judge_directory(&left, &scratch, ("gone", 2), remove(journal), of_it);
        let of_it = Some((journal, said));
        judge_directory(&left, &scratch, ("empty", 2), empty(journal), of_it);
    }
    let foreign = "checkpoint at 0: the file belongs to journal";
    let swap = |path: &Path| {
        let (one, other) = (place_in(path, 0), place_in(path, 1));
        let kept = fs::read(&one).unwrap();
        fs::copy(&other, &one).unwrap();
        fs::write(&other, kept).unwrap();
    };
    judge_directory(&left, &scratch, ("swapped", 2), swap, Some((0, foreign)));
}
