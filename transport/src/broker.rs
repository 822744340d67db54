//! A broker in this process: a door, shards, and the threads they run on.
//!
//! ```text
//!  start   every shard's thread: its place, ring and memory -> ready -.
//!          all are ready: the ways to each of them          <---------'
//!          -> the door opens
//!  stop    the door closes -> every shard says goodbye, and stays until all have
//! ```
//!
//! [`Broker::start`] returns when connections are accepted; [`Broker::stop`] when
//! everybody was said goodbye to. The binary and the benchmark use the same one.
//!
//! Embedded it may have no socket, and hands out in-process links
//! ([`Broker::connector`]); and no thread ([`Broker::without_threads`]), where whoever
//! waits for it drives it, or calls [`Broker::turn`].

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::abort;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use courser_core::error::Refusal;
use courser_core::id::{Installation, ShardIndex};
use courser_core::limits;
use courser_core::mesh::{self, Ends, mesh};
use courser_core::shard::{MemoryPlan, Shard, ShardConfig};

use crate::affinity::{AffinityError, Cores, Placement, Topology};
use crate::disk::{DataDirectory, DiskFile, ReadSize, Recovery};
use crate::door::{DoorControl, DoorStats, Porter, ShardEntrance};
use crate::doorbell::Doorbell;
use crate::engine::Engine;
use crate::handoff::{Inbox, handoff};
use crate::idle::{Idle, IdleStrategy, SpinRefused};
use crate::in_process::{self, Connector};
use crate::planted::{self, Fault};
use crate::ring::epoll::EpollRing;
use crate::ring::io_uring::IoUringRing;
use crate::ring::{IoUringRefused, Ring, RingSize};
use crate::stats::{Publisher, ShardStats};
use crate::store::{Extent, Store, StoreError};
use crate::sys::{self, Errno};
use crate::worker::{Arrival, Company, Control, Worker, Workers};

/// Which ring the shards use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// io_uring, or epoll where it is refused.
    #[default]
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

impl std::str::FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(UnknownTransport(text.to_owned())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// A word that names no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transport = \"{0}\" is none of \"auto\", \"io_uring\" and \"epoll\"")]
pub struct UnknownTransport(pub String);

/// What a broker is started with.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where to accept connections, if anywhere; port 0 lets the kernel choose.
    pub listen: Option<SocketAddr>,
    /// How many in-process links there may be at the same time. Their rings, two of
    /// [`limits::IN_PROCESS_RING_SIZE`] each, are within the memory bound.
    pub links_in_process: u16,
    /// Which ring.
    pub transport: Transport,
    /// Which processors.
    pub cores: Cores,
    /// How many shards; by default one for each of the processors.
    pub shards: Option<NonZeroU16>,
    /// What to do without work.
    pub idle: IdleStrategy,
    /// How long an adaptive shard spins before it sleeps; by default what fits the
    /// machine, see [`IdleStrategy::spin_budget`].
    pub spin_budget: Option<Duration>,
    /// Spin even where spinning threads leave no processor to others.
    pub spin_regardless: bool,
    /// The memory bound in bytes, at least [`limits::MEMORY_MIN`].
    pub memory: u64,
    /// How large each shard's ring is.
    pub ring: RingSize,
    /// Whether a destination that is opened and does not exist is created.
    pub auto_create: bool,
    /// Where what is to be durable is kept; nothing is, without. Made if it is not there.
    pub data_directory: Option<PathBuf>,
    /// A checkpoint is made each time that so many bytes were journalled, by each shard; or
    /// as many as the last one has, if that is more.
    pub checkpoint_bytes: u64,
    /// How many bytes of messages may lie in page files because memory is short, of all
    /// shards; 0 for none. At least a page file of 64 MiB for each shard.
    pub backlog_bytes: u64,
}

impl Default for BrokerConfig {
    /// Loopback, port 7420, everything chosen to fit the machine.
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 7420))),
            links_in_process: 0,
            transport: Transport::default(),
            cores: Cores::default(),
            shards: None,
            idle: IdleStrategy::default(),
            spin_budget: None,
            spin_regardless: false,
            memory: limits::MEMORY_DEFAULT,
            ring: RingSize {
                slots: limits::LINKS_MAX,
                ..RingSize::default()
            },
            auto_create: true,
            data_directory: None,
            checkpoint_bytes: limits::CHECKPOINT_BYTES.into(),
            backlog_bytes: limits::BACKLOG_BYTES,
        }
    }
}

impl BrokerConfig {
    /// Of a broker that is part of an application: no socket, one shard, wherever the
    /// kernel puts it, and a quarter of the default memory bound.
    #[must_use]
    pub fn embedded() -> Self {
        Self {
            listen: None,
            links_in_process: limits::LINKS_IN_PROCESS,
            cores: Cores::Unpinned,
            shards: NonZeroU16::new(1),
            memory: limits::MEMORY_DEFAULT / 4,
            ..Self::default()
        }
    }

