//! Who waits for the link: awake, parked, or asleep at the socket.
//!
//! ```text
//!   foreground    an application's thread that waits: it drives, turn by turn,
//!                 for the spin budget, and then
//!      sleeps     in `poll` at the socket, if no other one of them does, else
//!      parks      until its wish is fulfilled, or the socket needs somebody
//!   expecting     a future of a consumer: its waker
//! ```
//!
//! Whoever drives wakes those whose wish came true, each by name. Whoever leaves
//! sees to it that somebody is left at the socket: that is inheritance.
//!
//! All of it lies in the link's state, behind the baton. Nobody is woken while the
//! baton is held: `woken` is emptied when it is let go.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::thread::{self, Thread};

use courser_core::client::{ConsumerKey, ProducerKey};
use courser_core::id::RequestId;
use courser_core::time::Monotonic;

use crate::lane::Ticket;

/// What a thread waits for; the end of the link fulfils every wish.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// The outcome of a send.
    Outcome(ProducerKey, Ticket),
    /// Room in the line of a producer.
    Room(ProducerKey),
    /// A message.
    Message(ConsumerKey),
    /// The answer to a request.
    Answer(RequestId),
    /// A message, or the answer that there is none.
    Polled(ConsumerKey, u32),
    /// The confirmation of an acknowledgement.
    Confirmation(ConsumerKey, u32),
    /// A connection on which the broker knows the consumer.
    Attached(ConsumerKey),
    /// Whatever happens.
    Anything,
}

/// Where a thread sleeps: each has a bell of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    Foreground = 0,
    Background = 1,
}

/// A thread that sleeps in `poll` at the socket.
#[derive(Clone, Copy)]
pub(super) struct Sleeper {
    /// Nothing for the background thread: it wants others to have something.
    pub(super) wanted: Option<Wanted>,
    /// Whether it also wakes when the socket takes bytes.
    pub(super) for_room: bool,
    pub(super) until: Monotonic,
    /// Whether its bell was rung, or is about to be.
    pub(super) is_rung: bool,
}

pub(super) struct Parked {
    pub(super) thread: Thread,
    pub(super) wanted: Wanted,
}

/// Somebody to be woken once the baton is let go.
pub(crate) enum Woken {
    Thread(Thread),
    Future(Waker),
    Bell(Seat),
}

/// See the module.
#[derive(Default)]
pub(super) struct Waiters {
    /// Application threads that wait, whether awake or not.
    pub(super) foreground: usize,
    pub(super) parked: Vec<Parked>,
    sleepers: [Option<Sleeper>; 2],
    pub(super) expecting: Vec<(ConsumerKey, Waker)>,
    pub(super) woken: Vec<Woken>,
}

impl Waiters {
    /// This thread parks from here on.
    pub(super) fn park(&mut self, wanted: Wanted) {
        self.parked.push(Parked {
            thread: thread::current(),
            wanted,
        });
    }

    /// This thread has woken, whoever woke it.
    pub(super) fn unpark(&mut self) {
        let me = thread::current().id();
        self.parked.retain(|parked| parked.thread.id() != me);
    }

    /// Wakes a parked thread, to look after the socket; false if there is none.
    pub(super) fn call_heir(&mut self) -> bool {
        match self.parked.pop() {
            Some(heir) => {
                self.woken.push(Woken::Thread(heir.thread));
                true
            }
            None => false,
        }
    }

    pub(super) fn sleep(&mut self, seat: Seat, sleeper: Sleeper) {
        self.sleepers[seat as usize] = Some(sleeper);
    }

    pub(super) fn wake(&mut self, seat: Seat) {
        self.sleepers[seat as usize] = None;
    }

    #[inline]
    pub(super) fn sleeper(&self, seat: Seat) -> Option<&Sleeper> {
        self.sleepers[seat as usize].as_ref()
    }

    /// Whether anybody sleeps at the socket.
    #[inline]
    pub(super) fn has_sleeper(&self) -> bool {
        self.sleepers.iter().any(Option::is_some)
    }

    /// Whether one of the sleepers wakes like this of its own accord.
    pub(super) fn some_sleeper(&self, is_enough: impl FnMut(&Sleeper) -> bool) -> bool {
        self.sleepers.iter().flatten().any(is_enough)
    }

    /// Rings a sleeper, rather the background thread, once for this sleep.
    pub(super) fn ring_one(&mut self) {
        let seats = [Seat::Background, Seat::Foreground];
        if let Some(seat) = seats.into_iter().find(|seat| self.sleeper(*seat).is_some()) {
            self.ring(seat);
        }
    }

    pub(super) fn ring(&mut self, seat: Seat) {
        if let Some(sleeper) = &mut self.sleepers[seat as usize]
            && !sleeper.is_rung
        {
            // It is as good as awake.
            sleeper.until = Monotonic(0);
            sleeper.for_room = true;
            sleeper.is_rung = true;
            self.woken.push(Woken::Bell(seat));
        }
    }

    /// Whether an application thread waits and is awake.
    pub(super) fn is_foreground_awake(&self) -> bool {
        let asleep = usize::from(self.sleeper(Seat::Foreground).is_some());
        self.foreground > self.parked.len() + asleep
    }
}

impl Woken {
    /// Wakes it; `ring` rings the bell of a seat.
    pub(super) fn wake(self, ring: impl FnOnce(Seat)) {
        match self {
            Self::Thread(thread) => thread.unpark(),
            // A waker is the application's code: if it panics, others still have
            // to be woken.
            Self::Future(waker) => {
                catch_unwind(AssertUnwindSafe(|| waker.wake())).ok();
            }
            Self::Bell(seat) => ring(seat),
        }
    }
}
