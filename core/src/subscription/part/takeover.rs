//! Takeover: how a partition of a failover subscription changes hands.
//!
//! ```text
//!   a is active ──> b is named ──> what a holds is settled or back ──> b takes
//! ```
//!
//! The members that stand by are told nothing: what the one that leaves had not
//! settled returns to its places in the log, and the next one is given that first and
//! then goes on where the log was read last. When another becomes active though the
//! old one stays (because a member joined, and partitions are spread anew) the new one
//! waits until the old one has settled or given back what it holds, so that two of
//! them never work on one partition at the same time.
//!
//! Invariant: once it follows a membership, `elsewhere` counts what consumers hold
//! that are not the active one.

use std::collections::VecDeque;

use super::{Entry, State};
use crate::id::{Handle, PartitionIndex};
use crate::planted::Planted;
use crate::subscription::membership::Membership;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    /// Of the membership that it follows; 0 if it has to look anew.
    version: u64,
    active: Option<Handle>,
    /// Messages that others hold.
    elsewhere: u64,
    /// The last of these went since it followed.
    freed: bool,
    /// The active one was offered something, and has not taken it.
    offered: bool,
}

impl Takeover {
    pub(super) fn follow(
        &mut self,
        entries: &VecDeque<Entry>,
        membership: &Membership,
        partition: PartitionIndex,
    ) {
        self.freed = false;
        if self.version == membership.version() {
            return;
        }
        self.version = membership.version();
        self.active = membership.active(partition);
        let with_others = entries
            .iter()
            .filter(|entry| entry.state == State::Delivered && Some(entry.consumer) != self.active);
        self.elsewhere = with_others.count() as u64;
    }

    /// `consumer` settled or gave back so many messages.
    #[inline]
    pub(super) fn settled(&mut self, consumer: Handle, count: u64) {
        if self.elsewhere > 0 && Some(consumer) != self.active {
            self.elsewhere -= count;
            self.freed = self.elsewhere == 0;
        }
    }

    /// Who may take something now, if it was not offered something already; `None` while
    /// another still holds some of the partition.
    pub(super) fn claimant(&mut self) -> Option<Handle> {
        let is_free = self.elsewhere == 0 || Planted::EarlyTakeover.is_awake();
        let claimant = self.active.filter(|_| is_free && !self.offered);
        self.offered = claimant.is_some();
        claimant
    }

    pub(super) fn taken(&mut self) {
        self.offered = false;
    }

    pub(super) fn forget_version(&mut self) {
        self.version = 0;
    }

    pub(super) fn frees(&self) -> bool {
        self.freed
    }
}
