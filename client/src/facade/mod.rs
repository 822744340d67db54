//! One-liners: a text to a queue or a topic, without a broker to start or a client to
//! keep.
//!
//! ```
//! # #[cfg(feature = "embedded")]
//! use courser::facade::producer;
//!
//! # #[cfg(feature = "embedded")]
//! producer::queue("queue1").send("Text Message")?;
//! # Ok::<(), courser::facade::FacadeError>(())
//! ```
//!
//! ```text
//!   queue("q"), topic("t")     a name, nothing else: no input or output
//!        | send, receive
//!        v
//!   the process's client  ---- use_client, init: that one, the broker there
//!                         '--- else, with the feature `embedded`: a broker in this
//!                              process, started when it is first needed
//! ```
//!
//! Calls of a process share one client and one producer for each destination, so ten
//! thousand one-liners use one link, and those of one thread keep their order. A client
//! whose link has ended is replaced at the next call.
//!
//! | host of the facade | |
//! |---|---|
//! | Rust | this module: [`v4`] and [`v3`], the same functions; [`producer`] and [`consumer`] are those of [`v4`] |
//! | command line | `courser send queue1 "Text Message"`, `courser receive queue1` |

mod post;
pub mod v4;

pub use v4 as v3;
pub use v4::{consumer, producer};

use std::sync::Arc;

use crate::address::{IllegalEndpoint, IntoEndpoints};
use crate::client::Client;
use crate::error::{AcknowledgeError, ConnectError, ReceiveError, RequestError, SendError};

/// Why a one-liner did not do what it says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FacadeError {
    /// Nobody has said where the broker is, and this build has none of its own.
    #[error(
        "cannot reach {destination}: the facade is used before it was told where the broker is; call courser::facade::init or use_client first, or build with the feature `embedded`"
    )]
    NotInitialised {
        /// As in `queue [x]`.
        destination: String,
    },
    /// The broker of this process does not start.
    #[cfg(feature = "embedded")]
    #[error("cannot reach {destination}: the broker in this process did not start: {source}")]
    Start {
        /// As in `queue [x]`.
        destination: String,
        /// Why not.
        source: Box<courser_transport::StartError>,
    },
    /// There is no connection to the broker.
    #[error("cannot reach {destination}: {source}")]
    Connect {
        /// As in `queue [x]`.
        destination: String,
        /// Why not.
        source: ConnectError,
    },
    /// The destination does not open.
    #[error("cannot open {destination}: {source}")]
    Open {
        /// As in `queue [x]`.
        destination: String,
        /// Why not.
        source: RequestError,
    },
    /// A message was not sent, or nobody knows.
    #[error("failed to send message to {destination}: {source}")]
    Send {
        /// As in `queue [x]`.
        destination: String,
        /// Why, and which of the two.
        source: SendError,
    },
    /// Nothing can be received any more.
    #[error("failed to receive message from {destination}: {source}")]
    Receive {
        /// As in `queue [x]`.
        destination: String,
        /// Why.
        source: ReceiveError,
    },
    /// What was received may come again.
    #[error("failed to acknowledge message from {destination}: {source}")]
    Acknowledge {
        /// As in `queue [x]`.
        destination: String,
        /// Why.
        source: AcknowledgeError,
    },
    /// A message came that is no text; it is still there.
    #[error("the message in {destination} is no text")]
    NotText {
        /// As in `queue [x]`.
        destination: String,
    },
}

/// From here on the facade is for the broker there: `host:port`, or several of them. It
/// is connected to when it is first needed.
///
/// # Errors
///
/// If the address is in no accepted format.
pub fn init(endpoints: impl IntoEndpoints) -> Result<(), IllegalEndpoint> {
    post::turn_to(post::Origin::Network(endpoints.into_endpoints()?));
    Ok(())
}

/// From here on the facade uses this client.
pub fn use_client(client: &Client) {
    post::turn_to(post::Origin::Given(client.clone()));
}

/// Ends what the facade has open, and the broker if it has started one; the next call
/// begins anew.
pub fn shutdown() {
    post::turn_to(post::Origin::Unsaid);
}

/// The client that the facade uses, for what one-liners have no words for.
///
/// # Errors
///
/// If there is no broker to be had.
pub fn client() -> Result<Client, FacadeError> {
    post::client("the broker")
}

/// Where something is sent to or received from.
#[derive(Clone, Debug)]
struct Place {
    kind: &'static str,
    name: Arc<str>,
}

impl Place {
    fn queue(name: &str) -> Self {
        Self {
            kind: "queue",
            name: name.into(),
        }
    }

    fn topic(name: &str) -> Self {
        Self {
            kind: "topic",
            name: name.into(),
        }
    }

    /// As a client is asked for it.
    fn address(&self) -> String {
        format!("{}:{}", self.kind, self.name)
    }

    /// As an error says it.
    fn shown(&self) -> String {
        format!("{} [{}]", self.kind, self.name)
    }
}
