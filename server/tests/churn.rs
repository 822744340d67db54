//! Clients that come and go without end at a broker of two shards: eight producers and
//! nine consumers over destinations of four partitions each, and every client behind a
//! proxy that cuts its connections, single ones or all at once, 20 ms to 2 s apart.
//! Whatever is cut: what was promised about each message holds. And so it does where
//! the broker is part of the process and its links are rings.
//!
//! `CHURN_SECONDS` says for how long, 5 unless said otherwise, `CHURN_SEED` repeats the
//! choices of a run, as far as threads allow, and `CHURN_DRAIN` says how many seconds
//! what is left may take to arrive; `scripts/churn` runs it for long and with the
//! release binary.

#![allow(clippy::unwrap_used)]

#[path = "support/book.rs"]
mod book;
#[path = "support/choices.rs"]
mod choices;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use book::{Book, Delivery, Name, Order, Receiver, body};
use choices::Choices;
use courser::embedded::{self, BrokerConfig};
use courser::{AcknowledgeError, Client, Consumer, Message, Producer, TrySendError};
use proxy::Proxy;
use support::{Broker, DEADLINE};

const PARTITIONS: u32 = 4;
const PRODUCERS: u32 = 8;
/// Of consumers three, of producers one for each two.
const CLIENTS: usize = 7;
const QUEUE: &str = "queue:/churn/work";
const TOPIC: &str = "topic:/churn/news";
const DESTINATIONS: [&str; 2] = [QUEUE, TOPIC];
/// Different keys of one producer.
const KEYS: u64 = 12;
/// Between cuts of one client's connections.
const CUTS_MS: (u64, u64) = (20, 2000);
/// A hasty send gives up while its connection is made again.
const HASTE: Duration = Duration::from_millis(15);

/// What all threads of a churn share.
struct Churn {
    book: Arc<Mutex<Book>>,
    faults_end: Instant,
    /// Everything was received, or somebody panicked.
    over: AtomicBool,
}

impl Churn {
    fn book(&self) -> MutexGuard<'_, Book> {
        locked(&self.book)
    }

    fn has_faults(&self) -> bool {
        Instant::now() < self.faults_end && !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits so long, or until it is over.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_over() {
            thread::park_timeout(until.saturating_duration_since(Instant::now()));
        }
    }
}

fn locked(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a churn also if whoever holds it panics.
struct EndsWith<'a>(&'a Churn);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

fn client(address: &str) -> Client {
    let options = Client::options().timeout(DEADLINE).reconnect_for(DEADLINE);
    options.connect(address).unwrap()
}

/// How a producer sends.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Poll,
    Listener,
    Blocking,
}

/// A producer and what it is like.
struct Sender {
    producer: Producer,
    number: u32,
    mode: Mode,
    is_keyed: bool,
    choices: Choices,
}

impl Sender {
    /// Every mode with and without keys, to both destinations.
    fn new(churn: &Churn, client: &Client, index: u32, seed: u64) -> Self {
        let destination = index as usize % DESTINATIONS.len();
        let mode = [Mode::Poll, Mode::Listener, Mode::Blocking][index as usize % 3];
        let is_hasty = matches!(index, 4..=6);
        let timeout = if is_hasty { HASTE } else { DEADLINE };
        let producer = client.producer(DESTINATIONS[destination]);
        let producer = producer.send_timeout(timeout).window(256);
        Self {
            producer: producer.create().unwrap(),
            number: churn.book().add_sender(destination, is_hasty),
            mode,
            is_keyed: (index / 2) % 2 == 1,
            choices: Choices(seed),
        }
    }

