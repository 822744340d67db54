//! Crowds at the real binary: thousands of connections that come, send and break, and
//! peers that read or write as slowly as they can. Somebody honest goes on beside them
//! and is to notice nothing but the machine's load.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../../transport/tests/hostile/peer.rs"]
mod peer;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use courser::{Client, Consumer, Message, Producer};
use courser_core::frame::control::Control;
use courser_core::limits;
use peer::{End, Peer, hello_bytes, message};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use support::{Broker, DEADLINE, on_both_transports_with, resident};

/// One storm at a time: each wants the processors and the descriptors for itself.
static ALONE: Mutex<()> = Mutex::new(());

const MEMORY: &str = "64MiB";
const MEMORY_BYTES: u64 = 64 << 20;
/// With less there is no credit for so many producers that do nothing with it.
const MEMORY_OF_STORM: &str = "256MiB";
const MEMORY_OF_STORM_BYTES: u64 = 256 << 20;
/// What the process takes beside its bound: code, stacks, the allocator's slack. Where
/// the kernel gives huge pages, each kind of small thing has one of 2 MiB to itself, so
/// that 4 MiB of tables may keep 20 resident.
const OVERHEAD: u64 = 32 << 20;

/// Somebody who uses the broker as it is meant.
struct Honest {
    producer: Producer,
    consumer: Consumer,
    sent: u64,
    /// Where its first message was stored, behind those of others before it.
    first: Option<u64>,
    longest: Duration,
}

impl Honest {
    const BATCH: u64 = 8;

    fn new(broker: &Broker) -> Self {
        let connected = Client::options()
            .timeout(DEADLINE)
            .connect(broker.address.as_str());
        let client = connected.unwrap_or_else(|error| panic!("turned away: {error}"));
        let producer = client.producer("queue:/honest/orders");
        Self {
            producer: producer.send_timeout(DEADLINE).create().unwrap(),
            consumer: client.consumer("queue:/honest/orders").create().unwrap(),
            sent: 0,
            first: None,
            longest: Duration::ZERO,
        }
    }

    /// Eight messages there and back, each once and in order, and so their outcomes.
    fn round(&mut self) {
        let started = Instant::now();
        let numbers = self.sent + 1..=self.sent + Self::BATCH;
        for number in numbers.clone() {
            let length = 1 + usize::try_from(number % 200).unwrap();
            let body = number.to_le_bytes().repeat(length);
            self.producer.try_enqueue(Message::new(body)).unwrap();
        }
        self.producer.write();
        for number in numbers.clone() {
            let completion = self.producer.poll_for(DEADLINE).unwrap();
            assert_eq!(completion.sequence.0, number, "outcomes in order");
            let receipt = completion.result.unwrap();
            let offset = receipt.position.offset.0;
            let first = *self.first.get_or_insert(offset);
            assert_eq!(offset, first + number - 1, "places in order");
        }
        for number in numbers {
            let received = self.consumer.receive(DEADLINE).unwrap().unwrap();
            assert_eq!(received.body()[..8], number.to_le_bytes());
            assert_eq!(received.delivery_count(), 1);
            self.consumer.acknowledge(received.position()).unwrap();
        }
        self.consumer.confirm().unwrap();
        self.sent += Self::BATCH;
        self.longest = self.longest.max(started.elapsed());
    }
}

/// Runs `storm` while somebody honest goes on.
fn beside_somebody_honest(broker: &Broker, storm: impl FnOnce()) -> Honest {
    let mut honest = Honest::new(broker);
    honest.round();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let goes_on = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                honest.round();
            }
            honest
        });
        /// Tells the honest one also if the storm ends in a panic.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ends = Over(&over);
        storm();
        drop(ends);
        goes_on.join().unwrap()
    })
}

/// A connection to the broker from an address of its own within loopback, so that
/// bounds for each address do not hide those for all.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    bind(&socket, &SocketAddrV4::new(from, 0)).unwrap();
    connect(&socket, &to).unwrap();
    socket.into()
}

/// Ends the connection by a reset, whatever is on its way.
fn reset(socket: TcpStream) {
    sockopt::set_socket_linger(socket.as_fd(), Some(Duration::ZERO)).unwrap();
    drop(socket);
}

/// Has this process, and the brokers that it starts from here on, use as many
/// descriptors as it may; whether that is enough is said.
fn may_have_descriptors(wanted: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let enough = most >= wanted;
    if enough {
        let raised = Rlimit {
            current: Some(limit.current.unwrap_or(u64::MAX).max(wanted)),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).unwrap();
    } else {
        eprintln!("SKIPPED: {wanted} descriptors are needed and {most} allowed");
    }
    enough
}

fn descriptors(pid: Pid) -> usize {
    let path = format!("/proc/{}/fd", pid.as_raw_nonzero());
    std::fs::read_dir(path).unwrap().count()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::yield_now();
    }
}

