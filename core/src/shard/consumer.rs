//! Consumers: from a ready partition to a run on a link, and back to settled.
//!
//! A consumer's credit is a position in messages, which is never passed, and one
//! in frame bytes, which the last message may reach beyond, so that every window
//! admits one whole message. Partitions that have something ready stand in a
//! list; a partition leaves it when it has nothing ready or nobody can take more,
//! and comes back with the fact that changes this: an append, a grant, a return,
//! room on a link, a member that joined or left.
//!
//! ```text
//!   exclusive, shared   whoever is free, in turn ─┐
//!   failover            the active one ───────────┼─> a run on its link
//!   key-shared          who has the key ──────────┘
//! ```

use super::blocks::Blocks;
use super::branch::Origin;
use super::browse::Browser;
use super::durable::{Asker, Confirmation};
use super::egress::Pin;
use super::ending::Ending;
use super::gather::{Gather, LARGEST};
use super::kept::OF_THE_QUEUE;
use super::mesh::link_to;
use super::returns::PartAddress;
use super::source::Source;
use super::tables::no_memory_for_consumers;
use super::{Fault, Link, LinkState, Rejection, Shard, Slab, tables};
use crate::auth::{self, Operation, Principal, Target};
use crate::catalog::Wanted;
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::CONTROL_HEADER_SIZE;
use crate::frame::control::{AckRun, Acknowledge, Acknowledged, Allow, ConsumerOpened, Delivery};
use crate::id::{
    BatchNumber, DestinationNumber, Handle, MemberNumber, Offset, PartitionIndex, RequestId,
    SubscriptionNumber,
};
use crate::limits;
use crate::memory::{Arena, CHUNK};
use crate::name::{Destination, DestinationKind};
use crate::partition;
use crate::partition::log::{Log, Run, RunLimit};
use crate::subscription::{Claim, Kind, Membership, Part};
use crate::time::{Monotonic, Now};
use zerocopy::FromBytes;

/// A run for one of several consumers has at most this many messages, so that
/// they share what there is.
const SHARED_RUN_MESSAGES: u64 = 16;
/// Runs handed out in one turn: bounds how long it takes.
const RUNS_PER_TURN: usize = 256;
/// The subscription of a front or a browser, which is in none.
const NO_SUBSCRIPTION: Handle = Handle(u32::MAX);
/// How a browser shares what it is in, which is nothing.
const ALONE: Kind = Kind::Exclusive;
/// Bytes of a delivery's header.
pub(super) const HEADER: usize = CONTROL_HEADER_SIZE + size_of::<Delivery>();

/// Where a new subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Earliest,
    Latest,
    At(Offset),
}

#[derive(Debug)]
pub(super) struct Subscription {
    destination: DestinationNumber,
    /// `None`: the queue's own, or one that ends with its consumer.
    name: Option<Box<str>>,
    /// Ends with its last consumer.
    fleeting: bool,
    /// What it is called in the journals, by each shard and run that wrote it down; the
    /// first is used from here on. None if it is not kept.
    pub(super) numbers: Vec<SubscriptionNumber>,
    /// The batch of the journal with which it is durable; of one that is not kept, or was by
    /// an earlier run, that before the first.
    pub(super) made_with: BatchNumber,
    /// Who consumes it, and what of it is whose.
    membership: Membership,
    /// Whose turn it is.
    turn: usize,
}

impl Subscription {
    pub(super) fn destination(&self) -> DestinationNumber {
        self.destination
    }

    /// `None`: the queue's own, or one that ends with its consumer.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn is_fleeting(&self) -> bool {
        self.fleeting
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.membership
    }
}

#[derive(Clone, Debug)]
pub(super) struct Consumer {
    pub(super) link: Handle,
    pub(super) session: Handle,
    destination: DestinationNumber,
    subscription: Handle,
    kind: Kind,
    granted_messages: u64,
    granted_bytes: u64,
    delivered_messages: u64,
    delivered_bytes: u64,
    /// What the application was given, as far as the client told.
    handed: u64,
    /// Why it is only a husk, if it is: the broker ended it, and its client will close
    /// it.
    ended: Option<Refusal>,
    /// What it is beside its link, if partitions of its destination are elsewhere.
    role: Option<Box<Role>>,
    /// Where it is, if it is a browser, and not the front of one.
    browser: Option<Box<Browser>>,
}

/// One side of a consumer that spans shards.
#[derive(Clone, Debug)]
enum Role {
    /// Stands towards the client.
    Front(Gather),
    /// Stands where some of the partitions are.
    Source(Source),
}

impl Consumer {
    fn new(
        (link, session): (Handle, Handle),
        (destination, subscription, kind): (DestinationNumber, Handle, Kind),
        (messages, bytes): (u64, u64),
        role: Option<Role>,
    ) -> Self {
        Self {
            link,
            session,
            destination,
            subscription,
            kind,
            granted_messages: messages,
            granted_bytes: bytes,
            delivered_messages: 0,
            delivered_bytes: 0,
            handed: 0,
            ended: None,
            role: role.map(Box::new),
            browser: None,
        }
    }