    /// Bytes of the rings of all in-process links.
    fn links_size(&self) -> u64 {
        u64::from(self.links_in_process) * in_process::LINK_SIZE
    }
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {}\n  fix    choose another address, or stop what listens there (ss -ltnp)",
        Errno::of(source)
    )]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The processors are not to be had.
    #[error(transparent)]
    Cores(#[from] AffinityError),
    /// There are more shards than a broker may have.
    #[error(
        "{shards} shards are asked for, a broker has at most {}",
        limits::SHARDS_MAX
    )]
    TooManyShards {
        /// What was asked for.
        shards: usize,
    },
    /// io_uring was asked for and is refused.
    #[error(transparent)]
    IoUring(#[from] IoUringRefused),
    /// The memory bound is too small.
    #[error("{}", too_little(*bound, *shards, *links_in_process))]
    Memory {
        /// What was asked for, in bytes.
        bound: u64,
        /// How many shards share it.
        shards: u16,
        /// How many in-process links have their rings in it.
        links_in_process: u16,
    },
    /// A broker without threads is asked for something that it cannot have.
    #[error(
        "a broker without threads has one shard and no io_uring, whose rings belong to a thread; {asked} is asked for\n  fix    ask for less, or start the broker with threads"
    )]
    WithoutThreads {
        /// What that is.
        asked: String,
    },
    /// There is not so much memory.
    #[error(
        "a memory bound of {} MiB cannot be had: this machine has {} MiB\n  fix    choose a bound below that; if it is, ulimit -v limits this process",
        bound / MIB,
        total / MIB
    )]
    MemoryNotThere {
        /// What was asked for, in bytes.
        bound: u64,
        /// What the machine has, in bytes.
        total: u64,
    },
    /// What is kept cannot be used.
    #[error("cannot start on what is kept: {0}")]
    Store(#[from] StoreError),
    /// There is to be a backlog beyond memory, and too little of it.
    #[error(
        "a backlog of {bytes} bytes beyond memory is too little for {shards} shards, which have a \
         page file of {} MiB each at least\n  fix    a backlog of at least {} MiB, or 0 for none",
        PAGE_FILE_SIZE / MIB,
        u64::from(*shards) * PAGE_FILE_SIZE / MIB
    )]
    Backlog {
        /// What was asked for.
        bytes: u64,
        /// How many shards share it.
        shards: u16,
    },
    /// The kernel refused something that every broker needs.
    #[error("the kernel refused {what}: {errno}")]
    Kernel {
        /// What it was.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

/// Bytes of a page file.
const PAGE_FILE_SIZE: u64 = limits::PAGE_SIZE as u64 * limits::PAGES_PER_FILE as u64;

/// What the start's report counts in.
const KIB: u64 = 1024;
const MIB: u64 = 1024 * 1024;

fn too_little(bound: u64, shards: u16, links: u16) -> String {
    let (bound, least) = (bound / MIB, limits::MEMORY_MIN / MIB);
    let rings = u64::from(links) * in_process::LINK_SIZE;
    let needed = (memory_needed(shards) + rings).div_ceil(MIB);
    match (shards, links) {
        (1, 0) => format!("a memory bound of {bound} MiB is below the least of {least} MiB"),
        (1, _) => format!(
            "a memory bound of {bound} MiB is too little for a shard, which needs {least} MiB, and {links} in-process links\n  fix    a bound of at least {needed} MiB, or fewer links"
        ),
        _ => format!(
            "a memory bound of {bound} MiB is too little for {shards} shards, which need {least} MiB each and rings between them\n  fix    a bound of at least {needed} MiB, or fewer shards"
        ),
    }
}

/// The least memory that so many shards need.
fn memory_needed(shards: u16) -> u64 {
    mesh::size(shards) + u64::from(shards) * limits::MEMORY_MIN
}

impl StartError {
    /// The code under which the documentation explains it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "C1301",
            Self::Cores(error) => error.code(),
            Self::TooManyShards { .. } => "C1206",
            Self::IoUring(refused) => refused.code(),
            Self::Memory { .. } => "C1302",
            Self::Kernel { .. } => "C1303",
            Self::MemoryNotThere { .. } => "C1304",
            Self::WithoutThreads { .. } => "C1305",
            Self::Store(_) => "C1306",
            Self::Backlog { .. } => "C1307",
        }
    }

    fn kernel(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Kernel { what, errno }
    }
}

/// What a running broker runs with; its `Display` is the start's report.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Where connections are accepted, if anywhere.
    pub address: Option<SocketAddr>,
    /// Each shard.
    pub shards: Vec<ShardSetting>,
    /// What a shard does without work.
    pub idle: IdleStrategy,
    /// How long an adaptive shard spins before it sleeps.
    pub spin_budget: Duration,
    /// How each shard divides its part of the memory bound.
    pub memory: MemoryPlan,
    /// Whether a strategy was replaced.
    pub spin_refused: Option<SpinRefused>,
    /// Where what is durable is kept, if anything is.
    pub data: Option<DataSetting>,
}

