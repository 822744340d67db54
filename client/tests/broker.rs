//! The library against a broker in this process.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{TestBroker, WAIT};
use courser::{
    Client, CompletionListener, Counter, Destination, Message, Receipt, RequestError, SendError,
    TrySendError,
};

#[test]
fn a_message_is_sent_received_and_settled() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("queue:orders")
        .send_timeout(WAIT)
        .name("shop")
        .create()
        .unwrap();
    let mut consumer = client.consumer("queue:orders").create().unwrap();
    let message = Message::new("one coffee")
        .with_properties([("table", "7"), ("size", "large")])
        .unwrap();
    let receipt = producer.send(&message).unwrap();
    assert_eq!(receipt.position.to_string(), "0@0");
    let received = consumer.receive(WAIT).unwrap().unwrap();
    assert_eq!(received.text(), Some("one coffee"));
    assert_eq!(received.id(), receipt.id);
    assert_eq!(received.position(), receipt.position);
    assert_eq!(received.append_time(), receipt.timestamp);
    assert_eq!(received.property("table"), Some("7"));
    assert_eq!(received.properties().count(), 2);
    assert_eq!(received.delivery_count(), 1);
    consumer.acknowledge(received.position()).unwrap();
    consumer.confirm().unwrap();
    let stats = client.stats().unwrap();
    let row = stats
        .destination(&Destination::parse("orders").unwrap())
        .unwrap();
    assert_eq!((row.stored, row.unsettled), (1, 0));
    assert_eq!(stats.counter(Counter::MessagesStored), 1);
    assert!(consumer.receive(Duration::ZERO).unwrap().is_none());
    consumer.close().unwrap();
    producer.close().unwrap();
    client.close().unwrap();
}

#[test]
fn bodies_of_every_size_come_back_the_same() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    for size in [0, 1, 7, 8, 4095, 65_536, 1 << 20, 4 << 20] {
        let body: Vec<u8> = (0..size)
            .map(|index: usize| index.to_le_bytes()[0] ^ 0x5a)
            .collect();
        producer.send(&body).unwrap();
        let received = consumer.receive(WAIT).unwrap().unwrap();
        assert!(received.body() == body, "{size} bytes");
        assert_eq!(received.properties().count(), 0);
        consumer.acknowledge(received.position()).unwrap();
    }
    let body = vec![0; (4 << 20) + 1];
    assert_eq!(
        producer.send(&body),
        Err(SendError::TooLarge {
            size: (4 << 20) + 1,
            limit: 4 << 20
        })
    );
}

#[test]
fn listeners_are_called_in_order_once_each_elsewhere_and_get_their_message_back() {
    struct Book {
        seen: Mutex<Vec<(usize, bool)>>,
        threads: Mutex<Vec<thread::ThreadId>>,
        inside: AtomicUsize,
    }
    impl CompletionListener for Book {
        fn on_completion(&self, message: Message, receipt: Receipt) {
            assert_eq!(
                self.inside.fetch_add(1, Ordering::SeqCst),
                0,
                "one at a time"
            );
            let index = message.property("index").unwrap().parse::<usize>().unwrap();
            assert_eq!(receipt.id.sequence.0, index as u64 + 1);
            self.seen.lock().unwrap().push((index, true));
            self.threads.lock().unwrap().push(thread::current().id());
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
        fn on_exception(&self, _message: Message, error: SendError) {
            panic!("{error}");
        }
    }
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let book = Arc::new(Book {
        seen: Mutex::default(),
        threads: Mutex::default(),
        inside: AtomicUsize::new(0),
    });
    let count = 5000;
    for index in 0..count {
        let message = Message::new("x")
            .with_property("index", &index.to_string())
            .unwrap();
        let book: Arc<Book> = Arc::clone(&book);
        producer.send_async(message, book).unwrap();
    }
    producer.flush().unwrap();
    let seen = book.seen.lock().unwrap();
    assert!(
        seen.iter()
            .copied()
            .eq((0..count).map(|index| (index, true)))
    );
    let threads = book.threads.lock().unwrap();
    assert!(threads.iter().all(|thread| *thread == threads[0]));
    assert_ne!(threads[0], thread::current().id());
}

#[test]
fn blocking_asynchronous_and_polled_sends_of_one_producer_keep_one_order() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let (tell, told) = mpsc::channel();
    let mut polled = Vec::new();
    for round in 0..200u64 {
        let tell = tell.clone();
        producer
            .send_with("a", move |_, result| {
                tell.send(result.unwrap().position.offset.0).unwrap();
            })
            .unwrap();
        polled.push(producer.try_send("b").unwrap());
        let receipt = producer.send("c").unwrap();
        assert_eq!(receipt.position.offset.0, round * 3 + 2);
    }
    producer.flush().unwrap();
    let told: Vec<u64> = told.try_iter().collect();
    assert!(told.iter().copied().eq((0..200).map(|round| round * 3)));
    for (round, sequence) in (0u64..).zip(polled) {
        let completion = producer.poll().unwrap();
        assert_eq!(completion.sequence, sequence);
        assert_eq!(completion.result.unwrap().position.offset.0, round * 3 + 1);
    }
    assert_eq!(producer.poll(), None);
}

