//! What several test modules need.

pub(crate) mod model;
pub(crate) mod rng;
