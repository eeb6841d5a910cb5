//! Snapshots: the fold as a database in the JetStream object store, with where it stands.

mod error;
mod genesis;
mod lease;
mod manifest;
mod pack;
mod store;

pub use error::SnapshotError;
pub use genesis::{FirstContent, TableDigest, content_of_first};
pub use lease::Lease;
pub use manifest::{HASH_BYTES, MovedIn, Routing, ShardStand, SnapshotManifest, Stand, TableRouting};
pub use pack::hash_file;
pub use store::{Maker, SnapshotInfo, SnapshotStore};
