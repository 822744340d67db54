//! A shard's whole thread, without a door before it.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use courser_core::client::{Event, LinkEnd};
use courser_core::id::{Installation, ShardIndex};
use courser_core::shard::ShardConfig;

use super::*;
use crate::handoff::{Sender, handoff};
use crate::idle::IdleStrategy;
use crate::laws::support::{TestClient, eventually};
use crate::ring::RingSize;
use crate::ring::epoll::EpollRing;
use crate::ring::io_uring::IoUringRing;
use crate::ring::io_uring::simulated::Setup;
use crate::stats::ShardStats;
use crate::sys::{self, Vigilance};

/// A shard that runs on a thread of its own, over a ring of the test's choice.
pub(crate) struct Running {
    sender: Sender<Arrival>,
    departed: mpsc::Receiver<IpAddr>,
    control: Control,
    pub(crate) stats: ShardStats,
    thread: JoinHandle<Result<(), RingFault>>,
}

impl Running {
    /// Starts it; the ring is made on its thread, where it stays.
    pub(crate) fn start<R: Ring<Socket = OwnedFd, File = DiskFile>>(
        make: impl FnOnce() -> R + Send + 'static,
    ) -> Self {
        let (report, reported) = mpsc::channel();
        let (departures, departed) = mpsc::channel();
        let control = Control::default();
        let thread = {
            let control = control.clone();
            std::thread::spawn(move || {
                let ring = make();
                let shard = Shard::new(ShardConfig {
                    installation: Installation(1),
                    shard: ShardIndex(0),
                    memory: limits::MEMORY_MIN,
                    hash_seed: 1,
                    auto_create: true,
                })
                .unwrap();
                let stats = ShardStats::new(shard.chunks_free());
                let (sender, inbox) = handoff::<Arrival>(ring.doorbell().clone());
                let workers = Workers::alone(sender.clone(), departures);
                report.send((sender, stats.clone())).unwrap();
                let idle = Idle::new(IdleStrategy::Adaptive, Duration::from_micros(50));
                let publisher = Publisher::new(stats);
                Worker::new(
                    ring,
                    (shard, None),
                    inbox,
                    workers,
                    control,
                    idle,
                    publisher,
                )
                .run()
            })
        };
        let (sender, stats) = reported.recv().unwrap();
        Self {
            sender,
            departed,
            control,
            stats,
            thread,
        }
    }

    /// A client that the door let in: its hello was heard.
    pub(crate) fn client(&self) -> TestClient {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TestClient::connect(listener.local_addr().unwrap());
        client.flush();
        let (mut ours, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        ours.read_exact(&mut length).unwrap();
        let padded = u32::from_le_bytes(length).next_multiple_of(8) as usize;
        ours.read_exact(&mut vec![0; padded - length.len()])
            .unwrap();
        sys::prepare_stream(ours.as_fd(), Vigilance::PROMISED).unwrap();
        let let_in = LetIn {
            socket: ours.into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            attached: Attached::default(),
        };
        self.sender
            .post(Arrival::Connection(let_in))
            .map_err(drop)
            .unwrap();
        client
    }

    /// How it ended, once it did.
    pub(crate) fn ended(self) -> Result<(), RingFault> {
        eventually("the shard ends", || self.thread.is_finished());
        self.thread.join().unwrap()
    }

    pub(crate) fn stop(self) {
        self.control.stop();
        self.ended().unwrap();
    }
}

/// A connection that the door let in found no slot, was closed without a word, and its
/// client could not tell that from a broken network.
fn who_finds_no_slot_is_told_why<R: Ring<Socket = OwnedFd, File = DiskFile>>(
    make: impl FnOnce() -> R + Send + 'static,
) {
    let shard = Running::start(make);
    let opened = |event| matches!(event, Event::Opened { .. }).then_some(());
    let mut inside: Vec<TestClient> = (0..SIZE.slots).map(|_| shard.client()).collect();
    inside.iter_mut().for_each(|client| client.event(opened));
    let mut outside = shard.client();
    let end = outside.event(|event| match event {
        Event::Ended(end) => Some(end),
        _ => None,
    });
    assert!(
        matches!(
            end,
            LinkEnd::Farewell {
                refusal: Some(Refusal::TooManyLinks),
                ..
            }
        ),
        "{end:?}"
    );
    // The door hears of it and counts right.
    let deadline = Duration::from_secs(60);
    assert!(shard.departed.recv_timeout(deadline).is_ok());
    eventually("no trace of it is left", || {
        shard.stats.links() == u64::from(SIZE.slots)
    });
    drop(inside.pop());
    assert!(shard.departed.recv_timeout(deadline).is_ok());
    shard.client().event(opened);
    drop(inside);
    shard.stop();
}

const SIZE: RingSize = RingSize {
    slots: 3,
    buffers: 4,
    buffer_size: 4096,
};

#[test]
fn who_finds_no_slot_is_told_why_over_epoll() {
    who_finds_no_slot_is_told_why(|| EpollRing::new(SIZE).unwrap());
}

#[test]
fn who_finds_no_slot_is_told_why_over_io_uring() {
    who_finds_no_slot_is_told_why(|| IoUringRing::simulated(Setup::default(), SIZE).unwrap());
}
