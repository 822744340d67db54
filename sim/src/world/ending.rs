//! The end of a run: when everything is drained, what must hold then, and what is
//! reported.

use courser_core::counters::Counter;

use super::disk::Disk;
use super::{Act, DRAINED_WITHIN, Event, Figures, Past, Peer, Worker, World};
use crate::actor::Scene;
use crate::passing;
use crate::plan::{FaultKind, SECOND};
use crate::report::Report;
use crate::trace::Fact;
use crate::trace::Trace;
use crate::violation::Rule;
use crate::violation::Violation;

impl World {
    pub(super) fn is_over(&mut self, trace: &mut Trace) -> Result<bool, Violation> {
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
                let links: usize = self.workers.iter().map(|it| it.shard.links()).sum();
                let rest =
                    self.workers.iter().all(Worker::rests) && self.disks.iter().all(Disk::rests);
                if links == 0 && rest && self.door.links() == 0 {
                    self.check_memory()?;
                    return Ok(true);
                }
                if self.now - since > DRAINED_WITHIN {
                    return Err(Violation::new(Rule::Drained, format!("{links} links stay")));
                }
                Ok(false)
            }
        }
    }

    /// Whether every peer is at rest, and the shards say that nothing is unsettled.
    fn is_drained(&mut self) -> Result<bool, Violation> {
        for (warden, answer) in self.wardens().zip(&mut self.answers) {
            if let Peer::Actor(actor) = &mut self.seats[warden].peer
                && let Some(stats) = actor.take_stats()
            {
                *answer = Some(stats);
            }
        }
        if self.answers.iter().any(Option::is_none) {
            return Ok(false);
        }
        let figures = self.figures();
        // What came and went has gone.
        let passing = passing::destinations();
        let rows = (self.answers.iter().flatten()).flat_map(|it| &it.destinations);
        let are_gone = !rows
            .into_iter()
            .any(|row| passing.contains(&row.destination));
        self.answers.fill_with(|| None);
        self.last_figures.clone_from(&figures);
        let resting = self.seats.iter().all(|seat| match &seat.peer {
            Peer::Actor(actor) => actor.is_connected() && actor.is_at_rest(&self.model),
            Peer::Rogue(_) => seat.done,
        });
        let settled = are_gone && figures.iter().all(|it| it.unsettled == 0);
        // What a shard says may be older than the rest of the peers, and so may be what
        // another says in the next round; of the round after that nothing is.
        let rounds = match self.resting.take() {
            Some((before, rounds)) if before == figures => rounds + 1,
            _ => 0,
        };
        let stored: Vec<u64> = figures.iter().map(|it| it.stored).collect();
        if resting {
            self.resting = Some((figures, rounds));
        }
        if !resting || !settled || rounds < 2 {
            return Ok(false);
        }
        self.model.drained(&stored)?;
        Ok(true)
    }

    /// What all shards together say of each destination.
    fn figures(&self) -> Vec<Figures> {
        let mut all = vec![Figures::default(); self.plan.destinations.len()];
        for row in self
            .answers
            .iter()
            .flatten()
            .flat_map(|it| &it.destinations)
        {
            let mut plans = self.plan.destinations.iter();
            if let Some(index) = plans.position(|plan| plan.destination == row.destination) {
                all[index].stored += row.stored;
                all[index].unsettled += row.unsettled;
            }
        }
        all
    }

    fn leave(&mut self, trace: &mut Trace) {
        let by_stop = self.plan.ends_by_stop;
        trace.note(Fact::Leaving { by_stop });
        self.act = Act::Leaving { since: self.now };
        if by_stop {
            self.stop();
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

    /// Nobody is left anywhere, and all that is not retained came back, except a chunk
    /// that each partition writes on.
    fn check_memory(&self) -> Result<(), Violation> {
        let mut most = 1; // What rogues have stored.
        let cuts = [FaultKind::Cut, FaultKind::CutBehind].map(|kind| self.faults[kind as usize]);
        let cuts = crate::random::size(cuts.iter().sum());
        for plan in &self.plan.destinations {
            let retained = crate::random::size(plan.retain.unwrap_or(0));
            // Half of a chunk may be unused where a large message follows, and what
            // is retained ends with one whole message.
            let per_partition = if retained == 0 {
                1
            } else {
                // What is behind a hole begins a chunk.
                let holes = if plan.has_holes() { cuts } else { 0 };
                20 + 2 * retained / (64 * 1024) + holes
            };
            let here = plan.partitions.div_ceil(self.plan.shards.into());
            most += per_partition * here as usize;
        }
        for (index, worker) in self.workers.iter().enumerate() {
            worker.shard.audit();
            let handles = worker.shard.handles();
            if handles > 0 {
                return Err(Violation::new(
                    Rule::Memory,
                    format!("{handles} producers or consumers are left on shard {index}"),
                ));
            }
            let held = worker.chunks_held();
            if held > most {
                return Err(Violation::new(
                    Rule::Memory,
                    format!("{held} chunks are held by shard {index}, at most {most} should be"),
                ));
            }
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
            "after {} s of calm; {:?} chunks are in use; {}; {:?}",
            DRAINED_WITHIN / SECOND,
            (self.workers.iter().map(Worker::chunks_held)).collect::<Vec<_>>(),
            peers.join(" "),
            self.plan
                .destinations
                .iter()
                .zip(&self.last_figures)
                .collect::<Vec<_>>()
        )
    }

    /// What the shards of all brokers have done so far.
    pub(super) fn done(&self) -> Past {
        let mut done = self.past;
        for worker in &self.workers {
            let counters = worker.shard.counters();
            done.turns += worker.turns;
            done.records += worker.records;
            done.thinnings += counters.read(Counter::Thinnings);
            done.retries += counters.read(Counter::Retries);
            done.chunks_most = done.chunks_most.max(worker.chunks_most());
        }
        done
    }

    pub(super) fn report(&self, trace: &Trace) -> Report {
        let (mut late, mut reconnects) = (0, 0);
        for seat in &self.seats {
            if let Peer::Actor(actor) = &seat.peer {
                let counts = actor.counts();
                late += counts.0;
                reconnects += counts.1;
            }
        }
        let done = self.done();
        Report {
            seeds: 1,
            shards: self.workers.len() as u64,
            records: done.records,
            moves: self.moves,
            hash: trace.hash(),
            facts: trace.facts(),
            turns: done.turns,
            virtual_time: self.now,
            sends: self.model.tally.sends,
            in_memory: self.model.tally.in_memory,
            stored: self.model.tally.stored,
            failed: self.model.tally.failed,
            unknown: self.model.tally.unknown,
            handed: self.model.tally.handed,
            redelivered: self.model.tally.redelivered,
            acknowledged: self.model.tally.acknowledged,
            confirmed: self.model.tally.confirmed,
            connections: self.connections.len() as u64,
            thinnings: done.thinnings,
            checkpoints: self.disks.iter().map(Disk::checkpoints).sum(),
            retries: done.retries,
            late,
            reconnects,
            placeless: self.model.tally.placeless,
            given_back: self.model.tally.given_back,
            producers_resumed: self.model.tally.producers_resumed,
            consumers_resumed: self.model.tally.consumers_resumed,
            tenures: self.model.tally.tenures,
            takers: self.model.tally.takers,
            turned_away: self.model.tally.turned_away,
            fenced: self.model.tally.fenced,
            polls: self.model.tally.polls,
            nothings: self.model.tally.nothings,
            deletions: self.model.tally.deletions,
            chunks_most: done.chunks_most,
            faults: self.faults,
        }
    }
}
