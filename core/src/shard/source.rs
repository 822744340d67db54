//! Sources: what this shard keeps for consumers that stand on any shard.
//!
//! A source is a consumer like any other, but that its deliveries go to its front, here
//! or on another shard, and that it has credit only while it has a lease: it says when
//! there is something for it, is lent credit and a place for what it will deliver,
//! delivers in the same turn and gives back what is left.

use zerocopy::{FromBytes, IntoBytes};

use super::branch::{Origin, refused};
use super::consumer::{JoinConsumer, Start};
use super::durable::{Asker, LastWord};
use super::ending::Ending;
use super::fan::about;
use super::mesh::BODY_MAX;
use super::records::{self, delivery, leave, outcome};
use super::{Fault, Shard};
use crate::auth::Principal;
use crate::error::Refusal;
use crate::frame::control::{Acknowledge, Delivery, Return};
use crate::id::{DestinationNumber, Handle, MemberNumber, ShardIndex};
use crate::memory::{CHUNK, ChunkId};
use crate::partition::log::Run;
use crate::subscription::Kind;
use crate::time::Now;

/// What a source has beside a consumer.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    /// Whom its front acts for.
    pub(super) principal: Principal,
    /// Bytes that the lease still has a place for.
    pub(super) room: u64,
    /// The lease ends though there is credit left: what comes next does not fit.
    cut: bool,
    /// Its front knows, or will this turn, that it has something.
    announced: bool,
    /// Its next message was longer than a lease.
    large: bool,
    /// Stands in the list of those that were lent something.
    lent: bool,
}

impl Source {
    pub(super) fn new(origin: Origin, principal: Principal) -> Self {
        Self {
            origin,
            principal,
            room: 0,
            cut: false,
            announced: false,
            large: false,
            lent: false,
        }
    }

    /// Notes that there is something for it; whether its front is to be told.
    pub(super) fn announce(&mut self) -> bool {
        !core::mem::replace(&mut self.announced, true)
    }

    /// How many bytes may be delivered before a last message of `last` bytes, if there
    /// is a place for that. If not, the lease is over and another one is asked for.
    pub(super) fn room_before(&mut self, last: u64) -> Option<u64> {
        let room = self.room.checked_sub(last).map(|room| room + 1);
        if room.is_none() {
            self.cut = true;
            self.announced = true;
            self.large = last > CHUNK as u64;
        }
        room
    }
}

impl Shard {
    /// The source of a front is to join; the front is told once it has, and its subscription
    /// is there to stay, or why it has not.
    pub(super) fn join_asked(&mut self, now: Now, shard: ShardIndex, front: Handle, join: &[u8]) {
        match self.join_source(shard, front, join) {
            Ok((handle, member)) => {
                let whom = Asker::Front(shard, front, member);
                if !self.opens_once_durable(now, handle, whom) {
                    self.say_joined(now, (shard, front), handle, member);
                }
            }
            Err(fault) => self.say_not_joined(now, (shard, front), &fault),
        }
    }

    /// Tells a front that its source has joined.
    pub(super) fn say_joined(
        &mut self,
        now: Now,
        (shard, front): (ShardIndex, Handle),
        handle: Handle,
        member: MemberNumber,
    ) {
        let joined = records::Joined {
            handle: handle.0.into(),
            member: member.0.into(),
            ..records::Joined::default()
        };
        let starts = self.starts_of(handle);
        if shard == self.config.shard {
            return self.joined_source(now, shard, front, &joined, &starts);
        }
        let head = about(outcome::JOINED, front);
        self.outcome_for(shard, &head, &[joined.as_bytes(), &starts]);
    }

    /// Tells a front why its source has not.
    pub(super) fn say_not_joined(
        &mut self,
        now: Now,
        (shard, front): (ShardIndex, Handle),
        fault: &Fault,
    ) {
        if shard == self.config.shard {
            return self.refused_source(now, front, fault);
        }
        let head = about(outcome::NOT_JOINED, front);
        let refused = refused(fault);
        self.outcome_for(shard, &head, &[refused.as_bytes(), fault.text.as_bytes()]);
    }

