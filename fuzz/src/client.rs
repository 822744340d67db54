//! A client before a hostile broker: any frames, whole and broken, in every phase.
//!
//! A case is a list of acts; `what` chooses among what there is:
//!
//! | act | then | |
//! |---|---|---|
//! | 0, 1, 2 | pieces, recipe | the broker says a frame, see [`BrokerNames`] |
//! | 3 | pieces, bytes | the broker says these bytes |
//! | 4 | size, partitions | the application asks for a producer |
//! | 5 | size, bytes | asks for a consumer, with so much prefetch |
//! | 6 | what, route, size | sends |
//! | 7 | what, how | takes a message, and settles it or does not |
//! | 8 | what, how | closes, confirms, forgets, asks, leaves |
//! | 9 | tenths | time passes: so many tenths of a second |
//! | 10 | count | so much leaves; 0 all of it, and from then on all at once |
//! | 11 | | the connection is gone |
//!
//! What has to hold: nothing panics; the client says whole frames, within the credit
//! that it was given; each send has one outcome, in the order of the sends, whatever
//! the broker says; the end is said once, and is the last that happens; memory is
//! bounded by what the application asked for and by what was said to it.

use core::time::Duration;
use std::collections::HashMap;

use courser_core::client::{
    Client, Config, ConsumerKey, ConsumerRequest, Event, Outgoing, ProducerKey, ProducerRequest,
    Route,
};
use courser_core::frame::control::Control;
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::frame::{Kind, MESSAGE_HEADER_SIZE};
use courser_core::id::PartitionIndex;
use courser_core::limits;
use courser_core::name::{Destination, DestinationKind};
use courser_core::time::{Monotonic, Now, Wall};

use crate::heap;
use crate::script::{Names, Recipe, Script};

/// Requests of a case for producers and consumers: each may cost a table.
const OPENINGS_MAX: usize = 6;
/// What an opening may cost: a window of the most sends, and a count for each of
/// the most partitions.
const OPENING_SIZE: u64 = 256 << 10;
/// What a client, its broker and the books take beside that.
const TABLES_MAX: u64 = 256 << 10;
/// Sends wait so long for their outcome, or for ever.
const DEADLINES: [Option<Duration>; 3] = [
    None,
    Some(Duration::from_millis(500)),
    Some(Duration::from_secs(20)),
];

/// Runs a case.
///
/// # Panics
///
/// If something does not hold.
pub fn run(case: &[u8]) {
    play(case);
}

/// What became of a case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sends that were taken.
    pub sent: u64,
    /// Of these, those that were stored, as far as the client was told.
    pub stored: u64,
    /// Messages that the application was handed.
    pub handed: u64,
    /// Producers and consumers that were opened.
    pub opened: u64,
    /// Of these, those that were closed in order.
    pub closed: u64,
}

/// Runs a case, and says what became of it.
///
/// # Panics
///
/// If something does not hold.
pub fn play(case: &[u8]) -> Tally {
    let (mut allowed, mut tally) = (0, Tally::default());
    let peak = heap::peak(|| {
        let mut scene = Scene::new();
        let mut script = Script::new(case);
        while let Some(step) = script.step() {
            scene.act(step, &mut script);
        }
        scene.end();
        allowed = TABLES_MAX
            + scene.openings as u64 * OPENING_SIZE
            + 4 * (scene.said_by_broker + scene.sent_by_application) as u64
            + 2 * case.len() as u64;
        tally = scene.tally;
    });
    assert!(
        peak <= allowed,
        "{peak} bytes were in use, and there is reason for {allowed}"
    );
    tally
}

/// One application, its client, and the broker.
struct Scene {
    client: Client,
    now: Now,
    producers: Vec<ProducerKey>,
    consumers: Vec<ConsumerKey>,
    /// Of each producer, sends that were taken and outcomes that came.
    books: HashMap<usize, Books>,
    broker: Broker,
    /// What leaves does so only when the case says.
    held: bool,
    openings: usize,
    said_by_broker: usize,
    sent_by_application: usize,
    ended: bool,
    tally: Tally,
}

