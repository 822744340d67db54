//! The end of a run: when everything is drained, what must hold then, and what is
//! reported.

use courser_core::counters::Counter;

use super::{Act, DRAINED_WITHIN, Event, Peer, World};
use crate::actor::Scene;
use crate::plan::SECOND;
use crate::report::Report;
use crate::rogue;
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

    pub(super) fn report(&self, trace: &Trace) -> Report {
        let (mut late, mut reconnects) = (0, 0);
        for seat in &self.seats {
            if let Peer::Actor(actor) = &seat.peer {
                let counts = actor.counts();
                late += counts.0;
                reconnects += counts.1;
            }
        }
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
            thinnings: self.thinnings + self.shard.counters().read(Counter::Thinnings),
            retries: self.retries + self.shard.counters().read(Counter::Retries),
            late,
            reconnects,
            placeless: self.model.tally.placeless,
            given_back: self.model.tally.given_back,
            producers_resumed: self.model.tally.producers_resumed,
            consumers_resumed: self.model.tally.consumers_resumed,
            chunks_most: self.chunks - self.chunks_low,
            faults: self.faults,
        }
    }
}
