//! What a seed draws before its world begins: which faults are on, who is
//! there, how large and how fast everything is.
//!
//! Swarm testing: a run with a few faults and extremes finds more than one with
//! a little of everything, because faults hide each other.

use courser_core::client::{BatchLimits, Sharing, Start};
use courser_core::id::{Offset, ShardIndex};
use courser_core::limits::{self, KIB, MIB};
use courser_core::name::{Destination, DestinationKind};

use crate::random::Random;

/// Nanoseconds.
pub(crate) const MICROSECOND: u64 = 1_000;
/// Nanoseconds.
pub(crate) const MILLISECOND: u64 = 1_000 * MICROSECOND;
/// Nanoseconds.
pub(crate) const SECOND: u64 = 1_000 * MILLISECOND;

/// What can go wrong. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// The connection breaks; any part of what is under way is lost.
    Reset,
    /// The broker hears of a broken connection only after the client, and reads what
    /// had arrived before.
    Linger,
    /// A client dies without a word; the broker notices later.
    Vanish,
    /// Nothing passes for a while, in either direction.
    Blackhole,
    /// A client reads nothing for a while.
    Stall,
    /// A connection is refused.
    Refuse,
    /// A shard's thread, or the whole process, does not run for a while.
    Pause,
    /// The kernel takes fewer bytes than it was given.
    ShortSend,
    /// The kernel takes no byte.
    EmptySend,
    /// The broker dies, and another one with nothing in it takes its place.
    Restart,
    /// The power is cut, and the broker comes up again with what its disks have.
    Cut,
    /// It is cut right behind an answer, while something is being written; the answer
    /// arrives.
    CutBehind,
    /// A disk cannot write, and any part of what it was given is on it. The broker is started
    /// again later.
    WriteError,
    /// A bit of what is read of a disk is wrong, and that is noticed.
    Misread,
    /// A peer breaks the rules.
    Rogue,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Reset,
        Self::Linger,
        Self::Vanish,
        Self::Blackhole,
        Self::Stall,
        Self::Refuse,
        Self::Pause,
        Self::ShortSend,
        Self::EmptySend,
        Self::Restart,
        Self::Cut,
        Self::CutBehind,
        Self::WriteError,
        Self::Misread,
        Self::Rogue,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "resets",
            Self::Linger => "resets heard of late",
            Self::Vanish => "vanished peers",
            Self::Blackhole => "blackholes",
            Self::Stall => "stalled readers",
            Self::Refuse => "refused connections",
            Self::Pause => "pauses of shards",
            Self::ShortSend => "short sends",
            Self::EmptySend => "sends of nothing",
            Self::Restart => "restarts of the broker",
            Self::Cut => "power cuts",
            Self::CutBehind => "  right behind an answer",
            Self::WriteError => "writes that failed",
            Self::Misread => "bits read wrongly",
            Self::Rogue => "rogue peers",
        }
    }
}

/// Everything that a seed draws.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How long faults go on.
    pub(crate) storm: u64,
    pub(crate) shards: u16,
    /// For each shard the longest time from a fact to its turn.
    pub(crate) turn_max: Vec<u64>,
    pub(crate) network: NetworkPlan,
    pub(crate) faults: FaultPlan,
    pub(crate) destinations: Vec<DestinationPlan>,
    pub(crate) actors: Vec<ActorPlan>,
    pub(crate) rogues: usize,
    /// Further rogues, all of whom leave answers waiting.
    pub(crate) stallers: usize,
    /// The most connections from one peer's address.
    pub(crate) links_per_address: u32,
    /// When the broker dies and another one takes its place.
    pub(crate) restart: Option<u64>,
    /// The disks of a broker that keeps what it is given.
    pub(crate) disk: Option<DiskPlan>,
    /// Whether the broker stops at the end, or the clients leave.
    pub(crate) ends_by_stop: bool,
}

/// How disks are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskPlan {
    /// The longest time that an operation takes.
    pub(crate) operation_max: u64,
    /// The mean time between two power cuts.
    pub(crate) cut: u64,
    /// Of so many answers that leave while something is being written one has the power cut
    /// right behind it.
    pub(crate) cut_behind: Option<u64>,
    /// Of so many writes of journals one fails.
    pub(crate) write_error: Option<u64>,
    /// Each shard begins a checkpoint when so many bytes were journalled.
    pub(crate) checkpoint_bytes: u64,
}

