//! The control plane's frames: the fields of each kind, and what their tails hold.
//!
//! A tail is a concatenation; its parts' lengths stand among the fields, and
//! what [`decode`](super::decode::decode) lets through is exactly as long as
//! they say. Sizes are positions, counted from the opening of a handle,
//! wherever they say credit: a position once granted is never taken back, and a
//! lost or repeated grant changes nothing. What is counted is always the padded
//! size of message frames.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Kind;

/// The fields of one kind of control frame.
pub trait Fields: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned {
    /// The kind that these are the fields of.
    const KIND: Kind;
}

macro_rules! fields {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$field_doc:meta])* $field:ident: $type:ty, )* } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
            #[repr(C)]
            pub struct $name {
                $( $(#[$field_doc])* pub $field: $type, )*
            }

            impl Fields for $name {
                const KIND: Kind = Kind::$name;
            }
        )*

        /// A frame of the control plane.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Control<'a> {
            $(
                $(#[$doc])*
                $name(&'a $name, &'a [u8]),
            )*
        }

        impl<'a> Control<'a> {
            /// Splits `rest`, which follows the header, into the fields of `kind` and the
            /// tail. `None` for a message's kind, or if `rest` is too short.
            #[must_use]
            pub(crate) fn split(kind: Kind, rest: &'a [u8]) -> Option<Self> {
                match kind {
                    $(
                        Kind::$name => {
                            let (fields, tail) = $name::ref_from_prefix(rest).ok()?;
                            Some(Self::$name(fields, tail))
                        }
                    )*
                    Kind::Message => None,
                }
            }

            /// What the frame is.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self {
                    $( Self::$name(..) => Kind::$name, )*
                }
            }

            /// The bytes of the fields.
            #[must_use]
            pub(crate) fn fields(&self) -> &'a [u8] {
                match self {
                    $( Self::$name(fields, _) => fields.as_bytes(), )*
                }
            }

            /// What follows the fields, without the padding.
            #[must_use]
            pub const fn tail(&self) -> &'a [u8] {
                match self {
                    $( Self::$name(_, tail) => tail, )*
                }
            }
        }
    };
}

