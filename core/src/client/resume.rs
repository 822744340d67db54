//! From a lost connection to the next: what is kept, what is given up, and what
//! the next broker is told.
//!
//! ```text
//!   closed -> keep frames, drop the prefetch -> dial .. pause .. dial -> hello(previous link)
//!                                                                          |
//!         same installation: producers by their ids, everything unanswered again;
//!                            in another run what was to be in memory only fails instead
//!         another one:       everything unanswered fails, producers and consumers anew
//! ```

use core::time::Duration;

use super::request::Pending;
use super::{
    Cause, Client, ConsumerKey, Event, LinkEnd, Owner, Phase, ProducerKey, ProtocolFault, consumer,
    handles_of, producer, question,
};
use crate::error::Refusal;
use crate::frame::Kind;
use crate::frame::control::{ConsumerOpened, ProducerOpened};
use crate::id::{Handle, Offset, RequestId};
use crate::time::Monotonic;

/// The pause after the first failure; each further one is twice as long, up to
/// the longest.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// When to dial again, and until when.
///
/// The first try after a connection that stood is made at once.
#[derive(Debug, Default)]
pub(super) struct Redial {
    failures: u32,
    /// When to try; `None` until the time is told.
    at: Option<Monotonic>,
    /// When to stop trying; `None` until the time is told.
    until: Option<Monotonic>,
}

impl Redial {
    /// A session is open.
    fn opened(&mut self) {
        *self = Self::default();
    }

    /// The connection is gone, or the try for another.
    fn lost(&mut self) {
        self.at = (self.failures == 0).then_some(Monotonic(0));
        self.failures += 1;
    }

    /// What time it is.
    pub(super) fn told(&mut self, now: Monotonic, patience: Duration) {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.saturating_sub(2).min(7));
        self.at.get_or_insert(now.after(pause.min(PAUSE_MAX)));
        self.until.get_or_insert(now.after(patience));
    }

    pub(super) fn is_over(&self, now: Monotonic) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    pub(super) fn at(&self) -> Monotonic {
        self.at.unwrap_or(Monotonic::NEVER)
    }

    pub(super) fn next_deadline(&self) -> Monotonic {
        match (self.at, self.until) {
            (Some(_), Some(until)) => until,
            _ => Monotonic(0),
        }
    }
}

impl Client {
    /// Another connection could not be made.
    pub fn dial_failed(&mut self, now: Monotonic) {
        if self.phase == Phase::Waiting {
            self.redial.lost();
            self.redial.told(now, self.config.reconnect_for);
        }
    }

    /// The broker ended the link and said why: some reasons pass.
    pub(super) fn dismissed(&mut self, end: LinkEnd) {
        match &end {
            LinkEnd::Farewell {
                refusal:
                    Some(
                        Refusal::Stopping
                        | Refusal::TooManyLinks
                        | Refusal::HelloTimeout
                        | Refusal::FrameTimeout
                        | Refusal::Stalled,
                    ),
                ..
            } => self.disconnected(end),
            _ => self.finish(end),
        }
    }

    /// The connection is of no more use: waits for another one, unless none is
    /// wanted or there never was one.
    #[cold]
    pub(super) fn disconnected(&mut self, end: LinkEnd) {
        let stood = match self.phase {
            Phase::Open | Phase::Moving => true,
            Phase::Greeting | Phase::OpeningSession => self.stood,
            Phase::Waiting => return,
            Phase::Idle | Phase::Leaving | Phase::Left | Phase::Ended => false,
        };
        if !stood || self.config.reconnect_for.is_zero() {
            self.finish(end);
            return;
        }
        if matches!(self.phase, Phase::Open | Phase::Moving) {
            self.events.push_back(Event::Disconnected);
        }
        // A try that leads to nobody says less than what was said before.
        if self.lost.is_none() || matches!(end, LinkEnd::Farewell { .. }) {
            self.lost = Some(end);
        }
        self.phase = Phase::Waiting;
        self.resuming = true;
        self.redial.lost();
        self.outbound.clear();
        self.handles.clear();
        self.news.clear();
        self.announced = None;
        self.carry.clear();
        self.detach();
    }

