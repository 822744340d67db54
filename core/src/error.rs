//! What can be wrong with what a peer asked for, as it travels on the wire.
//!
//! A [`Refusal`] is an answer about one request or one send; the link goes on.
//! A fault of the protocol itself ends the link and is a
//! [`DecodeError`](crate::frame::decode::DecodeError) or a [`Refusal`] sent as
//! the link's last frame.

use core::fmt;

macro_rules! refusals {
    ($( $(#[$doc:meta])* $name:ident = $code:literal, $text:literal; )*) => {
        /// Why a request or a send was refused. The code is stable on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Refusal {
            $( $(#[$doc])* $name = $code, )*
        }

        impl Refusal {
            /// Every refusal there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The refusal that `code` stands for.
            #[must_use]
            pub fn from_code(code: u16) -> Option<Self> {
                match code {
                    $( $code => Some(Self::$name), )*
                    _ => None,
                }
            }

            /// The stable number on the wire.
            #[must_use]
            pub fn code(self) -> u16 {
                self as u16
            }

            /// What it means, as the end of a sentence.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $( Self::$name => $text, )*
                }
            }
        }
    };
}

refusals! {
    /// The peer speaks no version that this side speaks.
    VersionUnsupported = 1, "no protocol version is spoken by both sides";
    /// Bytes that are no frame of the protocol.
    Malformed = 2, "the bytes are not a valid frame";
    /// A frame longer than the limit.
    FrameTooLarge = 3, "the frame is longer than the limit";
    /// A frame whose checksum does not match its bytes.
    ChecksumMismatch = 4, "the checksum does not match the bytes";
    /// A frame of a kind that does not belong here or now.
    Unexpected = 5, "a frame of this kind does not belong here";
    /// A field that is reserved for a later version is set.
    Unsupported = 6, "the frame asks for something that is not supported";
    /// The hello did not come in time.
    HelloTimeout = 7, "no complete hello came in time";
    /// A frame was begun and not finished in time.
    FrameTimeout = 8, "a frame was begun and not finished in time";
    /// The peer took no bytes for too long.
    Stalled = 9, "the peer took no bytes for too long";
    /// More was sent than credit allowed.
    CreditExceeded = 10, "more was sent than credit allows";
    /// Too many connections.
    TooManyLinks = 11, "there are too many connections";
    /// Too many sessions, handles, destinations or subscriptions.
    ResourceAllocation = 12, "a limit on open things is reached";
    /// The handle or session names nothing that is open.
    NotOpen = 13, "the handle names nothing that is open";
    /// The name is not a destination's name.
    InvalidName = 14, "a destination is named /namespace/name, each part 1 to 127 of A-Z a-z 0-9 _ -";
    /// The destination does not exist.
    NotFound = 15, "the destination does not exist";
    /// The destination exists with another shape than asked for.
    PreconditionFailed = 16, "the destination exists with other settings";
    /// A property, a count or an argument is out of its range.
    IllegalArgument = 17, "an argument is out of its range";
    /// The principal may not do this.
    Forbidden = 18, "the principal may not do this";
    /// Somebody else holds the exclusive right.
    Exclusive = 19, "somebody is attached who does not share, or does where it may not";
    /// The sends of this producer to this partition are not in order.
    OutOfOrder = 20, "an earlier send of this producer is missing";
    /// A newer incarnation of the producer is attached.
    Fenced = 21, "a newer incarnation of the producer is attached";
    /// The message was stored before; its position is no longer kept.
    AlreadyStored = 22, "the message is stored already and its position is no longer kept";
    /// The broker is stopping.
    Stopping = 23, "the broker is stopping";
    /// No memory is left for it.
    OutOfMemory = 24, "no memory is left within the bound";
    /// The properties of the message are malformed or too many.
    InvalidProperties = 25, "the properties are malformed or exceed their limits";
    /// The acknowledgement names something that was not delivered here.
    InvalidAck = 26, "the acknowledgement names what was not delivered to this consumer";
    /// The client gave the send up before it was stored.
    GivenUp = 27, "the send was given up before it was stored";
    /// An administrator ended it.
    Ended = 28, "an administrator ended it";
    /// The storage reported an error: nothing can be made durable any more.
    StorageFailed = 29, "the storage reported an error: nothing can be made durable before the broker is started again";
    /// There is no room for what is to be flushed.
    StoreFull = 30, "no room is left where the broker keeps its data";
}

impl Refusal {
    /// Whether the same send may be stored when it is tried again: its partition
    /// sequence stays due, and what is behind it has to wait for it.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::OutOfMemory | Self::OutOfOrder | Self::StoreFull)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_leads_back_to_its_refusal() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), Some(*refusal));
            assert!(!refusal.text().is_empty());
        }
        assert_eq!(Refusal::from_code(0), None);
    }
}
