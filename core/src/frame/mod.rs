//! The frame: the same bytes on the socket, in a ring, in a partition's log
//! and towards the consumer.
//!
//! # Drawn
//!
//! Every frame begins with a prefix of eight bytes, all numbers little-endian:
//!
//! ```text
//!  0        4     5     6        8
//! +--------+-----+-----+--------+
//! | length |kind |vers.| flags  |
//! +--------+-----+-----+--------+
//! ```
//!
//! A message (kind 0x80) goes on with the broker's half, the checksum, and the
//! sender's half, up to 112 bytes; then properties, then the body:
//!
//! ```text
//!        +0        +4                +8                +16
//!   0    | length | kind, vers, flags | handle | partition |   address word  \
//!  16    | offset                     | append time        |                 | broker's half
//!  32    | check- | property | producer                    |
//!        | sum    | length   |                             |                 \
//!  48    | sequence                   | partition sequence |                 |
//!  64    | epoch  | schema            | timestamp          |                 | sender's half
//!  80    | key hash                   | transaction        |                 |
//!  96    | time to live               | delay              |                 /
//! 112    | properties ... body ... zeros up to a multiple of 8
//! ```
//!
//! Every other frame is of the control plane: the prefix, a checksum, a subject
//! (a request's id or a handle), the fields of its kind, and a tail:
//!
//! ```text
//!   0    | length | kind, vers, flags | checksum | subject |
//!  16    | fields of the kind ... tail ... zeros up to a multiple of 8
//! ```
//!
//! # Listed
//!
//! | field | bytes | meaning |
//! |---|---|---|
//! | length | u32 | header, properties and body; without the padding |
//! | kind | u8 | [`Kind`] |
//! | version | u8 | 1; of a hello and a farewell: any, their layouts never change |
//! | flags | u16 | of a message: bits 0-1 durability (0 memory, 1 flushed, others reserved), bits 2-5 priority less 4 modulo 16, bit 6 stamp block, bit 7 keyed, bit 8 given up, all others 0; of a control frame: 0 |
//! | handle, partition | u32, u32 | the address word: on a link the producer's handle and the partition's index; in a log and towards a consumer the destination's number and the partition's index |
//! | offset | u64 | the place in the partition, given by the broker |
//! | append time | u64 | nanoseconds since 1970, given by the broker |
//! | checksum | u32 | CRC-32C of bytes 0-7 and 36 to the end, padding excluded |
//! | property length | u32 | bytes of properties between header and body |
//! | producer, epoch | u64, u32 | who sends, and which incarnation of it |
//! | sequence | u64 | the producer's count of sends, from 1: completion order |
//! | partition sequence | u64 | dense per producer and partition, from 1 |
//! | schema | u32 | reserved |
//! | timestamp | u64 | the sender's clock, nanoseconds since 1970, 0 for none |
//! | key hash | u64 | FNV-1a of the key if the flag keyed is set, else 0 |
//! | transaction, time to live, delay | u64 | reserved; the latter two in microseconds |
//!
//! # Ruled
//!
//! 1. A frame starts at a multiple of eight bytes of its stream and is padded
//!    with zeros to the next one; other padding is malformed.
//! 2. The sender writes zero to offset and append time; the broker overwrites
//!    its half and touches nothing else, so the sender's checksum is verified
//!    at ingest, stored, and verified again by the consumer.
//! 3. A reserved field that is not zero is refused as unsupported, that send
//!    alone, in its place in the order of completions.
//! 4. A length is believed only up to the limit of its kind, and nothing is
//!    allocated because of it.
//! 5. A control frame's tail is exactly as long as its fields say.
//! 6. Any bytes in any split decode to frames or to one named error.
//! 7. No checksum covers the broker's half, so nothing is believed of it that
//!    can be compared: the producer behind a handle with the header's, a
//!    delivered offset with its delivery's.

pub mod checksum;
pub mod control;
pub mod decode;
pub mod encode;
pub mod property;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The one version of the protocol.
pub const VERSION: u8 = 1;
/// What a hello begins with, so that a stray connection is recognised.
pub const MAGIC: [u8; 8] = *b"COURSER\n";
/// Bytes of the prefix that every frame begins with.
pub const PREFIX_SIZE: usize = 8;
/// Bytes of a control frame's header.
pub const CONTROL_HEADER_SIZE: usize = 16;
/// Bytes of a message's header.
pub const MESSAGE_HEADER_SIZE: usize = 112;
/// How safe a stored message is, or is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// In the broker's memory.
    #[default]
    Memory,
    /// Confirmed by the storage device, unless the broker keeps nothing on one.
    Flushed,
}

/// Where the second range begins that a message's checksum covers.
pub const MESSAGE_COVERED_FROM: usize = 36;
/// Frames start at multiples of this.
pub const ALIGNMENT: usize = 8;

/// The length of a frame with its padding.
#[must_use]
pub const fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// What every frame begins with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Prefix {
    /// Bytes of the frame without its padding.
    pub length: U32,
    /// What the frame is.
    pub kind: u8,
    /// The version of the protocol.
    pub version: u8,
    /// Bits that belong to the kind.
    pub flags: U16,
}

