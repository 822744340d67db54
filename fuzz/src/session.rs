//! A shard among hostile peers: any frames, whole and broken, on several links.
//!
//! A case is a list of acts:
//!
//! | act | then | |
//! |---|---|---|
//! | 0, 1, 2 | link, pieces, recipe | says a frame; see [`crate::peer`] for its names |
//! | 3 | link, pieces, bytes | says these bytes |
//! | 4 | link | connects, if it is not connected |
//! | 5 | link | is gone |
//! | 6 | link | reads no more, or reads again |
//! | 7 | link, count | reads so many bytes while it reads no more |
//! | 8 | tenths | time passes: so many tenths of a second |
//! | 9 | | the broker stops |
//!
//! What has to hold, after every act: nothing panics and the shard's invariants
//! stand; a link whose peer broke the protocol is closed; nobody is sent more than
//! was asked for; every send has one outcome, in its place; who reads has read all
//! there is. In the end every chunk has an owner, nobody is left, and memory stayed
//! within its plan.

use core::time::Duration;

use courser_core::counters::Counters;
use courser_core::id::{Handle, Installation, ShardIndex};
use courser_core::limits;
use courser_core::shard::{Attached, MemoryPlan, Output, Pieces, Shard, ShardConfig};
use courser_core::time::{Monotonic, Now, Wall};

use crate::heap;
use crate::peer::{self, Peer};
use crate::script::{Recipe, Script};

/// Links of a case.
pub const LINKS: usize = 4;
/// Turns until a shard has to come to rest that everybody listens to.
const TURNS_MAX: usize = 10_000;
/// Turns that a shard is given while somebody does not.
const TURNS_DEAF: usize = 16;
/// Acts of a case; what is behind them is not looked at.
const ACTS_MAX: u64 = 512;

/// What a case has somebody do.
#[derive(Clone, Copy, Debug)]
pub enum Act<'a> {
    /// Says a frame.
    Frame(Recipe<'a>),
    /// Says bytes.
    Bytes(&'a [u8]),
    /// Connects.
    Connect,
    /// Is gone.
    Vanish,
    /// Reads no more, or reads again.
    Turn,
    /// Reads so many bytes.
    Sip(usize),
    /// Time passes.
    Wait(Duration),
    /// The broker stops.
    Stop,
}

/// An act, whose it is, and the size of the pieces in which it says something.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Whose link.
    pub link: usize,
    /// In pieces of so many bytes.
    pub piece: usize,
    /// What happens.
    pub act: Act<'a>,
}

impl<'a> Scene<'a> {
    /// Reads one; nothing at the end.
    pub fn read(script: &mut Script<'a>) -> Option<Self> {
        let step = script.step()? % 10;
        let (link, piece) = match step {
            0..=3 => (script.byte(), script.byte()),
            4..=7 => (script.byte(), 0),
            _ => (0, 0),
        };
        let act = match step {
            0..=2 => Act::Frame(Recipe::read(script)),
            3 => Act::Bytes(script.bytes()),
            4 => Act::Connect,
            5 => Act::Vanish,
            6 => Act::Turn,
            7 => Act::Sip(usize::from(script.word())),
            8 => Act::Wait(Duration::from_millis(100 * u64::from(script.byte()))),
            _ => Act::Stop,
        };
        Some(Self {
            link: usize::from(link) % LINKS,
            piece: match piece {
                0 => usize::MAX,
                size => usize::from(size),
            },
            act,
        })
    }
}

/// Runs a case.
///
/// # Panics
///
/// If something does not hold.
pub fn run(case: &[u8]) {
    play(case);
}

/// Runs a case, and says what the shard counted.
///
/// # Panics
///
/// If something does not hold.
pub fn play(case: &[u8]) -> Counters {
    let plan = MemoryPlan::new(limits::MEMORY_MIN).expect("the least bound is accepted");
    let mut counters = Counters::default();
    let peak = heap::peak(|| {
        let mut world = World::new();
        let mut script = Script::new(case);
        while let Some(scene) = Scene::read(&mut script) {
            if world.acts == ACTS_MAX {
                break;
            }
            world.act(&scene);
        }
        counters = world.end();
    });
    assert!(
        peak <= plan.bound,
        "{peak} bytes were in use, the bound is {}",
        plan.bound
    );
    counters
}

