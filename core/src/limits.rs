//! The only table of bounds: every queue, window and wait of the broker has a
//! finite default that stands here with its unit and its reason.

use core::fmt;
use core::time::Duration;

/// Bytes.
pub const KIB: u32 = 1024;
/// Bytes.
pub const MIB: u32 = 1024 * KIB;

/// The largest body a frame must be able to carry, in bytes.
pub const BODY_SIZE_MAX: u32 = 4 * MIB;
/// The most a message's header and properties may take beside the body, in bytes.
pub const HEADER_AND_PROPERTIES_SIZE_MAX: u32 = 64 * KIB;
/// The largest frame, in bytes.
pub const FRAME_SIZE_MAX: u32 = BODY_SIZE_MAX + HEADER_AND_PROPERTIES_SIZE_MAX;
/// The largest frame of the control plane, in bytes.
pub const CONTROL_SIZE_MAX: u32 = 16 * KIB;
/// The most a stranger's bytes may occupy before the hello is complete.
pub const HELLO_SIZE_MAX: u32 = 4 * KIB;
/// A segment of a partition's log in memory, in bytes.
pub const CHUNK_SIZE: u32 = 64 * KIB;
/// The longest name of a namespace or a destination, in bytes.
pub const NAME_PART_SIZE_MAX: u32 = 127;
/// The longest name of a subscription, a producer or a client, in bytes.
pub const NAME_SIZE_MAX: u32 = 255;
/// The most properties of one message.
pub const PROPERTIES_MAX: u32 = 128;
/// The most partitions of one destination.
pub const PARTITIONS_MAX: u32 = 1024;
/// The most destinations of one broker.
pub const DESTINATIONS_MAX: u32 = 4096;
/// The most bytes of a journal that are written and flushed as one: a larger one would
/// make the first of its messages wait for the last.
pub const BATCH_SIZE_MAX: u32 = 8 * MIB;
/// Memory of a shard that is set aside for what its journal has to say of changes, so that
/// one that took effect is never left out.
pub const JOURNAL_SPARE: u32 = 512 * KIB;
/// What a place in a page file is a multiple of, in bytes: a chunk fits one.
pub const PAGE_SIZE: u32 = CHUNK_SIZE;
/// So long after a page could not be written or read it is tried again.
pub const PAGE_PAUSE: Duration = Duration::from_secs(1);
/// Chunks that may be on their way to pages at a time: each is copied for it.
pub const CHUNKS_LEAVING_MAX: usize = 32;
/// Pages of one page file: once none of them is in use it is removed.
pub const PAGES_PER_FILE: u32 = 1024;
/// What may lie in page files because memory is short, in bytes, of all shards.
pub const BACKLOG_BYTES: u64 = 64 * 1024 * MIB as u64;
/// Offsets that are reserved ahead for messages that are not flushed: as many may be
/// left out after a crash.
pub const OFFSETS_RESERVED: u32 = 65_536;
/// The least bytes of a segment of a destination that keeps whole segments: a chunk.
pub const SEGMENT_SIZE_MIN: u32 = CHUNK_SIZE;
/// The most bytes of such a segment.
pub const SEGMENT_SIZE_MAX: u32 = 1024 * MIB;
/// The longest that a segment may be kept after it was closed.
pub const RETENTION_PERIOD_MAX: Duration = Duration::from_hours(366 * 24);
/// Ids of producers that are reserved ahead: as many may be left out at a start.
pub const PRODUCER_IDS_RESERVED: u32 = 65_536;
/// The first file that a run begins, in bytes: a start waits for it.
pub const JOURNAL_FILE_SIZE_FIRST: u32 = 16 * MIB;
/// A file of a journal, in bytes.
pub const JOURNAL_FILE_SIZE: u32 = 64 * MIB;
/// What part of a file is kept for what is not a message while the next file is not to be
/// had: a quarter holds some thousand flushes of what was settled.
pub const JOURNAL_RESERVE_SHARE: u64 = 4;
/// So long after a file was not to be had it is asked for again.
pub const JOURNAL_FILE_PAUSE: Duration = Duration::from_secs(1);
/// A checkpoint is begun once so many bytes were journalled since the one before, or as many
/// as that one has, whichever is more: a start reads about twice that at most.
pub const CHECKPOINT_BYTES: u32 = 64 * MIB;
/// An orderly stop makes a checkpoint if so many bytes were journalled since the last one, or
/// a quarter of what that has, whichever is more: so much less is then read at the start.
pub const LAST_CHECKPOINT_BYTES: u32 = MIB;
/// The most time that an orderly stop takes for a checkpoint. No promise depends on it.
pub const LAST_CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(2);
/// What is put into a checkpoint in one turn of its shard, in bytes, or one message.
pub const CHECKPOINT_SLICE: u32 = 32 * KIB;
/// Files of a journal that are kept for the next use, beside the one that is prepared.
pub const JOURNAL_FILES_SPARE: u32 = 2;
/// Shards of a broker: the rings between them grow with the square.
pub const SHARDS_MAX: u16 = 64;
/// The most requests of one shard's clients that wait for other shards.
pub const DEFERRED_MAX: u32 = 1024;
/// The most producers of one shard's destinations that wait to have them alone.
pub const TAKERS_MAX: u32 = 1024;
/// The most subscriptions of one broker.
pub const SUBSCRIPTIONS_MAX: u32 = 16_384;
/// The most links (connections) of one broker.
pub const LINKS_MAX: u32 = 10_000;
/// In-process links of a broker that is embedded, unless it is told otherwise.
pub const LINKS_IN_PROCESS: u16 = 64;
/// A ring of an in-process link, in bytes; it has one each way.
pub const IN_PROCESS_RING_SIZE: u32 = 128 * KIB;
/// The most links that have not said hello yet, in all.
pub const LINKS_STRANGE_MAX: u32 = 1024;
/// The most links that have not said hello yet from one address.
pub const LINKS_STRANGE_PER_ADDRESS_MAX: u32 = 64;
/// The most links from one address.
pub const LINKS_PER_ADDRESS_MAX: u32 = 4096;
/// The most sessions of one link.
pub const SESSIONS_PER_LINK_MAX: u32 = 1024;
/// The most open producers and consumers of one link.
pub const HANDLES_PER_LINK_MAX: u32 = 8192;
/// Credit a producer is given when it opens, in frame bytes.
pub const CREDIT_INITIAL: u32 = 16 * KIB;
/// The most frame bytes of one producer that may be on their way.
pub const IN_FLIGHT_BYTES_MAX: u32 = 8 * MIB;
/// The most messages of one producer that may be on their way.
pub const IN_FLIGHT_MESSAGES_MAX: u32 = 1024;
/// The last sends of one producer whose places are kept for retries.
pub const POSITIONS_KEPT: u32 = 1024;
/// The most producers of one shard that are kept without a link.
pub const PRODUCERS_REMEMBERED: u32 = 100_000;
/// A consumer's default prefetch, in messages.
pub const PREFETCH_MESSAGES: u32 = 256;
/// A consumer's default prefetch, in frame bytes.
pub const PREFETCH_BYTES: u32 = MIB;
/// The most delivered but unsettled messages of one subscription and partition.
pub const UNSETTLED_MAX: u32 = 16_384;
/// Of these, how many there is always memory for.
pub const UNSETTLED_LEAST: u32 = 32;
/// The most messages of a key-shared subscription and partition that are passed over
/// because their keys are held up, or come back.
pub const KEY_WINDOW: u32 = 10_000;
/// The most consumers of one key-shared subscription.
pub const KEY_SHARED_CONSUMERS_MAX: u32 = 1000;
/// How long a message rests at least that is given back to be delivered later, the
/// first time.
pub const RETURN_WAIT_MIN: Duration = Duration::from_secs(1);
/// What that grows to, doubling each time.
pub const RETURN_WAIT_MAX: Duration = Duration::from_mins(5);
/// The longest that a consumer may ask for.
pub const RETURN_DELAY_MAX: Duration = Duration::from_hours(366 * 24);
/// Bytes ready to leave for one connection before the log is read no further.
pub const EGRESS_SIZE: u32 = 256 * KIB;
/// The most answers of all links that wait while the arena has no chunk for them.
pub const ANSWERS_ASIDE_MAX: u32 = MIB;
/// The most that may wait for slow shards of what one link acknowledged or gave back, and
/// of confirmations behind such, in bytes: some 20,000 acknowledgements one by one.
pub const BEHIND_PER_LINK_MAX: u32 = MIB;
/// And of all links of a shard.
pub const BEHIND_MAX: u32 = 16 * MIB;
/// A run of the log of at least this size is sent from where it lies.
pub const EGRESS_COPY_MAX: u32 = 4 * KIB;
/// The smallest memory bound that is accepted, in bytes.
pub const MEMORY_MIN: u64 = 64 * MIB as u64;
/// The default memory bound, in bytes.
pub const MEMORY_DEFAULT: u64 = 1024 * MIB as u64;
/// How long a stranger may take over its hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a welcome may wait until the link that the new one takes the place of has
/// ended on another shard.
pub const REPLACE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a frame may take from its first byte to its last.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may take no byte while bytes wait for it.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long until a vanished peer is noticed.
pub const VANISHED_TIMEOUT: Duration = Duration::from_secs(10);
/// A send's default deadline.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(3);
/// The most time an orderly stop may take, of the broker or of a link: then what other
/// shards still owe is not waited for.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(
    SHARDS_MAX <= u8::MAX as u16,
    "a welcome says how many there are"
);
const _: () = assert!(DESTINATIONS_MAX <= crate::id::DestinationNumber::SLOTS);
const _: () = assert!(FRAME_SIZE_MAX > BODY_SIZE_MAX);
const _: () = assert!(CREDIT_INITIAL < IN_FLIGHT_BYTES_MAX);
const _: () = assert!(
    IN_FLIGHT_BYTES_MAX >= FRAME_SIZE_MAX,
    "one whole frame fits every window"
);
const _: () = assert!(CHUNK_SIZE.is_power_of_two() && CHUNK_SIZE >= 4 * KIB);
const _: () = assert!(HELLO_SIZE_MAX <= CONTROL_SIZE_MAX && CONTROL_SIZE_MAX <= CHUNK_SIZE);
const _: () = assert!(
    POSITIONS_KEPT >= IN_FLIGHT_MESSAGES_MAX,
    "whatever may be without outcome can be answered when it is tried again"
);
const _: () = assert!(EGRESS_COPY_MAX <= EGRESS_SIZE);
const _: () = assert!(BEHIND_PER_LINK_MAX <= BEHIND_MAX && BEHIND_MAX as u64 <= MEMORY_MIN / 4);
const _: () = assert!(
    BEHIND_PER_LINK_MAX >= 48 * UNSETTLED_MAX,
    "all that a part has delivered can be acknowledged one by one"
);
const _: () = assert!(
    FRAME_SIZE_MAX + 4 * KIB <= BATCH_SIZE_MAX,
    "a batch holds the largest frame"
);
const _: () = assert!(
    BATCH_SIZE_MAX + 4 * KIB <= JOURNAL_FILE_SIZE_FIRST
        && JOURNAL_FILE_SIZE_FIRST <= JOURNAL_FILE_SIZE
        && JOURNAL_FILE_SIZE_FIRST.is_multiple_of(4 * KIB)
        && JOURNAL_FILE_SIZE.is_multiple_of(4 * KIB),
    "an empty file holds the largest batch"
);
const _: () = assert!(PREFETCH_MESSAGES <= UNSETTLED_MAX);
const _: () = assert!(UNSETTLED_LEAST >= 4 && UNSETTLED_LEAST < UNSETTLED_MAX);
const _: () = assert!(
    KEY_WINDOW < UNSETTLED_MAX,
    "what waits for its key leaves room for what is delivered"
);
const _: () = assert!(RETURN_WAIT_MIN.as_nanos() <= RETURN_WAIT_MAX.as_nanos());
const _: () = assert!(RETURN_WAIT_MAX.as_nanos() <= RETURN_DELAY_MAX.as_nanos());

