//! What a link tells its application, beside messages and completions.

use super::admin::Page;
use super::error::LinkEnd;
use crate::error::Refusal;
use crate::frame::control::{Stats, StatsRow};
use crate::id::{
    CatalogVersion, Epoch, Handle, Installation, Offset, ProducerId, RequestId, ShardIndex,
};
use crate::name::{Destination, DestinationKind};
use crate::time::Monotonic;

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

/// An answer to a request, or the end of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open: requests leave from here on.
    Opened {
        /// Whose data the broker holds.
        installation: Installation,
        /// The shard that the link belongs to.
        shard: ShardIndex,
    },
    /// A producer is open.
    ProducerOpened {
        /// The request.
        request: RequestId,
        /// Names the producer here.
        producer: ProducerKey,
        /// Who it is at the broker.
        id: ProducerId,
        /// Its incarnation.
        epoch: Epoch,
        /// Partitions of its destination.
        partitions: u32,
    },
    /// A consumer is open.
    ConsumerOpened {
        /// The request.
        request: RequestId,
        /// Names the consumer here.
        consumer: ConsumerKey,
        /// For each partition the offset it starts at.
        starts: Box<[Offset]>,
    },
    /// A producer is closed; outcomes of its sends may still be taken.
    ProducerClosed {
        /// The request.
        request: RequestId,
        /// Which producer.
        producer: ProducerKey,
    },
    /// A consumer is closed.
    ConsumerClosed {
        /// The request.
        request: RequestId,
        /// Which consumer.
        consumer: ConsumerKey,
    },
    /// Who owns a destination.
    Located {
        /// The request.
        request: RequestId,
        /// Who owns it.
        location: Location,
    },
    /// The broker's counters.
    Stats {
        /// The request.
        request: RequestId,
        /// What they say.
        report: StatsReport,
    },
    /// What an administrator asked for is so.
    Changed {
        /// The request.
        request: RequestId,
        /// How many changes of the catalogue led to this.
        version: CatalogVersion,
        /// Whether something changed; if not, all was so before.
        changed: bool,
    },
    /// A page of what there is.
    Listed {
        /// The request.
        request: RequestId,
        /// The page.
        page: Page,
    },
    /// The answer to a ping.
    Pong {
        /// The request.
        request: RequestId,
        /// When it was asked for.
        asked: Monotonic,
    },
    /// A request was refused.
    Refused {
        /// The request.
        request: RequestId,
        /// Why, if this version knows the reason.
        refusal: Option<Refusal>,
        /// The reason's code.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// A destination is owned by another broker: the request ends here.
    Redirected {
        /// The request.
        request: RequestId,
        /// Where to go.
        address: Box<str>,
    },
    /// An acknowledgement that asked for it is settled.
    Acknowledged {
        /// Whose.
        consumer: ConsumerKey,
        /// The token that was returned when it was asked for.
        confirm: u32,
        /// Why it was refused, or nothing. [`Refusal::NotOpen`] also if the connection
        /// was lost before the answer: what it settled may be settled or not.
        refusal: Option<u16>,
    },
    /// The connection is gone and another one is wanted: what was open is attached
    /// again, and what is outstanding sent again, once there is one.
    Disconnected,
    /// A producer is attached again.
    ProducerResumed {
        /// Which producer.
        producer: ProducerKey,
        /// Who it is at the broker: as before, unless the installation is another.
        id: ProducerId,
        /// Its incarnation from here on.
        epoch: Epoch,
        /// Partitions of its destination.
        partitions: u32,
    },
    /// A producer could not be attached again: it is closed, and what was
    /// outstanding has failed.
    ProducerLost {
        /// Which producer.
        producer: ProducerKey,
        /// The code of the broker's refusal.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// A consumer is open again. What it was delivered and did not settle comes
    /// again.
    ConsumerResumed {
        /// Which consumer.
        consumer: ConsumerKey,
        /// For each partition the first offset that was never handed out.
        starts: Box<[Offset]>,
    },
    /// A consumer could not be opened again: it is closed.
    ConsumerLost {
        /// Which consumer.
        consumer: ConsumerKey,
        /// The code of the broker's refusal.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// The broker ended a producer by itself. What has no outcome yet gets one, and what
    /// is sent from here on is refused in its place.
    ProducerEnded {
        /// Which producer.
        producer: ProducerKey,
        /// The code of the reason.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// The broker ended a consumer by itself: it is closed. What was delivered can still
    /// be handed out.
    ConsumerEnded {
        /// Which consumer.
        consumer: ConsumerKey,
        /// The code of the reason.
        code: u16,
        /// Details.
        text: Box<str>,
    },
    /// The link has ended: the last event. Requests without an answer have none.
    Ended(LinkEnd),
}

/// Names a producer on a link; a stale one names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProducerKey(pub(super) Handle);

impl ProducerKey {
    /// A small number that no other producer of the link has at the same time.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.slot()
    }
}

/// Names a consumer on a link; a stale one names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerKey(pub(super) Handle);

/// Who owns a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// The broker at the other end of this link.
    Here {
        /// Whether it exists already.
        exists: bool,
        /// The shard to ask for.
        shard: ShardIndex,
        /// Its partitions, 0 if it does not exist.
        partitions: u32,
    },
    /// Another broker.
    Elsewhere {
        /// Where to go.
        address: Box<str>,
    },
    /// Nobody.
    Nowhere,
}

/// The broker's counters as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsReport {
    /// In the order of the broker's table of counters.
    pub counters: Vec<u64>,
    /// One for each destination.
    pub destinations: Vec<DestinationStats>,
}

/// One destination in a [`StatsReport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationStats {
    /// Which one.
    pub destination: Destination,
    /// Partitions.
    pub partitions: u32,
    /// Messages ever stored.
    pub stored: u64,
    /// Messages that some subscription has not settled.
    pub unsettled: u64,
    /// Bytes of memory held.
    pub bytes: u64,
    /// Attached producers.
    pub producers: u32,
    /// Attached consumers.
    pub consumers: u32,
    /// Subscriptions.
    pub subscriptions: u32,
}

impl StatsReport {
    /// Adds what one frame of the answer says; `None` if its tail is malformed.
    pub(super) fn add(&mut self, fields: &Stats, tail: &[u8]) -> Option<()> {
        let counters = fields.counters.get() as usize;
        let (counters, mut rest) = tail.split_at_checked(counters.checked_mul(8)?)?;
        let counters = <[U64]>::ref_from_bytes(counters).ok()?;
        self.counters
            .extend(counters.iter().map(|counter| counter.get()));
        for _ in 0..fields.rows.get() {
            let (row, tail) = StatsRow::ref_from_prefix(rest).ok()?;
            let name_length = usize::from(row.name_length.get());
            let (name, _) = tail.split_at_checked(name_length)?;
            // The last name may lack its padding, which is the frame's own.
            rest = tail.get(name_length.next_multiple_of(8)..).unwrap_or(&[]);
            let kind = DestinationKind::from_code(row.destination)?;
            let name = core::str::from_utf8(name).ok()?;
            self.destinations.push(DestinationStats {
                destination: Destination::new(kind, name).ok()?,
                partitions: row.partitions.get(),
                stored: row.stored.get(),
                unsettled: row.unsettled.get(),
                bytes: row.bytes.get(),
                producers: row.producers.get(),
                consumers: row.consumers.get(),
                subscriptions: row.subscriptions.get(),
            });
        }
        rest.is_empty().then_some(())
    }
}
