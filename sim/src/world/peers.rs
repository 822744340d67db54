//! The peers: bytes for them, their acts and deadlines, and their coming and going.

use courser_core::door::Address;

use super::{Act, Connection, EXCUSED_FOR, End, Event, Peer, Server, World};
use crate::actor::{Actor, Scene};
use crate::network::Pipe;
use crate::plan::FaultKind;
use crate::plan::MILLISECOND;
use crate::plan::SECOND;
use crate::trace::Fact;
use crate::trace::Trace;
use crate::trace::digest;
use crate::violation::Violation;

impl World {
    /// Bytes for the client.
    pub(super) fn read_down(
        &mut self,
        trace: &mut Trace,
        connection: usize,
    ) -> Result<(), Violation> {
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
    pub(super) fn client_gone(
        &mut self,
        trace: &mut Trace,
        connection: usize,
    ) -> Result<(), Violation> {
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
        if !entry.done {
            self.plan_deadline(seat);
        }
        Ok(())
    }

    /// Lets a peer write what it has to say.
    pub(super) fn flush(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
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
        let has_finished =
            matches!(&self.seats[seat].peer, Peer::Rogue(rogue) if rogue.has_finished());
        let entry = &mut self.connections[connection];
        if has_finished && entry.client && !entry.half_closed {
            entry.half_closed = true;
            entry.up.end();
            let due = entry.up.next_due().unwrap_or(self.now);
            self.plan_read(due.max(self.now), connection, End::Server);
        }
        let wants_close = match &self.seats[seat].peer {
            Peer::Actor(actor) => actor.wants_close(),
            Peer::Rogue(_) => false,
        };
        if wants_close && self.seats[seat].connection == Some(connection) {
            self.hang_up(trace, connection)?;
        }
        Ok(())
    }

    pub(super) fn act(&mut self, trace: &mut Trace, seat: usize) -> Result<(), Violation> {
        let calm = self.act != Act::Storm;
        if self.seats[seat].done {
            return Ok(());
        }
        if self.wardens().contains(&seat) && !self.founded && self.has_founded() {
            self.founded = true;
        }
        if self.founded && !self.begun {
            self.begun = true;
            let wardens = self.wardens();
            for other in (0..self.seats.len()).filter(|other| !wardens.contains(other)) {
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
            None if matches!(&self.seats[seat].peer, Peer::Actor(actor) if actor.is_waiting()) => {
                self.act_alone(trace, seat, |actor, scene| actor.act(scene))?;
            }
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
        let is_warden = self.wardens().contains(&seat);
        let refused = !is_warden
            && (!self.founded
                || self.act == Act::Storm && self.random.chance(self.plan.faults.refused, 1000));
        let address = Address([u8::try_from(seat % 200).unwrap_or(0); 16]);
        let stranger = if refused {
            self.faults[FaultKind::Refuse as usize] += 1;
            None
        } else {
            self.door.accepted(self.reading(), address).ok()
        };
        let Some(stranger) = stranger else {
            trace.note(Fact::Refused { peer: seat });
            let now = self.reading();
            if let Peer::Actor(actor) = &mut self.seats[seat].peer {
                actor.dial_failed(now);
            }
            return Ok(());
        };
        let connection = self.connections.len();
        let capacity = self.plan.network.capacity;
        self.connections.push(Connection {
            peer: seat,
            address,
            server: Server::Stranger(stranger),
            client: true,
            half_closed: false,
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
        if !is_warden {
            self.plan_faults(connection);
        }
        self.plan_door();
        self.flush(trace, connection)
    }

    pub(super) fn deadline(&mut self, trace: &mut Trace, seat: usize) -> Result<(), Violation> {
        self.seats[seat].deadline = u64::MAX;
        let Some(connection) = self.seats[seat].connection else {
            if self.seats[seat].done {
                return Ok(());
            }
            self.act_alone(trace, seat, |actor, scene| actor.expire(scene))?;
            let wanted = match &self.seats[seat].peer {
                Peer::Actor(actor) => actor.wants_connection(),
                Peer::Rogue(_) => None,
            };
            let leaving = matches!(self.act, Act::Leaving { .. });
            if !leaving && wanted.is_some_and(|at| at <= self.now) {
                self.connect(trace, seat)?;
                self.plan_deadline(seat);
            }
            return Ok(());
        };
        self.tell(trace, seat, |peer, scene| match peer {
            Peer::Actor(actor) => actor.expire(scene),
            Peer::Rogue(_) => Ok(()),
        })?;
        self.flush(trace, connection)
    }

    /// Has an actor do something that has no connection.
    fn act_alone(
        &mut self,
        trace: &mut Trace,
        seat: usize,
        what: impl FnOnce(&mut Actor, &mut Scene<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        self.tell(trace, seat, |peer, scene| match peer {
            Peer::Actor(actor) => {
                what(actor, scene)?;
                if actor.has_ended() {
                    actor.disconnected(scene)?;
                }
                Ok(())
            }
            Peer::Rogue(_) => Ok(()),
        })?;
        self.plan_deadline(seat);
        Ok(())
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
}
