//! A shard's thread: one loop, in one function.
//!
//! Cast: the [`Shard`] is the deterministic machine; [`Connections`] are its sockets; the
//! inbox brings the connections that the door let in and those that other shards handed
//! over; [`Guests`] are its links without a socket; the [`Worker`] owns all of them and
//! gives each its share of every turn. What shards have for each other lies in rings
//! between the machines; the worker only rings the doorbells, and sleeps only after a look
//! at the rings.
//!
//! Invariants:
//! - a link of the shard and an occupied slot belong together one to one, from the
//!   turn that took the connection in to the turn that saw its end;
//! - the connections are dropped before the shard, whose memory they may be sending.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use courser_core::counters::Counter;
use courser_core::door::{self, Door};
use courser_core::error::Refusal;
use courser_core::id::{BatchNumber, Handle, ShardIndex};
use courser_core::limits;
use courser_core::shard::{Attached, Output, Pieces, Shard};
use courser_core::time::{Monotonic, Now};

use crate::clock::Clock;
use crate::connection::{Connections, Event};
use crate::disk::DiskFile;
use crate::guests::{Guests, Phase, Place};
use crate::handoff::{Inbox, Sender};
use crate::idle::{Idle, Rest};
use crate::in_process::Guest;
use crate::ring::outgoing;
use crate::ring::{Calls, Ring, RingFault, Slot, Wait};
use crate::stats::{Figures, Publisher};
use crate::store::Store;

/// A spinning shard reads the clock on turns with work, and else once in so many.
const IDLE_TURNS_PER_CLOCK: u32 = 16;

/// Whoever drives a broker without threads looks this often what a device has done: it
/// rings a bell that nobody sleeps at there. A fraction of what a flush takes.
const DEVICE_LOOK: Duration = Duration::from_micros(50);

/// The longest sleep: an upper bound on how late anything forgotten would be noticed.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A connection that the door let in, or another shard handed over.
#[derive(Debug)]
pub(crate) struct LetIn<S = OwnedFd> {
    pub(crate) socket: S,
    /// Told to the door when the connection is over, so that it counts right.
    pub(crate) address: IpAddr,
    pub(crate) attached: Attached,
}

/// A link that comes to a shard.
#[derive(Debug)]
pub(crate) enum Arrival<S = OwnedFd> {
    Connection(LetIn<S>),
    /// Of this process: not introduced, or from another shard.
    Guest(Guest, Option<Attached>),
}

/// What a worker shares with the threads that control it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Control {
    /// Set once by the broker, read by the worker on every turn. It publishes nothing
    /// but itself.
    stop: Arc<AtomicBool>,
    #[cfg(test)]
    fails: Arc<AtomicBool>,
}

impl Control {
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopping(&self) -> bool {
        #[cfg(test)]
        assert!(!self.fails.load(Ordering::Relaxed), "told to fail");
        self.stop.load(Ordering::Relaxed)
    }

    /// Has the shard panic at its next turn.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        self.fails.store(true, Ordering::Relaxed);
    }
}

/// Workers that still have something to do while the broker stops: to have what came
/// before written, and later to say goodbye. Each waits until none has: what one still
/// owes its clients, another may have to answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Company {
    /// Raised by each worker before any of them runs, lowered by each once it has done
    /// that. Release and acquire: who sees 0 sees what all others posted
    /// before.
    busy: Arc<AtomicUsize>,
}

impl Company {
    pub(crate) fn of(workers: usize) -> Self {
        Self {
            busy: Arc::new(AtomicUsize::new(workers)),
        }
    }

    /// One is done; whether it was the last.
    fn leave(&self) -> bool {
        self.busy.fetch_sub(1, Ordering::AcqRel) == 1
    }

    fn has_gone(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0
    }
}

