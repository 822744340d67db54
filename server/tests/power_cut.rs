//! Power cuts: a file system that a broker keeps its data on is cut off from its device,
//! again and again, and what was acknowledged before each cut is there after it.
//!
//! ```text
//!   senders --> broker --> ext4, XFS --> loop device --> a file
//!      |                       X  cut: what was not written by then never is
//!      v
//!   ack logs on another file system; what is in them at the cut counts, no line later
//! ```
//!
//! `scripts/power-cut` makes the device and runs this; it needs root. What this does not
//! see: what a device loses that it has said to be durable, or had in a cache of its own.

#![allow(clippy::unwrap_used)]

#[path = "support/accounts.rs"]
mod accounts;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/home.rs"]
mod home;
mod support;

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use accounts::{Record, ack_log, assert_kept};
use choices::Choices;
use home::{Home, Sender};
use support::{DEADLINE, Directory};

const QUEUE: &str = "queue:/kept/work";
const SENDERS: usize = 3;
/// Cuts under one data directory, of which each start has to understand those before it.
const CUTS_MAX: u64 = 6;
/// The most bytes of messages that are acknowledged until a cut: the next file of a journal
/// is made meanwhile.
const SENT_MAX: u64 = 12 << 20;
/// Of a frame beside its body.
const HEADER: u64 = 112;
/// About so many bytes of an ack log are a message.
const LINE: u64 = 25;
/// From when enough is acknowledged: a flush takes less.
const MICROSECONDS_MAX: u64 = 4_000;
/// Nothing more comes. A queue that is asked has sent what is ready long before.
const SILENCE: &str = "1s";

/// The file system under test.
struct Device {
    path: String,
    mount_point: String,
    kind: String,
    options: String,
}

/// One that waits for its moment to cut.
struct Cutter {
    child: Child,
    stdout: BufReader<ChildStdout>,
    logs: Vec<String>,
}

impl Device {
    fn new() -> Self {
        let said = |name: &str| env::var(name).expect("scripts/power-cut says that");
        Self {
            path: said("POWER_CUT_DEVICE"),
            mount_point: said("POWER_CUT_MOUNT_POINT"),
            kind: said("POWER_CUT_FILE_SYSTEM"),
            options: said("POWER_CUT_OPTIONS"),
        }
    }

    fn make(&self) {
        let force = if self.kind == "xfs" { "-f" } else { "-F" };
        succeeds(&format!("mkfs.{}", self.kind), &["-q", force, &self.path]);
    }

    fn mount(&self) {
        succeeds(
            "mount",
            &["-o", &self.options, &self.path, &self.mount_point],
        );
    }

    /// Whoever was killed may have writes under way, which end before it is let go.
    fn unmount(&self) {
        let started = Instant::now();
        loop {
            let ended = Command::new("umount").arg(&self.mount_point).output();
            let ended = ended.unwrap();
            if ended.status.success() {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "{ended:?}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Has it cut off so long after there are so many bytes in these logs. The cutter is
    /// ready when this returns.
    fn cut_behind(&self, logs: Vec<String>, bytes: u64, microseconds: u64) -> Cutter {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cut-power");
        let mut child = Command::new(program)
            .args([&self.mount_point, &bytes.to_string()])
            .arg(microseconds.to_string())
            .args(&logs)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Cutter {
            child,
            stdout,
            logs,
        }
    }
}

impl Cutter {
    /// Waits for the cut. What was in the logs right before it.
    fn told(mut self) -> Vec<Record> {
        let mut sizes = String::new();
        self.stdout.read_to_string(&mut sizes).unwrap();
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "nothing was cut: {ended}");
        let sizes = sizes.split_whitespace().map(|size| size.parse().unwrap());
        let told = self
            .logs
            .iter()
            .zip(sizes)
            .flat_map(|(log, size): (_, usize)| {
                if size == 0 {
                    return Vec::new();
                }
                // What came later stays in the file and does not count.
                let before = format!("{log}.cut");
                std::fs::write(&before, &std::fs::read(log).unwrap()[..size]).unwrap();
                ack_log(before)
            });
        told.collect()
    }
}

fn succeeds(program: &str, arguments: &[&str]) {
    let ended = Command::new(program).args(arguments).output().unwrap();
    assert!(ended.status.success(), "{program}: {ended:?}");
}

/// Cuts so often under one data directory. Returns how much was acknowledged.
fn cut_under_one_directory(device: &Device, cuts: u64, choices: &mut Choices) -> usize {
    device.make();
    device.mount();
    let mut home = Home::at(Directory::new(), format!("{}/data", device.mount_point));
    home.memory_per_shard = 256;
    let (shards, partitions) = [(1, 1), (2, 4)][usize::from(choices.one_in(2))];
    let mut broker = home.start_either(shards, choices);
    let (mut told, mut received) = (Vec::new(), Vec::new());
    for _ in 0..cuts {
        home.body = [64, 1000, 5000][usize::try_from(choices.below(3)).unwrap()];
        // As often few as many.
        let most = SENT_MAX / (HEADER + home.body) * LINE;
        let halved = choices.below(12);
        let bytes = choices.below(most >> halved) + 1;
        let logs = (0..SENDERS).map(|_| home.file("acks")).collect();
        let cutter = device.cut_behind(logs, bytes, choices.below(MICROSECONDS_MAX));
        let log = |log: &String| home.sender_to(log.clone(), QUEUE, 1_000_000, partitions, "60s");
        let senders: Vec<Sender> = cutter.logs.iter().map(log).collect();
        told.extend(cutter.told());
        // Dropped, and so killed; nobody asks what they think of it.
        drop(senders);
        broker.kill();
        device.unmount();
        device.mount();
        home.assert_whole();
        broker = home.start_either(shards, choices);
        received.extend(home.receive(QUEUE, SILENCE));
        // The next offsets: none is given out twice, and none is left out.
        home.body = 64;
        told.extend(home.sender(QUEUE, 8, partitions, "60s").complete());
        received.extend(home.receive(QUEUE, SILENCE));
        // Nobody settles what was settled before a cut.
        assert_kept(&told, &received);
    }
    broker.kill();
    device.unmount();
    told.len()
}

#[test]
#[ignore = "needs root and a device: scripts/power-cut"]
fn what_was_acknowledged_before_a_power_cut_is_there_after_it() {
    let device = Device::new();
    let cuts: u64 = env::var("POWER_CUTS").unwrap().parse().unwrap();
    let mut choices = Choices::of("POWER_CUT_SEED");
    let started = Instant::now();
    let (mut left, mut acknowledged) = (cuts, 0);
    while left > 0 {
        let now = left.min(CUTS_MAX);
        acknowledged += cut_under_one_directory(&device, now, &mut choices);
        left -= now;
    }
    println!(
        "{} ({}): cut {cuts} times, acknowledged {acknowledged}, lost 0, stored twice 0, in {} s",
        device.kind,
        device.options,
        started.elapsed().as_secs()
    );
}