#[test]
fn a_listener_that_sleeps_delays_neither_the_sender_nor_another_session() {
    let broker = TestBroker::start();
    let client = broker.client();
    let slow = client.producer("slow").send_timeout(WAIT).create().unwrap();
    let other = client.new_session();
    let quick = other.producer("quick").send_timeout(WAIT).create().unwrap();
    let (release, held) = mpsc::channel::<()>();
    let started = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&started);
    slow.send_with("first", move |_, _| {
        noted.store(true, Ordering::SeqCst);
        held.recv_timeout(WAIT).unwrap();
    })
    .unwrap();
    common::until(|| started.load(Ordering::SeqCst));
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..1000 {
        let done = Arc::clone(&done);
        slow.send_with("later", move |_, result| {
            result.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
    }
    let (tell, told) = mpsc::channel();
    quick
        .send_with("quick", move |_, result| tell.send(result.is_ok()).unwrap())
        .unwrap();
    assert_eq!(told.recv_timeout(WAIT), Ok(true));
    assert_eq!(done.load(Ordering::SeqCst), 0, "the first still sleeps");
    release.send(()).unwrap();
    slow.flush().unwrap();
    assert_eq!(done.load(Ordering::SeqCst), 1000);
}

#[test]
fn a_listener_that_panics_is_counted_and_the_order_goes_on() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for index in 0..20 {
        let seen = Arc::clone(&seen);
        producer
            .send_with("x", move |_, _| {
                assert!(index != 10, "planned");
                seen.lock().unwrap().push(index);
            })
            .unwrap();
    }
    producer.flush().unwrap();
    let expected: Vec<i32> = (0..20).filter(|index| *index != 10).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(client.panicked_listeners(), 1);
}

#[test]
fn a_listener_may_send_but_not_wait_for_itself() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = Arc::new(client.producer("q").send_timeout(WAIT).create().unwrap());
    let (tell, told) = mpsc::channel();
    let (inner, closer) = (Arc::clone(&producer), client.clone());
    producer
        .send_with("x", move |_, _| {
            tell.send(inner.flush()).unwrap();
            tell.send(closer.close()).unwrap();
            let receipt = inner.send("from a listener").unwrap();
            assert_eq!(receipt.position.offset.0, 1);
            tell.send(Ok(())).unwrap();
        })
        .unwrap();
    let illegal = Err(RequestError::IllegalState);
    assert_eq!(told.recv_timeout(WAIT).unwrap(), illegal);
    assert_eq!(told.recv_timeout(WAIT).unwrap(), illegal);
    assert_eq!(told.recv_timeout(WAIT).unwrap(), Ok(()));
}

