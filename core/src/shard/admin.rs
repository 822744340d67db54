//! What an administrator may ask a shard.

use super::{Rejection, Shard};
use crate::auth::{self, Operation, Target};
use crate::error::Refusal;
use crate::frame::control::{Stats, StatsRow};
use crate::frame::padded;
use crate::id::{DestinationNumber, Handle, RequestId};
use crate::limits;
use crate::memory::CHUNK;
use crate::time::Now;
use zerocopy::IntoBytes;

/// An answer that takes more than one frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    link: Handle,
    request: RequestId,
    /// The next destination.
    next: usize,
    /// Waits for room on its link.
    waits: bool,
}

impl Report {
    pub(super) fn is_for(&self, link: Handle) -> bool {
        self.link == link
    }
}

/// Bytes of rows in one frame: a few fit the room that answers have on a link.
const ROWS_SIZE_MAX: usize = limits::CONTROL_SIZE_MAX as usize / 4;

impl Shard {
    /// Answers with the counters; the destinations follow in the frames of the
    /// next turns.
    pub(super) fn stats(
        &mut self,
        now: Now,
        link: Handle,
        request: RequestId,
    ) -> Result<(), Rejection> {
        let principal = self.principal(link);
        auth::authorize(principal, Operation::Observe, Target::Broker)?;
        if self.reports.iter().any(|report| report.is_for(link)) {
            return Err(Refusal::ResourceAllocation.into());
        }
        let counters = self.counters.all();
        let mut tail = Vec::with_capacity(counters.len() * 8);
        for counter in counters {
            tail.extend_from_slice(&counter.to_le_bytes());
        }
        let fields = Stats {
            counters: u32::try_from(counters.len()).unwrap_or(u32::MAX).into(),
            remaining: u32::try_from(self.catalog.entries().len())
                .unwrap_or(u32::MAX)
                .into(),
            ..Stats::default()
        };
        self.answer(now, link, request.0, &fields, &[&tail])?;
        if !self.catalog.entries().is_empty() {
            self.reports.push_back(Report {
                link,
                request,
                next: 0,
                waits: false,
            });
        }
        Ok(())
    }

    /// Continues one answer by a frame.
    #[inline]
    pub(super) fn report(&mut self, now: Now) {
        if !self.reports.is_empty() {
            self.report_next(now);
        }
    }

    /// Whether [`Shard::report`] would find something to do.
    #[inline]
    pub(super) fn can_report(&self) -> bool {
        !self.reports.is_empty() && self.reports.iter().any(|report| !report.waits)
    }

    #[cold]
    fn report_next(&mut self, now: Now) {
        let Some(next) = self.reports.iter().position(|report| !report.waits) else {
            return;
        };
        let Some(mut report) = self.reports.remove(next) else {
            return;
        };
        let Some(link) = self.links.get_mut(report.link) else {
            return;
        };
        let has_room = link.egress.has_room_for_delivery(ROWS_SIZE_MAX);
        if !has_room || link.answers_wait {
            link.starved |= !has_room;
            report.waits = true;
            self.reports.push_back(report);
            return;
        }
        let mut tail = Vec::with_capacity(ROWS_SIZE_MAX);
        let mut rows = 0u32;
        while report.next < self.catalog.entries().len() {
            let entry = &self.catalog.entries()[report.next];
            let name = entry.destination.name.as_bytes();
            if tail.len() + size_of::<StatsRow>() + padded(name.len()) > ROWS_SIZE_MAX {
                break;
            }
            tail.extend_from_slice(self.row(report.next).as_bytes());
            tail.extend_from_slice(name);
            tail.resize(padded(tail.len()), 0);
            rows += 1;
            report.next += 1;
        }
        let remaining = self.catalog.entries().len() - report.next;
        let fields = Stats {
            rows: rows.into(),
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX).into(),
            ..Stats::default()
        };
        if let Err(fault) = self.answer(now, report.link, report.request.0, &fields, &[&tail]) {
            self.fault(now, report.link, &fault);
        } else if remaining > 0 {
            self.reports.push_back(report);
        }
    }

    /// There is room on a link again.
    pub(super) fn report_again(&mut self, link: Handle) {
        for report in &mut self.reports {
            report.waits &= !report.is_for(link);
        }
    }

    fn row(&self, index: usize) -> StatsRow {
        let number = DestinationNumber(u32::try_from(index).unwrap_or(u32::MAX));
        let entry = self.catalog.entry(number);
        let local = &self.locals[number];
        let unsettled = local
            .partitions
            .iter()
            .flat_map(|partition| {
                let log = &partition.log;
                partition
                    .parts
                    .iter()
                    .map(|(_, part)| part.backlog(&self.arena, log))
            })
            .sum::<u64>();
        StatsRow {
            destination: entry.destination.kind as u8,
            name_length: u16::try_from(entry.destination.name.len())
                .unwrap_or(0)
                .into(),
            partitions: entry.shape.partitions.into(),
            stored: local.stored.into(),
            unsettled: unsettled.into(),
            bytes: ((local.chunks() * CHUNK) as u64).into(),
            producers: local.producers.into(),
            consumers: local.consumers.into(),
            subscriptions: u32::try_from(local.subscriptions.len())
                .unwrap_or(u32::MAX)
                .into(),
            ..StatsRow::default()
        }
    }
}
