//! What several tests need.

pub mod oracle;
pub mod pages;
pub mod random;
