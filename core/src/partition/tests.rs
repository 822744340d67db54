//! A partition against a model of a few sets, whatever happens in which order.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::log::{Cursor, Run, RunLimit};
use super::*;
use crate::frame::encode::{Envelope, message, message_size};
use crate::frame::{MESSAGE_HEADER_SIZE, MessageHeader, checksum};
use crate::id::{BatchNumber, DestinationNumber, PartitionIndex, ProducerId, Sequence};
use crate::memory::CHUNK;
use crate::time::{Monotonic, Wall};

mod rounds;
mod segments;

const CHUNKS: u32 = 24;
const SUBSCRIPTIONS: usize = 4;
const CONSUMERS: usize = 3;
const ADDRESS: Address = Address {
    destination: DestinationNumber(77),
    partition: PartitionIndex(3),
};
const EVERYTHING: RunLimit = RunLimit {
    messages: u64::MAX,
    bytes: u64::MAX,
};

/// A frame as its sender encodes it, different for each number.
fn frame(number: u64, body: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..body as u64)
        .map(|byte| (number.wrapping_mul(37) + byte * 11) as u8)
        .collect();
    let envelope = Envelope {
        handle: Handle(9),
        producer: ProducerId(number % 5),
        sequence: Sequence(number + 1),
        ..Envelope::default()
    };
    let mut frame = vec![0; message_size(0, body.len())];
    message(&envelope, &[], &body, &mut frame);
    frame
}

/// The frame's bytes in a chain of chunks; `None` if the arena has too few.
fn chained(arena: &mut Arena, frame: &[u8]) -> Option<crate::memory::ChunkId> {
    if arena.free() < frame.len().div_ceil(CHUNK) {
        return None;
    }
    let mut chain = None;
    for piece in frame.chunks(CHUNK) {
        let chunk = arena.take().unwrap();
        arena.bytes_mut(chunk)[..piece.len()].copy_from_slice(piece);
        if let Some((_, last)) = chain {
            arena.chain(last, chunk);
        }
        chain = Some((chain.map_or(chunk, |(head, _)| head), chunk));
    }
    chain.map(|(head, _)| head)
}

/// The run's bytes, gathered along the chain.
fn gathered(arena: &Arena, run: Run) -> Vec<u8> {
    let (mut bytes, mut chunk, mut start) = (Vec::new(), run.chunk, run.start);
    while bytes.len() < run.bytes {
        let length = (run.bytes - bytes.len()).min(CHUNK - start);
        bytes.extend_from_slice(&arena.bytes(chunk)[start..start + length]);
        chunk = arena.next(chunk);
        start = 0;
    }
    bytes
}

fn append_time(offset: u64) -> Wall {
    Wall(1_000_000 + offset)
}

/// Asserts that the run holds what was sent: the sender's bytes untouched and
/// their checksum right, the broker's half stamped.
fn assert_intact(arena: &Arena, run: Run, sent: &[Vec<u8>]) {
    let bytes = gathered(arena, run);
    let mut at = 0;
    for offset in run.first.0..run.first.0 + u64::from(run.count) {
        let sent = &sent[offset as usize];
        let kept = &bytes[at..at + sent.len()];
        assert_eq!(kept[..8], sent[..8], "the prefix of {offset}");
        assert!(kept[32..] == sent[32..], "the sender's half of {offset}");
        let (header, _) = MessageHeader::ref_from_prefix(kept).unwrap();
        assert_eq!(header.handle.get(), ADDRESS.destination.0);
        assert_eq!(header.partition.get(), ADDRESS.partition.0);
        assert_eq!(header.offset.get(), offset);
        assert_eq!(header.append_time.get(), append_time(offset).0);
        let length = header.length.get() as usize;
        assert_eq!(checksum::message(&kept[..length]), header.checksum.get());
        at += sent.len();
    }
    assert_eq!(at, bytes.len(), "a run is its frames and nothing else");
}

/// What a subscription may still expect. What is in none of its sets is settled.
struct Model {
    handle: Handle,
    waiting: BTreeSet<u64>,
    /// Offset to how often it was handed out.
    returned: BTreeMap<u64, u16>,
    /// Offset to when it returns, and how often it was handed out.
    resting: BTreeMap<u64, (u64, u16)>,
    held: BTreeMap<u64, Held>,
    /// Where the next fresh run is looked for.
    fresh: u64,
    consumers: [Consumer; CONSUMERS],
}

#[derive(Clone, Copy)]
struct Held {
    consumer: usize,
    delivery: u64,
    count: u16,
    /// Never returned.
    first: bool,
}

#[derive(Clone, Copy)]
struct Consumer {
    handle: Handle,
    /// The number of its next delivery.
    next: u64,
}

