//! What leaves a link, and in which order.
//!
//! ```text
//!   control queue   [ack][allow][want credit]          first in every round
//!   producer A      [begun..|frame][frame][frame]  \   then producers in turn,
//!   producer B      [frame][frame]                 /   each up to a share
//!
//!   plan            | rest of A | control | header, A's batch | B |   ---> the socket
//!                     begun ^
//! ```
//!
//! A round appends to the plan only what the plan has room for, so control
//! frames never wait behind more than a round. What has begun to leave keeps
//! its place; the rest of the plan may be taken back, which is how a send whose
//! deadline passes is still withdrawn.
//!
//! Invariants:
//! - A piece of the plan is made of whole frames, except that the first may
//!   have begun to leave.
//! - A batch header and its frames stand next to each other, and are withdrawn
//!   together or not at all.

use std::collections::VecDeque;

use super::producer::Producer;
use super::queue::ByteQueue;
use crate::frame::control::{Batch, Fields};
use crate::frame::encode;
use crate::id::Handle;
use crate::pieces::{PIECES_MAX, Pieces};
use crate::slab::Slab;

/// The most pieces a round plans: enough for every batch of a round.
const PLAN_MAX: usize = 32;
const _: () = assert!(PLAN_MAX <= PIECES_MAX, "one write takes a whole round");
/// The most bytes of one producer in one round.
const SHARE: usize = 128 * 1024;
/// A round adds nothing while so much is planned and has not left.
const PLANNED_MAX: usize = 256 * 1024;
/// Control frames of the application wait up to here; those of the machine
/// itself, which are bounded by open handles and requests, four times as far.
const BACKLOG_MAX: usize = 4 * 1024 * 1024;

const BATCH_HEADER_SIZE: usize = encode::control_size::<Batch>(0);

#[derive(Clone, Copy)]
enum Source {
    /// Bytes of the control queue.
    Control,
    /// A batch header, made when the batch was planned.
    Header([u8; BATCH_HEADER_SIZE]),
    /// Frames of a producer's outbox; `headed` if a batch header stands before them.
    Frames { producer: Handle, headed: bool },
}

/// A range of a source, in the source's positions.
#[derive(Clone, Copy)]
struct Piece {
    source: Source,
    from: u64,
    to: u64,
    /// Whether a byte of it has left.
    begun: bool,
}

