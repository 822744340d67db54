//! A second echo, written apart from the first: its own server, its own
//! client, its own statistics, nothing but std (and a pin).
//!
//! It exists to disagree. If the floor's framing, gate, histogram or client
//! had a fault that moved its figures, this one would not have the same fault,
//! and the two would differ by more than the noise. So it shares no code with
//! the floor, on purpose: a fixed number of bytes there, 64 bytes back, a
//! fresh connection per slice, and a median found by sorting.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Times round trips of `frame` bytes for `duration` against an echo on
/// `broker_cpu`, the calling thread being the client, and returns all of them
/// in nanoseconds, ascending.
///
/// # Errors
/// Whatever a socket call fails with.
pub fn round_trips_ns(broker_cpu: usize, frame: usize, duration: Duration) -> Result<Vec<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_nonblocking(true)?;
    }
    let echo = thread::spawn(move || {
        if !core_affinity::set_for_current(core_affinity::CoreId { id: broker_cpu }) {
            return Err(Error::other("the echo could not be pinned"));
        }
        echo(server, frame)
    });
    let outcome = measure(&mut client, frame, duration);
    // The echo ends when its peer does, also after a failure here.
    drop(client);
    let echoed = echo.join().unwrap_or_else(|_| Err(Error::other("panic")));
    let mut times = outcome?;
    echoed?;
    times.sort_unstable();
    Ok(times)
}

fn echo(mut peer: TcpStream, frame: usize) -> Result<()> {
    let mut message = vec![0; frame];
    let reply = [7; 64];
    loop {
        if !fill(&mut peer, &mut message, None)? {
            return Ok(());
        }
        // 64 bytes always fit a socket that is read between any two of them.
        peer.write_all(&reply)?;
    }
}

fn measure(server: &mut TcpStream, frame: usize, duration: Duration) -> Result<Vec<u64>> {
    const NOT_COUNTED: usize = 200;
    let message = vec![5; frame];
    let mut reply = [0; 64];
    let mut times = Vec::with_capacity(1 << 16);
    let mut end = Instant::now() + duration;
    let mut trips = 0;
    loop {
        let start = Instant::now();
        server.write_all(&message)?;
        if !fill(server, &mut reply, Some(start + Duration::from_secs(5)))? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let stop = Instant::now();
        trips += 1;
        if trips == NOT_COUNTED {
            end = stop + duration;
        }
        if trips > NOT_COUNTED {
            times.push(u64::try_from((stop - start).as_nanos()).unwrap_or(u64::MAX));
        }
        if stop >= end && trips > NOT_COUNTED {
            return Ok(times);
        }
    }
}

/// Fills `bytes`, asking over and over. False at the end of the stream.
fn fill(peer: &mut TcpStream, bytes: &mut [u8], until: Option<Instant>) -> Result<bool> {
    let mut filled = 0;
    let mut asked = 0_u32;
    while filled < bytes.len() {
        match peer.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(false),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                asked = asked.wrapping_add(1);
                if asked.is_multiple_of(10_000) && until.is_some_and(|until| Instant::now() > until)
                {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
