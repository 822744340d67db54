//! The client's end of a link, without I/O, clock or thread.
//!
//! ```text
//!   application                        Client                          driver
//!   open, send, ack  ---> requests, producers, consumers --- pieces ---> write
//!                                                        <-- sent ------
//!   events, completions, messages  <---  frames  <------- received ----- read
//!                                                        <-- expire ---- clock
//! ```
//!
//! The cast: [`Client`] is one link to one broker with one session on it;
//! `producer` keeps frames until they are answered and outcomes until they are
//! taken; `consumer` keeps what was delivered ahead and what was settled;
//! `question` and `hearing` are the two directions of frames, `request` pairs answers
//! with questions; `outbound` decides what leaves next.
//!
//! Facts are `connected`, `received` (any split), `sent` (any part of what was
//! offered), `closed`, `dial_failed` and `expire`. Wishes are `pieces`,
//! `next_deadline`, `wants_connection` and `wants_close`.
//!
//! A client outlives its connections for as long as its configuration says:
//!
//! ```text
//!   Idle -> Greeting -> OpeningSession -> Open -> Leaving -> Left -> Ended
//!               ^             | closed     | closed                   ^
//!               | connected   v            v        too long          |
//!               '-----------  Waiting  <---'  ------------------------'
//! ```
//!
//! On the next connection `resume` opens again what was open, and producers send
//! again what had no answer. A link on which nothing is open can move to another shard
//! of its broker, over the same connection: Open, Moving, OpeningSession, Open. Once [`Client::end`] says something a client only
//! hands out what it still has.
//!
//! Invariants:
//! - Nothing that a broker says makes it panic, or grow beyond what its own
//!   grants and requests allow; what breaks the protocol ends the link with a
//!   [`ProtocolFault`].
//! - Each accepted send has exactly one completion, and a producer's
//!   completions come in the order of its sends.
//! - A message costs no allocation once queues have grown to their use.

mod admin;
mod consumer;
mod error;
mod event;
mod hearing;
mod outbound;
mod producer;
mod question;
mod queue;
mod request;
mod resume;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::frame::control::{self};
use crate::frame::{MAGIC, VERSION};
use crate::id::{
    Handle, Installation, MessageId, PartitionIndex, Position, RequestId, Run, Sequence, ShardIndex,
};
use crate::limits;
use crate::name::Destination;
use crate::slab::Slab;
use crate::time::{Monotonic, Now};

pub use crate::frame::Durability;
pub use crate::pieces::{PIECES_MAX, Pieces};
pub use admin::{
    AdminRequest, ConsumerInfo, DestinationInfo, LinkInfo, ListRequest, Listing, Page, PartInfo,
    ProducerInfo, Rows, SubscriptionInfo,
};
pub use consumer::{ConsumerRequest, PollState, Prefetch, Received, Sharing, Start};
pub use error::{AckError, Cause, LinkEnd, ProtocolFault, RequestError, SendError};
pub use event::{ConsumerKey, DestinationStats, Event, Location, ProducerKey, StatsReport};
pub use producer::{BatchLimits, Completion, Failure, Outgoing, ProducerRequest, Route, Stored};

use consumer::Consumer;
use outbound::Outbound;
use producer::Producer;
use queue::ByteQueue;
use request::{Pending, Requests};
use resume::Redial;

/// What a client says of itself, and how long it waits.
#[derive(Clone, Debug)]
pub struct Config {
    /// The client's name, for who looks at the broker; at most 255 bytes.
    pub name: Box<str>,
    /// The shard it would like to be on at first.
    pub shard: Option<ShardIndex>,
    /// How long the broker may take until the session is open.
    pub hello_timeout: core::time::Duration,
    /// How long another connection is tried for when one is lost; zero for never.
    pub reconnect_for: core::time::Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "".into(),
            shard: None,
            hello_timeout: limits::SEND_TIMEOUT,
            reconnect_for: core::time::Duration::ZERO,
        }
    }
}

/// Counts of what the application never sees otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Answers to sends that had failed by then.
    pub late_completions: u64,
    /// Connections that took the place of one that was lost.
    pub reconnects: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes that have left.
    pub bytes_sent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not connected yet.
    Idle,
    /// Waits for the welcome.
    Greeting,
    /// Waits for the session.
    OpeningSession,
    /// Requests leave.
    Open,
    /// Waits for the welcome of another shard.
    Moving,
    /// The connection is gone, and another one is wanted.
    Waiting,
    /// Says goodbye once every frame has left.
    Leaving,
    /// Goodbye is queued; ends once it has left.
    Left,
    /// Nothing goes on.
    Ended,
}

