//! The floor of throughput: the same frames in one direction, as many in one
//! write as fit a chunk, to a receiver that reads every length and drops the
//! rest.
//!
//! The sender is the calling thread and never sleeps; the receiver spins or
//! sleeps in the kernel. Which is faster depends on the machine: one that spins
//! takes smaller bites and pays for each of them.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::client::{connect_nonblocking, give_up_if_late, write_spinning};
use super::frame::{FrameScanner, write_message};
use super::server::{Served, Server, Site};
use super::socket::{Found, PIECE_BYTES, read_piece};
use crate::error::BenchError;
use crate::page_buffer::PageBuffer;
use crate::pin::Cores;
use crate::units;

/// What is sent in one write unless asked otherwise.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Unrecorded chunks at the start of a slice, for the receiver to wake up.
const WARM_UP_CHUNKS: u64 = 16;

/// How the receiver of a stream waits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamKind {
    /// Receives again and again.
    Spin,
    /// Sleeps in the kernel while there is nothing.
    Blocking,
}

impl StreamKind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Spin, Self::Blocking];

    /// The name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Blocking => "blocking",
        }
    }
}

impl fmt::Display for StreamKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What passed in how long a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    /// Messages that arrived whole.
    pub messages: u64,
    /// Their bytes on the wire, headers included.
    pub bytes: u64,
    /// From the first byte sent to the last one read.
    pub elapsed: Duration,
}

impl Rate {
    /// Messages per second; 0 for no time at all.
    #[must_use]
    pub fn msgs_per_s(&self) -> f64 {
        self.per_second(self.messages)
    }

    /// Bytes per second; 0 for no time at all.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        self.per_second(self.bytes)
    }

    /// Adds what passed in another slice.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.elapsed += other.elapsed;
    }

    fn per_second(&self, count: u64) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds == 0.0 {
            return 0.0;
        }
        units::to_f64(count) / seconds
    }
}

/// A receiver and, on the calling thread, its sender.
#[derive(Debug)]
pub struct StreamFloor {
    kind: StreamKind,
    connection: TcpStream,
    address: SocketAddr,
    /// Whole frames, one after the other.
    chunk: PageBuffer,
    frames_per_chunk: u64,
    frames_sent: u64,
    received: Arc<Received>,
    server: Server,
}

/// Frames that the receiver has counted: written by it, read by the sender at
/// the end of a slice. A line of its own, so that the sender's other memory
/// does not move with it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Received {
    frames: AtomicU64,
}

impl StreamFloor {
    /// Starts a receiver on `broker_cpu` and connects to it; it rests until its
    /// first slice. A chunk holds as many whole frames as fit `chunk_bytes`,
    /// and at least one.
    ///
    /// # Errors
    /// If the thread cannot be started and pinned, or the connection fails.
    pub fn start(
        kind: StreamKind,
        broker_cpu: usize,
        frame_bytes: usize,
        chunk_bytes: usize,
    ) -> Result<Self, BenchError> {
        let received = Arc::new(Received::default());
        let counter = Arc::clone(&received);
        let server = Server::start(&format!("stream {kind}"), broker_cpu, move |site| {
            serve(site, kind, &counter)
        })?;
        let address = server.address();
        let connection = connect_nonblocking(address)?;
        let frames = (chunk_bytes / frame_bytes).max(1);
        let mut chunk = PageBuffer::new(frames * frame_bytes);
        for frame in chunk.chunks_exact_mut(frame_bytes) {
            write_message(frame);
        }
        let mut floor = Self {
            kind,
            connection,
            address,
            chunk,
            frames_per_chunk: frames as u64,
            frames_sent: 0,
            received,
            server,
        };
        floor.send_chunk()?;
        floor.wait_until_received()?;
        floor.server.pause()?;
        Ok(floor)
    }

