//! SIGINT and SIGTERM as a wish to stop; the second one ends the process at once.
//!
//! A handler may do almost nothing, so it does the least: it sets a flag and writes
//! one byte into a socket that somebody waits on.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// What a process answers with that a signal ended, by convention of shells.
const ENDED_BY_SIGNAL: i32 = 128;

/// The wish to stop, once somebody has one.
#[derive(Debug)]
pub(crate) struct Stop {
    /// Written by the handlers, read by whoever asks. It publishes nothing but itself.
    wished: Arc<AtomicBool>,
    /// One byte arrives with each signal.
    bytes: UnixStream,
}

impl Stop {
    /// Listens for both signals from here on.
    pub(crate) fn listen() -> io::Result<Self> {
        let wished = Arc::new(AtomicBool::new(false));
        let (bytes, sender) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM] {
            // In this order: at the first signal the flag is not yet set when this
            // one looks at it, at the second it is.
            flag::register_conditional_shutdown(
                signal,
                ENDED_BY_SIGNAL + signal,
                Arc::clone(&wished),
            )?;
            flag::register(signal, Arc::clone(&wished))?;
            low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self { wished, bytes })
    }

    /// Whether somebody wished to stop.
    pub(crate) fn is_wished(&self) -> bool {
        self.wished.load(Ordering::Relaxed)
    }

    /// Waits until somebody does.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        let mut byte = [0];
        while !self.is_wished() {
            match self.bytes.read(&mut byte) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
