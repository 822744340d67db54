//! The echo that asks the socket itself, over and over: one system call to
//! receive, one to send, and nothing that could be left out. With one
//! connection this is the least that a server on a socket can do.

use super::echo::Echo;
use super::frame::FrameScanner;
use super::server::{Served, Site};
use crate::error::BenchError;

pub(super) fn serve(site: &Site) -> Result<Served, BenchError> {
    let mut echo = Echo::new();
    let mut scanner = FrameScanner::default();
    if let Some(connection) = site.accept_nonblocking()? {
        while site.keep_going() && echo.answer(site, &connection, &mut scanner)? {}
    }
    Ok(echo.served)
}
