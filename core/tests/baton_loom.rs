//! Loom models of the baton and the ring of values: every interleaving within the
//! preemption bound, over the code that ships. `scripts/loom` runs them, and
//! demands that they fail when an ordering is weakened.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::let_underscore_must_use)]

use courser_core::ring::{Baton, Holder, ValueReader, ValueWriter, values};
use loom::sync::Arc;
use loom::thread;

/// What is driven: rings to drain, and what came out of each.
struct Driven {
    readers: Vec<ValueReader<u32>>,
    seen: Vec<Vec<u32>>,
}

impl Driven {
    fn drain(&mut self) {
        for (reader, seen) in self.readers.iter_mut().zip(&mut self.seen) {
            while let Some(value) = reader.pop() {
                seen.push(value);
            }
        }
    }
}

fn driven(rings: usize) -> (Vec<ValueWriter<u32>>, Arc<Baton<Driven>>) {
    let (writers, readers): (Vec<_>, Vec<_>) = (0..rings).map(|_| values(4)).unzip();
    let seen = readers.iter().map(|_| Vec::new()).collect();
    (writers, Arc::new(Baton::new(Driven { readers, seen })))
}

/// Drains until nobody has left a mark.
fn drive(mut holder: Holder<'_, Driven>) {
    loop {
        holder.drain();
        match holder.release() {
            Ok(()) => return,
            Err(still) => holder = still,
        }
    }
}

fn push(writer: &mut ValueWriter<u32>, baton: &Baton<Driven>, value: u32) {
    writer.push(value).unwrap();
    if let Some(holder) = baton.take_or_mark() {
        drive(holder);
    }
}

#[test]
fn whoever_pushed_and_went_away_is_served() {
    loom::model(|| {
        let (writers, baton) = driven(2);
        let pushing: Vec<_> = (1..)
            .zip(writers)
            .map(|(first, mut writer)| {
                let baton = Arc::clone(&baton);
                thread::spawn(move || {
                    push(&mut writer, &baton, first);
                    push(&mut writer, &baton, first + 10);
                })
            })
            .collect();
        for thread in pushing {
            thread.join().unwrap();
        }
        // Nobody drains any more: what is not seen by now was left.
        let holder = baton.try_take().expect("everybody has gone");
        assert_eq!(holder.seen, [[1, 11], [2, 12]]);
        drop(holder);
    });
}

#[test]
fn a_driver_that_was_there_before_serves_those_who_come() {
    loom::model(|| {
        let (mut writers, baton) = driven(1);
        let mut writer = writers.pop().unwrap();
        let holder = baton.try_take().unwrap();
        let pushing = thread::spawn({
            let baton = Arc::clone(&baton);
            move || push(&mut writer, &baton, 1)
        });
        drive(holder);
        pushing.join().unwrap();
        let holder = baton.try_take().expect("everybody has gone");
        assert_eq!(holder.seen, [[1]]);
        drop(holder);
    });
}

#[test]
fn one_at_a_time_has_the_value_and_sees_what_the_one_before_did() {
    loom::model(|| {
        let baton = Arc::new(Baton::new(0));
        let add = |baton: &Baton<u32>| {
            let Some(mut holder) = baton.try_take() else {
                return 0;
            };
            *holder += 1;
            assert!(holder.release().is_ok(), "nobody leaves a mark");
            1
        };
        let adding: Vec<_> = (0..2)
            .map(|_| {
                let baton = Arc::clone(&baton);
                thread::spawn(move || add(&baton))
            })
            .collect();
        let mut added = add(&baton);
        for thread in adding {
            added += thread.join().unwrap();
        }
        assert!(added > 0);
        assert_eq!(*baton.try_take().unwrap(), added);
    });
}

#[test]
fn a_holder_that_dies_leaves_the_mark_to_the_next() {
    loom::model(|| {
        let (mut writers, baton) = driven(1);
        let mut writer = writers.pop().unwrap();
        let holder = baton.try_take().unwrap();
        let pushing = thread::spawn({
            let baton = Arc::clone(&baton);
            move || push(&mut writer, &baton, 1)
        });
        // As while unwinding: nothing is drained.
        drop(holder);
        pushing.join().unwrap();
        drive(baton.take_or_mark().expect("everybody has gone"));
        let holder = baton.try_take().expect("free, and without a mark");
        assert_eq!(holder.seen, [[1]]);
        drop(holder);
    });
}

#[test]
fn values_are_read_whole_and_in_order_and_given_back_when_there_is_no_room() {
    loom::model(|| {
        let (mut writer, mut reader) = values(2);
        let writing = thread::spawn(move || {
            let mut next = 1;
            for _ in 0..4 {
                match writer.push(Box::new(next)) {
                    Ok(()) => next += 1,
                    Err(back) => assert_eq!(*back, next),
                }
            }
            next
        });
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.extend(reader.pop().map(|value| *value));
        }
        let next = writing.join().unwrap();
        seen.extend(std::iter::from_fn(|| reader.pop()).map(|value| *value));
        assert!(next > 2, "two fit an empty ring");
        assert_eq!(seen, (1..next).collect::<Vec<_>>());
    });
}
