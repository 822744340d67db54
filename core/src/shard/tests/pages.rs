//! Backlogs beyond memory: what leaves it comes back as it was, whatever happens meanwhile.

use super::durable::{
    Device, consumer, exchange, flushed_producer, settle_one, subscriber, topic_producer,
};
use super::*;
use crate::frame::control::{Allow, Delete, Poll, WantCredit};
use crate::memory::CHUNK;

const QUEUE: &str = "/default/q";
const BODY: usize = 8_000;

fn body(sequence: u64) -> Vec<u8> {
    let mut body = vec![u8::try_from(sequence % 251).unwrap(); BODY];
    body[..8].copy_from_slice(&sequence.to_le_bytes());
    body
}

/// Who sends to one partition, with credit.
struct Sender {
    peer: Peer,
    producer: Opened,
    credit: u64,
    told: u64,
}

impl Sender {
    fn new(peer: Peer, producer: Opened) -> Self {
        Self {
            peer,
            producer,
            credit: limits::CREDIT_INITIAL.into(),
            told: 0,
        }
    }

    fn hear(&mut self, answers: &[u8]) {
        self.credit = self.credit.max(granted(answers));
        for run in completions(answers) {
            assert_eq!(run.refusal.get(), 0);
            self.told += u64::from(run.count.get());
        }
    }

    /// Sends up to `count` messages, as long as there is credit; how many it sent.
    fn send(&mut self, shard: &mut Shard, device: &mut Device, count: u64) -> u64 {
        let size = encode::message_size(0, BODY) as u64;
        for sent in 0..count {
            let mut tries = 0;
            while self.credit < self.producer.spent + size {
                tries += 1;
                if tries > 50 {
                    return sent;
                }
                let want = WantCredit { bytes: size.into() };
                self.peer.control(self.producer.handle.0, &want, &[]);
                let answers = exchange(&mut self.peer, shard, device);
                self.hear(&answers);
            }
            let body = body(self.producer.sequence + 1);
            self.peer.message(&mut self.producer, &body);
            if sent % 64 == 63 {
                let answers = self.peer.exchange(shard);
                self.hear(&answers);
            }
        }
        let answers = exchange(&mut self.peer, shard, device);
        self.hear(&answers);
        count
    }
}

/// A consumer acknowledges messages of the first partition.
fn settle(peer: &mut Peer, handle: Handle, first: u64, count: u64) {
    let ack = Acknowledge {
        runs: 1.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: first.into(),
        count: count.into(),
    };
    peer.control(handle.0, &ack, &[run.as_bytes()]);
}

/// All that a consumer is given in order, settled as it comes, from the message with that
/// number on; the next number.
fn receive_all(
    shard: &mut Shard,
    device: &mut Device,
    peer: &mut Peer,
    (handle, answers): (Handle, Vec<u8>),
    mut next: u64,
) -> u64 {
    let mut answers = answers;
    loop {
        let got = bodies(&answers);
        let first = got.first().map(|it| it.1);
        for (_, _, found) in &got {
            assert!(*found == body(next), "message {next} is next, and whole");
            next += 1;
        }
        if let Some(first) = first {
            settle(peer, handle, first, got.len() as u64);
        }
        answers = exchange(peer, shard, device);
        if answers.is_empty() && !device.settle_pages(shard) {
            shard.turn(now());
            answers = take(shard, peer.link);
            if answers.is_empty() && got.is_empty() {
                return next;
            }
        }
    }
}

/// All that a queue has from its first message on; the number of the next.
fn receive_queue(shard: &mut Shard, device: &mut Device, queue: &str) -> u64 {
    let mut peer = Peer::new(shard);
    let opened = consumer(&mut peer, shard, device, queue);
    let next = receive_all(shard, device, &mut peer, opened, 1);
    shard.closed(now(), peer.link);
    next
}

fn senders(device: &mut Device, shard: &mut Shard) -> Sender {
    sender_to(device, shard, QUEUE)
}

fn sender_to(device: &mut Device, shard: &mut Shard, queue: &str) -> Sender {
    let mut peer = Peer::new(shard);
    let producer = flushed_producer(&mut peer, shard, device, queue);
    Sender::new(peer, producer)
}

/// A topic and who sends to it. Subscribers of these names were there once: all of it is kept for
/// them.
fn sender_to_subscriptions(device: &mut Device, shard: &mut Shard, names: &[&str]) -> Sender {
    let mut peer = Peer::new(shard);
    let producer = topic_producer(&mut peer, shard, device);
    let mut reader = Peer::new(shard);
    for name in names {
        subscriber(&mut reader, shard, device, (name, 2));
    }
    shard.closed(now(), reader.link);
    Sender::new(peer, producer)
}

