//! A shard and its thread, as a driver runs them.
//!
//! ```text
//!            bytes, answers of the kernel, a doorbell, a timer
//!  asleep ─────────────────────────────────────────────────────> about to turn
//!    ^                                                                 │ in its own time
//!    └── no work, nothing in the rings <── meet, let in, expire, turn ─┘
//!                                             └─> doorbells of others
//! ```
//!
//! How long a thread takes from a fact to its turn is drawn anew each time, so that
//! any shard may be ahead of any other; one that is paused does nothing at all, and
//! then catches up. A thread that sleeps is woken by nothing that a driver would not
//! wake it by: what was put into its rings without a word stays there for ever.

use std::collections::{BTreeMap, VecDeque};

use courser_core::door::Door;
use courser_core::id::{Handle, Installation, ShardIndex};
use courser_core::limits;
use courser_core::mesh;
use courser_core::shard::{Attached, Output, Shard, ShardConfig};

use super::{AUDIT_EVERY, End, Event, Server, World};
use crate::plan::MICROSECOND;
use crate::random::Random;
use crate::trace::{Fact, Trace};
use crate::violation::{Rule, Violation};

/// See the module.
pub(super) struct Worker {
    pub(super) shard: Shard,
    /// Connections by the handles of their links.
    pub(super) links: BTreeMap<u32, usize>,
    /// Connections that the door let in or another shard handed over.
    inbox: VecDeque<(usize, Attached)>,
    /// When it turns next; `None` while it sleeps.
    turn_at: Option<u64>,
    pub(super) paused_until: u64,
    /// Was told to stop, and does so in its next turn.
    stops: bool,
    pub(super) turns: u64,
    /// Records of other shards that it took in.
    pub(super) records: u64,
    chunks: usize,
    chunks_low: usize,
}

impl Worker {
    fn new(shard: Shard) -> Self {
        let chunks = shard.chunks_free();
        Self {
            shard,
            links: BTreeMap::new(),
            inbox: VecDeque::new(),
            turn_at: None,
            paused_until: 0,
            stops: false,
            turns: 0,
            records: 0,
            chunks,
            chunks_low: chunks,
        }
    }

    /// All shards of a broker, with nothing in them.
    pub(super) fn all(installation: Installation, shards: u16, random: &mut Random) -> Vec<Self> {
        let ends = mesh::mesh(shards).expect("the rings have a size that rings can have");
        let mut all = Vec::with_capacity(ends.len());
        for ends in ends {
            let config = ShardConfig {
                installation,
                shard: ends.shard(),
                memory: limits::MEMORY_MIN,
                hash_seed: random.word(),
                auto_create: true,
            };
            let mut shard = Shard::new(config).expect("the least memory is enough");
            shard.join(ends);
            all.push(Self::new(shard));
        }
        all
    }

    /// Chunks that are in use, beside those of the journal.
    pub(super) fn chunks_held(&self) -> usize {
        self.chunks - self.shard.chunks_free() - self.shard.journal_chunks()
    }

    /// The most chunks that were in use.
    pub(super) fn chunks_most(&self) -> usize {
        self.chunks - self.chunks_low
    }

    /// Whether nothing is left for it to do, nor for others to do for it.
    pub(super) fn rests(&self) -> bool {
        !self.shard.has_work() && self.shard.mesh_is_empty() && self.inbox.is_empty()
    }
}

impl World {
    /// A turn of a shard soon: something has happened to it.
    pub(super) fn plan_turn(&mut self, shard: usize) {
        let most = self.plan.turn_max[shard].max(MICROSECOND);
        let wait = self.random.range(1, most);
        self.plan_turn_at(shard, self.now + wait);
    }

    fn plan_turn_at(&mut self, shard: usize, time: u64) {
        let turn_at = &mut self.workers[shard].turn_at;
        if turn_at.is_none_or(|planned| time < planned) {
            *turn_at = Some(time);
            self.plan_event(time, Event::Turn(shard));
        }
    }

    /// Tells every shard to stop.
    pub(super) fn stop(&mut self) {
        for shard in 0..self.workers.len() {
            self.workers[shard].stops = true;
            self.plan_turn(shard);
        }
    }

