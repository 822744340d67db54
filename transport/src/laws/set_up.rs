//! What becomes of a ring that is refused in part or altogether: laws 14 and 15.

use io_uring::opcode;

use super::support::{TestClient, config};
use super::*;
use crate::ring::io_uring::simulated::Registration;
use crate::ring::{Cause, Ring};
use crate::sys::{self, Errno};
use crate::{Broker, Transport};

fn refusing(registration: Registration, errno: i32) -> Setup {
    Setup {
        refused: Some((registration, errno)),
        ..Setup::default()
    }
}

#[test]
fn law_14_a_registration_that_only_saves_time_may_be_refused() {
    for errno in [libc::ENOMEM, libc::EINVAL, libc::EBUSY] {
        let setup = refusing(Registration::Ring, errno);
        let described = ring(setup, Behaviour::default()).description();
        assert!(
            described.ends_with("its descriptor not registered"),
            "{described}"
        );
        exchange(setup, Behaviour::default());
    }
    let described = ring(Setup::default(), Behaviour::default()).description();
    assert!(!described.contains("not registered"), "{described}");
}

#[test]
fn law_14_a_registration_that_is_needed_refuses_the_ring() {
    let refusal = |registration, errno| {
        IoUringRing::simulated(refusing(registration, errno), SIZE).unwrap_err()
    };
    for (registration, call) in [
        (Registration::Probe, "io_uring_register(PROBE)"),
        (Registration::Files, "io_uring_register(FILES)"),
        (Registration::Buffers, "io_uring_register(PBUF_RING)"),
    ] {
        let cause = refusal(registration, libc::EPERM);
        let errno = Errno(libc::EPERM);
        assert_eq!(cause, Cause::Call { call, errno });
        // Too little memory to lock is told as what it is, where there is a limit.
        let cause = refusal(registration, libc::ENOMEM);
        let is_limited = sys::locked_memory_limit().soft != u64::MAX;
        assert_eq!(matches!(cause, Cause::LockedMemory { .. }), is_limited);
    }
    let unknown = Setup {
        unknown: Some(opcode::RecvMulti::CODE),
        ..Setup::default()
    };
    assert_eq!(
        IoUringRing::simulated(unknown, SIZE).unwrap_err(),
        Cause::TooOld {
            missing: "receive operation"
        }
    );
}

#[test]
fn law_15_where_the_ring_is_refused_epoll_serves() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        std::thread::spawn(move || {
            // The broker's threads inherit it.
            if let Err(errno) = sys::forbid_io_uring(Errno(errno)) {
                eprintln!("SKIPPED: this machine takes no filters: {errno}");
                return;
            }
            assert!(Broker::start(config(Transport::IoUring)).is_err());
            let broker = Broker::start(config(Transport::Auto)).unwrap();
            assert!(broker.setting().shards[0].ring.starts_with("epoll"));
            let mut client = TestClient::connect(broker.address());
            let producer = client.producer("queue:/test/fallback");
            let sent = client.send_all(producer, &vec![vec![1; 100]; 50]);
            assert!(sent.iter().all(|completion| completion.result.is_ok()));
            drop(client);
            broker.stop();
        })
        .join()
        .unwrap();
    }
}
