//! A new node that comes with a database: it must hold what the first node held, or its rows would differ for good.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Ask;
use super::make::make;
use super::{set_wal, work_directory};
use crate::apply::{ApplyError, TableFilter, table_digests};
use crate::log::{FirstContent, JetStreamLog, TableDigest, content_of_first};
use crate::node::config::RunConfig;
use crate::node::error::NodeError;

/// How often it is tried to ask: with the waits between it is about half a minute, longer than a server takes to start again.
const TRIES_MAX: u32 = 8;
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Compares the database as it was when this node began with that of the first node.
pub(in crate::node) async fn refuse_other_content(
    log: &JetStreamLog,
    config: &RunConfig,
    asks: &mpsc::Sender<Ask>,
) -> Result<(), NodeError> {
    let (answer, moment) = oneshot::channel();
    if asks.send(Ask::Moment { answer, early: true }).await.is_err() {
        return Ok(());
    }
    let Ok(Some(moment)) = moment.await else { return Ok(()) };
    let of_thread = config.clone();
    let digested = tokio::task::spawn_blocking(move || digest(moment, &of_thread));
    let ours = match digested.await.map_err(|_| NodeError::Ended("comparing of databases"))? {
        Ok(ours) => ours,
        Err(error) => {
            tracing::warn!("the database is not compared with that of the first node: {error}");
            return Ok(());
        }
    };
    let Some(theirs) = recorded(log, &ours).await else { return Ok(()) };
    let mut differing = Vec::new();
    for first in &theirs.tables {
        let Some(here) = ours.iter().find(|here| here.name.eq_ignore_ascii_case(&first.name)) else { continue };
        // Another shape is not another content: applying stops with a remedy when it cannot go on.
        if here.shape != first.shape {
            tracing::warn!(
                "table {} has other columns, another key or another filter here than on the first node",
                first.name
            );
            continue;
        }
        let count = first.differing(here);
        if count > 0 {
            differing.push(format!("{}: at least {count} ({} here, {} there)", first.name, here.rows, first.rows));
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    let error = NodeError::OtherContent { path: config.db_path.clone(), rows: differing.join("; ") };
    if theirs.is_empty {
        return Err(error);
    }
    // A node that was made anew has what came later as well, and what came later cannot be told from what never belonged there.
    tracing::warn!("{error}; that is right for a copy that was made later, else {}", error.hint());
    Ok(())
}

/// What the first node has recorded. A server that does not let us ask must not keep the node from working.
async fn recorded(log: &JetStreamLog, ours: &[TableDigest]) -> Option<FirstContent> {
    let mut wait = RETRY_FIRST;
    for _ in 0..TRIES_MAX {
        match content_of_first(log, ours).await {
            Ok(found) => return found,
            Err(error) => tracing::warn!("cannot compare with the first node yet: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    tracing::warn!("going on without comparing: this database must be the same copy as the others'");
    None
}

fn digest(moment: super::Moment, config: &RunConfig) -> Result<Vec<TableDigest>, NodeError> {
    let filter = TableFilter::new(&config.tables, &config.exclude_tables);
    let path: PathBuf = work_directory(&config.state_dir)?.join("compared.db");
    let (file, _) = make(moment, &path, &filter, &config.row_filters)?;
    let fail = |source| NodeError::StateDirectory { path: path.clone(), what: "cannot read a copy", source };
    set_wal(&file, false).map_err(fail)?;
    let doing = |source| ApplyError::Database { doing: "opening a copy", source };
    let conn = rusqlite::Connection::open(&path).map_err(doing)?;
    let digests = table_digests(&conn, &filter, &config.row_filters)?;
    drop(conn);
    std::fs::remove_file(&path).map_err(fail)?;
    Ok(digests)
}
