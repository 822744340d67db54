//! The echo of an event loop: ask epoll, and read once where it says there is
//! something. What a server pays that has more than one connection and no
//! io_uring. One kind never sleeps and is a floor of latency; the other sleeps
//! whenever there is nothing and is the floor of processor time at a moderate load.

use std::os::fd::AsFd;

use super::echo::Echo;
use super::server::{Served, Site};
use crate::error::BenchError;
use crate::sys::Epoll;

pub(super) fn serve_busy(site: &Site) -> Result<Served, BenchError> {
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

pub(super) fn serve_blocking(site: &Site) -> Result<Served, BenchError> {
    let epoll = Epoll::create().map_err(failed("create an instance"))?;
    let mut echo = Echo::new();
    let Some(connection) = site.accept()? else {
        return Ok(echo.served);
    };
    epoll
        .watch_readable(connection.as_fd())
        .map_err(failed("watch a connection"))?;
    // A stop shuts the connection down, which makes it readable.
    loop {
        let ready = epoll
            .sleep_until_ready()
            .map_err(failed("ask for events"))?;
        if ready && !echo.answer(site, &connection)? {
            return Ok(echo.served);
        }
    }
}

fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> BenchError {
    move |source| BenchError::Epoll { step, source }
}
