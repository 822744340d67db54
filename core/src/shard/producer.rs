//! Producers: from their opening to their end, and the completions of their sends.
//!
//! What a producer may send is in `credit`, what becomes of it in `send`.
//!
//! A partition of this shard answers at once, so outcomes come into being in the
//! order of the sends, and the window towards the producer is this list of runs.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::branch::Origin;
use super::credit::Grant;
use super::durable::Attached;
use super::fan::Fan;
use super::identity::{Access, Attachment, Identity};
use super::remembered::Place;
use super::taker::AttachHere;
use super::{Fault, LinkState, Rejection, Shard};
use crate::auth::Operation;
use crate::auth::Principal;
use crate::catalog::Wanted;
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::MessageHeader;
use crate::frame::control::{Batch, Closed, CompletionRun, Completions};
use crate::id::{BatchNumber, DestinationNumber, Handle, ProducerId, RequestId};
use crate::name::Destination;
use crate::planted::Planted;
use crate::time::Now;

/// The most runs of one frame of completions.
const RUNS_PER_FRAME: usize = 256;

#[derive(Debug)]
pub(super) struct Producer {
    pub(super) link: Handle,
    pub(super) session: Handle,
    pub(super) identity: Identity,
    /// Whether this is where the identity is known to be. Not if it was closed, nor
    /// if a later handle took it and left a husk: then this one is fenced.
    pub(super) known: bool,
    /// What it is beside its link, if partitions of its destination are elsewhere.
    pub(super) role: Option<Box<Role>>,
    /// Its client is told of it under this request, once it is durable that it is there.
    pub(super) opening: Option<RequestId>,
    /// Why the broker ended it, if it did: then it is only a husk.
    pub(super) ended: Option<Refusal>,
    pub(super) credit: Grant,
    /// Outcomes that were not written yet.
    runs: VecDeque<CompletionRun>,
    /// Those behind them that may not be written before a batch of the journal is
    /// durable, or before one in front of them may.
    held: VecDeque<(BatchNumber, CompletionRun)>,
    completing: bool,
    /// It ends once all its outcomes are written.
    closing: Option<Closing>,
    /// What is left of an announced batch: messages, bytes.
    batch: Option<(u32, u32)>,
    #[cfg(planted = "core")]
    planted: u64,
    #[cfg(planted = "core")]
    swapped: Option<CompletionRun>,
}

/// How a producer ends that is to be closed.
#[derive(Clone, Copy, Debug)]
struct Closing {
    /// What its end answers, if it was asked for by itself.
    request: Option<RequestId>,
}

/// One side of a producer that spans shards.
#[derive(Debug)]
pub(super) enum Role {
    /// Stands towards the client.
    Front(Fan),
    /// Stands where some of the partitions are.
    Branch(Origin),
}

impl Producer {
    fn new(link: Handle, session: Handle, identity: Identity) -> Self {
        Self {
            link,
            session,
            identity,
            known: true,
            role: None,
            opening: None,
            ended: None,
            credit: Grant::default(),
            runs: VecDeque::new(),
            held: VecDeque::new(),
            completing: false,
            closing: None,
            batch: None,
            #[cfg(planted = "core")]
            planted: 0,
            #[cfg(planted = "core")]
            swapped: None,
        }
    }

    /// A message of `size` bytes is the next of the batch that was announced, if one was.
    #[inline]
    pub(super) fn batch_goes_on(&mut self, size: usize) -> Result<(), Fault> {
        let Some((messages, bytes)) = &mut self.batch else {
            return Ok(());
        };
        *messages -= 1;
        match bytes.checked_sub(u32::try_from(size).unwrap_or(u32::MAX)) {
            Some(rest) if (rest == 0) == (*messages == 0) => *bytes = rest,
            _ => {
                return Err(Fault::new(
                    Refusal::Unexpected,
                    "a batch is not what it announced",
                ));
            }
        }
        if *messages == 0 {
            self.batch = None;
        }
        Ok(())
    }

