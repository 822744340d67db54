//! A case as a script: numbers and bytes, read from the front to the back.
//!
//! What is missing at the end reads as nothing, so every input is a script, and
//! one that a fuzzer cuts short means the beginning of what it meant before.

use courser_core::frame::{
    CONTROL_HEADER_SIZE, Kind, MESSAGE_HEADER_SIZE, VERSION, checksum, padded,
};

/// The rest of a case.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// A case from its beginning.
    #[must_use]
    pub fn new(case: &'a [u8]) -> Self {
        Self(case)
    }

    /// The next byte, or nothing at the end.
    pub fn step(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next byte; 0 behind the end.
    pub fn byte(&mut self) -> u8 {
        self.step().unwrap_or(0)
    }

    /// The next two bytes as a number.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// As many bytes as the next number says, or as there are.
    pub fn bytes(&mut self) -> &'a [u8] {
        let size = usize::from(self.word()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(size);
        self.0 = rest;
        bytes
    }
}

/// A frame as a case describes it: its content is the case's, while what would
/// have nearly every change end at the same check is filled in.
///
/// | written as | |
/// |---|---|
/// | kind u8 | any, also one that does not exist |
/// | subject u8, word u8 | see [`Names`] |
/// | extra u8 | so many KiB of filler behind the content |
/// | spoil u8 | 0 as it should be; see [`Spoil`] |
/// | place u16, change u8 | what is spoilt; only if something is |
/// | content u16 + bytes | of a message from its flags on, of other frames from their fields on |
#[derive(Clone, Copy, Debug)]
pub struct Recipe<'a> {
    kind: u8,
    subject: u8,
    word: u8,
    extra: u8,
    spoil: Option<Spoil>,
    content: &'a [u8],
}

/// One byte of a frame, changed.
#[derive(Clone, Copy, Debug)]
struct Spoil {
    place: u16,
    change: u8,
    /// The checksum covers the change.
    sealed: bool,
}

/// Where a message's flags stand.
const FLAGS: usize = 6;
const SPOIL: u8 = 1;
const SPOIL_UNSEALED: u8 = 2;

/// What a frame has to name that no case can know: handles and numbers that the
/// other side gives out.
pub trait Names {
    /// Writes them into a frame that is complete but for its checksum.
    ///
    /// `subject` and `word` choose among what there is: 0 leaves the subject to
    /// a counter of requests, and the first word of the fields as it is.
    fn stamp(&mut self, frame: &mut [u8], kind: Option<Kind>, subject: u8, word: u8);
}

/// No names: everything stays as the case has it.
#[derive(Clone, Copy, Debug)]
pub struct NoNames;

impl Names for NoNames {
    fn stamp(&mut self, _: &mut [u8], _: Option<Kind>, _: u8, _: u8) {}
}

impl<'a> Recipe<'a> {
    /// Reads one.
    pub fn read(script: &mut Script<'a>) -> Self {
        let [kind, subject, word, extra] = core::array::from_fn(|_| script.byte());
        let spoil = match script.byte() {
            0 => None,
            how => Some(Spoil {
                place: script.word(),
                change: script.byte(),
                sealed: how & SPOIL_UNSEALED == 0,
            }),
        };
        Self {
            kind,
            subject,
            word,
            extra,
            spoil,
            content: script.bytes(),
        }
    }

    /// The frame with its padding.
    pub fn frame(&self, names: &mut impl Names) -> Vec<u8> {
        let kind = Kind::from_code(self.kind);
        let is_message = kind == Some(Kind::Message);
        let (header, least) = if is_message {
            (FLAGS, MESSAGE_HEADER_SIZE)
        } else {
            (CONTROL_HEADER_SIZE, CONTROL_HEADER_SIZE)
        };
        let extra = usize::from(self.extra) * 1024;
        let length = (header + self.content.len()).max(least) + extra;
        let mut frame = vec![0; padded(length)];
        frame[header..header + self.content.len()].copy_from_slice(self.content);
        frame[length - extra..length].fill(0xee);
        let length_field = u32::try_from(length).expect("content and filler are below 1 MiB");
        frame[..4].copy_from_slice(&length_field.to_le_bytes());
        frame[4] = self.kind;
        frame[5] = VERSION;
        names.stamp(&mut frame, kind, self.subject, self.word);
        match self.spoil {
            None => seal(&mut frame[..length]),
            Some(spoil) => {
                let place = usize::from(spoil.place) % frame.len();
                if spoil.sealed {
                    frame[place] ^= spoil.change;
                    seal(&mut frame[..length]);
                } else {
                    seal(&mut frame[..length]);
                    frame[place] ^= spoil.change;
                }
            }
        }
        frame
    }
}

