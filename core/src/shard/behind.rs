//! What clients have asked of shards and devices that are slow: counted for each link and
//! for all.
//!
//! A client may acknowledge, give back and poll without end, and none of that needs
//! credit. What a slow shard has not read waits, and so do confirmations of others
//! behind one that is still to come, and behind a flush. All of that is bounded: a link that has more of it
//! waiting than it may ends, as one that leaves its answers unread does. What it said
//! before is still obeyed when the shard goes on.
//!
//! Invariant: `Shard::behind` is the sum of what waits in backlogs and of confirmations,
//! of whichever kind, those of links that are gone included.

use super::{Fault, Shard};
use crate::error::Refusal;
use crate::id::Handle;
use crate::limits;

/// Bytes that a confirmation counts for while it waits, with what a list that doubles
/// has beside it.
pub(super) const CONFIRMATION_SIZE: usize = 16;

impl Shard {
    /// So many bytes more wait for other shards because of what came on a link.
    ///
    /// # Errors
    ///
    /// If that is too much, of it or of all links.
    #[cold]
    pub(super) fn falls_behind(&mut self, link: Handle, bytes: usize) -> Result<(), Fault> {
        self.behind += bytes;
        let Some(entry) = self.links.get_mut(link) else {
            return Ok(());
        };
        entry.behind += bytes;
        let most = limits::BEHIND_PER_LINK_MAX as usize;
        if entry.behind <= most && self.behind <= limits::BEHIND_MAX as usize {
            return Ok(());
        }
        Err(Fault::new(
            Refusal::Stalled,
            format!(
                "{} bytes of what this link asked wait for other \
                 shards or the device, and {} of all links",
                entry.behind, self.behind
            ),
        ))
    }

    /// So many of them do no longer.
    #[cold]
    pub(super) fn catches_up(&mut self, link: Handle, bytes: usize) {
        self.behind -= bytes;
        if let Some(entry) = self.links.get_mut(link) {
            entry.behind -= bytes;
        }
    }
}
