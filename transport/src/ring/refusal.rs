//! Why io_uring cannot be used here, in one message that says what to do.
//!
//! Cast: a [`Cause`] is what the kernel answered, [`Seen`] the circumstances that
//! explain it, [`IoUringRefused`] both, and its `Display` the whole message:
//!
//! ```text
//! io_uring is not available: io_uring_setup → EPERM
//!   seen   kernel 6.18.44, kernel.io_uring_disabled=0, seccomp filter active (Seccomp: 2), container=docker
//!   fix    allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile ...
//!   or     transport = "epoll"   (works everywhere; more system calls per message)
//! ```

use std::fmt;
use std::fs;
use std::path::Path;

use crate::sys::{self, Errno, Limit};

/// io_uring was asked for and cannot be used, with the circumstances.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct IoUringRefused {
    /// What the kernel answered.
    pub cause: Cause,
    /// What explains it.
    pub seen: Seen,
}

/// What the kernel answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A system call of the set-up was refused.
    Call {
        /// Which one.
        call: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// The kernel has io_uring, but not all that the transport builds on.
    TooOld {
        /// The first feature that is missing.
        missing: &'static str,
    },
    /// The ring's memory may not be locked.
    LockedMemory {
        /// Bytes that one ring needs.
        needed: u64,
        /// The limit in force.
        limit: Limit,
    },
}

/// The circumstances in which io_uring was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The kernel's release.
    pub kernel: String,
    /// `kernel.io_uring_disabled`: 0 free, 1 for a group only, 2 for nobody.
    /// `None` before Linux 6.6, which cannot disable it.
    pub disabled: Option<u8>,
    /// The `Seccomp:` mode of the calling thread: 0 none, 1 strict, 2 filter.
    pub seccomp: Option<u8>,
    /// Which container runtime, if one is recognised.
    pub container: Option<String>,
}

impl IoUringRefused {
    /// A refusal, with the circumstances of this process as they are now.
    pub(super) fn observe(cause: Cause) -> Self {
        Self {
            cause,
            seen: Seen::observe(),
        }
    }

    /// The code under which the documentation explains it.
    pub fn code(&self) -> &'static str {
        match self.cause {
            Cause::Call { .. } | Cause::TooOld { .. } => "C1001",
            Cause::LockedMemory { .. } => "C1002",
        }
    }

    fn fix(&self) -> &'static str {
        match self.cause {
            Cause::TooOld { .. } => "run Linux 6.1 or newer",
            Cause::LockedMemory { .. } => {
                "LimitMEMLOCK=64M in the unit · ulimit -l 65536 · or shards.cores=\"1\""
            }
            Cause::Call { .. } if self.seen.disabled == Some(2) => {
                "sysctl kernel.io_uring_disabled=0"
            }
            Cause::Call { .. } if self.seen.disabled == Some(1) => {
                "sysctl kernel.io_uring_disabled=0, or run as a member of kernel.io_uring_group"
            }
            Cause::Call { .. } if self.seen.seccomp.is_some_and(|mode| mode != 0) => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile \
                 (docker run --security-opt seccomp=PROFILE.json · SystemCallFilter=@aio in the unit)"
            }
            Cause::Call { errno, .. } if errno == Errno(libc::ENOSYS) => {
                "run Linux 6.1 or newer, built with CONFIG_IO_URING"
            }
            Cause::Call { errno, .. }
                if errno == Errno(libc::EMFILE) || errno == Errno(libc::ENFILE) =>
            {
                "ulimit -n 65536 · LimitNOFILE=65536 in the unit"
            }
            Cause::Call { .. } => "run Linux 6.1 or newer without a filter on io_uring",
        }
    }
}

impl fmt::Display for IoUringRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Call { call, errno } => {
                writeln!(f, "io_uring is not available: {call} → {errno}")?;
            }
            Cause::TooOld { missing } => {
                writeln!(f, "io_uring is not available: this kernel has no {missing}")?
            }
            Cause::LockedMemory { needed, limit } => writeln!(
                f,
                "cannot lock {} KiB for a ring: RLIMIT_MEMLOCK soft={} hard={}",
                needed.div_ceil(1024),
                Bytes(limit.soft),
                Bytes(limit.hard)
            )?,
        }
        writeln!(f, "  seen   {}", self.seen)?;
        writeln!(f, "  fix    {}", self.fix())?;
        write!(
            f,
            "  or     transport = \"epoll\"   (works everywhere; more system calls per message)"
        )
    }
}

