//! Layer 7: people. Arguments and configuration, output, exit codes. May use every layer.

pub mod args;
mod argv;
mod cleanup;
mod commands;
pub mod config;
mod config_file;
mod conflicts;
mod doctor;
mod exit;
pub mod inspect;
pub mod output;
mod run;
mod snapshot;
mod status;
mod subscribe;
mod tail;
mod tail_once;
mod verify;
mod wait;

pub use argv::parse;
pub use commands::main;
pub use exit::{Exit, Failure};
