//! Two clients and a shard face to face in memory: the driver's part is played by
//! copies between vectors, so that what is counted is the machines alone.
//!
//! ```text
//!   producing client --- to_shard ---> shard --- to_client ---> consuming client
//!                    <-- to_client ---       <-- to_shard ----
//! ```
//!
//! Functions whose names begin with `counted_` are what callgrind counts: they
//! contain what a machine does, and nothing of the copying between machines. Each
//! exists beside a plain twin of the same body, so that the same loop runs with
//! one machine or the other under the glass. None may call another, and no closure
//! may live in one: callgrind toggles by name, at each way in and out.

use std::hint::black_box;
use std::time::Duration;

use courser_core::client::{
    Client, Config, ConsumerKey, ConsumerRequest, Durability, Event, Outgoing, ProducerKey,
    ProducerRequest, Route,
};
use courser_core::id::{
    BatchNumber, FileSequence, Handle, Installation, JournalNumber, Run, ShardIndex,
};
use courser_core::journal::survey::Slot;
use courser_core::journal::writer::{Beginning, IN_FLIGHT_MAX, Token, Wish};
use courser_core::journal::{Identity, Origin};
use courser_core::name::Destination;
use courser_core::shard::{Attached, Output, Pieces, Shard, ShardConfig};
use courser_core::time::{Monotonic, Now, Wall};

use crate::allocations;

/// Room for every message of a scenario, so that none has to be taken out.
const MEMORY: u64 = 256 << 20;

/// What time passes between two turns.
const TURN: Duration = Duration::from_micros(10);

/// More turns than any exchange of a scenario takes.
const TURNS_MAX: usize = 10_000;

const INSTALLATION: Installation = Installation(0xfeed);

const DESTINATION: &str = "queue:counted";

/// Whether the shard has a journal, and what its producer asks for. The device is an
/// instant one: what it is given is written before the shard's next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// There is no journal.
    Nothing,
    /// There is one, and sends are in memory all the same.
    Others,
    /// Each send is flushed.
    Everything,
}

/// Whose work is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Nothing,
    Broker,
    Sender,
    Receiver,
}

/// What passed in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    /// Bytes from clients to the shard.
    pub(crate) to_shard: u64,
    /// Bytes from the shard to clients.
    pub(crate) to_clients: u64,
    /// Turns of the shard.
    pub(crate) turns: u64,
    /// Writes to its device.
    pub(crate) writes: u64,
    /// Bytes of them.
    pub(crate) written: u64,
    /// Allocations of the machine that is counted.
    pub(crate) allocations: u64,
}

/// A client's end of a link.
struct End {
    client: Client,
    link: Handle,
    to_shard: Vec<u8>,
    to_client: Vec<u8>,
}

const SENDER: usize = 0;
const RECEIVER: usize = 1;

pub(crate) struct Pair {
    shard: Shard,
    now: Now,
    ends: [End; 2],
    producer: Option<ProducerKey>,
    consumer: Option<ConsumerKey>,
    body: Vec<u8>,
    keeping: Keeping,
    pub(crate) counted: Counted,
    pub(crate) passed: Passed,
}

/// What a shard gave its device in one turn.
struct Writes {
    /// Batches, and the header of a file.
    tokens: [Token; IN_FLIGHT_MAX + 1],
    count: usize,
    bytes: usize,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            tokens: [Token(0); IN_FLIGHT_MAX + 1],
            count: 0,
            bytes: 0,
        }
    }
}

/// Links that the shard wants something sent on, in order.
#[derive(Default)]
struct Sends {
    links: [Handle; 4],
    count: usize,
    bytes: usize,
}

