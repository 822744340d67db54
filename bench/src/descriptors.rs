//! Open files: a process may have only so many, and a connection within one process
//! takes several.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::BenchError;

/// Of a connection between the client library and a broker in this process: the two
/// ends, and the client's two bells.
pub(crate) const PER_CONNECTION: u64 = 4;

/// For whatever else is opened meanwhile: rings, logs, one more connection.
const SPARE: u64 = 128;

/// Sees to it that so many more can be opened, raising this process's limit as far
/// as it may.
///
/// # Errors
/// [`BenchError::Descriptors`] if it may not.
pub(crate) fn reserve(more: u64) -> Result<(), BenchError> {
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let needed = open.saturating_add(more).saturating_add(SPARE);
    let limit = getrlimit(Resource::Nofile);
    // No limit is one that is never reached.
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let too_few = |allowed| BenchError::Descriptors { needed, allowed };
    if let Some(most) = limit.maximum.filter(|most| *most < needed) {
        return Err(too_few(most));
    }
    let raised = Rlimit {
        current: Some(needed),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).map_err(|_| too_few(limit.current.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_can_be_had_is_reserved_and_what_cannot_is_said_with_its_limit() {
        reserve(0).unwrap();
        let Some(most) = getrlimit(Resource::Nofile).maximum else {
            eprintln!("SKIPPED: this process may open any number of files");
            return;
        };
        let error = reserve(most).unwrap_err().to_string();
        assert!(error.contains(&format!("may have {most}")), "{error}");
        assert!(error.contains("ulimit -n"), "{error}");
    }
}
