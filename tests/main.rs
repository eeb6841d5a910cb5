//! One binary for all integration tests: they share one link step.

#![allow(unreachable_pub)] // Nothing outside sees a test binary: `pub` says here what other modules of it use.
// A test that cannot go on fails, and says where.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod apply;
mod diff;
mod fold_model;
mod log;
mod support;