fn assert_resident_within(broker: &Broker, bound: u64, connections: u64, place: &str) {
    // What the allocator and the driver keep for a connection, beside the arena.
    const EACH: u64 = 4 << 10;
    let is = resident(broker.pid());
    let most = bound + OVERHEAD + connections * EACH;
    eprintln!("{place}: {} MiB resident", is >> 20);
    assert!(is <= most, "{place}: {is} bytes resident, at most {most}");
}

#[test]
fn five_thousand_connections_that_send_and_break_cost_somebody_honest_nothing() {
    const WAVES: u8 = 3;
    const THREADS: u8 = 4;
    const PER_THREAD: u16 = 420;
    let _alone = ALONE.lock();
    if !may_have_descriptors(6_000) {
        return;
    }
    on_both_transports_with(MEMORY_OF_STORM, |broker| {
        let address: SocketAddr = broker.address.parse().unwrap();
        let before = {
            let mut early = Honest::new(&broker);
            early.round();
            descriptors(broker.pid())
        };
        let honest = beside_somebody_honest(&broker, || {
            for wave in 0..WAVES {
                let started = Instant::now();
                thread::scope(|scope| {
                    let threads: Vec<_> = (0..THREADS)
                        .map(|number| scope.spawn(move || crowd(address, wave, number, PER_THREAD)))
                        .collect();
                    let all: Vec<Peer> = threads
                        .into_iter()
                        .flat_map(|thread| thread.join().unwrap())
                        .collect();
                    assert_eq!(all.len(), usize::from(PER_THREAD) * usize::from(THREADS));
                    assert!(
                        descriptors(broker.pid()) > all.len(),
                        "all are there at once"
                    );
                    assert_resident_within(
                        &broker,
                        MEMORY_OF_STORM_BYTES,
                        all.len() as u64,
                        "in the storm",
                    );
                    for peer in all {
                        reset(peer.socket);
                    }
                });
                eprintln!("wave {wave} took {:?}", started.elapsed());
            }
        });
        eprintln!(
            "{} sent, the longest round {:?}",
            honest.sent, honest.longest
        );
        drop(honest);
        eventually("every descriptor is given back", || {
            descriptors(broker.pid()) < before
        });
        // Each of the crowd had one outcome, so each message was stored; it is there.
        let stored = u64::from(WAVES) * u64::from(THREADS) * u64::from(PER_THREAD);
        let row = broker.wait_until("queue:/storm/orders", |row| row["producers"] == 0);
        assert_eq!(row["stored"], stored);
        assert_eq!(row["unsettled"], stored);
        let line = format!("receive /storm/orders --count {stored} --timeout 120s");
        let ended = broker.courser(&line);
        assert_eq!(ended.status, Some(0), "{:?}", ended.stderr);
        assert_resident_within(&broker, MEMORY_OF_STORM_BYTES, 0, "after the storm");
    });
}

/// So many connections, each with a session, a producer and one send that is answered.
fn crowd(address: SocketAddr, wave: u8, thread: u8, count: u16) -> Vec<Peer> {
    (0..count)
        .map(|number| {
            let [low, high] = number.to_le_bytes();
            let from = Ipv4Addr::new(127, 1 + wave * 8 + thread, high + 1, low % 16 + 1);
            let mut peer = Peer::on(connect_from(from, address)).greeted();
            let mut producer = peer.producer("queue:/storm/orders");
            peer.write(&message(&mut producer, b"storm", |_| {}));
            peer.answer(|control| matches!(control, Control::Completions(..)).then_some(()));
            peer
        })
        .collect()
}

/// Thousands who connect, some with a part of a hello, and break.
#[test]
fn strangers_that_connect_and_break_leave_nothing() {
    let _alone = ALONE.lock();
    on_both_transports_with(MEMORY, |broker| {
        let address: SocketAddr = broker.address.parse().unwrap();
        let before = descriptors(broker.pid());
        let honest = beside_somebody_honest(&broker, || {
            for number in 0..4_000_u16 {
                let [low, high] = number.to_le_bytes();
                let socket = connect_from(Ipv4Addr::new(127, 99, high, low), address);
                let hello = hello_bytes();
                let part = usize::from(number) % (hello.len() + 8);
                // The broker may be quicker with its farewell than this one.
                let _said = (&socket).write_all(&[&hello, &[7; 8][..]].concat()[..part]);
                if number % 2 == 0 {
                    reset(socket);
                }
            }
        });
        eprintln!(
            "{} sent, the longest round {:?}",
            honest.sent, honest.longest
        );
        drop(honest);
        eventually("every descriptor is given back", || {
            descriptors(broker.pid()) <= before
        });
        assert_resident_within(&broker, MEMORY_BYTES, 0, "after the strangers");
    });
}

