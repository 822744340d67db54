//! Producers: blocking, asynchronous and polled sends.

use std::sync::Arc;
use std::time::Duration;

use courser_core::catalog::{Dispatch, Retention};
use courser_core::client::{BatchLimits, Durability, Event, ProducerKey, ProducerRequest};
use courser_core::error::Refusal;
use courser_core::id::{MessageId, Position, Sequence};
use courser_core::limits;
use courser_core::time::Wall;

use crate::client::Client;
use crate::error::{NotAccepted, RequestError, SendError, TrySendError};
use crate::future::SendFuture;
use crate::lane::Lane;
use crate::ledger::Ledger;
use crate::link::{Driving, Link, Wanted};
use crate::message::{Message, Payload};
use crate::pool::Owner;
use crate::session::{CompletionListener, Listener, Session};

/// What a completed send is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Who the message is, for its receiver as well.
    pub id: MessageId,
    /// Where it is stored.
    pub position: Position,
    /// The broker's clock when it was stored.
    pub timestamp: Wall,
    /// How safe it is.
    pub durability: Durability,
}

/// The outcome of one send in poll mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which send: what [`Producer::try_send`] returned.
    pub sequence: Sequence,
    /// What became of it.
    pub result: Result<Receipt, SendError>,
}

/// Says what a producer is to be like; made by [`Client::producer`].
#[derive(Debug)]
#[must_use = "a builder does nothing until create is called"]
pub struct ProducerBuilder<'a> {
    client: &'a Client,
    request: Result<ProducerRequest, RequestError>,
    timeout: Duration,
    /// How long it may wait to have its destination alone.
    wait: Duration,
}

impl<'a> ProducerBuilder<'a> {
    pub(crate) fn new(client: &'a Client, request: Result<ProducerRequest, RequestError>) -> Self {
        Self {
            client,
            request,
            timeout: limits::SEND_TIMEOUT,
            wait: Duration::ZERO,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut ProducerRequest)) -> Self {
        if let Ok(request) = &mut self.request {
            change(request);
        }
        self
    }

    /// The producer's name, for who looks at the broker; at most 255 bytes.
    pub fn name(self, name: &str) -> Self {
        self.with(|request| request.name = name.into())
    }

    /// How many partitions the destination is to have, if it does not exist yet.
    /// At least 1; leave it out to take it as it is.
    pub fn partitions(mut self, partitions: u32) -> Self {
        if partitions == 0 && self.request.is_ok() {
            self.request = Err(RequestError::Refused {
                refusal: Some(Refusal::IllegalArgument),
                code: Refusal::IllegalArgument.code(),
                text: "partitions must be > 0 or omitted".into(),
            });
        }
        self.with(|request| request.partitions = partitions)
    }

    /// How many bytes of settled messages the destination is to keep.
    pub fn retain(self, bytes: u64) -> Self {
        self.with(|request| request.retention = Some(Retention::Size(bytes)))
    }

    /// What the destination is to keep, if it does not exist yet; one that keeps
    /// something else is refused.
    pub fn retention(self, retention: Retention) -> Self {
        self.with(|request| request.retention = Some(retention))
    }

    /// When consumers of the destination are to see what is to be flushed, if it does not
    /// exist yet; one with another dispatch is refused.
    pub fn dispatch(self, dispatch: Dispatch) -> Self {
        self.with(|request| request.dispatch = Some(dispatch))
    }

    /// Has the destination to itself, in all of its partitions: while it is attached
    /// another producer is refused as `Exclusive` at once, and so is this one if another
    /// is attached. Whoever was attached before it never sends again, not even what it
    /// had on its way.
    pub fn exclusive(self) -> Self {
        self.with(|request| request.exclusive = true)
    }

    /// As [`ProducerBuilder::exclusive`], but waits until nobody else is attached, at
    /// most so long: those that wait are let in one after the other, in the order in
    /// which they asked. Whoever had the destination before cannot send any more by
    /// then. Who has waited so long is refused as `Exclusive`.
    pub fn exclusive_wait(mut self, timeout: Duration) -> Self {
        self.wait = timeout;
        self.with(|request| {
            request.exclusive = true;
            request.waits = true;
        })
    }

