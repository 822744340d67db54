//! Browsers: consumers that are shown what a queue keeps, and take nothing of it.
//!
//! ```text
//!   settled   held by consumers   never handed out   | came later
//!   --------|-------------------|--------------------|------------>
//!             place ->                              end
//! ```
//!
//! A browser is in no subscription. It has a place in each partition and goes from what
//! the queue's own part claims to the next that it does, up to where the partition ended
//! when the browser was opened. It claims nothing itself, so whatever it has still to see
//! may be settled meanwhile and is then not shown, no message stays for it, and nobody
//! else can tell that it is there. What it has seen counts against its credit and nowhere
//! else.
//!
//! Invariant: a place never goes back.

use super::Shard;
use super::consumer::{self, Way};
use super::locals::{Local, Own};
use crate::auth::{self, Operation, Target};
use crate::frame::control::Delivery;
use crate::id::{DestinationNumber, Handle, Offset, PartitionIndex};
use crate::memory::Arena;
use crate::partition::Partition;
use crate::partition::log::{Cursor, Log, Run, RunLimit};
use crate::subscription::Part;
use crate::time::Now;

/// Where a browser is in each partition of its shard.
#[derive(Clone, Debug)]
pub(super) struct Browser {
    own: Own,
    places: Box<[Place]>,
}

/// Where it is in one of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    next: Cursor,
    end: Offset,
}

/// What one partition takes up.
pub(super) const PLACE_SIZE: usize = size_of::<Place>();

impl Browser {
    /// Before everything that a queue keeps now in the partitions of this shard.
    pub(super) fn of(local: &Local) -> Self {
        let own = local.own;
        let partitions = own.indexes().map(|index| &local.partitions[index]);
        Self {
            own,
            places: partitions.map(Place::before).collect(),
        }
    }

    /// Where it is in a partition, if that is one of this shard's.
    pub(super) fn offset(&self, partition: usize) -> Option<Offset> {
        Some(self.places.get(self.index_of(partition)?)?.next.offset)
    }

    fn place_mut(&mut self, partition: usize) -> Option<&mut Place> {
        let index = self.index_of(partition)?;
        self.places.get_mut(index)
    }

    fn index_of(&self, partition: usize) -> Option<usize> {
        Some(partition.checked_sub(self.own.first)? / self.own.step)
    }
}

impl Place {
    fn before(partition: &Partition) -> Self {
        let end = partition.log.reading_ends();
        let mut place = Self {
            next: Cursor::at(partition.log.first()),
            end,
        };
        if let Some((_, own)) = partition.parts.first() {
            place.advance(own);
        }
        place
    }

    /// Moves over what is settled; whether there may be something to show.
    fn advance(&mut self, own: &Part) -> bool {
        self.next.offset = own.claims_from(self.next.offset).min(self.end);
        self.next.offset < self.end
    }

    /// What is to be shown next.
    fn read(&mut self, arena: &Arena, log: &mut Log, own: &Part, limit: RunLimit) -> Option<Run> {
        let end = self.end;
        let run = log.read_while(arena, &mut self.next, limit, |header| {
            let offset = Offset(header.offset.get());
            offset < end && own.claims(offset)
        });
        if run.is_none() && !log.is_away(self.next.offset) {
            // Offsets up to the end were given to nothing that is there.
            self.next.offset = end;
        }
        run
    }
}

impl Shard {
    /// Shows the browsers of a queue what comes next in one partition, as far as they
    /// have credit and room, with at most so many runs. Returns how many are left.
    #[cold]
    pub(super) fn show(
        &mut self,
        now: Now,
        destination: DestinationNumber,
        index: PartitionIndex,
        mut budget: usize,
    ) -> usize {
        let browsers = self.locals[destination].browsers.len();
        for browser in 0..browsers {
            let handle = self.locals[destination].browsers[browser];
            while budget > 0 && self.show_next(now, destination, index, handle) {
                budget -= 1;
            }
        }
        budget
    }

    /// Shows one browser one run; `false` if it has seen all, or can take no more now.
    fn show_next(
        &mut self,
        now: Now,
        destination: DestinationNumber,
        index: PartitionIndex,
        handle: Handle,
    ) -> bool {
        let may_deliver = self.may_deliver();
        let partition = &mut self.locals[destination].partitions[index.0 as usize];
        // A queue's own subscription is its first.
        let (log, Some((_, own))) = (&mut partition.log, partition.parts.first()) else {
            return false;
        };
        let Some(consumer) = self.consumers.get_mut(handle) else {
            return false;
        };
        let place = consumer.browser_mut();
        let Some(place) = place.and_then(|it| it.place_mut(index.0 as usize)) else {
            return false;
        };
        if !place.advance(own) {
            return false;
        }
        let mut place = *place;
        let way = consumer::way_to(
            &mut self.links,
            (&mut self.blocks, &self.arena),
            &mut self.announcing,
            (handle, consumer),
            log.has_large(),
            may_deliver,
        );
        let Some(mut way) = way else {
            return false;
        };
        let (principal, bytes_max) = way.bounds();
        let target = Target::Destination(destination);
        if auth::authorize(principal, Operation::Receive, target).is_err() {
            return false;
        }
        let (messages, bytes) = consumer.credit_left();
        let limit = RunLimit {
            messages: messages.min(place.end.0 - place.next.offset.0),
            bytes: bytes.min(bytes_max),
        };
        let run = place.read(&self.arena, log, own, limit);
        if let Some(at) = (consumer.browser_mut()).and_then(|it| it.place_mut(index.0 as usize)) {
            *at = place;
        }
        let Some(run) = run else {
            return false;
        };
        let header = Delivery {
            partition: index.0.into(),
            count: run.count.into(),
            offset: run.first.0.into(),
            delivery_count: 1.into(),
            ..Delivery::default()
        };
        consumer.was_delivered(run.count.into(), run.bytes);
        match &mut way {
            Way::Front(origin, ..) => {
                let origin = *origin;
                if let Some(source) = consumer.source_mut() {
                    source.room -= run.bytes as u64;
                }
                self.deliver_to_front(now, origin, &header, &run);
            }
            Way::Link(link) => {
                consumer::deliver_to_link(
                    link,
                    (&mut self.blocks, &mut self.arena),
                    log,
                    (destination, index),
                    (handle, &header, &run),
                    (now.monotonic, may_deliver),
                );
                let link = consumer.link;
                self.mark_dirty(link);
            }
        }
        true
    }
}
