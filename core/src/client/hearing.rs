//! What the broker says: from bytes to frames to what they change.
//!
//! Frames that lie whole in what was received are taken from there; the rest of
//! one is carried over. Whatever breaks the protocol becomes a [`ProtocolFault`]
//! and ends the link.

use zerocopy::FromBytes;

use super::admin::{AdminRequest, Page};
use super::consumer::{Consumer, ConsumerRequest};
use super::producer::{Producer, ProducerRequest};
use super::request::Pending;
use super::{
    Announced, Cause, Client, ConsumerKey, Event, LinkEnd, Location, Owner, Phase, ProducerKey,
    ProtocolFault, consumer, producer,
};
use crate::error::Refusal;
use crate::frame::control::{self, CompletionRun, Control};
use crate::frame::decode::{self, Frame, Step};
use crate::frame::{Kind, VERSION};
use crate::id::{
    CatalogVersion, Epoch, Handle, Installation, Offset, PartitionIndex, ProducerId, RequestId,
    Run, ShardIndex,
};
use crate::limits;

impl Client {
    /// Bytes came from the broker, split anywhere.
    pub fn received(&mut self, mut bytes: &[u8]) {
        if matches!(self.phase, Phase::Idle | Phase::Waiting | Phase::Ended) {
            return;
        }
        self.counters.bytes_received += bytes.len() as u64;
        while !bytes.is_empty() && !matches!(self.phase, Phase::Waiting | Phase::Ended) {
            if self.carry.is_empty() {
                match decode::decode(bytes) {
                    Ok(Step::Frame(frame, size)) => {
                        self.frame(&frame);
                        bytes = &bytes[size..];
                    }
                    Ok(Step::Incomplete(needed)) => {
                        self.carry_needed = needed;
                        self.carry(bytes);
                        return;
                    }
                    Err(error) => self.fault(error.into()),
                }
            } else {
                let missing = self.carry_needed - self.carry.len();
                let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
                self.carry(taken);
                bytes = rest;
                if self.carry.len() < self.carry_needed {
                    return;
                }
                let mut carry = core::mem::take(&mut self.carry);
                match decode::decode(carry.bytes()) {
                    Ok(Step::Frame(frame, _)) => {
                        self.frame(&frame);
                        carry.clear();
                    }
                    Ok(Step::Incomplete(needed)) => self.carry_needed = needed,
                    Err(error) => self.fault(error.into()),
                }
                self.carry = carry;
            }
        }
    }

    fn carry(&mut self, bytes: &[u8]) {
        let kept = self.carry.push(bytes);
        debug_assert!(kept, "the carry holds the largest frame");
    }

    #[inline]
    fn frame(&mut self, frame: &Frame<'_>) {
        self.counters.frames_received += 1;
        let result = match frame {
            Frame::Message(message) => self.message(message),
            Frame::Control { subject, control } => self.control(*subject, control),
        };
        if let Err(fault) = result {
            self.fault(fault);
        }
    }

    #[inline]
    fn message(&mut self, message: &decode::Message<'_>) -> Result<(), ProtocolFault> {
        let unexpected = ProtocolFault::Unexpected {
            kind: Kind::Message,
        };
        let announced = self.announced.as_mut().ok_or(unexpected)?;
        let (partition, offset) = (message.header.partition.get(), message.header.offset.get());
        let stands = partition == announced.partition.0
            && offset <= Offset::MAX.0
            && offset >= announced.next
            && (offset == announced.next || !announced.is_first);
        if !stands {
            return Err(ProtocolFault::DeliveredElsewhere {
                partition: announced.partition,
                expected: Offset(announced.next),
                offset: Offset(offset),
            });
        }
        announced.next = offset + 1;
        announced.is_first = false;
        announced.left -= 1;
        let (key, delivery_count) = (announced.consumer, announced.delivery_count);
        if announced.left == 0 {
            self.announced = None;
        }
        if let Some(consumer) = self.consumers.get_mut(key.0)
            && consumer.delivered(message, delivery_count)?
        {
            self.has_news(key);
        }
        Ok(())
    }

