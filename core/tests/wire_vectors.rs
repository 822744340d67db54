//! The wire format against bytes that another encoder wrote.
//!
//! Each vector has to decode to the fields that its lines name, and these
//! fields have to encode to the vector's bytes. A change of the layout that
//! encoder and decoder agree on passes every round trip; here it fails.
#![allow(clippy::unwrap_used)]

mod vectors;

use std::collections::{BTreeMap, BTreeSet};

use courser_core::error::Refusal;
use courser_core::frame::control::{
    AckRun, Acknowledge, Acknowledged, Allow, AskStats, Batch, Cancel, Changed, Close,
    CloseSession, Closed, CompletionRun, Completions, ConsumerOpened, ConsumerRow, Control, Create,
    Credit, Delete, Delivery, DestinationRow, End, Ended, Farewell, Fields, Goodbye, Hello,
    LinkRow, List, Listed, Located, Lookup, Move, OpenConsumer, OpenProducer, OpenSession, PartRow,
    Ping, Poll, Polled, Pong, ProducerOpened, ProducerRow, Refused, Return, SessionClosed,
    SessionOpened, SetPolicies, Stats, StatsRow, SubscriptionRow, WantCredit, Welcome,
};
use courser_core::frame::decode::{Frame, Message, Step, decode};
use courser_core::frame::encode::{self, Envelope};
use courser_core::frame::{
    Durability, Kind, MAGIC, MESSAGE_HEADER_SIZE, MessageHeader, Reserved, VERSION, checksum,
    flags, property,
};
use courser_core::id::{Epoch, Handle, PartitionIndex, PartitionSequence, ProducerId, Sequence};
use courser_core::time::Wall;
use courser_core::{limits, routing};
use zerocopy::IntoBytes;

const REQUEST: u32 = 7;
const SESSION: u32 = 1;
const PRODUCER: u32 = 0x0010_0002;
const CONSUMER: u32 = 0x0020_0003;
const APPENDED: u64 = 1_700_000_000_123_456_789;
const SENT: u64 = 1_700_000_000_000_000_000;

/// Takes vectors out of the file, one after the other, and checks each.
struct Check {
    left: BTreeMap<&'static str, Vec<u8>>,
}

impl Check {
    fn new() -> Self {
        let vectors = vectors::all();
        let count = vectors.len();
        let left: BTreeMap<_, _> = vectors
            .into_iter()
            .map(|vector| (vector.name, vector.bytes))
            .collect();
        assert_eq!(left.len(), count, "no name stands twice in the file");
        Self { left }
    }

    fn take(&mut self, name: &str) -> Vec<u8> {
        self.left
            .remove(name)
            .unwrap_or_else(|| panic!("{name} is in the file, and checked once"))
    }

