//! Bytes to values: total, and without a copy.
//!
//! Any bytes in any split give frames or one named error. [`peek`] reads the
//! first eight bytes and says how long the frame is, within the limits of who
//! sends it; [`decode`] takes a whole frame apart. Neither allocates.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use core::fmt;

use zerocopy::FromBytes;

use super::control::Control;
use super::{
    ALIGNMENT, CONTROL_HEADER_SIZE, Kind, MESSAGE_HEADER_SIZE, MessageHeader, PREFIX_SIZE, Prefix,
    VERSION, checksum,
};
use crate::error::Refusal;
use crate::limits;
use crate::planted::Planted;

/// Why bytes are not a frame. Each ends the link that they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The kind is not one of the protocol's.
    UnknownKind {
        /// What stood there.
        kind: u8,
    },
    /// The frame is of another version.
    UnknownVersion {
        /// What stood there.
        version: u8,
    },
    /// The frame claims to be longer than a frame of its kind may be.
    TooLong {
        /// What it claims, in bytes.
        length: u32,
        /// The limit, in bytes.
        limit: u32,
    },
    /// The frame is too short for the fields of its kind.
    TooShort {
        /// What it claims, in bytes.
        length: u32,
    },
    /// The padding is not zero.
    DirtyPadding,
    /// A control frame has a flag set; none of them means anything yet.
    UnknownFlags {
        /// What stood there.
        flags: u16,
    },
    /// The tail of a control frame is not as long as its fields say.
    TailMismatch {
        /// What the fields say, in bytes.
        claimed: u64,
        /// Bytes of the tail.
        actual: u64,
    },
    /// The checksum does not match.
    ChecksumMismatch {
        /// What stood in the frame.
        claimed: u32,
        /// What its bytes give.
        actual: u32,
    },
    /// The properties are longer than the frame.
    PropertiesTooLong {
        /// What the header claims, in bytes.
        length: u32,
    },
}

impl DecodeError {
    /// What the peer is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::UnknownVersion { .. } => Refusal::VersionUnsupported,
            Self::TooLong { .. } => Refusal::FrameTooLarge,
            Self::ChecksumMismatch { .. } => Refusal::ChecksumMismatch,
            Self::UnknownKind { .. }
            | Self::TooShort { .. }
            | Self::DirtyPadding
            | Self::UnknownFlags { .. }
            | Self::TailMismatch { .. }
            | Self::PropertiesTooLong { .. } => Refusal::Malformed,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { kind } => write!(f, "no frame is of kind {kind:#04x}"),
            Self::UnknownVersion { version } => {
                write!(
                    f,
                    "the frame is of version {version}, this side speaks {VERSION}"
                )
            }
            Self::TooLong { length, limit } => {
                write!(f, "the frame claims {length} bytes, the limit is {limit}")
            }
            Self::TooShort { length } => {
                write!(f, "the frame claims {length} bytes, too few for its kind")
            }
            Self::DirtyPadding => f.write_str("the padding of the frame is not zero"),
            Self::UnknownFlags { flags } => {
                write!(
                    f,
                    "the control frame has flags {flags:#06x}, none has a meaning"
                )
            }
            Self::TailMismatch { claimed, actual } => {
                write!(
                    f,
                    "the frame's fields claim {claimed} bytes behind them, it has {actual}"
                )
            }
            Self::ChecksumMismatch { claimed, actual } => {
                write!(
                    f,
                    "the frame claims checksum {claimed:08x}, its bytes give {actual:08x}"
                )
            }
            Self::PropertiesTooLong { length } => {
                write!(
                    f,
                    "the properties claim {length} bytes, more than the frame has"
                )
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// What the first eight bytes of a frame tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// What the frame is.
    pub kind: Kind,
    /// Its bytes without padding.
    pub length: usize,
    /// Its bytes with padding.
    pub size: usize,
}

/// Reads the prefix at the front of `bytes`: `None` if there are fewer than eight.
///
/// # Errors
///
/// If no frame of the protocol begins like this.
#[inline]
pub fn peek(bytes: &[u8]) -> Result<Option<Peek>, DecodeError> {
    let Ok((prefix, _)) = Prefix::ref_from_prefix(bytes) else {
        return Ok(None);
    };
    let Some(kind) = Kind::from_code(prefix.kind) else {
        return Err(DecodeError::UnknownKind { kind: prefix.kind });
    };
    // These two are read whatever their version says: their fields negotiate,
    // and a peer that speaks no common version must still understand the farewell.
    let negotiates = matches!(kind, Kind::Hello | Kind::Farewell);
    if prefix.version != VERSION && !negotiates {
        return Err(DecodeError::UnknownVersion {
            version: prefix.version,
        });
    }
    let length = prefix.length.get();
    let (least, limit) = match kind {
        Kind::Message => (MESSAGE_HEADER_SIZE, limits::FRAME_SIZE_MAX),
        Kind::Hello => (CONTROL_HEADER_SIZE, limits::HELLO_SIZE_MAX),
        _ => (CONTROL_HEADER_SIZE, limits::CONTROL_SIZE_MAX),
    };
    if length > limit {
        return Err(DecodeError::TooLong { length, limit });
    }
    let Some(length_bytes) = usize::try_from(length)
        .ok()
        .filter(|length| *length >= least)
    else {
        return Err(DecodeError::TooShort { length });
    };
    let Some(size) = length_bytes.checked_next_multiple_of(ALIGNMENT) else {
        return Err(DecodeError::TooLong { length, limit });
    };
    Ok(Some(Peek {
        kind,
        length: length_bytes,
        size,
    }))
}

/// A message as it lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its header.
    pub header: &'a MessageHeader,
    /// Its properties, undecoded.
    pub properties: &'a [u8],
    /// Its body.
    pub body: &'a [u8],
    /// All of it, with its padding.
    pub bytes: &'a [u8],
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message.
    Message(Message<'a>),
    /// A frame of the control plane.
    Control {
        /// The request or handle it is about.
        subject: u32,
        /// The fields and the tail.
        control: Control<'a>,
    },
}

/// What the front of a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A frame and how many bytes it takes up.
    Frame(Frame<'a>, usize),
    /// A frame that is not there yet: how many bytes would bring the next step.
    Incomplete(usize),
}

/// Takes the frame at the front of `bytes` apart.
///
/// # Errors
///
/// If no frame of the protocol stands there.
#[inline]
pub fn decode(bytes: &[u8]) -> Result<Step<'_>, DecodeError> {
    let Some(peek) = peek(bytes)? else {
        return Ok(Step::Incomplete(PREFIX_SIZE));
    };
    let Some(frame) = bytes.get(..peek.size) else {
        return Ok(Step::Incomplete(peek.size));
    };
    let (Some(unpadded), Some(padding)) = (frame.get(..peek.length), frame.get(peek.length..))
    else {
        return Ok(Step::Incomplete(peek.size));
    };
    if padding.iter().any(|byte| *byte != 0) {
        return Err(DecodeError::DirtyPadding);
    }
    let frame = if peek.kind == Kind::Message {
        Frame::Message(message(frame, unpadded)?)
    } else {
        control(peek.kind, unpadded)?
    };
    Ok(Step::Frame(frame, peek.size))
}

