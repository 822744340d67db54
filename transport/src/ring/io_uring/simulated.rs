//! A kernel behind the ring that does anything the laws allow.
//!
//! Cast: a [`SimulatedKernel`] has the two queues, the table of descriptors and the view
//! of the provided buffers that a real one has; it carries operations out on the real,
//! non-blocking sockets that were registered with it, so that direct calls see the same
//! streams, and on real files. A [`Behaviour`] says which liberties it takes, drawn from a seed; without
//! any it is a kernel on its best day. A [`Record`] is what it saw, for tests to assert
//! that a liberty was taken and that something was never asked for.
//!
//! ```text
//!   push -> submission -> enter: begun -> worked on, when due -> completion -> next
//!                                                    \ no room -> backlog -> enter /
//! ```
//!
//! Time is counted in enters: what is late is due so many enters later, and an enter
//! that waits goes straight to the next thing that is due.
//!
//! It also watches over the ring: an operation that it was not told of, two receives of
//! one slot at a time and a buffer provided twice are refused with a panic.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{opcode, squeue};

use super::kernel::{Completed, Kernel};
use super::ladder::{Foothold, OPERATIONS};
use super::{IoUringRing, word};
use crate::ring::simulated::Choices;
use crate::ring::{Cause, RingSize, Wait};
use crate::sys::{self, Errno};

/// The liberties that a kernel takes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaviour {
    /// An operation is worked on up to so many enters late.
    pub(crate) late: usize,
    /// Receives, sends and writes take any length, a send also none.
    pub(crate) short: bool,
    /// What a write ends with, once in four, having taken some of its bytes.
    pub(crate) write_errors: &'static [i32],
    /// What a receive, send or poll is refused with, once in four.
    pub(crate) refusals: &'static [i32],
    /// A multishot ends with any completion.
    pub(crate) ends_early: bool,
    /// What a cancellation finds may succeed first, or fail with a buffer selected.
    pub(crate) cancels_race: bool,
    /// What an enter is refused with, once in three; others take only a part.
    pub(crate) enter_refusals: &'static [i32],
    /// What a place in the table of descriptors is refused with, once in three.
    pub(crate) file_refusals: &'static [i32],
}

/// How a kernel is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    /// Places in the submission queue.
    pub(crate) submissions: usize,
    /// Places in the completion queue.
    pub(crate) completions: usize,
    /// A registration that is refused, and how.
    pub(crate) refused: Option<(Registration, i32)>,
    /// An operation that it does not know.
    pub(crate) unknown: Option<u8>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 0,
            submissions: 256,
            completions: 4096,
            refused: None,
            unknown: None,
        }
    }
}

/// What can be registered with a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registration {
    Probe,
    Ring,
    Files,
    Buffers,
}

/// What a kernel saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// Operations submitted, by their code.
    pub(crate) operations: BTreeMap<u8, u64>,
    /// Every flag that any entry had.
    pub(crate) entry_flags: u8,
    /// The words of entries in the order of their submission.
    pub(crate) words: Vec<u64>,
    /// The longest piece that one plain send named.
    pub(crate) send_length_max: u32,
    /// Entries that found no room.
    pub(crate) queue_full: u64,
    pub(crate) enters: u64,
    pub(crate) enters_refused: u64,
    pub(crate) enters_partial: u64,
    pub(crate) short: u64,
    /// Positions and lengths of the writes that were made, each as asked for.
    pub(crate) writes: Vec<(u64, usize)>,
    /// Writes that were not asked to be durable.
    pub(crate) writes_unflushed: u64,
    pub(crate) write_errors: u64,
    pub(crate) refused: u64,
    pub(crate) ended_early: u64,
    pub(crate) out_of_buffers: u64,
    pub(crate) failed_with_buffer: u64,
    pub(crate) beaten_cancels: u64,
    /// The longest that an operation was late, in enters.
    pub(crate) late_max: u64,
    /// Completions that found no room.
    pub(crate) overflowed: u64,
    /// The most completions that waited at a time.
    pub(crate) completions_max: usize,
}

