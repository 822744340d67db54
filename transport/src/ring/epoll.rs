//! The ring over epoll and plain non-blocking sockets: works on every Linux.
//!
//! A turn asks epoll once what is ready; the receives themselves happen one by one
//! as [`Ring::next`] is asked, so that one warm buffer serves them all. Sends happen
//! at once when they are begun, which is a legal time for them, and report with the
//! next facts.
//!
//! Writes to files would hold the shard up; a thread of the ring's own makes them.
//!
//! A thread that spins over one or two sockets receives from them directly and leaves
//! epoll out; they stay registered, so that a sleep needs no preparation.
//!
//! A socket is known to epoll only while something is armed on it: epoll reports
//! errors of every socket that it knows, asked or not, and would spin on a lost
//! connection that its driver does not listen to.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};

use super::aside::Aside;
use super::buffers::Buffers;
use super::direct::{self, DIRECT_MAX};
use super::files::Files;
use super::{
    AttachRefused, Buffer, Calls, Completion, FileSlot, Received, Ring, RingFault, RingSize, Slot,
    Wait,
};
use crate::disk::DiskFile;
use crate::doorbell::Doorbell;
use crate::sys::{self, Errno};

/// After so many turns that did not sleep a thread counts as one that spins. Few, because
/// a change of mode costs nothing here; not none, because a thread that parks takes a
/// turn or two between its sleeps.
const DIRECT_AFTER: u32 = 8;

/// A spinning turn asks epoll all the same once in so many that had nothing to do, for
/// whatever a receive does not tell.
const ASK_EVERY: u32 = 64;

/// Receives from one socket in a row as long as each fills its buffer.
const RECEIVES_IN_A_ROW: u32 = 8;

/// How many ready sockets one turn looks at; the others are first in the next.
const EVENTS_MAX: usize = 256;

/// Marks the doorbell among the ready descriptors; no slot packs to it.
const DOORBELL: u64 = u64::MAX;

