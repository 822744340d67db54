//! Requests that other shards have to be asked about first.
//!
//! ```text
//!  client ─ request ─> S ─ asks ─────────────> shard 0, or a destination's owners
//!                      | keeps the frame           |
//!  client <─ answer ── S obeys it once more <──────┘ done, or refused
//! ```
//!
//! Changes of the catalogue are decided on shard 0, and applied on every shard before
//! whoever asked hears of it: so the frame that led to the question can simply be
//! obeyed again, and finds all as it needs it. What has been asked for already is known
//! by its place among the questions of that request.
//!
//! ```text
//!  shard 0:  propose ─> decide ─> change 7 ─┬─> here
//!                                           ├─> apply 7 to shard 1 ─ applied ─┐
//!                                           └─> apply 7 to shard 2 ─ applied ─┴─> done
//! ```
//!
//! Invariants: every question is answered once by everybody who was asked; an answer
//! to a change leaves shard 0 when every shard has applied all up to it.

use core::mem::size_of;
use std::collections::VecDeque;

use zerocopy::{FromBytes, IntoBytes};

use super::branch::refused;
use super::fan::about;
use super::records::{self, outcome, request};
use super::{Fault, LinkState, Rejection, Shard};
use crate::catalog::{Change, Dispatch, PolicyChange, Request, Retention, RetentionCode, Wanted};
use crate::error::Refusal;
use crate::frame::Kind;
use crate::frame::control::Control;
use crate::id::{
    BatchNumber, CatalogVersion, DestinationNumber, Handle, ProducerId, RequestId, ShardIndex,
};
use crate::name::{Destination, DestinationKind};
use crate::time::Now;

/// The shard that decides changes of the catalogue.
const DECIDER: ShardIndex = ShardIndex(0);

/// What is asked, and whom.
#[derive(Debug)]
pub(super) struct Question {
    kind: u8,
    shards: Vec<ShardIndex>,
    body: Vec<u8>,
}

/// A request that waits for answers.
#[derive(Debug)]
pub(super) struct Deferred {
    link: Handle,
    /// The session that it names, or none.
    session: Option<Handle>,
    subject: u32,
    kind: Kind,
    /// Fields and tail of its frame.
    frame: Vec<u8>,
    /// Shards that have not answered.
    missing: usize,
    progress: Progress,
    /// The first reason not to go on.
    refused: Option<Fault>,
    /// It is answered, and keeps its place only until the others have answered.
    withdrawn: bool,
}

impl Deferred {
    /// Whether the request came on `link`.
    pub(super) fn is_of(&self, link: Handle) -> bool {
        self.link == link && !self.withdrawn
    }

    /// Whether it is of a session, which waits for its answer.
    pub(super) fn is_held_by(&self, session: Handle) -> bool {
        self.session == Some(session) && !self.withdrawn
    }

    /// Whether a producer or a consumer is to be opened, about which nobody has heard.
    fn opens(&self) -> bool {
        !self.withdrawn && matches!(self.kind, Kind::OpenProducer | Kind::OpenConsumer)
    }
}

/// How far a request that is obeyed again has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Questions that were answered.
    done: u8,
    /// Whether any of them changed anything.
    changed: bool,
}

/// Who waits for a change to be applied everywhere.
#[derive(Debug)]
struct Waiting {
    version: CatalogVersion,
    shard: ShardIndex,
    token: Handle,
    changed: bool,
}

/// What the deciding shard knows of the others.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Up to where each other shard has applied changes, in the order of the peers.
    applied: Vec<CatalogVersion>,
    waiting: VecDeque<Waiting>,
    /// A change that is decided, and applied once this batch of the journal is durable.
    decided: Option<(BatchNumber, Change, Proposer)>,
    /// What is decided behind it.
    proposals: VecDeque<(Proposer, Vec<u8>)>,
}

/// Who waits to hear what became of a proposal.
#[derive(Clone, Copy, Debug)]
struct Proposer {
    shard: ShardIndex,
    token: Handle,
}

