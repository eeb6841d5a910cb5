//! What a node is told to do: every setting resolved and checked. Where the settings come from is not known here.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::apply::RowFilters;

/// Everything that `run` needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    /// The database to replicate.
    pub db_path: PathBuf,
    /// Where our own state lives.
    pub state_dir: PathBuf,
    /// This node's id; `None`: the one in the state directory, or a random one for a new node.
    pub node_id: Option<u64>,
    /// The server.
    pub nats: NatsConfig,
    /// The streams.
    pub log: LogConfig,
    /// Following the database.
    pub capture: CaptureConfig,
    /// Applying what arrives.
    pub apply: ApplyConfig,
    /// Patterns of the tables to replicate, as SQLite's GLOB, without case; empty: all.
    pub tables: Vec<String>,
    /// Patterns of tables to leave out, even if `tables` names them.
    pub exclude_tables: Vec<String>,
    /// Which rows of tables to replicate.
    pub row_filters: RowFilters,
    /// Whether local changes are published.
    pub publish: bool,
    /// Whether other nodes' changes are applied.
    pub apply_changes: bool,
    /// Whether a database that was restored from a backup may be taken as it is, although that deletes much of what the log holds.
    pub accept_restored: bool,
    /// Whether the shadow is made anew, whatever is there: what changed while nobody followed is not found then.
    pub new_shadow: bool,
}

/// How to reach the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatsConfig {
    /// Addresses to try. Empty: `nats://127.0.0.1:4222`, and if nobody listens there a server of our own.
    pub urls: Vec<String>,
    /// User name.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Option<Secret>,
    /// Authentication token.
    pub token: Option<Secret>,
    /// File that holds an nkey seed.
    pub nkey_file: Option<PathBuf>,
    /// Credentials file (JWT and seed).
    pub creds_file: Option<PathBuf>,
    /// Certificates (PEM) that the server's certificate is checked against.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate (PEM).
    pub cert_file: Option<PathBuf>,
    /// The private key (PEM) of our certificate.
    pub key_file: Option<PathBuf>,
}

/// The streams that the log consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How many streams changes are spread over, from 1.
    pub shards: u16,
    /// Messages that a stream keeps.
    pub max_entries: u64,
    /// Copies that the servers keep of each stream, 1 to 5.
    pub replicas: u8,
    /// Subjects are `<subject_prefix>-<shard id>`.
    pub subject_prefix: String,
    /// Streams are `<stream_prefix>-<shards>-<shard id>`.
    pub stream_prefix: String,
    /// Whether messages are compressed.
    pub compress: bool,
    /// Whether rows before the change are sent along.
    pub before_images: bool,
    /// How often a snapshot is made even if the log has moved little; `None`: only when it has moved half of `max_entries`.
    pub snapshot_interval: Option<Duration>,
    /// Bytes of changes that may wait for the server before the node stops in a defined state.
    pub outbox_bytes_max: u64,
}

/// How a database is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// How often to look even if nothing notified us.
    pub poll_interval: Duration,
    /// How often to make what was captured durable.
    pub sync_interval: Duration,
    /// What must be durable before a change leaves the machine.
    pub durability: Durability,
    /// Frames of a generation from which on we checkpoint.
    pub checkpoint_frames: u32,
    /// Bytes of WAL beyond which writers are held for the moment that a complete checkpoint takes; `None`: they never are.
    pub wal_bytes_max: Option<u64>,
}

/// How much must be on disk before a change leaves the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// What the application's own settings give: after a power loss the other nodes may know commits that this database lost; it gets
    /// them back from the log.
    #[default]
    Relaxed,
    /// Everything is synced before it is published and before it counts as applied.
    Strict,
}

/// How changes are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyConfig {
    /// What two nodes' changes of one row mean.
    pub conflict: Conflict,
    /// How long to wait for the rest of a transaction that other shards bring.
    pub cut_wait: Duration,
    /// Rows of overridden changes that are kept for people to look at.
    pub conflict_rows_max: u64,
}

/// What concurrent updates of one row mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conflict {
    /// Columns are merged: each keeps its latest change.
    #[default]
    Column,
    /// The latest change sets the whole row.
    Row,
}

/// A password or token. Its `Debug` form hides it, so that it never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
