//! Consumers whose partitions lie on several shards, or on another one.
//!
//! ```text
//!    source at shard 0 ── ready ─> .───────.
//!    source at shard 1 ── ready ─> | front | one lease at a time for each link
//!    source at shard 2             `───────'
//!          ^         `── runs ────────> | arrivals ─> link
//!          `───────── lease ────────────'
//! ```
//!
//! The front stands towards the client, its sources where partitions are. Credit
//! belongs to the front. A source that has something for it says so, and is lent some
//! of the credit together with a place for what it will deliver; what it does not use
//! at once it gives back. So credit is never stranded where nothing is ready, however
//! small it is, and whatever comes from another shard has its place already.
//!
//! Acknowledgements and returns go to the source that owns their partition.
//!
//! Invariants: a link has at most one lease, and none while anything that came within
//! the last one waits to leave; what was delivered stays within what was granted, as
//! for any consumer, and no lease reaches beyond it.

use std::collections::VecDeque;

use zerocopy::{FromBytes, IntoBytes};

use super::behind::CONFIRMATION_SIZE;
use super::consumer::{Consumer, OpenConsumer};
use super::ending::Ending;
use super::fan::about;
use super::records::{self, leave, request};
use super::{Fault, LinkState, Rejection, Shard};
use crate::error::Refusal;
use crate::frame::CONTROL_HEADER_SIZE;
use crate::frame::control::{Acknowledge, Acknowledged, Closed, ConsumerOpened, Delivery, Return};
use crate::id::{DestinationNumber, Handle, PartitionIndex, RequestId, ShardIndex};
use crate::limits;
use crate::memory::CHUNK;
use crate::planted::Planted;
use crate::time::Now;

/// The most messages of a lease: so many delivery headers have room beside them.
const LEASE_MESSAGES: u32 = 256;
/// Bytes of a delivery's header.
const HEADER_SIZE: usize = CONTROL_HEADER_SIZE + size_of::<Delivery>();
/// Chunks for a usual lease: one for what credit allows, one for the message that
/// reaches beyond it.
const LEASE_CHUNKS: usize = 2;
/// Bytes that a usual lease has a place for.
const LEASE_BYTES: u64 = (LEASE_CHUNKS * CHUNK - LEASE_MESSAGES as usize * HEADER_SIZE) as u64;
/// Bytes of the largest message.
pub(super) const LARGEST: u64 = LARGEST_SIZE as u64;
const LARGEST_SIZE: usize = limits::FRAME_SIZE_MAX as usize + 8;
/// Chunks for one message of whatever size.
pub(super) const LARGE_CHUNKS: usize = (LARGEST_SIZE + HEADER_SIZE).div_ceil(CHUNK);

/// The part of a consumer at the shard that owns some of its partitions.
#[derive(Clone, Debug)]
struct Source {
    shard: ShardIndex,
    /// Which consumer it is there; `None` until it has joined, and when it has left.
    handle: Option<Handle>,
    /// It said that it has something.
    ready: bool,
    /// Its next message is longer than a usual lease.
    large: bool,
    /// Messages of it that the application was given.
    handed: u64,
    /// It was passed acknowledgements, and no confirmation was asked of it since.
    unconfirmed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for so many sources; answered under this request.
    Opening {
        request: RequestId,
        missing: usize,
    },
    Open,
    /// Waits for so many sources to go; answered under this request, if its client asked
    /// for it.
    Closing {
        request: Option<RequestId>,
        missing: usize,
    },
}

/// What the client of a front waits for before it has a handle, or is rid of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Opened(RequestId),
    /// Under no request, if it asked for something larger.
    Closed(Option<RequestId>),
}

/// The sources of one consumer.
#[derive(Clone, Debug)]
pub(super) struct Gather {
    stage: Stage,
    /// The home first; partition `p` belongs to the one at `p` modulo their number.
    sources: Vec<Source>,
    /// Where each partition starts.
    starts: Vec<u64>,
    /// What was delivered and not handed to the application: by which source, and how
    /// many messages in a row.
    order: VecDeque<(u16, u32)>,
    /// Confirmations that were asked for, and of those that came what they say: they
    /// leave in the order in which they were asked for, whatever source is slow.
    confirms: VecDeque<Asked>,
    /// What it asked for, for those that are not asked yet.
    join: Vec<u8>,
}