/// A connection of the world, with whoever sits at its other end.
#[derive(Debug)]
struct Seat {
    link: Handle,
    peer: Peer,
    deaf: bool,
    /// The shard said that there is something to send.
    armed: bool,
    /// The shard wants it closed once it has sent everything.
    closing: bool,
}

struct World {
    shard: Shard,
    now: Now,
    seats: [Option<Seat>; LINKS],
    /// Who is gone.
    gone: Vec<Peer>,
    acts: u64,
    stopped: bool,
}

impl World {
    fn new() -> Self {
        let shard = Shard::new(ShardConfig {
            installation: Installation(0xc0ff_ee00),
            shard: ShardIndex(0),
            memory: limits::MEMORY_MIN,
            hash_seed: 7,
            auto_create: true,
        });
        let mut world = Self {
            shard: shard.expect("the least bound is accepted"),
            now: Now {
                monotonic: Monotonic(1_000_000_000),
                wall: Wall(1_700_000_000_000_000_000),
            },
            seats: [const { None }; LINKS],
            gone: Vec::new(),
            acts: 0,
            stopped: false,
        };
        // The first one is there from the beginning: most cases need somebody.
        world.connect(0);
        world.settle();
        world
    }

    fn act(&mut self, scene: &Scene<'_>) {
        self.acts += 1;
        let index = scene.link;
        match scene.act {
            Act::Frame(recipe) => {
                let foreign = self.foreign_to(index);
                let Some(seat) = &mut self.seats[index] else {
                    return;
                };
                let bytes = recipe.frame(&mut seat.peer.names(&foreign));
                self.say(index, &bytes, scene.piece);
            }
            Act::Bytes(bytes) => self.say(index, bytes, scene.piece),
            Act::Connect => self.connect(index),
            Act::Vanish => self.vanish(index),
            Act::Turn => {
                if let Some(seat) = &mut self.seats[index] {
                    seat.deaf = !seat.deaf;
                }
            }
            Act::Sip(bytes) => self.read(index, bytes),
            Act::Wait(duration) => {
                self.now.monotonic = self.now.monotonic.after(duration);
                self.shard.expire(self.now);
            }
            Act::Stop => {
                self.stopped = true;
                self.shard.stop(self.now);
            }
        }
        self.settle();
        self.check();
    }

    fn connect(&mut self, index: usize) {
        if self.seats[index].is_some() {
            return;
        }
        match self.shard.attached(self.now, Attached::default()) {
            Ok(link) => {
                self.seats[index] = Some(Seat {
                    link,
                    peer: Peer::default(),
                    deaf: false,
                    armed: false,
                    closing: false,
                });
            }
            Err(refusal) => assert!(self.stopped, "{refusal:?}"),
        }
    }

    fn vanish(&mut self, index: usize) {
        if let Some(seat) = self.seats[index].take() {
            self.shard.closed(self.now, seat.link);
            self.gone.push(seat.peer);
        }
    }

    fn say(&mut self, index: usize, bytes: &[u8], piece: usize) {
        let Some(seat) = &mut self.seats[index] else {
            return;
        };
        if seat.closing {
            return;
        }
        // Small pieces of large frames would take for ever.
        let piece = piece.max(bytes.len() / 1024).max(1);
        for piece in bytes.chunks(piece) {
            seat.peer.said(piece);
            self.shard.received(self.now, seat.link, piece);
        }
    }

    /// Has the shard act until there is nothing left to do, and everybody read who
    /// reads.
    fn settle(&mut self) {
        for turn in 0.. {
            self.shard.turn(self.now);
            while let Some(output) = self.shard.output() {
                self.obey(output);
            }
            for index in 0..LINKS {
                if self.seats[index].as_ref().is_some_and(|seat| !seat.deaf) {
                    self.read(index, usize::MAX);
                }
            }
            if !self.shard.has_work() {
                break;
            }
            let deaf = self.seats.iter().flatten().any(|seat| seat.deaf);
            if deaf && turn >= TURNS_DEAF {
                break;
            }
            assert!(turn < TURNS_MAX, "the shard never comes to rest");
        }
    }

