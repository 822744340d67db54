//! How a command ends when it does not end well: the message, and the exit status
//! that a script reads.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use courser::{
    AcknowledgeError, Cause, ConnectError, Destination, LinkEnd, ReceiveError, Refusal,
    RequestError, SendError,
};
use courser_bench::BenchError;
use courser_transport::StartError;
use courser_transport::disk::DirectoryError;

use crate::receive::ReceiveFailed;
use crate::send::SendFailed;
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
    /// No broker was reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A destination was not opened.
    #[error("{destination} cannot be opened: {source}")]
    Open {
        /// Which one.
        destination: Destination,
        /// Why.
        source: RequestError,
    },
    /// The broker did not answer a question.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// `courser send`.
    #[error(transparent)]
    Send(#[from] SendFailed),
    /// `courser receive`.
    #[error(transparent)]
    Receive(#[from] ReceiveFailed),
    /// `courser bench` could not measure.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// `courser bench` measured, and something was not as it has to be.
    #[error("a check of the measurement failed; its line above says which")]
    Check,
    /// A data directory cannot be looked at.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It was looked at, and is not as it has to be.
    #[error("the data directory {} is damaged; the lines above say where", directory.display())]
    Damaged {
        /// Which directory.
        directory: PathBuf,
    },
    /// It was looked at for what it does not hold.
    #[error("{} holds nothing of {destination}", directory.display())]
    NotInDirectory {
        /// What was looked for.
        destination: Destination,
        /// Where.
        directory: PathBuf,
    },
    /// Something is to be done that cannot be taken back, and there is no terminal.
    #[error("{what}? This has to be confirmed, and there is nobody to ask")]
    NobodyToAsk {
        /// What would be done.
        what: String,
    },
    /// It was not confirmed.
    #[error("not confirmed, nothing was changed")]
    Declined,
    /// `set` without anything to set.
    #[error("nothing is to be set")]
    NothingToSet,
    /// It was there a moment ago.
    #[error("{what} went while it was looked at")]
    Vanished {
        /// What.
        what: String,
    },
    /// Nobody takes what is written to standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

impl CommandError {
    /// A destination was not opened.
    pub(crate) fn opening(destination: &Destination, source: RequestError) -> Self {
        let destination = destination.clone();
        Self::Open {
            destination,
            source,
        }
    }

    /// What the process answers with.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Serve(error) => match error {
                ServeError::Exposed(_) => Status::Usage,
                ServeError::Start(error) => not_started(error),
                ServeError::Signals(_) => Status::Failed,
            },
            Self::Connect(error) => match error {
                ConnectError::Address(_) => Status::Usage,
                ConnectError::SentAway { end, .. } => link_ended(end),
                _ => Status::CannotConnect,
            },
            Self::Open { source, .. } | Self::Request(source) => request_failed(source),
            Self::Send(error) => match error {
                SendFailed::Send {
                    lost: Some(end), ..
                } => link_ended(end),
                SendFailed::Send { source, .. } => send_failed(source),
                SendFailed::Input { .. } | SendFailed::AckLog(_) => Status::Failed,
            },
            Self::Receive(error) => match error {
                ReceiveFailed::Receive(ReceiveError::LinkEnded(end))
                | ReceiveFailed::Acknowledge {
                    source: AcknowledgeError::LinkEnded(end),
                    ..
                } => link_ended(end),
                ReceiveFailed::Acknowledge {
                    source: AcknowledgeError::Refused { .. },
                    ..
                }
                | ReceiveFailed::Receive(
                    ReceiveError::NotResumed { .. } | ReceiveError::Ended { .. },
                ) => Status::Refused,
                ReceiveFailed::Acknowledge {
                    source: AcknowledgeError::Disconnected,
                    ..
                } => Status::CannotConnect,
                ReceiveFailed::Acknowledge { .. } | ReceiveFailed::TooFew { .. } => {
                    Status::TimedOut
                }
                ReceiveFailed::Receive(_)
                | ReceiveFailed::Stopped { .. }
                | ReceiveFailed::Dump(_)
                | ReceiveFailed::Output(_)
                | ReceiveFailed::Signals(_) => Status::Failed,
            },
            Self::Bench(error) => match error {
                BenchError::Option { .. }
                | BenchError::CpuNotAllowed { .. }
                | BenchError::SameCpu { .. } => Status::Usage,
                BenchError::Start(error) => not_started(error),
                BenchError::NoAnswer { .. } => Status::TimedOut,
                BenchError::Client { source, .. } if source.is::<ConnectError>() => {
                    Status::CannotConnect
                }
                _ => Status::Failed,
            },
            Self::NobodyToAsk { .. } | Self::NothingToSet | Self::NotInDirectory { .. } => {
                Status::Usage
            }
            Self::Declined => Status::Failed,
            Self::Vanished { .. } => Status::Refused,
            Self::Directory(DirectoryError::Damaged { .. } | DirectoryError::Nameless { .. })
            | Self::Damaged { .. }
            | Self::Check => Status::CheckFailed,
            Self::Directory(DirectoryError::Nothing { .. }) => Status::Usage,
            Self::Directory(_) => Status::Failed,
            Self::Output(_) => Status::Failed,
        }
    }

    /// The message as it is printed: the error, its code if it has one, its causes as
    /// far as the message does not name them, and what to do where that is known.
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
        if let Some(fix) = self.fix() {
            text.push_str("\n  fix    ");
            text.push_str(fix);
        }
        text
    }

    fn fix(&self) -> Option<&'static str> {
        match self {
            Self::NobodyToAsk { .. } => Some("--yes"),
            Self::NothingToSet => {
                Some("--max-producers N · --max-consumers N · --max-subscriptions N")
            }
            Self::Request(RequestError::Refused { refusal, text, .. }) => match refusal {
                Some(Refusal::PreconditionFailed) if text.contains("is in use") => Some("--force"),
                Some(Refusal::PreconditionFailed) if text.ends_with("set it") => {
                    Some("courser topic set · courser queue set")
                }
                _ => None,
            },
            Self::Connect(ConnectError::Refused { .. }) => {
                Some("courser serve · or --connect HOST:PORT")
            }
            Self::Open {
                source: RequestError::Refused { refusal, .. },
                ..
            } => match refusal {
                Some(Refusal::PreconditionFailed) => Some(
                    "leave out --partitions and --retain, give the subscription's --type, or choose another name",
                ),
                Some(Refusal::Exclusive) => {
                    Some("end the other consumer, or choose another --subscription")
                }
                Some(Refusal::IllegalArgument) => Some("courser limits lists what is allowed"),
                _ => None,
            },
            Self::Send(SendFailed::Send {
                source, lost: None, ..
            }) => match source {
                SendError::NotStored {
                    cause: Cause::TimedOut,
                } => Some(
                    "if the destination is full, receive from it or serve with more --memory; else allow more --timeout",
                ),
                SendError::TooLarge { .. } => Some("send smaller messages; see courser limits"),
                _ => None,
            },
            _ => None,
        }
    }
}