    /// Has the source of a front join. The home decides whether it may, and which
    /// member it is; the others take over what it decided.
    fn join_source(
        &mut self,
        shard: ShardIndex,
        front: Handle,
        join: &[u8],
    ) -> Result<(Handle, MemberNumber), Fault> {
        let (join, subscription) =
            records::Join::ref_from_prefix(join).expect("a record has the fields of its kind");
        let subscription = core::str::from_utf8(subscription).expect("names are text");
        let origin = Origin { shard, front };
        let destination = DestinationNumber(join.destination.get());
        // It may have been deleted while the request was on its way.
        self.locals.get(destination).ok_or(Refusal::NotFound)?;
        let asked = JoinConsumer {
            destination,
            subscription,
            start: Start::decode(join.start.get(), join.offset.get()),
            kind: match join.kind {
                records::BROWSES => None,
                code => Some(Kind::from_code(code).ok_or(Refusal::IllegalArgument)?),
            },
            member: Some(MemberNumber(join.member.get())).filter(|member| member.0 > 0),
        };
        let principal = Principal::from_number(join.principal.get());
        self.join_subscription(&asked, Source::new(origin, principal))
    }

    /// A front lends a source credit, and a place for what it delivers.
    pub(super) fn lend_to_source(&mut self, handle: Handle, lease: &records::Lease) {
        let Some(consumer) = self.consumers.get_mut(handle) else {
            return;
        };
        consumer.lend(lease.messages.get(), lease.credit.get());
        let Some(source) = consumer.source_mut() else {
            return;
        };
        source.room = lease.bytes.get();
        source.cut = false;
        source.announced = false;
        if !core::mem::replace(&mut source.lent, true) {
            self.lent.push(handle);
        }
        self.queue_destination_of(handle);
    }

    /// Whether [`Shard::settle_leases`] would find something to do.
    #[inline]
    pub(super) fn can_settle_leases(&self) -> bool {
        !self.lent.is_empty() || !self.announcing.is_empty()
    }

    /// What sources were lent and did not use goes back, and those that have something
    /// and no credit say so. Behind the deliveries of the turn, in their ring.
    #[inline]
    pub(super) fn settle_leases(&mut self) {
        if !self.can_settle_leases() {
            return;
        }
        for handle in core::mem::take(&mut self.lent) {
            let Some(consumer) = self.consumers.get_mut(handle) else {
                continue;
            };
            let is_left = consumer.end_lease();
            let Some(source) = consumer.source_mut() else {
                continue;
            };
            source.lent = false;
            source.room = 0;
            let origin = source.origin;
            if !is_left && !core::mem::take(&mut source.cut) {
                continue;
            }
            if origin.shard == self.config.shard {
                self.lease_left(origin.shard, origin.front);
            } else {
                let head = about(delivery::LEFT_OVER, origin.front);
                self.deliver_to(origin.shard, &head, &[]);
            }
        }
        for handle in core::mem::take(&mut self.announcing) {
            let Some(source) = self
                .consumers
                .get_mut(handle)
                .and_then(|it| it.source_mut())
            else {
                continue;
            };
            let (origin, large) = (source.origin, core::mem::take(&mut source.large));
            if origin.shard == self.config.shard {
                self.source_ready(origin.shard, origin.front, large);
            } else {
                let head = super::mesh::Head {
                    flags: u8::from(large),
                    ..about(delivery::READY, origin.front)
                };
                self.deliver_to(origin.shard, &head, &[]);
            }
        }
    }

    /// A run goes to the front of a source.
    pub(super) fn deliver_to_front(
        &mut self,
        now: Now,
        origin: Origin,
        header: &Delivery,
        run: &Run,
    ) {
        const FIRST_MAX: usize = BODY_MAX - size_of::<records::Run>();
        let size = run.bytes;
        let fields = records::Run {
            partition: header.partition,
            count: header.count,
            offset: header.offset,
            delivery_count: header.delivery_count,
            size: u32::try_from(size).unwrap_or(u32::MAX).into(),
        };
        let is_here = origin.shard == self.config.shard;
        let (mut chunk, mut start, mut left) = (run.chunk, run.start, size);
        while left > 0 {
            let (is_first, length) = (left == size, left.min(FIRST_MAX).min(CHUNK - start));
            let place = (chunk, start);
            if is_here {
                self.deliver_here(now, origin, (header, size), place, length, is_first);
            } else {
                let (kind, fields) = if is_first {
                    (delivery::RUN, fields.as_bytes())
                } else {
                    (delivery::MORE, &[][..])
                };
                let head = about(kind, origin.front);
                self.deliver_stored_to(origin.shard, &head, fields, place, length);
            }
            start += length;
            left -= length;
            if start == CHUNK {
                (chunk, start) = (self.arena.next(chunk), 0);
            }
        }
    }

