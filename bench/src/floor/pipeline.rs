//! An echo with many frames on their way: the floor of a load that does not wait
//! for answers.
//!
//! The frames are those of the round trip; whatever was enqueued since the last
//! write leaves in one, as a broker's client does it, and replies are counted as
//! they come. The echo answers each frame by itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::client::connect_nonblocking;
use super::frame::{FrameScanner, write_message};
use super::round_trip::{EchoKind, EchoServer, RoundTripFloor};
use super::socket::is_not_now;
use crate::error::BenchError;
use crate::page_buffer::PageBuffer;
use crate::pin::Cores;

/// Whole frames that leave in one write at most.
const CHUNK_BYTES: usize = 64 * 1024;

const RECEIVE_BYTES: usize = 64 * 1024;

/// An echo with its client, resting until it is resumed.
#[derive(Debug)]
pub struct PipelineFloor {
    server: EchoServer,
    address: SocketAddr,
    connection: TcpStream,
    /// Whole frames, one after the other, all alike.
    chunk: PageBuffer,
    frame_bytes: usize,
    received: PageBuffer,
    scanner: FrameScanner,
    /// Bytes of enqueued frames that have not left.
    unwritten: usize,
    /// Where in its frame the next byte lies.
    written_of_frame: usize,
    /// Replies that have come and were not asked for.
    replies: u64,
}

impl PipelineFloor {
    /// Starts the kind of echo that is fastest here for one frame at a time; it
    /// rests until [`Self::resume`]. The calling thread is pinned to
    /// `cores.client`.
    ///
    /// # Errors
    /// If no kind of echo can be started, or the connection fails.
    pub fn start(
        cores: Cores,
        frame_bytes: usize,
        calibration: Duration,
    ) -> Result<Self, BenchError> {
        let (fastest, _) = RoundTripFloor::calibrate(cores, frame_bytes, calibration)?;
        let kind = fastest.kind();
        fastest.stop()?;
        Self::start_kind(kind, cores, frame_bytes)
    }

    /// Starts this kind of echo; it rests until [`Self::resume`].
    ///
    /// # Errors
    /// If it cannot be started, or the connection fails.
    pub fn start_kind(
        kind: EchoKind,
        cores: Cores,
        frame_bytes: usize,
    ) -> Result<Self, BenchError> {
        let server = EchoServer::start(kind, cores.broker)?;
        let address = server.address();
        let frames = (CHUNK_BYTES / frame_bytes).max(1);
        // One frame more, so that a write can begin within a frame.
        let mut chunk = PageBuffer::new((frames + 1) * frame_bytes);
        for frame in chunk.chunks_exact_mut(frame_bytes) {
            write_message(frame);
        }
        let mut floor = Self {
            connection: connect_nonblocking(address)?,
            server,
            address,
            chunk,
            frame_bytes,
            received: PageBuffer::new(RECEIVE_BYTES),
            scanner: FrameScanner::default(),
            unwritten: 0,
            written_of_frame: 0,
            replies: 0,
        };
        // One frame, so that a server that cannot serve is found out here.
        floor.enqueue();
        let mut looks = 0_u64;
        let began = std::time::Instant::now();
        while !floor.reply()? {
            looks += 1;
            if looks.is_multiple_of(4096) && began.elapsed() > super::client::REPLY_WAIT_MAX {
                return Err(BenchError::NoReply {
                    address,
                    waited: began.elapsed(),
                });
            }
        }
        floor.server.pause()?;
        Ok(floor)
    }

    /// Puts the echo on its core.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Takes the echo off its core.
    ///
    /// # Errors
    /// If it does not come to rest.
    pub fn pause(&self) -> Result<(), BenchError> {
        self.server.pause()
    }

    /// The echo's thread's id, by which the kernel accounts for its time.
    #[must_use]
    pub fn thread(&self) -> Option<u32> {
        self.server.thread()
    }

    /// How the echo waits.
    #[must_use]
    pub fn kind(&self) -> EchoKind {
        self.server.kind()
    }

    /// Adds a frame to what leaves with the next [`Self::write`].
    #[inline]
    pub fn enqueue(&mut self) {
        self.unwritten += self.frame_bytes;
    }

    /// Writes what was enqueued, as far as the socket takes it.
    ///
    /// # Errors
    /// If the connection ends.
    #[inline]
    pub fn write(&mut self) -> Result<(), BenchError> {
        while self.unwritten > 0 {
            let from = self.written_of_frame;
            let to = self.chunk.len().min(from + self.unwritten);
            match (&self.connection).write(&self.chunk[from..to]) {
                Ok(written) => {
                    self.unwritten -= written;
                    self.written_of_frame = (from + written) % self.frame_bytes;
                }
                Err(error) if is_not_now(&error) => return Ok(()),
                Err(source) => {
                    return Err(BenchError::Socket {
                        doing: "write a frame",
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Takes the next reply, after one write and one read if none is there; false
    /// if there is none even so.
    ///
    /// # Errors
    /// If the connection ends.
    #[inline]
    pub fn reply(&mut self) -> Result<bool, BenchError> {
        if self.replies == 0 {
            self.write()?;
            match (&self.connection).read(&mut self.received) {
                Ok(0) => {
                    return Err(BenchError::ConnectionClosed {
                        address: self.address,
                        round_trips: 0,
                    });
                }
                Ok(bytes) => {
                    self.replies += self.scanner.scan(&self.received[..bytes])? as u64;
                }
                Err(error) if is_not_now(&error) => {}
                Err(source) => {
                    return Err(BenchError::Socket {
                        doing: "read a reply",
                        source,
                    });
                }
            }
        }
        if self.replies == 0 {
            return Ok(false);
        }
        self.replies -= 1;
        Ok(true)
    }
}
