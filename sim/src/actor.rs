//! A client with its application: the real client machine, driven by a plan.
//!
//! Everything it does and everything it is told passes by the model. When its
//! link ends it takes what outcomes there are, rests, and comes back with a new
//! link and new producers, as an application would. One that reconnects keeps its
//! machine instead, with all that it has open, and goes on sending meanwhile.

use core::time::Duration;

use courser_core::catalog::{Dispatch, Retention};
use courser_core::client::{
    AdminRequest, Cause, Client, Completion, Config, ConsumerKey, ConsumerRequest, Event, Failure,
    LinkEnd, Location, Outgoing, PollState, ProducerKey, ProducerRequest, Route, SendError,
    Sharing, Start, StatsReport,
};
use courser_core::error::Refusal;
use courser_core::frame::control::Control;
use courser_core::frame::decode::{self, Frame, Step};
use courser_core::frame::{Durability, encode, property};
use courser_core::id::{
    Epoch, Installation, Offset, PartitionIndex, Position, ProducerId, RequestId, ShardIndex,
};
use courser_core::limits;
use courser_core::routing;
use courser_core::time::{Monotonic, Now};

use crate::model::{Asked, Circumstances, Content, Handed, Model, Named};
use crate::passing::Passing;
use crate::plan::{
    Access, Acks, ActorPlan, ConsumerPlan, DestinationPlan, MILLISECOND, ProducerPlan, Routes,
    SECOND, SUBSCRIPTIONS, Sizes,
};
use crate::random::Random;
use crate::trace::{Fact, Trace, digest};
use crate::violation::{Rule, Violation};

/// What was handed out more often is not given back to rest: the broker's own wait
/// doubles each time, and a run ends.
const REST_COUNT_MAX: u32 = 4;

/// What an actor may look at and change while it acts.
pub(crate) struct Scene<'a> {
    /// The actor's connection.
    pub(crate) connection: usize,
    pub(crate) now: Now,
    pub(crate) model: &'a mut Model,
    pub(crate) trace: &'a mut Trace,
    pub(crate) destinations: &'a [DestinationPlan],
    /// Faults have stopped.
    pub(crate) calm: bool,
    /// A link may have been ended for silence: the network was at fault.
    pub(crate) excused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State<K> {
    Closed,
    Opening(RequestId),
    Open(K),
    Closing(RequestId, K),
}

struct ProducerSlot {
    plan: ProducerPlan,
    left: u64,
    state: State<ProducerKey>,
    /// Its number in the model, while it is open.
    number: Option<usize>,
    /// Acts to let pass before it tries to send again.
    rest: usize,
    /// Opened once, to found its destination.
    founding: bool,
    founded: bool,
    /// Was turned away, and does not ask again before.
    asks_at: u64,
    waits: Option<Waits>,
}

/// A producer that waits to have its destination alone.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// Its number in the model.
    taker: usize,
    probe: Probe,
}

/// How its client finds out that what asked for it has arrived where it waits: answers
/// come in the order of the questions, as long as they are the shard's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Due,
    /// Asked where the destination is; behind the answer the opening leaves.
    Where(RequestId),
    /// It is on the shard of the link: asked for an answer behind the opening.
    Behind(RequestId),
    Over,
}

struct ConsumerSlot {
    plan: ConsumerPlan,
    state: State<ConsumerKey>,
    /// Its number in the model.
    number: Option<usize>,
    /// Messages until its application closes it.
    left: u64,
    /// Handed out since the last cumulative acknowledgement.
    since: u64,
    handed: u64,
    from_calm: bool,
    poll: Option<Poll>,
}

/// A question whether there is anything.
#[derive(Clone, Copy, Debug)]
struct Poll {
    token: u32,
    /// Messages that the application had been handed.
    handed: u64,
}

/// See the module.
pub(crate) struct Actor {
    index: usize,
    plan: ActorPlan,
    random: Random,
    machine: Option<Client>,
    producers: Vec<ProducerSlot>,
    consumers: Vec<ConsumerSlot>,
    leaving: bool,
    passing: Option<Passing>,
    /// Whom it asked to have shut out.
    fences: Vec<(RequestId, u64)>,
    stats_asked: bool,
    stats: Option<StatsReport>,
    /// The installation that its machine talked to last.
    installation: Option<Installation>,
    /// Since when it is without a session.
    lost_at: Option<u64>,
    /// Sends of this machine that failed by their deadline, or because the broker was started
    /// again: an answer may come all the same.
    overdue: u64,
    /// Counts of machines that are gone: answers that came too late, reconnections.
    late: u64,
    reconnects: u64,
    /// Nothing has left on this connection.
    is_first: bool,
    /// The shard that this connection asks for.
    asks_for: Option<ShardIndex>,
    /// Its link has not moved on this connection, and is to.
    may_move: bool,
    body: Vec<u8>,
    /// What bodies are made of.
    pool: Vec<u8>,
}

impl Actor {
    pub(crate) fn new(
        index: usize,
        plan: ActorPlan,
        destinations: &[DestinationPlan],
        mut random: Random,
    ) -> Self {
        let mut pool = vec![0; 16_384];
        random.fill(&mut pool);
        let mut producers: Vec<ProducerSlot> = plan
            .producers
            .iter()
            .map(|plan| ProducerSlot::new(plan.clone(), false))
            .collect();
        let mut consumers: Vec<ConsumerSlot> = plan
            .consumers
            .iter()
            .map(|plan| ConsumerSlot::new(plan.clone(), false))
            .collect();
        if let Some(warden) = &plan.warden {
            if warden.founds {
                for index in 0..destinations.len() {
                    producers.push(ProducerSlot::new(ProducerPlan::founding(index), true));
                }
            }
            for index in warden.drains.iter().copied() {
                if destinations[index].is_queue() {
                    consumers.push(ConsumerSlot::new(ConsumerPlan::draining(index, None), true));
                } else {
                    consumers.extend(SUBSCRIPTIONS.map(|name| {
                        ConsumerSlot::new(ConsumerPlan::draining(index, Some(name)), true)
                    }));
                }
            }
        }
        // From a stream of its own, as if it were somebody else.
        let passing = plan.passes.then(|| Passing::new(random.clone().fork()));
        Self {
            index,
            plan,
            random,
            machine: None,
            producers,
            consumers,
            leaving: false,
            passing,
            fences: Vec::new(),
            stats_asked: false,
            stats: None,
            installation: None,
            lost_at: None,
            overdue: 0,
            late: 0,
            reconnects: 0,
            is_first: false,
            asks_for: None,
            may_move: false,
            body: Vec::new(),
            pool,
        }
    }

    // What the world asks and tells.

    pub(crate) fn is_connected(&self) -> bool {
        self.machine.as_ref().is_some_and(Client::is_open)
    }

    /// When it tries for another connection, if it keeps what it had on the last.
    pub(crate) fn wants_connection(&self) -> Option<u64> {
        let at = self.machine.as_ref()?.wants_connection()?;
        (at != Monotonic::NEVER).then_some(at.0)
    }

