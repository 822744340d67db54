//! In steady state the poll mode allocates nothing for a message.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;

use common::{TestBroker, WAIT};
use courser::{Client, Consumer, Producer, TrySendError};

/// Counts what the thread that asks allocates; the broker's threads do not count.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Memory is still given out while the thread's own storage is torn down.
    ALLOCATIONS
        .try_with(|count| count.set(count.get() + 1))
        .ok();
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sends `count` messages and takes as many, all acknowledged.
fn round(producer: &Producer, consumer: &mut Consumer, count: u64, burst: u64) {
    let (mut sent, mut completed, mut received) = (0, 0, 0);
    let body = [7u8; 200];
    let deadline = Instant::now() + WAIT;
    while completed < count || received < count {
        assert!(Instant::now() < deadline, "{sent} {completed} {received}");
        while sent < count && sent - received < burst {
            match producer.try_enqueue(body) {
                Ok(_) => sent += 1,
                Err(TrySendError::WouldBlock) => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(completion) = producer.poll() {
            completion.result.unwrap();
            completed += 1;
        }
        while let Some(message) = consumer.try_receive().unwrap() {
            assert_eq!(message.body().len(), 200);
            let position = message.position();
            consumer.acknowledge(position).unwrap();
            received += 1;
        }
    }
    consumer.flush().unwrap();
}

#[test]
fn a_message_costs_no_allocation_one_at_a_time_or_in_bursts() {
    let broker = TestBroker::start();
    costs_no_allocation(&broker.client());
}

#[cfg(feature = "embedded")]
#[test]
fn nor_does_one_over_an_in_process_link_and_without_threads_not_in_the_broker_either() {
    use courser::embedded::{Broker, BrokerConfig};
    let broker = Broker::start(BrokerConfig::embedded()).unwrap();
    costs_no_allocation(&broker.connect().unwrap());
    let broker = Broker::without_threads(BrokerConfig::embedded()).unwrap();
    costs_no_allocation(&broker.connect().unwrap());
}

fn costs_no_allocation(client: &Client) {
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    for burst in [300, 1] {
        // Queues grow by doubling until they fit their use, which timing decides:
        // a few allocations in all, then none for thousands of messages.
        let mut growth = 0;
        let is_steady = (0..10).any(|_| {
            let before = ALLOCATIONS.get();
            round(&producer, &mut consumer, 5000, burst);
            let allocations = ALLOCATIONS.get() - before;
            growth += allocations;
            allocations == 0
        });
        assert!(is_steady && growth < 100, "in bursts of {burst}: {growth}");
    }
}
