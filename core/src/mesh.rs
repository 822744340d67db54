//! The rings between shards.
//!
//! Cast: [`mesh`] makes all of them at once and hands each shard its [`Ends`]; a
//! [`Neighbour`] is what a shard holds towards one other shard.
//!
//! ```text
//!                 requests:   what S asks of partitions that P owns
//!              ------------------------------------------------------>
//!   session's     outcomes:   answers, outcomes of sends, credit          owner's
//!   shard S    <------------------------------------------------------    shard P
//!                 deliveries: runs of messages for consumers of S
//!              <------------------------------------------------------
//! ```
//!
//! Every ordered pair of shards has these three, so between two shards there are
//! six. What comes back has rings of its own, which are read first: an answer never
//! waits behind a request, so two shards that have filled each other's rings with
//! requests still make progress.

use core::fmt;

use crate::id::ShardIndex;
use crate::ring::{CapacityRefused, Reader, Writer, ring};

/// Bytes of a ring of requests.
pub const REQUESTS_SIZE: u32 = 128 * 1024;
/// Bytes of a ring of outcomes.
pub const OUTCOMES_SIZE: u32 = 64 * 1024;
/// Bytes of a ring of deliveries.
pub const DELIVERIES_SIZE: u32 = 128 * 1024;

/// Bytes of all rings between so many shards.
#[must_use]
pub fn size(shards: u16) -> u64 {
    let pairs = u64::from(shards) * u64::from(shards.saturating_sub(1));
    pairs * (u64::from(REQUESTS_SIZE) + u64::from(OUTCOMES_SIZE) + u64::from(DELIVERIES_SIZE))
}

/// What one shard holds of the mesh.
#[derive(Debug)]
pub struct Ends {
    /// Whose they are.
    pub(crate) shard: ShardIndex,
    /// In the order of the shards, without the holder.
    pub(crate) neighbours: Vec<Neighbour>,
}

impl Ends {
    /// The shard that these ends are for.
    #[must_use]
    pub fn shard(&self) -> ShardIndex {
        self.shard
    }

    /// How many shards there are, the holder included.
    #[must_use]
    pub fn shards(&self) -> u16 {
        u16::try_from(self.neighbours.len() + 1).expect("there are at most as many as indices")
    }
}

/// The rings towards one other shard.
pub(crate) struct Neighbour {
    pub(crate) shard: ShardIndex,
    /// What we ask of its partitions.
    pub(crate) requests_out: Writer,
    /// What it asks of ours.
    pub(crate) requests_in: Reader,
    /// What became of what it asked.
    pub(crate) outcomes_out: Writer,
    /// What became of what we asked.
    pub(crate) outcomes_in: Reader,
    /// Messages for its consumers.
    pub(crate) deliveries_out: Writer,
    /// Messages for ours.
    pub(crate) deliveries_in: Reader,
}

impl fmt::Debug for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbour")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// Makes the rings between `shards` shards: the ends of each, in their order.
///
/// # Errors
///
/// If a ring is refused; the sizes above are not.
pub fn mesh(shards: u16) -> Result<Vec<Ends>, CapacityRefused> {
    let mut ends: Vec<Ends> = (0..shards)
        .map(|shard| Ends {
            shard: ShardIndex(shard),
            neighbours: Vec::with_capacity(usize::from(shards).saturating_sub(1)),
        })
        .collect();
    for low in 0..shards {
        for high in low + 1..shards {
            let (requests_up, asked_by_low) = ring(REQUESTS_SIZE)?;
            let (requests_down, asked_by_high) = ring(REQUESTS_SIZE)?;
            let (outcomes_up, outcomes_for_high) = ring(OUTCOMES_SIZE)?;
            let (outcomes_down, outcomes_for_low) = ring(OUTCOMES_SIZE)?;
            let (deliveries_up, deliveries_for_high) = ring(DELIVERIES_SIZE)?;
            let (deliveries_down, deliveries_for_low) = ring(DELIVERIES_SIZE)?;
            ends[usize::from(low)].neighbours.push(Neighbour {
                shard: ShardIndex(high),
                requests_out: requests_up,
                requests_in: asked_by_high,
                outcomes_out: outcomes_up,
                outcomes_in: outcomes_for_low,
                deliveries_out: deliveries_up,
                deliveries_in: deliveries_for_low,
            });
            ends[usize::from(high)].neighbours.push(Neighbour {
                shard: ShardIndex(low),
                requests_out: requests_down,
                requests_in: asked_by_low,
                outcomes_out: outcomes_down,
                outcomes_in: outcomes_for_high,
                deliveries_out: deliveries_down,
                deliveries_in: deliveries_for_high,
            });
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_ring_leads_from_one_shard_to_the_other() {
        let mut all = mesh(3).unwrap();
        for from in 0..3_usize {
            for to in (0..3_usize).filter(|to| *to != from) {
                let text = format!("{from} to {to}");
                let place = |of: usize, other: usize| other - usize::from(other > of);
                let out = &mut all[from].neighbours[place(from, to)];
                assert_eq!(usize::from(out.shard.0), to);
                for writer in [
                    &mut out.requests_out,
                    &mut out.outcomes_out,
                    &mut out.deliveries_out,
                ] {
                    writer.push(text.as_bytes()).unwrap();
                    writer.publish_quietly();
                }
                let at = &mut all[to].neighbours[place(to, from)];
                assert_eq!(usize::from(at.shard.0), from);
                for reader in [
                    &mut at.requests_in,
                    &mut at.outcomes_in,
                    &mut at.deliveries_in,
                ] {
                    let mut seen = Vec::new();
                    reader.read(|bytes| seen.push(bytes.to_vec())).unwrap();
                    assert_eq!(seen, [text.as_bytes()]);
                }
            }
        }
    }
}
