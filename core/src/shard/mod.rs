//! A shard: partitions, and the links of the clients that use them.
//!
//! ```text
//!  received ─> intake ─> session (requests)      ─> egress ─> Output::Send ─> pieces ─> sent
//!                   └──> producer (messages) ─> partition ─> completions ─┘
//!                   └──> consumer (credit, acks) ─> deliveries ───────────┘
//! ```
//!
//! A deterministic machine with one owner. Facts come in as methods and are only
//! noted: partitions are appended to, acknowledgements settled. Once per turn
//! [`Shard::turn`] acts: completions leave, credit is renewed, ready partitions
//! hand out runs; then [`Shard::output`] says which links have something to send.
//! What a link is to send stays where it lies until [`Shard::sent`] takes it
//! away or [`Shard::closed`] ends the link.
//!
//! What it does not do: read clocks, touch sockets, allocate per message.

mod admin;
mod backlog;
mod behind;
mod blocks;
mod branch;
mod browse;
mod burst;
mod checkpoint;
mod closing;
mod consumer;
mod credit;
mod deferral;
mod destination;
mod due;
mod durable;
mod egress;
mod ending;
mod expiry;
mod fan;
mod finish;
mod gather;
mod handover;
mod identity;
mod intake;
mod kept;
mod locals;
mod mesh;
mod pages;
mod poll;
mod positions;
mod producer;
mod records;
mod remembered;
mod replace;
mod restore;
mod returns;
mod send;
mod session;
mod source;
mod tables;
mod taker;

use std::collections::VecDeque;

use foldhash::quality::SeedableRandomState;
use hashbrown::HashMap;

pub use crate::pieces::{PIECES_MAX, Pieces};
pub use checkpoint::{CheckpointFailed, CheckpointWish, Checkpoints};
pub use pages::{PageFailed, PageWish};
pub use restore::TooLittleMemory;

use crate::auth::Principal;
use crate::catalog::Catalog;
use crate::counters::{Counter, Counters};
use crate::error::Refusal;
use crate::frame::control::{Farewell, Welcome};
use crate::frame::{self, VERSION};
use crate::id::{
    DestinationNumber, Handle, Installation, LinkNumber, PartitionIndex, RequestId, Run, ShardIndex,
};
use crate::journal::entry::Place;
use crate::limits;
use crate::memory::{Arena, CHUNK};
use crate::slab::Slab;
use crate::time::{Monotonic, Now};
use blocks::Blocks;
use consumer::{Consumer, Subscription};
use deferral::{Changes, Deferred, Progress, Question};
use destination::Burden;
use due::Due;
use durable::Durable;
use egress::{Egress, NoRoom};
use ending::Notice;
use gather::Leases;
use intake::Intake;
use kept::Kept;
use locals::{Local, Locals};
use mesh::Mesh;
use pages::Pager;
use producer::Producer;
use remembered::Remembered;
use returns::PartAddress;
use session::Session;
use tables::Share;

/// What a shard is made with. Randomness comes in here.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Whose data this is.
    pub installation: Installation,
    /// Which shard this is.
    pub shard: ShardIndex,
    /// The memory bound, in bytes, at least [`limits::MEMORY_MIN`].
    pub memory: u64,
    /// Keeps strangers from choosing names that collide.
    pub hash_seed: u64,
    /// Whether a destination that is opened and does not exist is created.
    pub auto_create: bool,
}

/// How the memory bound is divided, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The bound.
    pub bound: u64,
    /// Tables, buffers of the transport, code and stacks.
    pub fixed: u64,
    /// Of the fixed part: what is known of producers, on links and off.
    pub remembered: u64,
    /// Of the fixed part: consumers.
    pub consumers: u64,
    /// Of the fixed part: what subscriptions have to know in each partition.
    pub subscriptions: u64,
    /// Chunks for messages.
    pub arena: u64,
    /// Of the arena: what producers may have on their way.
    pub ingress: u64,
    /// Of the arena: what may wait for links.
    pub egress: u64,
    /// Of the arena: the most one destination may hold.
    pub destination: u64,
}

/// For what has no share of its own: destinations, links, buffers of the transport,
/// code and stacks.
const UNCOUNTED: u64 = 8 * limits::MIB as u64;
const _: () = assert!(limits::MEMORY_MIN >= 8 * UNCOUNTED);