    fn control(&mut self, subject: u32, control: &Control<'_>) -> Result<(), ProtocolFault> {
        let kind = control.kind();
        let unexpected = Err(ProtocolFault::Unexpected { kind });
        if self.announced.is_some() && kind != Kind::Farewell {
            return unexpected;
        }
        match (self.phase, control) {
            (_, Control::Farewell(fields, tail)) => self.farewell(fields, tail),
            (Phase::Greeting, Control::Welcome(fields, _)) => self.welcomed(fields),
            (Phase::Greeting, _) => unexpected,
            (Phase::Moving, Control::Welcome(fields, _)) => self.moved(subject, fields),
            (Phase::Moving, Control::Refused(..)) => self.refused(subject, control),
            (Phase::Moving, _) => unexpected,
            (Phase::OpeningSession, Control::SessionOpened(fields, _)) => {
                self.session_opened(subject, fields)
            }
            (Phase::OpeningSession, Control::Refused(..)) | (_, Control::Refused(..)) => {
                self.refused(subject, control)
            }
            (Phase::OpeningSession, _) => unexpected,
            (_, Control::Completions(fields, tail)) => self.completions(subject, fields, tail),
            (_, Control::Delivery(fields, _)) => self.delivery(subject, fields),
            (_, Control::Credit(fields, _)) => {
                let key = self.producer_of(subject, kind)?;
                if let Some(producer) = self.producers.get_mut(key.0) {
                    producer.granted(fields);
                    if producer.join_line() {
                        self.outbound.ready(key.0);
                    }
                }
                Ok(())
            }
            (_, Control::Acknowledged(fields, _)) => self.acknowledged(subject, fields),
            (_, Control::Polled(fields, _)) => self.polled(subject, fields.token.get()),
            (_, Control::Ended(fields, tail)) => self.ended(subject, fields, tail),
            (
                _,
                Control::Located(..)
                | Control::ProducerOpened(..)
                | Control::ConsumerOpened(..)
                | Control::Closed(..)
                | Control::Stats(..)
                | Control::Changed(..)
                | Control::Listed(..)
                | Control::Pong(..),
            ) => self.answered(subject, control),
            _ => unexpected,
        }
    }

    fn welcomed(&mut self, fields: &control::Welcome) -> Result<(), ProtocolFault> {
        let out_of_range = |field, value| ProtocolFault::OutOfRange {
            kind: Kind::Welcome,
            field,
            value,
        };
        if fields.version != VERSION {
            return Err(ProtocolFault::VersionNotOffered {
                version: fields.version,
            });
        }
        if fields.features.get() != 0 {
            return Err(out_of_range("features", fields.features.get()));
        }
        let frame_size_max = fields.frame_size_max.get();
        if frame_size_max < limits::HELLO_SIZE_MAX {
            return Err(out_of_range("frame_size_max", frame_size_max.into()));
        }
        self.frame_size_max = frame_size_max.min(limits::FRAME_SIZE_MAX);
        let installation = Installation(fields.installation.get());
        let run = Run(fields.run.get());
        if self.resuming && installation != self.installation {
            self.abandoned();
        } else if self.resuming && run != self.run {
            self.restarted();
        }
        (self.installation, self.run) = (installation, run);
        self.link = fields.link.get();
        self.shard = ShardIndex(fields.shard.get());
        // Brokers that do not say have one.
        self.shards = u16::from(fields.shards).max(1);
        self.phase = Phase::OpeningSession;
        let request = self.requests.add(Pending::OpenSession);
        self.say(request.0, &control::OpenSession::default(), &[]);
        Ok(())
    }

    /// Another shard has the link, or the one that it was on all the same.
    fn moved(&mut self, subject: u32, fields: &control::Welcome) -> Result<(), ProtocolFault> {
        let installation = Installation(fields.installation.get());
        if installation != self.installation {
            return Err(ProtocolFault::Unexpected {
                kind: Kind::Welcome,
            });
        }
        match self.requests.take(subject) {
            Some(Pending::Move) => self.welcomed(fields),
            _ => Err(ProtocolFault::UnknownRequest {
                request: subject,
                kind: Kind::Welcome,
            }),
        }
    }

