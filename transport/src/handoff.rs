//! The way of a connection from the door to its shard, and from one shard to another.
//!
//! A bounded queue, a count of what was posted, and the shard's doorbell. The shard
//! looks at the count on every turn, which is one load of a line that rarely changes,
//! and touches the queue only if the count moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

use crossbeam::utils::CachePadded;

use crate::doorbell::Doorbell;

/// How many connections may be on their way; beyond it the door turns them away.
const CAPACITY: usize = 1024;

/// The end of the door, or of another shard.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    queue: SyncSender<T>,
    posted: Arc<CachePadded<AtomicU64>>,
    doorbell: Doorbell,
}

/// The shard's end.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    queue: Receiver<T>,
    /// Raised by whoever posted, read by the shard. Release and acquire: who sees the
    /// count finds at least as many in the queue.
    posted: Arc<CachePadded<AtomicU64>>,
    taken: u64,
}

/// A way to the sleeper of that bell.
pub(crate) fn handoff<T>(doorbell: Doorbell) -> (Sender<T>, Inbox<T>) {
    let (sender, receiver) = sync_channel(CAPACITY);
    let posted = Arc::new(CachePadded::new(AtomicU64::new(0)));
    (
        Sender {
            queue: sender,
            posted: Arc::clone(&posted),
            doorbell,
        },
        Inbox {
            queue: receiver,
            posted,
            taken: 0,
        },
    )
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            posted: Arc::clone(&self.posted),
            doorbell: self.doorbell.clone(),
        }
    }
}

impl<T> Sender<T> {
    /// Wakes the shard if it sleeps, for something that lies elsewhere.
    pub(crate) fn ring(&self) {
        self.doorbell.ring();
    }

    /// Posts and wakes the shard if it sleeps. What finds no room, or no shard any
    /// more, comes back.
    pub(crate) fn post(&self, item: T) -> Result<(), T> {
        match self.queue.try_send(item) {
            Ok(()) => {
                self.posted.fetch_add(1, Ordering::Release);
                self.doorbell.ring();
                Ok(())
            }
            Err(TrySendError::Full(item) | TrySendError::Disconnected(item)) => Err(item),
        }
    }
}

impl<T> Inbox<T> {
    /// Whether something waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.posted.load(Ordering::Acquire) == self.taken
    }

    /// The next thing that waits.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        match self.queue.try_recv() {
            Ok(item) => {
                self.taken += 1;
                Some(item)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_posted_is_taken_in_order() {
        let (sender, mut inbox) = handoff(Doorbell::new().unwrap());
        assert!(inbox.is_empty());
        assert_eq!(inbox.take(), None);
        sender.post(1).unwrap();
        sender.post(2).unwrap();
        assert!(!inbox.is_empty());
        assert_eq!(
            (inbox.take(), inbox.take(), inbox.take()),
            (Some(1), Some(2), None)
        );
        assert!(inbox.is_empty());
    }

    #[test]
    fn what_finds_no_room_or_no_shard_comes_back() {
        let (sender, inbox) = handoff(Doorbell::new().unwrap());
        for item in 0..CAPACITY {
            sender.post(item).unwrap();
        }
        assert_eq!(sender.post(7_777), Err(7_777));
        drop(inbox);
        assert_eq!(sender.post(8_888), Err(8_888));
    }
}
