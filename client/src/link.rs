//! One connection, shared by all producers and consumers of a client: whoever
//! waits, drives.
//!
//! ```text
//!   thread A   send ---- waits ---- polls the socket ----+
//!   thread B   receive - waits ---- sleeps on `changed`  | one at a time polls,
//!   background         (listeners outstanding) sleeps    | whoever reads wakes
//!                                                        v the others
//!                              machine  <--- read ---  socket
//!                                       --- write -->
//! ```
//!
//! All state lies behind one lock that is held for a read, a write and the work
//! between them, and never while a thread sleeps. At most one thread sleeps in
//! `poll`; the others sleep on a condition and are woken when something was
//! read. A thread that leaves hands over by waking them: the next one polls.
//!
//! Two sleepers in `poll` would lose wake-ups: what the first reads for the
//! second leaves the socket quiet before the second has gone to sleep. So a
//! thread that reads while another one polls rings the other's bell.
//!
//! The background thread exists while sends with listeners are outstanding and
//! for a second more. It polls only if no application thread waits.
//!
//! Sends with listeners share system calls. One that finds nothing on its way is
//! written at once, by its sender. One that follows closely is left for whoever
//! reads the next answer, or for the sender's next write after [`GATHER_MAX`]:
//!
//! ```text
//!   sends     a b c d e f g h i j k ...
//!   written   a...........|bcdefgh......|ijk...     each at least GATHER_MAX apart,
//!   answers          <- a        <- b to h          or when an answer was read
//! ```
//!
//! Left alone they would wait for an answer that may not come soon, so whoever
//! sleeps in `poll` meanwhile sleeps for [`NAP_MAX`] at most.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use courser_core::client::{self, ConsumerKey, Event, LinkEnd, Outgoing, PIECES_MAX, ProducerKey};
use courser_core::id::{RequestId, Sequence};
use courser_core::time::{Monotonic, Now};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::clock::{self, Clock};
use crate::error::{Cause, RequestError, SendError};
use crate::ledger::{Ledger, Pending, SendResult};
use crate::message::Payload;
use crate::producer::Completion;
use crate::session::Call;

/// How long threads of the library outlive their last work.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How much is read at once: a size that stays in the second-level cache.
const RECEIVE_SIZE: usize = 64 * 1024;
const PAGE_SIZE: usize = 4096;
/// Reads of one turn, so that writing is not starved.
const READS_MAX: usize = 16;
/// How long sends with listeners gather before their sender writes them: four
/// times what a write costs, so that at most a fifth of its time goes there.
const GATHER_MAX: Duration = Duration::from_micros(20);
/// Frame bytes that are written without waiting for more.
const GATHERED_MAX: usize = 64 * 1024;
/// How long gathered sends wait if no answer comes.
const NAP_MAX: Duration = Duration::from_millis(1);

/// See the module.
pub(crate) struct Link {
    state: Mutex<State>,
    changed: Condvar,
    /// Listeners that have not returned, of sends that are about to be taken too.
    callbacks_open: AtomicUsize,
    /// Threads that wait for callbacks to return. Sequentially consistent with
    /// the counts of callbacks: either the waiter sees the count that fell, or
    /// the callback thread sees the waiter.
    watching: AtomicUsize,
    stream: TcpStream,
    bell: OwnedFd,
    zero: Instant,
    /// How long a waiter tries before it sleeps.
    spin: Duration,
    /// How long a request waits for its answer.
    timeout: Duration,
}

/// The thread that sleeps in `poll`.
#[derive(Clone, Copy)]
struct Polling {
    background: bool,
    /// Whether it also wakes when the socket takes bytes.
    for_room: bool,
    until: Monotonic,
}