    /// How safe a message is to be before its send completes, unless it says so itself;
    /// [`Durability::Flushed`] unless said otherwise. A receipt says how safe it is.
    pub fn durability(self, durability: Durability) -> Self {
        self.with(|request| request.durability = durability)
    }

    /// Bounds what leaves together: messages, at least 1, and frame bytes, which
    /// include 112 bytes of header and the properties of each message. A message
    /// beyond the bytes travels alone. Nothing ever waits for a batch to fill.
    pub fn batch(self, messages_max: u32, bytes_max: u32) -> Self {
        self.with(|request| {
            request.batch = Some(BatchLimits {
                messages_max,
                bytes_max,
            });
        })
    }

    /// How many messages may be on their way; the broker may allow less.
    pub fn window(self, messages: u32) -> Self {
        self.with(|request| request.messages_in_flight_max = messages)
    }

    /// How many frame bytes may be on their way.
    pub fn window_bytes(self, bytes: u32) -> Self {
        self.with(|request| request.bytes_in_flight_max = bytes)
    }

    /// How long a send may take; 3 s unless said otherwise.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens the producer: the broker is asked where the destination is, then
    /// for the producer. The destination is created if it does not exist.
    ///
    /// # Errors
    ///
    /// If the name is no destination's, the broker refuses or does not answer.
    pub fn create(self) -> Result<Producer, RequestError> {
        let request = self.request?;
        let window_bytes = request.bytes_in_flight_max;
        let destination = request.destination.clone();
        let (owner, event) = self.client.open(
            &destination,
            |link| {
                link.request_with_patience(self.wait, |machine| {
                    machine.open_producer(request.clone())
                })
            },
            |link, event| {
                if let Event::ProducerOpened { producer, .. } = event {
                    // If it cannot be closed, it ends with the link.
                    link.request(|machine| machine.close_producer(producer))
                        .ok();
                    link.take().forget(producer);
                }
            },
        )?;
        let link = owner.link();
        let Event::ProducerOpened {
            producer: key,
            id,
            epoch,
            partitions,
            ..
        } = event
        else {
            unreachable!("the machine pairs answers with requests");
        };
        let session = Arc::clone(self.client.session());
        let (lane, end) = Lane::new();
        let mut state = link.take();
        let id = MessageId {
            installation: state.machine.installation(),
            producer: id,
            epoch,
            sequence: Sequence(0),
        };
        let ledger = Ledger::new(key, id, Arc::downgrade(link), Arc::clone(&session), end);
        state.open_ledger(key, ledger);
        drop(state);
        Ok(Producer {
            owner,
            session,
            key,
            id,
            partitions,
            lane,
            timeout: self.timeout,
            window_bytes,
            closed: false,
        })
    }
}

/// Sends messages to one destination, in order.
///
/// All ways to send share one order, so they can be mixed: [`Producer::send`]
/// waits for the receipt, [`Producer::send_async`] hears of it through a listener,
/// [`Producer::send_future`] through a future, [`Producer::try_send`] through
/// [`Producer::poll`].
///
/// Threads may share a producer; the order of each thread's sends is kept then.
/// One that finds another thread at work on the connection leaves its message to
/// that one and does not wait for it to finish.
pub struct Producer {
    pub(crate) owner: Arc<Owner>,
    pub(crate) session: Arc<Session>,
    pub(crate) key: ProducerKey,
    id: MessageId,
    pub(crate) partitions: u32,
    pub(crate) lane: Lane,
    pub(crate) timeout: Duration,
    /// The most frame bytes on their way, which no frame may exceed.
    pub(crate) window_bytes: u32,
    closed: bool,
}

impl Producer {
    /// Sends a message and waits for what became of it: the calling thread does
    /// the link's input and output meanwhile.
    ///
    /// One copy of the message; no allocation in steady state, unless another
    /// thread is at work on the connection.
    ///
    /// # Errors
    ///
    /// If the message is not stored, or nobody knows.
    pub fn send(&self, message: impl Payload) -> Result<Receipt, SendError> {
        self.send_and_wait(&message)
    }

