//! What becomes of the queues and of the call that works them: laws 6, 7, 9, 10 and 12.

use io_uring::opcode;

use super::support::{TestClient, eventually};
use super::*;
use crate::broker::BrokerConfig;
use crate::ring::io_uring::{OPERATIONS, completions_for};
use crate::ring::outgoing::send_static;
use crate::ring::{FILES_MAX, Ring, WRITES_PER_FILE_MAX};
use crate::worker::tests::Running;

#[test]
fn law_06_completions_kept_aside_are_fetched() {
    // Places for three completions: most find none.
    let setup = Setup {
        completions: 3,
        ..Setup::default()
    };
    for seed in 0..6 {
        let (record, overflows) = exchange(Setup { seed, ..setup }, Behaviour::default());
        assert!(record.overflowed > 5);
        assert!(overflows > 0, "it is counted");
    }
}

#[test]
fn law_06_there_is_room_for_every_completion() {
    // A receive and a cancellation, and a send or a wait for room, for every slot; a
    // completion per buffer; the writes of all files; the doorbell and a few cancellations
    // of the ring's own.
    let size = BrokerConfig::default().ring;
    let writes = FILES_MAX * WRITES_PER_FILE_MAX;
    let at_once = 3 * size.slots + u32::from(size.buffers) + writes + 64;
    let room = completions_for(size);
    assert!(room >= at_once, "{room} places for {at_once} completions");

    // And it is not more than that, whatever comes at once.
    let at_once = 3 * SIZE.slots as usize + usize::from(SIZE.buffers) + 64;
    for seed in 0..6 {
        let setup = Setup {
            seed,
            completions: at_once,
            ..Setup::default()
        };
        let (record, overflows) = exchange(setup, EVERYTHING);
        assert!(record.completions_max <= at_once);
        assert_eq!((record.overflowed, overflows), (0, 0));
    }
}

#[test]
fn law_07_a_full_submission_queue_loses_nothing() {
    let setup = Setup {
        submissions: 2,
        ..Setup::default()
    };
    for refusals in [&[][..], ENTER_FOR_THE_MOMENT] {
        let behaviour = Behaviour {
            enter_refusals: refusals,
            ..Behaviour::default()
        };
        let records = exchanges(setup, behaviour);
        assert!(records.iter().all(|record| record.queue_full > 0));
    }
}

#[test]
fn law_07_a_full_submission_queue_keeps_the_order() {
    let setup = Setup {
        submissions: 3,
        ..Setup::default()
    };
    let mut ring = ring(setup, Behaviour::default());
    let before = ring.kernel().recorded().words.len();
    let slots: Vec<Slot> = (0..SIZE.slots)
        .map(|index| Slot {
            index,
            generation: 1,
        })
        .collect();
    let mut peers = Vec::new();
    for &slot in &slots {
        let (ours, theirs) = pair();
        ring.attach(slot, ours).unwrap();
        ring.arm_receive(slot);
        peers.push(theirs);
    }
    ring.turn(Wait::No).unwrap();
    let words = &ring.kernel().recorded().words[before..];
    let begun: Vec<u32> = words
        .iter()
        .map(|&word| IoUringRing::operation_of(word).unwrap().1)
        .collect();
    assert_eq!(begun, (0..SIZE.slots).collect::<Vec<_>>());
}

/// What was submitted in an exchange of large pieces, with all liberties taken.
fn submitted() -> Record {
    let (record, _) = exchange(Setup::default(), EVERYTHING);
    // Pieces in one and in several parts, both of them large.
    assert!(record.operations[&opcode::SendMsg::CODE] > 0);
    let mut ring = ring(Setup::default(), Behaviour::default());
    let (ours, _theirs) = pair();
    let slot = Slot {
        index: 0,
        generation: 1,
    };
    ring.attach(slot, ours).unwrap();
    send_static(&mut ring, slot, &[forever(100_000)]);
    ring.turn(Wait::No).unwrap();
    let single = ring.kernel().recorded();
    assert_eq!(single.send_length_max, 100_000);
    let mut operations = record.operations;
    for (code, count) in single.operations {
        *operations.entry(code).or_default() += count;
    }
    Record {
        operations,
        entry_flags: record.entry_flags | single.entry_flags,
        ..Record::default()
    }
}