/// Some three times what the memory may hold.
const MANY: u64 = 25_000;

#[test]
fn a_backlog_of_many_times_the_memory_is_taken_and_given_back_in_order() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    assert_eq!(sender.send(&mut shard, &mut device, MANY), MANY);
    assert_eq!(sender.told, MANY);
    let (written, read) = device.paged();
    assert!(written > 1_500 && read == 0, "{written} {read}");
    assert!(shard.paged_bytes() > 150 << 20);
    shard.audit();
    let next = receive_queue(&mut shard, &mut device, QUEUE);
    assert_eq!(next, MANY + 1);
    assert_eq!(shard.paged_bytes(), 0, "no page is in use any more");
    shard.audit();
}

/// Nothing may leave before it is shown, and nobody sends more before something has left.
#[test]
fn what_waits_for_a_flush_leaves_once_that_is_over() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    sender.send(&mut shard, &mut device, 800);
    let size = encode::message_size(0, BODY) as u64;
    let mut sent = 0;
    loop {
        while sender.credit >= sender.producer.spent + size {
            let body = body(sender.producer.sequence + 1);
            sender.peer.message(&mut sender.producer, &body);
            sent += 1;
        }
        let want = WantCredit { bytes: size.into() };
        sender.peer.control(sender.producer.handle.0, &want, &[]);
        // It is written, and the device does not say so.
        let answers = sender.peer.exchange(&mut shard);
        device.hear(&mut shard);
        let before = sender.credit;
        sender.hear(&answers);
        if sender.credit == before {
            break;
        }
    }
    assert!(sent > 300, "{sent}");
    assert!(!shard.has_work(), "it can sleep");
    device.settle(&mut shard);
    let more = sender.send(&mut shard, &mut device, 5_000);
    assert_eq!(more, 5_000, "and memory is there again");
}

/// How little memory is free is held against how much was since, and not against the least
/// that ever was.
#[test]
fn memory_gets_short_again_after_it_was_much_shorter() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let queues = ["/default/a", "/default/b", "/default/c"];
    let mut senders = queues.map(|queue| sender_to(&mut device, &mut shard, queue));
    for sender in &mut senders {
        assert_eq!(sender.send(&mut shard, &mut device, 3_000), 3_000);
    }
    for queue in queues {
        assert_eq!(receive_queue(&mut shard, &mut device, queue), 3_001);
    }
    let [mut alone, ..] = senders;
    assert_eq!(alone.send(&mut shard, &mut device, 3_000), 3_000);
}

/// What stays for those who read from there is not all that there is memory for.
#[test]
fn many_queues_that_nobody_reads_leave_memory_to_their_senders() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    shard.read_ahead_at_most(30);
    let queues: Vec<String> = (0..40).map(|it| format!("/default/q{it}")).collect();
    for queue in &queues {
        let mut sender = sender_to(&mut device, &mut shard, queue);
        assert_eq!(sender.send(&mut shard, &mut device, 300), 300, "{queue}");
        shard.closed(now(), sender.peer.link);
    }
    shard.audit();
    for queue in &queues {
        assert_eq!(
            receive_queue(&mut shard, &mut device, queue),
            301,
            "{queue}"
        );
    }
    assert_eq!(shard.paged_bytes(), 0);
}

#[test]
fn a_browser_is_shown_what_is_away_too() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, true);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    sender.send(&mut shard, &mut device, 200);
    let (written, _) = device.paged();
    assert!(written > 10, "{written}");
    let mut peer = Peer::new(&mut shard);
    let fields = OpenConsumer {
        session: peer.session.into(),
        destination_length: u16::try_from(QUEUE.len()).unwrap().into(),
        sharing: 5,
        messages: 1_000.into(),
        bytes: (1 << 30).into(),
        ..OpenConsumer::default()
    };
    peer.control(3, &fields, &[QUEUE.as_bytes()]);
    let mut shown = bodies(&exchange(&mut peer, &mut shard, &mut device));
    for _ in 0..40 {
        device.settle_pages(&mut shard);
        shard.turn(now());
        shown.extend(bodies(&take(&mut shard, peer.link)));
    }
    let offsets: Vec<u64> = shown.iter().map(|it| it.1).collect();
    assert_eq!(offsets, (0..200).collect::<Vec<u64>>());
}

