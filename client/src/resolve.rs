//! Where brokers are now: names become addresses anew for every connection, so that a
//! name can move from one machine to another.
//!
//! ```text
//!   next ---- an address ----------------------------------------> dial it
//!        '--- a name ---> a thread asks ---> rings, and has the answer ---> next
//! ```
//!
//! The system's way to ask waits, for seconds if it has to, and whoever drives a link
//! never waits; so a thread does. There is at most one for each endpoint, and it ends
//! with its answer.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use crate::address::{Endpoint, Endpoints};

type Ask = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// How a name and a port become addresses.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Ask>);

impl Resolver {
    pub(crate) fn new(
        ask: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(ask))
    }

    /// All addresses of an endpoint now; may wait.
    pub(crate) fn resolve(&self, endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
        let addresses = match literal(endpoint) {
            Some(address) => vec![address],
            None => (self.0)(endpoint.host(), endpoint.port())?,
        };
        if addresses.is_empty() {
            let why = "the name has no address";
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        Ok(addresses)
    }
}

impl Default for Resolver {
    /// As the system does it.
    fn default() -> Self {
        Self::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The endpoint's address, if it is written as one.
fn literal(endpoint: &Endpoint) -> Option<SocketAddr> {
    let address: IpAddr = endpoint.host().parse().ok()?;
    Some(SocketAddr::new(address, endpoint.port()))
}

/// A name on its way to become addresses.
pub(crate) struct Question {
    answer: Mutex<Option<io::Result<Vec<SocketAddr>>>>,
    bell: OwnedFd,
}

impl Question {
    /// Has a thread ask.
    fn ask(resolver: &Resolver, endpoint: &Endpoint) -> io::Result<Arc<Self>> {
        let question = Arc::new(Self {
            answer: Mutex::default(),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        });
        let asked = Arc::clone(&question);
        let (resolver, endpoint) = (resolver.clone(), endpoint.clone());
        thread::Builder::new()
            .name("courser-resolve".to_owned())
            .spawn(move || {
                // The application's code: if it panics, there is no address this time.
                let answer = catch_unwind(AssertUnwindSafe(|| resolver.resolve(&endpoint)))
                    .unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")));
                *asked.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                // The counter is full only if it was rung already.
                rustix::io::write(&asked.bell, &1u64.to_ne_bytes()).ok();
            })?;
        Ok(question)
    }

    pub(crate) fn is_answered(&self) -> bool {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        answer.is_some()
    }
}

impl AsFd for Question {
    /// Readable once there is an answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// What is to be done for the next connection.
pub(crate) enum Next {
    Dial(SocketAddr),
    /// Ask again once this is answered.
    Await(Arc<Question>),
    /// From this endpoint nothing is to be had.
    Fail,
}

/// See the module.
pub(crate) struct Whereabouts {
    endpoints: Vec<Endpoint>,
    resolver: Resolver,
    /// Which endpoint is tried next.
    next: usize,
    /// The endpoint that the last address was of.
    last: usize,
    /// Addresses of that one that were not tried.
    candidates: VecDeque<SocketAddr>,
    /// By endpoint, questions without an answer, or with one that nobody has read.
    questions: Vec<Option<Arc<Question>>>,
}

impl Whereabouts {
    /// The endpoint at `first` is tried first.
    pub(crate) fn new(endpoints: &Endpoints, first: usize, resolver: Resolver) -> Self {
        let endpoints: Vec<Endpoint> = endpoints.iter().cloned().collect();
        Self {
            questions: endpoints.iter().map(|_| None).collect(),
            endpoints,
            resolver,
            next: first,
            last: first,
            candidates: VecDeque::new(),
        }
    }

    /// The same, without what was learned.
    pub(crate) fn afresh(&self) -> Self {
        let endpoints = Endpoints::of(self.endpoints.clone());
        Self::new(&endpoints, self.last, self.resolver.clone())
    }

    /// Where to try next.
    pub(crate) fn next(&mut self) -> Next {
        if let Some(address) = self.candidates.pop_front() {
            return Next::Dial(address);
        }
        self.next %= self.endpoints.len();
        self.last = self.next;
        let endpoint = &self.endpoints[self.next];
        if let Some(address) = literal(endpoint) {
            self.next += 1;
            return Next::Dial(address);
        }
        let place = &mut self.questions[self.next];
        let question = match place.take() {
            Some(question) => question,
            None => match Question::ask(&self.resolver, endpoint) {
                Ok(question) => question,
                Err(_no_thread) => {
                    self.next += 1;
                    return Next::Fail;
                }
            },
        };
        let answer = {
            let mut answer = question
                .answer
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            answer.take()
        };
        let Some(answer) = answer else {
            *place = Some(Arc::clone(&question));
            return Next::Await(question);
        };
        self.next += 1;
        self.candidates = answer.unwrap_or_default().into();
        self.candidates.pop_front().map_or(Next::Fail, Next::Dial)
    }

    /// Nobody waits for the answer that was to be awaited any more.
    pub(crate) fn pass(&mut self) {
        self.next += 1;
    }

    /// A session is open: the next connection is tried there first, wherever that is
    /// then.
    pub(crate) fn arrived(&mut self) {
        self.candidates.clear();
        self.next = self.last;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicU16, Ordering};

    fn endpoints(text: &str) -> Endpoints {
        Endpoints::parse(text).unwrap()
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 9], port))
    }

