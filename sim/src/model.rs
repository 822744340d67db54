//! The oracle: what clients know, and what therefore must not happen.
//!
//! ```text
//!   Sent  --> completed: Stored at a place | never stored | perhaps stored
//!   place --> one message for ever, in the producer's order, dense at the end
//!   Handed--> known, unchanged, in its order, not held by another, not settled
//!   Acked --> confirmed --> never again
//! ```
//!
//! The model sees neither the shard nor the wire, only calls to clients and what
//! clients hand out, and which links the world has broken. Each rule is one
//! sentence of [`Rule`] and a few lines here.

use std::collections::BTreeMap;

use courser_core::client::{Failure, Start, Stored};
use courser_core::error::Refusal;
use courser_core::frame::{MESSAGE_HEADER_SIZE, padded};
use courser_core::id::Offset;

use crate::plan::DestinationPlan;
use crate::violation::{Rule, Violation};

/// A message as its producer knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Of the properties and the body.
    pub(crate) digest: u64,
    pub(crate) properties: usize,
    pub(crate) body: usize,
    pub(crate) key_hash: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// No outcome, and perhaps there will be none: its client died.
    Open,
    Stored,
    /// Told that it may be stored.
    Perhaps,
    /// Told that it is not stored.
    Never,
}

#[derive(Debug)]
struct Sent {
    content: Content,
    partition: u32,
    deadline: u64,
    verdict: Verdict,
    offset: Option<u64>,
    /// When it was taken, in calls of the model.
    at: u64,
}

#[derive(Debug)]
struct ProducerModel {
    destination: usize,
    partitions: u32,
    sends: Vec<Sent>,
    completed: usize,
    /// Sends that went to the partition whose turn it was.
    turns: u64,
}

/// Which partition a send asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    Turn,
    Key(u64),
    Partition(u32),
}

#[derive(Debug, Default)]
struct PartitionModel {
    /// Offset to producer and sequence.
    messages: BTreeMap<u64, (u64, u64)>,
    /// Producer and offset to sequence.
    order: BTreeMap<(u64, u64), u64>,
    /// Frame bytes of all messages that may be there.
    bytes_most: u64,
}

impl PartitionModel {
    /// One more than the highest offset that is known.
    fn end(&self) -> u64 {
        self.messages
            .last_key_value()
            .map_or(0, |(last, _)| last + 1)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    /// How often an application was given it.
    handed: u32,
    holder: Option<usize>,
    acked: bool,
    /// By whom it is settled for certain.
    settled: Option<usize>,
}

#[derive(Debug)]
struct SubscriptionModel {
    destination: usize,
    name: Option<&'static str>,
    shared: bool,
    /// Where it is known to start, for each partition, once a consumer was told.
    starts: Option<Vec<u64>>,
    /// When a consumer was told.
    started_at: u64,
    /// Consumers that have ended, or are about to.
    departures: u32,
    /// Of these, those that are gone at the broker.
    gone: u32,
    /// Of these, those that were closed, and not torn away: what their applications
    /// were not given does not count.
    closed: u32,
    fates: Vec<BTreeMap<u64, Fate>>,
}

#[derive(Debug)]
struct ConsumerModel {
    subscription: usize,
    connection: usize,
    /// Consumers that were gone when it was asked for.
    gone_before: u32,
    /// Of the first of its subscription: where it asked to start, and up to where
    /// each partition was known then.
    wanted: Option<(Start, Vec<u64>)>,
    opened: bool,
    /// It ends, or its link is broken: what it holds may be with another.
    ended: bool,
    /// It is gone at the broker.
    gone: bool,
    /// For each partition what comes next if it never came to anybody.
    fresh: Vec<u64>,
    last: Vec<Option<u64>>,
    /// Handed out and not acknowledged, in that order.
    held: Vec<(u32, u64)>,
    /// Acknowledged and not covered by a confirmation that was asked for.
    acked: Vec<(u32, u64)>,
    /// Confirmations on their way, with what they cover.
    asked: Vec<(u32, Vec<(u32, u64)>)>,
}

/// A message as an application got it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handed {
    pub(crate) producer: u64,
    pub(crate) sequence: u64,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
    pub(crate) content: Content,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Model {
    destinations: Vec<(DestinationPlan, Vec<PartitionModel>)>,
    producers: BTreeMap<u64, ProducerModel>,
    subscriptions: Vec<SubscriptionModel>,
    consumers: Vec<ConsumerModel>,
    calls: u64,
    /// What the report says.
    pub(crate) tally: Tally,
}

/// Counts of what clients did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sends: u64,
    pub(crate) stored: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
    pub(crate) handed: u64,
    pub(crate) redelivered: u64,
    pub(crate) acknowledged: u64,
    pub(crate) confirmed: u64,
}

