//! Pages: what a checkpoint says is there, or is named as damage.

use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::frame::encode::{self, Envelope};
use crate::frame::{MessageHeader, checksum};
use crate::id::{DestinationNumber, Offset, PageNumber, PartitionIndex, Run};
use crate::journal::entry::{Entry, Malformed, PageImage, Place};
use crate::journal::page::{Damage, PageFile, Wrong, position};
use crate::limits::PAGES_PER_FILE;

const PLACE: Place = Place {
    destination: DestinationNumber(4),
    partition: PartitionIndex(2),
};
const FIRST: u64 = 70;

fn frame(offset: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; encode::message_size(0, body.len())];
    encode::message(&Envelope::default(), &[], body, &mut bytes);
    let (header, _) = MessageHeader::mut_from_prefix(&mut bytes).unwrap();
    header.handle.set(PLACE.destination.0);
    header.partition.set(PLACE.partition.0);
    header.offset.set(offset);
    bytes
}

fn frames(count: u64) -> Vec<u8> {
    (0..count)
        .flat_map(|it| frame(FIRST + it, &vec![7; it as usize]))
        .collect()
}

fn image(bytes: &[u8], count: u32) -> PageImage {
    PageImage {
        run: Run(3),
        page: PageNumber(PAGES_PER_FILE + 2),
        size: bytes.len() as u32,
        sum: checksum::extend(0, bytes),
        first: Offset(FIRST),
        count,
    }
}

fn wrong(image: &PageImage, place: Place, bytes: &[u8]) -> Option<Wrong> {
    image.messages(place, bytes).err()
}

#[test]
fn messages_come_out_as_they_went_in() {
    let bytes = frames(9);
    let messages = image(&bytes, 9).messages(PLACE, &bytes).unwrap();
    let mut told = Vec::new();
    for (entry, offset) in messages.zip(FIRST..) {
        let Entry::Message(message) = entry else {
            panic!("unexpected {entry:?}");
        };
        assert_eq!(message.header.offset.get(), offset);
        told.extend_from_slice(message.bytes);
    }
    assert_eq!(told, bytes);
}

#[test]
fn what_is_not_as_the_checkpoint_says_is_named() {
    let bytes = frames(3);
    let good = image(&bytes, 3);
    let size = good.size;
    assert_eq!(
        wrong(&good, PLACE, &bytes[..bytes.len() - 8]),
        Some(Wrong::Short { size })
    );
    let mut other = bytes.clone();
    other[130] ^= 1;
    assert_eq!(wrong(&good, PLACE, &other), Some(Wrong::Sum { size }));
    for count in [2, 4] {
        assert!(matches!(
            wrong(&image(&bytes, count), PLACE, &bytes),
            Some(Wrong::Malformed {
                malformed: Malformed::CountMismatch { .. }
            })
        ));
    }
    for place in [
        Place {
            destination: DestinationNumber(5),
            ..PLACE
        },
        Place {
            partition: PartitionIndex(3),
            ..PLACE
        },
    ] {
        assert_eq!(wrong(&good, place, &bytes), Some(Wrong::Strange));
    }
    let shifted = PageImage {
        first: Offset(FIRST + 1),
        ..good
    };
    assert_eq!(wrong(&shifted, PLACE, &bytes), Some(Wrong::Strange));
    let gap = [frame(FIRST, b"a"), frame(FIRST + 2, b"b")].concat();
    assert_eq!(wrong(&image(&gap, 2), PLACE, &gap), Some(Wrong::Strange));
    let mut state = [0; 16];
    Entry::ProducerIdsReserved {
        next: crate::id::ProducerId(1),
    }
    .write(&mut state);
    assert_eq!(
        wrong(&image(&state, 1), PLACE, &state),
        Some(Wrong::Strange)
    );
}

#[test]
fn a_page_file_has_one_name() {
    for (file, name) in [
        ((1, 0), "00000001-000000.pages"),
        ((42, 17), "00000042-000017.pages"),
        ((123_456_789, 4_194_303), "123456789-4194303.pages"),
    ] {
        let file = PageFile {
            run: Run(file.0),
            number: file.1,
        };
        assert_eq!(file.to_string(), name);
        assert_eq!(PageFile::from_file_name(name), Some(file));
    }
    for strange in [
        "00000000-000000.pages",
        "1-0.pages",
        "00000001-000000.page",
        "00000001-000000.pages.new",
        "00000001-+00000.pages",
        "00000001000000.pages",
        "000000001-000000.pages",
        "000001.journal",
        "",
    ] {
        assert_eq!(PageFile::from_file_name(strange), None, "{strange}");
    }
    let page = PageNumber(PAGES_PER_FILE * 3 + 5);
    assert_eq!(PageFile::of(Run(2), page).number, 3);
    assert_eq!(position(page), 5 * 65_536);
}

#[test]
fn damage_names_file_place_and_what_to_do() {
    let bytes = frames(1);
    let image = image(&bytes, 1);
    let damage = Damage {
        file: image.file(),
        position: image.position(),
        what: Wrong::Missing,
    };
    assert_eq!(
        damage.to_string(),
        "00000003-000001.pages at 131072: the file is missing, and the checkpoint names it"
    );
    assert!(damage.advice().starts_with("put the file back"));
}

proptest! {
    /// Bytes whose sum is right get as far as they can.
    #[test]
    fn no_bytes_are_too_strange(
        count in 0..4_u64,
        claimed in 0..5_u32,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let good = frames(count);
        let mut bytes = good.clone();
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let seen = image(&bytes, claimed);
        if let Ok(messages) = seen.messages(PLACE, &bytes) {
            // The bytes are told as a whole, and as many messages as there are to be.
            let mut told = Vec::new();
            let mut many = 0;
            for (entry, offset) in messages.zip(FIRST..) {
                let Entry::Message(message) = entry else { panic!("no message") };
                prop_assert_eq!(message.header.offset.get(), offset);
                prop_assert_eq!(message.header.handle.get(), PLACE.destination.0);
                told.extend_from_slice(message.bytes);
                many += 1;
            }
            prop_assert_eq!(many, claimed);
            prop_assert_eq!(&told, &bytes);
        }
        // And what the sum does not cover is not looked at.
        let unlike = PageImage { sum: seen.sum ^ 1, ..seen };
        prop_assert!(unlike.messages(PLACE, &bytes).is_err());
    }
}
