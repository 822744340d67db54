//! A shard's thread allocates nothing per message once it is warm. A file of its own,
//! because it replaces the allocator.

#![allow(clippy::unwrap_used)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use courser_transport::{Broker, Transport};
use support::{TestClient, config};

/// The thread whose allocations are counted; zero is none.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    let watched = WATCHED.load(Ordering::Relaxed);
    if watched != 0 && courser_transport::sys::thread_id() == watched {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_shard_allocates_nothing_per_message() {
    const MESSAGES: usize = 20_000;
    for transport in [Transport::Auto, Transport::Epoll] {
        let broker = Broker::start(config(transport)).unwrap();
        let mut client = TestClient::connect(broker.address());
        let producer = client.producer("queue:/test/warm");
        let consumer = client.consumer("queue:/test/warm");
        let bodies = vec![vec![7; 64]; 1_000];
        let mut round = || {
            let completions = client.send_all(producer, &bodies);
            assert!(
                completions
                    .iter()
                    .all(|completion| completion.result.is_ok())
            );
            assert_eq!(client.receive(consumer, bodies.len()).len(), bodies.len());
        };
        for _ in 0..MESSAGES / bodies.len() {
            round();
        }
        ALLOCATIONS.store(0, Ordering::Relaxed);
        WATCHED.store(broker.setting().shards[0].thread, Ordering::Relaxed);
        for _ in 0..MESSAGES / bodies.len() {
            round();
        }
        WATCHED.store(0, Ordering::Relaxed);
        let allocations = ALLOCATIONS.load(Ordering::Relaxed);
        assert_eq!(
            allocations, 0,
            "allocations for {MESSAGES} messages on {transport}"
        );
        // The count would have seen one: a new link costs some.
        WATCHED.store(broker.setting().shards[0].thread, Ordering::Relaxed);
        let mut another = TestClient::connect(broker.address());
        another.producer("queue:/test/another");
        WATCHED.store(0, Ordering::Relaxed);
        assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0);
        drop(another);
        drop(client);
        broker.stop();
    }
}
