//! Every verb and every flag, defined once: help and errors derive from here.

mod admin;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, value_parser};
use courser::{Admin, Client, ConnectError, Endpoints};
use courser_bench::workload::Rate;
use courser_core::client::Start;
use courser_core::id::Offset;
use courser_core::name::Destination;
use courser_transport::Transport;
use courser_transport::affinity::Cores;
use courser_transport::idle::IdleStrategy;

pub(crate) use admin::{
    Asking, Bounds, Confirmation, ConnectionVerb, CreateOptions, DestinationVerb, FenceOptions,
    FilteredOptions, KillOptions, NamedOptions, ProducerVerb, RemoveOptions, SetOptions,
    SubscriptionOptions, SubscriptionRemoveOptions, SubscriptionVerb,
};

use crate::error::Status;
use crate::{output, quantity};

const EXIT_STATUSES: &str = "\
Exit status: 0 done, 1 this machine did not let it, 2 the command line is wrong, \
3 the broker cannot be reached, 4 the broker refused, 5 a check failed, 6 it took too long.";

/// A message broker whose first quality is latency on one node.
#[derive(Debug, Parser)]
#[command(
    name = "courser",
    version,
    after_help = EXIT_STATUSES,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    subcommand_required = true
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a broker until SIGINT or SIGTERM
    Serve(ServeOptions),
    /// Send messages and wait until the broker has acknowledged each
    Send(SendOptions),
    /// Print messages and acknowledge each once it is printed
    Receive(ReceiveOptions),
    /// Print what the broker counts, in all and for each destination
    Stats(Asking),
    /// See, create, change and delete topics
    #[command(subcommand)]
    Topic(DestinationVerb),
    /// See, create, change and delete queues
    #[command(subcommand)]
    Queue(DestinationVerb),
    /// See and delete subscriptions
    #[command(subcommand)]
    Sub(SubscriptionVerb),
    /// See producers, and shut one out
    #[command(subcommand)]
    Producer(ProducerVerb),
    /// See connections, and end one
    #[command(subcommand)]
    Conn(ConnectionVerb),
    /// Measure, always beside the floor of the same run
    Bench(BenchOptions),
    /// See whether a data directory that no broker has is whole
    Check(CheckOptions),
    /// Print what a data directory that no broker has holds, entry by entry, or what a
    /// running broker keeps of a topic
    Dump(DumpOptions),
    /// Print every bound and what happens when it is reached
    Limits(LimitsOptions),
}

/// `courser serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// Where to accept connections; port 0 lets the system choose
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7420", value_parser = socket_address)]
    pub(crate) listen: SocketAddr,
    /// Which cpus shards run on, one on each: auto, none (one, not pinned) or such as 1-3
    #[arg(long, value_name = "LIST", allow_negative_numbers = true)]
    pub(crate) cores: Option<Cores>,
    /// How many shards, on cpus chosen for them
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = value_parser!(u16).range(1..),
        conflicts_with = "cores"
    )]
    pub(crate) shards: Option<u16>,
    /// What to do without work: spin, adaptive or park
    #[arg(long, value_name = "STRATEGY", default_value_t = IdleStrategy::Adaptive)]
    pub(crate) idle: IdleStrategy,
    /// How long an adaptive shard spins before it sleeps: auto or such as 50us
    #[arg(long, value_name = "DURATION", default_value = "auto", value_parser = spin_budget)]
    pub(crate) spin_budget: SpinBudget,
    /// How to reach the network: auto, io_uring or epoll
    #[arg(long, value_name = "TRANSPORT", default_value_t = Transport::Auto)]
    pub(crate) transport: Transport,
    /// The memory bound, such as 256MiB
    #[arg(long, value_name = "SIZE", default_value = "1GiB", allow_negative_numbers = true, value_parser = quantity::size)]
    pub(crate) memory: u64,
    /// Where what is to be durable is kept
    #[arg(long, value_name = "DIR", default_value = "./courser-data")]
    pub(crate) data_dir: PathBuf,
    /// Keep nothing: whatever is stored ends with the process
    #[arg(long, conflicts_with = "data_dir")]
    pub(crate) ephemeral: bool,
    /// How much each shard journals before it makes a checkpoint, which bounds what a start
    /// reads
    #[arg(long, value_name = "SIZE", default_value = "64MiB", allow_negative_numbers = true, value_parser = quantity::size)]
    pub(crate) checkpoint_bytes: u64,
    /// How much of what is stored may lie in page files beside the journals because memory is
    /// short, of all shards, and no more than some twenty times the memory; 0 keeps all of it
    /// in memory
    #[arg(long, value_name = "SIZE", default_value = "64GiB", allow_negative_numbers = true, value_parser = quantity::size)]
    pub(crate) backlog_bytes: u64,
    /// Whether a destination that is opened and does not exist is created
    #[arg(long, value_name = "ON|OFF", value_enum, default_value_t = Switch::On)]
    pub(crate) auto_create: Switch,
    /// Accept connections from other machines, without asking who they are
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// It is so
    On,
    /// It is not so
    Off,
}

