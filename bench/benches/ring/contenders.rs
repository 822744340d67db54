//! The same work over Courser's ring, over `rtrb`'s, and over one of indices into a
//! pool of bodies: round trips between two pinned threads, and bursts in one
//! direction.
//!
//! Both rings have 64 KiB for data and carry 64-byte messages. Sequence numbers
//! travel in the messages and are checked, so a ring that loses or repeats one
//! measures nothing.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use courser_core::ring::{Wake, ring};
use rtrb::chunks::ChunkError;
use rtrb::{Consumer, RingBuffer};

/// Bytes of a message.
pub(crate) const MESSAGE_SIZE: usize = 64;
/// Bytes that a message takes in Courser's ring, with the word before it.
pub(crate) const RECORD_SIZE: usize = MESSAGE_SIZE + 8;
/// Bytes of each ring.
pub(crate) const CAPACITY: u32 = 64 * 1024;

type Message = [u8; MESSAGE_SIZE];

/// The two CPUs, one for each end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    /// The caller's.
    pub(crate) here: CoreId,
    /// The other thread's.
    pub(crate) there: CoreId,
}

impl Cpus {
    /// The first two CPUs this process may use, or none if there is one.
    pub(crate) fn first_two() -> Option<Cpus> {
        match core_affinity::get_core_ids()?.as_slice() {
            [here, there, ..] => Some(Cpus {
                here: *here,
                there: *there,
            }),
            _ => None,
        }
    }
}

fn message<const SIZE: usize>(sequence: u64) -> [u8; SIZE] {
    let mut message = [0; SIZE];
    message[..8].copy_from_slice(&sequence.to_le_bytes());
    message
}

#[inline]
fn sequence(message: &[u8]) -> u64 {
    u64::from_le_bytes(*message.first_chunk().expect("a message has 64 bytes"))
}

/// Runs `there` pinned beside `here`, pinned too, and returns what `here` took.
fn pair(cpus: Cpus, there: impl FnOnce() + Send, here: impl FnOnce()) -> Duration {
    thread::scope(|scope| {
        let peer = scope.spawn(move || {
            assert!(core_affinity::set_for_current(cpus.there));
            there();
        });
        assert!(core_affinity::set_for_current(cpus.here));
        let start = Instant::now();
        here();
        peer.join().expect("the peer checks what it receives");
        start.elapsed()
    })
}

/// One message there and back, `rounds` times, over Courser's rings.
pub(crate) fn courser_round_trips(cpus: Cpus, rounds: u64) -> Duration {
    let (mut ping_in, mut ping_out) = ring(CAPACITY).expect("a power of two");
    let (mut pong_in, mut pong_out) = ring(CAPACITY).expect("a power of two");
    pair(
        cpus,
        move || {
            let mut count = 0;
            while count < rounds {
                ping_out
                    .read(|bytes| {
                        let bytes: &Message = bytes.try_into().expect("64 bytes came");
                        pong_in.push(bytes).expect("one message is in flight");
                        count += 1;
                    })
                    .expect("the writer is sound");
                let _wake = pong_in.publish();
                spin_loop();
            }
        },
        move || {
            for round in 0..rounds {
                ping_in
                    .push(&message::<MESSAGE_SIZE>(round))
                    .expect("one message is in flight");
                let _wake = ping_in.publish();
                let mut came = 0;
                while came == 0 {
                    spin_loop();
                    came = pong_out
                        .read(|bytes| assert_eq!(sequence(bytes), round))
                        .expect("the writer is sound");
                }
            }
        },
    )
}

