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

/// A folder in memory where that can be, for tests that have nothing to do with disks.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder for a test")
}
