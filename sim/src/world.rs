//! The world: the shards of a broker behind their door, its peers, and what lies
//! between them, in one thread under virtual time.
//!
//! ```text
//!                                                   ,-> door
//!  actor, rogue <== pipe, pipe ==> [ socket ] <--> shard, shard, shard
//!        |                                            `-- mesh --'
//!        `---------- events by time, then by the order they were planned ------'
//! ```
//!
//! The world plays the driver that the broker has in life: it reads sockets,
//! gives each shard its turns, hands its pieces to a kernel that takes its time
//! and takes what it likes, and closes what the shard wants closed. While the
//! kernel has pieces the world remembers their bytes, and compares them when
//! the send completes: what is lent must not move.
//!
//! The cast: a `worker` is a shard and its thread, `broker` the door and the kernel
//! beneath, `peers` how peers are told and act, `faults` what strikes, `ending` what
//! must hold at last.
//!
//! A run has three acts: faults for as long as the plan says; calm, until every
//! message is where it belongs; leaving, until nobody and nothing is left.

mod broker;
mod disk;
mod ending;
mod faults;
mod peers;
mod worker;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use courser_core::client::StatsReport;
use courser_core::door::{Address, Door, DoorLimits};
use courser_core::id::{Handle, Installation};
use courser_core::time::{Monotonic, Now, Wall};

use crate::actor::Actor;
use crate::model::Model;
use crate::network::Pipe;
use crate::plan::{FaultKind, Plan, SECOND};
use crate::random::Random;
use crate::report::Report;
use crate::rogue::Rogue;
use crate::trace::Trace;
use crate::violation::{Rule, Violation};
use disk::Disk;
use worker::Worker;

/// Once faults stop everything is drained within this time.
const DRAINED_WITHIN: u64 = 90 * SECOND;
/// Time limits of faults that began before the calm run out within this time.
const EXCUSED_FOR: u64 = 30 * SECOND;
/// Everything ends within this many events, or the run does not end.
const EVENTS_MAX: u64 = 20_000_000;
/// A shard is audited, message by message, each so many turns.
const AUDIT_EVERY: u64 = 512;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Server,
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A shard's thread runs.
    Turn(usize),
    /// The door's thread looks who took too long.
    Door,
    /// Something may be read.
    Readable(usize, End),
    /// There may be room again.
    Writable(usize, End),
    /// The kernel answers a send of a shard.
    Sent(usize),
    /// Nothing of a connection is under way any more: it moves to another shard.
    Part(usize),
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
    /// One thread, or the whole process, stops for a while.
    Pause,
    /// The broker dies, and another one takes its place.
    Restart,
    /// The power is cut.
    Cut,
    /// An operation of a shard's disk is over.
    Disk(usize, u64),
    /// A broker whose disk cannot write is started again.
    Repair,
    /// Faults stop.
    Calm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Stranger(Handle),
    /// Given to a shard that has not taken it yet.
    HandedTo(usize),
    /// Of a shard.
    Link(usize, Handle),
    Gone,
}

struct Connection {
    peer: usize,
    address: Address,
    server: Server,
    /// Whether the client's end is open.
    client: bool,
    /// Whether the client has closed its direction and reads on.
    half_closed: bool,
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

/// What all shards say of one destination of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    stored: u64,
    unsettled: u64,
}

/// What shards have done.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    turns: u64,
    records: u64,
    thinnings: u64,
    retries: u64,
    chunks_most: usize,
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
    door_at: Option<u64>,
    workers: Vec<Worker>,
    /// Of shards that keep what they are given.
    disks: Vec<Disk>,
    /// Operations of disks so far.
    operations: u64,
    /// Says what is read wrongly, which changes nothing else.
    misreads: Random,
    /// The first broker's.
    installation: Installation,
    connections: Vec<Connection>,
    seats: Vec<Seat>,
    model: Model,
    act: Act,
    /// How many brokers there were before this one.
    restarts: u64,
    /// Every destination has its shape: others are let in.
    founded: bool,
    /// The others have begun.
    begun: bool,
    /// What each shard said of its destinations since they were last put together.
    answers: Vec<Option<StatsReport>>,
    /// What they said together while every peer rested, and how often in a row.
    resting: Option<(Vec<Figures>, u32)>,
    /// What they last said, for a failure's text.
    last_figures: Vec<Figures>,
    /// Connections that went to another shard.
    moves: u64,
    /// Of brokers that are no more.
    past: Past,
    faults: [u64; FaultKind::ALL.len()],
    buffer: Vec<u8>,
}