/// How much memory a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// Small messages.
    Light,
    /// Large ones.
    Heavy,
    /// More large ones than there is memory, and few who take them.
    Brim,
}

/// How bytes travel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkPlan {
    /// The longest delay of a byte.
    pub(crate) delay_max: u64,
    /// What a socket buffers in one direction.
    pub(crate) capacity: usize,
    /// The most bytes of one read.
    pub(crate) read_max: usize,
    /// The longest time until the kernel answers a send.
    pub(crate) submit_max: u64,
    /// Of 1000 sends so many are short.
    pub(crate) short_sends: u64,
}

/// The mean time between two faults of a kind on one connection; `None` is never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FaultPlan {
    pub(crate) reset: Option<u64>,
    pub(crate) vanish: Option<u64>,
    pub(crate) blackhole: Option<u64>,
    pub(crate) stall: Option<u64>,
    /// On the shard.
    pub(crate) pause: Option<u64>,
    /// Of 1000 connections so many are refused.
    pub(crate) refused: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct DestinationPlan {
    pub(crate) destination: Destination,
    pub(crate) partitions: u32,
    pub(crate) retain: Option<u64>,
    /// How many consumers a topic's lasting subscriptions have at once, and what of
    /// them is whose.
    pub(crate) sharing: [Sharing; SUBSCRIPTIONS.len()],
    /// Whether some of its producers want it alone.
    pub(crate) contested: bool,
    /// Whether messages are seen before they are durable.
    pub(crate) early: bool,
    /// Whether some of what is sent to it is to be in memory only.
    pub(crate) mixed: bool,
}

impl DestinationPlan {
    /// How consumers share a lasting subscription.
    pub(crate) fn sharing(&self, subscription: &str) -> Sharing {
        let mut names = SUBSCRIPTIONS.iter().zip(self.sharing);
        names
            .find(|(name, _)| **name == subscription)
            .map_or(Sharing::Usual, |(_, sharing)| sharing)
    }

    /// Whether a lasting subscription has one consumer at a time.
    pub(crate) fn is_exclusive(&self, subscription: &str) -> bool {
        matches!(self.sharing(subscription), Sharing::Usual | Sharing::One)
    }

    pub(crate) fn is_queue(&self) -> bool {
        self.destination.kind == DestinationKind::Queue
    }

    /// Whether a broker with disks keeps what comes to it, whoever has subscribed.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_queue() || self.retain.is_some()
    }

    /// Whether a power cut may leave holes in it. In a topic a message that nobody has
    /// subscribed to, and that is more than is retained, is not kept.
    pub(crate) fn has_holes(&self) -> bool {
        self.early || self.mixed || !self.is_queue()
    }
}

/// The most bytes that all partitions of a destination may retain, with the least
/// memory: a sixth of a quarter of the arena.
const RETAIN_MOST: u64 = 2 * MIB as u64;

const SHARINGS: [Sharing; 6] = [
    Sharing::Usual,
    Sharing::One,
    Sharing::Several,
    Sharing::Failover,
    Sharing::KeyShared,
    Sharing::KeyShared,
];

/// The names that a topic's lasting subscriptions have.
pub(crate) const SUBSCRIPTIONS: [&str; 2] = ["first", "second"];

/// A client and what its application does.
#[derive(Clone, Debug)]
pub(crate) struct ActorPlan {
    /// The mean time between two acts.
    pub(crate) pace: u64,
    /// Takes outcomes only when it acts, not when they come.
    pub(crate) lazy: bool,
    /// The mean number of acts after which it closes something, or leaves.
    pub(crate) churn: Option<u64>,
    /// How long it looks for another connection when one is lost; `None` is not at all.
    pub(crate) reconnects: Option<u64>,
    /// Does not say which link a new one takes the place of.
    pub(crate) anonymous: bool,
    pub(crate) wish: Wish,
    /// Has its link go to another shard before it opens anything on it.
    pub(crate) moves: bool,
    pub(crate) producers: Vec<ProducerPlan>,
    pub(crate) consumers: Vec<ConsumerPlan>,
    /// The mean number of acts after which it shuts a producer out, of whomever.
    pub(crate) fences: Option<u64>,
    /// Has to do with destinations that come and go.
    pub(crate) passes: bool,
    /// Looks after a shard.
    pub(crate) warden: Option<Warden>,
}

/// Which shard a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Any; when it comes back, the one where it was.
    None,
    /// Always this one.
    Shard(ShardIndex),
    /// Any of so many, another each time it connects.
    Wanders(u16),
}

