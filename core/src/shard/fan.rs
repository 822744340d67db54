//! Producers whose partitions lie on several shards, or on another one.
//!
//! ```text
//!                       .─ branch at shard 0 ─ log
//!  link ── front ── fan ─ branch at shard 1 ─ log
//!    ^       |          `─ branch at shard 2 ─ log
//!    |       v                   | outcomes, in any order between branches
//!    `── outcomes in the order of the sends <── window
//! ```
//!
//! The front stands towards the client, where a producer of one shard would stand by
//! itself. Its sends go to the branch that owns their partition; what is known of the
//! producer for ever, its epoch and its sends to each partition, is known there. Of one
//! branch outcomes come in the order of its sends; the window puts those of all of them
//! into the order in which the sends came from the client.
//!
//! Credit: what the client may send is never more than each single branch was granted,
//! since all of it may go to one of them. So what comes from the client can be passed on
//! at once, and waits for nothing but room in a ring.
//!
//! Invariants: of each branch, `open` names the places of the window that it owes an
//! outcome, in the order of its sends; the front's outstanding credit is within that of
//! every branch; the first place of the window is open.

use std::collections::VecDeque;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::branch::Origin;
use super::credit::Grant;
use super::identity::Access;
use super::mesh::{BODY_MAX, Head, link_to};
use super::producer::{OpenProducer, Producer, Role};
use super::records::{self, detach, request};
use super::send::{Bytes, foreign};
use super::{Fault, Rejection, Shard};
use crate::frame::MessageHeader;
use crate::frame::control::{CompletionRun, ProducerOpened};
use crate::id::{DestinationNumber, Epoch, Handle, ProducerId, RequestId, ShardIndex};
use crate::limits;
use crate::memory::CHUNK;
use crate::planted::Planted;
use crate::time::Now;

/// The part of a producer at the shard that owns some of its partitions.
#[derive(Debug)]
struct Branch {
    shard: ShardIndex,
    /// Which producer it is there; `None` until it is attached.
    handle: Option<Handle>,
    granted_bytes: u64,
    granted_messages: u64,
    forwarded_bytes: u64,
    forwarded_messages: u64,
    /// Up to where credit was asked for.
    wanted_bytes: u64,
    /// Places of the window, in the order of the sends to it.
    open: VecDeque<u64>,
}

impl Branch {
    fn at(shard: ShardIndex) -> Self {
        Self {
            shard,
            handle: None,
            granted_bytes: 0,
            granted_messages: 0,
            forwarded_bytes: 0,
            forwarded_messages: 0,
            wanted_bytes: 0,
            open: VecDeque::new(),
        }
    }

    fn bytes_left(&self) -> u64 {
        self.granted_bytes - self.forwarded_bytes
    }

    fn messages_left(&self) -> u64 {
        self.granted_messages - self.forwarded_messages
    }
}

/// A send whose outcome was not passed on yet.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The producer's how-manieth send it is.
    Open(u64),
    Settled(CompletionRun),
}

/// What a front is until all its branches are attached, and again while they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for so many branches; answered under this request.
    Opening {
        request: RequestId,
        missing: usize,
        again: bool,
        /// It may wait in line before any of them is there.
        waits: bool,
    },
    Open,
    /// Waits for so many branches to go.
    Closing {
        missing: usize,
    },
}

/// The branches of one producer, and its sends on their way.
#[derive(Debug)]
pub(super) struct Fan {
    stage: Stage,
    /// The home first; partition `p` belongs to the one at `p` modulo their number.
    branches: Vec<Branch>,
    window: VecDeque<Place>,
    /// The number of the window's first place.
    first: u64,
}

impl Fan {
    /// What may be sent to any branch, in bytes and in messages.
    pub(super) fn room(&self) -> (u64, u64) {
        let least = |left: fn(&Branch) -> u64| self.branches.iter().map(left).min().unwrap_or(0);
        (least(Branch::bytes_left), least(Branch::messages_left))
    }

