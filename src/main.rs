//! The `woodchuck` program: reads the arguments, runs the command, returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    woodchuck::cli::main(std::env::args_os())
}
