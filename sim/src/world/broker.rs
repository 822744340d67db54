//! The door, and the kernel beneath all threads: sends and their answers, and bytes
//! from the clients.

use courser_core::door;
use courser_core::id::Handle;
use courser_core::shard::Pieces;

use super::{Act, End, Event, Server, World};
use crate::plan::FaultKind;
use crate::plan::MILLISECOND;
use crate::trace::Fact;
use crate::trace::Trace;
use crate::trace::digest;
use crate::violation::Rule;
use crate::violation::Violation;

impl World {
    /// The door's time has come.
    pub(super) fn door_expires(&mut self) {
        if self.door_at.is_none_or(|planned| planned > self.now) {
            return;
        }
        self.door_at = None;
        self.door.expire(self.reading());
        self.open_doors();
    }

    pub(super) fn plan_door(&mut self) {
        let Some(next) = self.door.next_expiry() else {
            return;
        };
        let next = next.0.max(self.now + 1);
        if self.door_at.is_none_or(|planned| next < planned) {
            self.door_at = Some(next);
            self.plan_event(next, Event::Door);
        }
    }

    /// What the door wants done.
    fn open_doors(&mut self) {
        while let Some(output) = self.door.output() {
            match output {
                door::Output::HandOver {
                    stranger,
                    shard,
                    attached,
                } => {
                    if let Some(connection) = self.stranger(stranger) {
                        self.hand_over(connection, shard, attached);
                    }
                }
                door::Output::Farewell { stranger, bytes } => {
                    if let Some(connection) = self.stranger(stranger) {
                        self.say_farewell(connection, &bytes);
                    }
                }
            }
        }
        self.plan_door();
    }

    fn stranger(&self, stranger: Handle) -> Option<usize> {
        self.connections
            .iter()
            .rposition(|connection| connection.server == Server::Stranger(stranger))
    }

    pub(super) fn say_farewell(&mut self, connection: usize, bytes: &[u8]) {
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
    pub(super) fn send(&mut self, connection: usize) -> Result<(), Violation> {
        let entry = &mut self.connections[connection];
        let Server::Link(shard, link) = entry.server else {
            return Ok(());
        };
        if entry.sending.is_some() || entry.blocked {
            return Ok(());
        }
        let mut pieces = Pieces::new();
        self.workers[shard].shard.pieces(link, &mut pieces);
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
    pub(super) fn sent(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
        let entry = &mut self.connections[connection];
        let (Server::Link(shard, link), Some(given)) = (entry.server, entry.sending.take()) else {
            return Ok(());
        };
        let mut pieces = Pieces::new();
        self.workers[shard].shard.pieces(link, &mut pieces);
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
        let now = self.reading();
        self.workers[shard].shard.sent(now, link, taken);
        self.plan_read(due, connection, End::Client);
        self.plan_turn(shard);
        if self.is_cut_behind(&given[..taken]) {
            return self.cut_power(trace, Some(connection));
        }
        self.send(connection)
    }

    /// The shard ends a link.
    pub(super) fn broker_closes(
        &mut self,
        trace: &mut Trace,
        connection: usize,
        flush: bool,
    ) -> Result<(), Violation> {
        // Its consumers are gone at the broker, whatever their client believes.
        self.link_gone(connection);
        if flush {
            self.connections[connection].closing = true;
            self.send(connection)
        } else {
            self.server_gone(trace, connection);
            Ok(())
        }
    }

    /// The broker's end is closed: its machines are told, and the stream ends.
    pub(super) fn server_gone(&mut self, trace: &mut Trace, connection: usize) {
        let now = self.reading();
        let entry = &mut self.connections[connection];
        match entry.server {
            Server::Gone => return,
            Server::Stranger(stranger) => self.door.closed(stranger),
            // Whose shard takes it in and then sees its end.
            Server::HandedTo(_) => {
                return self.plan_event(
                    now.monotonic.0 + MILLISECOND,
                    Event::Gone(connection, End::Server),
                );
            }
            Server::Link(shard, link) => {
                let worker = &mut self.workers[shard];
                worker.links.remove(&link.0);
                worker.shard.closed(now, link);
                self.door.left(entry.address);
                self.plan_turn(shard);
            }
        }
        let entry = &mut self.connections[connection];
        entry.server = Server::Gone;
        entry.sending = None;
        entry.up.end();
        entry.down.end();
        trace.note(Fact::ServerClosed { connection });
        self.link_gone(connection);
        let due = self.connections[connection]
            .down
            .next_due()
            .unwrap_or(self.now);
        self.plan_read(due.max(self.now), connection, End::Client);
    }

    /// The shard of a connection knows that it is gone. Others hear of that in their own
    /// time.
    fn link_gone(&mut self, connection: usize) {
        if self.workers.len() == 1 {
            self.model.link_gone(connection);
        } else {
            self.model.link_breaks(connection);
        }
    }

    /// Bytes for the broker.
    pub(super) fn read_up(
        &mut self,
        trace: &mut Trace,
        connection: usize,
    ) -> Result<(), Violation> {
        let (now, read_max) = (self.now, self.read_max());
        let entry = &mut self.connections[connection];
        if matches!(entry.server, Server::Gone | Server::HandedTo(_)) {
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
                    self.open_doors();
                }
                Server::Link(shard, link) => {
                    let now = self.reading();
                    self.workers[shard].shard.received(now, link, &bytes);
                    self.plan_turn(shard);
                }
                Server::HandedTo(_) | Server::Gone => {}
            }
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
            match entry.server {
                // Its client reads on.
                Server::Link(shard, link) if entry.half_closed && entry.client => {
                    let now = self.reading();
                    self.workers[shard].shard.finished(now, link);
                    self.plan_turn(shard);
                }
                _ => self.server_gone(trace, connection),
            }
        }
        Ok(())
    }
}