    /// Whether every send had its outcome passed on.
    pub(super) fn is_settled(&self) -> bool {
        self.window.is_empty()
    }

    fn branch_at(&mut self, shard: ShardIndex) -> Option<&mut Branch> {
        self.branches
            .iter_mut()
            .find(|branch| branch.shard == shard)
    }

    /// Opens the place of a send to the branch at `index`.
    fn forwarded(&mut self, index: usize, sequence: u64, size: usize) {
        let place = self.first + self.window.len() as u64;
        self.window.push_back(Place::Open(sequence));
        let branch = &mut self.branches[index];
        branch.open.push_back(place);
        branch.forwarded_bytes += size as u64;
        branch.forwarded_messages += 1;
    }

    /// Puts outcomes of a branch into their places.
    fn settle(&mut self, shard: ShardIndex, run: &CompletionRun) {
        let first = self.first;
        let branch = (self.branches.iter_mut())
            .find(|branch| branch.shard == shard)
            .expect("only shards with a branch send outcomes");
        for index in 0..run.count.get() {
            let place = if Planted::MisplaceOutcome.is_awake() {
                branch.open.pop_back()
            } else {
                branch.open.pop_front()
            };
            let place = place.expect("a send has one outcome");
            let index = u64::from(index);
            let sequence = run.sequence.get() + index;
            let offset = match run.refusal.get() {
                0 => run.offset.get() + index,
                _ => run.offset.get(),
            };
            let at = usize::try_from(place - first).expect("the window is short");
            let place = &mut self.window[at];
            let sequence = match place {
                Place::Open(open) if Planted::MisplaceOutcome.is_awake() => *open,
                _ => sequence,
            };
            assert!(
                matches!(place, Place::Open(open) if *open == sequence),
                "outcomes of a branch come in the order of its sends"
            );
            *place = Place::Settled(CompletionRun {
                sequence: sequence.into(),
                offset: offset.into(),
                count: 1.into(),
                ..*run
            });
        }
    }

    /// The next outcome in the order of the sends.
    fn pop(&mut self) -> Option<CompletionRun> {
        match self.window.front()? {
            Place::Open(_) => None,
            Place::Settled(run) => {
                let run = *run;
                self.window.pop_front();
                self.first += 1;
                Some(run)
            }
        }
    }

    /// Panics if an invariant is broken; `credit` is the front's.
    pub(super) fn invariants(&self, credit: &Grant) {
        let (bytes, messages) = self.room();
        assert!(
            credit.outstanding_bytes() <= bytes,
            "credit covers branches"
        );
        assert!(credit.outstanding_messages() <= messages);
        let open = |place: &&Place| matches!(place, Place::Open(_));
        let owed: usize = self.branches.iter().map(|branch| branch.open.len()).sum();
        assert_eq!(owed, self.window.iter().filter(open).count());
        assert!(self.window.front().is_none_or(|place| open(&place)));
        assert!(self.window.len() <= limits::IN_FLIGHT_MESSAGES_MAX as usize);
    }
}

impl Shard {
    /// Whether all partitions of a destination are this shard's.
    pub(super) fn owns_all_of(&self, destination: DestinationNumber) -> bool {
        let partitions = self.catalog.entry(destination).shape.partitions;
        let own = self.config.shard;
        (self.mesh.placement.owners(destination, partitions)).all(|owner| owner == own)
    }

