//! Which destinations there are.
//!
//! A destination's shape (kind, name, partitions, retention) is fixed when it is
//! created; its number is never given to another one.

pub mod placement;

use foldhash::quality::SeedableRandomState;
use hashbrown::HashMap;

use crate::error::Refusal;
use crate::id::DestinationNumber;
use crate::limits;
use crate::name::Destination;

/// What is fixed about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its partitions, at least 1.
    pub partitions: u32,
    /// Bytes of settled messages that it keeps.
    pub retain: u64,
}

/// What somebody who opens a destination expects of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Partitions, if that matters.
    pub partitions: Option<u32>,
    /// Retention, if that matters.
    pub retain: Option<u64>,
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Kind and name.
    pub destination: Destination,
    /// What is fixed about it.
    pub shape: Shape,
}

/// All destinations.
#[derive(Debug)]
pub struct Catalog {
    numbers: HashMap<Destination, DestinationNumber, SeedableRandomState>,
    entries: Vec<Entry>,
}

/// A destination that an opening led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It was there.
    Found(DestinationNumber),
    /// It is new.
    Created(DestinationNumber),
}

impl Catalog {
    /// An empty catalogue; `seed` keeps strangers from choosing names that collide.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = SeedableRandomState::with_seed(seed, foldhash::SharedSeed::global_fixed());
        Self {
            numbers: HashMap::with_hasher(state),
            entries: Vec::new(),
        }
    }

    /// Finds `destination`, or creates it as `wanted`.
    ///
    /// # Errors
    ///
    /// [`Refusal::PreconditionFailed`] if it exists with another shape,
    /// [`Refusal::IllegalArgument`] if the wanted shape is none, and
    /// [`Refusal::ResourceAllocation`] if there are too many destinations.
    pub fn resolve(
        &mut self,
        destination: &Destination,
        wanted: Wanted,
    ) -> Result<Resolved, Refusal> {
        let bad = |partitions| partitions == 0 || partitions > limits::PARTITIONS_MAX;
        if wanted.partitions.is_some_and(bad) {
            return Err(Refusal::IllegalArgument);
        }
        if let Some(number) = self.find(destination) {
            let shape = self.entry(number).shape;
            let same = wanted
                .partitions
                .is_none_or(|partitions| partitions == shape.partitions)
                && wanted.retain.is_none_or(|retain| retain == shape.retain);
            return if same {
                Ok(Resolved::Found(number))
            } else {
                Err(Refusal::PreconditionFailed)
            };
        }
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        if number >= limits::DESTINATIONS_MAX {
            return Err(Refusal::ResourceAllocation);
        }
        let shape = Shape {
            partitions: wanted.partitions.unwrap_or(1),
            retain: wanted.retain.unwrap_or(0),
        };
        self.entries.push(Entry {
            destination: destination.clone(),
            shape,
        });
        self.numbers
            .insert(destination.clone(), DestinationNumber(number));
        Ok(Resolved::Created(DestinationNumber(number)))
    }

    /// The number of `destination`, if it exists.
    #[must_use]
    pub fn find(&self, destination: &Destination) -> Option<DestinationNumber> {
        self.numbers.get(destination).copied()
    }

    /// The destination with this number.
    ///
    /// # Panics
    ///
    /// If the number was never given.
    #[must_use]
    pub fn entry(&self, number: DestinationNumber) -> &Entry {
        &self.entries[number.0 as usize]
    }

    /// All destinations, by number.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_destination_keeps_the_shape_it_was_created_with() {
        let mut catalog = Catalog::new(1);
        let orders = Destination::parse("orders").unwrap();
        let three = Wanted {
            partitions: Some(3),
            retain: None,
        };
        let created = catalog.resolve(&orders, three).unwrap();
        assert_eq!(created, Resolved::Created(DestinationNumber(0)));
        let found = Ok(Resolved::Found(DestinationNumber(0)));
        assert_eq!(catalog.resolve(&orders, Wanted::default()), found);
        assert_eq!(catalog.resolve(&orders, three), found);
        let four = Wanted {
            partitions: Some(4),
            retain: None,
        };
        assert_eq!(
            catalog.resolve(&orders, four),
            Err(Refusal::PreconditionFailed)
        );
        let kept = Wanted {
            partitions: None,
            retain: Some(1),
        };
        assert_eq!(
            catalog.resolve(&orders, kept),
            Err(Refusal::PreconditionFailed)
        );
        let none = Wanted {
            partitions: Some(0),
            retain: None,
        };
        assert_eq!(
            catalog.resolve(&orders, none),
            Err(Refusal::IllegalArgument)
        );
    }

    #[test]
    fn a_queue_and_a_topic_of_one_name_are_two_destinations() {
        let mut catalog = Catalog::new(1);
        let wanted = Wanted::default();
        let queue = catalog
            .resolve(&Destination::parse("queue:a").unwrap(), wanted)
            .unwrap();
        let topic = catalog
            .resolve(&Destination::parse("topic:a").unwrap(), wanted)
            .unwrap();
        assert_ne!(queue, topic);
    }
}
