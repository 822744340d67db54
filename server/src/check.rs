//! `courser check`: whether a broker would start on a data directory, and what it would
//! find.

use std::collections::BTreeSet;
use std::fmt::Write;

use courser_bench::units;
use courser_core::journal::checkpoint;
use courser_core::journal::entry::Entry;
use courser_core::journal::page::{self, PageFile};
use courser_core::journal::recover::{Damage, Tail};
use courser_transport::disk::PageImages;
use serde_json::{Value, json};

use crate::args::CheckOptions;
use crate::error::CommandError;
use crate::examine::{CheckpointEnd, ExamineError, Examined, Journal, PageEnd, Tally};
use crate::output;

/// Prints a line for each journal, and one for whatever is wrong with it.
pub(crate) fn check(options: &CheckOptions) -> Result<(), CommandError> {
    let examined = Examined::open(&options.directory)?;
    let mut findings = Vec::with_capacity(examined.journals.len());
    for journal in &examined.journals {
        findings.push(Finding::of(&examined, journal)?);
    }
    if options.json {
        output::print_json(&as_json(&examined, &findings))?;
    } else {
        output::print(&as_text(&examined, &findings))?;
    }
    if findings.iter().any(Finding::is_damaged) {
        return Err(CommandError::Damaged {
            directory: options.directory.clone(),
        });
    }
    Ok(())
}

/// What was found of a journal.
struct Finding<'a> {
    journal: &'a Journal,
    tally: Tally,
    damage: Option<Damage>,
    checkpoint_damage: Option<checkpoint::Damage>,
    /// What the checkpoint names of page files.
    paged: Paged,
}

/// Pages that were looked at.
#[derive(Default)]
struct Paged {
    messages: u64,
    bytes: u64,
    /// In how many files.
    files: BTreeSet<PageFile>,
    damage: Vec<page::Damage>,
}

impl Paged {
    /// Looks at a page that a checkpoint names.
    fn look(&mut self, images: &mut PageImages<'_>, entry: &Entry<'_>) -> Result<(), CommandError> {
        let Entry::Paged { place, image } = entry else {
            return Ok(());
        };
        self.messages += u64::from(image.count);
        self.bytes += u64::from(image.size);
        self.files.insert(image.file());
        match images.messages(*place, image, |_| Ok::<_, PageEnd>(())) {
            Ok(()) => Ok(()),
            Err(PageEnd::Damage(damage)) => {
                self.damage.push(damage);
                Ok(())
            }
            Err(PageEnd::Failed(error)) => Err(*error),
        }
    }
}

impl<'a> Finding<'a> {
    fn of(examined: &Examined, journal: &'a Journal) -> Result<Self, CommandError> {
        let mut damage = journal.decision.as_ref().err().copied();
        let tally = match examined.tally(journal) {
            Ok(tally) => tally,
            Err(ExamineError::Damage(found)) => {
                damage = damage.or(Some(found));
                Tally::default()
            }
            Err(ExamineError::Directory(error)) => return Err(error.into()),
        };
        let mut checkpoint_damage = None;
        let (mut paged, mut images) = (Paged::default(), examined.pages(journal));
        let read = examined.checkpoint_batches(journal, |batch| {
            let number = batch.header.label.number;
            for entry in batch.entries() {
                match entry {
                    Ok(entry) => paged.look(&mut images, &entry)?,
                    Err(malformed) => {
                        checkpoint_damage.get_or_insert(checkpoint::Damage {
                            position: batch.header.position,
                            what: checkpoint::Wrong::Entry { number, malformed },
                        });
                    }
                }
            }
            Ok(())
        });
        match read {
            Ok(()) => {}
            Err(CheckpointEnd::Damage(found)) => checkpoint_damage = Some(found),
            Err(CheckpointEnd::Failed(error)) => return Err(*error),
        }
        Ok(Self {
            journal,
            tally,
            damage,
            checkpoint_damage,
            paged,
        })
    }

