//! `courser stats`: what the broker counts, in all and for each destination.

use courser::{Client, DestinationStats};
use courser_bench::table::{Align, Table};
use courser_bench::units;
use serde_json::{Map, Value, json};

use crate::args::StatsOptions;
use crate::error::CommandError;
use crate::output;

/// Asks the broker and prints its answer.
pub(crate) fn stats(options: &StatsOptions) -> Result<(), CommandError> {
    let client = Client::options()
        .reconnect_for(std::time::Duration::ZERO)
        .connect(options.connection.endpoints.clone())?;
    let stats = client.stats().map_err(CommandError::Request)?;
    // The answer is here; how the goodbye goes changes nothing about that.
    let _told = client.close();
    let counters: Vec<_> = stats.counters().collect();
    if options.json {
        output::print_json(&as_json(&counters, stats.destinations()))
    } else {
        output::print(&as_text(&counters, stats.destinations()))
    }
}

fn as_text(counters: &[(&str, u64)], rows: &[DestinationStats]) -> String {
    let mut table = Table::new(&[("counter", Align::Left), ("value", Align::Right)]);
    for (name, value) in counters {
        table.row(vec![(*name).to_owned(), units::count(*value)]);
    }
    let mut text = table.to_string();
    if !rows.is_empty() {
        let mut destinations = Table::new(&[
            ("destination", Align::Left),
            ("partitions", Align::Right),
            ("stored", Align::Right),
            ("unsettled", Align::Right),
            ("memory", Align::Right),
            ("producers", Align::Right),
            ("consumers", Align::Right),
            ("subscriptions", Align::Right),
        ]);
        for row in rows {
            destinations.row(vec![
                row.destination.to_string(),
                row.partitions.to_string(),
                units::count(row.stored),
                units::count(row.unsettled),
                units::bytes(row.bytes),
                row.producers.to_string(),
                row.consumers.to_string(),
                row.subscriptions.to_string(),
            ]);
        }
        text.push('\n');
        text.push_str(&destinations.to_string());
    }
    text
}

fn as_json(counters: &[(&str, u64)], rows: &[DestinationStats]) -> Value {
    let counters: Map<_, _> = counters
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Value::from(*value)))
        .collect();
    let destination = |row: &DestinationStats| {
        json!({
            "destination": row.destination.to_string(),
            "partitions": row.partitions,
            "stored": row.stored,
            "unsettled": row.unsettled,
            "bytes": row.bytes,
            "producers": row.producers,
            "consumers": row.consumers,
            "subscriptions": row.subscriptions,
        })
    };
    json!({
        "counters": counters,
        "destinations": Value::from_iter(rows.iter().map(destination)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use courser::Destination;

    use super::*;

    #[test]
    fn a_destination_is_a_row_and_a_counter_a_name_with_a_value() {
        let counters = [("messages_stored", 1_500)];
        let rows = [DestinationStats {
            destination: Destination::parse("orders").unwrap(),
            partitions: 2,
            stored: 1_500,
            unsettled: 7,
            bytes: 64 << 10,
            producers: 1,
            consumers: 0,
            subscriptions: 1,
        }];
        let json = as_json(&counters, &rows);
        assert_eq!(json["counters"]["messages_stored"], 1_500);
        assert_eq!(json["destinations"][0]["unsettled"], 7);
        let text = as_text(&counters, &rows);
        let row = text.lines().last().unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        let expected = "queue:/default/orders 2 1,500 7 64 KiB 1 0 1";
        assert_eq!(cells.join(" "), expected);
        assert!(as_text(&counters, &[]).contains("messages_stored  1,500"));
    }
}
