//! `courser serve`: a broker until somebody wants it to stop.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use courser_transport::affinity::Cores;
use courser_transport::{Broker, BrokerConfig, StartError};

use crate::args::{ServeOptions, Switch};
use crate::error::CommandError;
use crate::output;
use crate::signals::Stop;

/// Why a broker did not start or did not stop in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Others could reach it, and nothing would ask who they are.
    #[error(
        "{0} is not a loopback address: this version neither asks who connects nor encrypts\n  fix    --listen 127.0.0.1:{port} · or --insecure on a network where everybody may read and write",
        port = .0.port()
    )]
    Exposed(SocketAddr),
    /// The broker refused to start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Signals cannot be waited for.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
}

/// Starts a broker, says what it runs with, and stops it at SIGINT or SIGTERM.
pub(crate) fn serve(options: &ServeOptions) -> Result<(), CommandError> {
    let config = config(options)?;
    let mut stop = Stop::listen().map_err(ServeError::Signals)?;
    let broker = Broker::start(config).map_err(ServeError::Start)?;
    output::print(&format_args!(
        "courser {}\n{}\n",
        env!("CARGO_PKG_VERSION"),
        broker.setting(),
    ))?;
    for (code, text) in broker.setting().warnings() {
        output::remark(&format_args!("warning[{code}]: {text}"));
    }
    stop.wait().map_err(ServeError::Signals)?;
    output::remark(&"stopping: saying goodbye to every connection; a second signal ends at once");
    broker.stop();
    Ok(())
}

fn config(options: &ServeOptions) -> Result<BrokerConfig, ServeError> {
    if !options.listen.ip().is_loopback() && !options.insecure {
        return Err(ServeError::Exposed(options.listen));
    }
    Ok(BrokerConfig {
        listen: Some(options.listen),
        transport: options.transport,
        cores: options.cores.clone().unwrap_or(Cores::Auto),
        shards: options.shards.and_then(NonZeroU16::new),
        idle: options.idle,
        spin_budget: options.spin_budget.0,
        memory: options.memory,
        auto_create: options.auto_create == Switch::On,
        data_directory: (!options.ephemeral).then(|| options.data_dir.clone()),
        checkpoint_bytes: options.checkpoint_bytes,
        backlog_bytes: options.backlog_bytes,
        ..BrokerConfig::default()
    })
}
