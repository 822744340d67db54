//! The ring over io_uring: many sockets and a few files, one system call a turn.
//!
//! Cast: the *kernel ring* is the crate's object with its two queues; the *provided
//! buffers* are memory of ours that the kernel fills with received bytes; a *seat* is
//! what this file keeps per slot; a *word* is the `user_data` of an operation, by
//! which its completion finds back:
//!
//! ```text
//!  63      56 55                            24 23                     0
//! +----------+--------------------------------+------------------------+
//! |   kind   |           generation           |       slot index       |
//! +----------+--------------------------------+------------------------+
//! ```
//!
//! Set-up tries the steps of a ladder (`ladder.rs`) from the top and takes the first that the
//! kernel accepts; below the last one io_uring is refused. All of them have
//! `SINGLE_ISSUER` and `DEFER_TASKRUN`: the kernel's share of the work is done when
//! this thread asks for it, inside [`Ring::turn`], and never interrupts it. So a look
//! at the completion queue alone finds nothing new, and only the thread that made the
//! ring may enter it.
//!
//! A write to a file goes past the page cache and is durable by a flag of its own; the
//! queue is handed over with it in the same call as everything else. Files that do not
//! take such writes have a thread of the ring's own for them (`aside.rs`).
//!
//! A thread that keeps spinning over one or two sockets gets them served by direct calls
//! (`direct.rs`); the first sleep or the third socket ends that.
//!
//! Invariants:
//! - `in_flight` counts the operations whose last completion was not taken; a seat's
//!   own count is its share, and a slot is detached only at zero.
//! - A provided buffer is in exactly one place: with the kernel, in a completion not
//!   yet taken, or on loan as a [`Buffer`].
//! - Entries that find the submission queue full wait in `deferred`, in order; nothing
//!   is lost and nothing overtakes.
//! - Memory that an operation names (a seat's message header, the buffers, the vectors of
//!   a write, the counter) outlives the operation's last completion: a drop cancels,
//!   drains, and frees only then.

mod kernel;
mod ladder;
mod memory;
#[cfg(test)]
pub(crate) mod simulated;
mod word;

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};

use super::aside::Aside;
use super::buffers::Buffers;
use super::direct::{self, DIRECT_MAX};
use super::files::{Files, Target};
use super::refusal::{Cause, IoUringRefused};
use super::{
    AttachRefused, Buffer, Calls, Completion, FileSlot, Received, Ring, RingFault, RingSize, Slot,
    Wait,
};
use crate::disk::{DiskFile, Way};
use crate::doorbell::Doorbell;
use crate::planted::{self, Fault};
use crate::sys::{self, Errno};
use kernel::{Completed, Kernel, Queues};
use ladder::{Foothold, LADDER, SUBMISSIONS};
#[cfg(test)]
pub(crate) use ladder::{OPERATIONS, completions_for};
use memory::{BUFFER_GROUP, ProvidedBuffers, SendHeaders, Writes};
use word::{Kind, POLL_IN, POLL_OUT, unpack, word};

/// After so many turns that did not sleep, a millisecond or so, a lone socket is hot.
const DIRECT_AFTER: u32 = 2048;

/// In direct mode the ring itself is looked after once in so many turns that had
/// nothing to do. Only the doorbell is in flight then, and nobody needs to ring for a
/// thread that is awake; so turns with work make no call for it.
const ENTER_EVERY: u32 = 64;

/// Bytes of a buffer for direct receives: as much as several of the others, because a
/// turn makes one call per socket.
const DIRECT_BUFFER_SIZE: u32 = 64 * 1024;

/// Operations that the ring itself always has in flight: the watch over the doorbell.
const OWN_OPERATIONS: u32 = 1;