    /// Its sources, if it is a front.
    pub(super) fn gather(&self) -> Option<&Gather> {
        match self.role.as_deref() {
            Some(Role::Front(gather)) => Some(gather),
            _ => None,
        }
    }

    /// Its sources, if it is a front.
    pub(super) fn gather_mut(&mut self) -> Option<&mut Gather> {
        match self.role.as_deref_mut() {
            Some(Role::Front(gather)) => Some(gather),
            _ => None,
        }
    }

    /// What it has beside a consumer, if it is a source.
    pub(super) fn source_mut(&mut self) -> Option<&mut Source> {
        match self.role.as_deref_mut() {
            Some(Role::Source(source)) => Some(source),
            _ => None,
        }
    }

    /// What it has beside a consumer, if it is a source.
    pub(super) fn source(&self) -> Option<&Source> {
        match self.role.as_deref() {
            Some(Role::Source(source)) => Some(source),
            _ => None,
        }
    }

    /// Where it is, if it is a browser.
    pub(super) fn browser_mut(&mut self) -> Option<&mut Browser> {
        self.browser.as_deref_mut()
    }

    /// What may still be delivered to it, in messages and in bytes.
    pub(super) fn credit_left(&self) -> (u64, u64) {
        (
            self.granted_messages - self.delivered_messages,
            self.granted_bytes.saturating_sub(self.delivered_bytes),
        )
    }

    /// So much was delivered to it.
    pub(super) fn was_delivered(&mut self, messages: u64, size: usize) {
        self.delivered_messages += messages;
        self.delivered_bytes += size as u64;
    }

    /// So much may be delivered to it, beside what was.
    pub(super) fn lend(&mut self, messages: u64, bytes: u64) {
        self.granted_messages = self.delivered_messages + messages;
        self.granted_bytes = self.delivered_bytes + bytes;
    }

    /// Nothing may be delivered to it any more; whether anything might have been.
    pub(super) fn end_lease(&mut self) -> bool {
        let is_left = self.may_take();
        self.lend(0, 0);
        is_left
    }

    /// So much of what was delivered to it was handed to the application.
    pub(super) fn was_handed(&mut self, messages: u64) {
        self.handed = messages.min(self.delivered_messages);
    }

    pub(super) fn destination(&self) -> DestinationNumber {
        self.destination
    }

    pub(super) fn subscription(&self) -> Handle {
        self.subscription
    }

    /// Why the broker ended it, if it did.
    pub(super) fn ended(&self) -> Option<Refusal> {
        self.ended
    }

    /// Messages that it was delivered.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered_messages
    }

    /// How many more messages may be delivered to it.
    pub(super) fn credit(&self) -> u64 {
        self.granted_messages - self.delivered_messages
    }

    /// How its subscription is shared.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    fn may_take(&self) -> bool {
        self.delivered_messages < self.granted_messages && self.delivered_bytes < self.granted_bytes
    }

    pub(super) fn invariants(&self) {
        assert!(
            self.delivered_messages <= self.granted_messages,
            "deliveries stay within the grant"
        );
        assert!(
            self.handed <= self.delivered_messages,
            "only what was delivered is handed out"
        );
    }
}

/// What a consumer is opened with.
pub(super) struct OpenConsumer<'a> {
    pub(super) session: Handle,
    pub(super) destination: &'a Destination,
    pub(super) subscription: &'a str,
    pub(super) start: Start,
    /// How its subscription is shared; `None`: it has none, and only looks at a queue.
    pub(super) kind: Option<Kind>,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// How a run gets from here to whoever takes it.
pub(super) enum Way<'a> {
    /// Out of this link.
    Link(&'a mut Link),
    /// To this front, which acts for somebody and has room for so many bytes.
    Front(Origin, Principal, u64),
}

/// What a source joins a subscription with.
pub(super) struct JoinConsumer<'a> {
    pub(super) destination: DestinationNumber,
    pub(super) subscription: &'a str,
    pub(super) start: Start,
    /// How that is shared; `None`: it joins none, and only looks at a queue.
    pub(super) kind: Option<Kind>,
    /// Which member it is, if the home decided that already.
    pub(super) member: Option<MemberNumber>,
}

impl Way<'_> {
    /// For whom it leads, and how many bytes it takes at once.
    #[inline(always)]
    pub(super) fn bounds(&self) -> (Principal, u64) {
        match self {
            Self::Link(link) => (link.principal, u64::from(limits::EGRESS_SIZE)),
            Self::Front(_, principal, room) => (*principal, *room),
        }
    }
}

