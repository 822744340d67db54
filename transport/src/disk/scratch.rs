//! A directory of a test's own.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Removed with everything in it when it goes.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    #[allow(clippy::unwrap_used)]
    pub(crate) fn new() -> Self {
        Self::within(&std::env::temp_dir()).unwrap()
    }

    pub(crate) fn within(directory: &Path) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("courser-disk-{}-{number}", process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Where a test finds the file system that [`alone_on_a_small_file_system`] made.
const SMALL: &str = "COURSER_SMALL_FILE_SYSTEM";

/// Runs an ignored test in a process that has a file system of 1 MiB to itself. Says so and
/// does nothing where a user may not make one.
#[allow(clippy::unwrap_used)]
pub(crate) fn alone_on_a_small_file_system(test: &str) {
    let scratch = Scratch::new();
    let mount = "mount -t tmpfs -o size=1m,mode=700 none \"$COURSER_SMALL_FILE_SYSTEM\" || exit 77
        exec \"$0\" \"$@\"";
    let output = process::Command::new("unshare")
        .args(["-rm", "sh", "-c", mount])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored"])
        .env(SMALL, scratch.path())
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no unshare here");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if !said.contains("running 1 test") {
        let why = String::from_utf8_lossy(&output.stderr);
        eprintln!("SKIPPED: no file system of its own for a test: {why}");
        return;
    }
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}

/// The small file system, in a test that was started so.
#[allow(clippy::unwrap_used)]
pub(crate) fn small_file_system() -> PathBuf {
    PathBuf::from(std::env::var_os(SMALL).unwrap())
}
