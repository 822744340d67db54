//! The door: strangers who say hello, or something else, or nothing.
//!
//! A case is a list of acts:
//!
//! | act | then | |
//! |---|---|---|
//! | 0 | address | somebody connects |
//! | 1 | stranger, pieces, recipe | says a frame |
//! | 2 | stranger, pieces, bytes | says these bytes |
//! | 3 | stranger | is gone |
//! | 4 | tenths | time passes: so many tenths of a second |
//! | 5 | which | somebody who was let in has left |
//!
//! What has to hold, after every act: nobody is counted twice or forgotten; the
//! limits stand; a stranger is let in for a hello and for nothing else, with what
//! came behind it; who is turned away is told in a frame; nobody is a stranger for
//! longer than the limit, nor has brought more than it.

use core::time::Duration;

use courser_core::door::{Address, Door, DoorLimits, Output};
use courser_core::frame::MAGIC;
use courser_core::frame::control::Control;
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::id::Handle;
use courser_core::limits;
use courser_core::time::{Monotonic, Now};

use crate::heap;
use crate::script::{NoNames, Recipe, Script};

/// Few, so that a case can reach them.
const LIMITS: DoorLimits = DoorLimits {
    links: 7,
    links_per_address: 5,
    strange: 4,
    strange_per_address: 3,
    shards: 2,
};
const ADDRESSES: u8 = 3;
/// What the door may have allocated for all its strangers, beside what they said.
const TABLES_MAX: u64 = 64 << 10;

/// Runs a case.
///
/// # Panics
///
/// If something does not hold.
pub fn run(case: &[u8]) {
    let mut script = Script::new(case);
    let mut said = 0;
    let peak = heap::peak(|| {
        let mut street = Street::new();
        while let Some(step) = script.step() {
            street.act(step, &mut script);
        }
        said = street.said;
    });
    // A recipe makes a large frame of few bytes, and the model keeps all of it.
    let most = TABLES_MAX + 8 * said as u64 + 2 * case.len() as u64;
    assert!(
        peak <= most,
        "{peak} bytes for {said} that were said, expected at most {most}"
    );
}

#[derive(Debug)]
struct Stranger {
    handle: Handle,
    address: Address,
    since: Monotonic,
    said: Vec<u8>,
}

/// Who stands before the door, and who went in.
struct Street {
    door: Door,
    now: Now,
    strangers: Vec<Stranger>,
    inside: Vec<Address>,
    /// Bytes that a case had somebody say, whether anybody was there or not.
    said: usize,
}

impl Street {
    fn new() -> Self {
        Self {
            door: Door::new(LIMITS, 7),
            now: Now::default(),
            strangers: Vec::new(),
            inside: Vec::new(),
            said: 0,
        }
    }

    fn act(&mut self, step: u8, script: &mut Script<'_>) {
        match step % 6 {
            0 => self.connect(Address([script.byte() % ADDRESSES; 16])),
            1 => {
                let (who, piece) = (script.byte(), script.byte());
                let frame = Recipe::read(script).frame(&mut NoNames);
                self.say(who, piece, &frame);
            }
            2 => {
                let (who, piece) = (script.byte(), script.byte());
                self.say(who, piece, script.bytes());
            }
            3 => {
                if let Some(index) = chosen(self.strangers.len(), script.byte()) {
                    let stranger = self.strangers.remove(index);
                    self.door.closed(stranger.handle);
                }
            }
            4 => {
                let passed = Duration::from_millis(100 * u64::from(script.byte()));
                self.now.monotonic = self.now.monotonic.after(passed);
                self.door.expire(self.now);
            }
            _ => {
                if let Some(index) = chosen(self.inside.len(), script.byte()) {
                    self.door.left(self.inside.remove(index));
                }
            }
        }
        while let Some(output) = self.door.output() {
            self.obey(output);
        }
        self.check();
    }

    fn connect(&mut self, address: Address) {
        let links = self.strangers.len() + self.inside.len();
        let from_there = self.count(address);
        match self.door.accepted(self.now, address) {
            Ok(handle) => self.strangers.push(Stranger {
                handle,
                address,
                since: self.now.monotonic,
                said: Vec::new(),
            }),
            Err(_) => assert!(
                links >= LIMITS.links as usize || from_there >= LIMITS.links_per_address as usize,
                "turned away with {links} links, {from_there} from there"
            ),
        }
    }

    fn say(&mut self, who: u8, piece: u8, bytes: &[u8]) {
        self.said += bytes.len();
        let Some(index) = chosen(self.strangers.len(), who) else {
            return;
        };
        let handle = self.strangers[index].handle;
        let piece = match piece {
            0 => usize::MAX,
            size => usize::from(size).max(bytes.len() / 1024),
        };
        for piece in bytes.chunks(piece) {
            // It may have gone in, or been turned away, by the piece before.
            let Some(stranger) = self.strangers.iter_mut().find(|it| it.handle == handle) else {
                return;
            };
            stranger.said.extend_from_slice(piece);
            self.door.received(handle, piece);
            while let Some(output) = self.door.output() {
                self.obey(output);
            }
        }
    }

    fn obey(&mut self, output: Output) {
        let (Output::HandOver { stranger, .. } | Output::Farewell { stranger, .. }) = &output;
        let index = self.strangers.iter().position(|it| it.handle == *stranger);
        let found = self
            .strangers
            .swap_remove(index.expect("a word about somebody who is there"));
        match output {
            Output::HandOver { attached, .. } => {
                let Ok(Step::Frame(
                    Frame::Control {
                        control: Control::Hello(fields, name),
                        ..
                    },
                    size,
                )) = decode(&found.said)
                else {
                    panic!("let in without a hello: {:02x?}", found.said);
                };
                assert_eq!(fields.magic, MAGIC);
                assert!(fields.version_min <= 1 && fields.version_max >= 1);
                assert_eq!(attached.name.as_bytes(), name);
                assert_eq!(attached.leftover, found.said[size..]);
                self.inside.push(found.address);
            }
            Output::Farewell { bytes, .. } => assert!(
                matches!(
                    decode(&bytes),
                    Ok(Step::Frame(
                        Frame::Control {
                            control: Control::Farewell(..),
                            ..
                        },
                        size,
                    )) if size == bytes.len()
                ),
                "turned away with {bytes:02x?}"
            ),
        }
    }

    fn count(&self, address: Address) -> usize {
        let strangers = self.strangers.iter().map(|stranger| stranger.address);
        strangers
            .chain(self.inside.iter().copied())
            .filter(|other| *other == address)
            .count()
    }

    fn check(&self) {
        let links = self.strangers.len() + self.inside.len();
        assert_eq!(self.door.links() as usize, links, "links");
        assert!(links <= LIMITS.links as usize);
        assert!(self.strangers.len() <= LIMITS.strange as usize);
        for stranger in &self.strangers {
            let strange = self.strangers.iter();
            let from_there = strange.filter(|other| other.address == stranger.address);
            assert!(from_there.count() <= LIMITS.strange_per_address as usize);
            assert!(self.count(stranger.address) <= LIMITS.links_per_address as usize);
            assert!(stranger.said.len() <= limits::HELLO_SIZE_MAX as usize);
            assert!(self.now.monotonic.since(stranger.since) < limits::HELLO_TIMEOUT);
        }
        let first = self.strangers.iter().map(|it| it.since).min();
        let deadline = first.map(|since| since.after(limits::HELLO_TIMEOUT));
        assert_eq!(self.door.next_expiry(), deadline, "the next time limit");
    }
}

fn chosen(count: usize, index: u8) -> Option<usize> {
    usize::from(index).checked_rem(count)
}
