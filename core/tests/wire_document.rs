//! `docs/wire.md` against the code: a page that strangers write clients from must
//! not drift. Prose is beyond a test; every table, number and byte is not.
#![allow(clippy::unwrap_used)]

#[path = "vectors/notes.rs"]
mod notes;
mod vectors;

use std::collections::BTreeSet;

use courser_core::error::Refusal;
use courser_core::frame::decode::{Frame, Step, decode};
use courser_core::frame::{Kind, MESSAGE_HEADER_SIZE};
use courser_core::limits;
use notes::Field;

const DOCUMENT: &str = include_str!("../../docs/wire.md");
const VECTORS: &str = include_str!("vectors/frames.hex");

/// The fields of the vector `name`.
fn fields(name: &str) -> Vec<Field> {
    notes::fields(VECTORS, name)
}

/// The text under a heading, up to the next one.
fn section(heading: &str) -> &'static str {
    notes::section(DOCUMENT, heading)
}

fn assert_row(heading: &str, at: usize, size: usize, name: &str) {
    let row = format!("\n| {at} | {size} | {name} |");
    assert!(section(heading).contains(&row), "{heading:?} has{row}");
}

/// How often a heading's table has a row for a field at a fixed place.
fn rows(heading: &str) -> usize {
    notes::rows(section(heading))
}

fn heading(kind: Kind) -> String {
    format!("#### {:#04x} {kind:?}", kind as u8)
}

#[test]
fn every_kind_of_the_code_is_on_the_page_and_no_other() {
    let listed: BTreeSet<&str> = DOCUMENT
        .lines()
        .filter(|line| line.starts_with("#### 0x"))
        .collect();
    let known: Vec<String> = Kind::ALL
        .iter()
        .filter(|kind| **kind != Kind::Message)
        .map(|kind| heading(*kind))
        .collect();
    assert_eq!(listed, known.iter().map(String::as_str).collect());
}

#[test]
fn every_field_of_every_vector_stands_in_its_table_at_its_place() {
    for vector in vectors::all() {
        let Ok(Step::Frame(frame, _)) = decode(&vector.bytes) else {
            panic!("{} is whole", vector.name);
        };
        let fields = fields(vector.name);
        match frame {
            Frame::Message(_) => {
                let header = fields.iter().filter(|field| field.at < MESSAGE_HEADER_SIZE);
                let mut count = 0;
                for field in header {
                    assert_row(
                        "## 3. Listed: the message",
                        field.at,
                        field.size,
                        field.name,
                    );
                    count += 1;
                }
                assert_eq!(count, rows("## 3. Listed: the message") - PROPERTY_ROWS);
            }
            Frame::Control { control, .. } => {
                let heading = heading(control.kind());
                let length = u32::from_le_bytes(*vector.bytes.first_chunk().unwrap()) as usize;
                let tail = length - control.tail().len();
                let own = fields.iter().filter(|field| (16..tail).contains(&field.at));
                let mut count = 0;
                for field in own {
                    assert_row(&heading, field.at, field.size, field.name);
                    count += 1;
                }
                assert_eq!(count, rows(&heading), "{heading} has no row too many");
                for field in fields.iter().filter(|field| field.at < 16) {
                    assert_row(
                        "## 2. Listed: what all frames share",
                        field.at,
                        field.size,
                        field.name,
                    );
                }
            }
        }
    }
}

/// Rows of the table of properties that begin with a number of bytes.
const PROPERTY_ROWS: usize = 3;

#[test]
fn parts_of_tails_stand_in_their_tables() {
    let cases = [
        (
            "completions-with-a-refusal",
            "run: ",
            40,
            "#### Completion run",
        ),
        ("acknowledge", "run: ", 16, "#### Acknowledgement run"),
        ("stats", "row: ", 48, "#### Stats row"),
        ("listed-destination", "row: ", 104, "#### Destination row"),
        ("listed-subscription", "row: ", 32, "#### Subscription row"),
        ("listed-part", "row: ", 40, "#### Part row"),
        ("listed-consumer", "row: ", 40, "#### Consumer row"),
        ("listed-producer", "row: ", 32, "#### Producer row"),
        ("listed-link", "row: ", 32, "#### Link row"),
    ];
    for (vector, prefix, size, heading) in cases {
        let parts: Vec<Field> = fields(vector)
            .into_iter()
            .filter(|field| field.name.starts_with(prefix))
            .collect();
        let start = parts[0].at;
        let mut seen = BTreeSet::new();
        for field in &parts {
            let at = field.at - start;
            if prefix == "row: " && at >= size {
                // The name behind the row.
                continue;
            }
            let at = at % size;
            assert_row(heading, at, field.size, &field.name[prefix.len()..]);
            seen.insert(at);
        }
        assert_eq!(seen.len(), rows(heading), "{heading} has no row too many");
    }
}

#[test]
fn every_refusal_stands_in_its_table_with_its_code_and_meaning() {
    let section = section("## 6. Refusals");
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| code"))
        .collect();
    assert_eq!(rows.len(), Refusal::ALL.len());
    for (row, refusal) in rows.iter().zip(Refusal::ALL) {
        let begin = format!("| {} | {refusal:?} |", refusal.code());
        let end = format!("| {} |", refusal.text());
        assert!(row.starts_with(&begin) && row.ends_with(&end), "{row}");
    }
}

#[test]
fn the_numbers_on_the_page_are_the_limits() {
    let grouped = |number: u32| {
        let digits = number.to_string();
        let mut text = String::new();
        for (index, digit) in digits.char_indices() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        text
    };
    let rules = section("## 5. Ruled");
    for (text, limit) in [
        ("{} for a message", limits::FRAME_SIZE_MAX),
        ("{} for a hello", limits::HELLO_SIZE_MAX),
        (
            "{}\n   for every other control frame",
            limits::CONTROL_SIZE_MAX,
        ),
        ("{}\n   sessions", limits::SESSIONS_PER_LINK_MAX),
        ("{} handles", limits::HANDLES_PER_LINK_MAX),
        ("At {} unsettled messages", limits::UNSETTLED_MAX),
    ] {
        let sentence = text.replace("{}", &grouped(limit));
        assert!(rules.contains(&sentence), "the rules say {sentence:?}");
    }
    for (what, limit) in [
        (
            "from connecting to the end of the hello",
            limits::HELLO_TIMEOUT,
        ),
        (
            "from the first byte of a frame to its last",
            limits::FRAME_TIMEOUT,
        ),
        (
            "bytes wait for a peer that takes none",
            limits::STALL_TIMEOUT,
        ),
        ("a peer that vanished", limits::VANISHED_TIMEOUT),
    ] {
        let row = format!("| {what} | {} s |", limit.as_secs());
        assert!(rules.contains(&row), "the rules say {row:?}");
    }
    let message = section("## 3. Listed: the message");
    let properties = format!("at most {}", limits::PROPERTIES_MAX);
    assert!(message.contains(&properties));
    let partitions = format!("up to {};", limits::PARTITIONS_MAX);
    assert!(section(&heading(Kind::OpenProducer)).contains(&partitions));
}

#[test]
fn the_example_on_the_page_is_made_of_vectors() {
    for name in ["message", "completions", "message-as-delivered"] {
        let title = format!("= {name}: ");
        let lines: Vec<&str> = VECTORS
            .lines()
            .skip_while(|line| !line.starts_with(&title))
            .skip(1)
            .take_while(|line| !line.is_empty())
            .collect();
        let block = format!("```text\n{}\n```\n", lines.join("\n"));
        assert!(DOCUMENT.contains(&block), "the page shows {name}");
    }
}
