//! Which cores there are, which this process may use, and where a thread runs.
//!
//! A thread that is measured is pinned, and after pinning it asks the kernel
//! where it is: a pin that was silently ignored would turn a core-to-core
//! figure into a scheduler's.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::sys;

/// A set of CPUs, ascending, written as the kernel writes it: `0-1,4`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct CpuSet {
    cpus: Vec<usize>,
}

impl CpuSet {
    /// The CPUs that this process may run on: its cpuset and its affinity
    /// together, which is what the kernel answers for its main thread.
    ///
    /// Asked once and kept, because from then on the main thread may be pinned
    /// here, and a pin is not a limit.
    ///
    /// # Errors
    /// Only if the kernel refuses to say.
    pub fn of_this_process() -> Result<Self, BenchError> {
        static ALLOWED: OnceLock<CpuSet> = OnceLock::new();
        if let Some(allowed) = ALLOWED.get() {
            return Ok(allowed.clone());
        }
        let cpus = sys::process_affinity().map_err(|source| BenchError::File {
            doing: "read the cpus of this process from",
            path: "/proc/self/status".into(),
            source,
        })?;
        Ok(ALLOWED.get_or_init(|| Self { cpus }).clone())
    }

    /// Reads the kernel's list format. What is not a number or a range is
    /// passed over.
    #[must_use]
    pub fn parse(list: &str) -> Self {
        let mut cpus: Vec<usize> = list
            .trim()
            .split(',')
            .filter_map(|part| match part.split_once('-') {
                Some((first, last)) => Some(first.parse().ok()?..=last.parse().ok()?),
                None => part.parse().ok().map(|cpu| cpu..=cpu),
            })
            .flatten()
            .collect();
        cpus.sort_unstable();
        cpus.dedup();
        Self { cpus }
    }

    /// True if `cpu` is one of them.
    #[must_use]
    pub fn contains(&self, cpu: usize) -> bool {
        self.cpus.binary_search(&cpu).is_ok()
    }

    /// The CPUs, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[usize] {
        &self.cpus
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cpus.is_empty() {
            return formatter.write_str("none");
        }
        for (index, run) in self
            .cpus
            .chunk_by(|left, right| left + 1 == *right)
            .enumerate()
        {
            if index > 0 {
                formatter.write_str(",")?;
            }
            match run {
                [only] => write!(formatter, "{only}")?,
                [first, .., last] => write!(formatter, "{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> Self {
        set.to_string()
    }
}

impl From<String> for CpuSet {
    fn from(list: String) -> Self {
        Self::parse(&list)
    }
}

/// The two cores of a measurement: whatever drives it spins on one, whatever
/// is measured runs on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cores {
    /// The load generator's CPU.
    pub client: usize,
    /// The broker's or the floor's CPU.
    pub broker: usize,
}

impl Cores {
    /// Two CPUs as near to each other as the machine has without sharing an
    /// execution unit: threads of one core would slow each other down, and
    /// another package would add its own distance. Among equals the highest
    /// numbers, because devices interrupt the lowest.
    ///
    /// # Errors
    /// [`BenchError::TooFewCpus`] if this process may use only one.
    pub fn choose() -> Result<Self, BenchError> {
        let allowed = CpuSet::of_this_process()?;
        let mut best: Option<(Distance, Self)> = None;
        for (index, &client) in allowed.as_slice().iter().enumerate() {
            for &broker in &allowed.as_slice()[index + 1..] {
                let pair = Self { client, broker };
                let distance = pair.distance();
                if best.is_none_or(|(nearest, _)| distance.rank() <= nearest.rank()) {
                    best = Some((distance, pair));
                }
            }
        }
        best.map(|(_, pair)| pair)
            .ok_or(BenchError::TooFewCpus { allowed })
    }

    /// Checks that both may be used and are not the same.
    ///
    /// # Errors
    /// Names the CPU that cannot be used.
    pub fn check(self) -> Result<Self, BenchError> {
        let allowed = CpuSet::of_this_process()?;
        for cpu in [self.client, self.broker] {
            if !allowed.contains(cpu) {
                return Err(BenchError::CpuNotAllowed { cpu, allowed });
            }
        }
        if self.client == self.broker {
            return Err(BenchError::SameCpu { cpu: self.client });
        }
        Ok(self)
    }

