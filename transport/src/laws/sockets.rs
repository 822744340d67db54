//! What becomes of operations on sockets: laws 1 to 5, 8 and 11.

use std::os::fd::AsRawFd;

use super::*;
use crate::ring::{Completion, Ring};

#[test]
fn a_kernel_on_its_best_day_takes_no_liberty() {
    for record in exchanges(Setup::default(), Behaviour::default()) {
        assert_eq!(
            (record.short, record.refused, record.ended_early),
            (0, 0, 0)
        );
        assert_eq!((record.late_max, record.overflowed), (0, 0));
        assert_eq!((record.enters_refused, record.enters_partial), (0, 0));
    }
}

#[test]
fn law_01_completions_come_in_any_order_and_late() {
    let late = Behaviour {
        late: 300,
        cancels_race: true,
        ..Behaviour::default()
    };
    let records = exchanges(Setup::default(), late);
    let latest = STEP * u32::try_from(most(&records, |record| record.late_max)).unwrap();
    assert!(latest > Duration::from_secs(2), "{latest:?} is not late");
}

#[test]
fn law_02_sends_and_receives_take_any_length() {
    let short = Behaviour {
        short: true,
        ..Behaviour::default()
    };
    let records = exchanges(Setup::default(), short);
    assert!(records.iter().all(|record| record.short > 100));
}

#[test]
fn law_03_a_refusal_for_the_moment_is_no_end() {
    let refusing = Behaviour {
        refusals: FOR_THE_MOMENT,
        ..Behaviour::default()
    };
    let records = exchanges(Setup::default(), refusing);
    assert!(records.iter().all(|record| record.refused > 10));
}

#[test]
fn law_04_a_multishot_ends_at_any_time_and_is_armed_once() {
    let ending = Behaviour {
        ends_early: true,
        ..Behaviour::default()
    };
    // That none is armed twice, the kernel itself asserts.
    let records = exchanges(Setup::default(), ending);
    assert!(records.iter().all(|record| record.ended_early > 5));
}

#[test]
fn law_04_a_watch_over_the_doorbell_that_ends_is_armed_again() {
    let ending = Behaviour {
        ends_early: true,
        ..Behaviour::default()
    };
    let mut ring = ring(Setup::default(), ending);
    for round in 0..20 {
        let bell = ring.doorbell().clone();
        bell.announce_sleep();
        bell.ring();
        let mut woken = false;
        for _ in 0..5 {
            ring.turn(Wait::No).unwrap();
            while let Some(completion) = ring.next() {
                woken |= matches!(completion, Completion::Woken);
            }
        }
        assert!(woken, "the bell was not heard in round {round}");
    }
    assert!(ring.kernel().recorded().ended_early > 2);
}

#[test]
fn law_05_an_empty_ring_of_buffers_recovers() {
    // Five talkative peers at a time, four buffers.
    for seed in 0..6 {
        let setup = Setup {
            seed,
            ..Setup::default()
        };
        let mut exchange = Exchange::new(setup, Behaviour::default());
        for _ in 0..5 {
            exchange.open(60_000, 100, Parting::Theirs);
        }
        let (record, _) = exchange.finish();
        assert!(record.out_of_buffers > 3);
    }
}

#[test]
fn law_08_a_cancel_races_success_and_no_buffer_is_lost() {
    let racing = Behaviour {
        cancels_race: true,
        ..Behaviour::default()
    };
    let setup = Setup::default();
    let mut owner = Owner::new(ring(setup, racing));
    let mut peers = Vec::new();
    for round in 0..60 {
        let (ours, mut theirs) = pair();
        let slot = owner.open(ours, &[]).unwrap();
        owner.turn(Monotonic(0), Wait::No);
        // There is something to receive when the cancellation comes.
        theirs.write_all(&[7; 5_000]).unwrap();
        owner.connections.abandon(slot);
        peers.push(theirs);
        for _ in 0..5 {
            owner.turn(Monotonic(0), Wait::No);
        }
        assert_eq!(owner.ended.len(), round + 1, "it ends");
    }
    let kernel = owner.connections.ring_mut().kernel();
    let record = kernel.recorded();
    assert!(record.beaten_cancels > 5 && record.failed_with_buffer > 5);
    assert_eq!(kernel.buffers_provided(), usize::from(SIZE.buffers));
}

#[test]
fn law_11_a_descriptor_is_closed_after_its_last_completion() {
    let late = Behaviour {
        late: 40,
        ..Behaviour::default()
    };
    for seed in 0..20 {
        let setup = Setup {
            seed,
            ..Setup::default()
        };
        let mut owner = Owner::new(ring(setup, late));
        let (ours, mut theirs) = pair();
        let number = ours.as_raw_fd();
        let slot = owner.open(ours, forever(100)).unwrap();
        owner.turn(Monotonic(0), Wait::No);
        owner.connections.abandon(slot);
        let mut turns = 0;
        while owner.ended.is_empty() {
            assert!(
                owner.connections.ring_mut().kernel().begun() > 1,
                "seed {seed}: it has not ended, so something is in flight"
            );
            owner.turn(Monotonic(0), Wait::No);
            turns += 1;
            assert!(turns < 200, "seed {seed}: it does not end");
        }
        assert_eq!(
            owner.connections.ring_mut().kernel().begun(),
            1,
            "seed {seed}: it has ended, so nothing is in flight"
        );
        let mut rest = Vec::new();
        theirs.set_nonblocking(false).unwrap();
        theirs.read_to_end(&mut rest).unwrap();
        assert!(forever(100).starts_with(&rest), "descriptor {number}");
    }
}

#[test]
fn law_11_a_descriptor_used_again_is_another_connection() {
    let late = Behaviour {
        late: 40,
        ..Behaviour::default()
    };
    let mut owner = Owner::new(ring(Setup::default(), late));
    let turns_until = |owner: &mut Owner<IoUringRing>,
                       done: &dyn Fn(&Owner<IoUringRing>) -> bool| {
        let mut turns = 0;
        while !done(owner) {
            owner.turn(Monotonic(0), Wait::No);
            turns += 1;
            assert!(turns < 1_000, "no progress");
        }
    };
    let mut former: Vec<Slot> = Vec::new();
    for round in 0..30_u8 {
        let (ours, mut theirs) = pair();
        // The lowest number is given out again, so it is most often the last one's.
        let slot = owner.open(ours, forever(10)).unwrap();
        assert_eq!(
            slot.index,
            former.last().map_or(slot.index, |slot| slot.index)
        );
        assert!(!former.contains(&slot), "a tenancy of its own");
        // What was meant for its predecessors does not concern it.
        for &stale in &former {
            owner.connections.want(stale);
            owner.connections.leave(Monotonic(0), stale);
            owner.connections.abandon(stale);
        }
        theirs.write_all(&[round; 50]).unwrap();
        turns_until(&mut owner, &|owner| {
            owner.mirrors[&slot].heard.len() == 50 && owner.mirrors[&slot].taken == 10
        });
        assert_eq!(owner.mirrors[&slot].heard, [round; 50]);
        drop(theirs);
        let ends = former.len() + 1;
        turns_until(&mut owner, &|owner| owner.ended.len() == ends);
        former.push(slot);
    }
}
