//! The counters and all destinations, in as many frames as they need.

use super::ROWS_SIZE_MAX;
use crate::auth::{self, Operation, Target};
use crate::catalog::Entry;
use crate::error::Refusal;
use crate::frame::control::{Stats, StatsRow};
use crate::frame::padded;
use crate::id::{Handle, RequestId};
use crate::memory::CHUNK;
use crate::shard::{Rejection, Shard};
use crate::time::Now;
use zerocopy::IntoBytes;

/// An answer that takes more than one frame.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Report {
    link: Handle,
    request: RequestId,
    /// The slot of the next destination.
    next: usize,
    /// Waits for room on its link.
    waits: bool,
}

impl Report {
    pub(in crate::shard) fn is_for(&self, link: Handle) -> bool {
        self.link == link
    }
}

impl Shard {
    /// Answers with the counters; the destinations follow in the frames of the
    /// next turns.
    pub(in crate::shard) fn stats(
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
            remaining: u32::try_from(self.catalog.len()).unwrap_or(u32::MAX).into(),
            ..Stats::default()
        };
        self.answer(now, link, request.0, &fields, &[&tail])?;
        if !self.catalog.is_empty() {
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
    pub(in crate::shard) fn report(&mut self, now: Now) {
        if !self.reports.is_empty() {
            self.report_next(now);
        }
    }

    /// Whether [`Shard::report`] would find something to do.
    #[inline]
    pub(in crate::shard) fn can_report(&self) -> bool {
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
        let mut entries = self.catalog.entries_from(report.next).peekable();
        while let Some(entry) = entries.peek() {
            let name = entry.destination.name.as_bytes();
            if tail.len() + size_of::<StatsRow>() + padded(name.len()) > ROWS_SIZE_MAX {
                report.next = entry.number.slot();
                break;
            }
            tail.extend_from_slice(self.row(entry).as_bytes());
            tail.extend_from_slice(name);
            tail.resize(padded(tail.len()), 0);
            rows += 1;
            entries.next();
        }
        let remaining = entries.count();
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
    pub(in crate::shard) fn report_again(&mut self, link: Handle) {
        for report in &mut self.reports {
            report.waits &= !report.is_for(link);
        }
    }

    fn row(&self, entry: &Entry) -> StatsRow {
        let local = &self.locals[entry.number];
        StatsRow {
            destination: entry.destination.kind as u8,
            name_length: u16::try_from(entry.destination.name.len())
                .unwrap_or(0)
                .into(),
            partitions: entry.shape.partitions.into(),
            stored: local.stored.into(),
            unsettled: self.unsettled_of(local).into(),
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