impl World {
    /// The world of a seed, before anything has happened.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let installation = Installation(u128::from(seed) << 32);
        let workers = Worker::all(installation, plan.shards, &mut random);
        let mut seats: Vec<Seat> = Vec::new();
        for (index, actor) in plan.actors.iter().enumerate() {
            let actor = Actor::new(index, actor.clone(), &plan.destinations, random.fork());
            seats.push(Seat::new(Peer::Actor(Box::new(actor))));
        }
        for index in 0..plan.rogues + plan.stallers {
            let rogue = Rogue::new(random.fork(), &plan);
            let rogue = if index < plan.rogues {
                rogue
            } else {
                rogue.stall()
            };
            seats.push(Seat::new(Peer::Rogue(Box::new(rogue))));
        }
        let mut world = Self {
            model: Model::new(
                &plan.destinations,
                installation,
                plan.rogues + plan.stallers > 0,
                plan.disk.is_some(),
            ),
            door: new_door(&plan, random.word()),
            random: random.fork(),
            now: 1,
            order: 0,
            events: BinaryHeap::new(),
            handled: 0,
            door_at: None,
            answers: workers.iter().map(|_| None).collect(),
            workers,
            disks: Disk::all(installation, plan.shards),
            operations: 0,
            misreads: Random::new(!seed),
            connections: Vec::new(),
            seats,
            act: Act::Storm,
            installation,
            restarts: 0,
            founded: false,
            begun: false,
            resting: None,
            last_figures: Vec::new(),
            moves: 0,
            past: Past::default(),
            faults: [0; FaultKind::ALL.len()],
            buffer: Vec::new(),
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        // The wardens come first, and one of them founds every destination; see `act`.
        for warden in self.wardens() {
            self.plan_event(1, Event::Act(warden));
        }
        self.plan_event(self.plan.storm, Event::Calm);
        if let Some(mean) = self.plan.faults.pause {
            let wait = self.random.wait(mean);
            self.plan_event(wait, Event::Pause);
        }
        if let Some(time) = self.plan.restart {
            self.plan_event(time, Event::Restart);
        }
        self.plan_cut();
    }

    /// Runs to the end.
    pub(crate) fn run(&mut self, trace: &mut Trace) -> Result<Report, Violation> {
        self.come_up()?;
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
        // What a thread would do waits while it does not run.
        let thread = match event {
            Event::Turn(shard) | Event::Disk(shard, _) => Some(shard),
            Event::Sent(connection)
            | Event::Part(connection)
            | Event::Readable(connection, End::Server)
            | Event::Gone(connection, End::Server) => match self.connections[connection].server {
                Server::Link(shard, _) => Some(shard),
                _ => None,
            },
            _ => None,
        };
        let paused_until = thread.map_or(0, |shard| self.workers[shard].paused_until);
        if self.now < paused_until {
            self.plan_event(paused_until, event);
            return Ok(());
        }
        match event {
            Event::Turn(shard) => self.turn(trace, shard),
            Event::Door => {
                self.door_expires();
                Ok(())
            }
            Event::Part(connection) => {
                self.part(trace, connection);
                Ok(())
            }
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
            Event::Cut => self.power_cut(trace),
            Event::Disk(shard, operation) => self.disk_answers(trace, shard, operation),
            Event::Repair => self.repair(trace),
            Event::Calm => {
                self.repair(trace)?;
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

    /// The seats of the wardens, by shard.
    fn wardens(&self) -> Range<usize> {
        self.plan.actors.len() - self.workers.len()..self.plan.actors.len()
    }

    fn has_founded(&self) -> bool {
        self.seats[self.wardens()]
            .iter()
            .all(|seat| matches!(&seat.peer, Peer::Actor(actor) if actor.has_founded()))
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

fn new_door(plan: &Plan, seed: u64) -> Door {
    let limits = DoorLimits {
        links_per_address: plan.links_per_address,
        shards: plan.shards,
        ..DoorLimits::default()
    };
    Door::new(limits, seed)
}

fn nanoseconds(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a time limit is shorter than 584 years")
}
