//! Ratios of two things measured in alternating slices, and the noise below
//! which such a ratio says nothing.
//!
//! The statistic is the logarithm of the ratio of two neighbouring slices, one
//! of each thing: what the machine does to both at once cancels out, and half
//! and double weigh the same. Over all pairs:
//!
//! * the estimate is Hodges and Lehmann's, the median of the means of all
//!   pairs of values: nearly as sharp as the mean where the noise is tame, and
//!   unmoved by a few wild slices;
//! * the interval is Wilcoxon's signed-rank interval at 95 %, exact, with no
//!   assumption on the noise but symmetry;
//! * the p-value flips signs: if the two things are the same, each pair's sign
//!   is a coin. All flips for few pairs, ten thousand drawn ones for many.
//!
//! The noise is what comes out when the same thing is compared with itself
//! (A/A) on the same cores in the same run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units;

/// Fewer pairs have no interval at 95 %.
pub const PAIRS_MIN: usize = 6;

/// Differences below this are never called a difference, however quiet the
/// machine: two builds of the same code differ by as much through placement.
pub const TOLERANCE_MIN: f64 = 0.02;

/// One-sided error of the interval.
const ALPHA_HALF: f64 = 0.025;

/// The ratio of two things measured in pairs of neighbouring slices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairedRatio {
    /// How many pairs it rests on.
    pub pairs: usize,
    /// The estimate: 1.10 says that the first takes ten percent more.
    pub ratio: f64,
    /// The lower end of the 95 % interval.
    pub low: f64,
    /// The upper end of the 95 % interval.
    pub high: f64,
    /// How often chance alone would give a difference this large.
    pub p_value: f64,
}

impl PairedRatio {
    /// Compares `numerators` with `denominators`, pair by pair. Pairs with a
    /// value that is missing, not finite or not positive are left out. `None`
    /// below [`PAIRS_MIN`] pairs.
    #[must_use]
    pub fn of(numerators: &[Option<f64>], denominators: &[Option<f64>]) -> Option<Self> {
        Self::of_log_ratios(&log_ratios(numerators, denominators))
    }

    fn of_log_ratios(logs: &[f64]) -> Option<Self> {
        if logs.len() < PAIRS_MIN {
            return None;
        }
        let walsh = walsh_averages(logs);
        let cut = signed_rank_cut(logs.len());
        Some(Self {
            pairs: logs.len(),
            ratio: median(&walsh).exp(),
            low: walsh[cut].exp(),
            high: walsh[walsh.len() - 1 - cut].exp(),
            p_value: sign_flip_p_value(logs),
        })
    }
}

impl fmt::Display for PairedRatio {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:.3} [{:.3}, {:.3}] over {} pairs",
            self.ratio, self.low, self.high, self.pairs
        )
    }
}

/// What comparing a thing with itself gives on this machine in this run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// The A/A comparison, whose true ratio is 1.
    pub same_with_same: PairedRatio,
    /// The spread of the ratios of single pairs: nine of ten lie within
    /// `1 / (1 + spread)` and `1 + spread`.
    pub slice_spread: f64,
    /// How far the A/A interval reaches from 1: a comparison over as many
    /// pairs that comes out nearer to 1 has shown nothing.
    pub bound: f64,
}

impl Noise {
    /// From the slices of two independent copies of one thing.
    #[must_use]
    pub fn of(one: &[Option<f64>], other: &[Option<f64>]) -> Option<Self> {
        let logs = log_ratios(one, other);
        let same_with_same = PairedRatio::of_log_ratios(&logs)?;
        let mut sizes: Vec<f64> = logs.iter().map(|log| log.abs()).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        let ninth_tenth = sizes[(sizes.len() * 9 / 10).min(sizes.len() - 1)];
        Some(Self {
            same_with_same,
            slice_spread: ninth_tenth.exp() - 1.0,
            bound: same_with_same.low.recip().max(same_with_same.high).max(1.0) - 1.0,
        })
    }

    /// What a difference has to pass to be one: the noise, and at least
    /// [`TOLERANCE_MIN`].
    #[must_use]
    pub fn tolerance(&self) -> f64 {
        self.bound.max(TOLERANCE_MIN)
    }

    /// Judges a comparison made in the same run.
    #[must_use]
    pub fn judge(&self, compared: &PairedRatio) -> Verdict {
        let upper = 1.0 + self.tolerance();
        let lower = upper.recip();
        if compared.low > upper || compared.high < lower {
            Verdict::Differs
        } else if compared.ratio >= lower && compared.ratio <= upper {
            Verdict::Agrees
        } else {
            Verdict::Inconclusive
        }
    }
}

/// What a comparison has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The estimate lies within the tolerance.
    Agrees,
    /// The whole interval lies beyond the tolerance.
    Differs,
    /// Neither: the run was too short or too noisy for this question.
    Inconclusive,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Agrees => "AGREES",
            Self::Differs => "DIFFERS",
            Self::Inconclusive => "INCONCLUSIVE",
        })
    }
}

