//! Which processors the shards run on, and putting a thread there.
//!
//! Cast: a [`CpuList`] is a set of processors as people write it (`0-2,5`);
//! [`Topology`] is what this process may use; [`Cores`] is what the configuration
//! asks for; [`Placement`] is what one shard gets.
//!
//! The topology is read from `/sys` and the thread's own mask: the list of the
//! `core_affinity` crate leaves isolated processors out and renumbers the rest. The
//! crate is used to set a mask only, and what it did is verified.

use std::fmt;
use std::fs;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use crate::sys::{self, Errno};

/// A set of processors, ascending, written as `0-2,5`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuList(Vec<usize>);

/// What the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cores {
    /// As many shards as usable processors less one, at least one, pinned.
    #[default]
    Auto,
    /// One shard that is not pinned.
    Unpinned,
    /// One shard on each of these.
    List(CpuList),
}

/// Where one shard runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// On this processor only.
    Pinned(usize),
    /// Wherever the kernel puts it.
    Unpinned,
}

/// The processors as this process finds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// In the mask of the thread that asked.
    pub usable: CpuList,
    /// What a mask may be set to: the cpuset, or all that are online.
    pub permitted: CpuList,
    /// Where `permitted` was read.
    pub source: PathBuf,
    /// Kept free of other work by the kernel's command line.
    pub isolated: CpuList,
    /// Whether a hypervisor runs beneath, which makes waking a thread slower.
    pub virtual_machine: bool,
}

/// Why threads cannot be placed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    /// The text is no list of processors.
    #[error(
        "\"{text}\" is not a list of cpus\n  fix    cores = \"auto\", \"none\" or a list such as \"1\", \"1-3\" or \"0,2\""
    )]
    NotAList {
        /// What was given.
        text: String,
    },
    /// A processor is named twice.
    #[error("cpu {cpu} is named twice in \"{text}\"")]
    NamedTwice {
        /// Which one.
        cpu: usize,
        /// Where.
        text: String,
    },
    /// A processor that this process may not use, or that does not exist.
    #[error(
        "cpu {cpu} is not in this process's cpuset ({permitted})   seen {}",
        source_path.display()
    )]
    NotPermitted {
        /// Which one.
        cpu: usize,
        /// Those that it may use.
        permitted: CpuList,
        /// Where that is written.
        source_path: PathBuf,
    },
    /// Another number of processors than of shards.
    #[error(
        "cores=\"{cores}\" names {} cpus for {shards} shards\n  fix    leave out one of the two: each cpu gets one shard",
        cores.count()
    )]
    NotAsMany {
        /// Those that are named.
        cores: CpuList,
        /// What was asked for.
        shards: usize,
    },
    /// The mask of a thread cannot be read.
    #[error("the processors of this thread cannot be read: {errno}")]
    Unreadable {
        /// The kernel's answer.
        errno: Errno,
    },
    /// The mask was set and the thread runs elsewhere all the same.
    #[error("the thread was put on cpu {wanted} and runs on {found:?}")]
    NotPinned {
        /// Where it should run.
        wanted: usize,
        /// Where it says that it may run.
        found: CpuList,
    },
}

impl AffinityError {
    /// The code under which the documentation explains it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAList { .. } | Self::NamedTwice { .. } => "C1202",
            Self::NotPermitted { .. } => "C1203",
            Self::Unreadable { .. } | Self::NotPinned { .. } => "C1205",
            Self::NotAsMany { .. } => "C1207",
        }
    }
}

impl CpuList {
    /// The processors, ascending.
    pub fn cpus(&self) -> &[usize] {
        &self.0
    }

    /// Whether one is among them.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.binary_search(&cpu).is_ok()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A list from any order, each once.
    fn of(mut cpus: Vec<usize>) -> Self {
        cpus.sort_unstable();
        cpus.dedup();
        Self(cpus)
    }

    fn read(path: &str) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let text = text.trim();
        if text.is_empty() {
            return Some(Self::default());
        }
        text.parse().ok()
    }
}

