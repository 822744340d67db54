//! Links without a socket: the application and a shard of the same process, over two
//! rings of bytes.
//!
//! ```text
//!   application's thread                                    shard's thread
//!   Connector ---- connect ----> inbox, doorbell ---------> Guest, not introduced
//!   Stream: write --> [hello|frames.......] ring ---------> pull -> Shard::received
//!           read  <-- ring [welcome|frames.......] <------- push <- Shard::pieces
//! ```
//!
//! Cast: a [`Connector`] hands out links of one broker; a [`Stream`] is the application's
//! end of one, a [`Guest`] the shard's. Both ends are alike, an [`End`]: it writes into
//! one ring and reads the other.
//!
//! **Who wakes whom.** Each side has one doorbell for whatever it waits for, and its last
//! look before a sleep is into all of it: the ring that it reads, and room in the one it
//! writes if it has something left. So the other side rings after what it published, and
//! after what it has read too; the latter not each time, but once for each quarter of the
//! ring ([`Tally`]). Where the shard's end of a link is says its [`Whereabouts`]. Both have
//! models for every interleaving, as the word of the bell has.
//!
//! Invariants:
//! - an end that goes closes its rings first and rings then, so that its peer looks;
//! - links count from the time they are asked for until both their ends are gone.
//!
//! What it does not do: understand a byte of it, but for the hello, which says who comes.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use courser_core::id::ShardIndex;
use courser_core::limits;
use courser_core::ring::{FRAGMENT_SIZE_MAX, Reader, Tally, Whereabouts, Writer, ring};

use crate::doorbell::Doorbell;
use crate::engine::Engine;
use crate::handoff::Sender;
use crate::sys::Errno;
use crate::worker::Arrival;

/// Bytes of each ring.
const RING_SIZE: u32 = limits::IN_PROCESS_RING_SIZE;
/// What a record takes besides its fragment, at most.
const RECORD_EXTRA: usize = 16;
/// The shortest fragment that a longer text is cut into. Whoever waits for room waits for
/// so much of it.
const PART_SIZE_MIN: usize = 1024;

const _: () = assert!(
    FRAGMENT_SIZE_MAX <= RING_SIZE / 4,
    "a ring without room for a part is more than half full"
);

/// Bytes of both rings of a link.
pub(crate) const LINK_SIZE: u64 = 2 * RING_SIZE as u64;

/// Why there is no link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoLink {
    /// There are as many as the broker was started for.
    #[error(
        "the broker has its {most} in-process links already; start it with more (BrokerConfig::links_in_process) or share a client"
    )]
    TooMany {
        /// How many those are.
        most: u16,
    },
    /// It has stopped.
    #[error("the broker in this process has stopped")]
    Stopped,
    /// There is no such shard.
    #[error("the broker in this process has no shard beyond {last}, and not {shard}")]
    NoShard {
        /// The one that was asked for.
        shard: ShardIndex,
        /// The last there is.
        last: ShardIndex,
    },
    /// The kernel gives no bell to sleep at.
    #[error("the kernel refused an in-process link its bell: {0}")]
    Bell(Errno),
}

/// Where in-process links are had; a clone is the same one.
#[derive(Clone)]
pub struct Connector {
    entrance: Arc<Entrance>,
}

/// What all links of a broker share.
struct Entrance {
    /// The ways to each shard's worker, by shard. They end when the worker does.
    ways: Vec<Sender<Arrival>>,
    /// How many links there are. Only counted: nothing is published with it.
    open: AtomicU16,
    most: u16,
    /// Where the next link goes that asks for no shard.
    next: AtomicU16,
    /// The broker itself, if it has no thread.
    engine: Option<Arc<Engine>>,
}

impl Connector {
    pub(crate) fn new(ways: Vec<Sender<Arrival>>, most: u16, engine: Option<Arc<Engine>>) -> Self {
        Self {
            entrance: Arc::new(Entrance {
                ways,
                open: AtomicU16::new(0),
                most,
                next: AtomicU16::new(0),
                engine,
            }),
        }
    }