/// What came for one who reads far from both ends of a log leaves again, though another
/// needs all of it still.
#[test]
fn whoever_reads_in_the_middle_leaves_nothing_behind_in_memory() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = sender_to_subscriptions(&mut device, &mut shard, &["slow", "fast"]);
    assert_eq!(sender.send(&mut shard, &mut device, MANY), MANY);
    let mut reader = Peer::new(&mut shard);
    let fast = subscriber(&mut reader, &mut shard, &mut device, ("fast", 2));
    let next = receive_through(&mut shard, &mut device, &mut reader, fast, 1);
    assert_eq!(next, MANY + 1);
}

/// What comes and leaves again takes other pages, and those that it had rest: once there are
/// no more, a checkpoint frees them.
#[test]
fn pages_that_rest_are_freed_when_there_are_no_others() {
    let mut device = Device::making_checkpoints(1 << 40).with_pages(4_000, false);
    let mut shard = device.start();
    let mut sender = sender_to_subscriptions(&mut device, &mut shard, &["slow", "fast"]);
    assert_eq!(sender.send(&mut shard, &mut device, MANY), MANY);
    device.checkpoint(&mut shard);
    let mut next = 1;
    for _ in 0..10 {
        let mut reader = Peer::new(&mut shard);
        let fast = subscriber(&mut reader, &mut shard, &mut device, ("fast", 2));
        next = receive_through(&mut shard, &mut device, &mut reader, fast, next);
        shard.closed(now(), reader.link);
        while shard.is_checkpointing() {
            device.settle(&mut shard);
            device.checkpoint_step(&mut shard);
        }
    }
    assert_eq!(next, MANY + 1);
}

/// Who takes more than memory holds, and settles nothing, takes nothing of what was granted.
#[test]
fn what_comes_leaves_what_was_promised_to_others() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    assert_eq!(sender.send(&mut shard, &mut device, MANY), MANY);
    let mut other = sender_to(&mut device, &mut shard, "/default/other");
    assert_eq!(other.send(&mut shard, &mut device, 1), 1);
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = consumer(&mut peer, &mut shard, &mut device, QUEUE);
    let mut taken = bodies(&answers).len();
    let mut quiet = 0;
    while quiet < 10 {
        let more = device.settle_pages(&mut shard);
        shard.turn(now());
        let shown = bodies(&take(&mut shard, peer.link)).len();
        taken += shown;
        quiet = if shown > 0 || more { 0 } else { quiet + 1 };
    }
    assert!(taken > 1_000 && (taken as u64) < MANY, "{taken}");
    let free = (shard.arena.free() * CHUNK) as u64;
    let granted = shard.reserved * shard.reserve_factor();
    assert!(
        granted > 0 && free >= granted + shard.plan.egress,
        "{free} {granted}"
    );
    assert_eq!(other.send(&mut shard, &mut device, 10), 10);
    assert_eq!(sender.send(&mut shard, &mut device, 100), 100);
}

#[test]
fn without_pages_its_producer_gets_no_credit() {
    let mut device = Device::making_checkpoints(0);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    assert!(sender.send(&mut shard, &mut device, MANY) < MANY / 2);
}

#[test]
fn with_few_pages_it_gets_none_once_they_are_full_and_all_comes_back() {
    let mut device = Device::making_checkpoints(0).with_pages(600, false);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    let sent = sender.send(&mut shard, &mut device, MANY);
    assert!(sent < MANY * 2 / 3, "{sent}");
    assert!(shard.paged_bytes() > 500 << 16);
    let next = receive_queue(&mut shard, &mut device, QUEUE);
    assert_eq!(next, sent + 1);
    shard.audit();
}

#[test]
fn a_backlog_beyond_memory_is_there_in_the_next_run() {
    let mut device = Device::making_checkpoints(1 << 40).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    sender.send(&mut shard, &mut device, MANY / 2);
    device.checkpoint(&mut shard);
    sender.send(&mut shard, &mut device, MANY / 2);
    // Of the first run pages are named and of the second there are others.
    for _ in 0..2 {
        device.cut(&shard, &mut |_| false);
        shard = device.start();
        assert!(shard.paged_bytes() > 100 << 20);
        device.checkpoint(&mut shard);
    }
    let next = receive_queue(&mut shard, &mut device, QUEUE);
    assert_eq!(next, MANY + 1);
    // The pages that the last checkpoint named wait for the next one.
    device.checkpoint(&mut shard);
    device.settle(&mut shard);
    assert_eq!(shard.paged_bytes(), 0);
}

