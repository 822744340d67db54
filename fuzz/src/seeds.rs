//! Cases to begin with, made from the golden frames and from a few conversations.
//!
//! They are computed and not kept: when the protocol grows a frame, its golden
//! frame is enough for every target to know it.

use courser_core::frame::control::{
    AckRun, Acknowledge, Acknowledged, Delivery, Fields, OpenConsumer, OpenProducer, OpenSession,
    Ping, WantCredit,
};
use courser_core::frame::encode::{self, Envelope};
use courser_core::frame::{Kind, encode::message_size};
use zerocopy::IntoBytes;

use crate::corpus::Case;
use crate::script::Writer;
use crate::vectors;
use crate::vectors::Vector;

/// The golden frames.
pub(crate) fn vectors() -> Vec<Vector> {
    vectors::all()
}

/// The seeds of a target.
#[must_use]
pub fn of(target: &str) -> Vec<Case> {
    let cases = match target {
        "decode" => decode(),
        "door" => door(),
        "session" => session(),
        "client" => client(),
        "entry" => entry(),
        "recover" => recover(),
        _ => Vec::new(),
    };
    let seed = |(name, bytes)| Case {
        name: format!("seed-{name}"),
        bytes,
    };
    cases.into_iter().map(seed).collect()
}

type Named = (String, Vec<u8>);

fn decode() -> Vec<Named> {
    const WHOLE: u8 = 0;
    const RECIPE: u8 = 0;
    const RAW: u8 = 1;
    let mut cases = Vec::new();
    let mut all = Writer::default().steps(&[3, 1, 13, 0]);
    for vector in vectors() {
        let alone = Writer::default().steps(&[WHOLE, RECIPE]);
        let case = alone.frame(&vector.bytes, 0, 0).finish();
        cases.push((vector.name.to_owned(), case));
        let cut = Writer::default().steps(&[2, 7, 1, RAW]);
        let case = cut.bytes(&vector.bytes).finish();
        cases.push((format!("{}-as-it-stands", vector.name), case));
        all = all.steps(&[RECIPE]).frame(&vector.bytes, 0, 0);
    }
    cases.push(("all".to_owned(), all.finish()));
    cases
}

/// Each golden entry alone, and all of them.
fn entry() -> Vec<Named> {
    const DESCRIBED: u8 = 0;
    const RAW: u8 = 1;
    let whole = || Writer::default().steps(&[0, 0, 0, 0]);
    let mut cases = Vec::new();
    let mut all = whole();
    let entries = vectors::read(include_str!("../../core/tests/vectors/journal.hex"));
    for vector in entries {
        if ["file-header", "checkpoint-header", "batch"].contains(&vector.name) {
            continue;
        }
        let length = vector.bytes.first_chunk().map(|it| u32::from_le_bytes(*it));
        let length = length.map_or(0, |length| length as usize);
        let (kind, content) = (vector.bytes[4], &vector.bytes[8..length]);
        let case = whole().steps(&[DESCRIBED, kind, 0]).bytes(content).finish();
        cases.push((vector.name.to_owned(), case));
        let case = whole().steps(&[RAW]).bytes(&vector.bytes).finish();
        cases.push((format!("{}-as-it-stands", vector.name), case));
        all = all.steps(&[DESCRIBED, kind, 0]).bytes(content);
    }
    cases.push(("all".to_owned(), all.finish()));
    cases
}

