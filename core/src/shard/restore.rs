//! How a shard comes to what it was: the entries of the journals, one after the other.
//!
//! Every shard is told every entry of every journal, in the order in which they hold, and
//! takes what is its own by today's placement: another number of shards than before finds
//! the same messages, offsets and answers.
//!
//! Entries say what is, not what changes, so one that is told twice changes nothing.

use core::fmt;

use super::Shard;
use super::identity::Identity;
use super::positions::Outcome;
use super::remembered::Place as Known;
use super::send::{Bytes, append};
use crate::frame::MessageHeader;
use crate::id::{DestinationNumber, Epoch, Offset, PartitionIndex, ProducerId, SubscriptionNumber};
use crate::journal::entry::{Entry, Fate, Place, Reached, Run};
use crate::time::Wall;

/// What was kept does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLittleMemory {
    /// The memory of each shard, in bytes.
    pub bound: u64,
}

impl fmt::Display for TooLittleMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "what is kept does not fit into {} bytes of memory: start the broker with more",
            self.bound
        )
    }
}

impl std::error::Error for TooLittleMemory {}

impl Shard {
    /// Takes what an entry says, as far as it is about this shard.
    ///
    /// # Errors
    ///
    /// If there is no memory for it: then the broker cannot start.
    pub fn restore(&mut self, entry: &Entry<'_>) -> Result<(), TooLittleMemory> {
        match entry {
            Entry::CatalogChanged { version, change } => {
                if *version > self.catalog.version() {
                    self.apply(*version, change);
                }
            }
            Entry::Message(message) => self.restore_message(message.header, message.bytes)?,
            Entry::OffsetsReserved { place, next } => {
                if let Some(partition) = self.own_partition(*place) {
                    let reserved = partition.log.reserved().max(*next);
                    partition.log.reserve(reserved);
                }
            }
            Entry::ProducerIdsReserved { next } => self.remembered.go_on_at(*next),
            Entry::ProducerAttached {
                producer,
                epoch,
                destination,
                term,
                principal,
                name,
                ..
            } => {
                if let Some(local) = self.locals.get_mut(*destination) {
                    // Who was attached before somebody had it alone never is again.
                    local.term = local.term.max(*term);
                    let partitions = local.partitions.len();
                    let mut identity =
                        Identity::new(*producer, *principal, *destination, partitions, name);
                    identity.term = *term;
                    self.restore_producer(identity, *epoch);
                }
            }
            Entry::ProducerForgotten { producer } => {
                if let Some(Known::Detached(number)) = self.remembered.place(*producer)
                    && let Some(identity) = self.remembered.take(number)
                {
                    self.remembered.forget(&identity);
                }
            }
            Entry::SendRefused {
                producer,
                place,
                sequence,
                partition_sequence,
                refusal,
                ..
            } => {
                if self.own_partition(*place).is_some() {
                    let turn = (partition_sequence.0, sequence.0);
                    let outcome = Outcome::refused(*refusal);
                    self.restore_sends(*producer, |identity, grow| {
                        identity.was_refused_before(place.partition.0, turn, &outcome, grow);
                    });
                }
            }
            Entry::Settled {
                place,
                subscription,
                runs,
            } => {
                self.restore_settled(*place, *subscription, runs);
            }
            Entry::SubscriptionMade {
                destination,
                subscription,
                sharing,
                durable,
                name,
            } => {
                if *durable {
                    self.restore_made(*destination, *subscription, (*sharing, name))?;
                }
            }
            Entry::PartBegun {
                place,
                subscription,
                start,
            } => self.restore_begun(*place, *subscription, *start),
            Entry::SubscriptionEnded {
                destination,
                subscription,
            } => self.restore_ended(*destination, *subscription),
            Entry::Returned {
                place,
                subscription,
                run,
                deliveries,
            } => self.restore_returned(*place, *subscription, run, *deliveries),
            Entry::Emptied { place, first } => {
                if self.own_partition(*place).is_some() {
                    self.expire_before(*place, *first);
                }
            }
            Entry::Cursor { .. } => {}
            Entry::CatalogKept {
                version,
                slots,
                vacant,
            } => {
                let vacant = vacant.iter().map(|it| DestinationNumber(it.get()));
                self.catalog.go_on_at(*version, *slots as usize, vacant);
            }
            Entry::DestinationKept {
                version,
                destination,
            } => {
                if self.catalog.put_back(*version, destination) {
                    self.create_local(destination);
                }
            }
            Entry::ProducerSent {
                producer,
                reached,
                fates,
            } => self.restore_sent(*producer, reached, fates),
            Entry::PartitionKept { place, next } => {
                let local = self.locals.get_mut(place.destination);
                let index = place.partition.0 as usize;
                if let Some(local) = local.filter(|local| local.own.has(index)) {
                    let log = &mut local.partitions[index].log;
                    log.skip_to(&mut self.arena, *next);
                }
            }
            Entry::SubscriptionsNumbered { next } => self.kept.go_on_at(*next),
            Entry::TermReached { destination, term } => {
                if let Some(local) = self.locals.get_mut(*destination) {
                    local.term = local.term.max(*term);
                }
            }
            // Whoever tells entries tells the messages that lie there, too.
            Entry::Paged { .. } => {}
        }
        Ok(())
    }