    /// Both ways for a control frame; `wrap` is its variant.
    fn control<'a, F: Fields>(
        &mut self,
        name: &str,
        subject: u32,
        wrap: fn(&'a F, &'a [u8]) -> Control<'a>,
        fields: &'a F,
        tail: &'a [u8],
    ) {
        let bytes = self.take(name);
        let expected = Frame::Control {
            subject,
            control: wrap(fields, tail),
        };
        assert_eq!(
            decode(&bytes),
            Ok(Step::Frame(expected, bytes.len())),
            "{name}"
        );

        let mut out = vec![0xee; bytes.len()];
        let (front, back) = tail.split_at(tail.len() / 2);
        let size = encode::control(subject, fields, &[front, back], &mut out);
        assert_eq!(size, encode::control_size::<F>(tail.len()), "{name}");
        assert_eq!(size, bytes.len(), "{name}");
        if bytes[5] != VERSION {
            // This side writes its own version: take the vector's, and seal it again.
            out[5] = bytes[5];
            let length = u32::from_le_bytes(*out.first_chunk().unwrap()) as usize;
            let sealed = checksum::control(&out[..length]);
            out[8..12].copy_from_slice(&sealed.to_le_bytes());
        }
        assert_eq!(out, bytes, "{name}");
    }

    /// Both ways for a message whose header is `header` but for length, kind,
    /// version and checksum.
    fn message(
        &mut self,
        name: &str,
        header: MessageHeader,
        properties: &[(&str, &str)],
        body: &[u8],
    ) -> (Vec<u8>, MessageHeader) {
        let bytes = self.take(name);
        let mut block = Vec::new();
        for (property, value) in properties {
            property::push(&mut block, property, value).unwrap();
        }
        let length = MESSAGE_HEADER_SIZE + block.len() + body.len();
        let header = MessageHeader {
            length: u32::try_from(length).unwrap().into(),
            kind: Kind::Message as u8,
            version: VERSION,
            property_length: u32::try_from(block.len()).unwrap().into(),
            checksum: u32::from_le_bytes(bytes[32..36].try_into().unwrap()).into(),
            ..header
        };
        let expected = Frame::Message(Message {
            header: &header,
            properties: &block,
            body,
            bytes: &bytes,
        });
        assert_eq!(
            decode(&bytes),
            Ok(Step::Frame(expected, bytes.len())),
            "{name}"
        );
        assert_eq!(header.body_length() as usize, body.len(), "{name}");
        assert_eq!(property::check(&block), Ok(()), "{name}");
        assert!(
            property::iter(&block).eq(properties.iter().copied()),
            "{name}"
        );

        let mut written = [header.bytes(), &block, body].concat();
        assert_eq!(checksum::message(&written), header.checksum.get(), "{name}");
        written.resize(encode::message_size(block.len(), body.len()), 0);
        assert_eq!(written, bytes, "{name}");
        (bytes, header)
    }
}

/// What the vectors of messages have in common.
fn envelope() -> Envelope {
    Envelope {
        handle: Handle(PRODUCER),
        partition: PartitionIndex(0),
        producer: ProducerId(11),
        epoch: Epoch(1),
        sequence: Sequence(1),
        partition_sequence: PartitionSequence(1),
        timestamp: Wall(SENT),
        key_hash: None,
        durability: Durability::Memory,
    }
}

fn header() -> MessageHeader {
    MessageHeader {
        handle: PRODUCER.into(),
        producer: 11.into(),
        sequence: 1.into(),
        partition_sequence: 1.into(),
        epoch: 1.into(),
        timestamp: SENT.into(),
        ..MessageHeader::default()
    }
}

fn encoded(envelope: &Envelope, properties: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xee; encode::message_size(properties.len(), body.len())];
    let size = encode::message(envelope, properties, body, &mut out);
    assert_eq!(size, out.len());
    out
}

fn connection_frames(check: &mut Check) {
    let hello = Hello {
        magic: MAGIC,
        version_min: 1,
        version_max: 1,
        shard: u16::MAX.into(),
        name_length: 7.into(),
        ..Hello::default()
    };
    let name = b"vectors";
    check.control("hello", 0, Control::Hello, &hello, name);
    let later = Hello {
        version_min: 7,
        version_max: 9,
        ..hello
    };
    check.control("hello-of-a-later-version", 0, Control::Hello, &later, name);
    let again = Hello {
        link: 41.into(),
        ..hello
    };
    check.control("hello-again", 0, Control::Hello, &again, name);
    let welcome = Welcome {
        version: 1,
        shards: 1,
        shard: 0.into(),
        frame_size_max: limits::FRAME_SIZE_MAX.into(),
        installation: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff.into(),
        link: 42.into(),
        run: 3.into(),
        ..Welcome::default()
    };
    check.control("welcome", 0, Control::Welcome, &welcome, &[]);
    let elsewhere = Welcome {
        shards: 4,
        shard: 1.into(),
        link: ((1 << 48) + 42).into(),
        ..welcome
    };
    check.control("welcome-moved", REQUEST, Control::Welcome, &elsewhere, &[]);
    let farewell = Farewell {
        refusal: Refusal::VersionUnsupported.code().into(),
        version_min: 1,
        version_max: 1,
        text_length: 0.into(),
    };
    check.control("farewell", 0, Control::Farewell, &farewell, &[]);
    let later = Farewell {
        version_min: 9,
        version_max: 9,
        ..farewell
    };
    check.control(
        "farewell-of-a-later-version",
        0,
        Control::Farewell,
        &later,
        &[],
    );
    check.control("goodbye", 0, Control::Goodbye, &Goodbye::default(), &[]);
    let token = 0x00de_cade;
    let ping = Ping {
        token: token.into(),
    };
    check.control("ping", REQUEST, Control::Ping, &ping, &[]);
    let pong = Pong {
        token: token.into(),
    };
    check.control("pong", REQUEST, Control::Pong, &pong, &[]);
}