    fn obey(&mut self, output: Output) {
        let (Output::Send(link) | Output::Close { link, .. } | Output::HandOver(link)) = output;
        // An output about who is gone means nothing.
        let Some(index) = self
            .seats
            .iter()
            .position(|seat| seat.as_ref().is_some_and(|seat| seat.link == link))
        else {
            return;
        };
        let Some(seat) = &mut self.seats[index] else {
            return;
        };
        match output {
            Output::Send(_) => seat.armed = true,
            Output::Close { flush: true, .. } => {
                seat.armed = true;
                seat.closing = true;
            }
            Output::Close { flush: false, .. } => self.vanish(index),
            Output::HandOver(_) => unreachable!("there is no other shard"),
        }
    }

    /// The peer reads at most `most` bytes, if the driver was told of any.
    fn read(&mut self, index: usize, mut most: usize) {
        while let Some(seat) = &mut self.seats[index] {
            if !seat.armed {
                return;
            }
            let mut pieces = Pieces::new();
            self.shard.pieces(seat.link, &mut pieces);
            let mut taken = 0;
            for slice in pieces.slices() {
                let size = slice.len().min(most);
                seat.peer.heard(&slice[..size]);
                taken += size;
                most -= size;
            }
            if taken == 0 {
                // All of it has left, or the peer takes no more.
                let all = pieces.slices().is_empty();
                seat.armed = !all;
                if all && seat.closing {
                    assert!(seat.peer.heard_whole_frames(), "closed within a frame");
                    self.vanish(index);
                }
                return;
            }
            self.shard.sent(self.now, seat.link, taken);
        }
    }

    fn check(&self) {
        self.shard.invariants();
        for seat in self.seats.iter().flatten() {
            if let Some(broken) = seat.peer.broken() {
                assert!(seat.closing, "a link goes on after {broken}");
            }
            assert!(
                seat.deaf || seat.peer.heard_whole_frames(),
                "who reads has read whole frames"
            );
        }
        let everybody = self.seats.iter().flatten().map(|seat| &seat.peer);
        peer::assert_no_amplification(everybody.chain(&self.gone), self.acts);
        // A link that is ending counts until its last byte has left.
        assert_eq!(
            self.shard.links(),
            self.seats.iter().flatten().count(),
            "links that are open"
        );
    }

    /// Everybody reads what is left, and goes.
    fn end(mut self) -> Counters {
        self.shard.audit();
        for seat in self.seats.iter_mut().flatten() {
            seat.deaf = false;
        }
        self.settle();
        self.check();
        for index in 0..LINKS {
            self.vanish(index);
        }
        self.settle();
        assert!(self.shard.is_drained());
        self.shard.audit();
        self.shard.counters().clone()
    }

    fn foreign_to(&self, index: usize) -> Vec<u32> {
        let others = self.seats.iter().enumerate();
        others
            .filter(|(other, _)| *other != index)
            .filter_map(|(_, seat)| seat.as_ref())
            .flat_map(|seat| seat.peer.handles().iter().copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds;
    use courser_core::counters::Counter;

    /// A seed that no longer gets as far as it should is a target that lost its depth.
    #[test]
    fn seeds_reach_storing_delivering_settling_returning_and_faults() {
        let counters = |name: &str| {
            let mut seeds = seeds::of("session").into_iter();
            let seed = seeds.find(|seed| seed.name == format!("seed-{name}"));
            play(&seed.expect("a seed of this name").bytes)
        };
        let returned = counters("returned");
        for (counter, expected) in [
            (Counter::MessagesStored, 6),
            (Counter::MessagesReturned, 4),
            (Counter::MessagesRedelivered, 4),
            (Counter::MessagesSettled, 6),
            (Counter::LinksFaulted, 0),
        ] {
            assert_eq!(returned.read(counter), expected, "{}", counter.name());
        }
        assert!(counters("large").read(Counter::BytesStored) > 200 << 10);
        for name in ["beyond-credit", "begun", "foreign", "deaf"] {
            assert_eq!(counters(name).read(Counter::LinksFaulted), 1, "{name}");
        }
        // The one behind a gap, and the next, for which it is a gap; the repeated one has
        // the outcome that it had before.
        assert_eq!(counters("sequences").read(Counter::SendsRefused), 2);
    }
}
