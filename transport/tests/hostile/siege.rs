//! A broker under attack, with a witness who uses it as it is meant.
//!
//! The witness sends and receives from before the first attack until after the last,
//! and holds the broker to what it promises everybody: every outcome in order, every
//! message once and in order, nobody waits long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use courser_core::counters::Counter;
use courser_core::limits;
use courser_transport::{Broker, BrokerConfig, Transport};

use crate::support::{TestClient, config, eventually};

/// The longest that the witness may wait for one batch, on a machine that others use as
/// much as they can; how long it did wait is printed.
const GAP_MAX: Duration = Duration::from_secs(30);
/// Messages that the witness has on their way at once.
const BATCH: usize = 8;
/// Between two batches, so that the witness leaves processors to the attack.
const PACE: Duration = Duration::from_millis(1);

pub(crate) struct Siege {
    pub(crate) broker: Broker,
    witness: Witness,
    chunks_at_start: u64,
}

struct Witness {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Duration>>>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn witness(address: SocketAddr, stop: &AtomicBool) -> Vec<Duration> {
    let mut client = TestClient::connect(address);
    let producer = client.producer("queue:/witness/orders");
    let consumer = client.consumer("queue:/witness/orders");
    let mut waits = Vec::new();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let bodies: Vec<Vec<u8>> = (sent..sent + BATCH as u64)
            .map(|number| {
                let mut body = number.to_le_bytes().to_vec();
                body.resize(8 + usize::try_from(number * 37 % 2_000).unwrap(), 0x5a);
                body
            })
            .collect();
        let started = Instant::now();
        let completions = client.send_all(producer, &bodies);
        for (completion, number) in completions.iter().zip(sent..) {
            assert_eq!(completion.sequence.0, number + 1, "outcomes come in order");
            assert!(completion.result.is_ok(), "{completion:?}");
        }
        assert!(
            client.receive(consumer, BATCH) == bodies,
            "what was sent is received, once and in order"
        );
        assert!(client.client.poll_message(consumer).is_none());
        let waited = started.elapsed();
        assert!(waited < GAP_MAX, "the witness waited {waited:?}");
        waits.push(waited);
        sent += BATCH as u64;
        std::thread::sleep(PACE);
    }
    client.client.goodbye();
    client.flush();
    waits
}

impl Siege {
    fn begin(broker: Broker) -> Self {
        let chunks_at_start = chunks_free(&broker);
        let stop = Arc::new(AtomicBool::new(false));
        let (address, seen) = (broker.address(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || witness(address, &seen));
        let siege = Self {
            broker,
            witness: Witness {
                stop,
                thread: Some(thread),
            },
            chunks_at_start,
        };
        siege.hear_witness();
        siege
    }

    /// Waits until the witness got something done from here on.
    pub(crate) fn hear_witness(&self) {
        let before = read(&self.broker, Counter::MessagesSettled);
        eventually("the witness is heard", || {
            read(&self.broker, Counter::MessagesSettled) >= before + BATCH as u64
                || self
                    .witness
                    .thread
                    .as_ref()
                    .is_some_and(JoinHandle::is_finished)
        });
    }

    /// The attack is over: nobody is left, nothing is lost, and the memory is back but
    /// for the one chunk that each partition keeps open.
    fn lift(mut self, partitions: u64) {
        self.hear_witness();
        self.witness.stop.store(true, Ordering::Relaxed);
        let thread = self.witness.thread.take().unwrap();
        let mut waits = thread.join().expect("the witness is unharmed");
        waits.sort_unstable();
        eprintln!(
            "witness: {} batches, p99 {:?}, max {:?}",
            waits.len(),
            waits[waits.len() * 99 / 100],
            waits[waits.len() - 1]
        );
        eventually("no link is left", || {
            self.broker.stats().all(|stats| stats.links() == 0)
        });
        let wanted = self.chunks_at_start - partitions - 1;
        let started = Instant::now();
        while chunks_free(&self.broker) < wanted {
            assert!(
                started.elapsed() < GAP_MAX,
                "{} chunks are free, of {} at the start {wanted} at least should be",
                chunks_free(&self.broker),
                self.chunks_at_start
            );
            std::thread::yield_now();
        }
        self.broker.stop();
    }
}

/// Attacks a broker on every transport that this machine has, all at once. The attack
/// answers in how many partitions it left something.
pub(crate) fn besiege(attack: impl Fn(&Siege) -> u64 + Sync) {
    let mut brokers = Vec::new();
    for transport in [Transport::IoUring, Transport::Epoll] {
        let started = Broker::start(BrokerConfig {
            memory: limits::MEMORY_MIN,
            ..config(transport)
        });
        match started {
            Ok(broker) => brokers.push(broker),
            Err(error) if transport == Transport::IoUring => eprintln!("SKIPPED: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
    std::thread::scope(|scope| {
        for broker in brokers {
            scope.spawn(|| {
                let siege = Siege::begin(broker);
                let partitions = attack(&siege);
                siege.lift(partitions);
            });
        }
    });
}

pub(crate) fn read(broker: &Broker, counter: Counter) -> u64 {
    broker.stats().map(|stats| stats.read(counter)).sum()
}

pub(crate) fn chunks_free(broker: &Broker) -> u64 {
    broker.stats().map(|stats| stats.chunks_free()).sum()
}

/// Memory of this process that is resident, in bytes.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes * 1024
}
