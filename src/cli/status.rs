//! `status`: what a node told last about itself.

use std::io::{ErrorKind, Write};
use std::time::{Duration, SystemTime};

use super::args::{StatusArgs, StatusFormat};
use super::exit::Failure;
use super::output::{metrics, printable};
use crate::node::{Status, is_running, read_status};

/// Prints the status of a node.
///
/// # Errors
/// [`Failure`] when no node ever ran on the state directory.
pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let dir = args.node.state_dir();
    let cannot = |error: &std::io::Error| {
        Failure::failed(format_args!("cannot read the status in {}: {error}", dir.display()))
            .hint("check the path and its permissions")
    };
    let status = match read_status(&dir) {
        Ok(status) => status,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::failed(format_args!("no node has run on {}", dir.display()))
                .hint("check --db-path and --state-dir, or start one with `woodchuck run`"));
        }
        Err(error) => return Err(cannot(&error)),
    };
    let running = is_running(&dir).map_err(|error| cannot(&error))?;
    let text = match args.format {
        StatusFormat::Json => json(&status, running)?,
        StatusFormat::Pretty => pretty(&status, running),
        StatusFormat::Prometheus => metrics(&status, running),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::output(&error))
}

fn json(status: &Status, running: bool) -> Result<String, Failure> {
    let mut value = serde_json::to_value(status)
        .map_err(|error| Failure::failed(format_args!("cannot print the status: {error}")))?;
    if let Some(object) = value.as_object_mut() {
        object.insert("running".to_owned(), running.into());
    }
    Ok(format!("{value}\n"))
}

fn pretty(status: &Status, running: bool) -> String {
    let phase = match (running, status.phase.as_str()) {
        (true, phase) => phase.to_owned(),
        (false, "stopped") => "stopped".to_owned(),
        (false, _) => "not running: it ended without saying so".to_owned(),
    };
    let written = SystemTime::UNIX_EPOCH + Duration::from_millis(status.written_at_ms);
    let age = written.elapsed().map_or_else(|_| "just now".to_owned(), |age| format!("{} s ago", age.as_secs()));
    let connected = if status.connected && running { "connected" } else { "not connected" };
    let lag: u64 = status.shards.values().map(|shard| shard.last.saturating_sub(shard.applied)).sum();
    let (committed, checkpointed) = status.wal_frames;
    let mut lines = vec![
        format!("node      {} (process {}), {phase}, as of {age}", status.node_id, status.pid),
        format!("log       {connected}, {lag} messages behind, {} waiting to be applied", status.inbox_messages),
        format!("outbox    {} units, {} bytes", status.outbox_units, status.outbox_bytes),
        format!("captured  {} transactions, at {}", status.transactions_captured, status.position),
        format!("applied   {} rows, {} conflicts", status.rows_applied, status.conflicts),
        format!(
            "WAL       {} bytes, {checkpointed} of {committed} frames checkpointed{}",
            status.wal_bytes,
            if status.pinned_by_others { ", kept by a reader of another program" } else { "" }
        ),
    ];
    for (shard, of_shard) in &status.shards {
        let blocked =
            if of_shard.blocked.is_empty() { String::new() } else { format!("  STOPPED: {}", of_shard.blocked) };
        lines.push(format!("shard {shard:<4}applied {} of {}{blocked}", of_shard.applied, of_shard.last));
    }
    if !status.last_error.is_empty() {
        lines.push(format!("last error: {}", status.last_error));
    }
    lines.push(String::new());
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}
