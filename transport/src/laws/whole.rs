//! All laws at once, below connections and below a whole shard.

use super::support::{TestClient, eventually};
use super::*;
use crate::ring::RingFault;
use crate::worker::tests::Running;

#[test]
fn whatever_the_kernel_does_bytes_keep_their_order_and_slots_come_back() {
    let mut overflowed = 0;
    for seed in 0..40 {
        let setup = Setup {
            seed,
            submissions: 2 + usize::try_from(seed % 7).unwrap(),
            completions: 3 + usize::try_from(seed % 11).unwrap(),
            ..Setup::default()
        };
        let (record, _) = exchange(setup, EVERYTHING);
        assert!(record.refused > 0 && record.short > 0);
        overflowed += record.overflowed;
    }
    assert!(overflowed > 0);
}

pub(super) fn run_over_a_broken_kernel(errno: i32) -> Result<(), RingFault> {
    let shard = Running::start(move || {
        let mut ring = ring(Setup::default(), Behaviour::default());
        ring.kernel().break_down(errno);
        ring
    });
    shard.ended()
}

#[test]
fn whatever_the_kernel_does_messages_are_completed_in_order_and_delivered_once() {
    for seed in 0..4 {
        let setup = Setup {
            seed,
            submissions: 4,
            completions: 8,
            ..Setup::default()
        };
        // An attach that is refused would turn a client away.
        let behaviour = Behaviour {
            file_refusals: &[],
            ..EVERYTHING
        };
        let shard = Running::start(move || ring(setup, behaviour));
        let mut clients: Vec<TestClient> = (0..3).map(|_| shard.client()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            let name = format!("queue:/test/laws-{number}");
            let producer = client.producer(&name);
            let consumer = client.consumer(&name);
            let bodies: Vec<Vec<u8>> = (0..150_u32)
                .map(|index| {
                    let mut body = index.to_le_bytes().to_vec();
                    body.resize(4 + (index as usize * 97) % 9_000, 0x5a);
                    body
                })
                .collect();
            let completions = client.send_all(producer, &bodies);
            for (index, completion) in completions.iter().enumerate() {
                assert_eq!(completion.sequence.0, index as u64 + 1, "seed {seed}");
                assert!(completion.result.is_ok(), "seed {seed}: {completion:?}");
            }
            assert!(
                client.receive(consumer, bodies.len()) == bodies,
                "seed {seed}: bodies differ"
            );
        }
        drop(clients);
        eventually("every link has ended", || shard.stats.links() == 0);
        shard.stop();
    }
}
