//! The real binary as a child process: started, read line by line, waited for with a
//! deadline, and killed when a test leaves it behind.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes on a busy machine, shorter than patience.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// How a command ended, and all it said.
#[derive(Debug)]
pub struct Ended {
    /// The exit status, or nothing if a signal ended it.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A command that runs.
pub struct Running {
    child: Child,
    line: String,
    stdout: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    deadline: Instant,
}

impl Running {
    /// Starts `courser` with `arguments`; its standard input is empty.
    pub fn start<S: AsRef<OsStr>>(arguments: &[S]) -> Self {
        Self::start_with_input(arguments, "")
    }

    /// Starts `courser` with `arguments` and a standard input.
    pub fn start_with_input<S: AsRef<OsStr>>(arguments: &[S], input: &str) -> Self {
        Self::start_in(".", arguments, input)
    }

    /// Starts `courser` in a directory.
    pub fn start_in<S: AsRef<OsStr>>(directory: &str, arguments: &[S], input: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_courser"));
        command.current_dir(directory).args(arguments);
        Self::spawn(command, input)
    }

    /// Starts `courser` under another program, whose process it becomes.
    pub fn start_under<S: AsRef<OsStr>>(program: &[S], arguments: &[&str]) -> Self {
        let (program, options) = program.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(options);
        command.arg(env!("CARGO_BIN_EXE_courser")).args(arguments);
        Self::spawn(command, "")
    }

