//! The few system calls that neither the standard library nor a crate of ours offers.
//!
//! Cast: [`Errno`] is a kernel's refusal as a number; every function here is one
//! system call with its arguments typed and its result checked. Nothing here holds
//! state, decides or retries: that is for the callers.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Why the kernel refused an operation: an `errno` value, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Takes the number out of an error of the standard library; one without a
    /// number becomes `EIO`, which no caller mistakes for something to retry.
    pub fn of(error: &io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// The calling thread's `errno`, to be read directly after a failed call.
    fn last() -> Self {
        Self::of(&io::Error::last_os_error())
    }

    /// Whether the same operation on the same socket may succeed a moment later: it was
    /// interrupted or cancelled, or the kernel had no room, memory or time for it.
    pub fn is_for_the_moment(self) -> bool {
        matches!(
            self.0,
            libc::EAGAIN
                | libc::EINTR
                | libc::ECANCELED
                | libc::ENOBUFS
                | libc::EBUSY
                | libc::ENOMEM
        )
    }

    /// The symbolic name of the values that this crate's messages mention.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            libc::EPERM => "EPERM",
            libc::EINTR => "EINTR",
            libc::EIO => "EIO",
            libc::EBADF => "EBADF",
            libc::EAGAIN => "EAGAIN",
            libc::ENOMEM => "ENOMEM",
            libc::EACCES => "EACCES",
            libc::EBUSY => "EBUSY",
            libc::EINVAL => "EINVAL",
            libc::ENFILE => "ENFILE",
            libc::EMFILE => "EMFILE",
            libc::EPIPE => "EPIPE",
            libc::ENOSYS => "ENOSYS",
            libc::EOPNOTSUPP => "EOPNOTSUPP",
            libc::EADDRINUSE => "EADDRINUSE",
            libc::ENOBUFS => "ENOBUFS",
            libc::ECONNABORTED => "ECONNABORTED",
            libc::ECONNRESET => "ECONNRESET",
            libc::ETIMEDOUT => "ETIMEDOUT",
            libc::ECANCELED => "ECANCELED",
            _ => return None,
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", io::Error::from_raw_os_error(self.0)),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({self})")
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}

/// A number that is negative when the call failed, as most calls answer.
fn checked(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

/// A byte count that is negative when the call failed.
fn checked_count(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::last())
}

// --- waking a sleeping thread ------------------------------------------------------

/// A new event counter. It is non-blocking: a reader drains it without waiting.
pub(crate) fn event_counter() -> Result<OwnedFd, Errno> {
    // SAFETY: takes no pointers; a non-negative result is a new descriptor that
    // nobody else owns.
    unsafe {
        let fd = checked(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Adds one to an event counter, waking who waits for it. A counter that is full
/// already says that it has been rung, so that refusal is none.
pub(crate) fn event_raise(counter: BorrowedFd<'_>) {
    let one = 1_u64;
    // SAFETY: the pointer and length name the eight bytes of a local.
    let written = unsafe { libc::write(counter.as_raw_fd(), (&raw const one).cast(), 8) };
    debug_assert!(
        written == 8 || Errno::last() == Errno(libc::EAGAIN),
        "an open event counter takes every raise"
    );
}

/// Sets an event counter back to zero.
pub(crate) fn event_clear(counter: BorrowedFd<'_>) {
    let mut count = 0_u64;
    // SAFETY: the pointer and length name the eight bytes of a local.
    let read = unsafe { libc::read(counter.as_raw_fd(), (&raw mut count).cast(), 8) };
    debug_assert!(
        read == 8 || Errno::last() == Errno(libc::EAGAIN),
        "an open event counter can be read"
    );
}

// --- sockets -------------------------------------------------------------------------

/// How a TCP connection finds out that its peer is gone without saying so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vigilance {
    /// Silence after which the kernel starts to probe. Whole seconds.
    pub idle: Duration,
    /// Time between two probes. Whole seconds.
    pub interval: Duration,
    /// Time without any sign of life, be it of a probe or of sent bytes, after
    /// which the connection counts as lost.
    pub give_up: Duration,
}

impl Vigilance {
    /// A vanished peer is noticed within 10 s: probes from the fifth second of
    /// silence on, every second, and the verdict at the ninth.
    pub const PROMISED: Self = Self {
        idle: Duration::from_secs(5),
        interval: Duration::from_secs(1),
        give_up: Duration::from_secs(9),
    };
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> Result<(), Errno> {
    // SAFETY: the pointer names a local of the length given with it.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            INT_SIZE,
        )
    })?;
    Ok(())
}

