//! The broker that is measured: one in this process, or one somewhere else.
//!
//! An embedded broker spins while it is measured and sleeps while a floor is:
//! it is adaptive with a spin budget far above any pause within a slice, and
//! [`Target::rest`] waits for longer than that. A busy turn of an adaptive shard
//! is the turn of a spinning one, so nothing is given away by it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use courser_core::counters::Counter;
use courser_transport::affinity::Cores as ShardCores;
use courser_transport::disk::ReadSize;
use courser_transport::{Broker, BrokerConfig};

use super::Idle;
use crate::error::BenchError;
use crate::pin::Cores;

/// How long an embedded broker spins without work: above what a client takes
/// between two messages even if the host takes its core away for a while.
const SPIN_BUDGET: Duration = Duration::from_millis(1);

/// The same of one that is measured with flushes: above what most devices take for one.
const SPIN_BUDGET_KEEPING: Duration = Duration::from_millis(5);

/// How long a broker that we did not configure is given to come to rest.
const REMOTE_REST: Duration = Duration::from_millis(5);

/// What is measured.
#[derive(Debug)]
pub(super) enum Target {
    /// In this process, on the broker's core.
    Embedded(Box<Broker>),
    /// Started by somebody else.
    Remote(SocketAddr),
}

impl Target {
    /// The broker at `address`, or one of our own. To be called on a thread that
    /// is not pinned: what the broker starts besides its shard inherits the mask.
    ///
    /// # Errors
    /// If the broker does not start.
    pub(super) fn reach(
        address: Option<SocketAddr>,
        cores: Cores,
        idle: Idle,
    ) -> Result<Self, BenchError> {
        match address {
            Some(address) => Ok(Self::Remote(address)),
            None => Self::start(cores, idle, None, |config| config),
        }
    }

    /// A broker of our own that keeps what is flushed in that directory. As
    /// [`Self::reach`], not to be called on a pinned thread.
    ///
    /// # Errors
    /// If the broker does not start.
    pub(super) fn keeping(directory: &Path, cores: Cores, idle: Idle) -> Result<Self, BenchError> {
        Self::keeping_with(directory, cores, idle, |config| config)
    }

    /// As [`Self::keeping`], with what `adjust` makes of its configuration.
    ///
    /// # Errors
    /// If the broker does not start.
    pub(super) fn keeping_with(
        directory: &Path,
        cores: Cores,
        idle: Idle,
        adjust: impl FnOnce(BrokerConfig) -> BrokerConfig,
    ) -> Result<Self, BenchError> {
        Self::start(cores, idle, Some(directory.to_owned()), adjust)
    }

    fn start(
        cores: Cores,
        idle: Idle,
        data_directory: Option<PathBuf>,
        adjust: impl FnOnce(BrokerConfig) -> BrokerConfig,
    ) -> Result<Self, BenchError> {
        let cores: ShardCores = cores.broker.to_string().parse()?;
        let broker = Broker::start(adjust(BrokerConfig {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            cores,
            spin_budget: match (idle, &data_directory) {
                (Idle::Busy, None) => Some(SPIN_BUDGET),
                (Idle::Busy, Some(_)) => Some(SPIN_BUDGET_KEEPING),
                (Idle::Adaptive, _) => None,
            },
            data_directory,
            ..BrokerConfig::default()
        }))?;
        Ok(Self::Embedded(Box::new(broker)))
    }

    /// Where it accepts connections.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Embedded(broker) => broker.address(),
            Self::Remote(address) => *address,
        }
    }

    /// Returns once the broker no longer takes time from its core. Nothing may be
    /// on its way to it.
    pub(super) fn rest(&self) {
        thread::sleep(match self {
            Self::Embedded(broker) => broker.setting().spin_budget * 2,
            Self::Remote(_) => REMOTE_REST,
        });
    }

    /// The thread of the shard, if it is in this process.
    pub(super) fn thread(&self) -> Option<u32> {
        match self {
            Self::Embedded(broker) => {
                let shard = broker.setting().shards.first()?;
                u32::try_from(shard.thread).ok()
            }
            Self::Remote(_) => None,
        }
    }

    /// A counter of an embedded broker, summed over its shards.
    pub(super) fn count(&self, counter: Counter) -> Option<u64> {
        match self {
            Self::Embedded(broker) => Some(broker.stats().map(|stats| stats.read(counter)).sum()),
            Self::Remote(_) => None,
        }
    }

    /// What its start read of what was kept: nothing if none of ours.
    pub(super) fn read_at_start(&self) -> ReadSize {
        match self {
            Self::Embedded(broker) => {
                let data = broker.setting().data.as_ref();
                data.map(|data| data.read).unwrap_or_default()
            }
            Self::Remote(_) => ReadSize::default(),
        }
    }

    /// In a line, for a reader of the report.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Embedded(broker) => {
                let setting = broker.setting();
                let rings: Vec<_> = setting.shards.iter().map(|s| s.ring.as_str()).collect();
                format!(
                    "embedded, {}; idle {}, spins {} µs before it sleeps",
                    rings.join("; "),
                    setting.idle,
                    setting.spin_budget.as_micros()
                )
            }
            Self::Remote(address) => format!("at {address}, started by somebody else"),
        }
    }
}
