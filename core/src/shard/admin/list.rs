//! What there is, a page at a time.
//!
//! ```text
//!  List from 0 ─> Listed: rows of slots 0..71, go on at 71
//!  List from 71 ─> Listed: rows of slots 71..90, no more
//! ```
//!
//! Nothing is kept between two pages. Where to go on is a slot of the table that is
//! listed, so what is there all the time is listed once, and what comes or goes
//! meanwhile may be or may not. A page looks at a bounded number of slots, so it may
//! be empty and yet not the last one.

use zerocopy::{Immutable, IntoBytes};

use super::ROWS_SIZE_MAX;
use crate::auth::{self, Operation, Target};
use crate::catalog::Entry;
use crate::error::Refusal;
use crate::frame::control::{
    ConsumerRow, DestinationRow, LinkRow, List, Listed, PartRow, ProducerRow, SubscriptionRow,
};
use crate::frame::{decode, padded};
use crate::id::{DestinationNumber, Handle, RequestId};
use crate::memory::CHUNK;
use crate::partition::log::StretchCounts;
use crate::shard::locals::Local;
use crate::shard::{LinkState, Rejection, Shard};
use crate::time::Now;

/// Slots that one page looks at: bounds how long it takes.
const SLOTS_PER_PAGE: usize = 4096;

/// Rows of one answer.
struct Page {
    tail: Vec<u8>,
    rows: u16,
    /// Where the next page begins, if there is one.
    next: Option<usize>,
}

impl Page {
    fn new() -> Self {
        Self {
            tail: Vec::with_capacity(ROWS_SIZE_MAX),
            rows: 0,
            next: None,
        }
    }

    /// Adds a row of the thing in `slot`; `false` if the next page begins with it.
    fn add<R: IntoBytes + Immutable>(&mut self, slot: usize, row: &R, texts: [&str; 2]) -> bool {
        let size = size_of::<R>() + texts[0].len() + texts[1].len();
        if self.tail.len() + padded(size) > ROWS_SIZE_MAX {
            self.next = Some(slot);
            return false;
        }
        self.tail.extend_from_slice(row.as_bytes());
        for text in texts {
            self.tail.extend_from_slice(text.as_bytes());
        }
        self.tail.resize(padded(self.tail.len()), 0);
        self.rows += 1;
        true
    }
}

/// What is listed: all there is, or what belongs to one destination or subscription.
struct Filter<'a> {
    destination: Option<DestinationNumber>,
    subscription: Option<&'a str>,
    from: usize,
}

impl Filter<'_> {
    fn lets_through(&self, destination: DestinationNumber, subscription: Option<&str>) -> bool {
        self.destination.is_none_or(|only| only == destination)
            && self
                .subscription
                .is_none_or(|only| only == subscription.unwrap_or(""))
    }
}

