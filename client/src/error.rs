//! What can go wrong, one enum per operation.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use courser_core::client::{self, LinkEnd, ProtocolFault};
use courser_core::error::Refusal;
use courser_core::frame::VERSION;
use courser_core::id::{Offset, PartitionIndex};

use crate::address::IllegalEndpoint;
use crate::message::Message;

/// Why no broker was reached. With several endpoints it speaks of the last one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is in no format that is accepted.
    #[error(transparent)]
    Address(#[from] IllegalEndpoint),
    /// The host has no address.
    #[error("the name of {address} cannot be resolved: {source}")]
    Resolve {
        /// Which endpoint.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("{address} refused the connection; is a broker running there?")]
    Refused {
        /// Which endpoint.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// There was no answer in time.
    #[error("{address} did not answer within {} ms", after.as_millis())]
    TimedOut {
        /// Which endpoint.
        address: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection failed in another way.
    #[error("{address} cannot be reached: {source}")]
    Io {
        /// Which endpoint.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Both sides speak different versions.
    #[error(
        "{address} speaks protocol versions {version_min} to {version_max}, this client version {VERSION}"
    )]
    Version {
        /// Which endpoint.
        address: String,
        /// The lowest version that the broker speaks.
        version_min: u8,
        /// The highest version that the broker speaks.
        version_max: u8,
    },
    /// The broker sent the client away.
    #[error("{address} sent the client away: {end}")]
    SentAway {
        /// Which endpoint.
        address: String,
        /// What it said.
        end: Arc<LinkEnd>,
    },
    /// The broker in this process has no link to give.
    #[cfg(feature = "embedded")]
    #[error(transparent)]
    NoLink(#[from] courser_transport::in_process::NoLink),
    /// What answered is no broker.
    #[error("{address} does not speak the protocol: {source}")]
    NotABroker {
        /// Which endpoint.
        address: String,
        /// What it did.
        source: ProtocolFault,
    },
}

/// What made a send fail without an answer of the broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// Its time-out passed.
    #[error("the time-out of the send passed")]
    TimedOut,
    /// The link ended.
    #[error("the link ended: {0}")]
    LinkEnded(#[source] Arc<LinkEnd>),
    /// The broker started anew without what it held, or another one answers in its
    /// place.
    #[error("the broker holds another installation's data now")]
    OtherInstallation,
    /// The broker was started again, and the message was not to be flushed: if it was
    /// there, it is not any more.
    #[error("the broker was started again, without what it had in memory only")]
    Restarted,
    /// The broker does not know the producer any more, or knows a newer one.
    #[error("the producer was fenced")]
    Fenced,
    /// The broker's storage failed: what is kept shows when it is started again.
    #[error("the broker's storage failed, and nothing is made durable before it is started again")]
    StorageFailed,
    /// The broker's disk is full: it takes messages again, and so may the same producer's,
    /// once there is room.
    #[error("no room is left where the broker keeps its data: free some, or add some")]
    StoreFull,
    /// The client was closed before.
    #[error("the client was closed")]
    Closed,
    /// Too many sends wait for room already.
    #[error("too many sends wait for room in the window")]
    Crowded,
    /// The system gave no thread to run listeners on, or to drive the link.
    #[error("no thread could be started")]
    NoThread,
}

/// What became of a send that did not end in a receipt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is certainly not in the broker.
    #[error("the message was not stored: {cause}")]
    NotStored {
        /// Why.
        cause: Cause,
    },
    /// The message may or may not be in the broker.
    #[error("whether the message was stored is unknown: {cause}")]
    Unknown {
        /// Why.
        cause: Cause,
    },
    /// The broker refused the message.
    #[error("the broker refused the message: {0}")]
    Refused(Refusal),
    /// The broker refused the message for a reason that this version does not know.
    #[error("the broker refused the message with code {0}")]
    RefusedWithCode(u16),
    /// The message exceeds a limit.
    #[error("{size} bytes are too many, the limit is {limit}")]
    TooLarge {
        /// Bytes of what is too large.
        size: u64,
        /// How many it may have.
        limit: u64,
    },
    /// The destination has no such partition.
    #[error("there is no partition {partition}, the destination has {partitions}")]
    NoSuchPartition {
        /// What was asked for.
        partition: PartitionIndex,
        /// How many there are.
        partitions: u32,
    },
    /// The producer is closed, or its link has ended.
    #[error("the producer is closed")]
    Closed,
}

impl SendError {
    pub(crate) fn of(failure: client::Failure, end: Option<&Arc<LinkEnd>>) -> Self {
        let cause = |cause| match (cause, end) {
            (client::Cause::DeadlinePassed, _) => Cause::TimedOut,
            (client::Cause::LinkEnded, Some(end)) => Cause::LinkEnded(Arc::clone(end)),
            (client::Cause::LinkEnded, None) => Cause::LinkEnded(Arc::new(LinkEnd::Lost)),
            (client::Cause::OtherInstallation, _) => Cause::OtherInstallation,
            (client::Cause::Restarted, _) => Cause::Restarted,
            (client::Cause::Fenced, _) => Cause::Fenced,
            (client::Cause::StorageFailed, _) => Cause::StorageFailed,
            (client::Cause::StoreFull, _) => Cause::StoreFull,
            (client::Cause::Left, _) => Cause::Closed,
        };
        match failure {
            client::Failure::NotStored(why) => Self::NotStored { cause: cause(why) },
            client::Failure::Unknown(why) => Self::Unknown { cause: cause(why) },
            client::Failure::Refused(refusal) => Self::Refused(refusal),
            client::Failure::RefusedWithCode(code) => Self::RefusedWithCode(code),
        }
    }

    /// The error of a send that was not taken for a reason that time does not heal.
    pub(crate) fn not_taken(error: client::SendError) -> Self {
        match error {
            client::SendError::WouldBlock => Self::NotStored {
                cause: Cause::TimedOut,
            },
            client::SendError::TooLarge { size, limit } => Self::TooLarge { size, limit },
            client::SendError::NoSuchPartition {
                partition,
                partitions,
            } => Self::NoSuchPartition {
                partition,
                partitions,
            },
            client::SendError::Closed => Self::Closed,
        }
    }
}

/// Why a message was not taken in poll mode; it is then nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// The window is full: poll, then try again.
    #[error("the window of the producer is full")]
    WouldBlock,
    /// It will never be taken.
    #[error(transparent)]
    Failed(#[from] SendError),
}

/// A message that an asynchronous send did not take: there will be no callback.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotAccepted {
    /// The message.
    pub message: Message,
    /// Why.
    #[source]
    pub error: SendError,
}

/// Why a request was not fulfilled: opening, closing, statistics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The name is not a destination's name.
    #[error("{name:?} is no destination: {refusal}")]
    Name {
        /// What was given.
        name: String,
        /// The rule.
        refusal: Refusal,
    },
    /// The broker refused.
    #[error("the broker refused: {}{}{text}",
        refusal.map_or_else(|| format!("code {code}"), |refusal| refusal.to_string()),
        if text.is_empty() { "" } else { ": " })]
    Refused {
        /// Why, if this version knows the reason.
        refusal: Option<Refusal>,
        /// The reason's code.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// Another broker owns the destination.
    #[error("the destination is at {address}; connect there")]
    Elsewhere {
        /// Where.
        address: Box<str>,
    },
    /// The broker did not answer in time.
    #[error("the broker did not answer within {} ms", after.as_millis())]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The link has ended.
    #[error("the link ended: {0}")]
    LinkEnded(#[source] Arc<LinkEnd>),
    /// The request cannot be made.
    #[error(transparent)]
    NotMade(client::RequestError),
    /// It would wait for a callback of this session in a callback of this session.
    #[error("close and flush cannot be called in a callback of the same session")]
    IllegalState,
}

/// Why nothing was received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The link has ended; what was delivered before is handed out first.
    #[error("the link ended: {0}")]
    LinkEnded(#[source] Arc<LinkEnd>),
    /// The consumer is closed.
    #[error("the consumer is closed")]
    Closed,
    /// The connection was lost, and on the next one the broker did not open the
    /// consumer again.
    #[error("the consumer was not opened again after the connection was lost: {}{}",
        refusal.map_or_else(|| format!("code {code}"), |refusal| refusal.to_string()),
        if text.is_empty() { String::new() } else { format!(" ({text})") })]
    NotResumed {
        /// Why, if this version knows the reason.
        refusal: Option<Refusal>,
        /// The reason's code.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// The broker ended the consumer: its destination or its subscription was deleted.
    /// What was delivered before is handed out first.
    #[error("the broker ended the consumer: {}{}",
        refusal.map_or_else(|| format!("code {code}"), |refusal| refusal.to_string()),
        if text.is_empty() { String::new() } else { format!(" ({text})") })]
    Ended {
        /// Why, if this version knows the reason.
        refusal: Option<Refusal>,
        /// The reason's code.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// The broker did not say in time whether there is anything.
    #[error("the broker did not say within {} ms whether there is a message", after.as_millis())]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The system gave no thread to drive the link, or to run a listener on.
    #[error("no thread could be started")]
    NoThread,
}

