//! Subscriptions: who gets which message of a partition, and what is settled.
//!
//! ```text
//!   Membership ── version, members ──> Part  of partition 0
//!   (one for a subscription)      └──> Part  of partition 1
//! ```
//!
//! A queue has one subscription that its consumers share; a topic has any number,
//! each of the [`Kind`] that it was created with. [`Membership`] says who consumes it
//! and what of it is whose; a [`Part`] per partition owns the cursor and what is
//! unsettled there, and takes the membership as a fact.

pub mod key_ring;
pub mod membership;
mod part;

pub use membership::{Kind, Membership};
pub use part::{AckOutcome, Claim, Delivered, ENTRY_SIZE, KEYED_ENTRY_SIZE, Part};

#[cfg(test)]
mod tests;
