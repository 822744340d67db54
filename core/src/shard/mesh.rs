//! Towards the other shards: records out, records in.
//!
//! ```text
//!  a turn:   meet ─ outcomes of all neighbours, then requests, then deliveries
//!            ...    what the turn has for others is written into their rings
//!            send_off ─ published once per ring; `next_wake` says to whom
//! ```
//!
//! A record is a head, the fields of its kind and a tail. The other side is the same
//! program in the same process, so what comes in is obeyed and not doubted; a record
//! that cannot be is a broken invariant.
//!
//! Nothing here waits. What finds no room in a ring lies in a backlog until there is
//! some; what comes in is copied where it belongs before the next record is looked at.

use core::fmt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::backlog::{self, Backlog, NOBODY};
use super::destination::Burden;
use super::intake::Intake;
use super::records::{self, delivery, outcome, request};
use super::{Fault, Shard};
use crate::catalog::placement::Placement;
use crate::error::Refusal;
use crate::frame::control::Delivery;
use crate::id::{Handle, ShardIndex};
use crate::memory::{Arena, ChunkId};
use crate::mesh::{Ends, Neighbour};
use crate::planted::Planted;
use crate::ring::{ClaimError, FRAGMENT_SIZE_MAX, Reader, Writer};
use crate::time::Now;

/// What every record begins with.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    /// Which of its ring's kinds it is.
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) reserved: U16,
    /// What it is about: a handle of the reader's, or a token of the asker's.
    pub(super) subject: U32,
}

/// Bytes of a record's head.
pub(super) const HEAD_SIZE: usize = size_of::<Head>();
/// Bytes that a record has at most behind its head.
pub(super) const BODY_MAX: usize = FRAGMENT_SIZE_MAX as usize - HEAD_SIZE;

/// One of a neighbour's rings, towards it.
#[derive(Debug)]
pub(super) struct Outlet {
    writer: Writer,
    backlog: Backlog,
    /// Something was written that is not published.
    fresh: bool,
}

impl Outlet {
    fn new(writer: Writer) -> Self {
        Self {
            writer,
            backlog: Backlog::default(),
            fresh: false,
        }
    }

    /// Writes the record that `parts` make up behind a head.
    #[inline]
    pub(super) fn write(&mut self, arena: &mut Arena, head: &Head, parts: &[&[u8]]) {
        self.write_for(NOBODY, arena, head, parts);
    }

    /// As [`Outlet::write`]; what finds no room in the ring is counted for a link.
    /// Returns how many bytes of memory that is.
    #[inline]
    fn write_for(
        &mut self,
        link: Handle,
        arena: &mut Arena,
        head: &Head,
        parts: &[&[u8]],
    ) -> usize {
        if self.try_write(head, parts) {
            return 0;
        }
        let mut all = [head.as_bytes(), &[], &[], &[]];
        all[1..=parts.len()].copy_from_slice(parts);
        self.backlog.push(arena, link, &all)
    }

    /// Writes a record that ends with bytes of the arena.
    #[inline]
    fn write_stored(
        &mut self,
        arena: &mut Arena,
        head: &Head,
        fields: &[u8],
        (chunk, start): (ChunkId, usize),
        length: usize,
    ) {
        let stored = &arena.bytes(chunk)[start..start + length];
        if !self.try_write(head, &[fields, stored]) {
            let stored = stored.to_vec();
            let parts = [head.as_bytes(), fields, &stored];
            self.backlog.push(arena, NOBODY, &parts);
        }
    }

