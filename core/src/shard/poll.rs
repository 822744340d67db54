//! Polls: a consumer asks whether there is anything for it now.
//!
//! ```text
//!   Poll ──> every part is looked at ──> deliveries, if any ──> Polled
//!              a source elsewhere: POLL ──> READY, if so, POLLED ──>
//! ```
//!
//! The answer stands behind whatever there was for the consumer when it asked, so one
//! that got nothing before it knows that there was nothing. It waits until the parts
//! were dispatched, and for a front until each source has said that it was and what
//! that said to have was fetched or went to others.
//!
//! Invariants: a consumer has at most one poll, the newest; an earlier one of it is
//! answered with that.

use zerocopy::IntoBytes;

use super::fan::about;
use super::records::{self, delivery, request};
use super::{Fault, LinkState, Shard};
use crate::frame::control::Polled;
use crate::id::{Handle, ShardIndex};
use crate::time::Now;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Poll {
    consumer: Handle,
    /// What the client asked to have echoed.
    token: u32,
    /// Messages that it had been delivered by then.
    delivered: u64,
    /// Of a front: sources that have not said that they looked.
    missing: usize,
}

/// What is to be done about a poll.
enum Next {
    Wait,
    Answer,
    Forget,
}

impl Shard {
    /// A client asks for one of its consumers.
    pub(super) fn poll(&mut self, link: Handle, handle: Handle, token: u32) -> Result<(), Fault> {
        let consumer = self.consumer_on(link, handle)?;
        let delivered = consumer.delivered();
        let sources = consumer.gather().map(|gather| gather.places());
        self.polls.retain(|poll| poll.consumer != handle);
        self.polls.push(Poll {
            consumer: handle,
            token,
            delivered,
            missing: sources.as_ref().map_or(0, Vec::len),
        });
        let Some(sources) = sources else {
            self.queue_destination_of(handle);
            return Ok(());
        };
        let ask = records::Poll {
            front: handle.0.into(),
            token: token.into(),
        };
        for (shard, source) in sources {
            if shard == self.config.shard {
                self.poll_source(shard, source, &ask);
            } else {
                let head = about(request::POLL, source);
                self.request_for(link, shard, &head, &[ask.as_bytes()])?;
            }
        }
        Ok(())
    }

    /// A front asks for one of its sources, which is here.
    pub(super) fn poll_source(&mut self, shard: ShardIndex, source: Handle, ask: &records::Poll) {
        let Some(consumer) = self.consumers.get(source) else {
            return self.say_polled(shard, Handle(ask.front.get()), ask.token.get());
        };
        let delivered = consumer.delivered();
        self.polls.retain(|poll| poll.consumer != source);
        self.polls.push(Poll {
            consumer: source,
            token: ask.token.get(),
            delivered,
            missing: 0,
        });
        self.queue_destination_of(source);
    }

    /// A source of a front has looked; what it has it said before.
    pub(super) fn polled_source(&mut self, front: Handle, token: u32) {
        let mut polls = self.polls.iter_mut();
        if let Some(poll) = polls.find(|it| it.consumer == front && it.token == token) {
            poll.missing = poll.missing.saturating_sub(1);
        }
    }

    /// Answers the polls that can be, behind what was dispatched in this turn.
    #[inline]
    pub(super) fn answer_polls(&mut self, now: Now) {
        if !self.polls.is_empty() {
            self.answer_some(now);
        }
    }

    #[cold]
    fn answer_some(&mut self, now: Now) {
        // A source that is answered may be the last that a front here waits for.
        for fronts in [false, true] {
            for poll in core::mem::take(&mut self.polls) {
                let consumer = self.consumers.get(poll.consumer);
                let is_front = consumer.is_some_and(|it| it.gather().is_some());
                let next = if is_front == fronts {
                    self.next_of(&poll)
                } else {
                    Next::Wait
                };
                match next {
                    Next::Wait => self.polls.push(poll),
                    Next::Forget => {}
                    Next::Answer => self.answer_poll(now, &poll),
                }
            }
        }
    }

    fn next_of(&self, poll: &Poll) -> Next {
        let Some(consumer) = self.consumers.get(poll.consumer) else {
            return Next::Forget;
        };
        let link = self.links.get(consumer.link);
        if link.is_some_and(|link| link.egress.awaits_more()) {
            // A run leaves once all of it has arrived, and the answer not before it.
            return Next::Wait;
        }
        if consumer.ended().is_some() || consumer.delivered() > poll.delivered {
            return Next::Answer;
        }
        let is_queued = || {
            let local = self.locals.get(consumer.destination());
            local.is_some_and(|local| local.queued.contains(&true))
                || (self.pager.as_ref()).is_some_and(|it| it.awaits(consumer.destination()))
        };
        if consumer.source().is_some() {
            return if is_queued() {
                Next::Wait
            } else {
                Next::Answer
            };
        }
        let Some(link) = link else {
            return Next::Forget;
        };
        let waits = match consumer.gather() {
            _ if link.state == LinkState::Ending => return Next::Forget,
            _ if consumer.credit_left().0 == 0 || consumer.credit_left().1 == 0 => false,
            Some(gather) => {
                poll.missing > 0 || gather.is_ready() || link.leases.is_lent_to(poll.consumer)
            }
            None => is_queued() || link.starved || link.deliveries_wait,
        };
        if waits { Next::Wait } else { Next::Answer }
    }

    fn answer_poll(&mut self, now: Now, poll: &Poll) {
        let Some(consumer) = self.consumers.get(poll.consumer) else {
            return;
        };
        if let Some(source) = consumer.source() {
            let origin = source.origin;
            return self.say_polled(origin.shard, origin.front, poll.token);
        }
        let link = consumer.link;
        let polled = Polled {
            token: poll.token.into(),
            ..Polled::default()
        };
        if let Err(fault) = self.answer(now, link, poll.consumer.0, &polled, &[]) {
            self.fault(now, link, &fault);
        }
    }

    /// Tells a front that a source has looked: behind what that said to have.
    fn say_polled(&mut self, shard: ShardIndex, front: Handle, token: u32) {
        if shard == self.config.shard {
            return self.polled_source(front, token);
        }
        let polled = records::Polled {
            token: token.into(),
            ..records::Polled::default()
        };
        let head = about(delivery::POLLED, front);
        self.deliver_to(shard, &head, &[polled.as_bytes()]);
    }

    /// Whether [`Shard::answer_polls`] might find something to do in a turn without any
    /// new fact: one that came from another shard in this one is looked at in it.
    pub(super) fn has_polls(&self) -> bool {
        let mut polls = self.polls.iter();
        polls.any(|poll| !matches!(self.next_of(poll), Next::Wait))
    }
}
