//! The wake word: whether an end of the ring sleeps, so that the peer rings
//! its doorbell only then.
//!
//! The ring makes no system call. Ringing (an eventfd, MSG_RING, a futex) and
//! sleeping are the callers'; the word decides when they are needed.
//!
//! ```text
//!   sleeper (say the reader)              peer (say the writer)
//!   s1  word = ASLEEP                     p1  position = new      (what the sleeper waits for)
//!   s2  fence                             p2  fence
//!   s3  position changed?                 p3  word ASLEEP?
//!         yes: word = AWAKE, stay up            yes: word = AWAKE, ring the doorbell
//!         no:  sleep until the doorbell         no:  done
//! ```
//!
//! Each side stores one word and then loads the other. Without fences both
//! stores may still sit in their cores' store buffers when both loads are
//! done: s3 finds the old position, p3 finds AWAKE, and the sleeper sleeps over
//! a record that is there. Release and acquire do not forbid that, as they
//! never order a store before a later load. With a sequentially consistent
//! fence on both sides one fence is first: if s2, then p3 sees ASLEEP and
//! rings; if p2, then s3 sees the new position and stays up.
//!
//! The doorbell must remember a ring that comes before the sleep (eventfd,
//! MSG_RING and thread parking do): p3 may fall between s3 and the sleep. A ring
//! for nothing is possible (s1, p1, p3, s3) and harmless: a sleeper that wakes
//! for nothing looks and sleeps again.
//!
//! A thread that reads many rings, and queues besides, has one word for all of them:
//! s3 looks into each, and p1 may be a store to any, before p2. Several peers may then
//! be at p3 at the same time; see [`WakeWord::check`].

use crate::planted::Planted;
use crate::sync::{AtomicU32, Ordering, fence};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

/// Whether the peer sleeps and its doorbell has to be rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that sleeps stays asleep until its doorbell is rung"]
pub enum Wake {
    /// The peer announced sleep. Ring its doorbell: later calls answer
    /// `Unneeded` until it sleeps again.
    Needed,
    /// The peer is awake, or about to be.
    Unneeded,
}

/// Whether an end that announced its sleep may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "sleeping in spite of a refusal may last for ever"]
pub enum Sleep {
    /// Nothing came. Sleep until the doorbell rings or a timer falls due, then
    /// call `awake`.
    Granted,
    /// What the end waits for is there already; the announcement is withdrawn.
    Refused,
}

/// A sleeper's announcement. Set by its owner; cleared by the owner, or by the
/// peer that takes it upon itself to ring. It publishes nothing, so its own
/// accesses are relaxed and the fences do the ordering.
#[derive(Debug)]
pub struct WakeWord(AtomicU32);

impl WakeWord {
    /// Of an owner that is awake.
    #[must_use]
    pub fn awake() -> WakeWord {
        WakeWord(AtomicU32::new(AWAKE))
    }

    /// By the owner: s1 and s2. It must look again (s3) before it sleeps.
    pub fn announce(&self) {
        self.0.store(ASLEEP, Ordering::Relaxed);
        if !Planted::RingNoSleeperFence.is_awake() {
            fence(Ordering::SeqCst);
        }
    }

    /// By the owner: it is up.
    pub fn withdraw(&self) {
        self.0.store(AWAKE, Ordering::Relaxed);
    }

    /// By a peer, after it stored what the owner waits for: p2 and p3.
    ///
    /// Of several peers more than one may be told to ring, which is harmless. One that
    /// is told nothing because another took the word relies on that one's ring: it must
    /// not be put off.
    #[inline]
    pub fn check(&self) -> Wake {
        if !Planted::RingNoFence.is_awake() {
            fence(Ordering::SeqCst);
        }
        if self.0.load(Ordering::Relaxed) == AWAKE {
            Wake::Unneeded
        } else {
            self.take()
        }
    }

    /// Cleared, so that of all publishes during one sleep one rings.
    ///
    /// A plain store may fall on an announcement newer than the one that was
    /// loaded, and wipe it out. That sleeper wakes all the same: the ring that
    /// follows the store cannot have been used up before that announcement, or
    /// the store would come before it.
    #[cold]
    fn take(&self) -> Wake {
        self.0.store(AWAKE, Ordering::Relaxed);
        Wake::Needed
    }
}
