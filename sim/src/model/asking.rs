//! Consumers that ask whether there is anything for them now.
//!
//! An answer with nothing in front of it says that there was nothing, or only what
//! others took. So what is demanded is the least that is true on however many shards:
//! where a consumer is the only one that its subscription can have had from question to
//! answer, every message that was stored for certain when it asked, and was never
//! handed to anybody, has to stand in front of the answer.

use courser_core::client::Sharing;
use courser_core::frame::Durability;

use super::{Model, PartitionModel, broken};
use crate::violation::{Rule, Violation};

/// What was certain when a consumer asked.
#[derive(Debug)]
pub(super) struct Asking {
    /// For each partition up to where something was stored.
    ends: Vec<u64>,
    /// Whether nobody else could be handed anything.
    alone: bool,
    /// Consumers that there had ever been.
    consumers: usize,
}

/// A subscription with so many unsettled messages hands out no more of them.
const UNSETTLED_MAX: usize = 16_384;

impl Model {
    /// Up to where something may be seen for certain: what is in memory only is not, though
    /// its producer was told of it, as long as what is before it is not durable.
    fn seen_end(&self, log: &PartitionModel) -> u64 {
        let is_seen = |(producer, sequence): &(usize, u64)| {
            let sent = &self.producers[*producer].sends[crate::random::size(*sequence) - 1];
            sent.told == Some(Durability::Flushed)
        };
        let mut known = log.messages.iter().rev();
        let last = known.find(|(_, which)| is_seen(which));
        last.map_or(0, |(offset, _)| offset + 1)
    }

    /// A consumer asks whether there is anything for it now.
    pub(crate) fn poll_asked(&mut self, consumer: usize) {
        let number = self.consumers[consumer].subscription;
        let subscription = &self.subscriptions[number];
        let logs = &self.logs[&subscription.installation][subscription.destination];
        let is_mixed = self.has_disks && self.destinations[subscription.destination].mixed;
        let ends = logs.iter().map(|log| {
            if is_mixed {
                self.seen_end(log)
            } else {
                log.end()
            }
        });
        let ends = ends.collect();
        let is_there = |(index, other): (usize, &super::ConsumerModel)| {
            index != consumer && other.subscription == number && !other.gone
        };
        let has_others = self.consumers.iter().enumerate().any(is_there);
        let is_taken_from = subscription.queue && self.strangers
            // What rests holds up what is behind it of its key.
            || subscription.sharing == Sharing::KeyShared && subscription.returns;
        self.consumers[consumer].asking = Some(Asking {
            ends,
            alone: !is_taken_from && (!subscription.is_shared() || !has_others),
            consumers: self.consumers.len(),
        });
    }

    /// It is answered, with nothing in front of the answer or with something.
    pub(crate) fn polled(&mut self, consumer: usize, nothing: bool) -> Result<(), Violation> {
        self.tally.polls += 1;
        let entry = &mut self.consumers[consumer];
        let Some(asking) = entry.asking.take() else {
            return Ok(());
        };
        let entry = &self.consumers[consumer];
        let number = entry.subscription;
        let subscription = &self.subscriptions[number];
        let is_other =
            |other: &super::ConsumerModel| subscription.is_shared() && other.subscription == number;
        if !nothing
            || !asking.alone
            || entry.ended
            || !entry.opened
            || self.consumers[asking.consumers..].iter().any(is_other)
        {
            return Ok(());
        }
        self.tally.nothings += 1;
        let settled = &self.lineages[entry.lineage].settled;
        let logs = &self.logs[&subscription.installation][subscription.destination];
        for ((partition, end), log) in asking.ends.iter().enumerate().zip(logs) {
            let fates = &subscription.fates[partition];
            let start = entry.fresh.get(partition).copied().unwrap_or(*end);
            let is_due = |offset: &u64| {
                !fates.contains_key(offset)
                    && !settled[partition].contains(offset)
                    && !subscription.resettled[partition].contains(offset)
                    && !self.may_be_gone(number, partition, *offset)
            };
            let unsettled = fates.values().filter(|fate| !fate.acked).count();
            if unsettled < UNSETTLED_MAX
                && let Some(offset) = log.places(start, *end).find(is_due)
            {
                return broken(
                    Rule::Polled,
                    format!(
                        "consumer {consumer} of subscription {number} was told so, and \
                         {partition}@{offset} was there"
                    ),
                );
            }
        }
        Ok(())
    }
}
