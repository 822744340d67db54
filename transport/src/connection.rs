//! The driver's own logic: what a shard's sockets go through between the ring's facts
//! and the shard's.
//!
//! Cast: a [`Connections`] owns the ring and one *connection* per occupied slot. Below,
//! the ring may answer anything legal (short, refused, cancelled, out of buffers,
//! ended early). Above, its owner sees three plain events: bytes came, bytes were
//! taken, the connection is over. Arming, resuming, cancelling, closing and the
//! generations of slots happen here, once, for every ring.
//!
//! ```text
//!            open                    leave                 nothing left to send and to
//!  (vacant) ------> Open -----------------------> Leaving   hear, or time is up
//!     ^              |                               |
//!     |              | connection lost, or abandoned |
//!     |              v                               v
//!     +----------- Closing <-------------------------+
//!     last completion of every operation: the slot is free, `Ended` is told
//!
//!            part                    last completion of every operation
//!   Open ----------> Parting ------------------------------> `Parted`, then taken
//!                       | left, lost or abandoned meanwhile: as from Open
//! ```
//!
//! *Leaving* says goodbye properly: what is left is sent, our direction is closed, and
//! what the peer still sends is read and dropped until it closes too. A socket closed
//! with bytes unread answers with a reset, and a reset can overtake the refusal that
//! tells the peer why. A peer that closes its direction first has finished, and may
//! still listen: the owner is told, and leaves in its own time.
//!
//! *Parting* gives the socket away as it is, to another ring. What its peer says
//! meanwhile was heard here or lies in the socket for whoever gets it.
//!
//! Invariants:
//! - at most one receive, one send and one wait for room are in flight per slot;
//! - a slot is vacated only when nothing is in flight on it, and its next tenant has
//!   the next generation;
//! - the owner's bytes of a send stay put until the owner saw `Sent` or `Ended`, and
//!   `Ended` is the last event of a connection.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::time::Duration;

use courser_core::time::Monotonic;

use crate::planted::{self, Fault};
use crate::ring::{Buffer, Calls, Completion, FileSlot, Received, Ring, RingFault, Slot, Wait};
use crate::sys::Errno;

/// How long a leaving connection may take over its goodbye.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

/// What happened on a connection, for its owner.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes came; read them with [`Connections::bytes`] and give the buffer back.
    Received { slot: Slot, buffer: Buffer },
    /// So many bytes of the last send were taken. More may be sent, or is asked for by
    /// [`Connections::next_ready`] when there is room.
    Sent { slot: Slot, bytes: u32 },
    /// The peer sends no more and may still listen. Nothing ends by itself: the owner
    /// leaves when it has said what it has to say.
    Finished { slot: Slot },
    /// The connection is over and its slot free. Nothing more is told about it.
    Ended { slot: Slot },
    /// Nothing is in flight on a connection that is to part: the owner takes the socket
    /// with [`Connections::take`], or leaves.
    Parted { slot: Slot },
    /// A write to a file is over: no business of a connection's, but of the same ring's.
    Written {
        file: FileSlot,
        token: u64,
        result: Result<u32, Errno>,
    },
}

/// Counts of what the sockets of a shard went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Sends that took less than was given, or nothing.
    pub(crate) short_sends: u64,
    /// Receives refused for want of a buffer.
    pub(crate) out_of_buffers: u64,
}

/// The sockets of one shard.
#[derive(Debug)]
pub(crate) struct Connections<R: Ring> {
    ring: R,
    places: Vec<Place>,
    /// Vacant slots, last freed first used.
    vacant: Vec<u32>,
    /// Connections that may send and whose owner has something, or said so.
    ready: VecDeque<Slot>,
    /// Ends that were not told yet.
    ended: VecDeque<Slot>,
    /// Parting connections with nothing in flight that were not told yet.
    parted: VecDeque<Slot>,
    /// Leaving connections by the end of their time, which is the same for all, so
    /// that the first is always the earliest.
    leaving: VecDeque<(Monotonic, Slot)>,
    tally: Tally,
}

/// One slot and its tenant.
#[derive(Debug)]
struct Place {
    generation: u32,
    phase: Phase,
    receiving: bool,
    sending: bool,
    awaiting_room: bool,
    cancelling: bool,
    /// The peer sends no more.
    finished: bool,
    /// Bytes that were given with the send in flight.
    given: u32,
    /// The owner has something to send beyond the send in flight.
    wanted: bool,
    /// The slot is in the list of ready ones.
    queued: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Vacant,
    Open,
    /// Being closed by us; `flushed` once our direction is closed.
    Leaving {
        flushed: bool,
    },
    Closing,
    /// To be given away; nothing is begun on it any more.
    Parting,
}