impl Model {
    fn held_by(&self, consumer: usize, range: impl Fn(u64) -> bool) -> Vec<u64> {
        self.held
            .iter()
            .filter(|(offset, held)| held.consumer == consumer && range(**offset))
            .map(|(offset, _)| *offset)
            .collect()
    }

    fn owes(&self, offset: u64) -> bool {
        self.waiting.contains(&offset)
            || self.returned.contains_key(&offset)
            || self.resting.contains_key(&offset)
            || self.held.contains_key(&offset)
    }
}

/// A piece that the kernel still reads.
struct Pinned {
    run: Run,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        body: usize,
        times: usize,
    },
    Adopt {
        body: usize,
    },
    Subscribe {
        from: Start,
    },
    Unsubscribe {
        which: usize,
    },
    Deliver {
        which: usize,
        consumer: usize,
        messages: u64,
        bytes: u64,
        pin: bool,
    },
    Acknowledge {
        which: usize,
        consumer: usize,
        at: Pick,
        count: u64,
    },
    AcknowledgeThrough {
        which: usize,
        consumer: usize,
        at: Pick,
    },
    /// Takes all there is and settles it but for every `spare`-th.
    Drain {
        which: usize,
        consumer: usize,
        spare: usize,
    },
    ConsumerGone {
        which: usize,
        consumer: usize,
        unseen: u64,
    },
    /// Gives back, to return at once or after so much time.
    GiveBack {
        which: usize,
        consumer: usize,
        at: Pick,
        count: u64,
        rest: Option<u64>,
    },
    /// Time passes.
    Pass {
        time: u64,
    },
    Unpin {
        which: usize,
    },
    ThinOut,
}

#[derive(Clone, Copy, Debug)]
enum Start {
    Earliest,
    Latest,
    At(u64),
}

/// Which offset an acknowledgement names.
#[derive(Clone, Copy, Debug)]
enum Pick {
    /// One that some consumer holds.
    Held(usize),
    /// Any, also beyond the end.
    Any(u64),
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        6 => any::<usize>().prop_map(Pick::Held),
        1 => (0..400u64).prop_map(Pick::Any),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let append = prop_oneof![
        4 => (0..100usize, 1..40usize),
        4 => (500..6000usize, 1..20usize),
        1 => (20_000..CHUNK - MESSAGE_HEADER_SIZE, 1..3usize),
    ];
    let start = prop_oneof![
        Just(Start::Earliest),
        Just(Start::Latest),
        (0..400u64).prop_map(Start::At),
    ];
    let (which, consumer) = (0..SUBSCRIPTIONS, 0..CONSUMERS);
    prop_oneof![
        12 => append.prop_map(|(body, times)| Step::Append { body, times }),
        1 => (CHUNK..4 * CHUNK).prop_map(|body| Step::Adopt { body }),
        1 => start.prop_map(|from| Step::Subscribe { from }),
        1 => which.clone().prop_map(|which| Step::Unsubscribe { which }),
        12 => (
            which.clone(),
            consumer.clone(),
            prop_oneof![1..30u64, Just(u64::MAX)],
            prop_oneof![1..50_000u64, Just(u64::MAX)],
            prop::bool::weighted(0.1),
        )
            .prop_map(|(which, consumer, messages, bytes, pin)| Step::Deliver {
                which, consumer, messages, bytes, pin,
            }),
        10 => (which.clone(), consumer.clone(), pick(), 0..100u64).prop_map(
            |(which, consumer, at, count)| Step::Acknowledge { which, consumer, at, count }
        ),
        4 => (which.clone(), consumer.clone(), pick()).prop_map(
            |(which, consumer, at)| Step::AcknowledgeThrough { which, consumer, at }
        ),
        6 => (which.clone(), consumer.clone(), prop_oneof![2..60usize, Just(usize::MAX)])
            .prop_map(|(which, consumer, spare)| Step::Drain { which, consumer, spare }),
        2 => (which.clone(), consumer.clone(), 0..30u64).prop_map(
            |(which, consumer, unseen)| Step::ConsumerGone { which, consumer, unseen }
        ),
        4 => (which, consumer, pick(), 0..20u64, prop::option::of(1..50u64)).prop_map(
            |(which, consumer, at, count, rest)| {
                Step::GiveBack { which, consumer, at, count, rest }
            }
        ),
        4 => (1..30u64).prop_map(|time| Step::Pass { time }),
        2 => (0..8usize).prop_map(|which| Step::Unpin { which }),
        3 => Just(Step::ThinOut),
    ]
}