#[test]
fn closing_the_client_waits_for_every_listener() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..3000 {
        let done = Arc::clone(&done);
        producer
            .send_with("x", move |_, result| {
                assert!(result.is_ok());
                done.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
    }
    client.close().unwrap();
    assert_eq!(done.load(Ordering::SeqCst), 3000);
    assert!(producer.send("late").is_err());
}

#[test]
fn dropping_every_handle_still_calls_every_listener() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..500 {
        let done = Arc::clone(&done);
        producer
            .send_with("x", move |_, result| {
                assert!(result.is_ok(), "{result:?}");
                done.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
    }
    drop(producer);
    drop(client);
    common::until(|| done.load(Ordering::SeqCst) == 500);
}

#[test]
fn poll_mode_pipelines_and_stops_at_its_window() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("q")
        .send_timeout(WAIT)
        .window(64)
        .create()
        .unwrap();
    let (mut sent, mut completed) = (0u64, 0u64);
    let deadline = Instant::now() + WAIT;
    while completed < 10_000 {
        assert!(Instant::now() < deadline, "{completed} of {sent}");
        while sent < 10_000 {
            match producer.try_enqueue(sent.to_le_bytes()) {
                Ok(sequence) => {
                    sent += 1;
                    assert_eq!(sequence.0, sent);
                }
                Err(TrySendError::WouldBlock) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(sent - completed <= 64);
        while let Some(completion) = producer.poll() {
            completed += 1;
            assert_eq!(completion.sequence.0, completed);
            assert_eq!(completion.result.unwrap().position.offset.0, completed - 1);
        }
    }
}

#[test]
fn keys_stay_in_their_partition_and_messages_without_one_take_turns() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("wide")
        .send_timeout(WAIT)
        .partitions(3)
        .create()
        .unwrap();
    assert_eq!(producer.partitions(), 3);
    let turns: Vec<u32> = (0..9)
        .map(|_| producer.send("x").unwrap().position.partition.0)
        .collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    let keyed = Message::new("x").with_key("shipping");
    assert_eq!(producer.send(&keyed).unwrap().position.partition.0, 2);
    let told = Message::new("x").to_partition(1);
    assert_eq!(producer.send(&told).unwrap().position.partition.0, 1);
    assert!(matches!(
        producer.send(Message::new("x").to_partition(3)),
        Err(SendError::NoSuchPartition { partitions: 3, .. })
    ));
}

#[test]
fn batches_keep_to_their_limits_and_every_entry_has_its_own_result() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("q")
        .send_timeout(WAIT)
        .batch(100, 65_536)
        .create()
        .unwrap();
    let body = vec![1; 1024];
    let results = producer.send_batch((0..1000).map(|_| &body));
    assert_eq!(results.len(), 1000);
    for (result, offset) in results.iter().zip(0u64..) {
        assert_eq!(result.as_ref().unwrap().position.offset.0, offset);
    }
    let stats = client.stats().unwrap();
    assert!(stats.counter(Counter::Batches) >= 18);
    assert!(stats.counter(Counter::BatchMessagesMax) <= 100);
    assert!(stats.counter(Counter::BatchBytesMax) <= 65_536);
    let mixed = [
        Message::new("good"),
        Message::new("bad").to_partition(9),
        Message::new("good too"),
    ];
    let results = producer.send_batch(&mixed);
    assert!(results[0].is_ok() && results[2].is_ok());
    assert!(matches!(results[1], Err(SendError::NoSuchPartition { .. })));
}

#[test]
fn ten_producers_share_one_connection() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producers: Vec<_> = (0..10)
        .map(|index| {
            client
                .producer(&format!("q{index}"))
                .send_timeout(WAIT)
                .create()
                .unwrap()
        })
        .collect();
    for producer in &producers {
        producer.send("x").unwrap();
    }
    assert_eq!(broker.links(&client), 1);
}

#[test]
fn several_threads_wait_on_one_connection_without_losing_a_wake_up() {
    let broker = TestBroker::start();
    let client = broker.client_with(Client::options().spin(Duration::ZERO));
    thread::scope(|scope| {
        for index in 0..4 {
            let client = &client;
            scope.spawn(move || {
                let name = format!("q{index}");
                let producer = client.producer(&name).send_timeout(WAIT).create().unwrap();
                let mut consumer = client.consumer(&name).create().unwrap();
                for round in 0..200u32 {
                    let sent = producer.send(round.to_le_bytes()).unwrap();
                    if round % 3 == 0 {
                        producer
                            .send_with("listened", |_, result| assert!(result.is_ok()))
                            .unwrap();
                    }
                    let received = consumer.receive(WAIT).unwrap().unwrap();
                    if received.position() == sent.position {
                        assert_eq!(received.body(), round.to_le_bytes());
                    }
                    consumer.acknowledge(received.position()).unwrap();
                }
                producer.flush().unwrap();
            });
        }
        // Somebody who only waits.
        scope.spawn(|| {
            let mut idle = client.consumer("idle").create().unwrap();
            assert!(idle.receive(Duration::from_millis(300)).unwrap().is_none());
        });
    });
    assert_eq!(client.panicked_listeners(), 0);
}

