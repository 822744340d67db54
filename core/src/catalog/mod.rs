//! Which destinations there are, and what is fixed or agreed about each.
//!
//! ```text
//!  request ─> decide ─> change 7 ─> apply ─> the same catalogue of version 7
//!             on one     `─────────> apply ─> on every shard
//!             shard
//! ```
//!
//! The cast: [`Request`] is what somebody asks for, [`Catalog::decide`] turns it into a
//! [`Change`] or a [`CatalogError`], and [`Catalog::apply`] carries a change out. Only
//! deciding chooses (numbers, what was left open); applying the same changes in the
//! same order gives the same catalogue everywhere, and cannot fail.
//!
//! A destination's shape (kind, name, partitions, retention, dispatch) is fixed when it
//! is created. Its number is never given to another one: the slot that it stands in is,
//! so that tables by slot stay as long as destinations are many at a time, whatever
//! their history.
//!
//! Invariants: versions are dense, from 1; each name leads to the entry that bears it;
//! a slot is free or has one tenant; the free ones are taken in the order in which
//! they became so.

pub mod change;
mod dispatch;
pub mod placement;
mod request;
mod retention;

use std::collections::VecDeque;

use foldhash::quality::SeedableRandomState;
use hashbrown::HashMap;

pub use change::Change;
pub use dispatch::{Dispatch, UnknownDispatch};
pub use request::{CatalogError, Policy, PolicyChange, Request, Wanted};
pub use retention::{Retention, RetentionCode, RetentionError};

use crate::id::{CatalogVersion, DestinationNumber};
use crate::limits;
use crate::name::{Destination, DestinationKind};

/// What is fixed about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its partitions, at least 1.
    pub partitions: u32,
    /// What they keep.
    pub retention: Retention,
    /// When consumers see what is to be flushed.
    pub dispatch: Dispatch,
}

/// What can be changed about a destination. Zero is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// The most producers attached at a time.
    pub producers_max: u32,
    /// The most consumers attached at a time.
    pub consumers_max: u32,
    /// The most subscriptions.
    pub subscriptions_max: u32,
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub number: DestinationNumber,
    /// Kind and name.
    pub destination: Destination,
    /// What is fixed about it.
    pub shape: Shape,
    /// What can be changed about it.
    pub policies: Policies,
}

/// A place in tables of destinations.
#[derive(Debug, PartialEq, Eq)]
struct Slot {
    /// How many tenants it had before this one, or the next one.
    tenant: u32,
    entry: Option<Entry>,
}

/// All destinations.
#[derive(Debug)]
pub struct Catalog {
    version: CatalogVersion,
    auto_create: bool,
    numbers: HashMap<Destination, DestinationNumber, SeedableRandomState>,
    slots: Vec<Slot>,
    /// Slots without a tenant, the longest vacant first.
    free: VecDeque<u32>,
    /// How many of them are queues.
    queues: usize,
}

impl Catalog {
    /// An empty catalogue; `seed` keeps strangers from choosing names that collide.
    /// With `auto_create` a destination that is opened and does not exist is created.
    #[must_use]
    pub fn new(seed: u64, auto_create: bool) -> Self {
        let state = SeedableRandomState::with_seed(seed, foldhash::SharedSeed::global_fixed());
        Self {
            version: CatalogVersion(0),
            auto_create,
            numbers: HashMap::with_hasher(state),
            slots: Vec::new(),
            free: VecDeque::new(),
            queues: 0,
        }
    }

    /// Carries out the change that leads to `version`.
    ///
    /// # Panics
    ///
    /// If it is not the next one, or was decided by a catalogue with another history.
    pub fn apply(&mut self, version: CatalogVersion, change: &Change) {
        assert_eq!(
            version.0,
            self.version.0 + 1,
            "changes are applied in their order"
        );
        self.version = version;
        match change {
            Change::Create(entry) => self.create(entry),
            Change::Delete(number) => self.delete(*number),
            Change::SetPolicies(number, policies) => {
                self.tenant_mut(*number).policies = *policies;
            }
        }
    }

    /// How many slots there are, and those without a tenant that may have another one, the
    /// longest vacant first, each by the number that the next one gets.
    pub fn slots(&self) -> (usize, impl Iterator<Item = DestinationNumber>) {
        let next = |slot: &u32| DestinationNumber::new(*slot, self.slots[*slot as usize].tenant);
        (self.slots.len(), self.free.iter().map(next))
    }

