//! Sessions and the requests of the control plane.

use super::consumer::{OpenConsumer, Start};
use super::destination::wanted;
use super::durable::LastWord;
use super::identity::Access;
use super::producer::OpenProducer;
use super::records::BROWSES;
use super::{Fault, Rejection, Shard};
use crate::auth::{self, Operation, Target};
use crate::catalog::RetentionCode;
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::control::{self, Control, Located, Pong, SessionOpened};
use crate::frame::decode;
use crate::id::{Handle, Offset, ProducerId, RequestId};
use crate::limits;
use crate::name::{self, Destination, DestinationKind};
use crate::subscription::Kind;
use crate::time::Now;

/// What belongs together towards one application: the unit of callback order, of
/// closing and, later, of transactions.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) link: Handle,
    /// How much is open in it, or was asked for and is not answered.
    pub(super) holds: u32,
    /// It is to be closed; answered under this request once it holds nothing.
    pub(super) closing: Option<RequestId>,
}

/// A producer opened with this option means its `retain`, `retention` and `period`.
const OPTION_RETAIN: u16 = 1;
/// A producer opened with this option means its `dispatch`.
const OPTION_DISPATCH: u16 = 1 << 1;

impl Shard {
    /// A control frame: what comes with messages here, every request apart.
    #[inline]
    pub(super) fn control(
        &mut self,
        now: Now,
        link: Handle,
        subject: u32,
        control: &Control<'_>,
    ) -> Result<(), Fault> {
        let handle = Handle(subject);
        match control {
            Control::Acknowledge(fields, tail) => self.acknowledge(now, link, handle, fields, tail),
            Control::Allow(fields, _) => self.allow(link, handle, fields),
            Control::Batch(fields, _) => self.batch(link, handle, fields),
            Control::WantCredit(fields, _) => {
                self.want_credit(now, link, handle, fields.bytes.get())
            }
            Control::Return(fields, tail) => self.give_back(now, link, handle, fields, tail),
            Control::Poll(fields, _) => self.poll(link, handle, fields.token.get()),
            request => self.requested(now, link, subject, request),
        }
    }

    /// A request: it is answered, or refused, or waits for other shards.
    #[inline(never)]
    fn requested(
        &mut self,
        now: Now,
        link: Handle,
        subject: u32,
        control: &Control<'_>,
    ) -> Result<(), Fault> {
        match self.obey(now, link, subject, control) {
            Ok(()) => Ok(()),
            Err(Rejection::Link(fault)) => Err(fault),
            Err(Rejection::Request(fault)) => self.refuse(now, link, RequestId(subject), &fault),
            Err(Rejection::Later(question)) => self.defer(now, (link, subject), control, question),
        }
    }

    fn obey(
        &mut self,
        now: Now,
        link: Handle,
        subject: u32,
        control: &Control<'_>,
    ) -> Result<(), Rejection> {
        let request = RequestId(subject);
        match control {
            Control::OpenSession(..) => self.open_session(now, link, request),
            Control::CloseSession(fields, _) => {
                self.close_session(now, link, request, Handle(fields.session.get()))
            }
            Control::Lookup(fields, tail) => self.lookup(now, link, request, fields, tail),
            Control::OpenProducer(fields, tail) => {
                self.producer_requested(now, link, request, fields, tail)
            }
            Control::OpenConsumer(fields, tail) => {
                self.consumer_requested(now, link, request, fields, tail)
            }
            Control::Close(fields, _) => {
                self.close_handle(now, link, request, Handle(fields.handle.get()))
            }
            Control::AskStats(..) => self.stats(now, link, request),
            Control::Ping(fields, _) => {
                let pong = Pong {
                    token: fields.token,
                };
                Ok(self.answer(now, link, subject, &pong, &[])?)
            }
            Control::Cancel(..) => {
                self.cancel(now, link, request);
                Ok(())
            }
            Control::Move(fields, _) => self.move_link(link, request, fields),
            Control::Goodbye(..) => {
                // Outcomes of this turn still belong to who is leaving.
                self.send_completions(now);
                self.leave(now, link, true);
                self.end(now, link, true);
                Ok(())
            }
            other => self.administer(now, link, request, other),
        }
    }

