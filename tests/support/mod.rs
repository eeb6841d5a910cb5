//! What several tests need.

pub mod cluster;
pub mod gate;
pub mod model;
pub mod nats;
pub mod oracle;
pub mod pages;
pub mod peer;
pub mod random;
pub mod sink;