/// The partition beside its model.
struct World {
    arena: Arena,
    partition: Partition,
    /// Every frame ever appended, by offset.
    sent: Vec<Vec<u8>>,
    models: Vec<Model>,
    pinned: Vec<Pinned>,
    retain: u64,
    segments: Option<segments::Segments>,
    handles: u32,
    now: u64,
}

impl World {
    fn new(retain: u64) -> Self {
        let mut world = Self {
            arena: Arena::new(CHUNKS),
            partition: Partition::new(ADDRESS, retain),
            sent: Vec::new(),
            models: Vec::new(),
            pinned: Vec::new(),
            retain,
            segments: None,
            handles: 0,
            now: 0,
        };
        world.subscribe(Start::Earliest);
        world
    }

    fn handle(&mut self) -> Handle {
        self.handles += 1;
        Handle::new(self.handles % 8, self.handles)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { body, times } => {
                for _ in 0..times {
                    self.append(body);
                }
            }
            Step::Adopt { body } => self.adopt(body),
            Step::Subscribe { from } => self.subscribe(from),
            Step::Unsubscribe { which } => {
                if which < self.models.len() {
                    let model = self.models.remove(which);
                    self.partition.unsubscribe(&mut self.arena, model.handle);
                }
            }
            Step::Deliver {
                which,
                consumer,
                messages,
                bytes,
                pin,
            } => {
                let run = self.deliver(which, consumer, RunLimit { messages, bytes });
                if let Some(run) = run.filter(|_| pin) {
                    self.partition.log.pin(run.first);
                    let bytes = gathered(&self.arena, run);
                    self.pinned.push(Pinned { run, bytes });
                }
            }
            Step::Acknowledge {
                which,
                consumer,
                at,
                count,
            } => {
                self.acknowledge(which, consumer, at, count);
            }
            Step::AcknowledgeThrough {
                which,
                consumer,
                at,
            } => {
                self.acknowledge_through(which, consumer, at);
            }
            Step::Drain {
                which,
                consumer,
                spare,
            } => self.drain(which, consumer, spare),
            Step::ConsumerGone {
                which,
                consumer,
                unseen,
            } => {
                self.consumer_gone(which, consumer, unseen);
            }
            Step::GiveBack {
                which,
                consumer,
                at,
                count,
                rest,
            } => self.give_back(which, consumer, (at, count), rest),
            Step::Pass { time } => self.pass(time),
            Step::Unpin { which } => {
                if which < self.pinned.len() {
                    let pinned = self.pinned.remove(which);
                    self.partition.log.unpin(&mut self.arena, pinned.run.first);
                }
            }
            Step::ThinOut => {
                self.partition.thin_out(&mut self.arena);
            }
        }
        self.look_at_segments();
        self.check();
    }

    fn append(&mut self, body: usize) {
        let offset = self.sent.len() as u64;
        let frame = frame(offset, body);
        let claims = self.partition.claims();
        let free = self.arena.free();
        match self
            .partition
            .log
            .append(&mut self.arena, &frame, claims, append_time(offset))
        {
            Ok(given) => {
                assert_eq!(given.0, offset, "offsets are dense");
                self.appended(frame);
            }
            Err(log::ArenaFull) => assert_eq!(free, 0, "only a full arena refuses"),
        }
    }

    fn adopt(&mut self, body: usize) {
        let offset = self.sent.len() as u64;
        let frame = frame(offset, body);
        let Some(head) = chained(&mut self.arena, &frame) else {
            return;
        };
        let given = self.partition.log.adopt(
            &mut self.arena,
            head,
            frame.len(),
            self.partition.claims(),
            append_time(offset),
        );
        assert_eq!(given.0, offset, "offsets are dense");
        self.appended(frame);
    }

    fn appended(&mut self, frame: Vec<u8>) {
        for model in &mut self.models {
            model.waiting.insert(self.sent.len() as u64);
        }
        if let Some(segments) = &mut self.segments {
            segments.appended(self.sent.len() as u64, frame.len() as u64);
        }
        self.sent.push(frame);
    }

    fn subscribe(&mut self, from: Start) {
        if self.models.len() == SUBSCRIPTIONS {
            return;
        }
        let (first, next) = (self.partition.log.first().0, self.sent.len() as u64);
        let wanted = match from {
            Start::Earliest => 0,
            Start::Latest => u64::MAX,
            Start::At(offset) => offset,
        };
        let handle = self.handle();
        let start = self
            .partition
            .subscribe(&self.arena, handle, Offset(wanted))
            .0;
        assert_eq!(start, wanted.clamp(first, next));
        let kept = self.kept();
        let waiting = kept.range(start..).copied().collect();
        let consumers = [(); CONSUMERS].map(|()| Consumer {
            handle: self.handle(),
            // Close to where the low half of the number wraps.
            next: u64::from(u32::MAX - 20),
        });
        self.models.push(Model {
            handle,
            waiting,
            returned: BTreeMap::new(),
            resting: BTreeMap::new(),
            held: BTreeMap::new(),
            fresh: start,
            consumers,
        });
    }

    /// The offsets in the log, whose bytes are intact.
    fn kept(&mut self) -> BTreeSet<u64> {
        let mut kept = BTreeSet::new();
        let mut cursor = Cursor::at(self.partition.log.first());
        while let Some(run) = self
            .partition
            .log
            .read(&self.arena, &mut cursor, EVERYTHING)
        {
            assert_intact(&self.arena, run, &self.sent);
            kept.extend(run.first.0..run.first.0 + u64::from(run.count));
        }
        kept
    }

    fn deliver(&mut self, which: usize, consumer: usize, limit: RunLimit) -> Option<Run> {
        let model = self.models.get_mut(which)?;
        let part = part(&mut self.partition.parts, model.handle);
        let Consumer { handle, next } = model.consumers[consumer];
        let log = &mut self.partition.log;
        let ready = part.ready(log);
        let delivered = part.deliver(&self.arena, log, handle, next, limit);
        assert_eq!(
            ready,
            delivered.is_some(),
            "ready says what a delivery finds"
        );
        let Some(delivered) = delivered else {
            assert!(
                model.returned.is_empty() && model.waiting.is_empty(),
                "nothing is lost"
            );
            return None;
        };
        let run = delivered.run;
        let first = model.returned.is_empty();
        if let Some((offset, count)) = model.returned.pop_first() {
            assert_eq!(
                (run.first.0, run.count),
                (offset, 1),
                "returned ones come first"
            );
            assert_eq!(delivered.count, count + 1);
        } else {
            assert_eq!(delivered.count, 1);
            assert_eq!(Some(run.first.0), model.waiting.first().copied());
            assert!((1..=limit.messages).contains(&u64::from(run.count)));
            model.fresh = run.first.0 + u64::from(run.count);
        }
        let mut bytes = 0;
        for offset in run.first.0..run.first.0 + u64::from(run.count) {
            assert!(
                bytes < limit.bytes,
                "a run ends with the frame that reaches its limit"
            );
            bytes += self.sent[offset as usize].len() as u64;
            assert!(delivered.count > 1 || model.waiting.remove(&offset) || model.fresh > offset);
            let delivery = next + (offset - run.first.0);
            let count = delivered.count;
            let held = Held {
                consumer,
                delivery,
                count,
                first,
            };
            assert!(
                model.held.insert(offset, held).is_none(),
                "{offset} is held once"
            );
        }
        assert_eq!(bytes, run.bytes as u64);
        model.consumers[consumer].next += u64::from(run.count);
        assert_intact(&self.arena, run, &self.sent);
        Some(run)
    }

    fn give_back(
        &mut self,
        which: usize,
        consumer: usize,
        (at, count): (Pick, u64),
        rest: Option<u64>,
    ) {
        let Some(model) = self.models.get_mut(which) else {
            return;
        };
        let first = picked(model, at);
        let now = self.now;
        let until = |count: u16| rest.map(|rest| now + rest * u64::from(count));
        let mine = model.held_by(consumer, |offset| (first..first + count).contains(&offset));
        let handle = model.consumers[consumer].handle;
        let back = part(&mut self.partition.parts, model.handle).give_back(
            handle,
            Offset(first),
            count,
            |count| until(count).map(Monotonic),
        );
        assert_eq!(
            back as usize,
            mine.len(),
            "what the consumer holds, no more"
        );
        for offset in mine {
            let held = model.held.remove(&offset).unwrap();
            match until(held.count) {
                Some(until) => {
                    model.resting.insert(offset, (until, held.count));
                }
                None => {
                    model.returned.insert(offset, held.count);
                }
            }
        }
    }

    fn pass(&mut self, time: u64) {
        self.now += time;
        for model in &mut self.models {
            let part = part(&mut self.partition.parts, model.handle);
            let next = model.resting.values().map(|(until, _)| *until).min();
            assert_eq!(part.next_return(), next.map(Monotonic));
            let rested: Vec<u64> = model
                .resting
                .iter()
                .filter(|(_, (until, _))| *until <= self.now)
                .map(|(offset, _)| *offset)
                .collect();
            assert_eq!(part.end_rest(Monotonic(self.now)) as usize, rested.len());
            for offset in rested {
                let (_, count) = model.resting.remove(&offset).unwrap();
                model.returned.insert(offset, count);
            }
        }
    }

    fn acknowledge(&mut self, which: usize, consumer: usize, at: Pick, count: u64) {
        let Some(model) = self.models.get_mut(which) else {
            return;
        };
        let first = picked(model, at);
        let end = first + count;
        let mine = model.held_by(consumer, |offset| (first..end).contains(&offset));
        let others = model.held.range(first..end).count() - mine.len();
        let strange = count == 0
            || end > model.fresh
            || others > 0
            || model.returned.range(first..end).next().is_some()
            || model.resting.range(first..end).next().is_some();
        let outcome = part(&mut self.partition.parts, model.handle).acknowledge(
            &mut self.arena,
            &mut self.partition.log,
            model.consumers[consumer].handle,
            Offset(first),
            count,
        );
        assert_eq!(
            (outcome.settled, outcome.strange),
            (mine.len() as u64, strange)
        );
        for offset in mine {
            model.held.remove(&offset);
        }
    }

    fn acknowledge_through(&mut self, which: usize, consumer: usize, at: Pick) {
        let Some(model) = self.models.get_mut(which) else {
            return;
        };
        let last = picked(model, at);
        let through = model
            .held
            .get(&last)
            .filter(|held| held.consumer == consumer)
            .map(|held| held.delivery);
        let mine: Vec<u64> = model
            .held_by(consumer, |_| true)
            .into_iter()
            .filter(|offset| {
                let held = model.held[offset];
                through.map_or(*offset <= last && held.first, |last| held.delivery <= last)
            })
            .collect();
        let outcome = part(&mut self.partition.parts, model.handle).acknowledge_through(
            &mut self.arena,
            &mut self.partition.log,
            model.consumers[consumer].handle,
            Offset(last),
        );
        assert_eq!(
            (outcome.settled, outcome.strange),
            (mine.len() as u64, last >= model.fresh)
        );
        for offset in mine {
            model.held.remove(&offset);
        }
    }

    fn drain(&mut self, which: usize, consumer: usize, spare: usize) {
        while self.deliver(which, consumer, EVERYTHING).is_some() {}
        let Some(model) = self.models.get(which) else {
            return;
        };
        for (index, offset) in model.held_by(consumer, |_| true).into_iter().enumerate() {
            if index % spare != spare - 1 {
                self.acknowledge(which, consumer, Pick::Any(offset), 1);
            }
        }
    }

    fn consumer_gone(&mut self, which: usize, consumer: usize, unseen: u64) {
        let successor = self.handle();
        let Some(model) = self.models.get_mut(which) else {
            return;
        };
        let Consumer { handle, next } = model.consumers[consumer];
        let handed = next - unseen;
        let back = part(&mut self.partition.parts, model.handle).consumer_gone(handle, handed);
        let mine = model.held_by(consumer, |_| true);
        assert_eq!(back as usize, mine.len());
        for offset in mine {
            let held = model.held.remove(&offset).unwrap();
            let reached = u16::from(held.delivery < handed);
            model.returned.insert(offset, held.count - 1 + reached);
        }
        model.consumers[consumer].handle = successor;
    }

    fn check(&mut self) {
        self.partition.audit(&self.arena);
        assert_eq!(
            self.arena.free() + self.partition.log.chunks(),
            CHUNKS as usize,
            "a chunk is free or in the log"
        );
        for pinned in &self.pinned {
            assert!(
                gathered(&self.arena, pinned.run) == pinned.bytes,
                "what the kernel reads stays where it is"
            );
        }
        for model in &self.models {
            let part = part(&mut self.partition.parts, model.handle);
            let unsettled = model.held.len() + model.returned.len() + model.resting.len();
            assert_eq!(part.unsettled() as usize, unsettled);
            assert_eq!(
                part.backlog(&self.arena, &self.partition.log) as usize,
                unsettled + model.waiting.len()
            );
            assert_eq!(
                part.ready(&self.partition.log),
                !model.returned.is_empty() || !model.waiting.is_empty()
            );
        }
    }

    /// Everyone takes and settles all there is; then nothing is left to keep.
    fn finish(mut self) {
        for pinned in core::mem::take(&mut self.pinned) {
            self.partition.log.unpin(&mut self.arena, pinned.run.first);
        }
        let kept = self.kept();
        for offset in 0..self.sent.len() as u64 {
            let owed = self.models.iter().any(|model| model.owes(offset));
            assert!(!owed || kept.contains(&offset), "{offset} is owed and kept");
        }
        self.pass(1 << 40);
        for which in 0..self.models.len() {
            for consumer in 0..CONSUMERS {
                self.consumer_gone(which, consumer, 0);
            }
            while self.deliver(which, 0, EVERYTHING).is_some() {}
            self.acknowledge(which, 0, Pick::Any(0), self.sent.len() as u64);
            self.check();
        }
        let bytes: u64 = self
            .kept()
            .into_iter()
            .map(|offset| self.sent[offset as usize].len() as u64)
            .sum();
        if self.segments.is_some() {
            self.look_at_segments();
            self.check();
        } else if self.retain == 0 {
            assert_eq!(bytes, 0, "what is settled is not kept");
            assert!(self.partition.log.chunks() <= 1, "one open chunk stays");
        } else {
            let all: u64 = self.sent.iter().map(|frame| frame.len() as u64).sum();
            // Of what is larger than a chunk all is kept or nothing.
            let large = self.sent.iter().map(Vec::len).filter(|size| *size > CHUNK);
            let large = large.max().unwrap_or(0) as u64;
            assert!(
                bytes + large >= self.retain.min(all),
                "what is retained is kept"
            );
            // A chunk that is partly needed, and the one that is written on.
            let most = self.retain + 2 * CHUNK as u64;
            assert!(bytes <= most, "what is older is not kept");
        }
        self.partition.log.clear(&mut self.arena);
        assert_eq!(self.arena.free(), CHUNKS as usize, "all memory comes back");
    }
}