    /// Whether a message of it means nothing but itself: nothing was announced, and
    /// it is neither fenced nor closing.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.known && self.batch.is_none() && self.closing.is_none()
    }

    /// Whether messages may come for it on `link`.
    #[inline]
    pub(super) fn is_open_on(&self, link: Handle) -> bool {
        self.link == link && self.closing.is_none()
    }

    /// Adds outcomes behind those that wait; consecutive ones share a run. Returns
    /// whether they are the first that wait.
    #[inline]
    pub(super) fn complete(&mut self, run: CompletionRun) -> bool {
        if !self.held.is_empty() {
            self.hold(BatchNumber(0), run);
            return false;
        }
        self.complete_now(run)
    }

    /// As [`Producer::complete`], where no journal holds anything.
    #[inline]
    pub(super) fn complete_now(&mut self, run: CompletionRun) -> bool {
        self.wait(run);
        !core::mem::replace(&mut self.completing, true)
    }

    /// Adds outcomes that may be told once `batch` is durable. Returns whether none was
    /// held before.
    pub(super) fn complete_with(&mut self, batch: BatchNumber, run: CompletionRun) -> bool {
        let is_first = self.held.is_empty();
        self.hold(batch, run);
        is_first
    }

    fn hold(&mut self, batch: BatchNumber, run: CompletionRun) {
        match self.held.back_mut() {
            Some((last, before)) if *last == batch && is_continued(before, &run) => {
                before.count.set(before.count.get() + run.count.get());
            }
            _ => self.held.push_back((batch, run)),
        }
    }

    /// All batches up to `durable` are. Returns whether outcomes wait to be written, and
    /// none did before.
    pub(super) fn release(&mut self, durable: BatchNumber) -> bool {
        let mut is_any = false;
        while let Some((batch, run)) = self.held.front()
            && *batch <= durable
        {
            let run = *run;
            self.held.pop_front();
            self.wait(run);
            is_any = true;
        }
        // One that is closing waits for the last of them.
        (is_any || self.closing.is_some()) && !core::mem::replace(&mut self.completing, true)
    }

    /// Nothing will be durable any more: what waits for that has failed, and it is not
    /// known whether it is kept. Returns as [`Producer::release`] does.
    pub(super) fn give_up_flushes(&mut self, refusal: Refusal) -> bool {
        for (batch, run) in &mut self.held {
            if *batch > BatchNumber(0) {
                run.refusal = refusal.code().into();
                run.durability = 0;
            }
        }
        self.release(BatchNumber::MAX)
    }

    /// Whether a send that is not the next one is where it goes on in this run.
    #[cold]
    pub(super) fn goes_on_with(&mut self, header: &MessageHeader) -> bool {
        let (partition, sequence) = (header.partition.get(), header.sequence.get());
        self.known
            && header.producer.get() == self.identity.id.0
            && (1..=self.identity.epoch.0).contains(&header.epoch.get())
            && (self.identity).goes_on_with(partition, header.partition_sequence.get(), sequence)
    }

    /// Whether it has outcomes that may not be told.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Its branches, if it is a front.
    pub(super) fn fan(&self) -> Option<&Fan> {
        match self.role.as_deref() {
            Some(Role::Front(fan)) => Some(fan),
            _ => None,
        }
    }

    /// Its branches, if it is a front.
    pub(super) fn fan_mut(&mut self) -> Option<&mut Fan> {
        match self.role.as_deref_mut() {
            Some(Role::Front(fan)) => Some(fan),
            _ => None,
        }
    }

    /// Its front, if it is a branch.
    pub(super) fn origin(&self) -> Option<Origin> {
        match self.role.as_deref() {
            Some(Role::Branch(origin)) => Some(*origin),
            _ => None,
        }
    }

    /// Whether its client is still to be answered.
    pub(super) fn owes(&self) -> bool {
        !self.runs.is_empty()
            || self.holds()
            || self.closing.is_some()
            || self.opening.is_some()
            || self.fan().is_some_and(Fan::owes)
    }

    /// Whether its end was asked for.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// It ends as soon as it can, and nobody is told.
    pub(super) fn close_quietly(&mut self) {
        self.closing = Some(Closing { request: None });
    }

    /// Takes the outcomes that wait.
    pub(super) fn take_runs(&mut self) -> VecDeque<CompletionRun> {
        core::mem::take(&mut self.runs)
    }

    /// Gives back the memory of what was taken.
    pub(super) fn give_back_runs(&mut self, mut runs: VecDeque<CompletionRun>) {
        if self.runs.is_empty() {
            runs.clear();
            self.runs = runs;
        }
    }

    #[inline]
    fn wait(&mut self, run: CompletionRun) {
        #[cfg(planted = "core")]
        if self.is_led_astray(run) {
            return;
        }
        match self.runs.back_mut() {
            Some(last) if is_continued(last, &run) => {
                last.count.set(last.count.get() + run.count.get());
            }
            _ => self.runs.push_back(run),
        }
        #[cfg(planted = "core")]
        self.runs.extend(self.swapped.take());
    }

    /// Has happen to every tenth outcome what is planted; whether that is all.
    #[cfg(planted = "core")]
    fn is_led_astray(&mut self, run: CompletionRun) -> bool {
        self.planted += 1;
        if !self.planted.is_multiple_of(10) {
            return false;
        }
        if Planted::DuplicateCompletion.is_awake() {
            self.runs.push_back(run);
        }
        self.swapped = Some(run).filter(|_| Planted::SwapCompletions.is_awake());
        self.swapped.is_some() || Planted::DropCompletion.is_awake()
    }
}