/// What a bound is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown with a binary suffix.
    Bytes,
    /// Things.
    Count,
    /// Seconds.
    Seconds,
}

/// One row of the table of bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What is bounded.
    pub name: &'static str,
    /// The bound's value.
    pub value: u64,
    /// What the value counts.
    pub unit: Unit,
    /// What happens at the bound.
    pub on_reaching: &'static str,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = match self.unit {
            Unit::Bytes if self.value.is_multiple_of(u64::from(MIB)) => {
                format!("{} MiB", self.value / u64::from(MIB))
            }
            Unit::Bytes if self.value.is_multiple_of(u64::from(KIB)) => {
                format!("{} KiB", self.value / u64::from(KIB))
            }
            Unit::Bytes => format!("{} B", self.value),
            Unit::Count => self.value.to_string(),
            Unit::Seconds => format!("{} s", self.value),
        };
        write!(f, "{:<36} {:>12}  {}", self.name, value, self.on_reaching)
    }
}

const fn bytes(name: &'static str, value: u32, on_reaching: &'static str) -> Limit {
    Limit {
        name,
        value: value as u64,
        unit: Unit::Bytes,
        on_reaching,
    }
}

const fn count(name: &'static str, value: u32, on_reaching: &'static str) -> Limit {
    Limit {
        name,
        value: value as u64,
        unit: Unit::Count,
        on_reaching,
    }
}

