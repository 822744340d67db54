//! A TCP proxy that does harm: it cuts connections at a byte of one's choice or at once,
//! and swallows answers for a while before it does.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What happens to one connection.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// It is left alone.
    Passes,
    /// It is cut once so many bytes of the client have passed.
    CutBehindSent(usize),
    /// It is cut once so many bytes of the broker have passed.
    CutBehindAnswered(usize),
    /// It is cut once so many bytes of the broker have passed; and of the client no more
    /// pass at a time than the second number says, until the broker has answered since:
    /// so its answers cannot all gather in one. As many have to hold something that is
    /// answered, wherever they begin.
    CutBehindAnsweredInTurn(usize, usize),
    /// Of the broker's answers only so many bytes pass; the client is heard on for
    /// this long, and then it is cut.
    Deaf(usize, Duration),
    /// It is cut at once.
    Refused,
}

/// Both ends of every connection there is.
type Live = Arc<Mutex<Vec<(usize, [TcpStream; 2])>>>;

/// The proxy; it ends with its value.
pub struct Proxy {
    pub address: String,
    live: Live,
    connections: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy before `broker` whose connections have these fates, one after the
    /// other; later ones are left alone.
    pub fn start(broker: &str, fates: Vec<Fate>) -> Self {
        Self::start_among(vec![broker.to_owned()], fates)
    }

    /// The same before several brokers: the first connection goes to the first, the
    /// second to the second, and all that follow to the last.
    pub fn start_among(brokers: Vec<String>, fates: Vec<Fate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (connections, ends) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, ending) = (Arc::clone(&connections), Arc::clone(&ends));
        let live = Live::default();
        let registered = Arc::clone(&live);
        let acceptor = thread::spawn(move || {
            let mut links = Vec::new();
            for client in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let fate = fates.get(number).copied().unwrap_or(Fate::Passes);
                let broker = brokers[number.min(brokers.len() - 1)].clone();
                let ending = Arc::clone(&ending);
                let live = Arc::clone(&registered);
                links.retain(|link: &JoinHandle<()>| !link.is_finished());
                links.push(thread::spawn(move || {
                    link(&client.unwrap(), &broker, fate, &ending, (&live, number));
                }));
            }
            for link in links {
                link.join().unwrap();
            }
        });
        Self {
            address,
            live,
            connections,
            ends,
            acceptor: Some(acceptor),
        }
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Cuts every connection there is; returns how many there were.
    pub fn cut_all(&self) -> usize {
        let live = self.live.lock().unwrap();
        live.iter().for_each(|(_, ends)| cut(ends));
        live.len()
    }

    /// Cuts one connection of those there are; returns how many it cut.
    pub fn cut_one(&self, choice: usize) -> usize {
        let live = self.live.lock().unwrap();
        let Some((_, ends)) = live.get(choice % live.len().max(1)) else {
            return 0;
        };
        cut(ends);
        1
    }
}

fn cut(ends: &[TcpStream; 2]) {
    for end in ends {
        // It may be closed already, which is what is wanted.
        let _closed = end.shutdown(Shutdown::Both);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // Only a connection wakes who waits for one.
        let _woken = TcpStream::connect(&self.address);
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
            && !thread::panicking()
        {
            panic!("the proxy panicked");
        }
    }
}

fn link(
    client: &TcpStream,
    broker: &str,
    fate: Fate,
    ends: &AtomicBool,
    (live, number): (&Live, usize),
) {
    if matches!(fate, Fate::Refused) {
        return;
    }
    let Ok(broker) = TcpStream::connect(broker) else {
        return;
    };
    for stream in [client, &broker] {
        stream.set_nodelay(true).unwrap();
        // So that each direction looks up now and then.
        let look_up = Some(Duration::from_millis(20));
        stream.set_read_timeout(look_up).unwrap();
    }
    let pair = [client, &broker].map(|stream| stream.try_clone().unwrap());
    live.lock().unwrap().push((number, pair));
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::SeqCst) || ends.load(Ordering::SeqCst);
    let mut turn = usize::MAX;
    let (up, down, deaf_for) = match fate {
        Fate::CutBehindSent(bytes) => (bytes, usize::MAX, None),
        Fate::CutBehindAnswered(bytes) => (usize::MAX, bytes, None),
        Fate::CutBehindAnsweredInTurn(bytes, most) => {
            turn = most;
            (usize::MAX, bytes, None)
        }
        Fate::Deaf(bytes, time) => (usize::MAX, bytes, Some(time)),
        Fate::Passes | Fate::Refused => (usize::MAX, usize::MAX, None),
    };
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut left = up;
            while left > 0 && !is_over() {
                let before = answered.load(Ordering::SeqCst);
                let most = left.min(turn);
                if pass(client, &broker, most, &is_over, &AtomicUsize::new(0)) < most {
                    break;
                }
                left -= most;
                while left > 0 && answered.load(Ordering::SeqCst) == before && !is_over() {
                    thread::yield_now();
                }
            }
            over.store(true, Ordering::SeqCst);
        });
        pass(&broker, client, down, &is_over, &answered);
        if let Some(time) = deaf_for {
            let until = Instant::now() + time;
            let mut swallowed = [0; 4096];
            while Instant::now() < until && !is_over() {
                // What comes is gone; that nothing came is no news.
                let _gone = (&broker).read(&mut swallowed);
            }
        }
        over.store(true, Ordering::SeqCst);
    });
    let mut live = live.lock().unwrap();
    let place = live.iter().position(|(other, _)| *other == number);
    let (_, pair) = live.swap_remove(place.expect("it was put there above"));
    cut(&pair);
}

/// Passes at most `bytes` on, and counts them in `passed`; returns how many there were.
fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    bytes: usize,
    is_over: &dyn Fn() -> bool,
    passed: &AtomicUsize,
) -> usize {
    let mut buffer = [0; 4096];
    let mut left = bytes;
    while left > 0 && !is_over() {
        let most = left.min(buffer.len());
        match from.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
                left -= count;
                passed.fetch_add(count, Ordering::SeqCst);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_reset) => break,
        }
    }
    bytes - left
}
