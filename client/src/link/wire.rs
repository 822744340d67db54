//! The connection's bytes: from the machine to the socket and back, without ever
//! waiting; and the next connection, when the machine wants one. Or the same over the
//! rings of a broker in this process (`Inside`), which is there or gone.
//!
//! ```text
//!   Open --- the machine wants another ---> Gone --- its time has come ---> Dialing
//!     ^                                     |  ^ '------- the kernel says no ----'  |
//!     |                   a name, no address '--> Asking -- answered ---> Dialing   |
//!     '------------------------------------- connected -----------------------------'
//! ```

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use courser_core::client::{self, PIECES_MAX};
use courser_core::time::Monotonic;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

#[cfg(feature = "embedded")]
use courser_transport::in_process::{self, Connector, Stream};

use crate::resolve::{Next, Question, Whereabouts};

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

    /// Of a wire that reads in place.
    #[cfg(feature = "embedded")]
    fn unused() -> Self {
        Self {
            bytes: Vec::new(),
            from: 0,
        }
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

/// How far the connection is. Streams are shared with whoever sleeps until one is
/// ready.
enum Connection {
    Open(Arc<TcpStream>),
    /// The kernel knocks at an address, until then at most.
    Dialing(Arc<TcpStream>, Monotonic),
    /// A name becomes addresses, until then at most.
    Asking(Arc<Question>, Monotonic),
    /// No connection, but rings.
    #[cfg(feature = "embedded")]
    Inside(Box<Stream>),
    Gone,
}

/// Where another connection can be had.
pub(crate) enum Way {
    /// Over the network.
    Network(Whereabouts),
    /// In this process.
    #[cfg(feature = "embedded")]
    Inside(Connector),
}

impl Way {
    fn network(&mut self) -> Option<&mut Whereabouts> {
        match self {
            Self::Network(whereabouts) => Some(whereabouts),
            // A broker in this process is there until it has stopped for good.
            #[cfg(feature = "embedded")]
            Self::Inside(_) => None,
        }
    }
}

/// What to sleep at.
pub(super) enum Watched {
    Socket(Arc<TcpStream>),
    Question(Arc<Question>),
    #[cfg(feature = "embedded")]
    Bell(in_process::Bell),
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(stream) => stream.as_fd(),
            Self::Question(question) => question.as_fd(),
            #[cfg(feature = "embedded")]
            Self::Bell(bell) => bell.as_fd(),
        }
    }
}

/// See the module.
pub(crate) struct Wire {
    connection: Connection,
    way: Way,
    /// How long one try may take.
    patience: Duration,
    buffer: Buffer,
}