/// A confirmation that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    confirm: u32,
    /// Sources that have not said so.
    missing: u16,
    /// What the others said: why not, if one of them did.
    refusal: u16,
}

const _: () = assert!(2 * size_of::<Asked>() == CONFIRMATION_SIZE);

impl Asked {
    /// What is echoed, with what is said once all sources have answered.
    pub(super) fn answer(&self) -> (u32, Option<u16>) {
        (self.confirm, (self.missing == 0).then_some(self.refusal))
    }
}

/// Credit that a source was lent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    front: Handle,
    shard: ShardIndex,
    messages: u64,
    /// In bytes, which the last message may reach beyond.
    credit: u64,
}

/// What of a link has to do with leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    lease: Option<Lease>,
    /// Fronts with sources that have something.
    waiting: VecDeque<Handle>,
}

impl Leases {
    /// Whether the link's lease is for this front.
    pub(super) fn is_lent_to(&self, front: Handle) -> bool {
        self.lease.is_some_and(|lease| lease.front == front)
    }
}

impl Gather {
    /// Where its sources are, as far as they have joined.
    pub(super) fn places(&self) -> Vec<(ShardIndex, Handle)> {
        let joined = |source: &Source| Some((source.shard, source.handle?));
        self.sources.iter().filter_map(joined).collect()
    }

    /// Whether a source has said that it has something, and was lent nothing since.
    pub(super) fn is_ready(&self) -> bool {
        self.sources.iter().any(|source| source.ready)
    }

    fn source_at(&mut self, shard: ShardIndex) -> Option<&mut Source> {
        self.sources.iter_mut().find(|source| source.shard == shard)
    }

    fn source_of(&self, partition: u32) -> Option<(ShardIndex, Handle)> {
        let source = &self.sources[partition as usize % self.sources.len()];
        Some((source.shard, source.handle?))
    }

    /// Whether it is neither being opened nor closed.
    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether its client waits under this request for it to be opened.
    pub(super) fn is_opening_for(&self, wanted: RequestId) -> bool {
        matches!(self.stage, Stage::Opening { request, .. } if request == wanted)
    }

    /// What its client waits for, if it is not open.
    pub(super) fn awaited(&self) -> Option<Awaited> {
        match self.stage {
            Stage::Opening { request, .. } => Some(Awaited::Opened(request)),
            Stage::Open => None,
            Stage::Closing { request, .. } => Some(Awaited::Closed(request)),
        }
    }

    /// Where sources were asked for: the home's first, and the others once that is there.
    fn asked(&self) -> Vec<(ShardIndex, Option<Handle>)> {
        let is_home_there = self.sources[0].handle.is_some();
        let count = if is_home_there { self.sources.len() } else { 1 };
        let asked = self.sources.iter().take(count);
        asked.map(|source| (source.shard, source.handle)).collect()
    }

    /// Whether its client is still to be answered.
    pub(super) fn owes(&self) -> bool {
        !matches!(self.stage, Stage::Open) || self.owes_confirmations()
    }

    /// Whether that is all that keeps it: it can be told to go.
    pub(super) fn owes_confirmations(&self) -> bool {
        matches!(self.stage, Stage::Open) && !self.confirms.is_empty()
    }

    /// What it was asked to confirm and has not, each with its refusal once it is known.
    pub(super) fn unconfirmed(&self) -> VecDeque<(u32, Option<u16>)> {
        self.confirms.iter().map(Asked::answer).collect()
    }

    /// The sources beside that of `partition` that hear of a confirmation for the first
    /// time since they were passed an acknowledgement, each with a partition of its own.
    fn ask_others(&mut self, partition: u32) -> Vec<(u32, ShardIndex, Handle)> {
        let asked = partition as usize % self.sources.len();
        self.sources[asked].unconfirmed = false;
        let others = (0u32..).zip(&mut self.sources);
        others
            .filter_map(|(own, source)| {
                let is_asked = core::mem::take(&mut source.unconfirmed);
                let handle = source.handle.filter(|_| is_asked)?;
                Some((own, source.shard, handle))
            })
            .collect()
    }

