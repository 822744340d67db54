//! What is asked of the catalogue, and what is decided about it.

use core::fmt;

use super::{Catalog, Change, Dispatch, Entry, Policies, Retention, RetentionError, Shape};
use crate::error::Refusal;
use crate::id::DestinationNumber;
use crate::limits;
use crate::name::Destination;

/// What somebody who opens or creates a destination expects of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Partitions, if that matters.
    pub partitions: Option<u32>,
    /// What they keep, if that matters.
    pub retention: Option<Retention>,
    /// When consumers see what is to be flushed, if that matters.
    pub dispatch: Option<Dispatch>,
}

/// A bound that can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The most producers.
    Producers,
    /// The most consumers.
    Consumers,
    /// The most subscriptions.
    Subscriptions,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Producers => "producers",
            Self::Consumers => "consumers",
            Self::Subscriptions => "subscriptions",
        })
    }
}

/// Which policies are to be what; those that are `None` stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// The most producers attached at a time.
    pub producers_max: Option<u32>,
    /// The most consumers attached at a time.
    pub consumers_max: Option<u32>,
    /// The most subscriptions.
    pub subscriptions_max: Option<u32>,
}

impl PolicyChange {
    /// What `policies` become.
    #[must_use]
    pub fn on(&self, policies: Policies) -> Policies {
        Policies {
            producers_max: self.producers_max.unwrap_or(policies.producers_max),
            consumers_max: self.consumers_max.unwrap_or(policies.consumers_max),
            subscriptions_max: self.subscriptions_max.unwrap_or(policies.subscriptions_max),
        }
    }

    /// The first policy that it would change, with what it is and what it would be.
    fn first_difference(&self, from: Policies) -> Option<(Policy, u32, u32)> {
        let to = self.on(from);
        [
            (Policy::Producers, from.producers_max, to.producers_max),
            (Policy::Consumers, from.consumers_max, to.consumers_max),
            (
                Policy::Subscriptions,
                from.subscriptions_max,
                to.subscriptions_max,
            ),
        ]
        .into_iter()
        .find(|(_, from, to)| from != to)
    }
}

/// What somebody asks of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A destination is to be there for somebody who opens it.
    Open(&'a Destination, Wanted),
    /// A destination is to be there, whatever the broker does with those that are
    /// opened.
    Create(&'a Destination, Wanted, PolicyChange),
    /// A destination is to be gone.
    Delete(&'a Destination),
    /// Policies are to be others.
    SetPolicies(&'a Destination, PolicyChange),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogError {
    /// It was to have no partition.
    NoPartitions,
    /// It was to have more partitions than any may have.
    TooManyPartitions {
        /// What was wanted.
        wanted: u32,
    },
    /// It has another number of partitions.
    OtherPartitions {
        /// Which destination.
        destination: Destination,
        /// What it has.
        has: u32,
        /// What was wanted.
        wanted: u32,
    },
    /// It was to keep what none may.
    Retention(RetentionError),
    /// It keeps something else.
    OtherRetention {
        /// Which destination.
        destination: Destination,
        /// What it has.
        has: Retention,
        /// What was wanted.
        wanted: Retention,
    },
    /// What is to be flushed is seen at another time.
    OtherDispatch {
        /// Which destination.
        destination: Destination,
        /// What it has.
        has: Dispatch,
        /// What was wanted.
        wanted: Dispatch,
    },
    /// It has another policy than it was to be created with.
    OtherPolicy {
        /// Which destination.
        destination: Destination,
        /// Which one.
        policy: Policy,
        /// What it is.
        has: u32,
        /// What was wanted.
        wanted: u32,
    },
    /// It does not exist.
    NotFound {
        /// Which destination.
        destination: Destination,
        /// Whether it would have been created if the broker did that.
        opened: bool,
    },
    /// There are as many as there may be.
    TooMany,
}

impl CatalogError {
    /// The code on the wire.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoPartitions | Self::TooManyPartitions { .. } | Self::Retention(_) => {
                Refusal::IllegalArgument
            }
            Self::OtherPartitions { .. }
            | Self::OtherRetention { .. }
            | Self::OtherDispatch { .. }
            | Self::OtherPolicy { .. } => Refusal::PreconditionFailed,
            Self::NotFound { .. } => Refusal::NotFound,
            Self::TooMany => Refusal::ResourceAllocation,
        }
    }
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPartitions => f.write_str("partitions must be > 0 or omitted"),
            Self::TooManyPartitions { wanted } => write!(
                f,
                "{wanted} partitions are wanted, and a destination has at most {}",
                limits::PARTITIONS_MAX
            ),
            Self::OtherPartitions {
                destination,
                has,
                wanted,
            } => write!(
                f,
                "{destination} has {has} partitions, and {wanted} are wanted: \
                 how many there are is fixed at its creation"
            ),
            Self::OtherRetention {
                destination,
                has,
                wanted,
            } => write!(
                f,
                "{destination} retains {has}, and {wanted} is wanted: \
                 what it retains is fixed at its creation"
            ),
            Self::Retention(error) => error.fmt(f),
            Self::OtherDispatch {
                destination,
                has,
                wanted,
            } => write!(
                f,
                "{destination} has {has} dispatch, and {wanted} is wanted: \
                 the dispatch strategy is fixed at its creation"
            ),
            Self::OtherPolicy {
                destination,
                policy,
                has,
                wanted,
            } => write!(
                f,
                "{destination} exists with a bound of {has} {policy}, and {wanted} is wanted: \
                 set it"
            ),
            Self::NotFound {
                destination,
                opened: false,
            } => write!(f, "{destination} does not exist"),
            Self::NotFound { destination, .. } => write!(
                f,
                "{destination} does not exist, and this broker creates none that is opened: \
                 create it first"
            ),
            Self::TooMany => write!(
                f,
                "there are {} destinations, and no more can be: delete some",
                limits::DESTINATIONS_MAX
            ),
        }
    }
}