/// The kernel itself.
#[derive(Debug)]
pub(crate) struct SimulatedKernel {
    choices: Choices,
    behaviour: Behaviour,
    setup: Setup,
    submission: VecDeque<Begun>,
    begun: Vec<Begun>,
    completion: VecDeque<Completed>,
    backlog: VecDeque<Completed>,
    files: Vec<Option<Arc<OwnedFd>>>,
    buffers: Option<ProvidedRing>,
    /// Enters so far: its time.
    time: u64,
    /// What every enter answers from now on.
    broken: Option<i32>,
    record: RefCell<Record>,
}

/// An operation that was submitted.
#[derive(Debug, Clone)]
struct Begun {
    word: u64,
    operation: Operation,
    /// The time before which nothing happens to it.
    due: u64,
}

#[derive(Debug, Clone)]
enum Operation {
    Receive(Arc<OwnedFd>),
    Send {
        file: Arc<OwnedFd>,
        address: u64,
        length: u32,
        flags: i32,
    },
    SendMessage {
        file: Arc<OwnedFd>,
        address: u64,
        flags: i32,
    },
    Write {
        file: Arc<File>,
        /// Of the bytes, or of vectors that name them.
        address: u64,
        /// Of the bytes, or how many vectors.
        length: u32,
        is_vectored: bool,
        position: u64,
    },
    /// Of a socket, once.
    Poll(Arc<OwnedFd>, i16),
    /// Of the doorbell, again and again.
    Watch(RawFd),
    Cancel(Target),
    /// One that was cancelled and completes later.
    Ended {
        result: i32,
        flags: u32,
    },
    /// One that it cannot carry out: a place without a descriptor, or an operation that
    /// nobody told it of.
    Bad(i32),
}

#[derive(Debug, Clone)]
enum Target {
    Word(u64),
    File(Option<Arc<OwnedFd>>),
    Everything,
}

/// The kernel's view of the ring of provided buffers.
#[derive(Debug)]
struct ProvidedRing {
    entries: *mut BufRingEntry,
    count: u16,
    head: u16,
    /// The tail as last looked at, and which buffers are between the two.
    tail: u16,
    provided: BTreeSet<u16>,
}

/// A buffer that was selected.
#[derive(Debug, Clone, Copy)]
struct Selected {
    number: u16,
    address: u64,
    length: u32,
}

/// The fields of an entry, where the kernel's interface has them.
struct Fields([u8; 64]);

impl Fields {
    fn of(entry: &squeue::Entry) -> Self {
        const _: () = assert!(size_of::<squeue::Entry>() == 64);
        // SAFETY: an entry is 64 bytes of plain numbers, laid out for the kernel.
        Self(unsafe { std::ptr::from_ref(entry).cast::<[u8; 64]>().read() })
    }

    fn number<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("the length is N")
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.number(at))
    }

    fn half(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.number(at))
    }
}

const FIXED_FILE: u8 = 1;
const POLL_MULTI: u32 = 1;
const RECEIVE_MULTISHOT: u16 = 2;
const CANCEL_FD: u32 = 2;
const CANCEL_ANY: u32 = 4;
const FLAG_BUFFER: u32 = 1;
const FLAG_MORE: u32 = 2;

/// The most completions of one multishot in one enter.
const IN_A_ROW: usize = 4;

