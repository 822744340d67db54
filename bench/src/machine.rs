//! The machine, as far as a report has to describe it for a reader to judge a
//! figure: what it is, and how much of it was taken away while we measured.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::pin::CpuSet;
use crate::units;

/// What does not change during a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's own name for itself.
    pub cpu_model: String,
    /// The CPUs that this process may use.
    pub cpus: CpuSet,
    /// True if the processor says that it is a virtual one.
    pub virtual_machine: bool,
    /// The kernel's release.
    pub kernel: String,
    /// Where the clock reads the time: a counter of the processor, or a call.
    pub clock_source: String,
    /// What the kernel does about flaws of the processor, in short.
    pub mitigations: String,
    /// The compiler that built this program.
    pub rustc: String,
    /// The commit of the directory it was started in, if that is a checkout.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub commit: Option<String>,
}

impl Machine {
    /// Looks around. What the machine does not say is `unknown`.
    #[must_use]
    pub fn describe() -> Self {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu_model: cpu_info
                .lines()
                .find_map(|line| line.strip_prefix("model name"))
                .and_then(|rest| rest.split_once(':'))
                .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cpus: CpuSet::of_this_process().unwrap_or_else(|_| CpuSet::parse("")),
            virtual_machine: cpu_info
                .lines()
                .find(|line| line.starts_with("flags"))
                .is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor")),
            kernel: first_line("/proc/sys/kernel/osrelease"),
            clock_source: first_line(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            ),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            rustc: env!("COURSER_BENCH_RUSTC").to_owned(),
            commit: commit(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.virtual_machine {
            "virtual machine"
        } else {
            "bare metal"
        };
        write!(
            formatter,
            "{} ({kind}), cpus {}, Linux {}, clock {}; {}; {}",
            self.cpu_model, self.cpus, self.kernel, self.clock_source, self.mitigations, self.rustc
        )?;
        if let Some(commit) = &self.commit {
            write!(formatter, "; commit {commit}")?;
        }
        Ok(())
    }
}

/// Time counters of every CPU at one moment, from `/proc/stat`.
#[derive(Debug, Clone, Default)]
pub struct CpuTimes {
    /// Ticks stolen by the host, and ticks in all, by CPU.
    ticks: BTreeMap<usize, (u64, u64)>,
}

impl CpuTimes {
    /// Reads the counters. Empty if the machine has none.
    #[must_use]
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// `cpuN user nice system idle iowait irq softirq steal guest guest_nice`;
    /// guest time is already contained in user time.
    fn parse(stat: &str) -> Self {
        const STEAL: usize = 7;
        let ticks = stat
            .lines()
            .filter_map(|line| {
                let mut words = line.strip_prefix("cpu")?.split_whitespace();
                let cpu: usize = words.next()?.parse().ok()?;
                let fields: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
                let steal = *fields.get(STEAL)?;
                Some((cpu, (steal, fields.iter().take(STEAL + 1).sum())))
            })
            .collect();
        Self { ticks }
    }

    /// What share of each of `cpus` was stolen between `earlier` and now.
    #[must_use]
    pub fn stolen_since(&self, earlier: &Self, cpus: &[usize]) -> Vec<StolenTime> {
        cpus.iter()
            .filter_map(|cpu| {
                let (steal, total) = self.ticks.get(cpu)?;
                let (steal_before, total_before) = earlier.ticks.get(cpu)?;
                let total = total.saturating_sub(*total_before);
                let steal = steal.saturating_sub(*steal_before);
                Some(StolenTime {
                    cpu: *cpu,
                    share: if total == 0 {
                        0.0
                    } else {
                        units::to_f64(steal) / units::to_f64(total)
                    },
                })
            })
            .collect()
    }
}

/// How much of a CPU the host gave to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StolenTime {
    /// The CPU.
    pub cpu: usize,
    /// 0 to 1.
    pub share: f64,
}

/// One line on the processor's flaws: how many are mitigated at a cost, and
/// which are left open.
fn mitigations(directory: &Path) -> String {
    let Ok(entries) = fs::read_dir(directory) else {
        return "mitigations unknown".to_owned();
    };
    let mut mitigated = Vec::new();
    let mut vulnerable = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let state = fs::read_to_string(entry.path()).unwrap_or_default();
        if state.starts_with("Mitigation") {
            mitigated.push(name);
        } else if state.starts_with("Vulnerable") {
            vulnerable.push(name);
        }
    }
    mitigated.sort_unstable();
    vulnerable.sort_unstable();
    let list = |names: &[String]| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(" ")
        }
    };
    format!(
        "mitigated: {}, vulnerable: {}",
        list(&mitigated),
        list(&vulnerable)
    )
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.lines().next().map(|line| line.trim().to_owned()))
        .filter(|line| !line.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!commit.is_empty()).then_some(commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_share_of_ticks_between_two_readings() {
        let before = CpuTimes::parse("cpu  9 9 9 9\ncpu0 100 0 100 800 0 0 0 0 0 0\n");
        let after = CpuTimes::parse("cpu0 150 0 120 820 0 0 0 10 0 0\nintr 5\n");
        let stolen = after.stolen_since(&before, &[0, 7]);
        assert_eq!(stolen.len(), 1, "a cpu without counters is left out");
        assert_eq!(stolen[0].cpu, 0);
        assert!((stolen[0].share - 0.1).abs() < 1e-9);
    }

    #[test]
    fn guest_time_is_not_counted_twice() {
        let times = CpuTimes::parse("cpu3 100 0 0 0 0 0 0 0 100 0\n");
        assert_eq!(times.ticks[&3], (0, 100));
    }

    #[test]
    fn the_machine_knows_its_kernel_and_its_cpus() {
        let machine = Machine::describe();
        assert_ne!(machine.kernel, "unknown");
        assert!(!machine.cpus.as_slice().is_empty());
    }
}