fn session_frames(check: &mut Check) {
    check.control(
        "open-session",
        REQUEST,
        Control::OpenSession,
        &OpenSession::default(),
        &[],
    );
    let opened = SessionOpened {
        session: SESSION.into(),
        ..SessionOpened::default()
    };
    check.control(
        "session-opened",
        REQUEST,
        Control::SessionOpened,
        &opened,
        &[],
    );
    let close = CloseSession {
        session: SESSION.into(),
        ..CloseSession::default()
    };
    check.control("close-session", REQUEST, Control::CloseSession, &close, &[]);
    let closed = SessionClosed {
        session: SESSION.into(),
        ..SessionClosed::default()
    };
    check.control(
        "session-closed",
        REQUEST,
        Control::SessionClosed,
        &closed,
        &[],
    );
    let lookup = Lookup {
        session: SESSION.into(),
        destination: 1,
        ..Lookup::default()
    };
    check.control("lookup", REQUEST, Control::Lookup, &lookup, b"/md/eu");
    let here = Located {
        verdict: 0,
        exists: 1,
        shard: 0.into(),
        partitions: 3.into(),
    };
    check.control("located-here", REQUEST, Control::Located, &here, &[]);
    let elsewhere = Located {
        verdict: 1,
        exists: 1,
        shard: 2.into(),
        partitions: 1.into(),
    };
    check.control(
        "located-elsewhere",
        REQUEST,
        Control::Located,
        &elsewhere,
        b"127.0.0.1:7421",
    );
    let refused = Refused {
        refusal: Refusal::NotFound.code().into(),
        text_length: 15.into(),
        ..Refused::default()
    };
    check.control(
        "refused",
        REQUEST,
        Control::Refused,
        &refused,
        b"no topic /md/eu",
    );
    check.control(
        "ask-stats",
        REQUEST,
        Control::AskStats,
        &AskStats::default(),
        &[],
    );
    let stats = Stats {
        counters: 2.into(),
        rows: 1.into(),
        ..Stats::default()
    };
    let row = StatsRow {
        destination: 1,
        name_length: 6.into(),
        partitions: 3.into(),
        stored: 1000.into(),
        unsettled: 10.into(),
        bytes: 65_536.into(),
        producers: 1.into(),
        consumers: 2.into(),
        subscriptions: 1.into(),
        ..StatsRow::default()
    };
    let counters = [17u64, 1 << 40].map(u64::to_le_bytes);
    let tail = [counters.as_flattened(), row.as_bytes(), b"/md/eu\0\0"].concat();
    check.control("stats", REQUEST, Control::Stats, &stats, &tail);
}