/// How long a drop waits for the kernel to end what it was told to cancel.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How long it waits for a device to end a write, which cannot be cancelled.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// A [`Ring`] over io_uring. It stays on the thread that made it.
#[derive(Debug)]
pub struct IoUringRing {
    kernel: ManuallyDrop<Kernel>,
    buffers: ManuallyDrop<ProvidedBuffers>,
    seats: ManuallyDrop<Box<[Option<Seat>]>>,
    headers: ManuallyDrop<SendHeaders>,
    writes: ManuallyDrop<Writes>,
    files: ManuallyDrop<Files>,
    /// From the first file on that does not take direct writes.
    aside: Option<Aside>,
    doorbell: ManuallyDrop<Doorbell>,
    /// Who is attached, in no order.
    attached: Vec<Slot>,
    /// Facts that did not come through the completion queue; told before those that do.
    facts: VecDeque<Completion>,
    /// Sockets are served by direct calls.
    direct: bool,
    direct_buffers: Buffers,
    /// Turns without a sleep, one after the other.
    spins: u32,
    /// Turns in direct mode that neither received nor sent, one after the other.
    quiet: u32,
    /// What was done since the last turn.
    calls: Calls,
    deferred: VecDeque<squeue::Entry>,
    in_flight: u32,
    step: usize,
    /// Room for completions.
    completions: u32,
    /// The kernel finds the ring without a look-up of its descriptor.
    is_registered: bool,
}

/// What is kept for an attached socket.
#[derive(Debug)]
struct Seat {
    /// The plain descriptor; the operations use the registered one.
    socket: OwnedFd,
    generation: u32,
    in_flight: u32,
    receiving: Receiving,
    /// The driver ends everything on this slot.
    cancelling: bool,
}

/// How the receive of a seat is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    /// None is armed.
    No,
    /// By a multishot operation.
    Multishot,
    /// By a multishot operation that we cancelled to go on directly.
    Retiring,
    /// By direct calls.
    Direct,
}

impl IoUringRing {
    /// A ring of that size, for the calling thread.
    pub fn new(size: RingSize) -> Result<Self, IoUringRefused> {
        Self::build(size).map_err(IoUringRefused::observe)
    }

    fn build(size: RingSize) -> Result<Self, Cause> {
        let foothold = ladder::climb_down(ladder::completions_for(size), ladder::set_up)?;
        Self::over(
            Foothold {
                step: foothold.step,
                completions: foothold.completions,
                ring: Kernel::Real(Queues::new(foothold.ring)),
            },
            size,
        )
    }

    /// The same over a kernel that refuses whatever is not listed.
    #[cfg(test)]
    pub(crate) fn restricted(size: RingSize) -> Result<Self, Cause> {
        let completions = ladder::completions_for(size);
        let ring = ladder::set_up_restricted(completions)
            .map_err(|error| ladder::refused("io_uring_setup", &error))?;
        Self::over(
            Foothold {
                step: LADDER.len() - 1,
                completions,
                ring: Kernel::Real(Queues::new(ring)),
            },
            size,
        )
    }

    /// Registers what the ring needs with a kernel that set it up.
    fn over(foothold: Foothold<Kernel>, size: RingSize) -> Result<Self, Cause> {
        let Foothold {
            step,
            completions,
            ring: mut kernel,
        } = foothold;
        ladder::check_operations(&mut kernel)?;
        // Only saves the kernel a look-up per turn; without it everything works.
        let registered = kernel.register_ring();
        if planted::is(Fault::RegistrationDemanded) {
            registered
                .as_ref()
                .map_err(|error| ladder::refused("io_uring_register(RING_FDS)", error))?;
        }

        let descriptors = sys::descriptor_limit().soft;
        let slots = size
            .slots
            .min(Slot::INDEX_LIMIT)
            .min(u32::try_from(descriptors).unwrap_or(u32::MAX));
        let files = kernel
            .register_files(slots)
            .map_err(|error| ladder::refused("io_uring_register(FILES)", &error));
        if !planted::is(Fault::RegistrationAssumed) {
            files?;
        }

        let buffers = ProvidedBuffers::register(&mut kernel, size)?;
        let headers = SendHeaders::new(slots).map_err(|errno| Cause::Call {
            call: "mmap",
            errno,
        })?;
        let doorbell = Doorbell::new().map_err(|errno| Cause::Call {
            call: "eventfd",
            errno,
        })?;
        let writes = Writes::new().map_err(|errno| Cause::Call {
            call: "mmap",
            errno,
        })?;
        let mut seats = Vec::new();
        seats.resize_with(slots as usize, || None);
        let direct_buffers = buffers
            .and_more(DIRECT_MAX, DIRECT_BUFFER_SIZE)
            .map_err(|errno| Cause::Call {
                call: "mmap",
                errno,
            })?;
        let mut ring = Self {
            kernel: ManuallyDrop::new(kernel),
            buffers: ManuallyDrop::new(buffers),
            seats: ManuallyDrop::new(seats.into_boxed_slice()),
            headers: ManuallyDrop::new(headers),
            writes: ManuallyDrop::new(writes),
            files: ManuallyDrop::new(Files::default()),
            aside: None,
            doorbell: ManuallyDrop::new(doorbell),
            attached: Vec::with_capacity(slots as usize),
            facts: VecDeque::with_capacity(SUBMISSIONS as usize),
            direct: false,
            direct_buffers,
            spins: 0,
            quiet: 0,
            calls: Calls::default(),
            deferred: VecDeque::with_capacity(SUBMISSIONS as usize),
            in_flight: 0,
            step,
            completions,
            is_registered: registered.is_ok(),
        };
        ring.arm_doorbell();
        ring.prove_multishot_receive()?;
        Ok(ring)
    }

