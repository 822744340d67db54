//! The floor of a hand-off between two cores: two single-producer rings of the
//! `rtrb` crate, there and back.
//!
//! Both ends spin. A round trip of a hundred nanoseconds is too short for two
//! readings of a clock that takes thirty, so a sample is the mean over a batch
//! of round trips; the p50 is that of batches. What it shows besides speed is
//! how far apart the host has put the two cores: the figure flips by a factor
//! of five when they move, and then every other figure of the run has moved
//! too. So it is taken before and after.

use std::fmt;
use std::hint::spin_loop;
use std::thread;
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::histogram::{Histogram, saturating_ns};
use crate::pin::{self, Cores};
use crate::units;

/// Round trips in one sample.
const ROUND_TRIPS_PER_SAMPLE: u32 = 32;

/// A message of the burst: one cache line.
type Message = [u64; 8];

const MESSAGE_BYTES: f64 = 64.0;
const CAPACITY: usize = 1024;
/// How many messages an end passes at once if there is room.
const BATCH: usize = 64;

/// How often an end that finds nothing asks whether the other is gone.
const LOOKS_PER_CHECK: u32 = 1 << 16;

/// What two rings between two cores do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RingFloor {
    /// Median over batches of the mean round trip.
    pub round_trip_p50_ns: f64,
    /// The best batch.
    pub round_trip_best_ns: f64,
    /// Messages of 64 bytes passed per second in one direction.
    pub burst_msgs_per_s: f64,
    /// The same in bytes.
    pub burst_bytes_per_s: f64,
}

impl RingFloor {
    /// Measures for about `duration`, half round trips and half burst, on two
    /// threads of its own.
    ///
    /// # Errors
    /// If a thread cannot be started and pinned.
    pub fn measure(cores: Cores, duration: Duration) -> Result<Self, BenchError> {
        let half = duration / 2;
        let round_trips = ping_pong(cores, half)?;
        let burst_msgs_per_s = burst(cores, half)?;
        let per_trip = |total: u64| units::to_f64(total) / f64::from(ROUND_TRIPS_PER_SAMPLE);
        Ok(Self {
            round_trip_p50_ns: per_trip(round_trips.counts().value_at_quantile(0.5)),
            round_trip_best_ns: per_trip(round_trips.counts().min()),
            burst_msgs_per_s,
            burst_bytes_per_s: burst_msgs_per_s * MESSAGE_BYTES,
        })
    }
}

impl fmt::Display for RingFloor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "round trip {} (best {}), burst {} of 64 B",
            units::nanoseconds(self.round_trip_p50_ns),
            units::nanoseconds(self.round_trip_best_ns),
            units::per_second(self.burst_msgs_per_s),
        )
    }
}

/// Runs one end on each core until `near` returns; `far` then finds its peer
/// gone and returns as well.
fn on_two_cores<T: Send>(
    cores: Cores,
    near: impl FnOnce() -> T + Send,
    far: impl FnOnce() + Send,
) -> Result<T, BenchError> {
    let panicked = |name: &str| BenchError::Panicked {
        name: name.to_owned(),
    };
    thread::scope(|scope| {
        let far = scope.spawn(move || pin::pin_current_thread(cores.broker).map(|()| far()));
        let near = scope.spawn(move || pin::pin_current_thread(cores.client).map(|()| near()));
        // A pin that fails drops that end's rings, which ends the other.
        let near = near.join().map_err(|_| panicked("ring, client's end"))?;
        far.join().map_err(|_| panicked("ring, broker's end"))??;
        near
    })
}

fn ping_pong(cores: Cores, duration: Duration) -> Result<Histogram, BenchError> {
    let (mut there, mut arrivals) = RingBuffer::<u64>::new(CAPACITY);
    let (mut back, mut returns) = RingBuffer::<u64>::new(CAPACITY);
    let near = move || {
        let mut histogram = Histogram::new();
        let mut round_trip =
            |value| push_spinning(&mut there, value).then(|| pop_spinning(&mut returns))?;
        // The first ones wait for the other thread to start.
        for value in 0..1_000 {
            if round_trip(value).is_none() {
                return histogram;
            }
        }
        let deadline = Instant::now() + duration;
        loop {
            let began = Instant::now();
            for value in 0..u64::from(ROUND_TRIPS_PER_SAMPLE) {
                if round_trip(value).is_none() {
                    return histogram;
                }
            }
            let ended = Instant::now();
            histogram.record_ns(saturating_ns(ended - began));
            if ended >= deadline {
                return histogram;
            }
        }
    };
    let far = move || {
        while let Some(value) = pop_spinning(&mut arrivals) {
            if !push_spinning(&mut back, value) {
                return;
            }
        }
    };
    on_two_cores(cores, near, far)
}

/// Messages per second from one core to the other, in batches, written and
/// read as slices.
fn burst(cores: Cores, duration: Duration) -> Result<f64, BenchError> {
    let (mut there, mut arrivals) = RingBuffer::<Message>::new(CAPACITY);
    let (mut done, mut is_done) = RingBuffer::<u64>::new(1);
    let near = move || {
        let messages = [[1; 8]; BATCH];
        let mut sent = 0_u64;
        let began = Instant::now();
        while began.elapsed() < duration {
            // Some thousands of messages between two readings of the clock.
            for _ in 0..64 {
                let (pushed, _) = there.push_partial_slice(&messages);
                sent += pushed.len() as u64;
            }
        }
        // Dropping our end tells the other that no more will come; it answers
        // once it has read the last one.
        drop(there);
        let received = pop_spinning(&mut is_done);
        let elapsed = began.elapsed().as_secs_f64();
        (received == Some(sent)).then(|| units::to_f64(sent) / elapsed)
    };
    let far = move || {
        let mut room = [[0; 8]; BATCH];
        let mut received = 0_u64;
        let mut looks = 0_u32;
        loop {
            let (popped, _) = arrivals.pop_partial_slice(&mut room);
            // Every message is looked at: its first word is 1.
            received += popped.iter().map(|message| message[0]).sum::<u64>();
            if !popped.is_empty() {
                looks = 0;
                continue;
            }
            looks = looks.wrapping_add(1);
            // Abandoned first, empty second: what was pushed before the other
            // end went is still read.
            if looks.is_multiple_of(1024) && arrivals.is_abandoned() && arrivals.is_empty() {
                break;
            }
            spin_loop();
        }
        push_spinning(&mut done, received);
    };
    let rate = on_two_cores(cores, near, far)?;
    rate.ok_or(BenchError::Panicked {
        name: "ring, burst: a message was lost".to_owned(),
    })
}

/// False if the other end is gone.
#[inline]
fn push_spinning<T>(producer: &mut Producer<T>, mut value: T) -> bool {
    let mut looks = 0_u32;
    loop {
        match producer.push(value) {
            Ok(()) => return true,
            Err(rtrb::PushError::Full(rejected)) => value = rejected,
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS_PER_CHECK) && producer.is_abandoned() {
            return false;
        }
        spin_loop();
    }
}

/// `None` if the other end is gone and has left nothing.
#[inline]
fn pop_spinning<T>(consumer: &mut Consumer<T>) -> Option<T> {
    let mut looks = 0_u32;
    loop {
        if let Ok(value) = consumer.pop() {
            return Some(value);
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS_PER_CHECK) && consumer.is_abandoned() {
            return consumer.pop().ok();
        }
        spin_loop();
    }
}
