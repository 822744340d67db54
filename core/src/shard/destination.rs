//! Destinations: found by their names, created and deleted with what is here of them.
//!
//! ```text
//!  request ─> decide ─> change ─> apply ─> catalogue
//!                                   `────> partitions, subscriptions, attachments
//! ```
//!
//! One shard decides; every shard applies.

use super::consumer::{Consumer, Start};
use super::credit::RESERVE_FACTOR;
use super::ending::Ending;
use super::locals::{Local, Own};
use super::producer::Producer;
use super::{Fault, Rejection, Shard, tables};
use crate::auth::{self, Operation, Target};
use crate::catalog::{
    CatalogError, Change, Dispatch, Entry, Policy, Request, Retention, RetentionCode, Shape, Wanted,
};
use crate::error::Refusal;
use crate::id::{CatalogVersion, DestinationNumber, Handle, PartitionIndex, ShardIndex};
use crate::limits;
use crate::memory::CHUNK;
use crate::name::{Destination, DestinationKind};
use crate::partition::Partition;
use crate::partition::log::Address;
use crate::subscription::Kind;

/// What all destinations together take of a shard: every shard knows it of each, so that
/// whichever decides can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Burden {
    /// Chunks that partitions keep however little is in them.
    kept: usize,
    /// Bytes of chunks that they may come to hold of what is settled.
    pub(super) retained: u64,
    /// Bytes of the queues' own subscriptions.
    pub(super) queues: usize,
}

impl From<CatalogError> for Rejection {
    fn from(error: CatalogError) -> Self {
        Self::request(error.refusal(), error.to_string())
    }
}

/// What somebody expects of a destination, as the wire has it.
pub(super) fn wanted(
    partitions: Option<u32>,
    retention: Option<RetentionCode>,
    dispatch: Option<u8>,
) -> Result<Wanted, Rejection> {
    let retention = retention.map(Retention::from_code).transpose();
    let dispatch = dispatch.map(|code| Dispatch::from_code(code).ok_or(Refusal::Unsupported));
    Ok(Wanted {
        partitions,
        retention: retention.map_err(CatalogError::Retention)?,
        dispatch: dispatch.transpose()?,
    })
}

impl Shard {
    /// Finds or creates a destination for somebody on `link` who opens it.
    pub(super) fn resolve(
        &mut self,
        link: Handle,
        destination: &Destination,
        wanted: Wanted,
        operation: Operation,
    ) -> Result<DestinationNumber, Rejection> {
        let principal = self.principal(link);
        if self.catalog.find(destination).is_none() {
            auth::authorize(principal, Operation::Create, Target::Name)?;
        }
        self.change(Request::Open(destination, wanted), 0)?;
        // It may have been created for this and deleted before this was heard of.
        let number = self.catalog.find(destination).ok_or(Refusal::NotFound)?;
        auth::authorize(principal, operation, Target::Destination(number))?;
        Ok(number)
    }

    /// What becomes of a request to the catalogue. Whatever could keep a shard from
    /// carrying the change out is asked here.
    pub(super) fn decide(&self, request: Request<'_>) -> Result<Option<Change>, Rejection> {
        let change = self.catalog.decide(request)?;
        if let Some(Change::Create(entry)) = &change {
            let is_queue = entry.destination.kind == DestinationKind::Queue;
            self.has_room_for(entry.number, entry.shape, is_queue)?;
        }
        Ok(change)
    }

    /// Carries out a change that was decided.
    pub(super) fn apply(&mut self, version: CatalogVersion, change: &Change) {
        if let Change::Delete(number) = change {
            let entry = self.catalog.entry(*number);
            let is_queue = entry.destination.kind == DestinationKind::Queue;
            self.burden(*number, entry.shape, is_queue, false);
        }
        self.catalog.apply(version, change);
        match change {
            Change::Create(entry) => self.create_local(entry),
            Change::Delete(number) => self.delete_local(*number),
            Change::SetPolicies(..) => {}
        }
        self.look_at_takers();
    }

    /// Whether another producer may be attached.
    pub(super) fn has_room_for_producer(
        &self,
        destination: DestinationNumber,
    ) -> Result<(), Fault> {
        let most = self.catalog.entry(destination).policies.producers_max;
        let there = self.locals[destination].producers;
        self.within(destination, Policy::Producers, there, most)
    }

