//! What whoever drives the link has: the machine, the connection, and the books
//! of who waits for what.
//!
//! ```text
//!   turn:   write --> read --> deadlines --> note --> lines --> write --> wake
//! ```
//!
//! A turn never waits and never calls the application. Whom it has something for
//! is noted, and told when the baton is let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::thread::Thread;

use courser_core::client::{self, ConsumerKey, Event, LinkEnd, Outgoing, PollState, ProducerKey};
use courser_core::error::Refusal;
use courser_core::id::{RequestId, Sequence};
use courser_core::time::{Monotonic, Now};

use super::waiters::{Seat, Waiters, Wanted, Woken};
use super::wire::{Wire, Writing};
use crate::clock::Clock;
use crate::error::{Cause, SendError};
use crate::lane::{Item, Ticket};
use crate::ledger::{Entry, Ledger, SendResult};
use crate::message::Payload;
use crate::producer::Completion;

/// The background thread, from the link's side.
#[derive(Default)]
pub(super) struct Background {
    /// None if there is no such thread.
    pub(super) thread: Option<Thread>,
    /// Whether it has parked because application threads drive, or for want of
    /// work.
    pub(super) is_aside: bool,
}

/// A consumer that delivers no more, though its application did not close it.
#[derive(Debug)]
pub(crate) struct LostConsumer {
    key: ConsumerKey,
    /// The broker ended it; otherwise it was not opened again after a lost connection.
    pub(crate) ended: bool,
    /// The reason's code.
    pub(crate) code: u16,
    /// Details.
    pub(crate) text: Box<str>,
}

/// See the module.
pub(crate) struct State {
    pub(crate) machine: client::Client,
    pub(crate) clock: Clock,
    /// Why the link has ended, once everything was told.
    pub(crate) end: Option<Arc<LinkEnd>>,
    pub(crate) wire: Wire,
    ledgers: Vec<Option<Ledger>>,
    /// Producers with sends that wait at the client, each once.
    lined: Vec<ProducerKey>,
    /// Answers that their askers have not fetched.
    answers: Vec<(RequestId, Event)>,
    /// Requests whose asker is gone.
    abandoned: Vec<RequestId>,
    /// What confirmations say that nobody has read, in the order in which they came,
    /// which is that in which each consumer asked for them.
    confirmations: Vec<(ConsumerKey, u32, Option<u16>)>,
    /// Consumers that could not be opened again or were ended by the broker, and why,
    /// until they are gone.
    lost_consumers: Vec<LostConsumer>,
    /// Producers that the broker ended, and the codes of its reasons, until they are
    /// gone.
    ended_producers: Vec<(ProducerKey, u16)>,
    /// How often the connection was lost; consumers look at it without the baton.
    pub(super) disconnects: Arc<AtomicU32>,
    pub(super) waiters: Waiters,
    pub(super) background: Background,
    /// Sends with listeners or futures that have no outcome.
    pub(super) listening: usize,
    /// Frame bytes of such sends that were left for a later write.
    pub(super) gathered: usize,
    /// When such a send was written last by its sender.
    pub(super) written: Monotonic,
    /// Nobody holds the client any more: leave once no send is outstanding.
    pub(super) is_deserted: bool,
}

impl State {
    pub(super) fn new(machine: client::Client, clock: Clock, wire: Wire) -> Self {
        Self {
            machine,
            clock,
            end: None,
            wire,
            ledgers: Vec::new(),
            lined: Vec::new(),
            answers: Vec::new(),
            abandoned: Vec::new(),
            confirmations: Vec::new(),
            lost_consumers: Vec::new(),
            ended_producers: Vec::new(),
            disconnects: Arc::default(),
            waiters: Waiters::default(),
            background: Background::default(),
            listening: 0,
            gathered: 0,
            written: Monotonic::default(),
            is_deserted: false,
        }
    }

    // Driving.

    /// One turn; true if anything came of it.
    #[inline]
    pub(super) fn turn(&mut self) -> bool {
        let dialed = self.machine.wants_connection().is_some() && {
            let now = self.clock.now().monotonic;
            self.wire.dial(&mut self.machine, now)
        };
        let writing = self.write_some();
        let any = self.wire.read(&mut self.machine);
        let now = self.clock.now().monotonic;
        let due = self.machine.next_deadline() <= now;
        if due {
            self.machine.expire(now);
        }
        let news = any || due || self.machine.wants_close();
        if news || !self.lined.is_empty() {
            self.note();
            self.advance_all();
            if self.machine.wants_close() {
                self.wire.shut();
            } else if writing == Writing::Done && self.machine.has_pieces() {
                self.write_some();
            }
            self.wake_ready();
        }
        any || due || dialed
    }