impl MemoryPlan {
    /// Divides `bound` bytes.
    ///
    /// # Errors
    ///
    /// [`Refusal::IllegalArgument`] below [`limits::MEMORY_MIN`].
    pub fn new(bound: u64) -> Result<Self, Refusal> {
        if bound < limits::MEMORY_MIN {
            return Err(Refusal::IllegalArgument);
        }
        let remembered = bound / 16;
        let consumers = bound / 64;
        let subscriptions = bound / 16 - consumers;
        let fixed = remembered + consumers + subscriptions + UNCOUNTED;
        let arena = (bound - fixed) / CHUNK as u64 * CHUNK as u64;
        Ok(Self {
            bound,
            fixed,
            remembered,
            consumers,
            subscriptions,
            arena,
            ingress: arena / 4,
            egress: arena / 16,
            destination: arena / 4,
        })
    }

    /// Chunks of the arena for what other shards deliver: as many as for egress, and
    /// enough for the largest message.
    pub(super) fn arrivals_chunks(&self) -> usize {
        self.egress_chunks().max(gather::LARGE_CHUNKS)
    }

    /// Chunks of the arena that are kept for egress.
    pub(super) fn egress_chunks(&self) -> usize {
        usize::try_from(self.egress).map_or(usize::MAX, |bytes| bytes / CHUNK)
    }
}

/// A link that the door lets in, or another shard hands over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Whom it acts for.
    pub principal: Principal,
    /// What the client calls itself.
    pub name: String,
    /// The link that this one takes the place of.
    pub replaces: Option<LinkNumber>,
    /// Bytes that came behind the hello.
    pub leftover: Vec<u8>,
    /// The request that the welcome answers; 0 for the hello.
    pub request: RequestId,
    /// Whether its peer may rest as long as it likes, with a frame begun or bytes
    /// unread: it is where nothing is lost on the way, and its bounds are the link's.
    pub patient: bool,
}

/// What a shard would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The link has [`Shard::pieces`] to send.
    Send(Handle),
    /// End the link, after all its pieces are sent if `flush` says so; the answer
    /// is [`Shard::closed`].
    Close {
        /// The link.
        link: Handle,
        /// Whether to send what waits first.
        flush: bool,
    },
    /// Give the link to another shard, once nothing of it is under way; where and with
    /// what says [`Shard::hand_over`]. Meanwhile bytes that come are told as ever, and
    /// another wish may take the place of this one.
    HandOver(Handle),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    Open,
    /// Waits for its welcome until so many shards have heard of the end of the link that
    /// it takes the place of.
    Arriving {
        missing: u16,
        since: Monotonic,
    },
    /// Nothing may be read; it is handed over once its egress is empty.
    Moving {
        to: ShardIndex,
        request: RequestId,
    },
    /// Nothing more is read; it closes once its egress is empty.
    Ending,
}

#[derive(Debug)]
struct Link {
    number: LinkNumber,
    state: LinkState,
    principal: Principal,
    name: String,
    /// No time limits hold for it.
    patient: bool,
    intake: Intake,
    egress: Egress,
    leases: Leases,
    sessions: Vec<Handle>,
    producers: Vec<Handle>,
    consumers: Vec<Handle>,
    /// Has something new to send this turn.
    dirty: bool,
    /// Something waits until what was written before has left.
    starved: bool,
    /// Stands in the list of links whose answers or completions wait for a block.
    answers_wait: bool,
    /// Stands in the list of links whose deliveries do.
    deliveries_wait: bool,
    /// Stands in the list of links with a time limit.
    watched: bool,
    /// Bytes of what it asked that wait for other shards.
    behind: usize,
    /// When its peer said that it sends no more.
    finished: Option<Monotonic>,
    /// When the frame that is being received began.
    frame_since: Option<Monotonic>,
    /// When the peer last took a byte, or was last given the first.
    progress: Monotonic,
}

/// What a peer did, or which limit it met.
#[derive(Debug)]
struct Fault {
    refusal: Refusal,
    text: String,
}

impl Fault {
    fn new(refusal: Refusal, text: impl Into<String>) -> Self {
        Self {
            refusal,
            text: text.into(),
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            text: String::new(),
        }
    }
}

/// Why a frame of the control plane is not obeyed.
#[derive(Debug)]
enum Rejection {
    /// The request is refused; the link goes on.
    Request(Fault),
    /// The link ends.
    Link(Fault),
    /// Others are asked first.
    Later(Question),
}

