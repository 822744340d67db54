//! `courser producer`: who sends.

use courser_bench::table::{Align, Table};
use serde_json::{Value, json};

use crate::args::{FenceOptions, FilteredOptions, ProducerVerb};
use crate::confirm::confirm;
use crate::error::CommandError;
use crate::output;

/// Does what was asked for to producers.
pub(crate) fn producer(verb: &ProducerVerb) -> Result<(), CommandError> {
    match verb {
        ProducerVerb::Ls(options) => list(options),
        ProducerVerb::Fence(options) => fence(options),
    }
}

fn list(options: &FilteredOptions) -> Result<(), CommandError> {
    let admin = options.asking.connection.admin()?;
    let rows = admin.producers(options.destination.as_ref())?;
    if options.asking.json {
        let rows = rows.iter().map(|row| {
            json!({
                "id": row.id.0,
                "name": row.name,
                "destination": row.destination.to_string(),
                "access": access(row.access),
                "epoch": row.epoch.0,
                "connection": row.link.0,
            })
        });
        return output::print_json(&rows.collect::<Value>());
    }
    let mut table = Table::new(&[
        ("id", Align::Right),
        ("name", Align::Left),
        ("destination", Align::Left),
        ("access", Align::Left),
        ("epoch", Align::Right),
        ("connection", Align::Right),
    ]);
    for row in &rows {
        table.row(vec![
            row.id.to_string(),
            if row.name.is_empty() { "-" } else { &*row.name }.to_owned(),
            row.destination.to_string(),
            access(row.access).to_owned(),
            row.epoch.to_string(),
            row.link.to_string(),
        ]);
    }
    output::print(&table)
}

fn fence(options: &FenceOptions) -> Result<(), CommandError> {
    let admin = options.asking.connection.admin()?;
    let producer = options.producer;
    confirm(
        &options.confirmation,
        &format!("fence producer {producer}, which then never sends again"),
    )?;
    admin.fence(producer)?;
    if options.asking.json {
        output::print_json(&json!({ "id": producer.0, "fenced": true }))
    } else {
        output::print(&format_args!("producer {producer} fenced\n"))
    }
}

fn access(code: u8) -> &'static str {
    match code {
        0 => "shared",
        1 => "exclusive",
        _ => "of a later kind",
    }
}