fields! {
    /// The first frame of a link. Its layout is the same in every version, and
    /// so is a [`Farewell`]'s. Tail: the client's name.
    Hello {
        /// [`MAGIC`](super::MAGIC).
        magic: [u8; 8],
        /// The lowest version the client speaks.
        version_min: u8,
        /// The highest version the client speaks.
        version_max: u8,
        /// The shard the client would like, or 65535.
        shard: U16,
        /// Bytes of the client's name.
        name_length: U16,
        /// Zero.
        reserved: U16,
        /// Features the client would use, a bit each; none yet.
        features: U64,
        /// The link that this one takes the place of, 0 for none: it ends first.
        link: U64,
    }

    /// Asks for a session; the subject is a request. No tail.
    OpenSession {
        /// Zero; a way to authenticate later.
        credentials: U32,
        /// Zero.
        reserved: U32,
    }

    /// Asks for a session's end; the subject is a request. No tail.
    CloseSession {
        /// The session.
        session: U32,
        /// Zero.
        reserved: U32,
    }

    /// Asks who owns a destination; the subject is a request. Tail: its name.
    Lookup {
        /// The session.
        session: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// Zero.
        reserved: [u8; 3],
    }

    /// Asks for a producer; the subject is a request. Tail: the destination's
    /// name, the producer's name.
    OpenProducer {
        /// The session.
        session: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// 0 shared, 1 exclusive, 2 exclusive as soon as nobody else is attached.
        access: u8,
        /// Bytes of the destination's name.
        destination_length: U16,
        /// Partitions the destination is to have; 0 takes it as it is, or 1.
        partitions: U32,
        /// Bytes of the producer's name.
        name_length: U16,
        /// Bit 0: `retain`, `retention` and `period` are meant, even if zero; bit 1:
        /// `dispatch` is.
        options: U16,
        /// Bytes that the destination keeps of what is settled, or those of a segment.
        retain: U64,
        /// 0 for a new producer, or one of this installation's to attach again.
        producer: U64,
        /// 0 by size, 1 whole segments until acknowledged, 2 until expired.
        retention: u8,
        /// 0 once durable, 1 early.
        dispatch: u8,
        /// Zero.
        reserved: U16,
        /// Seconds until a segment expires.
        period: U32,
    }

    /// Asks for a consumer; the subject is a request. Tail: the destination's
    /// name, the subscription's name (empty on a queue, or for one that ends
    /// with its consumer), the consumer's name.
    OpenConsumer {
        /// The session.
        session: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// Where a new subscription starts: 0 earliest, 1 latest, 2 `offset`.
        start: u8,
        /// Bytes of the destination's name.
        destination_length: U16,
        /// Where to start if `start` says so.
        offset: U64,
        /// Bytes of the subscription's name.
        subscription_length: U16,
        /// Bytes of the consumer's name.
        name_length: U16,
        /// How many consumers the subscription has at once, and what of it is whose:
        /// 0 as is usual for the destination, 1 exclusive, 2 shared, 3 failover,
        /// 4 key-shared, 5 none: it browses; others reserved.
        sharing: u8,
        /// Zero.
        reserved: [u8; 3],
        /// The first grant, in messages.
        messages: U64,
        /// The first grant, in frame bytes.
        bytes: U64,
    }

    /// Asks for a producer's or a consumer's end; the subject is a request. No tail.
    Close {
        /// What is to end.
        handle: U32,
        /// Zero.
        reserved: U32,
    }

    /// A producer has a frame that its credit does not cover; the subject is its
    /// handle. No tail.
    WantCredit {
        /// Bytes of that frame, padded.
        bytes: U64,
    }

    /// A consumer raises what may be delivered to it; the subject is its handle.
    /// No tail.
    Allow {
        /// Messages, counted from the opening.
        messages: U64,
        /// Frame bytes, counted from the opening. Delivery goes on while less has
        /// been delivered, so the last message may reach beyond it.
        bytes: U64,
        /// Messages that the application was given, counted from the opening.
        handed: U64,
    }

    /// A consumer settles messages; the subject is its handle. Tail: `runs` of
    /// [`AckRun`].
    Acknowledge {
        /// The partition that the runs are in.
        partition: U32,
        /// How many runs.
        runs: U32,
        /// Bit 0: each run reaches back to all that was delivered before it. Bit 1, not
        /// with bit 0: what waits to be delivered again is settled too.
        options: U32,
        /// If not zero, echoed once the runs are settled.
        confirm: U32,
    }

    /// Asks for the counters; the subject is a request. No tail.
    AskStats {
        /// Zero.
        reserved: U64,
    }

    /// Asks for a pong; the subject is a request. No tail.
    Ping {
        /// Echoed.
        token: U64,
    }

    /// The client leaves: nothing it sent before is lost. No tail.
    Goodbye {
        /// Zero.
        reserved: U64,
    }

    /// Announces that the next frames of this producer are one batch; the
    /// subject is its handle. No tail.
    Batch {
        /// Messages of the batch.
        messages: U32,
        /// Their frame bytes.
        bytes: U32,
    }

    /// A consumer gives messages back unsettled; the subject is its handle. Tail:
    /// `runs` of [`AckRun`].
    Return {
        /// The partition that the runs are in.
        partition: U32,
        /// How many runs.
        runs: U32,
        /// Bit 0: not at once, but after the wait that grows with each delivery.
        options: U32,
        /// Zero.
        reserved: U32,
        /// The least wait in microseconds, if bit 0 is set.
        delay: U64,
    }

    /// Asks for the link to be handed to another shard, as if it had just said hello
    /// there; the subject is a request. Nothing may be open on it but sessions, which
    /// end, and nothing may be behind it until it is answered. No tail.
    Move {
        /// The shard to go to.
        shard: U16,
        /// Zero.
        reserved: U16,
        /// Zero.
        reserved_word: U32,
    }

    /// A consumer asks whether there is anything for it now; the subject is its handle.
    /// No tail.
    Poll {
        /// Echoed behind whatever there was.
        token: U32,
        /// Zero.
        reserved: U32,
    }

    /// The client waits no longer for a producer that is to have its destination alone;
    /// the subject is the request that asked for it. No tail.
    Cancel {
        /// Zero.
        reserved: U64,
    }

    /// Asks for a destination to be created; the subject is a request. Tail: its name.
    Create {
        /// The session.
        session: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// Zero.
        reserved: u8,
        /// What of the following is meant: bit 0 `partitions`, 1 `retain` with `retention`
        /// and `period`, 2 `producers_max`, 3 `consumers_max`, 4 `subscriptions_max`,
        /// 5 `dispatch`.
        options: U16,
        /// Partitions.
        partitions: U32,
        /// The most producers, 0 for any number.
        producers_max: U32,
        /// The most consumers, 0 for any number.
        consumers_max: U32,
        /// The most subscriptions, 0 for any number.
        subscriptions_max: U32,
        /// Bytes that the destination keeps of what is settled, or those of a segment.
        retain: U64,
        /// As in [`OpenProducer`].
        retention: u8,
        /// As in [`OpenProducer`].
        dispatch: u8,
        /// Zero.
        reserved_half: U16,
        /// Seconds until a segment expires.
        period: U32,
    }

    /// Asks for policies of a destination to be others; the subject is a request. Tail:
    /// its name.
    SetPolicies {
        /// The session.
        session: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// Zero.
        reserved: u8,
        /// What of the following is meant: bit 2 `producers_max`, 3 `consumers_max`,
        /// 4 `subscriptions_max`.
        options: U16,
        /// The most producers, 0 for any number.
        producers_max: U32,
        /// The most consumers, 0 for any number.
        consumers_max: U32,
        /// The most subscriptions, 0 for any number.
        subscriptions_max: U32,
        /// Zero.
        reserved_word: U32,
    }

    /// Asks for a destination, or a subscription of it, to be deleted; the subject is a
    /// request. Tail: the destination's name, the subscription's name.
    Delete {
        /// The session.
        session: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// Bit 0: even if somebody is attached. Bit 1: the subscription.
        options: u8,
        /// Bytes of the destination's name.
        destination_length: U16,
        /// Bytes of the subscription's name.
        subscription_length: U16,
        /// Zero.
        reserved: [u8; 6],
    }

    /// Asks for a link or a producer of anybody to be ended; the subject is a request.
    /// No tail.
    End {
        /// The session.
        session: U32,
        /// 0 a link, 1 a producer.
        what: u8,
        /// Zero.
        reserved: [u8; 3],
        /// The number of the link or the id of the producer.
        number: U64,
    }

    /// Asks for what there is; the subject is a request. Tail: a destination's name or
    /// nothing, a subscription's name or nothing.
    List {
        /// The session.
        session: U32,
        /// 0 destinations, 1 subscriptions, 2 parts, 3 consumers, 4 producers, 5 links.
        what: u8,
        /// 0 queue, 1 topic: of a destination that is named.
        destination: u8,
        /// Bytes of the destination's name.
        destination_length: U16,
        /// Bytes of the subscription's name.
        subscription_length: U16,
        /// Zero.
        reserved: U16,
        /// Where to go on: 0, or what the answer before this one said.
        from: U32,
    }

    /// Answers a hello, or as its subject says a [`Move`]. No tail.
    Welcome {
        /// The version that both sides speak from here on.
        version: u8,
        /// How many shards the broker has.
        shards: u8,
        /// The shard that the link belongs to.
        shard: U16,
        /// The largest frame, in bytes.
        frame_size_max: U32,
        /// Whose data this broker holds.
        installation: U128,
        /// Features that both sides use from here on.
        features: U64,
        /// This link's number, never given to another.
        link: U64,
        /// Which start of the broker on its data this is: what another one had in memory
        /// only, this one has not.
        run: U64,
    }

    /// A session is open; the subject is the request. No tail.
    SessionOpened {
        /// The session.
        session: U32,
        /// Zero.
        reserved: U32,
    }

    /// A session has ended; the subject is the request. No tail.
    SessionClosed {
        /// The session.
        session: U32,
        /// Zero.
        reserved: U32,
    }

    /// Who owns a destination; the subject is the request. Tail: the address to
    /// go to if the verdict says so.
    Located {
        /// 0 connect here, 1 go to the address, 2 nobody owns it.
        verdict: u8,
        /// 1 if the destination exists, 0 if opening would create it.
        exists: u8,
        /// The shard to ask for.
        shard: U16,
        /// Its partitions, 0 if it does not exist.
        partitions: U32,
    }

    /// A producer is open; the subject is the request. No tail.
    ProducerOpened {
        /// The producer on this link.
        handle: U32,
        /// Its incarnation.
        epoch: U32,
        /// Who it is.
        producer: U64,
        /// Partitions of its destination.
        partitions: U32,
        /// The most messages it may have on their way.
        window: U32,
        /// What it may send, in frame bytes.
        bytes: U64,
        /// What it may send, in messages.
        messages: U64,
    }

    /// A consumer is open; the subject is the request. Tail: for each partition
    /// the offset it starts at, 8 bytes.
    ConsumerOpened {
        /// The consumer on this link.
        handle: U32,
        /// Partitions of its destination.
        partitions: U32,
    }

    /// A producer or a consumer has ended; the subject is the request. No tail.
    Closed {
        /// What has ended.
        handle: U32,
        /// Zero.
        reserved: U32,
    }

    /// Raises what a producer may send; the subject is its handle. No tail.
    Credit {
        /// Frame bytes, counted from the opening.
        bytes: U64,
        /// Messages, counted from the opening.
        messages: U64,
    }

    /// Outcomes of a producer's sends, in their order; the subject is its handle.
    /// Tail: `runs` of [`CompletionRun`].
    Completions {
        /// How many runs.
        runs: U32,
        /// Zero.
        reserved: U32,
    }

    /// An acknowledgement is settled; the subject is the consumer's handle. No tail.
    Acknowledged {
        /// What the acknowledgement asked to have echoed.
        confirm: U32,
        /// 0, or the code of a refusal.
        refusal: U16,
        /// Zero.
        reserved: U16,
    }

    /// The counters, in as many frames as their rows need; the subject is the
    /// request. Tail: `counters` numbers of 8 bytes in the order of their table,
    /// then `rows` of [`StatsRow`], each followed by its name padded to 8 bytes.
    Stats {
        /// How many counters; none after the first frame of an answer.
        counters: U32,
        /// How many rows.
        rows: U32,
        /// How many rows are still to come in further frames.
        remaining: U32,
        /// Zero.
        reserved: U32,
    }

    /// Answers a ping; the subject is the request. No tail.
    Pong {
        /// As asked.
        token: U64,
    }

    /// Heads a run of messages; the subject is the consumer's handle. The next
    /// `count` frames of the link are messages with consecutive places in the
    /// subscription's order, the first at `offset`. No tail.
    Delivery {
        /// The partition.
        partition: U32,
        /// How many messages.
        count: U32,
        /// The offset of the first.
        offset: U64,
        /// How often they were handed out, this time included; above 1 the run
        /// has one message.
        delivery_count: U32,
        /// Zero.
        options: U32,
        /// Zero: no time limit.
        time_left: U64,
    }

    /// A request was refused; the subject is the request. Tail: details as text.
    Refused {
        /// The code of a [`Refusal`](crate::error::Refusal).
        refusal: U16,
        /// Zero.
        reserved: U16,
        /// Bytes of the text.
        text_length: U32,
    }

    /// Whatever there was for a consumer when it asked is in front of this; the subject
    /// is its handle. No tail.
    Polled {
        /// As asked.
        token: U32,
        /// Zero.
        reserved: U32,
    }

    /// What was asked for is so; the subject is the request. No tail.
    Changed {
        /// How many changes of the catalogue led to this.
        version: U64,
        /// 1 if something changed, 0 if all was so before.
        changed: u8,
        /// Zero.
        reserved: [u8; 7],
    }

    /// What there is; the subject is the request. Tail: `rows` of the kind that was
    /// asked for, each followed by its texts, padded to 8 bytes.
    Listed {
        /// As asked.
        what: u8,
        /// 1 if there may be more.
        more: u8,
        /// How many rows.
        rows: U16,
        /// Where to go on, if there may be more.
        next: U32,
    }

    /// The broker ended a producer or a consumer; the subject is its handle, which stays
    /// open until it is closed. Tail: details as text.
    Ended {
        /// The code of a [`Refusal`](crate::error::Refusal).
        refusal: U16,
        /// Zero.
        reserved: U16,
        /// Bytes of the text.
        text_length: U32,
    }

    /// The last frame of a link that the broker ends. Tail: details as text.
    Farewell {
        /// The code of a [`Refusal`](crate::error::Refusal).
        refusal: U16,
        /// The lowest version the broker speaks.
        version_min: u8,
        /// The highest version the broker speaks.
        version_max: u8,
        /// Bytes of the text.
        text_length: U32,
    }
}