    /// Opens a front, and begins to attach its branches: the home first, which decides
    /// who the producer is.
    pub(super) fn open_front(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        open: &OpenProducer<'_>,
        destination: DestinationNumber,
    ) -> Result<(), Rejection> {
        let partitions = self.catalog.entry(destination).shape.partitions;
        let owners = self.mesh.placement.owners(destination, partitions);
        let fan = Fan {
            stage: Stage::Opening {
                request,
                missing: 1,
                again: open.again.is_some(),
                waits: open.access == Access::Taking,
            },
            branches: owners.map(Branch::at).collect(),
            window: VecDeque::new(),
            first: 0,
        };
        let home = fan.branches[0].shard;
        let principal = self.principal(link);
        let front = self.front(link, open.session, destination, open.name, fan)?;
        if let Some(producer) = self.producers.get_mut(front) {
            producer.identity.access = open.access.once_attached();
        }
        let attach = records::Attach {
            destination: destination.0.into(),
            principal: principal.number().into(),
            producer: open.again.map_or(0, |id| id.0).into(),
            again: u8::from(open.again.is_some()),
            access: open.access as u8,
            asked: now.monotonic.0.into(),
            ..records::Attach::default()
        };
        self.ask_to_attach(now, home, front, &attach);
        Ok(())
    }

    fn ask_to_attach(
        &mut self,
        now: Now,
        shard: ShardIndex,
        front: Handle,
        attach: &records::Attach,
    ) {
        if shard != self.config.shard {
            let head = about(request::ATTACH, front);
            return self.request_of(shard, &head, &[attach.as_bytes()]);
        }
        self.attach_or_wait(now, shard, front, attach);
    }

    /// A branch is attached. After the home's the others are asked, then the client is
    /// answered.
    pub(super) fn attached_branch(
        &mut self,
        now: Now,
        shard: ShardIndex,
        front: Handle,
        attached: &records::Attached,
    ) {
        let handle = Handle(attached.handle.get());
        let Some(producer) = self.producers.get_mut(front) else {
            // The link went in the meantime, and perhaps nobody knows who this was.
            return self.detach_branch(now, shard, handle, 0);
        };
        let Some(fan) = producer.fan_mut() else {
            return;
        };
        let Some(branch) = fan.branch_at(shard) else {
            return;
        };
        branch.handle = Some(handle);
        branch.granted_bytes = attached.bytes.get();
        branch.granted_messages = attached.messages.get();
        if producer.ended.is_some() {
            // Its destination has gone. The request is refused in this turn, and then all
            // branches that are known leave.
            return;
        }
        let Some(fan) = producer.fan_mut() else {
            return;
        };
        let Stage::Opening {
            request,
            missing,
            again,
            ..
        } = &mut fan.stage
        else {
            return;
        };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let (request, again) = (*request, *again);
        // The home says so, and the others after it.
        producer.identity.id = ProducerId(attached.producer.get());
        producer.identity.epoch = Epoch(attached.epoch.get());
        let Some(fan) = producer.fan_mut() else {
            return;
        };
        let unasked: Vec<ShardIndex> = (fan.branches.iter())
            .filter(|branch| branch.handle.is_none())
            .map(|branch| branch.shard)
            .collect();
        if unasked.is_empty() {
            fan.stage = Stage::Open;
            return self.opened_front(now, front, request);
        }
        fan.stage = Stage::Opening {
            request,
            missing: unasked.len(),
            again,
            waits: false,
        };
        let attach = records::Attach {
            destination: producer.identity.destination.0.into(),
            principal: producer.identity.principal.number().into(),
            producer: attached.producer,
            epoch: attached.epoch,
            again: u8::from(again),
            access: producer.identity.access as u8,
            ..records::Attach::default()
        };
        for shard in unasked {
            self.ask_to_attach(now, shard, front, &attach);
        }
    }

    /// All branches of a front are attached: its client is told.
    fn opened_front(&mut self, now: Now, front: Handle, request: RequestId) {
        self.grant(front);
        let Some(producer) = self.producers.get(front) else {
            return;
        };
        let partitions = self.partitions_of(producer.identity.destination);
        let (link, opened) = (producer.link, producer.opened(front, partitions));
        let session = producer.session;
        if let Err(fault) = self.answer(now, link, request.0, &opened, &[]) {
            return self.fault(now, link, &fault);
        }
        if self.is_closing_session(session) {
            self.close_with_session(front, session);
        }
    }

