//! In steady state a message costs no allocation on its way through a partition.
//!
//! Alone in its file: the allocator counts for the whole program.

#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use courser_core::frame::encode::{Envelope, message, message_size};
use courser_core::id::{DestinationNumber, Handle, Offset, PartitionIndex};
use courser_core::memory::Arena;
use courser_core::partition::Partition;
use courser_core::partition::log::{Address, RunLimit};
use courser_core::time::Wall;

thread_local! {
    /// Allocations of this thread; the test harness has threads of its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; the count is a plain
// cell of the thread that needs no allocation and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the promises that the system asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the promises that the system asks for.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises that the system asks for.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SUBSCRIPTION: Handle = Handle::new(0, 1);
const CONSUMERS: [Handle; 2] = [Handle::new(1, 1), Handle::new(2, 1)];
const BATCH: usize = 250;

struct Flow {
    arena: Arena,
    partition: Partition,
    frames: Vec<Vec<u8>>,
    messages: u64,
    /// Runs of the second consumer.
    runs: usize,
    /// What it sits on.
    kept: Vec<Option<Offset>>,
}

impl Flow {
    fn new(retain: u64, keeps: usize) -> Self {
        let arena = Arena::new(256);
        let address = Address {
            destination: DestinationNumber(1),
            partition: PartitionIndex(0),
        };
        let mut partition = Partition::new(address, retain);
        partition.subscribe(&arena, SUBSCRIPTION, Offset(0));
        let frames = [0, 64, 64, 64, 1024, 9_000]
            .map(|body| {
                let mut frame = vec![0; message_size(0, body)];
                message(&Envelope::default(), &[], &vec![1; body], &mut frame);
                frame
            })
            .to_vec();
        Self {
            arena,
            partition,
            frames,
            messages: 0,
            runs: 0,
            kept: vec![None; keeps],
        }
    }

    fn append(&mut self) {
        for frame in self.frames.iter().cycle().take(BATCH) {
            let claims = self.partition.claims();
            let log = &mut self.partition.log;
            log.append(&mut self.arena, frame, claims, Wall(0)).unwrap();
        }
        self.messages += BATCH as u64;
    }

    /// A batch comes and goes to two consumers in turn. One acknowledges through,
    /// the other each run; of every fiftieth it keeps a message until it has `keeps`.
    fn turn(&mut self) {
        self.append();
        let Partition { log, parts } = &mut self.partition;
        let part = &mut parts[0].1;
        let limit = RunLimit {
            messages: 20,
            bytes: u64::MAX,
        };
        for consumer in CONSUMERS.into_iter().cycle() {
            let number = self.messages;
            let Some(delivered) = part.deliver(&self.arena, log, consumer, number, limit) else {
                break;
            };
            let (first, count) = (delivered.run.first.0, u64::from(delivered.run.count));
            if consumer == CONSUMERS[0] {
                let last = Offset(first + count - 1);
                part.acknowledge_through(&mut self.arena, log, consumer, last);
                continue;
            }
            self.runs += 1;
            let mut from = first;
            if self.runs.is_multiple_of(50) {
                from += 1;
                let index = self.runs / 50 % self.kept.len();
                let kept = &mut self.kept[index];
                if let Some(offset) = kept.replace(Offset(first)) {
                    part.acknowledge(&mut self.arena, log, consumer, offset, 1);
                }
            }
            let rest = first + count - from;
            part.acknowledge(&mut self.arena, log, consumer, Offset(from), rest);
        }
        self.partition.thin_out(&mut self.arena);
    }
}

#[test]
fn a_million_messages_are_appended_delivered_and_settled_without_an_allocation() {
    // What is kept blocks retention, so there it is little.
    for (retain, keeps) in [(0, 16), (4 << 20, 1)] {
        let mut flow = Flow::new(retain, keeps);
        while flow.messages < 100_000 {
            flow.turn();
        }
        assert_eq!(flow.partition.parts[0].1.unsettled() as usize, keeps);
        let before = ALLOCATIONS.get();
        assert!(before > 0, "allocations are counted");
        while flow.messages < 1_100_000 {
            flow.turn();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0);
        flow.partition.invariants();
        assert_eq!(flow.partition.parts[0].1.unsettled() as usize, keeps);
    }
}

/// A part remembers how far each consumer has acknowledged, and forgets it with
/// the consumer.
#[test]
fn consumers_that_come_and_go_leave_nothing_behind() {
    let mut flow = Flow::new(0, 1);
    let mut visit = |visitor: u32| {
        flow.append();
        let consumer = Handle::new(visitor % 1_000, visitor);
        let Partition { log, parts } = &mut flow.partition;
        let part = &mut parts[0].1;
        let limit = RunLimit {
            messages: u64::MAX,
            bytes: u64::MAX,
        };
        while let Some(delivered) = part.deliver(&flow.arena, log, consumer, 0, limit) {
            let last = Offset(delivered.run.first.0);
            part.acknowledge_through(&mut flow.arena, log, consumer, last);
        }
        part.consumer_gone(consumer, u64::MAX);
    };
    (0..100).for_each(&mut visit);
    let before = ALLOCATIONS.get();
    (100..10_000).for_each(&mut visit);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
