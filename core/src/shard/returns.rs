//! Returns: messages that consumers give back, at once or after a rest.
//!
//! ```text
//! Return ─> part ─ at once ──────────> ready ─> whoever is free
//!             `─ resting, the earliest first ──> at its time, ready
//!                  `- one entry here for each part in which something rests
//! ```
//!
//! A part knows when each of its messages returns, within the bound on what is
//! unsettled; here stands only when each part has something to do next, so the
//! list is as long as there are such parts. Deadlines are of the monotonic clock:
//! a step of the wall clock moves none of them.

use core::time::Duration;

use zerocopy::FromBytes;

use super::{Fault, Shard};
use crate::counters::Counter;
use crate::frame::control::{AckRun, Return};
use crate::id::{DestinationNumber, Handle, Offset, PartitionIndex};
use crate::limits;
use crate::time::Now;

/// A return with this option rests first.
const OPTION_REST: u32 = 1;

/// A part: of which subscription, in which partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartAddress {
    pub(super) destination: DestinationNumber,
    pub(super) partition: PartitionIndex,
    pub(super) subscription: Handle,
}

impl Shard {
    /// A consumer gives messages back. What it does not hold stays as it is.
    pub(super) fn give_back(
        &mut self,
        now: Now,
        link: Handle,
        handle: Handle,
        fields: &Return,
        tail: &[u8],
    ) -> Result<(), Fault> {
        let consumer = self.consumer_on(link, handle)?;
        if consumer.gather().is_some() {
            return self.give_back_at_source(now, handle, fields, tail);
        }
        let address = PartAddress {
            destination: consumer.destination(),
            partition: PartitionIndex(fields.partition.get()),
            subscription: consumer.subscription(),
        };
        let Some(part) = self.part_mut(address) else {
            return Ok(());
        };
        let delay = Duration::from_micros(fields.delay.get()).min(limits::RETURN_DELAY_MAX);
        let rests = fields.options.get() & OPTION_REST != 0;
        let rest = |count: u16| rests.then(|| now.monotonic.after(delay.max(rest_after(count))));
        let before = part.next_return();
        let mut back = 0;
        for run in tail.chunks_exact(size_of::<AckRun>()) {
            let Ok(run) = AckRun::ref_from_bytes(run) else {
                break;
            };
            back += part.give_back(handle, Offset(run.first.get()), run.count.get(), rest);
        }
        let after = part.next_return();
        let frees = part.frees();
        self.returns.moved(address, before, after);
        self.counters.add(Counter::MessagesGivenBack, back.into());
        for run in tail.chunks_exact(size_of::<AckRun>()) {
            if let Ok(run) = AckRun::ref_from_bytes(run) {
                let run = (Offset(run.first.get()), run.count.get());
                self.journal_returned(&address, run);
            }
        }
        if back > 0 && (!rests || frees) {
            self.queue(address.destination, address.partition);
        }
        Ok(())
    }

    /// Time has passed: what has rested enough is ready again.
    pub(super) fn end_rests(&mut self, now: Now) {
        while let Some(address) = self.returns.take(now.monotonic) {
            let Some(part) = self.part_mut(address) else {
                continue;
            };
            part.end_rest(now.monotonic);
            let after = part.next_return();
            self.returns.moved(address, None, after);
            self.queue(address.destination, address.partition);
        }
    }
}

/// How long a message rests at least that was handed out so often.
fn rest_after(count: u16) -> Duration {
    let doublings = u32::from(count.saturating_sub(1)).min(31);
    limits::RETURN_WAIT_MIN
        .saturating_mul(1 << doublings)
        .min(limits::RETURN_WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_doubles_with_each_delivery_up_to_its_limit() {
        let seconds = |count| rest_after(count).as_secs();
        assert_eq!(
            [seconds(0), seconds(1), seconds(2), seconds(3)],
            [1, 1, 2, 4]
        );
        assert_eq!(
            [seconds(9), seconds(10), seconds(u16::MAX)],
            [256, 300, 300]
        );
    }
}
