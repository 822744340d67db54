//! Cases that are kept: `corpus/TARGET/NAME` beside this crate's manifest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::seeds;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where it comes from.
    pub name: String,
    /// The case.
    pub bytes: Vec<u8>,
}

/// Where the kept cases of a target are.
#[must_use]
pub fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// The seeds of a target, and its kept cases in the order of their names.
///
/// # Errors
///
/// If a file cannot be read; no directory is no cases.
pub fn cases(target: &str) -> io::Result<Vec<Case>> {
    let mut cases = seeds::of(target);
    let mut paths = Vec::new();
    match fs::read_dir(directory(target)) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    paths.sort();
    for path in paths {
        cases.push(Case {
            name: path.display().to_string(),
            bytes: fs::read(&path)?,
        });
    }
    Ok(cases)
}