    /// A link to a shard, or to one after the other. The hello is the first thing to be
    /// written, and the answer to it says whether the link stands.
    ///
    /// # Errors
    ///
    /// If there is no such shard, no link to be had, or no broker any more.
    pub fn connect(&self, shard: Option<ShardIndex>) -> Result<Stream, NoLink> {
        let entrance = &self.entrance;
        let shards = u16::try_from(entrance.ways.len()).unwrap_or(u16::MAX);
        let shard = match shard {
            Some(shard) if shard.0 >= shards => {
                let last = ShardIndex(shards.saturating_sub(1));
                return Err(NoLink::NoShard { shard, last });
            }
            Some(shard) => shard,
            None => ShardIndex(entrance.next.fetch_add(1, Ordering::Relaxed) % shards),
        };
        let counted = Counted::among(entrance)?;
        let bell = Doorbell::new().map_err(NoLink::Bell)?;
        let (up_in, up_out) = ring(RING_SIZE).expect("the size is a ring's");
        let (down_in, down_out) = ring(RING_SIZE).expect("the size is a ring's");
        let shared = Arc::new(Shared {
            counted,
            bell,
            shard: Whereabouts::at(shard.0),
        });
        let stream = Stream {
            end: End::new(down_out, up_in),
            last_word: AtShard(Arc::clone(&shared)),
        };
        let guest = Guest {
            end: End::new(up_out, down_in),
            last_word: AtClient(shared),
        };
        let way = &entrance.ways[usize::from(shard.0)];
        match way.post(Arrival::Guest(guest, None)) {
            Ok(()) => Ok(stream),
            // Full is a queue of a thousand, more than there may be links.
            Err(_) => Err(NoLink::Stopped),
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("shards", &self.entrance.ways.len())
            .field("open", &self.entrance.open)
            .field("most", &self.entrance.most)
            .finish_non_exhaustive()
    }
}

/// A link that is counted.
struct Counted(Arc<Entrance>);

impl Counted {
    fn among(entrance: &Arc<Entrance>) -> Result<Self, NoLink> {
        let most = entrance.most;
        let one_more = |open: u16| (open < most).then(|| open + 1);
        entrance
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map(|_| Self(Arc::clone(entrance)))
            .map_err(|_| NoLink::TooMany { most })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What both ends of a link have.
struct Shared {
    counted: Counted,
    /// The application's.
    bell: Doorbell,
    /// Where the other end is: the shard that has taken it in, or is about to.
    shard: Whereabouts,
}

impl Shared {
    /// By the application, behind what it published or read.
    fn ring_shard(&self) {
        self.shard.ring(|shard| {
            if let Some(way) = self.counted.0.ways.get(usize::from(shard)) {
                way.ring();
            }
        });
    }
}

/// Rings the shard when it is dropped, behind the rings of its end.
struct AtShard(Arc<Shared>);

impl Drop for AtShard {
    fn drop(&mut self) {
        self.0.ring_shard();
        if let Some(engine) = &self.0.counted.0.engine {
            engine.drive();
        }
    }
}

/// Rings the application when it is dropped, behind the rings of its end.
struct AtClient(Arc<Shared>);

impl Drop for AtClient {
    fn drop(&mut self) {
        self.0.bell.ring();
    }
}

/// One end: what it reads, and what it writes.
struct End {
    reader: Reader,
    writer: Writer,
    /// What was read that the peer was not told of.
    tally: Tally,
}

impl End {
    fn new(reader: Reader, writer: Writer) -> Self {
        Self {
            reader,
            writer,
            tally: Tally::of(RING_SIZE),
        }
    }

    /// Copies as much of the pieces as there is room for, in their order, and publishes
    /// it; how many bytes that were.
    #[inline]
    fn push(&mut self, pieces: &[&[u8]]) -> usize {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut pieces = pieces.iter();
        let mut piece: &[u8] = &[];
        let mut done = 0;
        while done < total {
            let mut size = (total - done).min(FRAGMENT_SIZE_MAX as usize);
            let mut claim = loop {
                match self.writer.claim(size) {
                    Ok(claim) => break claim,
                    Err(_) if size > PART_SIZE_MIN => size = (size / 2).max(PART_SIZE_MIN),
                    Err(_) => {
                        self.writer.publish_quietly();
                        return done;
                    }
                }
            };
            let mut rest: &mut [u8] = &mut claim;
            while !rest.is_empty() {
                if piece.is_empty() {
                    piece = pieces.next().expect("their lengths were added up");
                    continue;
                }
                let count = piece.len().min(rest.len());
                let (now, later) = piece.split_at(count);
                let (place, behind) = rest.split_at_mut(count);
                place.copy_from_slice(now);
                (piece, rest) = (later, behind);
            }
            claim.commit();
            done += size;
        }
        self.writer.publish_quietly();
        done
    }

    /// Hands over what is there; whether anything was. A broken ring is a closed one.
    #[inline]
    fn pull(&mut self, mut take: impl FnMut(&[u8])) -> bool {
        let tally = &mut self.tally;
        let read = self.reader.read(|bytes| {
            tally.read(bytes.len() + RECORD_EXTRA);
            take(bytes);
        });
        read.is_ok_and(|count| count > 0)
    }

    /// Whether the peer should look whether there is room now; see the module.
    #[inline]
    fn tells(&mut self) -> bool {
        self.tally.tells()
    }

    /// Whether a part of what is left can be written.
    fn has_room(&mut self) -> bool {
        self.writer.claim(PART_SIZE_MIN).is_ok()
    }

    /// Whether a look brings something: bytes, or the end.
    #[inline]
    fn has_news(&self) -> bool {
        self.reader.has_more() || self.reader.is_closed()
    }
}

/// The application's end of a link. Dropped, the link ends.
pub struct Stream {
    /// Before the last word, so that it is closed when that is said.
    end: End,
    last_word: AtShard,
}

impl Stream {
    fn shared(&self) -> &Shared {
        &self.last_word.0
    }

    fn engine(&self) -> Option<&Engine> {
        self.shared().counted.0.engine.as_deref()
    }

    /// Writes as much of the pieces as there is room for; how many bytes that were. A
    /// copy, no system call unless the shard sleeps.
    #[inline]
    pub fn write(&mut self, pieces: &[&[u8]]) -> usize {
        let count = self.end.push(pieces);
        if count > 0 {
            self.shared().ring_shard();
        }
        count
    }

    /// Nothing more is written or read for now: a broker without a thread acts on it.
    #[inline]
    pub fn flush(&self) {
        if let Some(engine) = self.engine() {
            engine.drive();
        }
    }

    /// Hands over what is there, in place; whether anything was. If nothing is, a broker
    /// without a thread takes a turn first.
    #[inline]
    pub fn read(&mut self, take: impl FnMut(&[u8])) -> bool {
        if !self.end.has_news()
            && let Some(engine) = self.engine()
        {
            engine.turn();
        }
        let any = self.end.pull(take);
        if any && self.end.tells() {
            self.shared().ring_shard();
        }
        any
    }

    /// Whether the shard's end is gone and everything from there was read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.end.reader.is_closed()
    }

    /// Announces that somebody sleeps at the bell, and looks once more; false if there is
    /// something to read, or, if that is waited for, room to write. Whoever sleeps or
    /// announces holds what the stream lies in, so one at a time comes here.
    ///
    /// The bell is silenced here and nowhere else: several may sleep at it, and as long
    /// as one does, it is either raised or announced.
    #[must_use]
    pub fn announce_sleep(&mut self, waits_for_room: bool) -> bool {
        // What was read has made room, which nobody else may look for.
        self.flush();
        let bell = &self.last_word.0.bell;
        bell.silence();
        bell.announce_sleep();
        let has_room = waits_for_room && self.end.has_room();
        !(has_room || self.end.has_news())
    }

    /// Nobody sleeps at the bell any more.
    pub fn announce_awake(&self) {
        self.shared().bell.announce_awake();
    }

    /// What to sleep at: readable when there is reason to look.
    #[must_use]
    pub fn bell(&self) -> Bell {
        Bell(self.shared().bell.clone())
    }

    /// How long until a broker without a thread has to be turned though nothing happens.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.engine()?.time_left()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("shard", &self.shared().shard)
            .finish_non_exhaustive()
    }
}

/// What the application's end of a link sleeps at.
#[derive(Debug, Clone)]
pub struct Bell(Doorbell);

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.counter()
    }
}

