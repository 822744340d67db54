//! A shard whose device loses power at any time, held against what its clients were told:
//! every case is a life of several runs.
//!
//! ```text
//!  sends, acknowledgements, turns, writes that end, ─> cut: each write that was on its way
//!  checkpoints, as far as they come                   is there, is not, or is torn
//!         ^                                               |
//!         `── producers go on where they were told ── the next run: all is looked at
//! ```
#![allow(clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::durable::Device;
use super::*;
use crate::frame::control::WantCredit;

const NAME: &str = "/default/q";
/// The subscription, if it is a topic.
const SUBSCRIPTION: &str = "books";
const PARTITIONS: u32 = 2;
const PRODUCERS: usize = 3;

/// A send: whose, where to, and which of its sends there.
type Which = (usize, u32, u64);

#[derive(Clone, Debug)]
struct Send {
    sequence: u64,
    partition: u32,
    partition_sequence: u64,
    flushed: bool,
    size: usize,
}

/// A client with a producer, over all runs.
struct Sender {
    index: usize,
    peer: Peer,
    handle: Handle,
    /// 0 before it was opened.
    id: u64,
    epoch: u32,
    sequence: u64,
    partition_sequences: [u64; PARTITIONS as usize],
    /// Those of which it was not told, in their order.
    outstanding: VecDeque<Send>,
    credit: u64,
    spent: u64,
}

/// What was told of sends and deliveries.
#[derive(Default)]
struct Told {
    /// Where each send is, and whether it was flushed.
    places: BTreeMap<Which, (u64, bool)>,
    /// Who is at each offset, by partition.
    offsets: BTreeMap<(u32, u64), Which>,
    sizes: BTreeMap<Which, usize>,
    /// An acknowledgement of them was sent.
    acknowledged: BTreeSet<(u32, u64)>,
    /// And confirmed.
    confirmed: BTreeSet<(u32, u64)>,
    /// By the confirmation that they wait for.
    confirming: BTreeMap<u32, Vec<(u32, u64)>>,
    /// Flushed ones that a consumer saw: those are durable.
    seen: BTreeSet<(u32, u64)>,
    flushed: BTreeSet<Which>,
}

/// A consumer on a link of its own.
struct Reader {
    peer: Peer,
    handle: Handle,
    /// Delivered and not acknowledged.
    unsettled: Vec<(u32, u64)>,
    /// What was delivered.
    found: BTreeMap<(u32, u64), Which>,
}

struct World {
    device: Device,
    is_topic: bool,
    shard: Shard,
    senders: Vec<Sender>,
    reader: Option<Reader>,
    told: Told,
    confirm: u32,
}

fn body(which: Which, size: usize) -> Vec<u8> {
    let (producer, partition, sequence) = which;
    let mut body = Vec::with_capacity(size + 24);
    for word in [producer as u64, u64::from(partition), sequence] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.resize(size + 24, sequence as u8);
    body
}

fn whose(body: &[u8]) -> Which {
    let word = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    (word(0) as usize, word(8) as u32, word(16))
}

impl World {
    /// Of a queue, or of a topic with a subscription that is kept; with a checkpoint when so
    /// much was journalled.
    fn new(is_topic: bool, every: u64, has_pages: bool) -> Self {
        let mut device = Device::making_checkpoints(every);
        if has_pages {
            device = device.with_pages(4_096, true);
        }
        let mut shard = device.start();
        let senders = (0..PRODUCERS)
            .map(|index| Sender {
                index,
                peer: Peer::new(&mut shard),
                handle: Handle(0),
                id: 0,
                epoch: 0,
                sequence: 0,
                partition_sequences: [0; PARTITIONS as usize],
                outstanding: VecDeque::new(),
                credit: 0,
                spent: 0,
            })
            .collect();
        let mut world = Self {
            device,
            is_topic,
            shard,
            senders,
            reader: None,
            told: Told::default(),
            confirm: 0,
        };
        world.open();
        if is_topic {
            world.reader();
            world.leave();
        }
        world
    }