impl Control<'_> {
    /// Bytes that the fields say the tail has; `None` where the tail is one part,
    /// as long as the frame leaves it, or holds rows of differing lengths.
    #[must_use]
    pub fn tail_size(&self) -> Option<u64> {
        let size = match self {
            Self::Lookup(..)
            | Self::Located(..)
            | Self::Stats(..)
            | Self::Create(..)
            | Self::SetPolicies(..)
            | Self::Listed(..) => return None,
            Self::Delete(fields, _) => {
                u64::from(fields.destination_length) + u64::from(fields.subscription_length)
            }
            Self::List(fields, _) => {
                u64::from(fields.destination_length) + u64::from(fields.subscription_length)
            }
            Self::Ended(fields, _) => u64::from(fields.text_length),
            Self::Hello(fields, _) => u64::from(fields.name_length),
            Self::OpenProducer(fields, _) => {
                u64::from(fields.destination_length) + u64::from(fields.name_length)
            }
            Self::OpenConsumer(fields, _) => {
                u64::from(fields.destination_length)
                    + u64::from(fields.subscription_length)
                    + u64::from(fields.name_length)
            }
            Self::Acknowledge(fields, _) => u64::from(fields.runs) * size_of::<AckRun>() as u64,
            Self::Return(fields, _) => u64::from(fields.runs) * size_of::<AckRun>() as u64,
            Self::ConsumerOpened(fields, _) => {
                u64::from(fields.partitions) * size_of::<u64>() as u64
            }
            Self::Completions(fields, _) => {
                u64::from(fields.runs) * size_of::<CompletionRun>() as u64
            }
            Self::Refused(fields, _) => u64::from(fields.text_length),
            Self::Farewell(fields, _) => u64::from(fields.text_length),
            Self::OpenSession(..)
            | Self::CloseSession(..)
            | Self::Close(..)
            | Self::WantCredit(..)
            | Self::Allow(..)
            | Self::AskStats(..)
            | Self::Ping(..)
            | Self::Goodbye(..)
            | Self::Move(..)
            | Self::Poll(..)
            | Self::Cancel(..)
            | Self::Polled(..)
            | Self::Batch(..)
            | Self::End(..)
            | Self::Changed(..)
            | Self::Welcome(..)
            | Self::SessionOpened(..)
            | Self::SessionClosed(..)
            | Self::ProducerOpened(..)
            | Self::Closed(..)
            | Self::Credit(..)
            | Self::Acknowledged(..)
            | Self::Pong(..)
            | Self::Delivery(..) => 0,
        };
        Some(size)
    }
}

