//! What the files of a journal come to.
//!
//! ```text
//!   surveys of all files ---> decide ---> Plan: which batches are read, in which order,
//!                               |               what was cut, where the next run goes on
//!                               +-------> Damage: where, what, and what to do
//! ```
//!
//! Runs are read one behind the other, each run's files by their sequence, its batches
//! by their number. Where the next one, k, is not found, in that file or at the front
//! of another one of the run:
//!
//! - something of the run that was written later knew k to be durable: damage;
//! - the next run kept k, or more: damage;
//! - otherwise k's write was cut short, perhaps with that of k + 1: all from there on
//!   is cut, and the next run follows.
//!
//! A file whose header cannot be read is one that was not begun, unless a batch in it
//! says otherwise in the same manner.
//!
//! Nothing is written here, nor changed because of it before the next run's first file
//! says what was kept: so the same files give the same plan however often they are
//! read. What was read may be in the page cache only: whoever acts on a plan flushes
//! the files first.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use core::fmt;

use super::advice;
use super::batch::Batch;
use super::entry::Malformed;
use super::file::{self, FIRST_BATCH, Unreadable};
use super::survey::{Slot, Survey, Witness, from};
use super::{Identity, Origin, Start};
use crate::id::{BatchNumber, FileSequence, JournalNumber, Run};
use crate::planted::Planted;

/// What is read of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The journal.
    pub identity: Identity,
    /// Stretches of its files, in the order of their batches.
    pub steps: Vec<Step>,
    /// What was cut.
    pub tails: Vec<Tail>,
    /// Batches that are whole and were left out, since a later run had gone on without
    /// them.
    pub left_out: u64,
    /// The last batch that is kept; the next run's first one follows it.
    pub kept: BatchNumber,
    /// The next file's sequence.
    pub sequence_next: FileSequence,
    /// The highest run that left something.
    pub run_last: Run,
    /// Files of which nothing is needed: they may be used again at once.
    pub spare: Vec<Slot>,
    /// All others, in the order of their sequences.
    pub needed: Vec<(FileSequence, Slot)>,
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The file.
    pub slot: Slot,
    /// Its sequence.
    pub sequence: FileSequence,
    /// Who wrote it.
    pub origin: Origin,
    /// Where its first batch stands.
    pub position: u64,
    /// The first one's number.
    pub first: BatchNumber,
    /// The last one's; never below the first.
    pub last: BatchNumber,
}

/// The end of a run's writes, cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Whose.
    pub run: Run,
    /// The file where what is cut begins.
    pub slot: Slot,
    /// Where in it.
    pub position: u64,
    /// From there on, to where the last batch that is cut would have ended, over all
    /// files.
    pub bytes: u64,
    /// The first batch that is missing.
    pub number: BatchNumber,
    /// Batches that had begun to be written.
    pub batches: u32,
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {}: cut {} bytes from batch {} on, which run {} had begun and not finished",
            self.slot, self.position, self.bytes, self.number, self.run
        )
    }
}

/// A file that is not as its writer left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub slot: Slot,
    /// Where in it, in bytes.
    pub position: u64,
    /// What is wrong there.
    pub what: Wrong,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is of a version that this broker does not read.
    Newer {
        /// Which.
        version: u16,
    },
    /// It belongs to another journal or another broker.
    Foreign {
        /// To which.
        identity: Identity,
    },
    /// Its header says what cannot be.
    Header,
    /// Its header cannot be read, and a batch in it was known to be durable.
    HeaderLost {
        /// Why it cannot.
        why: Unreadable,
        /// The batch.
        number: BatchNumber,
    },
    /// Another file says that it is the same one.
    Twice {
        /// The other one.
        other: Slot,
        /// Which they both are.
        sequence: FileSequence,
    },
    /// It and another file contradict each other about the run that wrote them.
    Contradiction {
        /// The other one.
        other: Slot,
    },
    /// No file is the one in which a checkpoint says that the journal begins.
    FileMissing {
        /// Which.
        sequence: FileSequence,
    },
    /// The batch that belongs there is not, and something written later knew it to be
    /// durable.
    BatchMissing {
        /// Which.
        number: BatchNumber,
        /// Which batch knew it.
        known_by: BatchNumber,
        /// Where that one is.
        slot: Slot,
        /// Where in it, in bytes.
        position: u64,
    },
    /// The batch that belongs there is not, and a later run had read it.
    BatchLost {
        /// Which.
        number: BatchNumber,
        /// The run.
        run: Run,
        /// What it kept.
        recovered: BatchNumber,
    },
    /// A batch is not any more what it was when the file was looked through.
    Changed {
        /// Which.
        number: BatchNumber,
    },
    /// An entry of a batch that is whole makes no sense.
    Entry {
        /// Which batch.
        number: BatchNumber,
        /// Why not.
        malformed: Malformed,
    },
}

