//! The few calls into libc that std does not offer: epoll, and which CPU this
//! thread runs on.
//!
//! Each wrapper is safe, does one call, and returns what the kernel said. No
//! policy lives here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Epoll {
    descriptor: OwnedFd,
}

impl Epoll {
    pub(crate) fn create() -> io::Result<Self> {
        // SAFETY: the call takes no pointer.
        let descriptor = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor and nobody else
        // knows it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor })
    }

    /// Watches a descriptor for readability, level-triggered.
    pub(crate) fn watch_readable(&self, watched: BorrowedFd<'_>) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN.cast_unsigned(),
            u64: 0,
        };
        // SAFETY: both descriptors are open for the length of the call, and
        // `event` is a live, initialised epoll_event that the kernel only reads.
        let result = unsafe {
            libc::epoll_ctl(
                self.descriptor.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                watched.as_raw_fd(),
                &raw mut event,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Asks whether the watched descriptor is ready, without waiting.
    pub(crate) fn is_ready(&self) -> io::Result<bool> {
        self.wait_ms(0)
    }

    /// Sleeps until the watched descriptor is ready; false if the sleep was
    /// interrupted.
    pub(crate) fn sleep_until_ready(&self) -> io::Result<bool> {
        self.wait_ms(-1)
    }

    fn wait_ms(&self, timeout_ms: i32) -> io::Result<bool> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: `event` is writable room for the one event that is asked for.
        let result =
            unsafe { libc::epoll_wait(self.descriptor.as_raw_fd(), &raw mut event, 1, timeout_ms) };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                return Ok(false);
            }
            return Err(error);
        }
        Ok(result > 0)
    }
}

/// The CPU that the calling thread runs on at this moment.
pub(crate) fn current_cpu() -> io::Result<usize> {
    // SAFETY: the call takes no argument.
    let cpu = unsafe { libc::sched_getcpu() };
    usize::try_from(cpu).map_err(|_| io::Error::last_os_error())
}

/// The CPUs that the main thread of this process may run on, ascending. The
/// main thread is asked and not the calling one, which may be pinned.
pub(crate) fn process_affinity() -> io::Result<Vec<usize>> {
    let process = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    // SAFETY: a cpu_set_t is an array of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and its true size is passed.
    let result =
        unsafe { libc::sched_getaffinity(process, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let bits = size_of::<libc::cpu_set_t>() * 8;
    Ok((0..bits)
        // SAFETY: `cpu` is below the number of bits in `set`.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect())
}
