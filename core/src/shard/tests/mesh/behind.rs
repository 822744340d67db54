use super::*;
use crate::frame::control::{Poll, Return};
use crate::name::Destination;

/// What waits at a shard for others, in bytes of its arena.
fn waiting(shard: &Shard) -> usize {
    shard.mesh.chunks() * CHUNK
}

impl Client {
    /// Acknowledges a message, or whatever has its place.
    fn says_it_is_done(&mut self, handle: Handle, (partition, offset): (u32, u64), confirm: u32) {
        let fields = Acknowledge {
            partition: partition.into(),
            runs: 1.into(),
            confirm: confirm.into(),
            ..Acknowledge::default()
        };
        let run = AckRun {
            first: offset.into(),
            count: 1.into(),
        };
        (self.peer).control(handle.0, &fields, &[run.as_bytes()]);
    }

    fn polls(&mut self, handle: Handle, token: u32) {
        let poll = Poll {
            token: token.into(),
            ..Poll::default()
        };
        self.peer.control(handle.0, &poll, &[]);
    }

    fn gives_back(&mut self, handle: Handle, (partition, offset): (u32, u64)) {
        let fields = Return {
            partition: partition.into(),
            runs: 1.into(),
            ..Return::default()
        };
        let run = AckRun {
            first: offset.into(),
            count: 1.into(),
        };
        (self.peer).control(handle.0, &fields, &[run.as_bytes()]);
    }
}

/// Acknowledgements and polls cost a client nothing, and what a slow shard had not read of them
/// grew without end.
#[test]
fn who_acknowledges_for_ever_to_a_shard_that_does_not_answer_is_ended_and_nobody_else_is() {
    for what in 0..3 {
        let mut shards = Shards::new(2);
        shards.create("/default/q", 1);
        shards.fill("/default/q", 1, 40, 10);
        let mut good = shards.client(1);
        let (kept, got) = (shards.consumer(&mut good, (0, "/default/q"), "", 20)).unwrap();
        let got = deliveries(&got, kept);
        assert_eq!(got.len(), 20);
        let mut bad = shards.client(1);
        let (handle, _) = (shards.consumer(&mut bad, (0, "/default/q"), "", 5)).unwrap();
        // Shard 0 sleeps on.
        let mut settled = got.iter();
        for round in 0.. {
            for offset in 0..100 {
                match what {
                    0 => bad.says_it_is_done(handle, (0, 1 << 40 | offset), 0),
                    1 => bad.gives_back(handle, (0, offset)),
                    _ => bad.polls(handle, 1),
                }
            }
            shards.write(&mut bad);
            if let Some(message) = settled.next() {
                good.says_it_is_done(kept, (0, message.offset), 0);
                shards.write(&mut good);
            }
            shards.turn(1);
            let most = limits::BEHIND_PER_LINK_MAX as usize + 4 * CHUNK;
            assert!(waiting(&shards.all[1]) <= most, "in round {round}");
            if !shards.ended.is_empty() {
                break;
            }
            assert!(round < 1_000, "nobody bounds it");
        }
        assert_eq!(shards.ended, [(1, bad.peer.link)]);
        let farewell = shards.read(&bad);
        let why = frames(&farewell).iter().find_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Farewell(fields, _),
                ..
            } => Refusal::from_code(fields.refusal.get()),
            _ => None,
        });
        assert_eq!(why, Some(Refusal::Stalled));
        shards.all[1].closed(now(), bad.peer.link);
        for message in settled {
            good.says_it_is_done(kept, (0, message.offset), 0);
        }
        shards.write(&mut good);
        shards.settle();
        assert_eq!(shards.counter(Counter::MessagesSettled), 20);
        assert_eq!((shards.all[1].behind, waiting(&shards.all[1])), (0, 0));
    }
}

/// Confirmations leave in the order in which they were asked for, so one that a slow
/// shard owes holds up all behind it, though what they confirm is done.
#[test]
fn confirmations_behind_one_that_a_slow_shard_owes_are_bounded() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 2);
    shards.fill("/default/q", 2, 1, 10);
    let mut client = shards.client(1);
    let (handle, got) = (shards.consumer(&mut client, (0, "/default/q"), "", 20)).unwrap();
    assert_eq!(deliveries(&got, handle).len(), 2);
    let name = Destination::parse("queue:/default/q").unwrap();
    let number = shards.all[1].catalog.find(&name).unwrap();
    let placement = shards.all[1].mesh.placement;
    let slow = u32::from(placement.home(number) != ShardIndex(0));
    client.says_it_is_done(handle, (slow, 0), 1);
    for round in 0.. {
        for _ in 0..100 {
            client.says_it_is_done(handle, (1 - slow, 0), 2);
        }
        shards.write(&mut client);
        shards.turn(1);
        if !shards.ended.is_empty() {
            break;
        }
        assert!(round < 1_000, "nobody bounds it");
    }
    shards.all[1].closed(now(), client.peer.link);
    shards.settle();
    assert_eq!(shards.counter(Counter::MessagesSettled), 2);
    assert_eq!(shards.all[1].behind, 0);
}

/// A second Close of the same handle was passed on like the first, and its answer came
/// in place of the first one's.
#[test]
fn a_handle_that_is_being_closed_on_other_shards_cannot_be_closed_again() {
    let mut shards = Shards::new(2);
    shards.create("/default/q", 2);
    let mut client = shards.client(1);
    let (consumer, _) = (shards.consumer(&mut client, (0, "/default/q"), "", 1)).unwrap();
    let producer = shards.producer(&mut client, "/default/q", 0);
    for handle in [consumer, producer.handle] {
        for request in [5, 6, 7] {
            let close = crate::frame::control::Close {
                handle: handle.0.into(),
                ..Default::default()
            };
            client.peer.control(request, &close, &[]);
        }
        let answers = shards.exchange(&mut client);
        let mut by_request: Vec<_> = frames(&answers)
            .iter()
            .map(|(frame, _)| match frame {
                Frame::Control {
                    subject, control, ..
                } => (*subject, format!("{:?}", control.kind())),
                Frame::Message(_) => panic!("nothing is delivered"),
            })
            .collect();
        by_request.sort();
        let (closed, refused) = ("Closed".to_owned(), "Refused".to_owned());
        assert_eq!(
            by_request,
            [(5, closed), (6, refused.clone()), (7, refused)]
        );
    }
}