impl Place {
    fn is_quiet(&self) -> bool {
        !(self.receiving || self.sending || self.awaiting_room || self.cancelling)
    }
}

impl<R: Ring> Connections<R> {
    /// No connection yet, room for as many as the ring has slots.
    pub(crate) fn new(ring: R) -> Self {
        let slots = ring.slots();
        let mut places = Vec::new();
        places.resize_with(slots as usize, || Place {
            generation: 0,
            phase: Phase::Vacant,
            receiving: false,
            sending: false,
            awaiting_room: false,
            cancelling: false,
            finished: false,
            given: 0,
            wanted: false,
            queued: false,
        });
        Self {
            ring,
            places,
            vacant: (0..slots).rev().collect(),
            ready: VecDeque::with_capacity(slots as usize),
            ended: VecDeque::with_capacity(slots as usize),
            parted: VecDeque::new(),
            leaving: VecDeque::new(),
            tally: Tally::default(),
        }
    }

    /// Takes a connected socket and begins to receive. The socket comes back if no
    /// slot is vacant or the kernel cannot take it.
    pub(crate) fn open(&mut self, socket: R::Socket) -> Result<Slot, R::Socket> {
        let Some(index) = self.vacant.pop() else {
            return Err(socket);
        };
        let place = &mut self.places[index as usize];
        let slot = Slot {
            index,
            generation: place.generation,
        };
        if let Err(refused) = self.ring.attach(slot, socket) {
            self.vacant.push(index);
            return Err(refused.socket);
        }
        place.phase = Phase::Open;
        place.receiving = true;
        self.ring.arm_receive(slot);
        Ok(slot)
    }

    /// The owner has something to send; it will be asked for it when the socket can
    /// take it.
    pub(crate) fn want(&mut self, slot: Slot) {
        let Some(place) = self.place(slot) else {
            return;
        };
        place.wanted = true;
        self.queue_if_ready(slot);
    }

    /// The next connection whose owner should give what it has to send. The answer is
    /// [`Self::begun`] or [`Self::nothing`].
    pub(crate) fn next_ready(&mut self) -> Option<Slot> {
        while let Some(slot) = self.ready.pop_front() {
            let place = &mut self.places[slot.position()];
            if place.generation != slot.generation {
                continue;
            }
            place.queued = false;
            let may_send = matches!(place.phase, Phase::Open | Phase::Leaving { flushed: false });
            if may_send && place.wanted && !place.sending && !place.awaiting_room {
                place.wanted = false;
                return Some(slot);
            }
        }
        None
    }

    /// The ring, to begin the send that [`Self::next_ready`] asked for.
    pub(crate) fn ring_mut(&mut self) -> &mut R {
        &mut self.ring
    }

    /// A send of so many bytes was begun. `more` if the owner has pieces beyond those
    /// that one send takes.
    pub(crate) fn begun(&mut self, slot: Slot, bytes: u32, more: bool) {
        if let Some(place) = self.place(slot) {
            debug_assert!(!place.sending, "one send in flight per slot");
            place.sending = true;
            place.given = bytes;
            place.wanted |= more;
        }
    }

    /// The owner had nothing to send after all.
    pub(crate) fn nothing(&mut self, slot: Slot) {
        if let Some(place) = self.place(slot)
            && place.phase == (Phase::Leaving { flushed: false })
        {
            if place.finished {
                // Both have said what they had to say.
                self.close(slot);
                return;
            }
            place.phase = Phase::Leaving { flushed: true };
            self.ring.shutdown(slot, Shutdown::Write);
        }
    }

    /// The owner is done with the connection, once what it still has is sent.
    pub(crate) fn leave(&mut self, now: Monotonic, slot: Slot) {
        let Some(place) = self.place(slot) else {
            return;
        };
        if !matches!(place.phase, Phase::Open | Phase::Parting) {
            return;
        }
        let listens_again = place.phase == Phase::Parting && !place.receiving && !place.finished;
        place.phase = Phase::Leaving { flushed: false };
        place.wanted = true;
        place.receiving |= listens_again;
        // With a peer that has finished there is nothing to wait for but that it takes
        // what is left, and the owner has a limit for that.
        if !place.finished {
            self.leaving.push_back((now.after(GOODBYE_TIME), slot));
        }
        if listens_again {
            self.ring.arm_receive(slot);
        }
        self.queue_if_ready(slot);
    }

    /// The owner gives the socket away, as soon as nothing is in flight on it. It has
    /// nothing to send.
    pub(crate) fn part(&mut self, slot: Slot) {
        let Some(place) = self.place(slot) else {
            return;
        };
        if place.phase != Phase::Open {
            return;
        }
        place.phase = Phase::Parting;
        if place.is_quiet() {
            self.parted.push_back(slot);
        } else {
            place.cancelling = true;
            self.ring.cancel(slot);
        }
    }