const READABLE: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP).cast_unsigned();
const WRITABLE: u32 = libc::EPOLLOUT.cast_unsigned();
const LOST: u32 = (libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();

/// A [`Ring`] over epoll.
#[derive(Debug)]
pub struct EpollRing {
    /// Before the files, whose descriptors it writes to. From the first file on.
    aside: Option<Aside>,
    files: Files,
    set: OwnedFd,
    doorbell: Doorbell,
    sockets: Vec<Option<Watched>>,
    /// Facts that need no further look at a socket.
    facts: VecDeque<Completion>,
    events: Box<[libc::epoll_event; EVENTS_MAX]>,
    /// The ready events of this turn that were not looked at yet.
    pending: std::ops::Range<usize>,
    /// Receives that filled their buffer, one after the other, from the first of them.
    in_a_row: u32,
    /// Who is attached, in no order.
    attached: Vec<Slot>,
    /// Turns without a sleep, one after the other.
    spins: u32,
    /// Sockets are received from without asking epoll.
    direct: bool,
    /// Turns in direct mode that neither received nor sent, one after the other.
    quiet: u32,
    /// What was done since the last turn.
    calls: Calls,
    buffers: Buffers,
}

/// A socket and what is armed on it.
#[derive(Debug)]
struct Watched {
    socket: OwnedFd,
    generation: u32,
    receiving: bool,
    awaiting_room: bool,
    /// What epoll was last told: the events it watches for, zero if it does not
    /// know the socket.
    told: u32,
}

impl EpollRing {
    /// A ring of that size, for the calling thread.
    pub fn new(size: RingSize) -> Result<Self, Errno> {
        let set = sys::epoll_create()?;
        let doorbell = Doorbell::new()?;
        sys::epoll_control(
            set.as_fd(),
            libc::EPOLL_CTL_ADD,
            doorbell.counter(),
            READABLE,
            DOORBELL,
        )?;
        let mut sockets = Vec::new();
        sockets.resize_with(size.slots.min(Slot::INDEX_LIMIT) as usize, || None);
        Ok(Self {
            aside: None,
            files: Files::default(),
            set,
            doorbell,
            sockets,
            facts: VecDeque::with_capacity(EVENTS_MAX),
            events: Box::new([libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX]),
            pending: 0..0,
            in_a_row: 0,
            attached: Vec::with_capacity(size.slots as usize),
            spins: 0,
            direct: false,
            quiet: 0,
            calls: Calls::default(),
            buffers: Buffers::new(0, size.buffers.max(1), size.buffer_size)?,
        })
    }

    fn watched(&mut self, slot: Slot) -> &mut Watched {
        self.sockets[slot.position()]
            .as_mut()
            .filter(|watched| watched.generation == slot.generation)
            .expect("operations are begun on attached sockets only")
    }

    /// Tells epoll what is armed on the slot now, if that changed.
    fn tell(&mut self, slot: Slot) {
        let watched = self.sockets[slot.position()]
            .as_mut()
            .expect("only the slots of attached sockets change");
        let wanted = if watched.receiving { READABLE } else { 0 }
            | if watched.awaiting_room { WRITABLE } else { 0 };
        let operation = match (watched.told, wanted) {
            (told, wanted) if told == wanted => return,
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        match sys::epoll_control(
            self.set.as_fd(),
            operation,
            watched.socket.as_fd(),
            wanted,
            pack(slot),
        ) {
            Ok(()) => watched.told = wanted,
            // The kernel is out of memory or watches for this user. What was armed
            // ends as if cancelled by the kernel, and the driver closes the link.
            Err(errno) => {
                if std::mem::take(&mut watched.receiving) {
                    self.facts.push_back(Completion::Received {
                        slot,
                        received: Received::Failed(errno),
                        more: false,
                    });
                }
                if std::mem::take(&mut watched.awaiting_room) {
                    self.facts.push_back(Completion::Writable { slot });
                }
            }
        }
    }

    /// Takes notice of writes that are over.
    #[inline]
    fn collect_written(&mut self) {
        let Some(aside) = &mut self.aside else {
            return;
        };
        while let Some(written) = aside.take() {
            self.facts.push_back(written);
        }
    }

    /// Whether asking epoll would cost more than a false alarm: few sockets, all of them
    /// only received from, and a thread that spins anyhow.
    fn wants_direct(&self) -> bool {
        self.spins >= DIRECT_AFTER
            && (1..=DIRECT_MAX).contains(&self.attached.len())
            && self.attached.iter().all(|slot| {
                self.sockets[slot.position()]
                    .as_ref()
                    .is_some_and(|watched| watched.told == READABLE)
            })
    }

    /// Makes up the answer of epoll.
    fn pose_as_ready(&mut self) {
        for (event, slot) in self.events.iter_mut().zip(&self.attached) {
            *event = libc::epoll_event {
                events: READABLE,
                u64: pack(*slot),
            };
        }
        self.pending = 0..self.attached.len();
    }

    /// What one ready socket has to say; `None` if it was a false alarm.
    fn look(&mut self, slot: Slot, events: u32) -> Option<Completion> {
        let watched = self.sockets[slot.position()].as_mut()?;
        if watched.generation != slot.generation {
            return None;
        }
        let room = watched.awaiting_room && events & (WRITABLE | LOST) != 0;
        let readable = watched.receiving && events & (READABLE | LOST) != 0;
        if room {
            watched.awaiting_room = false;
            self.facts.push_back(Completion::Writable { slot });
        }
        let received = if readable { self.receive(slot) } else { None };
        self.tell(slot);
        received.or_else(|| self.facts.pop_front())
    }

    fn receive(&mut self, slot: Slot) -> Option<Completion> {
        let watched = self.sockets[slot.position()].as_mut()?;
        let received = match self.buffers.take() {
            None => Received::Failed(Errno(libc::ENOBUFS)),
            Some(number) => {
                match sys::receive(watched.socket.as_fd(), self.buffers.space(number)) {
                    Ok(length) if length > 0 => Received::Bytes(Buffer {
                        number,
                        length: u32::try_from(length).expect("a buffer's size is a u32"),
                    }),
                    result => {
                        self.buffers.put(number);
                        match result {
                            Ok(_) => Received::End,
                            Err(Errno(libc::EAGAIN | libc::EINTR)) => {
                                self.calls.direct_polls += 1;
                                return None;
                            }
                            Err(errno) => Received::Failed(errno),
                        }
                    }
                }
            }
        };
        self.calls.direct_receives += 1;
        let more = matches!(received, Received::Bytes(_));
        watched.receiving = more;
        Some(Completion::Received {
            slot,
            received,
            more,
        })
    }
}

impl Ring for EpollRing {
    type Socket = OwnedFd;
    type File = DiskFile;

    fn attach(&mut self, slot: Slot, socket: OwnedFd) -> Result<(), AttachRefused<OwnedFd>> {
        if let Err(errno) = sys::set_nonblocking(socket.as_fd()) {
            return Err(AttachRefused { socket, errno });
        }
        let place = &mut self.sockets[slot.position()];
        assert!(place.is_none(), "a slot has one socket at a time");
        *place = Some(Watched {
            socket,
            generation: slot.generation,
            receiving: false,
            awaiting_room: false,
            told: 0,
        });
        self.attached.push(slot);
        Ok(())
    }

    fn arm_receive(&mut self, slot: Slot) {
        let watched = self.watched(slot);
        debug_assert!(!watched.receiving, "one receive in flight per slot");
        watched.receiving = true;
        self.tell(slot);
    }

    unsafe fn send(&mut self, slot: Slot, pieces: &[&[u8]]) {
        let result = direct::send(self.watched(slot).socket.as_fd(), pieces);
        self.calls.direct_sends += 1;
        self.facts.push_back(Completion::Sent { slot, result });
    }

    fn arm_writable(&mut self, slot: Slot) {
        let watched = self.watched(slot);
        debug_assert!(!watched.awaiting_room, "one wait for room per slot");
        watched.awaiting_room = true;
        self.tell(slot);
    }

    fn cancel(&mut self, slot: Slot) {
        let watched = self.watched(slot);
        let receiving = std::mem::take(&mut watched.receiving);
        let awaiting_room = std::mem::take(&mut watched.awaiting_room);
        self.tell(slot);
        if receiving {
            self.facts.push_back(Completion::Received {
                slot,
                received: Received::Failed(Errno(libc::ECANCELED)),
                more: false,
            });
        }
        if awaiting_room {
            self.facts.push_back(Completion::Writable { slot });
        }
        self.facts.push_back(Completion::Cancelled { slot });
    }

    fn shutdown(&mut self, slot: Slot, which: Shutdown) {
        sys::shutdown(self.watched(slot).socket.as_fd(), which);
    }

    fn turn_away(socket: OwnedFd, farewell: &[u8]) {
        direct::say_farewell(socket.as_fd(), farewell);
    }

    fn detach(&mut self, slot: Slot) -> OwnedFd {
        let watched = self.watched(slot);
        watched.receiving = false;
        watched.awaiting_room = false;
        self.tell(slot);
        self.attached.retain(|other| *other != slot);
        self.sockets[slot.position()]
            .take()
            .expect("the slot was attached a line ago")
            .socket
    }

    fn attach_file(
        &mut self,
        slot: FileSlot,
        file: DiskFile,
    ) -> Result<(), AttachRefused<DiskFile>> {
        if self.aside.is_none() {
            match Aside::start(self.doorbell.clone()) {
                Ok(aside) => self.aside = Some(aside),
                Err(error) => {
                    let errno = Errno::of(&error);
                    return Err(AttachRefused {
                        socket: file,
                        errno,
                    });
                }
            }
        }
        self.files.attach(slot, file);
        Ok(())
    }

    unsafe fn write(&mut self, slot: FileSlot, position: u64, pieces: &[&[u8]], token: u64) {
        let target = self.files.begin(slot, position, pieces);
        let aside = self
            .aside
            .as_mut()
            .expect("it was started with the first file");
        // SAFETY: the caller vouches for the pieces, and the file is not let go before
        // the completion was taken; a drop of the ring drops the thread first.
        if let Err(fact) = unsafe { aside.write(slot, target, position, pieces, token) } {
            self.facts.push_back(fact);
        }
    }

    fn detach_file(&mut self, slot: FileSlot) -> DiskFile {
        self.files.detach(slot)
    }

    fn turn(&mut self, wait: Wait) -> Result<Calls, RingFault> {
        // Whoever goes to sleep has announced it; what is over by now is seen here, and
        // what is over later rings.
        self.collect_written();
        // Without sockets there is only the bell, which is for sleepers.
        if self.sockets.is_empty() && wait == Wait::No {
            return Ok(Calls::default());
        }
        // What the last turn found and nobody asked for comes before new events.
        if !self.pending.is_empty() {
            return Ok(std::mem::take(&mut self.calls));
        }
        self.spins = match wait {
            Wait::No => self.spins.saturating_add(1),
            Wait::AtMost(_) => 0,
        };
        let wants_direct = self.wants_direct();
        match (self.direct, wants_direct) {
            (false, true) => self.calls.direct_begun += 1,
            (true, false) => self.calls.direct_ended += 1,
            (true, true) | (false, false) => {}
        }
        self.direct = wants_direct;
        if self.direct {
            let moved = self.calls.direct_receives + self.calls.direct_sends > 0;
            self.quiet = if moved { 0 } else { self.quiet.wrapping_add(1) };
            if moved || !self.quiet.is_multiple_of(ASK_EVERY) {
                self.pose_as_ready();
                return Ok(std::mem::take(&mut self.calls));
            }
        }
        self.calls.enters += 1;
        let timeout = match wait {
            Wait::No => Some(std::time::Duration::ZERO),
            Wait::AtMost(_) if !self.facts.is_empty() => Some(std::time::Duration::ZERO),
            Wait::AtMost(time) => time,
        };
        match sys::epoll_wait(self.set.as_fd(), &mut *self.events, timeout) {
            Ok(count) => {
                self.pending = 0..count;
                self.collect_written();
            }
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => {
                return Err(RingFault {
                    operation: "epoll_wait",
                    errno,
                });
            }
        }
        Ok(std::mem::take(&mut self.calls))
    }

    fn next(&mut self) -> Option<Completion> {
        if let Some(fact) = self.facts.pop_front() {
            if let Completion::Written { file, .. } = fact {
                self.files.ended(file);
            }
            return Some(fact);
        }
        while self.pending.start < self.pending.end {
            let event = self.events[self.pending.start];
            if event.u64 == DOORBELL {
                self.pending.start += 1;
                sys::event_clear(self.doorbell.counter());
                return Some(Completion::Woken);
            }
            let fact = self.look(unpack(event.u64), event.events);
            // A full buffer means that there is more: it is worth another look, a
            // bounded number of times, so that more leaves in one answer.
            let full = matches!(&fact, Some(Completion::Received { received: Received::Bytes(buffer), .. })
                if buffer.length() == self.buffers.size());
            if full && self.in_a_row < RECEIVES_IN_A_ROW {
                self.in_a_row += 1;
            } else {
                self.in_a_row = 0;
                self.pending.start += 1;
            }
            if fact.is_some() {
                return fact;
            }
        }
        None
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.buffers.bytes(buffer)
    }

    fn give_back(&mut self, buffer: Buffer) {
        self.buffers.put(buffer.number);
    }

    fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.sockets.len()).unwrap_or(u32::MAX)
    }

    fn description(&self) -> String {
        String::from("epoll, non-blocking sockets")
    }
}

fn pack(slot: Slot) -> u64 {
    u64::from(slot.generation) << 32 | u64::from(slot.index)
}

fn unpack(data: u64) -> Slot {
    let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
    Slot {
        index: half(data),
        generation: half(data >> 32),
    }
}