/// A few files of two runs, and what may become of them.
fn recover() -> Vec<Named> {
    const APPEND: u8 = 0;
    const FILE: u8 = 2;
    const RUN: u8 = 3;
    let history = || {
        let mut case = Writer::default();
        for (size, waits) in [(100, 0), (5000, 1), (100, 2), (3000, 0), (20, 1)] {
            case = case.steps(&[APPEND]).word(size).steps(&[waits]);
        }
        case = case.steps(&[RUN, 1]);
        for (size, waits) in [(8000, 0), (100, 1), (100, 1)] {
            case = case.steps(&[APPEND]).word(size).steps(&[waits]);
        }
        case.steps(&[FILE, APPEND]).word(10).steps(&[0])
    };
    let named = |name: &str, case: Writer| (name.to_owned(), case.finish());
    vec![
        named("history", history()),
        named(
            "changed",
            history().steps(&[4, 1]).word(4096 + 9).steps(&[1]),
        ),
        named(
            "overwritten",
            history().steps(&[5, 0, 2]).bytes(b"BTCH, but not really"),
        ),
        named("copied", history().steps(&[6, 0, 1, 2, 1])),
        named("zeros", history().steps(&[7, 2, 0])),
        named("cut", history().steps(&[8, 1, 3])),
        named("twice", history().steps(&[9, 1])),
        named("checkpoint", history().steps(&[10, 3])),
        named("nameless", history().steps(&[4, 1]).word(20).steps(&[1])),
        named("torn", history().steps(&[4, 3]).word(4096 + 70).steps(&[1])),
        named("unbegun", history().steps(&[7, 3, 0])),
        named(
            "one",
            Writer::default().steps(&[APPEND]).word(10).steps(&[0]),
        ),
    ]
}

// The acts of `session` that a conversation is made of.
const FRAME: u8 = 0;
const BYTES: u8 = 3;
const CONNECT: u8 = 4;
const VANISH: u8 = 5;
const TURN: u8 = 6;
const SIP: u8 = 7;
const WAIT: u8 = 8;
const STOP: u8 = 9;
// Their names: the first producer, the consumer that was opened behind it, and the
// first session; see `peer`.
const PRODUCER: u8 = 1;
const CONSUMER: u8 = 2;
const SESSION: u8 = 1;
const FIRST_HANDLE: u8 = 128;

/// Which names belong into a golden frame that a client says.
fn names(kind: Option<Kind>) -> (u8, u8) {
    match kind {
        Some(Kind::OpenSession | Kind::AskStats | Kind::Ping | Kind::Goodbye | Kind::Hello) => {
            (0, 0)
        }
        Some(
            Kind::CloseSession
            | Kind::Lookup
            | Kind::OpenProducer
            | Kind::OpenConsumer
            | Kind::Create
            | Kind::SetPolicies
            | Kind::Delete
            | Kind::End
            | Kind::List,
        ) => (0, SESSION),
        Some(Kind::Close) => (0, FIRST_HANDLE),
        Some(Kind::Allow | Kind::Acknowledge) => (CONSUMER, 0),
        _ => (PRODUCER, 0),
    }
}

/// A link on which everything is open: a producer, then a consumer.
fn opened(link: u8) -> Writer {
    Writer::default()
        .say(link, &control(&OpenSession::default(), &[]), (0, 0))
        .say(link, &open_producer(b"/default/orders", 1), (0, SESSION))
        .say(link, &open_consumer(b"/default/orders"), (0, SESSION))
}