/// What a worker knows of the others, and of the door.
#[derive(Debug)]
pub(crate) struct Workers<S = OwnedFd> {
    /// Which one it is itself.
    pub(crate) own: ShardIndex,
    /// The ways to each shard's worker, itself among them, by shard.
    pub(crate) ways: Vec<Sender<Arrival<S>>>,
    pub(crate) company: Company,
    /// Those whose devices have not got all yet that came before the stop.
    pub(crate) unflushed: Company,
    /// Where the door hears whose connections are over.
    pub(crate) departures: mpsc::Sender<IpAddr>,
}

impl<S> Workers<S> {
    /// Of a worker without others.
    #[cfg(test)]
    pub(crate) fn alone(way: Sender<Arrival<S>>, departures: mpsc::Sender<IpAddr>) -> Self {
        Self {
            own: ShardIndex(0),
            ways: vec![way],
            company: Company::of(1),
            unflushed: Company::of(1),
            departures,
        }
    }

    fn wake(&self, shard: ShardIndex) {
        if let Some(way) = self.ways.get(usize::from(shard.0)) {
            way.ring();
        }
    }
}

/// One shard with everything it needs to run.
pub(crate) struct Worker<R: Ring> {
    /// Before the shard, so that it is dropped before it.
    connections: Connections<R>,
    shard: Shard,
    links: Links,
    guests: Guests,
    /// If it keeps anything on a device.
    store: Option<Store>,
    inbox: Inbox<Arrival<R::Socket>>,
    workers: Workers<R::Socket>,
    control: Control,
    clock: Clock,
    idle: Idle,
    publisher: Publisher,
    pace: Pace,
}

/// What one turn leaves to the next.
#[derive(Debug, Default)]
struct Pace {
    now: Now,
    idle_turns: u32,
    /// Set once the broker is to stop.
    last_flush: Option<LastFlush>,
    /// Set once the broker stops: how long goodbyes may take.
    stop_by: Option<Monotonic>,
    /// Whether everybody here was said goodbye to.
    is_done: bool,
}

/// What a stop waits for before anybody is told of it.
#[derive(Debug, Clone, Copy)]
struct LastFlush {
    /// What came before is durable with this batch.
    batch: BatchNumber,
    /// How long that may take.
    until: Monotonic,
    /// Whether it is durable here, and told.
    is_over: bool,
    /// Whether it was everywhere, a turn ago.
    was_everywhere: bool,
}

/// Whether a turn may end in a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rests {
    Sleeping,
    Never,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    Worked,
    Idle,
    /// It was told to stop and has said goodbye to everybody, or the time for that is
    /// over.
    Over,
}

impl<R: Ring<File = DiskFile>> Worker<R> {
    pub(crate) fn new(
        ring: R,
        (shard, store): (Shard, Option<Store>),
        inbox: Inbox<Arrival<R::Socket>>,
        workers: Workers<R::Socket>,
        control: Control,
        idle: Idle,
        publisher: Publisher,
    ) -> Self {
        let slots = ring.slots();
        Self {
            connections: Connections::new(ring),
            shard,
            links: Links::new(slots),
            guests: Guests::default(),
            store,
            inbox,
            workers,
            control,
            clock: Clock::new(),
            idle,
            publisher,
            pace: Pace::default(),
        }
    }

    /// Runs until it is told to stop and has said goodbye to everybody, or until the
    /// time for that is over.
    pub(crate) fn run(mut self) -> Result<(), RingFault> {
        while self.turn(Rests::Sleeping)? != Turned::Over {}
        Ok(())
    }

