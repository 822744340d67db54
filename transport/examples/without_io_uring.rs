//! Runs a command as in a container that forbids io_uring:
//!
//! ```text
//! cargo run -p courser-transport --example without_io_uring -- courser serve
//! ```

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use courser_transport::sys::{Errno, forbid_io_uring};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: without_io_uring COMMAND [ARGUMENT ...]");
        return ExitCode::from(2);
    };
    if let Err(errno) = forbid_io_uring(Errno(libc::EPERM)) {
        eprintln!("skipped: this kernel takes no seccomp filter ({errno})");
        return ExitCode::from(77);
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("error: {} cannot be run: {error}", program.display());
    ExitCode::from(126)
}
