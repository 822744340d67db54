//! Who may write: who has a destination alone, who was shut out, who waits.
//!
//! ```text
//!   asked ── in line ──> told, alone ── tenure k ──> closed, or its link has gone
//!                          |                            `──> the next in line
//!                          `──> all who were told before: shut out, for ever
//! ```
//!
//! A tenure begins somewhere between its asking and its answer. Who was told of its own
//! attachment before that answer was attached before the tenure, and whoever is told
//! after it, and still there, after it began. So in each partition all that the former
//! ever stores lies before all that the latter sends, and no send that was taken after
//! the answer is stored for the former.

use std::collections::BTreeMap;

use courser_core::id::Installation;

use super::{Model, Named, broken};
use crate::plan::Access;
use crate::violation::{Rule, Violation};

/// How a producer stands with its destination, as far as its client knows.
#[derive(Debug, Default)]
pub(super) struct Standing {
    installation: u128,
    connection: usize,
    /// It was told so, and nothing happened since that might have ended it.
    attached: bool,
    alone: bool,
    /// The last tenure that had begun when it was attached.
    term: u32,
    shut_out: Option<ShutOut>,
}

#[derive(Clone, Copy, Debug)]
struct ShutOut {
    /// By which tenure, if not by an administrator.
    by: Option<u32>,
    /// When that was known, in calls of the model.
    at: u64,
}

impl Standing {
    /// The tenure in or behind which is stored what is sent to an installation now.
    pub(super) fn term(&self, installation: Installation) -> u32 {
        if self.installation == installation.0 {
            self.term
        } else {
            0
        }
    }
}

/// What tenures have left in a partition's log.
#[derive(Debug, Default)]
pub(super) struct Tenures {
    /// The first message that was sent in or behind each tenure.
    first: BTreeMap<u32, u64>,
    /// The last message of those that each tenure shut out.
    last: BTreeMap<u32, u64>,
}

/// A producer that waits to have its destination alone.
#[derive(Debug)]
pub(super) struct Taker {
    installation: u128,
    destination: usize,
    connection: usize,
    /// It was not asked for on an earlier connection: such requests need not leave in the
    /// order in which they were made.
    is_fresh: bool,
    /// In calls of the model.
    asked_at: u64,
    in_line_at: Option<u64>,
    /// It was answered, or gave up.
    done: bool,
}

impl Model {
    /// A producer is told that it is attached.
    pub(super) fn producer_attached(
        &mut self,
        number: usize,
        named: &Named,
    ) -> Result<(), Violation> {
        let installation = named.installation.0;
        let alone = named.access != Access::Shared;
        let destination = self.producers[number].destination;
        let standing = &mut self.producers[number].standing;
        if standing.installation != installation {
            *standing = Standing {
                installation,
                ..Standing::default()
            };
        }
        standing.connection = named.connection;
        standing.alone = alone;
        if self.is_broken(named.connection) || self.installation != installation {
            // It hears late of what is over.
            return Ok(());
        }
        let is_fence_asked = self.fences.contains(&named.id.0);
        if let Some(shut_out) = self.producers[number].standing.shut_out {
            // Who is fenced may hear only now that it had been attached before; not so on
            // a connection that was opened later.
            let opened_at = self.opened.get(&named.connection).copied().unwrap_or(0);
            if !is_fence_asked || shut_out.at < opened_at {
                return broken(
                    Rule::ShutOut,
                    format!("producer {number} is attached again: {shut_out:?}"),
                );
            }
        }
        if is_fence_asked {
            // It may be over by now.
            return Ok(());
        }
        self.producers[number].standing.attached = true;
        self.check_alone(number)?;
        let terms = self.terms.entry((installation, destination)).or_default();
        if alone {
            *terms += 1;
            self.tally.tenures += 1;
        }
        let term = *terms;
        self.producers[number].standing.term = term;
        if alone {
            self.shut_others_out(number, term);
        }
        Ok(())
    }

    /// A client hears that its connection is open, and asks for what it had only now.
    pub(crate) fn connection_opened(&mut self, connection: usize) {
        self.calls += 1;
        self.opened.insert(connection, self.calls);
    }

