//! A ring without a kernel that answers anything legal, drawn from a seed.
//!
//! Cast: a *stream* joins two ends, a [`SimulatedSocket`] for the ring and a
//! [`SimulatedPeer`] for the test; [`SimulatedRing`] works on the operations in an order
//! and with results that its seed draws: short sends and receives, refusals for want
//! of room, buffers or luck, multishot receives that end early, cancellations that
//! race success, completions that are late. A [`SimulatedFile`] takes writes whole or in
//! part, and from when it is told to, none. A run with the same seed and the same calls is
//! the same run.
//!
//! What it does not do: time. A sleep returns at once, as after a false alarm.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::net::Shutdown;
use std::rc::Rc;

use super::files::check_write;
use super::{
    AttachRefused, Buffer, Calls, Completion, FILES_MAX, FileSlot, Received, Ring, RingFault,
    RingSize, Slot, WRITES_PER_FILE_MAX, Wait,
};
use crate::doorbell::Doorbell;
use crate::sys::Errno;

/// A source of choices: SplitMix64.
#[derive(Debug, Clone)]
pub struct Choices(u64);

impl Choices {
    /// The choices of one seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// One of `0..count`; `count` is at least one.
    pub fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.word() % count.max(1) as u64).unwrap_or(0)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// Both directions of a connection.
#[derive(Debug, Default)]
struct Stream {
    to_ring: VecDeque<u8>,
    to_peer: VecDeque<u8>,
    /// Bytes that each direction holds at most.
    room: usize,
    /// The peer sends no more.
    peer_ended: bool,
    /// The ring's side sends no more.
    ring_ended: bool,
    /// Broken off by the peer.
    reset: bool,
}

/// The end of a simulated stream that a ring takes.
#[derive(Debug)]
pub struct SimulatedSocket(Rc<RefCell<Stream>>);

/// The end of a simulated stream that a test holds. Dropping it ends the stream.
#[derive(Debug)]
pub struct SimulatedPeer(Rc<RefCell<Stream>>);

/// A stream whose directions hold `room` bytes each.
#[must_use]
pub fn stream(room: usize) -> (SimulatedSocket, SimulatedPeer) {
    let stream = Rc::new(RefCell::new(Stream {
        room,
        ..Stream::default()
    }));
    (SimulatedSocket(Rc::clone(&stream)), SimulatedPeer(stream))
}

impl SimulatedPeer {
    /// Sends what there is room for, and says how much that was.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut stream = self.0.borrow_mut();
        let count = bytes
            .len()
            .min(stream.room.saturating_sub(stream.to_ring.len()));
        stream.to_ring.extend(&bytes[..count]);
        count
    }

    /// Takes up to `limit` bytes that arrived.
    pub fn receive(&mut self, limit: usize) -> Vec<u8> {
        let mut stream = self.0.borrow_mut();
        let count = stream.to_peer.len().min(limit);
        stream.to_peer.drain(..count).collect()
    }

    /// Sends no more.
    pub fn end(&mut self) {
        self.0.borrow_mut().peer_ended = true;
    }

    /// Breaks the connection off: what was under way is lost.
    pub fn reset(&mut self) {
        let mut stream = self.0.borrow_mut();
        stream.reset = true;
        stream.to_ring.clear();
        stream.to_peer.clear();
    }

    /// Whether the other side has ended its direction and everything of it was taken.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let stream = self.0.borrow();
        stream.ring_ended && stream.to_peer.is_empty()
    }
}

impl Drop for SimulatedPeer {
    fn drop(&mut self) {
        self.0.borrow_mut().peer_ended = true;
    }
}

impl Drop for SimulatedSocket {
    fn drop(&mut self) {
        self.0.borrow_mut().ring_ended = true;
    }
}

/// A file in memory: an end for a ring, and its clones for tests.
#[derive(Debug, Clone)]
pub struct SimulatedFile(Rc<RefCell<FileState>>);

#[derive(Debug)]
struct FileState {
    bytes: Vec<u8>,
    refusal: Option<Errno>,
}

/// A file of that size in bytes, all zero.
#[must_use]
pub fn file(size: usize) -> SimulatedFile {
    SimulatedFile(Rc::new(RefCell::new(FileState {
        bytes: vec![0; size],
        refusal: None,
    })))
}

