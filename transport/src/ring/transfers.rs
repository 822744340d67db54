//! Reads and writes of many blocks at the same time, for a thread that may wait for them.
//!
//! A device does a few at the same time sooner than one after the other. So a batch is handed
//! over in one system call, to an `io_uring` of its own, and is over when all of it is. A
//! shard's ring has none of this: to begin a direct read or write there takes the kernel tens
//! of microseconds, in which the shard would do nothing else.
//!
//! Without `io_uring` the transfers of a batch are made one after the other, by plain calls.
//! So is each that the ring did not do whole; the plain call has the last word on it.
//!
//! Invariant: the kernel knows of the places' memory only while [`Transfers::run`] runs.
//! `in_flight` is not zero if that ended otherwise; then memory and ring are never given back.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::{io, thread};

use courser_core::limits::PAGE_SIZE;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

use crate::mapping::Mapping;
use crate::sys::Errno;

/// Transfers of a batch at most.
pub(crate) const PLACES: usize = 8;

/// Bytes of a transfer at most.
pub(crate) const PLACE_SIZE: usize = PAGE_SIZE as usize;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file to the place.
    Read,
    /// From the place to the file.
    Write,
}

/// Bytes between a file and the front of a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer<'a> {
    /// The file.
    pub(crate) file: &'a File,
    /// Where in it.
    pub(crate) position: u64,
    /// How many.
    pub(crate) length: usize,
    /// Which way.
    pub(crate) direction: Direction,
}

/// Memory for a batch of transfers, and what makes them.
pub struct Transfers {
    memory: ManuallyDrop<Mapping>,
    ring: ManuallyDrop<Option<IoUring>>,
    in_flight: usize,
}

impl Transfers {
    /// By a ring of their own, or one by one where the kernel gives none.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory.
    pub fn at_once() -> Result<Self, Errno> {
        let places = u32::try_from(PLACES).unwrap_or(u32::MAX);
        Self::over(IoUring::new(places).and_then(entered).ok())
    }

    /// One by one.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory.
    pub fn one_by_one() -> Result<Self, Errno> {
        Self::over(None)
    }

    fn over(ring: Option<IoUring>) -> Result<Self, Errno> {
        Ok(Self {
            memory: ManuallyDrop::new(Mapping::map(PLACES * PLACE_SIZE)?),
            ring: ManuallyDrop::new(ring),
            in_flight: 0,
        })
    }

    /// The memory of one place, at a multiple of the block.
    pub(crate) fn place(&mut self, place: usize) -> &mut [u8] {
        assert!(place < PLACES, "a place of these");
        assert_eq!(self.in_flight, 0, "nobody else writes there");
        // SAFETY: the place lies within the mapping, which is there and initialised, zero at
        // first. The kernel knows nothing of it, since nothing is in flight.
        unsafe {
            let start = self.memory.start().add(place * PLACE_SIZE);
            std::slice::from_raw_parts_mut(start.as_ptr(), PLACE_SIZE)
        }
    }

    /// Makes all transfers, in any order: the first between its file and place 0, and so on.
    /// What became of each.
    ///
    /// # Panics
    ///
    /// If there are more than [`PLACES`], if one is longer than [`PLACE_SIZE`], or if the
    /// kernel refuses to go on with what it has begun.
    pub(crate) fn run(&mut self, batch: &[Transfer<'_>]) -> Vec<io::Result<()>> {
        assert!(batch.len() <= PLACES, "each transfer has a place");
        let fits = |transfer: &Transfer<'_>| transfer.length <= PLACE_SIZE;
        assert!(batch.iter().all(fits), "a transfer fits its place");
        let taken = self.run_at_once(batch);
        let each = batch.iter().enumerate();
        each.map(|(place, transfer)| match taken[place] {
            Some(length) if length == transfer.length => Ok(()),
            _ => self.run_plainly(place, transfer),
        })
        .collect()
    }

    /// How many bytes the ring has transferred of each, as far as it did.
    fn run_at_once(&mut self, batch: &[Transfer<'_>]) -> [Option<usize>; PLACES] {
        let mut taken = [None; PLACES];
        let Some(ring) = self.ring.as_mut() else {
            return taken;
        };
        for (place, transfer) in batch.iter().enumerate() {
            let file = Fd(transfer.file.as_raw_fd());
            let length = u32::try_from(transfer.length).unwrap_or(u32::MAX);
            // SAFETY: a place of the mapping (there are no more transfers than places).
            let start = unsafe { self.memory.start().add(place * PLACE_SIZE) }.as_ptr();
            let position = transfer.position;
            let entry = match transfer.direction {
                Direction::Read => opcode::Read::new(file, start, length)
                    .offset(position)
                    .build(),
                Direction::Write => opcode::Write::new(file, start, length)
                    .offset(position)
                    .build(),
            };
            let entry = entry.user_data(place as u64);
            // SAFETY: the place is as long as the transfer at least (`run` looked), nobody
            // else has it while this value is borrowed, and it is kept until the last
            // completion, or for good. So is the file open, which the batch borrows.
            let pushed = unsafe { ring.submission().push(&entry) };
            pushed.expect("there are as many entries as places, and none is left of before");
            self.in_flight += 1;
        }
        while self.in_flight > 0 {
            if let Err(error) = ring.submit_and_wait(self.in_flight) {
                match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => thread::yield_now(),
                    _ => panic!("io_uring_enter, while blocks are read or written: {error}"),
                }
            }
            for completion in ring.completion() {
                self.in_flight -= 1;
                let place = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
                taken[place] = usize::try_from(completion.result()).ok();
            }
        }
        taken
    }

    fn run_plainly(&mut self, place: usize, transfer: &Transfer<'_>) -> io::Result<()> {
        let bytes = &mut self.place(place)[..transfer.length];
        match transfer.direction {
            Direction::Read => transfer.file.read_exact_at(bytes, transfer.position),
            Direction::Write => transfer.file.write_all_at(bytes, transfer.position),
        }
    }

    /// Whether batches go through a ring.
    #[cfg(test)]
    pub(crate) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }
}