    /// Writes what is offered, as far as the socket takes it.
    #[inline]
    pub(super) fn write_some(&mut self) -> Writing {
        self.clock.end_stamp();
        self.gathered = 0;
        self.wire.write(&mut self.machine)
    }

    /// Writes, and sees to it that somebody writes the rest.
    #[inline]
    pub(crate) fn write(&mut self) {
        self.write_some();
        self.alarm();
    }

    /// Rings somebody who sleeps, if all of them would sleep too long.
    #[inline]
    pub(super) fn alarm(&mut self) {
        if self.waiters.has_sleeper() {
            self.alarm_sleeper();
        }
    }

    fn alarm_sleeper(&mut self) {
        // Whoever is awake looks before it sleeps.
        if self.waiters.is_foreground_awake() || self.is_background_awake() {
            return;
        }
        let due = self.next_deadline();
        let has_pieces = self.machine.has_pieces();
        let is_covered = self
            .waiters
            .some_sleeper(|sleeper| sleeper.until <= due && (sleeper.for_room || !has_pieces));
        if !is_covered {
            self.waiters.ring_one();
        }
    }

    /// When a turn is due though nothing happens.
    pub(super) fn next_deadline(&self) -> Monotonic {
        let firsts = self.lined.iter().filter_map(|key| {
            let item = self.ledger_of(*key)?.first_in_line()?;
            Some(item.deadline)
        });
        let dialing = self
            .wire
            .next_deadline(&self.machine, || self.clock.monotonic());
        firsts.fold(self.machine.next_deadline().min(dialing), Monotonic::min)
    }

    /// Whether the background thread is about to look.
    pub(super) fn is_background_awake(&self) -> bool {
        self.background.thread.is_some()
            && !self.background.is_aside
            && self.waiters.sleeper(Seat::Background).is_none()
            && self.waiters.foreground == 0
    }

    /// Whether somebody has to drive although no thread waits.
    pub(super) fn needs_background(&self) -> bool {
        self.listening > 0 || !self.waiters.expecting.is_empty()
    }

    /// Calls the background thread back, if it has parked and is needed.
    pub(super) fn call_background(&mut self) {
        if self.background.is_aside
            && self.waiters.foreground == 0
            && (self.needs_background() || self.is_deserted)
            && let Some(thread) = &self.background.thread
        {
            self.background.is_aside = false;
            self.waiters.woken.push(Woken::Thread(thread.clone()));
        }
    }

    /// An application thread stops waiting: somebody else has to be at the socket.
    pub(super) fn hand_over(&mut self) {
        if self.waiters.sleeper(Seat::Foreground).is_none() && !self.waiters.call_heir() {
            self.call_background();
        }
        self.alarm();
    }

    /// Wakes everybody whose wish came true.
    fn wake_ready(&mut self) {
        if !self.waiters.parked.is_empty() {
            let mut parked = std::mem::take(&mut self.waiters.parked);
            parked.retain(|waiter| {
                let is_ready = self.has(waiter.wanted);
                if is_ready {
                    let thread = waiter.thread.clone();
                    self.waiters.woken.push(Woken::Thread(thread));
                }
                !is_ready
            });
            self.waiters.parked = parked;
        }
        let sleeper = self.waiters.sleeper(Seat::Foreground);
        if sleeper.is_some_and(|sleeper| sleeper.wanted.is_some_and(|wanted| self.has(wanted))) {
            self.waiters.ring(Seat::Foreground);
        }
        if !self.waiters.expecting.is_empty() {
            let expecting = std::mem::take(&mut self.waiters.expecting);
            for (consumer, waker) in expecting {
                if self.has(Wanted::Message(consumer)) {
                    self.waiters.woken.push(Woken::Future(waker));
                } else {
                    self.waiters.expecting.push((consumer, waker));
                }
            }
        }
    }

