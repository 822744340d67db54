//! The world: one shard behind its door, its peers, and what lies between them,
//! in one thread under virtual time.
//!
//! ```text
//!  actor, rogue <== pipe, pipe ==> [ socket ] <--> door, shard
//!        `---------- events by time, then by the order they were planned ------'
//! ```
//!
//! The world plays the driver that the broker has in life: it reads sockets,
//! gives the shard its turns, hands its pieces to a kernel that takes its time
//! and takes what it likes, and closes what the shard wants closed. While the
//! kernel has pieces the world remembers their bytes, and compares them when
//! the send completes: what is lent must not move.
//!
//! The cast: `broker` is the shard's thread and the kernel beneath it, `peers` how
//! peers are told and act, `faults` what strikes, `ending` what must hold at last.
//!
//! A run has three acts: faults for as long as the plan says; calm, until every
//! message is where it belongs; leaving, until nobody and nothing is left.

mod broker;
mod ending;
mod faults;
mod peers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use courser_core::client::StatsReport;
use courser_core::door::{Address, Door, DoorLimits};
use courser_core::id::{Handle, Installation, ShardIndex};
use courser_core::limits;
use courser_core::shard::{Shard, ShardConfig};
use courser_core::time::{Monotonic, Now, Wall};

use crate::actor::Actor;
use crate::model::Model;
use crate::network::Pipe;
use crate::plan::{FaultKind, MICROSECOND, Plan, SECOND};
use crate::random::Random;
use crate::report::Report;
use crate::rogue::Rogue;
use crate::trace::Trace;
use crate::violation::{Rule, Violation};

/// Once faults stop everything is drained within this time.
const DRAINED_WITHIN: u64 = 90 * SECOND;
/// Time limits of faults that began before the calm run out within this time.
const EXCUSED_FOR: u64 = 30 * SECOND;
/// Everything ends within this many events, or the run does not end.
const EVENTS_MAX: u64 = 20_000_000;
/// The shard is audited, message by message, each so many turns.
const AUDIT_EVERY: u64 = 512;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Server,
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The shard's thread runs.
    Turn,
    /// Something may be read.
    Readable(usize, End),
    /// There may be room again.
    Writable(usize, End),
    /// The kernel answers a send of the shard.
    Sent(usize),
    /// An end is told that the connection is gone.
    Gone(usize, End),
    /// A peer acts.
    Act(usize),
    /// A peer's deadline comes.
    Deadline(usize),
    /// A fault strikes a connection.
    Fault(usize, FaultKind),
    /// A client gives a connection up that nothing passes on.
    Break(usize),
    /// The shard's thread stops for a while.
    Pause,
    /// The broker dies, and another one takes its place.
    Restart,
    /// Faults stop.
    Calm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Stranger(Handle),
    Link(Handle),
    Gone,
}

struct Connection {
    peer: usize,
    address: Address,
    server: Server,
    /// Whether the client's end is open.
    client: bool,
    up: Pipe,
    down: Pipe,
    /// What the kernel was given and has not answered.
    sending: Option<Vec<u8>>,
    /// The shard wants it closed, once everything is sent.
    closing: bool,
    /// The shard waits for room.
    blocked: bool,
    /// The peer waits for room.
    peer_blocked: bool,
    /// Nothing passes until then.
    frozen_until: u64,
    /// The client reads nothing until then.
    stalled_until: u64,
    /// When each end is looked at next: the server's, the client's.
    readable_at: [u64; 2],
}

enum Peer {
    Actor(Box<Actor>),
    Rogue(Box<Rogue>),
}

struct Seat {
    peer: Peer,
    connection: Option<usize>,
    /// Its next deadline that is planned.
    deadline: u64,
    /// Has left for good.
    done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Storm,
    Calm { since: u64 },
    Leaving { since: u64 },
}

