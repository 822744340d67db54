//! The flags of the verbs that look at a broker from outside and change it.

use clap::{Args, Subcommand};
use courser::{Destination, Dispatch, LinkNumber, ProducerId, Retention};

use super::Connection;
use crate::quantity;

/// `courser topic` and `courser queue`.
#[derive(Debug, Subcommand)]
pub(crate) enum DestinationVerb {
    /// List all of them
    Ls(Asking),
    /// Show one, with its partitions
    Show(NamedOptions),
    /// Create one
    Create(CreateOptions),
    /// Delete one with its messages and subscriptions
    Rm(RemoveOptions),
    /// Change its bounds
    Set(SetOptions),
}

/// Whom to ask, and how to print the answer.
#[derive(Debug, Args)]
pub(crate) struct Asking {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// One destination.
#[derive(Debug, Args)]
pub(crate) struct NamedOptions {
    /// Its name, such as orders or /default/orders
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

/// Bounds of a destination.
#[derive(Debug, Args)]
pub(crate) struct Bounds {
    /// The most producers attached at a time, 0 for any number
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_producers: Option<u32>,
    /// The most consumers attached at a time, 0 for any number
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_consumers: Option<u32>,
    /// The most subscriptions, 0 for any number
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_subscriptions: Option<u32>,
}

/// `courser topic create` and `courser queue create`.
#[derive(Debug, Args)]
pub(crate) struct CreateOptions {
    #[command(flatten)]
    pub(crate) named: NamedOptions,
    /// Its partitions; one unless said otherwise
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) partitions: Option<u32>,
    #[command(flatten)]
    pub(crate) keeping: Keeping,
    /// When consumers see a persistent message: durable, once it is flushed, unless said
    /// otherwise, or early, at once, though a crash may take it back
    #[arg(long, value_name = "WHEN")]
    pub(crate) dispatch: Option<Dispatch>,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
}

/// What the partitions of a destination keep.
#[derive(Debug, Args)]
pub(crate) struct Keeping {
    /// How much each partition keeps of what every subscription has acknowledged
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = quantity::size, conflicts_with_all = ["until_acknowledged", "until_expired"])]
    pub(crate) retain: Option<u64>,
    /// Keep whole segments, each until every subscription has acknowledged all of it
    #[arg(long, group = "until", requires = "segment")]
    pub(crate) until_acknowledged: bool,
    /// Keep whole segments, each for so long after it was closed, acknowledged or not
    #[arg(long, value_name = "PERIOD", group = "until", requires = "segment", allow_negative_numbers = true, value_parser = seconds)]
    pub(crate) until_expired: Option<u32>,
    /// What a segment has at least, such as 5MiB or 5MB, which is the same: it is closed
    /// by the first message that comes then
    #[arg(long, value_name = "SIZE", requires = "until", allow_negative_numbers = true, value_parser = segment_size)]
    pub(crate) segment: Option<u64>,
}

impl Keeping {
    /// The retention that is meant, if any is.
    pub(crate) fn retention(&self) -> Option<Retention> {
        match (self.segment, self.until_expired, self.until_acknowledged) {
            (Some(segment), Some(period), _) => Some(Retention::UntilExpired { segment, period }),
            (Some(segment), None, true) => Some(Retention::UntilAcknowledged { segment }),
            _ => self.retain.map(Retention::Size),
        }
    }
}

/// Whole seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let duration = quantity::duration(text).map_err(|error| error.to_string())?;
    match u32::try_from(duration.as_secs()) {
        Ok(seconds) if duration.subsec_nanos() == 0 => Ok(seconds),
        _ => Err(String::from(
            "a period is a whole number of seconds, such as 3s or 1h",
        )),
    }
}

/// A size; brokers that count segments in MB mean MiB.
fn segment_size(text: &str) -> Result<u64, String> {
    let text = match text.strip_suffix("MB") {
        Some(number) => format!("{number}MiB"),
        None => text.to_owned(),
    };
    quantity::size(&text).map_err(|error| error.to_string())
}

/// `courser topic set` and `courser queue set`.
#[derive(Debug, Args)]
pub(crate) struct SetOptions {
    #[command(flatten)]
    pub(crate) named: NamedOptions,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
}

/// What has to be confirmed.
#[derive(Debug, Args)]
pub(crate) struct Confirmation {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// `courser topic rm` and `courser queue rm`.
#[derive(Debug, Args)]
pub(crate) struct RemoveOptions {
    #[command(flatten)]
    pub(crate) named: NamedOptions,
    /// Even if somebody uses it: their producers and consumers end
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) confirmation: Confirmation,
}

/// `courser sub`.
#[derive(Debug, Subcommand)]
pub(crate) enum SubscriptionVerb {
    /// List those of one destination or of all
    Ls(FilteredOptions),
    /// Show one: its consumers, and its place in each partition
    Show(SubscriptionOptions),
    /// Delete one of a topic, with its place
    Rm(SubscriptionRemoveOptions),
}

/// A list of what belongs to one destination or to all.
#[derive(Debug, Args)]
pub(crate) struct FilteredOptions {
    /// queue:NAME, topic:NAME, or NAME for a queue; all unless said
    #[arg(value_name = "DEST", value_parser = Destination::parse)]
    pub(crate) destination: Option<Destination>,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

/// One subscription.
#[derive(Debug, Args)]
pub(crate) struct SubscriptionOptions {
    /// queue:NAME, topic:NAME, or NAME for a queue
    #[arg(value_name = "DEST", value_parser = Destination::parse)]
    pub(crate) destination: Destination,
    /// Its name; none for a queue's own
    #[arg(value_name = "SUBSCRIPTION", default_value = "")]
    pub(crate) subscription: String,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

/// `courser sub rm`.
#[derive(Debug, Args)]
pub(crate) struct SubscriptionRemoveOptions {
    /// topic:NAME
    #[arg(value_name = "DEST", value_parser = Destination::parse)]
    pub(crate) destination: Destination,
    /// Its name
    #[arg(value_name = "SUBSCRIPTION")]
    pub(crate) subscription: String,
    /// Even if it has consumers: they end
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) confirmation: Confirmation,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

/// `courser producer`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProducerVerb {
    /// List those of one destination or of all
    Ls(FilteredOptions),
    /// Shut one out for ever: what it still sends is refused
    Fence(FenceOptions),
}

/// `courser producer fence`.
#[derive(Debug, Args)]
pub(crate) struct FenceOptions {
    /// Its id, as `courser producer ls` says
    #[arg(value_name = "ID", allow_negative_numbers = true, value_parser = producer)]
    pub(crate) producer: ProducerId,
    #[command(flatten)]
    pub(crate) confirmation: Confirmation,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

/// `courser conn`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionVerb {
    /// List all of them
    Ls(Asking),
    /// End one: its client is told, and may connect again
    Kill(KillOptions),
}

/// `courser conn kill`.
#[derive(Debug, Args)]
pub(crate) struct KillOptions {
    /// Its number, as `courser conn ls` says
    #[arg(value_name = "NUMBER", allow_negative_numbers = true, value_parser = link)]
    pub(crate) link: LinkNumber,
    #[command(flatten)]
    pub(crate) confirmation: Confirmation,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

fn producer(text: &str) -> Result<ProducerId, String> {
    text.parse()
        .map(ProducerId)
        .map_err(|_| String::from("an id is a number, as courser producer ls says"))
}

fn link(text: &str) -> Result<LinkNumber, String> {
    text.parse()
        .map(LinkNumber)
        .map_err(|_| String::from("a number, as courser conn ls says"))
}