fn part(parts: &mut [(Handle, Part)], subscription: Handle) -> &mut Part {
    parts
        .iter_mut()
        .find(|(handle, _)| *handle == subscription)
        .map(|(_, part)| part)
        .unwrap()
}

fn picked(model: &Model, at: Pick) -> u64 {
    match at {
        Pick::Held(index) if !model.held.is_empty() => {
            *model.held.keys().nth(index % model.held.len()).unwrap()
        }
        Pick::Held(index) => index as u64 % 100,
        Pick::Any(offset) => offset,
    }
}

/// Many small messages, of which the first subscription settles all but a few.
fn settled_but_for_every(spare: usize) -> [Step; 3] {
    [
        Step::Append {
            body: 50,
            times: 2_000,
        },
        Step::Drain {
            which: 0,
            consumer: 0,
            spare,
        },
        Step::ThinOut,
    ]
}

/// A log that was thinned out has holes. A subscription from earliest that ended
/// before it had read over them took claims off messages that were not there.
#[test]
fn a_subscription_ends_before_it_has_read_over_the_holes_of_a_thinned_log() {
    let mut world = World::new(0);
    for step in &settled_but_for_every(100) {
        world.step(step);
    }
    world.step(&Step::Subscribe {
        from: Start::Earliest,
    });
    world.step(&Step::Deliver {
        which: 1,
        consumer: 0,
        messages: 1,
        bytes: 1,
        pin: false,
    });
    world.step(&Step::Unsubscribe { which: 1 });
    world.finish();
}

