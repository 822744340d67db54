//! Loom models of the ring: every interleaving of two threads, within the
//! preemption bound, over the code that ships. `scripts/loom` runs them, and
//! demands that they fail when an ordering is weakened.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::let_underscore_must_use)]

use courser_core::ring::{ClaimError, Reader, Sleep, Wake, Writer, ring, ring_from};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// Two records of one word fill it, and a fragment has at most one word.
const TINY: u32 = 32;

/// Positions overflow within the first few records.
const NEAR_OVERFLOW: u64 = u64::MAX - 15;

fn push(writer: &mut Writer, value: u64) -> Result<(), ClaimError> {
    writer.push(&value.to_le_bytes())
}

fn read(reader: &mut Reader, seen: &mut Vec<u64>) -> u32 {
    reader
        .read(|fragment| seen.push(u64::from_le_bytes(fragment.try_into().unwrap())))
        .unwrap()
}

#[test]
fn what_is_published_is_read_whole_and_in_order() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(64).unwrap();
        let writing = thread::spawn(move || {
            for value in 1..=3 {
                push(&mut writer, value).unwrap();
                let _ = writer.publish();
            }
        });
        let mut seen = Vec::new();
        read(&mut reader, &mut seen);
        read(&mut reader, &mut seen);
        writing.join().unwrap();
        read(&mut reader, &mut seen);
        assert_eq!(seen, [1, 2, 3]);
    });
}

#[test]
fn a_full_ring_refuses_until_space_comes_back_also_when_positions_overflow() {
    loom::model(|| {
        let (mut writer, mut reader) = ring_from(TINY, NEAR_OVERFLOW).unwrap();
        let writing = thread::spawn(move || {
            let mut next = 1;
            for _attempt in 0..4 {
                match push(&mut writer, next) {
                    Ok(()) => next += 1,
                    Err(ClaimError::Full { needed, free }) => {
                        assert_eq!(needed, 16);
                        assert!(free < needed);
                        assert!(next > 2, "two records fit an empty ring");
                    }
                    Err(error) => panic!("{error}"),
                }
                let _ = writer.publish();
            }
            next
        });
        let mut seen = Vec::new();
        read(&mut reader, &mut seen);
        read(&mut reader, &mut seen);
        let next = writing.join().unwrap();
        read(&mut reader, &mut seen);
        assert_eq!(seen, (1..next).collect::<Vec<_>>());
    });
}

#[test]
fn a_record_that_would_straddle_the_end_goes_to_the_start() {
    loom::model(|| {
        // Records of 16 and 24 bytes in 64: the third would end at 64 + 8.
        let (mut writer, mut reader) = ring_from(64, NEAR_OVERFLOW).unwrap();
        let writing = thread::spawn(move || {
            let mut sent = 0;
            for len in [8, 16, 16, 16] {
                if let Ok(mut claim) = writer.claim(len) {
                    claim.fill(sent);
                    claim.commit();
                    sent += 1;
                    let _ = writer.publish();
                }
            }
            sent
        });
        let mut seen = Vec::new();
        for _ in 0..2 {
            take_firsts(&mut reader, &mut seen);
        }
        let sent = writing.join().unwrap();
        take_firsts(&mut reader, &mut seen);
        assert!(sent >= 2);
        assert_eq!(seen, (0..sent).collect::<Vec<_>>());
    });

    fn take_firsts(reader: &mut Reader, seen: &mut Vec<u8>) {
        reader
            .read(|fragment| {
                assert!(fragment.iter().all(|byte| *byte == fragment[0]));
                seen.push(fragment[0]);
            })
            .unwrap();
    }
}

#[test]
fn a_batch_is_seen_whole_or_not_at_all() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(64).unwrap();
        let writing = thread::spawn(move || {
            for value in 1..=3 {
                push(&mut writer, value).unwrap();
            }
            let _ = writer.publish();
        });
        let mut seen = Vec::new();
        let count = read(&mut reader, &mut seen);
        assert!(count == 0 || count == 3, "saw {count} of a batch of 3");
        writing.join().unwrap();
        read(&mut reader, &mut seen);
        assert_eq!(seen, [1, 2, 3]);
    });
}

#[test]
fn nothing_is_read_before_it_is_published() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(TINY).unwrap();
        let writing = thread::spawn(move || {
            push(&mut writer, 1).unwrap();
            writer
        });
        let mut seen = Vec::new();
        assert_eq!(read(&mut reader, &mut seen), 0);
        let mut writer = writing.join().unwrap();
        assert_eq!(read(&mut reader, &mut seen), 0);
        let _ = writer.publish();
        assert_eq!(read(&mut reader, &mut seen), 1);
    });
}

/// An eventfd as far as the ring is concerned: it remembers that it was rung,
/// and waiting uses that up. (loom's `unpark` is no model of it: it also lets a
/// `join` go on.)
#[derive(Clone)]
struct Doorbell(Arc<(Mutex<bool>, Condvar)>);

