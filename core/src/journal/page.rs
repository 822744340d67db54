//! Page files: messages that a checkpoint names in place of having them.
//!
//! ```text
//!  page file    +--------+--------+--------+--------+- -
//!               | page 0 | page 1          | page 3 |       frames, one behind the other
//!               +--------+--------+--------+--------+- -
//!                        `- a checkpoint's entry: run, page, size, sum, offsets
//! ```
//!
//! A page has no header: what is to be found there says the entry that names it. So nothing
//! of a page file is believed without a checkpoint, and what it names is there as a whole;
//! whatever is wrong with it is damage.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use core::fmt;

use super::advice;
use super::entry::{Entries, Entry, Malformed, PageImage, Place};
use crate::frame::checksum;
use crate::id::{PageNumber, Run};
use crate::limits::{PAGE_SIZE, PAGES_PER_FILE};

/// Which page file of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageFile {
    /// The run that writes it, and no other.
    pub run: Run,
    /// Its pages are those from this number times [`PAGES_PER_FILE`] on.
    pub number: u32,
}

impl PageFile {
    /// That of a page of a run.
    #[must_use]
    pub const fn of(run: Run, page: PageNumber) -> Self {
        let number = page.0.div_euclid(PAGES_PER_FILE);
        Self { run, number }
    }

    /// The file with this name, if it is the name of a page file.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (run, number) = name.strip_suffix(".pages")?.split_once('-')?;
        let file = Self {
            run: Run(run.parse().ok()?),
            number: number.parse().ok()?,
        };
        (file.run.0 > 0 && file.to_string() == name).then_some(file)
    }
}

/// Its name.
impl fmt::Display for PageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}-{:06}.pages", self.run.0, self.number)
    }
}

/// Where a page begins in its file, in bytes.
#[must_use]
pub fn position(page: PageNumber) -> u64 {
    u64::from(page.0.rem_euclid(PAGES_PER_FILE)).saturating_mul(PAGE_SIZE.into())
}

/// A page that is not as its writer left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which file.
    pub file: PageFile,
    /// Where in it, in bytes.
    pub position: u64,
    /// What is wrong there.
    pub what: Wrong,
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Its file is not there.
    Missing,
    /// Its file ends before it does.
    Short {
        /// Bytes that belong there.
        size: u32,
    },
    /// It has another checksum than the checkpoint says.
    Sum {
        /// Bytes that belong there.
        size: u32,
    },
    /// It is no sequence of messages.
    Malformed {
        /// Why not.
        malformed: Malformed,
    },
    /// Its messages are not those that the checkpoint says.
    Strange,
}

impl Damage {
    /// What to do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self.what {
            Wrong::Missing => advice::MISSING,
            Wrong::Malformed {
                malformed: Malformed::Newer { .. },
            } => advice::NEWER,
            Wrong::Short { .. } | Wrong::Sum { .. } | Wrong::Malformed { .. } | Wrong::Strange => {
                advice::DAMAGED
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            position,
            what,
        } = self;
        write!(f, "{file} at {position}: ")?;
        match what {
            Wrong::Missing => f.write_str("the file is missing, and the checkpoint names it"),
            Wrong::Short { size } => {
                write!(
                    f,
                    "{size} bytes of messages belong there, and the file ends"
                )
            }
            Wrong::Sum { size } => write!(
                f,
                "the checksum of {size} bytes of messages is not that of the checkpoint"
            ),
            Wrong::Malformed { malformed } => write!(f, "{malformed}"),
            Wrong::Strange => f.write_str("other messages are there than the checkpoint names"),
        }
    }
}

impl std::error::Error for Damage {}

impl PageImage {
    /// The file that it lies in.
    #[must_use]
    pub const fn file(&self) -> PageFile {
        PageFile::of(self.run, self.page)
    }

    /// Where it begins there, in bytes.
    #[must_use]
    pub fn position(&self) -> u64 {
        position(self.page)
    }

    /// The messages that `bytes` are, each an entry, if they are those that it says, of that
    /// partition. Looks at every byte once, and at the headers twice.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn messages<'a>(
        &self,
        place: Place,
        bytes: &'a [u8],
    ) -> Result<impl Iterator<Item = Entry<'a>> + use<'a>, Wrong> {
        let size = self.size;
        if u32::try_from(bytes.len()) != Ok(size) {
            return Err(Wrong::Short { size });
        }
        if checksum::extend(0, bytes) != self.sum {
            return Err(Wrong::Sum { size });
        }
        let mut next = self.first.0;
        for entry in Entries::new(bytes, self.count) {
            let Entry::Message(message) =
                entry.map_err(|malformed| Wrong::Malformed { malformed })?
            else {
                return Err(Wrong::Strange);
            };
            let header = message.header;
            let is_meant = header.handle.get() == place.destination.0
                && header.partition.get() == place.partition.0
                && header.offset.get() == next;
            if !is_meant {
                return Err(Wrong::Strange);
            }
            next = next.saturating_add(1);
        }
        Ok(Entries::new(bytes, self.count).map_while(Result::ok))
    }
}