fn broken<T>(rule: Rule, detail: String) -> Result<T, Violation> {
    Err(Violation::new(rule, detail))
}

impl Model {
    /// A model of an empty broker.
    pub(crate) fn new(destinations: &[DestinationPlan]) -> Self {
        let partitions = |plan: &DestinationPlan| {
            (0..plan.partitions)
                .map(|_| PartitionModel::default())
                .collect()
        };
        let mut model = Self {
            destinations: destinations
                .iter()
                .map(|plan| (plan.clone(), partitions(plan)))
                .collect(),
            ..Self::default()
        };
        for (index, plan) in destinations.iter().enumerate() {
            if plan.is_queue() {
                let starts = vec![0; plan.partitions as usize];
                model.add_subscription(index, None, true, Some(starts));
            }
        }
        model
    }

    // Producers.

    pub(crate) fn producer_opened(
        &mut self,
        id: u64,
        destination: usize,
        partitions: u32,
    ) -> Result<(), Violation> {
        if partitions != self.destinations[destination].0.partitions {
            return broken(
                Rule::Shape,
                format!(
                    "producer {id} of destination {destination} was told {partitions} partitions"
                ),
            );
        }
        let producer = ProducerModel {
            destination,
            partitions,
            sends: Vec::new(),
            completed: 0,
            turns: 0,
        };
        if self.producers.insert(id, producer).is_some() {
            return broken(Rule::ProducerId, format!("id {id} was given out twice"));
        }
        Ok(())
    }

    /// A client took a message.
    pub(crate) fn sent(
        &mut self,
        id: u64,
        sequence: u64,
        asked: Asked,
        content: Content,
        deadline: u64,
    ) -> Result<(), Violation> {
        self.tally.sends += 1;
        self.calls += 1;
        let at = self.calls;
        let producer = self.producer(id);
        let destination = producer.destination;
        if sequence != producer.sends.len() as u64 + 1 {
            return broken(
                Rule::CompletionOrder,
                format!(
                    "producer {id} numbered its send {} as {sequence}",
                    producer.sends.len() + 1
                ),
            );
        }
        let partitions = u64::from(producer.partitions);
        let partition = match asked {
            Asked::Partition(partition) => partition,
            Asked::Key(hash) => u32::try_from(hash % partitions).unwrap_or(0),
            Asked::Turn => {
                producer.turns += 1;
                u32::try_from((producer.turns - 1) % partitions).unwrap_or(0)
            }
        };
        producer.sends.push(Sent {
            content,
            partition,
            deadline,
            verdict: Verdict::Open,
            offset: None,
            at,
        });
        let frame = MESSAGE_HEADER_SIZE + content.properties + content.body;
        self.destinations[destination].1[partition as usize].bytes_most += padded(frame) as u64;
        Ok(())
    }

