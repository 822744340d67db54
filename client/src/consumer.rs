//! Consumers: messages as they come, acknowledged one by one or up to a place.
//!
//! ```text
//!   machine's prefetch  --- exchanged as a whole --->  own prefetch ---> application
//!   machine's runs      <--- handed over together ---  own acks     <--- acknowledge
//! ```
//!
//! Taking a message and acknowledging it touch only what this consumer owns; the
//! link is locked once for everything that was delivered meanwhile.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use courser_core::client::{
    AckError, ConsumerKey, ConsumerRequest, Event, PollState, Prefetch, Received as Borrowed,
    Sharing, Start,
};
use courser_core::error::Refusal;
use courser_core::id::{Offset, PartitionIndex, Position};
use courser_core::time::Monotonic;

use crate::client::Client;
use crate::delivery::Listening;
use crate::error::{AcknowledgeError, ReceiveError, RequestError};
use crate::future::ReceiveFuture;
use crate::link::{Link, State, Wanted};
use crate::message::Received;
use crate::pool::Owner;
use crate::session::Session;
use crate::unsettled::Unsettled;

/// Acknowledgements wait at most this long for company.
const ACK_AGE_MAX: Duration = Duration::from_millis(1);
/// Runs of acknowledgements that are kept if the link takes none.
const ACKS_MAX: usize = 4096;

/// Says what a consumer is to be like; made by [`Client::consumer`].
#[derive(Debug)]
#[must_use = "a builder does nothing until create is called"]
pub struct ConsumerBuilder<'a> {
    client: &'a Client,
    request: Result<ConsumerRequest, RequestError>,
}

impl<'a> ConsumerBuilder<'a> {
    pub(crate) fn new(client: &'a Client, request: Result<ConsumerRequest, RequestError>) -> Self {
        Self { client, request }
    }

    fn with(mut self, change: impl FnOnce(&mut ConsumerRequest)) -> Self {
        if let Ok(request) = &mut self.request {
            change(request);
        }
        self
    }

    /// The subscription on a topic; without a name it ends with its consumer.
    pub fn subscription(self, name: &str) -> Self {
        self.with(|request| request.subscription = name.into())
    }

    /// Whether several consumers may share the subscription of a topic, each message
    /// going to one of them. It has to have a name, and all of them have to say the
    /// same. A queue's consumers always share.
    pub fn shared(self, is_shared: bool) -> Self {
        self.with(|request| {
            request.sharing = if is_shared {
                Sharing::Several
            } else {
                Sharing::One
            };
        })
    }

    /// Whether the subscription of a topic is a failover subscription: of its consumers
    /// one is active in each partition, and the others stand by. When the active one
    /// closes or its connection breaks, the next one goes on with what was not settled,
    /// in order. The subscription has to have a name, and all consumers have to say the
    /// same.
    pub fn failover(self) -> Self {
        self.with(|request| request.sharing = Sharing::Failover)
    }

    /// Whether the subscription of a topic is shared by key: each key is with one
    /// consumer at a time, which gets the key's messages in their order; without a key
    /// the sender stands for it. When consumers come or go their share of the keys
    /// moves, and a key that moves waits until what was delivered of it is settled or
    /// given back. The subscription has to have a name, and all consumers have to say
    /// the same.
    ///
    /// Order is kept as long as nothing is given back: what is given back by
    /// [`Consumer::give_back`] comes again behind what was delivered before.
    pub fn key_shared(self) -> Self {
        self.with(|request| request.sharing = Sharing::KeyShared)
    }

    /// The consumer's name, for who looks at the broker; at most 255 bytes.
    pub fn name(self, name: &str) -> Self {
        self.with(|request| request.name = name.into())
    }

    /// A new subscription starts with the first message that is kept; the default.
    pub fn from_earliest(self) -> Self {
        self.with(|request| request.start = Start::Earliest)
    }

    /// A new subscription starts with the next message that is stored.
    pub fn from_latest(self) -> Self {
        self.with(|request| request.start = Start::Latest)
    }

    /// A new subscription starts with this offset of every partition.
    pub fn from_offset(self, offset: u64) -> Self {
        self.with(|request| request.start = Start::Offset(Offset(offset)))
    }

    /// How many messages may be delivered ahead, at least 1; 256 unless said otherwise.
    pub fn prefetch(self, messages: u32) -> Self {
        self.with(|request| request.messages_max = messages.max(1))
    }