impl Damage {
    /// What to do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self.what {
            Wrong::Newer { .. }
            | Wrong::Entry {
                malformed: Malformed::Newer { .. },
                ..
            } => advice::NEWER,
            Wrong::Foreign { .. } | Wrong::Twice { .. } | Wrong::Contradiction { .. } => {
                advice::FOREIGN
            }
            Wrong::FileMissing { .. } => advice::MISSING,
            Wrong::Changed { .. } => {
                "see that nothing else writes to the data directory, and check the device"
            }
            Wrong::Header
            | Wrong::HeaderLost { .. }
            | Wrong::BatchMissing { .. }
            | Wrong::BatchLost { .. }
            | Wrong::Entry { .. } => advice::DAMAGED,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            slot,
            position,
            what,
        } = self;
        write!(f, "{slot} at {position}: ")?;
        match what {
            Wrong::Newer { version } => {
                write!(
                    f,
                    "the file is of version {version}, this broker reads {}",
                    file::VERSION
                )
            }
            Wrong::Foreign { identity } => write!(
                f,
                "the file belongs to journal {} of installation {}",
                identity.journal, identity.installation
            ),
            Wrong::Header => f.write_str("the file's header says what cannot be"),
            Wrong::HeaderLost { why, number } => {
                write!(f, "{why}, and batch {number} in it had been durable")
            }
            Wrong::Twice { other, sequence } => {
                write!(
                    f,
                    "both this file and {other} say that they are number {sequence}"
                )
            }
            Wrong::Contradiction { other } => {
                write!(
                    f,
                    "the headers of this file and of {other} contradict each other"
                )
            }
            Wrong::FileMissing { sequence } => {
                write!(
                    f,
                    "the journal begins in file number {sequence}, which is missing"
                )
            }
            Wrong::BatchMissing {
                number,
                known_by,
                slot,
                position,
            } => write!(
                f,
                "batch {number} belongs there and cannot be read; it was durable when batch \
                 {known_by} was written, at {position} of {slot}"
            ),
            Wrong::BatchLost {
                number,
                run,
                recovered,
            } => write!(
                f,
                "batch {number} belongs there and cannot be read; run {run} had read all up to \
                 {recovered}"
            ),
            Wrong::Changed { number } => {
                write!(
                    f,
                    "batch {number} was there a moment ago and cannot be read now"
                )
            }
            Wrong::Entry { number, malformed } => {
                write!(f, "in batch {number}, {malformed}")
            }
        }
    }
}

impl std::error::Error for Damage {}

