//! Setting up the kernel ring: the best that this kernel knows, or a refusal that says why.

use std::io;

use io_uring::{IoUring, opcode, squeue};

use super::super::refusal::Cause;
use super::super::{RingSize, Slot, WRITES_MAX};
use super::kernel::Kernel;
use crate::planted::{self, Fault};
use crate::sys::{self, Errno};

/// Entries that one system call can hand over; more wait for the next.
pub(super) const SUBMISSIONS: u32 = 256;

/// Room for completions where the kernel does not lend us more memory than that.
const COMPLETIONS_MIN: u32 = 4096;

/// The most that a kernel makes room for.
const COMPLETIONS_MAX: u32 = 65_536;

/// Operations that a slot can have in flight at a time: a receive, a cancellation, and a
/// send or a wait for room.
const OPERATIONS_PER_SLOT: u32 = 3;

/// Operations of the ring's own: the watch over the doorbell, and cancellations of
/// multishots that go on directly, a few because they may be late.
const OPERATIONS_OF_ITS_OWN: u32 = 64;

/// The operations that this ring submits, all of them. None has a second, later
/// notification, none is linked to another, none names a registered buffer: what those
/// need is nowhere in this folder. A write is durable by a flag of its own: a flush would
/// be an operation that waits in a thread of the kernel's, and a link between the two one
/// that a short write breaks.
pub(crate) const OPERATIONS: [(u8, &str); 7] = [
    (opcode::RecvMulti::CODE, "receive operation"),
    (opcode::Send::CODE, "send operation"),
    (opcode::SendMsg::CODE, "send-message operation"),
    (opcode::PollAdd::CODE, "poll operation"),
    (opcode::AsyncCancel2::CODE, "cancel operation"),
    (opcode::Write::CODE, "write operation"),
    (opcode::Writev::CODE, "vectored write operation"),
];

/// Whether an entry is one of [`OPERATIONS`].
pub(super) fn is_listed(entry: &squeue::Entry) -> bool {
    OPERATIONS
        .iter()
        .any(|(code, _)| u32::from(*code) == entry.get_opcode())
}

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

/// Room for the completion of every operation that can be in flight at once, so that
/// the kernel never has to keep one aside. A multishot receive completes once per
/// buffer that it was lent, and once when it ends.
pub(crate) fn completions_for(size: RingSize) -> u32 {
    if planted::is(Fault::CompletionQueueTooSmall) {
        return COMPLETIONS_MIN;
    }
    size.slots
        .min(Slot::INDEX_LIMIT)
        .saturating_mul(OPERATIONS_PER_SLOT)
        .saturating_add(u32::from(size.buffers))
        .saturating_add(OPERATIONS_OF_ITS_OWN)
        .saturating_add(u32::try_from(WRITES_MAX).unwrap_or(u32::MAX))
        .clamp(COMPLETIONS_MIN, COMPLETIONS_MAX)
        .next_power_of_two()
}

/// What was set up, and how.
#[derive(Debug)]
pub(super) struct Foothold<T> {
    pub(super) step: usize,
    /// Room for completions.
    pub(super) completions: u32,
    pub(super) ring: T,
}

/// Sets up the kernel ring on the highest step of the ladder that the kernel knows.
/// Where it may not lock memory for all the completions, they get as little as will do.
pub(super) fn climb_down<T>(
    completions: u32,
    mut set_up: impl FnMut(&Step, u32) -> io::Result<T>,
) -> Result<Foothold<T>, Cause> {
    for (position, step) in LADDER.iter().enumerate() {
        let mut room = completions;
        let mut result = set_up(step, room);
        let short = |error: &io::Error| error.raw_os_error() == Some(libc::ENOMEM);
        if room > COMPLETIONS_MIN && result.as_ref().is_err_and(short) {
            room = COMPLETIONS_MIN;
            result = set_up(step, room);
        }
        match result {
            Ok(ring) => {
                return Ok(Foothold {
                    step: position,
                    completions: room,
                    ring,
                });
            }
            // The kernel does not know a flag of this step.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(refused("io_uring_setup", &error)),
        }
    }
    Err(Cause::TooOld {
        missing: "single issuer with deferred task work (IORING_SETUP_DEFER_TASKRUN)",
    })
}

/// One attempt at one step.
pub(super) fn set_up(step: &Step, completions: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_cqsize(completions)
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
    builder.build(SUBMISSIONS)
}

