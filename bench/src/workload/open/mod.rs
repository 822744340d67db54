//! Produce to ack under a load that does not wait: open loop, from intended times.
//!
//! ```text
//!   saturation   bursts of the broker, window always full -> 100 %
//!   warm-up      every lane
//!   rounds       floor 10 % | broker 10 % | floor 50 % | broker 50 % | .. and back
//! ```
//!
//! Broker and floor take the same load from the same [generator](generator) with
//! the same window. A percentage is of the saturation that this generator reached
//! with this broker in this run. What was stored is taken out between slices, while
//! the clock stands still.

mod generator;
mod rate;
mod service;

use std::time::{Duration, Instant, SystemTime};

pub use rate::{Rate, UnknownRate};

pub(super) use generator::{Carried, Schedule, Times};
pub(super) use service::{BrokerLoad, FloorLoad};

use service::SATURATION_BURSTS;

use super::lane::{CALIBRATION_SLICE, agree};
use super::run::conclude;
use super::target::Target;
use super::{Options, PAYLOAD_BYTES_MIN};
use crate::error::BenchError;
use crate::floor::{PipelineFloor, frame_bytes};
use crate::load::{Load, Outcome};
use crate::pin::{self, Cores};
use crate::progress::Progress;
use crate::report::{Books, Mode, Report, RunHeader};
use crate::series::LatencySeries;
use crate::units;
use crate::watch::Watch;

/// The loads of goal G3.
const RATES: [Rate; 3] = [
    Rate::Percent(10.0),
    Rate::Percent(50.0),
    Rate::Percent(90.0),
];

const PAYLOAD_BYTES: u32 = 64;

/// As many as a producer may have on their way.
const WINDOW: u32 = 1024;

const DURATION: Duration = Duration::from_secs(60);

/// Frame bytes that one slice may store: far below a queue's share of memory.
const SLICE_BYTES: u64 = 64 << 20;

/// The longest slice: two things compared shall see the same machine.
const SLICE_MAX: Duration = Duration::from_millis(500);

/// A shorter one is mostly waking up.
const SLICE_MIN: Duration = Duration::from_millis(20);

/// The part of each slice that is not recorded, because the server has just woken.
const UNRECORDED: f64 = 0.1;

/// Passes over the lanes, there and back, below which nothing is printed.
const ROUNDS_MIN: u32 = 3;

/// Windows of a lane's warm-up, at most.
const WARM_UPS_MAX: usize = 5;

/// Measures one payload at every rate.
///
/// # Errors
/// See [`super::run`].
pub(super) fn run(plan: &Plan, cores: Cores, target: &Target) -> Result<Report, BenchError> {
    pin::pin_current_thread(cores.client)?;
    let mut header = RunHeader::now(cores);
    header.plan = plan.to_string();
    header.broker = Some(target.describe());
    header.retention = Some(format!(
        "queues, every message stored until a consumer has acknowledged it while the clock stands \
         still, at least every {}",
        units::bytes(SLICE_BYTES)
    ));
    let progress = Progress::new(plan.steps());
    target.rest();
    progress.next("ring and gaps");
    let watch = Watch::begin(cores, plan.aside, plan.aside)?;
    progress.done();
    let mut report = Report::begun(header);
    let mut broker = BrokerLoad::new(target, plan.payload, plan.window);
    let measured = measure(plan, cores, target, &mut broker, &mut report, &progress);
    let mut ledger = broker.ledger;
    ledger.close();
    report.books.push(Books {
        workload: "produce to ack, open loop".to_owned(),
        payload_bytes: plan.payload,
        mode: Mode::Poll,
        ledger,
    });
    conclude(&mut report, measured)?;
    progress.next("ring");
    target.rest();
    report.conditions = watch.end(&mut report.notes)?;
    progress.done();
    Ok(report)
}

/// What is measured, and for how long.
pub(super) struct Plan {
    payload: u32,
    rates: Vec<Rate>,
    window: u32,
    duration: Duration,
    /// For the ring and the gaps.
    aside: Duration,
}

