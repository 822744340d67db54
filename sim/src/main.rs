//! `courser-sim SEED` replays one seed; `courser-sim --seeds FIRST..LAST` runs a
//! range; without arguments it runs the first 1000, or what `COURSER_SEED` says.
//! A failure prints the last that happened, with `--last COUNT` so much of it.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::process::ExitCode;

use courser_sim::{Failure, Line, Report};

const USAGE: &str = "usage: courser-sim [SEED | --seeds FIRST..LAST] [--last COUNT] [--quiet]";

fn main() -> ExitCode {
    let mut quiet = false;
    let mut seeds = None;
    let mut last = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let parsed = match argument.as_str() {
            "--quiet" => {
                quiet = true;
                continue;
            }
            "--last" => {
                last = arguments.next().and_then(|text| text.parse().ok());
                if last.is_some() {
                    continue;
                }
                None
            }
            "--seeds" => arguments.next().and_then(|text| range(&text)),
            text => single(text),
        };
        if parsed.is_none() || seeds.is_some() {
            remark(&format_args!("{USAGE}\n"));
            return ExitCode::from(2);
        }
        seeds = parsed;
    }
    let from_environment = || {
        std::env::var("COURSER_SEED")
            .ok()
            .and_then(|text| single(&text))
    };
    let seeds = seeds.or_else(from_environment).unwrap_or(0..1000);
    let result = match last {
        Some(kept) => seeds
            .into_iter()
            .try_fold(Report::default(), |mut sum, seed| {
                sum.add(&courser_sim::run_keeping(seed, kept)?);
                Ok(sum)
            }),
        None => run(seeds, quiet),
    };
    match result {
        Ok(report) => {
            say(&report);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            tell(&failure);
            ExitCode::FAILURE
        }
    }
}

fn run(seeds: Range<u64>, quiet: bool) -> Result<Report, Failure> {
    courser_sim::run_all(seeds, |seed, report| {
        if !quiet {
            say(&format_args!("COURSER_SEED={seed} {}\n", Line(report)));
        }
    })
}

fn tell(failure: &Failure) {
    remark(&"the last that happened:\n");
    remark(&failure.last);
    remark(&format_args!("{failure}\n"));
    let seed = failure.seed;
    remark(&format_args!(
        "replay: cargo run -p courser-sim -- {seed}\n"
    ));
}

/// Prints; where nobody reads any more, it ends as the signal would have ended it that
/// other programs get: what was not run must not look as if it had held.
fn say(text: &impl fmt::Display) {
    const ENDED_BY_SIGPIPE: i32 = 128 + 13;
    let mut out = io::stdout().lock();
    if let Err(error) = write!(out, "{text}").and_then(|()| out.flush()) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            remark(&format_args!("courser-sim: cannot write: {error}\n"));
        }
        std::process::exit(ENDED_BY_SIGPIPE);
    }
}

/// Says something on standard error, to whoever is there.
fn remark(text: &impl fmt::Display) {
    let _unheard = write!(io::stderr().lock(), "{text}");
}

fn single(text: &str) -> Option<Range<u64>> {
    let seed: u64 = text.parse().ok()?;
    Some(seed..seed.checked_add(1)?)
}

fn range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.split_once("..")?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first < last).then_some(first..last)
}
