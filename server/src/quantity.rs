//! Durations and sizes as people write them: `5s`, `250ms`, `64KiB`, `1MiB`.
//!
//! A duration always carries its unit, because a bare number has been read as
//! seconds by one half of the world and as milliseconds by the other. A size
//! without a unit is bytes, and only binary units exist: `KB` is refused rather
//! than guessed.

use std::time::Duration;

/// Why a text is no quantity; the message says how to write one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    /// Not a duration at all, or one without its unit.
    #[error("a duration is a number and a unit, such as 250ms, 5s, 2m or 1h")]
    NotADuration,
    /// Not a size at all, or one in a unit that is not known.
    #[error("a size is a number of bytes or of KiB, MiB or GiB, such as 512, 64KiB or 1MiB")]
    NotASize,
    /// Not a whole number.
    #[error("a count is a whole number, such as 1000")]
    NotACount,
    /// More than can be counted.
    #[error("that is more than can be counted")]
    TooLarge,
}

/// The units of durations, in nanoseconds.
const DURATION_UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

/// The units of sizes, in bytes.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// Reads a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, QuantityError> {
    scaled(text, DURATION_UNITS, QuantityError::NotADuration).map(Duration::from_nanos)
}

/// Reads a size in bytes.
pub(crate) fn size(text: &str) -> Result<u64, QuantityError> {
    scaled(text, SIZE_UNITS, QuantityError::NotASize)
}

/// Reads a number of things.
pub(crate) fn count(text: &str) -> Result<u64, QuantityError> {
    scaled(text, &[("", 1)], QuantityError::NotACount)
}

/// Reads a size that a 32-bit field carries.
pub(crate) fn size_u32(text: &str) -> Result<u32, QuantityError> {
    u32::try_from(size(text)?).map_err(|_| QuantityError::TooLarge)
}

/// A whole number and its unit, blank or not between them.
fn scaled(text: &str, units: &[(&str, u64)], wrong: QuantityError) -> Result<u64, QuantityError> {
    let text = text.trim();
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let scale = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .map(|(_, scale)| *scale);
    match (number.is_empty(), scale) {
        (false, Some(scale)) => number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(scale))
            .ok_or(QuantityError::TooLarge),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_whole_number_with_its_unit() {
        for (text, expected) in [
            ("5s", Duration::from_secs(5)),
            ("250ms", Duration::from_millis(250)),
            ("10us", Duration::from_micros(10)),
            ("2m", Duration::from_secs(120)),
            ("1 h", Duration::from_secs(3_600)),
            ("0s", Duration::ZERO),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "5 seconds", "5s5"] {
            assert_eq!(duration(text), Err(QuantityError::NotADuration), "{text}");
        }
        assert_eq!(duration("99999999999h"), Err(QuantityError::TooLarge));
    }

    #[test]
    fn a_count_is_a_whole_number() {
        assert_eq!(count("1000"), Ok(1000));
        for text in ["", "x", "-1", "1.5", "5KiB"] {
            assert_eq!(count(text), Err(QuantityError::NotACount), "{text}");
        }
        let above = "18446744073709551616";
        assert_eq!(count(above), Err(QuantityError::TooLarge));
    }

    #[test]
    fn a_size_is_bytes_or_a_binary_multiple() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("64KiB", 64 << 10),
            ("1MiB", 1 << 20),
            ("1 gib", 1 << 30),
            ("7B", 7),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in ["", "KiB", "64KB", "64K", "1.5MiB", "-1"] {
            assert_eq!(size(text), Err(QuantityError::NotASize), "{text}");
        }
        assert_eq!(size("99999999999GiB"), Err(QuantityError::TooLarge));
        assert_eq!(size_u32("4GiB"), Err(QuantityError::TooLarge));
        assert_eq!(size_u32("4MiB"), Ok(4 << 20));
    }
}