impl SimulatedFile {
    /// What it holds, all of it durable.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.borrow().bytes.clone()
    }

    /// Fails every write from now on; each leaves some of its bytes all the same.
    pub fn refuse(&self, errno: Errno) {
        self.0.borrow_mut().refusal = Some(errno);
    }
}

/// A write in flight.
#[derive(Debug)]
struct Write {
    file: FileSlot,
    position: u64,
    bytes: Vec<u8>,
    token: u64,
}

/// An operation in flight.
#[derive(Debug)]
enum Operation {
    Receive,
    Send(Vec<u8>),
    Writable,
    Cancel,
}

/// A [`Ring`] that answers anything legal.
pub struct SimulatedRing {
    choices: Choices,
    seats: Vec<Option<(u32, SimulatedSocket)>>,
    in_flight: Vec<(Slot, Operation)>,
    files: Vec<Option<SimulatedFile>>,
    writes: Vec<Write>,
    completions: VecDeque<Completion>,
    buffers: Vec<Vec<u8>>,
    free: Vec<u16>,
    doorbell: Doorbell,
}

impl SimulatedRing {
    /// A ring of that size whose answers are drawn from `seed`.
    pub fn new(size: RingSize, seed: u64) -> Result<Self, Errno> {
        let mut seats = Vec::new();
        seats.resize_with(size.slots as usize, || None);
        Ok(Self {
            choices: Choices::new(seed),
            seats,
            in_flight: Vec::new(),
            files: vec![None; FILES_MAX as usize],
            writes: Vec::new(),
            completions: VecDeque::new(),
            buffers: vec![vec![0; size.buffer_size as usize]; usize::from(size.buffers)],
            free: (0..size.buffers).collect(),
            doorbell: Doorbell::new()?,
        })
    }

