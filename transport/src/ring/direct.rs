//! Direct mode: plain non-blocking calls on a lone hot socket.
//!
//! A ring wins where many sockets share one system call. Over one or two sockets a thread
//! that spins asks the ring only to be told what a plain receive would have told it, and
//! pays for both; there the rings of this folder make the plain calls themselves. Nobody
//! above notices: the facts are the same, in the same order.
//!
//! The two ways never overlap on a socket. Into direct mode: the receive in flight is
//! cancelled, its last completion taken, and only then is the socket received from
//! directly. Back: the next receive is armed, and finds what has arrived meanwhile. A
//! send needs no such care, because one send per socket is in flight at most.

use std::net::Shutdown;
use std::os::fd::BorrowedFd;

use courser_core::limits;

use super::PIECES_MAX;
use crate::sys::{self, Errno};

const FEW: usize = 4;

/// Up to so many sockets are served directly: each costs a spinning turn a system call.
pub(super) const DIRECT_MAX: usize = 2;

/// Sends the pieces now, as far as there is room.
pub(super) fn send(socket: BorrowedFd<'_>, pieces: &[&[u8]]) -> Result<u32, Errno> {
    // Most sends are of one or two: clearing places for all costs more than those.
    if pieces.len() <= FEW {
        send_with::<FEW>(socket, pieces)
    } else {
        send_with::<PIECES_MAX>(socket, pieces)
    }
}

fn send_with<const MAX: usize>(socket: BorrowedFd<'_>, pieces: &[&[u8]]) -> Result<u32, Errno> {
    let mut vectors = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; MAX];
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        vector.iov_base = piece.as_ptr().cast_mut().cast();
        vector.iov_len = piece.len();
    }
    let count = pieces.len().min(MAX);
    // SAFETY: the vectors name the pieces, which are borrowed for this call.
    let taken = unsafe { sys::send_vectors(socket, &mut vectors[..count]) }?;
    // A send is bounded by the socket's buffer, far below 4 GiB.
    Ok(u32::try_from(taken).unwrap_or(u32::MAX))
}

/// Says why, as far as the socket takes it at once, and ends our direction. What came in
/// unread is read first: closed over it, the socket would answer with a reset that can
/// overtake the farewell.
pub(crate) fn say_farewell(socket: BorrowedFd<'_>, bytes: &[u8]) {
    let mut unread = [0; limits::HELLO_SIZE_MAX as usize];
    // Whoever does not take the farewell does without.
    send(socket, &[bytes]).ok();
    sys::receive(socket, &mut unread).ok();
    sys::shutdown(socket, Shutdown::Write);
}
