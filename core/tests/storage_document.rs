//! `docs/storage.md` against the code: a page that strangers read data directories
//! with must not drift. Prose is beyond a test; every table and number is not.
#![allow(clippy::unwrap_used)]

#[path = "vectors/notes.rs"]
mod notes;

use std::collections::BTreeSet;

use courser_core::id::Run;
use courser_core::journal::entry::{Kind, RESERVED};
use courser_core::journal::page::PageFile;
use courser_core::journal::survey::Slot;
use courser_core::journal::{BLOCK_SIZE, batch, checkpoint, file};
use courser_core::limits;
use notes::{Field, fields, rows, section};

const DOCUMENT: &str = include_str!("../../docs/storage.md");
const VECTORS: &str = include_str!("vectors/journal.hex");
const ENTRIES: &str = "## 4. Listed: the entries";

fn assert_row(heading: &str, field: &Field) {
    let Field { at, size, name } = field;
    let row = format!("\n| {at} | {size} | {name} |");
    assert!(
        section(DOCUMENT, heading).contains(&row),
        "{heading:?} has{row}"
    );
}

/// The heading of an entry's kind.
fn heading(kind: Kind) -> String {
    format!("#### {:#04x} {kind:?}", kind.code())
}

#[test]
fn every_kind_of_entry_is_on_the_page_and_no_other() {
    let listed: BTreeSet<&str> = DOCUMENT
        .lines()
        .filter(|line| line.starts_with("#### 0x"))
        .collect();
    let known: Vec<String> = Kind::ALL.into_iter().map(heading).collect();
    assert_eq!(listed, known.iter().map(String::as_str).collect());
    let reserved = section(DOCUMENT, "#### Reserved");
    for kind in RESERVED {
        assert!(reserved.contains(&format!("{kind:#04x}")), "{kind:#04x}");
        assert_eq!(Kind::from_code(kind), None);
    }
}

#[test]
fn every_field_of_every_vector_stands_in_its_table_at_its_place() {
    let file = fields(VECTORS, "file-header");
    let heading_of_file = "## 2. Listed: the file's header";
    for field in &file {
        assert_row(heading_of_file, field);
    }
    assert_eq!(file.len(), rows(section(DOCUMENT, heading_of_file)));

    let checkpoint = fields(VECTORS, "checkpoint-header");
    let heading_of_checkpoint = "## 9. The checkpoint";
    for field in &checkpoint {
        assert_row(heading_of_checkpoint, field);
    }
    assert_eq!(
        checkpoint.len(),
        rows(section(DOCUMENT, heading_of_checkpoint))
    );

    let header: Vec<Field> = fields(VECTORS, "batch")
        .into_iter()
        .filter(|field| field.at < batch::HEADER_SIZE)
        .collect();
    let heading_of_batch = "## 3. Listed: the batch";
    for field in &header {
        assert_row(heading_of_batch, field);
    }
    assert_eq!(header.len(), rows(section(DOCUMENT, heading_of_batch)));

    let cases = [
        ("catalog-created", Kind::CatalogChanged),
        ("catalog-policies", Kind::CatalogChanged),
        ("catalog-deleted", Kind::CatalogChanged),
        ("offsets-reserved", Kind::OffsetsReserved),
        ("producer-attached", Kind::ProducerAttached),
        ("producer-forgotten", Kind::ProducerForgotten),
        ("producer-ids-reserved", Kind::ProducerIdsReserved),
        ("part-begun", Kind::PartBegun),
        ("subscription-made", Kind::Subscription),
        ("subscription-ended", Kind::Subscription),
        ("settled", Kind::Settled),
        ("cursor", Kind::Cursor),
        ("returned", Kind::Returned),
        ("send-refused", Kind::SendRefused),
        ("emptied", Kind::Emptied),
        ("catalog-kept", Kind::CatalogKept),
        ("destination-kept", Kind::DestinationKept),
        ("producer-sent", Kind::ProducerSent),
        ("partition-kept", Kind::PartitionKept),
        ("subscriptions-numbered", Kind::SubscriptionsNumbered),
        ("term-reached", Kind::TermReached),
        ("paged", Kind::Paged),
    ];
    for (vector, kind) in cases {
        let (shared, own): (Vec<Field>, Vec<Field>) = fields(VECTORS, vector)
            .into_iter()
            .partition(|field| field.at < 8);
        for field in &shared {
            assert_row(ENTRIES, field);
        }
        // Tails are described by a sentence.
        let tail = |name: &str| ["bits", "padding", "name"].contains(&name) || name.contains(": ");
        let own: Vec<&Field> = own.iter().filter(|field| !tail(field.name)).collect();
        for field in &own {
            assert_row(&heading(kind), field);
        }
        let listed = rows(section(DOCUMENT, &heading(kind)));
        assert_eq!(own.len(), listed, "{} has no row too many", heading(kind));
    }
}

#[test]
fn the_numbers_on_the_page_are_those_of_the_code() {
    let batch = section(DOCUMENT, "## 3. Listed: the batch");
    assert_eq!(limits::BATCH_SIZE_MAX, 8_388_608);
    assert!(batch.contains("at most 8,388,608"));
    assert_eq!((BLOCK_SIZE, file::FIRST_BATCH), (4096, 4096));
    assert_eq!(limits::PARTITIONS_MAX, 1024);
    assert!(section(DOCUMENT, ENTRIES).contains("below 1,024"));
    assert_eq!(limits::SHARDS_MAX, 64);
    assert!(section(DOCUMENT, "## 1. Drawn").contains("0 to 63"));
    assert!(DOCUMENT.contains(&format!("journal-00/{}", Slot(1))));
    let (run, number) = (Run(7), 0);
    assert!(DOCUMENT.contains(&format!("journal-00/{}", PageFile { run, number })));
    let pages = section(DOCUMENT, "## 10. Page files");
    assert_eq!(limits::PAGES_PER_FILE, 1024);
    assert!(pages.contains("from 1024 f on"));
    assert_eq!(limits::PAGE_SIZE, 65_536);
    assert!(pages.contains("65536 (p mod 1024)"));
    assert!(DOCUMENT.contains("`CRSRJRNL`") && file::MAGIC == *b"CRSRJRNL");
    assert!(DOCUMENT.contains("`CRSRCKPT`") && checkpoint::MAGIC == *b"CRSRCKPT");
    for name in [checkpoint::FILE_NAME, checkpoint::ASIDE_NAME] {
        assert!(DOCUMENT.contains(&format!("\nDIR/journal-00/{name} ")));
    }
    assert_eq!(limits::DESTINATIONS_MAX, 4096);
    assert!(section(DOCUMENT, "#### 0x0d CatalogKept").contains("at most 4,096"));
    assert!(DOCUMENT.contains("`BTCH`") && batch::MAGIC == *b"BTCH");
}

#[test]
fn a_slot_is_found_by_its_files_name_and_no_other() {
    assert_eq!(Slot::from_file_name("000001.journal"), Some(Slot(1)));
    for name in [
        "1.journal",
        "1234567.journal",
        "000000.journal",
        "000001.journal~",
        "+00001.journal",
        ".journal",
    ] {
        assert_eq!(Slot::from_file_name(name), None, "{name}");
    }
}