#[derive(Clone, Copy, Debug, Default)]
struct Books {
    sent: u64,
    completed: u64,
}

/// What the broker has heard and given.
#[derive(Debug, Default)]
struct Broker {
    waiting: Vec<u8>,
    /// Requests without an answer.
    requests: Vec<u32>,
    /// Handles that it gave out.
    handles: Vec<u32>,
    /// Of each handle, what was granted and what came: frame bytes, messages.
    granted: HashMap<u32, (u64, u64)>,
    received: HashMap<u32, (u64, u64)>,
    /// Where the next announced message stands.
    announced: (u32, u64),
    /// Of each handle, the next send without an outcome.
    next: HashMap<u32, u64>,
}

impl Scene {
    fn new() -> Self {
        let now = Now {
            monotonic: Monotonic(1_000_000_000),
            wall: Wall(1_700_000_000_000_000_000),
        };
        let mut client = Client::new(Config {
            name: "fuzz".into(),
            ..Config::default()
        });
        client.connected(now.monotonic);
        let mut scene = Self {
            client,
            now,
            producers: Vec::new(),
            consumers: Vec::new(),
            books: HashMap::new(),
            broker: Broker::default(),
            held: false,
            openings: 0,
            said_by_broker: 0,
            sent_by_application: 0,
            ended: false,
            tally: Tally::default(),
        };
        scene.leave(usize::MAX);
        scene
    }

    fn act(&mut self, step: u8, script: &mut Script<'_>) {
        match step % 12 {
            0..=2 => {
                let piece = script.byte();
                let frame = Recipe::read(script).frame(&mut BrokerNames(&mut self.broker));
                self.broker.given(&frame);
                self.hear(&frame, piece);
            }
            3 => {
                let piece = script.byte();
                self.hear(script.bytes(), piece);
            }
            4 => self.ask_for_producer(script.byte(), script.byte()),
            5 => self.ask_for_consumer(script.byte(), script.byte()),
            6 => self.send(script.byte(), script.byte(), script.byte()),
            7 => self.take(script.byte(), script.byte()),
            8 => self.ask(script.byte(), script.byte()),
            9 => {
                let passed = Duration::from_millis(100 * u64::from(script.byte()));
                self.now.monotonic = self.now.monotonic.after(passed);
                self.client.expire(self.now.monotonic);
                let next = self.client.next_deadline();
                assert!(next > self.now.monotonic, "a deadline that has passed");
            }
            10 => {
                let count = script.byte();
                self.held = count > 0;
                self.leave(usize::from(count));
            }
            _ => self.client.closed(),
        }
        if !self.held {
            self.leave(usize::MAX);
        }
        self.look();
    }

    fn hear(&mut self, bytes: &[u8], piece: u8) {
        self.said_by_broker += bytes.len();
        let piece = match piece {
            0 => usize::MAX,
            size => usize::from(size).max(bytes.len() / 1024),
        };
        for piece in bytes.chunks(piece) {
            self.client.received(piece);
        }
    }

    fn ask_for_producer(&mut self, size: u8, partitions: u8) {
        if self.openings == OPENINGS_MAX {
            return;
        }
        let request = ProducerRequest {
            partitions: partitions.into(),
            messages_in_flight_max: u32::from(size) + 1,
            bytes_in_flight_max: 300 * (u32::from(size) + 1),
            ..ProducerRequest::new(queue())
        };
        self.openings += usize::from(self.client.open_producer(request).is_ok());
    }

    fn ask_for_consumer(&mut self, messages: u8, bytes: u8) {
        if self.openings == OPENINGS_MAX {
            return;
        }
        let request = ConsumerRequest {
            messages_max: u32::from(messages) + 1,
            bytes_max: 64 * (u32::from(bytes) + 1),
            ..ConsumerRequest::new(queue())
        };
        self.openings += usize::from(self.client.open_consumer(request).is_ok());
    }

