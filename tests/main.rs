//! One binary for all integration tests: they share one link step.
// Helpers of tests may panic, and nothing outside sees what they make public.
#![allow(unreachable_pub, missing_docs)]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod apply;
mod capture;
mod cases;
mod cli;
mod cluster;
mod deferred;
mod diff;
mod doctor;
mod fixtures;
mod fold_model;
mod fold_reader;
mod fuzz;
mod inspect;
mod layers;
mod locks;
mod log;
mod oracle;
mod output;
mod parting;
mod raw;
mod shadow;
mod side_by_side;
mod simulate;
mod support;
mod tail;
mod torture;