    /// Writes a record into the ring, if there is room and nothing comes before it.
    #[inline]
    fn try_write(&mut self, head: &Head, parts: &[&[u8]]) -> bool {
        self.fresh = true;
        if !self.backlog.is_empty() {
            return false;
        }
        let size = HEAD_SIZE + parts.iter().map(|part| part.len()).sum::<usize>();
        let Ok(mut claim) = self.writer.claim(size) else {
            return false;
        };
        let (start, mut rest) = claim.split_at_mut(HEAD_SIZE);
        start.copy_from_slice(head.as_bytes());
        for part in parts {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        claim.commit();
        true
    }

    /// Moves what lies in the backlog into the ring as far as it goes, and shows the
    /// reader all of it; whether there was anything. What was counted for links and has
    /// gone is added to `gone`.
    #[inline]
    fn send_off(&mut self, arena: &mut Arena, gone: &mut Vec<(Handle, usize)>) -> bool {
        if !self.backlog.is_empty() {
            let writer = &mut self.writer;
            let mut moved = false;
            self.backlog
                .drain(arena, |link, record| match writer.push(record) {
                    Ok(()) => {
                        moved = true;
                        if link != NOBODY {
                            gone.push((link, backlog::size_of_record(record.len())));
                        }
                        true
                    }
                    Err(ClaimError::Full { .. }) => false,
                    Err(error) => panic!("a record fits its ring: {error}"),
                });
            self.fresh |= moved;
        }
        if core::mem::take(&mut self.fresh) {
            self.writer.publish_quietly();
            return true;
        }
        false
    }

    fn chunks(&self) -> usize {
        self.backlog.chunks()
    }
}

/// Another shard.
pub(super) struct Peer {
    pub(super) shard: ShardIndex,
    pub(super) requests: Outlet,
    pub(super) outcomes: Outlet,
    pub(super) deliveries: Outlet,
    /// Taken out while they are read.
    requests_in: Option<Reader>,
    outcomes_in: Option<Reader>,
    deliveries_in: Option<Reader>,
    /// A frame of it that comes in parts.
    intake: Intake,
    /// Its doorbell is to be rung.
    wakes: bool,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

impl From<Neighbour> for Peer {
    fn from(neighbour: Neighbour) -> Self {
        Self {
            shard: neighbour.shard,
            requests: Outlet::new(neighbour.requests_out),
            outcomes: Outlet::new(neighbour.outcomes_out),
            deliveries: Outlet::new(neighbour.deliveries_out),
            requests_in: Some(neighbour.requests_in),
            outcomes_in: Some(neighbour.outcomes_in),
            deliveries_in: Some(neighbour.deliveries_in),
            intake: Intake::default(),
            wakes: false,
        }
    }
}

impl Peer {
    fn reader(&mut self, lane: Lane) -> &mut Option<Reader> {
        match lane {
            Lane::Outcomes => &mut self.outcomes_in,
            Lane::Requests => &mut self.requests_in,
            Lane::Deliveries => &mut self.deliveries_in,
        }
    }

    fn has_mail(&self) -> bool {
        [&self.requests_in, &self.outcomes_in, &self.deliveries_in]
            .into_iter()
            .flatten()
            .any(Reader::has_more)
    }

    /// Whether something was written for it that it is not shown yet.
    fn has_fresh(&self) -> bool {
        [&self.requests, &self.outcomes, &self.deliveries]
            .iter()
            .any(|outlet| outlet.fresh)
    }

    fn has_backlog(&self) -> bool {
        [&self.requests, &self.outcomes, &self.deliveries]
            .iter()
            .any(|outlet| !outlet.backlog.is_empty())
    }
}

/// All other shards.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) placement: Placement,
    /// In the order of the shards, without this one.
    pub(super) peers: Vec<Peer>,
}

impl Mesh {
    pub(super) fn alone() -> Self {
        Self {
            placement: Placement::new(1),
            peers: Vec::new(),
        }
    }