impl Wish {
    /// What the next hello asks for.
    pub(crate) fn draw(self, random: &mut Random) -> Option<ShardIndex> {
        match self {
            Self::None => None,
            Self::Shard(shard) => Some(shard),
            Self::Wanders(shards) => Some(any_shard(random, shards)),
        }
    }
}

pub(crate) fn any_shard(random: &mut Random, shards: u16) -> ShardIndex {
    ShardIndex(u16::try_from(random.below(shards.into())).unwrap_or(0))
}

/// Asks a shard how it is, and drains subscriptions once it is calm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warden {
    /// Founds every destination.
    pub(crate) founds: bool,
    /// The destinations whose subscriptions it drains.
    pub(crate) drains: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct ProducerPlan {
    pub(crate) destination: usize,
    /// Messages over the whole run.
    pub(crate) quota: u64,
    /// The most messages of one act.
    pub(crate) burst: u64,
    pub(crate) sizes: Sizes,
    pub(crate) routes: Routes,
    pub(crate) batch: Option<BatchLimits>,
    pub(crate) messages_in_flight_max: u32,
    pub(crate) bytes_in_flight_max: u32,
    /// How long a send may take; `None` is for ever.
    pub(crate) patience: Option<u64>,
    pub(crate) access: Access,
    /// Of 1000 messages so many are to be in memory only.
    pub(crate) memory: u64,
}

/// Whether a producer has its destination alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Shared,
    /// Alone, or not at all for now.
    Exclusive,
    /// Alone, once nobody else is there.
    Taking,
}

/// How large bodies are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) most: u64,
    /// Of 1000 messages so many are large.
    pub(crate) large: u64,
    pub(crate) large_most: u64,
}

impl Sizes {
    pub(crate) fn draw(self, random: &mut Random) -> usize {
        let size = if random.chance(self.large, 1000) {
            random.range(u64::from(60 * KIB), self.large_most)
        } else if random.chance(1, 16) {
            0
        } else {
            random.magnitude(1, self.most)
        };
        crate::random::size(size)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routes {
    Turn,
    Keys,
    Partitions,
    Mixed,
}

#[derive(Clone, Debug)]
pub(crate) struct ConsumerPlan {
    pub(crate) destination: usize,
    /// `None`: the queue's, or one that ends with its consumer.
    pub(crate) subscription: Option<&'static str>,
    pub(crate) start: Start,
    pub(crate) messages_max: u32,
    pub(crate) bytes_max: u32,
    pub(crate) acks: Acks,
    /// Of 1000 rounds of acknowledgements so many ask for a confirmation.
    pub(crate) confirms: u64,
    /// The most messages it takes in one act.
    pub(crate) appetite: u64,
    /// Closed by its application after about so many messages.
    pub(crate) lifetime: Option<u64>,
    /// Of 1000 messages so many are given back.
    pub(crate) returns: u64,
    /// Of 1000 acts that find nothing so many ask the broker whether there is anything.
    pub(crate) polls: u64,
}

/// When a consumer acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Each message at once.
    Each,
    /// Everything so far, each so many messages.
    Through(u64),
    /// One by one in any order, once so many are held.
    Late(u64),
    /// Not until it is calm.
    Never,
}

impl Plan {
    /// Draws a plan.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let shards = random.pick(&[1, 1, 2, 2, 3, 4]);
        let weight = match random.below(32) {
            0 => Weight::Brim,
            1..=4 => Weight::Heavy,
            _ => Weight::Light,
        };
        let storm = random.range(2, 25) * SECOND;
        // Four destinations may hold all there is.
        let least = if weight == Weight::Brim { 4 } else { 1 };
        let mut room = Room::ALL;
        let destinations: Vec<_> = (0..random.count(least, 5))
            .map(|index| destination(random, index, weight, &mut room))
            .collect();
        let actors = random.count(if weight == Weight::Brim { 4 } else { 1 }, 6);
        let mut plan = Self {
            storm,
            shards,
            turn_max: turn_max(random, shards),
            network: network(random, weight != Weight::Light),
            faults: faults(random),
            actors: (0..actors)
                .map(|_| actor(random, &destinations, weight, (actors, shards), storm))
                .collect(),
            destinations,
            rogues: if random.chance(1, 2) {
                random.count(1, 3)
            } else {
                0
            },
            stallers: if weight == Weight::Brim {
                random.pick(&[0, 20, 60])
            } else {
                0
            },
            links_per_address: random.pick(&[2, 4, limits::LINKS_PER_ADDRESS_MAX]),
            restart: random
                .chance(1, 4)
                .then(|| random.range(SECOND, storm - SECOND / 2)),
            disk: None,
            ends_by_stop: random.chance(1, 3),
        };
        let mut drains = vec![Vec::new(); usize::from(shards)];
        for index in 0..plan.destinations.len() {
            drains[random.index(usize::from(shards))].push(index);
        }
        let founder = any_shard(random, shards);
        for (shard, drains) in (0..shards).map(ShardIndex).zip(drains) {
            let founds = shard == founder;
            plan.actors.push(ActorPlan::warden(shard, founds, drains));
        }
        // From a stream of its own: worlds without any of it are what they would be.
        let mut aside = random.clone().fork();
        plan.rival(&mut aside, weight);
        plan.keep(&mut aside, weight);
        plan
    }

