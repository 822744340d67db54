//! A key-shared part against a model of a few maps, while its members come and go.
//!
//! The model knows who holds what and what each key's messages are, and nothing of
//! rings, scans or lists of what waits. It demands of everything that is handed out
//! that it was its turn, and of everything that is not that there is a reason.

#![allow(clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::*;
use crate::catalog::Retention;
use crate::frame::encode::{Envelope, message, message_size};
use crate::id::{DestinationNumber, Handle, Offset, PartitionIndex, ProducerId};
use crate::limits::KEY_WINDOW;
use crate::memory::Arena;
use crate::partition::Partition;
use crate::partition::log::{Address, RunLimit};
use crate::routing::key_hash;
use crate::time::{Monotonic, Wall};

const SUBSCRIPTION: Handle = Handle::new(999, 1);
const PARTITION: PartitionIndex = PartitionIndex(0);

/// From here on a key stands for a message without one, of the producer of that number.
const PRODUCERS_FROM: u64 = 1000;

fn hash_of(key: u64) -> u64 {
    key_hash(&key.to_le_bytes())
}

/// Where the model says a message is that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nobody has it.
    Free,
    Held(Handle),
    Rests(u64),
    Settled,
}

#[derive(Clone, Debug)]
struct Message {
    key: u64,
    place: Place,
    /// How often it was handed out.
    count: u16,
}

#[derive(Clone, Debug, Default)]
struct Consumer {
    /// Messages that may still be delivered to it.
    credit: u64,
    /// Deliveries so far.
    delivered: u64,
    /// What it holds, by the number of the delivery.
    held: BTreeMap<u64, usize>,
}

struct World {
    arena: Arena,
    partition: Partition,
    membership: Membership,
    messages: Vec<Message>,
    consumers: BTreeMap<Handle, Consumer>,
    joined: u32,
    now: u64,
    expires: bool,
}

impl World {
    /// In which messages may expire.
    fn expiring() -> Self {
        let mut world = Self::new();
        world.partition.log.keep(Retention::UntilExpired {
            segment: 1 << 20,
            period: 1,
        });
        world.expires = true;
        world
    }

    fn new() -> Self {
        let mut world = Self {
            arena: Arena::new(128),
            partition: Partition::new(
                Address {
                    destination: DestinationNumber(1),
                    partition: PARTITION,
                },
                0,
            ),
            membership: Membership::new(Kind::KeyShared),
            messages: Vec::new(),
            consumers: BTreeMap::new(),
            joined: 0,
            now: 0,
            expires: false,
        };
        let arena = &world.arena;
        (world.partition).subscribe_as(arena, SUBSCRIPTION, Kind::KeyShared, Offset(0));
        world
    }

    fn part(&mut self) -> &mut Part {
        self.partition.part_mut(SUBSCRIPTION).unwrap()
    }

    /// Stores a message with a key, or one without of the producer of that number.
    fn append(&mut self, key: u64) {
        let is_keyed = key < PRODUCERS_FROM;
        let envelope = Envelope {
            key_hash: is_keyed.then(|| hash_of(key)),
            producer: ProducerId(if is_keyed { 1 } else { key }),
            ..Envelope::default()
        };
        let mut frame = vec![0; message_size(0, 10)];
        message(&envelope, &[], &[7; 10], &mut frame);
        (self.partition.log)
            .append(&mut self.arena, &frame, 1, Wall(0))
            .unwrap();
        self.messages.push(Message {
            key,
            place: Place::Free,
            count: 0,
        });
    }

    fn join(&mut self, credit: u64) -> Handle {
        self.joined += 1;
        let handle = Handle::new(self.joined % 7, self.joined);
        self.membership.joined(handle);
        let consumer = Consumer {
            credit,
            ..Consumer::default()
        };
        self.consumers.insert(handle, consumer);
        handle
    }

    fn nth(&self, which: usize) -> Option<Handle> {
        let handles: Vec<Handle> = self.consumers.keys().copied().collect();
        (!handles.is_empty()).then(|| handles[which % handles.len()])
    }

    fn leave(&mut self, handle: Handle, unseen: u64) {
        let consumer = self.consumers.remove(&handle).unwrap();
        let handed = consumer.delivered.saturating_sub(unseen);
        assert_eq!(
            self.part().consumer_gone(handle, handed) as usize,
            consumer.held.len()
        );
        assert!(self.membership.left(handle));
        for (delivery, index) in consumer.held {
            let message = &mut self.messages[index];
            message.place = Place::Free;
            message.count -= u16::from(delivery >= handed);
        }
    }

