//! A link that takes the place of another one, whatever shard that is on.
//!
//! ```text
//!  client ─ hello ─> S ── REPLACE ──> O   ends the old link: what it had elsewhere is told
//!                                     │   to go
//!                                     ├── PASS ──> P ──┐
//!                                     ├── PASS ──> Q ──┼─ PASSED ─> S ─ welcome ─> client
//!                                     └── PASS ─────> S ┘
//! ```
//!
//! What the old link held, it may hold on any shard, and no ring is in step with
//! another: what a client opens on its new link could overtake the end of what is in
//! its way. So the old link's shard sends a word behind everything that it told the
//! others of the end, and whoever has read that says so to the new link's shard. The
//! welcome waits for all of them, and whoever has its welcome finds everything free.
//!
//! Invariants: a link that arrives has nothing open; what its client says before the
//! welcome is kept as it came, up to a bound, and obeyed behind it; one that has waited
//! too long ends, and its client tries again.

use zerocopy::IntoBytes;

use super::fan::about;
use super::records::{self, outcome, request};
use super::{Fault, Link, LinkState, Shard};
use crate::auth::Principal;
use crate::counters::Counter;
use crate::error::Refusal;
use crate::id::{Handle, LinkNumber, RequestId, ShardIndex};
use crate::limits;
use crate::time::{Monotonic, Now};

impl Shard {
    /// A client is here again before its last link was missed: that one ends first, so
    /// that what it holds is free. A link of somebody else stays.
    pub(super) fn replace(&mut self, now: Now, number: LinkNumber, principal: Principal) {
        let Some(link) = self.link_numbers.get(&number).copied() else {
            return;
        };
        let same = self
            .links
            .get(link)
            .is_some_and(|link| link.principal == principal);
        if same {
            self.counters.add(Counter::LinksReplaced, 1);
            self.end(now, link, false);
        }
    }

    /// The shard that has to end the link that another one takes the place of, if it is
    /// not this one.
    pub(super) fn replaced_elsewhere(&self, number: LinkNumber) -> Option<ShardIndex> {
        let shard = number.shard();
        // A broker that was started again may have fewer.
        (shard != self.config.shard && shard.0 < self.shards()).then_some(shard)
    }

    /// A new link waits until another shard has ended the one before, and everybody has
    /// heard of it.
    pub(super) fn await_end_of(
        &mut self,
        now: Now,
        link: Handle,
        (shard, number): (ShardIndex, LinkNumber),
    ) {
        let missing = self.shards() - 1;
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        entry.state = LinkState::Arriving {
            missing,
            since: now.monotonic,
        };
        let replace = records::Replace {
            number: number.0.into(),
            principal: entry.principal.number().into(),
            ..records::Replace::default()
        };
        self.watch(link);
        let head = about(request::REPLACE, link);
        self.request_of(shard, &head, &[replace.as_bytes()]);
    }

    /// Another shard has a link that takes the place of one that is, or was, here.
    pub(super) fn replace_asked(
        &mut self,
        now: Now,
        shard: ShardIndex,
        link: Handle,
        replace: &records::Replace,
    ) {
        let number = LinkNumber(replace.number.get());
        self.replace(now, number, Principal::from_number(replace.principal.get()));
        // Whether it was here or not: the end of one that broke may still be on its way.
        let pass = records::Pass {
            shard: shard.0.into(),
            ..records::Pass::default()
        };
        let own = self.config.shard;
        for other in (0..self.shards()).map(ShardIndex).filter(|it| *it != own) {
            self.request_of(other, &about(request::PASS, link), &[pass.as_bytes()]);
        }
    }

    /// All that another shard had to say of a link's end has come.
    pub(super) fn pass(&mut self, now: Now, link: Handle, pass: &records::Pass) {
        let shard = ShardIndex(pass.shard.get());
        if shard == self.config.shard {
            return self.passed(now, link);
        }
        self.outcome_for(shard, &about(outcome::PASSED, link), &[]);
    }

    /// One shard more has heard of the end of the link that a new one takes the place
    /// of: with the last one that is welcome.
    pub(super) fn passed(&mut self, now: Now, link: Handle) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        let LinkState::Arriving { missing, .. } = &mut entry.state else {
            return;
        };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        entry.state = LinkState::Open;
        let early = entry.intake.release();
        self.welcome(now, link, RequestId(0));
        self.heard(now, link, &early);
    }

    /// Bytes of a client that has no welcome yet: the first request or two.
    pub(super) fn hold(&mut self, link: Handle, bytes: &[u8]) -> Result<(), Fault> {
        let most = limits::HELLO_SIZE_MAX as usize;
        let held = (self.links.get_mut(link)).is_none_or(|link| link.intake.hold(bytes, most));
        if held {
            return Ok(());
        }
        let text = format!("at most {most} bytes may come behind a hello before the welcome");
        Err(Fault::new(Refusal::FrameTooLarge, text))
    }
}

impl Link {
    /// Whether it waits for its welcome.
    pub(super) fn is_arriving(&self) -> bool {
        matches!(self.state, LinkState::Arriving { .. })
    }

    /// Whether it has waited too long for it.
    pub(super) fn is_overdue(&self, now: Monotonic) -> bool {
        match self.state {
            LinkState::Arriving { since, .. } => now.since(since) >= limits::REPLACE_TIMEOUT,
            LinkState::Open | LinkState::Moving { .. } | LinkState::Ending => false,
        }
    }
}

/// Why a link ends that has waited too long for its welcome.
pub(super) fn overdue() -> Fault {
    Fault::new(
        Refusal::HelloTimeout,
        "the link that this one takes the place of did not end in time: try again",
    )
}