    /// Chunks of the arena that wait to be read by others.
    pub(super) fn chunks(&self) -> usize {
        self.peers
            .iter()
            .map(|peer| {
                let outlets = [&peer.requests, &peer.outcomes, &peer.deliveries];
                peer.intake.chunks() + outlets.map(Outlet::chunks).iter().sum::<usize>()
            })
            .sum()
    }
}

/// Which of a neighbour's rings is read.
#[derive(Clone, Copy, Debug)]
enum Lane {
    Outcomes,
    Requests,
    Deliveries,
}

impl Shard {
    /// Makes the shard one of several; called before anything else.
    ///
    /// # Panics
    ///
    /// If the ends are another shard's.
    pub fn join(&mut self, ends: Ends) {
        assert_eq!(ends.shard(), self.config.shard, "a shard has its own ends");
        self.mesh.placement = Placement::new(ends.shards());
        self.burdens = vec![Burden::default(); usize::from(ends.shards())];
        self.mesh.peers = ends.neighbours.into_iter().map(Peer::from).collect();
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.mesh.placement.shards()
    }

    /// Takes in what other shards have sent; returns how many records that were. What
    /// became of our own requests goes first: it frees places, and can leave in this
    /// same turn.
    #[inline]
    pub fn meet(&mut self, now: Now) -> u32 {
        if self.mesh.peers.is_empty() {
            return 0;
        }
        let mut records = 0;
        for lane in [Lane::Outcomes, Lane::Requests, Lane::Deliveries] {
            for peer in 0..self.mesh.peers.len() {
                records += self.read(now, peer, lane);
            }
        }
        records
    }

    /// Whether nothing of other shards waits to be read, and nothing for them waits
    /// for room: only then may the thread sleep.
    #[must_use]
    pub fn mesh_is_empty(&self) -> bool {
        (self.mesh.peers.iter()).all(|peer| !peer.has_mail() && !peer.has_backlog())
    }

    /// The next shard that got something since this was last asked: it is to be woken
    /// if it sleeps.
    #[inline]
    pub fn next_wake(&mut self) -> Option<ShardIndex> {
        let peer = self.mesh.peers.iter_mut().find(|peer| peer.wakes)?;
        peer.wakes = false;
        Some(peer.shard)
    }

    /// Whether [`Shard::send_off`] would find something to do.
    #[inline]
    pub(super) fn can_send_off(&self) -> bool {
        self.mesh.peers.iter().any(Peer::has_fresh)
    }

    /// Shows the others what this turn had for them.
    #[inline]
    pub(super) fn send_off(&mut self) {
        let mut gone = Vec::new();
        for peer in &mut self.mesh.peers {
            let arena = &mut self.arena;
            let sent = peer.outcomes.send_off(arena, &mut gone) & !Planted::LoseWake.is_awake()
                | peer.requests.send_off(arena, &mut gone)
                | peer.deliveries.send_off(arena, &mut gone);
            peer.wakes |= sent;
        }
        for (link, bytes) in gone {
            self.catches_up(link, bytes);
        }
    }

    fn read(&mut self, now: Now, peer: usize, lane: Lane) -> u32 {
        let Some(mut reader) = self.mesh.peers[peer].reader(lane).take() else {
            return 0;
        };
        let mut records = 0;
        if reader.has_more() {
            let mut batch = reader.batch().expect("another shard's ring is sound");
            while let Some(record) = batch
                .next_fragment()
                .expect("another shard's ring is sound")
            {
                let (head, body) =
                    Head::read_from_prefix(record).expect("a record begins with its head");
                match lane {
                    Lane::Outcomes => self.outcome(now, peer, head, body),
                    Lane::Requests => self.request(now, peer, head, body),
                    Lane::Deliveries => self.delivery(now, peer, head, body),
                }
                records += 1;
            }
        }
        *self.mesh.peers[peer].reader(lane) = Some(reader);
        records
    }

