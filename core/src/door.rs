//! The door: strangers say hello here, off the shards.
//!
//! ```text
//! accepted ─> stranger ─ received ─> hello complete? ─> Output::HandOver (to a shard, with what came behind)
//!                          │ late, malformed, too many   ─> Output::Farewell, then the connection ends
//! ```
//!
//! A deterministic machine like the shard. A stranger costs at most
//! [`limits::HELLO_SIZE_MAX`] bytes and [`limits::HELLO_TIMEOUT`]; nothing but a
//! hello is parsed. Counts are kept in all and per address; where strangers are
//! too many the oldest of them goes.
//!
//! A link goes to the shard that its hello asks for. One that asks for none goes where
//! the link was that it replaces, which can be ended only there; any other to each
//! shard in turn.

use std::collections::VecDeque;

use foldhash::quality::SeedableRandomState;
use hashbrown::HashMap;

use crate::auth::Principal;
use crate::error::Refusal;
use crate::frame::control::{Control, Farewell, Hello};
use crate::frame::decode::{self, Frame, Step};
use crate::frame::{MAGIC, VERSION, encode};
use crate::id::{Handle, LinkNumber, ShardIndex};
use crate::limits;
use crate::shard::Attached;
use crate::slab::Slab;
use crate::time::{Monotonic, Now};

/// Where a connection comes from: an IP address, without the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 16]);

/// Bounds of one door; the defaults are those of [`limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorLimits {
    /// Connections, strangers included.
    pub links: u32,
    /// Connections from one address.
    pub links_per_address: u32,
    /// Strangers.
    pub strange: u32,
    /// Strangers from one address.
    pub strange_per_address: u32,
    /// Shards that a link can go to, at least 1.
    pub shards: u16,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self {
            links: limits::LINKS_MAX,
            links_per_address: limits::LINKS_PER_ADDRESS_MAX,
            strange: limits::LINKS_STRANGE_MAX,
            strange_per_address: limits::LINKS_STRANGE_PER_ADDRESS_MAX,
            shards: 1,
        }
    }
}

/// What the door would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The connection said hello: give it to a shard.
    HandOver {
        /// The stranger, who is one no longer.
        stranger: Handle,
        /// Which shard.
        shard: ShardIndex,
        /// What the shard is to know of it.
        attached: Attached,
    },
    /// Write these bytes if the socket takes them at once, then end the connection.
    Farewell {
        /// The stranger.
        stranger: Handle,
        /// A whole frame.
        bytes: Vec<u8>,
    },
}

#[derive(Debug)]
struct Stranger {
    address: Address,
    bytes: Vec<u8>,
    deadline: Monotonic,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Connections, strangers included.
    links: u32,
    strange: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Door {
    limits: DoorLimits,
    strangers: Slab<Stranger>,
    /// Strangers by age; some are gone.
    ages: VecDeque<Handle>,
    links: u32,
    /// Where the next link goes that has no wish.
    next_shard: u16,
    counts: HashMap<Address, Count, SeedableRandomState>,
    outputs: VecDeque<Output>,
}

impl Door {
    /// A door with nobody before it. `hash_seed` keeps addresses from colliding
    /// by design.
    #[must_use]
    pub fn new(limits: DoorLimits, hash_seed: u64) -> Self {
        let state = SeedableRandomState::with_seed(hash_seed, foldhash::SharedSeed::global_fixed());
        Self {
            limits,
            strangers: Slab::new(limits.strange),
            ages: VecDeque::new(),
            links: 0,
            next_shard: 0,
            counts: HashMap::with_hasher(state),
            outputs: VecDeque::new(),
        }
    }

