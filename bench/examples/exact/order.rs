//! What the order of completions costs: the window that keeps it, beside two that
//! hand outcomes on as they arrive.
//!
//! ```text
//!   window      open x N     settle x N      pop x N    in send order, exactly once,
//!                                                       each with a deadline
//!   unordered   open x N     settle x N      pop x N    in the order of arrival, else
//!                                                       with the same duties
//!   queue                    push_back x N   pop x N    as they arrive, no duties
//! ```
//!
//! The difference between the first two is the price of order. The queue is the
//! least with which any client can hand outcomes to its application: it finds no
//! duplicate and knows no deadline, so the difference to it is the price of the
//! whole window and an upper bound on that of order. Outcomes arrive as a broker of
//! one shard sends them (in order) and, as the worst case of several, in reverse.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use courser_core::client::{Completion, Durability, Stored};
use courser_core::completion::CompletionWindow;
use courser_core::id::{Epoch, Offset, PartitionIndex, Position, Sequence};
use courser_core::time::{Monotonic, Wall};

type Outcome = Result<Stored, courser_core::client::Failure>;

/// As many as a producer may have on their way.
const WINDOW: u32 = 1024;

/// In which order outcomes arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    InOrder,
    Reversed,
}

/// What outcomes pass through.
pub(crate) enum Through {
    Window(CompletionWindow<Outcome>),
    Unordered(Unordered),
    Queue {
        next: u64,
        queue: VecDeque<Completion>,
    },
}

/// The window's duties without its order: whether each send is open and until when,
/// and what has arrived, to be handed on as it came.
pub(crate) struct Unordered {
    places: Box<[Option<Monotonic>]>,
    mask: u64,
    next: u64,
    /// Sends whose outcome was not taken.
    held: u64,
    open: u64,
    deadline_min: Monotonic,
    late: u64,
    arrived: VecDeque<Completion>,
}

impl Unordered {
    fn new() -> Self {
        let size = WINDOW.next_power_of_two();
        Self {
            places: vec![None; size as usize].into(),
            mask: u64::from(size) - 1,
            next: Sequence::FIRST.0,
            held: 0,
            open: 0,
            deadline_min: Monotonic::NEVER,
            late: 0,
            arrived: VecDeque::with_capacity(size as usize),
        }
    }

    #[inline]
    fn open(&mut self, deadline: Monotonic) -> Option<Sequence> {
        // Without order a place may be taken behind one that is still open.
        if self.held > self.mask {
            return None;
        }
        let sequence = self.next;
        let index = self.index(sequence);
        if self.places[index].is_some() {
            return None;
        }
        self.places[index] = Some(deadline);
        self.next = sequence + 1;
        self.held += 1;
        self.open += 1;
        self.deadline_min = self.deadline_min.min(deadline);
        Some(Sequence(sequence))
    }

    #[inline]
    fn settle(&mut self, sequence: Sequence, result: Outcome) -> Option<()> {
        if sequence.0 >= self.next {
            return None;
        }
        let index = self.index(sequence.0);
        if self.places[index].take().is_none() {
            self.late += 1;
            return Some(());
        }
        self.open -= 1;
        if self.open == 0 {
            self.deadline_min = Monotonic::NEVER;
        }
        self.arrived.push_back(Completion { sequence, result });
        Some(())
    }

    #[inline]
    fn pop(&mut self) -> Option<Completion> {
        let completion = self.arrived.pop_front()?;
        self.held -= 1;
        Some(completion)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked below WINDOW")]
    fn index(&self, sequence: u64) -> usize {
        (sequence & self.mask) as usize
    }
}

impl Through {
    pub(crate) fn window() -> Self {
        Self::Window(CompletionWindow::new(WINDOW, Sequence::FIRST))
    }

    pub(crate) fn unordered() -> Self {
        Self::Unordered(Unordered::new())
    }

    pub(crate) fn queue() -> Self {
        Self::Queue {
            next: Sequence::FIRST.0,
            queue: VecDeque::with_capacity(WINDOW as usize),
        }
    }

    /// Sends `batch` messages, settles each and takes every outcome.
    pub(crate) fn round(&mut self, batch: u64, arrival: Arrival, counted: bool) {
        match (self, counted) {
            (Self::Window(window), true) => counted_window(window, batch, arrival),
            (Self::Window(window), false) => through_window(window, batch, arrival),
            (Self::Unordered(unordered), true) => counted_unordered(unordered, batch, arrival),
            (Self::Unordered(unordered), false) => through_unordered(unordered, batch, arrival),
            (Self::Queue { next, queue }, true) => counted_queue(queue, next, batch, arrival),
            (Self::Queue { next, queue }, false) => through_queue(queue, next, batch, arrival),
        }
    }
}

/// The sequence that arrives in this place of a batch.
#[inline(always)]
fn arriving(first: u64, index: u64, batch: u64, arrival: Arrival) -> Sequence {
    Sequence(match arrival {
        Arrival::InOrder => first + index,
        Arrival::Reversed => first + (batch - 1 - index),
    })
}

#[inline(always)]
fn outcome(sequence: Sequence) -> Outcome {
    Ok(Stored {
        position: Position {
            partition: PartitionIndex(0),
            offset: Offset(sequence.0),
        },
        append_time: Wall(1),
        durability: Durability::Memory,
        epoch: Epoch(1),
    })
}

#[inline(always)]
fn through_window(window: &mut CompletionWindow<Outcome>, batch: u64, arrival: Arrival) {
    let first = window.next_sequence().0;
    let deadline = Monotonic(first).after(Duration::from_secs(3));
    for _ in 0..batch {
        if window.open(black_box(deadline)).is_err() {
            panic!("the window has no room for a batch");
        }
    }
    for index in 0..batch {
        let sequence = black_box(arriving(first, index, batch, arrival));
        if window.settle(sequence, outcome(sequence)).is_err() {
            panic!("an outcome for nothing");
        }
    }
    while let Some((sequence, result)) = window.pop() {
        black_box(&Completion { sequence, result });
    }
}

#[inline(never)]
fn counted_window(window: &mut CompletionWindow<Outcome>, batch: u64, arrival: Arrival) {
    through_window(window, batch, arrival);
}

#[inline(always)]
fn through_unordered(unordered: &mut Unordered, batch: u64, arrival: Arrival) {
    let first = unordered.next;
    let deadline = Monotonic(first).after(Duration::from_secs(3));
    for _ in 0..batch {
        if unordered.open(black_box(deadline)).is_none() {
            panic!("there is no room for a batch");
        }
    }
    for index in 0..batch {
        let sequence = black_box(arriving(first, index, batch, arrival));
        if unordered.settle(sequence, outcome(sequence)).is_none() {
            panic!("an outcome for nothing");
        }
    }
    while let Some(completion) = unordered.pop() {
        black_box(&completion);
    }
}

#[inline(never)]
fn counted_unordered(unordered: &mut Unordered, batch: u64, arrival: Arrival) {
    through_unordered(unordered, batch, arrival);
}

#[inline(always)]
fn through_queue(queue: &mut VecDeque<Completion>, next: &mut u64, batch: u64, arrival: Arrival) {
    let first = *next;
    *next += batch;
    for index in 0..batch {
        let sequence = black_box(arriving(first, index, batch, arrival));
        queue.push_back(Completion {
            sequence,
            result: outcome(sequence),
        });
    }
    while let Some(completion) = queue.pop_front() {
        black_box(&completion);
    }
}

#[inline(never)]
fn counted_queue(queue: &mut VecDeque<Completion>, next: &mut u64, batch: u64, arrival: Arrival) {
    through_queue(queue, next, batch, arrival);
}
