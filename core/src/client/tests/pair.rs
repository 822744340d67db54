//! The client and a shard, face to face in memory.

use super::*;
use crate::id::ShardIndex;
use crate::shard::{self, Attached, Output, Shard, ShardConfig};

struct Pair {
    client: Client,
    shard: Shard,
    link: Handle,
    now: Now,
    /// The most bytes that cross in one step.
    step: usize,
}

impl Pair {
    fn new(step: usize) -> Self {
        let now = Now {
            monotonic: second(1),
            wall: Wall(1_700_000_000_000_000_000),
        };
        let mut client = Client::new(Config::default());
        client.connected(now.monotonic);
        // The door takes the hello; the shard begins behind it.
        let size = client.pieces().size();
        client.sent(size);
        let mut shard = Shard::new(ShardConfig {
            installation: Installation(0xfeed),
            shard: ShardIndex(0),
            memory: limits::MEMORY_MIN,
            hash_seed: 1,
            auto_create: true,
        })
        .unwrap();
        let link = shard.attached(now, Attached::default()).unwrap();
        let mut pair = Self {
            client,
            shard,
            link,
            now,
            step,
        };
        pair.settle();
        assert!(matches!(
            pair.client.poll_event(),
            Some(Event::Opened { .. })
        ));
        pair
    }

    /// Lets bytes cross until neither side has more to say.
    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            let mut moved = false;
            let pieces = self.client.pieces();
            if let Some(slice) = pieces.slices().first() {
                let part = slice[..slice.len().min(self.step)].to_vec();
                self.client.sent(part.len());
                self.shard.received(self.now, self.link, &part);
                moved = true;
            }
            self.shard.turn(self.now);
            while let Some(output) = self.shard.output() {
                assert!(matches!(output, Output::Send(_)), "{output:?}");
            }
            let mut pieces = shard::Pieces::new();
            self.shard.pieces(self.link, &mut pieces);
            let part = pieces
                .slices()
                .first()
                .map(|slice| slice[..slice.len().min(self.step)].to_vec());
            if let Some(part) = part {
                self.shard.sent(self.now, self.link, part.len());
                self.client.received(&part);
                moved = true;
            }
            assert_eq!(self.client.end(), None);
            if !moved && !self.client.has_pieces() {
                return;
            }
        }
        panic!("the two never come to rest");
    }

    fn producer(&mut self, request: ProducerRequest) -> ProducerKey {
        self.client.open_producer(request).unwrap();
        self.settle();
        match self.client.poll_event() {
            Some(Event::ProducerOpened { producer, .. }) => producer,
            other => panic!("{other:?}"),
        }
    }

    fn consumer(&mut self, request: ConsumerRequest) -> ConsumerKey {
        self.client.open_consumer(request).unwrap();
        self.settle();
        match self.client.poll_event() {
            Some(Event::ConsumerOpened { consumer, .. }) => consumer,
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, producer: ProducerKey, body: &[u8]) -> Result<Sequence, SendError> {
        let message = Outgoing {
            properties: &[],
            body,
            route: Route::Turn,
            durability: None,
            deadline: Monotonic::NEVER,
        };
        self.client.send(self.now, producer, &message)
    }
}

