//! One binary for all integration tests: they share one link step.

// What is `pub` in a test module is as visible as the binary, and that is nobody's interface.
#![allow(unreachable_pub)]
// In a test a panic is the report. Clippy knows that of test functions, but not of their helpers.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod capture;
mod diff;
mod fixtures;
mod layers;
mod support;
