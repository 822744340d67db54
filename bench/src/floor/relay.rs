//! The floor of a delivery: one spinning thread that copies whole frames from
//! a producer's socket to a consumer's, and acknowledges them.
//!
//! ```text
//!   client core, one thread             broker core, one thread
//!   producer socket  --- frame ------>  +-------+
//!   consumer socket  <-- frame ------   | relay |  1. frame on  2. reply back
//!   producer socket  <-- reply ------   |       |
//!   consumer socket  --- reply ----->   +-------+   3. read and dropped
//! ```
//!
//! The consumer answers every frame, as one that acknowledges does. It makes the
//! floor lower, not higher: a connection in one direction only makes the kernel
//! send acknowledgements of its own, which costs more than the answer (7.4 against
//! 9.2 us to the consumer, on two cores of an EPYC virtual machine).
//!
//! The frame goes on before the reply goes back: what a consumer waits for is
//! what the floor is about. A reply is written per turn and not per frame, as
//! a broker does; with one frame in flight that is the same.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::client::{connect_nonblocking, give_up_if_late, write_spinning};
use super::frame::{
    FRAME_BYTES_MAX, FrameScanner, REPLY_BYTES, Replies, whole_frames, write_message, write_reply,
};
use super::server::{Served, Server, Site};
use super::socket::{Found, is_not_now, read_piece, write_whole};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::page_buffer::PageBuffer;

const WARM_UP_FRAMES: u64 = 64;

/// What is read of the consumer's answers at once.
const SETTLEMENTS_BYTES: usize = 4096;

/// A relay and, on the calling thread, its producer and its consumer.
#[derive(Debug)]
pub struct RelayFloor {
    producer: std::net::TcpStream,
    consumer: std::net::TcpStream,
    address: SocketAddr,
    frame: PageBuffer,
    settlement: [u8; REPLY_BYTES],
    received: PageBuffer,
    delivered: FrameScanner,
    acknowledged: FrameScanner,
    server: Server,
}

impl RelayFloor {
    /// Starts a relay on `broker_cpu` and connects both ends; it rests until
    /// its first slice.
    ///
    /// # Errors
    /// If the thread cannot be started and pinned, or a connection fails.
    pub fn start(broker_cpu: usize, frame_bytes: usize) -> Result<Self, BenchError> {
        let server = Server::start("relay", broker_cpu, serve)?;
        let address = server.address();
        let producer = connect_nonblocking(address)?;
        let consumer = connect_nonblocking(address)?;
        let mut frame = PageBuffer::new(frame_bytes);
        write_message(&mut frame);
        let mut settlement = [0; REPLY_BYTES];
        write_reply(&mut settlement);
        let mut floor = Self {
            producer,
            consumer,
            address,
            received: PageBuffer::new(frame_bytes.max(4096)),
            frame,
            settlement,
            delivered: FrameScanner::default(),
            acknowledged: FrameScanner::default(),
            server,
        };
        floor.transfer(Instant::now(), 0)?;
        floor.server.pause()?;
        Ok(floor)
    }

    /// Wakes the relay, sends frames for `duration`, the next one once the last
    /// one has been delivered and acknowledged, records both times, and puts
    /// the relay to rest. Returns how many frames were recorded.
    ///
    /// # Errors
    /// If a connection ends, or a frame takes more than five seconds.
    pub fn slice(
        &mut self,
        duration: Duration,
        to_consumer: &mut Histogram,
        to_ack: &mut Histogram,
    ) -> Result<u64, BenchError> {
        self.server.resume();
        for done in 0..WARM_UP_FRAMES {
            self.transfer(Instant::now(), done)?;
        }
        let deadline = Instant::now() + duration;
        let mut frames = 0;
        loop {
            let sent = Instant::now();
            let transferred = self.transfer(sent, frames)?;
            to_consumer.record(transferred.delivered - sent);
            to_ack.record(transferred.acknowledged - sent);
            frames += 1;
            if transferred.acknowledged.max(transferred.delivered) >= deadline {
                break;
            }
        }
        self.server.pause()?;
        Ok(frames)
    }

