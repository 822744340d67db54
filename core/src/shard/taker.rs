//! Takers: producers that wait to have a destination alone.
//!
//! ```text
//!   OpenProducer, access 2 ──> others are attached ──> in line, at the home
//!                                                        | the last of them goes
//!   ProducerOpened <── attached alone, fenced are ───────'
//!                      all that were before
//! ```
//!
//! One is attached as soon as nobody else is, those that wait in the order in which
//! they asked, and from then on it is an exclusive producer like any other. It leaves
//! the line with its link, or when its client cancels the request. Whoever shares the
//! destination is let in as ever while nobody has it alone.
//!
//! Invariant: a taker stands at the home of its destination, and nowhere else.

use zerocopy::IntoBytes;

use super::branch::{Origin, refused};
use super::consumer::Consumer;
use super::deferral::session_closes;
use super::durable::Attached;
use super::fan::{Fan, about};
use super::identity::Access;
use super::records::{self, outcome};
use super::{Fault, Rejection, Shard};
use crate::error::Refusal;
use crate::id::{DestinationNumber, Handle, ProducerId, RequestId, ShardIndex};
use crate::limits;
use crate::planted::Planted;
use crate::time::Now;

/// See the module.
#[derive(Debug)]
pub(super) struct Taker {
    destination: DestinationNumber,
    /// Who attaches again, if it is not a new producer.
    again: Option<ProducerId>,
    asker: Asker,
}

#[derive(Debug)]
enum Asker {
    /// A link of this shard, with all partitions of the destination here.
    Link {
        link: Handle,
        request: RequestId,
        session: Handle,
        name: Box<str>,
    },
    /// A front on any shard.
    Front {
        origin: Origin,
        attach: records::Attach,
    },
}

/// How a producer is to be attached on a link whose shard has all partitions.
pub(super) struct AttachHere<'a> {
    pub(super) destination: DestinationNumber,
    pub(super) session: Handle,
    pub(super) name: &'a str,
    pub(super) access: Access,
    pub(super) again: Option<ProducerId>,
}

impl Shard {
    /// Whether a producer has to wait before it may be attached; asked at the home.
    ///
    /// # Errors
    ///
    /// If it may not be attached and would wait in vain, or does not want to wait.
    fn has_to_wait(
        &self,
        destination: DestinationNumber,
        access: Access,
        again: Option<ProducerId>,
    ) -> Result<bool, Fault> {
        let may = self.may_attach(destination, access, again);
        match may {
            Err(fault) if access == Access::Taking && fault.refusal == Refusal::Exclusive => {
                Ok(true)
            }
            Err(fault) => Err(fault),
            // Those that came before go first.
            Ok(()) => Ok(access == Access::Taking
                && (self.takers.iter()).any(|taker| taker.destination == destination)),
        }
    }

    fn wait_in_line(&mut self, taker: Taker) -> Result<(), Fault> {
        if self.takers.len() >= limits::TAKERS_MAX as usize {
            return Err(Fault::new(
                Refusal::ResourceAllocation,
                "too many producers wait to have a destination alone",
            ));
        }
        if Planted::JumpTheQueue.is_awake() {
            self.takers.push_front(taker);
        } else {
            self.takers.push_back(taker);
        }
        Ok(())
    }

    /// A client asks for a producer on its link: attaches it, or has it wait.
    pub(super) fn attach_here(
        &mut self,
        now: Now,
        (link, request): (Handle, RequestId),
        attach: &AttachHere<'_>,
    ) -> Result<(), Rejection> {
        let (destination, again) = (attach.destination, attach.again);
        let waits =
            (self.has_to_wait(destination, attach.access, again)).map_err(Rejection::Request)?;
        if !waits {
            return self.attach_on_link(now, (link, request), attach);
        }
        let asker = Asker::Link {
            link,
            request,
            session: attach.session,
            name: attach.name.into(),
        };
        let taker = Taker {
            destination,
            again,
            asker,
        };
        self.wait_in_line(taker).map_err(Rejection::Request)
    }

    /// A front asks for its first branch: attaches it, or has it wait.
    pub(super) fn attach_or_wait(
        &mut self,
        now: Now,
        shard: ShardIndex,
        front: Handle,
        attach: &records::Attach,
    ) {
        let origin = Origin { shard, front };
        match self.waits_to_take(origin, attach) {
            Ok(true) => {}
            Ok(false) => self.attach_and_tell(now, origin, attach),
            Err(fault) => self.tell_attached(now, origin, Err(fault)),
        }
    }

