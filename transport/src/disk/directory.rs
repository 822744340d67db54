//! The data directory: who has it, whose it is, and what journals it holds.
//!
//! Opening it is the one way to its files, and goes in this order: the directory is made
//! if there is none, its owner and rights are looked at, the lock is taken, and only then
//! anything is read or written. So a second broker that is started on it by mistake is
//! refused before it touched a byte. The lock is the kernel's (`flock`): it ends with the
//! process that has it, however that ends, and nothing is left to clear away.
//!
//! Rights. A directory that we make is its owner's alone (0700), its files too (0600). One
//! that is there has to belong to the user that runs the broker and be writable by nobody
//! else: whoever can write there can plant a journal. That others may read its list of
//! names is accepted and said ([`Rights`]): many ways to mount a directory give no choice.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, process};

use courser_core::id::{Installation, JournalNumber, Run};
use courser_core::journal::checkpoint;
use courser_core::journal::page::PageFile;
use courser_core::journal::survey::Slot;
use courser_core::limits;

use super::file::DiskFile;
use super::image::Image;
use super::installation::{self, Malformed};
use crate::sys;

/// Names of journals go from 0 to one less.
const JOURNALS_MAX: u16 = 64;

/// The largest file that is read: sixteen times what a journal's file is given. Its bytes
/// are all in memory at a time.
const READ_MAX: usize = 16 * limits::JOURNAL_FILE_SIZE as usize;

/// Which file: the journal's number (below 64), and the slot that names it. What it holds
/// at present, its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalFile {
    /// The journal.
    pub journal: JournalNumber,
    /// The file of it.
    pub slot: Slot,
}

impl JournalFile {
    /// Where it lies in the data directory.
    #[must_use]
    pub fn path(self) -> PathBuf {
        assert!(self.journal.0 < JOURNALS_MAX, "a journal has a name");
        Path::new(&folder(self.journal)).join(self.slot.to_string())
    }
}

impl fmt::Display for JournalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", folder(self.journal), self.slot)
    }
}

pub(super) fn folder(journal: JournalNumber) -> String {
    format!("journal-{:02}", journal.0)
}

/// Where a page file of a journal lies in the data directory.
pub(super) fn page_path(journal: JournalNumber, file: PageFile) -> PathBuf {
    Path::new(&folder(journal)).join(file.to_string())
}

fn journal_of(name: &str) -> Option<JournalNumber> {
    let journal = JournalNumber(name.strip_prefix("journal-")?.parse().ok()?);
    (journal.0 < JOURNALS_MAX && folder(journal) == name).then_some(journal)
}

/// What a directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Files of journals and their sizes in bytes, by journal and slot.
    pub files: Vec<(JournalFile, u64)>,
    /// Journals that have a checkpoint, or one on its way.
    pub checkpoints: Vec<JournalNumber>,
    /// Page files, by journal, run and number.
    pub pages: Vec<(JournalNumber, PageFile)>,
    /// Names that this version does not give, relative to the directory. They are left
    /// alone.
    pub strangers: Vec<PathBuf>,
}

/// Who besides its owner may do what with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Nobody anything.
    OwnerAlone,
    /// Others may read its list of names.
    Listable {
        /// The bits of its mode.
        mode: u32,
    },
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The kernel refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Call {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// Another broker has it.
    #[error(
        "the data directory {} is in use by {}\n  fix    stop that broker, or give this one a directory of its own",
        path.display(),
        process_of(*process)
    )]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// The process that has it, if it has said so.
        process: Option<u32>,
    },
    /// Others than its owner may write to it.
    #[error(
        "the data directory {} may be written by others than its owner (mode {mode:04o})\n  fix    chmod go-w {}",
        path.display(),
        path.display()
    )]
    OpenToOthers {
        /// Which directory.
        path: PathBuf,
        /// The bits of its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the data directory {} belongs to user {owner}, and the broker runs as user {user}\n  fix    run the broker as user {owner}, or give it a directory of its own",
        path.display()
    )]
    NotOurs {
        /// Which directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// The file that names the installation is damaged.
    #[error(
        "{} does not name an installation: {malformed}\n  fix    put it back from a copy of the directory",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        malformed: Malformed,
    },
    /// There are journals, and nothing says whose.
    #[error(
        "{} holds journals and no file \"installation\"\n  fix    put it back from a copy of the directory, or start on an empty one",
        path.display()
    )]
    Nameless {
        /// Which directory.
        path: PathBuf,
    },
    /// No broker ever had it.
    #[error(
        "{} is no data directory: it holds neither a file \"installation\" nor journals\n  fix    name the directory that courser serve was given",
        path.display()
    )]
    Nothing {
        /// Which directory.
        path: PathBuf,
    },
}

