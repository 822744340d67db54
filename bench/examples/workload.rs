//! Runs a workload of the broker beside its floor and prints the report.
//!
//! `cargo run --release -p courser-bench --example workload [WORKLOAD [SECONDS [FILE.json]]]`
//! where WORKLOAD is quick, floor, rtt, e2e, throughput, open, idle or scale.
//!
//! Exit status: 0 done, 3 it could not be measured, 5 a check failed.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use courser_bench::{BenchError, Options, Report, Workload, run};

fn main() -> ExitCode {
    match measure() {
        Ok(report) if report.checks_failed() => ExitCode::from(5),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(deeper) = cause {
                eprintln!("  because {deeper}");
                cause = deeper.source();
            }
            ExitCode::from(3)
        }
    }
}

fn measure() -> Result<Report, BenchError> {
    let refuse = |option, problem| Err(BenchError::Option { option, problem });
    let mut arguments = std::env::args().skip(1);
    let workload = match arguments.next().as_deref() {
        None | Some("quick") => Workload::Quick,
        Some("floor") => Workload::Floor,
        Some("rtt") => Workload::RoundTrip,
        Some("e2e") => Workload::EndToEnd,
        Some("throughput") => Workload::Throughput,
        Some("open") => Workload::Open,
        Some("idle") => Workload::Idle,
        Some("scale") => Workload::Scale,
        Some(other) => return refuse("workload", format!("`{other}` is none")),
    };
    let mut options = Options::default();
    if let Some(seconds) = arguments.next() {
        match seconds.parse().map(Duration::try_from_secs_f64) {
            Ok(Ok(duration)) => options.duration = Some(duration),
            _ => return refuse("seconds", format!("`{seconds}` is not a number of seconds")),
        }
    }
    let mut report = run(workload, &options)?;
    print!("{report}");
    if let Some(file) = arguments.next() {
        report.write_json(Path::new(&file))?;
    }
    Ok(report)
}
