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
//! A run has three acts: faults for as long as the plan says; calm, until every
//! message is where it belongs; leaving, until nobody and nothing is left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use courser_core::client::StatsReport;
use courser_core::counters::Counter;
use courser_core::door::{self, Address, Door, DoorLimits};
use courser_core::id::{Handle, Installation, ShardIndex};
use courser_core::limits;
use courser_core::shard::{Output, Pieces, Shard, ShardConfig};
use courser_core::time::{Monotonic, Now, Wall};

use crate::actor::{Actor, Scene};
use crate::model::Model;
use crate::network::Pipe;
use crate::plan::{FaultKind, MICROSECOND, MILLISECOND, Plan, SECOND};
use crate::random::Random;
use crate::report::Report;
use crate::rogue::{self, Rogue};
use crate::trace::{Fact, Trace, digest};
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
    /// The shard's thread stops for a while.
    Pause,
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
    turn_at: Option<u64>,
    turns: u64,
    paused_until: u64,
    connections: Vec<Connection>,
    links: BTreeMap<u32, usize>,
    seats: Vec<Seat>,
    model: Model,
    act: Act,
    /// Every destination has its shape, and the others were let in.
    founded: bool,
    /// What the broker last said of its destinations while every peer rested.
    resting_stats: Option<StatsReport>,
    /// What it last said, for a failure's text.
    last_stats: Option<StatsReport>,
    chunks_low: usize,
    chunks: usize,
    faults: [u64; FaultKind::ALL.len()],
    buffer: Vec<u8>,
}

