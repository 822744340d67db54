//! Expiry: segments that go once their period is over, whoever has still to read them.
//!
//! ```text
//!  closed by a send ──> queued ──> looked at ──> due at 13 s ─┐ time passes
//!                                                             v
//!     journal <── "emptied before 700" <── parts give up, memory goes back
//! ```
//!
//! A partition with such segments is looked at whenever something came to it or was shown
//! there, and when the first of its periods is over; in a new run first of all, before
//! anything of it is delivered. What expired is gone for everybody at once, and stays so:
//! the first offset that is left is written down as it is. Should a crash come before that
//! is durable, the same segments expire again when they are told again.
//!
//! A segment waits for its flush before it expires.

use super::Shard;
use super::destination::RETAINED_SHARE;
use super::returns::PartAddress;
use crate::counters::Counter;
use crate::id::{DestinationNumber, Offset, PartitionIndex};
use crate::journal::entry::{Entry, Place};
use crate::memory::CHUNK;
use crate::time::Now;

impl Shard {
    /// Time has passed: what was kept long enough goes.
    pub(super) fn end_periods(&mut self, now: Now) {
        while let Some(place) = self.expiries.take(now.monotonic) {
            self.expire_segments(now, place.destination, place.partition);
        }
    }

    /// Looks at the segments of a partition: lets go of those whose period is over, and
    /// notes when the next one is.
    #[cold]
    pub(super) fn expire_segments(
        &mut self,
        now: Now,
        destination: DestinationNumber,
        partition: PartitionIndex,
    ) {
        let place = Place {
            destination,
            partition,
        };
        let Some(local) = self.locals.get_mut(destination) else {
            return;
        };
        let log = &mut local.partitions[partition.0 as usize].log;
        let (mut before, mut after) = log.next_expiry(now);
        if let Some(floor) = log.expired(now.monotonic) {
            self.expire_before(place, floor);
            self.counters.add(Counter::Expiries, 1);
            if let Some(journal) = &mut self.journal {
                let entry = Entry::Emptied {
                    place,
                    first: floor,
                };
                journal.append(&mut self.arena, &entry);
            }
            // Who waited for what others held goes on, and so does who waited for room.
            self.queue(destination, partition);
            let log = &mut self.locals[destination].partitions[partition.0 as usize].log;
            self.expiries.moved(place, before, None);
            (before, after) = (None, log.next_expiry(now).1);
        }
        self.expiries.moved(place, before, after);
    }

    /// What lies before `floor` in a partition of this shard is nobody's any more.
    pub(super) fn expire_before(&mut self, place: Place, floor: Offset) {
        let Place {
            destination,
            partition: index,
        } = place;
        let Some(local) = self.locals.get_mut(destination) else {
            return;
        };
        let partition = &mut local.partitions[index.0 as usize];
        let before: Vec<_> = (partition.parts.iter())
            .map(|(handle, part)| (*handle, part.next_return()))
            .collect();
        partition.expire(&mut self.arena, floor);
        let mut relief = 0;
        for ((subscription, before), (_, part)) in before.into_iter().zip(&mut partition.parts) {
            let address = PartAddress {
                destination,
                partition: index,
                subscription,
            };
            self.returns.moved(address, before, part.next_return());
            relief += part.relax(self.parts.is_tight());
        }
        if relief > 0 {
            self.give_parts(relief);
        }
    }

    /// Whether all destinations whose segments expire hold as much of closed ones as what is
    /// retained may be beside what is retained otherwise: nobody can settle that.
    pub(super) fn is_full_of_what_expires(&self) -> bool {
        let locals = self.locals.iter().filter(|local| local.expires > 0);
        let held: usize = locals.map(super::locals::Local::expiring_chunks).sum();
        let own = usize::from(self.config.shard.0);
        let room = (self.plan.arena / RETAINED_SHARE).saturating_sub(self.burdens[own].retained);
        held > 0 && (held * CHUNK) as u64 >= room
    }
}