/// What is kept, and how far it goes back.
#[derive(Debug, Clone)]
pub struct DataSetting {
    /// The directory.
    pub directory: PathBuf,
    /// How often a broker has started on it, this time included.
    pub run: u64,
    /// How much was read.
    pub read: ReadSize,
    /// Writes that were cut short, and had been told to nobody.
    pub cut: Vec<String>,
}

impl DataSetting {
    fn of(recovery: &Recovery) -> Self {
        let cut = recovery.tails().map(|(file, tail)| {
            let journal = file.journal;
            format!("journal {journal}: {tail}; nobody was told of it")
        });
        Self {
            directory: recovery.directory().path().to_owned(),
            run: recovery.run().0,
            read: recovery.size(),
            cut: cut.collect(),
        }
    }
}

/// What one shard runs with.
#[derive(Debug, Clone)]
pub struct ShardSetting {
    /// Its processor.
    pub placement: Placement,
    /// Whether the kernel keeps that processor free of other work.
    pub isolated: bool,
    /// Its ring and the features in use.
    pub ring: String,
    /// Why it is not io_uring, if that was tried.
    pub io_uring_refused: Option<IoUringRefused>,
    /// Its thread, as tools show it.
    pub thread: i32,
}

impl Setting {
    /// What the operator should know, each with its code, as whole messages.
    #[must_use]
    pub fn warnings(&self) -> Vec<(&'static str, String)> {
        let refused = self
            .shards
            .first()
            .and_then(|shard| shard.io_uring_refused.as_ref())
            .map(|refused| (refused.code(), format!("{refused}\n  now    using epoll")));
        let spin = self
            .spin_refused
            .map(|refused| (SpinRefused::CODE, refused.to_string()));
        let cut = self.data.iter().flat_map(|data| &data.cut);
        let cut = cut.map(|cut| ("C1307", cut.clone()));
        refused.into_iter().chain(spin).chain(cut).collect()
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => writeln!(f, "listening  {address}")?,
            None => writeln!(f, "listening  nowhere, in-process links only")?,
        }
        for (index, shard) in self.shards.iter().enumerate() {
            let isolated = match (shard.placement, shard.isolated) {
                (Placement::Unpinned, _) => "",
                (_, true) => " (isolated)",
                (_, false) => " (not isolated)",
            };
            writeln!(
                f,
                "shard {index}    {}{isolated}, {}",
                shard.placement, shard.ring
            )?;
        }
        match &self.data {
            Some(data) => {
                let directory = data.directory.display();
                write!(f, "data       {directory}, run {}", data.run)?;
                let ReadSize {
                    checkpoints,
                    journals,
                } = data.read;
                match checkpoints {
                    0 if journals == 0 => writeln!(f)?,
                    0 => writeln!(f, ": read {} KiB of journals", journals / KIB)?,
                    _ => writeln!(
                        f,
                        ": read {} KiB of checkpoints and {} KiB journalled since",
                        checkpoints / KIB,
                        journals / KIB
                    )?,
                }
            }
            None => writeln!(
                f,
                "data       nothing is kept: what is stored ends with this process"
            )?,
        }
        write!(f, "idle       {}", self.idle)?;
        if self.idle == IdleStrategy::Adaptive {
            write!(
                f,
                ", spins {} us before it sleeps",
                self.spin_budget.as_micros()
            )?;
        }
        let memory = &self.memory;
        f.write_str("\nmemory     ")?;
        if let several @ 2.. = self.shards.len() {
            write!(f, "{several} times ")?;
        }
        write!(
            f,
            "{} MiB: {} for messages (of which {} on their way in, {} on their way out), {} for the rest",
            memory.bound / MIB,
            memory.arena / MIB,
            memory.ingress / MIB,
            memory.egress / MIB,
            memory.fixed / MIB
        )
    }
}

/// A running broker. Dropped, it stops as [`Broker::stop`] does.
#[derive(Debug)]
pub struct Broker {
    setting: Setting,
    door: Option<Door>,
    shards: Vec<ShardThread>,
    door_stats: Arc<DoorStats>,
    connector: Connector,
    /// The broker itself, if it has no thread.
    engine: Option<Arc<Engine>>,
}

