//! All connections of a client: one for each shard of the broker that it has to do
//! with, shared by all its producers and consumers.
//!
//! ```text
//!   open "orders" --- first link: where is it? --- here --------------> first link
//!                                              '-- shard 1 --> a link there? ----> that one
//!                                                              nothing open on the
//!                                                              first? it moves --> first link
//!                                                              another connection > that one
//! ```
//!
//! A destination is reached from any shard; a link on its own shard spares each frame a
//! way. So whatever goes wrong on the way there, the first link does.
//!
//! Invariants: a client has at most as many connections as the broker has shards, and
//! none before it needs one.

use std::sync::{Arc, Mutex, PoisonError};

use courser_core::client::{Event, Location};
use courser_core::id::ShardIndex;
use courser_core::name::Destination;

use crate::client::ConnectOptions;
use crate::error::RequestError;
use crate::link::{Link, Wanted};

/// See the module.
pub(crate) struct Pool {
    options: ConnectOptions,
    first: Arc<Link>,
    /// Links to other shards than the first one's. Locked while one is made, so that no
    /// two are made for one shard.
    others: Mutex<Vec<Arc<Link>>>,
}

/// What is open on a link of a pool: it keeps all of them.
pub(crate) struct Owner {
    link: Arc<Link>,
    _pool: Arc<Pool>,
}

impl Owner {
    #[inline]
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Pool {
    pub(crate) fn new(options: ConnectOptions, first: Arc<Link>) -> Self {
        Self {
            options,
            first,
            others: Mutex::default(),
        }
    }

    /// What the client is called, unlike any other.
    pub(crate) fn id(&self) -> &str {
        self.options.id()
    }

    /// The link for what concerns no destination.
    pub(crate) fn first(&self) -> &Arc<Link> {
        &self.first
    }

    /// Every link there is.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        [&self.first]
            .into_iter()
            .chain(&*others)
            .map(Arc::clone)
            .collect()
    }

    /// A link to each shard of the broker, as far as they can be had; for questions that
    /// each shard answers for itself.
    pub(crate) fn every_shard(&self) -> Vec<Arc<Link>> {
        let here = self.first.shard();
        let mut links = vec![Arc::clone(&self.first)];
        for shard in 0..self.first.shards() {
            let shard = ShardIndex(shard);
            if shard != here {
                let link = self.another_to(shard);
                if !links.iter().any(|other| Arc::ptr_eq(other, &link)) {
                    links.push(link);
                }
            }
        }
        links
    }

    /// Has `open` open something of a destination, on the link that is nearest to it.
    /// `close` takes back what was opened where the destination turned out not to be.
    pub(crate) fn open<T>(
        self: &Arc<Self>,
        destination: &Destination,
        open: impl Fn(&Arc<Link>) -> Result<T, RequestError>,
        close: impl FnOnce(&Arc<Link>, T),
    ) -> Result<(Arc<Owner>, T), RequestError> {
        let on = |link: Arc<Link>| Owner {
            link,
            _pool: Arc::clone(self),
        };
        let first = Arc::clone(&self.first);
        if first.shards() <= 1 {
            let opened = open(&first)?;
            return Ok((Arc::new(on(first)), opened));
        }
        let mut home = self.home_of(destination)?;
        if home.is_none() {
            // Only what exists has a place.
            let opened = open(&first)?;
            home = self.home_of(destination)?;
            if home.is_none_or(|home| home == first.shard()) {
                return Ok((Arc::new(on(first)), opened));
            }
            close(&first, opened);
        }
        let link = home.map_or(first, |home| self.link_to(home));
        let opened = open(&link)?;
        Ok((Arc::new(on(link)), opened))
    }

    /// The shard of a destination; none if it does not exist, or not at this broker.
    fn home_of(&self, destination: &Destination) -> Result<Option<ShardIndex>, RequestError> {
        let destination = destination.clone();
        let located = self.first.request(|machine| machine.lookup(destination))?;
        Ok(match located {
            Event::Located {
                location:
                    Location::Here {
                        exists: true,
                        shard,
                        ..
                    },
                ..
            } => Some(shard),
            _ => None,
        })
    }

    /// The link that is on a shard, or moves or is made there; else the first one.
    fn link_to(&self, shard: ShardIndex) -> Arc<Link> {
        if self.first.shard() == shard {
            return Arc::clone(&self.first);
        }
        {
            let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            if others.is_empty() && self.first.move_to(shard) {
                return Arc::clone(&self.first);
            }
        }
        self.another_to(shard)
    }

    /// A link beside the first one that is on a shard, or is made there; else the first.
    fn another_to(&self, shard: ShardIndex) -> Arc<Link> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.retain(|link| link.take().end.is_none());
        if let Some(link) = others.iter().find(|link| link.shard() == shard) {
            return Arc::clone(link);
        }
        let has_room = others.len() + 1 < usize::from(self.first.shards());
        let made = has_room.then(|| self.options.connect_beside(&self.first, shard));
        match made {
            Some(Ok(link)) => {
                others.push(Arc::clone(&link));
                link
            }
            // The broker forwards what belongs elsewhere.
            Some(Err(_)) | None => Arc::clone(&self.first),
        }
    }
}

impl Drop for Pool {
    /// The last handle is gone: the connections end.
    fn drop(&mut self) {
        for link in self.links() {
            link.desert();
        }
    }
}

impl Link {
    /// The shard that the link is on, as far as was heard.
    pub(crate) fn shard(&self) -> ShardIndex {
        self.take().machine.shard()
    }

    /// How many the broker has.
    pub(crate) fn shards(&self) -> u16 {
        self.take().machine.shards()
    }

    /// Has the link go to another shard, over the same connection; false if it stays,
    /// because something is open on it or the broker says so.
    fn move_to(&self, shard: ShardIndex) -> bool {
        let now = self.now();
        if !self.take().machine.move_to(now, shard) {
            return false;
        }
        let deadline = now.after(self.timeout());
        let moved = self.wait(deadline, Wanted::Anything, |state| {
            let arrived = state.machine.is_open() || state.end.is_some();
            arrived.then(|| state.machine.shard() == shard)
        });
        moved.unwrap_or(false)
    }
}
