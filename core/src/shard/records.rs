//! What shards say to each other: the kinds of records and their fields.
//!
//! | ring | kind | about | fields, tail |
//! |---|---|---|---|
//! | requests | `ATTACH` | the asker's producer | [`Attach`] |
//! | | `FRAMES` | nothing | message frames, whole, one behind the other |
//! | | `PART` | nothing | a stretch of one message frame too long for a record |
//! | | `WANT` | our producer | [`Want`] |
//! | | `DETACH` | our producer | nothing; flags say how |
//! | outcomes | `ATTACHED` | our producer | [`Attached`] |
//! | | `REFUSED` | our producer | [`Refused`], text |
//! | | `SETTLED` | our producer | completion runs |
//! | | `GRANT` | our producer | [`Grant`] |
//! | | `DETACHED` | our producer | nothing |
//! | | `FAULT` | our producer | [`Refused`], text |
//!
//! "Our" is the reader's. A frame's handle is that of the reader's producer.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Kinds of requests.
pub(super) mod request {
    pub(in super::super) const ATTACH: u8 = 1;
    pub(in super::super) const FRAMES: u8 = 2;
    pub(in super::super) const PART: u8 = 3;
    pub(in super::super) const WANT: u8 = 4;
    pub(in super::super) const DETACH: u8 = 5;
}

/// Kinds of outcomes.
pub(super) mod outcome {
    pub(in super::super) const ATTACHED: u8 = 1;
    pub(in super::super) const REFUSED: u8 = 2;
    pub(in super::super) const SETTLED: u8 = 3;
    pub(in super::super) const GRANT: u8 = 4;
    pub(in super::super) const DETACHED: u8 = 5;
    pub(in super::super) const FAULT: u8 = 6;
}

/// How a producer is detached.
pub(super) mod detach {
    /// Its client said so: it is forgotten, and that is answered.
    pub(in super::super) const CLOSED: u8 = 1;
}

macro_rules! fields {
    ($( $(#[$doc:meta])* $name:ident { $( $field:ident: $type:ty, )* } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default)]
            #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
            #[repr(C)]
            pub(super) struct $name {
                $( pub(super) $field: $type, )*
            }
        )*
    };
}

fields! {
    /// Asks for a producer's branch. Who is asked first, the home, decides who the
    /// producer is and in which incarnation; the others are told.
    Attach {
        destination: U32,
        principal: U32,
        // 0 for a new one, towards the home.
        producer: U64,
        // 0 towards the home.
        epoch: U32,
        // 1: it was known before.
        again: U32,
    }

    /// A branch is attached.
    Attached {
        handle: U32,
        epoch: U32,
        producer: U64,
        bytes: U64,
        messages: U64,
    }

    /// Credit for a frame of so many bytes is wanted.
    Want {
        bytes: U64,
    }

    /// Credit up to these positions.
    Grant {
        bytes: U64,
        messages: U64,
    }

    /// Why not; the text follows.
    Refused {
        refusal: U16,
        reserved: U16,
        reserved_word: U32,
    }
}
