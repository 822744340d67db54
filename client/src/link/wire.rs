//! The connection's bytes: from the machine to the socket and back, without ever
//! waiting.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use courser_core::client::{self, PIECES_MAX};

/// How much is read at once: a size that stays in the second-level cache.
const RECEIVE_SIZE: usize = 64 * 1024;
const PAGE_SIZE: usize = 4096;
/// Reads of one turn, so that writing is not starved.
const READS_MAX: usize = 16;

/// A page-aligned buffer: the kernel copies into one several times faster than
/// into one that begins a little behind a page.
struct Buffer {
    bytes: Vec<u8>,
    from: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; RECEIVE_SIZE + PAGE_SIZE];
        let from = bytes.as_ptr().align_offset(PAGE_SIZE).min(PAGE_SIZE);
        Self { bytes, from }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..][..RECEIVE_SIZE]
    }
}

/// Whether the socket takes more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    Done,
    Blocked,
}

/// See the module.
pub(super) struct Wire {
    /// Shared with whoever sleeps until it is ready.
    stream: Arc<TcpStream>,
    buffer: Buffer,
    is_shut: bool,
}

impl Wire {
    /// Over a connected stream, which becomes non-blocking.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Arc::new(stream),
            buffer: Buffer::new(),
            is_shut: false,
        })
    }

    /// Writes what is offered, as far as the socket takes it.
    #[inline]
    pub(super) fn write(&mut self, machine: &mut client::Client) -> Writing {
        while machine.has_pieces() {
            let pieces = machine.pieces();
            let result = match pieces.slices() {
                [] => break,
                [slice] => (&*self.stream).write(slice),
                slices => {
                    let mut vector = [IoSlice::new(&[]); PIECES_MAX];
                    for (entry, slice) in vector.iter_mut().zip(slices) {
                        *entry = IoSlice::new(slice);
                    }
                    (&*self.stream).write_vectored(&vector[..slices.len()])
                }
            };
            match result {
                Ok(0) => machine.closed(),
                Ok(count) => machine.sent(count),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Writing::Blocked,
                    io::ErrorKind::Interrupted => {}
                    _ => machine.closed(),
                },
            }
        }
        Writing::Done
    }

    /// Reads what is there; true if anything was.
    #[inline]
    pub(super) fn read(&mut self, machine: &mut client::Client) -> bool {
        let mut any = false;
        for _ in 0..READS_MAX {
            if machine.wants_close() {
                break;
            }
            let buffer = self.buffer.bytes();
            match (&*self.stream).read(buffer) {
                Ok(0) => {
                    machine.closed();
                    any = true;
                }
                Ok(count) => {
                    machine.received(&buffer[..count]);
                    any = true;
                    // A short read has emptied the socket.
                    if count < RECEIVE_SIZE {
                        break;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        machine.closed();
                        any = true;
                    }
                },
            }
        }
        any
    }

    /// Ends the connection.
    pub(super) fn shut(&mut self) {
        if !self.is_shut {
            // The peer may be gone already.
            self.stream.shutdown(Shutdown::Both).ok();
            self.is_shut = true;
        }
    }

    /// What to watch for the next turn, if there is something.
    pub(super) fn watched(&self) -> Option<Arc<TcpStream>> {
        // A socket that is shut down is always ready.
        (!self.is_shut).then(|| Arc::clone(&self.stream))
    }
}