    /// Wakes those who wait for whatever happens.
    pub(super) fn wake_watchers(&mut self) {
        self.waiters.parked.retain(|waiter| {
            let is_watcher = matches!(waiter.wanted, Wanted::Anything);
            if is_watcher {
                let thread = waiter.thread.clone();
                self.waiters.woken.push(Woken::Thread(thread));
            }
            !is_watcher
        });
        let sleeper = self.waiters.sleeper(Seat::Foreground);
        if sleeper.is_some_and(|sleeper| matches!(sleeper.wanted, Some(Wanted::Anything))) {
            self.waiters.ring(Seat::Foreground);
        }
    }

    /// Whether a wish came true.
    fn has(&self, wanted: Wanted) -> bool {
        if self.end.is_some() {
            return true;
        }
        match wanted {
            Wanted::Outcome(key, ticket) => self
                .ledger_of(key)
                .is_none_or(|ledger| ledger.has_result(ticket)),
            Wanted::Room(key) => self.ledger_of(key).is_none_or(Ledger::has_room_in_line),
            Wanted::Message(key) => {
                self.machine.has_message(key) || self.lost_consumer(key).is_some()
            }
            Wanted::Polled(key, token) => {
                self.has(Wanted::Message(key))
                    || self.machine.poll_state(key, token) != PollState::Asked
            }
            Wanted::Answer(request) => self.answers.iter().any(|(other, _)| *other == request),
            Wanted::Confirmation(consumer, token) => self
                .confirmations
                .iter()
                .any(|(other, confirm, _)| *other == consumer && *confirm == token),
            Wanted::Attached(key) => {
                self.machine.is_consumer_attached(key) || self.lost_consumer(key).is_some()
            }
            Wanted::Anything => true,
        }
    }

    /// The future of a consumer wants to be woken for a message.
    pub(super) fn expect(&mut self, consumer: ConsumerKey, waker: &Waker) {
        let expecting = &mut self.waiters.expecting;
        match expecting.iter_mut().find(|(other, _)| *other == consumer) {
            Some((_, known)) => known.clone_from(waker),
            None => expecting.push((consumer, waker.clone())),
        }
    }

    /// It does not want to any more.
    pub(crate) fn expect_no_more(&mut self, consumer: ConsumerKey) {
        let expecting = &mut self.waiters.expecting;
        if let Some(index) = expecting.iter().position(|(other, _)| *other == consumer) {
            expecting.swap_remove(index);
        }
    }

    /// As much of a goodbye as the socket takes without waiting.
    pub(super) fn leave(&mut self) {
        self.machine.goodbye();
        self.turn();
        self.turn();
        self.machine.closed();
        self.turn();
    }

    // Producers.

    /// Opens the books of a producer.
    pub(crate) fn open_ledger(&mut self, key: ProducerKey, ledger: Ledger) {
        if self.ledgers.len() <= key.index() {
            self.ledgers.resize_with(key.index() + 1, || None);
        }
        self.ledgers[key.index()] = Some(ledger);
    }

    /// The books of a producer.
    #[inline]
    pub(crate) fn ledger(&mut self, key: ProducerKey) -> Option<&mut Ledger> {
        self.ledgers
            .get_mut(key.index())?
            .as_mut()
            .filter(|ledger| ledger.key() == key)
    }

    fn ledger_of(&self, key: ProducerKey) -> Option<&Ledger> {
        self.ledgers
            .get(key.index())?
            .as_ref()
            .filter(|ledger| ledger.key() == key)
    }

    /// Producers whose lanes may be named by these knocks, and are not empty.
    pub(super) fn knocked(&mut self, knocks: u64) -> Vec<ProducerKey> {
        let mut keys = Vec::new();
        for (index, ledger) in self.ledgers.iter_mut().enumerate() {
            if knocks & (1 << (index % 64)) != 0
                && let Some(ledger) = ledger
                && !ledger.lane.is_empty()
            {
                keys.push(ledger.key());
            }
        }
        keys
    }

    /// Closes a producer whose handle is gone, once nothing of it waits here.
    pub(crate) fn desert_producer(&mut self, key: ProducerKey) {
        if let Some(ledger) = self.ledger(key)
            && ledger.is_lined()
        {
            ledger.is_deserted = true;
            return;
        }
        match self.machine.close_producer(key) {
            Ok(request) => self.abandon(request),
            Err(_closed) => {
                // Its end may be news, with outcomes that somebody waits for.
                self.note();
                self.forget(key);
            }
        }
    }

