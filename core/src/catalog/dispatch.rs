//! Dispatch: when a message that is to be flushed may be seen.
//!
//! ```text
//!            stored ──────────── flushed ──> outcome told
//!  durable:     (hidden)            └──────> seen
//!  early:       └──> seen
//! ```
//!
//! Its outcome waits for the flush either way: what differs is only whether a consumer
//! may know of a message that a crash takes back.

use core::fmt;
use core::str::FromStr;

/// When consumers see a message that is to be flushed; fixed when a destination is
/// created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Dispatch {
    /// Once it is durable.
    #[default]
    Durable = 0,
    /// At once. A crash may take it back after somebody saw it.
    Early = 1,
}

impl Dispatch {
    /// The one with this code on the wire and in the journal.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Durable),
            1 => Some(Self::Early),
            _ => None,
        }
    }
}

impl fmt::Display for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Durable => "durable",
            Self::Early => "early",
        })
    }
}

/// A word that is no dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDispatch(Box<str>);

impl fmt::Display for UnknownDispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dispatch is durable or early, not {:?}", self.0)
    }
}

impl core::error::Error for UnknownDispatch {}

impl FromStr for Dispatch {
    type Err = UnknownDispatch;

    fn from_str(word: &str) -> Result<Self, UnknownDispatch> {
        match word {
            "durable" => Ok(Self::Durable),
            "early" => Ok(Self::Early),
            other => Err(UnknownDispatch(other.into())),
        }
    }
}