/// The ring, if it may be entered as well as made.
fn entered(mut ring: IoUring) -> io::Result<IoUring> {
    // SAFETY: it names no memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.expect("nothing else is there");
    ring.submit_and_wait(1)?;
    assert_eq!(ring.completion().count(), 1, "it is over");
    Ok(ring)
}

impl Drop for Transfers {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            return;
        }
        // SAFETY: neither is used again; what points into the memory is over.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            ManuallyDrop::drop(&mut self.memory);
        }
    }
}

impl std::fmt::Debug for Transfers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfers")
            .field("has_ring", &self.ring.is_some())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::OpenOptions;

    use super::*;
    use crate::disk::scratch::Scratch;

    fn open(scratch: &Scratch, name: &str) -> File {
        let path = scratch.path().join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(path).unwrap()
    }

    /// Both kinds, as far as the kernel has both.
    fn each_kind(test: impl Fn(Transfers)) {
        test(Transfers::one_by_one().unwrap());
        let at_once = Transfers::at_once().unwrap();
        if at_once.has_ring() {
            test(at_once);
        } else {
            eprintln!("SKIPPED: no io_uring here");
        }
    }

    fn transfer(file: &File, position: u64, length: usize, direction: Direction) -> Transfer<'_> {
        Transfer {
            file,
            position,
            length,
            direction,
        }
    }

    #[test]
    fn every_transfer_goes_between_its_own_place_and_its_own_position() {
        each_kind(|mut transfers| {
            let scratch = Scratch::new();
            let files = [open(&scratch, "one"), open(&scratch, "other")];
            let (lengths, size) = ([8, 4096, PLACE_SIZE, 100], PLACE_SIZE as u64);
            let at = |place: usize| {
                let length = lengths[place % lengths.len()];
                (&files[place % 2], (7 - place as u64) * size, length)
            };
            for round in 0..3_u8 {
                for place in 0..PLACES {
                    let byte = round * 16 + u8::try_from(place).unwrap();
                    transfers.place(place).fill(byte);
                }
                let batch = |direction| {
                    let each = (0..PLACES).map(|place| {
                        let (file, position, length) = at(place);
                        transfer(file, position, length, direction)
                    });
                    each.collect::<Vec<_>>()
                };
                let written = transfers.run(&batch(Direction::Write));
                assert!(written.iter().all(Result::is_ok), "{written:?}");
                for place in 0..PLACES {
                    transfers.place(place).fill(0xEE);
                }
                let read = transfers.run(&batch(Direction::Read));
                assert!(read.iter().all(Result::is_ok), "{read:?}");
                for place in 0..PLACES {
                    let (byte, length) = (round * 16 + u8::try_from(place).unwrap(), at(place).2);
                    let bytes = transfers.place(place);
                    assert!(bytes[..length].iter().all(|it| *it == byte));
                    assert!(bytes[length..].iter().all(|it| *it == 0xEE));
                }
            }
        });
    }

    #[test]
    fn what_fails_says_why_and_the_others_are_made() {
        each_kind(|mut transfers| {
            let scratch = Scratch::new();
            let file = open(&scratch, "file");
            file.write_all_at(&[9; 10_000], 0).unwrap();
            let only_read = File::open(scratch.path().join("file")).unwrap();
            transfers.place(1).fill(3);
            transfers.place(3).fill(4);
            let results = transfers.run(&[
                transfer(&file, 0, 4096, Direction::Read),
                transfer(&only_read, 0, 4096, Direction::Write),
                transfer(&file, 8192, 4096, Direction::Read),
                transfer(&file, 4096, 4096, Direction::Write),
            ]);
            assert!(results[0].is_ok() && results[3].is_ok(), "{results:?}");
            let refused = results[1].as_ref().unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
            let ends = results[2].as_ref().unwrap_err();
            assert_eq!(ends.kind(), io::ErrorKind::UnexpectedEof);
            assert!(transfers.place(0)[..4096].iter().all(|it| *it == 9));
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, 4096).unwrap();
            assert_eq!(bytes, [4; 4096]);
        });
    }

    #[test]
    fn a_thread_may_take_them_over() {
        each_kind(|mut transfers| {
            let scratch = Scratch::new();
            let file = open(&scratch, "file");
            transfers.place(0).fill(5);
            let written = transfers.run(&[transfer(&file, 0, 4096, Direction::Write)]);
            assert!(written[0].is_ok());
            let read = thread::spawn(move || {
                let read = transfers.run(&[transfer(&file, 0, 4096, Direction::Read)]);
                (read[0].is_ok(), transfers.place(0)[4095])
            });
            assert_eq!(read.join().unwrap(), (true, 5));
        });
    }
}
