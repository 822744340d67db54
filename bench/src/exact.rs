//! Counts that are the same on every run, and the baseline that they are held to.
//!
//! ```text
//!   exact measure  ->  scenarios, figures  --+
//!   callgrind      ->  one dump a scenario --+-> figures -> judge -> verdict
//!                                  perf-reports/baseline.json ---^
//! ```
//!
//! A time on a shared machine is right to a factor; a count is right to the last
//! digit, so a gate on counts can stop a change of two percent. What it cannot see
//! is what a cache miss or a system call costs: for that there are the ratios.
//!
//! Counts of instructions hold for one compiler, one C library and one set of
//! processor features. Where these are not the baseline's, a difference beyond the
//! tolerance is inconclusive, and counts of bytes and allocations still decide.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::gate::Verdict;
use crate::table::{Align, Table};
use crate::units::to_f64;

/// How far instructions may rise. Layout and inlining move them by less when
/// something else is changed.
pub const INSTRUCTIONS_TOLERANCE: f64 = 0.02;

/// What a checksum of this processor's own needs, of which callgrind's processor
/// must offer one: without it the software path would be counted.
const CHECKSUM_FEATURES: [&str; 2] = ["sse4.2", "crc"];

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Instructions executed, of the counted machine, per message.
    #[serde(rename = "instructions/message")]
    InstructionsPerMessage,
    /// Calls of the allocator by the counted machine, over all messages of a
    /// scenario: one in thousands would be lost in a share.
    #[serde(rename = "allocations")]
    Allocations,
    /// Bytes on the wire, headers and control frames included, per message.
    #[serde(rename = "bytes/message")]
    BytesPerMessage,
    /// Turns of the shard per batch.
    #[serde(rename = "turns/batch")]
    TurnsPerBatch,
    /// Writes to the device, each with its flush, per batch.
    #[serde(rename = "flushes/batch")]
    FlushesPerBatch,
    /// A size in memory.
    #[serde(rename = "bytes")]
    Bytes,
}

impl Unit {
    /// The share by which a figure may exceed its baseline.
    #[must_use]
    pub fn tolerance(self) -> f64 {
        match self {
            Self::InstructionsPerMessage => INSTRUCTIONS_TOLERANCE,
            _ => 0.0,
        }
    }

    /// As it stands in files and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InstructionsPerMessage => "instructions/message",
            Self::Allocations => "allocations",
            Self::BytesPerMessage => "bytes/message",
            Self::TurnsPerBatch => "turns/batch",
            Self::FlushesPerBatch => "flushes/batch",
            Self::Bytes => "bytes",
        }
    }
}

/// One count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was counted.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: Unit,
}

/// A stretch of work that was counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Which.
    pub name: String,
    /// Messages that passed while it was counted.
    pub messages: u64,
    /// How often the counted machine asked the allocator for memory.
    pub allocations: u64,
}

/// What a run of the scenarios knows by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Processor features that were offered and matter.
    pub cpu_features: Vec<String>,
    /// In the order of callgrind's dumps.
    pub scenarios: Vec<Scenario>,
    /// Counts that need no callgrind.
    pub figures: Vec<Figure>,
}

impl Measured {
    /// Reads what a run printed.
    ///
    /// # Errors
    /// If the file is not there or is something else.
    pub fn read(file: &Path) -> Result<Self, ExactError> {
        Ok(serde_json::from_str(&read(file)?)?)
    }

    /// All figures, with the instructions of the dumps `PREFIX.1`, `PREFIX.2`, ...
    ///
    /// # Errors
    /// If a dump is missing or has no total, if nothing was counted in a scenario,
    /// or if the processor that was counted on has no checksum instruction.
    pub fn figures(&self, dumps: &Path) -> Result<Vec<Figure>, ExactError> {
        let has_checksum = self
            .cpu_features
            .iter()
            .any(|feature| CHECKSUM_FEATURES.contains(&feature.as_str()));
        if !has_checksum {
            return Err(ExactError::NoChecksum {
                cpu_features: self.cpu_features.clone(),
            });
        }
        let mut figures = Vec::new();
        for (index, scenario) in self.scenarios.iter().enumerate() {
            let mut file = dumps.as_os_str().to_owned();
            file.push(format!(".{}", index + 1));
            let file = PathBuf::from(file);
            let instructions = dump_total(&read(&file)?)
                .filter(|total| *total > 0)
                .ok_or(ExactError::Dump { file })?;
            figures.push(Figure {
                name: scenario.name.clone(),
                value: to_f64(instructions) / to_f64(scenario.messages),
                unit: Unit::InstructionsPerMessage,
            });
            figures.push(Figure {
                name: format!("{}.allocations", scenario.name),
                value: to_f64(scenario.allocations),
                unit: Unit::Allocations,
            });
        }
        figures.extend(cost_of_order(&figures));
        // They are there to be compared with, and are no part of the broker.
        figures.retain(|figure| {
            !figure.name.starts_with("order.unordered") && !figure.name.starts_with("order.queue")
        });
        figures.extend(self.figures.iter().cloned());
        Ok(figures)
    }
}