impl Shard {
    /// Decides a request to the catalogue and carries the change out everywhere;
    /// whether there was one. `step` is its place among the questions of the request
    /// that it comes from.
    pub(super) fn change(&mut self, request: Request<'_>, step: u8) -> Result<bool, Rejection> {
        if self.shards() == 1 && !self.keeps() {
            return Ok(self.change_here(request)?.is_some());
        }
        if let Request::Open(destination, _) = request
            && self.catalog.find(destination).is_some()
        {
            // It is there, as it is wanted or not.
            self.catalog.decide(request)?;
            return Ok(false);
        }
        self.ask(step, || Question {
            kind: request::PROPOSE,
            shards: vec![DECIDER],
            body: encode(request),
        })?;
        Ok(self.progress.changed)
    }

    /// Decides a request and applies the change here.
    pub(super) fn change_here(
        &mut self,
        request: Request<'_>,
    ) -> Result<Option<Change>, Rejection> {
        let change = self.decide(request)?;
        if let Some(change) = &change {
            let version = CatalogVersion(self.catalog.version().0 + 1);
            self.apply(version, change);
        }
        Ok(change)
    }

    /// Asks a question on behalf of the request that is obeyed, unless it was answered
    /// already.
    pub(super) fn ask(
        &mut self,
        step: u8,
        question: impl FnOnce() -> Question,
    ) -> Result<(), Rejection> {
        if self.progress.done > step {
            return Ok(());
        }
        Err(Rejection::Later(question()))
    }

    /// Keeps a request until a question about it is answered.
    pub(super) fn defer(
        &mut self,
        now: Now,
        (link, subject): (Handle, u32),
        control: &Control<'_>,
        question: Question,
    ) -> Result<(), Fault> {
        let session = session_of(control).map(Handle);
        let session = session.filter(|it| self.is_session_of(link, *it));
        let deferred = Deferred {
            link,
            session,
            subject,
            kind: control.kind(),
            frame: [control.fields(), control.tail()].concat(),
            missing: question.shards.len(),
            progress: self.progress,
            refused: None,
            withdrawn: false,
        };
        let Ok(token) = self.deferred.insert(deferred) else {
            let fault = Fault::new(
                Refusal::ResourceAllocation,
                "too many requests wait for another shard",
            );
            return self.refuse(now, link, RequestId(subject), &fault);
        };
        if let Some(session) = session {
            self.session_holds(link, session);
        }
        for shard in question.shards {
            if shard == self.config.shard {
                self.answer_question(now, shard, token, question.kind, &question.body);
            } else {
                let head = about(question.kind, token);
                self.request_of(shard, &head, &[&question.body]);
            }
        }
        Ok(())
    }

    /// A client waits no longer for a producer or a consumer that it asked for: whether
    /// its request waits for other shards and is refused.
    pub(super) fn withdraw_opening(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fault: &Fault,
    ) -> bool {
        let is_it = |it: &Deferred| it.link == link && it.subject == request.0 && it.opens();
        let found = self.deferred.iter().find(|(_, it)| is_it(it));
        let Some((token, _)) = found else {
            return false;
        };
        self.withdraw(now, token, fault);
        true
    }

    /// A session closes: what it waits to have opened is refused.
    pub(super) fn withdraw_openings_of(&mut self, now: Now, link: Handle, session: Handle) {
        let is_it = |it: &Deferred| it.link == link && it.session == Some(session) && it.opens();
        let found = self.deferred.iter().filter(|(_, it)| is_it(it));
        for token in found.map(|(token, _)| token).collect::<Vec<_>>() {
            self.withdraw(now, token, &session_closes());
        }
    }

