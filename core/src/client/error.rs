//! What can go wrong on a link, by who has to know: a send, an acknowledgement,
//! a request, or the link itself.

use core::fmt;

use crate::error::Refusal;
use crate::frame::Kind;
use crate::frame::decode::DecodeError;
use crate::id::{Handle, Offset, PartitionIndex, Sequence};

/// What made a send fail without an answer of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its deadline passed.
    DeadlinePassed,
    /// The link ended.
    LinkEnded,
    /// The link leads to another installation now, which knows nothing of it.
    OtherInstallation,
    /// The broker was started again, and it was to be in memory only.
    Restarted,
    /// The broker does not know the producer any more, or knows a newer one.
    Fenced,
    /// The broker's storage failed, perhaps behind it.
    StorageFailed,
    /// The broker has no room on its disk.
    StoreFull,
    /// The application left.
    Left,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeadlinePassed => "its deadline passed",
            Self::LinkEnded => "the link to the broker ended",
            Self::OtherInstallation => "another installation answers in the broker's place",
            Self::Restarted => "the broker was started again",
            Self::Fenced => "the producer was fenced",
            Self::StorageFailed => "the broker's storage failed",
            Self::StoreFull => "no room is left where the broker keeps its data",
            Self::Left => "the client was closed",
        })
    }
}

impl std::error::Error for Cause {}

/// Why a send was not taken; the message is then nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The window or the outbox is full until a send is completed and its
    /// outcome taken.
    WouldBlock,
    /// The message exceeds a limit.
    TooLarge {
        /// Bytes of what is too large.
        size: u64,
        /// How many it may have.
        limit: u64,
    },
    /// The destination has no such partition.
    NoSuchPartition {
        /// What was asked for.
        partition: PartitionIndex,
        /// How many there are.
        partitions: u32,
    },
    /// The producer is closed or closing, or its link has ended.
    Closed,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => f.write_str("the window of the producer is full"),
            Self::TooLarge { size, limit } => {
                write!(f, "{size} bytes are too many, the limit is {limit}")
            }
            Self::NoSuchPartition {
                partition,
                partitions,
            } => write!(
                f,
                "there is no partition {partition}, the destination has {partitions}"
            ),
            Self::Closed => f.write_str("the producer is closed"),
        }
    }
}

impl std::error::Error for SendError {}

/// Why an acknowledgement was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckError {
    /// Too much waits for the broker to read; try again once some of it has left.
    WouldBlock,
    /// The destination has no such partition.
    NoSuchPartition {
        /// What was named.
        partition: PartitionIndex,
        /// How many there are.
        partitions: u32,
    },
    /// No partition can come so far.
    NoSuchOffset {
        /// What was named, or the first of it.
        offset: Offset,
    },
    /// The consumer is closed or closing, or its link has ended.
    Closed,
    /// The connection was lost: what was settled on it may be settled or not, and is
    /// settled again if it is delivered again.
    Disconnected,
}

impl fmt::Display for AckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => f.write_str("the broker reads too slowly to take it now"),
            Self::NoSuchPartition {
                partition,
                partitions,
            } => write!(
                f,
                "there is no partition {partition}, the destination has {partitions}"
            ),
            Self::NoSuchOffset { offset } => write!(f, "no partition can have offset {offset}"),
            Self::Closed => f.write_str("the consumer is closed"),
            Self::Disconnected => f.write_str("the connection to the broker was lost"),
        }
    }
}

impl std::error::Error for AckError {}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Too many requests, or bytes of them, wait for the broker.
    WouldBlock,
    /// A name is longer than 255 bytes.
    NameTooLong {
        /// Bytes of the name.
        size: usize,
    },
    /// The handle names nothing that is open, or the link has ended.
    Closed,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => f.write_str("too many requests wait for the broker"),
            Self::NameTooLong { size } => {
                write!(f, "a name has at most 255 bytes, this one has {size}")
            }
            Self::Closed => f.write_str("what the request is about is closed"),
        }
    }
}

impl std::error::Error for RequestError {}

