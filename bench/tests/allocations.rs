//! What a message costs in steady state, counted exactly: allocations over all
//! threads of broker and client, and system calls of the broker.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use courser::{Client, ConnectOptions, Consumer, Producer, TrySendError};
use courser_bench::pin::{self, Cores};
use courser_core::counters::Counter;
use courser_transport::{Broker, BrokerConfig, Transport};

/// Messages that are counted, and messages before them, in which queues grow to
/// their use.
const MESSAGES: u64 = 100_000;
const WARM_UP: u64 = 20_000;

/// Messages of a client that sleeps for each, which is slow.
const SLEEPY_MESSAGES: u64 = MESSAGES / 5;

/// What may be allocated by whoever else lives in this process, such as the
/// test harness, while so many messages pass.
const ALLOCATIONS_MAX: u64 = MESSAGES / 10_000;

/// More than one enter in twenty turns with work would be one too many.
const ENTERS_PER_TURN_MAX: f64 = 1.05;

const BODY_BYTES: usize = 64;
const DEADLINE: Duration = Duration::from_secs(60);

/// The system's allocator, counting what any thread asks it for.
struct Counting;

/// Written by every thread, read by the test. A plain count: what it counts is
/// over when it is read, because every message is back.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator, which
// keeps the contract of `GlobalAlloc`; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The count is the process's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Allocations of all threads while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// A broker with a producer and a consumer of one queue on one connection.
struct Embedded {
    broker: Broker,
    producer: Producer,
    consumer: Consumer,
    _client: Client,
}

impl Embedded {
    fn start(transport: Transport, cores: Cores) -> Self {
        let broker = Broker::start(BrokerConfig {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            transport,
            cores: cores.broker.to_string().parse().unwrap(),
            memory: 256 << 20,
            ..BrokerConfig::default()
        })
        .unwrap();
        let client = Client::connect(broker.address()).unwrap();
        Self {
            producer: client.producer("queue:counted").create().unwrap(),
            consumer: client.consumer("queue:counted").create().unwrap(),
            _client: client,
            broker,
        }
    }

    /// Takes the place of its client by one that connects like this.
    fn connect_anew(&mut self, options: &ConnectOptions) {
        let client = options.connect(self.broker.address()).unwrap();
        self.producer = client.producer("queue:counted").create().unwrap();
        self.consumer = client.consumer("queue:counted").create().unwrap();
        self._client = client;
    }

    /// Passes so many messages through, each sent, completed, received and
    /// acknowledged, with up to `window` of them on their way, and does
    /// `besides` once for each.
    fn pass(&mut self, messages: u64, window: u64, mut besides: impl FnMut()) {
        let body = [0xA5_u8; BODY_BYTES].as_slice();
        let began = Instant::now();
        let (mut sent, mut completed, mut received) = (0, 0, 0);
        while completed < messages || received < messages {
            while sent < messages && sent - completed.min(received) < window {
                match self.producer.try_enqueue(body) {
                    Ok(_) => sent += 1,
                    Err(TrySendError::WouldBlock) => break,
                    Err(error) => panic!("{error}"),
                }
                besides();
            }
            while let Some(completion) = self.producer.poll() {
                completion.result.unwrap();
                completed += 1;
            }
            while let Some(message) = self.consumer.try_receive().unwrap() {
                assert_eq!(message.body().len(), BODY_BYTES);
                let position = message.position();
                self.consumer.acknowledge(position).unwrap();
                received += 1;
            }
            assert!(began.elapsed() < DEADLINE, "{completed}, {received}");
        }
        assert_eq!((completed, received), (messages, messages));
    }

    /// Passes messages through one after the other, each sent by a call that waits
    /// for its completion.
    fn send_and_receive(&mut self, messages: u64) {
        let body = [0xA5_u8; BODY_BYTES].as_slice();
        let began = Instant::now();
        for _ in 0..messages {
            self.producer.send(body).unwrap();
            let position = loop {
                if let Some(message) = self.consumer.try_receive().unwrap() {
                    break message.position();
                }
                assert!(began.elapsed() < DEADLINE, "a message is missing");
            };
            self.consumer.acknowledge(position).unwrap();
        }
    }

    fn read(&self, counter: Counter) -> u64 {
        self.broker.stats().map(|stats| stats.read(counter)).sum()
    }

    /// Waits until the broker sleeps, when its published counters are exact.
    fn rest(&self) {
        let sleeps = self.read(Counter::Sleeps);
        let began = Instant::now();
        while self.read(Counter::Sleeps) == sleeps {
            assert!(began.elapsed() < DEADLINE, "the broker does not sleep");
            std::thread::yield_now();
        }
    }
}

