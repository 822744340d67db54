//! What an administrator sees and does: [`Client::admin`](crate::Client::admin).
//!
//! A shard of the broker answers for what it has itself. So lists are asked of a link
//! to each shard, page by page, and put together here: what a destination has on
//! several shards is summed up, and a number that names something on one of them is
//! tried until one knows it.

use std::sync::Arc;

use courser_core::catalog::{Dispatch, PolicyChange, Retention};
use courser_core::client::{
    AdminRequest, ConsumerInfo, DestinationInfo, Event, LinkInfo, ListRequest, Listing, PartInfo,
    ProducerInfo, Rows, SubscriptionInfo,
};
use courser_core::error::Refusal;
use courser_core::id::{LinkNumber, ProducerId};
use courser_core::name::Destination;

use crate::client::IntoDestination;
use crate::error::RequestError;
use crate::link::Link;
use crate::pool::Pool;

/// A destination that is to be created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewDestination {
    /// Its partitions, 1 unless said otherwise.
    pub partitions: Option<u32>,
    /// What each partition keeps: what is not settled, unless said otherwise.
    pub retention: Option<Retention>,
    /// When consumers see what is to be flushed: once it is, unless said otherwise.
    pub dispatch: Option<Dispatch>,
    /// Its bounds; those that are `None` are none.
    pub policies: PolicyChange,
}

/// Asks the broker about itself, and has it changed. Every call waits for the answer.
#[derive(Clone)]
pub struct Admin {
    pool: Arc<Pool>,
}

