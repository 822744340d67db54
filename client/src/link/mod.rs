//! One connection, shared by all producers and consumers of a client: whoever
//! waits, drives.
//!
//! ```text
//!   thread A   send ---- waits ---- holds the baton ----> turn: write, read, note
//!   thread B   send ---- finds it held: lane, knock, mark ------> | drained
//!   thread C   receive - waits ---- sleeps at the socket          | before it is
//!   thread D   receive - waits ---- parked                        | let go
//!   background (listeners, futures outstanding) asleep or aside   v
//! ```
//!
//! The cast: `state` is what a driver has, the machine and the books; `wire` the
//! bytes; `waiters` those who wait; `background` the thread that drives while
//! nobody else does. All of it lies behind one [`Baton`] that is held for a turn
//! and never while a thread sleeps.
//!
//! A thread that waits drives turn by turn for the spin budget, since being woken
//! costs 30 to 60 us and an answer over loopback takes 10 to 20. Then it sleeps at
//! the socket, or parks if another one is there. What a driver reads for another
//! thread wakes that thread by name; a driver that leaves calls a parked one to the
//! socket. So somebody is always there while anyone waits.
//!
//! Sends never wait for the baton: see `lane`. What needs the books (requests,
//! `poll`, a consumer that takes what was delivered) tries until it has the baton,
//! which is held for a few microseconds at a time, and yields its processor if it
//! is held for longer.
//!
//! Sends with listeners and futures share system calls. One that finds nothing on
//! its way is written at once, by its sender. One that follows closely is left for
//! whoever reads the next answer, or for the sender's next write after
//! [`GATHER_MAX`]:
//!
//! ```text
//!   sends     a b c d e f g h i j k ...
//!   written   a...........|bcdefgh......|ijk...     each at least GATHER_MAX apart,
//!   answers          <- a        <- b to h          or when an answer was read
//! ```
//!
//! Left alone they would wait for an answer that may not come soon, so whoever
//! sleeps at the socket meanwhile sleeps for [`NAP_MAX`] at most.

mod background;
mod state;
mod waiters;
mod wire;

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use courser_core::client::{self, ConsumerKey, Event, ProducerKey};
use courser_core::id::RequestId;
use courser_core::ring::{Baton, Holder};
use courser_core::time::Monotonic;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::clock::{self, Clock};
use crate::error::{Cause, RequestError, SendError};
use crate::lane::{Item, Lane};

pub(crate) use state::State;
pub(crate) use waiters::{Wanted, Woken};

use waiters::{Seat, Sleeper};
use wire::Watched;
pub(crate) use wire::{Way, Wire};

/// How long threads of the library outlive their last work.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How long sends with listeners gather before their sender writes them: four
/// times what a write costs, so that at most a fifth of its time goes there.
const GATHER_MAX: Duration = Duration::from_micros(20);
/// Frame bytes that are written without waiting for more.
const GATHERED_MAX: usize = 64 * 1024;
/// How long gathered sends wait if no answer comes.
const NAP_MAX: Duration = Duration::from_millis(1);
/// How often the baton is tried for before the processor is yielded: longer than
/// a turn takes whose driver is running.
const TRIES_MAX: u32 = 256;

/// See the module.
pub(crate) struct Link {
    baton: Baton<State>,
    /// A bit for each lane, modulo 64, that may have something in it. Set before a
    /// mark is left, which publishes it; cleared by the driver.
    knocks: AtomicU64,
    /// Threads that try for the baton again and again. Only advice to spinning
    /// drivers, so nothing hangs on its ordering.
    trying: AtomicU32,
    /// Listeners that have not returned, of sends that are about to be taken too.
    callbacks_open: AtomicUsize,
    /// Threads that wait for callbacks to return. Sequentially consistent with
    /// the counts of callbacks: either the waiter sees the count that fell, or
    /// the callback thread sees the waiter.
    watching: AtomicUsize,
    /// One for each seat.
    bells: [OwnedFd; 2],
    zero: Instant,
    /// How long a waiter tries before it sleeps.
    spin: Duration,
    /// How long a request waits for its answer.
    timeout: Duration,
    /// How often the connection was lost.
    disconnects: Arc<AtomicU32>,
    /// For the background thread.
    me: Weak<Link>,
}

/// Holds the baton; lets go of it when dropped, and then wakes whom it has
/// something for.
pub(crate) struct Driving<'a> {
    link: &'a Link,
    holder: Option<Holder<'a, State>>,
}

impl Deref for Driving<'_> {
    type Target = State;

    #[inline]
    fn deref(&self) -> &State {
        self.holder.as_ref().expect("held until it is dropped")
    }
}

impl DerefMut for Driving<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut State {
        self.holder.as_mut().expect("held until it is dropped")
    }
}