/// Whether the two are consecutive sends with one outcome; refused ones have no
/// places that would have to be consecutive too.
#[inline]
fn is_continued(last: &CompletionRun, run: &CompletionRun) -> bool {
    let count = u64::from(last.count.get());
    // A client chooses its sequences: there may be none behind the last one.
    last.sequence.get().wrapping_add(count) == run.sequence.get()
        && last.partition == run.partition
        && last.refusal == run.refusal
        && last.durability == run.durability
        && (last.refusal.get() != 0
            || last.offset.get() + count == run.offset.get() && last.append_time == run.append_time)
}

/// What a producer is opened with.
pub(super) struct OpenProducer<'a> {
    pub(super) session: Handle,
    pub(super) destination: &'a Destination,
    pub(super) wanted: Wanted,
    pub(super) name: &'a str,
    pub(super) access: Access,
    /// Who attaches again, if it is not a new producer.
    pub(super) again: Option<ProducerId>,
}

impl Shard {
    pub(super) fn open_producer(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        open: &OpenProducer<'_>,
    ) -> Result<(), Rejection> {
        if open.again.is_some() && self.catalog.find(open.destination).is_none() {
            return Err(Refusal::NotFound.into());
        }
        let destination = self.resolve(link, open.destination, open.wanted, Operation::Produce)?;
        if !self.owns_all_of(destination) {
            return self.open_front(now, link, request, open, destination);
        }
        let attach = AttachHere {
            destination,
            session: open.session,
            name: open.name,
            access: open.access,
            again: open.again,
        };
        self.attach_here(now, (link, request), &attach)
    }

    /// Attaches a producer, which may be, to a link whose shard has all partitions.
    pub(super) fn attach_on_link(
        &mut self,
        now: Now,
        (link, request): (Handle, RequestId),
        attach: &AttachHere<'_>,
    ) -> Result<(), Rejection> {
        let destination = attach.destination;
        let principal = self.principal(link);
        let identity = match attach.again {
            None => self.new_identity(principal, destination, attach.name),
            Some(id) => {
                let asked = Attachment::Asked(now.monotonic);
                self.taken_identity(id, asked, principal, destination)
            }
        }
        .map_err(Rejection::Request)?;
        let identity = self.take_access(identity, attach.access);
        let handle = self
            .put_on_link(link, attach.session, None, identity)
            .map_err(Rejection::Request)?;
        if let Some(producer) = self.producers.get_mut(handle) {
            producer.opening = Some(request);
        }
        self.once_durable(now, Attached::OnLink(handle));
        Ok(())
    }

