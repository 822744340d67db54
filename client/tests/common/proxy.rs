//! A proxy between the library and a broker that cuts, swallows and refuses as it
//! is told.
//!
//! ```text
//!   library --- up ---> proxy ---> broker
//!           <-- down --       <---
//! ```
//!
//! Each connection is two threads that copy one direction each. A plan says what
//! becomes of the connections, in their order; those without a plan go through.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the broker.
    Up,
    /// To the library.
    Down,
}

/// What becomes of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ends once so many bytes have gone this way; they still arrive.
    CutAfter(Way, u64),
    /// As above, but nothing of what follows in the other direction arrives: the
    /// broker hears what the library believes lost, or the other way round.
    CutAfterAndSwallow(Way, u64),
    /// Closed as soon as it is there.
    Refused,
    /// Nothing happens to it.
    None,
}

struct State {
    broker: Mutex<SocketAddr>,
    plan: Mutex<VecDeque<Fate>>,
    connections: AtomicU64,
    /// Bytes of the last connection that ended or goes on, each way.
    bytes: [AtomicU64; 2],
    /// While set, bytes to the library are read and kept from it.
    is_silent: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

/// See the module.
#[derive(Clone)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// In front of `broker`, with a plan for its first connections.
    pub fn start(broker: SocketAddr, plan: impl IntoIterator<Item = Fate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            broker: Mutex::new(broker),
            plan: Mutex::new(plan.into_iter().collect()),
            connections: AtomicU64::new(0),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            is_silent: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let proxy = Self { address, state };
        let accepting = proxy.clone();
        thread::spawn(move || {
            // Until the process ends.
            while let Ok((library, _)) = listener.accept() {
                accepting.connect(&library);
            }
        });
        proxy
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Bytes that went this way on the newest connection.
    pub fn bytes(&self, way: Way) -> u64 {
        self.state.bytes[way as usize].load(Ordering::SeqCst)
    }

    /// What becomes of further connections, after those planned already.
    pub fn plan(&self, fates: impl IntoIterator<Item = Fate>) {
        self.state.plan.lock().unwrap().extend(fates);
    }

    /// Leads further connections to another broker.
    pub fn switch(&self, broker: SocketAddr) {
        *self.state.broker.lock().unwrap() = broker;
    }

    /// Ends every connection.
    pub fn cut(&self) {
        for stream in self.state.streams.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// From here on nothing reaches the library, and what comes is lost; or it does
    /// again, on connections made from here on.
    pub fn set_silent(&self, is_silent: bool) {
        self.state.is_silent.store(is_silent, Ordering::SeqCst);
    }

    fn connect(&self, library: &TcpStream) {
        self.state.connections.fetch_add(1, Ordering::SeqCst);
        let fate = self.state.plan.lock().unwrap().pop_front();
        let fate = fate.unwrap_or(Fate::None);
        if fate == Fate::Refused {
            return;
        }
        // A broker that is gone refuses here.
        let broker = *self.state.broker.lock().unwrap();
        let Ok(broker) = TcpStream::connect(broker) else {
            return;
        };
        let mut streams = self.state.streams.lock().unwrap();
        for (way, from, to) in [(Way::Up, library, &broker), (Way::Down, &broker, library)] {
            from.set_nodelay(true).unwrap();
            self.state.bytes[way as usize].store(0, Ordering::SeqCst);
            streams.push(from.try_clone().unwrap());
            let state = Arc::clone(&self.state);
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || state.copy(way, from, to, fate));
        }
    }
}

impl State {
    fn copy(&self, way: Way, mut from: TcpStream, mut to: TcpStream, fate: Fate) {
        let (limit, swallows) = match fate {
            Fate::CutAfter(cut, after) if cut == way => (Some(after), false),
            Fate::CutAfterAndSwallow(cut, after) if cut == way => (Some(after), true),
            _ => (None, false),
        };
        let mut passed = 0u64;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut bytes = &buffer[..count];
            if let Some(limit) = limit {
                let left = usize::try_from(limit - passed).unwrap();
                bytes = &bytes[..left.min(count)];
            }
            if way == Way::Down && self.is_silent.load(Ordering::SeqCst) {
                continue;
            }
            // Before they are there: whoever has seen what they do finds them counted.
            passed += bytes.len() as u64;
            self.bytes[way as usize].store(passed, Ordering::SeqCst);
            if to.write_all(bytes).is_err() {
                break;
            }
            if Some(passed) == limit {
                break;
            }
        }
        if swallows {
            // What is on its way back is lost; what went this way still arrives.
            from.shutdown(Shutdown::Both).ok();
            to.shutdown(Shutdown::Write).ok();
        } else {
            from.shutdown(Shutdown::Both).ok();
            to.shutdown(Shutdown::Both).ok();
        }
    }
}
