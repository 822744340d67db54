//! What an administrator asks the broker, and what there is in its answers.
//!
//! A list comes a page at a time, from one shard: who wants all of it asks for the
//! pages one after the other, on a link to each shard, and puts them together.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::length;
use super::outbound::Outbound;
use crate::catalog::{Dispatch, Policies, PolicyChange, Retention, RetentionCode};
use crate::frame::control::{
    ConsumerRow, Create, Delete, DestinationRow, End, LinkRow, List, Listed, PartRow, ProducerRow,
    SetPolicies, SubscriptionRow,
};
use crate::id::{DestinationNumber, Epoch, Handle, LinkNumber, Offset, PartitionIndex, ProducerId};
use crate::name::{Destination, DestinationKind};
use crate::time::Wall;

/// What is asked of the broker about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// A destination is to be there.
    Create {
        /// Which one.
        destination: Destination,
        /// Its partitions, if that matters.
        partitions: Option<u32>,
        /// What they keep, if that matters.
        retention: Option<Retention>,
        /// When consumers see what is to be flushed, if that matters.
        dispatch: Option<Dispatch>,
        /// Its bounds.
        policies: PolicyChange,
    },
    /// Bounds are to be others.
    SetPolicies {
        /// Of which destination.
        destination: Destination,
        /// Which, and what.
        policies: PolicyChange,
    },
    /// A destination is to be gone.
    Delete {
        /// Which one.
        destination: Destination,
        /// Even if somebody uses it.
        force: bool,
    },
    /// A subscription is to be gone.
    DeleteSubscription {
        /// Of which destination.
        destination: Destination,
        /// Its name, empty for a queue's own.
        subscription: Box<str>,
        /// Even if somebody uses it.
        force: bool,
    },
    /// A link is to end.
    EndLink(LinkNumber),
    /// A producer is to be shut out for ever.
    Fence(ProducerId),
    /// What there is.
    List(ListRequest),
}

/// A page of what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Of which kind.
    pub what: Listing,
    /// Of which destination, if not of all.
    pub destination: Option<Destination>,
    /// Of which subscription, if not of all; of parts always one, empty for a queue's.
    pub subscription: Box<str>,
    /// 0, or where the page before ended.
    pub from: u32,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Listing {
    /// Destinations.
    Destinations = 0,
    /// Subscriptions.
    Subscriptions = 1,
    /// The partitions of one subscription.
    Parts = 2,
    /// Consumers.
    Consumers = 3,
    /// Producers.
    Producers = 4,
    /// Links.
    Links = 5,
}

/// A page of what there is on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What was asked for.
    pub rows: Rows,
    /// Where the next page begins, if there is one.
    pub next: Option<u32>,
}

/// Rows of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Destinations.
    Destinations(Vec<DestinationInfo>),
    /// Subscriptions.
    Subscriptions(Vec<SubscriptionInfo>),
    /// The partitions of one subscription.
    Parts(Vec<PartInfo>),
    /// Consumers.
    Consumers(Vec<ConsumerInfo>),
    /// Producers.
    Producers(Vec<ProducerInfo>),
    /// Links.
    Links(Vec<LinkInfo>),
}

/// A destination, with what one shard has of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationInfo {
    /// Kind and name.
    pub destination: Destination,
    /// The number that the broker knows it by.
    pub number: DestinationNumber,
    /// Its partitions.
    pub partitions: u32,
    /// What they keep.
    pub retention: Retention,
    /// When consumers see what is to be flushed.
    pub dispatch: Dispatch,
    /// Its bounds, 0 for none.
    pub policies: Policies,
    /// Attached producers.
    pub producers: u32,
    /// Attached consumers.
    pub consumers: u32,
    /// Subscriptions.
    pub subscriptions: u32,
    /// Messages ever stored.
    pub stored: u64,
    /// Messages that some subscription has not settled.
    pub unsettled: u64,
    /// Bytes of memory held.
    pub bytes: u64,
    /// Its segments, if it keeps whole ones.
    pub segments: Segments,
}

/// The segments of a destination that keeps whole ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// How many are closed.
    pub closed: u32,
    /// How many are written to: one in each partition that has any.
    pub open: u32,
    /// Bytes of the messages in all of them.
    pub bytes: u64,
    /// When the oldest of these was stored.
    pub oldest: Option<Wall>,
}

