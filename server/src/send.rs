//! `courser send`: messages out, acknowledgements in, and an honest count of both.
//!
//! ```text
//!   source --> try_enqueue --> window of the producer --> outcomes, in order --> ack log
//!                   full? ---- wait for an outcome ----------^
//! ```
//!
//! Sends are pipelined: the window is filled, then each outcome makes room for one
//! more. Before it waits for somebody who types, everything sent is answered.
//!
//! Invariant: `checksums` holds one entry for each send without an outcome, in order.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use courser::{
    Cause, Client, Completion, Durability, LinkEnd, Message, Producer, SendError, Sequence,
    TrySendError,
};
use courser_bench::units;
use courser_core::error::Refusal;
use courser_core::frame::checksum;

use crate::args::SendOptions;
use crate::error::CommandError;
use crate::output;
use crate::records::{Records, RecordsError};
use crate::source::Source;

/// An outcome is there when its send's time is over; this much later it is missing.
const GRACE: Duration = Duration::from_secs(1);

/// The most outcomes that are taken before there is something new on its way: with
/// more, a broker that answers quickly would see the window run empty.
const SETTLED_AT_ONCE: usize = 256;

/// Why not every message was acknowledged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendFailed {
    /// A send failed, which ended the command.
    #[error("message {number}: {source}{}\n  seen   {tally}",
        lost.as_ref().map_or_else(String::new, |lost| format!(" without a connection: {lost}")))]
    Send {
        /// Which message, counted from 1.
        number: u64,
        /// What became of it.
        source: SendError,
        /// Why there was no connection while its time passed, if there was none.
        lost: Option<LinkEnd>,
        /// What became of all.
        tally: Tally,
    },
    /// Standard input cannot be read.
    #[error("cannot read standard input: {source}\n  seen   {tally}")]
    Input {
        /// The system's answer.
        source: io::Error,
        /// What became of the messages until then.
        tally: Tally,
    },
    /// The ack log cannot be written.
    #[error(transparent)]
    AckLog(#[from] RecordsError),
}

/// What became of the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    acknowledged: u64,
    /// Those of the acknowledged that would survive a power cut.
    durable: u64,
    /// In the broker since an earlier try, at a place that is not known any more.
    stored_before: u64,
    /// Certainly not in the broker.
    not_stored: u64,
    /// Perhaps in the broker.
    unknown: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} acknowledged, ", units::count(self.acknowledged))?;
        if self.stored_before > 0 {
            let count = units::count(self.stored_before);
            write!(f, "{count} stored before, ")?;
        }
        write!(
            f,
            "{} not stored, {} unknown",
            units::count(self.not_stored),
            units::count(self.unknown)
        )
    }
}

impl Tally {
    /// Counts what became of a send; whether it failed.
    fn count<T>(&mut self, result: &Result<T, SendError>) -> bool {
        let count = match result {
            Ok(_) => &mut self.acknowledged,
            Err(SendError::Refused(Refusal::AlreadyStored)) => &mut self.stored_before,
            Err(SendError::Unknown { .. }) => &mut self.unknown,
            Err(_) => &mut self.not_stored,
        };
        *count += 1;
        !matches!(
            result,
            Ok(_) | Err(SendError::Refused(Refusal::AlreadyStored))
        )
    }

    /// How many have an outcome.
    fn all(&self) -> u64 {
        self.acknowledged + self.stored_before + self.not_stored + self.unknown
    }
}

/// Sends what it is given and says how much of it was acknowledged.
pub(crate) fn send(options: &SendOptions) -> Result<(), CommandError> {
    let source = match (options.count, &options.messages[..]) {
        (Some(count), _) => Source::numbered(count, options.size as usize),
        (None, []) => Source::lines(),
        (None, messages) => Source::given(messages.to_vec()),
    };
    let log = options.ack_log.as_deref().map(Records::create);
    let log = log.transpose().map_err(SendFailed::AckLog)?;
    // Beyond the time that a message may take there is nothing to reconnect for.
    let client = Client::options()
        .reconnect_for(options.timeout)
        .connect(options.connection.endpoints.clone())?;
    let mut sending = Sending {
        client: &client,
        producer: open(&client, options)?,
        key: options.key.as_deref(),
        patience: options.timeout.saturating_add(GRACE),
        log,
        checksums: VecDeque::new(),
        tally: Tally::default(),
        failure: None,
    };
    sending.run(source)?;
    let Sending {
        producer, tally, ..
    } = sending;
    // Everything is acknowledged; how the goodbye goes changes nothing about that.
    let _told = producer.close().and_then(|()| client.close());
    let before = tally.stored_before;
    if before > 0 {
        output::remark(&format_args!(
            "{} more were stored before: the answer was lost, and where they are is not known any more",
            units::count(before)
        ));
    }
    let in_memory = tally.acknowledged - tally.durable;
    if options.persistent && in_memory > 0 {
        output::remark(&format_args!(
            "warning: {} of them are in the broker's memory only: nothing is kept there of {}",
            units::count(in_memory),
            options.destination
        ));
    }
    let acknowledged = units::count(tally.acknowledged);
    if tally.durable == 0 {
        output::print(&format_args!("acknowledged {acknowledged} messages\n"))
    } else {
        let durable = units::count(tally.durable);
        output::print(&format_args!(
            "acknowledged {acknowledged} messages, {durable} of them durable\n"
        ))
    }
}