    /// A client gave the outcome of a send.
    pub(crate) fn completed(
        &mut self,
        id: u64,
        sequence: u64,
        result: &Result<Stored, Failure>,
    ) -> Result<(), Violation> {
        let producer = self.producer(id);
        let next = producer.completed as u64 + 1;
        if sequence != next || producer.completed == producer.sends.len() {
            return broken(
                Rule::CompletionOrder,
                format!(
                    "producer {id} got the outcome of {sequence} where {next} of {} is next",
                    producer.sends.len()
                ),
            );
        }
        let sent = &mut producer.sends[producer.completed];
        producer.completed += 1;
        let partition = sent.partition;
        let seen = sent.offset;
        sent.verdict = match result {
            Ok(_) => Verdict::Stored,
            Err(Failure::Unknown(_)) => Verdict::Perhaps,
            Err(Failure::NotStored(_)) => Verdict::Never,
            Err(Failure::Refused(refusal)) => {
                return broken(
                    Rule::Refused,
                    format!(
                        "send {sequence} of producer {id}: {}",
                        Refusal::text(*refusal)
                    ),
                );
            }
            Err(Failure::RefusedWithCode(code)) => {
                return broken(
                    Rule::Refused,
                    format!("send {sequence} of producer {id}: code {code}"),
                );
            }
        };
        let verdict = sent.verdict;
        match result {
            Ok(stored) => {
                self.tally.stored += 1;
                if stored.position.partition.0 != partition {
                    return broken(
                        Rule::Routing,
                        format!(
                            "send {sequence} of producer {id} went to {} instead of {partition}",
                            stored.position.partition
                        ),
                    );
                }
                self.place(id, sequence, partition, stored.position.offset.0)
            }
            Err(_) if verdict == Verdict::Perhaps => {
                self.tally.unknown += 1;
                Ok(())
            }
            Err(_) => {
                self.tally.failed += 1;
                match seen {
                    Some(offset) => broken(
                        Rule::NeverStored,
                        format!("send {sequence} of producer {id} is at {partition}@{offset}"),
                    ),
                    None => Ok(()),
                }
            }
        }
    }

    /// Every outcome that is there was taken at `now`.
    pub(crate) fn outcomes_taken(&self, id: u64, now: u64) -> Result<(), Violation> {
        let producer = &self.producers[&id];
        match producer.sends.get(producer.completed) {
            Some(sent) if sent.deadline <= now => broken(
                Rule::Overdue,
                format!("send {} of producer {id}", producer.completed + 1),
            ),
            _ => Ok(()),
        }
    }

    /// The client has ended in order: nothing is without outcome.
    pub(crate) fn producer_ended(&self, id: u64) -> Result<(), Violation> {
        let producer = &self.producers[&id];
        if producer.completed == producer.sends.len() {
            return Ok(());
        }
        broken(
            Rule::CompletionMissing,
            format!(
                "producer {id} ended with {} outcomes for {} sends",
                producer.completed,
                producer.sends.len()
            ),
        )
    }

    /// Whether every send of a producer has its outcome.
    pub(crate) fn is_answered(&self, id: u64) -> bool {
        let producer = &self.producers[&id];
        producer.completed == producer.sends.len()
    }

    /// A message was learnt to stand at a place.
    fn place(
        &mut self,
        id: u64,
        sequence: u64,
        partition: u32,
        offset: u64,
    ) -> Result<(), Violation> {
        let producer = self.producer(id);
        let destination = producer.destination;
        let sent = &mut producer.sends[crate::random::size(sequence - 1)];
        match sent.offset {
            Some(before) if before != offset => {
                return broken(
                    Rule::OnePlace,
                    format!("send {sequence} of producer {id} is at {before} and at {offset}"),
                );
            }
            Some(_) => return Ok(()),
            None => sent.offset = Some(offset),
        }
        let model = &mut self.destinations[destination].1[partition as usize];
        if let Some((other, theirs)) = model.messages.insert(offset, (id, sequence)) {
            return broken(
                Rule::OneMessage,
                format!(
                    "{partition}@{offset} of destination {destination} is send {theirs} of \
                     producer {other} and send {sequence} of producer {id}"
                ),
            );
        }
        let before = model.order.range((id, 0)..(id, offset)).next_back();
        let after = model.order.range((id, offset + 1)..(id + 1, 0)).next();
        let rises = before.is_none_or(|(_, earlier)| *earlier < sequence)
            && after.is_none_or(|(_, later)| sequence < *later);
        if !rises {
            return broken(
                Rule::ProducerOrder,
                format!(
                    "send {sequence} of producer {id} at {partition}@{offset}, between {before:?} and {after:?}"
                ),
            );
        }
        model.order.insert((id, offset), sequence);
        Ok(())
    }

    // Consumers.