/// `--spin-budget`: none is what fits the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpinBudget(pub(crate) Option<Duration>);

/// Where the broker is.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The broker's address
    #[arg(long = "connect", value_name = "HOST:PORT", default_value = "127.0.0.1:7420", value_parser = Endpoints::parse)]
    pub(crate) endpoints: Endpoints,
}

impl Connection {
    /// Connects once, to ask and to go.
    pub(crate) fn admin(&self) -> Result<Admin, ConnectError> {
        let client = Client::options()
            .name("courser")
            .reconnect_for(Duration::ZERO)
            .connect(self.endpoints.clone())?;
        Ok(client.admin())
    }
}

/// `courser send`.
#[derive(Debug, Args)]
pub(crate) struct SendOptions {
    /// queue:NAME, topic:NAME, or NAME for a queue
    #[arg(value_name = "DEST", value_parser = Destination::parse)]
    pub(crate) destination: Destination,
    /// The messages; without any, each line of standard input is one
    #[arg(value_name = "MESSAGE", conflicts_with = "count")]
    pub(crate) messages: Vec<String>,
    /// Send so many made-up messages, each with its number
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = quantity::count)]
    pub(crate) count: Option<u64>,
    /// The size of made-up messages, such as 64 or 1KiB
    #[arg(long, value_name = "SIZE", default_value = "64", requires = "count", allow_negative_numbers = true, value_parser = quantity::size_u32)]
    pub(crate) size: u32,
    /// The partitions that the destination is to have
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = value_parser!(u32).range(1..))]
    pub(crate) partitions: Option<u32>,
    /// Keep every message in the one partition that this key leads to
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// How much each partition keeps of what every subscription has acknowledged
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = quantity::size)]
    pub(crate) retain: Option<u64>,
    /// Acknowledge each message when it would survive a power cut: the default
    #[arg(long, overrides_with = "no_persistent")]
    pub(crate) persistent: bool,
    /// Acknowledge each message when it is in the broker's memory
    #[arg(long, overrides_with = "persistent")]
    pub(crate) no_persistent: bool,
    /// Write a line for each acknowledgement, in their order:
    /// sequence, partition, offset, CRC-32C of the body, producer
    #[arg(long, value_name = "FILE")]
    pub(crate) ack_log: Option<PathBuf>,
    /// How long each message may take to be acknowledged
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = quantity::duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// `courser receive`.
#[derive(Debug, Args)]
pub(crate) struct ReceiveOptions {
    /// queue:NAME, topic:NAME, or NAME for a queue
    #[arg(value_name = "DEST", value_parser = Destination::parse)]
    pub(crate) destination: Destination,
    /// The topic's subscription; without one, a subscription that ends with this command
    #[arg(long, value_name = "NAME")]
    pub(crate) subscription: Option<String>,
    /// How the consumers of the topic's subscription share it
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_enum,
        requires = "subscription"
    )]
    pub(crate) kind: Option<SubscriptionType>,
    /// Where a new subscription begins: earliest, latest or an offset
    #[arg(long, value_name = "START", default_value = "earliest", allow_negative_numbers = true, value_parser = start)]
    pub(crate) from: Start,
    /// End after so many messages
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// With --count: how long all of them may take. Without: how long a silence ends it
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Write a line for each message, in their order:
    /// partition, offset, CRC-32C of the body, producer, sequence
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
    /// Print the bodies and nothing between them
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// How consumers share a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SubscriptionType {
    /// There is one at a time
    Exclusive,
    /// Each message goes to whoever is free
    Shared,
    /// One is active in each partition, the others stand by
    Failover,
    /// Each key has one, which gets its messages in order
    KeyShared,
}

