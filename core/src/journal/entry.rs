//! Entries: the messages and the changes of state that a batch makes durable.
//!
//! ```text
//!        +0       +4              +8              +12             +16
//!   0    | length | kind vs flags | fields of the kind ...
//!        | ... tail ... zeros up to a multiple of 8
//! ```
//!
//! A message's entry is the message's frame as it stands in the log, with its place
//! and its time. All others say what something is and not what became otherwise, so
//! reading one twice changes nothing.
//!
//! [`Entry::write`] and [`Entries`] are each other's reverse: what one lets through is
//! what the other writes.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::auth::Principal;
use crate::catalog;
use crate::catalog::change::Change;
use crate::error::Refusal;
use crate::frame::decode::Message;
use crate::frame::{ALIGNMENT, MESSAGE_HEADER_SIZE, MessageHeader, PREFIX_SIZE, Prefix, padded};
use crate::id::{
    CatalogVersion, DestinationNumber, Epoch, Offset, PageNumber, PartitionIndex,
    PartitionSequence, ProducerId, Sequence, SubscriptionNumber,
};
use crate::limits;
use crate::planted::Planted;
use crate::subscription::Kind as Sharing;

/// The one version of the entries' layouts.
pub const VERSION: u8 = 1;

/// Which partition of which destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The destination.
    pub destination: DestinationNumber,
    /// The partition.
    pub partition: PartitionIndex,
}

/// Messages that stand one behind the other in a partition.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Run {
    /// The first one's offset.
    pub first: U64,
    /// How many; at least one.
    pub count: U64,
}

impl Run {
    /// `count` messages from `first` on.
    #[must_use]
    pub fn new(first: Offset, count: u64) -> Self {
        Self {
            first: first.0.into(),
            count: count.into(),
        }
    }

    /// One behind the last of them, if there are any and a partition can come to it.
    fn end(&self) -> Option<u64> {
        let end = self.first.get().checked_add(self.count.get())?;
        (self.count.get() > 0 && end <= Offset::MAX.0).then_some(end)
    }
}

/// How far a producer has come in one partition.
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
pub struct Reached {
    /// The partition.
    pub partition: U32,
    /// 0.
    pub reserved: U32,
    /// The partition sequence of the last send that had its turn.
    pub partition_sequence: U64,
    /// The producer's sequence of it.
    pub sequence: U64,
}

/// What became of sends of a producer, one behind the other in a partition.
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
pub struct Fate {
    /// The partition sequence of the first.
    pub partition_sequence: U64,
    /// Its offset, if they are stored; 0 otherwise.
    pub offset: U64,
    /// When they were stored.
    pub append_time: U64,
    /// How many; at least one.
    pub count: U32,
    /// The partition.
    pub partition: U16,
    /// Why they are not stored, 0 if they are.
    pub refusal: U16,
}

const _: () = assert!(limits::PARTITIONS_MAX <= 1 << 16);

