//! The binary `courser`: a broker, and a command line that speaks to one.
//!
//! | module | what it is |
//! |---|---|
//! | `args` | every verb and flag, defined once |
//! | `quantity` | durations and sizes as people write them |
//! | `error` | how a command ends when it does not end well, and its exit status |
//! | `output` | answers on standard output, as text or JSON |
//! | `source`, `records` | bodies to send; what became of messages, a line each |
//! | `signals` | SIGINT and SIGTERM as a wish to stop |
//! | `serve` `send` `receive` `stats` `limits` `bench` | a verb each |
//! | `destination` `subscription` `producer` `connection` | what an administrator sees and does, a noun each |
//! | `check` `dump` | a data directory that no broker has: whether it is whole, and what it holds |
//! | `examine` | what both read |
//! | `browse` | `dump` of what a running broker keeps of a queue or a topic |
//! | `line` | a line about one thing, as text or JSON |
//! | `confirm` | asking before something is done that cannot be taken back |

mod args;
mod bench;
mod browse;
mod check;
mod confirm;
mod connection;
mod destination;
mod dump;
mod error;
mod examine;
mod limits;
mod line;
mod output;
mod producer;
mod quantity;
mod receive;
mod records;
mod send;
mod serve;
mod signals;
mod source;
mod stats;
mod subscription;

use std::process::ExitCode;

use args::{Source, Verb};
use courser::DestinationKind;

/// The binary alone chooses it: a library that an application links has no say.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let verb = match args::parse() {
        Ok(verb) => verb,
        Err(answer) => return answer,
    };
    let ended = match verb {
        Verb::Serve(options) => serve::serve(&options),
        Verb::Send(options) => send::send(&options),
        Verb::Receive(options) => receive::receive(&options),
        Verb::Stats(options) => stats::stats(&options),
        Verb::Topic(verb) => destination::destination(DestinationKind::Topic, &verb),
        Verb::Queue(verb) => destination::destination(DestinationKind::Queue, &verb),
        Verb::Sub(verb) => subscription::subscription(&verb),
        Verb::Producer(verb) => producer::producer(&verb),
        Verb::Conn(verb) => connection::connection(&verb),
        Verb::Bench(options) => bench::bench(&options),
        Verb::Check(options) => check::check(&options),
        Verb::Dump(options) => match &options.source {
            Source::Directory(path) => dump::dump(path, options.destination.as_ref(), options.json),
            Source::Destination(name) => browse::browse(name, options.json, &options.connection),
        },
        Verb::Limits(options) => limits::limits(&options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::remark(&error.report());
            error.status().into()
        }
    }
}
