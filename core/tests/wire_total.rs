//! The decoder against everything that is not a well-formed frame.
//!
//! What it must hold: no bytes make it panic; how a stream was cut into pieces
//! changes nothing; what it still asks for is within the limits and brings it
//! on; and a changed bit is noticed wherever the sender's checksum reaches.
//!
//! Random bytes alone would all fail at the checksum. So many cases here are
//! *sealed*: made wrong on purpose, then given the checksum that fits.
#![allow(clippy::unwrap_used)]

mod vectors;

use courser_core::frame::control::{Control, Refused};
use courser_core::frame::decode::{DecodeError, Frame, Step, decode, peek, verify};
use courser_core::frame::encode::{self, Envelope};
use courser_core::frame::{
    CONTROL_HEADER_SIZE, Kind, MESSAGE_COVERED_FROM, MESSAGE_HEADER_SIZE, PREFIX_SIZE, VERSION,
    checksum, padded, property,
};
use courser_core::limits;
use proptest::prelude::*;

/// Where the broker's half lies in a message; no checksum covers it.
const BROKERS_HALF: std::ops::Range<usize> = 8..32;
const LENGTH_MAX: u32 = limits::FRAME_SIZE_MAX;

fn limit(kind: Kind) -> u32 {
    match kind {
        Kind::Message => limits::FRAME_SIZE_MAX,
        Kind::Hello => limits::HELLO_SIZE_MAX,
        _ => limits::CONTROL_SIZE_MAX,
    }
}

fn least(kind: Kind) -> u32 {
    if kind == Kind::Message { 112 } else { 16 }
}

fn prefix(length: u32, kind: u8, version: u8, flags: u16) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend([kind, version]);
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Writes into a frame without padding the length and the checksum that fit it.
fn seal(frame: &mut [u8]) {
    let length = u32::try_from(frame.len()).unwrap();
    frame[..4].copy_from_slice(&length.to_le_bytes());
    if frame[4] == Kind::Message as u8 {
        let sum = checksum::message(frame).to_le_bytes();
        frame[32..36].copy_from_slice(&sum);
    } else {
        let sum = checksum::control(frame).to_le_bytes();
        frame[8..12].copy_from_slice(&sum);
    }
}

/// A frame as it was written, cut to its length, changed, and sealed again.
fn resealed(padded_frame: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let length = u32::from_le_bytes(*padded_frame.first_chunk().unwrap()) as usize;
    let mut frame = padded_frame[..length].to_vec();
    change(&mut frame);
    seal(&mut frame);
    frame.resize(padded(frame.len()), 0);
    frame
}

/// Reads all that a session would read of a frame.
fn visit(frame: &Frame<'_>) -> usize {
    match frame {
        Frame::Message(message) => {
            assert_eq!(message.bytes.len() % 8, 0);
            assert_eq!(
                MESSAGE_HEADER_SIZE + message.properties.len() + message.body.len(),
                message.header.length.get() as usize
            );
            std::hint::black_box(message.header.reserved());
            if property::check(message.properties).is_ok() {
                let bytes: usize = property::iter(message.properties)
                    .map(|(name, value)| 4 + name.len() + value.len())
                    .sum();
                assert_eq!(bytes, message.properties.len());
            }
            message.header.body_length() as usize
        }
        Frame::Control { control, .. } => {
            if let Some(size) = control.tail_size() {
                assert_eq!(size, control.tail().len() as u64);
            }
            control.tail().len()
        }
    }
}

/// What a stream came to: its frames as bytes, and why it ended if it did.
#[derive(Debug, Default, PartialEq)]
struct Read {
    frames: Vec<Vec<u8>>,
    error: Option<DecodeError>,
    left: usize,
}

/// A receiver that takes bytes as they come, and looks at them again only once
/// the decoder said it could go on.
struct Receiver {
    waiting: Vec<u8>,
    wanted: usize,
    read: Read,
}

impl Receiver {
    fn new() -> Self {
        Self {
            waiting: Vec::new(),
            wanted: PREFIX_SIZE,
            read: Read::default(),
        }
    }

