//! `scripts/fuzz` runs it; what it does is in `courser_fuzz::entry`.
#![no_main]

#[global_allocator]
static ALLOCATOR: courser_fuzz::heap::Counting = courser_fuzz::heap::Counting;

libfuzzer_sys::fuzz_target!(|case: &[u8]| courser_fuzz::entry::run(case));
