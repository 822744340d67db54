//! Pages that a checkpoint names, read and looked at.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use courser_core::id::JournalNumber;
use courser_core::journal::entry::{Entry, PageImage, Place};
use courser_core::journal::page::{Damage, PageFile, Wrong};

use super::directory::{DataDirectory, DirectoryError, page_path, trying};
use super::recovery::RecoveryError;
use crate::sys;

/// The pages of one journal. Has one file open at a time, and one page in memory.
#[derive(Debug)]
pub struct PageImages<'a> {
    directory: &'a DataDirectory,
    journal: JournalNumber,
    open: Option<(PageFile, File)>,
    bytes: Vec<u8>,
}

impl<'a> PageImages<'a> {
    /// Of that journal. Opens nothing yet.
    #[must_use]
    pub fn new(directory: &'a DataDirectory, journal: JournalNumber) -> Self {
        Self {
            directory,
            journal,
            open: None,
            bytes: Vec::new(),
        }
    }

    /// Hands over each message that a checkpoint says to be in a page, in their order, once
    /// all of them were looked at. What was read is on the device.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, if they are not there as they were written; and what `each`
    /// refuses with.
    pub fn messages<E: From<RecoveryError>>(
        &mut self,
        place: Place,
        image: &PageImage,
        mut each: impl FnMut(&Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let journal = self.journal;
        let damaged = |what| {
            E::from(RecoveryError::Page {
                journal,
                damage: Damage {
                    file: image.file(),
                    position: image.position(),
                    what,
                },
            })
        };
        let is_there = self.read(image).map_err(RecoveryError::from)?;
        is_there.map_err(damaged)?;
        let mut messages = image.messages(place, &self.bytes).map_err(damaged)?;
        messages.try_for_each(|entry| each(&entry))
    }

    /// Has the bytes of a page in memory, or says why they cannot be.
    fn read(&mut self, image: &PageImage) -> Result<Result<(), Wrong>, DirectoryError> {
        let wanted = image.file();
        let path = page_path(self.journal, wanted);
        let path = self.directory.path().join(path);
        if self.open.as_ref().is_none_or(|(file, _)| *file != wanted) {
            self.close();
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Err(Wrong::Missing));
                }
                Err(error) => return Err(trying("open", &path)(error)),
            };
            file.sync_all().map_err(trying("flush", &path))?;
            self.open = Some((wanted, file));
        }
        let (_, file) = self.open.as_ref().expect("it was opened");
        self.bytes.resize(image.size as usize, 0);
        match file.read_exact_at(&mut self.bytes, image.position()) {
            Ok(()) => Ok(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err(Wrong::Short { size: image.size }))
            }
            Err(error) => Err(trying("read", &path)(error)),
        }
    }

    /// All of a file was read that is needed now: what the kernel keeps of it would only take
    /// the place of what is.
    fn close(&mut self) {
        if let Some((_, file)) = self.open.take() {
            sys::forget_cached(file.as_fd());
        }
    }
}

impl Drop for PageImages<'_> {
    fn drop(&mut self) {
        self.close();
    }
}
