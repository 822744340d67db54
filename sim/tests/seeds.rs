//! Seeds: the first few hundred, and those that once broke a promise.

use courser_sim::{Report, run, run_all};

/// Those that once failed: a number and its story on each line.
const KEPT: &str = include_str!("kept_seeds.txt");

#[test]
fn three_hundred_worlds_keep_every_promise_and_each_fault_has_struck() {
    let report = run_all(0..300, |_, _| {}).unwrap_or_else(|failure| {
        panic!("{}{failure}", failure.last);
    });
    println!("{report}");
    let Report {
        faults,
        redelivered,
        unknown,
        failed,
        confirmed,
        thinnings,
        late,
        retries,
        given_back,
        reconnects,
        producers_resumed,
        consumers_resumed,
        ..
    } = report;
    assert!(faults.iter().all(|count| *count > 0), "{faults:?}");
    for count in [
        redelivered,
        unknown,
        failed,
        confirmed,
        thinnings,
        late,
        retries,
        given_back,
        reconnects,
        producers_resumed,
        consumers_resumed,
    ] {
        assert!(count > 0, "a kind of outcome never came about:\n{report}");
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    let mut seeds = 0;
    for line in KEPT.lines().filter(|line| !line.starts_with('#')) {
        let (seed, story) = line.split_once(' ').unwrap_or((line, ""));
        let Ok(seed) = seed.parse() else {
            panic!("a kept seed begins its line: {line:?}");
        };
        assert!(!story.trim().is_empty(), "seed {seed} has no story");
        seeds += 1;
        if let Err(failure) = run(seed) {
            panic!("{}{failure} ({story})", failure.last);
        }
    }
    assert!(seeds > 0, "there are kept seeds");
}
