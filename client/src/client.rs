//! A client: the connections to one broker, and what is opened on them.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use courser_core::client::{
    self as core_client, ConsumerRequest, DestinationStats, Event, LinkEnd, Location,
    ProducerRequest, StatsReport,
};
use courser_core::counters::Counter;
use courser_core::error::Refusal;
use courser_core::id::{Installation, ShardIndex};
use courser_core::name::Destination;
#[cfg(feature = "embedded")]
use courser_transport::in_process::Connector;

use crate::address::{Endpoint, Endpoints, IntoEndpoints};
use crate::admin::Admin;
use crate::browser::Browser;
use crate::consumer::ConsumerBuilder;
use crate::error::{ConnectError, RequestError};
use crate::instance;
use crate::link::{Link, Wanted, Way, Wire};
use crate::pool::{Owner, Pool};
use crate::producer::ProducerBuilder;
use crate::resolve::{Resolver, Whereabouts};
use crate::session::Session;

/// How to connect; [`Client::connect`] uses the defaults.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    name: String,
    /// What the client that is connected with these is called, unlike any other.
    id: Arc<str>,
    timeout: Duration,
    spin: Duration,
    reconnect_for: Duration,
    resolver: Resolver,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            id: Arc::from(""),
            timeout: Duration::from_secs(3),
            spin: Duration::from_micros(50),
            reconnect_for: Duration::from_secs(30),
            resolver: Resolver::default(),
        }
    }
}

impl ConnectOptions {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The client's name, for who looks at the broker.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// How long connecting to each address, and each request later, may take; 3 s
    /// unless said otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a thread that waits tries before it sleeps; 50 us unless said
    /// otherwise, about what being woken costs.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// How long another connection is tried for when one is lost; 30 s unless said
    /// otherwise, zero for never.
    ///
    /// Meanwhile sends are taken and wait, each until its own time-out, and requests
    /// until theirs. On another connection to the same broker what had no outcome is
    /// sent again, and the broker stores none of it twice; where another broker
    /// answers, or the same one without what it held, it fails as unknown.
    #[must_use]
    pub fn reconnect_for(mut self, time: Duration) -> Self {
        self.reconnect_for = time;
        self
    }