    /// A connection was accepted.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyLinks`] if there are too many in all or from its address:
    /// write [`Door::farewell`] and end it.
    pub fn accepted(&mut self, now: Now, address: Address) -> Result<Handle, Refusal> {
        let count = self.counts.get(&address).copied().unwrap_or_default();
        if self.links >= self.limits.links || count.links >= self.limits.links_per_address {
            return Err(Refusal::TooManyLinks);
        }
        if count.strange >= self.limits.strange_per_address {
            self.evict_oldest(Some(address));
        } else if self.strangers.len() >= self.limits.strange as usize {
            self.evict_oldest(None);
        }
        let stranger = Stranger {
            address,
            bytes: Vec::new(),
            deadline: now.monotonic.after(limits::HELLO_TIMEOUT),
        };
        let handle = self
            .strangers
            .insert(stranger)
            .map_err(|_| Refusal::TooManyLinks)?;
        self.ages.push_back(handle);
        self.links += 1;
        let count = self.counts.entry(address).or_default();
        count.links += 1;
        count.strange += 1;
        Ok(handle)
    }

    /// Bytes came from a stranger.
    pub fn received(&mut self, stranger: Handle, bytes: &[u8]) {
        let Some(entry) = self.strangers.get_mut(stranger) else {
            return;
        };
        entry.bytes.extend_from_slice(bytes);
        // What comes behind a hello before the answer is the first request or two.
        let most = limits::HELLO_SIZE_MAX as usize;
        match hello(&entry.bytes) {
            Ok(None) if entry.bytes.len() <= most => {}
            Ok(None) => self.refuse(stranger, Refusal::FrameTooLarge),
            Ok(Some(greeting)) if entry.bytes.len() - greeting.size <= most => {
                let leftover = entry.bytes.split_off(greeting.size);
                let Some(shard) = self.shard_for(&greeting) else {
                    let text =
                        format!("this broker has no shard beyond {}", self.limits.shards - 1);
                    return self.refuse_saying(stranger, Refusal::IllegalArgument, &text);
                };
                self.settle(stranger, true);
                self.outputs.push_back(Output::HandOver {
                    stranger,
                    shard,
                    attached: Attached {
                        principal: Principal::ANONYMOUS,
                        name: greeting.name,
                        replaces: greeting.replaces,
                        leftover,
                        ..Attached::default()
                    },
                });
            }
            Ok(Some(_)) => self.refuse(stranger, Refusal::FrameTooLarge),
            Err(refusal) => self.refuse(stranger, refusal),
        }
    }

    /// A stranger's connection is gone.
    pub fn closed(&mut self, stranger: Handle) {
        self.settle(stranger, false);
    }

    /// A connection that was handed over is gone.
    pub fn left(&mut self, address: Address) {
        self.links = self.links.saturating_sub(1);
        if let Some(count) = self.counts.get_mut(&address) {
            count.links = count.links.saturating_sub(1);
            if count.links == 0 {
                self.counts.remove(&address);
            }
        }
    }

    /// Time has passed: strangers who took too long go.
    pub fn expire(&mut self, now: Now) {
        while let Some(stranger) = self.ages.front().copied() {
            match self.strangers.get(stranger) {
                None => {
                    self.ages.pop_front();
                }
                Some(entry) if entry.deadline <= now.monotonic => {
                    self.refuse(stranger, Refusal::HelloTimeout);
                }
                Some(_) => break,
            }
        }
    }