/// The window less what keeps no order, where both were counted.
fn cost_of_order(figures: &[Figure]) -> Vec<Figure> {
    let value = |name: &str| {
        figures
            .iter()
            .find(|figure| figure.name == name)
            .map(|figure| figure.value)
    };
    let mut costs = Vec::new();
    for arrival in ["", ".reversed"] {
        for (without, name) in [("unordered", "cost"), ("queue", "cost_above_queue")] {
            let window = value(&format!("order.window{arrival}.batch_16"));
            let least = value(&format!("order.{without}{arrival}.batch_16"));
            if let (Some(window), Some(least)) = (window, least) {
                costs.push(Figure {
                    name: format!("order.{name}{arrival}.batch_16"),
                    value: window - least,
                    unit: Unit::InstructionsPerMessage,
                });
            }
        }
    }
    costs
}

/// The number behind `totals:` of a callgrind dump, whose only event is
/// instructions.
fn dump_total(dump: &str) -> Option<u64> {
    dump.lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals:"))
        .and_then(|total| total.trim().parse().ok())
}

/// What instruction counts depend on beside the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// The compiler.
    pub rustc: String,
    /// What counted.
    pub valgrind: String,
    /// Whose copies and comparisons were counted along.
    pub libc: String,
    /// Processor features that were offered and matter.
    pub cpu_features: Vec<String>,
}

/// A figure as it is to stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// What is counted.
    pub name: String,
    /// How much it was.
    pub value: f64,
    /// Of what.
    pub unit: Unit,
    /// The share by which it may be exceeded.
    pub tolerance: f64,
}

/// `perf-reports/baseline.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Where its instructions were counted.
    pub environment: Environment,
    /// What is held.
    pub figures: Vec<Held>,
}

impl Baseline {
    /// A baseline of these figures, each with its unit's tolerance.
    #[must_use]
    pub fn of(environment: Environment, figures: &[Figure]) -> Self {
        Self {
            environment,
            figures: figures
                .iter()
                .map(|figure| Held {
                    name: figure.name.clone(),
                    // What is stored is what is printed, so that a file reads well.
                    value: (figure.value * 1e3).round() / 1e3,
                    unit: figure.unit,
                    tolerance: figure.unit.tolerance(),
                })
                .collect(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it is not there or is something else.
    pub fn read(file: &Path) -> Result<Self, ExactError> {
        Ok(serde_json::from_str(&read(file)?)?)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, file: &Path) -> Result<(), ExactError> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(file, text).map_err(|source| ExactError::File {
            doing: "write",
            file: file.to_owned(),
            source,
        })
    }
}

/// How one figure stands to its baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Within the tolerance.
    Holds,
    /// Lower by more than the tolerance: the baseline could be lowered.
    Better,
    /// Higher by more than the tolerance.
    Worse,
    /// Higher by more than the tolerance, counted in another environment.
    WorseElsewhere,
    /// Not in the baseline.
    New,
    /// In the baseline and not counted.
    Gone,
}

impl Standing {
    fn verdict(self) -> Verdict {
        match self {
            Self::Holds | Self::Better => Verdict::Pass,
            Self::Worse => Verdict::Regression,
            Self::WorseElsewhere => Verdict::Inconclusive,
            Self::New | Self::Gone => Verdict::SetUpError,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Holds => "",
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::WorseElsewhere => "worse, in another environment",
            Self::New => "not in the baseline",
            Self::Gone => "no longer counted",
        }
    }
}

/// A figure beside its baseline.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// What was counted.
    pub name: String,
    /// Of what.
    pub unit: Unit,
    /// What it was.
    pub baseline: Option<f64>,
    /// What it is.
    pub counted: Option<f64>,
    /// How it stands.
    pub standing: Standing,
}

