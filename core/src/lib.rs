//! Courser's heart: the broker and its client as deterministic machines
//! without clock, thread, file, socket or randomness.
//!
//! Facts come in as method calls (`received`, `sent`, `closed`,
//! `expire(now)`), wishes go out as values. Whoever holds a machine decides
//! when time passes and what the network does, so the same code runs on a
//! pinned thread, inside a simulator and under a fuzzer.
//!
//! A file uses only lower layers:
//!
//! | layer | modules |
//! |---|---|
//! | 0 | `limits` `id` `time` `error` `name` `routing` `sync` `planted` |
//! | 1 | `ring` `memory` `slab` `pieces` |
//! | 2 | `completion` `frame` `counters` `mesh` |
//! | 3 | `partition` `subscription` `catalog` `auth` `journal` |
//! | 4 | `shard` `door` `client` |

pub mod auth;
pub mod catalog;
pub mod client;
pub mod completion;
pub mod counters;
pub mod door;
pub mod error;
pub mod frame;
pub mod id;
pub mod journal;
pub mod limits;
pub mod memory;
pub mod mesh;
pub mod name;
pub mod partition;
pub mod pieces;
mod planted;
pub mod ring;
pub mod routing;
pub mod shard;
pub mod slab;
pub mod subscription;
mod sync;
pub mod time;
