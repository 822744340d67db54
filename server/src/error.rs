//! How a command ends when it does not end well: the message, and the exit status
//! that a script reads.

use std::io;
use std::process::ExitCode;

use courser_bench::BenchError;
use courser_transport::StartError;

use crate::serve::ServeError;

/// The exit statuses besides 0. They are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// This machine did not let it: a file, a port, memory.
    Failed = 1,
    /// The command line asks for something that does not exist or does not go together.
    Usage = 2,
    /// The broker cannot be reached, or the connection was lost.
    CannotConnect = 3,
    /// The broker was reached and refused.
    Refused = 4,
    /// What was measured or compared is not as it has to be.
    CheckFailed = 5,
    /// It took longer than was allowed.
    TimedOut = 6,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Why a command ended without doing what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// `courser serve`.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// `courser bench` could not measure.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// `courser bench` measured, and something was not as it has to be.
    #[error("a check of the measurement failed; its line above says which")]
    Check,
    /// Nobody takes what is written to standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

impl CommandError {
    /// What the process answers with.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Serve(error) => match error {
                ServeError::Exposed(_) | ServeError::SeveralShards(_) => Status::Usage,
                ServeError::Start(error) => match error {
                    StartError::Cores(_)
                    | StartError::SeveralShards { .. }
                    | StartError::Memory { .. } => Status::Usage,
                    StartError::Listen { .. }
                    | StartError::IoUring(_)
                    | StartError::Kernel { .. } => Status::Failed,
                },
                ServeError::Signals(_) => Status::Failed,
            },
            Self::Bench(error) => match error {
                BenchError::Option { .. }
                | BenchError::CpuNotAllowed { .. }
                | BenchError::SameCpu { .. } => Status::Usage,
                _ => Status::Failed,
            },
            Self::Check => Status::CheckFailed,
            Self::Output(_) => Status::Failed,
        }
    }

    /// The message as it is printed: the error, its code if it has one, and its
    /// causes as far as the message does not name them.
    pub(crate) fn report(&self) -> String {
        let code = match self {
            Self::Serve(ServeError::Start(error)) => format!("[{}]", error.code()),
            _ => String::new(),
        };
        let mut text = format!("error{code}: {self}");
        if let Self::Bench(error) = self {
            let mut cause = std::error::Error::source(error);
            while let Some(deeper) = cause {
                text.push_str(&format!(": {deeper}"));
                cause = deeper.source();
            }
        }
        text
    }
}
