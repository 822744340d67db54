//! `courser receive`: messages in, bodies out, and an acknowledgement for each once
//! it was written.
//!
//! Messages are taken in batches: all that is at hand is written, standard output and
//! the dump are flushed, and then the batch is acknowledged. Whoever is killed in
//! between has messages in its dump that come again; none is acknowledged unwritten.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use courser::{
    AcknowledgeError, Client, Consumer, MessageId, PartitionIndex, Position, ReceiveError,
};
use courser_core::client::Start;
use courser_core::frame::checksum;

use crate::args::{ReceiveOptions, SubscriptionType};
use crate::error::CommandError;
use crate::records::{Records, RecordsError};
use crate::signals::Stop;

/// The most messages that are written before they are acknowledged.
const BATCH_MAX: usize = 256;

/// The most messages that are acknowledged before that is confirmed.
const UNCONFIRMED_MAX: usize = 16 * 1024;
/// In so many runs.
const UNCONFIRMED_RUNS_MAX: usize = 256;

/// How often a consumer without messages looks whether it should stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why receiving ended before it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveFailed {
    /// The link ended.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// Written messages were not confirmed to be settled, and may come again.
    #[error(
        "of {received} messages some are not confirmed to be acknowledged: {source}\n  seen   unconfirmed, and may come again: {unconfirmed}"
    )]
    Acknowledge {
        /// How many were written.
        received: u64,
        /// Which of them may come again.
        unconfirmed: Unconfirmed,
        /// Why.
        source: AcknowledgeError,
    },
    /// Not enough messages came.
    #[error("{received} of {wanted} messages came within {:?}", within)]
    TooFew {
        /// How many came.
        received: u64,
        /// How many should have.
        wanted: u64,
        /// The time for that.
        within: Duration,
    },
    /// Somebody wanted it to stop before enough messages had come.
    #[error("stopped after {received} of {wanted} messages")]
    Stopped {
        /// How many came.
        received: u64,
        /// How many should have.
        wanted: u64,
    },
    /// The dump cannot be written.
    #[error(transparent)]
    Dump(#[from] RecordsError),
    /// Nobody takes the bodies.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
}

/// Messages that were acknowledged since the last confirmation, as runs of consecutive
/// offsets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unconfirmed(Vec<(PartitionIndex, RangeInclusive<u64>)>);

impl Unconfirmed {
    fn add(&mut self, position: Position) {
        let (partition, offset) = (position.partition, position.offset.0);
        match self.0.last_mut() {
            Some((last, run)) if *last == partition && *run.end() + 1 == offset => {
                *run = *run.start()..=offset;
            }
            _ => self.0.push((partition, offset..=offset)),
        }
    }
}

impl fmt::Display for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (partition, run)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match (run.start(), run.end()) {
                (only, last) if only == last => write!(f, "{comma}{partition}:{only}")?,
                (first, last) => write!(f, "{comma}{partition}:{first} to {last}")?,
            }
        }
        Ok(())
    }
}

/// How long a broker may be away: as long as a sender's message may take by default.
const RECONNECT_FOR: Duration = Duration::from_secs(3);

/// Receives, writes and acknowledges until there was enough, a silence, or a signal.
pub(crate) fn receive(options: &ReceiveOptions) -> Result<(), CommandError> {
    let dump = options.dump.as_deref().map(Records::create);
    let dump = dump.transpose().map_err(ReceiveFailed::Dump)?;
    let stop = Stop::listen().map_err(ReceiveFailed::Signals)?;
    let client = Client::options()
        .reconnect_for(RECONNECT_FOR)
        .connect(options.connection.endpoints.clone())?;
    let mut consumer = open(&client, options)?;
    let ended = run(
        &mut consumer,
        &mut Writing::new(options, dump),
        options,
        &stop,
    );
    // Everything acknowledged is confirmed, and what was not handed out goes back
    // when the link ends; how the goodbye goes changes nothing about that.
    let _told = consumer.close().and_then(|()| client.close());
    Ok(ended?)
}

fn open(client: &Client, options: &ReceiveOptions) -> Result<Consumer, CommandError> {
    let mut builder = client
        .consumer(&options.destination)
        .name("courser receive");
    if let Some(subscription) = &options.subscription {
        builder = builder.subscription(subscription);
    }
    builder = match options.kind {
        None => builder,
        Some(SubscriptionType::Exclusive) => builder.shared(false),
        Some(SubscriptionType::Shared) => builder.shared(true),
        Some(SubscriptionType::Failover) => builder.failover(),
        Some(SubscriptionType::KeyShared) => builder.key_shared(),
    };
    builder = match options.from {
        Start::Earliest => builder.from_earliest(),
        Start::Latest => builder.from_latest(),
        Start::Offset(offset) => builder.from_offset(offset.0),
    };
    builder
        .create()
        .map_err(|source| CommandError::opening(&options.destination, source))
}