impl Rejection {
    fn request(refusal: Refusal, text: impl Into<String>) -> Self {
        Self::Request(Fault::new(refusal, text))
    }
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self::Request(refusal.into())
    }
}

impl From<Fault> for Rejection {
    fn from(fault: Fault) -> Self {
        Self::Link(fault)
    }
}

/// The machine.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    plan: MemoryPlan,
    arena: Arena,
    catalog: Catalog,
    /// The other shards.
    mesh: Mesh,
    /// Requests that wait for them.
    deferred: Slab<Deferred>,
    /// How far the request has come that is obeyed.
    progress: Progress,
    /// Changes of the catalogue that are not applied everywhere.
    changes: Changes,
    locals: Locals,
    /// Chunks of the arena for what waits to leave.
    blocks: Blocks,
    /// Partitions of this shard, of all destinations: each may hold a chunk.
    partitions: usize,
    /// What all destinations take of each shard, in the order of the shards.
    burdens: Vec<Burden>,
    links: Slab<Link>,
    /// Each link by its number.
    link_numbers: HashMap<LinkNumber, Handle, SeedableRandomState>,
    next_link: LinkNumber,
    /// Which start of the broker on its data this is; 0 if it keeps none.
    run: Run,
    sessions: Slab<Session>,
    /// Those that are to be closed, in the order in which that was asked.
    closing: Vec<Handle>,
    producers: Slab<Producer>,
    consumers: Slab<Consumer>,
    subscriptions: Slab<Subscription>,
    remembered: Remembered,
    /// What consumers take of their share of memory.
    opened: Share,
    /// What subscriptions take of theirs.
    parts: Share,
    /// Partitions in which delivery waits for memory of that share.
    paused: VecDeque<(DestinationNumber, PartitionIndex)>,
    /// How many of these, from the front, have not looked since some of it came back.
    relieved: usize,
    /// Frame bytes granted to producers and not received yet.
    reserved: u64,
    /// What is kept on a device, if anything is.
    journal: Option<Box<Durable>>,
    /// What of the logs lies in pages of files, if anything may.
    pager: Option<Box<Pager>>,
    /// Subscriptions that it keeps.
    kept: Kept,
    /// Producers with completions to send.
    completing: Vec<Handle>,
    /// Producers that wait for credit.
    waiting: VecDeque<Handle>,
    /// Partitions that have something for a consumer.
    ready: VecDeque<(DestinationNumber, PartitionIndex)>,
    /// When parts have messages to return that rest.
    returns: Due<PartAddress>,
    /// When partitions have segments that expire.
    expiries: Due<Place>,
    /// Chunks that are there for what other shards deliver to links of this one.
    arriving: usize,
    /// Bytes of what links asked that wait for other shards.
    behind: usize,
    /// Links that wait for some.
    wants_room: VecDeque<Handle>,
    /// Sources that were lent credit this turn.
    lent: Vec<Handle>,
    /// Sources that have something and no credit.
    announcing: Vec<Handle>,
    /// Consumers that ask whether there is anything for them, each once.
    polls: Vec<poll::Poll>,
    /// Producers that wait to have a destination alone, in the order in which they
    /// asked.
    takers: VecDeque<taker::Taker>,
    /// Somebody may have gone whom one of them waits for.
    takers_due: bool,
    /// Where a run is copied through on its way to another shard.
    scratch: Vec<u8>,
    /// Partitions whose log is to be thinned out.
    thinning: VecDeque<(DestinationNumber, PartitionIndex)>,
    /// Links that have something new to send.
    dirty: Vec<Handle>,
    /// Links with a frame or bytes that have a time limit.
    watched: Vec<Handle>,
    /// Answers to the question for counters that are not complete.
    reports: VecDeque<admin::Report>,
    /// Clients that are to be told of what the broker ended.
    notices: Vec<Notice>,
    /// Links whose peers send no more, and that end once they are answered; and those
    /// that move once their answers have left.
    finishing: Vec<Handle>,
    outputs: VecDeque<Output>,
    next_tick: Monotonic,
    stopping: bool,
    counters: Counters,
}

/// How often time limits of links are looked at.
const TICK: core::time::Duration = core::time::Duration::from_millis(250);