/// A message's header.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct MessageHeader {
    /// Bytes of header, properties and body.
    pub length: U32,
    /// [`Kind::Message`].
    pub kind: u8,
    /// [`VERSION`].
    pub version: u8,
    /// See [`flags`].
    pub flags: U16,
    /// On a link the producer's handle, in a log the destination's number.
    pub handle: U32,
    /// The partition's index.
    pub partition: U32,
    /// The place in the partition.
    pub offset: U64,
    /// The broker's wall clock at the append, in nanoseconds.
    pub append_time: U64,
    /// CRC-32C of the sender's half, the properties and the body.
    pub checksum: U32,
    /// Bytes of properties.
    pub property_length: U32,
    /// Who sends.
    pub producer: U64,
    /// The producer's count of its sends.
    pub sequence: U64,
    /// The producer's count of its sends to this partition.
    pub partition_sequence: U64,
    /// The producer's incarnation.
    pub epoch: U32,
    /// Reserved.
    pub schema: U32,
    /// The sender's wall clock, in nanoseconds, 0 for none.
    pub timestamp: U64,
    /// FNV-1a of the key, 0 without one.
    pub key_hash: U64,
    /// Reserved.
    pub transaction: U64,
    /// Reserved; microseconds.
    pub time_to_live: U64,
    /// Reserved; microseconds.
    pub delay: U64,
}

#[allow(clippy::cast_possible_truncation, reason = "112 fits any integer")]
pub(crate) const MESSAGE_HEADER_LENGTH: u32 = MESSAGE_HEADER_SIZE as u32;

const _: () = assert!(size_of::<Prefix>() == PREFIX_SIZE);
const _: () = assert!(size_of::<MessageHeader>() == MESSAGE_HEADER_SIZE);
const _: () = assert!(MESSAGE_HEADER_SIZE.is_multiple_of(ALIGNMENT) && MESSAGE_HEADER_SIZE <= 128);

/// The bits of a message's flags.
pub mod flags {
    /// Durability: 0 memory, 1 flushed, others reserved.
    pub const DURABILITY: u16 = 0b11;
    /// The message completes once a flush covers it, where the broker has a device.
    pub const FLUSHED: u16 = 1;
    /// The priority less 4, modulo 16, so that the default is zero.
    pub const PRIORITY: u16 = 0b1111 << 2;
    /// A block of time stamps follows the header.
    pub const STAMPS: u16 = 1 << 6;
    /// The key hash is set.
    pub const KEYED: u16 = 1 << 7;
    /// Stands for a send that its client gave up: a header alone, stored nowhere,
    /// that takes the turn of its partition sequence.
    pub const GIVEN_UP: u16 = 1 << 8;
    /// Those that a message may have.
    pub const KNOWN: u16 = FLUSHED | KEYED | GIVEN_UP;
}

/// A field that a sender may not set yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// A durability that is none.
    Durability,
    /// A priority other than the default.
    Priority,
    /// A block of time stamps, or a flag without meaning.
    Flags,
    /// A schema.
    Schema,
    /// A transaction.
    Transaction,
    /// A time to live.
    TimeToLive,
    /// A delay.
    Delay,
    /// A key's hash without the flag that says so.
    KeyHash,
    /// The broker's half was not zero.
    BrokersHalf,
}

impl MessageHeader {
    /// The reserved field that is set, if one is. One test finds the common
    /// case of none.
    #[inline]
    #[must_use]
    pub fn reserved(&self) -> Option<Reserved> {
        let flags = self.flags.get();
        let unkeyed = if flags & flags::KEYED == 0 {
            self.key_hash.get()
        } else {
            0
        };
        let set = u64::from(flags & !flags::KNOWN)
            | unkeyed
            | u64::from(self.schema.get())
            | self.transaction.get()
            | self.time_to_live.get()
            | self.delay.get()
            | self.offset.get()
            | self.append_time.get();
        if set == 0 {
            None
        } else {
            Some(self.first_reserved())
        }
    }

    #[cold]
    fn first_reserved(&self) -> Reserved {
        let flags = self.flags.get();
        if flags & flags::DURABILITY & !flags::FLUSHED != 0 {
            Reserved::Durability
        } else if flags & flags::PRIORITY != 0 {
            Reserved::Priority
        } else if flags & !flags::KNOWN != 0 {
            Reserved::Flags
        } else if self.schema.get() != 0 {
            Reserved::Schema
        } else if self.transaction.get() != 0 {
            Reserved::Transaction
        } else if self.time_to_live.get() != 0 {
            Reserved::TimeToLive
        } else if self.delay.get() != 0 {
            Reserved::Delay
        } else if flags & flags::KEYED == 0 && self.key_hash.get() != 0 {
            Reserved::KeyHash
        } else {
            Reserved::BrokersHalf
        }
    }

    /// Whether it stands for a send that its client gave up.
    #[inline]
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.flags.get() & flags::GIVEN_UP != 0
    }

    /// Bytes of the body; what [`decode::decode`] let through is never negative.
    #[inline]
    #[must_use]
    pub fn body_length(&self) -> u32 {
        self.length
            .get()
            .saturating_sub(self.property_length.get())
            .saturating_sub(MESSAGE_HEADER_LENGTH)
    }

    /// The header as it lies in memory.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

