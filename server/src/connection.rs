//! `courser conn`: who is connected.

use courser_bench::table::{Align, Table};
use courser_bench::units;
use serde_json::{Value, json};

use crate::args::{Asking, ConnectionVerb, KillOptions};
use crate::confirm::confirm;
use crate::error::CommandError;
use crate::output;

/// Does what was asked for to connections.
pub(crate) fn connection(verb: &ConnectionVerb) -> Result<(), CommandError> {
    match verb {
        ConnectionVerb::Ls(options) => list(options),
        ConnectionVerb::Kill(options) => kill(options),
    }
}

fn list(asking: &Asking) -> Result<(), CommandError> {
    let admin = asking.connection.admin()?;
    let rows = admin.connections()?;
    if asking.json {
        let rows = rows.iter().map(|row| {
            json!({
                "number": row.link.0,
                "client": row.name,
                "sessions": row.sessions,
                "producers": row.producers,
                "consumers": row.consumers,
                "bytes_waiting": row.waiting,
            })
        });
        return output::print_json(&rows.collect::<Value>());
    }
    let mut table = Table::new(&[
        ("number", Align::Right),
        ("client", Align::Left),
        ("sessions", Align::Right),
        ("producers", Align::Right),
        ("consumers", Align::Right),
        ("waiting", Align::Right),
    ]);
    for row in &rows {
        table.row(vec![
            row.link.to_string(),
            if row.name.is_empty() { "-" } else { &*row.name }.to_owned(),
            row.sessions.to_string(),
            row.producers.to_string(),
            row.consumers.to_string(),
            units::bytes(row.waiting),
        ]);
    }
    output::print(&table)
}

fn kill(options: &KillOptions) -> Result<(), CommandError> {
    let admin = options.asking.connection.admin()?;
    let link = options.link;
    confirm(&options.confirmation, &format!("end connection {link}"))?;
    admin.end_connection(link)?;
    if options.asking.json {
        output::print_json(&json!({ "number": link.0, "ended": true }))
    } else {
        output::print(&format_args!("connection {link} ended\n"))
    }
}
