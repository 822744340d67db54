//! Processor time of a broker that sleeps when it can: with nothing to do, and for a
//! message at a load that does not fill a core.
//!
//! ```text
//!   idle         0 connections | 1,000 connections      the shard's thread, and
//!                                                       the door's, over time
//!   a message    floor | broker | broker | floor ..     the serving thread's time
//!                100,000 messages a second, open loop   over the messages
//! ```
//!
//! The broker is adaptive, as it starts by default: measured busy it would take its
//! core whole. The floor is an echo that sleeps in `epoll_wait`. Time is what the
//! kernel accounts for the serving thread; what interrupts do on its behalf is in it
//! for both alike.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use courser_core::counters::Counter;

use super::books::{close, connect};
use super::open::{BrokerLoad, Carried, FloorLoad, Schedule, Times};
use super::target::Target;
use super::{Options, Rate};
use crate::compare::PairedRatio;
use crate::cpu_time;
use crate::cpu_use::{IdleUse, MessageUse};
use crate::descriptors;
use crate::error::BenchError;
use crate::floor::{EchoKind, PipelineFloor, frame_bytes};
use crate::histogram::saturating_ns;
use crate::load::Outcome;
use crate::pin::{self, Cores};
use crate::progress::Progress;
use crate::report::{Books, Mode, Report, RunHeader};
use crate::units;
use crate::watch::Watch;

/// The load and the connections of goals G9 and G19.
const RATE: f64 = 100_000.0;
const CONNECTIONS: u32 = 1_000;

const PAYLOAD_BYTES: u32 = 64;
const WINDOW: u32 = 1024;
const DURATION: Duration = Duration::from_secs(30);

/// Fewer pairs of slices carry no interval.
const PAIRS: u32 = 12;

/// The kernel charges a thread that runs at ticks of a few milliseconds.
const SLICE_MIN: Duration = Duration::from_millis(100);

/// What connections cost while they are opened is over after this.
const SETTLE: Duration = Duration::from_millis(500);

/// The thread that lets connections in.
const DOOR: &str = "courser-door";

/// Measures both.
///
/// # Errors
/// See [`super::run`]; also if the kernel does not account for single threads.
pub(super) fn run(plan: &Plan, cores: Cores, target: &Target) -> Result<Report, BenchError> {
    let shard = target.thread().ok_or(BenchError::NoThreadTime)?;
    pin::pin_current_thread(cores.client)?;
    let mut header = RunHeader::now(cores);
    header.plan = plan.to_string();
    header.broker = Some(target.describe());
    let progress = Progress::new(3 + u64::from(2 * PAIRS));
    progress.next("ring and gaps");
    let aside = plan.duration.mul_f64(0.02);
    let watch = Watch::begin(cores, aside, aside)?;
    progress.done();
    let mut report = Report::begun(header);
    for connections in [0, plan.connections] {
        progress.next(&format!("idle with {connections} connections"));
        report
            .idle
            .push(idle(connections, plan.idle(), shard, target)?);
        progress.done();
    }
    let mut broker = BrokerLoad::new(target, plan.payload, WINDOW);
    let measured = messages(plan, cores, target, &mut broker, &mut report, &progress);
    let mut ledger = broker.ledger;
    ledger.close();
    report.books.push(Books {
        workload: "produce to ack, open loop".to_owned(),
        payload_bytes: plan.payload,
        mode: Mode::Poll,
        ledger,
    });
    super::run::conclude(&mut report, measured)?;
    report.conditions = watch.end(&mut report.notes)?;
    Ok(report)
}

/// What is measured, and for how long.
pub(super) struct Plan {
    payload: u32,
    per_second: f64,
    connections: u32,
    duration: Duration,
}

