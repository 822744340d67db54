//! What shards say to each other: the kinds of records and their fields.
//!
//! | ring | kind | about | fields, tail |
//! |---|---|---|---|
//! | requests | `ATTACH` | the asker's producer | [`Attach`] |
//! | | `FRAMES` | nothing | message frames, whole, one behind the other |
//! | | `PART` | nothing | a stretch of one message frame too long for a record |
//! | | `WANT` | our producer | [`Want`] |
//! | | `DETACH` | our producer, or the asker's | nothing; flags say how |
//! | outcomes | `ATTACHED` | our producer | [`Attached`] |
//! | | `REFUSED` | our producer | [`Refused`], text |
//! | | `SETTLED` | our producer | completion runs |
//! | | `GRANT` | our producer | [`Grant`] |
//! | | `DETACHED` | our producer | nothing |
//! | | `FAULT` | our producer | [`Refused`], text |
//! | requests | `JOIN` | the asker's consumer | [`Join`], name of the subscription |
//! | | `LEASE` | our consumer | [`Lease`] |
//! | | `ACKNOWLEDGE` | our consumer | as a client's |
//! | | `RETURN` | our consumer | as a client's |
//! | | `LEAVE` | our consumer, or the asker's | [`Leave`]; flags say how |
//! | outcomes | `JOINED` | our consumer | [`Joined`], starts |
//! | | `NOT_JOINED` | our consumer | [`Refused`], text |
//! | | `ACKNOWLEDGED` | our consumer | [`Confirmed`] |
//! | | `LEFT` | our consumer | nothing |
//! | deliveries | `READY` | our consumer | nothing; flags say whether it is large |
//! | | `RUN` | our consumer | [`Run`], the first of its bytes |
//! | | `MORE` | our consumer | more of them |
//! | | `LEFT_OVER` | our consumer | nothing |
//! | requests | `PROPOSE` | the asker's deferred request | [`Proposal`], name |
//! | | `ALONE` | the asker's deferred request | a destination's number |
//! | | `APPLY` | nothing | version, a change of the catalogue |
//! | outcomes | `DONE` | our deferred request | nothing; flags say whether it changed anything |
//! | | `NOT_DONE` | our deferred request | [`Refused`], text |
//! | | `APPLIED` | nothing | version |
//! | requests | `FENCE` | the asker's deferred request | a producer's id |
//! | | `DROP`, `DROP_TOO` | the asker's deferred request | a destination's number, whether it is forced, a subscription's name |
//! | outcomes | `ENDED` | our consumer | [`Refused`] |
//! | requests | `REPLACE` | the asker's link | [`Replace`] |
//! | | `PASS` | a link of the shard that it names | [`Pass`] |
//! | outcomes | `PASSED` | our link | nothing |
//! | requests | `POLL` | our consumer | [`Poll`] |
//! | deliveries | `POLLED` | our consumer | [`Polled`] |
//!
//! "Our" is the reader's. A frame's handle is that of the reader's producer.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How a browser shares a subscription, in a record and on the wire: it has none.
pub(super) const BROWSES: u8 = 5;

/// Kinds of requests.
pub(super) mod request {
    pub(in super::super) const ATTACH: u8 = 1;
    pub(in super::super) const FRAMES: u8 = 2;
    pub(in super::super) const PART: u8 = 3;
    pub(in super::super) const WANT: u8 = 4;
    pub(in super::super) const DETACH: u8 = 5;
    pub(in super::super) const JOIN: u8 = 6;
    pub(in super::super) const LEASE: u8 = 7;
    pub(in super::super) const ACKNOWLEDGE: u8 = 8;
    pub(in super::super) const RETURN: u8 = 9;
    pub(in super::super) const LEAVE: u8 = 10;
    pub(in super::super) const PROPOSE: u8 = 11;
    pub(in super::super) const ALONE: u8 = 12;
    pub(in super::super) const APPLY: u8 = 13;
    pub(in super::super) const FENCE: u8 = 14;
    pub(in super::super) const DROP: u8 = 15;
    pub(in super::super) const DROP_TOO: u8 = 16;
    pub(in super::super) const REPLACE: u8 = 17;
    pub(in super::super) const PASS: u8 = 18;
    pub(in super::super) const POLL: u8 = 19;
}