    /// Has producers compete for their destinations, shuts some out, has destinations come
    /// and go, and has consumers ask.
    fn rival(&mut self, random: &mut Random, weight: Weight) {
        if random.chance(1, 3) {
            let producers = self.actors.iter_mut().flat_map(|it| &mut it.producers);
            for producer in producers {
                producer.access = random.pick(&[
                    Access::Shared,
                    Access::Exclusive,
                    Access::Taking,
                    Access::Taking,
                ]);
                if producer.access != Access::Shared {
                    self.destinations[producer.destination].contested = true;
                    // One is done after the other, before the run is over.
                    producer.quota = producer.quota.min(RIVAL_QUOTA_MAX);
                }
            }
        }
        for actor in &mut self.actors {
            if actor.warden.is_none() && random.chance(1, 12) {
                actor.fences = Some(random.magnitude(10, 300));
            }
        }
        if weight == Weight::Light && random.chance(1, 3) {
            for actor in self.actors.iter_mut().filter(|it| it.warden.is_none()) {
                actor.passes = random.chance(2, 3);
            }
        }
        for consumer in self.actors.iter_mut().flat_map(|it| &mut it.consumers) {
            consumer.polls = random.pick(&[0, 0, 20, 300]);
        }
    }
}

impl Plan {
    /// Gives the broker disks, in a world of small messages whose destinations nobody wants
    /// to have alone.
    fn keep(&mut self, random: &mut Random, weight: Weight) {
        if weight != Weight::Light {
            return;
        }
        self.disk = random.chance(2, 3).then(|| DiskPlan {
            operation_max: random.magnitude(5 * MICROSECOND, 200 * MILLISECOND),
            cut: random.magnitude(200 * MILLISECOND, 10 * SECOND),
            cut_behind: None,
            write_error: None,
            checkpoint_bytes: random.magnitude(4 * u64::from(KIB), MIB.into()),
        });
        if self.disk.is_none() {
            return;
        }
        self.restart = None;
        if let Some(disk) = &mut self.disk {
            disk.cut_behind = random.chance(1, 2).then(|| random.magnitude(4, 500));
        }
        if let Some(disk) = &mut self.disk {
            disk.write_error = random.chance(1, 4).then(|| random.magnitude(20, 1000));
        }
        for destination in &mut self.destinations {
            destination.contested = false;
            destination.early = random.chance(1, 6);
        }
        for actor in &mut self.actors {
            actor.fences = None;
            actor.passes = false;
            for producer in &mut actor.producers {
                producer.access = Access::Shared;
                producer.memory = random.pick(&[0, 0, 0, 0, 200, 1000]);
                self.destinations[producer.destination].mixed |= producer.memory > 0;
            }
        }
    }
}

/// The most messages of a producer that wants its destination alone.
const RIVAL_QUOTA_MAX: u64 = 200;

impl ActorPlan {
    fn warden(shard: ShardIndex, founds: bool, drains: Vec<usize>) -> Self {
        Self {
            pace: 5 * MILLISECOND,
            lazy: false,
            churn: None,
            reconnects: None,
            anonymous: false,
            wish: Wish::Shard(shard),
            moves: false,
            producers: Vec::new(),
            consumers: Vec::new(),
            fences: None,
            passes: false,
            warden: Some(Warden { founds, drains }),
        }
    }
}