impl DirectoryError {
    /// Whether there was no room for something, or no more was allowed.
    #[must_use]
    pub fn is_for_want_of_room(&self) -> bool {
        matches!(
            self,
            Self::Call { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    }
}

fn process_of(process: Option<u32>) -> String {
    process.map_or_else(
        || String::from("another process"),
        |process| format!("process {process}"),
    )
}

/// Says what was tried with what, if it was refused.
pub(super) fn trying<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DirectoryError + 'a {
    move |source| DirectoryError::Call {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// A directory that is ours until the last of these goes.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    /// Locked until this is dropped. Nothing else is ever done with it.
    lock: File,
}

impl Drop for Held {
    /// The kernel lets go of the lock with the last descriptor, and a process that this one
    /// is just starting has copies of all until it runs its program. So it is let go of by
    /// name: whoever opens the directory next must not meet such a copy.
    fn drop(&mut self) {
        // What fails here fails as well when the descriptor is closed, and then ends there.
        drop(self.lock.unlock());
    }
}

/// The data directory of this process.
#[derive(Debug, Clone)]
pub struct DataDirectory {
    held: Arc<Held>,
    installation: Installation,
    is_new: bool,
    rights: Rights,
}

impl DataDirectory {
    /// Takes the directory, or makes it. Flushes what it writes.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, if another broker has it, and if it cannot be trusted. It
    /// does not wait.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        make(path)?;
        // The working directory may change; what was opened may not.
        let path = fs::canonicalize(path).map_err(trying("find", path))?;
        let rights = look_at(&path)?;
        let held = Arc::new(Held {
            lock: lock(&path)?,
            path,
        });
        let (installation, is_new) = name(&held.path)?;
        Ok(Self {
            held,
            installation,
            is_new,
            rights,
        })
    }

    /// Takes a directory to look at what is there. Makes and writes nothing.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, if a broker has it, and if it is no data directory.
    pub fn inspect(path: &Path) -> Result<Self, DirectoryError> {
        let path = fs::canonicalize(path).map_err(trying("find", path))?;
        let place = path.join("lock");
        let lock = match File::open(&place) {
            Ok(file) => hold(file, &place, &path)?,
            // A copy may come without it. Then the lock is nobody's business.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::open(&path).map_err(trying("open", &path))?
            }
            Err(error) => return Err(trying("open", &place)(error)),
        };
        let Some(installation) = named(&path)? else {
            return Err(DirectoryError::Nothing { path });
        };
        Ok(Self {
            held: Arc::new(Held { path, lock }),
            installation,
            is_new: false,
            rights: Rights::OwnerAlone,
        })
    }

    /// Whose data it holds.
    #[must_use]
    pub fn installation(&self) -> Installation {
        self.installation
    }

    /// Whether opening it began the installation.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Who besides its owner may do what with it.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Where it is, whatever the working directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.held.path
    }

    /// The journals that are there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to list them.
    pub fn list(&self) -> Result<Listed, DirectoryError> {
        list(self.path())
    }

    /// Makes the directory of a journal, if there is none.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn make_journal(&self, journal: JournalNumber) -> Result<(), DirectoryError> {
        assert!(journal.0 < JOURNALS_MAX, "a journal has a name");
        make(&self.path().join(folder(journal)))
    }

    /// Reads a file into an image, after a flush: what was read is on the device.
    ///
    /// # Errors
    ///
    /// If the kernel refuses any of it.
    pub fn read(&self, file: JournalFile, image: &mut Image) -> Result<(), DirectoryError> {
        let path = self.path().join(file.path());
        let mut opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(trying("open", &path))?;
        let size = opened.metadata().map_err(trying("look at", &path))?.len();
        let size = usize::try_from(size).ok().filter(|size| *size <= READ_MAX);
        let Some(size) = size else {
            let story = "it has more bytes than any file of a journal";
            return Err(trying("read", &path)(io::Error::other(story)));
        };
        opened.sync_all().map_err(trying("flush", &path))?;
        image.read(&mut opened, size).map_err(trying("read", &path))
    }

    pub(super) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held)
    }
}

impl Held {
    /// The path of something inside.
    pub(super) fn inside(&self, path: &Path) -> PathBuf {
        use std::path::Component;

        assert!(
            path.components()
                .all(|part| matches!(part, Component::Normal(_))),
            "a path inside of the data directory"
        );
        self.path.join(path)
    }