/// What the lock protects.
pub(crate) struct State {
    pub(crate) machine: client::Client,
    pub(crate) clock: Clock,
    /// Why the link has ended, once everything was told.
    pub(crate) end: Option<Arc<LinkEnd>>,
    buffer: Buffer,
    ledgers: Vec<Option<Ledger>>,
    /// Answers that their askers have not fetched.
    answers: Vec<(RequestId, Event)>,
    /// Requests whose asker is gone.
    abandoned: Vec<RequestId>,
    confirmations: Vec<(ConsumerKey, u32, Option<u16>)>,
    polling: Option<Polling>,
    /// Application threads that wait.
    foreground: usize,
    /// Threads that sleep on `changed`.
    sleeping: usize,
    /// Sends with listeners that have no outcome.
    listening: usize,
    has_background: bool,
    /// Frame bytes of sends with listeners that were left for a later write.
    gathered: usize,
    /// When a send with a listener was written last.
    written: Monotonic,
    /// Nobody holds the client any more: leave once no listener is outstanding.
    deserted: bool,
}

/// A page-aligned buffer: the kernel copies into one several times faster than
/// into one that begins a little behind a page.
struct Buffer {
    bytes: Vec<u8>,
    from: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; RECEIVE_SIZE + PAGE_SIZE];
        let from = bytes.as_ptr().align_offset(PAGE_SIZE).min(PAGE_SIZE);
        Self { bytes, from }
    }
}

/// Whether the socket takes more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    Done,
    Blocked,
}

impl Link {
    /// A link over a connected stream, which becomes non-blocking.
    pub(crate) fn new(
        stream: TcpStream,
        config: client::Config,
        spin: Duration,
        timeout: Duration,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let zero = Instant::now();
        let mut machine = client::Client::new(config);
        machine.connected(clock::steady(zero));
        Ok(Self {
            state: Mutex::new(State {
                machine,
                clock: Clock::new(zero),
                end: None,
                buffer: Buffer::new(),
                ledgers: Vec::new(),
                answers: Vec::new(),
                abandoned: Vec::new(),
                confirmations: Vec::new(),
                polling: None,
                foreground: 0,
                sleeping: 0,
                listening: 0,
                has_background: false,
                gathered: 0,
                written: Monotonic::default(),
                deserted: false,
            }),
            changed: Condvar::new(),
            callbacks_open: AtomicUsize::new(0),
            watching: AtomicUsize::new(0),
            stream,
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            zero,
            spin,
            timeout,
        })
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held is a bug of this crate; what follows
        // is still better served by the state than by a second panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time as the machine sees it.
    pub(crate) fn now(&self) -> Monotonic {
        clock::steady(self.zero)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    // Driving.

    /// Writes what is offered, as far as the socket takes it.
    #[inline]
    pub(crate) fn write(&self, state: &mut State) {
        if self.write_some(state) == Writing::Blocked || state.is_due_earlier() {
            // Whoever polls has to poll for more than it knows of.
            self.wake_poller(state);
        }
    }

    /// Writes a send with a listener, or leaves it to be written with others.
    /// `on_its_way` says whether an answer to an earlier one is expected.
    pub(crate) fn gather(&self, state: &mut State, on_its_way: bool, size: usize, now: Monotonic) {
        state.gathered += size;
        let is_early = now.since(state.written) < GATHER_MAX;
        if !(on_its_way && is_early && state.gathered < GATHERED_MAX && state.has_background) {
            state.written = now;
            self.write(state);
            return;
        }
        // Awake, it goes to sleep only after it has looked. Asleep it has to wake
        // soon enough, even if no answer comes.
        if let Some(polling) = &mut state.polling
            && polling.until > now.after(NAP_MAX)
        {
            polling.until = now;
            self.ring();
        }
    }

    fn write_some(&self, state: &mut State) -> Writing {
        state.clock.end_stamp();
        state.gathered = 0;
        while state.machine.has_pieces() {
            let pieces = state.machine.pieces();
            let result = match pieces.slices() {
                [] => break,
                [slice] => (&self.stream).write(slice),
                slices => {
                    let mut vector = [IoSlice::new(&[]); PIECES_MAX];
                    for (entry, slice) in vector.iter_mut().zip(slices) {
                        *entry = IoSlice::new(slice);
                    }
                    (&self.stream).write_vectored(&vector[..slices.len()])
                }
            };
            match result {
                Ok(0) => state.machine.closed(),
                Ok(count) => state.machine.sent(count),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Writing::Blocked,
                    io::ErrorKind::Interrupted => {}
                    _ => state.machine.closed(),
                },
            }
        }
        Writing::Done
    }

    /// Reads what is there; true if anything was.
    fn read(&self, state: &mut State) -> bool {
        let mut any = false;
        for _ in 0..READS_MAX {
            if state.machine.wants_close() {
                break;
            }
            let buffer = &mut state.buffer.bytes[state.buffer.from..][..RECEIVE_SIZE];
            match (&self.stream).read(buffer) {
                Ok(0) => {
                    state.machine.closed();
                    any = true;
                }
                Ok(count) => {
                    state.machine.received(&buffer[..count]);
                    any = true;
                    // A short read has emptied the socket.
                    if count < RECEIVE_SIZE {
                        break;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        state.machine.closed();
                        any = true;
                    }
                },
            }
        }
        any
    }

    /// One turn: writes, reads, lets deadlines pass, and writes what came of it.
    #[inline]
    pub(crate) fn turn(&self, state: &mut State) {
        let writing = self.write_some(state);
        let any = self.read(state);
        let now = state.clock.now().monotonic;
        let due = state.machine.next_deadline() <= now;
        if due {
            state.machine.expire(now);
        }
        if any || due || state.machine.wants_close() {
            state.note();
            if state.machine.wants_close() {
                // The peer may be gone already.
                self.stream.shutdown(Shutdown::Both).ok();
            } else if writing == Writing::Done && state.machine.has_pieces() {
                self.write_some(state);
            }
            if state.sleeping > 0 {
                self.changed.notify_all();
            }
            self.wake_poller(state);
        }
    }

    /// Rings whoever polls, if somebody does.
    fn wake_poller(&self, state: &State) {
        if state.polling.is_some() {
            self.ring();
        }
    }

    fn ring(&self) {
        // The counter is full only if it was rung already.
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).ok();
    }

