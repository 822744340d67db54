//! `courser check` and `courser dump`: what a data directory holds, seen from outside,
//! whole, cut short and damaged.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use courser_core::frame::checksum;
use courser_core::frame::encode::{self, Envelope};
use courser_core::id::{
    BatchNumber, DestinationNumber, FileSequence, Installation, JournalNumber, Offset, PageNumber,
    PartitionIndex, Run,
};
use courser_core::journal::batch::{self, Label, Seal};
use courser_core::journal::checkpoint;
use courser_core::journal::entry::{Entry, PageImage, Place};
use courser_core::journal::{Identity, Origin, Start, file};
use courser_core::time::Wall;
use courser_transport::disk::DataDirectory;
use serde_json::Value;
use support::{Directory, run};

const FILE_SIZE: usize = 5 * 4096;

/// A data directory.
struct Data {
    path: String,
    _home: Directory,
}

impl Data {
    fn new() -> Self {
        let home = Directory::new();
        Self {
            path: home.file("data"),
            _home: home,
        }
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn inside(&self, name: &str) -> PathBuf {
        Path::new(&self.path).join(name)
    }

    fn file(&self, slot: u32) -> PathBuf {
        self.inside(&format!("journal-00/{slot:06}.journal"))
    }

    fn change(&self, slot: u32, change: impl FnOnce(&mut Vec<u8>)) {
        let mut image = fs::read(self.file(slot)).unwrap();
        change(&mut image);
        fs::write(self.file(slot), image).unwrap();
    }

    /// Two files of one run: a message and a reservation in each batch, of which there
    /// are five, each durable when the next was written.
    fn written() -> Self {
        let directory = Self::new();
        let data = DataDirectory::open(directory.path().as_ref()).unwrap();
        data.make_journal(JournalNumber(0)).unwrap();
        let mut number = 0;
        for slot in 1..=2 {
            let origin = origin(data.installation(), 1);
            let image = image(&origin, slot, 0, 3, &mut number);
            fs::write(directory.file(slot), image).unwrap();
        }
        directory
    }
}

fn origin(installation: Installation, run: u64) -> Origin {
    Origin {
        identity: Identity {
            installation,
            journal: JournalNumber(0),
        },
        run: Run(run),
        salt: run * 77,
    }
}

/// A file with so many batches, which go on behind `number`.
fn image(origin: &Origin, slot: u32, recovered: u64, batches: usize, number: &mut u64) -> Vec<u8> {
    let header = file::Header {
        origin: *origin,
        sequence: FileSequence(u64::from(slot)),
        recovered: BatchNumber(recovered),
        size: FILE_SIZE as u64,
    };
    let mut image = header.block().to_vec();
    for _ in 0..batches {
        *number += 1;
        let position = image.len();
        image.resize(position + batch::HEADER_SIZE, 0);
        let envelope = Envelope::default();
        let at = image.len();
        image.resize(at + encode::message_size(0, 5), 0);
        encode::message(&envelope, &[], b"hello", &mut image[at..]);
        image[at + 8..at + 12].copy_from_slice(&4u32.to_le_bytes());
        image[at + 16..at + 24].copy_from_slice(&(*number - 1).to_le_bytes());
        let reserved = Entry::OffsetsReserved {
            place: Place {
                destination: DestinationNumber(4),
                partition: PartitionIndex(0),
            },
            next: Offset(65_536),
        };
        let at = image.len();
        image.resize(at + reserved.size(), 0);
        reserved.write(&mut image[at..]);
        let mut seal = Seal::new();
        seal.extend(&image[position + batch::HEADER_SIZE..]);
        seal.count(2);
        let label = Label {
            number: BatchNumber(*number),
            durable_before: BatchNumber(*number - 1),
            written: Wall(1_700_000_000_000_000_000),
        };
        let header = seal.finish(origin, position as u64, label);
        image[position..position + batch::HEADER_SIZE].copy_from_slice(&header);
        image.resize(image.len().next_multiple_of(4096), 0);
    }
    image.resize(FILE_SIZE, 0);
    image
}

fn json(directory: &Data) -> Value {
    let ended = run(&["check", directory.path(), "--json"]);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn listing(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(listing(&path));
        } else {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn a_directory_that_is_whole_passes_and_is_left_as_it_was() {
    let directory = Data::written();
    fs::write(directory.inside("notes"), "mine").unwrap();
    let before = listing(directory.path().as_ref());
    let ended = run(&["check", directory.path()]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(
        lines[1].starts_with(
            "journal 00   whole: run 1, 2 files of which 0 spare, 6 batches, 864 B of entries: "
        ),
        "{ended:?}"
    );
    assert!(
        lines[1].ends_with("6 offset reservation, 6 message"),
        "{ended:?}"
    );
    assert_eq!(lines[2], "left alone   notes");
    let dumped = run(&["dump", directory.path(), "--json"]);
    assert_eq!(dumped.status, Some(0), "{dumped:?}");
    assert_eq!(listing(directory.path().as_ref()), before);

    let lines: Vec<Value> = (dumped.stdout.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 6 * 3);
    assert_eq!(
        (&lines[3]["is"], &lines[3]["number"]),
        (&"batch".into(), &2.into())
    );
    assert_eq!(
        (&lines[4]["is"], &lines[4]["offset"]),
        (&"message".into(), &1.into())
    );
    let text = run(&["dump", directory.path()]).stdout;
    assert!(
        text.contains("\n  message  destination 4  partition 0  offset 5 "),
        "{text}"
    );
}

#[test]
fn what_a_power_cut_left_is_said_and_is_no_damage() {
    let directory = Data::written();
    directory.change(2, |image| image[3 * 4096 + 70] ^= 1);
    let ended = run(&["check", directory.path()]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains(
            "  cut        journal-00/000002.journal at 12288: cut 4096 bytes from batch 6 on"
        ),
        "{ended:?}"
    );
    let found = json(&directory);
    assert_eq!(found["journals"][0]["kept"], 5);
    assert_eq!(found["journals"][0]["cut"][0]["position"], 12288);
    assert_eq!(found["damaged"], false);
}

#[test]
fn damage_is_named_with_its_place_and_a_remedy_and_has_a_status_of_its_own() {
    let directory = Data::written();
    directory.change(1, |image| image[2 * 4096 + 70] ^= 1);
    let ended = run(&["check", directory.path()]);
    assert_eq!(ended.status, Some(5), "{ended:?}");
    assert!(ended.stdout.contains("journal 00   DAMAGED: "), "{ended:?}");
    assert!(
        ended.stdout.contains(
            "  damage     journal-00/000001.journal at 8192: batch 2 belongs there and cannot be read"
        ),
        "{ended:?}"
    );
    assert!(
        ended.stdout.contains("  fix        check the device"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("is damaged"), "{ended:?}");
    let found = json(&directory);
    assert_eq!(found["damaged"], true);
    assert_eq!(found["journals"][0]["damage"]["file"], "000001.journal");
    assert_eq!(found["journals"][0]["damage"]["position"], 8192);

    // What is in front of it, and in the files behind, can still be read.
    let dumped = run(&["dump", directory.path()]);
    assert_eq!(dumped.status, Some(5), "{dumped:?}");
    let batches = dumped
        .stdout
        .lines()
        .filter(|line| line.starts_with("batch"));
    assert_eq!(batches.count(), 4, "{dumped:?}");
}

#[test]
fn a_message_whose_own_checksum_is_wrong_is_named() {
    let directory = Data::written();
    // Sealed like that: whoever wrote the batch had it in memory already.
    directory.change(2, |image| {
        let body = 3 * 4096 + batch::HEADER_SIZE + 112;
        image[body] ^= 1;
        let installation = Installation(u128::from_le_bytes(image[16..32].try_into().unwrap()));
        let mut seal = Seal::new();
        seal.extend(&image[3 * 4096 + batch::HEADER_SIZE..][..120 + 24]);
        seal.count(2);
        let label = Label {
            number: BatchNumber(6),
            durable_before: BatchNumber(5),
            written: Wall(0),
        };
        let header = seal.finish(&origin(installation, 1), 3 * 4096, label);
        image[3 * 4096..][..batch::HEADER_SIZE].copy_from_slice(&header);
    });
    let ended = run(&["check", directory.path()]);
    assert_eq!(ended.status, Some(5), "{ended:?}");
    assert!(
        ended.stdout.contains(
            "000002.journal: the checksum of message 5 of partition 0 of destination 4 does not match"
        ),
        "{ended:?}"
    );
}

/// Messages of a page, behind each other from offset 0 on.
fn page(count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in 0..count {
        let at = bytes.len();
        bytes.resize(at + encode::message_size(0, 5), 0);
        encode::message(&Envelope::default(), &[], b"paged", &mut bytes[at..]);
        bytes[at + 8..at + 12].copy_from_slice(&4u32.to_le_bytes());
        bytes[at + 16..at + 24].copy_from_slice(&offset.to_le_bytes());
    }
    bytes
}

/// Writes a checkpoint in front of all that is journalled, which names these messages in the
/// second page of a file.
fn put_checkpoint_with_page(directory: &Data, bytes: &[u8], count: u32) {
    let data = DataDirectory::inspect(directory.path().as_ref()).unwrap();
    let origin = origin(data.installation(), 1);
    let paged = Entry::Paged {
        place: Place {
            destination: DestinationNumber(4),
            partition: PartitionIndex(0),
        },
        image: PageImage {
            run: Run(1),
            page: PageNumber(1),
            size: u32::try_from(bytes.len()).unwrap(),
            sum: checksum::extend(0, bytes),
            first: Offset(0),
            count,
        },
    };
    let mut batch = vec![0; batch::HEADER_SIZE + paged.size()];
    paged.write(&mut batch[batch::HEADER_SIZE..]);
    let label = Label {
        number: BatchNumber(1),
        durable_before: BatchNumber(0),
        written: Wall(1_700_000_000_000_000_000),
    };
    batch::seal(&origin, 4096, label, 1, &mut [&mut batch]);
    let header = checkpoint::Header {
        origin,
        number: 1,
        start: Start {
            sequence: FileSequence(1),
            position: 4096,
            number: BatchNumber(1),
        },
        batches: 1,
        size: 8192,
        division: checkpoint::Division {
            shards: 1,
            since: Run(1),
        },
    };
    batch.resize(4096, 0);
    let image = [&header.block()[..], &batch].concat();
    fs::write(directory.inside("journal-00/checkpoint"), image).unwrap();
    let file = [&[0; 65_536][..], bytes].concat();
    fs::write(directory.inside(PAGES), file).unwrap();
}

const PAGES: &str = "journal-00/00000001-000000.pages";

#[test]
fn pages_that_a_checkpoint_names_are_looked_at_and_printed() {
    let directory = Data::written();
    put_checkpoint_with_page(&directory, &page(3), 3);
    let ended = run(&["check", directory.path()]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        (ended.stdout).contains("  pages      3 messages, "),
        "{ended:?}"
    );
    assert!(!ended.stdout.contains("left alone"), "{ended:?}");
    let pages = json(&directory)["journals"][0]["pages"].clone();
    assert_eq!(
        (&pages["messages"], &pages["files"]),
        (&Value::from(3), &Value::from(1))
    );
    assert_eq!(pages["bytes"], page(3).len());
    let ended = run(&["dump", directory.path(), "--json"]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(
        ended.stdout.matches("\"paged\"").count(),
        1 + 3,
        "{ended:?}"
    );

    let path = directory.inside(PAGES);
    let whole = fs::read(&path).unwrap();
    let mut rotten = whole.clone();
    rotten[65_536 + 112] ^= 1;
    fs::write(&path, rotten).unwrap();
    let damaged = |what: &str| {
        let ended = run(&["check", directory.path()]);
        assert_eq!(ended.status, Some(5), "{ended:?}");
        let said = format!("  damage     {PAGES} at 65536: {what}");
        assert!(ended.stdout.contains(&said), "{ended:?}");
        assert!(ended.stdout.contains("\n  fix        "), "{ended:?}");
        let pages = json(&directory)["journals"][0]["pages"].clone();
        assert_eq!(pages["damage"][0]["position"], 65_536);
        let ended = run(&["dump", directory.path()]);
        assert_eq!(ended.status, Some(5), "{ended:?}");
        assert!(ended.stderr.contains(&format!("{PAGES} at 65536: {what}")));
        let serve = "serve --listen 127.0.0.1:0 --cores none --data-dir";
        let arguments: Vec<&str> = serve.split(' ').chain([directory.path()]).collect();
        let ended = run(&arguments);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        let said = format!("{} at 65536: {what}", &PAGES["journal-00/".len()..]);
        assert!(ended.stderr.contains(&said), "{ended:?}");
    };
    damaged("the checksum of ");
    fs::write(&path, &whole[..whole.len() - 8]).unwrap();
    damaged(&format!("{} bytes of messages belong there", page(3).len()));
    fs::remove_file(&path).unwrap();
    damaged("the file is missing");
}

#[test]
fn a_directory_of_a_running_broker_or_of_none_is_refused() {
    let directory = Data::written();
    let held = DataDirectory::open(directory.path().as_ref()).unwrap();
    for verb in ["check", "dump"] {
        let ended = run(&[verb, directory.path()]);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("is in use by process"), "{ended:?}");
    }
    drop(held);
    let empty = Data::new();
    fs::create_dir(empty.path()).unwrap();
    let ended = run(&["check", empty.path()]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("is no data directory"), "{ended:?}");
    assert!(
        listing(empty.path().as_ref()).is_empty(),
        "nothing was made"
    );
    let ended = run(&["check", "/nowhere/at/all"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    // A copy without the file of the lock is as good.
    fs::remove_file(directory.inside("lock")).unwrap();
    assert_eq!(run(&["check", directory.path()]).status, Some(0));
    fs::remove_file(directory.inside("installation")).unwrap();
    assert_eq!(run(&["check", directory.path()]).status, Some(5));
}