    /// See [`super::Errand::Prepare`].
    pub(super) fn prepare(
        self: &Arc<Self>,
        file: JournalFile,
        size: u64,
        called_off: &std::sync::atomic::AtomicBool,
    ) -> Result<DiskFile, DirectoryError> {
        let path = self.inside(&file.path());
        make(parent(&path))?;
        let prepared = super::file::prepare(&path, size, called_off)
            .map_err(|(operation, source)| trying(operation, &path)(source))?;
        sync_directory(parent(&path))?;
        Ok(prepared.held_by(Arc::clone(self)))
    }

    /// See [`super::Errand::RemovePages`].
    pub(super) fn remove_pages(
        &self,
        journal: JournalNumber,
        before: Run,
    ) -> Result<(), DirectoryError> {
        let mut listed = Listed::default();
        list_journal(&self.path, journal, &mut listed)?;
        for (journal, file) in listed.pages {
            if file.run < before {
                self.remove_page_file(journal, file)?;
            }
        }
        Ok(())
    }

    /// Removes a page file that no checkpoint names. If it comes back with a power cut, the
    /// next start removes it: nothing waits for the directory.
    pub(super) fn remove_page_file(
        &self,
        journal: JournalNumber,
        file: PageFile,
    ) -> Result<(), DirectoryError> {
        let path = self.inside(&page_path(journal, file));
        fs::remove_file(&path).map_err(trying("remove", &path))
    }

    /// See [`super::Errand::Remove`].
    pub(super) fn remove(&self, path: &Path) -> Result<(), DirectoryError> {
        let path = self.inside(path);
        fs::remove_file(&path).map_err(trying("remove", &path))?;
        sync_directory(parent(&path))
    }
}

/// Makes a directory that only its owner can use, and those above it that are missing.
/// Each is there for good when this returns.
fn make(path: &Path) -> Result<(), DirectoryError> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    make(above)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_directory(above),
        // Somebody else was first. What it is, opening finds out.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(trying("create", path)(error)),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => path,
    }
}

