//! What the ring asks of the kernel, and of the queues that it shares with it.
//!
//! Cast: [`Queues`] are the crate's ring, split into its parts once and kept so: a
//! registered ring descriptor is remembered by the submitter, and the queues cache
//! their positions. A [`Kernel`] is those queues; in tests it may be a simulated one
//! instead (`simulated.rs`), which answers anything that the laws allow. Outside of
//! tests the choice has one variant and costs nothing.
//!
//! What this does not do: decide. Every refusal goes up as it came.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, Probe, SubmissionQueue, Submitter, squeue};

#[cfg(test)]
use super::simulated::SimulatedKernel;
use crate::ring::Wait;
use crate::sys::Errno;

/// One completion, as the queue holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Completed {
    /// The operation's own word.
    pub(super) word: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

/// The other side of the ring.
#[derive(Debug)]
pub(super) enum Kernel {
    Real(Queues),
    #[cfg(test)]
    Simulated(Box<SimulatedKernel>),
}

/// The same for either kernel.
macro_rules! either {
    ($kernel:expr, $inner:ident => $body:expr) => {
        match $kernel {
            Kernel::Real($inner) => $body,
            #[cfg(test)]
            Kernel::Simulated($inner) => $body,
        }
    };
}

impl Kernel {
    /// Hands an entry to the submission queue; `false` if that is full.
    ///
    /// # Safety
    /// Memory that the entry names stays valid until its last completion was taken.
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: passed on.
        either!(self, kernel => unsafe { kernel.push(entry) })
    }

    /// Entries that the kernel did not take yet.
    #[inline]
    pub(super) fn queued(&self) -> usize {
        either!(self, kernel => kernel.queued())
    }

    /// Whether another entry finds room.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        either!(self, kernel => kernel.is_full())
    }

    /// One system call: hands over what is queued, runs deferred work, and with `wait`
    /// sleeps until a completion is there.
    #[inline]
    pub(super) fn enter(&mut self, wait: Wait) -> Result<(), Errno> {
        either!(self, kernel => kernel.enter(wait))
    }

    /// Takes notice of completions posted since.
    #[inline]
    pub(super) fn sync_completions(&mut self) {
        either!(self, kernel => kernel.sync_completions());
    }

    /// Whether a completion is known of.
    #[inline]
    pub(super) fn has_completions(&self) -> bool {
        either!(self, kernel => kernel.has_completions())
    }

    #[inline]
    pub(super) fn next_completion(&mut self) -> Option<Completed> {
        either!(self, kernel => kernel.next_completion())
    }

    /// Whether the kernel keeps completions aside for want of room; the next enter has
    /// it fetch them.
    #[inline]
    pub(super) fn has_overflowed(&self) -> bool {
        either!(self, kernel => kernel.has_overflowed())
    }

    /// Whether a sleep can be kept out of the I/O waiting time (Linux 6.15).
    pub(super) fn no_iowait(&self) -> bool {
        match self {
            Self::Real(queues) => queues.no_iowait,
            #[cfg(test)]
            Self::Simulated(_) => false,
        }
    }

    /// The first of these operations that the kernel does not know.
    pub(super) fn first_unknown(
        &mut self,
        operations: &[(u8, &'static str)],
    ) -> io::Result<Option<&'static str>> {
        match self {
            Self::Real(queues) => {
                let mut probe = Probe::new();
                queues.submitter.register_probe(&mut probe)?;
                let unknown = operations
                    .iter()
                    .find(|(code, _)| !probe.is_supported(*code));
                Ok(unknown.map(|&(_, name)| name))
            }
            #[cfg(test)]
            Self::Simulated(kernel) => kernel.first_unknown(operations),
        }
    }

    /// Saves the kernel a look-up per enter.
    pub(super) fn register_ring(&mut self) -> io::Result<()> {
        match self {
            Self::Real(queues) => queues.submitter.register_ring_fd(),
            #[cfg(test)]
            Self::Simulated(kernel) => kernel.register_ring(),
        }
    }

    pub(super) fn unregister_ring(&mut self) -> io::Result<()> {
        match self {
            Self::Real(queues) => queues.submitter.unregister_ring_fd(),
            #[cfg(test)]
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Makes an empty table of so many descriptors.
    pub(super) fn register_files(&mut self, count: u32) -> io::Result<()> {
        match self {
            Self::Real(queues) => queues.submitter.register_files_sparse(count),
            #[cfg(test)]
            Self::Simulated(kernel) => kernel.register_files(count),
        }
    }

    /// Puts a descriptor into the table, or with -1 empties its place.
    pub(super) fn update_file(&mut self, place: u32, descriptor: RawFd) -> io::Result<()> {
        match self {
            Self::Real(queues) => queues
                .submitter
                .register_files_update(place, &[descriptor])
                .map(drop),
            #[cfg(test)]
            Self::Simulated(kernel) => kernel.update_file(place, descriptor),
        }
    }

    /// Registers the ring through which buffers are provided.
    ///
    /// # Safety
    /// `address` is that of `count` entries, which stay mapped until the kernel is gone.
    pub(super) unsafe fn register_buffers(
        &mut self,
        address: u64,
        count: u16,
        group: u16,
    ) -> io::Result<()> {
        match self {
            // SAFETY: passed on.
            Self::Real(queues) => unsafe {
                queues
                    .submitter
                    .register_buf_ring_with_flags(address, count, group, 0)
            },
            #[cfg(test)]
            // SAFETY: passed on.
            Self::Simulated(kernel) => unsafe { kernel.register_buffers(address, count, group) },
        }
    }
}

/// Every enter runs what the kernel deferred and fetches what it kept aside.
const GET_EVENTS: EnterFlags = EnterFlags::GETEVENTS;

/// The crate's ring in its three parts.
pub(super) struct Queues {
    submitter: Submitter<'static>,
    submission: SubmissionQueue<'static>,
    completion: CompletionQueue<'static>,
    no_iowait: bool,
    /// What the parts borrow from. Declared last, because they write their positions
    /// back when they are dropped.
    _ring: OwnedRing,
}

/// A ring that stays where it is, for its parts to point into.
struct OwnedRing(NonNull<IoUring>);

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queues")
            .field("queued", &self.queued())
            .finish_non_exhaustive()
    }
}

