//! A client by hand, without I/O: it knows what it was given, says what a case
//! has it say, and holds the broker to what anybody may expect of it.
//!
//! The same peer sits before a shard in the target `session` and before a socket
//! in the replay against a running broker.

use std::collections::{HashMap, VecDeque};

use courser_core::frame::control::{CompletionRun, Control};
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::frame::{Kind, MessageHeader};
use zerocopy::FromBytes;

use crate::script::Names;

/// One end of a link.
#[derive(Debug, Default)]
pub struct Peer {
    sessions: Vec<u32>,
    producers: Vec<Producer>,
    /// Every handle that it was ever given.
    handles: Vec<u32>,
    requests: u32,
    said: Said,
    heard: Heard,
}

#[derive(Clone, Copy, Debug)]
struct Producer {
    handle: u32,
    id: u64,
    epoch: u32,
    sequence: u64,
    partition_sequence: u64,
}

/// The stream that it said, as the decoder reads it when nothing is in pieces.
#[derive(Debug, Default)]
struct Said {
    waiting: Vec<u8>,
    taken: usize,
    bytes: usize,
    frames: u64,
    questions: u64,
    /// Of each handle, the sends that have no outcome yet.
    sends: HashMap<u32, VecDeque<u64>>,
    /// What in it ends a link.
    broken: Option<String>,
}

/// The stream that it heard.
#[derive(Debug, Default)]
struct Heard {
    waiting: Vec<u8>,
    frames: u64,
    answers: u64,
    deliveries: u64,
    /// Messages of a delivery that are still to come.
    announced: u32,
    farewell: bool,
    pong: Option<u64>,
}

/// Frames that a peer may be sent for each that was said: an answer, an outcome,
/// a credit, and a report in parts.
const FRAMES_FOR_ONE: u64 = 4;

impl Peer {
    /// Notes what it said.
    pub fn said(&mut self, bytes: &[u8]) {
        self.said.add(bytes);
    }

    /// Takes in what the broker sent.
    ///
    /// # Panics
    ///
    /// If the broker may not send that.
    pub fn heard(&mut self, bytes: &[u8]) {
        self.heard.waiting.extend_from_slice(bytes);
        let waiting = core::mem::take(&mut self.heard.waiting);
        let mut rest = &waiting[..];
        loop {
            match decode(rest) {
                Ok(Step::Frame(frame, size)) => {
                    assert!(!self.heard.farewell, "a frame behind the farewell");
                    self.heard.frames += 1;
                    match frame {
                        Frame::Message(_) => {
                            assert!(self.heard.announced > 0, "a message nobody announced");
                            self.heard.announced -= 1;
                        }
                        Frame::Control { subject, control } => self.control(subject, &control),
                    }
                    rest = &rest[size..];
                }
                Ok(Step::Incomplete(_)) => break,
                Err(error) => panic!("the broker sent what is no frame: {error}"),
            }
        }
        self.heard.waiting = rest.to_vec();
    }

    /// What of what it said has to end its link, if something does.
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        self.said.broken.as_deref()
    }

    /// Whether what it said ends with a frame, so that another one is read as one.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.said.broken.is_none() && self.said.taken == self.said.waiting.len()
    }

    /// Whether the broker said farewell.
    #[must_use]
    pub fn heard_farewell(&self) -> bool {
        self.heard.farewell
    }

    /// The last pong that it heard, by its token.
    #[must_use]
    pub fn pong(&self) -> Option<u64> {
        self.heard.pong
    }

    /// Bytes that it said.
    #[must_use]
    pub fn bytes_said(&self) -> usize {
        self.said.bytes
    }

    /// Frames that it said and heard; of the latter those that answer, in some way,
    /// what somebody said.
    #[must_use]
    pub fn frames(&self) -> (u64, u64) {
        (self.said.frames, self.heard.frames)
    }

    /// The handles that it was given.
    #[must_use]
    pub fn handles(&self) -> &[u32] {
        &self.handles
    }

    /// Names among which a frame of its own chooses; `foreign` are of other links.
    pub fn names<'a>(&'a mut self, foreign: &'a [u32]) -> PeerNames<'a> {
        PeerNames {
            peer: self,
            foreign,
        }
    }

    /// Whether a whole number of frames was heard.
    #[must_use]
    pub fn heard_whole_frames(&self) -> bool {
        self.heard.waiting.is_empty() && self.heard.announced == 0
    }

    fn control(&mut self, subject: u32, control: &Control<'_>) {
        assert!(
            self.heard.announced == 0,
            "{:?} among announced messages",
            control.kind()
        );
        match control {
            Control::SessionOpened(fields, _) => self.sessions.push(fields.session.get()),
            Control::ProducerOpened(fields, _) => {
                let handle = fields.handle.get();
                self.handles.push(handle);
                self.said.sends.remove(&handle);
                self.producers.push(Producer {
                    handle,
                    id: fields.producer.get(),
                    epoch: fields.epoch.get(),
                    sequence: 0,
                    partition_sequence: 0,
                });
            }
            Control::ConsumerOpened(fields, _) => self.handles.push(fields.handle.get()),
            Control::Completions(_, tail) => {
                let runs = <[CompletionRun]>::ref_from_bytes(tail).expect("whole runs");
                assert!(!runs.is_empty(), "outcomes of nothing");
                for run in runs {
                    self.said.completed(subject, run);
                }
            }
            Control::Delivery(fields, _) => {
                self.heard.announced = fields.count.get();
                self.heard.deliveries += 1;
                assert!(fields.count.get() > 0, "a delivery of nothing");
            }
            Control::Pong(fields, _) => self.heard.pong = Some(fields.token.get()),
            Control::Farewell(..) => self.heard.farewell = true,
            _ => {}
        }
        if is_answer(control.kind()) {
            self.heard.answers += 1;
            assert!(
                self.heard.answers <= self.said.questions,
                "{} answers to {} questions",
                self.heard.answers,
                self.said.questions
            );
        }
    }
}