macro_rules! kinds {
    ($( $(#[$doc:meta])* $name:ident = $code:literal, )*) => {
        /// What a frame is. Below 0x40 a client says it, from 0x40 the broker,
        /// from 0x80 both.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $( $(#[$doc])* $name = $code, )*
        }

        impl Kind {
            /// Every kind there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The kind that `code` stands for.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $( $code => Some(Self::$name), )*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The first frame of a link.
    Hello = 0x01,
    /// Asks for a session.
    OpenSession = 0x02,
    /// Asks for a session's end; its handles go with it.
    CloseSession = 0x03,
    /// Asks who owns a destination.
    Lookup = 0x04,
    /// Asks for a producer.
    OpenProducer = 0x05,
    /// Asks for a consumer.
    OpenConsumer = 0x06,
    /// Asks for a producer's or a consumer's end.
    Close = 0x07,
    /// A producer asks for credit for a frame it cannot send.
    WantCredit = 0x08,
    /// A consumer raises what may be delivered to it.
    Allow = 0x09,
    /// A consumer settles messages.
    Acknowledge = 0x0a,
    /// Asks for the counters.
    AskStats = 0x0b,
    /// Asks for a pong.
    Ping = 0x0c,
    /// The client leaves.
    Goodbye = 0x0d,
    /// Announces a batch of messages.
    Batch = 0x0e,
    /// A consumer gives messages back unsettled.
    Return = 0x0f,
    /// Asks for the link to be handed to another shard.
    Move = 0x10,
    /// A consumer asks whether there is anything for it.
    Poll = 0x11,
    /// The client waits no longer for a producer that it asked for.
    Cancel = 0x12,

    /// Asks for a destination to be created.
    Create = 0x18,
    /// Asks for policies of a destination to be others.
    SetPolicies = 0x19,
    /// Asks for a destination or a subscription to be deleted.
    Delete = 0x1a,
    /// Asks for a link or a producer of anybody to be ended.
    End = 0x1b,
    /// Asks for what there is.
    List = 0x1c,

    /// Answers a hello.
    Welcome = 0x41,
    /// Answers the opening of a session.
    SessionOpened = 0x42,
    /// Answers the closing of a session.
    SessionClosed = 0x43,
    /// Answers a lookup.
    Located = 0x44,
    /// Answers the opening of a producer.
    ProducerOpened = 0x45,
    /// Answers the opening of a consumer.
    ConsumerOpened = 0x46,
    /// Answers the closing of a producer or a consumer.
    Closed = 0x47,
    /// Raises what a producer may send.
    Credit = 0x48,
    /// Outcomes of sends, in their order.
    Completions = 0x49,
    /// Confirms an acknowledgement that asked for it.
    Acknowledged = 0x4a,
    /// Answers the question for counters.
    Stats = 0x4b,
    /// Answers a ping.
    Pong = 0x4c,
    /// Heads a run of messages for a consumer.
    Delivery = 0x4d,
    /// A request was refused.
    Refused = 0x4e,
    /// The last frame of a link that the broker ends.
    Farewell = 0x4f,
    /// Whatever there was for a consumer is in front of this.
    Polled = 0x50,

    /// Answers what asks for something to be otherwise.
    Changed = 0x58,
    /// Answers the question what there is.
    Listed = 0x59,
    /// The broker ended a producer or a consumer.
    Ended = 0x5a,

    /// A message.
    Message = 0x80,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_its_code_and_no_code_stands_for_two() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(*kind as u8), Some(*kind));
        }
        assert_eq!(Kind::from_code(0), None);
    }

    #[test]
    fn each_reserved_field_is_named_when_it_is_set() {
        type Set = fn(&mut MessageHeader);
        let cases: [(Set, Reserved); 10] = [
            (|h| h.flags.set(2), Reserved::Durability),
            (|h| h.flags.set(1 << 2), Reserved::Priority),
            (|h| h.flags.set(flags::STAMPS), Reserved::Flags),
            (|h| h.flags.set(1 << 15), Reserved::Flags),
            (|h| h.schema.set(1), Reserved::Schema),
            (|h| h.transaction.set(1), Reserved::Transaction),
            (|h| h.time_to_live.set(1), Reserved::TimeToLive),
            (|h| h.delay.set(1), Reserved::Delay),
            (|h| h.key_hash.set(1), Reserved::KeyHash),
            (|h| h.offset.set(1), Reserved::BrokersHalf),
        ];
        for (set, expected) in cases {
            let mut header = MessageHeader::default();
            assert_eq!(header.reserved(), None);
            set(&mut header);
            assert_eq!(header.reserved(), Some(expected));
        }
        let mut keyed = MessageHeader::default();
        keyed.flags.set(flags::KEYED | flags::GIVEN_UP);
        keyed.key_hash.set(9);
        keyed.timestamp.set(9);
        assert_eq!(keyed.reserved(), None);
    }
}