fn look_at(path: &Path) -> Result<Rights, DirectoryError> {
    let metadata = fs::metadata(path).map_err(trying("look at", path))?;
    if !metadata.is_dir() {
        let error = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(trying("use", path)(error));
    }
    let (owner, user) = (metadata.uid(), sys::user());
    if owner != user {
        return Err(DirectoryError::NotOurs {
            path: path.to_owned(),
            owner,
            user,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(DirectoryError::OpenToOthers {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(if mode & 0o077 == 0 {
        Rights::OwnerAlone
    } else {
        Rights::Listable { mode }
    })
}

/// Takes the lock, and says in it who has it.
fn lock(directory: &Path) -> Result<File, DirectoryError> {
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(trying("open", &path))?;
    let mut file = hold(file, &path, directory)?;
    // For people; nothing rests on it, so it is not flushed, and a full disk may be without.
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", process::id()))
        .ok();
    Ok(file)
}

/// Takes the lock that the file at `path` is, of `directory`.
fn hold(file: File, path: &Path, directory: &Path) -> Result<File, DirectoryError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Whoever has it may not have come to writing yet.
            let process = file
                .take(32)
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            Err(DirectoryError::InUse {
                path: directory.to_owned(),
                process,
            })
        }
        Err(TryLockError::Error(error)) => Err(trying("lock", path)(error)),
    }
}

/// The name of the installation, and whether it was given just now.
fn name(directory: &Path) -> Result<(Installation, bool), DirectoryError> {
    if let Some(installation) = named(directory)? {
        return Ok((installation, false));
    }
    let random =
        sys::random_bytes().map_err(|errno| trying("draw a name for", directory)(errno.into()))?;
    let installation = Installation(u128::from_le_bytes(random));
    replace_file(
        &directory.join("installation"),
        &installation::encode(installation),
    )?;
    Ok((installation, true))
}

/// The name of the installation. There may be none while there are no journals.
fn named(directory: &Path) -> Result<Option<Installation>, DirectoryError> {
    let path = directory.join("installation");
    match File::open(&path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            // One byte more than it has to have tells that it has too many.
            file.take(installation::SIZE as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(trying("read", &path))?;
            let installation = installation::decode(&bytes)
                .map_err(|malformed| DirectoryError::Damaged { path, malformed })?;
            Ok(Some(installation))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let listed = list(directory)?;
            let is_empty =
                listed.files.is_empty() && listed.checkpoints.is_empty() && listed.pages.is_empty();
            if !is_empty {
                return Err(DirectoryError::Nameless {
                    path: directory.to_owned(),
                });
            }
            Ok(None)
        }
        Err(error) => Err(trying("open", &path)(error)),
    }
}

fn list(directory: &Path) -> Result<Listed, DirectoryError> {
    let mut listed = Listed::default();
    for (name, is_directory, _) in entries(directory)? {
        let text = name.to_str().unwrap_or_default();
        if ["lock", "installation", "installation.new"].contains(&text) && !is_directory {
            continue;
        }
        match journal_of(text).filter(|_| is_directory) {
            Some(journal) => list_journal(directory, journal, &mut listed)?,
            None => listed.strangers.push(PathBuf::from(name)),
        }
    }
    listed.files.sort_unstable();
    listed.checkpoints.sort_unstable();
    listed.pages.sort_unstable();
    listed.strangers.sort_unstable();
    Ok(listed)
}

fn list_journal(
    directory: &Path,
    journal: JournalNumber,
    listed: &mut Listed,
) -> Result<(), DirectoryError> {
    let folder = folder(journal);
    for (name, is_directory, size) in entries(&directory.join(&folder))? {
        let is_checkpoint = [checkpoint::FILE_NAME, checkpoint::ASIDE_NAME].map(OsStr::new);
        if is_checkpoint.contains(&&*name) && !is_directory {
            if listed.checkpoints.last() != Some(&journal) {
                listed.checkpoints.push(journal);
            }
            continue;
        }
        let text = name.to_str().filter(|_| !is_directory);
        let slot = text.and_then(Slot::from_file_name);
        let pages = text.and_then(PageFile::from_file_name);
        match (slot, pages) {
            (Some(slot), _) => listed.files.push((JournalFile { journal, slot }, size)),
            (None, Some(file)) => listed.pages.push((journal, file)),
            (None, None) => listed.strangers.push(Path::new(&folder).join(name)),
        }
    }
    Ok(())
}

/// Name, whether it is anything but a regular file, and size.
fn entries(directory: &Path) -> Result<Vec<(OsString, bool, u64)>, DirectoryError> {
    let listing = "list";
    fs::read_dir(directory)
        .map_err(trying(listing, directory))?
        .map(|entry| {
            let entry = entry.map_err(trying(listing, directory))?;
            let path = entry.path();
            // Of a link it is the link that is looked at.
            let metadata = entry.metadata().map_err(trying("look at", &path))?;
            Ok((entry.file_name(), !metadata.is_file(), metadata.len()))
        })
        .collect()
}

/// Has a file be there with these bytes, or as it was: whatever happens in between.
///
/// # Errors
///
/// If the kernel refuses any of it; then it is as it was.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), DirectoryError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&aside)
        .map_err(trying("create", &aside))?;
    file.write_all(bytes).map_err(trying("write to", &aside))?;
    drop(file);
    put_in_place(&aside, path)
}

/// Gives a file another name, for good when this returns. Nothing else here renames.
///
/// # Errors
///
/// If the kernel refuses any of it.
pub(super) fn put_in_place(aside: &Path, path: &Path) -> Result<(), DirectoryError> {
    // A name that is durable before its bytes would be a name for nothing.
    flush_file(aside)?;
    fs::rename(aside, path).map_err(trying("rename", aside))?;
    sync_directory(parent(path))
}

/// Has a file be there for good, with its bytes and its name.
///
/// # Errors
///
/// If the kernel refuses any of it.
pub(super) fn flush(path: &Path) -> Result<(), DirectoryError> {
    flush_file(path)?;
    sync_directory(parent(path))
}

fn flush_file(path: &Path) -> Result<(), DirectoryError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(trying("flush", path))
}

/// Opens a file to read what is on the device then; `None` if there is none.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn open_flushed(path: &Path) -> Result<Option<File>, DirectoryError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(trying("open", path)(error)),
    };
    file.sync_all().map_err(trying("flush", path))?;
    Ok(Some(file))
}

