//! Receives texts, one with each call.
//!
//! A call opens a consumer, waits and closes it again, so that nothing is kept from
//! others in between. For many messages use a [`Consumer`](crate::Consumer).

use std::time::Duration;

use crate::facade::{FacadeError, Place, post};

/// How long to wait where nothing better is known.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// A queue of this name.
#[must_use]
pub fn queue(name: &str) -> Queue {
    Queue(Place::queue(name))
}

/// A topic of this name.
#[must_use]
pub fn topic(name: &str) -> Topic {
    Topic(Place::topic(name))
}

/// A queue that texts can be received from.
#[derive(Clone, Debug)]
pub struct Queue(Place);

impl Queue {
    /// The next text, which is the caller's from then on; none if none comes in time.
    ///
    /// # Errors
    ///
    /// If there is no broker, or what comes is no text; that stays in the queue.
    pub fn receive(&self, timeout: Duration) -> Result<Option<String>, FacadeError> {
        receive(&self.0, timeout)
    }
}

/// A topic that texts can be received from.
#[derive(Clone, Debug)]
pub struct Topic(Place);

impl Topic {
    /// The next text that is sent from here on; none if none comes in time.
    ///
    /// # Errors
    ///
    /// If there is no broker, or what comes is no text.
    pub fn receive(&self, timeout: Duration) -> Result<Option<String>, FacadeError> {
        receive(&self.0, timeout)
    }
}

fn receive(place: &Place, timeout: Duration) -> Result<Option<String>, FacadeError> {
    let destination = || place.shown();
    let client = post::client(&place.shown())?;
    let mut consumer = client.consumer(&place.address()).prefetch(1);
    // A queue is there for whoever comes; of a topic only what comes from now on.
    if place.kind == "topic" {
        consumer = consumer.from_latest();
    }
    let mut consumer = consumer.create().map_err(|source| FacadeError::Open {
        destination: destination(),
        source,
    })?;
    let received = consumer.receive(timeout);
    let received = received.map_err(|source| FacadeError::Receive {
        destination: destination(),
        source,
    })?;
    let Some(received) = received else {
        return Ok(None);
    };
    let Some(text) = received.text().map(str::to_owned) else {
        return Err(FacadeError::NotText {
            destination: destination(),
        });
    };
    let acknowledged = consumer.acknowledge(received.position());
    let settled = acknowledged.and_then(|()| consumer.confirm());
    settled.map_err(|source| FacadeError::Acknowledge {
        destination: destination(),
        source,
    })?;
    Ok(Some(text))
}
