//! `courser topic` and `courser queue`: destinations, seen and changed.

use courser::{
    Admin, Destination, DestinationInfo, DestinationKind, NewDestination, PolicyChange,
    RequestError, Retention,
};
use courser_bench::table::{Align, Table};
use courser_bench::units;
use serde_json::{Value, json};

use crate::args::{
    Asking, Bounds, CreateOptions, DestinationVerb, NamedOptions, RemoveOptions, SetOptions,
};
use crate::confirm::confirm;
use crate::error::CommandError;
use crate::output;

/// Does what was asked for to destinations of one kind.
pub(crate) fn destination(
    kind: DestinationKind,
    verb: &DestinationVerb,
) -> Result<(), CommandError> {
    match verb {
        DestinationVerb::Ls(options) => list(kind, options),
        DestinationVerb::Show(options) => show(kind, options),
        DestinationVerb::Create(options) => create(kind, options),
        DestinationVerb::Rm(options) => remove(kind, options),
        DestinationVerb::Set(options) => set(kind, options),
    }
}

/// What a list of destinations says of each, behind what it is called.
pub(crate) fn columns(first: &str) -> [(&str, Align); 8] {
    [
        (first, Align::Left),
        ("partitions", Align::Right),
        ("stored", Align::Right),
        ("unsettled", Align::Right),
        ("memory", Align::Right),
        ("producers", Align::Right),
        ("consumers", Align::Right),
        ("subscriptions", Align::Right),
    ]
}

fn list(kind: DestinationKind, asking: &Asking) -> Result<(), CommandError> {
    let admin = asking.connection.admin()?;
    let mut rows = admin.destinations()?;
    rows.retain(|row| row.destination.kind == kind);
    if asking.json {
        return output::print_json(&rows.iter().map(as_json).collect());
    }
    let mut table = Table::new(&columns("name"));
    for row in &rows {
        table.row(vec![
            row.destination.name.to_string(),
            row.partitions.to_string(),
            units::count(row.stored),
            units::count(row.unsettled),
            units::bytes(row.bytes),
            of_at_most(row.producers, row.policies.producers_max),
            of_at_most(row.consumers, row.policies.consumers_max),
            of_at_most(row.subscriptions, row.policies.subscriptions_max),
        ]);
    }
    output::print(&table)
}

fn show(kind: DestinationKind, options: &NamedOptions) -> Result<(), CommandError> {
    let name = named(kind, &options.name)?;
    let admin = options.asking.connection.admin()?;
    let row = admin.destination(&name)?;
    if options.asking.json {
        return output::print_json(&as_json(&row));
    }
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    for (key, value) in [
        ("name", row.destination.to_string()),
        ("partitions", row.partitions.to_string()),
        ("retention", retention(row.retention)),
        ("dispatch", row.dispatch.to_string()),
        ("stored", units::count(row.stored)),
        ("unsettled", units::count(row.unsettled)),
        ("memory", units::bytes(row.bytes)),
        (
            "producers",
            of_at_most(row.producers, row.policies.producers_max),
        ),
        (
            "consumers",
            of_at_most(row.consumers, row.policies.consumers_max),
        ),
        (
            "subscriptions",
            of_at_most(row.subscriptions, row.policies.subscriptions_max),
        ),
    ] {
        table.row(vec![key.to_owned(), value]);
    }
    if row.retention.segment().is_some() {
        for (key, value) in segments(&row) {
            table.row(vec![key.to_owned(), value]);
        }
    }
    let mut text = table.to_string();
    text.push('\n');
    for name in partition_names(&row) {
        text.push_str(&name);
        text.push('\n');
    }
    output::print(&text)
}

fn create(kind: DestinationKind, options: &CreateOptions) -> Result<(), CommandError> {
    let name = named(kind, &options.named.name)?;
    let admin = options.named.asking.connection.admin()?;
    let wanted = NewDestination {
        partitions: options.partitions,
        retention: options.keeping.retention(),
        dispatch: options.dispatch,
        policies: policies(&options.bounds),
    };
    let created = admin.create(&name, &wanted)?;
    let said = if created { "created" } else { "exists already" };
    done(options.named.asking.json, &name, "created", created, said)
}

fn set(kind: DestinationKind, options: &SetOptions) -> Result<(), CommandError> {
    let name = named(kind, &options.named.name)?;
    let policies = policies(&options.bounds);
    if policies == PolicyChange::default() {
        return Err(CommandError::NothingToSet);
    }
    let admin = options.named.asking.connection.admin()?;
    let changed = admin.set(&name, policies)?;
    let said = if changed { "changed" } else { "is so already" };
    done(options.named.asking.json, &name, "changed", changed, said)
}

