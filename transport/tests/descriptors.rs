//! What happens when the process has no descriptor left. A file of its own, because a
//! file's tests share one process and its limit.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::time::Instant;

use courser_core::client::Event;
use courser_transport::{Broker, Transport, sys};
use support::{DEADLINE, TestClient, config, eventually};

/// The door's thread, by the name that it has in the kernel's listing.
fn door_thread() -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names = tasks.map(|task| {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        (name, path)
    });
    let (_, path) = names
        .find(|(name, _)| name.trim() == "courser-door")
        .unwrap();
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn without_descriptors_those_inside_go_on_and_those_outside_wait() {
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = Broker::start(config(transport)).unwrap();
        let mut inside = TestClient::connect(broker.address());
        let producer = inside.producer("queue:/test/full");
        let door = door_thread();

        let mut ballast = vec![File::open("/dev/null").unwrap()];
        while let Ok(another) = ballast[0].try_clone() {
            ballast.push(another);
        }
        // One descriptor for the client's end leaves none for the broker's.
        ballast.pop();
        let started = Instant::now();
        let mut outside = TestClient::connect(broker.address());
        eventually("accepting rests, again and again", || {
            broker.door_stats().rests() >= 3
        });
        let rests = u128::from(broker.door_stats().rests());
        assert!(
            rests <= started.elapsed().as_millis() / 100 + 1,
            "{rests} rests are a spin"
        );
        // By now the door has put memory behind the shard's arena, which is work, too.
        let (since, worked) = (Instant::now(), sys::thread_cpu_time(door).unwrap());
        eventually("it rests for half a second more", || {
            broker.door_stats().rests() >= 8
        });
        let worked = sys::thread_cpu_time(door).unwrap() - worked;
        assert!(
            worked.as_secs_f64() < 0.05 * since.elapsed().as_secs_f64(),
            "{worked:?} of work in {:?} are a spin",
            since.elapsed()
        );
        assert_eq!(broker.door_stats().accepted(), 1);
        let sent = inside.send_all(producer, &vec![vec![1; 100]; 50]);
        assert!(sent.iter().all(|completion| completion.result.is_ok()));

        drop(ballast);
        let freed = Instant::now();
        outside.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
        assert!(
            freed.elapsed() < DEADLINE,
            "accepting resumes within a second, and late on a busy machine"
        );
        drop((inside, outside));
        broker.stop();
    }
}