#[derive(Debug)]
struct Door {
    control: DoorControl,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct ShardThread {
    control: Control,
    doorbell: Doorbell,
    stats: ShardStats,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts the threads and returns when connections are accepted.
    pub fn start(config: BrokerConfig) -> Result<Self, StartError> {
        let topology = Topology::read()?;
        let placements = place(&config, &topology)?;
        let shards = u16::try_from(placements.len()).unwrap_or(u16::MAX);
        let extent = extent(&config, shards)?;
        let Outset {
            mut setting,
            listener,
            installation,
            recovery,
            departures,
            departed,
        } = Outset::new(&config, &topology, placements.len())?;

        let mesh = mesh(shards).expect("the sizes of its rings are those of rings");
        let mut begun = Vec::new();
        for (ends, placement) in mesh.into_iter().zip(placements) {
            let (go, told) = mpsc::channel();
            let plan = ShardPlan {
                shard: shard_config(&config, installation, ends.shard(), setting.memory)?,
                recovery: recovery.clone(),
                extent,
                ends,
                told,
                placement,
                isolated: matches!(placement, Placement::Pinned(cpu) if topology.isolated.contains(cpu)),
                transport: config.transport,
                ring: config.listen.map(|_| config.ring),
                idle: setting.idle,
                spin_budget: setting.spin_budget,
                control: Control::default(),
            };
            begun.push((go, begin_shard(plan)?));
        }
        // All of them make their memory at the same time. One that fails has the others
        // end as well, since nobody tells them to go on.
        let mut threads = Shards(Vec::new());
        let mut entrances = Vec::new();
        let mut goes = Vec::new();
        for (go, begun) in begun {
            let (thread, entrance, shard) = begun.ready()?;
            threads.0.push(thread);
            setting.shards.push(shard);
            entrances.push(entrance);
            goes.push(go);
        }
        place_checkpoints(recovery.as_deref(), shards)?;
        let ways: Vec<_> = (entrances.iter())
            .map(|entrance| entrance.sender.clone())
            .collect();
        let company = Company::of(entrances.len());
        let unflushed = Company::of(entrances.len());
        for (own, go) in (0..).map(ShardIndex).zip(goes) {
            let workers = Workers {
                own,
                ways: ways.clone(),
                company: company.clone(),
                unflushed: unflushed.clone(),
                departures: departures.clone(),
            };
            go.send(workers)
                .expect("a shard that is ready waits for it");
        }
        let (door, door_stats) = open_door(listener, entrances, departed)?;
        Ok(Self {
            setting,
            door: Some(door),
            shards: std::mem::take(&mut threads.0),
            door_stats,
            connector: Connector::new(ways, config.links_in_process, None),
            engine: None,
        })
    }

    /// A broker of one shard that runs on the threads of those who wait for it: a call of
    /// a client that waits drives it as well as its link, and so does [`Broker::turn`].
    /// If it is to listen, the door has a thread all the same.
    ///
    /// # Errors
    ///
    /// As for [`Broker::start`], and if more shards or io_uring are asked for.
    pub fn without_threads(config: BrokerConfig) -> Result<Self, StartError> {
        let asked = match (config.shards, config.transport) {
            (Some(shards), _) if shards.get() > 1 => Some(format!("{shards} shards")),
            (_, Transport::IoUring) => Some(String::from("io_uring")),
            _ => None,
        };
        if let Some(asked) = asked {
            return Err(StartError::WithoutThreads { asked });
        }
        let topology = Topology::read()?;
        let extent = extent(&config, 1)?;
        let Outset {
            mut setting,
            listener,
            installation,
            recovery,
            departures,
            departed,
        } = Outset::new(&config, &topology, 1)?;
        let mut ring = epoll_ring(config.listen.map(|_| config.ring))?;
        let shard = shard_config(&config, installation, ShardIndex(0), setting.memory)?;
        let mut shard = make_shard(shard, 1, config.links_in_process)?;
        let kept = recovery.as_deref();
        let mut store = open_store(kept, extent, &mut shard, &mut ring)?;
        place_checkpoints(kept, 1)?;
        if let Some(store) = &mut store {
            store.placed(&mut shard);
        }
        let (entrance, inbox) = entrance(&ring, &shard);
        let (way, stats) = (entrance.sender.clone(), entrance.stats.clone());
        setting.shards.push(ShardSetting {
            placement: Placement::Unpinned,
            isolated: false,
            ring: ring.description(),
            io_uring_refused: None,
            thread: sys::thread_id(),
        });
        let workers = Workers {
            own: ShardIndex(0),
            ways: vec![way.clone()],
            company: Company::of(1),
            unflushed: Company::of(1),
            departures,
        };
        let (control, doorbell) = (Control::default(), ring.doorbell().clone());
        let worker = Worker::new(
            ring,
            (shard, store),
            inbox,
            workers,
            control.clone(),
            Idle::new(setting.idle, setting.spin_budget),
            Publisher::new(stats.clone()),
        );
        let engine = Arc::new(Engine::new(worker));
        let thread = ShardThread {
            control,
            doorbell,
            stats,
            thread: None,
        };
        let (door, door_stats) = match listener {
            Some(_) => {
                let (door, stats) = open_door(listener, vec![entrance], departed)?;
                (Some(door), stats)
            }
            None => (None, Arc::default()),
        };
        Ok(Self {
            setting,
            door,
            shards: vec![thread],
            door_stats,
            connector: {
                let engine = Some(Arc::clone(&engine));
                Connector::new(vec![way], config.links_in_process, engine)
            },
            engine: Some(engine),
        })
    }

    /// Does on this thread whatever a broker without threads has to do now; whether there
    /// was anything, and nobody else did it. A broker with threads needs no turns.
    pub fn turn(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.turn())
    }