/// Writes the checksum that fits into a frame without padding.
fn seal(frame: &mut [u8]) {
    let (place, sum) = if frame[4] == Kind::Message as u8 && frame.len() >= MESSAGE_HEADER_SIZE {
        (32, checksum::message(frame))
    } else {
        (8, checksum::control(frame))
    };
    frame[place..place + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Writes a case; the other direction of [`Script`].
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// The case.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Numbers of one byte each.
    #[must_use]
    pub fn steps(mut self, steps: &[u8]) -> Self {
        self.0.extend_from_slice(steps);
        self
    }

    /// A number of two bytes.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        self.steps(&word.to_le_bytes())
    }

    /// Bytes with their number before them.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let size = u16::try_from(bytes.len()).expect("seeds are small");
        self.word(size).steps(bytes)
    }

    /// The recipe for a whole frame as it stands on the wire.
    #[must_use]
    pub fn frame(self, bytes: &[u8], subject: u8, word: u8) -> Self {
        let length = bytes
            .first_chunk()
            .map_or(0, |length| u32::from_le_bytes(*length) as usize);
        let header = if bytes[4] == Kind::Message as u8 {
            FLAGS
        } else {
            CONTROL_HEADER_SIZE
        };
        self.steps(&[bytes[4], subject, word, 0, 0])
            .bytes(&bytes[header..length.clamp(header, bytes.len())])
    }

    /// The recipe for a whole frame with so many KiB of filler behind it.
    #[must_use]
    pub fn larger_frame(self, bytes: &[u8], subject: u8, kibibytes: u8) -> Self {
        let at = self.0.len() + 3;
        let mut written = self.frame(bytes, subject, 0);
        written.0[at] = kibibytes;
        written
    }

    /// The recipe for a whole frame, with one byte changed before its checksum is
    /// computed, or behind.
    #[must_use]
    pub fn spoilt_frame(self, bytes: &[u8], place: u16, change: u8, sealed: bool) -> Self {
        let at = self.0.len() + 4;
        let mut written = self.frame(bytes, 0, 0);
        let how = if sealed { SPOIL } else { SPOIL_UNSEALED };
        let [low, high] = place.to_le_bytes();
        written.0.splice(at..=at, [how, low, high, change]);
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds;

    #[test]
    fn a_recipe_of_a_golden_frame_gives_that_frame() {
        for vector in seeds::vectors() {
            // These two may be of any version, which a recipe does not have.
            if vector.bytes[5] != VERSION {
                continue;
            }
            let case = Writer::default().frame(&vector.bytes, 0, 0).finish();
            let mut made = Recipe::read(&mut Script::new(&case)).frame(&mut NoNames);
            if vector.bytes[4] != Kind::Message as u8 {
                // The subject is the names' business, and the checksum covers it.
                let length = u32::from_le_bytes(*made.first_chunk().expect("a prefix")) as usize;
                made[12..16].copy_from_slice(&vector.bytes[12..16]);
                seal(&mut made[..length]);
            }
            assert_eq!(made, vector.bytes, "{}", vector.name);
        }
    }

    #[test]
    fn every_cut_of_a_case_is_a_case() {
        let frame = &seeds::vectors()[0].bytes;
        let case = Writer::default().frame(frame, 0, 0).finish();
        for cut in 0..case.len() {
            let mut script = Script::new(&case[..cut]);
            let made = Recipe::read(&mut script).frame(&mut NoNames);
            assert!(made.len() >= CONTROL_HEADER_SIZE);
        }
    }
}