impl Plan {
    /// Checks the options.
    ///
    /// # Errors
    /// If they ask for what cannot be measured.
    pub(super) fn of(options: &Options) -> Result<Self, BenchError> {
        let payload = match options.payloads[..] {
            [] => PAYLOAD_BYTES,
            [payload] => payload,
            _ => {
                return Err(BenchError::Option {
                    option: "payload",
                    problem: "a run of open loads takes one size; run it once for each".to_owned(),
                });
            }
        };
        if !(PAYLOAD_BYTES_MIN..=super::run::PAYLOAD_BYTES_MAX).contains(&payload) {
            return Err(super::run::payload_out_of_range(payload));
        }
        let rates = if options.rates.is_empty() {
            RATES.to_vec()
        } else {
            options.rates.clone()
        };
        let duration = options.duration.unwrap_or(DURATION);
        let plan = Self {
            payload,
            rates,
            window: options.window.unwrap_or(WINDOW).max(1),
            aside: duration.mul_f64(0.02).min(Duration::from_secs(1)),
            duration,
        };
        if plan.slice() < SLICE_MIN {
            return Err(BenchError::Option {
                option: "seconds",
                problem: format!(
                    "{:.1} s leave {} for each slice; ask for more seconds or fewer rates",
                    duration.as_secs_f64(),
                    units::nanoseconds(plan.slice().as_secs_f64() * 1e9),
                ),
            });
        }
        Ok(plan)
    }

    fn lanes(&self) -> u32 {
        u32::try_from(self.rates.len() * 2).unwrap_or(u32::MAX)
    }

    /// How long a slice is where memory does not bound it: half of the time is for
    /// the smallest number of rounds, because taking messages out takes time too.
    fn slice(&self) -> Duration {
        (self.duration / 2 / (self.lanes() * 2 * ROUNDS_MIN)).min(SLICE_MAX)
    }

    fn slice_at(&self, per_second: f64) -> Duration {
        let frame = frame_bytes(self.payload as usize) as u64;
        let messages = units::to_f64(SLICE_BYTES / frame);
        self.slice()
            .min(Duration::from_secs_f64(messages / per_second))
    }

    fn steps(&self) -> u64 {
        2 + SATURATION_BURSTS as u64 + u64::from(self.lanes() * (1 + 2 * ROUNDS_MIN))
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rates: Vec<String> = self.rates.iter().map(Rate::to_string).collect();
        write!(
            formatter,
            "open loop at {} of {}, window {}; slices of at most {}, floor and broker in turn, \
             there and back, at least {ROUNDS_MIN} times; {} of each slice not recorded",
            rates.join(", "),
            units::bytes(u64::from(self.payload)),
            self.window,
            units::nanoseconds(self.slice().as_secs_f64() * 1e9),
            units::percent(UNRECORDED),
        )
    }
}

/// One rate on the broker or on the floor, with what it has shown.
struct Lane {
    rate: Rate,
    per_second: f64,
    is_floor: bool,
    response: LatencySeries,
    service: LatencySeries,
    carried: Carried,
    settled: bool,
}

impl Lane {
    fn new(rate: Rate, per_second: f64, is_floor: bool) -> Self {
        Self {
            rate,
            per_second,
            is_floor,
            response: LatencySeries::default(),
            service: LatencySeries::default(),
            carried: Carried::default(),
            settled: false,
        }
    }
}

