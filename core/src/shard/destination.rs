//! Destinations: found by their names, or created with their partitions here.

use super::consumer::{Sharing, Start};
use super::credit::RESERVE_FACTOR;
use super::locals::Local;
use super::{Rejection, Shard, tables};
use crate::auth::{self, Operation, Target};
use crate::catalog::{Resolved, Wanted};
use crate::error::Refusal;
use crate::id::{DestinationNumber, Handle, PartitionIndex};
use crate::name::{Destination, DestinationKind};
use crate::partition::Partition;
use crate::partition::log::Address;

impl Shard {
    /// Finds or creates a destination for somebody on `link`.
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
            let is_queue = destination.kind == DestinationKind::Queue;
            self.has_room_for(wanted, is_queue)?;
        }
        let number = match self.catalog.resolve(destination, wanted)? {
            Resolved::Found(number) => number,
            Resolved::Created(number) => {
                self.create_local(number)?;
                number
            }
        };
        auth::authorize(principal, operation, Target::Destination(number))?;
        Ok(number)
    }

    /// Whether a destination that is new may be as it is wanted: what all its
    /// partitions may come to hold without anybody who could settle it must leave
    /// room for what is not settled, there and elsewhere.
    fn has_room_for(&self, wanted: Wanted, is_queue: bool) -> Result<(), Rejection> {
        let count = wanted.partitions.unwrap_or(1).max(1);
        let partitions = u64::from(count);
        let retain = wanted.retain.unwrap_or(0);
        let most = self.plan.destination / (2 * RESERVE_FACTOR * partitions);
        if retain > most {
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                format!(
                    "{retain} bytes are to be retained, and at most {most} can be: \
                     start the broker with more memory, or retain less"
                ),
            ));
        }
        // A queue comes with its subscription.
        if is_queue && !self.parts.has(tables::subscription_size(count as usize)) {
            return Err(tables::no_memory_for_subscriptions());
        }
        let kept = self.kept as u64 + partitions * kept_chunks(retain) as u64;
        let room = u64::from(self.arena.chunks()) / 4;
        if kept > room {
            return Err(Rejection::request(
                Refusal::ResourceAllocation,
                format!(
                    "all partitions would keep {kept} chunks of memory, and can keep {room}: \
                     start the broker with more memory, or ask for fewer partitions"
                ),
            ));
        }
        let retained = self.retained + partitions * retain * RESERVE_FACTOR;
        let room = self.plan.arena / RETAINED_SHARE;
        if retained > room {
            return Err(Rejection::request(
                Refusal::ResourceAllocation,
                format!(
                    "all destinations would retain {retained} bytes of memory, and can retain \
                     {room}: start the broker with more memory, or retain less"
                ),
            ));
        }
        Ok(())
    }

    /// The local half of a destination that is new in the catalogue.
    pub(super) fn create_local(&mut self, number: DestinationNumber) -> Result<(), Rejection> {
        let entry = self.catalog.entry(number);
        let (shape, kind) = (entry.shape, entry.destination.kind);
        let partitions = (0..shape.partitions)
            .map(|partition| {
                let address = Address {
                    destination: number,
                    partition: PartitionIndex(partition),
                };
                Partition::new(address, shape.retain)
            })
            .collect();
        self.partitions += shape.partitions as usize;
        let kept = shape.partitions as usize * kept_chunks(shape.retain);
        self.kept += kept;
        self.retained += u64::from(shape.partitions) * shape.retain * RESERVE_FACTOR;
        self.locals.put(Local::new(number, partitions, kept));
        if kind == DestinationKind::Queue {
            self.subscribe(number, None, Start::Earliest, Sharing::Several)?;
        }
        Ok(())
    }
}

/// One part in this many of the arena is what all destinations may come to hold of
/// what is settled. The chunks that partitions keep are as much, and counted once
/// more where credit is granted: what then remains beside egress can be granted for
/// ever, whatever is retained.
const RETAINED_SHARE: u64 = 4;

/// Chunks that a partition keeps however little is in them: the one that it writes
/// on, and where something is retained one that is partly beyond that and one that is
/// partly empty.
fn kept_chunks(retain: u64) -> usize {
    if retain > 0 { 3 } else { 1 }
}
