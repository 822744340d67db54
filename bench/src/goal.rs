//! A metric held against its goal: the ratio of two things of one run, and whether
//! it stays on the right side of a bound.
//!
//! ```text
//!   at most 1.10      [--x--] |             met
//!                         [---|x---]        inconclusive
//!                             | [--x--]     missed
//! ```
//!
//! A goal is met or missed only if the whole interval of the ratio lies on one side
//! of the bound, and the estimate further from it than what comparing a thing with
//! itself gave in the same run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::compare::{Noise, PairedRatio, TOLERANCE_MIN};
use crate::table::{Align, Table};

/// One goal, and what a run has shown about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Its name in the list of goals.
    pub name: String,
    /// What is compared with what.
    pub metric: String,
    /// Bytes of body.
    pub payload_bytes: u32,
    /// What the ratio is to be.
    pub bound: Bound,
    /// The ratio, from pairs of neighbouring slices; none if it was not measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub compared: Option<PairedRatio>,
    /// Differences below this are none: from comparing a thing with itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tolerance: Option<f64>,
    /// What that says.
    pub outcome: Outcome,
    /// Why it was not measured, if it was not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skipped: Option<String>,
}

/// On which side of which ratio a goal lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Of times.
    AtMost(f64),
    /// Of rates.
    AtLeast(f64),
}

/// What a run says about a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The ratio is where it is to be.
    Met,
    /// It is not.
    Missed,
    /// The run was too short or too noisy to tell.
    Inconclusive,
    /// It was not measured.
    Skipped,
}

impl Goal {
    /// A goal that was measured. `noise` is of the same run.
    #[must_use]
    pub fn measured(
        name: &str,
        metric: String,
        payload_bytes: u32,
        bound: Bound,
        compared: Option<PairedRatio>,
        noise: Option<&Noise>,
    ) -> Self {
        let tolerance = noise.map_or(TOLERANCE_MIN, Noise::tolerance);
        Self {
            name: name.to_owned(),
            metric,
            payload_bytes,
            bound,
            compared,
            tolerance: Some(tolerance),
            outcome: compared.map_or(Outcome::Inconclusive, |compared| {
                bound.judge(&compared, tolerance)
            }),
            skipped: None,
        }
    }

    /// A goal that was not measured, and why.
    #[must_use]
    pub fn skipped(
        name: &str,
        metric: String,
        payload_bytes: u32,
        bound: Bound,
        why: String,
    ) -> Self {
        Self {
            name: name.to_owned(),
            metric,
            payload_bytes,
            bound,
            compared: None,
            tolerance: None,
            outcome: Outcome::Skipped,
            skipped: Some(why),
        }
    }
}

impl Bound {
    fn judge(self, compared: &PairedRatio, tolerance: f64) -> Outcome {
        let (bound, is_met, is_missed) = match self {
            Self::AtMost(bound) => (bound, compared.high <= bound, compared.low > bound),
            Self::AtLeast(bound) => (bound, compared.low >= bound, compared.high < bound),
        };
        let distance = (compared.ratio / bound).ln().abs();
        if distance <= tolerance.ln_1p() {
            return Outcome::Inconclusive;
        }
        match (is_met, is_missed) {
            (true, _) => Outcome::Met,
            (_, true) => Outcome::Missed,
            _ => Outcome::Inconclusive,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(formatter, "<= {bound:.2}"),
            Self::AtLeast(bound) => write!(formatter, ">= {bound:.2}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Met => "MET",
            Self::Missed => "MISSED",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Skipped => "SKIPPED",
        })
    }
}

pub(crate) fn table(goals: &[Goal]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("goal", Left),
        ("metric", Left),
        ("body", Right),
        ("bound", Left),
        ("", Left),
        ("ratio of pairs", Left),
    ]);
    for goal in goals {
        let compared = goal.compared.map(|compared| compared.to_string());
        table.row(vec![
            goal.name.clone(),
            goal.metric.clone(),
            crate::units::bytes(u64::from(goal.payload_bytes)),
            goal.bound.to_string(),
            goal.outcome.to_string(),
            compared
                .or_else(|| goal.skipped.clone())
                .unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(low: f64, ratio: f64, high: f64) -> PairedRatio {
        PairedRatio {
            pairs: 12,
            ratio,
            low,
            high,
            p_value: 0.5,
        }
    }

    #[test]
    fn a_goal_is_met_or_missed_by_the_whole_interval() {
        let time = |low, ratio, high| Bound::AtMost(1.1).judge(&compared(low, ratio, high), 0.02);
        assert_eq!(time(0.99, 1.01, 1.04), Outcome::Met);
        assert_eq!(time(0.99, 1.01, 1.14), Outcome::Inconclusive);
        assert_eq!(time(1.15, 1.20, 1.25), Outcome::Missed);
        let rate = |low, ratio, high| Bound::AtLeast(0.9).judge(&compared(low, ratio, high), 0.02);
        assert_eq!(rate(0.93, 0.95, 0.97), Outcome::Met);
        assert_eq!(rate(0.80, 0.95, 0.97), Outcome::Inconclusive);
        assert_eq!(rate(0.60, 0.70, 0.80), Outcome::Missed);
    }

    #[test]
    fn a_ratio_nearer_to_its_bound_than_the_noise_says_nothing() {
        for (low, ratio, high) in [(1.07, 1.08, 1.09), (1.11, 1.12, 1.13)] {
            let judged = Bound::AtMost(1.1).judge(&compared(low, ratio, high), 0.05);
            assert_eq!(judged, Outcome::Inconclusive, "{ratio}");
        }
    }

    #[test]
    fn too_few_pairs_are_inconclusive_and_a_reason_is_shown() {
        let metric = || "p50, 1,000 partitions over 1".to_owned();
        let bound = Bound::AtMost(1.1);
        let goal = Goal::measured("G15", metric(), 64, bound, None, None);
        assert_eq!(goal.outcome, Outcome::Inconclusive);
        let skipped = Goal::skipped("G16", metric(), 64, bound, "no second broker".to_owned());
        let text = table(&[goal, skipped]).to_string();
        assert!(
            text.contains("SKIPPED") && text.contains("no second broker"),
            "{text}"
        );
    }
}
