//! The echo of an event loop that never sleeps: ask epoll with no timeout, and
//! read once where it says there is something. What a server pays that has
//! more than one connection and no io_uring.

use std::os::fd::AsFd;

use super::echo::Echo;
use super::server::{Served, Site};
use crate::error::BenchError;
use crate::sys::Epoll;

pub(super) fn serve(site: &Site) -> Result<Served, BenchError> {
    let failed = |step: &'static str| move |source| BenchError::Epoll { step, source };
    let epoll = Epoll::create().map_err(failed("create an instance"))?;
    let mut echo = Echo::new();
    let Some(connection) = site.accept_nonblocking()? else {
        return Ok(echo.served);
    };
    epoll
        .watch_readable(connection.as_fd())
        .map_err(failed("watch a connection"))?;
    while site.keep_going() {
        let ready = epoll.is_ready().map_err(failed("ask for events"))?;
        if ready && !echo.answer(site, &connection)? {
            break;
        }
    }
    Ok(echo.served)
}
