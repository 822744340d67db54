//! The broker's thread, and the kernel beneath it: turns, sends and their answers,
//! hand-overs, and bytes from the clients.

use courser_core::door;
use courser_core::door::Door;
use courser_core::id::Handle;
use courser_core::shard::Output;
use courser_core::shard::Pieces;

use super::{AUDIT_EVERY, Act, End, Event, Server, World};
use crate::plan::FaultKind;
use crate::trace::Fact;
use crate::trace::Trace;
use crate::trace::digest;
use crate::violation::Rule;
use crate::violation::Violation;

impl World {
    pub(super) fn turn(&mut self, trace: &mut Trace) -> Result<(), Violation> {
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
                Output::HandOver(_) => unreachable!("there is no other shard"),
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
    pub(super) fn send(&mut self, connection: usize) -> Result<(), Violation> {
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
    pub(super) fn sent(&mut self, trace: &mut Trace, connection: usize) -> Result<(), Violation> {
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
    pub(super) fn server_gone(&mut self, trace: &mut Trace, connection: usize) {
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
    pub(super) fn read_up(
        &mut self,
        trace: &mut Trace,
        connection: usize,
    ) -> Result<(), Violation> {
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
}