/// Consecutive sends with the same outcome and consecutive places.
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
pub struct CompletionRun {
    /// The first send.
    pub sequence: U64,
    /// The first place, if stored.
    pub offset: U64,
    /// The broker's wall clock at the append, in nanoseconds.
    pub append_time: U64,
    /// How many sends.
    pub count: U32,
    /// The partition.
    pub partition: U32,
    /// 0 if stored, else the code of a [`Refusal`](crate::error::Refusal).
    pub refusal: U16,
    /// How safe they are: 0 memory, 1 flushed.
    pub durability: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub reserved_word: U32,
}

/// Consecutive offsets that a consumer settles.
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
pub struct AckRun {
    /// The first offset.
    pub first: U64,
    /// How many offsets.
    pub count: U64,
}

/// One destination in the answer to [`AskStats`].
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
pub struct StatsRow {
    /// 0 queue, 1 topic.
    pub destination: u8,
    /// Zero.
    pub reserved: u8,
    /// Bytes of the name that follows.
    pub name_length: U16,
    /// Partitions.
    pub partitions: U32,
    /// Messages ever stored.
    pub stored: U64,
    /// Messages that some subscription has not settled.
    pub unsettled: U64,
    /// Bytes of memory held.
    pub bytes: U64,
    /// Attached producers.
    pub producers: U32,
    /// Attached consumers.
    pub consumers: U32,
    /// Subscriptions.
    pub subscriptions: U32,
    /// Zero.
    pub reserved_word: U32,
}

