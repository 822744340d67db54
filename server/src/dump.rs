//! `courser dump DIR`: every batch and entry of a data directory that can be read, in their
//! order, or those that are about one destination.

use std::collections::BTreeSet;
use std::path::Path;

use courser::Destination;
use courser_core::catalog::Change;
use courser_core::frame::checksum;
use courser_core::id::{DestinationNumber, JournalNumber};
use courser_core::journal::batch::Header;
use courser_core::journal::checkpoint::FILE_NAME;
use courser_core::journal::entry::{Entry, Place, Run};
use courser_core::journal::recover::Damage;
use courser_transport::disk::DirectoryError;
use serde_json::{Value, json};

use crate::error::CommandError;
use crate::examine::{CheckpointEnd, Examined, PageEnd, entries};
use crate::line::{self, Line};
use crate::output;

/// Prints a line for each entry, or for each that is about `destination`.
pub(crate) fn dump(
    directory: &Path,
    destination: Option<&Destination>,
    json: bool,
) -> Result<(), CommandError> {
    let examined = Examined::open(directory)?;
    let wanted = destination.map(|name| numbers_of(&examined, name));
    let wanted = wanted.transpose()?;
    let is_wanted = |entry: &Entry<'_>| {
        let numbers = wanted.as_ref();
        numbers.is_none_or(|numbers| subject(entry).is_some_and(|it| numbers.contains(&it)))
    };
    let mut damaged = false;
    for journal in &examined.journals {
        if let Err(damage) = &journal.decision {
            damaged = true;
            output::remark(&format_args!("journal-{:02}/{damage}", journal.number));
        }
        let mut images = examined.pages(journal);
        let read = examined.checkpoint_batches(journal, |batch| {
            let mut text = String::new();
            let head = batch_as_json(journal.number, FILE_NAME, &batch.header);
            let mut is_headed = wanted.is_none();
            if is_headed {
                head.write(&mut text, json, "");
            }
            for entry in batch.entries() {
                match entry {
                    Ok(entry) if is_wanted(&entry) => {
                        if !std::mem::replace(&mut is_headed, true) {
                            head.write(&mut text, json, "");
                        }
                        fields(&entry).write(&mut text, json, "  ");
                        if let Entry::Paged { place, image } = &entry {
                            let read = images.messages(*place, image, |message| {
                                fields(message).write(&mut text, json, "    ");
                                Ok::<_, PageEnd>(())
                            });
                            match read {
                                Ok(()) => {}
                                Err(PageEnd::Damage(damage)) => {
                                    damaged = true;
                                    let number = journal.number;
                                    output::remark(&format_args!("journal-{number:02}/{damage}"));
                                }
                                Err(PageEnd::Failed(error)) => return Err(*error),
                            }
                            // A page may have as much to print as a batch.
                            output::print(&std::mem::take(&mut text))?;
                        }
                    }
                    Ok(_) => {}
                    Err(malformed) => {
                        damaged = true;
                        let at = batch.header.position;
                        let number = journal.number;
                        output::remark(&format_args!(
                            "journal-{number:02}/{FILE_NAME} at {at}: {malformed}"
                        ));
                    }
                }
            }
            output::print(&text)
        });
        match read {
            Ok(()) => {}
            Err(CheckpointEnd::Damage(damage)) => {
                damaged = true;
                output::remark(&format_args!("journal-{:02}/{damage}", journal.number));
            }
            Err(CheckpointEnd::Failed(error)) => return Err(*error),
        }
        let read = examined.batches(journal, |slot, batch| {
            let mut text = String::new();
            let head = batch_as_json(journal.number, &slot.to_string(), &batch.header);
            if wanted.is_none() {
                head.write(&mut text, json, "");
            }
            for entry in entries(slot, batch) {
                match entry {
                    Ok(entry) if is_wanted(&entry) => {
                        if text.is_empty() {
                            head.write(&mut text, json, "");
                        }
                        fields(&entry).write(&mut text, json, "  ");
                    }
                    Ok(_) => {}
                    Err(damage) => {
                        output::print(&text)?;
                        return Err(DumpEnd::Damage(damage));
                    }
                }
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
            directory: directory.to_owned(),
        });
    }
    Ok(())
}

