//! Credit: what producers may have on their way, reserved ahead.
//!
//! A grant is a position in frame bytes and one in messages, never taken back.
//! What is granted and not received yet is covered by the ingress pool, so a
//! frame within credit always finds a place. A window begins small and doubles
//! with use; a destination that is full, or a pool that is empty, means no new
//! grant, and the producer waits its turn.

use super::fan::Fan;
use super::producer::not_open;
use super::{Fault, Shard};
use crate::error::Refusal;
use crate::frame::CONTROL_HEADER_SIZE;
use crate::frame::control::Credit;
use crate::id::{DestinationNumber, Handle};
use crate::limits;
use crate::memory::CHUNK;
use crate::time::Now;

/// What of the ingress pool one producer's grant may grow to.
const SHARE_OF_POOL: u64 = 32;
/// Producers that are looked at in a turn because memory came free.
const WAITING_PER_TURN: usize = 64;
/// What frames may take up in chunks, as a multiple of their bytes, beside the chunk
/// that is written on: small ones may leave almost half of each chunk unused; one
/// larger than a chunk leaves almost all of its last one, and of that before it.
pub(super) const RESERVE_FACTOR: u64 = 3;
/// What one producer may send, and how much of it came.
#[derive(Debug)]
pub(super) struct Grant {
    granted_bytes: u64,
    granted_messages: u64,
    received_bytes: u64,
    received_messages: u64,
    /// Sends whose outcome was written to the link.
    completed_messages: u64,
    /// Bytes that a new grant covers.
    window: u64,
    /// A frame of this size waits at the client.
    wanted: u64,
    /// Stands in the list of those that wait.
    waiting: bool,
}

impl Default for Grant {
    fn default() -> Self {
        Self {
            granted_bytes: 0,
            granted_messages: 0,
            received_bytes: 0,
            received_messages: 0,
            completed_messages: 0,
            window: u64::from(limits::CREDIT_INITIAL),
            wanted: 0,
            waiting: false,
        }
    }
}

impl Grant {
    /// A frame came in.
    #[inline]
    pub(super) fn received(&mut self, size: usize) {
        self.received_bytes += size as u64;
        self.received_messages += 1;
    }

    /// So many frames of `size` bytes in all came in.
    #[inline]
    pub(super) fn received_run(&mut self, size: usize, messages: u64) {
        self.received_bytes += size as u64;
        self.received_messages += messages;
    }

    /// Outcomes were written.
    pub(super) fn completed(&mut self, messages: u64) {
        self.completed_messages += messages;
    }

    /// The position in frame bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.granted_bytes
    }

    /// The position in messages.
    pub(super) fn messages(&self) -> u64 {
        self.granted_messages
    }

    /// Whether a frame of `size` bytes may come.
    #[inline]
    pub(super) fn covers(&self, size: usize) -> bool {
        self.outstanding_bytes() >= size as u64 && self.outstanding_messages() > 0
    }

    /// Granted and not received: what is reserved.
    #[inline]
    pub(super) fn outstanding_bytes(&self) -> u64 {
        self.granted_bytes - self.received_bytes
    }

    #[inline]
    pub(super) fn outstanding_messages(&self) -> u64 {
        self.granted_messages - self.received_messages
    }

    /// Whether it is time for a new grant: half of the last one is used up.
    pub(super) fn is_low(&self) -> bool {
        self.outstanding_bytes() * 2 < self.window
            || self.outstanding_messages() * 2 < u64::from(limits::IN_FLIGHT_MESSAGES_MAX)
    }

    /// A frame of this size waits at the client.
    pub(super) fn want(&mut self, bytes: u64) {
        self.wanted = bytes;
    }

    fn is_enough(&self) -> bool {
        self.outstanding_bytes() >= self.wanted.max(self.window / 2)
    }

    fn position(&self) -> Credit {
        Credit {
            bytes: self.granted_bytes.into(),
            messages: self.granted_messages.into(),
        }
    }

    /// Doubles the window, up to `most`, if the last grant was used.
    fn widen(&mut self, most: u64) {
        if self.received_bytes > 0 && self.outstanding_bytes() * 2 < self.window {
            self.window = (self.window * 2).min(most.max(self.window));
        }
    }

    /// Raises the position in messages, to at most `room` beyond what was received:
    /// outcomes that were not written count as on their way, so that they stay within
    /// the window too.
    #[inline]
    fn raise_messages(&mut self, room: u64) {
        let most = (self.completed_messages + u64::from(limits::IN_FLIGHT_MESSAGES_MAX))
            .min(self.received_messages.saturating_add(room));
        self.granted_messages = self.granted_messages.max(most);
    }

    /// Raises the position in bytes by at most `room`; returns by how much.
    fn raise_bytes(&mut self, room: u64) -> u64 {
        let wish = self.received_bytes + self.window.max(self.wanted);
        let more = wish.saturating_sub(self.granted_bytes).min(room);
        self.granted_bytes += more;
        more
    }
}

