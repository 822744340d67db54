//! Blocks: who may take a chunk of the arena for what waits to leave.
//!
//! ```text
//! the arena's share for egress:  [ answers and completions | and deliveries too ]
//! ```
//!
//! Half of the share is for answers and completions alone, so that however many
//! deliveries wait for peers that do not read, others are answered. While more of
//! the arena is free than was promised to anybody, nobody counts. A link that gets
//! no block waits in a list and is looked at again as soon as one can be had: with
//! nothing under way it has no other occasion.
//!
//! Invariants: `lent` and `aside` are sums over the links; a link for which answers
//! lie aside stands in the list of those that want a block for answers.

use std::collections::VecDeque;

use super::{LinkState, Shard};
use crate::id::Handle;
use crate::memory::CHUNK;
use crate::time::Now;

/// Links that are looked at in a turn because a block can be had.
const LINKS_PER_TURN: usize = 64;

/// What is lent to links, and which wait for it.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Links that hold a block.
    pub(super) lent: usize,
    /// Bytes of answers that lie aside until there is a block for them.
    pub(super) aside: usize,
    /// The share of the arena that is kept for blocks, in chunks.
    pub(super) share: usize,
    /// Links whose answers or completions wait for a block.
    answers_wait: VecDeque<Handle>,
    /// Links whose deliveries do.
    deliveries_wait: VecDeque<Handle>,
}

impl Blocks {
    /// `share` is in chunks.
    pub(super) fn new(share: usize) -> Self {
        Self {
            lent: 0,
            aside: 0,
            share,
            answers_wait: VecDeque::new(),
            deliveries_wait: VecDeque::new(),
        }
    }

    /// Deliveries to a link wait for a block, which knows whether it stands in the
    /// list for them.
    #[cold]
    pub(super) fn want_for_deliveries(&mut self, link: Handle, listed: &mut bool) {
        if !*listed {
            *listed = true;
            self.deliveries_wait.push_back(link);
        }
    }

    #[inline]
    fn are_wanted(&self) -> bool {
        !self.answers_wait.is_empty() || !self.deliveries_wait.is_empty()
    }
}

impl Shard {
    /// Whether a link without a block may take one for answers or completions.
    #[inline]
    pub(super) fn may_answer(&self) -> bool {
        self.blocks.lent < self.blocks.share || self.has_chunks_to_spare()
    }

    /// Whether a link without a block may take one for deliveries.
    #[inline]
    pub(super) fn may_deliver(&self) -> bool {
        self.blocks.lent < self.blocks.share / 2 || self.has_chunks_to_spare()
    }

    /// A link's answers or completions wait for a block.
    #[cold]
    pub(super) fn want_block(&mut self, link: Handle) {
        if let Some(entry) = self.links.get_mut(link)
            && !entry.answers_wait
        {
            entry.answers_wait = true;
            self.blocks.answers_wait.push_back(link);
        }
    }

    /// Whether [`Shard::lend_blocks`] would find something to do.
    #[inline]
    pub(super) fn can_lend_blocks(&self) -> bool {
        self.blocks.are_wanted()
            && self.arena.free() > 0
            && (!self.blocks.answers_wait.is_empty() && self.may_answer()
                || !self.blocks.deliveries_wait.is_empty() && self.may_deliver())
    }

    /// Has those who wait for a block try again, as far as there are any.
    #[inline]
    pub(super) fn lend_blocks(&mut self, now: Now) {
        if self.blocks.are_wanted() {
            self.lend_wanted_blocks(now);
        }
    }

    #[cold]
    fn lend_wanted_blocks(&mut self, now: Now) {
        for _ in 0..self.blocks.answers_wait.len().min(LINKS_PER_TURN) {
            if self.arena.free() == 0 || !self.may_answer() {
                break;
            }
            if let Some(link) = self.blocks.answers_wait.pop_front() {
                self.answer_again(now, link);
            }
        }
        for _ in 0..self.blocks.deliveries_wait.len().min(LINKS_PER_TURN) {
            if self.arena.free() == 0 || !self.may_deliver() {
                break;
            }
            if let Some(link) = self.blocks.deliveries_wait.pop_front()
                && let Some(entry) = self.links.get_mut(link)
            {
                // Who comes too late for a block in this turn stands in the list again.
                entry.deliveries_wait = false;
                self.refill(link);
            }
        }
    }

    /// There is a block for the answers and completions of a link.
    fn answer_again(&mut self, now: Now, link: Handle) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        entry.answers_wait = false;
        if entry.egress.bytes() == 0 {
            entry.progress = now.monotonic;
        }
        let egress = &mut entry.egress;
        self.blocks.aside -= egress.take_in_aside(&mut self.arena, &mut self.blocks);
        self.mark_dirty(link);
        self.refill(link);
    }

    /// Something waits until what was written to a link before has left.
    #[cold]
    pub(super) fn starve(&mut self, link: Handle) {
        if let Some(entry) = self.links.get_mut(link) {
            entry.starved = true;
            self.mark_dirty(link);
        }
    }

    /// So much has left of a link on which there was no room that it is filled again.
    #[cold]
    pub(super) fn fill_again(&mut self, link: Handle) {
        if let Some(entry) = self.links.get_mut(link) {
            entry.starved = false;
            self.refill(link);
        }
    }

    /// There is room on a link again: whatever waits for it is tried.
    fn refill(&mut self, link: Handle) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        if entry.state == LinkState::Ending {
            return;
        }
        let consumers = core::mem::take(&mut entry.consumers);
        let producers = core::mem::take(&mut entry.producers);
        for consumer in &consumers {
            self.queue_destination_of(*consumer);
        }
        for producer in &producers {
            self.complete_again(*producer);
        }
        if let Some(entry) = self.links.get_mut(link) {
            entry.consumers = consumers;
            entry.producers = producers;
        }
        self.report_again(link);
    }

    /// Whether more of the arena is free than was promised: to blocks, to partitions
    /// for the chunk that they write on, to what was granted.
    #[cold]
    pub(super) fn has_chunks_to_spare(&self) -> bool {
        let granted = (self.reserved * self.reserve_factor()).div_ceil(CHUNK as u64);
        let kept = self.blocks.share
            + self.partitions
            + self.arrivals_kept()
            + self.journal_kept()
            + self.pages_kept();
        let promised = kept as u64 + granted;
        self.arena.free() as u64 > promised
    }
}
