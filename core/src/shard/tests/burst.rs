//! A burst is a short cut: it has to lead where the long way leads.

use proptest::prelude::*;

use super::*;
use crate::frame::MessageHeader;
use crate::frame::{checksum, flags, property};

/// What is done to a message that would otherwise be the next plain send.
#[derive(Clone, Copy, Debug)]
enum Quirk {
    None,
    Keyed,
    KeyWithoutFlag,
    Properties,
    BadProperties,
    GivenUp,
    Reserved,
    Early,
    Again,
    OldEpoch,
    NewEpoch,
    SequenceGap,
    OtherProducer,
    DirtyPadding,
    BadChecksum,
    BadLength,
    Ping,
}

fn quirk() -> impl Strategy<Value = Quirk> {
    use Quirk::{
        Again, BadChecksum, BadLength, BadProperties, DirtyPadding, Early, GivenUp, KeyWithoutFlag,
        Keyed, NewEpoch, None, OldEpoch, OtherProducer, Ping, Properties, Reserved, SequenceGap,
    };
    let harmless = prop::sample::select(vec![
        Keyed,
        Properties,
        BadProperties,
        GivenUp,
        Reserved,
        Early,
        Again,
        NewEpoch,
        SequenceGap,
        KeyWithoutFlag,
        Ping,
    ]);
    let fatal = prop::sample::select(vec![
        OldEpoch,
        OtherProducer,
        DirtyPadding,
        BadChecksum,
        BadLength,
    ]);
    prop_oneof![60 => Just(None), 12 => harmless, 1 => fatal]
}

/// The next send of `producer` to `partition`, as `quirk` has it.
fn frame(
    producer: &mut Opened,
    partition: u32,
    last: &mut u64,
    size: usize,
    quirk: Quirk,
) -> Vec<u8> {
    producer.sequence += if matches!(quirk, Quirk::SequenceGap) {
        3
    } else {
        1
    };
    let partition_sequence = match quirk {
        Quirk::Early => *last + 2,
        Quirk::Again => *last,
        _ => {
            *last += 1;
            *last
        }
    };
    let envelope = Envelope {
        handle: producer.handle,
        partition: PartitionIndex(partition),
        producer: ProducerId(producer.producer + u64::from(matches!(quirk, Quirk::OtherProducer))),
        epoch: Epoch(match quirk {
            Quirk::OldEpoch => 0,
            Quirk::NewEpoch => 2,
            _ => 1,
        }),
        sequence: Sequence(producer.sequence),
        partition_sequence: PartitionSequence(partition_sequence),
        key_hash: matches!(quirk, Quirk::Keyed).then_some(77),
        ..Envelope::default()
    };
    let mut properties = Vec::new();
    match quirk {
        Quirk::Properties => property::push(&mut properties, "name", "value").unwrap(),
        Quirk::BadProperties => properties.extend([9; 5]),
        _ => {}
    }
    let body = vec![
        9;
        if matches!(quirk, Quirk::GivenUp) {
            0
        } else {
            size
        }
    ];
    let mut bytes = vec![0; encode::message_size(properties.len(), body.len())];
    encode::message(&envelope, &properties, &body, &mut bytes);
    let (header, _) = MessageHeader::mut_from_prefix(&mut bytes).unwrap();
    match quirk {
        Quirk::GivenUp => header.flags.set(flags::GIVEN_UP),
        Quirk::KeyWithoutFlag => header.key_hash.set(5),
        Quirk::Reserved => header.delay.set(1),
        Quirk::BadLength => header.property_length.set(60_000),
        _ => {}
    }
    let length = header.length.get() as usize;
    let sum = checksum::message(&bytes[..length]);
    let (header, _) = MessageHeader::mut_from_prefix(&mut bytes).unwrap();
    header
        .checksum
        .set(sum ^ u32::from(matches!(quirk, Quirk::BadChecksum)));
    if matches!(quirk, Quirk::DirtyPadding) && !length.is_multiple_of(8) {
        bytes[length] = 1;
    }
    bytes
}

struct Broker {
    shard: Shard,
    peer: Peer,
    producers: Vec<Opened>,
}

/// Two producers of two partitions each, and a consumer if somebody listens.
fn broker(is_consumed: bool) -> Broker {
    let mut shard = shard();
    let mut peer = Peer::new(&mut shard);
    let producers = (0..2)
        .map(|_| peer.producer(&mut shard, "/default/q", 2))
        .collect();
    if is_consumed {
        peer.consumer(&mut shard, "/default/q", 40);
    }
    Broker {
        shard,
        peer,
        producers,
    }
}

proptest! {
    #[test]
    fn what_comes_at_once_and_what_comes_in_pieces_leaves_the_same_behind(
        steps in prop::collection::vec((0usize..2, 0u32..2, 1usize..12, 0usize..200, quirk()), 1..40),
        is_consumed: bool,
    ) {
        let (mut whole, mut pieces) = (broker(is_consumed), broker(is_consumed));
        let mut bytes = Vec::new();
        let mut last = [[0u64; 2]; 2];
        for (producer, partition, count, size, quirk) in steps {
            for index in 0..count {
                // Few enough that credit covers them.
                if bytes.len() > 14_000 {
                    break;
                }
                let quirk = if index == 0 { quirk } else { Quirk::None };
                if matches!(quirk, Quirk::Ping) {
                    let ping = crate::frame::control::Ping { token: 5.into() };
                    whole.peer.control(9, &ping, &[]);
                    bytes.append(&mut whole.peer.out);
                    continue;
                }
                bytes.extend(frame(
                    &mut whole.producers[producer],
                    partition,
                    &mut last[producer][partition as usize],
                    size,
                    quirk,
                ));
            }
        }
        whole.shard.received(now(), whole.peer.link, &bytes);
        // Cut so that no frame ever lies whole in what is received.
        for piece in bytes.chunks(15) {
            pieces.shard.received(now(), pieces.peer.link, piece);
        }
        let left = take(&mut whole.shard, whole.peer.link);
        prop_assert_eq!(&left, &take(&mut pieces.shard, pieces.peer.link));
        for counter in Counter::ALL {
            prop_assert_eq!(
                whole.shard.counters().read(*counter),
                pieces.shard.counters().read(*counter),
                "{:?}", counter
            );
        }
        whole.shard.audit();
        pieces.shard.audit();
    }
}

#[test]
fn a_burst_beyond_credit_is_stored_up_to_it_and_ends_the_link_behind_it() {
    let mut broker = broker(false);
    let (peer, shard) = (&mut broker.peer, &mut broker.shard);
    let producer = &mut broker.producers[0];
    let frames_within = u64::from(limits::CREDIT_INITIAL) / 120;
    for _ in 0..=frames_within {
        peer.message(producer, b"x");
    }
    let bytes = core::mem::take(&mut peer.out);
    shard.received(now(), peer.link, &bytes);
    assert_eq!(end_of(shard, peer.link), Some(true));
    assert_eq!(
        shard.counters().read(Counter::MessagesStored),
        frames_within
    );
}
