//! All laws at once, below connections and below a whole shard.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::mpsc;

use courser_core::id::{Installation, ShardIndex};
use courser_core::shard::{Attached, Shard, ShardConfig};

use super::support::{TestClient, eventually};
use super::*;
use crate::handoff::{Sender, handoff};
use crate::idle::{Idle, IdleStrategy};
use crate::ring::{Ring, RingFault};
use crate::stats::{Publisher, ShardStats};
use crate::worker::{Control, LetIn, Worker};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

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

/// A shard over a simulated kernel, on a thread of its own.
struct Simulated {
    sender: Sender<LetIn>,
    control: Control,
    stats: ShardStats,
    thread: std::thread::JoinHandle<Result<(), RingFault>>,
}

impl Simulated {
    fn start(setup: Setup, prepare: impl FnOnce(&mut IoUringRing) + Send + 'static) -> Self {
        let (report, reported) = mpsc::channel();
        let control = Control::default();
        let thread = {
            let control = control.clone();
            std::thread::spawn(move || {
                // The ring stays on the thread that made it.
                let mut ring = IoUringRing::simulated(setup, SIZE).unwrap();
                prepare(&mut ring);
                let shard = Shard::new(ShardConfig {
                    installation: Installation(1),
                    shard: ShardIndex(0),
                    memory: 128 << 20,
                    hash_seed: setup.seed,
                })
                .unwrap();
                let stats = ShardStats::new(shard.chunks_free());
                let (sender, inbox) = handoff::<LetIn>(ring.doorbell().clone());
                report.send((sender, stats.clone())).unwrap();
                let (departures, _departed) = mpsc::channel();
                Worker::new(
                    ring,
                    shard,
                    inbox,
                    departures,
                    control,
                    Idle::new(IdleStrategy::Adaptive, Duration::from_micros(50)),
                    Publisher::new(stats),
                )
                .run()
            })
        };
        let (sender, stats) = reported.recv().unwrap();
        Self {
            sender,
            control,
            stats,
            thread,
        }
    }

    /// A client whose hello was heard by the door.
    fn client(&self) -> TestClient {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TestClient::connect(listener.local_addr().unwrap());
        client.flush();
        let (mut ours, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        ours.read_exact(&mut length).unwrap();
        let padded = u32::from_le_bytes(length).next_multiple_of(8) as usize;
        ours.read_exact(&mut vec![0; padded - length.len()])
            .unwrap();
        let let_in = LetIn {
            socket: ours.into(),
            address: HERE,
            attached: Attached::default(),
        };
        self.sender.post(let_in).map_err(drop).unwrap();
        client
    }
}

pub(super) fn run_over_a_broken_kernel(errno: i32) -> Result<(), RingFault> {
    let shard = Simulated::start(Setup::default(), move |ring| {
        ring.kernel().break_down(errno);
    });
    shard.thread.join().unwrap()
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
        let shard = Simulated::start(setup, |ring| {
            // An attach that is refused would lose a client on purpose.
            ring.kernel().behave(Behaviour {
                file_refusals: &[],
                ..EVERYTHING
            });
        });
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
        shard.control.stop();
        shard.thread.join().unwrap().unwrap();
    }
}
