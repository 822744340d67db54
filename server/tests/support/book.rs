//! The book of a churn: what was sent and what became of it, who received what, and
//! whether all of that is what a broker promises.
//!
//! ```text
//!   senders    --- accepted, told --->  Book  <--- received, confirmed ---  receivers
//!                                         |
//!                              breaches, found at once or at the end
//! ```
//!
//! Time is the number of entries so far. An entry is made after the library has handed
//! out what it is about and before the application answers, so what one receiver was
//! given and another one settled cannot be entered the wrong way round. Only what lay
//! in a receiver's buffer while its connection broke may be entered late: it is stale,
//! as long as that receiver has not heard from the broker since.

#![allow(clippy::unwrap_used, unreachable_pub)]

use std::collections::{BTreeMap, HashMap};

use courser::{Borrowed, MessageId, Position, Receipt, Received, SendError};

/// Which message: its sender, and its number among those that the sender had accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub sender: u32,
    pub number: u64,
}

/// Bytes of a name and a key in front of each body.
const HEAD: usize = 16;

/// A body that says whose it is.
pub fn body(name: Name, key: Option<u32>, length: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(HEAD + length);
    body.extend(name.sender.to_le_bytes());
    body.extend(name.number.to_le_bytes());
    body.extend(key.unwrap_or(u32::MAX).to_le_bytes());
    body.resize(HEAD + length, filling(name));
    body
}

fn filling(name: Name) -> u8 {
    name.number.to_le_bytes()[0] ^ name.sender.to_le_bytes()[0]
}

/// What a subscription promises about order, beside what all promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing: its consumers compete.
    None,
    /// First deliveries of a sender come in its order within each partition.
    Partition,
    /// And so those of a sender and a key, or of the sender if it gives no keys.
    Key,
}

/// What was received, taken out of either form of a message.
pub struct Delivery {
    pub name: Name,
    key: Option<u32>,
    id: MessageId,
    pub position: Position,
    count: u32,
    is_whole: bool,
}

impl Delivery {
    pub fn of(received: &Received) -> Self {
        let (id, position) = (received.id(), received.position());
        Self::new(received.body(), id, position, received.delivery_count())
    }

    pub fn of_borrowed(received: &Borrowed<'_>) -> Self {
        let (id, position) = (received.id(), received.position());
        Self::new(received.body(), id, position, received.delivery_count())
    }

    fn new(body: &[u8], id: MessageId, position: Position, count: u32) -> Self {
        let (head, rest) = body.split_at(HEAD);
        let name = Name {
            sender: u32::from_le_bytes(head[..4].try_into().unwrap()),
            number: u64::from_le_bytes(head[4..12].try_into().unwrap()),
        };
        let key = u32::from_le_bytes(head[12..].try_into().unwrap());
        Self {
            name,
            key: (key != u32::MAX).then_some(key),
            id,
            position,
            count,
            is_whole: rest.iter().all(|byte| *byte == filling(name)),
        }
    }
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is under way.
    None,
    Stored(Position),
    NotStored,
    Unknown,
}

struct Sender {
    destination: usize,
    sends: Vec<Outcome>,
    /// How many have their outcome: those in front.
    told: usize,
    /// The sequence of the newest one that was stored.
    newest: u64,
    /// Whether its sends may end otherwise than stored.
    is_hasty: bool,
}

/// One message in one subscription.
struct Seen {
    first: u64,
    /// When, and by which receiver.
    confirmed: Option<(u64, usize)>,
}

struct Subscription {
    name: &'static str,
    destination: usize,
    order: Order,
    seen: HashMap<Name, Seen>,
    /// The newest number that was delivered for the first time, of each sender and
    /// partition or key.
    newest: HashMap<(u32, u32), u64>,
    redelivered: u64,
}

/// Who receives, and since when nothing stale is in its buffer.
pub struct Receiver {
    number: usize,
    subscription: usize,
    /// When the last round trip but one ended: the last one began since, though maybe
    /// before it was asked for, because acknowledgements are told on their own as well.
    fresh: u64,
    /// When the last round trip ended.
    heard: u64,
    /// What it acknowledged since.
    acknowledged: Vec<Name>,
}

impl Receiver {
    /// It acknowledges the message.
    pub fn acknowledges(&mut self, name: Name) {
        self.acknowledged.push(name);
    }
}

/// See the module.
#[derive(Default)]
pub struct Book {
    now: u64,
    senders: Vec<Sender>,
    receivers: usize,
    subscriptions: Vec<Subscription>,
    /// What lies where in each destination.
    places: HashMap<(usize, u32, u64), Name>,
    ids: HashMap<Name, MessageId>,
    breaches: Vec<String>,
    breaches_count: usize,
}

/// More would not say more.
const BREACHES_MAX: usize = 20;

impl Book {
    pub fn add_sender(&mut self, destination: usize, is_hasty: bool) -> u32 {
        let sends = Vec::new();
        self.senders.push(Sender {
            destination,
            sends,
            told: 0,
            newest: 0,
            is_hasty,
        });
        u32::try_from(self.senders.len() - 1).unwrap()
    }

