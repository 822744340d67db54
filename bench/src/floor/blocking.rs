//! The echo that sleeps in the kernel until something comes: what a server
//! costs that does not own its core. Between this and the spinning echo lies
//! the price of waking a thread.

use super::echo::Echo;
use super::frame::FrameScanner;
use super::server::{Served, Site};
use crate::error::BenchError;

pub(super) fn serve(site: &Site) -> Result<Served, BenchError> {
    let mut echo = Echo::new();
    let mut scanner = FrameScanner::default();
    if let Some(connection) = site.accept()? {
        while echo.answer(site, &connection, &mut scanner)? {}
    }
    Ok(echo.served)
}