    fn received(&mut self, piece: &[u8]) {
        self.waiting.extend_from_slice(piece);
        while self.read.error.is_none() && self.waiting.len() >= self.wanted {
            match decode(&self.waiting) {
                Ok(Step::Frame(frame, size)) => {
                    visit(&frame);
                    assert!(size > 0 && size <= self.waiting.len() && size.is_multiple_of(8));
                    self.read.frames.push(self.waiting[..size].to_vec());
                    self.waiting.drain(..size);
                    self.wanted = PREFIX_SIZE;
                }
                Ok(Step::Incomplete(wanted)) => {
                    assert!(
                        wanted > self.waiting.len(),
                        "asking for {wanted} of {} leads nowhere",
                        self.waiting.len()
                    );
                    let bound = match peek(&self.waiting).unwrap() {
                        Some(peek) => padded(limit(peek.kind) as usize),
                        None => PREFIX_SIZE,
                    };
                    assert!(wanted <= bound, "{wanted} is beyond {bound}");
                    self.wanted = wanted;
                }
                Err(error) => self.read.error = Some(error),
            }
        }
    }

    fn finish(mut self) -> Read {
        self.read.left = self.waiting.len();
        if self.read.error.is_some() {
            // How much lay behind the error depends on the pieces, not on the stream.
            self.read.left = 0;
        }
        self.read
    }
}

fn read_in_pieces(stream: &[u8], cuts: &[prop::sample::Index]) -> Read {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    cuts.push(stream.len());
    cuts.sort_unstable();
    let mut receiver = Receiver::new();
    let mut from = 0;
    for cut in cuts {
        receiver.received(&stream[from..cut]);
        from = cut;
    }
    receiver.finish()
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL)
}

/// Frames of every kind with the right checksum around arbitrary content: most
/// are wrong behind it.
fn sealed_frames() -> impl Strategy<Value = Vec<u8>> {
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 8..300),
        // Mostly zeros: small counts and lengths that may even fit.
        prop::collection::vec(prop_oneof![9 => Just(0u8), 1 => 0u8..48], 8..300),
    ];
    (kinds(), content).prop_map(|(kind, content)| {
        let mut frame = prefix(0, kind as u8, VERSION, 0);
        frame.extend(content);
        if kind == Kind::Message && frame.len() < MESSAGE_HEADER_SIZE {
            frame.resize(MESSAGE_HEADER_SIZE, 0);
        }
        seal(&mut frame);
        frame.resize(padded(frame.len()), 0);
        frame
    })
}

fn vector_frames() -> impl Strategy<Value = Vec<u8>> {
    let all: Vec<Vec<u8>> = vectors::all().into_iter().map(|v| v.bytes).collect();
    prop::sample::select(all)
}