/// How the broker broke the protocol. Each ends the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolFault {
    /// The bytes are no frame.
    Decode(DecodeError),
    /// A frame that a broker does not send, or not now.
    Unexpected {
        /// What it was.
        kind: Kind,
    },
    /// The broker answered with a version that was not offered.
    VersionNotOffered {
        /// Which one.
        version: u8,
    },
    /// An answer to a request that was not made, or of another kind.
    UnknownRequest {
        /// The request it names.
        request: u32,
        /// What the answer was.
        kind: Kind,
    },
    /// The frame is about something that is not open.
    UnknownHandle {
        /// What it names.
        handle: Handle,
        /// What the frame was.
        kind: Kind,
    },
    /// The broker gave out a handle that is in use.
    HandleInUse {
        /// Which one.
        handle: Handle,
    },
    /// A field of the frame is outside its range.
    OutOfRange {
        /// What the frame was.
        kind: Kind,
        /// Which field.
        field: &'static str,
        /// What it said.
        value: u64,
    },
    /// A text is not UTF-8.
    NotText {
        /// What the frame was.
        kind: Kind,
    },
    /// A run of nothing.
    EmptyRun,
    /// A completion for a send that has not left.
    NothingToComplete {
        /// Which send.
        sequence: Sequence,
    },
    /// A completion that is not the next one.
    CompletionOutOfOrder {
        /// Which send it names.
        sequence: Sequence,
        /// Which send is next.
        expected: Sequence,
    },
    /// A completion names another partition than the send went to.
    CompletionElsewhere {
        /// Which send.
        sequence: Sequence,
    },
    /// A delivery from a partition that the destination does not have.
    NoSuchPartition {
        /// Which one.
        partition: PartitionIndex,
    },
    /// A message does not stand where its delivery said.
    DeliveredElsewhere {
        /// The partition that was announced.
        partition: PartitionIndex,
        /// The lowest offset that could come next.
        expected: Offset,
        /// The offset that came.
        offset: Offset,
    },
    /// More was delivered than was allowed.
    CreditExceeded {
        /// To which consumer.
        handle: Handle,
    },
    /// A confirmation that nobody asked for.
    UnaskedConfirmation {
        /// What it echoes.
        confirm: u32,
    },
}

impl From<DecodeError> for ProtocolFault {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl fmt::Display for ProtocolFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(error) => error.fmt(f),
            Self::Unexpected { kind } => write!(f, "a frame {kind:?} does not belong here"),
            Self::VersionNotOffered { version } => {
                write!(
                    f,
                    "the broker chose version {version}, which was not offered"
                )
            }
            Self::UnknownRequest { request, kind } => {
                write!(f, "{kind:?} answers request {request}, which was not made")
            }
            Self::UnknownHandle { handle, kind } => {
                write!(f, "{kind:?} is about {handle}, which is not open")
            }
            Self::HandleInUse { handle } => write!(f, "handle {handle} was given out twice"),
            Self::OutOfRange { kind, field, value } => {
                write!(f, "the field {field} of {kind:?} is out of range: {value}")
            }
            Self::NotText { kind } => write!(f, "a text of {kind:?} is not valid UTF-8"),
            Self::EmptyRun => f.write_str("a run of nothing"),
            Self::NothingToComplete { sequence } => {
                write!(f, "send {sequence} was completed before it had left")
            }
            Self::CompletionOutOfOrder { sequence, expected } => {
                write!(f, "send {sequence} was completed where {expected} is next")
            }
            Self::CompletionElsewhere { sequence } => {
                write!(f, "send {sequence} was completed in another partition")
            }
            Self::NoSuchPartition { partition } => {
                write!(
                    f,
                    "a delivery from partition {partition}, which does not exist"
                )
            }
            Self::DeliveredElsewhere {
                partition,
                expected,
                offset,
            } => write!(
                f,
                "offset {offset} was delivered where {partition}@{expected} is next"
            ),
            Self::CreditExceeded { handle } => {
                write!(f, "more was delivered to {handle} than was allowed")
            }
            Self::UnaskedConfirmation { confirm } => {
                write!(f, "confirmation {confirm} was not asked for")
            }
        }
    }
}

impl std::error::Error for ProtocolFault {}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// The connection broke.
    Lost,
    /// The application left, and all it said is on its way.
    Left,
    /// The broker ended it and said why.
    Farewell {
        /// Why, if this version knows the reason.
        refusal: Option<Refusal>,
        /// The reason's code.
        code: u16,
        /// The lowest version that the broker speaks.
        version_min: u8,
        /// The highest version that the broker speaks.
        version_max: u8,
        /// Details.
        text: Box<str>,
    },
    /// The broker did not answer the hello in time.
    HelloTimedOut,
    /// The broker refused the session.
    SessionRefused {
        /// The reason's code.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// The broker broke the protocol.
    Fault(ProtocolFault),
    /// More control frames wait than their bound allows.
    Backlog,
}

/// What stands behind a reason, if anything does.
struct Details<'a>(&'a str);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.0)
    }
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = |code: u16| {
            Refusal::from_code(code).map_or("for a reason unknown to this version", Refusal::text)
        };
        match self {
            Self::Lost => f.write_str("the connection to the broker broke"),
            Self::Left => f.write_str("the client left"),
            Self::Farewell {
                refusal: Some(Refusal::VersionUnsupported),
                version_min,
                version_max,
                ..
            } => write!(
                f,
                "the broker speaks protocol versions {version_min} to {version_max}, this client {}",
                crate::frame::VERSION
            ),
            Self::Farewell { code, text, .. } => {
                write!(
                    f,
                    "the broker ended the link: {}{}",
                    reason(*code),
                    Details(text)
                )
            }
            Self::HelloTimedOut => f.write_str("the broker did not answer the hello in time"),
            Self::SessionRefused { code, text } => {
                write!(
                    f,
                    "the broker refused a session: {}{}",
                    reason(*code),
                    Details(text)
                )
            }
            Self::Fault(fault) => write!(f, "the broker broke the protocol: {fault}"),
            Self::Backlog => f.write_str("the broker reads too slowly for the requests made"),
        }
    }
}

impl std::error::Error for LinkEnd {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}
