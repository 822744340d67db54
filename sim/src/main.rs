//! `courser-sim SEED` replays one seed; `courser-sim --seeds FIRST..LAST` runs a
//! range; without arguments it runs the first 300, or what `COURSER_SEED` says.
//! A failure prints the last that happened, with `--last COUNT` so much of it.

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
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
        seeds = parsed;
    }
    let from_environment = || {
        std::env::var("COURSER_SEED")
            .ok()
            .and_then(|text| single(&text))
    };
    let seeds = seeds.or_else(from_environment).unwrap_or(0..300);
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
            print!("{report}");
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
            println!("COURSER_SEED={seed} {}", Line(report));
        }
    })
}

fn tell(failure: &Failure) {
    eprintln!("the last that happened:");
    eprint!("{}", failure.last);
    eprintln!("{failure}");
    eprintln!("replay: cargo run -p courser-sim -- {}", failure.seed);
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