/// Whole frames, and now and then something that ends the stream.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        8 => vector_frames(),
        2 => sealed_frames(),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_decoder_panic_or_stand_still(
        stream in prop::collection::vec(any::<u8>(), 0..400)
    ) {
        let mut receiver = Receiver::new();
        receiver.received(&stream);
        receiver.finish();
    }

    #[test]
    fn a_prefix_with_any_numbers_is_a_length_within_the_limits_or_an_error(
        length in any::<u32>(), small in 0u32..40_000, kind in kinds(), code in any::<u8>()
    ) {
        for length in [length, small] {
            for code in [kind as u8, code] {
                match peek(&prefix(length, code, VERSION, 0)) {
                    Ok(peek) => {
                        let peek = peek.unwrap();
                        prop_assert_eq!(peek.length, length as usize);
                        prop_assert_eq!(peek.size, padded(peek.length));
                        prop_assert!(length >= least(peek.kind) && length <= limit(peek.kind));
                    }
                    Err(DecodeError::UnknownKind { kind }) => {
                        prop_assert_eq!(kind, code);
                        prop_assert_eq!(Kind::from_code(code), None);
                    }
                    Err(error) => {
                        let kind = Kind::from_code(code).unwrap();
                        let expected = if length > limit(kind) {
                            DecodeError::TooLong { length, limit: limit(kind) }
                        } else {
                            prop_assert!(length < least(kind));
                            DecodeError::TooShort { length }
                        };
                        prop_assert_eq!(error, expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_frame_whose_checksum_fits_is_taken_apart_or_named_wrong(frame in sealed_frames()) {
        match decode(&frame) {
            Ok(Step::Frame(found, size)) => {
                visit(&found);
                prop_assert_eq!(size, frame.len());
            }
            Ok(Step::Incomplete(_)) => prop_assert!(false, "the frame is whole"),
            Err(error) => prop_assert!(matches!(
                error,
                DecodeError::TooShort { .. }
                    | DecodeError::TailMismatch { .. }
                    | DecodeError::PropertiesTooLong { .. }
            ), "{}", error),
        }
    }

    #[test]
    fn however_a_stream_is_cut_it_reads_the_same(
        stream in streams(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let mut whole = Receiver::new();
        whole.received(&stream);
        let whole = whole.finish();
        prop_assert_eq!(read_in_pieces(&stream, &cuts), whole);
    }

    #[test]
    fn what_is_encoded_decodes_to_itself(
        properties in prop::collection::vec(any::<u8>(), 0..100),
        body in prop::collection::vec(any::<u8>(), 0..300),
        key_hash in any::<Option<u64>>(),
    ) {
        let envelope = Envelope { key_hash, ..Envelope::default() };
        let mut out = vec![0xee; encode::message_size(properties.len(), body.len())];
        encode::message(&envelope, &properties, &body, &mut out);
        let Ok(Step::Frame(Frame::Message(message), _)) = decode(&out) else {
            panic!("a message was written");
        };
        prop_assert_eq!(message.properties, &properties[..]);
        prop_assert_eq!(message.body, &body[..]);
        prop_assert_eq!(message.header.key_hash.get(), key_hash.unwrap_or(0));
        prop_assert_eq!(message.header.reserved(), None);
    }
}

#[test]
fn a_stream_cut_at_every_byte_reads_the_same() {
    let stream: Vec<u8> = vectors::all().into_iter().flat_map(|v| v.bytes).collect();
    let mut whole = Receiver::new();
    whole.received(&stream);
    let whole = whole.finish();
    assert_eq!(whole.frames.len(), vectors::all().len());
    assert_eq!((&whole.error, whole.left), (&None, 0));

    let mut bytewise = Receiver::new();
    for byte in &stream {
        bytewise.received(std::slice::from_ref(byte));
    }
    assert_eq!(bytewise.finish(), whole);
    for cut in 0..=stream.len() {
        let mut receiver = Receiver::new();
        receiver.received(&stream[..cut]);
        receiver.received(&stream[cut..]);
        assert_eq!(receiver.finish(), whole, "cut at {cut}");
    }
}

#[test]
fn every_flipped_bit_is_noticed_unless_it_lies_in_the_brokers_half() {
    // A flipped length may claim more bytes than there are: it gets them.
    let mut buffer = vec![0; padded(LENGTH_MAX as usize) + 1024];
    for vector in vectors::all() {
        let size = vector.bytes.len();
        let Ok(Step::Frame(whole, _)) = decode(&vector.bytes) else {
            panic!("{} is whole", vector.name);
        };
        for bit in 0..size * 8 {
            let at = bit / 8;
            buffer[..size].copy_from_slice(&vector.bytes);
            buffer[at] ^= 1 << (bit % 8);
            let found = decode(&buffer);
            let context = || format!("bit {bit} of {}", vector.name);
            let covered = !matches!(whole, Frame::Message(_)) || !BROKERS_HALF.contains(&at);
            if covered {
                assert!(found.is_err(), "{} went by as {found:?}", context());
                continue;
            }
            let (Ok(Step::Frame(Frame::Message(changed), taken)), Frame::Message(message)) =
                (found, &whole)
            else {
                panic!("{} is only the broker's concern: {found:?}", context());
            };
            assert_eq!(taken, size, "{}", context());
            assert_eq!(
                (changed.properties, changed.body),
                (message.properties, message.body),
                "{}",
                context()
            );
            for (index, (now, before)) in changed.bytes.iter().zip(message.bytes).enumerate() {
                let flip = if index == at { 1 << (bit % 8) } else { 0 };
                assert_eq!(now ^ before, flip, "{}", context());
            }
        }
        buffer[..size].fill(0);
    }
}

#[test]
fn a_truncated_frame_is_incomplete_and_says_how_long_it_is() {
    for vector in vectors::all() {
        let size = vector.bytes.len();
        for cut in 0..size {
            let expected = if cut < PREFIX_SIZE { PREFIX_SIZE } else { size };
            assert_eq!(
                decode(&vector.bytes[..cut]),
                Ok(Step::Incomplete(expected)),
                "{} cut at {cut}",
                vector.name
            );
        }
    }
}

#[test]
fn a_length_is_believed_from_the_header_up_to_the_limit_of_its_kind() {
    for kind in Kind::ALL {
        let (least, limit) = (least(*kind), limit(*kind));
        let front = |length| {
            decode(&prefix(length, *kind as u8, VERSION, 0)).map(|step| match step {
                Step::Incomplete(wanted) => wanted,
                Step::Frame(..) => 0,
            })
        };
        assert_eq!(front(least), Ok(padded(least as usize)), "{kind:?}");
        assert_eq!(front(limit), Ok(padded(limit as usize)), "{kind:?}");
        for length in [0, 1, 7, 8, least - 1] {
            let expected = Err(DecodeError::TooShort { length });
            assert_eq!(front(length), expected, "{kind:?}");
        }
        for length in [limit + 1, LENGTH_MAX + 1, 1 << 31, u32::MAX - 7, u32::MAX] {
            let expected = Err(DecodeError::TooLong { length, limit });
            assert_eq!(front(length), expected, "{kind:?}");
        }
    }
}

#[test]
fn the_largest_frames_pass_and_one_byte_more_does_not() {
    let body = vec![7; LENGTH_MAX as usize - MESSAGE_HEADER_SIZE];
    let mut out = vec![0; LENGTH_MAX as usize];
    encode::message(&Envelope::default(), &[], &body, &mut out);
    let Ok(Step::Frame(Frame::Message(message), size)) = decode(&out) else {
        panic!("a message at the limit is a message");
    };
    assert_eq!((message.body, size), (&body[..], LENGTH_MAX as usize));

    let text_size = limits::CONTROL_SIZE_MAX as usize - CONTROL_HEADER_SIZE - size_of::<Refused>();
    let fields = Refused {
        text_length: u32::try_from(text_size).unwrap().into(),
        ..Refused::default()
    };
    let text = vec![b'x'; text_size];
    let mut out = vec![0; limits::CONTROL_SIZE_MAX as usize];
    encode::control(1, &fields, &[&text], &mut out);
    assert!(matches!(
        decode(&out),
        Ok(Step::Frame(Frame::Control { control: Control::Refused(_, tail), .. }, _))
            if tail == text
    ));

    let over = resealed(&out, |frame| frame.push(b'x'));
    assert_eq!(
        decode(&over),
        Err(DecodeError::TooLong {
            length: limits::CONTROL_SIZE_MAX + 1,
            limit: limits::CONTROL_SIZE_MAX
        })
    );
}

#[test]
fn padding_that_is_not_zero_is_malformed() {
    let mut padded_vectors = 0;
    for vector in vectors::all() {
        let length = u32::from_le_bytes(*vector.bytes.first_chunk().unwrap()) as usize;
        for at in length..vector.bytes.len() {
            padded_vectors += 1;
            let mut bytes = vector.bytes.clone();
            bytes[at] = 0x80;
            assert_eq!(
                decode(&bytes),
                Err(DecodeError::DirtyPadding),
                "{}",
                vector.name
            );
        }
    }
    assert!(padded_vectors > 7, "the vectors have frames with padding");
}

#[test]
fn every_code_without_a_kind_is_unknown_whatever_follows() {
    for code in 0..=u8::MAX {
        let bytes = prefix(24, code, VERSION, 0);
        let found = decode(&bytes);
        match Kind::from_code(code) {
            None => assert_eq!(found, Err(DecodeError::UnknownKind { kind: code })),
            Some(_) => assert!(!matches!(found, Err(DecodeError::UnknownKind { .. }))),
        }
    }
}

#[test]
fn only_a_hello_and_a_farewell_are_read_in_every_version() {
    for vector in vectors::all() {
        for version in 0..=u8::MAX {
            let bytes = resealed(&vector.bytes, |frame| frame[5] = version);
            let found = decode(&bytes);
            let kind = Kind::from_code(bytes[4]).unwrap();
            if version == VERSION || matches!(kind, Kind::Hello | Kind::Farewell) {
                assert!(matches!(found, Ok(Step::Frame(..))), "{}", vector.name);
            } else {
                let expected = Err(DecodeError::UnknownVersion { version });
                assert_eq!(found, expected, "{}", vector.name);
            }
        }
    }
}

#[test]
fn a_control_frame_with_a_flag_is_malformed() {
    for vector in vectors::all() {
        if vector.bytes[4] == Kind::Message as u8 {
            continue;
        }
        for bit in 0..16 {
            let flags: u16 = 1 << bit;
            let bytes = resealed(&vector.bytes, |frame| {
                frame[6..8].copy_from_slice(&flags.to_le_bytes());
            });
            let expected = Err(DecodeError::UnknownFlags { flags });
            assert_eq!(decode(&bytes), expected, "{}", vector.name);
        }
    }
}

#[test]
fn a_tail_is_exactly_as_long_as_the_fields_say() {
    for vector in vectors::all() {
        let Ok(Step::Frame(Frame::Control { control, .. }, _)) = decode(&vector.bytes) else {
            continue;
        };
        let (claimed, actual) = (control.tail_size(), control.tail().len() as u64);
        let longer = resealed(&vector.bytes, |frame| frame.push(0));
        let shorter = resealed(&vector.bytes, |frame| {
            frame.pop();
        });
        let Some(claimed) = claimed else {
            assert!(
                matches!(decode(&longer), Ok(Step::Frame(..))),
                "{}",
                vector.name
            );
            continue;
        };
        assert_eq!(
            decode(&longer),
            Err(DecodeError::TailMismatch {
                claimed,
                actual: actual + 1
            }),
            "{}",
            vector.name
        );
        let expected = if actual == 0 {
            // The byte that is missing is one of the fields'.
            DecodeError::TooShort {
                length: u32::from_le_bytes(*shorter.first_chunk().unwrap()),
            }
        } else {
            DecodeError::TailMismatch {
                claimed,
                actual: actual - 1,
            }
        };
        assert_eq!(decode(&shorter), Err(expected), "{}", vector.name);
    }
}

#[test]
fn properties_reach_to_the_end_of_the_frame_and_not_beyond() {
    let vector = vectors::all()
        .into_iter()
        .find(|vector| vector.name == "message-with-properties-and-key")
        .unwrap();
    let length = u32::from_le_bytes(*vector.bytes.first_chunk().unwrap());
    let rest = length - u32::try_from(MESSAGE_HEADER_SIZE).unwrap();
    let with = |properties: u32| {
        resealed(&vector.bytes, |frame| {
            frame[36..40].copy_from_slice(&properties.to_le_bytes());
        })
    };
    let all = with(rest);
    let Ok(Step::Frame(Frame::Message(message), _)) = decode(&all) else {
        panic!("properties may be all there is");
    };
    assert!(message.body.is_empty());
    assert_eq!(message.header.body_length(), 0);
    for length in [rest + 1, u32::MAX] {
        let expected = Err(DecodeError::PropertiesTooLong { length });
        assert_eq!(decode(&with(length)), expected);
    }
}

#[test]
fn a_message_in_pieces_is_verified_like_a_whole_one() {
    for vector in vectors::all() {
        let Ok(Step::Frame(Frame::Message(message), _)) = decode(&vector.bytes) else {
            continue;
        };
        let length = message.header.length.get() as usize;
        let frame = &vector.bytes[..length];
        for cut in MESSAGE_HEADER_SIZE..=length {
            let sum = checksum::extend(checksum::message(&frame[..cut]), &frame[cut..]);
            assert_eq!(verify(message.header, sum), Ok(()), "{}", vector.name);
            assert_eq!(
                verify(message.header, sum ^ 1),
                Err(DecodeError::ChecksumMismatch {
                    claimed: sum,
                    actual: sum ^ 1
                })
            );
        }
    }
    assert_eq!(MESSAGE_COVERED_FROM, BROKERS_HALF.end + 4);
}
