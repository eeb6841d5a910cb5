//! Layer 6: the daemon.

mod config;

pub use config::{ApplyConfig, CaptureConfig, Conflict, Durability, LogConfig, NatsConfig, RunConfig, Secret};