    fn dialled(whereabouts: &mut Whereabouts) -> Option<SocketAddr> {
        loop {
            match whereabouts.next() {
                Next::Dial(address) => return Some(address),
                Next::Fail => return None,
                Next::Await(question) => {
                    while !question.is_answered() {
                        thread::yield_now();
                    }
                }
            }
        }
    }

    #[test]
    fn a_name_is_asked_for_again_after_every_connection_and_an_address_never() {
        let port = Arc::new(AtomicU16::new(1));
        let now = Arc::clone(&port);
        let resolver = Resolver::new(move |host, _| {
            assert_eq!(host, "broker");
            Ok(vec![at(now.load(Ordering::SeqCst)), at(100)])
        });
        let mut whereabouts = Whereabouts::new(&endpoints("broker;127.0.0.9:7"), 0, resolver);
        assert_eq!(dialled(&mut whereabouts), Some(at(1)));
        assert_eq!(dialled(&mut whereabouts), Some(at(100)));
        assert_eq!(dialled(&mut whereabouts), Some(at(7)));
        port.store(2, Ordering::SeqCst);
        assert_eq!(dialled(&mut whereabouts), Some(at(2)));
        whereabouts.arrived();
        port.store(3, Ordering::SeqCst);
        assert_eq!(dialled(&mut whereabouts), Some(at(3)), "where it was last");
    }

    #[test]
    fn a_name_without_an_answer_gives_way_to_the_next_endpoint() {
        let resolver = Resolver::new(|_, _| Err(io::ErrorKind::NotFound.into()));
        let mut whereabouts = Whereabouts::new(&endpoints("a;127.0.0.9:7"), 0, resolver);
        assert_eq!(dialled(&mut whereabouts), None);
        assert_eq!(dialled(&mut whereabouts), Some(at(7)));
    }

    #[test]
    fn a_resolver_that_panics_is_asked_again_later() {
        let has_panicked = std::sync::atomic::AtomicBool::new(false);
        let resolver = Resolver::new(move |_, _| {
            assert!(has_panicked.swap(true, Ordering::SeqCst), "only once");
            Ok(vec![at(8)])
        });
        let mut whereabouts = Whereabouts::new(&endpoints("a"), 0, resolver);
        assert_eq!(dialled(&mut whereabouts), None);
        assert_eq!(dialled(&mut whereabouts), Some(at(8)));
    }

    #[test]
    fn a_question_that_takes_long_is_not_asked_twice() {
        let (answer, answers) = std::sync::mpsc::channel();
        let answers = Mutex::new(answers);
        let resolver = Resolver::new(move |_, _| Ok(answers.lock().unwrap().recv().unwrap()));
        let mut whereabouts = Whereabouts::new(&endpoints("slow;127.0.0.9:7"), 0, resolver);
        let Next::Await(first) = whereabouts.next() else {
            panic!("it is a name")
        };
        whereabouts.pass();
        assert_eq!(dialled(&mut whereabouts), Some(at(7)));
        let Next::Await(second) = whereabouts.next() else {
            panic!("it has no answer")
        };
        assert!(Arc::ptr_eq(&first, &second));
        answer.send(vec![at(8)]).unwrap();
        assert_eq!(dialled(&mut whereabouts), Some(at(8)));
    }
}