#[test]
fn thousands_of_messages_come_back_in_order_through_small_windows_and_small_steps() {
    for step in [7, 1000, 65_536] {
        let mut pair = Pair::new(step);
        let producer = pair.producer(ProducerRequest::new(queue("q")));
        let consumer = pair.consumer(ConsumerRequest {
            messages_max: 10,
            bytes_max: 4000,
            ..ConsumerRequest::new(queue("q"))
        });
        let (mut sent, mut completed, mut received) = (0u64, 0u64, 0u64);
        let total = if step < 100 { 200 } else { 3000 };
        while received < total {
            while sent < total {
                let mut body = sent.to_le_bytes().to_vec();
                body.resize(8 + usize::try_from(sent % 900).unwrap(), 3);
                match pair.send(producer, &body) {
                    Ok(sequence) => {
                        sent += 1;
                        assert_eq!(sequence.0, sent);
                    }
                    Err(SendError::WouldBlock) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            pair.settle();
            while let Some(completion) = pair.client.poll_completion(producer) {
                completed += 1;
                assert_eq!(completion.sequence.0, completed);
                let stored = completion.result.unwrap();
                assert_eq!(stored.position.offset.0, completed - 1);
            }
            let before = received;
            while let Some(message) = pair.client.poll_message(consumer) {
                assert_eq!(message.body()[..8], received.to_le_bytes());
                assert_eq!(message.id().sequence.0, received + 1);
                let position = message.position();
                assert_eq!(position.offset.0, received);
                pair.client.acknowledge(consumer, position).unwrap();
                received += 1;
            }
            assert!(received > before || completed < total, "no progress");
        }
        pair.settle();
        assert_eq!(completed, total);
        pair.shard.invariants();
    }
}

#[test]
fn batches_partitions_and_large_messages_pass_and_what_is_asked_is_answered() {
    let mut pair = Pair::new(1 << 20);
    let producer = pair.producer(ProducerRequest {
        partitions: 3,
        batch: Some(BatchLimits {
            messages_max: 5,
            bytes_max: 2000,
        }),
        ..ProducerRequest::new(queue("wide"))
    });
    let consumer = pair.consumer(ConsumerRequest {
        bytes_max: 8 << 20,
        ..ConsumerRequest::new(queue("wide"))
    });
    for index in 0..9 {
        pair.send(producer, &[index; 100]).unwrap();
    }
    let large = vec![9; 3 << 20];
    pair.send(producer, &large).unwrap();
    pair.settle();
    let partitions: Vec<u32> = core::iter::from_fn(|| pair.client.poll_completion(producer))
        .map(|completion| completion.result.unwrap().position.partition.0)
        .collect();
    assert_eq!(partitions, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]);
    let mut sizes = Vec::new();
    while let Some(message) = pair.client.poll_message(consumer) {
        sizes.push(message.body().len());
        let position = message.position();
        pair.client.acknowledge_through(consumer, position).unwrap();
    }
    sizes.sort_unstable();
    assert_eq!(sizes, [[100; 9].as_slice(), &[3 << 20]].concat());
    pair.client.confirm(consumer).unwrap().unwrap();
    pair.settle();
    assert!(matches!(
        pair.client.poll_event(),
        Some(Event::Acknowledged { refusal: None, .. })
    ));
    pair.client.ask_stats().unwrap();
    pair.client.lookup(queue("wide")).unwrap();
    pair.settle();
    // The counters take a turn of their own, so the two may change places.
    let (mut stored, mut located) = (0, false);
    while let Some(event) = pair.client.poll_event() {
        match event {
            Event::Stats { report, .. } => {
                assert_eq!(report.destinations[0].unsettled, 0);
                stored = report.destinations[0].stored;
            }
            Event::Located { location, .. } => {
                located = matches!(
                    location,
                    Location::Here {
                        exists: true,
                        partitions: 3,
                        ..
                    }
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((stored, located), (10, true));
    pair.client.close_producer(producer).unwrap();
    pair.client.close_consumer(consumer).unwrap();
    pair.settle();
    let closed = core::iter::from_fn(|| pair.client.poll_event()).count();
    assert_eq!(closed, 2);
    assert!(pair.client.forget_producer(producer) && pair.client.forget_consumer(consumer));
}

#[test]
fn a_send_that_gave_up_unsent_leaves_no_gap_that_the_shard_would_refuse() {
    let mut pair = Pair::new(4096);
    let producer = pair.producer(ProducerRequest::new(queue("q")));
    let quick = Outgoing {
        properties: &[],
        body: b"quick",
        route: Route::Turn,
        durability: None,
        deadline: second(2),
    };
    pair.send(producer, b"before").unwrap();
    pair.client.send(pair.now, producer, &quick).unwrap();
    pair.send(producer, b"after").unwrap();
    pair.client.expire(second(3));
    pair.settle();
    let results: Vec<_> = core::iter::from_fn(|| pair.client.poll_completion(producer))
        .map(|completion| completion.result.map(|stored| stored.position.offset.0))
        .collect();
    assert_eq!(
        results,
        [Ok(0), Err(Failure::NotStored(Cause::DeadlinePassed)), Ok(1)]
    );
}