/// Who a broker's handle belongs to.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Producer(ProducerKey),
    Consumer(ConsumerKey),
}

/// The messages that a delivery announced and that are still to come.
#[derive(Clone, Copy, Debug)]
struct Announced {
    consumer: ConsumerKey,
    partition: PartitionIndex,
    delivery_count: u32,
    left: u32,
    /// The lowest offset of the next message, and whether it is exactly this one.
    next: u64,
    is_first: bool,
}

/// See the module.
pub struct Client {
    config: Config,
    phase: Phase,
    end: Option<LinkEnd>,
    installation: Installation,
    run: Run,
    /// The link that was open last, by the number that the broker gave it.
    link: u64,
    /// A session was open once.
    stood: bool,
    /// What has to be opened again on this connection.
    resuming: bool,
    redial: Redial,
    /// Why there is no connection, while another one is wanted.
    lost: Option<LinkEnd>,
    shard: ShardIndex,
    /// How many the broker has.
    shards: u16,
    session: u32,
    frame_size_max: u32,
    hello_deadline: Monotonic,

    outbound: Outbound,
    /// A frame whose end has not arrived.
    carry: ByteQueue,
    /// How many bytes of it bring the next step.
    carry_needed: usize,
    announced: Option<Announced>,

    requests: Requests,
    events: VecDeque<Event>,
    producers: Slab<Producer>,
    consumers: Slab<Consumer>,
    handles: HashMap<u32, Owner, FixedState>,
    /// Producers with outcomes to take, each once.
    completed: VecDeque<ProducerKey>,
    /// Consumers with acknowledgements or credit to send, each once.
    news: VecDeque<ConsumerKey>,
    /// No deadline of a send is earlier.
    earliest: Monotonic,
    late_of_the_gone: u64,
    counters: Counters,
}

