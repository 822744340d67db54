//! A link that goes to another shard of the same broker: the client has learned where
//! its destination is, and would rather not have every frame cross the mesh.
//!
//! ```text
//!  Move ─> nothing open? ─> Moving ─ egress empty ─> Output::HandOver ─> hand_over
//!              │ no                                                         │
//!              └─> Refused, the link stays            attached, at the other shard
//! ```
//!
//! Invariants:
//! - a link that moves has no producer, no consumer and no session, and what was
//!   answered has left before it goes: nothing of it is known here afterwards;
//! - until it goes it is a link like any other: it can break, stall and be ended, and
//!   its peer may not speak.

use super::{Attached, Link, LinkState, Rejection, Shard};
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::control;
use crate::id::{Handle, RequestId, ShardIndex};

impl Link {
    /// Whether it is to go to another shard.
    pub(super) fn is_moving(&self) -> bool {
        matches!(self.state, LinkState::Moving { .. })
    }
}

impl Shard {
    /// Where a link goes that [`Output::HandOver`] named, and what the shard there is to
    /// know of it. The link is no longer one of this shard. `None` if it does not go any
    /// more.
    ///
    /// [`Output::HandOver`]: super::Output::HandOver
    pub fn hand_over(&mut self, link: Handle) -> Option<(ShardIndex, Attached)> {
        let entry = self.links.get(link)?;
        let LinkState::Moving { to, request } = entry.state else {
            return None;
        };
        debug_assert!(entry.egress.bytes() == 0, "what was answered has left");
        let mut entry = self.links.remove(link)?;
        entry.intake.clear(&mut self.arena);
        let locals = &mut self.locals;
        let (arena, blocks) = (&mut self.arena, &mut self.blocks);
        entry
            .egress
            .clear(arena, blocks, |arena, pin| locals.unpin(arena, pin));
        self.link_numbers.remove(&entry.number);
        self.counters.add(Counter::LinksMoved, 1);
        let attached = Attached {
            principal: entry.principal,
            name: entry.name,
            request,
            patient: entry.patient,
            ..Attached::default()
        };
        Some((to, attached))
    }

    /// A client would have its link on another shard.
    pub(super) fn move_link(
        &mut self,
        link: Handle,
        request: RequestId,
        fields: &control::Move,
    ) -> Result<(), Rejection> {
        let to = ShardIndex(fields.shard.get());
        let shards = self.shards();
        if to.0 >= shards || to == self.config.shard {
            let text = format!(
                "the link is on shard {} of {shards}, from where it cannot move to shard {to}",
                self.config.shard
            );
            return Err(Rejection::request(Refusal::IllegalArgument, text));
        }
        let waits = self.deferred.iter().any(|(_, it)| it.is_of(link)) || self.has_taker_on(link);
        let Some(entry) = self.links.get_mut(link) else {
            return Ok(());
        };
        if !entry.producers.is_empty() || !entry.consumers.is_empty() || waits {
            let text = "a link moves only while no producer and no consumer is open on it, \
                        and no request is unanswered";
            return Err(Rejection::request(Refusal::PreconditionFailed, text));
        }
        entry.state = LinkState::Moving { to, request };
        for session in core::mem::take(&mut entry.sessions) {
            self.sessions.remove(session);
        }
        self.finishing.push(link);
        Ok(())
    }
}
