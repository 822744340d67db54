//! A table whose entries are named by versioned handles: a handle that outlived
//! its entry finds nothing.

use crate::id::Handle;

/// Entries of type `T`, at most a fixed number of them.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// The last entry that became vacant.
    vacant: Option<u32>,
    occupied: u32,
    limit: u32,
    /// The slot of the first entry, so that two tables can share out the handles.
    first: u32,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    Occupied(T),
    /// The entry that became vacant before this one.
    Vacant(Option<u32>),
}

impl<T> Slab<T> {
    /// An empty table for at most `limit` entries.
    ///
    /// # Panics
    ///
    /// If a handle cannot name that many.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self::starting_at(0, limit)
    }

    /// An empty table for at most `limit` entries, whose slots begin with `first`.
    ///
    /// # Panics
    ///
    /// If a handle cannot name that many.
    #[must_use]
    pub fn starting_at(first: u32, limit: u32) -> Self {
        let end = first.checked_add(limit);
        assert!(
            end.is_some_and(|end| end <= Handle::SLOTS),
            "slots end at {}",
            Handle::SLOTS
        );
        Self {
            entries: Vec::new(),
            vacant: None,
            occupied: 0,
            limit,
            first,
        }
    }

    /// Adds an entry; gives it back if the table is full.
    ///
    /// # Errors
    ///
    /// The entry, if the table is full.
    pub fn insert(&mut self, value: T) -> Result<Handle, T> {
        if self.occupied == self.limit {
            return Err(value);
        }
        self.occupied += 1;
        if let Some(slot) = self.vacant {
            let entry = &mut self.entries[slot as usize];
            if let State::Vacant(before) = entry.state {
                self.vacant = before;
            }
            entry.state = State::Occupied(value);
            return Ok(Handle::new(self.first + slot, entry.generation));
        }
        let slot = u32::try_from(self.entries.len()).expect("the limit is below 2^20");
        // Generations start at 1, so that the handle 0 names nothing.
        self.entries.push(Entry {
            generation: 1,
            state: State::Occupied(value),
        });
        Ok(Handle::new(self.first + slot, 1))
    }

    /// Takes an entry out.
    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        self.get(handle)?;
        let index = self.index(handle);
        let entry = &mut self.entries[index];
        // From the last one back to 1: with 0 the handle 0 would name the entry.
        entry.generation = entry.generation % (Handle::GENERATIONS - 1) + 1;
        let slot = u32::try_from(index).expect("a slot is below 2^20");
        let state = core::mem::replace(&mut entry.state, State::Vacant(self.vacant));
        self.vacant = Some(slot);
        self.occupied -= 1;
        match state {
            State::Occupied(value) => Some(value),
            State::Vacant(_) => None,
        }
    }

    /// The entry that the handle names.
    #[inline]
    #[must_use]
    pub fn get(&self, handle: Handle) -> Option<&T> {
        match self.entries.get(self.index(handle)) {
            Some(Entry {
                generation,
                state: State::Occupied(value),
            }) if *generation == handle.generation() => Some(value),
            _ => None,
        }
    }

    /// The entry that the handle names.
    #[inline]
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let index = self.index(handle);
        match self.entries.get_mut(index) {
            Some(Entry {
                generation,
                state: State::Occupied(value),
            }) if *generation == handle.generation() => Some(value),
            _ => None,
        }
    }

    /// All entries with their handles.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.entries
            .iter()
            .zip(self.first..)
            .filter_map(|(entry, slot)| match &entry.state {
                State::Occupied(value) => Some((Handle::new(slot, entry.generation), value)),
                State::Vacant(_) => None,
            })
    }

    /// The entries from a place of the table on, each with its place and its handle.
    pub fn iter_from(&self, place: usize) -> impl Iterator<Item = (usize, (Handle, &T))> {
        let from = place.min(self.entries.len());
        self.entries[from..]
            .iter()
            .zip(from..)
            .filter_map(|(entry, place)| match &entry.state {
                State::Occupied(value) => {
                    let slot = self.first + u32::try_from(place).ok()?;
                    Some((place, (Handle::new(slot, entry.generation), value)))
                }
                State::Vacant(_) => None,
            })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.occupied as usize
    }

    #[inline]
    fn index(&self, handle: Handle) -> usize {
        handle.slot().wrapping_sub(self.first as usize)
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stale_handle_finds_nothing_though_its_slot_is_taken_again() {
        let mut slab = Slab::new(4);
        let first = slab.insert('a').unwrap();
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b').unwrap();
        assert_eq!(first.slot(), second.slot());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
        assert_eq!(slab.get(Handle(0)), None);
    }

    /// A generation of 0 came round after 4,095 tenants of the first slot, and
    /// then the handle 0, which stands for none, named an entry.
    #[test]
    fn no_tenant_of_a_slot_however_late_is_named_by_the_handle_zero() {
        let mut slab = Slab::new(1);
        let mut before = Handle(0);
        for tenant in 0..3 * Handle::GENERATIONS {
            let handle = slab.insert(tenant).unwrap();
            assert_ne!(handle.generation(), 0);
            assert_eq!(slab.get(Handle(0)), None);
            assert_eq!(slab.get(before), None);
            assert_eq!(slab.remove(handle), Some(tenant));
            before = handle;
        }
    }

    #[test]
    fn two_tables_that_share_out_the_slots_never_know_each_others_handles() {
        let (mut low, mut high) = (Slab::new(2), Slab::starting_at(2, 2));
        let handles = [low.insert(0).unwrap(), low.insert(0).unwrap()];
        let others = [high.insert(1).unwrap(), high.insert(1).unwrap()];
        assert!(handles.iter().all(|handle| high.get(*handle).is_none()));
        assert!(others.iter().all(|handle| low.get(*handle).is_none()));
        assert_eq!(
            high.iter().map(|(handle, _)| handle).collect::<Vec<_>>(),
            others
        );
        assert_eq!(high.remove(others[0]), Some(1));
    }

    #[test]
    fn a_full_table_gives_the_value_back_and_takes_it_once_there_is_room() {
        let mut slab = Slab::new(2);
        let a = slab.insert(1).unwrap();
        slab.insert(2).unwrap();
        assert_eq!(slab.insert(3), Err(3));
        slab.remove(a);
        assert!(slab.insert(3).is_ok());
        assert_eq!(slab.iter().map(|(_, value)| *value).sum::<i32>(), 5);
        assert_eq!(slab.len(), 2);
    }
}
