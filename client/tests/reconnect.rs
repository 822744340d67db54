//! Connections that break: every send has one outcome, in order, and what was
//! acknowledged is stored once.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::proxy::{Fate, Proxy, Way};
use common::{TestBroker, WAIT, until};
use courser::{
    Cause, Client, MessageId, Producer, Receipt, ReceiveError, SendError, Sequence, TrySendError,
};

fn client(address: SocketAddr) -> Client {
    Client::options()
        .timeout(WAIT)
        .reconnect_for(WAIT)
        .connect(address)
        .unwrap()
}

fn producer(client: &Client, destination: &str) -> Producer {
    client
        .producer(destination)
        .send_timeout(WAIT)
        .create()
        .unwrap()
}

/// Everything that lies in a queue: bodies and ids, in order.
fn dump(broker: &TestBroker, destination: &str) -> Vec<(String, MessageId)> {
    let client = broker.client();
    let mut consumer = client.consumer(destination).create().unwrap();
    let mut messages = Vec::new();
    while let Some(received) = consumer.receive(Duration::from_millis(200)).unwrap() {
        consumer.acknowledge(received.position()).unwrap();
        messages.push((received.text().unwrap().to_owned(), received.id()));
    }
    consumer.close().unwrap();
    messages
}

/// Every receipt names a message that is stored once, with the id it says, and in
/// the order of the sends.
fn check(acknowledged: &[(String, Receipt)], dumped: &[(String, MessageId)]) {
    let mut at = dumped.iter();
    for (body, receipt) in acknowledged {
        let found = at.find(|(other, _)| other == body);
        let (_, id) = found.unwrap_or_else(|| panic!("{body} is missing, or out of order"));
        assert_eq!(*id, receipt.id, "{body}");
    }
    let bodies: HashSet<&String> = dumped.iter().map(|(body, _)| body).collect();
    assert_eq!(bodies.len(), dumped.len(), "something is stored twice");
}

/// What one run of sends needs to pass this way, without any fault.
fn bytes_of_a_run(way: Way) -> u64 {
    let broker = TestBroker::start();
    let proxy = Proxy::start(broker.address(), []);
    let client = client(proxy.address());
    run(&client, 0);
    proxy.bytes(way)
}

/// Three sends in different ways. Returns what was acknowledged.
fn run(client: &Client, index: u64) -> Vec<(String, Receipt)> {
    let producer = producer(client, "q");
    let bodies = ["a", "b", "c"].map(|name| format!("{name}{index}"));
    let (tell, told) = mpsc::channel();
    producer
        .send_with(&*bodies[0], move |_, result| tell.send(result).unwrap())
        .unwrap();
    producer.try_send(&bodies[1]).unwrap();
    let last = producer.send(&bodies[2]);
    let first = told.recv_timeout(WAIT).unwrap();
    assert!(told.recv_timeout(Duration::ZERO).is_err(), "heard twice");
    let second = producer.poll_for(WAIT).unwrap();
    assert_eq!(second.sequence, Sequence(2));
    assert_eq!(producer.poll_for(Duration::ZERO), None);
    let outcomes = [first, second.result, last];
    bodies
        .into_iter()
        .zip(outcomes)
        .map(|(body, outcome)| (body, outcome.unwrap()))
        .collect()
}

/// Cuts one connection after each number of bytes of a run: of the hello, of each
/// frame, of each answer.
fn cut_everywhere(way: Way, fate: impl Fn(u64) -> Fate) {
    let broker = TestBroker::start();
    let total = bytes_of_a_run(way);
    assert!(total > 200, "{total}");
    let mut acknowledged = Vec::new();
    let mut reconnects = 0;
    for after in 0..=total {
        let proxy = Proxy::start(broker.address(), [fate(after)]);
        // The first connection has to stand before another can take its place.
        let Ok(client) = Client::options()
            .timeout(WAIT)
            .reconnect_for(WAIT)
            .connect(proxy.address())
        else {
            assert_eq!(proxy.connections(), 1);
            continue;
        };
        acknowledged.extend(run(&client, after));
        reconnects += client.counters().reconnects;
        client.close().unwrap();
    }
    assert!(
        reconnects > 20,
        "{reconnects} connections took the place of another"
    );
    let dumped = dump(&broker, "q");
    // With nothing but receipts, what is stored is what was acknowledged.
    assert_eq!(dumped.len(), acknowledged.len());
    check(&acknowledged, &dumped);
}