/// See the module.
pub(crate) struct World {
    plan: Plan,
    random: Random,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    handled: u64,
    door: Door,
    shard: Shard,
    /// The first broker's.
    installation: Installation,
    turn_at: Option<u64>,
    turns: u64,
    paused_until: u64,
    connections: Vec<Connection>,
    links: BTreeMap<u32, usize>,
    seats: Vec<Seat>,
    model: Model,
    act: Act,
    /// How many brokers there were before this one.
    restarts: u64,
    /// Every destination has its shape: others are let in.
    founded: bool,
    /// The others have begun.
    begun: bool,
    /// What the broker last said of its destinations while every peer rested.
    resting_stats: Option<StatsReport>,
    /// What it last said, for a failure's text.
    last_stats: Option<StatsReport>,
    chunks_low: usize,
    chunks: usize,
    /// Counters of brokers that are no more.
    thinnings: u64,
    retries: u64,
    faults: [u64; FaultKind::ALL.len()],
    buffer: Vec<u8>,
}

impl World {
    /// The world of a seed, before anything has happened.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let installation = Installation(u128::from(seed) << 32);
        let shard = new_shard(installation, random.word());
        let mut seats: Vec<Seat> = Vec::new();
        for (index, actor) in plan.actors.iter().enumerate() {
            let actor = Actor::new(index, actor.clone(), &plan.destinations, random.fork());
            seats.push(Seat::new(Peer::Actor(Box::new(actor))));
        }
        for index in 0..plan.rogues + plan.stallers {
            let rogue = Rogue::new(random.fork(), &plan.destinations, plan.network.capacity);
            let rogue = if index < plan.rogues {
                rogue
            } else {
                rogue.stall()
            };
            seats.push(Seat::new(Peer::Rogue(Box::new(rogue))));
        }
        let chunks = shard.chunks_free();
        let mut world = Self {
            model: Model::new(&plan.destinations, installation),
            door: new_door(&plan, random.word()),
            random: random.fork(),
            now: 1,
            order: 0,
            events: BinaryHeap::new(),
            handled: 0,
            shard,
            turn_at: None,
            turns: 0,
            paused_until: 0,
            connections: Vec::new(),
            links: BTreeMap::new(),
            seats,
            act: Act::Storm,
            installation,
            restarts: 0,
            founded: false,
            begun: false,
            resting_stats: None,
            last_stats: None,
            chunks_low: chunks,
            chunks,
            thinnings: 0,
            retries: 0,
            faults: [0; FaultKind::ALL.len()],
            buffer: Vec::new(),
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        // The warden comes first and founds every destination; see `act`.
        self.plan_event(1, Event::Act(self.warden()));
        self.plan_event(self.plan.storm, Event::Calm);
        if let Some(mean) = self.plan.faults.pause {
            let wait = self.random.wait(mean);
            self.plan_event(wait, Event::Pause);
        }
        if let Some(time) = self.plan.restart {
            self.plan_event(time, Event::Restart);
        }
    }

