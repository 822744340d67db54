//! A value that one thread at a time drives, and nobody waits for.
//!
//! The cast: a [`Baton`] with a value in it; whoever takes it is its [`Holder`]
//! and alone has the value; everybody else leaves a mark and goes away.
//!
//! ```text
//!                 take                          take, or leave a mark
//!        +--------------------> HELD --------------------------> HELD, MARKED
//!      FREE                      |                                     |
//!        +<----------------------+      <------------------------------+
//!               release                  release fails: the mark is taken
//!                                        off, and the holder has to look
//! ```
//!
//! Whoever has work for the value puts it where the holder looks (a ring of its
//! own), and then takes the baton or leaves a mark. A holder looks there before
//! it releases. So one of the two does the work, and never is it left:
//!
//! ```text
//!   pusher                                holder
//!   p1  put the work into the ring        h1  look into the rings
//!   p2  FREE?  take, do the work          h2  no mark?  FREE
//!       else   leave a mark                   else      take the mark off, h1
//! ```
//!
//! p2 and h2 are read-modify-writes of one word, so one of them is first. If p2
//! is, h2 finds the mark, has acquired what p1 wrote, and looks again; if h2 is,
//! p2 finds the word free. A store in place of h2 would wipe the mark out, and a
//! check before it leave a gap. No fence is needed, as only one word is involved.
//!
//! What it costs without company: two read-modify-writes of a line that only one
//! core uses, as an uncontended mutex.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crossbeam_utils::CachePadded;

use crate::planted::Planted;
#[cfg(loom)]
use crate::sync::MutPtr;
use crate::sync::{AtomicU32, Ordering, UnsafeCell};

const FREE: u32 = 0;
const HELD: u32 = 1;
const MARKED: u32 = 2;

/// A value that one thread at a time drives.
///
/// ```
/// use courser_core::ring::Baton;
///
/// let baton = Baton::new(7);
/// let holder = baton.try_take().expect("nobody holds it");
/// assert!(baton.take_or_mark().is_none(), "it is held");
/// let mut holder = holder.release().expect_err("somebody left a mark");
/// *holder += 1;
/// assert!(holder.release().is_ok());
/// assert_eq!(*baton.try_take().expect("free again"), 8);
/// ```
pub struct Baton<T> {
    /// Who takes the baton acquires what the holder before it released; who
    /// takes a mark off acquires what was put into rings before it was left.
    word: CachePadded<AtomicU32>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a Holder, of which there is one at a
// time, and the word's orderings hand it from thread to thread.
unsafe impl<T: Send> Sync for Baton<T> {}

impl<T> Baton<T> {
    /// A baton that nobody holds.
    pub fn new(value: T) -> Self {
        Self {
            word: CachePadded::new(AtomicU32::new(FREE)),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the baton if nobody holds it.
    #[inline]
    pub fn try_take(&self) -> Option<Holder<'_, T>> {
        self.word
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then(|| self.holder())
    }

    /// Takes the baton, or leaves a mark for its holder: it will look into the
    /// rings once more before it releases.
    ///
    /// Everything put there before this call is seen then.
    #[inline]
    pub fn take_or_mark(&self) -> Option<Holder<'_, T>> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let next = if word & HELD == 0 {
                HELD
            } else {
                // Even over another's mark: what this thread put into its ring is
                // published by its own write of the word.
                HELD | MARKED
            };
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return (word & HELD == 0).then(|| self.holder()),
                Err(found) => word = found,
            }
        }
    }

    /// The value, without sharing it.
    #[cfg(not(loom))]
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    fn holder(&self) -> Holder<'_, T> {
        Holder {
            baton: self,
            is_over: false,
            _value: PhantomData,
            #[cfg(loom)]
            access: Some(self.value.get_mut()),
        }
    }
}

impl<T> fmt::Debug for Baton<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Baton").finish_non_exhaustive()
    }
}

/// The one thread that has the value.
///
/// Dropped without [`Holder::release`], as when it panics, it lets go and leaves
/// the mark to the next one.
pub struct Holder<'a, T> {
    baton: &'a Baton<T>,
    /// Whether it has let go.
    is_over: bool,
    /// Shared between threads only if the value may be.
    _value: PhantomData<&'a mut T>,
    #[cfg(loom)]
    access: Option<MutPtr<T>>,
}

impl<T> Holder<'_, T> {
    /// Lets go, unless somebody left a mark since the baton was taken or the
    /// last release failed: then the mark is taken off, and whoever holds on has
    /// to look into the rings before it tries again.
    ///
    /// # Errors
    ///
    /// The holder, that is still it.
    #[inline]
    pub fn release(mut self) -> Result<(), Self> {
        #[cfg(loom)]
        drop(self.access.take());
        let word = &self.baton.word;
        // Release hands the value on as the holder left it.
        let release = Planted::BatonRelaxedRelease.relaxes(Ordering::Release);
        if Planted::BatonBlindRelease.is_awake() {
            word.store(FREE, release);
            self.is_over = true;
            return Ok(());
        }
        self.is_over = word
            .compare_exchange(HELD, FREE, release, Ordering::Relaxed)
            .is_ok();
        if self.is_over {
            return Ok(());
        }
        word.swap(HELD, Ordering::Acquire);
        #[cfg(loom)]
        {
            self.access = Some(self.baton.value.get_mut());
        }
        Err(self)
    }

    /// Whether somebody left a mark that [`Holder::release`] would find.
    #[inline]
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.baton.word.load(Ordering::Relaxed) & MARKED != 0
    }

    #[inline]
    fn value(&self) -> *mut T {
        #[cfg(not(loom))]
        return self.baton.value.get();
        #[cfg(loom)]
        {
            let access = self.access.as_ref().expect("it has not let go");
            // SAFETY: only the address is taken; who uses it says why it may.
            unsafe { std::ptr::from_mut(access.deref()) }
        }
    }
}

impl<T> Deref for Holder<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the baton lives as long as this borrows it, and there is no
        // other Holder that could reach its value.
        unsafe { &*self.value() }
    }
}

impl<T> DerefMut for Holder<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `self` is borrowed for as long.
        unsafe { &mut *self.value() }
    }
}

impl<T> Drop for Holder<'_, T> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        #[cfg(loom)]
        drop(self.access.take());
        // A mark stays, without its holder: the next one to take finds it.
        self.baton.word.fetch_and(!HELD, Ordering::Release);
    }
}

impl<T: fmt::Debug> fmt::Debug for Holder<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Holder").field(&**self).finish()
    }
}