    /// Forgets a producer that is closed.
    pub(crate) fn forget(&mut self, key: ProducerKey) {
        self.machine.forget_producer(key);
        self.ended_producers.retain(|(other, _)| *other != key);
        if self.ledger(key).is_some() {
            self.ledgers[key.index()] = None;
        }
    }

    /// Hands a message to the machine, unless others wait before it. Whoever wants
    /// to know its outcome is noted by [`Ledger::push`].
    #[inline]
    pub(crate) fn send(
        &mut self,
        now: Now,
        key: ProducerKey,
        outgoing: &Outgoing<'_>,
    ) -> Result<(Sequence, &mut Ledger), client::SendError> {
        let ledger = self
            .ledgers
            .get_mut(key.index())
            .and_then(Option::as_mut)
            .ok_or(client::SendError::Closed)?;
        if ledger.is_lined() {
            return Err(client::SendError::WouldBlock);
        }
        let sequence = self.machine.send(now, key, outgoing)?;
        Ok((sequence, ledger))
    }

    /// As [`State::send`], for whoever polls.
    #[inline]
    pub(crate) fn send_polled(
        &mut self,
        now: Now,
        key: ProducerKey,
        outgoing: &Outgoing<'_>,
    ) -> Result<Sequence, client::SendError> {
        let ledger = self
            .ledgers
            .get_mut(key.index())
            .and_then(Option::as_mut)
            .ok_or(client::SendError::Closed)?;
        if ledger.is_lined() || !ledger.has_room() {
            return Err(client::SendError::WouldBlock);
        }
        let sequence = self.machine.send(now, key, outgoing)?;
        ledger.push(Entry::Polled(1));
        Ok(sequence)
    }

    /// A send joins its producer's line, which moves if it can.
    pub(crate) fn line_up(&mut self, key: ProducerKey, item: Item) {
        let Some(ledger) = self.ledger(key) else {
            return;
        };
        let is_first = !ledger.is_lined();
        ledger.line_up(item);
        // A line that is empty stays in the list until all move the next time.
        if is_first && !self.lined.contains(&key) {
            self.lined.push(key);
        }
        self.advance(key);
    }

    /// A send fails without having reached the machine, in its place.
    pub(super) fn fail(&mut self, key: ProducerKey, item: Item, error: SendError) {
        if let Some(ledger) = self.ledger(key) {
            ledger.fail(item, error);
            self.settle_failed(key);
        }
    }

    /// Every line moves as far as it can.
    fn advance_all(&mut self) {
        let mut index = 0;
        while let Some(key) = self.lined.get(index).copied() {
            if self.advance(key) {
                index += 1;
            } else {
                self.lined.swap_remove(index);
            }
        }
    }

    /// A producer's line moves as far as it can; true if something is left of it.
    fn advance(&mut self, key: ProducerKey) -> bool {
        // Outcomes that are there make room.
        self.route(key);
        loop {
            let Some(ledger) = self
                .ledgers
                .get_mut(key.index())
                .and_then(Option::as_mut)
                .filter(|ledger| ledger.key() == key)
            else {
                return false;
            };
            let Some(item) = ledger.first_in_line() else {
                // Once: a second time it would be taken for closed, and forgotten with all
                // that is on its way.
                if std::mem::take(&mut ledger.is_deserted) {
                    self.desert_producer(key);
                }
                return false;
            };
            let now = self.clock.now();
            if item.deadline <= now.monotonic {
                // Those before it are at least as old.
                ledger.fail_first(SendError::NotStored {
                    cause: Cause::TimedOut,
                });
                self.settle_failed(key);
                continue;
            }
            let outgoing = Outgoing {
                properties: item.message.property_block(),
                body: item.message.body(),
                route: item.message.route(),
                durability: item.message.durability(),
                deadline: item.deadline,
            };
            match self.machine.send(now, key, &outgoing) {
                Ok(_sequence) => ledger.take_first(),
                Err(client::SendError::WouldBlock) => return true,
                Err(error) => {
                    let error = not_taken(error, self.end.as_ref());
                    ledger.fail_first(error);
                    self.settle_failed(key);
                }
            }
        }
    }

    fn settle_failed(&mut self, key: ProducerKey) {
        let Some(ledger) = self.ledgers.get_mut(key.index()).and_then(Option::as_mut) else {
            return;
        };
        self.listening -= ledger.settle_failed(&mut self.waiters.woken);
        ledger.call();
    }

    /// Why a send was not taken, with the end of the link if that is why.
    pub(crate) fn not_taken(&self, error: client::SendError) -> SendError {
        not_taken(error, self.end.as_ref())
    }

