//! The oracle: what clients know, and what therefore must not happen.
//!
//! ```text
//!   Sent  --> completed: Stored at a place | never stored | perhaps stored
//!   place --> one message for ever, in the producer's order, dense at the end
//!   Handed--> known, unchanged, in its order, not held by another, not settled
//!   Acked --> confirmed --> never again
//!   given back --> rests --> known, counted
//! ```
//!
//! A broker that starts again is another installation with empty logs. What a client
//! takes while it believes to talk to one installation may be stored there and
//! nowhere else.
//!
//! A power cut ends a run of the same installation. What is durable is there in the next
//! one; what was in memory only may be lost, and leaves a hole that is never filled. What
//! was to be flushed, and its producer was not told of, may be stored again behind that.
//!
//! The model sees neither the shard nor the wire, only calls to clients and what
//! clients hand out, and which links the world has broken. Each rule is one
//! sentence of [`Rule`] and a few lines here.

mod asking;
mod claims;
mod lives;
mod tenure;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use courser_core::client::{Cause, Failure, Sharing, Start, Stored};
use courser_core::error::Refusal;
use courser_core::frame::{Durability, MESSAGE_HEADER_SIZE, padded};
use courser_core::id::{Epoch, Installation, Offset, ProducerId};

use crate::plan::{Access, DestinationPlan};
use crate::violation::{Rule, Violation};
use asking::Asking;
use claims::{Claims, Subject};
use lives::Lives;
use tenure::{Standing, Taker, Tenures};

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
    /// Whose data it may become part of: its client believed to talk to this one.
    installation: u128,
    /// Its producer's incarnation, which is part of its id.
    epoch: u32,
    partition: u32,
    deadline: u64,
    /// It is to be flushed, not in memory only.
    to_flush: bool,
    verdict: Verdict,
    offset: Option<u64>,
    /// Its producer was told that this is its place, and perhaps that it is flushed.
    told: Option<Durability>,
    /// When it was taken, in calls of the model.
    at: u64,
    /// The power cuts before it was taken.
    cuts: u64,
    /// Those before it was last known to be there, or on its way.
    there: u64,
    /// The last tenure of its destination that had begun for certain.
    term: u32,
}

/// A producer of a client, whatever brokers call it.
#[derive(Debug)]
struct ProducerModel {
    destination: usize,
    /// What the broker said last of its incarnation.
    epoch: u32,
    partitions: u32,
    sends: Vec<Sent>,
    completed: usize,
    /// Sends that went to the partition whose turn it was.
    turns: u64,
    standing: Standing,
}

/// Who a producer is said to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    pub(crate) installation: Installation,
    pub(crate) id: ProducerId,
    pub(crate) epoch: Epoch,
    pub(crate) partitions: u32,
    /// Where its client heard of it.
    pub(crate) connection: usize,
    pub(crate) access: Access,
}

/// What a client knows when it gives an outcome.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances {
    pub(crate) now: u64,
    pub(crate) installation: Installation,
    /// Whether it has given its link up.
    pub(crate) ended: bool,
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
    messages: BTreeMap<u64, (usize, u64)>,
    /// Producer and offset to sequence.
    order: BTreeMap<(usize, u64), u64>,
    /// The offsets of each key.
    by_key: BTreeMap<Subject, BTreeSet<u64>>,
    /// Offsets where something was that a power cut took, and that stands elsewhere now.
    lost: BTreeMap<u64, (usize, u64)>,
    /// Before this there may be holes.
    dense_from: u64,
    /// Frame bytes of all messages that may be there.
    bytes_most: u64,
    tenures: Tenures,
}

impl PartitionModel {
    /// The offsets in a range that messages have, as far as that can be said: all but holes.
    fn places(&self, from: u64, end: u64) -> impl Iterator<Item = u64> {
        let end = end.max(from);
        let dense = self.dense_from.clamp(from, end);
        let known = self.messages.range(from..dense).map(|(offset, _)| *offset);
        known.chain(dense..end)
    }

    /// What stands at an offset stands there no longer.
    fn take_away(&mut self, offset: u64, key_hash: Option<u64>, (number, sequence): (usize, u64)) {
        self.messages.remove(&offset);
        self.order.remove(&(number, offset));
        if let Some(offsets) = self.by_key.get_mut(&Subject::of(key_hash, number)) {
            offsets.remove(&offset);
        }
        self.lost.insert(offset, (number, sequence));
    }

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
    /// Of these, since the broker came up: of others it may know.
    counted: u32,
    holder: Option<usize>,
    acked: bool,
    /// Who gave it back, and until when it rests if the broker has heard of it.
    rest: Option<(usize, u64)>,
    /// By whom it is settled for certain.
    settled: Option<usize>,
}

#[derive(Debug)]
struct SubscriptionModel {
    installation: u128,
    destination: usize,
    name: Option<&'static str>,
    /// The queue's own.
    queue: bool,
    /// How many consumers it has at once, and what of it is whose.
    sharing: Sharing,
    /// What is whose alone.
    claims: Claims,
    /// Something was given back.
    returns: bool,
    /// For each partition what applications settled on connections that were lost,
    /// and settle again without being handed it again.
    resettled: Vec<BTreeSet<u64>>,
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

impl SubscriptionModel {
    /// Whether it ends with its consumer.
    fn is_fleeting(&self) -> bool {
        self.name.is_none() && !self.queue
    }

    /// Whether it has several consumers at once.
    fn is_shared(&self) -> bool {
        self.queue || !matches!(self.sharing, Sharing::Usual | Sharing::One)
    }

