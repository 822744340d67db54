//! Every floor runs, counts what it does, rests when told to, and ends.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::time::{Duration, Instant};

use courser_bench::BenchError;
use courser_bench::floor::frame::REPLY_BYTES;
use courser_bench::floor::gaps::Gaps;
use courser_bench::floor::ring::RingFloor;
use courser_bench::floor::{
    DurableFloor, DurableKind, EchoKind, EchoServer, FloorOptions, RelayFloor, RoundTripClient,
    RoundTripFloor, StreamFloor, StreamKind, floor, frame_bytes, independent,
};
use courser_bench::histogram::Histogram;
use courser_bench::pin::{self, Cores};

const SLICE: Duration = Duration::from_millis(50);

/// Floors spin; two at once on two cores would only measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs on a pinned thread of its own, as a measurement does.
fn on_the_client_core(test: impl FnOnce(Cores) + Send) {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let cores = Cores::choose().unwrap();
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                pin::pin_current_thread(cores.client).unwrap();
                test(cores);
            })
            .join()
            .unwrap();
    });
}

/// True if the machine refuses io_uring, which is said aloud.
fn skipped(error: &BenchError) -> bool {
    let unsupported = error.is_unsupported();
    if unsupported {
        eprintln!("skipped: {error}");
    }
    unsupported
}

fn an_echo_answers_every_frame_once(kind: EchoKind) {
    on_the_client_core(|cores| {
        for body in [1, 64, 100_000] {
            let server = match EchoServer::start(kind, cores.broker) {
                Ok(server) => server,
                Err(error) if skipped(&error) => return,
                Err(error) => panic!("{kind}: {error}"),
            };
            let mut client = RoundTripClient::connect(server.address(), frame_bytes(body)).unwrap();
            let mut histogram = Histogram::new();
            let round_trips = client.slice(SLICE, &mut histogram).unwrap();
            assert!(histogram.samples() > 0, "{kind}");
            assert_eq!(histogram.samples(), round_trips);
            let served = server.stop().unwrap();
            assert_eq!(served.frames, round_trips, "{kind} at {body}");
            assert_eq!(served.replies, round_trips, "{kind} at {body}");
        }
    });
}

#[test]
fn the_spinning_echo_answers_every_frame_once() {
    an_echo_answers_every_frame_once(EchoKind::Spin);
}

#[test]
fn the_busy_epoll_echo_answers_every_frame_once() {
    an_echo_answers_every_frame_once(EchoKind::EpollBusy);
}

#[test]
fn the_busy_io_uring_echo_answers_every_frame_once() {
    an_echo_answers_every_frame_once(EchoKind::UringBusy);
}

#[test]
fn the_blocking_echo_answers_every_frame_once() {
    an_echo_answers_every_frame_once(EchoKind::Blocking);
}

#[test]
fn the_blocking_io_uring_echo_answers_every_frame_once() {
    an_echo_answers_every_frame_once(EchoKind::UringBlocking);
}

/// More frames at once than one reply batch or one receive buffer holds, cut
/// at odd places.
#[test]
fn every_echo_answers_a_burst_that_comes_in_odd_pieces() {
    use courser_bench::floor::frame::{FrameScanner, write_message};
    use std::io::{Read, Write};

    const FRAMES: usize = 3_000;
    on_the_client_core(|cores| {
        let mut burst = vec![0; FRAMES * frame_bytes(1)];
        for frame in burst.chunks_exact_mut(frame_bytes(1)) {
            write_message(frame);
        }
        for kind in EchoKind::ALL {
            let server = match EchoServer::start(kind, cores.broker) {
                Ok(server) => server,
                Err(error) if skipped(&error) => continue,
                Err(error) => panic!("{kind}: {error}"),
            };
            let mut connection = std::net::TcpStream::connect(server.address()).unwrap();
            connection
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            for piece in burst.chunks(12_347) {
                connection.write_all(piece).unwrap();
            }
            let mut replies = vec![0; FRAMES * REPLY_BYTES];
            connection.read_exact(&mut replies).unwrap();
            let mut scanner = FrameScanner::default();
            assert_eq!(scanner.scan(&replies), Ok(FRAMES), "{kind}");
            let served = server.stop().unwrap();
            assert_eq!(served.frames, FRAMES as u64, "{kind}");
            assert_eq!(served.replies, FRAMES as u64, "{kind}");
        }
    });
}

#[test]
fn a_server_that_nobody_connected_to_ends_when_dropped() {
    on_the_client_core(|cores| {
        for kind in EchoKind::ALL {
            match EchoServer::start(kind, cores.broker) {
                Ok(server) => assert_eq!(server.stop().unwrap().frames, 0, "{kind}"),
                Err(error) => assert!(skipped(&error), "{kind}: {error}"),
            }
        }
    });
}

#[test]
fn a_server_on_a_foreign_cpu_is_refused_by_name() {
    let refusal = EchoServer::start(EchoKind::Spin, 100_000).unwrap_err();
    assert!(
        refusal
            .to_string()
            .starts_with("cpu 100000 is not in this process's cpuset"),
        "{refusal}"
    );
}