impl core::ops::AddAssign for Segments {
    /// With those of another shard.
    fn add_assign(&mut self, other: Self) {
        self.closed += other.closed;
        self.open += other.open;
        self.bytes += other.bytes;
        self.oldest = match (self.oldest, other.oldest) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
    }
}

/// A subscription, with what one shard has of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionInfo {
    /// Whose.
    pub destination: Destination,
    /// Its name; empty if it is a queue's own or ends with its consumer.
    pub name: Box<str>,
    /// How its consumers share it, by the code on the wire.
    pub sharing: u8,
    /// Whether it ends with its last consumer.
    pub fleeting: bool,
    /// Partitions of its destination.
    pub partitions: u32,
    /// Attached consumers.
    pub consumers: u32,
    /// Messages that are delivered and not settled, or wait to be delivered again.
    pub unsettled: u64,
    /// All messages that it has not settled.
    pub backlog: u64,
}

/// A partition of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// The partition.
    pub partition: PartitionIndex,
    /// Messages that are delivered and not settled, or wait to be delivered again.
    pub unsettled: u32,
    /// The first offset that is not settled.
    pub cursor: Offset,
    /// The first offset that was never handed out.
    pub fresh: Offset,
    /// The offset that the next message gets.
    pub end: Offset,
    /// All messages that are not settled.
    pub backlog: u64,
}

/// A consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerInfo {
    /// Of which destination.
    pub destination: Destination,
    /// Of which subscription.
    pub subscription: Box<str>,
    /// Its link.
    pub link: LinkNumber,
    /// Its handle there.
    pub handle: Handle,
    /// Messages that it was delivered.
    pub delivered: u64,
    /// How many more it may be delivered now.
    pub credit: u64,
}

/// A producer on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerInfo {
    /// Its id.
    pub id: ProducerId,
    /// What it calls itself.
    pub name: Box<str>,
    /// Where it sends to.
    pub destination: Destination,
    /// Its access mode, by the code on the wire.
    pub access: u8,
    /// Its incarnation.
    pub epoch: Epoch,
    /// Its link.
    pub link: LinkNumber,
    /// Its handle there.
    pub handle: Handle,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its number.
    pub link: LinkNumber,
    /// What its client calls itself.
    pub name: Box<str>,
    /// Open sessions.
    pub sessions: u32,
    /// Open producers.
    pub producers: u32,
    /// Open consumers.
    pub consumers: u32,
    /// Bytes that wait to leave.
    pub waiting: u64,
}

/// Bits of `options`.
const PARTITIONS: u16 = 1;
const RETAIN: u16 = 1 << 1;
const PRODUCERS_MAX: u16 = 1 << 2;
const CONSUMERS_MAX: u16 = 1 << 3;
const SUBSCRIPTIONS_MAX: u16 = 1 << 4;
const DISPATCH: u16 = 1 << 5;
const FORCE: u8 = 1;
const SUBSCRIPTION: u8 = 1 << 1;

/// The bits of the policies that are meant.
fn meant(policies: &PolicyChange) -> u16 {
    [
        (policies.producers_max, PRODUCERS_MAX),
        (policies.consumers_max, CONSUMERS_MAX),
        (policies.subscriptions_max, SUBSCRIPTIONS_MAX),
    ]
    .into_iter()
    .filter(|(value, _)| value.is_some())
    .map(|(_, bit)| bit)
    .sum()
}