    /// A branch is not to be had: the producer is not opened, and those that were
    /// attached go.
    pub(super) fn refused_branch(&mut self, now: Now, front: Handle, fault: &Fault) {
        let Some(producer) = self.producers.get(front) else {
            return;
        };
        let link = producer.link;
        let Some(Stage::Opening { request, again, .. }) = producer.fan().map(|fan| fan.stage)
        else {
            return;
        };
        // One that is not known from before is to be forgotten again.
        self.remove_producer(now, front, !again);
        if let Err(fault) = self.refuse(now, link, request, fault) {
            self.fault(now, link, &fault);
        }
    }

    /// A front that is being opened is not wanted any more: its client is told so at once,
    /// and the handle stays until every branch that was asked for has gone, or never was.
    pub(super) fn withdraw_front(&mut self, now: Now, front: Handle, fault: &Fault) {
        let Some(producer) = self.producers.get_mut(front) else {
            return;
        };
        let link = producer.link;
        let Some(fan) = producer.fan_mut() else {
            return;
        };
        let Stage::Opening { request, again, .. } = fan.stage else {
            return;
        };
        let asked = fan.asked();
        fan.stage = Stage::Closing {
            missing: asked.len(),
        };
        producer.close_quietly();
        // One that is known from before stays so.
        let flags = detach::ANSWERED | if again { 0 } else { detach::CLOSED };
        for (shard, branch) in asked {
            match branch {
                Some(branch) => self.detach_branch(now, shard, branch, flags),
                None => self.detach_branch(now, shard, front, flags | detach::UNHEARD),
            }
        }
        if let Err(fault) = self.refuse(now, link, request, fault) {
            self.fault(now, link, &fault);
        }
    }

    /// A message goes to the branch that owns its partition. Its credit is checked.
    #[cold]
    pub(super) fn forward(
        &mut self,
        now: Now,
        header: &MessageHeader,
        bytes: Bytes<'_>,
    ) -> Result<(), Fault> {
        let front = Handle(header.handle.get());
        let size = bytes.size();
        let own = self.config.shard;
        let Some(producer) = self.producers.get_mut(front) else {
            return Ok(());
        };
        let identity = &producer.identity;
        let is_its_own = header.producer.get() == identity.id.0
            && (1..=identity.epoch.0).contains(&header.epoch.get());
        let partition = header.partition.get();
        // If it was deleted, whichever branch gets it refuses it.
        let destination = self.catalog.get(identity.destination);
        let partitions = destination.map_or(u32::MAX, |entry| entry.shape.partitions);
        let open = producer
            .fan_mut()
            .filter(|fan| is_its_own && partition < partitions && fan.stage == Stage::Open);
        let Some(fan) = open else {
            let fault = foreign(producer, header);
            return self.give_up(bytes, fault);
        };
        let index = partition as usize % fan.branches.len();
        let (shard, handle) = (fan.branches[index].shard, fan.branches[index].handle);
        let handle = handle.expect("an open fan has its branches attached");
        fan.forwarded(index, header.sequence.get(), size);
        producer.credit.received(size);
        self.reserved -= size as u64;
        if shard == own {
            let header = MessageHeader {
                handle: handle.0.into(),
                ..*header
            };
            self.send_on(now, link_to(own), &header, bytes)?;
            self.report_outcomes(now, handle);
            return Ok(());
        }
        let handle = U32::new(handle.0);
        let head = about(request::FRAMES, Handle(0));
        match bytes {
            Bytes::Whole(frame) if frame.len() <= BODY_MAX => {
                let parts = [&frame[..8], handle.as_bytes(), &frame[12..]];
                self.request_of(shard, &head, &parts);
            }
            Bytes::Whole(frame) => {
                let frame = [&frame[..8], handle.as_bytes(), &frame[12..]].concat();
                self.request_in_parts(shard, &frame);
            }
            Bytes::Chained(first, size) => {
                let (mut chunk, mut left) = (first, size);
                self.arena.bytes_mut(first)[8..12].copy_from_slice(handle.as_bytes());
                let mut part = vec![0; CHUNK];
                while left > 0 {
                    let length = left.min(CHUNK);
                    part[..length].copy_from_slice(&self.arena.bytes(chunk)[..length]);
                    self.request_in_parts(shard, &part[..length]);
                    chunk = self.arena.next(chunk);
                    left -= length;
                }
                self.arena.give_chain(first);
            }
        }
        Ok(())
    }