    /// How the name and port of an endpoint become addresses; as the system does it
    /// unless said otherwise. Asked for each connection anew, on a thread that may
    /// wait; what is written as an address is not asked for.
    #[must_use]
    pub fn resolver(
        mut self,
        resolve: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.resolver = Resolver::new(resolve);
        self
    }

    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    ///
    /// Why the last one did not.
    pub fn connect(&self, endpoints: impl IntoEndpoints) -> Result<Client, ConnectError> {
        let endpoints = endpoints.into_endpoints()?;
        let client = Self {
            id: instance::next(),
            ..self.clone()
        };
        let mut last = None;
        for (index, endpoint) in endpoints.iter().enumerate() {
            match client.connect_to(endpoint, index, &endpoints) {
                Ok(client) => return Ok(client),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("a list of endpoints is never empty"))
    }

    fn connect_to(
        &self,
        endpoint: &Endpoint,
        index: usize,
        all: &Endpoints,
    ) -> Result<Client, ConnectError> {
        let resolved = self.resolver.resolve(endpoint);
        let resolved = resolved.map_err(|source| ConnectError::Resolve {
            address: endpoint.to_string(),
            source,
        })?;
        let mut last = None;
        for resolved in resolved {
            let whereabouts = Whereabouts::new(all, index, self.resolver.clone());
            match self.dial(endpoint, &resolved, whereabouts, None) {
                Ok(link) => {
                    return Ok(Client {
                        pool: Arc::new(Pool::new(self.clone(), link)),
                        session: Arc::new(Session::new()),
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("what is resolved has an address"))
    }

    /// Connects to where another link is connected, for another shard of that broker.
    pub(crate) fn connect_beside(
        &self,
        link: &Link,
        shard: ShardIndex,
    ) -> Result<Arc<Link>, ConnectError> {
        let (peer, whereabouts, installation) = {
            let state = link.take();
            let wire = &state.wire;
            let installation = state.machine.installation();
            match wire.way() {
                Way::Network(whereabouts) => (wire.peer(), whereabouts.afresh(), installation),
                #[cfg(feature = "embedded")]
                Way::Inside(connector) => {
                    let connector = connector.clone();
                    drop(state);
                    return self.enter(connector, Some(shard));
                }
            }
        };
        let peer = peer.map_err(|source| ConnectError::Io {
            address: String::new(),
            source,
        })?;
        let endpoint = Endpoint::from(peer);
        let link = self.dial(&endpoint, &peer, whereabouts, Some(shard))?;
        if link.take().machine.installation() != installation {
            link.desert();
            return Err(ConnectError::Io {
                address: endpoint.to_string(),
                source: io::Error::other("another broker answers"),
            });
        }
        Ok(link)
    }

    fn dial(
        &self,
        endpoint: &Endpoint,
        resolved: &SocketAddr,
        whereabouts: Whereabouts,
        shard: Option<ShardIndex>,
    ) -> Result<Arc<Link>, ConnectError> {
        let address = || endpoint.to_string();
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Refused {
                address: address(),
                source,
            },
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ConnectError::TimedOut {
                address: address(),
                after: self.timeout,
            },
            _ => ConnectError::Io {
                address: address(),
                source,
            },
        };
        let began = Instant::now();
        let stream = TcpStream::connect_timeout(resolved, self.timeout).map_err(io_error)?;
        let left = self.timeout.saturating_sub(began.elapsed());
        let wire = Wire::new(stream, whereabouts, self.timeout).map_err(io_error)?;
        self.greet(wire, &address(), shard, self.reconnect_for, left)
    }

    /// A link to a shard of a broker in this process.
    #[cfg(feature = "embedded")]
    fn enter(
        &self,
        connector: Connector,
        shard: Option<ShardIndex>,
    ) -> Result<Arc<Link>, ConnectError> {
        let stream = connector.connect(shard)?;
        let wire = Wire::inside(stream, connector, self.timeout);
        // Rings do not break: where one ends, the broker ended it, and for good.
        let reconnect_for = Duration::ZERO;
        let address = "the broker in this process";
        self.greet(wire, address, shard, reconnect_for, self.timeout)
    }

    /// Connects to a broker in this process, without a socket.
    ///
    /// # Errors
    ///
    /// If it has no link to spare, or has stopped.
    #[cfg(feature = "embedded")]
    pub fn connect_embedded(
        &self,
        broker: &crate::embedded::Broker,
    ) -> Result<Client, ConnectError> {
        let options = Self {
            id: instance::next(),
            ..self.clone()
        };
        let link = options.enter(broker.connector().clone(), None)?;
        Ok(Client {
            pool: Arc::new(Pool::new(options, link)),
            session: Arc::new(Session::new()),
        })
    }

    /// Says hello over a wire, and waits for at most `patience` for the answer.
    fn greet(
        &self,
        wire: Wire,
        address: &str,
        shard: Option<ShardIndex>,
        reconnect_for: Duration,
        patience: Duration,
    ) -> Result<Arc<Link>, ConnectError> {
        let address = || address.to_owned();
        let config = core_client::Config {
            name: instance::introduced(&self.name, &self.id),
            shard,
            hello_timeout: self.timeout,
            reconnect_for,
        };
        let link = Link::new(wire, config, self.spin, self.timeout);
        let link = link.map_err(|source| ConnectError::Io {
            address: address(),
            source,
        })?;
        let deadline = link.now().after(patience);
        let end = link.wait(deadline, Wanted::Anything, |state| {
            if state.machine.is_open() {
                return Some(None);
            }
            state.end.clone().map(Some)
        });
        let end = match end {
            Some(None) => return Ok(link),
            Some(Some(end)) => end,
            None => Arc::new(LinkEnd::HelloTimedOut),
        };
        Err(match &*end {
            LinkEnd::HelloTimedOut => ConnectError::TimedOut {
                address: address(),
                after: self.timeout,
            },
            LinkEnd::Farewell {
                refusal: Some(Refusal::VersionUnsupported),
                version_min,
                version_max,
                ..
            } => ConnectError::Version {
                address: address(),
                version_min: *version_min,
                version_max: *version_max,
            },
            LinkEnd::Fault(fault) => ConnectError::NotABroker {
                address: address(),
                source: *fault,
            },
            LinkEnd::Lost => ConnectError::Io {
                address: address(),
                source: io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    "the connection was closed before the session was open",
                ),
            },
            _ => ConnectError::SentAway {
                address: address(),
                end,
            },
        })
    }
}

/// What a client calls [`Client::producer`] and [`Client::consumer`] with.
pub trait IntoDestination {
    /// The destination that is meant.
    ///
    /// # Errors
    ///
    /// If the name breaks the rule for names.
    fn into_destination(self) -> Result<Destination, RequestError>;
}

impl IntoDestination for Destination {
    fn into_destination(self) -> Result<Destination, RequestError> {
        Ok(self)
    }
}

impl IntoDestination for &Destination {
    fn into_destination(self) -> Result<Destination, RequestError> {
        Ok(self.clone())
    }
}

impl IntoDestination for &str {
    fn into_destination(self) -> Result<Destination, RequestError> {
        Destination::parse(self).map_err(|refusal| RequestError::Name {
            name: self.to_owned(),
            refusal,
        })
    }
}

impl IntoDestination for &String {
    fn into_destination(self) -> Result<Destination, RequestError> {
        self.as_str().into_destination()
    }
}

/// The connections to a broker, with one session on them.
///
/// All producers and consumers of a client share its connections, of which there is one
/// for each shard of the broker that owns a destination of theirs, and at least one. A
/// clone is the same client; [`Client::new_session`] shares the connections, but
/// listeners of its producers run on a thread of their own. The connections end when
/// the last client, producer and consumer is dropped.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
    session: Arc<Session>,
}

impl Client {
    /// Connects to a broker: `host:port`, or several as `host:port;host:port`.
    ///
    /// # Errors
    ///
    /// If the address is in no accepted format, or no broker answers within 3 s.
    pub fn connect(endpoints: impl IntoEndpoints) -> Result<Self, ConnectError> {
        ConnectOptions::default().connect(endpoints)
    }

    /// How to connect, to be changed.
    #[must_use]
    pub fn options() -> ConnectOptions {
        ConnectOptions::default()
    }

    /// Begins a producer for `queue:NAME`, `topic:NAME`, or `NAME`, which is a queue.
    pub fn producer(&self, destination: impl IntoDestination) -> ProducerBuilder<'_> {
        let request = destination.into_destination().map(ProducerRequest::new);
        ProducerBuilder::new(self, request)
    }

    /// Begins a consumer of `queue:NAME`, `topic:NAME`, or `NAME`, which is a queue.
    pub fn consumer(&self, destination: impl IntoDestination) -> ConsumerBuilder<'_> {
        let request = destination.into_destination().map(ConsumerRequest::new);
        ConsumerBuilder::new(self, request)
    }