/// The same where whole segments are gone: the rest of the claims was kept for ever.
#[test]
fn a_subscription_ends_before_it_has_read_over_segments_that_are_gone() {
    let mut world = World::new(0);
    for step in &settled_but_for_every(1_500) {
        world.step(step);
    }
    world.step(&Step::Append {
        body: 50,
        times: 500,
    });
    world.step(&Step::Subscribe {
        from: Start::Earliest,
    });
    world.step(&Step::Unsubscribe { which: 1 });
    world.finish();
}

/// A subscription behind the last message that is left, but before the next
/// offset, called itself ready without end and never had anything to hand out.
#[test]
fn a_hole_at_the_end_of_the_log_makes_nobody_ready() {
    let mut world = World::new(0);
    for step in &settled_but_for_every(1_500) {
        world.step(step);
    }
    world.step(&Step::Subscribe {
        from: Start::At(1_999),
    });
    world.step(&Step::Deliver {
        which: 1,
        consumer: 0,
        messages: 1,
        bytes: 1,
        pin: false,
    });
    world.step(&Step::Append { body: 50, times: 1 });
    world.step(&Step::Deliver {
        which: 1,
        consumer: 0,
        messages: 1,
        bytes: 1,
        pin: false,
    });
    world.finish();
}

/// A segment that the kernel reads is left as it is. When it was the only one that
/// was thin, nothing remembered it after the kernel was done.
#[test]
fn a_segment_that_was_pinned_while_it_became_thin_is_thinned_out_afterwards() {
    let mut world = World::new(0);
    world.step(&Step::Append {
        body: 50,
        times: 500,
    });
    world.step(&Step::Deliver {
        which: 0,
        consumer: 0,
        messages: 10,
        bytes: 10_000,
        pin: true,
    });
    world.step(&Step::Drain {
        which: 0,
        consumer: 0,
        spare: 300,
    });
    world.step(&Step::Append {
        body: 50,
        times: 500,
    });
    world.step(&Step::Drain {
        which: 0,
        consumer: 1,
        spare: 150,
    });
    while world.partition.thin_out(&mut world.arena) {}
    world.check();
    assert!(!world.partition.log.wants_thinning());
    let pinned = world.partition.log.chunks();

    world.step(&Step::Unpin { which: 0 });
    assert!(world.partition.log.wants_thinning());
    while world.partition.thin_out(&mut world.arena) {}
    world.check();
    assert!(world.partition.log.chunks() < pinned);
    world.finish();
}

