//! Compares two builds of `courser` by their own benchmarks, in alternating slices.
//!
//! `cargo run -p courser-bench --example compare -- BINARY_A BINARY_B [ROUNDS [SECONDS]]`
//!
//! `scripts/compare` builds the binaries of two revisions and calls this. A round is
//! six slices of each verb; SECONDS is how long a slice is. Exit status: 0 pass, 1
//! regression, 2 inconclusive, 3 set-up error.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use courser_bench::gate::Verdict;
use courser_bench::revisions::{Comparison, Comparisons, Metric, Slices, Standing};

/// Twelve pairs: enough for a chance of one in four thousand.
const ROUNDS: u32 = 6;

const SECONDS: f64 = 2.0;

/// What keeps the comparison from being made.
type Problem = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let verdict = compare().unwrap_or_else(|problem| {
        eprintln!("compare: {problem}");
        Verdict::SetUpError
    });
    println!("{verdict}");
    ExitCode::from(verdict.exit_status())
}

fn compare() -> Result<Verdict, Problem> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [a, b, rest @ ..] = arguments.as_slice() else {
        return Err("usage: compare BINARY_A BINARY_B [ROUNDS [SECONDS]]".into());
    };
    let rounds = rest.first().map_or(Ok(ROUNDS), |text| text.parse())?;
    let seconds = rest.get(1).map_or(Ok(SECONDS), |text| text.parse())?;
    let builds = Builds {
        a: a.into(),
        b: b.into(),
        report: std::env::temp_dir().join(format!("courser-compare-{}.json", std::process::id())),
        seconds,
    };
    let first = builds.run(rounds)?;
    print!("{first}");
    if first.standings().contains(&Standing::NoFigures) {
        println!(
            "slices of {seconds} s held too few samples for a p50; ask for longer ones, on a machine \
             with nothing else to do"
        );
    }
    if !first.needs_confirmation() {
        return Ok(first.verdict(None));
    }
    println!("something looks slower; again, independently:");
    let second = builds.run(rounds)?;
    print!("{second}");
    Ok(first.verdict(Some(&second)))
}

struct Builds {
    a: PathBuf,
    b: PathBuf,
    /// Where each slice writes its report.
    report: PathBuf,
    seconds: f64,
}

impl Builds {
    fn run(&self, rounds: u32) -> Result<Comparisons, Problem> {
        let mut slices: Vec<Slices> = vec![Slices::default(); Metric::ALL.len()];
        for round in 0..rounds {
            eprintln!("round {} of {rounds}", round + 1);
            for verb in ["rtt", "throughput"] {
                // A B A' and back; A' is A again, and counts as a lane of its own.
                for lane in [0, 1, 2, 2, 1, 0] {
                    let binary = if lane == 1 { &self.b } else { &self.a };
                    let report = self.slice(binary, verb)?;
                    for (metric, slices) in Metric::ALL.iter().zip(&mut slices) {
                        if metric.verb() == verb {
                            let lane = match lane {
                                0 => &mut slices.a,
                                1 => &mut slices.b,
                                _ => &mut slices.a_again,
                            };
                            lane.push(metric.of(&report));
                        }
                    }
                }
            }
        }
        Ok(Comparisons {
            metrics: Metric::ALL
                .into_iter()
                .zip(slices.iter().map(Comparison::of))
                .collect(),
        })
    }

    fn slice(&self, binary: &Path, verb: &str) -> Result<serde_json::Value, Problem> {
        let status = Command::new(binary)
            .args(["bench", verb, "--payload", "64", "--seconds"])
            .arg(self.seconds.to_string())
            .arg("--json")
            .arg(&self.report)
            .stdout(Stdio::null())
            .status()
            .map_err(|error| format!("cannot start {}: {error}", binary.display()))?;
        if !status.success() {
            return Err(format!("{} bench {verb} ended with {status}", binary.display()).into());
        }
        let report = serde_json::from_str(&std::fs::read_to_string(&self.report)?)?;
        std::fs::remove_file(&self.report)?;
        // Newer builds write their histograms beside it.
        std::fs::remove_file(self.report.with_extension("hlog")).ok();
        Ok(report)
    }
}