/// The numbers that a destination of this name had, one after the other. What cannot be
/// read is passed over: whoever prints comes to it again.
fn numbers_of(
    examined: &Examined,
    name: &Destination,
) -> Result<BTreeSet<DestinationNumber>, CommandError> {
    let mut numbers = BTreeSet::new();
    let mut note = |entry: Entry<'_>| {
        if let Entry::CatalogChanged {
            change: Change::Create(destination),
            ..
        }
        | Entry::DestinationKept { destination, .. } = entry
            && destination.destination == *name
        {
            numbers.insert(destination.number);
        }
    };
    for journal in &examined.journals {
        let read = examined.checkpoint_batches(journal, |batch| {
            batch.entries().map_while(Result::ok).for_each(&mut note);
            Ok(())
        });
        if let Err(CheckpointEnd::Failed(error)) = read {
            return Err(*error);
        }
        let read = examined.batches(journal, |slot, batch| {
            let whole = entries(slot, batch).map_while(Result::ok);
            whole.for_each(&mut note);
            Ok(())
        });
        match read {
            Ok(()) | Err(DumpEnd::Damage(_)) => {}
            Err(DumpEnd::Failed(error)) => return Err(*error),
        }
    }
    if numbers.is_empty() {
        return Err(CommandError::NotInDirectory {
            destination: name.clone(),
            directory: examined.path().to_owned(),
        });
    }
    Ok(numbers)
}

/// The destination that an entry is about.
fn subject(entry: &Entry<'_>) -> Option<DestinationNumber> {
    match entry {
        Entry::Message(message) => Some(DestinationNumber(message.header.handle.get())),
        Entry::CatalogChanged { change, .. } => Some(match change {
            Change::Create(entry) => entry.number,
            Change::Delete(number) | Change::SetPolicies(number, _) => *number,
        }),
        Entry::ProducerAttached { destination, .. }
        | Entry::SubscriptionMade { destination, .. }
        | Entry::SubscriptionEnded { destination, .. } => Some(*destination),
        Entry::OffsetsReserved { place, .. }
        | Entry::PartBegun { place, .. }
        | Entry::Settled { place, .. }
        | Entry::Cursor { place, .. }
        | Entry::Returned { place, .. }
        | Entry::SendRefused { place, .. }
        | Entry::Emptied { place, .. }
        | Entry::Paged { place, .. }
        | Entry::PartitionKept { place, .. } => Some(place.destination),
        Entry::DestinationKept { destination, .. } => Some(destination.number),
        Entry::TermReached { destination, .. } => Some(*destination),
        Entry::ProducerForgotten { .. }
        | Entry::SubscriptionsNumbered { .. }
        | Entry::ProducerIdsReserved { .. }
        | Entry::ProducerSent { .. }
        | Entry::CatalogKept { .. } => None,
    }
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

fn batch_as_json(journal: JournalNumber, file: &str, header: &Header) -> Line {
    Line {
        what: "batch",
        fields: vec![
            ("number", header.label.number.0.into()),
            ("journal", journal.0.into()),
            ("file", file.into()),
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
                ("checksum", line::checksum(checksum::body(message.body))),
                ("preview", line::preview(message.body)),
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
        Entry::CatalogKept {
            version,
            slots,
            vacant,
        } => vec![
            ("version", version.0.into()),
            ("slots", (*slots).into()),
            ("vacant", vacant.len().into()),
        ],
        Entry::DestinationKept {
            version,
            destination,
        } => vec![
            ("version", version.0.into()),
            ("destination", destination.number.0.into()),
            ("name", destination.destination.to_string().into()),
            ("partitions", destination.shape.partitions.into()),
        ],
        Entry::ProducerSent {
            producer,
            reached,
            fates,
        } => {
            let sends: u64 = fates.iter().map(|fate| u64::from(fate.count.get())).sum();
            vec![
                ("producer", producer.0.into()),
                ("partitions", reached.len().into()),
                ("sends", sends.into()),
            ]
        }
        Entry::PartitionKept { place, next } => {
            [of(place), vec![("next_offset", next.0.into())]].concat()
        }
        Entry::SubscriptionsNumbered { next } => vec![("next_subscription", next.0.into())],
        Entry::TermReached { destination, term } => vec![
            ("destination", destination.0.into()),
            ("term", (*term).into()),
        ],
        Entry::Paged { place, image } => [
            of(place),
            vec![
                ("run", image.run.0.into()),
                ("page", image.page.0.into()),
                ("bytes", image.size.into()),
                ("first_offset", image.first.0.into()),
                ("messages", image.count.into()),
            ],
        ]
        .concat(),
    };
    Line {
        what: entry.kind().name(),
        fields,
    }
}