    fn check_alone(&self, number: usize) -> Result<(), Violation> {
        let producer = &self.producers[number];
        let own = &producer.standing;
        let disturbs = |(index, other): (usize, &super::ProducerModel)| {
            index != number
                && other.destination == producer.destination
                && other.standing.attached
                && other.standing.installation == own.installation
                && (own.alone || other.standing.alone)
        };
        match (self.producers.iter().enumerate()).position(disturbs) {
            None => Ok(()),
            Some(other) => broken(
                Rule::Alone,
                format!(
                    "producers {other} and {number} of destination {}",
                    producer.destination
                ),
            ),
        }
    }

    fn shut_others_out(&mut self, number: usize, term: u32) {
        let destination = self.producers[number].destination;
        let installation = self.producers[number].standing.installation;
        let at = self.calls;
        for (index, other) in self.producers.iter_mut().enumerate() {
            if index == number
                || other.destination != destination
                || other.standing.installation != installation
                || other.standing.shut_out.is_some_and(|it| it.by.is_some())
            {
                continue;
            }
            let by = Some(term);
            let at = other.standing.shut_out.map_or(at, |before| before.at);
            other.standing.shut_out = Some(ShutOut { by, at });
            let Some(logs) = self.logs.get_mut(&installation) else {
                continue;
            };
            for log in &mut logs[destination] {
                let own = log.order.range((index, 0)..(index + 1, 0));
                if let Some(((_, last), _)) = own.last() {
                    let end = log.tenures.last.entry(term).or_default();
                    *end = (*end).max(*last);
                }
            }
        }
    }