impl Shard {
    pub(in crate::shard) fn list_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &List,
        tail: &[u8],
    ) -> Result<(), Rejection> {
        let texts = decode::text(tail, fields.destination_length.get()).and_then(|(name, rest)| {
            decode::text(rest, fields.subscription_length.get()).map(|(own, _)| (name, own))
        });
        let Some((name, subscription)) = texts else {
            return Err(Refusal::IllegalArgument.into());
        };
        if !self.is_session_of(link, Handle(fields.session.get())) {
            return Err(Refusal::NotOpen.into());
        }
        auth::authorize(self.principal(link), Operation::Observe, Target::Broker)?;
        let mut filter = Filter {
            destination: None,
            subscription: (!subscription.is_empty()).then_some(subscription),
            from: fields.from.get() as usize,
        };
        if !name.is_empty() {
            let destination =
                self.destination(link, fields.session.get(), fields.destination, name)?;
            let found = self.catalog.find(&destination);
            let Some(number) = found else {
                return Err(Rejection::request(
                    Refusal::NotFound,
                    format!("{destination} does not exist"),
                ));
            };
            filter.destination = Some(number);
        }
        let page = match fields.what {
            0 => self.destinations(&filter),
            1 => self.subscriptions(&filter),
            2 => self.parts(&filter)?,
            3 => self.consumers(&filter),
            4 => self.producers(&filter),
            5 => self.open_links(&filter),
            _ => return Err(Refusal::Unsupported.into()),
        };
        let next = page.next.and_then(|next| u32::try_from(next).ok());
        let answer = Listed {
            what: fields.what,
            more: next.is_some().into(),
            rows: page.rows.into(),
            next: next.unwrap_or(0).into(),
        };
        self.answer(now, link, request.0, &answer, &[&page.tail])?;
        Ok(())
    }

    /// Messages that some subscription of a destination has not settled.
    pub(super) fn unsettled_of(&self, local: &Local) -> u64 {
        let partitions = local.partitions.iter();
        let parts = partitions.flat_map(|it| it.parts.iter().map(|(_, part)| (&it.log, part)));
        parts
            .map(|(log, part)| part.backlog(&self.arena, log))
            .sum()
    }

    /// What there is of a destination's segments here.
    fn segments_of(&self, local: &Local) -> StretchCounts {
        let logs = local.partitions.iter().map(|it| &it.log);
        let counts = logs.map(|log| log.stretch_counts(&self.arena));
        counts.fold(StretchCounts::default(), StretchCounts::and)
    }

    fn destinations(&self, filter: &Filter<'_>) -> Page {
        let mut page = Page::new();
        for entry in self.catalog.entries_from(filter.from) {
            if filter.lets_through(entry.number, filter.subscription)
                && !page.add(
                    entry.number.slot(),
                    &self.destination_row(entry),
                    [&entry.destination.name, ""],
                )
            {
                break;
            }
        }
        page
    }

    fn destination_row(&self, entry: &Entry) -> DestinationRow {
        let local = &self.locals[entry.number];
        let retention = entry.shape.retention.code();
        let segments = self.segments_of(local);
        DestinationRow {
            destination: entry.destination.kind as u8,
            name_length: length(&entry.destination.name).into(),
            number: entry.number.0.into(),
            partitions: entry.shape.partitions.into(),
            dispatch: entry.shape.dispatch as u8,
            retention: retention.policy,
            retain: retention.bytes.into(),
            period: retention.period.into(),
            producers_max: entry.policies.producers_max.into(),
            consumers_max: entry.policies.consumers_max.into(),
            subscriptions_max: entry.policies.subscriptions_max.into(),
            producers: local.producers.into(),
            consumers: local.consumers.into(),
            subscriptions: count(local.subscriptions.len()).into(),
            stored: local.stored.into(),
            unsettled: self.unsettled_of(local).into(),
            bytes: ((local.chunks() * CHUNK) as u64).into(),
            segment_bytes: segments.bytes.into(),
            segment_oldest: segments.oldest.map_or(0, |time| time.0).into(),
            segments_closed: segments.closed.into(),
            segments_open: segments.open.into(),
            ..DestinationRow::default()
        }
    }

    fn subscriptions(&self, filter: &Filter<'_>) -> Page {
        let mut page = Page::new();
        for (slot, (handle, subscription)) in self.subscriptions.iter_from(filter.from) {
            if slot >= filter.from + SLOTS_PER_PAGE {
                page.next = Some(slot);
                break;
            }
            let (number, name) = (subscription.destination(), subscription.name());
            if !filter.lets_through(number, name) {
                continue;
            }
            let destination = &self.catalog.entry(number).destination;
            let parts = self.locals[number].partitions.iter().filter_map(|it| {
                let part = it.part(handle)?;
                Some((&it.log, part))
            });
            let (mut unsettled, mut backlog) = (0, 0);
            for (log, part) in parts {
                unsettled += u64::from(part.unsettled());
                backlog += part.backlog(&self.arena, log);
            }
            let row = SubscriptionRow {
                destination: destination.kind as u8,
                sharing: subscription.membership().kind() as u8,
                destination_length: length(&destination.name).into(),
                name_length: length(name.unwrap_or("")).into(),
                options: u16::from(subscription.is_fleeting()).into(),
                partitions: count(self.locals[number].partitions.len()).into(),
                consumers: count(subscription.membership().members().len()).into(),
                unsettled: unsettled.into(),
                backlog: backlog.into(),
            };
            if !page.add(slot, &row, [&destination.name, name.unwrap_or("")]) {
                break;
            }
        }
        page
    }

    /// The parts of one subscription.
    fn parts(&self, filter: &Filter<'_>) -> Result<Page, Rejection> {
        let Some(number) = filter.destination else {
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                "parts are listed of one subscription of one destination",
            ));
        };
        let name = filter.subscription.unwrap_or("");
        let Some(handle) = self.subscription_named(number, name) else {
            let destination = &self.catalog.entry(number).destination;
            return Err(Rejection::request(
                Refusal::NotFound,
                format!("{destination} has no subscription {name:?}"),
            ));
        };
        let mut page = Page::new();
        let partitions = self.locals[number].partitions.iter().enumerate();
        for (index, partition) in partitions.skip(filter.from) {
            let Some(part) = partition.part(handle) else {
                continue;
            };
            let row = PartRow {
                partition: count(index).into(),
                unsettled: part.unsettled().into(),
                cursor: part.cursor().0.into(),
                fresh: part.fresh().0.into(),
                end: partition.log.next().0.into(),
                backlog: part.backlog(&self.arena, &partition.log).into(),
            };
            if !page.add(index, &row, ["", ""]) {
                break;
            }
        }
        Ok(page)
    }

    fn consumers(&self, filter: &Filter<'_>) -> Page {
        let mut page = Page::new();
        for (slot, (handle, consumer)) in self.consumers.iter_from(filter.from) {
            if slot >= filter.from + SLOTS_PER_PAGE {
                page.next = Some(slot);
                break;
            }
            let number = consumer.destination();
            let Some(subscription) = self.subscriptions.get(consumer.subscription()) else {
                continue;
            };
            let name = subscription.name();
            if consumer.ended().is_some() || !filter.lets_through(number, name) {
                continue;
            }
            let destination = &self.catalog.entry(number).destination;
            let row = ConsumerRow {
                handle: handle.0.into(),
                destination: destination.kind as u8,
                reserved: 0,
                destination_length: length(&destination.name).into(),
                link: self.number_of(consumer.link).into(),
                delivered: consumer.delivered().into(),
                credit: consumer.credit().into(),
                name_length: length(name.unwrap_or("")).into(),
                reserved_bytes: [0; 6],
            };
            if !page.add(slot, &row, [&destination.name, name.unwrap_or("")]) {
                break;
            }
        }
        page
    }

    fn producers(&self, filter: &Filter<'_>) -> Page {
        let mut page = Page::new();
        for (slot, (handle, producer)) in self.producers.iter_from(filter.from) {
            if slot >= filter.from + SLOTS_PER_PAGE {
                page.next = Some(slot);
                break;
            }
            let identity = &producer.identity;
            let stands = producer.known || producer.fan().is_some_and(|fan| !fan.is_opening());
            let is_here = stands && producer.ended.is_none() && producer.origin().is_none();
            if !is_here || !filter.lets_through(identity.destination, None) {
                continue;
            }
            let destination = &self.catalog.entry(identity.destination).destination;
            let row = ProducerRow {
                producer: identity.id.0.into(),
                link: self.number_of(producer.link).into(),
                epoch: identity.epoch.0.into(),
                handle: handle.0.into(),
                destination: destination.kind as u8,
                access: identity.access as u8,
                destination_length: length(&destination.name).into(),
                name_length: length(&identity.name).into(),
                reserved: 0.into(),
            };
            if !page.add(slot, &row, [&destination.name, &identity.name]) {
                break;
            }
        }
        page
    }

    fn open_links(&self, filter: &Filter<'_>) -> Page {
        let mut page = Page::new();
        for (slot, (_, link)) in self.links.iter_from(filter.from) {
            if slot >= filter.from + SLOTS_PER_PAGE {
                page.next = Some(slot);
                break;
            }
            if link.state == LinkState::Ending {
                continue;
            }
            let row = LinkRow {
                link: link.number.0.into(),
                sessions: count(link.sessions.len()).into(),
                producers: count(link.producers.len()).into(),
                consumers: count(link.consumers.len()).into(),
                name_length: length(&link.name).into(),
                reserved: 0.into(),
                waiting: (link.egress.bytes() as u64).into(),
            };
            if !page.add(slot, &row, [&link.name, ""]) {
                break;
            }
        }
        page
    }

    fn number_of(&self, link: Handle) -> u64 {
        self.links.get(link).map_or(0, |link| link.number.0)
    }
}

fn length(text: &str) -> u16 {
    u16::try_from(text.len()).expect("a name has at most 255 bytes")
}

fn count(things: usize) -> u32 {
    u32::try_from(things).unwrap_or(u32::MAX)
}