fn measure(
    plan: &Plan,
    cores: Cores,
    target: &Target,
    broker: &mut BrokerLoad<'_>,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), BenchError> {
    let frame = frame_bytes(plan.payload as usize);
    let mut floor = FloorLoad::new(PipelineFloor::start(cores, frame, CALIBRATION_SLICE)?);
    let began = Instant::now();
    let saturation = broker.saturation(progress)?;
    report.notes.push(format!(
        "saturation, 100 % here: {} acknowledged, the middle of {} bursts with the window full",
        units::per_second(saturation),
        SATURATION_BURSTS - 1
    ));
    let mut lanes: Vec<Lane> = plan
        .rates
        .iter()
        .flat_map(|rate| {
            let per_second = rate.per_second(saturation);
            [true, false].map(|is_floor| Lane::new(*rate, per_second, is_floor))
        })
        .collect();
    let mut times = Times::default();
    let mut slice = |lane: &Lane, length: Duration, times: &mut Times| {
        times.clear();
        let schedule = Schedule::at_rate(
            lane.per_second,
            crate::histogram::saturating_ns(length),
            crate::histogram::saturating_ns(length.mul_f64(UNRECORDED)),
        );
        if lane.is_floor {
            floor.slice(&schedule, u64::from(plan.window), times)
        } else {
            let carried = broker.slice(&schedule, times)?;
            target.rest();
            Ok(carried)
        }
    };
    for lane in &mut lanes {
        progress.next("warming up");
        let mut p50s = Vec::new();
        while !lane.settled && p50s.len() < WARM_UPS_MAX {
            let carried = slice(lane, plan.slice_at(lane.per_second) / 2, &mut times)?;
            let p50 = times.response.quantile_ns(0.5).map_or(0.0, units::to_f64);
            p50s.push(p50);
            lane.settled = agree(&p50s);
            if !carried.is_enough() {
                // It will not settle: what it is asked for grows behind it.
                break;
            }
        }
        progress.done();
    }
    let mut rounds = 0;
    while rounds < ROUNDS_MIN || began.elapsed() < plan.duration {
        for there in [true, false] {
            let order: Vec<usize> = if there {
                (0..lanes.len()).collect()
            } else {
                (0..lanes.len()).rev().collect()
            };
            for index in order {
                let lane = &mut lanes[index];
                progress.next(&format!("{}", lane.rate));
                let slice_began = SystemTime::now();
                let carried = slice(lane, plan.slice_at(lane.per_second), &mut times)?;
                lane.response.add(&times.response, slice_began);
                lane.service.add(&times.service, slice_began);
                lane.carried.add(&carried);
                progress.done();
            }
        }
        rounds += 1;
    }
    report.notes.push(format!("{rounds} rounds there and back"));
    summarise(plan, &lanes, floor.floor.kind().name(), report);
    Ok(())
}