    fn outcome(&mut self, now: Now, peer: usize, head: Head, body: &[u8]) {
        let shard = self.mesh.peers[peer].shard;
        let about = Handle(head.subject.get());
        match head.kind {
            outcome::ATTACHED => self.attached_branch(now, shard, about, fields(body)),
            outcome::REFUSED => self.refused_branch(now, about, &fault(body)),
            outcome::SETTLED => self.settled_branch(shard, about, body),
            outcome::GRANT => self.granted_branch(now, shard, about, fields(body)),
            outcome::DETACHED => self.detached_branch(about),
            outcome::FAULT => {
                if let Some(link) = self.producers.get(about).map(|front| front.link) {
                    self.fault(now, link, &fault(body));
                }
            }
            outcome::JOINED => {
                let (joined, starts) = split(body);
                self.joined_source(now, shard, about, joined, starts);
            }
            outcome::NOT_JOINED => self.refused_source(now, about, &fault(body)),
            outcome::ACKNOWLEDGED => {
                let confirmed: &records::Confirmed = fields(body);
                let (confirm, refusal) = (confirmed.confirm.get(), confirmed.refusal.get());
                if let Err(fault) = self.acknowledged(now, about, confirm, refusal)
                    && let Some(link) = self.consumers.get(about).map(|front| front.link)
                {
                    self.fault(now, link, &fault);
                }
            }
            outcome::LEFT => self.left_source(now, shard, about),
            outcome::DONE => self.answered(now, about, Ok(head.flags != 0)),
            outcome::NOT_DONE => self.answered(now, about, Err(fault(body))),
            outcome::ENDED => self.source_ended(about, &fault(body)),
            outcome::APPLIED => self.applied(now, peer, body),
            outcome::PASSED => self.passed(now, about),
            _ => unknown("outcome", head),
        }
    }

    fn request(&mut self, now: Now, peer: usize, head: Head, body: &[u8]) {
        let shard = self.mesh.peers[peer].shard;
        let about = Handle(head.subject.get());
        match head.kind {
            request::ATTACH => self.attach_or_wait(now, shard, about, fields(body)),
            request::FRAMES => self.frames(now, shard, body),
            request::PART => self.part(now, shard, body),
            request::WANT => {
                let want: &records::Want = fields(body);
                self.want_on_branch(now, about, want.bytes.get());
            }
            request::DETACH => self.end_branch(now, shard, about, head.flags),
            request::JOIN => self.join_asked(now, shard, about, body),
            request::LEASE => self.lend_to_source(about, fields(body)),
            request::ACKNOWLEDGE => {
                let (fields, runs) = split(body);
                let done = self.acknowledge_here(now, about, fields, runs);
                debug_assert!(done.is_ok(), "it has no link that could be at fault");
            }
            request::RETURN => {
                let (fields, runs) = split(body);
                self.give_back_here(now, about, fields, runs);
            }
            request::LEAVE => {
                self.end_source(now, shard, about, head.flags, fields(body));
            }
            request::PROPOSE
            | request::ALONE
            | request::FENCE
            | request::DROP
            | request::DROP_TOO => {
                self.answer_question(now, shard, about, head.kind, body);
            }
            request::APPLY => self.apply_decided(body),
            request::REPLACE => self.replace_asked(now, shard, about, fields(body)),
            request::PASS => self.pass(now, about, fields(body)),
            request::POLL => self.poll_source(shard, about, fields(body)),
            _ => unknown("request", head),
        }
    }

    fn delivery(&mut self, now: Now, peer: usize, head: Head, body: &[u8]) {
        let shard = self.mesh.peers[peer].shard;
        let about = Handle(head.subject.get());
        match head.kind {
            delivery::READY => self.source_ready(shard, about, head.flags != 0),
            delivery::RUN => {
                let (run, frames): (&records::Run, _) = split(body);
                let header = Delivery {
                    partition: run.partition,
                    count: run.count,
                    offset: run.offset,
                    delivery_count: run.delivery_count,
                    ..Delivery::default()
                };
                let size = run.size.get() as usize;
                self.arrived(now, shard, about, &header, size, frames);
            }
            delivery::MORE => self.arrived_more(about, body),
            delivery::LEFT_OVER => self.lease_left(shard, about),
            delivery::POLLED => {
                let polled: &records::Polled = fields(body);
                self.polled_source(about, polled.token.get());
            }
            _ => unknown("delivery", head),
        }
    }