    /// Whether an application settled a message, whatever the broker heard of it.
    fn may_be_settled(&self, partition: usize, offset: u64) -> bool {
        let fate = self.fates[partition].get(&offset);
        self.resettled[partition].contains(&offset)
            || fate.is_some_and(|fate| fate.acked || fate.settled.is_some())
    }
}

/// A consumer of a client, over all its connections.
#[derive(Debug)]
struct Lineage {
    /// Where its application began, if it was told: what lies before is left out, on
    /// whichever connection.
    starts: Option<Vec<u64>>,
    /// What its application settled, for each partition.
    settled: Vec<BTreeSet<u64>>,
    /// Of this, one by one: that is settled again on another connection.
    singly: Vec<BTreeSet<u64>>,
    /// The last that it settled one by one, for each partition.
    lately: Vec<VecDeque<u64>>,
}

/// So many of the messages that an application settled one by one, for each
/// partition, it is never handed again, whatever the broker heard of it.
const LATELY: usize = 250;

/// A consumer on one connection.
#[derive(Debug)]
struct ConsumerModel {
    subscription: usize,
    connection: usize,
    lineage: usize,
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
    /// Confirmations on their way, in order.
    asked: Vec<ConfirmationAsked>,
    asking: Option<Asking>,
}

/// A confirmation that was asked for.
#[derive(Debug)]
struct ConfirmationAsked {
    token: u32,
    /// Whether it is also one of what was settled on a connection that was lost: that
    /// may wait to be delivered again.
    in_doubt: bool,
    covered: Vec<(u32, u64)>,
}

/// A message as an application got it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handed {
    pub(crate) now: u64,
    pub(crate) installation: Installation,
    pub(crate) producer: u64,
    pub(crate) epoch: u32,
    pub(crate) sequence: u64,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
    pub(crate) content: Content,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Model {
    destinations: Vec<DestinationPlan>,
    /// The broker's, as it is now.
    installation: u128,
    /// Each installation's logs, by destination and partition.
    logs: BTreeMap<u128, Vec<Vec<PartitionModel>>>,
    producers: Vec<ProducerModel>,
    /// Installation and id to producer.
    names: BTreeMap<(u128, u64), usize>,
    lineages: Vec<Lineage>,
    subscriptions: Vec<SubscriptionModel>,
    consumers: Vec<ConsumerModel>,
    /// Connections that are broken, or about to be.
    broken: BTreeSet<usize>,
    /// When a client heard that its connection is open, in calls of the model.
    opened: BTreeMap<usize, u64>,
    takers: Vec<Taker>,
    lives: Lives,
    /// How often each destination of an installation was one producer's alone.
    terms: BTreeMap<(u128, usize), u32>,
    /// Ids of producers that somebody asked to have shut out.
    fences: BTreeSet<u64>,
    /// Peers take messages out of queues of which nothing is known here.
    strangers: bool,
    calls: u64,
    /// Whether the broker has disks.
    has_disks: bool,
    /// Of the power: brokers count anew what they have stored.
    cuts: u64,
    /// Those before the last time that a disk could not write.
    failed: Option<u64>,
    /// What the report says.
    pub(crate) tally: Tally,
}

/// Counts of what clients did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sends: u64,
    /// Of these, those that are to be in memory only.
    pub(crate) in_memory: u64,
    pub(crate) stored: u64,
    /// Of these, told no place.
    pub(crate) placeless: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
    pub(crate) handed: u64,
    pub(crate) redelivered: u64,
    pub(crate) acknowledged: u64,
    pub(crate) confirmed: u64,
    pub(crate) given_back: u64,
    pub(crate) producers_resumed: u64,
    pub(crate) consumers_resumed: u64,
    pub(crate) tenures: u64,
    pub(crate) takers: u64,
    pub(crate) turned_away: u64,
    pub(crate) fenced: u64,
    pub(crate) polls: u64,
    pub(crate) nothings: u64,
    pub(crate) deletions: u64,
}

/// Nothing else was ever learnt to stand at a place.
fn check_free(
    log: &PartitionModel,
    (partition, offset): (u32, u64),
    (number, sequence): (usize, u64),
) -> Result<(), Violation> {
    let before = log.messages.get(&offset).or_else(|| log.lost.get(&offset));
    match before {
        Some((other, theirs)) if (*other, *theirs) != (number, sequence) => broken(
            Rule::OneMessage,
            format!(
                "{partition}@{offset} is send {theirs} of producer {other} and send {sequence} \
                 of producer {number}"
            ),
        ),
        _ => Ok(()),
    }
}

fn broken<T>(rule: Rule, detail: String) -> Result<T, Violation> {
    Err(Violation::new(rule, detail))
}

impl Model {
    /// A model of an empty broker.
    pub(crate) fn new(
        destinations: &[DestinationPlan],
        installation: Installation,
        strangers: bool,
        has_disks: bool,
    ) -> Self {
        let mut model = Self {
            destinations: destinations.to_vec(),
            strangers,
            has_disks,
            ..Self::default()
        };
        model.begins(installation);
        model
    }

    /// Another broker takes the place of the last one, which held nothing that it has.
    pub(crate) fn begins(&mut self, installation: Installation) {
        self.installation = installation.0;
        for consumer in 0..self.consumers.len() {
            self.consumer_gone(consumer);
        }
        for producer in 0..self.producers.len() {
            self.producer_departs(producer);
        }
        let logs = self.destinations.iter().map(|plan| {
            (0..plan.partitions)
                .map(|_| PartitionModel::default())
                .collect()
        });
        self.logs.insert(installation.0, logs.collect());
        for index in 0..self.destinations.len() {
            let plan = &self.destinations[index];
            if plan.is_queue() {
                let starts = vec![0; plan.partitions as usize];
                let subscription = self.add_subscription(installation.0, index, None);
                self.subscriptions[subscription].starts = Some(starts);
            }
        }
    }

