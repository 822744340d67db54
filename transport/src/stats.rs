//! A shard's counters as every other thread may read them.
//!
//! The shard counts in plain numbers that it alone touches; now and then it copies
//! them here. A reader sees values that are up to a millisecond old while the shard
//! is busy, and exact ones while it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use courser_core::counters::{Counter, Counters};
use courser_core::time::Monotonic;
use crossbeam::utils::CachePadded;

use crate::connection::Tally;

/// How old published counters may be while their shard is busy.
pub(crate) const PUBLISH_EVERY: Duration = Duration::from_millis(1);

/// The published counters of one shard; clones read the same ones.
#[derive(Debug, Clone)]
pub struct ShardStats {
    page: Arc<CachePadded<Page>>,
}

/// Written by the shard's thread, read by any. Each value stands for itself: relaxed
/// accesses, and two values read one after the other may be of different moments.
#[derive(Debug)]
struct Page {
    counters: [AtomicU64; Counter::ALL.len()],
    links: AtomicU64,
    chunks_free: AtomicU64,
    short_sends: AtomicU64,
    out_of_buffers: AtomicU64,
}

impl ShardStats {
    /// Of a shard that has done nothing yet and has so many chunks.
    pub(crate) fn new(chunks: usize) -> Self {
        Self {
            page: Arc::new(CachePadded::new(Page {
                counters: [const { AtomicU64::new(0) }; Counter::ALL.len()],
                links: AtomicU64::new(0),
                chunks_free: AtomicU64::new(chunks as u64),
                short_sends: AtomicU64::new(0),
                out_of_buffers: AtomicU64::new(0),
            })),
        }
    }

    /// What a counter stood at when it was last published.
    #[must_use]
    pub fn read(&self, counter: Counter) -> u64 {
        self.page.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Every counter with its name, in their order.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL
            .iter()
            .map(|&counter| (counter.name(), self.read(counter)))
    }

    /// Links that are open.
    #[must_use]
    pub fn links(&self) -> u64 {
        self.page.links.load(Ordering::Relaxed)
    }

    /// Chunks of the arena that are free.
    #[must_use]
    pub fn chunks_free(&self) -> u64 {
        self.page.chunks_free.load(Ordering::Relaxed)
    }

    /// Sends of which the kernel took less than was given, or nothing.
    #[must_use]
    pub fn short_sends(&self) -> u64 {
        self.page.short_sends.load(Ordering::Relaxed)
    }

    /// Receives that found no buffer free.
    #[must_use]
    pub fn out_of_buffers(&self) -> u64 {
        self.page.out_of_buffers.load(Ordering::Relaxed)
    }
}

/// What is published, as the shard's thread has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures<'a> {
    pub(crate) counters: &'a Counters,
    pub(crate) links: usize,
    pub(crate) chunks_free: usize,
    pub(crate) tally: Tally,
}

/// The shard's end: decides when to publish.
#[derive(Debug)]
pub(crate) struct Publisher {
    stats: ShardStats,
    due: Monotonic,
}

impl Publisher {
    pub(crate) fn new(stats: ShardStats) -> Self {
        Self {
            stats,
            due: Monotonic(0),
        }
    }

    /// Whether the published values are old enough to be renewed.
    pub(crate) fn is_due(&self, now: Monotonic) -> bool {
        now >= self.due
    }

    /// Copies everything out.
    pub(crate) fn publish(&mut self, now: Monotonic, figures: Figures<'_>) {
        self.due = now.after(PUBLISH_EVERY);
        let page = &**self.stats.page;
        let places = page.counters.iter().zip(figures.counters.all());
        places.for_each(|(place, &value)| place.store(value, Ordering::Relaxed));
        for (place, value) in [
            (&page.links, figures.links as u64),
            (&page.chunks_free, figures.chunks_free as u64),
            (&page.short_sends, figures.tally.short_sends),
            (&page.out_of_buffers, figures.tally.out_of_buffers),
        ] {
            place.store(value, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_is_read_under_its_name() {
        let stats = ShardStats::new(9);
        let mut publisher = Publisher::new(stats.clone());
        let mut counters = Counters::default();
        counters.add(Counter::Enters, 7);
        assert!(publisher.is_due(Monotonic(0)));
        publisher.publish(
            Monotonic(0),
            Figures {
                counters: &counters,
                links: 3,
                chunks_free: 9,
                tally: Tally {
                    short_sends: 5,
                    out_of_buffers: 6,
                },
            },
        );
        assert!(!publisher.is_due(Monotonic(0)));
        assert!(publisher.is_due(Monotonic(0).after(PUBLISH_EVERY)));
        assert_eq!(stats.read(Counter::Enters), 7);
        assert!(stats.all().any(|pair| pair == ("enters", 7)));
        assert_eq!((stats.links(), stats.chunks_free()), (3, 9));
        assert_eq!((stats.short_sends(), stats.out_of_buffers()), (5, 6));
    }
}