fn option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    let mut length = INT_SIZE;
    // SAFETY: both pointers name locals, and the second says how long the first is.
    checked(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    })?;
    Ok(value)
}

#[allow(clippy::cast_possible_truncation)] // four
const INT_SIZE: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;

fn whole_seconds(time: Duration) -> libc::c_int {
    libc::c_int::try_from(time.as_secs().max(1)).unwrap_or(libc::c_int::MAX)
}

/// Prepares a TCP socket for a shard: non-blocking, nothing held back to be
/// merged (the shard merges a turn's output itself), and a watch on its peer.
pub fn prepare_stream(socket: BorrowedFd<'_>, vigilance: Vigilance) -> Result<(), Errno> {
    set_nonblocking(socket)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_KEEPIDLE,
        whole_seconds(vigilance.idle),
    )?;
    set_option(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_KEEPINTVL,
        whole_seconds(vigilance.interval),
    )?;
    let give_up_ms =
        libc::c_int::try_from(vigilance.give_up.as_millis()).unwrap_or(libc::c_int::MAX);
    set_option(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_USER_TIMEOUT,
        give_up_ms,
    )
}

/// Whether small sends leave at once.
pub fn is_no_delay(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY)? != 0)
}

/// The watch kept over the peer of a TCP socket, or `None` if there is none.
pub fn vigilance(socket: BorrowedFd<'_>) -> Result<Option<Vigilance>, Errno> {
    if option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE)? == 0 {
        return Ok(None);
    }
    let seconds = |name| {
        option(socket, libc::IPPROTO_TCP, name)
            .map(|value| Duration::from_secs(u64::from(value.unsigned_abs())))
    };
    Ok(Some(Vigilance {
        idle: seconds(libc::TCP_KEEPIDLE)?,
        interval: seconds(libc::TCP_KEEPINTVL)?,
        give_up: Duration::from_millis(u64::from(
            option(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT)?.unsigned_abs(),
        )),
    }))
}

/// Makes every call on the descriptor answer `EAGAIN` instead of waiting.
pub(crate) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: both calls take integers only.
    unsafe {
        let flags = checked(libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL))?;
        checked(libc::fcntl(
            descriptor.as_raw_fd(),
            libc::F_SETFL,
            flags | libc::O_NONBLOCK,
        ))?;
    }
    Ok(())
}

/// Ends a direction or both, so that the peer sees the end now and not when the last
/// reference inside the kernel goes. A socket that is not connected any more is
/// what was wanted.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, which: Shutdown) {
    let which = match which {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: takes integers only. Its refusals (not connected) need no answer.
    unsafe { libc::shutdown(socket.as_raw_fd(), which) };
}

/// Receives into `buffer` what has already arrived; zero is the peer's end.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length are those of an exclusive slice.
    checked_count(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    })
}

/// Sends as much of the vectors as the kernel takes now. The vectors must name
/// readable memory, which is why only the rings call this.
///
/// # Safety
/// Every vector's base and length name memory that stays readable for the call.
pub(crate) unsafe fn send_vectors(
    socket: BorrowedFd<'_>,
    vectors: &mut [libc::iovec],
) -> Result<usize, Errno> {
    // SAFETY: a message header of zeros is a valid one without address and control.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    // SAFETY: the header is a local that names `vectors`; the caller vouches for
    // what those name.
    checked_count(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, SEND_FLAGS) })
}

/// Never wait, and report a closed peer as an error and not as a signal.
pub(crate) const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

// --- epoll ---------------------------------------------------------------------------