    /// Looks at what `queue:NAME` or `NAME` keeps, and takes nothing of it. Unlike a
    /// consumer it creates nothing.
    ///
    /// # Errors
    ///
    /// If the name is no queue's or there is none of it, the broker refuses or does not
    /// answer.
    pub fn browse(&self, queue: impl IntoDestination) -> Result<Browser, RequestError> {
        Browser::of(self, queue)
    }

    /// A client over the same connection whose listeners run on another thread:
    /// a slow one here does not delay those there.
    #[must_use]
    pub fn new_session(&self) -> Self {
        Self {
            pool: Arc::clone(&self.pool),
            session: Arc::new(Session::new()),
        }
    }

    /// The broker's counters and destinations.
    ///
    /// # Errors
    ///
    /// If the broker refuses or does not answer.
    pub fn stats(&self) -> Result<Stats, RequestError> {
        let mut stats = Stats::default();
        for link in self.pool.every_shard() {
            let event = link.request(core_client::Client::ask_stats)?;
            let Event::Stats { report, .. } = event else {
                unreachable!("the machine pairs answers with requests");
            };
            stats.add(link.shard(), report);
        }
        stats.shards.sort_unstable_by_key(|(shard, _)| *shard);
        Ok(stats)
    }

    /// What an administrator asks for: destinations, subscriptions, who is connected.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.pool))
    }

    /// Who owns a destination.
    ///
    /// # Errors
    ///
    /// If the name is no destination's, or the broker does not answer.
    pub fn lookup(&self, destination: impl IntoDestination) -> Result<Location, RequestError> {
        let destination = destination.into_destination()?;
        match self.link().request(|machine| machine.lookup(destination))? {
            Event::Located { location, .. } => Ok(location),
            _ => unreachable!("the machine pairs answers with requests"),
        }
    }

    /// How long the broker takes to answer.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn ping(&self) -> Result<Duration, RequestError> {
        let began = self.link().now();
        self.link().request(|machine| machine.ping(began))?;
        Ok(self.link().now().since(began))
    }

    /// What this client is called, unlike any other: `host@pid@index@base36`. The same
    /// for its life, whatever its connections.
    #[must_use]
    pub fn id(&self) -> &str {
        self.pool.id()
    }

    /// Whose data the broker holds.
    #[must_use]
    pub fn installation(&self) -> Installation {
        self.link().take().machine.installation()
    }

    /// Whether there is a connection now, as far as was heard; if not, another one
    /// is tried for as long as [`ConnectOptions::reconnect_for`] says.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link().take().machine.is_open()
    }

    /// Why the connection was lost, while another one is tried or if there will be no
    /// other; `None` while there is one.
    #[must_use]
    pub fn lost(&self) -> Option<LinkEnd> {
        self.link().take().machine.lost().cloned()
    }

    /// Why the connection ended, if it has and there will be no other.
    #[must_use]
    pub fn end(&self) -> Option<Arc<LinkEnd>> {
        self.link().take().end.clone()
    }

    /// How many listeners of this session panicked.
    #[must_use]
    pub fn panicked_listeners(&self) -> u64 {
        self.session.panics()
    }

    /// Counts of what happened on the connection beside messages and outcomes.
    #[must_use]
    pub fn counters(&self) -> core_client::Counters {
        self.link().take().machine.counters()
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.links().len()
    }

    /// Waits for every outstanding send and listener of the connections, says
    /// goodbye and ends them. Producers and consumers are closed with them.
    ///
    /// # Errors
    ///
    /// In a listener of this session, which would wait for itself.
    pub fn close(self) -> Result<(), RequestError> {
        if self.session.is_calling() {
            return Err(RequestError::IllegalState);
        }
        let links = self.pool.links();
        let is_quiet = |link: &Link| link.take().is_quiet() && link.has_called_back();
        // A listener may send over another connection than the one it is called for.
        while !links.iter().all(|link| is_quiet(link)) {
            for link in &links {
                link.watch(|state| (state.is_quiet() && link.has_called_back()).then_some(()));
            }
        }
        links.iter().for_each(|link| link.close());
        Ok(())
    }

    #[inline]
    pub(crate) fn link(&self) -> &Arc<Link> {
        self.pool.first()
    }

    /// Has something of a destination opened on the link nearest to it; see
    /// [`Pool::open`].
    pub(crate) fn open<T>(
        &self,
        destination: &Destination,
        open: impl Fn(&Arc<Link>) -> Result<T, RequestError>,
        close: impl FnOnce(&Arc<Link>, T),
    ) -> Result<(Arc<Owner>, T), RequestError> {
        self.pool.open(destination, open, close)
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("installation", &self.installation())
            .field("end", &self.end())
            .finish_non_exhaustive()
    }
}