    /// One turn.
    #[inline]
    pub(crate) fn turn(&mut self, rests: Rests) -> Result<Turned, RingFault> {
        // 1. The clock: once a turn, for everything in it. A turn without work and
        //    without a sleep behind it changes little, so most of those go without.
        let mut event = self.connections.next();
        if event.is_some()
            || !self.inbox.is_empty()
            || !self.shard.mesh_is_empty()
            || self.guests.have_news()
            || self.store.as_ref().is_some_and(Store::has_news)
            || self.pace.idle_turns.is_multiple_of(IDLE_TURNS_PER_CLOCK)
            || rests == Rests::Never
        {
            self.pace.now = self.clock.now();
        }
        let now = self.pace.now;
        let mut work = 0_u32;

        // 2. What the kernel completed: frees buffers and egress before anything
        //    below needs them. A turn of the ring collects a bounded number. Then what
        //    came without the kernel.
        while let Some(fact) = event {
            self.take(now, fact);
            work += 1;
            event = self.connections.next();
        }
        if !self.guests.is_empty() {
            work += self.hear(now);
        }

        if let Some(store) = self.store.as_mut().filter(|store| store.has_news()) {
            store.hear(self.connections.ring_mut(), &mut self.shard);
            work += 1;
        }

        // 3. What other shards sent: outcomes of what was forwarded can leave in this
        //    turn. After the completions, whose memory it can use.
        work += self.shard.meet(now);

        // 4. Links that the door let in: after the completions, whose slots and memory
        //    they can use; before the shard acts, so that their welcome leaves in this
        //    turn.
        while let Some(arrival) = self.inbox.take() {
            self.arrived(now, arrival);
            work += 1;
        }

        // 5. Timers: after the facts, so that what came in time beats its limit.
        self.shard.expire(now);
        self.connections.expire(now.monotonic);
        while let Some(place) = self.guests.overdue(now.monotonic) {
            self.part_from(now, place);
        }
        if self.pace.stop_by.is_none() && self.control.is_stopping() && self.has_flushed(now) {
            self.pace.stop_by = Some(now.monotonic.after(limits::DRAIN_TIMEOUT));
            self.shard.stop(now);
            while let Some(stranger) = self.guests.stranger() {
                self.turn_away(stranger, Refusal::Stopping);
            }
        }

        // 6. The shard acts on all of it at once: completions, credit, deliveries.
        self.shard.turn(now);
        while let Some(output) = self.shard.output() {
            self.note(now, output);
            work += 1;
        }

        // 7. What it had for other shards is in their rings: wake those who sleep.
        //    Before our own system call, so that they work beside it.
        while let Some(shard) = self.shard.next_wake() {
            self.workers.wake(shard);
            work += 1;
        }

        // 8. What the shard wishes of its files: under way before the answers, so that the
        //    device works beside us.
        if let Some(store) = &mut self.store {
            work += store.serve(self.connections.ring_mut(), &mut self.shard);
            if let Some(trouble) = store.trouble() {
                eprintln!("error: {trouble}");
            }
        }

        // 9. Enqueue: one send per connection, out of everything it has waiting. For
        //    those without a socket that is all there is to it.
        while let Some(slot) = self.connections.next_ready() {
            self.send(slot);
        }
        if !self.guests.is_empty() {
            work += self.tell(now);
        }

        // 10. The end: nobody left at any shard, or no more time for goodbyes. What is
        //    dropped here is cancelled and drained by the ring.
        let stop_by = self.pace.stop_by;
        if let Some(deadline) = stop_by {
            let is_left = self.connections.occupied() == 0 && self.guests.is_empty();
            if !self.pace.is_done && is_left && self.shard.is_drained() {
                self.pace.is_done = true;
                if self.workers.company.leave() {
                    self.workers.ways.iter().for_each(Sender::ring);
                }
            }
            let is_over = self.workers.company.has_gone() && self.inbox.is_empty();
            if is_over || now.monotonic >= deadline {
                if is_over && is_left {
                    self.make_last_checkpoint();
                }
                self.publish(now);
                return Ok(Turned::Over);
            }
        }

        // 11. Whether there is reason to wait. Only after the doorbell was armed is
        //    a look at the queues worth anything; see the interleaving there.
        let rest = match rests {
            Rests::Sleeping => self.idle.rest(work > 0, now.monotonic),
            Rests::Never => Rest::Spin,
        };
        let publish_now = rest == Rest::Sleep || self.publisher.is_due(now.monotonic);
        let mut wait = Wait::No;
        if rest == Rest::Sleep && !self.shard.has_work() {
            self.connections.ring().doorbell().announce_sleep();
            let is_told = stop_by.is_none() && self.control.is_stopping();
            let is_over = stop_by.is_some() && self.workers.company.has_gone();
            let is_quiet = self.inbox.is_empty()
                && self.shard.mesh_is_empty()
                && self.guests.are_quiet()
                && !self.store.as_ref().is_some_and(Store::has_news);
            if is_quiet && !is_told && !is_over {
                wait = Wait::AtMost(Some(self.sleep_time(now, stop_by)));
            }
        }

        // 12. A flush is ended by a thread: the kernel's, on the processor that the device
        //    interrupts, or the ring's own, which is bound to ours. Where that is the one
        //    that we spin on, it would wait for us until our time slice is over, and we
        //    for it. Before the look at what has ended.
        if wait == Wait::No && work == 0 && self.store.as_ref().is_some_and(Store::is_writing) {
            thread::yield_now();
            self.shard.counters_mut().add(Counter::Yields, 1);
        }

        // 13. Submit once: hands over what was enqueued, lets the kernel do its share
        //    and, with nothing else to do, sleeps in the same call.
        let counters = self.shard.counters_mut();
        if wait != Wait::No {
            counters.add(Counter::Sleeps, 1);
        }
        counters.add(Counter::Turns, 1);
        if work > 0 {
            counters.add(Counter::TurnsWithWork, 1);
        }
        if publish_now {
            self.publish(now);
        }
        let calls = self.connections.turn(wait)?;
        self.count(calls, work > 0);
        if rest == Rest::Sleep {
            self.connections.ring().doorbell().announce_awake();
        }
        self.pace.idle_turns = if work > 0 || wait != Wait::No {
            0
        } else {
            self.pace.idle_turns.wrapping_add(1)
        };
        Ok(if work > 0 {
            Turned::Worked
        } else {
            Turned::Idle
        })
    }