const fn seconds(name: &'static str, value: Duration, on_reaching: &'static str) -> Limit {
    Limit {
        name,
        value: value.as_secs(),
        unit: Unit::Seconds,
        on_reaching,
    }
}

/// Every bound, as `courser limits` prints it.
pub const TABLE: &[Limit] = &[
    Limit {
        name: "memory (default)",
        value: MEMORY_DEFAULT,
        unit: Unit::Bytes,
        on_reaching: "producers get no new credit",
    },
    Limit {
        name: "memory (least)",
        value: MEMORY_MIN,
        unit: Unit::Bytes,
        on_reaching: "a smaller bound is refused at start",
    },
    bytes(
        "message body",
        BODY_SIZE_MAX,
        "the send is refused by the client",
    ),
    bytes("frame", FRAME_SIZE_MAX, "the link is closed"),
    bytes(
        "header and properties",
        HEADER_AND_PROPERTIES_SIZE_MAX,
        "the send is refused",
    ),
    bytes("control frame", CONTROL_SIZE_MAX, "the link is closed"),
    bytes(
        "bytes before hello",
        HELLO_SIZE_MAX,
        "the connection is closed",
    ),
    bytes(
        "part of a destination's name",
        NAME_PART_SIZE_MAX,
        "the request is refused",
    ),
    bytes("other name", NAME_SIZE_MAX, "the request is refused"),
    count(
        "properties per message",
        PROPERTIES_MAX,
        "the send is refused",
    ),
    count(
        "partitions per destination",
        PARTITIONS_MAX,
        "the request is refused",
    ),
    count("shards", SHARDS_MAX as u32, "the broker does not start"),
    count("destinations", DESTINATIONS_MAX, "the request is refused"),
    count("subscriptions", SUBSCRIPTIONS_MAX, "the request is refused"),
    count(
        "requests that wait for other shards, per shard",
        DEFERRED_MAX,
        "the request is refused",
    ),
    count(
        "producers that wait to have a destination alone, per shard",
        TAKERS_MAX,
        "the request is refused",
    ),
    count(
        "connections",
        LINKS_MAX,
        "the connection is refused with a reason",
    ),
    count(
        "connections per address",
        LINKS_PER_ADDRESS_MAX,
        "the connection is refused",
    ),
    count(
        "in-process connections (default)",
        LINKS_IN_PROCESS as u32,
        "the connection is refused with a reason",
    ),
    bytes(
        "ring of an in-process connection, each way",
        IN_PROCESS_RING_SIZE,
        "the writer waits until the other end has read",
    ),
    count(
        "connections before hello",
        LINKS_STRANGE_MAX,
        "the oldest of them is closed",
    ),
    count(
        "connections before hello per address",
        LINKS_STRANGE_PER_ADDRESS_MAX,
        "the oldest of them is closed",
    ),
    count(
        "sessions per connection",
        SESSIONS_PER_LINK_MAX,
        "the request is refused",
    ),
    count(
        "handles per connection",
        HANDLES_PER_LINK_MAX,
        "the request is refused",
    ),
    bytes(
        "credit of a new producer",
        CREDIT_INITIAL,
        "grows with use, or when asked for",
    ),
    bytes(
        "in flight per producer",
        IN_FLIGHT_BYTES_MAX,
        "credit is not renewed",
    ),
    count(
        "messages in flight per producer",
        IN_FLIGHT_MESSAGES_MAX,
        "credit is not renewed",
    ),
    count(
        "places kept per producer",
        POSITIONS_KEPT,
        "an earlier send that is tried again is answered without its place",
    ),
    count(
        "producers kept without a connection",
        PRODUCERS_REMEMBERED,
        "the longest without one is forgotten",
    ),
    count(
        "prefetch, messages",
        PREFETCH_MESSAGES,
        "delivery waits for credit",
    ),
    bytes(
        "prefetch, bytes",
        PREFETCH_BYTES,
        "delivery waits for credit",
    ),
    count(
        "unsettled per subscription and partition",
        UNSETTLED_MAX,
        "delivery pauses",
    ),
    count(
        "of these, with memory set aside",
        UNSETTLED_LEAST,
        "beyond it delivery pauses while memory for them is short",
    ),
    count(
        "of these, waiting for their key",
        KEY_WINDOW,
        "the log is read no further for a key-shared subscription",
    ),
    count(
        "consumers of a key-shared subscription",
        KEY_SHARED_CONSUMERS_MAX,
        "the request is refused",
    ),
    bytes(
        "bytes waiting per connection",
        EGRESS_SIZE,
        "the log is read no further for it",
    ),
    bytes(
        "answers that wait for memory",
        ANSWERS_ASIDE_MAX,
        "the link is closed",
    ),
    bytes(
        "acknowledgements that wait for slow shards, of one link",
        BEHIND_PER_LINK_MAX,
        "the link is closed",
    ),
    bytes(
        "acknowledgements that wait for slow shards, of all",
        BEHIND_MAX,
        "the link that sends one more is closed",
    ),
    bytes(
        "batch of a journal",
        BATCH_SIZE_MAX,
        "what comes next goes into the next batch",
    ),
    bytes(
        "spare memory of a journal",
        JOURNAL_SPARE,
        "nobody is attached and nothing is changed before it is there again",
    ),
    bytes(
        "journal since its checkpoint",
        CHECKPOINT_BYTES,
        "a checkpoint is begun",
    ),
    bytes(
        "file of a journal",
        JOURNAL_FILE_SIZE,
        "the next batch begins another file",
    ),
    Limit {
        name: "backlog beyond memory (default)",
        value: BACKLOG_BYTES,
        unit: Unit::Bytes,
        on_reaching: "producers get no new credit",
    },
    bytes(
        "segment of a destination that keeps whole segments",
        SEGMENT_SIZE_MAX,
        "the request is refused",
    ),
    seconds(
        "segment that is kept until it expires",
        RETENTION_PERIOD_MAX,
        "the request is refused",
    ),
    seconds("hello", HELLO_TIMEOUT, "the connection is closed"),
    seconds(
        "link that is replaced on another shard",
        REPLACE_TIMEOUT,
        "the new one is closed, and its client tries again",
    ),
    seconds(
        "frame, from first byte to last",
        FRAME_TIMEOUT,
        "the link is closed",
    ),
    seconds(
        "peer that takes no byte",
        STALL_TIMEOUT,
        "the link is closed",
    ),
    seconds("peer that vanished", VANISHED_TIMEOUT, "the link is closed"),
    seconds(
        "rest of what is given back, the first time",
        RETURN_WAIT_MIN,
        "doubles with each delivery",
    ),
    seconds(
        "rest of what is given back, at most",
        RETURN_WAIT_MAX,
        "doubles no further",
    ),
    seconds(
        "rest that a consumer asks for",
        RETURN_DELAY_MAX,
        "a longer one counts as this",
    ),
    seconds(
        "send deadline (default)",
        SEND_TIMEOUT,
        "the send fails in its place",
    ),
    seconds("orderly stop", DRAIN_TIMEOUT, "what is left is cut"),
    seconds(
        "checkpoint at an orderly stop",
        LAST_CHECKPOINT_TIMEOUT,
        "the next start reads the journal",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_has_a_value_a_name_of_its_own_and_a_consequence() {
        for (index, limit) in TABLE.iter().enumerate() {
            assert!(limit.value > 0, "{} is unbounded", limit.name);
            assert!(
                !limit.on_reaching.is_empty(),
                "{} has no consequence",
                limit.name
            );
            assert!(
                TABLE[..index].iter().all(|other| other.name != limit.name),
                "{} stands twice",
                limit.name
            );
        }
    }
}
