//! What several tests need.

pub mod nats;
pub mod oracle;
pub mod pages;
pub mod random;
