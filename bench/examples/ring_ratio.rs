//! The ratio of Courser's ring to `rtrb`'s, time over time, in slices that
//! alternate A B B A, with `rtrb` against itself as the noise.
//!
//! ```text
//! cargo run --release -p courser-bench --example ring_ratio [PAIRS]
//! ```
//!
//! Courser's records carry their length and so are 72 bytes for a message of
//! 64; `rtrb` is measured with slots of either size. The wake check, which makes
//! sleeping readers possible, has no counterpart in `rtrb`.

#[path = "../benches/ring/contenders.rs"]
mod contenders;

use std::process::ExitCode;
use std::time::Duration;

use contenders::{
    Cpus, MESSAGE_SIZE, RECORD_SIZE, WakeCheck, courser_burst, courser_round_trips, index_burst,
    index_round_trips, rtrb_burst_chunks, rtrb_burst_single, rtrb_round_trips,
};
use courser_bench::compare::PairedRatio;

/// Each about ten milliseconds a slice.
const ROUNDS: u64 = 50_000;
const MESSAGES: u64 = 2_000_000;

fn main() -> ExitCode {
    let pairs = match std::env::args().nth(1).map(|pairs| pairs.parse()) {
        None => 40,
        Some(Ok(pairs)) => pairs,
        Some(Err(error)) => {
            eprintln!("ring_ratio: the number of pairs: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Some(cpus) = Cpus::first_two() else {
        eprintln!("ring_ratio: two CPUs are needed");
        return ExitCode::FAILURE;
    };
    println!(
        "time of the first over time of the second, 64-byte messages; below 1 the first is faster"
    );

    let rtrb_trips = || rtrb_round_trips(cpus, ROUNDS);
    let rtrb = |batch| move || rtrb_burst_chunks::<MESSAGE_SIZE>(cpus, MESSAGES, batch);
    let rtrb_records = |batch| move || rtrb_burst_chunks::<RECORD_SIZE>(cpus, MESSAGES, batch);
    let courser = |batch, check| move || courser_burst(cpus, MESSAGES, batch, check);
    let trips = |name, first: &dyn Fn() -> Duration| {
        compare(name, pairs, ROUNDS, first, &rtrb_trips);
    };
    trips("round trip: rtrb / rtrb (noise)", &rtrb_trips);
    trips("round trip: courser / rtrb", &|| {
        courser_round_trips(cpus, ROUNDS)
    });
    compare(
        "round trip: courser / indices into a pool",
        pairs,
        ROUNDS,
        &|| courser_round_trips(cpus, ROUNDS),
        &|| index_round_trips(cpus, ROUNDS),
    );

    let messages = |name: &str, first: &dyn Fn() -> Duration, second: &dyn Fn() -> Duration| {
        compare(name, pairs, MESSAGES, first, second);
    };
    messages("burst of 64: rtrb / rtrb (noise)", &rtrb(64), &rtrb(64));
    messages(
        "burst of 16: courser with wake check / rtrb push and pop",
        &courser(16, WakeCheck::Done),
        &|| rtrb_burst_single(cpus, MESSAGES),
    );
    for batch in [16, 64] {
        let spinning = courser(batch, WakeCheck::Left);
        let sleeping = courser(batch, WakeCheck::Done);
        let name = |what: &str| format!("burst of {batch}: {what}");
        messages(&name("courser / rtrb chunks"), &spinning, &rtrb(batch));
        messages(&name("courser / indices into a pool"), &spinning, &|| {
            index_burst(cpus, MESSAGES, batch)
        });
        messages(
            &name("courser / rtrb chunks, 72-byte slots"),
            &spinning,
            &rtrb_records(batch),
        );
        messages(
            &name("courser with wake check / the latter"),
            &sleeping,
            &rtrb_records(batch),
        );
    }
    ExitCode::SUCCESS
}

/// Measures both in pairs of slices and prints the best of each and the ratio.
fn compare(
    name: &str,
    pairs: usize,
    operations: u64,
    first: &dyn Fn() -> Duration,
    second: &dyn Fn() -> Duration,
) {
    let ns = |run: &dyn Fn() -> Duration| run().as_secs_f64() * 1e9 / operations as f64;
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // A B B A: whichever comes first has no advantage over two pairs.
        if pair % 2 == 0 {
            firsts.push(ns(first));
            seconds.push(ns(second));
        } else {
            seconds.push(ns(second));
            firsts.push(ns(first));
        }
    }
    let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let values = |times: &[f64]| times.iter().copied().map(Some).collect::<Vec<_>>();
    match PairedRatio::of(&values(&firsts), &values(&seconds)) {
        Some(ratio) => println!(
            "{name:58} best {:6.1} / {:6.1} ns  ratio {ratio}",
            best(&firsts),
            best(&seconds)
        ),
        None => println!("{name:58} too few pairs for a ratio"),
    }
}
