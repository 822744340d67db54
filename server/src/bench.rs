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
    if options.workload != Workload::Open && !(options.rate.is_empty() && options.window.is_none())
    {
        return Err(CommandError::Bench(BenchError::Option {
            option: "--rate, --window",
            problem: "only an open loop has them: courser bench open".to_owned(),
        }));
    }
    let cores = options.client_core.zip(options.broker_core);
    let mut report = run(
        options.workload.into(),
        &Options {
            payloads: options.payload.clone(),
            duration: options.seconds,
            connect: options.connect,
            rates: options.rate.clone(),
            window: options.window,
            idle: options.idle.into(),
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
