//! Processor time of single threads, as the kernel accounts for it.

use std::fs;
use std::time::Duration;

/// The calling thread's id. `None` without `/proc`.
pub(crate) fn this_thread() -> Option<u32> {
    // The link says PID/task/TID.
    let link = fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

/// The first thread of this process with this name, of which the kernel keeps 15
/// bytes.
pub(crate) fn thread_named(name: &str) -> Option<u32> {
    let kept = &name.as_bytes()[..name.len().min(15)];
    let mut threads: Vec<u32> = fs::read_dir("/proc/self/task")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    threads.sort_unstable();
    threads.into_iter().find(|thread| {
        fs::read(format!("/proc/self/task/{thread}/comm"))
            .is_ok_and(|comm| comm.strip_suffix(b"\n").unwrap_or(&comm) == kept)
    })
}

/// How long a thread of this process has run on a processor so far, to the
/// nanosecond where it sleeps and to a tick of the scheduler where it runs. `None` if
/// the kernel does not account for single threads, or the thread is gone.
pub(crate) fn of_thread(thread: u32) -> Option<Duration> {
    let schedstat = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let run_ns = schedstat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(run_ns))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    #[test]
    fn a_thread_that_works_is_charged_and_one_that_sleeps_is_not() {
        if of_thread(this_thread().unwrap()).is_none() {
            eprintln!("SKIPPED: this kernel does not account for single threads");
            return;
        }
        let (tell, told) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<()>();
        let sleeper = std::thread::Builder::new()
            .name("cpu-time-sleeper".to_owned())
            .spawn(move || {
                tell.send(this_thread().unwrap()).unwrap();
                woken.recv().ok();
            })
            .unwrap();
        let thread = told.recv().unwrap();
        assert_eq!(thread_named("cpu-time-sleeper"), Some(thread));
        let own = this_thread().unwrap();
        let (slept, worked) = (of_thread(thread).unwrap(), of_thread(own).unwrap());
        let began = Instant::now();
        let enough = Duration::from_millis(20);
        while of_thread(own).unwrap() - worked < enough {
            assert!(began.elapsed() < Duration::from_secs(60), "never charged");
        }
        assert!(of_thread(thread).unwrap() - slept < enough / 2);
        wake.send(()).unwrap();
        sleeper.join().unwrap();
        assert_eq!(thread_named("no-such-thread-here"), None);
    }
}
