//! Entries of a journal: a batch of them, whole and broken.
//!
//! | a case is | |
//! |---|---|
//! | less u8 | the batch claims so many entries fewer than are described, modulo 3 |
//! | place u16, change u8 | what is changed in the batch once it is sealed; 0 for nothing |
//! | parts | an even step, kind u8, shorter u8 and the bytes behind an entry's prefix, or an odd step and raw bytes |
//!
//! What has to hold: nothing panics; an entry that is let through is written again as
//! the very same bytes; there are as many as the batch claims, or an error says
//! otherwise; what is allocated is in proportion to what is there; and a batch with a
//! byte changed is none.

use courser_core::frame::padded;
use courser_core::id::{BatchNumber, Installation, JournalNumber, Run};
use courser_core::journal::batch::{Batch, HEADER_SIZE, Label, Seal};
use courser_core::journal::entry::{Entries, VERSION};
use courser_core::journal::{Identity, Origin};
use courser_core::time::Wall;

use crate::heap;
use crate::script::Script;

const ORIGIN: Origin = Origin {
    identity: Identity {
        installation: Installation(7),
        journal: JournalNumber(1),
    },
    run: Run(2),
    salt: 3,
};
const POSITION: u64 = 8192;

/// Runs a case.
///
/// # Panics
///
/// If something does not hold.
pub fn run(case: &[u8]) {
    let mut script = Script::new(case);
    let less = u32::from(script.byte() % 3);
    let (place, change) = (usize::from(script.word()), script.byte());
    let (bytes, described) = entries(&mut script);
    let claimed = described.saturating_sub(less);
    let peak = heap::peak(|| read(&bytes, claimed));
    assert!(
        peak <= 4096 + 2 * bytes.len() as u64,
        "{peak} bytes allocated for {}",
        bytes.len()
    );
    sealed(&bytes, claimed, place, change);
}

/// The entries that a case describes, and how many of them.
fn entries(script: &mut Script<'_>) -> (Vec<u8>, u32) {
    let mut bytes = Vec::new();
    let mut count = 0;
    while let Some(step) = script.step() {
        count += 1;
        if step % 2 == 1 {
            bytes.extend_from_slice(script.bytes());
            bytes.resize(padded(bytes.len()), 0);
            continue;
        }
        let (kind, shorter) = (script.byte(), script.byte() % 8);
        let content = script.bytes();
        let size = padded(8 + content.len());
        let length = u32::try_from(8 + content.len()).expect("a word's worth of bytes");
        let at = bytes.len();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[kind, VERSION, 0, 0]);
        bytes.extend_from_slice(content);
        bytes.resize(at + size, 0);
        // Still as many bytes with the padding, some of which is not zero then.
        if shorter > 0 && content.len() >= 8 {
            bytes[at] = bytes[at].saturating_sub(shorter);
        }
    }
    (bytes, count)
}

/// Reads them, and writes again what was read.
fn read(bytes: &[u8], claimed: u32) {
    let mut entries = Entries::new(bytes, claimed);
    let mut taken = 0;
    let mut count = 0;
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) => {
                count += 1;
                let end = bytes.len() - entries.left();
                let mut written = vec![0xee; entry.size()];
                assert_eq!(entry.write(&mut written), written.len());
                assert_eq!(written, bytes[taken..end], "{:?}", entry.kind());
                assert_eq!(bytes[taken + 4], entry.kind().code());
                taken = end;
            }
            Err(malformed) => {
                assert!(!malformed.to_string().is_empty());
                assert!(entries.next().is_none(), "behind {malformed}");
                return;
            }
        }
    }
    assert_eq!((taken, count), (bytes.len(), claimed), "all of them");
}

/// Seals them, and looks whether a change is seen.
fn sealed(bytes: &[u8], claimed: u32, place: usize, change: u8) {
    let mut seal = Seal::new();
    let (front, back) = bytes.split_at(place % (bytes.len() + 1));
    seal.extend(front);
    seal.extend(back);
    seal.count(claimed);
    let label = Label {
        number: BatchNumber(9),
        durable_before: BatchNumber(7),
        written: Wall(1),
    };
    let header = seal.finish(&ORIGIN, POSITION, label);
    let mut batch = [&header[..], bytes].concat();
    let read = Batch::open(&ORIGIN, POSITION, &batch).expect("as it was sealed");
    assert_eq!(read.bytes(), bytes);
    assert_eq!((read.header.label, read.header.entries), (label, claimed));
    assert_eq!(batch.len(), HEADER_SIZE + bytes.len());
    let place = place % batch.len();
    batch[place] ^= change;
    let opened = Batch::open(&ORIGIN, POSITION, &batch);
    assert_eq!(opened.is_some(), change == 0, "{change} at {place}");
}
