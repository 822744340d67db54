//! A session: the unit of callback order. Its listeners run one at a time, in
//! the order in which outcomes were known, on one thread that is nobody else's.
//!
//! The thread exists while listeners are outstanding and for a second more. A
//! listener that panics is caught and counted; the next one runs.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use courser_core::client::ProducerKey;

use crate::error::SendError;
use crate::ledger::SendResult;
use crate::link::{LINGER, Link};
use crate::message::Message;
use crate::producer::Receipt;

/// Listeners of one session that may be outstanding before further sends wait:
/// what bounds memory while a slow listener runs.
const OPEN_MAX: usize = 64 * 1024;

/// Learns what became of asynchronous sends.
///
/// For each accepted send exactly one of the two is called, exactly once, with
/// the message that was sent, in the order of the producer's sends, never two
/// at a time in one session, and never on the thread that sent.
pub trait CompletionListener: Send + Sync {
    /// The message is stored.
    fn on_completion(&self, message: Message, receipt: Receipt);

    /// The send failed.
    fn on_exception(&self, message: Message, error: SendError);
}

/// A closure that is called once.
pub(crate) type Once = Box<dyn FnOnce(Message, Result<Receipt, SendError>) + Send>;

pub(crate) enum Listener {
    Shared(Arc<dyn CompletionListener>),
    Once(Once),
}

/// A message on its way, and who wants to hear of it.
pub(crate) struct Call {
    pub(crate) message: Message,
    pub(crate) listener: Listener,
}

impl Call {
    fn invoke(self, result: SendResult) {
        match (self.listener, result) {
            (Listener::Shared(listener), Ok(receipt)) => {
                listener.on_completion(self.message, receipt);
            }
            (Listener::Shared(listener), Err(error)) => listener.on_exception(self.message, error),
            (Listener::Once(call), result) => call(self.message, result),
        }
    }
}

struct Queue {
    calls: VecDeque<(ProducerKey, Call, SendResult)>,
    /// Sends accepted whose listener has not returned.
    open: usize,
    has_thread: bool,
}

/// See the module.
pub(crate) struct Session {
    queue: Mutex<Queue>,
    arrived: Condvar,
    returned: Condvar,
    panics: AtomicU64,
}

thread_local! {
    /// The session whose callback thread this is, by address; 0 for none.
    static CALLING: Cell<usize> = const { Cell::new(0) };
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                calls: VecDeque::new(),
                open: 0,
                has_thread: false,
            }),
            arrived: Condvar::new(),
            returned: Condvar::new(),
            panics: AtomicU64::new(0),
        }
    }

    /// Whether this is the session's own callback thread.
    pub(crate) fn is_calling(&self) -> bool {
        CALLING.get() == self.address()
    }

    /// How many listeners panicked.
    pub(crate) fn panics(&self) -> u64 {
        // Written by the callback thread, read as a statistic: nothing hangs on it.
        self.panics.load(Ordering::Relaxed)
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more listener; waits for one to return if too many are
    /// outstanding, unless a listener asks. False if none did by `deadline`.
    pub(crate) fn admit(self: &Arc<Self>, link: &Arc<Link>, deadline: Instant) -> io::Result<bool> {
        let is_calling = self.is_calling();
        let mut queue = self.lock();
        while queue.open >= OPEN_MAX && !is_calling {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            (queue, _) = self
                .returned
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !queue.has_thread {
            let (session, link) = (Arc::clone(self), Arc::clone(link));
            thread::Builder::new()
                .name("courser-callback".to_owned())
                .spawn(move || session.run(&link))?;
            queue.has_thread = true;
        }
        queue.open += 1;
        Ok(true)
    }

    /// The send that was admitted was not accepted after all.
    pub(crate) fn dismiss(&self) {
        self.lock().open -= 1;
    }

    /// Queues a call for the session's thread.
    pub(crate) fn call(&self, producer: ProducerKey, call: Call, result: SendResult) {
        let mut queue = self.lock();
        queue.calls.push_back((producer, call, result));
        if queue.calls.len() == 1 {
            self.arrived.notify_one();
        }
    }

    fn run(&self, link: &Link) {
        CALLING.set(self.address());
        let mut calls = VecDeque::new();
        loop {
            let mut queue = self.lock();
            while queue.calls.is_empty() {
                let timed_out;
                (queue, timed_out) = self
                    .arrived
                    .wait_timeout(queue, LINGER)
                    .map(|(queue, time)| (queue, time.timed_out()))
                    .unwrap_or_else(|poisoned| {
                        let (queue, time) = poisoned.into_inner();
                        (queue, time.timed_out())
                    });
                if timed_out && queue.calls.is_empty() && queue.open == 0 {
                    queue.has_thread = false;
                    return;
                }
            }
            std::mem::swap(&mut queue.calls, &mut calls);
            drop(queue);
            for (producer, call, result) in calls.drain(..) {
                if catch_unwind(AssertUnwindSafe(|| call.invoke(result))).is_err() {
                    self.panics.fetch_add(1, Ordering::Relaxed);
                }
                let mut queue = self.lock();
                queue.open -= 1;
                if queue.open + 1 >= OPEN_MAX {
                    self.returned.notify_all();
                }
                drop(queue);
                link.called_back(producer);
            }
        }
    }
}
