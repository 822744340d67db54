//! A shard's thread: one loop, in one function.
//!
//! Cast: the [`Shard`] is the deterministic machine; [`Connections`] are its sockets; the
//! inbox brings the connections that the door let in and those that other shards handed
//! over; the [`Worker`] owns all three and gives each its share of every turn. What
//! shards have for each other lies in rings between the machines; the worker only rings
//! the doorbells, and sleeps only after a look at the rings.
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
use std::time::Duration;

use courser_core::counters::Counter;
use courser_core::door::Door;
use courser_core::error::Refusal;
use courser_core::id::{Handle, ShardIndex};
use courser_core::limits;
use courser_core::shard::{Attached, Output, Shard};
use courser_core::time::{Monotonic, Now};

use crate::clock::Clock;
use crate::connection::{Connections, Event};
use crate::handoff::{Inbox, Sender};
use crate::idle::{Idle, Rest};
use crate::ring::outgoing;
use crate::ring::{Calls, Ring, RingFault, Slot, Wait};
use crate::stats::{Figures, Publisher};

/// A spinning shard reads the clock on turns with work, and else once in so many.
const IDLE_TURNS_PER_CLOCK: u32 = 16;

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

/// Workers that still have connections while the broker stops. Each stays until none
/// has: what one still owes its clients, another may have to answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Company {
    /// Raised by each worker before any of them runs, lowered by each once it has said
    /// goodbye to everybody. Release and acquire: who sees 0 sees what all others posted
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
    /// The ways to each shard's worker, itself among them, by shard.
    pub(crate) ways: Vec<Sender<LetIn<S>>>,
    pub(crate) company: Company,
    /// Where the door hears whose connections are over.
    pub(crate) departures: mpsc::Sender<IpAddr>,
}

impl<S> Workers<S> {
    /// Of a worker without others.
    #[cfg(test)]
    pub(crate) fn alone(way: Sender<LetIn<S>>, departures: mpsc::Sender<IpAddr>) -> Self {
        Self {
            ways: vec![way],
            company: Company::of(1),
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
    inbox: Inbox<LetIn<R::Socket>>,
    workers: Workers<R::Socket>,
    control: Control,
    clock: Clock,
    idle: Idle,
    publisher: Publisher,
}

impl<R: Ring> Worker<R> {
    pub(crate) fn new(
        ring: R,
        shard: Shard,
        inbox: Inbox<LetIn<R::Socket>>,
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
            inbox,
            workers,
            control,
            clock: Clock::new(),
            idle,
            publisher,
        }
    }

    /// Runs until it is told to stop and has said goodbye to everybody, or until the
    /// time for that is over.
    pub(crate) fn run(mut self) -> Result<(), RingFault> {
        let mut now = self.clock.now();
        let mut idle_turns = 0;
        let mut stop_by = None;
        let mut is_done = false;
        loop {
            // 1. The clock: once a turn, for everything in it. A turn without work and
            //    without a sleep behind it changes little, so most of those go without.
            let mut event = self.connections.next();
            if event.is_some()
                || !self.inbox.is_empty()
                || !self.shard.mesh_is_empty()
                || idle_turns % IDLE_TURNS_PER_CLOCK == 0
            {
                now = self.clock.now();
            }
            let mut work = 0_u32;

            // 2. What the kernel completed: frees buffers and egress before anything
            //    below needs them. A turn of the ring collects a bounded number.
            while let Some(fact) = event {
                self.take(now, fact);
                work += 1;
                event = self.connections.next();
            }

            // 3. What other shards sent: outcomes of what was forwarded can leave in this
            //    turn. After the completions, whose memory it can use.
            work += self.shard.meet(now);

            // 4. Connections that the door let in: after the completions, whose slots
            //    and memory they can use; before the shard acts, so that their welcome
            //    leaves in this turn.
            while let Some(let_in) = self.inbox.take() {
                self.let_in(now, let_in);
                work += 1;
            }

            // 5. Timers: after the facts, so that what came in time beats its limit.
            self.shard.expire(now);
            self.connections.expire(now.monotonic);
            if stop_by.is_none() && self.control.is_stopping() {
                self.shard.stop(now);
                stop_by = Some(now.monotonic.after(limits::DRAIN_TIMEOUT));
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

            // 8. Enqueue: one send per connection, out of everything it has waiting.
            while let Some(slot) = self.connections.next_ready() {
                self.send(slot);
            }

            // 9. The end: nobody left at any shard, or no more time for goodbyes. What is
            //    dropped here is cancelled and drained by the ring.
            if let Some(deadline) = stop_by {
                if !is_done && self.connections.occupied() == 0 && self.shard.is_drained() {
                    is_done = true;
                    if self.workers.company.leave() {
                        self.workers.ways.iter().for_each(Sender::ring);
                    }
                }
                let is_over = self.workers.company.has_gone() && self.inbox.is_empty();
                if is_over || now.monotonic >= deadline {
                    self.publish(now);
                    return Ok(());
                }
            }

            // 10. Whether there is reason to wait. Only after the doorbell was armed is
            //    a look at the queues worth anything; see the interleaving there.
            let rest = self.idle.rest(work > 0, now.monotonic);
            let publish_now = rest == Rest::Sleep || self.publisher.is_due(now.monotonic);
            let mut wait = Wait::No;
            if rest == Rest::Sleep && !self.shard.has_work() {
                self.connections.ring().doorbell().announce_sleep();
                let is_told = stop_by.is_none() && self.control.is_stopping();
                let is_over = stop_by.is_some() && self.workers.company.has_gone();
                if self.inbox.is_empty() && self.shard.mesh_is_empty() && !is_told && !is_over {
                    wait = Wait::AtMost(Some(self.sleep_time(now, stop_by)));
                }
            }

            // 11. Submit once: hands over what was enqueued, lets the kernel do its share
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
            idle_turns = if work > 0 || wait != Wait::No {
                0
            } else {
                idle_turns.wrapping_add(1)
            };
        }
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
        let there = self.workers.ways.get(usize::from(shard.0));
        // Where there is no room for it, it stays: the welcome says so.
        if let Err(back) = match there {
            Some(way) => way.post(let_in),
            None => Err(let_in),
        } {
            self.let_in(now, back);
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
        match output {
            Output::Send(link) => {
                if let Some(slot) = self.links.slot(link) {
                    self.connections.want(slot);
                }
            }
            Output::HandOver(link) => {
                if let Some(slot) = self.links.slot(link) {
                    self.connections.part(slot);
                }
            }
            Output::Close { link, flush } => {
                if let Some(slot) = self.links.slot(link) {
                    if flush {
                        self.connections.leave(now.monotonic, slot);
                    } else {
                        self.connections.abandon(slot);
                    }
                }
            }
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
        [
            self.shard.next_expiry(),
            self.connections.next_expiry(),
            stop_by,
        ]
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