/// What to read of a journal whose files these are, all of them, each with a slot of
/// its own and surveyed with the same `start`.
///
/// # Errors
///
/// If a part of what had been durable is missing or cannot be understood.
pub fn decide(
    identity: &Identity,
    start: Option<&Start>,
    surveys: &[Survey],
) -> Result<Plan, Damage> {
    let (named, strays) = sorted(identity, surveys)?;
    let mut decision = Decision {
        expected: start.map_or(BatchNumber(1), |start| start.number),
        begun: BatchNumber(start.map_or(0, |start| start.number.0.saturating_sub(1))),
        place: None,
        plan: Plan {
            identity: *identity,
            steps: Vec::new(),
            tails: Vec::new(),
            left_out: 0,
            kept: BatchNumber(0),
            sequence_next: FileSequence(1),
            run_last: Run(0),
            spare: Vec::new(),
            needed: Vec::new(),
        },
    };
    if let Some(last) = named.last() {
        decision.plan.sequence_next = FileSequence(last.header.sequence.0.saturating_add(1));
        decision.plan.run_last = last.header.origin.run;
    }
    let first = match start {
        Some(start) => named.partition_point(|file| file.header.sequence < start.sequence),
        None => 0,
    };
    let needed = named.get(first..).unwrap_or_default();
    if let Some(start) = start {
        let there = needed.first();
        if there.is_none_or(|file| file.header.sequence != start.sequence) {
            return Err(Damage {
                slot: there.map_or(Slot(0), |file| file.survey.slot),
                position: 0,
                what: Wrong::FileMissing {
                    sequence: start.sequence,
                },
            });
        }
    }
    let mut before: Option<&[Named<'_>]> = None;
    for run in needed.chunk_by(|one, next| one.header.origin.run == next.header.origin.run) {
        decision.enter(start.is_some(), before, run)?;
        decision.read(run, &strays)?;
        before = Some(run);
    }
    decision.dismiss(&strays)?;
    let mut plan = decision.plan;
    plan.kept = BatchNumber(decision.expected.0.saturating_sub(1));
    // A checkpoint names the first file as long as it counts, whatever is behind it.
    let checkpoint = start.and(needed.first()).map(|file| file.survey.slot);
    let is_needed = |survey: &&Survey| {
        let read = plan.steps.iter().any(|step| step.slot == survey.slot);
        // What was cut of the last run stays as it is until a next one has said so for
        // good: what is written over it could make it whole.
        let cut = survey.chain.is_some() || survey.behind.batches > 0;
        let last = |header: file::Header| header.origin.run == plan.run_last;
        read || checkpoint == Some(survey.slot) || (cut && survey.header.is_ok_and(last))
    };
    let spare = surveys.iter().filter(|survey| !is_needed(survey));
    plan.spare = spare.map(|survey| survey.slot).collect();
    let is_spare = |file: &&Named<'_>| plan.spare.contains(&file.survey.slot);
    let needed = named.iter().filter(|file| !is_spare(file));
    plan.needed = needed
        .map(|file| (file.header.sequence, file.survey.slot))
        .collect();
    Ok(plan)
}

/// A file whose header can be read.
#[derive(Clone, Copy)]
struct Named<'a> {
    header: file::Header,
    survey: &'a Survey,
}

/// A file whose header cannot be read, and what a batch in it knew.
#[derive(Clone, Copy)]
struct Stray<'a> {
    why: Unreadable,
    witness: Witness,
    survey: &'a Survey,
}

/// The files in the order of their sequence, and those without a header.
fn sorted<'a>(
    identity: &Identity,
    surveys: &'a [Survey],
) -> Result<(Vec<Named<'a>>, Vec<Stray<'a>>), Damage> {
    let mut named = Vec::with_capacity(surveys.len());
    let mut strays = Vec::new();
    for survey in surveys {
        let wrong = |what| Damage {
            slot: survey.slot,
            position: 0,
            what,
        };
        match survey.header {
            Ok(header) if header.origin.identity == *identity => {
                named.push(Named { header, survey });
            }
            Ok(header) => {
                return Err(wrong(Wrong::Foreign {
                    identity: header.origin.identity,
                }));
            }
            Err(Unreadable::Version { version }) => return Err(wrong(Wrong::Newer { version })),
            Err(Unreadable::Impossible) => return Err(wrong(Wrong::Header)),
            Err(why) => strays.extend(survey.witness.map(|witness| Stray {
                why,
                witness,
                survey,
            })),
        }
    }
    named.sort_by_key(|file| (file.header.sequence, file.survey.slot));
    for (one, next) in named.iter().zip(named.iter().skip(1)) {
        let wrong = |what| Damage {
            slot: next.survey.slot,
            position: 0,
            what,
        };
        let other = one.survey.slot;
        let (one, next) = (one.header, next.header);
        if one.sequence == next.sequence {
            return Err(wrong(Wrong::Twice {
                other,
                sequence: one.sequence,
            }));
        }
        let agree = if one.origin.run == next.origin.run {
            one.origin == next.origin && one.recovered == next.recovered
        } else {
            one.origin.run < next.origin.run
        };
        if !agree {
            return Err(wrong(Wrong::Contradiction { other }));
        }
    }
    Ok((named, strays))
}

/// A plan on its way.
struct Decision {
    plan: Plan,
    /// The batch that comes next.
    expected: BatchNumber,
    /// The last batch that a checkpoint stands for.
    begun: BatchNumber,
    /// Where it would have stood in the run that was read last.
    place: Option<(Slot, u64)>,
}