    /// What an administrator asks for. Apart, so that what comes with messages stays
    /// small.
    #[cold]
    fn administer(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        control: &Control<'_>,
    ) -> Result<(), Rejection> {
        match control {
            Control::Create(fields, tail) => {
                self.create_requested(now, link, request, fields, tail)
            }
            Control::SetPolicies(fields, tail) => {
                self.policies_requested(now, link, request, fields, tail)
            }
            Control::Delete(fields, tail) => {
                self.delete_requested(now, link, request, fields, tail)
            }
            Control::End(fields, _) => self.end_requested(now, link, request, fields),
            Control::List(fields, tail) => self.list_requested(now, link, request, fields, tail),
            other => Err(Rejection::Link(Fault::new(
                Refusal::Unexpected,
                format!("a client does not send {:?} on an open link", other.kind()),
            ))),
        }
    }

    pub(super) fn refuse(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fault: &Fault,
    ) -> Result<(), Fault> {
        self.counters.add(Counter::RequestsRefused, 1);
        let fields = control::Refused {
            refusal: fault.refusal.code().into(),
            text_length: u32::try_from(fault.text.len())
                .expect("the text is short")
                .into(),
            ..Default::default()
        };
        self.answer(now, link, request.0, &fields, &[fault.text.as_bytes()])
    }

    fn open_session(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
    ) -> Result<(), Rejection> {
        let open = self.links.get(link).map_or(0, |link| link.sessions.len());
        if open >= limits::SESSIONS_PER_LINK_MAX as usize {
            return Err(Refusal::ResourceAllocation.into());
        }
        let session = Session {
            link,
            holds: 0,
            closing: None,
        };
        let Ok(session) = self.sessions.insert(session) else {
            return Err(Refusal::ResourceAllocation.into());
        };
        if let Some(entry) = self.links.get_mut(link) {
            entry.sessions.push(session);
        }
        let fields = SessionOpened {
            session: session.0.into(),
            ..Default::default()
        };
        self.answer(now, link, request.0, &fields, &[])?;
        Ok(())
    }

    fn lookup(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &control::Lookup,
        tail: &[u8],
    ) -> Result<(), Rejection> {
        let name = core::str::from_utf8(tail).unwrap_or("");
        let destination = self.destination(link, fields.session.get(), fields.destination, name)?;
        let principal = self.principal(link);
        auth::authorize(principal, Operation::Lookup, Target::Name)?;
        let found = self.catalog.find(&destination);
        let partitions = found.map_or(0, |number| self.catalog.entry(number).shape.partitions);
        let located = Located {
            exists: u8::from(found.is_some()),
            shard: found
                .map_or(self.config.shard, |number| self.mesh.placement.home(number))
                .0
                .into(),
            partitions: partitions.into(),
            ..Default::default()
        };
        self.answer(now, link, request.0, &located, &[])?;
        Ok(())
    }