    /// Starts the kind of receiver that is fastest for these frames on these
    /// cores: both take four short slices in alternation, and the higher rate
    /// wins. The calling thread is pinned to `cores.client`.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::slice`].
    pub fn calibrate(
        cores: Cores,
        frame_bytes: usize,
        chunk_bytes: usize,
        slice: Duration,
    ) -> Result<Self, BenchError> {
        crate::pin::pin_current_thread(cores.client)?;
        let start = |kind| Self::start(kind, cores.broker, frame_bytes, chunk_bytes);
        let mut spin = start(StreamKind::Spin)?;
        let mut blocking = start(StreamKind::Blocking)?;
        let (mut spun, mut blocked) = (Rate::default(), Rate::default());
        for _ in 0..2 {
            spun.add(&spin.slice(slice)?);
            blocked.add(&blocking.slice(slice)?);
            blocked.add(&blocking.slice(slice)?);
            spun.add(&spin.slice(slice)?);
        }
        Ok(if spun.msgs_per_s() >= blocked.msgs_per_s() {
            spin
        } else {
            blocking
        })
    }

    /// Wakes the receiver, sends chunks for `duration`, waits until all of them
    /// have been read, and puts the receiver to rest. The time counts from the
    /// first byte sent to the last one read, so what lies in socket buffers is
    /// not taken for delivered.
    ///
    /// # Errors
    /// If the connection ends, or nothing moves for five seconds.
    pub fn slice(&mut self, duration: Duration) -> Result<Rate, BenchError> {
        self.server.resume();
        for _ in 0..WARM_UP_CHUNKS {
            self.send_chunk()?;
        }
        self.wait_until_received()?;
        let before = self.frames_sent;
        let began = Instant::now();
        while began.elapsed() < duration {
            self.send_chunk()?;
        }
        self.wait_until_received()?;
        let elapsed = began.elapsed();
        self.server.pause()?;
        let messages = self.frames_sent - before;
        Ok(Rate {
            messages,
            bytes: messages / self.frames_per_chunk * self.chunk.len() as u64,
            elapsed,
        })
    }

    /// How the receiver waits.
    #[must_use]
    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    /// How many frames go out in one write.
    #[must_use]
    pub fn frames_per_chunk(&self) -> u64 {
        self.frames_per_chunk
    }

    /// Ends the receiver and says what it has read.
    ///
    /// # Errors
    /// What it failed with, if it did.
    pub fn stop(self) -> Result<Served, BenchError> {
        self.server.stop()
    }

    fn send_chunk(&mut self) -> Result<(), BenchError> {
        write_spinning(&self.connection, &self.chunk, self.address, Instant::now())?;
        self.frames_sent += self.frames_per_chunk;
        Ok(())
    }

    fn wait_until_received(&self) -> Result<(), BenchError> {
        let began = Instant::now();
        let mut looks = 0;
        // Acquire pairs with the receiver's release, though only the count
        // itself is used.
        while self.received.frames.load(Ordering::Acquire) < self.frames_sent {
            std::hint::spin_loop();
            give_up_if_late(&mut looks, began, self.address)?;
        }
        Ok(())
    }
}

fn serve(site: &Site, kind: StreamKind, received: &Received) -> Result<Served, BenchError> {
    let mut piece = PageBuffer::new(PIECE_BYTES);
    let mut scanner = FrameScanner::default();
    let mut served = Served::default();
    let connection = match kind {
        StreamKind::Spin => site.accept_nonblocking()?,
        StreamKind::Blocking => site.accept()?,
    };
    let Some(connection) = connection else {
        return Ok(served);
    };
    loop {
        if kind == StreamKind::Spin && !site.keep_going() {
            return Ok(served);
        }
        let bytes = match read_piece(site, &connection, &mut piece)? {
            Found::Bytes(bytes) => bytes,
            Found::Nothing => continue,
            Found::End => return Ok(served),
        };
        served.frames += scanner.scan(&piece[..bytes])? as u64;
        received.frames.store(served.frames, Ordering::Release);
    }
}
