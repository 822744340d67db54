//! `courser bench`: asks the library half of the benchmark, prints its report.

use courser_bench::Report;
use courser_bench::compare::Verdict;
use courser_bench::floor::{FloorOptions, floor};
use courser_bench::pin::Cores;

use crate::args::{BenchOptions, Workload};
use crate::error::CommandError;
use crate::output;

/// Measures, prints the report, writes it as JSON if that is wanted, and fails if
/// things that have to be equal were not.
pub(crate) fn bench(options: &BenchOptions) -> Result<(), CommandError> {
    let report = match options.workload {
        Workload::Floor => floor(&floor_options(options))?,
    };
    output::print(&report)?;
    if let Some(file) = &options.json {
        report.write_json(file)?;
    }
    judge(&report)
}

fn judge(report: &Report) -> Result<(), CommandError> {
    let differs = |verdict: Verdict| verdict == Verdict::Differs;
    if report.checks.iter().any(|check| differs(check.verdict)) {
        return Err(CommandError::Check);
    }
    Ok(())
}

fn floor_options(options: &BenchOptions) -> FloorOptions {
    let mut floor = FloorOptions {
        cores: cores(options),
        ..FloorOptions::default()
    };
    if !options.payload.is_empty() {
        floor.payloads.clone_from(&options.payload);
    }
    if let Some(seconds) = options.seconds {
        floor.duration = seconds;
    }
    floor
}

fn cores(options: &BenchOptions) -> Option<Cores> {
    let (client, broker) = options.client_core.zip(options.broker_core)?;
    Some(Cores { client, broker })
}
