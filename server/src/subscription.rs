//! `courser sub`: subscriptions, and how far they are.

use courser::SubscriptionInfo;
use courser_bench::table::{Align, Table};
use courser_bench::units;
use serde_json::{Value, json};

use crate::args::{
    FilteredOptions, SubscriptionOptions, SubscriptionRemoveOptions, SubscriptionVerb,
};
use crate::confirm::confirm;
use crate::error::CommandError;
use crate::output;

/// Does what was asked for to subscriptions.
pub(crate) fn subscription(verb: &SubscriptionVerb) -> Result<(), CommandError> {
    match verb {
        SubscriptionVerb::Ls(options) => list(options),
        SubscriptionVerb::Show(options) => show(options),
        SubscriptionVerb::Rm(options) => remove(options),
    }
}

fn list(options: &FilteredOptions) -> Result<(), CommandError> {
    let admin = options.asking.connection.admin()?;
    let rows = admin.subscriptions(options.destination.as_ref())?;
    if options.asking.json {
        return output::print_json(&rows.iter().map(as_json).collect());
    }
    let mut table = Table::new(&[
        ("destination", Align::Left),
        ("subscription", Align::Left),
        ("type", Align::Left),
        ("consumers", Align::Right),
        ("unsettled", Align::Right),
        ("backlog", Align::Right),
    ]);
    for row in &rows {
        table.row(vec![
            row.destination.to_string(),
            shown(row).to_owned(),
            kind(row.sharing).to_owned(),
            row.consumers.to_string(),
            units::count(row.unsettled),
            units::count(row.backlog),
        ]);
    }
    output::print(&table)
}

fn show(options: &SubscriptionOptions) -> Result<(), CommandError> {
    let admin = options.asking.connection.admin()?;
    let (destination, name) = (&options.destination, options.subscription.as_str());
    let parts = admin.parts(destination, name)?;
    let all = admin.subscriptions(Some(destination))?;
    let row = all
        .iter()
        .find(|row| &*row.name == name && !row.fleeting)
        .ok_or_else(|| CommandError::Vanished {
            what: format!("subscription {name:?} of {destination}"),
        })?;
    let consumers = admin.consumers(Some(destination), name)?;
    if options.asking.json {
        let parts = parts.iter().map(|part| {
            json!({
                "partition": part.partition.0,
                "cursor": part.cursor.0,
                "fresh": part.fresh.0,
                "end": part.end.0,
                "unsettled": part.unsettled,
                "backlog": part.backlog,
            })
        });
        let consumers = consumers.iter().map(|consumer| {
            json!({
                "connection": consumer.link.0,
                "handle": consumer.handle.to_string(),
                "delivered": consumer.delivered,
                "credit": consumer.credit,
            })
        });
        let mut value = as_json(row);
        value["places"] = parts.collect();
        value["attached"] = consumers.collect();
        return output::print_json(&value);
    }
    let mut text = format!(
        "{destination} {} · {} · backlog {}\n\n",
        shown(row),
        kind(row.sharing),
        units::count(row.backlog)
    );
    let mut table = Table::new(&[
        ("partition", Align::Right),
        ("cursor", Align::Right),
        ("fresh", Align::Right),
        ("end", Align::Right),
        ("unsettled", Align::Right),
        ("backlog", Align::Right),
    ]);
    for part in &parts {
        table.row(vec![
            part.partition.to_string(),
            part.cursor.to_string(),
            part.fresh.to_string(),
            part.end.to_string(),
            part.unsettled.to_string(),
            units::count(part.backlog),
        ]);
    }
    text.push_str(&table.to_string());
    if !consumers.is_empty() {
        let mut table = Table::new(&[
            ("connection", Align::Right),
            ("consumer", Align::Right),
            ("delivered", Align::Right),
            ("credit", Align::Right),
        ]);
        for consumer in &consumers {
            table.row(vec![
                consumer.link.to_string(),
                consumer.handle.to_string(),
                units::count(consumer.delivered),
                units::count(consumer.credit),
            ]);
        }
        text.push('\n');
        text.push_str(&table.to_string());
    }
    output::print(&text)
}

fn remove(options: &SubscriptionRemoveOptions) -> Result<(), CommandError> {
    let admin = options.asking.connection.admin()?;
    let (destination, name) = (&options.destination, options.subscription.as_str());
    confirm(
        &options.confirmation,
        &format!("delete subscription {name:?} of {destination} with its place"),
    )?;
    admin.delete_subscription(destination, name, options.force)?;
    if options.asking.json {
        output::print_json(&json!({
            "destination": destination.to_string(),
            "subscription": name,
            "deleted": true,
        }))
    } else {
        output::print(&format_args!("{destination} {name} deleted\n"))
    }
}

fn as_json(row: &SubscriptionInfo) -> Value {
    json!({
        "destination": row.destination.to_string(),
        "subscription": row.name,
        "type": kind(row.sharing),
        "ends_with_its_consumer": row.fleeting,
        "partitions": row.partitions,
        "consumers": row.consumers,
        "unsettled": row.unsettled,
        "backlog": row.backlog,
    })
}

fn shown(row: &SubscriptionInfo) -> &str {
    match (&*row.name, row.fleeting) {
        ("", true) => "(ends with its consumer)",
        ("", false) => "(the queue's own)",
        (name, _) => name,
    }
}

/// How consumers share it, by the code on the wire.
fn kind(sharing: u8) -> &'static str {
    match sharing {
        1 => "exclusive",
        2 => "shared",
        3 => "failover",
        4 => "key-shared",
        _ => "of a later kind",
    }
}