impl Pair {
    /// A producer of bodies of `body_bytes`, and a consumer of the same queue if
    /// `consumed`.
    pub(crate) fn new(body_bytes: usize, consumed: bool, keeping: Keeping) -> Self {
        let now = Now {
            monotonic: Monotonic(1_000_000_000),
            wall: Wall(1_700_000_000_000_000_000),
        };
        let mut shard = Shard::new(ShardConfig {
            installation: INSTALLATION,
            shard: ShardIndex(0),
            memory: MEMORY,
            hash_seed: 1,
            auto_create: true,
        })
        .expect("the memory is enough for a shard");
        if keeping != Keeping::Nothing {
            shard.restored();
            shard.keep(&beginning());
        }
        let ends = [(); 2].map(|()| {
            let mut client = Client::new(Config::default());
            client.connected(now.monotonic);
            // The door takes the hello; the shard begins behind it.
            let hello = client.pieces().size();
            client.sent(hello);
            let link = shard
                .attached(now, Attached::default())
                .expect("two links are few");
            End {
                client,
                link,
                to_shard: Vec::with_capacity(1 << 20),
                to_client: Vec::with_capacity(1 << 20),
            }
        });
        let mut pair = Self {
            shard,
            now,
            ends,
            producer: None,
            consumer: None,
            body: vec![0xA5; body_bytes],
            keeping,
            counted: Counted::Nothing,
            passed: Passed::default(),
        };
        pair.settle();
        assert!(pair.shard.is_durable(), "a journal begins");
        let destination = Destination::parse(DESTINATION).expect("the name is well formed");
        pair.ends[SENDER]
            .client
            .open_producer(ProducerRequest::new(destination.clone()))
            .expect("nothing else was asked");
        pair.settle();
        pair.producer = pair.event(SENDER, |event| match event {
            Event::ProducerOpened { producer, .. } => Some(producer),
            _ => None,
        });
        if consumed {
            pair.ends[RECEIVER]
                .client
                .open_consumer(ConsumerRequest {
                    messages_max: 1024,
                    ..ConsumerRequest::new(destination)
                })
                .expect("nothing else was asked");
            pair.settle();
            pair.consumer = pair.event(RECEIVER, |event| match event {
                Event::ConsumerOpened { consumer, .. } => Some(consumer),
                _ => None,
            });
            assert!(pair.consumer.is_some(), "a consumer opens");
        }
        pair
    }

    /// Sends `batch` messages at once and passes bytes until each of them is
    /// completed, and received and acknowledged if somebody consumes.
    pub(crate) fn round(&mut self, batch: u64) {
        let (mut completed, mut received) = (0, 0);
        self.enqueue(batch);
        for _ in 0..TURNS_MAX {
            self.carry(SENDER);
            completed += self.hear();
            if self.consumer.is_none() {
                if completed == batch {
                    return;
                }
                continue;
            }
            received += self.take();
            self.carry(RECEIVER);
            if completed == batch && received == batch && !self.shard.has_work() {
                return;
            }
        }
        panic!("{completed} of {batch} completed, {received} received");
    }

    fn producer(&self) -> ProducerKey {
        self.producer.expect("a producer was opened at the start")
    }

    fn event<T>(&mut self, end: usize, wanted: impl Fn(Event) -> Option<T>) -> Option<T> {
        while let Some(event) = self.ends[end].client.poll_event() {
            if let Some(found) = wanted(event) {
                return Some(found);
            }
        }
        None
    }

