//! The door's thread: accepts, listens to hellos, and hands connections to shards.
//!
//! A sleeping thread that is pinned nowhere, so that strangers cost the shards nothing.
//! The rules (how many, how long, what a hello is) are the machine's in
//! [`courser_core::door`]; here are the sockets of strangers, which are few, slow and
//! small, so one system call each does no harm.
//!
//! It is the housekeeping thread as well: it has memory put behind the shards' arenas
//! ahead of need, so that a shard does not meet a page fault for it.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use courser_core::door::{Address, Door, DoorLimits, Output};
use courser_core::error::Refusal;
use courser_core::id::Handle;
use courser_core::limits;
use courser_core::memory::CHUNK;
use courser_core::time::{Monotonic, Now};

use crate::clock::Clock;
use crate::doorbell::Doorbell;
use crate::handoff::Sender;
use crate::planted::{self, Fault};
use crate::ring;
use crate::stats::ShardStats;
use crate::sys::{self, Errno, Vigilance};
use crate::worker::{Arrival, LetIn};

/// How long accepting rests when descriptors or memory have run out. The connections
/// wait in the kernel meanwhile.
pub(crate) const BACK_OFF: Duration = Duration::from_millis(100);

/// Descriptors that connections leave for everything else.
const DESCRIPTORS_RESERVED: u64 = 64;

/// The most connections that are accepted before strangers are listened to again.
const ACCEPTS_PER_ROUND: usize = 64;

const EVENTS_MAX: usize = 128;
const LISTENER: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;
const READABLE: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP).cast_unsigned();

/// What others may read of the door.
#[derive(Debug, Default)]
pub struct DoorStats {
    /// Connections accepted. Written by the door, as are all of these.
    accepted: AtomicU64,
    /// Connections turned away for want of a place, a hello or a shard.
    turned_away: AtomicU64,
    /// Times that accepting rested because the kernel had no descriptor or memory left.
    rests: AtomicU64,
}

impl DoorStats {
    /// Connections accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections turned away for want of a place, a hello or a shard.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Times that accepting rested because the kernel had no descriptor or memory left.
    pub fn rests(&self) -> u64 {
        self.rests.load(Ordering::Relaxed)
    }
}

/// What controls the door from outside.
#[derive(Debug, Clone)]
pub(crate) struct DoorControl {
    /// Set once by the broker, read by the door when its bell woke it.
    stop: Arc<AtomicBool>,
    doorbell: Doorbell,
}

impl DoorControl {
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.doorbell.ring();
    }
}

/// A shard as the door sees it.
#[derive(Debug)]
pub(crate) struct ShardEntrance {
    pub(crate) sender: Sender<Arrival>,
    pub(crate) stats: ShardStats,
    /// How many connections it has places for.
    pub(crate) slots: u32,
    /// The arena's address and length.
    pub(crate) arena: (usize, usize),
}

/// The thread's state.
#[derive(Debug)]
pub(crate) struct Porter {
    door: Door,
    set: OwnedFd,
    /// `None` where nobody is let in, and once the broker stops.
    listener: Option<TcpListener>,
    /// Accepting rests until then; the listener is not watched meanwhile.
    resting_until: Option<Monotonic>,
    /// By the stranger's place in the machine's table.
    strangers: Vec<Option<Stranger>>,
    shards: Vec<ShardEntrance>,
    departures: mpsc::Receiver<IpAddr>,
    memory: Vec<AheadOfNeed>,
    control: DoorControl,
    stats: Arc<DoorStats>,
    clock: Clock,
    #[cfg(test)]
    refusals: Arc<Refusals>,
}

#[derive(Debug)]
struct Stranger {
    handle: Handle,
    socket: TcpStream,
    address: IpAddr,
}

