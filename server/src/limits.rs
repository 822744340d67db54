//! `courser limits`: every bound, and what happens when it is reached.

use courser_core::limits::{Limit, TABLE, Unit};
use serde_json::{Value, json};

use crate::args::LimitsOptions;
use crate::error::CommandError;
use crate::output;

/// Prints the table of bounds.
pub(crate) fn limits(options: &LimitsOptions) -> Result<(), CommandError> {
    if options.json {
        return output::print_json(&Value::from_iter(TABLE.iter().map(row)));
    }
    let table: String = TABLE.iter().map(|limit| format!("{limit}\n")).collect();
    output::print(&table)
}

fn row(limit: &Limit) -> Value {
    json!({
        "name": limit.name,
        "value": limit.value,
        "unit": match limit.unit {
            Unit::Bytes => "bytes",
            Unit::Count => "count",
            Unit::Seconds => "seconds",
        },
        "on_reaching": limit.on_reaching,
    })
}
