//! What an asynchronous program waits with: futures for any runtime, woken by
//! whoever drives the link.
//!
//! A future of a send is only the way to its outcome. The send was handed over
//! when the future was made, in its producer's order, and goes on whether the
//! future is polled, kept or dropped.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::consumer::Consumer;
use crate::error::{ReceiveError, SendError};
use crate::ledger::SendResult;
use crate::message::Received;
use crate::producer::Receipt;

/// Where the outcome of a send meets its future.
pub(crate) struct Slot(Mutex<Place>);

enum Place {
    /// No outcome yet, and who is to be woken by it.
    Open(Option<Waker>),
    Settled(SendResult),
    /// The future has it.
    Taken,
}

impl Slot {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Place::Open(None))))
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome is known. Returns who is to be woken, for when no lock is held.
    #[must_use]
    pub(crate) fn settle(&self, result: SendResult) -> Option<Waker> {
        let before = std::mem::replace(&mut *self.lock(), Place::Settled(result));
        match before {
            Place::Open(waker) => waker,
            Place::Settled(_) | Place::Taken => None,
        }
    }
}

/// The outcome of a send, some time; made by
/// [`Producer::send_future`](crate::Producer::send_future).
///
/// The send is on its way already and does not depend on this: dropped, it takes
/// only the news along.
///
/// # Panics
///
/// When it is polled again after it gave its outcome.
#[must_use = "the send goes on without it, but nobody learns what became of it"]
pub struct SendFuture {
    slot: Arc<Slot>,
}

impl SendFuture {
    pub(crate) fn new(slot: Arc<Slot>) -> Self {
        Self { slot }
    }
}

impl Future for SendFuture {
    type Output = Result<Receipt, SendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut place = self.slot.lock();
        match &mut *place {
            Place::Open(Some(waker)) => {
                waker.clone_from(context.waker());
                Poll::Pending
            }
            Place::Open(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Place::Settled(_) => match std::mem::replace(&mut *place, Place::Taken) {
                Place::Settled(result) => Poll::Ready(result),
                _ => unreachable!("it was seen to be settled, under the same lock"),
            },
            Place::Taken => panic!("the outcome of a send was taken before"),
        }
    }
}

impl fmt::Debug for SendFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendFuture")
            .field(
                "is_settled",
                &matches!(*self.slot.lock(), Place::Settled(_)),
            )
            .finish()
    }
}

/// A consumer's next message, some time; made by [`Consumer::receive_async`].
///
/// Dropped before it was ready it takes nothing along: the message is there for
/// the next call.
#[must_use = "nothing is received unless it is polled"]
#[derive(Debug)]
pub struct ReceiveFuture<'a> {
    consumer: &'a mut Consumer,
    /// Whether the link has a waker of it.
    is_expecting: bool,
}

impl<'a> ReceiveFuture<'a> {
    pub(crate) fn new(consumer: &'a mut Consumer) -> Self {
        Self {
            consumer,
            is_expecting: false,
        }
    }
}

impl Future for ReceiveFuture<'_> {
    type Output = Result<Received, ReceiveError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let poll = self.consumer.poll_receive(context);
        self.is_expecting = poll.is_pending();
        poll
    }
}

impl Drop for ReceiveFuture<'_> {
    fn drop(&mut self) {
        if self.is_expecting {
            self.consumer.expect_no_more();
        }
    }
}