    /// Refuses a request. What was asked of others about it goes on, and so does its
    /// place among those that wait: there are no more of them under way than may be.
    fn withdraw(&mut self, now: Now, token: Handle, fault: &Fault) {
        let Some(deferred) = self.deferred.get_mut(token) else {
            return;
        };
        deferred.withdrawn = true;
        let (link, session, subject) = (deferred.link, deferred.session, deferred.subject);
        if let Some(session) = session {
            self.session_lets_go(link, session);
        }
        if let Err(fault) = self.refuse(now, link, RequestId(subject), fault) {
            self.fault(now, link, &fault);
        }
    }

    /// Whether a request is obeyed that others were asked about.
    pub(super) fn is_obeyed_again(&self) -> bool {
        self.progress.done > 0
    }

    /// Another shard, or this one, asks something.
    pub(super) fn answer_question(
        &mut self,
        now: Now,
        shard: ShardIndex,
        token: Handle,
        kind: u8,
        body: &[u8],
    ) {
        let done = match kind {
            request::PROPOSE => return self.propose(now, shard, token, body),
            request::ALONE => self
                .is_alone(DestinationNumber(u32_of(body)))
                .map(|()| false),
            request::FENCE => {
                let id = body.first_chunk().expect("an id has eight bytes");
                Ok(self.fence(ProducerId(u64::from_le_bytes(*id))))
            }
            _ => {
                let (number, force) = (DestinationNumber(u32_of(body)), body[4] != 0);
                let name = core::str::from_utf8(&body[5..]).expect("names are text");
                match self.delete_subscription(number, name, force) {
                    Ok(()) => Ok(true),
                    // Where it has no partition it may not have come to be.
                    Err(_) if kind == request::DROP_TOO => Ok(false),
                    Err(rejection) => Err(rejection),
                }
            }
        };
        self.reply(now, shard, token, done.map_err(fault_of));
    }

    /// Somebody would have the catalogue changed. What is decided is durable before any
    /// shard applies it, so that nothing durable depends on what is not.
    fn propose(&mut self, now: Now, shard: ShardIndex, token: Handle, body: &[u8]) {
        let proposer = Proposer { shard, token };
        if self.changes.decided.is_some() {
            let proposal = (proposer, body.to_vec());
            return self.changes.proposals.push_back(proposal);
        }
        let (destination, fields) = decode(body);
        match self.decide(fields.request(&destination)) {
            Ok(Some(change)) => match self.journal_change(&change) {
                Some(Ok(batch)) => self.changes.decided = Some((batch, change, proposer)),
                Some(Err(fault)) => self.reply(now, shard, token, Err(fault)),
                None => self.carry_out(now, &change, proposer),
            },
            Ok(None) => self.await_everybody(now, proposer, false),
            Err(rejection) => self.reply(now, shard, token, Err(fault_of(rejection))),
        }
    }

    /// The journal is durable up to this batch: a change that waited for it is applied,
    /// and those behind it are decided.
    pub(super) fn carry_out_decided(&mut self, now: Now, durable: BatchNumber) {
        let decided = &mut self.changes.decided;
        if let Some((_, change, proposer)) = decided.take_if(|(batch, ..)| *batch <= durable) {
            self.carry_out(now, &change, proposer);
        }
        while self.changes.decided.is_none()
            && let Some((proposer, body)) = self.changes.proposals.pop_front()
        {
            self.propose(now, proposer.shard, proposer.token, &body);
        }
    }

    /// The change that is decided and not applied yet.
    pub(super) fn decided_change(&self) -> Option<&Change> {
        let decided = self.changes.decided.as_ref();
        decided.map(|(_, change, _)| change)
    }

    /// What is decided will never be durable, nor what is decided behind it.
    pub(super) fn refuse_decided(&mut self, now: Now) {
        let decided = self.changes.decided.take().map(|(.., proposer)| proposer);
        let behind = core::mem::take(&mut self.changes.proposals);
        let behind = behind.into_iter().map(|(proposer, _)| proposer);
        for Proposer { shard, token } in decided.into_iter().chain(behind) {
            self.reply(now, shard, token, Err(Refusal::StorageFailed.into()));
        }
    }