    /// Lets bytes pass until nobody has any.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            for end in [SENDER, RECEIVER] {
                self.carry(end);
                let End {
                    client, to_client, ..
                } = &mut self.ends[end];
                client.received(to_client);
                to_client.clear();
            }
            let quiet = self.ends.iter().all(|end| !end.client.has_pieces());
            if quiet && !self.shard.has_work() {
                return;
            }
        }
        panic!("the machines do not come to rest");
    }

    fn enqueue(&mut self, batch: u64) {
        let producer = self.producer();
        let message = Outgoing {
            properties: &[],
            body: &self.body,
            route: Route::Turn,
            durability: Some(match self.keeping {
                Keeping::Nothing | Keeping::Others => Durability::Memory,
                Keeping::Everything => Durability::Flushed,
            }),
            // A deadline as the library sets it: the window has to keep track of it.
            deadline: self.now.monotonic.after(Duration::from_secs(3)),
        };
        let End { client, .. } = &mut self.ends[SENDER];
        let before = allocations::so_far();
        if self.counted == Counted::Sender {
            counted_enqueue(client, self.now, producer, &message, batch);
            self.passed.allocations += allocations::so_far() - before;
        } else {
            enqueue(client, self.now, producer, &message, batch);
        }
    }

    /// What an end has to say goes to the shard, which takes its turn; what that
    /// has to say goes to the ends.
    fn carry(&mut self, from: usize) {
        let counts_sender = self.counted == Counted::Sender && from == SENDER;
        let counts_receiver = self.counted == Counted::Receiver && from == RECEIVER;
        let End {
            client,
            to_shard,
            link,
            ..
        } = &mut self.ends[from];
        to_shard.clear();
        for slice in client.pieces().slices() {
            to_shard.extend_from_slice(slice);
        }
        let before = allocations::so_far();
        if counts_sender || counts_receiver {
            counted_left(client, to_shard.len());
            self.passed.allocations += allocations::so_far() - before;
        } else {
            left(client, to_shard.len());
        }
        self.passed.to_shard += to_shard.len() as u64;
        let link = *link;
        while !self.ends[from].to_shard.is_empty() || self.shard.has_work() {
            self.now = Now {
                monotonic: self.now.monotonic.after(TURN),
                wall: Wall(self.now.wall.0 + 10_000),
            };
            self.turn(link, from);
            self.ends[from].to_shard.clear();
        }
    }

    fn turn(&mut self, link: Handle, from: usize) {
        let mut sends = Sends::default();
        let bytes = self.ends[from].to_shard.as_slice();
        let counts = self.counted == Counted::Broker;
        let before = allocations::so_far();
        if counts {
            counted_turn(&mut self.shard, self.now, link, bytes, &mut sends);
            self.passed.allocations += allocations::so_far() - before;
        } else {
            turn(&mut self.shard, self.now, link, bytes, &mut sends);
        }
        if self.keeping != Keeping::Nothing {
            self.store();
        }
        self.passed.turns += 1;
        self.passed.to_clients += sends.bytes as u64;
        for &link in &sends.links[..sends.count] {
            let mut pieces = Pieces::new();
            self.shard.pieces(link, &mut pieces);
            let end = self
                .ends
                .iter_mut()
                .find(|end| end.link == link)
                .expect("there are no other links");
            let mut bytes = 0;
            for slice in pieces.slices() {
                end.to_client.extend_from_slice(slice);
                bytes += slice.len();
            }
            let before = allocations::so_far();
            if counts {
                counted_sent(&mut self.shard, self.now, link, bytes);
                self.passed.allocations += allocations::so_far() - before;
            } else {
                sent(&mut self.shard, self.now, link, bytes);
            }
        }
    }

    /// The device takes what the shard gives it, and has it.
    fn store(&mut self) {
        let mut writes = Writes::default();
        let before = allocations::so_far();
        if self.counted == Counted::Broker {
            counted_wishes(&mut self.shard, &mut writes);
            counted_written(&mut self.shard, &writes);
            self.passed.allocations += allocations::so_far() - before;
        } else {
            wishes(&mut self.shard, &mut writes);
            written(&mut self.shard, &writes);
        }
        self.passed.writes += writes.count as u64;
        self.passed.written += writes.bytes as u64;
    }

    /// The producing client hears what came; returns completions.
    fn hear(&mut self) -> u64 {
        let producer = self.producer();
        let End {
            client, to_client, ..
        } = &mut self.ends[SENDER];
        let before = allocations::so_far();
        let completed = if self.counted == Counted::Sender {
            let completed = counted_hear(client, to_client, producer);
            self.passed.allocations += allocations::so_far() - before;
            completed
        } else {
            hear(client, to_client, producer)
        };
        to_client.clear();
        assert_eq!(client.end(), None, "the producing link stays");
        completed
    }

    /// The consuming client takes and acknowledges what came; returns messages.
    fn take(&mut self) -> u64 {
        let Some(consumer) = self.consumer else {
            return 0;
        };
        let End {
            client, to_client, ..
        } = &mut self.ends[RECEIVER];
        let before = allocations::so_far();
        let received = if self.counted == Counted::Receiver {
            let received = counted_take(client, to_client, consumer);
            self.passed.allocations += allocations::so_far() - before;
            received
        } else {
            take(client, to_client, consumer)
        };
        to_client.clear();
        assert_eq!(client.end(), None, "the consuming link stays");
        received
    }
}

/// A journal without a past.
fn beginning() -> Beginning {
    Beginning {
        origin: Origin {
            identity: Identity {
                installation: INSTALLATION,
                journal: JournalNumber(0),
            },
            run: Run(1),
            salt: 1,
        },
        recovered: BatchNumber(0),
        sequence: FileSequence(1),
        slot: Slot(1),
    }
}