impl Plan {
    /// Checks the options.
    ///
    /// # Errors
    /// If they ask for what cannot be measured.
    pub(super) fn of(options: &Options) -> Result<Self, BenchError> {
        let refuse = |option, problem: &str| {
            Err(BenchError::Option {
                option,
                problem: problem.to_owned(),
            })
        };
        if options.connect.is_some() {
            return refuse(
                "connect",
                "the processor time of a broker is known for one in this process only",
            );
        }
        let payload = match options.payloads[..] {
            [] => PAYLOAD_BYTES,
            [payload] => payload,
            _ => return refuse("payload", "one size at a time"),
        };
        if !(super::PAYLOAD_BYTES_MIN..=super::run::PAYLOAD_BYTES_MAX).contains(&payload) {
            return Err(super::run::payload_out_of_range(payload));
        }
        let per_second = match options.rates[..] {
            [] => RATE,
            [Rate::PerSecond(per_second)] => per_second,
            _ => return refuse("rate", "one load in messages per second, such as 100k"),
        };
        let plan = Self {
            payload,
            per_second,
            connections: options.connections.unwrap_or(CONNECTIONS),
            duration: options.duration.unwrap_or(DURATION),
        };
        if plan.slice() < SLICE_MIN {
            return refuse("seconds", "slices would be too short; ask for 8 s or more");
        }
        Ok(plan)
    }

    /// How long the broker is watched without work, with and without connections.
    fn idle(&self) -> Duration {
        self.duration / 5
    }

    fn slice(&self) -> Duration {
        self.duration / 2 / (2 * PAIRS)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "idle for {:.1} s each with 0 and {} connections; then {PAIRS} pairs of slices of {} \
             at {} of {}, floor and broker in turn, A B B A",
            self.idle().as_secs_f64(),
            units::count(self.connections.into()),
            units::nanoseconds(self.slice().as_secs_f64() * 1e9),
            units::per_second(self.per_second),
            units::bytes(u64::from(self.payload)),
        )
    }
}

fn idle(
    connections: u32,
    watched: Duration,
    shard: u32,
    target: &Target,
) -> Result<IdleUse, BenchError> {
    descriptors::reserve(u64::from(connections) * descriptors::PER_CONNECTION)?;
    let address: SocketAddr = target.address();
    let clients = (0..connections)
        .map(|_| connect(address))
        .collect::<Result<Vec<_>, _>>()?;
    thread::sleep(SETTLE);
    let door = cpu_time::thread_named(DOOR);
    let look = || {
        (
            Instant::now(),
            cpu_time::of_thread(shard),
            door.and_then(cpu_time::of_thread),
            [Counter::Turns, Counter::Sleeps].map(|counter| target.count(counter).unwrap_or(0)),
        )
    };
    let before = look();
    thread::sleep(watched);
    let after = look();
    let elapsed = (after.0 - before.0).as_secs_f64();
    let share = |before: Option<Duration>, after: Option<Duration>| {
        Some((after? - before?).as_secs_f64() / elapsed)
    };
    let per_second = |index: usize| units::to_f64(after.3[index] - before.3[index]) / elapsed;
    let used = IdleUse {
        connections,
        seconds: elapsed,
        shard_share: share(before.1, after.1).ok_or(BenchError::NoThreadTime)?,
        door_share: share(before.2, after.2),
        turns_per_s: per_second(0),
        sleeps_per_s: per_second(1),
    };
    for client in clients {
        close(client)?;
    }
    Ok(used)
}

/// One of the two that are compared, with what it has shown.
#[derive(Default)]
struct Lane {
    carried: Carried,
    cpu: Duration,
    /// Nanoseconds for a message, in the order of the slices.
    each_ns: Vec<Option<f64>>,
}

impl Lane {
    fn add(&mut self, carried: &Carried, cpu: Option<Duration>) {
        self.carried.add(carried);
        self.cpu += cpu.unwrap_or_default();
        self.each_ns.push(
            cpu.filter(|_| carried.answered > 0)
                .map(|cpu| units::to_f64(saturating_ns(cpu)) / units::to_f64(carried.answered)),
        );
    }

    fn cpu_ns_per_message(&self) -> Option<f64> {
        (self.carried.answered > 0 && self.each_ns.iter().all(Option::is_some))
            .then(|| units::to_f64(saturating_ns(self.cpu)) / units::to_f64(self.carried.answered))
    }
}

