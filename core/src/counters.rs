//! Counters of one shard: plain numbers that their one owner adds to.

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident = $text:literal, )*) => {
        /// What is counted. The order is that of the answer on the wire; new ones
        /// are added at the end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter {
            $( $(#[$doc])* $name, )*
        }

        impl Counter {
            /// Every counter, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The counter's name in listings.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$name => $text, )*
                }
            }
        }
    };
}

counters! {
    /// Messages received and accepted.
    MessagesStored = "messages_stored",
    /// Frame bytes of them.
    BytesStored = "bytes_stored",
    /// Sends that were refused in their place.
    SendsRefused = "sends_refused",
    /// Outcomes written to producers.
    Completions = "completions",
    /// Frames that carried them.
    CompletionFrames = "completion_frames",
    /// Messages handed to consumers, repetitions included.
    MessagesDelivered = "messages_delivered",
    /// Of these, messages handed out again.
    MessagesRedelivered = "messages_redelivered",
    /// Messages settled by consumers.
    MessagesSettled = "messages_settled",
    /// Messages that came back from consumers that went.
    MessagesReturned = "messages_returned",
    /// Batches that producers announced.
    Batches = "batches",
    /// The most messages of one such batch.
    BatchMessagesMax = "batch_messages_max",
    /// The most frame bytes of one such batch.
    BatchBytesMax = "batch_bytes_max",
    /// Links that were opened.
    LinksOpened = "links_opened",
    /// Links that have ended.
    LinksClosed = "links_closed",
    /// Of these, links that the broker ended for a fault of the peer.
    LinksFaulted = "links_faulted",
    /// Requests that were refused.
    RequestsRefused = "requests_refused",
    /// Acknowledgements that named what was not with that consumer.
    AcksStrange = "acks_strange",
    /// Passes over logs in which little was left of much.
    Thinnings = "thinnings",
    /// Turns of the shard's loop.
    Turns = "turns",
    /// Turns in which there was something to do.
    TurnsWithWork = "turns_with_work",
    /// System calls that submit to and reap from the kernel for all sockets at once,
    /// at the end of turns in which there was something to do.
    Enters = "enters",
    /// Receives that the kernel completed.
    Receives = "receives",
    /// Sends that were given to the kernel.
    Sends = "sends",
    /// Bytes received.
    BytesReceived = "bytes_received",
    /// Bytes sent.
    BytesSent = "bytes_sent",
    /// Times the shard's thread went to sleep.
    Sleeps = "sleeps",
    /// System calls like those of `enters`, at the end of turns without work: what a
    /// shard costs that spins, and every sleep.
    EntersIdle = "enters_idle",
    /// Receives from one socket by a system call of their own that brought something.
    DirectReceives = "direct_receives",
    /// Such receives that found nothing: what a shard costs that spins over sockets.
    DirectPolls = "direct_polls",
    /// Sends to one socket by a system call of their own.
    DirectSends = "direct_sends",
    /// Changes from serving all sockets through the ring to direct calls on each.
    DirectBegun = "direct_begun",
    /// Changes back.
    DirectEnded = "direct_ended",
    /// Turns after which the kernel kept completions aside for want of room.
    CompletionOverflows = "completion_overflows",
    /// Links that ended because their client opened another in their place.
    LinksReplaced = "links_replaced",
    /// Producers that attached again.
    ProducersResumed = "producers_resumed",
    /// Producers that were forgotten for want of room.
    ProducersForgotten = "producers_forgotten",
    /// Sends that were tried again and answered with their first outcome.
    Retries = "retries",
    /// Sends that their client gave up.
    SendsGivenUp = "sends_given_up",
    /// Messages that consumers gave back unsettled.
    MessagesGivenBack = "messages_given_back",
    /// Links that were handed over to another shard, which opens them anew.
    LinksMoved = "links_moved",
    /// Writes of the journal that were begun, each with its flush.
    JournalWrites = "journal_writes",
    /// Bytes of them, in whole blocks.
    JournalBytes = "journal_bytes",
    /// Turns without work that gave their processor away while a write of the journal was
    /// under way.
    Yields = "yields",
    /// Times that segments of a partition expired.
    Expiries = "expiries",
    /// Segments that left memory for a file.
    PagesWritten = "pages_written",
    /// Segments that were to come back from there.
    PagesRead = "pages_read",
    /// Times that a segment could not be written there, and stayed in memory.
    PageWritesFailed = "page_writes_failed",
    /// Times that one could not be read, or came back otherwise than it had left.
    PageReadsFailed = "page_reads_failed",
}

impl Counter {
    /// Whether it keeps the largest of what it saw, and not a sum.
    #[must_use]
    pub fn is_maximum(self) -> bool {
        matches!(self, Self::BatchMessagesMax | Self::BatchBytesMax)
    }
}

/// The counters of one shard.
#[derive(Clone, Debug)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; Counter::ALL.len()])
    }
}

impl Counters {
    /// Adds to a counter.
    #[inline]
    pub fn add(&mut self, counter: Counter, more: u64) {
        self.0[counter as usize] = self.0[counter as usize].wrapping_add(more);
    }

    /// Raises a counter that keeps a maximum.
    #[inline]
    pub fn raise(&mut self, counter: Counter, to: u64) {
        self.0[counter as usize] = self.0[counter as usize].max(to);
    }

    /// Sets a counter that its owner keeps elsewhere.
    #[inline]
    pub fn set(&mut self, counter: Counter, to: u64) {
        self.0[counter as usize] = to;
    }

    /// What a counter stands at.
    #[must_use]
    pub fn read(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// All counters in the order of [`Counter::ALL`].
    #[must_use]
    pub fn all(&self) -> &[u64] {
        &self.0
    }
}