// The machines' work, and its counted twins.

#[inline(always)]
fn turn(shard: &mut Shard, now: Now, link: Handle, bytes: &[u8], sends: &mut Sends) {
    if !bytes.is_empty() {
        shard.received(now, link, bytes);
    }
    shard.turn(now);
    while let Some(output) = shard.output() {
        let Output::Send(link) = output else {
            panic!("the shard ends a link: {output:?}");
        };
        let mut pieces = Pieces::new();
        shard.pieces(link, &mut pieces);
        for slice in pieces.slices() {
            sends.bytes += slice.len();
        }
        sends.links[sends.count] = link;
        sends.count += 1;
    }
}

#[inline(never)]
fn counted_turn(shard: &mut Shard, now: Now, link: Handle, bytes: &[u8], sends: &mut Sends) {
    turn(shard, now, link, bytes, sends);
}

#[inline(always)]
fn wishes(shard: &mut Shard, writes: &mut Writes) {
    while let Some(wish) = shard.storage_wish() {
        match wish {
            Wish::Prepare { file, .. } => shard.prepared(file, true),
            Wish::Remove { .. } => {}
            Wish::Write { token, .. } => {
                writes.bytes += shard.storage_pieces(token).map(<[u8]>::len).sum::<usize>();
                writes.tokens[writes.count] = token;
                writes.count += 1;
            }
        }
    }
}

#[inline(never)]
fn counted_wishes(shard: &mut Shard, writes: &mut Writes) {
    wishes(shard, writes);
}

#[inline(always)]
fn written(shard: &mut Shard, writes: &Writes) {
    for &token in &writes.tokens[..writes.count] {
        shard.written(token, Ok(()));
    }
}

#[inline(never)]
fn counted_written(shard: &mut Shard, writes: &Writes) {
    written(shard, writes);
}

#[inline(always)]
fn sent(shard: &mut Shard, now: Now, link: Handle, bytes: usize) {
    shard.sent(now, link, bytes);
}

#[inline(never)]
fn counted_sent(shard: &mut Shard, now: Now, link: Handle, bytes: usize) {
    sent(shard, now, link, bytes);
}

#[inline(always)]
fn enqueue(
    client: &mut Client,
    now: Now,
    producer: ProducerKey,
    message: &Outgoing<'_>,
    batch: u64,
) {
    for _ in 0..batch {
        if client.send(now, producer, black_box(message)).is_err() {
            panic!("the window has no room for a batch");
        }
    }
    black_box(client.pieces().size());
}

#[inline(never)]
fn counted_enqueue(
    client: &mut Client,
    now: Now,
    producer: ProducerKey,
    message: &Outgoing<'_>,
    batch: u64,
) {
    enqueue(client, now, producer, message, batch);
}

#[inline(always)]
fn left(client: &mut Client, bytes: usize) {
    if bytes > 0 {
        client.sent(bytes);
    }
}

#[inline(never)]
fn counted_left(client: &mut Client, bytes: usize) {
    left(client, bytes);
}

#[inline(always)]
fn hear(client: &mut Client, bytes: &[u8], producer: ProducerKey) -> u64 {
    client.received(bytes);
    let mut completed = 0;
    while let Some(completion) = client.poll_completion(producer) {
        if black_box(&completion).result.is_err() {
            panic!("a send failed");
        }
        completed += 1;
    }
    completed
}

#[inline(never)]
fn counted_hear(client: &mut Client, bytes: &[u8], producer: ProducerKey) -> u64 {
    hear(client, bytes, producer)
}

#[inline(always)]
fn take(client: &mut Client, bytes: &[u8], consumer: ConsumerKey) -> u64 {
    client.received(bytes);
    let mut received = 0;
    while let Some(message) = client.poll_message(consumer) {
        black_box(message.body());
        let position = message.position();
        if client.acknowledge(consumer, position).is_err() {
            panic!("an acknowledgement finds no room");
        }
        received += 1;
    }
    black_box(client.pieces().size());
    received
}

#[inline(never)]
fn counted_take(client: &mut Client, bytes: &[u8], consumer: ConsumerKey) -> u64 {
    take(client, bytes, consumer)
}
