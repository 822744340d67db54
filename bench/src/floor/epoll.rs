//! The echo of an event loop: ask epoll, and read once where it says there is
//! something, on one connection or on many. What a server pays that has more than one connection and no
//! io_uring. One kind never sleeps and is a floor of latency; the other sleeps
//! whenever there is nothing and is the floor of processor time at a moderate load.

use super::echo::Echo;
use super::frame::FrameScanner;
use super::server::{Served, Site};
use crate::error::BenchError;
use crate::sys::{Epoll, Ready};

pub(super) fn serve_busy(site: &Site) -> Result<Served, BenchError> {
    let epoll = Epoll::create().map_err(failed("create an instance"))?;
    let mut echo = Echo::new();
    let mut scanner = FrameScanner::default();
    let mut ready = Ready::new(1);
    let Some(connection) = site.accept_nonblocking()? else {
        return Ok(echo.served);
    };
    epoll
        .watch_readable(&connection, 0)
        .map_err(failed("watch a connection"))?;
    while site.keep_going() {
        let is_ready = epoll
            .is_ready(&mut ready)
            .map_err(failed("ask for events"))?;
        if is_ready && !echo.answer(site, &connection, &mut scanner)? {
            break;
        }
    }
    Ok(echo.served)
}

pub(super) fn serve_blocking(site: &Site) -> Result<Served, BenchError> {
    let epoll = Epoll::create().map_err(failed("create an instance"))?;
    let mut echo = Echo::new();
    let mut scanner = FrameScanner::default();
    let mut ready = Ready::new(1);
    let Some(connection) = site.accept()? else {
        return Ok(echo.served);
    };
    epoll
        .watch_readable(&connection, 0)
        .map_err(failed("watch a connection"))?;
    // A stop shuts the connection down, which makes it readable.
    loop {
        let is_ready = epoll
            .sleep_until_ready(&mut ready)
            .map_err(failed("ask for events"))?;
        if is_ready && !echo.answer(site, &connection, &mut scanner)? {
            return Ok(echo.served);
        }
    }
}

/// For so many connections, which all have to be made before the first is served.
pub(super) fn serve_many(site: &Site, connections: usize) -> Result<Served, BenchError> {
    let epoll = Epoll::create().map_err(failed("create an instance"))?;
    let mut echo = Echo::new();
    let mut ready = Ready::new(connections);
    let mut peers = Vec::with_capacity(connections);
    for key in 0..connections {
        let Some(connection) = site.accept()? else {
            return Ok(echo.served);
        };
        connection
            .set_nonblocking(true)
            .map_err(BenchError::socket("make a socket non-blocking"))?;
        epoll
            .watch_readable(&connection, key)
            .map_err(failed("watch a connection"))?;
        peers.push((connection, FrameScanner::default()));
    }
    site.begins_to_spin();
    while site.keep_going() {
        for key in epoll.ready(&mut ready).map_err(failed("ask for events"))? {
            let Some((connection, scanner)) = peers.get_mut(key) else {
                continue;
            };
            // They come and go together.
            if !echo.answer(site, connection, scanner)? {
                return Ok(echo.served);
            }
        }
    }
    Ok(echo.served)
}

fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> BenchError {
    move |source| BenchError::Epoll { step, source }
}
