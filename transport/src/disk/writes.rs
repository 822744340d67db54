//! What becomes of a durable write between the ring's facts and the shard's.
//!
//! A shard asks for a write once and is told once: it is durable, or the device failed.
//! Below, a ring may take less than it was given; what is left is begun again from the
//! first block that was not taken whole. Whatever fails is told as it is and never begun
//! again: after a failed flush nobody knows what of it the device has, and a second one
//! that succeeds says nothing about the first.
//!
//! ```text
//!   begin -> Rest -> Ring::write ... Completion::Written -> written -+-> Durable, Failed
//!              ^                                                     |
//!              +------------------------- Rest <---------------------+
//! ```
//!
//! Invariant: a token has at most one write in flight in the ring, and is told once.

use super::BLOCK_SIZE;
use crate::planted::{self, Fault};
use crate::ring::{FileSlot, WRITE_PIECES_MAX};
use crate::sys::Errno;

/// So many times in a row a write may take less than a block before it has failed. None is
/// seen to do so twice; without a bound one that does would keep a shard busy for ever.
const VAIN_MAX: u32 = 256;

/// The writes of one shard that were not told yet.
#[derive(Debug, Default)]
pub struct Writes {
    /// A few; in no order.
    begun: Vec<Begun>,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    rest: Rest,
    length: u32,
    /// Times in a row that no whole block was taken.
    vain: u32,
}

/// What of a write is to be begun in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// Whose it is.
    pub token: u64,
    /// The file.
    pub file: FileSlot,
    /// Where in the file the whole write begins.
    pub position: u64,
    /// Bytes from its beginning that are durable; whole blocks.
    pub skip: u32,
}

/// What a completion means for its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All of it is on the device.
    Durable {
        /// Whose it was.
        token: u64,
    },
    /// The device failed. What it has of the bytes, nobody knows.
    Failed {
        /// Whose it was.
        token: u64,
        /// Why.
        errno: Errno,
    },
    /// Something is left, and is to be begun with the same pieces.
    Short(Rest),
}

impl Writes {
    /// Takes a write of so many bytes into the books; what to begin.
    pub fn begin(&mut self, file: FileSlot, position: u64, length: u32, token: u64) -> Rest {
        debug_assert!(
            !self.begun.iter().any(|begun| begun.rest.token == token),
            "a token has one write at a time"
        );
        let rest = Rest {
            token,
            file,
            position,
            skip: 0,
        };
        self.begun.push(Begun {
            rest,
            length,
            vain: 0,
        });
        rest
    }

    /// Takes a [`crate::ring::Completion::Written`]. `None` for a token that has no write.
    pub fn written(&mut self, token: u64, result: Result<u32, Errno>) -> Option<Progress> {
        let place = self
            .begun
            .iter()
            .position(|begun| begun.rest.token == token)?;
        let begun = &mut self.begun[place];
        let taken = match result {
            Ok(_) if planted::is(Fault::ShortWriteIsWhole) => begun.length,
            Ok(taken) => taken,
            Err(_) if planted::is(Fault::FailedWriteIsRetried) => 0,
            Err(errno) => {
                self.begun.swap_remove(place);
                return Some(Progress::Failed { token, errno });
            }
        };
        // The last block that was begun is written again: its bytes are the same.
        let whole = taken - taken % BLOCK_SIZE;
        begun.rest.skip = begun.rest.skip.saturating_add(whole);
        begun.vain = if whole == 0 { begun.vain + 1 } else { 0 };
        if begun.rest.skip >= begun.length {
            self.begun.swap_remove(place);
            return Some(Progress::Durable { token });
        }
        if begun.vain > VAIN_MAX {
            self.begun.swap_remove(place);
            let errno = Errno(libc::EIO);
            return Some(Progress::Failed { token, errno });
        }
        Some(Progress::Short(begun.rest))
    }

    /// How many were not told yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.begun.len()
    }
}

impl Rest {
    /// Where in the file it begins.
    #[must_use]
    pub fn from(self) -> u64 {
        self.position + u64::from(self.skip)
    }

    /// What of the pieces of the whole write belongs to it.
    pub(crate) fn of<'a, 'b>(
        self,
        pieces: &[&'a [u8]],
        room: &'b mut [&'a [u8]; WRITE_PIECES_MAX],
    ) -> &'b [&'a [u8]] {
        assert!(pieces.len() <= WRITE_PIECES_MAX, "a write has few pieces");
        let mut skip = self.skip as usize;
        let mut count = 0;
        for piece in pieces {
            let (_, rest) = piece.split_at(skip.min(piece.len()));
            skip = skip.saturating_sub(piece.len());
            if !rest.is_empty() {
                room[count] = rest;
                count += 1;
            }
        }
        &room[..count]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const FILE: FileSlot = FileSlot(3);

    fn rest(skip: u32) -> Rest {
        Rest {
            token: 7,
            file: FILE,
            position: 8192,
            skip,
        }
    }

    fn durable(token: u64) -> Option<Progress> {
        Some(Progress::Durable { token })
    }

    fn begun(length: u32) -> Writes {
        let mut writes = Writes::default();
        assert_eq!(writes.begin(FILE, 8192, length, 7), rest(0));
        writes
    }

    #[test]
    fn a_whole_write_is_durable() {
        let mut writes = begun(12_288);
        assert_eq!(writes.written(7, Ok(12_288)), durable(7));
        assert_eq!(writes.in_flight(), 0);
        assert_eq!(writes.written(7, Ok(12_288)), None);
    }

    #[test]
    fn a_short_write_goes_on_with_the_first_block_that_is_not_whole() {
        let mut writes = begun(12_288);
        let short = |skip| Some(Progress::Short(rest(skip)));
        assert_eq!(writes.written(7, Ok(512)), short(0));
        assert_eq!(writes.written(7, Ok(4096)), short(4096));
        assert_eq!(writes.written(7, Ok(4095)), short(4096));
        assert_eq!(writes.written(7, Ok(7680)), short(8192));
        assert_eq!(rest(8192).from(), 16_384);
        assert_eq!(writes.written(7, Ok(4096)), durable(7));
    }

    #[test]
    fn a_failure_is_told_once_and_others_go_on() {
        let mut writes = begun(4096);
        writes.begin(FILE, 16_384, 4096, 8);
        let errno = Errno(libc::EIO);
        assert_eq!(
            writes.written(7, Err(errno)),
            Some(Progress::Failed { token: 7, errno })
        );
        assert_eq!(writes.in_flight(), 1);
        assert_eq!(writes.written(8, Ok(4096)), durable(8));
    }

    #[test]
    fn a_write_that_makes_no_way_has_failed() {
        let mut writes = begun(8192);
        for _ in 0..VAIN_MAX {
            assert_eq!(writes.written(7, Ok(0)), Some(Progress::Short(rest(0))));
        }
        assert!(matches!(
            writes.written(7, Ok(100)),
            Some(Progress::Failed { .. })
        ));
        assert_eq!(writes.in_flight(), 0);
    }

    #[test]
    fn what_is_left_of_pieces_begins_where_the_device_stopped() {
        let bytes: Vec<u8> = (0..5).flat_map(|block| [block; 4096]).collect();
        let pieces = [&bytes[..8192], &bytes[8192..12_288], &bytes[12_288..]];
        for blocks in 0..5 {
            let mut room = [&[][..]; WRITE_PIECES_MAX];
            let left = rest(blocks * 4096).of(&pieces, &mut room);
            assert_eq!(left.concat(), bytes[blocks as usize * 4096..]);
            assert!(left.iter().all(|piece| !piece.is_empty()));
        }
    }
}
