use super::*;
use crate::shard::tables;
use crate::subscription::Kind;

/// Every shard counted all partitions of a destination, so that a broker of many shards
/// had room for no more of them than one shard.
#[test]
fn each_shard_counts_the_partitions_that_are_its_own() {
    let mut shards = Shards::new(4);
    let mut client = shards.client(3);
    let room = shards.all[0].arena.chunks() / 4;
    // Three of them fill three quarters of what four shards have room for.
    for name in ["/default/a", "/default/b", "/default/c"] {
        let made = shards.asks_to_create(&mut client, (1, name), room);
        assert_eq!(made, Ok(true), "{name}");
    }
    for shard in &shards.all {
        assert_eq!(shard.partitions, 3 * room as usize / 4);
    }
    let made = shards.asks_to_create(&mut client, (1, "/default/d"), room + 4);
    assert_eq!(made, Err(Refusal::ResourceAllocation));
    let made = shards.asks_to_create(&mut client, (1, "/default/d"), room);
    assert_eq!(made, Ok(true));
    let made = shards.asks_to_create(&mut client, (1, "/default/e"), 1);
    assert_eq!(made, Err(Refusal::ResourceAllocation));

    let (_, first) = (shards.consumer(&mut client, (1, "/default/a"), "s", 1)).unwrap();
    assert_eq!(first, b"");
    for shard in &shards.all {
        let used = tables::subscription_size(Kind::Exclusive, room as usize / 4);
        assert_eq!(shard.parts.used(), used);
    }
    for name in ["/default/a", "/default/b", "/default/c", "/default/d"] {
        let gone = shards.asks_to_delete(&mut client, (1, name), true);
        assert_eq!(gone, Ok(true), "{name}");
    }
    for shard in &shards.all {
        assert_eq!((shard.partitions, shard.parts.used()), (0, 0));
    }
    let made = shards.asks_to_create(&mut client, (1, "/default/e"), 1);
    assert_eq!(made, Ok(true));
}

/// Whether there is memory for a queue's subscription was asked where it is decided. On
/// another shard it had gone to subscriptions of topics, and the shard panicked.
#[test]
fn a_queue_can_be_created_though_another_shard_has_no_memory_for_more_subscriptions() {
    let mut shards = Shards::new(2);
    let mut client = shards.client(1);
    // The second destination has its only partition on the second shard.
    for name in ["/default/other", "/default/t"] {
        let made = shards.asks_to_create(&mut client, (1, name), 1);
        assert_eq!(made, Ok(true));
    }
    let mut number = 0;
    let mut is_full = false;
    while !is_full {
        for _ in 0..100 {
            let name = format!("{number:05}");
            number += 1;
            let fields = OpenConsumer {
                session: client.peer.session.into(),
                destination: 1,
                destination_length: 10.into(),
                subscription_length: 5.into(),
                ..OpenConsumer::default()
            };
            let tail = [b"/default/t", name.as_bytes()];
            client.peer.control(3, &fields, &tail);
        }
        let answers = shards.exchange(&mut client);
        for (frame, _) in frames(&answers) {
            let Frame::Control { control, .. } = frame else {
                continue;
            };
            match control {
                Control::ConsumerOpened(fields, _) => {
                    let close = crate::frame::control::Close {
                        handle: fields.handle,
                        ..Default::default()
                    };
                    client.peer.control(4, &close, &[]);
                }
                Control::Refused(fields, _) => {
                    assert_eq!(fields.refusal.get(), Refusal::ResourceAllocation.code());
                    is_full = true;
                }
                ref other => panic!("{other:?}"),
            }
        }
        shards.exchange(&mut client);
        assert!(number < 20_000, "there is no bound");
    }
    let size = tables::subscription_size(Kind::Shared, 1);
    assert!(!shards.all[1].parts.has(size) && shards.all[0].parts.has(size));
    for name in ["/default/p", "/default/q"] {
        let made = shards.asks_to_create(&mut client, (0, name), 2);
        assert_eq!(made, Ok(true));
        shards.fill(name, 2, 2, 10);
    }
    for shard in &shards.all {
        shard.audit();
    }
}