    fn session_opened(
        &mut self,
        subject: u32,
        fields: &control::SessionOpened,
    ) -> Result<(), ProtocolFault> {
        match self.requests.take(subject) {
            Some(Pending::OpenSession) => {}
            _ => {
                return Err(ProtocolFault::UnknownRequest {
                    request: subject,
                    kind: Kind::SessionOpened,
                });
            }
        }
        self.session = fields.session.get();
        self.phase = Phase::Open;
        self.events.push_back(Event::Opened {
            installation: self.installation,
            shard: self.shard,
        });
        self.stood = true;
        if self.resuming {
            self.resume();
        }
        self.ask_all();
        Ok(())
    }

    fn farewell(&mut self, fields: &control::Farewell, tail: &[u8]) -> Result<(), ProtocolFault> {
        let code = fields.refusal.get();
        self.dismissed(LinkEnd::Farewell {
            refusal: Refusal::from_code(code),
            code,
            version_min: fields.version_min,
            version_max: fields.version_max,
            text: String::from_utf8_lossy(tail).into(),
        });
        Ok(())
    }

    #[inline]
    fn completions(
        &mut self,
        subject: u32,
        fields: &control::Completions,
        tail: &[u8],
    ) -> Result<(), ProtocolFault> {
        let key = self.producer_of(subject, Kind::Completions)?;
        let out_of_range = ProtocolFault::OutOfRange {
            kind: Kind::Completions,
            field: "runs",
            value: fields.runs.get().into(),
        };
        let runs = <[CompletionRun]>::ref_from_bytes(tail).map_err(|_| out_of_range)?;
        let Some(producer) = self.producers.get_mut(key.0) else {
            return Ok(());
        };
        for run in runs {
            producer.completed(run)?;
        }
        self.earliest = self.earliest.min(producer.earliest_deadline());
        if producer.has_completion() && !producer.announced {
            producer.announced = true;
            self.completed.push_back(key);
        }
        if producer.phase == producer::Phase::Closing {
            self.close_if_answered(key);
        }
        Ok(())
    }

    #[inline]
    fn delivery(&mut self, subject: u32, fields: &control::Delivery) -> Result<(), ProtocolFault> {
        let kind = Kind::Delivery;
        let key = match self.handles.get(&subject) {
            Some(Owner::Consumer(key)) => *key,
            _ => {
                return Err(ProtocolFault::UnknownHandle {
                    handle: Handle(subject),
                    kind,
                });
            }
        };
        let (count, delivery_count) = (fields.count.get(), fields.delivery_count.get());
        if count == 0 {
            return Err(ProtocolFault::EmptyRun);
        }
        if delivery_count == 0 || (delivery_count > 1 && count > 1) {
            return Err(ProtocolFault::OutOfRange {
                kind,
                field: "delivery_count",
                value: delivery_count.into(),
            });
        }
        if let Some(consumer) = self.consumers.get_mut(key.0) {
            consumer.announced(fields)?;
        }
        self.announced = Some(Announced {
            consumer: key,
            partition: PartitionIndex(fields.partition.get()),
            delivery_count,
            left: count,
            next: fields.offset.get(),
            is_first: true,
        });
        Ok(())
    }

    fn acknowledged(
        &mut self,
        subject: u32,
        fields: &control::Acknowledged,
    ) -> Result<(), ProtocolFault> {
        let unknown = ProtocolFault::UnknownHandle {
            handle: Handle(subject),
            kind: Kind::Acknowledged,
        };
        let Some(Owner::Consumer(key)) = self.handles.get(&subject).copied() else {
            return Err(unknown);
        };
        let Some(consumer) = self.consumers.get_mut(key.0) else {
            // It was ended and forgotten, and its handle is not released yet.
            return Ok(());
        };
        let confirm = fields.confirm.get();
        let refusal = fields.refusal.get();
        let refusal = (refusal != 0).then_some(refusal);
        if let Some(refusal) = consumer.confirmed(confirm, refusal)? {
            self.events.push_back(Event::Acknowledged {
                consumer: key,
                confirm,
                refusal,
            });
        }
        Ok(())
    }