impl Catalog {
    /// The change that a request asks for; `None` if all is as it asks already.
    ///
    /// # Errors
    ///
    /// Why there will be no change.
    pub fn decide(&self, request: Request<'_>) -> Result<Option<Change>, CatalogError> {
        match request {
            Request::Open(destination, wanted) => {
                let none = PolicyChange::default();
                self.decide_create(destination, wanted, none, self.auto_create)
            }
            Request::Create(destination, wanted, policies) => {
                self.decide_create(destination, wanted, policies, true)
            }
            Request::Delete(destination) => {
                let number = self.existing(destination)?;
                Ok(Some(Change::Delete(number)))
            }
            Request::SetPolicies(destination, policies) => {
                let number = self.existing(destination)?;
                let before = self.entry(number).policies;
                let after = policies.on(before);
                Ok((before != after).then_some(Change::SetPolicies(number, after)))
            }
        }
    }

    fn decide_create(
        &self,
        destination: &Destination,
        wanted: Wanted,
        policies: PolicyChange,
        may_create: bool,
    ) -> Result<Option<Change>, CatalogError> {
        match wanted.partitions {
            Some(0) => return Err(CatalogError::NoPartitions),
            Some(wanted) if wanted > limits::PARTITIONS_MAX => {
                return Err(CatalogError::TooManyPartitions { wanted });
            }
            _ => {}
        }
        if let Some(retention) = wanted.retention {
            retention.check().map_err(CatalogError::Retention)?;
        }
        if let Some(number) = self.find(destination) {
            expect(self.entry(number), wanted, policies)?;
            return Ok(None);
        }
        if !may_create {
            return Err(CatalogError::NotFound {
                destination: destination.clone(),
                opened: true,
            });
        }
        let number = self.next_number().ok_or(CatalogError::TooMany)?;
        Ok(Some(Change::Create(Entry {
            number,
            destination: destination.clone(),
            shape: Shape {
                partitions: wanted.partitions.unwrap_or(1),
                retention: wanted.retention.unwrap_or_default(),
                dispatch: wanted.dispatch.unwrap_or_default(),
            },
            policies: policies.on(Policies::default()),
        })))
    }

    fn existing(&self, destination: &Destination) -> Result<DestinationNumber, CatalogError> {
        self.find(destination)
            .ok_or_else(|| CatalogError::NotFound {
                destination: destination.clone(),
                opened: false,
            })
    }
}

/// Whether a destination that exists is as it is wanted.
fn expect(entry: &Entry, wanted: Wanted, policies: PolicyChange) -> Result<(), CatalogError> {
    let destination = || entry.destination.clone();
    if let Some(wanted) = wanted.partitions
        && wanted != entry.shape.partitions
    {
        return Err(CatalogError::OtherPartitions {
            destination: destination(),
            has: entry.shape.partitions,
            wanted,
        });
    }
    if let Some(wanted) = wanted.retention
        && wanted != entry.shape.retention
    {
        return Err(CatalogError::OtherRetention {
            destination: destination(),
            has: entry.shape.retention,
            wanted,
        });
    }
    if let Some(wanted) = wanted.dispatch
        && wanted != entry.shape.dispatch
    {
        return Err(CatalogError::OtherDispatch {
            destination: destination(),
            has: entry.shape.dispatch,
            wanted,
        });
    }
    match policies.first_difference(entry.policies) {
        None => Ok(()),
        Some((policy, has, wanted)) => Err(CatalogError::OtherPolicy {
            destination: destination(),
            policy,
            has,
            wanted,
        }),
    }
}