    /// What lies between the two, as the machine says.
    #[must_use]
    pub fn distance(self) -> Distance {
        Distance::between(self.client, self.broker)
    }
}

/// What two CPUs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// They are threads of one core.
    SameCore,
    /// Cores that share their last-level cache.
    SharedCache,
    /// Cores of one package with caches of their own.
    SamePackage,
    /// Cores of different packages.
    OtherPackage,
    /// The machine does not say.
    Unknown,
}

impl Distance {
    fn between(left: usize, right: usize) -> Self {
        let shared = |file: &str| -> Option<bool> {
            let path = format!("/sys/devices/system/cpu/cpu{left}/{file}");
            let list = std::fs::read_to_string(Path::new(&path)).ok()?;
            Some(CpuSet::parse(&list).contains(right))
        };
        // The last level is the highest index there is.
        let cache = (0..=4)
            .rev()
            .find_map(|level| shared(&format!("cache/index{level}/shared_cpu_list")));
        match (
            shared("topology/thread_siblings_list"),
            cache,
            shared("topology/core_siblings_list"),
        ) {
            (Some(true), _, _) => Self::SameCore,
            (_, Some(true), _) => Self::SharedCache,
            (_, _, Some(true)) => Self::SamePackage,
            (_, _, Some(false)) => Self::OtherPackage,
            _ => Self::Unknown,
        }
    }

    fn rank(self) -> u8 {
        match self {
            Self::SharedCache => 0,
            Self::SamePackage => 1,
            Self::Unknown => 2,
            Self::OtherPackage => 3,
            Self::SameCore => 4,
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::SameCore => "threads of one core",
            Self::SharedCache => "cores that share a cache",
            Self::SamePackage => "cores of one package",
            Self::OtherPackage => "cores of different packages",
            Self::Unknown => "cores at an unknown distance",
        })
    }
}

/// Pins the calling thread to `cpu` and verifies that it runs there.
///
/// # Errors
/// Says whether the CPU is not allowed, the kernel refused, or the pin had no
/// effect.
pub fn pin_current_thread(cpu: usize) -> Result<(), BenchError> {
    let allowed = CpuSet::of_this_process()?;
    if !allowed.contains(cpu) {
        return Err(BenchError::CpuNotAllowed { cpu, allowed });
    }
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Err(BenchError::PinRefused { cpu });
    }
    // The kernel migrates the calling thread before the call returns.
    let actual = sys::current_cpu().map_err(|_| BenchError::PinRefused { cpu })?;
    if actual != cpu {
        return Err(BenchError::PinIgnored {
            wanted: cpu,
            actual,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_cpu_set_reads_and_writes_the_kernels_list_format() {
        for list in ["0", "0-1", "0,2", "0-3,8,10-11"] {
            assert_eq!(CpuSet::parse(list).to_string(), list);
        }
        assert_eq!(CpuSet::parse("1,0\n").to_string(), "0-1");
        assert_eq!(CpuSet::parse("").to_string(), "none");
        assert!(CpuSet::parse("0-3").contains(2));
        assert!(!CpuSet::parse("0,2").contains(1));
    }

    #[test]
    fn a_cpu_outside_the_cpuset_is_refused_by_name() {
        let allowed = CpuSet::of_this_process().unwrap();
        let foreign = allowed.as_slice().last().unwrap() + 1;
        let refusal = pin_current_thread(foreign).unwrap_err().to_string();
        assert_eq!(
            refusal,
            format!("cpu {foreign} is not in this process's cpuset ({allowed})")
        );
    }

    #[test]
    fn a_pinned_thread_runs_where_it_was_put() {
        let allowed = CpuSet::of_this_process().unwrap();
        for &cpu in allowed.as_slice() {
            // A thread of its own, so that the test runner's stays free.
            std::thread::spawn(move || {
                pin_current_thread(cpu).unwrap();
                assert_eq!(sys::current_cpu().unwrap(), cpu);
            })
            .join()
            .unwrap();
        }
    }

    #[test]
    fn client_and_broker_may_not_share_a_cpu() {
        let cpu = CpuSet::of_this_process().unwrap().as_slice()[0];
        let refusal = Cores {
            client: cpu,
            broker: cpu,
        }
        .check()
        .unwrap_err();
        assert!(matches!(refusal, BenchError::SameCpu { cpu: named } if named == cpu));
    }
}
