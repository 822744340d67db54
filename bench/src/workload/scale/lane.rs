//! One thing at one size, with what it has shown so far.

use std::time::{Duration, Instant, SystemTime};

use super::super::lane::{WarmUp, agree};
use super::super::round_trip::RoundTrip;
use super::super::target::Target;
use super::super::throughput::Throughput;
use super::crowd::Crowd;
use crate::error::BenchError;
use crate::floor::stream::Rate;
use crate::histogram::Histogram;
use crate::ledger::Ledger;
use crate::report::{Books, Mode, Report};
use crate::series::{LatencySeries, RateSeries};
use crate::units;

/// One thing at one size.
pub(super) struct Lane<'a> {
    /// Its size, in words.
    pub(super) kind: String,
    /// The broker that it is measured with; a floor has none.
    target: Option<&'a Target>,
    instrument: Instrument,
    settled: bool,
}

/// What is measured.
enum Instrument {
    RoundTrip {
        workload: RoundTrip,
        series: LatencySeries,
    },
    Throughput {
        workload: Throughput,
        series: RateSeries,
    },
    Crowd {
        crowd: Box<Crowd>,
        series: RateSeries,
    },
}

/// Where every slice puts what it shows, used anew.
#[derive(Default)]
pub(super) struct Scratch {
    histogram: Histogram,
    rate: Rate,
}

impl<'a> Lane<'a> {
    pub(super) fn round_trips(kind: String, target: &'a Target, workload: RoundTrip) -> Self {
        Self::new(
            kind,
            Some(target),
            Instrument::RoundTrip {
                workload,
                series: LatencySeries::default(),
            },
        )
    }

    pub(super) fn throughput(kind: String, target: &'a Target, workload: Throughput) -> Self {
        Self::new(
            kind,
            Some(target),
            Instrument::Throughput {
                workload,
                series: RateSeries::default(),
            },
        )
    }

    pub(super) fn crowd(suffix: &str, target: Option<&'a Target>, crowd: Crowd) -> Self {
        Self::new(
            format!("{} connections{suffix}", crowd.len()),
            target,
            Instrument::Crowd {
                crowd: Box::new(crowd),
                series: RateSeries::default(),
            },
        )
    }

    fn new(kind: String, target: Option<&'a Target>, instrument: Instrument) -> Self {
        Self {
            kind,
            target,
            instrument,
            settled: false,
        }
    }

    /// Goes on with another broker, from the next slice on: a lane that connects anew
    /// for each.
    pub(super) fn move_to(&mut self, target: &'a Target) {
        match &mut self.instrument {
            Instrument::RoundTrip { workload, .. } => workload.move_to(target.address()),
            Instrument::Throughput { .. } | Instrument::Crowd { .. } => return,
        }
        self.target = Some(target);
    }

    /// Deletes the queue of a lane that is done.
    pub(super) fn delete_queue(&self) -> Result<(), BenchError> {
        match &self.instrument {
            Instrument::RoundTrip { workload, .. } => workload.delete_queue(),
            Instrument::Throughput { workload, .. } => workload.delete_queue(),
            Instrument::Crowd { .. } => Ok(()),
        }
    }

    /// Runs unrecorded until successive windows agree or the time is over.
    pub(super) fn warm_up(
        &mut self,
        warm_up: WarmUp,
        scratch: &mut Scratch,
    ) -> Result<(), BenchError> {
        let began = Instant::now();
        let mut windows: Vec<f64> = Vec::new();
        self.settled = false;
        while !self.settled && began.elapsed() + warm_up.window <= warm_up.limit {
            windows.extend(self.measure(warm_up.window, scratch)?);
            self.settled = agree(&windows);
        }
        Ok(())
    }

    /// Runs for `duration` and keeps what it shows.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), BenchError> {
        let began = SystemTime::now();
        self.measure(duration, scratch)?;
        match &mut self.instrument {
            Instrument::RoundTrip { series, .. } => series.add(&scratch.histogram, began),
            Instrument::Throughput { series, .. } | Instrument::Crowd { series, .. } => {
                series.add(&scratch.rate);
            }
        }
        Ok(())
    }

    /// Runs for `duration` into `scratch`, puts what ran to rest, and returns the one
    /// figure by which windows are compared.
    fn measure(
        &mut self,
        duration: Duration,
        scratch: &mut Scratch,
    ) -> Result<Option<f64>, BenchError> {
        scratch.histogram.clear();
        let figure = match &mut self.instrument {
            Instrument::RoundTrip { workload, .. } => {
                workload.slice(duration, &mut scratch.histogram)?;
                scratch.histogram.quantile_ns(0.5).map(units::to_f64)
            }
            Instrument::Throughput { workload, .. } => {
                scratch.rate = workload.slice(duration)?;
                Some(scratch.rate.msgs_per_s())
            }
            Instrument::Crowd { crowd, .. } => {
                scratch.rate = crowd.slice(duration)?;
                Some(scratch.rate.msgs_per_s())
            }
        };
        if let Some(target) = self.target {
            target.rest();
        }
        Ok(figure)
    }

    /// The figure of each slice: its p50 in nanoseconds, or messages per second.
    pub(super) fn figures(&self) -> &[Option<f64>] {
        match &self.instrument {
            Instrument::RoundTrip { series, .. } => &series.p50s_ns,
            Instrument::Throughput { series, .. } | Instrument::Crowd { series, .. } => {
                &series.rates
            }
        }
    }

    /// Its closed books, if a broker took part.
    pub(super) fn books(&self, payload: u32) -> Option<Books> {
        let ledger = self.closed_ledger()?;
        Some(Books {
            workload: format!("{}, {}", self.workload(), self.kind),
            payload_bytes: payload,
            mode: Mode::Poll,
            ledger,
        })
    }

    /// Adds what it has shown to the report.
    pub(super) fn report(&self, payload: u32, report: &mut Report) {
        match &self.instrument {
            Instrument::RoundTrip { series, .. } => {
                let measurement = series
                    .measurement(self.workload(), payload, Mode::Poll)
                    .of_kind(&self.kind)
                    .settled(self.settled);
                report.push_latency(measurement, series);
            }
            Instrument::Throughput { series, .. } | Instrument::Crowd { series, .. } => {
                let measurement = series
                    .measurement(self.workload(), payload, Mode::Poll)
                    .of_kind(&self.kind)
                    .settled(self.settled);
                report.results.push(measurement);
            }
        }
    }

    fn closed_ledger(&self) -> Option<Ledger> {
        let mut ledger = match &self.instrument {
            Instrument::RoundTrip { workload, .. } => workload.ledger(),
            Instrument::Throughput { workload, .. } => workload.ledger(),
            Instrument::Crowd { crowd, .. } => return crowd.closed_ledger(),
        };
        ledger.close();
        Some(ledger)
    }

    fn workload(&self) -> &'static str {
        match &self.instrument {
            Instrument::RoundTrip { .. } => "produce to ack",
            Instrument::Throughput { .. } => "produce pipelined",
            Instrument::Crowd { crowd, .. } if crowd.is_floor() => "floor epoll-busy",
            Instrument::Crowd { .. } => "produce to ack",
        }
    }
}
