//! What becomes of accepting: law 13.

use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use super::support::eventually;
use crate::door::{BACK_OFF, DoorControl, DoorStats, Porter, Refusals};

/// A door of its own, whose accepts are refused as the test says.
struct Entrance {
    address: std::net::SocketAddr,
    refusals: Arc<Refusals>,
    stats: Arc<DoorStats>,
    control: DoorControl,
    thread: JoinHandle<()>,
}

impl Entrance {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (_, departed) = mpsc::channel();
        let porter = Porter::new(Some(listener), Vec::new(), departed, 7).unwrap();
        let (refusals, stats, control) = (porter.refusals(), porter.stats(), porter.control());
        Self {
            address,
            refusals,
            stats,
            control,
            thread: std::thread::spawn(move || porter.run().unwrap()),
        }
    }

    fn close(self) {
        self.control.stop();
        self.thread.join().unwrap();
    }
}

#[test]
fn law_13_without_descriptors_accepting_rests_and_resumes() {
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
        let entrance = Entrance::open();
        entrance.refusals.refuse(errno);
        let began = Instant::now();
        let waiting = TcpStream::connect(entrance.address).unwrap();
        eventually("accepting is tried again and again", || {
            entrance.refusals.attempts() >= 4
        });
        let (attempts, rests) = (entrance.refusals.attempts(), entrance.stats.rests());
        assert!(
            rests + 1 >= attempts,
            "{rests} rests in {attempts} attempts"
        );
        assert!(
            began.elapsed() >= BACK_OFF * 3,
            "{attempts} attempts in {:?} are a spin",
            began.elapsed()
        );
        assert_eq!(entrance.stats.accepted(), 0);
        entrance.refusals.relent();
        let freed = Instant::now();
        eventually("who waited is let in", || entrance.stats.accepted() == 1);
        assert!(
            freed.elapsed() < BACK_OFF * 300,
            "within a second, and late on a busy machine"
        );
        drop(waiting);
        entrance.close();
    }
}

#[test]
fn law_13_who_gave_up_while_waiting_holds_nobody_up() {
    for errno in [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::EPROTO,
        libc::EPERM,
        libc::ENETDOWN,
    ] {
        let entrance = Entrance::open();
        entrance.refusals.refuse_some(errno, 3);
        let waiting = TcpStream::connect(entrance.address).unwrap();
        eventually("who waits behind them is let in", || {
            entrance.stats.accepted() == 1
        });
        assert!(entrance.refusals.attempts() >= 4);
        assert_eq!(entrance.stats.rests(), 0, "they are no reason to rest");
        drop(waiting);
        entrance.close();
    }
}

#[test]
fn law_13_what_nobody_foresaw_is_no_reason_to_spin() {
    let entrance = Entrance::open();
    entrance.refusals.refuse(libc::EINVAL);
    let waiting = TcpStream::connect(entrance.address).unwrap();
    eventually("it is tried again", || entrance.refusals.attempts() >= 3);
    assert!(entrance.stats.rests() + 1 >= entrance.refusals.attempts());
    drop(waiting);
    entrance.close();
}