    /// Whatever there was for a consumer has come.
    fn polled(&mut self, subject: u32, token: u32) -> Result<(), ProtocolFault> {
        let Some(Owner::Consumer(key)) = self.handles.get(&subject).copied() else {
            return Err(ProtocolFault::UnknownHandle {
                handle: Handle(subject),
                kind: Kind::Polled,
            });
        };
        if let Some(consumer) = self.consumers.get_mut(key.0) {
            consumer.polled(token);
        }
        Ok(())
    }

    /// The broker ended a producer or a consumer by itself.
    fn ended(
        &mut self,
        subject: u32,
        fields: &control::Ended,
        tail: &[u8],
    ) -> Result<(), ProtocolFault> {
        let handle = Handle(subject);
        let code = fields.refusal.get();
        let text: Box<str> = String::from_utf8_lossy(tail).into();
        match self.handles.get(&subject).copied() {
            None => {
                return Err(ProtocolFault::UnknownHandle {
                    handle,
                    kind: Kind::Ended,
                });
            }
            Some(Owner::Producer(producer)) => self.events.push_back(Event::ProducerEnded {
                producer,
                code,
                text,
            }),
            Some(Owner::Consumer(key)) => {
                let Some(consumer) = self.consumers.get_mut(key.0) else {
                    return Ok(());
                };
                if consumer.phase != consumer::Phase::Open {
                    // It is being closed, or this was said before.
                    return Ok(());
                }
                consumer.phase = consumer::Phase::Ended;
                let request = self.requests.add(Pending::Release(handle));
                self.ask_close(request, handle);
                self.events.push_back(Event::ConsumerEnded {
                    consumer: key,
                    code,
                    text,
                });
            }
        }
        Ok(())
    }

    fn refused(&mut self, subject: u32, control: &Control<'_>) -> Result<(), ProtocolFault> {
        let Control::Refused(fields, tail) = control else {
            return Ok(());
        };
        let code = fields.refusal.get();
        let text: Box<str> = String::from_utf8_lossy(tail).into();
        let request = RequestId(subject);
        match self.requests.take(subject) {
            None => {
                return Err(ProtocolFault::UnknownRequest {
                    request: subject,
                    kind: Kind::Refused,
                });
            }
            Some(Pending::OpenSession) => {
                self.finish(LinkEnd::SessionRefused { code, text });
                return Ok(());
            }
            // The link stays where it is.
            Some(Pending::Move) => {
                self.phase = Phase::Open;
                self.ask_all();
                return Ok(());
            }
            // The broker does not have it any more, which is what was wanted.
            Some(Pending::CloseProducer(key)) => {
                if let Some(producer) = self.producers.get_mut(key.0) {
                    self.handles.remove(&producer.handle().0);
                    producer.lost(Cause::LinkEnded);
                }
            }
            Some(Pending::CloseConsumer(key)) => {
                if let Some(consumer) = self.consumers.get_mut(key.0) {
                    self.handles.remove(&consumer.handle().0);
                    consumer.phase = consumer::Phase::Ended;
                }
            }
            Some(Pending::Release(handle)) => {
                self.handles.remove(&handle.0);
                return Ok(());
            }
            Some(Pending::AttachProducer(producer)) => {
                if Refusal::from_code(code) == Some(Refusal::StorageFailed) {
                    self.producer_put_off(producer);
                } else {
                    self.producer_lost(producer, code, text);
                }
                return Ok(());
            }
            Some(Pending::AttachConsumer(consumer)) => {
                self.consumer_lost(consumer, code, text);
                return Ok(());
            }
            Some(_) => {}
        }
        self.events.push_back(Event::Refused {
            request,
            refusal: Refusal::from_code(code),
            code,
            text,
        });
        Ok(())
    }