impl Doorbell {
    fn new() -> Doorbell {
        Doorbell(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn ring(&self, wake: Wake) {
        if wake == Wake::Needed {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_one();
        }
    }

    /// Sleeps. If the wake-up is lost, so is everybody: loom reports a deadlock.
    fn wait(&self) {
        let mut rung = self.0.0.lock().unwrap();
        while !*rung {
            rung = self.0.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

#[test]
fn a_sleeping_reader_misses_no_wake_up() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(64).unwrap();
        let doorbell = Doorbell::new();
        let reading = thread::spawn({
            let doorbell = doorbell.clone();
            move || {
                let mut seen = Vec::new();
                while seen.len() < 2 {
                    if read(&mut reader, &mut seen) == 0 && reader.try_sleep() == Sleep::Granted {
                        doorbell.wait();
                        reader.awake();
                    }
                }
                assert_eq!(seen, [1, 2]);
            }
        });
        for value in 1..=2 {
            push(&mut writer, value).unwrap();
            doorbell.ring(writer.publish());
        }
        reading.join().unwrap();
    });
}

#[test]
fn a_sleeping_writer_misses_no_wake_up() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(TINY).unwrap();
        for value in 1..=2 {
            push(&mut writer, value).unwrap();
        }
        let _ = writer.publish();
        let doorbell = Doorbell::new();
        let writing = thread::spawn({
            let doorbell = doorbell.clone();
            move || {
                while push(&mut writer, 3).is_err() {
                    if writer.try_sleep(8).unwrap() == Sleep::Granted {
                        doorbell.wait();
                        writer.awake();
                    }
                }
                writer
            }
        });
        let mut seen = Vec::new();
        // One at a time, so that the first space given back suffices.
        let mut batch = reader.batch().unwrap();
        let first = batch.next_fragment().unwrap().unwrap();
        seen.push(u64::from_le_bytes(first.try_into().unwrap()));
        drop(batch);
        doorbell.ring(reader.wake_writer());
        read(&mut reader, &mut seen);
        doorbell.ring(reader.wake_writer());
        drop(writing.join().unwrap());
        read(&mut reader, &mut seen);
        assert_eq!(seen, [1, 2, 3]);
    });
}

#[test]
fn both_ends_may_sleep_and_neither_is_lost() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(TINY).unwrap();
        let (filled, emptied) = (Doorbell::new(), Doorbell::new());
        let reading = thread::spawn({
            let (filled, emptied) = (filled.clone(), emptied.clone());
            move || {
                let mut seen = Vec::new();
                while seen.len() < 3 {
                    if read(&mut reader, &mut seen) > 0 {
                        emptied.ring(reader.wake_writer());
                    } else if reader.try_sleep() == Sleep::Granted {
                        filled.wait();
                        reader.awake();
                    }
                }
                assert_eq!(seen, [1, 2, 3]);
            }
        });
        for value in 1..=3 {
            while push(&mut writer, value).is_err() {
                if writer.try_sleep(8).unwrap() == Sleep::Granted {
                    emptied.wait();
                    writer.awake();
                }
            }
            filled.ring(writer.publish());
        }
        reading.join().unwrap();
    });
}

#[test]
fn a_sleeping_reader_learns_that_the_writer_left() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(TINY).unwrap();
        let doorbell = Doorbell::new();
        let reading = thread::spawn({
            let doorbell = doorbell.clone();
            move || {
                let mut seen = Vec::new();
                while !reader.is_closed() {
                    if read(&mut reader, &mut seen) == 0 && reader.try_sleep() == Sleep::Granted {
                        doorbell.wait();
                        reader.awake();
                    }
                }
                assert_eq!(seen, [1], "what was committed before the close is read");
            }
        });
        push(&mut writer, 1).unwrap();
        doorbell.ring(writer.close());
        reading.join().unwrap();
    });
}

#[test]
fn a_sleeping_writer_learns_that_the_reader_left() {
    loom::model(|| {
        let (mut writer, reader) = ring(TINY).unwrap();
        let doorbell = Doorbell::new();
        let writing = thread::spawn({
            let doorbell = doorbell.clone();
            move || {
                push(&mut writer, 1).unwrap();
                push(&mut writer, 2).unwrap();
                let _ = writer.publish();
                while !writer.is_closed() {
                    if writer.try_sleep(8).unwrap() == Sleep::Granted {
                        doorbell.wait();
                        writer.awake();
                    }
                }
            }
        });
        doorbell.ring(reader.close());
        writing.join().unwrap();
    });
}

#[test]
fn either_end_may_go_first_with_records_inside() {
    loom::model(|| {
        let (mut writer, mut reader) = ring(64).unwrap();
        let writing = thread::spawn(move || {
            push(&mut writer, 1).unwrap();
            let _ = writer.publish();
            // Committed only; dropping publishes it.
            push(&mut writer, 2).unwrap();
        });
        let mut seen = Vec::new();
        read(&mut reader, &mut seen);
        if reader.is_closed() {
            assert_eq!(seen, [1, 2], "closed only once all is read");
        }
        // The memory goes with whichever end goes last; loom reports a leak,
        // and an access that the freeing does not follow.
        drop(reader);
        writing.join().unwrap();
    });
}