    /// Ends the relay and says what it has done.
    ///
    /// # Errors
    /// What it failed with, if it did.
    pub fn stop(self) -> Result<Served, BenchError> {
        self.server.stop()
    }

    /// Sends one frame and looks at both sockets in turn until it has come out
    /// and its reply has come back; then the consumer answers.
    fn transfer(&mut self, sent: Instant, frames: u64) -> Result<Transferred, BenchError> {
        write_spinning(&self.producer, &self.frame, self.address, sent)?;
        let mut delivered = None;
        let mut acknowledged = None;
        let mut looks = 0;
        loop {
            if delivered.is_none() {
                let ended = look(
                    &self.consumer,
                    &mut self.received,
                    &mut self.delivered,
                    self.address,
                    frames,
                )?;
                if ended {
                    delivered = Some(Instant::now());
                }
            }
            if acknowledged.is_none() {
                let ended = look(
                    &self.producer,
                    &mut self.received,
                    &mut self.acknowledged,
                    self.address,
                    frames,
                )?;
                if ended {
                    acknowledged = Some(Instant::now());
                }
            }
            if let (Some(delivered), Some(acknowledged)) = (delivered, acknowledged) {
                write_spinning(&self.consumer, &self.settlement, self.address, sent)?;
                return Ok(Transferred {
                    delivered,
                    acknowledged,
                });
            }
            give_up_if_late(&mut looks, sent, self.address)?;
        }
    }
}

/// When one frame came out and when its reply came back.
struct Transferred {
    delivered: Instant,
    acknowledged: Instant,
}

/// Reads once; true if a frame has ended.
#[inline]
fn look(
    mut connection: &std::net::TcpStream,
    received: &mut PageBuffer,
    scanner: &mut FrameScanner,
    address: SocketAddr,
    round_trips: u64,
) -> Result<bool, BenchError> {
    match connection.read(received) {
        Ok(0) => Err(BenchError::ConnectionClosed {
            address,
            round_trips,
        }),
        Ok(bytes) => Ok(scanner.scan(&received[..bytes])? > 0),
        Err(error) if is_not_now(&error) => Ok(false),
        Err(source) => Err(BenchError::Socket {
            doing: "read from the relay",
            source,
        }),
    }
}

/// The relay itself. A frame is sent on once it is whole; what has come of the
/// next one stays at the start of the buffer.
fn serve(site: &Site) -> Result<Served, BenchError> {
    let mut buffer = PageBuffer::new(FRAME_BYTES_MAX);
    let mut settlements = PageBuffer::new(SETTLEMENTS_BYTES);
    let mut settled = FrameScanner::default();
    let replies = Replies::new();
    let mut served = Served::default();
    let mut filled = 0;
    let (Some(producer), Some(consumer)) = (site.accept_nonblocking()?, site.accept_nonblocking()?)
    else {
        return Ok(served);
    };
    while site.keep_going() {
        match read_piece(site, &consumer, &mut settlements)? {
            Found::Bytes(bytes) => {
                settled.scan(&settlements[..bytes])?;
            }
            Found::Nothing => {}
            Found::End => break,
        }
        match read_piece(site, &producer, &mut buffer[filled..])? {
            Found::Bytes(bytes) => filled += bytes,
            Found::Nothing => continue,
            Found::End => break,
        }
        let whole = whole_frames(&buffer[..filled])?;
        if whole.frames == 0 {
            continue;
        }
        if !write_whole(site, &consumer, &buffer[..whole.bytes])? {
            break;
        }
        buffer.copy_within(whole.bytes..filled, 0);
        filled -= whole.bytes;
        served.frames += whole.frames as u64;
        let mut owed = whole.frames;
        while owed > 0 {
            let at_once = owed.min(Replies::AT_ONCE_MAX);
            if !write_whole(site, &producer, replies.first(at_once))? {
                return Ok(served);
            }
            served.replies += at_once as u64;
            owed -= at_once;
        }
    }
    Ok(served)
}