    fn send(&mut self, what: u8, route: u8, size: u8) {
        let Some(key) = chosen(&self.producers, what) else {
            return;
        };
        let body = vec![size; usize::from(size) * 16];
        let deadline = DEADLINES[usize::from(route >> 4) % DEADLINES.len()];
        let message = Outgoing {
            properties: &[],
            body: &body,
            route: match route % 4 {
                0 | 1 => Route::Turn,
                2 => Route::Key(route.into()),
                _ => Route::Partition(PartitionIndex(u32::from(route >> 2) % 8)),
            },
            durability: None,
            deadline: deadline.map_or(Monotonic::NEVER, |it| self.now.monotonic.after(it)),
        };
        let books = self.books.entry(key.index()).or_default();
        if let Ok(sequence) = self.client.send(self.now, key, &message) {
            books.sent += 1;
            self.tally.sent += 1;
            assert_eq!(sequence.0, books.sent, "sends are counted from 1");
            self.sent_by_application += MESSAGE_HEADER_SIZE + body.len() + 8;
        }
    }

    fn take(&mut self, what: u8, how: u8) {
        let Some(key) = chosen(&self.consumers, what) else {
            return;
        };
        let Some(message) = self.client.poll_message(key) else {
            return;
        };
        self.tally.handed += 1;
        let position = message.position();
        std::hint::black_box((message.id(), message.body(), message.properties().count()));
        // Whether it is taken is not the question: the link may be gone.
        let _taken = match how % 4 {
            0 => self.client.acknowledge(key, position),
            1 => self.client.acknowledge_through(key, position),
            2 => self.client.acknowledge_run(key, position, u64::from(how)),
            _ => Ok(()),
        };
    }

    fn ask(&mut self, what: u8, how: u8) {
        let producer = chosen(&self.producers, what);
        let consumer = chosen(&self.consumers, what);
        let now = self.now.monotonic;
        match (how % 9, producer, consumer) {
            (0, Some(key), _) => drop(self.client.close_producer(key)),
            (1, _, Some(key)) => drop(self.client.close_consumer(key)),
            (2, _, Some(key)) => drop(self.client.confirm(key)),
            (3, _, Some(key)) if self.client.forget_consumer(key) => {
                self.consumers.retain(|other| *other != key);
            }
            (4, Some(key), _) => self.forget(key),
            (5, ..) => drop(self.client.ping(now)),
            (6, ..) => drop(self.client.ask_stats()),
            (7, ..) => drop(self.client.lookup(queue())),
            (8, ..) => self.client.goodbye(),
            _ => {}
        }
    }

    /// Forgets a producer whose outcomes were all taken.
    fn forget(&mut self, key: ProducerKey) {
        self.look();
        if self.client.forget_producer(key) {
            let books = self.books.remove(&key.index()).unwrap_or_default();
            assert_eq!(books.sent, books.completed, "forgotten without outcomes");
            self.producers.retain(|other| *other != key);
        }
    }

    /// So many bytes of what the client has to say reach the broker, or all.
    fn leave(&mut self, mut most: usize) {
        loop {
            let pieces = self.client.pieces();
            let mut taken = 0;
            for slice in pieces.slices() {
                assert!(!slice.is_empty(), "an empty piece");
                let size = slice.len().min(most);
                self.broker.hear(&slice[..size]);
                taken += size;
                most -= size;
            }
            if taken == 0 {
                return;
            }
            self.client.sent(taken);
        }
    }