    /// The answer to a request, other than a refusal.
    fn answered(&mut self, subject: u32, control: &Control<'_>) -> Result<(), ProtocolFault> {
        let kind = control.kind();
        let unknown = ProtocolFault::UnknownRequest {
            request: subject,
            kind,
        };
        let request = RequestId(subject);
        let pending = self.requests.take(subject).ok_or(unknown)?;
        match (pending, control) {
            (Pending::Lookup(_), Control::Located(fields, tail)) => {
                let location = location(fields, tail)?;
                self.events.push_back(Event::Located { request, location });
            }
            (Pending::LookupForProducer(wanted), Control::Located(fields, tail)) => {
                self.located(request, wanted, location(fields, tail)?);
            }
            (Pending::OpenProducer(wanted), Control::ProducerOpened(fields, _)) => {
                self.producer_opened(request, wanted, fields)?;
            }
            (Pending::OpenConsumer(wanted), Control::ConsumerOpened(fields, tail)) => {
                self.consumer_opened(request, wanted, fields, tail)?;
            }
            (Pending::AttachProducer(key), Control::ProducerOpened(fields, _)) => {
                self.producer_resumed(key, fields)?;
            }
            (Pending::AttachConsumer(key), Control::ConsumerOpened(fields, tail)) => {
                self.consumer_resumed(key, fields, tail)?;
            }
            (Pending::CloseProducer(key), Control::Closed(fields, _)) => {
                let producer = self.producers.get_mut(key.0).ok_or(unknown)?;
                if producer.phase != producer::Phase::CloseAsked
                    || producer.handle().0 != fields.handle.get()
                {
                    return Err(unknown);
                }
                producer.phase = producer::Phase::Ended;
                self.handles.remove(&fields.handle.get());
                self.events.push_back(Event::ProducerClosed {
                    request,
                    producer: key,
                });
            }
            (Pending::CloseConsumer(key), Control::Closed(fields, _)) => {
                let consumer = self.consumers.get_mut(key.0).ok_or(unknown)?;
                if consumer.handle().0 != fields.handle.get() {
                    return Err(unknown);
                }
                consumer.phase = consumer::Phase::Ended;
                self.handles.remove(&fields.handle.get());
                self.events.push_back(Event::ConsumerClosed {
                    request,
                    consumer: key,
                });
            }
            (Pending::Stats(mut report), Control::Stats(fields, tail)) => {
                let out_of_range = |field, value| ProtocolFault::OutOfRange { kind, field, value };
                let rows = report.destinations.len() + fields.rows.get() as usize;
                if rows > limits::DESTINATIONS_MAX as usize {
                    return Err(out_of_range("rows", rows as u64));
                }
                if !report.counters.is_empty() && fields.counters.get() != 0 {
                    return Err(out_of_range("counters", fields.counters.get().into()));
                }
                report
                    .add(fields, tail)
                    .ok_or_else(|| out_of_range("tail", tail.len() as u64))?;
                if fields.remaining.get() == 0 {
                    let report = *report;
                    self.events.push_back(Event::Stats { request, report });
                } else if fields.rows.get() == 0 && fields.counters.get() == 0 {
                    // Otherwise such frames could go on for ever.
                    return Err(out_of_range("rows", 0));
                } else {
                    self.requests.add_again(request, Pending::Stats(report));
                }
            }
            (Pending::Release(handle), Control::Closed(fields, _)) => {
                if handle.0 != fields.handle.get() {
                    return Err(unknown);
                }
                self.handles.remove(&handle.0);
            }
            (Pending::Administer(wanted), Control::Changed(fields, _))
                if !matches!(*wanted, AdminRequest::List(_)) =>
            {
                self.events.push_back(Event::Changed {
                    request,
                    version: CatalogVersion(fields.version.get()),
                    changed: fields.changed == 1,
                });
            }
            (Pending::Administer(wanted), Control::Listed(fields, tail)) => {
                let AdminRequest::List(list) = *wanted else {
                    return Err(unknown);
                };
                let out_of_range = ProtocolFault::OutOfRange {
                    kind,
                    field: "rows",
                    value: fields.rows.get().into(),
                };
                let page = Page::read(&list, fields, tail).ok_or(out_of_range)?;
                self.events.push_back(Event::Listed { request, page });
            }
            (Pending::Ping { asked }, Control::Pong(fields, _)) => {
                if fields.token.get() != asked.0 {
                    return Err(unknown);
                }
                self.events.push_back(Event::Pong { request, asked });
            }
            _ => return Err(unknown),
        }
        Ok(())
    }