    /// It is durable that a producer is there: its client is told.
    pub(super) fn opened_on_link(&mut self, now: Now, handle: Handle) {
        self.grant(handle);
        let Some(producer) = self.producers.get_mut(handle) else {
            return;
        };
        let Some(request) = producer.opening.take() else {
            return;
        };
        let (link, session) = (producer.link, producer.session);
        let destination = producer.identity.destination;
        let partitions = self.partitions_of(destination);
        let Some(producer) = self.producers.get(handle) else {
            return;
        };
        let opened = producer.opened(handle, partitions);
        if let Err(fault) = self.answer(now, link, request.0, &opened, &[]) {
            return self.fault(now, link, &fault);
        }
        if self.is_closing_session(session) {
            self.close_with_session(handle, session);
        }
    }

    /// It ended before its client was told of it: it is not opened.
    pub(super) fn refused_on_link(&mut self, now: Now, handle: Handle, fault: &Fault) {
        let Some(producer) = self.producers.get(handle) else {
            return;
        };
        let (link, opening) = (producer.link, producer.opening);
        let is_new = producer.identity.is_new();
        self.remove_producer(now, handle, is_new);
        if let Some(request) = opening
            && let Err(fault) = self.refuse(now, link, request, fault)
        {
            self.fault(now, link, &fault);
        }
    }

    /// Whether a producer may be attached beside those that are. Asked at the home.
    pub(super) fn may_attach(
        &self,
        destination: DestinationNumber,
        access: Access,
        again: Option<ProducerId>,
    ) -> Result<(), Fault> {
        let local = &self.locals[destination];
        let place = again.and_then(|id| self.remembered.place(id));
        let (is_attached, known) = match place {
            Some(Place::Attached(handle)) => {
                (true, self.producers.get(handle).map(|it| &it.identity))
            }
            Some(Place::Detached(number)) => (false, self.remembered.detached(number)),
            None => (false, None),
        };
        // One of another destination is nobody here; that it may not come over is said later.
        let known = known.filter(|known| known.destination == destination);
        if known.is_some_and(|known| known.term < local.term) {
            return Err(Fault::new(
                Refusal::Fenced,
                "another producer has had the destination alone since",
            ));
        }
        let others = local.producers - u32::from(is_attached && known.is_some());
        let refused = match access {
            Access::Exclusive | Access::Taking if others > 0 => {
                Some("other producers are attached")
            }
            Access::Shared
                if others > 0
                    && local.exclusive.is_some()
                    && !Planted::ShareWhatIsTaken.is_awake() =>
            {
                Some("an exclusive producer is attached")
            }
            _ => None,
        };
        refused.map_or(Ok(()), |text| Err(Fault::new(Refusal::Exclusive, text)))
    }

    /// A producer is about to be attached; if it has its destination alone from here
    /// on, nobody who was attached before ever is again.
    pub(super) fn take_access(&mut self, mut identity: Identity, access: Access) -> Identity {
        let local = &mut self.locals[identity.destination];
        identity.access = access.once_attached();
        if identity.access == Access::Exclusive {
            local.exclusive = Some(identity.id);
            local.term += u32::from(!Planted::ForgetTenure.is_awake());
        }
        identity.term = local.term;
        identity
    }

    /// A producer that was to be attached is not.
    fn give_up_access(&mut self, identity: &Identity) {
        let local = &mut self.locals[identity.destination];
        local.exclusive.take_if(|holder| *holder == identity.id);
    }

    pub(super) fn partitions_of(&self, destination: DestinationNumber) -> u32 {
        self.catalog.entry(destination).shape.partitions
    }

    /// Who a new producer is.
    pub(super) fn new_identity(
        &mut self,
        principal: Principal,
        destination: DestinationNumber,
        name: &str,
    ) -> Result<Identity, Fault> {
        self.has_room_for_producer(destination)?;
        self.has_room_in_journal()?;
        let partitions = self.locals[destination].partitions.len();
        if !self.remembered.reserve_handle(self.producers.len()) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let id = self
            .remembered
            .issue(partitions, name.len())
            .ok_or(Refusal::ResourceAllocation)?;
        self.reserve_ids();
        Ok(Identity::new(id, principal, destination, partitions, name))
    }