/// Has the names in a directory be there for good.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(trying("flush", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::super::scratch::Scratch;
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_that_is_missing_is_made_for_its_owner_alone() {
        let scratch = Scratch::new();
        let path = scratch.path().join("above").join("data");
        let directory = DataDirectory::open(&path).unwrap();
        assert!(directory.is_new());
        assert_eq!(directory.rights(), Rights::OwnerAlone);
        for inside in [path.clone(), path.parent().unwrap().to_owned()] {
            assert_eq!(fs::metadata(inside).unwrap().mode() & 0o7777, 0o700);
        }
        for file in ["lock", "installation"] {
            let metadata = fs::metadata(path.join(file)).unwrap();
            assert_eq!(metadata.mode() & 0o7777, 0o600, "{file}");
        }
        assert_eq!(directory.list().unwrap(), Listed::default());
        assert_eq!(directory.path(), fs::canonicalize(&path).unwrap());
    }

    #[test]
    fn an_installation_keeps_its_name() {
        let scratch = Scratch::new();
        let first = DataDirectory::open(scratch.path()).unwrap().installation();
        let again = DataDirectory::open(scratch.path()).unwrap();
        assert_eq!((again.installation(), again.is_new()), (first, false));
        let other = Scratch::new();
        assert_ne!(
            DataDirectory::open(other.path()).unwrap().installation(),
            first
        );
    }

    #[test]
    fn a_second_broker_is_refused_and_touches_nothing() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let seen = || {
            ["lock", "installation"].map(|file| {
                let path = scratch.path().join(file);
                let metadata = fs::metadata(&path).unwrap();
                let changed = (metadata.mtime(), metadata.mtime_nsec());
                (fs::read(path).unwrap(), changed, metadata.ino())
            })
        };
        let before = seen();
        let refused = DataDirectory::open(scratch.path()).unwrap_err();
        assert!(
            matches!(&refused, DirectoryError::InUse { process: Some(process), .. }
                if *process == process::id()),
            "{refused:?}"
        );
        let message = refused.to_string();
        let path = fs::canonicalize(scratch.path()).unwrap();
        assert!(message.starts_with(&format!(
            "the data directory {} is in use by process {}\n",
            path.display(),
            process::id()
        )));
        assert_eq!(seen(), before);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
        drop(directory);
        assert!(DataDirectory::open(scratch.path()).is_ok());
    }

    #[test]
    fn a_copy_of_the_lock_in_a_process_just_started_keeps_nobody_out() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        let copied = directory.held.lock.try_clone().unwrap();
        drop(directory);
        assert!(DataDirectory::open(scratch.path()).is_ok());
        drop(copied);
    }

    #[test]
    fn a_lock_that_says_nothing_yet_is_a_lock() {
        let scratch = Scratch::new();
        let path = scratch.path().join("lock");
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        let refused = DataDirectory::open(scratch.path()).unwrap_err();
        assert!(refused.to_string().contains("in use by another process"));
        assert!(fs::read(&path).unwrap().is_empty());
        assert!(!scratch.path().join("installation").exists());
        // One that a process left behind when it died is none.
        drop(lock);
        fs::write(&path, "4194305\n").unwrap();
        let _directory = DataDirectory::open(scratch.path()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", process::id()));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let scratch = Scratch::new();
        for mode in [0o770, 0o702, 0o777] {
            set_mode(scratch.path(), mode);
            let refused = DataDirectory::open(scratch.path()).unwrap_err();
            assert!(
                matches!(refused, DirectoryError::OpenToOthers { mode: seen, .. } if seen == mode),
                "{refused:?}"
            );
            assert!(refused.to_string().contains("fix    chmod go-w "));
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
        set_mode(scratch.path(), 0o755);
        let directory = DataDirectory::open(scratch.path()).unwrap();
        assert_eq!(directory.rights(), Rights::Listable { mode: 0o755 });
        drop(directory);
        set_mode(scratch.path(), 0o700);
    }

    #[test]
    fn what_is_no_directory_is_said_to_be_none() {
        let scratch = Scratch::new();
        let path = scratch.path().join("file");
        fs::write(&path, "").unwrap();
        let refused = DataDirectory::open(&path).unwrap_err();
        assert!(refused.to_string().contains("not a directory"), "{refused}");
        let below = path.join("data");
        let refused = DataDirectory::open(&below).unwrap_err();
        assert!(matches!(refused, DirectoryError::Call { .. }), "{refused}");
    }

    #[test]
    fn a_damaged_name_is_refused_and_left_as_it_is() {
        let scratch = Scratch::new();
        drop(DataDirectory::open(scratch.path()).unwrap());
        let path = scratch.path().join("installation");
        let good = fs::read(&path).unwrap();
        for damage in [&good[..63], &[], &[&good[..], &[0]].concat()] {
            fs::write(&path, damage).unwrap();
            let refused = DataDirectory::open(scratch.path()).unwrap_err();
            assert!(
                matches!(refused, DirectoryError::Damaged { .. }),
                "{refused:?}"
            );
            assert!(refused.to_string().contains("installation does not name"));
            assert_eq!(fs::read(&path).unwrap(), damage);
        }
    }

    #[test]
    fn journals_without_a_name_are_not_given_another() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        directory.make_journal(JournalNumber(0)).unwrap();
        fs::write(scratch.path().join("journal-00/000001.journal"), "").unwrap();
        fs::remove_file(scratch.path().join("installation")).unwrap();
        drop(directory);
        let refused = DataDirectory::open(scratch.path()).unwrap_err();
        assert!(matches!(refused, DirectoryError::Nameless { .. }));
        assert!(!scratch.path().join("installation").exists());
    }

    #[test]
    fn a_name_that_was_cut_short_while_it_was_given_is_given_anew() {
        let scratch = Scratch::new();
        let aside = scratch.path().join("installation.new");
        fs::write(&aside, "half a na").unwrap();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        assert!(directory.is_new());
        assert!(!aside.exists());
        assert_eq!(directory.list().unwrap(), Listed::default());
    }

    #[test]
    fn only_names_of_this_version_are_listed_and_the_others_left_alone() {
        let scratch = Scratch::new();
        let directory = DataDirectory::open(scratch.path()).unwrap();
        for journal in [0, 7, 63] {
            directory.make_journal(JournalNumber(journal)).unwrap();
        }
        let ours = [
            ("journal-07/000002.journal", 5),
            ("journal-00/000001.journal", 0),
            ("journal-07/999999.journal", 9),
        ];
        for (name, size) in ours {
            fs::write(scratch.path().join(name), vec![1; size]).unwrap();
        }
        let strange = [
            "README",
            "journal-00/0000001.journal",
            "journal-00/00001.journal",
            "journal-00/000001.journal.new",
            "journal-00/+00001.journal",
            "journal-00/checkpoint-1",
            "journal-00/1-1.pages",
            "journal-00/00000001-000000.pages.new",
        ];
        for name in strange {
            fs::write(scratch.path().join(name), "theirs").unwrap();
        }
        for name in [
            "journal-07/00000012-000003.pages",
            "journal-00/00000002-000000.pages",
        ] {
            fs::write(scratch.path().join(name), "").unwrap();
        }
        for name in [
            "journal-64",
            "journal-1",
            "partitions",
            "journal-00/000009.journal",
        ] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        let listed = directory.list().unwrap();
        let file = |journal, slot| JournalFile {
            journal: JournalNumber(journal),
            slot: Slot(slot),
        };
        assert_eq!(
            listed.files,
            [(file(0, 1), 0), (file(7, 2), 5), (file(7, 999_999), 9)]
        );
        let pages = |journal, run, number| {
            let run = Run(run);
            (JournalNumber(journal), PageFile { run, number })
        };
        assert_eq!(listed.pages, [pages(0, 2, 0), pages(7, 12, 3)]);
        let mut strangers: Vec<PathBuf> = strange
            .iter()
            .chain(&[
                "journal-64",
                "journal-1",
                "partitions",
                "journal-00/000009.journal",
            ])
            .map(PathBuf::from)
            .collect();
        strangers.sort_unstable();
        assert_eq!(listed.strangers, strangers);
        let mut image = Image::default();
        directory.read(file(7, 2), &mut image).unwrap();
        assert_eq!(*image, [1; 5]);
        // A hole costs nothing to make, and would cost its size to read.
        let huge = File::create(scratch.path().join("journal-63/000001.journal")).unwrap();
        huge.set_len(READ_MAX as u64 + 1).unwrap();
        let refused = directory.read(file(63, 1), &mut image).unwrap_err();
        assert!(refused.to_string().contains("more bytes than any file"));
        let refused = directory.read(file(1, 1), &mut image).unwrap_err();
        assert!(refused.to_string().starts_with("cannot open "));
        for name in strange {
            assert_eq!(fs::read(scratch.path().join(name)).unwrap(), b"theirs");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_aside() {
        let scratch = Scratch::new();
        let path = scratch.path().join("file");
        for bytes in [&b"first"[..], b"another", b""] {
            replace_file(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        }
        // What cannot take its place leaves what is there.
        let folder = scratch.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let refused = replace_file(&folder, b"bytes").unwrap_err();
        assert!(refused.to_string().starts_with("cannot rename "));
        assert!(folder.is_dir());
    }
}
