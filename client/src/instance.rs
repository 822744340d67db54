//! What one client is called, unlike any other: `host@pid@index@base36`.
//!
//! The host and the process say where it is, the index which of the process's clients,
//! and the last part, of the clock at its start, tells it from one of an earlier
//! process with the same number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use courser_core::limits;

/// The longest host that is told, in bytes.
const HOST_SIZE_MAX: usize = 64;

/// The id of another client of this process.
pub(crate) fn next() -> Arc<str> {
    // Only ever counted: nothing is published with it.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let index = COUNT.fetch_add(1, Ordering::Relaxed);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let time = since.map_or(0, |since| since.as_nanos());
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let process = std::process::id();
    format!("{}@{process}@{index}@{}", host_of(&host), base36(time)).into()
}

/// How a client called `name` introduces itself: its id is behind the last space.
pub(crate) fn introduced(name: &str, id: &str) -> Box<str> {
    let room = (limits::NAME_SIZE_MAX as usize).saturating_sub(id.len() + 1);
    let name = &name[..name.floor_char_boundary(room)];
    match name {
        "" => id.into(),
        name => format!("{name} {id}").into(),
    }
}

/// The host's name as a part of an id: without what would end it.
fn host_of(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_graphic() && c != '@' {
            c
        } else {
            '-'
        }
    };
    let host: String = name.trim().chars().take(HOST_SIZE_MAX).map(plain).collect();
    match host.as_str() {
        "" => String::from("localhost"),
        _ => host,
    }
}

fn base36(mut number: u128) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut digits = Vec::new();
    loop {
        let digit = usize::try_from(number % 36).unwrap_or(0);
        digits.push(char::from(DIGITS[digit]));
        number /= 36;
        if number == 0 {
            break;
        }
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_four_parts_and_is_nobody_elses() {
        let (one, two) = (next(), next());
        assert_ne!(one, two);
        for id in [&one, &two] {
            let parts: Vec<&str> = id.split('@').collect();
            assert_eq!(parts.len(), 4, "{id}");
            assert_eq!(parts[1], std::process::id().to_string());
            assert!(parts[3].bytes().all(|digit| digit.is_ascii_alphanumeric()));
        }
    }

    #[test]
    fn a_host_of_any_name_is_one_part() {
        assert_eq!(host_of("node 1@rack\n"), "node-1-rack");
        assert_eq!(host_of("\n"), "localhost");
        assert_eq!(host_of(&"h".repeat(99)).len(), HOST_SIZE_MAX);
    }

    #[test]
    fn numbers_are_written_with_thirty_six_digits() {
        let written = [0, 35, 36, 36 * 36 + 1].map(base36);
        assert_eq!(written, ["0", "z", "10", "101"]);
    }

    #[test]
    fn the_id_is_behind_the_name_however_long_that_is() {
        assert_eq!(&*introduced("", "h@1@0@a"), "h@1@0@a");
        assert_eq!(&*introduced("desk", "h@1@0@a"), "desk h@1@0@a");
        let long = introduced(&"é".repeat(300), "h@1@0@a");
        assert!(long.ends_with(" h@1@0@a") && long.len() <= limits::NAME_SIZE_MAX as usize);
    }
}