/// An attempt whose kernel refuses every operation that is not listed, every flag beyond
/// those of a registered descriptor and a provided buffer, and every registration that
/// the ring does not make.
#[cfg(test)]
pub(super) fn set_up_restricted(completions: u32) -> io::Result<IoUring> {
    use io_uring::register::Restriction;

    /// From `linux/io_uring.h`: the probe, the table of descriptors and its changes,
    /// the ring's own descriptor and the ring of buffers.
    const REGISTRATIONS: [u8; 6] = [6, 8, 13, 20, 21, 22];
    const FIXED_FILE: u8 = 1;
    const BUFFER_SELECT: u8 = 1 << 5;

    let ring = IoUring::builder()
        .dontfork()
        .setup_cqsize(completions)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_r_disabled()
        .build(SUBMISSIONS)?;
    let mut restrictions: Vec<Restriction> = OPERATIONS
        .iter()
        .map(|(code, _)| Restriction::sqe_op(*code))
        .chain(REGISTRATIONS.map(Restriction::register_op))
        .chain([Restriction::sqe_flags_allowed(FIXED_FILE | BUFFER_SELECT)])
        .collect();
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

/// What a refused call of the set-up means. Out of memory with little to lock is the
/// limit on locked memory: kernels charge rings to it.
pub(super) fn refused(call: &'static str, error: &io::Error) -> Cause {
    let errno = Errno::of(error);
    let limit = sys::locked_memory_limit();
    if errno == Errno(libc::ENOMEM) && limit.soft != u64::MAX {
        // The entries of both queues; their headers and the ring of buffers are small
        // beside them.
        let needed = u64::from(SUBMISSIONS) * 64 + u64::from(COMPLETIONS_MIN) * 16;
        return Cause::LockedMemory { needed, limit };
    }
    Cause::Call { call, errno }
}

/// Refuses a kernel that lacks an operation, before the first use finds out.
pub(super) fn check_operations(kernel: &mut Kernel) -> Result<(), Cause> {
    match kernel.first_unknown(&OPERATIONS) {
        Ok(None) => Ok(()),
        Ok(Some(missing)) => Err(Cause::TooOld { missing }),
        Err(error) => Err(refused("io_uring_register(PROBE)", &error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use courser_core::limits;

    fn answers(script: &[i32]) -> impl FnMut(&Step, u32) -> io::Result<u32> {
        let mut script = script.iter().copied();
        move |_, completions| match script.next() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(completions),
        }
    }

    #[test]
    fn the_ladder_goes_down() {
        let wishes = |step: &Step| u8::from(step.no_array) + u8::from(step.taskrun_flag);
        assert!(
            LADDER
                .windows(2)
                .all(|pair| wishes(&pair[0]) > wishes(&pair[1]))
        );
    }

    #[test]
    fn a_kernel_that_knows_less_is_met_on_a_lower_step() {
        for unknown in 0..LADDER.len() {
            let foothold = climb_down(8192, answers(&vec![libc::EINVAL; unknown])).unwrap();
            assert_eq!((foothold.step, foothold.completions), (unknown, 8192));
        }
        let refused = climb_down(8192, answers(&[libc::EINVAL; 3])).unwrap_err();
        assert!(matches!(refused, Cause::TooOld { .. }), "{refused:?}");
        let refused = climb_down(8192, answers(&[libc::EPERM])).unwrap_err();
        assert!(matches!(
            refused,
            Cause::Call {
                call: "io_uring_setup",
                errno: Errno(libc::EPERM)
            }
        ));
    }

    #[test]
    fn where_little_memory_may_be_locked_the_completions_get_less() {
        let foothold = climb_down(32_768, answers(&[libc::ENOMEM])).unwrap();
        assert_eq!(foothold.completions, COMPLETIONS_MIN);
        assert_eq!(foothold.ring, COMPLETIONS_MIN);
        // Not even that: it is the limit that is named, if there is one.
        let refused = climb_down(32_768, answers(&[libc::ENOMEM; 2])).unwrap_err();
        let is_limited = sys::locked_memory_limit().soft != u64::MAX;
        assert_eq!(matches!(refused, Cause::LockedMemory { .. }), is_limited);
    }

    #[test]
    fn room_for_completions_is_a_power_of_two_that_kernels_allow() {
        for slots in [0, 1, 1_000, limits::LINKS_MAX, u32::MAX] {
            let size = RingSize {
                slots,
                ..RingSize::default()
            };
            let room = completions_for(size);
            assert!(room.is_power_of_two());
            assert!((COMPLETIONS_MIN..=COMPLETIONS_MAX).contains(&room));
        }
    }
}