impl Shard {
    /// A client has a frame that its credit does not cover.
    pub(super) fn want_credit(
        &mut self,
        now: Now,
        link: Handle,
        handle: Handle,
        bytes: u64,
    ) -> Result<(), Fault> {
        if bytes > u64::from(limits::FRAME_SIZE_MAX) + 8 {
            return Err(Fault::new(
                Refusal::FrameTooLarge,
                "credit was asked for a frame beyond the limit",
            ));
        }
        let producer = self
            .producers
            .get_mut(handle)
            .filter(|producer| producer.link == link)
            .ok_or_else(|| not_open(handle))?;
        producer.credit.want(bytes);
        self.wait(handle);
        self.want_of_branches(now, handle, bytes);
        Ok(())
    }

    /// Grants what there is and tells the client; has the producer wait if that
    /// was not enough, or if there is no room to tell it.
    pub(super) fn renew(&mut self, now: Now, handle: Handle) {
        const CREDIT_SIZE: usize = CONTROL_HEADER_SIZE + size_of::<Credit>();
        let Some(producer) = self.producers.get(handle) else {
            return;
        };
        let (link, before) = (producer.link, producer.credit.position());
        let origin = producer.origin();
        if origin.is_none() {
            let room = self.links.get(link).map_or(0, |link| link.egress.room());
            if room < CREDIT_SIZE {
                self.wait(handle);
                return;
            }
        }
        self.grant(handle);
        let Some(producer) = self.producers.get_mut(handle) else {
            return;
        };
        let (after, enough) = (producer.credit.position(), producer.credit.is_enough());
        if enough {
            producer.credit.wanted = 0;
        }
        if after != before {
            match origin {
                None => {
                    if let Err(fault) = self.answer(now, link, handle.0, &after, &[]) {
                        self.fault(now, link, &fault);
                    }
                }
                Some(origin) => self.grant_to_front(now, origin, after),
            }
        }
        if !enough {
            self.wait(handle);
        }
    }

    /// Raises a producer's grant as far as its window, its destination and the
    /// pool allow.
    pub(super) fn grant(&mut self, handle: Handle) {
        let Some(destination) = self.producers.get(handle).map(|it| it.identity.destination) else {
            return;
        };
        let mut room = if self.is_full(destination) {
            0
        } else {
            self.ingress_room()
        };
        let pool = self.plan.ingress;
        let calm = self.reserved < pool / 2;
        let Some(producer) = self.producers.get_mut(handle) else {
            return;
        };
        let beyond = producer.fan().map(Fan::room);
        let credit = &mut producer.credit;
        if calm {
            credit.widen(u64::from(limits::IN_FLIGHT_BYTES_MAX).min(pool / SHARE_OF_POOL));
        }
        let mut messages = u64::MAX;
        if let Some((bytes_left, messages_left)) = beyond {
            room = room.min(bytes_left.saturating_sub(credit.outstanding_bytes()));
            messages = messages_left;
        }
        credit.raise_messages(messages);
        self.reserved += credit.raise_bytes(room);
    }

    /// Gives those that wait for credit another look.
    pub(super) fn serve_waiting(&mut self, now: Now) {
        for _ in 0..self.waiting.len().min(WAITING_PER_TURN) {
            let Some(handle) = self.waiting.pop_front() else {
                break;
            };
            if let Some(producer) = self.producers.get_mut(handle) {
                producer.credit.waiting = false;
                self.renew(now, handle);
            }
        }
    }

    fn wait(&mut self, handle: Handle) {
        if let Some(producer) = self.producers.get_mut(handle)
            && !producer.credit.waiting
        {
            producer.credit.waiting = true;
            self.waiting.push_back(handle);
        }
    }

    /// Whether a destination holds all the memory that it may, beside the chunks that
    /// its partitions keep however little is in them.
    fn is_full(&self, destination: DestinationNumber) -> bool {
        let Some(local) = self.locals.get(destination) else {
            return false;
        };
        let beside = local.chunks().saturating_sub(local.kept);
        (beside * CHUNK) as u64 >= self.plan.destination
            || local.expires > 0 && self.is_full_of_what_expires()
    }

    /// Chunks that are kept for what other shards may deliver, and not taken yet.
    pub(super) fn arrivals_kept(&self) -> usize {
        if self.shards() == 1 {
            return 0;
        }
        self.plan.arrivals_chunks().saturating_sub(self.arriving)
    }

    /// What frames may take up, as a multiple of their bytes: in chunks of a log and, where
    /// there is a journal, in a batch as well.
    pub(super) fn reserve_factor(&self) -> u64 {
        RESERVE_FACTOR + u64::from(self.keeps())
    }

    /// Bytes of memory that nobody was promised: beside what egress and the partitions may
    /// need, so many chunks for what comes from pages, and what was granted.
    pub(super) fn unpromised(&self, for_pages: usize) -> u64 {
        let free = (self.arena.free() * CHUNK) as u64;
        let chunks = self.partitions + self.arrivals_kept() + self.journal_kept() + for_pages;
        let kept = self.plan.egress + (chunks * CHUNK) as u64;
        let granted = self.reserved * self.reserve_factor();
        free.saturating_sub(kept + granted)
    }

    /// Frame bytes that may still be granted: the rest of the pool, and no more than finds a
    /// place.
    fn ingress_room(&self) -> u64 {
        let placeable = self.unpromised(self.pages_kept()) / self.reserve_factor();
        (self.plan.ingress - self.reserved).min(placeable)
    }
}