    /// Whether what came before the stop is durable and told, at every shard, or the time
    /// for that is over: clients shall not have to ask what became of what was taken.
    #[cold]
    fn has_flushed(&mut self, now: Now) -> bool {
        let shard = &self.shard;
        let mut flush = self.pace.last_flush.unwrap_or_else(|| LastFlush {
            batch: shard.last_batch(),
            until: now.monotonic.after(limits::DRAIN_TIMEOUT),
            is_over: false,
            was_everywhere: false,
        });
        if !flush.is_over && shard.has_told(flush.batch) {
            flush.is_over = true;
            self.workers.unflushed.leave();
        }
        // What others told with it came in at the latest at the beginning of the turn
        // after the one in which they left.
        let is_everywhere = self.workers.unflushed.has_gone();
        let was_everywhere = core::mem::replace(&mut flush.was_everywhere, is_everywhere);
        self.pace.last_flush = Some(flush);
        was_everywhere || now.monotonic >= flush.until
    }

    /// For the next start: so that it reads little.
    #[cold]
    fn make_last_checkpoint(&mut self) {
        if let Some(store) = &mut self.store {
            let ring = self.connections.ring_mut();
            store.make_last_checkpoint(ring, &mut self.shard, &mut self.clock);
        }
    }

    /// Whether a turn has something to do though nothing happens.
    pub(crate) fn has_work(&self) -> bool {
        self.shard.has_work()
    }