/// One shard in some runs is much slower than all others.
fn turn_max(random: &mut Random, shards: u16) -> Vec<u64> {
    let usual = random.magnitude(MICROSECOND, 5 * MILLISECOND);
    let mut all = vec![usual; usize::from(shards)];
    if shards > 1 && random.chance(1, 3) {
        let slow = random.index(all.len());
        all[slow] = random.magnitude(MILLISECOND, 500 * MILLISECOND);
    }
    all
}

fn network(random: &mut Random, heavy: bool) -> NetworkPlan {
    let read_max = if heavy {
        random.pick(&[4096, 65_536, 1 << 20])
    } else {
        random.pick(&[100, 1500, 1500, 4096, 65_536, 65_536])
    };
    NetworkPlan {
        delay_max: random.magnitude(5 * MICROSECOND, 50 * MILLISECOND),
        capacity: crate::random::size(random.magnitude(if heavy { 32_768 } else { 2048 }, 1 << 20)),
        read_max,
        submit_max: random.magnitude(MICROSECOND, 2 * MILLISECOND),
        short_sends: random.pick(&[0, 20, 300]),
    }
}

fn faults(random: &mut Random) -> FaultPlan {
    let reset = random
        .chance(1, 2)
        .then(|| random.magnitude(300 * MILLISECOND, 10 * SECOND));
    let mut sometimes = |least, most| {
        random
            .chance(1, 3)
            .then(|| random.magnitude(least * MILLISECOND, most * MILLISECOND))
    };
    FaultPlan {
        reset,
        vanish: sometimes(500, 20_000),
        blackhole: sometimes(500, 10_000),
        stall: sometimes(500, 10_000),
        pause: sometimes(300, 5_000),
        refused: sometimes(1, 2).map_or(0, |_| 300),
    }
}

/// What all destinations together may have of the least memory.
struct Room {
    /// A quarter of all chunks: each partition takes one, or three if it retains.
    chunks: u32,
    /// Bytes that are retained: a third of a quarter of the arena.
    retained: u64,
}

impl Room {
    const ALL: Self = Self {
        chunks: 192,
        retained: 4 * MIB as u64,
    };
    /// What the destinations still to come take at most if nothing in them is
    /// retained, and those of rogues.
    const KEPT: u32 = 4 * 7 + 2;

    /// What such a destination can retain.
    fn take(&mut self, partitions: u32, retain: Option<u64>) -> Option<u64> {
        let bytes = u64::from(partitions) * retain.unwrap_or(0);
        let fits = self.chunks >= 3 * partitions + Self::KEPT && self.retained >= bytes;
        let retain = retain.filter(|_| fits);
        self.chunks -= partitions * if retain.is_some() { 3 } else { 1 };
        self.retained -= retain.map_or(0, |_| bytes);
        retain
    }
}

fn destination(
    random: &mut Random,
    index: usize,
    weight: Weight,
    room: &mut Room,
) -> DestinationPlan {
    let kind = if weight != Weight::Brim && random.chance(1, 2) {
        DestinationKind::Topic
    } else {
        DestinationKind::Queue
    };
    let partitions = match weight {
        // One with so many that a chunk in each is most of what it may hold.
        Weight::Brim if index == 0 => random.pick(&[1, 7, 150]),
        _ => random.pick(&[1, 1, 1, 2, 3, 4, 7, 8]),
    };
    let retain = random.chance(1, 4).then(|| {
        // As much as the broker allows.
        let most = RETAIN_MOST / u64::from(partitions);
        match weight {
            Weight::Light => random.magnitude(1, (128 * KIB).into()).min(most),
            Weight::Heavy => random.magnitude(1, MIB.into()).min(most),
            Weight::Brim => most,
        }
    });
    let retain = room.take(partitions, retain);
    DestinationPlan {
        destination: Destination::new(kind, &format!("/sim/d{index}"))
            .expect("the name follows the rule"),
        partitions,
        retain,
        sharing: [(); SUBSCRIPTIONS.len()].map(|()| random.pick(&SHARINGS)),
        contested: false,
        early: false,
        mixed: false,
    }
}

