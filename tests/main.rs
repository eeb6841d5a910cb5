//! One binary for all integration tests: they share one link step.

mod diff;
mod support;
