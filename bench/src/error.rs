//! What can go wrong while measuring, as facts.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::floor::frame::FrameError;
use crate::pin::CpuSet;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A CPU was asked for that this process may not run on.
    #[error("cpu {cpu} is not in this process's cpuset ({allowed})")]
    CpuNotAllowed {
        /// The CPU asked for.
        cpu: usize,
        /// The CPUs that this process may use.
        allowed: CpuSet,
    },

    /// Client and broker need a core each.
    #[error(
        "a floor needs two cpus and this process may use only {allowed}; \
         widen its cpuset or run it on a machine with two cores"
    )]
    TooFewCpus {
        /// The CPUs that this process may use.
        allowed: CpuSet,
    },

    /// Both ends of a measurement were put on one CPU.
    #[error("client and broker are both on cpu {cpu}; each needs a cpu of its own")]
    SameCpu {
        /// The CPU named twice.
        cpu: usize,
    },

    /// The kernel would not pin a thread although the CPU is allowed.
    #[error("the kernel refused to pin a thread to cpu {cpu}")]
    PinRefused {
        /// The CPU asked for.
        cpu: usize,
    },

    /// The thread was pinned and yet runs elsewhere.
    #[error("a thread pinned to cpu {wanted} runs on cpu {actual}")]
    PinIgnored {
        /// The CPU asked for.
        wanted: usize,
        /// The CPU it was found on.
        actual: usize,
    },

    /// A socket call failed.
    #[error("cannot {doing}")]
    Socket {
        /// What was tried, as a verb and its object.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// The peer closed the connection in the middle of a measurement.
    #[error("{address} closed the connection after {round_trips} round trips of this slice")]
    ConnectionClosed {
        /// The peer.
        address: SocketAddr,
        /// How far the slice had come.
        round_trips: u64,
    },

    /// The peer owes an answer and does not give it.
    #[error("{address} has not answered for {waited:?}")]
    NoReply {
        /// The peer.
        address: SocketAddr,
        /// How long it was waited for.
        waited: Duration,
    },

    /// The bytes on a socket are not frames.
    #[error("the peer does not speak in frames")]
    Frame(#[from] FrameError),

    /// A step of setting up or driving io_uring failed.
    #[error("io_uring: cannot {step}")]
    IoUring {
        /// The step, as a verb and its object.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// An epoll call failed.
    #[error("epoll: cannot {step}")]
    Epoll {
        /// The step, as a verb and its object.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// A thread of the measurement could not be started.
    #[error("cannot start the thread {name}")]
    Thread {
        /// Its name.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// A thread of the measurement panicked.
    #[error("the thread {name} panicked")]
    Panicked {
        /// Its name.
        name: String,
    },

    /// A running server did not come to rest when told to.
    #[error("the thread {name} did not pause within {waited:?}")]
    DidNotPause {
        /// Its name.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },

    /// The broker owes an outcome or a message and does not give it.
    #[error("the broker has owed an outcome or a message for {waited:?}")]
    NoAnswer {
        /// How long it was waited for.
        waited: Duration,
    },

    /// The embedded broker did not start.
    #[error("the broker does not start")]
    Start(#[from] courser_transport::StartError),

    /// The broker cannot be put on its core.
    #[error("the broker cannot be put on its core")]
    Placement(#[from] courser_transport::affinity::AffinityError),

    /// The client library did not do what it was asked to.
    #[error("cannot {doing}")]
    Client {
        /// What was tried, as a verb and its object.
        doing: &'static str,
        /// The library's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// An option asks for something that cannot be measured.
    #[error("{option}: {problem}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it and what to do.
        problem: String,
    },

    /// More connections than this process may have files open.
    #[error(
        "this takes {needed} open files and this process may have {allowed}; raise its limit \
         (ulimit -n {needed}) or ask for fewer connections"
    )]
    Descriptors {
        /// How many it takes, those that are open included.
        needed: u64,
        /// The limit that it runs under.
        allowed: u64,
    },

    /// A file system has no writes past the page cache.
    #[error("the file system of {} takes no writes past the page cache", path.display())]
    NoDirectWrites {
        /// The file.
        path: PathBuf,
    },

    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// The kernel does not say how long a thread has run.
    #[error("the kernel does not account for single threads (/proc/self/task/*/schedstat)")]
    NoThreadTime,

    /// A histogram log could not be written or read.
    #[error("the histogram log: {problem}")]
    HistogramLog {
        /// What is wrong with it.
        problem: String,
    },

    /// A report could not be turned into JSON.
    #[error("cannot write the report as JSON")]
    Json(#[from] serde_json::Error),
}

impl BenchError {
    /// Wraps a socket call's error with what was tried.
    pub(crate) fn socket(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Socket { doing, source }
    }

    /// Wraps a file's error with what was tried.
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }

    /// Wraps what the client library said with what was tried.
    #[cold]
    pub(crate) fn client(
        doing: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Client {
            doing,
            source: Box::new(source),
        }
    }

    /// True if the machine does not offer what was asked for (io_uring switched
    /// off, filtered, or too old; direct writes on a file system without), so that leaving it out is honest as long as
    /// it is said.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::IoUring { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL | libc::ENOMEM)
            ),
            Self::NoDirectWrites { .. } => true,
            _ => false,
        }
    }
}
