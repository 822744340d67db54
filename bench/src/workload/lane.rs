//! One thing at one payload, with what it has shown so far.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use super::end_to_end::EndToEnd;
use super::round_trip::{RoundTrip, Wait};
use super::target::Target;
use super::throughput::{Learn, Throughput};
use crate::error::BenchError;
use crate::floor::stream::{CHUNK_BYTES, Rate};
use crate::floor::{EchoKind, RelayFloor, RoundTripFloor, StreamFloor, frame_bytes};
use crate::histogram::Histogram;
use crate::ledger::Ledger;
use crate::pin::Cores;
use crate::report::Mode;
use crate::series::{LatencySeries, RateSeries};
use crate::units;

/// How long each kind of floor is tried before the fastest is chosen.
pub(super) const CALIBRATION_SLICE: Duration = Duration::from_millis(25);

/// How many successive windows have to agree for a warm-up to be over.
const SETTLED_WINDOWS: usize = 3;

/// How far they may lie apart.
const SETTLED_WITHIN: f64 = 0.02;

/// One thing at one payload.
pub(super) struct Lane {
    pub(super) payload: u32,
    pub(super) instrument: Instrument,
    /// Whether its warm-up came to an end before its time was over.
    pub(super) settled: bool,
}

/// What is measured. Floors and the broker's workloads stand side by side.
pub(super) enum Instrument {
    Echo {
        floor: RoundTripFloor,
        series: LatencySeries,
        /// The second of two of one kind, there to be compared with the first.
        again: bool,
    },
    Relay {
        floor: RelayFloor,
        to_consumer: LatencySeries,
        to_ack: LatencySeries,
    },
    Stream {
        floor: StreamFloor,
        series: RateSeries,
    },
    RoundTrip {
        workload: RoundTrip,
        series: LatencySeries,
    },
    EndToEnd {
        workload: EndToEnd,
        to_consumer: LatencySeries,
        to_ack: LatencySeries,
    },
    Throughput {
        workload: Throughput,
        series: RateSeries,
    },
}

/// Where every slice puts what it shows, used anew.
#[derive(Default)]
pub(super) struct Scratch {
    first: Histogram,
    second: Histogram,
    rate: Rate,
}

impl Scratch {
    fn clear(&mut self) {
        self.first.clear();
        self.second.clear();
        self.rate = Rate::default();
    }
}

/// How long a lane may warm up, and in which steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct WarmUp {
    pub(super) window: Duration,
    pub(super) limit: Duration,
}

impl Lane {
    /// Produce to ack and its floor: the fastest echo twice, to know the noise.
    pub(super) fn round_trips(
        payload: u32,
        address: SocketAddr,
        cores: Cores,
    ) -> Result<Vec<Self>, BenchError> {
        let frame = frame_bytes(payload as usize);
        let (floor, _) = RoundTripFloor::calibrate(cores, frame, CALIBRATION_SLICE)?;
        let kind: EchoKind = floor.kind();
        let echo = |floor, again| Instrument::Echo {
            floor,
            series: LatencySeries::default(),
            again,
        };
        let again = RoundTripFloor::start(kind, cores.broker, frame)?;
        let round_trip = |wait| Instrument::RoundTrip {
            workload: RoundTrip::new(address, payload, wait),
            series: LatencySeries::default(),
        };
        let instruments = [
            echo(again, true),
            echo(floor, false),
            round_trip(Wait::Polling),
            round_trip(Wait::Blocking),
        ];
        Ok(Self::of(payload, instruments))
    }

    /// Producer to consumer and the relay.
    pub(super) fn end_to_end(
        payload: u32,
        address: SocketAddr,
        cores: Cores,
    ) -> Result<Vec<Self>, BenchError> {
        let instruments = [
            Instrument::Relay {
                floor: RelayFloor::start(cores.broker, frame_bytes(payload as usize))?,
                to_consumer: LatencySeries::default(),
                to_ack: LatencySeries::default(),
            },
            Instrument::EndToEnd {
                workload: EndToEnd::new(address, payload),
                to_consumer: LatencySeries::default(),
                to_ack: LatencySeries::default(),
            },
        ];
        Ok(Self::of(payload, instruments))
    }

    /// Acknowledged messages per second and the stream.
    pub(super) fn throughputs(
        payload: u32,
        address: SocketAddr,
        cores: Cores,
    ) -> Result<Vec<Self>, BenchError> {
        let frame = frame_bytes(payload as usize);
        let throughput = |learn| Instrument::Throughput {
            workload: Throughput::new(address, payload, learn),
            series: RateSeries::default(),
        };
        let instruments = [
            Instrument::Stream {
                floor: StreamFloor::calibrate(cores, frame, CHUNK_BYTES, CALIBRATION_SLICE)?,
                series: RateSeries::default(),
            },
            throughput(Learn::Polling),
            throughput(Learn::Listening),
        ];
        Ok(Self::of(payload, instruments))
    }