    pub(super) fn turn(&mut self, trace: &mut Trace, index: usize) -> Result<(), Violation> {
        let now = self.reading();
        let worker = &mut self.workers[index];
        // One that was planned for later and moved forward has come already.
        if worker.turn_at.is_none_or(|planned| planned > self.now) {
            return Ok(());
        }
        worker.turn_at = None;
        worker.turns += 1;
        let records = worker.shard.meet(now);
        worker.records += u64::from(records);
        while let Some((connection, attached)) = self.workers[index].inbox.pop_front() {
            self.let_in(trace, index, connection, attached)?;
        }
        let worker = &mut self.workers[index];
        worker.shard.expire(now);
        if core::mem::take(&mut worker.stops) {
            worker.shard.stop(now);
        }
        worker.shard.turn(now);
        self.serve_disk(index);
        while let Some(output) = self.workers[index].shard.output() {
            self.output(trace, index, output)?;
        }
        while let Some(other) = self.workers[index].shard.next_wake() {
            self.plan_turn(usize::from(other.0));
        }
        let worker = &mut self.workers[index];
        worker.shard.invariants();
        if worker.turns.is_multiple_of(AUDIT_EVERY) {
            worker.shard.audit();
        }
        worker.chunks_low = worker.chunks_low.min(worker.shard.chunks_free());
        trace.note(Fact::Turn {
            shard: index,
            records,
            links: worker.shard.links(),
            chunks_free: worker.shard.chunks_free(),
        });
        if worker.shard.has_work() || !worker.shard.mesh_is_empty() {
            self.plan_turn(index);
        }
        if let Some(next) = self.workers[index].shard.next_expiry() {
            self.plan_turn_at(index, next.0.max(self.now + 1));
        }
        self.check_awake()
    }

    /// Every doorbell was rung: nobody sleeps who has something to read.
    fn check_awake(&self) -> Result<(), Violation> {
        let asleep = (self.workers.iter())
            .position(|worker| worker.turn_at.is_none() && !worker.shard.mesh_is_empty());
        match asleep {
            Some(shard) => Err(Violation::new(
                Rule::Awake,
                format!("shard {shard} sleeps and has something to read"),
            )),
            None => Ok(()),
        }
    }

    fn output(&mut self, trace: &mut Trace, shard: usize, output: Output) -> Result<(), Violation> {
        let (Output::Send(link) | Output::Close { link, .. } | Output::HandOver(link)) = output;
        let Some(connection) = self.workers[shard].links.get(&link.0).copied() else {
            return Ok(());
        };
        match output {
            Output::Send(_) => self.send(connection),
            Output::Close { flush, .. } => {
                trace.note(Fact::Close { connection, flush });
                self.broker_closes(trace, connection, flush)
            }
            Output::HandOver(_) => {
                // Its receive is cancelled first, and its last completion comes.
                let wait = self.random.range(0, self.submit_max());
                self.plan_event(self.now + wait, Event::Part(connection));
                Ok(())
            }
        }
    }

    /// A connection that moves to another shard has nothing under way any more.
    pub(super) fn part(&mut self, trace: &mut Trace, connection: usize) {
        let entry = &self.connections[connection];
        let Server::Link(from, link) = entry.server else {
            return;
        };
        let is_under_way = entry.sending.is_some();
        let moving = self.workers[from].shard.hand_over(link);
        // Its end was decided meanwhile.
        let Some((to, attached)) = moving else {
            return;
        };
        debug_assert!(!is_under_way, "what was answered has left");
        self.workers[from].links.remove(&link.0);
        trace.note(Fact::Parted { connection, to });
        self.moves += 1;
        self.hand_over(connection, to, attached);
    }

    /// Gives a connection to a shard, which takes it in its next turn.
    pub(super) fn hand_over(&mut self, connection: usize, to: ShardIndex, attached: Attached) {
        let to = usize::from(to.0);
        self.connections[connection].server = Server::HandedTo(to);
        self.workers[to].inbox.push_back((connection, attached));
        self.plan_turn(to);
    }

    fn let_in(
        &mut self,
        trace: &mut Trace,
        shard: usize,
        connection: usize,
        attached: Attached,
    ) -> Result<(), Violation> {
        let now = self.reading();
        if self.connections[connection].server != Server::HandedTo(shard) {
            return Ok(());
        }
        let worker = &mut self.workers[shard];
        match worker.shard.attached(now, attached) {
            Ok(link) => {
                trace.note(Fact::HandedOver {
                    connection,
                    shard,
                    link,
                });
                let before = worker.links.insert(link.0, connection);
                self.connections[connection].server = Server::Link(shard, link);
                self.plan_read(self.now, connection, End::Server);
                check_new(before, link)
            }
            Err(refusal) => {
                let bytes = Door::farewell(refusal);
                self.door.left(self.connections[connection].address);
                self.say_farewell(connection, &bytes);
                Ok(())
            }
        }
    }
}

fn check_new(before: Option<usize>, link: Handle) -> Result<(), Violation> {
    match before {
        None => Ok(()),
        Some(_) => Err(Violation::new(
            Rule::Invariant,
            format!("link {link} was given out twice"),
        )),
    }
}