impl Fate {
    fn is_possible(&self) -> bool {
        let count = u64::from(self.count.get());
        let is_within = |first: u64, most: u64| {
            let end = first.checked_add(count);
            end.is_some_and(|end| end <= most)
        };
        count > 0
            && u32::from(self.partition.get()) < limits::PARTITIONS_MAX
            && is_within(self.partition_sequence.get(), u64::MAX)
            && is_within(self.offset.get(), Offset::MAX.0)
            && (self.refusal.get() == 0 || Refusal::from_code(self.refusal.get()).is_some())
    }
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A message was stored. Its own checksum was not looked at: that of its batch
    /// covers it.
    Message(Message<'a>),
    /// The catalogue changed.
    CatalogChanged {
        /// How many changes led to it, this one included.
        version: CatalogVersion,
        /// The change.
        change: Change,
    },
    /// A partition goes on at this offset or a later one.
    OffsetsReserved {
        /// The partition.
        place: Place,
        /// The offset.
        next: Offset,
    },
    /// A producer is attached, in this incarnation.
    ProducerAttached {
        /// The producer.
        producer: ProducerId,
        /// Its incarnation.
        epoch: Epoch,
        /// Where it sends to.
        destination: DestinationNumber,
        /// How often the destination was had alone, this time included.
        term: u32,
        /// Whom it belongs to.
        principal: Principal,
        /// Whether it has the destination alone.
        exclusive: bool,
        /// Its name.
        name: &'a str,
    },
    /// A producer is gone, and not known any more.
    ProducerForgotten {
        /// The producer.
        producer: ProducerId,
    },
    /// The next run gives out no id of a producer below this one.
    ProducerIdsReserved {
        /// The id.
        next: ProducerId,
    },
    /// A subscription has a part in a partition.
    PartBegun {
        /// The partition.
        place: Place,
        /// The subscription.
        subscription: SubscriptionNumber,
        /// The first message that is for it.
        start: Offset,
    },
    /// A subscription is there.
    SubscriptionMade {
        /// The destination.
        destination: DestinationNumber,
        /// The subscription.
        subscription: SubscriptionNumber,
        /// How its consumers share it.
        sharing: Sharing,
        /// Whether it stays when its consumers and the broker are gone.
        durable: bool,
        /// Its name.
        name: &'a str,
    },
    /// A subscription is gone.
    SubscriptionEnded {
        /// The destination.
        destination: DestinationNumber,
        /// The subscription.
        subscription: SubscriptionNumber,
    },
    /// Messages are settled.
    Settled {
        /// The partition.
        place: Place,
        /// For whom.
        subscription: SubscriptionNumber,
        /// Which.
        runs: &'a [Run],
    },
    /// What is settled in a partition: all before the cursor, and of those from there
    /// on whose bit is set.
    Cursor {
        /// The partition.
        place: Place,
        /// For whom.
        subscription: SubscriptionNumber,
        /// The first message that is not settled.
        cursor: Offset,
        /// Bit i of byte j stands for the message 8j + i behind the cursor.
        bits: &'a [u8],
    },
    /// Messages came back, and were delivered so often.
    Returned {
        /// The partition.
        place: Place,
        /// For whom.
        subscription: SubscriptionNumber,
        /// Which.
        run: Run,
        /// How often.
        deliveries: u32,
    },
    /// A send had its turn in its partition, and is not stored.
    SendRefused {
        /// Who sent it.
        producer: ProducerId,
        /// In which incarnation.
        epoch: Epoch,
        /// Where it would have gone.
        place: Place,
        /// The producer's count of its sends.
        sequence: Sequence,
        /// That of its sends to the partition.
        partition_sequence: PartitionSequence,
        /// Why.
        refusal: Refusal,
    },
    /// A partition has no message before this offset.
    Emptied {
        /// The partition.
        place: Place,
        /// The offset.
        first: Offset,
    },
    /// The catalogue has come to a version: its destinations follow.
    CatalogKept {
        /// How many changes led to it.
        version: CatalogVersion,
        /// How many slots it has.
        slots: u32,
        /// Those without a tenant that may have another one, the longest vacant first,
        /// each by the number that its next tenant gets.
        vacant: &'a [U32],
    },
    /// A destination of that catalogue.
    DestinationKept {
        /// How many changes led to the catalogue.
        version: CatalogVersion,
        /// The destination.
        destination: catalog::Entry,
    },
    /// How far a producer has come, and what became of its last sends.
    ProducerSent {
        /// The producer.
        producer: ProducerId,
        /// In each partition to which it sent.
        reached: &'a [Reached],
        /// Of its sends, those of a partition in their order.
        fates: &'a [Fate],
    },
    /// All messages of a partition were said that it has before this offset.
    PartitionKept {
        /// The partition.
        place: Place,
        /// The offset.
        next: Offset,
    },
    /// Subscriptions were given numbers below this one, some of which are gone.
    SubscriptionsNumbered {
        /// The number.
        next: SubscriptionNumber,
    },
    /// A destination was had alone so often: who was attached before never is again.
    TermReached {
        /// The destination.
        destination: DestinationNumber,
        /// How often.
        term: u32,
    },
    /// Messages of a partition lie in a page file.
    Paged {
        /// The partition.
        place: Place,
        /// Where they lie.
        image: PageImage,
    },
}

/// Where messages of one partition lie that stand one behind the other, and what is to be
/// found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageImage {
    /// The run that wrote them.
    pub run: crate::id::Run,
    /// The page that they begin with.
    pub page: PageNumber,
    /// Bytes of their frames, padded.
    pub size: u32,
    /// The CRC-32C of these bytes.
    pub sum: u32,
    /// The first one's offset.
    pub first: Offset,
    /// How many; the offsets have no hole between them.
    pub count: u32,
}

impl PageImage {
    /// Pages that it takes up.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.size.div_ceil(limits::PAGE_SIZE)
    }

    /// Whether there can be such pages, of one file, and such messages.
    fn is_possible(&self) -> bool {
        let in_file = self.page.0.rem_euclid(limits::PAGES_PER_FILE);
        let last = self.first.0.checked_add(self.count.into());
        self.size > 0
            && self.size <= SIZE_MAX
            && self.size.is_multiple_of(8)
            && in_file.saturating_add(self.pages()) <= limits::PAGES_PER_FILE
            && self.count > 0
            && last.is_some_and(|last| last <= Offset::MAX.0)
    }
}

/// Bytes of a segment in pages at most: those of one frame, padded, unless it takes one page.
const SIZE_MAX: u32 = limits::FRAME_SIZE_MAX.next_multiple_of(8);
const _: () = assert!(limits::PAGE_SIZE <= SIZE_MAX);