#[test]
fn what_was_not_acknowledged_comes_again_and_what_was_does_not() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    producer.send_batch(["a", "b", "c", "d"]);
    let mut consumer = client.consumer("q").create().unwrap();
    let mut positions = Vec::new();
    for _ in 0..4 {
        let received = consumer.receive(WAIT).unwrap().unwrap();
        positions.push(received.position());
    }
    consumer.acknowledge_through(positions[1]).unwrap();
    consumer.acknowledge(positions[3]).unwrap();
    consumer.close().unwrap();
    let mut again = client.consumer("q").create().unwrap();
    let received = again.receive(WAIT).unwrap().unwrap();
    assert_eq!((received.text(), received.delivery_count()), (Some("c"), 2));
    assert!(again.receive(Duration::from_millis(50)).unwrap().is_none());
}

#[test]
fn borrowed_messages_are_read_in_place_and_the_credit_goes_round() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut consumer = client.consumer("q").prefetch(8).create().unwrap();
    let results = producer.send_batch((0..1000u64).map(u64::to_le_bytes));
    assert!(results.iter().all(Result::is_ok));
    let mut expected = 0u64;
    let deadline = Instant::now() + WAIT;
    while expected < 1000 {
        assert!(Instant::now() < deadline, "stopped at {expected}");
        let Some(message) = consumer.try_receive().unwrap() else {
            continue;
        };
        assert_eq!(message.body(), expected.to_le_bytes());
        let position = message.position();
        consumer.acknowledge(position).unwrap();
        expected += 1;
    }
    consumer.confirm().unwrap();
    let stats = client.stats().unwrap();
    assert_eq!(stats.destinations()[0].unsettled, 0);
}

#[test]
fn a_topic_gives_each_subscription_every_message() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("topic:/md/eu")
        .send_timeout(WAIT)
        .retain(1 << 20)
        .create()
        .unwrap();
    producer.send("before").unwrap();
    let mut early = client
        .consumer("topic:/md/eu")
        .subscription("early")
        .from_earliest()
        .create()
        .unwrap();
    let mut late = client
        .consumer("topic:/md/eu")
        .subscription("late")
        .from_latest()
        .create()
        .unwrap();
    producer.send("after").unwrap();
    let text = |consumer: &mut courser::Consumer| {
        let received = consumer.receive(WAIT).unwrap().unwrap();
        received.text().unwrap().to_owned()
    };
    assert_eq!(text(&mut early), "before");
    assert_eq!(text(&mut early), "after");
    assert_eq!(text(&mut late), "after");
    assert_eq!(late.starts()[0].0, 1);
}

#[test]
fn requests_that_the_broker_or_the_rules_refuse_say_why() {
    let broker = TestBroker::start();
    let client = broker.client();
    let error = client
        .producer("no good")
        .send_timeout(WAIT)
        .create()
        .unwrap_err();
    assert!(matches!(error, RequestError::Name { .. }), "{error}");
    client
        .producer("q")
        .send_timeout(WAIT)
        .partitions(2)
        .create()
        .unwrap();
    let error = client
        .producer("q")
        .send_timeout(WAIT)
        .partitions(3)
        .create()
        .unwrap_err();
    assert!(matches!(error, RequestError::Refused { .. }), "{error}");
    assert!(client.ping().unwrap() < WAIT);
}

#[test]
fn a_broker_that_stops_fails_what_is_outstanding_and_wakes_who_waits() {
    let broker = TestBroker::start();
    // One that is not waited for.
    let client = Client::options()
        .reconnect_for(Duration::ZERO)
        .connect(broker.address())
        .unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    let waiting = thread::spawn(move || consumer.receive(WAIT));
    let producer = client.producer("r").send_timeout(WAIT).create().unwrap();
    producer.send("x").unwrap();
    broker.stop();
    assert!(waiting.join().unwrap().is_err());
    let error = producer.send("y").unwrap_err();
    assert!(
        matches!(
            error,
            SendError::NotStored { .. } | SendError::Unknown { .. }
        ),
        "{error}"
    );
    assert!(client.end().is_some());
}
