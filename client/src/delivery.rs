//! Messages of a consumer, brought to a listener.
//!
//! ```text
//!   link: a message is there --- wakes ---> Delivery --- queues itself ---> session
//!   session's callback thread:   take it, call the listener, settle it; again ...
//! ```
//!
//! A delivery is a task like one of an asynchronous runtime, whose executor is the
//! session's callback thread: it runs only there, one at a time with all other
//! listeners of the session, and gives way to them after some messages.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::consumer::Consumer;
use crate::error::{ReceiveError, RequestError};
use crate::message::Received;
use crate::session::Session;

/// Messages after which others have their turn.
const TURN_MAX: usize = 64;

type Callback = Box<dyn FnMut(&Received) + Send>;

/// What the callback thread works with; gone once the listening has ended.
struct Work {
    consumer: Consumer,
    callback: Callback,
}

/// See the module.
pub(crate) struct Delivery {
    session: Arc<Session>,
    /// Held while the listener runs.
    work: Mutex<Option<Work>>,
    /// Whether it waits for the callback thread already.
    is_queued: AtomicBool,
    /// No further message.
    is_stopping: AtomicBool,
    /// Nobody will ask for the consumer back.
    is_deserted: AtomicBool,
    end: Mutex<Option<ReceiveError>>,
}

impl Wake for Delivery {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::SeqCst) {
            Arc::clone(&self.session).deliver(self);
        }
    }
}

impl Delivery {
    fn lock(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what is there to the listener. On the session's callback thread.
    pub(crate) fn run(self: Arc<Self>) {
        // Whoever wakes it from here on queues it anew.
        self.is_queued.store(false, Ordering::SeqCst);
        let mut place = self.lock();
        if let Some(work) = place.as_mut() {
            self.turn(work);
        }
        if self.is_deserted.load(Ordering::SeqCst) {
            drop(place.take());
        }
    }

    fn turn(self: &Arc<Self>, work: &mut Work) {
        let waker = Waker::from(Arc::clone(self));
        let mut context = Context::from_waker(&waker);
        for _ in 0..TURN_MAX {
            if self.is_stopping.load(Ordering::SeqCst) {
                return;
            }
            match work.consumer.poll_receive(&mut context) {
                Poll::Ready(Ok(received)) => self.hand(work, &received),
                Poll::Ready(Err(error)) => {
                    let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
                    end.get_or_insert(error);
                    return;
                }
                Poll::Pending => return,
            }
        }
        waker.wake();
    }

    /// Settled once the listener has returned; given back at once if it panics.
    fn hand(&self, work: &mut Work, received: &Received) {
        let position = received.position();
        let callback = &mut work.callback;
        let returned = catch_unwind(AssertUnwindSafe(|| callback(received))).is_ok();
        // What cannot be told comes again when the connection is lost or the
        // consumer closed, as everything that is not settled.
        if returned {
            work.consumer.acknowledge(position).ok();
        } else {
            self.session.count_panic();
            work.consumer.give_back(position).ok();
        }
    }
}

/// A consumer with a listener; made by [`Consumer::listen`]. Dropped, it stops.
pub struct Listening {
    delivery: Arc<Delivery>,
}

impl Listening {
    pub(crate) fn begin(
        consumer: Consumer,
        callback: Callback,
        session: Arc<Session>,
    ) -> Result<Self, ReceiveError> {
        session
            .begin_delivery()
            .map_err(|_no_thread| ReceiveError::NoThread)?;
        let delivery = Arc::new(Delivery {
            session,
            work: Mutex::new(Some(Work { consumer, callback })),
            is_queued: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            is_deserted: AtomicBool::new(false),
            end: Mutex::new(None),
        });
        Arc::clone(&delivery).wake();
        Ok(Self { delivery })
    }

    /// Stops, and returns the consumer once its listener has returned, if it runs.
    /// What was delivered and the listener has not seen is still there.
    ///
    /// # Errors
    ///
    /// In a listener of this session, which would wait for itself; it stops all the
    /// same, and its consumer is closed.
    pub fn stop(self) -> Result<Consumer, RequestError> {
        let delivery = &self.delivery;
        if delivery.session.is_calling() {
            return Err(RequestError::IllegalState);
        }
        delivery.is_stopping.store(true, Ordering::SeqCst);
        let work = delivery.lock().take();
        let Work { mut consumer, .. } = work.expect("only stopping takes it, which ends this");
        consumer.expect_no_more();
        Ok(consumer)
    }

    /// Stops and closes the consumer; what was not settled goes back to the
    /// subscription.
    ///
    /// # Errors
    ///
    /// As [`Listening::stop`] and [`Consumer::close`].
    pub fn close(self) -> Result<(), RequestError> {
        self.stop()?.close()
    }

    /// Why no further message will come, if none will.
    #[must_use]
    pub fn end(&self) -> Option<ReceiveError> {
        let end = self.delivery.end.lock();
        end.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let delivery = &self.delivery;
        delivery.is_stopping.store(true, Ordering::SeqCst);
        delivery.is_deserted.store(true, Ordering::SeqCst);
        match delivery.work.try_lock() {
            Ok(mut place) => drop(place.take()),
            // Its listener runs, perhaps around this: the callback thread drops the
            // consumer when it comes by next.
            Err(_) => Arc::clone(delivery).wake(),
        }
        delivery.session.end_delivery();
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening")
            .field("end", &self.end())
            .finish_non_exhaustive()
    }
}