impl Shard {
    /// An empty shard.
    ///
    /// # Errors
    ///
    /// [`Refusal::IllegalArgument`] if the memory bound is too small, and
    /// [`Refusal::OutOfMemory`] if there is not so much to be had.
    pub fn new(config: ShardConfig) -> Result<Self, Refusal> {
        let plan = MemoryPlan::new(config.memory)?;
        let chunks = u32::try_from(plan.arena / CHUNK as u64).map_err(|_| Refusal::OutOfMemory)?;
        // Half of all handles each, so that a handle is a producer's or a consumer's.
        let handles = Handle::SLOTS / 2;
        Ok(Self {
            plan,
            arena: Arena::try_new(chunks).ok_or(Refusal::OutOfMemory)?,
            catalog: Catalog::new(config.hash_seed, config.auto_create),
            mesh: Mesh::alone(),
            deferred: Slab::new(limits::DEFERRED_MAX),
            progress: Progress::default(),
            changes: Changes::default(),
            locals: Locals::default(),
            blocks: Blocks::new(plan.egress_chunks()),
            partitions: 0,
            burdens: vec![Burden::default()],
            links: Slab::new(limits::LINKS_MAX),
            link_numbers: HashMap::with_hasher(hasher(config.hash_seed)),
            next_link: LinkNumber(config.shard.first_number()),
            run: Run(0),
            sessions: Slab::new(handles),
            closing: Vec::new(),
            producers: Slab::new(handles),
            consumers: Slab::starting_at(handles, handles),
            subscriptions: Slab::new(limits::SUBSCRIPTIONS_MAX + limits::DESTINATIONS_MAX),
            remembered: Remembered::new(
                config.shard,
                usize::try_from(plan.remembered).unwrap_or(usize::MAX),
                size_of::<Producer>(),
            ),
            opened: Share::new(plan.consumers),
            parts: Share::new(plan.subscriptions),
            paused: VecDeque::new(),
            relieved: 0,
            reserved: 0,
            journal: None,
            pager: None,
            kept: Kept::default(),
            completing: Vec::new(),
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            returns: Due::default(),
            expiries: Due::default(),
            arriving: 0,
            behind: 0,
            wants_room: VecDeque::new(),
            lent: Vec::new(),
            announcing: Vec::new(),
            polls: Vec::new(),
            takers: VecDeque::new(),
            takers_due: false,
            scratch: Vec::new(),
            thinning: VecDeque::new(),
            dirty: Vec::new(),
            watched: Vec::new(),
            reports: VecDeque::new(),
            notices: Vec::new(),
            finishing: Vec::new(),
            outputs: VecDeque::new(),
            next_tick: Monotonic(0),
            stopping: false,
            counters: Counters::default(),
            config,
        })
    }