    /// The power of the broker was cut. What it told holds; nobody is connected any more,
    /// and deliveries are counted anew.
    pub(crate) fn power_cut(&mut self) {
        self.cuts += 1;
        for consumer in 0..self.consumers.len() {
            self.consumer_gone(consumer);
        }
        for producer in 0..self.producers.len() {
            self.producer_departs(producer);
        }
        // What the broker had not heard of, or did not write, comes again.
        for lineage in &mut self.lineages {
            lineage.lately.iter_mut().for_each(VecDeque::clear);
        }
        let logs = self.logs.get_mut(&self.installation).into_iter().flatten();
        for (plan, log) in self.destinations.iter().zip(logs) {
            for partition in log.iter_mut().filter(|_| plan.has_holes()) {
                partition.dense_from = u64::MAX;
            }
        }
        for subscription in &mut self.subscriptions {
            let fates = subscription.fates.iter_mut().flat_map(BTreeMap::values_mut);
            for fate in fates {
                fate.counted = 0;
                fate.rest = None;
            }
        }
    }

    // Producers.

    /// A client's producer is open; returns its number here.
    pub(crate) fn producer_opened(
        &mut self,
        destination: usize,
        named: &Named,
    ) -> Result<usize, Violation> {
        let number = self.producers.len();
        self.producers.push(ProducerModel {
            destination,
            epoch: 0,
            partitions: named.partitions,
            sends: Vec::new(),
            completed: 0,
            turns: 0,
            standing: Standing::default(),
        });
        self.name(number, named)?;
        self.producer_attached(number, named)?;
        Ok(number)
    }

    /// A client's producer is open again, on another connection.
    pub(crate) fn producer_resumed(
        &mut self,
        number: usize,
        named: &Named,
    ) -> Result<(), Violation> {
        self.tally.producers_resumed += 1;
        let key = (named.installation.0, named.id.0);
        match self.names.get(&key) {
            None => {
                // What was taken since the installation was known is the first that
                // it gets, under its name for the producer.
                for sent in &mut self.producers[number].sends {
                    if sent.installation == named.installation.0 {
                        sent.epoch = named.epoch.0;
                    }
                }
                self.name(number, named)?;
                self.producer_attached(number, named)
            }
            Some(known) if *known == number => {
                let before = self.producers[number].epoch;
                if named.epoch.0 <= before {
                    return broken(
                        Rule::ProducerId,
                        format!(
                            "producer {number} is attached again in epoch {} after {before}",
                            named.epoch
                        ),
                    );
                }
                self.producers[number].epoch = named.epoch.0;
                self.check_shape(number, named)?;
                self.producer_attached(number, named)
            }
            Some(other) => broken(
                Rule::ProducerId,
                format!(
                    "producer {number} was given the id of {other}, {}",
                    named.id
                ),
            ),
        }
    }

    fn name(&mut self, number: usize, named: &Named) -> Result<(), Violation> {
        let key = (named.installation.0, named.id.0);
        if self.names.insert(key, number).is_some() {
            return broken(
                Rule::ProducerId,
                format!("id {} was given out twice", named.id),
            );
        }
        self.producers[number].epoch = named.epoch.0;
        self.check_shape(number, named)
    }

    fn check_shape(&self, number: usize, named: &Named) -> Result<(), Violation> {
        let destination = self.producers[number].destination;
        if named.partitions == self.destinations[destination].partitions {
            return Ok(());
        }
        broken(
            Rule::Shape,
            format!(
                "producer {number} of destination {destination} was told {} partitions",
                named.partitions
            ),
        )
    }