    /// The application was given so many messages more.
    fn handed(&mut self, mut messages: u64) {
        while messages > 0
            && let Some((source, count)) = self.order.front_mut()
        {
            let taken = messages.min(u64::from(*count));
            self.sources[usize::from(*source)].handed += taken;
            *count -= u32::try_from(taken).unwrap_or(*count);
            messages -= taken;
            if *count == 0 {
                self.order.pop_front();
            }
        }
    }

    fn delivered(&mut self, shard: ShardIndex, count: u32) {
        let Some(source) = self.sources.iter().position(|it| it.shard == shard) else {
            return;
        };
        let source = u16::try_from(source).expect("there are at most as many as shards");
        match self.order.back_mut() {
            Some((last, messages)) if *last == source => *messages += count,
            _ => self.order.push_back((source, count)),
        }
    }
}

impl Shard {
    /// Opens a front, and has its sources join: the home first, which decides whether
    /// it may.
    pub(super) fn open_gathering(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        open: &OpenConsumer<'_>,
        destination: DestinationNumber,
    ) -> Result<(), Rejection> {
        let partitions = self.partitions_of(destination);
        let owners = self.mesh.placement.owners(destination, partitions);
        let sources: Vec<Source> = owners
            .map(|shard| Source {
                shard,
                handle: None,
                ready: false,
                large: false,
                handed: 0,
                unconfirmed: false,
            })
            .collect();
        let home = sources[0].shard;
        let (start, offset) = open.start.encode();
        let join = records::Join {
            destination: destination.0.into(),
            principal: self.principal(link).number().into(),
            offset: offset.into(),
            start: start.into(),
            kind: open.kind.map_or(records::BROWSES, |kind| kind as u8),
            ..records::Join::default()
        };
        let join = [join.as_bytes(), open.subscription.as_bytes()].concat();
        let gather = Gather {
            stage: Stage::Opening {
                request,
                missing: 1,
            },
            sources,
            starts: vec![0; partitions as usize],
            order: VecDeque::new(),
            confirms: VecDeque::new(),
            join: join.clone(),
        };
        let front = self.gathering(link, open, destination, gather)?;
        self.ask_to_join(now, home, front, &join);
        Ok(())
    }

    fn ask_to_join(&mut self, now: Now, shard: ShardIndex, front: Handle, join: &[u8]) {
        if shard != self.config.shard {
            return self.request_of(shard, &about(request::JOIN, front), &[join]);
        }
        self.join_asked(now, shard, front, join);
    }