#[test]
fn a_client_of_a_server_that_went_away_is_told_so() {
    on_the_client_core(|cores| {
        let server = EchoServer::start(EchoKind::Spin, cores.broker).unwrap();
        let mut client = RoundTripClient::connect(server.address(), frame_bytes(64)).unwrap();
        client.warm_up(1).unwrap();
        drop(server);
        let error = client.slice(SLICE, &mut Histogram::new()).unwrap_err();
        assert!(
            matches!(
                error,
                BenchError::ConnectionClosed { .. } | BenchError::Socket { .. }
            ),
            "{error}"
        );
    });
}

/// Two spinning servers on one core: if the first did not rest, the second
/// would have half of a core and a p50 of a scheduler's tick.
#[test]
fn a_floor_rests_between_its_slices() {
    on_the_client_core(|cores| {
        let mut one = RoundTripFloor::start(EchoKind::Spin, cores.broker, 176).unwrap();
        let mut other = RoundTripFloor::start(EchoKind::EpollBusy, cores.broker, 176).unwrap();
        let mut histogram = Histogram::new();
        let mut trips = 0;
        for _ in 0..4 {
            trips += one.slice(SLICE, &mut histogram).unwrap();
            trips += other.slice(SLICE, &mut histogram).unwrap();
        }
        assert_eq!(histogram.samples(), trips);
        let p50_ns = histogram.quantile_ns(0.5).unwrap();
        assert!(p50_ns < 1_000_000, "p50 {p50_ns} ns");
        let served = one.stop().unwrap();
        assert_eq!(served.frames, served.replies);
        drop(other);
    });
}

#[test]
fn calibration_picks_the_kind_with_the_lowest_median() {
    on_the_client_core(|cores| {
        let (floor, calibrated) = RoundTripFloor::calibrate(cores, frame_bytes(64), SLICE).unwrap();
        assert!(calibrated.len() >= 2);
        let p50 = |kind| {
            calibrated
                .iter()
                .find(|calibrated| calibrated.kind == kind)
                .and_then(|calibrated| calibrated.percentiles.p50_ns)
                .unwrap()
        };
        for other in &calibrated {
            assert!(p50(floor.kind()) <= p50(other.kind));
        }
    });
}

#[test]
fn the_relay_delivers_and_acknowledges_every_frame() {
    on_the_client_core(|cores| {
        for body in [64, 100_000] {
            let mut relay = RelayFloor::start(cores.broker, frame_bytes(body)).unwrap();
            let mut to_consumer = Histogram::new();
            let mut to_ack = Histogram::new();
            let frames = relay.slice(SLICE, &mut to_consumer, &mut to_ack).unwrap();
            assert!(frames > 0);
            assert_eq!(to_consumer.samples(), frames);
            assert_eq!(to_ack.samples(), frames);
            let served = relay.stop().unwrap();
            assert!(served.frames > frames, "warm-up frames are relayed too");
            assert_eq!(served.frames, served.replies);
        }
    });
}

#[test]
fn a_stream_counts_what_was_read_and_not_what_was_written() {
    on_the_client_core(|cores| {
        for kind in StreamKind::ALL {
            let frame = frame_bytes(64);
            let mut stream = StreamFloor::start(kind, cores.broker, frame, 64 * 1024).unwrap();
            assert_eq!(stream.frames_per_chunk(), 372);
            let rate = stream.slice(SLICE).unwrap();
            assert!(rate.messages > 0 && rate.elapsed >= SLICE);
            assert_eq!(rate.bytes, rate.messages * frame as u64);
            assert!(rate.msgs_per_s() > 0.0);
            let again = stream.slice(SLICE).unwrap();
            let served = stream.stop().unwrap();
            assert!(served.frames > rate.messages + again.messages);
            assert_eq!(served.frames % 372, 0, "chunks arrive whole");
        }
    });
}

#[test]
fn calibration_leaves_a_stream_that_runs() {
    on_the_client_core(|cores| {
        let mut stream = StreamFloor::calibrate(cores, 176, 64 * 1024, SLICE / 5).unwrap();
        assert!(stream.slice(SLICE).unwrap().messages > 0);
        assert!(StreamKind::ALL.contains(&stream.kind()));
    });
}

#[test]
fn a_frame_larger_than_a_chunk_is_streamed_one_at_a_time() {
    on_the_client_core(|cores| {
        let mut stream = StreamFloor::start(
            StreamKind::Spin,
            cores.broker,
            frame_bytes(200_000),
            64 * 1024,
        )
        .unwrap();
        assert_eq!(stream.frames_per_chunk(), 1);
        assert!(stream.slice(SLICE).unwrap().messages > 0);
    });
}

#[test]
fn the_ring_measures_a_round_trip_and_a_burst() {
    on_the_client_core(|cores| {
        let ring = RingFloor::measure(cores, 2 * SLICE).unwrap();
        assert!(ring.round_trip_p50_ns > 0.0);
        assert!(ring.round_trip_best_ns <= ring.round_trip_p50_ns);
        assert!(ring.burst_msgs_per_s > 0.0);
    });
}

