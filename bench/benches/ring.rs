//! Courser's ring beside `rtrb`'s and one of indices: round trips and bursts between
//! two threads pinned to the first two CPUs.
//!
//! The groups run one after another, so a drift of the machine lies between
//! them: for a verdict run the example `ring_ratio`, which alternates.

mod ring {
    pub(crate) mod contenders;
}

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ring::contenders::{
    Cpus, MESSAGE_SIZE, RECORD_SIZE, WakeCheck, courser_burst, courser_round_trips, index_burst,
    index_round_trips, rtrb_burst_chunks, rtrb_burst_single, rtrb_round_trips,
};

/// Messages a burst measures at least, so that starting the peer is lost in it.
const BURST_MIN: u64 = 100_000;

fn round_trips(criterion: &mut Criterion) {
    let Some(cpus) = Cpus::first_two() else {
        return eprintln!("ring: two CPUs are needed; nothing measured");
    };
    let mut group = criterion.benchmark_group("ring_round_trip_64B");
    group.bench_function("courser", |bencher| {
        bencher.iter_custom(|rounds| courser_round_trips(cpus, rounds));
    });
    group.bench_function("rtrb", |bencher| {
        bencher.iter_custom(|rounds| rtrb_round_trips(cpus, rounds));
    });
    group.bench_function("indices", |bencher| {
        bencher.iter_custom(|rounds| index_round_trips(cpus, rounds));
    });
    group.finish();
}

fn bursts(criterion: &mut Criterion) {
    let Some(cpus) = Cpus::first_two() else {
        return;
    };
    let mut group = criterion.benchmark_group("ring_burst_64B");
    group.throughput(Throughput::Bytes(BURST_MIN * MESSAGE_SIZE as u64));
    for batch in [16, 64] {
        for check in [WakeCheck::Left, WakeCheck::Done] {
            group.bench_function(
                format!("courser/batch {batch}/wake check {check:?}"),
                |bencher| {
                    bencher
                        .iter_custom(|times| courser_burst(cpus, times * BURST_MIN, batch, check));
                },
            );
        }
        group.bench_function(format!("indices/batch {batch}"), |bencher| {
            bencher.iter_custom(|times| index_burst(cpus, times * BURST_MIN, batch));
        });
        group.bench_function(format!("rtrb chunks/batch {batch}/slots 64"), |bencher| {
            bencher.iter_custom(|times| {
                rtrb_burst_chunks::<MESSAGE_SIZE>(cpus, times * BURST_MIN, batch)
            });
        });
        group.bench_function(format!("rtrb chunks/batch {batch}/slots 72"), |bencher| {
            bencher.iter_custom(|times| {
                rtrb_burst_chunks::<RECORD_SIZE>(cpus, times * BURST_MIN, batch)
            });
        });
    }
    group.bench_function("rtrb push and pop", |bencher| {
        bencher.iter_custom(|times| rtrb_burst_single(cpus, times * BURST_MIN));
    });
    group.finish();
}

criterion_group!(benches, round_trips, bursts);
criterion_main!(benches);
