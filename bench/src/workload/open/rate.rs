//! How much load is asked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units;

/// A load, as a person asks for it: `10%`, `250k`, `1.5M`, `100000`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// Messages per second, above zero.
    PerSecond(f64),
    /// Percent of the saturation measured in the same run, above zero.
    Percent(f64),
}

impl Rate {
    /// Messages per second, where so many are the saturation.
    #[must_use]
    pub fn per_second(self, saturation: f64) -> f64 {
        match self {
            Self::PerSecond(rate) => rate,
            Self::Percent(percent) => saturation * percent / 100.0,
        }
    }

    /// The percentage, if it was asked for as one.
    #[must_use]
    pub fn percent(self) -> Option<f64> {
        match self {
            Self::PerSecond(_) => None,
            Self::Percent(percent) => Some(percent),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => formatter.write_str(&units::per_second(*rate)),
            Self::Percent(percent) => write!(formatter, "{percent} %"),
        }
    }
}

/// Not a load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a rate is messages per second, such as 100000, 250k or 1.5M, or a share of saturation, such as 50%"
)]
pub struct UnknownRate;

impl FromStr for Rate {
    type Err = UnknownRate;

    fn from_str(text: &str) -> Result<Self, UnknownRate> {
        let above_zero = |text: &str| {
            text.trim_end()
                .parse::<f64>()
                .ok()
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or(UnknownRate)
        };
        if let Some(percent) = text.strip_suffix('%') {
            return above_zero(percent).map(Self::Percent);
        }
        let (number, scale) = match text.char_indices().next_back() {
            Some((at, 'k')) => (&text[..at], 1e3),
            Some((at, 'M')) => (&text[..at], 1e6),
            _ => (text, 1.0),
        };
        above_zero(number).map(|rate| Self::PerSecond(rate * scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_messages_per_second_or_a_share_of_saturation() {
        assert_eq!("100000".parse(), Ok(Rate::PerSecond(100_000.0)));
        assert_eq!("250k".parse(), Ok(Rate::PerSecond(250_000.0)));
        assert_eq!("1.5M".parse(), Ok(Rate::PerSecond(1_500_000.0)));
        assert_eq!("50%".parse(), Ok(Rate::Percent(50.0)));
        assert_eq!("12.5 %".parse(), Ok(Rate::Percent(12.5)));
        for wrong in ["", "%", "0", "-5", "0%", "fast", "1G", "inf", "é"] {
            assert_eq!(wrong.parse::<Rate>(), Err(UnknownRate), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_of_the_saturation_and_a_rate_is_itself() {
        assert!((Rate::Percent(50.0).per_second(800.0) - 400.0).abs() < 1e-9);
        assert!((Rate::PerSecond(50.0).per_second(800.0) - 50.0).abs() < 1e-9);
    }
}
