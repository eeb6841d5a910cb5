//! Everything that is tested from outside: one binary, a module per concern.

// Nothing outside sees a test binary: `pub` says here what other modules of it use. A test that panics has failed, as it should.
#![allow(unreachable_pub, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod log;
mod support;