/// Hellos a byte at a time from many addresses, more than there are places for
/// strangers; whoever comes with a whole one gets in.
#[test]
fn slow_hellos_keep_nobody_out() {
    const SLOW: usize = 1_200;
    let _alone = ALONE.lock();
    if !may_have_descriptors(4_000) {
        return;
    }
    on_both_transports_with(MEMORY, |broker| {
        let address: SocketAddr = broker.address.parse().unwrap();
        let hello = hello_bytes();
        let mut slow: Vec<(TcpStream, usize)> = Vec::new();
        let (mut came, mut told) = (0_u32, 0);
        for round in 0..12 {
            while slow.len() < SLOW {
                let [low, middle, ..] = came.to_le_bytes();
                let socket = connect_from(Ipv4Addr::new(127, 7, middle, low), address);
                socket.set_nonblocking(true).unwrap();
                slow.push((socket, 0));
                came += 1;
            }
            // One byte each; those who were turned away are replaced.
            slow.retain_mut(|(socket, said)| {
                let mut answer = [0; 256];
                if !matches!(socket.read(&mut answer), Err(error) if error.kind() == ErrorKind::WouldBlock)
                {
                    told += 1;
                    return false;
                }
                *said += 1;
                *said < hello.len() && socket.write_all(&hello[*said - 1..*said]).is_ok()
            });
            let mut honest = Honest::new(&broker);
            honest.round();
            if round % 4 == 0 {
                assert_resident_within(&broker, MEMORY_BYTES, SLOW as u64, "among the slow");
            }
        }
        eprintln!("{came} came, {told} were turned away before they were through");
        assert!(told > 0, "more came than there are places for");
        drop(slow);
        eventually("the slow are gone", || {
            broker.stats()["counters"]["links_opened"].is_u64() && descriptors(broker.pid()) < 64
        });
    });
}

/// Consumers that never read, that read a byte now and then, that are many and want
/// everything; and somebody on the same topic who reads as he should.
#[test]
fn slow_readers_cost_their_topic_and_nobody_else() {
    const DRIPS: usize = 40;
    const MANY: usize = 300;
    let _alone = ALONE.lock();
    on_both_transports_with(MEMORY, |broker| {
        let address: SocketAddr = broker.address.parse().unwrap();
        let base = descriptors(broker.pid());
        let honest = beside_somebody_honest(&broker, || {
            // One that never reads, with many consumers that all want everything.
            let mut deaf = Peer::stranger(address).greeted();
            for _ in 0..MANY {
                deaf.consumer("topic:/slow/quotes", u64::MAX, u64::MAX);
            }
            let mut drips: Vec<Peer> = (0..DRIPS)
                .map(|_| {
                    let mut peer = Peer::stranger(address).greeted();
                    peer.consumer("topic:/slow/quotes", u64::MAX, u64::MAX);
                    peer
                })
                .collect();
            // Somebody sends until the topic has had enough, which costs the sender, and
            // each time that he did not get further the drips read a byte.
            let client = Client::options()
                .timeout(DEADLINE)
                .connect(broker.address.as_str())
                .unwrap();
            let producer = client.producer("topic:/slow/quotes");
            let producer = producer
                .send_timeout(Duration::from_secs(60))
                .create()
                .unwrap();
            let body = vec![0x77_u8; 3_000];
            let started = Instant::now();
            let mut sent = 0;
            // Longer than a peer may take no byte, so that the deaf one is let go; the
            // drips take one byte at least every few milliseconds.
            while started.elapsed() < limits::STALL_TIMEOUT + Duration::from_secs(2) {
                for _ in 0..64 {
                    if producer.try_send(Message::new(body.clone())).is_ok() {
                        sent += 1;
                    }
                }
                while producer.poll_for(Duration::from_millis(1)).is_some() {}
                for drip in &mut drips {
                    let mut byte = [0];
                    drip.socket.set_nonblocking(true).unwrap();
                    // There may be none yet.
                    let _count = drip.socket.read(&mut byte);
                }
                let is = resident(broker.pid());
                assert!(is <= MEMORY_BYTES + OVERHEAD, "{is} bytes resident");
            }
            assert_resident_within(&broker, MEMORY_BYTES, DRIPS as u64, "among slow readers");
            assert!(sent > 1_000, "the topic took {sent}");
            // The deaf one was told nothing, since it did not read, and is gone; what it
            // was sent before it can still read.
            deaf.socket.set_nonblocking(false).unwrap();
            assert_eq!(deaf.end(DEADLINE), End::Closed);
            for drip in drips {
                reset(drip.socket);
            }
        });
        eprintln!(
            "{} sent, the longest round {:?}",
            honest.sent, honest.longest
        );
        drop(honest);
        eventually("every descriptor is given back", || {
            descriptors(broker.pid()) <= base
        });
        // With its readers gone the topic keeps nothing, and serves whoever comes.
        broker.wait_until("topic:/slow/quotes", |row| {
            row["consumers"] == 0 && row["unsettled"] == 0
        });
        let mut fresh = Peer::stranger(address).greeted();
        fresh.consumer("topic:/slow/quotes", 10, 10_000);
        let mut producer = fresh.producer("topic:/slow/quotes");
        fresh.write(&message(&mut producer, b"fresh", |_| {}));
        let count = fresh.answer(|control| match control {
            Control::Delivery(fields, _) => Some(fields.count.get()),
            _ => None,
        });
        assert_eq!(count, 1);
        fresh.assert_goes_on();
    });
}