fn remove(kind: DestinationKind, options: &RemoveOptions) -> Result<(), CommandError> {
    let name = named(kind, &options.named.name)?;
    let admin = options.named.asking.connection.admin()?;
    let what = what_goes(&admin, &name)?;
    confirm(&options.confirmation, &what)?;
    admin.delete(&name, options.force)?;
    done(options.named.asking.json, &name, "deleted", true, "deleted")
}

/// What would be deleted, as a question without its mark.
fn what_goes(admin: &Admin, name: &Destination) -> Result<String, CommandError> {
    let row = admin.destination(name)?;
    Ok(format!(
        "delete {name} with {} unsettled messages, {} subscriptions, {} producers and {} consumers",
        row.unsettled, row.subscriptions, row.producers, row.consumers
    ))
}

fn done(
    is_json: bool,
    name: &Destination,
    key: &str,
    changed: bool,
    said: &str,
) -> Result<(), CommandError> {
    if is_json {
        output::print_json(&json!({ "destination": name.to_string(), key: changed }))
    } else {
        output::print(&format_args!("{name} {said}\n"))
    }
}

/// The destination of this kind and name, with or without the word before it.
fn named(kind: DestinationKind, name: &str) -> Result<Destination, CommandError> {
    let bare = name.strip_prefix(&format!("{kind}:")).unwrap_or(name);
    Destination::new(kind, bare).map_err(|refusal| {
        CommandError::Request(RequestError::Name {
            name: name.to_owned(),
            refusal,
        })
    })
}

fn policies(bounds: &Bounds) -> PolicyChange {
    PolicyChange {
        producers_max: bounds.max_producers,
        consumers_max: bounds.max_consumers,
        subscriptions_max: bounds.max_subscriptions,
    }
}

/// What partitions keep, in a few words.
fn retention(retention: Retention) -> String {
    match retention {
        Retention::Size(0) => String::from("what is not settled"),
        Retention::Size(bytes) => format!("{} of what is settled", units::bytes(bytes)),
        Retention::UntilAcknowledged { segment } => {
            format!("segments of {} until acknowledged", units::bytes(segment))
        }
        Retention::UntilExpired { segment, period } => {
            let segment = units::bytes(segment);
            format!("segments of {segment} until {period}s after they are closed")
        }
    }
}

/// What there is of segments: how many, how much in them, how old the oldest is.
fn segments(row: &DestinationInfo) -> [(&'static str, String); 3] {
    let segments = row.segments;
    let oldest = segments.oldest.map_or(String::from("none"), |time| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let age = now.saturating_sub(std::time::Duration::from_nanos(time.0));
        format!("{}s ago", age.as_secs())
    });
    [
        (
            "segments",
            format!("{} closed, {} open", segments.closed, segments.open),
        ),
        ("segment bytes", units::bytes(segments.bytes)),
        ("oldest message", oldest),
    ]
}

fn retention_as_json(retention: Retention) -> Value {
    match retention {
        Retention::Size(0) => json!({ "policy": "settled" }),
        Retention::Size(bytes) => json!({ "policy": "size", "bytes": bytes }),
        Retention::UntilAcknowledged { segment } => {
            json!({ "policy": "until-acknowledged", "segment_bytes": segment })
        }
        Retention::UntilExpired { segment, period } => json!({
            "policy": "until-expired",
            "segment_bytes": segment,
            "period_seconds": period,
        }),
    }
}

fn of_at_most(there: u32, most: u32) -> String {
    match most {
        0 => there.to_string(),
        most => format!("{there}/{most}"),
    }
}

/// What its partitions are called; the only one bears its name.
fn partition_names(row: &DestinationInfo) -> Vec<String> {
    let name = &row.destination.name;
    match row.partitions {
        1 => vec![name.to_string()],
        count => (0..count).map(|it| format!("{name}-part-{it}")).collect(),
    }
}

fn as_json(row: &DestinationInfo) -> Value {
    json!({
        "destination": row.destination.to_string(),
        "partitions": row.partitions,
        "partition_names": partition_names(row),
        "retention": retention_as_json(row.retention),
        "dispatch": row.dispatch.to_string(),
        "segments": row.retention.segment().map(|_| json!({
            "closed": row.segments.closed,
            "open": row.segments.open,
            "bytes": row.segments.bytes,
            "oldest_ns": row.segments.oldest.map(|time| time.0),
        })),
        "producers_max": row.policies.producers_max,
        "consumers_max": row.policies.consumers_max,
        "subscriptions_max": row.policies.subscriptions_max,
        "stored": row.stored,
        "unsettled": row.unsettled,
        "bytes": row.bytes,
        "producers": row.producers,
        "consumers": row.consumers,
        "subscriptions": row.subscriptions,
    })
}
