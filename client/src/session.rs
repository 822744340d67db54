//! A session: the unit of callback order. Its listeners run one at a time, in
//! the order in which outcomes were known, on one thread that is nobody else's.
//!
//! Listeners of consumers take their turns with them.
//!
//! The thread exists while listeners are outstanding and for a second more. A
//! listener that panics is caught and counted; the next one runs.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::delivery::Delivery;
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

/// Work for the callback thread.
enum Job {
    /// Listeners of one producer that are to be called, in order, and where to
    /// count them down: producers of one session may be on several links.
    Calls {
        link: Arc<Link>,
        open: Arc<AtomicUsize>,
        calls: Vec<(Call, SendResult)>,
    },
    /// A consumer whose listener may have messages to hear of.
    Deliver(Arc<Delivery>),
}

/// See the module.
pub(crate) struct Session {
    queue: Mutex<VecDeque<Job>>,
    arrived: Condvar,
    returned: Condvar,
    /// Sends accepted whose listener has not returned, and consumers with a
    /// listener. Sequentially consistent
    /// with `has_thread`: either the sender sees that the thread has gone, or the
    /// thread sees the send and stays.
    open: AtomicUsize,
    /// Changes only under the lock of `queue`.
    has_thread: AtomicBool,
    panics: AtomicU64,
}

thread_local! {
    /// The session whose callback thread this is, by address; 0 for none.
    static CALLING: Cell<usize> = const { Cell::new(0) };
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            returned: Condvar::new(),
            open: AtomicUsize::new(0),
            has_thread: AtomicBool::new(false),
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

    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more listener; waits for one to return if too many are
    /// outstanding, unless a listener asks. False if none did by `deadline`.
    pub(crate) fn admit(self: &Arc<Self>, deadline: Instant) -> io::Result<bool> {
        let open = self.open.fetch_add(1, Ordering::SeqCst);
        if open >= OPEN_MAX && !self.is_calling() && !self.wait_for_room(deadline) {
            self.dismiss();
            return Ok(false);
        }
        if !self.has_thread.load(Ordering::SeqCst) {
            self.start().inspect_err(|_| self.dismiss())?;
        }
        Ok(true)
    }

    /// Waits until fewer are outstanding than may be; false if that takes too long.
    #[cold]
    fn wait_for_room(&self, deadline: Instant) -> bool {
        let mut queue = self.lock();
        // This one is counted already.
        while self.open.load(Ordering::SeqCst) > OPEN_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (queue, _) = self
                .returned
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Starts the thread if nobody else just did.
    #[cold]
    fn start(self: &Arc<Self>) -> io::Result<()> {
        let _queue = self.lock();
        if !self.has_thread.load(Ordering::SeqCst) {
            let session = Arc::clone(self);
            thread::Builder::new()
                .name("courser-calls".to_owned())
                .spawn(move || session.run())?;
            self.has_thread.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// The send that was admitted was not accepted after all.
    pub(crate) fn dismiss(&self) {
        self.close_one();
    }

    /// Queues calls for the session's thread.
    pub(crate) fn call(
        &self,
        link: Arc<Link>,
        open: Arc<AtomicUsize>,
        calls: Vec<(Call, SendResult)>,
    ) {
        self.queue(Job::Calls { link, open, calls });
    }

    /// Has the session's thread look for messages of a consumer with a listener.
    pub(crate) fn deliver(&self, delivery: Arc<Delivery>) {
        self.queue(Job::Deliver(delivery));
    }

    fn queue(&self, job: Job) {
        let mut queue = self.lock();
        queue.push_back(job);
        if queue.len() == 1 {
            self.arrived.notify_one();
        }
    }

    /// A consumer gets a listener: the thread stays for as long.
    pub(crate) fn begin_delivery(self: &Arc<Self>) -> io::Result<()> {
        self.open.fetch_add(1, Ordering::SeqCst);
        if !self.has_thread.load(Ordering::SeqCst) {
            self.start().inspect_err(|_| self.close_one())?;
        }
        Ok(())
    }

    /// It has none any more.
    pub(crate) fn end_delivery(&self) {
        self.close_one();
    }

    /// A listener panicked.
    pub(crate) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    fn close_one(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) > OPEN_MAX {
            // Under the lock, so that whoever found no room sleeps by now.
            let _queue = self.lock();
            self.returned.notify_all();
        }
    }

    fn run(&self) {
        CALLING.set(self.address());
        let mut taken = VecDeque::new();
        while self.take(&mut taken) {
            for job in taken.drain(..) {
                match job {
                    Job::Calls { link, open, calls } => self.run_calls(&link, &open, calls),
                    Job::Deliver(delivery) => delivery.run(),
                }
            }
        }
    }

    fn run_calls(&self, link: &Link, open: &AtomicUsize, calls: Vec<(Call, SendResult)>) {
        for (call, result) in calls {
            if catch_unwind(AssertUnwindSafe(|| call.invoke(result))).is_err() {
                self.count_panic();
            }
            self.close_one();
            open.fetch_sub(1, Ordering::SeqCst);
            link.called_back();
        }
    }

    /// Waits for calls and takes all of them; false if none came for so long that
    /// the thread may go.
    fn take(&self, taken: &mut VecDeque<Job>) -> bool {
        let mut queue = self.lock();
        while queue.is_empty() {
            let timed_out;
            (queue, timed_out) = self
                .arrived
                .wait_timeout(queue, LINGER)
                .map(|(queue, time)| (queue, time.timed_out()))
                .unwrap_or_else(|poisoned| {
                    let (queue, time) = poisoned.into_inner();
                    (queue, time.timed_out())
                });
            if timed_out && queue.is_empty() {
                self.has_thread.store(false, Ordering::SeqCst);
                if self.open.load(Ordering::SeqCst) == 0 {
                    return false;
                }
                self.has_thread.store(true, Ordering::SeqCst);
            }
        }
        std::mem::swap(&mut *queue, taken);
        true
    }
}
