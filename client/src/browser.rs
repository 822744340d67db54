//! Browsers: what a queue keeps, seen and left as it is.

use std::fmt;
use std::iter::FusedIterator;

use courser_core::client::{ConsumerRequest, Sharing};

use crate::client::{Client, IntoDestination};
use crate::consumer::{Consumer, ConsumerBuilder};
use crate::error::{ReceiveError, RequestError};
use crate::message::Received;

/// Shows the messages that a queue keeps; made by [`Client::browse`].
///
/// An iterator over what no consumer has settled, whether consumers hold it or not, in
/// the order of each partition, up to what was there when it began. It takes nothing from
/// anybody, counts no delivery, and no message stays for it: what is settled before its
/// turn is not shown.
///
/// Each step copies a message out, and waits for the broker where nothing has come ahead.
/// A connection that is lost is made again, as for a [`Consumer`]; what was shown before is
/// not shown again, and what came meanwhile is. After an error there is nothing more.
pub struct Browser {
    consumer: Consumer,
    /// For each partition what is shown next, or a later one.
    next: Vec<u64>,
    done: bool,
}

impl Browser {
    pub(crate) fn of(client: &Client, queue: impl IntoDestination) -> Result<Self, RequestError> {
        let request = queue.into_destination().map(|queue| {
            let mut request = ConsumerRequest::new(queue);
            request.sharing = Sharing::Browsing;
            request.name = "browser".into();
            request
        });
        let consumer = ConsumerBuilder::new(client, request).create()?;
        let next = consumer.starts().iter().map(|start| start.0).collect();
        Ok(Self {
            consumer,
            next,
            done: false,
        })
    }

    /// Ends the look, and waits until the broker knows.
    ///
    /// # Errors
    ///
    /// If the broker does not answer, in which case it has ended all the same.
    pub fn close(self) -> Result<(), RequestError> {
        self.consumer.close()
    }

    /// Whether a message is shown for the first time.
    fn is_news(&mut self, received: &Received) -> bool {
        let position = received.position();
        let partition = usize::try_from(position.partition.0).unwrap_or(usize::MAX);
        let Some(next) = self.next.get_mut(partition) else {
            return true;
        };
        let is_news = position.offset.0 >= *next;
        if is_news {
            *next = position.offset.0.saturating_add(1);
        }
        is_news
    }
}

impl Iterator for Browser {
    type Item = Result<Received, ReceiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match self.consumer.look() {
                Ok(Some(received)) => {
                    if self.is_news(&received) {
                        return Some(Ok(received));
                    }
                }
                Ok(None) => self.done = true,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl FusedIterator for Browser {}

impl fmt::Debug for Browser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browser")
            .field("partitions", &self.next.len())
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}
