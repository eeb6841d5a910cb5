//! One binary for all integration tests: they share one link step.

mod capture;
mod cli;
mod diff;
mod inspect;
mod output;
mod support;
mod tail;