    /// Whether another consumer may be attached.
    pub(super) fn has_room_for_consumer(
        &self,
        destination: DestinationNumber,
    ) -> Result<(), Fault> {
        let most = self.catalog.entry(destination).policies.consumers_max;
        let there = self.locals[destination].consumers;
        self.within(destination, Policy::Consumers, there, most)
    }

    /// Whether there may be another subscription.
    pub(super) fn has_room_for_subscription(
        &self,
        destination: DestinationNumber,
    ) -> Result<(), Fault> {
        // A queue's own is beside this bound: there is room for each queue that may be.
        let chosen = self.subscriptions.len() - self.catalog.queues();
        if chosen >= limits::SUBSCRIPTIONS_MAX as usize {
            return Err(Refusal::ResourceAllocation.into());
        }
        let most = self.catalog.entry(destination).policies.subscriptions_max;
        let there = self.locals[destination].subscriptions.len();
        let there = u32::try_from(there).unwrap_or(u32::MAX);
        self.within(destination, Policy::Subscriptions, there, most)
    }

    fn within(
        &self,
        destination: DestinationNumber,
        policy: Policy,
        there: u32,
        most: u32,
    ) -> Result<(), Fault> {
        if most == 0 || there < most {
            return Ok(());
        }
        let destination = &self.catalog.entry(destination).destination;
        Err(Fault::new(
            Refusal::ResourceAllocation,
            format!("{destination} has {there} {policy}, and may have {most}"),
        ))
    }