    fn waits_to_take(&mut self, origin: Origin, attach: &records::Attach) -> Result<bool, Fault> {
        let destination = DestinationNumber(attach.destination.get());
        let is_decided = attach.epoch.get() > 0;
        if is_decided || Access::from_code(attach.access) != Some(Access::Taking) {
            return Ok(false);
        }
        // It may have been deleted while the request was on its way.
        self.locals.get(destination).ok_or(Refusal::NotFound)?;
        let again = Some(ProducerId(attach.producer.get())).filter(|id| id.0 > 0);
        let waits = self.has_to_wait(destination, Access::Taking, again)?;
        if waits {
            self.wait_in_line(Taker {
                destination,
                again,
                asker: Asker::Front {
                    origin,
                    attach: *attach,
                },
            })?;
        }
        Ok(waits)
    }

    fn attach_and_tell(&mut self, now: Now, origin: Origin, attach: &records::Attach) {
        match self.attach_branch(origin.shard, origin.front, attach) {
            Ok(attached) => self.once_durable(now, Attached::Branch(origin, attached)),
            Err(fault) => self.tell_attached(now, origin, Err(fault)),
        }
    }

    /// Tells a front what became of its branch.
    pub(super) fn tell_attached(
        &mut self,
        now: Now,
        origin: Origin,
        attached: Result<records::Attached, Fault>,
    ) {
        let Origin { shard, front } = origin;
        match attached {
            Ok(attached) if shard == self.config.shard => {
                self.attached_branch(now, shard, front, &attached);
            }
            Ok(attached) => {
                let head = about(outcome::ATTACHED, front);
                self.outcome_for(shard, &head, &[attached.as_bytes()]);
            }
            Err(fault) if shard == self.config.shard => self.refused_branch(now, front, &fault),
            Err(fault) => {
                let head = about(outcome::REFUSED, front);
                let refused = refused(&fault);
                self.outcome_for(shard, &head, &[refused.as_bytes(), fault.text.as_bytes()]);
            }
        }
    }

    /// A producer went, or a destination: somebody in line may have its turn.
    #[inline]
    pub(super) fn look_at_takers(&mut self) {
        self.takers_due = !self.takers.is_empty();
    }

    /// Attaches those in line that may be.
    #[inline]
    pub(super) fn serve_takers(&mut self, now: Now) {
        if self.takers_due {
            self.serve_line(now);
        }
    }

    #[cold]
    fn serve_line(&mut self, now: Now) {
        self.takers_due = false;
        for taker in core::mem::take(&mut self.takers) {
            let exists = self.locals.get(taker.destination).is_some();
            let may = if exists {
                self.may_attach(taker.destination, Access::Taking, taker.again)
            } else {
                Err(Refusal::NotFound.into())
            };
            match may {
                Err(fault) if fault.refusal == Refusal::Exclusive => self.takers.push_back(taker),
                Err(fault) => self.turn_away(now, taker, fault),
                Ok(()) => self.let_in(now, taker),
            }
        }
    }

    fn let_in(&mut self, now: Now, taker: Taker) {
        match taker.asker {
            Asker::Front { origin, attach } => self.attach_and_tell(now, origin, &attach),
            Asker::Link {
                link,
                request,
                session,
                name,
            } => {
                let attach = AttachHere {
                    destination: taker.destination,
                    session,
                    name: &name,
                    access: Access::Taking,
                    again: taker.again,
                };
                match self.attach_on_link(now, (link, request), &attach) {
                    Ok(()) => {}
                    Err(Rejection::Request(fault)) => self.refuse_on(now, link, request, &fault),
                    Err(Rejection::Link(fault)) => self.fault(now, link, &fault),
                    Err(Rejection::Later(_)) => {
                        unreachable!("whoever is in line was authorized and has a destination")
                    }
                }
            }
        }
    }

    fn turn_away(&mut self, now: Now, taker: Taker, fault: Fault) {
        match taker.asker {
            Asker::Front { origin, .. } => self.tell_attached(now, origin, Err(fault)),
            Asker::Link { link, request, .. } => self.refuse_on(now, link, request, &fault),
        }
    }

    fn refuse_on(&mut self, now: Now, link: Handle, request: RequestId, fault: &Fault) {
        if let Err(fault) = self.refuse(now, link, request, fault) {
            self.fault(now, link, &fault);
        }
    }