    /// Applies a change here and has all others do so.
    fn carry_out(&mut self, now: Now, change: &Change, proposer: Proposer) {
        let version = CatalogVersion(self.catalog.version().0 + 1);
        self.apply(version, change);
        let mut bytes = version.0.to_le_bytes().to_vec();
        change.encode(&mut bytes);
        for peer in self.mesh.peers.iter_mut() {
            let head = about(request::APPLY, Handle(0));
            peer.requests.write(&mut self.arena, &head, &[&bytes]);
        }
        self.await_everybody(now, proposer, true);
    }

    /// Nobody hears of a change, not even that there is none to make, before every shard
    /// has applied what it was decided by.
    fn await_everybody(&mut self, now: Now, proposer: Proposer, changed: bool) {
        self.changes.waiting.push_back(Waiting {
            version: self.catalog.version(),
            shard: proposer.shard,
            token: proposer.token,
            changed,
        });
        self.tell_applied(now);
    }

    /// The deciding shard has a change for everybody.
    pub(super) fn apply_decided(&mut self, body: &[u8]) {
        let (version, change) = body
            .split_first_chunk::<{ size_of::<u64>() }>()
            .expect("a change has its version in front of it");
        let change = Change::decode(change).expect("a change is what was encoded");
        self.apply(CatalogVersion(u64::from_le_bytes(*version)), &change);
        self.outcome_for(DECIDER, &about(outcome::APPLIED, Handle(0)), &[version]);
    }

    /// Another shard has applied all changes up to a version.
    pub(super) fn applied(&mut self, now: Now, peer: usize, body: &[u8]) {
        let version = body.first_chunk::<{ size_of::<u64>() }>();
        let version = u64::from_le_bytes(*version.expect("it says up to which version"));
        self.changes
            .applied
            .resize(self.mesh.peers.len(), CatalogVersion(0));
        self.changes.applied[peer] = CatalogVersion(version);
        self.tell_applied(now);
    }

    /// Answers those whose changes are applied everywhere.
    fn tell_applied(&mut self, now: Now) {
        self.changes
            .applied
            .resize(self.mesh.peers.len(), CatalogVersion(0));
        let everywhere = self.changes.applied.iter().copied().min();
        while let Some(first) = self.changes.waiting.front()
            && everywhere.is_none_or(|version| version >= first.version)
            && let Some(waiting) = self.changes.waiting.pop_front()
        {
            let Waiting {
                shard,
                token,
                changed,
                ..
            } = waiting;
            self.reply(now, shard, token, Ok(changed));
        }
    }

    fn reply(&mut self, now: Now, shard: ShardIndex, token: Handle, answer: Result<bool, Fault>) {
        if shard == self.config.shard {
            return self.answered(now, token, answer);
        }
        match answer {
            Ok(changed) => {
                let head = super::mesh::Head {
                    flags: u8::from(changed),
                    ..about(outcome::DONE, token)
                };
                self.outcome_for(shard, &head, &[]);
            }
            Err(fault) => {
                let fields = refused(&fault);
                let head = about(outcome::NOT_DONE, token);
                self.outcome_for(shard, &head, &[fields.as_bytes(), fault.text.as_bytes()]);
            }
        }
    }

    /// A shard that was asked has answered: with the last answer the request is obeyed
    /// again, or refused.
    pub(super) fn answered(&mut self, now: Now, token: Handle, answer: Result<bool, Fault>) {
        let Some(deferred) = self.deferred.get_mut(token) else {
            return;
        };
        deferred.missing -= 1;
        match answer {
            Ok(changed) => deferred.progress.changed |= changed,
            Err(fault) => {
                deferred.refused.get_or_insert(fault);
            }
        }
        if deferred.missing > 0 {
            return;
        }
        let Some(deferred) = self.deferred.remove(token) else {
            return;
        };
        if deferred.withdrawn {
            return;
        }
        let Deferred { link, subject, .. } = deferred;
        if let Some(session) = deferred.session {
            self.session_lets_go(link, session);
        }
        let is_open = |link: &super::Link| matches!(link.state, LinkState::Open);
        if !self.links.get(link).is_some_and(is_open) {
            return;
        }
        let done = match deferred.refused {
            Some(fault) => self.refuse(now, link, RequestId(subject), &fault),
            None => {
                self.progress = Progress {
                    done: deferred.progress.done + 1,
                    ..deferred.progress
                };
                let control = Control::split(deferred.kind, &deferred.frame)
                    .expect("the frame was split before");
                let done = self.control(now, link, subject, &control);
                self.progress = Progress::default();
                done
            }
        };
        if let Err(fault) = done {
            self.fault(now, link, &fault);
        }
    }

