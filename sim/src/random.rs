//! The one source of chance: every draw of a run comes from its seed.
//!
//! xoshiro256** by Blackman and Vigna, seeded by their SplitMix64. Each part of
//! the world draws from a stream of its own, so that a change in one place moves
//! as little as possible elsewhere.

/// A stream of draws.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut at = seed;
        let mut word = || {
            at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (at ^ (at >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        Self {
            state: [word(), word(), word(), word()],
        }
    }

    /// A stream of its own for a part of the world.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.word())
    }

    /// 64 bits.
    pub(crate) fn word(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`, which is at least 1. Slightly biased, which no
    /// run minds.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound.max(1)
    }

    /// A number from `least` to `most`, both included.
    pub(crate) fn range(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least).saturating_add(1))
    }

    /// A number from `least` to `most`, as often small as large: the logarithm is
    /// drawn evenly.
    pub(crate) fn magnitude(&mut self, least: u64, most: u64) -> u64 {
        let (low, high) = (least.max(1).ilog2(), most.max(1).ilog2());
        let bits = self.range(low.into(), high.into());
        self.range(1 << bits, (2 << bits) - 1).clamp(least, most)
    }

    /// An index below `length`.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        size(self.below(length as u64))
    }

    /// A count from `least` to `most`, both included.
    pub(crate) fn count(&mut self, least: usize, most: usize) -> usize {
        size(self.range(least as u64, most as u64))
    }

    /// True in `part` of `whole` cases.
    pub(crate) fn chance(&mut self, part: u64, whole: u64) -> bool {
        self.below(whole) < part
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.index(among.len())]
    }

    /// The wait until the next of events that come every `mean` on average.
    pub(crate) fn wait(&mut self, mean: u64) -> u64 {
        // A triangle instead of an exponential: bounded, and without floating point.
        (self.below(2 * mean) + self.below(2 * mean)) / 2
    }

    /// Puts `items` in any order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.index(index + 1));
        }
    }

    /// Fills `bytes`.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.word().to_le_bytes()[..part.len()]);
        }
    }
}

/// What lies in memory can be counted in it.
pub(crate) fn size(value: u64) -> usize {
    usize::try_from(value).expect("the simulation is not larger than memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_what_the_published_algorithm_draws() {
        // SplitMix64 from 0, as its reference implementation prints it.
        let random = Random::new(0);
        assert_eq!(random.state[0], 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.state[1], 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn draws_stay_within_their_bounds_and_reach_them() {
        let mut random = Random::new(7);
        let draws: Vec<u64> = (0..1000).map(|_| random.range(3, 6)).collect();
        assert!((3..=6).all(|value| draws.contains(&value)));
        assert!(draws.iter().all(|value| (3..=6).contains(value)));
        let draws: Vec<u64> = (0..1000).map(|_| random.magnitude(5, 1000)).collect();
        assert!(draws.iter().all(|value| (5..=1000).contains(value)));
        assert!(draws.iter().any(|value| *value < 16) && draws.iter().any(|value| *value > 512));
    }
}