    /// Multishot receive came with 6.0 and cannot be probed for, only tried.
    fn prove_multishot_receive(&mut self) -> Result<(), Cause> {
        let missing = Cause::TooOld {
            missing: "multishot receive",
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()
            .map_err(|error| ladder::refused("socketpair", &error))?;
        let slot = Slot {
            index: 0,
            generation: u32::MAX,
        };
        self.attach(slot, ours.into())
            .map_err(|refused| Cause::Call {
                call: "io_uring_register(FILES_UPDATE)",
                errno: refused.errno,
            })?;
        self.arm_receive(slot);
        drop(theirs);
        let started = Instant::now();
        let mut proven = false;
        while self.seats[0]
            .as_ref()
            .is_some_and(|seat| seat.in_flight > 0)
        {
            if started.elapsed() > DRAIN_TIME {
                return Err(missing);
            }
            let wait = Wait::AtMost(Some(Duration::from_millis(100)));
            self.turn(wait).map_err(|fault| Cause::Call {
                call: fault.operation,
                errno: fault.errno,
            })?;
            while let Some(completion) = self.next() {
                if let Completion::Received { received, .. } = completion {
                    proven = matches!(received, Received::End);
                }
            }
        }
        drop(self.detach(slot));
        if proven { Ok(()) } else { Err(missing) }
    }

    fn seat(&mut self, slot: Slot) -> &mut Seat {
        self.seats[slot.position()]
            .as_mut()
            .filter(|seat| seat.generation == slot.generation)
            .expect("operations are begun on attached sockets only")
    }

    /// Queues an operation of an attached socket.
    ///
    /// # Safety
    /// Memory that the entry names stays valid until its last completion was taken.
    unsafe fn begin(&mut self, kind: Kind, slot: Slot, entry: squeue::Entry) {
        self.seat(slot).in_flight += 1;
        // SAFETY: passed on.
        unsafe { self.queue(entry.user_data(word(kind, slot))) };
    }

    /// Queues an operation; the queue being full, it waits its turn.
    ///
    /// # Safety
    /// As for [`Self::begin`].
    unsafe fn queue(&mut self, entry: squeue::Entry) {
        debug_assert!(
            ladder::is_listed(&entry),
            "only the operations that were probed for are submitted"
        );
        self.in_flight += 1;
        // SAFETY: passed on.
        let taken = self.deferred.is_empty() && unsafe { self.kernel.push(&entry) };
        if !taken && !planted::is(Fault::FullQueueLoses) {
            if planted::is(Fault::FullQueueReorders) {
                self.deferred.push_front(entry);
                return;
            }
            self.deferred.push_back(entry);
        }
    }

    /// Moves what waited into the queue, as far as there is room.
    fn queue_deferred(&mut self) {
        while let Some(entry) = self.deferred.front() {
            // SAFETY: whoever queued it vouched for its memory until it completes.
            if !unsafe { self.kernel.push(entry) } {
                return;
            }
            self.deferred.pop_front();
        }
    }

    fn arm_doorbell(&mut self) {
        let counter = Fd(self.doorbell.counter().as_raw_fd());
        let entry = opcode::PollAdd::new(counter, POLL_IN).multi(true).build();
        let slot = Slot {
            index: 0,
            generation: 0,
        };
        // SAFETY: the entry names no memory; the counter lives as long as the ring.
        unsafe { self.queue(entry.user_data(word(Kind::Doorbell, slot))) };
    }

    /// One system call: hands over what is queued, runs deferred work, and with
    /// `wait` sleeps until a completion is there.
    fn enter(&mut self, wait: Wait) -> Result<(), RingFault> {
        self.calls.enters += 1;
        match self.kernel.enter(wait) {
            Ok(()) => Ok(()),
            Err(Errno(libc::EBUSY | libc::EAGAIN | libc::ENOMEM))
                if planted::is(Fault::BusyStops) =>
            {
                Err(RingFault {
                    operation: "io_uring_enter",
                    errno: Errno(libc::EBUSY),
                })
            }
            // A signal or the end of the waiting time; or the kernel is short of
            // memory or of room for completions. What was not taken is still
            // queued and is handed over by the next turn.
            Err(Errno(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => {
                Ok(())
            }
            Err(_) if planted::is(Fault::GoesOnBroken) => Ok(()),
            Err(errno) => Err(RingFault {
                operation: "io_uring_enter",
                errno,
            }),
        }
    }

    /// Takes one completion off the queue, with the books kept. `None` for one that
    /// concerns only the ring itself.
    fn account(&mut self, completed: Completed) -> Option<Completion> {
        let Completed {
            word,
            result,
            flags,
        } = completed;
        let more = cqueue::more(flags);
        let (kind, slot) = unpack(word)?;
        if !more {
            self.in_flight -= 1;
        }
        match kind {
            Kind::Doorbell => {
                if !more && !planted::is(Fault::DoorbellNotArmedAgain) {
                    self.arm_doorbell();
                }
                return (result >= 0).then_some(Completion::Woken);
            }
            // Our own; what it ended reports for itself.
            Kind::Retire => return None,
            Kind::Write => {
                let (file, token) = if planted::is(Fault::WriteToldForAnother) {
                    self.writes.end_first()
                } else {
                    self.writes.end(slot)
                }?;
                self.files.ended(file);
                return Some(Completion::Written {
                    file,
                    token,
                    result: outcome(result),
                });
            }
            Kind::Receive | Kind::Send | Kind::Writable | Kind::Cancel => {}
        }
        if !more && let Some(seat) = self.seats[slot.position()].as_mut() {
            debug_assert_eq!(
                seat.generation, slot.generation,
                "a slot is kept until its last completion"
            );
            seat.in_flight -= 1;
        }
        Some(match kind {
            Kind::Receive => {
                let received = self.received(flags, result);
                return self.settle_receive(slot, received, more);
            }
            Kind::Send => Completion::Sent {
                slot,
                result: outcome(result),
            },
            Kind::Writable => Completion::Writable { slot },
            Kind::Cancel => Completion::Cancelled { slot },
            Kind::Doorbell | Kind::Retire | Kind::Write => unreachable!("answered above"),
        })
    }

    /// The end of a receive that we cancelled ourselves is none for the driver: it goes on
    /// directly, or again as a multishot if that is what is wanted by now.
    fn settle_receive(&mut self, slot: Slot, received: Received, more: bool) -> Option<Completion> {
        let Some(seat) = self.seats[slot.position()].as_mut().filter(|_| !more) else {
            return Some(Completion::Received {
                slot,
                received,
                more,
            });
        };
        let retired = seat.receiving == Receiving::Retiring && !seat.cancelling;
        seat.receiving = Receiving::No;
        let (received, more) = match received {
            Received::Failed(Errno(libc::ECANCELED)) if retired => (None, true),
            Received::Bytes(buffer) if retired => (Some(Received::Bytes(buffer)), true),
            received => (Some(received), false),
        };
        if more {
            self.arm_receive(slot);
        }
        received.map(|received| Completion::Received {
            slot,
            received,
            more,
        })
    }

    fn arm_multishot(&mut self, slot: Slot) {
        self.seat(slot).receiving = Receiving::Multishot;
        let entry = opcode::RecvMulti::new(Fixed(slot.index), BUFFER_GROUP).build();
        // SAFETY: the kernel writes into provided buffers only, which outlive it.
        unsafe { self.begin(Kind::Receive, slot, entry) };
    }

    /// Queues a write of a file that takes direct ones.
    ///
    /// # Safety
    /// The pieces stay readable and unchanged until its completion was taken.
    unsafe fn write_directly(
        &mut self,
        slot: FileSlot,
        target: Target,
        position: u64,
        pieces: &[&[u8]],
        token: u64,
    ) {
        let durable = if planted::is(Fault::WriteWithoutFlush) {
            0
        } else {
            libc::RWF_DSYNC
        };
        let place = self.writes.begin(slot, token);
        // A plain descriptor: to look it up costs nothing beside a device's write.
        let file = Fd(target.descriptor);
        let entry = match pieces {
            [piece] => {
                let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                opcode::Write::new(file, piece.as_ptr(), length)
                    .offset(position)
                    .rw_flags(durable)
                    .build()
            }
            pieces => {
                let vectors = self.writes.fill(place, pieces);
                let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
                opcode::Writev::new(file, vectors.as_ptr(), count)
                    .offset(position)
                    .rw_flags(durable)
                    .build()
            }
        };
        // SAFETY: the caller vouches for the pieces; the vectors are of this write's own
        // place, which nobody has before it ended; the file is kept as long.
        unsafe { self.queue(entry.user_data(word(Kind::Write, place))) };
    }

    /// Takes notice of writes that another thread made.
    #[inline]
    fn collect_written(&mut self) {
        let Some(aside) = &mut self.aside else {
            return;
        };
        while let Some(written) = aside.take() {
            self.facts.push_back(written);
        }
    }

    /// Whether direct calls fit the turns as they are.
    fn wants_direct(&self) -> bool {
        self.spins >= DIRECT_AFTER && (1..=DIRECT_MAX).contains(&self.attached.len())
    }

    /// Into direct mode: multishots are cancelled, and go on directly once they ended.
    fn go_direct(&mut self) {
        self.direct = true;
        self.calls.direct_begun += 1;
        for position in 0..self.attached.len() {
            let slot = self.attached[position];
            let seat = self.seat(slot);
            if seat.receiving == Receiving::Multishot && !seat.cancelling {
                seat.receiving = Receiving::Retiring;
                let multishot = CancelBuilder::user_data(word(Kind::Receive, slot));
                let entry = opcode::AsyncCancel2::new(multishot).build();
                // SAFETY: the entry names no memory.
                unsafe { self.queue(entry.user_data(word(Kind::Retire, slot))) };
            }
        }
    }

    /// Out of direct mode: multishots take over and find what has arrived meanwhile.
    fn leave_direct(&mut self) {
        self.direct = false;
        self.calls.direct_ended += 1;
        for position in 0..self.attached.len() {
            let slot = self.attached[position];
            if self.seat(slot).receiving == Receiving::Direct {
                self.arm_multishot(slot);
            }
        }
    }

    /// Receives once from each socket in direct mode.
    fn receive_directly(&mut self) {
        for position in 0..self.attached.len() {
            let slot = self.attached[position];
            let Some(seat) = self.seats[slot.position()]
                .as_mut()
                .filter(|seat| seat.receiving == Receiving::Direct)
            else {
                continue;
            };
            let Some(number) = self.direct_buffers.take() else {
                continue;
            };
            let space = self.direct_buffers.space(number);
            let received = match sys::receive(seat.socket.as_fd(), space) {
                Ok(length) if length > 0 => Received::Bytes(Buffer {
                    number,
                    length: u32::try_from(length).expect("a buffer's size is a u32"),
                }),
                result => {
                    self.direct_buffers.put(number);
                    match result {
                        Ok(_) => Received::End,
                        Err(Errno(libc::EAGAIN | libc::EINTR)) => {
                            self.calls.direct_polls += 1;
                            continue;
                        }
                        Err(errno) => Received::Failed(errno),
                    }
                }
            };
            self.calls.direct_receives += 1;
            let more = matches!(received, Received::Bytes(_));
            if !more {
                seat.receiving = Receiving::No;
            }
            self.facts.push_back(Completion::Received {
                slot,
                received,
                more,
            });
        }
    }

    /// A receive that failed or ended may still have taken a buffer, when the data
    /// lost a race against a cancellation; that buffer goes straight back.
    fn received(&mut self, flags: u32, result: i32) -> Received {
        let buffer = cqueue::buffer_select(flags).map(|number| Buffer {
            number,
            length: u32::try_from(result).unwrap_or(0),
        });
        match (outcome(result), buffer) {
            (Ok(length), Some(buffer)) if length > 0 => Received::Bytes(buffer),
            (result, buffer) => {
                if let Some(buffer) = buffer
                    && !planted::is(Fault::FailedReceiveKeepsBuffer)
                {
                    self.give_back(buffer);
                }
                match result {
                    Ok(0) => Received::End,
                    Ok(_) => Received::Failed(Errno(libc::EIO)),
                    Err(errno) => Received::Failed(errno),
                }
            }
        }
    }
}

impl Ring for IoUringRing {
    type Socket = OwnedFd;
    type File = DiskFile;

    fn attach(&mut self, slot: Slot, socket: OwnedFd) -> Result<(), AttachRefused<OwnedFd>> {
        assert!(
            self.seats[slot.position()].is_none(),
            "a slot has one socket at a time"
        );
        if let Err(error) = self.kernel.update_file(slot.index, socket.as_raw_fd()) {
            return Err(AttachRefused {
                socket,
                errno: Errno::of(&error),
            });
        }
        self.seats[slot.position()] = Some(Seat {
            socket,
            generation: slot.generation,
            in_flight: 0,
            receiving: Receiving::No,
            cancelling: false,
        });
        self.attached.push(slot);
        Ok(())
    }

    fn arm_receive(&mut self, slot: Slot) {
        if self.direct {
            self.seat(slot).receiving = Receiving::Direct;
        } else {
            self.arm_multishot(slot);
        }
    }

    unsafe fn send(&mut self, slot: Slot, pieces: &[&[u8]]) {
        if self.direct {
            let result = direct::send(self.seat(slot).socket.as_fd(), pieces);
            self.calls.direct_sends += 1;
            self.facts.push_back(Completion::Sent { slot, result });
            return;
        }
        let socket = Fixed(slot.index);
        let entry = match pieces {
            [piece] => {
                let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                opcode::Send::new(socket, piece.as_ptr(), length)
                    .flags(sys::SEND_FLAGS)
                    .build()
            }
            pieces => {
                let header = self.headers.fill(slot, pieces);
                opcode::SendMsg::new(socket, header.as_ptr())
                    .flags(sys::SEND_FLAGS.cast_unsigned())
                    .build()
            }
        };
        let entry = if planted::is(Fault::LinkedSend) {
            entry.flags(squeue::Flags::IO_LINK)
        } else if planted::is(Fault::ZeroCopySend) && pieces[0].len() >= 16 * 1024 {
            let length = u32::try_from(pieces[0].len()).unwrap_or(u32::MAX);
            opcode::SendZc::new(socket, pieces[0].as_ptr(), length).build()
        } else {
            entry
        };
        // SAFETY: the caller vouches for the pieces; the header is the slot's own and
        // stays as it is until the next send, which begins after this one's end.
        unsafe { self.begin(Kind::Send, slot, entry) };
    }

    fn arm_writable(&mut self, slot: Slot) {
        let entry = opcode::PollAdd::new(Fixed(slot.index), POLL_OUT).build();
        // SAFETY: the entry names no memory.
        unsafe { self.begin(Kind::Writable, slot, entry) };
    }

    fn cancel(&mut self, slot: Slot) {
        let seat = self.seat(slot);
        seat.cancelling = true;
        if seat.receiving == Receiving::Direct {
            seat.receiving = Receiving::No;
            self.facts.push_back(Completion::Received {
                slot,
                received: Received::Failed(Errno(libc::ECANCELED)),
                more: false,
            });
        }
        let everything = CancelBuilder::fd(Fixed(slot.index)).all();
        let entry = opcode::AsyncCancel2::new(everything).build();
        // SAFETY: the entry names no memory.
        unsafe { self.begin(Kind::Cancel, slot, entry) };
    }

    fn shutdown(&mut self, slot: Slot, which: Shutdown) {
        sys::shutdown(self.seat(slot).socket.as_fd(), which);
    }

    fn turn_away(socket: OwnedFd, farewell: &[u8]) {
        direct::say_farewell(socket.as_fd(), farewell);
    }

    fn detach(&mut self, slot: Slot) -> OwnedFd {
        assert_eq!(
            self.seat(slot).in_flight,
            0,
            "a slot is detached after its last completion"
        );
        let removed = self.kernel.update_file(slot.index, -1);
        debug_assert!(removed.is_ok(), "emptying a place cannot fail");
        self.attached.retain(|other| *other != slot);
        self.seats[slot.position()]
            .take()
            .expect("the slot was attached a line ago")
            .socket
    }

    fn attach_file(
        &mut self,
        slot: FileSlot,
        file: DiskFile,
    ) -> Result<(), AttachRefused<DiskFile>> {
        match file.way() {
            Way::Direct => sys::refuse_large_files_quietly(),
            Way::Cached if self.aside.is_some() => {}
            Way::Cached => match Aside::start(Doorbell::clone(&self.doorbell)) {
                Ok(aside) => self.aside = Some(aside),
                Err(error) => {
                    let errno = Errno::of(&error);
                    return Err(AttachRefused {
                        socket: file,
                        errno,
                    });
                }
            },
        }
        self.files.attach(slot, file);
        Ok(())
    }

    unsafe fn write(&mut self, slot: FileSlot, position: u64, pieces: &[&[u8]], token: u64) {
        let target = self.files.begin(slot, position, pieces);
        match (target.way, &mut self.aside) {
            (Way::Cached, Some(aside)) => {
                // SAFETY: the caller vouches for the pieces, and the file is not let go
                // before the completion was taken; a drop of the ring drops the thread
                // first.
                if let Err(fact) = unsafe { aside.write(slot, target, position, pieces, token) } {
                    self.facts.push_back(fact);
                }
            }
            // SAFETY: passed on.
            _ => unsafe { self.write_directly(slot, target, position, pieces, token) },
        }
    }

    fn detach_file(&mut self, slot: FileSlot) -> DiskFile {
        self.files.detach(slot)
    }

    fn turn(&mut self, wait: Wait) -> Result<Calls, RingFault> {
        // Whoever goes to sleep has announced it; what is over by now is seen here, and
        // what is over later rings.
        self.collect_written();
        if !planted::is(Fault::BuffersNotPublished) {
            self.buffers.publish();
        }
        self.spins = match wait {
            Wait::No => self.spins.saturating_add(1),
            Wait::AtMost(_) => 0,
        };
        match (self.direct, self.wants_direct()) {
            (false, true) => self.go_direct(),
            (true, false) => self.leave_direct(),
            (true, true) | (false, false) => {}
        }
        if self.direct {
            self.receive_directly();
            let moved = self.calls.direct_receives + self.calls.direct_sends > 0;
            self.quiet = if moved { 0 } else { self.quiet.wrapping_add(1) };
            let nothing_else = self.kernel.queued() == 0
                && self.deferred.is_empty()
                && self.in_flight == OWN_OPERATIONS;
            if nothing_else && (moved || !self.quiet.is_multiple_of(ENTER_EVERY)) {
                return Ok(std::mem::take(&mut self.calls));
            }
        }
        self.queue_deferred();
        self.kernel.sync_completions();
        // Completions that are here already, or operations that found no room, are
        // not slept on.
        let wait = match wait {
            Wait::AtMost(_)
                if !self.kernel.has_completions()
                    && self.deferred.is_empty()
                    && self.facts.is_empty() =>
            {
                wait
            }
            _ => Wait::No,
        };
        let aside = self.kernel.has_overflowed() && planted::is(Fault::BacklogNotFetched);
        if !aside || self.kernel.queued() > 0 {
            self.enter(wait)?;
        }
        // A burst larger than the queue goes in several calls of the same turn; each
        // must have made room, or the rest waits for the next turn.
        while !self.deferred.is_empty() && !self.kernel.is_full() {
            self.queue_deferred();
            self.enter(Wait::No)?;
        }
        if self.kernel.has_overflowed() {
            self.calls.overflows += 1;
        }
        self.kernel.sync_completions();
        self.collect_written();
        Ok(std::mem::take(&mut self.calls))
    }

    fn next(&mut self) -> Option<Completion> {
        if let Some(fact) = self.facts.pop_front() {
            if let Completion::Written { file, .. } = fact {
                self.files.ended(file);
            }
            return Some(fact);
        }
        while let Some(completed) = self.kernel.next_completion() {
            let fact = self.account(completed);
            if fact.is_some() {
                return fact;
            }
        }
        None
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        if self.direct_buffers.has(buffer.number) {
            self.direct_buffers.bytes(buffer)
        } else {
            self.buffers.bytes(buffer)
        }
    }

    fn give_back(&mut self, buffer: Buffer) {
        if self.direct_buffers.has(buffer.number) {
            self.direct_buffers.put(buffer.number);
        } else {
            self.buffers.give_back(buffer.number);
        }
    }

    fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.seats.len()).unwrap_or(u32::MAX)
    }

    fn description(&self) -> String {
        format!(
            "io_uring on Linux {}, step {} of {}: {}, room for {} completions{}{}",
            sys::kernel_release(),
            self.step + 1,
            LADDER.len(),
            LADDER[self.step].name,
            self.completions,
            if self.kernel.no_iowait() {
                ", waits not counted as I/O"
            } else {
                ""
            },
            if self.is_registered {
                ""
            } else {
                ", its descriptor not registered"
            }
        )
    }
}

impl Drop for IoUringRing {
    /// Cancels everything, waits for the last completion of each operation, and then
    /// frees. If the kernel does not end an operation in time, the memory it may
    /// still write to is left allocated for good: a leak is better than a stranger's
    /// bytes overwritten. So are the files, and with them the directory stays taken: a
    /// write that is late must not land in what its next owner has written there.
    fn drop(&mut self) {
        self.aside = None;
        let started = Instant::now();
        // What was queued and never handed over would not be found by a cancellation.
        let mut fault = self.turn(Wait::No).is_err();
        let mut told = false;
        let mut is_overdue = planted::is(Fault::DropLeavesWrites);
        while self.in_flight > 0 && !fault && !is_overdue {
            let time = if self.writes.is_empty() {
                DRAIN_TIME
            } else {
                WRITE_TIME
            };
            is_overdue = started.elapsed() >= time;
            if !told {
                let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
                let slot = Slot {
                    index: 0,
                    generation: 0,
                };
                // SAFETY: the entry names no memory.
                unsafe { self.queue(entry.user_data(word(Kind::Cancel, slot))) };
                told = true;
            }
            fault = self
                .turn(Wait::AtMost(Some(Duration::from_millis(10))))
                .is_err();
            while let Some(completed) = self.kernel.next_completion() {
                if !cqueue::more(completed.flags) {
                    self.in_flight -= 1;
                }
                if let Some((Kind::Write, place)) = unpack(completed.word) {
                    self.writes.end(place);
                }
            }
        }
        let drained = self.in_flight == 0;
        // A panic that comes by here has its own story to tell.
        debug_assert!(
            drained || fault || std::thread::panicking(),
            "a cancelled operation ends"
        );
        // The thread's registration is a reference of its own: left behind, it would
        // keep the ring and every socket in it open until the thread ends.
        if self.is_registered {
            let unregistered = self.kernel.unregister_ring();
            debug_assert!(unregistered.is_ok(), "it was registered when it was made");
        }
        // SAFETY: each is taken once, here, and the ring is not used again. The kernel
        // ring goes first: after it nothing can begin or complete.
        unsafe {
            ManuallyDrop::drop(&mut self.kernel);
            ManuallyDrop::drop(&mut self.seats);
            ManuallyDrop::drop(&mut self.doorbell);
            if drained {
                ManuallyDrop::drop(&mut self.buffers);
                ManuallyDrop::drop(&mut self.headers);
                ManuallyDrop::drop(&mut self.writes);
                ManuallyDrop::drop(&mut self.files);
            }
        }
    }
}

fn outcome(result: i32) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| Errno(-result))
}
