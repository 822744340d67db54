//! Which pages of the page files are in use, and from when on one may be used again.
//!
//! ```text
//!   free --take--> lent --give--> free             no checkpoint may name it
//!                    `----give--> resting --> free  one that began later is in its place
//! ```
//!
//! A checkpoint names the pages in which messages lie, so what it names has to stay until
//! the next one is in its place: pages that came back rest until one is there that was begun
//! behind that. What was lent and came back between two checkpoints none of them names.
//!
//! Invariants: `used` counts the bits that are set; an extent lies in one file.

use crate::id::PageNumber;
use crate::limits::PAGES_PER_FILE;
use crate::memory::Extent;

const PER_FILE: usize = PAGES_PER_FILE as usize;
const PER_WORD: usize = u64::BITS as usize;
const WORDS: usize = PER_FILE / PER_WORD;

/// The pages of one file.
#[derive(Clone, Debug)]
struct File {
    taken: [u64; WORDS],
    used: usize,
    /// Whether it was ever lent from since it was made.
    is_there: bool,
}

/// All pages of one shard.
#[derive(Debug)]
pub(super) struct Space {
    files: Vec<File>,
    most: usize,
    used: usize,
    /// The first file that may have a page free.
    from: usize,
    /// Checkpoints that were begun, from 1, so that a mark of 0 is before all.
    begun: u64,
    /// Whether the last of them is being written.
    is_open: bool,
    /// What came back and may be named, and how many had been begun by then.
    resting: Vec<(u64, Extent)>,
    rested: usize,
    /// There were too few pages since the last checkpoint was begun.
    lacks: bool,
    removed: Vec<u32>,
}

impl Space {
    pub(super) fn new(most: u32) -> Self {
        Self {
            files: Vec::new(),
            most: most as usize,
            used: 0,
            from: 0,
            begun: 1,
            is_open: false,
            resting: Vec::new(),
            rested: 0,
            lacks: false,
            removed: Vec::new(),
        }
    }

    /// Lends so many pages one behind the other, if there are.
    pub(super) fn take(&mut self, pages: usize) -> Option<Extent> {
        if pages > PER_FILE || self.used + pages > self.most {
            self.lacks = true;
            return None;
        }
        let from = if pages == 1 { self.from } else { 0 };
        let (file, place) = (from..=self.files.len()).find_map(|index| {
            if index == self.files.len() {
                self.files.push(File::new());
            }
            let place = self.files[index].find(pages)?;
            Some((index, place))
        })?;
        if pages == 1 {
            self.from = file;
        }
        self.files[file].set(place, pages, true);
        self.files[file].is_there = true;
        self.used += pages;
        let page = u32::try_from(file * PER_FILE + place).ok()?;
        Some(Extent {
            page: PageNumber(page),
            pages: u32::try_from(pages).ok()?,
            // The one that is being written may name it.
            since: if self.is_open { 0 } else { self.begun },
        })
    }

    /// Takes an extent back.
    pub(super) fn give(&mut self, extent: Extent) {
        if extent.since == self.begun && !self.is_open {
            self.free(extent);
        } else {
            self.rested += extent.pages as usize;
            self.resting.push((self.begun, extent));
        }
    }

    fn free(&mut self, extent: Extent) {
        let (page, pages) = (extent.page.0 as usize, extent.pages as usize);
        let index = page / PER_FILE;
        let file = &mut self.files[index];
        file.set(page % PER_FILE, pages, false);
        self.used -= pages;
        self.from = self.from.min(index);
        if file.used == 0 && core::mem::take(&mut file.is_there) {
            self.removed.push(u32::try_from(index).unwrap_or(u32::MAX));
        }
    }

    /// A file in which nothing is needed, told once.
    pub(super) fn removed(&mut self) -> Option<u32> {
        let file = self.removed.pop()?;
        // It may be in use again.
        match self.files[file as usize].is_there {
            true => self.removed(),
            false => Some(file),
        }
    }

    /// A checkpoint was begun.
    pub(super) fn begun(&mut self) {
        self.lacks = false;
        self.begun += 1;
        self.is_open = true;
    }