    /// Drives the link until `ready` finds something or the deadline passes.
    ///
    /// Tries without sleeping for the spin budget first: being woken costs 30 to
    /// 60 us, an answer over loopback takes 10 to 20.
    pub(crate) fn wait<T>(
        &self,
        deadline: Monotonic,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.lock();
        state.foreground += 1;
        let spin_until = self.now().after(self.spin);
        let found = loop {
            if state.polling.is_none() {
                self.turn(&mut state);
            } else {
                self.write(&mut state);
            }
            if let Some(found) = ready(&mut state) {
                break Some(found);
            }
            let now = self.now();
            if now >= deadline {
                break None;
            }
            if let Some(polling) = state.polling {
                if polling.background {
                    // It steps aside and says so.
                    self.ring();
                }
                state = self.sleep(state, deadline.since(now));
            } else if now < spin_until {
                drop(state);
                std::hint::spin_loop();
                state = self.lock();
            } else {
                state = self.poll(state, deadline, false);
            }
        };
        state.foreground -= 1;
        if state.sleeping > 0 && (state.foreground > 0 || state.listening > 0) {
            // Somebody else has to poll from here on.
            self.changed.notify_all();
        }
        found
    }

    /// As [`Link::wait`], for what callbacks change.
    pub(crate) fn watch<T>(&self, ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        self.watching.fetch_add(1, Ordering::SeqCst);
        let found = self.wait(Monotonic::NEVER, ready);
        self.watching.fetch_sub(1, Ordering::SeqCst);
        found
    }