fn not_started(error: &StartError) -> Status {
    match error {
        StartError::Cores(_)
        | StartError::TooManyShards { .. }
        | StartError::Memory { .. }
        | StartError::Backlog { .. }
        | StartError::WithoutThreads { .. } => Status::Usage,
        StartError::Listen { .. }
        | StartError::IoUring(_)
        | StartError::MemoryNotThere { .. }
        | StartError::Store(_)
        | StartError::Kernel { .. } => Status::Failed,
    }
}

fn request_failed(error: &RequestError) -> Status {
    match error {
        RequestError::Refused { .. } | RequestError::Elsewhere { .. } => Status::Refused,
        RequestError::TimedOut { .. } => Status::TimedOut,
        RequestError::LinkEnded(end) => link_ended(end),
        RequestError::Name { .. } | RequestError::NotMade(_) => Status::Usage,
        _ => Status::Failed,
    }
}

fn send_failed(error: &SendError) -> Status {
    match error {
        SendError::NotStored { cause } | SendError::Unknown { cause } => match cause {
            Cause::TimedOut => Status::TimedOut,
            Cause::LinkEnded(end) => link_ended(end),
            Cause::OtherInstallation | Cause::Restarted | Cause::Fenced => Status::CannotConnect,
            _ => Status::Failed,
        },
        SendError::Refused(_) | SendError::RefusedWithCode(_) => Status::Refused,
        SendError::TooLarge { .. } | SendError::NoSuchPartition { .. } => Status::Usage,
        _ => Status::CannotConnect,
    }
}

/// A broker that says why it ends a link has refused something, unless it only stops.
fn link_ended(end: &LinkEnd) -> Status {
    match end {
        LinkEnd::Farewell {
            refusal: Some(Refusal::Stopping),
            ..
        } => Status::CannotConnect,
        LinkEnd::Farewell { .. } | LinkEnd::SessionRefused { .. } => Status::Refused,
        LinkEnd::HelloTimedOut => Status::TimedOut,
        _ => Status::CannotConnect,
    }
}
