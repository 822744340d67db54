//! A bit of a journal or of a checkpoint that is read as it was not written.
//!
//! Whoever reads has to notice, or need nothing of it. In one place nobody can: batches of
//! which none that follows says that they were durable, and that are not whole, are what a
//! cut leaves of writes, and are cut off.

use courser_core::id::BatchNumber;
use courser_core::journal::batch::{Batch, Header};
use courser_core::journal::recover::Plan;
use courser_core::journal::survey::Slot;

use super::Disk;
use crate::random::{self, Random};
use crate::violation::{Rule, Violation};

impl Disk {
    /// Reads all once more, with one bit wrong; whether that was noticed.
    pub(super) fn misread(&self, random: &mut Random, plan: &Plan) -> Result<bool, Violation> {
        match &self.checkpoint {
            Some(image) if plan.steps.is_empty() || random.chance(1, 4) => {
                self.misread_checkpoint(random, image)
            }
            _ if plan.steps.is_empty() => Ok(false),
            _ => self.misread_journal(random, plan),
        }
    }

    fn misread_journal(&self, random: &mut Random, plan: &Plan) -> Result<bool, Violation> {
        let step = &plan.steps[random.index(plan.steps.len())];
        let image = &self.files[&step.slot].written;
        let headers: Vec<Header> = (step.batches(image).flatten())
            .map(|batch| batch.header)
            .collect();
        let Some(last) = headers.last() else {
            return Ok(false);
        };
        let batch = &headers[random.index(headers.len())];
        let at = match random.below(8) {
            // What says whose file it is, too.
            0 => random.range(0, last.end() - 1),
            _ => random.range(batch.position, batch.position + u64::from(batch.length) - 1),
        };
        let mut wrong = image.clone();
        flip(random, &mut wrong, at);
        let images = |slot| match slot == step.slot {
            true => &wrong[..],
            false => &self.files[&slot].written,
        };
        let Ok(found) = self.plan_of(images) else {
            return Ok(true);
        };
        let before = headers.iter().rev().find(|header| header.position <= at);
        let hit = before.unwrap_or(&headers[0]).label.number;
        if found.kept < plan.kept && found.kept.next() == hit && hit > self.known_by_the_last(plan)
        {
            return Ok(true);
        }
        let written = |slot| &self.files[&slot].written[..];
        let as_written = all_of(plan, written).unwrap_or_default();
        let Some(as_read) = all_of(&found, images) else {
            return Ok(true);
        };
        let is_same = |(one, other): (&Batch<'_>, &Batch<'_>)| {
            one.header.label == other.header.label && one.entries().eq(other.entries())
        };
        let mut pairs = as_written.iter().zip(&as_read);
        if as_written.len() == as_read.len() && pairs.all(is_same) {
            // Nothing of it is needed.
            return Ok(false);
        }
        let slot = step.slot;
        Err(self.unnoticed(&format!("{slot} at {at}: {found:?} instead of {plan:?}")))
    }

    /// The highest batch of which another one says that it was durable.
    fn known_by_the_last(&self, plan: &Plan) -> BatchNumber {
        let step = plan.steps.last();
        let last = step.and_then(|step| step.batches(&self.files[&step.slot].written).last());
        let last = last.and_then(Result::ok);
        last.map_or(BatchNumber(0), |batch| batch.header.label.durable_before)
    }

    fn misread_checkpoint(&self, random: &mut Random, image: &[u8]) -> Result<bool, Violation> {
        let at = random.range(0, image.len() as u64 - 1);
        let mut wrong = image.to_vec();
        flip(random, &mut wrong, at);
        let Some(as_read) = self.all_of_checkpoint(&wrong) else {
            return Ok(true);
        };
        if Some(as_read) == self.all_of_checkpoint(image) {
            return Ok(false);
        }
        Err(self.unnoticed(&format!("a checkpoint at {at}")))
    }

    /// Every entry of a checkpoint, unless something is wrong with it.
    fn all_of_checkpoint(&self, image: &[u8]) -> Option<Vec<String>> {
        let mut all = Vec::new();
        let told = self.tell_checkpoint_of(image, |entry| {
            all.push(format!("{entry:?}"));
            Ok(())
        });
        told.ok().map(|()| all)
    }

    fn unnoticed(&self, what: &str) -> Violation {
        let journal = self.identity.journal.0;
        Violation::new(Rule::Misread, format!("journal {journal}, {what}"))
    }
}

fn flip(random: &mut Random, bytes: &mut [u8], at: u64) {
    bytes[random::size(at)] ^= 1 << random.below(8);
}

/// Every batch of a plan, unless one is not there.
fn all_of<'a>(plan: &Plan, images: impl Fn(Slot) -> &'a [u8]) -> Option<Vec<Batch<'a>>> {
    let steps = plan.steps.iter();
    let batches = steps.flat_map(|step| step.batches(images(step.slot)));
    batches.collect::<Result<_, _>>().ok()
}