    /// Sends several messages together, and waits for what became of each: every
    /// message has a result of its own, in the order given.
    pub fn send_batch<P: Payload>(
        &self,
        messages: impl IntoIterator<Item = P>,
    ) -> Vec<Result<Receipt, SendError>> {
        let mut taken = Vec::new();
        for message in messages {
            taken.push(self.enqueue_for_thread(&message));
        }
        self.write();
        taken
            .into_iter()
            .map(|taken| taken.and_then(|ticket| self.outcome(self.link().take(), ticket)))
            .collect()
    }

    /// Sends a message and returns; the listener is called once, on the session's
    /// callback thread. Waits only while the producer's window is full and as many
    /// sends again wait for room.
    ///
    /// # Errors
    ///
    /// If the message was not taken: it comes back, and no listener is called.
    pub fn send_async(
        &self,
        message: impl Into<Message>,
        listener: Arc<dyn CompletionListener>,
    ) -> Result<(), NotAccepted> {
        self.send_and_call(message.into(), Listener::Shared(listener))
    }

    /// As [`Producer::send_async`], with a closure.
    ///
    /// # Errors
    ///
    /// If the message was not taken: it comes back, and the closure is not called.
    pub fn send_with(
        &self,
        message: impl Into<Message>,
        listener: impl FnOnce(Message, Result<Receipt, SendError>) + Send + 'static,
    ) -> Result<(), NotAccepted> {
        self.send_and_call(message.into(), Listener::Once(Box::new(listener)))
    }

    /// Sends a message and returns a future of what becomes of it, for any runtime.
    /// Never waits.
    ///
    /// The message is handed over in this call, not when the future is polled: its
    /// place in the producer's order is that of the call, and it is sent even if
    /// the future is dropped.
    ///
    /// While the window is full sends wait here, in order. If 65,536 of them do, or
    /// 64 MiB, the future fails at once with [`Cause::Crowded`](crate::Cause::Crowded).
    pub fn send_future(&self, message: impl Into<Message>) -> SendFuture {
        self.send_and_promise(message.into())
    }

    /// Hands a message over for poll mode and writes it at once, as far as credit
    /// and the socket allow. Never waits, and no thread works behind it: whoever
    /// calls [`Producer::poll`] drives.
    ///
    /// One copy, no allocation in steady state, one system call.
    ///
    /// # Errors
    ///
    /// If the message is not taken; it is then nowhere.
    #[inline]
    pub fn try_send(&self, message: impl Payload) -> Result<Sequence, TrySendError> {
        let mut driving = self.link().take();
        let now = driving.clock.now();
        let sequence = self.send_polled(&mut driving, now, &message)?;
        driving.write();
        Ok(sequence)
    }

    /// As [`Producer::try_send`], but leaves the writing to the next `try_send`,
    /// [`Producer::poll`] or [`Producer::write`]: several messages then share one
    /// system call, and their time is that of the first of them.
    ///
    /// # Errors
    ///
    /// If the message is not taken; it is then nowhere.
    #[inline]
    pub fn try_enqueue(&self, message: impl Payload) -> Result<Sequence, TrySendError> {
        let mut driving = self.link().take();
        let now = driving.clock.stamp();
        self.send_polled(&mut driving, now, &message)
    }

    /// As [`Producer::try_enqueue`] with one after the other, until all or the first
    /// that is not taken: for whoever has several at a time, cheaper for each.
    /// Returns how many of them were taken, from the front.
    ///
    /// # Errors
    ///
    /// If not even the first is taken.
    pub fn try_enqueue_all(&self, messages: &[impl Payload]) -> Result<usize, TrySendError> {
        let mut driving = self.link().take();
        for (taken, message) in messages.iter().enumerate() {
            let now = driving.clock.stamp();
            match self.send_polled(&mut driving, now, message) {
                Ok(_sequence) => {}
                Err(error) if taken == 0 => return Err(error),
                Err(_) => return Ok(taken),
            }
        }
        Ok(messages.len())
    }