    /// Has every shard asked to fence a producer; whether one of them knew it.
    pub(super) fn ask_everybody_to_fence(
        &mut self,
        id: ProducerId,
        step: u8,
    ) -> Result<bool, Rejection> {
        let shards = (0..self.shards()).map(ShardIndex).collect();
        self.ask(step, || Question {
            kind: request::FENCE,
            shards,
            body: id.0.to_le_bytes().to_vec(),
        })?;
        Ok(self.progress.changed)
    }

    /// Has a subscription deleted at its destination's home, which says whether it may
    /// be, and then everywhere else.
    pub(super) fn ask_to_delete_subscription(
        &mut self,
        number: DestinationNumber,
        name: &str,
        force: bool,
        step: u8,
    ) -> Result<(), Rejection> {
        let home = self.mesh.placement.home(number);
        let body = |force: bool| {
            let number = number.0.to_le_bytes();
            [&number[..], &[u8::from(force)], name.as_bytes()].concat()
        };
        self.ask(step, || Question {
            kind: request::DROP,
            shards: vec![home],
            body: body(force),
        })?;
        let others = (0..self.shards()).map(ShardIndex).filter(|it| *it != home);
        let others = others.collect();
        self.ask(step + 1, || Question {
            kind: request::DROP_TOO,
            shards: others,
            body: body(true),
        })
    }

    /// Has a destination's home asked whether nobody uses it.
    pub(super) fn ask_whether_alone(
        &mut self,
        number: DestinationNumber,
        step: u8,
    ) -> Result<(), Rejection> {
        if self.shards() == 1 && !self.keeps() {
            return self.is_alone(number);
        }
        let home = self.mesh.placement.home(number);
        self.ask(step, || Question {
            kind: request::ALONE,
            shards: vec![home],
            body: number.0.to_le_bytes().to_vec(),
        })
    }
}

/// The session that a request of those names that others may be asked about.
fn session_of(control: &Control<'_>) -> Option<u32> {
    match control {
        Control::OpenProducer(fields, _) => Some(fields.session.get()),
        Control::OpenConsumer(fields, _) => Some(fields.session.get()),
        Control::Create(fields, _) => Some(fields.session.get()),
        Control::SetPolicies(fields, _) => Some(fields.session.get()),
        Control::Delete(fields, _) => Some(fields.session.get()),
        Control::End(fields, _) => Some(fields.session.get()),
        _ => None,
    }
}

/// Why something is not opened that was asked for in a session that is to be closed.
pub(super) fn session_closes() -> Fault {
    Fault::new(Refusal::NotOpen, "its session was closed")
}

fn u32_of(body: &[u8]) -> u32 {
    u32::from_le_bytes(*body.first_chunk().expect("a number has four bytes"))
}

fn fault_of(rejection: Rejection) -> Fault {
    match rejection {
        Rejection::Request(fault) | Rejection::Link(fault) => fault,
        Rejection::Later(_) => unreachable!("who is asked asks nobody"),
    }
}

