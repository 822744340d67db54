//! Waking a thread that sleeps in its ring, and only one that sleeps.
//!
//! Cast: a [`Doorbell`] belongs to one thread, the sleeper; everybody who puts work
//! where that thread looks for it holds a clone and rings. Ringing costs a system
//! call and the waking of a thread, so it happens only if the sleeper said that it
//! is going to sleep.
//!
//! Who announces, looks and checks in which order, and why nothing is lost, is said at
//! the word itself ([`WakeWord`]), of which there are models for every interleaving.
//! Here is the bell that it decides about: a counter of the kernel's that the sleeper's
//! ring watches. A raise between the last look and the sleep is not lost either, since
//! the counter stays raised.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use courser_core::ring::{Wake, WakeWord};
use crossbeam::utils::CachePadded;

use crate::sys::{self, Errno};

/// A handle to one thread's bell; clones ring the same one.
#[derive(Debug, Clone)]
pub struct Doorbell {
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    /// Written by the sleeper and by the waker that takes it; read by every waker.
    word: CachePadded<WakeWord>,
    counter: OwnedFd,
}

impl Doorbell {
    /// A bell for one sleeper.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            bell: Arc::new(Bell {
                word: CachePadded::new(WakeWord::awake()),
                counter: sys::event_counter()?,
            }),
        })
    }

    /// Called by a waker after it has put work where the sleeper looks. A system
    /// call only if the sleeper sleeps and nobody else has rung yet.
    pub fn ring(&self) {
        if self.bell.word.check() == Wake::Needed {
            sys::event_raise(self.bell.counter.as_fd());
        }
    }

    /// Called by the sleeper before its last look at its queues.
    pub fn announce_sleep(&self) {
        self.bell.word.announce();
    }

    /// Called by the sleeper when it is awake again, or when its last look found
    /// something after all.
    pub fn announce_awake(&self) {
        self.bell.word.withdraw();
    }

    /// Lowers what was raised. For a sleeper without a ring, which does so itself.
    pub(crate) fn silence(&self) {
        sys::event_clear(self.counter());
    }

    /// What a ring watches to end its sleep.
    pub(crate) fn counter(&self) -> BorrowedFd<'_> {
        self.bell.counter.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    fn is_raised(bell: &Doorbell, timeout: Option<Duration>) -> bool {
        let set = sys::epoll_create().unwrap();
        sys::epoll_control(set.as_fd(), libc::EPOLL_CTL_ADD, bell.counter(), 1, 0).unwrap();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }];
        let raised = sys::epoll_wait(set.as_fd(), &mut events, timeout).unwrap() == 1;
        if raised {
            sys::event_clear(bell.counter());
        }
        raised
    }

    #[test]
    fn a_bell_is_silent_while_its_owner_is_awake() {
        let bell = Doorbell::new().unwrap();
        bell.ring();
        assert!(!is_raised(&bell, Some(Duration::ZERO)));
        bell.announce_sleep();
        bell.announce_awake();
        bell.ring();
        assert!(!is_raised(&bell, Some(Duration::ZERO)));
    }

    #[test]
    fn only_the_first_of_two_wakers_rings() {
        let bell = Doorbell::new().unwrap();
        bell.announce_sleep();
        bell.ring();
        assert!(is_raised(&bell, Some(Duration::ZERO)));
        bell.clone().ring();
        assert!(!is_raised(&bell, Some(Duration::ZERO)));
        assert!(bell.counter().as_raw_fd() >= 0);
    }

    #[test]
    fn no_wake_up_is_lost_between_a_last_look_and_a_sleep() {
        const ROUNDS: u64 = 20_000;
        let bell = Doorbell::new().unwrap();
        let work = Arc::new(AtomicU64::new(0));
        let done = Arc::new(AtomicU64::new(0));
        let waker = {
            let (bell, work, done) = (bell.clone(), Arc::clone(&work), Arc::clone(&done));
            std::thread::spawn(move || {
                for round in 1..=ROUNDS {
                    work.store(round, Ordering::Release);
                    bell.ring();
                    while done.load(Ordering::Acquire) < round {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let mut seen = 0;
        while seen < ROUNDS {
            bell.announce_sleep();
            if work.load(Ordering::Acquire) == seen {
                assert!(
                    is_raised(&bell, Some(Duration::from_secs(20))),
                    "asleep with work waiting after round {seen}"
                );
            }
            bell.announce_awake();
            seen = work.load(Ordering::Acquire);
            done.store(seen, Ordering::Release);
        }
        waker.join().unwrap();
    }
}
