//! Links whose peers send no more, and may still listen: a goodbye without the word.
//!
//! ```text
//!  finished ─> what is owed is still on its way ─> owed nothing ─> end, behind all of it
//!                outcomes, answers, confirmations of any shard
//! ```
//!
//! What a peer sent before has its outcomes and answers, and they leave before the link
//! ends. Most are there at once; those of other shards come in their time, and until
//! then what they are for stays. Nothing can be acknowledged any more, so what consumers
//! hold returns without waiting for that.
//!
//! Links that move wait here as well: for what was answered to leave.
//!
//! Invariants: what is left open on a link that has finished owes its peer something; a
//! shard that does not answer holds up nothing for longer than an orderly stop may take.

use super::consumer::Consumer;
use super::durable::LastWord;
use super::gather::Gather;
use super::{Link, LinkState, Output, Shard};
use crate::id::Handle;
use crate::limits;
use crate::time::{Monotonic, Now};

impl Link {
    /// Whether its peer, who sends no more, has waited too long for what other shards
    /// owe it.
    pub(super) fn is_given_up(&self, now: Monotonic) -> bool {
        let waits = |since: Monotonic| now.since(since.max(self.progress));
        self.state != LinkState::Ending
            && self.egress.bytes() == 0
            && (self.finished).is_some_and(|since| waits(since) >= limits::DRAIN_TIMEOUT)
    }
}

impl Shard {
    /// The peer sends no more, and may still listen. What it sent has its outcomes and
    /// answers, which leave before the link ends. What its consumers hold returns.
    pub fn finished(&mut self, now: Now, link: Handle) {
        // Outcomes of this turn still belong to who sent.
        self.send_completions(now);
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        entry.finished.get_or_insert(now.monotonic);
        entry.frame_since = None;
        self.send_takers_home(now, link);
        self.wind_down(now, link);
        self.watch(link);
        if !self.finishing.contains(&link) {
            self.finishing.push(link);
        }
    }

    /// Ends links whose peers send no more and have no answer left to come, and lets
    /// those go that move.
    #[inline]
    pub(super) fn finish(&mut self, now: Now) {
        if !self.finishing.is_empty() {
            self.finish_all(now);
        }
    }

    #[cold]
    fn finish_all(&mut self, now: Now) {
        let mut finishing = core::mem::take(&mut self.finishing);
        finishing.retain(|&link| {
            self.wind_down(now, link);
            let goes = self.can_finish(link);
            let moves = self.links.get(link).is_some_and(|link| link.is_moving());
            match (goes, moves) {
                (true, true) => self.outputs.push_back(Output::HandOver(link)),
                (true, false) => self.end(now, link, true),
                (false, _) => {}
            }
            !goes
        });
        self.finishing = finishing;
    }

    /// Ends what a link whose peer sends no more has open and owes nothing.
    fn wind_down(&mut self, now: Now, link: Handle) {
        let Some(entry) = self.links.get(link).filter(|it| it.finished.is_some()) else {
            return;
        };
        let (producers, consumers) = (entry.producers.clone(), entry.consumers.clone());
        for producer in producers {
            if !self.producer_owes(producer) {
                self.remove_producer(now, producer, false);
            }
        }
        for consumer in consumers {
            let gather = self.consumers.get(consumer).and_then(Consumer::gather);
            if gather.is_some_and(Gather::owes_confirmations) {
                self.withdraw_sources(now, consumer);
            } else if !self.consumer_owes(consumer) {
                self.remove_consumer(consumer, false);
            } else if gather.is_none() && !self.ends_late(consumer) {
                self.part_with_consumer(now, consumer, false, LastWord::Nobody);
            }
        }
    }

    /// Whether every answer to a link is written; of one that moves, has left.
    pub(super) fn can_finish(&self, link: Handle) -> bool {
        let Some(entry) = self.links.get(link) else {
            return true;
        };
        if entry.is_moving() && entry.egress.bytes() > 0 || entry.is_arriving() {
            return false;
        }
        entry.egress.aside() == 0
            && !entry.producers.iter().any(|it| self.producer_owes(*it))
            && !entry.consumers.iter().any(|it| self.consumer_owes(*it))
            && !self.reports.iter().any(|report| report.is_for(link))
            && !self.deferred.iter().any(|(_, request)| request.is_of(link))
            && !self.is_closing_session_of(link)
    }

    fn is_closing_session_of(&self, link: Handle) -> bool {
        let its = |session: &Handle| {
            self.sessions
                .get(*session)
                .is_some_and(|it| it.link == link)
        };
        self.closing.iter().any(its)
    }

    fn producer_owes(&self, handle: Handle) -> bool {
        (self.producers.get(handle)).is_some_and(|producer| producer.owes())
    }

    fn consumer_owes(&self, handle: Handle) -> bool {
        let gather = self.consumers.get(handle).and_then(Consumer::gather);
        gather.is_some_and(Gather::owes) || self.owes_confirmations(handle)
    }
}
