//! One binary for all integration tests: they share one link step.

// clippy.toml allows these in test functions; helpers beside them are tests too.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]

mod capture;
mod cli;
mod diff;
mod inspect;
mod output;
mod support;
mod tail;