    /// A producer whose link broke, or will have, goes on under another handle, in
    /// the incarnation that its home decided or, here, the next one. The handle that
    /// it had, if it is still there, keeps a husk and is fenced.
    pub(super) fn taken_identity(
        &mut self,
        id: ProducerId,
        attachment: Attachment,
        principal: Principal,
        destination: DestinationNumber,
    ) -> Result<Identity, Fault> {
        self.has_room_in_journal()?;
        let place = self.remembered.place(id).ok_or(Refusal::Fenced)?;
        let known = match place {
            Place::Attached(handle) => self.producers.get(handle).map(|it| &it.identity),
            Place::Detached(number) => self.remembered.detached(number),
        };
        let known = known
            .filter(|known| known.principal == principal && known.may_attach(attachment))
            .ok_or(Refusal::Fenced)?;
        if known.destination != destination {
            return Err(Refusal::PreconditionFailed.into());
        }
        if matches!(place, Place::Detached(_)) {
            self.has_room_for_producer(destination)?;
        }
        if !self.remembered.reserve_handle(self.producers.len()) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let identity = match place {
            Place::Attached(handle) => {
                self.count_out(handle);
                self.producers.get_mut(handle).map(|old| {
                    old.known = false;
                    old.ended = Some(Refusal::Fenced);
                    let husk = old.identity.husk();
                    core::mem::replace(&mut old.identity, husk)
                })
            }
            Place::Detached(number) => self.remembered.take(number),
        };
        let mut identity = identity.ok_or(Refusal::Fenced)?;
        identity.attach(attachment);
        self.counters.add(Counter::ProducersResumed, 1);
        Ok(identity)
    }

    /// A handle on `link`, or towards the front at `origin`, for a producer. If there
    /// are too many handles, it stays known without one.
    pub(super) fn put_on_link(
        &mut self,
        link: Handle,
        session: Handle,
        origin: Option<Origin>,
        identity: Identity,
    ) -> Result<Handle, Fault> {
        let (id, destination) = (identity.id, identity.destination);
        let is_new = identity.is_new();
        let producer = Producer::new(link, session, identity);
        let role = origin.map(|origin| Box::new(Role::Branch(origin)));
        let producer = Producer { role, ..producer };
        let handle = match self.producers.insert(producer) {
            Ok(handle) => handle,
            Err(Producer { identity, .. }) if is_new => {
                self.give_up_access(&identity);
                self.remembered.forget(&identity);
                return Err(Refusal::ResourceAllocation.into());
            }
            Err(Producer { identity, .. }) => {
                self.give_up_access(&identity);
                self.remembered.detach(identity);
                return Err(Refusal::ResourceAllocation.into());
            }
        };
        self.remembered.attached(id, handle);
        self.journal_attached(handle);
        let forgotten = self.remembered.forgotten();
        self.counters.set(Counter::ProducersForgotten, forgotten);
        if self.counts(self.producers.get(handle)) {
            self.local_mut(destination).producers += 1;
        }
        if let Some(entry) = self.links.get_mut(link) {
            entry.producers.push(handle);
        }
        self.session_holds(link, session);
        Ok(handle)
    }

    /// A front on `link`: what stands there for branches, and is not known itself.
    pub(super) fn front(
        &mut self,
        link: Handle,
        session: Handle,
        destination: DestinationNumber,
        name: &str,
        fan: Fan,
    ) -> Result<Handle, Rejection> {
        if !self.remembered.reserve_handle(self.producers.len()) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let identity = Identity::new(ProducerId(0), self.principal(link), destination, 0, name);
        let producer = Producer {
            known: false,
            role: Some(Box::new(Role::Front(fan))),
            ..Producer::new(link, session, identity)
        };
        let handle = self
            .producers
            .insert(producer)
            .map_err(|_| Refusal::ResourceAllocation)?;
        if let Some(entry) = self.links.get_mut(link) {
            entry.producers.push(handle);
        }
        self.session_holds(link, session);
        Ok(handle)
    }

