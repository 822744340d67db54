//! Branches: what this shard keeps for producers that stand on any shard.
//!
//! A branch is a producer like any other but for where its sends come from and its
//! outcomes go: not a link, but its front, here or on another shard. What it may send,
//! what is known of it and what becomes of its sends is all decided as usual, so a
//! producer is the same wherever its client is connected.

use zerocopy::{FromBytes, IntoBytes};

use super::ending::Ending;
use super::identity::{Access, Attachment, Identity};
use super::mesh::{BODY_MAX, link_to};
use super::producer::Producer;
use super::records::{self, detach, outcome};
use super::{Fault, Shard};
use crate::auth::Principal;
use crate::error::Refusal;
use crate::frame::control::{CompletionRun, Credit};
use crate::frame::decode::Message;
use crate::frame::{MESSAGE_HEADER_SIZE, MessageHeader, padded};
use crate::id::{DestinationNumber, Epoch, Handle, ProducerId, ShardIndex};
use crate::planted::Planted;
use crate::time::{Monotonic, Now};

use super::fan::about;

/// Where the front of a branch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) shard: ShardIndex,
    pub(super) front: Handle,
}

/// Runs of one record.
const RUNS_PER_RECORD: usize = BODY_MAX / size_of::<CompletionRun>();

impl Shard {
    /// Attaches the branch of a front. The home decides who the producer is and in
    /// which incarnation, the others take over what it decided.
    pub(super) fn attach_branch(
        &mut self,
        shard: ShardIndex,
        front: Handle,
        attach: &records::Attach,
    ) -> Result<records::Attached, Fault> {
        let destination = DestinationNumber(attach.destination.get());
        let principal = Principal::from_number(attach.principal.get());
        // It may have been deleted while the request was on its way.
        self.locals.get(destination).ok_or(Refusal::NotFound)?;
        let id = ProducerId(attach.producer.get());
        let decided = Some(Epoch(attach.epoch.get())).filter(|epoch| epoch.0 > 0);
        let access = Access::from_code(attach.access).ok_or(Refusal::Unsupported)?;
        if decided.is_none() {
            let again = Some(id).filter(|id| id.0 > 0);
            self.may_attach(destination, access, again)?;
        }
        let mut identity = match (id.0, attach.again, decided) {
            (0, ..) => self.new_identity(principal, destination, "")?,
            (_, 0, Some(epoch)) => self.given_identity(id, epoch, principal, destination)?,
            (_, _, decided) => {
                let asked = Attachment::Asked(Monotonic(attach.asked.get()));
                let attachment = decided.map_or(asked, Attachment::Decided);
                self.taken_identity(id, attachment, principal, destination)?
            }
        };
        if decided.is_none() {
            identity = self.take_access(identity, access);
        } else {
            identity.access = access;
            if access == Access::Exclusive {
                self.end_branches_of(destination);
            }
        }
        let origin = Origin { shard, front };
        let handle = self.put_on_link(link_to(shard), Handle(0), Some(origin), identity)?;
        self.grant(handle);
        let producer = self.producers.get(handle).ok_or(Refusal::NotOpen)?;
        Ok(records::Attached {
            handle: handle.0.into(),
            epoch: producer.identity.epoch.0.into(),
            producer: producer.identity.id.0.into(),
            bytes: producer.credit.bytes().into(),
            messages: producer.credit.messages().into(),
        })
    }

    /// The home has given a destination to one producer alone. Whoever still has a branch
    /// here has left there, and what it sent before that may be on its way here: it is
    /// not stored any more.
    fn end_branches_of(&mut self, destination: DestinationNumber) {
        let why = Ending {
            refusal: Refusal::Fenced,
            text: "another producer has the destination alone",
        };
        self.end_producers(
            |other| other.identity.destination == destination && other.known,
            why,
        );
    }

    /// A producer that the home has named, and that is new.
    fn given_identity(
        &mut self,
        id: ProducerId,
        epoch: Epoch,
        principal: Principal,
        destination: DestinationNumber,
    ) -> Result<Identity, Fault> {
        let partitions = self.locals[destination].partitions.len();
        if !self.remembered.reserve_handle(self.producers.len())
            || !self.remembered.reserve(partitions, 0)
        {
            return Err(Refusal::ResourceAllocation.into());
        }
        let mut identity = Identity::new(id, principal, destination, partitions, "");
        identity.epoch = epoch;
        Ok(identity)
    }

    /// Frames of fronts of another shard, whole and one behind the other. They were
    /// checked there.
    pub(super) fn frames(&mut self, now: Now, shard: ShardIndex, mut bytes: &[u8]) {
        let link = link_to(shard);
        while !bytes.is_empty() {
            let size = self.burst::<true>(now, link, bytes);
            if size > 0 {
                bytes = &bytes[size..];
                continue;
            }
            let (header, _) =
                MessageHeader::ref_from_prefix(bytes).expect("frames of another shard are whole");
            let length = header.length.get() as usize;
            let (frame, rest) = bytes.split_at(padded(length));
            let (properties, body) =
                frame[MESSAGE_HEADER_SIZE..length].split_at(header.property_length.get() as usize);
            let message = Message {
                header,
                properties,
                body,
                bytes: frame,
            };
            let handle = Handle(header.handle.get());
            let sent = self.message(now, link, &message);
            self.at_fault(shard, handle, sent);
            bytes = rest;
        }
    }