impl FromStr for CpuList {
    type Err = AffinityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// More than any kernel knows, and a bound on what a typing error allocates.
        const CPU_MAX: usize = 8192;
        let wrong = || AffinityError::NotAList {
            text: text.to_owned(),
        };
        let number = |part: &str| {
            part.trim()
                .parse::<usize>()
                .ok()
                .filter(|&cpu| cpu < CPU_MAX)
                .ok_or_else(wrong)
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        if let Some(pair) = cpus.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(AffinityError::NamedTwice {
                cpu: pair[0],
                text: text.to_owned(),
            });
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for run in self.0.chunk_by(|before, after| before + 1 == *after) {
            let (first, last) = (run[0], run[run.len() - 1]);
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for Cores {
    type Err = AffinityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::Unpinned),
            list => list.parse().map(Self::List),
        }
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Unpinned => f.write_str("none"),
            Self::List(list) => list.fmt(f),
        }
    }
}

impl Cores {
    /// One placement for each shard, at least one: as many as are asked for, or as
    /// there are processors for.
    pub fn place(
        &self,
        topology: &Topology,
        shards: Option<NonZeroU16>,
    ) -> Result<Vec<Placement>, AffinityError> {
        let pinned = |cpus: &[usize]| cpus.iter().copied().map(Placement::Pinned).collect();
        let wanted = shards.map(|shards| usize::from(shards.get()));
        match self {
            Self::Unpinned => Ok(vec![Placement::Unpinned; wanted.unwrap_or(1)]),
            // The lowest is left to everybody else, if it can be: interrupts and the
            // kernel's own threads gather there.
            Self::Auto => {
                let cpus = topology.usable.cpus();
                let free = cpus.len().saturating_sub(1);
                Ok(match wanted.unwrap_or(free.max(1)) {
                    wanted if wanted <= cpus.len() => pinned(&cpus[cpus.len() - wanted..]),
                    // Two on one processor would take turns there while another rests.
                    wanted => vec![Placement::Unpinned; wanted],
                })
            }
            Self::List(list) if wanted.is_some_and(|wanted| wanted != list.count()) => {
                Err(AffinityError::NotAsMany {
                    cores: list.clone(),
                    shards: wanted.unwrap_or(1),
                })
            }
            Self::List(list) => {
                let stranger = list.cpus().iter().find(|&&cpu| !topology.permits(cpu));
                match stranger {
                    Some(&cpu) => Err(AffinityError::NotPermitted {
                        cpu,
                        permitted: topology.permitted.clone(),
                        source_path: topology.source.clone(),
                    }),
                    None => Ok(pinned(list.cpus())),
                }
            }
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned(cpu) => write!(f, "cpu{cpu}"),
            Self::Unpinned => f.write_str("any cpu"),
        }
    }
}

impl Placement {
    /// Puts the calling thread there, and makes sure that it is.
    pub fn take(self) -> Result<(), AffinityError> {
        let Self::Pinned(cpu) = self else {
            return Ok(());
        };
        let set = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
        let found = usable()?;
        if set && found.cpus() == [cpu] && sys::current_cpu() == Some(cpu) {
            Ok(())
        } else {
            Err(AffinityError::NotPinned { wanted: cpu, found })
        }
    }
}

impl Topology {
    /// Reads what the calling thread may use.
    pub fn read() -> Result<Self, AffinityError> {
        let usable = usable()?;
        let (permitted, source) = permitted().unwrap_or_else(|| {
            (
                usable.clone(),
                PathBuf::from("/proc/thread-self/status (Cpus_allowed_list)"),
            )
        });
        Ok(Self {
            usable,
            permitted,
            source,
            isolated: CpuList::read("/sys/devices/system/cpu/isolated").unwrap_or_default(),
            virtual_machine: fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
                text.lines()
                    .find(|line| line.starts_with("flags"))
                    .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"))
            }),
        })
    }

    /// Whether a thread of this process may be put on that processor.
    pub fn permits(&self, cpu: usize) -> bool {
        self.permitted.contains(cpu) || self.usable.contains(cpu)
    }
}

