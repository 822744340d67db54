//! `courser bench`: asks the library half of the benchmark, prints its report.

use courser_bench::pin::Cores;
use courser_bench::{BenchError, Options, run};

use crate::args::{BenchOptions, Workload};
use crate::error::CommandError;
use crate::output;

/// Measures, prints the report, writes it as JSON if that is wanted, and fails if
/// a message was lost, repeated or out of order, or equal things were not equal.
pub(crate) fn bench(options: &BenchOptions) -> Result<(), CommandError> {
    if let (Workload::Floor, Some(broker)) = (options.workload, options.connect) {
        return Err(CommandError::Bench(BenchError::Option {
            option: "--connect",
            problem: format!("a floor is measured without a broker; leave out {broker}"),
        }));
    }
    check_fit(options)?;
    let cores = options.client_core.zip(options.broker_core);
    let mut report = run(
        options.workload.into(),
        &Options {
            payloads: options.payload.clone(),
            duration: options.seconds,
            connect: options.connect,
            rates: options.rate.clone(),
            window: options.window,
            connections: options.connections,
            backlog_bytes: options.backlog,
            idle: options.idle.into(),
            directory: options.directory.clone(),
            cores: cores.map(|(client, broker)| Cores { client, broker }),
        },
    )?;
    output::print(&report)?;
    if let Some(file) = &options.json {
        report.write_json(file)?;
    }
    if report.checks_failed() {
        return Err(CommandError::Check);
    }
    Ok(())
}

/// Refuses options that the workload would ignore.
fn check_fit(options: &BenchOptions) -> Result<(), CommandError> {
    let workload = options.workload;
    let open = workload == Workload::Open;
    let idle = workload == Workload::Idle;
    let scale = workload == Workload::Scale;
    let floor = workload == Workload::Floor;
    let durable = workload == Workload::Durable;
    for (option, given, fits) in [
        ("--rate", !options.rate.is_empty(), open || idle),
        ("--window", options.window.is_some(), open),
        ("--directory", options.directory.is_some(), floor || durable),
        ("--backlog", options.backlog.is_some(), durable),
        (
            "--connections",
            options.connections.is_some(),
            idle || scale,
        ),
    ] {
        if given && !fits {
            return Err(CommandError::Bench(BenchError::Option {
                option,
                problem: "this workload has none; see courser bench --help".to_owned(),
            }));
        }
    }
    Ok(())
}
