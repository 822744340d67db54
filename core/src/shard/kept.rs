//! Named subscriptions of topics, as they are kept.
//!
//! ```text
//!  opened first ──> made, its parts begun ──> journal ──> told, and messages delivered
//!  acknowledged ──> settled, by its number
//!  deleted ───────> ended, by every number that it ever had
//! ```
//!
//! Every shard writes down what it has of a subscription itself: that it is there, under a
//! number of the shard's own, and where its parts begin. The name is what the shards have
//! in common, so a later run, whatever shards it has, finds under one name what several
//! numbers stand for. It goes on with the first of them, and ends all of them.
//!
//! Where a subscription is kept, so are messages: they stay until it has settled them.
//!
//! Invariants: a number is given out once; a subscription with numbers has a name, or is a
//! queue's own; while journals are told, each number of `told` is one of a subscription
//! that lives.

use std::collections::{BTreeMap, BTreeSet};

use super::Shard;
use super::consumer::Subscription;
use super::restore::TooLittleMemory;
use super::returns::PartAddress;
use crate::id::{
    DestinationNumber, Handle, Offset, PartitionIndex, ShardIndex, SubscriptionNumber,
};
use crate::journal::entry::{Entry, Place, Run};
use crate::limits;
use crate::partition::Partition;
use crate::subscription::Kind;

use super::consumer::Start;

/// The subscription that every queue has.
pub(super) const OF_THE_QUEUE: SubscriptionNumber = SubscriptionNumber(1);

/// The low bits of a number say which shard gave it out.
const SHARD_BITS: u32 = 6;
const _: () = assert!(limits::SHARDS_MAX <= 1 << SHARD_BITS);

/// The numbers of subscriptions that are kept.
#[derive(Debug)]
pub(super) struct Kept {
    /// How many this shard or one before it gave out, and one more.
    next: u32,
    /// While the journals are told: what each number stands for now.
    told: BTreeMap<(DestinationNumber, SubscriptionNumber), Handle>,
    /// And which parts were begun under it.
    begun: BTreeSet<(DestinationNumber, SubscriptionNumber, PartitionIndex)>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            // A queue's own is below all of them.
            next: 1,
            told: BTreeMap::new(),
            begun: BTreeSet::new(),
        }
    }
}

impl Kept {
    /// No shard has given out this number, or a higher one.
    pub(super) fn number_next(&self) -> SubscriptionNumber {
        let end = self.next.checked_mul(1 << SHARD_BITS);
        SubscriptionNumber(end.unwrap_or(u32::MAX))
    }

    /// All numbers below were given out, perhaps.
    pub(super) fn go_on_at(&mut self, number: SubscriptionNumber) {
        self.next = self.next.max(number.0.div_ceil(1 << SHARD_BITS));
    }

    /// The next number, unless all were given out.
    fn issue(&mut self, shard: ShardIndex) -> Option<SubscriptionNumber> {
        if self.next >= 1 << (u32::BITS - SHARD_BITS) {
            return None;
        }
        let number = (self.next << SHARD_BITS) | u32::from(shard.0);
        self.next += 1;
        Some(SubscriptionNumber(number))
    }
}

impl Shard {
    /// Writes down a new subscription, if it has a name, and where its parts here begin.
    pub(super) fn journal_subscription(&mut self, handle: Handle) {
        if self.journal.is_none() {
            return;
        }
        let Some(subscription) = self.subscriptions.get(handle) else {
            return;
        };
        if subscription.name().is_none() || !subscription.numbers.is_empty() {
            return;
        }
        let destination = subscription.destination();
        if self.journal_made(handle) {
            self.journal_parts(handle, |_| true);
            self.keep_for(destination);
            let last = self.last_batch();
            if let Some(subscription) = self.subscriptions.get_mut(handle) {
                subscription.made_with = last;
            }
        }
    }

    /// Gives a subscription a number of this shard, and writes down that it has it; `false`
    /// if there is none left. Journals are told one after the other, by runs and not as they
    /// were written: what one says may be about no number that only another one explains.
    fn journal_made(&mut self, handle: Handle) -> bool {
        let (Some(journal), Some(subscription)) =
            (&mut self.journal, self.subscriptions.get_mut(handle))
        else {
            return false;
        };
        let Some(number) = self.kept.issue(self.config.shard) else {
            return false;
        };
        subscription.numbers.insert(0, number);
        let entry = Entry::SubscriptionMade {
            destination: subscription.destination(),
            subscription: number,
            sharing: subscription.membership().kind(),
            durable: true,
            name: subscription.name().unwrap_or_default(),
        };
        journal.append(&mut self.arena, &entry);
        true
    }