#[test]
fn a_connection_cut_after_any_byte_to_the_broker_loses_and_doubles_nothing() {
    cut_everywhere(Way::Up, |after| Fate::CutAfter(Way::Up, after));
}

#[test]
fn a_connection_cut_after_any_byte_from_the_broker_loses_and_doubles_nothing() {
    cut_everywhere(Way::Down, |after| Fate::CutAfter(Way::Down, after));
}

#[test]
fn a_connection_whose_answers_are_lost_after_any_byte_doubles_nothing() {
    cut_everywhere(Way::Up, |after| Fate::CutAfterAndSwallow(Way::Up, after));
}

#[test]
fn the_second_connection_may_be_cut_anywhere_as_well() {
    let broker = TestBroker::start();
    let mut acknowledged = Vec::new();
    for after in (0..1200).step_by(37) {
        let proxy = Proxy::start(
            broker.address(),
            [
                Fate::CutAfter(Way::Down, 500 + after % 64),
                Fate::CutAfter(Way::Down, after),
                Fate::CutAfterAndSwallow(Way::Up, after),
                Fate::Refused,
            ],
        );
        let client = client(proxy.address());
        acknowledged.extend(run(&client, after));
        client.close().unwrap();
    }
    let dumped = dump(&broker, "q");
    assert_eq!(dumped.len(), acknowledged.len());
    check(&acknowledged, &dumped);
}

#[test]
fn a_pipeline_under_repeated_cuts_has_every_outcome_once_and_in_order() {
    let broker = TestBroker::start();
    let proxy = Proxy::start(broker.address(), []);
    let client = client(proxy.address());
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::new(AtomicU64::new(0));
    let count = 4000u64;
    thread::scope(|scope| {
        let (proxy, progress) = (&proxy, &sent);
        scope.spawn(move || {
            // Ten cuts spread over the run.
            for part in 1..=10 {
                until(|| progress.load(Ordering::SeqCst) >= part * count / 11);
                proxy.cut();
            }
        });
        let producer = producer(&client, "q");
        for number in 0..count {
            let outcomes = Arc::clone(&outcomes);
            producer
                .send_with(number.to_string(), move |message, result| {
                    let body = String::from_utf8(message.into_body()).unwrap();
                    outcomes.lock().unwrap().push((body, result));
                })
                .unwrap();
            sent.store(number, Ordering::SeqCst);
        }
        producer.flush().unwrap();
    });
    let outcomes = std::mem::take(&mut *outcomes.lock().unwrap());
    let numbers = outcomes
        .iter()
        .map(|(body, _)| body.parse::<u64>().unwrap());
    assert!(numbers.eq(0..count), "each once, in order");
    let acknowledged: Vec<(String, Receipt)> = outcomes
        .into_iter()
        .map(|(body, result)| (body, result.unwrap()))
        .collect();
    assert!(client.counters().reconnects >= 1);
    client.close().unwrap();
    let dumped = dump(&broker, "q");
    assert_eq!(dumped.len() as u64, count);
    check(&acknowledged, &dumped);
}