/// Takes the calling thread, which a pinned one has started, off that one's processor: what
/// it is for takes long, and the other one waits for nobody. It goes where the process may
/// run; where there is no other processor, or it cannot be told, it stays.
pub(crate) fn step_aside() {
    let (Ok(own), Ok(mut others)) = (sys::allowed_cpus(), sys::allowed_cpus_of_process()) else {
        return;
    };
    let &[pinned] = &own[..] else {
        return;
    };
    others.retain(|&cpu| cpu != pinned);
    if !others.is_empty() {
        // Refused, it shares a processor, which costs time and nothing else.
        let _refused = sys::allow_cpus(&others);
    }
}

fn usable() -> Result<CpuList, AffinityError> {
    sys::allowed_cpus()
        .map(CpuList::of)
        .map_err(|errno| AffinityError::Unreadable { errno })
}

/// The cpuset of this process's control group, in either version of them; without
/// one, every processor that is online.
fn permitted() -> Option<(CpuList, PathBuf)> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group_of = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let matches = fields.next()?.split(',').any(|name| name == controller);
            let path = fields.next()?;
            matches.then(|| path.trim_end_matches('/').to_owned())
        })
    };
    let mut candidates = Vec::new();
    if let Some(path) = group_of("") {
        candidates.push(format!("/sys/fs/cgroup{path}/cpuset.cpus.effective"));
    }
    candidates.push(String::from("/sys/fs/cgroup/cpuset.cpus.effective"));
    if let Some(path) = group_of("cpuset") {
        candidates.push(format!("/sys/fs/cgroup/cpuset{path}/cpuset.effective_cpus"));
    }
    candidates.push(String::from("/sys/fs/cgroup/cpuset/cpuset.effective_cpus"));
    candidates.push(String::from("/sys/devices/system/cpu/online"));
    candidates.into_iter().find_map(|path| {
        CpuList::read(&path)
            .filter(|list| list.count() > 0)
            .map(|list| (list, PathBuf::from(path)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    fn topology(usable: &str, permitted: &str) -> Topology {
        Topology {
            usable: list(usable),
            permitted: list(permitted),
            source: PathBuf::from("/sys/fs/cgroup/cpuset.cpus.effective"),
            isolated: CpuList::default(),
            virtual_machine: false,
        }
    }

    #[test]
    fn a_list_is_read_and_written_as_people_write_it() {
        assert_eq!(list("1").cpus(), [1]);
        assert_eq!(list("1-3").cpus(), [1, 2, 3]);
        assert_eq!(list("0,2").cpus(), [0, 2]);
        assert_eq!(list("4, 0-2").to_string(), "0-2,4");
        assert_eq!(CpuList::default().to_string(), "");
    }

    #[test]
    fn what_is_no_list_is_refused_with_what_would_be() {
        for text in ["", "x", "3-1", "1-", "-1", "1,,2", "99999", "0-99999999999"] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert!(error.to_string().contains("\"1-3\""), "{text}: {error}");
        }
        assert_eq!(
            "0-2,1".parse::<CpuList>(),
            Err(AffinityError::NamedTwice {
                cpu: 1,
                text: String::from("0-2,1")
            })
        );
    }

    #[test]
    fn auto_leaves_one_processor_to_others_unless_it_is_the_only_one() {
        let place = |usable| Cores::Auto.place(&topology(usable, "0-7"), None).unwrap();
        assert_eq!(place("0-1"), [Placement::Pinned(1)]);
        assert_eq!(place("2-4"), [Placement::Pinned(3), Placement::Pinned(4)]);
        assert_eq!(place("5"), [Placement::Pinned(5)]);
    }

    #[test]
    fn a_processor_outside_the_cpuset_is_refused_by_name() {
        let cores: Cores = "1,5".parse().unwrap();
        let error = cores.place(&topology("0-1", "0-1"), None).unwrap_err();
        assert_eq!(error.code(), "C1203");
        assert_eq!(
            error.to_string(),
            "cpu 5 is not in this process's cpuset (0-1)   \
             seen /sys/fs/cgroup/cpuset.cpus.effective"
        );
    }

    #[test]
    fn an_isolated_processor_can_be_named_though_no_mask_has_it() {
        let cores: Cores = "3".parse().unwrap();
        assert_eq!(
            cores.place(&topology("0-1", "0-3"), None).unwrap(),
            [Placement::Pinned(3)]
        );
    }

    #[test]
    fn the_words_of_the_configuration_are_understood() {
        assert_eq!("auto".parse(), Ok(Cores::Auto));
        assert_eq!("none".parse(), Ok(Cores::Unpinned));
        assert_eq!("1-2".parse::<Cores>().unwrap().to_string(), "1-2");
        assert_eq!(
            Cores::Unpinned
                .place(&topology("0-1", "0-1"), None)
                .unwrap(),
            [Placement::Unpinned]
        );
    }

    #[test]
    fn a_thread_that_takes_its_place_runs_there() {
        let topology = Topology::read().unwrap();
        assert!(
            topology
                .usable
                .cpus()
                .iter()
                .all(|&cpu| topology.permits(cpu))
        );
        let cpu = *topology.usable.cpus().last().unwrap();
        std::thread::spawn(move || {
            Placement::Pinned(cpu).take().unwrap();
            assert_eq!(usable().unwrap().cpus(), [cpu]);
            assert_eq!(sys::current_cpu(), Some(cpu));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_steps_aside_leaves_the_processor_to_the_one_that_started_it() {
        let whole = CpuList::of(sys::allowed_cpus_of_process().unwrap());
        let [.., cpu] = *whole.cpus() else {
            unreachable!("the process runs somewhere")
        };
        std::thread::spawn(move || {
            Placement::Pinned(cpu).take().unwrap();
            let aside = std::thread::spawn(|| {
                step_aside();
                usable().unwrap()
            });
            let aside = aside.join().unwrap();
            let others = whole.cpus().iter().filter(|&&other| other != cpu);
            let others: Vec<usize> = others.copied().collect();
            if others.is_empty() {
                assert_eq!(aside.cpus(), [cpu]);
            } else {
                assert_eq!(aside.cpus(), others);
            }
            assert_eq!(usable().unwrap().cpus(), [cpu], "the other one stays");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_may_run_anywhere_stays_so() {
        std::thread::spawn(|| {
            let before = usable().unwrap();
            if before.cpus().len() > 1 {
                step_aside();
                assert_eq!(usable().unwrap(), before);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_cannot_take_its_place_says_where_it_is() {
        let absent = 1023;
        assert!(!Topology::read().unwrap().permits(absent));
        let error = Placement::Pinned(absent).take().unwrap_err();
        assert!(matches!(error, AffinityError::NotPinned { wanted, .. } if wanted == absent));
    }

    #[test]
    fn as_many_shards_as_are_asked_for_are_placed() {
        let topology = topology("0-3", "0-3");
        let place = |cores: &str, shards| {
            let cores: Cores = cores.parse().unwrap();
            cores.place(&topology, NonZeroU16::new(shards))
        };
        assert_eq!(
            place("auto", 2).unwrap(),
            [Placement::Pinned(2), Placement::Pinned(3)]
        );
        assert_eq!(place("auto", 4).unwrap().len(), 4);
        assert_eq!(place("auto", 5).unwrap(), [Placement::Unpinned; 5]);
        assert_eq!(place("none", 3).unwrap(), [Placement::Unpinned; 3]);
        assert_eq!(place("1,3", 2).unwrap().len(), 2);
        let error = place("1,3", 3).unwrap_err();
        assert_eq!(error.code(), "C1207");
        assert!(error.to_string().contains("names 2 cpus for 3 shards"));
    }
}