/// How a run gets to a consumer, if it may have one now: it has credit, and there is room.
/// Otherwise whoever makes that otherwise is told.
#[inline(always)]
pub(super) fn way_to<'a>(
    links: &'a mut Slab<Link>,
    (blocks, arena): (&mut Blocks, &Arena),
    announcing: &mut Vec<Handle>,
    (handle, consumer): (Handle, &mut Consumer),
    has_large: bool,
    may_deliver: bool,
) -> Option<Way<'a>> {
    if !consumer.may_take() {
        if consumer.source_mut().is_some_and(Source::announce) {
            announcing.push(handle);
        }
        return None;
    }
    if let Some(source) = consumer.source_mut() {
        // What goes to a front has a place there, the last message too, which may
        // reach beyond the credit.
        let last = if has_large { LARGEST } else { CHUNK as u64 };
        let Some(room) = source.room_before(last) else {
            consumer.lend(0, 0);
            announcing.push(handle);
            return None;
        };
        return Some(Way::Front(source.origin, source.principal, room));
    }
    let link = links.get_mut(consumer.link)?;
    if link.state == LinkState::Ending {
        return None;
    }
    let room = HEADER + limits::EGRESS_COPY_MAX as usize;
    if !link.egress.has_room_for_delivery(room) {
        link.starved = true;
        return None;
    }
    if !link.egress.can_open(arena, may_deliver) {
        let listed = &mut link.deliveries_wait;
        blocks.want_for_deliveries(consumer.link, listed);
        return None;
    }
    Some(Way::Link(link))
}

/// A run leaves on a link that has room for it: a short one copied, another one lent.
#[inline(always)]
pub(super) fn deliver_to_link(
    link: &mut Link,
    (blocks, arena): (&mut Blocks, &mut Arena),
    log: &mut Log,
    (destination, partition): (DestinationNumber, PartitionIndex),
    (handle, header, run): (Handle, &Delivery, &Run),
    (now, may_deliver): (Monotonic, bool),
) {
    if link.egress.bytes() == 0 {
        link.progress = now;
    }
    let egress = &mut link.egress;
    egress
        .open(arena, blocks, may_deliver)
        .expect("a block can be opened");
    egress
        .control(arena, handle.0, header, &[])
        .expect("there is room for a delivery's header");
    if run.bytes < limits::EGRESS_COPY_MAX as usize {
        egress
            .copy(arena, (run.chunk, run.start), run.bytes)
            .expect("there is room for a short run");
        return;
    }
    let pin = Pin {
        destination,
        partition,
        offset: run.first,
    };
    let (mut chunk, mut start, mut left) = (run.chunk, run.start, run.bytes);
    while left > 0 {
        let length = left.min(CHUNK - start);
        log.pin(run.first);
        egress.lend((chunk, start), length, pin);
        (chunk, start, left) = (arena.next(chunk), 0, left - length);
    }
}

impl Start {
    /// As two numbers.
    pub(super) fn encode(self) -> (u16, u64) {
        match self {
            Self::Earliest => (0, 0),
            Self::Latest => (1, 0),
            Self::At(offset) => (2, offset.0),
        }
    }

    /// From what [`Start::encode`] gave.
    pub(super) fn decode(code: u16, offset: u64) -> Self {
        match code {
            0 => Self::Earliest,
            1 => Self::Latest,
            _ => Self::At(Offset(offset)),
        }
    }
}

impl Shard {
    pub(super) fn open_consumer(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        open: &OpenConsumer<'_>,
    ) -> Result<(), Rejection> {
        if open.kind.is_none() && self.catalog.find(open.destination).is_none() {
            return Err(Rejection::request(
                Refusal::NotFound,
                format!("{} does not exist", open.destination),
            ));
        }
        let destination = self.resolve(
            link,
            open.destination,
            Wanted::default(),
            Operation::Consume,
        )?;
        if !self.owns_all_of(destination) {
            return self.open_gathering(now, link, request, open, destination);
        }
        let join = JoinConsumer {
            destination,
            subscription: open.subscription,
            start: open.start,
            kind: open.kind,
            member: None,
        };
        let credit = (open.messages, open.bytes);
        let (handle, _) = self
            .join_as((link, open.session), &join, (0, 0), None)
            .map_err(Rejection::Request)?;
        if self.opens_once_durable(now, handle, Asker::Client(request, credit)) {
            return Ok(());
        }
        Ok(self.consumer_opened(now, link, request, handle, credit)?)
    }

    /// The subscription of a consumer is there to stay: its client is told, and messages
    /// may be delivered.
    pub(super) fn consumer_opened(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        handle: Handle,
        (messages, bytes): (u64, u64),
    ) -> Result<(), Fault> {
        let Some(consumer) = self.consumers.get_mut(handle) else {
            return Ok(());
        };
        (consumer.granted_messages, consumer.granted_bytes) = (messages, bytes);
        let destination = consumer.destination;
        let starts = self.starts_of(handle);
        let fields = ConsumerOpened {
            handle: handle.0.into(),
            partitions: self.partitions_of(destination).into(),
        };
        self.answer(now, link, request.0, &fields, &[&starts])?;
        self.queue_destination(destination);
        Ok(())
    }

    /// A source joins a subscription; returns which member it is, too.
    pub(super) fn join_subscription(
        &mut self,
        join: &JoinConsumer<'_>,
        source: Source,
    ) -> Result<(Handle, MemberNumber), Fault> {
        let link = link_to(source.origin.shard);
        let role = Some(Role::Source(source));
        let (handle, member) = self.join_as((link, Handle(0)), join, (0, 0), role)?;
        self.queue_destination(join.destination);
        Ok((handle, member))
    }