    /// A message is learnt to stand at a place: nobody wrote there who was shut out.
    pub(super) fn check_tenure(
        &mut self,
        number: usize,
        sequence: u64,
        offset: u64,
    ) -> Result<(), Violation> {
        let producer = &self.producers[number];
        let sent = &producer.sends[crate::random::size(sequence - 1)];
        let (destination, partition) = (producer.destination, sent.partition);
        let shut_out = (producer.standing.shut_out)
            .filter(|_| producer.standing.installation == sent.installation);
        if let Some(shut_out) = shut_out
            && shut_out.at < sent.at
        {
            return broken(
                Rule::ShutOut,
                format!(
                    "send {sequence} of producer {number} is at {partition}@{offset}, and was \
                     made after {shut_out:?}"
                ),
            );
        }
        let (installation, term) = (sent.installation, sent.term);
        let tenures = &mut self.log(installation, destination, partition).tenures;
        if term > 0 {
            let first = tenures.first.entry(term).or_insert(offset);
            *first = (*first).min(offset);
        }
        let by = shut_out.and_then(|shut_out| shut_out.by);
        if let Some(by) = by {
            let last = tenures.last.entry(by).or_insert(offset);
            *last = (*last).max(offset);
        }
        let before = tenures.last.range(..=term).map(|(_, last)| *last).max();
        if term > 0
            && let Some(last) = before
            && offset <= last
        {
            return broken(
                Rule::ShutOut,
                format!(
                    "{partition}@{last} of destination {destination} is of a producer that was \
                     shut out before producer {number} sent what is at {offset}"
                ),
            );
        }
        let Some(by) = by else { return Ok(()) };
        match tenures.first.range(by..).map(|(_, first)| *first).min() {
            Some(first) if first <= offset => broken(
                Rule::ShutOut,
                format!(
                    "send {sequence} of producer {number}, shut out by tenure {by}, is at \
                     {partition}@{offset}, behind {first}, which was sent in it"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// Whether a producer may be told that it has no business there any more.
    pub(crate) fn may_be_shut_out(&self, number: usize) -> bool {
        let producer = &self.producers[number];
        self.destinations[producer.destination].contested || self.is_fence_asked(number)
    }

    /// Whether somebody asked to have a producer shut out, under whichever of its names.
    fn is_fence_asked(&self, number: usize) -> bool {
        let fences = self.fences.iter();
        fences.copied().any(|id| {
            let named = |installation: &u128| self.names.get(&(*installation, id));
            self.logs.keys().filter_map(named).any(|it| *it == number)
        })
    }

    /// Whether somebody asked to have any producer shut out.
    pub(crate) fn is_any_fence_asked(&self) -> bool {
        !self.fences.is_empty()
    }

    /// A producer was not attached because of others.
    pub(crate) fn turned_away(&mut self) {
        self.tally.turned_away += 1;
    }

    /// The ids of producers that are attached.
    pub(crate) fn attached(&self, installation: Installation) -> Vec<u64> {
        let is_attached =
            |(_, number): &(&(u128, u64), &usize)| self.producers[**number].standing.attached;
        let names = self
            .names
            .range((installation.0, 0)..=(installation.0, u64::MAX));
        names.filter(is_attached).map(|((_, id), _)| *id).collect()
    }

    /// Somebody asks to have a producer shut out; the request may be repeated at another
    /// installation, where somebody else has that id.
    pub(crate) fn fence_asked(&mut self, id: u64) {
        self.fences.insert(id);
        let named: Vec<usize> = (self.names.iter())
            .filter_map(|((_, other), number)| (*other == id).then_some(*number))
            .collect();
        for number in named {
            self.producer_departs(number);
        }
    }

    /// A producer is shut out; returns which.
    pub(crate) fn fenced(&mut self, installation: Installation, id: u64) -> Option<usize> {
        let number = self.names.get(&(installation.0, id)).copied()?;
        let at = self.calls;
        let standing = &mut self.producers[number].standing;
        if standing.installation == installation.0 && standing.shut_out.is_none() {
            standing.shut_out = Some(ShutOut { by: None, at });
            self.tally.fenced += 1;
        }
        Some(number)
    }

    /// Something happens that may end a producer at the broker.
    pub(crate) fn producer_departs(&mut self, number: usize) {
        self.producers[number].standing.attached = false;
    }

    pub(super) fn producers_depart(&mut self, connection: usize) {
        self.broken.insert(connection);
        for producer in &mut self.producers {
            if producer.standing.connection == connection {
                producer.standing.attached = false;
            }
        }
    }

    fn is_broken(&self, connection: usize) -> bool {
        connection == usize::MAX || self.broken.contains(&connection)
    }

    // Those who wait.

    /// A client asks for a producer that waits; returns its number here.
    pub(crate) fn taker_asked(
        &mut self,
        connection: usize,
        installation: Installation,
        destination: usize,
        is_fresh: bool,
    ) -> usize {
        self.calls += 1;
        self.takers.push(Taker {
            installation: installation.0,
            destination,
            connection,
            is_fresh,
            asked_at: self.calls,
            in_line_at: None,
            done: false,
        });
        self.takers.len() - 1
    }

    /// What asked for it has arrived where it waits for its turn.
    pub(crate) fn taker_in_line(&mut self, taker: usize) {
        self.calls += 1;
        self.takers[taker].in_line_at = Some(self.calls);
    }

    /// It waits no longer, or may not.
    pub(crate) fn taker_gone(&mut self, taker: usize) {
        self.takers[taker].done = true;
    }

    /// It has its turn: nobody has that came before it and still waits.
    pub(crate) fn taker_served(&mut self, taker: usize) -> Result<(), Violation> {
        self.tally.takers += 1;
        self.taker_gone(taker);
        let served = &self.takers[taker];
        if self.is_broken(served.connection) {
            return Ok(());
        }
        let came_before = |other: &Taker| {
            !other.done
                && (other.installation, other.destination)
                    == (served.installation, served.destination)
                && !self.is_broken(other.connection)
                && (other.in_line_at.is_some_and(|at| at < served.asked_at)
                    || other.connection == served.connection
                        && other.is_fresh
                        && served.is_fresh
                        && other.asked_at < served.asked_at)
        };
        match self.takers.iter().position(came_before) {
            None => Ok(()),
            Some(other) => broken(
                Rule::Turn,
                format!(
                    "taker {taker}, {served:?}, before taker {other}, {:?}",
                    self.takers[other]
                ),
            ),
        }
    }
}