impl Drop for OwnedRing {
    fn drop(&mut self) {
        // SAFETY: leaked by `Queues::new`, freed once, and the parts that pointed into
        // it are gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Queues {
    pub(super) fn new(ring: IoUring) -> Self {
        let no_iowait = ring.params().is_feature_no_iowait();
        let ring = NonNull::from(Box::leak(Box::new(ring)));
        // SAFETY: the box was leaked, so the ring stays where it is until `OwnedRing`
        // frees it, after the parts; nothing else refers to it in the meantime.
        let (submitter, submission, completion) = unsafe { &mut *ring.as_ptr() }.split();
        Self {
            submitter,
            submission,
            completion,
            no_iowait,
            _ring: OwnedRing(ring),
        }
    }

    /// # Safety
    /// As for [`Kernel::push`].
    #[inline]
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: passed on.
        unsafe { self.submission.push(entry) }.is_ok()
    }

    #[inline]
    fn queued(&self) -> usize {
        self.submission.len()
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.submission.is_full()
    }

    fn enter(&mut self, wait: Wait) -> Result<(), Errno> {
        self.submission.sync();
        // The queue has a few hundred places.
        let to_submit = u32::try_from(self.submission.len()).unwrap_or(u32::MAX);
        let result = match wait {
            // SAFETY: no argument is passed, and the numbers are the queue's own.
            Wait::No => unsafe {
                self.submitter
                    .enter::<libc::sigset_t>(to_submit, 0, GET_EVENTS.bits(), None)
            },
            Wait::AtMost(limit) => {
                let mut flags = GET_EVENTS | EnterFlags::EXT_ARG;
                if self.no_iowait {
                    flags |= EnterFlags::NO_IOWAIT;
                }
                let limit = limit.map(Timespec::from);
                let mut arguments = SubmitArgs::new();
                if let Some(limit) = &limit {
                    arguments = arguments.timespec(limit);
                }
                // SAFETY: the argument is the structure that EXT_ARG announces, and
                // it and the time in it are locals that outlive the call.
                unsafe {
                    self.submitter
                        .enter(to_submit, 1, flags.bits(), Some(&arguments))
                }
            }
        };
        self.submission.sync();
        result.map(drop).map_err(|error| Errno::of(&error))
    }

    #[inline]
    fn sync_completions(&mut self) {
        self.completion.sync();
    }

    #[inline]
    fn has_completions(&self) -> bool {
        !self.completion.is_empty()
    }

    #[inline]
    fn next_completion(&mut self) -> Option<Completed> {
        self.completion.next().map(|entry| Completed {
            word: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        })
    }

    #[inline]
    fn has_overflowed(&self) -> bool {
        self.submission.cq_overflow()
    }
}