/// One message there and back, `rounds` times, over `rtrb`.
pub(crate) fn rtrb_round_trips(cpus: Cpus, rounds: u64) -> Duration {
    let slots = CAPACITY as usize / MESSAGE_SIZE;
    let (mut ping_in, mut ping_out) = RingBuffer::<Message>::new(slots);
    let (mut pong_in, mut pong_out) = RingBuffer::<Message>::new(slots);
    pair(
        cpus,
        move || {
            let mut count = 0;
            while count < rounds {
                if let Ok(message) = ping_out.pop() {
                    pong_in.push(message).expect("one message is in flight");
                    count += 1;
                }
                spin_loop();
            }
        },
        move || {
            for round in 0..rounds {
                ping_in
                    .push(message(round))
                    .expect("one message is in flight");
                loop {
                    spin_loop();
                    if let Ok(message) = pong_out.pop() {
                        assert_eq!(sequence(&message), round);
                        break;
                    }
                }
            }
        },
    )
}

/// Whether Courser's writer asks after each batch if the reader sleeps, which
/// costs a fence and has no counterpart in `rtrb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WakeCheck {
    /// As towards a reader that spins.
    Left,
    /// As towards a reader that may sleep.
    Done,
}

/// `messages` one way in batches of `batch`, over Courser's ring: each batch is
/// published once and read in place.
pub(crate) fn courser_burst(cpus: Cpus, messages: u64, batch: u64, check: WakeCheck) -> Duration {
    let (mut writer, mut reader) = ring(CAPACITY).expect("a power of two");
    pair(
        cpus,
        move || {
            let mut next = 0;
            while next < messages {
                let count = reader
                    .read(|bytes| {
                        assert_eq!(sequence(bytes), next);
                        next += 1;
                    })
                    .expect("the writer is sound");
                if count == 0 {
                    spin_loop();
                }
            }
        },
        move || {
            let mut next = 0;
            while next < messages {
                let end = messages.min(next + batch);
                while next < end && writer.push(&message::<MESSAGE_SIZE>(next)).is_ok() {
                    next += 1;
                }
                match check {
                    WakeCheck::Left => writer.publish_quietly(),
                    WakeCheck::Done => assert_eq!(writer.publish(), Wake::Unneeded),
                }
                if next < end {
                    spin_loop();
                }
            }
        },
    )
}

/// The same one message at a time over `rtrb`: push and pop.
pub(crate) fn rtrb_burst_single(cpus: Cpus, messages: u64) -> Duration {
    let slots = CAPACITY as usize / MESSAGE_SIZE;
    let (mut producer, mut consumer) = RingBuffer::<Message>::new(slots);
    pair(
        cpus,
        move || {
            let mut next = 0;
            while next < messages {
                match consumer.pop() {
                    Ok(message) => {
                        assert_eq!(sequence(&message), next);
                        next += 1;
                    }
                    Err(_empty) => spin_loop(),
                }
            }
        },
        move || {
            let mut next = 0;
            while next < messages {
                match producer.push(message(next)) {
                    Ok(()) => next += 1,
                    Err(_full) => spin_loop(),
                }
            }
        },
    )
}

/// Takes so many messages in order, all that are there at a time, read in place.
#[inline]
fn take_in_chunks<T>(mut consumer: Consumer<T>, messages: u64, sequence: impl Fn(&T) -> u64) {
    let mut next = 0;
    while next < messages {
        let count = consumer.slots();
        if count == 0 {
            spin_loop();
            continue;
        }
        let chunk = consumer.read_chunk(count).expect("so many are there");
        let (first, second) = chunk.as_slices();
        for slot in first.iter().chain(second) {
            assert_eq!(sequence(slot), next);
            next += 1;
        }
        chunk.commit_all();
    }
}

