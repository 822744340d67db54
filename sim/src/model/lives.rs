//! Destinations that are deleted and made again under the same name.
//!
//! ```text
//!   name:  ── one life ──┐ asked   answered ┌── another ──
//!                        └── gone at some ──┘
//!                            moment here
//! ```
//!
//! Which life somebody is of is known where a whole deletion lies before or behind: who
//! was told to be there before it was asked for is of the old one, who asked after it
//! was answered of the new one. Between the two nothing is said.

use std::collections::BTreeMap;

use courser_core::id::Installation;

use super::{Model, broken};
use crate::violation::{Rule, Violation};

#[derive(Debug)]
struct Deletion {
    name: usize,
    asked_at: u64,
    /// When it was answered, and by whose broker.
    answered: Option<(u64, u128)>,
}

/// A message to such a destination.
#[derive(Clone, Copy, Debug)]
struct Passing {
    name: usize,
    installation: u128,
    /// When its producer was told to be there.
    told_at: u64,
    sent_at: u64,
    refused: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lives {
    moments: u64,
    deletions: Vec<Deletion>,
    messages: BTreeMap<u64, Passing>,
}

impl Model {
    /// The moment of a fact about what comes and goes.
    pub(crate) fn moment(&mut self) -> u64 {
        self.lives.moments += 1;
        self.lives.moments
    }

    /// A deletion is asked for; returns its number.
    pub(crate) fn deletion_asked(&mut self, name: usize) -> usize {
        let asked_at = self.moment();
        self.lives.deletions.push(Deletion {
            name,
            asked_at,
            answered: None,
        });
        self.lives.deletions.len() - 1
    }

    /// It is answered: at some moment since it was asked for there was no such thing.
    pub(crate) fn deletion_answered(&mut self, deletion: usize, installation: Installation) {
        let at = self.moment();
        self.tally.deletions += 1;
        self.lives.deletions[deletion].answered = Some((at, installation.0));
    }

    /// Whether a name may have been deleted so far.
    pub(crate) fn may_be_deleted(&self, name: usize) -> bool {
        self.lives.deletions.iter().any(|it| it.name == name)
    }

    /// Whether a name was deleted between two moments for certain.
    pub(crate) fn is_gone_between(
        &self,
        name: usize,
        installation: Installation,
        (from, to): (u64, u64),
    ) -> bool {
        self.lives.deletions.iter().any(|it| {
            it.name == name
                && it.asked_at > from
                && it
                    .answered
                    .is_some_and(|(at, whose)| at < to && whose == installation.0)
        })
    }

    /// A producer that was told at `told_at` to be there sends a message; its number.
    pub(crate) fn passing_sent(
        &mut self,
        name: usize,
        installation: Installation,
        told_at: u64,
    ) -> u64 {
        let sent_at = self.moment();
        self.lives.messages.insert(
            sent_at,
            Passing {
                name,
                installation: installation.0,
                told_at,
                sent_at,
                refused: false,
            },
        );
        sent_at
    }

    /// It is stored, or for certain not.
    pub(crate) fn passing_completed(
        &mut self,
        number: u64,
        is_stored: bool,
    ) -> Result<(), Violation> {
        let Some(sent) = self.lives.messages.get_mut(&number) else {
            return broken(Rule::Unheard, format!("outcome of {number}"));
        };
        sent.refused = !is_stored;
        let sent = *sent;
        let life = (sent.told_at, sent.sent_at);
        if is_stored && self.is_gone_between(sent.name, Installation(sent.installation), life) {
            return broken(
                Rule::Revenant,
                format!("{sent:?} is stored, and its destination was deleted before"),
            );
        }
        Ok(())
    }

    /// A consumer that was asked for at `asked_at` is handed a message.
    pub(crate) fn passing_handed(
        &self,
        name: usize,
        installation: Installation,
        asked_at: u64,
        number: u64,
    ) -> Result<(), Violation> {
        let sent = self
            .lives
            .messages
            .get(&number)
            .filter(|sent| (sent.name, sent.installation) == (name, installation.0));
        let Some(sent) = sent else {
            return broken(Rule::Unheard, format!("{number} from destination {name}"));
        };
        if sent.refused {
            return broken(Rule::NeverStored, format!("{sent:?}"));
        }
        if self.is_gone_between(name, installation, (sent.told_at, asked_at)) {
            return broken(
                Rule::Revenant,
                format!("{sent:?} is handed to a consumer that was asked for at {asked_at}"),
            );
        }
        Ok(())
    }
}