/// Checks a message's header against the length of its frame, whose checksum the
/// caller has computed from bytes that lie in pieces.
///
/// # Errors
///
/// If the checksum or the property length is wrong.
#[inline]
pub fn verify(header: &MessageHeader, actual: u32) -> Result<(), DecodeError> {
    let claimed = header.checksum.get();
    if claimed != actual {
        return Err(DecodeError::ChecksumMismatch { claimed, actual });
    }
    let rest = usize::try_from(header.length.get())
        .unwrap_or(usize::MAX)
        .saturating_sub(MESSAGE_HEADER_SIZE);
    let properties = header.property_length.get();
    if usize::try_from(properties).map_or(true, |properties| properties > rest) {
        return Err(DecodeError::PropertiesTooLong { length: properties });
    }
    Ok(())
}

#[inline]
fn message<'a>(bytes: &'a [u8], unpadded: &'a [u8]) -> Result<Message<'a>, DecodeError> {
    let too_short = || DecodeError::TooShort {
        length: length_field(unpadded),
    };
    let (header, rest) = MessageHeader::ref_from_prefix(unpadded).map_err(|_| too_short())?;
    verify(header, checksum::message(unpadded))?;
    let properties = usize::try_from(header.property_length.get()).unwrap_or(usize::MAX);
    let (properties, body) = rest.split_at_checked(properties).ok_or_else(too_short)?;
    Ok(Message {
        header,
        properties,
        body,
        bytes,
    })
}

#[inline]
fn control(kind: Kind, unpadded: &[u8]) -> Result<Frame<'_>, DecodeError> {
    let too_short = || DecodeError::TooShort {
        length: length_field(unpadded),
    };
    let word = |at: usize| {
        unpadded
            .get(at..)
            .and_then(|bytes| bytes.first_chunk::<4>())
            .map(|bytes| u32::from_le_bytes(*bytes))
            .ok_or_else(too_short)
    };
    let claimed = word(PREFIX_SIZE)?;
    let actual = checksum::control(unpadded);
    if claimed != actual {
        return Err(DecodeError::ChecksumMismatch { claimed, actual });
    }
    let subject = word(12)?;
    let rest = unpadded.get(CONTROL_HEADER_SIZE..).ok_or_else(too_short)?;
    let control = Control::split(kind, rest).ok_or_else(too_short)?;
    let flags = Prefix::ref_from_prefix(unpadded).map_or(0, |(prefix, _)| prefix.flags.get());
    if flags != 0 {
        return Err(DecodeError::UnknownFlags { flags });
    }
    let actual = u64::try_from(control.tail().len()).unwrap_or(u64::MAX);
    // What a fuzzer has to find: one kind alone, and there only with a certain
    // relation between two fields.
    if Planted::FuzzTailOfSubscription.is_awake()
        && let Control::OpenConsumer(fields, _) = control
        && fields.subscription_length > fields.destination_length
    {
        return Ok(Frame::Control { subject, control });
    }
    if let Some(claimed) = control.tail_size()
        && claimed != actual
    {
        return Err(DecodeError::TailMismatch { claimed, actual });
    }
    Ok(Frame::Control { subject, control })
}

fn length_field(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Reads `length` bytes of UTF-8 from the front of `tail`; what is left comes second.
#[must_use]
pub fn text(tail: &[u8], length: u16) -> Option<(&str, &[u8])> {
    let (text, rest) = tail.split_at_checked(usize::from(length))?;
    Some((core::str::from_utf8(text).ok()?, rest))
}
