//! Snapshots of a running node, and nodes that begin with one or come back to one.
//!
//! ```text
//!  database thread: moment ──▶ copy ─▶ base put in place ─▶ hash ─▶ zstd ══▶ object store      (keeper, under the lease)
//!                   catch up ◀── fetched ◀─────────────────────────────────── object store     (fetch)
//!  no database:     restore ◀── fetched ◀──────────────────────────────────── object store
//! ```

mod fetch;
mod first;
mod keeper;
mod make;
mod progress;
mod restore;

pub use fetch::Need;
pub(super) use fetch::{CatchUps, Fetched};
pub(super) use first::refuse_other_content;
pub(super) use keeper::Keeper;
pub(super) use make::{Moment, make};
pub use progress::{SnapshotProgress, SnapshotStep, TellSnapshot, tell_log};
pub use restore::{Restore, restore};
pub(super) use restore::{join, refuse_interrupted, restore_fetched};

use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::config::{NatsConfig, RunConfig};
use super::error::NodeError;
use super::network::connect_log;
use super::verify::VerifyAsk;
use super::waiting::FoldedOf;
use crate::log::{LogError, Origin, ShardId, SnapshotInfo, SnapshotStore, StreamOptions};

/// The snapshots of a log, newest first.
///
/// # Errors
/// [`NodeError::Connect`], [`NodeError::Snapshot`].
pub async fn list_snapshots(nats: &NatsConfig, streams: StreamOptions) -> Result<Vec<SnapshotInfo>, NodeError> {
    let log = connect_log(nats, streams, 0).await?;
    Ok(SnapshotStore::of(&log).list().await?)
}

/// Asks a running node to make a snapshot, and waits for it; `tell` hears how far it is. `None` when no node is there to make one.
///
/// # Errors
/// [`NodeError::Connect`], [`NodeError::Snapshot`].
pub async fn ask_for_snapshot(
    nats: &NatsConfig,
    streams: StreamOptions,
    tell: &TellSnapshot,
) -> Result<Option<SnapshotInfo>, NodeError> {
    let log = connect_log(nats, streams, 0).await?;
    if !fetch::ask_for_one(&log, &fetch::Wanted::default(), tell).await? {
        return Ok(None);
    }
    Ok(SnapshotStore::of(&log).list().await?.into_iter().next())
}

/// Where files are kept while a snapshot is made or taken in, in the state directory. What is found there at a start is of no use.
const WORK_DIRECTORY: &str = "snapshot";

/// What the network side asks of the database thread.
pub(super) enum Ask {
    /// The database and the state as they are now, if a snapshot can be made of them.
    Moment {
        /// Where to put them.
        answer: oneshot::Sender<Option<Moment>>,
        /// Whether they will do although this node has not read the log to its end.
        early: bool,
    },
    /// A shard that the server had lost messages of has them again.
    IsWhole(ShardId),
    /// Nobody has put back what the server lost.
    StaysLost(LogError),
    /// To catch up.
    CatchUp(Box<Fetched>),
    /// How far an origin's messages are folded here.
    Folded(Origin, oneshot::Sender<FoldedOf>),
    /// To take part in a comparison of nodes.
    Verify(VerifyAsk),
    /// To say so when everything that is committed now is on the log and was seen there, with our last message in each shard.
    Published(oneshot::Sender<FoldedOf>),
}

/// The directory for files that do not outlive their work.
pub(super) fn work_directory(state_dir: &Path) -> Result<PathBuf, NodeError> {
    let path = state_dir.join(WORK_DIRECTORY);
    let made = std::fs::create_dir_all(&path);
    made.map_err(|source| NodeError::StateDirectory { path: path.clone(), what: "cannot make the directory", source })?;
    Ok(path)
}

/// Removes what an earlier life has left.
pub(super) fn clear_work_directory(state_dir: &Path) {
    let _ = std::fs::remove_dir_all(state_dir.join(WORK_DIRECTORY));
}

/// Which tables and rows a node's snapshots have, as its options say it; empty for all.
pub(super) fn tables_text(config: &RunConfig) -> String {
    let part = |name: &str, list: &[String]| match list {
        [] => String::new(),
        list => format!("{name} {} ", list.join(",")),
    };
    let rows = config.row_filters.text();
    let rows = if rows.is_empty() { rows } else { format!("where {rows}") };
    (part("tables", &config.tables) + &part("without", &config.exclude_tables) + &rows).trim_end().to_owned()
}

/// Whether a file is taken for a database with a write-ahead log. One without can be read in peace where it lies.
pub(super) fn set_wal(file: &std::fs::File, wal: bool) -> std::io::Result<()> {
    /// The header's two version numbers: 1 for a rollback journal, 2 for a write-ahead log.
    const VERSIONS_OFFSET: u64 = 18;
    std::os::unix::fs::FileExt::write_all_at(file, &[1 + u8::from(wal); 2], VERSIONS_OFFSET)
}