fn producer_frames(check: &mut Check) {
    let open = OpenProducer {
        session: SESSION.into(),
        destination: 1,
        destination_length: 6.into(),
        partitions: 3.into(),
        name_length: 4.into(),
        options: 1.into(),
        retain: (1 << 20).into(),
        ..OpenProducer::default()
    };
    let names = b"/md/eudesk";
    check.control(
        "open-producer",
        REQUEST,
        Control::OpenProducer,
        &open,
        names,
    );
    let again = OpenProducer {
        session: SESSION.into(),
        destination: 1,
        destination_length: 6.into(),
        producer: 11.into(),
        ..OpenProducer::default()
    };
    check.control(
        "open-producer-again",
        REQUEST,
        Control::OpenProducer,
        &again,
        b"/md/eu",
    );
    let opened = ProducerOpened {
        handle: PRODUCER.into(),
        epoch: 1.into(),
        producer: 11.into(),
        partitions: 3.into(),
        window: limits::IN_FLIGHT_MESSAGES_MAX.into(),
        bytes: u64::from(limits::CREDIT_INITIAL).into(),
        messages: 1024.into(),
    };
    check.control(
        "producer-opened",
        REQUEST,
        Control::ProducerOpened,
        &opened,
        &[],
    );
    let close = Close {
        handle: PRODUCER.into(),
        ..Close::default()
    };
    check.control("close", REQUEST, Control::Close, &close, &[]);
    let closed = Closed {
        handle: PRODUCER.into(),
        ..Closed::default()
    };
    check.control("closed", REQUEST, Control::Closed, &closed, &[]);
    let want = WantCredit {
        bytes: ((4 << 20) + 112).into(),
    };
    check.control("want-credit", PRODUCER, Control::WantCredit, &want, &[]);
    let credit = Credit {
        bytes: 65_536.into(),
        messages: 1030.into(),
    };
    check.control("credit", PRODUCER, Control::Credit, &credit, &[]);
    let batch = Batch {
        messages: 3.into(),
        bytes: 360.into(),
    };
    check.control("batch", PRODUCER, Control::Batch, &batch, &[]);
    let moving = Move {
        shard: 1.into(),
        ..Move::default()
    };
    check.control("move", REQUEST, Control::Move, &moving, &[]);
    let poll = Poll {
        token: 5.into(),
        ..Poll::default()
    };
    check.control("poll", CONSUMER, Control::Poll, &poll, &[]);
    check.control("cancel", REQUEST, Control::Cancel, &Cancel::default(), &[]);
    let polled = Polled {
        token: 5.into(),
        ..Polled::default()
    };
    check.control("polled", CONSUMER, Control::Polled, &polled, &[]);

    let first = CompletionRun {
        sequence: 1.into(),
        offset: 0.into(),
        append_time: APPENDED.into(),
        count: 1.into(),
        ..CompletionRun::default()
    };
    let one = Completions {
        runs: 1.into(),
        ..Completions::default()
    };
    check.control(
        "completions",
        PRODUCER,
        Control::Completions,
        &one,
        first.as_bytes(),
    );
    let stored = CompletionRun {
        sequence: 5.into(),
        offset: 100.into(),
        append_time: APPENDED.into(),
        count: 4.into(),
        partition: 2.into(),
        ..CompletionRun::default()
    };
    let refused = CompletionRun {
        sequence: 9.into(),
        count: 1.into(),
        partition: 2.into(),
        refusal: Refusal::Unsupported.code().into(),
        ..CompletionRun::default()
    };
    let two = Completions {
        runs: 2.into(),
        ..Completions::default()
    };
    check.control(
        "completions-with-a-refusal",
        PRODUCER,
        Control::Completions,
        &two,
        &[stored.as_bytes(), refused.as_bytes()].concat(),
    );
}

