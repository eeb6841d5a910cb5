//! One binary for all integration tests: they share one link step.

// What is `pub` in a test module is as visible as the binary, and that is nobody's interface.
#![allow(unreachable_pub)]

mod capture;
mod diff;
mod fixtures;
mod layers;
mod support;