    /// Does what a shard does with a part that may have something ready.
    fn dispatch(&mut self) {
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 100_000, "dispatching comes to an end");
            let log = &mut self.partition.log;
            let part = &mut self.partition.parts[0].1;
            match part.claimant(&self.arena, log, &self.membership, PARTITION) {
                Claim::By(consumer) => self.hand(consumer),
                Claim::Cramped if part.tidy() => {}
                Claim::Cramped => part.widen(),
                Claim::Later => {}
                Claim::None => return,
            }
        }
    }

    /// Hands a run to a consumer with credit, and demands that it was the run's turn.
    fn hand(&mut self, handle: Handle) {
        let consumer = self.consumers.get_mut(&handle).unwrap();
        if consumer.credit == 0 {
            return;
        }
        let log = &mut self.partition.log;
        let part = &mut self.partition.parts[0].1;
        let limit = RunLimit {
            messages: consumer.credit.min(part.room()),
            bytes: 1 << 20,
        };
        let to = (handle, consumer.delivered);
        let delivered = part.deliver_claimed(&self.arena, log, &self.membership, to, limit);
        let Some(Delivered { run, count }) = delivered else {
            return;
        };
        let first = run.first.0 as usize;
        for index in first..first + run.count as usize {
            let message = &mut self.messages[index];
            assert_eq!(message.place, Place::Free, "{index} is nobody's");
            message.place = Place::Held(handle);
            message.count += 1;
            assert_eq!(message.count, count);
            let key = message.key;
            for (earlier, other) in self.messages.iter().enumerate() {
                if other.key != key {
                    continue;
                }
                match other.place {
                    Place::Held(holder) => assert_eq!(holder, handle, "one has key {key}"),
                    Place::Settled => {}
                    Place::Free | Place::Rests(_) => {
                        assert!(earlier > index, "{earlier} comes before {index}");
                    }
                }
            }
            let consumer = self.consumers.get_mut(&handle).unwrap();
            consumer.credit -= 1;
            consumer.held.insert(consumer.delivered, index);
            consumer.delivered += 1;
        }
    }

    fn acknowledge(&mut self, handle: Handle, which: usize, through: bool) {
        let held = &mut self.consumers.get_mut(&handle).unwrap().held;
        let Some((delivery, index)) = held.iter().nth(which % held.len().max(1)) else {
            return;
        };
        let (delivery, index) = (*delivery, *index);
        let settled: Vec<u64> = match through {
            true => held
                .range(..=delivery)
                .map(|(delivery, _)| *delivery)
                .collect(),
            false => vec![delivery],
        };
        for delivery in &settled {
            let index = held.remove(delivery).unwrap();
            self.messages[index].place = Place::Settled;
        }
        let (arena, offset) = (&mut self.arena, Offset(index as u64));
        let log = &mut self.partition.log;
        let part = &mut self.partition.parts[0].1;
        let outcome = if through {
            part.acknowledge_through(arena, log, handle, offset)
        } else {
            part.acknowledge(arena, log, handle, offset, 1)
        };
        assert_eq!(outcome.settled as usize, settled.len());
        assert!(!outcome.strange);
    }

    /// Somebody says that it settled so many messages on an earlier link.
    fn acknowledge_again(&mut self, handle: Handle, first: usize, count: usize) {
        let first = first % self.messages.len().max(1);
        let end = self.messages.len().min(first + count);
        if first == end {
            return;
        }
        let held = &mut self.consumers.get_mut(&handle).unwrap().held;
        held.retain(|_, index| !(first..end).contains(index));
        let mut settled = 0;
        let mut strange = false;
        for message in &mut self.messages[first..end] {
            match message.place {
                Place::Held(holder) if holder != handle => strange = true,
                Place::Free if message.count == 0 => strange = true,
                Place::Held(_) | Place::Free => {
                    message.place = Place::Settled;
                    settled += 1;
                }
                Place::Rests(_) => strange = true,
                Place::Settled => {}
            }
        }
        let (arena, offset) = (&mut self.arena, Offset(first as u64));
        let log = &mut self.partition.log;
        let part = &mut self.partition.parts[0].1;
        let count = (end - first) as u64;
        let outcome = part.acknowledge_again(arena, log, handle, offset, count);
        assert_eq!(outcome, AckOutcome { settled, strange });
    }

    fn give_back(&mut self, handle: Handle, which: usize, rest: Option<u64>) {
        let held = &mut self.consumers.get_mut(&handle).unwrap().held;
        let Some((delivery, index)) = held.iter().nth(which % held.len().max(1)) else {
            return;
        };
        let (delivery, index) = (*delivery, *index);
        held.remove(&delivery);
        let until = rest.map(|rest| self.now + rest);
        self.messages[index].place = until.map_or(Place::Free, Place::Rests);
        let until = until.map(Monotonic);
        let back = (self.part()).give_back(handle, Offset(index as u64), 1, |_| until);
        assert_eq!(back, 1);
    }

    /// The first so many messages are gone.
    fn expire(&mut self, count: usize) {
        let floor = count.min(self.messages.len());
        (self.partition).expire(&mut self.arena, Offset(floor as u64));
        for message in &mut self.messages[..floor] {
            message.place = Place::Settled;
        }
        for consumer in self.consumers.values_mut() {
            consumer.held.retain(|_, index| *index >= floor);
        }
    }

    fn pass(&mut self, time: u64) {
        self.now += time;
        let now = self.now;
        self.part().end_rest(Monotonic(now));
        for message in &mut self.messages {
            if matches!(message.place, Place::Rests(until) if until <= now) {
                message.place = Place::Free;
            }
        }
    }

    /// After a dispatch: whatever nobody has waits for a reason.
    fn assert_nothing_is_forgotten(&self) {
        let mut seen = BTreeSet::new();
        for (index, message) in self.messages.iter().enumerate() {
            let is_first = match message.place {
                Place::Free => seen.insert(message.key),
                Place::Rests(_) => {
                    seen.insert(message.key);
                    false
                }
                Place::Held(_) | Place::Settled => false,
            };
            if !is_first {
                continue;
            }
            let Some(holder) = self.membership.holder(hash_of(message.key)) else {
                continue;
            };
            let held_by_another = self.messages.iter().any(|other| {
                other.key == message.key && matches!(other.place, Place::Held(it) if it != holder)
            });
            assert!(
                held_by_another || self.consumers[&holder].credit == 0,
                "{index} of key {} is held up for nothing",
                message.key
            );
        }
    }

    fn check(&self) {
        self.partition.audit(&self.arena);
        self.membership.invariants();
        let unsettled = self.messages.iter().filter(|it| it.place != Place::Settled);
        let part = self.partition.part(SUBSCRIPTION).unwrap();
        let backlog = part.backlog(&self.arena, &self.partition.log);
        assert_eq!(backlog as usize, unsettled.count());
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { key, times } => {
                for _ in 0..times {
                    self.append(key);
                }
            }
            Step::Join { credit } if self.consumers.len() < 7 => {
                self.join(credit);
            }
            Step::Join { .. } => {}
            Step::Leave { which, unseen } => {
                if let Some(handle) = self.nth(which) {
                    self.leave(handle, unseen);
                }
            }
            Step::Allow { which, credit } => {
                if let Some(handle) = self.nth(which) {
                    self.consumers.get_mut(&handle).unwrap().credit += credit;
                }
            }
            Step::Acknowledge {
                which,
                pick,
                times,
                through,
            } => {
                for _ in 0..times {
                    if let Some(handle) = self.nth(which) {
                        self.acknowledge(handle, pick, through);
                    }
                }
            }
            Step::AcknowledgeAgain {
                which,
                first,
                count,
            } => {
                if let Some(handle) = self.nth(which) {
                    self.acknowledge_again(handle, first, count);
                }
            }
            Step::GiveBack { which, pick, rest } => {
                if let Some(handle) = self.nth(which) {
                    self.give_back(handle, pick, rest);
                }
            }
            Step::Pass { time } => self.pass(time),
            Step::Expire { count } if self.expires => self.expire(count),
            Step::Expire { .. } => {}
            Step::ThinOut => while self.partition.thin_out(&mut self.arena) {},
            Step::Dispatch => {
                self.dispatch();
                self.assert_nothing_is_forgotten();
            }
        }
        self.check();
    }

    /// Whoever is left takes and settles everything, in the order of each key.
    fn finish(mut self) {
        self.join(0);
        self.pass(1 << 30);
        while self.messages.iter().any(|it| it.place != Place::Settled) {
            for consumer in self.consumers.values_mut() {
                consumer.credit += 1_000;
            }
            self.dispatch();
            let before = self.messages.clone();
            let handles: Vec<Handle> = self.consumers.keys().copied().collect();
            for handle in handles {
                while !self.consumers[&handle].held.is_empty() {
                    self.acknowledge(handle, 0, true);
                }
            }
            let is_settled = |it: &Message| it.place == Place::Settled;
            assert!(
                self.messages.iter().filter(|it| is_settled(it)).count()
                    > before.iter().filter(|it| is_settled(it)).count(),
                "something comes of each round"
            );
        }
        self.check();
        let is_empty = self.partition.log.chunks() <= 1;
        assert!(is_empty || self.expires, "nothing is left to keep");
        assert_eq!(self.part().unsettled(), 0);
        self.part().relax(true);
        assert_eq!(self.part().entries_size(), 0, "all memory comes back");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        key: u64,
        times: usize,
    },
    Join {
        credit: u64,
    },
    Leave {
        which: usize,
        unseen: u64,
    },
    Allow {
        which: usize,
        credit: u64,
    },
    Acknowledge {
        which: usize,
        pick: usize,
        times: usize,
        through: bool,
    },
    AcknowledgeAgain {
        which: usize,
        first: usize,
        count: usize,
    },
    GiveBack {
        which: usize,
        pick: usize,
        rest: Option<u64>,
    },
    Pass {
        time: u64,
    },
    Expire {
        count: usize,
    },
    ThinOut,
    Dispatch,
}

