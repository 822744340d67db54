//! What an administrator may ask a shard.
//!
//! | module | what is asked |
//! |---|---|
//! | `stats` | the counters, and what there is of each destination |
//! | `list` | what there is, a page at a time |
//! | `change` | to have something otherwise: destinations, subscriptions, who is attached |
//!
//! A shard answers for itself alone; who asks puts the answers of all together.

mod change;
mod list;
mod stats;

pub(super) use stats::Report;

use crate::limits;

/// Bytes of rows in one frame: a few fit the room that answers have on a link.
const ROWS_SIZE_MAX: usize = limits::CONTROL_SIZE_MAX as usize / 4;
