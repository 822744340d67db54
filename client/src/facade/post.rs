//! What all one-liners of a process share: the client, its producers, and the broker if
//! it was started for them.
//!
//! Locked while something of it is made or looked up, never while a message is sent, so
//! that threads do not wait for each other's messages.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{FacadeError, Place};
use crate::address::Endpoints;
use crate::client::Client;
use crate::error::SendError;
use crate::producer::Producer;

/// Producers that are kept; the one that was made first makes room.
const PRODUCERS_MAX: usize = 256;

/// Whose client it is.
pub(super) enum Origin {
    /// Nobody has said; a broker of this process, if this build has one.
    Unsaid,
    /// A broker there.
    Network(Endpoints),
    /// The application's.
    Given(Client),
}

struct Post {
    origin: Origin,
    client: Option<Client>,
    producers: VecDeque<(String, Arc<Producer>)>,
    /// Behind the client, which it says goodbye to when it is dropped.
    #[cfg(feature = "embedded")]
    broker: Option<crate::embedded::Broker>,
}

static POST: Mutex<Post> = Mutex::new(Post {
    origin: Origin::Unsaid,
    client: None,
    producers: VecDeque::new(),
    #[cfg(feature = "embedded")]
    broker: None,
});

fn post() -> MutexGuard<'static, Post> {
    POST.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn turn_to(origin: Origin) {
    let mut post = post();
    let before = std::mem::replace(&mut *post, Post::of(origin));
    // Not under the lock: a listener of that client may be at a one-liner.
    drop(post);
    drop(before);
}

pub(super) fn client(shown: &str) -> Result<Client, FacadeError> {
    post().client(shown)
}

pub(super) fn send(place: &Place, text: &str) -> Result<(), FacadeError> {
    let producer = post().producer(place)?;
    producer.send(text).map(drop).map_err(|source| {
        if matches!(
            source,
            SendError::NotStored { .. } | SendError::Unknown { .. }
        ) {
            post().forget(&producer);
        }
        FacadeError::Send {
            destination: place.shown(),
            source,
        }
    })
}

impl Post {
    fn of(origin: Origin) -> Self {
        Self {
            origin,
            client: None,
            producers: VecDeque::new(),
            #[cfg(feature = "embedded")]
            broker: None,
        }
    }

    fn client(&mut self, shown: &str) -> Result<Client, FacadeError> {
        if self.client.as_ref().is_some_and(|it| it.end().is_some()) {
            self.client = None;
            self.producers.clear();
        }
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = match &self.origin {
            Origin::Given(client) => Ok(client.clone()),
            Origin::Network(endpoints) => {
                Client::connect(endpoints.clone()).map_err(|source| FacadeError::Connect {
                    destination: shown.to_owned(),
                    source,
                })
            }
            Origin::Unsaid => self.own_client(shown),
        }?;
        self.client = Some(client.clone());
        Ok(client)
    }

    #[cfg(not(feature = "embedded"))]
    fn own_client(&self, shown: &str) -> Result<Client, FacadeError> {
        Err(FacadeError::NotInitialised {
            destination: shown.to_owned(),
        })
    }

    #[cfg(feature = "embedded")]
    fn own_client(&mut self, shown: &str) -> Result<Client, FacadeError> {
        use crate::embedded::{Broker, BrokerConfig};
        let destination = || shown.to_owned();
        let broker = match self.broker.take() {
            Some(broker) => broker,
            None => {
                Broker::start(BrokerConfig::embedded()).map_err(|source| FacadeError::Start {
                    destination: destination(),
                    source: Box::new(source),
                })?
            }
        };
        let client = broker.connect().map_err(|source| FacadeError::Connect {
            destination: destination(),
            source,
        });
        self.broker = Some(broker);
        client
    }

    fn producer(&mut self, place: &Place) -> Result<Arc<Producer>, FacadeError> {
        let shown = place.shown();
        let address = place.address();
        let client = self.client(&shown)?;
        if let Some((_, producer)) = self.producers.iter().find(|(it, _)| *it == address) {
            return Ok(Arc::clone(producer));
        }
        let producer = client.producer(&address).create();
        let producer = Arc::new(producer.map_err(|source| FacadeError::Open {
            destination: shown,
            source,
        })?);
        if self.producers.len() == PRODUCERS_MAX {
            self.producers.pop_front();
        }
        self.producers.push_back((address, Arc::clone(&producer)));
        Ok(producer)
    }

    /// A producer that failed may be of no more use; the next one-liner has another.
    fn forget(&mut self, producer: &Arc<Producer>) {
        self.producers.retain(|(_, it)| !Arc::ptr_eq(it, producer));
    }
}
