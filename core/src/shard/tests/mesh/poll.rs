//! Whoever asks whether there is anything is answered behind whatever there was.

use super::*;
use crate::frame::control::Poll;
use crate::name::Destination;

/// What a client got: messages, and tokens of polls that were answered.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    /// The partition.
    Message(u32),
    Polled(u32),
}

fn came(bytes: &[u8], handle: Handle) -> Vec<Came> {
    let of_frame = |(frame, _): &(Frame<'_>, usize)| match frame {
        Frame::Message(message) => Some(Came::Message(message.header.partition.get())),
        Frame::Control {
            subject,
            control: Control::Polled(fields, _),
        } => {
            assert_eq!(*subject, handle.0);
            Some(Came::Polled(fields.token.get()))
        }
        Frame::Control { .. } => None,
    };
    frames(bytes).iter().filter_map(of_frame).collect()
}

impl Client {
    fn poll(&mut self, handle: Handle, token: u32) {
        let fields = Poll {
            token: token.into(),
            ..Poll::default()
        };
        self.peer.control(handle.0, &fields, &[]);
    }
}

#[test]
fn a_poll_is_answered_behind_what_there_was_on_the_slowest_shard() {
    for slow in 0..3 {
        let mut shards = Shards::new(3);
        shards.create("/default/q", 3);
        let mut client = shards.client(1);
        let (handle, first) = shards
            .consumer(&mut client, (0, "/default/q"), "", 10)
            .unwrap();
        assert_eq!(came(&first, handle), []);
        client.poll(handle, 1);
        assert_eq!(
            came(&shards.exchange(&mut client), handle),
            [Came::Polled(1)]
        );

        // One message is stored, of which nobody but its own shard knows yet.
        let mut other = shards.client(slow);
        let mut producer = shards.producer(&mut other, "/default/q", 0);
        let placement = shards.all[1].mesh.placement;
        let queue = Destination::parse("queue:/default/q").unwrap();
        let number = shards.all[1].catalog.find(&queue).unwrap();
        let partition = (0..3)
            .find(|it| usize::from(placement.owner(number, PartitionIndex(*it)).0) == slow)
            .unwrap();
        other.peer.message_to(partition, 1, &mut producer, b"x");
        shards.write(&mut other);
        client.poll(handle, 2);
        shards.write(&mut client);
        for _ in 0..10 {
            for quick in (0..3).filter(|shard| *shard != slow) {
                shards.turn(quick);
            }
        }
        let early = came(&shards.read(&client), handle);
        assert_eq!(early, [], "not before shard {slow} has looked");
        shards.settle();
        let all = came(&shards.read(&client), handle);
        assert_eq!(all, [Came::Message(partition), Came::Polled(2)]);
    }
}

#[test]
fn a_poll_is_answered_behind_the_whole_of_a_long_message() {
    for size in [30_000, 70_000, 1 << 20] {
        let mut shards = Shards::new(2);
        shards.create("/default/q", 2);
        let mut client = shards.client(0);
        // Nothing comes before it may.
        let (handle, _) = shards
            .consumer(&mut client, (0, "/default/q"), "", 1)
            .unwrap();
        shards.fill("/default/q", 2, 1, size);
        let first = came(&shards.read(&client), handle);
        let [Came::Message(first)] = first[..] else {
            panic!("{first:?}");
        };
        let allow = Allow {
            messages: 2.into(),
            bytes: (1 << 30).into(),
            handed: 1.into(),
        };
        client.peer.control(handle.0, &allow, &[]);
        client.poll(handle, 1);
        let all = came(&shards.exchange(&mut client), handle);
        assert_eq!(all, [Came::Message(1 - first), Came::Polled(1)]);
    }
}

#[test]
fn a_poll_of_one_who_gets_nothing_is_answered() {
    let mut shards = Shards::new(2);
    // One that spans shards, and those of one shard, here and there.
    for (name, partitions) in [("/default/q", 4), ("/default/a", 1), ("/default/b", 1)] {
        shards.create(name, partitions);
        let mut first = shards.client(0);
        let (taking, _) = shards.consumer(&mut first, (0, name), "", 100).unwrap();
        shards.fill(name, partitions, 3, 10);
        let all = came(&shards.read(&first), taking).len();
        assert_eq!(all, 3 * partitions as usize);
        // Another has all of it; it has no credit; it asks twice; the other gives back.
        let mut second = shards.client(1);
        let (handle, _) = shards.consumer(&mut second, (0, name), "", 5).unwrap();
        second.poll(handle, 1);
        assert_eq!(
            came(&shards.exchange(&mut second), handle),
            [Came::Polled(1)]
        );
        second.poll(handle, 2);
        second.poll(handle, 3);
        let both = came(&shards.exchange(&mut second), handle);
        assert_eq!(both, [Came::Polled(3)], "the newest answers for all");
        shards.all[0].closed(now(), first.peer.link);
        shards.settle();
        assert_eq!(came(&shards.read(&second), handle).len(), all.min(5));
    }
}
