//! The in-process links of one shard, as its worker sees them.
//!
//! ```text
//!   introduced? no: its bytes are kept until the hello is whole
//!               yes: what it writes is received, what the shard has for it is copied
//!   parting:    another shard has it      leaving: gone once the last word is copied
//! ```
//!
//! Invariants: a link of the shard and an introduced guest belong together one to one.

use courser_core::id::Handle;
use courser_core::limits;
use courser_core::time::Monotonic;

use crate::in_process::Guest;

/// Which guest: its place, until the place has another tenant.
pub(crate) type Place = usize;

/// One guest and what is known of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) guest: Guest,
    pub(crate) phase: Phase,
    /// The shard has something for it that was not copied.
    pub(crate) wants: bool,
    /// It leaves once everything is copied, and at that time at the latest.
    pub(crate) leaves_by: Option<Monotonic>,
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// What came of its hello.
    Strange(Vec<u8>),
    /// A link of the shard.
    Inside(Handle),
}

impl Entry {
    pub(crate) fn link(&self) -> Option<Handle> {
        match self.phase {
            Phase::Inside(link) => Some(link),
            Phase::Strange(_) => None,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    entries: Vec<Option<Entry>>,
    /// By a link's place in the shard's table, in which place its guest is.
    places: Vec<Option<(Handle, Place)>>,
    count: usize,
}

impl Guests {
    /// One that is not introduced.
    pub(crate) fn insert(&mut self, guest: Guest) -> Place {
        let entry = Entry {
            guest,
            phase: Phase::Strange(Vec::new()),
            wants: false,
            leaves_by: None,
        };
        self.count += 1;
        let place = self.entries.iter().position(Option::is_none);
        let place = place.unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[place] = Some(entry);
        place
    }

    /// A guest became a link of the shard.
    pub(crate) fn introduced(&mut self, place: Place, link: Handle) {
        if let Some(entry) = self.get_mut(place) {
            entry.phase = Phase::Inside(link);
            if self.places.len() <= link.slot() {
                self.places.resize(link.slot() + 1, None);
            }
            self.places[link.slot()] = Some((link, place));
        }
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<Entry> {
        let entry = self.entries.get_mut(place)?.take()?;
        self.count -= 1;
        if let Some(link) = entry.link() {
            self.places[link.slot()] = None;
        }
        Some(entry)
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.entries.get_mut(place)?.as_mut()
    }

    /// Where the guest of a link is.
    #[inline]
    pub(crate) fn place(&self, link: Handle) -> Option<Place> {
        let (tenant, place) = (*self.places.get(link.slot())?)?;
        (tenant == link).then_some(place)
    }

    /// One more than the last place that may be taken.
    #[inline]
    pub(crate) fn end(&self) -> Place {
        self.entries.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether one of them has written something, or is gone.
    #[inline]
    pub(crate) fn have_news(&self) -> bool {
        let mut present = self.entries.iter().flatten();
        present.any(|entry| entry.guest.has_news())
    }

    /// Whether there is nothing to be done for any of them: the last look before a sleep.
    pub(crate) fn are_quiet(&mut self) -> bool {
        let mut present = self.entries.iter_mut().flatten();
        !present.any(|entry| entry.guest.has_news() || entry.wants && entry.guest.has_room())
    }

    /// Somebody who has not said who it is.
    pub(crate) fn stranger(&self) -> Option<Place> {
        let is_strange = |entry: &Entry| entry.link().is_none();
        let of = |entry: &Option<Entry>| entry.as_ref().is_some_and(is_strange);
        self.entries.iter().position(of)
    }

    /// The shard has something for it.
    #[inline]
    pub(crate) fn want(&mut self, place: Place) {
        if let Some(entry) = self.get_mut(place) {
            entry.wants = true;
        }
    }

    /// The link ends once what the shard has for it is copied, or once its application
    /// has not looked for long.
    pub(crate) fn leave(&mut self, now: Monotonic, place: Place) {
        if let Some(entry) = self.get_mut(place) {
            entry.wants = true;
            entry
                .leaves_by
                .get_or_insert(now.after(limits::STALL_TIMEOUT));
        }
    }

    /// Whose time to leave has come.
    pub(crate) fn overdue(&self, now: Monotonic) -> Option<Place> {
        let is_overdue = |entry: &Entry| entry.leaves_by.is_some_and(|leaves_by| leaves_by <= now);
        let of = |entry: &Option<Entry>| entry.as_ref().is_some_and(is_overdue);
        self.entries.iter().position(of)
    }

    /// When the first of those who leave has to be gone.
    pub(crate) fn next_expiry(&self) -> Option<Monotonic> {
        let present = self.entries.iter().flatten();
        present.filter_map(|entry| entry.leaves_by).min()
    }
}
