//! What of a subscription is one consumer's alone at a time: a partition where the
//! others stand by, a key where keys decide.
//!
//! ```text
//!   free ── handed ──> held ── all settled, given back, or its holder has ended ──> free
//! ```
//!
//! Whoever has a claim is first given what the one before left of it, and then goes on
//! in the order of the log: nothing of a claim is passed over. What was given back may
//! come later, since its application chose that.

use std::collections::BTreeMap;

use courser_core::client::Sharing;

use super::{Handed, Model, broken};
use crate::violation::{Rule, Violation};

/// What a claim is about, within a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// All of it.
    Partition,
    /// A key.
    Key(u64),
    /// What a producer sent without a key.
    Producer(usize),
}

impl Subject {
    /// What decides where keys do.
    pub(super) fn of(key_hash: Option<u64>, producer: usize) -> Self {
        key_hash.map_or(Self::Producer(producer), Self::Key)
    }
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    holder: usize,
    /// Messages that its application holds.
    held: u64,
    /// Everything before this is settled.
    floor: u64,
}

/// The claims of one subscription.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<(u32, Subject), Claim>);

impl Model {
    /// What a message of a subscription is claimed by, if by anything.
    fn subject(
        &self,
        subscription: usize,
        key_hash: Option<u64>,
        producer: usize,
    ) -> Option<Subject> {
        match self.subscriptions[subscription].sharing {
            Sharing::Failover => Some(Subject::Partition),
            Sharing::KeyShared => Some(Subject::of(key_hash, producer)),
            _ => None,
        }
    }

    /// A consumer that is there is handed a message: nobody else has what it belongs
    /// to, and nothing before it is left over.
    pub(super) fn check_claim(
        &mut self,
        consumer: usize,
        producer: usize,
        handed: &Handed,
        place: &str,
    ) -> Result<(), Violation> {
        let number = self.consumers[consumer].subscription;
        let Some(subject) = self.subject(number, handed.content.key_hash, producer) else {
            return Ok(());
        };
        if self.consumers[consumer].ended {
            return Ok(());
        }
        let key = (handed.partition, subject);
        let subscription = &self.subscriptions[number];
        let start =
            (subscription.starts.as_ref()).map_or(0, |starts| starts[handed.partition as usize]);
        let mut claim = subscription.claims.0.get(&key).copied().unwrap_or(Claim {
            holder: consumer,
            held: 0,
            floor: start,
        });
        if claim.holder != consumer && claim.held > 0 && !self.consumers[claim.holder].ended {
            return broken(
                Rule::Claim,
                format!(
                    "{place}; consumer {} holds {} of {subject:?}",
                    claim.holder, claim.held
                ),
            );
        }
        let fates = &subscription.fates[handed.partition as usize];
        if !fates.contains_key(&handed.offset) {
            let left = self.left_over(consumer, number, key, &mut claim.floor, handed.offset);
            if let Some(left) = left {
                return broken(
                    Rule::PassedOver,
                    format!("{place}; {left} of {subject:?} comes first"),
                );
            }
        }
        claim.held = if claim.holder == consumer {
            claim.held + 1
        } else {
            1
        };
        claim.holder = consumer;
        self.subscriptions[number].claims.0.insert(key, claim);
        Ok(())
    }

    /// The first message of a claim before `offset` that neither was settled nor is with
    /// the consumer nor was given back. Raises the floor over what is settled.
    fn left_over(
        &self,
        consumer: usize,
        number: usize,
        (partition, subject): (u32, Subject),
        floor: &mut u64,
        offset: u64,
    ) -> Option<u64> {
        let subscription = &self.subscriptions[number];
        let index = partition as usize;
        let log = &self.logs[&subscription.installation][subscription.destination][index];
        // One that comes back for the first time lies below.
        let from = (*floor).min(offset);
        let mut settled_so_far = true;
        let mut is_left = |at: u64| {
            let fate = subscription.fates[index].get(&at);
            let settled = subscription.resettled[index].contains(&at)
                || fate.is_some_and(|fate| fate.acked || fate.settled.is_some())
                || self.may_be_gone(number, index, at);
            settled_so_far &= settled;
            if settled_so_far {
                *floor = at + 1;
            }
            let is_accounted_for =
                fate.is_some_and(|fate| fate.holder.is_none_or(|holder| holder == consumer));
            !settled && !is_accounted_for
        };
        match subject {
            Subject::Partition => log.places(from, offset).find(|at| is_left(*at)),
            _ => {
                let known = log.by_key.get(&subject)?;
                let mut known = known.range(from..offset).copied();
                known.find(|at| is_left(*at))
            }
        }
    }

    /// The application of a consumer holds a message no longer.
    pub(super) fn release(&mut self, consumer: usize, (partition, offset): (u32, u64)) {
        let number = self.consumers[consumer].subscription;
        let subscription = &self.subscriptions[number];
        let log =
            &self.logs[&subscription.installation][subscription.destination][partition as usize];
        let Some((producer, sequence)) = log.messages.get(&offset).copied() else {
            return;
        };
        let sent = &self.producers[producer].sends[crate::random::size(sequence) - 1];
        let Some(subject) = self.subject(number, sent.content.key_hash, producer) else {
            return;
        };
        let claims = &mut self.subscriptions[number].claims.0;
        if let Some(claim) = claims.get_mut(&(partition, subject))
            && claim.holder == consumer
        {
            claim.held = claim.held.saturating_sub(1);
        }
    }
}