    fn producer_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &control::OpenProducer,
        tail: &[u8],
    ) -> Result<(), Rejection> {
        let Some((name, rest)) = decode::text(tail, fields.destination_length.get()) else {
            return Err(Refusal::InvalidName.into());
        };
        let Some((own, _)) = decode::text(rest, fields.name_length.get()) else {
            return Err(Refusal::IllegalArgument.into());
        };
        let destination = self.destination(link, fields.session.get(), fields.destination, name)?;
        let options = fields.options.get();
        if own.len() > limits::NAME_SIZE_MAX as usize
            || options & !(OPTION_RETAIN | OPTION_DISPATCH) != 0
        {
            return Err(Refusal::IllegalArgument.into());
        }
        let access = Access::from_code(fields.access).ok_or(Refusal::Unsupported)?;
        if self.is_out_of_handles(link) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let retention = (options & OPTION_RETAIN != 0).then_some(RetentionCode {
            policy: fields.retention,
            bytes: fields.retain.get(),
            period: fields.period.get(),
        });
        let dispatch = (options & OPTION_DISPATCH != 0).then_some(fields.dispatch);
        let partitions = Some(fields.partitions.get()).filter(|partitions| *partitions > 0);
        let open = OpenProducer {
            session: Handle(fields.session.get()),
            destination: &destination,
            wanted: wanted(partitions, retention, dispatch)?,
            name: own,
            access,
            again: Some(ProducerId(fields.producer.get())).filter(|id| id.0 != 0),
        };
        self.open_producer(now, link, request, &open)
    }

    fn consumer_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &control::OpenConsumer,
        tail: &[u8],
    ) -> Result<(), Rejection> {
        let Some((name, rest)) = decode::text(tail, fields.destination_length.get()) else {
            return Err(Refusal::InvalidName.into());
        };
        let texts = decode::text(rest, fields.subscription_length.get()).and_then(
            |(subscription, rest)| {
                decode::text(rest, fields.name_length.get()).map(|(own, _)| (subscription, own))
            },
        );
        let Some((subscription, own)) = texts else {
            return Err(Refusal::IllegalArgument.into());
        };
        let destination = self.destination(link, fields.session.get(), fields.destination, name)?;
        let start = match fields.start {
            0 => Start::Earliest,
            1 => Start::Latest,
            2 => Start::At(Offset(fields.offset.get())),
            _ => return Err(Refusal::IllegalArgument.into()),
        };
        let longest = limits::NAME_SIZE_MAX as usize;
        if own.len() > longest || subscription.len() > longest {
            return Err(Refusal::IllegalArgument.into());
        }
        let is_queue = destination.kind == DestinationKind::Queue;
        let kind = match fields.sharing {
            0 if is_queue => Some(Kind::Shared),
            0 => Some(Kind::Exclusive),
            BROWSES => None,
            code => Some(Kind::from_code(code).ok_or(Refusal::Unsupported)?),
        };
        if let Some(kind) = kind.filter(|it| is_queue && it.has_claims()) {
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                format!(
                    "a queue cannot be {kind}: it hands each message to whoever is free; \
                     open a {kind} subscription of a topic, which keeps the order as well"
                ),
            ));
        }
        if is_queue
            && (!subscription.is_empty()
                || start != Start::Earliest
                || kind == Some(Kind::Exclusive))
        {
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                "a queue has one place, which its consumers share: \
                 neither a subscription nor a start nor an owner can be chosen",
            ));
        }
        if !is_queue && kind.is_none() {
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                "a topic has nothing to browse: open a subscription without a name, \
                 which takes nothing from anybody",
            ));
        }
        if let Some(kind) = kind.filter(|it| it.has_several())
            && !is_queue
            && subscription.is_empty()
        {
            return Err(Rejection::request(
                Refusal::IllegalArgument,
                format!(
                    "a subscription without a name ends with its consumer and cannot be {kind}: \
                     give it a name"
                ),
            ));
        }
        if self.is_out_of_handles(link) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let open = OpenConsumer {
            session: Handle(fields.session.get()),
            destination: &destination,
            subscription,
            start,
            kind,
            messages: fields.messages.get(),
            bytes: fields.bytes.get(),
        };
        self.open_consumer(now, link, request, &open)
    }

    fn close_handle(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        handle: Handle,
    ) -> Result<(), Rejection> {
        let producer = self.producers.get(handle);
        if let Some(producer) = producer.filter(|producer| producer.link == link) {
            if producer.is_closing() {
                return Err(Refusal::NotOpen.into());
            }
            self.close_producer(handle, Some(request));
            return Ok(());
        }
        if self
            .consumers
            .get(handle)
            .is_some_and(|consumer| consumer.link == link)
        {
            if self
                .consumers
                .get(handle)
                .is_some_and(|it| it.gather().is_some())
            {
                return Ok(self.close_gathering(now, handle, Some(request))?);
            }
            if self.ends_late(handle) {
                return Err(Refusal::NotOpen.into());
            }
            self.part_with_consumer(now, handle, true, LastWord::Closed(request));
            return Ok(());
        }
        Err(Refusal::NotOpen.into())
    }

    /// The destination that a request names, checked.
    pub(super) fn destination(
        &self,
        link: Handle,
        session: u32,
        kind: u8,
        name: &str,
    ) -> Result<Destination, Refusal> {
        if !self.is_session_of(link, Handle(session)) {
            return Err(Refusal::NotOpen);
        }
        let kind = DestinationKind::from_code(kind).ok_or(Refusal::IllegalArgument)?;
        name::check(name)?;
        Destination::new(kind, name)
    }

    /// Whether a request that came on `link` may name the session.
    pub(super) fn is_session_of(&self, link: Handle, session: Handle) -> bool {
        // A request that was asked about elsewhere came before the session was to close.
        let is_before = self.is_obeyed_again();
        let mut session = self.sessions.get(session).into_iter();
        session.any(|it| it.link == link && (it.closing.is_none() || is_before))
    }

    fn is_out_of_handles(&self, link: Handle) -> bool {
        self.links.get(link).is_none_or(|link| {
            link.producers.len() + link.consumers.len() >= limits::HANDLES_PER_LINK_MAX as usize
        })
    }
}