#[test]
fn all_ways_to_wait_survive_cuts_together() {
    let broker = TestBroker::start();
    let proxy = Proxy::start(broker.address(), []);
    let client = client(proxy.address());
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..3u64 {
            let (client, rounds) = (&client, &rounds);
            scope.spawn(move || {
                let producer = producer(client, &format!("q{thread}"));
                let mut consumer = client.consumer(&format!("q{thread}")).create().unwrap();
                for number in 0..150u64 {
                    match number % 3 {
                        0 => {
                            producer.send(number.to_le_bytes()).unwrap();
                        }
                        1 => drop(producer.send_future(&number.to_le_bytes())),
                        _ => loop {
                            match producer.try_send(number.to_le_bytes()) {
                                Ok(_) => break,
                                Err(TrySendError::WouldBlock) => thread::yield_now(),
                                Err(error) => panic!("{error}"),
                            }
                        },
                    }
                    // Each comes at least once and, as all are settled, in order.
                    loop {
                        let received = consumer.receive(WAIT).unwrap().unwrap();
                        consumer.acknowledge(received.position()).unwrap();
                        let found = u64::from_le_bytes(received.body().try_into().unwrap());
                        assert!(found <= number);
                        if found == number {
                            break;
                        }
                    }
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let (proxy, rounds) = (&proxy, &rounds);
        scope.spawn(move || {
            for part in 1..=12 {
                until(|| rounds.load(Ordering::SeqCst) >= part * 450 / 13);
                proxy.cut();
            }
        });
    });
    assert!(client.counters().reconnects >= 1);
}

#[test]
fn while_connections_are_refused_sends_wait_and_go_out_with_the_next_one() {
    let broker = TestBroker::start();
    let refusals = std::iter::repeat_n(Fate::Refused, 4);
    let proxy = Proxy::start(
        broker.address(),
        std::iter::once(Fate::None).chain(refusals),
    );
    let client = client(proxy.address());
    let producer = producer(&client, "q");
    producer.send("before").unwrap();
    proxy.cut();
    let receipt = producer.send("meanwhile").unwrap();
    assert_eq!(receipt.position.offset.0, 1);
    assert_eq!(proxy.connections(), 6);
    assert_eq!(client.counters().reconnects, 1);
    assert!(client.is_connected());
    assert_eq!(client.end(), None);
}

#[test]
fn answers_that_are_swallowed_for_a_while_come_with_the_next_connection() {
    let broker = TestBroker::start();
    let proxy = Proxy::start(broker.address(), []);
    let client = client(proxy.address());
    let producer = producer(&client, "q");
    producer.send("before").unwrap();
    proxy.set_silent(true);
    let future = producer.send_future("swallowed");
    let watching = broker.client();
    until(|| watching.stats().unwrap().destinations()[0].stored == 2);
    proxy.set_silent(false);
    proxy.cut();
    let receipt = producer.send("after").unwrap();
    assert_eq!(
        receipt.position.offset.0, 2,
        "what was stored is not stored again"
    );
    drop(future);
    let bodies: Vec<String> = dump(&broker, "q")
        .into_iter()
        .map(|(body, _)| body)
        .collect();
    assert_eq!(bodies, ["before", "swallowed", "after"]);
}

#[test]
fn a_send_that_no_connection_comes_for_fails_at_its_time_out_and_the_link_at_its_own() {
    let broker = TestBroker::start();
    let proxy = Proxy::start(
        broker.address(),
        std::iter::once(Fate::None).chain(std::iter::repeat_n(Fate::Refused, 10_000)),
    );
    let client = Client::options()
        .timeout(WAIT)
        .reconnect_for(Duration::from_millis(600))
        .connect(proxy.address())
        .unwrap();
    let producer = client
        .producer("q")
        .send_timeout(Duration::from_millis(150))
        .create()
        .unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    proxy.cut();
    let began = Instant::now();
    let error = producer.send("x").unwrap_err();
    let timed_out = matches!(
        error,
        SendError::NotStored {
            cause: Cause::TimedOut
        } | SendError::Unknown {
            cause: Cause::TimedOut
        }
    );
    assert!(timed_out, "{error}");
    assert!(began.elapsed() >= Duration::from_millis(150));
    let error = consumer.receive(WAIT).unwrap_err();
    assert!(matches!(error, ReceiveError::LinkEnded(_)), "{error}");
    assert!(client.end().is_some() && !client.is_connected());
    let error = producer.send("late").unwrap_err();
    assert!(matches!(error, SendError::NotStored { .. }), "{error}");
}

#[test]
fn the_next_address_takes_over_when_the_first_is_gone() {
    let broker = TestBroker::start();
    let first = Proxy::start(broker.address(), [Fate::None, Fate::Refused]);
    let second = Proxy::start(broker.address(), []);
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = Client::options()
        .timeout(WAIT)
        .reconnect_for(WAIT)
        .connect(format!("{};{nobody};{}", first.address(), second.address()))
        .unwrap();
    let producer = producer(&client, "q");
    producer.send("a").unwrap();
    first.plan(std::iter::repeat_n(Fate::Refused, 100));
    first.cut();
    producer.send("b").unwrap();
    assert_eq!(second.connections(), 1);
    second.cut();
    producer.send("c").unwrap();
    assert_eq!(
        second.connections(),
        2,
        "the one that served is tried first"
    );
    let bodies: Vec<String> = dump(&broker, "q")
        .into_iter()
        .map(|(body, _)| body)
        .collect();
    assert_eq!(bodies, ["a", "b", "c"]);
}

#[test]
fn a_consumer_is_handed_nothing_again_that_it_settled_before_the_cut() {
    let broker = TestBroker::start();
    let proxy = Proxy::start(broker.address(), []);
    let sender = broker.client();
    let sender = producer(&sender, "q");
    let client = client(proxy.address());
    let mut consumer = client.consumer("q").prefetch(20).create().unwrap();
    let mut settled = HashSet::new();
    for number in 0..300u64 {
        sender.send(number.to_le_bytes()).unwrap();
    }
    while settled.len() < 300 {
        let Some(received) = consumer.receive(Duration::from_millis(100)).unwrap() else {
            // Only what was handed out and not settled is left.
            proxy.cut();
            continue;
        };
        let number = u64::from_le_bytes(received.body().try_into().unwrap());
        assert!(!settled.contains(&number), "{number} comes again");
        // Handed out and not settled, it may come again.
        if settled.len() % 7 != 3 || received.delivery_count() > 1 {
            consumer.acknowledge(received.position()).unwrap();
            settled.insert(number);
        }
        if settled.len() % 50 == 25 {
            proxy.cut();
        }
    }
    consumer.confirm().unwrap();
}

/// The confirmation waited until what was settled had come again, and that waited for
/// room behind what only the application could have taken, which waited.
#[test]
fn what_was_settled_as_the_connection_broke_is_confirmed_though_the_window_is_full() {
    for shards in [1, 2] {
        let broker = TestBroker::of_shards(shards);
        let proxy = Proxy::start(broker.address(), []);
        let sender = broker.client();
        let sender = sender.producer("queue:q").partitions(4).create().unwrap();
        let client = client(proxy.address());
        let mut consumer = client.consumer("queue:q").prefetch(1).create().unwrap();
        for number in 0..12u64 {
            sender.send(number.to_le_bytes()).unwrap();
        }
        let mut received = Vec::new();
        for _ in 0..12 {
            let message = consumer.receive(WAIT).unwrap().unwrap();
            received.push((message.position(), message.body().to_vec()));
        }
        // What was handed out first comes again first, and is not settled.
        let (rest, settled) = received.split_at(6);
        proxy.cut();
        for (position, _) in settled {
            consumer.acknowledge(*position).unwrap();
        }
        consumer.confirm().unwrap();
        let mut rest: Vec<_> = rest.iter().map(|(_, body)| body.clone()).collect();
        let mut again = Vec::new();
        for _ in 0..rest.len() {
            let message = consumer.receive(WAIT).unwrap().unwrap();
            consumer.acknowledge(message.position()).unwrap();
            again.push(message.body().to_vec());
        }
        rest.sort();
        again.sort();
        assert_eq!(again, rest, "{shards} shards");
        consumer.confirm().unwrap();
        assert!(sender_sees_nothing_unsettled(&broker));
    }
}

#[test]
fn a_listener_goes_on_over_cuts_and_settles_everything() {
    let broker = TestBroker::start();
    let proxy = Proxy::start(broker.address(), []);
    let client = client(proxy.address());
    let heard = Arc::new(Mutex::new(HashSet::new()));
    let noted = Arc::clone(&heard);
    let listening = client
        .consumer("q")
        .create()
        .unwrap()
        .listen(move |message| {
            noted.lock().unwrap().insert(message.position().offset.0);
        })
        .unwrap();
    let sender = broker.client();
    let sender = producer(&sender, "q");
    for number in 0..500 {
        sender.send("x").unwrap();
        if number % 100 == 50 {
            proxy.cut();
        }
    }
    until(|| heard.lock().unwrap().len() == 500);
    assert_eq!(listening.end(), None);
    listening.stop().unwrap().confirm().unwrap();
    until(|| sender_sees_nothing_unsettled(&broker));
}

fn sender_sees_nothing_unsettled(broker: &TestBroker) -> bool {
    broker.client().stats().unwrap().destinations()[0].unsettled == 0
}

#[test]
fn a_broker_that_started_anew_knows_nothing_so_outstanding_sends_are_unknown_and_new_ones_work() {
    let first = TestBroker::start();
    let proxy = Proxy::start(first.address(), []);
    let client = client(proxy.address());
    let producer = producer(&client, "q");
    let mut consumer = client.consumer("q").create().unwrap();
    let before = producer.send("before").unwrap();
    proxy.set_silent(true);
    let future = producer.send_future("outstanding");
    let watching = first.client();
    until(|| watching.stats().unwrap().destinations()[0].stored == 2);
    drop(watching);
    let second = TestBroker::start();
    proxy.switch(second.address());
    proxy.set_silent(false);
    first.stop();
    proxy.cut();
    // One that was accepted for the first broker does not go to the second.
    let after = loop {
        match producer.send("after") {
            Ok(receipt) => break receipt,
            Err(error) => assert!(
                matches!(
                    error,
                    SendError::NotStored {
                        cause: Cause::OtherInstallation
                    } | SendError::Unknown {
                        cause: Cause::OtherInstallation
                    }
                ),
                "{error}"
            ),
        }
    };
    assert_ne!(after.id.installation, before.id.installation);
    assert_eq!(after.position.offset.0, 0);
    let unknown = common::block_on(future).unwrap_err();
    assert_eq!(
        unknown,
        SendError::Unknown {
            cause: Cause::OtherInstallation
        }
    );
    let received = consumer.receive(WAIT).unwrap().unwrap();
    assert_eq!((received.text(), received.id()), (Some("after"), after.id));
    assert_eq!(client.installation(), after.id.installation);
}

#[test]
fn receiving_without_waiting_asks_again_on_the_next_connection() {
    let broker = TestBroker::of_shards(2);
    let proxy = Proxy::start(broker.address(), []);
    let sender = broker.client();
    let sender = sender.producer("queue:q").partitions(4).create().unwrap();
    let client = client(proxy.address());
    let mut consumer = client.consumer("queue:q").create().unwrap();
    for number in 0..20u64 {
        proxy.cut();
        assert!(consumer.receive_no_wait().unwrap().is_none());
        sender.send(number.to_le_bytes()).unwrap();
        proxy.cut();
        let received = consumer.receive_no_wait().unwrap().unwrap();
        assert_eq!(received.body(), number.to_le_bytes());
        consumer.acknowledge(received.position()).unwrap();
        consumer.confirm().unwrap();
    }
}