    fn spawn(mut command: Command, input: &str) -> Self {
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let words = words.map(OsStr::to_string_lossy);
        let line = words.collect::<Vec<_>>().join(" ");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();

        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // A child that reads nothing closes the pipe, which is its own business.
        thread::spawn(move || stdin.write_all(input.as_bytes()));
        // A few lines ahead of the test and no more: a child whose lines are not read
        // has to wait, as it would in a pipeline.
        let (sender, stdout) = sync_channel(16);
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).unwrap_or(0) > 0 {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    break;
                }
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            errors.read_to_end(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        });
        Self {
            child,
            line,
            stdout,
            stderr: Some(stderr),
            deadline: Instant::now() + DEADLINE,
        }
    }

    /// The next line of standard output without its end; `None` once there is none.
    pub fn next_line(&mut self) -> Option<String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.stdout.recv_timeout(left) {
            Ok(line) => Some(line.trim_end_matches('\n').to_owned()),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("`{}` is silent and does not end", self.line)
            }
        }
    }

    /// Has what it prints read and dropped, so that it never has to wait for a reader.
    pub fn ignore_output(&mut self) {
        let (_closed, nothing) = sync_channel(0);
        let stdout = std::mem::replace(&mut self.stdout, nothing);
        thread::spawn(move || stdout.iter().for_each(drop));
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Reads what is left and waits for the end.
    pub fn end(mut self) -> Ended {
        let mut stdout = String::new();
        while let Some(line) = self.next_line() {
            stdout.push_str(&line);
            stdout.push('\n');
        }
        // Standard output is closed by the end of the process and by nothing else.
        let status = self.child.wait().unwrap();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Ended {
            status: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended, which is what is wanted.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Runs a command to its end.
pub fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Ended {
    Running::start(arguments).end()
}

/// Runs a command line without quotes to its end.
pub fn courser(line: &str) -> Ended {
    run(&line.split_whitespace().collect::<Vec<_>>())
}

/// A broker on a free port.
pub struct Broker {
    running: Running,
    pub address: String,
}

impl Broker {
    /// Starts one and waits until it accepts connections.
    pub fn start(transport: &str) -> Self {
        Self::start_with(transport, "256MiB")
    }

    /// The same with a memory bound.
    pub fn start_with(transport: &str, memory: &str) -> Self {
        Self::try_start(transport, memory).unwrap_or_else(|ended| panic!("no broker: {ended:?}"))
    }

    /// One of so many shards, on processors chosen for them.
    pub fn of_shards(shards: u16) -> Self {
        let (memory, shards) = (format!("{}MiB", 128 * shards), shards.to_string());
        let placed = ["--shards", shards.as_str()];
        Self::try_start_placed("auto", &memory, placed)
            .unwrap_or_else(|ended| panic!("no broker: {ended:?}"))
    }

    fn try_start(transport: &str, memory: &str) -> Result<Self, Ended> {
        Self::try_start_placed(transport, memory, ["--cores", "none"])
    }

    fn try_start_placed(transport: &str, memory: &str, placed: [&str; 2]) -> Result<Self, Ended> {
        let arguments = ["--listen", "127.0.0.1:0", "--memory", memory];
        let arguments = [&arguments[..], &["--transport", transport], &placed];
        Self::serve(&arguments.concat())
    }

    /// One that is told everything, if it starts; without a directory it keeps nothing.
    pub fn serve(arguments: &[&str]) -> Result<Self, Ended> {
        let kept: &[&str] = match arguments.contains(&"--data-dir") {
            true => &["serve"],
            false => &["serve", "--ephemeral"],
        };
        Self::listening(Running::start(&[kept, arguments].concat()))
    }

    /// Waits until it accepts connections.
    pub fn listening(mut running: Running) -> Result<Self, Ended> {
        while let Some(line) = running.next_line() {
            if let Some(address) = line.strip_prefix("listening ") {
                let address = address.trim().to_owned();
                return Ok(Self { running, address });
            }
        }
        Err(running.end())
    }

    /// What it says of its data when it starts; asked once.
    pub fn said_of_data(&mut self) -> String {
        let mut lines = std::iter::from_fn(|| self.running.next_line());
        let line = lines.find(|line| line.starts_with("data "));
        line.expect("every broker says what it keeps")
    }

    /// Runs a verb against this broker to its end.
    pub fn courser(&self, line: &str) -> Ended {
        Running::start(&self.unhurried(line)).end()
    }

    /// The same with a standard input.
    pub fn courser_with_input(&self, line: &str, input: &str) -> Ended {
        Running::start_with_input(&self.unhurried(line), input).end()
    }

    /// Starts a verb against this broker.
    pub fn start_verb(&self, line: &str) -> Running {
        Running::start(&self.arguments(line))
    }

    /// What `courser stats --json` says.
    pub fn stats(&self) -> serde_json::Value {
        let ended = self.courser("stats --json");
        assert_eq!(ended.status, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// What it says of one destination, once `is_so`.
    pub fn wait_until(
        &self,
        destination: &str,
        is_so: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let stats = self.stats();
            let rows = stats["destinations"].as_array().unwrap();
            let row = rows.iter().find(|row| row["destination"] == destination);
            if let Some(row) = row.filter(|row| is_so(row)) {
                return row.clone();
            }
            assert!(Instant::now() < deadline, "{destination} is still {row:?}");
        }
    }

    fn arguments(&self, line: &str) -> Vec<String> {
        let words = line.split_whitespace().map(str::to_owned);
        words
            .chain([String::from("--connect"), self.address.clone()])
            .collect()
    }

    /// Those of a verb that is waited for while the broker is there: a send has all the
    /// time that it takes on a busy machine, unless the line says otherwise.
    fn unhurried(&self, line: &str) -> Vec<String> {
        let mut words = self.arguments(line);
        let is_send = words.first().is_some_and(|verb| verb == "send");
        if is_send && !words.iter().any(|word| word == "--timeout") {
            let seconds = DEADLINE.as_secs();
            words.extend([String::from("--timeout"), format!("{seconds}s")]);
        }
        words
    }

    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Waits for the broker's end.
    pub fn end(self) -> Ended {
        self.running.end()
    }

    /// Ends the broker as a kernel that is out of memory does, and waits until it is gone.
    pub fn kill(self) {
        self.signal(Signal::KILL);
        let ended = self.end();
        assert_eq!(ended.signal, Some(Signal::KILL.as_raw()), "{ended:?}");
    }
}

/// Runs `test` on a broker over epoll and on one over io_uring, the latter only where
/// the machine allows it, which is said.
pub fn on_both_transports(test: impl Fn(Broker)) {
    on_both_transports_with("256MiB", test);
}

/// The same with a memory bound.
pub fn on_both_transports_with(memory: &str, test: impl Fn(Broker)) {
    test(Broker::start_with("epoll", memory));
    match Broker::try_start("io_uring", memory) {
        Ok(broker) => test(broker),
        Err(ended) => {
            assert_eq!(ended.status, Some(1), "{ended:?}");
            assert!(ended.stderr.starts_with("error[C100"), "{ended:?}");
            eprintln!("SKIPPED on io_uring: {}", ended.stderr);
        }
    }
}

/// Bytes of memory that a process has resident.
pub fn resident(pid: Pid) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes * 1024
}

/// A directory that is gone after the test.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("courser-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left behind in the directory for temporary files harms nobody.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}
