//! Setting up the kernel ring: the best that this kernel knows, or a refusal that says why.
//!
//! The crate's ring is split into its parts once and kept so: a registered ring descriptor
//! is remembered by the submitter, and the queues cache their positions.

use std::io;
use std::ptr::NonNull;

use io_uring::{CompletionQueue, IoUring, Probe, SubmissionQueue, Submitter, opcode};

use super::super::refusal::Cause;
use crate::sys::{self, Errno};

/// Entries that one system call can hand over; more wait for the next.
pub(super) const SUBMISSIONS: u32 = 256;

/// Room for completions. A multishot receive can post one per provided buffer, and
/// everything else at most one per operation; beyond it the kernel keeps them aside.
const COMPLETIONS: u32 = 4096;

/// A set of features to ask for at set-up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) name: &'static str,
    /// Submission without an index array between queue and entries (Linux 6.6).
    no_array: bool,
    /// A flag in shared memory that says when deferred work waits.
    taskrun_flag: bool,
}

/// From the best to the least that the transport builds on.
pub(super) const LADDER: [Step; 3] = [
    Step {
        name: "single issuer, deferred task work with flag, no submission array",
        no_array: true,
        taskrun_flag: true,
    },
    Step {
        name: "single issuer, deferred task work with flag",
        no_array: false,
        taskrun_flag: true,
    },
    Step {
        name: "single issuer, deferred task work",
        no_array: false,
        taskrun_flag: false,
    },
];

/// The kernel ring and its three parts, split once: a registered ring descriptor is
/// remembered by the submitter, and the queues cache their positions.
pub(super) struct Kernel {
    pub(super) submitter: Submitter<'static>,
    pub(super) submission: SubmissionQueue<'static>,
    pub(super) completion: CompletionQueue<'static>,
    /// Whether a sleep can be kept out of the I/O waiting time (Linux 6.15).
    pub(super) no_iowait: bool,
    /// What the parts borrow from. Declared last, because they write their positions
    /// back when they are dropped.
    _ring: OwnedRing,
}

/// A ring that stays where it is, for its parts to point into.
struct OwnedRing(NonNull<IoUring>);

impl Kernel {
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
}

impl Drop for OwnedRing {
    fn drop(&mut self) {
        // SAFETY: leaked by `Kernel::new`, freed once, and the parts that pointed into
        // it are gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("queued", &self.submission.len())
            .finish_non_exhaustive()
    }
}

/// Sets up the kernel ring on the highest step of the ladder that the kernel knows.
pub(super) fn climb_down() -> Result<(usize, IoUring), Cause> {
    for (position, step) in LADDER.iter().enumerate() {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_cqsize(COMPLETIONS)
            .setup_clamp()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun();
        if step.taskrun_flag {
            builder.setup_taskrun_flag();
        }
        if step.no_array {
            builder.setup_no_sqarray();
        }
        match builder.build(SUBMISSIONS) {
            Ok(ring) => return Ok((position, ring)),
            // The kernel does not know a flag of this step.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(refused("io_uring_setup", &error)),
        }
    }
    Err(Cause::TooOld {
        missing: "single issuer with deferred task work (IORING_SETUP_DEFER_TASKRUN)",
    })
}

/// What a refused call of the set-up means. Out of memory with little to lock is the
/// limit on locked memory: kernels charge rings to it.
pub(super) fn refused(call: &'static str, error: &io::Error) -> Cause {
    let errno = Errno::of(error);
    let limit = sys::locked_memory_limit();
    if errno == Errno(libc::ENOMEM) && limit.soft != u64::MAX {
        // The entries of both queues; their headers and the ring of buffers are small
        // beside them.
        let needed = u64::from(SUBMISSIONS) * 64 + u64::from(COMPLETIONS) * 16;
        return Cause::LockedMemory { needed, limit };
    }
    Cause::Call { call, errno }
}

/// Refuses a kernel that lacks an operation, before the first use finds out.
pub(super) fn check_operations(submitter: &Submitter<'_>) -> Result<(), Cause> {
    let mut probe = Probe::new();
    submitter
        .register_probe(&mut probe)
        .map_err(|error| refused("io_uring_register(PROBE)", &error))?;
    let needed = [
        (opcode::RecvMulti::CODE, "receive operation"),
        (opcode::Send::CODE, "send operation"),
        (opcode::SendMsg::CODE, "send-message operation"),
        (opcode::PollAdd::CODE, "poll operation"),
        (opcode::AsyncCancel2::CODE, "cancel operation"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, missing)) => Err(Cause::TooOld { missing }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_goes_down() {
        let wishes = |step: &Step| u8::from(step.no_array) + u8::from(step.taskrun_flag);
        assert!(
            LADDER
                .windows(2)
                .all(|pair| wishes(&pair[0]) > wishes(&pair[1]))
        );
    }
}