    /// Operations whose last completion was not posted yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + self.writes.len()
    }

    /// Buffers that are neither lent nor in a completion.
    #[must_use]
    pub fn buffers_free(&self) -> usize {
        self.free.len()
    }

    fn seat(&self, slot: Slot) -> &SimulatedSocket {
        let (generation, socket) = self.seats[slot.position()]
            .as_ref()
            .expect("operations are begun on attached sockets only");
        assert_eq!(*generation, slot.generation, "a stale slot is not used");
        socket
    }

    fn begin(&mut self, slot: Slot, operation: Operation) {
        let kind = std::mem::discriminant(&operation);
        self.seat(slot);
        assert!(
            !self
                .in_flight
                .iter()
                .any(|(other, begun)| *other == slot && std::mem::discriminant(begun) == kind),
            "one operation of a kind in flight per slot"
        );
        self.in_flight.push((slot, operation));
    }

    /// Works on one operation; what is left of it goes on.
    fn work(&mut self, slot: Slot, operation: Operation) -> Option<Operation> {
        match operation {
            Operation::Receive => self.work_receive(slot),
            Operation::Send(bytes) => {
                let result = self.work_send(slot, &bytes);
                self.completions
                    .push_back(Completion::Sent { slot, result });
                None
            }
            Operation::Writable => {
                let stream = self.seat(slot).0.borrow();
                let ready = stream.reset || stream.ring_ended || stream.to_peer.len() < stream.room;
                drop(stream);
                if !ready {
                    return Some(Operation::Writable);
                }
                self.completions.push_back(Completion::Writable { slot });
                None
            }
            Operation::Cancel => {
                self.work_cancel(slot);
                None
            }
        }
    }

    fn work_receive(&mut self, slot: Slot) -> Option<Operation> {
        let (waiting, ended, reset) = {
            let stream = self.seat(slot).0.borrow();
            (stream.to_ring.len(), stream.peer_ended, stream.reset)
        };
        let failed = |errno| (Received::Failed(Errno(errno)), false);
        let (received, more) = if reset {
            failed(libc::ECONNRESET)
        } else if self.choices.once_in(50) {
            failed([libc::ECANCELED, libc::EINTR, libc::ENOBUFS][self.choices.below(3)])
        } else if waiting > 0 {
            match self.free.pop() {
                None => failed(libc::ENOBUFS),
                Some(number) => {
                    let most = waiting.min(self.buffers[usize::from(number)].len());
                    let length = 1 + self.choices.below(most);
                    let bytes: Vec<u8> = {
                        let mut stream = self.seat(slot).0.borrow_mut();
                        stream.to_ring.drain(..length).collect()
                    };
                    self.buffers[usize::from(number)][..length].copy_from_slice(&bytes);
                    let length = u32::try_from(length).expect("a buffer's size is a u32");
                    (
                        Received::Bytes(Buffer { number, length }),
                        !self.choices.once_in(8),
                    )
                }
            }
        } else if ended {
            (Received::End, false)
        } else {
            return Some(Operation::Receive);
        };
        self.completions.push_back(Completion::Received {
            slot,
            received,
            more,
        });
        more.then_some(Operation::Receive)
    }

    fn work_send(&mut self, slot: Slot, bytes: &[u8]) -> Result<u32, Errno> {
        let unlucky = self.choices.once_in(20);
        let luck = self.choices.word();
        let mut stream = self.seat(slot).0.borrow_mut();
        if stream.reset || stream.ring_ended {
            return Err(Errno(if unlucky {
                libc::ECONNRESET
            } else {
                libc::EPIPE
            }));
        }
        let room = stream.room.saturating_sub(stream.to_peer.len());
        if room == 0 || unlucky {
            return Err(Errno(libc::EAGAIN));
        }
        let most = room.min(bytes.len());
        // Half of the sends take all they can, as real ones do.
        let taken = if luck.is_multiple_of(2) {
            most
        } else {
            1 + usize::try_from(luck >> 1).unwrap_or(0) % most
        };
        stream.to_peer.extend(&bytes[..taken]);
        Ok(u32::try_from(taken).expect("a send is bounded"))
    }

    fn work_write(&mut self, write: &Write) -> Result<u32, Errno> {
        let luck = self.choices.word();
        let file = self.files[write.file.position()]
            .as_ref()
            .expect("a file is kept until its last completion");
        let mut file = file.0.borrow_mut();
        let some = 1 + usize::try_from(luck >> 1).unwrap_or(0) % write.bytes.len();
        // Half of the writes are whole, as nearly all real ones are.
        let taken = if luck.is_multiple_of(2) && file.refusal.is_none() {
            write.bytes.len()
        } else {
            some
        };
        let from = usize::try_from(write.position).expect("a file in memory");
        file.bytes[from..from + taken].copy_from_slice(&write.bytes[..taken]);
        match file.refusal {
            Some(errno) => Err(errno),
            None => Ok(u32::try_from(taken).expect("a write is bounded")),
        }
    }

    /// Ends everything else on the slot; some of it succeeds first.
    fn work_cancel(&mut self, slot: Slot) {
        let mut ended = Vec::new();
        let mut position = 0;
        while position < self.in_flight.len() {
            if self.in_flight[position].0 == slot {
                ended.push(self.in_flight.swap_remove(position).1);
            } else {
                position += 1;
            }
        }
        let early = self.choices.once_in(2);
        if early {
            self.completions.push_back(Completion::Cancelled { slot });
        }
        for operation in ended {
            let rest = if self.choices.once_in(2) {
                self.work(slot, operation)
            } else {
                Some(operation)
            };
            let cancelled = Err(Errno(libc::ECANCELED));
            self.completions.push_back(match rest {
                Some(Operation::Receive) => Completion::Received {
                    slot,
                    received: Received::Failed(Errno(libc::ECANCELED)),
                    more: false,
                },
                Some(Operation::Send(_)) => Completion::Sent {
                    slot,
                    result: cancelled,
                },
                Some(Operation::Writable) => Completion::Writable { slot },
                Some(Operation::Cancel) | None => continue,
            });
        }
        if !early {
            self.completions.push_back(Completion::Cancelled { slot });
        }
    }
}

impl Ring for SimulatedRing {
    type Socket = SimulatedSocket;
    type File = SimulatedFile;

    fn attach(
        &mut self,
        slot: Slot,
        socket: SimulatedSocket,
    ) -> Result<(), AttachRefused<SimulatedSocket>> {
        if self.choices.once_in(100) {
            let errno = Errno(libc::ENOMEM);
            return Err(AttachRefused { socket, errno });
        }
        let seat = &mut self.seats[slot.position()];
        assert!(seat.is_none(), "a slot has one socket at a time");
        *seat = Some((slot.generation, socket));
        Ok(())
    }

    fn arm_receive(&mut self, slot: Slot) {
        self.begin(slot, Operation::Receive);
    }

    unsafe fn send(&mut self, slot: Slot, pieces: &[&[u8]]) {
        self.begin(slot, Operation::Send(pieces.concat()));
    }

