//! What runs did, summed up.

use core::fmt;

use crate::plan::FaultKind;
use crate::trace::Seconds;

/// The figures of one run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Runs.
    pub seeds: u64,
    /// The hash of everything that happened; of many runs, of their hashes.
    pub hash: u64,
    /// Things that happened.
    pub facts: u64,
    /// Shards of all brokers.
    pub shards: u64,
    /// Turns of shards.
    pub turns: u64,
    /// Records that shards had for each other.
    pub records: u64,
    /// Links that went to another shard.
    pub moves: u64,
    /// Nanoseconds of virtual time.
    pub virtual_time: u64,
    /// Messages that clients took.
    pub sends: u64,
    /// Of these, those that are to be in memory only.
    pub in_memory: u64,
    /// Sends that were told a place.
    pub stored: u64,
    /// Sends that were told that they are not stored.
    pub failed: u64,
    /// Sends that were told that they may be stored.
    pub unknown: u64,
    /// Messages that applications were given.
    pub handed: u64,
    /// Of these, handed out before.
    pub redelivered: u64,
    /// Acknowledgements.
    pub acknowledged: u64,
    /// Of these, confirmed.
    pub confirmed: u64,
    /// Of those stored, told no place.
    pub placeless: u64,
    /// Answers that came after their sends had failed.
    pub late: u64,
    /// Sends that brokers knew from an earlier connection.
    pub retries: u64,
    /// Messages that applications gave back.
    pub given_back: u64,
    /// Connections that took the place of one that was lost.
    pub reconnects: u64,
    /// Producers that were attached again.
    pub producers_resumed: u64,
    /// Consumers that were opened again.
    pub consumers_resumed: u64,
    /// Producers that had their destination alone.
    pub tenures: u64,
    /// Of these, those that waited for it.
    pub takers: u64,
    /// Producers that were refused because of others.
    pub turned_away: u64,
    /// Producers that an administrator shut out.
    pub fenced: u64,
    /// Answers to consumers that asked whether there was anything.
    pub polls: u64,
    /// Of these, those that there was nothing, where that was certain.
    pub nothings: u64,
    /// Deletions of destinations.
    pub deletions: u64,
    /// Connections.
    pub connections: u64,
    /// Logs that were thinned out.
    pub thinnings: u64,
    /// Checkpoints that took their place.
    pub checkpoints: u64,
    /// The most chunks of memory in use.
    pub chunks_most: usize,
    /// Faults, in the order of [`FaultKind::ALL`].
    pub faults: [u64; FaultKind::ALL.len()],
}

impl Report {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.hash = self.hash.rotate_left(7) ^ other.hash;
        self.facts += other.facts;
        self.shards += other.shards;
        self.turns += other.turns;
        self.records += other.records;
        self.moves += other.moves;
        self.virtual_time += other.virtual_time;
        self.sends += other.sends;
        self.in_memory += other.in_memory;
        self.stored += other.stored;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.handed += other.handed;
        self.redelivered += other.redelivered;
        self.acknowledged += other.acknowledged;
        self.confirmed += other.confirmed;
        self.placeless += other.placeless;
        self.late += other.late;
        self.retries += other.retries;
        self.given_back += other.given_back;
        self.reconnects += other.reconnects;
        self.producers_resumed += other.producers_resumed;
        self.consumers_resumed += other.consumers_resumed;
        self.tenures += other.tenures;
        self.takers += other.takers;
        self.turned_away += other.turned_away;
        self.fenced += other.fenced;
        self.polls += other.polls;
        self.nothings += other.nothings;
        self.deletions += other.deletions;
        self.connections += other.connections;
        self.thinnings += other.thinnings;
        self.checkpoints += other.checkpoints;
        self.chunks_most = self.chunks_most.max(other.chunks_most);
        for (sum, more) in self.faults.iter_mut().zip(other.faults) {
            *sum += more;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28}{:>16}", "seeds", self.seeds)?;
        writeln!(f, "{:<28}{:>16x}", "hash", self.hash)?;
        writeln!(
            f,
            "{:<28}{:>16}",
            "virtual seconds",
            self.virtual_time / 1_000_000_000
        )?;
        for (name, value) in [
            ("facts", self.facts),
            ("shards", self.shards),
            ("  turns", self.turns),
            ("  records between them", self.records),
            ("connections", self.connections),
            ("  moved to another shard", self.moves),
            ("  after one that was lost", self.reconnects),
            ("producers attached again", self.producers_resumed),
            ("  alone", self.tenures),
            ("    that had waited", self.takers),
            ("  turned away", self.turned_away),
            ("  shut out", self.fenced),
            ("consumers opened again", self.consumers_resumed),
            ("sends", self.sends),
            ("  in memory only", self.in_memory),
            ("  stored", self.stored),
            ("    told no place", self.placeless),
            ("  not stored", self.failed),
            ("  unknown", self.unknown),
            ("  answered late", self.late),
            ("  known to the broker", self.retries),
            ("messages handed out", self.handed),
            ("  again", self.redelivered),
            ("  given back", self.given_back),
            ("  asked for", self.polls),
            ("    and certainly not there", self.nothings),
            ("acknowledgements", self.acknowledged),
            ("  confirmed", self.confirmed),
            ("destinations deleted", self.deletions),
            ("logs thinned out", self.thinnings),
            ("checkpoints", self.checkpoints),
            ("most chunks in use", self.chunks_most as u64),
        ] {
            writeln!(f, "{name:<28}{value:>16}")?;
        }
        for (kind, count) in FaultKind::ALL.iter().zip(self.faults) {
            writeln!(f, "{:<28}{count:>16}", kind.name())?;
        }
        Ok(())
    }
}

/// A report of one run on one line.
pub struct Line<'a>(pub &'a Report);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        write!(
            f,
            "{:016x}  {} virtual s, {} sends, {} handed out, {} faults",
            report.hash,
            Seconds(report.virtual_time),
            report.sends,
            report.handed,
            report.faults.iter().sum::<u64>()
        )
    }
}
