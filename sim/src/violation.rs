//! A promise that was broken.

use thiserror::Error;

/// What was promised, each as the sentence that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rule {
    /// See its text, as for all others.
    #[error("completions come in the order of the sends, one each")]
    CompletionOrder,
    /// A producer ended with sends that never got an outcome.
    #[error("every send has an outcome")]
    CompletionMissing,
    /// A deadline passed.
    #[error("a send past its deadline fails in its place")]
    Overdue,
    /// A send within credit was refused.
    #[error("a send within credit is not refused")]
    Refused,
    /// Another partition than asked for.
    #[error("a message goes to the partition that was asked for")]
    Routing,
    /// Two messages at one offset.
    #[error("a place belongs to one message")]
    OneMessage,
    /// One message at two offsets.
    #[error("a message has one place")]
    OnePlace,
    /// Offsets with holes.
    #[error("offsets are dense")]
    Dense,
    /// The log is not in a producer's order.
    #[error("the log has each producer's messages in the order of its sends")]
    ProducerOrder,
    /// Two producers of one id.
    #[error("a producer's id is given out once")]
    ProducerId,
    /// Another number of partitions.
    #[error("a destination keeps its shape")]
    Shape,
    /// Something that nobody sent there.
    #[error("only what was sent is delivered")]
    Unheard,
    /// Something that was said not to be stored.
    #[error("what was said not to be stored is never seen")]
    NeverStored,
    /// Other bytes.
    #[error("a message arrives as it was sent")]
    Content,
    /// Another incarnation.
    #[error("a message has one id, however often it is sent")]
    Identity,
    /// Failed without cause.
    #[error("a send fails only for a reason that is so")]
    Cause,
    /// Still without outcome though nobody can tell any more.
    #[error("what was sent to another installation fails once that one is gone")]
    Abandoned,
    /// Ended too soon.
    #[error("a client looks for another connection for as long as it was told to")]
    Reconnect,
    /// Back too soon.
    #[error("what is given back rests for as long as it was asked to")]
    Rest,
    /// Two at once.
    #[error("who has a destination alone is its only producer")]
    Alone,
    /// Wrote all the same.
    #[error(
        "who was shut out, by an administrator or by who has the destination alone, stays so, and stores nothing any more"
    )]
    ShutOut,
    /// Came over from an earlier one.
    #[error(
        "what belongs to a destination that was deleted never comes to a later one of its name"
    )]
    Revenant,
    /// Out of turn.
    #[error("those who wait to have a destination alone have it in the order in which they asked")]
    Turn,
    /// Out of order.
    #[error("a consumer gets each partition in order, except what others gave back")]
    ConsumerOrder,
    /// Left out.
    #[error("a subscription leaves nothing out")]
    Gap,
    /// Less safe, or said to be safer.
    #[error("what is to be flushed is where it is kept, and nothing else is said to be")]
    Safety,
    /// Somewhere else.
    #[error("a new subscription starts where it was asked to")]
    Start,
    /// Two at once.
    #[error("a message is with one consumer at a time, once")]
    OneHolder,
    /// Two consumers where one may be.
    #[error("a topic's subscription has one consumer at a time")]
    Exclusive,
    /// Two that take turns at once.
    #[error(
        "a partition of a failover subscription, and a key where keys decide, is with one consumer at a time"
    )]
    Claim,
    /// Out of order from one consumer to the next.
    #[error("who takes a partition or a key over is given first what was left of it")]
    PassedOver,
    /// Counted wrongly.
    #[error(
        "a delivery count counts what applications were given, and no more than consumers that have gone"
    )]
    Count,
    /// Came back.
    #[error("what was settled never comes back")]
    Settled,
    /// Twice.
    #[error("a message is settled once")]
    SettledOnce,
    /// Refused.
    #[error("an acknowledgement of what was delivered is not refused")]
    AckRefused,
    /// Another token.
    #[error("confirmations come in the order in which they were asked for")]
    Confirmation,
    /// Said to be nothing.
    #[error(
        "a consumer that asks is told of nothing only if nothing was there that had to go to it"
    )]
    Polled,
    /// Never came.
    #[error("each subscription gets every message")]
    Lost,
    /// The broker broke the protocol, or said that the client did.
    #[error("a link between well-behaved peers ends for no other reason than the network")]
    LinkEnd,
    /// A request was refused without cause.
    #[error("a request that may be granted is granted")]
    Request,
    /// A lost wake-up.
    #[error("a shard with something to read is awake")]
    Awake,
    /// Bytes that were given to the kernel have moved.
    #[error("what the kernel may still read stays where it is")]
    Pinned,
    /// The broker does not come up again.
    #[error("whatever a power cut leaves on the disks, a broker comes up on it")]
    Recovered,
    /// A bit that was read wrongly was believed.
    #[error("what is read of a disk as it was not written is noticed")]
    Misread,
    /// Faults have stopped, and it does not come to rest.
    #[error("once faults stop everything is drained in time")]
    Drained,
    /// Memory is missing.
    #[error("memory comes back")]
    Memory,
    /// A rogue peer got away with it, or was told something else.
    #[error("a peer that breaks the rules is told so and ended, in time")]
    Rogue,
    /// An assertion of a machine.
    #[error("the machines' invariants hold")]
    Invariant,
    /// The same seed, another run.
    #[error("the same seed gives the same run")]
    Diverged,
}

/// A promise that was broken, and how.
#[derive(Clone, Debug, Error)]
#[error("{rule}: {detail}")]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// How.
    pub detail: String,
}

impl Violation {
    pub(crate) fn new(rule: Rule, detail: String) -> Self {
        Self { rule, detail }
    }
}