#[test]
fn gaps_are_watched_on_every_core_at_once() {
    on_the_client_core(|cores| {
        let began = Instant::now();
        let gaps = Gaps::measure(&[cores.client, cores.broker], SLICE).unwrap();
        assert!(began.elapsed() < 20 * SLICE + Duration::from_secs(30));
        assert_eq!(gaps.len(), 2);
        for gaps in gaps {
            assert!(gaps.watched_ns >= 50_000_000);
            assert!(gaps.lost_share() <= 1.0);
            assert!(
                gaps.at_least
                    .is_sorted_by(|one, next| one.gaps >= next.gaps),
                "longer gaps are rarer: {gaps:?}"
            );
        }
    });
}

#[test]
fn the_independent_echo_returns_sorted_times() {
    on_the_client_core(|cores| {
        let times = independent::round_trips_ns(cores.broker, 176, SLICE).unwrap();
        assert!(!times.is_empty());
        assert!(times.is_sorted());
    });
}

#[test]
fn a_whole_run_reports_floors_noise_a_check_and_conditions() {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = FloorOptions {
        payloads: vec![64],
        kinds: vec![EchoKind::Spin, EchoKind::UringBusy],
        ..FloorOptions::default()
    };
    // A machine that others load gets few samples in so short a time, says so, and
    // is asked again as it then suggests.
    let report = [2, 6, 18]
        .into_iter()
        .map(|seconds| {
            let duration = Duration::from_secs(seconds);
            let options = FloorOptions {
                duration,
                ..options.clone()
            };
            floor(&options).unwrap()
        })
        .find(|report| {
            let asks = report.notes.iter().any(|it| it.contains("more seconds"));
            assert_eq!(asks, report.header.noise.is_none());
            !asks
        })
        .expect("samples enough within 18 s");
    let of = |workload: &str, kind: &str| {
        report
            .results
            .iter()
            .find(|result| result.workload == workload && result.kind.as_deref() == Some(kind))
            .unwrap_or_else(|| panic!("no {workload} {kind}"))
    };
    for kind in ["spin", "spin again", "independent"] {
        let result = of("floor round trip", kind);
        assert!(result.latency.unwrap().samples > 0, "{kind}");
        assert!(result.floor.floor_p50_ns.is_some(), "{kind}");
    }
    for kind in ["to consumer", "to ack"] {
        assert!(of("floor relay", kind).latency.unwrap().samples > 0);
    }
    let best_stream = ["spin", "blocking"]
        .map(|kind| of("floor stream", kind).floor.ratio.unwrap())
        .into_iter()
        .fold(0.0, f64::max);
    assert!(
        (best_stream - 1.0).abs() < 1e-9,
        "the best is its own floor"
    );
    assert!(report.header.noise.is_some());
    assert_eq!(report.checks.len(), 1);
    assert!(report.conditions.ring_before.is_some() && report.conditions.ring_after.is_some());
    assert_eq!(report.conditions.gaps.len(), 2);
    let text = report.to_string();
    for part in [
        "floor round trip",
        "floor relay",
        "floor stream",
        "check",
        "noise",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["header"]["durability"], "memory");
    assert_eq!(json["results"][0]["payload_bytes"], 64);
}

#[test]
fn a_durable_floor_writes_blocks_and_leaves_no_file_behind() {
    let directory = std::env::temp_dir().join(format!("courser-durable-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    on_the_client_core(|_| {
        for kind in DurableKind::ALL {
            let mut floor = match DurableFloor::start(kind, &directory) {
                Ok(floor) => floor,
                Err(error) if skipped(&error) => continue,
                Err(error) => panic!("{kind}: {error}"),
            };
            assert_eq!(floor.kind(), kind);
            let file = std::fs::read_dir(&directory).unwrap().next().unwrap();
            let path = file.unwrap().path();
            let first_block = || std::fs::read(&path).unwrap()[4096..4104].to_vec();
            assert_eq!(first_block(), [0; 8]);
            let mut histogram = Histogram::new();
            while histogram.samples() < 2 {
                floor.slice(SLICE, &mut histogram).unwrap();
            }
            assert_eq!(first_block(), 4096_u64.to_le_bytes(), "{kind}");
        }
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    });
    std::fs::remove_dir(&directory).unwrap();
    let refused = DurableFloor::start(DurableKind::Cached, &directory)
        .err()
        .unwrap();
    assert!(!refused.is_unsupported(), "{refused}");
}

#[test]
fn too_little_time_is_refused_with_what_would_do() {
    let refusal = floor(&FloorOptions {
        duration: Duration::from_millis(100),
        ..FloorOptions::default()
    })
    .unwrap_err();
    assert!(
        refusal.to_string().starts_with("seconds: 0.1 s leave"),
        "{refusal}"
    );
    let refusal = floor(&FloorOptions {
        rounds: 5,
        ..FloorOptions::default()
    })
    .unwrap_err();
    assert!(refusal.to_string().contains("5 rounds"), "{refusal}");
}