#[test]
fn law_09_nothing_is_sent_without_a_copy() {
    let submitted = submitted();
    for (code, count) in &submitted.operations {
        assert!(
            OPERATIONS.iter().any(|(listed, _)| listed == code),
            "operation {code} is not listed and was submitted {count} times"
        );
    }
    for zero_copy in [opcode::SendZc::CODE, opcode::SendMsgZc::CODE] {
        assert!(!submitted.operations.contains_key(&zero_copy));
        assert!(OPERATIONS.iter().all(|(listed, _)| *listed != zero_copy));
    }
}

#[test]
fn law_10_nothing_is_linked_and_nothing_is_flushed() {
    // Of an entry's flags: the descriptor is a registered one, the buffer a provided one.
    const FIXED_FILE: u8 = 1;
    const BUFFER_SELECT: u8 = 1 << 5;
    let submitted = submitted();
    let others = submitted.entry_flags & !(FIXED_FILE | BUFFER_SELECT);
    assert_eq!(others, 0, "no link, no drain");
    for file in [
        opcode::Fsync::CODE,
        opcode::SyncFileRange::CODE,
        opcode::WriteFixed::CODE,
    ] {
        assert!(!submitted.operations.contains_key(&file));
        assert!(OPERATIONS.iter().all(|(listed, _)| *listed != file));
    }
}

/// The real kernel as a witness: it is told to refuse everything that is not listed, and
/// a shard over it serves as well as any.
#[test]
fn law_09_and_10_a_kernel_that_allows_nothing_else_is_enough() {
    match IoUringRing::restricted(SIZE) {
        Ok(ring) => drop(ring),
        Err(refused) => {
            eprintln!("SKIPPED: no restricted io_uring here: {refused:?}");
            return;
        }
    }
    let shard = Running::start(|| IoUringRing::restricted(SIZE).unwrap());
    let mut clients: Vec<TestClient> = (0..4).map(|_| shard.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let name = format!("queue:/test/restricted-{number}");
        let producer = client.producer(&name);
        let consumer = client.consumer(&name);
        let bodies: Vec<Vec<u8>> = (0..100).map(|index| vec![7; 1 + index * 1_000]).collect();
        let sent = client.send_all(producer, &bodies);
        assert!(sent.iter().all(|completion| completion.result.is_ok()));
        assert!(
            client.receive(consumer, bodies.len()) == bodies,
            "bodies differ"
        );
    }
    drop(clients);
    eventually("every link has ended", || shard.stats.links() == 0);
    shard.stop();
}

#[test]
fn law_12_a_refused_enter_loses_nothing() {
    let refusing = Behaviour {
        enter_refusals: ENTER_FOR_THE_MOMENT,
        ..Behaviour::default()
    };
    let records = exchanges(Setup::default(), refusing);
    assert!(records.iter().all(|record| record.enters_refused > 10));
    assert!(records.iter().all(|record| record.enters_partial > 0));
}

#[test]
fn law_12_a_kernel_that_cannot_go_on_stops_the_shard() {
    let mut owner = Owner::new(ring(Setup::default(), Behaviour::default()));
    let ring = owner.connections.ring_mut();
    ring.kernel().break_down(libc::EBADF);
    for wait in [Wait::No, Wait::AtMost(None)] {
        let fault = ring.turn(wait).unwrap_err();
        assert_eq!(fault.operation, "io_uring_enter");
        assert_eq!(
            fault.to_string(),
            "the kernel refused io_uring_enter with EBADF; the shard cannot go on"
        );
    }
    // And the shard's thread ends with it, instead of serving nobody for ever.
    let ended = whole::run_over_a_broken_kernel(libc::EBADF);
    assert_eq!(ended.unwrap_err().errno, crate::sys::Errno(libc::EBADF));
}