#[test]
fn thinning_out_goes_on_where_it_ended_and_so_gets_past_what_it_cannot_thin_out() {
    const FULL: u32 = 400;
    let mut arena = Arena::new(FULL + 8);
    let mut partition = Partition::new(ADDRESS, 0);
    let subscription = Handle::new(1, 1);
    partition.subscribe(&arena, subscription, Offset(0));
    let large = frame(0, CHUNK - MESSAGE_HEADER_SIZE);
    for _ in 0..FULL {
        let head = chained(&mut arena, &large).unwrap();
        partition.log.adopt(&mut arena, head, CHUNK, 1, Wall(0));
    }
    let small = frame(0, 50);
    let messages = 1_500;
    for _ in 0..messages {
        partition
            .log
            .append(&mut arena, &small, 1, Wall(0))
            .unwrap();
    }
    let (log, part) = (&mut partition.log, &mut partition.parts[0].1);
    while part
        .deliver(&arena, log, subscription, 0, EVERYTHING)
        .is_some()
    {}
    for offset in (0..messages).filter(|offset| offset % 500 != 250) {
        let offset = Offset(u64::from(FULL) + offset);
        part.acknowledge(&mut arena, log, subscription, offset, 1);
    }
    let before = partition.log.chunks();
    let calls = (1..20)
        .find(|_| !partition.thin_out(&mut arena))
        .expect("it comes to an end");
    assert!(calls > 1, "one call does a part of it");
    assert!(partition.log.chunks() < before);
    assert!(!partition.log.wants_thinning());
    partition.audit(&arena);
}