/// Kinds of outcomes.
pub(super) mod outcome {
    pub(in super::super) const ATTACHED: u8 = 1;
    pub(in super::super) const REFUSED: u8 = 2;
    pub(in super::super) const SETTLED: u8 = 3;
    pub(in super::super) const GRANT: u8 = 4;
    pub(in super::super) const DETACHED: u8 = 5;
    pub(in super::super) const FAULT: u8 = 6;
    pub(in super::super) const JOINED: u8 = 7;
    pub(in super::super) const NOT_JOINED: u8 = 8;
    pub(in super::super) const ACKNOWLEDGED: u8 = 9;
    pub(in super::super) const LEFT: u8 = 10;
    pub(in super::super) const DONE: u8 = 11;
    pub(in super::super) const NOT_DONE: u8 = 12;
    pub(in super::super) const APPLIED: u8 = 13;
    pub(in super::super) const ENDED: u8 = 14;
    pub(in super::super) const PASSED: u8 = 15;
}

/// Kinds of deliveries.
pub(super) mod delivery {
    pub(in super::super) const READY: u8 = 1;
    pub(in super::super) const RUN: u8 = 2;
    pub(in super::super) const MORE: u8 = 3;
    pub(in super::super) const LEFT_OVER: u8 = 4;
    pub(in super::super) const POLLED: u8 = 5;
}

/// How a producer is detached.
pub(super) mod detach {
    /// Its client said so: it is forgotten, and a branch that was there says when it has
    /// gone.
    pub(in super::super) const CLOSED: u8 = 1;
    /// Its front had not heard that it is attached: what is named is the front.
    pub(in super::super) const UNHEARD: u8 = 2;
    /// Its front waits for the word that it has gone, or never was.
    pub(in super::super) const ANSWERED: u8 = 4;
}

/// How a consumer leaves.
pub(super) mod leave {
    /// Its front waits for the word that it has left.
    pub(in super::super) const ANSWERED: u8 = 1;
    /// Its client said so.
    pub(in super::super) const CLEAN: u8 = 2;
    /// Its front had not heard that it has joined: what is named is the front.
    pub(in super::super) const UNHEARD: u8 = 4;
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
        again: u8,
        access: u8,
        reserved: U16,
        // When its client asked, in nanoseconds of the clock that all shards read.
        asked: U64,
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

    /// Asks for a consumer's source. Who is asked first, the home, decides whether it
    /// may join and which member it is; the others are told. The subscription's name
    /// follows.
    Join {
        destination: U32,
        principal: U32,
        offset: U64,
        // 0 towards the home.
        member: U64,
        start: U16,
        kind: u8,
        reserved: [u8; 5],
    }

    /// A source has joined. Where each partition starts follows.
    Joined {
        handle: U32,
        reserved: U32,
        member: U64,
    }

    /// So much may be delivered: messages, and frame bytes that there is a place for;
    /// and that many bytes of credit, which the last message may reach beyond.
    Lease {
        messages: U64,
        bytes: U64,
        credit: U64,
    }

    /// Of what was delivered so many messages were handed to the application.
    Leave {
        handed: U64,
        // Of the asker, so that it is answered though there is nothing left to leave.
        front: U32,
        reserved: U32,
    }

    /// Has a link ended, if it is that principal's, since another one takes its place.
    Replace {
        number: U64,
        principal: U32,
        reserved: U32,
    }

    /// Everything that the sender had to say of a link's end stands before this: the
    /// shard of the link that takes its place is to be told.
    Pass {
        shard: U16,
        reserved: U16,
        reserved_word: U32,
    }

    /// What an acknowledgement asked to have echoed, and why it is refused if it is.
    Confirmed {
        confirm: U32,
        refusal: U16,
        reserved: U16,
    }

    /// A run of messages, as in a delivery, of so many bytes.
    Run {
        partition: U32,
        count: U32,
        offset: U64,
        delivery_count: U32,
        size: U32,
    }

    /// Asks a source to say what it has, for a front.
    Poll {
        front: U32,
        token: U32,
    }

    /// A source has looked: what it has it said before.
    Polled {
        token: U32,
        reserved: U32,
    }

    /// Asks for a change of the catalogue. The destination's name follows.
    Proposal {
        operation: u8,
        destination: u8,
        options: U16,
        partitions: U32,
        retain: U64,
        producers_max: U32,
        consumers_max: U32,
        subscriptions_max: U32,
        period: U32,
        retention: u8,
        dispatch: u8,
        reserved: [u8; 6],
    }

    /// Why not; the text follows.
    Refused {
        refusal: U16,
        reserved: U16,
        reserved_word: U32,
    }
}
