//! Segments that expire under producers, consumers and restarts.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::durable::Device;
use super::*;
use crate::frame::control::WantCredit;

const NAME: &str = "/default/news";

/// What a segment has at least.
const SEGMENT: u64 = 65_536;

/// Frames of a kibibyte.
const BODY: [u8; 1024 - 112] = [7; 1024 - 112];

fn later(seconds: u64) -> Now {
    Now {
        monotonic: now()
            .monotonic
            .after(core::time::Duration::from_secs(seconds)),
        ..now()
    }
}

/// A producer to a queue whose segments expire after three seconds.
fn expiring_producer(peer: &mut Peer, shard: &mut Shard, device: Option<&mut Device>) -> Opened {
    producer_of(peer, shard, device, 2)
}

/// A producer to a queue with this retention.
fn producer_of(
    peer: &mut Peer,
    shard: &mut Shard,
    device: Option<&mut Device>,
    retention: u8,
) -> Opened {
    let fields = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(NAME.len()).unwrap().into(),
        options: 1.into(),
        retain: SEGMENT.into(),
        retention,
        period: if retention == 2 { 3 } else { 0 }.into(),
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[NAME.as_bytes()]);
    let mut answers = peer.exchange(shard);
    if let Some(device) = device {
        device.settle(shard);
        answers.extend(take(shard, peer.link));
    }
    opened(&answers)
}

/// Sends so many kibibytes, a few at a time; all that came in answer.
fn send(
    peer: &mut Peer,
    shard: &mut Shard,
    device: &mut Option<&mut Device>,
    producer: &mut Opened,
    count: u64,
) -> Vec<u8> {
    let mut answers = Vec::new();
    for number in 0..count {
        peer.message(producer, &BODY);
        if number % 4 == 3 || number + 1 == count {
            answers.extend(peer.exchange(shard));
            if let Some(device) = device {
                device.settle(shard);
                answers.extend(take(shard, peer.link));
            }
        }
    }
    answers
}

/// Of each message that was delivered, its offset.
fn offsets(bytes: &[u8]) -> Vec<u64> {
    let frames = frames(bytes).into_iter();
    frames
        .filter_map(|(frame, _)| match frame {
            Frame::Message(message) => Some(message.header.offset.get()),
            Frame::Control { .. } => None,
        })
        .collect()
}

fn segments(shard: &Shard) -> (u32, u32) {
    let local = shard.locals.iter().next().unwrap();
    let counts = local.partitions[0].log.stretch_counts(&shard.arena);
    (counts.closed, counts.open)
}

#[test]
fn what_expired_is_taken_from_who_holds_it_and_an_acknowledgement_comes_to_nothing() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = expiring_producer(&mut peer, &mut shard, None);
    let (consumer, _) = peer.consumer(&mut shard, NAME, 10);
    let got = send(&mut peer, &mut shard, &mut None, &mut producer, 150);
    assert_eq!(offsets(&got), (0..10).collect::<Vec<_>>());
    assert_eq!(segments(&shard), (2, 1));
    assert_eq!(shard.expiries.next(), Some(later(3).monotonic));
    shard.expire(later(2));
    assert_eq!(segments(&shard), (2, 1), "their period is not over");
    shard.expire(later(3));
    assert_eq!(segments(&shard), (0, 1), "the open one stays");
    shard.audit();
    let ack = Acknowledge {
        runs: 1.into(),
        confirm: 5.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: 0.into(),
        count: 10.into(),
    };
    peer.control(consumer.0, &ack, &[run.as_bytes()]);
    let more = Allow {
        messages: 1_000.into(),
        bytes: (1_u64 << 20).into(),
        ..Allow::default()
    };
    peer.control(consumer.0, &more, &[]);
    let answers = peer.exchange(&mut shard);
    assert_eq!(shard.counters().read(Counter::AcksStrange), 0);
    let confirmed = frames(&answers)
        .into_iter()
        .find_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Acknowledged(fields, _),
                ..
            } => Some(fields.refusal.get()),
            _ => None,
        });
    assert_eq!(confirmed, Some(0));
    assert_eq!(offsets(&answers), (128..150).collect::<Vec<_>>());
    shard.audit();
}