impl Porter {
    /// Watches over `listener`, if there is one, which it makes non-blocking.
    pub(crate) fn new(
        listener: Option<TcpListener>,
        shards: Vec<ShardEntrance>,
        departures: mpsc::Receiver<IpAddr>,
        hash_seed: u64,
    ) -> Result<Self, Errno> {
        let set = sys::epoll_create()?;
        let doorbell = Doorbell::new()?;
        let add = |descriptor, data| {
            sys::epoll_control(set.as_fd(), libc::EPOLL_CTL_ADD, descriptor, READABLE, data)
        };
        if let Some(listener) = &listener {
            sys::set_nonblocking(listener.as_fd())?;
            add(listener.as_fd(), LISTENER)?;
        }
        add(doorbell.counter(), BELL)?;
        // The bell is for stopping only, which happens once; so it is never silent.
        doorbell.announce_sleep();
        let descriptors = sys::descriptor_limit()
            .soft
            .saturating_sub(DESCRIPTORS_RESERVED);
        let defaults = DoorLimits::default();
        let slots = shards.iter().map(|shard| shard.slots).sum();
        let limits = DoorLimits {
            links: defaults
                .links
                .min(u32::try_from(descriptors).unwrap_or(u32::MAX))
                .min(slots)
                .max(1),
            shards: u16::try_from(shards.len()).expect("shards are numbered by 16 bits"),
            ..defaults
        };
        let mut strangers = Vec::new();
        strangers.resize_with(limits.strange as usize, || None);
        let memory = shards.iter().map(AheadOfNeed::new).collect();
        Ok(Self {
            door: Door::new(limits, hash_seed),
            set,
            listener,
            resting_until: None,
            strangers,
            shards,
            departures,
            memory,
            control: DoorControl {
                stop: Arc::new(AtomicBool::new(false)),
                doorbell,
            },
            stats: Arc::new(DoorStats::default()),
            clock: Clock::new(),
            #[cfg(test)]
            refusals: Arc::default(),
        })
    }

    pub(crate) fn control(&self) -> DoorControl {
        self.control.clone()
    }

    pub(crate) fn stats(&self) -> Arc<DoorStats> {
        Arc::clone(&self.stats)
    }