fn step() -> impl Strategy<Value = Step> {
    let (which, pick) = (any::<usize>(), any::<usize>());
    let key = prop_oneof![4 => 0..20u64, 1 => PRODUCERS_FROM..PRODUCERS_FROM + 3];
    let credit = prop_oneof![Just(0u64), 1..10u64, Just(1_000)];
    prop_oneof![
        12 => (key, 1..12usize).prop_map(|(key, times)| Step::Append { key, times }),
        3 => credit.clone().prop_map(|credit| Step::Join { credit }),
        2 => (which, 0..8u64).prop_map(|(which, unseen)| Step::Leave { which, unseen }),
        6 => (which, credit).prop_map(|(which, credit)| Step::Allow { which, credit }),
        8 => (which, pick, 1..10usize, any::<bool>()).prop_map(
            |(which, pick, times, through)| Step::Acknowledge { which, pick, times, through }
        ),
        2 => (which, pick, 1..10usize).prop_map(
            |(which, first, count)| Step::AcknowledgeAgain { which, first, count }
        ),
        3 => (which, pick, prop::option::of(1..50u64))
            .prop_map(|(which, pick, rest)| Step::GiveBack { which, pick, rest }),
        2 => (1..40u64).prop_map(|time| Step::Pass { time }),
        1 => (0..150usize).prop_map(|count| Step::Expire { count }),
        1 => Just(Step::ThinOut),
        12 => Just(Step::Dispatch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_key_is_with_one_consumer_at_a_time_and_in_order_whoever_comes_and_goes(
        expires in any::<bool>(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = if expires { World::expiring() } else { World::new() };
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}

/// Two members, and keys of each of them.
fn two_members() -> (World, [Handle; 2], [Vec<u64>; 2]) {
    let mut world = World::new();
    let members = [world.join(0), world.join(0)];
    let keys = members.map(|member| {
        let holder = |key: &u64| world.membership.holder(hash_of(*key));
        (0..200).filter(|key| holder(key) == Some(member)).collect()
    });
    (world, members, keys)
}

/// A consumer whose subscription is not durable yet has no credit: what is its own is passed
/// over, and it was told that it begins behind that.
#[test]
fn whoever_comes_starts_at_what_was_passed_over_and_not_behind_it() {
    let mut world = World::new();
    let consumer = world.join(0);
    for key in 0..4 {
        world.append(key);
    }
    world.dispatch();
    assert_eq!(world.part().fresh(), Offset(4), "it was looked through");
    assert_eq!(world.part().start(), Offset(0), "and nobody was handed it");
    world.consumers.get_mut(&consumer).unwrap().credit = 1;
    world.dispatch();
    assert_eq!(world.part().start(), Offset(1));
}

#[test]
fn one_who_takes_nothing_holds_up_nobody_else_within_the_window() {
    let (mut world, [_, busy], [held_up, others]) = two_members();
    for index in 0..KEY_WINDOW as usize {
        world.append(held_up[index % held_up.len()]);
    }
    world.append(others[0]);
    world.consumers.get_mut(&busy).unwrap().credit = 100;
    world.dispatch();
    assert_eq!(
        world.consumers[&busy].held.len(),
        1,
        "behind all that waits"
    );
    // One more than may wait: now the scan stands.
    world.append(held_up[0]);
    world.append(others[0]);
    world.dispatch();
    assert_eq!(world.consumers[&busy].held.len(), 1);
    world.check();
}

#[test]
fn what_a_part_knows_of_keys_is_bounded_however_long_the_backlog_is() {
    let (mut world, [idle, busy], [held_up, others]) = two_members();
    for _ in 0..4 * KEY_WINDOW as usize {
        world.append(held_up[0]);
    }
    world.append(others[0]);
    world.consumers.get_mut(&busy).unwrap().credit = 100;
    world.dispatch();
    assert_eq!(world.part().unsettled(), KEY_WINDOW);
    assert!(world.part().entries_size() <= 2 * KEY_WINDOW as usize * KEYED_ENTRY_SIZE);
    // It is handed out as its consumer takes it, and the scan goes on behind it.
    while world.consumers[&busy].held.is_empty() {
        world.consumers.get_mut(&idle).unwrap().credit = 1_000;
        world.dispatch();
        let last = world.consumers[&idle].held.len() - 1;
        world.acknowledge(idle, last, true);
    }
    world.finish();
}

#[test]
fn a_key_that_moves_waits_until_its_old_holder_has_settled_what_it_has() {
    let mut world = World::new();
    let old = world.join(1_000);
    for key in 0..100 {
        world.append(key);
        world.append(key);
    }
    world.dispatch();
    let new = world.join(1_000);
    for key in 0..100 {
        world.append(key);
    }
    world.dispatch();
    assert!(
        world.consumers[&new].held.is_empty(),
        "all keys are with the old one"
    );
    let stayed = world.consumers[&old].held.len() - 200;
    assert!((20..80).contains(&stayed), "{stayed} of 100 keys stayed");
    // One of two messages of a key is not enough, and both are.
    let moved = |world: &World| {
        let holder = |key: u64| world.membership.holder(hash_of(key));
        (0..100).find(|key| holder(*key) == Some(new)).unwrap()
    };
    let key = moved(&world);
    let nth = |world: &World, offset: usize| {
        let mut held = world.consumers[&old].held.values();
        held.position(|index| *index == offset).unwrap()
    };
    for (offset, arrived) in [(2 * key as usize, 0), (2 * key as usize + 1, 1)] {
        let which = nth(&world, offset);
        world.acknowledge(old, which, false);
        assert_eq!(world.part().frees(), arrived == 1);
        world.dispatch();
        assert_eq!(world.consumers[&new].held.len(), arrived);
    }
    // When the old one goes the new one has everything, in order.
    world.leave(old, 0);
    world.dispatch();
    world.assert_nothing_is_forgotten();
    assert_eq!(world.consumers[&new].held.len(), 300 - 2);
}

/// What an earlier run had settled made entries without keys, and a broker with such a
/// subscription did not come up again.
#[test]
fn what_an_earlier_run_left_of_keys_goes_to_whoever_has_them_now() {
    let mut world = World::new();
    for key in 0..20 {
        world.append(key % 10);
    }
    let World {
        arena, partition, ..
    } = &mut world;
    let part = &mut partition.parts[0].1;
    part.settled_before(arena, &mut partition.log, Offset(0), 2);
    part.settled_before(arena, &mut partition.log, Offset(5), 3);
    part.returned_before(arena, &mut partition.log, (Offset(12), 1), 4);
    part.go_on();
    part.invariants();
    assert_eq!(part.unsettled(), 8);
    for (index, message) in world.messages.iter_mut().enumerate() {
        match index {
            0..2 | 5..8 => message.place = Place::Settled,
            12 => message.count = 4,
            _ => {}
        }
    }
    world.join(1_000);
    world.join(1_000);
    world.dispatch();
    world.check();
    world.finish();
}

#[test]
fn a_message_that_rests_holds_up_its_key_and_no_other() {
    let mut world = World::new();
    let only = world.join(1);
    world.append(1);
    world.dispatch();
    world.give_back(only, 0, Some(10));
    world.append(1);
    world.append(2);
    world.consumers.get_mut(&only).unwrap().credit = 9;
    world.dispatch();
    let held = |world: &World| {
        world.consumers[&only]
            .held
            .values()
            .copied()
            .collect::<Vec<_>>()
    };
    assert_eq!(held(&world), [2]);
    world.pass(10);
    world.dispatch();
    assert_eq!(held(&world), [2, 0, 1]);
}
