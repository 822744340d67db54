//! Loom models of a shard that sleeps over the rings of its neighbours: one word for
//! all of them, set before a last look into each, checked by every neighbour behind
//! what it published. `scripts/loom` runs them, and demands that they fail when a fence
//! is missing.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use courser_core::ring::{Reader, Wake, WakeWord, Writer, ring};
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