    #[cfg(test)]
    pub(crate) fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.refusals)
    }

    /// Runs until it is told to stop; then nobody is at the door any more.
    pub(crate) fn run(mut self) -> Result<(), Errno> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let mut now = self.clock.now();
        loop {
            let timeout = self.sleep_time(now);
            let count = match sys::epoll_wait(self.set.as_fd(), &mut events, timeout) {
                Ok(count) => count,
                Err(Errno(libc::EINTR)) => 0,
                Err(errno) => return Err(errno),
            };
            now = self.clock.now();
            self.count_departures();
            for event in &events[..count] {
                match event.u64 {
                    LISTENER => self.accept(now),
                    BELL => sys::event_clear(self.control.doorbell.counter()),
                    data => self.listen(Handle(u32::try_from(data).unwrap_or(u32::MAX))),
                }
            }
            self.door.expire(now);
            self.act();
            self.end_rest(now);
            for memory in &mut self.memory {
                memory.work(now.monotonic);
            }
            if self.control.stop.load(Ordering::Relaxed) {
                self.close_up();
                return Ok(());
            }
        }
    }

    /// Takes in who waits, a bounded number at a time; the rest is reported again.
    fn accept(&mut self, now: Now) {
        for _ in 0..ACCEPTS_PER_ROUND {
            let Some(accepted) = self.take_next() else {
                return;
            };
            match accepted {
                Ok((socket, from)) => self.admit(now, socket, from),
                Err(Errno(libc::EAGAIN)) => return,
                Err(errno)
                    if concerns_one_connection(errno) && !planted::is(Fault::AbortedRests) => {}
                Err(_) if planted::is(Fault::NoRest) => return,
                // Descriptors or memory have run out, or something happened that nobody
                // foresaw and that the next accept would most likely meet again.
                Err(_) => {
                    self.rest(now);
                    return;
                }
            }
        }
    }

    /// The connection that has waited longest; `None` once nobody is let in any more.
    fn take_next(&self) -> Option<Result<(TcpStream, SocketAddr), Errno>> {
        let listener = self.listener.as_ref()?;
        #[cfg(test)]
        if let Some(errno) = self.refusals.next() {
            return Some(Err(errno));
        }
        Some(listener.accept().map_err(|error| Errno::of(&error)))
    }

    fn admit(&mut self, now: Now, socket: TcpStream, from: SocketAddr) {
        self.stats.accepted.fetch_add(1, Ordering::Relaxed);
        let address = from.ip();
        // Those who left come first: their places are free for those who wait, also if
        // they left while others were let in.
        self.count_departures();
        if sys::prepare_stream(socket.as_fd(), Vigilance::PROMISED).is_err() {
            self.stats.turned_away.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let handle = match self.door.accepted(now, mapped(address)) {
            Ok(handle) => handle,
            Err(refusal) => {
                self.say_farewell(&socket, &Door::farewell(refusal));
                return;
            }
        };
        // To make room, the machine may have shown somebody else out.
        self.act();
        let watched = sys::epoll_control(
            self.set.as_fd(),
            libc::EPOLL_CTL_ADD,
            socket.as_fd(),
            READABLE,
            u64::from(handle.0),
        );
        if watched.is_err() {
            self.door.closed(handle);
            return;
        }
        self.strangers[handle.slot()] = Some(Stranger {
            handle,
            socket,
            address,
        });
        // The hello is often there already.
        self.listen(handle);
    }

    fn count_departures(&mut self) {
        while let Ok(address) = self.departures.try_recv() {
            self.door.left(mapped(address));
        }
    }

    /// Hears what a stranger says.
    fn listen(&mut self, handle: Handle) {
        let mut bytes = [0; limits::HELLO_SIZE_MAX as usize];
        let Some(stranger) = self
            .strangers
            .get(handle.slot())
            .and_then(Option::as_ref)
            .filter(|stranger| stranger.handle == handle)
        else {
            return;
        };
        match sys::receive(stranger.socket.as_fd(), &mut bytes) {
            Ok(0) => self.lose(handle),
            Ok(count) => {
                self.door.received(handle, &bytes[..count]);
                self.act();
            }
            Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            Err(_) => self.lose(handle),
        }
    }

    fn lose(&mut self, handle: Handle) {
        self.door.closed(handle);
        drop(self.take(handle));
    }

    /// Does what the machine wishes.
    fn act(&mut self) {
        while let Some(output) = self.door.output() {
            match output {
                Output::Farewell { stranger, bytes } => {
                    if let Some(stranger) = self.take(stranger) {
                        self.say_farewell(&stranger.socket, &bytes);
                    }
                }
                Output::HandOver {
                    stranger,
                    shard,
                    attached,
                } => {
                    let Some(stranger) = self.take(stranger) else {
                        continue;
                    };
                    let entrance = &self.shards[usize::from(shard.0)];
                    let let_in = LetIn {
                        socket: stranger.socket.into(),
                        address: stranger.address,
                        attached,
                    };
                    let posted = entrance.sender.post(Arrival::Connection(let_in));
                    if let Err(Arrival::Connection(back)) = posted {
                        self.door.left(mapped(back.address));
                        let farewell = Door::farewell(Refusal::TooManyLinks);
                        self.say_farewell(&TcpStream::from(back.socket), &farewell);
                    }
                }
            }
        }
    }

    /// A stranger's socket, no longer watched.
    fn take(&mut self, handle: Handle) -> Option<Stranger> {
        let stranger = self
            .strangers
            .get_mut(handle.slot())?
            .take_if(|stranger| stranger.handle == handle)?;
        // It is about to be closed or handed over; either ends the watch for us.
        sys::epoll_control(
            self.set.as_fd(),
            libc::EPOLL_CTL_DEL,
            stranger.socket.as_fd(),
            0,
            0,
        )
        .ok();
        Some(stranger)
    }

    fn say_farewell(&self, socket: &TcpStream, bytes: &[u8]) {
        self.stats.turned_away.fetch_add(1, Ordering::Relaxed);
        ring::say_farewell(socket.as_fd(), bytes);
    }

    /// Stops accepting for a while, without spinning on the listener meanwhile.
    fn rest(&mut self, now: Now) {
        self.stats.rests.fetch_add(1, Ordering::Relaxed);
        self.resting_until = Some(now.monotonic.after(BACK_OFF));
        self.watch_listener(false);
    }

    fn end_rest(&mut self, now: Now) {
        if self
            .resting_until
            .take_if(|until| *until <= now.monotonic)
            .is_some()
        {
            self.watch_listener(true);
        }
    }

    fn watch_listener(&self, watched: bool) {
        if let Some(listener) = &self.listener {
            let changed = sys::epoll_control(
                self.set.as_fd(),
                libc::EPOLL_CTL_MOD,
                listener.as_fd(),
                if watched { READABLE } else { 0 },
                LISTENER,
            );
            debug_assert!(changed.is_ok(), "a watch that exists can be changed");
        }
    }

    /// Until the first thing that is due.
    fn sleep_time(&self, now: Now) -> Option<Duration> {
        let memory = self.memory.iter().filter_map(|memory| memory.due);
        [self.door.next_expiry(), self.resting_until]
            .into_iter()
            .flatten()
            .chain(memory)
            .map(|time| time.since(now.monotonic))
            .min()
    }

    /// Nobody is let in any more, and those at the door are told.
    fn close_up(&mut self) {
        self.listener = None;
        let farewell = Door::farewell(Refusal::Stopping);
        for stranger in std::mem::take(&mut self.strangers).into_iter().flatten() {
            self.say_farewell(&stranger.socket, &farewell);
        }
    }
}

