//! Faults: when each strikes, and what it does to a connection.

use courser_core::id::Installation;
use courser_core::limits;

use super::{Act, End, Event, Peer, Server, Worker, World, nanoseconds, new_door};
use crate::actor::Scene;
use crate::plan::FaultKind;
use crate::plan::MILLISECOND;
use crate::plan::SECOND;
use crate::trace::Fact;
use crate::trace::Trace;
use crate::violation::Violation;

impl World {
    pub(super) fn plan_faults(&mut self, connection: usize) {
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

    pub(super) fn fault(
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
            FaultKind::Reset if self.random.chance(1, 2) => {
                self.faults[FaultKind::Linger as usize] += 1;
                let wait = self.random.magnitude(MILLISECOND, 2 * SECOND);
                let longer = self
                    .random
                    .magnitude(MILLISECOND, nanoseconds(limits::VANISHED_TIMEOUT));
                self.connections[connection].frozen_until = self.now + wait + longer;
                self.plan_event(self.now + wait, Event::Break(connection));
            }
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

    /// The client gives up a connection that nothing passes on. What is under way to
    /// the broker arrives in part once it does, behind whatever the client says on
    /// another connection.
    pub(super) fn broken_off(
        &mut self,
        trace: &mut Trace,
        connection: usize,
    ) -> Result<(), Violation> {
        let entry = &self.connections[connection];
        if self.act != Act::Storm || !entry.client || entry.server == Server::Gone {
            return Ok(());
        }
        self.tear(connection);
        self.model.link_breaks(connection);
        self.client_gone(trace, connection)
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

    pub(super) fn pause(&mut self, trace: &mut Trace) {
        if self.act != Act::Storm {
            return;
        }
        let until = self.now + self.random.magnitude(MILLISECOND, 3 * SECOND);
        // The whole process, or one of its threads.
        let one = self.random.index(2 * self.workers.len());
        let all = one >= self.workers.len();
        for (shard, worker) in self.workers.iter_mut().enumerate() {
            if all || shard == one {
                worker.paused_until = worker.paused_until.max(until);
            }
        }
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
            self.plan_event(until + wait, Event::Pause);
        }
    }

    /// The broker dies with all that it holds, and another installation begins. Who
    /// was connected hears of it as of any broken connection; nobody but the warden,
    /// who founds the destinations again, is let in before they have their shapes.
    pub(super) fn restart(&mut self, trace: &mut Trace) {
        if self.act != Act::Storm || !self.founded {
            return;
        }
        self.faults[FaultKind::Restart as usize] += 1;
        trace.note(Fact::Fault {
            kind: FaultKind::Restart,
            connection: None,
        });
        self.lose_connections(None);
        self.restarts += 1;
        self.past = self.done();
        let installation = Installation(self.installation.0 + u128::from(self.restarts));
        self.workers = Worker::all(installation, self.plan.shards, &mut self.random);
        self.door = new_door(&self.plan, self.random.word());
        self.door_at = None;
        self.model.begins(installation);
        self.founded = false;
        let wardens = self.wardens();
        for (index, seat) in self.seats.iter_mut().enumerate() {
            match &mut seat.peer {
                Peer::Actor(actor) if wardens.contains(&index) => actor.found_again(),
                Peer::Actor(_) => {}
                Peer::Rogue(rogue) => rogue.excuse(),
            }
        }
    }

    /// The broker is gone: each client hears of that in its own time, that of `told` behind
    /// all that is under way to it.
    pub(super) fn lose_connections(&mut self, told: Option<usize>) {
        for connection in 0..self.connections.len() {
            if self.connections[connection].server == Server::Gone {
                continue;
            }
            if told == Some(connection) {
                self.tear_up(connection);
                self.connections[connection].down.end();
            } else {
                self.tear(connection);
            }
            let entry = &mut self.connections[connection];
            entry.server = Server::Gone;
            entry.sending = None;
            entry.blocked = false;
            let wait = self.random.range(0, 5 * MILLISECOND);
            self.plan_read(self.now + wait, connection, End::Client);
        }
    }

    pub(super) fn calm(&mut self, trace: &mut Trace) {
        trace.note(Fact::Calm);
        self.act = Act::Calm { since: self.now };
        self.plan.network.delay_max = self.plan.network.delay_max.min(MILLISECOND);
        for most in &mut self.plan.turn_max {
            *most = (*most).min(5 * MILLISECOND);
        }
        if let Some(disk) = &mut self.plan.disk {
            disk.operation_max = disk.operation_max.min(MILLISECOND);
        }
        for worker in &mut self.workers {
            worker.paused_until = 0;
        }
        for connection in 0..self.connections.len() {
            let entry = &mut self.connections[connection];
            entry.frozen_until = 0;
            entry.stalled_until = 0;
            for end in [End::Server, End::Client] {
                self.plan_read(self.now, connection, end);
            }
        }
    }
}
