//! The files that a ring writes to, and what its laws ask of a write.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::{FILES_MAX, FileSlot, WRITE_PIECES_MAX, WRITES_PER_FILE_MAX};
use crate::disk::{BLOCK_SIZE, DiskFile, Way};

/// A file in each place, and how many writes are in flight on it.
#[derive(Debug, Default)]
pub(super) struct Files {
    places: [Option<Place>; FILES_MAX as usize],
}

#[derive(Debug)]
struct Place {
    file: DiskFile,
    in_flight: u32,
}

/// What of a file a write needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// Open as long as anything is in flight on the file.
    pub(super) descriptor: RawFd,
    pub(super) way: Way,
}

impl Files {
    pub(super) fn attach(&mut self, slot: FileSlot, file: DiskFile) {
        let place = &mut self.places[slot.position()];
        assert!(place.is_none(), "a place has one file at a time");
        *place = Some(Place { file, in_flight: 0 });
    }

    pub(super) fn detach(&mut self, slot: FileSlot) -> DiskFile {
        let place = self.places[slot.position()]
            .take()
            .expect("only attached files are detached");
        assert_eq!(
            place.in_flight, 0,
            "a file is detached after its last completion"
        );
        place.file
    }

    /// Counts a write as begun that keeps the laws.
    pub(super) fn begin(&mut self, slot: FileSlot, position: u64, pieces: &[&[u8]]) -> Target {
        let place = self.places[slot.position()]
            .as_mut()
            .expect("writes are begun on attached files only");
        let length = check_write(position, pieces);
        assert!(
            position + length <= place.file.size(),
            "a write lies within its file"
        );
        assert!(
            place.in_flight < WRITES_PER_FILE_MAX,
            "two writes in flight per file at most"
        );
        place.in_flight += 1;
        Target {
            descriptor: place.file.as_fd().as_raw_fd(),
            way: place.file.way(),
        }
    }

    pub(super) fn ended(&mut self, slot: FileSlot) {
        self.places[slot.position()]
            .as_mut()
            .expect("a file is kept until its last completion")
            .in_flight -= 1;
    }
}

/// Asserts what every ring demands of a write, and says how long it is.
pub(super) fn check_write(position: u64, pieces: &[&[u8]]) -> u64 {
    const BLOCK: usize = BLOCK_SIZE as usize;
    assert!(
        (1..=WRITE_PIECES_MAX).contains(&pieces.len()),
        "a write has 1 to {WRITE_PIECES_MAX} pieces"
    );
    assert!(
        position.is_multiple_of(u64::from(BLOCK_SIZE)),
        "a write begins at a multiple of {BLOCK}, not at {position}"
    );
    let mut length = 0;
    for piece in pieces {
        assert!(
            !piece.is_empty() && piece.len().is_multiple_of(BLOCK),
            "a piece of a write has whole blocks of {BLOCK} bytes, not {} bytes",
            piece.len()
        );
        assert!(
            piece.as_ptr().addr().is_multiple_of(BLOCK),
            "a piece of a write lies at a multiple of {BLOCK}"
        );
        length += piece.len() as u64;
    }
    length
}
