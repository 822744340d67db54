//! Links that move to another shard.

use super::*;
use crate::frame::control::{Move, Ping, Refused};
use crate::mesh::mesh;

const NEVER_ASKED: u32 = 9;

/// Both shards of a broker.
fn pair() -> [Shard; 2] {
    let ends = mesh(2).unwrap();
    let mut shards = ends.into_iter().map(|ends| {
        let mut shard = Shard::new(ShardConfig {
            installation: Installation(7),
            shard: ends.shard(),
            memory: limits::MEMORY_MIN,
            hash_seed: 1,
            auto_create: true,
        })
        .unwrap();
        shard.join(ends);
        shard
    });
    [shards.next().unwrap(), shards.next().unwrap()]
}

fn ask(peer: &mut Peer, to: u16) {
    let fields = Move {
        shard: to.into(),
        ..Move::default()
    };
    peer.control(NEVER_ASKED, &fields, &[]);
}

/// Which link the shard would hand over, if one.
fn wished(shard: &mut Shard) -> Option<Handle> {
    shard.turn(now());
    core::iter::from_fn(|| shard.output()).find_map(|output| match output {
        Output::HandOver(link) => Some(link),
        _ => None,
    })
}

fn refusal(answers: &[u8]) -> Refusal {
    match frames(answers)[..] {
        [
            (
                Frame::Control {
                    subject: NEVER_ASKED,
                    control: Control::Refused(Refused { refusal, .. }, _),
                },
                _,
            ),
        ] => Refusal::from_code(refusal.get()).unwrap(),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_link_without_anything_open_is_welcomed_by_the_other_shard() {
    let [mut first, mut second] = pair();
    let mut peer = Peer::new(&mut first);
    ask(&mut peer, 1);
    first.received(now(), peer.link, &peer.out);
    assert_eq!(wished(&mut first), Some(peer.link));
    let (to, attached) = first.hand_over(peer.link).unwrap();
    assert_eq!(to, ShardIndex(1));
    assert!(first.is_drained(), "nothing of it is left");
    first.audit();

    let link = second.attached(now(), attached).unwrap();
    let answers = take(&mut second, link);
    let [
        (
            Frame::Control {
                subject: NEVER_ASKED,
                control: Control::Welcome(welcome, _),
            },
            _,
        ),
    ] = frames(&answers)[..]
    else {
        panic!("no welcome")
    };
    assert_eq!((welcome.shard.get(), welcome.shards), (1, 2));
    assert_eq!(LinkNumber(welcome.link.get()).shard(), ShardIndex(1));
}

#[test]
fn what_was_answered_leaves_before_the_link_goes() {
    let [mut first, _second] = pair();
    let mut peer = Peer::new(&mut first);
    peer.control(5, &Ping::default(), &[]);
    ask(&mut peer, 1);
    first.received(now(), peer.link, &peer.out);
    assert_eq!(wished(&mut first), None, "the pong waits");
    let mut pieces = Pieces::new();
    first.pieces(peer.link, &mut pieces);
    let pong = pieces.slices().concat().len();
    first.sent(now(), peer.link, pong - 1);
    assert_eq!(wished(&mut first), None);
    first.sent(now(), peer.link, 1);
    assert!(first.has_work(), "the turn has something to do");
    assert_eq!(wished(&mut first), Some(peer.link));
}

#[test]
fn a_link_with_something_open_or_without_a_place_to_go_stays_as_it_was() {
    let [mut first, mut second] = pair();
    let mut peer = Peer::new(&mut first);
    for nowhere in [0, 2, u16::MAX] {
        ask(&mut peer, nowhere);
        assert_eq!(
            refusal(&peer.exchange(&mut first)),
            Refusal::IllegalArgument
        );
    }
    let name = "/test/here";
    let open = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        ..OpenProducer::default()
    };
    peer.control(2, &open, &[name.as_bytes()]);
    peer.exchange(&mut first);
    // It is there once the other shard knows of it, too.
    second.meet(now());
    second.turn(now());
    first.meet(now());
    let mut producer = opened(&take(&mut first, peer.link));
    ask(&mut peer, 1);
    assert_eq!(
        refusal(&peer.exchange(&mut first)),
        Refusal::PreconditionFailed
    );
    peer.message(&mut producer, b"still here");
    assert_eq!(completions(&peer.exchange(&mut first)).len(), 1);
    first.audit();
}

#[test]
fn who_speaks_behind_a_move_is_sent_away() {
    for in_one in [true, false] {
        let [mut first, _second] = pair();
        let mut peer = Peer::new(&mut first);
        ask(&mut peer, 1);
        if !in_one {
            let out = std::mem::take(&mut peer.out);
            first.received(now(), peer.link, &out);
            assert_eq!(wished(&mut first), Some(peer.link));
        }
        peer.control(5, &Ping::default(), &[]);
        first.received(now(), peer.link, &peer.out);
        assert_eq!(end_of(&mut first, peer.link), Some(true));
        assert_eq!(first.hand_over(peer.link), None, "it does not go any more");
        let answers = take(&mut first, peer.link);
        assert!(matches!(
            frames(&answers)[..],
            [(
                Frame::Control {
                    control: Control::Farewell(..),
                    ..
                },
                _
            )]
        ));
        first.closed(now(), peer.link);
        first.audit();
    }
}