/// A new, empty set of watched descriptors.
pub(crate) fn epoll_create() -> Result<OwnedFd, Errno> {
    // SAFETY: takes no pointers; a non-negative result is a new descriptor.
    unsafe {
        let fd = checked(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Adds, changes or removes (`events` zero) the watch over one descriptor.
pub(crate) fn epoll_control(
    set: BorrowedFd<'_>,
    operation: libc::c_int,
    descriptor: BorrowedFd<'_>,
    events: u32,
    data: u64,
) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the pointer names a local that the kernel only reads during the call.
    checked(unsafe {
        libc::epoll_ctl(
            set.as_raw_fd(),
            operation,
            descriptor.as_raw_fd(),
            &raw mut event,
        )
    })?;
    Ok(())
}

/// Waits for events, at most `timeout` (`None`: without end; zero: not at all).
/// Rounded up to whole milliseconds, so that a wait never ends before its time.
pub(crate) fn epoll_wait(
    set: BorrowedFd<'_>,
    events: &mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> Result<usize, Errno> {
    let timeout_ms = match timeout {
        None => -1,
        Some(time) => {
            libc::c_int::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
        }
    };
    let room = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: pointer and room are those of an exclusive slice.
    let count = checked(unsafe {
        libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), room, timeout_ms)
    })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

// --- files ---------------------------------------------------------------------------

/// The kind of file system that a file lies on, as `linux/magic.h` numbers them.
pub(crate) fn file_system(file: BorrowedFd<'_>) -> Result<i64, Errno> {
    // SAFETY: a structure of zeros is valid to be overwritten.
    let mut seen: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer names a local.
    checked(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut seen) })?;
    // The type of the field differs between targets.
    #[allow(clippy::useless_conversion)]
    Ok(i64::from(seen.f_type))
}

/// What positions, lengths and addresses of writes past the page cache have to be
/// multiples of; zero if the file takes none. `None` from a kernel that does not say
/// (before 6.1), or of a file system that does not.
pub(crate) fn direct_alignment(file: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: a structure of zeros is valid to be overwritten.
    let mut seen: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty string that ends in zero, and the pointer names a
    // local.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut seen,
        )
    };
    (result == 0 && seen.stx_mask & libc::STATX_DIOALIGN != 0)
        .then(|| seen.stx_dio_offset_align.max(seen.stx_dio_mem_align))
}

/// Has the file system set space aside for so many bytes; the size stays as it is.
pub(crate) fn allocate(file: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    let size = libc::off_t::try_from(size).map_err(|_| Errno(libc::EFBIG))?;
    // SAFETY: takes integers only.
    checked(unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, size) })?;
    Ok(())
}