const RETAIN: u64 = 4 * CHUNK as u64;

impl World {
    fn kept_bytes(&mut self) -> u64 {
        self.kept()
            .into_iter()
            .map(|offset| self.sent[offset as usize].len() as u64)
            .sum()
    }

    /// The messages kept are the newest ones, as many as are retained and at most
    /// two segments more: the oldest one that is needed, and the open one.
    fn assert_retains_the_newest(&mut self) {
        let kept = self.kept();
        let next = self.sent.len() as u64;
        let first = self.partition.log.first().0;
        assert!(first > 0, "the oldest went");
        assert!(kept.iter().copied().eq(first..next), "the newest stay");
        let bytes = self.kept_bytes();
        assert!(
            (RETAIN..RETAIN + 2 * CHUNK as u64).contains(&bytes),
            "{bytes}"
        );
        assert!(self.partition.log.chunks() <= 4 + 2);
    }
}

#[test]
fn retention_keeps_the_newest_bytes_and_lets_the_oldest_segments_go() {
    let mut world = World::new(RETAIN);
    for _ in 0..100 {
        world.step(&Step::Append {
            body: 1_000,
            times: 40,
        });
        world.step(&Step::Drain {
            which: 0,
            consumer: 0,
            spare: usize::MAX,
        });
    }
    world.assert_retains_the_newest();
    assert!(
        !world.partition.thin_out(&mut world.arena),
        "nothing of it is thinned out"
    );
    world.assert_retains_the_newest();
    world.finish();
}

#[test]
fn retention_holds_without_any_subscription() {
    let mut world = World::new(RETAIN);
    world.step(&Step::Unsubscribe { which: 0 });
    for _ in 0..100 {
        world.step(&Step::Append {
            body: 1_000,
            times: 40,
        });
    }
    world.assert_retains_the_newest();
    world.finish();
}

#[test]
fn a_subscription_from_earliest_starts_at_the_first_message_that_is_kept() {
    let mut world = World::new(RETAIN);
    for _ in 0..30 {
        world.step(&Step::Append {
            body: 1_000,
            times: 40,
        });
        world.step(&Step::Drain {
            which: 0,
            consumer: 0,
            spare: usize::MAX,
        });
    }
    world.step(&Step::Subscribe {
        from: Start::Earliest,
    });
    let first = world.partition.log.first().0;
    assert!(first > 0);
    let run = world
        .deliver(
            1,
            0,
            RunLimit {
                messages: 1,
                bytes: 1,
            },
        )
        .unwrap();
    assert_eq!(run.first.0, first);
    world.step(&Step::Drain {
        which: 1,
        consumer: 0,
        spare: usize::MAX,
    });
    world.assert_retains_the_newest();
    world.finish();
}