/// All figures beside their baseline.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// In the order in which they were counted.
    pub figures: Vec<Judged>,
    /// Where the environments differ: the baseline's, ours.
    pub elsewhere: Option<(Environment, Environment)>,
}

/// Holds figures to a baseline.
#[must_use]
pub fn judge(baseline: &Baseline, environment: &Environment, figures: &[Figure]) -> Judgement {
    let same_environment = baseline.environment == *environment;
    let mut judged: Vec<Judged> = figures
        .iter()
        .map(|figure| {
            let held = baseline
                .figures
                .iter()
                .find(|held| held.name == figure.name);
            Judged {
                name: figure.name.clone(),
                unit: figure.unit,
                baseline: held.map(|held| held.value),
                counted: Some(figure.value),
                standing: held.map_or(Standing::New, |held| {
                    stands(held, figure.value, same_environment)
                }),
            }
        })
        .collect();
    for held in &baseline.figures {
        if !figures.iter().any(|figure| figure.name == held.name) {
            judged.push(Judged {
                name: held.name.clone(),
                unit: held.unit,
                baseline: Some(held.value),
                counted: None,
                standing: Standing::Gone,
            });
        }
    }
    Judgement {
        figures: judged,
        elsewhere: (!same_environment).then(|| (baseline.environment.clone(), environment.clone())),
    }
}

fn stands(held: &Held, counted: f64, same_environment: bool) -> Standing {
    // Half of the last digit that a baseline keeps.
    const ROUNDING: f64 = 0.000_5;
    let slack = held.value.abs() * held.tolerance + ROUNDING;
    if counted > held.value + slack {
        if same_environment || held.unit != Unit::InstructionsPerMessage {
            Standing::Worse
        } else {
            Standing::WorseElsewhere
        }
    } else if counted < held.value - slack {
        Standing::Better
    } else {
        Standing::Holds
    }
}

impl Judgement {
    /// The worst that any figure says.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.figures
            .iter()
            .map(|judged| judged.standing.verdict())
            .max()
            .unwrap_or(Verdict::SetUpError)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            ("figure", Align::Left),
            ("baseline", Align::Right),
            ("counted", Align::Right),
            ("change", Align::Right),
            ("unit", Align::Left),
            ("", Align::Left),
        ]);
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        for judged in &self.figures {
            let change = match (judged.baseline, judged.counted) {
                (Some(baseline), Some(counted)) if baseline != 0.0 => {
                    format!("{:+.2} %", (counted / baseline - 1.0) * 100.0)
                }
                _ => String::new(),
            };
            table.row(vec![
                judged.name.clone(),
                number(judged.baseline),
                number(judged.counted),
                change,
                judged.unit.name().to_owned(),
                judged.standing.name().to_owned(),
            ]);
        }
        write!(formatter, "{table}")?;
        if let Some((theirs, ours)) = &self.elsewhere {
            writeln!(formatter, "the baseline was counted with {theirs}")?;
            writeln!(formatter, "and these figures with        {ours}")?;
        }
        let count = |standing| {
            self.figures
                .iter()
                .filter(|judged| judged.standing == standing)
                .count()
        };
        let better = count(Standing::Better);
        if better > 0 {
            writeln!(
                formatter,
                "{better} figures are better than their baseline by more than the tolerance: \
                 `scripts/exact --update` keeps it"
            )?;
        }
        writeln!(formatter, "{}", self.verdict())
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}, {}, {}, {}",
            self.rustc,
            self.valgrind,
            self.libc,
            self.cpu_features.join(" ")
        )
    }
}

/// Why counts could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum ExactError {
    /// It was called wrongly.
    #[error("usage: {0}")]
    Usage(&'static str),

    /// A file could not be read or written.
    #[error("cannot {doing} {}", file.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },

    /// A file is not what it should be.
    #[error("a file holds other JSON than expected")]
    Json(#[from] serde_json::Error),

    /// Callgrind counted nothing, or wrote something else.
    #[error(
        "{} says of no instruction that it was counted; the names of the counted functions \
         and the patterns in scripts/exact have to agree",
        file.display()
    )]
    Dump {
        /// The dump.
        file: PathBuf,
    },

    /// The checksum would have been counted in software.
    #[error("no checksum instruction where instructions were counted, only {cpu_features:?}")]
    NoChecksum {
        /// What there is.
        cpu_features: Vec<String>,
    },
}