    /// Whether something has to come from pages before an entry is told: the keys of messages
    /// that were handed out decide who is given others. Its wishes are to be fulfilled first;
    /// if it has none, there is too little memory.
    pub fn awaits_pages_for(&mut self, entry: &Entry<'_>) -> bool {
        let (place, number, run) = match entry {
            Entry::Settled {
                place,
                subscription,
                runs,
            } => (place, subscription, runs.last()),
            Entry::Returned {
                place,
                subscription,
                run,
                ..
            } => (place, subscription, Some(run)),
            _ => return false,
        };
        let end = run.map(|run| Offset(run.first.get().saturating_add(run.count.get())));
        let (Some(end), Some(_)) = (end, &self.pager) else {
            return false;
        };
        let Some(at) = self.place_of_part(*place, *number) else {
            return false;
        };
        let Some(partition) = self.own_partition(*place) else {
            return false;
        };
        let part = partition.parts.get(at);
        let Some((_, part)) = part.filter(|(_, part)| part.has_keys()) else {
            return false;
        };
        let wants = partition.log.want_between(part.fresh(), end);
        if wants {
            self.note_wanted(place.destination, place.partition);
            self.look_for_room();
        }
        wants
    }

    /// All entries were told: whatever was delivered and not settled waits for whoever
    /// comes, and offsets go on where none was given out.
    pub fn restored(&mut self) {
        self.remembered.resume();
        for local in self.locals.iter_mut() {
            for index in local.own.indexes() {
                let partition = &mut local.partitions[index];
                let reserved = partition.log.reserved();
                partition.log.go_on_at(&mut self.arena, reserved);
                for (_, part) in &mut partition.parts {
                    part.go_on();
                }
            }
        }
        // What expired while no run was there is gone before anybody is given it.
        let expire = self.locals.iter().filter(|local| local.expires > 0);
        let expire: Vec<DestinationNumber> = expire.map(|local| local.number).collect();
        for destination in expire {
            self.queue_destination(destination);
        }
    }

    fn own_partition(&mut self, place: Place) -> Option<&mut crate::partition::Partition> {
        let local = self.locals.get_mut(place.destination)?;
        let index = place.partition.0 as usize;
        let is_own = local.own.has(index);
        local.partitions.get_mut(index).filter(|_| is_own)
    }

    fn restore_message(
        &mut self,
        header: &MessageHeader,
        frame: &[u8],
    ) -> Result<(), TooLittleMemory> {
        let place = Place {
            destination: DestinationNumber(header.handle.get()),
            partition: PartitionIndex(header.partition.get()),
        };
        let bound = self.plan.bound;
        let Some(local) = (self.locals.get_mut(place.destination))
            .filter(|local| local.own.has(place.partition.0 as usize))
        else {
            return Ok(());
        };
        let partition = &mut local.partitions[place.partition.0 as usize];
        let offset = Offset(header.offset.get());
        if offset < partition.log.next() {
            return Ok(());
        }
        partition.log.skip_to(&mut self.arena, offset);
        let time = Wall(header.append_time.get());
        append(partition, &mut self.arena, Bytes::Whole(frame), time)
            .map_err(|_| TooLittleMemory { bound })?;
        local.stored += 1;
        self.look_for_room();
        let outcome = Outcome {
            offset: offset.0,
            append_time: time,
            refusal: 0,
        };
        let turn = (header.partition_sequence.get(), header.sequence.get());
        let producer = ProducerId(header.producer.get());
        self.restore_turn(producer, place.partition, turn, &outcome);
        self.queue(place.destination, place.partition);
        Ok(())
    }

