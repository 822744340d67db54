//! What an administrator has changed.

use crate::auth::{self, Operation, Target};
use crate::catalog::{PolicyChange, Request, RetentionCode};
use crate::error::Refusal;
use crate::frame::control::{Changed, Create, Delete, End, SetPolicies};
use crate::frame::decode;
use crate::id::{DestinationNumber, Epoch, Handle, LinkNumber, ProducerId, RequestId};
use crate::name::DestinationKind;
use crate::planted::Planted;
use crate::shard::destination::wanted;
use crate::shard::ending::Ending;
use crate::shard::remembered::Place;
use crate::shard::{LinkState, Rejection, Shard};
use crate::time::Now;

/// Bits of `options` in [`Create`] and [`SetPolicies`].
const PARTITIONS: u16 = 1;
const RETAIN: u16 = 1 << 1;
const PRODUCERS_MAX: u16 = 1 << 2;
const CONSUMERS_MAX: u16 = 1 << 3;
const SUBSCRIPTIONS_MAX: u16 = 1 << 4;
const DISPATCH: u16 = 1 << 5;
const POLICIES: u16 = PRODUCERS_MAX | CONSUMERS_MAX | SUBSCRIPTIONS_MAX;

/// Bits of `options` in [`Delete`].
const FORCE: u8 = 1;
const SUBSCRIPTION: u8 = 1 << 1;