    fn run(mut self, churn: &Churn) {
        while churn.has_faults() {
            // Mostly a few, now and then more than the window takes.
            let most = if self.choices.one_in(100) { 400 } else { 6 };
            for _ in 0..=self.choices.below(most) {
                self.send(churn);
            }
            if matches!(self.mode, Mode::Poll) {
                self.producer.write();
                self.poll(churn, Duration::ZERO);
            }
            churn.pause(Duration::from_millis(1 + self.choices.below(20)));
        }
        let until = Instant::now() + DEADLINE;
        while self.producer.outstanding() > 0 && !churn.is_over() {
            assert!(Instant::now() < until, "{} has no outcome", self.number);
            self.poll(churn, Duration::from_millis(20));
        }
        self.producer.flush().unwrap();
    }

    fn message(&mut self, name: Name) -> Message {
        let key = self.choices.below(KEYS);
        let key = self.is_keyed.then(|| u32::try_from(key).unwrap());
        let length = self.choices.below(300);
        let length = if self.choices.one_in(200) {
            length * 100
        } else {
            length
        };
        let message = Message::new(body(name, key, usize::try_from(length).unwrap()));
        match key {
            Some(key) => message.with_key(key.to_le_bytes()),
            None => message,
        }
    }

    /// One message, entered before anybody can receive it.
    fn send(&mut self, churn: &Churn) {
        let name = churn.book().next_name(self.number);
        let message = self.message(name);
        match self.mode {
            Mode::Poll => loop {
                let mut book = churn.book();
                match self.producer.try_enqueue(&message) {
                    Ok(sequence) => {
                        assert_eq!(sequence.0, name.number);
                        book.accepted(name);
                        return;
                    }
                    Err(TrySendError::WouldBlock) => {}
                    Err(error) => panic!("{name:?}: {error}"),
                }
                drop(book);
                if churn.is_over() {
                    return;
                }
                self.poll(churn, Duration::from_millis(20));
            },
            Mode::Listener => {
                churn.book().accepted(name);
                let book = Arc::clone(&churn.book);
                let sent = self.producer.send_with(message, move |_, result| {
                    locked(&book).told(name, &result);
                });
                sent.unwrap();
            }
            Mode::Blocking => {
                churn.book().accepted(name);
                let result = self.producer.send(&message);
                churn.book().told(name, &result);
            }
        }
    }

    fn poll(&mut self, churn: &Churn, patience: Duration) {
        let mut next = self.producer.poll();
        if next.is_none() && !patience.is_zero() {
            next = self.producer.poll_for(patience);
        }
        while let Some(completion) = next {
            let name = Name {
                sender: self.number,
                number: completion.sequence.0,
            };
            churn.book().told(name, &completion.result);
            next = self.producer.poll();
        }
    }
}

/// How a consumer takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taking {
    /// Waits for each, acknowledges each.
    One,
    /// Reads in place what is there.
    InPlace,
    /// As one, but gives one in fifty back.
    Fickle,
}

struct Taker {
    consumer: Consumer,
    receiver: Receiver,
    taking: Taking,
    choices: Choices,
    /// Since the last confirmation.
    taken: u32,
}

impl Taker {
    fn run(mut self, churn: &Churn) {
        while !churn.is_over() {
            let delivery = match self.taking {
                Taking::InPlace => {
                    let received = self.consumer.try_receive().unwrap();
                    received.map(|received| Delivery::of_borrowed(&received))
                }
                Taking::One | Taking::Fickle => {
                    let received = self.consumer.receive(Duration::from_millis(5)).unwrap();
                    received.map(|received| Delivery::of(&received))
                }
            };
            match delivery {
                Some(delivery) => self.take(churn, &delivery),
                None if self.taken > 0 => self.confirm(churn),
                None => churn.pause(Duration::from_millis(1)),
            }
            if self.taken > 40 {
                self.confirm(churn);
            }
        }
        // What it had not settled by then it gives back.
        self.consumer.close().unwrap();
    }

    fn take(&mut self, churn: &Churn, delivery: &Delivery) {
        churn.book().received(&self.receiver, delivery);
        if self.taking == Taking::Fickle && self.choices.one_in(50) && churn.has_faults() {
            self.consumer.give_back(delivery.position).unwrap();
            return;
        }
        self.consumer.acknowledge(delivery.position).unwrap();
        self.receiver.acknowledges(delivery.name);
        self.taken += 1;
    }