/// `courser bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    /// What to measure
    #[arg(value_enum, default_value_t = Workload::Quick)]
    pub(crate) workload: Workload,
    /// Sizes of bodies, such as 64,1KiB
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', allow_negative_numbers = true, value_parser = quantity::size_u32)]
    pub(crate) payload: Vec<u32>,
    /// How long to measure, in all and about
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub(crate) seconds: Option<Duration>,
    /// open, idle: loads as messages per second or as shares of saturation, such as 10%,50%,90% or 100k
    #[arg(long, value_name = "RATE,...", value_delimiter = ',')]
    pub(crate) rate: Vec<Rate>,
    /// idle, scale: connections that do nothing
    #[arg(long, value_name = "N")]
    pub(crate) connections: Option<u32>,
    /// open: the most messages on their way
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = value_parser!(u32).range(1..))]
    pub(crate) window: Option<u32>,
    /// floor: write blocks to the device of this directory, too; durable: keep the journal
    /// in a fresh directory there, and not in the current one
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// durable: bytes of messages that nobody reads, beside which it is measured; 4GiB unless
    /// said otherwise, and the device needs four times as much
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = quantity::size)]
    pub(crate) backlog: Option<u64>,
    /// How the broker inside waits for work
    #[arg(long, value_enum, default_value_t = BenchIdle::Busy, conflicts_with = "connect")]
    pub(crate) idle: BenchIdle,
    /// A broker that runs already; without it, one is started inside for as long as it takes
    #[arg(long, value_name = "IP:PORT", value_parser = socket_address)]
    pub(crate) connect: Option<SocketAddr>,
    /// The cpu of the broker and of its floors
    #[arg(
        long,
        value_name = "CPU",
        allow_negative_numbers = true,
        requires = "client_core"
    )]
    pub(crate) broker_core: Option<usize>,
    /// The cpu of the client
    #[arg(
        long,
        value_name = "CPU",
        allow_negative_numbers = true,
        requires = "broker_core"
    )]
    pub(crate) client_core: Option<usize>,
    /// Write the report there as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What `courser bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// All of the broker's workloads at two sizes, within a minute
    Quick,
    /// The least that any program could take on this machine, without a broker
    Floor,
    /// Produce to acknowledgement, one message in flight
    Rtt,
    /// Producer to consumer, one message in flight
    E2e,
    /// Acknowledged messages, a window in flight
    Throughput,
    /// Produce to acknowledgement from intended times, at several rates
    Open,
    /// Processor time: with a thousand connections and no work, and of a message
    Idle,
    /// What a thousand partitions, a thousand silent connections and 256 busy ones cost
    Scale,
    /// Produce to flushed acknowledgement beside the device, and a start on what was kept
    Durable,
}

/// How a measured broker waits for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchIdle {
    /// It spins through every pause
    Busy,
    /// It spins as long as it would by default, and then sleeps
    Adaptive,
}

impl From<BenchIdle> for courser_bench::workload::Idle {
    fn from(idle: BenchIdle) -> Self {
        match idle {
            BenchIdle::Busy => Self::Busy,
            BenchIdle::Adaptive => Self::Adaptive,
        }
    }
}

impl From<Workload> for courser_bench::Workload {
    fn from(workload: Workload) -> Self {
        match workload {
            Workload::Quick => Self::Quick,
            Workload::Floor => Self::Floor,
            Workload::Rtt => Self::RoundTrip,
            Workload::E2e => Self::EndToEnd,
            Workload::Throughput => Self::Throughput,
            Workload::Open => Self::Open,
            Workload::Idle => Self::Idle,
            Workload::Scale => Self::Scale,
            Workload::Durable => Self::Durable,
        }
    }
}

/// `courser check`.
#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// The data directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `courser dump`.
#[derive(Debug, Args)]
pub(crate) struct DumpOptions {
    /// A data directory that no broker has; or queue:NAME or topic:NAME, what a broker keeps there
    #[arg(value_name = "DIR|DEST", value_parser = OsStringValueParser::new().try_map(source))]
    pub(crate) source: Source,
    /// Of a directory only what is about one destination
    #[arg(long, value_name = "DEST", value_parser = Destination::parse)]
    pub(crate) destination: Option<Destination>,
    /// Print a JSON object in each line
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// What is dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// What a directory holds.
    Directory(PathBuf),
    /// What a running broker keeps.
    Destination(Destination),
}