fn session() -> Vec<Named> {
    let hello = message(b"hello");
    let mut cases = Vec::new();
    for vector in vectors() {
        let kind = Kind::from_code(vector.bytes[4]);
        let case = opened(0)
            .say(0, &hello, (PRODUCER, 0))
            .say(0, &vector.bytes, names(kind))
            .say(0, &hello, (PRODUCER, 0));
        cases.push((vector.name.to_owned(), case.finish()));
    }
    // Sent, delivered, settled, in pieces; then the consumer's link is gone and what
    // it held comes back to another one.
    let mut case = opened(0);
    for _ in 0..6 {
        case = case.say_in_pieces(0, &hello, (PRODUCER, 0), 5);
    }
    let case = case
        .say(0, &acknowledge(0, 2), (CONSUMER, 0))
        .steps(&[CONNECT, 1])
        .say(1, &control(&OpenSession::default(), &[]), (0, 0))
        .say(1, &open_consumer(b"/default/orders"), (0, SESSION))
        .steps(&[VANISH, 0])
        .say(1, &acknowledge(2, 4), (1, 0));
    cases.push(("returned".to_owned(), case.finish()));
    // Two consumers share what one producer sends, and settle it by turns.
    let mut case = opened(0)
        .steps(&[CONNECT, 1])
        .say(1, &control(&OpenSession::default(), &[]), (0, 0))
        .say(1, &open_consumer(b"/default/orders"), (0, SESSION));
    for turn in 0..4 {
        case = case
            .say(0, &hello, (PRODUCER, 0))
            .say(0, &hello, (PRODUCER, 0))
            .say(0, &acknowledge(turn, 1), (CONSUMER, 0))
            .say(1, &acknowledge(turn, 2), (1, 0));
    }
    cases.push(("shared".to_owned(), case.finish()));
    // A message of many chunks, asked for first, in pieces.
    let want = WantCredit {
        bytes: 300_000.into(),
    };
    let case = opened(0)
        .say(0, &control(&want, &[]), (PRODUCER, 0))
        .large(0, &hello, 200)
        .say(0, &acknowledge(0, 1), (CONSUMER, 0));
    cases.push(("large".to_owned(), case.finish()));
    // The same without credit, and one whose rest never comes.
    let case = opened(0).large(0, &hello, 200);
    cases.push(("beyond-credit".to_owned(), case.finish()));
    let case = opened(0)
        .steps(&[BYTES, 0, 0])
        .bytes(&hello[..50])
        .steps(&[WAIT, 99, WAIT, 9]);
    cases.push(("begun".to_owned(), case.finish()));
    // Who reads nothing, then a little, until it is over.
    let ping = control(&Ping::default(), &[]);
    let mut case = opened(0).steps(&[TURN, 0]);
    for _ in 0..4 {
        case = case.say(0, &hello, (PRODUCER, 0)).say(0, &ping, (0, 0));
    }
    let case = case
        .steps(&[SIP, 0])
        .word(31)
        .steps(&[WAIT, 60, SIP, 0])
        .word(2)
        .steps(&[WAIT, 110]);
    cases.push(("deaf".to_owned(), case.finish()));
    // A message with somebody else's handle.
    let case = opened(0)
        .steps(&[CONNECT, 1])
        .say(1, &hello, (FIRST_HANDLE, 0))
        .steps(&[STOP]);
    cases.push(("foreign".to_owned(), case.finish()));
    // A retry, a gap, and a sequence that stands still.
    let mut case = opened(0).say(0, &hello, (PRODUCER, 0));
    for word in [1, 2, 0, 4] {
        case = case.say(0, &hello, (PRODUCER, word));
    }
    cases.push(("sequences".to_owned(), case.finish()));
    // A destination of several partitions beside the queue.
    let case = opened(0)
        .say(0, &open_producer(b"/wide/orders", 5), (0, SESSION))
        .say(0, &hello, (2, 0))
        .say(0, &control(&OpenSession::default(), &[]), (0, 0));
    cases.push(("wide".to_owned(), case.finish()));
    cases
}

fn door() -> Vec<Named> {
    const COMES: u8 = 0;
    const SAYS: u8 = 1;
    const SAYS_BYTES: u8 = 2;
    const GOES: u8 = 3;
    const TIME: u8 = 4;
    const LEAVES: u8 = 5;
    let mut cases = Vec::new();
    for vector in vectors() {
        let says = Writer::default().steps(&[COMES, 0, SAYS, 0, 0]);
        let case = says.frame(&vector.bytes, 0, 0).finish();
        cases.push((vector.name.to_owned(), case));
    }
    let hello = &vectors()[0].bytes;
    let behind = [hello, &control(&Ping::default(), &[])[..]].concat();
    // In every small piece, with something behind it.
    let case = Writer::default()
        .steps(&[COMES, 1, SAYS_BYTES, 0, 1])
        .bytes(&behind)
        .steps(&[LEAVES, 0]);
    cases.push(("in-pieces".to_owned(), case.finish()));
    // More than there may be: from one address, and in all; then all are too slow.
    let mut case = Writer::default();
    for address in [0, 0, 0, 0, 1, 1, 2, 0, 1, 2] {
        case = case.steps(&[COMES, address]);
    }
    case = case.steps(&[GOES, 1, TIME, 5]);
    for _ in 0..4 {
        case = case.steps(&[SAYS, 0, 0]).frame(hello, 0, 0);
        case = case.steps(&[COMES, 2]);
    }
    let case = case.steps(&[TIME, 14, TIME, 1, TIME, 5]);
    cases.push(("crowd".to_owned(), case.finish()));
    // A hello that never ends, and one with too much behind it.
    let endless = Writer::default().steps(&[COMES, 0, SAYS, 0, 200]);
    let case = endless.larger_frame(hello, 0, 3);
    cases.push(("endless".to_owned(), case.finish()));
    let much = [hello, &[0xee; 5000][..]].concat();
    let case = Writer::default().steps(&[COMES, 0, SAYS_BYTES, 0, 0]);
    cases.push(("much-behind".to_owned(), case.bytes(&much).finish()));
    cases
}

