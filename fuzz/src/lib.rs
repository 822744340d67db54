//! Courser's machines under a fuzzer.
//!
//! | module | what it is |
//! |---|---|
//! | `decode` | target: the decoder, whatever the split |
//! | `door` | target: strangers before the hello |
//! | `session` | target: a shard among hostile peers |
//! | `client` | target: a client before a hostile broker |
//! | `entry` | target: the entries of a journal's batch |
//! | `recover` | target: the files of a journal, whole and damaged |
//! | `script` | a case as numbers and bytes; frames as a case describes them |
//! | `peer` | a client by hand that holds the broker to its word |
//! | `heap` | how much memory a case takes |
//! | `seeds` | cases made from the golden frames |
//! | `corpus` | cases that are kept |
//!
//! A target is a function of bytes that panics if something does not hold, so a
//! case is replayed by calling it: `scripts/fuzz` looks for new cases with
//! libFuzzer, `cargo test` runs the seeds and all that was kept, and what crashed
//! once lies beside them.

pub mod client;
pub mod corpus;
pub mod decode;
pub mod door;
pub mod entry;
pub mod heap;
pub mod peer;
pub mod recover;
pub mod script;
pub mod seeds;
pub mod session;
#[path = "../../core/tests/vectors/mod.rs"]
mod vectors;

/// What is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory in the corpus.
    pub name: &'static str,
    /// Runs a case; panics if something does not hold.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "decode",
        run: decode::run,
    },
    Target {
        name: "door",
        run: door::run,
    },
    Target {
        name: "session",
        run: session::run,
    },
    Target {
        name: "client",
        run: client::run,
    },
    Target {
        name: "entry",
        run: entry::run,
    },
    Target {
        name: "recover",
        run: recover::run,
    },
];