    /// A client took a message.
    pub(crate) fn sent(
        &mut self,
        number: usize,
        sequence: u64,
        (installation, epoch): (Installation, Epoch),
        asked: Asked,
        content: Content,
        (deadline, to_flush): (u64, bool),
    ) -> Result<(), Violation> {
        self.tally.sends += 1;
        self.tally.in_memory += u64::from(!to_flush);
        self.calls += 1;
        let (at, cuts) = (self.calls, self.cuts);
        let producer = &mut self.producers[number];
        let destination = producer.destination;
        if sequence != producer.sends.len() as u64 + 1 {
            return broken(
                Rule::CompletionOrder,
                format!(
                    "producer {number} numbered its send {} as {sequence}",
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
            installation: installation.0,
            epoch: epoch.0,
            partition,
            deadline,
            to_flush,
            verdict: Verdict::Open,
            offset: None,
            told: None,
            at,
            cuts,
            there: cuts,
            term: producer.standing.term(installation),
        });
        let frame = MESSAGE_HEADER_SIZE + content.properties + content.body;
        self.log(installation.0, destination, partition).bytes_most += padded(frame) as u64;
        Ok(())
    }

    /// A client gave the outcome of a send.
    pub(crate) fn completed(
        &mut self,
        number: usize,
        sequence: u64,
        result: &Result<Stored, Failure>,
        known: &Circumstances,
    ) -> Result<(), Violation> {
        let may_be_shut_out = self.may_be_shut_out(number);
        let producer = &mut self.producers[number];
        let next = producer.completed as u64 + 1;
        if sequence != next || producer.completed == producer.sends.len() {
            return broken(
                Rule::CompletionOrder,
                format!(
                    "producer {number} got the outcome of {sequence} where {next} of {} is next",
                    producer.sends.len()
                ),
            );
        }
        let sent = &mut producer.sends[producer.completed];
        producer.completed += 1;
        let partition = sent.partition;
        let seen = sent.offset;
        sent.verdict = match result {
            Ok(_) | Err(Failure::Refused(Refusal::AlreadyStored)) => Verdict::Stored,
            Err(Failure::Unknown(_)) => Verdict::Perhaps,
            Err(Failure::NotStored(_)) => Verdict::Never,
            Err(Failure::Refused(Refusal::Fenced)) if may_be_shut_out => Verdict::Never,
            Err(Failure::Refused(refusal)) => {
                return broken(
                    Rule::Refused,
                    format!(
                        "send {sequence} of producer {number}: {}",
                        Refusal::text(*refusal)
                    ),
                );
            }
            Err(Failure::RefusedWithCode(code)) => {
                return broken(
                    Rule::Refused,
                    format!("send {sequence} of producer {number}: code {code}"),
                );
            }
        };
        let stands = match result {
            Err(Failure::Unknown(cause) | Failure::NotStored(cause)) => match cause {
                Cause::DeadlinePassed => sent.deadline <= known.now,
                Cause::LinkEnded | Cause::Left => known.ended,
                Cause::OtherInstallation => sent.installation != known.installation.0,
                Cause::Fenced => may_be_shut_out,
                Cause::Restarted => self.cuts > 0 && !sent.to_flush,
                // Whoever waits for the next run may not have heard of it.
                Cause::StorageFailed => (self.failed)
                    .is_some_and(|failed| sent.cuts <= failed || sent.deadline <= known.now),
                Cause::StoreFull => false,
            },
            _ => true,
        };
        if !stands {
            return broken(
                Rule::Cause,
                format!("send {sequence} of producer {number}: {result:?}"),
            );
        }
        match result {
            Ok(stored) => {
                self.tally.stored += 1;
                if stored.epoch.0 != sent.epoch {
                    return broken(
                        Rule::Identity,
                        format!(
                            "send {sequence} of producer {number} was sent in epoch {} and stored in {}",
                            sent.epoch, stored.epoch
                        ),
                    );
                }
                if stored.position.partition.0 != partition {
                    return broken(
                        Rule::Routing,
                        format!(
                            "send {sequence} of producer {number} went to {} instead of {partition}",
                            stored.position.partition
                        ),
                    );
                }
                self.check_safety(number, sequence, stored)?;
                let place = (partition, stored.position.offset.0);
                self.place(number, sequence, place, Some(stored.durability))
            }
            Err(Failure::Unknown(_)) => {
                self.tally.unknown += 1;
                Ok(())
            }
            Err(Failure::Refused(Refusal::AlreadyStored)) => {
                self.tally.stored += 1;
                self.tally.placeless += 1;
                Ok(())
            }
            Err(_) => {
                self.tally.failed += 1;
                match seen {
                    Some(offset) => broken(
                        Rule::NeverStored,
                        format!("send {sequence} of producer {number} is at {partition}@{offset}"),
                    ),
                    None => Ok(()),
                }
            }
        }
    }

    /// The client knows that another installation answers, and every outcome that is
    /// there was taken: nothing that was sent before is without.
    pub(crate) fn abandoned(
        &self,
        number: usize,
        installation: Installation,
    ) -> Result<(), Violation> {
        let producer = &self.producers[number];
        match producer.sends.get(producer.completed) {
            Some(sent) if sent.installation != installation.0 => broken(
                Rule::Abandoned,
                format!("send {} of producer {number}", producer.completed + 1),
            ),
            _ => Ok(()),
        }
    }

    /// Every outcome that is there was taken at `now`.
    pub(crate) fn outcomes_taken(&self, number: usize, now: u64) -> Result<(), Violation> {
        let producer = &self.producers[number];
        match producer.sends.get(producer.completed) {
            Some(sent) if sent.deadline <= now => broken(
                Rule::Overdue,
                format!("send {} of producer {number}", producer.completed + 1),
            ),
            _ => Ok(()),
        }
    }

    /// The client has ended in order: nothing is without outcome.
    pub(crate) fn producer_ended(&self, number: usize) -> Result<(), Violation> {
        let producer = &self.producers[number];
        if producer.completed == producer.sends.len() {
            return Ok(());
        }
        broken(
            Rule::CompletionMissing,
            format!(
                "producer {number} ended with {} outcomes for {} sends",
                producer.completed,
                producer.sends.len()
            ),
        )
    }

    /// Whether every send of a producer has its outcome.
    pub(crate) fn is_answered(&self, number: usize) -> bool {
        let producer = &self.producers[number];
        producer.completed == producer.sends.len()
    }

    /// A completion says how safe a message is.
    fn check_safety(&self, number: usize, sequence: u64, stored: &Stored) -> Result<(), Violation> {
        let producer = &self.producers[number];
        let sent = &producer.sends[crate::random::size(sequence - 1)];
        let may_be_flushed = self.has_disks && sent.to_flush;
        // What nobody has subscribed to goes at once if it is more than is retained.
        let plan = &self.destinations[producer.destination];
        let frame = MESSAGE_HEADER_SIZE + sent.content.properties + sent.content.body;
        let may_go = !plan.is_queue() && plan.retain.unwrap_or(0) < padded(frame) as u64;
        let stands = match stored.durability {
            Durability::Flushed => may_be_flushed,
            Durability::Memory => {
                !may_be_flushed || may_go || !self.is_kept(producer.destination, sent)
            }
        };
        if stands {
            return Ok(());
        }
        broken(
            Rule::Safety,
            format!("send {sequence} of producer {number} is {stored:?}: {sent:?}"),
        )
    }

    /// Whether the broker keeps a message that is to be flushed, for certain: where nothing
    /// else has it stay, a subscription was there before it was sent.
    fn is_kept(&self, destination: usize, sent: &Sent) -> bool {
        let keeps = |it: &SubscriptionModel| {
            (it.installation, it.destination) == (sent.installation, destination)
                && !it.is_fleeting()
                && it.starts.is_some()
                && it.started_at < sent.at
        };
        self.destinations[destination].is_kept() || self.subscriptions.iter().any(keeps)
    }

    /// Whether a message is in the broker's journal, whatever happens: its producer was told
    /// so, or somebody saw it that sees nothing sooner.
    fn is_durable(&self, destination: usize, sent: &Sent) -> bool {
        let is_seen_late = !self.destinations[destination].early
            && sent.offset.is_some()
            && sent.told != Some(Durability::Memory);
        self.has_disks
            && sent.to_flush
            && (sent.told == Some(Durability::Flushed)
                || is_seen_late && self.is_kept(destination, sent))
    }

    /// Whether a power cut may have taken a message.
    fn is_in_doubt(&self, number: usize, sequence: u64) -> bool {
        let producer = &self.producers[number];
        let sent = &producer.sends[crate::random::size(sequence - 1)];
        sent.there < self.cuts && !self.is_durable(producer.destination, sent)
    }

    /// A message is learnt to stand at another place than before: a power cut took it from
    /// the first. Returns whether it stands at the one that was learnt now.
    fn moved(
        &mut self,
        number: usize,
        sequence: u64,
        (partition, offset): (u32, u64),
        (before, told): (u64, Option<Durability>),
    ) -> Result<bool, Violation> {
        let producer = &self.producers[number];
        let destination = producer.destination;
        let sent = &producer.sends[crate::random::size(sequence - 1)];
        let is_later = offset > before;
        // Who was told of a place does not send again; of the one before it is heard late.
        let may_be = sent.to_flush
            && sent.cuts < self.cuts
            && !self.is_durable(destination, sent)
            && (is_later || told.is_none())
            && (sent.told.is_none() || !is_later);
        if !may_be {
            return broken(
                Rule::OnePlace,
                format!("send {sequence} of producer {number} is at {before} and at {offset}"),
            );
        }
        let (installation, key_hash) = (sent.installation, sent.content.key_hash);
        let log = self.log(installation, destination, partition);
        if is_later {
            log.take_away(before, key_hash, (number, sequence));
        } else {
            check_free(log, (partition, offset), (number, sequence))?;
            log.lost.insert(offset, (number, sequence));
        }
        Ok(is_later)
    }

    /// A message was learnt to stand at a place, where its producer was perhaps told that it
    /// does.
    fn place(
        &mut self,
        number: usize,
        sequence: u64,
        (partition, offset): (u32, u64),
        told: Option<Durability>,
    ) -> Result<(), Violation> {
        let producer = &mut self.producers[number];
        let destination = producer.destination;
        let sent = &mut producer.sends[crate::random::size(sequence - 1)];
        let (installation, before) = (sent.installation, sent.offset);
        if let Some(before) = before
            && before != offset
            && !self.moved(number, sequence, (partition, offset), (before, told))?
        {
            return Ok(());
        }
        let sent = &mut self.producers[number].sends[crate::random::size(sequence - 1)];
        sent.told = sent.told.or(told);
        sent.offset = Some(offset);
        if before == Some(offset) {
            return Ok(());
        }
        let cuts = sent.cuts;
        self.check_tenure(number, sequence, offset)?;
        let sent = &self.producers[number].sends[crate::random::size(sequence - 1)];
        let subject = Subject::of(sent.content.key_hash, number);
        let is_of_this_run = cuts == self.cuts;
        let log = self.log(installation, destination, partition);
        if is_of_this_run {
            log.dense_from = log.dense_from.min(offset);
        }
        check_free(log, (partition, offset), (number, sequence))?;
        log.by_key.entry(subject).or_default().insert(offset);
        log.messages.insert(offset, (number, sequence));
        log.order.insert((number, offset), sequence);
        // What a power cut took may be of earlier sends than what was there before.
        let log = &self.logs[&installation][destination][partition as usize];
        let is_there =
            |(_, sequence): &(&(usize, u64), &u64)| !self.is_in_doubt(number, **sequence);
        let mut before = log.order.range((number, 0)..(number, offset)).rev();
        let before = before.find(is_there);
        let mut after = log.order.range((number, offset + 1)..(number + 1, 0));
        let after = after.find(is_there);
        let rises = before.is_none_or(|(_, earlier)| *earlier < sequence)
            && after.is_none_or(|(_, later)| sequence < *later);
        if !rises {
            return broken(
                Rule::ProducerOrder,
                format!(
                    "send {sequence} of producer {number} at {partition}@{offset}, between {before:?} and {after:?}"
                ),
            );
        }
        Ok(())
    }

    /// A partition's log, as far as it is known.
    fn log(
        &mut self,
        installation: u128,
        destination: usize,
        partition: u32,
    ) -> &mut PartitionModel {
        let logs = self
            .logs
            .get_mut(&installation)
            .expect("clients know only installations that there were");
        &mut logs[destination][partition as usize]
    }

    // Consumers.

    /// A client asks for a consumer; returns its number. From here on the broker
    /// may deliver to it, whether or not the answer arrives.
    pub(crate) fn consumer_asked(
        &mut self,
        connection: usize,
        installation: Installation,
        destination: usize,
        name: Option<&'static str>,
        start: Start,
    ) -> usize {
        let found = self.find(installation.0, destination, name);
        let wanted = found.is_none().then(|| {
            let known = self.logs[&installation.0][destination].iter();
            (start, known.map(PartitionModel::end).collect())
        });
        let partitions = self.destinations[destination].partitions as usize;
        self.lineages.push(Lineage {
            starts: None,
            settled: vec![BTreeSet::new(); partitions],
            singly: vec![BTreeSet::new(); partitions],
            lately: vec![VecDeque::new(); partitions],
        });
        let lineage = self.lineages.len() - 1;
        let subscription =
            found.unwrap_or_else(|| self.add_subscription(installation.0, destination, name));
        self.add_consumer(connection, subscription, lineage, wanted)
    }

    /// A client asks for a consumer again that was open on an earlier connection;
    /// returns its number on this one.
    pub(crate) fn consumer_asked_again(
        &mut self,
        connection: usize,
        installation: Installation,
        before: usize,
        start: Start,
    ) -> usize {
        self.consumer_departs(before);
        let entry = &self.consumers[before];
        let (lineage, subscription) = (entry.lineage, entry.subscription);
        let SubscriptionModel {
            installation: known,
            destination,
            name,
            ..
        } = self.subscriptions[subscription];
        if known != installation.0 {
            return self.consumer_asked(connection, installation, destination, name, start);
        }
        self.tally.consumers_resumed += 1;
        let resettled = &mut self.subscriptions[subscription].resettled;
        for (all, own) in resettled.iter_mut().zip(&self.lineages[lineage].singly) {
            all.extend(own);
        }
        let subscription = match self.find(known, destination, name) {
            Some(found) => found,
            // It goes on where the application was.
            None => self.add_subscription(known, destination, name),
        };
        self.add_consumer(connection, subscription, lineage, None)
    }

    fn add_consumer(
        &mut self,
        connection: usize,
        subscription: usize,
        lineage: usize,
        wanted: Option<(Start, Vec<u64>)>,
    ) -> usize {
        let SubscriptionModel {
            gone, ref fates, ..
        } = self.subscriptions[subscription];
        let partitions = fates.len();
        self.consumers.push(ConsumerModel {
            subscription,
            wanted,
            connection,
            lineage,
            gone_before: gone,
            opened: false,
            ended: false,
            gone: false,
            last: vec![None; partitions],
            fresh: Vec::new(),
            held: Vec::new(),
            acked: Vec::new(),
            asked: Vec::new(),
            asking: None,
        });
        let number = self.consumers.len() - 1;
        if self.subscriptions[subscription].installation != self.installation {
            // Whom it asks is no more.
            self.consumer_gone(number);
        }
        number
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
        if !subscription.is_shared()
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
        let fleeting = subscription.is_fleeting();
        let entry = &mut self.consumers[consumer];
        let began = self.lineages[entry.lineage]
            .starts
            .get_or_insert_with(|| starts.clone());
        entry.opened = true;
        entry.fresh = starts;
        if fleeting {
            for (fresh, began) in entry.fresh.iter_mut().zip(began) {
                *fresh = (*fresh).max(*began);
            }
        }
        self.check_start(consumer)
    }

    /// A new subscription starts where it was asked to.
    fn check_start(&self, consumer: usize) -> Result<(), Violation> {
        let entry = &self.consumers[consumer];
        let Some((wanted, known)) = &entry.wanted else {
            return Ok(());
        };
        let subscription = &self.subscriptions[entry.subscription];
        let plan = &self.destinations[subscription.destination];
        let log = &self.logs[&subscription.installation][subscription.destination];
        for (number, (start, partition)) in entry.fresh.iter().zip(log).enumerate() {
            let kept = self.cuts == 0 && plan.retain.unwrap_or(0) >= partition.bytes_most;
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

    /// A disk could not write: its shard makes nothing durable any more.
    pub(crate) fn write_failed(&mut self) {
        self.failed = Some(self.cuts);
    }

    /// Whether a shard may have said that it cannot write. What an earlier run said may come
    /// late; that a later one says nothing of it is seen once all is calm.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
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

    /// A consumer was closed, which the broker confirmed: on the connection that it was
    /// opened on. On a later one that is what its machine makes of a connection that was
    /// lost before the confirmation.
    pub(crate) fn consumer_closed(&mut self, consumer: usize, connection: usize) {
        if self.consumers[consumer].connection != connection {
            return self.consumer_departs(consumer);
        }
        self.consumer_gone(consumer);
        self.subscriptions[self.consumers[consumer].subscription].closed += 1;
    }

    /// A connection is broken, or about to be.
    pub(crate) fn link_breaks(&mut self, connection: usize) {
        for consumer in self.consumers_of(connection) {
            self.consumer_departs(consumer);
        }
        self.producers_depart(connection);
    }

    /// The broker has noticed that a connection is gone, or has ended it.
    pub(crate) fn link_gone(&mut self, connection: usize) {
        for consumer in self.consumers_of(connection) {
            self.consumer_gone(consumer);
        }
        self.producers_depart(connection);
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
        let name = (handed.installation.0, handed.producer);
        let producer = self.names.get(&name).copied();
        let place = format!(
            "{}@{} of subscription {}, send {} of {} (producer {producer:?}), to consumer {consumer} for the {}. time",
            handed.partition,
            handed.offset,
            self.consumers[consumer].subscription,
            handed.sequence,
            handed.producer,
            handed.count
        );
        let Some(producer) = producer else {
            return broken(Rule::Unheard, place);
        };
        self.check_content(consumer, producer, handed, &place)?;
        let place_of_it = (handed.partition, handed.offset);
        self.place(producer, handed.sequence, place_of_it, None)?;
        self.check_there(consumer, producer, handed, &place)?;
        self.check_order(consumer, handed, &place)?;
        self.check_lately(consumer, handed, &place)?;
        self.check_claim(consumer, producer, handed, &place)?;
        self.check_fate(consumer, handed, &place)
    }

    fn check_content(
        &self,
        consumer: usize,
        producer: usize,
        handed: &Handed,
        place: &str,
    ) -> Result<(), Violation> {
        let subscription = &self.subscriptions[self.consumers[consumer].subscription];
        let producer = &self.producers[producer];
        let sent = producer
            .sends
            .get(crate::random::size(handed.sequence).wrapping_sub(1))
            .filter(|sent| {
                producer.destination == subscription.destination
                    && handed.installation.0 == subscription.installation
                    && sent.installation == subscription.installation
            });
        let Some(sent) = sent else {
            return broken(Rule::Unheard, place.into());
        };
        if sent.epoch != handed.epoch {
            return broken(
                Rule::Identity,
                format!("{place}, in epoch {}, sent in {}", handed.epoch, sent.epoch),
            );
        }
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

    /// Whoever is connected is handed what is there, where it is.
    fn check_there(
        &mut self,
        consumer: usize,
        producer: usize,
        handed: &Handed,
        place: &str,
    ) -> Result<(), Violation> {
        if self.consumers[consumer].ended {
            return Ok(());
        }
        let cuts = self.cuts;
        let sends = &mut self.producers[producer].sends;
        let sent = &mut sends[crate::random::size(handed.sequence) - 1];
        sent.there = cuts;
        match sent.offset {
            Some(offset) if offset != handed.offset => {
                broken(Rule::OnePlace, format!("{place}, and is at {offset}"))
            }
            _ => Ok(()),
        }
    }

    /// Fresh messages rise; with one consumer at a time they do so without a gap.
    fn check_order(
        &mut self,
        consumer: usize,
        handed: &Handed,
        place: &str,
    ) -> Result<(), Violation> {
        let index = handed.partition as usize;
        let entry = &self.consumers[consumer];
        let (number, subscription) = (entry.subscription, &self.subscriptions[entry.subscription]);
        let settled = &self.lineages[entry.lineage].settled[index];
        let fresh = entry.fresh[index];
        // What its application settled on an earlier connection is left out, and what
        // others had settled before this subscription was. After a power cut all is fresh
        // that was not settled.
        let is_left_out = |at: u64| {
            (if subscription.is_fleeting() {
                settled.contains(&at)
            } else {
                self.cuts > 0 && subscription.may_be_settled(index, at)
            }) || self.may_be_gone(number, index, at)
        };
        let log = &self.logs[&subscription.installation][subscription.destination][index];
        let due = log
            .places(fresh, handed.offset)
            .find(|at| !is_left_out(*at));
        let fresh = due.unwrap_or(fresh.max(handed.offset));
        let entry = &mut self.consumers[consumer];
        let last = entry.last[index];
        let rises = last.is_none_or(|last| last < handed.offset);
        let competing = subscription.is_shared();
        // Where keys decide only those of one key are in order.
        let may_fall = subscription.sharing == Sharing::KeyShared
            || (competing && subscription.departures > entry.gone_before)
            || (subscription.returns && handed.count > 1);
        if !rises && !may_fall {
            return broken(Rule::ConsumerOrder, format!("{place}, after {last:?}"));
        }
        entry.last[index] = last.max(Some(handed.offset));
        if !competing && handed.offset >= fresh {
            if handed.offset != fresh {
                return broken(Rule::Gap, format!("{place}, where {fresh} is next"));
            }
            entry.fresh[index] = fresh + 1;
        }
        Ok(())
    }

    /// Whether a message was settled by another subscription and need not be kept any
    /// more when this one began.
    fn may_be_gone(&self, subscription: usize, partition: usize, offset: u64) -> bool {
        let SubscriptionModel {
            installation,
            destination,
            started_at,
            ..
        } = self.subscriptions[subscription];
        let log = &self.logs[&installation][destination][partition];
        let Some((producer, sequence)) = log.messages.get(&offset) else {
            return false;
        };
        if self.is_in_doubt(*producer, *sequence) {
            return true;
        }
        let sent = &self.producers[*producer].sends[crate::random::size(*sequence) - 1];
        let kept = self.destinations[destination].retain.unwrap_or(0) >= log.bytes_most;
        // Where something was lost a subscription may be said to begin before what is left.
        let is_left_out = self.cuts > 0 && !self.destinations[destination].is_queue();
        let is_before = !kept && sent.at <= started_at;
        is_before
            && (is_left_out
                || self.subscriptions.iter().enumerate().any(|(index, other)| {
                    index != subscription
                        && (other.installation, other.destination) == (installation, destination)
                        && other.may_be_settled(partition, offset)
                }))
    }

    /// Where a subscription has one consumer at a time, its application is not handed
    /// what it settled, whatever the broker heard of that.
    fn check_lately(&self, consumer: usize, handed: &Handed, place: &str) -> Result<(), Violation> {
        let entry = &self.consumers[consumer];
        let subscription = &self.subscriptions[entry.subscription];
        let lately = &self.lineages[entry.lineage].lately[handed.partition as usize];
        if subscription.is_shared() || !lately.contains(&handed.offset) {
            return Ok(());
        }
        broken(
            Rule::Settled,
            format!("{place}; settled by its own application"),
        )
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
        if handed.count <= fate.counted {
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
        if let Some((giver, until)) = fate.rest.take()
            && handed.now < until
            && !self.consumers[giver].ended
        {
            return broken(
                Rule::Rest,
                format!(
                    "{place}; consumer {giver} gave it back, to rest for {} ns more",
                    until - handed.now
                ),
            );
        }
        fate.handed += 1;
        fate.counted += 1;
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
        let lineage = &mut self.lineages[entry.lineage];
        lineage.singly[key.0 as usize].insert(key.1);
        let lately = &mut lineage.lately[key.0 as usize];
        if lately.len() == LATELY {
            lately.pop_front();
        }
        lately.push_back(key.1);
        self.settle(consumer, key);
    }

    /// An application gave one message back that it holds; it rests until `until` if
    /// the broker hears of it.
    pub(crate) fn gave_back(&mut self, consumer: usize, key: (u32, u64), until: Option<u64>) {
        self.tally.given_back += 1;
        self.release(consumer, key);
        let entry = &mut self.consumers[consumer];
        entry.held.retain(|held| *held != key);
        if entry.ended {
            return;
        }
        let subscription = &mut self.subscriptions[entry.subscription];
        subscription.returns = true;
        if let Some(fate) = subscription.fates[key.0 as usize].get_mut(&key.1) {
            fate.holder = None;
            fate.rest = until.map(|until| (consumer, until));
        }
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
        self.release(consumer, key);
        let entry = &mut self.consumers[consumer];
        self.lineages[entry.lineage].settled[key.0 as usize].insert(key.1);
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
    pub(crate) fn confirm_asked(&mut self, consumer: usize, token: u32, in_doubt: bool) {
        let entry = &mut self.consumers[consumer];
        let covered = core::mem::take(&mut entry.acked);
        entry.asked.push(ConfirmationAsked {
            token,
            in_doubt,
            covered,
        });
    }

    /// Whether it is the last confirmation asked for, and on its way.
    pub(crate) fn is_confirmation_asked(&self, consumer: usize, token: u32) -> bool {
        let asked = &self.consumers[consumer].asked;
        asked.last().is_some_and(|asked| asked.token == token)
    }

    /// A confirmation will not come: its connection is lost.
    pub(crate) fn confirmation_lost(
        &mut self,
        consumer: usize,
        token: u32,
    ) -> Result<(), Violation> {
        let asked = &mut self.consumers[consumer].asked;
        if asked.first().map(|asked| asked.token) != Some(token) {
            return broken(
                Rule::Confirmation,
                format!("{token} to consumer {consumer} is given up, and is not the first"),
            );
        }
        asked.remove(0);
        Ok(())
    }

    /// A confirmation came.
    pub(crate) fn confirmed(
        &mut self,
        consumer: usize,
        token: u32,
        refusal: Option<u16>,
    ) -> Result<(), Violation> {
        if refusal == Some(Refusal::StorageFailed.code()) && self.has_failed() {
            return self.confirmation_lost(consumer, token);
        }
        let entry = &mut self.consumers[consumer];
        if refusal == Some(Refusal::InvalidAck.code())
            && let Some(asked) = entry.asked.first()
            && (asked.token, asked.in_doubt) == (token, true)
        {
            // Others have some of it by now: nobody knows which.
            entry.asked.remove(0);
            return Ok(());
        }
        if let Some(code) = refusal {
            return broken(
                Rule::AckRefused,
                format!("confirmation {token} to consumer {consumer} with code {code}"),
            );
        }
        if entry.asked.first().map(|asked| asked.token) != Some(token) {
            return broken(
                Rule::Confirmation,
                format!(
                    "{token} to consumer {consumer}, asked were {:?}",
                    entry
                        .asked
                        .iter()
                        .map(|asked| asked.token)
                        .collect::<Vec<_>>()
                ),
            );
        }
        let ConfirmationAsked { covered, .. } = entry.asked.remove(0);
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
        for (index, plan) in self.destinations.iter().enumerate() {
            let partitions = &self.logs[&self.installation][index];
            let known: u64 = partitions
                .iter()
                .map(|partition| partition.messages.len() as u64)
                .sum();
            let unknown: u64 = self
                .producers
                .iter()
                .filter(|producer| producer.destination == index)
                .flat_map(|producer| &producer.sends)
                .filter(|sent| {
                    sent.installation == self.installation
                        && sent.offset.is_none()
                        && sent.verdict != Verdict::Never
                })
                .count() as u64;
            let is_counted = known <= stored[index] && stored[index] <= known + unknown;
            if self.cuts == 0 && !is_counted {
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
                let is_hole = |offset: &u64| !partition.messages.contains_key(offset);
                let holes = partition.places(0, next).filter(is_hole).count() as u64;
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
            if subscription.installation != self.installation {
                continue;
            }
            if subscription.is_fleeting() {
                self.check_fleeting(index)?;
                continue;
            }
            let partitions = &self.logs[&self.installation][subscription.destination];
            for (number, partition) in partitions.iter().enumerate() {
                let Some(starts) = &subscription.starts else {
                    continue;
                };
                for (offset, (id, sequence)) in partition.messages.range(..starts[number]) {
                    let sent = &self.producers[*id].sends[crate::random::size(*sequence) - 1];
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
                    let resettled = subscription.resettled[number].contains(&offset);
                    if (fate.handed == 0 || !fate.acked)
                        && !resettled
                        && !self.may_be_gone(index, number, offset)
                    {
                        return broken(
                            Rule::Lost,
                            format!(
                                "{number}@{offset} of subscription {index} ({} {:?}) was handed out {} times, acknowledged: {}",
                                self.destinations[subscription.destination].destination,
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
        let settled = &self.lineages[consumer.lineage].settled;
        for (partition, model) in self.logs[&self.installation][destination]
            .iter()
            .enumerate()
        {
            let next = model.end();
            let from = consumer.fresh[partition];
            let is_lost = |offset| {
                !settled[partition].contains(&offset) && !self.may_be_gone(index, partition, offset)
            };
            if model.places(from, next).any(is_lost) {
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

    fn find(
        &self,
        installation: u128,
        destination: usize,
        name: Option<&'static str>,
    ) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| {
            subscription.installation == installation
                && subscription.destination == destination
                && (subscription.queue || (name.is_some() && subscription.name == name))
        })
    }

    fn add_subscription(
        &mut self,
        installation: u128,
        destination: usize,
        name: Option<&'static str>,
    ) -> usize {
        let plan = &self.destinations[destination];
        let partitions = plan.partitions as usize;
        self.subscriptions.push(SubscriptionModel {
            installation,
            destination,
            name,
            queue: plan.is_queue(),
            sharing: name.map_or(Sharing::Usual, |name| plan.sharing(name)),
            claims: Claims::default(),
            returns: false,
            resettled: vec![BTreeSet::new(); partitions],
            fates: vec![BTreeMap::new(); partitions],
            starts: None,
            started_at: 0,
            departures: 0,
            gone: 0,
            closed: 0,
        });
        self.subscriptions.len() - 1
    }
}