/// The shard's end of a link. Dropped, the link ends.
pub(crate) struct Guest {
    /// Before the last word, so that it is closed when that is said.
    end: End,
    last_word: AtClient,
}

impl Guest {
    /// Copies as much as there is room for; how many bytes that were. The application is
    /// told by [`Guest::ring`].
    #[inline]
    pub(crate) fn push(&mut self, pieces: &[&[u8]]) -> usize {
        self.end.push(pieces)
    }

    /// Behind what was pushed.
    #[inline]
    pub(crate) fn ring(&self) {
        self.last_word.0.bell.ring();
    }

    /// Hands over what is there; whether anything was.
    #[inline]
    pub(crate) fn pull(&mut self, take: impl FnMut(&[u8])) -> bool {
        let any = self.end.pull(take);
        if any && self.end.tells() {
            self.ring();
        }
        any
    }

    /// Whether a look brings something: bytes, or the end.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.end.has_news()
    }

    /// Whether the application's end is gone.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.end.reader.is_closed()
    }

    /// Whether some of what is left can be pushed now.
    pub(crate) fn has_room(&mut self) -> bool {
        self.end.has_room()
    }

    /// The shard has it from here on, and looks into it next.
    pub(crate) fn taken_in(&self, shard: ShardIndex) {
        self.last_word.0.shard.moved(shard.0);
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("shard", &self.last_word.0.shard)
            .finish_non_exhaustive()
    }
}