    /// A client asks for a consumer; returns its number. From here on the broker
    /// may deliver to it, whether or not the answer arrives.
    pub(crate) fn consumer_asked(
        &mut self,
        connection: usize,
        destination: usize,
        name: Option<&'static str>,
        start: Start,
    ) -> usize {
        let found = self.find(destination, name);
        let subscription =
            found.unwrap_or_else(|| self.add_subscription(destination, name, false, None));
        let partitions = self.destinations[destination].1.len();
        let known = self.destinations[destination]
            .1
            .iter()
            .map(PartitionModel::end);
        self.consumers.push(ConsumerModel {
            subscription,
            wanted: found.is_none().then(|| (start, known.collect())),
            connection,
            gone_before: self.subscriptions[subscription].gone,
            opened: false,
            ended: false,
            gone: false,
            last: vec![None; partitions],
            fresh: Vec::new(),
            held: Vec::new(),
            acked: Vec::new(),
            asked: Vec::new(),
        });
        self.consumers.len() - 1
    }

    /// A consumer is open.
    pub(crate) fn consumer_opened(
        &mut self,
        consumer: usize,
        starts: &[Offset],
    ) -> Result<(), Violation> {
        let starts: Vec<u64> = starts.iter().map(|start| start.0).collect();
        let index = self.consumers[consumer].subscription;
        let subscription = &mut self.subscriptions[index];
        if starts.len() != subscription.fates.len() {
            return broken(
                Rule::Shape,
                format!("consumer {consumer} was told {} partitions", starts.len()),
            );
        }
        if subscription.starts.is_none() {
            subscription.starts = Some(starts.clone());
            subscription.started_at = self.calls;
        }
        // One whose link is gone at the broker may hear of its opening late.
        if !subscription.shared
            && !self.consumers[consumer].ended
            && let Some(other) = self
                .consumers
                .iter()
                .position(|other| other.subscription == index && other.opened && !other.ended)
        {
            return broken(
                Rule::Exclusive,
                format!("subscription {index} has consumers {other} and {consumer}"),
            );
        }
        let entry = &mut self.consumers[consumer];
        entry.opened = true;
        entry.fresh = starts;
        self.check_start(consumer)
    }

    /// A new subscription starts where it was asked to.
    fn check_start(&self, consumer: usize) -> Result<(), Violation> {
        let entry = &self.consumers[consumer];
        let Some((wanted, known)) = &entry.wanted else {
            return Ok(());
        };
        let (plan, partitions) =
            &self.destinations[self.subscriptions[entry.subscription].destination];
        for (number, (start, partition)) in entry.fresh.iter().zip(partitions).enumerate() {
            let kept = plan.retain.unwrap_or(0) >= partition.bytes_most;
            let stands = match wanted {
                Start::Earliest => !kept || *start == 0,
                Start::Offset(offset) => !kept || *start <= offset.0,
                Start::Latest => *start >= known[number],
            };
            if !stands {
                return broken(
                    Rule::Start,
                    format!("{wanted:?} became {number}@{start} for consumer {consumer}"),
                );
            }
        }
        Ok(())
    }

    /// A consumer was refused: there is none.
    pub(crate) fn consumer_refused(&mut self, consumer: usize) {
        let entry = &mut self.consumers[consumer];
        entry.ended = true;
        entry.gone = true;
    }

    /// The subscription of a consumer.
    pub(crate) fn subscription_of(&self, consumer: usize) -> usize {
        self.consumers[consumer].subscription
    }

    /// A consumer is about to end: what it holds may return.
    pub(crate) fn consumer_departs(&mut self, consumer: usize) {
        let entry = &mut self.consumers[consumer];
        if !entry.ended {
            entry.ended = true;
            self.subscriptions[entry.subscription].departures += 1;
        }
    }

    /// A consumer has ended, at the broker too.
    pub(crate) fn consumer_gone(&mut self, consumer: usize) {
        self.consumer_departs(consumer);
        let entry = &mut self.consumers[consumer];
        if !entry.gone {
            entry.gone = true;
            self.subscriptions[entry.subscription].gone += 1;
        }
    }

    /// A consumer was closed, which the broker confirmed.
    pub(crate) fn consumer_closed(&mut self, consumer: usize) {
        self.consumer_gone(consumer);
        self.subscriptions[self.consumers[consumer].subscription].closed += 1;
    }

