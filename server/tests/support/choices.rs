//! Choices that a seed repeats.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::time::Duration;

/// Steele, Lea and Flood's SplitMix64.
pub struct Choices(pub u64);

impl Choices {
    /// With the seed that this variable of the environment has, or with another one at
    /// each time, which is printed.
    pub fn of(variable: &str) -> Self {
        let given = std::env::var(variable).ok();
        let seed = given.map_or_else(
            || {
                let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                u64::from(since.subsec_nanos()) ^ since.as_secs() << 30
            },
            |seed| seed.parse().unwrap(),
        );
        println!("{variable}={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// Each doubling is as likely as the next one.
    pub fn pause(&mut self, (least, most): (u64, u64)) -> Duration {
        let doublings = (most / least).ilog2();
        let low = least << self.below(u64::from(doublings) + 1);
        Duration::from_millis((low + self.below(low)).min(most))
    }
}
