//! What lies beneath a directory, as far as a report has to describe it for a reader to
//! judge what a flush there is worth.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use courser_transport::disk::{DiskFile, Way};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;

/// File systems whose files are gone with the machine's power, whatever was flushed.
const IN_MEMORY: [&str; 3] = ["tmpfs", "ramfs", "rootfs"];

/// The same of devices, by the beginning of their names.
const MEMORY_DEVICES: [&str; 2] = ["zram", "ram"];

/// A directory's file system and device. What the machine does not say is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// The directory.
    pub directory: PathBuf,
    /// The kind of file system, or `unknown`.
    pub file_system: String,
    /// The device beneath it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device: Option<String>,
    /// Whether the device says that it turns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotational: Option<bool>,
    /// In which order the kernel gives it what is to be written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scheduler: Option<String>,
    /// `write back` if the device holds writes in a cache that a flush has to empty.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub write_cache: Option<String>,
    /// How a broker's writes become durable there.
    pub way: String,
    /// False if nothing in it outlives the machine's power.
    pub is_durable: bool,
}

impl Storage {
    /// Looks at a directory, and tries with a file how it is written to.
    ///
    /// # Errors
    /// If no file can be made there.
    pub fn of(directory: &Path) -> Result<(Self, Way), BenchError> {
        let directory = fs::canonicalize(directory).map_err(BenchError::file("find", directory))?;
        let way = way(&directory)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = Mount::of(&directory, &mounts).unwrap_or_default();
        let block = block_device(&mount);
        let queue = block.as_deref().and_then(queue_of);
        let word = |name: &str| {
            let text = fs::read_to_string(queue.as_ref()?.join(name)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let device = block
            .as_deref()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned());
        let is_in_memory = IN_MEMORY.contains(&mount.kind.as_str())
            || device
                .as_deref()
                .is_some_and(|device| MEMORY_DEVICES.iter().any(|name| device.starts_with(name)));
        let storage = Self {
            directory,
            file_system: if mount.kind.is_empty() {
                "unknown".to_owned()
            } else {
                mount.kind
            },
            device,
            rotational: word("rotational").map(|digit| digit == "1"),
            scheduler: word("scheduler").map(|line| chosen(&line)),
            write_cache: word("write_cache"),
            way: way.to_string(),
            is_durable: !is_in_memory,
        };
        Ok((storage, way))
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {}",
            self.directory.display(),
            self.file_system
        )?;
        if let Some(device) = &self.device {
            write!(formatter, " on {device}")?;
        }
        match self.rotational {
            Some(true) => formatter.write_str(" (turns)")?,
            Some(false) => formatter.write_str(" (does not turn)")?,
            None => {}
        }
        if let Some(scheduler) = &self.scheduler {
            write!(formatter, ", scheduler {scheduler}")?;
        }
        if let Some(cache) = &self.write_cache {
            write!(formatter, ", its cache {cache}")?;
        }
        write!(formatter, "; {}", self.way)?;
        if !self.is_durable {
            formatter.write_str("; NOT DURABLE: it ends with the machine's power")?;
        }
        Ok(())
    }
}

/// How a file there is written to; there is one for no longer than that takes.
fn way(directory: &Path) -> Result<Way, BenchError> {
    let path = directory.join(format!("courser-probe-{}", std::process::id()));
    File::create_new(&path).map_err(BenchError::file("create", &path))?;
    let way = DiskFile::open(&path).map(|file| file.way());
    fs::remove_file(&path).map_err(BenchError::file("remove", &path))?;
    way.map_err(BenchError::file("open", &path))
}

/// A line of `mountinfo`:
/// `27 1 254:0 / /mnt rw,relatime shared:1 - ext4 /dev/vda rw`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mount {
    /// Major and minor number of the device, as `254:0`.
    number: String,
    kind: String,
    source: String,
}

