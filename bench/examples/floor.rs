//! Measures all floors of this machine and prints them.
//!
//! `cargo run --release -p courser-bench --example floor [SECONDS [FILE.json]]`

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use courser_bench::BenchError;
use courser_bench::floor::{FloorOptions, floor};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
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

fn run() -> Result<(), BenchError> {
    let mut arguments = std::env::args().skip(1);
    let mut options = FloorOptions::default();
    if let Some(seconds) = arguments.next() {
        options.duration = seconds
            .parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| BenchError::Option {
                option: "seconds",
                problem: format!("`{seconds}` is not a number of seconds"),
            })?;
    }
    let mut report = floor(&options)?;
    print!("{report}");
    if let Some(file) = arguments.next() {
        report.write_json(Path::new(&file))?;
    }
    Ok(())
}