    fn join_as(
        &mut self,
        of: (Handle, Handle),
        join: &JoinConsumer<'_>,
        credit: (u64, u64),
        role: Option<Role>,
    ) -> Result<(Handle, MemberNumber), Fault> {
        let destination = join.destination;
        if join.member.is_none() && join.kind.is_some() {
            self.has_room_for_consumer(destination)?;
        }
        let partitions = self.locals[destination].own.count;
        let kind = join.kind.unwrap_or(ALONE);
        let size = tables::consumer_size(kind, partitions);
        if !self.opened.has(size) {
            return Err(no_memory_for_consumers());
        }
        let subscription = match join.kind {
            Some(kind) => self.subscription_for(join, kind)?,
            None => NO_SUBSCRIPTION,
        };
        let mut consumer = Consumer::new(of, (destination, subscription, kind), credit, role);
        if join.kind.is_none() {
            consumer.browser = Some(Box::new(Browser::of(&self.locals[destination])));
        }
        let Ok(handle) = self.consumers.insert(consumer) else {
            self.end_if_fleeting(subscription);
            return Err(Refusal::ResourceAllocation.into());
        };
        self.opened.take(size);
        let mut member = MemberNumber(0);
        if let Some(subscription) = self.subscriptions.get_mut(subscription) {
            member = match join.member {
                None => subscription.membership.joined(handle).number,
                Some(number) => subscription.membership.joined_as(number, handle).number,
            };
        }
        if let Some(entry) = self.links.get_mut(of.0) {
            entry.consumers.push(handle);
        }
        self.session_holds(of.0, of.1);
        let local = self.local_mut(destination);
        match join.kind {
            Some(_) => local.consumers += 1,
            None => local.browsers.push(handle),
        }
        Ok((handle, member))
    }

    /// A front on `link`: what stands there for sources, and is in no subscription
    /// itself.
    pub(super) fn gathering(
        &mut self,
        link: Handle,
        open: &OpenConsumer<'_>,
        destination: DestinationNumber,
        gather: Gather,
    ) -> Result<Handle, Rejection> {
        let partitions = self.locals[destination].own.count;
        let kind = open.kind.unwrap_or(ALONE);
        let size = tables::consumer_size(kind, partitions);
        if !self.opened.has(size) {
            return Err(Rejection::Request(no_memory_for_consumers()));
        }
        let consumer = Consumer::new(
            (link, open.session),
            (destination, NO_SUBSCRIPTION, kind),
            (open.messages, open.bytes),
            Some(Role::Front(gather)),
        );
        let handle = self
            .consumers
            .insert(consumer)
            .map_err(|_| Refusal::ResourceAllocation)?;
        self.opened.take(size);
        self.local_mut(destination).fronts += 1;
        if let Some(entry) = self.links.get_mut(link) {
            entry.consumers.push(handle);
        }
        self.session_holds(link, open.session);
        Ok(handle)
    }

    /// Where a consumer starts in each partition, eight bytes each.
    pub(super) fn starts_of(&self, handle: Handle) -> Vec<u8> {
        let Some(consumer) = self.consumers.get(handle) else {
            return Vec::new();
        };
        let subscription = consumer.subscription;
        let partitions = &self.locals[consumer.destination].partitions;
        let mut starts = Vec::with_capacity(partitions.len() * size_of::<u64>());
        for (index, partition) in partitions.iter().enumerate() {
            let start = match &consumer.browser {
                Some(browser) => browser.offset(index),
                None => partition.part(subscription).map(Part::start),
            };
            let start = start.unwrap_or(Offset(0));
            starts.extend_from_slice(&start.0.to_le_bytes());
        }
        starts
    }

    /// A subscription of `destination` with a part in each partition.
    pub(super) fn subscribe(
        &mut self,
        destination: DestinationNumber,
        name: Option<&str>,
        start: Start,
        kind: Kind,
    ) -> Result<Handle, Fault> {
        let partitions = self.locals[destination].own.count;
        let size = tables::subscription_size(kind, partitions);
        // That of a queue comes with it, wherever that was decided.
        if !self.parts.has(size) && !self.is_queue(destination) {
            return Err(tables::no_memory_for_subscriptions());
        }
        let subscription = Subscription {
            destination,
            name: name.map(Into::into),
            fleeting: name.is_none() && !self.is_queue(destination),
            numbers: if self.is_queue(destination) {
                vec![OF_THE_QUEUE]
            } else {
                Vec::new()
            },
            made_with: BatchNumber(0),
            membership: Membership::new(kind),
            turn: 0,
        };
        let handle = self
            .subscriptions
            .insert(subscription)
            .map_err(|_| Refusal::ResourceAllocation)?;
        self.parts.take_anyway(size);
        let local = &mut self.locals[destination];
        local.subscriptions.push(handle);
        for index in local.own.indexes() {
            let partition = &mut local.partitions[index];
            let from = match start {
                Start::Earliest => Offset(0),
                Start::Latest => partition.log.next(),
                Start::At(offset) => offset,
            };
            partition.subscribe_as(&self.arena, handle, kind, from);
        }
        self.journal_subscription(handle);
        Ok(handle)
    }