/// The same in batches of `batch` over `rtrb`: chunks, each committed once and
/// read in place.
///
/// `SLOT_SIZE` is [`MESSAGE_SIZE`], or [`RECORD_SIZE`] for as many bytes as
/// Courser's ring moves: `rtrb`'s slots know no length, its records do.
pub(crate) fn rtrb_burst_chunks<const SLOT_SIZE: usize>(
    cpus: Cpus,
    messages: u64,
    batch: u64,
) -> Duration {
    let slots = CAPACITY as usize / SLOT_SIZE;
    let (mut producer, consumer) = RingBuffer::<[u8; SLOT_SIZE]>::new(slots);
    pair(
        cpus,
        move || take_in_chunks(consumer, messages, |message| sequence(message)),
        move || {
            let mut next = 0;
            while next < messages {
                let want = usize::try_from(batch.min(messages - next)).expect("a small batch");
                let chunk = match producer.write_chunk_uninit(want) {
                    Ok(chunk) => chunk,
                    Err(ChunkError::TooFewSlots(0)) => {
                        spin_loop();
                        continue;
                    }
                    Err(ChunkError::TooFewSlots(some)) => {
                        producer.write_chunk_uninit(some).expect("so many are free")
                    }
                };
                let filled = chunk.fill_from_iter((next..).map(message::<SLOT_SIZE>));
                next += filled as u64;
            }
        },
    )
}

/// Bodies that both ends know, as an index ring needs them: on a line of their own
/// each, written and read a word at a time.
#[repr(align(64))]
#[derive(Default)]
struct Body([AtomicU64; MESSAGE_SIZE / 8]);

impl Body {
    #[inline]
    fn write(&self, message: &Message) {
        for (word, bytes) in self.0.iter().zip(message.as_chunks::<8>().0) {
            // The ring publishes it.
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }

    #[inline]
    fn sequence(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }
}

/// Where a message lies in a pool of so many bodies.
#[inline]
fn place(sequence: u64, bodies: u64) -> u32 {
    u32::try_from(sequence % bodies).expect("a small pool")
}

fn bodies() -> Vec<Body> {
    let count = CAPACITY as usize / MESSAGE_SIZE;
    std::iter::repeat_with(Body::default).take(count).collect()
}

/// The same over a ring of indices into a pool of bodies: what travels in the ring
/// is 4 bytes, and a body lies where it was written.
pub(crate) fn index_burst(cpus: Cpus, messages: u64, batch: u64) -> Duration {
    let pool = bodies();
    let slots = pool.len() as u64;
    let (mut producer, consumer) = RingBuffer::<u32>::new(pool.len());
    let (written, read) = (&pool, &pool);
    pair(
        cpus,
        move || take_in_chunks(consumer, messages, |index| read[*index as usize].sequence()),
        move || {
            let mut next = 0;
            while next < messages {
                let want = batch.min(messages - next);
                let free = (producer.slots() as u64).min(want);
                if free == 0 {
                    spin_loop();
                    continue;
                }
                // What the ring has room for was read, and its bodies with it.
                let place = |sequence| place(sequence, slots);
                for sequence in next..next + free {
                    written[place(sequence) as usize].write(&message(sequence));
                }
                let count = usize::try_from(free).expect("a small batch");
                let chunk = producer.write_chunk_uninit(count).expect("there is room");
                next += chunk.fill_from_iter((next..).map(place)) as u64;
            }
        },
    )
}

/// One message there and back, `rounds` times, over rings of indices.
pub(crate) fn index_round_trips(cpus: Cpus, rounds: u64) -> Duration {
    let (ping, pong) = (bodies(), bodies());
    let slots = ping.len() as u64;
    let (mut ping_in, mut ping_out) = RingBuffer::<u32>::new(ping.len());
    let (mut pong_in, mut pong_out) = RingBuffer::<u32>::new(pong.len());
    let place = |round| place(round, slots);
    let (ping, pong) = (&ping, &pong);
    pair(
        cpus,
        move || {
            let mut count = 0;
            while count < rounds {
                if let Ok(index) = ping_out.pop() {
                    let round = ping[index as usize].sequence();
                    pong[place(count) as usize].write(&message(round));
                    pong_in.push(place(count)).expect("one is in flight");
                    count += 1;
                }
                spin_loop();
            }
        },
        move || {
            for round in 0..rounds {
                ping[place(round) as usize].write(&message(round));
                ping_in.push(place(round)).expect("one is in flight");
                loop {
                    spin_loop();
                    if let Ok(index) = pong_out.pop() {
                        assert_eq!(pong[index as usize].sequence(), round);
                        break;
                    }
                }
            }
        },
    )
}