    /// The producer is to end, behind its completions; that answers a request, or is part
    /// of something larger.
    pub(super) fn close_producer(&mut self, handle: Handle, request: Option<RequestId>) {
        if let Some(producer) = self.producers.get_mut(handle) {
            producer.closing = Some(Closing { request });
            if core::mem::take(&mut producer.known) {
                let id = producer.identity.id;
                self.remembered.forget(&producer.identity);
                self.journal_forgotten(id);
            }
        }
        self.mark_completing(handle);
    }

    /// A handle ends. With `clean` its client said so, and the producer is forgotten;
    /// otherwise it is kept for a client that comes back.
    pub(super) fn remove_producer(&mut self, now: Now, handle: Handle, clean: bool) {
        self.count_out(handle);
        let Some(producer) = self.producers.remove(handle) else {
            return;
        };
        self.reserved -= producer.credit.outstanding_bytes();
        if let Some(fan) = producer.fan() {
            self.drop_branches(now, fan, handle, clean);
        }
        if let Some(link) = self.links.get_mut(producer.link) {
            link.producers.retain(|other| *other != handle);
        }
        self.session_lets_go(producer.link, producer.session);
        match (producer.known, clean) {
            (false, _) => {}
            (true, true) => {
                self.remembered.forget(&producer.identity);
                self.journal_forgotten(producer.identity.id);
            }
            (true, false) => self.remembered.detach(producer.identity),
        }
        let forgotten = self.remembered.forgotten();
        self.counters.set(Counter::ProducersForgotten, forgotten);
    }

    /// Whether a producer is one of those that its destination counts here: it is known
    /// here, and this is where it is decided who attaches.
    fn counts(&self, producer: Option<&Producer>) -> bool {
        producer.is_some_and(|producer| {
            let home = self.mesh.placement.home(producer.identity.destination);
            producer.ended.is_none()
                && producer.fan().is_none()
                && (producer.origin().is_none() || home == self.config.shard)
        })
    }

    /// A producer ends, or is about to be a husk.
    pub(super) fn count_out(&mut self, handle: Handle) {
        let producer = self.producers.get(handle);
        if self.counts(producer)
            && let Some(producer) = producer
        {
            let (id, destination) = (producer.identity.id, producer.identity.destination);
            let local = self.local_mut(destination);
            local.producers -= 1;
            local.exclusive.take_if(|holder| *holder == id);
            self.look_at_takers();
        }
    }

    /// Announces a batch: counted, and held to what it says.
    pub(super) fn batch(
        &mut self,
        link: Handle,
        handle: Handle,
        batch: &Batch,
    ) -> Result<(), Fault> {
        let producer = self
            .producers
            .get_mut(handle)
            .filter(|producer| producer.link == link)
            .ok_or_else(|| not_open(handle))?;
        let (messages, bytes) = (batch.messages.get(), batch.bytes.get());
        if messages == 0 || producer.batch.is_some() {
            return Err(Fault::new(
                Refusal::Unexpected,
                "a batch began within another, or empty",
            ));
        }
        producer.batch = Some((messages, bytes));
        self.counters.add(Counter::Batches, 1);
        self.counters
            .raise(Counter::BatchMessagesMax, messages.into());
        self.counters.raise(Counter::BatchBytesMax, bytes.into());
        Ok(())
    }

    /// Writes the outcomes of this turn, and credit where it runs low. Those without
    /// room wait for it, and come back with it.
    pub(super) fn send_completions(&mut self, now: Now) {
        let mut completing = core::mem::take(&mut self.completing);
        for handle in completing.drain(..) {
            self.send_completions_of(now, handle);
        }
        completing.append(&mut self.completing);
        self.completing = completing;
    }