    /// Whether there is an outcome for whoever polls.
    #[inline]
    pub(crate) fn has_polled(&self, key: ProducerKey) -> bool {
        let ledger = self.ledgers.get(key.index()).and_then(Option::as_ref);
        ledger.is_some_and(|ledger| {
            ledger.has_aside() || ledger.is_polled() && self.machine.has_completion(key)
        })
    }

    /// The next outcome for whoever polls.
    #[inline]
    pub(crate) fn polled(&mut self, key: ProducerKey) -> Option<Completion> {
        let ledger = self.ledgers.get_mut(key.index())?.as_mut()?;
        if let Some((sequence, result)) = ledger.take_aside() {
            return Some(Completion { sequence, result });
        }
        if !ledger.is_polled() {
            return None;
        }
        let completion = self.machine.poll_completion(key)?;
        ledger.count_polled();
        let completion = Completion {
            sequence: completion.sequence,
            result: ledger.result_of(completion, self.end.as_ref()),
        };
        if ledger.is_failed() {
            self.settle_failed(key);
        }
        Some(completion)
    }

    /// Whether no send of any producer waits for anything.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let machine = &self.machine;
        self.ledgers
            .iter_mut()
            .flatten()
            .all(|ledger| ledger.is_quiet() && machine.unanswered(ledger.key()) == 0)
    }

    /// The outcome of a send that its thread waits for.
    pub(crate) fn result(&mut self, key: ProducerKey, ticket: Ticket) -> Option<SendResult> {
        match self.ledger(key) {
            Some(ledger) => ledger.result(ticket),
            None => Some(Err(SendError::Closed)),
        }
    }

    // What the machine has to say.

    /// Sorts it to those who wait for it: outcomes first, so that a producer whose
    /// closing is answered has none left.
    fn note(&mut self) {
        if self.end.is_none() {
            self.end = self.machine.end().cloned().map(Arc::new);
        }
        while let Some(key) = self.machine.next_completed() {
            self.route(key);
        }
        while let Some(event) = self.machine.poll_event() {
            match event {
                Event::Opened { .. } => self.wire.arrived(),
                Event::ProducerLost { .. } | Event::ConsumerResumed { .. } | Event::Ended(_) => {}
                Event::Disconnected => {
                    // Only ever read to be compared: nothing is published with it.
                    self.disconnects.fetch_add(1, Ordering::Relaxed);
                }
                Event::ConsumerLost {
                    consumer,
                    code,
                    text,
                } => self.lose(consumer, false, code, text),
                Event::ConsumerEnded {
                    consumer,
                    code,
                    text,
                } => self.lose(consumer, true, code, text),
                Event::ProducerEnded { producer, code, .. } => {
                    self.ended_producers.push((producer, code));
                }
                Event::ProducerResumed {
                    producer,
                    id,
                    epoch,
                    ..
                } => {
                    let installation = self.machine.installation();
                    if let Some(ledger) = self.ledger(producer) {
                        ledger.resumed(installation, id, epoch);
                    }
                }
                Event::Acknowledged {
                    consumer,
                    confirm,
                    refusal,
                } => self.confirmations.push((consumer, confirm, refusal)),
                Event::ProducerOpened { request, .. }
                | Event::ConsumerOpened { request, .. }
                | Event::ProducerClosed { request, .. }
                | Event::ConsumerClosed { request, .. }
                | Event::Located { request, .. }
                | Event::Stats { request, .. }
                | Event::Pong { request, .. }
                | Event::Changed { request, .. }
                | Event::Listed { request, .. }
                | Event::Refused { request, .. }
                | Event::Redirected { request, .. } => self.answered(request, event),
            }
        }
    }

    fn answered(&mut self, request: RequestId, event: Event) {
        let Some(index) = self.abandoned.iter().position(|other| *other == request) else {
            self.answers.push((request, event));
            return;
        };
        self.abandoned.swap_remove(index);
        let close = match event {
            Event::ProducerOpened { producer, .. } => self.machine.close_producer(producer),
            Event::ConsumerOpened { consumer, .. } => self.machine.close_consumer(consumer),
            Event::ProducerClosed { producer, .. } => {
                self.forget(producer);
                return;
            }
            Event::ConsumerClosed { consumer, .. } => {
                self.machine.forget_consumer(consumer);
                return;
            }
            _ => return,
        };
        if let Ok(request) = close {
            self.abandon(request);
        }
    }

    /// Takes outcomes as long as somebody but a poller waits for one of them.
    fn route(&mut self, key: ProducerKey) {
        let Some(ledger) = self
            .ledgers
            .get_mut(key.index())
            .and_then(Option::as_mut)
            .filter(|ledger| ledger.key() == key)
        else {
            return;
        };
        while ledger.has_waiters() {
            let Some(completion) = self.machine.poll_completion(key) else {
                break;
            };
            self.listening -= ledger.settle(completion, self.end.as_ref(), &mut self.waiters.woken);
        }
        ledger.call();
    }

    // Requests.

    pub(super) fn answer(&mut self, request: RequestId) -> Option<Event> {
        let index = self
            .answers
            .iter()
            .position(|(other, _)| *other == request)?;
        Some(self.answers.swap_remove(index).1)
    }

    /// Nobody waits for the answer to this request any more.
    pub(crate) fn abandon(&mut self, request: RequestId) {
        match self.answer(request) {
            Some(event) => {
                self.abandoned.push(request);
                self.answered(request, event);
            }
            None => {
                self.abandoned.push(request);
                self.cancel(request);
            }
        }
    }

    /// What waits at the broker waits no longer.
    pub(crate) fn cancel(&mut self, request: RequestId) {
        self.machine.cancel(request);
        self.write();
    }

    /// The confirmation with this token, once it is here: what was refused. Those that
    /// were asked for before it, and that nobody waited for until they came, count with
    /// it; `NotOpen` among them was said of a connection that is gone, and what they
    /// were to confirm is named again.
    pub(crate) fn confirmation(
        &mut self,
        consumer: ConsumerKey,
        token: u32,
    ) -> Option<Option<u16>> {
        let is_its = |(other, confirm, _): &(ConsumerKey, u32, Option<u16>)| {
            *other == consumer && *confirm == token
        };
        let last = self.confirmations.iter().position(is_its)?;
        let (_, _, refusal) = self.confirmations.remove(last);
        let earlier = self.late_refusal(consumer, last);
        Some(earlier.or(refusal))
    }

    /// As [`State::confirmation`], where nothing more is to be confirmed.
    pub(crate) fn late_confirmation(&mut self, consumer: ConsumerKey) -> Option<u16> {
        self.late_refusal(consumer, self.confirmations.len())
    }

    /// Takes a consumer's confirmations among the first `count`; why one of them was
    /// refused.
    fn late_refusal(&mut self, consumer: ConsumerKey, count: usize) -> Option<u16> {
        let mut refused = None;
        let mut index = 0;
        self.confirmations.retain(|(other, _, refusal)| {
            index += 1;
            let is_late = *other == consumer && index <= count;
            if is_late {
                let refusal = refusal.filter(|code| *code != Refusal::NotOpen.code());
                refused = refused.or(refusal);
            }
            !is_late
        });
        refused
    }

    fn lose(&mut self, key: ConsumerKey, ended: bool, code: u16, text: Box<str>) {
        self.lost_consumers.push(LostConsumer {
            key,
            ended,
            code,
            text,
        });
    }

    /// Why a consumer could not be opened again on another connection or was ended by
    /// the broker, if that is so.
    pub(crate) fn lost_consumer(&self, consumer: ConsumerKey) -> Option<&LostConsumer> {
        self.lost_consumers.iter().find(|it| it.key == consumer)
    }

    /// The code of the reason for which the broker ended a producer, if it did.
    pub(crate) fn ended_producer(&self, producer: ProducerKey) -> Option<u16> {
        let mut ended = self.ended_producers.iter();
        ended
            .find(|(key, _)| *key == producer)
            .map(|(_, code)| *code)
    }

    /// Drops what is kept for a consumer that is gone.
    pub(crate) fn forget_confirmations(&mut self, consumer: ConsumerKey) {
        self.confirmations.retain(|(other, ..)| *other != consumer);
        self.lost_consumers.retain(|it| it.key != consumer);
    }
}

fn not_taken(error: client::SendError, end: Option<&Arc<LinkEnd>>) -> SendError {
    match (error, end) {
        (client::SendError::Closed, Some(end)) => SendError::NotStored {
            cause: Cause::LinkEnded(Arc::clone(end)),
        },
        _ => SendError::not_taken(error),
    }
}