    /// How many frame bytes may be delivered ahead; the last message may reach
    /// beyond. 1 MiB unless said otherwise.
    pub fn prefetch_bytes(self, bytes: u32) -> Self {
        self.with(|request| request.bytes_max = bytes.max(1))
    }

    /// Opens the consumer. The destination is created if it does not exist.
    ///
    /// # Errors
    ///
    /// If the name is no destination's, the broker refuses or does not answer.
    pub fn create(self) -> Result<Consumer, RequestError> {
        let request = self.request?;
        let quarter = u64::from((request.messages_max / 4).max(1));
        let destination = request.destination.clone();
        let (owner, event) = self.client.open(
            &destination,
            |link| link.request(|machine| machine.open_consumer(request.clone())),
            |link, event| {
                if let Event::ConsumerOpened { consumer, .. } = event {
                    // If it cannot be closed, it ends with the link.
                    link.request(|machine| machine.close_consumer(consumer))
                        .ok();
                    link.take().machine.forget_consumer(consumer);
                }
            },
        )?;
        let link = Arc::clone(owner.link());
        let Event::ConsumerOpened {
            consumer: key,
            starts,
            ..
        } = event
        else {
            unreachable!("the machine pairs answers with requests");
        };
        Ok(Consumer {
            acks_since: link.now(),
            owner,
            session: Arc::clone(self.client.session()),
            key,
            starts,
            prefetch: Prefetch::default(),
            unsettled: Unsettled::default(),
            generation: 0,
            disconnects: link.disconnects(),
            quarter,
            acks: Vec::new(),
            acked: 0,
            closed: false,
        })
    }
}

/// Consecutive offsets to settle, or all up to one.
#[derive(Clone, Copy, Debug)]
struct Ack {
    partition: PartitionIndex,
    first: u64,
    /// 0: everything up to `first`.
    count: u64,
}

/// Receives messages of one subscription.
pub struct Consumer {
    owner: Arc<Owner>,
    session: Arc<Session>,
    key: ConsumerKey,
    starts: Box<[Offset]>,
    prefetch: Prefetch,
    unsettled: Unsettled,
    /// Which connection of the consumer handed them out.
    generation: u32,
    /// How often the connection had been lost when that was looked at last.
    disconnects: u32,
    /// A quarter of the window: how often the broker hears of progress.
    quarter: u64,
    acks: Vec<Ack>,
    /// Messages in `acks`.
    acked: u64,
    /// When the oldest of `acks` was given.
    acks_since: Monotonic,
    closed: bool,
}