    /// A part of a run, of `size` bytes in all, goes to a front of this shard: out of the
    /// log's memory and into that of the front's link.
    fn deliver_here(
        &mut self,
        now: Now,
        origin: Origin,
        (header, size): (&Delivery, usize),
        (chunk, start): (ChunkId, usize),
        length: usize,
        is_first: bool,
    ) {
        let mut part = core::mem::take(&mut self.scratch);
        part.clear();
        part.extend_from_slice(&self.arena.bytes(chunk)[start..start + length]);
        if is_first {
            self.arrived(now, origin.shard, origin.front, header, size, &part);
        } else {
            self.arrived_more(origin.front, &part);
        }
        self.scratch = part;
    }

    /// An acknowledgement of a front, at the source.
    pub(super) fn acknowledge_here(
        &mut self,
        now: Now,
        handle: Handle,
        fields: &Acknowledge,
        runs: &[u8],
    ) -> Result<(), Fault> {
        let link = self.consumers.get(handle).map(|it| it.link);
        link.map_or(Ok(()), |link| {
            self.acknowledge(now, link, handle, fields, runs)
        })
    }

    /// What a front gives back, at the source.
    pub(super) fn give_back_here(
        &mut self,
        now: Now,
        handle: Handle,
        fields: &Return,
        runs: &[u8],
    ) {
        if let Some(link) = self.consumers.get(handle).map(|it| it.link) {
            let done = self.give_back(now, link, handle, fields, runs);
            debug_assert!(done.is_ok(), "the consumer is there");
        }
    }

    /// Tells the front of a source that an acknowledgement is settled.
    pub(super) fn acknowledged_to_front(
        &mut self,
        now: Now,
        origin: Origin,
        confirm: u32,
        refusal: u16,
    ) -> Result<(), Fault> {
        if origin.shard == self.config.shard {
            return self.acknowledged(now, origin.front, confirm, refusal);
        }
        let head = about(outcome::ACKNOWLEDGED, origin.front);
        let fields = records::Confirmed {
            confirm: confirm.into(),
            refusal: refusal.into(),
            ..records::Confirmed::default()
        };
        self.outcome_for(origin.shard, &head, &[fields.as_bytes()]);
        Ok(())
    }

    /// The front of a source, on another shard, ends or has gone. One that did not hear
    /// that it has the source names itself.
    pub(super) fn end_source(
        &mut self,
        now: Now,
        shard: ShardIndex,
        named: Handle,
        flags: u8,
        leave: &records::Leave,
    ) {
        let mut handle = Some(named);
        if flags & leave::UNHEARD != 0 {
            let origin = Origin {
                shard,
                front: named,
            };
            let of_it = |source: &Source| source.origin == origin;
            let mut consumers = self.consumers.iter();
            let found = consumers.find(|(_, it)| it.source().is_some_and(of_it));
            handle = found.map(|(source, _)| source);
        }
        let (clean, handed) = (flags & leave::CLEAN != 0, leave.handed.get());
        let front = Handle(leave.front.get());
        match handle {
            Some(handle) if flags & leave::ANSWERED != 0 => {
                self.part_with_source(now, (handle, handed), clean, (shard, front));
            }
            Some(handle) => self.take_source_out(handle, handed, clean),
            None if flags & leave::ANSWERED != 0 => self.left_front(shard, front),
            None => {}
        }
    }

    /// Tells a front on another shard that its source here has left.
    pub(super) fn left_front(&mut self, shard: ShardIndex, front: Handle) {
        self.outcome_for(shard, &about(outcome::LEFT, front), &[]);
    }

    /// Tells the front of a source that the broker has ended that.
    pub(super) fn tell_front(&mut self, origin: Origin, why: Ending) {
        let fault = Fault::new(why.refusal, why.text);
        if origin.shard == self.config.shard {
            return self.source_ended(origin.front, &fault);
        }
        let head = about(outcome::ENDED, origin.front);
        self.outcome_for(origin.shard, &head, &[refused(&fault).as_bytes()]);
    }

    /// A source leaves its subscription; so much of what it delivered was handed to the
    /// application.
    pub(super) fn take_source_out(&mut self, handle: Handle, handed: u64, clean: bool) {
        if let Some(consumer) = self.consumers.get_mut(handle) {
            consumer.was_handed(handed);
        }
        self.remove_consumer(handle, clean);
    }

    /// As that; its front is told, behind the confirmations that it waits for.
    pub(super) fn part_with_source(
        &mut self,
        now: Now,
        (handle, handed): (Handle, u64),
        clean: bool,
        (shard, front): (ShardIndex, Handle),
    ) {
        if let Some(consumer) = self.consumers.get_mut(handle) {
            consumer.was_handed(handed);
        }
        self.part_with_consumer(now, handle, clean, LastWord::Left(shard, front));
    }
}