/// What a broker says, with the names that `client` has for it.
fn client() -> Vec<Named> {
    const HEARS_BYTES: u8 = 3;
    const HELD: u8 = 10;
    let mut cases = Vec::new();
    for vector in vectors() {
        let kind = Kind::from_code(vector.bytes[4]);
        let names = match kind {
            Some(Kind::Credit | Kind::Completions) => (FIRST_GIVEN, 1),
            Some(Kind::Delivery | Kind::Acknowledged) => (FIRST_GIVEN + 1, 1),
            Some(Kind::ProducerOpened | Kind::ConsumerOpened) => (0, 1),
            Some(Kind::Message) => (0, 1),
            _ => (0, 0),
        };
        let case = welcomed()
            .steps(&SEND)
            .hears(&vector.bytes, names)
            .steps(&SEND);
        cases.push((vector.name.to_owned(), case.finish()));
        let case = Writer::default().hears(&vector.bytes, (0, 0));
        cases.push((format!("{}-first", vector.name), case.finish()));
        let case = welcomed().steps(&[HEARS_BYTES, 3]).bytes(&vector.bytes);
        cases.push((format!("{}-as-it-stands", vector.name), case.finish()));
    }
    // Sends that leave in part, are answered, run out of time, and are lost.
    let case = welcomed()
        .steps(&[HELD, 9])
        .steps(&SEND)
        .steps(&SEND)
        .steps(&[HELD, 0])
        .hears(&golden("completions"), (FIRST_GIVEN, 1))
        .steps(&SEND_WITH_DEADLINE)
        .steps(&[9, 6])
        .steps(&SEND);
    cases.push(("outcomes".to_owned(), case.finish()));
    // Messages, settled in every way, and everything closed.
    let mut case = welcomed();
    for _ in 0..3 {
        case = case
            .hears(&delivery(), (FIRST_GIVEN + 1, 1))
            .hears(&golden("message"), (0, 1))
            .steps(&[7, 0, 0]);
    }
    let closed = golden("closed");
    let confirmed = Acknowledged {
        confirm: 1.into(),
        ..Acknowledged::default()
    };
    let case = case
        .hears(&delivery(), (FIRST_GIVEN + 1, 1))
        .hears(&golden("message"), (0, 1))
        .steps(&[HELD, 1, 7, 0, 0, 8, 0, 2, HELD, 0])
        .hears(&control(&confirmed, &[]), (FIRST_GIVEN + 1, 0))
        .steps(&[8, 0, 0, 8, 0, 1])
        .hears(&closed, (0, FIRST_GIVEN))
        .hears(&closed, (0, FIRST_GIVEN + 1))
        .steps(&[8, 0, 8]);
    cases.push(("delivered".to_owned(), case.finish()));
    // Messages where no partition can come to, settled one behind the other.
    let mut case = welcomed();
    for offset in [u64::MAX - 1, u64::MAX] {
        let mut message = golden("message");
        message[16..24].copy_from_slice(&offset.to_le_bytes());
        case = case
            .hears(&delivery_at(offset), (FIRST_GIVEN + 1, 1))
            .hears(&message, (0, 1))
            .steps(&[7, 0, 2]);
    }
    cases.push(("beyond-all-offsets".to_owned(), case.finish()));
    cases
}