    /// Whether a destination that is new may be as it is wanted: what its partitions may
    /// come to hold without anybody who could settle it must leave room for what is not
    /// settled, there and elsewhere, on each shard that has some of them.
    fn has_room_for(
        &self,
        number: DestinationNumber,
        shape: Shape,
        is_queue: bool,
    ) -> Result<(), Rejection> {
        let own = |shard| self.mesh.placement.share(number, shape.partitions, shard);
        // The home has at least as many as any other.
        let most_own = own(self.mesh.placement.home(number)).max(1);
        let most = self.plan.destination / (2 * u64::from(most_own));
        if retained_most(1, shape.retention) > most {
            let bytes = shape.retention.bytes();
            let most = most.saturating_sub(beside(shape.retention)) / RESERVE_FACTOR;
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                format!(
                    "{bytes} bytes are to be retained, and at most {most} can be: \
                     start the broker with more memory, or retain less"
                ),
            ));
        }
        // A queue comes with its subscription.
        let size = |own| tables::subscription_size(Kind::Shared, own as usize);
        if is_queue && !self.parts.has(size(own(self.config.shard))) {
            return Err(Rejection::Request(tables::no_memory_for_subscriptions()));
        }
        for (burden, shard) in self.burdens.iter().zip((0..).map(ShardIndex)) {
            let own = own(shard);
            if is_queue && burden.queues + size(own) > self.parts.bound() {
                return Err(Rejection::Request(tables::no_memory_for_subscriptions()));
            }
            let kept = burden.kept + own as usize * kept_chunks(shape.retention);
            let room = self.arena.chunks() as usize / 4;
            if own > 0 && kept > room {
                return Err(Rejection::request(
                    Refusal::ResourceAllocation,
                    format!(
                        "all partitions would keep {kept} chunks of memory, and can keep {room}: \
                         start the broker with more memory, or ask for fewer partitions"
                    ),
                ));
            }
            let retained = burden.retained + retained_most(own, shape.retention);
            let room = self.plan.arena / RETAINED_SHARE;
            if retained > room {
                return Err(Rejection::request(
                    Refusal::ResourceAllocation,
                    format!(
                        "all destinations would retain {retained} bytes of memory, and can \
                         retain {room}: start the broker with more memory, or retain less"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// What a destination takes of each shard comes to what others do, or goes.
    fn burden(&mut self, number: DestinationNumber, shape: Shape, is_queue: bool, comes: bool) {
        let placement = self.mesh.placement;
        for (burden, shard) in self.burdens.iter_mut().zip((0..).map(ShardIndex)) {
            let own = placement.share(number, shape.partitions, shard);
            let kept = own as usize * kept_chunks(shape.retention);
            let retained = retained_most(own, shape.retention);
            let queue = tables::subscription_size(Kind::Shared, own as usize);
            let queues = if is_queue { queue } else { 0 };
            if comes {
                burden.kept += kept;
                burden.retained += retained;
                burden.queues += queues;
            } else {
                burden.kept -= kept;
                burden.retained -= retained;
                burden.queues -= queues;
            }
        }
    }

    /// The local half of a destination that is new in the catalogue.
    pub(super) fn create_local(&mut self, entry: &Entry) {
        let (number, shape) = (entry.number, entry.shape);
        let partitions = (0..shape.partitions)
            .map(|partition| {
                let address = Address {
                    destination: number,
                    partition: PartitionIndex(partition),
                };
                Partition::keeping(address, shape.retention)
            })
            .collect();
        let placement = self.mesh.placement;
        let shards = usize::from(placement.shards());
        let home = usize::from(placement.home(number).0);
        let own = Own {
            first: (usize::from(self.config.shard.0) + shards - home) % shards,
            step: shards,
            count: placement.share(number, shape.partitions, self.config.shard) as usize,
        };
        self.partitions += own.count;
        let kept = own.count * kept_chunks(shape.retention);
        let is_queue = entry.destination.kind == DestinationKind::Queue;
        let mut local = Local::new(number, partitions, own, kept);
        local.is_queue = is_queue;
        local.keeps = is_queue || shape.retention.bytes() > 0;
        local.is_early = shape.dispatch == Dispatch::Early;
        local.expires = shape.retention.period().is_some().into();
        if self.journal.is_some() && is_queue {
            local.note_settled();
        }
        self.locals.put(local);
        self.burden(number, shape, is_queue, true);
        self.reserve_for_early(number);
        if is_queue {
            self.subscribe(number, None, Start::Earliest, Kind::Shared)
                .expect("deciding saw to it that there is room for a queue's subscription");
        }
    }

    /// The local half of a destination that is gone from the catalogue. Whoever is
    /// attached is told and keeps a husk; what links still send of its logs stays
    /// until it has left; all else goes back.
    fn delete_local(&mut self, number: DestinationNumber) {
        let why = Ending {
            refusal: Refusal::NotFound,
            text: "the destination was deleted",
        };
        let local = &self.locals[number];
        if local.consumers + local.fronts > 0 || !local.browsers.is_empty() {
            let of_it = |consumer: &Consumer| consumer.destination() == number;
            self.end_consumers(of_it, why);
        }
        let of_it = |producer: &Producer| producer.identity.destination == number;
        self.end_producers(of_it, why);
        while let Some(subscription) = self.locals[number].subscriptions.last() {
            self.end_subscription(*subscription);
        }
        let local = self.locals.take(&mut self.arena, number);
        self.partitions -= local.own.count;
        self.remembered.destination_ended();
    }
}

/// One part in this many of the arena is what all destinations may come to hold of
/// what is settled. The chunks that partitions keep are as much, and counted once
/// more where credit is granted: what then remains beside egress can be granted for
/// ever, whatever is retained.
pub(super) const RETAINED_SHARE: u64 = 4;

/// Chunks that a partition keeps however little is in them: the one that it writes
/// on, and where something is retained one that is partly beyond that and one that is
/// partly empty.
fn kept_chunks(retention: Retention) -> usize {
    if retention.bytes() > 0 { 3 } else { 1 }
}

/// Bytes of chunks that so many partitions may come to hold of what is settled, beside what
/// has only to expire.
fn retained_most(partitions: u32, retention: Retention) -> u64 {
    let one = (retention.bytes().saturating_mul(RESERVE_FACTOR)).saturating_add(beside(retention));
    u64::from(partitions).saturating_mul(one)
}

/// What an open segment may come to have beyond its size: one message, however large, that
/// came when it was almost full.
fn beside(retention: Retention) -> u64 {
    let largest = u64::from(limits::FRAME_SIZE_MAX) + CHUNK as u64;
    retention.segment().map_or(0, |_| largest)
}