impl Mount {
    /// The file system that a path lies in: of all that are mounted above it the nearest,
    /// and of several at one place the last.
    fn of(path: &Path, mounts: &str) -> Option<Self> {
        let mut nearest: Option<(usize, Self)> = None;
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let (mut left, mut right) = (left.split(' ').skip(2), right.split(' '));
            let (Some(number), Some(point), Some(kind), Some(source)) =
                (left.next(), left.nth(1), right.next(), right.next())
            else {
                continue;
            };
            let point = PathBuf::from(point.replace("\\040", " "));
            let depth = point.components().count();
            let is_nearer = nearest.as_ref().is_none_or(|(known, _)| *known <= depth);
            if path.starts_with(&point) && is_nearer {
                let mount = Self {
                    number: number.to_owned(),
                    kind: kind.to_owned(),
                    source: source.to_owned(),
                };
                nearest = Some((depth, mount));
            }
        }
        nearest.map(|(_, mount)| mount)
    }
}

/// Where the kernel describes the device, by its number or, where a file system has one
/// of its own, by its name.
fn block_device(mount: &Mount) -> Option<PathBuf> {
    let by_number = fs::canonicalize(Path::new("/sys/dev/block").join(&mount.number)).ok();
    by_number.or_else(|| {
        let node = fs::canonicalize(Some(&mount.source).filter(|it| it.starts_with("/dev/"))?);
        fs::canonicalize(Path::new("/sys/class/block").join(node.ok()?.file_name()?)).ok()
    })
}

/// A partition shares the queue of its device.
fn queue_of(device: &Path) -> Option<PathBuf> {
    [device, device.parent()?]
        .map(|place| place.join("queue"))
        .into_iter()
        .find(|queue| queue.is_dir())
}

/// Of `none [mq-deadline] kyber` the one in brackets.
fn chosen(line: &str) -> String {
    let bracketed = line
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    bracketed.map_or(line, |(chosen, _)| chosen).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 0:30 / /data rw shared:3 - tmpfs tmpfs rw
29 27 8:17 / /data rw - xfs /dev/sdb1 rw
30 27 8:33 / /two\\040words rw - btrfs /dev/sdc1 rw
";

    #[test]
    fn a_path_lies_in_the_nearest_file_system_and_of_two_in_the_last() {
        let kind = |path: &str| Mount::of(Path::new(path), MOUNTS).unwrap().kind;
        assert_eq!(kind("/home/one"), "ext4");
        assert_eq!(kind("/data/one"), "xfs");
        assert_eq!(kind("/database"), "ext4");
        assert_eq!(kind("/two words/one"), "btrfs");
        let mount = Mount::of(Path::new("/data"), MOUNTS).unwrap();
        assert_eq!((&*mount.number, &*mount.source), ("8:17", "/dev/sdb1"));
    }

    #[test]
    fn the_scheduler_is_the_one_in_brackets() {
        assert_eq!(chosen("none [mq-deadline] kyber bfq"), "mq-deadline");
        assert_eq!(chosen("none"), "none");
    }

    #[test]
    fn memory_is_not_called_durable() {
        let directory = Path::new("/dev/shm");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        if Mount::of(directory, &mounts).is_none_or(|mount| mount.kind != "tmpfs") {
            eprintln!("SKIPPED: /dev/shm is no tmpfs here");
            return;
        }
        let (storage, way) = Storage::of(directory).unwrap();
        assert!(!storage.is_durable);
        assert_eq!(way, Way::Cached);
        let text = storage.to_string();
        assert!(
            text.contains("tmpfs") && text.contains("NOT DURABLE"),
            "{text}"
        );
    }

    #[test]
    fn a_look_leaves_nothing_behind() {
        let directory = std::env::temp_dir().join(format!("courser-look-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (storage, _) = Storage::of(&directory).unwrap();
        let left = fs::read_dir(&directory).unwrap().count();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(left, 0);
        assert_ne!(storage.file_system, "unknown");
    }
}
