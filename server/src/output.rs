//! Answers on standard output, plain text or JSON, and remarks on standard error;
//! never colour.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use serde_json::Value;

use crate::error::CommandError;

/// Prints an answer as it is.
pub(crate) fn print(answer: &impl fmt::Display) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    match write!(out, "{answer}").and_then(|()| out.flush()) {
        // Whoever reads a table may stop after its first lines.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(CommandError::Output),
    }
}

/// Prints an answer as indented JSON.
pub(crate) fn print_json(answer: &Value) -> Result<(), CommandError> {
    print(&format_args!("{answer:#}\n"))
}

/// Says something on standard error. Who closed it, or has no room for it, wants to
/// know nothing, and what was to be done is done all the same.
pub(crate) fn remark(text: &impl fmt::Display) {
    let _unheard = writeln!(io::stderr().lock(), "{text}");
}
