//! A server on a thread of its own, pinned, that can be told to rest.
//!
//! The cast: [`Server`] is held by whoever measures; [`Site`] is what the
//! server's thread works with; [`Gate`] is the switch between the two.
//!
//! Several servers share one core in one run, and only the one being measured
//! may spin on it. So a server that spins passes its gate once per turn: one
//! load of a line that nobody writes, and behind it a sleep that ends when the
//! gate opens. A server that sleeps in the kernel when it has nothing to do
//! needs no gate and passes none.
//!
//! A server ends when its peer closes, or when its `Server` is dropped: the
//! gate says stopped, connections are shut down, an accept is woken by a
//! connection, and the thread is joined.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::pin;

/// How long a server may take to finish the turn it is in.
const PAUSE_WAIT_MAX: Duration = Duration::from_secs(2);

/// What a server has done in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Frames read.
    pub frames: u64,
    /// Replies written.
    pub replies: u64,
}

/// A running server. Dropping it ends its thread.
#[derive(Debug)]
pub(super) struct Server {
    name: String,
    address: SocketAddr,
    gate: Arc<Gate>,
    thread_id: Option<u32>,
    thread: Option<JoinHandle<Result<Served, BenchError>>>,
}

impl Server {
    /// Starts `serve` on a thread pinned to `cpu` and returns once it listens.
    ///
    /// # Errors
    /// Whatever kept the thread from getting as far as [`Site::accept`].
    pub(super) fn start(
        name: &str,
        cpu: usize,
        serve: impl FnOnce(&Site) -> Result<Served, BenchError> + Send + 'static,
    ) -> Result<Self, BenchError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(BenchError::socket("listen on loopback"))?;
        let address = listener
            .local_addr()
            .map_err(BenchError::socket("ask for the address listened on"))?;
        let gate = Arc::new(Gate::new());
        let (ready, is_ready) = sync_channel(1);
        let site = Site {
            listener,
            gate: Arc::clone(&gate),
            ready,
        };
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let served = pin::pin_current_thread(cpu).and_then(|()| serve(&site));
                site.gate.rested.store(true, Ordering::Release);
                served
            })
            .map_err(|source| BenchError::Thread {
                name: name.to_owned(),
                source,
            })?;
        let mut server = Self {
            name: name.to_owned(),
            address,
            gate,
            thread_id: None,
            thread: Some(thread),
        };
        // The sender is dropped without a word if the thread fails before it
        // accepts; its result says why.
        match is_ready.recv() {
            Ok(thread_id) => server.thread_id = thread_id,
            Err(_) => drop(server.join()?),
        }
        Ok(server)
    }

    /// Its thread's id, if the kernel tells.
    pub(super) fn thread_id(&self) -> Option<u32> {
        self.thread_id
    }

    /// Where it listens.
    #[must_use]
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends the server to sleep and returns when it no longer takes time from
    /// its core.
    ///
    /// # Errors
    /// [`BenchError::DidNotPause`] if it does not come to its gate.
    pub(super) fn pause(&self) -> Result<(), BenchError> {
        self.gate.state.store(PAUSED, Ordering::Release);
        let asked = Instant::now();
        while !self.gate.rested.load(Ordering::Acquire) {
            if asked.elapsed() > PAUSE_WAIT_MAX {
                return Err(BenchError::DidNotPause {
                    name: self.name.clone(),
                    waited: PAUSE_WAIT_MAX,
                });
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// Wakes the server up. It takes some tens of microseconds to be there.
    pub(super) fn resume(&self) {
        self.gate.state.store(OPEN, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Ends the server and says what it has done.
    ///
    /// # Errors
    /// What the server itself failed with.
    pub(super) fn stop(mut self) -> Result<Served, BenchError> {
        self.end()
    }

    fn end(&mut self) -> Result<Served, BenchError> {
        self.gate.stop();
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
            if !thread.is_finished() {
                // Only to end an accept: whether there is still one to end, the
                // server knows and we do not.
                drop(TcpStream::connect_timeout(
                    &self.address,
                    Duration::from_millis(100),
                ));
            }
        }
        self.join()
    }

    fn join(&mut self) -> Result<Served, BenchError> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(Served::default()),
            Some(Ok(served)) => served,
            Some(Err(_)) => Err(BenchError::Panicked {
                name: self.name.clone(),
            }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody is left to tell; whoever wants to know calls `stop`.
        drop(self.end());
    }
}

/// What a server's thread works with.
#[derive(Debug)]
pub(super) struct Site {
    listener: TcpListener,
    gate: Arc<Gate>,
    ready: SyncSender<Option<u32>>,
}

impl Site {
    /// Says that set-up is over and waits for the next connection, with
    /// TCP_NODELAY set. `None` if the server was stopped instead.
    pub(super) fn accept(&self) -> Result<Option<TcpStream>, BenchError> {
        // The channel has room for one word; nobody listens for a second.
        self.ready.try_send(crate::cpu_time::this_thread()).ok();
        if self.gate.is_stopped() {
            return Ok(None);
        }
        let (connection, _) = self
            .listener
            .accept()
            .map_err(BenchError::socket("accept a connection"))?;
        connection
            .set_nodelay(true)
            .map_err(BenchError::socket("set TCP_NODELAY"))?;
        let ours = connection
            .try_clone()
            .map_err(BenchError::socket("duplicate a descriptor"))?;
        // Looking only after registering: a stop in between finds the
        // connection in the list, a stop before it is seen here.
        self.gate.register(ours);
        if self.gate.is_stopped() {
            return Ok(None);
        }
        Ok(Some(connection))
    }

    /// Like [`Self::accept`], for servers that spin.
    pub(super) fn accept_nonblocking(&self) -> Result<Option<TcpStream>, BenchError> {
        let connection = self.accept()?;
        if let Some(connection) = &connection {
            connection
                .set_nonblocking(true)
                .map_err(BenchError::socket("make a socket non-blocking"))?;
            self.begins_to_spin();
        }
        Ok(connection)
    }

    /// To be called before the first turn: from here on the server takes time
    /// from its core until it rests at its gate.
    pub(super) fn begins_to_spin(&self) {
        self.gate.rested.store(false, Ordering::Release);
    }

    /// Passes the gate: true at once if it is open, after a sleep if it was
    /// closed and has opened, false if the server is to end. Per turn.
    #[inline]
    pub(super) fn keep_going(&self) -> bool {
        // Relaxed: nothing but the switch itself is communicated.
        if self.gate.state.load(Ordering::Relaxed) == OPEN {
            return true;
        }
        self.gate.rest()
    }

    /// False for the errors that a connection being closed gives, and for all
    /// errors once the server is to end.
    pub(super) fn is_failure(&self, error: &io::Error) -> bool {
        let closing = matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected
        );
        !closing && !self.gate.is_stopped()
    }
}

const OPEN: u8 = 0;
const PAUSED: u8 = 1;
const STOPPED: u8 = 2;

/// The switch. `state` is written by whoever measures and read by the server;
/// `rested` the other way round.
///
/// The line is the gate's alone: it is loaded on every turn of a server and
/// must not move between cores because of a neighbour.
#[derive(Debug)]
#[repr(align(128))]
struct Gate {
    state: AtomicU8,
    /// True while the server sleeps at the gate, has not begun, or has ended.
    rested: AtomicBool,
    /// What to shut down to end a server that sleeps in the kernel.
    connections: Mutex<Vec<TcpStream>>,
}

impl Gate {
    fn new() -> Self {
        Self {
            state: AtomicU8::new(OPEN),
            rested: AtomicBool::new(true),
            connections: Mutex::new(Vec::new()),
        }
    }

    fn is_stopped(&self) -> bool {
        self.state.load(Ordering::Acquire) == STOPPED
    }

    fn register(&self, connection: TcpStream) {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.push(connection);
    }

    fn stop(&self) {
        self.state.store(STOPPED, Ordering::Release);
        let connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for connection in connections.iter() {
            // A connection that is already gone needs no shutting down.
            drop(connection.shutdown(std::net::Shutdown::Both));
        }
    }

    #[cold]
    fn rest(&self) -> bool {
        self.rested.store(true, Ordering::Release);
        loop {
            match self.state.load(Ordering::Acquire) {
                OPEN => break,
                STOPPED => return false,
                // A wake-up between the load and the park is kept by the park
                // token, so it is not lost.
                _ => thread::park(),
            }
        }
        self.rested.store(false, Ordering::Release);
        true
    }
}