/// Tells the kernel that nobody will read what it keeps of the file in its cache. A
/// refusal changes nothing but that.
pub(crate) fn forget_cached(file: BorrowedFd<'_>) {
    // SAFETY: takes integers only.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Writes the vectors at a position of a file, as far as the kernel takes them.
///
/// # Safety
/// Every vector's base and length name memory that stays readable for the call.
pub(crate) unsafe fn write_vectors(
    file: BorrowedFd<'_>,
    vectors: &[libc::iovec],
    position: u64,
    flags: libc::c_int,
) -> Result<usize, Errno> {
    let position = libc::off_t::try_from(position).map_err(|_| Errno(libc::EFBIG))?;
    let count = libc::c_int::try_from(vectors.len()).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: pointer and count are those of a slice; the caller vouches for what its
    // vectors name.
    checked_count(unsafe {
        libc::pwritev2(file.as_raw_fd(), vectors.as_ptr(), count, position, flags)
    })
}

/// Has the bytes of a file be on the device.
pub(crate) fn sync_data(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes an integer only.
    checked(unsafe { libc::fdatasync(file.as_raw_fd()) })?;
    Ok(())
}

/// From here on a write of the calling thread beyond the largest size that this process
/// may give a file is refused as any other, and does not end the process by a signal.
pub(crate) fn refuse_large_files_quietly() {
    // SAFETY: a set of zeros is valid to be overwritten, and both calls get pointers to
    // locals. Neither can fail for a signal that exists.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGXFSZ);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// The user that this process acts as.
pub(crate) fn user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

// --- the machine -----------------------------------------------------------------------

/// A limit of this process: what holds now, and how far it may be raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// In force; `u64::MAX` is none.
    pub soft: u64,
    /// The most that `soft` may be set to; `u64::MAX` is none.
    pub hard: u64,
}

fn limit(which: libc::__rlimit_resource_t) -> Limit {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer names a local. The call cannot fail for a known resource;
    // if it did, the zeros say that nothing is allowed.
    unsafe { libc::getrlimit(which, &raw mut limit) };
    Limit {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    }
}

/// How many descriptors this process may have open.
pub fn descriptor_limit() -> Limit {
    limit(libc::RLIMIT_NOFILE)
}

/// How many bytes this process may lock in memory.
pub fn locked_memory_limit() -> Limit {
    limit(libc::RLIMIT_MEMLOCK)
}

/// The processor that runs the calling thread at this instant.
pub fn current_cpu() -> Option<usize> {
    // SAFETY: takes nothing and answers a number.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// The processors that the calling thread may run on, ascending.
pub fn allowed_cpus() -> Result<Vec<usize>, Errno> {
    allowed_cpus_of(0)
}

/// The processors that the thread may run on that the process began with, ascending.
pub fn allowed_cpus_of_process() -> Result<Vec<usize>, Errno> {
    // SAFETY: takes nothing and cannot fail.
    allowed_cpus_of(unsafe { libc::getpid() })
}

fn allowed_cpus_of(thread: libc::pid_t) -> Result<Vec<usize>, Errno> {
    // SAFETY: a set of zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: pointer and size are those of the local set; zero is this thread.
    checked(unsafe { libc::sched_getaffinity(thread, size, &raw mut set) })?;
    let count = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    Ok((0..count)
        // SAFETY: every number is below the size of the set.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect())
}

/// Has the calling thread run on these processors only.
pub fn allow_cpus(cpus: &[usize]) -> Result<(), Errno> {
    // SAFETY: a set of zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let count = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    for &cpu in cpus.iter().filter(|&&cpu| cpu < count) {
        // SAFETY: the number is below the size of the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: pointer and size are those of the local set; zero is this thread.
    checked(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) })?;
    Ok(())
}

/// The calling thread's identifier in the kernel, as tools such as `top -H` show it.
pub fn thread_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// The kernel's release, such as `6.18.44`.
pub fn kernel_release() -> String {
    // SAFETY: a name of zeros is valid to be overwritten.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer names a local.
    if unsafe { libc::uname(&raw mut name) } != 0 {
        return String::from("unknown");
    }
    name.release
        .iter()
        .take_while(|&&letter| letter != 0)
        .map(|&letter| char::from(letter.to_ne_bytes()[0]))
        .collect()
}

/// Nanoseconds of a kernel clock (`CLOCK_MONOTONIC`, `CLOCK_REALTIME`, ...), by way
/// of the page that the kernel maps into every process: no system call.
pub(crate) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer names a local. The call cannot fail for a known clock.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// How long a thread of this process has run on a processor, in this process and in
/// the kernel on its behalf. `thread` is what [`thread_id`] answered on it.
///
/// # Errors
///
/// If there is no such thread.
pub fn thread_cpu_time(thread: i32) -> Result<Duration, Errno> {
    /// From `linux/posix-timers.h`: of one thread, and as the scheduler counts.
    const PER_THREAD: libc::clockid_t = 4;
    const SCHEDULED: libc::clockid_t = 2;
    let clock = !thread << 3 | PER_THREAD | SCHEDULED;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer names a local.
    checked(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    ))
}

/// Raises the limit of descriptors to the most that is allowed, and says what it is now.
pub fn raise_descriptor_limit() -> Limit {
    let most = descriptor_limit().hard;
    let wanted = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: the pointer names a local. A refusal leaves the limit as it was, which is
    // what is answered.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) };
    descriptor_limit()
}

/// Bytes that nobody can guess, from the kernel.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let rest = &mut bytes[filled..];
        // SAFETY: pointer and length are those of an exclusive slice.
        match checked_count(unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) }) {
            Ok(count) => filled += count,
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(bytes)
}

/// Bytes of memory that this machine has.
pub(crate) fn memory_total() -> Result<u64, Errno> {
    let value = |name| {
        // SAFETY: it asks for a number by its name and writes nothing.
        u64::try_from(unsafe { libc::sysconf(name) }).map_err(|_| Errno::last())
    };
    Ok(value(libc::_SC_PHYS_PAGES)?.saturating_mul(value(libc::_SC_PAGESIZE)?))
}