#[test]
fn what_a_device_refuses_for_a_while_is_written_and_read_when_it_does_not() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    device.fail_pages(usize::MAX);
    let sent = sender.send(&mut shard, &mut device, MANY);
    assert!(sent < MANY / 2, "memory is full");
    let later = |seconds| Now {
        monotonic: now()
            .monotonic
            .after(core::time::Duration::from_secs(seconds)),
        ..now()
    };
    assert!(shard.next_expiry().is_some());
    device.fail_pages(3);
    shard.expire(later(10));
    let more = sender.send(&mut shard, &mut device, MANY - sent);
    assert!(more < MANY - sent, "it failed again");
    device.settle(&mut shard);
    device.fail_pages(0);
    shard.expire(later(20));
    let rest = sender.send(&mut shard, &mut device, MANY - sent - more);
    assert_eq!(sent + more + rest, MANY);
    let failed = |shard: &Shard| {
        let count = |counter| shard.counters().read(counter);
        let writes = count(Counter::PageWritesFailed);
        (writes, count(Counter::PageReadsFailed))
    };
    let (writes, reads) = failed(&shard);
    assert!(
        writes > 3,
        "three of the second time, and those of the first"
    );
    assert_eq!(reads, 0);
    device.fail_pages(5);
    let mut peer = Peer::new(&mut shard);
    let (handle, answers) = consumer(&mut peer, &mut shard, &mut device, QUEUE);
    let next = receive_all(&mut shard, &mut device, &mut peer, (handle, answers), 1);
    assert!(next < MANY, "what cannot be read has to wait");
    let (as_before, reads) = failed(&shard);
    assert_eq!(as_before, writes);
    assert!((1..=5).contains(&reads), "{reads} reads failed");
    device.fail_pages(0);
    shard.expire(later(30));
    let next = receive_all(
        &mut shard,
        &mut device,
        &mut peer,
        (handle, Vec::new()),
        next,
    );
    assert_eq!(next, MANY + 1);
}

#[test]
fn a_poll_is_answered_once_what_is_away_has_come() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, true);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    sender.send(&mut shard, &mut device, 200);
    // A reader that sees only what is away has to have it brought.
    device.cut(&shard, &mut |_| false);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let fields = OpenConsumer {
        session: peer.session.into(),
        destination_length: u16::try_from(QUEUE.len()).unwrap().into(),
        messages: 1_000.into(),
        bytes: (1 << 30).into(),
        ..OpenConsumer::default()
    };
    peer.control(3, &fields, &[QUEUE.as_bytes()]);
    let opened = peer.exchange(&mut shard);
    let handle = frames(&opened).iter().find_map(|(frame, _)| match frame {
        Frame::Control {
            control: Control::ConsumerOpened(fields, _),
            ..
        } => Some(fields.handle.get()),
        _ => None,
    });
    let mut got = bodies(&opened).len();
    loop {
        let more = bodies(&peer.exchange(&mut shard)).len();
        got += more;
        if more == 0 {
            break;
        }
    }
    assert!(
        (1..200).contains(&got),
        "the first are here, the others are away: {got}"
    );
    let poll = Poll {
        token: 9.into(),
        ..Poll::default()
    };
    peer.control(handle.unwrap(), &poll, &[]);
    let answers = peer.exchange(&mut shard);
    let is_polled = |answers: &[u8]| {
        (frames(answers).iter()).any(|(frame, _)| {
            matches!(
                frame,
                Frame::Control {
                    control: Control::Polled(..),
                    ..
                }
            )
        })
    };
    assert!(!is_polled(&answers) && bodies(&answers).is_empty());
    device.settle_pages(&mut shard);
    shard.turn(now());
    let answers = take(&mut shard, peer.link);
    assert!(is_polled(&answers) && !bodies(&answers).is_empty());
}

#[test]
fn a_destination_that_goes_gives_its_pages_back_those_on_their_way_too() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = senders(&mut device, &mut shard);
    sender.send(&mut shard, &mut device, 5_000);
    let size = encode::message_size(0, BODY) as u64;
    let mut left = 64;
    while sender.credit >= sender.producer.spent + size && left > 0 {
        let body = body(sender.producer.sequence + 1);
        sender.peer.message(&mut sender.producer, &body);
        left -= 1;
    }
    sender.peer.exchange(&mut shard);
    device.hear(&mut shard);
    let fields = Delete {
        session: sender.peer.session.into(),
        options: 1,
        destination_length: u16::try_from(QUEUE.len()).unwrap().into(),
        ..Delete::default()
    };
    sender.peer.control(9, &fields, &[QUEUE.as_bytes()]);
    let answers = exchange(&mut sender.peer, &mut shard, &mut device);
    device.settle(&mut shard);
    assert_eq!(shard.paged_bytes(), 0, "{:?}", frames(&answers));
    shard.audit();
}