    /// A source has joined. After the home's the others are asked, then the client is
    /// answered.
    pub(super) fn joined_source(
        &mut self,
        now: Now,
        shard: ShardIndex,
        front: Handle,
        joined: &records::Joined,
        starts: &[u8],
    ) {
        let handle = Handle(joined.handle.get());
        let placement = self.mesh.placement;
        let Some(consumer) = self.consumers.get_mut(front) else {
            // The link went in the meantime.
            return self.leave_source(now, front, (shard, handle, 0), 0);
        };
        let destination = consumer.destination();
        let Some(gather) = consumer.gather_mut() else {
            return;
        };
        for (index, start) in starts.chunks_exact(size_of::<u64>()).enumerate() {
            let partition = PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX));
            if placement.owner(destination, partition) == shard {
                let start = start.try_into().expect("a start has eight bytes");
                gather.starts[index] = u64::from_le_bytes(start);
            }
        }
        let Some(source) = gather.source_at(shard) else {
            return;
        };
        source.handle = Some(handle);
        let Stage::Opening { request, missing } = &mut gather.stage else {
            return;
        };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let request = *request;
        let unasked: Vec<ShardIndex> = (gather.sources.iter())
            .filter(|source| source.handle.is_none())
            .map(|source| source.shard)
            .collect();
        if unasked.is_empty() {
            gather.stage = Stage::Open;
            return self.opened_gathering(now, front, request);
        }
        *missing = unasked.len();
        let mut join = core::mem::take(&mut gather.join);
        if let Ok((fields, _)) = records::Join::mut_from_prefix(&mut join) {
            fields.member = joined.member;
        }
        for shard in unasked {
            self.ask_to_join(now, shard, front, &join);
        }
    }

    fn opened_gathering(&mut self, now: Now, front: Handle, request: RequestId) {
        let Some(consumer) = self.consumers.get_mut(front) else {
            return;
        };
        let (link, session) = (consumer.link, consumer.session);
        let starts = (consumer.gather_mut())
            .map(|gather| core::mem::take(&mut gather.starts))
            .unwrap_or_default();
        let fields = ConsumerOpened {
            handle: front.0.into(),
            partitions: u32::try_from(starts.len()).unwrap_or(u32::MAX).into(),
        };
        let starts: Vec<u8> = starts.iter().flat_map(|it| it.to_le_bytes()).collect();
        if let Err(fault) = self.answer(now, link, request.0, &fields, &[&starts]) {
            return self.fault(now, link, &fault);
        }
        if self.is_closing_session(session) {
            return self.close_consumer_with_session(now, front, session);
        }
        // A source may have had something while others were still joining.
        self.want_lease(link, front);
    }

    /// A source may not join: the consumer is not opened, and those that did leave.
    pub(super) fn refused_source(&mut self, now: Now, front: Handle, fault: &Fault) {
        let Some(consumer) = self.consumers.get(front) else {
            return;
        };
        let link = consumer.link;
        let Some(Stage::Opening { request, .. }) = consumer.gather().map(|it| it.stage) else {
            return;
        };
        self.remove_consumer(front, true);
        if let Err(fault) = self.refuse(now, link, request, fault) {
            self.fault(now, link, &fault);
        }
    }

    /// A front that is being opened is not wanted any more: its client is told so at once,
    /// and the handle stays until every source that was asked for has left, or never was.
    pub(super) fn withdraw_gathering(&mut self, now: Now, front: Handle, fault: &Fault) {
        let Some(consumer) = self.consumers.get_mut(front) else {
            return;
        };
        let link = consumer.link;
        let Some(gather) = consumer.gather_mut() else {
            return;
        };
        let Stage::Opening { request, .. } = gather.stage else {
            return;
        };
        let asked = gather.asked();
        gather.stage = Stage::Closing {
            request: None,
            missing: asked.len(),
        };
        let flags = leave::ANSWERED | leave::CLEAN;
        for (shard, source) in asked {
            match source {
                Some(source) => self.leave_source(now, front, (shard, source, 0), flags),
                None => self.ask_to_leave(front, (shard, front, 0), flags | leave::UNHEARD),
            }
        }
        if let Err(fault) = self.refuse(now, link, request, fault) {
            self.fault(now, link, &fault);
        }
    }

    /// A source has something, maybe longer than a usual lease.
    pub(super) fn source_ready(&mut self, shard: ShardIndex, front: Handle, large: bool) {
        let Some(consumer) = self.consumers.get_mut(front) else {
            return;
        };
        let link = consumer.link;
        if let Some(source) = consumer.gather_mut().and_then(|it| it.source_at(shard)) {
            source.ready = true;
            source.large = large;
        }
        self.want_lease(link, front);
    }

    /// A front may have a source that is ready, and credit for it.
    fn want_lease(&mut self, link: Handle, front: Handle) {
        if let Some(entry) = self.links.get_mut(link)
            && !entry.leases.waiting.contains(&front)
        {
            entry.leases.waiting.push_back(front);
        }
        self.lease_next(link);
    }

    /// A front was granted more.
    pub(super) fn gathering_allowed(&mut self, front: Handle, handed: u64) {
        let gather = self.consumers.get_mut(front).and_then(Consumer::gather_mut);
        if let Some(gather) = gather {
            gather.handed(handed);
        }
        self.want_lease_if_ready(front);
    }

    /// A front may be lent something from here on, if it was not before.
    fn want_lease_if_ready(&mut self, front: Handle) {
        let Some(consumer) = self.consumers.get(front) else {
            return;
        };
        if consumer.gather().is_some_and(Gather::is_ready) {
            self.want_lease(consumer.link, front);
        }
    }

    /// Lends credit to the next source that has something for a consumer of the link.
    pub(super) fn lease_next(&mut self, link: Handle) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        if entry.state == LinkState::Ending || entry.leases.lease.is_some() {
            return;
        }
        for _ in 0..entry.leases.waiting.len() {
            if entry.egress.has_arrivals() {
                return;
            }
            let Some(front) = entry.leases.waiting.pop_front() else {
                return;
            };
            let Some(consumer) = self.consumers.get_mut(front) else {
                continue;
            };
            let (messages, bytes) = consumer.credit_left();
            if messages == 0 || bytes == 0 {
                // It is looked at again when it is granted more.
                continue;
            }
            let Some(gather) = consumer.gather_mut().filter(|it| it.stage == Stage::Open) else {
                // And so is one that is still being opened, once it is.
                continue;
            };
            // Whoever is ready takes turns: the one that is lent to goes to the end.
            let turn = gather
                .order
                .back()
                .map_or(0, |(last, _)| usize::from(*last) + 1);
            let count = gather.sources.len();
            let next = (0..count)
                .map(|index| (turn + index) % count)
                .find(|index| gather.sources[*index].ready);
            let Some(next) = next else { continue };
            let source = &mut gather.sources[next];
            let Some(handle) = source.handle else {
                continue;
            };
            let (messages, place, chunks) = if source.large {
                (1, LARGEST, LARGE_CHUNKS)
            } else {
                (
                    messages.min(LEASE_MESSAGES.into()),
                    LEASE_BYTES,
                    LEASE_CHUNKS,
                )
            };
            let room = self.plan.arrivals_chunks().saturating_sub(self.arriving);
            if room < chunks || !entry.egress.expect_arrivals(&mut self.arena, chunks) {
                entry.leases.waiting.push_front(front);
                if !self.wants_room.contains(&link) {
                    self.wants_room.push_back(link);
                }
                return;
            }
            self.arriving += chunks;
            source.ready = false;
            source.large = false;
            let shard = source.shard;
            entry.leases.lease = Some(Lease {
                front,
                shard,
                messages,
                credit: bytes,
            });
            if gather.sources.iter().any(|source| source.ready) {
                entry.leases.waiting.push_back(front);
            }
            let lease = records::Lease {
                messages: messages.into(),
                bytes: place.into(),
                credit: bytes.into(),
            };
            if shard == self.config.shard {
                self.lend_to_source(handle, &lease);
            } else {
                let head = about(request::LEASE, handle);
                self.request_of(shard, &head, &[lease.as_bytes()]);
            }
            return;
        }
    }

    /// Links that wait for chunks for arrivals are served, as far as there are any: others
    /// may have given some back, or the arena may have some again.
    #[inline]
    pub(super) fn serve_leases(&mut self) {
        if !self.wants_room.is_empty() {
            self.serve_wanting();
        }
    }

    #[cold]
    fn serve_wanting(&mut self) {
        for _ in 0..self.wants_room.len() {
            if let Some(link) = self.wants_room.pop_front() {
                self.lease_next(link);
            }
        }
    }

    /// A run has arrived for a front, with its messages.
    pub(super) fn arrived(
        &mut self,
        now: Now,
        shard: ShardIndex,
        front: Handle,
        delivery: &Delivery,
        size: usize,
        frames: &[u8],
    ) {
        let Some(consumer) = self.consumers.get_mut(front) else {
            return;
        };
        let link = consumer.link;
        let count = delivery.count.get();
        consumer.was_delivered(count.into(), size);
        // What arrives for one that is being closed is not wanted any more.
        let Some(gather) = consumer.gather_mut().filter(|it| it.stage == Stage::Open) else {
            return;
        };
        gather.delivered(shard, count);
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        if entry.egress.bytes() == 0 {
            entry.progress = now.monotonic;
        }
        let arena = &mut self.arena;
        entry.egress.arrive(arena, front.0, delivery, size, frames);
        if let Some(lease) = &mut entry.leases.lease {
            lease.messages -= u64::from(count);
            lease.credit = lease.credit.saturating_sub(size as u64);
        }
        self.mark_dirty(link);
        self.end_lease_if_used(link);
    }

    /// More of a message that came without its end.
    pub(super) fn arrived_more(&mut self, front: Handle, bytes: &[u8]) {
        let open = self.consumers.get(front).filter(|it| {
            it.gather()
                .is_some_and(|gather| gather.stage == Stage::Open)
        });
        let Some(link) = open.map(|it| it.link) else {
            return;
        };
        if let Some(entry) = self.links.get_mut(link) {
            entry.egress.arrive_more(&mut self.arena, bytes);
        }
        self.mark_dirty(link);
        self.end_lease_if_used(link);
    }

    /// A lease that was used up needs no word that it is over.
    fn end_lease_if_used(&mut self, link: Handle) {
        let Some(entry) = self.links.get(link) else {
            return;
        };
        let is_used = |lease: Lease| lease.messages == 0 || lease.credit == 0;
        if entry.leases.lease.is_some_and(is_used) && !entry.egress.awaits_more() {
            self.end_lease(link);
        }
    }

    /// A source has nothing more within its lease.
    pub(super) fn lease_left(&mut self, shard: ShardIndex, front: Handle) {
        let Some(link) = self.consumers.get(front).map(|it| it.link) else {
            return;
        };
        let is_its = self
            .links
            .get(link)
            .and_then(|entry| entry.leases.lease)
            .is_some_and(|lease| lease.front == front && lease.shard == shard);
        if is_its {
            self.end_lease(link);
        }
    }

    /// No more arrives within the link's lease.
    fn end_lease(&mut self, link: Handle) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        entry.leases.lease = None;
        entry.egress.end_arrivals(&mut self.arena);
        self.arrivals_freed(link);
    }

    /// Chunks in which something arrived have perhaps come free.
    pub(super) fn arrivals_freed(&mut self, link: Handle) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        let freed = entry.egress.take_freed();
        if freed > 0 {
            self.arriving -= freed;
            self.lease_next(link);
            self.serve_leases();
        }
    }

    /// The link's lease was a front's that ends: nothing more arrives for it.
    pub(super) fn forget_leases(&mut self, link: Handle, front: Handle) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        entry.leases.waiting.retain(|other| *other != front);
        if entry.leases.lease.is_some_and(|lease| lease.front == front) {
            self.end_lease(link);
        }
    }

    /// Passes an acknowledgement on to the source of its partition.
    pub(super) fn acknowledge_at_source(
        &mut self,
        now: Now,
        front: Handle,
        fields: &Acknowledge,
        runs: &[u8],
    ) -> Result<(), Fault> {
        let Some(consumer) = self.consumers.get(front) else {
            return Ok(());
        };
        let partition = fields.partition.get();
        let exists = partition < self.partitions_of(consumer.destination());
        let source = (consumer.gather())
            .filter(|_| exists)
            .and_then(|it| it.source_of(partition));
        let (link, confirm) = (consumer.link, fields.confirm.get());
        if confirm != 0 {
            self.confirm_at_sources(now, (link, front), partition, confirm)?;
        } else if let Some(gather) = self.consumers.get_mut(front).and_then(Consumer::gather_mut) {
            let asked = partition as usize % gather.sources.len();
            gather.sources[asked].unconfirmed = true;
        }
        let Some((shard, handle)) = source else {
            return self.acknowledged(now, front, confirm, Refusal::InvalidAck.code());
        };
        if shard == self.config.shard {
            return self.acknowledge_here(now, handle, fields, runs);
        }
        let head = about(request::ACKNOWLEDGE, handle);
        self.request_for(link, shard, &head, &[fields.as_bytes(), runs])
    }

    /// A confirmation speaks for all that the consumer has acknowledged so far: it is
    /// asked of the source of its partition, and where what is settled has to be kept, of
    /// whichever other source was passed something since the last one.
    fn confirm_at_sources(
        &mut self,
        now: Now,
        (link, front): (Handle, Handle),
        partition: u32,
        confirm: u32,
    ) -> Result<(), Fault> {
        let keeps = self.keeps();
        let Some(gather) = self.consumers.get_mut(front).and_then(Consumer::gather_mut) else {
            return Ok(());
        };
        let others = if keeps && !Planted::ConfirmOneShard.is_awake() {
            gather.ask_others(partition)
        } else {
            Vec::new()
        };
        gather.confirms.push_back(Asked {
            confirm,
            missing: 1 + u16::try_from(others.len()).expect("shards are few"),
            refusal: 0,
        });
        self.falls_behind(link, CONFIRMATION_SIZE)?;
        for (partition, shard, handle) in others {
            let nothing_more = Acknowledge {
                partition: partition.into(),
                confirm: confirm.into(),
                ..Acknowledge::default()
            };
            if shard == self.config.shard {
                self.acknowledge_here(now, handle, &nothing_more, &[])?;
            } else {
                let head = about(request::ACKNOWLEDGE, handle);
                self.request_for(link, shard, &head, &[nothing_more.as_bytes()])?;
            }
        }
        Ok(())
    }

    /// Passes what is given back on to the source of its partition.
    pub(super) fn give_back_at_source(
        &mut self,
        now: Now,
        front: Handle,
        fields: &Return,
        runs: &[u8],
    ) -> Result<(), Fault> {
        let Some(consumer) = self.consumers.get(front) else {
            return Ok(());
        };
        let (link, partition) = (consumer.link, fields.partition.get());
        let exists = partition < self.partitions_of(consumer.destination());
        let source = (consumer.gather())
            .filter(|_| exists)
            .and_then(|it| it.source_of(partition));
        let Some((shard, handle)) = source else {
            return Ok(());
        };
        if shard == self.config.shard {
            self.give_back_here(now, handle, fields, runs);
            return Ok(());
        }
        let head = about(request::RETURN, handle);
        self.request_for(link, shard, &head, &[fields.as_bytes(), runs])
    }

    /// An acknowledgement of a front is settled.
    pub(super) fn acknowledged(
        &mut self,
        now: Now,
        front: Handle,
        confirm: u32,
        refusal: u16,
    ) -> Result<(), Fault> {
        let Some(consumer) = self.consumers.get_mut(front) else {
            return Ok(());
        };
        let link = consumer.link;
        let Some(gather) = consumer.gather_mut().filter(|_| confirm != 0) else {
            return Ok(());
        };
        let mut asked = gather.confirms.iter_mut();
        if let Some(asked) = asked.find(|it| it.confirm == confirm && it.missing > 0) {
            asked.missing -= 1;
            if asked.refusal == 0 {
                asked.refusal = refusal;
            }
        }
        let settled = gather
            .confirms
            .iter()
            .take_while(|asked| asked.missing == 0);
        let settled = settled.count();
        let confirms = gather.confirms.drain(..settled).collect::<Vec<_>>();
        self.catches_up(link, confirms.len() * CONFIRMATION_SIZE);
        for Asked {
            confirm, refusal, ..
        } in confirms
        {
            let confirmed = Acknowledged {
                confirm: confirm.into(),
                refusal: refusal.into(),
                ..Acknowledged::default()
            };
            self.answer(now, link, front.0, &confirmed, &[])?;
        }
        Ok(())
    }

    /// A front is to end, which answers a request or is part of something larger: its
    /// sources leave, the home last, so that nobody takes its place while it is still
    /// anywhere.
    pub(super) fn close_gathering(
        &mut self,
        now: Now,
        front: Handle,
        request: Option<RequestId>,
    ) -> Result<(), Refusal> {
        let consumer = self.consumers.get_mut(front).ok_or(Refusal::NotOpen)?;
        let link = consumer.link;
        let gather = (consumer.gather_mut())
            .filter(|it| it.stage == Stage::Open)
            .ok_or(Refusal::NotOpen)?;
        let away = gather.sources.iter().skip(1).filter_map(Source::place);
        let mut leaving: Vec<_> = away.collect();
        if leaving.is_empty() {
            leaving.extend(gather.sources[0].place());
        }
        gather.stage = Stage::Closing {
            request,
            missing: leaving.len(),
        };
        self.forget_leases(link, front);
        for place in leaving {
            self.leave_source(now, front, place, leave::ANSWERED | leave::CLEAN);
        }
        Ok(())
    }

    /// The client of a front sends no more: nothing can be acknowledged, so what its
    /// sources hold returns. The front stays until they have confirmed what was.
    pub(super) fn withdraw_sources(&mut self, now: Now, front: Handle) {
        let Some(consumer) = self.consumers.get_mut(front) else {
            return;
        };
        let link = consumer.link;
        let Some(gather) = consumer.gather_mut() else {
            return;
        };
        let leaving: Vec<_> = gather.sources.iter().filter_map(Source::place).collect();
        gather.stage = Stage::Closing {
            request: None,
            missing: leaving.len(),
        };
        self.forget_leases(link, front);
        for place in leaving {
            self.leave_source(now, front, place, leave::ANSWERED);
        }
    }

    /// A source has left.
    pub(super) fn left_source(&mut self, now: Now, shard: ShardIndex, front: Handle) {
        let Some(consumer) = self.consumers.get_mut(front) else {
            return;
        };
        let link = consumer.link;
        let Some(gather) = consumer.gather_mut() else {
            return;
        };
        if let Some(source) = gather.source_at(shard) {
            source.handle = None;
        }
        let Stage::Closing { request, missing } = &mut gather.stage else {
            return;
        };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let request = *request;
        if let Some(home) = gather.sources[0].place() {
            *missing = 1;
            return self.leave_source(now, front, home, leave::ANSWERED | leave::CLEAN);
        }
        self.remove_consumer(front, request.is_some());
        let Some(request) = request else { return };
        let closed = Closed {
            handle: front.0.into(),
            ..Closed::default()
        };
        if let Err(fault) = self.answer(now, link, request.0, &closed, &[]) {
            self.fault(now, link, &fault);
        }
    }

    /// The broker has ended a source, and so the front ends with all of them.
    pub(super) fn source_ended(&mut self, front: Handle, fault: &Fault) {
        let Some(gather) = self.consumers.get(front).and_then(Consumer::gather) else {
            return;
        };
        if !matches!(gather.stage, Stage::Open) {
            return;
        }
        let why = Ending {
            refusal: fault.refusal,
            text: "the subscription was deleted, or its destination",
        };
        self.end_consumer(front, why);
    }

    /// A front on `link` ends without waiting for anything: so do its sources.
    pub(super) fn drop_sources(
        &mut self,
        gather: &Gather,
        (link, front): (Handle, Handle),
        clean: bool,
    ) {
        self.catches_up(link, gather.confirms.len() * CONFIRMATION_SIZE);
        let flags = if clean { leave::CLEAN } else { 0 };
        let opening = matches!(gather.stage, Stage::Opening { .. });
        for source in gather.sources.iter().rev() {
            let Some((shard, handle, handed)) = source.place() else {
                // What is on its way to a front that is gone would come too late: until
                // then the source would be in the way of whoever comes next.
                if opening && source.shard != self.config.shard {
                    let place = (source.shard, front, 0);
                    self.ask_to_leave(front, place, flags | leave::UNHEARD);
                }
                continue;
            };
            if shard == self.config.shard {
                self.take_source_out(handle, handed, clean);
            } else {
                self.ask_to_leave(front, (shard, handle, handed), flags);
            }
        }
    }

    fn leave_source(
        &mut self,
        now: Now,
        front: Handle,
        place: (ShardIndex, Handle, u64),
        flags: u8,
    ) {
        let (shard, handle, handed) = place;
        if shard != self.config.shard {
            return self.ask_to_leave(front, place, flags);
        }
        let clean = flags & leave::CLEAN != 0;
        if flags & leave::ANSWERED != 0 {
            self.part_with_source(now, (handle, handed), clean, (shard, front));
        } else {
            self.take_source_out(handle, handed, clean);
        }
    }

    fn ask_to_leave(
        &mut self,
        front: Handle,
        (shard, handle, handed): (ShardIndex, Handle, u64),
        flags: u8,
    ) {
        let head = super::mesh::Head {
            flags,
            ..about(request::LEAVE, handle)
        };
        let leave = records::Leave {
            handed: handed.into(),
            front: front.0.into(),
            ..records::Leave::default()
        };
        self.request_of(shard, &head, &[leave.as_bytes()]);
    }
}

impl Source {
    /// Where it is, and how much of what it delivered was handed to the application.
    fn place(&self) -> Option<(ShardIndex, Handle, u64)> {
        Some((self.shard, self.handle?, self.handed))
    }
}