    fn confirm(&mut self, churn: &Churn) {
        let confirmed = self.consumer.confirm();
        self.taken = 0;
        match confirmed {
            Ok(()) => churn.book().confirmed(&mut self.receiver),
            Err(AcknowledgeError::Disconnected | AcknowledgeError::TimedOut { .. }) => {
                churn.book().in_doubt(&mut self.receiver);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The subscriptions, with their consumers' windows.
const SUBSCRIPTIONS: [(&str, usize, Order, [u32; 3]); 4] = [
    ("queue", 0, Order::None, [256, 16, 1]),
    ("keys", 1, Order::Key, [256, 16, 3]),
    ("failover", 1, Order::Partition, [256, 16, 1]),
    ("alone", 1, Order::Partition, [64, 0, 0]),
];

fn consumer(client: &Client, subscription: &str, window: u32) -> Consumer {
    let builder = match subscription {
        "queue" => client.consumer(QUEUE),
        "keys" => client.consumer(TOPIC).subscription("keys").key_shared(),
        "failover" => client.consumer(TOPIC).subscription("failover").failover(),
        name => client.consumer(TOPIC).subscription(name),
    };
    builder.prefetch(window).create().unwrap()
}

/// Cuts connections of one client until the faults end.
fn cut(churn: &Churn, proxy: &Proxy, mut choices: Choices, cuts: &AtomicU64) {
    loop {
        churn.pause(choices.pause(CUTS_MS));
        if !churn.has_faults() {
            return;
        }
        let choice = choices.next();
        let count = if choice.is_multiple_of(2) {
            proxy.cut_all()
        } else {
            proxy.cut_one(usize::try_from(choice >> 32).unwrap())
        };
        cuts.fetch_add(count as u64, Ordering::Relaxed);
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}")),
        Err(_unset) => otherwise,
    }
}

/// How long a churn lasts, and what it chooses by.
struct Setting {
    seconds: u64,
    seed: u64,
}

impl Setting {
    fn read() -> Self {
        let of_process = u64::from(std::process::id()) ^ u64::from(nanoseconds());
        let seconds = setting("CHURN_SECONDS", 5);
        let seed = setting("CHURN_SEED", Choices(of_process).next());
        println!("CHURN_SECONDS={seconds} CHURN_SEED={seed}");
        Self { seconds, seed }
    }
}

#[test]
fn what_is_promised_about_each_message_holds_while_connections_are_cut_without_end() {
    let setting = Setting::read();
    let broker = Broker::of_shards(2);
    let watcher = Client::options()
        .timeout(DEADLINE)
        .connect(broker.address.as_str())
        .unwrap();
    let proxies: Vec<_> = (0..CLIENTS)
        .map(|_| Proxy::start(&broker.address, Vec::new()))
        .collect();
    let clients = proxies.iter().map(|proxy| client(&proxy.address)).collect();
    let cuts = churned(&setting, &watcher, clients, &proxies);
    assert!(cuts >= setting.seconds, "only {cuts} connections were cut");
}

#[test]
fn the_same_holds_for_clients_of_a_broker_in_this_process() {
    let setting = Setting::read();
    let config = BrokerConfig {
        shards: NonZeroU16::new(2),
        ..BrokerConfig::embedded()
    };
    let broker = embedded::Broker::start(config).unwrap();
    let watcher = broker.connect().unwrap();
    // All that differs; and such a link has nothing that could be cut.
    let clients = (0..CLIENTS).map(|_| broker.connect().unwrap()).collect();
    churned(&setting, &watcher, clients, &[]);
    broker.stop();
}

/// Has clients send and receive for a while, cuts connections behind proxies meanwhile,
/// and holds the broker to all that was promised. Returns how many were cut.
fn churned(setting: &Setting, watcher: &Client, clients: Vec<Client>, proxies: &[Proxy]) -> u64 {
    let &Setting { seconds, seed } = setting;
    let mut seeds = Choices(seed);
    for destination in DESTINATIONS {
        let producer = watcher.producer(destination).partitions(PARTITIONS);
        producer.create().unwrap().close().unwrap();
    }
    let churn = Churn {
        book: Arc::default(),
        faults_end: Instant::now() + Duration::from_secs(seconds),
        over: AtomicBool::new(false),
    };

    // Consumers come first, so that the topic keeps everything for all of them.
    let (receiving, sending) = clients.split_at(3);
    let mut takers = Vec::new();
    for (name, destination, order, windows) in SUBSCRIPTIONS {
        let subscription = churn.book().add_subscription(name, destination, order);
        for (index, window) in windows.into_iter().enumerate() {
            if window == 0 {
                continue;
            }
            let taking = match (name, index) {
                ("queue", 1) => Taking::Fickle,
                (_, 0) => Taking::InPlace,
                _ => Taking::One,
            };
            takers.push(Taker {
                consumer: consumer(&receiving[index], name, window),
                receiver: churn.book().receiver(subscription),
                taking,
                choices: Choices(seeds.next()),
                taken: 0,
            });
        }
    }
    let senders: Vec<_> = (0..PRODUCERS)
        .map(|index| {
            let client = &sending[index as usize / 2];
            Sender::new(&churn, client, index, seeds.next())
        })
        .collect();

    let cuts = AtomicU64::new(0);
    let stored = thread::scope(|scope| {
        let ends = EndsWith(&churn);
        for taker in takers {
            scope.spawn(|| {
                let _ends = thread_ends(&churn);
                taker.run(&churn);
            });
        }
        for proxy in proxies {
            let (choices, churn, cuts) = (Choices(seeds.next()), &churn, &cuts);
            scope.spawn(move || cut(churn, proxy, choices, cuts));
        }
        let sending: Vec<_> = senders
            .into_iter()
            .map(|sender| scope.spawn(|| sender.run(&churn)))
            .collect();
        for sender in sending {
            sender.join().unwrap();
        }
        let stored = drained(&churn, watcher);
        drop(ends);
        stored
    });
    let cuts = cuts.into_inner();
    let mut book = churn.book();
    let breaches = book.close(&stored);
    println!("{} connections cut\n{}", cuts, book.story());
    assert_eq!(breaches, Vec::<String>::new(), "CHURN_SEED={seed}");
    cuts
}

/// Ends the churn if this thread panics.
fn thread_ends<'a>(churn: &'a Churn) -> impl Drop + 'a {
    struct IfPanicking<'a>(&'a Churn);
    impl Drop for IfPanicking<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.over.store(true, Ordering::SeqCst);
            }
        }
    }
    IfPanicking(churn)
}

/// Something that differs from run to run.
fn nanoseconds() -> u32 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.subsec_nanos())
}

/// Waits until all that is stored was received and settled; how much that is.
fn drained(churn: &Churn, watcher: &Client) -> [u64; 2] {
    let until = Instant::now() + Duration::from_secs(setting("CHURN_DRAIN", DEADLINE.as_secs()));
    loop {
        let stats = watcher.stats().unwrap();
        let rows = DESTINATIONS.map(|name| {
            let rows = stats.destinations().iter();
            let mut rows = rows.filter(|row| row.destination.to_string() == name);
            rows.next().unwrap().clone()
        });
        let stored = [rows[0].stored, rows[1].stored];
        let book = churn.book();
        let seen = (0..SUBSCRIPTIONS.len()).all(|index| {
            let (_, destination, _, _) = SUBSCRIPTIONS[index];
            book.seen(index) >= stored[destination]
        });
        drop(book);
        if seen && rows.iter().all(|row| row.unsettled == 0) {
            return stored;
        }
        if Instant::now() > until || churn.is_over() {
            println!("not drained: {rows:?}");
            return stored;
        }
        churn.pause(Duration::from_millis(20));
    }
}
