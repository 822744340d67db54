//! Sessions and the requests of the control plane.

use super::consumer::{OpenConsumer, Start};
use super::producer::OpenProducer;
use super::{Fault, Local, Shard};
use crate::auth::{self, Operation, Target};
use crate::catalog::Wanted;
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::control::{self, Control, Located, Pong, SessionClosed, SessionOpened};
use crate::frame::decode;
use crate::id::{DestinationNumber, Handle, Offset, PartitionIndex, RequestId};
use crate::limits;
use crate::name::{self, Destination, DestinationKind};
use crate::partition::Partition;
use crate::partition::log::Address;
use crate::time::Now;

/// What belongs together towards one application: the unit of callback order, of
/// closing and, later, of transactions.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) link: Handle,
}

/// A producer opened with this option means its `retain`.
const OPTION_RETAIN: u16 = 1;

impl Shard {
    /// A frame of the control plane.
    pub(super) fn control(
        &mut self,
        now: Now,
        link: Handle,
        subject: u32,
        control: &Control<'_>,
    ) -> Result<(), Fault> {
        let request = RequestId(subject);
        let answered = match control {
            Control::OpenSession(..) => self.open_session(now, link, request)?,
            Control::CloseSession(fields, _) => {
                self.close_session(now, link, request, Handle(fields.session.get()))?
            }
            Control::Lookup(fields, tail) => self.lookup(now, link, request, fields, tail)?,
            Control::OpenProducer(fields, tail) => {
                self.producer_requested(now, link, request, fields, tail)?
            }
            Control::OpenConsumer(fields, tail) => {
                self.consumer_requested(now, link, request, fields, tail)?
            }
            Control::Close(fields, _) => {
                self.close_handle(now, link, request, Handle(fields.handle.get()))?
            }
            Control::WantCredit(fields, _) => {
                self.want_credit(link, Handle(subject), fields.bytes.get())?;
                Ok(())
            }
            Control::Batch(fields, _) => {
                self.batch(link, Handle(subject), fields)?;
                Ok(())
            }
            Control::Allow(fields, _) => {
                self.allow(link, Handle(subject), fields)?;
                Ok(())
            }
            Control::Acknowledge(fields, tail) => {
                self.acknowledge(now, link, Handle(subject), fields, tail)?;
                Ok(())
            }
            Control::AskStats(..) => self.stats(now, link, request)?,
            Control::Ping(fields, _) => {
                self.answer(
                    now,
                    link,
                    subject,
                    &Pong {
                        token: fields.token,
                    },
                    &[],
                )?;
                Ok(())
            }
            Control::Goodbye(..) => {
                // Outcomes of this turn still belong to who is leaving.
                self.send_completions(now);
                self.leave(now, link, true);
                self.end(now, link, true);
                Ok(())
            }
            other => {
                return Err(Fault::new(
                    Refusal::Unexpected,
                    format!("a client does not send {:?} on an open link", other.kind()),
                ));
            }
        };
        if let Err(refusal) = answered {
            self.refuse(now, link, request, refusal)?;
        }
        Ok(())
    }

    fn refuse(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        refusal: Refusal,
    ) -> Result<(), Fault> {
        self.counters.add(Counter::RequestsRefused, 1);
        let fields = control::Refused {
            refusal: refusal.code().into(),
            ..Default::default()
        };
        self.answer(now, link, request.0, &fields, &[])
    }

    fn open_session(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
    ) -> Result<Result<(), Refusal>, Fault> {
        let open = self.links.get(link).map_or(0, |link| link.sessions.len());
        if open >= limits::SESSIONS_PER_LINK_MAX as usize {
            return Ok(Err(Refusal::ResourceAllocation));
        }
        let Ok(session) = self.sessions.insert(Session { link }) else {
            return Ok(Err(Refusal::ResourceAllocation));
        };
        if let Some(entry) = self.links.get_mut(link) {
            entry.sessions.push(session);
        }
        let fields = SessionOpened {
            session: session.0.into(),
            ..Default::default()
        };
        self.answer(now, link, request.0, &fields, &[])?;
        Ok(Ok(()))
    }

    fn close_session(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        session: Handle,
    ) -> Result<Result<(), Refusal>, Fault> {
        if !self.is_session_of(link, session) {
            return Ok(Err(Refusal::NotOpen));
        }
        self.send_completions(now);
        let Some(entry) = self.links.get(link) else {
            return Ok(Ok(()));
        };
        let of_session = |handle: &&Handle| {
            self.producers
                .get(**handle)
                .is_some_and(|producer| producer.session == session)
        };
        let producers: Vec<Handle> = entry.producers.iter().filter(of_session).copied().collect();
        let of_session = |handle: &&Handle| {
            self.consumers
                .get(**handle)
                .is_some_and(|consumer| consumer.session == session)
        };
        let consumers: Vec<Handle> = entry.consumers.iter().filter(of_session).copied().collect();
        for producer in producers {
            self.remove_producer(producer);
        }
        for consumer in consumers {
            self.remove_consumer(now, consumer, true);
        }
        self.sessions.remove(session);
        if let Some(entry) = self.links.get_mut(link) {
            entry.sessions.retain(|other| *other != session);
        }
        let fields = SessionClosed {
            session: session.0.into(),
            ..Default::default()
        };
        self.answer(now, link, request.0, &fields, &[])?;
        Ok(Ok(()))
    }