    fn located(&mut self, request: RequestId, wanted: Box<ProducerRequest>, location: Location) {
        match location {
            Location::Here { .. } => {
                self.requests
                    .add_again(request, Pending::OpenProducer(wanted));
                self.ask(request);
            }
            Location::Elsewhere { address } => {
                self.events
                    .push_back(Event::Redirected { request, address });
            }
            Location::Nowhere => self.events.push_back(Event::Refused {
                request,
                refusal: Some(Refusal::NotFound),
                code: Refusal::NotFound.code(),
                text: "no broker owns the destination".into(),
            }),
        }
    }

    fn producer_opened(
        &mut self,
        request: RequestId,
        wanted: Box<ProducerRequest>,
        fields: &control::ProducerOpened,
    ) -> Result<(), ProtocolFault> {
        let partitions = fields.partitions.get();
        if partitions == 0 || partitions > limits::PARTITIONS_MAX {
            return Err(ProtocolFault::OutOfRange {
                kind: Kind::ProducerOpened,
                field: "partitions",
                value: partitions.into(),
            });
        }
        let handle = Handle(fields.handle.get());
        if self.handles.contains_key(&handle.0) {
            return Err(ProtocolFault::HandleInUse { handle });
        }
        let Ok(key) = self.producers.insert(Producer::new(wanted, fields)) else {
            return Err(ProtocolFault::HandleInUse { handle });
        };
        let producer = ProducerKey(key);
        self.handles.insert(handle.0, Owner::Producer(producer));
        self.events.push_back(Event::ProducerOpened {
            request,
            producer,
            id: ProducerId(fields.producer.get()),
            epoch: Epoch(fields.epoch.get()),
            partitions,
        });
        Ok(())
    }

    fn consumer_opened(
        &mut self,
        request: RequestId,
        wanted: Box<ConsumerRequest>,
        fields: &control::ConsumerOpened,
        tail: &[u8],
    ) -> Result<(), ProtocolFault> {
        let partitions = fields.partitions.get();
        let out_of_range = ProtocolFault::OutOfRange {
            kind: Kind::ConsumerOpened,
            field: "partitions",
            value: partitions.into(),
        };
        if partitions == 0 || partitions > limits::PARTITIONS_MAX {
            return Err(out_of_range);
        }
        let starts = consumer::starts_of(fields, tail)?;
        let handle = Handle(fields.handle.get());
        if self.handles.contains_key(&handle.0) {
            return Err(ProtocolFault::HandleInUse { handle });
        }
        let consumer = Consumer::new(wanted, handle, starts, self.installation);
        let Ok(key) = self.consumers.insert(consumer) else {
            return Err(ProtocolFault::HandleInUse { handle });
        };
        let consumer = ConsumerKey(key);
        self.handles.insert(handle.0, Owner::Consumer(consumer));
        self.events.push_back(Event::ConsumerOpened {
            request,
            consumer,
            starts: starts.iter().map(|start| Offset(start.get())).collect(),
        });
        Ok(())
    }

    #[inline]
    fn producer_of(&self, subject: u32, kind: Kind) -> Result<ProducerKey, ProtocolFault> {
        match self.handles.get(&subject) {
            Some(Owner::Producer(key)) => Ok(*key),
            _ => Err(ProtocolFault::UnknownHandle {
                handle: Handle(subject),
                kind,
            }),
        }
    }
}

fn location(fields: &control::Located, tail: &[u8]) -> Result<Location, ProtocolFault> {
    match fields.verdict {
        0 => Ok(Location::Here {
            exists: fields.exists == 1,
            shard: ShardIndex(fields.shard.get()),
            partitions: fields.partitions.get(),
        }),
        1 => {
            let kind = Kind::Located;
            let address =
                core::str::from_utf8(tail).map_err(|_| ProtocolFault::NotText { kind })?;
            Ok(Location::Elsewhere {
                address: address.into(),
            })
        }
        2 => Ok(Location::Nowhere),
        verdict => Err(ProtocolFault::OutOfRange {
            kind: Kind::Located,
            field: "verdict",
            value: verdict.into(),
        }),
    }
}