/// Of `client`: a broker's first handle.
const FIRST_GIVEN: u8 = 64;
/// Acts of `client`: a small send, and one that fails after half a second.
const SEND: [u8; 4] = [6, 0, 0, 2];
const SEND_WITH_DEADLINE: [u8; 4] = [6, 0, 16, 2];

/// A client with a producer and, behind it, a consumer.
fn welcomed() -> Writer {
    const ASKS_FOR_PRODUCER: u8 = 4;
    const ASKS_FOR_CONSUMER: u8 = 5;
    Writer::default()
        .hears(&golden("welcome"), (128, 0))
        .hears(&golden("session-opened"), (0, 0))
        .steps(&[ASKS_FOR_PRODUCER, 200, 2])
        .hears(&golden("located-here"), (0, 0))
        .hears(&golden("producer-opened"), (0, 1))
        .steps(&[ASKS_FOR_CONSUMER, 9, 99])
        .hears(&golden("consumer-opened"), (0, 1))
}

fn golden(name: &str) -> Vec<u8> {
    let mut all = vectors().into_iter();
    let vector = all.find(|vector| vector.name == name);
    vector.expect("a golden frame of this name").bytes
}

/// One message, the first of its partition.
fn delivery() -> Vec<u8> {
    delivery_at(0)
}

fn delivery_at(offset: u64) -> Vec<u8> {
    let fields = Delivery {
        count: 1.into(),
        offset: offset.into(),
        delivery_count: 1.into(),
        ..Delivery::default()
    };
    control(&fields, &[])
}

impl Writer {
    /// The client hears a frame.
    fn hears(self, frame: &[u8], names: (u8, u8)) -> Self {
        self.steps(&[0, 0]).frame(frame, names.0, names.1)
    }

    fn say(self, link: u8, frame: &[u8], names: (u8, u8)) -> Self {
        self.say_in_pieces(link, frame, names, 0)
    }

    fn say_in_pieces(self, link: u8, frame: &[u8], names: (u8, u8), piece: u8) -> Self {
        self.steps(&[FRAME, link, piece])
            .frame(frame, names.0, names.1)
    }

    /// The producer's message with so many KiB more, in pieces.
    fn large(self, link: u8, frame: &[u8], kibibytes: u8) -> Self {
        self.steps(&[FRAME, link, 255])
            .larger_frame(frame, PRODUCER, kibibytes)
    }
}

fn control<F: Fields>(fields: &F, tail: &[&[u8]]) -> Vec<u8> {
    let size = tail.iter().map(|part| part.len()).sum();
    let mut bytes = vec![0; encode::control_size::<F>(size)];
    encode::control(0, fields, tail, &mut bytes);
    bytes
}

fn length(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).expect("names are short")
}

fn open_producer(name: &[u8], partitions: u32) -> Vec<u8> {
    let fields = OpenProducer {
        destination_length: length(name).into(),
        partitions: partitions.into(),
        ..OpenProducer::default()
    };
    control(&fields, &[name])
}

fn open_consumer(name: &[u8]) -> Vec<u8> {
    let fields = OpenConsumer {
        destination_length: length(name).into(),
        messages: 64.into(),
        bytes: 100_000.into(),
        ..OpenConsumer::default()
    };
    control(&fields, &[name])
}

fn acknowledge(first: u64, count: u64) -> Vec<u8> {
    let fields = Acknowledge {
        runs: 1.into(),
        confirm: 9.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: first.into(),
        count: count.into(),
    };
    control(&fields, &[run.as_bytes()])
}

fn message(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; message_size(0, body.len())];
    encode::message(&Envelope::default(), &[], body, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TARGETS;

    #[test]
    fn every_target_has_seeds_with_names_of_their_own() {
        for target in TARGETS {
            let mut names: Vec<_> = of(target.name).into_iter().map(|case| case.name).collect();
            assert!(names.len() > 10, "{}", target.name);
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{}", target.name);
        }
    }
}
