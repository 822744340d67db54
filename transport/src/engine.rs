//! A broker without a thread: whoever waits for it, drives it.
//!
//! ```text
//!   Broker::turn ----------.
//!   a client that waits ----+--> the baton --> Worker::turn, until nothing is left to do
//!   a client that wrote ---'
//! ```
//!
//! One thread at a time has the worker. Who reads takes a turn if nobody else does: what
//! it waits for comes of whoever does. Who wrote takes one in any case, also if it has to
//! wait for the few microseconds of somebody else's: nobody may look for it afterwards.
//!
//! Invariants: what was written when [`Engine::drive`] began is acted on when it returns,
//! so a thread that sleeps misses nothing as long as every write is driven; what only
//! time brings, or a device, which rings nobody who sleeps here, is in
//! [`Engine::time_left`].

use std::fmt;
use std::process::abort;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use courser_core::ring::Baton;
use courser_core::time::Monotonic;

use crate::clock::Clock;
use crate::ring::epoll::EpollRing;
use crate::worker::{Rests, Turned, Worker};

/// How often the baton is tried for before the processor is yielded.
const TRIES_MAX: u32 = 256;

/// See the module.
pub(crate) struct Engine {
    /// None once the broker has stopped.
    worker: Baton<Option<Worker<EpollRing>>>,
    /// When it has to be turned though nothing happens. Written by whoever turns, read by
    /// whoever sleeps, for whom it was written before it let go of the worker.
    next_expiry: AtomicU64,
}

impl Engine {
    pub(crate) fn new(worker: Worker<EpollRing>) -> Self {
        Self {
            worker: Baton::new(Some(worker)),
            next_expiry: AtomicU64::new(Monotonic::NEVER.0),
        }
    }

    /// Takes turns until nothing is left to do, unless another thread does; whether
    /// something was done.
    pub(crate) fn turn(&self) -> bool {
        match self.worker.try_take() {
            Some(mut worker) => self.turn_held(&mut worker),
            None => false,
        }
    }

    /// As [`Engine::turn`], but waits for another thread that does.
    pub(crate) fn drive(&self) {
        let mut tries = 0;
        loop {
            if let Some(mut worker) = self.worker.try_take() {
                self.turn_held(&mut worker);
                return;
            }
            tries += 1;
            if tries < TRIES_MAX {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }

    /// Stops in order, and ends the worker: every link is told, and is gone then.
    pub(crate) fn stop(&self) {
        let mut worker = loop {
            match self.worker.try_take() {
                Some(worker) => break worker,
                None => thread::yield_now(),
            }
        };
        if let Some(worker) = &mut *worker {
            worker.control().stop();
            while turn(worker, Rests::Sleeping) != Turned::Over {}
        }
        *worker = None;
    }

    /// How long until it has to be turned though nothing happens.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        match Monotonic(self.next_expiry.load(Ordering::Relaxed)) {
            Monotonic::NEVER => None,
            due => Some(due.since(Clock::new().now().monotonic)),
        }
    }

    fn turn_held(&self, worker: &mut Option<Worker<EpollRing>>) -> bool {
        let Some(worker) = worker else {
            return false;
        };
        let mut worked = false;
        // What comes in meanwhile is for the threads that bring it, so this ends.
        loop {
            worked |= turn(worker, Rests::Never) == Turned::Worked;
            if !worker.has_work() {
                break;
            }
        }
        let next = [worker.next_expiry(), worker.next_look()];
        let next = next.into_iter().flatten().min();
        let next = next.unwrap_or(Monotonic::NEVER);
        self.next_expiry.store(next.0, Ordering::Relaxed);
        worked
    }
}

fn turn(worker: &mut Worker<EpollRing>, rests: Rests) -> Turned {
    let mut guard = Guard { is_over: false };
    let turned = worker.turn(rests);
    guard.is_over = true;
    match turned {
        Ok(turned) => turned,
        Err(fault) => {
            eprintln!("fatal: {fault}");
            abort();
        }
    }
}

/// A broker with a broken invariant ends the process, on whosever thread it is.
struct Guard {
    is_over: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_over {
            eprintln!("fatal: a turn of the broker panicked; the broker ends with it");
            abort();
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}
