//! The few calls into the kernel that std does not offer: epoll, and which CPU this
//! thread runs on.
//!
//! Each wrapper is safe, does one call, and returns what the kernel said. No
//! policy lives here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Epoll {
    descriptor: OwnedFd,
}

/// Room for what an epoll instance has to say at once.
pub(crate) struct Ready {
    events: Vec<epoll::Event>,
}

impl Ready {
    /// Room for so many descriptors.
    pub(crate) fn new(descriptors: usize) -> Self {
        let nothing = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        Self {
            events: vec![nothing; descriptors.max(1)],
        }
    }
}

impl Epoll {
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self {
            descriptor: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    /// Watches a descriptor for readability, level-triggered.
    pub(crate) fn watch_readable(&self, watched: impl AsFd, key: usize) -> io::Result<()> {
        let data = EventData::new_u64(key as u64);
        Ok(epoll::add(&self.descriptor, watched, data, EventFlags::IN)?)
    }

    /// The keys of the watched descriptors that are ready, without waiting.
    pub(crate) fn ready<'a>(
        &self,
        ready: &'a mut Ready,
    ) -> io::Result<impl Iterator<Item = usize> + use<'a>> {
        const AT_ONCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = self.wait(&mut ready.events, Some(&AT_ONCE))?;
        let events = ready.events.iter().take(count);
        Ok(events.map(|event| usize::try_from({ event.data }.u64()).unwrap_or(usize::MAX)))
    }

    /// Asks whether the watched descriptor is ready, without waiting.
    pub(crate) fn is_ready(&self, ready: &mut Ready) -> io::Result<bool> {
        Ok(self.ready(ready)?.next().is_some())
    }

    /// Sleeps until the watched descriptor is ready; false if the sleep was
    /// interrupted.
    pub(crate) fn sleep_until_ready(&self, ready: &mut Ready) -> io::Result<bool> {
        Ok(self.wait(&mut ready.events, None)? > 0)
    }

    fn wait(&self, events: &mut [epoll::Event], limit: Option<&Timespec>) -> io::Result<usize> {
        match epoll::wait(&self.descriptor, events, limit) {
            Ok(count) => Ok(count),
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
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