    fn request_in_parts(&mut self, shard: ShardIndex, bytes: &[u8]) {
        let head = about(request::PART, Handle(0));
        for part in bytes.chunks(BODY_MAX) {
            self.request_of(shard, &head, &[part]);
        }
    }

    /// What became of sends to a branch of the front.
    pub(super) fn settled_branch(&mut self, shard: ShardIndex, front: Handle, runs: &[u8]) {
        let Some(producer) = self.producers.get_mut(front) else {
            return;
        };
        let Some(mut role) = producer.role.take() else {
            return;
        };
        let Role::Front(fan) = &mut *role else {
            return;
        };
        for run in runs.chunks_exact(size_of::<CompletionRun>()) {
            let run = CompletionRun::ref_from_bytes(run).expect("a run has the size of a run");
            fan.settle(shard, run);
        }
        let mut first = false;
        while let Some(run) = fan.pop() {
            first |= producer.complete(run);
        }
        let closes = producer.is_closing() && fan.is_settled();
        producer.role = Some(role);
        if first {
            self.completing.push(front);
        } else if closes {
            self.mark_completing(front);
        }
    }

    /// A branch was granted more.
    pub(super) fn granted_branch(
        &mut self,
        now: Now,
        shard: ShardIndex,
        front: Handle,
        grant: &records::Grant,
    ) {
        let Some(producer) = self.producers.get_mut(front) else {
            return;
        };
        let Some(branch) = producer.fan_mut().and_then(|fan| fan.branch_at(shard)) else {
            return;
        };
        branch.granted_bytes = branch.granted_bytes.max(grant.bytes.get());
        branch.granted_messages = branch.granted_messages.max(grant.messages.get());
        let is_open = producer.fan().is_some_and(|fan| fan.stage == Stage::Open);
        if is_open && producer.credit.is_low() {
            self.renew(now, front);
        }
    }

    /// Has every branch asked for the credit that the front wants for its next frame.
    pub(super) fn want_of_branches(&mut self, now: Now, front: Handle, wanted: u64) {
        let Some(fan) = self.producers.get_mut(front).and_then(Producer::fan_mut) else {
            return;
        };
        let mut asked = Vec::new();
        for branch in &mut fan.branches {
            let until = branch.forwarded_bytes + wanted;
            if let Some(handle) = branch.handle
                && branch.granted_bytes < until
                && branch.wanted_bytes < until
            {
                branch.wanted_bytes = until;
                asked.push((branch.shard, handle));
            }
        }
        for (shard, handle) in asked {
            if shard == self.config.shard {
                self.want_on_branch(now, handle, wanted);
            } else {
                let want = records::Want {
                    bytes: wanted.into(),
                };
                self.request_of(shard, &about(request::WANT, handle), &[want.as_bytes()]);
            }
        }
    }

    /// Everything of a front that is to be closed has left: its branches go. Whether it
    /// can be answered now.
    pub(super) fn close_branches(&mut self, now: Now, front: Handle) -> bool {
        let Some(fan) = self.producers.get_mut(front).and_then(Producer::fan_mut) else {
            return true;
        };
        match fan.stage {
            Stage::Closing { missing } => missing == 0,
            Stage::Opening { .. } | Stage::Open => {
                let branches = fan.attached();
                fan.stage = Stage::Closing {
                    missing: branches.len(),
                };
                for (shard, handle) in branches {
                    self.detach_branch(now, shard, handle, detach::CLOSED);
                }
                false
            }
        }
    }