    fn is_damaged(&self) -> bool {
        self.damage.is_some()
            || self.checkpoint_damage.is_some()
            || !self.paged.damage.is_empty()
            || !self.tally.spoilt.is_empty()
    }

    /// The first and the last run, and how many there are.
    fn runs(&self) -> Option<(u64, u64, usize)> {
        let headers = self.journal.surveys.iter().filter_map(|it| it.header.ok());
        let mut runs: Vec<u64> = headers.map(|header| header.origin.run.0).collect();
        runs.sort_unstable();
        runs.dedup();
        Some((*runs.first()?, *runs.last()?, runs.len()))
    }

    fn tails(&self) -> &[Tail] {
        match &self.journal.decision {
            Ok(plan) => &plan.tails,
            Err(_) => &[],
        }
    }

    fn spare(&self) -> usize {
        match &self.journal.decision {
            Ok(plan) => plan.spare.len(),
            Err(_) => 0,
        }
    }
}

fn as_text(examined: &Examined, findings: &[Finding<'_>]) -> String {
    let mut text = format!("installation {}\n", examined.installation());
    if findings.is_empty() {
        text.push_str("no journals\n");
    }
    for finding in findings {
        // Writing to a string cannot fail.
        let _written = line(&mut text, finding);
    }
    for stranger in &examined.strangers {
        let _written = writeln!(text, "left alone   {}", stranger.display());
    }
    text
}

fn line(text: &mut String, finding: &Finding<'_>) -> std::fmt::Result {
    let tally = &finding.tally;
    let number = finding.journal.number;
    if finding.journal.is_left_over {
        return writeln!(
            text,
            "journal {number:02}   left over: nothing is needed of it, and the next start removes it"
        );
    }
    let verdict = if finding.is_damaged() {
        "DAMAGED"
    } else {
        "whole"
    };
    let runs = match finding.runs() {
        None => String::from("no runs"),
        Some((first, last, _)) if first == last => format!("run {first}"),
        Some((first, last, count)) => format!("{count} runs, {first} to {last}"),
    };
    let entries: Vec<String> = (tally.entries.iter())
        .map(|(kind, count)| format!("{} {}", units::count(*count), kind.name()))
        .collect();
    writeln!(
        text,
        "journal {number:02}   {verdict}: {runs}, {} files of which {} spare, {} batches, {} of \
         entries{}{}",
        finding.journal.surveys.len(),
        finding.spare(),
        units::count(tally.batches),
        units::bytes(tally.bytes),
        if entries.is_empty() { "" } else { ": " },
        entries.join(", ")
    )?;
    if let Some(header) = finding.journal.checkpoint.header() {
        writeln!(
            text,
            "  checkpoint number {}, of run {}{}: {}, and the journal from batch {} on",
            header.number,
            header.origin.run,
            match finding.journal.checkpoint.is_aside() {
                true => ", which the next start gives its name",
                false => "",
            },
            units::bytes(header.size),
            header.start.number
        )?;
    }
    let paged = &finding.paged;
    if paged.messages > 0 {
        writeln!(
            text,
            "  pages      {} messages, {}, in {} page files",
            units::count(paged.messages),
            units::bytes(paged.bytes),
            paged.files.len()
        )?;
    }
    if let Some(damage) = &finding.checkpoint_damage {
        writeln!(text, "  damage     journal-{number:02}/{damage}")?;
        writeln!(text, "  fix        {}", damage.advice())?;
    }
    for damage in &paged.damage {
        writeln!(text, "  damage     journal-{number:02}/{damage}")?;
        writeln!(text, "  fix        {}", damage.advice())?;
    }
    for tail in finding.tails() {
        writeln!(text, "  cut        journal-{number:02}/{tail}")?;
    }
    if let Some(damage) = &finding.damage {
        writeln!(text, "  damage     journal-{number:02}/{damage}")?;
        writeln!(text, "  fix        {}", damage.advice())?;
    }
    for spoilt in &tally.spoilt {
        writeln!(
            text,
            "  damage     journal-{number:02}/{}: the checksum of message {} of partition {} of \
             destination {} does not match",
            spoilt.slot, spoilt.offset, spoilt.partition, spoilt.destination
        )?;
    }
    Ok(())
}

fn as_json(examined: &Examined, findings: &[Finding<'_>]) -> Value {
    let journals = findings.iter().map(journal_as_json);
    let strangers = examined.strangers.iter();
    json!({
        "installation": examined.installation().to_string(),
        "damaged": findings.iter().any(Finding::is_damaged),
        "journals": Value::from_iter(journals),
        "left_alone": Value::from_iter(strangers.map(|path| path.display().to_string())),
    })
}

fn journal_as_json(finding: &Finding<'_>) -> Value {
    let tally = &finding.tally;
    let files = finding.journal.surveys.iter().map(|survey| {
        let header = survey.header.ok();
        json!({
            "file": survey.slot.to_string(),
            "run": header.map(|header| header.origin.run.0),
            "sequence": header.map(|header| header.sequence.0),
            "recovered": header.map(|header| header.recovered.0),
            "size": header.map(|header| header.size),
            "first_batch": survey.chain.map(|chain| chain.first.0),
            "last_batch": survey.chain.map(|chain| chain.last.0),
            "unreadable": survey.header.err().map(|why| why.to_string()),
        })
    });
    let entries = tally.entries.iter();
    let tails = finding.tails().iter().map(|tail| {
        json!({
            "file": tail.slot.to_string(),
            "position": tail.position,
            "run": tail.run.0,
            "first_batch": tail.number.0,
            "batches": tail.batches,
            "bytes": tail.bytes,
        })
    });
    let spoilt = tally.spoilt.iter().map(|spoilt| {
        json!({
            "file": spoilt.slot.to_string(),
            "destination": spoilt.destination,
            "partition": spoilt.partition,
            "offset": spoilt.offset,
        })
    });
    let damaged_pages = finding.paged.damage.iter().map(|damage| {
        json!({
            "file": damage.file.to_string(),
            "position": damage.position,
            "what": damage.to_string(),
            "advice": damage.advice(),
        })
    });
    json!({
        "journal": finding.journal.number.0,
        "files": Value::from_iter(files),
        "checkpoint": finding.journal.checkpoint.header().map(|header| json!({
            "number": header.number,
            "run": header.origin.run.0,
            "size": header.size,
            "first_batch": header.start.number.0,
            "shards": header.division.shards,
            "has_its_place": !finding.journal.checkpoint.is_aside(),
        })),
        "left_over": finding.journal.is_left_over,
        "checkpoint_damage": finding.checkpoint_damage.map(|damage| json!({
            "position": damage.position,
            "what": damage.to_string(),
            "advice": damage.advice(),
        })),
        "pages": json!({
            "messages": finding.paged.messages,
            "bytes": finding.paged.bytes,
            "files": finding.paged.files.len(),
            "damage": Value::from_iter(damaged_pages),
        }),
        "batches": tally.batches,
        "bytes": tally.bytes,
        "entries": entries
            .map(|(kind, count)| (kind.name().replace(' ', "_"), Value::from(*count)))
            .collect::<serde_json::Map<_, _>>(),
        "kept": finding.journal.decision.as_ref().ok().map(|plan| plan.kept.0),
        "left_out": finding.journal.decision.as_ref().ok().map(|plan| plan.left_out),
        "spare": finding.spare(),
        "cut": Value::from_iter(tails),
        "damage": finding.damage.map(|damage| damage_as_json(&damage)),
        "damaged_messages": Value::from_iter(spoilt),
    })
}

fn damage_as_json(damage: &Damage) -> Value {
    json!({
        "file": damage.slot.to_string(),
        "position": damage.position,
        "what": damage.to_string(),
        "advice": damage.advice(),
    })
}