#[test]
fn what_is_not_settled_outlasts_retention_until_it_is() {
    let mut world = World::new(RETAIN);
    world.step(&Step::Append {
        body: 1_000,
        times: 1,
    });
    let run = world.deliver(0, 1, EVERYTHING).unwrap();
    while world.partition.log.chunks() < 16 {
        world.step(&Step::Append {
            body: 1_000,
            times: 40,
        });
        world.step(&Step::Drain {
            which: 0,
            consumer: 0,
            spare: usize::MAX,
        });
    }
    assert_eq!(world.partition.log.first().0, 0);
    assert_eq!(
        world.kept().len(),
        world.sent.len(),
        "nothing goes out of turn"
    );
    world.acknowledge(0, 1, Pick::Any(run.first.0), 1);
    world.check();
    world.assert_retains_the_newest();
    world.finish();
}

#[test]
fn what_the_kernel_reads_outlasts_retention_until_it_is_read() {
    let mut world = World::new(RETAIN);
    world.step(&Step::Append {
        body: 1_000,
        times: 1,
    });
    world.step(&Step::Deliver {
        which: 0,
        consumer: 0,
        messages: 1,
        bytes: 1,
        pin: true,
    });
    while world.partition.log.chunks() < 16 {
        world.step(&Step::Append {
            body: 1_000,
            times: 40,
        });
        world.step(&Step::Drain {
            which: 0,
            consumer: 0,
            spare: usize::MAX,
        });
    }
    assert_eq!(world.partition.log.first().0, 0);
    world.step(&Step::Unpin { which: 0 });
    world.assert_retains_the_newest();
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_partition_does_what_its_model_does(
        retain in prop_oneof![3 => Just(0u64), 1 => 1..10 * CHUNK as u64],
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let mut world = World::new(retain);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}

/// What happens to a log of which some has to be flushed before it is shown.
#[derive(Clone, Copy, Debug)]
enum Flushing {
    /// So many messages, with as large bodies, hidden or not.
    Append(u64, usize, bool),
    /// The next message is in a later batch.
    NextBatch,
    /// So many more batches are durable.
    Show(u64),
    Read(u64),
}

fn flushing() -> impl Strategy<Value = Flushing> {
    prop_oneof![
        4 => (1..6_u64, 0..20_000_usize, any::<bool>())
            .prop_map(|(count, body, hidden)| Flushing::Append(count, body, hidden)),
        2 => Just(Flushing::NextBatch),
        2 => (1..4_u64).prop_map(Flushing::Show),
        3 => (1..20_u64).prop_map(Flushing::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 256 }))]

    #[test]
    fn readers_come_as_far_as_what_is_hidden(acts in prop::collection::vec(flushing(), 1..60)) {
        let mut arena = Arena::new(CHUNKS * 4);
        let mut log = Log::new(ADDRESS, u64::MAX / 2);
        let (mut open, mut durable) = (1_u64, 0_u64);
        // Of each message the batch that it waits for; 0 for none.
        let mut batches: Vec<u64> = Vec::new();
        let mut cursor = Cursor::at(Offset(0));
        for act in acts {
            match act {
                Flushing::Append(count, body, hidden) => {
                    for _ in 0..count {
                        let frame = frame(batches.len() as u64, body);
                        let time = append_time(batches.len() as u64);
                        let Ok(offset) = log.append(&mut arena, &frame, 1, time) else {
                            continue;
                        };
                        if hidden {
                            let is_first = log.hide(offset, BatchNumber(open));
                            let known = batches.contains(&open);
                            prop_assert_eq!(is_first, !known);
                        }
                        batches.push(if hidden { open } else { 0 });
                    }
                }
                Flushing::NextBatch => open += 1,
                Flushing::Show(more) => {
                    durable = (durable + more).min(open - 1);
                    log.show(BatchNumber(durable));
                }
                Flushing::Read(messages) => {
                    let shown = batches.iter().position(|batch| *batch > durable);
                    let shown = shown.unwrap_or(batches.len()) as u64;
                    let before = cursor.offset.0;
                    prop_assert_eq!(log.reaches(cursor.offset), before < shown);
                    prop_assert_eq!(log.look(&arena, &mut cursor).is_some(), before < shown);
                    let limit = RunLimit { messages, bytes: u64::MAX };
                    let run = log.read(&arena, &mut cursor, limit);
                    prop_assert_eq!(run.is_some(), before < shown);
                    prop_assert!(cursor.offset.0 <= shown, "{} of {shown}", cursor.offset);
                }
            }
            log.invariants();
        }
        log.show(BatchNumber(open));
        while log.read(&arena, &mut cursor, EVERYTHING).is_some() {}
        prop_assert_eq!(cursor.offset.0, batches.len() as u64);
        log.clear(&mut arena);
    }
}