/// Whoever reads along does not wait for one who never does.
#[test]
fn a_subscription_that_nobody_reads_leaves_memory_to_the_others() {
    let mut device = Device::making_checkpoints(0).with_pages(1 << 16, false);
    let mut shard = device.start();
    let mut sender = sender_to_subscriptions(&mut device, &mut shard, &["slow"]);
    let mut next = 1;
    for round in 0..10 {
        assert_eq!(
            sender.send(&mut shard, &mut device, 2_000),
            2_000,
            "{round}"
        );
        let mut reader = Peer::new(&mut shard);
        let fast = subscriber(&mut reader, &mut shard, &mut device, ("fast", 2));
        next = receive_through(&mut shard, &mut device, &mut reader, fast, next);
        shard.closed(now(), reader.link);
    }
    let mut reader = Peer::new(&mut shard);
    let slow = subscriber(&mut reader, &mut shard, &mut device, ("slow", 2));
    let next = receive_through(&mut shard, &mut device, &mut reader, slow, 1);
    assert_eq!(next, 20_001);
    device.settle(&mut shard);
    assert_eq!(shard.paged_bytes(), 0);
}

/// As [`receive_all`], with the little credit that a subscriber has, renewed.
fn receive_through(
    shard: &mut Shard,
    device: &mut Device,
    peer: &mut Peer,
    (handle, answers): (Handle, Vec<u8>),
    mut next: u64,
) -> u64 {
    let (mut answers, mut credit) = (answers, 100);
    let mut idle = 0;
    loop {
        for (_, offset, found) in bodies(&answers) {
            assert!(found == body(next), "message {next} is next, and whole");
            next += 1;
            credit += 1;
            settle(peer, handle, offset, 1);
            idle = 0;
        }
        let grant = Allow {
            messages: credit.into(),
            bytes: (1 << 40).into(),
            ..Allow::default()
        };
        peer.control(handle.0, &grant, &[]);
        answers = exchange(peer, shard, device);
        device.settle_pages(shard);
        shard.turn(now());
        answers.extend(take(shard, peer.link));
        idle += 1;
        if idle > 3 && bodies(&answers).is_empty() {
            return next;
        }
    }
}

/// Its keys are read again at a start, so what had been handed out has to be there.
#[test]
fn a_key_shared_subscription_goes_on_behind_what_was_settled_in_an_earlier_run() {
    for has_pages in [false, true] {
        let mut device = Device::making_checkpoints(0);
        if has_pages {
            device = device.with_pages(1 << 16, true);
        }
        let mut shard = device.start();
        let mut sending = Peer::new(&mut shard);
        let producer = topic_producer(&mut sending, &mut shard, &mut device);
        let mut sender = Sender::new(sending, producer);
        let mut peer = Peer::new(&mut shard);
        let (handle, _) = subscriber(&mut peer, &mut shard, &mut device, ("keys", 4));
        sender.send(&mut shard, &mut device, 90);
        let mut answers = take(&mut shard, peer.link);
        for _ in 0..10 {
            answers.extend(exchange(&mut peer, &mut shard, &mut device));
        }
        let got = bodies(&answers);
        assert_eq!(got.len(), 90, "pages: {has_pages}");
        for (_, offset, _) in got.iter().filter(|it| it.1 < 50 || it.1 % 2 == 0) {
            settle_one(&mut peer, handle, 0, *offset);
        }
        exchange(&mut peer, &mut shard, &mut device);
        sender.send(&mut shard, &mut device, 60);
        device.cut(&shard, &mut |_| false);
        let mut shard = device.start();
        shard.audit();
        let mut peer = Peer::new(&mut shard);
        let (_, mut answers) = subscriber(&mut peer, &mut shard, &mut device, ("keys", 4));
        for _ in 0..20 {
            device.settle_pages(&mut shard);
            shard.turn(now());
            answers.extend(take(&mut shard, peer.link));
        }
        let mut found: Vec<u64> = bodies(&answers).iter().map(|it| it.1).collect();
        found.sort_unstable();
        let expected = (50..90).filter(|it| it % 2 == 1).chain(90..150);
        assert_eq!(found, expected.collect::<Vec<u64>>(), "pages: {has_pages}");
    }
}
