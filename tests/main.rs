//! Everything that is tested from outside: one binary, a module per concern.

#![allow(unreachable_pub)] // Nothing outside sees a test binary: `pub` says here what other modules of it use.

mod log;
mod support;