    /// Runs to the end.
    pub(crate) fn run(&mut self, trace: &mut Trace) -> Result<Report, Violation> {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = self.now.max(time);
            trace.at(self.now);
            self.handle(trace, event)?;
            self.handled += 1;
            if self.is_over(trace)? {
                return Ok(self.report(trace));
            }
            if self.handled > EVENTS_MAX {
                return Err(Violation::new(Rule::Drained, "events never end".into()));
            }
        }
        Err(Violation::new(
            Rule::Drained,
            "nothing happens any more".into(),
        ))
    }

    fn handle(&mut self, trace: &mut Trace, event: Event) -> Result<(), Violation> {
        // What the shard's thread would do waits while it does not run.
        let of_shard = matches!(
            event,
            Event::Turn
                | Event::Sent(_)
                | Event::Readable(_, End::Server)
                | Event::Gone(_, End::Server)
        );
        if of_shard && self.now < self.paused_until {
            self.plan_event(self.paused_until, event);
            return Ok(());
        }
        match event {
            // One that was planned for later and moved forward has come already.
            Event::Turn if self.turn_at.is_none_or(|planned| planned > self.now) => Ok(()),
            Event::Turn => self.turn(trace),
            Event::Readable(connection, end) => {
                let planned = &mut self.connections[connection].readable_at[end as usize];
                if *planned > self.now {
                    return Ok(());
                }
                *planned = u64::MAX;
                match end {
                    End::Server => self.read_up(trace, connection),
                    End::Client => self.read_down(trace, connection),
                }
            }
            Event::Writable(connection, End::Server) => {
                self.connections[connection].blocked = false;
                self.send(connection)
            }
            Event::Writable(connection, End::Client) => {
                self.connections[connection].peer_blocked = false;
                self.flush(trace, connection)
            }
            Event::Sent(connection) => self.sent(trace, connection),
            Event::Gone(connection, End::Server) => {
                self.server_gone(trace, connection);
                Ok(())
            }
            Event::Gone(connection, End::Client) => self.client_gone(trace, connection),
            Event::Act(seat) => self.act(trace, seat),
            Event::Deadline(seat) => self.deadline(trace, seat),
            Event::Fault(connection, kind) => self.fault(trace, connection, kind),
            Event::Break(connection) => self.broken_off(trace, connection),
            Event::Pause => {
                self.pause(trace);
                Ok(())
            }
            Event::Restart => {
                self.restart(trace);
                Ok(())
            }
            Event::Calm => {
                self.calm(trace);
                Ok(())
            }
        }
    }

    fn reading(&self) -> Now {
        Now {
            monotonic: Monotonic(self.now),
            wall: Wall(1_700_000_000 * SECOND + self.now),
        }
    }

    fn warden(&self) -> usize {
        self.plan.actors.len() - 1
    }

    fn has_founded(&self) -> bool {
        matches!(&self.seats[self.warden()].peer, Peer::Actor(actor) if actor.has_founded())
    }

    fn delay(&mut self) -> u64 {
        self.random.range(0, self.plan.network.delay_max)
    }

    fn read_max(&self) -> usize {
        self.plan.network.read_max
    }

    fn submit_max(&self) -> u64 {
        self.plan.network.submit_max
    }

    fn plan_read(&mut self, time: u64, connection: usize, end: End) {
        let planned = &mut self.connections[connection].readable_at[end as usize];
        if time < *planned {
            *planned = time;
            self.plan_event(time, Event::Readable(connection, end));
        }
    }

    fn plan_event(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, event)));
    }

    /// A turn soon: something has happened.
    fn plan_turn(&mut self) {
        let wait = self
            .random
            .range(1, self.plan.network.turn_max.max(MICROSECOND));
        self.plan_turn_at(self.now + wait);
    }

    fn plan_turn_at(&mut self, time: u64) {
        if self.turn_at.is_none_or(|planned| time < planned) {
            self.turn_at = Some(time);
            self.plan_event(time, Event::Turn);
        }
    }

    fn plan_deadline(&mut self, seat: usize) {
        let next = match &self.seats[seat].peer {
            Peer::Actor(actor) if matches!(self.act, Act::Leaving { .. }) => actor.next_deadline(),
            Peer::Actor(actor) => [actor.next_deadline(), actor.wants_connection()]
                .into_iter()
                .flatten()
                .min(),
            Peer::Rogue(_) => None,
        };
        if let Some(next) = next
            && next < self.seats[seat].deadline
        {
            let next = next.max(self.now);
            self.seats[seat].deadline = next;
            self.plan_event(next, Event::Deadline(seat));
        }
    }
}

impl Seat {
    fn new(peer: Peer) -> Self {
        Self {
            peer,
            connection: None,
            deadline: u64::MAX,
            done: false,
        }
    }
}

/// A broker's heart, with nothing in it.
fn new_shard(installation: Installation, hash_seed: u64) -> Shard {
    Shard::new(ShardConfig {
        installation,
        shard: ShardIndex(0),
        memory: limits::MEMORY_MIN,
        hash_seed,
        auto_create: true,
    })
    .expect("the least memory is enough")
}

fn new_door(plan: &Plan, seed: u64) -> Door {
    let limits = DoorLimits {
        links_per_address: plan.links_per_address,
        ..DoorLimits::default()
    };
    Door::new(limits, seed)
}

fn nanoseconds(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a time limit is shorter than 584 years")
}