#[test]
fn what_rests_expires_as_well_and_its_return_is_not_waited_for() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = expiring_producer(&mut peer, &mut shard, None);
    let (consumer, _) = peer.consumer(&mut shard, NAME, 10);
    send(&mut peer, &mut shard, &mut None, &mut producer, 70);
    let back = crate::frame::control::Return {
        runs: 1.into(),
        options: 1.into(),
        delay: 60_000_000.into(),
        ..crate::frame::control::Return::default()
    };
    let run = AckRun {
        first: 0.into(),
        count: 10.into(),
    };
    peer.control(consumer.0, &back, &[run.as_bytes()]);
    peer.exchange(&mut shard);
    shard.expire(later(3));
    shard.audit();
    let ticks = later(3).monotonic;
    assert!(
        shard.next_expiry().is_none_or(|next| next <= ticks),
        "nothing returns in a minute: {:?}",
        shard.next_expiry()
    );
}

/// Both clocks stand still over these restarts, so nothing expires by time again.
#[test]
fn what_expired_stays_away_over_restarts_though_the_clock_was_set_back() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = expiring_producer(&mut peer, &mut shard, Some(&mut device));
    producer.durability = Durability::Flushed;
    send(
        &mut peer,
        &mut shard,
        &mut Some(&mut device),
        &mut producer,
        150,
    );
    assert_eq!(segments(&shard), (2, 1));
    shard.expire(later(3));
    assert_eq!(segments(&shard), (0, 1));
    device.settle(&mut shard);
    for _ in 0..2 {
        let mut shard = device.start();
        assert_eq!(segments(&shard), (0, 1), "nothing came back");
        let mut peer = Peer::new(&mut shard);
        let (_, waiting) = peer.consumer(&mut shard, NAME, 1_000);
        assert_eq!(offsets(&waiting), (128..150).collect::<Vec<_>>());
        shard.audit();
    }
}

#[test]
fn a_segment_that_expires_after_a_restart_was_closed_when_it_was_closed_before() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = expiring_producer(&mut peer, &mut shard, Some(&mut device));
    producer.durability = Durability::Flushed;
    send(
        &mut peer,
        &mut shard,
        &mut Some(&mut device),
        &mut producer,
        70,
    );
    let (mut shard, _) = device.recover();
    assert_eq!(segments(&shard), (1, 1));
    // It comes up long behind the end of the period, on the wall clock.
    let wall = Wall(now().wall.0 + 4_000_000_000);
    shard.turn(Now { wall, ..now() });
    assert_eq!(
        segments(&shard),
        (0, 1),
        "before anybody was given any of it"
    );
    let (mut shard, _) = device.recover();
    let wall = Wall(now().wall.0 + 1_000_000_000);
    shard.turn(Now { wall, ..now() });
    assert_eq!(segments(&shard), (1, 1));
    assert_eq!(shard.next_expiry(), Some(later(2).monotonic));
}

/// Asks for room for a mebibyte; whether it was granted at once.
fn has_room(peer: &mut Peer, shard: &mut Shard, producer: &Opened) -> bool {
    let want = WantCredit {
        bytes: (1_u64 << 20).into(),
    };
    peer.control(producer.handle.0, &want, &[]);
    let answers = peer.exchange(shard);
    is_granted(&answers, producer)
}

fn is_granted(answers: &[u8], producer: &Opened) -> bool {
    frames(answers).iter().any(|(frame, _)| {
        matches!(frame, Frame::Control { control: Control::Credit(credit, _), subject }
                if *subject == producer.handle.0
                    && credit.bytes.get() >= producer.spent + (1 << 20))
    })
}

#[test]
fn what_has_only_to_expire_takes_its_share_of_memory_and_gives_it_back_in_time() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = expiring_producer(&mut peer, &mut shard, None);
    let body = vec![7; (1 << 20) - 112];
    let mut sent = 0;
    while has_room(&mut peer, &mut shard, &producer) {
        peer.message(&mut producer, &body);
        peer.exchange(&mut shard);
        sent += 1;
        assert!(sent < 64, "there is a bound");
    }
    assert!(sent > 2, "segments are kept: {sent}");
    shard.audit();
    let mut other = peer.producer(&mut shard, "/default/q", 1);
    assert!(has_room(&mut peer, &mut shard, &other), "others go on");
    peer.message(&mut other, &body);
    peer.exchange(&mut shard);
    shard.expire(later(3));
    let answers = take(&mut shard, peer.link);
    assert!(is_granted(&answers, &producer), "there is room again");
    shard.audit();
}

/// Messages of a segment: all are a kibibyte.
const PER_SEGMENT: u64 = SEGMENT / 1024;

