//! What a load is put on: the broker over a connection of its own for each slice, or
//! an echo.

use std::time::{Duration, Instant};

use super::generator::{Carried, Schedule, Service, Times, drive};
use crate::compare::median;
use crate::cpu_time;
use crate::error::BenchError;
use crate::floor::{PipelineFloor, frame_bytes};
use crate::ledger::Ledger;
use crate::progress::Progress;
use crate::workload::books::Sender;
use crate::workload::patience::Patience;
use crate::workload::queue_name;
use crate::workload::target::Target;

/// Bytes of one burst.
const BURST_BYTES: usize = 32 << 20;

/// Bursts of which the middle one is the saturation, the first left out.
pub(super) const SATURATION_BURSTS: usize = 6;

/// The broker under load.
pub(in crate::workload) struct BrokerLoad<'a> {
    target: &'a Target,
    queue: String,
    body: Vec<u8>,
    window: u32,
    /// Every message so far.
    pub(in crate::workload) ledger: Ledger,
    /// Processor time of the shard while it was under load, if the kernel tells.
    pub(in crate::workload) cpu: Option<Duration>,
}

impl<'a> BrokerLoad<'a> {
    pub(in crate::workload) fn new(target: &'a Target, payload: u32, window: u32) -> Self {
        Self {
            target,
            queue: queue_name("open"),
            body: vec![0xA5; payload as usize],
            window,
            ledger: Ledger::new(),
            cpu: None,
        }
    }

    /// Messages per second with the window always full.
    pub(in crate::workload) fn saturation(
        &mut self,
        progress: &Progress,
    ) -> Result<f64, BenchError> {
        let messages = (BURST_BYTES / frame_bytes(self.body.len())).max(1) as u64;
        let mut rates = Vec::new();
        let mut times = Times::default();
        for _ in 0..SATURATION_BURSTS {
            progress.next("saturation");
            let carried = self.slice(&Schedule::saturating(messages), &mut times)?;
            self.target.rest();
            rates.push(carried.per_second());
            progress.done();
        }
        // The first has faulted memory in.
        let mut rates = rates.split_off(1);
        rates.sort_unstable_by(f64::total_cmp);
        Ok(median(&rates))
    }

    /// Puts the load on a connection of its own and takes out what was stored.
    pub(in crate::workload) fn slice(
        &mut self,
        schedule: &Schedule,
        times: &mut Times,
    ) -> Result<Carried, BenchError> {
        let sender = Sender::open_with_window(
            self.target.address(),
            &self.queue,
            &self.ledger,
            self.window,
        )?;
        let mut load = SenderLoad {
            sender: &sender,
            body: &mut self.body,
            ledger: &mut self.ledger,
            clock: Instant::now(),
            patience: Patience::default(),
        };
        let thread = self.target.thread();
        let before = thread.and_then(cpu_time::of_thread);
        let carried = drive(&mut load, schedule, u64::from(self.window), times)?;
        self.cpu = since(before, thread);
        sender.take_backlog(&self.queue, self.body.len(), &mut self.ledger)?;
        sender.close()?;
        Ok(carried)
    }
}

/// One connection under load.
struct SenderLoad<'a> {
    sender: &'a Sender,
    body: &'a mut [u8],
    ledger: &'a mut Ledger,
    clock: Instant,
    patience: Patience,
}

impl Service for SenderLoad<'_> {
    #[inline]
    fn now_ns(&mut self) -> u64 {
        crate::histogram::saturating_ns(self.clock.elapsed())
    }

    #[inline]
    fn take(&mut self) -> Result<bool, BenchError> {
        self.sender.try_enqueue(self.body, self.ledger)
    }

    #[inline]
    fn write(&mut self) -> Result<(), BenchError> {
        self.sender.write();
        Ok(())
    }

    #[inline]
    fn answer(&mut self) -> Result<bool, BenchError> {
        if self.sender.completion(self.ledger) {
            self.patience = Patience::default();
            return Ok(true);
        }
        self.patience.look()?;
        Ok(false)
    }
}

/// The floor under load.
pub(in crate::workload) struct FloorLoad {
    pub(in crate::workload) floor: PipelineFloor,
    clock: Instant,
    patience: Patience,
    /// Processor time of the echo while it was under load, if the kernel tells.
    pub(in crate::workload) cpu: Option<Duration>,
}

impl FloorLoad {
    pub(in crate::workload) fn new(floor: PipelineFloor) -> Self {
        Self {
            floor,
            clock: Instant::now(),
            patience: Patience::default(),
            cpu: None,
        }
    }

    /// Puts the load on the echo.
    pub(in crate::workload) fn slice(
        &mut self,
        schedule: &Schedule,
        window: u64,
        times: &mut Times,
    ) -> Result<Carried, BenchError> {
        self.floor.resume();
        self.patience = Patience::default();
        let thread = self.floor.thread();
        let before = thread.and_then(cpu_time::of_thread);
        let carried = drive(self, schedule, window, times)?;
        self.cpu = since(before, thread);
        self.floor.pause()?;
        Ok(carried)
    }
}

impl Service for FloorLoad {
    #[inline]
    fn now_ns(&mut self) -> u64 {
        crate::histogram::saturating_ns(self.clock.elapsed())
    }

    #[inline]
    fn take(&mut self) -> Result<bool, BenchError> {
        self.floor.enqueue();
        Ok(true)
    }

    #[inline]
    fn write(&mut self) -> Result<(), BenchError> {
        self.floor.write()
    }

    #[inline]
    fn answer(&mut self) -> Result<bool, BenchError> {
        if self.floor.reply()? {
            self.patience = Patience::default();
            return Ok(true);
        }
        self.patience.look()?;
        Ok(false)
    }
}

fn since(before: Option<Duration>, thread: Option<u32>) -> Option<Duration> {
    Some(cpu_time::of_thread(thread?)?.saturating_sub(before?))
}