    /// Takes events and outcomes, and compares them with the books.
    fn look(&mut self) {
        while let Some(event) = self.client.poll_event() {
            assert!(!self.ended, "{event:?} behind the end");
            match event {
                Event::ProducerOpened { producer, .. } => {
                    self.books.insert(producer.index(), Books::default());
                    self.producers.push(producer);
                    self.tally.opened += 1;
                }
                Event::ConsumerOpened { consumer, .. } => {
                    self.consumers.push(consumer);
                    self.tally.opened += 1;
                }
                Event::ProducerClosed { .. } | Event::ConsumerClosed { .. } => {
                    self.tally.closed += 1;
                }
                Event::Ended(_) => self.ended = true,
                _ => {}
            }
        }
        for key in &self.producers {
            let books = self.books.entry(key.index()).or_default();
            while let Some(completion) = self.client.poll_completion(*key) {
                books.completed += 1;
                self.tally.stored += u64::from(completion.result.is_ok());
                assert_eq!(completion.sequence.0, books.completed, "outcomes in order");
            }
            let left = self.client.outstanding(*key);
            assert_eq!(left, books.sent - books.completed, "sends without outcome");
        }
        while self.client.next_completed().is_some() {}
        assert_eq!(self.client.end().is_some(), self.client.wants_close());
        if self.client.wants_close() {
            assert!(self.ended, "an end that nobody was told of");
            assert!(!self.client.has_pieces() && self.client.pieces().is_empty());
        }
    }

    fn end(&mut self) {
        self.client.closed();
        self.look();
        assert!(self.ended && self.client.wants_close());
        for (key, books) in &self.books {
            assert_eq!(
                books.sent, books.completed,
                "every send of producer {key} has an outcome once the link is gone"
            );
        }
    }
}

impl Broker {
    /// Notes what a frame that it says gives away, if it is a frame.
    fn given(&mut self, bytes: &[u8]) {
        let Ok(Step::Frame(Frame::Control { subject, control }, _)) = decode(bytes) else {
            return;
        };
        match control {
            Control::ProducerOpened(fields, _) => {
                let handle = fields.handle.get();
                self.handles.push(handle);
                let position = (fields.bytes.get(), fields.messages.get());
                // Twice the same handle ends the link, or names a new producer.
                self.granted.insert(handle, position);
                self.received.insert(handle, (0, 0));
                self.next.insert(handle, 1);
            }
            Control::ConsumerOpened(fields, _) => self.handles.push(fields.handle.get()),
            Control::Credit(fields, _) => {
                let granted = self.granted.entry(subject).or_default();
                granted.0 = granted.0.max(fields.bytes.get());
                granted.1 = granted.1.max(fields.messages.get());
            }
            Control::Delivery(fields, _) => {
                self.announced = (fields.partition.get(), fields.offset.get());
            }
            _ => {}
        }
    }

    /// Takes in what the client said, which has to be whole frames within credit.
    fn hear(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
        let waiting = core::mem::take(&mut self.waiting);
        let mut rest = &waiting[..];
        loop {
            match decode(rest) {
                Ok(Step::Frame(frame, size)) => {
                    self.frame(&frame, size);
                    rest = &rest[size..];
                }
                Ok(Step::Incomplete(_)) => break,
                Err(error) => panic!("the client sent what is no frame: {error}"),
            }
        }
        self.waiting = rest.to_vec();
    }

    fn frame(&mut self, frame: &Frame<'_>, size: usize) {
        match frame {
            Frame::Message(message) => {
                let handle = message.header.handle.get();
                let granted = self.granted.get(&handle).copied().unwrap_or_default();
                let received = self.received.entry(handle).or_default();
                received.0 += size as u64;
                received.1 += 1;
                assert!(
                    received.0 <= granted.0 && received.1 <= granted.1,
                    "{received:?} came, {granted:?} was granted"
                );
            }
            Frame::Control { subject, control } => {
                let code = control.kind() as u8;
                assert!(code < 0x40, "a client says {:?}", control.kind());
                if !is_about_a_handle(control.kind()) {
                    self.requests.push(*subject);
                }
            }
        }
    }
}