/// Why an acknowledgement was not taken or not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcknowledgeError {
    /// The destination has no such partition.
    #[error("there is no partition {partition}, the destination has {partitions}")]
    NoSuchPartition {
        /// What was named.
        partition: PartitionIndex,
        /// How many there are.
        partitions: u32,
    },
    /// No partition can come so far.
    #[error("no partition can have offset {offset}")]
    NoSuchOffset {
        /// What was named, or the first of it.
        offset: Offset,
    },
    /// The broker reads too slowly to take it now; try again.
    #[error("the broker reads too slowly to take it now")]
    WouldBlock,
    /// The broker refused it.
    #[error("the broker refused the acknowledgement: {}",
        refusal.map_or_else(|| format!("code {code}"), |refusal| refusal.to_string()))]
    Refused {
        /// Why, if this version knows the reason.
        refusal: Option<Refusal>,
        /// The reason's code.
        code: u16,
    },
    /// The broker did not confirm in time.
    #[error("the broker did not confirm within {} ms", after.as_millis())]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The connection was lost: it may be settled or not.
    #[error("the connection was lost before the acknowledgement was confirmed")]
    Disconnected,
    /// The link has ended.
    #[error("the link ended: {0}")]
    LinkEnded(#[source] Arc<LinkEnd>),
    /// The consumer is closed.
    #[error("the consumer is closed")]
    Closed,
}

impl From<client::AckError> for AcknowledgeError {
    fn from(error: client::AckError) -> Self {
        match error {
            client::AckError::WouldBlock => Self::WouldBlock,
            client::AckError::NoSuchPartition {
                partition,
                partitions,
            } => Self::NoSuchPartition {
                partition,
                partitions,
            },
            client::AckError::NoSuchOffset { offset } => Self::NoSuchOffset { offset },
            client::AckError::Closed => Self::Closed,
            client::AckError::Disconnected => Self::Disconnected,
        }
    }
}
