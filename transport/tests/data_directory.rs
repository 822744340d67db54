//! A data directory and two processes.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use courser_core::limits;
use courser_transport::affinity::Cores;
use courser_transport::disk::{DataDirectory, DirectoryError};
use courser_transport::{Broker, BrokerConfig, Transport};

const DIRECTORY: &str = "COURSER_TAKEN_DIRECTORY";

/// A process that has the directory.
struct Owner(Child);

impl Owner {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "takes_it", "--ignored", "--nocapture"])
            .env(DIRECTORY, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("it is taken")),
            "the other process did not take it"
        );
        Self(child)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SIGKILL: it has no chance to tidy up.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_directory_is_refused_at_once_while_another_process_has_it_and_free_when_that_is_killed() {
    let path = std::env::temp_dir().join(format!("courser-taken-{}", std::process::id()));
    for _ in 0..3 {
        let owner = Owner::start(&path);
        let began = Instant::now();
        let refused = DataDirectory::open(&path).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(30), "it waits");
        assert!(
            matches!(&refused, DirectoryError::InUse { process, .. } if *process == Some(owner.0.id())),
            "{refused:?}"
        );
        drop(owner);
        let directory = DataDirectory::open(&path).unwrap();
        assert!(!directory.is_new(), "the other one gave it its name");
    }
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_start_that_keeps_little_leaves_one_small_file() {
    let path = std::env::temp_dir().join(format!("courser-starts-{}", std::process::id()));
    for starts in 1..=3 {
        let broker = Broker::start(BrokerConfig {
            listen: Some(([127, 0, 0, 1], 0).into()),
            transport: Transport::Epoll,
            cores: Cores::Unpinned,
            memory: limits::MEMORY_MIN,
            data_directory: Some(path.clone()),
            ..BrokerConfig::default()
        })
        .unwrap();
        assert_eq!(broker.setting().data.as_ref().unwrap().run, starts);
        broker.stop();
        let files = DataDirectory::open(&path).unwrap().list().unwrap().files;
        let sizes: Vec<u64> = files.iter().map(|(_, size)| *size).collect();
        let most = usize::try_from(starts).unwrap();
        assert!(sizes.len() <= most, "{sizes:?} after {starts} starts");
        let small = u64::from(limits::JOURNAL_FILE_SIZE_FIRST);
        assert!(sizes.iter().all(|size| *size == small), "{sizes:?}");
    }
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
#[ignore = "run by a test in a process of its own"]
fn takes_it() {
    let path = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let _directory = DataDirectory::open(&path).unwrap();
    println!("it is taken");
    // Until it is killed, or whoever started it is gone.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