/// A note on a broker that seems faster than its floor, which does less: such
/// a ratio is a fact about the measurement until somebody explains it. `None`
/// for a ratio of 1 or more.
#[must_use]
pub fn note_below_one(what: &str, ratio: f64, noise: Option<&Noise>) -> Option<String> {
    if ratio >= 1.0 {
        return None;
    }
    let tolerance = noise.map_or(TOLERANCE_MIN, Noise::tolerance);
    if ratio * (1.0 + tolerance) >= 1.0 {
        return Some(format!(
            "{what}: {ratio:.3} of the floor, below 1 by less than the noise ({}): read it as 1",
            units::percent(tolerance)
        ));
    }
    Some(format!(
        "{what}: {ratio:.3} of the floor, below 1 by more than the noise ({}), which needs an \
         explanation before it is used: a floor of a worse kind than the one measured, other \
         bytes or another reply size on the wire, other cores, or slices that did not alternate",
        units::percent(tolerance)
    ))
}

/// Logarithms of the ratios of all usable pairs.
#[must_use]
pub fn log_ratios(numerators: &[Option<f64>], denominators: &[Option<f64>]) -> Vec<f64> {
    numerators
        .iter()
        .zip(denominators)
        .filter_map(|pair| match pair {
            (Some(numerator), Some(denominator)) => Some((numerator / denominator).ln()),
            _ => None,
        })
        .filter(|log| log.is_finite())
        .collect()
}

/// The median of a slice that is already sorted; 0 if it is empty.
#[must_use]
pub fn median(sorted: &[f64]) -> f64 {
    match sorted {
        [] => 0.0,
        _ if sorted.len().is_multiple_of(2) => {
            f64::midpoint(sorted[sorted.len() / 2 - 1], sorted[sorted.len() / 2])
        }
        _ => sorted[sorted.len() / 2],
    }
}

/// The means of all pairs of values, each value also paired with itself,
/// ascending.
fn walsh_averages(values: &[f64]) -> Vec<f64> {
    let mut averages = Vec::with_capacity(values.len() * (values.len() + 1) / 2);
    for (index, left) in values.iter().enumerate() {
        averages.extend(
            values[index..]
                .iter()
                .map(|right| f64::midpoint(*left, *right)),
        );
    }
    averages.sort_unstable_by(f64::total_cmp);
    averages
}

/// How many Walsh averages to cut off at each end for the 95 % interval: the
/// largest `c` with P(W <= c) <= 2.5 %, where W is the signed-rank statistic.
///
/// Exact up to 60 pairs by counting the subsets of ranks with each sum; the
/// normal approximation beyond, where it is right to a fraction of a rank.
fn signed_rank_cut(pairs: usize) -> usize {
    const EXACT_PAIRS_MAX: usize = 60;
    let sum_max = pairs * (pairs + 1) / 2;
    if pairs > EXACT_PAIRS_MAX {
        let n = units::to_f64(pairs as u64);
        let mean = n * (n + 1.0) / 4.0;
        let deviation = (n * (n + 1.0) * (2.0 * n + 1.0) / 24.0).sqrt();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive for more than 60 pairs and far below 2^32"
        )]
        return (mean - 1.96 * deviation).floor() as usize;
    }
    let mut share = vec![0.0; sum_max + 1];
    share[0] = 1.0;
    for rank in 1..=pairs {
        // Each rank is in the sum or not, with the same chance.
        for sum in (0..=sum_max).rev() {
            let with_rank = if sum >= rank { share[sum - rank] } else { 0.0 };
            share[sum] = f64::midpoint(share[sum], with_rank);
        }
    }
    let mut below = 0.0;
    let mut cut = 0;
    for (sum, probability) in share.iter().enumerate() {
        below += probability;
        if below > ALPHA_HALF {
            break;
        }
        cut = sum;
    }
    cut
}

/// How often flipping the signs of the values at random gives a mean at least
/// as far from zero as theirs.
fn sign_flip_p_value(values: &[f64]) -> f64 {
    const EXACT_PAIRS_MAX: usize = 14;
    const DRAWS: u32 = 10_000;
    // Sums of the same numbers in another order differ in the last digit.
    let observed = values.iter().sum::<f64>().abs() * (1.0 - 1e-12);
    let flipped_sum = |signs: u64| -> f64 {
        values
            .iter()
            .enumerate()
            .map(|(index, value)| {
                if signs >> (index % 64) & 1 == 1 {
                    -value
                } else {
                    *value
                }
            })
            .sum()
    };
    if values.len() <= EXACT_PAIRS_MAX {
        let flips = 1_u64 << values.len();
        let extreme = (0..flips)
            .filter(|&signs| flipped_sum(signs).abs() >= observed)
            .count() as u64;
        return units::to_f64(extreme) / units::to_f64(flips);
    }
    // A fixed seed: the same run always gets the same verdict.
    let mut random = SplitMix { state: 0x5EED };
    let extreme = (0..DRAWS)
        .filter(|_| {
            let mut signs = 0;
            let sum: f64 = values
                .iter()
                .enumerate()
                .map(|(index, value)| {
                    if index % 64 == 0 {
                        signs = random.next();
                    }
                    if signs >> (index % 64) & 1 == 1 {
                        -value
                    } else {
                        *value
                    }
                })
                .sum();
            sum.abs() >= observed
        })
        .count() as u64;
    units::to_f64(extreme + 1) / f64::from(DRAWS + 1)
}