impl Consumer {
    /// The next message, as soon as there is one; `None` if there is none within
    /// `timeout`. The calling thread does the link's input and output meanwhile.
    ///
    /// Copies the message out; see [`Consumer::try_receive`] for how not to.
    ///
    /// # Errors
    ///
    /// If the link has ended and everything delivered was handed out.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Received>, ReceiveError> {
        if let Some(received) = self.try_receive()? {
            return Ok(Some(Received::copy_of(&received)));
        }
        let owner = Arc::clone(&self.owner);
        let deadline = owner.link().now().after(timeout);
        let wanted = Wanted::Message(self.key);
        let found = owner.link().wait(deadline, wanted, |state| {
            self.exchange(state);
            if !self.prefetch.is_empty() {
                return Some(Ok(()));
            }
            self.over(state).map(Err)
        });
        match found {
            None => Ok(None),
            Some(Err(error)) => Err(error),
            Some(Ok(())) => Ok(self.next().map(|received| Received::copy_of(&received))),
        }
    }

    /// The next message if the broker has one for this consumer; asks it, in whatever
    /// partition and on whatever shard, unless one was delivered ahead. `None` if there
    /// was none when it was asked, or none that is not with others.
    ///
    /// Costs a round trip where [`Consumer::try_receive`] only looks at what has come.
    ///
    /// # Errors
    ///
    /// If the link has ended and everything delivered was handed out;
    /// [`ReceiveError::TimedOut`] if the broker cannot be asked in time.
    pub fn receive_no_wait(&mut self) -> Result<Option<Received>, ReceiveError> {
        if let Some(received) = self.try_receive()? {
            return Ok(Some(Received::copy_of(&received)));
        }
        let owner = Arc::clone(&self.owner);
        let link = owner.link();
        let until = link.now().after(link.timeout());
        while link.now() < until {
            let mut state = link.take();
            self.exchange(&mut state);
            let asked = state.machine.ask_for_messages(self.key);
            state.write();
            drop(state);
            let key = self.key;
            let wanted = asked.map_or(Wanted::Attached(key), |token| Wanted::Polled(key, token));
            let found = link.wait(until, wanted, |state| {
                self.exchange(state);
                if !self.prefetch.is_empty() {
                    return Some(Ok(true));
                }
                if let Some(error) = self.over(state) {
                    return Some(Err(error));
                }
                match asked {
                    Ok(token) => match state.machine.poll_state(key, token) {
                        PollState::Asked => None,
                        PollState::Answered => Some(Ok(false)),
                        PollState::Lost => Some(Ok(true)),
                    },
                    Err(_) => state.machine.is_consumer_attached(key).then_some(Ok(true)),
                }
            });
            match found {
                None => break,
                Some(Err(error)) => return Err(error),
                Some(Ok(false)) => return Ok(None),
                Some(Ok(true)) => {
                    if let Some(received) = self.next() {
                        return Ok(Some(Received::copy_of(&received)));
                    }
                }
            }
        }
        Err(ReceiveError::TimedOut {
            after: link.timeout(),
        })
    }

    /// The next message that a browser is shown: as [`Consumer::receive_no_wait`], but it
    /// is not held.
    pub(crate) fn look(&mut self) -> Result<Option<Received>, ReceiveError> {
        let received = self.receive_no_wait();
        self.unsettled.clear();
        received
    }

    /// The next message, for an asynchronous program of any runtime.
    ///
    /// Dropped before it was ready the future takes nothing along.
    pub fn receive_async(&mut self) -> ReceiveFuture<'_> {
        ReceiveFuture::new(self)
    }

    /// The next message, or a promise to wake the task once there is one: what a
    /// stream of messages is made of. The last waker counts.
    ///
    /// # Errors
    ///
    /// If the link has ended and everything delivered was handed out, or no thread
    /// could be started to wait for messages.
    pub fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Received, ReceiveError>> {
        if let Some(received) = self.try_receive()? {
            return Poll::Ready(Ok(Received::copy_of(&received)));
        }
        let owner = Arc::clone(&self.owner);
        let mut driving = owner.link().take();
        // Whatever came since the last look is not announced to the waker.
        self.exchange(&mut driving);
        if let Some(received) = self.next() {
            return Poll::Ready(Ok(Received::copy_of(&received)));
        }
        if let Some(error) = self.over(&driving) {
            return Poll::Ready(Err(error));
        }
        owner
            .link()
            .expect(&mut driving, self.key, context.waker())
            .map_err(|_no_thread| ReceiveError::NoThread)?;
        // Acknowledgements wait for company no longer: there may be none for long.
        driving.write();
        Poll::Pending
    }

    /// No task waits for a message any more.
    pub(crate) fn expect_no_more(&mut self) {
        self.link().take().expect_no_more(self.key);
    }

    /// Has `listener` called with every message, on the session's callback thread,
    /// one at a time and in order. A message is acknowledged when the listener has
    /// returned. If it panics, the message is given back and comes again, to this
    /// or another consumer; see [`Client::panicked_listeners`].
    ///
    /// # Errors
    ///
    /// If no thread could be started.
    pub fn listen(
        self,
        listener: impl FnMut(&Received) + Send + 'static,
    ) -> Result<Listening, ReceiveError> {
        let session = Arc::clone(&self.session);
        Listening::begin(self, Box::new(listener), session)
    }

    /// The next message if one has come, readable until the next call; otherwise
    /// writes and reads once, without waiting. What the broker has beside that it does
    /// not ask: see [`Consumer::receive_no_wait`].
    ///
    /// No copy, no allocation; the link is locked only when what was delivered
    /// is used up, or a quarter of the window later.
    ///
    /// # Errors
    ///
    /// If the link has ended and everything delivered was handed out.
    #[inline]
    pub fn try_receive(&mut self) -> Result<Option<Borrowed<'_>>, ReceiveError> {
        let disconnects = self.owner.link().disconnects();
        if self.prefetch.is_empty()
            || self.prefetch.handed() >= self.quarter
            || disconnects != self.disconnects
        {
            // What an earlier connection delivered comes again.
            self.disconnects = disconnects;
            self.refill()?;
        }
        Ok(self.next())
    }

    /// The next message of those at hand.
    #[inline]
    fn next(&mut self) -> Option<Borrowed<'_>> {
        let received = self.prefetch.next_message()?;
        self.unsettled.handed(received.position());
        Some(received)
    }

    /// Settles a message: it will not be delivered again. Told to the broker when
    /// the messages at hand are used up, after a quarter of the window, or 1 ms
    /// after another acknowledgement at the latest.
    ///
    /// # Errors
    ///
    /// If it cannot be taken.
    #[inline]
    pub fn acknowledge(&mut self, position: Position) -> Result<(), AcknowledgeError> {
        self.unsettled.settled(position);
        match self.acks.last_mut() {
            Some(ack)
                if ack.partition == position.partition
                    && ack.count > 0
                    && ack.first + ack.count == position.offset.0 =>
            {
                ack.count += 1;
            }
            _ => self.push(Ack {
                partition: position.partition,
                first: position.offset.0,
                count: 1,
            })?,
        }
        self.acked();
        Ok(())
    }

    /// Settles a message and all that were delivered before it in its partition.
    ///
    /// # Errors
    ///
    /// If it cannot be taken.
    pub fn acknowledge_through(&mut self, position: Position) -> Result<(), AcknowledgeError> {
        self.unsettled.settled_through(position);
        match self.acks.last_mut() {
            Some(ack) if ack.partition == position.partition && ack.count == 0 => {
                ack.first = ack.first.max(position.offset.0);
            }
            _ => self.push(Ack {
                partition: position.partition,
                first: position.offset.0,
                count: 0,
            })?,
        }
        self.acked();
        Ok(())
    }

    /// Gives a message back at once: it comes again, counted, to whichever consumer
    /// of the subscription is free, before what was never handed out. What was
    /// delivered to this one ahead comes first, though.
    ///
    /// # Errors
    ///
    /// If it cannot be taken.
    pub fn give_back(&mut self, position: Position) -> Result<(), AcknowledgeError> {
        self.return_one(position, None)
    }

    /// Gives a message back that should not come again before `delay` has passed,
    /// nor before the broker's wait after failures: 1 s that doubles with each
    /// delivery, up to 5 min.
    ///
    /// # Errors
    ///
    /// If it cannot be taken.
    pub fn nack(&mut self, position: Position, delay: Duration) -> Result<(), AcknowledgeError> {
        self.return_one(position, Some(delay))
    }

    /// Gives everything back at once that was handed out and not acknowledged.
    ///
    /// # Errors
    ///
    /// If not all of it can be taken; the rest is as it was.
    pub fn recover(&mut self) -> Result<(), AcknowledgeError> {
        let owner = Arc::clone(&self.owner);
        let mut driving = owner.link().take();
        self.notice(&driving);
        let mut runs = self.unsettled.take();
        let mut result = Ok(());
        while let Some(run) = runs.front() {
            let (position, count) = (run.position(), run.count);
            result = driving.machine.give_back(self.key, position, count, None);
            if result.is_err() {
                break;
            }
            runs.pop_front();
        }
        self.unsettled.put_back(runs);
        driving.write();
        result.map_err(|error| self.not_taken(error, &driving))
    }

    fn return_one(
        &mut self,
        position: Position,
        delay: Option<Duration>,
    ) -> Result<(), AcknowledgeError> {
        let owner = Arc::clone(&self.owner);
        let mut driving = owner.link().take();
        self.notice(&driving);
        if !self.unsettled.settled(position) {
            // It is settled, given back, or will come again anyway.
            return Ok(());
        }
        let result = driving.machine.give_back(self.key, position, 1, delay);
        if result.is_err() {
            self.unsettled.handed(position);
        }
        driving.write();
        result.map_err(|error| self.not_taken(error, &driving))
    }

    /// Tells the broker at once what was acknowledged.
    ///
    /// # Errors
    ///
    /// If the consumer or its link is closed.
    pub fn flush(&mut self) -> Result<(), AcknowledgeError> {
        let owner = Arc::clone(&self.owner);
        let mut state = owner.link().take();
        let handed = self.hand_over(&mut state);
        state.write();
        handed
    }

    /// Tells the broker what was acknowledged, and waits until it is settled; if it
    /// returns, none of it comes again. The calling thread does the link's input and
    /// output meanwhile.
    ///
    /// If the connection is lost before, waits for another one as long as
    /// [`ConnectOptions::reconnect_for`](crate::ConnectOptions::reconnect_for) says, and
    /// names there again what was acknowledged one by one: up to 512 runs of
    /// consecutive offsets in each partition.
    ///
    /// # Errors
    ///
    /// If the broker refuses it or does not answer in time.
    /// [`AcknowledgeError::Disconnected`] if it cannot be known what became of
    /// everything that was acknowledged before a connection was lost; what is not
    /// settled comes again, to this consumer or another one.
    pub fn confirm(&mut self) -> Result<(), AcknowledgeError> {
        let owner = Arc::clone(&self.owner);
        let link = owner.link();
        let patience = link.take().machine.reconnect_for();
        let until = link.now().after(patience.saturating_add(link.timeout()));
        loop {
            let mut state = link.take();
            let (is_attached, in_doubt) = (
                state.machine.is_consumer_attached(self.key),
                state.machine.is_consumer_in_doubt(self.key),
            );
            self.hand_over(&mut state)?;
            let asked = state.machine.confirm(self.key);
            let late = match asked {
                Ok(None) => state.late_confirmation(self.key),
                _ => None,
            };
            state.write();
            drop(state);
            let refused = match asked {
                Ok(None) => late,
                Ok(Some(token)) => self.confirmed(token)?,
                Err(AckError::Disconnected) if !is_attached => {
                    self.reattached(until)?;
                    continue;
                }
                Err(error) => return Err(self.not_taken(error, &link.take())),
            };
            match refused {
                None => return Ok(()),
                // So the machine says it, and so would a broker that has lost it.
                Some(code) if code == Refusal::NotOpen.code() => {
                    if link.now() >= until {
                        return Err(AcknowledgeError::Disconnected);
                    }
                }
                // Another consumer has some of it by now, and may be handed it.
                Some(code) if in_doubt && code == Refusal::InvalidAck.code() => {
                    return Err(AcknowledgeError::Disconnected);
                }
                Some(code) => {
                    return Err(AcknowledgeError::Refused {
                        refusal: Refusal::from_code(code),
                        code,
                    });
                }
            }
        }
    }

    /// Waits for a confirmation: why it was refused, if it was.
    fn confirmed(&mut self, token: u32) -> Result<Option<u16>, AcknowledgeError> {
        let link = self.owner.link();
        let deadline = link.now().after(link.timeout());
        let wanted = Wanted::Confirmation(self.key, token);
        let confirmed = link.wait(deadline, wanted, |state| {
            if let Some(refusal) = state.confirmation(self.key, token) {
                return Some(Ok(refusal));
            }
            let end = state.end.as_ref()?;
            Some(Err(AcknowledgeError::LinkEnded(Arc::clone(end))))
        });
        confirmed.unwrap_or(Err(AcknowledgeError::TimedOut {
            after: link.timeout(),
        }))
    }

    /// Waits until the consumer is open on another connection.
    fn reattached(&mut self, until: Monotonic) -> Result<(), AcknowledgeError> {
        let link = self.owner.link();
        let found = link.wait(until, Wanted::Attached(self.key), |state| {
            if state.machine.is_consumer_attached(self.key) {
                return Some(Ok(()));
            }
            if state.lost_consumer(self.key).is_some() {
                return Some(Err(AcknowledgeError::Disconnected));
            }
            let end = state.end.as_ref()?;
            Some(Err(AcknowledgeError::LinkEnded(Arc::clone(end))))
        });
        found.unwrap_or(Err(AcknowledgeError::Disconnected))
    }

    /// Tells the broker what was acknowledged and closes; what was not
    /// acknowledged goes back to the subscription.
    ///
    /// # Errors
    ///
    /// If the broker does not answer, in which case the consumer is closed all
    /// the same.
    pub fn close(mut self) -> Result<(), RequestError> {
        let owner = Arc::clone(&self.owner);
        let link = owner.link();
        self.leave(&mut link.take());
        self.closed = true;
        let result = link.request(|machine| machine.close_consumer(self.key));
        let mut state = link.take();
        state.machine.forget_consumer(self.key);
        state.forget_confirmations(self.key);
        match result {
            Ok(_) | Err(RequestError::LinkEnded(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// For each partition the offset that the consumer started at.
    #[must_use]
    pub fn starts(&self) -> &[Offset] {
        &self.starts
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        self.owner.link()
    }

    /// Locks the link: hands over acknowledgements, reports progress, and takes
    /// what was delivered.
    fn refill(&mut self) -> Result<(), ReceiveError> {
        let owner = Arc::clone(&self.owner);
        let link = owner.link();
        let mut state = link.take();
        self.exchange(&mut state);
        if self.prefetch.is_empty() {
            link.turn(&mut state);
            self.exchange(&mut state);
        } else if state.machine.has_pieces() {
            state.write();
        }
        match self.over(&state) {
            Some(error) if self.prefetch.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    /// Why no further message comes, if none does.
    fn over(&self, state: &State) -> Option<ReceiveError> {
        if let Some(end) = &state.end {
            return Some(ReceiveError::LinkEnded(Arc::clone(end)));
        }
        let lost = state.lost_consumer(self.key)?;
        let (code, text) = (lost.code, lost.text.clone());
        let refusal = Refusal::from_code(code);
        Some(if lost.ended {
            ReceiveError::Ended {
                refusal,
                code,
                text,
            }
        } else {
            ReceiveError::NotResumed {
                refusal,
                code,
                text,
            }
        })
    }

    fn exchange(&mut self, state: &mut State) {
        // What cannot be handed over now is kept for later.
        self.hand_over(state).ok();
        self.notice(state);
        state.machine.exchange(self.key, &mut self.prefetch);
    }

    /// After another connection was made: what was handed out before comes again,
    /// and what was delivered ahead as well.
    fn notice(&mut self, state: &State) {
        let generation = state.machine.consumer_generation(self.key);
        if generation != self.generation {
            self.generation = generation;
            self.unsettled.clear();
        }
    }

    fn push(&mut self, ack: Ack) -> Result<(), AcknowledgeError> {
        let partitions = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
        if ack.partition.0 >= partitions {
            return Err(AcknowledgeError::NoSuchPartition {
                partition: ack.partition,
                partitions,
            });
        }
        if self.acks.len() >= ACKS_MAX {
            self.flush()?;
            if self.acks.len() >= ACKS_MAX {
                return Err(AcknowledgeError::WouldBlock);
            }
        }
        if self.acks.is_empty() {
            self.acks_since = self.link().now();
        }
        self.acks.push(ack);
        Ok(())
    }

    /// Another acknowledgement was noted: flushes if it is time.
    #[inline]
    fn acked(&mut self) {
        self.acked += 1;
        if self.prefetch.is_empty()
            || self.acked >= self.quarter
            || self.link().now().since(self.acks_since) >= ACK_AGE_MAX
        {
            // What the link does not take now is told with the next ones.
            self.flush().ok();
        }
    }

    /// Gives the machine what was acknowledged.
    fn hand_over(&mut self, state: &mut State) -> Result<(), AcknowledgeError> {
        let mut taken = 0;
        let mut result = Ok(());
        for ack in &self.acks {
            let position = Position {
                partition: ack.partition,
                offset: Offset(ack.first),
            };
            result = match ack.count {
                0 => state.machine.acknowledge_through(self.key, position),
                count => state.machine.acknowledge_run(self.key, position, count),
            };
            if result.is_err() {
                break;
            }
            taken += 1;
        }
        self.acks.drain(..taken);
        self.acked = self.acks.iter().map(|ack| ack.count.max(1)).sum();
        result.map_err(|error| self.not_taken(error, state))
    }

    fn not_taken(&self, error: AckError, state: &State) -> AcknowledgeError {
        match (error, &state.end) {
            (AckError::Closed, Some(end)) => AcknowledgeError::LinkEnded(Arc::clone(end)),
            _ => error.into(),
        }
    }

    /// Says the last things before the consumer closes.
    fn leave(&mut self, state: &mut State) {
        self.hand_over(state).ok();
        state.machine.report_handed(self.key, &mut self.prefetch);
    }
}

impl Drop for Consumer {
    /// Tells what was acknowledged and closes, without waiting.
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let owner = Arc::clone(&self.owner);
        let mut state = owner.link().take();
        self.leave(&mut state);
        match state.machine.close_consumer(self.key) {
            Ok(request) => state.abandon(request),
            Err(_closed) => {
                state.machine.forget_consumer(self.key);
            }
        }
        state.forget_confirmations(self.key);
        state.write();
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("partitions", &self.starts.len())
            .finish_non_exhaustive()
    }
}