impl Decision {
    /// Goes over to a run, which knows what it kept of those before.
    fn enter(
        &mut self,
        checkpoint: bool,
        before: Option<&[Named<'_>]>,
        run: &[Named<'_>],
    ) -> Result<(), Damage> {
        let Some(file) = run.first() else {
            return Ok(());
        };
        let recovered = file.header.recovered;
        if recovered >= self.expected {
            // What it kept was there once.
            let (slot, position) = self.place.unwrap_or((file.survey.slot, 0));
            return Err(Damage {
                slot,
                position,
                what: Wrong::BatchLost {
                    number: self.expected,
                    run: file.header.origin.run,
                    recovered,
                },
            });
        }
        if before.is_none() && checkpoint {
            return Ok(());
        }
        if recovered.next() < self.expected {
            let contradiction = |other: &Named<'_>| Damage {
                slot: file.survey.slot,
                position: 0,
                what: Wrong::Contradiction {
                    other: other.survey.slot,
                },
            };
            if let Some(other) = before.and_then(<[_]>::first)
                && recovered < other.header.recovered.max(self.begun)
            {
                // The run before, or a checkpoint, had kept more than this one did later.
                return Err(contradiction(other));
            }
            let dropped = self.expected.0.saturating_sub(recovered.next().0);
            self.plan.left_out = self.plan.left_out.saturating_add(dropped);
            self.plan.steps.retain(|step| step.first <= recovered);
            if let Some(step) = self.plan.steps.last_mut() {
                step.last = step.last.min(recovered);
            }
            self.expected = recovered.next();
        }
        Ok(())
    }

    /// Takes what there is of a run.
    fn read(&mut self, run: &[Named<'_>], strays: &[Stray<'_>]) -> Result<(), Damage> {
        let mut rest = run;
        let mut last = None;
        while let Some((file, behind)) = rest.split_first() {
            if let Some(chain) = file.survey.chain
                && chain.first == self.expected
            {
                self.plan.steps.push(Step {
                    slot: file.survey.slot,
                    sequence: file.header.sequence,
                    origin: file.header.origin,
                    position: file.survey.start,
                    first: chain.first,
                    last: chain.last,
                });
                self.expected = chain.last.next();
                last = Some(rest);
            }
            rest = behind;
        }
        // The file that was read last, and those behind it.
        let rest = last.unwrap_or(run);
        let (slot, position) = place(rest, self.plan.steps.last());
        self.place = Some((slot, position));
        let missing = |slot: Slot, witness: &Witness| Damage {
            slot,
            position,
            what: Wrong::BatchMissing {
                number: self.expected,
                known_by: witness.number,
                slot,
                position: witness.position,
            },
        };
        let knows = |witness: &&Witness| {
            // What a fuzzer has to find: a word about exactly what is missing goes unheard.
            if Planted::RecoverHearsLess.is_awake() {
                return witness.durable_before > self.expected;
            }
            witness.durable_before >= self.expected
        };
        for file in run {
            if let Some(witness) = file.survey.witness.as_ref().filter(knows) {
                let mut damage = missing(file.survey.slot, witness);
                damage.slot = slot;
                return Err(damage);
            }
        }
        let origin = run.first().map(|file| file.header.origin);
        for stray in strays {
            if Some(stray.witness.origin) == origin && knows(&&stray.witness) {
                return Err(stray.lost());
            }
        }
        self.cut(rest, slot, position);
        Ok(())
    }

    /// Notes what is cut of a run, if it left anything behind what was read.
    fn cut(&mut self, rest: &[Named<'_>], slot: Slot, position: u64) {
        let mut tail = Tail {
            run: Run(0),
            slot,
            position,
            bytes: 0,
            number: self.expected,
            batches: 0,
        };
        for file in rest {
            let survey = file.survey;
            tail.run = file.header.origin.run;
            let mut begin = survey.start;
            let mut end = survey.behind.end;
            tail.batches = tail.batches.saturating_add(survey.behind.batches);
            if let Some(chain) = survey.chain {
                if chain.last < self.expected {
                    // It was read, or is left of the file's use before.
                    begin = chain.end;
                } else {
                    let batches = chain.last.next().0.saturating_sub(chain.first.0);
                    let batches = u32::try_from(batches).unwrap_or(u32::MAX);
                    tail.batches = tail.batches.saturating_add(batches);
                    end = end.max(chain.end);
                }
            }
            tail.bytes = tail.bytes.saturating_add(end.saturating_sub(begin));
        }
        if tail.batches > 0 {
            self.plan.tails.push(tail);
        }
    }

    /// Sees that files without a header are of no run that had written anything for
    /// good.
    fn dismiss(&mut self, strays: &[Stray<'_>]) -> Result<(), Damage> {
        let known = self.plan.run_last;
        let later = || {
            strays
                .iter()
                .filter(|stray| stray.witness.origin.run > known)
        };
        let lowest = later().map(|stray| stray.survey.lowest).min();
        for stray in later() {
            let durable = stray.witness.durable_before;
            if durable >= self.expected || lowest.is_some_and(|lowest| durable >= lowest) {
                return Err(stray.lost());
            }
        }
        for stray in later() {
            let behind = stray.survey.behind;
            self.plan.run_last = self.plan.run_last.max(stray.witness.origin.run);
            self.plan.tails.push(Tail {
                run: stray.witness.origin.run,
                slot: stray.survey.slot,
                position: FIRST_BATCH,
                bytes: behind.end.saturating_sub(FIRST_BATCH),
                number: stray.survey.lowest,
                batches: behind.batches,
            });
        }
        Ok(())
    }
}

impl Stray<'_> {
    fn lost(&self) -> Damage {
        Damage {
            slot: self.survey.slot,
            position: 0,
            what: Wrong::HeaderLost {
                why: self.why,
                number: self.witness.durable_before,
            },
        }
    }
}

/// Where the batch behind the last step belongs: of these files, the first of which
/// was read last if any of them was.
fn place(files: &[Named<'_>], step: Option<&Step>) -> (Slot, u64) {
    let mut slots = files.iter().map(|file| file.survey);
    let Some(first) = slots.next() else {
        return (Slot(0), 0);
    };
    let read = step.is_some_and(|step| step.slot == first.slot);
    match slots.next() {
        // Nothing of it is there, nor at the front of the next file, which begins with
        // this batch or with the one behind it.
        Some(next) if read && first.behind.batches == 0 && next.chain.is_none() => {
            (next.slot, next.start)
        }
        _ if read => (first.slot, first.end()),
        _ => (first.slot, first.start),
    }
}

impl Step {
    /// The batches of this stretch of `image`, the file that was surveyed. Ends behind
    /// the first that is not there any more.
    #[must_use]
    pub fn batches<'a>(&self, image: &'a [u8]) -> Batches<'a> {
        Batches {
            step: *self,
            image,
            done: false,
        }
    }
}

/// The batches of a step, in their order.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    /// What is left.
    step: Step,
    image: &'a [u8],
    done: bool,
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<Batch<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done || self.step.first > self.step.last {
            return None;
        }
        let number = self.step.first;
        let position = self.step.position;
        let batch = Batch::open(&self.step.origin, position, from(self.image, position))
            .filter(|batch| batch.header.label.number == number);
        let Some(batch) = batch else {
            self.done = true;
            return Some(Err(Damage {
                slot: self.step.slot,
                position,
                what: Wrong::Changed { number },
            }));
        };
        self.step.first = number.next();
        self.step.position = batch.header.end();
        Some(Ok(batch))
    }
}

