//! What a shard does when a turn found nothing to do.
//!
//! Waking a sleeping thread costs 30 to 60 us and the waker another 7 to 20; a turn
//! that spins costs a fraction of one. So a shard that expects work soon spins, and
//! one that does not sleeps in its ring, where the kernel and the doorbell can end
//! the sleep. [`Idle`] decides between the two by work counts and time alone; the
//! sleep itself, with its fence and its last look, is the worker's.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use courser_core::time::Monotonic;

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdleStrategy {
    /// Never sleep: the lowest latency, and a processor of its own.
    Spin,
    /// Spin for as long as a wake-up would cost, then sleep.
    #[default]
    Adaptive,
    /// Sleep at once.
    Park,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Take the next turn at once.
    Spin,
    /// Sleep until there is something to do.
    Sleep,
}

/// A strategy was replaced because it would make things worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "idle=\"spin\" with {busy} busy threads on {cpus} cpus: p99 would get worse; using \"adaptive\""
)]
pub struct SpinRefused {
    /// Threads that would spin.
    pub busy: usize,
    /// Processors that they may use.
    pub cpus: usize,
}

impl SpinRefused {
    /// The code under which the documentation explains it.
    pub const CODE: &str = "C1204";
}

/// One shard's idleness.
#[derive(Debug)]
pub struct Idle {
    strategy: IdleStrategy,
    budget: Duration,
    /// When the last work was done, as far as idle turns have asked.
    since: Option<Monotonic>,
}

impl Idle {
    /// Spins for `budget` (adaptive only) after the last work.
    #[must_use]
    pub fn new(strategy: IdleStrategy, budget: Duration) -> Self {
        Self {
            strategy,
            budget,
            since: None,
        }
    }

    /// Asked once after each turn: whether it worked, and the time as last read.
    #[inline]
    pub fn rest(&mut self, worked: bool, now: Monotonic) -> Rest {
        if worked {
            self.since = None;
            return Rest::Spin;
        }
        match self.strategy {
            IdleStrategy::Spin => Rest::Spin,
            IdleStrategy::Park => Rest::Sleep,
            IdleStrategy::Adaptive => {
                let since = *self.since.get_or_insert(now);
                if now.since(since) < self.budget {
                    Rest::Spin
                } else {
                    Rest::Sleep
                }
            }
        }
    }

    /// The strategy in force.
    pub fn strategy(&self) -> IdleStrategy {
        self.strategy
    }
}

impl IdleStrategy {
    /// How long it pays to spin: about what a wake-up costs, which is more where a
    /// hypervisor has to be left and entered for it.
    #[must_use]
    pub fn spin_budget(virtual_machine: bool) -> Duration {
        Duration::from_micros(if virtual_machine { 50 } else { 20 })
    }

    /// Spinning threads need a processor each and leave one to everybody else; where
    /// they do not, adaptive is better for everybody, them included.
    pub fn fitting(self, busy: usize, cpus: usize) -> Result<Self, SpinRefused> {
        if self == Self::Spin && busy >= cpus {
            Err(SpinRefused { busy, cpus })
        } else {
            Ok(self)
        }
    }
}

impl FromStr for IdleStrategy {
    type Err = UnknownIdle;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "spin" => Ok(Self::Spin),
            "adaptive" => Ok(Self::Adaptive),
            "park" => Ok(Self::Park),
            _ => Err(UnknownIdle(text.to_owned())),
        }
    }
}

/// A word that names no strategy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("idle = \"{0}\" is none of \"spin\", \"adaptive\" and \"park\"")]
pub struct UnknownIdle(pub String);

impl fmt::Display for IdleStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Park => "park",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ring::simulated::Choices;

    const BUDGET: Duration = Duration::from_micros(50);

    fn at(us: u64) -> Monotonic {
        Monotonic(us * 1_000)
    }

    #[test]
    fn adaptive_spins_for_its_budget_and_then_sleeps() {
        let mut idle = Idle::new(IdleStrategy::Adaptive, BUDGET);
        assert_eq!(idle.rest(true, at(0)), Rest::Spin);
        assert_eq!(idle.rest(false, at(10)), Rest::Spin);
        assert_eq!(idle.rest(false, at(59)), Rest::Spin);
        assert_eq!(idle.rest(false, at(60)), Rest::Sleep);
        assert_eq!(idle.rest(false, at(90)), Rest::Sleep);
    }

    #[test]
    fn work_renews_the_budget() {
        let mut idle = Idle::new(IdleStrategy::Adaptive, BUDGET);
        assert_eq!(idle.rest(false, at(0)), Rest::Spin);
        assert_eq!(idle.rest(true, at(49)), Rest::Spin);
        assert_eq!(idle.rest(false, at(60)), Rest::Spin);
        assert_eq!(idle.rest(false, at(109)), Rest::Spin);
        assert_eq!(idle.rest(false, at(110)), Rest::Sleep);
    }

    #[test]
    fn spin_never_sleeps_and_park_always_does() {
        let mut spin = Idle::new(IdleStrategy::Spin, BUDGET);
        assert_eq!(spin.rest(false, at(u64::MAX / 2_000)), Rest::Spin);
        let mut park = Idle::new(IdleStrategy::Park, BUDGET);
        assert_eq!(park.rest(true, at(0)), Rest::Spin);
        assert_eq!(park.rest(false, at(0)), Rest::Sleep);
    }

    #[test]
    fn parking_is_adaptive_without_a_budget() {
        let mut park = Idle::new(IdleStrategy::Park, BUDGET);
        let mut adaptive = Idle::new(IdleStrategy::Adaptive, Duration::ZERO);
        for step in 0..1_000 {
            let worked = step % 3 == 0 || step % 7 == 0;
            let now = at(step * 5);
            assert_eq!(park.rest(worked, now), adaptive.rest(worked, now));
        }
    }

    /// The model: adaptive sleeps when the first turn without work since the last one
    /// with work is at least a budget ago.
    #[test]
    fn adaptive_sleeps_by_the_time_since_work_and_nothing_else() {
        for seed in 0..50 {
            let mut choices = Choices::new(seed);
            let mut idle = Idle::new(IdleStrategy::Adaptive, BUDGET);
            let (mut now, mut idle_since) = (0, None);
            for _ in 0..500 {
                now += choices.below(40) as u64;
                let worked = choices.once_in(6);
                idle_since = (!worked).then(|| idle_since.unwrap_or(now));
                let sleeps = idle_since.is_some_and(|since| at(now).since(at(since)) >= BUDGET);
                let expected = if sleeps { Rest::Sleep } else { Rest::Spin };
                assert_eq!(idle.rest(worked, at(now)), expected, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_budget_is_longer_where_a_hypervisor_wakes() {
        assert!(IdleStrategy::spin_budget(true) > IdleStrategy::spin_budget(false));
    }

    #[test]
    fn as_many_spinning_threads_as_processors_are_refused() {
        let refused = IdleStrategy::Spin.fitting(2, 2).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "idle=\"spin\" with 2 busy threads on 2 cpus: p99 would get worse; using \"adaptive\""
        );
        assert_eq!(IdleStrategy::Spin.fitting(1, 2), Ok(IdleStrategy::Spin));
        assert_eq!(
            IdleStrategy::Adaptive.fitting(2, 2),
            Ok(IdleStrategy::Adaptive)
        );
    }

    #[test]
    fn a_strategy_is_read_as_it_is_written() {
        for strategy in [
            IdleStrategy::Spin,
            IdleStrategy::Adaptive,
            IdleStrategy::Park,
        ] {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        assert!("busy".parse::<IdleStrategy>().is_err());
    }
}