    /// A connection is broken, or about to be.
    pub(crate) fn link_breaks(&mut self, connection: usize) {
        for consumer in self.consumers_of(connection) {
            self.consumer_departs(consumer);
        }
    }

    /// The broker has noticed that a connection is gone, or has ended it.
    pub(crate) fn link_gone(&mut self, connection: usize) {
        for consumer in self.consumers_of(connection) {
            self.consumer_gone(consumer);
        }
    }

    fn consumers_of(&self, connection: usize) -> Vec<usize> {
        (0..self.consumers.len())
            .filter(|index| {
                self.consumers[*index].connection == connection && !self.consumers[*index].gone
            })
            .collect()
    }

    /// An application was given a message.
    pub(crate) fn handed(&mut self, consumer: usize, handed: &Handed) -> Result<(), Violation> {
        self.tally.handed += 1;
        self.tally.redelivered += u64::from(handed.count > 1);
        let place = format!(
            "{}@{} of subscription {}, send {} of producer {}, to consumer {consumer} for the {}. time",
            handed.partition,
            handed.offset,
            self.consumers[consumer].subscription,
            handed.sequence,
            handed.producer,
            handed.count
        );
        self.check_content(consumer, handed, &place)?;
        self.place(
            handed.producer,
            handed.sequence,
            handed.partition,
            handed.offset,
        )?;
        self.check_order(consumer, handed, &place)?;
        self.check_fate(consumer, handed, &place)
    }

    fn check_content(
        &self,
        consumer: usize,
        handed: &Handed,
        place: &str,
    ) -> Result<(), Violation> {
        let subscription = &self.subscriptions[self.consumers[consumer].subscription];
        let sent = self
            .producers
            .get(&handed.producer)
            .filter(|producer| producer.destination == subscription.destination)
            .and_then(|producer| {
                producer
                    .sends
                    .get(crate::random::size(handed.sequence).wrapping_sub(1))
            });
        let Some(sent) = sent else {
            return broken(Rule::Unheard, place.into());
        };
        if sent.verdict == Verdict::Never {
            return broken(Rule::NeverStored, place.into());
        }
        if sent.partition != handed.partition {
            return broken(
                Rule::Routing,
                format!("{place}, sent to {}", sent.partition),
            );
        }
        if sent.content != handed.content {
            return broken(
                Rule::Content,
                format!(
                    "{place}: {:?} was sent, {:?} came",
                    sent.content, handed.content
                ),
            );
        }
        Ok(())
    }

    /// Fresh messages rise; with one consumer at a time they do so without a gap.
    fn check_order(
        &mut self,
        consumer: usize,
        handed: &Handed,
        place: &str,
    ) -> Result<(), Violation> {
        let entry = &mut self.consumers[consumer];
        let subscription = &self.subscriptions[entry.subscription];
        let index = handed.partition as usize;
        let last = entry.last[index];
        let rises = last.is_none_or(|last| last < handed.offset);
        let may_fall = subscription.shared && subscription.departures > entry.gone_before;
        if !rises && !may_fall {
            return broken(Rule::ConsumerOrder, format!("{place}, after {last:?}"));
        }
        entry.last[index] = last.max(Some(handed.offset));
        if !subscription.shared && handed.offset >= entry.fresh[index] {
            if handed.offset != entry.fresh[index] {
                return broken(
                    Rule::Gap,
                    format!("{place}, where {} is next", entry.fresh[index]),
                );
            }
            entry.fresh[index] += 1;
        }
        Ok(())
    }