    /// The socket of a connection that has parted; its slot is free.
    pub(crate) fn take(&mut self, slot: Slot) -> Option<R::Socket> {
        let place = self.place(slot)?;
        (place.phase == Phase::Parting && place.is_quiet()).then(|| self.vacate(slot))
    }

    /// The owner is done with the connection, whatever waits to be sent.
    pub(crate) fn abandon(&mut self, slot: Slot) {
        if self.place(slot).is_some() {
            self.close(slot);
        }
    }

    /// Ends leaving connections whose time is up.
    pub(crate) fn expire(&mut self, now: Monotonic) {
        while let Some(&(deadline, slot)) = self.leaving.front() {
            let over = self
                .place(slot)
                .is_none_or(|place| !matches!(place.phase, Phase::Leaving { .. }));
            if !over && deadline > now {
                return;
            }
            self.leaving.pop_front();
            if !over {
                self.close(slot);
            }
        }
    }

    /// When [`Self::expire`] has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Monotonic> {
        self.leaving.front().map(|&(deadline, _)| deadline)
    }

    /// Hands the kernel what was begun and collects its facts. Answers what the ring did.
    pub(crate) fn turn(&mut self, wait: Wait) -> Result<Calls, RingFault> {
        let wait = if self.ended.is_empty() && self.parted.is_empty() {
            wait
        } else {
            Wait::No
        };
        self.ring.turn(wait)
    }

    /// The next event of this turn.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(slot) = self.ended.pop_front() {
                return Some(Event::Ended { slot });
            }
            if let Some(slot) = self.parted.pop_front() {
                return Some(Event::Parted { slot });
            }
            let completion = self.ring.next()?;
            if let Some(event) = self.react(completion) {
                return Some(event);
            }
        }
    }

    /// The bytes of a [`Event::Received`].
    pub(crate) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.ring.bytes(buffer)
    }

    /// Ends the loan of a [`Event::Received`].
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        self.ring.give_back(buffer);
    }

    /// The ring, to ring its bell or describe it.
    pub(crate) fn ring(&self) -> &R {
        &self.ring
    }

    /// How many slots are occupied, in whatever phase.
    pub(crate) fn occupied(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    /// What the sockets went through so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    fn place(&mut self, slot: Slot) -> Option<&mut Place> {
        let place = self.places.get_mut(slot.position())?;
        (place.generation == slot.generation && place.phase != Phase::Vacant).then_some(place)
    }

    fn queue_if_ready(&mut self, slot: Slot) {
        let place = &mut self.places[slot.position()];
        if place.wanted && !place.queued && !place.sending && !place.awaiting_room {
            place.queued = true;
            self.ready.push_back(slot);
        }
    }

    /// Turns one fact of the ring into at most one event.
    fn react(&mut self, completion: Completion) -> Option<Event> {
        match completion {
            Completion::Woken => None,
            Completion::Written {
                file,
                token,
                result,
            } => Some(Event::Written {
                file,
                token,
                result,
            }),
            Completion::Received {
                slot,
                received,
                more,
            } => self.received(slot, received, more),
            Completion::Sent { slot, result } => self.sent(slot, result),
            Completion::Writable { slot } => {
                let place = self.place(slot)?;
                place.awaiting_room = false;
                // What became of the connection, the next send finds out.
                place.wanted = true;
                self.queue_if_ready(slot);
                self.end_if_quiet(slot);
                None
            }
            Completion::Cancelled { slot } => {
                let place = self.place(slot)?;
                place.cancelling = false;
                if planted::is(Fault::CancelledIsTheEnd) {
                    (place.receiving, place.sending, place.awaiting_room) = (false, false, false);
                }
                self.end_if_quiet(slot);
                None
            }
        }
    }

    fn received(&mut self, slot: Slot, received: Received, more: bool) -> Option<Event> {
        let Some(place) = self.place(slot) else {
            debug_assert!(false, "a slot is kept until its last completion");
            if let Received::Bytes(buffer) = received {
                self.ring.give_back(buffer);
            }
            return None;
        };
        place.receiving = more;
        let phase = place.phase;
        let event = match received {
            Received::Bytes(buffer) => {
                if matches!(phase, Phase::Open | Phase::Parting) {
                    Some(Event::Received { slot, buffer })
                } else {
                    // Read so that it does not turn our end into a reset.
                    if !planted::is(Fault::BeatenCancelKeepsBuffer) {
                        self.ring.give_back(buffer);
                    }
                    None
                }
            }
            // Back into the kernel's hands as soon as buffers are.
            Received::Failed(Errno(libc::ENOBUFS)) if !planted::is(Fault::NoBufferIsTheEnd) => {
                self.tally.out_of_buffers += 1;
                None
            }
            // Not ours, or we would be closing: the kernel may end a receive for
            // reasons of its own.
            Received::Failed(errno)
                if errno.is_for_the_moment()
                    && errno != Errno(libc::ENOBUFS)
                    && !planted::is(Fault::RefusedReceiveIsTheEnd) =>
            {
                None
            }
            Received::End => return self.finished(slot),
            Received::Failed(_) => {
                self.close(slot);
                return None;
            }
        };
        if more && planted::is(Fault::ArmedTwice) {
            self.ring.arm_receive(slot);
        }
        if !more {
            if matches!(phase, Phase::Closing | Phase::Parting) {
                self.end_if_quiet(slot);
            } else if !planted::is(Fault::NotArmedAgain) {
                self.places[slot.position()].receiving = true;
                self.ring.arm_receive(slot);
            }
        }
        event
    }

    /// The peer has closed its direction. What we still have to say it may hear: that it
    /// has closed the other one as well, the next send finds out.
    fn finished(&mut self, slot: Slot) -> Option<Event> {
        let place = &mut self.places[slot.position()];
        place.finished = true;
        match place.phase {
            Phase::Open | Phase::Parting => Some(Event::Finished { slot }),
            Phase::Leaving { flushed: false } => None,
            Phase::Leaving { flushed: true } | Phase::Closing | Phase::Vacant => {
                self.close(slot);
                None
            }
        }
    }

    fn sent(&mut self, slot: Slot, result: Result<u32, Errno>) -> Option<Event> {
        let place = self.place(slot)?;
        place.sending = false;
        let given = std::mem::take(&mut place.given);
        if place.phase == Phase::Closing {
            self.end_if_quiet(slot);
            return None;
        }
        let taken = match result {
            Ok(0) if planted::is(Fault::EmptySendIsTheEnd) => {
                self.close(slot);
                return None;
            }
            Ok(_) if planted::is(Fault::ShortSendIsWhole) => given,
            Ok(taken) => taken,
            Err(errno) if errno.is_for_the_moment() && !planted::is(Fault::RefusedSendIsTheEnd) => {
                0
            }
            Err(_) => {
                self.close(slot);
                return None;
            }
        };
        if taken < given {
            // The kernel took what it had room for; asking at once would find none.
            self.tally.short_sends += 1;
            let place = &mut self.places[slot.position()];
            place.wanted = true;
            place.awaiting_room = true;
            self.ring.arm_writable(slot);
        } else {
            let place = &mut self.places[slot.position()];
            // A goodbye ends with the question for more that is answered by `nothing`.
            place.wanted |= place.phase != Phase::Open;
            self.queue_if_ready(slot);
        }
        (taken > 0).then_some(Event::Sent { slot, bytes: taken })
    }

    /// Begins to end the connection.
    fn close(&mut self, slot: Slot) {
        let place = &mut self.places[slot.position()];
        if place.phase == Phase::Closing {
            self.end_if_quiet(slot);
            return;
        }
        // A connection that parts may have been told to cancel already.
        let cancelled = place.cancelling;
        place.phase = Phase::Closing;
        let quiet = place.is_quiet();
        place.cancelling = !quiet;
        self.ring.shutdown(slot, Shutdown::Both);
        if quiet {
            self.end_if_quiet(slot);
        } else if !cancelled {
            self.ring.cancel(slot);
        }
    }

    /// The end of a connection that closes or parts, when its last operation has ended.
    fn end_if_quiet(&mut self, slot: Slot) {
        let place = &self.places[slot.position()];
        let quiet = place.is_quiet() || planted::is(Fault::VacatedInFlight);
        match place.phase {
            Phase::Closing if quiet => {
                drop(self.vacate(slot));
                self.ended.push_back(slot);
            }
            Phase::Parting if quiet => self.parted.push_back(slot),
            _ => {}
        }
    }

    /// Frees a slot on which nothing is in flight.
    fn vacate(&mut self, slot: Slot) -> R::Socket {
        let socket = self.ring.detach(slot);
        let place = &mut self.places[slot.position()];
        place.phase = Phase::Vacant;
        if !planted::is(Fault::SameGeneration) {
            place.generation = slot.next_tenant().generation;
        }
        place.wanted = false;
        place.queued = false;
        place.finished = false;
        self.vacant.push(slot.index);
        socket
    }
}

#[cfg(test)]
pub(crate) mod tests;
