//! A broker whose disk is full: what has to be flushed is refused and says why, what is
//! settled is still written down, nothing that was stored is lost, and it goes on by itself
//! once there is room.
//!
//! The disk is a file system of a few megabytes in a process of its own, where a user may
//! make one.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use std::env;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use courser::{Cause, Client, Durability, Received, SendError};
use home::Home;
use support::{DEADLINE, Directory};

/// Where a test finds its file system.
const SMALL: &str = "COURSER_SMALL_FILE_SYSTEM";
const QUEUE: &str = "queue:/kept/work";
/// Makes room for the first file of a journal and for no other.
const MIBS: u32 = 40;
const BODY: [u8; 8 << 10] = [7; 8 << 10];

/// Runs an ignored test in a process that has a small file system to itself. Says so and
/// does nothing where a user may not make one.
fn alone_on_a_small_file_system(test: &str) {
    let scratch = Directory::new();
    let small = scratch.file("small");
    std::fs::create_dir(&small).unwrap();
    let mount = format!(
        "mount -t tmpfs -o size={MIBS}m,mode=700 none \"${SMALL}\" || exit 77; exec \"$0\" \"$@\""
    );
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", &mount])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(SMALL, small)
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no unshare here");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    if !said.contains("running 1 test") {
        eprintln!("SKIPPED: no file system of its own for a test: {why}");
        return;
    }
    assert!(output.status.success(), "{}: {said}{why}", output.status);
    assert!(said.contains("1 passed"), "{said}");
    println!("{said}");
}

#[test]
fn a_full_disk_refuses_what_is_to_be_flushed_and_nothing_else_until_there_is_room() {
    alone_on_a_small_file_system("full");
}

#[test]
#[ignore = "run by a test in a process with a file system of its own"]
fn full() {
    let small = env::var(SMALL).unwrap();
    let home = Home::at(Directory::new(), format!("{small}/data"));
    let broker = home.start(1, "auto");
    let client = Client::options().timeout(DEADLINE);
    let client = client.connect(home.address.as_str()).unwrap();
    // Longer than anything here takes: what fails does not fail for its time.
    let producer = client.producer(QUEUE).send_timeout(DEADLINE);
    let producer = producer.create().unwrap();
    let mut stored = 0;
    let (begun, failed) = loop {
        let begun = Instant::now();
        match producer.send(&BODY[..]) {
            Ok(receipt) => {
                assert_eq!(receipt.position.offset.0, stored);
                assert_eq!(receipt.durability, Durability::Flushed);
                stored += 1;
            }
            Err(failed) => break (begun, failed),
        }
        assert!(
            stored < 10_000,
            "there is no end to a file system of {MIBS} MiB"
        );
    };
    let refused_after = begun.elapsed();
    let cause = Cause::StoreFull;
    assert_eq!(failed, SendError::NotStored { cause });
    assert!(failed.to_string().contains("no room is left"), "{failed}");

    // What is settled is written down, out of what is kept for that.
    let mut consumer = client.consumer(QUEUE).create().unwrap();
    let settled = stored / 2;
    for _ in 0..settled {
        let received: Received = consumer.receive(DEADLINE).unwrap().unwrap();
        consumer.acknowledge(received.position()).unwrap();
    }
    consumer.confirm().unwrap();
    consumer.close().unwrap();
    // What nobody wants flushed is stored.
    let in_memory = client.producer("queue:/kept/nothing");
    let in_memory = in_memory.durability(Durability::Memory).create().unwrap();
    in_memory.send(&BODY[..]).unwrap();

    // Neither the producer nor the broker has to be made anew.
    let larger = format!("remount,size={}m", 4 * MIBS);
    let remounted = Command::new("mount").args(["-o", &larger, &small]).status();
    assert!(remounted.unwrap().success());
    let begun = Instant::now();
    let next = loop {
        match producer.send(&BODY[..]) {
            Ok(receipt) => break receipt,
            Err(failed) => assert_eq!(
                failed,
                SendError::NotStored {
                    cause: Cause::StoreFull
                }
            ),
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "nothing is stored though there is room"
        );
    };
    let resumed_after = begun.elapsed();
    assert_eq!(next.position.offset.0, stored, "no offset is left out");

    broker.kill();
    home.assert_whole();
    let broker = home.start(1, "auto");
    let received = home.receive(QUEUE, "3s");
    let offsets: Vec<u64> = received.iter().map(|it| it.offset).collect();
    let expected: Vec<u64> = (settled..=stored).collect();
    assert_eq!(offsets, expected);
    broker.kill();
    println!(
        "full after {stored} messages, refused after {} ms, resumed after {} ms",
        refused_after.as_millis(),
        resumed_after.as_millis()
    );
    let second = Duration::from_secs(1);
    if refused_after > second || resumed_after > 5 * second {
        println!("SLOW: the machine is busy, or a promise is not kept");
    }
}

#[test]
fn a_start_without_room_ends_and_says_what_to_do_and_nothing_is_lost() {
    alone_on_a_small_file_system("start_without_room");
}

#[test]
#[ignore = "run by a test in a process with a file system of its own"]
fn start_without_room() {
    let small = env::var(SMALL).unwrap();
    let home = Home::at(Directory::new(), format!("{small}/data"));
    let filler = format!("{small}/filler");
    fill(&filler);
    assert_ends_for_want_of_room(&home, 1);
    std::fs::remove_file(&filler).unwrap();

    let broker = home.start(1, "auto");
    let stored = home.sender(QUEUE, 500, 1, "30s").complete().len();
    broker.kill();
    fill(&filler);
    // Another number of shards needs checkpoints as well.
    for shards in [1, 3, 2] {
        assert_ends_for_want_of_room(&home, shards);
        home.assert_whole();
    }
    std::fs::remove_file(&filler).unwrap();
    let broker = home.start(1, "auto");
    assert_eq!(home.receive(QUEUE, "500ms").len(), stored);
    broker.kill();
    home.assert_whole();
}

/// Leaves no room at all.
fn fill(filler: &str) {
    let mut file = std::fs::File::create(filler).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
}

fn assert_ends_for_want_of_room(home: &Home, shards: u16) {
    let Err(ended) = home.try_start(shards, "auto") else {
        panic!("{shards} shards started without room");
    };
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let said = &ended.stderr;
    assert!(said.contains(&home.data), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.contains("\n  fix    make room"), "{said}");
}
