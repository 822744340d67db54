//! Sessions that are to be closed.
//!
//! ```text
//!  CloseSession ─> waits to be opened    refused
//!                  is being opened       opened, then closed
//!                  is open               closed, as by Close but without an answer
//!                                          │ outcomes and confirmations, of any shard
//!  SessionClosed <── the last has left <───┘
//! ```
//!
//! What a session has on other shards leaves in its time, and whoever is told that the
//! session is closed finds all of it free: an exclusive subscription may be opened, on
//! whatever link. Until then the session has its place among those of its link.
//!
//! Invariants: a session holds what is open in it and requests of it that wait for
//! other shards; in one that closes nothing is opened that was asked for later.

use super::consumer::Consumer;
use super::durable::LastWord;
use super::producer::Producer;
use super::{Fault, Rejection, Shard};
use crate::error::Refusal;
use crate::frame::control::SessionClosed;
use crate::id::{Handle, RequestId};
use crate::time::Now;

impl Shard {
    /// A client closes a session.
    pub(super) fn close_session(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        session: Handle,
    ) -> Result<(), Rejection> {
        if !self.is_session_of(link, session) {
            return Err(Refusal::NotOpen.into());
        }
        let Some(entry) = self.sessions.get_mut(session) else {
            return Ok(());
        };
        entry.closing = Some(request);
        self.closing.push(session);
        self.withdraw_openings_of(now, link, session);
        self.send_takers_of(now, link, session);
        let Some(entry) = self.links.get(link) else {
            return Ok(());
        };
        let (producers, consumers) = (entry.producers.clone(), entry.consumers.clone());
        for producer in producers {
            self.close_with_session(producer, session);
        }
        for consumer in consumers {
            self.close_consumer_with_session(now, consumer, session);
        }
        self.send_completions(now);
        self.close_sessions(now);
        Ok(())
    }

    /// Closes a producer of a session that is to be closed. One that is being opened is
    /// closed once it is.
    pub(super) fn close_with_session(&mut self, handle: Handle, session: Handle) {
        let producer = self.producers.get(handle);
        let closes = |it: &Producer| {
            it.session == session
                && !it.is_closing()
                && it.opening.is_none()
                && it.fan().is_none_or(|it| !it.is_opening())
        };
        if producer.is_some_and(closes) {
            self.close_producer(handle, None);
        }
    }

    /// The same of a consumer.
    pub(super) fn close_consumer_with_session(
        &mut self,
        now: Now,
        handle: Handle,
        session: Handle,
    ) {
        let consumer = self.consumers.get(handle);
        let Some(consumer) = consumer.filter(|it| it.session == session) else {
            return;
        };
        if consumer.gather().is_none() {
            if !self.ends_late(handle) {
                self.part_with_consumer(now, handle, true, LastWord::Nobody);
            }
            return;
        }
        // One that is not open is being opened, or closed already.
        if consumer.is_open_front() {
            let closes = self.close_gathering(now, handle, None);
            debug_assert!(closes.is_ok(), "it is open");
        }
    }

    /// Whether the session is to be closed.
    pub(super) fn is_closing_session(&self, session: Handle) -> bool {
        let session = self.sessions.get(session);
        session.is_some_and(|it| it.closing.is_some())
    }

    /// Answers for sessions that are to be closed and hold nothing any more.
    #[inline]
    pub(super) fn close_sessions(&mut self, now: Now) {
        if !self.closing.is_empty() {
            self.close_empty_sessions(now);
        }
    }

    /// Whether [`Shard::close_sessions`] would find something to do.
    pub(super) fn can_close_sessions(&self) -> bool {
        let is_over = |it: &Handle| self.sessions.get(*it).is_none_or(|it| it.holds == 0);
        self.closing.iter().any(is_over)
    }

    #[cold]
    fn close_empty_sessions(&mut self, now: Now) {
        let mut closing = core::mem::take(&mut self.closing);
        closing.retain(|&session| {
            // It may have gone with its link.
            let Some(entry) = self.sessions.get(session) else {
                return false;
            };
            let (link, Some(request)) = (entry.link, entry.closing) else {
                return false;
            };
            if entry.holds > 0 {
                return true;
            }
            self.sessions.remove(session);
            if let Some(entry) = self.links.get_mut(link) {
                entry.sessions.retain(|other| *other != session);
            }
            if let Err(fault) = self.tell_closed(now, link, request, session) {
                self.fault(now, link, &fault);
            }
            false
        });
        self.closing = closing;
    }

    fn tell_closed(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
        session: Handle,
    ) -> Result<(), Fault> {
        let fields = SessionClosed {
            session: session.0.into(),
            ..SessionClosed::default()
        };
        self.answer(now, link, request.0, &fields, &[])
    }

    /// Something is open in a session from here on, or was asked for.
    pub(super) fn session_holds(&mut self, link: Handle, session: Handle) {
        let session = self.sessions.get_mut(session);
        if let Some(session) = session.filter(|it| it.link == link) {
            session.holds += 1;
        }
    }

    /// It is not any more.
    pub(super) fn session_lets_go(&mut self, link: Handle, session: Handle) {
        let session = self.sessions.get_mut(session);
        if let Some(session) = session.filter(|it| it.link == link) {
            session.holds -= 1;
        }
    }

    /// Panics if a session holds something else than is counted.
    pub(super) fn audit_sessions(&self) {
        for (handle, session) in self.sessions.iter() {
            let is_its = |link: Handle, its: Handle| (link, its) == (session.link, handle);
            let producers = (self.producers.iter()).filter(|(_, it)| is_its(it.link, it.session));
            let consumers = (self.consumers.iter()).filter(|(_, it)| is_its(it.link, it.session));
            let deferred = (self.deferred.iter()).filter(|(_, it)| it.is_held_by(handle));
            let held = producers.count() + consumers.count() + deferred.count();
            assert_eq!(held, session.holds as usize, "what a session holds");
            let is_listed = self.closing.contains(&handle);
            assert_eq!(
                session.closing.is_some(),
                is_listed,
                "a session that closes"
            );
        }
    }
}

impl Consumer {
    /// Whether it is a front that is open, and neither being opened nor closed.
    fn is_open_front(&self) -> bool {
        self.gather().is_some_and(super::gather::Gather::is_open)
    }
}