impl SimulatedKernel {
    /// A kernel on its best day.
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            choices: Choices::new(setup.seed),
            behaviour: Behaviour::default(),
            setup,
            submission: VecDeque::new(),
            begun: Vec::new(),
            completion: VecDeque::new(),
            backlog: VecDeque::new(),
            files: Vec::new(),
            buffers: None,
            time: 0,
            broken: None,
            record: RefCell::default(),
        }
    }

    /// Takes these liberties from now on.
    pub(crate) fn behave(&mut self, behaviour: Behaviour) {
        self.behaviour = behaviour;
    }

    /// Refuses every enter from now on.
    pub(crate) fn break_down(&mut self, errno: i32) {
        self.broken = Some(errno);
    }

    /// Buffers that it could fill.
    pub(crate) fn buffers_provided(&mut self) -> usize {
        self.look_at_buffers();
        self.buffers
            .as_ref()
            .map_or(0, |buffers| buffers.provided.len())
    }

    /// Operations whose last completion was not posted.
    pub(crate) fn begun(&self) -> usize {
        self.begun.len() + self.submission.len()
    }

    /// A copy of the record as it is now.
    pub(crate) fn recorded(&self) -> Record {
        self.record.borrow().clone()
    }

    fn noted(&self, note: impl FnOnce(&mut Record)) {
        note(&mut self.record.borrow_mut());
    }

    // --- registering --------------------------------------------------------------------

    fn refusal_of(&self, registration: Registration) -> io::Result<()> {
        match self.setup.refused {
            Some((refused, errno)) if refused == registration => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn first_unknown(
        &mut self,
        operations: &[(u8, &'static str)],
    ) -> io::Result<Option<&'static str>> {
        self.refusal_of(Registration::Probe)?;
        let unknown = operations
            .iter()
            .find(|(code, _)| self.setup.unknown == Some(*code));
        Ok(unknown.map(|&(_, name)| name))
    }

    pub(super) fn register_ring(&mut self) -> io::Result<()> {
        self.refusal_of(Registration::Ring)
    }

    pub(super) fn register_files(&mut self, count: u32) -> io::Result<()> {
        self.refusal_of(Registration::Files)?;
        self.files.resize_with(count as usize, || None);
        Ok(())
    }

    pub(super) fn update_file(&mut self, place: u32, descriptor: RawFd) -> io::Result<()> {
        if descriptor < 0 {
            self.files[place as usize] = None;
            return Ok(());
        }
        let refusals = self.behaviour.file_refusals;
        if !refusals.is_empty() && self.choices.once_in(3) {
            let errno = refusals[self.choices.below(refusals.len())];
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: the caller has it open for the call.
        let file = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
        self.files[place as usize] = Some(Arc::new(file));
        Ok(())
    }

    /// # Safety
    /// As for [`Kernel::register_buffers`].
    pub(super) unsafe fn register_buffers(
        &mut self,
        address: u64,
        count: u16,
        _group: u16,
    ) -> io::Result<()> {
        self.refusal_of(Registration::Buffers)?;
        self.buffers = Some(ProvidedRing {
            entries: std::ptr::with_exposed_provenance_mut(
                usize::try_from(address).expect("an address"),
            ),
            count,
            head: 0,
            tail: 0,
            provided: BTreeSet::new(),
        });
        Ok(())
    }

    // --- the queues ---------------------------------------------------------------------

    /// # Safety
    /// As for [`Kernel::push`].
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        if self.is_full() {
            self.noted(|record| record.queue_full += 1);
            return false;
        }
        let fields = Fields::of(entry);
        let begun = self.read(&fields);
        self.submission.push_back(begun);
        true
    }

    pub(super) fn queued(&self) -> usize {
        self.submission.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.submission.len() >= self.setup.submissions
    }

    pub(super) fn sync_completions(&mut self) {}

    pub(super) fn has_completions(&self) -> bool {
        !self.completion.is_empty()
    }

    pub(super) fn next_completion(&mut self) -> Option<Completed> {
        self.completion.pop_front()
    }

    pub(super) fn has_overflowed(&self) -> bool {
        !self.backlog.is_empty()
    }

    pub(super) fn enter(&mut self, wait: Wait) -> Result<(), Errno> {
        self.time += 1;
        self.noted(|record| record.enters += 1);
        if let Some(errno) = self.broken {
            return Err(Errno(errno));
        }
        let liberal = !self.behaviour.enter_refusals.is_empty();
        if liberal && self.choices.once_in(3) {
            let errno = self.behaviour.enter_refusals
                [self.choices.below(self.behaviour.enter_refusals.len())];
            self.noted(|record| record.enters_refused += 1);
            // A signal interrupts a wait, when everything was taken.
            if errno == libc::EINTR {
                self.submit(self.submission.len());
            }
            return Err(Errno(errno));
        }
        if liberal && self.choices.once_in(3) && !self.submission.is_empty() {
            let part = self.choices.below(self.submission.len());
            self.noted(|record| record.enters_partial += 1);
            self.submit(part);
            // Having taken less than everything, it neither works nor waits.
            return Ok(());
        }
        self.submit(self.submission.len());
        while self.completion.len() < self.setup.completions
            && let Some(aside) = self.backlog.pop_front()
        {
            self.completion.push_back(aside);
        }
        self.work();
        if wait != Wait::No && self.completion.is_empty() {
            // The next thing that is due ends the wait, if anything comes of it.
            let next = self.begun.iter().map(|begun| begun.due).min();
            self.time = self.time.max(next.unwrap_or(0));
            self.work();
            if self.completion.is_empty() {
                std::thread::yield_now();
                return Err(Errno(libc::ETIME));
            }
        }
        Ok(())
    }

    fn submit(&mut self, count: usize) {
        for _ in 0..count {
            let Some(mut begun) = self.submission.pop_front() else {
                return;
            };
            begun.due = self.time + self.lateness();
            self.noted(|record| record.words.push(begun.word));
            let receives = matches!(begun.operation, Operation::Receive(_));
            assert!(
                std::thread::panicking()
                    || !receives
                    || !self.begun.iter().any(|other| other.word == begun.word),
                "two receives of one slot at a time"
            );
            self.begun.push(begun);
        }
    }

    fn lateness(&mut self) -> u64 {
        let late = match self.behaviour.late {
            0 => 0,
            most => self.choices.below(most + 1) as u64,
        };
        self.noted(|record| record.late_max = record.late_max.max(late));
        late
    }

    // --- entries ------------------------------------------------------------------------

    fn read(&mut self, fields: &Fields) -> Begun {
        let (code, entry_flags) = (fields.0[0], fields.0[1]);
        let place = fields.half(4);
        let (address, length, flags) = (fields.word(16), fields.half(24), fields.half(28));
        self.noted(|record| {
            *record.operations.entry(code).or_default() += 1;
            record.entry_flags |= entry_flags;
            if code == opcode::Send::CODE {
                record.send_length_max = record.send_length_max.max(length);
            }
        });
        let is_fixed = entry_flags & FIXED_FILE != 0;
        let file = is_fixed
            .then(|| self.files.get(place as usize).cloned().flatten())
            .flatten();
        let operation = match (code, file) {
            (opcode::RecvMulti::CODE, Some(file)) => {
                let multishot = u16::from_le_bytes(fields.number(2));
                assert_eq!(multishot, RECEIVE_MULTISHOT, "a receive is a multishot");
                Operation::Receive(file)
            }
            (opcode::Send::CODE, Some(file)) => Operation::Send {
                file,
                address,
                length,
                flags: flags.cast_signed(),
            },
            (opcode::SendMsg::CODE, Some(file)) => Operation::SendMessage {
                file,
                address,
                flags: flags.cast_signed(),
            },
            (opcode::PollAdd::CODE, Some(file)) => Operation::Poll(
                file,
                i16::try_from(flags).expect("events of a poll have 16 bits"),
            ),
            (opcode::PollAdd::CODE, None) if !is_fixed => {
                assert_eq!(length, POLL_MULTI, "the doorbell is watched for good");
                Operation::Watch(place.cast_signed())
            }
            (opcode::Write::CODE | opcode::Writev::CODE, None) if !is_fixed => {
                if flags.cast_signed() != libc::RWF_DSYNC {
                    self.noted(|record| record.writes_unflushed += 1);
                }
                // Through the page cache, where a part of a block can be written.
                let path = format!("/proc/self/fd/{place}");
                let file = OpenOptions::new().write(true).open(path);
                Operation::Write {
                    file: Arc::new(file.expect("a file is kept open until its last completion")),
                    address,
                    length,
                    is_vectored: code == opcode::Writev::CODE,
                    position: fields.word(8),
                }
            }
            (opcode::AsyncCancel2::CODE, file) => Operation::Cancel(if flags & CANCEL_ANY != 0 {
                Target::Everything
            } else if flags & CANCEL_FD != 0 {
                let place = self.files.get(place as usize).cloned().flatten();
                Target::File(file.or(place))
            } else {
                Target::Word(address)
            }),
            (code, None) if OPERATIONS.iter().any(|(known, _)| *known == code) => {
                Operation::Bad(libc::EBADF)
            }
            _ => Operation::Bad(libc::EINVAL),
        };
        Begun {
            word: fields.word(32),
            operation,
            due: 0,
        }
    }

    // --- working ------------------------------------------------------------------------

    /// Works once on everything that is due, in an order of the seed's choice.
    fn work(&mut self) {
        self.look_at_buffers();
        let mut order: Vec<usize> = (0..self.begun.len()).collect();
        if self.behaviour.late > 0 || self.behaviour.cancels_race {
            for place in (1..order.len()).rev() {
                order.swap(place, self.choices.below(place + 1));
            }
        }
        let mut table: Vec<Option<Begun>> = self.begun.drain(..).map(Some).collect();
        for place in order {
            let Some(begun) = table[place].take_if(|begun| begun.due <= self.time) else {
                continue;
            };
            table[place] = if let Operation::Cancel(target) = &begun.operation {
                self.work_cancel(begun.word, target, &mut table);
                None
            } else {
                self.work_on(begun)
            };
        }
        let left = table.into_iter().flatten();
        self.begun.extend(left);
    }

    /// Works on one operation; what is left of it goes on.
    fn work_on(&mut self, mut begun: Begun) -> Option<Begun> {
        let refusals = self.behaviour.refusals;
        let refusable = matches!(
            begun.operation,
            Operation::Receive(_)
                | Operation::Send { .. }
                | Operation::SendMessage { .. }
                | Operation::Poll(..)
        );
        if refusable && !refusals.is_empty() && self.choices.once_in(4) {
            let errno = refusals[self.choices.below(refusals.len())];
            self.noted(|record| record.refused += 1);
            self.post(begun.word, -errno, 0);
            return None;
        }
        match &begun.operation {
            Operation::Receive(file) => {
                let file = Arc::clone(file);
                let goes_on = self.work_receive(begun.word, &file);
                begun.due = self.time + self.lateness();
                return goes_on.then_some(begun);
            }
            Operation::Send {
                file,
                address,
                length,
                flags,
            } => {
                let vector = libc::iovec {
                    iov_base: pointer(*address),
                    iov_len: *length as usize,
                };
                let result = self.work_send(&Arc::clone(file), vec![vector], *flags);
                self.post(begun.word, result, 0);
            }
            Operation::SendMessage {
                file,
                address,
                flags,
            } => {
                // SAFETY: whoever began the send keeps the header until it completes.
                let header = unsafe { pointer::<libc::msghdr>(*address).read() };
                // SAFETY: the header says how many vectors there are and where.
                let vectors = unsafe {
                    std::slice::from_raw_parts(header.msg_iov, header.msg_iovlen).to_vec()
                };
                let result = self.work_send(&Arc::clone(file), vectors, *flags);
                self.post(begun.word, result, 0);
            }
            Operation::Write {
                file,
                address,
                length,
                is_vectored,
                position,
            } => {
                let vectors = if *is_vectored {
                    // SAFETY: whoever began the write keeps the vectors until it completes.
                    unsafe {
                        std::slice::from_raw_parts(
                            pointer::<libc::iovec>(*address),
                            *length as usize,
                        )
                    }
                    .to_vec()
                } else {
                    vec![libc::iovec {
                        iov_base: pointer(*address),
                        iov_len: *length as usize,
                    }]
                };
                let result = self.work_write(&Arc::clone(file), vectors, *position);
                self.post(begun.word, result, 0);
            }
            Operation::Poll(file, events) => match poll(file.as_raw_fd(), *events) {
                0 => return Some(begun),
                happened => self.post(begun.word, happened.into(), 0),
            },
            Operation::Watch(counter) => {
                if drain(*counter) {
                    let ends = self.behaviour.ends_early && self.choices.once_in(2);
                    let more = if ends { 0 } else { FLAG_MORE };
                    self.post(begun.word, libc::POLLIN.into(), more);
                    if ends {
                        self.noted(|record| record.ended_early += 1);
                        return None;
                    }
                }
                return Some(begun);
            }
            Operation::Cancel(_) => unreachable!("cancellations are worked on by themselves"),
            Operation::Ended { result, flags } => self.post(begun.word, *result, *flags),
            Operation::Bad(errno) => self.post(begun.word, -errno, 0),
        }
        None
    }

    /// Says whether the receive goes on.
    fn work_receive(&mut self, word: u64, file: &OwnedFd) -> bool {
        for _ in 0..IN_A_ROW {
            let waiting = peek(file.as_raw_fd());
            match waiting {
                Err(Errno(libc::EAGAIN)) => return true,
                Err(Errno(errno)) => {
                    self.post(word, -errno, 0);
                    return false;
                }
                Ok(0) => {
                    self.post(word, 0, 0);
                    return false;
                }
                Ok(_) => {}
            }
            let Some(buffer) = self.select() else {
                self.noted(|record| record.out_of_buffers += 1);
                self.post(word, -libc::ENOBUFS, 0);
                return false;
            };
            let most = buffer.length as usize;
            let length = if self.behaviour.short {
                self.noted(|record| record.short += 1);
                1 + self.choices.below(most.min(100))
            } else {
                most
            };
            // SAFETY: the buffer was provided with at least that length, and is the
            // kernel's until its completion.
            let received = unsafe {
                libc::recv(
                    file.as_raw_fd(),
                    pointer(buffer.address),
                    length,
                    libc::MSG_DONTWAIT,
                )
            };
            assert!(received > 0, "what was seen is there");
            let ends = self.behaviour.ends_early && self.choices.once_in(3);
            let flags = selected_flags(buffer) | if ends { 0 } else { FLAG_MORE };
            self.post(
                word,
                i32::try_from(received).expect("a buffer's length"),
                flags,
            );
            if ends {
                self.noted(|record| record.ended_early += 1);
                return false;
            }
        }
        true
    }

    fn work_send(&mut self, file: &OwnedFd, mut vectors: Vec<libc::iovec>, flags: i32) -> i32 {
        assert_eq!(
            flags,
            crate::sys::SEND_FLAGS,
            "a send neither waits nor raises a signal"
        );
        let whole: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        if self.behaviour.short {
            self.noted(|record| record.short += 1);
            let mut left = self.choices.below(whole + 1);
            if left == 0 {
                return 0;
            }
            vectors.retain_mut(|vector| {
                vector.iov_len = vector.iov_len.min(left);
                left -= vector.iov_len;
                vector.iov_len > 0
            });
        }
        // SAFETY: a header of zeros is valid without address and control.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = vectors.as_mut_ptr();
        header.msg_iovlen = vectors.len();
        // SAFETY: the header names the vectors, and those what the ring was promised to
        // find unchanged until the completion.
        let sent = unsafe { libc::sendmsg(file.as_raw_fd(), &raw const header, flags) };
        if sent < 0 {
            return -last().0;
        }
        i32::try_from(sent).expect("a send is bounded")
    }

    fn work_write(&mut self, file: &File, mut vectors: Vec<libc::iovec>, position: u64) -> i32 {
        const SECTOR: usize = 512;
        let whole: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        self.noted(|record| record.writes.push((position, whole)));
        let errors = self.behaviour.write_errors;
        let error = (!errors.is_empty() && self.choices.once_in(4))
            .then(|| errors[self.choices.below(errors.len())]);
        if self.behaviour.short || error.is_some() {
            self.noted(|record| record.short += 1);
            let mut left = SECTOR * (1 + self.choices.below(whole / SECTOR));
            vectors.retain_mut(|vector| {
                vector.iov_len = vector.iov_len.min(left);
                left -= vector.iov_len;
                vector.iov_len > 0
            });
        }
        // SAFETY: the vectors name what the ring was promised to find unchanged until the
        // completion.
        let taken = unsafe { sys::write_vectors(file.as_fd(), &vectors, position, 0) };
        match (taken, error) {
            (_, Some(errno)) => {
                self.noted(|record| record.write_errors += 1);
                -errno
            }
            (Ok(taken), None) => i32::try_from(taken).expect("a write is bounded"),
            (Err(Errno(errno)), None) => -errno,
        }
    }

    /// Ends what it finds; some of that succeeds first.
    fn work_cancel(&mut self, word: u64, target: &Target, table: &mut Vec<Option<Begun>>) {
        let races = self.behaviour.cancels_race;
        let early = races && self.choices.once_in(2);
        let hit = |begun: &mut Begun| match target {
            Target::Word(word) => begun.word == *word,
            Target::File(None) => false,
            Target::File(Some(file)) => match &begun.operation {
                Operation::Receive(other)
                | Operation::Send { file: other, .. }
                | Operation::SendMessage { file: other, .. }
                | Operation::Poll(other, _) => Arc::ptr_eq(file, other),
                _ => false,
            },
            // What is with the device is not to be had back.
            Target::Everything => !matches!(
                begun.operation,
                Operation::Cancel(_) | Operation::Ended { .. } | Operation::Write { .. }
            ),
        };
        let found: Vec<Begun> = table
            .iter_mut()
            .filter_map(|begun| begun.take_if(hit))
            .collect();
        let result = match (found.is_empty(), matches!(target, Target::Word(_))) {
            (true, _) => -libc::ENOENT,
            (false, true) => 0,
            (false, false) => i32::try_from(found.len()).expect("few"),
        };
        if early {
            self.post(word, result, 0);
        }
        for begun in found {
            let beaten = races && self.choices.once_in(2);
            let left = if beaten {
                self.noted(|record| record.beaten_cancels += 1);
                self.work_on(begun)
            } else {
                Some(begun)
            };
            if let Some(left) = left {
                let receives = matches!(left.operation, Operation::Receive(_));
                let selected = (races && receives && self.choices.once_in(2))
                    .then(|| self.select())
                    .flatten();
                if selected.is_some() {
                    self.noted(|record| record.failed_with_buffer += 1);
                }
                let operation = Operation::Ended {
                    result: -libc::ECANCELED,
                    flags: selected.map_or(0, selected_flags),
                };
                let due = self.time + self.lateness();
                let ended = Begun {
                    operation,
                    due,
                    ..left
                };
                if due > self.time {
                    table.push(Some(ended));
                } else {
                    self.work_on(ended);
                }
            }
        }
        if !early {
            self.post(word, result, 0);
        }
    }

    fn post(&mut self, word: u64, result: i32, flags: u32) {
        let completed = Completed {
            word,
            result,
            flags,
        };
        if self.backlog.is_empty() && self.completion.len() < self.setup.completions {
            self.completion.push_back(completed);
        } else {
            self.backlog.push_back(completed);
            self.noted(|record| record.overflowed += 1);
        }
        let waiting = self.completion.len();
        self.noted(|record| record.completions_max = record.completions_max.max(waiting));
    }

    // --- buffers ------------------------------------------------------------------------

    /// Takes notice of buffers that were provided since.
    fn look_at_buffers(&mut self) {
        let Some(buffers) = &mut self.buffers else {
            return;
        };
        // SAFETY: the entries are mapped as long as the kernel lives, and the tail in
        // the first of them is only accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(buffers.entries).cast_mut()) };
        let tail = tail.load(Ordering::Acquire);
        while buffers.tail != tail {
            let number = buffers.entry(buffers.tail).number;
            assert!(
                buffers.provided.insert(number) || std::thread::panicking(),
                "buffer {number} is provided twice"
            );
            buffers.tail = buffers.tail.wrapping_add(1);
        }
    }

    fn select(&mut self) -> Option<Selected> {
        let buffers = self.buffers.as_mut()?;
        if buffers.head == buffers.tail {
            return None;
        }
        let selected = buffers.entry(buffers.head);
        buffers.head = buffers.head.wrapping_add(1);
        buffers.provided.remove(&selected.number);
        Some(selected)
    }
}

impl ProvidedRing {
    fn entry(&self, position: u16) -> Selected {
        let place = usize::from(position & (self.count - 1));
        // SAFETY: the place is below the count of entries, and before the tail, so
        // nobody writes to it.
        let entry = unsafe { &*self.entries.add(place) };
        Selected {
            number: entry.bid(),
            address: entry.addr(),
            length: entry.len(),
        }
    }
}

fn selected_flags(buffer: Selected) -> u32 {
    FLAG_BUFFER | u32::from(buffer.number) << 16
}

fn pointer<T>(address: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).expect("an address"))
}