    /// Asks something of another shard.
    #[inline]
    pub(super) fn request_of(&mut self, shard: ShardIndex, head: &Head, parts: &[&[u8]]) {
        let peer = peer_at(self.config.shard, shard);
        let outlet = &mut self.mesh.peers[peer].requests;
        outlet.write(&mut self.arena, head, parts);
    }

    /// Asks something of another shard that the client on `link` may ask for without end.
    ///
    /// # Errors
    ///
    /// If too much of it waits for other shards.
    pub(super) fn request_for(
        &mut self,
        link: Handle,
        shard: ShardIndex,
        head: &Head,
        parts: &[&[u8]],
    ) -> Result<(), Fault> {
        let peer = peer_at(self.config.shard, shard);
        let outlet = &mut self.mesh.peers[peer].requests;
        let waits = outlet.write_for(link, &mut self.arena, head, parts);
        if waits == 0 {
            return Ok(());
        }
        self.falls_behind(link, waits)
    }

    /// Answers another shard.
    #[inline]
    pub(super) fn outcome_for(&mut self, shard: ShardIndex, head: &Head, parts: &[&[u8]]) {
        let peer = peer_at(self.config.shard, shard);
        let outlet = &mut self.mesh.peers[peer].outcomes;
        outlet.write(&mut self.arena, head, parts);
    }

    /// Delivers to another shard.
    #[inline]
    pub(super) fn deliver_to(&mut self, shard: ShardIndex, head: &Head, parts: &[&[u8]]) {
        let peer = peer_at(self.config.shard, shard);
        let outlet = &mut self.mesh.peers[peer].deliveries;
        outlet.write(&mut self.arena, head, parts);
    }

    /// Delivers what is stored, behind `fields`, to another shard.
    #[inline]
    pub(super) fn deliver_stored_to(
        &mut self,
        shard: ShardIndex,
        head: &Head,
        fields: &[u8],
        place: (ChunkId, usize),
        length: usize,
    ) {
        let peer = peer_at(self.config.shard, shard);
        let outlet = &mut self.mesh.peers[peer].deliveries;
        outlet.write_stored(&mut self.arena, head, fields, place, length);
    }

    /// What came of a frame from another shard that was too long for a record.
    pub(super) fn part_of(&mut self, link: Handle) -> Option<&mut Intake> {
        let shard = ShardIndex(u16::try_from(u32::MAX - link.0).ok()?);
        let own = self.config.shard;
        let peers = &mut self.mesh.peers;
        (shard != own)
            .then(|| peers.get_mut(peer_at(own, shard)))?
            .map(|peer| &mut peer.intake)
    }
}

/// Where a shard stands among the others.
#[inline]
fn peer_at(own: ShardIndex, shard: ShardIndex) -> usize {
    usize::from(shard.0) - usize::from(shard.0 > own.0)
}

/// What stands for the link that branches of a shard's fronts would be on: no link has
/// such a handle.
#[inline]
pub(super) fn link_to(shard: ShardIndex) -> Handle {
    Handle(u32::MAX - u32::from(shard.0))
}

fn fields<F: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> &F {
    split(body).0
}

fn split<F: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> (&F, &[u8]) {
    match F::ref_from_prefix(body) {
        Ok(split) => split,
        Err(_) => panic!("a record has the fields of its kind"),
    }
}

fn fault(body: &[u8]) -> Fault {
    let (fields, text) =
        records::Refused::ref_from_prefix(body).expect("a record has the fields of its kind");
    let refusal = Refusal::from_code(fields.refusal.get()).expect("shards know the same refusals");
    Fault::new(refusal, String::from_utf8_lossy(text))
}

#[cold]
fn unknown(what: &str, head: Head) -> ! {
    panic!(
        "another shard sent a {what} of kind {} about {}, which there is not",
        head.kind,
        Handle(head.subject.get())
    )
}