impl Shard {
    pub(in crate::shard) fn create_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &Create,
        name: &[u8],
    ) -> Result<(), Rejection> {
        let name = core::str::from_utf8(name).unwrap_or("");
        let destination = self.destination(link, fields.session.get(), fields.destination, name)?;
        auth::authorize(self.principal(link), Operation::Create, Target::Name)?;
        let options = fields.options.get();
        if options & !(PARTITIONS | RETAIN | POLICIES | DISPATCH) != 0 {
            return Err(Refusal::Unsupported.into());
        }
        let wanted = wanted(
            (options & PARTITIONS != 0).then_some(fields.partitions.get()),
            (options & RETAIN != 0).then_some(RetentionCode {
                policy: fields.retention,
                bytes: fields.retain.get(),
                period: fields.period.get(),
            }),
            (options & DISPATCH != 0).then_some(fields.dispatch),
        )?;
        let policies = PolicyChange {
            producers_max: (options & PRODUCERS_MAX != 0).then_some(fields.producers_max.get()),
            consumers_max: (options & CONSUMERS_MAX != 0).then_some(fields.consumers_max.get()),
            subscriptions_max: (options & SUBSCRIPTIONS_MAX != 0)
                .then_some(fields.subscriptions_max.get()),
        };
        let changed = self.change(Request::Create(&destination, wanted, policies), 0)?;
        self.changed(now, link, request, changed)
    }

    pub(in crate::shard) fn policies_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &SetPolicies,
        name: &[u8],
    ) -> Result<(), Rejection> {
        let name = core::str::from_utf8(name).unwrap_or("");
        let destination = self.destination(link, fields.session.get(), fields.destination, name)?;
        auth::authorize(self.principal(link), Operation::Administer, Target::Name)?;
        let options = fields.options.get();
        if options & !POLICIES != 0 {
            return Err(Refusal::Unsupported.into());
        }
        let policies = PolicyChange {
            producers_max: (options & PRODUCERS_MAX != 0).then_some(fields.producers_max.get()),
            consumers_max: (options & CONSUMERS_MAX != 0).then_some(fields.consumers_max.get()),
            subscriptions_max: (options & SUBSCRIPTIONS_MAX != 0)
                .then_some(fields.subscriptions_max.get()),
        };
        let changed = self.change(Request::SetPolicies(&destination, policies), 0)?;
        self.changed(now, link, request, changed)
    }

    pub(in crate::shard) fn delete_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &Delete,
        tail: &[u8],
    ) -> Result<(), Rejection> {
        let Some((name, rest)) = decode::text(tail, fields.destination_length.get()) else {
            return Err(Refusal::InvalidName.into());
        };
        let Some((subscription, _)) = decode::text(rest, fields.subscription_length.get()) else {
            return Err(Refusal::IllegalArgument.into());
        };
        let destination = self.destination(link, fields.session.get(), fields.destination, name)?;
        auth::authorize(self.principal(link), Operation::Administer, Target::Name)?;
        if fields.options & !(FORCE | SUBSCRIPTION) != 0 {
            return Err(Refusal::Unsupported.into());
        }
        let force = fields.options & FORCE != 0;
        let found = self.catalog.find(&destination);
        if fields.options & SUBSCRIPTION != 0 {
            let Some(number) = found else {
                return Err(Rejection::request(
                    Refusal::NotFound,
                    format!("{destination} does not exist"),
                ));
            };
            if self.shards() == 1 {
                self.delete_subscription(number, subscription, force)?;
            } else {
                self.ask_to_delete_subscription(number, subscription, force, 0)?;
            }
        } else {
            if let Some(number) = found
                && !force
            {
                self.ask_whether_alone(number, 0)?;
            }
            self.change(Request::Delete(&destination), u8::from(!force))?;
        }
        self.changed(now, link, request, true)
    }

    pub(in crate::shard) fn end_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &End,
    ) -> Result<(), Rejection> {
        if !self.is_session_of(link, Handle(fields.session.get())) {
            return Err(Refusal::NotOpen.into());
        }
        auth::authorize(self.principal(link), Operation::Administer, Target::Broker)?;
        let number = fields.number.get();
        match fields.what {
            0 => self.end_link(now, LinkNumber(number))?,
            1 => self.fence_everywhere(ProducerId(number))?,
            _ => return Err(Refusal::Unsupported.into()),
        }
        self.changed(now, link, request, true)
    }

    fn changed(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        changed: bool,
    ) -> Result<(), Rejection> {
        let fields = Changed {
            version: self.catalog.version().0.into(),
            changed: changed.into(),
            ..Changed::default()
        };
        self.answer(now, link, request.0, &fields, &[])?;
        Ok(())
    }

    /// Refuses to delete what somebody uses.
    pub(in crate::shard) fn is_alone(&self, number: DestinationNumber) -> Result<(), Rejection> {
        let Some(entry) = self.catalog.get(number) else {
            return Ok(());
        };
        let local = &self.locals[number];
        if local.producers + local.consumers == 0 {
            return Ok(());
        }
        Err(Rejection::request(
            Refusal::PreconditionFailed,
            format!(
                "{} is in use, by {} producers and {} consumers: force its deletion, or end them",
                entry.destination, local.producers, local.consumers
            ),
        ))
    }

    pub(in crate::shard) fn delete_subscription(
        &mut self,
        number: DestinationNumber,
        name: &str,
        force: bool,
    ) -> Result<(), Rejection> {
        let Some(entry) = self.catalog.get(number) else {
            return Err(Refusal::NotFound.into());
        };
        let destination = &entry.destination;
        if destination.kind == DestinationKind::Queue {
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                format!("{destination} has one subscription, which goes with it"),
            ));
        }
        let Some(handle) = self.subscription_named(number, name) else {
            return Err(Rejection::request(
                Refusal::NotFound,
                format!("{destination} has no subscription {name:?}"),
            ));
        };
        let consumers = self
            .subscriptions
            .get(handle)
            .map_or(0, |subscription| subscription.membership().members().len());
        if consumers > 0 && !force {
            return Err(Rejection::request(
                Refusal::PreconditionFailed,
                format!(
                    "subscription {name:?} of {destination} is in use, by {consumers} consumers: \
                     force its deletion, or end them"
                ),
            ));
        }
        let why = Ending {
            refusal: Refusal::NotFound,
            text: "the subscription was deleted",
        };
        self.end_consumers(|consumer| consumer.subscription() == handle, why);
        self.end_subscription(handle);
        Ok(())
    }

    fn end_link(&mut self, now: Now, number: LinkNumber) -> Result<(), Rejection> {
        let is_open = |link: &Handle| {
            let link = self.links.get(*link);
            link.is_some_and(|link| link.state == LinkState::Open)
        };
        let found = self.link_numbers.get(&number).copied();
        let Some(link) = found.filter(is_open) else {
            return Err(Rejection::request(
                Refusal::NotFound,
                format!("no connection has the number {number}"),
            ));
        };
        self.farewell(now, link, Refusal::Ended, "");
        Ok(())
    }

    /// Shuts a producer out for ever: its epoch rises, and whoever it was never learns
    /// the new one.
    pub(in crate::shard) fn fence(&mut self, id: ProducerId) -> bool {
        let why = Ending {
            refusal: Refusal::Fenced,
            text: "an administrator fenced the producer",
        };
        // A front is known by its client alone, which is told there.
        self.end_producers(|it| it.identity.id == id && it.fan().is_some(), why);
        if Planted::FenceFrontsAlone.is_awake() {
            return self.remembered.place(id).is_some();
        }
        match self.remembered.place(id) {
            Some(Place::Attached(handle)) => {
                if let Some(producer) = self.producers.get_mut(handle) {
                    let epoch = producer.identity.epoch;
                    producer.identity.epoch = Epoch(epoch.0.saturating_add(1));
                }
                self.end_producer(handle, why);
                true
            }
            Some(Place::Detached(number)) => {
                if let Some(identity) = self.remembered.take(number) {
                    self.remembered.forget(&identity);
                }
                true
            }
            None => false,
        }
    }

    /// Shuts a producer out of all shards.
    fn fence_everywhere(&mut self, id: ProducerId) -> Result<(), Rejection> {
        let is_fenced = if self.shards() == 1 {
            self.fence(id)
        } else {
            self.ask_everybody_to_fence(id, 0)?
        };
        if is_fenced {
            return Ok(());
        }
        Err(Rejection::request(
            Refusal::NotFound,
            format!("no producer {id} is known"),
        ))
    }
}