/// Queues the question; false if the backlog is too long.
#[must_use]
pub(super) fn ask(
    outbound: &mut Outbound,
    session: u32,
    subject: u32,
    request: &AdminRequest,
) -> bool {
    match request {
        AdminRequest::Create {
            destination,
            partitions,
            retention,
            dispatch,
            policies,
        } => {
            let options = meant(policies)
                | partitions.map_or(0, |_| PARTITIONS)
                | retention.map_or(0, |_| RETAIN)
                | dispatch.map_or(0, |_| DISPATCH);
            let retention = retention.unwrap_or_default().code();
            let fields = Create {
                session: session.into(),
                destination: destination.kind as u8,
                options: options.into(),
                partitions: partitions.unwrap_or(0).into(),
                producers_max: policies.producers_max.unwrap_or(0).into(),
                consumers_max: policies.consumers_max.unwrap_or(0).into(),
                subscriptions_max: policies.subscriptions_max.unwrap_or(0).into(),
                retain: retention.bytes.into(),
                retention: retention.policy,
                period: retention.period.into(),
                dispatch: dispatch.unwrap_or_default() as u8,
                ..Create::default()
            };
            outbound.control(subject, &fields, &[destination.name.as_bytes()])
        }
        AdminRequest::SetPolicies {
            destination,
            policies,
        } => {
            let fields = SetPolicies {
                session: session.into(),
                destination: destination.kind as u8,
                options: meant(policies).into(),
                producers_max: policies.producers_max.unwrap_or(0).into(),
                consumers_max: policies.consumers_max.unwrap_or(0).into(),
                subscriptions_max: policies.subscriptions_max.unwrap_or(0).into(),
                ..SetPolicies::default()
            };
            outbound.control(subject, &fields, &[destination.name.as_bytes()])
        }
        AdminRequest::Delete { destination, force } => {
            let options = if *force { FORCE } else { 0 };
            delete(outbound, session, subject, destination, "", options)
        }
        AdminRequest::DeleteSubscription {
            destination,
            subscription,
            force,
        } => {
            let options = SUBSCRIPTION | if *force { FORCE } else { 0 };
            delete(
                outbound,
                session,
                subject,
                destination,
                subscription,
                options,
            )
        }
        AdminRequest::EndLink(link) => end(outbound, session, subject, 0, link.0),
        AdminRequest::Fence(producer) => end(outbound, session, subject, 1, producer.0),
        AdminRequest::List(list) => {
            let name = list.destination.as_ref().map_or("", |it| &it.name);
            let kind = list.destination.as_ref().map_or(0, |it| it.kind as u8);
            let fields = List {
                session: session.into(),
                what: list.what as u8,
                destination: kind,
                destination_length: length(name).into(),
                subscription_length: length(&list.subscription).into(),
                from: list.from.into(),
                ..List::default()
            };
            let tail = [name.as_bytes(), list.subscription.as_bytes()];
            outbound.control(subject, &fields, &tail)
        }
    }
}

fn delete(
    outbound: &mut Outbound,
    session: u32,
    subject: u32,
    destination: &Destination,
    subscription: &str,
    options: u8,
) -> bool {
    let fields = Delete {
        session: session.into(),
        destination: destination.kind as u8,
        options,
        destination_length: length(&destination.name).into(),
        subscription_length: length(subscription).into(),
        ..Delete::default()
    };
    let tail = [destination.name.as_bytes(), subscription.as_bytes()];
    outbound.control(subject, &fields, &tail)
}

fn end(outbound: &mut Outbound, session: u32, subject: u32, what: u8, number: u64) -> bool {
    let fields = End {
        session: session.into(),
        what,
        number: number.into(),
        ..End::default()
    };
    outbound.control(subject, &fields, &[])
}

