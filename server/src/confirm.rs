//! Asking before something is done that cannot be taken back.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::args::Confirmation;
use crate::error::CommandError;

/// Asks on the terminal whether to do `what`, unless that was said already. Where nobody
/// can answer nothing is done.
pub(crate) fn confirm(confirmation: &Confirmation, what: &str) -> Result<(), CommandError> {
    if confirmation.yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(CommandError::NobodyToAsk {
            what: what.to_owned(),
        });
    }
    let mut answer = String::new();
    let asked = write!(io::stderr().lock(), "{what}? [y/N] ");
    asked.map_err(CommandError::Output)?;
    let heard = io::stdin().lock().read_line(&mut answer);
    heard.map_err(CommandError::Output)?;
    if is_yes(&answer) {
        Ok(())
    } else {
        Err(CommandError::Declined)
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for yes in ["y\n", "Y", " yes \n", "YES"] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n", "no", "yess", "oui", "1"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