    fn subscription_for(&mut self, open: &JoinConsumer<'_>, wanted: Kind) -> Result<Handle, Fault> {
        let destination = open.destination;
        let name = Some(open.subscription).filter(|name| !name.is_empty());
        let is_queue = self.is_queue(destination);
        let found = self.locals[destination]
            .subscriptions
            .iter()
            .find_map(|handle| {
                let found = self.subscriptions.get(*handle)?;
                let meant = is_queue || (name.is_some() && found.name.as_deref() == name);
                meant.then_some((*handle, found))
            });
        let Some((handle, found)) = found else {
            if name.is_some() && self.is_broken() {
                return Err(Refusal::StorageFailed.into());
            }
            self.has_room_for_subscription(destination)?;
            self.has_room_in_journal()?;
            return self.subscribe(destination, name, open.start, wanted);
        };
        let (kind, consumers) = (found.membership.kind(), found.membership.members().len());
        if kind != wanted {
            return Err(Fault::new(
                Refusal::PreconditionFailed,
                format!(
                    "the subscription {:?} is {kind} and stays so: it cannot be opened as {wanted}",
                    open.subscription
                ),
            ));
        }
        match kind {
            Kind::Exclusive if consumers > 0 && open.member.is_none() => {
                Err(Refusal::Exclusive.into())
            }
            Kind::Exclusive
                if (found.membership.members().iter())
                    .any(|member| open.member.is_some_and(|joins| joins < member.number)) =>
            {
                // The home let somebody else in since, so this one has left there, and
                // the word of that is on its way.
                Err(Refusal::Exclusive.into())
            }
            Kind::Exclusive => {
                // The home let this one in, so who is here still has left there and is
                // about to be gone.
                let before: Vec<Handle> = (found.membership.members().iter())
                    .map(|member| member.consumer)
                    .collect();
                for before in before {
                    self.remove_consumer(before, false);
                }
                Ok(handle)
            }
            Kind::KeyShared if consumers >= limits::KEY_SHARED_CONSUMERS_MAX as usize => {
                Err(Fault::new(
                    Refusal::ResourceAllocation,
                    format!(
                        "a key-shared subscription has at most {} consumers",
                        limits::KEY_SHARED_CONSUMERS_MAX
                    ),
                ))
            }
            _ => Ok(handle),
        }
    }

    /// The subscription of this name; a queue's own has none.
    pub(super) fn subscription_named(
        &self,
        destination: DestinationNumber,
        name: &str,
    ) -> Option<Handle> {
        let mut handles = self.locals[destination].subscriptions.iter();
        let is_named = |handle: &&Handle| {
            let found = self.subscriptions.get(**handle);
            found.is_some_and(|found| !found.fleeting && found.name().unwrap_or("") == name)
        };
        handles.find(is_named).copied()
    }

    fn is_queue(&self, destination: DestinationNumber) -> bool {
        self.catalog.entry(destination).destination.kind == DestinationKind::Queue
    }

    /// A consumer ends. With `clean` what its application never saw returns
    /// uncounted; otherwise nobody knows, and all of it counts as handed out.
    pub(super) fn remove_consumer(&mut self, handle: Handle, clean: bool) {
        let Some(consumer) = self.consumers.remove(handle) else {
            return;
        };
        if let Some(link) = self.links.get_mut(consumer.link) {
            link.consumers.retain(|other| *other != handle);
        }
        self.session_lets_go(consumer.link, consumer.session);
        if consumer.ended.is_some() {
            self.opened.give(tables::consumer_size(Kind::Exclusive, 0));
            return;
        }
        self.detach_consumer(handle, &consumer, clean);
    }

    /// As [`Shard::remove_consumer`], but the handle stays as a husk until it is removed:
    /// there is something left to be told about it.
    pub(super) fn retire_consumer(&mut self, handle: Handle, clean: bool) {
        let Some(consumer) = self.consumers.get_mut(handle) else {
            return;
        };
        if consumer.ended.is_none() {
            consumer.ended = Some(Refusal::NotOpen);
            let before = consumer.clone();
            self.opened.take(tables::consumer_size(Kind::Exclusive, 0));
            self.detach_consumer(handle, &before, clean);
        }
    }