/// Whether there is one of these for a question and none without.
fn is_answer(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::SessionOpened
            | Kind::SessionClosed
            | Kind::Located
            | Kind::ProducerOpened
            | Kind::ConsumerOpened
            | Kind::Closed
            | Kind::Acknowledged
            | Kind::Pong
            | Kind::Refused
    )
}

impl Said {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if self.broken.is_some() {
            return;
        }
        self.waiting.extend_from_slice(bytes);
        loop {
            match decode(&self.waiting[self.taken..]) {
                Ok(Step::Frame(frame, size)) => {
                    self.frames += 1;
                    match frame {
                        Frame::Message(message) => {
                            let header = message.header;
                            let sends = self.sends.entry(header.handle.get()).or_default();
                            sends.push_back(header.sequence.get());
                        }
                        Frame::Control { control, .. } => {
                            let code = control.kind() as u8;
                            if control.kind() == Kind::Hello || (0x40..0x80).contains(&code) {
                                self.broken = Some(format!("a {:?}", control.kind()));
                                return;
                            }
                            self.questions += 1;
                        }
                    }
                    self.taken += size;
                }
                Ok(Step::Incomplete(_)) => break,
                Err(error) => {
                    self.broken = Some(error.to_string());
                    return;
                }
            }
        }
        if self.taken > self.waiting.len() / 2 {
            self.waiting.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Each send has one outcome, and outcomes come in the order of the sends.
    fn completed(&mut self, handle: u32, run: &CompletionRun) {
        let sends = self.sends.entry(handle).or_default();
        assert!(run.count.get() > 0, "an empty run of outcomes");
        for number in 0..u64::from(run.count.get()) {
            let sequence = run.sequence.get() + number;
            assert_eq!(
                sends.pop_front(),
                Some(sequence),
                "the next send of {handle:#x} that has no outcome"
            );
        }
    }
}

/// That no more was sent to all `peers` than what they said accounts for, while
/// each message may be handed out once to each consumer that ever was.
///
/// # Panics
///
/// If more was sent.
pub fn assert_no_amplification<'a>(peers: impl Iterator<Item = &'a Peer> + Clone, acts: u64) {
    let said: u64 = peers.clone().map(|peer| peer.said.frames).sum();
    let opened: u64 = peers.clone().map(|peer| peer.handles.len() as u64).sum();
    let heard: u64 = peers.map(|peer| peer.heard.frames).sum();
    let most = FRAMES_FOR_ONE * (said + acts + 1) * (opened + 1);
    assert!(heard <= most, "{said} frames were answered with {heard}");
}

/// See [`Peer::names`].
#[derive(Debug)]
pub struct PeerNames<'a> {
    peer: &'a mut Peer,
    foreign: &'a [u32],
}

/// From here on a selector means what belongs to somebody else, or another table.
const OTHERS: u8 = 128;
/// Bits of a message's `word`: what is wrong with its sequences.
const REPEAT: u8 = 1;
const SKIP: u8 = 2;
const AS_IT_IS: u8 = 4;

impl Names for PeerNames<'_> {
    fn stamp(&mut self, frame: &mut [u8], kind: Option<Kind>, subject: u8, word: u8) {
        if kind == Some(Kind::Message) {
            self.stamp_message(frame, subject, word);
            return;
        }
        let peer = &mut *self.peer;
        let named = match subject {
            0 => {
                peer.requests += 1;
                peer.requests
            }
            1..OTHERS => chosen(&peer.handles, subject - 1),
            OTHERS.. => chosen(self.foreign, subject - OTHERS),
        };
        frame[12..16].copy_from_slice(&named.to_le_bytes());
        if let Some(first) = frame.get_mut(16..20) {
            let named = match word {
                0 => return,
                1..OTHERS => chosen(&peer.sessions, word - 1),
                OTHERS.. => chosen(&peer.handles, word - OTHERS),
            };
            first.copy_from_slice(&named.to_le_bytes());
        }
    }
}

impl PeerNames<'_> {
    fn stamp_message(&mut self, frame: &mut [u8], subject: u8, word: u8) {
        let Ok((header, _)) = MessageHeader::mut_from_prefix(frame) else {
            return;
        };
        if subject >= OTHERS {
            header.handle = chosen(self.foreign, subject - OTHERS).into();
            return;
        }
        let count = self.peer.producers.len();
        if subject == 0 || count == 0 {
            return;
        }
        let producer = &mut self.peer.producers[usize::from(subject - 1) % count];
        header.handle = producer.handle.into();
        header.producer = producer.id.into();
        header.epoch = producer.epoch.into();
        if word & AS_IT_IS != 0 {
            return;
        }
        if word & REPEAT == 0 {
            producer.partition_sequence += 1 + u64::from(word & SKIP);
        }
        producer.sequence += 1;
        header.sequence = producer.sequence.into();
        header.partition_sequence = producer.partition_sequence.into();
    }
}

fn chosen(among: &[u32], index: u8) -> u32 {
    match among.len() {
        0 => u32::from(index),
        count => among[usize::from(index) % count],
    }
}