    /// What stops it.
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// When a turn is due though nothing happens.
    pub(crate) fn next_expiry(&self) -> Option<Monotonic> {
        [
            self.shard.next_expiry(),
            self.connections.next_expiry(),
            self.guests.next_expiry(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// When a turn is due by which a device may have answered; `None` if none was asked.
    pub(crate) fn next_look(&self) -> Option<Monotonic> {
        let store = self.store.as_ref().filter(|it| it.awaits_device());
        store.map(|_| self.pace.now.monotonic.after(DEVICE_LOOK))
    }

    /// One fact about a connection becomes one fact about its link.
    fn take(&mut self, now: Now, event: Event) {
        match event {
            Event::Received { slot, buffer } => {
                if let Some(link) = self.links.link(slot) {
                    let bytes = self.connections.bytes(&buffer);
                    self.shard.counters_mut().add(Counter::Receives, 1);
                    self.shard.received(now, link, bytes);
                }
                self.connections.give_back(buffer);
            }
            Event::Sent { slot, bytes } => {
                if let Some(link) = self.links.link(slot) {
                    self.shard.sent(now, link, bytes as usize);
                }
            }
            Event::Finished { slot } => {
                if let Some(link) = self.links.link(slot) {
                    self.shard.finished(now, link);
                }
            }
            Event::Ended { slot } => {
                if let Some((link, address)) = self.links.remove(slot) {
                    self.shard.closed(now, link);
                    // The door may have gone first; then nobody counts any more.
                    self.workers.departures.send(address).ok();
                }
            }
            Event::Parted { slot } => self.hand_over(now, slot),
            Event::Written {
                file,
                token,
                result,
            } => {
                if let Some(store) = &mut self.store {
                    let ring = self.connections.ring_mut();
                    store.written(ring, &mut self.shard, (file, token), result);
                }
            }
        }
    }

    /// A connection that moves has nothing under way any more.
    fn hand_over(&mut self, now: Now, slot: Slot) {
        // Its end was decided meanwhile, and is among the wishes.
        let moving = self.links.link(slot);
        let Some((shard, attached)) = moving.and_then(|link| self.shard.hand_over(link)) else {
            return;
        };
        let (tenant, socket) = (self.links.remove(slot), self.connections.take(slot));
        let (Some((_, address)), Some(socket)) = (tenant, socket) else {
            unreachable!("a connection that has parted is there until it is taken");
        };
        let let_in = LetIn {
            socket,
            address,
            attached,
        };
        self.send_on(now, shard, Arrival::Connection(let_in));
    }

    /// Gives a link to another shard. Where there is no room for it, it stays: the welcome
    /// says so.
    fn send_on(&mut self, now: Now, shard: ShardIndex, arrival: Arrival<R::Socket>) {
        let there = self.workers.ways.get(usize::from(shard.0));
        if let Err(back) = match there {
            Some(way) => way.post(arrival),
            None => Err(arrival),
        } {
            self.arrived(now, back);
        }
    }

    fn arrived(&mut self, now: Now, arrival: Arrival<R::Socket>) {
        match arrival {
            Arrival::Connection(let_in) => self.let_in(now, let_in),
            Arrival::Guest(guest, attached) => self.take_in(now, guest, attached),
        }
    }

    fn let_in(&mut self, now: Now, let_in: LetIn<R::Socket>) {
        let LetIn {
            socket,
            address,
            attached,
        } = let_in;
        let refused = match self.shard.attached(now, attached) {
            Ok(link) => match self.connections.open(socket) {
                Ok(slot) => return self.links.insert(slot, link, address),
                Err(socket) => {
                    self.shard.closed(now, link);
                    (socket, Refusal::TooManyLinks)
                }
            },
            Err(refusal) => (socket, refusal),
        };
        let (socket, refusal) = refused;
        R::turn_away(socket, &Door::farewell(refusal));
        self.workers.departures.send(address).ok();
    }

    /// A wish of the shard becomes one of the connection.
    fn note(&mut self, now: Now, output: Output) {
        let (Output::Send(link) | Output::HandOver(link) | Output::Close { link, .. }) = output;
        let Some(slot) = self.links.slot(link) else {
            if let Some(place) = self.guests.place(link) {
                self.note_guest(now, place, output);
            }
            return;
        };
        match output {
            Output::Send(_) => self.connections.want(slot),
            Output::HandOver(_) => self.connections.part(slot),
            Output::Close { flush: true, .. } => self.connections.leave(now.monotonic, slot),
            Output::Close { flush: false, .. } => self.connections.abandon(slot),
        }
    }

    fn send(&mut self, slot: Slot) {
        let given = self.links.link(slot).and_then(|link| {
            outgoing::send_pieces(self.connections.ring_mut(), slot, &self.shard, link)
        });
        match given {
            Some(given) => {
                self.connections.begun(slot, given.bytes, given.more);
                self.shard.counters_mut().add(Counter::Sends, 1);
            }
            None => self.connections.nothing(slot),
        }
    }

    fn count(&mut self, calls: Calls, worked: bool) {
        let enters = if worked {
            Counter::Enters
        } else {
            Counter::EntersIdle
        };
        let counters = self.shard.counters_mut();
        for (counter, more) in [
            (enters, calls.enters),
            (Counter::DirectReceives, calls.direct_receives),
            (Counter::DirectPolls, calls.direct_polls),
            (Counter::DirectSends, calls.direct_sends),
            (Counter::DirectBegun, calls.direct_begun),
            (Counter::DirectEnded, calls.direct_ended),
            (Counter::CompletionOverflows, calls.overflows),
        ] {
            counters.add(counter, more.into());
        }
    }

    /// Until the first timer, or the end of a stop.
    fn sleep_time(&self, now: Now, stop_by: Option<Monotonic>) -> Duration {
        [self.next_expiry(), stop_by]
            .into_iter()
            .flatten()
            .map(|time| time.since(now.monotonic))
            .fold(SLEEP_MAX, Duration::min)
    }

    fn publish(&mut self, now: Now) {
        self.publisher.publish(
            now.monotonic,
            Figures {
                counters: self.shard.counters(),
                links: self.shard.links(),
                chunks_free: self.shard.chunks_free(),
                tally: self.connections.tally(),
            },
        );
    }
}

/// Links without a socket. Nothing of them is ever under way: what is copied has left.
impl<R: Ring<File = DiskFile>> Worker<R> {
    /// Takes in one that was introduced elsewhere, or not yet.
    fn take_in(&mut self, now: Now, guest: Guest, attached: Option<Attached>) {
        guest.taken_in(self.workers.own);
        let place = self.guests.insert(guest);
        match attached {
            Some(attached) => self.attach(now, place, attached),
            None if self.pace.stop_by.is_some() => self.turn_away(place, Refusal::Stopping),
            None => {}
        }
    }

    fn attach(&mut self, now: Now, place: Place, attached: Attached) {
        match self.shard.attached(now, attached) {
            Ok(link) => self.guests.introduced(place, link),
            Err(refusal) => self.turn_away(place, refusal),
        }
    }

    /// What they have written, and which of them are gone.
    fn hear(&mut self, now: Now) -> u32 {
        let mut work = 0;
        for place in 0..self.guests.end() {
            let Some(entry) = self.guests.get_mut(place) else {
                continue;
            };
            if !entry.guest.has_news() {
                continue;
            }
            work += 1;
            let shard = &mut self.shard;
            let is_strange = match &mut entry.phase {
                Phase::Inside(link) => {
                    let link = *link;
                    entry.guest.pull(|bytes| {
                        shard.counters_mut().add(Counter::Receives, 1);
                        shard.received(now, link, bytes);
                    });
                    false
                }
                Phase::Strange(said) => entry.guest.pull(|bytes| said.extend_from_slice(bytes)),
            };
            if entry.guest.is_closed() {
                self.part_from(now, place);
            } else if is_strange {
                self.introduce(now, place);
            }
        }
        work
    }

    /// Hears who a guest is, if it has said so.
    #[cold]
    fn introduce(&mut self, now: Now, place: Place) {
        let Some(entry) = self.guests.get_mut(place) else {
            return;
        };
        let Phase::Strange(said) = &entry.phase else {
            return;
        };
        match door::introduction(said) {
            Ok(None) => {}
            Ok(Some((attached, wanted))) => match wanted {
                Some(shard)
                    if shard != self.workers.own
                        && usize::from(shard.0) < self.workers.ways.len() =>
                {
                    if let Some(entry) = self.guests.remove(place) {
                        let arrival = Arrival::Guest(entry.guest, Some(attached));
                        self.send_on(now, shard, arrival);
                    }
                }
                _ => self.attach(now, place, attached),
            },
            Err(refusal) => self.turn_away(place, refusal),
        }
    }

    /// Says why not, and goodbye.
    #[cold]
    fn turn_away(&mut self, place: Place, refusal: Refusal) {
        if let Some(mut entry) = self.guests.remove(place) {
            // Nothing else was ever written to it.
            entry.guest.push(&[&Door::farewell(refusal)]);
        }
    }

    /// It is gone, or goes now.
    fn part_from(&mut self, now: Now, place: Place) {
        if let Some(entry) = self.guests.remove(place)
            && let Some(link) = entry.link()
        {
            self.shard.closed(now, link);
        }
    }

    fn note_guest(&mut self, now: Now, place: Place, output: Output) {
        match output {
            Output::Send(_) => self.guests.want(place),
            Output::Close { flush: true, .. } => self.guests.leave(now.monotonic, place),
            Output::Close { flush: false, .. } => self.part_from(now, place),
            Output::HandOver(link) => {
                if let Some((shard, attached)) = self.shard.hand_over(link)
                    && let Some(entry) = self.guests.remove(place)
                {
                    let arrival = Arrival::Guest(entry.guest, Some(attached));
                    self.send_on(now, shard, arrival);
                }
            }
        }
    }

    /// Copies what there is for them as far as there is room, for each at most what fits a
    /// ring in one turn.
    fn tell(&mut self, now: Now) -> u32 {
        let mut work = 0;
        for place in 0..self.guests.end() {
            let Some(entry) = self.guests.get_mut(place) else {
                continue;
            };
            let (true, Some(link)) = (entry.wants, entry.link()) else {
                continue;
            };
            let mut told = 0;
            let is_all = loop {
                let mut pieces = Pieces::new();
                self.shard.pieces(link, &mut pieces);
                if pieces.is_empty() {
                    break true;
                }
                let count = entry.guest.push(pieces.slices());
                if count == 0 {
                    break false;
                }
                self.shard.sent(now, link, count);
                told += count;
                if told >= limits::IN_PROCESS_RING_SIZE as usize {
                    break false;
                }
            };
            entry.wants = !is_all;
            if told > 0 {
                work += 1;
                self.shard.counters_mut().add(Counter::Sends, 1);
                entry.guest.ring();
            }
            if is_all && entry.leaves_by.is_some() {
                self.part_from(now, place);
            }
        }
        work
    }
}

/// Which slot is which link's, both ways.
#[derive(Debug)]
struct Links {
    /// By slot.
    tenants: Vec<Option<Tenant>>,
    /// By the link's own place in the shard's table.
    slots: Vec<Option<(Handle, Slot)>>,
}

#[derive(Debug, Clone, Copy)]
struct Tenant {
    slot: Slot,
    link: Handle,
    address: IpAddr,
}

impl Links {
    fn new(slots: u32) -> Self {
        Self {
            tenants: vec![None; slots as usize],
            slots: vec![None; limits::LINKS_MAX as usize],
        }
    }

    fn insert(&mut self, slot: Slot, link: Handle, address: IpAddr) {
        self.tenants[slot.index as usize] = Some(Tenant {
            slot,
            link,
            address,
        });
        self.slots[link.slot()] = Some((link, slot));
    }

    fn remove(&mut self, slot: Slot) -> Option<(Handle, IpAddr)> {
        let tenant = self.tenants[slot.index as usize].take_if(|tenant| tenant.slot == slot)?;
        self.slots[tenant.link.slot()] = None;
        Some((tenant.link, tenant.address))
    }

    fn link(&self, slot: Slot) -> Option<Handle> {
        self.tenants[slot.index as usize]
            .filter(|tenant| tenant.slot == slot)
            .map(|tenant| tenant.link)
    }

    fn slot(&self, link: Handle) -> Option<Slot> {
        self.slots
            .get(link.slot())
            .copied()
            .flatten()
            .filter(|(tenant, _)| *tenant == link)
            .map(|(_, slot)| slot)
    }
}

#[cfg(test)]
pub(crate) mod tests;