/// `courser limits`.
#[derive(Debug, Args)]
pub(crate) struct LimitsOptions {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads the command line of this process. What to do comes back, or, where help was
/// asked for or a mistake was found, the status to end with once that is printed.
pub(crate) fn parse() -> Result<Verb, ExitCode> {
    CommandLine::try_parse()
        .and_then(|line| consistent(line.verb))
        .map_err(|error| answer(&error))
}

/// Refuses what does not go together and depends on a value.
fn consistent(verb: Verb) -> Result<Verb, clap::Error> {
    match &verb {
        Verb::Dump(DumpOptions {
            source: Source::Destination(name),
            destination: Some(_),
            ..
        }) => Err(CommandLine::command().error(
            ErrorKind::ArgumentConflict,
            format!("--destination chooses from a data directory, and {name} is none"),
        )),
        _ => Ok(verb),
    }
}

/// Prints what clap has to say, and decides the status.
///
/// Help goes to standard output with status 0, also for a command line without a
/// verb: it asks for nothing, and is answered with what there is.
fn answer(error: &clap::Error) -> ExitCode {
    let text = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => match output::print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => error.status().into(),
        },
        _ => {
            let verb = std::env::args().nth(1);
            let verb = verb.filter(|verb| CommandLine::command().find_subcommand(verb).is_some());
            output::remark(&mistake(&text.to_string(), verb.as_deref()));
            Status::Usage.into()
        }
    }
}

/// The mistake in one line and what to do in a second, from clap's several
/// paragraphs: the mistake, tips, the usage, and where there is more.
fn mistake(text: &str, verb: Option<&str>) -> String {
    let mut paragraphs = text.split("\n\n");
    // A reason may end in a line of its own that says what to do.
    let first = paragraphs.next().unwrap_or_default();
    let (mistake, fix) = match first.split_once("\n  fix ") {
        Some((mistake, fix)) => (mistake, Some(fix)),
        None => (first, None),
    };
    let mistake = one_line(mistake);
    let tips = paragraphs.filter_map(|paragraph| paragraph.trim().strip_prefix("tip: "));
    let mut fixes: Vec<_> = fix.into_iter().chain(tips).map(one_line).collect();
    fixes.push(match verb {
        Some(verb) => format!("courser {verb} --help"),
        None => String::from("courser --help"),
    });
    format!("{mistake}\n  fix    {}", fixes.join(" · "))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| String::from("an address is IP:PORT, such as 127.0.0.1:7420 or [::1]:0"))
}

fn spin_budget(text: &str) -> Result<SpinBudget, String> {
    match text {
        "auto" => Ok(SpinBudget(None)),
        text => quantity::duration(text)
            .map(|budget| SpinBudget(Some(budget)))
            .map_err(|error| format!("auto, or how long: {error}")),
    }
}

/// A destination says its kind here; whatever does not is a path, and so is `./topic:x`.
fn source(text: OsString) -> Result<Source, String> {
    match text.to_str() {
        Some(name) if name.starts_with("queue:") || name.starts_with("topic:") => {
            let parsed = Destination::parse(name);
            let parsed = parsed.map_err(|refusal| refusal.to_string());
            parsed.map(Source::Destination)
        }
        _ => Ok(Source::Directory(text.into())),
    }
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        offset => offset
            .parse()
            .map(|offset| Start::Offset(Offset(offset)))
            .map_err(|_| String::from("a start is earliest, latest or an offset, such as 0")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| String::from("a number of seconds above zero, such as 30"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_mistake_is_one_line_and_what_to_do_another() {
        for (line, expected) in [
            (
                "courser serve --corse 1",
                "error: unexpected argument '--corse' found\n  fix    a similar argument exists: '--cores' · courser serve --help",
            ),
            (
                "courser serve --cores x",
                "error: invalid value 'x' for '--cores <LIST>': \"x\" is not a list of cpus\n  fix    cores = \"auto\", \"none\" or a list such as \"1\", \"1-3\" or \"0,2\" · courser serve --help",
            ),
            (
                "courser receive",
                "error: the following required arguments were not provided: <DEST>\n  fix    courser receive --help",
            ),
            (
                "courser serve --memory 1GB",
                "error: invalid value '1GB' for '--memory <SIZE>': a size is a number of bytes or of KiB, MiB or GiB, such as 512, 64KiB or 1MiB\n  fix    courser serve --help",
            ),
        ] {
            let error = CommandLine::try_parse_from(line.split(' ')).expect_err(line);
            let verb = line.split(' ').nth(1);
            assert_eq!(mistake(&error.render().to_string(), verb), expected);
        }
    }
}