    /// A client waits no longer for a producer or a consumer that it asked for: whatever
    /// that waits for, the request is refused. If it was answered, or is no such request,
    /// nothing changes.
    pub(super) fn cancel(&mut self, now: Now, link: Handle, request: RequestId) {
        let fault = waits_no_longer();
        if self.withdraw_opening(now, link, request, &fault) {
            return;
        }
        let asked = |taker: &Taker| {
            matches!(&taker.asker, Asker::Link { link: its, request: asked, .. }
                if (*its, *asked) == (link, request))
        };
        if let Some(index) = self.takers.iter().position(asked) {
            self.takers.remove(index);
            return self.refuse_on(now, link, request, &fault);
        }
        let Some(entry) = self.links.get(link) else {
            return;
        };
        let waits = |front: &Handle| {
            let producer = self.producers.get(*front);
            producer.is_some_and(|it| it.fan().is_some_and(|fan| fan.is_opening_for(request)))
        };
        if let Some(front) = entry.producers.iter().copied().find(waits) {
            return self.withdraw_front(now, front, &fault);
        }
        let waits = |front: &Handle| {
            let gather = self.consumers.get(*front).and_then(Consumer::gather);
            gather.is_some_and(|it| it.is_opening_for(request))
        };
        if let Some(front) = entry.consumers.iter().copied().find(waits) {
            self.withdraw_gathering(now, front, &fault);
        }
    }

    /// A session closes: who waits in it for a turn is refused.
    pub(super) fn send_takers_of(&mut self, now: Now, link: Handle, session: Handle) {
        let is_its = |taker: &Taker| {
            matches!(&taker.asker, Asker::Link { link: its, session: of, .. }
                if (*its, *of) == (link, session))
        };
        while let Some(index) = self.takers.iter().position(is_its)
            && let Some(taker) = self.takers.remove(index)
        {
            self.turn_away(now, taker, session_closes());
        }
        let Some(entry) = self.links.get(link) else {
            return;
        };
        let may_wait = |front: &Handle| {
            let producer = self.producers.get(*front);
            let producer = producer.filter(|it| it.session == session);
            producer.is_some_and(|it| it.fan().is_some_and(Fan::may_wait))
        };
        let waiting = entry.producers.iter().copied().filter(may_wait);
        for front in waiting.collect::<Vec<_>>() {
            self.withdraw_front(now, front, &session_closes());
        }
    }

    /// Whether somebody waits in line whose link this is.
    pub(super) fn has_taker_on(&self, link: Handle) -> bool {
        let is_there =
            |taker: &Taker| matches!(&taker.asker, Asker::Link { link: its, .. } if *its == link);
        self.takers.iter().any(is_there)
    }

    /// The peer on a link sends no more, so a turn would be of no use to it and take the
    /// destination from others for nothing: who waits there is refused.
    pub(super) fn send_takers_home(&mut self, now: Now, link: Handle) {
        let is_there =
            |taker: &Taker| matches!(&taker.asker, Asker::Link { link: its, .. } if *its == link);
        while let Some(index) = self.takers.iter().position(is_there)
            && let Some(taker) = self.takers.remove(index)
        {
            self.turn_away(now, taker, waits_no_longer());
        }
        let Some(entry) = self.links.get(link) else {
            return;
        };
        let may_wait = |front: &Handle| {
            let producer = self.producers.get(*front);
            producer.is_some_and(|it| it.fan().is_some_and(Fan::may_wait))
        };
        for front in entry
            .producers
            .iter()
            .copied()
            .filter(may_wait)
            .collect::<Vec<_>>()
        {
            self.refused_branch(now, front, &waits_no_longer());
        }
    }

    /// The link goes, and who waits on it.
    pub(super) fn forget_takers_on(&mut self, link: Handle) {
        if Planted::KeepDeadTaker.is_awake() {
            return;
        }
        self.takers
            .retain(|taker| !matches!(taker.asker, Asker::Link { link: its, .. } if its == link));
    }

    /// The front goes, if it waits.
    pub(super) fn forget_taker(&mut self, front: Origin) {
        self.takers
            .retain(|taker| !matches!(taker.asker, Asker::Front { origin, .. } if origin == front));
    }
}

fn waits_no_longer() -> Fault {
    Fault::new(Refusal::Exclusive, "it waits no longer")
}