impl Wire {
    /// Over a connected stream, which becomes non-blocking.
    pub(crate) fn new(
        stream: TcpStream,
        whereabouts: Whereabouts,
        patience: Duration,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            connection: Connection::Open(Arc::new(stream)),
            way: Way::Network(whereabouts),
            patience,
            buffer: Buffer::new(),
        })
    }

    /// Over rings of this process.
    #[cfg(feature = "embedded")]
    pub(crate) fn inside(stream: Stream, connector: Connector, patience: Duration) -> Self {
        Self {
            connection: Connection::Inside(Box::new(stream)),
            way: Way::Inside(connector),
            patience,
            buffer: Buffer::unused(),
        }
    }

    /// Goes a step towards the connection that the machine wants; true if it has it
    /// now, or cannot have it from where it tried.
    #[cold]
    pub(super) fn dial(&mut self, machine: &mut client::Client, now: Monotonic) -> bool {
        match &self.connection {
            Connection::Dialing(stream, until) => {
                let stream = Arc::clone(stream);
                match outcome(&stream) {
                    None if now < *until => false,
                    Some(Ok(())) => self.dialed(stream, machine, now),
                    None | Some(Err(_)) => self.failed(machine, now),
                }
            }
            Connection::Asking(question, _) if question.is_answered() => {
                self.begin_next(machine, now)
            }
            Connection::Asking(_, until) if now < *until => false,
            Connection::Asking(..) => {
                if let Some(whereabouts) = self.way.network() {
                    whereabouts.pass();
                }
                self.failed(machine, now)
            }
            #[cfg(feature = "embedded")]
            Connection::Inside(_) => self.failed(machine, now),
            Connection::Open(_) | Connection::Gone => {
                self.connection = Connection::Gone;
                if machine.wants_connection().is_none_or(|at| now < at) {
                    return false;
                }
                self.begin_next(machine, now)
            }
        }
    }

    /// Begins the way to the next address.
    fn begin_next(&mut self, machine: &mut client::Client, now: Monotonic) -> bool {
        let until = now.after(self.patience);
        let Some(whereabouts) = self.way.network() else {
            return self.failed(machine, now);
        };
        let begun = match whereabouts.next() {
            Next::Dial(address) => begin(&address),
            Next::Await(question) => {
                self.connection = Connection::Asking(question, until);
                return false;
            }
            Next::Fail => return self.failed(machine, now),
        };
        match begun {
            Ok((stream, true)) => self.dialed(Arc::new(stream), machine, now),
            Ok((stream, false)) => {
                self.connection = Connection::Dialing(Arc::new(stream), until);
                false
            }
            Err(_) => self.failed(machine, now),
        }
    }

    fn failed(&mut self, machine: &mut client::Client, now: Monotonic) -> bool {
        self.connection = Connection::Gone;
        machine.dial_failed(now);
        true
    }

    fn dialed(
        &mut self,
        stream: Arc<TcpStream>,
        machine: &mut client::Client,
        now: Monotonic,
    ) -> bool {
        // Without it answers are late, not wrong.
        stream.set_nodelay(true).ok();
        self.connection = Connection::Open(stream);
        machine.connected(now);
        true
    }

    /// When there is something to do here though nothing happens: for [`Wire::dial`], or
    /// for a broker that has no thread of its own.
    #[cfg_attr(
        not(feature = "embedded"),
        expect(unused_variables, reason = "sockets have no clock")
    )]
    pub(super) fn next_deadline(
        &self,
        machine: &client::Client,
        now: impl FnOnce() -> Monotonic,
    ) -> Monotonic {
        match (&self.connection, machine.wants_connection()) {
            (Connection::Dialing(_, until) | Connection::Asking(_, until), _) => *until,
            (_, Some(at)) => at,
            #[cfg(feature = "embedded")]
            (Connection::Inside(stream), None) => match stream.time_left() {
                Some(left) => now().after(left),
                None => Monotonic::NEVER,
            },
            (_, None) => Monotonic::NEVER,
        }
    }

    /// Writes what is offered, as far as the socket takes it.
    #[inline]
    pub(super) fn write(&mut self, machine: &mut client::Client) -> Writing {
        let Connection::Open(stream) = &self.connection else {
            return self.write_inside(machine);
        };
        while machine.has_pieces() {
            let pieces = machine.pieces();
            let result = match pieces.slices() {
                [] => break,
                [slice] => (&**stream).write(slice),
                slices => {
                    let mut vector = [IoSlice::new(&[]); PIECES_MAX];
                    for (entry, slice) in vector.iter_mut().zip(slices) {
                        *entry = IoSlice::new(slice);
                    }
                    (&**stream).write_vectored(&vector[..slices.len()])
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
        let Connection::Open(stream) = &self.connection else {
            return self.read_inside(machine);
        };
        let mut any = false;
        for _ in 0..READS_MAX {
            if machine.wants_close() || machine.wants_connection().is_some() {
                break;
            }
            let buffer = self.buffer.bytes();
            match (&**stream).read(buffer) {
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

    #[cfg(not(feature = "embedded"))]
    fn write_inside(&mut self, _: &mut client::Client) -> Writing {
        Writing::Done
    }

    #[cfg(not(feature = "embedded"))]
    fn read_inside(&mut self, _: &mut client::Client) -> bool {
        false
    }

    /// Writes what is offered, as far as there is room.
    #[cfg(feature = "embedded")]
    fn write_inside(&mut self, machine: &mut client::Client) -> Writing {
        let Connection::Inside(stream) = &mut self.connection else {
            return Writing::Done;
        };
        let mut any = false;
        let mut writing = Writing::Done;
        while machine.has_pieces() {
            let pieces = machine.pieces();
            if pieces.is_empty() {
                break;
            }
            match stream.write(pieces.slices()) {
                0 => {
                    writing = Writing::Blocked;
                    break;
                }
                count => {
                    machine.sent(count);
                    any = true;
                }
            }
        }
        if any {
            stream.flush();
        }
        writing
    }

    /// Reads what is there; true if anything was.
    #[cfg(feature = "embedded")]
    fn read_inside(&mut self, machine: &mut client::Client) -> bool {
        let Connection::Inside(stream) = &mut self.connection else {
            return false;
        };
        let is_over = |machine: &client::Client| {
            machine.wants_close() || machine.wants_connection().is_some()
        };
        if is_over(machine) {
            return false;
        }
        let any = stream.read(|bytes| {
            if !is_over(machine) {
                machine.received(bytes);
            }
        });
        if !any && stream.is_closed() {
            machine.closed();
            return true;
        }
        any
    }

    /// Announces that somebody is about to sleep at what is watched, and looks once more;
    /// false if there is reason to stay awake. Sockets need no announcement.
    pub(super) fn announce_sleep(&mut self, _for_room: bool) -> bool {
        match &mut self.connection {
            #[cfg(feature = "embedded")]
            Connection::Inside(stream) => stream.announce_sleep(_for_room),
            _ => true,
        }
    }

    /// Nobody sleeps any more.
    pub(super) fn announce_awake(&self) {
        match &self.connection {
            #[cfg(feature = "embedded")]
            Connection::Inside(stream) => stream.announce_awake(),
            _ => {}
        }
    }

    /// Where the broker of this connection is.
    ///
    /// # Errors
    ///
    /// If there is no connection.
    pub(crate) fn peer(&self) -> io::Result<SocketAddr> {
        match &self.connection {
            Connection::Open(stream) => stream.peer_addr(),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// A session is open on this connection.
    pub(super) fn arrived(&mut self) {
        if let Some(whereabouts) = self.way.network() {
            whereabouts.arrived();
        }
    }

    /// Where another connection can be had.
    pub(crate) fn way(&self) -> &Way {
        &self.way
    }

    /// Ends the connection.
    pub(super) fn shut(&mut self) {
        if let Connection::Open(stream) = &self.connection {
            // The peer may be gone already.
            stream.shutdown(Shutdown::Both).ok();
        }
        self.connection = Connection::Gone;
    }

    /// What to watch for the next turn, if there is something.
    pub(super) fn watched(&self) -> Option<Watched> {
        match &self.connection {
            Connection::Open(stream) | Connection::Dialing(stream, _) => {
                Some(Watched::Socket(Arc::clone(stream)))
            }
            Connection::Asking(question, _) => Some(Watched::Question(Arc::clone(question))),
            #[cfg(feature = "embedded")]
            Connection::Inside(stream) => Some(Watched::Bell(stream.bell())),
            Connection::Gone => None,
        }
    }

    /// Whether it is also to be watched for taking bytes.
    pub(super) fn is_dialing(&self) -> bool {
        matches!(self.connection, Connection::Dialing(..))
    }
}

/// Begins to connect, without waiting; whether that is all there is to it.
fn begin(address: &SocketAddr) -> io::Result<(TcpStream, bool)> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    let is_done = match connect(&socket, address) {
        Ok(()) => true,
        Err(Errno::INPROGRESS | Errno::INTR) => false,
        Err(error) => return Err(error.into()),
    };
    Ok((TcpStream::from(socket), is_done))
}

/// What became of it; none while the kernel has not said.
fn outcome(stream: &TcpStream) -> Option<io::Result<()>> {
    let mut fds = [PollFd::new(stream, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&at_once)) {
        Ok(0) | Err(Errno::INTR) => None,
        Err(error) => Some(Err(error.into())),
        Ok(_) => Some(match sockopt::socket_error(stream) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) | Err(error) => Err(error.into()),
        }),
    }
}