/// The plan and what it is made from.
pub(super) struct Outbound {
    control: ByteQueue,
    control_planned: u64,
    plan: VecDeque<Piece>,
    planned: usize,
    /// Producers with frames to plan, each once.
    ready: VecDeque<Handle>,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self {
            control: ByteQueue::with_limit(4 * BACKLOG_MAX),
            control_planned: 0,
            plan: VecDeque::with_capacity(PLAN_MAX),
            planned: 0,
            ready: VecDeque::new(),
        }
    }

    /// Queues a control frame; false if the backlog is too long even for the
    /// machine's own.
    #[must_use]
    pub(super) fn control<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) -> bool {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let Some(place) = self.control.claim(size) else {
            return false;
        };
        let size = encode::control(subject, fields, tail, place);
        self.control.commit(size);
        true
    }

    /// Whether the application may queue another control frame.
    pub(super) fn has_room(&self) -> bool {
        self.control.len() < BACKLOG_MAX
    }

    /// Notes that `producer` has frames to plan; it tells so only once.
    #[inline]
    pub(super) fn ready(&mut self, producer: Handle) {
        self.ready.push_back(producer);
    }

    /// Whether something is planned, or could be.
    pub(super) fn is_empty(&self) -> bool {
        self.plan.is_empty() && self.control.is_empty() && self.ready.is_empty()
    }

    /// One round: adds to the plan what may leave now.
    #[inline]
    pub(super) fn plan(&mut self, producers: &mut Slab<Producer>) {
        // One piece is kept for what the round itself asks for.
        let full = PLAN_MAX - 1;
        if self.planned >= PLANNED_MAX || self.plan.len() + 2 >= full {
            return;
        }
        self.plan_control();
        for _ in 0..self.ready.len() {
            if self.planned >= PLANNED_MAX || self.plan.len() + 2 > full {
                break;
            }
            let Some(key) = self.ready.pop_front() else {
                break;
            };
            let Some(producer) = producers.get_mut(key) else {
                continue;
            };
            self.plan_producer(key, producer);
            if let Some(want) = producer.want_credit() {
                // Without room for the question, credit still comes with completions.
                let _asked = self.control(producer.handle().0, &want, &[]);
            }
            if producer.is_sendable() {
                self.ready.push_back(key);
            } else {
                producer.leave_line();
            }
        }
        self.plan_control();
    }

    #[inline]
    fn plan_control(&mut self) {
        let end = self.control.end();
        if self.control_planned < end {
            self.add(Source::Control, self.control_planned, end);
            self.control_planned = end;
        }
    }

    /// Plans a producer's share.
    #[inline]
    fn plan_producer(&mut self, key: Handle, producer: &mut Producer) {
        let mut share = SHARE;
        // A group takes two pieces if it has a header.
        while share > 0 && self.plan.len() + 2 < PLAN_MAX {
            let Some(group) = producer.plan(share) else {
                return;
            };
            if let Some(header) = group.header {
                let mut bytes = [0; BATCH_HEADER_SIZE];
                encode::control(producer.handle().0, &header, &[], &mut bytes);
                self.add(Source::Header(bytes), 0, BATCH_HEADER_SIZE as u64);
            }
            let source = Source::Frames {
                producer: key,
                headed: group.header.is_some(),
            };
            self.add(source, group.from, group.to);
            share = share.saturating_sub(usize::try_from(group.to - group.from).unwrap_or(share));
        }
    }

    fn add(&mut self, source: Source, from: u64, to: u64) {
        self.planned += usize::try_from(to - from).unwrap_or(0);
        self.plan.push_back(Piece {
            source,
            from,
            to,
            begun: false,
        });
    }

    /// What is planned, as slices.
    #[inline]
    pub(super) fn pieces<'a>(&'a self, producers: &'a Slab<Producer>) -> Pieces<'a> {
        let mut pieces = Pieces::new();
        for piece in &self.plan {
            let slice = match &piece.source {
                Source::Control => self.control.range(piece.from, piece.to),
                Source::Header(bytes) => {
                    let from = usize::try_from(piece.from).unwrap_or(BATCH_HEADER_SIZE);
                    &bytes[from..]
                }
                Source::Frames { producer, .. } => match producers.get(*producer) {
                    Some(producer) => producer.frames(piece.from, piece.to),
                    None => break,
                },
            };
            if !pieces.push(slice) {
                break;
            }
        }
        pieces
    }

    /// The first `bytes` of what was planned have left.
    #[inline]
    pub(super) fn sent(&mut self, mut bytes: usize, producers: &mut Slab<Producer>) {
        while bytes > 0 {
            let Some(piece) = self.plan.front_mut() else {
                debug_assert!(false, "more left than was planned");
                return;
            };
            let size = usize::try_from(piece.to - piece.from).unwrap_or(usize::MAX);
            let taken = bytes.min(size);
            bytes -= taken;
            self.planned -= taken;
            piece.from += taken as u64;
            piece.begun = true;
            let (source, from) = (piece.source, piece.from);
            if taken == size {
                self.plan.pop_front();
            }
            match source {
                Source::Control => self.control.release(from),
                Source::Header(_) => {}
                Source::Frames { producer, .. } => {
                    if let Some(producer) = producers.get_mut(producer) {
                        producer.left(from);
                    }
                }
            }
        }
    }

    /// Takes back all of the plan that has not begun to leave. Cold: a send is
    /// about to be withdrawn.
    pub(super) fn take_back(&mut self, producers: &mut Slab<Producer>) {
        let mut kept = 0;
        if let Some(front) = self.plan.front() {
            kept = match front.source {
                // A batch that was announced, if only in part, is bound to follow.
                Source::Header(_) if front.begun => 2,
                // Its header has left already.
                Source::Frames { headed: true, .. } => 1,
                _ => usize::from(front.begun),
            };
        }
        while self.plan.len() > kept {
            let Some(piece) = self.plan.pop_back() else {
                break;
            };
            self.planned -= usize::try_from(piece.to - piece.from).unwrap_or(0);
            match piece.source {
                Source::Control => self.control_planned = piece.from,
                Source::Header(_) => {}
                Source::Frames { producer: key, .. } => {
                    Self::unplan(&mut self.ready, producers, key, piece.from);
                }
            }
        }
        if let Some(Piece {
            source:
                Source::Frames {
                    producer: key,
                    headed: false,
                },
            from,
            to,
            begun: true,
        }) = self.plan.front_mut()
            && let Some(producer) = producers.get(*key)
        {
            // The frame that has begun is the only one that must follow.
            let boundary = producer.frame_boundary(*from);
            self.planned -= usize::try_from(*to - boundary).unwrap_or(0);
            *to = boundary;
            let key = *key;
            if *from == boundary {
                self.plan.pop_front();
            }
            Self::unplan(&mut self.ready, producers, key, boundary);
        }
    }

    fn unplan(
        ready: &mut VecDeque<Handle>,
        producers: &mut Slab<Producer>,
        key: Handle,
        position: u64,
    ) {
        if let Some(producer) = producers.get_mut(key)
            && producer.unplan(position)
        {
            ready.push_front(key);
        }
    }

    /// Forgets everything: the link is gone.
    pub(super) fn clear(&mut self) {
        self.plan.clear();
        self.ready.clear();
        self.planned = 0;
        self.control.clear();
        self.control_planned = self.control.end();
    }
}
