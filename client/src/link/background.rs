//! The thread that drives while sends with listeners or futures are outstanding
//! and no application thread does.
//!
//! ```text
//!   drives --- nothing there ---> asleep at the socket --- an answer, the bell -+
//!     ^  \                                                                      |
//!     |   +-- an application thread waits --> aside, parked --- called back ----+
//!     +-------------------------------------------------------------------------+
//! ```
//!
//! It exists while it is needed and for a second more. It never spins: it would
//! take the processor from those whom it works for.

use std::io;
use std::sync::Arc;
use std::thread;

use super::waiters::Seat;
use super::{Driving, LINGER, Link, State};

impl Link {
    /// Counts one more send that nobody waits for, and sees to it that somebody
    /// drives.
    ///
    /// # Errors
    ///
    /// If there is no thread to do so; the send is counted all the same.
    pub(crate) fn listen(&self, state: &mut State) -> io::Result<()> {
        state.listening += 1;
        self.keep_driven(state)
    }

    /// A send that was counted was not taken after all.
    pub(crate) fn listen_no_more(state: &mut State) {
        state.listening -= 1;
    }

    /// Sees to it that somebody drives although no thread waits.
    pub(super) fn keep_driven(&self, state: &mut State) -> io::Result<()> {
        if state.background.thread.is_some() {
            state.call_background();
            return Ok(());
        }
        let Some(link) = self.me.upgrade() else {
            // The link is being dropped, and nobody is left who could hear of it.
            return Ok(());
        };
        thread::Builder::new()
            .name("courser-link".to_owned())
            .spawn(move || link.run())
            .map(|thread| state.background.thread = Some(thread.thread().clone()))
    }

    fn run(self: Arc<Self>) {
        let mut driving = self.take();
        let mut lingers_until = None;
        loop {
            let now = self.now();
            if driving.needs_background() {
                lingers_until = None;
            } else {
                let until = *lingers_until.get_or_insert(now.after(LINGER));
                let is_over = driving.is_deserted || driving.end.is_some() || now >= until;
                if is_over {
                    if driving.is_deserted {
                        driving.leave();
                    }
                    // What lies in a lane by now is found when the baton is let go,
                    // and starts another thread.
                    driving.background.thread = None;
                    return;
                }
            }
            driving = if driving.waiters.foreground > 0 {
                self.step_aside(driving)
            } else if self.turn(&mut driving) {
                self.pause(driving)
            } else {
                let until = lingers_until.unwrap_or(courser_core::time::Monotonic::NEVER);
                self.sleep(driving, Seat::Background, None, until)
            };
        }
    }

    /// Parks until it is called back, or long enough to see whether it may go.
    fn step_aside<'a>(&'a self, mut driving: Driving<'a>) -> Driving<'a> {
        driving.background.is_aside = true;
        driving.alarm();
        drop(driving);
        thread::park_timeout(LINGER);
        let mut driving = self.take();
        driving.background.is_aside = false;
        driving
    }
}