    fn lookup(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &control::Lookup,
        tail: &[u8],
    ) -> Result<Result<(), Refusal>, Fault> {
        let name = core::str::from_utf8(tail).unwrap_or("");
        let destination =
            match self.destination(link, fields.session.get(), fields.destination, name) {
                Ok(destination) => destination,
                Err(refusal) => return Ok(Err(refusal)),
            };
        let principal = self.principal(link);
        if let Err(refusal) = auth::authorize(principal, Operation::Lookup, Target::Name) {
            return Ok(Err(refusal));
        }
        let found = self.catalog.find(&destination);
        let partitions = found.map_or(0, |number| self.catalog.entry(number).shape.partitions);
        let located = Located {
            exists: u8::from(found.is_some()),
            shard: self.config.shard.0.into(),
            partitions: partitions.into(),
            ..Default::default()
        };
        self.answer(now, link, request.0, &located, &[])?;
        Ok(Ok(()))
    }

    fn producer_requested(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        fields: &control::OpenProducer,
        tail: &[u8],
    ) -> Result<Result<(), Refusal>, Fault> {
        let Some((name, rest)) = decode::text(tail, fields.destination_length.get()) else {
            return Ok(Err(Refusal::InvalidName));
        };
        let Some((own, _)) = decode::text(rest, fields.name_length.get()) else {
            return Ok(Err(Refusal::IllegalArgument));
        };
        let destination =
            match self.destination(link, fields.session.get(), fields.destination, name) {
                Ok(destination) => destination,
                Err(refusal) => return Ok(Err(refusal)),
            };
        if own.len() > limits::NAME_SIZE_MAX as usize || fields.options.get() & !OPTION_RETAIN != 0
        {
            return Ok(Err(Refusal::IllegalArgument));
        }
        if fields.access != 0 {
            return Ok(Err(Refusal::Unsupported));
        }
        if self.is_out_of_handles(link) {
            return Ok(Err(Refusal::ResourceAllocation));
        }
        let retain = (fields.options.get() & OPTION_RETAIN != 0).then_some(fields.retain.get());
        let partitions = Some(fields.partitions.get()).filter(|partitions| *partitions > 0);
        let open = OpenProducer {
            session: Handle(fields.session.get()),
            destination: &destination,
            wanted: Wanted { partitions, retain },
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
    ) -> Result<Result<(), Refusal>, Fault> {
        let Some((name, rest)) = decode::text(tail, fields.destination_length.get()) else {
            return Ok(Err(Refusal::InvalidName));
        };
        let texts = decode::text(rest, fields.subscription_length.get()).and_then(
            |(subscription, rest)| {
                decode::text(rest, fields.name_length.get()).map(|(own, _)| (subscription, own))
            },
        );
        let Some((subscription, own)) = texts else {
            return Ok(Err(Refusal::IllegalArgument));
        };
        let destination =
            match self.destination(link, fields.session.get(), fields.destination, name) {
                Ok(destination) => destination,
                Err(refusal) => return Ok(Err(refusal)),
            };
        let start = match fields.start {
            0 => Start::Earliest,
            1 => Start::Latest,
            2 => Start::At(Offset(fields.offset.get())),
            _ => return Ok(Err(Refusal::IllegalArgument)),
        };
        let longest = limits::NAME_SIZE_MAX as usize;
        if own.len() > longest || subscription.len() > longest {
            return Ok(Err(Refusal::IllegalArgument));
        }
        if destination.kind == DestinationKind::Queue
            && (!subscription.is_empty() || start != Start::Earliest)
        {
            // A queue has one place, and every consumer shares it.
            return Ok(Err(Refusal::IllegalArgument));
        }
        if self.is_out_of_handles(link) {
            return Ok(Err(Refusal::ResourceAllocation));
        }
        let open = OpenConsumer {
            session: Handle(fields.session.get()),
            destination: &destination,
            subscription,
            start,
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
    ) -> Result<Result<(), Refusal>, Fault> {
        if self
            .producers
            .get(handle)
            .is_some_and(|producer| producer.link == link)
        {
            self.close_producer(handle, request);
            return Ok(Ok(()));
        }
        if self
            .consumers
            .get(handle)
            .is_some_and(|consumer| consumer.link == link)
        {
            self.remove_consumer(now, handle, true);
            let closed = control::Closed {
                handle: handle.0.into(),
                ..Default::default()
            };
            self.answer(now, link, request.0, &closed, &[])?;
            return Ok(Ok(()));
        }
        Ok(Err(Refusal::NotOpen))
    }

    /// The destination that a request names, checked.
    fn destination(
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

    fn is_session_of(&self, link: Handle, session: Handle) -> bool {
        self.sessions
            .get(session)
            .is_some_and(|session| session.link == link)
    }

    fn is_out_of_handles(&self, link: Handle) -> bool {
        self.links.get(link).is_none_or(|link| {
            link.producers.len() + link.consumers.len() >= limits::HANDLES_PER_LINK_MAX as usize
        })
    }

    /// The local half of a destination that is new in the catalogue.
    pub(super) fn create_local(&mut self, number: DestinationNumber) -> Result<(), Refusal> {
        let entry = self.catalog.entry(number);
        let (shape, kind) = (entry.shape, entry.destination.kind);
        let partitions = (0..shape.partitions)
            .map(|partition| {
                let address = Address {
                    destination: number,
                    partition: PartitionIndex(partition),
                };
                Partition::new(address, shape.retain)
            })
            .collect();
        self.partitions += shape.partitions as usize;
        self.locals.push(Local {
            partitions,
            queued: vec![false; shape.partitions as usize],
            subscriptions: Vec::new(),
            producers: 0,
            consumers: 0,
            stored: 0,
        });
        if kind == DestinationKind::Queue {
            self.subscribe(number, None, Start::Earliest)?;
        }
        Ok(())
    }
}
