//! Figures as people read them: three significant digits and a unit.

/// A duration: `"412 ns"`, `"9.41 µs"`, `"1.23 ms"`, `"2.50 s"`.
#[must_use]
pub fn nanoseconds(value: f64) -> String {
    scaled(value, &[(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")])
}

/// A duration that may not be known: a dash where it is not.
#[must_use]
pub fn nanoseconds_or_dash(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| nanoseconds(to_f64(value)))
}

/// Events per second: `"13.8 M/s"`, `"941 k/s"`.
#[must_use]
pub fn per_second(value: f64) -> String {
    scaled(
        value,
        &[(1e9, "G/s"), (1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")],
    )
}

/// Bytes per second, in powers of ten: `"2.41 GB/s"`.
#[must_use]
pub fn bytes_per_second(value: f64) -> String {
    scaled(
        value,
        &[(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")],
    )
}

/// A size, in powers of two where it divides: `"64 B"`, `"1 KiB"`, `"4 MiB"`.
#[must_use]
pub fn bytes(value: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    if value >= MIB && value.is_multiple_of(MIB) {
        format!("{} MiB", value / MIB)
    } else if value >= KIB && value.is_multiple_of(KIB) {
        format!("{} KiB", value / KIB)
    } else {
        format!("{value} B")
    }
}

/// A count with its thousands apart: `"612,345"`.
#[must_use]
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share of one as percent: `"1.3 %"`.
#[must_use]
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value != 0.0 && value.abs() < 0.1 {
        format!("{value:.3} %")
    } else {
        format!("{value:.1} %")
    }
}

/// A count as a float. Exact to 2^53, which no counter here reaches.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts here stay below 2^53")]
pub fn to_f64(value: u64) -> f64 {
    value as f64
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let (scale, unit) = units
        .iter()
        .find(|(scale, _)| value.abs() >= *scale)
        .or(units.last())
        .copied()
        .unwrap_or((1.0, ""));
    let value = value / scale;
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_the_largest_fitting_unit() {
        assert_eq!(nanoseconds(412.0), "412 ns");
        assert_eq!(nanoseconds(9_412.0), "9.41 µs");
        assert_eq!(nanoseconds(13_400.0), "13.4 µs");
        assert_eq!(nanoseconds(1_230_000.0), "1.23 ms");
        assert_eq!(nanoseconds(2.5e9), "2.50 s");
        assert_eq!(nanoseconds(0.0), "0.00 ns");
        assert_eq!(nanoseconds_or_dash(None), "-");
    }

    #[test]
    fn counts_sizes_and_rates_read_as_people_write_them() {
        assert_eq!(count(7), "7");
        assert_eq!(count(612_345), "612,345");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(bytes(64), "64 B");
        assert_eq!(bytes(1024), "1 KiB");
        assert_eq!(bytes(1025), "1025 B");
        assert_eq!(per_second(13.8e6), "13.8 M/s");
        assert_eq!(bytes_per_second(2.41e9), "2.41 GB/s");
        assert_eq!(percent(0.013), "1.3 %");
        assert_eq!(percent(0.0004), "0.040 %");
    }
}