/// Whether a refused accept tells of one connection only: somebody who gave up while
/// waiting, or a network on the way that went. The next one may be well. The list is
/// that of accept(2).
fn concerns_one_connection(errno: Errno) -> bool {
    matches!(
        errno.0,
        libc::ECONNABORTED
            | libc::EINTR
            | libc::EPERM
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ENONET
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
    )
}

/// What a test has the kernel answer to accepts.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// The answer, and how many times it is given.
    answer: std::sync::Mutex<(i32, u64)>,
    attempts: AtomicU64,
}

#[cfg(test)]
impl Refusals {
    pub(crate) fn refuse(&self, errno: i32) {
        self.refuse_some(errno, u64::MAX);
    }

    pub(crate) fn refuse_some(&self, errno: i32, times: u64) {
        *self.answer.lock().expect("no holder panics") = (errno, times);
    }

    pub(crate) fn relent(&self) {
        self.refuse_some(0, 0);
    }

    pub(crate) fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    fn next(&self) -> Option<Errno> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let (errno, times) = &mut *self.answer.lock().expect("no holder panics");
        *times = times.checked_sub(1)?;
        Some(Errno(*errno))
    }
}

/// The machine's form of an address: an IPv4 one in the range set aside for it.
fn mapped(address: IpAddr) -> Address {
    Address(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    })
}

/// Memory put behind a shard's arena before the shard gets there.
///
/// An arena lends its chunks from the front, and those that came back first; so what
/// was ever used is a prefix, and what has memory behind it should be a longer one.
#[derive(Debug)]
struct AheadOfNeed {
    stats: ShardStats,
    address: usize,
    length: usize,
    /// Bytes from the front that have memory behind them.
    backed: usize,
    /// When to look again; `None` once all of it is backed, or it cannot be done.
    due: Option<Monotonic>,
    /// How long until the look after the next, if there is nothing to do then.
    patience: Duration,
}

/// How far ahead of the shard memory is put.
const AHEAD: usize = 32 * 1024 * 1024;
/// How much in one go: what a stranger may have to wait for is below a millisecond.
const SLICE: usize = 2 * 1024 * 1024;
/// How soon to look again after there was something to do.
const LOOK_SOON: Duration = Duration::from_millis(2);
/// And after there was nothing: at a gigabyte a second, what is ahead lasts longer.
const LOOK_LATER: Duration = Duration::from_millis(20);
/// Where nothing is used for long, each look is twice as late as the last, up to this:
/// a resting broker rests. If it is too late once, the shard meets the faults itself.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_millis(320);

impl AheadOfNeed {
    fn new(shard: &ShardEntrance) -> Self {
        let (address, length) = shard.arena;
        Self {
            stats: shard.stats.clone(),
            address,
            length,
            backed: 0,
            due: Some(Monotonic(0)),
            patience: LOOK_LATER,
        }
    }

    fn work(&mut self, now: Monotonic) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let free = usize::try_from(self.stats.chunks_free()).unwrap_or(usize::MAX);
        let used = self.length.saturating_sub(free.saturating_mul(CHUNK));
        let wanted = used.saturating_add(AHEAD).min(self.length);
        if self.backed >= wanted {
            self.due = (self.backed < self.length).then(|| now.after(self.patience));
            self.patience = LOOK_AT_LEAST_EVERY.min(self.patience * 2);
            return;
        }
        self.patience = LOOK_LATER;
        let slice = SLICE.min(self.length - self.backed);
        self.due = match sys::populate(self.address + self.backed, slice) {
            Ok(()) => {
                self.backed += slice;
                Some(now.after(LOOK_SOON))
            }
            // Then the shard meets the faults itself.
            Err(_) => None,
        };
    }
}