macro_rules! rows {
    ($( $(#[$doc:meta])* $name:ident($size:literal) {
        $( $(#[$field_doc:meta])* $field:ident: $type:ty, )*
    } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
            #[repr(C)]
            pub struct $name {
                $( $(#[$field_doc])* pub $field: $type, )*
            }

            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

rows! {
    /// One destination in the answer to [`List`]; its name follows.
    DestinationRow(104) {
        /// 0 queue, 1 topic.
        destination: u8,
        /// As in [`OpenProducer`].
        dispatch: u8,
        /// Bytes of the name.
        name_length: U16,
        /// The number that it is known by in the broker.
        number: U32,
        /// Partitions.
        partitions: U32,
        /// The most producers, 0 for any number.
        producers_max: U32,
        /// The most consumers, 0 for any number.
        consumers_max: U32,
        /// The most subscriptions, 0 for any number.
        subscriptions_max: U32,
        /// As in [`Create`].
        retain: U64,
        /// Attached producers.
        producers: U32,
        /// Attached consumers.
        consumers: U32,
        /// Subscriptions.
        subscriptions: U32,
        /// As in [`Create`].
        period: U32,
        /// Messages ever stored.
        stored: U64,
        /// Messages that some subscription has not settled.
        unsettled: U64,
        /// Bytes of memory held.
        bytes: U64,
        /// Bytes of the messages in segments.
        segment_bytes: U64,
        /// When the oldest of them was stored, in nanoseconds since 1970; 0 without any.
        segment_oldest: U64,
        /// Segments that are closed.
        segments_closed: U32,
        /// Segments that are written to.
        segments_open: U32,
        /// As in [`OpenProducer`].
        retention: u8,
        /// Zero.
        reserved: [u8; 7],
    }

    /// One subscription in the answer to [`List`]; the destination's name and its own
    /// follow, which is empty if it is a queue's or ends with its consumer.
    SubscriptionRow(32) {
        /// 0 queue, 1 topic.
        destination: u8,
        /// As in [`OpenConsumer`], never 0.
        sharing: u8,
        /// Bytes of the destination's name.
        destination_length: U16,
        /// Bytes of its name.
        name_length: U16,
        /// Bit 0: it ends with its last consumer.
        options: U16,
        /// Partitions of the destination.
        partitions: U32,
        /// Attached consumers.
        consumers: U32,
        /// Messages that are delivered and not settled, or wait to be delivered again.
        unsettled: U64,
        /// All messages that it has not settled.
        backlog: U64,
    }

    /// One partition of a subscription in the answer to [`List`].
    PartRow(40) {
        /// The partition.
        partition: U32,
        /// Messages that are delivered and not settled, or wait to be delivered again.
        unsettled: U32,
        /// The first offset that is not settled.
        cursor: U64,
        /// The first offset that was never handed out.
        fresh: U64,
        /// The offset that the next message gets.
        end: U64,
        /// All messages that are not settled.
        backlog: U64,
    }

    /// One consumer in the answer to [`List`]; the destination's name and the
    /// subscription's follow.
    ConsumerRow(40) {
        /// Its handle on its link.
        handle: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// Zero.
        reserved: u8,
        /// Bytes of the destination's name.
        destination_length: U16,
        /// Its link.
        link: U64,
        /// Messages that it was delivered.
        delivered: U64,
        /// How many more it may be delivered now.
        credit: U64,
        /// Bytes of the subscription's name.
        name_length: U16,
        /// Zero.
        reserved_bytes: [u8; 6],
    }

    /// One producer on a link in the answer to [`List`]; the destination's name and its
    /// own follow.
    ProducerRow(32) {
        /// Its id.
        producer: U64,
        /// Its link.
        link: U64,
        /// Its incarnation.
        epoch: U32,
        /// Its handle on its link.
        handle: U32,
        /// 0 queue, 1 topic.
        destination: u8,
        /// As in [`OpenProducer`].
        access: u8,
        /// Bytes of the destination's name.
        destination_length: U16,
        /// Bytes of its name.
        name_length: U16,
        /// Zero.
        reserved: U16,
    }

    /// One link in the answer to [`List`]; the client's name follows.
    LinkRow(32) {
        /// Its number.
        link: U64,
        /// Open sessions.
        sessions: U32,
        /// Open producers.
        producers: U32,
        /// Open consumers.
        consumers: U32,
        /// Bytes of the name.
        name_length: U16,
        /// Zero.
        reserved: U16,
        /// Bytes that wait to leave.
        waiting: U64,
    }
}

const _: () = assert!(size_of::<CompletionRun>() == 40);
const _: () = assert!(size_of::<AckRun>() == 16);
const _: () = assert!(size_of::<StatsRow>() == 48);
const _: () = assert!(
    super::CONTROL_HEADER_SIZE + size_of::<Completions>() + size_of::<CompletionRun>() == 64,
    "the usual answer to a send is one cache line"
);
