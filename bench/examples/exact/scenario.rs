//! What is counted, one scenario after the other.
//!
//! | scenario | counted |
//! |---|---|
//! | `broker.store` | the shard: bytes of a batch in, completions out |
//! | `broker.store.keeping` | the same, beside a journal that is not asked for |
//! | `broker.store.flushed` | the same, and each batch through the journal to an instant device |
//! | `broker.through` | the same, and deliveries out and acknowledgements in |
//! | `client.send` | the client: sends, bytes out, answers in, outcomes taken |
//! | `client.receive` | the client: deliveries in, messages taken and acknowledged |
//! | `order` | outcomes through the completion window, and through what keeps no order |
//!
//! Each runs once uncounted, so that queues have grown and credit has risen, and
//! then counted. At its end [`scenario_ended`] is entered, where callgrind writes
//! what it has counted and begins anew: the n-th dump belongs to the n-th scenario.

use std::hint::black_box;
use std::mem::size_of;

use courser_bench::exact::{Figure, Measured, Scenario, Unit};
use courser_core::client::{Completion, Stored};
use courser_core::frame::MessageHeader;
use courser_core::frame::control::{AckRun, CompletionRun};

use crate::order::{Arrival, Through};
use crate::pair::{Counted, Keeping, Pair, Passed};

const BODY_BYTES: usize = 64;
const LARGER_BODY_BYTES: usize = 1024;

/// Counted messages of each scenario, a multiple of every batch.
const MESSAGES: u64 = 4096;

const BATCHES: [u64; 3] = [1, 16, 256];

/// Runs every scenario.
pub(crate) fn measure() -> Measured {
    let mut measured = Measured {
        cpu_features: cpu_features(),
        scenarios: Vec::new(),
        figures: sizes(),
    };
    for batch in BATCHES {
        let store = pair(
            &mut measured,
            "broker.store",
            BODY_BYTES,
            batch,
            Counted::Broker,
            false,
        );
        wire(&mut measured, &store, batch);
    }
    let larger = "broker.store.1kib";
    pair(
        &mut measured,
        larger,
        LARGER_BODY_BYTES,
        16,
        Counted::Broker,
        false,
    );
    for batch in BATCHES {
        pair(
            &mut measured,
            "broker.through",
            BODY_BYTES,
            batch,
            Counted::Broker,
            true,
        );
    }
    for batch in BATCHES {
        pair(
            &mut measured,
            "client.send",
            BODY_BYTES,
            batch,
            Counted::Sender,
            false,
        );
        pair(
            &mut measured,
            "client.receive",
            BODY_BYTES,
            batch,
            Counted::Receiver,
            true,
        );
    }
    for batch in BATCHES {
        for (name, keeping) in [
            ("broker.store.keeping", Keeping::Others),
            ("broker.store.flushed", Keeping::Everything),
        ] {
            let mut pair = Pair::new(BODY_BYTES, false, keeping);
            let passed = count(&mut measured, name, &mut pair, batch, Counted::Broker);
            if keeping == Keeping::Everything {
                storage(&mut measured, &passed, batch);
            }
        }
    }
    for arrival in [Arrival::InOrder, Arrival::Reversed] {
        order(&mut measured, "window", Through::window(), arrival);
        order(&mut measured, "unordered", Through::unordered(), arrival);
        order(&mut measured, "queue", Through::queue(), arrival);
    }
    measured
}

fn pair(
    measured: &mut Measured,
    name: &str,
    body_bytes: usize,
    batch: u64,
    counted: Counted,
    consumed: bool,
) -> Passed {
    let mut pair = Pair::new(body_bytes, consumed, Keeping::Nothing);
    count(measured, name, &mut pair, batch, counted)
}

fn count(
    measured: &mut Measured,
    name: &str,
    pair: &mut Pair,
    batch: u64,
    counted: Counted,
) -> Passed {
    for _ in 0..MESSAGES / batch {
        pair.round(batch);
    }
    pair.passed = Passed::default();
    pair.counted = counted;
    for _ in 0..MESSAGES / batch {
        pair.round(batch);
    }
    end(
        measured,
        format!("{name}.batch_{batch}"),
        pair.passed.allocations,
    );
    pair.passed
}

fn order(measured: &mut Measured, name: &str, mut through: Through, arrival: Arrival) {
    const BATCH: u64 = 16;
    for counted in [false, true] {
        for _ in 0..MESSAGES / BATCH {
            through.round(BATCH, arrival, counted);
        }
    }
    let arrival = match arrival {
        Arrival::InOrder => "",
        Arrival::Reversed => ".reversed",
    };
    end(measured, format!("order.{name}{arrival}.batch_{BATCH}"), 0);
}

fn end(measured: &mut Measured, name: String, allocations: u64) {
    measured.scenarios.push(Scenario {
        name,
        messages: MESSAGES,
        allocations,
    });
    scenario_ended(measured.scenarios.len());
}

/// Does nothing. Callgrind knows it by its name.
#[inline(never)]
fn scenario_ended(scenarios: usize) {
    black_box(scenarios);
}

fn wire(measured: &mut Measured, passed: &Passed, batch: u64) {
    for (direction, bytes) in [("sent", passed.to_shard), ("answered", passed.to_clients)] {
        measured.figures.push(Figure {
            name: format!("wire.{direction}.batch_{batch}"),
            value: courser_bench::units::to_f64(bytes) / courser_bench::units::to_f64(MESSAGES),
            unit: Unit::BytesPerMessage,
        });
    }
    measured.figures.push(Figure {
        name: format!("broker.turns.batch_{batch}"),
        value: courser_bench::units::to_f64(passed.turns)
            / courser_bench::units::to_f64(MESSAGES / batch),
        unit: Unit::TurnsPerBatch,
    });
}

/// What a batch that is sent at once costs the device.
fn storage(measured: &mut Measured, passed: &Passed, batch: u64) {
    let bytes = courser_bench::units::to_f64(passed.written);
    measured.figures.push(Figure {
        name: format!("storage.written.batch_{batch}"),
        value: bytes / courser_bench::units::to_f64(MESSAGES),
        unit: Unit::BytesPerMessage,
    });
    measured.figures.push(Figure {
        name: format!("storage.flushes.batch_{batch}"),
        value: courser_bench::units::to_f64(passed.writes)
            / courser_bench::units::to_f64(MESSAGES / batch),
        unit: Unit::FlushesPerBatch,
    });
}

/// Sizes of what there are many of.
fn sizes() -> Vec<Figure> {
    [
        ("size.message_header", size_of::<MessageHeader>()),
        ("size.completion_run", size_of::<CompletionRun>()),
        ("size.ack_run", size_of::<AckRun>()),
        ("size.completion", size_of::<Completion>()),
        ("size.stored", size_of::<Stored>()),
    ]
    .map(|(name, size)| Figure {
        name: name.to_owned(),
        value: courser_bench::units::to_f64(size as u64),
        unit: Unit::Bytes,
    })
    .into()
}

/// What the processor offers of that which code here, or the C library's copies,
/// chooses by.
fn cpu_features() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    let offered = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("ermsb", is_x86_feature_detected!("ermsb")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let offered = [("crc", std::arch::is_aarch64_feature_detected!("crc"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let offered: [(&str, bool); 0] = [];
    offered
        .into_iter()
        .filter(|(_, offered)| *offered)
        .map(|(name, _)| name.to_owned())
        .collect()
}
