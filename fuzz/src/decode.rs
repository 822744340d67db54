//! The decoder: a stream of frames, whole and broken, cut anywhere.
//!
//! | a case is | |
//! |---|---|
//! | cuts u8, then so many u8 | the sizes of the pieces, in turn; 0 is 256 |
//! | parts | an even step and a recipe for a frame, or an odd one and raw bytes |
//!
//! What has to hold: nothing panics; the stream in pieces gives the same frames,
//! the same error and the same rest as the stream as a whole; what is asked for
//! is within the limits and brings it on; and a frame that is let through is what
//! `docs/wire.md` calls one, checked here once more by other code.

use courser_core::frame::decode::{DecodeError, Frame, Step, decode};
use courser_core::frame::{
    CONTROL_HEADER_SIZE, Kind, MESSAGE_COVERED_FROM, MESSAGE_HEADER_SIZE, PREFIX_SIZE, property,
};
use courser_core::limits;

use crate::script::{NoNames, Recipe, Script};

/// Longer than any frame that is not a message.
const PIECE_MAX: usize = 256;

/// Runs a case.
///
/// # Panics
///
/// If something does not hold.
pub fn run(case: &[u8]) {
    let mut script = Script::new(case);
    let cuts: Vec<usize> = (0..script.byte())
        .map_while(|_| script.step())
        .map(|size| match size {
            0 => PIECE_MAX,
            size => usize::from(size),
        })
        .collect();
    let stream = stream(&mut script);
    let whole = read(core::iter::once(&stream[..]));
    assert_eq!(read(pieces(&stream, &cuts)), whole, "cut into {cuts:?}");
}

/// The bytes that the rest of a case describes.
pub fn stream(script: &mut Script<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while let Some(step) = script.step() {
        if step % 2 == 0 {
            stream.extend(Recipe::read(script).frame(&mut NoNames));
        } else {
            stream.extend_from_slice(script.bytes());
        }
    }
    stream
}

/// The stream of a whole case, for who would send it somewhere.
#[must_use]
pub fn stream_of(case: &[u8]) -> Vec<u8> {
    let mut script = Script::new(case);
    for _ in 0..script.byte() {
        script.byte();
    }
    stream(&mut script)
}

fn pieces<'a>(mut stream: &'a [u8], cuts: &[usize]) -> impl Iterator<Item = &'a [u8]> {
    // Small cuts of a large stream would take for ever.
    let least = stream.len() / 4096;
    let mut sizes = cuts
        .iter()
        .chain([&PIECE_MAX])
        .copied()
        .cycle()
        .map(move |size| size.max(least));
    core::iter::from_fn(move || {
        let size = sizes.next()?.min(stream.len());
        let (piece, rest) = stream.split_at(size);
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What a stream came to.
#[derive(Debug, Default, PartialEq)]
struct Read {
    /// Where each frame ended.
    ends: Vec<usize>,
    error: Option<DecodeError>,
    /// Bytes behind the last frame; with an error, nobody looks at them.
    left: usize,
}

/// A receiver that keeps what came, and looks again only once the decoder said
/// that it could go on.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Read {
    let mut read = Read::default();
    let (mut waiting, mut taken, mut wanted) = (Vec::new(), 0, PREFIX_SIZE);
    for piece in pieces {
        waiting.extend_from_slice(piece);
        while read.error.is_none() && waiting.len() - taken >= wanted {
            match decode(&waiting[taken..]) {
                Ok(Step::Frame(frame, size)) => {
                    inspect(&frame, &waiting[taken..taken + size]);
                    taken += size;
                    read.ends.push(taken);
                    wanted = PREFIX_SIZE;
                }
                Ok(Step::Incomplete(more)) => {
                    assert!(
                        more > waiting.len() - taken,
                        "{more} bytes are there already"
                    );
                    assert!(more <= limits::FRAME_SIZE_MAX as usize + 8);
                    wanted = more;
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty() && error.refusal().code() != 0);
                    read.error = Some(error);
                }
            }
        }
    }
    if read.error.is_none() {
        read.left = waiting.len() - taken;
    }
    read
}

/// That a frame which was let through is one.
fn inspect(frame: &Frame<'_>, bytes: &[u8]) {
    let field = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a field"));
    let length = field(0) as usize;
    assert!(
        length <= bytes.len() && bytes.len() < length + 8 && bytes.len().is_multiple_of(8),
        "{length} bytes take {}",
        bytes.len()
    );
    assert!(bytes[length..].iter().all(|byte| *byte == 0), "padding");
    let limit = match Kind::from_code(bytes[4]) {
        Some(Kind::Message) => limits::FRAME_SIZE_MAX,
        Some(Kind::Hello) => limits::HELLO_SIZE_MAX,
        Some(_) => limits::CONTROL_SIZE_MAX,
        None => panic!("no frame is of kind {}", bytes[4]),
    };
    assert!(length <= limit as usize, "{length} bytes of {}", bytes[4]);
    match frame {
        Frame::Message(message) => {
            let sum = crc32c::crc32c_append(
                crc32c::crc32c(&bytes[..PREFIX_SIZE]),
                &bytes[MESSAGE_COVERED_FROM..length],
            );
            assert_eq!(field(32), sum, "checksum");
            assert_eq!(message.bytes, bytes);
            let properties = field(36) as usize;
            let behind = &bytes[MESSAGE_HEADER_SIZE..length];
            assert_eq!(message.properties, &behind[..properties]);
            assert_eq!(message.body, &behind[properties..]);
            assert_eq!(message.header.body_length() as usize, message.body.len());
            // Whether it asks for what does not exist is for others to say, and for
            // this to find out without harm.
            let _asks = message.header.reserved();
            if property::check(message.properties).is_ok() {
                let size: usize = property::iter(message.properties)
                    .map(|(name, value)| 4 + name.len() + value.len())
                    .sum();
                assert_eq!(size, properties, "properties are all there is");
            }
        }
        Frame::Control { subject, control } => {
            let sum =
                crc32c::crc32c_append(crc32c::crc32c(&bytes[..PREFIX_SIZE]), &bytes[12..length]);
            assert_eq!(field(8), sum, "checksum");
            assert_eq!(*subject, field(12));
            assert_eq!(control.kind() as u8, bytes[4]);
            assert_eq!(bytes[6..8], [0, 0], "flags");
            assert!(control.tail().len() <= length - CONTROL_HEADER_SIZE);
            if let Some(claimed) = control.tail_size() {
                assert_eq!(claimed, control.tail().len() as u64, "tail");
            }
        }
    }
}