    pub fn add_subscription(
        &mut self,
        name: &'static str,
        destination: usize,
        order: Order,
    ) -> usize {
        self.subscriptions.push(Subscription {
            name,
            destination,
            order,
            seen: HashMap::new(),
            newest: HashMap::new(),
            redelivered: 0,
        });
        self.subscriptions.len() - 1
    }

    pub fn receiver(&mut self, subscription: usize) -> Receiver {
        self.receivers += 1;
        Receiver {
            number: self.receivers,
            subscription,
            fresh: 0,
            heard: 0,
            acknowledged: Vec::new(),
        }
    }

    /// The name of the sender's next message.
    pub fn next_name(&self, sender: u32) -> Name {
        let number = self.senders[sender as usize].sends.len() as u64 + 1;
        Name { sender, number }
    }

    /// A message of that name was accepted.
    pub fn accepted(&mut self, name: Name) {
        assert_eq!(name, self.next_name(name.sender), "the test numbers them");
        self.senders[name.sender as usize].sends.push(Outcome::None);
    }

    /// The sender was told what became of a message.
    pub fn told(&mut self, name: Name, result: &Result<Receipt, SendError>) {
        let outcome = match result {
            Ok(receipt) => {
                // What gave up before it had its turn has no sequence of its own.
                let newest = &mut self.senders[name.sender as usize].newest;
                let before = std::mem::replace(newest, receipt.id.sequence.0);
                if receipt.id.sequence.0 <= before || receipt.id.sequence.0 > name.number {
                    self.breach(format!("{name:?} is {} behind {before}", receipt.id));
                }
                self.identify(name, receipt.id);
                self.place(name, receipt.position);
                Outcome::Stored(receipt.position)
            }
            Err(SendError::NotStored { .. }) => Outcome::NotStored,
            Err(SendError::Unknown { .. }) => Outcome::Unknown,
            Err(error) => {
                self.breach(format!("{name:?} ended as {error}"));
                Outcome::Unknown
            }
        };
        let sender = &mut self.senders[name.sender as usize];
        let (expected, accepted) = (sender.told as u64 + 1, sender.sends.len());
        let is_hasty = sender.is_hasty;
        sender.told += 1;
        match sender
            .sends
            .get_mut(usize::try_from(name.number).unwrap() - 1)
        {
            Some(entry @ Outcome::None) if name.number == expected => *entry = outcome,
            entry => {
                let entry = entry.copied();
                self.breach(format!(
                    "{name:?} is told {outcome:?} where {expected} of {accepted} is due, after {entry:?}"
                ));
            }
        }
        if !is_hasty && !matches!(outcome, Outcome::Stored(_)) {
            self.breach(format!(
                "{name:?} had all the time, and ended as {result:?}"
            ));
        }
    }

    /// A receiver was handed a message.
    pub fn received(&mut self, receiver: &Receiver, delivery: &Delivery) {
        self.now += 1;
        let now = self.now;
        let Delivery { name, position, .. } = *delivery;
        let index = receiver.subscription;
        let (destination, order) = {
            let subscription = &self.subscriptions[index];
            (subscription.destination, subscription.order)
        };
        let sender = self.senders.get(name.sender as usize);
        let sends = sender.filter(|sender| sender.destination == destination);
        let sent = sends.map_or(0, |sender| sender.sends.len() as u64);
        // A message is accepted and entered as one, so nobody is ahead of the book.
        if name.number == 0 || name.number > sent || !delivery.is_whole {
            self.breach(format!("{name:?} at {position} was never so sent"));
            return;
        }
        self.identify(name, delivery.id);
        self.place(name, position);
        let subscription = &mut self.subscriptions[index];
        let what = subscription.name;
        if let Some(seen) = subscription.seen.get(&name) {
            subscription.redelivered += 1;
            let confirmed = seen.confirmed.filter(|(then, _)| *then < receiver.fresh);
            let flagged = delivery.count > 1 || seen.first >= receiver.fresh;
            if let Some((then, by)) = confirmed {
                let (to, since) = (receiver.number, receiver.fresh);
                self.breach(format!(
                    "{what}: {name:?} at {position} comes again at {now} to {to}, fresh since {since}, delivery {}, confirmed at {then} by {by}",
                    delivery.count
                ));
            } else if !flagged {
                self.breach(format!(
                    "{what}: {name:?} at {position} comes again at {now} as if for the first time"
                ));
            }
            return;
        }
        let first = Seen {
            first: now,
            confirmed: None,
        };
        subscription.seen.insert(name, first);
        let lane = match (order, delivery.key) {
            (Order::None, _) => return,
            (Order::Key, Some(key)) => key,
            (Order::Partition, _) | (Order::Key, None) => position.partition.0,
        };
        let newest = subscription.newest.entry((name.sender, lane)).or_default();
        let before = std::mem::replace(newest, name.number.max(*newest));
        if before > name.number {
            self.breach(format!(
                "{what}: {name:?} at {position} comes after {before} of lane {lane}"
            ));
        }
    }

