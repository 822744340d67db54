//! Messages per second of 256 connections with one in flight each, beside an echo that
//! serves as many.
//!
//! What passes is what one turn of an event loop can take: the echo pays a system call
//! to read and one to write for each message, a broker may share them.

use super::crowd::Crowd;
use super::lane::Lane;
use super::{ACTIVE, Course};
use crate::compare::Noise;
use crate::descriptors;
use crate::error::BenchError;
use crate::goal::Bound;

/// How many lanes there are.
pub(super) const LANES: u32 = 3;

/// Open files of all lanes: both ends of each connection, and once more the echoes'
/// own, by which they are ended.
pub(super) const DESCRIPTORS: u64 = ACTIVE as u64 * (2 * 3 + 2);

impl Course<'_> {
    /// Measures the broker of the run beside two echoes.
    ///
    /// # Errors
    /// If a connection cannot be had or ends, or an answer does not come.
    pub(super) fn active(&mut self) -> Result<(), BenchError> {
        descriptors::reserve(DESCRIPTORS)?;
        let (target, payload) = (self.target, self.plan.payload);
        let echo = |suffix| {
            let crowd = Crowd::of_echo(self.cores.broker, ACTIVE, payload)?;
            Ok::<_, BenchError>(Lane::crowd(suffix, None, crowd))
        };
        let [again, floor] = [echo(" again")?, echo("")?];
        let broker = Crowd::of_broker(target.address(), ACTIVE, payload)?;
        let mut lanes = [again, floor, Lane::crowd("", Some(target), broker)];
        target.rest();
        self.section(&mut lanes)?;
        let [again, floor, broker] = &lanes;
        let noise = Noise::of(again.figures(), floor.figures());
        let metric = format!("messages per second, {ACTIVE} connections, over an echo's");
        let bound = Bound::AtLeast(0.70);
        self.judge(("G17", metric), bound, (broker, floor), noise.as_ref());
        Ok(())
    }
}
