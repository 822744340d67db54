//! Peers that break the rules, frame by frame, and what they must be told.
//!
//! A rogue has a destination of its own, so that what it stores disturbs no
//! model; what it must not be able to do is disturb anybody else.

use courser_core::error::Refusal;
use courser_core::frame::control::{
    AckRun, Acknowledge, Allow, Batch, Control, Fields, Goodbye, Hello, OpenConsumer, OpenProducer,
    OpenSession, Ping, Pong, WantCredit,
};
use courser_core::frame::decode::{self, Frame, Step};
use courser_core::frame::encode::{self, Envelope};
use courser_core::frame::{MAGIC, MESSAGE_HEADER_SIZE, VERSION, checksum};
use courser_core::id::{
    Epoch, Handle, PartitionIndex, PartitionSequence, ProducerId, Sequence, ShardIndex,
};
use courser_core::limits;
use zerocopy::IntoBytes;

use crate::plan::{DestinationPlan, Plan, SECOND, any_shard};
use crate::random::Random;
use crate::violation::{Rule, Violation};

/// How a rogue breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// Says anything but hello.
    Noise,
    /// Says hello, a byte now and then.
    SlowHello,
    /// Speaks only a version to come.
    Future,
    /// Says noise on an open link.
    LateNoise,
    /// Sends a message with a flipped bit.
    FlippedBit,
    /// Sends beyond its credit.
    BeyondCredit,
    /// Begins a message and never ends it.
    HalfFrame,
    /// Begins a large message and never ends it.
    HalfLargeFrame,
    /// Asks and never reads the answers.
    NeverReads,
    /// Asks as much as leaves some answers waiting, and reads none of them.
    Staller,
    /// Sends as another producer.
    Impostor,
    /// Sends with a sequence that does not rise.
    Repeater,
    /// Announces a batch and sends another.
    FalseBatch,
    /// Uses a handle that it was not given.
    ForeignHandle,
    /// Says it handed out what it never got.
    Boaster,
    /// Asks for credit beyond the longest frame.
    Greedy,
    /// Sends what is refused in its place: reserved fields, wrong partition
    /// sequences, malformed properties. Ends in order.
    Refusable,
    /// Acknowledges what was delivered to others, or to nobody. Ends in order.
    WildAcks,
    /// Closes its direction behind the last of what it says, and reads on. Ends in order.
    LastWords,
}

const DEEDS: [Deed; 19] = [
    Deed::Noise,
    Deed::SlowHello,
    Deed::Future,
    Deed::LateNoise,
    Deed::FlippedBit,
    Deed::BeyondCredit,
    Deed::HalfFrame,
    Deed::HalfLargeFrame,
    Deed::NeverReads,
    Deed::Staller,
    Deed::Impostor,
    Deed::Repeater,
    Deed::FalseBatch,
    Deed::ForeignHandle,
    Deed::Boaster,
    Deed::Greedy,
    Deed::Refusable,
    Deed::WildAcks,
    Deed::LastWords,
];

impl Deed {
    fn name(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::SlowHello => "slow hello",
            Self::Future => "future version",
            Self::LateNoise => "late noise",
            Self::FlippedBit => "flipped bit",
            Self::BeyondCredit => "beyond credit",
            Self::HalfFrame => "half frame",
            Self::HalfLargeFrame => "half large frame",
            Self::NeverReads => "never reads",
            Self::Staller => "staller",
            Self::Impostor => "impostor",
            Self::Repeater => "repeater",
            Self::FalseBatch => "false batch",
            Self::ForeignHandle => "foreign handle",
            Self::Boaster => "boaster",
            Self::Greedy => "greedy",
            Self::Refusable => "refusable",
            Self::WildAcks => "wild acknowledgements",
            Self::LastWords => "last words",
        }
    }

    /// What its farewell says, if one must come and be read.
    fn farewell(self) -> Option<Refusal> {
        match self {
            Self::Noise
            | Self::LateNoise
            | Self::NeverReads
            | Self::Staller
            | Self::Refusable
            | Self::WildAcks
            | Self::LastWords => None,
            Self::SlowHello => Some(Refusal::HelloTimeout),
            Self::Future => Some(Refusal::VersionUnsupported),
            Self::FlippedBit => Some(Refusal::ChecksumMismatch),
            Self::BeyondCredit => Some(Refusal::CreditExceeded),
            Self::HalfFrame | Self::HalfLargeFrame => Some(Refusal::FrameTimeout),
            Self::Impostor | Self::Repeater | Self::FalseBatch => Some(Refusal::Unexpected),
            Self::ForeignHandle => Some(Refusal::NotOpen),
            Self::Boaster => Some(Refusal::IllegalArgument),
            Self::Greedy => Some(Refusal::FrameTooLarge),
        }
    }
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Hello,
    Session,
    Handles,
    Done,
}