#[derive(Clone, Copy, Debug)]
enum Act {
    Send(u64),
    /// So many from the how-manieth that is not acknowledged.
    Acknowledge(usize, usize),
    /// All periods are over.
    Expire,
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..150_u64).prop_map(Act::Send),
        4 => (any::<usize>(), 1..150_usize).prop_map(|(at, count)| Act::Acknowledge(at, count)),
        2 => Just(Act::Expire),
        2 => Just(Act::Restart),
    ]
}

/// A queue that keeps segments, beside what is expected of it.
struct World {
    device: Device,
    shard: Shard,
    peer: Peer,
    producer: Opened,
    consumer: Handle,
    retention: u8,
    sent: u64,
    floor: u64,
    unsettled: BTreeSet<u64>,
}

impl World {
    fn new(retention: u8) -> Self {
        let mut device = Device::default();
        let mut shard = device.start();
        let mut peer = Peer::new(&mut shard);
        let producer = producer_of(&mut peer, &mut shard, Some(&mut device), retention);
        let mut world = Self {
            device,
            shard,
            peer,
            producer,
            consumer: Handle(0),
            retention,
            sent: 0,
            floor: 0,
            unsettled: BTreeSet::new(),
        };
        world.consume();
        world
    }

    /// A consumer that takes all there is: what is expected.
    fn consume(&mut self) {
        self.producer.durability = Durability::Flushed;
        let (consumer, waiting) = self.peer.consumer(&mut self.shard, NAME, 10_000);
        let got: BTreeSet<u64> = offsets(&waiting).into_iter().collect();
        assert_eq!(got, self.unsettled);
        self.consumer = consumer;
    }

    fn settle(&mut self) -> Vec<u8> {
        self.device.settle(&mut self.shard);
        take(&mut self.shard, self.peer.link)
    }

    fn act(&mut self, act: Act) {
        match act {
            // The consumer has credit for a mebibyte.
            Act::Send(count) if self.sent + count <= 900 => {
                let mut device = Some(&mut self.device);
                let (peer, shard) = (&mut self.peer, &mut self.shard);
                let got = send(peer, shard, &mut device, &mut self.producer, count);
                let expected: Vec<u64> = (self.sent..self.sent + count).collect();
                assert_eq!(offsets(&got), expected);
                self.unsettled.extend(expected);
                self.sent += count;
            }
            Act::Send(_) => {}
            Act::Acknowledge(at, count) => {
                let from = at % self.unsettled.len().max(1);
                let some = self.unsettled.iter().skip(from).take(count);
                let some: Vec<u64> = some.copied().collect();
                for offset in some {
                    let ack = Acknowledge {
                        runs: 1.into(),
                        ..Acknowledge::default()
                    };
                    let run = AckRun {
                        first: offset.into(),
                        count: 1.into(),
                    };
                    (self.peer).control(self.consumer.0, &ack, &[run.as_bytes()]);
                    self.unsettled.remove(&offset);
                }
                self.peer.exchange(&mut self.shard);
                self.settle();
            }
            Act::Expire => {
                self.shard.expire(later(3));
                self.settle();
                if self.retention == 2 {
                    let open = self.sent.saturating_sub(1) / PER_SEGMENT;
                    self.floor = self.floor.max(open * PER_SEGMENT);
                    let floor = self.floor;
                    self.unsettled.retain(|offset| *offset >= floor);
                }
            }
            Act::Restart => {
                self.shard = self.device.start();
                self.peer = Peer::new(&mut self.shard);
                let (peer, shard) = (&mut self.peer, &mut self.shard);
                self.producer = producer_of(peer, shard, Some(&mut self.device), self.retention);
                self.consume();
            }
        }
        let open = self.sent.saturating_sub(1) / PER_SEGMENT;
        let stays = |segment: &u64| {
            let range = segment * PER_SEGMENT..(segment + 1) * PER_SEGMENT;
            match self.retention {
                2 => range.start >= self.floor,
                _ => self.unsettled.range(range).next().is_some(),
            }
        };
        let closed = (0..open).filter(stays).count();
        let expected = (u32::try_from(closed).unwrap(), u32::from(self.sent > 0));
        assert_eq!(segments(&self.shard), expected);
        self.shard.audit();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 64 }))]

    #[test]
    fn segments_are_the_same_in_every_run_whatever_was_settled_and_has_expired(
        retention in 1..=2_u8,
        acts in prop::collection::vec(act(), 1..24),
    ) {
        let mut world = World::new(retention);
        for act in acts {
            world.act(act);
        }
        world.act(Act::Restart);
    }
}
