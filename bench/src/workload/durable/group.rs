//! Many producers with full windows: what one flush carries for all of them.
//!
//! ```text
//!   producer  1 ---- window --+
//!   producer  2 ---- window --+-- shard -- batch | batch | batch ..
//!   ..                        |              what came while the last one was flushed
//!   producer 16 ---- window --+
//! ```
//!
//! Each producer has a connection and a queue of its own, and all of them are one thread's,
//! which fills their windows and takes their outcomes in turn. What is counted runs from
//! when a whole window of each was answered to when no more is sent; the backlog is taken
//! out afterwards, while the clock stands still.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::books::{Gathered, Sender};
use super::super::patience::Patience;
use super::super::queue_name;
use super::super::target::Target;
use super::journal::Batches;
use crate::error::BenchError;
use crate::floor::frame_bytes;
use crate::floor::stream::Rate;
use crate::histogram::{Histogram, saturating_ns};
use crate::ledger::Ledger;

/// How many producers there are.
pub(super) const PRODUCERS: u32 = 16;

/// How many messages each has on its way.
pub(super) const WINDOW: u32 = 256;

/// Frame bytes of one slice at most: the journal keeps all of them.
const SLICE_BYTES: u64 = 48 << 20;

/// All producers.
pub(super) struct Group {
    address: SocketAddr,
    members: Vec<Member>,
    body_bytes: usize,
}

/// One producer, with what it has sent and heard.
struct Member {
    queue: String,
    gathered: Gathered,
    ledger: Ledger,
    /// Of what has no outcome yet: the number behind the last that was sent then.
    on_their_way: VecDeque<(u64, Instant)>,
    /// The number behind the last that has one.
    heard: u64,
}

/// What a slice has shown beside its latencies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) rate: Rate,
    pub(super) batches: Batches,
}

impl Group {
    /// Producers that connect to the broker at `address` anew for every slice.
    pub(super) fn new(address: SocketAddr, payload: u32) -> Self {
        let body = vec![0xA5; payload as usize];
        let members = (0..PRODUCERS).map(|_| Member {
            queue: queue_name("group"),
            gathered: Gathered::new(&body),
            ledger: Ledger::new(),
            on_their_way: VecDeque::new(),
            heard: 0,
        });
        Self {
            address,
            members: members.collect(),
            body_bytes: body.len(),
        }
    }

    /// Keeps all windows full for `duration`, or until enough is stored.
    ///
    /// # Errors
    /// If the broker cannot be reached, a link ends, or nothing is completed for five
    /// seconds.
    pub(super) fn slice(
        &mut self,
        duration: Duration,
        target: &Target,
        histogram: &mut Histogram,
    ) -> Result<Carried, BenchError> {
        let senders = self
            .members
            .iter()
            .map(|member| Sender::open_flushed(self.address, &member.queue, &member.ledger, WINDOW))
            .collect::<Result<Vec<_>, _>>()?;
        // What it counts is exact once it rests.
        target.rest();
        let (before, sent) = (Batches::so_far(target), self.sent());
        let rate = self.pass(&senders, duration, histogram)?;
        target.rest();
        let batches = Batches::so_far(target).since(before, self.sent() - sent);
        for (member, sender) in self.members.iter_mut().zip(senders) {
            sender.take_backlog(&member.queue, self.body_bytes, &mut member.ledger)?;
            sender.close()?;
        }
        Ok(Carried { rate, batches })
    }

    /// The closed books of all producers together.
    pub(super) fn closed_ledger(&self) -> Ledger {
        let mut of_all = Ledger::new();
        for member in &self.members {
            let mut ledger = member.ledger;
            ledger.close();
            of_all.add(&ledger);
        }
        of_all
    }

    fn sent(&self) -> u64 {
        self.members.iter().map(|member| member.ledger.sent).sum()
    }

    fn pass(
        &mut self,
        senders: &[Sender],
        duration: Duration,
        histogram: &mut Histogram,
    ) -> Result<Rate, BenchError> {
        let frame = frame_bytes(self.body_bytes) as u64;
        let all_windows = u64::from(PRODUCERS * WINDOW);
        let ends = Instant::now() + duration;
        let (mut answered, mut on_their_way) = (0_u64, 0_u64);
        let mut counted_from: Option<(Instant, u64)> = None;
        let mut counted: Option<Rate> = None;
        let mut patience = Patience::default();
        while counted.is_none() || on_their_way > 0 {
            let before = answered;
            on_their_way = 0;
            for (member, sender) in self.members.iter_mut().zip(senders) {
                if counted.is_none() {
                    member.send(sender)?;
                }
                let is_counting = counted_from.is_some() && counted.is_none();
                answered += member.hear(sender, is_counting.then_some(&mut *histogram));
                on_their_way += member.ledger.outstanding();
            }
            if answered == before {
                patience.look()?;
                continue;
            }
            patience = Patience::default();
            let now = Instant::now();
            let is_enough = now >= ends || answered * frame >= SLICE_BYTES;
            match counted_from {
                None if answered >= all_windows => counted_from = Some((now, answered)),
                Some((began, from)) if is_enough && counted.is_none() => {
                    counted = Some(Rate {
                        messages: answered - from,
                        bytes: (answered - from) * frame,
                        elapsed: now - began,
                    });
                }
                _ => {}
            }
        }
        Ok(counted.unwrap_or_default())
    }
}

impl Member {
    /// Fills its window.
    fn send(&mut self, sender: &Sender) -> Result<(), BenchError> {
        loop {
            let taken =
                sender.try_enqueue_all(&mut self.gathered, WINDOW.into(), &mut self.ledger)?;
            if taken == 0 {
                return Ok(());
            }
            self.on_their_way
                .push_back((self.ledger.next(), Instant::now()));
        }
    }

    /// Enters the outcomes that are there, and how long each took; how many there were.
    fn hear(&mut self, sender: &Sender, mut histogram: Option<&mut Histogram>) -> u64 {
        let before = self.ledger.outstanding();
        if before == 0 || !sender.completions(&mut self.gathered, &mut self.ledger) {
            return 0;
        }
        let now = Instant::now();
        let count = before.saturating_sub(self.ledger.outstanding());
        let heard = self.heard + count;
        while let Some(&(end, sent)) = self.on_their_way.front()
            && self.heard < heard
        {
            let these = end.min(heard) - self.heard;
            if let Some(histogram) = histogram.as_deref_mut() {
                histogram.record_many_ns(saturating_ns(now - sent), these);
            }
            self.heard += these;
            if self.heard == end {
                self.on_their_way.pop_front();
            }
        }
        count
    }
}
