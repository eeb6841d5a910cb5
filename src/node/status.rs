//! What a node tells about itself, once a second, in a file of its state directory.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The name of the file.
pub const STATUS_FILE: &str = "status.json";

/// A node's state for people and scripts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's id.
    pub node_id: u64,
    /// The process.
    pub pid: u32,
    /// `starting`, `running`, `stopping` or `stopped`.
    pub phase: String,
    /// When this was written, in milliseconds since 1970.
    pub written_at_ms: u64,
    /// Whether the server answers.
    pub connected: bool,
    /// Where capture stands: salts in hexadecimal and frame.
    pub position: String,
    /// Transactions captured since the start.
    pub transactions_captured: u64,
    /// Length of the database's log up to its last commit.
    pub wal_bytes: u64,
    /// Frames in it, and how many of them are in the database file.
    pub wal_frames: (u32, u32),
    /// Milliseconds since our read transaction was last renewed while it may hold back a checkpoint; 0 when it holds back nothing.
    pub pin_age_ms: u64,
    /// A reader of another process keeps the log from being restarted.
    pub pinned_by_others: bool,
    /// Units that no server has given back yet.
    pub outbox_units: u64,
    /// Their bytes.
    pub outbox_bytes: u64,
    /// Messages that have arrived and wait to be applied.
    pub inbox_messages: u64,
    /// Row changes of other nodes applied since the start.
    pub rows_applied: u64,
    /// Changes that overrode a concurrent one since the start.
    pub conflicts: u64,
    /// How often the rest of a round was not waited for any more since the start: a transaction was torn then.
    #[serde(default)]
    pub cuts_broken: u64,
    /// Per shard.
    pub shards: BTreeMap<u16, ShardStatus>,
    /// The last trouble, empty when there was none.
    pub last_error: String,
}

/// A shard of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The last message applied.
    pub applied: u64,
    /// The last message known to be on the log.
    pub last: u64,
    /// Why the shard does not go on, and what to do; empty when it does.
    pub blocked: String,
}

/// Reads what a node has last told.
///
/// # Errors
/// When the file is not there or is no status.
pub fn read_status(state_dir: &Path) -> std::io::Result<Status> {
    let bytes = std::fs::read(state_dir.join(STATUS_FILE))?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::from)
}
