//! Loom models of a shard that sleeps over the rings of its neighbours: one word for
//! all of them, set before a last look into each, checked by every neighbour behind
//! what it published. And of links in the process, of which one end moves from shard to
//! shard and the other may wait for room. `scripts/loom` runs them, and demands that they
//! fail when a fence or a look is missing.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use courser_core::ring::{Reader, Tally, Wake, WakeWord, Whereabouts, Writer, ring};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// A word, and an eventfd as far as it is concerned: it remembers that it was rung, and
/// waiting uses that up.
struct Doorbell {
    word: WakeWord,
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Doorbell {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            word: WakeWord::awake(),
            rung: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// By a neighbour, behind what it published.
    fn ring(&self) {
        if self.word.check() == Wake::Needed {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    /// Sleeps. If the wake-up is lost, so is everybody: loom reports a deadlock.
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// What a neighbour does with a turn that has something for the sleeper.
fn tell(writer: &mut Writer, value: u64, doorbell: &Doorbell) {
    writer.push(&value.to_le_bytes()).unwrap();
    writer.publish_quietly();
    doorbell.ring();
}

/// What the sleeper's thread does until it has read so many records.
fn read_all(readers: &mut [Reader], doorbell: &Doorbell, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        for reader in &mut *readers {
            reader
                .read(|bytes| seen.push(u64::from_le_bytes(bytes.try_into().unwrap())))
                .unwrap();
        }
        if seen.len() == count {
            break;
        }
        doorbell.word.announce();
        if !readers.iter().any(Reader::has_more) {
            doorbell.wait();
        }
        doorbell.word.withdraw();
    }
    seen
}

#[test]
fn a_sleeper_misses_nothing_of_one_neighbour() {
    loom::model(|| {
        let doorbell = Doorbell::new();
        let (mut writer, reader) = ring(64).unwrap();
        let telling = {
            let doorbell = Arc::clone(&doorbell);
            thread::spawn(move || {
                for value in 1..=2 {
                    tell(&mut writer, value, &doorbell);
                }
            })
        };
        assert_eq!(read_all(&mut [reader], &doorbell, 2), [1, 2]);
        telling.join().unwrap();
    });
}

#[test]
fn a_sleeper_misses_nothing_of_two_neighbours() {
    loom::model(|| {
        let doorbell = Doorbell::new();
        let mut readers = Vec::new();
        let mut telling = Vec::new();
        for value in 1..=2 {
            let (mut writer, reader) = ring(64).unwrap();
            readers.push(reader);
            let doorbell = Arc::clone(&doorbell);
            telling.push(thread::spawn(move || tell(&mut writer, value, &doorbell)));
        }
        let mut seen = read_all(&mut readers, &doorbell, 2);
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
        for thread in telling {
            thread.join().unwrap();
        }
    });
}

/// An end at the shard that has it, and what the peer may have written meanwhile.
fn has_news(reader: &Reader) -> bool {
    reader.has_more() || reader.is_closed()
}

/// A link is handed to another shard while its application writes a message and goes.
#[test]
fn an_application_that_writes_and_goes_is_heard_wherever_its_link_is() {
    loom::model(|| {
        let doorbells = [Doorbell::new(), Doorbell::new()];
        let whereabouts = Arc::new(Whereabouts::at(0));
        let (mut writer, mut reader) = ring(64).unwrap();
        let application = {
            let (doorbells, whereabouts) = (doorbells.clone(), Arc::clone(&whereabouts));
            thread::spawn(move || {
                let ring = |place: u16| doorbells[usize::from(place)].ring();
                writer.push(&7_u64.to_le_bytes()).unwrap();
                writer.publish_quietly();
                whereabouts.ring(ring);
                // It goes: its rings are closed first.
                drop(writer);
                whereabouts.ring(ring);
            })
        };
        // The shard that takes it in, whose inbox it has just been found in.
        whereabouts.moved(1);
        let mut seen = Vec::new();
        loop {
            reader
                .read(|bytes| seen.push(u64::from_le_bytes(bytes.try_into().unwrap())))
                .unwrap();
            if reader.is_closed() {
                break;
            }
            doorbells[1].word.announce();
            if !has_news(&reader) {
                doorbells[1].wait();
            }
            doorbells[1].word.withdraw();
        }
        assert_eq!(seen, [7]);
        application.join().unwrap();
    });
}

/// A writer fills the ring, and sleeps until there is room for the rest.
#[test]
fn a_writer_that_waits_for_room_is_told_though_its_reader_does_not_tell_each_time() {
    // Two records fit: a third would be put at the start, behind a gap.
    const CAPACITY: u32 = 64;
    const PART: usize = CAPACITY as usize / 4;
    const RECORD: usize = 8 + PART;
    const RECORDS: u8 = 3;
    loom::model(|| {
        let (writers, readers) = (Doorbell::new(), Doorbell::new());
        let (mut writer, mut reader) = ring(CAPACITY).unwrap();
        let writing = {
            let (writers, readers) = (Arc::clone(&writers), Arc::clone(&readers));
            thread::spawn(move || {
                for value in 1..=RECORDS {
                    while writer.push(&[value; PART]).is_err() {
                        writers.word.announce();
                        if writer.claim(PART).is_err() {
                            writers.wait();
                        }
                        writers.word.withdraw();
                    }
                    writer.publish_quietly();
                    readers.ring();
                }
            })
        };
        let mut seen = Vec::new();
        let mut tally = Tally::of(CAPACITY);
        loop {
            reader
                .read(|bytes| {
                    seen.push(bytes[0]);
                    tally.read(RECORD);
                })
                .unwrap();
            if tally.tells() {
                writers.ring();
            }
            if seen.len() == usize::from(RECORDS) {
                break;
            }
            readers.word.announce();
            if !reader.has_more() {
                readers.wait();
            }
            readers.word.withdraw();
        }
        assert!(seen.into_iter().eq(1..=RECORDS));
        writing.join().unwrap();
    });
}
