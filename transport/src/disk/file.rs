//! One file that durable writes go to.
//!
//! A write is durable in one of two ways, and which of them a file gets is found out when
//! it is opened. *Direct*: past the page cache, with a flush as part of the same
//! operation (`O_DIRECT`, `RWF_DSYNC`); a ring hands it to the kernel and goes on.
//! *Cached*: into the page cache, followed by `fdatasync`; both wait, so a ring has a
//! thread for them.
//!
//! Direct is for the file systems of `DIRECT` below only. That flag reaches the device there;
//! elsewhere it may be taken and not be carried out, and an acknowledgement that rests on
//! it would be a lie. `fdatasync` means the same everywhere.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use courser_core::limits;

use super::BLOCK_SIZE;
use super::directory::Held;
use crate::sys::{self, Errno};

/// The file systems whose durable direct writes are flushed to the device, by the numbers
/// of `linux/magic.h`.
const DIRECT: [(i64, &str); 4] = [
    (0xef53, "ext2, ext3, ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0xf2f5_2010, "f2fs"),
];

/// Zeros are written in pieces of so many bytes; between two of them whoever prepares can
/// be called off.
const ZEROS: usize = 512 * 1024;

/// The longest rest between two of them, on however slow a device.
const REST_MAX: Duration = Duration::from_millis(100);

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Past the page cache, flushed by the same operation.
    Direct,
    /// Into the page cache, and then flushed.
    Cached,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "O_DIRECT with RWF_DSYNC",
            Self::Cached => "page cache with fdatasync",
        })
    }
}

/// A file that is open for durable writes.
#[derive(Debug)]
pub struct DiskFile {
    descriptor: OwnedFd,
    way: Way,
    size: u64,
    /// Keeps the directory taken for as long as anything may be written to it.
    _held: Option<Arc<Held>>,
}

impl DiskFile {
    /// Opens a file that is there, in the best way that its file system knows.
    ///
    /// # Errors
    ///
    /// Of opening it; also if it is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        match open_to_write(path, libc::O_DIRECT) {
            Ok(file) if takes_direct(file.as_fd()) => Self::of(file, Way::Direct),
            Ok(_) => Self::open_cached(path),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Self::open_cached(path),
            Err(error) => Err(error),
        }
    }

    /// Opens a file that is there for writes through the page cache.
    ///
    /// # Errors
    ///
    /// As for [`Self::open`].
    pub fn open_cached(path: &Path) -> io::Result<Self> {
        Self::of(open_to_write(path, 0)?, Way::Cached)
    }

    fn of(file: File, way: Way) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self {
            size: metadata.len(),
            descriptor: file.into(),
            way,
            _held: None,
        })
    }

    /// A file of another kind, or in a way that its file system does not have.
    #[cfg(test)]
    pub(crate) fn posing(file: File, way: Way, size: u64) -> Self {
        Self {
            descriptor: file.into(),
            way,
            size,
            _held: None,
        }
    }

    pub(super) fn held_by(mut self, held: Arc<Held>) -> Self {
        self._held = Some(held);
        self
    }

    /// How its writes become durable.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Its size in bytes when it was opened.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsFd for DiskFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn open_to_write(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | flags)
        .open(path)
}

/// Whether what is written past the page cache reaches the device.
pub(super) fn takes_direct(file: BorrowedFd<'_>) -> bool {
    let is_known =
        sys::file_system(file).is_ok_and(|number| DIRECT.iter().any(|(known, _)| *known == number));
    // A kernel that does not say takes what it has always taken: whole blocks.
    let is_fine = |alignment| (1..=BLOCK_SIZE).contains(&alignment);
    is_known && sys::direct_alignment(file).is_none_or(is_fine)
}

