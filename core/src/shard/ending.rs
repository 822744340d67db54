//! What the broker ends by itself: producers and consumers whose destination or
//! subscription goes, or whom an administrator shuts out.
//!
//! The handle stays as a husk until its client closes it or its link ends: what the
//! client sent before it heard of the end names something, and is refused in its place
//! or ignored. Clients are told in the next turn, behind the outcomes of what they sent
//! before.

use std::collections::VecDeque;

use super::fan::Fan;
use super::gather::Awaited;
use super::producer::Producer;
use super::{Fault, Shard};
use crate::error::Refusal;
use crate::frame::control::{Acknowledged, Closed, Ended};
use crate::id::Handle;
use crate::time::Now;

/// Why something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) refusal: Refusal,
    pub(super) text: &'static str,
}

/// A client that is to be told.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    link: Handle,
    handle: Handle,
    why: Ending,
    /// What is to be confirmed first, as far as it is known with its refusal.
    confirms: VecDeque<(u32, Option<u16>)>,
    /// It was being opened or closed, and the answer to that says it all.
    awaited: Option<Awaited>,
}

impl Shard {
    /// Has a client told that its handle has ended.
    pub(super) fn tell(&mut self, link: Handle, handle: Handle, why: Ending) {
        self.tell_behind(VecDeque::new(), None, (link, handle), why);
    }

    /// As [`Shard::tell`], behind confirmations that will not come any more: an end is
    /// what became of those.
    pub(super) fn tell_behind(
        &mut self,
        confirms: VecDeque<(u32, Option<u16>)>,
        awaited: Option<Awaited>,
        (link, handle): (Handle, Handle),
        why: Ending,
    ) {
        self.notices.push(Notice {
            link,
            handle,
            why,
            confirms,
            awaited,
        });
    }

    /// Tells those that are to be told.
    #[inline]
    pub(super) fn give_notice(&mut self, now: Now) {
        if !self.notices.is_empty() {
            self.give_notice_now(now);
        }
    }

    #[cold]
    fn give_notice_now(&mut self, now: Now) {
        for notice in core::mem::take(&mut self.notices) {
            let handle = notice.handle;
            if self.producers.get(handle).is_none() && self.consumers.get(handle).is_none() {
                // Its client closed it at the same time, and was told that.
                continue;
            }
            let front = self.producers.get(handle).and_then(Producer::fan);
            if front.is_some_and(Fan::is_opening) {
                // Its client knows no handle that could have ended.
                let fault = Fault::new(notice.why.refusal, notice.why.text);
                self.refused_branch(now, handle, &fault);
                continue;
            }
            if (self.producers.get(handle)).is_some_and(|it| it.opening.is_some()) {
                let fault = Fault::new(notice.why.refusal, notice.why.text);
                self.refused_on_link(now, handle, &fault);
                continue;
            }
            if let Err(fault) = self.give(now, &notice) {
                self.fault(now, notice.link, &fault);
            }
        }
    }

    fn give(&mut self, now: Now, notice: &Notice) -> Result<(), Fault> {
        let Notice {
            link,
            handle,
            why,
            awaited,
            ..
        } = *notice;
        for &(confirm, refusal) in &notice.confirms {
            let confirmed = Acknowledged {
                confirm: confirm.into(),
                refusal: refusal.unwrap_or(why.refusal.code()).into(),
                ..Acknowledged::default()
            };
            self.answer(now, link, handle.0, &confirmed, &[])?;
        }
        if awaited.is_some() {
            self.remove_consumer(handle, false);
        }
        match awaited {
            Some(Awaited::Opened(request)) => {
                let fault = Fault::new(why.refusal, why.text);
                return self.refuse(now, link, request, &fault);
            }
            Some(Awaited::Closed(request)) => {
                let Some(request) = request else {
                    return Ok(());
                };
                let closed = Closed {
                    handle: handle.0.into(),
                    ..Closed::default()
                };
                return self.answer(now, link, request.0, &closed, &[]);
            }
            None => {}
        }
        let fields = Ended {
            refusal: why.refusal.code().into(),
            text_length: u32::try_from(why.text.len())
                .expect("the text is short")
                .into(),
            ..Ended::default()
        };
        self.answer(now, link, handle.0, &fields, &[why.text.as_bytes()])
    }

    /// The broker ends producers: none of them can be attached again, and what their
    /// handles still send is refused.
    pub(super) fn end_producers(&mut self, which: impl Fn(&Producer) -> bool, why: Ending) {
        let of_them =
            |(_, producer): &(Handle, &Producer)| producer.ended.is_none() && which(producer);
        let ending = self.producers.iter().filter(of_them);
        for handle in ending.map(|(handle, _)| handle).collect::<Vec<_>>() {
            self.end_producer(handle, why);
        }
    }

    /// The broker ends a producer.
    pub(super) fn end_producer(&mut self, handle: Handle, why: Ending) {
        self.count_out(handle);
        let Some(producer) = self.producers.get_mut(handle) else {
            return;
        };
        let husk = producer.identity.husk();
        let identity = core::mem::replace(&mut producer.identity, husk);
        if core::mem::take(&mut producer.known) {
            self.remembered.forget(&identity);
        }
        producer.ended = Some(why.refusal);
        // A branch has a front that hears of it by itself, or by its outcomes.
        if producer.origin().is_none() {
            let link = producer.link;
            self.tell(link, handle, why);
        }
    }
}