    /// What is to be done, until `None`.
    pub fn output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Door::expire`] has to be called next, if at all.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Monotonic> {
        self.ages
            .iter()
            .find_map(|stranger| self.strangers.get(*stranger))
            .map(|stranger| stranger.deadline)
    }

    /// Connections, strangers included.
    #[must_use]
    pub fn links(&self) -> u32 {
        self.links
    }

    /// The frame that ends a connection for `refusal`.
    #[must_use]
    pub fn farewell(refusal: Refusal) -> Vec<u8> {
        Self::farewell_saying(refusal, "")
    }

    fn farewell_saying(refusal: Refusal, text: &str) -> Vec<u8> {
        let fields = Farewell {
            refusal: refusal.code().into(),
            version_min: VERSION,
            version_max: VERSION,
            text_length: u32::try_from(text.len()).expect("the text is short").into(),
        };
        let mut bytes = vec![0; encode::control_size::<Farewell>(text.len())];
        encode::control(0, &fields, &[text.as_bytes()], &mut bytes);
        bytes
    }

    /// The shard that a link is for; `None` if it asks for one that does not exist.
    fn shard_for(&mut self, greeting: &Greeting) -> Option<ShardIndex> {
        let shards = self.limits.shards.max(1);
        if let Some(wanted) = greeting.shard {
            return (wanted < shards).then_some(ShardIndex(wanted));
        }
        let before = greeting.replaces.map(LinkNumber::shard);
        // A broker that was started again may have fewer.
        if let Some(before) = before.filter(|before| before.0 < shards) {
            return Some(before);
        }
        let next = self.next_shard;
        self.next_shard = (next + 1) % shards;
        Some(ShardIndex(next))
    }

    fn evict_oldest(&mut self, of: Option<Address>) {
        let oldest = self.ages.iter().copied().find(|stranger| {
            self.strangers
                .get(*stranger)
                .is_some_and(|entry| of.is_none_or(|address| entry.address == address))
        });
        if let Some(stranger) = oldest {
            self.refuse(stranger, Refusal::TooManyLinks);
        }
    }

    fn refuse(&mut self, stranger: Handle, refusal: Refusal) {
        self.refuse_saying(stranger, refusal, "");
    }

    fn refuse_saying(&mut self, stranger: Handle, refusal: Refusal, text: &str) {
        self.settle(stranger, false);
        self.outputs.push_back(Output::Farewell {
            stranger,
            bytes: Self::farewell_saying(refusal, text),
        });
    }

    /// A stranger is one no longer: it got in, or it is gone.
    fn settle(&mut self, stranger: Handle, inside: bool) {
        let Some(entry) = self.strangers.remove(stranger) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&entry.address) {
            count.strange = count.strange.saturating_sub(1);
        }
        if !inside {
            self.left(entry.address);
        }
        // Those who are gone leave the list from its front, or all at once when
        // they are most of it.
        while self
            .ages
            .front()
            .is_some_and(|front| self.strangers.get(*front).is_none())
        {
            self.ages.pop_front();
        }
        if self.ages.len() > 2 * self.strangers.len() + 64 {
            let strangers = &self.strangers;
            self.ages
                .retain(|stranger| strangers.get(*stranger).is_some());
        }
    }
}

/// What the hello of a link says that no door has to be kept for, because it comes from
/// this process: the link, and the shard that it asks for. `None` while the hello is not
/// complete.
///
/// # Errors
///
/// Why it is none, or not one that is obeyed.
pub fn introduction(bytes: &[u8]) -> Result<Option<(Attached, Option<ShardIndex>)>, Refusal> {
    let Some(greeting) = hello(bytes)? else {
        return match bytes.len() <= limits::HELLO_SIZE_MAX as usize {
            true => Ok(None),
            false => Err(Refusal::FrameTooLarge),
        };
    };
    let attached = Attached {
        principal: Principal::ANONYMOUS,
        name: greeting.name,
        replaces: greeting.replaces,
        leftover: bytes[greeting.size..].to_vec(),
        patient: true,
        ..Attached::default()
    };
    Ok(Some((attached, greeting.shard.map(ShardIndex))))
}

struct Greeting {
    size: usize,
    shard: Option<u16>,
    name: String,
    replaces: Option<LinkNumber>,
}

/// The hello at the front of `bytes`; `None` if it is not complete.
fn hello(bytes: &[u8]) -> Result<Option<Greeting>, Refusal> {
    // A connection that is none of ours is recognised by its first bytes, before
    // it could have us wait for a length that it never meant.
    let (fields, size, name) = match decode::peek(bytes) {
        Ok(None) => return Ok(None),
        Ok(Some(peek)) if peek.kind == crate::frame::Kind::Hello => match decode::decode(bytes) {
            Ok(Step::Frame(
                Frame::Control {
                    control: Control::Hello(fields, tail),
                    ..
                },
                size,
            )) => (fields, size, tail),
            Ok(Step::Incomplete(_)) => return Ok(None),
            Ok(Step::Frame(..)) => return Err(Refusal::Unexpected),
            Err(error) => return Err(error.refusal()),
        },
        Ok(Some(_)) => return Err(Refusal::Unexpected),
        Err(error) => return Err(error.refusal()),
    };
    let Hello {
        magic,
        version_min,
        version_max,
        shard,
        name_length,
        link,
        ..
    } = fields;
    if *magic != MAGIC {
        return Err(Refusal::Malformed);
    }
    if *version_min > VERSION || *version_max < VERSION {
        return Err(Refusal::VersionUnsupported);
    }
    let (name, _) = decode::text(name, name_length.get()).ok_or(Refusal::Malformed)?;
    if name.len() > limits::NAME_SIZE_MAX as usize {
        return Err(Refusal::IllegalArgument);
    }
    let shard = Some(shard.get()).filter(|shard| *shard != u16::MAX);
    Ok(Some(Greeting {
        size,
        shard,
        name: name.to_owned(),
        replaces: Some(LinkNumber(link.get())).filter(|link| link.0 != 0),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use core::time::Duration;

    const HERE: Address = Address([1; 16]);

    fn at(millis: u64) -> Now {
        Now {
            monotonic: Monotonic(0).after(Duration::from_millis(millis)),
            ..Now::default()
        }
    }

    fn greeting(fields: Hello, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let size = encode::control(0, &fields, &[name.as_bytes()], &mut bytes);
        bytes.truncate(size);
        bytes
    }

    fn plain() -> Hello {
        Hello {
            magic: MAGIC,
            version_min: 1,
            version_max: 3,
            shard: u16::MAX.into(),
            name_length: 3.into(),
            ..Hello::default()
        }
    }

    fn refusal(output: Option<Output>) -> Refusal {
        let Some(Output::Farewell { bytes, .. }) = output else {
            panic!("{output:?}")
        };
        let Ok(Step::Frame(
            Frame::Control {
                control: Control::Farewell(fields, _),
                ..
            },
            _,
        )) = decode::decode(&bytes)
        else {
            panic!("no farewell")
        };
        Refusal::from_code(fields.refusal.get()).unwrap()
    }

    #[test]
    fn a_hello_in_any_split_is_handed_over_with_what_came_behind_it() {
        let mut bytes = greeting(plain(), "abc");
        bytes.extend_from_slice(b"behind");
        for cut in 1..bytes.len() {
            let mut door = Door::new(DoorLimits::default(), 1);
            let stranger = door.accepted(at(0), HERE).unwrap();
            door.received(stranger, &bytes[..cut]);
            let early = door.output();
            door.received(stranger, &bytes[cut..]);
            let Some(Output::HandOver { attached, .. }) = early.or(door.output()) else {
                panic!("no hand-over with a cut at {cut}")
            };
            assert_eq!(attached.name, "abc");
            assert!(b"behind".starts_with(attached.leftover.as_slice()));
            assert_eq!(door.links(), 1);
        }
    }

    #[test]
    fn what_is_no_hello_is_told_so_at_once() {
        let wrong_magic = Hello {
            magic: *b"HTTP/1.1",
            ..plain()
        };
        let too_new = Hello {
            version_min: 2,
            ..plain()
        };
        let mut broken = greeting(plain(), "abc");
        broken[20] ^= 1;
        let cases = [
            (greeting(wrong_magic, "abc"), Refusal::Malformed),
            (greeting(too_new, "abc"), Refusal::VersionUnsupported),
            (broken, Refusal::ChecksumMismatch),
            (b"GET / HTTP/1.1\r\n".to_vec(), Refusal::Malformed),
            (vec![0xff; 16], Refusal::Malformed),
        ];
        for (bytes, expected) in cases {
            let mut door = Door::new(DoorLimits::default(), 1);
            let stranger = door.accepted(at(0), HERE).unwrap();
            door.received(stranger, &bytes);
            assert_eq!(refusal(door.output()), expected);
            assert_eq!(door.links(), 0);
        }
    }

    #[test]
    fn a_stranger_has_two_seconds_however_many_bytes_it_sends() {
        let mut door = Door::new(DoorLimits::default(), 1);
        let stranger = door.accepted(at(0), HERE).unwrap();
        let bytes = greeting(plain(), "abc");
        door.received(stranger, &bytes[..5]);
        door.expire(at(1999));
        assert_eq!(door.output(), None);
        door.received(stranger, &bytes[5..6]);
        door.expire(at(2000));
        assert_eq!(refusal(door.output()), Refusal::HelloTimeout);
        assert_eq!(door.next_expiry(), None);
    }

    #[test]
    fn where_strangers_are_too_many_the_oldest_goes_and_links_have_a_limit_of_their_own() {
        let limits = DoorLimits {
            links: 3,
            links_per_address: 3,
            strange: 2,
            strange_per_address: 2,
            ..DoorLimits::default()
        };
        let mut door = Door::new(limits, 1);
        let first = door.accepted(at(0), HERE).unwrap();
        door.accepted(at(1), HERE).unwrap();
        door.accepted(at(2), HERE).unwrap();
        assert!(
            matches!(door.output(), Some(Output::Farewell { stranger, .. }) if stranger == first)
        );
        assert_eq!(door.links(), 2);
        for _ in 0..3 {
            door.left(HERE);
        }
        assert_eq!(door.links(), 0);
    }

    #[test]
    fn a_link_goes_to_the_shard_it_asks_for_or_was_on_and_else_to_each_in_turn() {
        let limits = DoorLimits {
            shards: 3,
            ..DoorLimits::default()
        };
        let mut door = Door::new(limits, 1);
        let mut shard_of = |shard: Option<u16>, link: u64| {
            let hello = Hello {
                shard: shard.unwrap_or(u16::MAX).into(),
                link: link.into(),
                ..plain()
            };
            let stranger = door.accepted(at(0), HERE).unwrap();
            door.received(stranger, &greeting(hello, "abc"));
            match door.output() {
                Some(Output::HandOver { shard, .. }) => shard.0,
                other => panic!("{other:?}"),
            }
        };
        let on = |shard: u16| ShardIndex(shard).first_number() + 6;
        assert_eq!([0; 4].map(|_| shard_of(None, 0)), [0, 1, 2, 0]);
        assert_eq!(shard_of(Some(2), 0), 2);
        assert_eq!(shard_of(None, on(2)), 2, "the link was there");
        assert_eq!(shard_of(Some(1), on(2)), 1, "it says so");
        assert_eq!(shard_of(None, on(3)), 1, "there are fewer shards now");
    }

    #[test]
    fn who_asks_for_a_shard_that_does_not_exist_is_told_so() {
        let limits = DoorLimits {
            shards: 2,
            ..DoorLimits::default()
        };
        let mut door = Door::new(limits, 1);
        let hello = Hello {
            shard: 2.into(),
            ..plain()
        };
        let stranger = door.accepted(at(0), HERE).unwrap();
        door.received(stranger, &greeting(hello, "abc"));
        let output = door.output();
        let Some(Output::Farewell { bytes, .. }) = &output else {
            panic!("{output:?}")
        };
        let text = String::from_utf8_lossy(bytes);
        assert!(text.contains("no shard beyond 1"), "{text}");
        assert_eq!(refusal(output), Refusal::IllegalArgument);
        assert_eq!(door.links(), 0);
    }

    #[test]
    fn links_within_count_until_they_leave() {
        let limits = DoorLimits {
            links: 1,
            ..DoorLimits::default()
        };
        let mut door = Door::new(limits, 1);
        let stranger = door.accepted(at(0), HERE).unwrap();
        door.received(stranger, &greeting(plain(), "abc"));
        assert!(matches!(door.output(), Some(Output::HandOver { .. })));
        assert_eq!(door.accepted(at(1), HERE), Err(Refusal::TooManyLinks));
        door.left(HERE);
        assert!(door.accepted(at(2), HERE).is_ok());
    }
}
