//! The primitives shared by two threads: the standard library's, or loom's under `cfg(loom)`.
//!
//! Code that synchronises imports them from here and from nowhere else, so
//! that the loom models explore the code that ships and not a copy of it.

#[cfg(not(loom))]
pub(crate) use std::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

#[cfg(loom)]
pub(crate) use loom::{
    cell::{ConstPtr, MutPtr, UnsafeCell},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};