fn last() -> Errno {
    Errno::of(&io::Error::last_os_error())
}

/// Whether bytes wait (1), or the end (0).
fn peek(socket: RawFd) -> Result<usize, Errno> {
    let mut byte = 0_u8;
    // SAFETY: pointer and length are those of a local.
    let seen = unsafe {
        libc::recv(
            socket,
            (&raw mut byte).cast(),
            1,
            libc::MSG_DONTWAIT | libc::MSG_PEEK,
        )
    };
    usize::try_from(seen).map_err(|_| last())
}

/// Which of the events happened, or what always counts.
fn poll(descriptor: RawFd, events: i16) -> i16 {
    let mut polled = libc::pollfd {
        fd: descriptor,
        events,
        revents: 0,
    };
    // SAFETY: the pointer names one local.
    unsafe { libc::poll(&raw mut polled, 1, 0) };
    polled.revents
}

/// Empties an event counter; says whether it was raised.
fn drain(counter: RawFd) -> bool {
    let mut count = 0_u64;
    // SAFETY: pointer and length are those of a local.
    unsafe { libc::read(counter, (&raw mut count).cast(), 8) == 8 }
}

impl IoUringRing {
    /// A ring over a simulated kernel.
    pub(crate) fn simulated(setup: Setup, size: RingSize) -> Result<Self, Cause> {
        let kernel = Kernel::Simulated(Box::new(SimulatedKernel::new(setup)));
        Self::over(
            Foothold {
                step: 0,
                completions: u32::try_from(setup.completions).unwrap_or(u32::MAX),
                ring: kernel,
            },
            size,
        )
    }

    /// The simulated kernel behind it.
    pub(crate) fn kernel(&mut self) -> &mut SimulatedKernel {
        match &mut *self.kernel {
            Kernel::Simulated(kernel) => kernel,
            Kernel::Real(_) => panic!("a ring over a simulated kernel"),
        }
    }

    /// The kind, as a number, and the slot's index of an operation's word.
    pub(crate) fn operation_of(word: u64) -> Option<(u8, u32)> {
        word::unpack(word).map(|(kind, slot)| (kind as u8, slot.index))
    }
}