    /// How long until a broker without threads has to be turned though nothing happens;
    /// `None` if only something that happens gives it anything to do.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.engine.as_ref()?.time_left()
    }

    /// Where in-process links are had.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Where connections are accepted, with the port that the kernel chose; without a
    /// port if they are accepted nowhere, as [`Setting::address`] says.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        self.setting.address.unwrap_or(nowhere)
    }

    /// What it runs with.
    #[must_use]
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// The counters of each shard.
    pub fn stats(&self) -> impl Iterator<Item = &ShardStats> {
        self.shards.iter().map(|shard| &shard.stats)
    }

    /// The counters of the door.
    #[must_use]
    pub fn door_stats(&self) -> &DoorStats {
        &self.door_stats
    }

    /// Stops in order: nobody is let in any more, what was taken is made durable and told,
    /// everybody is told of the end, what waits to be sent is sent, at most
    /// [`limits::DRAIN_TIMEOUT`] long each; then each shard makes a checkpoint for the next
    /// start, if much was journalled since the last, and the threads are gone.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(door) = self.door.take() {
            door.control.stop();
            join(door.thread);
        }
        for shard in &self.shards {
            shard.control.stop();
            shard.doorbell.ring();
        }
        for shard in &mut self.shards {
            if let Some(thread) = shard.thread.take() {
                join(thread);
            }
        }
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.end();
    }
}

/// Shards that run while others are begun. Dropped, they end with the broker that did not
/// start.
struct Shards(Vec<ShardThread>);

impl Drop for Shards {
    fn drop(&mut self) {
        for shard in &self.0 {
            shard.control.stop();
            shard.doorbell.ring();
        }
        for shard in &mut self.0 {
            if let Some(thread) = shard.thread.take() {
                join(thread);
            }
        }
    }
}

/// What a broker has before any part of it runs.
struct Outset {
    setting: Setting,
    listener: Option<TcpListener>,
    installation: Installation,
    recovery: Option<Arc<Recovery>>,
    departures: mpsc::Sender<IpAddr>,
    departed: mpsc::Receiver<IpAddr>,
}

impl Outset {
    fn new(config: &BrokerConfig, topology: &Topology, shards: usize) -> Result<Self, StartError> {
        let (bound, total) = (config.memory, memory_total()?);
        if bound > total {
            return Err(StartError::MemoryNotThere { bound, total });
        }
        let (idle, spin_refused) = match config.idle.fitting(shards, topology.usable.count()) {
            Err(refused) if !config.spin_regardless => (IdleStrategy::Adaptive, Some(refused)),
            Err(_) | Ok(_) => (config.idle, None),
        };
        let spin_budget = config
            .spin_budget
            .unwrap_or_else(|| IdleStrategy::spin_budget(topology.virtual_machine));
        let shards = u16::try_from(shards).unwrap_or(u16::MAX);
        let rings = mesh::size(shards) + config.links_size();
        let share = bound.saturating_sub(rings) / u64::from(shards);
        let memory = MemoryPlan::new(share).map_err(|_| StartError::Memory {
            bound,
            shards,
            links_in_process: config.links_in_process,
        })?;
        // Bound before any thread exists, so that a taken port costs nothing; nobody is
        // answered before the shards are there.
        let listener = match config.listen {
            Some(address) => Some(listen(address)?),
            None => None,
        };
        let address = listener.as_ref().map(|(_, address)| *address);
        let random = StartError::kernel("randomness");
        let recovery = match &config.data_directory {
            Some(path) => {
                let directory = DataDirectory::open(path).map_err(StoreError::refused(path))?;
                let recovery = match config.transport {
                    Transport::Epoll => Recovery::read_one_by_one(&directory),
                    Transport::IoUring | Transport::Auto => Recovery::read(&directory),
                };
                let mut recovery = recovery.map_err(StoreError::from)?;
                recovery.prepare().map_err(StoreError::refused(path))?;
                Some(Arc::new(recovery))
            }
            None => None,
        };
        let installation = match &recovery {
            Some(recovery) => recovery.directory().installation(),
            None => Installation(u128::from_le_bytes(sys::random_bytes().map_err(&random)?)),
        };
        let (departures, departed) = mpsc::channel();
        Ok(Self {
            setting: Setting {
                address,
                shards: Vec::new(),
                idle,
                spin_budget,
                memory,
                spin_refused,
                data: recovery.as_deref().map(DataSetting::of),
            },
            listener: listener.map(|(listener, _)| listener),
            installation,
            recovery,
            departures,
            departed,
        })
    }
}