/// Whether the frame is answered by its handle, if at all, and not by a request.
fn is_about_a_handle(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Hello
            | Kind::WantCredit
            | Kind::Allow
            | Kind::Acknowledge
            | Kind::Return
            | Kind::Batch
            | Kind::Goodbye
    )
}

/// What a broker's frame can name: subject 0 is the oldest request, up to 63 one of
/// those without an answer, from 64 a handle that it gave out, from 128 a number.
/// With word 1 an opening gives out a new handle, outcomes begin with the next send
/// that has none, and a message stands where it was announced; from 64 the first
/// word of the fields is a handle that it gave out.
struct BrokerNames<'a>(&'a mut Broker);

impl Names for BrokerNames<'_> {
    fn stamp(&mut self, frame: &mut [u8], kind: Option<Kind>, subject: u8, word: u8) {
        let broker = &mut *self.0;
        if kind == Some(Kind::Message) {
            if word == 1 {
                let (partition, offset) = broker.announced;
                frame[12..16].copy_from_slice(&partition.to_le_bytes());
                frame[16..24].copy_from_slice(&offset.to_le_bytes());
                broker.announced.1 = offset.wrapping_add(1);
            }
            return;
        }
        let named = match subject {
            0 if broker.requests.is_empty() => 0,
            0 => broker.requests.remove(0),
            1..64 => chosen(&broker.requests, subject - 1).unwrap_or(subject.into()),
            64..128 => chosen(&broker.handles, subject - 64).unwrap_or(subject.into()),
            128.. => u32::from(subject - 128),
        };
        frame[12..16].copy_from_slice(&named.to_le_bytes());
        if word >= 64 {
            let handle = chosen(&broker.handles, word - 64);
            if let (Some(handle), Some(first)) = (handle, frame.get_mut(16..20)) {
                first.copy_from_slice(&handle.to_le_bytes());
            }
        }
        match kind.filter(|_| word == 1) {
            Some(Kind::ProducerOpened | Kind::ConsumerOpened) => {
                let handle = 1 + u32::try_from(broker.handles.len()).unwrap_or(u32::MAX);
                if let Some(first) = frame.get_mut(16..20) {
                    first.copy_from_slice(&handle.to_le_bytes());
                }
            }
            Some(Kind::Completions) => {
                let next = broker.next.entry(named).or_insert(1);
                let count = frame.get(48..52).and_then(|it| it.first_chunk());
                let count = count.map_or(0, |it| u32::from_le_bytes(*it));
                if let Some(sequence) = frame.get_mut(24..32) {
                    sequence.copy_from_slice(&next.to_le_bytes());
                    *next += u64::from(count);
                }
            }
            _ => {}
        }
    }
}

fn queue() -> Destination {
    Destination::new(DestinationKind::Queue, "q").expect("a name")
}

fn chosen<T: Copy>(among: &[T], index: u8) -> Option<T> {
    let index = usize::from(index).checked_rem(among.len())?;
    among.get(index).copied()
}

const _: () = assert!(
    OPENING_SIZE > 8 * limits::PARTITIONS_MAX as u64 + 64 * limits::IN_FLIGHT_MESSAGES_MAX as u64
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds;

    /// A seed that no longer gets as far as it should is a target that lost its depth.
    #[test]
    fn seeds_reach_outcomes_messages_and_an_orderly_end() {
        let tally = |name: &str| {
            let mut seeds = seeds::of("client").into_iter();
            let seed = seeds.find(|seed| seed.name == format!("seed-{name}"));
            play(&seed.expect("a seed of this name").bytes)
        };
        let outcomes = tally("outcomes");
        assert_eq!((outcomes.sent, outcomes.stored), (4, 1));
        let delivered = tally("delivered");
        assert_eq!((delivered.opened, delivered.closed), (2, 2));
        assert_eq!(delivered.handed, 4);
    }
}