/// The number that stands for a kind of entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`Entry::CatalogChanged`].
    CatalogChanged = 1,
    /// [`Entry::OffsetsReserved`].
    OffsetsReserved = 2,
    /// [`Entry::ProducerAttached`].
    ProducerAttached = 3,
    /// [`Entry::ProducerForgotten`].
    ProducerForgotten = 4,
    /// [`Entry::ProducerIdsReserved`].
    ProducerIdsReserved = 5,
    /// [`Entry::PartBegun`].
    PartBegun = 6,
    /// [`Entry::SubscriptionMade`] and [`Entry::SubscriptionEnded`].
    Subscription = 7,
    /// [`Entry::Settled`].
    Settled = 8,
    /// [`Entry::Cursor`].
    Cursor = 9,
    /// [`Entry::Returned`].
    Returned = 10,
    /// [`Entry::SendRefused`].
    SendRefused = 11,
    /// [`Entry::Emptied`].
    Emptied = 12,
    /// [`Entry::CatalogKept`].
    CatalogKept = 13,
    /// [`Entry::DestinationKept`].
    DestinationKept = 14,
    /// [`Entry::ProducerSent`].
    ProducerSent = 15,
    /// [`Entry::PartitionKept`].
    PartitionKept = 16,
    /// [`Entry::SubscriptionsNumbered`].
    SubscriptionsNumbered = 17,
    /// [`Entry::TermReached`].
    TermReached = 18,
    /// [`Entry::Paged`].
    Paged = 19,
    /// [`Entry::Message`].
    Message = 0x80,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 20] = [
        Self::CatalogChanged,
        Self::OffsetsReserved,
        Self::ProducerAttached,
        Self::ProducerForgotten,
        Self::ProducerIdsReserved,
        Self::PartBegun,
        Self::Subscription,
        Self::Settled,
        Self::Cursor,
        Self::Returned,
        Self::SendRefused,
        Self::Emptied,
        Self::CatalogKept,
        Self::DestinationKept,
        Self::ProducerSent,
        Self::PartitionKept,
        Self::SubscriptionsNumbered,
        Self::TermReached,
        Self::Paged,
        Self::Message,
    ];

    /// The kind that `code` stands for.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CatalogChanged => "catalogue change",
            Self::OffsetsReserved => "offset reservation",
            Self::ProducerAttached => "producer attached",
            Self::ProducerForgotten => "producer forgotten",
            Self::ProducerIdsReserved => "producer ids reserved",
            Self::PartBegun => "part begun",
            Self::Subscription => "subscription",
            Self::Settled => "settled",
            Self::Cursor => "cursor",
            Self::Returned => "returned",
            Self::SendRefused => "send refused",
            Self::Emptied => "partition emptied",
            Self::CatalogKept => "catalogue kept",
            Self::DestinationKept => "destination kept",
            Self::ProducerSent => "producer sent",
            Self::PartitionKept => "partition kept",
            Self::SubscriptionsNumbered => "subscriptions numbered",
            Self::TermReached => "term reached",
            Self::Paged => "paged",
            Self::Message => "message",
        }
    }

    /// The number that stands for it.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "its discriminant is a byte")]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// Kinds that have a number and no layout yet.
pub const RESERVED: core::ops::RangeInclusive<u8> = 0x20..=0x26;

/// The layouts of what stands behind an entry's prefix.
mod layout {
    use super::{FromBytes, Immutable, IntoBytes, KnownLayout, U16, U32, U64, Unaligned};

    macro_rules! layouts {
        ($( $name:ident { $( $field:ident: $type:ty, )* } )*) => {
            $(
                #[derive(Clone, Copy, Default)]
                #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
                #[repr(C)]
                pub(super) struct $name {
                    $( pub(super) $field: $type, )*
                }

                const _: () = assert!(size_of::<$name>().is_multiple_of(8));
            )*
        };
    }

    layouts! {
        CatalogChanged { version: U64, }
        OffsetsReserved { destination: U32, partition: U32, next: U64, }
        ProducerAttached {
            producer: U64,
            epoch: U32,
            destination: U32,
            term: U32,
            principal: U32,
            exclusive: u8,
            reserved: [u8; 7],
        }
        ProducerForgotten { producer: U64, }
        ProducerIdsReserved { next: U64, }
        PartBegun {
            destination: U32,
            partition: U32,
            subscription: U32,
            reserved: U32,
            start: U64,
        }
        Subscription {
            destination: U32,
            subscription: U32,
            sharing: u8,
            durable: u8,
            ended: u8,
            reserved: [u8; 5],
        }
        Settled { destination: U32, partition: U32, subscription: U32, runs: U32, }
        Cursor {
            destination: U32,
            partition: U32,
            subscription: U32,
            reserved: U32,
            cursor: U64,
        }
        Returned {
            destination: U32,
            partition: U32,
            subscription: U32,
            deliveries: U32,
            first: U64,
            count: U64,
        }
        SendRefused {
            producer: U64,
            epoch: U32,
            destination: U32,
            partition: U32,
            refusal: U16,
            reserved: U16,
            sequence: U64,
            partition_sequence: U64,
        }
        Emptied { destination: U32, partition: U32, first: U64, }
        CatalogKept { version: U64, slots: U32, vacant: U32, }
        DestinationKept { version: U64, }
        ProducerSent { producer: U64, reached: U32, fates: U32, }
        PartitionKept { destination: U32, partition: U32, next: U64, }
        SubscriptionsNumbered { next: U32, reserved: U32, }
        TermReached { destination: U32, term: U32, }
        Paged {
            destination: U32,
            partition: U32,
            run: U64,
            page: U32,
            size: U32,
            first: U64,
            count: U32,
            sum: U32,
        }
    }
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It claims fewer bytes than its kind has.
    TooShort {
        /// What it claims.
        length: u32,
    },
    /// It claims more bytes than are left of its batch.
    TooLong {
        /// What it claims.
        length: u32,
        /// What is left.
        left: u32,
    },
    /// A later version of the broker wrote it.
    Newer {
        /// Its kind.
        kind: u8,
        /// Its version.
        version: u8,
    },
    /// Flags are set, and none has a meaning.
    UnknownFlags {
        /// What stands there.
        flags: u16,
    },
    /// A byte that has to be zero is not.
    NotZero,
    /// The tail is not as long as the fields say, or longer than it may be.
    TailMismatch,
    /// A number is not one that its field can have.
    OutOfRange {
        /// The field.
        field: &'static str,
    },
    /// A name is not UTF-8.
    NotText,
    /// It is no change of the catalogue.
    NotAChange,
    /// The batch has another number of entries than it claims.
    CountMismatch {
        /// What it claims.
        claimed: u32,
        /// What it has, at least.
        actual: u32,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { length } => {
                write!(f, "the entry claims {length} bytes, too few for its kind")
            }
            Self::TooLong { length, left } => {
                write!(
                    f,
                    "the entry claims {length} bytes, its batch has {left} left"
                )
            }
            Self::Newer { kind, version } => write!(
                f,
                "the entry is of kind {kind:#04x} and version {version}, written by a newer version"
            ),
            Self::UnknownFlags { flags } => {
                write!(f, "the entry has flags {flags:#06x}, none has a meaning")
            }
            Self::NotZero => f.write_str("a byte of the entry that has to be zero is not"),
            Self::TailMismatch => f.write_str("the entry's tail is not as long as its fields say"),
            Self::OutOfRange { field } => {
                write!(f, "the entry's {field} is not one that there can be")
            }
            Self::NotText => f.write_str("the entry's name is not UTF-8"),
            Self::NotAChange => f.write_str("the entry is no change of the catalogue"),
            Self::CountMismatch { claimed, actual } => {
                write!(
                    f,
                    "the batch claims {claimed} entries, it has {actual} or more"
                )
            }
        }
    }
}