    /// Goes on at a version that an earlier run came to, with its slots as
    /// [`Catalog::slots`] says; its destinations are put there by [`Catalog::put_back`].
    /// Whoever had changes of his own has no use for that.
    pub fn go_on_at(
        &mut self,
        version: CatalogVersion,
        slots: usize,
        vacant: impl Iterator<Item = DestinationNumber>,
    ) {
        if self.version > CatalogVersion(0) {
            return;
        }
        self.version = version;
        // One that is neither vacant nor taken has used its numbers up.
        self.slots.resize_with(slots, || Slot {
            tenant: DestinationNumber::TENANTS,
            entry: None,
        });
        for number in vacant {
            if let Some(slot) = self.slots.get_mut(number.slot()) {
                slot.tenant = number.tenant();
                self.free.extend(u32::try_from(number.slot()));
            }
        }
    }

    /// Puts a destination back that was there when the catalogue was of this version;
    /// whether it is the catalogue that goes on there, and does not have it yet.
    pub fn put_back(&mut self, version: CatalogVersion, entry: &Entry) -> bool {
        let number = entry.number;
        let is_missing = self.version == version && self.get(number).is_none();
        let slot = self.slots.get_mut(number.slot()).filter(|_| is_missing);
        let Some(slot) = slot else {
            return false;
        };
        slot.tenant = number.tenant();
        slot.entry = Some(entry.clone());
        self.queues += usize::from(entry.destination.kind == DestinationKind::Queue);
        self.numbers.insert(entry.destination.clone(), number);
        true
    }

    /// How many changes there were.
    #[must_use]
    pub fn version(&self) -> CatalogVersion {
        self.version
    }

    /// The number of `destination`, if it exists.
    #[must_use]
    pub fn find(&self, destination: &Destination) -> Option<DestinationNumber> {
        self.numbers.get(destination).copied()
    }

    /// The destination with this number, if it exists still.
    #[must_use]
    pub fn get(&self, number: DestinationNumber) -> Option<&Entry> {
        let entry = self.slots.get(number.slot())?.entry.as_ref()?;
        (entry.number == number).then_some(entry)
    }

    /// The destination with this number.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn entry(&self, number: DestinationNumber) -> &Entry {
        self.get(number).expect("the destination exists")
    }

    /// Those in slots from `slot` on, in their order.
    pub fn entries_from(&self, slot: usize) -> impl Iterator<Item = &Entry> {
        let from = slot.min(self.slots.len());
        self.slots[from..]
            .iter()
            .filter_map(|slot| slot.entry.as_ref())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// How many of them are queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The number that the next destination gets, if there may be another one.
    fn next_number(&self) -> Option<DestinationNumber> {
        if let Some(slot) = self.free.front() {
            let tenant = self.slots[*slot as usize].tenant;
            return Some(DestinationNumber::new(*slot, tenant));
        }
        let slot = u32::try_from(self.slots.len()).ok()?;
        (slot < limits::DESTINATIONS_MAX).then(|| DestinationNumber::new(slot, 0))
    }

    fn create(&mut self, entry: &Entry) {
        let number = entry.number;
        assert_eq!(
            self.next_number(),
            Some(number),
            "a destination gets the number that was decided"
        );
        if self.free.pop_front().is_none() {
            self.slots.push(Slot {
                tenant: 0,
                entry: None,
            });
        }
        self.slots[number.slot()].entry = Some(entry.clone());
        self.queues += usize::from(entry.destination.kind == DestinationKind::Queue);
        let before = self.numbers.insert(entry.destination.clone(), number);
        assert_eq!(before, None, "a name leads to one destination");
    }

    fn delete(&mut self, number: DestinationNumber) {
        let slot = &mut self.slots[number.slot()];
        let entry = slot
            .entry
            .take_if(|entry| entry.number == number)
            .expect("a destination that is deleted exists");
        self.numbers.remove(&entry.destination);
        self.queues -= usize::from(entry.destination.kind == DestinationKind::Queue);
        slot.tenant += 1;
        // A slot whose numbers are used up stays empty for ever.
        if slot.tenant < DestinationNumber::TENANTS {
            let slot = u32::try_from(number.slot()).expect("a slot is a small number");
            self.free.push_back(slot);
        }
    }

    fn tenant_mut(&mut self, number: DestinationNumber) -> &mut Entry {
        self.slots[number.slot()]
            .entry
            .as_mut()
            .filter(|entry| entry.number == number)
            .expect("a destination that is changed exists")
    }
}

#[cfg(test)]
mod tests;