/// A listener, and where it listens.
fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let refused = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(refused)?;
    let chosen = listener.local_addr().map_err(refused)?;
    Ok((listener, chosen))
}

fn open_door(
    listener: Option<TcpListener>,
    entrances: Vec<ShardEntrance>,
    departed: mpsc::Receiver<IpAddr>,
) -> Result<(Door, Arc<DoorStats>), StartError> {
    let random = StartError::kernel("randomness");
    let hash_seed = u64::from_le_bytes(sys::random_bytes().map_err(random)?);
    let porter = Porter::new(listener, entrances, departed, hash_seed)
        .map_err(StartError::kernel("the door's epoll set"))?;
    let stats = porter.stats();
    let control = porter.control();
    let thread = spawn(String::from("courser-door"), move || {
        if let Err(errno) = porter.run() {
            fail_stop(&format!("the door cannot go on: {errno}"));
        }
    })?;
    Ok((Door { control, thread }, stats))
}

fn shard_config(
    config: &BrokerConfig,
    installation: Installation,
    shard: ShardIndex,
    memory: MemoryPlan,
) -> Result<ShardConfig, StartError> {
    let random = StartError::kernel("randomness");
    Ok(ShardConfig {
        installation,
        shard,
        memory: memory.bound,
        hash_seed: u64::from_le_bytes(sys::random_bytes().map_err(random)?),
        auto_create: config.auto_create,
    })
}

/// How much each shard may have on the device.
fn extent(config: &BrokerConfig, shards: u16) -> Result<Extent, StartError> {
    let bytes = config.backlog_bytes;
    let share = bytes / u64::from(shards.max(1));
    if bytes > 0 && share < PAGE_FILE_SIZE {
        return Err(StartError::Backlog { bytes, shards });
    }
    let pages = share / u64::from(limits::PAGE_SIZE);
    Ok(Extent {
        checkpoint: config.checkpoint_bytes,
        pages: u32::try_from(pages).unwrap_or(u32::MAX),
    })
}

/// Where each shard runs.
fn place(config: &BrokerConfig, topology: &Topology) -> Result<Vec<Placement>, StartError> {
    let mut placements = config.cores.place(topology, config.shards)?;
    if config.cores == Cores::Auto && config.shards.is_none() {
        // Nobody asked for so many: as many as there is memory for.
        let fitting = (1..=limits::SHARDS_MAX).rfind(|&n| memory_needed(n) <= config.memory);
        placements.truncate(usize::from(fitting.unwrap_or(1)));
    }
    let shards = placements.len();
    if shards > usize::from(limits::SHARDS_MAX) {
        return Err(StartError::TooManyShards { shards });
    }
    Ok(placements)
}

/// What a shard's thread needs to begin.
struct ShardPlan {
    shard: ShardConfig,
    recovery: Option<Arc<Recovery>>,
    extent: Extent,
    ends: Ends,
    /// The others, once all are ready; hung up if the broker does not start.
    told: mpsc::Receiver<Workers>,
    placement: Placement,
    isolated: bool,
    transport: Transport,
    /// None where there are no sockets.
    ring: Option<RingSize>,
    idle: IdleStrategy,
    spin_budget: Duration,
    control: Control,
}

/// What a shard's thread says when it is ready.
struct Ready {
    doorbell: Doorbell,
    entrance: ShardEntrance,
    setting: ShardSetting,
}

/// A shard whose thread makes what it needs.
struct Begun {
    control: Control,
    thread: JoinHandle<()>,
    reported: mpsc::Receiver<Result<Ready, StartError>>,
}

fn begin_shard(plan: ShardPlan) -> Result<Begun, StartError> {
    let (report, reported) = mpsc::sync_channel(1);
    let (control, shard) = (plan.control.clone(), plan.shard.shard);
    let thread = spawn(format!("courser-shard-{shard}"), move || {
        run_shard(plan, &report);
    })?;
    Ok(Begun {
        control,
        thread,
        reported,
    })
}

impl Begun {
    /// Waits until it is ready to run.
    fn ready(self) -> Result<(ShardThread, ShardEntrance, ShardSetting), StartError> {
        match self.reported.recv() {
            Ok(Ok(ready)) => Ok((
                ShardThread {
                    control: self.control,
                    doorbell: ready.doorbell,
                    stats: ready.entrance.stats.clone(),
                    thread: Some(self.thread),
                },
                ready.entrance,
                ready.setting,
            )),
            Ok(Err(error)) => {
                join(self.thread);
                Err(error)
            }
            // A thread that panics aborts the process, so it never ends without a report.
            Err(mpsc::RecvError) => unreachable!("a shard reports before it ends"),
        }
    }
}

type Report = mpsc::SyncSender<Result<Ready, StartError>>;

