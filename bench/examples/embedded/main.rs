//! What is held against a hand-off between two cores (`F_ring`, two `rtrb` rings there
//! and back), in slices that alternate with it in the same run:
//!
//! - G22: a send to its completion over an in-process link, the shard on one core and
//!   the client on the other; at most `3 F_ring + 0.5 us`;
//! - G11: a send to a partition of another shard, over one to a partition of the shard
//!   that the link is on; at most `2.5 F_ring + 0.5 us` more.
//!
//! ```text
//! cargo run --release -p courser-bench --example embedded [PAIRS]
//! ```
//!
//! For G11 there are three parties and two cores that may spin. The client's machine and
//! the shard that its link is on take turns on one thread; the other shard has the other
//! core. So neither link nor kernel is in the difference, only the way between shards.
//!
//! Ratios are of what was measured over what is allowed. The noise is the floor with
//! itself: where it says more than the ratio, so does the verdict.

mod across;
mod in_process;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use courser_bench::BenchError;
use courser_bench::compare::{Noise, PairedRatio};
use courser_bench::floor::ring::RingFloor;
use courser_bench::goal::{Bound, Goal};
use courser_bench::histogram::Histogram;
use courser_bench::pin::Cores;
use courser_bench::units;

/// What an example ends with.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of body.
const BODY_SIZE: usize = 64;

/// How long each slice is.
const SLICE: Duration = Duration::from_millis(60);

/// Sends of a slice before the first one that counts.
const WARM_UP: u32 = 2_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embedded: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let pairs = match std::env::args().nth(1) {
        Some(pairs) => pairs.parse()?,
        None => 24,
    };
    let cores = Cores::choose()?;
    println!("cores  client {}, broker {}", cores.client, cores.broker);
    let floor = || ring_p50(cores);
    let noise = noise(pairs, floor)?;

    let mut link = in_process::Subject::start(cores)?;
    let (mut allowed, mut sent, mut blocking) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        allowed.push(floor().map(|ring| 3.0 * ring + 500.0)?);
        sent.push(link.slice(in_process::Wait::Polling)?);
        blocking.push(link.slice(in_process::Wait::Blocking)?);
    }
    drop(link);
    show(
        "G22",
        "in-process link, send to completion, polled",
        &sent,
        &allowed,
        noise.as_ref(),
    );
    show(
        "G22",
        "the same, blocking",
        &blocking,
        &allowed,
        noise.as_ref(),
    );

    let (mut allowed, mut more) = (Vec::new(), Vec::new());
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        allowed.push(floor().map(|ring| 2.5 * ring + 500.0)?);
        let (local, remote) = across::slice(cores)?;
        near.push(local);
        far.push(remote);
        // Less than nothing is nothing; a ratio needs a little.
        more.push((remote - local).max(1.0));
    }
    println!(
        "       local {}, to the other shard {} (medians of slices)",
        units::nanoseconds(median(&near)),
        units::nanoseconds(median(&far))
    );
    show(
        "G11",
        "a partition of another shard, over a local one",
        &more,
        &allowed,
        noise.as_ref(),
    );
    Ok(())
}

/// The median round trip over two rings, of a slice.
fn ring_p50(cores: Cores) -> Result<f64, BenchError> {
    Ok(RingFloor::measure(cores, SLICE)?.round_trip_p50_ns)
}

/// The floor with itself.
fn noise(
    pairs: usize,
    floor: impl Fn() -> Result<f64, BenchError>,
) -> Result<Option<Noise>, BenchError> {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        ones.push(Some(floor()?));
        others.push(Some(floor()?));
    }
    let noise = Noise::of(&ones, &others);
    match &noise {
        Some(noise) => println!(
            "noise  F_ring with itself; differences below {:.1} % are none",
            noise.tolerance() * 100.0
        ),
        None => println!("noise  too few pairs"),
    }
    Ok(noise)
}

fn show(name: &str, metric: &str, measured: &[f64], allowed: &[f64], noise: Option<&Noise>) {
    let some = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
    let compared = PairedRatio::of(&some(measured), &some(allowed));
    let size = u32::try_from(BODY_SIZE).unwrap_or(u32::MAX);
    let bound = Bound::AtMost(1.0);
    let goal = Goal::measured(name, metric.to_owned(), size, bound, compared, noise);
    println!(
        "{name:<6} {metric:<48} {:>10} of {:>10} allowed  ratio {}  {:?}",
        units::nanoseconds(median(measured)),
        units::nanoseconds(median(allowed)),
        compared.map_or_else(|| "of too few pairs".to_owned(), |ratio| ratio.to_string()),
        goal.outcome,
    );
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    courser_bench::compare::median(&sorted)
}

/// The median time of `send` over a slice, in nanoseconds, behind a warm-up.
fn timed(mut send: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    for _ in 0..WARM_UP {
        send()?;
    }
    let mut histogram = Histogram::new();
    let ends = Instant::now() + SLICE;
    loop {
        let began = Instant::now();
        send()?;
        let ended = Instant::now();
        histogram.record(ended - began);
        if ended >= ends {
            break;
        }
    }
    let median = histogram
        .quantile_ns(0.5)
        .ok_or("too few sends for a median")?;
    Ok(units::to_f64(median))
}