impl Seen {
    fn observe() -> Self {
        let number_in = |path: &str| {
            fs::read_to_string(path)
                .ok()
                .and_then(|text| text.trim().parse().ok())
        };
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self {
            kernel: sys::kernel_release(),
            disabled: number_in("/proc/sys/kernel/io_uring_disabled"),
            seccomp: seccomp_mode(&status),
            container: container(),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        if let Some(disabled) = self.disabled {
            write!(f, ", kernel.io_uring_disabled={disabled}")?;
        }
        match self.seccomp {
            Some(0) => f.write_str(", no seccomp filter")?,
            Some(mode) => write!(f, ", seccomp filter active (Seccomp: {mode})")?,
            None => {}
        }
        if let Some(container) = &self.container {
            write!(f, ", container={container}")?;
        }
        Ok(())
    }
}

/// The mode in the `Seccomp:` line of `/proc/thread-self/status`.
fn seccomp_mode(status: &str) -> Option<u8> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))
        .and_then(|mode| mode.trim().parse().ok())
}

/// The container runtime, by the file that each leaves in its containers.
fn container() -> Option<String> {
    if Path::new("/.dockerenv").exists() {
        return Some(String::from("docker"));
    }
    if Path::new("/run/.containerenv").exists() {
        return Some(String::from("podman"));
    }
    fs::read_to_string("/run/systemd/container")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
}

/// A limit in bytes as people write it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1024 * 1024;
        match self.0 {
            u64::MAX => f.write_str("unlimited"),
            bytes if bytes >= MIB && bytes.is_multiple_of(MIB) => write!(f, "{} MiB", bytes / MIB),
            bytes => write!(f, "{} KiB", bytes / 1024),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn seen(disabled: Option<u8>, seccomp: Option<u8>) -> Seen {
        Seen {
            kernel: String::from("6.18.44"),
            disabled,
            seccomp,
            container: None,
        }
    }

    fn call(errno: i32) -> Cause {
        Cause::Call {
            call: "io_uring_setup",
            errno: Errno(errno),
        }
    }

    #[test]
    fn a_filtered_container_is_told_what_was_seen_and_what_to_allow() {
        let refused = IoUringRefused {
            cause: call(libc::EPERM),
            seen: Seen {
                container: Some(String::from("docker")),
                ..seen(Some(0), Some(2))
            },
        };
        let message = refused.to_string();
        let lines: Vec<&str> = message.lines().collect();
        assert_eq!(refused.code(), "C1001");
        assert_eq!(
            lines[0],
            "io_uring is not available: io_uring_setup → EPERM"
        );
        assert_eq!(
            lines[1],
            "  seen   kernel 6.18.44, kernel.io_uring_disabled=0, \
             seccomp filter active (Seccomp: 2), container=docker"
        );
        assert!(lines[2].starts_with("  fix    allow io_uring_setup"));
        assert!(lines[3].starts_with("  or     transport = \"epoll\""));
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_system_wide_switch_is_named_before_a_filter() {
        let off = IoUringRefused {
            cause: call(libc::EPERM),
            seen: seen(Some(2), Some(2)),
        };
        assert!(
            off.to_string()
                .contains("fix    sysctl kernel.io_uring_disabled=0\n")
        );
        let group = IoUringRefused {
            cause: call(libc::EPERM),
            seen: seen(Some(1), Some(0)),
        };
        assert!(group.to_string().contains("kernel.io_uring_group"));
        assert!(group.to_string().contains("no seccomp filter"));
    }

    #[test]
    fn a_kernel_without_it_is_told_which_one_has_it() {
        let absent = IoUringRefused {
            cause: call(libc::ENOSYS),
            seen: seen(None, Some(0)),
        };
        assert!(absent.to_string().contains("CONFIG_IO_URING"));
        let old = IoUringRefused {
            cause: Cause::TooOld {
                missing: "multishot receive",
            },
            seen: seen(None, None),
        };
        assert!(old.to_string().contains("no multishot receive"));
        assert!(old.to_string().contains("Linux 6.1 or newer"));
    }

    #[test]
    fn a_memory_lock_limit_is_shown_with_what_was_needed() {
        let refused = IoUringRefused {
            cause: Cause::LockedMemory {
                needed: 100 * 1024,
                limit: Limit {
                    soft: 64 * 1024,
                    hard: 8 * 1024 * 1024,
                },
            },
            seen: seen(Some(0), Some(0)),
        };
        let message = refused.to_string();
        assert_eq!(refused.code(), "C1002");
        assert!(message.starts_with(
            "cannot lock 100 KiB for a ring: RLIMIT_MEMLOCK soft=64 KiB hard=8 MiB\n"
        ));
        assert!(message.contains("LimitMEMLOCK=64M"));
    }

    #[test]
    fn the_seccomp_mode_is_read_from_its_line() {
        assert_eq!(
            seccomp_mode("Threads:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"),
            Some(2)
        );
        assert_eq!(seccomp_mode("Threads:\t1\n"), None);
        assert!(Seen::observe().seccomp.is_some());
    }
}