    /// Every producer is attached, and sends again what it was not told of.
    fn open(&mut self) {
        for index in 0..PRODUCERS {
            let sender = &mut self.senders[index];
            sender.peer = Peer::new(&mut self.shard);
            let fields = OpenProducer {
                session: sender.peer.session.into(),
                destination: u8::from(self.is_topic),
                destination_length: (NAME.len() as u16).into(),
                partitions: PARTITIONS.into(),
                producer: sender.id.into(),
                ..OpenProducer::default()
            };
            sender.peer.control(2, &fields, &[NAME.as_bytes()]);
            let mut answers = sender.peer.exchange(&mut self.shard);
            self.device.settle(&mut self.shard);
            answers.extend(take(&mut self.shard, sender.peer.link));
            let opened = frames(&answers).iter().find_map(|(frame, _)| match frame {
                Frame::Control {
                    control: Control::ProducerOpened(fields, _),
                    ..
                } => Some((
                    Handle(fields.handle.get()),
                    fields.producer.get(),
                    fields.epoch.get(),
                    fields.bytes.get(),
                )),
                _ => None,
            });
            let (handle, id, epoch, bytes) = opened.expect("it is known, or new");
            assert!(sender.id == 0 || sender.id == id && sender.epoch < epoch);
            (sender.handle, sender.id, sender.epoch) = (handle, id, epoch);
            (sender.credit, sender.spent) = (bytes, 0);
            let again: Vec<Send> = sender.outstanding.drain(..).collect();
            for send in again {
                self.write(index, send);
            }
        }
    }

    fn send(&mut self, index: usize, partition: u32, flushed: bool, size: usize) {
        let sender = &mut self.senders[index];
        sender.sequence += 1;
        let count = &mut sender.partition_sequences[partition as usize];
        *count += 1;
        let send = Send {
            sequence: sender.sequence,
            partition,
            partition_sequence: *count,
            flushed,
            size,
        };
        let which = (index, partition, send.partition_sequence);
        self.told.sizes.insert(which, size);
        if flushed {
            self.told.flushed.insert(which);
        }
        self.write(index, send);
    }

    /// Puts a send on its way, with what it needs of credit.
    fn write(&mut self, index: usize, send: Send) {
        let which = (index, send.partition, send.partition_sequence);
        let body = body(which, send.size);
        let size = encode::message_size(0, body.len());
        for _ in 0..200 {
            let sender = &mut self.senders[index];
            if sender.credit >= sender.spent + size as u64 && sender.outstanding.len() < 1_000 {
                break;
            }
            let want = WantCredit {
                bytes: (size as u64).into(),
            };
            sender.peer.control(sender.handle.0, &want, &[]);
            self.exchange(index);
            if self.senders[index].credit < self.senders[index].spent + size as u64 {
                self.device.settle(&mut self.shard);
                self.settle_some();
            }
        }
        let sender = &mut self.senders[index];
        assert!(sender.credit >= sender.spent + size as u64, "no credit");
        let envelope = Envelope {
            handle: sender.handle,
            partition: PartitionIndex(send.partition),
            producer: ProducerId(sender.id),
            epoch: Epoch(sender.epoch),
            sequence: Sequence(send.sequence),
            partition_sequence: PartitionSequence(send.partition_sequence),
            durability: if send.flushed {
                Durability::Flushed
            } else {
                Durability::Memory
            },
            ..Envelope::default()
        };
        let mut bytes = vec![0; size];
        encode::message(&envelope, &[], &body, &mut bytes);
        sender.spent += size as u64;
        sender.peer.out.extend_from_slice(&bytes);
        sender.outstanding.push_back(send);
    }

    /// A producer's link is read and written.
    fn exchange(&mut self, index: usize) {
        let answers = self.senders[index].peer.exchange(&mut self.shard);
        self.heard(index, &answers);
    }