    fn of(payload: u32, instruments: impl IntoIterator<Item = Instrument>) -> Vec<Self> {
        instruments
            .into_iter()
            .map(|instrument| Self {
                payload,
                instrument,
                settled: false,
            })
            .collect()
    }

    /// Runs unrecorded until successive windows agree or the time is over.
    pub(super) fn warm_up(
        &mut self,
        warm_up: WarmUp,
        target: &Target,
        scratch: &mut Scratch,
    ) -> Result<(), BenchError> {
        let began = Instant::now();
        let mut windows: Vec<f64> = Vec::new();
        while !self.settled && began.elapsed() + warm_up.window <= warm_up.limit {
            windows.extend(self.measure(warm_up.window, target, scratch)?);
            self.settled = agree(&windows);
        }
        Ok(())
    }

    /// Runs for `duration` and keeps what it shows.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        target: &Target,
        scratch: &mut Scratch,
    ) -> Result<(), BenchError> {
        let began = SystemTime::now();
        self.measure(duration, target, scratch)?;
        match &mut self.instrument {
            Instrument::Echo { series, .. } | Instrument::RoundTrip { series, .. } => {
                series.add(&scratch.first, began);
            }
            Instrument::Relay {
                to_consumer,
                to_ack,
                ..
            }
            | Instrument::EndToEnd {
                to_consumer,
                to_ack,
                ..
            } => {
                to_consumer.add(&scratch.first, began);
                to_ack.add(&scratch.second, began);
            }
            Instrument::Stream { series, .. } | Instrument::Throughput { series, .. } => {
                series.add(&scratch.rate);
            }
        }
        Ok(())
    }

    /// Runs for `duration` into `scratch`, puts what ran to rest, and returns the
    /// one figure by which windows are compared.
    fn measure(
        &mut self,
        duration: Duration,
        target: &Target,
        scratch: &mut Scratch,
    ) -> Result<Option<f64>, BenchError> {
        scratch.clear();
        let Scratch {
            first,
            second,
            rate,
        } = scratch;
        match &mut self.instrument {
            Instrument::Echo { floor, .. } => floor.slice(duration, first).map(drop)?,
            Instrument::Relay { floor, .. } => floor.slice(duration, first, second).map(drop)?,
            Instrument::Stream { floor, .. } => *rate = floor.slice(duration)?,
            Instrument::RoundTrip { workload, .. } => workload.slice(duration, first)?,
            Instrument::EndToEnd { workload, .. } => workload.slice(duration, first, second)?,
            Instrument::Throughput { workload, .. } => *rate = workload.slice(duration)?,
        }
        if !self.is_floor() {
            target.rest();
        }
        Ok(match &self.instrument {
            Instrument::Stream { .. } | Instrument::Throughput { .. } => Some(rate.msgs_per_s()),
            _ => first.quantile_ns(0.5).map(units::to_f64),
        })
    }

    /// The books of a lane of the broker; a floor has none.
    pub(super) fn ledger(&self) -> Option<Ledger> {
        match &self.instrument {
            Instrument::RoundTrip { workload, .. } => Some(workload.ledger()),
            Instrument::EndToEnd { workload, .. } => Some(workload.ledger()),
            Instrument::Throughput { workload, .. } => Some(workload.ledger()),
            Instrument::Echo { .. } | Instrument::Relay { .. } | Instrument::Stream { .. } => None,
        }
    }

    /// True if there is no broker in it.
    pub(super) fn is_floor(&self) -> bool {
        matches!(
            self.instrument,
            Instrument::Echo { .. } | Instrument::Relay { .. } | Instrument::Stream { .. }
        )
    }

    /// How its results are called.
    pub(super) fn workload(&self) -> &'static str {
        match &self.instrument {
            Instrument::Echo { .. } => "floor round trip",
            Instrument::Relay { .. } => "floor relay",
            Instrument::Stream { .. } => "floor stream",
            Instrument::RoundTrip { .. } => "produce to ack",
            Instrument::EndToEnd { .. } => "produce to consume",
            Instrument::Throughput { .. } => "produce pipelined",
        }
    }

    /// How its client waits.
    pub(super) fn mode(&self) -> Mode {
        match &self.instrument {
            Instrument::RoundTrip { workload, .. } if workload.wait() == Wait::Blocking => {
                Mode::Blocking
            }
            Instrument::Throughput { workload, .. } if workload.learn() == Learn::Listening => {
                Mode::Async
            }
            _ => Mode::Poll,
        }
    }

    /// For the progress bar and for messages.
    pub(super) fn name(&self) -> String {
        format!(
            "{}, {}, {}",
            self.workload(),
            units::bytes(u64::from(self.payload)),
            self.mode()
        )
    }
}

/// True if the last windows lie close together.
pub(super) fn agree(windows: &[f64]) -> bool {
    let Some(last) = windows.last_chunk::<SETTLED_WINDOWS>() else {
        return false;
    };
    let low = last.iter().copied().fold(f64::INFINITY, f64::min);
    let high = last.iter().copied().fold(0.0, f64::max);
    low > 0.0 && high / low <= 1.0 + SETTLED_WITHIN
}