fn consumer_frames(check: &mut Check) {
    let open = OpenConsumer {
        session: SESSION.into(),
        destination: 1,
        start: 2,
        destination_length: 6.into(),
        offset: 40.into(),
        subscription_length: 5.into(),
        name_length: 1.into(),
        sharing: 2,
        messages: u64::from(limits::PREFETCH_MESSAGES).into(),
        bytes: u64::from(limits::PREFETCH_BYTES).into(),
        ..OpenConsumer::default()
    };
    let names = b"/md/eubooksa";
    check.control(
        "open-consumer",
        REQUEST,
        Control::OpenConsumer,
        &open,
        names,
    );
    let on_a_queue = OpenConsumer {
        session: SESSION.into(),
        destination_length: 15.into(),
        messages: 1.into(),
        bytes: u64::from(limits::PREFETCH_BYTES).into(),
        ..OpenConsumer::default()
    };
    check.control(
        "open-consumer-on-a-queue",
        REQUEST,
        Control::OpenConsumer,
        &on_a_queue,
        b"/default/orders",
    );
    let opened = ConsumerOpened {
        handle: CONSUMER.into(),
        partitions: 3.into(),
    };
    let starts = [40u64, 0, 1 << 33].map(u64::to_le_bytes);
    check.control(
        "consumer-opened",
        REQUEST,
        Control::ConsumerOpened,
        &opened,
        starts.as_flattened(),
    );
    let allow = Allow {
        messages: 512.into(),
        bytes: (2 << 20).into(),
        handed: 250.into(),
    };
    check.control("allow", CONSUMER, Control::Allow, &allow, &[]);
    let delivery = Delivery {
        partition: 2.into(),
        count: 3.into(),
        offset: 40.into(),
        delivery_count: 1.into(),
        ..Delivery::default()
    };
    check.control("delivery", CONSUMER, Control::Delivery, &delivery, &[]);
    let acknowledge = Acknowledge {
        partition: 2.into(),
        runs: 2.into(),
        confirm: 9.into(),
        ..Acknowledge::default()
    };
    let run = |first: u64, count: u64| AckRun {
        first: first.into(),
        count: count.into(),
    };
    check.control(
        "acknowledge",
        CONSUMER,
        Control::Acknowledge,
        &acknowledge,
        [run(40, 3), run(45, 1)].as_bytes(),
    );
    let all_before = Acknowledge {
        runs: 1.into(),
        options: 1.into(),
        ..Acknowledge::default()
    };
    check.control(
        "acknowledge-all-before",
        CONSUMER,
        Control::Acknowledge,
        &all_before,
        run(45, 1).as_bytes(),
    );
    let again = Acknowledge {
        partition: 1.into(),
        runs: 1.into(),
        options: 2.into(),
        confirm: 10.into(),
    };
    check.control(
        "acknowledge-again",
        CONSUMER,
        Control::Acknowledge,
        &again,
        run(45, 1).as_bytes(),
    );
    let back = Return {
        partition: 2.into(),
        runs: 1.into(),
        options: 1.into(),
        delay: 5_000_000.into(),
        ..Return::default()
    };
    let three = AckRun {
        first: 40.into(),
        count: 3.into(),
    };
    check.control("return", CONSUMER, Control::Return, &back, three.as_bytes());
    let acknowledged = Acknowledged {
        confirm: 9.into(),
        ..Acknowledged::default()
    };
    check.control(
        "acknowledged",
        CONSUMER,
        Control::Acknowledged,
        &acknowledged,
        &[],
    );
}