    /// Whether this shard gave out a number, in this run or in an earlier one.
    fn is_own_number(&self, number: SubscriptionNumber) -> bool {
        number.0 % (1 << SHARD_BITS) == u32::from(self.config.shard.0)
    }

    /// Writes down where those parts of a subscription here begin that are wanted.
    fn journal_parts(&mut self, handle: Handle, wants: impl Fn(PartitionIndex) -> bool) {
        let (Some(journal), Some(subscription)) =
            (&mut self.journal, self.subscriptions.get(handle))
        else {
            return;
        };
        let destination = subscription.destination();
        let local = &self.locals[destination];
        let (Some(number), Some(place)) = (subscription.numbers.first(), local.place_of(handle))
        else {
            return;
        };
        for index in local.own.indexes() {
            let partition = PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX));
            if wants(partition) {
                let (_, part) = &local.partitions[index].parts[place];
                let entry = Entry::PartBegun {
                    place: Place {
                        destination,
                        partition,
                    },
                    subscription: *number,
                    start: part.fresh(),
                };
                journal.append(&mut self.arena, &entry);
            }
        }
    }

    /// Writes down how often those messages were delivered that came back, of `count`
    /// offsets from `first` on, if the subscription is kept.
    pub(super) fn journal_returned(
        &mut self,
        address: &PartAddress,
        (first, count): (Offset, u64),
    ) {
        let (Some(journal), Some(subscription)) = (
            &mut self.journal,
            self.subscriptions.get(address.subscription),
        ) else {
            return;
        };
        let Some(&number) = subscription.numbers.first() else {
            return;
        };
        let local = self.locals.get(address.destination);
        let partition = local.and_then(|it| it.partitions.get(address.partition.0 as usize));
        let Some(part) = partition.and_then(|it| it.part(address.subscription)) else {
            return;
        };
        let place = Place {
            destination: address.destination,
            partition: address.partition,
        };
        let mut returned = part.returned(first, count).peekable();
        while let Some((first, deliveries)) = returned.next() {
            let mut count = 1;
            while returned
                .next_if_eq(&(Offset(first.0 + count), deliveries))
                .is_some()
            {
                count += 1;
            }
            let entry = Entry::Returned {
                place,
                subscription: number,
                run: Run::new(first, count),
                deliveries: deliveries.into(),
            };
            journal.append(&mut self.arena, &entry);
        }
    }

    /// Writes down that a subscription has ended.
    pub(super) fn journal_ended(&mut self, subscription: &Subscription) {
        let destination = subscription.destination();
        if let Some(journal) = &mut self.journal {
            for &number in subscription
                .numbers
                .iter()
                .filter(|it| **it != OF_THE_QUEUE)
            {
                let entry = Entry::SubscriptionEnded {
                    destination,
                    subscription: number,
                };
                journal.append(&mut self.arena, &entry);
            }
        }
    }

    /// What comes to a destination from here on stays, and what is settled of it is noted.
    fn keep_for(&mut self, destination: DestinationNumber) {
        let local = &mut self.locals[destination];
        local.keeps = true;
        local.note_settled();
    }

    /// A subscription of the destination has ended: perhaps nothing stays any more.
    pub(super) fn look_whether_kept(&mut self, destination: DestinationNumber) {
        let Some(entry) = self.catalog.get(destination) else {
            return;
        };
        let retains = entry.shape.retention.bytes() > 0;
        let subscriptions = &self.subscriptions;
        if let Some(local) = self.locals.get_mut(destination) {
            let is_kept = |it: &Handle| {
                let subscription = subscriptions.get(*it);
                subscription.is_some_and(|it| !it.numbers.is_empty())
            };
            local.keeps = local.is_queue || retains || local.subscriptions.iter().any(is_kept);
        }
    }

    /// Whether a subscription stays when its consumers and the broker are gone.
    pub(super) fn is_kept(&self, subscription: Handle) -> bool {
        let subscription = self.subscriptions.get(subscription);
        subscription.is_some_and(|it| it.name().is_some() && !it.numbers.is_empty())
    }

    /// All journals were told, and this run's is there: what it has to say of
    /// subscriptions that came to this shard from another.
    pub(super) fn keep_subscriptions(&mut self) {
        let begun = core::mem::take(&mut self.kept.begun);
        self.kept.told = BTreeMap::new();
        let kept: Vec<(Handle, DestinationNumber, Vec<SubscriptionNumber>)> =
            (self.subscriptions.iter())
                .filter(|(handle, _)| self.is_kept(*handle))
                .map(|(handle, it)| (handle, it.destination(), it.numbers.clone()))
                .collect();
        for (handle, destination, numbers) in kept {
            if !numbers.iter().any(|number| self.is_own_number(*number)) {
                self.journal_made(handle);
            }
            self.journal_parts(handle, |partition| {
                !(numbers.iter()).any(|number| begun.contains(&(destination, *number, partition)))
            });
            self.keep_for(destination);
        }
    }

    /// An earlier run had a subscription.
    pub(super) fn restore_made(
        &mut self,
        destination: DestinationNumber,
        number: SubscriptionNumber,
        (kind, name): (Kind, &str),
    ) -> Result<(), TooLittleMemory> {
        self.kept.next = self.kept.next.max((number.0 >> SHARD_BITS) + 1);
        let is_known = self.kept.told.contains_key(&(destination, number));
        if is_known || self.locals.get(destination).is_none() {
            return Ok(());
        }
        let handle = match self.subscription_named(destination, name) {
            Some(handle) => handle,
            None => {
                let bound = self.plan.bound;
                self.subscribe(destination, Some(name), Start::Latest, kind)
                    .map_err(|_| TooLittleMemory { bound })?
            }
        };
        let is_own = self.is_own_number(number);
        if let Some(subscription) = self.subscriptions.get_mut(handle) {
            let at = if is_own {
                0
            } else {
                subscription.numbers.len()
            };
            subscription.numbers.insert(at, number);
        }
        self.kept.told.insert((destination, number), handle);
        Ok(())
    }

    /// Its part in a partition began here.
    pub(super) fn restore_begun(
        &mut self,
        place: Place,
        number: SubscriptionNumber,
        start: Offset,
    ) {
        let Place {
            destination,
            partition: index,
        } = place;
        let Some(&handle) = self.kept.told.get(&(destination, number)) else {
            return;
        };
        if self.kept.begun.insert((destination, number, index)) {
            self.begin_part_again(place, handle, Some(start));
        }
    }

    /// A part of a subscription begins at an offset, or behind all there is, and whatever
    /// was known of it is not any more.
    fn begin_part_again(&mut self, place: Place, handle: Handle, start: Option<Offset>) {
        let kind = match self.subscriptions.get(handle) {
            Some(subscription) => subscription.membership().kind(),
            None => return,
        };
        let Some(local) = self.locals.get_mut(place.destination) else {
            return;
        };
        let index = place.partition.0 as usize;
        let Some(at) = local.place_of(handle).filter(|_| local.own.has(index)) else {
            return;
        };
        let partition: &mut Partition = &mut local.partitions[index];
        let start = start.unwrap_or(partition.log.next());
        let size = partition.parts[at].1.entries_size();
        partition.begin_again(&mut self.arena, at, kind, start);
        self.give_parts(size);
    }

    /// One of a subscription's numbers has ended; with the last of them it has, too.
    pub(super) fn restore_ended(
        &mut self,
        destination: DestinationNumber,
        number: SubscriptionNumber,
    ) {
        let Some(handle) = self.kept.told.remove(&(destination, number)) else {
            return;
        };
        let Some(subscription) = self.subscriptions.get_mut(handle) else {
            return;
        };
        subscription.numbers.retain(|other| *other != number);
        if subscription.numbers.is_empty() {
            return self.end_subscription(handle);
        }
        // Somebody made it anew under another number, before this was told.
        let first = (destination, number, PartitionIndex(0));
        let last = (destination, number, PartitionIndex(u32::MAX));
        let parts: Vec<PartitionIndex> = (self.kept.begun.range(first..=last))
            .map(|(_, _, index)| *index)
            .collect();
        for partition in parts {
            let place = Place {
                destination,
                partition,
            };
            self.begin_part_again(place, handle, None);
        }
    }

    /// Where the part stands in its partition that a number is about.
    pub(super) fn place_of_part(&self, place: Place, number: SubscriptionNumber) -> Option<usize> {
        if number == OF_THE_QUEUE {
            return Some(0);
        }
        let handle = self.kept.told.get(&(place.destination, number))?;
        self.locals.get(place.destination)?.place_of(*handle)
    }
}
