//! The other end of every echo: a plain non-blocking socket, one frame in
//! flight, the calling thread spinning on it.
//!
//! It is the same for all servers, so that what differs between two figures is
//! the server. It may also face a broker that answers every frame with replies
//! that are frames; each frame sent is answered by exactly one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::frame::{FrameScanner, write_message};
use super::socket::is_not_now;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::page_buffer::PageBuffer;

/// How long an answer may take before the measurement is given up.
pub(super) const REPLY_WAIT_MAX: Duration = Duration::from_secs(5);

/// How many looks at a socket pass between two at the clock.
const LOOKS_PER_CLOCK: u32 = 4096;

const RECEIVE_BYTES: usize = 4096;

/// A connection that measures round trips, one at a time, on the calling
/// thread, which should be pinned to a core of its own.
#[derive(Debug)]
pub struct RoundTripClient {
    connection: TcpStream,
    address: SocketAddr,
    frame: PageBuffer,
    received: PageBuffer,
    scanner: FrameScanner,
}

impl RoundTripClient {
    /// Connects to `address` and prepares a frame of `frame_bytes` bytes, 112
    /// of header and the rest body (see [`super::frame::frame_bytes`]).
    ///
    /// # Errors
    /// If the connection cannot be made.
    pub fn connect(address: SocketAddr, frame_bytes: usize) -> Result<Self, BenchError> {
        let mut frame = PageBuffer::new(frame_bytes);
        write_message(&mut frame);
        Ok(Self {
            connection: connect_nonblocking(address)?,
            address,
            frame,
            received: PageBuffer::new(RECEIVE_BYTES),
            scanner: FrameScanner::default(),
        })
    }

    /// Makes round trips for `duration`, records each one's time, and returns
    /// how many there were. At least one is made.
    ///
    /// # Errors
    /// If the connection ends, or a reply takes more than five seconds.
    pub fn slice(
        &mut self,
        duration: Duration,
        histogram: &mut Histogram,
    ) -> Result<u64, BenchError> {
        let deadline = Instant::now() + duration;
        let mut round_trips = 0;
        loop {
            let sent = Instant::now();
            self.round_trip(sent, round_trips)?;
            let answered = Instant::now();
            histogram.record(answered - sent);
            round_trips += 1;
            if answered >= deadline {
                return Ok(round_trips);
            }
        }
    }

    /// Makes `round_trips` round trips that are not recorded: the first ones
    /// after a rest are about waking up.
    ///
    /// # Errors
    /// As [`Self::slice`].
    pub fn warm_up(&mut self, round_trips: u64) -> Result<(), BenchError> {
        for done in 0..round_trips {
            self.round_trip(Instant::now(), done)?;
        }
        Ok(())
    }

    #[inline]
    fn round_trip(&mut self, sent: Instant, round_trips: u64) -> Result<(), BenchError> {
        write_spinning(&self.connection, &self.frame, self.address, sent)?;
        let mut looks = 0;
        loop {
            match (&self.connection).read(&mut self.received) {
                Ok(0) => {
                    return Err(BenchError::ConnectionClosed {
                        address: self.address,
                        round_trips,
                    });
                }
                Ok(bytes) => {
                    if self.scanner.scan(&self.received[..bytes])? > 0 {
                        return Ok(());
                    }
                }
                Err(error) if is_not_now(&error) => {
                    give_up_if_late(&mut looks, sent, self.address)?;
                }
                Err(source) => {
                    return Err(BenchError::Socket {
                        doing: "read a reply",
                        source,
                    });
                }
            }
        }
    }
}

/// A connection as all floors want it: no delay, and never sleeping.
pub(super) fn connect_nonblocking(address: SocketAddr) -> Result<TcpStream, BenchError> {
    let connection = TcpStream::connect(address).map_err(BenchError::socket("connect"))?;
    connection
        .set_nodelay(true)
        .map_err(BenchError::socket("set TCP_NODELAY"))?;
    connection
        .set_nonblocking(true)
        .map_err(BenchError::socket("make a socket non-blocking"))?;
    Ok(connection)
}

/// Writes all of `bytes`, spinning where the socket is full.
#[inline]
pub(super) fn write_spinning(
    mut connection: &TcpStream,
    mut bytes: &[u8],
    address: SocketAddr,
    began: Instant,
) -> Result<(), BenchError> {
    let mut looks = 0;
    loop {
        match connection.write(bytes) {
            Ok(written) => {
                bytes = &bytes[written..];
                if bytes.is_empty() {
                    return Ok(());
                }
            }
            Err(error) if is_not_now(&error) => give_up_if_late(&mut looks, began, address)?,
            Err(source) => {
                return Err(BenchError::Socket {
                    doing: "write a frame",
                    source,
                });
            }
        }
    }
}

/// Counts a look in vain; now and then asks the clock whether it is time to
/// give up.
#[inline]
pub(super) fn give_up_if_late(
    looks: &mut u32,
    began: Instant,
    address: SocketAddr,
) -> Result<(), BenchError> {
    *looks += 1;
    if *looks < LOOKS_PER_CLOCK {
        return Ok(());
    }
    *looks = 0;
    let waited = began.elapsed();
    if waited > REPLY_WAIT_MAX {
        return Err(BenchError::NoReply { address, waited });
    }
    Ok(())
}
