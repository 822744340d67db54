//! What happened, as a hash of everything and a memory of the last of it.
//!
//! Two runs of a seed must have the same hash, or something in the machines
//! draws from elsewhere than from its facts.

use core::fmt;
use core::hash::{Hash, Hasher};
use std::collections::VecDeque;

use courser_core::id::{Handle, PartitionIndex, ShardIndex};

/// How many facts a failure shows, unless more are asked for.
pub(crate) const KEPT: usize = 160;

/// Something that happened.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Fact {
    /// A shard took a turn.
    Turn {
        shard: usize,
        records: u32,
        links: usize,
        chunks_free: usize,
    },
    /// A connection was made, or refused by the network or the door.
    Connected {
        peer: usize,
        connection: usize,
    },
    Refused {
        peer: usize,
    },
    /// A shard took a connection in.
    HandedOver {
        connection: usize,
        shard: usize,
        link: Handle,
    },
    /// A connection left its shard for another one.
    Parted {
        connection: usize,
        to: ShardIndex,
    },
    /// Bytes reached the broker, with their digest.
    Uplink {
        connection: usize,
        bytes: usize,
        digest: u64,
    },
    /// Bytes reached the client, with their digest.
    Downlink {
        connection: usize,
        bytes: usize,
        digest: u64,
    },
    /// The kernel took bytes of the shard.
    Sent {
        connection: usize,
        offered: usize,
        taken: usize,
    },
    /// The broker was told that a connection is gone.
    ServerClosed {
        connection: usize,
    },
    /// The broker wants a connection closed.
    Close {
        connection: usize,
        flush: bool,
    },
    /// The client was told that its connection is gone.
    ClientClosed {
        connection: usize,
    },
    /// A fault struck.
    Fault {
        kind: crate::plan::FaultKind,
        connection: Option<usize>,
    },
    /// A client's link ended.
    Ended {
        peer: usize,
        end: String,
    },
    Opened {
        peer: usize,
    },
    /// A client lost its connection, and looks for another one.
    Disconnected {
        peer: usize,
    },
    ProducerOpened {
        peer: usize,
        producer: usize,
        id: u64,
    },
    ProducerResumed {
        producer: usize,
        id: u64,
        epoch: u32,
    },
    ProducerClosed {
        peer: usize,
        producer: usize,
    },
    /// The broker has ended a producer, or does not attach it again.
    ProducerShutOut {
        producer: usize,
        code: u16,
    },
    /// A producer waits for its destination in line for certain.
    InLine {
        taker: usize,
    },
    /// A client waits no longer.
    Cancelled {
        peer: usize,
    },
    /// A consumer asks whether there is anything, and is answered.
    PollAsked {
        consumer: usize,
    },
    Polled {
        consumer: usize,
        nothing: bool,
    },
    DeletionAsked {
        name: usize,
    },
    Deleted {
        deletion: usize,
    },
    PassingEnded {
        code: u16,
    },
    PassingHanded {
        number: u64,
    },
    FenceAsked {
        peer: usize,
        id: u64,
    },
    Fenced {
        producer: usize,
    },
    ConsumerOpened {
        peer: usize,
        consumer: usize,
        subscription: usize,
    },
    ConsumerClosed {
        peer: usize,
        consumer: usize,
    },
    RequestRefused {
        peer: usize,
        code: u16,
    },
    Send {
        producer: usize,
        sequence: u64,
        bytes: usize,
    },
    Completed {
        producer: usize,
        sequence: u64,
        outcome: &'static str,
        offset: u64,
    },
    Handed {
        consumer: usize,
        partition: PartitionIndex,
        offset: u64,
        count: u32,
    },
    Acknowledged {
        consumer: usize,
        partition: PartitionIndex,
        offset: u64,
        through: bool,
    },
    GaveBack {
        consumer: usize,
        partition: PartitionIndex,
        offset: u64,
        rest: Option<u64>,
    },
    ConfirmAsked {
        consumer: usize,
        token: u32,
    },
    Confirmed {
        consumer: usize,
        token: u32,
    },
    Vanished {
        peer: usize,
    },
    Goodbye {
        peer: usize,
    },
    Rogue {
        peer: usize,
        what: &'static str,
    },
    /// Faults have stopped.
    Calm,
    /// Everything is drained; the peers leave.
    Leaving {
        by_stop: bool,
    },
}

/// The hash, and the last facts.
#[derive(Debug)]
pub(crate) struct Trace {
    kept: usize,
    now: u64,
    hash: Mixer,
    recent: VecDeque<(u64, Fact)>,
    facts: u64,
}

impl Trace {
    /// A trace that remembers the last `kept` facts, at least one.
    pub(crate) fn new(kept: usize) -> Self {
        Self {
            kept,
            now: 0,
            hash: Mixer::default(),
            recent: VecDeque::new(),
            facts: 0,
        }
    }

    /// Time has come to `now`, in nanoseconds.
    pub(crate) fn at(&mut self, now: u64) {
        self.now = now;
    }

    /// Something happened.
    pub(crate) fn note(&mut self, fact: Fact) {
        self.hash.write_u64(self.now);
        fact.hash(&mut self.hash);
        self.facts += 1;
        if self.recent.len() >= self.kept {
            self.recent.pop_front();
        }
        self.recent.push_back((self.now, fact));
    }

    /// The hash of all that happened.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// How much happened.
    pub(crate) fn facts(&self) -> u64 {
        self.facts
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (time, fact) in &self.recent {
            writeln!(f, "{:>16} s  {fact:?}", Seconds(*time))?;
        }
        Ok(())
    }
}

/// Nanoseconds, shown as seconds.
pub(crate) struct Seconds(pub(crate) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        f.pad(&text)
    }
}

/// A hash that is equal on every machine and in every version of the compiler.
#[derive(Clone, Debug)]
struct Mixer(u64);

impl Default for Mixer {
    fn default() -> Self {
        Self(0x51_7c_c1_b7_27_22_0a_95)
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word) ^ ((part.len() as u64) << 56));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A fingerprint of bytes.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut mixer = Mixer::default();
    mixer.write(bytes);
    mixer.write_u64(bytes.len() as u64);
    mixer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_differ_anywhere_or_in_length_have_another_digest() {
        let bytes = [5u8; 100];
        for index in 0..bytes.len() {
            let mut other = bytes;
            other[index] ^= 1;
            assert_ne!(digest(&bytes), digest(&other), "at {index}");
            assert_ne!(digest(&bytes), digest(&bytes[..index]));
        }
    }

    #[test]
    fn what_happened_at_another_time_gives_another_hash_and_only_the_last_facts_are_kept() {
        let run = |step: u64| {
            let mut trace = Trace::new(KEPT);
            for index in 0..2 * KEPT as u64 {
                trace.at(index * step);
                trace.note(Fact::Calm);
            }
            trace
        };
        assert_eq!(run(1).hash(), run(1).hash());
        assert_ne!(run(1).hash(), run(2).hash());
        assert_eq!(run(1).to_string().lines().count(), KEPT);
        assert_eq!(run(1).facts(), 2 * KEPT as u64);
    }
}