    /// A stretch of a frame that is longer than a record.
    pub(super) fn part(&mut self, now: Now, shard: ShardIndex, bytes: &[u8]) {
        let link = link_to(shard);
        let taken = self.take_part(now, link, bytes);
        if let Err((handle, fault)) = taken {
            self.at_fault(shard, handle, Err(fault));
        }
    }

    /// What ends a link ends that of the front.
    fn at_fault(&mut self, shard: ShardIndex, handle: Handle, sent: Result<(), Fault>) {
        let Err(fault) = sent else { return };
        if let Some(front) = self.producers.get(handle).and_then(Producer::origin) {
            let refused = refused(&fault);
            let head = about(outcome::FAULT, front.front);
            self.outcome_for(shard, &head, &[refused.as_bytes(), fault.text.as_bytes()]);
        }
    }

    /// Tells the front what became of its sends, and grants it more where that runs
    /// low.
    pub(super) fn report_outcomes(&mut self, now: Now, handle: Handle) {
        let Some(producer) = self.producers.get_mut(handle) else {
            return;
        };
        let Some(origin) = producer.origin() else {
            return;
        };
        let mut runs = producer.take_runs();
        let closing = producer.is_closing() && !producer.holds();
        let messages: u64 = runs.iter().map(|run| u64::from(run.count.get())).sum();
        producer.credit.completed(messages);
        let low = producer.credit.is_low();
        for runs in runs.make_contiguous().chunks(RUNS_PER_RECORD) {
            if origin.shard == self.config.shard {
                self.settled_branch(origin.shard, origin.front, runs.as_bytes());
            } else {
                let head = about(outcome::SETTLED, origin.front);
                self.outcome_for(origin.shard, &head, &[runs.as_bytes()]);
            }
        }
        if let Some(producer) = self.producers.get_mut(handle) {
            producer.give_back_runs(runs);
        }
        if closing {
            self.remove_producer(now, handle, true);
            self.tell_detached(origin);
        } else if low {
            self.renew(now, handle);
        }
    }

    /// Tells the front up to where it may send.
    pub(super) fn grant_to_front(&mut self, now: Now, origin: Origin, credit: Credit) {
        if Planted::LoseGrant.is_awake() && origin.shard != self.config.shard {
            return;
        }
        let grant = &records::Grant {
            bytes: credit.bytes,
            messages: credit.messages,
        };
        if origin.shard == self.config.shard {
            self.granted_branch(now, origin.shard, origin.front, grant);
        } else {
            let head = about(outcome::GRANT, origin.front);
            self.outcome_for(origin.shard, &head, &[grant.as_bytes()]);
        }
    }

    /// The front has a frame that the branch's credit does not cover.
    pub(super) fn want_on_branch(&mut self, now: Now, handle: Handle, bytes: u64) {
        if let Some(producer) = self.producers.get_mut(handle) {
            producer.credit.want(bytes);
            self.renew(now, handle);
        }
    }

    /// The front of a branch ends, or has gone. One that did not hear that it has the
    /// branch names itself.
    pub(super) fn end_branch(&mut self, now: Now, shard: ShardIndex, named: Handle, flags: u8) {
        let mut branch = Some(named);
        let origin = Origin {
            shard,
            front: named,
        };
        if flags & detach::UNHEARD != 0 {
            self.forget_taker(origin);
            let of_it = |(_, it): &(Handle, &Producer)| it.origin() == Some(origin);
            branch = self.producers.iter().find(of_it).map(|(branch, _)| branch);
        }
        match branch {
            Some(branch) if flags & detach::CLOSED != 0 => self.close_producer(branch, None),
            Some(branch) => {
                let origin = self.producers.get(branch).and_then(Producer::origin);
                self.remove_producer(now, branch, false);
                if let Some(origin) = origin.filter(|_| flags & detach::ANSWERED != 0) {
                    self.tell_detached(origin);
                }
            }
            None if flags & detach::ANSWERED != 0 => self.tell_detached(origin),
            None => {}
        }
    }

    /// Tells a front that it has no branch here any more.
    fn tell_detached(&mut self, origin: Origin) {
        if origin.shard == self.config.shard {
            return self.detached_branch(origin.front);
        }
        let head = about(outcome::DETACHED, origin.front);
        self.outcome_for(origin.shard, &head, &[]);
    }
}

/// A fault as a record.
pub(super) fn refused(fault: &Fault) -> records::Refused {
    records::Refused {
        refusal: fault.refusal.code().into(),
        ..records::Refused::default()
    }
}