    fn check_fate(
        &mut self,
        consumer: usize,
        handed: &Handed,
        place: &str,
    ) -> Result<(), Violation> {
        let key = (handed.partition, handed.offset);
        let entry = &mut self.consumers[consumer];
        if entry.ended {
            // Its link is broken and it does not know yet: what it still hands out may
            // be with another by now.
            return Ok(());
        }
        let subscription = &mut self.subscriptions[entry.subscription];
        let torn = subscription.departures - subscription.closed;
        let fate = subscription.fates[handed.partition as usize]
            .entry(handed.offset)
            .or_default();
        if let Some(settler) = fate.settled {
            return broken(
                Rule::Settled,
                format!("{place}; settled by consumer {settler}"),
            );
        }
        if let Some(holder) = fate.holder
            && (holder == consumer || !self.consumers[holder].ended)
        {
            return broken(
                Rule::OneHolder,
                format!("{place}; held by consumer {holder}"),
            );
        }
        if handed.count <= fate.handed {
            return broken(
                Rule::Count,
                format!(
                    "{place}; applications were given it {} times before",
                    fate.handed
                ),
            );
        }
        if handed.count > fate.handed + torn + 1 {
            return broken(
                Rule::Count,
                format!(
                    "{place}; applications were given it {} times before, and {torn} consumers \
                     were torn away",
                    fate.handed
                ),
            );
        }
        fate.handed += 1;
        fate.holder = Some(consumer);
        fate.acked = false;
        let entry = &mut self.consumers[consumer];
        entry.held.push(key);
        Ok(())
    }

    /// An application acknowledged one message it holds.
    pub(crate) fn acknowledged(&mut self, consumer: usize, key: (u32, u64)) {
        let entry = &mut self.consumers[consumer];
        entry.held.retain(|held| *held != key);
        self.settle(consumer, key);
    }

    /// An application acknowledged a message and all it was given before in that
    /// partition.
    pub(crate) fn acknowledged_through(&mut self, consumer: usize, key: (u32, u64)) {
        let entry = &mut self.consumers[consumer];
        let Some(last) = entry.held.iter().position(|held| *held == key) else {
            return;
        };
        let mut index = 0;
        let mut through = Vec::new();
        entry.held.retain(|held| {
            index += 1;
            let covered = held.0 == key.0 && index <= last + 1;
            if covered {
                through.push(*held);
            }
            !covered
        });
        for key in through {
            self.settle(consumer, key);
        }
    }

    fn settle(&mut self, consumer: usize, key: (u32, u64)) {
        self.tally.acknowledged += 1;
        let entry = &mut self.consumers[consumer];
        if entry.ended {
            return;
        }
        entry.acked.push(key);
        if let Some(fate) =
            self.subscriptions[entry.subscription].fates[key.0 as usize].get_mut(&key.1)
        {
            fate.acked = true;
        }
    }

    /// What a consumer's application holds, in the order it was given.
    pub(crate) fn held(&self, consumer: usize) -> &[(u32, u64)] {
        &self.consumers[consumer].held
    }

    /// A confirmation was asked for all acknowledgements so far.
    pub(crate) fn confirm_asked(&mut self, consumer: usize, token: u32) {
        let entry = &mut self.consumers[consumer];
        let covered = core::mem::take(&mut entry.acked);
        entry.asked.push((token, covered));
    }

    /// A confirmation came.
    pub(crate) fn confirmed(
        &mut self,
        consumer: usize,
        token: u32,
        refusal: Option<u16>,
    ) -> Result<(), Violation> {
        let entry = &mut self.consumers[consumer];
        if let Some(code) = refusal {
            return broken(
                Rule::AckRefused,
                format!("confirmation {token} to consumer {consumer} with code {code}"),
            );
        }
        if entry.asked.first().map(|(asked, _)| *asked) != Some(token) {
            return broken(
                Rule::Confirmation,
                format!(
                    "{token} to consumer {consumer}, asked were {:?}",
                    entry
                        .asked
                        .iter()
                        .map(|(asked, _)| *asked)
                        .collect::<Vec<_>>()
                ),
            );
        }
        let (_, covered) = entry.asked.remove(0);
        let subscription = entry.subscription;
        for key in covered {
            self.tally.confirmed += 1;
            let fate = self.subscriptions[subscription].fates[key.0 as usize]
                .entry(key.1)
                .or_default();
            match fate.settled {
                Some(other) if other != consumer => {
                    return broken(
                        Rule::SettledOnce,
                        format!("{}@{} by consumers {other} and {consumer}", key.0, key.1),
                    );
                }
                _ => fate.settled = Some(consumer),
            }
        }
        Ok(())
    }

    // The end.