/// Why a file was not prepared: what was tried, and the kernel's answer.
pub(super) type Failed = (&'static str, io::Error);

/// Makes a file of that size whose every block was written and flushed, and opens it. One
/// that is there keeps its bytes and is made longer if need be, never shorter. The flush
/// of its directory is the caller's.
///
/// # Errors
///
/// What was made new is removed again.
pub(super) fn prepare(path: &Path, size: u64, called_off: &AtomicBool) -> Result<DiskFile, Failed> {
    assert!(
        size > 0 && size.is_multiple_of(u64::from(BLOCK_SIZE)),
        "the size of a file is in whole blocks"
    );
    let is_new = !path.exists();
    let prepared = write_out(path, size, called_off)
        .and_then(|()| DiskFile::open(path).map_err(|error| ("open", error)));
    if prepared.is_err() && is_new {
        // It holds nothing. Where it cannot be removed it is a spare for the next time.
        std::fs::remove_file(path).ok();
    }
    prepared
}

fn write_out(path: &Path, size: u64, called_off: &AtomicBool) -> Result<(), Failed> {
    let while_doing = |operation| move |error| (operation, error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(while_doing("create"))?;
    let length = file.metadata().map_err(while_doing("look at"))?.len();
    if length < size {
        match sys::allocate(file.as_fd(), size) {
            // Not every file system can; then the zeros find out whether there is room.
            Ok(()) | Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS)) => {}
            Err(errno) => return Err(("allocate", errno.into())),
        }
        let zeros = vec![0; ZEROS];
        let mut position = length;
        while position < size {
            if called_off.load(Ordering::Relaxed) {
                return Err(("go on preparing", io::Error::other("it was called off")));
            }
            let count = usize::try_from(size - position).map_or(ZEROS, |rest| rest.min(ZEROS));
            let begun = Instant::now();
            file.write_all_at(&zeros[..count], position)
                .map_err(while_doing("write zeros to"))?;
            position += count as u64;
            if size > u64::from(limits::JOURNAL_FILE_SIZE_FIRST) {
                // Nobody waits for it yet, while a shard's writes do wait for the device:
                // it is theirs for as long as this piece had it, and no flush of theirs
                // has more than a piece of ours before it.
                file.sync_data().map_err(while_doing("flush"))?;
                thread::sleep(begun.elapsed().min(REST_MAX));
            }
        }
    }
    file.sync_all().map_err(while_doing("flush"))?;
    sys::forget_cached(file.as_fd());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::scratch::Scratch;
    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    #[test]
    fn a_prepared_file_has_its_whole_size_written() {
        use std::os::unix::fs::MetadataExt;

        let scratch = Scratch::new();
        let path = scratch.path().join("file");
        let file = prepare(&path, 3 << 20, &NEVER).unwrap();
        assert_eq!(file.size(), 3 << 20);
        assert!(std::fs::read(&path).unwrap() == vec![0; 3 << 20]);
        let metadata = std::fs::metadata(&path).unwrap();
        assert!(metadata.blocks() * 512 >= 3 << 20, "it has no holes");
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_there_keeps_its_bytes_and_gets_no_shorter() {
        let scratch = Scratch::new();
        let path = scratch.path().join("file");
        std::fs::write(&path, [7; 5000]).unwrap();
        assert_eq!(prepare(&path, 8192, &NEVER).unwrap().size(), 8192);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(
            (&bytes[..5000], &bytes[5000..]),
            (&[7; 5000][..], &[0; 3192][..])
        );
        assert_eq!(prepare(&path, 4096, &NEVER).unwrap().size(), 8192);
    }

    #[test]
    fn what_cannot_be_prepared_leaves_nothing_behind() {
        let scratch = Scratch::new();
        let path = scratch.path().join("file");
        let called_off = AtomicBool::new(true);
        let (operation, _) = prepare(&path, 4096, &called_off).unwrap_err();
        assert_eq!(operation, "go on preparing");
        assert!(!path.exists());
        // More than any file system has.
        let (operation, error) = prepare(&path, 1 << 62, &NEVER).unwrap_err();
        assert_eq!(operation, "allocate", "{error}");
        assert!(!path.exists());
        let missing = scratch.path().join("missing").join("file");
        assert_eq!(prepare(&missing, 4096, &NEVER).unwrap_err().0, "create");
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let scratch = Scratch::new();
        let target = scratch.path().join("file");
        std::fs::write(&target, [0; 4096]).unwrap();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(
            DiskFile::open(&link).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
        assert!(DiskFile::open_cached(Path::new("/dev/null")).is_err());
        assert_eq!(DiskFile::open_cached(&target).unwrap().way(), Way::Cached);
    }

    #[test]
    fn a_file_system_in_memory_is_written_through_its_cache() {
        let Ok(scratch) = Scratch::within(Path::new("/dev/shm")) else {
            eprintln!("SKIPPED: no file system in memory here");
            return;
        };
        let path = scratch.path().join("file");
        let file = prepare(&path, 4096, &NEVER).unwrap();
        assert_eq!(file.way(), Way::Cached);
    }
}