    /// Producers, consumers and requests without a broker.
    fn detach(&mut self) {
        for handle in handles_of(&self.producers) {
            let Some(producer) = self.producers.get_mut(handle) else {
                continue;
            };
            producer.may_attach();
            if producer.phase != producer::Phase::Ended && producer.is_attached() {
                producer.detached();
                self.earliest = self.earliest.min(producer.earliest_deadline());
            }
        }
        for handle in handles_of(&self.consumers) {
            let Some(consumer) = self.consumers.get_mut(handle) else {
                continue;
            };
            if consumer.phase == consumer::Phase::Ended || !consumer.is_attached() {
                continue;
            }
            for confirm in consumer.detached() {
                self.events.push_back(Event::Acknowledged {
                    consumer: ConsumerKey(handle),
                    confirm,
                    refusal: Some(Refusal::NotOpen.code()),
                });
            }
        }
        let producers = &self.producers;
        let over = self.requests.take_if(|pending| match pending {
            Pending::OpenSession
            | Pending::Move
            | Pending::Release(_)
            | Pending::AttachProducer(_)
            | Pending::AttachConsumer(_)
            | Pending::CloseConsumer(_) => true,
            // Whoever was asked to close it has it no more, or will forget it.
            Pending::CloseProducer(key) => producers
                .get(key.0)
                .is_none_or(|producer| producer.phase == producer::Phase::CloseAsked),
            Pending::Stats(report) => {
                **report = super::StatsReport::default();
                false
            }
            Pending::Lookup(_)
            | Pending::LookupForProducer(_)
            | Pending::OpenProducer(_)
            | Pending::OpenConsumer(_)
            | Pending::Administer(_)
            | Pending::Ping { .. } => false,
        });
        for (request, pending) in over {
            match pending {
                Pending::CloseProducer(producer) => self.producer_closed(request, producer),
                Pending::CloseConsumer(consumer) => self.consumer_closed(request, consumer),
                _ => {}
            }
        }
    }

    /// Closes a consumer that the broker of this connection does not know yet.
    pub(super) fn close_detached_consumer(&mut self, key: ConsumerKey) -> RequestId {
        let is_opening = self
            .requests
            .iter()
            .any(|(_, pending)| matches!(pending, Pending::AttachConsumer(other) if *other == key));
        if !is_opening {
            let request = self.requests.name();
            self.consumer_closed(request, key);
            return request;
        }
        if let Some(consumer) = self.consumers.get_mut(key.0) {
            consumer.phase = consumer::Phase::CloseAsked;
        }
        self.requests.add(Pending::CloseConsumer(key))
    }

    pub(super) fn producer_closed(&mut self, request: RequestId, key: ProducerKey) {
        if let Some(producer) = self.producers.get_mut(key.0) {
            producer.phase = producer::Phase::Ended;
        }
        self.events.push_back(Event::ProducerClosed {
            request,
            producer: key,
        });
    }

    fn consumer_closed(&mut self, request: RequestId, key: ConsumerKey) {
        if let Some(consumer) = self.consumers.get_mut(key.0) {
            consumer.phase = consumer::Phase::Ended;
        }
        self.events.push_back(Event::ConsumerClosed {
            request,
            consumer: key,
        });
    }

    /// Another installation answers: it knows nothing of what was sent before.
    pub(super) fn abandoned(&mut self) {
        self.link = 0;
        for handle in handles_of(&self.producers) {
            if let Some(producer) = self.producers.get_mut(handle)
                && producer.phase != producer::Phase::Ended
            {
                producer.abandon(Cause::OtherInstallation);
                producer.forgotten();
            }
            self.announce(ProducerKey(handle));
        }
        for handle in handles_of(&self.consumers) {
            if let Some(consumer) = self.consumers.get_mut(handle) {
                consumer.forgotten();
            }
        }
    }

    /// Another run of the installation answers: what the one before had in memory only is
    /// gone, and it is not known what it had.
    pub(super) fn restarted(&mut self) {
        for handle in handles_of(&self.producers) {
            if let Some(producer) = self.producers.get_mut(handle)
                && producer.phase != producer::Phase::Ended
            {
                producer.restarted();
            }
            self.announce(ProducerKey(handle));
        }
    }

    /// A session is open again: everything that was open is attached to it.
    pub(super) fn resume(&mut self) {
        self.resuming = false;
        self.redial.opened();
        self.lost = None;
        self.counters.reconnects += 1;
        let mut queued = true;
        for handle in handles_of(&self.producers) {
            let Some(producer) = self.producers.get(handle) else {
                continue;
            };
            if producer.phase != producer::Phase::Ended {
                let key = ProducerKey(handle);
                let request = self.requests.add(Pending::AttachProducer(key));
                queued &= question::open_producer(
                    &mut self.outbound,
                    self.session,
                    request.0,
                    &producer.request,
                    producer.partitions(),
                    producer.known(),
                );
            }
        }
        for handle in handles_of(&self.consumers) {
            let Some(consumer) = self.consumers.get(handle) else {
                continue;
            };
            if consumer.phase == consumer::Phase::Open {
                let key = ConsumerKey(handle);
                let request = self.requests.add(Pending::AttachConsumer(key));
                queued &= question::open_consumer(
                    &mut self.outbound,
                    self.session,
                    request.0,
                    &consumer.request,
                    consumer.starts_at(),
                );
            }
        }
        if !queued {
            self.finish(LinkEnd::Backlog);
        }
    }

