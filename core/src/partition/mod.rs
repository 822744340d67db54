//! Partitions: ordered messages, and the subscriptions' state beside them.
//!
//! A partition knows no sessions: it says what was stored and what is ready,
//! and the shard decides whom to tell.

pub mod log;

use crate::catalog::Retention;
use crate::id::{Handle, Offset};
use crate::limits;
use crate::memory::Arena;
use crate::subscription::{Kind, Part};
use log::{Address, Log};

/// One partition of a destination.
#[derive(Debug)]
pub struct Partition {
    /// Its messages.
    pub log: Log,
    /// The subscriptions of the destination, each by its handle.
    pub parts: Vec<(Handle, Part)>,
}

impl Partition {
    /// An empty partition that keeps `retain` bytes of what is settled.
    #[must_use]
    pub fn new(address: Address, retain: u64) -> Self {
        Self {
            log: Log::new(address, retain),
            parts: Vec::new(),
        }
    }

    /// An empty partition that keeps what `retention` says.
    #[must_use]
    pub fn keeping(address: Address, retention: Retention) -> Self {
        let mut partition = Self::new(address, 0);
        partition.log.keep(retention);
        partition
    }

    /// What lies before `floor` has expired: nobody is given it any more, whoever holds
    /// it settles nothing of it, and its memory goes back.
    pub fn expire(&mut self, arena: &mut Arena, floor: Offset) {
        self.log.raise_floor(arena, floor);
        for (_, part) in &mut self.parts {
            part.expire(arena, &mut self.log, floor);
        }
        // What expires is written down for all of them at once.
        if let Some(settled) = self.log.settled() {
            settled.clear();
        }
        self.log.release_expired(arena);
    }

    /// Adds the part of a shared `subscription`, starting at `from` or where the log
    /// begins, whichever is later; returns where that is.
    pub fn subscribe(&mut self, arena: &Arena, subscription: Handle, from: Offset) -> Offset {
        self.subscribe_as(arena, subscription, Kind::Shared, from)
    }

    /// As [`Partition::subscribe`], of a subscription of this kind.
    pub fn subscribe_as(
        &mut self,
        arena: &Arena,
        subscription: Handle,
        kind: Kind,
        from: Offset,
    ) -> Offset {
        let from = from.clamp(self.log.first(), self.log.next());
        self.log.claim(arena, from);
        self.parts.push((subscription, Part::new(kind, from)));
        from
    }

    /// The part at this place begins anew at `from`, as in [`Partition::subscribe_as`].
    pub fn begin_again(&mut self, arena: &mut Arena, index: usize, kind: Kind, from: Offset) {
        let from = from.clamp(self.log.first(), self.log.next());
        let (_, part) = &mut self.parts[index];
        part.end(arena, &mut self.log);
        *part = Part::new(kind, from);
        self.log.claim(arena, from);
    }

    /// Ends the part of `subscription`.
    pub fn unsubscribe(&mut self, arena: &mut Arena, subscription: Handle) {
        let mut parts = self.parts.iter();
        if let Some(index) = parts.position(|(handle, _)| *handle == subscription) {
            self.unsubscribe_at(arena, index);
        }
    }

    /// Ends the part at this place; the last one takes it.
    pub fn unsubscribe_at(&mut self, arena: &mut Arena, index: usize) {
        if index < self.parts.len() {
            let (_, mut part) = self.parts.swap_remove(index);
            part.end(arena, &mut self.log);
            trim(&mut self.parts);
        }
    }

    /// The part of `subscription`, if it has one here.
    #[must_use]
    pub fn part(&self, subscription: Handle) -> Option<&Part> {
        self.parts
            .iter()
            .find(|(handle, _)| *handle == subscription)
            .map(|(_, part)| part)
    }

    /// The part of `subscription`, if it has one here.
    pub fn part_mut(&mut self, subscription: Handle) -> Option<&mut Part> {
        self.parts
            .iter_mut()
            .find(|(handle, _)| *handle == subscription)
            .map(|(_, part)| part)
    }

    /// How many subscriptions a message has to be settled by.
    #[inline]
    #[must_use]
    pub fn claims(&self) -> u32 {
        const _: () = assert!(limits::SUBSCRIPTIONS_MAX < u32::MAX);
        u32::try_from(self.parts.len()).expect("subscriptions are fewer than 2^32")
    }

    /// Thins out the log where little is left of much; returns whether there is more.
    pub fn thin_out(&mut self, arena: &mut Arena) -> bool {
        if !self.log.wants_thinning() {
            return false;
        }
        let passed = self
            .parts
            .iter()
            .map(|(_, part)| part.fresh())
            .min()
            .unwrap_or(self.log.next());
        let parts = &self.parts;
        self.log.thin_out(arena, passed, |offset| {
            parts.iter().any(|(_, part)| part.claims(offset))
        })
    }

    /// Panics if an invariant is broken.
    pub fn invariants(&self) {
        self.log.invariants();
        for (_, part) in &self.parts {
            part.invariants();
        }
    }

    /// Panics if an invariant is broken, those between log and parts included.
    /// Walks every message that is kept: for tests and simulations.
    pub fn audit(&self, arena: &Arena) {
        self.invariants();
        self.log.audit(arena, |offset| {
            self.parts
                .iter()
                .filter(|(_, part)| part.claims(offset))
                .count()
        });
    }
}

/// Gives back what a list took that is less than a quarter full, so that it has at
/// most four times its length.
pub fn trim<T>(list: &mut Vec<T>) {
    if list.len() < list.capacity() / 4 {
        list.shrink_to(2 * list.len());
    }
}

#[cfg(test)]
mod tests;