/// A part of what the journals of a broker tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stretch {
    /// The checkpoint of the journal whose plan has this index.
    Checkpoint(usize),
    /// Of the plan with this index, the step with that one.
    Step(usize, usize),
}

/// What the journals of a broker tell, in the order in which it holds: by runs, and of a
/// run journal 0 first, whose changes of the catalogue the others depend on. The checkpoint
/// of a journal, which says the run that wrote it if there is one, comes before what is read
/// behind it.
#[must_use]
pub fn order(plans: &[Plan], checkpoint: impl Fn(JournalNumber) -> Option<Run>) -> Vec<Stretch> {
    let mut all: Vec<(Run, JournalNumber, Stretch)> = Vec::new();
    for (at, plan) in plans.iter().enumerate() {
        let journal = plan.identity.journal;
        all.extend(checkpoint(journal).map(|run| (run, journal, Stretch::Checkpoint(at))));
        for (step, found) in plan.steps.iter().enumerate() {
            all.push((found.origin.run, journal, Stretch::Step(at, step)));
        }
    }
    all.sort_unstable();
    all.into_iter().map(|(.., stretch)| stretch).collect()
}

/// The number of a run that starts behind these.
#[must_use]
pub fn next_run(plans: &[Plan]) -> Run {
    let last = plans.iter().map(|plan| plan.run_last.0).max();
    Run(last.unwrap_or(0).saturating_add(1))
}
