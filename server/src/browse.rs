//! `courser dump DEST`: what a broker that runs keeps there, seen and left as it is.
//!
//! ```text
//!   a queue    a browser, which is shown what no consumer has settled
//!   a topic    latest: a reader that begins behind everything, where each partition ends now
//!              earliest: a reader that begins with what is kept, up to there
//! ```
//!
//! A topic's reader is a subscription of its own, which ends with it: nothing that it is
//! given is taken from anybody, and nothing that it acknowledges is settled for others. A
//! browser is in no subscription at all.

use std::time::Duration;

use courser::{AcknowledgeError, Client, Consumer, Destination, DestinationKind, Received};
use courser_core::frame::checksum;

use crate::args::Connection;
use crate::error::CommandError;
use crate::line::{self, Line};
use crate::output;
use crate::receive::ReceiveFailed;

/// The most messages that the broker keeps account of as not yet acknowledged.
const UNCONFIRMED_MAX: u64 = 1024;

/// Bytes of lines that are printed at a time.
const PRINT_SIZE: usize = 16 * 1024;

/// Where a reader begins.
#[derive(Clone, Copy)]
enum From {
    Earliest,
    Latest,
}

/// Prints a line for each message that is kept there now.
pub(crate) fn browse(
    destination: &Destination,
    json: bool,
    connection: &Connection,
) -> Result<(), CommandError> {
    let client = Client::options()
        .name("courser dump")
        .reconnect_for(Duration::ZERO)
        .connect(connection.endpoints.clone())?;
    if destination.kind == DestinationKind::Queue {
        return browse_queue(client, destination, json);
    }
    // Who opens what is not there makes it.
    client.admin().destination(destination)?;
    let latest = reader(&client, destination, From::Latest)?;
    let mut left = Left::new(latest.starts().iter().map(|end| end.0).collect());
    latest.close()?;
    let mut earliest = reader(&client, destination, From::Earliest)?;
    let mut text = String::new();
    let read = print_all(&mut earliest, &mut left, json, &mut text);
    let read = output::print(&text).and(read);
    // Everything is printed, or why not is known; how the goodbye goes changes neither.
    let _told = earliest.close().and_then(|()| client.close());
    read
}

fn browse_queue(client: Client, queue: &Destination, json: bool) -> Result<(), CommandError> {
    let mut browser =
        (client.browse(queue)).map_err(|source| CommandError::opening(queue, source))?;
    let mut text = String::new();
    let mut read = Ok(());
    for received in &mut browser {
        match received {
            Ok(received) => print_one(&received, json, &mut text)?,
            Err(error) => read = Err(ReceiveFailed::Receive(error).into()),
        }
    }
    let read = output::print(&text).and(read);
    // As below.
    let _told = browser.close().and_then(|()| client.close());
    read
}

fn reader(
    client: &Client,
    destination: &Destination,
    from: From,
) -> Result<Consumer, CommandError> {
    let builder = client.consumer(destination).name("courser dump");
    let builder = match from {
        From::Earliest => builder.from_earliest(),
        From::Latest => builder.from_latest(),
    };
    builder
        .create()
        .map_err(|source| CommandError::opening(destination, source))
}

/// Leaves in `text` what is to be printed last.
fn print_all(
    reader: &mut Consumer,
    left: &mut Left,
    json: bool,
    text: &mut String,
) -> Result<(), CommandError> {
    let mut since_confirmed = 0;
    while left.any() {
        // Where offsets before the end were given to nothing that is kept, there is none.
        let next = reader.receive_no_wait().map_err(ReceiveFailed::Receive)?;
        let Some(received) = next else {
            break;
        };
        let position = received.position();
        if left.take(position.partition.0, position.offset.0) {
            print_one(&received, json, text)?;
        }
        since_confirmed += 1;
        settle(reader, &received, since_confirmed >= UNCONFIRMED_MAX).map_err(|source| {
            ReceiveFailed::Acknowledge {
                received: since_confirmed,
                unconfirmed: Default::default(),
                source,
            }
        })?;
        since_confirmed %= UNCONFIRMED_MAX;
    }
    Ok(())
}

/// Adds the line of a message to `text`, and prints that once it is long enough.
fn print_one(received: &Received, json: bool, text: &mut String) -> Result<(), CommandError> {
    as_line(received).write(text, json, "");
    if text.len() >= PRINT_SIZE {
        output::print(text)?;
        text.clear();
    }
    Ok(())
}

/// Lets go of a message for this reader, which would otherwise be kept account of.
fn settle(
    reader: &mut Consumer,
    received: &Received,
    is_due: bool,
) -> Result<(), AcknowledgeError> {
    while let Err(error) = reader.acknowledge(received.position()) {
        match error {
            AcknowledgeError::WouldBlock => reader.confirm()?,
            error => return Err(error),
        }
    }
    if is_due { reader.confirm() } else { Ok(()) }
}

fn as_line(received: &Received) -> Line {
    let (position, id) = (received.position(), received.id());
    Line {
        what: "message",
        fields: vec![
            ("partition", position.partition.0.into()),
            ("offset", position.offset.0.into()),
            ("append_time", received.append_time().0.into()),
            ("producer", id.producer.0.into()),
            ("epoch", id.epoch.0.into()),
            ("sequence", id.sequence.0.into()),
            ("key_hash", received.key_hash().into()),
            ("body", received.body().len().into()),
            ("checksum", line::checksum(checksum::body(received.body()))),
            ("preview", line::preview(received.body())),
        ],
    }
}

/// What of each partition is still to be seen.
struct Left {
    /// Where each ends.
    ends: Vec<u64>,
    /// Whether all before that was seen.
    seen: Vec<bool>,
}

impl Left {
    fn new(ends: Vec<u64>) -> Self {
        let seen = ends.iter().map(|end| *end == 0).collect();
        Self { ends, seen }
    }

    fn any(&self) -> bool {
        self.seen.contains(&false)
    }

    /// Notes a message; whether it was there when the look began.
    fn take(&mut self, partition: u32, offset: u64) -> bool {
        let place = usize::try_from(partition).unwrap_or(usize::MAX);
        let (Some(end), Some(seen)) = (self.ends.get(place), self.seen.get_mut(place)) else {
            return false;
        };
        *seen |= offset.saturating_add(1) >= *end;
        offset < *end
    }
}

#[cfg(test)]
mod tests {
    use super::Left;

    #[test]
    fn what_comes_behind_the_end_is_not_shown_and_ends_its_partition() {
        let mut left = Left::new(vec![2, 0, 1]);
        assert!(left.take(0, 0) && left.any());
        assert!(
            !left.take(2, 5),
            "it came later, and what was before it is gone"
        );
        assert!(left.any());
        assert!(left.take(0, 1));
        assert!(!left.any(), "the empty one has nothing to wait for");
        assert!(!left.take(7, 0), "there is no such partition");
    }
}