/// Steele, Lea and Flood's SplitMix64: enough for coins.
struct SplitMix {
    state: u64,
}

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn some(values: &[f64]) -> Vec<Option<f64>> {
        values.iter().copied().map(Some).collect()
    }

    /// `count` values spread evenly around 1 within `spread`, in a mixed order.
    fn jittered(count: usize, spread: f64, step: usize) -> Vec<Option<f64>> {
        (0..count)
            .map(|index| {
                let place = units::to_f64(((index * step) % count) as u64)
                    / units::to_f64(count as u64 - 1);
                Some(1.0 + spread * (place - 0.5))
            })
            .collect()
    }

    #[test]
    fn the_estimate_is_the_median_of_walsh_averages() {
        // Walsh averages of 1, 2, 6: 1, 1.5, 2, 3.5, 4, 6; their median 2.75.
        let walsh = walsh_averages(&[6.0, 1.0, 2.0]);
        assert_eq!(walsh, [1.0, 1.5, 2.0, 3.5, 4.0, 6.0]);
        assert!((median(&walsh) - 2.75).abs() < 1e-12);
    }

    #[test]
    fn the_signed_rank_cut_matches_the_published_table() {
        // Critical values of Wilcoxon's signed-rank test, two-sided 5 %.
        for (pairs, critical) in [
            (6, 0),
            (7, 2),
            (8, 3),
            (10, 8),
            (15, 25),
            (20, 52),
            (30, 137),
        ] {
            assert_eq!(signed_rank_cut(pairs), critical, "{pairs} pairs");
        }
    }

    #[test]
    fn the_approximation_continues_the_exact_cut() {
        let exact = signed_rank_cut(60);
        let approximate = signed_rank_cut(61);
        assert!(approximate > exact && approximate - exact < 40);
    }

    #[test]
    fn a_constant_ratio_is_found_exactly_and_is_certain() {
        let fast = some(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]);
        let slow: Vec<_> = fast
            .iter()
            .map(|value| value.map(|value| value * 1.25))
            .collect();
        let ratio = PairedRatio::of(&slow, &fast).unwrap();
        assert!((ratio.ratio - 1.25).abs() < 1e-9);
        assert!((ratio.low - 1.25).abs() < 1e-9 && (ratio.high - 1.25).abs() < 1e-9);
        assert!((ratio.p_value - 2.0 / 256.0).abs() < 1e-9);
    }

    #[test]
    fn one_wild_slice_does_not_move_the_estimate() {
        let mut slow = some(&[1.1; 12]);
        slow[3] = Some(40.0);
        let ratio = PairedRatio::of(&slow, &some(&[1.0; 12])).unwrap();
        assert!((ratio.ratio - 1.1).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn too_few_pairs_have_no_ratio_and_missing_slices_are_no_pairs() {
        assert!(PairedRatio::of(&some(&[1.0; 5]), &some(&[1.0; 5])).is_none());
        let mut gaps = some(&[1.0; 8]);
        gaps[0] = None;
        gaps[1] = Some(0.0);
        let ratio = PairedRatio::of(&gaps, &some(&[1.0; 8])).unwrap();
        assert_eq!(ratio.pairs, 6);
    }

    #[test]
    fn a_thing_compared_with_itself_agrees_and_a_slower_one_differs() {
        let one = jittered(24, 0.02, 5);
        let other = jittered(24, 0.02, 7);
        let noise = Noise::of(&one, &other).unwrap();
        assert!(noise.bound < 0.02, "{noise:?}");
        let again = PairedRatio::of(&other, &one).unwrap();
        assert_eq!(noise.judge(&again), Verdict::Agrees);
        assert!(again.p_value > 0.05);

        let slower: Vec<_> = other
            .iter()
            .map(|value| value.map(|value| value * 1.1))
            .collect();
        let compared = PairedRatio::of(&slower, &one).unwrap();
        assert_eq!(noise.judge(&compared), Verdict::Differs);
        assert!(compared.p_value < 0.01);
    }

    #[test]
    fn a_wide_interval_around_a_far_estimate_is_inconclusive() {
        let noise = Noise::of(&jittered(12, 0.01, 5), &jittered(12, 0.01, 7)).unwrap();
        let compared = PairedRatio {
            pairs: 12,
            ratio: 1.08,
            low: 0.97,
            high: 1.2,
            p_value: 0.3,
        };
        assert_eq!(noise.judge(&compared), Verdict::Inconclusive);
    }

    #[test]
    fn a_ratio_below_one_is_never_left_without_a_word() {
        assert_eq!(note_below_one("64 B", 1.2, None), None);
        assert!(
            note_below_one("64 B", 0.995, None)
                .unwrap()
                .contains("read it as 1")
        );
        assert!(
            note_below_one("64 B", 0.8, None)
                .unwrap()
                .contains("needs an explanation")
        );
    }
}
