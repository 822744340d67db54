//! A data directory, the brokers that run on it one after the other at one address, and
//! those who send and receive meanwhile.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::accounts::{Record, ack_log, dump};
use crate::choices::Choices;
use crate::support::{Broker, DEADLINE, Directory, Ended, Running, run};

/// See the module.
pub struct Home {
    /// For logs and dumps: not where the data is, which may be cut off.
    pub records: Directory,
    pub data: String,
    pub address: String,
    /// In MiB.
    pub memory_per_shard: u32,
    /// Bytes of what senders send.
    pub body: u64,
    /// How much is journalled between two checkpoints; as long as a broker likes without.
    pub checkpoint_bytes: Option<&'static str>,
    files: AtomicU32,
    /// As long as this is there, no other test is given the port.
    _reserved: TcpListener,
}

/// A sender that runs.
pub struct Sender {
    running: Option<Running>,
    log: String,
    count: u64,
}

impl Home {
    /// With its data among the files of the test.
    pub fn new() -> Self {
        let records = Directory::new();
        let data = records.file("data");
        Self::at(records, data)
    }

    /// With its data there.
    pub fn at(records: Directory, data: String) -> Self {
        let (address, reserved) = free_address();
        Self {
            records,
            data,
            address,
            memory_per_shard: 128,
            body: 64,
            checkpoint_bytes: None,
            files: AtomicU32::new(0),
            _reserved: reserved,
        }
    }

    /// Starts a broker that has so many shards, over epoll or over what there is.
    pub fn start(&self, shards: u16, transport: &str) -> Broker {
        let started = self.try_start(shards, transport);
        started.unwrap_or_else(|ended| panic!("no broker: {ended:?}"))
    }

    /// The same, or how it ended instead.
    pub fn try_start(&self, shards: u16, transport: &str) -> Result<Broker, Ended> {
        let options = self.options(shards, transport);
        Broker::serve(&options.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same under another program, whose process it becomes.
    pub fn try_start_under(
        &self,
        program: &[String],
        shards: u16,
        transport: &str,
    ) -> Result<Broker, Ended> {
        let options = self.options(shards, transport);
        let arguments = ["serve"]
            .into_iter()
            .chain(options.iter().map(String::as_str));
        let arguments: Vec<&str> = arguments.collect();
        Broker::listening(Running::start_under(program, &arguments))
    }

    fn options(&self, shards: u16, transport: &str) -> Vec<String> {
        let memory = format!("{}MiB", self.memory_per_shard * u32::from(shards));
        let shards = shards.to_string();
        let mut options = vec![
            "--listen",
            &self.address,
            "--data-dir",
            &self.data,
            "--shards",
            &shards,
            "--memory",
            &memory,
            "--transport",
            transport,
        ];
        options.extend(
            self.checkpoint_bytes
                .iter()
                .flat_map(|bytes| ["--checkpoint-bytes", bytes]),
        );
        options.into_iter().map(str::to_owned).collect()
    }

    /// Starts a broker over either transport.
    pub fn start_either(&self, shards: u16, choices: &mut Choices) -> Broker {
        let transport = ["epoll", "auto"][usize::from(choices.one_in(2))];
        self.start(shards, transport)
    }

    /// Has `courser check` look at the data, which no broker may have.
    pub fn assert_whole(&self) {
        let ended = run(&["check", &self.data]);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("   whole: "), "{ended:?}");
    }

    /// Starts one who sends so many and reconnects for `patience`.
    pub fn sender(&self, queue: &str, count: u64, partitions: u32, patience: &str) -> Sender {
        self.sender_to(self.file("acks"), queue, count, partitions, patience)
    }

    /// The same with a log that was chosen before.
    pub fn sender_to(
        &self,
        log: String,
        queue: &str,
        count: u64,
        partitions: u32,
        patience: &str,
    ) -> Sender {
        let line = format!(
            "send {queue} --count {count} --size {} --partitions {partitions} \
             --timeout {patience} --ack-log {log} --connect {}",
            self.body, self.address
        );
        let running = Running::start(&line.split_whitespace().collect::<Vec<_>>());
        Sender {
            running: Some(running),
            log,
            count,
        }
    }

    /// Receives until nothing comes for `silence`.
    pub fn receive(&self, queue: &str, silence: &str) -> Vec<Record> {
        let (receiver, file) = self.receiver(queue, silence);
        let ended = receiver.end();
        assert_eq!(ended.status, Some(0), "{ended:?}");
        dump(file)
    }

    /// Starts one who receives until nothing comes for `silence`, and its dump.
    pub fn receiver(&self, queue: &str, silence: &str) -> (Running, String) {
        let file = self.file("dump");
        let line = format!(
            "receive {queue} --timeout {silence} --dump {file} --connect {}",
            self.address
        );
        let mut receiver = Running::start(&line.split_whitespace().collect::<Vec<_>>());
        receiver.ignore_output();
        (receiver, file)
    }

    /// Where a file of that name may be made.
    pub fn file(&self, name: &str) -> String {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        self.records.file(&format!("{name}-{number}"))
    }
}

impl Sender {
    /// Bytes of its log.
    fn written(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// The file with what it was told.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// What it was told until now.
    pub fn acknowledged(&self) -> Vec<Record> {
        ack_log(&self.log)
    }

    /// Waits until it has ended with everything acknowledged; that.
    pub fn complete(&mut self) -> Vec<Record> {
        let ended = self.running.take().unwrap().end();
        assert_eq!(ended.status, Some(0), "{ended:?}");
        let acknowledged = self.acknowledged();
        let sequences = acknowledged.iter().map(|record| record.id.1);
        assert!(sequences.eq(1..=self.count), "each once, in their order");
        acknowledged
    }

    /// Waits until it has given up; what it was told.
    pub fn give_up(&mut self) -> Vec<Record> {
        let ended = self.running.take().unwrap().end();
        assert_eq!(ended.status, Some(3), "{ended:?}");
        self.acknowledged()
    }
}

/// Waits until about so many more lines are in the logs of these senders, and some in each:
/// who is not connected yet does not know that there was a broker.
pub fn wait_for_more(senders: &[Sender], lines: u64) {
    /// The shortest line: no message is missed by waiting for fewer bytes.
    const LINE: u64 = 16;
    let written = || senders.iter().map(Sender::written).sum::<u64>();
    let (started, before) = (Instant::now(), written());
    while written() < before + lines * LINE || senders.iter().any(|it| it.written() == 0) {
        assert!(started.elapsed() < DEADLINE, "nothing is acknowledged");
        std::thread::park_timeout(std::time::Duration::from_micros(200));
    }
}

/// A port that is free, and that no connection is given: one that is made while no broker
/// listens there would otherwise find itself at the other end. It stays the test's own
/// while no broker has it, also among tests of other processes: each holds the same port
/// of another address of the loopback device.
fn free_address() -> (String, TcpListener) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() % 1000 * 10;
    for _ in 0..10_000 {
        let count = first + COUNT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + count % 10_000;
        let Ok(reserved) = TcpListener::bind(format!("127.0.0.2:{port}")) else {
            continue;
        };
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return (address, reserved);
        }
    }
    panic!("no port is free");
}