    /// A branch has gone, behind all its outcomes.
    pub(super) fn detached_branch(&mut self, front: Handle) {
        let Some(fan) = self.producers.get_mut(front).and_then(Producer::fan_mut) else {
            return;
        };
        if let Stage::Closing { missing } = &mut fan.stage {
            *missing -= 1;
            if *missing == 0 {
                self.mark_completing(front);
            }
        }
    }

    /// The front ends without waiting for anything: so do its branches.
    pub(super) fn drop_branches(&mut self, now: Now, fan: &Fan, front: Handle, clean: bool) {
        if matches!(fan.stage, Stage::Closing { .. }) {
            return;
        }
        let flags = if clean { detach::CLOSED } else { 0 };
        let skipped = usize::from(Planted::KeepBranch.is_awake());
        for (shard, handle) in fan.attached().into_iter().skip(skipped) {
            self.detach_branch(now, shard, handle, flags);
        }
        if !fan.is_opening() {
            return;
        }
        // What is on its way to a front that is gone would come too late: until then the
        // branch would be in the way of whoever comes next.
        let own = self.config.shard;
        for branch in fan.branches.iter().filter(|it| it.handle.is_none()) {
            if branch.shard == own {
                self.forget_taker(Origin { shard: own, front });
            } else {
                self.detach_branch(now, branch.shard, front, flags | detach::UNHEARD);
            }
        }
    }

    fn detach_branch(&mut self, now: Now, shard: ShardIndex, handle: Handle, flags: u8) {
        if shard == self.config.shard {
            return self.end_branch(now, shard, handle, flags);
        }
        let head = Head {
            flags,
            ..about(request::DETACH, handle)
        };
        self.request_of(shard, &head, &[]);
    }
}

impl Fan {
    /// Whether its client is still to be answered.
    pub(super) fn owes(&self) -> bool {
        self.stage != Stage::Open || !self.is_settled()
    }

    /// Whether its client still waits for it to be opened.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening { .. })
    }

    /// Whether its client waits under this request.
    pub(super) fn is_opening_for(&self, wanted: RequestId) -> bool {
        matches!(self.stage, Stage::Opening { request, .. } if request == wanted)
    }

    /// Whether its client may have to wait until others are gone.
    pub(super) fn may_wait(&self) -> bool {
        matches!(self.stage, Stage::Opening { waits: true, .. })
    }

    /// Where branches were asked for: the home's first, and the others once that is
    /// there.
    fn asked(&self) -> Vec<(ShardIndex, Option<Handle>)> {
        let is_home_there = self.branches[0].handle.is_some();
        let count = if is_home_there {
            self.branches.len()
        } else {
            1
        };
        let asked = self.branches.iter().take(count);
        asked.map(|branch| (branch.shard, branch.handle)).collect()
    }

    fn attached(&self) -> Vec<(ShardIndex, Handle)> {
        (self.branches.iter())
            .filter_map(|branch| Some((branch.shard, branch.handle?)))
            .collect()
    }
}

/// The head of a record about a handle of the reader's.
pub(super) fn about(kind: u8, subject: Handle) -> Head {
    Head {
        kind,
        subject: subject.0.into(),
        ..Head::default()
    }
}

impl Producer {
    /// What a client is told about a producer that is open.
    pub(super) fn opened(&self, handle: Handle, partitions: u32) -> ProducerOpened {
        ProducerOpened {
            handle: handle.0.into(),
            epoch: self.identity.epoch.0.into(),
            producer: self.identity.id.0.into(),
            partitions: partitions.into(),
            window: limits::IN_FLIGHT_MESSAGES_MAX.into(),
            bytes: self.credit.bytes().into(),
            messages: self.credit.messages().into(),
        }
    }
}