fn messages(
    plan: &Plan,
    cores: Cores,
    target: &Target,
    broker: &mut BrokerLoad<'_>,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), BenchError> {
    let frame = frame_bytes(plan.payload as usize);
    let mut floor = FloorLoad::new(PipelineFloor::start_kind(
        EchoKind::EpollBlocking,
        cores,
        frame,
    )?);
    let schedule = Schedule::at_rate(plan.per_second, saturating_ns(plan.slice()), 0);
    let mut times = Times::default();
    let [mut on_floor, mut on_broker] = [(); 2].map(|()| Lane::default());
    let mut on = |is_floor: bool, broker: &mut BrokerLoad<'_>| {
        if is_floor {
            let carried = floor.slice(&schedule, u64::from(WINDOW), &mut times)?;
            Ok::<_, BenchError>((carried, floor.cpu))
        } else {
            let carried = broker.slice(&schedule, &mut times)?;
            target.rest();
            Ok((carried, broker.cpu))
        }
    };
    for is_floor in [true, false] {
        on(is_floor, broker)?;
    }
    for pair in 0..PAIRS {
        // A B B A: a drift of the machine meets both alike.
        let floor_first = pair % 2 == 0;
        for is_floor in [floor_first, !floor_first] {
            progress.next(if is_floor { "floor" } else { "produce to ack" });
            let (carried, cpu) = on(is_floor, broker)?;
            let lane = if is_floor {
                &mut on_floor
            } else {
                &mut on_broker
            };
            lane.add(&carried, cpu);
            progress.done();
        }
    }
    report
        .messages
        .extend(summarise(plan, &on_floor, &on_broker));
    Ok(())
}

fn summarise(plan: &Plan, floor: &Lane, broker: &Lane) -> [MessageUse; 2] {
    let both_enough = floor.carried.is_enough() && broker.carried.is_enough();
    [(floor, true), (broker, false)].map(|(lane, is_floor)| {
        let enough = lane.carried.is_enough();
        let each = lane.cpu_ns_per_message().filter(|_| enough);
        let compared = both_enough && !is_floor;
        MessageUse {
            workload: if is_floor {
                format!("floor {}", EchoKind::EpollBlocking)
            } else {
                "produce to ack".to_owned()
            },
            payload_bytes: plan.payload,
            asked_msgs_per_s: plan.per_second,
            achieved_msgs_per_s: lane.carried.per_second(),
            outcome: if enough {
                Outcome::Carried
            } else {
                Outcome::Fail
            },
            messages: lane.carried.answered,
            cpu_ns_per_message: each,
            share: each.map(|each| each * lane.carried.per_second() / 1e9),
            ratio: each
                .filter(|_| compared)
                .zip(floor.cpu_ns_per_message())
                .map(|(own, floor)| own / floor),
            paired: compared
                .then(|| PairedRatio::of(&broker.each_ns, &floor.each_ns))
                .flatten(),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn lane(each_ns: u32, share: f64) -> Lane {
        let mut lane = Lane::default();
        for _ in 0..PAIRS {
            let carried = Carried {
                asked: 1_000,
                length_ns: 10_000_000,
                answered: 1_000,
                elapsed_ns: saturating_ns(Duration::from_millis(10).div_f64(share)),
            };
            lane.add(&carried, Some(Duration::from_nanos(1_000) * each_ns));
        }
        lane
    }

    #[test]
    fn a_message_costs_the_threads_time_over_the_messages_beside_the_floors() {
        let plan = Plan::of(&Options::default()).unwrap();
        let [floor, broker] = summarise(&plan, &lane(6_000, 1.0), &lane(9_000, 1.0));
        assert_eq!(floor.cpu_ns_per_message, Some(6_000.0));
        assert_eq!(floor.ratio, None);
        assert!((broker.ratio.unwrap() - 1.5).abs() < 1e-9);
        assert!((broker.share.unwrap() - 0.9).abs() < 1e-9);
        assert_eq!(broker.paired.unwrap().pairs, PAIRS as usize);
    }

    #[test]
    fn a_load_that_was_not_carried_has_no_time() {
        let plan = Plan::of(&Options::default()).unwrap();
        let [floor, broker] = summarise(&plan, &lane(6_000, 1.0), &lane(9_000, 0.9));
        assert_eq!(broker.outcome, Outcome::Fail);
        assert_eq!(broker.cpu_ns_per_message, None);
        assert!(broker.ratio.is_none() && broker.paired.is_none());
        assert!(floor.cpu_ns_per_message.is_some());
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let refusal = |options: Options| Plan::of(&options).map(drop).unwrap_err().to_string();
        let percent = Options {
            rates: vec![Rate::Percent(50.0)],
            ..Options::default()
        };
        assert!(refusal(percent).starts_with("rate: one load"));
        let short = Options {
            duration: Some(Duration::from_secs(1)),
            ..Options::default()
        };
        assert!(refusal(short).starts_with("seconds:"));
    }
}