    pub(super) fn producer_resumed(
        &mut self,
        key: ProducerKey,
        fields: &ProducerOpened,
    ) -> Result<(), ProtocolFault> {
        let out_of_range = |field, value| ProtocolFault::OutOfRange {
            kind: Kind::ProducerOpened,
            field,
            value,
        };
        let handle = Handle(fields.handle.get());
        if self.handles.contains_key(&handle.0) {
            return Err(ProtocolFault::HandleInUse { handle });
        }
        let Some(producer) = self.producers.get_mut(key.0) else {
            return Ok(());
        };
        let partitions = fields.partitions.get();
        match producer.known() {
            Some(id) => {
                if fields.producer.get() != id.0 {
                    return Err(out_of_range("producer", fields.producer.get()));
                }
                if partitions != producer.partitions() {
                    return Err(out_of_range("partitions", partitions.into()));
                }
                producer.attached(fields);
            }
            None => {
                if partitions == 0 || partitions > crate::limits::PARTITIONS_MAX {
                    return Err(out_of_range("partitions", partitions.into()));
                }
                producer.renewed(fields);
            }
        }
        self.handles.insert(handle.0, Owner::Producer(key));
        self.earliest = self.earliest.min(producer.earliest_deadline());
        let (id, epoch) = (producer.id(), producer.epoch());
        if producer.join_line() {
            self.outbound.ready(key.0);
        }
        self.events.push_back(Event::ProducerResumed {
            producer: key,
            id,
            epoch,
            partitions,
        });
        self.close_if_answered(key);
        Ok(())
    }

    pub(super) fn consumer_resumed(
        &mut self,
        key: ConsumerKey,
        fields: &ConsumerOpened,
        tail: &[u8],
    ) -> Result<(), ProtocolFault> {
        let partitions = fields.partitions.get();
        let out_of_range = ProtocolFault::OutOfRange {
            kind: Kind::ConsumerOpened,
            field: "partitions",
            value: partitions.into(),
        };
        let starts = consumer::starts_of(fields, tail)?;
        let handle = Handle(fields.handle.get());
        if self.handles.contains_key(&handle.0) {
            return Err(ProtocolFault::HandleInUse { handle });
        }
        let Some(consumer) = self.consumers.get_mut(key.0) else {
            return Ok(());
        };
        if consumer.is_known() && starts.len() != consumer.partitions() {
            // Its destination was deleted, and is another one by now.
            consumer.forgotten();
        }
        if consumer.is_known() {
            consumer.attached(handle);
        } else if partitions == 0 || partitions > crate::limits::PARTITIONS_MAX {
            return Err(out_of_range);
        } else {
            consumer.renewed(handle, starts, self.installation);
        }
        self.handles.insert(handle.0, Owner::Consumer(key));
        if consumer.phase == consumer::Phase::Open {
            self.events.push_back(Event::ConsumerResumed {
                consumer: key,
                starts: starts.iter().map(|start| Offset(start.get())).collect(),
            });
            return Ok(());
        }
        // It was closed while it was being opened.
        let request = self.requests.iter().find_map(|(request, pending)| {
            matches!(pending, Pending::CloseConsumer(closing) if *closing == key).then_some(request)
        });
        if let Some(request) = request {
            self.ask_close(request, handle);
        }
        Ok(())
    }

    /// The broker cannot write down who attaches before it is started again. Until then what
    /// was sent is in doubt: it waits, and the run that comes knows the producer as it was.
    pub(super) fn producer_put_off(&mut self, key: ProducerKey) {
        if let Some(producer) = self.producers.get_mut(key.0) {
            producer.put_off();
        }
        self.close_if_answered(key);
    }

    pub(super) fn producer_lost(&mut self, key: ProducerKey, code: u16, text: Box<str>) {
        if let Some(producer) = self.producers.get_mut(key.0) {
            producer.lost(Cause::Fenced);
        }
        self.announce(key);
        match self.requests.take_closing(key) {
            Some(request) => self.producer_closed(request, key),
            None => self.events.push_back(Event::ProducerLost {
                producer: key,
                code,
                text,
            }),
        }
    }

    pub(super) fn consumer_lost(&mut self, key: ConsumerKey, code: u16, text: Box<str>) {
        if let Some(consumer) = self.consumers.get_mut(key.0) {
            consumer.phase = consumer::Phase::Ended;
        }
        let closing = self
            .requests
            .take_if(|pending| matches!(pending, Pending::CloseConsumer(other) if *other == key));
        match closing.first() {
            Some((request, _)) => self.consumer_closed(*request, key),
            None => self.events.push_back(Event::ConsumerLost {
                consumer: key,
                code,
                text,
            }),
        }
    }

    /// Names a producer among those with outcomes to take.
    fn announce(&mut self, key: ProducerKey) {
        if let Some(producer) = self.producers.get_mut(key.0)
            && producer.has_completion()
            && !producer.announced
        {
            producer.announced = true;
            self.completed.push_back(key);
        }
    }
}
