//! The simulator as a command in a pipeline.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

/// `courser-sim SEED | head -1` once ended in a panic.
#[test]
fn a_reader_that_goes_away_ends_it_without_a_word() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = Command::new(env!("CARGO_BIN_EXE_courser-sim"))
        .args(["--seeds", "0..3"])
        .stdout(Stdio::from(writer))
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(141), "{ended:?}");
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

#[test]
fn what_makes_no_sense_is_answered_with_the_usage() {
    for line in ["--seeds 3", "--seeds 3..3", "--last", "many", "1 2"] {
        let ended = Command::new(env!("CARGO_BIN_EXE_courser-sim"))
            .args(line.split(' '))
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(2), "{line}: {ended:?}");
        assert!(ended.stderr.starts_with(b"usage: courser-sim"), "{line}");
    }
}