impl World {
    /// The world of a seed, before anything has happened.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let shard = Shard::new(ShardConfig {
            installation: Installation(seed.into()),
            shard: ShardIndex(0),
            memory: limits::MEMORY_MIN,
            hash_seed: random.word(),
        })
        .expect("the least memory is enough");
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
            model: Model::new(&plan.destinations),
            door: Door::new(
                DoorLimits {
                    links_per_address: plan.links_per_address,
                    ..DoorLimits::default()
                },
                random.word(),
            ),
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
            founded: false,
            resting_stats: None,
            last_stats: None,
            chunks_low: chunks,
            chunks,
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
            Event::Pause => {
                self.pause(trace);
                Ok(())
            }
            Event::Calm => {
                self.calm(trace);
                Ok(())
            }
        }
    }

    // The broker's thread.

    fn turn(&mut self, trace: &mut Trace) -> Result<(), Violation> {
        self.turn_at = None;
        self.turns += 1;
        let now = self.reading();
        self.door.expire(now);
        self.open_doors(trace)?;
        self.shard.expire(now);
        self.shard.turn(now);
        while let Some(output) = self.shard.output() {
            match output {
                Output::Send(link) => {
                    if let Some(connection) = self.links.get(&link.0).copied() {
                        self.send(connection)?;
                    }
                }
                Output::Close { link, flush } => {
                    if let Some(connection) = self.links.get(&link.0).copied() {
                        trace.note(Fact::Close { connection, flush });
                        self.broker_closes(trace, connection, flush)?;
                    }
                }
            }
        }
        self.shard.invariants();
        if self.turns.is_multiple_of(AUDIT_EVERY) {
            self.shard.audit();
        }
        self.chunks_low = self.chunks_low.min(self.shard.chunks_free());
        trace.note(Fact::Turn {
            links: self.shard.links(),
            chunks_free: self.shard.chunks_free(),
        });
        if self.shard.has_work() {
            self.plan_turn();
        }
        let expiry = [self.shard.next_expiry(), self.door.next_expiry()];
        if let Some(next) = expiry.into_iter().flatten().min() {
            self.plan_turn_at(next.0.max(self.now + 1));
        }
        Ok(())
    }

    /// What the door wants done.
    fn open_doors(&mut self, trace: &mut Trace) -> Result<(), Violation> {
        while let Some(output) = self.door.output() {
            match output {
                door::Output::HandOver {
                    stranger, attached, ..
                } => {
                    let Some(connection) = self.stranger(stranger) else {
                        continue;
                    };
                    match self.shard.attached(self.reading(), attached) {
                        Ok(link) => {
                            trace.note(Fact::HandedOver { connection, link });
                            self.connections[connection].server = Server::Link(link);
                            if self.links.insert(link.0, connection).is_some() {
                                return Err(Violation::new(
                                    Rule::Invariant,
                                    format!("link {link} was given out twice"),
                                ));
                            }
                        }
                        Err(refusal) => {
                            let bytes = Door::farewell(refusal);
                            let address = self.connections[connection].address;
                            self.door.left(address);
                            self.say_farewell(connection, &bytes);
                        }
                    }
                    self.plan_turn();
                }
                door::Output::Farewell { stranger, bytes } => {
                    if let Some(connection) = self.stranger(stranger) {
                        self.say_farewell(connection, &bytes);
                    }
                }
            }
        }
        Ok(())
    }

    fn stranger(&self, stranger: Handle) -> Option<usize> {
        self.connections
            .iter()
            .rposition(|connection| connection.server == Server::Stranger(stranger))
    }

    fn say_farewell(&mut self, connection: usize, bytes: &[u8]) {
        let due = self.now + self.delay();
        let entry = &mut self.connections[connection];
        entry.server = Server::Gone;
        if entry.down.room() >= bytes.len() {
            entry.down.write(due, bytes);
        }
        entry.down.end();
        entry.up.end();
        self.plan_read(due, connection, End::Client);
    }

    /// Gives the kernel what the link has to send, unless it still has some.
    fn send(&mut self, connection: usize) -> Result<(), Violation> {
        let entry = &mut self.connections[connection];
        let Server::Link(link) = entry.server else {
            return Ok(());
        };
        if entry.sending.is_some() || entry.blocked {
            return Ok(());
        }
        let mut pieces = Pieces::new();
        self.shard.pieces(link, &mut pieces);
        let offered: usize = pieces.slices().iter().map(|slice| slice.len()).sum();
        if offered == 0 {
            if entry.closing {
                self.plan_event(self.now, Event::Gone(connection, End::Server));
            }
            return Ok(());
        }
        let room = entry.down.room();
        if room == 0 {
            entry.blocked = true;
            return Ok(());
        }
        // The kernel reads until it answers; it cannot take more than fits.
        let mut bytes = Vec::with_capacity(offered.min(room));
        for slice in pieces.slices() {
            let count = slice.len().min(room - bytes.len());
            bytes.extend_from_slice(&slice[..count]);
        }
        entry.sending = Some(bytes);
        let wait = self.random.range(0, self.submit_max());
        self.plan_event(self.now + wait, Event::Sent(connection));
        Ok(())
    }

    /// The kernel answers a send.
    fn sent(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
        let entry = &mut self.connections[connection];
        let (Server::Link(link), Some(given)) = (entry.server, entry.sending.take()) else {
            return Ok(());
        };
        let mut pieces = Pieces::new();
        self.shard.pieces(link, &mut pieces);
        let mut at = 0;
        for slice in pieces.slices() {
            let count = slice.len().min(given.len() - at);
            if slice[..count] != given[at..at + count] {
                return Err(Violation::new(
                    Rule::Pinned,
                    format!(
                        "of {} bytes on connection {connection} from {at} on",
                        given.len()
                    ),
                ));
            }
            at += count;
        }
        if at < given.len() {
            return Err(Violation::new(
                Rule::Pinned,
                format!(
                    "{} bytes on connection {connection} were given, {at} are left",
                    given.len()
                ),
            ));
        }
        let stormy = self.act == Act::Storm;
        let short = stormy && self.random.chance(self.plan.network.short_sends, 1000);
        let room = entry.down.room();
        let mut taken = given.len().min(room);
        if short {
            taken = self.random.count(0, taken);
            self.faults[FaultKind::ShortSend as usize] += 1;
            self.faults[FaultKind::EmptySend as usize] += u64::from(taken == 0);
        }
        let due = self.now + self.random.range(0, self.plan.network.delay_max);
        let entry = &mut self.connections[connection];
        entry.down.write(due, &given[..taken]);
        trace.note(Fact::Sent {
            connection,
            offered: given.len(),
            taken,
        });
        self.shard.sent(self.reading(), link, taken);
        self.plan_read(due, connection, End::Client);
        self.plan_turn();
        self.send(connection)
    }

    /// The shard ends a link.
    fn broker_closes(
        &mut self,
        trace: &mut Trace,
        connection: usize,
        flush: bool,
    ) -> Result<(), Violation> {
        // Its consumers are gone at the broker, whatever their client believes.
        self.model.link_gone(connection);
        if flush {
            self.connections[connection].closing = true;
            self.send(connection)
        } else {
            self.server_gone(trace, connection);
            Ok(())
        }
    }

    /// The broker's end is closed: its machines are told, and the stream ends.
    fn server_gone(&mut self, trace: &mut Trace, connection: usize) {
        let now = self.reading();
        let entry = &mut self.connections[connection];
        match entry.server {
            Server::Gone => return,
            Server::Stranger(stranger) => self.door.closed(stranger),
            Server::Link(link) => {
                self.links.remove(&link.0);
                self.shard.closed(now, link);
                self.door.left(entry.address);
            }
        }
        entry.server = Server::Gone;
        entry.sending = None;
        entry.up.end();
        entry.down.end();
        trace.note(Fact::ServerClosed { connection });
        self.model.link_gone(connection);
        let due = self.connections[connection]
            .down
            .next_due()
            .unwrap_or(self.now);
        self.plan_read(due.max(self.now), connection, End::Client);
        self.plan_turn();
    }

    /// Bytes for the broker.
    fn read_up(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
        let (now, read_max) = (self.now, self.read_max());
        let entry = &mut self.connections[connection];
        if entry.server == Server::Gone {
            return Ok(());
        }
        if now < entry.frozen_until {
            let until = entry.frozen_until;
            self.plan_read(until, connection, End::Server);
            return Ok(());
        }
        let most = self.random.count(1, read_max);
        let mut bytes = core::mem::take(&mut self.buffer);
        let entry = &mut self.connections[connection];
        entry.up.read(now, most, &mut bytes);
        if !bytes.is_empty() {
            trace.note(Fact::Uplink {
                connection,
                bytes: bytes.len(),
                digest: digest(&bytes),
            });
            match entry.server {
                Server::Stranger(stranger) => {
                    self.door.received(stranger, &bytes);
                    // At once: between a hand-over and its taking the stranger must
                    // not be reported gone.
                    self.open_doors(trace)?;
                }
                Server::Link(link) => self.shard.received(self.reading(), link, &bytes),
                Server::Gone => {}
            }
            self.plan_turn();
        }
        self.buffer = bytes;
        let entry = &mut self.connections[connection];
        if entry.peer_blocked && entry.up.room() > 0 {
            self.plan_event(now, Event::Writable(connection, End::Client));
        }
        let entry = &self.connections[connection];
        if let Some(due) = entry.up.next_due() {
            self.plan_read(due.max(now), connection, End::Server);
        } else if entry.up.is_at_end() {
            self.server_gone(trace, connection);
        }
        Ok(())
    }

    // The peers.

    /// Bytes for the client.
    fn read_down(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
        let (now, read_max) = (self.now, self.read_max());
        let entry = &mut self.connections[connection];
        if !entry.client {
            return Ok(());
        }
        let held_up = entry.frozen_until.max(entry.stalled_until);
        if now < held_up {
            self.plan_read(held_up, connection, End::Client);
            return Ok(());
        }
        let seat = entry.peer;
        if matches!(&self.seats[seat].peer, Peer::Rogue(rogue) if !rogue.reads())
            && !entry.down.is_at_end()
        {
            // Looked at again when its link ends.
            if entry.server != Server::Gone {
                return Ok(());
            }
            entry.down.cut(0);
        }
        let most = self.random.count(1, read_max);
        let mut bytes = core::mem::take(&mut self.buffer);
        let entry = &mut self.connections[connection];
        entry.down.read(now, most, &mut bytes);
        let mut result = Ok(());
        if !bytes.is_empty() {
            trace.note(Fact::Downlink {
                connection,
                bytes: bytes.len(),
                digest: digest(&bytes),
            });
            result = self.tell(trace, seat, |peer, scene| match peer {
                Peer::Actor(actor) => actor.received(scene, &bytes),
                Peer::Rogue(rogue) => rogue.received(scene.now.monotonic.0, &bytes),
            });
        }
        self.buffer = bytes;
        result?;
        let entry = &self.connections[connection];
        if entry.blocked && entry.down.room() > 0 {
            self.plan_event(now, Event::Writable(connection, End::Server));
        }
        if !self.connections[connection].client {
            return Ok(());
        }
        self.flush(trace, connection)?;
        let entry = &self.connections[connection];
        if !entry.client {
            return Ok(());
        }
        if let Some(due) = entry.down.next_due() {
            self.plan_read(due.max(now), connection, End::Client);
        } else if entry.down.is_at_end() {
            self.client_gone(trace, connection)?;
        }
        Ok(())
    }

    /// The client's end is told that the connection is gone.
    fn client_gone(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
        if !self.connections[connection].client {
            return Ok(());
        }
        let seat = self.connections[connection].peer;
        trace.note(Fact::ClientClosed { connection });
        self.tell(trace, seat, |peer, scene| match peer {
            Peer::Actor(actor) => actor.closed(scene),
            Peer::Rogue(_) => Ok(()),
        })?;
        self.hang_up(trace, connection)
    }

    /// The client closes its end: what it has written still arrives.
    fn hang_up(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
        let entry = &mut self.connections[connection];
        entry.client = false;
        entry.up.end();
        entry.down.end();
        let seat = entry.peer;
        let due = entry.up.next_due().unwrap_or(self.now).max(self.now);
        let blocked = core::mem::take(&mut entry.blocked);
        self.plan_read(due, connection, End::Server);
        if blocked {
            self.plan_event(self.now, Event::Writable(connection, End::Server));
        }
        self.tell(trace, seat, |peer, scene| match peer {
            Peer::Actor(actor) => actor.disconnected(scene),
            Peer::Rogue(rogue) => rogue.closed(),
        })?;
        let leaving = self.act != Act::Storm && !matches!(self.act, Act::Calm { .. });
        let entry = &mut self.seats[seat];
        entry.connection = None;
        entry.done = leaving || matches!(entry.peer, Peer::Rogue(_));
        Ok(())
    }

    /// Lets a peer write what it has to say.
    fn flush(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
        let seat = self.connections[connection].peer;
        let mut bytes = core::mem::take(&mut self.buffer);
        loop {
            let entry = &mut self.connections[connection];
            if !entry.client || self.seats[seat].connection != Some(connection) {
                break;
            }
            let room = entry.up.room().min(1 << 20);
            if room == 0 {
                entry.peer_blocked = true;
                break;
            }
            match &mut self.seats[seat].peer {
                Peer::Actor(actor) => actor.write(room, &mut bytes),
                Peer::Rogue(rogue) => rogue.write(room, &mut bytes),
            }
            if bytes.is_empty() {
                break;
            }
            let due = self.now + self.random.range(0, self.plan.network.delay_max);
            entry.up.write(due, &bytes);
            self.plan_read(due, connection, End::Server);
            let more = match &self.seats[seat].peer {
                Peer::Actor(actor) => actor.has_more_to_write(),
                Peer::Rogue(rogue) => rogue.has_more_to_write(),
            };
            if !more {
                break;
            }
        }
        self.buffer = bytes;
        self.plan_deadline(seat);
        let wants_close = match &self.seats[seat].peer {
            Peer::Actor(actor) => actor.wants_close(),
            Peer::Rogue(_) => false,
        };
        if wants_close && self.seats[seat].connection == Some(connection) {
            self.hang_up(trace, connection)?;
        }
        Ok(())
    }

    fn act(&mut self, trace: &mut Trace, seat: usize) -> Result<(), Violation> {
        let calm = self.act != Act::Storm;
        if self.seats[seat].done {
            return Ok(());
        }
        if seat == self.warden() && !self.founded && self.has_founded() {
            self.founded = true;
            for other in (0..self.seats.len()).filter(|other| *other != seat) {
                let wait = self.random.below(SECOND);
                self.plan_event(self.now + wait, Event::Act(other));
            }
        }
        let wait = match &mut self.seats[seat].peer {
            Peer::Actor(actor) => actor.pause(calm),
            Peer::Rogue(_) => 100 * MILLISECOND,
        };
        self.plan_event(self.now + wait, Event::Act(seat));
        match self.seats[seat].connection {
            None if matches!(self.act, Act::Leaving { .. }) => self.seats[seat].done = true,
            None => self.connect(trace, seat)?,
            Some(connection) => {
                if self.connections[connection].client {
                    self.tell(trace, seat, |peer, scene| match peer {
                        Peer::Actor(actor) => actor.act(scene),
                        Peer::Rogue(rogue) => rogue.act(scene.now.monotonic.0),
                    })?;
                    self.flush(trace, connection)?;
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, trace: &mut Trace, seat: usize) -> Result<(), Violation> {
        let refused = self.act == Act::Storm
            && seat != self.warden()
            && self.random.chance(self.plan.faults.refused, 1000);
        let address = Address([u8::try_from(seat % 200).unwrap_or(0); 16]);
        let stranger = if refused {
            self.faults[FaultKind::Refuse as usize] += 1;
            None
        } else {
            self.door.accepted(self.reading(), address).ok()
        };
        let Some(stranger) = stranger else {
            trace.note(Fact::Refused { peer: seat });
            return Ok(());
        };
        let connection = self.connections.len();
        let capacity = self.plan.network.capacity;
        self.connections.push(Connection {
            peer: seat,
            address,
            server: Server::Stranger(stranger),
            client: true,
            up: Pipe::new(capacity),
            down: Pipe::new(capacity),
            sending: None,
            closing: false,
            blocked: false,
            peer_blocked: false,
            frozen_until: 0,
            stalled_until: 0,
            readable_at: [u64::MAX; 2],
        });
        trace.note(Fact::Connected {
            peer: seat,
            connection,
        });
        self.seats[seat].connection = Some(connection);
        let now = self.reading();
        match &mut self.seats[seat].peer {
            Peer::Actor(actor) => actor.connect(now),
            Peer::Rogue(rogue) => {
                self.faults[FaultKind::Rogue as usize] += 1;
                trace.note(Fact::Rogue {
                    peer: seat,
                    what: rogue.name(),
                });
                rogue.connect(now.monotonic.0);
            }
        }
        if seat != self.warden() {
            self.plan_faults(connection);
        }
        self.plan_turn();
        self.flush(trace, connection)
    }

    fn deadline(&mut self, trace: &mut Trace, seat: usize) -> Result<(), Violation> {
        self.seats[seat].deadline = u64::MAX;
        let Some(connection) = self.seats[seat].connection else {
            return Ok(());
        };
        self.tell(trace, seat, |peer, scene| match peer {
            Peer::Actor(actor) => actor.expire(scene),
            Peer::Rogue(_) => Ok(()),
        })?;
        self.flush(trace, connection)
    }

    /// Tells a peer something.
    fn tell(
        &mut self,
        trace: &mut Trace,
        seat: usize,
        what: impl FnOnce(&mut Peer, &mut Scene<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let excused = match self.act {
            Act::Storm => true,
            Act::Calm { since } | Act::Leaving { since } => self.now - since < EXCUSED_FOR,
        };
        let mut scene = Scene {
            now: self.reading(),
            model: &mut self.model,
            trace,
            connection: self.seats[seat].connection.unwrap_or(usize::MAX),
            destinations: &self.plan.destinations,
            calm: self.act != Act::Storm,
            excused,
        };
        what(&mut self.seats[seat].peer, &mut scene)
    }

    // Faults.

    fn plan_faults(&mut self, connection: usize) {
        let plan = self.plan.faults;
        for (kind, mean) in [
            (FaultKind::Reset, plan.reset),
            (FaultKind::Vanish, plan.vanish),
            (FaultKind::Blackhole, plan.blackhole),
            (FaultKind::Stall, plan.stall),
        ] {
            if let Some(mean) = mean {
                let wait = self.random.wait(mean);
                self.plan_event(self.now + wait, Event::Fault(connection, kind));
            }
        }
    }

    fn fault(
        &mut self,
        trace: &mut Trace,
        connection: usize,
        kind: FaultKind,
    ) -> Result<(), Violation> {
        let entry = &self.connections[connection];
        if self.act != Act::Storm || !entry.client || entry.server == Server::Gone {
            return Ok(());
        }
        let seat = entry.peer;
        self.faults[kind as usize] += 1;
        trace.note(Fact::Fault {
            kind,
            connection: Some(connection),
        });
        if let Peer::Rogue(rogue) = &mut self.seats[seat].peer {
            rogue.excuse();
        }
        match kind {
            FaultKind::Reset => {
                self.tear(connection);
                self.model.link_breaks(connection);
                for end in [End::Server, End::Client] {
                    let wait = self.random.range(0, 5 * MILLISECOND);
                    self.plan_read(self.now + wait, connection, end);
                }
            }
            FaultKind::Vanish => {
                self.tear_up(connection);
                self.connections[connection].client = false;
                self.connections[connection].down.die();
                self.vanish(trace, seat);
                let wait = self.random.range(0, nanoseconds(limits::VANISHED_TIMEOUT));
                self.plan_event(self.now + wait, Event::Gone(connection, End::Server));
            }
            FaultKind::Blackhole => {
                let wait = self.random.magnitude(MILLISECOND, 15 * SECOND);
                self.connections[connection].frozen_until = self.now + wait;
                if self.random.chance(1, 2) {
                    // It does not come back: each end gives up in its own time.
                    self.tear(connection);
                    self.model.link_breaks(connection);
                    for end in [End::Server, End::Client] {
                        let wait = self.random.range(0, wait);
                        self.plan_event(self.now + wait, Event::Gone(connection, end));
                    }
                }
            }
            FaultKind::Stall => {
                let wait = self.random.magnitude(MILLISECOND, 15 * SECOND);
                self.connections[connection].stalled_until = self.now + wait;
            }
            _ => {}
        }
        let mean = match kind {
            FaultKind::Stall => self.plan.faults.stall,
            FaultKind::Blackhole => self.plan.faults.blackhole,
            _ => None,
        };
        if let Some(mean) = mean {
            let wait = self.random.wait(mean);
            self.plan_event(self.now + wait, Event::Fault(connection, kind));
        }
        Ok(())
    }

    /// Loses any part of what is under way in both directions, and ends both.
    fn tear(&mut self, connection: usize) {
        self.tear_up(connection);
        let entry = &mut self.connections[connection];
        let kept = self.random.count(0, entry.down.waiting());
        entry.down.cut(kept);
        entry.down.end();
    }

    fn tear_up(&mut self, connection: usize) {
        let entry = &mut self.connections[connection];
        let kept = self.random.count(0, entry.up.waiting());
        entry.up.cut(kept);
        entry.up.end();
    }

    fn vanish(&mut self, trace: &mut Trace, seat: usize) {
        let mut scene = Scene {
            now: self.reading(),
            model: &mut self.model,
            trace,
            connection: self.seats[seat].connection.unwrap_or(usize::MAX),
            destinations: &self.plan.destinations,
            calm: false,
            excused: true,
        };
        match &mut self.seats[seat].peer {
            Peer::Actor(actor) => actor.vanish(&mut scene),
            Peer::Rogue(_) => self.seats[seat].done = true,
        }
        self.seats[seat].connection = None;
    }

    fn pause(&mut self, trace: &mut Trace) {
        if self.act != Act::Storm {
            return;
        }
        let wait = self.random.magnitude(MILLISECOND, 3 * SECOND);
        self.paused_until = self.now + wait;
        self.faults[FaultKind::Pause as usize] += 1;
        trace.note(Fact::Fault {
            kind: FaultKind::Pause,
            connection: None,
        });
        for seat in &mut self.seats {
            if let Peer::Rogue(rogue) = &mut seat.peer {
                rogue.excuse();
            }
        }
        if let Some(mean) = self.plan.faults.pause {
            let wait = self.random.wait(mean);
            self.plan_event(self.paused_until + wait, Event::Pause);
        }
    }

    fn calm(&mut self, trace: &mut Trace) {
        trace.note(Fact::Calm);
        self.act = Act::Calm { since: self.now };
        self.plan.network.delay_max = self.plan.network.delay_max.min(MILLISECOND);
        self.paused_until = 0;
        for connection in 0..self.connections.len() {
            let entry = &mut self.connections[connection];
            entry.frozen_until = 0;
            entry.stalled_until = 0;
            for end in [End::Server, End::Client] {
                self.plan_read(self.now, connection, end);
            }
        }
    }

    // The end.

    fn is_over(&mut self, trace: &mut Trace) -> Result<bool, Violation> {
        match self.act {
            Act::Storm => Ok(false),
            Act::Calm { since } => {
                if self.is_drained()? {
                    self.leave(trace);
                } else if self.now - since > DRAINED_WITHIN {
                    return Err(Violation::new(Rule::Drained, self.describe()));
                }
                Ok(false)
            }
            Act::Leaving { since } => {
                if self.shard.is_drained() && self.door.links() == 0 {
                    self.check_memory()?;
                    return Ok(true);
                }
                if self.now - since > DRAINED_WITHIN {
                    let links = self.shard.links();
                    return Err(Violation::new(Rule::Drained, format!("{links} links stay")));
                }
                Ok(false)
            }
        }
    }

    /// Whether every peer is at rest, and the broker says that nothing is unsettled.
    fn is_drained(&mut self) -> Result<bool, Violation> {
        let warden = self.warden();
        let Peer::Actor(actor) = &mut self.seats[warden].peer else {
            return Ok(false);
        };
        let Some(stats) = actor.take_stats() else {
            return Ok(false);
        };
        self.last_stats = Some(stats.clone());
        let resting = self.seats.iter().all(|seat| match &seat.peer {
            Peer::Actor(actor) => actor.is_connected() && actor.is_at_rest(&self.model),
            Peer::Rogue(_) => seat.done,
        });
        let settled = stats
            .destinations
            .iter()
            .all(|row| row.unsettled == 0 || &*row.destination.name == rogue::DESTINATION);
        // An answer may be older than the rest of the peers; the next one is not.
        let before = self.resting_stats.take();
        if resting {
            self.resting_stats = Some(stats.clone());
        }
        let steady = before.is_some_and(|before| before.destinations == stats.destinations);
        if !resting || !settled || !steady {
            return Ok(false);
        }
        let stored: Vec<u64> = self
            .plan
            .destinations
            .iter()
            .map(|plan| {
                stats
                    .destinations
                    .iter()
                    .find(|row| row.destination == plan.destination)
                    .map_or(0, |row| row.stored)
            })
            .collect();
        self.model.drained(&stored)?;
        Ok(true)
    }

    fn leave(&mut self, trace: &mut Trace) {
        let by_stop = self.plan.ends_by_stop;
        trace.note(Fact::Leaving { by_stop });
        self.act = Act::Leaving { since: self.now };
        if by_stop {
            self.shard.stop(self.reading());
            self.plan_turn();
            return;
        }
        for seat in 0..self.seats.len() {
            let mut scene = Scene {
                now: self.reading(),
                model: &mut self.model,
                trace,
                connection: self.seats[seat].connection.unwrap_or(usize::MAX),
                destinations: &self.plan.destinations,
                calm: true,
                excused: true,
            };
            if let Peer::Actor(actor) = &mut self.seats[seat].peer {
                actor.leave(&mut scene);
            }
            self.plan_event(self.now, Event::Act(seat));
        }
    }

    /// All that is not retained came back, except a chunk that each partition
    /// writes on.
    fn check_memory(&self) -> Result<(), Violation> {
        self.shard.invariants();
        self.shard.audit();
        let mut most = 1; // What rogues have stored.
        for plan in &self.plan.destinations {
            let retained = crate::random::size(plan.retain.unwrap_or(0));
            // Half of a chunk may be unused where a large message follows, and what
            // is retained ends with one whole message.
            let per_partition = if retained == 0 {
                1
            } else {
                20 + 2 * retained / (64 * 1024)
            };
            most += per_partition * plan.partitions as usize;
        }
        let held = self.chunks - self.shard.chunks_free();
        if held > most {
            return Err(Violation::new(
                Rule::Memory,
                format!("{held} chunks are held, at most {most} should be"),
            ));
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let peers: Vec<String> = self
            .seats
            .iter()
            .map(|seat| match &seat.peer {
                Peer::Actor(actor) => actor.describe(&self.model),
                Peer::Rogue(rogue) => format!("rogue {} done {}", rogue.name(), seat.done),
            })
            .collect();
        format!(
            "after {} s of calm; {} chunks free of {}; {}; {:?}",
            DRAINED_WITHIN / SECOND,
            self.shard.chunks_free(),
            self.chunks,
            peers.join(" "),
            self.last_stats.as_ref().map(|stats| &stats.destinations)
        )
    }

    fn report(&self, trace: &Trace) -> Report {
        Report {
            seeds: 1,
            hash: trace.hash(),
            facts: trace.facts(),
            turns: self.turns,
            virtual_time: self.now,
            sends: self.model.tally.sends,
            stored: self.model.tally.stored,
            failed: self.model.tally.failed,
            unknown: self.model.tally.unknown,
            handed: self.model.tally.handed,
            redelivered: self.model.tally.redelivered,
            acknowledged: self.model.tally.acknowledged,
            confirmed: self.model.tally.confirmed,
            connections: self.connections.len() as u64,
            thinnings: self.shard.counters().read(Counter::Thinnings),
            chunks_most: self.chunks - self.chunks_low,
            faults: self.faults,
        }
    }

    // Small things.

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
            Peer::Actor(actor) => actor.next_deadline(),
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

fn nanoseconds(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a time limit is shorter than 584 years")
}