    /// Whether it keeps what it had on its last connection.
    pub(crate) fn is_waiting(&self) -> bool {
        self.machine
            .as_ref()
            .is_some_and(|machine| machine.wants_connection().is_some())
    }

    /// Answers that came after their sends had failed, and reconnections.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let counters = self.machine.as_ref().map(Client::counters);
        let counters = counters.unwrap_or_default();
        (
            self.late + counters.late_completions,
            self.reconnects + counters.reconnects,
        )
    }

    /// The broker that had its destinations is no more: it founds them again.
    pub(crate) fn found_again(&mut self) {
        for slot in &mut self.producers {
            slot.founded = false;
        }
    }

    /// Whether every destination has its shape.
    pub(crate) fn has_founded(&self) -> bool {
        self.producers
            .iter()
            .all(|slot| !slot.founding || slot.founded)
    }

    /// When it acts next.
    pub(crate) fn pause(&mut self, calm: bool) -> u64 {
        let pace = if calm {
            self.plan.pace.min(10 * MILLISECOND)
        } else {
            self.plan.pace
        };
        self.random.wait(pace).max(1000)
    }

    pub(crate) fn connect(&mut self, now: Now) {
        self.is_first = true;
        self.may_move = self.plan.moves;
        self.asks_for = self.plan.wish.draw(&mut self.random);
        let shard = self.asks_for;
        let machine = self.machine.get_or_insert_with(|| {
            self.leaving = false;
            self.stats_asked = false;
            Client::new(Config {
                name: format!("actor {}", self.index).into(),
                shard,
                reconnect_for: Duration::from_nanos(self.plan.reconnects.unwrap_or(0)),
                ..Config::default()
            })
        });
        machine.connected(now.monotonic);
    }

    /// No connection could be made.
    pub(crate) fn dial_failed(&mut self, now: Now) {
        if let Some(machine) = &mut self.machine {
            machine.dial_failed(now.monotonic);
        }
    }

    pub(crate) fn received(
        &mut self,
        scene: &mut Scene<'_>,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        if let Some(machine) = &mut self.machine {
            machine.received(bytes);
        }
        self.look(scene, !self.plan.lazy || scene.calm)
    }

    pub(crate) fn closed(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        if let Some(machine) = &mut self.machine {
            machine.closed();
        }
        self.look(scene, true)
    }

    /// Deadlines that have come.
    pub(crate) fn expire(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let now = scene.now.monotonic;
        let Some(machine) = self
            .machine
            .as_mut()
            .filter(|machine| machine.next_deadline() <= now)
        else {
            return Ok(());
        };
        machine.expire(now);
        self.look(scene, true)
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let deadline = self.machine.as_ref()?.next_deadline();
        (deadline != Monotonic::NEVER).then_some(deadline.0)
    }

    /// Dies without a word.
    pub(crate) fn vanish(&mut self, scene: &mut Scene<'_>) {
        scene.trace.note(Fact::Vanished { peer: self.index });
        scene.model.link_breaks(scene.connection);
        self.forget();
    }

    /// Copies what it has to say, at most `room` bytes.
    pub(crate) fn write(&mut self, room: usize, into: &mut Vec<u8>) {
        into.clear();
        let Some(machine) = &mut self.machine else {
            return;
        };
        for slice in machine.pieces().slices() {
            let count = slice.len().min(room - into.len());
            into.extend_from_slice(&slice[..count]);
        }
        machine.sent(into.len());
        if core::mem::take(&mut self.is_first) {
            rewrite_hello(into, self.plan.anonymous, self.asks_for);
        }
    }

    pub(crate) fn has_more_to_write(&self) -> bool {
        self.machine.as_ref().is_some_and(Client::has_pieces)
    }

    /// The connection is of no more use.
    pub(crate) fn wants_close(&self) -> bool {
        self.has_ended() || self.is_waiting()
    }

    /// The link has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.machine.as_ref().is_some_and(Client::wants_close)
    }

    /// The connection is closed. If its machine waits for another one nothing is
    /// over; otherwise every outcome is there.
    pub(crate) fn disconnected(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        self.look(scene, true)?;
        scene.model.link_breaks(scene.connection);
        if self.is_waiting() {
            return Ok(());
        }
        for number in self.producers.iter().filter_map(|slot| slot.number) {
            scene.model.producer_ended(number)?;
        }
        self.forget();
        Ok(())
    }

    /// Asks to leave: everything is drained.
    pub(crate) fn leave(&mut self, scene: &mut Scene<'_>) {
        if let Some(machine) = &mut self.machine {
            scene.trace.note(Fact::Goodbye { peer: self.index });
            machine.goodbye();
            self.leaving = true;
            scene.model.link_breaks(scene.connection);
        }
    }

    /// What the broker said of its destinations, if it was asked and answered.
    pub(crate) fn take_stats(&mut self) -> Option<StatsReport> {
        self.stats.take()
    }

    /// Whether it has nothing left to do: every send sent and answered, everything
    /// acknowledged.
    pub(crate) fn is_at_rest(&self, model: &Model) -> bool {
        let sends = self
            .producers
            .iter()
            .all(|slot| slot.left == 0 && slot.number.is_none_or(|it| model.is_answered(it)));
        let held = self.consumers.iter().all(|slot| {
            slot.number
                .is_none_or(|number| model.held(number).is_empty())
        });
        let asked = self.consumers.iter().any(|slot| slot.poll.is_some());
        let passed = self.passing.as_ref().is_none_or(Passing::is_at_rest);
        sends && held && !asked && passed
    }

    /// What it is waiting for, for a failure's text.
    pub(crate) fn describe(&self, model: &Model) -> String {
        use core::fmt::Write as _;
        let mut text = format!("actor {}:", self.index);
        if let Some(passing) = self.passing.as_ref().filter(|it| !it.is_at_rest()) {
            write!(text, " {passing:?};").expect("a string takes everything");
        }
        for slot in &self.producers {
            let answered = slot.number.is_none_or(|it| model.is_answered(it));
            if slot.left > 0 || !answered {
                write!(
                    text,
                    " producer {:?} {:?} left {} answered {answered};",
                    slot.number, slot.state, slot.left
                )
                .expect("a string takes everything");
            }
        }
        for slot in &self.consumers {
            let held = slot.number.map_or(0, |number| model.held(number).len());
            write!(
                text,
                " consumer {:?} {:?} holds {held} asks {:?};",
                slot.number, slot.state, slot.poll
            )
            .expect("a string takes everything");
        }
        text
    }

    // What its application does.

    /// Acts as planned.
    pub(crate) fn act(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        self.look(scene, true)?;
        if self
            .machine
            .as_ref()
            .is_none_or(|machine| !machine.is_open() && self.plan.reconnects.is_none())
            || self.leaving
        {
            return Ok(());
        }
        self.move_on(scene);
        self.open(scene);
        for index in 0..self.producers.len() {
            self.send(scene, index)?;
        }
        for index in 0..self.consumers.len() {
            self.consume(scene, index)?;
        }
        if let Some(mean) = self.plan.churn
            && !scene.calm
            && self.random.chance(1, mean)
        {
            self.churn(scene)?;
        }
        if let (Some(passing), Some(machine)) = (&mut self.passing, &mut self.machine) {
            passing.act(machine, scene)?;
        }
        if let Some(mean) = self.plan.fences
            && !scene.calm
            && self.random.chance(1, mean)
        {
            self.fence(scene);
        }
        if self.plan.warden.is_some() && scene.calm && !self.stats_asked {
            let machine = self.machine.as_mut().expect("it was looked at above");
            self.stats_asked = machine.ask_stats().is_ok();
        }
        Ok(())
    }

    /// Has its link go to another shard, if nothing is open on it.
    fn move_on(&mut self, scene: &Scene<'_>) {
        let Some(machine) = self.machine.as_mut().filter(|machine| machine.is_open()) else {
            return;
        };
        if self.may_move && !scene.calm && machine.shards() > 1 {
            let step = self.random.range(1, u64::from(machine.shards()) - 1);
            let to = (u64::from(machine.shard().0) + step) % u64::from(machine.shards());
            let to = ShardIndex(u16::try_from(to).unwrap_or(0));
            self.may_move = !machine.move_to(scene.now.monotonic, to);
        }
    }

    /// Opens what is closed and not done.
    fn open(&mut self, scene: &mut Scene<'_>) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let has_founded = self
            .producers
            .iter()
            .all(|slot| !slot.founding || slot.founded);
        // What is asked for before leaves, and has a number, once it is.
        let is_open = machine.is_open();
        for slot in &mut self.producers {
            let done = if slot.founding {
                slot.founded
            } else {
                slot.left == 0
            };
            if slot.state != State::Closed || done || scene.now.monotonic.0 < slot.asks_at {
                continue;
            }
            let shape = &scene.destinations[slot.plan.destination];
            let mut request = ProducerRequest::new(shape.destination.clone());
            if slot.founding {
                request.partitions = shape.partitions;
                request.retention = shape.retain.map(Retention::Size);
                request.dispatch = shape.early.then_some(Dispatch::Early);
            }
            request.batch = slot.plan.batch;
            request.messages_in_flight_max = slot.plan.messages_in_flight_max;
            request.bytes_in_flight_max = slot.plan.bytes_in_flight_max;
            request.exclusive = slot.plan.access != Access::Shared;
            request.waits = slot.plan.access == Access::Taking;
            if let Ok(request) = machine.open_producer(request) {
                slot.state = State::Opening(request);
                if is_open {
                    slot.asked(scene, machine.installation(), true);
                }
            }
        }
        let drains = scene.calm && has_founded;
        for slot in &mut self.consumers {
            if slot.state != State::Closed || (slot.from_calm && !drains) {
                continue;
            }
            let destination = slot.plan.destination;
            let shape = &scene.destinations[destination];
            let request = ConsumerRequest {
                subscription: slot.plan.subscription.unwrap_or("").into(),
                start: slot.plan.start,
                messages_max: slot.plan.messages_max,
                bytes_max: slot.plan.bytes_max,
                sharing: (slot.plan.subscription)
                    .map_or(Sharing::Usual, |name| shape.sharing(name)),
                ..ConsumerRequest::new(shape.destination.clone())
            };
            if let Ok(request) = machine.open_consumer(request) {
                slot.state = State::Opening(request);
                slot.number = is_open.then(|| {
                    scene.model.consumer_asked(
                        scene.connection,
                        machine.installation(),
                        destination,
                        slot.plan.subscription,
                        slot.plan.start,
                    )
                });
                slot.left = slot.plan.lifetime.unwrap_or(u64::MAX);
            }
        }
    }

    /// Finds out whether a producer that waits stands in line, or has it wait no longer.
    fn wait(&mut self, scene: &mut Scene<'_>, index: usize) {
        let slot = &mut self.producers[index];
        let (State::Opening(request), Some(waits), Some(machine)) =
            (slot.state, &mut slot.waits, &mut self.machine)
        else {
            return;
        };
        if !scene.calm && self.random.chance(1, 200) {
            scene.trace.note(Fact::Cancelled { peer: self.index });
            scene.model.taker_gone(waits.taker);
            machine.cancel(request);
            slot.waits = None;
        } else if waits.probe == Probe::Due && machine.is_open() {
            let destination = &scene.destinations[slot.plan.destination].destination;
            let asked = machine.lookup(destination.clone());
            waits.probe = asked.map_or(Probe::Due, Probe::Where);
        }
    }

    /// An answer that a probe may wait for; `is_here` where the destination's home is the
    /// shard of the link.
    fn probed(&mut self, scene: &mut Scene<'_>, request: RequestId, is_here: bool) {
        let waits = self.producers.iter_mut().filter_map(|it| it.waits.as_mut());
        for waits in waits {
            if waits.probe == Probe::Where(request) {
                let machine = self.machine.as_mut().filter(|_| is_here);
                let asked = machine.and_then(|machine| machine.ping(scene.now.monotonic).ok());
                waits.probe = asked.map_or(Probe::Over, Probe::Behind);
            } else if waits.probe == Probe::Behind(request) {
                waits.probe = Probe::Over;
                scene.trace.note(Fact::InLine { taker: waits.taker });
                scene.model.taker_in_line(waits.taker);
            }
        }
    }

    /// Has some producer shut out.
    fn fence(&mut self, scene: &mut Scene<'_>) {
        let Some(machine) = self.machine.as_mut().filter(|machine| machine.is_open()) else {
            return;
        };
        let attached = scene.model.attached(machine.installation());
        if attached.is_empty() {
            return;
        }
        let id = self.random.pick(&attached);
        if let Ok(request) = machine.administer(AdminRequest::Fence(ProducerId(id))) {
            scene.trace.note(Fact::FenceAsked {
                peer: self.index,
                id,
            });
            scene.model.fence_asked(id);
            self.fences.push((request, id));
        }
    }

    fn send(&mut self, scene: &mut Scene<'_>, index: usize) -> Result<(), Violation> {
        self.wait(scene, index);
        let slot = &mut self.producers[index];
        let (State::Open(key), Some(number)) = (slot.state, slot.number) else {
            return Ok(());
        };
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        if slot.rest > 0 {
            slot.rest -= 1;
            return Ok(());
        }
        if slot.founding || (slot.left == 0 && self.random.chance(1, 4)) {
            // Closing answers once every send so far is answered.
            if let Ok(request) = machine.close_producer(key) {
                slot.state = State::Closing(request, key);
                scene.model.producer_departs(number);
            }
            return Ok(());
        }
        let burst = self.random.range(1, slot.plan.burst);
        for _ in 0..burst.min(slot.left) {
            let size = slot.plan.sizes.draw(&mut self.random);
            // Any stretch of the pool, again and again, behind a word of its own.
            self.body.clear();
            while self.body.len() < size {
                let from = self.random.index(self.pool.len() / 2);
                let most = (self.pool.len() - from).min(size - self.body.len());
                self.body.extend_from_slice(&self.pool[from..from + most]);
            }
            let word = self.random.word().to_le_bytes();
            let stamped = size.min(word.len());
            self.body[..stamped].copy_from_slice(&word[..stamped]);
            let mut properties = Vec::new();
            for number in 0..self.random.below(8).saturating_sub(4) {
                property::push(&mut properties, &format!("p{number}"), "value")
                    .expect("a few short properties are within the limits");
            }
            let partitions = scene.destinations[slot.plan.destination].partitions;
            let (route, asked) = slot.plan.routes.draw(&mut self.random, partitions);
            let deadline = match slot.plan.patience {
                Some(patience) if !scene.calm => Monotonic(scene.now.monotonic.0 + patience),
                _ => Monotonic::NEVER,
            };
            let in_memory = slot.plan.memory > 0 && self.random.chance(slot.plan.memory, 1000);
            let message = Outgoing {
                properties: &properties,
                body: &self.body,
                route,
                durability: in_memory.then_some(Durability::Memory),
                deadline,
            };
            match machine.send(scene.now, key, &message) {
                Ok(sequence) => {
                    slot.left -= 1;
                    let content = Content {
                        digest: digest(&properties) ^ digest(&self.body).rotate_left(1),
                        properties: properties.len(),
                        body: size,
                        key_hash: match asked {
                            Asked::Key(hash) => Some(hash),
                            _ => None,
                        },
                    };
                    scene.trace.note(Fact::Send {
                        producer: number,
                        sequence: sequence.0,
                        bytes: size,
                    });
                    let Some(id) = machine.message_id(key, sequence) else {
                        return Err(Violation::new(
                            Rule::Identity,
                            format!("send {sequence} of producer {number} has none"),
                        ));
                    };
                    scene.model.sent(
                        number,
                        sequence.0,
                        (id.installation, id.epoch),
                        asked,
                        content,
                        (deadline.0, !in_memory),
                    )?;
                }
                Err(SendError::WouldBlock) => {
                    // Large messages are not made anew in each act.
                    slot.rest = size / 16_384;
                    break;
                }
                Err(error) => {
                    return Err(Violation::new(
                        Rule::Request,
                        format!("send of {size} bytes: {error}"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn consume(&mut self, scene: &mut Scene<'_>, index: usize) -> Result<(), Violation> {
        let slot = &mut self.consumers[index];
        let (State::Open(key), Some(number)) = (slot.state, slot.number) else {
            return Ok(());
        };
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        let appetite = if scene.calm {
            500
        } else {
            self.random.range(0, slot.plan.appetite)
        };
        for _ in 0..appetite {
            let Some(message) = machine.poll_message(key) else {
                break;
            };
            let position = message.position();
            let handed = Handed {
                now: scene.now.monotonic.0,
                installation: message.id().installation,
                producer: message.id().producer.0,
                epoch: message.id().epoch.0,
                sequence: message.id().sequence.0,
                partition: position.partition.0,
                offset: position.offset.0,
                count: message.delivery_count(),
                content: Content {
                    digest: digest(message.property_block())
                        ^ digest(message.body()).rotate_left(1),
                    properties: message.property_block().len(),
                    body: message.body().len(),
                    key_hash: message.key_hash(),
                },
            };
            scene.trace.note(Fact::Handed {
                consumer: number,
                partition: position.partition,
                offset: position.offset.0,
                count: handed.count,
            });
            scene.model.handed(number, &handed)?;
            slot.since += 1;
            slot.handed += 1;
            slot.left = slot.left.saturating_sub(1);
            let held = scene.model.held(number);
            if !scene.calm && !held.is_empty() && self.random.chance(slot.plan.returns, 1000) {
                // Any of those it holds.
                let place = held[self.random.index(held.len())];
                let rest = (handed.count <= REST_COUNT_MAX && self.random.chance(1, 2))
                    .then(|| self.random.range(0, 3 * SECOND));
                if place == (handed.partition, handed.offset) || rest.is_none() {
                    give_back(machine, scene, number, key, place, rest, handed.count);
                }
                continue;
            }
            let acks = if scene.calm {
                Acks::Each
            } else {
                slot.plan.acks
            };
            match acks {
                Acks::Each => {
                    acknowledge(
                        machine,
                        scene,
                        number,
                        key,
                        (handed.partition, handed.offset),
                    );
                }
                Acks::Through(each) if slot.since >= each => {
                    slot.since = 0;
                    acknowledge_through(machine, scene, number, key);
                }
                Acks::Late(hold) if scene.model.held(number).len() as u64 >= hold => {
                    let mut held = scene.model.held(number).to_vec();
                    self.random.shuffle(&mut held);
                    for place in held {
                        acknowledge(machine, scene, number, key, place);
                    }
                }
                _ => {}
            }
        }
        if scene.calm {
            for place in scene.model.held(number).to_vec() {
                acknowledge(machine, scene, number, key, place);
            }
        }
        let in_doubt = machine.is_consumer_in_doubt(key);
        if self.random.chance(slot.plan.confirms, 1000)
            && let Ok(Some(token)) = machine.confirm(key)
            && !scene.model.is_confirmation_asked(number, token)
        {
            scene.trace.note(Fact::ConfirmAsked {
                consumer: number,
                token,
            });
            scene.model.confirm_asked(number, token, in_doubt);
        }
        if slot.left == 0 && !scene.calm {
            return self.close_consumer(scene, index);
        }
        if slot.poll.is_none()
            && slot.plan.polls > 0
            && !scene.calm
            && !machine.has_message(key)
            && self.random.chance(slot.plan.polls, 1000)
            && let Ok(token) = machine.ask_for_messages(key)
        {
            slot.poll = Some(Poll {
                token,
                handed: slot.handed,
            });
            scene.trace.note(Fact::PollAsked { consumer: number });
            scene.model.poll_asked(number);
        }
        Ok(())
    }

    fn close_consumer(&mut self, scene: &mut Scene<'_>, index: usize) -> Result<(), Violation> {
        let slot = &mut self.consumers[index];
        let (State::Open(key), Some(number), Some(machine)) =
            (slot.state, slot.number, &mut self.machine)
        else {
            return Ok(());
        };
        match machine.close_consumer(key) {
            Ok(request) => {
                slot.state = State::Closing(request, key);
                scene.model.consumer_departs(number);
                Ok(())
            }
            Err(error) => Err(Violation::new(
                Rule::Request,
                format!("close of consumer {number}: {error}"),
            )),
        }
    }

    /// Closes something, or leaves.
    fn churn(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        match self.random.below(3) {
            0 if !self.consumers.is_empty() => {
                let index = self.random.index(self.consumers.len());
                self.close_consumer(scene, index)
            }
            1 if !self.producers.is_empty() => {
                let index = self.random.index(self.producers.len());
                let slot = &mut self.producers[index];
                if let (State::Open(key), Some(machine)) = (slot.state, &mut self.machine)
                    && let Ok(request) = machine.close_producer(key)
                {
                    slot.state = State::Closing(request, key);
                    if let Some(number) = slot.number {
                        scene.model.producer_departs(number);
                    }
                }
                Ok(())
            }
            _ => {
                if !self.would_wait_for_itself(scene.model) {
                    self.leave(scene);
                }
                Ok(())
            }
        }
    }

    /// Whether it has sends that wait for room without a deadline, and holds messages
    /// that take up room: leaving, it would wait for the one and not settle the other.
    fn would_wait_for_itself(&self, model: &Model) -> bool {
        let waits = self.producers.iter().any(|slot| {
            slot.plan.patience.is_none() && slot.number.is_some_and(|it| !model.is_answered(it))
        });
        let holds = self.consumers.iter().any(|slot| {
            slot.number
                .is_some_and(|number| !model.held(number).is_empty())
        });
        waits && holds
    }

    // What its application is told.

    /// Takes events, and outcomes if asked to.
    fn look(&mut self, scene: &mut Scene<'_>, outcomes: bool) -> Result<(), Violation> {
        while let Some(event) = self.machine.as_mut().and_then(Client::poll_event) {
            self.event(scene, event)?;
        }
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        if !outcomes {
            return Ok(());
        }
        while let Some(key) = machine.next_completed() {
            let number = self
                .producers
                .iter()
                .find(|slot| slot.key() == Some(key))
                .and_then(|slot| slot.number);
            if let Some(number) = number {
                take_outcomes(machine, scene, number, key, &mut self.overdue)?;
            }
        }
        look_at_polls(machine, &mut self.consumers, scene)?;
        let late = machine.counters().late_completions;
        if late > self.overdue {
            return Err(Violation::new(
                Rule::CompletionOrder,
                format!(
                    "actor {} counts {late} late answers, and {} sends of it were overdue",
                    self.index, self.overdue
                ),
            ));
        }
        for number in self.producers.iter().filter_map(|slot| slot.number) {
            // Deadlines are looked at when they come, so one that is just now may wait.
            scene
                .model
                .outcomes_taken(number, scene.now.monotonic.0.saturating_sub(1))?;
        }
        Ok(())
    }

    fn event(&mut self, scene: &mut Scene<'_>, event: Event) -> Result<(), Violation> {
        if let (Some(passing), Some(machine)) = (&mut self.passing, &mut self.machine)
            && passing.event(machine, scene, &event)?
        {
            return Ok(());
        }
        match event {
            Event::Disconnected => {
                scene.trace.note(Fact::Disconnected { peer: self.index });
                scene.model.link_breaks(scene.connection);
                self.lost_at = Some(scene.now.monotonic.0);
            }
            Event::Opened { installation, .. } => {
                scene.trace.note(Fact::Opened { peer: self.index });
                scene.model.connection_opened(scene.connection);
                self.opened(scene, installation)?;
            }
            Event::ProducerOpened {
                request,
                producer,
                id,
                epoch,
                partitions,
            } => {
                let named = self.named(scene, id, epoch, partitions);
                if let Some(slot) = self
                    .producers
                    .iter_mut()
                    .find(|slot| slot.state == State::Opening(request))
                {
                    let named = Named {
                        access: slot.plan.access,
                        ..named
                    };
                    if let Some(waits) = slot.waits.take() {
                        scene.model.taker_served(waits.taker)?;
                    }
                    let number = scene.model.producer_opened(slot.plan.destination, &named)?;
                    slot.state = State::Open(producer);
                    slot.number = Some(number);
                    scene.trace.note(Fact::ProducerOpened {
                        peer: self.index,
                        producer: number,
                        id: id.0,
                    });
                }
            }
            Event::ProducerResumed {
                producer,
                id,
                epoch,
                partitions,
            } => {
                let named = self.named(scene, id, epoch, partitions);
                let slot = self
                    .producers
                    .iter()
                    .find(|slot| slot.key() == Some(producer));
                if let Some(slot) = slot
                    && let Some(number) = slot.number
                {
                    // One that is being closed may be gone by now.
                    let is_closing = matches!(slot.state, State::Closing(..));
                    let named = Named {
                        access: slot.plan.access,
                        connection: if is_closing {
                            usize::MAX
                        } else {
                            named.connection
                        },
                        ..named
                    };
                    scene.trace.note(Fact::ProducerResumed {
                        producer: number,
                        id: id.0,
                        epoch: epoch.0,
                    });
                    scene.model.producer_resumed(number, &named)?;
                }
            }
            Event::ConsumerResumed { consumer, starts } => {
                let slot = self
                    .consumers
                    .iter_mut()
                    .find(|slot| slot.key() == Some(consumer));
                if let Some(slot) = slot
                    && let Some(number) = slot.number
                {
                    slot.since = 0;
                    scene.trace.note(Fact::ConsumerOpened {
                        peer: self.index,
                        consumer: number,
                        subscription: scene.model.subscription_of(number),
                    });
                    scene.model.consumer_opened(number, &starts)?;
                }
            }
            Event::ProducerLost {
                producer,
                code,
                text,
            } => self.producer_lost(scene, producer, code, &text)?,
            Event::ConsumerLost {
                consumer,
                code,
                text,
            } => self.consumer_lost(scene, consumer, code, &text)?,
            Event::ConsumerOpened {
                request,
                consumer,
                starts,
            } => {
                self.consumer_opened(scene, request, consumer, &starts)?;
            }
            Event::ProducerClosed { request, .. } => self.producer_closed(scene, request)?,
            Event::ConsumerClosed { request, consumer } => {
                if let Some(slot) = self
                    .consumers
                    .iter_mut()
                    .find(|slot| slot.state == State::Closing(request, consumer))
                {
                    let number = slot.number.take();
                    slot.state = State::Closed;
                    let is_open = self.machine.as_ref().is_some_and(Client::is_open);
                    match number {
                        Some(number) if is_open => {
                            scene.model.consumer_closed(number, scene.connection);
                        }
                        // The broker that was asked to is not heard of any more.
                        Some(number) => scene.model.consumer_departs(number),
                        None => {}
                    }
                    scene.trace.note(Fact::ConsumerClosed {
                        peer: self.index,
                        consumer: number.unwrap_or(usize::MAX),
                    });
                }
                if let Some(machine) = &mut self.machine {
                    machine.forget_consumer(consumer);
                }
            }
            Event::Acknowledged {
                consumer,
                confirm,
                refusal,
            } => {
                let number = self
                    .consumers
                    .iter()
                    .find(|slot| slot.key() == Some(consumer))
                    .and_then(|slot| slot.number);
                if let Some(number) = number {
                    scene.trace.note(Fact::Confirmed {
                        consumer: number,
                        token: confirm,
                    });
                    let is_open = self.machine.as_ref().is_some_and(Client::is_open);
                    if !is_open && refusal == Some(Refusal::NotOpen.code()) {
                        scene.model.confirmation_lost(number, confirm)?;
                    } else {
                        scene.model.confirmed(number, confirm, refusal)?;
                    }
                }
            }
            Event::Refused {
                request,
                refusal,
                code,
                text,
            } => {
                self.refused(scene, request, refusal, code, &text)?;
            }
            Event::Stats { report, .. } => {
                self.stats = Some(report);
                self.stats_asked = false;
            }
            Event::Located { request, location } => {
                let own = self.machine.as_ref().map(Client::shard);
                let is_here =
                    matches!(&location, Location::Here { shard, .. } if Some(*shard) == own);
                self.probed(scene, request, is_here);
            }
            Event::Pong { request, .. } => self.probed(scene, request, true),
            Event::Changed { request, .. } => self.changed(scene, request)?,
            Event::Listed { .. } => {
                return Err(Violation::new(
                    Rule::Request,
                    "an answer to what nobody asked for".to_owned(),
                ));
            }
            Event::ProducerEnded {
                producer,
                code,
                text,
            } => self.producer_ended(scene, producer, code, &text)?,
            Event::ConsumerEnded { code, .. } => {
                return Err(Violation::new(
                    Rule::Request,
                    format!("ended by the broker as {code}, though nobody administers it"),
                ));
            }
            Event::Redirected { address, .. } => {
                return Err(Violation::new(
                    Rule::Request,
                    format!("sent elsewhere, to {address}"),
                ));
            }
            Event::Ended(end) => {
                scene.trace.note(Fact::Ended {
                    peer: self.index,
                    end: end.to_string(),
                });
                check_end(scene, self.index, &end)?;
                let window = self.plan.reconnects.unwrap_or(0);
                if let (Some(since), LinkEnd::Lost) = (self.lost_at, &end)
                    && scene.now.monotonic.0 < since + window
                {
                    return Err(Violation::new(
                        Rule::Reconnect,
                        format!(
                            "actor {} gave up {} ns after its connection was lost, with {window} to go by",
                            self.index,
                            scene.now.monotonic.0 - since
                        ),
                    ));
                }
                scene.model.link_breaks(scene.connection);
            }
        }
        Ok(())
    }

    /// There is a session. What was open on an earlier connection is asked for again,
    /// and what was asked for before there was one.
    fn opened(
        &mut self,
        scene: &mut Scene<'_>,
        installation: Installation,
    ) -> Result<(), Violation> {
        self.lost_at = None;
        let before = self.installation.replace(installation);
        if before.is_some_and(|before| before != installation) {
            self.look_at_outcomes(scene)?;
            for number in self.producers.iter().filter_map(|slot| slot.number) {
                scene.model.abandoned(number, installation)?;
            }
        }
        for slot in &mut self.producers {
            if let Some(waits) = slot.waits.take() {
                scene.model.taker_gone(waits.taker);
            }
            if matches!(slot.state, State::Opening(_)) {
                slot.asked(scene, installation, false);
            }
        }
        for slot in &mut self.consumers {
            let (destination, name) = (slot.plan.destination, slot.plan.subscription);
            let start = slot.plan.start;
            slot.number = match (slot.state, slot.number) {
                (State::Open(_), Some(before)) => Some(scene.model.consumer_asked_again(
                    scene.connection,
                    installation,
                    before,
                    start,
                )),
                (State::Opening(_), _) => Some(scene.model.consumer_asked(
                    scene.connection,
                    installation,
                    destination,
                    name,
                    start,
                )),
                (_, number) => number,
            };
        }
        Ok(())
    }

    /// As what the broker of this connection knows a producer.
    fn named(&self, scene: &Scene<'_>, id: ProducerId, epoch: Epoch, partitions: u32) -> Named {
        let is_open = self.machine.as_ref().is_some_and(Client::is_open);
        Named {
            installation: self.installation.unwrap_or_default(),
            id,
            epoch,
            partitions,
            connection: if is_open {
                scene.connection
            } else {
                usize::MAX
            },
            access: Access::Shared,
        }
    }

    /// What it asked for as an administrator is so.
    fn changed(&mut self, scene: &mut Scene<'_>, request: RequestId) -> Result<(), Violation> {
        let Some(index) = self.fences.iter().position(|(asked, _)| *asked == request) else {
            return Err(Violation::new(
                Rule::Request,
                "an answer to what nobody asked for".to_owned(),
            ));
        };
        let (_, id) = self.fences.swap_remove(index);
        let installation = self.installation.unwrap_or_default();
        if let Some(producer) = scene.model.fenced(installation, id) {
            scene.trace.note(Fact::Fenced { producer });
        }
        Ok(())
    }

    /// The broker has ended a producer: its client closes it once all is answered.
    fn producer_ended(
        &mut self,
        scene: &mut Scene<'_>,
        key: ProducerKey,
        code: u16,
        text: &str,
    ) -> Result<(), Violation> {
        let slot = (self.producers.iter_mut()).find(|slot| slot.key() == Some(key));
        let Some(slot) = slot else { return Ok(()) };
        let Some(number) = slot.number else {
            return Ok(());
        };
        scene.trace.note(Fact::ProducerShutOut {
            producer: number,
            code,
        });
        scene.model.producer_departs(number);
        let is_fair = Refusal::from_code(code) == Some(Refusal::Fenced);
        if !is_fair || !scene.model.may_be_shut_out(number) {
            return Err(Violation::new(
                Rule::Request,
                format!("producer {number} was ended with code {code}: {text}"),
            ));
        }
        if let (State::Open(_), Some(machine)) = (slot.state, &mut self.machine)
            && let Ok(request) = machine.close_producer(key)
        {
            slot.state = State::Closing(request, key);
        }
        Ok(())
    }

    /// A producer was not attached again: its client's application opens another one.
    fn producer_lost(
        &mut self,
        scene: &mut Scene<'_>,
        key: ProducerKey,
        code: u16,
        text: &str,
    ) -> Result<(), Violation> {
        self.look_at_outcomes(scene)?;
        let slot = (self.producers.iter_mut()).find(|slot| slot.key() == Some(key));
        let Some(slot) = slot else { return Ok(()) };
        let Some(number) = slot.number.take() else {
            return Ok(());
        };
        scene.trace.note(Fact::ProducerShutOut {
            producer: number,
            code,
        });
        slot.state = State::Closed;
        slot.asks_at = scene.now.monotonic.0 + 10 * MILLISECOND;
        let is_fair = matches!(
            Refusal::from_code(code),
            Some(Refusal::Fenced | Refusal::Exclusive)
        );
        if !is_fair || !scene.model.may_be_shut_out(number) {
            return Err(Violation::new(
                Rule::Request,
                format!("producer {number} was not attached again, with code {code}: {text}"),
            ));
        }
        scene.model.turned_away();
        scene.model.producer_departs(number);
        scene.model.producer_ended(number)?;
        let machine = self.machine.as_mut();
        if machine.is_some_and(|machine| machine.forget_producer(key)) {
            return Ok(());
        }
        Err(Violation::new(
            Rule::Request,
            "a producer that was lost cannot be forgotten".into(),
        ))
    }

    fn consumer_lost(
        &mut self,
        scene: &mut Scene<'_>,
        key: ConsumerKey,
        code: u16,
        text: &str,
    ) -> Result<(), Violation> {
        scene.trace.note(Fact::RequestRefused {
            peer: self.index,
            code,
        });
        let slot = self
            .consumers
            .iter_mut()
            .find(|slot| slot.key() == Some(key));
        let Some(slot) = slot else {
            return Ok(());
        };
        let shape = &scene.destinations[slot.plan.destination];
        let exclusive = slot
            .plan
            .subscription
            .is_some_and(|name| shape.is_exclusive(name));
        if Refusal::from_code(code) != Some(Refusal::Exclusive) || !exclusive {
            return Err(Violation::new(
                Rule::Request,
                format!(
                    "a consumer of actor {} was not opened again, with code {code}: {text}",
                    self.index
                ),
            ));
        }
        slot.state = State::Closed;
        if let Some(number) = slot.number.take() {
            scene.model.consumer_refused(number);
        }
        if let Some(machine) = &mut self.machine {
            machine.forget_consumer(key);
        }
        Ok(())
    }

    fn look_at_outcomes(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        for slot in &self.producers {
            if let (Some(key), Some(number)) = (slot.key(), slot.number) {
                take_outcomes(machine, scene, number, key, &mut self.overdue)?;
            }
        }
        Ok(())
    }

    fn consumer_opened(
        &mut self,
        scene: &mut Scene<'_>,
        request: RequestId,
        key: ConsumerKey,
        starts: &[Offset],
    ) -> Result<(), Violation> {
        let Some(slot) = self
            .consumers
            .iter_mut()
            .find(|slot| slot.state == State::Opening(request))
        else {
            return Ok(());
        };
        let Some(number) = slot.number else {
            return Ok(());
        };
        scene.model.consumer_opened(number, starts)?;
        slot.state = State::Open(key);
        slot.since = 0;
        scene.trace.note(Fact::ConsumerOpened {
            peer: self.index,
            consumer: number,
            subscription: scene.model.subscription_of(number),
        });
        Ok(())
    }

    fn producer_closed(
        &mut self,
        scene: &mut Scene<'_>,
        request: RequestId,
    ) -> Result<(), Violation> {
        // The last outcomes lie before this answer.
        self.look_at_outcomes(scene)?;
        let Some(slot) = self
            .producers
            .iter_mut()
            .find(|slot| matches!(slot.state, State::Closing(closing, _) if closing == request))
        else {
            return Ok(());
        };
        if let Some(number) = slot.number.take() {
            scene.trace.note(Fact::ProducerClosed {
                peer: self.index,
                producer: number,
            });
            scene.model.producer_ended(number)?;
        }
        slot.founded = true;
        if let (State::Closing(_, key), Some(machine)) = (slot.state, &mut self.machine)
            && !machine.forget_producer(key)
        {
            return Err(Violation::new(
                Rule::Request,
                "a closed producer cannot be forgotten".into(),
            ));
        }
        slot.state = State::Closed;
        Ok(())
    }

    fn refused(
        &mut self,
        scene: &mut Scene<'_>,
        request: RequestId,
        refusal: Option<Refusal>,
        code: u16,
        text: &str,
    ) -> Result<(), Violation> {
        scene.trace.note(Fact::RequestRefused {
            peer: self.index,
            code,
        });
        if let Some(index) = self.fences.iter().position(|(asked, _)| *asked == request)
            && refusal == Some(Refusal::NotFound)
        {
            // It was closed meanwhile, or its installation is no more.
            self.fences.swap_remove(index);
            return Ok(());
        }
        let producer =
            (self.producers.iter_mut()).find(|slot| slot.state == State::Opening(request));
        if let Some(slot) = producer {
            let is_fair = match refusal {
                Some(Refusal::Exclusive) => scene.destinations[slot.plan.destination].contested,
                Some(Refusal::Fenced) => scene.model.is_any_fence_asked(),
                Some(Refusal::StorageFailed) => scene.model.has_failed(),
                _ => false,
            };
            if is_fair {
                if let Some(waits) = slot.waits.take() {
                    scene.model.taker_gone(waits.taker);
                }
                slot.state = State::Closed;
                let wait = self.random.range(MILLISECOND, 100 * MILLISECOND);
                slot.asks_at = scene.now.monotonic.0 + wait;
                scene.model.turned_away();
                return Ok(());
            }
        }
        let slot = self
            .consumers
            .iter_mut()
            .find(|slot| slot.state == State::Opening(request));
        let is_fair = |slot: &ConsumerSlot| match refusal {
            Some(Refusal::StorageFailed) => scene.model.has_failed(),
            Some(Refusal::Exclusive) => slot
                .plan
                .subscription
                .is_some_and(|name| scene.destinations[slot.plan.destination].is_exclusive(name)),
            _ => false,
        };
        match slot.filter(|slot| is_fair(slot)) {
            Some(slot) => {
                slot.state = State::Closed;
                if let Some(number) = slot.number.take() {
                    scene.model.consumer_refused(number);
                }
                Ok(())
            }
            None => Err(Violation::new(
                Rule::Request,
                format!(
                    "actor {} was refused {request:?} with code {code}: {text}",
                    self.index
                ),
            )),
        }
    }

    /// Its machine is gone.
    fn forget(&mut self) {
        (self.late, self.reconnects) = self.counts();
        self.machine = None;
        self.installation = None;
        self.lost_at = None;
        self.overdue = 0;
        for slot in &mut self.producers {
            slot.state = State::Closed;
            slot.number = None;
            slot.waits = None;
        }
        self.fences.clear();
        if let Some(passing) = &mut self.passing {
            passing.forget();
        }
        for slot in &mut self.consumers {
            slot.state = State::Closed;
            slot.number = None;
            slot.poll = None;
        }
        self.leaving = false;
        self.stats_asked = false;
    }
}

/// Looks which questions were answered, before what came in front of the answers is
/// handed out.
fn look_at_polls(
    machine: &Client,
    consumers: &mut [ConsumerSlot],
    scene: &mut Scene<'_>,
) -> Result<(), Violation> {
    for slot in consumers {
        let Some(poll) = slot.poll else { continue };
        let (Some(key), Some(consumer)) = (slot.key(), slot.number) else {
            slot.poll = None;
            continue;
        };
        match machine.poll_state(key, poll.token) {
            PollState::Asked => continue,
            PollState::Lost => {}
            PollState::Answered => {
                let nothing = slot.handed == poll.handed && !machine.has_message(key);
                scene.trace.note(Fact::Polled { consumer, nothing });
                scene.model.polled(consumer, nothing)?;
            }
        }
        slot.poll = None;
    }
    Ok(())
}

/// Takes every outcome of a producer that is there.
fn take_outcomes(
    machine: &mut Client,
    scene: &mut Scene<'_>,
    number: usize,
    key: ProducerKey,
    overdue: &mut u64,
) -> Result<(), Violation> {
    let known = Circumstances {
        now: scene.now.monotonic.0,
        installation: machine.installation(),
        ended: machine.end().is_some(),
    };
    while let Some(Completion { sequence, result }) = machine.poll_completion(key) {
        let (outcome, offset) = match &result {
            Ok(stored) => ("stored", stored.position.offset.0),
            Err(Failure::Unknown(_)) => ("unknown", 0),
            Err(Failure::NotStored(_)) => ("not stored", 0),
            Err(_) => ("refused", 0),
        };
        scene.trace.note(Fact::Completed {
            producer: number,
            sequence: sequence.0,
            outcome,
            offset,
        });
        *overdue += u64::from(matches!(
            result,
            Err(Failure::Unknown(
                Cause::DeadlinePassed | Cause::StorageFailed | Cause::Restarted
            ))
        ));
        scene.model.completed(number, sequence.0, &result, &known)?;
    }
    Ok(())
}

fn acknowledge(
    machine: &mut Client,
    scene: &mut Scene<'_>,
    number: usize,
    key: ConsumerKey,
    (partition, offset): (u32, u64),
) {
    let position = Position {
        partition: PartitionIndex(partition),
        offset: Offset(offset),
    };
    // What is not taken now stays held, and is tried again when it is calm.
    if machine.acknowledge(key, position).is_ok() {
        scene.trace.note(Fact::Acknowledged {
            consumer: number,
            partition: position.partition,
            offset,
            through: false,
        });
        scene.model.acknowledged(number, (partition, offset));
    }
}

/// Acknowledges the last message of each partition, and with it all before.
fn acknowledge_through(
    machine: &mut Client,
    scene: &mut Scene<'_>,
    number: usize,
    key: ConsumerKey,
) {
    let mut last: Vec<(u32, u64)> = Vec::new();
    for (partition, offset) in scene.model.held(number) {
        match last.iter_mut().find(|(other, _)| other == partition) {
            Some(entry) => entry.1 = *offset,
            None => last.push((*partition, *offset)),
        }
    }
    for (partition, offset) in last {
        let position = Position {
            partition: PartitionIndex(partition),
            offset: Offset(offset),
        };
        if machine.acknowledge_through(key, position).is_ok() {
            scene.trace.note(Fact::Acknowledged {
                consumer: number,
                partition: position.partition,
                offset,
                through: true,
            });
            scene
                .model
                .acknowledged_through(number, (partition, offset));
        }
    }
}

/// Whether a link may end like this between well-behaved peers.
fn check_end(scene: &Scene<'_>, peer: usize, end: &LinkEnd) -> Result<(), Violation> {
    let fair = match end {
        LinkEnd::Lost | LinkEnd::Left => true,
        LinkEnd::HelloTimedOut => scene.excused,
        LinkEnd::Farewell { refusal, .. } => match refusal {
            Some(Refusal::Stopping) => true,
            Some(Refusal::Stalled | Refusal::FrameTimeout | Refusal::HelloTimeout) => scene.excused,
            _ => false,
        },
        LinkEnd::SessionRefused { .. } | LinkEnd::Fault(_) | LinkEnd::Backlog => false,
    };
    if fair {
        Ok(())
    } else {
        Err(Violation::new(
            Rule::LinkEnd,
            format!("of actor {peer}: {end}"),
        ))
    }
}

/// Gives a message back, to rest for `rest` nanoseconds if at all.
fn give_back(
    machine: &mut Client,
    scene: &mut Scene<'_>,
    number: usize,
    key: ConsumerKey,
    (partition, offset): (u32, u64),
    rest: Option<u64>,
    count: u32,
) {
    let position = Position {
        partition: PartitionIndex(partition),
        offset: Offset(offset),
    };
    if machine
        .give_back(key, position, 1, rest.map(Duration::from_nanos))
        .is_ok()
    {
        scene.trace.note(Fact::GaveBack {
            consumer: number,
            partition: position.partition,
            offset,
            rest,
        });
        // The wire counts in microseconds, and the broker's own wait doubles.
        let least = SECOND << count.saturating_sub(1).min(8);
        let until = rest.map(|rest| scene.now.monotonic.0 + (rest / 1000 * 1000).max(least));
        scene.model.gave_back(number, (partition, offset), until);
    }
}

/// Has a client not say which link its own takes the place of, or ask for a shard also
/// where it would go to that of the link before.
fn rewrite_hello(bytes: &mut [u8], anonymous: bool, shard: Option<ShardIndex>) {
    let Ok(Step::Frame(
        Frame::Control {
            subject,
            control: Control::Hello(fields, tail),
        },
        _,
    )) = decode::decode(bytes)
    else {
        return;
    };
    let mut hello = *fields;
    if anonymous {
        hello.link = 0.into();
    }
    if let Some(shard) = shard {
        hello.shard = shard.0.into();
    }
    let tail = tail.to_vec();
    encode::control(subject, &hello, &[&tail], bytes);
}

impl ProducerSlot {
    /// Its name on the machine.
    fn key(&self) -> Option<ProducerKey> {
        match self.state {
            State::Open(key) | State::Closing(_, key) => Some(key),
            State::Closed | State::Opening(_) => None,
        }
    }

    fn new(plan: ProducerPlan, founding: bool) -> Self {
        Self {
            left: plan.quota,
            plan,
            state: State::Closed,
            number: None,
            rest: 0,
            founding,
            founded: false,
            asks_at: 0,
            waits: None,
        }
    }

    /// It is asked for on this connection.
    fn asked(&mut self, scene: &mut Scene<'_>, installation: Installation, is_fresh: bool) {
        self.waits = (self.plan.access == Access::Taking).then(|| Waits {
            taker: scene.model.taker_asked(
                scene.connection,
                installation,
                self.plan.destination,
                is_fresh,
            ),
            probe: Probe::Due,
        });
    }
}

impl ConsumerSlot {
    /// Its name on the machine.
    fn key(&self) -> Option<ConsumerKey> {
        match self.state {
            State::Open(key) | State::Closing(_, key) => Some(key),
            State::Closed | State::Opening(_) => None,
        }
    }

    fn new(plan: ConsumerPlan, from_calm: bool) -> Self {
        Self {
            plan,
            state: State::Closed,
            number: None,
            left: 0,
            since: 0,
            handed: 0,
            from_calm,
            poll: None,
        }
    }
}

impl ProducerPlan {
    fn founding(destination: usize) -> Self {
        Self {
            destination,
            quota: 0,
            burst: 1,
            sizes: Sizes {
                most: 1,
                large: 0,
                large_most: 0,
            },
            routes: Routes::Turn,
            batch: None,
            messages_in_flight_max: 1,
            bytes_in_flight_max: limits::MIB,
            patience: None,
            access: Access::Shared,
            memory: 0,
        }
    }
}

impl ConsumerPlan {
    fn draining(destination: usize, subscription: Option<&'static str>) -> Self {
        Self {
            destination,
            subscription,
            start: Start::Earliest,
            messages_max: limits::PREFETCH_MESSAGES,
            bytes_max: limits::PREFETCH_BYTES,
            acks: Acks::Each,
            confirms: 0,
            appetite: 500,
            lifetime: None,
            returns: 0,
            polls: 0,
        }
    }
}

impl Routes {
    fn draw(self, random: &mut Random, partitions: u32) -> (Route, Asked) {
        let kind = match self {
            Self::Mixed => random.pick(&[Self::Turn, Self::Keys, Self::Partitions]),
            other => other,
        };
        match kind {
            Self::Keys => {
                let hash = routing::key_hash(&random.below(50).to_le_bytes());
                (Route::Key(hash), Asked::Key(hash))
            }
            Self::Partitions => {
                let partition = u32::try_from(random.below(partitions.into())).unwrap_or(0);
                (
                    Route::Partition(PartitionIndex(partition)),
                    Asked::Partition(partition),
                )
            }
            Self::Turn | Self::Mixed => (Route::Turn, Asked::Turn),
        }
    }
}