impl records::Proposal {
    fn request<'a>(&self, destination: &'a Destination) -> Request<'a> {
        let options = self.options.get();
        let is = |bit: u16| options & bit != 0;
        let wanted = Wanted {
            partitions: is(1).then_some(self.partitions.get()),
            retention: is(2).then(|| {
                let code = RetentionCode {
                    policy: self.retention,
                    bytes: self.retain.get(),
                    period: self.period.get(),
                };
                Retention::from_code(code).expect("retention was checked")
            }),
            dispatch: is(32)
                .then(|| Dispatch::from_code(self.dispatch).expect("dispatch was checked")),
        };
        let policies = PolicyChange {
            producers_max: is(4).then_some(self.producers_max.get()),
            consumers_max: is(8).then_some(self.consumers_max.get()),
            subscriptions_max: is(16).then_some(self.subscriptions_max.get()),
        };
        match self.operation {
            0 => Request::Open(destination, wanted),
            1 => Request::Create(destination, wanted, policies),
            2 => Request::Delete(destination),
            _ => Request::SetPolicies(destination, policies),
        }
    }
}

fn encode(request: Request<'_>) -> Vec<u8> {
    let none = (Wanted::default(), PolicyChange::default());
    let (operation, destination, (wanted, policies)) = match request {
        Request::Open(destination, wanted) => (0, destination, (wanted, none.1)),
        Request::Create(destination, wanted, policies) => (1, destination, (wanted, policies)),
        Request::Delete(destination) => (2, destination, none),
        Request::SetPolicies(destination, policies) => (3, destination, (none.0, policies)),
    };
    let bits = [
        wanted.partitions.is_some(),
        wanted.retention.is_some(),
        policies.producers_max.is_some(),
        policies.consumers_max.is_some(),
        policies.subscriptions_max.is_some(),
        wanted.dispatch.is_some(),
    ];
    let retention = wanted.retention.unwrap_or_default().code();
    let options = bits
        .iter()
        .rev()
        .fold(0_u16, |options, bit| options << 1 | u16::from(*bit));
    let fields = records::Proposal {
        operation,
        destination: destination.kind as u8,
        options: options.into(),
        partitions: wanted.partitions.unwrap_or(0).into(),
        retain: retention.bytes.into(),
        producers_max: policies.producers_max.unwrap_or(0).into(),
        consumers_max: policies.consumers_max.unwrap_or(0).into(),
        subscriptions_max: policies.subscriptions_max.unwrap_or(0).into(),
        period: retention.period.into(),
        retention: retention.policy,
        dispatch: wanted.dispatch.unwrap_or_default() as u8,
        reserved: [0; 6],
    };
    [fields.as_bytes(), destination.name.as_bytes()].concat()
}

fn decode(body: &[u8]) -> (Destination, records::Proposal) {
    let (fields, name) =
        records::Proposal::read_from_prefix(body).expect("a record has the fields of its kind");
    let kind = DestinationKind::from_code(fields.destination).expect("a kind is a kind");
    let name = core::str::from_utf8(name).expect("names are text");
    let destination = Destination::new(kind, name).expect("the name was checked");
    (destination, fields)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_asked_of_the_catalogue_is_the_same_on_the_other_side() {
        let destination = Destination::parse("topic:/default/t").unwrap();
        let wanted = [None, Some(0), Some(7)];
        let mut requests = vec![Request::Delete(&destination)];
        for one in wanted {
            for other in wanted {
                let wanted = Wanted {
                    partitions: one,
                    retention: other.map(|period| match period {
                        0 => Retention::Size(7),
                        period => Retention::UntilExpired {
                            segment: 5 << 20,
                            period,
                        },
                    }),
                    dispatch: one.map(|it| match it {
                        0 => Dispatch::Durable,
                        _ => Dispatch::Early,
                    }),
                };
                let policies = PolicyChange {
                    producers_max: one,
                    consumers_max: other,
                    subscriptions_max: one,
                };
                requests.push(Request::Open(&destination, wanted));
                requests.push(Request::Create(&destination, wanted, policies));
                requests.push(Request::SetPolicies(&destination, policies));
            }
        }
        for request in requests {
            let (named, fields) = decode(&encode(request));
            assert_eq!(fields.request(&named), request);
        }
    }
}
