//! Every seed, and every case that was kept because it once failed or reaches far,
//! through the function that the fuzzer calls.

#![allow(clippy::unwrap_used)]

use courser_fuzz::{TARGETS, corpus};

#[global_allocator]
static ALLOCATOR: courser_fuzz::heap::Counting = courser_fuzz::heap::Counting;

#[test]
fn every_case_that_is_kept_holds() {
    for target in TARGETS {
        for case in corpus::cases(target.name).unwrap() {
            eprintln!("{} {}", target.name, case.name);
            (target.run)(&case.bytes);
        }
    }
}

#[test]
fn memory_is_counted() {
    let peak = courser_fuzz::heap::peak(|| {
        let bytes = vec![1_u8; 100_000];
        std::hint::black_box(&bytes);
    });
    assert!((100_000..200_000).contains(&peak), "{peak}");
}