/// Has the kernel put memory behind a range of addresses, so that the first use meets
/// no fault. What is stored there does not change; a range that is not mapped, or a
/// kernel before 5.14, is refused without harm.
pub(crate) fn populate(address: usize, length: usize) -> Result<(), Errno> {
    /// From `linux/mman.h`; the library does not name it on every target.
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    let start = std::ptr::without_provenance_mut::<libc::c_void>(address);
    // SAFETY: populating writes nothing and frees nothing, whatever the range.
    checked(unsafe { libc::madvise(start, length, MADV_POPULATE_WRITE) })?;
    Ok(())
}

/// The size of a memory page, in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: takes an integer and answers one.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// From here on the calling thread, and every thread and process that it starts, gets
/// `errno` from each attempt to set up io_uring, as in a container whose profile does
/// not allow it. There is no way back.
///
/// # Errors
///
/// If the kernel takes no filters.
pub fn forbid_io_uring(errno: Errno) -> Result<(), Errno> {
    let statement = |code: u32, jump_false: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("the codes of filters have 16 bits"),
        jt: 0,
        jf: jump_false,
        k,
    };
    let number = u32::try_from(libc::SYS_io_uring_setup).expect("the numbers of calls are small");
    let answer = u32::try_from(errno.0).unwrap_or_default() & libc::SECCOMP_RET_DATA;
    let mut program = [
        // The number of the system call is the first word of what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        statement(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | answer,
        ),
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("the program is short"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the call takes numbers only.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the filter and its program are locals, copied by the kernel in the call.
    checked(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn a_prepared_stream_sends_at_once_and_watches_its_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!is_no_delay(stream.as_fd()).unwrap());
        assert_eq!(vigilance(stream.as_fd()).unwrap(), None);

        prepare_stream(stream.as_fd(), Vigilance::PROMISED).unwrap();

        assert!(is_no_delay(stream.as_fd()).unwrap());
        assert_eq!(
            vigilance(stream.as_fd()).unwrap(),
            Some(Vigilance::PROMISED)
        );
        let mut byte = [0];
        assert_eq!(
            receive(stream.as_fd(), &mut byte),
            Err(Errno(libc::EAGAIN)),
            "the socket does not wait"
        );
    }

    #[test]
    fn the_promised_watch_ends_within_ten_seconds() {
        let watch = Vigilance::PROMISED;
        assert!(watch.idle + watch.interval < watch.give_up);
        // The verdict falls at the first probe after the time is over.
        assert!(watch.give_up + watch.interval <= Duration::from_secs(10));
    }

    #[test]
    fn a_thread_that_works_has_run_and_one_that_waits_has_not() {
        let own = thread_id();
        let before = thread_cpu_time(own).unwrap();
        let (report, reported) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let waiter = std::thread::spawn(move || {
            report.send(thread_id()).unwrap();
            stopped.recv().ok();
        });
        let waiting = reported.recv().unwrap();
        while thread_cpu_time(own).unwrap() < before + Duration::from_millis(100) {}
        assert!(thread_cpu_time(waiting).unwrap() < Duration::from_millis(50));
        drop(stop);
        waiter.join().unwrap();
        // More than any kernel gives out.
        assert!(thread_cpu_time(1 << 23).is_err());
    }

    #[test]
    fn an_event_counter_stays_raised_until_it_is_cleared() {
        let counter = event_counter().unwrap();
        let set = epoll_create().unwrap();
        let watched = u32::try_from(libc::EPOLLIN).unwrap();
        epoll_control(
            set.as_fd(),
            libc::EPOLL_CTL_ADD,
            counter.as_fd(),
            watched,
            7,
        )
        .unwrap();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
        let mut raised = || epoll_wait(set.as_fd(), &mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(raised(), 0);
        event_raise(counter.as_fd());
        event_raise(counter.as_fd());
        assert_eq!(raised(), 1);
        event_clear(counter.as_fd());
        assert_eq!(raised(), 0);
    }

    #[test]
    fn an_errno_is_shown_by_its_name() {
        assert_eq!(Errno(libc::ENOBUFS).to_string(), "ENOBUFS");
        assert_eq!(Errno::of(&io::Error::other("no number")), Errno(libc::EIO));
    }

    #[test]
    fn the_thread_runs_on_a_processor_it_is_allowed_on() {
        let allowed = allowed_cpus().unwrap();
        assert!(allowed.contains(&current_cpu().unwrap()));
        assert!(kernel_release().contains('.'));
        assert!(page_size().is_power_of_two());
    }
}
