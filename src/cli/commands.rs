//! From arguments to the work: one arm a command.

use std::ffi::OsString;
use std::process::ExitCode;

use super::args::{Cli, Command};
use super::cleanup::cleanup;
use super::exit::{Exit, Failure};

/// Runs the program with these arguments (its own name first) and returns what it ends with. Failures have been printed.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let done = match super::argv::parse(argv) {
        Ok(None) => Ok(()),
        Ok(Some(cli)) => dispatch(cli),
        Err(failure) => Err(failure),
    };
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => failure.report(),
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Cleanup(args) => cleanup(&args),
        Command::Doctor(args) => super::doctor::doctor(*args, &variable),
        Command::Inspect(args) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            super::inspect::inspect(&args, &mut out, super::output::Style::of_stdout())
        }
        Command::Run(args) => {
            let config = super::config::run_config(*args, &variable)?;
            super::run::run(config, cli.verbose.unwrap_or(false))
        }
        Command::Snapshot { command } => super::snapshot::snapshot(command, &variable),
        Command::Restore(args) => super::snapshot::restore(*args, cli.verbose.unwrap_or(false), &variable),
        Command::Verify(args) => super::verify::verify(&args),
        Command::Wait(args) => super::wait::wait(&args),
        Command::Tail(args) => super::tail::tail(&args),
        Command::Status(args) => super::status::status(&args),
        Command::Subscribe(args) => {
            let format = args.format;
            super::subscribe::subscribe(&super::config::subscribe_address(*args, &variable)?, format)
        }
        Command::Conflicts(args) => super::conflicts::conflicts(&args),
    }
}

/// Looks up a variable. One that is not UTF-8 cannot be any of ours.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