fn administration_frames(check: &mut Check) {
    let fields = Create {
        session: SESSION.into(),
        destination: 1,
        options: 39.into(),
        partitions: 3.into(),
        producers_max: 5.into(),
        consumers_max: 0.into(),
        subscriptions_max: 0.into(),
        retain: (5_u64 << 20).into(),
        retention: 2,
        dispatch: 1,
        period: 3600.into(),
        ..Create::default()
    };
    check.control("create", REQUEST, Control::Create, &fields, b"/md/eu");
    let fields = SetPolicies {
        session: SESSION.into(),
        destination: 1,
        options: 0b11000.into(),
        producers_max: 0.into(),
        consumers_max: 8.into(),
        subscriptions_max: 2.into(),
        ..SetPolicies::default()
    };
    check.control(
        "set-policies",
        REQUEST,
        Control::SetPolicies,
        &fields,
        b"/md/eu",
    );
    let fields = Delete {
        session: SESSION.into(),
        destination: 1,
        options: 3,
        destination_length: 6.into(),
        subscription_length: 5.into(),
        ..Delete::default()
    };
    check.control("delete", REQUEST, Control::Delete, &fields, b"/md/eubooks");
    let fields = End {
        session: SESSION.into(),
        what: 1,
        number: 11.into(),
        ..End::default()
    };
    check.control("end", REQUEST, Control::End, &fields, b"");
    let fields = List {
        session: SESSION.into(),
        what: 1,
        destination: 1,
        destination_length: 6.into(),
        subscription_length: 0.into(),
        from: 0.into(),
        ..List::default()
    };
    check.control("list", REQUEST, Control::List, &fields, b"/md/eu");
    let fields = Changed {
        version: 12.into(),
        changed: 1,
        ..Changed::default()
    };
    check.control("changed", REQUEST, Control::Changed, &fields, &[]);
    let fields = Listed {
        what: 0,
        rows: 1.into(),
        ..Listed::default()
    };
    let row = DestinationRow {
        destination: 1,
        name_length: 6.into(),
        number: 4.into(),
        partitions: 3.into(),
        producers_max: 5.into(),
        consumers_max: 0.into(),
        subscriptions_max: 0.into(),
        dispatch: 1,
        retention: 2,
        retain: (5_u64 << 20).into(),
        period: 3600.into(),
        segment_bytes: (12_u64 << 20).into(),
        segment_oldest: 1_700_000_000_000_000_000.into(),
        segments_closed: 2.into(),
        segments_open: 1.into(),
        producers: 1.into(),
        consumers: 2.into(),
        subscriptions: 1.into(),
        stored: 1000.into(),
        unsettled: 10.into(),
        bytes: 65536.into(),
        ..DestinationRow::default()
    };
    let tail = [row.as_bytes(), b"/md/eu", &[0; 2]].concat();
    check.control(
        "listed-destination",
        REQUEST,
        Control::Listed,
        &fields,
        &tail,
    );
    let fields = Listed {
        what: 1,
        rows: 1.into(),
        ..Listed::default()
    };
    let row = SubscriptionRow {
        destination: 1,
        sharing: 2,
        destination_length: 6.into(),
        name_length: 5.into(),
        options: 0.into(),
        partitions: 3.into(),
        consumers: 2.into(),
        unsettled: 4.into(),
        backlog: 10.into(),
    };
    let tail = [row.as_bytes(), b"/md/eubooks", &[0; 5]].concat();
    check.control(
        "listed-subscription",
        REQUEST,
        Control::Listed,
        &fields,
        &tail,
    );
    let fields = Listed {
        what: 2,
        rows: 1.into(),
        ..Listed::default()
    };
    let row = PartRow {
        partition: 2.into(),
        unsettled: 4.into(),
        cursor: 40.into(),
        fresh: 44.into(),
        end: 50.into(),
        backlog: 10.into(),
    };
    let tail = [row.as_bytes(), b"", &[0; 0]].concat();
    check.control("listed-part", REQUEST, Control::Listed, &fields, &tail);
    let fields = Listed {
        what: 3,
        rows: 1.into(),
        ..Listed::default()
    };
    let row = ConsumerRow {
        handle: CONSUMER.into(),
        destination: 1,
        destination_length: 6.into(),
        link: 42.into(),
        delivered: 44.into(),
        credit: 212.into(),
        name_length: 5.into(),
        ..ConsumerRow::default()
    };
    let tail = [row.as_bytes(), b"/md/eubooks", &[0; 5]].concat();
    check.control("listed-consumer", REQUEST, Control::Listed, &fields, &tail);
    let fields = Listed {
        what: 4,
        rows: 1.into(),
        ..Listed::default()
    };
    let row = ProducerRow {
        producer: 11.into(),
        link: 42.into(),
        epoch: 1.into(),
        handle: PRODUCER.into(),
        destination: 1,
        access: 0,
        destination_length: 6.into(),
        name_length: 4.into(),
        ..ProducerRow::default()
    };
    let tail = [row.as_bytes(), b"/md/eudesk", &[0; 6]].concat();
    check.control("listed-producer", REQUEST, Control::Listed, &fields, &tail);
    let fields = Listed {
        what: 5,
        rows: 1.into(),
        ..Listed::default()
    };
    let row = LinkRow {
        link: 42.into(),
        sessions: 1.into(),
        producers: 1.into(),
        consumers: 2.into(),
        name_length: 7.into(),
        waiting: 0.into(),
        ..LinkRow::default()
    };
    let tail = [row.as_bytes(), b"vectors", &[0; 1]].concat();
    check.control("listed-link", REQUEST, Control::Listed, &fields, &tail);
    let fields = Ended {
        refusal: Refusal::NotFound.code().into(),
        text_length: 27.into(),
        ..Ended::default()
    };
    check.control(
        "ended",
        CONSUMER,
        Control::Ended,
        &fields,
        b"the destination was deleted",
    );
}