    /// The door lets a link in. Its welcome waits to be sent.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyLinks`] or [`Refusal::Stopping`].
    pub fn attached(&mut self, now: Now, attached: Attached) -> Result<Handle, Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        if let Some(replaced) = attached.replaces {
            self.replace(now, replaced, attached.principal);
        }
        let number = self.next_link;
        let link = Link {
            number,
            state: LinkState::Open,
            principal: attached.principal,
            name: attached.name,
            patient: attached.patient,
            intake: Intake::default(),
            egress: Egress::new(),
            leases: Leases::default(),
            sessions: Vec::new(),
            producers: Vec::new(),
            consumers: Vec::new(),
            dirty: false,
            starved: false,
            answers_wait: false,
            deliveries_wait: false,
            watched: false,
            behind: 0,
            finished: None,
            frame_since: None,
            progress: now.monotonic,
        };
        let link = self.links.insert(link).map_err(|_| Refusal::TooManyLinks)?;
        self.next_link = LinkNumber(number.0 + 1);
        self.link_numbers.insert(number, link);
        self.counters.add(Counter::LinksOpened, 1);
        let elsewhere = |number| Some((self.replaced_elsewhere(number)?, number));
        match attached.replaces.and_then(elsewhere) {
            Some(replaced) => self.await_end_of(now, link, replaced),
            None => self.welcome(now, link, attached.request),
        }
        self.received(now, link, &attached.leftover);
        Ok(link)
    }

    /// Tells a client that its link stands.
    fn welcome(&mut self, now: Now, link: Handle, request: RequestId) {
        let Some(entry) = self.links.get(link) else {
            return;
        };
        let welcome = Welcome {
            version: VERSION,
            shards: u8::try_from(self.shards()).unwrap_or(u8::MAX),
            shard: self.config.shard.0.into(),
            frame_size_max: limits::FRAME_SIZE_MAX.into(),
            installation: self.config.installation.0.into(),
            link: entry.number.0.into(),
            run: self.run.0.into(),
            ..Welcome::default()
        };
        if let Err(fault) = self.answer(now, link, request.0, &welcome, &[]) {
            self.fault(now, link, &fault);
        }
    }

    /// The kernel took `bytes` of the link's pieces; fewer than were given is legal.
    pub fn sent(&mut self, now: Now, link: Handle, bytes: usize) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        if bytes > 0 {
            entry.progress = now.monotonic;
        }
        let locals = &mut self.locals;
        let (arena, blocks) = (&mut self.arena, &mut self.blocks);
        entry
            .egress
            .sent(arena, blocks, bytes, |arena, pin| locals.unpin(arena, pin));
        self.counters.add(Counter::BytesSent, bytes as u64);
        let worth_filling = entry.starved && entry.egress.is_worth_filling();
        let freed = entry.egress.has_freed();
        if entry.egress.bytes() > 0 {
            self.watch(link);
        }
        if worth_filling {
            self.fill_again(link);
        }
        if freed {
            self.arrivals_freed(link);
        }
    }

    /// The link is gone: its last fact. Its deliveries return to their places.
    pub fn closed(&mut self, now: Now, link: Handle) {
        self.leave(now, link, false);
        if let Some(mut entry) = self.links.remove(link) {
            self.reports.retain(|report| !report.is_for(link));
            let locals = &mut self.locals;
            let (arena, blocks) = (&mut self.arena, &mut self.blocks);
            blocks.aside -= entry.egress.aside();
            entry
                .egress
                .clear(arena, blocks, |arena, pin| locals.unpin(arena, pin));
            entry.intake.clear(&mut self.arena);
            self.arriving -= entry.egress.take_freed();
            self.serve_leases();
            self.link_numbers.remove(&entry.number);
            self.counters.add(Counter::LinksClosed, 1);
        }
    }

    /// Time has passed: ends links whose peers take too long, returns messages that have
    /// rested enough, and lets segments expire.
    pub fn expire(&mut self, now: Now) {
        self.end_page_pause(now.monotonic);
        self.end_rests(now);
        self.end_periods(now);
        if now.monotonic < self.next_tick || self.watched.is_empty() {
            return;
        }
        self.next_tick = now.monotonic.after(TICK);
        let mut watched = core::mem::take(&mut self.watched);
        watched.retain(|link| self.still_watched(now, *link));
        watched.append(&mut self.watched);
        self.watched = watched;
    }

    /// Acts on what came in since the last turn. Deliveries go first: links send in
    /// the order in which they got something to send, and a message is wanted
    /// more urgently than the news that it was stored.
    pub fn turn(&mut self, now: Now) {
        if self.journal.is_some() {
            self.turn_journal(now);
            if self.pager.is_some() {
                self.turn_pages(now);
            }
        }
        self.resume();
        if self.remembered.is_sweeping() {
            let locals = &self.locals;
            self.remembered.sweep(|it| locals.get(it).is_some());
        }
        self.lend_blocks(now);
        self.serve_leases();
        self.dispatch(now);
        self.settle_leases();
        self.answer_polls(now);
        self.send_completions(now);
        self.give_notice(now);
        self.serve_waiting(now);
        self.serve_takers(now);
        self.thin_out();
        self.report(now);
        self.close_sessions(now);
        self.finish(now);
        for index in 0..self.dirty.len() {
            let link = self.dirty[index];
            if let Some(entry) = self.links.get_mut(link) {
                entry.dirty = false;
                if entry.egress.bytes() > 0 {
                    self.outputs.push_back(Output::Send(link));
                    // From here on: a kernel without room takes none of it and says so
                    // by saying nothing.
                    if !entry.watched {
                        entry.watched = true;
                        self.watched.push(link);
                    }
                }
            }
        }
        self.dirty.clear();
        self.send_off();
    }

    /// What is to be done, until `None`.
    pub fn output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What the link is to send next, at most [`PIECES_MAX`] slices. They stay
    /// where they are until [`Shard::sent`] or [`Shard::closed`] for this link.
    pub fn pieces<'a>(&'a self, link: Handle, pieces: &mut Pieces<'a>) {
        if let Some(link) = self.links.get(link) {
            link.egress.pieces(&self.arena, pieces);
        }
    }

    /// When [`Shard::expire`] has to be called next, if at all.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Monotonic> {
        let tick = (!self.watched.is_empty()).then_some(self.next_tick);
        let returns = self.returns.next();
        let files = self.journal_expiry();
        let expiry = self.expiries.next();
        let pages = self.pager.as_ref().and_then(|it| it.due());
        (tick.into_iter().chain(returns))
            .chain(files)
            .chain(expiry)
            .chain(pages)
            .min()
    }

    /// Whether there is work that the next [`Shard::turn`] would do without any
    /// new fact: the caller should not sleep.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.completing.is_empty()
            || !self.ready.is_empty()
            || self.relieved > 0
            || self.remembered.is_sweeping()
            || !self.notices.is_empty()
            || !self.thinning.is_empty()
            || !self.dirty.is_empty()
            || self.can_report()
            || self.can_lend_blocks()
            || self.finishing.iter().any(|link| self.can_finish(*link))
            || !self.outputs.is_empty()
            || self.can_settle_leases()
            || self.has_polls()
            || self.takers_due
            || self.can_close_sessions()
            || self.has_storage_work()
            || self.has_page_work()
            || self.can_send_off()
    }

    /// The broker stops: every link is told, and ends once what waits for it has
    /// left.
    pub fn stop(&mut self, now: Now) {
        self.stopping = true;
        self.send_completions(now);
        let links: Vec<Handle> = self.links.iter().map(|(handle, _)| handle).collect();
        for link in links {
            self.farewell(now, link, Refusal::Stopping, "");
        }
    }

    /// Which one it is.
    #[must_use]
    pub fn index(&self) -> ShardIndex {
        self.config.shard
    }

    /// Whether no link is left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.links.is_empty()
    }

    /// Open links.
    #[must_use]
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Producers and consumers that are open, those that stand here for links of other
    /// shards among them.
    #[must_use]
    pub fn handles(&self) -> usize {
        self.producers.len() + self.consumers.len()
    }

    /// What the client on the link calls itself.
    #[must_use]
    pub fn link_name(&self, link: Handle) -> Option<&str> {
        self.links.get(link).map(|link| link.name.as_str())
    }

    /// The counters, for the driver to add its own to.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How the memory is divided.
    #[must_use]
    pub fn memory(&self) -> MemoryPlan {
        self.plan
    }

    /// The arena's memory, for a thread that has it faulted in ahead of need.
    #[must_use]
    pub fn region(&self) -> (usize, usize) {
        self.arena.region()
    }

    /// Chunks of the arena that are not lent.
    #[must_use]
    pub fn chunks_free(&self) -> usize {
        self.arena.free()
    }

    /// Panics if an invariant is broken.
    pub fn invariants(&self) {
        for local in self.locals.iter() {
            for partition in &local.partitions {
                partition.invariants();
            }
        }
        let outstanding: u64 = self
            .producers
            .iter()
            .map(|(_, producer)| producer.credit.outstanding_bytes())
            .sum();
        assert_eq!(outstanding, self.reserved, "every granted byte is reserved");
        for (_, producer) in self.producers.iter() {
            if let Some(fan) = producer.fan() {
                fan.invariants(&producer.credit);
            }
        }
        let known = self.producers.iter().filter(|(_, it)| it.known);
        self.remembered
            .invariants(known.map(|(_, it)| &it.identity));
        assert!(
            self.reserved <= self.plan.ingress,
            "grants stay within the ingress pool"
        );
        let (mut aside, mut lent) = (0, 0);
        for (_, link) in self.links.iter() {
            link.egress.invariants();
            aside += link.egress.aside();
            lent += link.egress.chunks();
            assert!(
                link.egress.aside() == 0 || link.answers_wait,
                "a link with answers aside is listed"
            );
            assert!(
                link.egress.bytes()
                    <= (limits::EGRESS_SIZE + limits::FRAME_SIZE_MAX) as usize + CHUNK,
                "a link's egress stays within its limit"
            );
        }
        let arriving: usize = self
            .links
            .iter()
            .map(|(_, it)| it.egress.arrival_chunks())
            .sum();
        assert_eq!(arriving, self.arriving, "chunks for arrivals are counted");
        assert!(arriving <= self.plan.arrivals_chunks());
        assert_eq!(
            (aside, lent),
            (self.blocks.aside, self.blocks.lent),
            "blocks are counted"
        );
        assert!(aside <= limits::ANSWERS_ASIDE_MAX as usize);
        let behind: usize = self.links.iter().map(|(_, link)| link.behind).sum();
        assert!(behind <= self.behind, "what waits for shards is counted");
        for (_, consumer) in self.consumers.iter() {
            consumer.invariants();
        }
        let mut resting = 0;
        for local in self.locals.iter() {
            let parts = local.partitions.iter().flat_map(|it| &it.parts);
            resting += parts
                .filter(|(_, part)| part.next_return().is_some())
                .count();
        }
        for (due, address) in self.returns.iter() {
            let local = &self.locals[address.destination];
            let part = local.partitions[address.partition.0 as usize]
                .part(address.subscription)
                .expect("only parts that there are have something to return");
            assert_eq!(part.next_return(), Some(due), "a part returns in time");
            resting -= 1;
        }
        assert_eq!(resting, 0, "every part with something to return is listed");
    }

    /// As [`Shard::invariants`], and that every message is where its partition says
    /// and every chunk that is lent has an owner. Walks all that is kept: for tests
    /// and simulations.
    pub fn audit(&self) {
        self.invariants();
        let mut owned = self.locals.departed_chunks();
        for local in self.locals.iter() {
            owned += local.chunks();
            for partition in &local.partitions {
                partition.audit(&self.arena);
            }
        }
        for (_, link) in self.links.iter() {
            owned += link.egress.chunks() + link.egress.arrival_chunks() + link.intake.chunks();
        }
        owned += self.mesh.chunks();
        owned += self.journal.as_deref().map_or(0, Durable::chunks);
        owned += self.pager.as_deref().map_or(0, Pager::chunks);
        let lent = self.arena.chunks() as usize - self.arena.free();
        assert_eq!(owned, lent, "every chunk that is lent has an owner");
        self.audit_tables();
        self.audit_sessions();
    }

    /// Writes a control frame to a link; a link that has no room for answers has
    /// not read for long.
    fn answer<F: frame::control::Fields>(
        &mut self,
        now: Now,
        link: Handle,
        subject: u32,
        fields: &F,
        tail: &[&[u8]],
    ) -> Result<(), Fault> {
        let may_answer = self.may_answer();
        let Some(entry) = self.links.get_mut(link) else {
            return Ok(());
        };
        if entry.egress.bytes() == 0 {
            entry.progress = now.monotonic;
        }
        let egress = &mut entry.egress;
        let written = egress
            .open(&mut self.arena, &mut self.blocks, may_answer)
            .and_then(|()| egress.control(&mut self.arena, subject, fields, tail));
        match written {
            Ok(()) => self.mark_dirty(link),
            Err(NoRoom::Link) => return Err(unread()),
            Err(NoRoom::Arena) => {
                let room = limits::ANSWERS_ASIDE_MAX as usize - self.blocks.aside;
                let most = (limits::CONTROL_SIZE_MAX as usize).min(egress.aside() + room);
                let put = egress.put_aside(subject, fields, tail, most);
                if put == 0 {
                    return Err(unread());
                }
                self.blocks.aside += put;
                self.want_block(link);
            }
        }
        Ok(())
    }

    fn principal(&self, link: Handle) -> Principal {
        self.links
            .get(link)
            .map(|link| link.principal)
            .unwrap_or_default()
    }

    #[inline]
    fn mark_dirty(&mut self, link: Handle) {
        if let Some(entry) = self.links.get_mut(link)
            && !entry.dirty
        {
            entry.dirty = true;
            self.dirty.push(link);
        }
    }

    /// Ends a link for something its peer did.
    fn fault(&mut self, now: Now, link: Handle, fault: &Fault) {
        self.counters.add(Counter::LinksFaulted, 1);
        self.farewell(now, link, fault.refusal, &fault.text);
    }

    /// Says why, then ends the link, behind the outcomes of what it sent before.
    /// What it holds is released at once.
    fn farewell(&mut self, now: Now, link: Handle, refusal: Refusal, text: &str) {
        const TEXT_SIZE_MAX: usize = 1024;
        if self
            .links
            .get(link)
            .is_none_or(|link| link.state == LinkState::Ending)
        {
            return;
        }
        self.send_completions(now);
        // The farewell is the last frame: an answer in parts stays without its rest.
        self.reports.retain(|report| !report.is_for(link));
        let text = if text.len() > TEXT_SIZE_MAX { "" } else { text };
        let farewell = Farewell {
            refusal: refusal.code().into(),
            version_min: VERSION,
            version_max: VERSION,
            text_length: u32::try_from(text.len()).expect("the text is short").into(),
        };
        let told = self
            .answer(now, link, 0, &farewell, &[text.as_bytes()])
            .is_ok();
        self.end(now, link, told);
    }

    /// Ends a link; with `flush` after what waits for it has left.
    fn end(&mut self, now: Now, link: Handle, flush: bool) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        if entry.state == LinkState::Ending {
            return;
        }
        entry.state = LinkState::Ending;
        entry.frame_since = None;
        entry.intake.clear(&mut self.arena);
        if flush && self.blocks.lent < self.blocks.share {
            let egress = &mut entry.egress;
            self.blocks.aside -= egress.take_in_aside(&mut self.arena, &mut self.blocks);
        }
        self.leave(now, link, false);
        if flush {
            self.watch(link);
            self.outputs.push_back(Output::Send(link));
        }
        self.outputs.push_back(Output::Close { link, flush });
    }

    /// Everything that the link had open ends. `clean`: the client said so, and
    /// reported what its application was handed.
    fn leave(&mut self, now: Now, link: Handle, clean: bool) {
        let Some(entry) = self.links.get_mut(link) else {
            return;
        };
        let (sessions, producers, consumers) = (
            core::mem::take(&mut entry.sessions),
            core::mem::take(&mut entry.producers),
            core::mem::take(&mut entry.consumers),
        );
        self.forget_takers_on(link);
        for producer in producers {
            self.remove_producer(now, producer, clean);
        }
        for consumer in consumers {
            self.remove_consumer(consumer, clean);
        }
        for session in sessions {
            self.sessions.remove(session);
        }
    }

    /// Has the link's time limits looked at from now on.
    fn watch(&mut self, link: Handle) {
        if let Some(entry) = self.links.get_mut(link)
            && !entry.watched
        {
            entry.watched = true;
            self.watched.push(link);
        }
    }

    /// Ends the link if it took too long; says whether it is to be looked at again.
    fn still_watched(&mut self, now: Now, link: Handle) -> bool {
        let Some(entry) = self.links.get_mut(link) else {
            return false;
        };
        if entry.patient {
            entry.watched = false;
            return false;
        }
        let waited = |since: Monotonic| now.monotonic.since(since);
        if entry.egress.bytes() > 0 && waited(entry.progress) >= limits::STALL_TIMEOUT {
            let ending = entry.state == LinkState::Ending;
            self.counters.add(Counter::LinksFaulted, 1);
            if ending {
                self.outputs.push_back(Output::Close { link, flush: false });
            } else {
                self.end(now, link, false);
            }
            return false;
        }
        if entry.is_overdue(now.monotonic) {
            self.fault(now, link, &replace::overdue());
            return true;
        }
        if entry.is_given_up(now.monotonic) {
            self.end(now, link, true);
            return true;
        }
        if entry
            .frame_since
            .is_some_and(|since| waited(since) >= limits::FRAME_TIMEOUT)
        {
            entry.frame_since = None;
            let fault = Fault::new(Refusal::FrameTimeout, "");
            self.fault(now, link, &fault);
            return true;
        }
        entry.watched = entry.egress.bytes() > 0
            || entry.frame_since.is_some()
            || entry.finished.is_some()
            || entry.is_arriving();
        entry.watched
    }

    fn local_mut(&mut self, destination: DestinationNumber) -> &mut Local {
        &mut self.locals[destination]
    }

    /// Thins out logs in which little is left of much: a bounded part each turn.
    fn thin_out(&mut self) {
        if let Some((destination, index)) = self.thinning.pop_front() {
            let Some(local) = self.locals.get_mut(destination) else {
                return;
            };
            let partition = &mut local.partitions[index.0 as usize];
            self.counters.add(Counter::Thinnings, 1);
            if partition.thin_out(&mut self.arena) {
                self.thinning.push_back((destination, index));
            }
        }
    }
}

#[cold]
fn unread() -> Fault {
    Fault::new(Refusal::Stalled, "answers wait and are not read")
}

fn hasher(seed: u64) -> SeedableRandomState {
    SeedableRandomState::with_seed(seed, foldhash::SharedSeed::global_fixed())
}

#[cfg(test)]
mod tests;