fn run(
    consumer: &mut Consumer,
    writing: &mut Writing,
    options: &ReceiveOptions,
    stop: &Stop,
) -> Result<(), ReceiveFailed> {
    let wanted = options.count.unwrap_or(u64::MAX);
    let mut since = Instant::now();
    while writing.received < wanted && !stop.is_wished() {
        let left = options.timeout.map_or(LOOK_EVERY, |timeout| {
            timeout.saturating_sub(since.elapsed())
        });
        let next = consumer.receive(left.min(LOOK_EVERY));
        match next.map_err(|error| writing.not_received(error))? {
            Some(first) => {
                writing.write(first.position(), first.id(), first.body())?;
                batch(consumer, writing, wanted)?;
            }
            None if left.is_zero() => break,
            None => continue,
        }
        // With a count the time is for all messages, without one for a silence.
        if options.count.is_none() {
            since = Instant::now();
        }
    }
    confirm(consumer, writing)?;
    let received = writing.received;
    match (options.count, options.timeout) {
        (Some(wanted), _) if received >= wanted => Ok(()),
        (Some(wanted), Some(within)) if !stop.is_wished() => Err(ReceiveFailed::TooFew {
            received,
            wanted,
            within,
        }),
        (Some(wanted), _) => Err(ReceiveFailed::Stopped { received, wanted }),
        (None, _) => Ok(()),
    }
}

/// Writes what else is at hand, and acknowledges all that was written.
fn batch(consumer: &mut Consumer, writing: &mut Writing, wanted: u64) -> Result<(), ReceiveFailed> {
    while writing.received < wanted && writing.batch.len() < BATCH_MAX {
        // An error stays: the next call that waits returns it, once what is at hand
        // is written.
        let Ok(Some(next)) = consumer.try_receive() else {
            break;
        };
        writing.write(next.position(), next.id(), next.body())?;
    }
    writing.flush()?;
    for position in std::mem::take(&mut writing.batch) {
        writing.unconfirmed.add(position);
        while let Err(error) = consumer.acknowledge(position) {
            // Only what is confirmed makes room for more.
            match error {
                AcknowledgeError::WouldBlock => confirm(consumer, writing)?,
                source => return Err(writing.unacknowledged(source)),
            }
        }
        writing.since_confirmed += 1;
    }
    if writing.since_confirmed >= UNCONFIRMED_MAX
        || writing.unconfirmed.0.len() >= UNCONFIRMED_RUNS_MAX
    {
        return confirm(consumer, writing);
    }
    // Told at once: what a kill can bring back is one batch.
    match consumer.flush() {
        Ok(()) | Err(AcknowledgeError::WouldBlock) => Ok(()),
        Err(source) => Err(writing.unacknowledged(source)),
    }
}

/// Waits until the broker has settled everything acknowledged, over another connection
/// if this one breaks.
fn confirm(consumer: &mut Consumer, writing: &mut Writing) -> Result<(), ReceiveFailed> {
    consumer
        .confirm()
        .map_err(|source| writing.unacknowledged(source))?;
    writing.unconfirmed.0.clear();
    writing.since_confirmed = 0;
    Ok(())
}

/// What was received, on its way to standard output and to the dump.
struct Writing {
    bodies: BufWriter<StdoutLock<'static>>,
    end_of_body: &'static [u8],
    dump: Option<Records>,
    /// What was written and is not acknowledged.
    batch: Vec<Position>,
    unconfirmed: Unconfirmed,
    /// Messages in `unconfirmed`.
    since_confirmed: usize,
    received: u64,
}

impl Writing {
    fn new(options: &ReceiveOptions, dump: Option<Records>) -> Self {
        Self {
            bodies: BufWriter::new(io::stdout().lock()),
            end_of_body: if options.raw { b"" } else { b"\n" },
            dump,
            batch: Vec::new(),
            unconfirmed: Unconfirmed::default(),
            since_confirmed: 0,
            received: 0,
        }
    }

    fn write(
        &mut self,
        position: Position,
        id: MessageId,
        body: &[u8],
    ) -> Result<(), ReceiveFailed> {
        self.bodies
            .write_all(body)
            .and_then(|()| self.bodies.write_all(self.end_of_body))
            .map_err(ReceiveFailed::Output)?;
        if let Some(dump) = &mut self.dump {
            dump.received(position, checksum::body(body), id)?;
        }
        self.batch.push(position);
        self.received += 1;
        Ok(())
    }

    fn unacknowledged(&mut self, source: AcknowledgeError) -> ReceiveFailed {
        ReceiveFailed::Acknowledge {
            received: self.received,
            unconfirmed: std::mem::take(&mut self.unconfirmed),
            source,
        }
    }

    /// The end of the link is also that of what was not confirmed.
    fn not_received(&mut self, error: ReceiveError) -> ReceiveFailed {
        match error {
            ReceiveError::LinkEnded(end) if !self.unconfirmed.0.is_empty() => {
                self.unacknowledged(AcknowledgeError::LinkEnded(end))
            }
            error => ReceiveFailed::Receive(error),
        }
    }

    fn flush(&mut self) -> Result<(), ReceiveFailed> {
        self.bodies.flush().map_err(ReceiveFailed::Output)?;
        match &mut self.dump {
            Some(dump) => Ok(dump.flush()?),
            None => Ok(()),
        }
    }
}
