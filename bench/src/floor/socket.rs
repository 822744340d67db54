//! What every plain-socket floor does with a socket: read a piece if there is
//! one, and write all of something without sleeping.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::server::Site;
use crate::error::BenchError;

/// A piece of this size stays in the second-level cache.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// What a look at a socket has found.
pub(super) enum Found {
    /// So many bytes at the start of the buffer.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The peer is done, or the connection is gone.
    End,
}

/// Reads what is there, once.
#[inline]
pub(super) fn read_piece(
    site: &Site,
    mut connection: &TcpStream,
    piece: &mut [u8],
) -> Result<Found, BenchError> {
    match connection.read(piece) {
        Ok(0) => Ok(Found::End),
        Ok(bytes) => Ok(Found::Bytes(bytes)),
        Err(error) if is_not_now(&error) => Ok(Found::Nothing),
        Err(error) if !site.is_failure(&error) => Ok(Found::End),
        Err(source) => Err(BenchError::Socket {
            doing: "read from a connection",
            source,
        }),
    }
}

/// Writes all of `bytes`, spinning where the socket is full. False if the
/// connection or the server ended first.
#[inline]
pub(super) fn write_whole(
    site: &Site,
    mut connection: &TcpStream,
    mut bytes: &[u8],
) -> Result<bool, BenchError> {
    loop {
        match connection.write(bytes) {
            Ok(written) => {
                bytes = &bytes[written..];
                if bytes.is_empty() {
                    return Ok(true);
                }
            }
            Err(error) if is_not_now(&error) => {}
            Err(error) if !site.is_failure(&error) => return Ok(false),
            Err(source) => {
                return Err(BenchError::Socket {
                    doing: "write to a connection",
                    source,
                });
            }
        }
        if !site.keep_going() {
            return Ok(false);
        }
    }
}

/// True for the two answers after which the same call is simply made again.
#[inline]
pub(super) fn is_not_now(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