impl Client {
    /// A client that is not connected.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            phase: Phase::Idle,
            end: None,
            installation: Installation::default(),
            run: Run::default(),
            link: 0,
            stood: false,
            resuming: false,
            redial: Redial::default(),
            lost: None,
            shard: ShardIndex::default(),
            shards: 1,
            session: 0,
            frame_size_max: limits::FRAME_SIZE_MAX,
            hello_deadline: Monotonic::NEVER,
            outbound: Outbound::new(),
            carry: ByteQueue::with_limit(limits::FRAME_SIZE_MAX as usize + 8),
            carry_needed: 0,
            announced: None,
            requests: Requests::default(),
            events: VecDeque::new(),
            producers: Slab::new(limits::HANDLES_PER_LINK_MAX),
            consumers: Slab::new(limits::HANDLES_PER_LINK_MAX),
            handles: HashMap::default(),
            completed: VecDeque::new(),
            news: VecDeque::new(),
            earliest: Monotonic::NEVER,
            late_of_the_gone: 0,
            counters: Counters::default(),
        }
    }

    // Facts.

    /// A connection stands; the hello is the first thing to leave.
    pub fn connected(&mut self, now: Monotonic) {
        if !matches!(self.phase, Phase::Idle | Phase::Waiting) {
            return;
        }
        self.phase = Phase::Greeting;
        self.hello_deadline = now.after(self.config.hello_timeout);
        let name = self.config.name.clone();
        let name = truncated(&name, limits::NAME_SIZE_MAX as usize);
        let hello = control::Hello {
            magic: MAGIC,
            version_min: VERSION,
            version_max: VERSION,
            // Another connection goes where the link was, which its number says; or to
            // any shard of a broker that may have fewer by now.
            shard: match self.config.shard {
                Some(shard) if !self.stood => shard.0.into(),
                _ => u16::MAX.into(),
            },
            name_length: u16::try_from(name.len()).unwrap_or(0).into(),
            link: self.link.into(),
            ..control::Hello::default()
        };
        self.say(0, &hello, &[name.as_bytes()]);
    }

    /// The first `bytes` of what [`Client::pieces`] offered last have left.
    #[inline]
    pub fn sent(&mut self, bytes: usize) {
        self.counters.bytes_sent += bytes as u64;
        self.outbound.sent(bytes, &mut self.producers);
        if matches!(self.phase, Phase::Leaving | Phase::Left) && self.outbound.is_empty() {
            match self.phase {
                Phase::Left => self.finish(LinkEnd::Left),
                _ => self.leave_if_empty(),
            }
        }
    }

    /// The connection is gone.
    pub fn closed(&mut self) {
        match self.phase {
            Phase::Left => self.finish(LinkEnd::Left),
            _ => self.disconnected(LinkEnd::Lost),
        }
    }

    /// Time has passed.
    pub fn expire(&mut self, now: Monotonic) {
        if matches!(
            self.phase,
            Phase::Greeting | Phase::Moving | Phase::OpeningSession
        ) && self.hello_deadline <= now
        {
            self.disconnected(LinkEnd::HelloTimedOut);
        }
        if self.phase == Phase::Waiting {
            self.redial.told(now, self.config.reconnect_for);
            if self.redial.is_over(now) {
                let why = self.lost.take().unwrap_or(LinkEnd::Lost);
                self.finish(why);
            }
        }
        if self.earliest > now {
            return;
        }
        self.outbound.take_back(&mut self.producers);
        self.earliest = Monotonic::NEVER;
        let mut closing = Vec::new();
        for handle in handles_of(&self.producers) {
            let Some(producer) = self.producers.get_mut(handle) else {
                continue;
            };
            if producer.earliest_deadline() <= now {
                producer.expire(now);
                if producer.phase == producer::Phase::Closing {
                    closing.push(ProducerKey(handle));
                }
                if producer.join_line() {
                    self.outbound.ready(handle);
                }
                if producer.has_completion() && !producer.announced {
                    producer.announced = true;
                    self.completed.push_back(ProducerKey(handle));
                }
            }
            self.earliest = self.earliest.min(producer.earliest_deadline());
        }
        for key in closing {
            self.close_if_answered(key);
        }
    }

    // Wishes.

    /// What to write next, in order; ends a round, so acknowledgements and
    /// credit of what happened since the last one are in it.
    #[inline]
    pub fn pieces(&mut self) -> Pieces<'_> {
        if self.phase != Phase::Ended {
            self.speak();
            self.outbound.plan(&mut self.producers);
        }
        self.outbound.pieces(&self.producers)
    }

    /// Whether [`Client::pieces`] would offer something.
    #[inline]
    #[must_use]
    pub fn has_pieces(&self) -> bool {
        self.phase != Phase::Ended && !(self.outbound.is_empty() && self.news.is_empty())
    }

    /// When [`Client::expire`] is due: never late, sometimes early.
    #[inline]
    #[must_use]
    pub fn next_deadline(&self) -> Monotonic {
        match self.phase {
            Phase::Greeting | Phase::Moving | Phase::OpeningSession => {
                self.earliest.min(self.hello_deadline)
            }
            Phase::Waiting => self.earliest.min(self.redial.next_deadline()),
            _ => self.earliest,
        }
    }

    /// When another connection should be tried, if one is wanted: what is left of
    /// an earlier one is of no more use. Tell what came of it by
    /// [`Client::connected`] or [`Client::dial_failed`].
    #[must_use]
    pub fn wants_connection(&self) -> Option<Monotonic> {
        (self.phase == Phase::Waiting).then(|| self.redial.at())
    }

    /// Whether the link has ended, and its connection is of no more use.
    #[must_use]
    pub fn wants_close(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Why the connection was lost in whose place another one is tried, or the link
    /// ended; `None` while there is a connection.
    #[must_use]
    pub fn lost(&self) -> Option<&LinkEnd> {
        self.lost.as_ref().or(self.end.as_ref())
    }

    /// Why the link ended, if it has: if no other connection could be made, why the
    /// last one was lost.
    #[must_use]
    pub fn end(&self) -> Option<&LinkEnd> {
        self.end.as_ref()
    }

    // The application's side: requests and their answers.

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Asks for a producer: looks its destination up, then opens it.
    ///
    /// # Errors
    ///
    /// If the request cannot be taken.
    pub fn open_producer(&mut self, request: ProducerRequest) -> Result<RequestId, RequestError> {
        check_name(&request.name)?;
        self.check_room(self.producers.len())?;
        self.request(Pending::LookupForProducer(Box::new(request)))
    }

    /// Asks for a consumer.
    ///
    /// # Errors
    ///
    /// If the request cannot be taken.
    pub fn open_consumer(&mut self, request: ConsumerRequest) -> Result<RequestId, RequestError> {
        check_name(&request.name)?;
        check_name(&request.subscription)?;
        self.check_room(self.consumers.len())?;
        self.request(Pending::OpenConsumer(Box::new(request)))
    }

    /// Asks who owns a destination.
    ///
    /// # Errors
    ///
    /// If the request cannot be taken.
    pub fn lookup(&mut self, destination: Destination) -> Result<RequestId, RequestError> {
        self.request(Pending::Lookup(destination))
    }

    /// Asks for the broker's counters.
    ///
    /// # Errors
    ///
    /// If the request cannot be taken.
    pub fn ask_stats(&mut self) -> Result<RequestId, RequestError> {
        self.request(Pending::Stats(Box::default()))
    }

    /// Asks for what an administrator asks for.
    ///
    /// # Errors
    ///
    /// If the request cannot be taken.
    pub fn administer(&mut self, request: AdminRequest) -> Result<RequestId, RequestError> {
        match &request {
            AdminRequest::DeleteSubscription { subscription, .. }
            | AdminRequest::List(ListRequest { subscription, .. }) => check_name(subscription)?,
            _ => {}
        }
        self.request(Pending::Administer(Box::new(request)))
    }

    /// Asks for a pong.
    ///
    /// # Errors
    ///
    /// If the request cannot be taken.
    pub fn ping(&mut self, now: Monotonic) -> Result<RequestId, RequestError> {
        self.request(Pending::Ping { asked: now })
    }

    /// Asks for the link to go to another shard of the broker, if nothing is open on it
    /// and nothing under way: false if something is. What is asked for from here on
    /// waits until it is there, or stays, which [`Client::is_open`] and
    /// [`Client::shard`] tell then.
    pub fn move_to(&mut self, now: Monotonic, shard: ShardIndex) -> bool {
        let is_idle = self.phase == Phase::Open
            && self.producers.is_empty()
            && self.consumers.is_empty()
            && self.requests.is_empty()
            && self.outbound.is_empty()
            && self.carry.is_empty();
        if is_idle {
            self.phase = Phase::Moving;
            self.hello_deadline = now.after(self.config.hello_timeout);
            let request = self.requests.add(Pending::Move);
            let fields = control::Move {
                shard: shard.0.into(),
                ..control::Move::default()
            };
            self.say(request.0, &fields, &[]);
        }
        is_idle
    }

    /// Closes a producer: it takes no further sends, and the broker is asked
    /// once every send so far is answered.
    ///
    /// # Errors
    ///
    /// If it is closed already, or the request cannot be taken.
    pub fn close_producer(&mut self, key: ProducerKey) -> Result<RequestId, RequestError> {
        match self.producers.get_mut(key.0) {
            Some(producer) if producer.phase == producer::Phase::Open => {
                producer.phase = producer::Phase::Closing;
            }
            _ => return Err(RequestError::Closed),
        }
        let request = self.requests.add(Pending::CloseProducer(key));
        self.close_if_answered(key);
        Ok(request)
    }

    /// Closes a consumer: what it was not handed goes back to the subscription.
    ///
    /// # Errors
    ///
    /// If it is closed already, or the request cannot be taken.
    pub fn close_consumer(&mut self, key: ConsumerKey) -> Result<RequestId, RequestError> {
        let Some(consumer) = self.consumers.get_mut(key.0) else {
            return Err(RequestError::Closed);
        };
        if consumer.phase != consumer::Phase::Open {
            return Err(RequestError::Closed);
        }
        if !consumer.is_attached() {
            return Ok(self.close_detached_consumer(key));
        }
        consumer.speak(&mut self.outbound, false);
        if consumer.owes_report() {
            consumer.grant(&mut self.outbound);
        }
        consumer.phase = consumer::Phase::CloseAsked;
        let handle = consumer.handle();
        let request = self.requests.add(Pending::CloseConsumer(key));
        self.ask_close(request, handle);
        Ok(request)
    }

    /// Says goodbye once every frame so far has left, then wants the connection
    /// closed. Who wants to know the outcomes waits for them first.
    pub fn goodbye(&mut self) {
        match self.phase {
            Phase::Open => {
                self.phase = Phase::Leaving;
                self.leave_if_empty();
            }
            Phase::Idle
            | Phase::Greeting
            | Phase::Moving
            | Phase::OpeningSession
            | Phase::Waiting => self.finish(LinkEnd::Left),
            Phase::Leaving | Phase::Left | Phase::Ended => {}
        }
    }

    // The application's side: producers.

    /// Takes a message: it leaves with the next pieces that credit allows.
    ///
    /// One copy, of properties and body; no allocation once the queue has grown.
    ///
    /// # Errors
    ///
    /// If it is not taken; it is then nowhere.
    #[inline]
    pub fn send(
        &mut self,
        now: Now,
        key: ProducerKey,
        message: &Outgoing<'_>,
    ) -> Result<Sequence, SendError> {
        let producer = self.producers.get_mut(key.0).ok_or(SendError::Closed)?;
        let sequence = producer.send(now, message, self.frame_size_max)?;
        if producer.join_line() {
            self.outbound.ready(key.0);
        }
        self.earliest = self.earliest.min(message.deadline);
        Ok(sequence)
    }

    /// Whether the outcome of the producer's next send in order is there.
    #[inline]
    #[must_use]
    pub fn has_completion(&self, key: ProducerKey) -> bool {
        let producer = self.producers.get(key.0);
        producer.is_some_and(Producer::has_completion)
    }

    /// The outcome of the producer's next send in order, if it is there.
    #[inline]
    pub fn poll_completion(&mut self, key: ProducerKey) -> Option<Completion> {
        let producer = self.producers.get_mut(key.0)?;
        producer.pop()
    }

    /// A producer that has outcomes to take; each is named once until it is
    /// asked for here again.
    #[inline]
    pub fn next_completed(&mut self) -> Option<ProducerKey> {
        while let Some(key) = self.completed.pop_front() {
            if let Some(producer) = self.producers.get_mut(key.0) {
                producer.announced = false;
                if producer.has_completion() {
                    return Some(key);
                }
            }
        }
        None
    }

    /// Sends of the producer whose outcome was not taken.
    #[must_use]
    pub fn outstanding(&self, key: ProducerKey) -> u64 {
        self.producers.get(key.0).map_or(0, Producer::outstanding)
    }

    /// Sends of the producer that have no outcome yet.
    #[must_use]
    pub fn unanswered(&self, key: ProducerKey) -> u64 {
        self.producers.get(key.0).map_or(0, Producer::unanswered)
    }

    /// The id of a producer's message.
    #[must_use]
    pub fn message_id(&self, key: ProducerKey, sequence: Sequence) -> Option<MessageId> {
        let producer = self.producers.get(key.0)?;
        Some(producer.message_id(self.installation, sequence))
    }

    /// Forgets a producer that is closed, with all outcomes not taken. One that
    /// is open is not forgotten: false.
    pub fn forget_producer(&mut self, key: ProducerKey) -> bool {
        let ended = self
            .producers
            .get(key.0)
            .is_some_and(|producer| producer.phase == producer::Phase::Ended);
        if ended && let Some(producer) = self.producers.remove(key.0) {
            self.late_of_the_gone += producer.late();
            if producer.announced {
                self.completed.retain(|completed| *completed != key);
            }
        }
        ended
    }

    // The application's side: consumers.

    /// Hands out the consumer's next message, which stays readable until the
    /// next call. No copy, no allocation.
    #[inline]
    pub fn poll_message(&mut self, key: ConsumerKey) -> Option<Received<'_>> {
        let consumer = self.consumers.get_mut(key.0)?;
        consumer.advance();
        if consumer.has_news() && !consumer.listed {
            consumer.listed = true;
            self.news.push_back(key);
        }
        consumer.current()
    }

    /// Counts what was handed out of `prefetch`, and fills it with all that was
    /// delivered, if it is empty and something was. A thread can then take its
    /// messages without this machine.
    pub fn exchange(&mut self, key: ConsumerKey, prefetch: &mut Prefetch) {
        if let Some(consumer) = self.consumers.get_mut(key.0) {
            consumer.exchange(prefetch);
            self.has_news(key);
        }
    }

    /// Counts what was handed out of `prefetch`, and fills it with nothing.
    pub fn report_handed(&mut self, key: ConsumerKey, prefetch: &mut Prefetch) {
        if let Some(consumer) = self.consumers.get_mut(key.0) {
            consumer.count(prefetch);
            self.has_news(key);
        }
    }

    /// Whether a message waits to be handed out.
    #[must_use]
    pub fn has_message(&self, key: ConsumerKey) -> bool {
        self.consumers.get(key.0).is_some_and(Consumer::has_message)
    }

    /// Settles one message. It is said in the next round, in one run with its
    /// neighbours.
    ///
    /// # Errors
    ///
    /// If it is not taken.
    #[inline]
    pub fn acknowledge(&mut self, key: ConsumerKey, position: Position) -> Result<(), AckError> {
        self.acknowledge_run(key, position, 1)
    }

    /// Settles `count` messages with consecutive offsets, the first at `position`.
    ///
    /// # Errors
    ///
    /// If it is not taken.
    #[inline]
    pub fn acknowledge_run(
        &mut self,
        key: ConsumerKey,
        position: Position,
        count: u64,
    ) -> Result<(), AckError> {
        let consumer = self.consumers.get_mut(key.0).ok_or(AckError::Closed)?;
        if consumer.has_many(position.partition) {
            if !self.outbound.has_room() {
                return Err(AckError::WouldBlock);
            }
            consumer.speak(&mut self.outbound, false);
        }
        consumer.settle(position, count)?;
        if !consumer.listed {
            consumer.listed = true;
            self.news.push_back(key);
        }
        Ok(())
    }

    /// Settles a message and all that were delivered before it in its partition.
    ///
    /// # Errors
    ///
    /// If it is not taken.
    pub fn acknowledge_through(
        &mut self,
        key: ConsumerKey,
        position: Position,
    ) -> Result<(), AckError> {
        let consumer = self.consumers.get_mut(key.0).ok_or(AckError::Closed)?;
        if consumer.has_many(position.partition) {
            if !self.outbound.has_room() {
                return Err(AckError::WouldBlock);
            }
            consumer.speak(&mut self.outbound, false);
        }
        consumer.settle_through(position)?;
        self.has_news(key);
        Ok(())
    }

    /// Gives `count` messages with consecutive offsets back, the first at `position`:
    /// at once, or not before `delay` and the broker's own wait have passed.
    ///
    /// # Errors
    ///
    /// If it is not taken.
    pub fn give_back(
        &mut self,
        key: ConsumerKey,
        position: Position,
        count: u64,
        delay: Option<core::time::Duration>,
    ) -> Result<(), AckError> {
        let consumer = self.consumers.get_mut(key.0).ok_or(AckError::Closed)?;
        consumer.give_back(&mut self.outbound, position, count, delay)
    }

    /// Says what was settled now, and asks for a confirmation of the last of it:
    /// the token that [`Event::Acknowledged`] will carry, or that of a confirmation on
    /// its way if nothing was settled since it was asked for. `None` if nothing
    /// waits to be confirmed.
    ///
    /// What was settled on a connection that was lost is in doubt until it is
    /// confirmed on another one: all of it is named again. If another consumer has some
    /// of it by now, that is refused as [`Refusal::InvalidAck`], once: the rest is
    /// settled, and nobody waits for what is the other's.
    ///
    /// # Errors
    ///
    /// If it is not taken. [`AckError::Disconnected`] if there is no connection, or if
    /// something that is in doubt cannot be named again: it was settled through a
    /// message, in too many runs, or in another installation. That is said once.
    pub fn confirm(&mut self, key: ConsumerKey) -> Result<Option<u32>, AckError> {
        let consumer = self.consumers.get_mut(key.0).ok_or(AckError::Closed)?;
        if consumer.phase != consumer::Phase::Open {
            return Err(AckError::Closed);
        }
        if !consumer.is_attached() {
            return Err(AckError::Disconnected);
        }
        if !self.outbound.has_room() {
            return Err(AckError::WouldBlock);
        }
        if let Some(token) = consumer.confirmation_on_its_way() {
            return Ok(Some(token));
        }
        consumer.settle_anew()?;
        let token = consumer.speak(&mut self.outbound, true);
        if !consumer.has_told() {
            return Err(AckError::WouldBlock);
        }
        Ok(token)
    }

    /// Nobody waits any longer for the answer to this request: a producer that waits to
    /// have its destination alone gives up, which the answer says.
    pub fn cancel(&mut self, request: RequestId) {
        if self.requests.waits_no_longer(request) && self.phase == Phase::Open {
            let cancel = crate::frame::control::Cancel::default();
            // Without room the broker may still open it, and it is closed then.
            let _queued = self.outbound.control(request.0, &cancel, &[]);
        }
    }

    /// Asks the broker whether there is anything for the consumer now, in whatever
    /// partition: [`Client::poll_state`] of the number that is returned says when
    /// whatever there was has come. What was settled and handed out is told before.
    ///
    /// # Errors
    ///
    /// If it is not taken; [`AckError::Disconnected`] if there is no connection.
    pub fn ask_for_messages(&mut self, key: ConsumerKey) -> Result<u32, AckError> {
        let consumer = self.consumers.get_mut(key.0).ok_or(AckError::Closed)?;
        if consumer.phase != consumer::Phase::Open {
            return Err(AckError::Closed);
        }
        if !consumer.is_attached() {
            return Err(AckError::Disconnected);
        }
        if !self.outbound.has_room() {
            return Err(AckError::WouldBlock);
        }
        consumer.speak(&mut self.outbound, false);
        consumer
            .poll(&mut self.outbound)
            .ok_or(AckError::WouldBlock)
    }

    /// What became of a question that [`Client::ask_for_messages`] asked.
    #[must_use]
    pub fn poll_state(&self, key: ConsumerKey, token: u32) -> PollState {
        let consumer = self.consumers.get(key.0);
        consumer.map_or(PollState::Lost, |consumer| consumer.poll_state(token))
    }

    /// Whether the broker of this connection knows the consumer.
    #[must_use]
    pub fn is_consumer_attached(&self, key: ConsumerKey) -> bool {
        self.consumers.get(key.0).is_some_and(Consumer::is_attached)
    }

    /// Whether something was settled on a connection that was lost, and not confirmed
    /// since.
    #[must_use]
    pub fn is_consumer_in_doubt(&self, key: ConsumerKey) -> bool {
        self.consumers.get(key.0).is_some_and(Consumer::is_in_doubt)
    }

    /// How long another connection is tried for when one is lost.
    #[must_use]
    pub fn reconnect_for(&self) -> core::time::Duration {
        self.config.reconnect_for
    }

    /// Which of its connections the consumer is on: what a [`Prefetch`] of an
    /// earlier one still holds is delivered again.
    #[must_use]
    pub fn consumer_generation(&self, key: ConsumerKey) -> u32 {
        self.consumers.get(key.0).map_or(0, Consumer::generation)
    }

    /// Forgets a consumer that is closed. One that is open is not: false.
    pub fn forget_consumer(&mut self, key: ConsumerKey) -> bool {
        let ended = self
            .consumers
            .get(key.0)
            .is_some_and(|consumer| consumer.phase == consumer::Phase::Ended);
        ended && self.consumers.remove(key.0).is_some()
    }

    // What it knows.

    /// Whose data the broker holds.
    #[must_use]
    pub fn installation(&self) -> Installation {
        self.installation
    }

    /// The shard that the link is on, as far as was heard.
    #[must_use]
    pub fn shard(&self) -> ShardIndex {
        self.shard
    }

    /// How many shards the broker has.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Whether requests and sends leave.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Counts of what the application never sees otherwise.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let late: u64 = self
            .producers
            .iter()
            .map(|(_, producer)| producer.late())
            .sum();
        Counters {
            late_completions: self.late_of_the_gone + late,
            ..self.counters
        }
    }

    // Requests, privately.

    /// Every request for a handle finds a place once it is answered.
    fn check_room(&self, open: usize) -> Result<(), RequestError> {
        if open + self.requests.len() < limits::HANDLES_PER_LINK_MAX as usize {
            Ok(())
        } else {
            Err(RequestError::WouldBlock)
        }
    }

    fn request(&mut self, pending: Pending) -> Result<RequestId, RequestError> {
        if matches!(self.phase, Phase::Leaving | Phase::Left | Phase::Ended) {
            return Err(RequestError::Closed);
        }
        if !self.requests.has_room() || !self.outbound.has_room() {
            return Err(RequestError::WouldBlock);
        }
        let request = self.requests.add(pending);
        if self.phase == Phase::Open {
            self.ask(request);
        }
        Ok(request)
    }

    /// Queues the question of the newest request.
    fn ask(&mut self, request: RequestId) {
        let Some((_, pending)) = self.requests.iter().find(|(id, _)| *id == request) else {
            return;
        };
        let queued = question::ask(&mut self.outbound, self.session, request, pending);
        if !queued {
            self.finish(LinkEnd::Backlog);
        }
    }

    /// Queues the questions of all requests: what was asked before there was a session.
    fn ask_all(&mut self) {
        let mut queued = true;
        for (request, pending) in self.requests.iter() {
            queued &= question::ask(&mut self.outbound, self.session, request, pending);
        }
        if !queued {
            self.finish(LinkEnd::Backlog);
        }
    }

    fn ask_close(&mut self, request: RequestId, handle: Handle) {
        let close = control::Close {
            handle: handle.0.into(),
            ..control::Close::default()
        };
        self.say(request.0, &close, &[]);
    }

    fn close_if_answered(&mut self, key: ProducerKey) {
        let Some(producer) = self.producers.get_mut(key.0) else {
            return;
        };
        if producer.phase != producer::Phase::Closing || !producer.is_answered() {
            return;
        }
        if !producer.is_attached() {
            // The broker of the next connection is asked once it knows the producer. One that
            // attaches nobody any more forgets it in time.
            if producer.is_put_off()
                && let Some(request) = self.requests.take_closing(key)
            {
                self.producer_closed(request, key);
            }
            return;
        }
        producer.phase = producer::Phase::CloseAsked;
        let handle = producer.handle();
        if let Some(request) = self.requests.closing(key) {
            self.ask_close(request, handle);
        }
    }

    fn leave_if_empty(&mut self) {
        let waits = self.phase != Phase::Leaving
            || !self.outbound.is_empty()
            || !self.news.is_empty()
            || self
                .producers
                .iter()
                .any(|(_, producer)| producer.has_unsent());
        if !waits {
            // What was handed out counts, so the broker has to know of all of it.
            for handle in handles_of(&self.consumers) {
                if let Some(consumer) = self.consumers.get_mut(handle)
                    && consumer.phase == consumer::Phase::Open
                    && consumer.owes_report()
                {
                    consumer.grant(&mut self.outbound);
                }
            }
            self.say(0, &control::Goodbye::default(), &[]);
            self.phase = Phase::Left;
        }
    }

    /// Queues a control frame of the machine's own.
    fn say<F: control::Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        if !self.outbound.control(subject, fields, tail) {
            self.finish(LinkEnd::Backlog);
        }
    }

    fn has_news(&mut self, key: ConsumerKey) {
        if let Some(consumer) = self.consumers.get_mut(key.0)
            && consumer.has_news()
            && !consumer.listed
        {
            consumer.listed = true;
            self.news.push_back(key);
        }
    }

    /// Queues acknowledgements and credit of every consumer that has some.
    #[inline]
    fn speak(&mut self) {
        while let Some(key) = self.news.pop_front() {
            if let Some(consumer) = self.consumers.get_mut(key.0) {
                consumer.listed = false;
                if consumer.phase == consumer::Phase::Open && consumer.is_attached() {
                    consumer.speak(&mut self.outbound, false);
                }
            }
        }
        if self.phase == Phase::Leaving {
            self.leave_if_empty();
        }
    }

    #[cold]
    fn fault(&mut self, fault: ProtocolFault) {
        self.finish(LinkEnd::Fault(fault));
    }

    /// The link ends: what was on its way fails, in order.
    #[cold]
    fn finish(&mut self, end: LinkEnd) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Ended;
        let cause = match end {
            LinkEnd::Left => Cause::Left,
            _ => Cause::LinkEnded,
        };
        self.outbound.clear();
        self.requests.clear();
        self.handles.clear();
        self.news.clear();
        self.announced = None;
        self.carry = ByteQueue::default();
        self.earliest = Monotonic::NEVER;
        for handle in handles_of(&self.producers) {
            let Some(producer) = self.producers.get_mut(handle) else {
                continue;
            };
            producer.lost(cause);
            if producer.has_completion() && !producer.announced {
                producer.announced = true;
                self.completed.push_back(ProducerKey(handle));
            }
        }
        for handle in handles_of(&self.consumers) {
            if let Some(consumer) = self.consumers.get_mut(handle) {
                consumer.phase = consumer::Phase::Ended;
            }
        }
        self.end = Some(end.clone());
        self.events.push_back(Event::Ended(end));
    }
}

fn check_name(name: &str) -> Result<(), RequestError> {
    if name.len() > limits::NAME_SIZE_MAX as usize {
        return Err(RequestError::NameTooLong { size: name.len() });
    }
    Ok(())
}

fn length(text: &str) -> u16 {
    u16::try_from(text.len()).expect("names were checked to be at most 255 bytes")
}

/// The handles of a table, so that its entries can be changed one by one. Cold.
fn handles_of<T>(table: &Slab<T>) -> Vec<Handle> {
    table.iter().map(|(handle, _)| handle).collect()
}

/// As much of `text` as fits `size` bytes.
fn truncated(text: &str, size: usize) -> &str {
    let mut end = text.len().min(size);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
