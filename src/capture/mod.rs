//! Layer 3: a live database becomes transactions. Uses `format`, `schema` and `change`.
//!
//! The thread that owns the database calls [`Follower::poll`] and [`Follower::maintain`]; nothing here runs by itself but the watcher, which
//! only wakes.

mod checkpoint;
mod connections;
mod database_file;
mod durable;
mod error;
mod follower;
mod foreign;
mod frames;
mod lost;
mod map;
mod noted;
mod parting;
mod peek;
mod pinning;
mod position;
mod reading;
mod resume;
mod shadow;
mod stand;
mod wake;

pub use checkpoint::CheckpointOptions;
pub(crate) use database_file::companion_of;
pub use database_file::{DatabaseFile, FileIdentity, FileStamp, user_of_log};
pub use durable::DurableHook;
pub use error::{CaptureError, FollowError};
pub use follower::{DRAIN_PATIENCE_MAX, DRAIN_WITHIN, Follower, Polled, SchemaMark};
pub use peek::Committed;
pub use position::{POSITION_BYTES, Position};
pub use resume::Started;
pub use shadow::{HeldCompareError, HeldShadow, Progress, ShadowError, ShadowProgress, ShadowStep, write_shadow};
pub use wake::{HANDOVER_INTERVAL, IDLE_INTERVAL, WakeUps, Waker};
