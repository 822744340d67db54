//! Requests between question and answer.
//!
//! A request keeps its id through every frame it takes: the lookup that opening
//! a producer begins with carries the same id as the opening itself. Answers
//! come in the order of the questions, so the one that is looked for stands at
//! the front.

use std::collections::VecDeque;

use super::admin::AdminRequest;
use super::consumer::ConsumerRequest;
use super::event::{ConsumerKey, ProducerKey, StatsReport};
use super::producer::ProducerRequest;
use crate::id::{Handle, RequestId};
use crate::limits;
use crate::name::Destination;
use crate::time::Monotonic;

/// The most requests without an answer.
const PENDING_MAX: usize = limits::HANDLES_PER_LINK_MAX as usize;

/// What a request waits for.
#[derive(Debug)]
pub(super) enum Pending {
    /// The session itself.
    OpenSession,
    /// Another shard for the link.
    Move,
    /// Where a destination is.
    Lookup(Destination),
    /// Where a producer's destination is; the opening follows.
    LookupForProducer(Box<ProducerRequest>),
    /// A producer.
    OpenProducer(Box<ProducerRequest>),
    /// A consumer.
    OpenConsumer(Box<ConsumerRequest>),
    /// A producer that was open on an earlier connection.
    AttachProducer(ProducerKey),
    /// A consumer that was open on an earlier connection.
    AttachConsumer(ConsumerKey),
    /// A producer's end.
    CloseProducer(ProducerKey),
    /// A consumer's end.
    CloseConsumer(ConsumerKey),
    /// The end of a handle of a consumer that the broker ended.
    Release(Handle),
    /// What an administrator asks for.
    Administer(Box<AdminRequest>),
    /// Counters, and what has come of them.
    Stats(Box<StatsReport>),
    /// A pong.
    Ping {
        /// When it was asked for.
        asked: Monotonic,
    },
}

/// Requests without an answer, oldest first.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pending: VecDeque<(RequestId, Pending)>,
    last: u32,
}

impl Requests {
    /// Whether another request may be made.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_MAX
    }

    /// How many have no answer.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether all are answered.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Names a request that is answered at once.
    pub(super) fn name(&mut self) -> RequestId {
        self.last = self.last.wrapping_add(1).max(1);
        RequestId(self.last)
    }

    /// Notes a request and names it.
    pub(super) fn add(&mut self, pending: Pending) -> RequestId {
        let request = self.name();
        self.pending.push_back((request, pending));
        request
    }

    /// Notes a request again that takes another question.
    pub(super) fn add_again(&mut self, request: RequestId, pending: Pending) {
        self.pending.push_back((request, pending));
    }

    /// Takes the request that an answer names.
    pub(super) fn take(&mut self, request: u32) -> Option<Pending> {
        let index = self
            .pending
            .iter()
            .position(|(pending, _)| pending.0 == request)?;
        self.pending.remove(index).map(|(_, pending)| pending)
    }

    /// All of them, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RequestId, &Pending)> {
        self.pending
            .iter()
            .map(|(request, pending)| (*request, pending))
    }

    /// The producer that a request asks for is not to wait until it has its destination
    /// alone; whether the broker was asked for it already.
    pub(super) fn waits_no_longer(&mut self, request: RequestId) -> bool {
        let mut pending = self.pending.iter_mut();
        match pending.find(|(other, _)| *other == request) {
            Some((_, Pending::LookupForProducer(wanted))) => {
                wanted.waits = false;
                false
            }
            Some((_, Pending::OpenProducer(wanted))) => core::mem::take(&mut wanted.waits),
            _ => false,
        }
    }

    /// The request to close a producer, if there is one.
    pub(super) fn closing(&self, key: ProducerKey) -> Option<RequestId> {
        self.iter().find_map(|(request, pending)| {
            matches!(pending, Pending::CloseProducer(closing) if *closing == key).then_some(request)
        })
    }

    /// The same, which is none of the open ones any more.
    pub(super) fn take_closing(&mut self, key: ProducerKey) -> Option<RequestId> {
        let request = self.closing(key)?;
        self.take(request.0);
        Some(request)
    }

    /// Takes those for which `is_over` says so.
    pub(super) fn take_if(
        &mut self,
        mut is_over: impl FnMut(&mut Pending) -> bool,
    ) -> Vec<(RequestId, Pending)> {
        let (over, kept) = core::mem::take(&mut self.pending)
            .into_iter()
            .map(|(request, mut pending)| (is_over(&mut pending), request, pending))
            .partition::<Vec<_>, _>(|(over, ..)| *over);
        let without = |(_, request, pending)| (request, pending);
        self.pending = kept.into_iter().map(without).collect();
        over.into_iter().map(without).collect()
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }
}
