//! Seeds: the first two thousand, and those that once broke a promise.

use std::thread;

use courser_sim::{Failure, Report, run, run_all};

/// Those that once failed: a number and its story on each line.
const KEPT: &str = include_str!("kept_seeds.txt");

const SEEDS: u64 = 2000;

/// Runs seeds on every processor, each thread those of one remainder.
fn run_spread(seeds: u64) -> Report {
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let mut sum = Report::default();
    thread::scope(|scope| {
        let share = |first| move || run_all((first..seeds).step_by(step(threads)), |_, _| {});
        let runs: Vec<_> = (0..threads)
            .map(|first| scope.spawn(share(first)))
            .collect();
        for run in runs {
            match run.join() {
                Ok(Ok(report)) => sum.add(&report),
                Ok(Err(failure)) => fail(&failure, ""),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    sum
}

fn step(threads: u64) -> usize {
    usize::try_from(threads).expect("there are few processors")
}

/// Says what happened last, which seed it was and how to see it again.
fn fail(failure: &Failure, story: &str) -> ! {
    panic!(
        "{}{failure}{story}\nreplay: cargo run -p courser-sim -- {}",
        failure.last, failure.seed
    );
}

#[test]
fn two_thousand_worlds_keep_every_promise_and_each_fault_has_struck() {
    let report = run_spread(SEEDS);
    assert_eq!(report.seeds, SEEDS);
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
        tenures,
        takers,
        turned_away,
        fenced,
        polls,
        nothings,
        deletions,
        shards,
        records,
        moves,
        ..
    } = report;
    assert!(
        shards > SEEDS && shards < 4 * SEEDS,
        "brokers of {shards} shards"
    );
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
        tenures,
        takers,
        turned_away,
        fenced,
        polls,
        nothings,
        deletions,
        records,
        moves,
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
            fail(&failure, &format!(" ({story})"));
        }
    }
    assert!(seeds > 0, "there are kept seeds");
}
