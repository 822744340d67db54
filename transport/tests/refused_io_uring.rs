//! Where io_uring is forbidden or starved, one message names the cause and the fix,
//! and epoll works.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::process::Command;
use std::time::Duration;

use courser_transport::affinity::Cores;
use courser_transport::ring::epoll::EpollRing;
use courser_transport::ring::io_uring::IoUringRing;
use courser_transport::ring::{Cause, Completion, Received, Ring, RingSize, Slot, Wait};
use courser_transport::sys::{Errno, forbid_io_uring};
use courser_transport::{Broker, BrokerConfig, Transport};

const SIZE: RingSize = RingSize {
    slots: 8,
    buffers: 4,
    buffer_size: 4096,
};

fn epoll_works() {
    let mut ring = EpollRing::new(SIZE).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    theirs
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let (ours, _) = listener.accept().unwrap();
    let slot = Slot {
        index: 0,
        generation: 0,
    };
    ring.attach(slot, ours.into()).unwrap();
    ring.arm_receive(slot);
    theirs.write_all(b"ping").unwrap();
    ring.turn(Wait::AtMost(Some(Duration::from_secs(60))))
        .unwrap();
    let Some(Completion::Received {
        received: Received::Bytes(buffer),
        ..
    }) = ring.next()
    else {
        panic!("the bytes arrive");
    };
    assert_eq!(ring.bytes(&buffer), b"ping");
    ring.give_back(buffer);
    // SAFETY: the bytes are static.
    unsafe { ring.send(slot, &[b"pong"]) };
    let mut answer = [0; 4];
    theirs.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn under_a_filter_the_message_names_cause_and_fix_and_epoll_works() {
    std::thread::spawn(|| {
        forbid_io_uring(Errno(libc::EPERM)).unwrap();
        let refused = IoUringRing::new(SIZE).expect_err("the filter forbids it");
        assert_eq!(
            refused.cause,
            Cause::Call {
                call: "io_uring_setup",
                errno: Errno(libc::EPERM)
            }
        );
        let message = refused.to_string();
        assert!(
            message.starts_with("io_uring is not available: io_uring_setup → EPERM\n"),
            "{message}"
        );
        assert!(message.contains("seccomp filter active (Seccomp: 2)"), "{message}");
        assert!(
            message.contains(
                "fix    allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile"
            ),
            "{message}"
        );
        assert!(message.contains("or     transport = \"epoll\""), "{message}");
        assert_eq!(refused.code(), "C1001");
        epoll_works();
    })
    .join()
    .unwrap();
}

#[test]
fn a_broker_under_a_filter_falls_back_or_refuses_as_it_was_told() {
    std::thread::spawn(|| {
        // The broker's threads inherit the filter.
        forbid_io_uring(Errno(libc::EPERM)).unwrap();
        let config = |transport| BrokerConfig {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            transport,
            memory: 128 << 20,
            ..BrokerConfig::default()
        };
        let refused = Broker::start(config(Transport::IoUring)).unwrap_err();
        assert_eq!(refused.code(), "C1001");
        assert!(refused.to_string().contains("io_uring_setup → EPERM"));
        // However many say so at the same time.
        for _ in 0..20 {
            let refused = Broker::start(BrokerConfig {
                shards: NonZeroU16::new(3),
                cores: Cores::Unpinned,
                memory: 256 << 20,
                ..config(Transport::IoUring)
            });
            assert_eq!(refused.unwrap_err().code(), "C1001");
        }

        let broker = Broker::start(config(Transport::Auto)).unwrap();
        assert!(broker.setting().to_string().contains("epoll"));
        let warnings = broker.setting().warnings();
        let [(code, message)] = &warnings[..] else {
            panic!("one warning: {warnings:?}");
        };
        assert_eq!(*code, "C1001");
        assert!(message.contains("io_uring_setup → EPERM"), "{message}");
        assert!(message.ends_with("now    using epoll"), "{message}");
        assert!(TcpStream::connect(broker.address()).is_ok());
        broker.stop();
    })
    .join()
    .unwrap();
}

#[test]
fn a_filter_that_pretends_an_old_kernel_is_seen_through() {
    std::thread::spawn(|| {
        forbid_io_uring(Errno(libc::ENOSYS)).unwrap();
        let refused = IoUringRing::new(SIZE).expect_err("the filter forbids it");
        let message = refused.to_string();
        assert!(message.starts_with("io_uring is not available: io_uring_setup → ENOSYS\n"));
        assert!(message.contains("seccomp profile"), "{message}");
    })
    .join()
    .unwrap();
}

#[test]
fn with_little_locked_memory_the_message_names_the_limit() {
    // The limit is the whole process's, so it is set in a process of its own.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("child_with_little_locked_memory")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.contains("1 passed"), "{said}{complained}");
    if complained.contains("SKIPPED") {
        eprintln!("{complained}");
    }
}

#[test]
#[ignore = "run by with_little_locked_memory_the_message_names_the_limit in a process of its own"]
fn child_with_little_locked_memory() {
    give_up_locking_memory();
    match IoUringRing::new(SIZE) {
        Ok(_) => eprintln!("SKIPPED: this kernel does not charge rings to RLIMIT_MEMLOCK"),
        Err(refused) if matches!(refused.cause, Cause::Call { .. }) => {
            eprintln!("SKIPPED: {refused}");
        }
        Err(refused) => {
            assert_eq!(refused.code(), "C1002");
            let message = refused.to_string();
            assert!(message.starts_with("cannot lock "), "{message}");
            assert!(
                message.contains("RLIMIT_MEMLOCK soft=4 KiB hard=4 KiB"),
                "{message}"
            );
            assert!(message.contains("fix    LimitMEMLOCK=64M"), "{message}");
        }
    }
    epoll_works();
}

/// Drops the capability that lifts the limit, and the limit to one page.
fn give_up_locking_memory() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // Effective, permitted and inheritable capabilities, in two halves: none.
    let none = [0_u32; 6];
    let limit = libc::rlimit {
        rlim_cur: 4096,
        rlim_max: 4096,
    };
    // SAFETY: all three are locals laid out as the kernel reads them.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert_eq!(
            libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()),
            0
        );
    }
}