impl std::error::Error for Malformed {}

impl Entry<'_> {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Message(_) => Kind::Message,
            Self::CatalogChanged { .. } => Kind::CatalogChanged,
            Self::OffsetsReserved { .. } => Kind::OffsetsReserved,
            Self::ProducerAttached { .. } => Kind::ProducerAttached,
            Self::ProducerForgotten { .. } => Kind::ProducerForgotten,
            Self::ProducerIdsReserved { .. } => Kind::ProducerIdsReserved,
            Self::PartBegun { .. } => Kind::PartBegun,
            Self::SubscriptionMade { .. } | Self::SubscriptionEnded { .. } => Kind::Subscription,
            Self::Settled { .. } => Kind::Settled,
            Self::Cursor { .. } => Kind::Cursor,
            Self::Returned { .. } => Kind::Returned,
            Self::SendRefused { .. } => Kind::SendRefused,
            Self::Emptied { .. } => Kind::Emptied,
            Self::CatalogKept { .. } => Kind::CatalogKept,
            Self::DestinationKept { .. } => Kind::DestinationKept,
            Self::ProducerSent { .. } => Kind::ProducerSent,
            Self::PartitionKept { .. } => Kind::PartitionKept,
            Self::SubscriptionsNumbered { .. } => Kind::SubscriptionsNumbered,
            Self::TermReached { .. } => Kind::TermReached,
            Self::Paged { .. } => Kind::Paged,
        }
    }

    /// The bytes that [`Entry::write`] writes: a multiple of eight.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Message(message) => message.bytes.len(),
            Self::CatalogChanged { change, .. } => {
                sized::<layout::CatalogChanged>(change_bytes(change).len())
            }
            Self::OffsetsReserved { .. } => sized::<layout::OffsetsReserved>(0),
            Self::ProducerAttached { name, .. } => sized::<layout::ProducerAttached>(name.len()),
            Self::ProducerForgotten { .. } => sized::<layout::ProducerForgotten>(0),
            Self::ProducerIdsReserved { .. } => sized::<layout::ProducerIdsReserved>(0),
            Self::PartBegun { .. } => sized::<layout::PartBegun>(0),
            Self::SubscriptionMade { name, .. } => sized::<layout::Subscription>(name.len()),
            Self::SubscriptionEnded { .. } => sized::<layout::Subscription>(0),
            Self::Settled { runs, .. } => sized::<layout::Settled>(runs.as_bytes().len()),
            Self::Cursor { bits, .. } => sized::<layout::Cursor>(bits.len()),
            Self::Returned { .. } => sized::<layout::Returned>(0),
            Self::SendRefused { .. } => sized::<layout::SendRefused>(0),
            Self::Emptied { .. } => sized::<layout::Emptied>(0),
            Self::CatalogKept { vacant, .. } => {
                sized::<layout::CatalogKept>(vacant.as_bytes().len())
            }
            Self::DestinationKept { destination, .. } => {
                sized::<layout::DestinationKept>(creation_bytes(destination).len())
            }
            Self::ProducerSent { reached, fates, .. } => {
                let tail = size_of_val(*reached).saturating_add(size_of_val(*fates));
                sized::<layout::ProducerSent>(tail)
            }
            Self::PartitionKept { .. } => sized::<layout::PartitionKept>(0),
            Self::SubscriptionsNumbered { .. } => sized::<layout::SubscriptionsNumbered>(0),
            Self::TermReached { .. } => sized::<layout::TermReached>(0),
            Self::Paged { .. } => sized::<layout::Paged>(0),
        }
    }

    /// Writes it to the front of `out` and returns its size.
    ///
    /// # Panics
    ///
    /// If `out` is shorter than [`Entry::size`], which is a mistake of the caller.
    pub fn write(&self, out: &mut [u8]) -> usize {
        use layout::{
            CatalogChanged, CatalogKept, Cursor, DestinationKept, Emptied, OffsetsReserved, Paged,
            PartBegun, PartitionKept, ProducerAttached, ProducerForgotten, ProducerIdsReserved,
            ProducerSent, Returned, SendRefused, Settled, Subscription, SubscriptionsNumbered,
            TermReached,
        };
        let kind = self.kind();
        match self {
            Self::Message(message) => {
                let place = out.get_mut(..message.bytes.len());
                assert!(place.is_some(), "there is room for the message");
                if let Some(place) = place {
                    place.copy_from_slice(message.bytes);
                }
                message.bytes.len()
            }
            Self::CatalogChanged { version, change } => {
                let fields = CatalogChanged {
                    version: version.0.into(),
                };
                put(kind, &fields, &change_bytes(change), out)
            }
            Self::OffsetsReserved { place, next } => {
                let fields = OffsetsReserved {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    next: next.0.into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::ProducerAttached {
                producer,
                epoch,
                destination,
                term,
                principal,
                exclusive,
                name,
            } => {
                let fields = ProducerAttached {
                    producer: producer.0.into(),
                    epoch: epoch.0.into(),
                    destination: destination.0.into(),
                    term: (*term).into(),
                    principal: principal.number().into(),
                    exclusive: u8::from(*exclusive),
                    reserved: [0; 7],
                };
                put(kind, &fields, name.as_bytes(), out)
            }
            Self::ProducerForgotten { producer } => {
                let fields = ProducerForgotten {
                    producer: producer.0.into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::ProducerIdsReserved { next } => {
                let fields = ProducerIdsReserved {
                    next: next.0.into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::PartBegun {
                place,
                subscription,
                start,
            } => {
                let fields = PartBegun {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    subscription: subscription.0.into(),
                    reserved: U32::ZERO,
                    start: start.0.into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::SubscriptionMade {
                destination,
                subscription,
                sharing,
                durable,
                name,
            } => {
                let fields = Subscription {
                    destination: destination.0.into(),
                    subscription: subscription.0.into(),
                    sharing: code(*sharing),
                    durable: u8::from(*durable),
                    ..Subscription::default()
                };
                put(kind, &fields, name.as_bytes(), out)
            }
            Self::SubscriptionEnded {
                destination,
                subscription,
            } => {
                let fields = Subscription {
                    destination: destination.0.into(),
                    subscription: subscription.0.into(),
                    ended: 1,
                    ..Subscription::default()
                };
                put(kind, &fields, &[], out)
            }
            Self::Settled {
                place,
                subscription,
                runs,
            } => {
                let fields = Settled {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    subscription: subscription.0.into(),
                    runs: u32::try_from(runs.len()).unwrap_or(u32::MAX).into(),
                };
                put(kind, &fields, runs.as_bytes(), out)
            }
            Self::Cursor {
                place,
                subscription,
                cursor,
                bits,
            } => {
                let fields = Cursor {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    subscription: subscription.0.into(),
                    reserved: U32::ZERO,
                    cursor: cursor.0.into(),
                };
                put(kind, &fields, bits, out)
            }
            Self::Returned {
                place,
                subscription,
                run,
                deliveries,
            } => {
                let fields = Returned {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    subscription: subscription.0.into(),
                    deliveries: (*deliveries).into(),
                    first: run.first,
                    count: run.count,
                };
                put(kind, &fields, &[], out)
            }
            Self::SendRefused {
                producer,
                epoch,
                place,
                sequence,
                partition_sequence,
                refusal,
            } => {
                let fields = SendRefused {
                    producer: producer.0.into(),
                    epoch: epoch.0.into(),
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    refusal: refusal.code().into(),
                    reserved: U16::ZERO,
                    sequence: sequence.0.into(),
                    partition_sequence: partition_sequence.0.into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::Emptied { place, first } => {
                let fields = Emptied {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    first: first.0.into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::CatalogKept {
                version,
                slots,
                vacant,
            } => {
                let fields = CatalogKept {
                    version: version.0.into(),
                    slots: (*slots).into(),
                    vacant: length(vacant).into(),
                };
                put(kind, &fields, vacant.as_bytes(), out)
            }
            Self::DestinationKept {
                version,
                destination,
            } => {
                let fields = DestinationKept {
                    version: version.0.into(),
                };
                put(kind, &fields, &creation_bytes(destination), out)
            }
            Self::ProducerSent {
                producer,
                reached,
                fates,
            } => {
                let fields = ProducerSent {
                    producer: producer.0.into(),
                    reached: length(reached).into(),
                    fates: length(fates).into(),
                };
                let tail = [reached.as_bytes(), fates.as_bytes()];
                put_parts(kind, &fields, tail, out)
            }
            Self::PartitionKept { place, next } => {
                let fields = PartitionKept {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    next: next.0.into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::SubscriptionsNumbered { next } => {
                let fields = SubscriptionsNumbered {
                    next: next.0.into(),
                    reserved: U32::ZERO,
                };
                put(kind, &fields, &[], out)
            }
            Self::TermReached { destination, term } => {
                let fields = TermReached {
                    destination: destination.0.into(),
                    term: (*term).into(),
                };
                put(kind, &fields, &[], out)
            }
            Self::Paged { place, image } => {
                let fields = Paged {
                    destination: place.destination.0.into(),
                    partition: place.partition.0.into(),
                    run: image.run.0.into(),
                    page: image.page.0.into(),
                    size: image.size.into(),
                    first: image.first.0.into(),
                    count: image.count.into(),
                    sum: image.sum.into(),
                };
                put(kind, &fields, &[], out)
            }
        }
    }
}

/// How many there are, as an entry says it.
fn length<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

#[expect(clippy::as_conversions, reason = "its discriminant is a byte")]
const fn code(sharing: Sharing) -> u8 {
    sharing as u8
}

fn change_bytes(change: &Change) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(crate::catalog::change::CHANGE_SIZE_MAX);
    change.encode(&mut bytes);
    bytes
}

/// The change that a destination came by.
fn creation_bytes(destination: &catalog::Entry) -> Vec<u8> {
    change_bytes(&Change::Create(destination.clone()))
}

/// The padded size of an entry with fields `F` and so long a tail.
const fn sized<F>(tail: usize) -> usize {
    padded(
        PREFIX_SIZE
            .saturating_add(size_of::<F>())
            .saturating_add(tail),
    )
}

fn put<F: IntoBytes + Immutable>(kind: Kind, fields: &F, tail: &[u8], out: &mut [u8]) -> usize {
    put_parts(kind, fields, [tail, &[]], out)
}

/// Writes an entry whose tail comes in two parts.
fn put_parts<F: IntoBytes + Immutable>(
    kind: Kind,
    fields: &F,
    tail: [&[u8]; 2],
    out: &mut [u8],
) -> usize {
    let [one, other] = tail;
    let behind = one.len().saturating_add(other.len());
    let size = sized::<F>(behind);
    let length = PREFIX_SIZE
        .saturating_add(size_of::<F>())
        .saturating_add(behind);
    let prefix = Prefix {
        length: u32::try_from(length).unwrap_or(u32::MAX).into(),
        kind: kind.code(),
        version: VERSION,
        flags: U16::ZERO,
    };
    let out = out.get_mut(..size);
    assert!(out.is_some(), "there is room for an entry of {size} bytes");
    let mut out = out.unwrap_or_default();
    for part in [prefix.as_bytes(), fields.as_bytes(), one, other] {
        if let Some((place, rest)) = core::mem::take(&mut out).split_at_mut_checked(part.len()) {
            place.copy_from_slice(part);
            out = rest;
        }
    }
    out.fill(0);
    size
}

/// The entries of a batch, one after the other; ends behind the first that is none.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    left: &'a [u8],
    claimed: u32,
    read: u32,
}

impl<'a> Entries<'a> {
    /// The entries that `bytes` are, of which there are to be so many.
    #[must_use]
    pub const fn new(bytes: &'a [u8], claimed: u32) -> Self {
        Self {
            left: bytes,
            claimed,
            read: 0,
        }
    }

    /// Bytes that were not read yet. Behind an error: from that entry on.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.left.len()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read == u32::MAX {
            return None;
        }
        if self.left.is_empty() {
            let actual = core::mem::replace(&mut self.read, u32::MAX);
            let claimed = self.claimed;
            return (actual != claimed)
                .then_some(Err(Malformed::CountMismatch { claimed, actual }));
        }
        self.read = self.read.saturating_add(1);
        if self.read > self.claimed {
            let actual = core::mem::replace(&mut self.read, u32::MAX);
            return Some(Err(Malformed::CountMismatch {
                claimed: self.claimed,
                actual,
            }));
        }
        match decode(self.left) {
            Ok((entry, rest)) => {
                self.left = rest;
                Some(Ok(entry))
            }
            Err(malformed) => {
                self.read = u32::MAX;
                Some(Err(malformed))
            }
        }
    }
}

/// The entry at the front of `bytes`, and what is behind it.
fn decode(bytes: &[u8]) -> Result<(Entry<'_>, &[u8]), Malformed> {
    let left = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let (prefix, _) =
        Prefix::ref_from_prefix(bytes).map_err(|_| Malformed::TooShort { length: left })?;
    let length = prefix.length.get();
    let too_long = Malformed::TooLong { length, left };
    let unpadded = usize::try_from(length).map_err(|_| too_long)?;
    let size = unpadded
        .checked_next_multiple_of(ALIGNMENT)
        .ok_or(too_long)?;
    let (whole, rest) = bytes.split_at_checked(size).ok_or(too_long)?;
    let too_short = Malformed::TooShort { length };
    if unpadded < PREFIX_SIZE {
        return Err(too_short);
    }
    let (unpadded, padding) = whole.split_at_checked(unpadded).ok_or(too_long)?;
    let newer = Malformed::Newer {
        kind: prefix.kind,
        version: prefix.version,
    };
    let kind = Kind::from_code(prefix.kind).ok_or(newer)?;
    if prefix.version != VERSION {
        return Err(newer);
    }
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Malformed::NotZero);
    }
    if kind == Kind::Message {
        return Ok((message(whole, unpadded, too_short)?, rest));
    }
    if prefix.flags.get() != 0 {
        return Err(Malformed::UnknownFlags {
            flags: prefix.flags.get(),
        });
    }
    let behind = unpadded.get(PREFIX_SIZE..).ok_or(too_short)?;
    Ok((state(kind, behind, too_short)?, rest))
}

fn message<'a>(
    bytes: &'a [u8],
    unpadded: &'a [u8],
    too_short: Malformed,
) -> Result<Entry<'a>, Malformed> {
    if unpadded.len() > usize::try_from(limits::FRAME_SIZE_MAX).unwrap_or(usize::MAX) {
        return Err(Malformed::OutOfRange { field: "length" });
    }
    let (header, behind) = MessageHeader::ref_from_prefix(unpadded).map_err(|_| too_short)?;
    debug_assert!(unpadded.len() >= MESSAGE_HEADER_SIZE);
    let properties = usize::try_from(header.property_length.get()).unwrap_or(usize::MAX);
    let (properties, body) = behind
        .split_at_checked(properties)
        .ok_or(Malformed::TailMismatch)?;
    offset(header.offset.get(), "offset")?;
    Ok(Entry::Message(Message {
        header,
        properties,
        body,
        bytes,
    }))
}

/// An entry of state whose fields and tail `behind` are.
fn state(kind: Kind, behind: &[u8], too_short: Malformed) -> Result<Entry<'_>, Malformed> {
    fn split<F>(behind: &[u8], too_short: Malformed) -> Result<(&F, &[u8]), Malformed>
    where
        F: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        F::ref_from_prefix(behind).map_err(|_| too_short)
    }
    let mut tail: &[u8] = &[];
    let entry = match kind {
        Kind::CatalogChanged => {
            let (fields, bytes) = split::<layout::CatalogChanged>(behind, too_short)?;
            Entry::CatalogChanged {
                version: CatalogVersion(fields.version.get()),
                change: Change::decode(bytes).ok_or(Malformed::NotAChange)?,
            }
        }
        Kind::OffsetsReserved => {
            let (fields, rest) = split::<layout::OffsetsReserved>(behind, too_short)?;
            tail = rest;
            Entry::OffsetsReserved {
                place: place(fields.destination, fields.partition)?,
                next: offset(fields.next.get(), "next offset")?,
            }
        }
        Kind::ProducerAttached => {
            let (fields, bytes) = split::<layout::ProducerAttached>(behind, too_short)?;
            zero(&fields.reserved)?;
            Entry::ProducerAttached {
                producer: ProducerId(fields.producer.get()),
                epoch: Epoch(fields.epoch.get()),
                destination: DestinationNumber(fields.destination.get()),
                term: fields.term.get(),
                principal: Principal::from_number(fields.principal.get()),
                exclusive: boolean(fields.exclusive, "access")?,
                name: text(bytes)?,
            }
        }
        Kind::ProducerForgotten => {
            let (fields, rest) = split::<layout::ProducerForgotten>(behind, too_short)?;
            tail = rest;
            Entry::ProducerForgotten {
                producer: ProducerId(fields.producer.get()),
            }
        }
        Kind::ProducerIdsReserved => {
            let (fields, rest) = split::<layout::ProducerIdsReserved>(behind, too_short)?;
            tail = rest;
            Entry::ProducerIdsReserved {
                next: ProducerId(fields.next.get()),
            }
        }
        Kind::PartBegun => {
            let (fields, rest) = split::<layout::PartBegun>(behind, too_short)?;
            tail = rest;
            zero(fields.reserved.as_bytes())?;
            Entry::PartBegun {
                place: place(fields.destination, fields.partition)?,
                subscription: SubscriptionNumber(fields.subscription.get()),
                start: offset(fields.start.get(), "start")?,
            }
        }
        Kind::Subscription => subscription(split(behind, too_short)?)?,
        Kind::Settled => {
            let (fields, bytes) = split::<layout::Settled>(behind, too_short)?;
            let runs = <[Run]>::ref_from_bytes(bytes).map_err(|_| Malformed::TailMismatch)?;
            let mut claimed = usize::try_from(fields.runs.get());
            // What a fuzzer has to find: one kind alone, and there only with a certain
            // relation between two fields.
            if Planted::FuzzRunsOfSettled.is_awake() && fields.runs > fields.subscription {
                claimed = Ok(runs.len());
            }
            if claimed != Ok(runs.len()) {
                return Err(Malformed::TailMismatch);
            }
            for each in runs {
                run(*each)?;
            }
            Entry::Settled {
                place: place(fields.destination, fields.partition)?,
                subscription: SubscriptionNumber(fields.subscription.get()),
                runs,
            }
        }
        Kind::Cursor => {
            let (fields, bits) = split::<layout::Cursor>(behind, too_short)?;
            zero(fields.reserved.as_bytes())?;
            let span = u64::try_from(bits.len())
                .unwrap_or(u64::MAX)
                .saturating_mul(8);
            offset(fields.cursor.get().saturating_add(span), "cursor")?;
            Entry::Cursor {
                place: place(fields.destination, fields.partition)?,
                subscription: SubscriptionNumber(fields.subscription.get()),
                cursor: Offset(fields.cursor.get()),
                bits,
            }
        }
        Kind::Returned => {
            let (fields, rest) = split::<layout::Returned>(behind, too_short)?;
            tail = rest;
            Entry::Returned {
                place: place(fields.destination, fields.partition)?,
                subscription: SubscriptionNumber(fields.subscription.get()),
                run: run(Run {
                    first: fields.first,
                    count: fields.count,
                })?,
                deliveries: fields.deliveries.get(),
            }
        }
        Kind::SendRefused => {
            let (fields, rest) = split::<layout::SendRefused>(behind, too_short)?;
            tail = rest;
            zero(fields.reserved.as_bytes())?;
            Entry::SendRefused {
                producer: ProducerId(fields.producer.get()),
                epoch: Epoch(fields.epoch.get()),
                place: place(fields.destination, fields.partition)?,
                sequence: Sequence(fields.sequence.get()),
                partition_sequence: PartitionSequence(fields.partition_sequence.get()),
                refusal: Refusal::from_code(fields.refusal.get())
                    .ok_or(Malformed::OutOfRange { field: "refusal" })?,
            }
        }
        Kind::Emptied => {
            let (fields, rest) = split::<layout::Emptied>(behind, too_short)?;
            tail = rest;
            Entry::Emptied {
                place: place(fields.destination, fields.partition)?,
                first: offset(fields.first.get(), "first offset")?,
            }
        }
        Kind::CatalogKept => {
            let (fields, bytes) = split::<layout::CatalogKept>(behind, too_short)?;
            let vacant = <[U32]>::ref_from_bytes(bytes).map_err(|_| Malformed::TailMismatch)?;
            if fields.vacant.get() != length(vacant) {
                return Err(Malformed::TailMismatch);
            }
            let slots = fields.slots.get();
            let has = |number: &U32| {
                let slot = DestinationNumber(number.get()).slot();
                usize::try_from(slots).is_ok_and(|slots| slot < slots)
            };
            if slots > limits::DESTINATIONS_MAX || !vacant.iter().all(has) {
                return Err(Malformed::OutOfRange { field: "slots" });
            }
            Entry::CatalogKept {
                version: CatalogVersion(fields.version.get()),
                slots,
                vacant,
            }
        }
        Kind::DestinationKept => {
            let (fields, bytes) = split::<layout::DestinationKept>(behind, too_short)?;
            let Some(Change::Create(destination)) = Change::decode(bytes) else {
                return Err(Malformed::NotAChange);
            };
            Entry::DestinationKept {
                version: CatalogVersion(fields.version.get()),
                destination,
            }
        }
        Kind::ProducerSent => producer_sent(split(behind, too_short)?)?,
        Kind::PartitionKept => {
            let (fields, rest) = split::<layout::PartitionKept>(behind, too_short)?;
            tail = rest;
            Entry::PartitionKept {
                place: place(fields.destination, fields.partition)?,
                next: offset(fields.next.get(), "next offset")?,
            }
        }
        Kind::SubscriptionsNumbered => {
            let (fields, rest) = split::<layout::SubscriptionsNumbered>(behind, too_short)?;
            tail = rest;
            zero(fields.reserved.as_bytes())?;
            Entry::SubscriptionsNumbered {
                next: SubscriptionNumber(fields.next.get()),
            }
        }
        Kind::TermReached => {
            let (fields, rest) = split::<layout::TermReached>(behind, too_short)?;
            tail = rest;
            Entry::TermReached {
                destination: DestinationNumber(fields.destination.get()),
                term: fields.term.get(),
            }
        }
        Kind::Paged => {
            let (fields, rest) = split::<layout::Paged>(behind, too_short)?;
            tail = rest;
            let image = PageImage {
                run: crate::id::Run(fields.run.get()),
                page: PageNumber(fields.page.get()),
                size: fields.size.get(),
                sum: fields.sum.get(),
                first: offset(fields.first.get(), "first offset")?,
                count: fields.count.get(),
            };
            if !image.is_possible() {
                return Err(Malformed::OutOfRange { field: "page" });
            }
            Entry::Paged {
                place: place(fields.destination, fields.partition)?,
                image,
            }
        }
        Kind::Message => return Err(too_short),
    };
    if tail.is_empty() {
        Ok(entry)
    } else {
        Err(Malformed::TailMismatch)
    }
}

fn subscription<'a>(
    (fields, bytes): (&'a layout::Subscription, &'a [u8]),
) -> Result<Entry<'a>, Malformed> {
    zero(&fields.reserved)?;
    let destination = DestinationNumber(fields.destination.get());
    let subscription = SubscriptionNumber(fields.subscription.get());
    if boolean(fields.ended, "end")? {
        zero(&[fields.sharing, fields.durable])?;
        if !bytes.is_empty() {
            return Err(Malformed::TailMismatch);
        }
        return Ok(Entry::SubscriptionEnded {
            destination,
            subscription,
        });
    }
    Ok(Entry::SubscriptionMade {
        destination,
        subscription,
        sharing: Sharing::from_code(fields.sharing)
            .ok_or(Malformed::OutOfRange { field: "sharing" })?,
        durable: boolean(fields.durable, "durability")?,
        name: text(bytes)?,
    })
}

fn producer_sent<'a>(
    (fields, bytes): (&'a layout::ProducerSent, &'a [u8]),
) -> Result<Entry<'a>, Malformed> {
    let count = |number: U32| usize::try_from(number.get()).unwrap_or(usize::MAX);
    let (reached, bytes) = <[Reached]>::ref_from_prefix_with_elems(bytes, count(fields.reached))
        .map_err(|_| Malformed::TailMismatch)?;
    let fates = <[Fate]>::ref_from_bytes_with_elems(bytes, count(fields.fates))
        .map_err(|_| Malformed::TailMismatch)?;
    for each in reached {
        zero(each.reserved.as_bytes())?;
        if each.partition.get() >= limits::PARTITIONS_MAX {
            return Err(Malformed::OutOfRange { field: "partition" });
        }
    }
    if !fates.iter().all(Fate::is_possible) {
        return Err(Malformed::OutOfRange {
            field: "run of sends",
        });
    }
    Ok(Entry::ProducerSent {
        producer: ProducerId(fields.producer.get()),
        reached,
        fates,
    })
}

fn place(destination: U32, partition: U32) -> Result<Place, Malformed> {
    if partition.get() >= limits::PARTITIONS_MAX {
        return Err(Malformed::OutOfRange { field: "partition" });
    }
    Ok(Place {
        destination: DestinationNumber(destination.get()),
        partition: PartitionIndex(partition.get()),
    })
}

fn offset(value: u64, field: &'static str) -> Result<Offset, Malformed> {
    if value > Offset::MAX.0 {
        return Err(Malformed::OutOfRange { field });
    }
    Ok(Offset(value))
}

fn run(run: Run) -> Result<Run, Malformed> {
    let field = "run of messages";
    run.end()
        .map(|_| run)
        .ok_or(Malformed::OutOfRange { field })
}

fn boolean(value: u8, field: &'static str) -> Result<bool, Malformed> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::OutOfRange { field }),
    }
}

fn zero(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(Malformed::NotZero)
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > usize::try_from(limits::NAME_SIZE_MAX).unwrap_or(usize::MAX) {
        return Err(Malformed::TailMismatch);
    }
    core::str::from_utf8(bytes).map_err(|_| Malformed::NotText)
}