/// Tells the starter, unless that has given up for what another shard told it.
fn tell(report: &Report, told: Result<Ready, StartError>) {
    report.send(told).ok();
}

/// The shard's thread, from its place to its end. Ring and shard are made here: a ring
/// belongs to the thread that made it, and memory to the processor that touched it.
fn run_shard(plan: ShardPlan, report: &Report) {
    let failed = |error| tell(report, Err(error));
    if let Err(error) = plan.placement.take() {
        return failed(error.into());
    }
    let refused = match (plan.transport, plan.ring) {
        (Transport::Epoll, _) | (_, None) => None,
        (Transport::IoUring | Transport::Auto, Some(size)) => match IoUringRing::new(size) {
            Ok(ring) => return run_on(ring, None, plan, report),
            Err(refused)
                if plan.transport == Transport::IoUring || planted::is(Fault::NoFallback) =>
            {
                return failed(refused.into());
            }
            Err(refused) => Some(refused),
        },
    };
    match epoll_ring(plan.ring) {
        Ok(ring) => run_on(ring, refused, plan, report),
        Err(error) => failed(error),
    }
}

/// A ring over epoll; without sockets, of which there is little but its bell.
fn epoll_ring(size: Option<RingSize>) -> Result<EpollRing, StartError> {
    let size = size.map_or(RingSize::WITHOUT_SOCKETS, RingSize::one_at_a_time);
    EpollRing::new(size).map_err(StartError::kernel("an epoll set"))
}

fn memory_total() -> Result<u64, StartError> {
    sys::memory_total().map_err(StartError::kernel("the size of its memory"))
}

fn run_on<R: Ring<Socket = std::os::fd::OwnedFd, File = DiskFile>>(
    mut ring: R,
    io_uring_refused: Option<IoUringRefused>,
    plan: ShardPlan,
    report: &Report,
) {
    let shards = plan.ends.shards();
    let mut shard = match make_shard(plan.shard, shards, 0) {
        Ok(shard) => shard,
        Err(error) => return tell(report, Err(error)),
    };
    shard.join(plan.ends);
    let recovery = plan.recovery.as_deref();
    let mut store = match open_store(recovery, plan.extent, &mut shard, &mut ring) {
        Ok(store) => store,
        Err(error) => return tell(report, Err(error.into())),
    };
    let doorbell = ring.doorbell().clone();
    let (entrance, inbox) = entrance(&ring, &shard);
    let stats = entrance.stats.clone();
    let ready = Ready {
        doorbell,
        entrance,
        setting: ShardSetting {
            placement: plan.placement,
            isolated: plan.isolated,
            ring: ring.description(),
            io_uring_refused,
            thread: sys::thread_id(),
        },
    };
    tell(report, Ok(ready));
    let Ok(workers) = plan.told.recv() else {
        return;
    };
    if let Some(store) = &mut store {
        store.placed(&mut shard);
    }
    let worker = Worker::new(
        ring,
        (shard, store),
        inbox,
        workers,
        plan.control,
        Idle::new(plan.idle, plan.spin_budget),
        Publisher::new(stats),
    );
    if let Err(fault) = worker.run() {
        fail_stop(&fault.to_string());
    }
}

/// A shard, alone. `links` is how many in-process links share the bound.
fn make_shard(config: ShardConfig, shards: u16, links: u16) -> Result<Shard, StartError> {
    let bound = config.memory;
    Shard::new(config).map_err(|refusal| match refusal {
        Refusal::IllegalArgument => StartError::Memory {
            bound,
            shards,
            links_in_process: links,
        },
        Refusal::OutOfMemory => {
            let bound = bound * u64::from(shards);
            let error = memory_total().map(|total| StartError::MemoryNotThere { bound, total });
            error.unwrap_or_else(|error| error)
        }
        refusal => unreachable!("a shard refuses a bound only: {refusal}"),
    })
}

/// What is kept, told to a shard that has its ring; it goes on there when this returns.
fn open_store<R: Ring<File = DiskFile>>(
    recovery: Option<&Recovery>,
    extent: Extent,
    shard: &mut Shard,
    ring: &mut R,
) -> Result<Option<Store>, StoreError> {
    let Some(recovery) = recovery else {
        return Ok(None);
    };
    let doorbell = ring.doorbell().clone();
    let mut store = Store::open(recovery, extent, shard, doorbell)?;
    store.settle(ring, shard)?;
    Ok(Some(store))
}

/// If all is divided anew, the checkpoints count now that every shard has written its own.
fn place_checkpoints(recovery: Option<&Recovery>, shards: u16) -> Result<(), StoreError> {
    match recovery {
        Some(recovery) if recovery.is_divided_anew(shards) => {
            let placed = recovery.place_checkpoints(shards);
            placed.map_err(StoreError::refused(recovery.directory().path()))
        }
        _ => Ok(()),
    }
}