/// The broker's counters and destinations at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    counters: Vec<u64>,
    /// Of each shard that has answered.
    shards: Vec<(ShardIndex, Vec<u64>)>,
    destinations: Vec<DestinationStats>,
}

impl Stats {
    /// Adds what another shard reports: counters and what its partitions hold add up.
    fn add(&mut self, shard: ShardIndex, report: StatsReport) {
        self.shards.push((shard, report.counters.clone()));
        if self.counters.len() < report.counters.len() {
            self.counters.resize(report.counters.len(), 0);
        }
        for (index, (sum, more)) in self.counters.iter_mut().zip(report.counters).enumerate() {
            let is_maximum = Counter::ALL.get(index).is_some_and(|it| it.is_maximum());
            *sum = if is_maximum {
                (*sum).max(more)
            } else {
                sum.saturating_add(more)
            };
        }
        for row in report.destinations {
            let known = self.destinations.iter_mut();
            match known
                .into_iter()
                .find(|it| it.destination == row.destination)
            {
                Some(known) => {
                    known.partitions = known.partitions.max(row.partitions);
                    known.stored += row.stored;
                    known.unsettled += row.unsettled;
                    known.bytes += row.bytes;
                    known.producers += row.producers;
                    known.consumers += row.consumers;
                    known.subscriptions = known.subscriptions.max(row.subscriptions);
                }
                None => self.destinations.push(row),
            }
        }
    }

    /// Each shard that has answered, with its own counters as [`Stats::counters`] has
    /// those of all.
    pub fn shards(
        &self,
    ) -> impl Iterator<Item = (ShardIndex, impl Iterator<Item = (&'static str, u64)>)> {
        self.shards.iter().map(|(shard, counters)| {
            let names = Counter::ALL.iter().map(|counter| counter.name());
            (*shard, names.zip(counters.iter().copied()))
        })
    }

    /// The counters of all shards with their names, as far as this version knows them.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = Counter::ALL.iter().map(|counter| counter.name());
        names.zip(self.counters.iter().copied())
    }

    /// One counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or(0)
    }

    /// The destinations.
    #[must_use]
    pub fn destinations(&self) -> &[DestinationStats] {
        &self.destinations
    }

    /// One destination.
    #[must_use]
    pub fn destination(&self, destination: &Destination) -> Option<&DestinationStats> {
        self.destinations
            .iter()
            .find(|row| row.destination == *destination)
    }
}