fn actor(
    random: &mut Random,
    destinations: &[DestinationPlan],
    weight: Weight,
    (actors, shards): (usize, u16),
    storm: u64,
) -> ActorPlan {
    let both = actors == 1;
    let producers = if both || random.chance(2, 3) {
        random.count(1, 3)
    } else {
        0
    };
    let wanted = weight != Weight::Brim || random.chance(1, 4);
    let consumers = if both || producers == 0 || (wanted && random.chance(1, 2)) {
        random.count(1, 3)
    } else {
        0
    };
    let pace = random.magnitude(200 * MICROSECOND, 200 * MILLISECOND);
    let reconnects = random
        .chance(1, 2)
        .then(|| random.magnitude(100 * MILLISECOND, 60 * SECOND));
    let producers = (0..producers).map(|_| {
        let mut plan = producer(random, destinations.len(), weight);
        if reconnects.is_some() {
            // As long as faults go on, so that they find something on its way.
            plan.burst = (2 * plan.quota * pace / storm).clamp(1, plan.burst);
        }
        plan
    });
    let producers = producers.collect();
    let wish = match random.below(3) {
        0 => Wish::None,
        1 => Wish::Shard(any_shard(random, shards)),
        _ => Wish::Wanders(shards),
    };
    ActorPlan {
        pace,
        lazy: random.chance(1, 4),
        churn: random.chance(1, 3).then(|| random.magnitude(20, 500)),
        reconnects,
        anonymous: random.chance(1, 4),
        wish,
        moves: random.chance(1, 4),
        producers,
        consumers: (0..consumers)
            .map(|_| consumer(random, destinations, weight))
            .collect(),
        fences: None,
        passes: false,
        warden: None,
    }
}

fn producer(random: &mut Random, destinations: usize, weight: Weight) -> ProducerPlan {
    let heavy = weight != Weight::Light;
    let large_most = if weight == Weight::Brim {
        MIB.into()
    } else if heavy {
        u64::from(random.pick(&[100 * KIB, 300 * KIB, MIB]))
    } else {
        u64::from(100 * KIB)
    };
    let large = if weight == Weight::Brim {
        1000
    } else if heavy {
        random.pick(&[100, 1000])
    } else {
        random.pick(&[0, 0, 0, 10])
    };
    // Bytes of all its messages stay within a few MiB, so that no run is long.
    let quota = if heavy {
        (u64::from(12 * MIB) / large_most).min(200)
    } else {
        random.magnitude(10, 1000)
    };
    ProducerPlan {
        destination: random.index(destinations),
        quota,
        burst: random.magnitude(1, 200),
        sizes: Sizes {
            most: random.pick(&[16, 300, 4096]),
            large,
            large_most,
        },
        routes: random.pick(&[
            Routes::Turn,
            Routes::Keys,
            Routes::Partitions,
            Routes::Mixed,
        ]),
        batch: random.chance(1, 3).then(|| BatchLimits {
            messages_max: u32::try_from(random.magnitude(1, 100)).unwrap_or(1),
            bytes_max: u32::try_from(random.magnitude(200, 100_000)).unwrap_or(1),
        }),
        messages_in_flight_max: random.pick(&[1, 2, 10, 1024, 1024]),
        bytes_in_flight_max: if large == 0 {
            random.pick(&[8 * KIB, 64 * KIB, 8 * MIB])
        } else {
            random.pick(&[2 * MIB, 8 * MIB])
        },
        patience: random.pick(&[
            Some(3 * SECOND),
            Some(3 * SECOND),
            Some(50 * MILLISECOND),
            None,
        ]),
        access: Access::Shared,
        memory: 0,
    }
}

fn consumer(random: &mut Random, destinations: &[DestinationPlan], weight: Weight) -> ConsumerPlan {
    let destination = random.index(destinations.len());
    let queue = destinations[destination].is_queue();
    let subscription = (!queue && random.chance(2, 3)).then(|| random.pick(&SUBSCRIPTIONS));
    let start = if queue {
        Start::Earliest
    } else {
        random.pick(&[Start::Earliest, Start::Latest, Start::Offset(Offset(20))])
    };
    ConsumerPlan {
        destination,
        subscription,
        start,
        messages_max: random.pick(&[1, 2, 7, 100, 256, 1000]),
        bytes_max: random.pick(&[1, 1000, 64 * KIB, MIB]),
        acks: match random.below(8) {
            0..=2 => Acks::Each,
            3 | 4 => Acks::Through(random.magnitude(1, 50)),
            5 | 6 => Acks::Late(random.magnitude(2, 100)),
            _ => Acks::Never,
        },
        confirms: random.pick(&[0, 100, 1000]),
        appetite: random.magnitude(1, if weight == Weight::Light { 200 } else { 20 }),
        lifetime: random.chance(1, 4).then(|| random.magnitude(5, 300)),
        returns: random.pick(&[0, 0, 20, 300]),
        polls: 0,
    }
}
