//! One binary for all integration tests: they share one link step.

mod capture;
mod diff;
mod layers;
mod support;