    fn restore_turn(
        &mut self,
        producer: ProducerId,
        partition: PartitionIndex,
        turn: (u64, u64),
        outcome: &Outcome,
    ) {
        self.restore_sends(producer, |identity, grow| {
            identity.had_turn_before(partition.0, turn, outcome, grow);
        });
    }

    fn restore_sent(&mut self, producer: ProducerId, reached: &[Reached], fates: &[Fate]) {
        let Some(Known::Detached(number)) = self.remembered.place(producer) else {
            return;
        };
        let destination = self.remembered.detached(number).map(|it| it.destination);
        let local = destination.and_then(|destination| self.locals.get(destination));
        let Some(own) = local.map(|local| local.own) else {
            return;
        };
        self.restore_sends(producer, |identity, grow| {
            identity.had_sent(reached, fates, |index| own.has(index), grow);
        });
    }

    /// Has something told to a producer, who is known, about its sends.
    fn restore_sends(
        &mut self,
        producer: ProducerId,
        tell: impl FnOnce(&mut Identity, &mut dyn FnMut(usize) -> bool),
    ) {
        let Some(Known::Detached(number)) = self.remembered.place(producer) else {
            return;
        };
        let Some(mut identity) = self.remembered.take(number) else {
            return;
        };
        let remembered = &mut self.remembered;
        tell(&mut identity, &mut |bytes| remembered.grow(bytes));
        self.remembered.detach_again(number, identity);
    }

    /// A producer of an earlier run, in the incarnation that is said.
    fn restore_producer(&mut self, mut identity: Identity, epoch: Epoch) {
        identity.epoch = epoch;
        let known = match self.remembered.place(identity.id) {
            Some(Known::Detached(number)) => self.remembered.take(number).map(|it| (number, it)),
            _ => None,
        };
        match known {
            Some((number, mut known)) => {
                known.epoch = known.epoch.max(epoch);
                known.term = known.term.max(identity.term);
                self.remembered.detach_again(number, known);
            }
            None => {
                let partitions = self.locals[identity.destination].partitions.len();
                if self.remembered.reserve(partitions, identity.name.len()) {
                    self.remembered.detach(identity);
                }
            }
        }
    }

    fn restore_settled(&mut self, place: Place, number: SubscriptionNumber, runs: &[Run]) {
        let Some(at) = self.place_of_part(place, number) else {
            return;
        };
        let Some(local) = (self.locals.get_mut(place.destination))
            .filter(|local| local.own.has(place.partition.0 as usize))
        else {
            return;
        };
        let partition = &mut local.partitions[place.partition.0 as usize];
        if let Some((_, part)) = partition.parts.get_mut(at) {
            let before = part.entries_size();
            for run in runs {
                let (first, count) = (Offset(run.first.get()), run.count.get());
                part.settled_before(&mut self.arena, &mut partition.log, first, count);
            }
            // What was settled out of its order takes as much as it did before.
            self.parts.take_anyway(part.entries_size() - before);
        }
        if let Some(settled) = partition.log.settled() {
            settled.clear();
        }
    }

    /// Messages had come back in an earlier run, delivered so often.
    fn restore_returned(
        &mut self,
        place: Place,
        number: SubscriptionNumber,
        run: &Run,
        deliveries: u32,
    ) {
        let index = place.partition.0 as usize;
        let Some(at) = self.place_of_part(place, number) else {
            return;
        };
        let local = self.locals.get_mut(place.destination);
        let Some(local) = local.filter(|local| local.own.has(index)) else {
            return;
        };
        let partition = &mut local.partitions[index];
        if let Some((_, part)) = partition.parts.get_mut(at) {
            let before = part.entries_size();
            let messages = (Offset(run.first.get()), run.count.get());
            let deliveries = u16::try_from(deliveries).unwrap_or(u16::MAX);
            part.returned_before(&mut self.arena, &mut partition.log, messages, deliveries);
            self.parts.take_anyway(part.entries_size() - before);
        }
    }
}