/// Runs `test` on the client's core, once over every transport of this machine.
fn over_every_transport(test: impl Fn(&mut Embedded) + Sync) {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let cores = Cores::choose().unwrap();
    for transport in [Transport::Auto, Transport::Epoll] {
        let mut embedded = Embedded::start(transport, cores);
        let shard = &embedded.broker.setting().shards[0];
        eprintln!("over {}", shard.ring);
        if transport == Transport::Auto
            && let Some(refused) = &shard.io_uring_refused
        {
            eprintln!("SKIPPED: {refused}");
            continue;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin::pin_current_thread(cores.client).unwrap();
                test(&mut embedded);
            });
        });
        drop(embedded.producer);
        drop(embedded.consumer);
        embedded.broker.stop();
    }
}

#[test]
fn a_message_costs_no_allocation_in_broker_or_client() {
    over_every_transport(|embedded| {
        for (how, window) in [("pipelined", 256), ("one in flight", 1)] {
            embedded.pass(WARM_UP, window, || {});
            let count = allocations(|| embedded.pass(MESSAGES, window, || {}));
            eprintln!("{how}: {count} allocations for {MESSAGES} messages");
            assert!(count <= ALLOCATIONS_MAX, "{how}: {count} allocations");
        }
    });
}

#[test]
fn a_blocking_send_costs_no_allocation() {
    over_every_transport(|embedded| {
        embedded.send_and_receive(WARM_UP);
        let count = allocations(|| embedded.send_and_receive(MESSAGES));
        eprintln!("blocking: {count} allocations for {MESSAGES} messages");
        assert!(count <= ALLOCATIONS_MAX, "{count} allocations");
    });
}

/// However slow the broker's answers are: a thread that waits for one may have to
/// sleep at the socket.
#[test]
fn a_blocking_send_that_sleeps_costs_no_allocation() {
    over_every_transport(|embedded| {
        embedded.connect_anew(&ConnectOptions::default().spin(Duration::ZERO));
        embedded.send_and_receive(WARM_UP);
        let count = allocations(|| embedded.send_and_receive(SLEEPY_MESSAGES));
        eprintln!("asleep: {count} allocations for {SLEEPY_MESSAGES} messages");
        assert!(count <= ALLOCATIONS_MAX, "{count} allocations");
    });
}

#[test]
fn an_allocation_for_each_message_would_be_counted() {
    over_every_transport(|embedded| {
        embedded.pass(WARM_UP, 256, || {});
        let besides = || drop(black_box(Box::new(0_u64)));
        let count = allocations(|| embedded.pass(MESSAGES, 256, besides));
        assert!(count >= MESSAGES, "{count} allocations");
    });
}

#[test]
fn allocations_of_other_threads_are_counted() {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let count = allocations(|| {
        let other = std::thread::spawn(|| {
            for _ in 0..1_000 {
                drop(black_box(Box::new(0_u64)));
            }
        });
        other.join().unwrap();
    });
    assert!(count >= 1_000, "{count} allocations");
}

#[test]
fn a_turn_with_work_costs_one_system_call() {
    over_every_transport(|embedded| {
        let is_epoll = embedded.broker.setting().shards[0]
            .ring
            .starts_with("epoll");
        if is_epoll {
            eprintln!("SKIPPED: over epoll every socket costs calls of its own");
            return;
        }
        // Beside these the connection is not alone and goes through the ring.
        let others = [(); 2].map(|()| Client::connect(embedded.broker.address()).unwrap());
        embedded.pass(WARM_UP, 256, || {});
        embedded.rest();
        let counters = [Counter::Enters, Counter::Turns, Counter::TurnsWithWork];
        let before = counters.map(|counter| embedded.read(counter));
        embedded.pass(MESSAGES, 256, || {});
        embedded.rest();
        let after = counters.map(|counter| embedded.read(counter));
        let [enters_at_work, turns, working] = [0, 1, 2].map(|index| after[index] - before[index]);
        #[expect(clippy::cast_precision_loss, reason = "counts of one test are small")]
        let per_turn = enters_at_work as f64 / working as f64;
        eprintln!(
            "{per_turn:.4} enters per turn with work: {enters_at_work} in {working} turns, \
             {MESSAGES} messages; {} turns without work",
            turns - working
        );
        assert!(working > 0);
        assert!(per_turn <= ENTERS_PER_TURN_MAX, "{per_turn}");
        drop(others);
    });
}
