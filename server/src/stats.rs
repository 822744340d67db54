//! `courser stats`: what the broker counts, in all and for each destination.

use courser::{Client, DestinationStats, ShardIndex};
use courser_bench::table::{Align, Table};
use courser_bench::units;
use serde_json::{Map, Value, json};

use crate::args::Asking;
use crate::destination;
use crate::error::CommandError;
use crate::output;

/// Asks the broker and prints its answer.
pub(crate) fn stats(options: &Asking) -> Result<(), CommandError> {
    let client = Client::options()
        .reconnect_for(std::time::Duration::ZERO)
        .connect(options.connection.endpoints.clone())?;
    let stats = client.stats().map_err(CommandError::Request)?;
    // The answer is here; how the goodbye goes changes nothing about that.
    let _told = client.close();
    let counters = Counters {
        all: stats.counters().collect(),
        shards: (stats.shards())
            .map(|(shard, counters)| (shard, counters.collect()))
            .collect(),
    };
    if options.json {
        output::print_json(&as_json(&counters, stats.destinations()))
    } else {
        output::print(&as_text(&counters, stats.destinations()))
    }
}

type Named = Vec<(&'static str, u64)>;

/// What is counted: by all shards, and by each.
struct Counters {
    all: Named,
    shards: Vec<(ShardIndex, Named)>,
}

fn as_text(counters: &Counters, rows: &[DestinationStats]) -> String {
    // A column for each shard says something only where there are several.
    let shards = match &counters.shards[..] {
        [_] => &[],
        several => several,
    };
    let titles: Vec<String> = (shards.iter())
        .map(|(shard, _)| format!("shard {shard}"))
        .collect();
    let mut columns = vec![("counter", Align::Left), ("value", Align::Right)];
    columns.extend(titles.iter().map(|title| (title.as_str(), Align::Right)));
    let mut table = Table::new(&columns);
    for (index, (name, value)) in counters.all.iter().enumerate() {
        let mut row = vec![(*name).to_owned(), units::count(*value)];
        let own = |named: &Named| named.get(index).map_or(0, |(_, value)| *value);
        row.extend(shards.iter().map(|(_, named)| units::count(own(named))));
        table.row(row);
    }
    let mut text = table.to_string();
    if !rows.is_empty() {
        let mut destinations = Table::new(&destination::columns("destination"));
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

fn as_json(counters: &Counters, rows: &[DestinationStats]) -> Value {
    let named = |named: &Named| -> Map<String, Value> {
        (named.iter())
            .map(|(name, value)| ((*name).to_owned(), Value::from(*value)))
            .collect()
    };
    let shard = |(shard, own): &(ShardIndex, Named)| {
        json!({
            "shard": shard.0,
            "counters": named(own),
        })
    };
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
        "counters": named(&counters.all),
        "shards": Value::from_iter(counters.shards.iter().map(shard)),
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
        let counters = Counters {
            all: vec![("messages_stored", 1_500)],
            shards: vec![(ShardIndex(0), vec![("messages_stored", 1_500)])],
        };
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
        assert!(as_text(&counters, &[]).contains("messages_stored  1,500\n"));
    }

    #[test]
    fn several_shards_have_a_column_each_beside_what_they_count_together() {
        let counters = Counters {
            all: vec![("messages_stored", 1_500)],
            shards: vec![
                (ShardIndex(0), vec![("messages_stored", 1_100)]),
                (ShardIndex(1), vec![("messages_stored", 400)]),
            ],
        };
        let text = as_text(&counters, &[]);
        let cells = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(cells).collect();
        assert_eq!(lines[0], "counter value shard 0 shard 1");
        assert_eq!(lines.last().unwrap(), "messages_stored 1,500 1,100 400");
        let json = as_json(&counters, &[]);
        assert_eq!(json["shards"][1]["shard"], 1);
        assert_eq!(json["shards"][1]["counters"]["messages_stored"], 400);
    }
}