    fn heard(&mut self, index: usize, answers: &[u8]) {
        let sender = &mut self.senders[index];
        sender.credit = sender.credit.max(granted(answers));
        for run in completions(answers) {
            let lost = run.refusal.get() == Refusal::AlreadyStored.code();
            assert!(run.refusal.get() == 0 || lost, "producer {index}: {run:?}");
            for it in 0..u64::from(run.count.get()) {
                let send = sender.outstanding.pop_front().expect("it was sent");
                assert_eq!(send.sequence, run.sequence.get() + it, "in their order");
                assert_eq!(send.partition, run.partition.get());
                if lost {
                    // It was in memory, before others that were flushed with a later one.
                    assert!(!send.flushed, "{send:?} is stored, and nobody knows where");
                    continue;
                }
                assert_eq!(send.flushed, run.durability == 1);
                let which = (sender.index, send.partition, send.partition_sequence);
                let offset = run.offset.get() + it;
                self.told.stored(which, offset, send.flushed);
            }
        }
    }

    fn reader(&mut self) {
        if self.reader.is_some() {
            return;
        }
        let mut peer = Peer::new(&mut self.shard);
        let subscription = if self.is_topic { SUBSCRIPTION } else { "" };
        let fields = OpenConsumer {
            session: peer.session.into(),
            destination: u8::from(self.is_topic),
            destination_length: (NAME.len() as u16).into(),
            subscription_length: (subscription.len() as u16).into(),
            sharing: if self.is_topic { 2 } else { 0 },
            messages: 100_000.into(),
            bytes: (1 << 40).into(),
            ..OpenConsumer::default()
        };
        peer.control(3, &fields, &[NAME.as_bytes(), subscription.as_bytes()]);
        let mut answers = peer.exchange(&mut self.shard);
        if self.is_topic {
            self.device.settle(&mut self.shard);
            answers.extend(take(&mut self.shard, peer.link));
        }
        let handle = frames(&answers).iter().find_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::ConsumerOpened(fields, _),
                ..
            } => Some(Handle(fields.handle.get())),
            _ => None,
        });
        self.reader = Some(Reader {
            peer,
            handle: handle.unwrap(),
            unsettled: Vec::new(),
            found: BTreeMap::new(),
        });
        self.delivered(&answers);
    }

    fn delivered(&mut self, answers: &[u8]) {
        let reader = self.reader.as_mut().unwrap();
        for (frame, _) in frames(answers) {
            match frame {
                Frame::Message(message) => {
                    let offset = message.header.offset.get();
                    let which = whose(message.body);
                    let place = (which.1, offset);
                    self.told.delivered(which, offset, message.body);
                    reader.unsettled.push(place);
                    reader.found.insert(place, which);
                }
                Frame::Control {
                    control: Control::Acknowledged(fields, _),
                    ..
                } => {
                    assert_eq!(fields.refusal.get(), 0);
                    let settled = self.told.confirming.remove(&fields.confirm.get());
                    self.told.confirmed.extend(settled.expect("it was asked"));
                }
                Frame::Control { .. } => {}
            }
        }
    }

    fn read(&mut self) {
        if let Some(reader) = &mut self.reader {
            let answers = reader.peer.exchange(&mut self.shard);
            self.delivered(&answers);
        }
    }

    /// The reader settles some of what it has.
    fn acknowledge(&mut self, share: usize) {
        let Some(reader) = &mut self.reader else {
            return;
        };
        let count = reader.unsettled.len() * (share + 1) / 8;
        // Not only from the front.
        let skip = if share.is_multiple_of(2) {
            0
        } else {
            reader.unsettled.len() - count
        };
        let settled: Vec<(u32, u64)> = reader.unsettled.drain(skip..skip + count).collect();
        for partition in 0..PARTITIONS {
            let of_it = settled.iter().filter(|it| it.0 == partition);
            let places: Vec<(u32, u64)> = of_it.copied().collect();
            for places in places.chunks(20) {
                self.confirm += 1;
                let ack = Acknowledge {
                    partition: partition.into(),
                    runs: (places.len() as u32).into(),
                    confirm: self.confirm.into(),
                    ..Acknowledge::default()
                };
                let runs: Vec<AckRun> = places
                    .iter()
                    .map(|(_, offset)| AckRun {
                        first: (*offset).into(),
                        count: 1.into(),
                    })
                    .collect();
                let handle = reader.handle.0;
                reader.peer.control(handle, &ack, &[runs.as_bytes()]);
                self.told.acknowledged.extend(places);
                self.told.confirming.insert(self.confirm, places.to_vec());
            }
        }
    }

    /// Makes room: somebody settles what there is.
    fn settle_some(&mut self) {
        self.reader();
        self.read();
        self.acknowledge(7);
        self.read();
        self.device.settle(&mut self.shard);
        self.read();
    }

    fn leave(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.shard.closed(now(), reader.peer.link);
            self.told.confirming.clear();
        }
    }

    /// The power is cut. Of the sectors of each write on its way those are there that
    /// `keeps` says; another run begins and is looked at.
    fn cut(&mut self, mut keeps: impl FnMut(usize) -> bool) {
        self.device.cut(&self.shard, &mut keeps);
        self.reader = None;
        self.told.confirming.clear();
        for sender in &mut self.senders {
            sender.peer.out.clear();
        }
        for _ in 0..2 {
            self.device.recover();
        }
        self.shard = self.device.start();
        self.look();
        self.open();
    }

    /// All that a consumer finds is held against what was told.
    fn look(&mut self) {
        self.reader();
        let mut before = 0;
        for _ in 0..100 {
            self.read();
            self.shard.turn(now());
            let has_paged = self.device.settle_pages(&mut self.shard);
            let now = self.reader.as_ref().unwrap().unsettled.len();
            if now == before && !has_paged {
                break;
            }
            before = now;
        }
        let found = &self.reader.as_ref().unwrap().found;
        let told = &self.told;
        for (which, (offset, flushed)) in &told.places {
            let place = (which.1, *offset);
            let is_settled = told.acknowledged.contains(&place);
            if *flushed && !is_settled {
                assert!(found.contains_key(&place), "{which:?} at {place:?} is lost");
            }
        }
        for place in &told.seen {
            let is_settled = told.acknowledged.contains(place);
            assert!(
                is_settled || found.contains_key(place),
                "{place:?} was seen"
            );
        }
        // In each partition what a producer sent is in the order of its sends.
        let mut last: BTreeMap<(usize, u32), u64> = BTreeMap::new();
        for (place, which) in found {
            let before = last.insert((which.0, which.1), which.2);
            assert!(
                before.is_none_or(|it| it < which.2),
                "{which:?} at {place:?}"
            );
        }
        self.leave();
    }
}

