//! The ends of Courser that touch the kernel.
//!
//! | module | what it is |
//! |---|---|
//! | [`ring`] | the seam between driver and kernel, over io_uring and over epoll |
//! | [`doorbell`] | waking a thread that sleeps in its ring |
//! | [`affinity`] | which processors the shards run on |
//! | [`idle`] | whether to spin or to sleep when there is nothing to do |
//! | [`clock`] | one reading of both clocks for one turn |
//! | [`sys`] | the few system calls that no library offers |

pub mod affinity;
pub mod clock;
#[cfg(test)]
mod connection;
pub mod doorbell;
pub mod idle;
pub mod ring;
pub mod sys;