    /// A consumer leaves its subscription.
    fn detach_consumer(&mut self, handle: Handle, consumer: &Consumer, clean: bool) {
        let local = &mut self.locals[consumer.destination];
        let partitions = local.own.count;
        self.opened
            .give(tables::consumer_size(consumer.kind, partitions));
        if let Some(gather) = consumer.gather() {
            local.fronts -= 1;
            self.forget_leases(consumer.link, handle);
            return self.drop_sources(gather, (consumer.link, handle), clean);
        }
        if consumer.browser.is_some() {
            local.browsers.retain(|browser| *browser != handle);
            return partition::trim(&mut local.browsers);
        }
        let handed = if clean {
            consumer.handed
        } else {
            consumer.delivered_messages
        };
        let local = &mut self.locals[consumer.destination];
        local.consumers -= 1;
        let own = local.own;
        if let Some(place) = local.place_of(consumer.subscription) {
            for index in own.indexes() {
                let (_, part) = &mut local.partitions[index].parts[place];
                let back = part.consumer_gone(handle, handed);
                self.counters.add(Counter::MessagesReturned, back.into());
            }
        }
        for index in own.indexes() {
            let address = PartAddress {
                destination: consumer.destination,
                partition: PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX)),
                subscription: consumer.subscription,
            };
            self.journal_returned(&address, (Offset(0), u64::MAX));
        }
        if let Some(subscription) = self.subscriptions.get_mut(consumer.subscription) {
            subscription.membership.left(handle);
        }
        self.end_if_fleeting(consumer.subscription);
        self.queue_destination(consumer.destination);
    }

    /// The broker ends consumers: their clients are told, and each handle stays as a
    /// husk until it is closed, so that what is on its way to it names something.
    pub(super) fn end_consumers(&mut self, which: impl Fn(&Consumer) -> bool, why: Ending) {
        let of_them =
            |(_, consumer): &(Handle, &Consumer)| consumer.ended.is_none() && which(consumer);
        let ending = self.consumers.iter().filter(of_them);
        for handle in ending.map(|(handle, _)| handle).collect::<Vec<_>>() {
            self.end_consumer(handle, why);
        }
    }

    /// The broker ends a consumer.
    pub(super) fn end_consumer(&mut self, handle: Handle, why: Ending) {
        let Some(consumer) = self.consumers.get_mut(handle) else {
            return;
        };
        if consumer.ended.is_some() {
            return;
        }
        let before = consumer.clone();
        consumer.ended = Some(why.refusal);
        consumer.role = None;
        self.opened.take(tables::consumer_size(Kind::Exclusive, 0));
        self.detach_consumer(handle, &before, false);
        match before.source() {
            None => {
                let gather = before.gather();
                let confirms = gather.map(Gather::unconfirmed);
                let confirms = confirms.unwrap_or_default();
                let awaited = gather.and_then(Gather::awaited);
                self.tell_behind(confirms, awaited, (before.link, handle), why);
            }
            Some(source) => self.tell_front(source.origin, why),
        }
    }

    fn end_if_fleeting(&mut self, handle: Handle) {
        let ends = self
            .subscriptions
            .get(handle)
            .is_some_and(|it| it.fleeting && it.membership.members().is_empty());
        if ends {
            self.end_subscription(handle);
        }
    }

    /// A subscription ends that has no consumer any more, with its parts.
    pub(super) fn end_subscription(&mut self, handle: Handle) {
        if let Some(subscription) = self.subscriptions.remove(handle) {
            self.journal_ended(&subscription);
            let local = &mut self.locals[subscription.destination];
            let Some(place) = local.place_of(handle) else {
                return;
            };
            local.subscriptions.swap_remove(place);
            partition::trim(&mut local.subscriptions);
            let kind = subscription.membership.kind();
            let mut size = tables::subscription_size(kind, local.own.count);
            for index in local.own.indexes() {
                let partition = &mut local.partitions[index];
                let index = u32::try_from(index).expect("there are few partitions");
                let address = PartAddress {
                    destination: subscription.destination,
                    partition: PartitionIndex(index),
                    subscription: handle,
                };
                let (_, part) = &partition.parts[place];
                size += part.entries_size();
                self.returns.moved(address, part.next_return(), None);
                partition.unsubscribe_at(&mut self.arena, place);
                // What its end settles is not an acknowledgement.
                if let Some(settled) = partition.log.settled() {
                    settled.clear();
                }
            }
            self.give_parts(size);
            self.look_whether_kept(subscription.destination);
        }
    }

    /// A consumer raises what may be delivered to it, and says what it handed out.
    pub(super) fn allow(
        &mut self,
        link: Handle,
        handle: Handle,
        allow: &Allow,
    ) -> Result<(), Fault> {
        let consumer = self.consumer_on(link, handle)?;
        if consumer.ended.is_some() {
            return Ok(());
        }
        if allow.handed.get() > consumer.delivered_messages {
            return Err(Fault::new(
                Refusal::IllegalArgument,
                "a consumer handed out more than it was delivered",
            ));
        }
        consumer.granted_messages = consumer.granted_messages.max(allow.messages.get());
        consumer.granted_bytes = consumer.granted_bytes.max(allow.bytes.get());
        let handed = allow.handed.get().saturating_sub(consumer.handed);
        consumer.handed += handed;
        if consumer.gather().is_some() {
            self.gathering_allowed(handle, handed);
        } else {
            self.queue_destination_of(handle);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn acknowledge(
        &mut self,
        now: Now,
        link: Handle,
        handle: Handle,
        fields: &Acknowledge,
        tail: &[u8],
    ) -> Result<(), Fault> {
        const THROUGH: u32 = 1;
        const AGAIN: u32 = 2;
        let principal = self.principal(link);
        let consumer = self.consumer_on(link, handle)?;
        if let Some(refusal) = consumer.ended {
            return self.confirm(now, link, handle, fields, Some(refusal));
        }
        if consumer.gather().is_some() {
            return self.acknowledge_at_source(now, handle, fields, tail);
        }
        let principal = consumer
            .source()
            .map_or(principal, |source| source.principal);
        let (destination, subscription) = (consumer.destination, consumer.subscription);
        let mut refusal = auth::authorize(
            principal,
            Operation::Acknowledge,
            Target::Destination(destination),
        )
        .err();
        let index = fields.partition.get() as usize;
        let local = &mut self.locals[destination];
        let partition = local
            .partitions
            .get_mut(index)
            .filter(|_| refusal.is_none())
            .and_then(|partition| {
                let log = &mut partition.log;
                let part = partition
                    .parts
                    .iter_mut()
                    .find(|(part, _)| *part == subscription);
                part.map(|(_, part)| (log, part))
            });
        let Some((log, part)) = partition else {
            let refusal = refusal.unwrap_or(Refusal::InvalidAck);
            return self.confirm(now, link, handle, fields, Some(refusal));
        };
        let was_full = part.is_full();
        let mut settled = 0;
        for run in tail.chunks_exact(size_of::<AckRun>()) {
            let Ok(run) = AckRun::ref_from_bytes(run) else {
                break;
            };
            let (first, count) = (Offset(run.first.get()), run.count.get());
            let outcome = if fields.options.get() & THROUGH != 0 {
                let last = Offset(first.0.saturating_add(count.saturating_sub(1)));
                part.acknowledge_through(&mut self.arena, log, handle, last)
            } else if fields.options.get() & AGAIN != 0 {
                part.acknowledge_again(&mut self.arena, log, handle, first, count)
            } else {
                part.acknowledge(&mut self.arena, log, handle, first, count)
            };
            settled += outcome.settled;
            if outcome.strange {
                self.counters.add(Counter::AcksStrange, 1);
                refusal = Some(Refusal::InvalidAck);
            }
        }
        let wants_thinning = log.wants_thinning();
        let ready = (was_full || part.frees()) && part.ready(log);
        let relief = part.relax(self.parts.is_tight());
        if relief > 0 {
            self.give_parts(relief);
        }
        self.counters.add(Counter::MessagesSettled, settled);
        let partition = PartitionIndex(fields.partition.get());
        if wants_thinning && !self.thinning.contains(&(destination, partition)) {
            self.thinning.push_back((destination, partition));
        }
        if ready {
            self.queue(destination, partition);
        }
        if self.journal.is_some() && self.journal_settled(destination, partition, subscription) {
            return self.confirm_once_durable(now, link, handle, fields, refusal);
        }
        self.confirm(now, link, handle, fields, refusal)
    }

    #[inline]
    fn confirm(
        &mut self,
        now: Now,
        link: Handle,
        handle: Handle,
        fields: &Acknowledge,
        refusal: Option<Refusal>,
    ) -> Result<(), Fault> {
        if fields.confirm.get() == 0 {
            return Ok(());
        }
        self.confirm_asked(now, link, handle, fields, refusal)
    }

    #[inline(never)]
    fn confirm_asked(
        &mut self,
        now: Now,
        link: Handle,
        handle: Handle,
        fields: &Acknowledge,
        refusal: Option<Refusal>,
    ) -> Result<(), Fault> {
        let confirmation = Confirmation {
            consumer: handle,
            confirm: fields.confirm.get(),
            refusal: refusal.map_or(0, Refusal::code),
        };
        self.confirm_on(now, link, &confirmation)
    }

    /// Echoes what was asked for.
    pub(super) fn confirm_on(
        &mut self,
        now: Now,
        link: Handle,
        confirmation: &Confirmation,
    ) -> Result<(), Fault> {
        let &Confirmation {
            consumer,
            confirm,
            refusal,
        } = confirmation;
        let source = self.consumers.get(consumer).and_then(Consumer::source);
        if let Some(origin) = source.map(|source| source.origin) {
            return self.acknowledged_to_front(now, origin, confirm, refusal);
        }
        let confirmed = Acknowledged {
            confirm: confirm.into(),
            refusal: refusal.into(),
            ..Acknowledged::default()
        };
        self.answer(now, link, consumer.0, &confirmed, &[])
    }

    /// Hands out what is ready to whoever has credit and room.
    pub(super) fn dispatch(&mut self, now: Now) {
        let mut budget = RUNS_PER_TURN;
        while let Some((destination, index)) = self.ready.pop_front() {
            let Some(local) = self.locals.get_mut(destination) else {
                continue;
            };
            local.queued[index.0 as usize] = false;
            let parts = local.partitions[index.0 as usize].parts.len();
            let is_browsed = !local.browsers.is_empty();
            if local.expires > 0 {
                self.expire_segments(now, destination, index);
            }
            for part in 0..parts {
                while budget > 0 && self.deliver_next(now, destination, index, part) {
                    budget -= 1;
                }
            }
            if is_browsed {
                budget = self.show(now, destination, index, budget);
            }
            if self.pager.is_some() {
                self.note_wanted(destination, index);
            }
            if budget == 0 {
                self.queue(destination, index);
                return;
            }
        }
    }

    /// Hands out one run of one part, or makes room for it; `false` if nothing is
    /// ready or nobody can take it.
    fn deliver_next(
        &mut self,
        now: Now,
        destination: DestinationNumber,
        index: PartitionIndex,
        place: usize,
    ) -> bool {
        let may_deliver = self.may_deliver();
        let partition = &mut self.locals[destination].partitions[index.0 as usize];
        let log = &mut partition.log;
        let (subscription, part) = &mut partition.parts[place];
        if !part.ready(log) {
            return false;
        }
        if part.is_cramped() {
            return self.widen(destination, index, place);
        }
        let Some(subscription) = self.subscriptions.get_mut(*subscription) else {
            return false;
        };
        let membership = &subscription.membership;
        let claimed = match membership.kind() {
            Kind::Exclusive | Kind::Shared => None,
            Kind::Failover | Kind::KeyShared => {
                match part.claimant(&self.arena, log, membership, index) {
                    Claim::By(consumer) => Some(consumer),
                    Claim::Cramped => return self.widen(destination, index, place),
                    Claim::Later => return true,
                    Claim::None => return false,
                }
            }
        };
        // Behind the claim: what was passed over for it took places.
        let room = part.room();
        let members = membership.members();
        let several = members.len() > 1 && claimed.is_none();
        let asked = if claimed.is_some() { 1 } else { members.len() };
        for _ in 0..asked {
            let handle = claimed.unwrap_or_else(|| {
                let turn = subscription.turn % members.len();
                subscription.turn = turn + 1;
                members[turn].consumer
            });
            let Some(consumer) = self.consumers.get_mut(handle) else {
                continue;
            };
            let way = way_to(
                &mut self.links,
                (&mut self.blocks, &self.arena),
                &mut self.announcing,
                (handle, consumer),
                log.has_large(),
                may_deliver,
            );
            let Some(way) = way else {
                continue;
            };
            let (principal, bytes_max) = way.bounds();
            let target = Target::Destination(destination);
            if auth::authorize(principal, Operation::Receive, target).is_err() {
                continue;
            }
            let credit = consumer.granted_messages - consumer.delivered_messages;
            let limit = RunLimit {
                messages: if several {
                    credit.min(room).min(SHARED_RUN_MESSAGES)
                } else {
                    credit.min(room)
                },
                bytes: (consumer.granted_bytes - consumer.delivered_bytes).min(bytes_max),
            };
            let number = consumer.delivered_messages;
            let delivered = match claimed {
                None => part.deliver(&self.arena, log, handle, number, limit),
                Some(_) => {
                    part.deliver_claimed(&self.arena, log, membership, (handle, number), limit)
                }
            };
            let Some(delivered) = delivered else {
                return claimed.is_some();
            };
            let run = delivered.run;
            let header = Delivery {
                partition: index.0.into(),
                count: run.count.into(),
                offset: run.first.0.into(),
                delivery_count: u32::from(delivered.count).into(),
                ..Delivery::default()
            };
            consumer.was_delivered(run.count.into(), run.bytes);
            self.counters
                .add(Counter::MessagesDelivered, run.count.into());
            if delivered.count > 1 {
                self.counters
                    .add(Counter::MessagesRedelivered, run.count.into());
            }
            let link = match way {
                Way::Link(link) => link,
                Way::Front(origin, ..) => {
                    if let Some(source) = consumer.source_mut() {
                        source.room -= run.bytes as u64;
                    }
                    self.deliver_to_front(now, origin, &header, &run);
                    return true;
                }
            };
            deliver_to_link(
                link,
                (&mut self.blocks, &mut self.arena),
                log,
                (destination, index),
                (handle, &header, &run),
                (now.monotonic, may_deliver),
            );
            let link = consumer.link;
            self.mark_dirty(link);
            return true;
        }
        // Behind one who does not take it there may be others with a claim.
        claimed.is_some()
    }

    /// Puts a partition into the list of those that may have something ready.
    #[inline]
    pub(super) fn queue(&mut self, destination: DestinationNumber, partition: PartitionIndex) {
        let local = &mut self.locals[destination];
        let is_looked_at = local.consumers + local.expires > 0 || !local.browsers.is_empty();
        if is_looked_at && !local.queued[partition.0 as usize] {
            local.queued[partition.0 as usize] = true;
            self.ready.push_back((destination, partition));
        }
    }

    pub(super) fn queue_destination(&mut self, destination: DestinationNumber) {
        for index in self.locals[destination].own.indexes() {
            let index = u32::try_from(index).expect("there are few partitions");
            self.queue(destination, PartitionIndex(index));
        }
    }

    pub(super) fn queue_destination_of(&mut self, consumer: Handle) {
        if let Some(consumer) = self.consumers.get(consumer)
            && consumer.ended.is_none()
        {
            self.queue_destination(consumer.destination);
        }
    }

    /// The part of a subscription, if the partition exists and it has one there.
    pub(super) fn part_mut(&mut self, address: PartAddress) -> Option<&mut Part> {
        self.locals
            .get_mut(address.destination)?
            .partitions
            .get_mut(address.partition.0 as usize)?
            .part_mut(address.subscription)
    }

    pub(super) fn consumer_on(
        &mut self,
        link: Handle,
        handle: Handle,
    ) -> Result<&mut Consumer, Fault> {
        self.consumers
            .get_mut(handle)
            .filter(|consumer| consumer.link == link)
            .ok_or_else(|| {
                Fault::new(
                    Refusal::NotOpen,
                    format!("no consumer {handle} is open on this link"),
                )
            })
    }
}