/// Adds a row for each load, the broker's beside its floor's, and what goal G3 is
/// about.
fn summarise(plan: &Plan, lanes: &[Lane], floor_kind: &str, report: &mut Report) {
    for pair in lanes.chunks_exact(2) {
        let [floor, broker] = [&pair[0], &pair[1]].map(|lane| {
            let workload = if lane.is_floor {
                format!("floor {floor_kind}")
            } else {
                "produce to ack".to_owned()
            };
            let enough = lane.carried.is_enough();
            let tag =
                |times: &str| format!("open/{workload}/{}/{}/{times}", plan.payload, lane.rate);
            let mut log = |times: &str, series: &LatencySeries| {
                enough.then(|| report.histograms.add(&tag(times), series.intervals()))
            };
            Load {
                log_tag_response: log("response", &lane.response),
                log_tag_service: log("service", &lane.service),
                payload_bytes: plan.payload,
                window: u64::from(plan.window),
                asked_msgs_per_s: lane.per_second,
                percent_of_saturation: lane.rate.percent(),
                achieved_msgs_per_s: lane.carried.per_second(),
                outcome: if enough {
                    Outcome::Carried
                } else {
                    Outcome::Fail
                },
                response: enough.then(|| lane.response.percentiles()),
                service: enough.then(|| lane.service.percentiles()),
                ratio_p50: None,
                ratio_p99: None,
                settled: lane.settled,
                workload,
            }
        });
        let broker = broker.beside(&floor);
        report.loads.extend([floor, broker]);
    }
    let at = |percent: f64| {
        report.loads.iter().find(|load| {
            load.percent_of_saturation == Some(percent) && load.workload == "produce to ack"
        })
    };
    let mut goals = Vec::new();
    if let Some(load) = at(50.0) {
        goals.push(match load.ratio_p99 {
            Some(ratio) => format!("p99 at 50 % over the floor's p99 at the same load: {ratio:.2}"),
            None => "p99 at 50 % has no ratio to the floor: one of the two did not carry the load \
                     or has too few samples"
                .to_owned(),
        });
    }
    if let (Some(low), Some(high)) = (at(10.0), at(90.0)) {
        goals.push(match high.p99_over(low) {
            Some(ratio) => format!("p99 at 90 % over p99 at 10 %: {ratio:.2}"),
            None => "p99 at 90 % over p99 at 10 % is not known: a load was not carried or has too \
                     few samples"
                .to_owned(),
        });
    }
    report.notes.extend(goals);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn plan(rates: &[Rate]) -> Plan {
        Plan::of(&Options {
            rates: rates.to_vec(),
            ..Options::default()
        })
        .unwrap()
    }

    /// A lane of 20,000 samples of so many nanoseconds, which were answered at a
    /// share of the asked rate.
    fn lane(rate: Rate, is_floor: bool, latency_ns: u64, share: f64) -> Lane {
        let mut lane = Lane::new(rate, rate.per_second(1e6), is_floor);
        let mut slice = crate::histogram::Histogram::new();
        for _ in 0..20_000 {
            slice.record_ns(latency_ns);
        }
        lane.response.add(&slice, SystemTime::now());
        lane.service.add(&slice, SystemTime::now());
        let length = Duration::from_secs(1);
        lane.carried = Carried {
            asked: 20_000,
            length_ns: crate::histogram::saturating_ns(length),
            answered: 20_000,
            elapsed_ns: crate::histogram::saturating_ns(length.div_f64(share)),
        };
        lane
    }

    fn report(rates: &[Rate], lanes: &[Lane]) -> Report {
        let mut report = Report::begun(RunHeader::now(Cores {
            client: 0,
            broker: 1,
        }));
        summarise(&plan(rates), lanes, "spin", &mut report);
        report
    }

    #[test]
    fn a_load_below_its_share_fails_and_claims_no_latency() {
        let rate = Rate::Percent(50.0);
        let lanes = [
            lane(rate, true, 10_000, 1.0),
            lane(rate, false, 13_000, 0.994),
        ];
        let report = report(&[rate], &lanes);
        let [floor, broker] = &report.loads[..] else {
            panic!("{:?}", report.loads)
        };
        assert_eq!(floor.outcome, Outcome::Carried);
        assert!(floor.response.is_some() && floor.log_tag_response.is_some());
        assert_eq!(broker.outcome, Outcome::Fail);
        let json = serde_json::to_value(broker).unwrap();
        for claim in [
            "response",
            "service",
            "ratio_p50",
            "ratio_p99",
            "log_tag_response",
        ] {
            assert!(json.get(claim).is_none(), "{claim} in {json}");
        }
        let text = report.to_string();
        let row = text
            .lines()
            .find(|line| line.starts_with("produce to ack"))
            .unwrap();
        assert!(row.contains("FAIL") && !row.contains("µs"), "{row}");
        assert!(text.contains("p99 at 50 % has no ratio"), "{text}");
    }

    #[test]
    fn loads_that_were_carried_stand_beside_the_floor_and_each_other() {
        let rates = [
            Rate::Percent(10.0),
            Rate::Percent(50.0),
            Rate::Percent(90.0),
        ];
        let lanes: Vec<Lane> = rates
            .iter()
            .zip([12_000, 14_000, 30_000])
            .flat_map(|(rate, latency)| {
                [
                    lane(*rate, true, 10_000, 1.0),
                    lane(*rate, false, latency, 0.996),
                ]
            })
            .collect();
        let report = report(&rates, &lanes);
        assert_eq!(report.loads.len(), 6);
        let ratio = report.loads[3].ratio_p99.unwrap();
        assert!((ratio - 1.4).abs() < 0.01, "{ratio}");
        let text = report.to_string();
        for line in [
            "p99 at 50 % over the floor's p99 at the same load: 1.40",
            "p99 at 90 % over p99 at 10 %: 2.50",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        let json = serde_json::to_string(&report).unwrap();
        let again: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(again.loads, report.loads);
    }

    #[test]
    fn slices_are_short_enough_for_memory_at_any_rate() {
        let plan = plan(&[]);
        let frame = units::to_f64(frame_bytes(64) as u64);
        for per_second in [1e3, 1e5, 1e7] {
            let bytes = plan.slice_at(per_second).as_secs_f64() * per_second * frame;
            assert!(bytes <= units::to_f64(SLICE_BYTES) * 1.001, "{bytes}");
        }
        assert_eq!(plan.slice_at(1e3), SLICE_MAX);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let refusal = |payloads: &[u32], seconds| {
            let options = Options {
                payloads: payloads.to_vec(),
                duration: Some(Duration::from_secs_f64(seconds)),
                ..Options::default()
            };
            Plan::of(&options).map(drop).unwrap_err().to_string()
        };
        assert!(refusal(&[64, 256], 60.0).contains("one size"));
        assert!(refusal(&[4], 60.0).contains("4 bytes"));
        assert!(refusal(&[64], 0.5).starts_with("seconds: 0.5 s leave"));
    }
}