    /// A round trip has ended: what the receiver acknowledged before it is settled, and
    /// its buffer holds nothing that was stale when it began.
    pub fn confirmed(&mut self, receiver: &mut Receiver) {
        self.now += 1;
        receiver.fresh = std::mem::replace(&mut receiver.heard, self.now);
        let subscription = &mut self.subscriptions[receiver.subscription];
        for name in receiver.acknowledged.drain(..) {
            let seen = subscription.seen.get_mut(&name).unwrap();
            seen.confirmed.get_or_insert((self.now, receiver.number));
        }
    }

    /// Nobody knows what became of what the receiver acknowledged.
    pub fn in_doubt(&mut self, receiver: &mut Receiver) {
        receiver.acknowledged.clear();
    }

    /// How many different messages a subscription has seen.
    pub fn seen(&self, subscription: usize) -> u64 {
        self.subscriptions[subscription].seen.len() as u64
    }

    /// What cannot be known before the end; then all breaches.
    pub fn close(&mut self, stored: &[u64]) -> Vec<String> {
        let mut breaches = Vec::new();
        for (index, sender) in self.senders.iter().enumerate() {
            if sender.told != sender.sends.len() {
                let (told, sent) = (sender.told, sender.sends.len());
                breaches.push(format!("sender {index} was told {told} of {sent} outcomes"));
            }
        }
        for subscription in &self.subscriptions {
            let what = subscription.name;
            let (mut missing, mut ghosts) = (Vec::new(), Vec::new());
            for (sender, account) in (0..).zip(&self.senders) {
                if account.destination != subscription.destination {
                    continue;
                }
                for (number, outcome) in (1..).zip(&account.sends) {
                    let name = Name { sender, number };
                    match (outcome, subscription.seen.contains_key(&name)) {
                        (Outcome::Stored(position), false) => missing.push((name, *position)),
                        (Outcome::NotStored, true) => ghosts.push(name),
                        _ => {}
                    }
                }
            }
            if let Some(first) = missing.first() {
                let count = missing.len();
                breaches.push(format!("{what} never saw {count}, the first is {first:?}"));
            }
            if let Some(first) = ghosts.first() {
                let count = ghosts.len();
                breaches.push(format!(
                    "{what} saw {count} that were not stored, the first is {first:?}"
                ));
            }
        }
        let mut ends: BTreeMap<(usize, u32), (u64, u64)> = BTreeMap::new();
        for (destination, partition, offset) in self.places.keys() {
            let (count, end) = ends.entry((*destination, *partition)).or_default();
            *count += 1;
            *end = (*end).max(offset + 1);
        }
        for ((destination, partition), (count, end)) in &ends {
            if count != end {
                breaches.push(format!(
                    "destination {destination} partition {partition} has {count} messages up to {end}"
                ));
            }
        }
        for (destination, stored) in stored.iter().enumerate() {
            let of_it = ends.iter().filter(|((it, _), _)| *it == destination);
            let known: u64 = of_it.map(|(_, (count, _))| count).sum();
            if known != *stored {
                breaches.push(format!(
                    "destination {destination} stored {stored}, and {known} are known"
                ));
            }
        }
        for breach in breaches {
            self.breach(breach);
        }
        let more = self.breaches_count - self.breaches.len();
        if more > 0 {
            self.breaches.push(format!("and {more} more"));
        }
        std::mem::take(&mut self.breaches)
    }

    /// What happened, in a line for each.
    pub fn story(&self) -> String {
        let mut story = String::new();
        let outcomes = || self.senders.iter().flat_map(|sender| &sender.sends);
        let count = |wanted: fn(&Outcome) -> bool| outcomes().filter(|it| wanted(it)).count();
        story += &format!(
            "sent {}: stored {}, not stored {}, unknown {}\n",
            outcomes().count(),
            count(|it| matches!(it, Outcome::Stored(_))),
            count(|it| *it == Outcome::NotStored),
            count(|it| *it == Outcome::Unknown),
        );
        for it in &self.subscriptions {
            let (what, seen, again) = (it.name, it.seen.len(), it.redelivered);
            story += &format!("{what}: {seen} messages, {again} came again\n");
        }
        story
    }

    /// The id of a message is one and the same, whoever names it.
    fn identify(&mut self, name: Name, id: MessageId) {
        let known = *self.ids.entry(name).or_insert(id);
        if known != id {
            self.breach(format!("{name:?} is {known} and {id}"));
        }
    }

    /// A place holds one message, whoever looks.
    fn place(&mut self, name: Name, position: Position) {
        let destination = self.senders[name.sender as usize].destination;
        let place = (destination, position.partition.0, position.offset.0);
        let known = *self.places.entry(place).or_insert(name);
        if known != name {
            self.breach(format!("at {position} are {known:?} and {name:?}"));
        }
    }

    fn breach(&mut self, breach: String) {
        self.breaches_count += 1;
        if self.breaches.len() < BREACHES_MAX {
            self.breaches.push(breach);
        }
    }
}
