//! A progress bar for a person, and nothing at all for a file.
//!
//! The bar is drawn by the measuring thread between two slices; it has no
//! ticker of its own, because a third thread on two cores would be measured.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far a run has come, shown only if standard error is a terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `steps` steps.
    #[must_use]
    pub fn new(steps: u64) -> Self {
        let target = if stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(4)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}  {wide_msg}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Names what comes next.
    pub fn next(&self, what: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(what.to_owned());
        }
    }

    /// Counts one step as done.
    pub fn done(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