    /// Writes what was enqueued, as far as credit and the socket allow.
    pub fn write(&self) {
        self.link().take().write();
    }

    /// The next outcome in order, if it is there; otherwise writes and reads once,
    /// without waiting.
    #[inline]
    pub fn poll(&self) -> Option<Completion> {
        self.take_looked().polled(self.key)
    }

    /// Appends all outcomes that are there, in order; if none is, writes and reads
    /// once, without waiting. Returns how many there were, which is never more than
    /// the producer's window.
    pub fn poll_into(&self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        let mut driving = self.take_looked();
        while let Some(completion) = driving.polled(self.key) {
            completions.push(completion);
        }
        completions.len() - before
    }

    /// The link, after a turn unless an outcome is there already.
    #[inline]
    fn take_looked(&self) -> Driving<'_> {
        let mut driving = self.link().take();
        if !driving.has_polled(self.key) {
            self.link().turn(&mut driving);
        }
        driving
    }

    /// The next outcome in order; waits up to `timeout` for it, driving the link.
    /// `None` as well if nothing is outstanding that could have one.
    pub fn poll_for(&self, timeout: Duration) -> Option<Completion> {
        let deadline = self.link().now().after(timeout);
        let found = self.link().wait(deadline, Wanted::Anything, |state| {
            match state.polled(self.key) {
                Some(completion) => Some(Some(completion)),
                None => (state.machine.outstanding(self.key) == 0).then_some(None),
            }
        });
        found.flatten()
    }

    /// Waits until every send so far has its outcome and its listener, if it has
    /// one, has returned.
    ///
    /// # Errors
    ///
    /// In a listener of this session, which would wait for itself.
    pub fn flush(&self) -> Result<(), RequestError> {
        if self.session.is_calling() {
            return Err(RequestError::IllegalState);
        }
        self.link().watch(|state| {
            let answered = state.machine.unanswered(self.key) == 0;
            let quiet = state
                .ledger(self.key)
                .is_none_or(|ledger| ledger.is_quiet());
            (answered && quiet).then_some(())
        });
        Ok(())
    }

    /// Flushes, then closes the producer at the broker. Outcomes that were not
    /// polled are dropped.
    ///
    /// # Errors
    ///
    /// In a listener of this session; or if the broker does not answer, in which
    /// case the producer is closed all the same.
    pub fn close(mut self) -> Result<(), RequestError> {
        self.flush()?;
        self.closed = true;
        let link = self.link();
        let result = link.request(|machine| machine.close_producer(self.key));
        link.take().forget(self.key);
        match result {
            // What is closed already needs no closing.
            Ok(_) | Err(RequestError::LinkEnded(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Why the broker ended the producer by itself, if it did and that was heard: its
    /// destination was deleted, or an administrator fenced it. Every further send is
    /// refused.
    #[must_use]
    pub fn ended(&self) -> Option<Refusal> {
        let code = self.link().take().ended_producer(self.key)?;
        Some(Refusal::from_code(code).unwrap_or(Refusal::Ended))
    }

    /// Partitions of the destination.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// The id that the message with this sequence has.
    #[must_use]
    pub fn message_id(&self, sequence: Sequence) -> MessageId {
        MessageId {
            sequence,
            ..self.id
        }
    }

    /// Sends whose outcome was not told yet.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.link().take().machine.outstanding(self.key)
    }

    #[inline]
    pub(crate) fn link(&self) -> &Arc<Link> {
        self.owner.link()
    }
}

impl Drop for Producer {
    /// Closes without waiting: sends that are on their way go on, and listeners are
    /// still called.
    fn drop(&mut self) {
        if !self.closed {
            let mut driving = self.link().take();
            driving.desert_producer(self.key);
            driving.write();
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("id", &self.id.producer)
            .field("epoch", &self.id.epoch)
            .field("partitions", &self.partitions)
            .finish_non_exhaustive()
    }
}