fn open(client: &Client, options: &SendOptions) -> Result<Producer, CommandError> {
    let mut builder = client
        .producer(&options.destination)
        .name("courser send")
        .send_timeout(options.timeout)
        .durability(if options.no_persistent {
            Durability::Memory
        } else {
            Durability::Flushed
        });
    if let Some(partitions) = options.partitions {
        builder = builder.partitions(partitions);
    }
    if let Some(bytes) = options.retain {
        builder = builder.retain(bytes);
    }
    builder
        .create()
        .map_err(|source| CommandError::opening(&options.destination, source))
}

struct Sending<'a> {
    client: &'a Client,
    producer: Producer,
    key: Option<&'a str>,
    /// How long an outcome may take to come.
    patience: Duration,
    log: Option<Records>,
    checksums: VecDeque<u32>,
    tally: Tally,
    /// The first send that failed.
    failure: Option<(u64, SendError)>,
}

impl Sending<'_> {
    /// Sends until the source is dry or a send has failed, and waits for every outcome.
    fn run(&mut self, mut source: Source) -> Result<(), SendFailed> {
        let mut number = 0;
        let mut unreadable = None;
        while self.failure.is_none() {
            if source.may_wait() {
                self.settle_all()?;
                if self.failure.is_some() {
                    break;
                }
            }
            match source.next() {
                Ok(Some(body)) => {
                    number += 1;
                    self.send(number, body)?;
                }
                Ok(None) => break,
                Err(error) => {
                    unreadable = Some(error);
                    break;
                }
            }
        }
        self.settle_all()?;
        let tally = self.tally;
        match (self.failure.take(), unreadable) {
            (Some((number, source)), _) => Err(SendFailed::Send {
                number,
                lost: self.lost_for(&source),
                source,
                tally,
            }),
            (None, Some(source)) => Err(SendFailed::Input { source, tally }),
            (None, None) => Ok(()),
        }
    }

    /// Why there is no connection, if that is why a send's time passed.
    fn lost_for(&self, error: &SendError) -> Option<LinkEnd> {
        match error {
            SendError::NotStored { cause } | SendError::Unknown { cause }
                if *cause == Cause::TimedOut =>
            {
                self.client.lost()
            }
            _ => None,
        }
    }

    /// Hands one message over, waiting for room while the window is full.
    fn send(&mut self, number: u64, body: Vec<u8>) -> Result<(), SendFailed> {
        let checksum = checksum::body(&body);
        let message = match self.key {
            Some(key) => Message::new(body).with_key(key),
            None => Message::new(body),
        };
        while self.failure.is_none() {
            match self.producer.try_enqueue(&message) {
                Ok(sequence) => {
                    debug_assert_eq!(sequence, Sequence(number));
                    self.checksums.push_back(checksum);
                    break;
                }
                Err(TrySendError::WouldBlock) => self.settle_some()?,
                Err(TrySendError::Failed(error)) => {
                    self.tally.not_stored += 1;
                    self.failure = Some((number, error));
                }
                Err(error) => unreachable!("a send is taken, too early, or failed: {error}"),
            }
        }
        Ok(())
    }

    /// Waits for an outcome and takes some more that are there.
    fn settle_some(&mut self) -> Result<(), SendFailed> {
        match self.producer.poll_for(self.patience) {
            Some(completion) => self.settle(&completion)?,
            None => self.give_up(),
        }
        for _ in 1..SETTLED_AT_ONCE {
            let Some(completion) = self.producer.poll() else {
                break;
            };
            self.settle(&completion)?;
        }
        // What was logged can be read while the next outcomes are on their way.
        match &mut self.log {
            Some(log) => Ok(log.flush()?),
            None => Ok(()),
        }
    }

    fn settle_all(&mut self) -> Result<(), SendFailed> {
        while !self.checksums.is_empty() {
            self.settle_some()?;
        }
        Ok(())
    }

    fn settle(&mut self, completion: &Completion) -> Result<(), SendFailed> {
        let Completion { sequence, result } = completion;
        let checksum = self
            .checksums
            .pop_front()
            .expect("each send has one outcome and came before it");
        let failed = self.tally.count(result);
        match result {
            Ok(receipt) => {
                self.tally.durable += u64::from(receipt.durability == Durability::Flushed);
                if let Some(log) = &mut self.log {
                    log.acknowledged(receipt.position, checksum, receipt.id)?;
                }
            }
            Err(error) if failed => {
                // A send that was not taken may be known before the outcomes of those
                // before it.
                let failure = &mut self.failure;
                if failure
                    .as_ref()
                    .is_none_or(|(first, _)| *first > sequence.0)
                {
                    *failure = Some((sequence.0, error.clone()));
                }
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Outcomes that should be there are not: nobody knows about these sends.
    fn give_up(&mut self) {
        let missing = self.checksums.len() as u64;
        self.checksums.clear();
        let first = self.tally.all();
        self.tally.unknown += missing;
        let cause = Cause::TimedOut;
        self.failure
            .get_or_insert_with(|| (first + 1, SendError::Unknown { cause }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A send whose first answer was lost with a broker was counted as not stored, and
    /// ended the command.
    #[test]
    fn what_was_stored_before_is_stored_and_counted_apart() {
        let mut tally = Tally::default();
        let before = SendError::Refused(Refusal::AlreadyStored);
        let cause = Cause::TimedOut;
        assert!(!tally.count(&Ok(())));
        assert!(!tally.count::<()>(&Err(before)));
        assert!(tally.count::<()>(&Err(SendError::Refused(Refusal::OutOfMemory))));
        assert!(tally.count::<()>(&Err(SendError::Unknown { cause })));
        assert_eq!(
            tally.to_string(),
            "1 acknowledged, 1 stored before, 1 not stored, 1 unknown"
        );
        assert_eq!(tally.all(), 4);
    }
}
