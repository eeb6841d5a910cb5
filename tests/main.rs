//! One binary for all integration tests: they share one link step.

#![allow(unreachable_pub)] // Nothing outside sees a test binary: `pub` says here what other modules of it use.

mod apply;
mod diff;
mod fold_model;
mod log;
mod support;