    fn send_completions_of(&mut self, now: Now, handle: Handle) {
        let may_answer = self.may_answer();
        let Some(producer) = self.producers.get_mut(handle) else {
            return;
        };
        producer.completing = false;
        let mut producer = producer;
        let mut may_close = producer.closing.is_some() && !producer.holds();
        if producer.role.is_some() {
            let Some(closes) = self.complete_beyond(now, handle) else {
                return;
            };
            may_close = closes;
            let Some(again) = self.producers.get_mut(handle) else {
                return;
            };
            producer = again;
        }
        let link_handle = producer.link;
        let Some(link) = self.links.get_mut(link_handle) else {
            return;
        };
        let answers = may_close && producer.closing.is_some_and(|it| it.request.is_some());
        let has_something = !producer.runs.is_empty() || answers;
        if link.state == LinkState::Ending || !has_something {
            if may_close {
                self.remove_producer(now, handle, true);
            }
            return;
        }
        if link.egress.bytes() == 0 {
            link.progress = now.monotonic;
        }
        let opened = link
            .egress
            .open(&mut self.arena, &mut self.blocks, may_answer);
        if opened.is_err() {
            self.want_block(link_handle);
            return;
        }
        while !producer.runs.is_empty() {
            let (runs, _) = producer.runs.as_slices();
            let count = runs.len().min(RUNS_PER_FRAME);
            let runs = &runs[..count];
            let fields = Completions {
                runs: u32::try_from(count).unwrap_or(0).into(),
                ..Completions::default()
            };
            let tail = [runs.as_bytes()];
            if (link.egress)
                .control(&mut self.arena, handle.0, &fields, &tail)
                .is_err()
            {
                return self.starve(link_handle);
            }
            let messages: u64 = runs.iter().map(|run| u64::from(run.count.get())).sum();
            producer.runs.drain(..count);
            producer.credit.completed(messages);
            self.counters.add(Counter::Completions, messages);
            self.counters.add(Counter::CompletionFrames, 1);
        }
        if may_close {
            return self.answer_close(now, handle);
        }
        let low = producer.credit.is_low();
        self.mark_dirty(link_handle);
        if low {
            self.renew(now, handle);
        }
    }

    /// All outcomes of a producer are written whose end was asked for: it ends, and whoever
    /// asked is told, if there is room for that.
    #[cold]
    fn answer_close(&mut self, now: Now, handle: Handle) {
        let Some(producer) = self.producers.get(handle) else {
            return;
        };
        let (link_handle, closing) = (producer.link, producer.closing);
        if let Some(request) = closing.and_then(|it| it.request)
            && let Some(link) = self.links.get_mut(link_handle)
        {
            let closed = Closed {
                handle: handle.0.into(),
                ..Closed::default()
            };
            if (link.egress)
                .control(&mut self.arena, request.0, &closed, &[])
                .is_err()
            {
                return self.starve(link_handle);
            }
        }
        self.mark_dirty(link_handle);
        self.remove_producer(now, handle, true);
    }

    /// Passes the outcomes of a branch on; of a front, says whether it can be closed:
    /// nothing of it is on its way, and its branches, which are told to, have gone.
    #[cold]
    fn complete_beyond(&mut self, now: Now, handle: Handle) -> Option<bool> {
        let producer = self.producers.get(handle)?;
        let Some(fan) = producer.fan() else {
            self.report_outcomes(now, handle);
            return None;
        };
        let may_close = producer.is_closing() && fan.is_settled();
        Some(may_close && self.close_branches(now, handle))
    }

    /// There is room again for what a producer waits to be told.
    pub(super) fn complete_again(&mut self, handle: Handle) {
        let waits = self
            .producers
            .get(handle)
            .is_some_and(|producer| !producer.runs.is_empty() || producer.closing.is_some());
        if waits {
            self.mark_completing(handle);
        }
    }

    pub(super) fn mark_completing(&mut self, handle: Handle) {
        if let Some(producer) = self.producers.get_mut(handle)
            && !producer.completing
        {
            producer.completing = true;
            self.completing.push(handle);
        }
    }
}

#[cold]
pub(super) fn not_open(handle: Handle) -> Fault {
    Fault::new(
        Refusal::NotOpen,
        format!("no producer {handle} is open on this link"),
    )
}