    /// The checkpoint that was begun last is in its place, or was given up.
    pub(super) fn ended(&mut self, is_placed: bool) {
        self.is_open = false;
        if is_placed {
            let begun = self.begun;
            let is_over = |(mark, _): &(u64, Extent)| *mark < begun;
            let over: Vec<(u64, Extent)> = self.resting.extract_if(.., |it| is_over(it)).collect();
            for (_, extent) in over {
                self.rested -= extent.pages as usize;
                self.free(extent);
            }
        }
    }

    /// Whether a checkpoint would let so many pages go that one is to be begun for it.
    pub(super) fn wants_checkpoint(&self) -> bool {
        let much = (self.used / 2).max(PER_FILE).min(self.most / 2);
        !self.is_open && (self.rested > much || self.lacks && self.rested > 0)
    }

    /// Pages that are in use, or rest.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

impl File {
    fn new() -> Self {
        Self {
            taken: [0; WORDS],
            used: 0,
            is_there: false,
        }
    }

    /// The first of so many free pages one behind the other.
    fn find(&self, pages: usize) -> Option<usize> {
        if self.used + pages > PER_FILE {
            return None;
        }
        if pages == 1 {
            let word = self.taken.iter().position(|word| *word != u64::MAX)?;
            return Some(word * PER_WORD + self.taken[word].trailing_ones() as usize);
        }
        let mut free = 0;
        for place in 0..PER_FILE {
            let is_taken = self.taken[place / PER_WORD] >> (place % PER_WORD) & 1 == 1;
            free = if is_taken { 0 } else { free + 1 };
            if free == pages {
                return Some(place + 1 - pages);
            }
        }
        None
    }

    fn set(&mut self, place: usize, pages: usize, is_taken: bool) {
        for place in place..place + pages {
            let bit = 1 << (place % PER_WORD);
            let word = &mut self.taken[place / PER_WORD];
            assert_eq!(*word & bit == 0, is_taken, "a page is lent once");
            *word ^= bit;
        }
        match is_taken {
            true => self.used += pages,
            false => self.used -= pages,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn space() -> Space {
        Space::new(4 * PAGES_PER_FILE)
    }

    #[test]
    fn pages_are_lent_from_the_front_and_no_more_than_there_may_be() {
        let mut space = Space::new(PAGES_PER_FILE + 3);
        let lent: Vec<Extent> = core::iter::from_fn(|| space.take(1)).collect();
        assert_eq!(lent.len(), PER_FILE + 3);
        assert!(lent.iter().zip(0..).all(|(it, page)| it.page.0 == page));
        space.give(lent[7]);
        space.give(lent[2]);
        assert_eq!(space.take(1).unwrap().page, PageNumber(2));
        assert_eq!(space.take(1).unwrap().page, PageNumber(7));
        assert_eq!(space.take(1), None);
    }

    #[test]
    fn an_extent_lies_in_one_file() {
        let mut space = space();
        for _ in 0..PER_FILE - 2 {
            space.take(1).unwrap();
        }
        assert_eq!(space.take(3).unwrap().page, PageNumber(PAGES_PER_FILE));
        assert_eq!(space.take(2).unwrap().page, PageNumber(PAGES_PER_FILE - 2));
        assert_eq!(space.take(1).unwrap().page, PageNumber(PAGES_PER_FILE + 3));
    }

    #[test]
    fn a_file_without_a_page_in_use_is_removed_unless_it_is_used_again() {
        let mut space = space();
        let one = space.take(1).unwrap();
        space.give(one);
        assert_eq!((space.removed(), space.removed()), (Some(0), None));
        let one = space.take(1).unwrap();
        space.give(one);
        space.take(1).unwrap();
        assert_eq!(space.removed(), None);
    }

    #[test]
    fn what_a_checkpoint_may_name_rests_until_the_next_is_in_its_place() {
        let mut space = space();
        let before = space.take(1).unwrap();
        space.begun();
        let during = space.take(1).unwrap();
        space.give(before);
        space.ended(true);
        // That one may name it.
        assert_eq!(space.used(), 2);
        let between = space.take(1).unwrap();
        assert_eq!(between.page, PageNumber(2));
        space.give(during);
        space.give(between);
        assert_eq!(space.used(), 2, "no checkpoint names what came between two");
        space.begun();
        space.ended(false);
        assert_eq!(space.used(), 2, "one that was given up changes nothing");
        space.begun();
        space.ended(true);
        assert_eq!((space.used(), space.removed()), (0, Some(0)));
    }
}