impl Told {
    fn stored(&mut self, which: Which, offset: u64, flushed: bool) {
        let before = self.places.insert(which, (offset, flushed));
        assert!(before.is_none(), "{which:?} has one outcome");
        self.at(which, offset);
    }

    /// The offset is that send's, for ever.
    fn at(&mut self, which: Which, offset: u64) {
        let place = (which.1, offset);
        let other = self.offsets.insert(place, which);
        assert!(
            other.is_none_or(|it| it == which),
            "{place:?} was given to {other:?} and to {which:?}"
        );
        if let Some((known, _)) = self.places.get(&which) {
            assert_eq!(*known, offset, "{which:?} has one place");
        }
    }

    fn delivered(&mut self, which: Which, offset: u64, found: &[u8]) {
        let place = (which.1, offset);
        assert!(
            found == body(which, self.sizes[&which]),
            "{which:?} is whole"
        );
        assert!(!self.confirmed.contains(&place), "{which:?} was settled");
        self.at(which, offset);
        if self.flushed.contains(&which) {
            self.seen.insert(place);
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Send {
        producer: usize,
        partition: u32,
        count: usize,
        flushed: u8,
        size: usize,
    },
    Exchange(usize),
    Reader,
    Read,
    Acknowledge(usize),
    Leave,
    Hear,
    Write(prop::sample::Index),
    Settle,
    /// So much is done of what checkpoints need.
    Checkpoint(usize),
    Page(prop::sample::Index),
    Cut(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let size = prop_oneof![
        8 => 0..200_usize,
        2 => 200..6_000_usize,
        1 => 60_000..300_000_usize
    ];
    let send = (0..PRODUCERS, 0..PARTITIONS, 1..20_usize, 0..4_u8, size).prop_map(
        |(producer, partition, count, flushed, size)| Act::Send {
            producer,
            partition,
            count: if size > 6_000 { 1 } else { count },
            flushed,
            size,
        },
    );
    let act = prop_oneof![
        10 => send,
        10 => (0..PRODUCERS).prop_map(Act::Exchange),
        2 => Just(Act::Reader),
        4 => Just(Act::Read),
        4 => (0..8_usize).prop_map(Act::Acknowledge),
        1 => Just(Act::Leave),
        8 => Just(Act::Hear),
        8 => any::<prop::sample::Index>().prop_map(Act::Write),
        1 => Just(Act::Settle),
        6 => (1..12_usize).prop_map(Act::Checkpoint),
        12 => any::<prop::sample::Index>().prop_map(Act::Page),
        2 => any::<u64>().prop_map(Act::Cut),
    ];
    prop::collection::vec(act, 1..120)
}

/// Which sectors are there: none, all, those of some writes, those up to some place of
/// each, or nearly all.
fn keeping(seed: u64) -> impl FnMut(usize) -> bool {
    let mut state = seed | 1;
    let (mut whole, mut up_to) = (false, 0);
    move |sector| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if sector == 0 {
            whole = state & 1 == 0;
            up_to = (state % 40) as usize;
        }
        match seed % 5 {
            0 => false,
            1 => true,
            2 => whole,
            3 => sector < up_to,
            _ => !state.is_multiple_of(64),
        }
    }
}

fn act(world: &mut World, act: &Act) {
    match act {
        Act::Send {
            producer,
            partition,
            count,
            flushed,
            size,
        } => {
            for index in 0..*count {
                let is_flushed = match flushed {
                    0 => false,
                    1 => index % 3 != 0,
                    _ => true,
                };
                world.send(*producer, *partition, is_flushed, *size);
            }
        }
        Act::Exchange(index) => world.exchange(*index),
        Act::Reader => world.reader(),
        Act::Read => world.read(),
        Act::Acknowledge(share) => world.acknowledge(*share),
        Act::Leave => world.leave(),
        Act::Hear => world.device.hear(&mut world.shard),
        Act::Write(index) => {
            world.device.hear(&mut world.shard);
            let count = world.device.writes.len();
            if count > 0 {
                world.device.write(&mut world.shard, index.index(count));
            }
        }
        Act::Settle => world.device.settle(&mut world.shard),
        Act::Checkpoint(count) => {
            for _ in 0..*count {
                world.device.checkpoint_step(&mut world.shard);
            }
        }
        Act::Page(index) => world.device.page(&mut world.shard, *index),
        Act::Cut(seed) => world.cut(keeping(*seed)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_was_told_holds_after_any_power_cuts(
        acts in acts(),
        is_topic in any::<bool>(),
        seed in any::<u64>(),
        every in prop_oneof![Just(0), 4_096..400_000_u64],
        has_pages in any::<bool>(),
    ) {
        let mut world = World::new(is_topic, every, has_pages);
        for it in &acts {
            act(&mut world, it);
        }
        world.cut(keeping(seed));
        // And then everything has an end.
        for _ in 0..3 {
            for index in 0..PRODUCERS {
                world.exchange(index);
            }
            world.device.settle(&mut world.shard);
        }
        for index in 0..PRODUCERS {
            world.exchange(index);
            prop_assert!(world.senders[index].outstanding.is_empty());
        }
        world.cut(|_| false);
    }
}
