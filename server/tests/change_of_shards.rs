//! A broker that is killed while it divides what is kept among another number of shards, at
//! each of its calls that change files, one after the other: whoever starts next, with
//! whatever number, has all of it.
//!
//! A tracer kills it at the call that is named. Where there is none, or it may not trace,
//! that is said and nothing is tested.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};

use accounts::{Record, assert_exactly_once_in_order};
use home::Home;
use rustix::process::Signal;

const QUEUE: &str = "queue:/kept/work";
const PARTITIONS: u32 = 5;
/// Nothing more comes.
const SILENCE: &str = "500ms";
/// No start makes so many calls of one kind on one thread.
const CALLS_MAX: usize = 200;

#[test]
fn a_kill_anywhere_within_a_change_to_more_shards_loses_nothing() {
    is_killed_at_every_call(2, 3);
}

#[test]
fn a_kill_anywhere_within_a_change_to_fewer_shards_loses_nothing() {
    is_killed_at_every_call(3, 1);
}

fn is_killed_at_every_call(before: u16, after: u16) {
    if !can_trace() {
        eprintln!("SKIPPED: there is no strace here, or it may trace nothing");
        return;
    }
    let mut home = Home::new();
    home.checkpoint_bytes = Some("64KiB");
    let kept = fill(&home, before);
    let before_it = home.records.file("before");
    copy(&home.data, &before_it);

    let asides: Vec<String> = (0..after)
        .map(|journal| {
            format!(
                "--trace-path={}/journal-{journal:02}/checkpoint.new",
                home.data
            )
        })
        .collect();
    // Of the threads that make such calls each is killed at its first, its second and so on.
    let kinds: [(&str, &[String]); 4] = [
        ("rename,renameat,renameat2,unlink,unlinkat,mkdir", &[]),
        ("fsync,fdatasync", &[]),
        ("pwritev2,fallocate", &[]),
        ("pwrite64", &asides),
    ];
    let mut kills = 0;
    for (calls, paths) in kinds {
        for call in 1.. {
            assert!(call < CALLS_MAX, "there is no end to {calls}");
            fs::remove_dir_all(&home.data).unwrap();
            copy(&before_it, &home.data);
            let mut tracer = ["strace", "-D", "-f", "-qq", "-o/dev/null"]
                .map(str::to_owned)
                .to_vec();
            tracer.extend_from_slice(paths);
            tracer.push(format!("--trace={calls}"));
            tracer.push(format!("--inject={calls}:signal=KILL:when={call}"));
            let started = home.try_start_under(&tracer, after, "epoll");
            let is_over = started.is_ok();
            match started {
                Ok(broker) => broker.kill(),
                Err(ended) => {
                    assert_eq!(ended.signal, Some(Signal::KILL.as_raw()), "{ended:?}");
                    kills += 1;
                }
            }
            home.assert_whole();
            let next = [after, before, 2][call % 3];
            let broker = home.start(next, "epoll");
            let mut received = home.receive(QUEUE, SILENCE);
            received.sort_by_key(|record| record.partition);
            assert!(received == kept, "after {calls} number {call}");
            broker.kill();
            home.assert_whole();
            if is_over {
                break;
            }
        }
    }
    println!("killed {kills} times from {before} to {after} shards");
    // Two checkpoints are renamed at least, and flushed before.
    assert!(kills >= 8, "{kills}");
}

/// Has a broker keep some messages, in checkpoints and behind them, and settle others. Those
/// that are kept, by partition, and in each in their order.
fn fill(home: &Home, shards: u16) -> Vec<Record> {
    let broker = home.start(shards, "epoll");
    let settled = home.sender(QUEUE, 1500, PARTITIONS, "30s").complete();
    assert_exactly_once_in_order(&settled, &home.receive(QUEUE, SILENCE));
    broker.kill();
    let broker = home.start(shards, "epoll");
    let mut kept = home.sender(QUEUE, 1000, PARTITIONS, "30s").complete();
    broker.kill();
    let broker = home.start(shards, "epoll");
    kept.extend(home.sender(QUEUE, 200, PARTITIONS, "30s").complete());
    broker.kill();
    home.assert_whole();
    kept.sort_by_key(|record| (record.partition, record.offset));
    kept
}

fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-D", "-f", "-qq", "-o/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    traced.is_ok_and(|status| status.success())
}

/// Copies a directory with all that is in it.
fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let (from, to) = (from.as_ref(), to.as_ref());
    fs::DirBuilder::new().mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.metadata().unwrap().is_dir() {
            copy(entry.path(), to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
