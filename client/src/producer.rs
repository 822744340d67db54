//! Producers: blocking, asynchronous and polled sends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use courser_core::client::{
    self, BatchLimits, Durability, Event, Outgoing, ProducerKey, ProducerRequest,
};
use courser_core::id::{MessageId, Position, Sequence};
use courser_core::limits;
use courser_core::time::{Monotonic, Now, Wall};

use crate::client::{Client, Owner};
use crate::error::{Cause, NotAccepted, RequestError, SendError, TrySendError};
use crate::ledger::{Ledger, Pending, SendResult};
use crate::link::{Link, State};
use crate::message::{Message, Payload};
use crate::session::{Call, CompletionListener, Listener, Session};

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
}

impl<'a> ProducerBuilder<'a> {
    pub(crate) fn new(client: &'a Client, request: Result<ProducerRequest, RequestError>) -> Self {
        Self {
            client,
            request,
            timeout: limits::SEND_TIMEOUT,
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
    pub fn partitions(self, partitions: u32) -> Self {
        self.with(|request| request.partitions = partitions)
    }

    /// How many bytes of settled messages the destination is to keep.
    pub fn retain(self, bytes: u64) -> Self {
        self.with(|request| request.retain = Some(bytes))
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
        let link = self.client.link();
        let event = link.request(|machine| machine.open_producer(request))?;
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
        let mut state = link.lock();
        let id = MessageId {
            installation: state.machine.installation(),
            producer: id,
            epoch,
            sequence: Sequence(0),
        };
        state.open_ledger(key, Ledger::new(key, id, Arc::clone(&session)));
        drop(state);
        Ok(Producer {
            owner: Arc::clone(self.client.owner()),
            session,
            key,
            id,
            partitions,
            timeout: self.timeout,
            closed: false,
        })
    }
}

/// Sends messages to one destination, in order.
///
/// Three ways to send share one order, so they can be mixed: [`Producer::send`]
/// waits for the receipt, [`Producer::send_async`] hears of it through a
/// listener, [`Producer::try_send`] through [`Producer::poll`]. Threads may
/// share a producer.
pub struct Producer {
    owner: Arc<Owner>,
    session: Arc<Session>,
    key: ProducerKey,
    id: MessageId,
    partitions: u32,
    timeout: Duration,
    closed: bool,
}

impl Producer {
    /// Sends a message and waits for what became of it: the calling thread does
    /// the link's input and output meanwhile.
    ///
    /// One copy of the message; no allocation in steady state.
    ///
    /// # Errors
    ///
    /// If the message is not stored, or nobody knows.
    pub fn send(&self, message: impl Payload) -> Result<Receipt, SendError> {
        let sequence = self.accept(&message, &mut Some(Pending::Sync))?;
        self.outcome(sequence)
    }

    /// Sends several messages together, and waits for what became of each: every
    /// message has a result of its own, in the order given.
    pub fn send_batch<P: Payload>(
        &self,
        messages: impl IntoIterator<Item = P>,
    ) -> Vec<Result<Receipt, SendError>> {
        let mut taken = Vec::new();
        for message in messages {
            let pending = &mut Some(Pending::Sync);
            let queued = self.queue(&message, pending);
            taken.push(match queued {
                // Full: what is queued has to leave before there is room.
                Err(TrySendError::WouldBlock) => self.accept(&message, pending),
                Err(TrySendError::Failed(error)) => Err(error),
                Ok(sequence) => Ok(sequence),
            });
        }
        self.write();
        taken
            .into_iter()
            .map(|taken| taken.and_then(|sequence| self.outcome(sequence)))
            .collect()
    }

    /// Sends a message and returns; the listener is called once, on the session's
    /// callback thread. Waits only while the producer's window is full.
    ///
    /// # Errors
    ///
    /// If the message was not taken: it comes back, and no listener is called.
    pub fn send_async(
        &self,
        message: impl Into<Message>,
        listener: Arc<dyn CompletionListener>,
    ) -> Result<(), NotAccepted> {
        self.send_to(message.into(), Listener::Shared(listener))
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
        self.send_to(message.into(), Listener::Once(Box::new(listener)))
    }

    fn send_to(&self, message: Message, listener: Listener) -> Result<(), NotAccepted> {
        let link = self.link();
        let mut call = Some(Call { message, listener });
        let result = self.listened(link, &mut call);
        match (result, call) {
            (Err(error), Some(Call { message, .. })) => Err(NotAccepted { message, error }),
            _ => Ok(()),
        }
    }

    /// Takes `call` if the send is accepted.
    fn listened(&self, link: &Arc<Link>, call: &mut Option<Call>) -> Result<(), SendError> {
        let timed_out = || SendError::NotStored {
            cause: Cause::TimedOut,
        };
        let no_thread = |_: std::io::Error| SendError::NotStored {
            cause: Cause::NoThread,
        };
        let admitted = self
            .session
            .admit(link, Instant::now() + self.timeout)
            .map_err(no_thread)?;
        if !admitted {
            return Err(timed_out());
        }
        link.will_call();
        let size = call.as_ref().map_or(0, |call| call.message.size());
        let mut state = link.lock();
        let mut taken = link.listen(&mut state).map_err(no_thread);
        if taken.is_ok() {
            let mut now = state.clock.now().monotonic;
            let deadline = now.after(self.timeout);
            let mut on_its_way = state.machine.unanswered(self.key) > 0;
            let mut sent = state.send_call(self.key, call, deadline);
            if sent == Err(client::SendError::WouldBlock) {
                drop(state);
                sent = link
                    .wait(deadline, |state| {
                        Some(state.send_call(self.key, call, deadline))
                            .filter(|sent| *sent != Err(client::SendError::WouldBlock))
                    })
                    .unwrap_or(sent);
                state = link.lock();
                now = link.now();
                on_its_way = state.machine.unanswered(self.key) > 1;
            }
            match sent {
                Ok(_sequence) => link.gather(&mut state, on_its_way, size, now),
                Err(error) => {
                    state.listens_no_more();
                    taken = Err(state.not_taken(error));
                }
            }
        }
        drop(state);
        taken.inspect_err(|_| {
            self.session.dismiss();
            link.called_back();
        })
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
        let mut state = self.link().lock();
        let now = state.clock.now();
        let sequence = self.take(&mut state, now, &message, &mut Some(Pending::Polled))?;
        self.link().write(&mut state);
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
        self.queue(&message, &mut Some(Pending::Polled))
    }

    /// Writes what was enqueued, as far as credit and the socket allow.
    pub fn write(&self) {
        let mut state = self.link().lock();
        self.link().write(&mut state);
    }

    /// The next outcome in order, if it is there; otherwise writes and reads once,
    /// without waiting.
    #[inline]
    pub fn poll(&self) -> Option<Completion> {
        let mut state = self.link().lock();
        if let Some(completion) = state.polled(self.key) {
            return Some(completion);
        }
        self.link().turn(&mut state);
        state.polled(self.key)
    }

    /// The next outcome in order; waits up to `timeout` for it, driving the link.
    /// `None` as well if nothing is outstanding that could have one.
    pub fn poll_for(&self, timeout: Duration) -> Option<Completion> {
        let deadline = self.link().now().after(timeout);
        let found = self
            .link()
            .wait(deadline, |state| match state.polled(self.key) {
                Some(completion) => Some(Some(completion)),
                None => (state.machine.outstanding(self.key) == 0).then_some(None),
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
        link.lock().forget(self.key);
        match result {
            // What is closed already needs no closing.
            Ok(_) | Err(RequestError::LinkEnded(_)) => Ok(()),
            Err(error) => Err(error),
        }
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
        self.link().lock().machine.outstanding(self.key)
    }

    #[inline]
    fn link(&self) -> &Arc<Link> {
        self.owner.link()
    }

    /// Takes a message now or not at all; nothing is written.
    #[inline]
    fn queue(
        &self,
        message: &impl Payload,
        pending: &mut Option<Pending>,
    ) -> Result<Sequence, TrySendError> {
        let mut state = self.link().lock();
        let now = state.clock.stamp();
        self.take(&mut state, now, message, pending)
    }

    #[inline]
    fn take(
        &self,
        state: &mut State,
        now: Now,
        message: &impl Payload,
        pending: &mut Option<Pending>,
    ) -> Result<Sequence, TrySendError> {
        let outgoing = outgoing(message, now.monotonic.after(self.timeout));
        match state.send(now, self.key, &outgoing, pending) {
            Ok(sequence) => Ok(sequence),
            Err(client::SendError::WouldBlock) => Err(TrySendError::WouldBlock),
            Err(error) => Err(TrySendError::Failed(state.not_taken(error))),
        }
    }

    /// Takes a message and writes it; waits for room if there is none.
    fn accept(
        &self,
        message: &impl Payload,
        pending: &mut Option<Pending>,
    ) -> Result<Sequence, SendError> {
        let link = self.link();
        let mut state = link.lock();
        let now = state.clock.now();
        match self.take(&mut state, now, message, pending) {
            Err(TrySendError::WouldBlock) => {}
            Err(TrySendError::Failed(error)) => return Err(error),
            Ok(sequence) => {
                link.write(&mut state);
                return Ok(sequence);
            }
        }
        let deadline = now.monotonic.after(self.timeout);
        drop(state);
        let taken = link.wait(deadline, |state| {
            let now = state.clock.now();
            match self.take(state, now, message, pending) {
                Err(TrySendError::WouldBlock) => None,
                Err(TrySendError::Failed(error)) => Some(Err(error)),
                Ok(sequence) => {
                    link.write(state);
                    Some(Ok(sequence))
                }
            }
        });
        taken.unwrap_or(Err(SendError::NotStored {
            cause: Cause::TimedOut,
        }))
    }

    /// Waits for what became of a send; its deadline bounds the wait.
    fn outcome(&self, sequence: Sequence) -> SendResult {
        self.link()
            .wait(Monotonic::NEVER, |state| state.result(self.key, sequence))
            .unwrap_or(Err(SendError::Closed))
    }
}

impl Drop for Producer {
    /// Closes without waiting: listeners of sends that are on their way are still
    /// called.
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let mut state = self.link().lock();
        match state.machine.close_producer(self.key) {
            Ok(request) => state.abandon(request),
            Err(_closed) => state.forget(self.key),
        }
        self.link().write(&mut state);
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

#[inline]
fn outgoing(message: &impl Payload, deadline: Monotonic) -> Outgoing<'_> {
    Outgoing {
        properties: message.property_block(),
        body: message.body(),
        route: message.route(),
        deadline,
    }
}
