//! `courser dump`: every batch and entry of a data directory that can be read, in their
//! order.

use courser_core::id::JournalNumber;
use courser_core::journal::batch::Header;
use courser_core::journal::entry::{Entry, Place, Run};
use courser_core::journal::recover::Damage;
use courser_core::journal::survey::Slot;
use courser_transport::disk::DirectoryError;
use serde_json::{Map, Value, json};

use crate::args::DumpOptions;
use crate::error::CommandError;
use crate::examine::{Examined, entries};
use crate::output;

/// Prints a line for each entry.
pub(crate) fn dump(options: &DumpOptions) -> Result<(), CommandError> {
    let examined = Examined::open(&options.directory)?;
    let mut damaged = false;
    for journal in &examined.journals {
        if let Err(damage) = &journal.decision {
            damaged = true;
            output::remark(&format_args!("journal-{:02}/{damage}", journal.number));
        }
        let read = examined.batches(journal, |slot, batch| {
            let mut text = String::new();
            let head = batch_as_json(journal.number, slot, &batch.header);
            line(&mut text, options.json, &head, "");
            for entry in entries(slot, batch) {
                let entry = match entry {
                    Ok(entry) => fields(&entry),
                    Err(damage) => {
                        output::print(&text)?;
                        return Err(DumpEnd::Damage(damage));
                    }
                };
                line(&mut text, options.json, &entry, "  ");
            }
            output::print(&text).map_err(DumpEnd::from)
        });
        match read {
            Ok(()) => {}
            Err(DumpEnd::Damage(damage)) => {
                damaged = true;
                output::remark(&format_args!("journal-{:02}/{damage}", journal.number));
            }
            Err(DumpEnd::Failed(error)) => return Err(*error),
        }
    }
    if damaged {
        return Err(CommandError::Damaged {
            directory: options.directory.clone(),
        });
    }
    Ok(())
}

/// Why a journal was not dumped to its end.
enum DumpEnd {
    Damage(Damage),
    Failed(Box<CommandError>),
}

impl From<Damage> for DumpEnd {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl From<CommandError> for DumpEnd {
    fn from(error: CommandError) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl From<DirectoryError> for DumpEnd {
    fn from(error: DirectoryError) -> Self {
        Self::from(CommandError::from(error))
    }
}

/// What one line says: what it is about, and its fields in the order of the format.
struct Line {
    what: &'static str,
    fields: Vec<(&'static str, Value)>,
}

fn line(text: &mut String, json: bool, line: &Line, indent: &str) {
    if json {
        let mut object = Map::new();
        object.insert("is".to_owned(), line.what.into());
        for (name, value) in &line.fields {
            object.insert((*name).to_owned(), value.clone());
        }
        text.push_str(&Value::Object(object).to_string());
    } else {
        text.push_str(indent);
        text.push_str(line.what);
        for (name, value) in &line.fields {
            text.push_str(&format!("  {} {value}", name.replace('_', " ")));
        }
    }
    text.push('\n');
}

fn batch_as_json(journal: JournalNumber, slot: Slot, header: &Header) -> Line {
    Line {
        what: "batch",
        fields: vec![
            ("number", header.label.number.0.into()),
            ("journal", journal.0.into()),
            ("file", slot.to_string().into()),
            ("position", header.position.into()),
            ("run", header.origin.run.0.into()),
            ("length", header.length.into()),
            ("entries", header.entries.into()),
            ("durable_before", header.label.durable_before.0.into()),
            ("written", header.label.written.0.into()),
        ],
    }
}

fn fields(entry: &Entry<'_>) -> Line {
    let of = |place: &Place| {
        vec![
            ("destination", Value::from(place.destination.0)),
            ("partition", place.partition.0.into()),
        ]
    };
    let run = |run: &Run| json!([run.first.get(), run.count.get()]);
    let fields = match entry {
        Entry::Message(message) => {
            let header = message.header;
            vec![
                ("destination", header.handle.get().into()),
                ("partition", header.partition.get().into()),
                ("offset", header.offset.get().into()),
                ("producer", header.producer.get().into()),
                ("epoch", header.epoch.get().into()),
                ("sequence", header.sequence.get().into()),
                ("append_time", header.append_time.get().into()),
                ("body", message.body.len().into()),
            ]
        }
        Entry::CatalogChanged { version, change } => vec![
            ("version", version.0.into()),
            ("change", format!("{change:?}").into()),
        ],
        Entry::OffsetsReserved { place, next } => {
            [of(place), vec![("next_offset", next.0.into())]].concat()
        }
        Entry::ProducerAttached {
            producer,
            epoch,
            destination,
            term,
            principal: _,
            exclusive,
            name,
        } => vec![
            ("producer", producer.0.into()),
            ("epoch", epoch.0.into()),
            ("destination", destination.0.into()),
            ("term", (*term).into()),
            ("exclusive", (*exclusive).into()),
            ("name", (*name).into()),
        ],
        Entry::ProducerForgotten { producer } => vec![("producer", producer.0.into())],
        Entry::ProducerIdsReserved { next } => vec![("next_producer", next.0.into())],
        Entry::PartBegun {
            place,
            subscription,
            start,
        } => [
            of(place),
            vec![
                ("subscription", subscription.0.into()),
                ("start", start.0.into()),
            ],
        ]
        .concat(),
        Entry::SubscriptionMade {
            destination,
            subscription,
            sharing,
            durable,
            name,
        } => vec![
            ("destination", destination.0.into()),
            ("subscription", subscription.0.into()),
            ("sharing", format!("{sharing:?}").into()),
            ("durable", (*durable).into()),
            ("name", (*name).into()),
        ],
        Entry::SubscriptionEnded {
            destination,
            subscription,
        } => vec![
            ("destination", destination.0.into()),
            ("subscription", subscription.0.into()),
            ("ended", true.into()),
        ],
        Entry::Settled {
            place,
            subscription,
            runs,
        } => [
            of(place),
            vec![
                ("subscription", subscription.0.into()),
                ("runs", Value::from_iter(runs.iter().map(run))),
            ],
        ]
        .concat(),
        Entry::Cursor {
            place,
            subscription,
            cursor,
            bits,
        } => {
            let settled: u64 = bits.iter().map(|bits| u64::from(bits.count_ones())).sum();
            [
                of(place),
                vec![
                    ("subscription", subscription.0.into()),
                    ("cursor", cursor.0.into()),
                    ("settled_behind", settled.into()),
                ],
            ]
            .concat()
        }
        Entry::Returned {
            place,
            subscription,
            run: returned,
            deliveries,
        } => [
            of(place),
            vec![
                ("subscription", subscription.0.into()),
                ("run", run(returned)),
                ("deliveries", (*deliveries).into()),
            ],
        ]
        .concat(),
        Entry::SendRefused {
            producer,
            epoch,
            place,
            sequence,
            partition_sequence,
            refusal,
        } => [
            of(place),
            vec![
                ("producer", producer.0.into()),
                ("epoch", epoch.0.into()),
                ("sequence", sequence.0.into()),
                ("partition_sequence", partition_sequence.0.into()),
                ("refusal", refusal.code().into()),
            ],
        ]
        .concat(),
        Entry::Emptied { place, first } => {
            [of(place), vec![("first_offset", first.0.into())]].concat()
        }
    };
    Line {
        what: entry.kind().name(),
        fields,
    }
}