    /// Sleeps until something was read.
    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        time: Duration,
    ) -> MutexGuard<'a, State> {
        state.sleeping += 1;
        let (mut state, _) = self
            .changed
            .wait_timeout(state, time)
            .unwrap_or_else(PoisonError::into_inner);
        state.sleeping -= 1;
        state
    }

    /// Sleeps in `poll`, as the only thread that does.
    fn poll<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Monotonic,
        background: bool,
    ) -> MutexGuard<'a, State> {
        let mut until = deadline.min(state.machine.next_deadline());
        if state.listening > 0 {
            // The next sends may rely on it.
            until = until.min(self.now().after(NAP_MAX));
        }
        // A socket that is shut down is always ready; only the bell counts then.
        let is_over = state.machine.wants_close();
        let for_room = state.machine.has_pieces();
        state.polling = Some(Polling {
            background,
            for_room,
            until,
        });
        drop(state);
        let flags = if for_room {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let mut fds = [
            PollFd::new(&self.bell, PollFlags::IN),
            PollFd::new(&self.stream, flags),
        ];
        let count = if is_over { 1 } else { 2 };
        let time = (until != Monotonic::NEVER).then(|| timespec(until.since(self.now())));
        // An error here is an interruption: the loop around looks again.
        poll(&mut fds[..count], time.as_ref()).ok();
        if fds[0].revents().contains(PollFlags::IN) {
            rustix::io::read(&self.bell, &mut [0; 8]).ok();
        }
        let mut state = self.lock();
        state.polling = None;
        state
    }

    // The background thread.

    /// Makes sure that somebody drives while listeners are outstanding.
    pub(crate) fn listen(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        state.listening += 1;
        if state.has_background {
            if state.listening == 1 && state.sleeping > 0 {
                self.changed.notify_all();
            }
            return Ok(());
        }
        let link = Arc::clone(self);
        thread::Builder::new()
            .name("courser-link".to_owned())
            .spawn(move || link.run())
            .map(|_thread| state.has_background = true)
            .inspect_err(|_| state.listening -= 1)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.listening == 0 {
                if state.deserted {
                    self.leave(&mut state);
                }
                let lingers_until = self.now().after(LINGER);
                while state.listening == 0 && state.end.is_none() && !state.deserted {
                    let left = lingers_until.since(self.now());
                    if left.is_zero() {
                        break;
                    }
                    state = self.sleep(state, left);
                }
                if state.listening == 0 {
                    state.has_background = false;
                    return;
                }
            } else if state.foreground > 0 || state.polling.is_some() {
                // An application thread drives; it wakes this one when it leaves.
                if state.sleeping > 0 {
                    self.changed.notify_all();
                }
                state = self.sleep(state, LINGER);
            } else {
                self.turn(&mut state);
                if state.listening > 0 && state.foreground == 0 {
                    state = self.poll(state, Monotonic::NEVER, true);
                }
            }
        }
    }

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
            let state = self.lock();
            if state.sleeping > 0 {
                self.changed.notify_all();
            }
            self.wake_poller(&state);
        }
    }

    // Requests.

    /// Makes a request and waits for its answer.
    pub(crate) fn request(
        &self,
        make: impl FnOnce(&mut client::Client) -> Result<RequestId, client::RequestError>,
    ) -> Result<Event, RequestError> {
        let request = {
            let mut state = self.lock();
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
        let deadline = self.now().after(self.timeout);
        let answer = self.wait(deadline, |state| {
            let answer = state.answer(request).map(Ok);
            answer.or_else(|| {
                let end = state.end.as_ref()?;
                Some(Err(RequestError::LinkEnded(Arc::clone(end))))
            })
        });
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
                self.lock().abandon(request);
                Err(RequestError::TimedOut {
                    after: self.timeout,
                })
            }
        }
    }

    // Leaving.

    /// Says goodbye and ends the connection.
    pub(crate) fn close(&self) {
        self.lock().machine.goodbye();
        let deadline = self.now().after(self.timeout);
        self.wait(deadline, |state| state.end.is_some().then_some(()));
        let mut state = self.lock();
        state.machine.closed();
        self.turn(&mut state);
    }

    /// The last handle is gone: leaves at once, or once listeners had their say.
    pub(crate) fn desert(&self) {
        let mut state = self.lock();
        state.deserted = true;
        if state.listening == 0 {
            self.leave(&mut state);
        }
        if state.sleeping > 0 {
            self.changed.notify_all();
        }
        self.wake_poller(&state);
    }

    /// As much of a goodbye as the socket takes without waiting.
    fn leave(&self, state: &mut State) {
        state.machine.goodbye();
        self.turn(state);
        self.turn(state);
        state.machine.closed();
        self.turn(state);
    }
}

impl State {
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

    /// Forgets a producer that is closed.
    pub(crate) fn forget(&mut self, key: ProducerKey) {
        self.machine.forget_producer(key);
        if self.ledger(key).is_some() {
            self.ledgers[key.index()] = None;
        }
    }