/// Where everything that rogues store goes.
pub(crate) const DESTINATION: &str = "/rogue/q";
/// Bytes of a frame that is assembled in the arena.
const LARGE: u64 = 300_000;
/// Sends of a rogue that sends what is refused.
const REFUSABLE: usize = 6;
/// Sends of one that closes its direction behind them.
const LAST_WORDS: usize = 5;
/// Every link that is misused ends within this time.
const PATIENCE: u64 = 60 * SECOND;

/// See the module.
pub(crate) struct Rogue {
    deed: Deed,
    /// The shard that it asks for.
    wish: Option<ShardIndex>,
    /// The queue whose messages it acknowledges.
    prey: Box<str>,
    /// How often it does so.
    rounds: u64,
    /// Whether its frame is assembled in the arena.
    large: bool,
    /// Asks for its session right behind its hello.
    eager: bool,
    /// Bytes of answers that it still asks for in order to stall.
    capacity: usize,
    random: Random,
    stage: Stage,
    out: Vec<u8>,
    incoming: Vec<u8>,
    session: u32,
    producer: Option<(u32, u64)>,
    consumer: Option<u32>,
    credit: u64,
    sequence: u64,
    farewell: Option<u16>,
    /// Outcomes of sends: of those refused the code, else 0.
    outcomes: Vec<u16>,
    confirmations: Vec<u16>,
    asked: usize,
    misbehaved_at: Option<u64>,
    /// The next byte of a slow hello.
    drip: usize,
    /// A fault of the network took its link: nothing is expected any more.
    excused: bool,
}

impl Rogue {
    /// A rogue; one of the plan's queues is what it interferes with, if that is its
    /// deed.
    pub(crate) fn new(mut random: Random, plan: &Plan) -> Self {
        let destinations = plan.destinations.iter();
        let queues: Vec<&DestinationPlan> = destinations.filter(|it| it.is_queue()).collect();
        let prey = if queues.is_empty() {
            DESTINATION.into()
        } else {
            let index = random.index(queues.len());
            queues[index].destination.name.clone()
        };
        let deed = random.pick(&DEEDS);
        let wish = (random.chance(2, 3)).then(|| any_shard(&mut random, plan.shards));
        Self {
            deed,
            wish,
            prey,
            rounds: random.range(1, 30),
            large: random.chance(1, 2),
            eager: random.chance(1, 2),
            // What a socket holds.
            capacity: plan.network.capacity,
            random,
            stage: Stage::Hello,
            out: Vec::new(),
            incoming: Vec::new(),
            session: 0,
            producer: None,
            consumer: None,
            credit: 0,
            sequence: 0,
            farewell: None,
            outcomes: Vec::new(),
            confirmations: Vec::new(),
            asked: 0,
            misbehaved_at: None,
            drip: 0,
            excused: false,
        }
    }

    /// Has it do nothing but stall.
    pub(crate) fn stall(mut self) -> Self {
        self.deed = Deed::Staller;
        self
    }