    fn arm_writable(&mut self, slot: Slot) {
        self.begin(slot, Operation::Writable);
    }

    fn cancel(&mut self, slot: Slot) {
        self.begin(slot, Operation::Cancel);
    }

    fn shutdown(&mut self, slot: Slot, which: Shutdown) {
        let mut stream = self.seat(slot).0.borrow_mut();
        if which != Shutdown::Read {
            stream.ring_ended = true;
        }
        if which != Shutdown::Write {
            stream.peer_ended = true;
        }
    }

    fn turn_away(socket: SimulatedSocket, farewell: &[u8]) {
        let mut stream = socket.0.borrow_mut();
        let taken = farewell.len().min(stream.room - stream.to_peer.len());
        stream.to_peer.extend(&farewell[..taken]);
        // Dropped here, it ends its direction.
    }

    fn detach(&mut self, slot: Slot) -> SimulatedSocket {
        self.seat(slot);
        assert!(
            !self.in_flight.iter().any(|(other, _)| *other == slot),
            "a slot is detached after its last completion"
        );
        self.seats[slot.position()]
            .take()
            .expect("the slot was attached a line ago")
            .1
    }

    fn attach_file(
        &mut self,
        slot: FileSlot,
        file: SimulatedFile,
    ) -> Result<(), AttachRefused<SimulatedFile>> {
        if self.choices.once_in(100) {
            let errno = Errno(libc::EAGAIN);
            return Err(AttachRefused {
                socket: file,
                errno,
            });
        }
        let place = &mut self.files[slot.position()];
        assert!(place.is_none(), "a place has one file at a time");
        *place = Some(file);
        Ok(())
    }

    unsafe fn write(&mut self, slot: FileSlot, position: u64, pieces: &[&[u8]], token: u64) {
        let length = check_write(position, pieces);
        let size = self.files[slot.position()]
            .as_ref()
            .expect("writes are begun on attached files only")
            .0
            .borrow()
            .bytes
            .len();
        assert!(
            position + length <= size as u64,
            "a write lies within its file"
        );
        let others = self.writes.iter().filter(|other| other.file == slot);
        assert!(
            others.count() < WRITES_PER_FILE_MAX as usize,
            "two writes in flight per file at most"
        );
        self.writes.push(Write {
            file: slot,
            position,
            bytes: pieces.concat(),
            token,
        });
    }

    fn detach_file(&mut self, slot: FileSlot) -> SimulatedFile {
        assert!(
            !self.writes.iter().any(|write| write.file == slot),
            "a file is detached after its last completion"
        );
        self.files[slot.position()]
            .take()
            .expect("only attached files are detached")
    }

    fn turn(&mut self, _wait: Wait) -> Result<Calls, RingFault> {
        // Each operation gets its chance, in an order of the seed's choice; a cancel
        // may take others away meanwhile.
        for _ in 0..self.in_flight.len() {
            if self.in_flight.is_empty() {
                break;
            }
            let choice = self.choices.below(self.in_flight.len());
            if self.choices.once_in(3) {
                continue; // late
            }
            let (slot, operation) = self.in_flight.swap_remove(choice);
            if let Some(rest) = self.work(slot, operation) {
                self.in_flight.push((slot, rest));
            }
        }
        for _ in 0..self.writes.len() {
            let choice = self.choices.below(self.writes.len());
            if self.choices.once_in(3) {
                continue; // late
            }
            let write = self.writes.swap_remove(choice);
            let result = self.work_write(&write);
            self.completions.push_back(Completion::Written {
                file: write.file,
                token: write.token,
                result,
            });
        }
        Ok(Calls {
            enters: 1,
            ..Calls::default()
        })
    }

    fn next(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        &self.buffers[usize::from(buffer.number)][..buffer.length()]
    }

    fn give_back(&mut self, buffer: Buffer) {
        assert!(
            !self.free.contains(&buffer.number),
            "a buffer is given back once"
        );
        self.free.push(buffer.number);
    }

    fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.seats.len()).unwrap_or(u32::MAX)
    }

    fn description(&self) -> String {
        String::from("simulated")
    }
}

impl fmt::Debug for SimulatedRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedRing")
            .field("in_flight", &self.in_flight)
            .field("writes", &self.writes.len())
            .field("buffers_free", &self.free.len())
            .finish_non_exhaustive()
    }
}