/// What the door has to know of a shard, and where the shard takes what comes.
fn entrance<R: Ring>(ring: &R, shard: &Shard) -> (ShardEntrance, Inbox<Arrival>) {
    let (sender, inbox) = handoff(ring.doorbell().clone());
    let entrance = ShardEntrance {
        sender,
        stats: ShardStats::new(shard.chunks_free()),
        slots: ring.slots(),
        arena: shard.region(),
    };
    (entrance, inbox)
}

/// Starts a thread whose panic ends the process: a broker with a part missing would
/// keep promises that it can no longer keep.
fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let failed = StartError::kernel("a thread");
    thread::Builder::new()
        .name(name)
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                let name = thread::current().name().unwrap_or("a thread").to_owned();
                fail_stop(&format!("{name} panicked; the broker ends with it"));
            }
        })
        .map_err(|error| failed(Errno::of(&error)))
}

fn join(thread: JoinHandle<()>) {
    thread
        .join()
        .expect("a thread that panics has ended the process");
}

fn fail_stop(message: &str) -> ! {
    eprintln!("fatal: {message}");
    abort();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::affinity::CpuList;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_thread_that_panics_takes_the_process_down() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("broker::tests::child_whose_thread_panics")
            .output()
            .unwrap();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{complained}");
        assert!(
            complained.contains("an invariant is broken"),
            "{complained}"
        );
    }

    #[test]
    #[ignore = "run by a_thread_that_panics_takes_the_process_down in a process of its own"]
    fn child_whose_thread_panics() {
        let thread = spawn(String::from("doomed"), || panic!("an invariant is broken")).unwrap();
        join(thread);
    }

    #[test]
    fn one_shard_of_several_that_panics_takes_the_process_down_that_embeds_it() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("broker::tests::child_one_of_whose_shards_panics")
            .output()
            .unwrap();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{complained}");
        let last = complained.lines().last().unwrap_or_default();
        assert_eq!(
            last,
            "fatal: courser-shard-1 panicked; the broker ends with it"
        );
    }

    #[test]
    #[ignore = "run by one_shard_of_several_that_panics_takes_the_process_down_that_embeds_it"]
    fn child_one_of_whose_shards_panics() {
        let broker = Broker::start(BrokerConfig {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            transport: Transport::Epoll,
            cores: Cores::Unpinned,
            shards: NonZeroU16::new(2),
            memory: memory_needed(2),
            ..BrokerConfig::default()
        })
        .unwrap();
        broker.shards[1].control.fail();
        broker.shards[1].doorbell.ring();
        // It takes this thread along.
        loop {
            thread::park();
        }
    }

    #[test]
    fn who_asks_for_no_number_of_shards_gets_as_many_as_fit() {
        let usable: CpuList = "0-7".parse().unwrap();
        let topology = Topology {
            permitted: usable.clone(),
            usable,
            source: "somewhere".into(),
            isolated: CpuList::default(),
            virtual_machine: false,
        };
        let placed = |memory| {
            let config = BrokerConfig {
                memory,
                ..BrokerConfig::default()
            };
            place(&config, &topology).unwrap().len()
        };
        assert_eq!(placed(limits::MEMORY_MIN), 1);
        assert_eq!(placed(memory_needed(2) - 1), 1);
        assert_eq!(placed(memory_needed(3)), 3);
        assert_eq!(placed(limits::MEMORY_DEFAULT), 7);
    }

    #[test]
    fn a_transport_is_read_as_it_is_written() {
        for transport in [Transport::Auto, Transport::IoUring, Transport::Epoll] {
            assert_eq!(transport.to_string().parse(), Ok(transport));
        }
        assert!("uring".parse::<Transport>().is_err());
    }

    #[test]
    fn every_refusal_to_start_has_a_code_of_its_own() {
        let kernel = StartError::kernel("a thread")(Errno(libc::EAGAIN));
        assert_eq!(kernel.to_string(), "the kernel refused a thread: EAGAIN");
        let several = StartError::TooManyShards { shards: 65 };
        assert!(several.to_string().contains("at most 64"));
        let memory = |bound, shards| too_little(bound, shards, 0);
        assert_eq!(
            memory(MIB, 1),
            "a memory bound of 1 MiB is below the least of 64 MiB"
        );
        assert!(memory(64 * MIB, 2).ends_with("at least 129 MiB, or fewer shards"));
        let memory = StartError::Memory {
            bound: MIB,
            shards: 1,
            links_in_process: 0,
        };
        let not_there = StartError::MemoryNotThere {
            bound: 64 * MIB,
            total: 2 * MIB,
        };
        assert!(not_there.to_string().contains("this machine has 2 MiB"));
        let codes = [&kernel, &several, &memory, &not_there].map(StartError::code);
        assert_eq!(codes, ["C1303", "C1206", "C1302", "C1304"]);
    }
}
