//! Whose doorbell to ring for an end of a ring that moves from one thread to another.
//!
//! The peer of such an end does not see it move: it reads the place where the end was,
//! and rings there, while somebody else has it already. Nothing is lost if the new owner
//! looks into the ring behind the move, and the peer looks for the place once more
//! behind its publish; but each stores one word and then loads the other's, as sleeper
//! and waker do (`wake.rs`). Their fences serve here as well:
//!
//! ```text
//!   new owner                          peer
//!   n1  place = mine                   p1  position = new
//!   n2  announces its sleep: a fence   p2  checks the word at the place read before: a fence
//!   n3  looks into the ring            p3  place still the same? else checks the word there
//! ```
//!
//! One of the two fences is first. If n2, then p3 sees the new place, and there that its
//! owner sleeps. If p2, then n3 sees the new position. The owner before may be woken for
//! nothing, which is harmless.

use crate::planted::Planted;
use crate::sync::{AtomicU32, Ordering};

/// Where an end is, by a number that means a doorbell to its peer. Written by whoever
/// takes the end over, one after the other; read by the peer. It publishes nothing, so
/// its accesses are relaxed and the fences do the ordering.
#[derive(Debug)]
pub struct Whereabouts(AtomicU32);

impl Whereabouts {
    /// Of an end that is, or will first be, at `place`.
    #[must_use]
    pub fn at(place: u16) -> Whereabouts {
        Whereabouts(AtomicU32::new(place.into()))
    }

    /// By the new owner: n1. Before it sleeps it announces that, and looks into the ring.
    pub fn moved(&self, place: u16) {
        self.0.store(place.into(), Ordering::Relaxed);
    }

    /// By the peer, behind what it published or read: p2 and p3. `ring` has to check
    /// the [`WakeWord`](super::WakeWord) at the place that it is given, whose fence counts.
    #[inline]
    pub fn ring(&self, mut ring: impl FnMut(u16)) {
        let mut place = self.place();
        loop {
            ring(place);
            let now = self.place();
            if now == place || Planted::WhereaboutsOneLook.is_awake() {
                return;
            }
            place = now;
        }
    }

    /// Where it is, or was a moment ago.
    #[inline]
    pub fn place(&self) -> u16 {
        let place = self.0.load(Ordering::Relaxed);
        u16::try_from(place).expect("only places are stored")
    }
}
