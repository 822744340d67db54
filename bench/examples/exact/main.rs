//! Counts that do not depend on how fast the machine is: instructions,
//! allocations and bytes of a message in the deterministic core.
//!
//! ```text
//!   exact measure            one JSON of everything but instructions; under
//!                            callgrind it leaves one dump per scenario
//!   exact judge ...          puts both together and beside the baseline
//! ```
//!
//! `scripts/exact` builds it, runs both and says what its exit status means. The
//! cast: [`pair`] is a client and a shard face to face in memory, [`scenario`]
//! lists what is counted over them, [`allocations`] counts what the allocator is
//! asked for; figures, baseline and verdict are in [`courser_bench::exact`].

mod allocations;
mod order;
mod pair;
mod scenario;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use courser_bench::exact::{Baseline, Environment, ExactError, Measured, judge};
use courser_bench::gate::Verdict;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("measure") => measure(),
        Some("judge") => Options::parse(&arguments[1..]).and_then(|options| options.judge()),
        _ => Err(ExactError::Usage("exact measure | exact judge OPTIONS")),
    };
    match outcome {
        Ok(verdict) => ExitCode::from(verdict.exit_status()),
        Err(error) => {
            eprintln!("exact: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(deeper) = cause {
                eprintln!("  because {deeper}");
                cause = deeper.source();
            }
            ExitCode::from(Verdict::SetUpError.exit_status())
        }
    }
}

fn measure() -> Result<Verdict, ExactError> {
    let measured = scenario::measure();
    println!("{}", serde_json::to_string_pretty(&measured)?);
    Ok(Verdict::Pass)
}

/// What `exact judge` is told: `--counted FILE --dumps PREFIX --baseline FILE
/// --rustc TEXT --valgrind TEXT --libc TEXT [--update]`.
#[derive(Default)]
struct Options {
    counted: PathBuf,
    dumps: PathBuf,
    baseline: PathBuf,
    rustc: String,
    valgrind: String,
    libc: String,
    update: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, ExactError> {
        const USAGE: ExactError = ExactError::Usage(
            "exact judge --counted FILE --dumps PREFIX --baseline FILE \
             --rustc TEXT --valgrind TEXT --libc TEXT [--update]",
        );
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            if name == "--update" {
                options.update = true;
                continue;
            }
            let value = arguments.next().ok_or(USAGE)?;
            match name.as_str() {
                "--counted" => options.counted = value.into(),
                "--dumps" => options.dumps = value.into(),
                "--baseline" => options.baseline = value.into(),
                "--rustc" => options.rustc.clone_from(value),
                "--valgrind" => options.valgrind.clone_from(value),
                "--libc" => options.libc.clone_from(value),
                _ => return Err(USAGE),
            }
        }
        Ok(options)
    }

    fn judge(self) -> Result<Verdict, ExactError> {
        let measured = Measured::read(&self.counted)?;
        let figures = measured.figures(&self.dumps)?;
        let environment = Environment {
            rustc: self.rustc,
            valgrind: self.valgrind,
            libc: self.libc,
            cpu_features: measured.cpu_features,
        };
        if self.update {
            let baseline = Baseline::of(environment, &figures);
            baseline.write(Path::new(&self.baseline))?;
            println!("{} figures in {}", figures.len(), self.baseline.display());
            return Ok(Verdict::Pass);
        }
        let baseline = Baseline::read(&self.baseline)?;
        let judged = judge(&baseline, &environment, &figures);
        print!("{judged}");
        Ok(judged.verdict())
    }
}