impl Drop for Driving<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(holder) = self.holder.take() {
            self.link.let_go(holder);
        }
    }
}

impl Link {
    /// A link over a wire that is connected.
    pub(crate) fn new(
        wire: Wire,
        config: client::Config,
        spin: Duration,
        timeout: Duration,
    ) -> io::Result<Arc<Self>> {
        let bell = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let bells = [bell()?, bell()?];
        let zero = Instant::now();
        let mut machine = client::Client::new(config);
        machine.connected(clock::steady(zero));
        let state = State::new(machine, Clock::new(zero), wire);
        Ok(Arc::new_cyclic(|me| Self {
            disconnects: Arc::clone(&state.disconnects),
            baton: Baton::new(state),
            knocks: AtomicU64::new(0),
            trying: AtomicU32::new(0),
            callbacks_open: AtomicUsize::new(0),
            watching: AtomicUsize::new(0),
            bells,
            zero,
            spin,
            timeout,
            me: Weak::clone(me),
        }))
    }

    /// The time as the machine sees it.
    #[inline]
    pub(crate) fn now(&self) -> Monotonic {
        clock::steady(self.zero)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How often the connection was lost so far.
    #[inline]
    pub(crate) fn disconnects(&self) -> u32 {
        self.disconnects.load(Ordering::Relaxed)
    }

    // The baton.

    /// Takes the baton if nobody has it.
    #[inline]
    pub(crate) fn try_take(&self) -> Option<Driving<'_>> {
        self.baton.try_take().map(|holder| self.driving(holder))
    }

