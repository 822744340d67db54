//! Subscriptions: who gets which message of a partition, and what is settled.
//!
//! A queue has one subscription that its consumers share; each subscription of
//! a topic is exclusive to one consumer at a time. A subscription has one
//! [`Part`] per partition, which owns the cursor and what is unsettled there.

mod part;

pub use part::{AckOutcome, ENTRY_SIZE, Part};

#[cfg(test)]
mod tests;
