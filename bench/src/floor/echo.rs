//! One step of an echo on a plain socket: read a piece, read every length in
//! it, write a reply for each frame that ended. The kinds of echo differ only
//! in when they take this step.

use std::net::TcpStream;

use super::frame::{FrameScanner, Replies};
use super::server::{Served, Site};
use super::socket::{Found, PIECE_BYTES, read_piece, write_whole};
use crate::error::BenchError;
use crate::page_buffer::PageBuffer;

/// An echo's buffers; its place in a stream is the connection's. All memory is taken
/// here, none per frame.
pub(super) struct Echo {
    piece: PageBuffer,
    replies: Replies,
    pub(super) served: Served,
}

impl Echo {
    pub(super) fn new() -> Self {
        Self {
            piece: PageBuffer::new(PIECE_BYTES),
            replies: Replies::new(),
            served: Served::default(),
        }
    }

    /// Reads once and answers what ended. False once the connection is over.
    #[inline]
    pub(super) fn answer(
        &mut self,
        site: &Site,
        connection: &TcpStream,
        scanner: &mut FrameScanner,
    ) -> Result<bool, BenchError> {
        let bytes = match read_piece(site, connection, &mut self.piece)? {
            Found::Bytes(bytes) => bytes,
            Found::Nothing => return Ok(true),
            Found::End => return Ok(false),
        };
        let mut owed = scanner.scan(&self.piece[..bytes])?;
        self.served.frames += owed as u64;
        while owed > 0 {
            let at_once = owed.min(Replies::AT_ONCE_MAX);
            if !write_whole(site, connection, self.replies.first(at_once))? {
                return Ok(false);
            }
            self.served.replies += at_once as u64;
            owed -= at_once;
        }
        Ok(true)
    }
}
