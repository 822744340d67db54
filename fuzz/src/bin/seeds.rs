//! `courser-seeds DIRECTORY` writes the cases of every target, seeds and kept
//! ones, to `DIRECTORY/TARGET`, where a fuzzer can begin with them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs, io};

use courser_fuzz::{TARGETS, corpus};

fn main() -> ExitCode {
    let Some(directory) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: courser-seeds DIRECTORY");
        return ExitCode::from(2);
    };
    match write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("courser-seeds: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &std::path::Path) -> io::Result<()> {
    for target in TARGETS {
        let directory = directory.join(target.name);
        fs::create_dir_all(&directory)?;
        for case in corpus::cases(target.name)? {
            // A kept case is called by its path; its last part is enough here.
            let name = case.name.rsplit('/').next().unwrap_or_default();
            fs::write(directory.join(name), &case.bytes)?;
        }
    }
    Ok(())
}