    /// Everything is drained: the broker says that it stored `stored` messages of
    /// each destination and none is unsettled.
    pub(crate) fn drained(&self, stored: &[u64]) -> Result<(), Violation> {
        for (index, (plan, partitions)) in self.destinations.iter().enumerate() {
            let known: u64 = partitions
                .iter()
                .map(|partition| partition.messages.len() as u64)
                .sum();
            let unknown: u64 = self
                .producers
                .values()
                .filter(|producer| producer.destination == index)
                .flat_map(|producer| &producer.sends)
                .filter(|sent| {
                    sent.offset.is_none()
                        && matches!(sent.verdict, Verdict::Open | Verdict::Perhaps)
                })
                .count() as u64;
            if known > stored[index] || stored[index] > known + unknown {
                return broken(
                    Rule::Dense,
                    format!(
                        "{} stored {}, {known} places are known and {unknown} sends are without",
                        plan.destination, stored[index]
                    ),
                );
            }
            for (number, partition) in partitions.iter().enumerate() {
                let next = partition.end();
                let holes = next - partition.messages.len() as u64;
                // Everything in a queue is handed out, so everything is known.
                if holes > if plan.is_queue() { 0 } else { unknown } {
                    return broken(
                        Rule::Dense,
                        format!(
                            "partition {number} of {} ends at {next} with {holes} holes",
                            plan.destination
                        ),
                    );
                }
            }
        }
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            if subscription.name.is_none() && !subscription.shared {
                self.check_fleeting(index)?;
                continue;
            }
            let partitions = &self.destinations[subscription.destination].1;
            for (number, partition) in partitions.iter().enumerate() {
                let Some(starts) = &subscription.starts else {
                    continue;
                };
                for (offset, (id, sequence)) in partition.messages.range(..starts[number]) {
                    let sent = &self.producers[id].sends[crate::random::size(*sequence) - 1];
                    if sent.at > subscription.started_at {
                        return broken(
                            Rule::Start,
                            format!(
                                "subscription {index} starts at {number}@{}, behind {offset}, which was sent later",
                                starts[number]
                            ),
                        );
                    }
                }
                for offset in partition
                    .messages
                    .range(starts[number]..)
                    .map(|(offset, _)| *offset)
                {
                    let fate = subscription.fates[number]
                        .get(&offset)
                        .copied()
                        .unwrap_or_default();
                    if fate.handed == 0 || !fate.acked {
                        return broken(
                            Rule::Lost,
                            format!(
                                "{number}@{offset} of subscription {index} ({} {:?}) was handed out {} times, acknowledged: {}",
                                self.destinations[subscription.destination].0.destination,
                                subscription.name,
                                fate.handed,
                                fate.acked
                            ),
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// A subscription that ends with its consumer has brought everything so far.
    fn check_fleeting(&self, index: usize) -> Result<(), Violation> {
        let Some((number, consumer)) = self.consumers.iter().enumerate().find(|(_, consumer)| {
            consumer.subscription == index && consumer.opened && !consumer.ended
        }) else {
            return Ok(());
        };
        let destination = self.subscriptions[index].destination;
        for (partition, model) in self.destinations[destination].1.iter().enumerate() {
            let next = model.end();
            if consumer.fresh[partition] < next {
                return broken(
                    Rule::Lost,
                    format!(
                        "consumer {number} got partition {partition} up to {} of {next}",
                        consumer.fresh[partition]
                    ),
                );
            }
        }
        Ok(())
    }

    fn producer(&mut self, id: u64) -> &mut ProducerModel {
        self.producers
            .get_mut(&id)
            .expect("only producers that were opened send")
    }

    fn find(&self, destination: usize, name: Option<&'static str>) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| {
            subscription.destination == destination
                && (subscription.shared || (name.is_some() && subscription.name == name))
        })
    }

    fn add_subscription(
        &mut self,
        destination: usize,
        name: Option<&'static str>,
        shared: bool,
        starts: Option<Vec<u64>>,
    ) -> usize {
        let partitions = self.destinations[destination].1.len();
        self.subscriptions.push(SubscriptionModel {
            destination,
            name,
            shared,
            fates: vec![BTreeMap::new(); partitions],
            starts,
            started_at: 0,
            departures: 0,
            gone: 0,
            closed: 0,
        });
        self.subscriptions.len() - 1
    }
}