fn messages(check: &mut Check) {
    let (sent, plain) = check.message("message", header(), &[], b"hello");
    assert_eq!(encoded(&envelope(), b"", b"hello"), sent);
    assert_eq!(plain.reserved(), None);

    let (empty, _) = check.message("message-without-a-body", header(), &[], b"");
    assert_eq!(encoded(&envelope(), b"", b""), empty);
    assert_eq!(empty.len(), MESSAGE_HEADER_SIZE);

    let delivered = MessageHeader {
        handle: 4.into(),
        append_time: APPENDED.into(),
        ..header()
    };
    let (delivered, _) = check.message("message-as-delivered", delivered, &[], b"hello");
    let differing: Vec<usize> = (0..sent.len())
        .filter(|at| sent[*at] != delivered[*at])
        .collect();
    assert!(
        !differing.is_empty() && differing.iter().all(|at| (8..32).contains(at)),
        "the broker touches its half and nothing else: {differing:?}"
    );

    let key_hash = routing::key_hash(b"AAPL");
    let keyed = MessageHeader {
        flags: 0x80.into(),
        partition: 1.into(),
        sequence: 2.into(),
        key_hash: key_hash.into(),
        ..header()
    };
    let properties = [("symbol", "AAPL"), ("empty", "")];
    let (keyed, header_of_keyed) = check.message(
        "message-with-properties-and-key",
        keyed,
        &properties,
        b"payload!",
    );
    assert_eq!(header_of_keyed.reserved(), None);
    let mut block = Vec::new();
    for (name, value) in properties {
        property::push(&mut block, name, value).unwrap();
    }
    let with_key = Envelope {
        partition: PartitionIndex(1),
        sequence: Sequence(2),
        key_hash: Some(key_hash),
        ..envelope()
    };
    assert_eq!(encoded(&with_key, &block, b"payload!"), keyed);

    let given_up = MessageHeader {
        flags: flags::GIVEN_UP.into(),
        sequence: 2.into(),
        partition_sequence: 2.into(),
        ..header()
    };
    let (_, given_up) = check.message("message-given-up", given_up, &[], b"");
    assert!(given_up.is_given_up() && !plain.is_given_up());
    assert_eq!(given_up.reserved(), None);

    let reserved = MessageHeader {
        flags: (1 | 5 << 2).into(),
        sequence: 3.into(),
        partition_sequence: 2.into(),
        schema: 3.into(),
        transaction: 4.into(),
        time_to_live: 5_000_000.into(),
        delay: 1_000.into(),
        ..header()
    };
    let (_, reserved) = check.message("message-with-reserved-fields", reserved, &[], b"later");
    assert_eq!(reserved.reserved(), Some(Reserved::Priority));
}

#[test]
fn every_vector_decodes_to_its_fields_and_they_encode_to_its_bytes() {
    let mut check = Check::new();
    connection_frames(&mut check);
    session_frames(&mut check);
    producer_frames(&mut check);
    consumer_frames(&mut check);
    messages(&mut check);
    administration_frames(&mut check);
    let unchecked: Vec<_> = check.left.keys().collect();
    assert!(unchecked.is_empty(), "nothing checks {unchecked:?}");
}

#[test]
fn every_kind_has_a_vector() {
    let written: BTreeSet<u8> = vectors::all()
        .iter()
        .map(|vector| vector.bytes[4])
        .collect();
    let known: BTreeSet<u8> = Kind::ALL.iter().map(|kind| *kind as u8).collect();
    assert_eq!(written, known);
}

#[test]
fn the_usual_answer_to_a_send_is_one_cache_line() {
    let completions = vectors::all()
        .into_iter()
        .find(|vector| vector.name == "completions")
        .unwrap();
    assert_eq!(completions.bytes.len(), 64);
}
