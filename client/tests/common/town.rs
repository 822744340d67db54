//! A broker of several shards by script: it keeps the rules of the wire about shards
//! and nothing else, and notes who comes where.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use courser_core::frame::control::{
    self, Closed, CompletionRun, Completions, ConsumerOpened, Control, Fields, Located, Pong,
    ProducerOpened, SessionOpened, Stats, Welcome,
};
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::frame::{VERSION, encode};
use courser_core::limits;

use super::WAIT;

/// What happened, for the test to look at.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Connections accepted.
    pub accepted: usize,
    /// Links that moved.
    pub moved: usize,
    /// Producers and consumers that were opened on the shard of their destination.
    pub placed: usize,
    /// And on another one, other than to create it.
    pub misplaced: usize,
    /// Which destinations exist, and where.
    pub destinations: HashMap<String, u16>,
}

/// See the module.
#[derive(Clone)]
pub struct Town {
    address: SocketAddr,
    shards: u16,
    /// Whether links may move.
    moves: bool,
    record: Arc<Mutex<Record>>,
}

impl Town {
    pub fn of_shards(shards: u16) -> Self {
        Self::begin(shards, true)
    }

    /// One whose links stay, whatever they ask for.
    pub fn without_moves(shards: u16) -> Self {
        Self::begin(shards, false)
    }

    fn begin(shards: u16, moves: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let town = Self {
            address: listener.local_addr().unwrap(),
            shards,
            moves,
            record: Arc::default(),
        };
        let host = town.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let visit = Visit {
                    town: host.clone(),
                    stream: stream.unwrap(),
                    shard: 0,
                    handles: 0,
                };
                host.record.lock().unwrap().accepted += 1;
                thread::spawn(move || visit.serve());
            }
        });
        town
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn record(&self) -> Record {
        self.record.lock().unwrap().clone()
    }
}

/// One connection.
struct Visit {
    town: Town,
    stream: TcpStream,
    shard: u16,
    handles: u32,
}

impl Visit {
    fn serve(mut self) -> Option<()> {
        self.stream.set_nodelay(true).unwrap();
        self.stream.set_read_timeout(Some(WAIT)).unwrap();
        let mut bytes = Vec::new();
        let mut buffer = [0; 65_536];
        loop {
            let count = self.stream.read(&mut buffer).ok()?;
            if count == 0 {
                return None;
            }
            bytes.extend_from_slice(&buffer[..count]);
            while let Step::Frame(frame, size) = decode(&bytes).unwrap() {
                self.answer(&frame)?;
                bytes.drain(..size);
            }
        }
    }

    fn answer(&mut self, frame: &Frame<'_>) -> Option<()> {
        let (subject, control) = match frame {
            Frame::Control { subject, control } => (*subject, control),
            Frame::Message(message) => {
                let run = CompletionRun {
                    sequence: message.header.sequence,
                    offset: (message.header.sequence.get() - 1).into(),
                    count: 1.into(),
                    ..CompletionRun::default()
                };
                let fields = Completions {
                    runs: 1.into(),
                    ..Completions::default()
                };
                return self.say(message.header.handle.get(), &fields, &[&bytes_of(&run)]);
            }
        };
        match control {
            Control::Hello(fields, _) => {
                let record = self.town.record.lock().unwrap();
                let wanted = fields.shard.get();
                self.shard = match wanted {
                    u16::MAX => u16::try_from(record.accepted - 1).unwrap() % self.town.shards,
                    wanted => wanted,
                };
                drop(record);
                self.welcome(0)
            }
            Control::Move(fields, _) if self.town.moves => {
                self.shard = fields.shard.get();
                self.town.record.lock().unwrap().moved += 1;
                self.welcome(subject)
            }
            Control::Move(..) => {
                let fields = control::Refused {
                    refusal: courser_core::error::Refusal::IllegalArgument.code().into(),
                    ..control::Refused::default()
                };
                self.say(subject, &fields, &[])
            }
            Control::OpenSession(..) => self.say(subject, &SessionOpened::default(), &[]),
            Control::Lookup(_, name) => {
                let name = String::from_utf8(name.to_vec()).unwrap();
                let home = (self.town.record.lock().unwrap().destinations)
                    .get(&name)
                    .copied();
                let located = Located {
                    exists: u8::from(home.is_some()),
                    shard: home.unwrap_or(self.shard).into(),
                    ..Located::default()
                };
                self.say(subject, &located, &[])
            }
            Control::OpenProducer(fields, tail) => {
                self.opens(&tail[..usize::from(fields.destination_length.get())]);
                let opened = ProducerOpened {
                    handle: self.handle().into(),
                    epoch: 1.into(),
                    producer: 42.into(),
                    partitions: 1.into(),
                    window: 1024.into(),
                    bytes: (1 << 30).into(),
                    messages: (1 << 20).into(),
                };
                self.say(subject, &opened, &[])
            }
            Control::OpenConsumer(fields, tail) => {
                self.opens(&tail[..usize::from(fields.destination_length.get())]);
                let opened = ConsumerOpened {
                    handle: self.handle().into(),
                    partitions: 1.into(),
                };
                self.say(subject, &opened, &[&[0; 8]])
            }
            Control::Close(fields, _) => {
                let closed = Closed {
                    handle: fields.handle,
                    ..Closed::default()
                };
                self.say(subject, &closed, &[])
            }
            Control::AskStats(..) => {
                let stats = Stats {
                    counters: 1.into(),
                    ..Stats::default()
                };
                self.say(subject, &stats, &[&1_u64.to_le_bytes()])
            }
            Control::Ping(fields, _) => {
                let token = fields.token;
                self.say(subject, &Pong { token }, &[])
            }
            Control::Goodbye(..) => None,
            _ => Some(()),
        }
    }

    /// A destination exists from its first opening on, anywhere.
    fn opens(&self, name: &[u8]) {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let mut record = self.town.record.lock().unwrap();
        let next = u16::try_from(record.destinations.len() + 1).unwrap() % self.town.shards;
        match record.destinations.get(&name) {
            None => {
                record.destinations.insert(name, next);
            }
            Some(home) if *home == self.shard => record.placed += 1,
            Some(_) => record.misplaced += 1,
        }
    }

    fn handle(&mut self) -> u32 {
        self.handles += 1;
        self.handles
    }

    fn welcome(&mut self, subject: u32) -> Option<()> {
        let welcome = Welcome {
            version: VERSION,
            shards: u8::try_from(self.town.shards).unwrap(),
            shard: self.shard.into(),
            frame_size_max: limits::FRAME_SIZE_MAX.into(),
            installation: 7.into(),
            link: 9.into(),
            ..Welcome::default()
        };
        self.say(subject, &welcome, &[])
    }

    fn say<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) -> Option<()> {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let mut bytes = vec![0; size];
        encode::control(subject, fields, tail, &mut bytes);
        self.stream.write_all(&bytes).ok()
    }
}

/// A run as it lies on the wire.
fn bytes_of(run: &CompletionRun) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(run.sequence.get().to_le_bytes());
    bytes.extend(run.offset.get().to_le_bytes());
    bytes.extend(run.append_time.get().to_le_bytes());
    bytes.extend(run.count.get().to_le_bytes());
    bytes.extend([0; 12]);
    bytes
}