impl Admin {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self { pool }
    }

    /// Creates a destination; `false` if it was there already, as it is wanted.
    ///
    /// # Errors
    ///
    /// If it is there otherwise than wanted, cannot be, or the broker does not answer.
    pub fn create(
        &self,
        destination: impl IntoDestination,
        wanted: &NewDestination,
    ) -> Result<bool, RequestError> {
        self.change(AdminRequest::Create {
            destination: destination.into_destination()?,
            partitions: wanted.partitions,
            retention: wanted.retention,
            dispatch: wanted.dispatch,
            policies: wanted.policies,
        })
    }

    /// Changes bounds of a destination; `false` if they were so already.
    ///
    /// # Errors
    ///
    /// If it does not exist, or the broker does not answer.
    pub fn set(
        &self,
        destination: impl IntoDestination,
        policies: PolicyChange,
    ) -> Result<bool, RequestError> {
        self.somewhere(&AdminRequest::SetPolicies {
            destination: destination.into_destination()?,
            policies,
        })
    }

    /// Deletes a destination with its messages and subscriptions. With `force` also if
    /// somebody uses it: their producers and consumers end.
    ///
    /// # Errors
    ///
    /// If it does not exist, is used, or the broker does not answer.
    pub fn delete(
        &self,
        destination: impl IntoDestination,
        force: bool,
    ) -> Result<(), RequestError> {
        let destination = destination.into_destination()?;
        self.somewhere(&AdminRequest::Delete { destination, force })
            .map(drop)
    }

    /// Deletes a subscription with its place in the destination. With `force` also if
    /// it has consumers: they end.
    ///
    /// # Errors
    ///
    /// If it does not exist, is used, or the broker does not answer.
    pub fn delete_subscription(
        &self,
        destination: impl IntoDestination,
        subscription: &str,
        force: bool,
    ) -> Result<(), RequestError> {
        self.somewhere(&AdminRequest::DeleteSubscription {
            destination: destination.into_destination()?,
            subscription: subscription.into(),
            force,
        })
        .map(drop)
    }

    /// Ends a connection: its client is told, and may connect again.
    ///
    /// # Errors
    ///
    /// If no connection has the number, or the broker does not answer.
    pub fn end_connection(&self, link: LinkNumber) -> Result<(), RequestError> {
        self.somewhere(&AdminRequest::EndLink(link)).map(drop)
    }

    /// Shuts a producer out for ever: what it still sends is refused, and it does not
    /// attach again.
    ///
    /// # Errors
    ///
    /// If no producer has the id, or the broker does not answer.
    pub fn fence(&self, producer: ProducerId) -> Result<(), RequestError> {
        self.somewhere(&AdminRequest::Fence(producer)).map(drop)
    }

    /// All destinations, by name.
    ///
    /// # Errors
    ///
    /// If the broker refuses or does not answer.
    pub fn destinations(&self) -> Result<Vec<DestinationInfo>, RequestError> {
        self.destinations_of(None)
    }

    /// One destination.
    ///
    /// # Errors
    ///
    /// If it does not exist, or the broker does not answer.
    pub fn destination(
        &self,
        destination: impl IntoDestination,
    ) -> Result<DestinationInfo, RequestError> {
        let destination = destination.into_destination()?;
        let found = self.destinations_of(Some(&destination))?.pop();
        found.ok_or_else(|| unknown(format!("{destination} does not exist")))
    }

    /// The subscriptions of one destination or of all.
    ///
    /// # Errors
    ///
    /// If the destination does not exist, or the broker does not answer.
    pub fn subscriptions(
        &self,
        destination: Option<&Destination>,
    ) -> Result<Vec<SubscriptionInfo>, RequestError> {
        let mut all: Vec<SubscriptionInfo> = Vec::new();
        for shard in self.list(Listing::Subscriptions, destination, "", |rows| match rows {
            Rows::Subscriptions(rows) => Some(rows),
            _ => None,
        })? {
            for row in shard {
                // What ends with its consumer has no name that would say which it is.
                let same = all.iter_mut().find(|it| {
                    !it.fleeting && it.destination == row.destination && it.name == row.name
                });
                match same {
                    Some(known) if !row.fleeting => {
                        known.consumers += row.consumers;
                        known.unsettled += row.unsettled;
                        known.backlog += row.backlog;
                    }
                    _ => all.push(row),
                }
            }
        }
        all.sort_by(|a, b| (&a.destination, &a.name).cmp(&(&b.destination, &b.name)));
        Ok(all)
    }

    /// The partitions of a subscription, each with its place; its name is empty for a
    /// queue's own.
    ///
    /// # Errors
    ///
    /// If there is no such subscription, or the broker does not answer.
    pub fn parts(
        &self,
        destination: &Destination,
        subscription: &str,
    ) -> Result<Vec<PartInfo>, RequestError> {
        let mut all: Vec<PartInfo> = Vec::new();
        let shards = self.list(
            Listing::Parts,
            Some(destination),
            subscription,
            |rows| match rows {
                Rows::Parts(rows) => Some(rows),
                _ => None,
            },
        )?;
        for row in shards.into_iter().flatten() {
            match all.iter_mut().find(|it| it.partition == row.partition) {
                Some(known) if known.end < row.end => *known = row,
                Some(_) => {}
                None => all.push(row),
            }
        }
        all.sort_by_key(|part| part.partition);
        Ok(all)
    }

    /// The consumers of one destination or of all; of one subscription, unless its
    /// name is empty.
    ///
    /// # Errors
    ///
    /// If the destination does not exist, or the broker does not answer.
    pub fn consumers(
        &self,
        destination: Option<&Destination>,
        subscription: &str,
    ) -> Result<Vec<ConsumerInfo>, RequestError> {
        let shards = self.list(
            Listing::Consumers,
            destination,
            subscription,
            |rows| match rows {
                Rows::Consumers(rows) => Some(rows),
                _ => None,
            },
        )?;
        Ok(shards.into_iter().flatten().collect())
    }

    /// The producers on connections, of one destination or of all.
    ///
    /// # Errors
    ///
    /// If the destination does not exist, or the broker does not answer.
    pub fn producers(
        &self,
        destination: Option<&Destination>,
    ) -> Result<Vec<ProducerInfo>, RequestError> {
        let shards = self.list(Listing::Producers, destination, "", |rows| match rows {
            Rows::Producers(rows) => Some(rows),
            _ => None,
        })?;
        let mut all: Vec<ProducerInfo> = shards.into_iter().flatten().collect();
        all.sort_by_key(|producer| producer.id);
        Ok(all)
    }

    /// The connections.
    ///
    /// # Errors
    ///
    /// If the broker refuses or does not answer.
    pub fn connections(&self) -> Result<Vec<LinkInfo>, RequestError> {
        let shards = self.list(Listing::Links, None, "", |rows| match rows {
            Rows::Links(rows) => Some(rows),
            _ => None,
        })?;
        let mut all: Vec<LinkInfo> = shards.into_iter().flatten().collect();
        all.sort_by_key(|link| link.link);
        Ok(all)
    }

    fn destinations_of(
        &self,
        destination: Option<&Destination>,
    ) -> Result<Vec<DestinationInfo>, RequestError> {
        let mut all: Vec<DestinationInfo> = Vec::new();
        let shards = self.list(Listing::Destinations, destination, "", |rows| match rows {
            Rows::Destinations(rows) => Some(rows),
            _ => None,
        })?;
        for row in shards.into_iter().flatten() {
            match all.iter_mut().find(|it| it.number == row.number) {
                Some(known) => {
                    known.producers += row.producers;
                    known.consumers += row.consumers;
                    // Every shard knows every subscription.
                    known.subscriptions = known.subscriptions.max(row.subscriptions);
                    known.stored += row.stored;
                    known.unsettled += row.unsettled;
                    known.bytes += row.bytes;
                    known.segments += row.segments;
                }
                None => all.push(row),
            }
        }
        all.sort_by(|a, b| a.destination.cmp(&b.destination));
        Ok(all)
    }

    /// What each shard lists.
    fn list<T>(
        &self,
        what: Listing,
        destination: Option<&Destination>,
        subscription: &str,
        rows: impl Fn(Rows) -> Option<Vec<T>>,
    ) -> Result<Vec<Vec<T>>, RequestError> {
        let links = self.pool.every_shard();
        let (mut shards, mut last) = (Vec::with_capacity(links.len()), None);
        for link in links {
            let (mut all, mut from) = (Vec::new(), 0);
            loop {
                let request = AdminRequest::List(ListRequest {
                    what,
                    destination: destination.cloned(),
                    subscription: subscription.into(),
                    from,
                });
                let event = match link.request(|machine| machine.administer(request)) {
                    Err(error) if is_not_found(&error) => {
                        last = Some(error);
                        break;
                    }
                    answer => answer?,
                };
                let Event::Listed { page, .. } = event else {
                    unreachable!("the machine pairs answers with requests");
                };
                all.extend(rows(page.rows).expect("a page has the rows that were asked for"));
                match page.next {
                    Some(next) => from = next,
                    None => {
                        shards.push(all);
                        break;
                    }
                }
            }
        }
        match last {
            Some(error) if shards.is_empty() => Err(error),
            _ => Ok(shards),
        }
    }

    /// What any shard can be asked for.
    fn change(&self, request: AdminRequest) -> Result<bool, RequestError> {
        changed(self.pool.first(), request)
    }

    /// What the shard has to be asked for that knows it.
    fn somewhere(&self, request: &AdminRequest) -> Result<bool, RequestError> {
        let mut last = None;
        for link in self.pool.every_shard() {
            match changed(&link, request.clone()) {
                Err(error) if is_not_found(&error) => last = Some(error),
                other => return other,
            }
        }
        Err(last.expect("there is a link to ask"))
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin")
            .field("connections", &self.pool.links().len())
            .finish()
    }
}

fn changed(link: &Link, request: AdminRequest) -> Result<bool, RequestError> {
    match link.request(|machine| machine.administer(request))? {
        Event::Changed { changed, .. } => Ok(changed),
        _ => unreachable!("the machine pairs answers with requests"),
    }
}

fn is_not_found(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::Refused {
            refusal: Some(Refusal::NotFound),
            ..
        }
    )
}

fn unknown(text: String) -> RequestError {
    RequestError::Refused {
        refusal: Some(Refusal::NotFound),
        code: Refusal::NotFound.code(),
        text: text.into(),
    }
}