/// Rows of one frame, taken one after the other.
struct Cursor<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Cursor<'a> {
    /// Every row with its texts, as `row` makes them; `None` if one is malformed or
    /// something is left over.
    fn all<R, T>(
        mut self,
        texts: impl Fn(&R) -> [u16; 2],
        row: impl Fn(&R, [&'a str; 2]) -> Option<T>,
    ) -> Option<Vec<T>>
    where
        R: FromBytes + KnownLayout + Immutable + 'a,
    {
        let mut rows = Vec::new();
        for _ in 0..self.left {
            let (fields, tail) = R::ref_from_prefix(self.rest).ok()?;
            let [first, second] = texts(fields).map(usize::from);
            let (one, behind) = tail.split_at_checked(first)?;
            let (two, _) = behind.split_at_checked(second)?;
            let size = (size_of::<R>() + first + second).next_multiple_of(8);
            // The last row may lack its padding, which is the frame's own.
            self.rest = self.rest.get(size..).unwrap_or(&[]);
            let texts = [
                core::str::from_utf8(one).ok()?,
                core::str::from_utf8(two).ok()?,
            ];
            rows.push(row(fields, texts)?);
        }
        self.rest.is_empty().then_some(rows)
    }
}

fn destination(kind: u8, name: &str) -> Option<Destination> {
    Destination::new(DestinationKind::from_code(kind)?, name).ok()
}

impl Page {
    /// What an answer to `request` says; `None` if it is none.
    pub(super) fn read(request: &ListRequest, fields: &Listed, tail: &[u8]) -> Option<Self> {
        if fields.what != request.what as u8 {
            return None;
        }
        let next = (fields.more == 1).then_some(fields.next.get());
        if next.is_some_and(|next| next <= request.from) {
            // Otherwise pages could go on for ever.
            return None;
        }
        let cursor = Cursor {
            rest: tail,
            left: fields.rows.get(),
        };
        let rows = match request.what {
            Listing::Destinations => Rows::Destinations(cursor.all(
                |row: &DestinationRow| [row.name_length.get(), 0],
                |row, [name, _]| {
                    Some(DestinationInfo {
                        destination: destination(row.destination, name)?,
                        number: DestinationNumber(row.number.get()),
                        partitions: row.partitions.get(),
                        retention: Retention::from_code(RetentionCode {
                            policy: row.retention,
                            bytes: row.retain.get(),
                            period: row.period.get(),
                        })
                        .ok()?,
                        dispatch: Dispatch::from_code(row.dispatch)?,
                        policies: Policies {
                            producers_max: row.producers_max.get(),
                            consumers_max: row.consumers_max.get(),
                            subscriptions_max: row.subscriptions_max.get(),
                        },
                        producers: row.producers.get(),
                        consumers: row.consumers.get(),
                        subscriptions: row.subscriptions.get(),
                        stored: row.stored.get(),
                        unsettled: row.unsettled.get(),
                        bytes: row.bytes.get(),
                        segments: Segments {
                            closed: row.segments_closed.get(),
                            open: row.segments_open.get(),
                            bytes: row.segment_bytes.get(),
                            oldest: Some(row.segment_oldest.get())
                                .filter(|time| *time > 0)
                                .map(Wall),
                        },
                    })
                },
            )?),
            Listing::Subscriptions => Rows::Subscriptions(cursor.all(
                |row: &SubscriptionRow| [row.destination_length.get(), row.name_length.get()],
                |row, [of, name]| {
                    Some(SubscriptionInfo {
                        destination: destination(row.destination, of)?,
                        name: name.into(),
                        sharing: row.sharing,
                        fleeting: row.options.get() & 1 != 0,
                        partitions: row.partitions.get(),
                        consumers: row.consumers.get(),
                        unsettled: row.unsettled.get(),
                        backlog: row.backlog.get(),
                    })
                },
            )?),
            Listing::Parts => Rows::Parts(cursor.all(
                |_: &PartRow| [0, 0],
                |row, _| {
                    Some(PartInfo {
                        partition: PartitionIndex(row.partition.get()),
                        unsettled: row.unsettled.get(),
                        cursor: Offset(row.cursor.get()),
                        fresh: Offset(row.fresh.get()),
                        end: Offset(row.end.get()),
                        backlog: row.backlog.get(),
                    })
                },
            )?),
            Listing::Consumers => Rows::Consumers(cursor.all(
                |row: &ConsumerRow| [row.destination_length.get(), row.name_length.get()],
                |row, [of, subscription]| {
                    Some(ConsumerInfo {
                        destination: destination(row.destination, of)?,
                        subscription: subscription.into(),
                        link: LinkNumber(row.link.get()),
                        handle: Handle(row.handle.get()),
                        delivered: row.delivered.get(),
                        credit: row.credit.get(),
                    })
                },
            )?),
            Listing::Producers => Rows::Producers(cursor.all(
                |row: &ProducerRow| [row.destination_length.get(), row.name_length.get()],
                |row, [of, name]| {
                    Some(ProducerInfo {
                        id: ProducerId(row.producer.get()),
                        name: name.into(),
                        destination: destination(row.destination, of)?,
                        access: row.access,
                        epoch: Epoch(row.epoch.get()),
                        link: LinkNumber(row.link.get()),
                        handle: Handle(row.handle.get()),
                    })
                },
            )?),
            Listing::Links => Rows::Links(cursor.all(
                |row: &LinkRow| [row.name_length.get(), 0],
                |row, [name, _]| {
                    Some(LinkInfo {
                        link: LinkNumber(row.link.get()),
                        name: name.into(),
                        sessions: row.sessions.get(),
                        producers: row.producers.get(),
                        consumers: row.consumers.get(),
                        waiting: row.waiting.get(),
                    })
                },
            )?),
        };
        Some(Self { rows, next })
    }
}