    pub(crate) fn name(&self) -> &'static str {
        self.deed.name()
    }

    /// Whether it reads what it is sent.
    pub(crate) fn reads(&self) -> bool {
        let refuses = matches!(self.deed, Deed::NeverReads | Deed::Staller);
        !refuses || self.misbehaved_at.is_none()
    }

    pub(crate) fn connect(&mut self, now: u64) {
        match self.deed {
            Deed::Noise => {
                let mut noise = vec![0; self.random.count(8, 300)];
                self.random.fill(&mut noise);
                self.out = noise;
                self.misbehaved_at = Some(now);
            }
            Deed::Future => {
                self.hello(VERSION + 1);
                self.misbehaved_at = Some(now);
            }
            Deed::SlowHello => self.misbehaved_at = Some(now),
            _ => self.hello(VERSION),
        }
    }

    /// What it has to say, at most `room` bytes.
    pub(crate) fn write(&mut self, room: usize, into: &mut Vec<u8>) {
        into.clear();
        into.extend(self.out.drain(..room.min(self.out.len())));
    }

    pub(crate) fn has_more_to_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether it has said all that it ever will, and still reads.
    pub(crate) fn has_finished(&self) -> bool {
        self.deed == Deed::LastWords && self.misbehaved_at.is_some() && self.out.is_empty()
    }

    /// Says a bit more of what takes long.
    pub(crate) fn act(&mut self, now: u64) -> Result<(), Violation> {
        if self.deed == Deed::SlowHello && self.stage == Stage::Hello {
            if self.drip == 0 {
                self.hello(VERSION);
                self.incoming = core::mem::take(&mut self.out);
            }
            if self.drip + 1 < self.incoming.len() {
                self.out.push(self.incoming[self.drip]);
                self.drip += 1;
            }
        }
        if self.deed == Deed::NeverReads && self.misbehaved_at.is_some() && self.out.len() < 65_536
        {
            for _ in 0..200 {
                self.say(1, &Ping::default(), &[]);
            }
        }
        if self.deed == Deed::Staller && self.misbehaved_at.is_some() {
            let share = self.capacity.min(16 * 1024);
            self.capacity -= share;
            for _ in 0..share / encode::control_size::<Pong>(0) {
                self.say(1, &Ping::default(), &[]);
            }
        }
        if self.deed == Deed::WildAcks && self.misbehaved_at.is_some() && self.rounds > 0 {
            self.rounds -= 1;
            self.acknowledge_wildly();
        }
        match self.misbehaved_at {
            Some(since) if now - since > PATIENCE && !self.excused => Err(Violation::new(
                Rule::Rogue,
                format!(
                    "{} is still there after {} s",
                    self.name(),
                    PATIENCE / SECOND
                ),
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn received(&mut self, now: u64, bytes: &[u8]) -> Result<(), Violation> {
        if self.deed == Deed::SlowHello {
            // Its own hello lies in the buffer; all it can get is a farewell.
            self.drip = usize::MAX - 1;
            if self.stage == Stage::Hello {
                self.stage = Stage::Done;
                self.incoming.clear();
            }
        }
        self.incoming.extend_from_slice(bytes);
        let incoming = core::mem::take(&mut self.incoming);
        let mut at = 0;
        let result = loop {
            match decode::decode(&incoming[at..]) {
                Ok(Step::Frame(frame, size)) => {
                    self.frame(now, &frame);
                    at += size;
                }
                Ok(Step::Incomplete(_)) => break Ok(()),
                Err(error) => {
                    break Err(Violation::new(
                        Rule::Rogue,
                        format!("{} got {error}", self.name()),
                    ));
                }
            }
        };
        self.incoming = incoming[at..].to_vec();
        result
    }

    /// A fault of the network took its link: nothing is expected any more.
    pub(crate) fn excuse(&mut self) {
        self.excused = true;
    }

    /// Its link is gone: was it told what it had to be told?
    pub(crate) fn closed(&mut self) -> Result<(), Violation> {
        let told = self.farewell.and_then(Refusal::from_code);
        if self.excused || told == Some(Refusal::Stopping) || self.misbehaved_at.is_none() {
            return Ok(());
        }
        let wrong = |detail: String| {
            Err(Violation::new(
                Rule::Rogue,
                format!("{}: {detail}", self.name()),
            ))
        };
        if let Some(expected) = self.deed.farewell()
            && told != Some(expected)
        {
            return wrong(format!("{expected:?} was due, it was told {told:?}"));
        }
        match self.deed {
            Deed::Refusable => {
                let due: [u16; REFUSABLE] = [
                    0,
                    Refusal::Unsupported.code(),
                    Refusal::OutOfOrder.code(),
                    // A retry has the outcome of the first.
                    0,
                    Refusal::InvalidProperties.code(),
                    0,
                ];
                if self.outcomes != due {
                    return wrong(format!("outcomes {:?} instead of {due:?}", self.outcomes));
                }
            }
            Deed::LastWords if self.outcomes != [0; LAST_WORDS] => {
                return wrong(format!("outcomes {:?}", self.outcomes));
            }
            Deed::WildAcks | Deed::LastWords => {
                let due = Refusal::InvalidAck.code();
                let complete = self.confirmations.len() == self.asked;
                if !complete || self.confirmations.iter().any(|code| *code != due) {
                    return wrong(format!("confirmations {:?}", self.confirmations));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn frame(&mut self, now: u64, frame: &Frame<'_>) {
        let Frame::Control { control, .. } = frame else {
            return;
        };
        match control {
            Control::Welcome(..) => {
                self.stage = Stage::Session;
                if !self.eager {
                    self.say(1, &OpenSession::default(), &[]);
                }
            }
            Control::SessionOpened(fields, _) => {
                self.session = fields.session.get();
                self.stage = Stage::Handles;
                let length = u16::try_from(DESTINATION.len()).unwrap_or(0);
                let producer = OpenProducer {
                    session: self.session.into(),
                    destination_length: length.into(),
                    ..OpenProducer::default()
                };
                self.say(2, &producer, &[DESTINATION.as_bytes()]);
                let queue = if self.deed == Deed::WildAcks {
                    self.prey.clone()
                } else {
                    DESTINATION.into()
                };
                let consumer = OpenConsumer {
                    session: self.session.into(),
                    destination_length: u16::try_from(queue.len()).unwrap_or(0).into(),
                    ..OpenConsumer::default()
                };
                self.say(3, &consumer, &[queue.as_bytes()]);
            }
            Control::ProducerOpened(fields, _) => {
                self.producer = Some((fields.handle.get(), fields.producer.get()));
                self.credit = fields.bytes.get();
                self.begin(now);
            }
            Control::ConsumerOpened(fields, _) => {
                self.consumer = Some(fields.handle.get());
                self.begin(now);
            }
            Control::Credit(fields, _) => {
                let covers = fields.bytes.get() >= LARGE;
                if covers && self.sequence == 0 {
                    self.large_frame();
                }
            }
            Control::Farewell(fields, _) => self.farewell = Some(fields.refusal.get()),
            Control::Completions(_, tail) => {
                for run in tail.chunks(size_of::<courser_core::frame::control::CompletionRun>()) {
                    let count = u32::from_le_bytes([run[24], run[25], run[26], run[27]]);
                    let refusal = u16::from_le_bytes([run[32], run[33]]);
                    self.outcomes.extend((0..count).map(|_| refusal));
                }
                if self.deed == Deed::Refusable && self.outcomes.len() == REFUSABLE {
                    self.say(0, &Goodbye::default(), &[]);
                }
            }
            Control::Acknowledged(fields, _) => {
                self.confirmations.push(fields.refusal.get());
                let is_wild = self.deed == Deed::WildAcks;
                if is_wild && self.rounds == 0 && self.confirmations.len() == self.asked {
                    self.say(0, &Goodbye::default(), &[]);
                }
            }
            _ => {}
        }
    }

    /// Begins once both handles are open.
    fn begin(&mut self, now: u64) {
        if self.producer.is_some() && self.consumer.is_some() {
            self.stage = Stage::Done;
            self.misbehaved_at = Some(now);
            self.misbehave();
        }
    }

    /// Does what it came for: both handles are open.
    fn misbehave(&mut self) {
        let (Some((handle, id)), Some(consumer)) = (self.producer, self.consumer) else {
            return;
        };
        match self.deed {
            Deed::LateNoise => {
                let mut noise = vec![0xff; 64];
                self.random.fill(&mut noise[8..]);
                self.out.extend_from_slice(&noise);
            }
            Deed::FlippedBit if self.large => {
                let want = WantCredit {
                    bytes: LARGE.into(),
                };
                self.say(handle, &want, &[]);
            }
            Deed::FlippedBit => {
                let from = self.out.len();
                self.message(Flaw::None);
                // Behind the fields that say how long the frame is, so that it ends.
                let bit = self
                    .random
                    .range(40 * 8, (MESSAGE_HEADER_SIZE as u64) * 8 - 1);
                self.out[from + crate::random::size(bit / 8)] ^= 1 << (bit % 8);
            }
            Deed::BeyondCredit => {
                let body = vec![0; crate::random::size(self.credit)];
                self.body(Flaw::None, &body);
            }
            Deed::HalfFrame => {
                let from = self.out.len();
                self.message(Flaw::None);
                let kept = self.random.count(1, self.out.len() - from - 1);
                self.out.truncate(from + kept);
            }
            Deed::HalfLargeFrame => {
                // It begins once the credit has come.
                let want = WantCredit {
                    bytes: LARGE.into(),
                };
                self.say(handle, &want, &[]);
            }
            Deed::NeverReads => self.say(1, &Ping::default(), &[]),
            // As many bytes of pongs as sockets hold, and half a block more, a few in
            // each act: the shard has room for them all.
            Deed::Staller => self.capacity += 32 * 1024,
            Deed::Impostor => self.message(Flaw::Producer),
            Deed::Repeater => {
                self.message(Flaw::None);
                self.sequence -= 1;
                self.message(Flaw::Sequence);
            }
            Deed::FalseBatch => {
                let batch = Batch {
                    messages: 2.into(),
                    bytes: 16.into(),
                };
                self.say(handle, &batch, &[]);
                self.message(Flaw::None);
            }
            Deed::ForeignHandle => {
                // As likely a handle that somebody else has as one that nobody has.
                let foreign = handle ^ u32::try_from(self.random.range(1, 7)).unwrap_or(1);
                self.say(foreign, &WantCredit { bytes: 8.into() }, &[]);
            }
            Deed::Boaster => {
                let allow = Allow {
                    messages: 1.into(),
                    bytes: 1.into(),
                    handed: 1_000.into(),
                };
                self.say(consumer, &allow, &[]);
            }
            Deed::Greedy => {
                let want = WantCredit {
                    bytes: (u64::from(limits::FRAME_SIZE_MAX) + 9).into(),
                };
                self.say(handle, &want, &[]);
            }
            Deed::Refusable => {
                for flaw in [
                    Flaw::None,
                    Flaw::Priority,
                    Flaw::SkippedPartitionSequence,
                    Flaw::OldPartitionSequence,
                    Flaw::Properties,
                    Flaw::None,
                ] {
                    self.message(flaw);
                }
            }
            // It acts again and again, while others are given messages.
            Deed::WildAcks => self.acknowledge_wildly(),
            Deed::LastWords => {
                for number in 0..LAST_WORDS {
                    self.message(Flaw::None);
                    if number % 2 == 0 {
                        self.acknowledge_wildly();
                    }
                }
            }
            Deed::Noise | Deed::SlowHello | Deed::Future => {}
        }
        debug_assert!(id > 0, "ids of producers begin with 1");
    }

    /// Without credit it was delivered nothing: whatever it names is not its own.
    fn acknowledge_wildly(&mut self) {
        let Some(consumer) = self.consumer else {
            return;
        };
        let (first, count) = self.random.pick(&[
            (0, u64::MAX),
            (1 << 40, 3),
            (u64::MAX, u64::MAX),
            (0, 1 << 50),
        ]);
        let run = AckRun {
            first: first.into(),
            count: count.into(),
        };
        let fields = Acknowledge {
            partition: u32::try_from(self.random.below(8)).unwrap_or(0).into(),
            runs: 1.into(),
            options: u32::try_from(self.random.below(2)).unwrap_or(0).into(),
            confirm: 1.into(),
        };
        self.say(consumer, &fields, &[run.as_bytes()]);
        self.asked += 1;
    }

    /// Begins a large frame, or flips a bit of its body.
    fn large_frame(&mut self) {
        let from = self.out.len();
        let body = vec![7; crate::random::size(LARGE) - MESSAGE_HEADER_SIZE];
        self.body(Flaw::None, &body);
        let length = self.out.len() - from;
        if self.deed == Deed::HalfLargeFrame {
            let kept = self.random.count(MESSAGE_HEADER_SIZE, length - 1);
            self.out.truncate(from + kept);
        } else {
            let byte = self.random.count(MESSAGE_HEADER_SIZE, length - 1);
            self.out[from + byte] ^= 1;
        }
    }

    fn hello(&mut self, version: u8) {
        let hello = Hello {
            magic: MAGIC,
            version_min: version,
            version_max: version,
            shard: self.wish.map_or(u16::MAX, |shard| shard.0).into(),
            name_length: 5.into(),
            ..Hello::default()
        };
        self.say(0, &hello, &[b"rogue"]);
        if self.eager && version == VERSION && self.deed != Deed::SlowHello {
            self.say(1, &OpenSession::default(), &[]);
        }
    }

    fn say<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let from = self.out.len();
        self.out.resize(from + size, 0);
        encode::control(subject, fields, tail, &mut self.out[from..]);
    }

    fn message(&mut self, flaw: Flaw) {
        let body = vec![3; self.random.count(0, 200)];
        self.body(flaw, &body);
    }

    fn body(&mut self, flaw: Flaw, body: &[u8]) {
        let Some((handle, id)) = self.producer else {
            return;
        };
        self.sequence += 1;
        // Of the six sends of a refusable rogue the third and the fourth do not
        // count in their partition.
        let counted = match flaw {
            Flaw::SkippedPartitionSequence => 100,
            Flaw::OldPartitionSequence => 1,
            Flaw::Properties => self.sequence - 2,
            // A new send of its partition, and an old one of its producer.
            Flaw::Sequence => self.sequence + 1,
            _ if self.sequence > 5 => self.sequence - 2,
            _ => self.sequence,
        };
        let envelope = Envelope {
            handle: Handle(handle),
            partition: PartitionIndex(0),
            producer: ProducerId(if flaw == Flaw::Producer { id + 1 } else { id }),
            epoch: Epoch(1),
            sequence: Sequence(self.sequence),
            partition_sequence: PartitionSequence(counted),
            ..Envelope::default()
        };
        let properties: &[u8] = if flaw == Flaw::Properties {
            &[0, 9, 9]
        } else {
            &[]
        };
        let from = self.out.len();
        let size = encode::message_size(properties.len(), body.len());
        self.out.resize(from + size, 0);
        let frame = &mut self.out[from..];
        encode::message(&envelope, properties, body, frame);
        if flaw == Flaw::Priority {
            frame[6] |= 1 << 2;
            let length = MESSAGE_HEADER_SIZE + properties.len() + body.len();
            let sum = checksum::message(&frame[..length]);
            frame[32..36].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    Producer,
    Priority,
    SkippedPartitionSequence,
    OldPartitionSequence,
    Properties,
    Sequence,
}