    /// Takes the baton as soon as it is let go.
    #[inline]
    pub(crate) fn take(&self) -> Driving<'_> {
        match self.baton.try_take() {
            Some(holder) => self.driving(holder),
            None => self.take_in_turn(),
        }
    }

    #[cold]
    fn take_in_turn(&self) -> Driving<'_> {
        self.trying.fetch_add(1, Ordering::Relaxed);
        let mut tries = 0;
        let holder = loop {
            if let Some(holder) = self.baton.try_take() {
                break holder;
            }
            tries += 1;
            if tries < TRIES_MAX {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        };
        self.trying.fetch_sub(1, Ordering::Relaxed);
        self.driving(holder)
    }

    #[inline]
    fn driving<'a>(&'a self, holder: Holder<'a, State>) -> Driving<'a> {
        Driving {
            link: self,
            holder: Some(holder),
        }
    }

    /// Lets go once nobody has left a mark, and wakes who is to be woken.
    #[inline]
    fn let_go(&self, holder: Holder<'_, State>) {
        if !holder.waiters.woken.is_empty() {
            return self.let_go_and_wake(holder);
        }
        if let Err(mut still) = holder.release() {
            self.look_again(&mut still);
            self.let_go_and_wake(still);
        }
    }

    /// Somebody put something into a lane meanwhile.
    #[cold]
    fn look_again(&self, state: &mut State) {
        self.drain(state);
        state.write();
    }

    #[cold]
    fn let_go_and_wake(&self, mut holder: Holder<'_, State>) {
        loop {
            let woken = std::mem::take(&mut holder.waiters.woken);
            match holder.release() {
                Ok(()) => {
                    for woken in woken {
                        woken.wake(|seat| self.ring(seat));
                    }
                    return;
                }
                Err(still) => {
                    holder = still;
                    holder.waiters.woken.extend(woken);
                    self.look_again(&mut holder);
                }
            }
        }
    }

    /// Lets others at the baton for a moment.
    fn pause<'a>(&'a self, driving: Driving<'a>) -> Driving<'a> {
        drop(driving);
        if self.trying.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
        self.take()
    }

    // Lanes.

    /// Sends the way through the lane; gives the send back if that way is barred.
    pub(crate) fn send_by(&self, lane: &Lane, key: ProducerKey, item: Item) -> Result<(), Item> {
        lane.push(item)?;
        self.knocks
            .fetch_or(1 << (key.index() % 64), Ordering::Release);
        if let Some(holder) = self.baton.take_or_mark() {
            let mut driving = self.driving(holder);
            self.drain(&mut driving);
            driving.write();
        }
        Ok(())
    }

    /// Takes what is in the lanes on which somebody knocked.
    fn drain(&self, state: &mut State) {
        if self.knocks.load(Ordering::Relaxed) == 0 {
            return;
        }
        let knocks = self.knocks.swap(0, Ordering::Acquire);
        for key in state.knocked(knocks) {
            self.drain_lane(state, key);
        }
    }

    /// Takes all that is in a producer's lane.
    pub(crate) fn drain_lane(&self, state: &mut State, key: ProducerKey) {
        while let Some(item) = state.ledger(key).and_then(|ledger| ledger.lane.pop()) {
            match self.listen_for(state, &item) {
                Ok(()) => state.line_up(key, item),
                Err(_) => state.fail(
                    key,
                    item,
                    SendError::NotStored {
                        cause: Cause::NoThread,
                    },
                ),
            }
        }
    }

    fn listen_for(&self, state: &mut State, item: &Item) -> io::Result<()> {
        match item.who {
            crate::lane::Who::Thread(_) => Ok(()),
            _ => self.listen(state),
        }
    }

    // Driving.

    /// One turn; true if anything came of it.
    #[inline]
    pub(crate) fn turn(&self, state: &mut State) -> bool {
        self.drain(state);
        state.turn()
    }

    /// Writes a send with a listener or a future, or leaves it to be written with
    /// others. `on_its_way` says whether an answer to an earlier one is expected.
    pub(crate) fn gather(&self, state: &mut State, on_its_way: bool, size: usize, now: Monotonic) {
        state.gathered += size;
        let is_early = now.since(state.written) < GATHER_MAX;
        let is_watched = state.background.thread.is_some() || state.waiters.foreground > 0;
        if !(on_its_way && is_early && is_watched && state.gathered < GATHERED_MAX) {
            state.written = now;
            state.write();
            return;
        }
        // Awake, somebody goes to sleep only after a look. Asleep somebody has to
        // wake soon enough, even if no answer comes.
        let soon = now.after(NAP_MAX);
        let sleepers = &mut state.waiters;
        if sleepers.has_sleeper()
            && !sleepers.is_foreground_awake()
            && !sleepers.some_sleeper(|sleeper| sleeper.until <= soon)
        {
            sleepers.ring_one();
        }
    }

    /// Drives the link, or lets others drive, until `ready` finds something or the
    /// deadline passes. `wanted` says what `ready` looks for.
    pub(crate) fn wait<T>(
        &self,
        deadline: Monotonic,
        wanted: Wanted,
        ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        self.wait_on(self.take(), deadline, wanted, ready)
    }

    /// As [`Link::wait`], by a thread that has the baton.
    #[inline]
    pub(crate) fn wait_on<'a, T>(
        &'a self,
        mut driving: Driving<'a>,
        deadline: Monotonic,
        wanted: Wanted,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        driving.waiters.foreground += 1;
        let spin_until = self.now().after(self.spin);
        let found = loop {
            self.turn(&mut driving);
            if let Some(found) = ready(&mut driving) {
                break Some(found);
            }
            let now = self.now();
            if now >= deadline {
                break None;
            }
            driving = if now < spin_until {
                self.pause(driving)
            } else if driving.waiters.sleeper(Seat::Foreground).is_some() {
                self.park(driving, wanted, deadline.since(now))
            } else {
                self.sleep(driving, Seat::Foreground, Some(wanted), deadline)
            };
        };
        driving.waiters.foreground -= 1;
        driving.hand_over();
        found
    }

    /// As [`Link::wait`], for what callbacks change.
    pub(crate) fn watch<T>(&self, ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        self.watching.fetch_add(1, Ordering::SeqCst);
        let found = self.wait(Monotonic::NEVER, Wanted::Anything, ready);
        self.watching.fetch_sub(1, Ordering::SeqCst);
        found
    }

    /// Waits until somebody has something for this thread, or calls it to the
    /// socket.
    fn park<'a>(&'a self, mut driving: Driving<'a>, wanted: Wanted, time: Duration) -> Driving<'a> {
        driving.waiters.park(wanted);
        driving.alarm();
        drop(driving);
        thread::park_timeout(time);
        let mut driving = self.take();
        driving.waiters.unpark();
        driving
    }

    /// Sleeps at the socket.
    fn sleep<'a>(
        &'a self,
        mut driving: Driving<'a>,
        seat: Seat,
        wanted: Option<Wanted>,
        deadline: Monotonic,
    ) -> Driving<'a> {
        let mut until = deadline.min(driving.next_deadline());
        if driving.listening > 0 {
            // The next sends may rely on it.
            until = until.min(self.now().after(NAP_MAX));
        }
        let watched = driving.wire.watched();
        let for_room = driving.machine.has_pieces() || driving.wire.is_dialing();
        if !driving.wire.announce_sleep(for_room) {
            if !driving.waiters.has_sleeper() {
                driving.wire.announce_awake();
            }
            return driving;
        }
        // A bell always has room.
        let for_room = for_room && matches!(watched, Some(Watched::Socket(_)));
        driving.waiters.sleep(
            seat,
            Sleeper {
                wanted,
                for_room,
                until,
                is_rung: false,
            },
        );
        drop(driving);
        let flags = if for_room {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let time = (until != Monotonic::NEVER).then(|| timespec(until.since(self.now())));
        let bell = &self.bells[seat as usize];
        let bell_fd = PollFd::new(bell, PollFlags::IN);
        let mut fds = match &watched {
            Some(watched) => [bell_fd, PollFd::new(watched, flags)],
            // Twice the bell: a list on the stack has one length.
            None => [bell_fd.clone(), bell_fd],
        };
        // An error here is an interruption: the loop around looks again.
        poll(&mut fds, time.as_ref()).ok();
        if fds[0].revents().contains(PollFlags::IN) {
            rustix::io::read(bell, &mut [0; 8]).ok();
        }
        let mut driving = self.take();
        driving.waiters.wake(seat);
        if !driving.waiters.has_sleeper() {
            driving.wire.announce_awake();
        }
        driving
    }

    fn ring(&self, seat: Seat) {
        // The counter is full only if it was rung already.
        rustix::io::write(&self.bells[seat as usize], &1u64.to_ne_bytes()).ok();
    }

    /// The future of a consumer wants to be woken for a message.
    pub(crate) fn expect(
        &self,
        state: &mut State,
        consumer: ConsumerKey,
        waker: &Waker,
    ) -> io::Result<()> {
        state.expect(consumer, waker);
        self.keep_driven(state)
    }

    // Callbacks.

    /// A send with a listener is about to be handed over.
    pub(crate) fn will_call(&self) {
        self.callbacks_open.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether every listener has returned.
    pub(crate) fn has_called_back(&self) -> bool {
        self.callbacks_open.load(Ordering::SeqCst) == 0
    }

    /// A callback has returned, which its producer's count says already, or its
    /// send was not taken.
    pub(crate) fn called_back(&self) {
        self.callbacks_open.fetch_sub(1, Ordering::SeqCst);
        if self.watching.load(Ordering::SeqCst) > 0 {
            self.take().wake_watchers();
        }
    }

    // Requests.

    /// Makes a request and waits for its answer.
    pub(crate) fn request(
        &self,
        make: impl FnOnce(&mut client::Client) -> Result<RequestId, client::RequestError>,
    ) -> Result<Event, RequestError> {
        self.request_with_patience(Duration::ZERO, make)
    }

    /// As [`Link::request`], for what the broker may have wait; after `patience` it is
    /// cancelled, which is answered as well.
    pub(crate) fn request_with_patience(
        &self,
        patience: Duration,
        make: impl FnOnce(&mut client::Client) -> Result<RequestId, client::RequestError>,
    ) -> Result<Event, RequestError> {
        let request = {
            let mut state = self.take();
            match make(&mut state.machine) {
                Ok(request) => request,
                Err(error) => {
                    return Err(match (&state.end, error) {
                        (Some(end), client::RequestError::Closed) => {
                            RequestError::LinkEnded(Arc::clone(end))
                        }
                        _ => RequestError::NotMade(error),
                    });
                }
            }
        };
        let answer_within = |time: Duration| {
            let deadline = self.now().after(time);
            self.wait(deadline, Wanted::Answer(request), |state| {
                let answer = state.answer(request).map(Ok);
                answer.or_else(|| {
                    let end = state.end.as_ref()?;
                    Some(Err(RequestError::LinkEnded(Arc::clone(end))))
                })
            })
        };
        let mut answer = None;
        if !patience.is_zero() {
            answer = answer_within(patience);
            if answer.is_none() {
                self.take().cancel(request);
            }
        }
        let answer = answer.or_else(|| answer_within(self.timeout));
        match answer {
            Some(Ok(Event::Refused {
                refusal,
                code,
                text,
                ..
            })) => Err(RequestError::Refused {
                refusal,
                code,
                text,
            }),
            Some(Ok(Event::Redirected { address, .. })) => Err(RequestError::Elsewhere { address }),
            Some(answer) => answer,
            None => {
                self.take().abandon(request);
                Err(RequestError::TimedOut {
                    after: patience.saturating_add(self.timeout),
                })
            }
        }
    }

    // Leaving.

    /// Says goodbye and ends the connection.
    pub(crate) fn close(&self) {
        self.take().machine.goodbye();
        let deadline = self.now().after(self.timeout);
        self.wait(deadline, Wanted::Anything, |state| {
            state.end.is_some().then_some(())
        });
        let mut state = self.take();
        state.machine.closed();
        state.turn();
    }

    /// The last handle is gone: leaves at once, or once listeners had their say.
    pub(crate) fn desert(&self) {
        let mut state = self.take();
        state.is_deserted = true;
        if state.listening == 0 {
            state.leave();
        }
        state.call_background();
        state.waiters.ring(Seat::Background);
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
