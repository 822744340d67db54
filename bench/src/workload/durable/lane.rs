//! One thing that is measured beside others, with what it has shown so far.

use std::time::{Duration, Instant, SystemTime};

use super::super::lane::{WarmUp, agree};
use super::super::round_trip::{RoundTrip, Wait};
use super::super::target::Target;
use super::group::Group;
use super::journal::Batches;
use crate::error::BenchError;
use crate::floor::stream::Rate;
use crate::floor::{DurableFloor, RoundTripFloor};
use crate::histogram::{Histogram, saturating_ns};
use crate::ledger::Ledger;
use crate::report::{Books, Measurement, Mode, Report};
use crate::series::LatencySeries;
use crate::units;

/// One thing at one size.
pub(super) struct Lane<'a> {
    payload: u32,
    instrument: Instrument<'a>,
    pub(super) series: LatencySeries,
    /// What passed in all slices, where that is counted.
    total: Rate,
    /// Writes or messages per second, in the order of the slices.
    pub(super) rates: Vec<Option<f64>>,
    /// Messages for each write of the journal, in the order of the slices.
    pub(super) per_write: Vec<Option<f64>>,
    /// Of all slices, the warm-up included.
    pub(super) batches: Batches,
    settled: bool,
}

/// What is measured.
pub(super) enum Instrument<'a> {
    /// The socket's part of the floor.
    Echo(RoundTripFloor),
    /// The device's part; there are two of a kind, to be compared with each other.
    Flush { floor: DurableFloor, again: bool },
    /// One producer, one message in flight.
    RoundTrip(RoundTrip, &'a Target),
    /// Many producers with full windows.
    Group(Group, &'a Target),
}

impl<'a> Lane<'a> {
    pub(super) fn new(payload: u32, instrument: Instrument<'a>) -> Self {
        Self {
            payload,
            instrument,
            series: LatencySeries::default(),
            total: Rate::default(),
            rates: Vec::new(),
            per_write: Vec::new(),
            batches: Batches::default(),
            settled: false,
        }
    }

    /// Runs unrecorded until successive windows agree or the time is over.
    pub(super) fn warm_up(
        &mut self,
        warm_up: WarmUp,
        scratch: &mut Histogram,
    ) -> Result<(), BenchError> {
        let began = Instant::now();
        let mut windows: Vec<f64> = Vec::new();
        // Once at least: what a broker writes is learnt here.
        while windows.is_empty()
            || (!self.settled && began.elapsed() + warm_up.window <= warm_up.limit)
        {
            self.measure(warm_up.window, scratch)?;
            let p50 = scratch.quantile_ns(0.5).map_or(0.0, units::to_f64);
            windows.push(p50);
            self.settled = agree(&windows);
        }
        Ok(())
    }

    /// Runs for `duration` and keeps what it shows.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        scratch: &mut Histogram,
    ) -> Result<(), BenchError> {
        let began = SystemTime::now();
        let (rate, batches) = self.measure(duration, scratch)?;
        self.series.add(scratch, began);
        self.total.add(&rate);
        self.rates
            .push(Some(rate.msgs_per_s()).filter(|rate| *rate > 0.0));
        self.per_write.push(batches.messages_per_write());
        Ok(())
    }

    fn measure(
        &mut self,
        duration: Duration,
        scratch: &mut Histogram,
    ) -> Result<(Rate, Batches), BenchError> {
        scratch.clear();
        let mut rate = Rate::default();
        let mut batches = Batches::default();
        match &mut self.instrument {
            Instrument::Echo(floor) => floor.slice(duration, scratch).map(drop)?,
            Instrument::Flush { floor, .. } => {
                let began = Instant::now();
                floor.slice(duration, scratch)?;
                let writes = scratch.samples();
                rate = Rate {
                    messages: writes,
                    bytes: writes * u64::from(floor.bytes()),
                    elapsed: began.elapsed(),
                };
            }
            Instrument::RoundTrip(workload, target) => {
                let (before, sent) = (Batches::so_far(target), workload.ledger().sent);
                workload.slice(duration, scratch)?;
                target.rest();
                let messages = workload.ledger().sent - sent;
                batches = Batches::so_far(target).since(before, messages);
            }
            Instrument::Group(group, target) => {
                let carried = group.slice(duration, target, scratch)?;
                target.rest();
                (rate, batches) = (carried.rate, carried.batches);
            }
        }
        self.batches.add(batches);
        Ok((rate, batches))
    }

    /// Its closed books, if a broker took part.
    pub(super) fn books(&self) -> Option<Books> {
        let ledger = match &self.instrument {
            Instrument::Echo(_) | Instrument::Flush { .. } => return None,
            Instrument::RoundTrip(workload, _) => {
                let mut ledger: Ledger = workload.ledger();
                ledger.close();
                ledger
            }
            Instrument::Group(group, _) => group.closed_ledger(),
        };
        Some(Books {
            workload: self.workload().to_owned(),
            payload_bytes: self.payload,
            mode: self.mode(),
            ledger,
        })
    }

    /// What it has shown about latency.
    pub(super) fn latency(&self) -> Measurement {
        self.named(
            self.series
                .measurement(self.workload(), self.size(), self.mode())
                .settled(self.settled),
        )
    }

    /// What it has shown about rates.
    pub(super) fn rate(&self) -> Measurement {
        let rate = Measurement::rate(self.workload(), self.size(), self.mode(), self.total);
        self.named(rate.with_slices(&self.rates))
    }

    /// Adds a floor's latency to the report.
    pub(super) fn report_latency(&self, report: &mut Report) {
        report.push_latency(self.latency(), &self.series);
    }

    fn named(&self, measurement: Measurement) -> Measurement {
        match &self.instrument {
            Instrument::Echo(floor) => measurement.of_kind(floor.kind()),
            Instrument::Flush { floor, again } => {
                let suffix = if *again { " again" } else { "" };
                measurement.of_kind(format!("{}{suffix}", floor.kind()))
            }
            Instrument::RoundTrip(..) => measurement,
            Instrument::Group(..) => measurement.of_kind(format!(
                "{} producers, window {}",
                super::group::PRODUCERS,
                super::group::WINDOW
            )),
        }
    }

    /// Bytes of body, or of a write.
    fn size(&self) -> u32 {
        match &self.instrument {
            Instrument::Flush { floor, .. } => floor.bytes(),
            _ => self.payload,
        }
    }

    fn mode(&self) -> Mode {
        match &self.instrument {
            Instrument::RoundTrip(workload, _) if workload.wait() == Wait::Blocking => {
                Mode::Blocking
            }
            _ => Mode::Poll,
        }
    }

    /// How its results are called.
    pub(super) fn workload(&self) -> &'static str {
        match &self.instrument {
            Instrument::Echo(_) => "floor round trip",
            Instrument::Flush { .. } => "floor flush",
            Instrument::RoundTrip(..) => "produce to flushed ack",
            Instrument::Group(..) => "produce to flushed ack, pipelined",
        }
    }

    /// For the progress bar.
    pub(super) fn name(&self) -> String {
        format!(
            "{}, {}, {}",
            self.workload(),
            units::bytes(u64::from(self.size())),
            self.mode()
        )
    }

    /// Nanoseconds as a sum with another lane's, slice by slice.
    pub(super) fn p50s_with(&self, other: &Self) -> Vec<Option<f64>> {
        let pairs = self.series.p50s_ns.iter().zip(&other.series.p50s_ns);
        pairs
            .map(|(one, other)| Some((*one)? + (*other)?))
            .collect()
    }

    /// The p50 of all slices together.
    pub(super) fn p50_ns(&self) -> Option<u64> {
        self.series.percentiles().p50_ns
    }
}

/// For messages per second out of writes per second.
pub(super) fn products(one: &[Option<f64>], other: &[Option<f64>]) -> Vec<Option<f64>> {
    let pairs = one.iter().zip(other);
    pairs
        .map(|(one, other)| Some((*one)? * (*other)?))
        .collect()
}

/// How long something took.
pub(super) fn elapsed_ns(since: Instant) -> f64 {
    units::to_f64(saturating_ns(since.elapsed()))
}