    /// Hands a message to the machine and notes who wants to know its outcome.
    #[inline]
    pub(crate) fn send(
        &mut self,
        now: Now,
        key: ProducerKey,
        outgoing: &Outgoing<'_>,
        pending: &mut Option<Pending>,
    ) -> Result<Sequence, client::SendError> {
        let ledger = self
            .ledgers
            .get_mut(key.index())
            .and_then(Option::as_mut)
            .ok_or(client::SendError::Closed)?;
        if !ledger.has_room() {
            return Err(client::SendError::WouldBlock);
        }
        let sequence = self.machine.send(now, key, outgoing)?;
        if let Some(pending) = pending.take() {
            ledger.push(pending);
        }
        Ok(sequence)
    }

    /// As [`State::send`], of the message that a call carries; the call is taken
    /// if the message is.
    pub(crate) fn send_call(
        &mut self,
        key: ProducerKey,
        call: &mut Option<Call>,
        deadline: Monotonic,
    ) -> Result<Sequence, client::SendError> {
        let now = self.clock.now();
        let message = match call {
            Some(call) => &call.message,
            None => return Err(client::SendError::Closed),
        };
        let outgoing = Outgoing {
            properties: message.property_block(),
            body: message.body(),
            route: message.route(),
            deadline,
        };
        let sequence = self.send(now, key, &outgoing, &mut None)?;
        if let Some(call) = call.take()
            && let Some(ledger) = self.ledger(key)
        {
            ledger.push(Pending::Async(call));
        }
        Ok(sequence)
    }

    /// A listener that was announced has no send after all.
    pub(crate) fn listens_no_more(&mut self) {
        self.listening -= 1;
    }

    /// Why a send was not taken, with the end of the link if that is why.
    pub(crate) fn not_taken(&self, error: client::SendError) -> SendError {
        match (error, &self.end) {
            (client::SendError::Closed, Some(end)) => SendError::NotStored {
                cause: Cause::LinkEnded(Arc::clone(end)),
            },
            _ => SendError::not_taken(error),
        }
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
        Some(Completion {
            sequence: completion.sequence,
            result: ledger.result_of(completion, self.end.as_ref()),
        })
    }

    /// Whether no send of any producer waits for anything.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ledgers
            .iter()
            .flatten()
            .all(|ledger| ledger.is_quiet() && self.machine.unanswered(ledger.key()) == 0)
    }

    /// Sorts what the machine has to say to those who wait for it: outcomes first,
    /// so that a producer whose closing is answered has none left.
    fn note(&mut self) {
        if self.end.is_none() {
            self.end = self.machine.end().cloned().map(Arc::new);
        }
        while let Some(key) = self.machine.next_completed() {
            self.route(key);
        }
        while let Some(event) = self.machine.poll_event() {
            match event {
                Event::Opened { .. }
                | Event::Disconnected
                | Event::ProducerLost { .. }
                | Event::ConsumerResumed { .. }
                | Event::ConsumerLost { .. }
                | Event::Ended(_) => {}
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
            if ledger.settle(completion, self.end.as_ref()) {
                self.listening -= 1;
            }
        }
        ledger.call();
    }

    /// The outcome of a send that its thread waits for.
    pub(crate) fn result(&mut self, key: ProducerKey, sequence: Sequence) -> Option<SendResult> {
        self.ledger(key)?.result(sequence)
    }

    fn answer(&mut self, request: RequestId) -> Option<Event> {
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
            None => self.abandoned.push(request),
        }
    }

    /// The confirmation with this token.
    pub(crate) fn confirmation(
        &mut self,
        consumer: ConsumerKey,
        token: u32,
    ) -> Option<Option<u16>> {
        let index = self
            .confirmations
            .iter()
            .position(|(other, confirm, _)| *other == consumer && *confirm == token)?;
        Some(self.confirmations.swap_remove(index).2)
    }

    /// Drops the confirmations of a consumer that is gone.
    pub(crate) fn forget_confirmations(&mut self, consumer: ConsumerKey) {
        self.confirmations.retain(|(other, ..)| *other != consumer);
    }

    /// Whether whoever polls would sleep too long.
    fn is_due_earlier(&self) -> bool {
        self.polling.is_some_and(|polling| {
            self.machine.next_deadline() < polling.until
                || (self.machine.has_pieces() && !polling.for_room)
        })
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
