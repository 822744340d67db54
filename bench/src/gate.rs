//! What a gate says, for whoever or whatever asks.

use std::fmt;

/// What a gate says, and the exit status it says it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is worse than it may be.
    Pass,
    /// Neither pass nor fail.
    Inconclusive,
    /// Something is worse than it may be.
    Regression,
    /// It could not be judged.
    SetUpError,
}

impl Verdict {
    /// 0 pass, 1 regression, 2 inconclusive, 3 set-up error.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Regression => 1,
            Self::Inconclusive => 2,
            Self::SetUpError => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pass => "PASS",
            Self::Regression => "REGRESSION",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::SetUpError => "SET-UP ERROR",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_every_gate() {
        let statuses = [
            Verdict::Pass,
            Verdict::Regression,
            Verdict::Inconclusive,
            Verdict::SetUpError,
        ]
        .map(Verdict::exit_status);
        assert_eq!(statuses, [0, 1, 2, 3]);
    }

    #[test]
    fn of_several_verdicts_the_worst_counts() {
        let verdicts = [Verdict::Pass, Verdict::Regression, Verdict::Inconclusive];
        assert_eq!(verdicts.into_iter().max(), Some(Verdict::Regression));
    }
}