fn read(file: &Path) -> Result<String, ExactError> {
    fs::read_to_string(file).map_err(|source| ExactError::File {
        doing: "read",
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(rustc: &str) -> Environment {
        Environment {
            rustc: rustc.to_owned(),
            valgrind: "valgrind-3".to_owned(),
            libc: "glibc 2".to_owned(),
            cpu_features: vec!["sse4.2".to_owned()],
        }
    }

    fn figure(name: &str, value: f64, unit: Unit) -> Figure {
        Figure {
            name: name.to_owned(),
            value,
            unit,
        }
    }

    fn instructions(value: f64) -> Vec<Figure> {
        vec![figure("broker", value, Unit::InstructionsPerMessage)]
    }

    fn verdict(held: &[Figure], counted: &[Figure], rustc: &str) -> Verdict {
        let baseline = Baseline::of(environment("1.95"), held);
        judge(&baseline, &environment(rustc), counted).verdict()
    }

    #[test]
    fn instructions_may_rise_by_the_tolerance_and_no_further() {
        let held = instructions(300.0);
        assert_eq!(verdict(&held, &instructions(305.9), "1.95"), Verdict::Pass);
        assert_eq!(
            verdict(&held, &instructions(306.1), "1.95"),
            Verdict::Regression
        );
        assert_eq!(verdict(&held, &instructions(200.0), "1.95"), Verdict::Pass);
    }

    #[test]
    fn bytes_and_allocations_have_no_tolerance_wherever_they_are_counted() {
        for unit in [Unit::Allocations, Unit::BytesPerMessage, Unit::Bytes] {
            let held = [figure("x", 64.0, unit)];
            let more = [figure("x", 64.001, unit)];
            assert_eq!(verdict(&held, &held, "1.96"), Verdict::Pass);
            assert_eq!(verdict(&held, &more, "1.96"), Verdict::Regression);
        }
    }

    #[test]
    fn another_compilers_instructions_decide_nothing() {
        let held = instructions(300.0);
        assert_eq!(
            verdict(&held, &instructions(320.0), "1.96"),
            Verdict::Inconclusive
        );
        assert_eq!(verdict(&held, &instructions(301.0), "1.96"), Verdict::Pass);
    }

    #[test]
    fn a_figure_that_only_one_side_knows_is_no_pass() {
        assert_eq!(
            verdict(&[], &instructions(1.0), "1.95"),
            Verdict::SetUpError
        );
        assert_eq!(
            verdict(&instructions(1.0), &[], "1.95"),
            Verdict::SetUpError
        );
    }

    #[test]
    fn a_regression_is_not_hidden_by_what_could_not_be_judged_elsewhere() {
        let held = [
            figure("a", 300.0, Unit::InstructionsPerMessage),
            figure("b", 64.0, Unit::Bytes),
        ];
        let counted = [
            figure("a", 400.0, Unit::InstructionsPerMessage),
            figure("b", 72.0, Unit::Bytes),
        ];
        assert_eq!(verdict(&held, &counted, "1.96"), Verdict::Regression);
    }

    #[test]
    fn the_total_of_a_dump_is_found_and_a_file_without_one_has_none() {
        let dump = "version: 1\nevents: Ir\n\nfn=(1) counted_turn\n16 400\n\ntotals: 1234567\n";
        assert_eq!(dump_total(dump), Some(1_234_567));
        assert_eq!(dump_total("version: 1\n"), None);
    }

    #[test]
    fn order_costs_what_the_window_takes_more_than_what_keeps_none() {
        let figures = [
            figure("order.window.batch_16", 40.0, Unit::InstructionsPerMessage),
            figure(
                "order.unordered.batch_16",
                28.5,
                Unit::InstructionsPerMessage,
            ),
            figure("order.queue.batch_16", 20.0, Unit::InstructionsPerMessage),
        ];
        let cost = cost_of_order(&figures);
        let named: Vec<_> = cost
            .iter()
            .map(|cost| (cost.name.as_str(), cost.value))
            .collect();
        assert_eq!(
            named,
            [
                ("order.cost.batch_16", 11.5),
                ("order.cost_above_queue.batch_16", 20.0)
            ]
        );
    }
}
