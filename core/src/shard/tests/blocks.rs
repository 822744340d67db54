use super::*;
use crate::frame::control::{Ping, WantCredit};

/// Fills a shard with messages that nobody takes, until no more memory is free than
/// was promised.
fn fill(shard: &mut Shard) {
    let body = vec![1; 60_000];
    for queue in 0..5 {
        let mut peer = Peer::new(shard);
        let mut producer = peer.producer(shard, &format!("/default/full-{queue}"), 1);
        let mut credit = 0;
        loop {
            let size = encode::message_size(0, body.len()) as u64;
            if credit < producer.spent + size {
                let want = WantCredit { bytes: size.into() };
                peer.control(producer.handle.0, &want, &[]);
                credit = granted(&peer.exchange(shard)).max(credit);
            }
            if credit < producer.spent + size {
                break;
            }
            peer.message(&mut producer, &body);
            credit = granted(&peer.exchange(shard)).max(credit);
        }
    }
    assert!(!shard.has_chunks_to_spare());
}

/// Has the shard act on what the peer sent; the peer's kernel takes nothing.
fn ask(shard: &mut Shard, peer: &mut Peer) {
    shard.received(now(), peer.link, &std::mem::take(&mut peer.out));
    settle(shard);
}

/// Turns until there is nothing to do, and demands that no link ends.
fn settle(shard: &mut Shard) {
    for turn in 0.. {
        assert!(turn < 10_000, "it does not come to rest");
        shard.turn(now());
        while let Some(output) = shard.output() {
            assert!(matches!(output, Output::Send(_)), "{output:?}");
        }
        if !shard.has_work() {
            break;
        }
    }
    shard.audit();
}

fn pongs(bytes: &[u8]) -> Vec<u64> {
    let all = frames(bytes)
        .into_iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Pong(pong, _),
                ..
            } => Some(pong.token.get()),
            _ => None,
        });
    all.collect()
}

/// A link whose delivery found no chunk for its block was tried again when something
/// of it had left; nothing of it was under way, so that never came.
#[test]
fn a_delivery_that_finds_no_block_leaves_when_another_link_gives_one_back() {
    let mut shard = shard();
    let queues = 30;
    let mut peers = Vec::new();
    for number in 0..queues {
        let name = format!("/default/{number}");
        let mut peer = Peer::new(&mut shard);
        let mut producer = peer.producer(&mut shard, &name, 1);
        peer.message(&mut producer, b"to be delivered");
        peer.exchange(&mut shard);
        let (consumer, _) = peer.consumer(&mut shard, &name, 0);
        peers.push((peer, consumer));
    }
    fill(&mut shard);
    for (peer, consumer) in &mut peers {
        let allow = Allow {
            messages: 1.into(),
            bytes: 1_000.into(),
            ..Allow::default()
        };
        peer.control(consumer.0, &allow, &[]);
        ask(&mut shard, peer);
    }
    // Half of the blocks are for deliveries; nobody's kernel took anything yet.
    let deliveries = shard.memory().egress_chunks() / 2;
    assert!(deliveries < queues);
    assert_eq!(
        shard.counters().read(Counter::MessagesDelivered),
        deliveries as u64
    );
    assert!(!shard.has_work(), "nothing can be done, so nobody spins");
    let waiting = peers.split_off(deliveries);
    for ((reads, _), (waits, _)) in peers.iter().zip(&waiting) {
        assert_eq!(bodies(&take(&mut shard, reads.link)).len(), 1);
        settle(&mut shard);
        assert_eq!(bodies(&take(&mut shard, waits.link)).len(), 1);
    }
}

/// Links that read were ended as stalled because others held all blocks.
#[test]
fn whoever_finds_no_block_is_answered_later_and_all_the_same() {
    let mut shard = shard();
    fill(&mut shard);
    let blocks = shard.memory().egress_chunks();
    let mut peers: Vec<Peer> = (0..2 * blocks).map(|_| Peer::new(&mut shard)).collect();
    for round in 0..10 {
        for peer in &mut peers {
            let ping = Ping {
                token: round.into(),
            };
            peer.control(0, &ping, &[]);
            ask(&mut shard, peer);
        }
    }
    let early = peers.split_off(blocks);
    let answered: Vec<u64> = (0..10).collect();
    for peer in peers.iter().chain(&early) {
        let answers = take(&mut shard, peer.link);
        assert_eq!(pongs(&answers), answered);
        settle(&mut shard);
    }
    assert_eq!(shard.links(), 5 + 2 * blocks);
}

/// Completions have no bytes that could wait aside: they stay with their producer.
#[test]
fn outcomes_that_find_no_block_leave_once_there_is_one() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producer = peer.producer(&mut shard, "/default/q", 1);
    let free: Vec<_> = std::iter::from_fn(|| shard.arena.take()).collect();
    shard.arena.give(*free.last().unwrap());
    peer.message(&mut producer, b"takes the last chunk");
    shard.received(now(), peer.link, &std::mem::take(&mut peer.out));
    shard.turn(now());
    assert_eq!(shard.output(), None);
    assert!(!shard.has_work(), "nothing can be done, so nobody spins");
    for chunk in &free[..free.len() - 1] {
        shard.arena.give(*chunk);
    }
    assert!(shard.has_work());
    let answers = take(&mut shard, peer.link);
    assert_eq!(completions(&answers).len(), 1);
    shard.audit();
}

/// The block was written once and emptied as a whole: who always had a byte under way
/// filled it up in the end, however fast its peer read, and was ended as stalled.
#[test]
fn a_peer_that_reads_all_but_the_last_byte_is_answered_for_ever() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let size = encode::control_size::<Ping>(0);
    for round in 0..10_000_u64 {
        peer.control(
            0,
            &Ping {
                token: round.into(),
            },
            &[],
        );
        ask(&mut shard, &mut peer);
        let mut pieces = Pieces::new();
        shard.pieces(peer.link, &mut pieces);
        let bytes: usize = pieces.slices().iter().map(|slice| slice.len()).sum();
        assert!(bytes <= 2 * size);
        shard.sent(now(), peer.link, bytes - 1);
    }
}

/// What a producer is told at last, where completions had filled its block.
#[test]
fn outcomes_that_find_their_block_full_leave_once_the_peer_reads() {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let mut producers: Vec<Opened> = (0..100)
        .map(|number| peer.producer(&mut shard, &format!("/default/{number}"), 1))
        .collect();
    let mut sent = 0;
    for _ in 0..20 {
        for producer in &mut producers {
            peer.message(producer, b"outcome");
            sent += 1;
        }
        ask(&mut shard, &mut peer);
    }
    let told: u64 = completions(&take(&mut shard, peer.link))
        .iter()
        .map(|run| u64::from(run.count.get()))
        .sum();
    assert_eq!(told, sent);
    assert_eq!(shard.links(), 1);
}
